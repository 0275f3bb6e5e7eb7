# SPDX-License-Identifier: Apache-2.0
"""Changes that no watch shows: an object that came and went between two lists."""

from cluster_world import World, eventually

from backends.clock import SystemClock
from backends.kube.client import POD_SNAPSHOT_MANUAL_TRIGGERS, POD_SNAPSHOTS, KubeClient
from reconciler.cluster_cache import ClusterCache
from reconciler.trigger_controller import TriggerController
from schemas.trigger import ManualTrigger


def test_a_trigger_is_answered_whose_snapshot_was_never_seen(
    controller_client: KubeClient, world: World
) -> None:
    """It looks again by itself, because no event will make it."""
    world.pod()
    world.policy()
    world.storage()
    cache = ClusterCache(controller_client)
    cache.start()
    eventually(cache.is_synced, "the caches are filled")
    cache.stop()  # from here on the view is old
    world.trigger("now")
    look(cache, world)
    controller = TriggerController(controller_client, cache, SystemClock())
    key = (world.namespace, "now")

    first_s = controller.reconcile(key)
    delete_for_good(world)
    without_own_answer_s = controller.reconcile(key)
    look(cache, world)
    last_s = controller.reconcile(key)

    condition = world.condition(POD_SNAPSHOT_MANUAL_TRIGGERS, "now", "Triggered")
    assert "was deleted before it was saved" in condition["message"]
    assert (first_s, without_own_answer_s, last_s) == (1.0, 1.0, None)


def look(cache: ClusterCache, world: World) -> None:
    """Let the view have the trigger as it is now."""
    seen = ManualTrigger.parse(world.get(POD_SNAPSHOT_MANUAL_TRIGGERS, "now") or {})
    cache.triggers.store.put(seen.metadata.key, seen.metadata.uid, seen)


def delete_for_good(world: World) -> None:
    """Delete the one snapshot, finalizer and all."""
    (snapshot,) = world.snapshots()
    name, namespace = snapshot["metadata"]["name"], world.namespace
    freed = {"metadata": {"finalizers": None}}
    world.admin.delete(POD_SNAPSHOTS, name, namespace=namespace)
    world.admin.merge_patch(POD_SNAPSHOTS, name, freed, namespace=namespace, field_manager="tests")
