# SPDX-License-Identifier: Apache-2.0
"""A bucket, as podsnap needs it: what every object store worth the name guarantees, no more.

Every write and delete is preconditioned by generation, every read pins one. 0 as a generation
means "there is none yet". Retries, time-outs and parallelism of a write are the store's own; reads
of whole images are not: ``open_range`` gives one stream, and who needs many opens many.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

# Between an object's name and what tells its temporary parts apart: while put_file is at work, and
# after it was killed.
TEMPORARY_INFIX: Final = ".podsnap-part-"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object. ``crc32c`` is base64 of the big-endian value, as Cloud Storage reports it.

    ``component_count`` is of how many parts the store says that the object was composed, 1 if it
    came as one stream, and ``expected_components`` of how many ``put_file`` would have composed it;
    ``created_s`` is when, by the store's clock, in seconds since the epoch.
    """

    name: str
    generation: int
    size_bytes: int
    crc32c: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    component_count: int = 1
    created_s: float = 0.0
    expected_components: int = 1


@dataclass(frozen=True, slots=True)
class BucketDescription:
    """What a bucket says of itself; ``None`` where the store has no such thing.

    ``location`` is the store's own word (``EUROPE-WEST4``, ``EU``), ``soft_delete_s`` for how long
    deleted objects are kept, and paid for.
    """

    location: str | None = None
    hierarchical_namespace: bool | None = None
    uniform_access: bool | None = None
    soft_delete_s: float | None = None


class StoreError(Exception):
    """The bucket did not do what was asked; the text says why."""


class StoreUnavailable(StoreError):  # noqa: N818 - as ServerUnavailable of the API server
    """The bucket does not answer now, or answers with half a body: later it may do the same well.

    ``retry_after_s`` is what the server asked for, if it did.
    """

    def __init__(self, text: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class PreconditionFailed(StoreError):  # noqa: N818 - the API's own word, as are the next ones
    """The object's generation is another one."""


class ObjectNotFound(StoreError):  # noqa: N818
    """There is no such object, or not of this generation."""


class BucketMissing(StoreError):  # noqa: N818
    """There is no such bucket."""


class PermissionDenied(StoreError):  # noqa: N818
    """The identity may not do this; the text names the permission and how it is granted."""


class IntegrityError(StoreError):
    """The bytes are not those that were stored."""


class PutCancelledError(Exception):
    """The caller took a write back; what it left in the bucket is gone, or left to the sweep."""


class RangeReader(Protocol):
    """A stream of one range of one generation."""

    def readinto(self, buffer: memoryview) -> int:
        """Fill the beginning of the buffer; 0 at the end of the range.

        Raises:
            StoreUnavailable: the stream broke, or was silent or too slow for longer than the
                store's own bound.
        """
        ...


def never() -> bool:
    """Tell a write that nobody takes it back."""
    return False


class ObjectStore(Protocol):
    """One bucket. Safe for many threads."""

    def put_file(
        self,
        name: str,
        path: Path,
        *,
        if_generation_match: int,
        metadata: Mapping[str, str],
        cancelled: Callable[[], bool] = never,
    ) -> ObjectInfo:
        """Store a file; the whole object appears at once or not at all.

        A call that a crash or an outage cut short is taken up by the next one with equal arguments;
        who does not come back calls ``discard_put``. ``cancelled`` is asked about once a second.

        Raises:
            PreconditionFailed: the object is there already, or is another one.
            PutCancelledError: ``cancelled`` became true.
            StoreUnavailable: the bucket did not answer for longer than the store's own bound.
        """
        ...

    def put_bytes(
        self,
        name: str,
        data: bytes,
        *,
        if_generation_match: int,
        metadata: Mapping[str, str],
    ) -> ObjectInfo:
        """Store a few bytes, as ``put_file``."""
        ...

    def discard_put(self, name: str, *, metadata: Mapping[str, str], size_bytes: int) -> None:
        """Remove what interrupted calls of ``put_file`` for a file of that size left.

        Does nothing that fails: what stays is left to the sweep.
        """
        ...

    def stat(self, name: str, *, generation: int | None = None) -> ObjectInfo | None:
        """Return what is known of an object, ``None`` if it (of that generation) is not there."""
        ...

    def read_range(self, name: str, *, generation: int, start: int, end: int) -> bytes:
        """Return the few bytes from ``start`` up to but without ``end``, with retries."""
        ...

    def open_range(
        self, name: str, *, generation: int, start: int, end: int
    ) -> AbstractContextManager[RangeReader]:
        """Open one stream of the bytes from ``start`` up to but without ``end``, once.

        Raises:
            ObjectNotFound: it (of that generation) is not there.
            StoreUnavailable: it cannot be read now.
        """
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose names begin with the prefix, a bounded page at a time."""
        ...

    def delete(self, name: str, *, if_generation_match: int) -> None:
        """Delete one generation of an object.

        Raises:
            ObjectNotFound: it is gone.
            PreconditionFailed: it is another generation by now.
        """
        ...

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder, where the store has folders as things of their own."""
        ...

    def describe(self) -> BucketDescription:
        """Return what the bucket says of itself.

        Raises:
            BucketMissing: there is none.
            PermissionDenied: it may not be asked (``storage.buckets.get``).
        """
        ...
