# SPDX-License-Identifier: Apache-2.0
"""The frame that all controllers share: a queue of keys and one function per key.

A controller is told only *that* something about a key changed. It gathers facts from the caches,
asks a pure function what follows, carries out idempotent effects and writes the status once. If it
dies in between, the next one starts from the facts again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from backends.clock import Clock
from backends.work_queue import Workers, WorkQueue
from reconciler.metrics import ControllerMetrics

Key = tuple[str, str]


@dataclass(slots=True)
class Controller:
    """One kind's queue and handler. ``handle`` returns seconds until the next look, or ``None``."""

    name: str
    handle: Callable[[Key], float | None]
    clock: Clock
    metrics: ControllerMetrics
    threads: int = 1
    queue: WorkQueue[Key] = field(init=False)
    _workers: Workers[Key] = field(init=False)

    def __post_init__(self) -> None:
        """Build the queue; threads start with ``start``."""
        self.queue = WorkQueue(self.clock, name=self.name, metrics=self.metrics.queues)
        self._workers = Workers(self.name, self.queue, self._counted, threads=self.threads)
        self.metrics.of_controller(self.name, threads=self.threads)

    def start(self) -> None:
        """Begin to handle keys."""
        self._workers.start()

    def stop(self) -> None:
        """End within two seconds."""
        self._workers.stop(limit_s=2.0)

    def _counted(self, key: Key) -> float | None:
        return self.metrics.counted(self.name, lambda: self.handle(key))
