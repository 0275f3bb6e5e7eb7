# SPDX-License-Identifier: Apache-2.0
"""Caches, leadership and events against a real API server, also over a line that breaks."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cluster_world import World, eventually
from cut_line import CutLine
from kube_apiserver import ApiServer

from backends.clock import SystemClock
from backends.kube.client import EVENTS, LEASES, POD_SNAPSHOT_POLICIES, KubeClient
from backends.kube.errors import ServerUnavailable
from backends.kube.events import EventRecorder
from backends.kube.lease import Heartbeat, LeaderElection
from backends.kube.reflector import Reflector
from schemas.names import NODE_FACTS_ANNOTATION, NODE_LEASE_PREFIX
from schemas.node_facts import NodeFacts
from schemas.policy import Policy
from schemas.snapshot import Compatibility


@pytest.fixture
def line(api_server: ApiServer) -> Iterator[CutLine]:
    """A way to the server that can be cut."""
    made = CutLine(urlsplit(api_server.url).port or 0)
    yield made
    made.close()


@pytest.fixture
def over_the_line(api_server: ApiServer, line: CutLine, tmp_path: Path) -> KubeClient:
    """A client that goes that way."""
    moved = replace(api_server, directory=tmp_path, url=f"https://127.0.0.1:{line.port}")
    return moved.client("admin")


Watching = Callable[..., Reflector[Policy]]


@pytest.fixture
def watching(world: World) -> Iterator[Watching]:
    """Start reflectors of the namespace's policies; they end with the test."""
    started: list[Reflector[Policy]] = []

    def start(client: KubeClient, **kwargs: Any) -> Reflector[Policy]:  # noqa: ANN401 - as Reflector's
        reflector = Reflector(
            client,
            POD_SNAPSHOT_POLICIES,
            project=Policy.parse,
            namespace=world.namespace,
            **kwargs,
        )
        started.append(reflector)
        return reflector

    yield start
    for reflector in started:
        reflector.stop()


def names(reflector: Reflector[Policy]) -> set[str]:
    """Return the names in a cache."""
    return {p.metadata.name for p in reflector.store.items()}


def remove(world: World, name: str) -> None:
    """Delete a policy."""
    world.admin.delete(POD_SNAPSHOT_POLICIES, name, namespace=world.namespace)


# -- caches


def test_a_cache_follows_the_server(world: World, watching: Watching) -> None:
    """What was there, what comes, what changes and what goes; each told once."""
    world.policy("before")
    told: list[tuple[str, str]] = []

    def tell(old: Policy | None, new: Policy | None) -> None:
        kind = "new" if old is None else "gone" if new is None else "changed"
        told.append((kind, (new or old or pytest.fail("told nothing")).metadata.name))

    reflector = watching(world.admin, on_change=tell)
    reflector.start()
    assert reflector.synced.wait(10)
    assert names(reflector) == {"before"}
    made = world.policy("later")
    eventually(lambda: names(reflector) == {"before", "later"}, "the new policy")
    found = reflector.store.by_uid(made["metadata"]["uid"])
    assert found is not None
    assert found.metadata.name == "later"
    world.admin.merge_patch(
        POD_SNAPSHOT_POLICIES,
        "later",
        {"spec": {"storageConfigName": "other"}},
        namespace=world.namespace,
        field_manager="user",
    )
    eventually(
        lambda: (
            (p := reflector.store.get(world.namespace, "later")) is not None
            and p.storage_config_name == "other"
        ),
        "the change",
    )
    remove(world, "before")
    eventually(lambda: names(reflector) == {"later"}, "the delete")
    assert [t for t in told if t[1] == "before"] == [("new", "before"), ("gone", "before")]
    assert next(t for t in told if t[1] == "later") == ("new", "later")
    assert reflector.seconds_since_contact() < 10


def test_what_happened_while_the_line_was_cut_is_not_lost(
    world: World, watching: Watching, line: CutLine, over_the_line: KubeClient
) -> None:
    """A delete, a creation, and a name that belongs to another object now."""
    for name in ("goes", "stays", "again"):
        world.policy(name)
    gone: list[str] = []
    reflector = watching(
        over_the_line,
        on_change=lambda old, new: gone.append(old.metadata.uid) if new is None else None,
    )
    reflector.start()
    assert reflector.synced.wait(10)
    line.cut()
    remove(world, "goes")
    remove(world, "again")
    uid = world.policy("again")["metadata"]["uid"]
    world.policy("comes")
    line.mend()
    eventually(lambda: names(reflector) == {"stays", "again", "comes"}, "the cache caught up")
    eventually(lambda: reflector.store.by_uid(uid), "the new object under the old name")
    assert len(gone) == 2


def test_a_version_that_is_too_old_leads_to_a_new_list(world: World, watching: Watching) -> None:
    """410: what went meanwhile is found by comparing the list with the store."""
    world.policy("there")
    reflector = watching(world.admin)
    ghost = Policy.parse(world.policy("ghost"))
    remove(world, "ghost")
    reflector.store.put(ghost.metadata.key, ghost.metadata.uid, ghost)
    reflector._version = "1"
    reflector.start()
    eventually(lambda: names(reflector) == {"there"}, "the ghost is gone")


def test_an_object_that_cannot_be_read_does_not_blind_the_cache(
    world: World, watching: Watching
) -> None:
    """The others stay visible."""

    def project(obj: dict[str, Any]) -> Policy:
        if obj["metadata"]["name"] == "bad":
            raise KeyError("spec")
        return Policy.parse(obj)

    world.policy("bad")
    world.policy("good")
    reflector = watching(world.admin)
    reflector._project = project
    reflector.start()
    assert reflector.synced.wait(10)
    world.policy("later")
    eventually(lambda: names(reflector) == {"good", "later"}, "the readable ones")


def test_a_failing_listener_ends_no_watch(world: World, watching: Watching) -> None:
    """A bug in one controller must not freeze the caches of all."""

    def fail(old: Policy | None, new: Policy | None) -> None:
        raise RuntimeError("bug")

    reflector = watching(world.admin, on_change=fail)
    reflector.start()
    assert reflector.synced.wait(10)
    world.policy("a")
    world.policy("b")
    eventually(lambda: names(reflector) == {"a", "b"}, "both")


def test_a_stopped_watch_ends_at_once(world: World, watching: Watching) -> None:
    """A quiet stream must not hold the process."""
    reflector = watching(world.admin)
    reflector.start()
    assert reflector.synced.wait(10)
    eventually(lambda: reflector._stream is not None, "the watch is open")
    reflector.stop()
    assert not reflector._thread.is_alive()


def test_a_server_that_is_away_is_told_in_time(line: CutLine, over_the_line: KubeClient) -> None:
    """Three tries, then the error that callers wait on."""
    line.cut()
    with pytest.raises(ServerUnavailable):
        over_the_line.list(POD_SNAPSHOT_POLICIES)


# -- leadership

Electing = Callable[..., tuple[LeaderElection, threading.Event]]


@pytest.fixture
def electing(world: World) -> Iterator[Electing]:
    """Let replicas stand for the namespace's lease; they end with the test."""
    started: list[LeaderElection] = []

    def start(client: KubeClient, identity: str) -> tuple[LeaderElection, threading.Event]:
        lost = threading.Event()
        election = LeaderElection(
            client,
            namespace=world.namespace,
            name="leader",
            identity=identity,
            on_started=lambda: None,
            on_stopped=lost.set,
            clock=SystemClock(),
            lease_duration_s=2.0,
            renew_deadline_s=1.0,
            retry_period_s=0.1,
        )
        started.append(election)
        election.start()
        return election, lost

    yield start
    for election in started:
        election.stop()


def holder(world: World) -> str:
    """Return who holds the lease."""
    found: str = (world.get(LEASES, "leader") or {"spec": {}})["spec"].get("holderIdentity", "")
    return found


def test_one_leads_and_gives_the_lease_back(world: World, electing: Electing) -> None:
    """The next one need not wait for it to run out."""
    first, lost = electing(world.admin, "a")
    eventually(lambda: first.is_leader, "a leads")
    second, _ = electing(world.admin, "b")
    before = (world.get(LEASES, "leader") or {})["spec"]["renewTime"]
    eventually(
        lambda: (world.get(LEASES, "leader") or {})["spec"]["renewTime"] != before, "a renews"
    )
    assert (first.is_leader, second.is_leader, holder(world)) == (True, False, "a")
    first.stop()
    eventually(lambda: second.is_leader, "b leads")
    assert holder(world) == "b"
    assert not first.is_leader
    assert not lost.is_set()


def test_a_leader_that_is_cut_off_stops_before_another_starts(
    world: World, electing: Electing, line: CutLine, over_the_line: KubeClient
) -> None:
    """Its renewal deadline is shorter than what the others wait."""
    first, lost = electing(over_the_line, "a")
    eventually(lambda: first.is_leader, "a leads")
    second, _ = electing(world.admin, "b")
    line.cut()
    assert lost.wait(10)
    assert not first.is_leader
    assert not second.is_leader
    eventually(lambda: second.is_leader, "b leads")
    assert holder(world) == "b"
    assert (world.get(LEASES, "leader") or {})["spec"]["leaseTransitions"] == 1
    line.mend()


def test_a_heartbeat_says_what_a_node_can_restore(
    agent_client: KubeClient, admin: KubeClient, system_namespace: str
) -> None:
    """With the agent's own rights; the controller reads it back."""
    facts = NodeFacts("node-9", Compatibility(runsc_version="r", cpu_features=("avx",)))
    heart = Heartbeat(
        agent_client,
        namespace=system_namespace,
        name=f"{NODE_LEASE_PREFIX}node-9",
        holder="agent-9",
        annotations=lambda: {NODE_FACTS_ANNOTATION: facts.to_annotation()},
        period_s=10,
        clock=SystemClock(),
    )
    heart.beat()
    lease = admin.get(LEASES, f"{NODE_LEASE_PREFIX}node-9", namespace=system_namespace)
    found = NodeFacts.parse(lease)
    assert (found.node, found.compatibility) == ("node-9", facts.compatibility)
    assert abs(found.renewed_at_s - SystemClock().now().timestamp()) < 10
    heart.beat()


# -- events


def test_the_same_event_again_raises_a_count(world: World, agent_client: KubeClient) -> None:
    """Found by the involved object, as the contract's own check does."""
    pod = world.pod()
    regarding = {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": world.namespace,
        "name": "web-0",
        "uid": pod["metadata"]["uid"],
    }
    recorder = EventRecorder(agent_client, component="podsnap-agent", instance="node-1")
    recorder.start()
    for _ in range(3):
        recorder.emit(regarding, "Normal", "GKEPodSnapshotting", "saved")
    recorder.emit(regarding, "Warning", "GKEPodSnapshotting", "falling back " + "x" * 2000)
    recorder.stop()
    selector = "involvedObject.name=web-0,reason=GKEPodSnapshotting"
    found, _ = world.admin.list(EVENTS, namespace=world.namespace, field_selector=selector)
    counts = sorted((e["type"], e["count"], len(e["message"])) for e in found)
    assert counts == [("Normal", 3, 5), ("Warning", 1, 1024)]
    assert recorder.dropped == 0


def test_a_server_that_is_away_never_makes_an_emitter_wait(
    world: World, line: CutLine, over_the_line: KubeClient
) -> None:
    """The oldest are dropped and counted."""
    line.cut()
    recorder = EventRecorder(over_the_line, component="c", instance="i")
    regarding = {"kind": "Pod", "namespace": world.namespace, "name": "p", "uid": "u"}
    for n in range(1500):
        recorder.emit(regarding, "Normal", "GKEPodSnapshotting", f"{n}")
    assert recorder.dropped == 500
