# SPDX-License-Identifier: Apache-2.0
"""Which Pods may be saved, and what the others are told."""

from dataclasses import replace
from typing import Any

import pytest
from api_objects import NODE, pod, policy

from policies.capturing import (
    TriggerInput,
    may_save,
    may_trigger,
    node_may_save,
    restorable,
    storage_usable,
    unsupported,
    warnings,
)
from policies.verdict import Reason
from schemas.conditions import Condition
from schemas.metadata import Metadata
from schemas.names import (
    NAMESPACES_ANNOTATION,
    READY,
    SAVE_SELECTOR_ANNOTATION,
    STRICT_IDENTITY_ANNOTATION,
)
from schemas.pod import MIRROR_ANNOTATION, Pod
from schemas.policy import Policy, TriggerType
from schemas.policy_options import PolicyOptions
from schemas.snapshot import Compatibility
from schemas.storage_config import Location, StorageConfig

HOOK = {"postStart": {"exec": {"command": ["/x"]}}}


def _containers(*extra: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": f"c{n}", "image": "i", **fields} for n, fields in enumerate(extra)]


REFUSED_SHAPES: dict[str, tuple[dict[str, Any], str]] = {
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
    "a Cloud Storage FUSE sidecar": (
        {"containers": [{"name": "gke-gcsfuse-sidecar"}]},
        "a Cloud Storage FUSE sidecar cannot be restored: its open files belong to a process",
    ),
    "a Cloud Storage FUSE sidecar that starts first": (
        {"initContainers": [{"name": "gke-gcsfuse-sidecar", "restartPolicy": "Always"}]},
        "a Cloud Storage FUSE sidecar cannot be restored",
    ),
    "a Cloud Storage FUSE volume": (
        {"volumes": [{"name": "data", "csi": {"driver": "gcsfuse.csi.storage.gke.io"}}]},
        "the Cloud Storage FUSE volume data cannot be restored",
    ),
    "the annotation that asks for the FUSE sidecar": (
        {"annotations": {"gke-gcsfuse/volumes": "true"}},
        "annotation gke-gcsfuse/volumes cannot be restored",
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
    "an ordinary init container": {"initContainers": [{"name": "setup", "image": "i"}]},
    "a sidecar": {"initContainers": [{"name": "s", "image": "i", "restartPolicy": "Always"}]},
    "a postStart hook on the last container": {"containers": _containers({}, {"lifecycle": HOOK})},
    "a preStop hook anywhere": {
        "containers": _containers({"lifecycle": {"preStop": {"exec": {}}}}, {})
    },
    "a volume of another CSI driver": {
        "volumes": [{"name": "data", "csi": {"driver": "pd.csi.storage.gke.io"}}]
    },
    "no FUSE volumes by annotation": {"annotations": {"gke-gcsfuse/volumes": "false"}},
    "a memory limit": {"containers": _containers({"resources": {"limits": {"memory": "1Gi"}}})},
}


@pytest.mark.parametrize("what", ACCEPTED_SHAPES)
def test_an_ordinary_pod_may_be_saved(what: str) -> None:
    """What runsc restores is not refused."""
    assert restorable(pod(**ACCEPTED_SHAPES[what])).usable


def test_every_obstacle_of_a_pod_is_named() -> None:
    """One restart mends all of them."""
    verdict = restorable(pod(hostNetwork=True, containers=_containers({"lifecycle": HOOK}, {})))
    assert len(verdict.findings) == 2


# -- nodes, sizes, combinations

FILES_ONLY = policy(snapshotScope="rootfs-only")
SERIES: dict[str, tuple[str, Policy, bool]] = {
    "an E2 machine": ("e2", policy(), False),
    "an E2 machine by its type": ("e2-standard-4", policy(), False),
    "files of an E2 machine": ("e2", FILES_ONLY, True),
    "another series": ("n2", policy(), True),
    "a series that only begins like it": ("e2x", policy(), True),
    "a machine outside Google Cloud": ("GenuineIntel-6-143", policy(), True),
    "a machine that does not say": ("", policy(), True),
}


@pytest.mark.parametrize("what", SERIES)
def test_memory_is_not_saved_on_e2_machines(what: str) -> None:
    """Two of one name have different CPUs; files do not mind."""
    series, under, may = SERIES[what]
    verdict = node_may_save(replace(NODE, machine_series=series), under)
    assert verdict.usable is may
    assert may or "use another machine series, or snapshotScope rootfs-only" in verdict.message


def _limited(*limits: str | None) -> dict[str, Any]:
    resources = [{"resources": {"limits": {"memory": text}}} if text else {} for text in limits]
    return {"containers": _containers(*resources)}


SIDECAR = {"name": "s", "restartPolicy": "Always", "resources": {"limits": {"memory": "1G"}}}
LIMITS: dict[str, tuple[dict[str, Any], bool]] = {
    "a limit below": (_limited("999M"), True),
    "limits that are enough together": (_limited("500M", "500M"), False),
    "limits that are not enough together": (_limited("500M", "499M"), True),
    "a container without a limit": (_limited("1M", None), False),
    "binary units": (_limited("953Mi"), True),
    "binary units that are enough": (_limited("954Mi"), False),
    "a sidecar's limit counts": ({**_limited("1k"), "initContainers": [SIDECAR]}, False),
    "the whole Pod's limit": ({"resources": {"limits": {"memory": "1M"}}}, True),
    "a limit that nobody can read": (_limited("lots"), False),
}


@pytest.mark.parametrize("what", LIMITS)
def test_a_limit_below_the_working_set_is_warned_of(what: str) -> None:
    """The save is allowed; whoever restores it is told."""
    spec, warned = LIMITS[what]
    found = warnings(pod(**spec), 10**9)
    assert bool(found) is warned
    assert all("working set 1000 MB" in text and "raise the limit" in text for text in found)


@pytest.mark.parametrize("trigger", TriggerType)
@pytest.mark.parametrize("after", ["resume", "stop"])
@pytest.mark.parametrize("scope", ["whole-pod", "rootfs-only"])
def test_all_combinations_are_supported_but_a_workloads_files(
    trigger: TriggerType, after: str, scope: str
) -> None:
    """A workload's own save has memory in it, whatever the policy asks for."""
    asked_for = policy(
        triggerConfig={"type": trigger, "postCheckpoint": after}, snapshotScope=scope
    )
    found = unsupported(asked_for)
    assert bool(found) is (trigger == "workload" and scope == "rootfs-only")
    assert not found or "use snapshotScope whole-pod, or type manual" in found


def with_options(under: Policy, **annotations: str) -> Policy:
    """Return a policy with podsnap's own annotations, named by their last part."""
    named = {f"podsnap.dev/{key.replace('_', '-')}": text for key, text in annotations.items()}
    return replace(under, options=PolicyOptions.parse(named))


STRICT: dict[str, tuple[Policy, str]] = {
    "env before anybody runs": (
        with_options(policy(trigger="workload"), strict_identity="env"),
        "",
    ),
    "contents by hand": (with_options(policy(), strict_identity="secrets,configmaps"), ""),
    "contents at the end": (
        with_options(policy(trigger="onDelete"), strict_identity="secrets"),
        "",
    ),
    "contents for a workload": (
        with_options(policy(trigger="workload"), strict_identity="env,secrets"),
        "counts what only a node can see, and with triggerConfig.type workload Pods agree",
    ),
    "contents when Ready": (
        with_options(policy(trigger="readinessProbe"), strict_identity="configmaps"),
        "use type manual or onDelete, or count env alone",
    ),
    "anything of files": (
        with_options(FILES_ONLY, strict_identity="env"),
        "cannot be with snapshotScope rootfs-only; remove one",
    ),
}


@pytest.mark.parametrize("what", STRICT)
def test_a_stricter_identity_is_refused_where_it_could_not_hold(what: str) -> None:
    """A protection that does nothing would be worse than none."""
    under, expected = STRICT[what]
    found = unsupported(under)
    assert bool(found) is bool(expected)
    assert expected in found
    assert not found or STRICT_IDENTITY_ANNOTATION in found


GOLDEN: dict[str, tuple[str | None, dict[str, str], bool]] = {
    "no selector": (None, {"app": "web"}, True),
    "a golden Pod": ("role=golden", {"app": "web", "role": "golden"}, True),
    "an ordinary Pod": ("role=golden", {"app": "web"}, False),
    "a user's Pod": ("!session", {"app": "web", "session": "7"}, False),
    "a selector that cannot be read": ("role=golden,", {"app": "web", "role": "golden"}, False),
}


@pytest.mark.parametrize("what", GOLDEN)
@pytest.mark.parametrize("scope", ["whole-pod", "rootfs-only"])
def test_only_golden_pods_define_what_others_start_from(what: str, scope: str) -> None:
    """One user's live session must not become everyone's start; a typo opens nothing."""
    text, labels, may = GOLDEN[what]
    under = policy(snapshotScope=scope)
    if text is not None:
        under = with_options(under, save_selector=text)
    verdict = may_save(pod(labels=labels), under, NODE)
    assert verdict.usable is may
    assert may or [f.reason for f in verdict.findings] == [Reason.NOT_GOLDEN]
    assert may or f"annotation {SAVE_SELECTOR_ANNOTATION}, so it may be restored" in verdict.message


# -- triggers

CLASSES = {"gvisor": True, "kata": False}


def asked(
    of: Pod | None, under: Policy | None, target: str = "web-0", node: Compatibility | None = None
) -> TriggerInput:
    """Return what a trigger is judged by."""
    return TriggerInput(target=target, pod=of, policy=under, classes=CLASSES, node=node)


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
    "a policy that nobody can act on": (
        asked(pod(), policy(trigger="workload", snapshotScope="rootfs-only")),
        Reason.SCOPE_UNSUPPORTED,
        "policy web: a save that the workload asks for has memory in it",
    ),
    "a Pod that has succeeded": (
        asked(replace(pod(), phase="Succeeded"), policy()),
        Reason.POD_IS_OVER,
        "Pod web-0 is over (phase Succeeded), so there is no memory to save; name a running Pod",
    ),
    "a Pod that has failed": (
        asked(replace(pod(), phase="Failed"), policy()),
        Reason.POD_IS_OVER,
        "is over (phase Failed)",
    ),
    "a Pod that is pending": (
        asked(replace(pod(is_ready=False), phase="Pending"), policy()),
        Reason.POD_NOT_READY,
        "is not Ready (phase Pending); wait until it is",
    ),
    "a static Pod": (
        asked(pod(annotations={MIRROR_ANNOTATION: "x"}, runtimeClassName=None), None),
        Reason.NOT_GOVERNED,
        "is a static Pod: its node makes it from a file, and no policy governs it",
    ),
    "a Pod of a RuntimeClass that is gone": (
        asked(pod(runtimeClassName="gone"), policy()),
        Reason.NOT_IN_GVISOR,
        "names RuntimeClass gone, which does not exist; create it with handler runsc",
    ),
    "a Pod on an E2 machine": (
        asked(pod(), policy(), node=replace(NODE, machine_series="e2")),
        Reason.NODE_INCOMPATIBLE,
        "its node is an E2 machine",
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


@pytest.mark.parametrize("trigger", TriggerType)
def test_a_ready_governed_pod_may_be_triggered(trigger: str) -> None:
    """By hand also under a policy of another type."""
    assert may_trigger(asked(pod(), policy(trigger=trigger))).usable


def test_what_a_user_would_mend_first_comes_first() -> None:
    """One finding at a time, in the order of the chain."""
    verdict = may_trigger(asked(pod(runtimeClassName=None, is_ready=False), None))
    assert [f.reason for f in verdict.findings] == [Reason.NOT_IN_GVISOR]


# -- storage


def config(
    location: Location | None, ready: Condition | None = None, namespaces: str | None = None
) -> StorageConfig:
    """Return a storage config, for some namespaces or for all."""
    conditions = {READY: ready} if ready else {}
    annotations = {} if namespaces is None else {NAMESPACES_ANNOTATION: namespaces}
    metadata = Metadata(name="store", annotations=annotations)
    return StorageConfig(metadata, location, conditions=conditions)


BROKEN = {
    "a path that leaves its folder": (
        config(Location("b", "a/../c")),
        "path 'a/../c' has the segment '..'; write folders with one slash between them",
    ),
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


NAMESPACES = {
    "all, without the annotation": (None, True),
    "this one alone": ("shop", True),
    "this one among others": ("a, shop ,b", True),
    "others": ("a,shops", False),
    "none": ("", False),
}


@pytest.mark.parametrize("what", NAMESPACES)
def test_a_bucket_is_for_the_namespaces_that_its_annotation_names(what: str) -> None:
    """The others are told, without the names of their neighbours."""
    text, allowed = NAMESPACES[what]
    verdict = storage_usable(policy(), config(Location("b"), namespaces=text))
    assert verdict.usable is allowed
    if not allowed:
        assert verdict.findings[0].reason is Reason.STORAGE_NOT_ALLOWED
        assert "may not be used by namespace shop: its annotation" in verdict.message
        assert "shops" not in verdict.message


PATHS = {"": True, "a": True, "a/b.c": True, "a//b": False, "a/./b": False, "..": False}


@pytest.mark.parametrize("path", PATHS)
def test_a_folder_has_only_segments_that_are_names(path: str) -> None:
    """Slashes at both ends are left out before."""
    raw = {"bucket": "b", "path": f"/{path}/"}
    parsed = StorageConfig.parse({"spec": {"snapshotStorageConfig": {"gcs": raw}}})
    assert (parsed.path_error is None) is PATHS[path]


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
