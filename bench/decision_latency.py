# SPDX-License-Identifier: Apache-2.0
"""From the runtime's start for a sandbox's ``create`` to its decision being on disk.

Asked again and again for one Pod that was really restored: each answer is a whole decision by the
live agent (matching, image in the node's cache), and the record that the runtime writes is checked.
Its namespace has 200 snapshots, all of which fit and have to be judged: copies of one real save
that seem a little older, written as the controller, since nobody else may. The trap is an agent
that begins to save what it sees unclaimed; it leaves alone what a deleted Pod left.

It covers more than the target asks: also the interpreter's start, the spec's rewriting and the step
into runsc.
"""

import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from figure import Figure, Target
from room import MANAGER, SAVE_LIMIT_S, BenchError, Room, counter_spec, room, until
from runtime_calls import NOTHING, Case, RuntimeCalls, bundle_of, global_flags, spec_text

from backends.clock import SystemClock
from backends.kube.client import POD_SNAPSHOTS, KubeClient
from backends.kube.transport import Transport
from localcluster.cluster import LocalCluster
from localcluster.node import RUNTIME_STATE
from nodeexec.capture_status import CaptureStatus
from schemas.instants import parse_time, to_micro_time
from schemas.names import (
    CONTROLLER_MANAGER,
    CONTROLLER_SERVICE_ACCOUNT,
    READY,
    TRIGGER_TYPE_ANNOTATION,
)
from schemas.policy import TriggerType
from schemas.snapshot import Snapshot
from statemachine.snapshot import State

ROUNDS = 200
SNAPSHOTS = 200
_RECORD = "podsnap.json"


def measure(cluster: LocalCluster, say: Callable[[str], None]) -> list[Figure]:
    """Restore a Pod for real, then put the question of its sandbox again."""
    calls = RuntimeCalls(cluster)
    with room(cluster, "decision") as place:
        place.add_policy()
        place.seed("seed", counter_spec())
        saved = place.save("seed")
        _copy(place, saved, SNAPSHOTS - 1)
        say(f"{SNAPSHOTS} snapshots in the namespace")
        place.create_pod("restored", counter_spec())
        seen = place.wait_pod("restored", "restored", lambda o: o.is_restored)
        sandbox = place.container_ids("restored")[0]
        bundle = bundle_of(sandbox)
        record = bundle / _RECORD
        arguments = [
            *global_flags(bundle, seen.pod.metadata),
            *("create", f"--bundle={bundle}", f"--pid-file={bundle / 'init.pid'}", sandbox),
        ]
        calls.copy()
        case = Case(
            name="create",
            variants={
                "runtime": [str(calls.copied), *arguments],
                "nothing": [str(NOTHING), *arguments],
            },
            files={str(bundle / "config.json"): spec_text(place.spec_of(sandbox))},
            # The note of a restore that has not proved itself yet: the next sandbox starts cold.
            remove=tuple(
                str(RUNTIME_STATE / notes / seen.pod.metadata.uid) for notes in ("attempts", "cold")
            ),
            keep=(str(record),),
        )
        timed = calls.run([case], rounds=ROUNDS)[0]
    decided = json.loads(timed.left.get(str(record), "{}"))
    if (decided.get("restore") or {}).get("snapshot") != saved.metadata.name:
        raise BenchError(f"the last decision is not the expected restore: {decided or 'no record'}")
    say(f"{ROUNDS} decisions to restore {saved.metadata.name}")
    return [
        Figure.of(
            timed.ms["runtime"],
            part="decision",
            name="sandbox create to decision",
            unit="ms",
            target=Target(limit=20, p99_limit=100),
            covers=(
                f"among {SNAPSHOTS} snapshots that fit: the runtime's process from spawn, through "
                "the agent's answer and the written record, to the end of a program that does "
                "nothing in runsc's place"
            ),
        ),
        Figure.of(
            timed.ms["nothing"],
            part="decision",
            name="the program that does nothing",
            unit="ms",
            covers="what of the number above is the start of any process",
        ),
    ]


def _copy(place: Room, saved: Snapshot, count: int) -> None:
    """Make copies of a snapshot that are as usable, and wait until they are Ready."""
    record = saved.capture
    at = parse_time(record.checkpointed_at) if record else None
    if record is None or record.location is None or at is None:
        raise BenchError(f"{saved.metadata} has no whole record of its save")
    raw = place.client.get(POD_SNAPSHOTS, saved.metadata.name, namespace=place.namespace)
    kept = ("namespace", "labels", "annotations", "finalizers")
    kubeconfig = place.cluster.kubeconfig.with_name(f"{CONTROLLER_SERVICE_ACCOUNT}.kubeconfig")
    transport = Transport.from_kubeconfig(kubeconfig, user_agent=MANAGER)
    try:
        client = KubeClient(transport)
        status = CaptureStatus(client, SystemClock())
        for age_s in range(1, count + 1):
            name = str(uuid.uuid4())
            body = {k: raw[k] for k in ("apiVersion", "kind", "spec")}
            body["metadata"] = {"name": name} | {k: raw["metadata"][k] for k in kept}
            body["metadata"]["annotations"][TRIGGER_TYPE_ANNOTATION] = TriggerType.ON_DELETE
            made = client.create(POD_SNAPSHOTS, body, field_manager=CONTROLLER_MANAGER)
            older = replace(
                record,
                checkpointed_at=to_micro_time(at - timedelta(seconds=age_s)),
                location=replace(record.location, path=name),
            )
            status.write(Snapshot.parse(made), older, State.AVAILABLE, "a copy of the benchmark")
    finally:
        transport.close()

    def ready() -> bool:
        found = place.client.list(POD_SNAPSHOTS, namespace=place.namespace)[0]
        conditions = [Snapshot.parse(each).conditions.get(READY) for each in found]
        return sum(c is not None and c.is_true for c in conditions) > count

    until(f"{count + 1} snapshots Ready", ready, limit_s=SAVE_LIMIT_S)
