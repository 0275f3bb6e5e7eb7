# SPDX-License-Identifier: Apache-2.0
"""The frame that all controllers share: a queue of keys and one function per key.

A controller is told only *that* something about a key changed. It gathers facts from the caches,
asks a pure function what follows, carries out idempotent effects and writes the status once. If it
dies in between, the next one starts from the facts again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram

from backends.clock import Clock
from backends.work_queue import Workers, WorkQueue

Key = tuple[str, str]


class ReconcileMetrics:
    """How often and how long; labelled by controller, a closed set."""

    def __init__(self) -> None:
        """Register everything, at zero."""
        self.registry = CollectorRegistry()
        self.seconds = Histogram(
            "podsnap_reconcile_seconds",
            "Duration of one reconcile.",
            ["controller"],
            registry=self.registry,
        )
        self.errors = Counter(
            "podsnap_reconcile_errors",
            "Reconciles that raised and are retried.",
            ["controller"],
            registry=self.registry,
        )


@dataclass(slots=True)
class Controller:
    """One kind's queue and handler. ``handle`` returns seconds until the next look, or ``None``."""

    name: str
    handle: Callable[[Key], float | None]
    clock: Clock
    metrics: ReconcileMetrics
    threads: int = 1
    queue: WorkQueue[Key] = field(init=False)
    _workers: Workers[Key] = field(init=False)

    def __post_init__(self) -> None:
        """Build the queue; threads start with ``start``."""
        self.queue = WorkQueue(self.clock)
        self._workers = Workers(
            self.name,
            self.queue,
            self._timed,
            threads=self.threads,
            on_error=lambda *_: self.metrics.errors.labels(controller=self.name).inc(),
        )

    def start(self) -> None:
        """Begin to handle keys."""
        self._workers.start()

    def stop(self) -> None:
        """End within two seconds."""
        self._workers.stop(limit_s=2.0)

    def _timed(self, key: Key) -> float | None:
        with self.metrics.seconds.labels(controller=self.name).time():
            return self.handle(key)
