# SPDX-License-Identifier: Apache-2.0
"""A stored snapshot under the running controller: shown, superseded, deleted with its bytes."""

import fcntl
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cluster_world import World, eventually
from snapshot_bytes import make_snapshot, put_parts, stored

from backends.kube.client import EVENTS, POD_SNAPSHOT_POLICIES, POD_SNAPSHOTS, KubeClient
from schemas.names import ABANDON_BYTES_ANNOTATION
from schemas.snapshot import Snapshot

pytestmark = pytest.mark.usefixtures("manager")


@pytest.fixture
def name() -> str:
    """A snapshot's name."""
    return str(uuid.uuid4())


def shows(world: World, name: str, reason: str) -> str:
    """Wait until ``Ready`` has a reason, and return its message."""
    eventually(
        lambda: world.condition(POD_SNAPSHOTS, name, "Ready").get("reason") == reason,
        f"{name} shows {reason}",
    )
    return str(world.condition(POD_SNAPSHOTS, name, "Ready")["message"])


@contextmanager
def bucket_held(world: World) -> Iterator[None]:
    """Hold the bucket's own lock, so that nothing can be deleted meanwhile."""
    lock = world.bucket / ".podsnap/lock"
    with lock.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_a_stored_snapshot_is_available_and_tells_its_story(
    world: World, agent_client: KubeClient, name: str
) -> None:
    """Although its node is gone; the states that nobody saw are in it."""
    world.make_bucket()
    world.policy()
    make_snapshot(world, agent_client, name)
    shows(world, name, "AllSnapshotsAvailable")
    found = Snapshot.parse(world.get(POD_SNAPSHOTS, name) or {})
    assert [e.state for e in found.control.story][-3:] == [
        "Checkpointing",
        "Uploading",
        "AllSnapshotsAvailable",
    ]


def test_without_its_policy_a_snapshot_is_obsolete_and_comes_back(
    world: World, agent_client: KubeClient, name: str
) -> None:
    """Bytes stay; a policy of that name makes it usable again."""
    world.make_bucket()
    world.policy()
    make_snapshot(world, agent_client, name)
    shows(world, name, "AllSnapshotsAvailable")
    world.admin.delete(POD_SNAPSHOT_POLICIES, "web", namespace=world.namespace)
    assert "its policy web is gone" in shows(world, name, "Obsolete")
    assert len(stored(world)) == 3
    world.policy()
    shows(world, name, "AllSnapshotsAvailable")


@pytest.mark.contract(28, 29)
def test_bytes_go_before_the_object_although_policy_and_storage_are_gone(
    world: World, agent_client: KubeClient, name: str
) -> None:
    """The place was recorded at the claim; nothing else is needed to find it."""
    world.make_bucket()
    world.policy()
    make_snapshot(world, agent_client, name)
    put_parts(world, name, "uid-of-another-snapshot", parts=("foreign",))
    shows(world, name, "AllSnapshotsAvailable")
    world.admin.delete(POD_SNAPSHOT_POLICIES, "web", namespace=world.namespace)
    shows(world, name, "Obsolete")
    with bucket_held(world):
        world.admin.delete(POD_SNAPSHOTS, name, namespace=world.namespace)
        shows(world, name, "Deleting")
        assert len(stored(world, name)) == 4
    eventually(lambda: world.get(POD_SNAPSHOTS, name) is None, "the object is gone")
    assert stored(world, name) == [f"snapshots/{name}/foreign"]


def test_a_bucket_that_is_gone_holds_no_object_back(
    world: World, agent_client: KubeClient, name: str
) -> None:
    """There is nothing left to delete."""
    world.make_bucket()
    world.policy()
    make_snapshot(world, agent_client, name)
    shows(world, name, "AllSnapshotsAvailable")
    world.bucket.rename(world.bucket.with_name(f"{world.bucket.name}-elsewhere"))
    world.admin.delete(POD_SNAPSHOTS, name, namespace=world.namespace)
    eventually(lambda: world.get(POD_SNAPSHOTS, name) is None, "the object is gone")
    assert "does not exist" in told(world, name, "BucketNotFound")


def test_a_bucket_that_refuses_keeps_the_object_until_it_no_longer_does(
    world: World, agent_client: KubeClient, name: str
) -> None:
    """The object says why; nobody has to do anything but mend the bucket."""
    world.make_bucket()
    world.policy()
    make_snapshot(world, agent_client, name)
    shows(world, name, "AllSnapshotsAvailable")
    with bucket_refusing(world):
        world.admin.delete(POD_SNAPSHOTS, name, namespace=world.namespace)
        eventually(
            lambda: "cannot be deleted" in world.condition(POD_SNAPSHOTS, name, "Ready")["message"],
            "it says why it stays",
        )
    eventually(lambda: world.get(POD_SNAPSHOTS, name) is None, "the object is gone")
    assert stored(world, name) == []


def test_whoever_abandons_the_bytes_gets_rid_of_the_object(
    world: World, agent_client: KubeClient, name: str
) -> None:
    """The bytes stay, and an Event says where."""
    world.make_bucket()
    world.policy()
    make_snapshot(world, agent_client, name)
    shows(world, name, "AllSnapshotsAvailable")
    with bucket_refusing(world):
        world.admin.delete(POD_SNAPSHOTS, name, namespace=world.namespace)
        shows(world, name, "Deleting")
        world.admin.merge_patch(
            POD_SNAPSHOTS,
            name,
            {"metadata": {"annotations": {ABANDON_BYTES_ANNOTATION: "true"}}},
            namespace=world.namespace,
            field_manager="user",
        )
        eventually(lambda: world.get(POD_SNAPSHOTS, name) is None, "the object is gone")
    assert len(stored(world, name)) == 3
    said = told(world, name, "BytesAbandoned")
    assert f"gs://{world.bucket.name}/snapshots/{name}" in said
    assert said.endswith("podsnap store gc CONFIG")


@contextmanager
def bucket_refusing(world: World) -> Iterator[None]:
    """Let the bucket fail at every deletion: what it locks is no file."""
    lock = world.bucket / ".podsnap/lock"
    lock.rename(lock.with_name("lock.kept"))
    lock.mkdir()
    try:
        yield
    finally:
        lock.rmdir()
        lock.with_name("lock.kept").rename(lock)


def told(world: World, name: str, reason: str) -> str:
    """Wait for an Event on a snapshot that may be gone, and return its message."""
    selector = f"involvedObject.name={name},reason={reason}"

    def found() -> list[dict[str, str]]:
        return world.admin.list(EVENTS, namespace=world.namespace, field_selector=selector)[0]

    return eventually(found, f"an Event {reason}")[0]["message"]
