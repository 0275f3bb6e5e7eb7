# SPDX-License-Identifier: Apache-2.0
"""Whether a Pod may be saved at all.

A Pod that could never be restored is refused here, before it is paused, each with its own reason;
trying it at restore would cost every later replica a failed start. The list comes from what runsc
was seen to do, not from what the API allows.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from policies.verdict import Finding, Reason, Verdict
from schemas.pod import Pod
from schemas.policy import Policy, TriggerType
from schemas.storage_config import StorageConfig


def restorable(pod: Pod) -> Verdict:
    """Judge whether a Pod of this shape could ever be restored."""
    found = [
        Finding(Reason.NOT_RESTORABLE, f"a Pod with {what} cannot be restored: {why}")
        for what, why in _obstacles(pod)
    ]
    return Verdict(tuple(found))


def _obstacles(pod: Pod) -> list[tuple[str, str]]:
    spec = pod.spec
    found: list[tuple[str, str]] = []
    for init in spec.get("initContainers") or ():
        name = init["name"]
        if init.get("restartPolicy") != "Always":
            found.append((f"init container {name}", "it would take the place of a saved container"))
        elif init.get("startupProbe"):
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
        for c in containers[:-1]
        if (c.get("lifecycle") or {}).get("postStart")
    ]
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
    """Everything that a manual trigger is judged by. ``pod`` is ``None`` if there is none."""

    target: str
    pod: Pod | None
    policy: Policy | None
    gvisor_classes: Collection[str]


def may_trigger(given: TriggerInput) -> Verdict:
    """Judge a manual trigger: the first finding ends it (contract, section 12, 10)."""
    for check in _TRIGGER_CHAIN:
        finding = check(given)
        if finding is not None:
            return Verdict((finding,))
    return restorable(given.pod) if given.pod else Verdict()


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


def _not_in_gvisor(given: TriggerInput) -> Finding | None:
    runtime_class = given.pod.runtime_class if given.pod else ""
    if runtime_class in given.gvisor_classes:
        return None
    return Finding(
        Reason.NOT_IN_GVISOR,
        f"Pod {given.target} does not run in gVisor (its runtimeClassName is "
        f"{runtime_class or 'not set'}); set runtimeClassName: gvisor and create the Pod anew",
    )


def _not_governed(given: TriggerInput) -> Finding | None:
    if given.policy is not None:
        return None
    return Finding(
        Reason.NOT_GOVERNED,
        f"no PodSnapshotPolicy in this namespace selects Pod {given.target}; create one whose "
        "selector matches its labels, then restart the Pod once and create a new trigger",
    )


def _asks_for_more_than_this_version_has(given: TriggerInput) -> Finding | None:
    policy = given.policy
    if policy is None:
        return None
    if policy.trigger_type not in {TriggerType.MANUAL, TriggerType.WORKLOAD}:
        found = f"triggerConfig.type {policy.trigger_type}; use manual or workload"
    elif policy.snapshot_scope != "whole-pod":
        found = f"snapshotScope {policy.snapshot_scope}; use whole-pod"
    elif policy.post_checkpoint != "resume":
        found = f"postCheckpoint {policy.post_checkpoint}; use resume"
    else:
        return None
    return Finding(
        Reason.SCOPE_UNSUPPORTED,
        f"policy {policy.metadata.name} asks for what this version does not do yet: {found}",
    )


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
    _not_in_gvisor,
    _not_governed,
    _asks_for_more_than_this_version_has,
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
    if storage.not_ready_because:
        return _refuse(
            Reason.STORAGE_NOT_READY,
            f"PodSnapshotStorageConfig {storage.metadata.name}: {storage.not_ready_because}",
        )
    return Verdict()


def _refuse(reason: Reason, message: str) -> Verdict:
    return Verdict((Finding(reason, message),))
