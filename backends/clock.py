# SPDX-License-Identifier: Apache-2.0
"""Time, as an argument.

Nothing else asks the system for it, so that a test can step a clock instead of waiting.
"""

import threading
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What podsnap needs of time."""

    def now(self) -> datetime:
        """Return the wall clock, with the UTC zone."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds that never run backwards."""
        ...

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait for an event, at most so long; returns whether it came."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Return the wall clock."""
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        """Return the monotonic clock in seconds."""
        return time.monotonic()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait for real."""
        return event.wait(timeout_s)
