# SPDX-License-Identifier: Apache-2.0
"""How many streams from buckets this process has open, so that one bucket cannot take them all.

A stream of a bucket that does not answer is held until its socket's time-out, again and again. So
one bucket has at most half of the node's: another tenant's image comes meanwhile.
"""

import threading
import time


class BucketSlots:
    """At most ``connections`` streams from one bucket, and twice as many from all together."""

    def __init__(self, connections: int) -> None:
        """Nothing is open yet."""
        self._connections = connections
        self._node = threading.BoundedSemaphore(2 * connections)
        self._of: dict[str, _Slots] = {}
        self._guard = threading.Lock()

    def of(self, bucket: str) -> threading.Semaphore:
        """Return what a stream from a bucket takes one of."""
        with self._guard:
            return self._of.setdefault(bucket, _Slots(self._connections, self._node))


class _Slots(threading.Semaphore):
    """A bucket's; whoever has one has one of the node's, too."""

    def __init__(self, count: int, node: threading.Semaphore) -> None:
        super().__init__(count)
        self._node = node

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:  # noqa: FBT001, FBT002 - as threading has it
        ends_s = None if timeout is None else time.monotonic() + timeout
        if not super().acquire(blocking, timeout):
            return False
        left_s = None if ends_s is None else max(ends_s - time.monotonic(), 0)
        if self._node.acquire(blocking, left_s):
            return True
        super().release()
        return False

    def __enter__(self, blocking: bool = True, timeout: float | None = None) -> bool:  # noqa: FBT001, FBT002
        return self.acquire(blocking, timeout)

    def release(self, n: int = 1) -> None:
        self._node.release(n)
        super().release(n)
