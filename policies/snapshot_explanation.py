# SPDX-License-Identifier: Apache-2.0
"""What became of a snapshot: its life, its bytes, who used it, and where it can run.

All of it stands on the object. The trap is the rates: an instant may be missing (an agent that
died, a step that was not needed), and then there is no rate instead of a wrong one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from policies.compatibility import incompatibilities
from policies.difference import node_fields
from policies.obsolescence import NodeClass
from policies.selection import group_labels
from schemas.instants import parse_time
from schemas.names import GIT_REVISION_ANNOTATION, QUARANTINE_ANNOTATION, READY
from schemas.policy import Policy
from schemas.snapshot import RestoreProgress, SizeParts, Snapshot


@dataclass(frozen=True, slots=True)
class Chapter:
    """One state of a snapshot's life; ``after_s`` is seconds since the state before."""

    state: str
    at: str
    after_s: float | None
    why: str


@dataclass(frozen=True, slots=True)
class Rate:
    """One step of a save: how long it took, and bytes per second."""

    step: str
    took_s: float
    bytes_per_s: int


@dataclass(frozen=True, slots=True)
class NodeFit:
    """Whether nodes of one kind can run the snapshot, and if not why."""

    nodes: tuple[str, ...]
    fits: bool
    why_not: str


@dataclass(frozen=True, slots=True)
class SnapshotExplanation:
    """Everything that is known of one snapshot; ``retention`` says when it goes."""

    namespace: str
    name: str
    state: str
    message: str
    policy: str
    policy_exists: bool
    trigger_type: str
    group: Mapping[str, str]
    saved_from: str
    saved_on: str
    scope: str
    git_revision: str
    path: str
    story: tuple[Chapter, ...]
    size_bytes: int
    sizes: SizeParts | None
    rates: tuple[Rate, ...]
    last_used_at: str
    restores: int
    restored_by: Mapping[str, int]
    restoring: tuple[RestoreProgress, ...]
    failed_restores: tuple[str, ...]
    quarantine: str
    retention: str
    compatibility: Mapping[str, str]
    nodes: tuple[NodeFit, ...]
    what_to_do: tuple[str, ...]


def story(snapshot: Snapshot) -> tuple[Chapter, ...]:
    """Return each state that the snapshot reached, oldest first."""
    chapters: list[Chapter] = []
    before: datetime | None = None
    for entry in snapshot.control.story:
        at = parse_time(entry.at)
        after_s = round((at - before).total_seconds(), 6) if at and before else None
        why = entry.reason or _what(snapshot, entry.state)
        chapters.append(Chapter(entry.state, entry.at, after_s, why))
        before = at or before
    return tuple(chapters)


def _what(snapshot: Snapshot, state: str) -> str:
    capture = snapshot.capture
    if state == "Checkpointing" and capture is not None:
        return f"Pod {capture.pod_name} on node {capture.node}"
    return f"in {snapshot.observed_path}" if state == "AllSnapshotsAvailable" else ""


def rates(snapshot: Snapshot) -> Iterator[Rate]:
    """Yield how fast each step of the save was, as far as its instants are known."""
    capture = snapshot.capture
    if capture is None or not capture.size_bytes:
        return
    sealed, uploaded = parse_time(capture.sealed_at), parse_time(capture.uploaded_at)
    upload_s = (uploaded - sealed).total_seconds() if sealed and uploaded else 0.0
    for step, took_s in (
        ("checkpoint", capture.checkpoint_s),
        ("seal", capture.seal_s),
        ("upload", upload_s),
    ):
        if took_s > 0:
            yield Rate(step, round(took_s, 3), round(capture.size_bytes / took_s))


def node_fits(snapshot: Snapshot, classes: Iterable[NodeClass]) -> Iterator[NodeFit]:
    """Judge every kind of node; files alone run on any."""
    capture = snapshot.capture
    if capture is None:
        return
    for kind in classes:
        found = incompatibilities(capture.compatibility, kind.compatibility)
        why_not = [] if capture.rootfs_only else found
        yield NodeFit(kind.nodes, not why_not, "; ".join(why_not))


def explain_snapshot(
    snapshot: Snapshot,
    *,
    policy: Policy | None,
    classes: Iterable[NodeClass],
    restoring: Sequence[RestoreProgress],
    retention: str,
) -> SnapshotExplanation:
    """Explain a snapshot; ``retention`` says how long it is kept."""
    capture, ready = snapshot.capture, snapshot.conditions.get(READY)
    fits = tuple(node_fits(snapshot, classes))
    return SnapshotExplanation(
        namespace=snapshot.metadata.namespace,
        name=snapshot.metadata.name,
        state=ready.reason if ready else "Pending",
        message=ready.message if ready else "",
        policy=snapshot.policy_name,
        policy_exists=policy is not None,
        trigger_type=snapshot.trigger_type,
        group=group_of(snapshot, policy),
        saved_from=saved_from(snapshot),
        saved_on=capture.node if capture else snapshot.origin_node,
        scope="rootfs-only" if capture and capture.rootfs_only else "whole-pod",
        git_revision=snapshot.metadata.annotations.get(GIT_REVISION_ANNOTATION, ""),
        path=snapshot.observed_path,
        story=story(snapshot),
        size_bytes=capture.size_bytes if capture else 0,
        sizes=capture.sizes if capture else None,
        rates=tuple(rates(snapshot)),
        last_used_at=snapshot.last_access_time,
        restores=sum(snapshot.restored_by.values()),
        restored_by=snapshot.restored_by,
        restoring=tuple(restoring),
        failed_restores=tuple(snapshot.failures.values()),
        quarantine=snapshot.quarantine,
        retention=retention,
        compatibility=node_fields(capture.compatibility) if capture else {},
        nodes=fits,
        what_to_do=tuple(_what_to_do(snapshot, policy, fits)),
    )


def saved_from(snapshot: Snapshot) -> str:
    """Return the Pod that was saved; a workload's snapshot may be filled by another than meant."""
    return (snapshot.capture.pod_name if snapshot.capture else "") or snapshot.origin_pod


def group_of(snapshot: Snapshot, policy: Policy | None) -> dict[str, str]:
    """Return the labels by which the snapshot's policy groups."""
    return group_labels(snapshot.metadata.labels, policy) if policy else {}


def _what_to_do(
    snapshot: Snapshot, policy: Policy | None, fits: Sequence[NodeFit]
) -> Iterator[str]:
    name, capture = snapshot.metadata.name, snapshot.capture
    if snapshot.metadata.is_deleting:
        return
    if capture is not None and capture.failure is not None:
        yield (
            "it never recovers: mend the cause and save again; "
            f"`kubectl delete podsnapshot {name}` removes it"
        )
        return
    if snapshot.quarantine:
        yield (
            "mend the cause, then `kubectl annotate podsnapshot "
            f"{name} {QUARANTINE_ANNOTATION}=lifted`, or delete it and save again"
        )
    if policy is None:
        yield f"create a policy of the name {snapshot.policy_name} to have it back, or delete it"
    if fits and not any(fit.fits for fit in fits):
        yield "no node can run it: save anew on the nodes there are, or bring such a node back"
