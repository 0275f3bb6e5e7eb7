# SPDX-License-Identifier: Apache-2.0
"""From a sealed directory to the bucket: parts first, then who vouches for them, manifest last.

Every write is create-only, so two attempts can never mix. A part that is already there with this
attempt's mark and digest was written before a crash, or by another process of this node, and is
kept; any other one of this snapshot is in the way and is deleted by its generation. Retries and
parallelism are the store's own.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from backends.objects.interface import (
    IntegrityError,
    ObjectInfo,
    ObjectNotFound,
    ObjectStore,
    PreconditionFailed,
    PutCancelledError,
)
from schemas.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest, Part, digest
from schemas.snapshot import CaptureRecord
from schemas.storage_config import Location

# Keys of the custom metadata on every part.
CLUSTER_KEY: Final = "podsnap-cluster"
NAMESPACE_KEY: Final = "podsnap-namespace"
SNAPSHOT_UID_KEY: Final = "podsnap-snapshot-uid"
ATTEMPT_KEY: Final = "podsnap-attempt"
# So many objects of a snapshot are deleted by one call.
DELETED_AT_ONCE: Final = 500


class UploadCancelledError(Exception):
    """The snapshot went away while its bytes were on the way."""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What is in the bucket now: the texts of the two small objects, and how the parts came.

    ``moved_bytes`` were moved by this call. Of the largest part: of how many ``components`` it is,
    and of how many the store meant to make it.
    """

    manifest: bytes
    signature: bytes | None
    moved_bytes: int
    components: int
    expected_components: int

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return digest(self.manifest)

    @property
    def is_parallel(self) -> bool | None:
        """Whether the largest part went over several streams; ``None`` if one was meant."""
        return self.components > 1 if self.expected_components > 1 else None


def single_stream(record: CaptureRecord) -> str:
    """Return what to tell of an upload that went over one stream and should have gone over many."""
    if record.upload_parallel is not False:
        return ""
    return (
        f"the image went to the bucket in one stream, at {record.upload_bytes_per_s / 1e6:.0f} "
        "MB/s, although it was to be composed of parts; large Pods are saved slowly until the "
        "identity may compose: grant storage.objects.create and storage.objects.delete on the "
        "folder, and storage.buckets.get on the bucket"
    )


def unsigned(manifest: bytes) -> None:
    """Sign nothing."""


def upload(
    store: ObjectStore,
    location: Location,
    directory: Path,
    manifest: Manifest,
    *,
    cancelled: Callable[[], bool],
    sign: Callable[[bytes], bytes | None] = unsigned,
) -> Uploaded:
    """Write all parts, then the signature, then the manifest.

    What is there already, whole or half, is gone on from; who does not come back calls ``discard``.

    Raises:
        UploadCancelledError: ``cancelled`` became true before the manifest was written.
        IntegrityError: a file is not what was sealed any more; its object is gone again.
        StoreError: the bucket refused, or did not answer.
    """
    put = _Put(store, location.path, directory, _marks(manifest), cancelled)
    infos = [put.part(part) for part in manifest.parts]
    parts = zip(manifest.parts, infos, strict=True)
    text = replace(
        manifest, parts=tuple(replace(p, generation=i.generation) for p, i in parts)
    ).to_bytes()
    signature = sign(text)
    if signature is not None:
        put.text(SIGNATURE_NAME, signature)
    put.text(MANIFEST_NAME, text)
    largest = max(infos, key=lambda info: info.size_bytes)
    return Uploaded(
        manifest=text,
        signature=signature,
        moved_bytes=put.moved_bytes,
        components=largest.component_count,
        expected_components=largest.expected_components,
    )


def discard(store: ObjectStore, location: Location, manifest: Manifest) -> None:
    """Remove what ``upload`` stored, whole or half; needs no right to list.

    Raises:
        StoreError: something is left.
    """
    marks = _marks(manifest)
    sizes = {part.object_name: part.stored_bytes for part in manifest.parts}
    # The manifest first: without it the rest is no snapshot.
    for file in (MANIFEST_NAME, SIGNATURE_NAME, *sizes):
        name = f"{location.path}/{file}"
        info = store.stat(name)
        if file in sizes and (info is None or info.expected_components > 1):
            store.discard_put(name, metadata=marks, size_bytes=sizes[file])
        if info is not None:
            _delete_own(store, info, manifest.snapshot_uid)


def delete_attempt(store: ObjectStore, location: Location, snapshot_uid: str) -> int:
    """Delete what is below a snapshot's folder and carries its UID; returns how many objects.

    If it returns ``DELETED_AT_ONCE``, there may be more: call it again.
    """
    listed = store.list(f"{location.path}/")
    ours = (info for info in listed if info.metadata.get(SNAPSHOT_UID_KEY) == snapshot_uid)
    found = list(itertools.islice(ours, DELETED_AT_ONCE))
    for info in found:
        _delete_own(store, info, snapshot_uid)
    return len(found)


def _delete_own(store: ObjectStore, info: ObjectInfo, snapshot_uid: str) -> bool:
    if info.metadata.get(SNAPSHOT_UID_KEY) != snapshot_uid:
        return False
    try:
        store.delete(info.name, if_generation_match=info.generation)
    except (ObjectNotFound, PreconditionFailed):
        return False  # somebody else was faster, which is as good
    return True


def _marks(manifest: Manifest) -> dict[str, str]:
    return {
        CLUSTER_KEY: manifest.cluster_id,
        NAMESPACE_KEY: manifest.namespace,
        SNAPSHOT_UID_KEY: manifest.snapshot_uid,
        ATTEMPT_KEY: str(manifest.attempt),
    }


@dataclass(slots=True)
class _Put:
    """Writes of one attempt."""

    store: ObjectStore
    folder: str
    directory: Path
    marks: Mapping[str, str]
    cancelled: Callable[[], bool]
    moved_bytes: int = 0

    def part(self, part: Part) -> ObjectInfo:
        """Store a file, unless it is there."""
        name = f"{self.folder}/{part.object_name}"

        def is_sealed(info: ObjectInfo) -> bool:
            return (info.crc32c, info.size_bytes) == (part.stored_crc32c, part.stored_bytes)

        def is_ours(present: ObjectInfo) -> bool:
            if not is_sealed(present) or dict(present.metadata) != dict(self.marks):
                return False
            if present.expected_components > 1:  # whoever was killed may not have cleared up
                self.store.discard_put(name, metadata=self.marks, size_bytes=present.size_bytes)
            return True

        def write() -> ObjectInfo:
            info = self.store.put_file(
                name,
                self.directory / part.object_name,
                if_generation_match=0,
                metadata=self.marks,
                cancelled=self.cancelled,
            )
            if not is_sealed(info):  # nobody else would notice before a restore
                self.store.delete(name, if_generation_match=info.generation)
                raise IntegrityError(
                    f"{part.object_name} changed on this node's disk after it was sealed"
                )
            self.moved_bytes += info.size_bytes
            return info

        return self._once(name, is_ours, write)

    def text(self, file: str, text: bytes) -> None:
        """Store a text, unless it is there."""
        name = f"{self.folder}/{file}"

        def is_ours(present: ObjectInfo) -> bool:
            end = present.size_bytes
            return end == len(text) and text == self.store.read_range(
                name, generation=present.generation, start=0, end=end
            )

        self._once(
            name,
            is_ours,
            lambda: self.store.put_bytes(name, text, if_generation_match=0, metadata=self.marks),
        )

    def _once(
        self,
        name: str,
        is_ours: Callable[[ObjectInfo], bool],
        write: Callable[[], ObjectInfo],
    ) -> ObjectInfo:
        """Write an object that is not there yet, or was written by somebody who writes the same."""
        try:
            return self._present(name, is_ours) or write()
        except PreconditionFailed:
            present = self._present(name, is_ours)
            if present is None:
                raise
            return present
        except PutCancelledError as error:
            raise UploadCancelledError from error

    def _present(self, name: str, is_ours: Callable[[ObjectInfo], bool]) -> ObjectInfo | None:
        """Return the object if it is there already; another one of this snapshot is removed."""
        if self.cancelled():
            raise UploadCancelledError
        present = self.store.stat(name)
        if present is None or is_ours(present):
            return present
        # Only an earlier attempt of the same snapshot is in our way; anything else is not ours.
        if present.metadata.get(SNAPSHOT_UID_KEY) != self.marks[SNAPSHOT_UID_KEY]:
            raise PreconditionFailed(f"{name} belongs to another PodSnapshot")
        self.store.delete(name, if_generation_match=present.generation)
        return None
