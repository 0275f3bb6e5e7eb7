# SPDX-License-Identifier: Apache-2.0
"""From a sealed directory to the bucket: parts first, manifest last.

Every write is create-only, so two attempts can never mix. A part that is already there with this
attempt's mark and digest was written before a crash and is kept; any other one is in the way and is
deleted by its generation.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import tenacity

from backends.objects.interface import (
    ObjectInfo,
    ObjectNotFound,
    ObjectStore,
    PermissionDenied,
    PreconditionFailed,
    StoreError,
)
from schemas.manifest import MANIFEST_NAME, Manifest, digest
from schemas.storage_config import Location

# Keys of the custom metadata on every part.
CLUSTER_KEY: Final = "podsnap-cluster"
NAMESPACE_KEY: Final = "podsnap-namespace"
SNAPSHOT_UID_KEY: Final = "podsnap-snapshot-uid"
ATTEMPT_KEY: Final = "podsnap-attempt"

_ATTEMPTS = 4

_retrying = tenacity.retry(
    stop=tenacity.stop_after_attempt(_ATTEMPTS),
    wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
    retry=tenacity.retry_if_exception(
        lambda e: (
            isinstance(e, StoreError)
            and not isinstance(e, (PreconditionFailed, ObjectNotFound, PermissionDenied))
        )
    ),
    reraise=True,
)


class UploadCancelledError(Exception):
    """The snapshot went away while its bytes were on the way."""


def upload(
    store: ObjectStore,
    location: Location,
    directory: Path,
    manifest: Manifest,
    *,
    cancelled: Callable[[], bool],
) -> str:
    """Write all parts, then the manifest; returns the manifest's digest.

    Raises:
        UploadCancelledError: ``cancelled`` became true between two parts.
        StoreError: the bucket refused after retries.
    """
    marks = {
        CLUSTER_KEY: manifest.cluster_id,
        NAMESPACE_KEY: manifest.namespace,
        SNAPSHOT_UID_KEY: manifest.snapshot_uid,
        ATTEMPT_KEY: str(manifest.attempt),
    }
    stored = []
    for part in manifest.parts:
        if cancelled():
            raise UploadCancelledError
        name = f"{location.path}/{part.object_name}"
        info = _put_once(store, name, directory / part.object_name, marks, part.stored_crc32c)
        stored.append(replace(part, generation=info.generation))
    if cancelled():
        raise UploadCancelledError
    text = replace(manifest, parts=tuple(stored)).to_bytes()
    _put_manifest(store, f"{location.path}/{MANIFEST_NAME}", text, marks)
    return digest(text)


def delete_attempt(store: ObjectStore, location: Location, snapshot_uid: str) -> int:
    """Delete what is below a snapshot's folder and carries its UID; returns how many objects."""
    deleted = 0
    for info in list(store.list(f"{location.path}/")):
        if info.metadata.get(SNAPSHOT_UID_KEY) != snapshot_uid:
            continue
        try:
            store.delete(info.name, if_generation_match=info.generation)
            deleted += 1
        except (ObjectNotFound, PreconditionFailed):
            continue  # somebody else was faster, which is as good
    return deleted


@_retrying
def _put_once(
    store: ObjectStore, name: str, path: Path, marks: Mapping[str, str], crc32c: str
) -> ObjectInfo:
    present = store.stat(name)
    if present is not None:
        if present.crc32c == crc32c and dict(present.metadata) == dict(marks):
            return present
        _refuse_strangers(present, marks)
        store.delete(name, if_generation_match=present.generation)
    return store.put_file(name, path, if_generation_match=0, metadata=marks)


@_retrying
def _put_manifest(store: ObjectStore, name: str, text: bytes, marks: Mapping[str, str]) -> None:
    present = store.stat(name)
    if present is not None:
        found = store.read_range(
            name, generation=present.generation, start=0, end=present.size_bytes
        )
        if found == text:
            return
        _refuse_strangers(present, marks)
        store.delete(name, if_generation_match=present.generation)
    store.put_bytes(name, text, if_generation_match=0, metadata=marks)


def _refuse_strangers(present: ObjectInfo, marks: Mapping[str, str]) -> None:
    """Only an earlier attempt of the same snapshot is in our way; anything else is not ours."""
    if present.metadata.get(SNAPSHOT_UID_KEY) != marks[SNAPSHOT_UID_KEY]:
        raise PreconditionFailed(f"{present.name} belongs to another PodSnapshot")
