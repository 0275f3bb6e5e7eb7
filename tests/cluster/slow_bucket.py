# SPDX-License-Identifier: Apache-2.0
"""A directory as a bucket, seen through a mount in which memory pages come slowly or not at all.

The mount lies over the directory inside the node's machine, so the agent and whatever it starts
meet it, and nobody else. ``python -m tests.cluster.slow_bucket DIRECTORY CONTROL`` serves it;
the control file says how fast it is, and ``dead`` if nothing comes.
"""

import contextlib
import errno
import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcluster.cluster import LocalCluster
from tests.cluster_scene import eventually

_PAGES = "pages.img"


@dataclass(frozen=True, slots=True)
class SlowBucket:
    """The bucket, in the hand of a test."""

    control: Path

    def at(self, bytes_per_s: float) -> None:
        """Let so much of the pages through, all readers together."""
        self._say({"bytes_per_s": bytes_per_s})

    def die(self) -> None:
        """Let every read of pages fail."""
        self._say({"dead": True})

    def _say(self, words: dict[str, Any]) -> None:
        temporary = self.control.with_suffix(".tmp")
        temporary.write_text(json.dumps(words))
        temporary.rename(self.control)


@contextlib.contextmanager
def slow_bucket(
    cluster: LocalCluster, bucket: Path, library: Path, bytes_per_s: float
) -> Iterator[SlowBucket]:
    """Lay the mount over a bucket on the first node."""
    made = SlowBucket(cluster.state_dir / "slow-bucket.json")
    made.at(bytes_per_s)
    command = [sys.executable, "-m", "tests.cluster.slow_bucket", str(bucket)]
    machine = cluster.machine("node1")
    server = subprocess.Popen(
        machine.enter([*command, str(made.control)]),
        # Entering a machine changes the directory.
        env={
            **os.environ,
            "FUSE_LIBRARY_PATH": str(library),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
    )
    try:
        eventually("a slow bucket", lambda: str(bucket) in mounts(cluster), limit_s=15)
        yield made
    finally:
        cluster.run_in("node1", ["umount", "--lazy", str(bucket)])
        server.terminate()
        server.wait(10)


def end_loads(cluster: LocalCluster) -> None:
    """Unmount the images of loads that are complete: their servers would wait for more readers."""
    for line in mounts(cluster).splitlines():
        if "/pages/" in line:
            cluster.run_in("node1", ["umount", line.split(" ")[1]])
    left = ["sh", "-c", "ls /run/podsnap/runtime/pages 2>/dev/null || true"]
    eventually("no load", lambda: not cluster.run_in("node1", left).stdout.strip(), limit_s=15)


def mounts(cluster: LocalCluster) -> str:
    """Return what FUSE has mounted on the node."""
    text = cluster.run_in("node1", ["cat", "/proc/self/mounts"]).stdout
    return "\n".join(line for line in text.splitlines() if " fuse" in line)


def serve(directory: Path, control: Path) -> None:  # noqa: C901 - a class of small methods
    """Mount a directory over itself."""
    import mfusepy

    # Opened before the mount covers it.
    below = f"/proc/self/fd/{os.open(directory, os.O_RDONLY | os.O_DIRECTORY)}"
    line = threading.Lock()

    def pace(count: int) -> None:
        with line:
            told = json.loads(control.read_text())
            if told.get("dead"):
                raise mfusepy.FuseOSError(errno.EIO)
            time.sleep(count / told["bytes_per_s"])

    class Mirror(mfusepy.Operations):  # type: ignore[misc] # no types
        use_ns = True

        def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:  # noqa: ARG002
            try:
                found = os.lstat(below + path)
            except FileNotFoundError:
                raise mfusepy.FuseOSError(errno.ENOENT) from None
            return {
                "st_mode": found.st_mode,
                "st_nlink": 2 if stat.S_ISDIR(found.st_mode) else 1,
                "st_size": found.st_size,
                "st_mtime": found.st_mtime_ns,
            }

        def getxattr(self, path: str, name: str, position: int = 0) -> bytes:  # noqa: ARG002
            return os.getxattr(below + path, name)

        def readdir(self, path: str, fh: int) -> list[str]:  # noqa: ARG002
            return [".", "..", *os.listdir(below + path)]  # noqa: PTH208

        def open(self, path: str, flags: int) -> int:  # noqa: ARG002
            return os.open(below + path, os.O_RDONLY)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            if path.endswith(_PAGES):
                pace(size)
            return os.pread(fh, size, offset)

        def release(self, path: str, fh: int) -> int:  # noqa: ARG002
            os.close(fh)
            return 0

    mfusepy.FUSE(Mirror(), str(directory), foreground=True, direct_io=True, max_threads=64)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]))
