# SPDX-License-Identifier: Apache-2.0
"""API objects that judgements are asked about: complete enough to be real, one line to vary."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from policies.distill import distill
from schemas.conditions import Condition
from schemas.names import PS_NAME_ANNOTATION, READY
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.snapshot import CaptureRecord, Compatibility, Failure, Snapshot, StoryEntry
from schemas.storage_config import Location

NODE = Compatibility(
    runsc_version="release-1",
    runsc_digest="sha256:aa",
    platform="systrap",
    architecture="amd64",
    machine_series="",
    runtime_config={"overlay2": "none"},
    cpu_features=("avx", "sse4_2"),
)


def pod_object(
    name: str = "web-0",
    *,
    namespace: str = "shop",
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    is_ready: bool = True,
    **spec: Any,  # noqa: ANN401 - any field of a PodSpec
) -> dict[str, Any]:
    """Return a Pod as the API has it; ``spec`` replaces fields of its spec."""
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{name}",
            "labels": {"app": "web"} if labels is None else dict(labels),
            "annotations": dict(annotations or {}),
        },
        "spec": {
            "runtimeClassName": "gvisor",
            "nodeName": "node-1",
            "containers": [{"name": "main", "image": "registry.example/web:1"}],
            **spec,
        },
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True" if is_ready else "False"}],
        },
    }


def pod(name: str = "web-0", **fields: Any) -> Pod:  # noqa: ANN401 - those of pod_object
    """Return a parsed Pod."""
    return Pod.parse(pod_object(name, **fields))


def pinned(pin: str, **fields: Any) -> Pod:  # noqa: ANN401 - those of pod_object
    """Return a Pod with a ``ps-name`` annotation."""
    return pod(annotations={PS_NAME_ANNOTATION: pin}, **fields)


def policy(
    name: str = "web",
    *,
    namespace: str = "shop",
    created: str = "2026-01-01T00:00:00Z",
    labels: tuple[str, ...] = (),
    trigger: str = "manual",
    **spec: Any,  # noqa: ANN401 - any field of the policy's spec
) -> Policy:
    """Return a policy that selects ``app=web``, grouping by ``labels``."""
    grouping = {"groupByLabelValue": {"labels": list(labels)}} if labels else {}
    return Policy.parse(
        {
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": f"uid-{name}",
                "creationTimestamp": created,
            },
            "spec": {
                "selector": {"matchLabels": {"app": "web"}},
                "storageConfigName": "store",
                "triggerConfig": {"type": trigger},
                "snapshotGroupingRules": grouping,
                **spec,
            },
        }
    )


def capture_of(source: Pod, *, at: str = "2026-01-01T10:00:00.000000Z") -> CaptureRecord:
    """Return the record of a Pod that was saved and uploaded."""
    return CaptureRecord(
        node="node-1",
        attempt=1,
        pod_name=source.metadata.name,
        pod_uid=source.metadata.uid,
        claimed_at=at,
        checkpointed_at=at,
        sealed_at=at,
        uploaded_at=at,
        size_bytes=1000,
        location=Location("bucket-1", "snapshots/one"),
        manifest_digest="sha256:00",
        identity=distill(source),
        compatibility=NODE,
        image_ids={name: f"sha256:{name}" for name in source.running_names},
    )


def snapshot(
    name: str = "11111111-1111-5111-8111-111111111111",
    *,
    namespace: str = "shop",
    policy_name: str = "web",
    labels: Mapping[str, str] | None = None,
    is_ready: bool = True,
    capture: CaptureRecord | None = None,
    damage: str = "",
) -> Snapshot:
    """Return a snapshot; Ready and saved from ``pod()`` unless told otherwise."""
    found = Snapshot.parse(
        {
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": f"uid-{name}",
                "labels": dict(labels or {}),
                "creationTimestamp": "2026-01-01T09:00:00Z",
            },
            "spec": {"policyName": policy_name},
        }
    )
    ready = Condition(READY, "True", "AllSnapshotsAvailable")
    waiting = Condition(READY, "False", "Uploading", "5 MB are being uploaded")
    return replace(
        found,
        conditions={READY: ready if is_ready else waiting},
        capture=capture or capture_of(pod()),
        damage=damage,
    )


def story_of(*states: str) -> tuple[StoryEntry, ...]:
    """Return a story with these states, a second apart."""
    return tuple(StoryEntry(s, f"2026-01-01T10:00:0{n}.000000Z") for n, s in enumerate(states))


FAILURE = Failure("RunscFailed", "runsc checkpoint: exit status 128")
