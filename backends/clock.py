# SPDX-License-Identifier: Apache-2.0
"""Time as an argument, so that everything that waits can be tested without waiting.

The trap is to mix the two kinds of time: ``now`` is for people and API objects and may jump;
``monotonic_s`` is for every measure of how long, and means nothing outside this process.
"""

import threading
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What time it is, and how to wait for some of it to pass."""

    def now(self) -> datetime:
        """Return the instant, in UTC and aware of it."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds since an arbitrary start; never goes back."""
        ...

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait until the event is set, at most ``timeout_s``; returns whether it is set."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> datetime:
        """Return the instant, in UTC and aware of it."""
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        """Return seconds since an arbitrary start; never goes back."""
        return time.monotonic()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait until the event is set, at most ``timeout_s``; returns whether it is set."""
        return event.wait(max(timeout_s, 0.0))
