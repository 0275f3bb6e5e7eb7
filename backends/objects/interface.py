# SPDX-License-Identifier: Apache-2.0
"""A bucket, as podsnap needs it: what Cloud Storage guarantees, no more.

Every write and delete is preconditioned by generation, every read pins one. 0 as a generation
means "there is none yet".
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object. ``crc32c`` is base64 of the big-endian value, as Cloud Storage reports it."""

    name: str
    generation: int
    size_bytes: int
    crc32c: str
    metadata: Mapping[str, str] = field(default_factory=dict)


class StoreError(Exception):
    """The bucket did not do what was asked; the text says why."""


class PreconditionFailed(StoreError):  # noqa: N818 - the API's own word, as are the next ones
    """The object's generation is another one."""


class ObjectNotFound(StoreError):  # noqa: N818
    """There is no such object, or not of this generation."""


class BucketMissing(StoreError):  # noqa: N818
    """There is no such bucket."""


class PermissionDenied(StoreError):  # noqa: N818
    """The identity may not do this."""


class IntegrityError(StoreError):
    """The bytes are not those that were stored."""


class ObjectStore(Protocol):
    """One bucket. Safe for many threads."""

    def put_file(
        self,
        name: str,
        path: Path,
        *,
        if_generation_match: int,
        metadata: Mapping[str, str],
    ) -> ObjectInfo:
        """Store a file; the whole object appears at once or not at all."""
        ...

    def put_bytes(
        self,
        name: str,
        data: bytes,
        *,
        if_generation_match: int,
        metadata: Mapping[str, str],
    ) -> ObjectInfo:
        """Store bytes, as ``put_file``."""
        ...

    def stat(self, name: str, *, generation: int | None = None) -> ObjectInfo | None:
        """Return what is known of an object, ``None`` if it (of that generation) is not there."""
        ...

    def read_range(self, name: str, *, generation: int, start: int, end: int) -> bytes:
        """Return the bytes from ``start`` up to but without ``end``."""
        ...

    def download(
        self,
        name: str,
        path: Path,
        *,
        generation: int,
        on_block: Callable[[bytes], None] | None = None,
    ) -> ObjectInfo:
        """Write an object to a file and fsync it; ``on_block`` sees every block in order.

        Raises:
            IntegrityError: the checksum is not the object's.
        """
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose names begin with the prefix."""
        ...

    def delete(self, name: str, *, if_generation_match: int) -> None:
        """Delete one generation of an object.

        Raises:
            ObjectNotFound: it is gone.
            PreconditionFailed: it is another generation by now.
        """
        ...

    def check_writable(self) -> None:
        """Prove that an object can be made.

        Raises:
            StoreError: it cannot; the text says why and what to do.
        """
        ...
