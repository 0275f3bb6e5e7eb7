# SPDX-License-Identifier: Apache-2.0
"""The sweep removes what nobody owns, and nothing else, and not at once."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_world import World, eventually
from snapshot_bytes import put_parts, stored
from stepped_clock import SteppedClock

from backends.kube.client import POD_SNAPSHOT_STORAGE_CONFIGS, POD_SNAPSHOTS, KubeClient
from backends.objects.factory import BucketAccess, open_store
from backends.objects.localdir import LocalDirStore
from reconciler.cluster_cache import ClusterCache
from reconciler.storage_controller import CHECK_INTERVAL_S, StorageController

NAME = str(uuid.UUID(int=1))
UID = "uid-of-nobody"


@pytest.fixture
def clock() -> SteppedClock:
    """Time stands still."""
    return SteppedClock()


@pytest.fixture
def cache(world: World, controller_client: KubeClient) -> Iterator[ClusterCache]:
    """The controller's caches; the namespace's storage config is in them."""
    world.make_bucket()
    world.storage()
    filled = ClusterCache(controller_client)
    filled.start()
    eventually(filled.is_synced, "the caches are filled")
    yield filled
    filled.stop()


@pytest.fixture
def sweeper(
    cache: ClusterCache, controller_client: KubeClient, clock: SteppedClock, bucket_root: Path
) -> StorageController:
    """The controller of cluster ``c1``."""
    return StorageController(
        controller_client,
        cache,
        clock,
        "c1",
        lambda location: open_store(location.bucket, BucketAccess(bucket_root)),
    )


def sweep(sweeper: StorageController, world: World) -> float | None:
    """Let it look once."""
    return sweeper.reconcile(("", world.store))


def test_bytes_that_nobody_owns_go_after_the_tombstone_wait(
    world: World, sweeper: StorageController, clock: SteppedClock
) -> None:
    """Seen once they are marked, seen again 20 s later they go."""
    put_parts(world, NAME, UID)
    assert (sweep(sweeper, world) or 0) < CHECK_INTERVAL_S
    assert len(stored(world)) == 3
    clock.step(19)
    sweep(sweeper, world)
    assert len(stored(world)) == 3
    clock.step(1)
    sweep(sweeper, world)
    assert stored(world) == []
    assert sweep(sweeper, world) == CHECK_INTERVAL_S
    ready = world.condition(POD_SNAPSHOT_STORAGE_CONFIGS, world.store, "Ready")
    assert ready["status"] == "True"


def test_the_bytes_of_another_cluster_are_never_touched(
    world: World, sweeper: StorageController, clock: SteppedClock
) -> None:
    """Two clusters may share a bucket."""
    put_parts(world, NAME, UID, cluster="c2")
    for _ in range(3):
        sweep(sweeper, world)
        clock.step(1000)
    assert len(stored(world)) == 3


def test_what_carries_no_mark_is_never_touched(
    world: World, sweeper: StorageController, clock: SteppedClock
) -> None:
    """Somebody else's objects are not ours to judge."""
    store = LocalDirStore(world.bucket)
    store.put_bytes(f"snapshots/{NAME}/x", b"x", if_generation_match=0, metadata={})
    for _ in range(3):
        sweep(sweeper, world)
        clock.step(1000)
    assert len(stored(world)) == 1


def test_the_bytes_of_a_living_snapshot_stay(
    world: World, sweeper: StorageController, clock: SteppedClock, cache: ClusterCache
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
    world: World, sweeper: StorageController, clock: SteppedClock, cache: ClusterCache
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
    world: World, sweeper: StorageController, clock: SteppedClock, cache: ClusterCache
) -> None:
    """The UID tells them apart; the present one's bytes stay."""
    body = world.object("PodSnapshot", NAME, {"policyName": "web"})
    uid = world.create(POD_SNAPSHOTS, body)["metadata"]["uid"]
    eventually(lambda: cache.snapshots.store.by_uid(uid), "the cache knows it")
    put_parts(world, NAME, uid, parts=("pages.img",))
    put_parts(world, NAME, UID, parts=("checkpoint.img",))
    sweep(sweeper, world)
    clock.step(21)
    sweep(sweeper, world)
    assert stored(world) == [f"snapshots/{NAME}/pages.img"]


def test_bytes_that_were_written_anew_wait_anew(
    world: World, sweeper: StorageController, clock: SteppedClock
) -> None:
    """A tombstone belongs to one generation."""
    put_parts(world, NAME, UID, parts=("pages.img",))
    sweep(sweeper, world)
    clock.step(21)
    store = LocalDirStore(world.bucket)
    (info,) = store.list("snapshots/")
    store.put_bytes(info.name, b"new", if_generation_match=info.generation, metadata=info.metadata)
    sweep(sweeper, world)
    assert len(stored(world)) == 1
    clock.step(21)
    sweep(sweeper, world)
    assert stored(world) == []
