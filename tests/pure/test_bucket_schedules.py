# SPDX-License-Identifier: Apache-2.0
"""A bucket under thousands of schedules: no orphan, nothing half visible, nothing stored is lost.

Each of these, done to the code by hand, is found within a few hundred schedules:

- upload: the manifest before its parts; a part that is there kept without comparing it;
- capture: what was stored discarded without asking whether another process goes on with it;
- deletion: by the folder alone, and not by the UID on each object;
- sweep: whatever cluster's mark an object has; by a cache's word, without a live look; and no end
  for the temporary parts of uploads that have ended.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from bucket_world import CLUSTERS, MOVES, BucketWorld, Cluster
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interleaving import Move
from modelled_surroundings import Object

from backends.objects.gcs import composed_upload
from backends.objects.interface import TEMPORARY_INFIX, ObjectInfo
from nodeexec.upload import CLUSTER_KEY, SNAPSHOT_UID_KEY
from schemas.manifest import MANIFEST_NAME, Manifest, digest
from schemas.snapshot import Snapshot

SCHEDULES = 1000
OFTEN = (
    *("a Pod is saved",) * 6,
    *("is stored",) * 10,
    *("whoever acts is killed", "is swept for long", "is deleted", "a deletion is worked off") * 2,
)
BREATHS = (0, 0, 1, 2, 3, 5, 8, 13, 21)

moves = st.tuples(st.sampled_from((*OFTEN, *MOVES)), st.integers(0, 7), st.sampled_from(BREATHS))


class Witness:
    """Sees every change of the bucket and of every PodSnapshot."""

    def __init__(self, world: BucketWorld) -> None:
        """Look into a world."""
        self.world = world
        # By name and generation: of which acknowledged snapshot an object is.
        self.promised: dict[tuple[str, int], str] = {}
        world.bucket.on_change = self.in_bucket
        world.on_version = self.in_cluster

    def in_bucket(self, before: ObjectInfo | None, after: ObjectInfo | None) -> None:
        """Look at an object that was written or deleted; by a stranger if nobody acts."""
        is_stranger = after is not None and self.world.foreign.get(after.name) == after.generation
        if before is not None and not is_stranger:
            actor = self.world.acting[-1].world
            assert isinstance(actor, Cluster)
            # Names of temporary parts are ours, whoever writes there.
            is_ours = before.metadata.get(CLUSTER_KEY) == actor.name
            assert is_ours or is_temporary(before.name), f"{before.name} is not ours"
            self.nothing_promised_is_taken_away(before)
        if after is not None and after.name.endswith(f"/{MANIFEST_NAME}") and not is_stranger:
            self.a_manifest_comes_last(after)

    def nothing_promised_is_taken_away(self, gone: ObjectInfo) -> None:
        """What was acknowledged goes with its PodSnapshot alone."""
        uid = self.promised.get((gone.name, gone.generation))
        assert uid is None or uid not in self.wanted(), f"{gone.name} of {uid} was stored"

    def a_manifest_comes_last(self, info: ObjectInfo) -> None:
        """Who sees a manifest finds everything that it names."""
        if info.metadata[SNAPSHOT_UID_KEY] not in self.world.hurt:
            assert self.is_whole(info.name), f"{info.name} is there before its parts"

    def in_cluster(self, _: str, __: Object | None, after: Object | None) -> None:
        """Look at a version of a PodSnapshot."""
        if after is None:
            return
        now = Snapshot.parse(after)
        uid, capture = now.metadata.uid, now.capture
        assert not now.damage or uid in self.world.hurt, f"{uid} is not offered, and is whole"
        if capture is None or not capture.uploaded_at or capture.failure or uid in self.world.hurt:
            return
        place = capture.location.path if capture.location else ""
        name = f"{place}/{MANIFEST_NAME}"
        if uid not in self.promised.values():
            found = self.world.bucket.objects.get(name)
            assert found is not None, f"{uid} is acknowledged without a manifest"
            assert digest(found[1]) == capture.manifest_digest
            assert self.is_whole(name)
            self.promised[name, found[0].generation] = uid
            for part in Manifest.parse(found[1]).parts:
                self.promised[f"{place}/{part.object_name}", part.generation] = uid

    def is_whole(self, manifest: str) -> bool:
        """Whether everything is there that a manifest names."""
        objects = self.world.bucket.objects
        folder = manifest.rpartition("/")[0]
        parts = Manifest.parse(objects[manifest][1]).parts
        found = (objects.get(f"{folder}/{part.object_name}") for part in parts)
        return all(
            f is not None and (f[0].generation, f[0].crc32c) == (part.generation, part.crc32c)
            for f, part in zip(found, parts, strict=True)
        )

    def wanted(self) -> set[str]:
        """Return the UIDs of snapshots that nobody deletes."""
        live = (s for c in self.world.clusters for s in c.all_live())
        return {s.metadata.uid for s in live if not s.metadata.is_deleting}

    def at_the_end(self) -> None:
        """Everybody has an end, and every object of ours an owner that was promised it."""
        world = self.world
        for snapshot in (s for c in world.clusters for s in c.all_live()):
            capture = snapshot.capture
            assert capture is not None
            assert not snapshot.metadata.is_deleting, "the object is never released"
            assert capture.failure or capture.uploaded_at, f"{snapshot.metadata.uid} has no end"
        wanted = self.wanted()
        for name, (info, _) in world.bucket.objects.items():
            if info.metadata.get(CLUSTER_KEY) not in CLUSTERS:
                continue
            uid = info.metadata[SNAPSHOT_UID_KEY]
            assert not is_temporary(name), f"{name} is a part that nobody needs"
            assert uid in wanted, f"{name} belongs to nobody"
            assert uid in world.hurt or (name, info.generation) in self.promised, name
        for (name, generation), uid in self.promised.items():
            found = world.bucket.objects.get(name)
            is_there = found is not None and found[0].generation == generation
            assert is_there or uid not in wanted or uid in world.hurt, f"{name} of {uid} is lost"
        for name, generation in world.foreign.items():
            found = world.bucket.objects.get(name)
            is_there = found is not None and found[0].generation == generation
            assert is_there or is_temporary(name), f"{name} was a stranger's, and is gone"


def is_temporary(name: str) -> bool:
    """Whether an object is a part of another one."""
    return TEMPORARY_INFIX in name


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the nodes' disks are. Few parts make a tree, and few names are looked for."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(composed_upload, "COMPOSE_AT_ONCE", 2)
        patched.setattr(composed_upload, "MOST_CONNECTIONS", 2)
        patched.setattr(logging.root.manager, "disable", logging.CRITICAL)
        yield tmp_path_factory.mktemp("worlds")


def live_through(directory: Path, schedule: Sequence[Move]) -> None:
    """Let a schedule happen, then let everything come to rest."""
    world = BucketWorld(directory, schedule)
    witness = Witness(world)
    world.run()
    world.settle()
    witness.at_the_end()


def test_what_nothing_disturbs_is_stored_and_stays(directory: Path, tmp_path: Path) -> None:
    """A schedule in which nothing else happens does not end well by accident."""
    world = BucketWorld(tmp_path, [("a Pod is saved", 0, 0), ("is stored", 0, 0)])
    witness = Witness(world)
    world.run()
    assert len(witness.promised) == 3
    world.settle()
    witness.at_the_end()
    assert len(world.bucket.objects) == 3


def test_whatever_happens_to_a_bucket_in_whatever_order(directory: Path) -> None:
    """Kills before and after every request, stale views, deletions, sweeps, a stranger's writes."""
    lived = itertools.count()

    @settings(max_examples=SCHEDULES, suppress_health_check=[HealthCheck.too_slow])
    @given(schedule=st.lists(moves, min_size=4, max_size=30))
    def once(schedule: Sequence[Move]) -> None:
        live_through(directory / str(next(lived)), schedule)

    once()

    assert next(lived) >= SCHEDULES
