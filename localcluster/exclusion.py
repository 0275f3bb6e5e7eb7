# SPDX-License-Identifier: Apache-2.0
"""One up or down of a cluster at a time.

The lock is the kernel's, so a killed holder has released it. The trap: ``down`` removes the lock's
file too, so whoever waited for it may hold the lock of a file that nobody else will ever open;
after taking it, the name must still mean the same file.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LIMIT_S = 300.0
_POLL_S = 0.1


class BusyError(Exception):
    """Somebody else has been at work for too long."""


@contextmanager
def exclusively(
    path: Path, *, remove: bool, progress: Callable[[str], None], limit_s: float = LIMIT_S
) -> Iterator[None]:
    """Hold a lock; ``remove`` takes its file away at the end.

    Raises:
        BusyError: not within ``limit_s``.
    """
    deadline_s = time.monotonic() + limit_s
    told = False
    while True:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # another cluster's down has just removed the empty folder
        try:
            if _take(descriptor, path):
                yield
                if remove:
                    path.unlink(missing_ok=True)
                return
        finally:
            os.close(descriptor)
        if not told:
            progress("waiting: another up or down of this cluster is at work")
            told = True
        if time.monotonic() > deadline_s:
            raise BusyError(
                f"another up or down of this cluster has held {path} for {limit_s:.0f} s; "
                f"find it with: fuser {path}"
            )
        time.sleep(_POLL_S)


def _take(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
