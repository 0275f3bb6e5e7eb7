# SPDX-License-Identifier: Apache-2.0
"""A controller whose API server answers badly, who is not alone, or whose clock jumps."""

import gc
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cluster_world import World, eventually
from faulty_gateway import FaultyGateway
from kube_apiserver import ApiServer
from snapshot_bytes import make_snapshot, stored

from backends.clock import Clock, SystemClock
from backends.kube.client import POD_SNAPSHOT_MANUAL_TRIGGERS, POD_SNAPSHOTS, KubeClient
from backends.objects.factory import BucketAccess
from reconciler.manager import Manager, ManagerSettings
from schemas.names import READY
from tests.cluster_scene import eventually as patiently

# What becomes of a connection that ends in the middle of an answer.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
)

# Everything but the lease: losing it ends a controller, and has its own tests.
OURS = "podsnapshot.gke.io"


@pytest.fixture
def gateway(api_server: ApiServer) -> Iterator[FaultyGateway]:
    """A way to the server on which answers go wrong."""
    made = FaultyGateway(api_server)
    yield made
    made.close()
    gc.collect()  # what is broken shows here, not in another test


@pytest.fixture
def through_it(api_server: ApiServer, gateway: FaultyGateway, tmp_path: Path) -> KubeClient:
    """The controller's identity, going that way."""
    return replace(api_server, directory=tmp_path, url=gateway.url).client("controller")


class JumpingClock(SystemClock):
    """The machine's clock, whose wall part somebody sets."""

    def __init__(self) -> None:
        """Begin with the right time."""
        self.off = timedelta()

    def now(self) -> datetime:
        """Return the wall clock as it was set."""
        return super().now() + self.off


def manager(client: KubeClient, bucket_root: Path, clock: Clock | None = None) -> Manager:
    """Return a controller that does nothing yet."""
    settings = ManagerSettings(
        cluster_id="c1", buckets=BucketAccess(bucket_root), identity=uuid.uuid4().hex
    )
    return Manager(settings, client, clock or SystemClock())


@contextmanager
def leading(running: Manager) -> Iterator[Manager]:
    """Run a controller that leads until the end of the block."""
    running.start()
    try:
        patiently("leading", lambda: running.is_leader and running.is_ready(), limit_s=60)
        yield running
    finally:
        running.stop()


def furnish(world: World) -> None:
    """Create what a save needs."""
    world.make_bucket()
    world.storage()
    world.policy()
    world.pod()


def is_under_way(world: World, trigger: str) -> bool:
    """Whether a trigger names the one snapshot that it caused."""
    status = (world.get(POD_SNAPSHOT_MANUAL_TRIGGERS, trigger) or {}).get("status") or {}
    named = (status.get("snapshotCreated") or {}).get("name")
    return [named] == [s["metadata"]["name"] for s in world.snapshots()]


def ready(world: World, name: str) -> str:
    """Return the reason of a snapshot's ``Ready``."""
    return str(world.condition(POD_SNAPSHOTS, name, READY).get("reason"))


# -- bad answers


@pytest.mark.parametrize("how", ["429", "500", "409", "lost", "hang"])
@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
def test_bad_answers_delay_a_save_and_double_nothing(
    world: World,
    gateway: FaultyGateway,
    through_it: KubeClient,
    bucket_root: Path,
    method: str,
    how: str,
) -> None:
    """Two in a row of each kind (one that hangs): one snapshot, named by its trigger."""
    furnish(world)
    with leading(manager(through_it, bucket_root)):
        path = rf"{OURS}/.*{world.namespace}" if method != "GET" else OURS
        gateway.fail(how, method=method, path=path, count=1 if how == "hang" else 2)
        world.trigger("t")
        patiently("the save is under way", lambda: is_under_way(world, "t"), limit_s=60)
        met = gateway.hits
        gateway.heal()

    assert met or method == "GET"  # caches may answer every question


def test_a_watch_that_is_torn_in_the_middle_of_a_line_loses_nothing(
    world: World, gateway: FaultyGateway, through_it: KubeClient, bucket_root: Path
) -> None:
    """Half an object is no object; what came meanwhile is found again."""
    gateway.fail("torn", method="GET", path=rf"{OURS}.*watch=true", count=8)
    with leading(manager(through_it, bucket_root)):
        furnish(world)
        world.trigger("t")
        eventually(lambda: is_under_way(world, "t"), "the save is under way")

    assert gateway.hits


# -- two leaders


def test_two_leaders_for_a_moment_do_nothing_twice(
    world: World, controller_client: KubeClient, agent_client: KubeClient, bucket_root: Path
) -> None:
    """The second leads without the lease: as one that was stopped and does not know yet."""
    furnish(world)
    second = manager(controller_client, bucket_root)
    with leading(manager(controller_client, bucket_root)):
        second.cache.start()
        try:
            second._lead()
            names = [str(uuid.uuid4()) for _ in range(4)]
            for name in names:
                make_snapshot(world, agent_client, name)
            eventually(
                lambda: {ready(world, n) for n in names} == {"AllSnapshotsAvailable"}, "available"
            )
            stories = [world.get(POD_SNAPSHOTS, n) or {} for n in names]
            for name in names:
                world.admin.delete(POD_SNAPSHOTS, name, namespace=world.namespace)
            eventually(lambda: not world.snapshots(), "all are gone")
            world.trigger("t")
            eventually(lambda: is_under_way(world, "t"), "the save is under way")
        finally:
            for controller in second._controllers:
                controller.stop()
            second.cache.stop()

    assert stored(world) == []
    for story in stories:
        states = [e["state"] for e in story["status"]["podsnap"]["control"]["story"]]
        assert len(states) == len(set(states))


# -- time


@pytest.mark.parametrize("hours", [1, -1])
def test_a_wall_clock_that_jumps_ends_no_save_and_no_leadership(
    world: World,
    controller_client: KubeClient,
    agent_client: KubeClient,
    bucket_root: Path,
    hours: int,
) -> None:
    """Waits are counted by the monotonic clock: of the lease, of agents, of tombstones."""
    furnish(world)
    clock = JumpingClock()
    with leading(manager(controller_client, bucket_root, clock)) as running:
        name = str(uuid.uuid4())
        make_snapshot(world, agent_client, name)
        eventually(lambda: ready(world, name) == "AllSnapshotsAvailable", "available")
        world.trigger("before")
        eventually(lambda: is_waiting(world, "before"), "a save that waits for its node")

        clock.off = timedelta(hours=hours)
        world.pod("web-1")
        world.trigger("after", "web-1")
        eventually(lambda: is_waiting(world, "after"), "another one")

        assert running.is_leader
        assert not running.lost_leadership.is_set()
        assert ready(world, name) == "AllSnapshotsAvailable"
        assert is_waiting(world, "before")
        assert len(stored(world, name)) == 3


def is_waiting(world: World, trigger: str) -> bool:
    """Whether a trigger's snapshot exists and nobody gave it up."""
    condition = world.condition(POD_SNAPSHOT_MANUAL_TRIGGERS, trigger, "Triggered")
    label = "gke-pod-snapshot-triggered-by"
    found = [s for s in world.snapshots() if s["metadata"].get("labels", {}).get(label) == trigger]
    reasons = {ready(world, s["metadata"]["name"]) for s in found}
    return bool(condition) and condition["reason"] != "Failed" and reasons == {"AwaitingCheckpoint"}
