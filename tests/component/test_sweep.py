# SPDX-License-Identifier: Apache-2.0
"""The sweep: what nobody owns goes, in time; what lost its bytes is not offered."""

import os
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cluster_world import World, eventually
from snapshot_bytes import complete, marks, put_parts, stored
from stepped_clock import SteppedClock

from backends.kube.client import POD_SNAPSHOT_STORAGE_CONFIGS, POD_SNAPSHOTS, KubeClient
from backends.objects.factory import BucketAccess, open_store
from backends.objects.interface import TEMPORARY_INFIX, ObjectInfo
from backends.objects.localdir import LocalDirStore
from reconciler.bucket_sweep import BucketSweep
from reconciler.cluster_cache import ClusterCache

NAME = str(uuid.UUID(int=1))
UID = "uid-of-nobody"
GRACE_S = 20.0


@pytest.fixture
def clock() -> SteppedClock:
    """Time stands still, from now on: the bucket's own clock runs."""
    return SteppedClock(datetime.now(UTC))


@pytest.fixture
def cache(world: World, controller_client: KubeClient) -> Iterator[ClusterCache]:
    """The controller's caches; the namespace's storage config is in them."""
    world.make_bucket()
    world.storage()
    # A cluster without any PodSnapshot sweeps nothing that is whole.
    world.create(POD_SNAPSHOTS, world.object("PodSnapshot", "bystander", {"policyName": "web"}))
    filled = ClusterCache(controller_client)
    filled.start()
    eventually(filled.is_synced, "the caches are filled")
    yield filled
    filled.stop()


@pytest.fixture
def sweeper(
    cache: ClusterCache, controller_client: KubeClient, clock: SteppedClock, bucket_root: Path
) -> BucketSweep:
    """The sweep of cluster ``c1``."""
    return BucketSweep(
        controller_client,
        cache,
        clock,
        "c1",
        lambda location: open_store(location.bucket, BucketAccess(bucket_root)),
        GRACE_S,
    )


def sweep(sweeper: BucketSweep, world: World) -> float | None:
    """Let it pass once."""
    return sweeper.reconcile(("", world.store))


def test_bytes_that_nobody_owns_go_after_the_grace_period(
    world: World, sweeper: BucketSweep, clock: SteppedClock
) -> None:
    """A first look only notes them; when the period is over they go, with their folder."""
    put_parts(world, NAME, UID)
    sweep(sweeper, world)
    clock.step(GRACE_S - 1)
    sweep(sweeper, world)
    assert len(stored(world)) == 3
    clock.step(2)
    sweep(sweeper, world)
    assert stored(world) == []
    assert not (world.bucket / "snapshots").exists()


def test_what_a_new_leader_has_not_watched_for_the_grace_period_stays(
    world: World, sweeper: BucketSweep, clock: SteppedClock
) -> None:
    """Old bytes are no sign: the cluster may have come back from a backup a moment ago."""
    put_parts(world, NAME, UID)
    clock.step(1000)
    sweep(sweeper, world)
    assert len(stored(world)) == 3


def test_what_the_bucket_says_is_young_stays(
    world: World, sweeper: BucketSweep, clock: SteppedClock
) -> None:
    """However often it was seen: our clock may have jumped, the bucket's did not."""
    put_parts(world, NAME, UID, parts=("pages.img",))
    (info,) = LocalDirStore(world.bucket).list("snapshots/")
    sweep(sweeper, world)
    late = clock.now().timestamp() + GRACE_S
    os.utime(world.bucket / info.name, (late, late))
    clock.step(GRACE_S + 1)
    sweep(sweeper, world)
    assert len(stored(world)) == 1


def test_the_bytes_of_another_cluster_are_never_touched(
    world: World, sweeper: BucketSweep, clock: SteppedClock
) -> None:
    """Two clusters may share a bucket."""
    put_parts(world, NAME, UID, cluster="c2")
    for _ in range(3):
        sweep(sweeper, world)
        clock.step(1000)
    assert len(stored(world)) == 3


def test_what_carries_no_mark_is_never_touched(
    world: World, sweeper: BucketSweep, clock: SteppedClock
) -> None:
    """Somebody else's objects are not ours to judge."""
    store = LocalDirStore(world.bucket)
    store.put_bytes(f"snapshots/{NAME}/x", b"x", if_generation_match=0, metadata={})
    for _ in range(3):
        sweep(sweeper, world)
        clock.step(1000)
    assert len(stored(world)) == 1


def test_the_bytes_of_a_living_snapshot_stay(
    world: World, sweeper: BucketSweep, clock: SteppedClock, cache: ClusterCache
) -> None:
    """Known to the cache, however long it takes."""
    body = world.object("PodSnapshot", NAME, {"policyName": "web"})
    uid = world.create(POD_SNAPSHOTS, body)["metadata"]["uid"]
    eventually(lambda: cache.snapshots.store.by_uid(uid), "the cache knows it")
    put_parts(world, NAME, uid)
    for _ in range(3):
        sweep(sweeper, world)
        clock.step(1000)
    assert len(stored(world)) == 3


def test_a_cache_that_is_behind_deletes_nothing(
    world: World, sweeper: BucketSweep, clock: SteppedClock, cache: ClusterCache
) -> None:
    """A live look finds the snapshot that the cache has not heard of."""
    cache.snapshots.stop()
    body = world.object("PodSnapshot", NAME, {"policyName": "web"})
    uid = world.create(POD_SNAPSHOTS, body)["metadata"]["uid"]
    assert cache.snapshots.store.by_uid(uid) is None
    put_parts(world, NAME, uid)
    for _ in range(3):
        sweep(sweeper, world)
        clock.step(1000)
    assert len(stored(world)) == 3


def test_an_earlier_object_of_the_same_name_left_bytes_that_go(
    world: World, sweeper: BucketSweep, clock: SteppedClock, cache: ClusterCache
) -> None:
    """The UID tells them apart; the present one's bytes stay."""
    body = world.object("PodSnapshot", NAME, {"policyName": "web"})
    uid = world.create(POD_SNAPSHOTS, body)["metadata"]["uid"]
    eventually(lambda: cache.snapshots.store.by_uid(uid), "the cache knows it")
    put_parts(world, NAME, uid, parts=("pages.img",))
    put_parts(world, NAME, UID, parts=("checkpoint.img",))
    sweep(sweeper, world)
    clock.step(GRACE_S + 1)
    sweep(sweeper, world)
    assert stored(world) == [f"snapshots/{NAME}/pages.img"]


def test_bytes_that_were_written_anew_wait_anew(
    world: World, sweeper: BucketSweep, clock: SteppedClock
) -> None:
    """A tombstone belongs to one generation."""
    put_parts(world, NAME, UID, parts=("pages.img",))
    sweep(sweeper, world)
    clock.step(GRACE_S + 1)
    store = LocalDirStore(world.bucket)
    (info,) = store.list("snapshots/")
    store.put_bytes(info.name, b"new", if_generation_match=info.generation, metadata=info.metadata)
    sweep(sweeper, world)
    assert len(stored(world)) == 1
    clock.step(GRACE_S + 1)
    sweep(sweeper, world)
    assert stored(world) == []


def test_parts_of_an_upload_that_has_ended_go(
    world: World,
    sweeper: BucketSweep,
    clock: SteppedClock,
    cache: ClusterCache,
    agent_client: KubeClient,
) -> None:
    """Their snapshot is stored, so nobody puts them together any more; its own bytes stay."""
    snapshot = stored_snapshot(world, cache, agent_client)
    uid = snapshot["metadata"]["uid"]
    LocalDirStore(world.bucket).put_bytes(
        f"snapshots/{NAME}/pages.img{TEMPORARY_INFIX}1",
        b"half",
        if_generation_match=0,
        metadata=marks(world, uid),
    )
    sweep(sweeper, world)
    assert len(stored(world)) == 4
    clock.step(GRACE_S + 1)
    sweep(sweeper, world)
    assert len(stored(world)) == 3


def test_two_configs_of_which_one_lies_in_the_other_judge_alike(
    world: World,
    sweeper: BucketSweep,
    clock: SteppedClock,
    cache: ClusterCache,
    agent_client: KubeClient,
) -> None:
    """The outer one sees the inner one's snapshots, and knows their owners all the same."""
    outer = world.object("PodSnapshotStorageConfig", f"{world.store}-outer", None)
    outer["spec"] = {"snapshotStorageConfig": {"gcs": {"bucket": world.bucket.name}}}
    del outer["metadata"]["namespace"]
    world.create(POD_SNAPSHOT_STORAGE_CONFIGS, outer)
    key = ("", f"{world.store}-outer")
    eventually(lambda: cache.storage_configs.store.get(*key), "the cache knows the outer one")
    stored_snapshot(world, cache, agent_client)
    put_parts(world, "other", UID)
    for _ in range(2):
        assert sweeper.reconcile(key)
        assert sweep(sweeper, world)
        clock.step(GRACE_S + 1)
    sweeper.reconcile(key)
    assert len(stored(world, NAME)) == 3
    assert stored(world, "other") == []
    assert damage(world) == ""


def test_what_a_stranger_overwrites_during_the_sweep_stays(
    world: World, sweeper: BucketSweep, clock: SteppedClock, bucket_root: Path
) -> None:
    """The sweep deletes the generation that it judged, and no other."""
    put_parts(world, NAME, UID, parts=("pages.img",))
    sweep(sweeper, world)
    clock.step(GRACE_S + 1)

    def overwrite(info: ObjectInfo) -> None:
        store = LocalDirStore(bucket_root / world.bucket.name)
        store.put_bytes(info.name, b"theirs", if_generation_match=info.generation, metadata={})

    sweeper.open_store = lambda _: Meddled(world.bucket, overwrite)
    sweep(sweeper, world)
    (left,) = LocalDirStore(world.bucket).list("snapshots/")
    assert (left.size_bytes, dict(left.metadata)) == (6, {})


def test_a_snapshot_without_its_manifest_is_not_offered_until_it_is_back(
    world: World, sweeper: BucketSweep, cache: ClusterCache, agent_client: KubeClient
) -> None:
    """One look in vain proves nothing; the second marks it, and the bytes' return unmarks it."""
    stored_snapshot(world, cache, agent_client)
    path = world.bucket / "snapshots" / NAME / "manifest.json"
    hidden = world.bucket / "hidden"
    path.rename(hidden)
    sweep(sweeper, world)
    assert damage(world) == ""
    sweep(sweeper, world)
    assert damage(world) == f"manifest.json is missing in gs://{world.bucket.name}/snapshots/{NAME}"
    eventually(lambda: cache.snapshots.store.get(world.namespace, NAME).damage, "the cache knows")  # type: ignore[union-attr] # it is there
    hidden.rename(path)
    sweep(sweeper, world)
    assert damage(world) == ""


def test_a_bucket_that_is_away_damages_nothing(
    world: World, sweeper: BucketSweep, cache: ClusterCache, agent_client: KubeClient
) -> None:
    """Deleted, unmounted or forbidden: all the same to the snapshots in it."""
    stored_snapshot(world, cache, agent_client)
    world.bucket.rename(world.bucket.with_name(f"{world.bucket.name}-away"))
    for _ in range(3):
        assert sweep(sweeper, world)
    assert damage(world) == ""


class Meddled(LocalDirStore):
    """A bucket in which somebody acts after each object of a listing."""

    def __init__(self, root: Path, act: Callable[[ObjectInfo], None]) -> None:
        """Use the directory ``root``."""
        super().__init__(root)
        self._act = act

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects as they were."""
        for info in super().list(prefix):
            self._act(info)
            yield info


def stored_snapshot(
    world: World, cache: ClusterCache, agent: KubeClient
) -> dict[str, dict[str, str]]:
    """Create a snapshot that was saved and uploaded, and that the controller called ready."""
    made = world.create(POD_SNAPSHOTS, world.object("PodSnapshot", NAME, {"policyName": "web"}))
    complete(world, agent, made)
    ready = {"type": "Ready", "status": "True", "reason": "AllSnapshotsAvailable", "message": ""}
    body = world.object("PodSnapshot", NAME, None)
    body["status"] = {"conditions": [{**ready, "lastTransitionTime": "2026-01-01T10:00:03Z"}]}
    world.admin.apply(POD_SNAPSHOTS, body, field_manager="tests", subresource="status")
    uid = made["metadata"]["uid"]

    def is_known() -> bool:
        known = cache.snapshots.store.by_uid(uid)
        return known is not None and known.is_stored

    eventually(is_known, "the cache knows that it is stored")
    return made


def damage(world: World) -> str:
    """Return what is said against the snapshot's bytes."""
    status = (world.get(POD_SNAPSHOTS, NAME) or {}).get("status") or {}
    return str((status.get("podsnap", {}).get("damage") or {}).get("message", ""))
