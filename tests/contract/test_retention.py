# SPDX-License-Identifier: Apache-2.0
"""Behaviours 26 to 29: which snapshots go by themselves, and what goes with one that is deleted."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from backends.kube.client import POD_SNAPSHOT_POLICIES, POD_SNAPSHOTS, KubeClient
from schemas.instants import to_time
from schemas.names import ACCESS_MANAGER
from tests.cluster_scene import Scene
from tests.cluster_scene import eventually as in_scene
from tests.component.cluster_world import World, eventually
from tests.component.snapshot_bytes import make_snapshot, stored

MINUTE = timedelta(minutes=1)


def available(world: World, *names: str) -> None:
    """Wait until snapshots can be restored from."""
    for name in names:
        eventually(
            lambda name=name: world.condition(POD_SNAPSHOTS, name, "Ready").get("status") == "True",
            f"{name} is available",
        )


def restored(world: World, agent: KubeClient, name: str, ago: timedelta) -> None:
    """Let a Pod have been restored from a snapshot, as its agent would say."""
    body = world.object("PodSnapshot", name, None)
    body["metadata"]["uid"] = (world.get(POD_SNAPSHOTS, name) or {})["metadata"]["uid"]
    body["status"] = {"lastAccessTime": to_time(datetime.now(UTC) - ago)}
    agent.apply(POD_SNAPSHOTS, body, field_manager=ACCESS_MANAGER, subresource="status", force=True)


def change_policy(world: World, **spec: Any) -> None:  # noqa: ANN401 - fields of a policy's spec
    """Change the policy's spec."""
    world.admin.merge_patch(
        POD_SNAPSHOT_POLICIES,
        "web",
        {"spec": spec},
        namespace=world.namespace,
        field_manager="user",
    )


def names(world: World) -> set[str]:
    """Return the names of the snapshots that are there."""
    return {s["metadata"]["name"] for s in world.snapshots()}


@pytest.mark.contract(26)
@pytest.mark.usefixtures("manager")
@pytest.mark.parametrize(
    ("timeout", "allowed"),
    [
        ("90min", 90 * MINUTE),
        ("2 h", 120 * MINUTE),
        ("3d", timedelta(days=3)),
        ("1mo", timedelta(days=30)),
    ],
    ids=["min", "h", "d", "mo"],
)
def test_what_nobody_restored_from_for_long_goes_with_its_bytes(
    world: World, agent_client: KubeClient, timeout: str, allowed: timedelta
) -> None:
    """As soon as the policy says how long; before it does, a save of years ago stays."""
    world.make_bucket()
    world.policy()
    for name, ago in (("idle", allowed + MINUTE), ("used", allowed / 2)):
        make_snapshot(world, agent_client, name)
        restored(world, agent_client, name, ago)
    available(world, "idle", "used")
    assert names(world) == {"idle", "used"}

    change_policy(world, retentionConfig={"lastAccessTimeout": timeout})

    eventually(lambda: names(world) == {"used"}, "only what is used is there")
    assert stored(world, "idle") == []
    assert len(stored(world, "used")) == 3


@pytest.mark.contract(27)
@pytest.mark.usefixtures("manager")
def test_each_group_keeps_its_newest_and_no_longer_than_the_time_limit(
    world: World, agent_client: KubeClient
) -> None:
    """``{tenant}`` and ``{tenant, size}`` are two groups, though the tenant is the same."""
    world.make_bucket()
    world.policy()
    groups = {
        "a1": {"tenant": "a"},
        "a2": {"tenant": "a"},
        "a3": {"tenant": "a"},
        "b1": {"tenant": "b"},
        "large1": {"tenant": "a", "size": "large"},
        "large2": {"tenant": "a", "size": "large"},
    }
    for name, labels in groups.items():
        make_snapshot(world, agent_client, name)
        world.admin.merge_patch(
            POD_SNAPSHOTS,
            name,
            {"metadata": {"labels": labels}},
            namespace=world.namespace,
            field_manager="tests",
        )
    available(world, *groups)

    most = {"groupRetentionPolicy": {"maxSnapshotCountPerGroup": 2}}
    by_label = {"groupByLabelValue": {"labels": ["tenant", "size"], **most}}
    change_policy(world, snapshotGroupingRules=by_label)
    eventually(lambda: names(world) == groups.keys() - {"a1"}, "the oldest of three is gone")
    restored(world, agent_client, "a3", MINUTE)
    change_policy(world, retentionConfig={"lastAccessTimeout": "1h"})

    eventually(lambda: names(world) == {"a3"}, "what nobody used is gone")


@pytest.mark.cluster
@pytest.mark.contract(28, 29)
def test_deleting_a_snapshot_deletes_its_bytes_even_without_policy(scene: Scene) -> None:
    """The place of the bytes is recorded, so nothing else has to exist any more."""
    scene.policy()
    scene.ready_pod("first")
    snapshot = scene.save("first")
    nonce = scene.nonce("first")
    assert scene.stored()

    scene.kubectl("delete", "psp", "policy")
    in_scene(
        "Obsolete",
        lambda: (
            (scene.condition("ps", snapshot.metadata.name, "Ready") or {})["reason"] == "Obsolete"
        ),
    )
    scene.ready_pod("second")
    answer = scene.triggered(scene.trigger("first"))

    assert scene.condition("pod", "second", "PodRestored") is None
    assert scene.nonce("second") != nonce
    assert answer["message"].startswith("NotGoverned")
    assert scene.nonce("first") == nonce
    assert scene.container("first")["restartCount"] == 0
    scene.kubectl("delete", "pssc", scene.namespace)
    scene.kubectl("delete", "ps", snapshot.metadata.name, "--wait", "--timeout=30s")
    assert scene.stored() == set()
