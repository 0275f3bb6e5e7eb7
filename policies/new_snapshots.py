# SPDX-License-Identifier: Apache-2.0
"""PodSnapshot objects, as podsnap creates them; users never do, what stands in them steers agents.

Creation is the lock: the name is derived, so a second creator gets AlreadyExists and the object
that is there is as good.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

from policies.selection import group_labels
from schemas.names import (
    API_VERSION,
    ARGO_INSTANCE_LABEL,
    CREATED_AT_ANNOTATION,
    FINALIZER,
    GIT_REVISION_ANNOTATION,
    IDENTITY_LABEL,
    ORIGIN_NODE_ANNOTATION,
    ORIGIN_NODE_LABEL,
    ORIGIN_POD_ANNOTATION,
    ORIGIN_POD_UID_ANNOTATION,
    POLICY_ORIGIN_ANNOTATION,
    TRIGGER_TYPE_ANNOTATION,
    TRIGGER_UID_ANNOTATION,
    TRIGGERED_BY_LABEL,
)
from schemas.pod import Pod
from schemas.policy import Policy, TriggerType
from schemas.policy_origin import PolicyOrigin
from schemas.trigger import ManualTrigger

# Where Argo CD tracks by label, a group's label makes the snapshot look like one of its objects,
# and what is not in Git it would delete.
NOT_OF_ARGO: Final = {
    "argocd.argoproj.io/compare-options": "IgnoreExtraneous",
    "argocd.argoproj.io/sync-options": "Prune=false",
}
_LABEL_VALUE = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$")


def manual_snapshot(
    name: str,
    pod: Pod,
    policy: Policy,
    *,
    by: ManualTrigger,
    now: str,
    origin: PolicyOrigin | None = None,
) -> dict[str, Any]:
    """Return the PodSnapshot of a manual trigger, addressed to the Pod's node.

    ``origin`` is the policy's, where more is known of it than the policy tells.
    """
    return _snapshot(
        name,
        pod,
        policy,
        now,
        trigger_type=TriggerType.MANUAL,
        labels={TRIGGERED_BY_LABEL: label_value(by.metadata.name)},
        annotations={TRIGGER_UID_ANNOTATION: by.metadata.uid},
        origin=origin,
    )


def automatic_snapshot(
    name: str,
    pod: Pod,
    policy: Policy,
    *,
    identity: str,
    now: str,
    origin: PolicyOrigin | None = None,
) -> dict[str, Any]:
    """Return the PodSnapshot that interchangeable Pods of a policy share."""
    return _snapshot(
        name,
        pod,
        policy,
        now,
        trigger_type=policy.trigger_type,
        labels={IDENTITY_LABEL: identity},
        annotations={},
        origin=origin,
    )


def parting_snapshot(name: str, pod: Pod, policy: Policy, *, now: str) -> dict[str, Any]:
    """Return the PodSnapshot of a Pod that is being deleted."""
    return _snapshot(
        name, pod, policy, now, trigger_type=TriggerType.ON_DELETE, labels={}, annotations={}
    )


def label_value(text: str) -> str:
    """Return the text if it can be a label's value, else a digest of it."""
    return text if _LABEL_VALUE.match(text) else hashlib.sha256(text.encode()).hexdigest()[:32]


def _snapshot(
    name: str,
    pod: Pod,
    policy: Policy,
    now: str,
    *,
    trigger_type: TriggerType,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    origin: PolicyOrigin | None = None,
) -> dict[str, Any]:
    brought = origin or policy.origin
    made = {
        ORIGIN_POD_ANNOTATION: pod.metadata.name,
        ORIGIN_NODE_ANNOTATION: pod.node_name,
        ORIGIN_POD_UID_ANNOTATION: pod.metadata.uid,
        TRIGGER_TYPE_ANNOTATION: trigger_type,
        CREATED_AT_ANNOTATION: now,
        POLICY_ORIGIN_ANNOTATION: brought.to_annotation(),
    }
    if brought.revision:
        made[GIT_REVISION_ANNOTATION] = brought.revision
    group = group_labels(pod.metadata.labels, policy)
    if ARGO_INSTANCE_LABEL in group:
        made |= NOT_OF_ARGO
    return {
        "apiVersion": API_VERSION,
        "kind": "PodSnapshot",
        "metadata": {
            "name": name,
            "namespace": pod.metadata.namespace,
            "labels": {
                **group,
                ORIGIN_NODE_LABEL: label_value(pod.node_name),
                **labels,
            },
            "annotations": {**made, **annotations},
            "finalizers": [FINALIZER],
        },
        "spec": {"policyName": policy.metadata.name},
    }
