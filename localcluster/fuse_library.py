# SPDX-License-Identifier: Apache-2.0
"""libfuse3 for the nodes' agents: Debian's, unpacked into the cache and not installed.

A host without it needs nothing more than this: the library mounts by itself, as root, and does
without the program ``fusermount3``.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from localcluster import debian
from localcluster.exclusion import exclusively

_PACKAGE: Final = "libfuse3-3"
_LIBRARY: Final = "libfuse3.so.3"


def fuse_library(cache: Path, *, progress: Callable[[str], None]) -> Path:
    """Return the library's path; fetch it if the cache lacks it.

    Raises:
        PackageError: it cannot be had.
    """
    home = cache.resolve() / "fuse"
    found = home / _LIBRARY
    if found.exists():
        return found
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with exclusively(home / "lock", remove=False, progress=progress):
        if found.exists():
            return found
        progress("fetching libfuse3")
        with tempfile.TemporaryDirectory(dir=home) as work:
            apt = debian.Apt(home.parent / "apt")
            (archive,) = apt.download([_PACKAGE], Path(work), progress=progress)
            debian.unpack(archive, Path(work))
            (library,) = Path(work).rglob(_LIBRARY)
            copy = Path(work) / "library"
            shutil.copyfile(library, copy)  # what the name points to
            copy.rename(found)
    return found
