# SPDX-License-Identifier: Apache-2.0
"""Bad input and the exact words that answer it, by the running controllers."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from cluster_world import World, eventually, resource_of
from kube_apiserver import ApiServer

from backends.clock import SystemClock
from backends.kube.client import (
    POD_SNAPSHOT_MANUAL_TRIGGERS,
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    PODS,
    KubeClient,
    Resource,
)
from backends.kube.errors import Invalid
from reconciler.gke_addon import refusal, traces_of_addon
from reconciler.manager import Manager
from schemas.names import GATE_ANNOTATION, NAMESPACES_ANNOTATION
from schemas.pod import MIRROR_ANNOTATION

pytestmark = pytest.mark.usefixtures("manager")

WORKS = "Pods that it selects are saved and restored"
INVITES = (
    "warning: any Pod that it selects may be saved, and its live sessions become every new Pod's "
    "start; name the labels of those that may in annotation podsnap.dev/save-selector, or keep "
    "users apart with snapshotGroupingRules"
)
MEANWHILE = "meanwhile the default holds, or the strictest if it protects something"


@dataclass(frozen=True, slots=True)
class Case:
    """What a user does, and what the object says in the end; ``{store}`` is the storage config."""

    do: Callable[[World], object]
    reason: str
    message: str


def annotate(world: World, resource: Resource, name: str, key: str, value: str) -> None:
    """Set an annotation as a user."""
    world.admin.merge_patch(
        resource,
        name,
        {"metadata": {"annotations": {key: value}}},
        namespace=world.namespace if resource.namespaced else None,
        field_manager="user",
    )


def working(world: World, **spec: Any) -> None:  # noqa: ANN401 - spec fields
    """Make a bucket, its storage config and a policy that works."""
    world.make_bucket()
    world.storage()
    world.policy(**spec)
    eventually(
        lambda: world.condition(POD_SNAPSHOT_POLICIES, "web", "Ready").get("status"),
        "the policy was looked at",
    )


def says(world: World, resource: Resource, name: str, kind: str, case: Case) -> None:
    """Wait until a condition has exactly the reason and the message."""
    message = case.message.format(store=world.store, namespace=world.namespace)
    last: dict[str, Any] = {}

    def found() -> bool:
        last.update(world.condition(resource, name, kind))
        return (last.get("reason"), last.get("message")) == (case.reason, message)

    try:
        eventually(found, "the words")
    except AssertionError:
        assert (last.get("reason"), last.get("message")) == (case.reason, message)


# -- triggers


def phase(world: World, phase: str, *, is_ready: bool = False) -> None:
    """Let the kubelet say that the Pod is in a phase."""
    status = "True" if is_ready else "False"
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web-0", "namespace": world.namespace},
        "status": {
            "phase": phase,
            "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": None}],
        },
    }
    world.admin.apply(PODS, body, field_manager="kubelet", subresource="status", force=True)


def with_pod(**spec: Any) -> Callable[[World], None]:  # noqa: ANN401 - fields of a PodSpec
    """Return: a Pod of this shape under a policy that works."""

    def do(world: World) -> None:
        working(world)
        world.pod(**spec)

    return do


def in_phase(name: str) -> Callable[[World], None]:
    """Return: a Pod in a phase."""

    def do(world: World) -> None:
        with_pod()(world)
        phase(world, name)

    return do


def static_pod(world: World) -> None:
    """Make the mirror of a static Pod."""
    working(world)
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "web-0",
            "namespace": world.namespace,
            "labels": {"app": "web"},
            "annotations": {MIRROR_ANNOTATION: "x"},
        },
        "spec": {
            "runtimeClassName": "gvisor",
            "nodeName": "node-1",
            "automountServiceAccountToken": False,
            "containers": [{"name": "main", "image": "registry.example/web:1"}],
        },
    }
    world.create(PODS, body)


def open_trigger(world: World) -> None:
    """Ask for a save of the Pod that no agent answers."""
    with_pod()(world)
    world.trigger("first")
    eventually(world.snapshots, "the first trigger's PodSnapshot")


def files_of_a_workload(world: World) -> None:
    """Ask for what a workload's own save cannot be."""
    working(world, triggerConfig={"type": "workload"}, snapshotScope="rootfs-only")
    world.pod()


TRIGGERS: dict[str, Case] = {
    "a Pod that does not exist": Case(
        working,
        "Failed",
        "PodNotFound: Pod web-0 does not exist in this namespace; name a running Pod in "
        "spec.targetPod of a new trigger",
    ),
    "a Pod that is pending": Case(
        in_phase("Pending"),
        "Failed",
        "PodNotReady: Pod web-0 is not Ready (phase Pending); wait until it is and create a new "
        "trigger",
    ),
    "a Pod that is finished": Case(
        in_phase("Succeeded"),
        "Failed",
        "PodIsOver: Pod web-0 is over (phase Succeeded), so there is no memory to save; name a "
        "running Pod in spec.targetPod of a new trigger",
    ),
    "a Pod outside gVisor": Case(
        with_pod(runtimeClassName=None),
        "Failed",
        "NotInGVisor: Pod web-0 does not run in gVisor (its runtimeClassName is not set); set "
        "runtimeClassName: gvisor and create the Pod anew",
    ),
    "a Pod that no policy selects": Case(
        with_pod(labels={"app": "db"}),
        "Failed",
        "NotGoverned: no PodSnapshotPolicy in this namespace selects Pod web-0; create one whose "
        "selector matches its labels, then restart the Pod once and create a new trigger",
    ),
    "a Pod on the host's network": Case(
        with_pod(hostNetwork=True),
        "Failed",
        "NotRestorable: a Pod with hostNetwork cannot be restored: its sockets belong to the node",
    ),
    "a static Pod": Case(
        static_pod,
        "Failed",
        "NotGoverned: Pod web-0 is a static Pod: its node makes it from a file, and no policy "
        "governs it; create it through the API server",
    ),
    "a Pod with a Cloud Storage FUSE volume": Case(
        with_pod(volumes=[{"name": "data", "csi": {"driver": "gcsfuse.csi.storage.gke.io"}}]),
        "Failed",
        "NotRestorable: a Pod with the Cloud Storage FUSE volume data cannot be restored: its open "
        "files belong to a process outside; copy the data into an emptyDir instead",
    ),
    "a Pod that is being saved already": Case(
        open_trigger,
        "Failed",
        "Another PodSnapshotManualTrigger first is already targeting Pod web-0 and is not yet "
        "completed; wait for it and create a new trigger",
    ),
    "a policy for the files of a workload": Case(
        files_of_a_workload,
        "Failed",
        "ScopeUnsupported: policy web: a save that the workload asks for has memory in it, so "
        "snapshotScope rootfs-only cannot be with triggerConfig.type workload; use snapshotScope "
        "whole-pod, or type manual, readinessProbe or onDelete",
    ),
    "no storage config yet": Case(
        lambda world: (world.policy(), world.pod()),
        "Pending",
        "waits for storage: PodSnapshotStorageConfig {store} does not exist; create it",
    ),
}


@pytest.mark.parametrize("what", TRIGGERS)
def test_a_trigger_answers_bad_input_in_these_words(world: World, what: str) -> None:
    """What was found, what follows, what to do."""
    case = TRIGGERS[what]
    case.do(world)
    world.trigger("now")
    says(world, POD_SNAPSHOT_MANUAL_TRIGGERS, "now", "Triggered", case)


def test_a_pod_of_a_runtime_class_that_is_gone_is_told_in_these_words(
    world: World, manager: Manager
) -> None:
    """Nobody can create such a Pod, but the class may be deleted under it."""
    working(world)
    name = f"gone-{world.namespace}"
    body = {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": name},
        "handler": "runsc",
    }
    world.create(resource_of(body), body)
    world.pod(runtimeClassName=name)
    eventually(lambda: name in manager.cache.classes(), "the controller knows the class")
    world.admin.delete(resource_of(body), name)
    eventually(lambda: name not in manager.cache.classes(), "the controller misses the class")
    world.trigger("now")
    message = (
        f"NotInGVisor: Pod web-0 names RuntimeClass {name}, which does not exist; create it with "
        "handler runsc, then create the Pod anew"
    )
    case = Case(working, "Failed", message)
    says(world, POD_SNAPSHOT_MANUAL_TRIGGERS, "now", "Triggered", case)


def test_a_trigger_without_a_target_is_told_in_these_words(world: World) -> None:
    """The schema lets it pass, as GKE's does."""
    world.trigger("now", None)
    message = "PodNotFound: the trigger names no Pod; set spec.targetPod in a new trigger"
    case = Case(working, "Failed", message)
    says(world, POD_SNAPSHOT_MANUAL_TRIGGERS, "now", "Triggered", case)


def test_a_pod_that_was_replaced_under_its_name_is_not_saved_instead(world: World) -> None:
    """The trigger meant the one that ran when it was created."""
    open_trigger(world)
    world.admin.delete(PODS, "web-0", namespace=world.namespace)
    world.pod()
    message = (
        "PodGone: Pod web-0 ended or was replaced before node node-1 began to save it; nothing was "
        "saved"
    )
    case = Case(working, "Failed", message)
    says(world, POD_SNAPSHOT_MANUAL_TRIGGERS, "first", "Triggered", case)


# -- policies


def rival(world: World) -> None:
    """Make an older and a younger policy for one Pod; they differ in a second at least."""
    world.make_bucket()
    world.storage()
    older = world.policy("older")["metadata"]["creationTimestamp"]
    world.pod()
    eventually(
        lambda: (
            world.get(POD_SNAPSHOT_POLICIES, "web")
            or world.policy("web")["metadata"]["creationTimestamp"] > older
            or world.admin.delete(POD_SNAPSHOT_POLICIES, "web", namespace=world.namespace)
        ),
        "a younger policy",
    )


def annotated(key: str, value: str) -> Callable[[World], None]:
    """Return: a working policy with an annotation."""

    def do(world: World) -> None:
        working(world)
        annotate(world, POD_SNAPSHOT_POLICIES, "web", key, value)

    return do


def for_others(world: World) -> None:
    """Make a storage config that belongs to other namespaces."""
    working(world)
    annotate(world, POD_SNAPSHOT_STORAGE_CONFIGS, world.store, NAMESPACES_ANNOTATION, "a, b")


def on_delete_with_hooks(world: World) -> None:
    """Save at the deletion what a preStop hook has ended by then."""
    working(world, triggerConfig={"type": "onDelete"})
    hook = {"preStop": {"exec": {"command": ["/stop"]}}}
    world.pod(containers=[{"name": "main", "image": "i", "lifecycle": hook}])


POLICIES: dict[str, Case] = {
    "a selector that matches nothing": Case(
        working, "Ready", f"{WORKS}; no Pod is selected now; {INVITES}"
    ),
    "a selector that matches everything": Case(
        lambda world: working(world, selector={}),
        "Ready",
        f"{WORKS}; warning: its selector is empty, so it selects every Pod of the namespace; "
        f"{INVITES}",
    ),
    "a policy younger than another for its Pod": Case(
        rival,
        "Ready",
        f"{WORKS}; Pod web-0 is governed by policy older, which is older; {INVITES}",
    ),
    "a Pod that can never be saved": Case(
        with_pod(hostNetwork=True),
        "Ready",
        f"{WORKS}; Pod web-0 is never saved: a Pod with hostNetwork cannot be restored: its "
        f"sockets belong to the node; {INVITES}",
    ),
    "a preStop hook under onDelete": Case(
        on_delete_with_hooks,
        "Ready",
        f"{WORKS}; warning: Pod web-0 is saved after the preStop hook has run; {INVITES}",
    ),
    "a missing storage config": Case(
        lambda world: world.policy(),
        "StorageNotReady",
        "saves and restores wait: PodSnapshotStorageConfig {store} does not exist; create it",
    ),
    "a storage config of other namespaces": Case(
        for_others,
        "StorageNotAllowed",
        "saves and restores wait: PodSnapshotStorageConfig {store} may not be used by namespace "
        "{namespace}: its annotation podsnap.dev/namespaces does not name it; add the namespace "
        "there, or name another storage config in the policy",
    ),
    "an annotation that is no duration": Case(
        annotated(GATE_ANNOTATION, "soon"),
        "InvalidAnnotation",
        "annotation podsnap.dev/gate: 'soon' is not a duration; write it like 30s, 5m or 1h30m; "
        f"{MEANWHILE}",
    ),
    "a gate that is too long": Case(
        annotated(GATE_ANNOTATION, "2m"),
        "InvalidAnnotation",
        "annotation podsnap.dev/gate: it is 2m; a sandbox must be made within two minutes, so the "
        f"gate is at most 85s; {MEANWHILE}",
    ),
    "the files of a workload": Case(
        files_of_a_workload,
        "Unsupported",
        "a save that the workload asks for has memory in it, so snapshotScope rootfs-only cannot "
        "be with triggerConfig.type workload; use snapshotScope whole-pod, or type manual, "
        "readinessProbe or onDelete",
    ),
}


@pytest.mark.parametrize("what", POLICIES)
def test_a_policy_answers_bad_input_in_these_words(world: World, what: str) -> None:
    """On its own ``Ready``, where its author looks."""
    case = POLICIES[what]
    case.do(world)
    says(world, POD_SNAPSHOT_POLICIES, "web", "Ready", case)


def test_the_policy_that_governs_tells_of_the_one_that_does_not(world: World) -> None:
    """Whoever reads either of them learns of both."""
    rival(world)
    message = (
        f"{WORKS}; Pod web-0 is selected by policy web too, which does not govern: older is older; "
        f"{INVITES}"
    )
    says(world, POD_SNAPSHOT_POLICIES, "older", "Ready", Case(rival, "Ready", message))


def test_a_group_label_of_any_value_is_no_part_of_a_path(world: World) -> None:
    """It is copied as a label; dots in it lead nowhere."""
    working(world, snapshotGroupingRules={"groupByLabelValue": {"labels": ["tenant", "empty"]}})
    world.pod(labels={"app": "web", "tenant": "a..b", "empty": ""})
    world.trigger("now")
    (snapshot,) = eventually(world.snapshots, "a PodSnapshot")
    labels = snapshot["metadata"]["labels"]
    assert (labels["tenant"], labels["empty"]) == ("a..b", "")


# -- storage configs


def store(world: World, bucket: str | None, path: str = "") -> None:
    """Make a storage config with this place."""
    gcs = {} if bucket is None else {"gcs": {"bucket": bucket, "path": path}}
    body = world.object("PodSnapshotStorageConfig", world.store, {"snapshotStorageConfig": gcs})
    del body["metadata"]["namespace"]
    world.create(POD_SNAPSHOT_STORAGE_CONFIGS, body)


def wrong_path(path: str, segment: str) -> Case:
    """Return the case of a path with a segment that is no name."""
    return Case(
        lambda world: store(world, "bucket-1", path),
        "InvalidPath",
        f"spec.snapshotStorageConfig.gcs.path {path!r} has the segment {segment!r}; write folders "
        "with one slash between them, such as team-a/snapshots",
    )


STORES: dict[str, Case] = {
    "a path that leaves the bucket": wrong_path("../other", ".."),
    "a path with an empty segment": wrong_path("a//b", ""),
    "a path with a dot": wrong_path("a/./b", "."),
    "no bucket": Case(
        lambda world: store(world, None),
        "NoBucket",
        "no bucket is named; set spec.snapshotStorageConfig.gcs.bucket",
    ),
    "a bucket that leaves its place": Case(
        lambda world: store(world, ".."),
        "BucketNotWritable",
        "bucket .. cannot be written: '..' is no name of a bucket; use 3 to 63 of a-z, 0-9, - _ "
        "and .",
    ),
}


@pytest.mark.parametrize("what", STORES)
def test_a_storage_config_answers_bad_input_in_these_words(world: World, what: str) -> None:
    """Nothing is ever written to such a place."""
    case = STORES[what]
    case.do(world)
    says(world, POD_SNAPSHOT_STORAGE_CONFIGS, world.store, "Ready", case)


def test_a_bucket_with_a_scheme_is_refused_by_the_schema(world: World) -> None:
    """As GKE's does; the server's message names field and pattern."""
    with pytest.raises(Invalid, match=r"gcs.bucket.*should match '\^\[a-z0-9._-\]\+\$'"):
        store(world, "gs://bucket-1")


# -- GKE's own addon


def test_the_controller_does_not_start_beside_the_addon_of_gke(
    api_server: ApiServer, admin: KubeClient, controller_client: KubeClient
) -> None:
    """Both traces are found with the controller's own rights, and named as it ends."""
    assert refusal(traces_of_addon(controller_client, SystemClock())) == ""
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "gke-managed-pod-snapshots"},
    }
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "gke-pod-snapshot-validating-admission-policy"},
        "spec": {
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": ["podsnapshot.gke.io"],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE"],
                        "resources": ["podsnapshots"],
                    }
                ]
            },
            "validations": [{"expression": "true"}],
        },
    }
    admission = Resource(
        "admissionregistration.k8s.io",
        "v1",
        "validatingadmissionpolicies",
        "ValidatingAdmissionPolicy",
        namespaced=False,
    )
    admin.create(resource_of(namespace), namespace, field_manager="tests")
    admin.create(admission, policy, field_manager="tests")
    program = [sys.executable, "-m", "reconciler.command_line", "controller"]
    kubeconfig = f"--kubeconfig={api_server.kubeconfig('controller')}"
    try:
        ended = subprocess.run(
            [*program, kubeconfig], capture_output=True, text=True, timeout=60, check=False
        )
    finally:
        admin.delete(admission, policy["metadata"]["name"])
    assert ended.returncode == 1
    assert ended.stderr == (
        "Error: GKE's own Pod snapshot addon is in this cluster (found: ValidatingAdmissionPolicy "
        "gke-pod-snapshot-validating-admission-policy, Namespace gke-managed-pod-snapshots). "
        "podsnap does not start beside it, because two controllers would fight over the same "
        "PodSnapshots. Disable the addon (addonsConfig.podSnapshotConfig.enabled=false) and delete "
        "what it left behind, or uninstall podsnap\n"
    )
