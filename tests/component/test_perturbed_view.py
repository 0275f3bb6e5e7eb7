# SPDX-License-Identifier: Apache-2.0
"""A controller whose view is late, has holes or goes back in time ends where any other one does."""

import random
import threading
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_world import World, eventually, leading, resource_of
from kube_apiserver import ApiServer
from snapshot_bytes import make_snapshot, stored

from backends.kube.client import (
    POD_SNAPSHOT_MANUAL_TRIGGERS,
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    POD_SNAPSHOTS,
    PODS,
    KubeClient,
    Resource,
)
from backends.kube.errors import Gone
from backends.kube.transport import Stream, Transport
from reconciler.manager import Manager
from schemas.names import CAPTURE_MANAGER, DAMAGE_MANAGER
from schemas.snapshot import CaptureRecord, Failure

KINDS = (
    POD_SNAPSHOTS,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_MANUAL_TRIGGERS,
)
_LONGEST_DELAY_S = 0.3
# After each the reflector waits longer.
_SKIPS = 4


class PerturbedStream:
    """A watch whose events come late, come again, or are lost until the next list."""

    def __init__(self, stream: Stream, view: "PerturbedClient", resource: Resource) -> None:
        """Take over a watch."""
        self._stream = stream
        self._view = view
        self._resource = resource
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield events as they come, or worse."""
        before: deque[dict[str, Any]] = deque(maxlen=6)
        for event in self._stream:
            if event["type"] in {"BOOKMARK", "ERROR"}:
                yield event
                continue
            how = self._view.choose(self._resource)
            if how == "late":
                self._stopped.wait(self._view.delay_s())
            elif how == "lost":
                raise Gone("made by a test: this event and those until the next list are lost")
            elif how == "again":
                yield from before  # as from a server that is behind
            before.append(event)
            yield event

    def stop(self) -> None:
        """End the watch."""
        self._stopped.set()
        self._stream.stop()


class PerturbedClient(KubeClient):
    """A client whose watches of podsnap's kinds and of Pods are perturbed until ``heal``."""

    def __init__(self, transport: Transport, seed: int) -> None:
        """Choose by a seed."""
        super().__init__(transport)
        self.happened: Counter[str] = Counter()
        self._random = random.Random(seed)  # noqa: S311 - a schedule, not a secret
        self._skips: Counter[str] = Counter()
        self._is_healed = False
        self._guard = threading.Lock()

    def watch(self, resource: Resource, **how: Any) -> Stream:  # noqa: ANN401 - passed through
        """Open a watch that is perturbed."""
        stream = super().watch(resource, **how)
        if resource not in {*KINDS, PODS}:
            return stream
        return PerturbedStream(stream, self, resource)  # type: ignore[return-value] # same shape

    def heal(self) -> None:
        """Let every further event pass."""
        self._is_healed = True

    def choose(self, resource: Resource) -> str:
        """Say what becomes of the next event."""
        with self._guard:
            how = self._random.choice(("late", "again", "lost", *["as it is"] * 3))
            if how == "lost":
                self._skips[resource.plural] += 1
            if self._is_healed or self._skips[resource.plural] > _SKIPS:
                how = "as it is"
            self.happened[how] += 1
            return how

    def delay_s(self) -> float:
        """Say how late the next event is."""
        with self._guard:
            return self._random.uniform(0, _LONGEST_DELAY_S)


def new_world(admin: KubeClient, bucket_root: Path) -> World:
    """Make a namespace."""
    namespace = f"t{uuid.uuid4().hex[:10]}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    admin.create(resource_of(body), body, field_manager="tests")
    return World(admin, namespace, bucket_root / f"bucket-{namespace}")


# -- what users and agents do


def live_through(world: World, agent: KubeClient) -> dict[str, str]:
    """Create, change and delete objects of every kind; returns what each snapshot's name means.

    Nothing is waited for but what the next request needs.
    """
    world.make_bucket()
    world.policy()
    world.policy("other", selector={"matchLabels": {"app": "other"}})
    world.policy("stray", selector={"matchLabels": {"app": "stray"}}, storageConfigName="nowhere")
    world.storage()
    for pod in ("web-0", "web-1", "web-2", "web-3"):
        world.pod(pod)
    stored_ones = {str(uuid.uuid4()): what for what in ("kept", "gone", "damaged", "made again")}
    named = {what: name for name, what in stored_ones.items()}
    for name in stored_ones:
        make_snapshot(world, agent, name)
    delete(world, POD_SNAPSHOTS, named["gone"])
    delete(world, POD_SNAPSHOTS, named["made again"])
    damage = {"damage": {"message": "pages.img"}}
    write(world, agent, named["damaged"], damage, DAMAGE_MANAGER)
    delete(world, POD_SNAPSHOT_POLICIES, "web")
    world.policy()
    eventually(lambda: world.get(POD_SNAPSHOTS, named["made again"]) is None, "the name is free")
    make_snapshot(world, agent, named["made again"])
    for trigger, target in (("fails", "web-0"), ("loses its Pod", "web-1"), ("is undone", "web-2")):
        world.trigger(trigger.replace(" ", "-").lower(), target)
    world.trigger("names-nobody", "nobody")
    delete(world, POD_SNAPSHOT_POLICIES, "other")
    failure = Failure("RunscFailed", "runsc checkpoint: exit status 128")
    record = CaptureRecord(node="node-1", attempt=1, failure=failure)
    failing = made_by(world, "fails")
    write(world, agent, failing, {"capture": record.to_object()}, CAPTURE_MANAGER)
    losing, undone = made_by(world, "loses-its-pod"), made_by(world, "is-undone")
    delete(world, PODS, "web-1")
    delete(world, POD_SNAPSHOTS, undone)
    world.trigger("waits", "web-3")
    changed = {"spec": {"storageConfigName": world.store}}
    world.admin.merge_patch(
        POD_SNAPSHOT_POLICIES, "stray", changed, namespace=world.namespace, field_manager="user"
    )
    waiting = made_by(world, "waits")
    made = {failing: "failing", losing: "losing its Pod", undone: "undone", waiting: "waiting"}
    return stored_ones | made


def delete(world: World, resource: Resource, name: str) -> None:
    """Delete an object of the namespace as a user."""
    world.admin.delete(resource, name, namespace=world.namespace)


def made_by(world: World, trigger: str) -> str:
    """Wait for the snapshot that a trigger names, and return its name."""

    def named() -> str:
        found = (world.get(POD_SNAPSHOT_MANUAL_TRIGGERS, trigger) or {}).get("status") or {}
        return str((found.get("snapshotCreated") or {}).get("name") or "")

    name: str = eventually(named, f"trigger {trigger} names its snapshot")
    return name


def write(world: World, agent: KubeClient, name: str, record: dict[str, Any], manager: str) -> None:
    """Write a part of podsnap's record, as an agent does."""
    body = world.object("PodSnapshot", name, None)
    body["metadata"]["uid"] = (world.get(POD_SNAPSHOTS, name) or {})["metadata"]["uid"]
    body["status"] = {"podsnap": {"version": 1, **record}}
    agent.apply(POD_SNAPSHOTS, body, field_manager=manager, subresource="status")


# -- the end


def end_state(world: World, names: dict[str, str]) -> dict[str, Any]:
    """Return what users see of the namespace, and the bucket, with names that are any run's.

    Of a story only the last state: what lies between is not seen by everybody.
    """

    def plain(text: str) -> str:
        for name, what in (*names.items(), (world.namespace, "NAMESPACE")):
            text = text.replace(name, what)
        return text

    found: dict[str, Any] = {"bucket": sorted(map(plain, stored(world)))}
    for kind in KINDS:
        where = world.namespace if kind.namespaced else None
        for obj in world.admin.list(kind, namespace=where)[0]:
            name, told = obj["metadata"]["name"], obj.get("status") or {}
            if not kind.namespaced and name != world.store:
                continue
            conditions = {
                c["type"]: (c["status"], c["reason"], plain(c["message"]))
                for c in told.get("conditions") or ()
            }
            story = ((told.get("podsnap") or {}).get("control") or {}).get("story") or [{}]
            made = (told.get("snapshotCreated") or {}).get("name") or ""
            state = story[-1].get("state")
            found[f"{kind.kind} {plain(name)}"] = (conditions, state, plain(made))
    return found


def unrest(running: Manager, world: World) -> list[str]:
    """Say what the controller has not seen of this world, or has to do in it.

    Other tests' worlds stand in the same cluster, and theirs may be waiting for something.
    """
    caches = running.cache
    for kind, cache in (
        (POD_SNAPSHOT_POLICIES, caches.policies),
        (POD_SNAPSHOT_MANUAL_TRIGGERS, caches.triggers),
        (POD_SNAPSHOTS, caches.snapshots),
        (PODS, caches.pods),
    ):
        live = {
            (o["metadata"]["uid"], o["metadata"]["resourceVersion"])
            for o in world.admin.list(kind, namespace=world.namespace)[0]
        }
        seen = {
            (o.metadata.uid, o.metadata.resource_version)
            for o in cache.store.items()
            if o.metadata.namespace == world.namespace
        }
        if seen != live:
            return [f"{kind.plural}: seen {seen - live}, live {live - seen}"]
    queues = [c.queue for c in running._controllers]
    busy = [key for q in queues for key in (*q._ready, *q._working_since_s, *q._failures)]
    return [str(key) for key in busy if world.namespace in key or world.store in key]


def run(
    world: World,
    client: KubeClient,
    agent: KubeClient,
    bucket_root: Path,
    is_the_end: Callable[[dict[str, Any]], bool],
) -> dict[str, Any]:
    """Live through it all under one controller; returns where that ended.

    An end that is reached must last: the controller has seen everything and has nothing to do.
    """
    with leading(client, bucket_root) as running:
        names = live_through(world, agent)
        if isinstance(client, PerturbedClient):
            client.heal()
        found: dict[str, Any] = {}

        def ended() -> bool:
            found.clear()
            found.update(end_state(world, names))
            return is_the_end(found) and not unrest(running, world)

        eventually(
            ended, "the end that was meant", lambda: f"{found}, open: {unrest(running, world)}"
        )
        assert end_state(world, names) == found
        return found


# What is left of the snapshots, and what the triggers' authors are told.
STATES = {
    "PodSnapshot kept": "AllSnapshotsAvailable",
    "PodSnapshot made again": "AllSnapshotsAvailable",
    "PodSnapshot damaged": "Obsolete",
    "PodSnapshot failing": "Failed",
    "PodSnapshot losing its Pod": "Failed",
    "PodSnapshot waiting": "Pending",
}
ANSWERS = {
    "fails": "Failed",
    "loses-its-pod": "Failed",
    "is-undone": "Failed",
    "names-nobody": "Failed",
    "waits": "Pending",
}


def is_as_meant(found: dict[str, Any]) -> bool:
    """Whether snapshots, triggers and bucket are where they should end."""
    states = {name: told[1] for name, told in found.items() if name.startswith("PodSnapshot ")}
    answers = {
        name.rpartition(" ")[2]: told[0].get("Triggered", ("", ""))[1]
        for name, told in found.items()
        if "Trigger" in name
    }
    return states == STATES and answers == ANSWERS and len(found["bucket"]) == 9


@pytest.fixture(scope="module")
def undisturbed(
    admin: KubeClient, controller_client: KubeClient, agent_client: KubeClient, bucket_root: Path
) -> dict[str, Any]:
    """Where a controller ends that sees everything at once and in order."""
    world = new_world(admin, bucket_root)
    return run(world, controller_client, agent_client, bucket_root, is_as_meant)


@pytest.mark.parametrize("seed", range(6))
def test_a_perturbed_view_ends_where_an_undisturbed_one_does(
    api_server: ApiServer,
    admin: KubeClient,
    agent_client: KubeClient,
    bucket_root: Path,
    undisturbed: dict[str, Any],
    seed: int,
) -> None:
    """Events that come late, twice or never cost time, and change no end."""
    client = PerturbedClient(api_server.client("controller")._transport, seed)

    run(new_world(admin, bucket_root), client, agent_client, bucket_root, undisturbed.__eq__)

    assert all(client.happened[how] for how in ("late", "again", "lost"))
