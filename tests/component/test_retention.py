# SPDX-License-Identifier: Apache-2.0
"""Retention and obsolescence on a real API server: what goes, what stays, what comes back."""

import contextlib
import itertools
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cluster_world import World, eventually, resource_of
from snapshot_bytes import make_snapshot, stored

from backends.kube.client import (
    EVENTS,
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    POD_SNAPSHOTS,
    PODS,
    KubeClient,
    Resource,
)
from backends.kube.errors import NotFound
from policies.distill import distill
from policies.obsolescence import UNWANTED_GRACE
from reconciler.manager import Manager
from reconciler.retention_controller import DELETED_REASON
from schemas.instants import to_micro_time, to_time
from schemas.names import (
    ACCESS_MANAGER,
    CAPTURE_MANAGER,
    CONTROLLER_MANAGER,
    FINALIZER,
    TRIGGER_TYPE_ANNOTATION,
)
from schemas.pod import Pod

DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
IDLE = {"retentionConfig": {"lastAccessTimeout": "30d"}}


def newest(most: int) -> dict[str, Any]:
    """Return the part of a policy that keeps the newest of each user's."""
    rules = {"labels": ["user"], "groupRetentionPolicy": {"maxSnapshotCountPerGroup": most}}
    return {"snapshotGroupingRules": {"groupByLabelValue": rules}}


def name_of(number: int) -> str:
    """Return a name; the larger number counts as newer where all else is equal."""
    return str(uuid.UUID(int=number))


def restored_now(world: World, client: KubeClient, name: str) -> None:
    """Record a restore, as an agent does."""
    body = world.object("PodSnapshot", name, None)
    body["status"] = {"lastAccessTime": to_time(datetime.now(UTC))}
    client.apply(
        POD_SNAPSHOTS, body, field_manager=ACCESS_MANAGER, subresource="status", force=True
    )


def left(world: World) -> set[str]:
    """Return the names of the snapshots that are there."""
    return {s["metadata"]["name"] for s in world.snapshots()}


def reason_of(world: World, name: str) -> str:
    """Return the reason of ``Ready``."""
    return str(world.condition(POD_SNAPSHOTS, name, "Ready").get("reason"))


@pytest.mark.contract(26)
@pytest.mark.usefixtures("manager")
def test_an_idle_snapshot_goes_with_its_bytes_and_an_event_says_why(
    world: World, agent_client: KubeClient
) -> None:
    """What was restored from lately stays, and without a limit everything does."""
    world.make_bucket()
    world.policy()
    idle, used = name_of(1), name_of(2)
    for name in (idle, used):
        make_snapshot(world, agent_client, name)
    restored_now(world, agent_client, used)
    for name in (idle, used):
        eventually(lambda n=name: reason_of(world, n) == "AllSnapshotsAvailable", "both are stored")
    patch = {"spec": IDLE}
    world.admin.merge_patch(
        POD_SNAPSHOT_POLICIES, "web", patch, namespace=world.namespace, field_manager="user"
    )
    eventually(lambda: left(world) == {used}, "the idle one is gone")
    assert len(stored(world, idle)) == 0
    assert len(stored(world, used)) == 3

    def told() -> list[str]:
        events = world.admin.list(EVENTS, namespace=world.namespace)[0]
        return [
            e["message"]
            for e in events
            if e["reason"] == DELETED_REASON and e["involvedObject"]["name"] == idle
        ]

    assert eventually(told, "the event") == [
        "deleted by retention: nothing was restored from it since its save ended at "
        "2026-01-01T10:00:03Z, and policy web has lastAccessTimeout 30d"
    ]


@pytest.mark.contract(27)
@pytest.mark.usefixtures("manager")
def test_a_group_keeps_its_newest_and_a_time_limit_goes_on_within_them(
    world: World, agent_client: KubeClient
) -> None:
    """Also what a live Pod pins, until the Pod is gone."""
    world.make_bucket()
    world.policy(**newest(2))
    pinning = world.pod("pinned")
    patch = {"metadata": {"annotations": {"podsnapshot.gke.io/ps-name": name_of(1)}}}
    world.admin.merge_patch(PODS, "pinned", patch, namespace=world.namespace, field_manager="user")
    for number in range(1, 5):
        make_snapshot(world, agent_client, name_of(number))
    eventually(lambda: left(world) == {name_of(n) for n in (1, 3, 4)}, "the newest and the pin")
    world.admin.delete(PODS, "pinned", namespace=world.namespace, uid=pinning["metadata"]["uid"])
    eventually(lambda: left(world) == {name_of(3), name_of(4)}, "the newest two")
    restored_now(world, agent_client, name_of(3))
    world.admin.merge_patch(
        POD_SNAPSHOT_POLICIES,
        "web",
        {"spec": IDLE},
        namespace=world.namespace,
        field_manager="user",
    )
    eventually(lambda: left(world) == {name_of(3)}, "the idle one of the two is gone")


# -- obsolescence


def deployment(world: World, image: str) -> None:
    """Let a Deployment at zero have an image."""
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": world.namespace},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "runtimeClassName": "gvisor",
                    "containers": [{"name": "main", "image": image}],
                },
            },
        },
    }
    world.admin.apply(DEPLOYMENTS, body, field_manager="user", force=True)


def snapshot_of_pod(world: World, agent: KubeClient, name: str) -> None:
    """Make a snapshot of a Pod as admission left it, and let the Pod go."""
    pod = Pod.parse(world.pod("once"))
    made = make_snapshot(world, agent, name)
    capture = made["status"]["podsnap"]["capture"]
    body = world.object("PodSnapshot", name, None)
    body["metadata"]["uid"] = made["metadata"]["uid"]
    conditions = [
        c for c in made["status"]["conditions"] if c["type"] in {"Checkpoint", "StorageReplicated"}
    ]
    record = {"version": 1, "capture": {**capture, "identity": distill(pod).to_object()}}
    body["status"] = {"conditions": conditions, "podsnap": record}
    agent.apply(POD_SNAPSHOTS, body, field_manager=CAPTURE_MANAGER, subresource="status")
    world.admin.delete(PODS, "once", namespace=world.namespace)


def unwanted_since(world: World, name: str) -> str:
    """Return what the leader recorded."""
    found = world.get(POD_SNAPSHOTS, name) or {}
    return str(found["status"]["podsnap"].get("control", {}).get("unwantedSince", ""))


def look_again(manager: Manager, world: World, name: str) -> None:
    """Let the controller look at a snapshot once more."""

    def looks() -> float:
        labels = {"controller": "snapshot"}
        name = "controller_runtime_reconcile_time_seconds_count"
        return manager.metrics.registry.get_sample_value(name, labels) or 0.0

    before = looks()
    manager._snapshots.queue.add((world.namespace, name))
    eventually(lambda: looks() > before, "it was looked at")


def test_a_snapshot_whose_template_moved_on_is_obsolete_until_a_rollback(
    manager: Manager, world: World, agent_client: KubeClient
) -> None:
    """Behind a Deployment at zero; a look that finds nothing new writes nothing."""
    world.make_bucket()
    world.policy()
    name = name_of(1)
    deployment(world, "registry.example/web:1")
    snapshot_of_pod(world, agent_client, name)
    eventually(lambda: reason_of(world, name) == "AllSnapshotsAvailable", "it is stored")
    deployment(world, "registry.example/web:2")
    eventually(lambda: unwanted_since(world, name), "nobody wants it")
    assert reason_of(world, name) == "AllSnapshotsAvailable"
    before = world.get(POD_SNAPSHOTS, name)
    look_again(manager, world, name)
    assert world.get(POD_SNAPSHOTS, name) == before
    long_ago = to_micro_time(datetime.now(UTC) - UNWANTED_GRACE)
    recorded = world.object("PodSnapshot", name, None)
    ready = world.condition(POD_SNAPSHOTS, name, "Ready")
    control = {**(before or {})["status"]["podsnap"]["control"], "unwantedSince": long_ago}
    recorded["status"] = {"conditions": [ready], "podsnap": {"version": 1, "control": control}}
    world.admin.apply(
        POD_SNAPSHOTS, recorded, field_manager=CONTROLLER_MANAGER, subresource="status", force=True
    )
    eventually(lambda: reason_of(world, name) == "Obsolete", "it is obsolete")
    message = world.condition(POD_SNAPSHOTS, name, "Ready")["message"]
    assert "they differ in spec.containers[main].image" in message
    deployment(world, "registry.example/web:1")
    eventually(lambda: reason_of(world, name) == "AllSnapshotsAvailable", "it is back")
    assert unwanted_since(world, name) == ""


# -- deletion, in any order

KINDS = ("policy", "storage", "snapshots", "namespace")


def fill(world: World, agent: KubeClient) -> None:
    """Put a policy, a storage config, a stored snapshot and one that waits into a world."""
    world.make_bucket()
    world.storage()
    world.policy(triggerConfig={"type": "workload"})
    make_snapshot(world, agent, name_of(1))
    waiting = world.object("PodSnapshot", name_of(2), {"policyName": "web"})
    waiting["metadata"]["finalizers"] = [FINALIZER]
    waiting["metadata"]["annotations"] = {TRIGGER_TYPE_ANNOTATION: "workload"}
    world.create(POD_SNAPSHOTS, waiting)


def delete_namespace(world: World) -> None:
    """Delete a namespace, and what is in it, as the namespace controller does."""
    body = {"apiVersion": "v1", "kind": "Namespace"}
    world.admin.delete(resource_of(body), world.namespace)
    for resource in (POD_SNAPSHOTS, POD_SNAPSHOT_POLICIES):
        delete_all(world, resource)


def delete_all(world: World, resource: Resource) -> None:
    """Delete every object of a kind, each once."""
    for found in world.admin.list(resource, namespace=world.namespace)[0]:
        with contextlib.suppress(NotFound):
            world.admin.delete(resource, found["metadata"]["name"], namespace=world.namespace)


def delete(world: World, what: str) -> None:
    """Delete one of the four."""
    if what == "namespace":
        delete_namespace(world)
    elif what == "storage":
        world.admin.delete(POD_SNAPSHOT_STORAGE_CONFIGS, world.store)
    else:
        delete_all(world, POD_SNAPSHOTS if what == "snapshots" else POD_SNAPSHOT_POLICIES)


def effective(order: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out what the namespace took along."""
    last = order.index("namespace")
    return (*order[: last + 1], *(what for what in order[last + 1 :] if what == "storage"))


def test_deletion_in_any_order_leaves_neither_bytes_nor_objects(
    manager: Manager, admin: KubeClient, agent_client: KubeClient, bucket_root: Path
) -> None:
    """Policy, storage config, snapshots, namespace: all orders at once, a namespace each."""
    orders = sorted(set(map(effective, itertools.permutations(KINDS))))
    worlds = []
    for _ in orders:
        namespace = f"t{uuid.uuid4().hex[:10]}"
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        admin.create(resource_of(body), body, field_manager="tests")
        world = World(admin, namespace, bucket_root / f"bucket-{namespace}")
        fill(world, agent_client)
        worlds.append(world)
    for world in worlds:
        eventually(lambda w=world: reason_of(w, name_of(1)) == "AllSnapshotsAvailable", "stored")
    for step in range(len(KINDS)):
        for world, order in zip(worlds, orders, strict=True):
            for what in order[step : step + 1]:
                delete(world, what)
    for world, order in zip(worlds, orders, strict=True):
        eventually(lambda w=world: not w.snapshots(), f"no object is left after {order}")
        assert stored(world) == [], order
        assert world.get(POD_SNAPSHOT_STORAGE_CONFIGS, world.store) is None
