# SPDX-License-Identifier: Apache-2.0
"""What a person does about a finding: one sentence for each reason, once.

The messages of findings say what is so; what to do about it depends on the policy, because only
its trigger type says how a further save comes about.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from policies.capturing import storage_usable
from policies.verdict import Reason
from schemas.names import QUARANTINE_ANNOTATION
from schemas.pod import Pod
from schemas.policy import Policy, TriggerType
from schemas.storage_config import StorageConfig

_MENDING: Final[Mapping[Reason, str]] = {
    Reason.NOT_READY: "see why it is not ready: `podsnap explain snapshot {snapshot}`",
    Reason.SPEC_DIFFERS: "give the Pod the saved fields again, or save anew: {save}",
    Reason.GROUP_DIFFERS: "save a Pod of this group: {save}",
    Reason.NODE_INCOMPATIBLE: "let the Pod run on a node that can run {snapshot} "
    "(`podsnap nodes` lists them), or save anew: {save}",
    Reason.QUARANTINED: "mend the cause, then lift the quarantine: `kubectl annotate podsnapshot "
    f"{{snapshot}} {QUARANTINE_ANNOTATION}=lifted`; or save anew: {{save}}",
    Reason.OTHER_POLICY: "name a snapshot of the governing policy, or save anew: {save}",
}


def how_to_mend(reason: Reason, *, snapshot: str, save: str) -> Iterator[str]:
    """Yield what to do about one finding on a snapshot; ``save`` says how to save anew."""
    if reason in _MENDING:
        yield _MENDING[reason].format(snapshot=snapshot, save=save)


def how_to_save(policy: Policy, pod_name: str) -> str:
    """Say what makes a policy's next save happen."""
    match policy.trigger_type:
        case TriggerType.MANUAL:
            return f"create a PodSnapshotManualTrigger with spec.targetPod: {pod_name}"
        case TriggerType.WORKLOAD:
            return "let the program write 1 to /proc/gvisor/checkpoint"
        case TriggerType.READINESS_PROBE:
            return "the next such Pod that becomes Ready is saved"
        case TriggerType.ON_DELETE:
            return "the next such Pod that is deleted is saved before it goes"


def unmatched(pod: Pod, *, is_gvisor: bool) -> Iterator[str]:
    """Yield what to do about a Pod that nothing here concerns."""
    if not is_gvisor:
        yield "set runtimeClassName to a RuntimeClass of gVisor and create the Pod anew"
    elif pod.is_static:
        yield "create the Pod through the API server instead of from a file of its node"
    else:
        yield (
            "create a PodSnapshotPolicy whose selector matches the Pod's labels, or give the Pod "
            "the labels of one; then create the Pod anew"
        )


def storage_text(policy: Policy, storage: StorageConfig | None) -> str:
    """Return the storage config's name and address, or what is wrong with it."""
    verdict = storage_usable(policy, storage)
    if storage is None or storage.location is None or not verdict.usable:
        return verdict.message
    return f"{storage.metadata.name} ({storage.location.url})"
