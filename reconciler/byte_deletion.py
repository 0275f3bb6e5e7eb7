# SPDX-License-Identifier: Apache-2.0
"""The bytes of a PodSnapshot that goes: all of them, or its object stays and says why.

They are found by the place recorded at the claim and by the UID on each object, so neither policy,
storage config nor node needs to exist any more. A bucket that refuses is asked again, each time
later; a person who would rather lose sight of the bytes than wait says so by an annotation. The
trap: a bucket that does not answer holds a thread for minutes, so until it has answered it is tried
for one snapshot at a time, and what is said of that one holds for all in it.
"""

import contextlib
import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from backends.clock import Clock
from backends.kube.events import EventRecorder
from backends.objects.interface import BucketMissing, ObjectStore, StoreError, StoreUnavailable
from nodeexec.upload import DELETED_AT_ONCE, delete_attempt
from schemas.names import ABANDON_BYTES_ANNOTATION, API_VERSION
from schemas.snapshot import Snapshot
from schemas.storage_config import Location

log = logging.getLogger(__name__)

ABANDONED: Final = "BytesAbandoned"
BUCKET_GONE: Final = "BucketNotFound"
_FIRST_RETRY_S: Final = 2.0
# A snapshot is gone within a minute of its bucket's return.
_LAST_RETRY_S: Final = 40.0
# Longer than a store goes on asking.
_TRIAL_S: Final = 180.0
_TRIAL_LOOK_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes may be left: why (empty if nothing is wrong), and in how many seconds to try again."""

    because: str
    retry_s: float


@dataclass(slots=True)
class _Failed:
    """A deletion that failed: how often in a row, why, and until when nothing is tried.

    ``of_going`` is whether that was after the deletion of the PodSnapshot began.
    """

    times: int
    because: str
    until_s: float
    of_going: bool = False


@dataclass(slots=True)
class ByteDeletion:
    """Deletes bytes, with a memory of what failed. Safe for many threads on different snapshots.

    ``_failed`` is by the UID of a snapshot, or by a bucket that did not answer. ``_trials`` has the
    buckets that are tried now and until when that may take, ``_answered`` those whose last word was
    an answer.
    """

    open_store: Callable[[Location], ObjectStore]
    events: EventRecorder
    clock: Clock
    _failed: dict[str, _Failed] = field(default_factory=dict)
    _trials: dict[str, float] = field(default_factory=dict)
    _answered: set[str] = field(default_factory=set)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def delete(self, snapshot: Snapshot) -> Kept | None:
        """Delete everything of a snapshot; returns ``None`` once nothing is left to be done."""
        location = snapshot.capture.location if snapshot.capture else None
        if location is None:
            return None
        kept = self._held(snapshot, location.bucket)
        if kept is None:
            kept = self._try(snapshot, location)
        if kept is not None and not self._is_given_up(snapshot):
            return kept
        if kept is not None:
            self._tell(
                snapshot,
                ABANDONED,
                f"{kept.because}; annotation {ABANDON_BYTES_ANNOTATION} lets the object go, and "
                f"what is left in {location.url} stays until the sweep may remove it, or you do, "
                "with the name of its PodSnapshotStorageConfig: podsnap store gc CONFIG",
            )
        self._forget(snapshot.metadata.uid)
        return None

    def _is_given_up(self, snapshot: Snapshot) -> bool:
        """Whether a person gives the bytes up, and they were tried since the deletion began."""
        if snapshot.metadata.annotations.get(ABANDON_BYTES_ANNOTATION) != "true":
            return False
        with self._guard:
            failed = self._failed.get(snapshot.metadata.uid)
            return failed is not None and failed.of_going

    def _held(self, snapshot: Snapshot, bucket: str) -> Kept | None:
        """Return why nothing is tried now; else keep others away until the bucket answers."""
        now_s = self.clock.monotonic_s()
        with self._guard:
            for key in (bucket, snapshot.metadata.uid):
                failed = self._failed.get(key)
                if failed is not None and now_s < failed.until_s:
                    return Kept(failed.because, min(failed.until_s - now_s, _LAST_RETRY_S))
            if bucket not in self._answered:
                if now_s < self._trials.get(bucket, now_s):
                    known = self._failed.get(bucket)
                    return Kept(known.because if known else "", _TRIAL_LOOK_S)
                self._trials[bucket] = now_s + _TRIAL_S
        return None

    def _try(self, snapshot: Snapshot, location: Location) -> Kept | None:
        bucket, uid = location.bucket, snapshot.metadata.uid
        try:
            deleted = self._delete(snapshot, location)
        except BucketMissing as error:
            self._tell(snapshot, BUCKET_GONE, f"its bytes count as deleted: {error}")
        except StoreUnavailable as error:
            text = f"bucket {bucket} did not answer: {error}"
            self._again(bucket, f"its bytes cannot be deleted: {text}", answered=False)
            because = f"its bytes in {location.url} cannot be deleted: {error}"
            return self._again(uid, because, of_going=snapshot.metadata.is_deleting)
        except StoreError as error:
            self._has_answered(bucket)
            because = f"its bytes in {location.url} cannot be deleted: {error}"
            return self._again(uid, because, of_going=snapshot.metadata.is_deleting)
        else:
            log.info("%d objects of %s deleted", deleted, snapshot.metadata)
            self._has_answered(bucket)
            # Others have their turn before the next page.
            return Kept("", 0.0) if deleted == DELETED_AT_ONCE else None
        self._has_answered(bucket)
        return None

    def _delete(self, snapshot: Snapshot, location: Location) -> int:
        store = self.open_store(location)
        deleted = delete_attempt(store, location, snapshot.stored_uid)
        if deleted == DELETED_AT_ONCE:
            return deleted
        with contextlib.suppress(StoreError):  # something else is in it, or it is nobody's
            store.remove_folder(location.path)
        return deleted

    def _again(
        self, key: str, because: str, *, answered: bool = True, of_going: bool = False
    ) -> Kept:
        now_s = self.clock.monotonic_s()
        with self._guard:
            if not answered:
                self._answered.discard(key)
                self._trials.pop(key, None)
            before = self._failed.get(key)
            times = before.times + 1 if before else 1
            delay_s = min(_FIRST_RETRY_S * 2.0 ** min(times - 1, 8), _LAST_RETRY_S)
            delay_s *= random.uniform(0.8, 1.2)  # noqa: S311 - jitter, not a secret
            self._failed[key] = _Failed(times, because, now_s + delay_s, of_going)
        return Kept(because, delay_s)

    def _has_answered(self, bucket: str) -> None:
        with self._guard:
            self._failed.pop(bucket, None)
            self._trials.pop(bucket, None)
            self._answered.add(bucket)

    def _forget(self, key: str) -> None:
        with self._guard:
            self._failed.pop(key, None)

    def _tell(self, snapshot: Snapshot, reason: str, message: str) -> None:
        log.warning("%s: %s", snapshot.metadata, message)
        about = {"apiVersion": API_VERSION, "kind": "PodSnapshot", **snapshot.metadata.identity()}
        self.events.emit(about, "Warning", reason, message)
