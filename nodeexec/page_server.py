# SPDX-License-Identifier: Apache-2.0
"""The process that serves one image whose pages are still on their way, as files of a FUSE mount.

One for each image, however many Pods are restored from it. Nobody's child and in a control group of
its own, because it has to outlive the agent that started it: a Pod reads its memory from here. It
ends by itself, when the image is whole in the cache and no sandbox has a file of it open.

If pages do not come, every sandbox that waits for them is marked to start cold and killed, before
the first read fails; that needs no agent. A page that was not verified is never handed out.

The trap is the kernel's page cache: reads through it are background requests, of which FUSE lets
only a few wait at a time, so one fault would wait behind the stream. Hence ``direct_io``.
"""

import contextlib
import errno
import logging
import os
import shutil
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final, NoReturn

from backends.clock import SystemClock
from backends.objects.factory import open_store
from nodeexec import cached_image
from nodeexec.fuse import unmount
from nodeexec.page_file import FAULT_THREADS, PageFile, PagesLostError
from nodeexec.page_loads import (
    LOG_FILE,
    PAGES_PART,
    WANTED_FILE,
    LoadOrder,
    LoadState,
    LoadStatus,
    StatusTeller,
    is_at,
    read_token,
)
from nodeexec.part_download import PartReader
from schemas.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest

log = logging.getLogger(__name__)

# As many reads as runsc has under way, for a few sandboxes.
_READS: Final = 320
_LOOK_S: Final = 0.1
_TELL_S: Final = 0.5
_NAMES_HELD_S: Final = 3600
_READY: Final = b"ready"


class PageServer:
    """One image, from the first read until nobody needs the mount any more."""

    def __init__(self, order: LoadOrder) -> None:
        """Open what is there; nothing is fetched before ``serve``."""
        self._order = order
        self._began_s = time.monotonic()
        self._manifest_text = (order.partial / MANIFEST_NAME).read_bytes()
        part = next(p for p in Manifest.parse(self._manifest_text).parts if p.name == PAGES_PART)
        self._pages_bytes = part.length_bytes
        self._pages = os.open(order.partial / PAGES_PART, os.O_RDWR | os.O_CREAT, 0o600)
        # Opened now: the directory gets another name, and a deleted agent's files are gone.
        self._files = {
            name: os.open(name, os.O_RDONLY, dir_fd=order.descriptor)
            for name in os.listdir(order.descriptor)  # noqa: PTH208 - of a descriptor
            if name != PAGES_PART
        }
        tokens = (lambda: read_token(order.directory)) if order.has_token else None
        store = open_store(order.bucket, order.access, tokens=tokens)
        self._file = PageFile(
            # The stream never takes the place of a fault.
            PartReader(
                store,
                order.folder,
                part,
                slots=threading.BoundedSemaphore(order.access.connections + FAULT_THREADS),
            ),
            part,
            self._pages,
            connections=order.access.connections,
            patience_s=order.patience_s,
            clock=SystemClock(),
            on_lost=self._lost,
        )
        self._state = LoadState.LOADING
        self._took_s = 0.0
        self._lock = os.open(order.directory, os.O_RDONLY | os.O_DIRECTORY)
        self._teller = StatusTeller(order.directory, self._lock)

    def serve(self, ready: int) -> None:
        """Mount, serve and fetch until it is over; ``ready`` is told once the mount answers."""
        import fcntl

        import mfusepy  # type: ignore[import-untyped]

        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._tell()
        self._file.start()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        # On its own: who looks at its age must not take a slow disk for a process that hangs.
        threading.Thread(target=self._tell_on, name="tell", daemon=True).start()
        mfusepy.FUSE(
            _operations(self, ready),
            str(self._order.image),
            foreground=True,
            ro=True,
            direct_io=True,
            fsname="podsnap",
            max_threads=_READS,
            attr_timeout=_NAMES_HELD_S,
            entry_timeout=_NAMES_HELD_S,
        )
        self._file.lose("the process that serves the memory was told to end")

    # -- files

    def names(self) -> list[str]:
        """Return the names of the image's files."""
        return [*self._files, PAGES_PART]

    def size_bytes(self, name: str) -> int:
        """Return a file's length, -1 if there is no such file."""
        if name == PAGES_PART:
            return self._pages_bytes
        return os.fstat(self._files[name]).st_size if name in self._files else -1

    def read(self, name: str, size_bytes: int, offset: int) -> bytes:
        """Return bytes of a file.

        Raises:
            PagesLostError: they will not come.
        """
        if name == PAGES_PART:
            return self._file.read(offset, size_bytes)
        return os.pread(self._files[name], size_bytes, offset)

    # -- what becomes of it

    def _tell_on(self) -> None:
        while self._state is LoadState.LOADING:
            self._tell()
            time.sleep(_TELL_S)

    def _watch(self) -> None:
        while True:
            time.sleep(_LOOK_S)
            if self._file.lost:
                unmount(self._order.image, detach=True)
                return
            if self._file.is_whole and self._state is LoadState.LOADING:
                self._complete()
            if self._state is LoadState.COMPLETE and self._is_done() and unmount(self._order.image):
                return

    def _complete(self) -> None:
        if self._order.keep:
            try:
                self._publish()
            except OSError:
                log.exception("the image cannot stay in the cache; it is served all the same")
        self._took_s = time.monotonic() - self._began_s
        self._state = LoadState.COMPLETE
        self._tell()

    def _publish(self) -> None:
        signature = self._files.get(SIGNATURE_NAME)
        os.fsync(self._pages)
        if not is_at(self._order.descriptor, self._order.partial):
            log.error("the directory was taken away; the image cannot stay in the cache")
            return
        cached_image.publish(
            self._order.partial,
            self._manifest_text,
            None if signature is None else os.pread(signature, 1 << 20, 0),
        )

    def _is_done(self) -> bool:
        """Whether whoever was given the image has opened it by now."""
        try:
            wanted_s = (self._order.directory / WANTED_FILE).stat().st_mtime
        except FileNotFoundError:
            wanted_s = 0.0
        return time.time() - wanted_s > self._order.linger_s

    def _tell(self, reason: str = "", *, damaged: bool = False) -> None:
        figures = self._file.figures()
        status = LoadStatus(
            state=LoadState.FAILED if reason else self._state,
            done_bytes=figures.done_bytes,
            total_bytes=figures.total_bytes,
            faults=figures.faults,
            wait_p50_s=round(figures.wait_p50_s, 6),
            wait_p99_s=round(figures.wait_p99_s, 6),
            took_s=round(self._took_s or time.monotonic() - self._began_s, 3),
            reason=reason,
            damaged=damaged,
            pid=os.getpid(),
        )
        self._teller.tell(status)

    def _lost(self, reason: str, damaged: bool) -> None:  # noqa: FBT001 - PageFile's callback
        log.error("the pages will not come: %s", reason)
        try:
            self._tell(reason, damaged=damaged)
            self._state = LoadState.FAILED
        finally:
            self._order.readers.start_cold(self._order.image, reason)

    def clean_up(self) -> None:
        """Remove what nobody needs any more; of a failure the reason stays."""
        order = self._order
        if self._state is LoadState.COMPLETE and is_at(self._lock, order.directory):
            shutil.rmtree(order.directory, ignore_errors=True)
        if is_at(order.descriptor, order.partial):
            shutil.rmtree(order.partial, ignore_errors=True)


def _operations(server: PageServer, ready: int) -> Any:  # noqa: ANN401 - of a library without types
    """Return the file system; mfusepy is imported where libfuse is known to be there."""
    import mfusepy

    class Files(mfusepy.Operations):  # type: ignore[misc] # no types
        use_ns = True

        def init(self, path: str) -> None:  # noqa: ARG002
            os.write(ready, _READY)
            os.close(ready)

        def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:  # noqa: ARG002
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o500, "st_nlink": 2}
            size_bytes = server.size_bytes(path[1:])
            if size_bytes < 0:
                raise mfusepy.FuseOSError(errno.ENOENT)
            return {"st_mode": stat.S_IFREG | 0o400, "st_nlink": 1, "st_size": size_bytes}

        def readdir(self, path: str, fh: int) -> list[str]:  # noqa: ARG002
            return [".", "..", *server.names()]

        def open(self, path: str, flags: int) -> int:  # noqa: ARG002 - the mount is read-only
            return 0

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:  # noqa: ARG002
            try:
                return server.read(path[1:], size, offset)
            except PagesLostError as error:
                raise mfusepy.FuseOSError(errno.EIO) from error

    return Files()


def move_to_cgroup(group: str) -> None:
    """Leave the Pod of the agent, whose processes end with it; best effort, and logged."""
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        _, controllers, _ = line.split(":", 2)
        place = Path("/sys/fs/cgroup", controllers.removeprefix("name="))
        if not controllers and not (place / "cgroup.procs").exists():
            place /= "unified"
        target = place / group
        try:
            target.mkdir(parents=True, exist_ok=True)
            (target / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        except OSError as error:
            log.warning("a load ends with the agent's container: %s: %s", target, error.strerror)


def main() -> NoReturn:
    """Read the order from standard input, leave the caller, and serve.

    The caller gets exit code 0 once the image is mounted, else what is wrong on standard error.
    """
    order = LoadOrder.parse(sys.stdin.buffer.read())
    told, ready = os.pipe()
    if os.fork():
        os.close(ready)
        answer = os.read(told, 4096)
        if answer != _READY:
            sys.stderr.write(answer.decode("utf-8", "replace") or "it ended without a word")
        sys.stderr.flush()
        os._exit(0 if answer == _READY else 1)
    os.close(told)
    os.umask(0o077)
    os.chdir("/")
    log_file = os.open(order.directory / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log_file, 1), (log_file, 2)):
        os.dup2(source, target)
    logging.basicConfig(level=logging.INFO)
    if order.cgroup:
        move_to_cgroup(order.cgroup)
    try:
        server = PageServer(order)
        server.serve(ready)
        server.clean_up()
    except Exception as error:
        log.exception("the page server ended")
        with contextlib.suppress(OSError):
            os.write(ready, str(error).encode()[:4096])
        os._exit(1)
    # Threads of the stream may still wait for the bucket.
    os._exit(0)


if __name__ == "__main__":
    main()
