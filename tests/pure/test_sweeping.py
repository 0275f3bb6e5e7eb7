# SPDX-License-Identifier: Apache-2.0
"""Who owns an object of a bucket, for how long nobody did, and what should be there."""

from dataclasses import replace

import pytest

from policies.stored_snapshots import stored_row
from policies.sweeping import (
    Seen,
    Tombstones,
    is_ours,
    lost_cluster,
    manifests_expected,
    unowned,
)
from schemas.conditions import Condition
from schemas.metadata import Metadata
from schemas.names import READY, STORAGE_REPLICATED, STORED_UID_ANNOTATION
from schemas.snapshot import CaptureRecord, Failure, Snapshot
from schemas.storage_config import Location

PART = Seen("p/s/pages.img", 1, 100.0, 5, "c1", "shop", "uid", "1")
TEMPORARY = replace(PART, name="p/s/pages.img.x", is_temporary=True)
UPLOADING = Snapshot(
    Metadata("s", "shop", uid="uid"),
    "web",
    capture=CaptureRecord(node="n", attempt=1, location=Location("b", "p/s")),
)
IS_STORED = {kind: Condition(kind, "True", "Succeeded") for kind in (STORAGE_REPLICATED, READY)}
STORED = replace(UPLOADING, conditions=IS_STORED)
DELETING = replace(UPLOADING, metadata=Metadata("s", "shop", uid="uid", deletion_timestamp="x"))
FAILED = replace(
    UPLOADING, capture=CaptureRecord(node="n", attempt=1, failure=Failure("Lost", "gone"))
)
SECOND = replace(UPLOADING, capture=CaptureRecord(node="n", attempt=2))
PENDING = replace(UPLOADING, capture=None)

JUDGED: dict[str, tuple[Seen, Snapshot | None, bool]] = {
    "a part that nobody owns": (PART, None, True),
    "a part of an upload that goes on": (PART, UPLOADING, False),
    "a part of a stored snapshot": (PART, STORED, False),
    "a part of one that is being deleted": (PART, DELETING, False),
    "a part of one that waits to be saved anew": (PART, PENDING, False),
    "a part of a save that failed": (PART, FAILED, True),
    "a temporary part that nobody owns": (TEMPORARY, None, True),
    "a temporary part of an upload that goes on": (TEMPORARY, UPLOADING, False),
    "a temporary part of a stored snapshot": (TEMPORARY, STORED, True),
    "a temporary part of an earlier attempt": (TEMPORARY, SECOND, True),
    "a temporary part of one that is being deleted": (TEMPORARY, DELETING, True),
    "a temporary part of one that waits to be saved anew": (TEMPORARY, PENDING, True),
}


@pytest.mark.parametrize("what", JUDGED)
def test_an_object_goes_only_if_nobody_can_need_it(what: str) -> None:
    """The reason is a sentence for the log; none means that it stays."""
    seen, owner, goes = JUDGED[what]
    assert bool(unowned(seen, owner)) == goes


@pytest.mark.parametrize(
    ("seen", "ours"),
    [
        (PART, True),
        (replace(PART, cluster_id="c2"), False),
        (replace(PART, cluster_id=""), False),
        (replace(PART, snapshot_uid=""), False),
    ],
    ids=["ours", "another cluster's", "no cluster's", "no snapshot's"],
)
def test_only_what_carries_both_marks_is_judged(seen: Seen, *, ours: bool) -> None:
    """A stranger's objects have none, another cluster's have its own."""
    assert is_ours(seen, "c1") == ours


@pytest.mark.parametrize(
    ("watched_s", "age_s", "due"),
    [(60.0, 60.0, True), (59.0, 1000.0, False), (1000.0, 59.0, False)],
    ids=["both are over", "not watched long enough", "too young"],
)
def test_both_clocks_must_agree_that_the_time_is_over(
    watched_s: float, age_s: float, *, due: bool
) -> None:
    """Ours, which never runs backwards, and the bucket's, which nobody here can set."""
    stones = Tombstones(60.0)
    seen = replace(PART, created_s=5000.0 - age_s)
    assert not stones.is_due(seen, now_s=1.0, epoch_s=5000.0)
    assert stones.is_due(seen, now_s=1.0 + watched_s, epoch_s=5000.0) == due


def test_what_had_an_owner_in_between_waits_anew() -> None:
    """A whole listing in which a thing was not without an owner forgets it."""
    stones = Tombstones(60.0)
    for now_s, is_met in ((0.0, True), (50.0, False), (61.0, True)):
        stones.begin()
        if is_met:
            assert not stones.is_due(PART, now_s=now_s, epoch_s=1e6)
        stones.end()
    assert not stones.is_due(PART, now_s=120.0, epoch_s=1e6)
    assert stones.is_due(PART, now_s=121.0, epoch_s=1e6)


MANIFEST = replace(PART, name="p/s/manifest.json")


@pytest.mark.parametrize(
    ("due", "snapshots", "stops"),
    [
        ([PART, MANIFEST], [], True),
        ([PART, MANIFEST], [STORED], False),
        ([PART, TEMPORARY], [], False),
    ],
    ids=["whole, and none is known", "whole, and others are known", "none is whole"],
)
def test_a_cluster_that_knows_no_snapshot_removes_none_that_is_whole(
    due: list[Seen], snapshots: list[Snapshot], *, stops: bool
) -> None:
    """It may have been built anew under its old id."""
    assert bool(lost_cluster(due, snapshots)) == stops


def test_a_listing_that_broke_off_forgets_nothing() -> None:
    """What it did not come to is as it was."""
    stones = Tombstones(60.0)
    stones.is_due(PART, now_s=0.0, epoch_s=1e6)
    stones.begin()  # and no end
    stones.begin()
    assert stones.is_due(PART, now_s=61.0, epoch_s=1e6)


def test_what_was_written_anew_waits_anew() -> None:
    """A stone belongs to one generation."""
    stones = Tombstones(60.0)
    stones.is_due(PART, now_s=0.0, epoch_s=1e6)
    assert not stones.is_due(replace(PART, generation=2), now_s=61.0, epoch_s=1e6)


@pytest.mark.parametrize(
    ("snapshot", "folder", "expected"),
    [
        (STORED, Location("b", "p"), True),
        (STORED, Location("b"), True),
        (STORED, Location("b", "p/s"), False),
        (STORED, Location("b", "pp"), False),
        (STORED, Location("other", "p"), False),
        (UPLOADING, Location("b", "p"), False),
        (replace(STORED, metadata=DELETING.metadata), Location("b", "p"), False),
    ],
    ids=[
        "in the folder",
        "in a folder of the folder",
        "beside it",
        "in one that begins alike",
        "in another bucket",
        "not stored yet",
        "going",
    ],
)
def test_a_manifest_is_expected_of_what_is_stored_in_the_folder(
    snapshot: Snapshot, folder: Location, *, expected: bool
) -> None:
    """Nested folders see each other's; a bucket that was not listed proves nothing."""
    found = manifests_expected([snapshot], folder)
    assert list(found) == (["p/s/manifest.json"] if expected else [])


def test_an_imported_snapshot_owns_what_carries_its_old_uid() -> None:
    """Its own is new."""
    imported = replace(STORED, metadata=Metadata("s", uid="new"))
    assert imported.stored_uid == "new"
    marked = Metadata("s", uid="new", annotations={STORED_UID_ANNOTATION: "uid"})
    assert replace(STORED, metadata=marked).stored_uid == "uid"


def test_parts_without_a_manifest_are_no_snapshot() -> None:
    """A row sums up what lies in one folder; the last write tells its age."""
    later = replace(PART, name="p/s/manifest.json", created_s=200.0, size_bytes=1)
    row = stored_row([PART, later])
    assert (row.name, row.folder, row.size_bytes, row.is_complete) == ("s", "p/s", 6, True)
    assert row.stored_at == "1970-01-01T00:03:20.000000Z"
    assert not stored_row([PART]).is_complete
