# SPDX-License-Identifier: Apache-2.0
"""PodSnapshot objects, as the controller creates them.

Creation is the lock: the name is derived, so a second creator gets AlreadyExists and the object
that is there is as good. Users never create these; what stands in them steers agents.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from backends.clock import Clock
from backends.kube.client import POD_SNAPSHOTS, KubeClient
from backends.kube.errors import AlreadyExists
from policies.selection import group_labels
from schemas.instants import to_micro_time
from schemas.names import (
    API_VERSION,
    CONTROLLER_MANAGER,
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


def create_manual(
    client: KubeClient, clock: Clock, name: str, pod: Pod, policy: Policy, *, by: ManualTrigger
) -> None:
    """Create the PodSnapshot of a manual trigger, addressed to the Pod's node."""
    _create(
        client,
        clock,
        name,
        pod,
        policy,
        trigger_type=TriggerType.MANUAL,
        labels={TRIGGERED_BY_LABEL: label_value(by.metadata.name)},
        annotations={TRIGGER_UID_ANNOTATION: by.metadata.uid},
    )


def create_automatic(
    client: KubeClient, clock: Clock, name: str, pod: Pod, policy: Policy, *, identity: str
) -> None:
    """Create the PodSnapshot that interchangeable Pods of a policy share."""
    _create(
        client,
        clock,
        name,
        pod,
        policy,
        trigger_type=policy.trigger_type,
        labels={IDENTITY_LABEL: identity},
        annotations={},
    )


def label_value(text: str) -> str:
    """Return the text if it can be a label's value, else a digest of it."""
    return text if _LABEL_VALUE.match(text) else hashlib.sha256(text.encode()).hexdigest()[:32]


def _create(
    client: KubeClient,
    clock: Clock,
    name: str,
    pod: Pod,
    policy: Policy,
    *,
    trigger_type: TriggerType,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
) -> None:
    origin = {
        ORIGIN_POD_ANNOTATION: pod.metadata.name,
        ORIGIN_NODE_ANNOTATION: pod.node_name,
        ORIGIN_POD_UID_ANNOTATION: pod.metadata.uid,
        TRIGGER_TYPE_ANNOTATION: trigger_type,
        CREATED_AT_ANNOTATION: to_micro_time(clock.now()),
    }
    if policy.git_revision:
        origin[GIT_REVISION_ANNOTATION] = policy.git_revision
    body: dict[str, Any] = {
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
    try:
        client.create(POD_SNAPSHOTS, body, field_manager=CONTROLLER_MANAGER)
    except AlreadyExists:
        return
