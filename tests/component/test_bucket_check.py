# SPDX-License-Identifier: Apache-2.0
"""What the controller says of a bucket on its storage config, and how often it tries the bucket."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cluster_world import World, eventually
from stepped_clock import SteppedClock

from backends.kube.client import POD_SNAPSHOT_STORAGE_CONFIGS, KubeClient, Resource
from backends.objects.access_token import AccessToken
from backends.objects.factory import BucketAccess, open_store
from backends.objects.interface import (
    BucketDescription,
    ObjectInfo,
    ObjectStore,
    PermissionDenied,
    StoreUnavailable,
)
from backends.objects.localdir import LocalDirStore
from policies.bucket_review import review_bucket
from reconciler.cluster_cache import ClusterCache
from reconciler.cluster_region import ClusterRegion
from reconciler.storage_controller import (
    CHECK_INTERVAL_S,
    PROBE_INTERVAL_S,
    StorageController,
    look,
    try_rights,
)
from schemas.metadata import Metadata
from schemas.storage_config import Location, StorageConfig
from tests.gcs.server import running_cloud_storage

NODES = Resource("", "v1", "nodes", "Node", namespaced=False)


class GuardedBucket(LocalDirStore):
    """A directory that tells where it is.

    It forbids to write while it is ``closed`` and to delete while all is ``kept``, and answers
    neither while it is ``away``.
    """

    closed = kept = away = False
    written = 0

    def describe(self) -> BucketDescription:
        """Return settings as Cloud Storage has them."""
        super().describe()
        return BucketDescription("EUROPE-WEST4", True, True, 0.0)

    def put_bytes(
        self, name: str, data: bytes, *, if_generation_match: int, metadata: Mapping[str, str]
    ) -> ObjectInfo:
        """Store bytes, unless it is forbidden."""
        self.written += 1
        if self.closed:
            raise PermissionDenied(
                f"pod has no storage.objects.create; gcloud would grant it; request {self.written}"
            )
        if self.away:
            raise StoreUnavailable("timed out")
        return super().put_bytes(
            name, data, if_generation_match=if_generation_match, metadata=metadata
        )

    def delete(self, name: str, *, if_generation_match: int) -> None:
        """Delete an object, unless it is forbidden."""
        if self.kept:
            raise PermissionDenied("pod has no storage.objects.delete; gcloud would grant it")
        super().delete(name, if_generation_match=if_generation_match)


@pytest.fixture
def clock() -> SteppedClock:
    """Time stands still."""
    return SteppedClock()


@pytest.fixture
def bucket(world: World) -> GuardedBucket:
    """The namespace's bucket."""
    world.make_bucket()
    return GuardedBucket(world.bucket)


@pytest.fixture
def checker(
    world: World, controller_client: KubeClient, clock: SteppedClock, bucket: GuardedBucket
) -> Iterator[StorageController]:
    """The controller, for whom the Pods' identity is one that the bucket guards itself against."""
    world.storage()
    cache = ClusterCache(controller_client)
    cache.start()
    eventually(cache.is_synced, "the caches are filled")
    node = f"node-{world.namespace}"
    yield StorageController(
        controller_client,
        cache,
        clock,
        "c1",
        lambda _: bucket,
        lambda _: bucket,
        ClusterRegion(controller_client, lambda: [node]).get,
    )
    cache.stop()


def look_once(checker: StorageController, world: World) -> float | None:
    """Let it look once, when its cache has what it wrote before."""
    key = ("", world.store)

    def is_up_to_date() -> bool:
        cached = checker.cache.storage_configs.store.get(*key)
        live = world.get(POD_SNAPSHOT_STORAGE_CONFIGS, world.store) or {}
        version = live["metadata"]["resourceVersion"]
        return cached is not None and cached.metadata.resource_version == version

    eventually(is_up_to_date, "the cache has the storage config as it is")
    return checker.reconcile(key)


def says(world: World, kind: str) -> tuple[str, str]:
    """Return status and reason of one of its conditions."""
    found = world.condition(POD_SNAPSHOT_STORAGE_CONFIGS, world.store, kind)
    return found["status"], found["reason"]


def test_a_right_that_is_lost_and_comes_back_is_told_both_times(
    world: World, checker: StorageController, clock: SteppedClock, bucket: GuardedBucket
) -> None:
    """The message has the store's own words, which name the right and who grants it."""
    look_once(checker, world)
    assert says(world, "Ready") == ("True", "Ready")
    bucket.closed = True
    clock.step(PROBE_INTERVAL_S)
    look_once(checker, world)
    assert says(world, "Ready") == ("False", "ObjectCreateFailed")
    ready = world.condition(POD_SNAPSHOT_STORAGE_CONFIGS, world.store, "Ready")
    assert "gcloud would grant it; request 2; nothing can be saved" in ready["message"]
    bucket.closed = False
    clock.step(CHECK_INTERVAL_S)
    look_once(checker, world)
    assert says(world, "Ready") == ("True", "Ready")


def test_a_bucket_is_written_to_no_more_often_than_needed(
    world: World, checker: StorageController, clock: SteppedClock, bucket: GuardedBucket
) -> None:
    """However often something about the config changes; and nothing of it is left."""
    for _ in range(4):
        look_once(checker, world)
        clock.step(PROBE_INTERVAL_S / 4)
    assert bucket.written == 1
    look_once(checker, world)
    assert bucket.written == 2
    assert [i.name for i in LocalDirStore(world.bucket).list("")] == []


def test_what_a_killed_check_left_is_replaced(
    world: World, checker: StorageController, bucket: GuardedBucket
) -> None:
    """The same process gives it the same name, so it is gone afterwards."""
    bucket.kept = True
    look_once(checker, world)
    (left,) = bucket.list("")
    bucket.kept = False
    checker.clock.step(CHECK_INTERVAL_S)  # type: ignore[attr-defined] # a stepped one
    look_once(checker, world)
    assert says(world, "Ready") == ("True", "Ready")
    assert bucket.stat(left.name) is None


def test_a_missing_right_to_delete_is_advice_however_often_it_is_found(
    world: World, checker: StorageController, clock: SteppedClock, bucket: GuardedBucket
) -> None:
    """What the first look could not delete shows the second one that it could create."""
    bucket.kept = True
    for _ in range(3):
        look_once(checker, world)
        assert says(world, "Ready") == ("True", "Ready")
        reasons = says(world, "podsnap.dev/AsRecommended")[1].split(",")
        assert "ObjectDeleteFailed" in reasons
        clock.step(PROBE_INTERVAL_S)
    assert len(list(bucket.list(""))) == 1


def test_a_bucket_that_does_not_answer_is_not_said_to_forbid(
    world: World, checker: StorageController, clock: SteppedClock, bucket: GuardedBucket
) -> None:
    """What is known of rights stays known while it is away, and is not asked for anew."""
    look_once(checker, world)
    clock.step(PROBE_INTERVAL_S)
    bucket.away = True
    look_once(checker, world)
    assert says(world, "Ready") == ("True", "Ready")
    assert bucket.written == 2
    other = StorageController(
        checker.client, checker.cache, clock, "c1", lambda _: bucket, lambda _: bucket
    )
    look_once(other, world)
    ready = world.condition(POD_SNAPSHOT_STORAGE_CONFIGS, world.store, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "BucketNotWritable")
    assert "is not reached: timed out" in ready["message"]
    assert "IAM" not in ready["message"]


def test_a_message_that_differs_every_time_is_not_written_every_time(
    world: World, checker: StorageController, clock: SteppedClock, bucket: GuardedBucket
) -> None:
    """As with the id of a request in it; what it says is the same."""
    bucket.closed = True
    look_once(checker, world)
    before = world.condition(POD_SNAPSHOT_STORAGE_CONFIGS, world.store, "Ready")["message"]
    clock.step(CHECK_INTERVAL_S)
    look_once(checker, world)
    assert bucket.written == 2
    after = world.condition(POD_SNAPSHOT_STORAGE_CONFIGS, world.store, "Ready")["message"]
    assert after == before
    clock.step(PROBE_INTERVAL_S)
    look_once(checker, world)
    after = world.condition(POD_SNAPSHOT_STORAGE_CONFIGS, world.store, "Ready")["message"]
    assert after != before


def test_the_region_is_that_of_a_node(world: World, checker: StorageController) -> None:
    """Without a node that says it nothing is judged; then the bucket's place is compared."""
    look_once(checker, world)
    assert says(world, "podsnap.dev/AsRecommended") == ("Unknown", "NotChecked")
    labels = {"topology.kubernetes.io/region": "us-east1"}
    metadata = {"name": f"node-{world.namespace}", "labels": labels}
    world.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": metadata})
    look_once(checker, world)
    assert says(world, "podsnap.dev/AsRecommended") == ("False", "LocationMismatch")
    assert says(world, "Ready") == ("True", "Ready")


def test_a_bucket_that_is_deleted_is_told_and_tried_again_soon(
    world: World, checker: StorageController, bucket: GuardedBucket
) -> None:
    """And as soon as it is back all is tried anew."""
    look_once(checker, world)
    away = world.bucket.with_name(f"{world.bucket.name}-away")
    world.bucket.rename(away)
    assert (look_once(checker, world) or 0) < CHECK_INTERVAL_S
    assert says(world, "Ready") == ("False", "BucketNotFound")
    assert says(world, "podsnap.dev/AsRecommended")[0] == "Unknown"
    Path(away).rename(world.bucket)
    look_once(checker, world)
    assert says(world, "Ready") == ("True", "Ready")
    assert bucket.written == 2


# What the how-to grants a Pod's identity and the controller's, and what is said without it.
NEEDED = {
    "storage.objects.create": ("pod", "ObjectCreateFailed"),
    "storage.objects.get": ("pod", "ObjectGetFailed"),
    "storage.objects.delete": ("pod", "ObjectDeleteFailed"),
    "storage.objects.list": ("controller", "ListFailed"),
    "storage.buckets.get": ("controller", "BucketGetDenied"),
}


@pytest.mark.parametrize("missing", ["", *NEEDED, "the controller's delete"])
def test_each_right_that_cloud_storage_refuses_is_named(tmp_path: Path, missing: str) -> None:
    """With exactly the roles of the how-to nothing is; a Pod has no right to list."""
    pod = ("objects.create", "objects.get", "objects.delete", "folders.create")
    own = ("objects.get", "objects.list", "objects.delete", "buckets.get")
    with running_cloud_storage(tmp_path, "snapshots") as double:
        for principal, rights, prefix in (("pod", pod, "team/"), ("controller", own, "")):
            permissions = [f"storage.{right}" for right in rights]
            double.access.allow(principal, *permissions, bucket="snapshots", prefix=prefix)
        who, reason = NEEDED.get(missing, ("controller", "DeletionFailed"))
        if missing:
            double.access.revoke(who, missing if missing in NEEDED else "storage.objects.delete")

        def store_of(principal: str) -> ObjectStore:
            token = AccessToken(double.access.token(principal), time.time() + 3600)
            return open_store("snapshots", BucketAccess(endpoint=double.url), tokens=lambda: token)

        config = StorageConfig(Metadata("c", uid="u"), Location("snapshots", "team/x"))
        facts = look(
            config.location or Location(""),
            lambda _: store_of("controller"),
            lambda own: try_rights(config, own, lambda: store_of("pod"), {}),
            str,
        )
    found = {f.reason: f.message for f in review_bucket(facts)}
    assert list(found) == ([reason] if missing else [])
    assert all("gcloud storage buckets add-iam-policy-binding" in text for text in found.values())
