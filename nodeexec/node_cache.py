# SPDX-License-Identifier: Apache-2.0
"""Verified images on this node, ready to be restored from.

An image enters the cache in one of two ways: this node saved it (its digests were just computed),
or it was fetched and every byte compared with the manifest. A ``verified.json`` written last says
what was verified; a file whose size, time or inode is another one now is not what was verified.
"""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from backends.objects.interface import ObjectStore, StoreError
from nodeexec.image import METADATA_PART, sync_directory
from nodeexec.part_download import DamagedError, download_part
from schemas.manifest import MANIFEST_NAME, Manifest, ManifestError, digest
from schemas.snapshot import Snapshot

_VERIFIED = "verified.json"


class FetchError(Exception):
    """The image could not be brought here now; trying again may help."""


class NodeCache:
    """The images on this node. Safe for many threads; one fetch per snapshot at a time."""

    def __init__(self, root: Path) -> None:
        """Use ``root`` (0700), and drop what an earlier process left half done."""
        self._root = root
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in root.glob("*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)

    def lookup(self, uid: str) -> Path | None:
        """Return the directory of a verified image, ``None`` if it is not (or no longer) here."""
        directory = self._root / uid
        try:
            verified = json.loads((directory / _VERIFIED).read_text(encoding="utf-8"))
            ours = all(_fingerprint(directory / n) == then for n, then in verified.items())
        except (OSError, ValueError, AttributeError):
            return None
        return directory if ours and verified else None

    def adopt(self, uid: str, sealed: Path) -> Path:
        """Take over a directory that was sealed on this node; same file system, so no copy."""
        directory = self._root / uid
        _write_verified(sealed)
        shutil.rmtree(directory, ignore_errors=True)
        sealed.rename(directory)
        sync_directory(self._root)
        return directory

    def fetch(
        self,
        snapshot: Snapshot,
        store: ObjectStore,
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Bring a snapshot here, comparing every byte with its manifest.

        ``on_progress`` is called with the bytes that came and all that will, block by block.

        Raises:
            DamagedError: the bytes differ from the manifest, or the manifest from the snapshot.
            FetchError: the bucket did not answer, or there is no room.
        """
        uid = snapshot.metadata.uid
        with self._lock(uid):
            present = self.lookup(uid)
            if present is not None:
                return present
            partial = self._root / f"{uid}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(mode=0o700)
            try:
                manifest = read_manifest(snapshot, store)
                free_bytes = shutil.disk_usage(partial).free
                if manifest.size_bytes > free_bytes:
                    raise FetchError(
                        f"{manifest.size_bytes} bytes do not fit into the {free_bytes} free "
                        f"bytes of {self._root}"
                    )
                done_bytes = 0

                def came(block: bytes) -> None:
                    nonlocal done_bytes
                    done_bytes += len(block)
                    if on_progress is not None:
                        on_progress(done_bytes, manifest.size_bytes)

                for part in manifest.parts:
                    download_part(
                        store, manifest_folder(snapshot), part, partial / part.name, on_block=came
                    )
                _write_verified(partial)
                shutil.rmtree(self._root / uid, ignore_errors=True)
                partial.rename(self._root / uid)
                sync_directory(self._root)
            except (StoreError, OSError) as error:
                raise FetchError(f"the image could not be fetched: {error}") from error
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            return self._root / uid

    def evict_all_but(self, wanted: Callable[[str], bool]) -> list[str]:
        """Remove the images of unwanted snapshots; returns their UIDs.

        A running restore keeps its open files.
        """
        removed = []
        for directory in self._root.iterdir():
            uid = directory.name.removesuffix(".partial")
            if directory.is_dir() and not wanted(uid):
                shutil.rmtree(directory, ignore_errors=True)
                removed.append(uid)
        return removed

    def _lock(self, uid: str) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(uid, threading.Lock())


def manifest_folder(snapshot: Snapshot) -> str:
    """Return the folder of a snapshot's objects, as its record has it."""
    location = snapshot.capture.location if snapshot.capture else None
    return location.path if location else ""


def read_manifest(snapshot: Snapshot, store: ObjectStore) -> Manifest:
    """Read the manifest that the snapshot pins by its digest.

    Raises:
        DamagedError: it is missing, another one, or unreadable.
        StoreError: the bucket did not answer.
    """
    capture = snapshot.capture
    if capture is None or capture.location is None:
        raise DamagedError("the snapshot records no place of its bytes")
    name = f"{capture.location.path}/{MANIFEST_NAME}"
    info = store.stat(name)
    if info is None:
        raise DamagedError(f"{MANIFEST_NAME} is missing in {capture.location.url}")
    text = store.read_range(name, generation=info.generation, start=0, end=info.size_bytes)
    if digest(text) != capture.manifest_digest:
        raise DamagedError(f"{MANIFEST_NAME} in {capture.location.url} is not the one recorded")
    try:
        manifest = Manifest.parse(text)
    except ManifestError as error:
        raise DamagedError(str(error)) from error
    # A status that points at another tenant's bytes must not reach them.
    owner = (snapshot.metadata.uid, snapshot.metadata.namespace)
    if (manifest.snapshot_uid, manifest.namespace) != owner:
        raise DamagedError(
            f"{MANIFEST_NAME} in {capture.location.url} is that of another PodSnapshot"
        )
    return manifest


def _fingerprint(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _write_verified(directory: Path) -> None:
    beside = {_VERIFIED, MANIFEST_NAME, METADATA_PART}
    files = (path for path in directory.iterdir() if path.name not in beside)
    text = json.dumps({path.name: _fingerprint(path) for path in files})
    temporary = directory / f"{_VERIFIED}.tmp"
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(0o600)
    temporary.rename(directory / _VERIFIED)
    sync_directory(directory)
