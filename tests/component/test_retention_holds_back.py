# SPDX-License-Identifier: Apache-2.0
"""What retention does not delete: a cache may be behind, an agent faster, a clock wrong."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cluster_world import World, eventually
from snapshot_bytes import make_snapshot
from stepped_clock import SteppedClock

from backends.kube.client import POD_SNAPSHOTS, KubeClient
from backends.kube.events import EventRecorder
from reconciler.cluster_cache import ClusterCache
from reconciler.demand_book import DemandBook
from reconciler.metrics import ControllerMetrics
from reconciler.retention_controller import RetentionController
from schemas.names import ACCESS_MANAGER

NAME = "00000000-0000-5000-8000-000000000001"
IDLE = {"retentionConfig": {"lastAccessTimeout": "30d"}}
DAY_S = 86400.0


class JumpingClock(SteppedClock):
    """A wall clock that somebody can set; the other one only goes on."""

    ahead = timedelta()

    def now(self) -> datetime:
        """Return the wall clock as it was set."""
        return super().now() + self.ahead


class RestoredMeanwhile(KubeClient):
    """A connection over which an agent is faster than the controller."""

    def __init__(self, client: KubeClient, world: World) -> None:
        super().__init__(client._transport)
        self.at = ""
        self._world = world

    def list(self, *args: Any, **options: Any) -> tuple[list[dict[str, Any]], str]:  # noqa: ANN401
        """Let a restore happen after the answer."""
        answer = super().list(*args, **options)
        if self.at:
            restored_at(self._world, self._world.admin, self.at)
        return answer


@pytest.fixture
def clock() -> JumpingClock:
    """Time since the snapshots were made."""
    return JumpingClock(datetime(2026, 1, 2, tzinfo=UTC))


@pytest.fixture
def faster(controller_client: KubeClient, world: World) -> RestoredMeanwhile:
    """The controller's connection."""
    return RestoredMeanwhile(controller_client, world)


@pytest.fixture
def cache(controller_client: KubeClient) -> Iterator[ClusterCache]:
    """The controller's caches."""
    filled = ClusterCache(controller_client)
    filled.start()
    eventually(filled.is_synced, "the caches are filled")
    yield filled
    filled.stop()


@pytest.fixture
def keeper(
    faster: RestoredMeanwhile, cache: ClusterCache, clock: JumpingClock
) -> RetentionController:
    """The controller, which looks when it is told to."""
    events = EventRecorder(faster, component="podsnap-controller", instance="tests", clock=clock)
    return RetentionController(
        faster, cache, clock, DemandBook(cache, clock), events, ControllerMetrics()
    )


def restored_at(world: World, client: KubeClient, at: str) -> None:
    """Record a restore, as an agent does."""
    body = world.object("PodSnapshot", NAME, None)
    body["status"] = {"lastAccessTime": at}
    client.apply(
        POD_SNAPSHOTS, body, field_manager=ACCESS_MANAGER, subresource="status", force=True
    )


@pytest.fixture
def key(world: World, agent_client: KubeClient, cache: ClusterCache) -> tuple[str, str]:
    """A policy with a limit, whose snapshot of the first of January is Ready in the cache too."""
    world.make_bucket()
    world.policy(**IDLE)
    made = make_snapshot(world, agent_client, NAME)
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "AllSnapshotsAvailable",
        "message": "",
        "lastTransitionTime": "2026-01-01T10:00:03Z",
    }
    body = world.object("PodSnapshot", NAME, None)
    body["metadata"]["uid"] = made["metadata"]["uid"]
    body["status"] = {"conditions": [ready]}
    world.admin.apply(POD_SNAPSHOTS, body, field_manager="t", subresource="status")
    eventually(lambda: is_cached(cache, world), "the policy and the snapshot are in the cache")
    return (world.namespace, "web")


def is_cached(cache: ClusterCache, world: World) -> bool:
    """Whether the cache has the policy, and the snapshot as Ready."""
    found = cache.snapshots.store.get(world.namespace, NAME)
    policy = cache.policies.store.get(world.namespace, "web")
    return found is not None and "Ready" in found.conditions and policy is not None


def is_going(world: World) -> bool:
    """Whether the deletion of the snapshot was asked for."""
    found = world.get(POD_SNAPSHOTS, NAME)
    return found is None or "deletionTimestamp" in found["metadata"]


def test_what_is_due_is_deleted_and_not_before(
    world: World, keeper: RetentionController, clock: JumpingClock, key: tuple[str, str]
) -> None:
    """Thirty days after the save; until then it looks once an hour."""
    clock.step(29 * DAY_S)
    assert keeper.reconcile(key) == 3600.0
    assert not is_going(world)
    clock.step(2 * DAY_S)
    keeper.reconcile(key)
    assert is_going(world)


def test_a_cache_that_is_behind_deletes_nothing(
    world: World,
    agent_client: KubeClient,
    cache: ClusterCache,
    keeper: RetentionController,
    clock: JumpingClock,
    key: tuple[str, str],
) -> None:
    """A restore that the cache has not seen saves the snapshot."""
    clock.step(31 * DAY_S)
    cache.stop()
    restored_at(world, agent_client, "2026-01-30T00:00:00Z")
    assert keeper.reconcile(key) == 1.0
    assert not is_going(world)


def test_a_restore_between_the_look_and_the_deletion_saves_the_snapshot(
    world: World,
    keeper: RetentionController,
    faster: RestoredMeanwhile,
    clock: JumpingClock,
    key: tuple[str, str],
) -> None:
    """The deletion names the version that was judged."""
    clock.step(31 * DAY_S)
    faster.at = "2026-02-01T00:00:00Z"
    assert keeper.reconcile(key) == 1.0
    assert not is_going(world)


def test_a_clock_that_jumps_deletes_nothing_for_ten_minutes(
    world: World, keeper: RetentionController, clock: JumpingClock, key: tuple[str, str]
) -> None:
    """It may be set right again; if it stays, what is due goes."""
    keeper.reconcile(key)
    clock.ahead = timedelta(days=365)
    assert keeper.reconcile(key) == 600.0
    clock.ahead = timedelta()
    assert keeper.reconcile(key) == 3600.0
    clock.step(3600.0)
    clock.ahead = timedelta(days=365)
    assert keeper.reconcile(key) == 600.0
    assert not is_going(world)
    clock.step(600.0)
    keeper.reconcile(key)
    assert is_going(world)
