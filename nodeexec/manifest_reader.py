# SPDX-License-Identifier: Apache-2.0
"""The manifest that a snapshot pins, from the bucket, and whether it is this snapshot's at all.

What is read decides what is restored, so nothing of it is believed: the digest is the one in the
PodSnapshot's status, and the owner written inside is the PodSnapshot that asks.

The trap: what this version cannot read is not always damage. While a cluster is upgraded another
node writes a newer format, and a mark of damage would be for all nodes and for ever.
"""

import logging
from dataclasses import dataclass
from typing import Final

from backends.objects.interface import ObjectInfo, ObjectStore, StoreError
from nodeexec.part_download import DamagedError
from schemas.manifest import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    Manifest,
    ManifestError,
    NewerFormatError,
    digest,
)
from schemas.snapshot import Snapshot

log = logging.getLogger(__name__)

# Whoever can write the bucket must not be able to fill the agent's memory: a manifest has about
# 50 bytes for each chunk, so this is one of an image of a terabyte.
_MANIFEST_LIMIT_BYTES: Final = 64 << 20
_SIGNATURE_LIMIT_BYTES: Final = 4 << 10


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest as it lies in the bucket, byte by byte, and the text of its signature."""

    text: bytes
    manifest: Manifest
    signature: bytes | None = None


def manifest_folder(snapshot: Snapshot) -> str:
    """Return the folder of a snapshot's objects, as its record has it."""
    location = snapshot.capture.location if snapshot.capture else None
    return location.path if location else ""


def refuse_strangers(snapshot: Snapshot, snapshot_uid: str, namespace: str) -> None:
    """Compare a manifest's owner: a status that points at another tenant's bytes opens nothing.

    Raises:
        DamagedError: the manifest is that of another snapshot.
    """
    if (snapshot_uid, namespace) != (snapshot.stored_uid, snapshot.metadata.namespace):
        location = snapshot.capture.location if snapshot.capture else None
        place = f" in {location.url}" if location else ""
        raise DamagedError(f"{MANIFEST_NAME}{place} is that of another PodSnapshot")


def read_manifest(snapshot: Snapshot, store: ObjectStore) -> Manifest:
    """Read the manifest that the snapshot pins by its digest.

    Raises:
        DamagedError: it is missing, another one, or unreadable.
        NewerFormatError: a newer podsnap wrote it.
        StoreError: the bucket did not answer.
    """
    return _checked(snapshot, _text(snapshot, store))


def read_stored(snapshot: Snapshot, store: ObjectStore) -> StoredManifest:
    """Read the manifest with its signature, if there is one.

    Raises:
        DamagedError, NewerFormatError, StoreError: as ``read_manifest``.
    """
    text = _text(snapshot, store)
    return StoredManifest(text, _checked(snapshot, text), read_signature(snapshot, store))


def read_signature(snapshot: Snapshot, store: ObjectStore) -> bytes | None:
    """Return what lies beside the manifest, cut where no signature is as long.

    ``None`` if nothing can be read there: only a policy that asks for a signature needs one.
    """
    try:
        info = store.stat(f"{manifest_folder(snapshot)}/{SIGNATURE_NAME}")
        if info is None:
            return None
        end = min(info.size_bytes, _SIGNATURE_LIMIT_BYTES)
        return store.read_range(info.name, generation=info.generation, start=0, end=end)
    except StoreError as error:
        log.warning("the signature of PodSnapshot %s cannot be read: %s", snapshot.metadata, error)
        return None


def is_as_recorded(snapshot: Snapshot, store: ObjectStore) -> bool:
    """Whether the manifest that the snapshot pins is there, whoever can read it.

    Raises:
        StoreError: the bucket did not answer.
    """
    try:
        _text(snapshot, store)
    except DamagedError:
        return False
    return True


def read_unpinned(folder: str, store: ObjectStore) -> StoredManifest:
    """Read the manifest in a folder that no PodSnapshot pins: whoever may write there wrote it.

    Raises:
        DamagedError: it is missing, or too large.
        ManifestError: it cannot be read.
        StoreError: the bucket did not answer.
    """
    info = store.stat(f"{folder}/{MANIFEST_NAME}")
    if info is None:
        raise DamagedError(f"{folder}/{MANIFEST_NAME} is gone")
    text = _read(store, info, _MANIFEST_LIMIT_BYTES)
    signature = store.stat(f"{folder}/{SIGNATURE_NAME}")
    return StoredManifest(
        text,
        Manifest.parse(text),
        _read(store, signature, _SIGNATURE_LIMIT_BYTES) if signature else None,
    )


def _text(snapshot: Snapshot, store: ObjectStore) -> bytes:
    capture = snapshot.capture
    if capture is None or capture.location is None:
        raise DamagedError("the snapshot records no place of its bytes")
    info = store.stat(f"{capture.location.path}/{MANIFEST_NAME}")
    if info is None:
        raise DamagedError(f"{MANIFEST_NAME} is missing in {capture.location.url}")
    text = _read(store, info, _MANIFEST_LIMIT_BYTES)
    if digest(text) != capture.manifest_digest:
        raise DamagedError(f"{MANIFEST_NAME} in {capture.location.url} is not the one recorded")
    return text


def _checked(snapshot: Snapshot, text: bytes) -> Manifest:
    try:
        manifest = Manifest.parse(text)
    except NewerFormatError:
        raise
    except ManifestError as error:
        raise DamagedError(str(error)) from error
    refuse_strangers(snapshot, manifest.snapshot_uid, manifest.namespace)
    return manifest


def _read(store: ObjectStore, info: ObjectInfo, limit_bytes: int) -> bytes:
    if info.size_bytes > limit_bytes:
        raise DamagedError(
            f"{info.name} has {info.size_bytes} bytes and cannot be one of podsnap's"
        )
    return store.read_range(info.name, generation=info.generation, start=0, end=info.size_bytes)
