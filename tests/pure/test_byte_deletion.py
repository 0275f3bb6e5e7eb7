# SPDX-License-Identifier: Apache-2.0
"""The bytes of what goes: by pages, one try at a silent bucket, and given up only by a wish."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from stepped_clock import SteppedClock

from backends.objects.interface import ObjectStore, PermissionDenied, StoreError, StoreUnavailable
from backends.objects.localdir import LocalDirStore
from nodeexec import upload
from nodeexec.upload import SNAPSHOT_UID_KEY
from reconciler import byte_deletion
from reconciler.byte_deletion import ByteDeletion, Kept
from schemas.metadata import Metadata
from schemas.names import ABANDON_BYTES_ANNOTATION
from schemas.snapshot import CaptureRecord, Snapshot
from schemas.storage_config import Location

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backends.kube.events import EventRecorder
    from backends.objects.interface import ObjectInfo


class Bucket(LocalDirStore):
    """A directory that fails every listing while ``error`` is set, once nobody holds ``gate``."""

    error: StoreError | None = None

    def __init__(self, root: Path) -> None:
        """Use the directory ``root``."""
        root.mkdir(exist_ok=True)
        super().__init__(root)
        self.asked = threading.Semaphore(0)
        self.gate = threading.Lock()

    def list(self, prefix: str) -> "Iterator[ObjectInfo]":
        """Yield objects, unless it fails."""
        self.asked.release()
        with self.gate:
            if self.error is not None:
                raise self.error
        return super().list(prefix)


class Told(list[str]):
    """The Events, as text."""

    def emit(self, _about: object, _kind: str, reason: str, message: str) -> None:
        """Keep one."""
        self.append(f"{reason}: {message}")


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    """An empty bucket."""
    return Bucket(tmp_path / "b")


@pytest.fixture
def clock() -> SteppedClock:
    """Time stands still."""
    return SteppedClock()


@pytest.fixture
def told() -> Told:
    """What users are told."""
    return Told()


@pytest.fixture
def deletion(bucket: Bucket, clock: SteppedClock, told: Told) -> ByteDeletion:
    """All buckets are one."""
    return ByteDeletion(lambda _: cast("ObjectStore", bucket), cast("EventRecorder", told), clock)


def going(name: str, *, gives_up: bool = False) -> Snapshot:
    """Return a PodSnapshot that is being deleted."""
    annotations = {ABANDON_BYTES_ANNOTATION: "true"} if gives_up else {}
    metadata = Metadata(name, "shop", uid=name, deletion_timestamp="x", annotations=annotations)
    return Snapshot(
        metadata, "web", capture=CaptureRecord(node="n", attempt=1, location=Location("b", name))
    )


def put(bucket: Bucket, snapshot: Snapshot, count: int) -> None:
    """Store objects of a snapshot."""
    for number in range(count):
        bucket.put_bytes(
            f"{snapshot.metadata.name}/{number}",
            b"x",
            if_generation_match=0,
            metadata={SNAPSHOT_UID_KEY: snapshot.metadata.uid},
        )


def test_many_objects_go_page_by_page(
    bucket: Bucket, deletion: ByteDeletion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two pages it is the others' turn, and nothing is said to be wrong."""
    for module in (upload, byte_deletion):
        monkeypatch.setattr(module, "DELETED_AT_ONCE", 2)
    put(bucket, going("a"), 5)
    assert [deletion.delete(going("a")) for _ in range(3)] == [Kept("", 0), Kept("", 0), None]
    assert list(LocalDirStore.list(bucket, "")) == []


def test_a_bucket_that_has_not_answered_yet_holds_one_thread(
    bucket: Bucket, deletion: ByteDeletion
) -> None:
    """The others come again; when it has answered they need not wait for each other."""
    with bucket.gate:
        first = threading.Thread(target=deletion.delete, args=(going("a"),))
        first.start()
        assert bucket.asked.acquire(timeout=10)
        kept = deletion.delete(going("b"))
        assert kept is not None
        assert kept.because == ""
    first.join()
    assert not bucket.asked.acquire(blocking=False)
    assert deletion.delete(going("b")) is None


def test_a_bucket_that_does_not_answer_is_tried_for_one_at_a_time(
    bucket: Bucket, deletion: ByteDeletion, clock: SteppedClock
) -> None:
    """What one was told the others are told, without asking."""
    bucket.error = StoreUnavailable("timed out")
    for name in ("a", "b"):
        kept = deletion.delete(going(name))
        assert kept is not None
        assert "timed out" in kept.because
    assert bucket.asked.acquire(blocking=False)
    assert not bucket.asked.acquire(blocking=False)
    bucket.error = None
    clock.step(60)
    assert deletion.delete(going("b")) is None


def test_bytes_are_given_up_only_after_they_were_tried(
    bucket: Bucket, deletion: ByteDeletion, clock: SteppedClock, told: Told
) -> None:
    """Another snapshot's failure, or one before the deletion, is not this one's."""
    bucket.error = StoreUnavailable("timed out")
    deletion.delete(going("a"))
    assert isinstance(deletion.delete(going("b", gives_up=True)), Kept)
    clock.step(60)
    living = replace(going("b"), metadata=Metadata("b", "shop", uid="b"))
    bucket.error = PermissionDenied("forbidden")
    deletion.delete(living)
    assert isinstance(deletion.delete(going("b", gives_up=True)), Kept)
    clock.step(60)
    assert deletion.delete(going("b", gives_up=True)) is None
    (event,) = told
    assert "gs://b/b" in event
    assert event.endswith("podsnap store gc CONFIG")
    assert "rm -r" not in event
