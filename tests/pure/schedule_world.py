# SPDX-License-Identifier: Apache-2.0
"""One snapshot and all who touch it: two controllers that both lead, and an agent on each node.

What happens to them, and when, is a schedule of moves (interleaving.py).
"""

import itertools
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, cast

from api_objects import NODE, pod_object
from interleaving import Interleaving, Move
from interrupted_programs import (
    CLUSTER,
    NAME,
    NAMESPACE,
    AgentProgram,
    ControllerProgram,
    Program,
)
from modelled_surroundings import ModelledApi, ModelledBucket, Object, write_image

from backends.kube.errors import NotFound
from nodeexec.sandboxes import DECISION_FILE, PreparedSandbox, sandbox_of_pod
from nodeexec.settings import AgentSettings
from nodeexec.workload_saves import COMPLETE
from policies.distill import distill
from policies.identity import automatic_identity
from policies.new_snapshots import automatic_snapshot, manual_snapshot
from schemas.instants import to_micro_time
from schemas.metadata import Metadata
from schemas.names import (
    NODE_FACTS_ANNOTATION,
    NODE_LEASE_PREFIX,
    QUARANTINE_ANNOTATION,
    QUARANTINE_LIFTED,
    SYSTEM_NAMESPACE,
)
from schemas.node_facts import NodeFacts
from schemas.pod import Pod
from schemas.policy import Policy, TriggerType
from schemas.snapshot import Snapshot
from schemas.trigger import ManualTrigger

NODES: Final = ("node-1", "node-2")
_MOST_LOOKS: Final = 30
_STEPS_S: Final = (1.0, 16.0, 35.0, 61.0)


class World(Interleaving):
    """Everything, and what happens to it."""

    def __init__(self, directory: Path, trigger: TriggerType, moves: Sequence[Move]) -> None:
        """Begin with a PodSnapshot that was just created, and with everything that it needs."""
        super().__init__(moves, MOVES)
        self.now_s = 0.0
        self.trigger = trigger
        self.acting: list[Program] = []
        self.damaged: set[str] = set()
        self.unwanted: set[str] = set()
        self.gone: set[str] = set()
        self.leaving: set[str] = set()
        self.bucket = ModelledBucket(lambda: self.instant().timestamp())
        self.api = ModelledApi(self._versioned)
        self.on_version: Callable[[Snapshot | None, Snapshot | None], None] = lambda *_: None
        self._directory = directory
        self.settings = {node: self._settings(node) for node in NODES}
        self._uids = itertools.count(1)
        self._ticks = itertools.count(1)
        self.make_storage()
        self.make_policy()
        for node in NODES:
            self.make_pod(node)
            self.publish_node(node)
        self.make_snapshot()
        self.controllers = [ControllerProgram(self, n) for n in range(2)]
        self.agents = [AgentProgram(self, node) for node in NODES]

    # -- time, and whose turn it is

    def instant(self) -> datetime:
        """Return the right time; never the same twice, so that a record names who wrote it."""
        passed = timedelta(seconds=self.now_s, microseconds=next(self._ticks))
        return datetime(2026, 1, 1, 12, tzinfo=UTC) + passed

    def settle(self) -> None:
        """Mend what can be mended, and let one controller and the agents do what they still do."""
        self.forget()
        self.api.fault, self.bucket.is_broken, self.bucket.is_away = "", False, False
        self.controllers[0].is_alive = False
        for node in self.leaving:
            self.delete_pod(node)
        programs = [self.restart(p) for p in (self.controllers[1], *self.agents)]
        for _ in range(12):
            for program in programs * 3:
                self.catch_up(program)
            self.now_s += 15
            for agent in self.agents:
                agent.act(agent.beat)
                agent.act(agent.scan)
        programs[0].deliver_all()

    def catch_up(self, program: Program) -> None:
        """Let a program see everything and do all that is to be done now, at one go."""
        with self.uninterrupted():
            for _ in range(_MOST_LOOKS):
                if program.is_alive:
                    program.deliver_all()
                if not program.act(program.work):
                    return
        raise AssertionError("it looks again and again at once, and never comes to rest")

    def program(self, number: int) -> Program:
        """Return a controller (even) or an agent (odd)."""
        return (self.controllers if number % 2 == 0 else self.agents)[number // 2 % 2]

    def restart(self, program: Program) -> Program:
        """Start a program anew, if it is dead and its node is there."""
        if program.is_alive or (isinstance(program, AgentProgram) and program.node in self.gone):
            return program
        if isinstance(program, AgentProgram):
            where = self.agents.index(program)
            self.agents[where] = AgentProgram(self, program.node)
            return self.agents[where]
        where = self.controllers.index(cast("ControllerProgram", program))
        self.controllers[where] = ControllerProgram(self, where)
        return self.controllers[where]

    def pass_time(self, number: int) -> None:
        """Let time pass; agents that live give a sign of life before and after."""
        for passed_s in (0.0, _STEPS_S[number % 4]):
            self.now_s += passed_s
            for agent in self.agents:
                if agent.is_alive:
                    with self.uninterrupted():
                        self.publish_node(agent.node)

    # -- what users and the cluster do

    def live(self) -> Snapshot | None:
        """Return the snapshot as the API server has it."""
        raw = self.api.get("podsnapshots", NAME, NAMESPACE)
        return Snapshot.parse(raw) if raw else None

    def pod(self, node: str) -> Object | None:
        """Return a node's Pod."""
        return self.api.get("pods", f"web-{node}", NAMESPACE)

    def sandbox(self, node: str) -> PreparedSandbox | None:
        """Return the sandbox of a node's Pod."""
        found = self.pod(node)
        uid = found["metadata"]["uid"] if found else ""
        return sandbox_of_pod(self.settings[node].bundles_dir, uid)

    def make_pod(self, node: str) -> None:
        """Create a node's Pod, with the sandbox that the runtime prepared, if there is none."""
        if self.pod(node):
            return
        made = pod_object(f"web-{node}", namespace=NAMESPACE, nodeName=node)
        uid = made["metadata"]["uid"] = f"pod-{next(self._uids)}"
        made["status"]["containerStatuses"] = [
            {"name": "main", "containerID": f"containerd://container-{uid}"}
        ]
        settings = self.settings[node]
        bundle = settings.bundles_dir / f"sandbox-{uid}"
        bundle.mkdir(parents=True)
        workload = ""
        if self.trigger is TriggerType.WORKLOAD:
            directory = settings.workload_dir / bundle.name
            directory.mkdir(parents=True)
            workload = str(directory)
        record = {
            "sandbox": bundle.name,
            "pod": {"uid": uid, "name": made["metadata"]["name"], "namespace": NAMESPACE},
            "policy": "web",
            "workload_dir": workload,
        }
        (bundle / DECISION_FILE).write_text(json.dumps(record), encoding="utf-8")
        self.api.put("pods", made)

    def delete_pod(self, node: str) -> None:
        """Delete a node's Pod."""
        with suppress(NotFound):
            self.api.delete("pods", f"web-{node}", NAMESPACE)

    def ask_for_save(self, node: str) -> None:
        """Let the workload of a node's Pod save itself, once."""
        sandbox = self.sandbox(node)
        directory = sandbox.workload_dir if sandbox else None
        if directory is not None and directory.is_dir() and not any(directory.iterdir()):
            write_image(directory, NODE.runsc_version, content=sandbox.id if sandbox else "")
            (directory / COMPLETE).touch()
            self.agents[NODES.index(node)].scan()

    def make_policy(self) -> None:
        """Create the policy, if there is none."""
        if self.api.get("podsnapshotpolicies", "web", NAMESPACE) is None:
            metadata = {
                "name": "web",
                "namespace": NAMESPACE,
                "uid": f"policy-{next(self._uids)}",
                "generation": 1,
            }
            spec = {
                "selector": {"matchLabels": {"app": "web"}},
                "storageConfigName": "store",
                "triggerConfig": {"type": str(self.trigger)},
            }
            self.api.put("podsnapshotpolicies", {"metadata": metadata, "spec": spec})

    def make_storage(self) -> None:
        """Create the storage config, if there is none."""
        if self.api.get("podsnapshotstorageconfigs", "store") is None:
            spec = {"snapshotStorageConfig": {"gcs": {"bucket": "bucket", "path": "snapshots"}}}
            metadata = {"name": "store", "uid": f"store-{next(self._uids)}", "generation": 1}
            self.api.put("podsnapshotstorageconfigs", {"metadata": metadata, "spec": spec})

    def delete(self, plural: str, name: str) -> None:
        """Delete an object, if it is there."""
        namespace = "" if plural == "podsnapshotstorageconfigs" else NAMESPACE
        with suppress(NotFound):
            self.api.delete(plural, name, namespace)

    def make_snapshot(self) -> None:
        """Create the PodSnapshot, if its name is free and there is what it is made from."""
        raw = self.pod("node-1")
        policy = self.api.get("podsnapshotpolicies", "web", NAMESPACE)
        if self.api.get("podsnapshots", NAME, NAMESPACE) or raw is None or policy is None:
            return
        pod, governing = Pod.parse(raw), Policy.parse(policy)
        now = to_micro_time(self.instant())
        match self.trigger:
            case TriggerType.MANUAL:
                by = ManualTrigger(Metadata("now", NAMESPACE, "uid-now"), pod.metadata.name)
                body = manual_snapshot(NAME, pod, governing, by=by, now=now)
            case TriggerType.ON_DELETE:
                return  # the agent makes it
            case _:
                identity = automatic_identity(governing, distill(pod), {}, NODE)
                body = automatic_snapshot(NAME, pod, governing, identity=identity, now=now)
        body["metadata"]["uid"] = f"snapshot-{next(self._uids)}"
        self.api.put("podsnapshots", body)

    def lift_quarantine(self) -> None:
        """Annotate the snapshot as a person would."""
        raw = self.api.get("podsnapshots", NAME, NAMESPACE)
        if raw is not None:
            patch = {"metadata": {"annotations": {QUARANTINE_ANNOTATION: QUARANTINE_LIFTED}}}
            path = f"/apis/group/v1/namespaces/{NAMESPACE}/podsnapshots/{NAME}"
            self.api.handle("PATCH", path, {"fieldManager": "user"}, patch, "")

    def publish_node(self, node: str) -> None:
        """Write what an agent writes to its Lease."""
        facts = NodeFacts(node, NODE)
        lease = {
            "metadata": {
                "name": f"{NODE_LEASE_PREFIX}{node}",
                "namespace": SYSTEM_NAMESPACE,
                "uid": f"lease-{node}",
                "annotations": {NODE_FACTS_ANNOTATION: facts.to_annotation()},
            },
            "spec": {"renewTime": to_micro_time(self.instant())},
        }
        self.api.put("leases", lease)

    def _settings(self, node: str) -> AgentSettings:
        root = self._directory / node
        made = AgentSettings(
            node_name=node,
            kubeconfig=root,
            state_dir=root / "state",
            socket=root,
            runsc=root,
            runsc_root=root / "runsc",
            runsc_config=root,
            kubelet_root=root,
            ctr=root,
            containerd_address=root,
            containerd_state=root / "containerd",
            bucket_root=root,
            cluster_id=CLUSTER,
            runtime_state_dir=root / "run",
        )
        made.staging_dir.mkdir(parents=True)
        return made

    def _versioned(self, plural: str, before: Object | None, after: Object | None) -> None:
        if plural == "podsnapshots":
            self.on_version(
                Snapshot.parse(before) if before else None,
                Snapshot.parse(after) if after else None,
            )


def _kill(world: World, number: int) -> None:
    world.program(number).is_alive = False


def _lose_node(world: World, number: int) -> None:
    if number % 4 == 0:  # else too few saves come to an end
        agent = world.agents[number % 8 // 4]
        agent.is_alive = False
        world.gone.add(agent.node)


def _kill_in_the_act(world: World, _: int) -> None:
    if world.acting:
        world.acting[-1].is_alive = False


def _delete_snapshot(world: World, _: int) -> None:
    found = world.live()
    world.unwanted.add(found.metadata.uid if found else "")
    world.delete("podsnapshots", NAME)


def _part(world: World, number: int) -> None:
    agent = _agent(world, number)
    if world.trigger is TriggerType.ON_DELETE:
        world.leaving.add(agent.node)
        agent.act(agent.part)


def _agent(world: World, number: int) -> AgentProgram:
    return world.agents[number % 2]


def _jump(world: World, number: int) -> None:
    world.program(number).clock.off_s += 3600 if number > 3 else -3600


def _break(world: World, number: int) -> None:
    world.bucket.is_broken, world.bucket.is_away = number % 4 == 0, number % 4 == 1


def _fault(world: World, number: int) -> None:
    world.api.fault = ("refused", "lost")[number % 2]


def _work(world: World, number: int) -> None:
    program = world.program(number)
    program.act(program.work)


def _go_on(world: World, number: int) -> None:
    program = world.program(number)
    if program.is_alive:
        program.deliver_all()
        program.act(program.work)


def _fail_runsc(world: World, number: int) -> None:
    _agent(world, number).runsc.fails = True


def _tell_failed(world: World, number: int) -> None:
    agent = _agent(world, number)
    agent.act(lambda: agent.tell_failed_restore(number))


# What may happen, by name; the number says to whom, which or how much.
MOVES: Final[dict[str, Callable[[World, int], object]]] = {
    "goes on": _go_on,
    "catches up": lambda w, n: w.catch_up(w.program(n)),
    "works": _work,
    "sees all": lambda w, n: (p := w.program(n)).is_alive and p.deliver_all(),
    "sees one change": lambda w, n: (p := w.program(n)).is_alive and p.deliver(n),
    "sees old changes again": lambda w, n: (p := w.program(n)).is_alive and p.repeat(n + 1),
    "misses changes": lambda w, n: (p := w.program(n)).is_alive and p.skip(),
    "is killed": _kill,
    "whoever acts is killed": _kill_in_the_act,
    "a node is lost": _lose_node,
    "the dead start": lambda w, _: [w.restart(p) for p in (*w.controllers, *w.agents)],
    "scans": lambda w, n: _agent(w, n).scan(),
    "time passes": World.pass_time,
    "a clock jumps": _jump,
    "the workload asks": lambda w, n: w.ask_for_save(NODES[n % 2]),
    "the Pod is saved and goes": _part,
    "runsc fails": _fail_runsc,
    "an answer is bad": _fault,
    "the bucket": _break,
    "bytes are found damaged": lambda w, n: (a := _agent(w, n)).act(a.tell_damage),
    "a restore fails": _tell_failed,
    "the quarantine is lifted": lambda w, _: w.lift_quarantine(),
    "the snapshot is deleted": _delete_snapshot,
    "a snapshot is made": lambda w, _: w.make_snapshot(),
    "the policy is deleted": lambda w, _: w.delete("podsnapshotpolicies", "web"),
    "a policy is made": lambda w, _: w.make_policy(),
    "the storage config is deleted": lambda w, _: w.delete("podsnapshotstorageconfigs", "store"),
    "a storage config is made": lambda w, _: w.make_storage(),
    "the Pod is deleted": lambda w, n: w.delete_pod(NODES[n % 2]),
    "a Pod is made": lambda w, n: w.make_pod(NODES[n % 2]),
}
