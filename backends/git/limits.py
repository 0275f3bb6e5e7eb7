# SPDX-License-Identifier: Apache-2.0
"""How much of a repository is read at most, and for how long.

A socket's own timeout starts anew with each byte, so a server that drips would be listened to for
ever. So one timer closes whatever is open when the time of the whole look is over.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from backends.git.errors import LimitExceeded, TimedOut

TRANSFER_BYTES: Final = 64 << 20
UNPACKED_BYTES: Final = 256 << 20
FILE_BYTES: Final = 1 << 20
YAML_BYTES: Final = 10 << 20
YAML_FILES: Final = 10_000
ENTRIES: Final = 200_000
DEPTH: Final = 30


class Allowance:
    """Time and bytes of one look at a repository."""

    def __init__(self, timeout_s: float) -> None:
        """The time runs from here."""
        self.is_over = False
        self._timeout_s = timeout_s
        self._end_s = time.monotonic() + timeout_s
        self._left_bytes = TRANSFER_BYTES
        self._lock = threading.Lock()
        self._guarded: list[Callable[[], None]] = []
        self._timer = threading.Timer(timeout_s, self._expire)
        self._timer.daemon = True

    @contextmanager
    def running(self) -> Iterator["Allowance"]:
        """Guard what is opened in this block, and close it at the end."""
        self._timer.start()
        try:
            yield self
        finally:
            self._timer.cancel()
            self._close()

    def guard(self, close: Callable[[], None]) -> None:
        """Close this when the time is over, or at the end; it must not raise."""
        with self._lock:
            self._guarded.append(close)
        if self.is_over:
            self._close()

    def remaining_s(self) -> float:
        """Return the time left.

        Raises:
            TimedOut: there is none.
        """
        left_s = self._end_s - time.monotonic()
        if self.is_over or left_s <= 0:
            raise self.timed_out()
        return left_s

    def connect(self, host: str, port: int) -> socket.socket:
        """Connect to the first address of a host that answers, in the time left.

        Raises:
            OSError: none does, or the host has none.
            TimedOut: there is no time left.
        """
        last = OSError(f"{host} has no address")
        for family, kind, protocol, _, at in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        ):
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(self.remaining_s())
                connection.connect(at)
            except OSError as error:
                connection.close()
                last = error
            except TimedOut:
                connection.close()
                raise
            else:
                return connection
        raise last

    def timed_out(self) -> TimedOut:
        """Return the error that says so."""
        return TimedOut(
            f"the repository was not read within {self._timeout_s:g} s; it is tried again. If "
            "that is its usual pace, raise spec.timeout"
        )

    def counting(self, read: Callable[[int], bytes]) -> Callable[[int], bytes]:
        """Wrap a read function so that bytes and time are counted."""

        def counted(size: int) -> bytes:
            self.remaining_s()
            data = read(size)
            self._left_bytes -= len(data)
            if self._left_bytes < 0:
                raise LimitExceeded(
                    f"the repository sends more than {TRANSFER_BYTES >> 20} MiB for one commit; "
                    "reading was stopped there. Keep the policies in a repository of their own, "
                    "without large files"
                )
            return data

        return counted

    def _expire(self) -> None:
        self.is_over = True
        self._close()

    def _close(self) -> None:
        with self._lock:
            guarded, self._guarded = self._guarded, []
        for close in guarded:
            close()
