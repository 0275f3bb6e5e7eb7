# SPDX-License-Identifier: Apache-2.0
"""PodSnapshots made from what lies in a bucket: after a disaster, or in another cluster.

The object gets the record that the saving node would have written, as far as the manifest has it.
Its UID is new, so it carries the one under which its bytes were stored; only podsnap may write that
annotation, because it opens those bytes. The trap: what the manifest does not say cannot be made
up; so it is left empty and told.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

from policies.new_snapshots import NOT_OF_ARGO
from policies.selection import group_labels
from schemas.manifest import Manifest
from schemas.names import (
    API_VERSION,
    ARGO_INSTANCE_LABEL,
    CREATED_AT_ANNOTATION,
    FINALIZER,
    GIT_REVISION_ANNOTATION,
    ORIGIN_POD_ANNOTATION,
    STORED_UID_ANNOTATION,
)
from schemas.policy import Policy
from schemas.snapshot import CaptureRecord
from schemas.storage_config import Location

_STATE_FILE: Final = "checkpoint.img"
# RFC 1123, as the API server takes names.
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN: Final = re.compile(rf"{_LABEL.pattern}(\.{_LABEL.pattern})*")


def malformed(manifest: Manifest) -> str:
    """Say what of a manifest can be of no snapshot; empty if it may be one.

    Whoever may write to the bucket wrote it, so no field is what its type says.
    """
    names = (
        ("snapshot", manifest.snapshot_name, _SUBDOMAIN, 253),
        ("namespace", manifest.namespace, _LABEL, 63),
    )
    for what, name, form, limit in names:
        if not isinstance(name, str) or len(name) > limit or not form.fullmatch(name):
            return f"{name!r} is no name of a {what}"
    texts = {
        "uid": manifest.snapshot_uid,
        "cluster": manifest.cluster_id,
        "origin.pod": manifest.origin_pod,
        "origin.node": manifest.origin_node,
        "gitRevision": manifest.git_revision,
    }
    if wrong := [key for key, text in texts.items() if not isinstance(text, str)]:
        return f"{wrong[0]} is no text"
    if not manifest.snapshot_uid:
        return "it has no uid"
    if type(manifest.attempt) is not int or manifest.attempt < 1:
        return f"{manifest.attempt!r} is no number of an attempt"
    return ""


def governing(manifest: Manifest, policies: Iterable[Policy], wanted: str) -> Policy | str:
    """Return the policy that an imported snapshot is to belong to, or say why there is none.

    It is the one that is wanted, else the one that the manifest names, else the only one there.
    """
    namespace = manifest.namespace
    here = [p for p in policies if p.metadata.namespace == namespace and not p.metadata.is_deleting]
    if wanted:
        found = [p for p in here if p.metadata.name == wanted]
        return found[0] if found else f"namespace {namespace} has no policy {wanted}; create it"
    if named := [p for p in here if p.metadata.name == manifest.policy_name]:
        return named[0]
    if not here:
        return f"namespace {namespace} has no policy; create the one under which it was saved"
    if len(here) > 1:
        names = ", ".join(sorted(p.metadata.name for p in here))
        return f"namespace {namespace} has the policies {names}; choose one with --policy"
    return here[0]


def imported_object(manifest: Manifest, policy: Policy, *, stored_at: str) -> dict[str, Any]:
    """Return the PodSnapshot; ``stored_at`` (``MicroTime``) is when its manifest was written.

    It names no node to save on, so that no agent takes it for a wish.
    """
    annotations = {
        STORED_UID_ANNOTATION: manifest.snapshot_uid,
        ORIGIN_POD_ANNOTATION: manifest.origin_pod,
        CREATED_AT_ANNOTATION: stored_at,
    }
    if manifest.git_revision:
        annotations[GIT_REVISION_ANNOTATION] = manifest.git_revision
    # The manifest is whatever lies in the bucket: of its labels only the policy's own are taken.
    group = group_labels(manifest.group_labels, policy)
    if ARGO_INSTANCE_LABEL in group:
        annotations |= NOT_OF_ARGO
    return {
        "apiVersion": API_VERSION,
        "kind": "PodSnapshot",
        "metadata": {
            "name": manifest.snapshot_name,
            "namespace": manifest.namespace,
            "labels": group,
            "annotations": annotations,
            "finalizers": [FINALIZER],
        },
        "spec": {"policyName": policy.metadata.name},
    }


def imported_record(
    manifest: Manifest, location: Location, manifest_digest: str, *, stored_at: str
) -> CaptureRecord:
    """Return what the saving node had written; the one instant that is known stands for all."""
    return CaptureRecord(
        node=manifest.origin_node or "unknown",
        attempt=manifest.attempt,
        pod_name=manifest.origin_pod,
        claimed_at=stored_at,
        checkpointed_at=stored_at,
        sealed_at=stored_at,
        uploaded_at=stored_at,
        upload_parts=len(manifest.parts),
        size_bytes=manifest.size_bytes,
        location=location,
        manifest_digest=manifest_digest,
        identity=manifest.identity,
        compatibility=manifest.compatibility,
        image_ids=manifest.image_ids,
        rootfs_only=all(part.name != _STATE_FILE for part in manifest.parts),
    )


def unsaid(manifest: Manifest, policy: Policy) -> tuple[str, ...]:
    """Say what follows from what the manifest does not have."""
    found = []
    missing = [key for key in policy.grouping_labels if key not in manifest.group_labels]
    if missing and manifest.policy_name != policy.metadata.name:
        found.append(
            f"policy {policy.metadata.name} groups by {', '.join(missing)}, and the "
            "manifest does not say its group: only Pods without these labels are restored from it"
        )
    if policy.rootfs_only == any(part.name == _STATE_FILE for part in manifest.parts):
        holds = "files alone" if not policy.rootfs_only else "memory"
        found.append(
            f"it holds {holds}, and policy {policy.metadata.name} says snapshotScope "
            f"{policy.snapshot_scope}: no Pod is restored from it"
        )
    return tuple(found)


def would_not_stay(policy: Policy, present: int, imported: int) -> str:
    """Say that retention deletes some of what is imported, bytes and all; empty if it does not."""
    limit, count = policy.max_snapshots_per_group, present + imported
    if not limit or count <= limit:
        return ""
    return (
        f"policy {policy.metadata} keeps {limit} snapshots of a group and would have {count}: "
        "retention deletes the oldest, with their bytes; raise maxSnapshotCountPerGroup first if "
        "they are to stay"
    )
