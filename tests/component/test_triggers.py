# SPDX-License-Identifier: Apache-2.0
"""Triggers and storage as users see them, by the running controller with its own rights."""

import uuid
from typing import Any

import pytest
from cluster_world import World, eventually

from backends.kube.client import (
    POD_SNAPSHOT_MANUAL_TRIGGERS,
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    POD_SNAPSHOTS,
)
from policies.identity import manual_snapshot_name
from reconciler.manager import Manager

pytestmark = pytest.mark.usefixtures("manager")


def answer(world: World, name: str, reason: str) -> dict[str, Any]:
    """Wait until a trigger shows a reason, and return the condition."""

    def found() -> dict[str, Any]:
        condition = world.condition(POD_SNAPSHOT_MANUAL_TRIGGERS, name, "Triggered")
        return condition if condition.get("reason") == reason else {}

    condition: dict[str, Any] = eventually(found, f"trigger {name} shows {reason}")
    return condition


REFUSED: dict[str, tuple[dict[str, Any] | None, bool, str, str]] = {
    "a missing Pod": (None, True, "PodNotFound", "name a running Pod in spec.targetPod"),
    "a Pod outside gVisor": (
        {"runtimeClassName": None},
        True,
        "NotInGVisor",
        "set runtimeClassName: gvisor and create the Pod anew",
    ),
    "a Pod that no policy selects": ({}, False, "NotGoverned", "create one whose selector"),
    "a Pod that is not Ready": ({"is_ready": False}, True, "PodNotReady", "wait until it is"),
    "a Pod on the host's network": (
        {"hostNetwork": True},
        True,
        "NotRestorable",
        "its sockets belong to the node",
    ),
}


@pytest.mark.contract(10)
@pytest.mark.parametrize("what", REFUSED)
def test_a_trigger_that_cannot_work_fails_with_reason_and_advice(world: World, what: str) -> None:
    """No endless pending, and no PodSnapshot is made."""
    pod, with_policy, reason, advice = REFUSED[what]
    if with_policy:
        world.policy()
    if pod is not None:
        world.pod(**pod)
    # The caches follow; a trigger is judged by what they hold, so it comes last and is retried.
    for attempt in range(20):
        world.trigger(f"now-{attempt}")
        condition = answer(world, f"now-{attempt}", "Failed")
        if condition["message"].startswith(reason):
            break
    assert condition["status"] == "False"
    assert condition["message"].startswith(f"{reason}: ")
    assert advice in condition["message"]
    assert world.snapshots() == []


def test_a_trigger_without_spec_is_told_to_name_a_pod(world: World) -> None:
    """The schema lets it pass, as GKE's does."""
    world.trigger("now", None)
    assert "set spec.targetPod" in answer(world, "now", "Failed")["message"]


def test_a_trigger_makes_one_addressed_snapshot(world: World) -> None:
    """With everything that the contract and the agent look for."""
    world.make_bucket()
    world.storage()
    world.policy(snapshotGroupingRules={"groupByLabelValue": {"labels": ["tenant", "absent"]}})
    pod = world.pod(labels={"app": "web", "tenant": "t1"})
    settled(world)
    trigger = world.trigger("now")
    answer(world, "now", "Pending")
    (snapshot,) = eventually(world.snapshots, "a PodSnapshot")
    metadata = snapshot["metadata"]
    assert metadata["name"] == manual_snapshot_name(trigger["metadata"]["uid"])
    assert str(uuid.UUID(metadata["name"])) == metadata["name"]
    assert snapshot["spec"] == {"policyName": "web"}
    assert metadata["finalizers"] == ["podsnapshot.gke.io/podsnapshot-finalizer"]
    assert metadata["labels"]["gke-pod-snapshot-triggered-by"] == "now"
    assert metadata["labels"]["tenant"] == "t1"
    assert "absent" not in metadata["labels"]
    assert metadata["annotations"]["podsnapshot.gke.io/origin-pod"] == "web-0"
    assert metadata["annotations"]["podsnapshot.gke.io/origin-node"] == "node-1"
    assert metadata["annotations"]["podsnap.dev/origin-pod-uid"] == pod["metadata"]["uid"]
    eventually(
        lambda: (
            world.condition(POD_SNAPSHOTS, metadata["name"], "Ready").get("reason")
            == "AwaitingCheckpoint"
        ),
        "Ready shows AwaitingCheckpoint",
    )
    status = (world.get(POD_SNAPSHOT_MANUAL_TRIGGERS, "now") or {})["status"]
    assert status["snapshotCreated"] == {"name": metadata["name"]}


def settled(world: World) -> None:
    """Wait until the controller has seen policy and storage."""
    eventually(
        lambda: world.condition(POD_SNAPSHOT_POLICIES, "web", "Ready").get("status") == "True",
        "the policy is Ready",
    )


@pytest.mark.contract(11)
def test_a_second_trigger_for_the_same_pod_is_refused(world: World, manager: Manager) -> None:
    """One save at a time; the text is the one that GKE's clients know."""
    world.make_bucket()
    world.storage()
    world.policy()
    world.pod()
    settled(world)
    world.trigger("first")
    answer(world, "first", "Pending")
    eventually(world.snapshots, "the first one's PodSnapshot")
    world.trigger("second")
    message = answer(world, "second", "Failed")["message"]
    assert "Another PodSnapshotManualTrigger first is already targeting Pod web-0" in message
    assert len(world.snapshots()) == 1


def test_missing_storage_is_waited_for_and_told_on_policy_and_config(world: World) -> None:
    """The trigger is Pending, not Failed, and goes on when the bucket is there."""
    world.policy()
    world.pod()

    def policy_says(text: str) -> None:
        eventually(
            lambda: (
                text in world.condition(POD_SNAPSHOT_POLICIES, "web", "Ready").get("message", "")
            ),
            f"the policy says {text!r}",
        )

    policy_says(f"PodSnapshotStorageConfig {world.store} does not exist; create it")
    world.storage()
    policy_says("cannot be written")
    config = world.condition(POD_SNAPSHOT_STORAGE_CONFIGS, world.store, "Ready")
    assert (config["status"], config["reason"]) == ("False", "BucketNotFound")
    assert "mkdir" in config["message"]
    world.trigger("now")
    assert "waits for storage" in answer(world, "now", "Pending")["message"]
    assert world.snapshots() == []
    world.make_bucket()
    eventually(world.snapshots, "the PodSnapshot, now that the bucket is there")
    settled(world)


def test_a_trigger_is_answered_when_its_snapshot_is_deleted(world: World) -> None:
    """A deleted wish is no endless pending."""
    world.make_bucket()
    world.storage()
    world.policy()
    world.pod()
    settled(world)
    world.trigger("now")
    (snapshot,) = eventually(world.snapshots, "a PodSnapshot")
    world.admin.delete(POD_SNAPSHOTS, snapshot["metadata"]["name"], namespace=world.namespace)
    assert "was deleted before it was saved" in answer(world, "now", "Failed")["message"]
    eventually(lambda: not world.snapshots(), "the object is gone")


def test_a_policy_that_asks_for_more_than_there_is_says_so(world: World) -> None:
    """It is accepted by the schema, and its condition tells what is not acted on."""
    world.policy(triggerConfig={"type": "workload"}, snapshotScope="rootfs-only")
    condition = eventually(
        lambda: world.condition(POD_SNAPSHOT_POLICIES, "web", "Ready"), "a condition"
    )
    assert (condition["status"], condition["reason"]) == ("False", "Unsupported")
    assert "use snapshotScope whole-pod" in condition["message"]
