# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N818 - the names say what the bucket answered, as its own documentation does
"""A bucket, as far as podsnap needs one: whole objects, generations, preconditions.

An object appears whole or not at all, and every overwrite gives it another generation. The trap is
to act on a name: between two calls the name can mean another object, so whatever follows from an
answer names the generation it was about.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

BLOCK_BYTES: Final = 1 << 20

OnBlock = Callable[[bytes], None]
Progress = Callable[[int], None]


class StoreError(Exception):
    """The bucket could not do what was asked; a later try may succeed."""


class PreconditionFailed(StoreError):
    """The object's generation is not the one expected; 0 expects that there is none."""


class ObjectNotFound(StoreError):
    """There is no object of this name and generation."""


class BucketMissing(StoreError):
    """There is no bucket of this name."""


class PermissionDenied(StoreError):
    """The bucket is there, and this identity may not do this with it."""


class IntegrityError(StoreError):
    """Bytes are not the ones that were stored; ``part`` is the object's name."""

    def __init__(self, part: str, message: str) -> None:
        super().__init__(f"{part}: {message}")
        self.part = part


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One generation of an object; ``crc32c`` is base64 of the big-endian value, as GCS says it."""

    name: str
    generation: int
    size_bytes: int
    crc32c: str
    metadata: Mapping[str, str]
    updated: datetime


class ObjectStore(Protocol):
    """One bucket. Safe to share between threads; every method raises only ``StoreError`` types."""

    def put_file(
        self,
        name: str,
        path: Path,
        *,
        if_generation_match: int | None,
        metadata: Mapping[str, str],
        progress: Progress | None = None,
    ) -> ObjectInfo:
        """Store a file; ``if_generation_match=0`` only creates, ``None`` overwrites anything.

        ``progress`` is called with the bytes stored so far; what it raises ends the call, and
        nothing is stored.
        """
        ...

    def put_bytes(
        self,
        name: str,
        data: bytes,
        *,
        if_generation_match: int | None,
        metadata: Mapping[str, str],
    ) -> ObjectInfo:
        """Store bytes, as ``put_file`` does."""
        ...

    def stat(self, name: str, generation: int | None = None) -> ObjectInfo | None:
        """Return the object, or ``None`` if there is none of this name and generation."""
        ...

    def read_range(self, name: str, *, generation: int, start: int, end: int) -> bytes:
        """Return bytes ``start`` up to, not including, ``end``; fewer at the object's end."""
        ...

    def download(
        self, name: str, path: Path, *, generation: int, on_block: OnBlock | None = None
    ) -> ObjectInfo:
        """Copy the object into a new file (0600) that is on disk when this returns.

        ``on_block`` sees every block, in order, each of 1 MiB except the last. On any error the
        file is removed.
        """
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose names start with ``prefix``, ordered by name."""
        ...

    def delete(self, name: str, *, if_generation_match: int | None) -> None:
        """Delete the object; ``None`` deletes whichever generation is there."""
        ...

    def check_writable(self) -> None:
        """Return if objects can be written; the error says what is wrong and what to do."""
        ...
