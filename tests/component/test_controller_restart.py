# SPDX-License-Identifier: Apache-2.0
"""A controller that comes after another one goes on where that one stopped."""

import uuid
from pathlib import Path

from cluster_world import World, eventually, leading
from snapshot_bytes import make_snapshot, stored

from backends.kube.client import POD_SNAPSHOT_MANUAL_TRIGGERS, POD_SNAPSHOTS, KubeClient


def ready(world: World, name: str) -> str:
    """Return the reason of a snapshot's ``Ready``."""
    return str(world.condition(POD_SNAPSHOTS, name, "Ready").get("reason"))


def test_what_happened_while_nobody_led_is_made_good(
    world: World, controller_client: KubeClient, agent_client: KubeClient, bucket_root: Path
) -> None:
    """A deletion, a new trigger, and no second run of an answered one."""
    world.make_bucket()
    world.storage()
    world.policy()
    world.pod()
    gone, kept = str(uuid.uuid4()), str(uuid.uuid4())
    with leading(controller_client, bucket_root):
        for name in (gone, kept):
            make_snapshot(world, agent_client, name)
        eventually(
            lambda: {ready(world, gone), ready(world, kept)} == {"AllSnapshotsAvailable"},
            "both are available",
        )
        world.trigger("answered", "no-such-pod")
        eventually(
            lambda: world.condition(POD_SNAPSHOT_MANUAL_TRIGGERS, "answered", "Triggered"),
            "the answer",
        )
    before = world.get(POD_SNAPSHOT_MANUAL_TRIGGERS, "answered")
    world.admin.delete(POD_SNAPSHOTS, gone, namespace=world.namespace)
    world.pod("no-such-pod")
    world.trigger("open")
    with leading(controller_client, bucket_root):
        eventually(lambda: world.get(POD_SNAPSHOTS, gone) is None, "the deleted one is gone")
        eventually(
            lambda: world.condition(POD_SNAPSHOT_MANUAL_TRIGGERS, "open", "Triggered"),
            "the open trigger is looked at",
        )
    assert len(stored(world, kept)) == 3
    assert stored(world, gone) == []
    assert world.get(POD_SNAPSHOT_MANUAL_TRIGGERS, "answered") == before
    assert ready(world, kept) == "AllSnapshotsAvailable"
