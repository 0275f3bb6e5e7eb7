# SPDX-License-Identifier: Apache-2.0
"""What an identity may do in a bucket, found out by doing it below the folder of snapshots.

One small object is made, read and deleted. What an earlier look could not delete shows that it
could create, and is not made a second time. The traps: a right to delete can be shown without an
object, because a store says *forbidden* before it says *not found*, so who only deletes makes
nothing; and a bucket that does not answer says nothing of rights.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Final

from backends.objects.interface import (
    BucketMissing,
    ObjectInfo,
    ObjectNotFound,
    ObjectStore,
    PermissionDenied,
    PreconditionFailed,
    StoreError,
    StoreUnavailable,
)

# Begins with a dot, so that it is no snapshot's folder.
PROBE_PREFIX: Final = ".podsnap-check-"
_TEXT: Final = b"podsnap tries whether it may write here; this object may be deleted\n"
_NO_GENERATION: Final = 1


def probe_writes(store: ObjectStore, name: str, marks: Mapping[str, str]) -> tuple[str, str, str]:
    """Create, read and delete one object; returns what went wrong at each, empty if nothing.

    What could not be tried, because there was no object or somebody else's, counts as not wrong.

    Raises:
        StoreUnavailable: the bucket did not answer.
        BucketMissing: there is none.
    """
    made: list[ObjectInfo] = []

    def create() -> None:
        with contextlib.suppress(PreconditionFailed):  # somebody else's, or just gone
            made.append(_put_anew(store, name, marks))

    def read() -> None:
        (info,) = made
        found = store.read_range(name, generation=info.generation, start=0, end=info.size_bytes)
        if found != _TEXT:
            raise StoreError(f"{name} does not read as it was written")

    def delete() -> None:
        with contextlib.suppress(ObjectNotFound):
            store.delete(name, if_generation_match=made[0].generation)

    created = _problem(create)
    if not made:
        return created, "", ""
    return created, _problem(read), _problem(delete)


def _put_anew(store: ObjectStore, name: str, marks: Mapping[str, str]) -> ObjectInfo:
    """Create the object, or return the one that we left there and may not delete."""
    try:
        return store.put_bytes(name, _TEXT, if_generation_match=0, metadata=marks)
    except PreconditionFailed:
        left = store.stat(name)
        if left is not None and dict(left.metadata) != dict(marks):
            raise
    if left is not None:
        try:
            store.delete(name, if_generation_match=left.generation)
        except PermissionDenied:
            return left
    return store.put_bytes(name, _TEXT, if_generation_match=0, metadata=marks)


def probe_deletion(store: ObjectStore, name: str) -> str:
    """Return what keeps an identity from deleting, empty if nothing; there is no such object.

    Raises:
        StoreUnavailable: the bucket did not answer.
        BucketMissing: there is none.
    """

    def delete() -> None:
        try:
            store.delete(name, if_generation_match=_NO_GENERATION)
        except (ObjectNotFound, PreconditionFailed):
            return

    return _problem(delete)


def probe_list(store: ObjectStore, prefix: str) -> str:
    """Return what keeps an identity from listing, empty if nothing; reads one page at most.

    Raises:
        StoreUnavailable: the bucket did not answer.
        BucketMissing: there is none.
    """
    return _problem(lambda: next(store.list(prefix), None))


def _problem(act: Callable[[], object]) -> str:
    try:
        act()
    except (StoreUnavailable, BucketMissing):
        raise  # no word about rights
    except StoreError as error:
        return str(error) or type(error).__name__
    return ""
