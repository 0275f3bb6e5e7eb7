# SPDX-License-Identifier: Apache-2.0
"""Whether a Pod may be saved at all.

A Pod that could never be restored is refused here, before it is paused, each with its own reason;
trying it at restore would cost every later replica a failed start. The list comes from what runsc
was seen to do, not from what the API allows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from policies.verdict import Finding, Reason, Verdict
from schemas.names import (
    NAMESPACES_ANNOTATION,
    SAVE_SELECTOR_ANNOTATION,
    STRICT_IDENTITY_ANNOTATION,
)
from schemas.pod import Pod
from schemas.policy import Policy, TriggerType
from schemas.policy_options import Strictness
from schemas.quantities import parse_bytes
from schemas.snapshot import Compatibility
from schemas.storage_config import StorageConfig

_CONTENTS = frozenset({Strictness.SECRETS, Strictness.CONFIG_MAPS})
_SHARED = frozenset({TriggerType.WORKLOAD, TriggerType.READINESS_PROBE})
_FUSE_DRIVER = "gcsfuse.csi.storage.gke.io"
_FUSE_SIDECAR = "gke-gcsfuse-sidecar"
_FUSE_ANNOTATION = "gke-gcsfuse/volumes"


def restorable(pod: Pod) -> Verdict:
    """Judge whether a Pod of this shape could ever be restored."""
    found = [
        Finding(Reason.NOT_RESTORABLE, f"a Pod with {what} cannot be restored: {why}")
        for what, why in (*_obstacles(pod), *_bucket_mounts(pod))
    ]
    return Verdict(tuple(found))


def _bucket_mounts(pod: Pod) -> list[tuple[str, str]]:
    """Cloud Storage FUSE: the files are served by another process, which is not in the image."""
    containers = (*(pod.spec.get("initContainers") or ()), *(pod.spec.get("containers") or ()))
    volumes = [
        f"the Cloud Storage FUSE volume {v['name']}"
        for v in pod.spec.get("volumes") or ()
        if (v.get("csi") or {}).get("driver") == _FUSE_DRIVER
    ]
    if any(c["name"] == _FUSE_SIDECAR for c in containers):
        volumes.append("a Cloud Storage FUSE sidecar")
    elif not volumes and pod.metadata.annotations.get(_FUSE_ANNOTATION) == "true":
        volumes.append(f"annotation {_FUSE_ANNOTATION}")
    why = "its open files belong to a process outside; copy the data into an emptyDir instead"
    return [(what, why) for what in volumes]


def may_save(pod: Pod, policy: Policy, node: Compatibility | None) -> Verdict:
    """Judge a Pod with its node; a node that published nothing is not judged."""
    on_node = node_may_save(node, policy) if node else Verdict()
    shape = Verdict() if policy.rootfs_only else restorable(pod)
    return Verdict((*_golden(pod, policy).findings, *shape.findings, *on_node.findings))


def _golden(pod: Pod, policy: Policy) -> Verdict:
    """Judge whether a Pod may define what all others start from."""
    if policy.options.save_from is None or policy.options.save_from.matches(pod.metadata.labels):
        return Verdict()
    return _refuse(
        Reason.NOT_GOLDEN,
        "its labels do not match the policy's annotation "
        f"{SAVE_SELECTOR_ANNOTATION}, so it may be restored, but may not define what others start "
        "from; save a Pod whose labels match",
    )


def node_may_save(node: Compatibility, policy: Policy) -> Verdict:
    """Judge whether memory may be saved on a node; files alone may be saved on any."""
    if policy.rootfs_only or node.machine_series.split("-")[0] != "e2":
        return Verdict()
    return _refuse(
        Reason.NODE_INCOMPATIBLE,
        "its node is an E2 machine, and E2 machines of one name have different CPUs, so saved "
        "memory may not run on the next; use another machine series, or snapshotScope rootfs-only",
    )


def warnings(pod: Pod, working_set_bytes: int) -> list[str]:
    """Return what may go wrong at a restore although the save is allowed."""
    limit_bytes = _memory_limit_bytes(pod)
    if limit_bytes is None or limit_bytes >= working_set_bytes:
        return []
    return [
        f"the memory limit of Pod {pod.metadata.name} is {limit_bytes / 1e6:.0f} MB and its "
        f"working set {working_set_bytes / 1e6:.0f} MB, so a restored Pod may be killed for lack "
        "of memory; raise the limit"
    ]


def _memory_limit_bytes(pod: Pod) -> int | None:
    """Return the limit of the whole Pod, ``None`` if a container has none."""

    def limit(resources: Mapping[str, Any] | None) -> str | None:
        found: str | None = ((resources or {}).get("limits") or {}).get("memory")
        return found

    whole = limit(pod.spec.get("resources"))
    limits = [whole] if whole else [limit(c.get("resources")) for c in pod.running_containers]
    try:
        return sum(parse_bytes(text) for text in limits if text) if all(limits) else None
    except ValueError:
        return None


def unsupported(policy: Policy) -> str:
    """Say what of a policy cannot be acted on and what to use instead; empty if nothing."""
    if policy.trigger_type is TriggerType.WORKLOAD and policy.rootfs_only:
        return (
            "a save that the workload asks for has memory in it, so snapshotScope rootfs-only "
            "cannot be with triggerConfig.type workload; use snapshotScope whole-pod, or type "
            "manual, readinessProbe or onDelete"
        )
    strict = policy.options.strict
    if strict and policy.rootfs_only:
        return (
            "saved files fit any Pod of the policy, so annotation "
            f"{STRICT_IDENTITY_ANNOTATION} cannot be with snapshotScope rootfs-only; remove one"
        )
    if _CONTENTS & strict and policy.trigger_type in _SHARED:
        return (
            f"annotation {STRICT_IDENTITY_ANNOTATION} counts what only a node can see, and with "
            f"triggerConfig.type {policy.trigger_type} Pods agree on one snapshot beforehand; use "
            "type manual or onDelete, or count env alone"
        )
    return ""


def _obstacles(pod: Pod) -> list[tuple[str, str]]:
    spec = pod.spec
    found: list[tuple[str, str]] = []
    for init in spec.get("initContainers") or ():
        name = init["name"]
        if init.get("restartPolicy") == "Always" and init.get("startupProbe"):
            found.append(
                (
                    f"a startup probe on sidecar {name}",
                    "the sidecar runs only when the last container has started",
                )
            )
    containers = spec.get("containers") or ()
    found += [
        (
            f"a postStart hook on container {c['name']}",
            "the hook would run before the memory is back; only the last container may have one",
        )
        for c in pod.running_containers[:-1]
        if (c.get("lifecycle") or {}).get("postStart")
    ]
    if spec.get("ephemeralContainers"):
        found.append(("an ephemeral container", "a new Pod has none; restart the Pod"))
    if spec.get("hostNetwork"):
        found.append(("hostNetwork", "its sockets belong to the node"))
    for container in containers:
        resources = container.get("resources") or {}
        wanted = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
        if any("gpu" in name for name in wanted):
            found.append((f"a GPU (container {container['name']})", "no GPU executor exists yet"))
    return found


@dataclass(frozen=True, slots=True)
class TriggerInput:
    """Everything that a manual trigger is judged by. ``pod`` is ``None`` if there is none.

    ``classes`` maps the name of every RuntimeClass to whether it means gVisor; ``node`` is what
    the Pod's node published, if it did.
    """

    target: str
    pod: Pod | None
    policy: Policy | None
    classes: Mapping[str, bool]
    node: Compatibility | None = None


def may_trigger(given: TriggerInput) -> Verdict:
    """Judge a manual trigger: the first finding ends it (contract, section 12, 10)."""
    for check in _TRIGGER_CHAIN:
        finding = check(given)
        if finding is not None:
            return Verdict((finding,))
    if given.pod is None or given.policy is None:
        return Verdict()
    return may_save(given.pod, given.policy, given.node)


def _names_no_pod(given: TriggerInput) -> Finding | None:
    if given.target:
        return None
    return Finding(
        Reason.POD_NOT_FOUND, "the trigger names no Pod; set spec.targetPod in a new trigger"
    )


def _pod_is_missing(given: TriggerInput) -> Finding | None:
    if given.pod is not None and not given.pod.metadata.is_deleting:
        return None
    state = "is being deleted" if given.pod else "does not exist in this namespace"
    return Finding(
        Reason.POD_NOT_FOUND,
        f"Pod {given.target} {state}; name a running Pod in spec.targetPod of a new trigger",
    )


def _is_over(given: TriggerInput) -> Finding | None:
    if given.pod is None or not given.pod.is_over:
        return None
    return Finding(
        Reason.POD_IS_OVER,
        f"Pod {given.target} is over (phase {given.pod.phase}), so there is no memory to save; "
        "name a running Pod in spec.targetPod of a new trigger",
    )


def _is_static(given: TriggerInput) -> Finding | None:
    if given.pod is None or not given.pod.is_static:
        return None
    return Finding(
        Reason.NOT_GOVERNED,
        f"Pod {given.target} is a static Pod: its node makes it from a file, and no policy governs "
        "it; create it through the API server",
    )


def _not_in_gvisor(given: TriggerInput) -> Finding | None:
    name = given.pod.runtime_class if given.pod else ""
    if given.classes.get(name):
        return None
    if name and name not in given.classes:
        return Finding(
            Reason.NOT_IN_GVISOR,
            f"Pod {given.target} names RuntimeClass {name}, which does not exist; create it with "
            "handler runsc, then create the Pod anew",
        )
    return Finding(
        Reason.NOT_IN_GVISOR,
        f"Pod {given.target} does not run in gVisor (its runtimeClassName is "
        f"{name or 'not set'}); set runtimeClassName: gvisor and create the Pod anew",
    )


def _not_governed(given: TriggerInput) -> Finding | None:
    if given.policy is not None:
        return None
    return Finding(
        Reason.NOT_GOVERNED,
        f"no PodSnapshotPolicy in this namespace selects Pod {given.target}; create one whose "
        "selector matches its labels, then restart the Pod once and create a new trigger",
    )


def _unsupported(given: TriggerInput) -> Finding | None:
    found = unsupported(given.policy) if given.policy else ""
    if not found or given.policy is None:
        return None
    return Finding(Reason.SCOPE_UNSUPPORTED, f"policy {given.policy.metadata.name}: {found}")


def _not_ready(given: TriggerInput) -> Finding | None:
    pod = given.pod
    if pod is None or pod.is_ready:
        return None
    return Finding(
        Reason.POD_NOT_READY,
        f"Pod {given.target} is not Ready (phase {pod.phase or 'unknown'}); "
        "wait until it is and create a new trigger",
    )


# Order is what a user would mend first.
_TRIGGER_CHAIN: tuple[Callable[[TriggerInput], Finding | None], ...] = (
    _names_no_pod,
    _pod_is_missing,
    _is_over,
    _is_static,
    _not_in_gvisor,
    _not_governed,
    _unsupported,
    _not_ready,
)


def storage_usable(policy: Policy, storage: StorageConfig | None) -> Verdict:
    """Judge the bucket that a policy names; a finding here is one that waiting may cure."""
    if storage is None:
        return _refuse(
            Reason.STORAGE_NOT_READY,
            f"PodSnapshotStorageConfig {policy.storage_config_name} does not exist; create it",
        )
    if storage.location is None:
        return _refuse(
            Reason.STORAGE_NOT_READY,
            f"PodSnapshotStorageConfig {storage.metadata.name} names no bucket; "
            "set spec.snapshotStorageConfig.gcs.bucket",
        )
    if not storage.allows(policy.metadata.namespace):
        return _refuse(
            Reason.STORAGE_NOT_ALLOWED,
            f"PodSnapshotStorageConfig {storage.metadata.name} may not be used by namespace "
            f"{policy.metadata.namespace}: its annotation {NAMESPACES_ANNOTATION} does not name "
            "it; add the namespace there, or name another storage config in the policy",
        )
    if storage.path_error:
        return _refuse(
            Reason.STORAGE_NOT_READY,
            f"PodSnapshotStorageConfig {storage.metadata.name}: {storage.path_error}",
        )
    if storage.not_ready_because:
        return _refuse(
            Reason.STORAGE_NOT_READY,
            f"PodSnapshotStorageConfig {storage.metadata.name}: {storage.not_ready_because}",
        )
    return Verdict()


def _refuse(reason: Reason, message: str) -> Verdict:
    return Verdict((Finding(reason, message),))
