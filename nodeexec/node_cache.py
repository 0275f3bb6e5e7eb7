# SPDX-License-Identifier: Apache-2.0
"""Verified images on this node, ready to be restored from.

An image enters the cache in one of two ways: this node saved it (its digests were just computed),
or it was fetched and every byte compared with the manifest. It leaves when its snapshot is gone, or
when another one needs the room and it was not used for longest.

The trap: between the answer "restore from here" and the moment when runsc opens the files nothing
holds them. So an image stays that was asked for a moment ago, or that the record of an unfinished
restore names (``in_use``); both can be read from the disk by the next agent, which may live beside
this one for a moment: directories are made and removed under ``cached_image.exclusive``.
"""

import contextlib
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Final

from backends.clock import Clock, SystemClock
from backends.objects.factory import DEFAULT_CONNECTIONS
from backends.objects.interface import ObjectStore, StoreError, never
from nodeexec import cached_image
from nodeexec.bucket_slots import BucketSlots
from nodeexec.cache_limits import CacheLimits, Held, longest_unused, make_room
from nodeexec.cached_image import PARTIAL_SUFFIX, REMOVED_SUFFIX, Filling, directory_name, exclusive
from nodeexec.image import write_durably
from nodeexec.manifest_reader import (
    StoredManifest,
    manifest_folder,
    read_signature,
    read_stored,
    refuse_strangers,
)
from nodeexec.part_download import DamagedError, DownloadCancelledError, download_part
from schemas.manifest import SIGNATURE_NAME, NewerFormatError
from schemas.snapshot import Snapshot

log = logging.getLogger(__name__)

# The runtime's record of a decision follows the answer within milliseconds.
_JUST_USED_S: Final = 10.0
# A fetch may take this long, and as long as its bytes take at a rate that is hardly of use.
_FETCH_FLOOR_S: Final = 60.0
_SLOWEST_BYTES_PER_S: Final = 5e6
# An agent that was told to end gives its fetches up.
_PREDECESSOR_S: Final = 3.0
_LOOK_S: Final = 0.1


class FetchError(Exception):
    """The image could not be brought here now; trying again may help."""


class TooLargeError(FetchError):
    """The image is larger than the cache may ever be."""


class _Flight:
    """One fetch on behalf of a snapshot, and all who wait for it."""

    def __init__(self, uid: str) -> None:
        self.uid = uid
        self.landed: Future[Path] = Future()


class NodeCache:
    """The images on this node. Safe for many threads; an image is fetched by one at a time."""

    def __init__(
        self,
        root: Path,
        *,
        limits: CacheLimits | None = None,
        in_use: Callable[[], Collection[Path]] = tuple,
        connections: int = DEFAULT_CONNECTIONS,
        clock: Clock | None = None,
        boot: str = "",
        on_evicted: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Use ``root`` (0700), and drop what an earlier process left half done.

        ``in_use`` tells which images restores will still open; ``on_evicted`` is told the bytes of
        each image that had to make room.
        """
        self._root = root
        self._limits = limits or CacheLimits()
        self._in_use = in_use
        self._connections = connections
        self.slots = BucketSlots(connections)
        self._clock = clock or SystemClock()
        self._boot = boot or cached_image.boot_id()
        self._on_evicted = on_evicted
        self._flights: dict[str, _Flight] = {}
        self._guard = threading.Lock()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with exclusive(root):
            self._clear_leftovers()

    def lookup(self, snapshot: Snapshot) -> Path | None:
        """Return the directory of an image that was verified in this boot, else ``None``.

        It is used by that, and stays for as long as a decision takes to be recorded.
        """
        directory = self._directory(snapshot)
        if directory is None:
            return None
        verified = cached_image.verified(directory, self._boot)
        if verified is None:
            return None
        try:
            refuse_strangers(snapshot, verified.snapshot_uid, verified.namespace)
            self._touch(directory)
        except (DamagedError, FileNotFoundError):
            return None
        return directory

    def is_on_disk(self, snapshot: Snapshot) -> bool:
        """Whether an image is here that ``fetch`` may only have to read again."""
        directory = self._directory(snapshot)
        return directory is not None and directory.is_dir()

    def fetch(
        self,
        snapshot: Snapshot,
        open_store: Callable[[], ObjectStore],
        *,
        on_progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> Path:
        """Bring a snapshot here, comparing every byte with its manifest.

        An image from before the node's last boot is read again and compared; the bucket is opened
        only if bytes have to come. ``on_progress`` is called with the bytes that came and all that
        will. Who asks for a snapshot that is on its way waits for it, and gets the same end. It
        ends when ``cancelled`` becomes true, and when it takes too long for its size.

        Raises:
            DamagedError: the bytes differ from the manifest, or the manifest from the snapshot.
            TooLargeError: the cache may not hold it.
            FetchError: the bucket did not answer, there is no room, or this version is too old.
        """
        directory = self._directory(snapshot)
        if directory is None:
            raise DamagedError("the snapshot records no place of its bytes")
        while True:
            with self._guard:
                flight = self._flights.get(directory.name)
                if flight is None:
                    flight = self._flights[directory.name] = _Flight(snapshot.metadata.uid)
                    break
            if flight.uid == snapshot.metadata.uid:
                return flight.landed.result()
            wait((flight.landed,))  # the same bytes for another snapshot: its end is not ours
        try:
            self._bring(snapshot, directory, open_store, on_progress, cancelled)
        except BaseException as error:
            self._land(directory.name)
            flight.landed.set_exception(error)
            raise
        self._land(directory.name)
        flight.landed.set_result(directory)
        return directory

    def adopt(self, manifest_digest: str, sealed: Path) -> Path | None:
        """Take over a directory that was sealed on this node; same file system, so no copy.

        The stored manifest lies in it. The bytes are in the bucket, so what cannot be kept is
        removed, and ``None`` returned.
        """
        directory = self._root / directory_name(manifest_digest)
        try:
            cached_image.verify_sealed(sealed, manifest_digest, boot=self._boot)
            with exclusive(self._root):
                self._evict_for(cached_image.allocated_bytes(sealed), is_here=True)
                self._touch(sealed)
                cached_image.take_place(sealed, directory, boot=self._boot)
        except (DamagedError, NewerFormatError, FetchError, OSError) as error:
            log.warning("the image of %s is not kept on this node: %s", sealed.name, error)
            shutil.rmtree(sealed, ignore_errors=True)
            return None
        return directory

    def reserve(self, manifest_digest: str, claim_bytes: int, *, keep: bool = True) -> Filling:
        """Make room and a directory for an image that somebody is going to fill.

        ``cached_image.publish`` turns it into an image. If somebody fills it already, that may be
        an agent that is about to end: it is waited for, briefly. What will not ``keep`` has to fit
        on the disk, and may be larger than the cache.

        Raises:
            TooLargeError: the cache may not hold so much.
            FetchError: there is no room now, or somebody fills it already.
        """
        directory = self._root / f"{directory_name(manifest_digest)}{PARTIAL_SUFFIX}"
        ends_s = self._clock.monotonic_s() + _PREDECESSOR_S
        while True:
            with exclusive(self._root):
                if self._clear(directory):
                    self._evict_for(claim_bytes, is_kept=keep)
                    return Filling(directory, claim_bytes)
            if self._clock.monotonic_s() >= ends_s:
                raise FetchError("another process is loading the image")
            self._clock.wait(threading.Event(), _LOOK_S)

    def renew_signature(self, snapshot: Snapshot, store: ObjectStore) -> None:
        """Read the signature of an image that is here once more: it may have been signed since.

        Raises:
            OSError: it cannot be kept.
        """
        directory = self._directory(snapshot)
        signature = read_signature(snapshot, store)
        if directory is not None and signature is not None:
            write_durably(directory / SIGNATURE_NAME, signature)

    def evict_all_but(self, wanted: Callable[[str], bool]) -> list[str]:
        """Remove the images of unwanted manifests; returns the digests of those removed.

        What a restore is about to open stays for the next call.
        """
        removed = []
        with exclusive(self._root):
            self._clear_leftovers()
            pinned = self._pinned()
            for directory in self._images():
                manifest_digest = f"sha256:{directory.name}"
                if wanted(manifest_digest) or directory in pinned:
                    continue
                if self._remove(directory):
                    removed.append(manifest_digest)
        return removed

    def keep_free(self) -> None:
        """Give images up, if others left less of the disk free than images have to."""
        with exclusive(self._root):
            disk = shutil.disk_usage(self._root)
            short_bytes = self._limits.floor_bytes(disk.total) - disk.free
            for image in longest_unused(self._held(self._pinned()), short_bytes):
                self._evict(image)

    def used_bytes(self) -> int:
        """Return what the images take on the disk, with those that are on their way."""
        return sum(held.size_bytes for held in self._held(frozenset()))

    def allowed_bytes(self) -> int:
        """Return how much they may take."""
        return self._limits.allowed_bytes(shutil.disk_usage(self._root).total)

    # -- bringing

    def _bring(
        self,
        snapshot: Snapshot,
        directory: Path,
        open_store: Callable[[], ObjectStore],
        on_progress: Callable[[int, int], None] | None,
        cancelled: Callable[[], bool],
    ) -> None:
        try:
            if self._is_here(snapshot, directory):
                return
            began_s = self._clock.monotonic_s()
            store = open_store()
            stored = read_stored(snapshot, store)
            limit_s = _FETCH_FLOOR_S + stored.manifest.stored_bytes / _SLOWEST_BYTES_PER_S

            def is_over() -> bool:
                return self._clock.monotonic_s() - began_s > limit_s or cancelled()

            filling = self.reserve(f"sha256:{directory.name}", stored.manifest.size_bytes)
            try:
                self._download(snapshot, store, stored, filling, on_progress, is_over)
                cached_image.publish(
                    filling.directory, stored.text, stored.signature, boot=self._boot
                )
            except BaseException:
                filling.discard()
                raise
            filling.close()
            self._touch(directory)
        except (StoreError, NewerFormatError, OSError) as error:
            raise FetchError(f"the image could not be fetched: {error}") from error
        except DownloadCancelledError as error:
            raise FetchError(
                "the fetch was given up: the agent ends, or the PodSnapshot is gone"
                if cancelled()
                else f"the image did not come within {limit_s:.0f} s; look at the bucket and at "
                "the node's network"
            ) from error

    def _is_here(self, snapshot: Snapshot, directory: Path) -> bool:
        """Whether the image is here and whole; one that is not stays until another one is."""
        if not directory.is_dir():
            return False
        verified = cached_image.verified(directory, self._boot)
        try:
            if verified is None:
                verified = cached_image.verify(
                    directory, f"sha256:{directory.name}", boot=self._boot
                )
        except DamagedError as error:
            log.warning("the image in %s is damaged and fetched anew: %s", directory, error)
            with contextlib.suppress(FileNotFoundError):
                os.utime(directory, (0, 0))  # the first to go
            return False
        refuse_strangers(snapshot, verified.snapshot_uid, verified.namespace)
        try:
            self._touch(directory)
        except FileNotFoundError:
            return False
        return True

    def _download(
        self,
        snapshot: Snapshot,
        store: ObjectStore,
        stored: StoredManifest,
        filling: Filling,
        on_progress: Callable[[int, int], None] | None,
        cancelled: Callable[[], bool],
    ) -> None:
        done_bytes = 0
        location = snapshot.capture.location if snapshot.capture else None
        slots = self.slots.of(location.bucket if location else "")

        def came(count_bytes: int) -> None:
            nonlocal done_bytes
            done_bytes += count_bytes
            if on_progress is not None:
                on_progress(done_bytes, stored.manifest.stored_bytes)

        for part in stored.manifest.parts:
            download_part(
                store,
                manifest_folder(snapshot),
                part,
                filling.directory / part.name,
                connections=self._connections,
                slots=slots,
                on_bytes=came,
                cancelled=cancelled,
            )

    def _land(self, name: str) -> None:
        with self._guard:
            del self._flights[name]

    # -- room

    def _evict_for(self, need_bytes: int, *, is_here: bool = False, is_kept: bool = True) -> None:
        """Make room, within ``exclusive``.

        Raises:
            FetchError: there is none.
        """
        while True:
            disk = shutil.disk_usage(self._root)
            free_bytes = None
            if not is_here:
                promised_bytes = sum(map(_unwritten_bytes, self._partials()))
                floor_bytes = self._limits.floor_bytes(disk.total)
                free_bytes = max(disk.free - promised_bytes - floor_bytes, 0)
            room = make_room(
                need_bytes,
                self._held(self._pinned()),
                allowed_bytes=self._limits.allowed_bytes(disk.total) if is_kept else sys.maxsize,
                free_bytes=free_bytes,
            )
            if room.refusal:
                raise (TooLargeError if room.never else FetchError)(room.refusal)
            if all(map(self._evict, room.evicted)):
                return

    def _evict(self, image: Held) -> bool:
        """Remove an image for another one; ``False`` if it was asked for meanwhile."""
        if not self._remove(self._root / image.name):
            return False
        log.info("image %s made room for another one", image.name)
        self._on_evicted(image.size_bytes)
        return True

    def _held(self, pinned: Collection[Path]) -> Iterator[Held]:
        for directory in self._images():
            try:
                used_s = directory.stat().st_mtime
            except FileNotFoundError:
                continue
            yield Held(
                directory.name,
                cached_image.allocated_bytes(directory),
                used_s,
                is_pinned=directory in pinned or self._is_just_used(used_s),
            )
        for partial in self._partials():
            size_bytes = cached_image.allocated_bytes(partial)
            claim_bytes = cached_image.claimed_bytes(partial)
            yield Held(partial.name, max(size_bytes, claim_bytes), 0.0, is_pinned=True)

    def _pinned(self) -> set[Path]:
        return {*self._in_use(), *filter(cached_image.is_locked, self._images())}

    def _is_just_used(self, used_s: float) -> bool:
        # A clock that was set back makes no image new for ever.
        return abs(self._clock.now().timestamp() - used_s) < _JUST_USED_S

    def _remove(self, directory: Path) -> bool:
        """Remove an image at once for whoever looks, within ``exclusive``; not if it was used.

        Whoever uses it touches it by its name, so it is looked at when it has none any more.
        """
        gone = directory.with_name(directory.name + REMOVED_SUFFIX)
        shutil.rmtree(gone, ignore_errors=True)
        try:
            directory.rename(gone)
            if self._is_just_used(gone.stat().st_mtime):
                gone.rename(directory)
                return False
        except FileNotFoundError:
            return False
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def _clear_leftovers(self) -> None:
        """Remove what is no image, and what nobody fills any more."""
        for path in self._root.iterdir():
            if not directory_name(path.name):
                self._clear(path)

    def _clear(self, directory: Path) -> bool:
        """Remove what nobody has a lock on; nobody gets one within ``exclusive``."""
        if cached_image.is_locked(directory):
            return False
        shutil.rmtree(directory, ignore_errors=True)
        return True

    # -- names

    def _directory(self, snapshot: Snapshot) -> Path | None:
        name = directory_name(snapshot.capture.manifest_digest) if snapshot.capture else ""
        return self._root / name if name else None

    def _images(self) -> list[Path]:
        return [d for d in self._root.iterdir() if directory_name(d.name)]

    def _partials(self) -> list[Path]:
        return list(self._root.glob(f"*{PARTIAL_SUFFIX}"))

    def _touch(self, directory: Path) -> None:
        now_s = self._clock.now().timestamp()
        os.utime(directory, (now_s, now_s))


def _unwritten_bytes(partial: Path) -> int:
    written_bytes = cached_image.allocated_bytes(partial)
    return max(cached_image.claimed_bytes(partial) - written_bytes, 0)
