# SPDX-License-Identifier: Apache-2.0
"""client-go's metrics of a work queue, under its names, so that dashboards made for it fit.

What can be counted is counted as it happens; what only grows with time (how long the running work
has been running) is computed when somebody looks. ``name`` and ``controller`` hold the same: both
are asked for by what exists.
"""

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LABELS: Final = ("name", "controller")
# client-go's: from 10 ns, each ten times the last one.
_SECONDS: Final = tuple(10.0**e for e in range(-8, 4))


class QueueMetrics:
    """The metrics of all queues of a process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register them, without any queue."""

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, _LABELS, registry=registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(name, text, _LABELS, registry=registry, buckets=_SECONDS)

        self._depth = gauge("workqueue_depth", "Keys that wait to be handled now.")
        self._adds = Counter("workqueue_adds", "Keys that were queued.", _LABELS, registry=registry)
        self._retries = Counter(
            "workqueue_retries",
            "Keys that were queued again by an error.",
            _LABELS,
            registry=registry,
        )
        self._waited = seconds("workqueue_queue_duration_seconds", "Time from queued to taken up.")
        self._worked = seconds("workqueue_work_duration_seconds", "Time from taken up to done.")
        self._unfinished = gauge(
            "workqueue_unfinished_work_seconds", "Time that the running work took so far, in all."
        )
        self._longest = gauge(
            "workqueue_longest_running_processor_seconds",
            "Time that the longest running work took so far.",
        )

    def of(
        self, name: str, *, depth: Callable[[], int], running_s: Callable[[], list[float]]
    ) -> "OneQueue":
        """Return the counters of one queue; ``running_s`` is how long each running work took."""
        labels = {"name": name, "controller": name}
        self._depth.labels(**labels).set_function(depth)
        self._unfinished.labels(**labels).set_function(lambda: sum(running_s()))
        self._longest.labels(**labels).set_function(lambda: max(running_s(), default=0.0))
        return OneQueue(
            adds=self._adds.labels(**labels),
            retries=self._retries.labels(**labels),
            waited=self._waited.labels(**labels),
            worked=self._worked.labels(**labels),
        )


class OneQueue:
    """What is counted of one queue as it happens."""

    def __init__(
        self, *, adds: Counter, retries: Counter, waited: Histogram, worked: Histogram
    ) -> None:
        self.adds = adds
        self.retries = retries
        self.waited = waited
        self.worked = worked
