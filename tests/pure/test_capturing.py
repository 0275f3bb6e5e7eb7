# SPDX-License-Identifier: Apache-2.0
"""Which Pods may be saved, and what the others are told."""

from dataclasses import replace
from typing import Any

import pytest
from api_objects import pod, policy

from policies.capturing import TriggerInput, may_trigger, restorable, storage_usable
from policies.verdict import Reason
from schemas.conditions import Condition
from schemas.metadata import Metadata
from schemas.names import READY
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.storage_config import Location, StorageConfig

HOOK = {"postStart": {"exec": {"command": ["/x"]}}}


def _containers(*extra: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": f"c{n}", "image": "i", **fields} for n, fields in enumerate(extra)]


REFUSED_SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "an ordinary init container": (
        {"initContainers": [{"name": "setup", "image": "i"}]},
        "init container setup",
    ),
    "a sidecar with a startup probe": (
        {
            "initContainers": [
                {"name": "side", "image": "i", "restartPolicy": "Always", "startupProbe": {"x": 1}}
            ]
        },
        "startup probe on sidecar side",
    ),
    "a postStart hook before the last container": (
        {"containers": _containers({"lifecycle": HOOK}, {})},
        "postStart hook on container c0",
    ),
    "the host's network": ({"hostNetwork": True}, "hostNetwork"),
    "a GPU as a limit": (
        {"containers": _containers({"resources": {"limits": {"nvidia.com/gpu": "1"}}})},
        "a GPU (container c0)",
    ),
    "a GPU as a request": (
        {"containers": _containers({}, {"resources": {"requests": {"amd.com/gpu": "1"}}})},
        "a GPU (container c1)",
    ),
}


@pytest.mark.parametrize("what", REFUSED_SHAPES)
def test_a_pod_that_cannot_be_restored_is_not_saved(what: str) -> None:
    """The reason names the part of the Pod that is in the way."""
    spec, expected = REFUSED_SHAPES[what]
    verdict = restorable(pod(**spec))
    assert [f.reason for f in verdict.findings] == [Reason.NOT_RESTORABLE]
    assert expected in verdict.message


ACCEPTED_SHAPES: dict[str, dict[str, Any]] = {
    "one container": {},
    "a sidecar": {"initContainers": [{"name": "s", "image": "i", "restartPolicy": "Always"}]},
    "a postStart hook on the last container": {"containers": _containers({}, {"lifecycle": HOOK})},
    "a preStop hook anywhere": {
        "containers": _containers({"lifecycle": {"preStop": {"exec": {}}}}, {})
    },
    "a memory limit": {"containers": _containers({"resources": {"limits": {"memory": "1Gi"}}})},
}


@pytest.mark.parametrize("what", ACCEPTED_SHAPES)
def test_an_ordinary_pod_may_be_saved(what: str) -> None:
    """What runsc restores is not refused."""
    assert restorable(pod(**ACCEPTED_SHAPES[what])).usable


def test_every_obstacle_of_a_pod_is_named() -> None:
    """One restart mends all of them."""
    verdict = restorable(pod(hostNetwork=True, initContainers=[{"name": "a", "image": "i"}]))
    assert len(verdict.findings) == 2


# -- triggers


def asked(of: Pod | None, under: Policy | None, target: str = "web-0") -> TriggerInput:
    """Return what a trigger is judged by."""
    return TriggerInput(target=target, pod=of, policy=under, gvisor_classes={"gvisor"})


GOING = replace(pod(), metadata=replace(pod().metadata, deletion_timestamp="2026-01-01T00:00:00Z"))

REFUSED: dict[str, tuple[TriggerInput, Reason, str]] = {
    "no target": (asked(None, None, target=""), Reason.POD_NOT_FOUND, "set spec.targetPod"),
    "a missing Pod": (
        asked(None, None),
        Reason.POD_NOT_FOUND,
        "Pod web-0 does not exist in this namespace; name a running Pod",
    ),
    "a Pod that is being deleted": (
        asked(GOING, policy()),
        Reason.POD_NOT_FOUND,
        "is being deleted",
    ),
    "an ordinary Pod": (
        asked(pod(runtimeClassName=None), policy()),
        Reason.NOT_IN_GVISOR,
        "runtimeClassName is not set); set runtimeClassName: gvisor",
    ),
    "a Pod of another RuntimeClass": (
        asked(pod(runtimeClassName="kata"), policy()),
        Reason.NOT_IN_GVISOR,
        "runtimeClassName is kata",
    ),
    "a Pod that no policy selects": (
        asked(pod(), None),
        Reason.NOT_GOVERNED,
        "no PodSnapshotPolicy in this namespace selects Pod web-0; create one",
    ),
    "a policy for readiness probes": (
        asked(pod(), policy(trigger="readinessProbe")),
        Reason.SCOPE_UNSUPPORTED,
        "triggerConfig.type readinessProbe; use manual or workload",
    ),
    "a policy for deletion": (
        asked(pod(), policy(trigger="onDelete")),
        Reason.SCOPE_UNSUPPORTED,
        "triggerConfig.type onDelete",
    ),
    "a policy for root file systems": (
        asked(pod(), policy(snapshotScope="rootfs-only")),
        Reason.SCOPE_UNSUPPORTED,
        "snapshotScope rootfs-only; use whole-pod",
    ),
    "a policy that stops the Pod": (
        asked(pod(), policy(triggerConfig={"type": "manual", "postCheckpoint": "stop"})),
        Reason.SCOPE_UNSUPPORTED,
        "postCheckpoint stop; use resume",
    ),
    "a Pod that is not Ready": (
        asked(pod(is_ready=False), policy()),
        Reason.POD_NOT_READY,
        "is not Ready (phase Running); wait until it is",
    ),
    "a Pod that could not be restored": (
        asked(pod(hostNetwork=True), policy()),
        Reason.NOT_RESTORABLE,
        "a Pod with hostNetwork cannot be restored",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_trigger_that_cannot_work_is_refused_with_advice(what: str) -> None:
    """No endless pending: each cause of the contract has a reason and a way out."""
    given, reason, advice = REFUSED[what]
    verdict = may_trigger(given)
    assert verdict.findings[0].reason is reason
    assert advice in verdict.message
    assert verdict.refusal.startswith(f"{reason}: ")


@pytest.mark.parametrize("trigger", ["manual", "workload"])
def test_a_ready_governed_pod_may_be_triggered(trigger: str) -> None:
    """By hand also under a policy whose workloads ask themselves."""
    assert may_trigger(asked(pod(), policy(trigger=trigger))).usable


def test_what_a_user_would_mend_first_comes_first() -> None:
    """One finding at a time, in the order of the chain."""
    verdict = may_trigger(asked(pod(runtimeClassName=None, is_ready=False), None))
    assert [f.reason for f in verdict.findings] == [Reason.NOT_IN_GVISOR]


# -- storage


def config(location: Location | None, ready: Condition | None = None) -> StorageConfig:
    """Return a storage config."""
    conditions = {READY: ready} if ready else {}
    return StorageConfig(Metadata(name="store"), location, conditions=conditions)


BROKEN = {
    "no config": (None, "PodSnapshotStorageConfig store does not exist; create it"),
    "no bucket": (config(None), "names no bucket; set spec.snapshotStorageConfig.gcs.bucket"),
    "a bucket that cannot be written": (
        config(Location("b"), Condition(READY, "False", "BucketNotWritable", "bucket b is gone")),
        "store: bucket b is gone",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_storage_that_cannot_be_used_says_why(what: str) -> None:
    """The text stands on policy and trigger, which wait."""
    storage, expected = BROKEN[what]
    verdict = storage_usable(policy(), storage)
    assert [f.reason for f in verdict.findings] == [Reason.STORAGE_NOT_READY]
    assert expected in verdict.message


def test_storage_that_nobody_judged_yet_counts_as_usable() -> None:
    """Otherwise every first save would wait for a probe."""
    assert storage_usable(policy(), config(Location("b"))).usable
    assert storage_usable(policy(), config(Location("b"), Condition(READY, "True", "R"))).usable


def test_a_location_is_spelled_as_the_contract_has_it() -> None:
    """With and without a folder."""
    assert Location("b", "a/c").below("uuid").url == "gs://b/a/c/uuid"
    assert Location("b").below("uuid").url == "gs://b/uuid"
    parsed = StorageConfig.parse(
        {"spec": {"snapshotStorageConfig": {"gcs": {"bucket": "b", "path": "/a/c/"}}}}
    )
    assert parsed.location == Location("b", "a/c")
