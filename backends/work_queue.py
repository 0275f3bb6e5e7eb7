# SPDX-License-Identifier: Apache-2.0
"""A queue of keys, as controllers need it (model: client-go's rate-limiting work queue).

A key stands in the queue at most once and is worked on by one thread at a time; a change that
arrives meanwhile queues it again afterwards. So a handler reads the newest state and never races
itself. Back-off belongs here and nowhere else: a handler that sleeps would hide its object.
"""

import heapq
import itertools
import logging
import random
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry

from backends.clock import Clock
from backends.queue_metrics import QueueMetrics

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

_FIRST_BACKOFF_S = 0.05
_LAST_BACKOFF_S = 60.0
_DOUBLINGS = 16  # more than enough to reach the last one; 2.0**1024 would raise


class WorkQueue(Generic[K]):
    """Keys to be handled, now or later."""

    def __init__(
        self, clock: Clock, *, name: str = "", metrics: QueueMetrics | None = None
    ) -> None:
        """The clock decides when a delayed key is due; ``name`` is the queue's in the metrics."""
        self._clock = clock
        self._changed = threading.Condition()
        self._ready: dict[K, None] = {}
        # Waiting, or to be queued again when the work on it ends; working; each since when.
        self._waiting_since_s: dict[K, float] = {}
        self._working_since_s: dict[K, float] = {}
        self._delayed: list[tuple[float, int, K]] = []
        self._due_at: dict[K, float] = {}
        self._order = itertools.count()
        self._failures: dict[K, int] = {}
        self._closed = False
        metrics = metrics or QueueMetrics(CollectorRegistry())
        self._metrics = metrics.of(name, depth=self.depth, running_s=self.running_s)

    def add(self, key: K) -> None:
        """Queue a key unless it waits already."""
        with self._changed:
            self._add(key)
            self._changed.notify()

    def add_after(self, key: K, delay_s: float) -> None:
        """Queue a key in ``delay_s`` seconds; the earlier of two wishes counts."""
        due = self._clock.monotonic_s() + max(delay_s, 0.0)
        with self._changed:
            if self._due_at.get(key, float("inf")) <= due:
                return
            self._due_at[key] = due
            heapq.heappush(self._delayed, (due, next(self._order), key))
            self._changed.notify()

    def retry(self, key: K) -> float:
        """Queue a failed key with exponential back-off and jitter; returns the delay in seconds."""
        with self._changed:
            failures = self._failures.get(key, 0)
            self._failures[key] = failures + 1
        self._metrics.retries.inc()
        delay_s = min(_FIRST_BACKOFF_S * 2.0 ** min(failures, _DOUBLINGS), _LAST_BACKOFF_S)
        delay_s *= random.uniform(0.8, 1.2)  # noqa: S311 - jitter, not a secret
        self.add_after(key, delay_s)
        return delay_s

    def forget(self, key: K) -> None:
        """End a key's back-off."""
        with self._changed:
            self._failures.pop(key, None)

    def get(self) -> K | None:
        """Return the next key, waiting for one; ``None`` once the queue is closed."""
        with self._changed:
            while not self._closed:
                now_s = self._clock.monotonic_s()
                while self._delayed and self._delayed[0][0] <= now_s:
                    due, _, key = heapq.heappop(self._delayed)
                    if self._due_at.get(key) == due:
                        del self._due_at[key]
                        self._add(key)
                if self._ready:
                    key = next(iter(self._ready))
                    del self._ready[key]
                    began_s = self._working_since_s[key] = self._clock.monotonic_s()
                    self._metrics.waited.observe(began_s - self._waiting_since_s.pop(key))
                    return key
                wait_s = self._delayed[0][0] - now_s if self._delayed else None
                self._changed.wait(wait_s)
            return None

    def done(self, key: K) -> None:
        """Say that the work on a key has ended."""
        with self._changed:
            began_s = self._working_since_s.pop(key)
            self._metrics.worked.observe(self._clock.monotonic_s() - began_s)
            if key in self._waiting_since_s:
                self._ready[key] = None
                self._changed.notify()

    def close(self) -> None:
        """Wake every waiting thread for good."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def depth(self) -> int:
        """Return how many keys wait to be handled now."""
        with self._changed:
            return len(self._ready)

    def running_s(self) -> list[float]:
        """Return for how many seconds each key that is worked on has been."""
        with self._changed:
            now_s = self._clock.monotonic_s()
            return [now_s - began_s for began_s in self._working_since_s.values()]

    def _add(self, key: K) -> None:
        if key in self._waiting_since_s:
            return
        self._waiting_since_s[key] = self._clock.monotonic_s()
        self._metrics.adds.inc()
        if key not in self._working_since_s:
            self._ready[key] = None


class Workers(Generic[K]):
    """Threads that handle the keys of one queue.

    The handler returns seconds until the key is to be looked at again, or ``None``. An exception is
    logged with the key and retried with back-off; it never ends a thread.
    """

    def __init__(
        self,
        name: str,
        queue: WorkQueue[K],
        handle: Callable[[K], float | None],
        *,
        threads: int,
    ) -> None:
        """Threads start with ``start``."""
        self._name = name
        self._queue = queue
        self._handle = handle
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{n}", daemon=True)
            for n in range(threads)
        ]

    def start(self) -> None:
        """Begin to handle keys."""
        for thread in self._threads:
            thread.start()

    def stop(self, *, limit_s: float) -> None:
        """Close the queue and wait for handlers that run, at most ``limit_s`` seconds each."""
        self._queue.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(limit_s)

    def _run(self) -> None:
        while (key := self._queue.get()) is not None:
            try:
                again_s = self._handle(key)
            except Exception as error:
                delay_s = self._queue.retry(key)
                log.warning(
                    "%s: %s failed, next try in %.2f s: %s",
                    self._name,
                    key,
                    delay_s,
                    error,
                    exc_info=log.isEnabledFor(logging.DEBUG),
                )
            else:
                self._queue.forget(key)
                if again_s is not None:
                    self._queue.add_after(key, again_s)
            finally:
                self._queue.done(key)
