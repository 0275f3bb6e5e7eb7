# SPDX-License-Identifier: Apache-2.0
"""Saves that nobody asks for by hand, and snapshots that are taken out of use and brought back."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cluster_world import World, eventually
from snapshot_bytes import make_snapshot

from backends.kube.client import (
    LEASES,
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOTS,
    PODS,
    KubeClient,
)
from reconciler.manager import Manager
from schemas.instants import to_time
from schemas.names import (
    CAPTURE_MANAGER,
    GATE_ANNOTATION,
    IDENTITY_LABEL,
    NODE_FACTS_ANNOTATION,
    NODE_LEASE_PREFIX,
    QUARANTINE_ANNOTATION,
    SYSTEM_NAMESPACE,
)
from schemas.node_facts import NodeFacts
from schemas.snapshot import CaptureRecord, Compatibility, Failure, Snapshot

pytestmark = pytest.mark.usefixtures("manager")


def node_of(world: World, *, machine_series: str = "n2") -> str:
    """Publish what an agent publishes, for a node of the test's own; returns its name."""
    name = f"node-{world.namespace}"
    facts = NodeFacts(name, Compatibility(runsc_version="1", machine_series=machine_series))
    body = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": f"{NODE_LEASE_PREFIX}{name}",
            "namespace": SYSTEM_NAMESPACE,
            "annotations": {NODE_FACTS_ANNOTATION: facts.to_annotation()},
        },
    }
    world.create(LEASES, body)
    return name


def ready(world: World, name: str, *, for_s: float = 0.0, node: str = "") -> dict[str, Any]:
    """Let a Pod be Ready for so long, as its kubelet would say; creates it first."""
    pod = world.get(PODS, name) or world.pod(name, is_ready=False, nodeName=node)
    since = to_time(datetime.now(UTC) - timedelta(seconds=for_s))
    status = {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": since}],
    }
    world.admin.apply(
        PODS,
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": world.namespace},
            "status": status,
        },
        field_manager="kubelet",
        subresource="status",
        force=True,
    )
    return pod


def message(world: World) -> str:
    """Return what the policy's ``Ready`` says."""
    return str(world.condition(POD_SNAPSHOT_POLICIES, "web", "Ready").get("message"))


def settled(world: World, manager: Manager) -> None:
    """Wait until the policy was looked at again with every Pod as it is now."""
    live = world.admin.list(PODS, namespace=world.namespace)[0]
    for pod in live:
        eventually(
            lambda pod=pod: (
                (seen := manager.cache.pods.store.by_uid(pod["metadata"]["uid"])) is not None
                and seen.metadata.resource_version == pod["metadata"]["resourceVersion"]
            ),
            "the controller sees the Pods",
        )
    for value, reason in (("soon", "InvalidAnnotation"), (None, "Ready")):
        world.admin.merge_patch(
            POD_SNAPSHOT_POLICIES,
            "web",
            {"metadata": {"annotations": {GATE_ANNOTATION: value}}},
            namespace=world.namespace,
            field_manager="user",
        )
        eventually(
            lambda reason=reason: (
                world.condition(POD_SNAPSHOT_POLICIES, "web", "Ready").get("reason") == reason
            ),
            f"the policy shows {reason}",
        )


def fail(world: World, agent: KubeClient, name: str, node: str) -> None:
    """End a save as its agent would."""
    failure = Failure("RunscFailed", "runsc checkpoint: exit status 128")
    record = CaptureRecord(node=node, attempt=1, failure=failure)
    body = world.object("PodSnapshot", name, None)
    body["metadata"]["uid"] = (world.get(POD_SNAPSHOTS, name) or {})["metadata"]["uid"]
    body["status"] = {"podsnap": {"version": 1, "capture": record.to_object()}}
    agent.apply(POD_SNAPSHOTS, body, field_manager=CAPTURE_MANAGER, subresource="status")


def names(world: World) -> set[str]:
    """Return the names of the snapshots."""
    return {s["metadata"]["name"] for s in world.snapshots()}


def one_more(world: World, known: set[str]) -> Snapshot:
    """Wait for a snapshot beside the known ones."""
    (name,) = eventually(lambda: names(world) - known, "another PodSnapshot")
    return Snapshot.parse(world.get(POD_SNAPSHOTS, name) or {})


def world_with_policy(world: World) -> str:
    """Make bucket, storage, a ``readinessProbe`` policy and a node; returns the node's name."""
    world.make_bucket()
    world.storage()
    world.policy(triggerConfig={"type": "readinessProbe"})
    node = node_of(world)
    eventually(lambda: "no Pod is selected now" in message(world), "the policy is Ready")
    return node


def test_ten_pods_that_become_ready_together_make_one_snapshot(
    world: World, manager: Manager
) -> None:
    """It is addressed to the node of one of them, and waits for that node's agent."""
    node = world_with_policy(world)
    pods = [world.pod(f"web-{n}", is_ready=False, nodeName=node) for n in range(10)]
    settled(world, manager)
    assert world.snapshots() == []
    for pod in pods:
        ready(world, pod["metadata"]["name"])
    made = one_more(world, set())
    settled(world, manager)
    assert names(world) == {made.metadata.name}
    assert made.origin_node == node
    assert (made.origin_pod, made.origin_pod_uid) in [
        (p["metadata"]["name"], p["metadata"]["uid"]) for p in pods
    ]
    assert made.trigger_type == "readinessProbe"
    assert len(made.metadata.labels[IDENTITY_LABEL]) == 32
    expected = f"waits for the agent on node {node}; Pod {made.origin_pod} became Ready"
    eventually(
        lambda: (
            world.condition(POD_SNAPSHOTS, made.metadata.name, "Ready").get("message") == expected
        ),
        "Ready says what it waits for",
    )
    # A condition that the agent writes at its claim; nobody is ahead of it.
    assert world.condition(POD_SNAPSHOTS, made.metadata.name, "Checkpoint") == {}


def test_a_deleted_snapshot_is_made_again_by_the_next_pod_and_not_by_one_that_serves(
    world: World, manager: Manager
) -> None:
    """Nobody pauses a Pod that has served for an hour because a file was deleted."""
    node = world_with_policy(world)
    ready(world, "web-0", node=node)
    made = one_more(world, set())
    ready(world, "web-0", for_s=3600)
    settled(world, manager)
    world.admin.delete(POD_SNAPSHOTS, made.metadata.name, namespace=world.namespace)
    eventually(lambda: not world.snapshots(), "the snapshot is gone")
    settled(world, manager)
    assert world.snapshots() == []
    ready(world, "web-1", node=node)
    again = one_more(world, set())
    assert (again.metadata.name, again.origin_pod) == (made.metadata.name, "web-1")


def test_failed_generations_move_on_with_other_pods_and_end(
    world: World, manager: Manager, agent_client: KubeClient
) -> None:
    """Never twice for one Pod, three times for one identity; deleting one lets it go on."""
    node = world_with_policy(world)
    known: set[str] = set()
    for n in range(3):
        ready(world, f"web-{n}", node=node)
        made = one_more(world, known)
        assert made.origin_pod == f"web-{n}"
        known.add(made.metadata.name)
        fail(world, agent_client, made.metadata.name, node)
        eventually(
            lambda made=made: (
                world.condition(POD_SNAPSHOTS, made.metadata.name, "Ready").get("reason")
                == "Failed"
            ),
            "it has failed",
        )
        settled(world, manager)
        assert names(world) == known
    ready(world, "web-3", node=node)
    settled(world, manager)
    assert names(world) == known
    assert "no more saves are tried for Pods like web-" in message(world)
    assert "(RunscFailed: runsc checkpoint: exit status 128)" in message(world)
    world.admin.delete(POD_SNAPSHOTS, made.metadata.name, namespace=world.namespace)
    eventually(
        lambda: [Snapshot.parse(s).capture is None for s in world.snapshots()].count(True) == 1,
        "another save of a Pod that is Ready since a moment",
    )
    eventually(lambda: "no more saves" not in message(world), "the policy is content again")


def test_a_save_whose_pod_left_before_the_claim_is_lost(world: World) -> None:
    """No agent would ever answer it."""
    node = world_with_policy(world)
    ready(world, "web-0", node=node)
    made = one_more(world, set())
    world.admin.delete(PODS, "web-0", namespace=world.namespace)
    eventually(
        lambda: (
            world.condition(POD_SNAPSHOTS, made.metadata.name, "Ready").get("reason") == "Failed"
        ),
        "it has failed",
    )
    record = Snapshot.parse(world.get(POD_SNAPSHOTS, made.metadata.name) or {}).capture
    assert record is not None
    assert record.failure is not None
    assert record.failure.reason == "PodGone"


def test_a_pod_on_an_e2_machine_is_not_saved_and_the_policy_says_so(
    world: World, manager: Manager
) -> None:
    """Otherwise nobody would learn why nothing happens."""
    world.make_bucket()
    world.storage()
    world.policy(triggerConfig={"type": "readinessProbe"})
    node = node_of(world, machine_series="e2")
    ready(world, "web-0", node=node)
    eventually(
        lambda: "Pod web-0 is never saved: its node is an E2 machine" in message(world),
        "the policy says why",
    )
    settled(world, manager)
    assert world.snapshots() == []


def test_a_pod_that_became_ready_is_saved_as_soon_as_there_is_storage(world: World) -> None:
    """Within the window; nothing waits as an object meanwhile."""
    world.policy(triggerConfig={"type": "readinessProbe"})
    node = node_of(world)
    ready(world, "web-0", node=node)
    eventually(lambda: "saves and restores wait" in message(world), "the policy waits")
    assert world.snapshots() == []
    world.make_bucket()
    world.storage()
    assert one_more(world, set()).origin_pod == "web-0"


# -- quarantine


def record(world: World, agent: KubeClient, name: str, podsnap: dict[str, Any]) -> None:
    """Record something against a snapshot, as an agent does after a restore."""
    agent.merge_patch(
        POD_SNAPSHOTS,
        name,
        {"status": {"podsnap": podsnap}},
        namespace=world.namespace,
        field_manager="podsnap-failures",
        subresource="status",
    )


def shows(world: World, name: str, reason: str) -> str:
    """Wait until ``Ready`` has a reason, and return its message."""
    eventually(
        lambda: world.condition(POD_SNAPSHOTS, name, "Ready").get("reason") == reason,
        f"{name} shows {reason}",
    )
    return str(world.condition(POD_SNAPSHOTS, name, "Ready")["message"])


def lift(world: World, name: str) -> None:
    """Lift the quarantine as a user."""
    world.admin.merge_patch(
        POD_SNAPSHOTS,
        name,
        {"metadata": {"annotations": {QUARANTINE_ANNOTATION: "lifted"}}},
        namespace=world.namespace,
        field_manager="user",
    )


def test_three_failed_restores_quarantine_a_snapshot_until_a_person_lifts_it(
    world: World, agent_client: KubeClient
) -> None:
    """Each Pod counts once; lifted, it starts at nothing, and can be quarantined again."""
    name = str(uuid.uuid4())
    world.make_bucket()
    world.policy()
    make_snapshot(world, agent_client, name)
    shows(world, name, "AllSnapshotsAvailable")
    for _ in range(2):
        for pod in ("uid-1", "uid-1", "uid-2"):
            record(world, agent_client, name, {"failures": {pod: "bad file descriptor"}})
        assert len(Snapshot.parse(world.get(POD_SNAPSHOTS, name) or {}).failures) == 2
        assert shows(world, name, "AllSnapshotsAvailable")
        record(world, agent_client, name, {"failures": {"uid-3": "bad file descriptor"}})
        expected = "quarantined: 3 restores failed: bad file descriptor"
        assert shows(world, name, "Obsolete") == expected
        lift(world, name)
        shows(world, name, "AllSnapshotsAvailable")

        def annotation_is_gone() -> bool:
            snapshot = Snapshot.parse(world.get(POD_SNAPSHOTS, name) or {})
            return QUARANTINE_ANNOTATION not in snapshot.metadata.annotations

        eventually(annotation_is_gone, "the annotation is taken off")
        assert Snapshot.parse(world.get(POD_SNAPSHOTS, name) or {}).failures == {}


def test_damage_is_a_quarantine_at_once_and_is_lifted_too(
    world: World, agent_client: KubeClient
) -> None:
    """Wrong bytes need no second opinion; whoever mended the bucket may say so."""
    name = str(uuid.uuid4())
    world.make_bucket()
    world.policy()
    make_snapshot(world, agent_client, name)
    shows(world, name, "AllSnapshotsAvailable")
    record(world, agent_client, name, {"damage": {"message": "pages.img: digest"}})
    assert shows(world, name, "Obsolete") == (
        "quarantined: its bytes are damaged: pages.img: digest"
    )
    lift(world, name)
    shows(world, name, "AllSnapshotsAvailable")
