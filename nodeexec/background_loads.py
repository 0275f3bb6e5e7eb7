# SPDX-License-Identifier: Apache-2.0
"""The agent's side of loading in the background: begins loads, and looks after them.

A load belongs to its server, not to the agent: an agent that starts finds the loads by their
directories and goes on. What cannot go wrong later is done before the server begins: the manifest
is here and verified, and so is every part but the pages.

The trap is a server that is dead. Its mount stays and answers every read with an error, so a
directory without a server is unmounted, and the Pods that read from it start cold.
"""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from backends.objects.access_token import AccessToken
from backends.objects.interface import ObjectStore, PermissionDenied, StoreError
from nodeexec import fuse
from nodeexec.bucket_slots import BucketSlots
from nodeexec.bucket_stores import BucketUse
from nodeexec.cached_image import Filling, directory_name, is_locked
from nodeexec.image import write_durably
from nodeexec.manifest_reader import (
    StoredManifest,
    manifest_folder,
    read_stored,
    refuse_strangers,
)
from nodeexec.node_cache import FetchError, NodeCache, TooLargeError
from nodeexec.page_loads import (
    IMAGE_DIR,
    LOG_FILE,
    PAGES_PART,
    STATUS_FILE,
    TOKEN_FILE,
    WANTED_FILE,
    LoadOrder,
    LoadState,
    LoadStatus,
    write_token,
)
from nodeexec.page_readers import Readers
from nodeexec.part_download import DamagedError, DownloadCancelledError, download_part
from nodeexec.settings import AgentSettings
from schemas.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest, NewerFormatError
from schemas.snapshot import Snapshot

log = logging.getLogger(__name__)

# The bound of one read: the last container's start, which reads too, has a minute and more.
PATIENCE_S: Final = 20.0
# Between the decision and the sandbox's start lies what the CRI allows.
LINGER_S: Final = 150.0
_START_LIMIT_S: Final = 20.0
_TOKEN_LEFT_S: Final = 300.0
_SMALL_PARTS_LIMIT_S: Final = 60.0
_OWNER_FILE: Final = "owner.json"
_DEAD: Final = "the process that served its memory ended"
_HUNG: Final = "the process that served its memory did not answer any more"
# A server says every half second how far it is, whatever its disk and its bucket do.
HANG_S: Final = 60.0
# Beyond, what need not be loaded is fetched: each load has threads and connections of its own.
MAX_LOADS: Final = 8
_END_LIMIT_S: Final = 5.0
_END_LOOK_S: Final = 0.02
_LOG_TAIL_BYTES: Final = 2000


class LoadError(FetchError):
    """No page server could be started; the image can still be fetched first."""


@dataclass(slots=True)
class BackgroundLoads:
    """The loads of this node. Safe for many threads."""

    settings: AgentSettings
    cache: NodeCache
    open_store: Callable[[BucketUse], ObjectStore]
    token_for: Callable[[BucketUse], AccessToken | None]
    patience_s: float = PATIENCE_S
    linger_s: float = LINGER_S
    hang_s: float = HANG_S
    _locks: dict[str, threading.Lock] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    # As whom each load may read, for its next token: a Pod's is refused once that Pod is gone. An
    # agent that starts learns them at the next uses.
    _uses: dict[str, list[BucketUse]] = field(default_factory=dict)
    # When each status was written, and since when, on the monotonic clock, it is the last one.
    _told: dict[str, tuple[int, float]] = field(default_factory=dict)
    _slots: BucketSlots = field(init=False)

    def __post_init__(self) -> None:
        """Have streams of its own: a Pod must not wait for the fetches of other images."""
        self._slots = BucketSlots(self.settings.bucket_connections)

    @property
    def readers(self) -> Readers:
        """Where the sandboxes are that read from images."""
        return Readers(
            runsc=self.settings.runsc,
            runsc_root=self.settings.runsc_root,
            bundles=self.settings.bundles_dir,
            attempts=self.settings.attempts_dir,
            cold_marks=self.settings.cold_marks_dir,
        )

    def is_possible(self) -> bool:
        """Whether this node can mount anything."""
        return not fuse.problem()

    def is_load(self, image: Path) -> bool:
        """Whether an image is one that is still on its way."""
        return image.parent.parent == self.settings.pages_dir

    def status(self, image: Path) -> LoadStatus | None:
        """Return how far an image is, ``None`` if its load is over and forgotten."""
        return LoadStatus.read(image.parent)

    def is_full(self) -> bool:
        """Whether as many images are on their way as should be."""
        root = self.settings.pages_dir
        statuses = map(LoadStatus.read, root.iterdir() if root.is_dir() else ())
        return sum(s is not None and s.state is LoadState.LOADING for s in statuses) >= MAX_LOADS

    def running(self, snapshot: Snapshot, use: BucketUse | None = None) -> Path | None:
        """Return the image of a load that is under way; whoever gets it has a while to open it.

        Its later tokens may then be for ``use`` too.

        Raises:
            DamagedError: it is on its way for another snapshot.
        """
        directory = self._directory(snapshot)
        status = LoadStatus.read(directory) if directory else None
        if directory is None or status is None or status.state is LoadState.FAILED:
            return None
        refuse_strangers(snapshot, *_owner(directory))
        try:  # before the last look: a server that has nothing to do ends if nobody wants it
            (directory / WANTED_FILE).touch(mode=0o600)
        except OSError:
            return None
        if not is_locked(directory) or not fuse.is_mounted(directory / IMAGE_DIR):
            return None
        if use is not None:
            self._join(directory, use)
        return directory / IMAGE_DIR

    def start(self, snapshot: Snapshot, use: BucketUse) -> Path:
        """Begin a load, or join the one that is under way; returns the image's directory.

        Raises:
            DamagedError: the manifest or a small part is not what was saved, or not the snapshot's.
            LoadError: no server could be started.
            FetchError: the bucket did not answer, or the cache has no room.
        """
        directory = self._directory(snapshot)
        if directory is None:
            raise FetchError("the snapshot records no manifest")
        with self._lock(directory.name):
            image = self.running(snapshot, use)
            if image is not None:
                return image
            status = self._clear_up(directory)
            if status is not None and status.damaged:
                raise DamagedError(status.reason)
            try:
                return self._start(snapshot, use, directory)
            except (StoreError, NewerFormatError, OSError) as error:
                raise FetchError(f"the image could not be loaded: {error}") from error
            except DownloadCancelledError as error:
                raise FetchError(
                    f"its small parts did not come within {_SMALL_PARTS_LIMIT_S:.0f} s; look at "
                    "the bucket and at the node's network"
                ) from error

    def look(self, on_damage: Callable[[str, str], None]) -> None:
        """Renew tokens, and clear up after servers that ended.

        ``on_damage`` is called with the digest of a manifest whose bytes are wrong, and the reason.
        """
        root = self.settings.pages_dir
        for directory in root.iterdir() if root.is_dir() else ():
            lock = self._lock(directory.name)
            if not lock.acquire(blocking=False):
                continue  # it is being started
            try:
                self._look(directory, on_damage)
            finally:
                lock.release()

    def _look(self, directory: Path, on_damage: Callable[[str, str], None]) -> None:
        if is_locked(directory):
            if self._hangs(directory):
                self._clear_up(directory)
            else:
                self._renew_token(directory)
            return
        status = self._clear_up(directory)
        if status is not None and status.damaged:
            on_damage(f"sha256:{directory.name}", status.reason)

    def _hangs(self, directory: Path) -> bool:
        status = LoadStatus.read(directory)
        if status is None or status.state is not LoadState.LOADING:
            return False
        try:
            written_ns = (directory / STATUS_FILE).stat().st_mtime_ns
        except FileNotFoundError:
            return False
        # The wall clock may jump.
        before_ns, since_s = self._told.get(directory.name, (0, 0.0))
        if before_ns != written_ns:
            self._told[directory.name] = (written_ns, time.monotonic())
            return False
        return time.monotonic() - since_s > self.hang_s

    def _clear_up(self, directory: Path) -> LoadStatus | None:
        """End what is left of a load, and let who needs it start cold; returns what it said."""
        image, status = directory / IMAGE_DIR, LoadStatus.read(directory)
        if not directory.exists():
            return None
        if status is None or status.state is LoadState.LOADING:
            hangs = is_locked(directory)
            log.warning("a page server %s: %s", "hangs" if hangs else "died", directory)
            log.warning("its log ended with: %s", _tail(directory / LOG_FILE))
            self.readers.start_cold(image, _HUNG if hangs else _DEAD)
            if hangs:
                fuse.abort(image)
                _kill(status)
        self._remove(directory)
        return status

    def _start(self, snapshot: Snapshot, use: BucketUse, directory: Path) -> Path:
        store = self.open_store(use)
        stored = read_stored(snapshot, store)
        if PAGES_PART not in {p.name for p in stored.manifest.parts}:
            raise FetchError("the image has no memory to load in the background")
        filling, keep = self._reserved(f"sha256:{directory.name}", stored.manifest.size_bytes)
        server = None
        try:
            # It imports what it needs while the small parts come.
            server = _spawn(filling.descriptor)
            (directory / IMAGE_DIR).mkdir(mode=0o700, parents=True)
            note_owner(directory, stored.manifest)
            token = self.token_for(use)
            if token is not None:
                write_token(directory, token)
            self._fetch_small_parts(stored, use, store, filling)
            order = LoadOrder(
                directory=directory,
                partial=filling.directory,
                descriptor=filling.descriptor,
                bucket=use.location.bucket,
                folder=manifest_folder(snapshot),
                access=self.settings.bucket_access,
                has_token=token is not None,
                patience_s=self.patience_s,
                linger_s=self.linger_s,
                cgroup=self.settings.pages_cgroup,
                readers=self.readers,
                keep=keep,
            )
            (directory / WANTED_FILE).touch(mode=0o600)
            _give(server, order)
        except BaseException:
            is_over = server is None or _end(server)
            self._remove(directory)
            if is_over:
                filling.discard()
            else:  # it has the lock until it ends, and then somebody removes what is left
                filling.close()
            raise
        filling.close()
        self._join(directory, use)
        return directory / IMAGE_DIR

    def _reserved(self, manifest_digest: str, size_bytes: int) -> tuple[Filling, bool]:
        """Return the directory to fill, and whether it may stay in the cache afterwards."""
        try:
            return self.cache.reserve(manifest_digest, size_bytes), True
        except TooLargeError as error:
            log.warning("it is served while it is needed, and not kept: %s", error)
            return self.cache.reserve(manifest_digest, size_bytes, keep=False), False

    def _join(self, directory: Path, use: BucketUse) -> None:
        with self._guard:
            joined = self._uses.setdefault(directory.name, [])
            if use.pod_uid not in {known.pod_uid for known in joined}:
                joined.append(use)

    def _fetch_small_parts(
        self, stored: StoredManifest, use: BucketUse, store: ObjectStore, filling: Filling
    ) -> None:
        ends_s = time.monotonic() + _SMALL_PARTS_LIMIT_S
        write_durably(filling.directory / MANIFEST_NAME, stored.text)
        if stored.signature is not None:
            write_durably(filling.directory / SIGNATURE_NAME, stored.signature)
        for part in stored.manifest.parts:
            if part.name != PAGES_PART:
                download_part(
                    store,
                    manifest_folder(use.snapshot),
                    part,
                    filling.directory / part.name,
                    connections=self.settings.bucket_connections,
                    slots=self._slots.of(use.location.bucket),
                    on_bytes=lambda _count: None,
                    cancelled=lambda: time.monotonic() > ends_s,
                )

    def _renew_token(self, directory: Path) -> None:
        if not (directory / TOKEN_FILE).exists():
            return
        with self._guard:
            joined = list(self._uses.get(directory.name, ()))
        for use in joined:
            try:
                token = self.token_for(use)
            except StoreError as error:
                log.warning("no new token for a load as Pod %s: %s", use.pod_name, error)
                if isinstance(error, PermissionDenied):  # judged, so for good
                    with self._guard:
                        self._uses.get(directory.name, [use]).remove(use)
                continue
            if token is not None and token.expires_s - time.time() > _TOKEN_LEFT_S:
                write_token(directory, token)
                return

    def _remove(self, directory: Path) -> None:
        if directory.exists():
            fuse.unmount(directory / IMAGE_DIR, detach=True)
            shutil.rmtree(directory, ignore_errors=True)
        with self._guard:
            self._uses.pop(directory.name, None)
            self._told.pop(directory.name, None)

    def _directory(self, snapshot: Snapshot) -> Path | None:
        capture = snapshot.capture
        name = directory_name(capture.manifest_digest) if capture else ""
        return self.settings.pages_dir / name if name else None

    def _lock(self, name: str) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(name, threading.Lock())


def note_owner(directory: Path, manifest: Manifest) -> None:
    """Write down whose image a load's is."""
    owner = [manifest.snapshot_uid, manifest.namespace]
    write_durably(directory / _OWNER_FILE, json.dumps(owner).encode())


def _owner(directory: Path) -> tuple[str, str]:
    """Return the UID and the namespace of the snapshot that is loaded.

    Raises:
        LoadError: that is not known; nobody else is handed it, and nobody's snapshot is damaged.
    """
    try:
        uid, namespace = json.loads((directory / _OWNER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"whose image is on its way cannot be read: {error}") from error
    return uid, namespace


def _tail(log_file: Path) -> str:
    with contextlib.suppress(OSError), log_file.open("rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - _LOG_TAIL_BYTES, 0))
        return file.read().decode("utf-8", "replace").strip()
    return "nothing"


def _kill(status: LoadStatus | None) -> None:
    """End a server that does not end by itself; its number may be another process's by now."""
    pid = status.pid if status else 0
    with contextlib.suppress(OSError):
        if b"nodeexec.page_server" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)


def _end(server: subprocess.Popen[bytes]) -> bool:
    """End a server that did not begin, with its own child; whether both are gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    with contextlib.suppress(ValueError):  # its streams may be closed by now
        server.communicate()
    if server.stdin is not None:
        with contextlib.suppress(OSError):
            server.stdin.close()
    ends_s = time.monotonic() + _END_LIMIT_S
    while time.monotonic() < ends_s:
        try:
            os.killpg(server.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(_END_LOOK_S)
    return False


def _spawn(descriptor: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "nodeexec.page_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=(descriptor,),
        start_new_session=True,
        env={**os.environ, fuse.LIBRARY_VARIABLE: fuse.library()},
    )


def _give(server: subprocess.Popen[bytes], order: LoadOrder) -> None:
    """Hand the order over, and wait until the image is mounted."""
    try:
        _, said = server.communicate(order.to_bytes(), timeout=_START_LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise LoadError(f"the page server was not ready within {_START_LIMIT_S:.0f} s") from error
    if server.returncode:
        last = said.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        raise LoadError(f"the page server did not start: {last[-1]}")
