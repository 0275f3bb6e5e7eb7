# SPDX-License-Identifier: Apache-2.0
"""The controller's metrics: controller-runtime's under its own names, and podsnap's.

Dashboards and alerts made for any controller fit the first; the second tell what podsnap is for.
What is so, rather than what happened, is read from the caches when somebody looks: a number that is
kept beside the objects would be wrong after every restart. Every replica has the caches, so take
the ``max`` over replicas, never the sum.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from backends.clock import Clock
from backends.queue_metrics import QueueMetrics
from reconciler.cluster_cache import ClusterCache
from schemas.git_source import GitSource
from schemas.instants import parse_time
from schemas.names import READY
from statemachine.snapshot import State, recorded_state

# How a reconcile may end, in controller-runtime's words.
RESULTS: Final = ("success", "error", "requeue", "requeue_after")
_READY_STATUSES: Final = ("True", "False", "Unknown")
# controller-runtime's.
_SECONDS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8),
    *(0.9, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5, 6, 7, 8, 9, 10, 15, 20, 25, 30),
    *(40, 50, 60),
)


class ControllerMetrics:
    """What one controller process counts; labels are names of controllers and closed sets."""

    def __init__(self) -> None:
        """Register everything; a controller's own series begin with ``of_controller``."""
        self.registry = CollectorRegistry()
        self.queues = QueueMetrics(self.registry)
        self._total = Counter(
            "controller_runtime_reconcile",
            "Reconciles, by how they ended.",
            ["controller", "result"],
            registry=self.registry,
        )
        self._errors = Counter(
            "controller_runtime_reconcile_errors",
            "Reconciles that raised and are tried again.",
            ["controller"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "controller_runtime_reconcile_time_seconds",
            "Duration of one reconcile.",
            ["controller"],
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._workers = Gauge(
            "controller_runtime_max_concurrent_reconciles",
            "Reconciles that may run at once.",
            ["controller"],
            registry=self.registry,
        )
        self._active = Gauge(
            "controller_runtime_active_workers",
            "Reconciles that run now.",
            ["controller"],
            registry=self.registry,
        )
        self.leading = Gauge(
            "leader_election_master_status",
            "Whether this replica leads: 1 or 0.",
            ["name"],
            registry=self.registry,
        )
        self.retention_deletions = Counter(
            "podsnap_retention_deletions",
            "Snapshots that retention deleted.",
            registry=self.registry,
        )

    def of_controller(self, name: str, *, threads: int) -> None:
        """Begin a controller's series, at zero."""
        for result in RESULTS:
            self._total.labels(controller=name, result=result)
        for begun in (self._errors, self._seconds, self._active):
            begun.labels(controller=name)
        self._workers.labels(controller=name).set(threads)

    def counted(self, name: str, reconcile: Callable[[], float | None]) -> float | None:
        """Reconcile, count and time it; returns what it returns and raises what it raises."""
        with (
            self._active.labels(controller=name).track_inprogress(),
            self._seconds.labels(controller=name).time(),
        ):
            try:
                again_s = reconcile()
            except Exception:
                self._errors.labels(controller=name).inc()
                self._total.labels(controller=name, result="error").inc()
                raise
        ended = "success" if again_s is None else "requeue_after" if again_s > 0 else "requeue"
        self._total.labels(controller=name, result=ended).inc()
        return again_s


class ClusterGauges(Collector):
    """What the caches show now, counted when somebody looks."""

    def __init__(self, cache: ClusterCache, clock: Clock) -> None:
        """Register with a registry to be looked at."""
        self._cache = cache
        self._clock = clock

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Count."""
        snapshots = list(self._cache.snapshots.store.items())
        states = [recorded_state(s) or State.PENDING for s in snapshots]
        yield _by("podsnap_snapshots", "PodSnapshots by state.", "state", tuple(State), states)
        yield GaugeMetricFamily(
            "podsnap_stored_bytes",
            "Bytes of the snapshots that are in a bucket.",
            sum(
                s.capture.size_bytes
                for s, state in zip(snapshots, states, strict=True)
                if s.capture is not None and state in {State.AVAILABLE, State.OBSOLETE}
            ),
        )
        yield GaugeMetricFamily(
            "podsnap_quarantined_snapshots",
            "Snapshots that no Pod is restored from: damaged, or three restores of it failed.",
            sum(bool(s.quarantine) for s in snapshots),
        )
        yield GaugeMetricFamily(
            "podsnap_oldest_unserved_trigger_seconds",
            "Age of the oldest PodSnapshotManualTrigger without an answer; 0 if there is none.",
            self._oldest_trigger_s(),
        )
        yield _by(
            "podsnap_git_sources",
            "GitSources by the status of `Ready`.",
            "ready",
            _READY_STATUSES,
            [_readiness(source) for source in self._cache.git_sources.store.items()],
        )

    def _oldest_trigger_s(self) -> float:
        made = [
            parse_time(t.metadata.creation_timestamp)
            for t in self._cache.triggers.store.items()
            if not t.is_answered and not t.metadata.is_deleting
        ]
        now = self._clock.now()
        return max(((now - at).total_seconds() for at in made if at is not None), default=0.0)


def _by(
    name: str, text: str, label: str, values: Sequence[str], found: Sequence[str]
) -> GaugeMetricFamily:
    """Count how often each of a closed set of values was found."""
    family = GaugeMetricFamily(name, text, labels=[label])
    for value in values:
        family.add_metric([value], found.count(value))
    return family


def _readiness(source: GitSource) -> str:
    ready = source.conditions.get(READY)
    return ready.status if ready is not None else "Unknown"
