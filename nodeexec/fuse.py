# SPDX-License-Identifier: Apache-2.0
"""What of FUSE is on this node: without it Pods are restored as soon as all bytes are here."""

import ctypes
import errno
import os
from ctypes.util import find_library
from pathlib import Path
from typing import Final

# Where mfusepy looks first, too.
LIBRARY_VARIABLE: Final = "FUSE_LIBRARY_PATH"
_DEVICE: Final = Path("/dev/fuse")
_MNT_FORCE: Final = 1
_MNT_DETACH: Final = 2
# The first that bounds its threads as the page server asks.
_OLDEST_VERSION: Final = 312


def library() -> str:
    """Return the name or path of libfuse3, empty if it is not there."""
    named = os.environ.get(LIBRARY_VARIABLE, "")
    if named:
        return named if Path(named).exists() else ""
    return find_library("fuse3") or ""


def problem() -> str:
    """Return why nothing can be mounted here, empty if it can."""
    try:
        os.close(os.open(_DEVICE, os.O_RDWR))
    except OSError as error:
        return f"{_DEVICE}: {error.strerror}"
    name = library()
    if not name:
        return "libfuse3 is not found"
    try:
        version = int(ctypes.CDLL(name).fuse_version())
    except (OSError, AttributeError) as error:
        return f"{name} cannot be loaded: {error}"
    if version < _OLDEST_VERSION:
        return f"{name} is version {version // 100}.{version % 100}, and 3.12 is needed"
    return ""


def is_mounted(place: Path) -> bool:
    """Whether something is mounted at a place; never asks who serves it."""
    path = str(place.parent.resolve() / place.name).replace(" ", "\\040")
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return any(line.split(" ")[4] == path for line in mounts)


def abort(place: Path) -> None:
    """End every request to a file system whose server does not answer; they fail."""
    ctypes.CDLL(None).umount2(os.fsencode(place), _MNT_FORCE)


def unmount(place: Path, *, detach: bool = False) -> bool:
    """Unmount; whether it is gone. With ``detach`` also under whoever uses it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(place), _MNT_DETACH if detach else 0) == 0:
        return True
    return ctypes.get_errno() in {errno.EINVAL, errno.ENOENT}
