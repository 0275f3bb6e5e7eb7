# SPDX-License-Identifier: Apache-2.0
"""PodSnapshot objects, as podsnap creates them; users never do, what stands in them steers agents.

Creation is the lock: the name is derived, so a second creator gets AlreadyExists and the object
that is there is as good.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from policies.selection import group_labels
from schemas.names import (
    API_VERSION,
    CREATED_AT_ANNOTATION,
    FINALIZER,
    GIT_REVISION_ANNOTATION,
    IDENTITY_LABEL,
    ORIGIN_NODE_ANNOTATION,
    ORIGIN_NODE_LABEL,
    ORIGIN_POD_ANNOTATION,
    ORIGIN_POD_UID_ANNOTATION,
    TRIGGER_TYPE_ANNOTATION,
    TRIGGER_UID_ANNOTATION,
    TRIGGERED_BY_LABEL,
)
from schemas.pod import Pod
from schemas.policy import Policy, TriggerType
from schemas.trigger import ManualTrigger

_LABEL_VALUE = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$")


def manual_snapshot(
    name: str, pod: Pod, policy: Policy, *, by: ManualTrigger, now: str
) -> dict[str, Any]:
    """Return the PodSnapshot of a manual trigger, addressed to the Pod's node."""
    return _snapshot(
        name,
        pod,
        policy,
        now,
        trigger_type=TriggerType.MANUAL,
        labels={TRIGGERED_BY_LABEL: label_value(by.metadata.name)},
        annotations={TRIGGER_UID_ANNOTATION: by.metadata.uid},
    )


def automatic_snapshot(
    name: str, pod: Pod, policy: Policy, *, identity: str, now: str
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
) -> dict[str, Any]:
    origin = {
        ORIGIN_POD_ANNOTATION: pod.metadata.name,
        ORIGIN_NODE_ANNOTATION: pod.node_name,
        ORIGIN_POD_UID_ANNOTATION: pod.metadata.uid,
        TRIGGER_TYPE_ANNOTATION: trigger_type,
        CREATED_AT_ANNOTATION: now,
    }
    if policy.git_revision:
        origin[GIT_REVISION_ANNOTATION] = policy.git_revision
    return {
        "apiVersion": API_VERSION,
        "kind": "PodSnapshot",
        "metadata": {
            "name": name,
            "namespace": pod.metadata.namespace,
            "labels": {
                **group_labels(pod.metadata.labels, policy),
                ORIGIN_NODE_LABEL: label_value(pod.node_name),
                **labels,
            },
            "annotations": {**origin, **annotations},
            "finalizers": [FINALIZER],
        },
        "spec": {"policyName": policy.metadata.name},
    }
