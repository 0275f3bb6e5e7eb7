# SPDX-License-Identifier: Apache-2.0
"""Which node gets a token for which folder, as whom.

All agents are one ServiceAccount, and a node may be in the wrong hands; so what an agent says of
itself counts for nothing beyond its node's name, which the API server vouches for. The rest is
compared with what others wrote: the scheduler (where a Pod runs), the kubelet's API (that it
exists), and the controller (what is stored where).

The trap: an agent also makes PodSnapshots, whose names are folders in a bucket that others share.
So a name has to be the one that follows from the Pod, and a folder is of one snapshot alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from policies.identity import parting_snapshot_name
from policies.selection import governing_policy
from schemas.instants import parse_time, to_time
from schemas.names import SERVICE_ACCOUNT_ANNOTATION
from schemas.pod import Pod
from schemas.policy import Policy, TriggerType
from schemas.snapshot import CaptureRecord, Snapshot
from schemas.storage_config import Location, StorageConfig
from schemas.token_request import Role, Sighting, TokenRequest

# A Pod that is gone is stored as whom it ran for so long: an upload outlasts a bucket that does not
# answer for hours, but a node does not keep an identity for good.
SIGHTING_LIFE_S: Final = 6 * 3600.0
# So often a Pod that is still there is noted again.
SIGHTING_REFRESH_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class GrantFacts:
    """What there is.

    ``pod`` has the request's name and namespace; ``misnamed`` has the request's UID and another
    name or namespace. ``policies`` are the namespace's; ``namesakes`` are the PodSnapshots of that
    name in other namespaces.
    """

    request: TokenRequest
    snapshot: Snapshot | None
    pod: Pod | None
    policies: tuple[Policy, ...]
    configs: tuple[StorageConfig, ...]
    now: datetime
    misnamed: Pod | None = None
    namesakes: tuple[Snapshot, ...] = ()


@dataclass(frozen=True, slots=True)
class Grant:
    """A token may be minted. ``bound_to`` is the Pod with which it ends, if that one still is."""

    location: Location
    role: Role
    token_source: str
    service_account: str
    bound_to: Pod | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """No token: a CamelCase reason and a sentence with what to do."""

    reason: str
    message: str


def judge(facts: GrantFacts) -> Grant | Refusal:
    """Judge a request."""
    request, snapshot = facts.request, facts.snapshot
    if snapshot is None or snapshot.metadata.is_deleting:
        return Refusal("SnapshotGone", f"PodSnapshot {request.snapshot_name} is gone")
    capture = snapshot.capture
    if capture is None:
        return Refusal("NothingSaved", "nobody has claimed the save of this PodSnapshot")
    pod = facts.pod
    if pod is not None and pod.metadata.uid != request.pod_uid:
        pod = None  # another one of the same name
    refusal = _not_as_it_says(facts, snapshot, capture, pod) or (
        _may_save(facts, snapshot, capture, pod)
        if request.role is Role.CHECKPOINT
        else _may_restore(facts, snapshot, pod)
    )
    if refusal is not None:
        return refusal
    config = _config(facts, snapshot, capture)
    if config is None or config.location is None:
        place = capture.location.url if capture.location else "its place"
        return Refusal(
            "StorageNotAllowed",
            f"no PodSnapshotStorageConfig that namespace {snapshot.metadata.namespace} may use "
            f"leads to {place}; create one, or name the namespace in its annotation",
        )
    location = config.location.below(snapshot.metadata.name)
    if (shared := _shared(facts, location)) is not None:
        return shared
    seen = sighting_of(snapshot)
    account = service_account(pod) if pod is not None else seen.service_account if seen else ""
    return Grant(
        location=location,
        role=request.role,
        token_source=config.token_source,
        service_account=account,
        bound_to=pod,
    )


def _not_as_it_says(
    facts: GrantFacts, snapshot: Snapshot, capture: CaptureRecord, pod: Pod | None
) -> Refusal | None:
    request = facts.request
    if capture.failure is not None:
        return Refusal("SaveFailed", f"the save has failed: {capture.failure.reason}")
    if not _has_own_name(snapshot):
        return Refusal(
            "NameMadeUp",
            f"PodSnapshot {request.snapshot_name} is not called as the one of Pod "
            f"{snapshot.origin_pod} is; delete it and see what runs on node {request.node_name}",
        )
    if pod is None and facts.misnamed is not None:
        return Refusal(
            "PodMisnamed", f"the Pod with UID {request.pod_uid} is {facts.misnamed.metadata}"
        )
    if pod is not None and pod.node_name != request.node_name:
        where = f"is on {pod.node_name}" if pod.node_name else "has no node"
        return Refusal("PodElsewhere", f"Pod {request.pod_name} {where}; that node may ask")
    return None


def _may_save(
    facts: GrantFacts, snapshot: Snapshot, capture: CaptureRecord, pod: Pod | None
) -> Refusal | None:
    request = facts.request
    if capture.node != request.node_name:
        return Refusal("NotTheSavingNode", f"the save is made by node {capture.node}")
    origin = "" if snapshot.awaits_workload else snapshot.origin_pod_uid
    if request.pod_uid != capture.pod_uid or (origin and origin != request.pod_uid):
        return Refusal("NotTheSavedPod", f"the save is of Pod {snapshot.origin_pod}")
    if snapshot.is_stored:
        return Refusal("AlreadyStored", "the save is in the bucket; nothing is to be written")
    seen = sighting_of(snapshot)
    was_seen = seen is not None and (seen.pod_uid, seen.node) == (
        request.pod_uid,
        request.node_name,
    )
    if pod is not None:
        # The policy may have been deleted since.
        return None if was_seen else _governed(facts, snapshot, pod)
    if seen is None or not was_seen:
        return Refusal(
            "PodGone",
            f"Pod {request.pod_name} was gone before the controller saw it on node "
            f"{request.node_name}, so nobody can say as whom its save is to be stored; save its "
            "successor",
        )
    if _age_s(seen, facts.now) >= SIGHTING_LIFE_S:
        return Refusal(
            "PodGone",
            f"Pod {request.pod_name} was last seen at {seen.seen_at}, and a save is stored as a "
            f"Pod that is gone for {SIGHTING_LIFE_S / 3600:.0f} hours; save its successor",
        )
    return None


def _has_own_name(snapshot: Snapshot) -> bool:
    """Whether an agent, who makes those of Pods that part, has called it as it is called."""
    if snapshot.trigger_type != TriggerType.ON_DELETE or snapshot.is_imported:
        return True
    return snapshot.metadata.name == parting_snapshot_name(snapshot.origin_pod_uid)


def _shared(facts: GrantFacts, folder: Location) -> Refusal | None:
    """Refuse a folder that is not of this snapshot alone."""
    for other in facts.namesakes:
        if other.capture is not None and other.capture.location == folder:
            return Refusal(
                "FolderShared",
                f"{folder.url} is the folder of PodSnapshot {other.metadata} too; delete the one "
                "that should not be there, with the annotation podsnap.dev/abandon-bytes: 'true'",
            )
    for config in facts.configs:
        place = config.location
        if place is None or place.bucket != folder.bucket:
            continue
        if f"{place.path}/".startswith(f"{folder.path}/"):
            return Refusal(
                "FolderShared",
                f"{folder.url} holds the folder of PodSnapshotStorageConfig "
                f"{config.metadata.name}; give that another path",
            )
    return None


def _may_restore(facts: GrantFacts, snapshot: Snapshot, pod: Pod | None) -> Refusal | None:
    if pod is None or pod.is_over:
        return Refusal("PodGone", f"Pod {facts.request.pod_name} is gone")
    if not snapshot.is_stored:
        return Refusal("NotStored", f"PodSnapshot {snapshot.metadata} is not in the bucket (yet)")
    return _governed(facts, snapshot, pod)


def _governed(facts: GrantFacts, snapshot: Snapshot, pod: Pod) -> Refusal | None:
    if _governs(facts.policies, snapshot, pod):
        return None
    return Refusal(
        "NotGoverned",
        f"Pod {pod.metadata.name} is not governed by policy {snapshot.policy_name}, under which "
        "the PodSnapshot was made",
    )


def _governs(policies: Iterable[Policy], snapshot: Snapshot, pod: Pod) -> bool:
    """Whether the policy under which a snapshot was made governs a Pod of its namespace."""
    policy = governing_policy(pod, policies)
    return (
        policy is not None
        and pod.metadata.namespace == snapshot.metadata.namespace
        and policy.metadata.name == snapshot.policy_name
    )


def _config(facts: GrantFacts, snapshot: Snapshot, capture: CaptureRecord) -> StorageConfig | None:
    """Return the storage config whose folder the bytes are in; the record of it is a node's."""
    name, namespace = snapshot.metadata.name, snapshot.metadata.namespace
    usable = [
        c
        for c in _by_age(facts.configs)
        if c.location is not None
        and not c.path_error
        and c.allows(namespace)
        and c.location.below(name) == capture.location
    ]
    named = next(
        (
            p.storage_config_name
            for p in facts.policies
            if p.metadata.key == (namespace, snapshot.policy_name)
        ),
        "",
    )
    return next((c for c in usable if c.metadata.name == named), next(iter(usable), None))


def _by_age(configs: Iterable[StorageConfig]) -> list[StorageConfig]:
    return sorted(configs, key=lambda c: (c.metadata.creation_timestamp, c.metadata.name))


def sighting_of(snapshot: Snapshot) -> Sighting | None:
    """Return what the controller once saw of the saved Pod."""
    return Sighting.parse(snapshot.metadata.annotations.get(SERVICE_ACCOUNT_ANNOTATION, ""))


def awaits_sighting(snapshot: Snapshot) -> bool:
    """Whether a save is under way, so that its Pod is to be looked at."""
    capture = snapshot.capture
    return (
        capture is not None
        and capture.failure is None
        and not snapshot.is_stored
        and not snapshot.metadata.is_deleting
    )


def new_sighting(
    snapshot: Snapshot, pod: Pod | None, policies: Iterable[Policy], now: datetime
) -> Sighting | None:
    """Return what is to be noted on a snapshot whose Pod is there, ``None`` if nothing is.

    Only of a Pod of the snapshot's namespace that its policy governs (or did when it was noted).
    """
    capture = snapshot.capture
    if capture is None or pod is None or not awaits_sighting(snapshot):
        return None
    if not _has_own_name(snapshot):
        return None
    if (pod.metadata.uid, pod.node_name) != (capture.pod_uid, capture.node):
        return None
    found = Sighting(service_account(pod), capture.pod_uid, capture.node, to_time(now))
    known = sighting_of(snapshot)
    if known is not None and (known.service_account, known.pod_uid, known.node) == (
        found.service_account,
        found.pod_uid,
        found.node,
    ):
        return found if _age_s(known, now) >= SIGHTING_REFRESH_S else None
    return found if _governs(policies, snapshot, pod) else None


def _age_s(seen: Sighting, now: datetime) -> float:
    at = parse_time(seen.seen_at)
    return (now - at).total_seconds() if at else SIGHTING_LIFE_S


def service_account(pod: Pod) -> str:
    """Return as whom a Pod runs."""
    name: str = pod.spec.get("serviceAccountName") or "default"
    return name
