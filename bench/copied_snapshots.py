# SPDX-License-Identifier: Apache-2.0
"""Many snapshots without many saves: copies of one real save, written as the controller.

The trap is an agent that begins to save what it sees unclaimed; it leaves alone what a deleted Pod
left, so the copies say that they are of that kind.
"""

import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

from room import MANAGER, BenchError, Room, until

from backends.clock import SystemClock
from backends.kube.client import POD_SNAPSHOTS, KubeClient
from backends.kube.transport import Transport
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

_READY_LIMIT_S = 180.0


def copy_snapshot(place: Room, saved: Snapshot, policies: Sequence[str]) -> None:
    """Make a copy of a snapshot for each policy named, each a second older than the one before.

    Returns when all are Ready.

    Raises:
        BenchError: the snapshot has no whole record, or some are not Ready in three minutes.
    """
    record = saved.capture
    at = parse_time(record.checkpointed_at) if record else None
    if record is None or record.location is None or at is None:
        raise BenchError(f"{saved.metadata} has no whole record of its save")
    location = record.location
    raw = place.client.get(POD_SNAPSHOTS, saved.metadata.name, namespace=place.namespace)
    kept = ("namespace", "labels", "annotations", "finalizers")
    kubeconfig = place.cluster.kubeconfig.with_name(f"{CONTROLLER_SERVICE_ACCOUNT}.kubeconfig")
    transport = Transport.from_kubeconfig(kubeconfig, user_agent=MANAGER)
    client = KubeClient(transport)
    status = CaptureStatus(client, SystemClock())

    def copy(age_s: int, policy: str) -> None:
        name = str(uuid.uuid4())
        metadata = {"name": name} | {k: raw["metadata"][k] for k in kept}
        metadata["annotations"] |= {TRIGGER_TYPE_ANNOTATION: TriggerType.ON_DELETE}
        body = {k: raw[k] for k in ("apiVersion", "kind")}
        body |= {"metadata": metadata, "spec": {"policyName": policy}}
        made = client.create(POD_SNAPSHOTS, body, field_manager=CONTROLLER_MANAGER)
        older = replace(
            record,
            checkpointed_at=to_micro_time(at - timedelta(seconds=age_s)),
            location=replace(location, path=name),
        )
        status.write(Snapshot.parse(made), older, State.AVAILABLE, "a copy of the benchmark")

    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(copy, range(1, len(policies) + 1), policies))
    finally:
        transport.close()

    def ready() -> bool:
        found = place.client.list(POD_SNAPSHOTS, namespace=place.namespace)[0]
        conditions = [Snapshot.parse(each).conditions.get(READY) for each in found]
        return sum(c is not None and c.is_true for c in conditions) > len(policies)

    until(f"{len(policies) + 1} snapshots Ready", ready, limit_s=_READY_LIMIT_S)
