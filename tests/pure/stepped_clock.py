# SPDX-License-Identifier: Apache-2.0
"""A clock that stands still until it is told to go on."""

import threading
from datetime import UTC, datetime, timedelta


class SteppedClock:
    """Time for tests. ``wait`` returns at once and moves the clock by the time-out."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        """Begin at ``start``."""
        self._start = start
        self._passed_s = 0.0

    def now(self) -> datetime:
        """Return the wall clock."""
        return self._start + timedelta(seconds=self._passed_s)

    def monotonic_s(self) -> float:
        """Return the seconds that were stepped."""
        return self._passed_s

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Let the time-out pass at once."""
        if not event.is_set():
            self.step(timeout_s)
        return event.is_set()

    def step(self, seconds_s: float) -> None:
        """Let time pass."""
        self._passed_s += seconds_s
