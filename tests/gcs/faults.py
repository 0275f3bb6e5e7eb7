# SPDX-License-Identifier: Apache-2.0
"""What goes wrong on purpose, and how slow the line is."""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Fault:
    """What befalls the next ``count`` requests that match, after the first ``skip`` of them.

    ``match`` is a regular expression over ``METHOD /path?query`` as it is on the wire. The answer
    is a ``status`` (with ``retry_after``, a header's text), or ``how`` is one of ``stall``,
    ``torn``, ``reset`` and ``flip``, once ``at_byte`` bytes of the body passed (an upload's on its
    way in, an answer's on its way out; None: before anything is answered), or ``lost``: all is
    done, but no answer comes. ``before`` is called first: a race, a right taken away.
    """

    match: str
    how: str = ""
    status: int = 0
    retry_after: str = ""
    at_byte: int | None = None
    before: Callable[[], object] | None = None
    count: int = 1
    skip: int = 0


class Faults:
    """The faults that wait; ``hits`` counts those that were met."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []
        self._guard = threading.Lock()
        self.hits = 0

    def add(self, fault: Fault) -> None:
        """Ask for a fault."""
        with self._guard:
            self._waiting.append(fault)

    def heal(self) -> None:
        """Forget those that were not met."""
        with self._guard:
            self._waiting.clear()

    def take(self, line: str) -> Fault | None:
        """Return what befalls a request."""
        with self._guard:
            for fault in self._waiting:
                if fault.count and re.search(fault.match, line):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.count -= 1
                    self.hits += 1
                    return fault
        return None


@dataclass(slots=True)
class Pace:
    """A line that carries so many bytes a second, whoever shares it."""

    free_at_s: float = 0.0
    guard: threading.Lock = field(default_factory=threading.Lock)

    def wait(self, size_bytes: int, bytes_per_s: float) -> None:
        """Wait for the line's turn to have carried these bytes."""
        with self.guard:
            self.free_at_s = max(time.monotonic(), self.free_at_s) + size_bytes / bytes_per_s
            wait_s = self.free_at_s - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)


@dataclass(slots=True)
class Limits:
    """How slow it is; 0 means without limit. They may be changed at any time.

    ``latency_s`` passes before each answer.
    """

    connection_bytes_s: float = 0.0
    total_bytes_s: float = 0.0
    latency_s: float = 0.0
    requests_s: float = 0.0
    _total: Pace = field(default_factory=Pace)
    _requests: list[float] = field(default_factory=list)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def clear(self) -> None:
        """Be as fast as can be."""
        self.connection_bytes_s = self.total_bytes_s = self.latency_s = self.requests_s = 0.0

    def block_bytes(self, unlimited_bytes: int) -> int:
        """Return how much passes at once: 10 ms of the slowest limit."""
        rates = [r for r in (self.connection_bytes_s, self.total_bytes_s) if r]
        return max(16384, min(unlimited_bytes, int(min(rates) / 100))) if rates else unlimited_bytes

    def carry(self, size_bytes: int, connection: Pace) -> None:
        """Take the time that these bytes need."""
        if self.connection_bytes_s:
            connection.wait(size_bytes, self.connection_bytes_s)
        if self.total_bytes_s:
            self._total.wait(size_bytes, self.total_bytes_s)

    def is_too_often(self) -> bool:
        """Count a request; tell whether it is one too many within a second."""
        if not self.requests_s:
            return False
        now_s = time.monotonic()
        with self._guard:
            self._requests = [t for t in self._requests if t > now_s - 1]
            if len(self._requests) >= self.requests_s:
                return True
            self._requests.append(now_s)
        return False
