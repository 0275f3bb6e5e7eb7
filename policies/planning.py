# SPDX-License-Identifier: Apache-2.0
"""What a tree of manifests changes, before it is applied: starts, policies, snapshots, deletions.

Two sides are judged by the same functions, and only what differs counts as a change. The trap is
time: what goes by itself tomorrow is no consequence of the tree, so a deletion counts only if the
tree causes it or moves it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from policies.planned_snapshots import (
    DeletionPlan,
    SnapshotPlan,
    Wanted,
    deletion_plans,
    snapshot_plans,
)
from policies.planned_starts import Forecast, Outlook, Side, Surroundings, Workload
from schemas.conditions import Condition
from schemas.names import READY
from schemas.snapshot import Snapshot

_ROLLED_OUT: Final = frozenset({"Deployment", "StatefulSet", "DaemonSet"})
_GROUPING: Final = "spec.snapshotGroupingRules.groupByLabelValue"
# Where in a manifest a field of a policy stands.
POLICY_FIELDS: Final = {
    "selector": "spec.selector",
    "storage_config_name": "spec.storageConfigName",
    "trigger_type": "spec.triggerConfig.type",
    "post_checkpoint": "spec.triggerConfig.postCheckpoint",
    "snapshot_scope": "spec.snapshotScope",
    "last_access_timeout": "spec.retentionConfig.lastAccessTimeout",
    "grouping_labels": f"{_GROUPING}.labels",
    "max_snapshots_per_group": f"{_GROUPING}.groupRetentionPolicy.maxSnapshotCountPerGroup",
    "options": "metadata.annotations",
}


class Change(StrEnum):
    """What the tree does to one object; ``UNKNOWN`` where nothing is known to compare with."""

    NONE = "None"
    UNKNOWN = "Unknown"
    ADDED = "Added"
    REMOVED = "Removed"
    CHANGED = "Changed"
    GOVERNED_ANEW = "GovernedAnew"
    UNGOVERNED = "NoLongerGoverned"
    COLD = "StartsCold"
    RESTORED = "IsRestored"
    OTHER_SNAPSHOT = "OtherSnapshot"

    @property
    def counts(self) -> bool:
        """Whether it is one."""
        return self not in {Change.NONE, Change.UNKNOWN}


@dataclass(frozen=True, slots=True)
class WorkloadPlan:
    """What becomes of one workload's next Pod, before and after; ``then`` is the consequence."""

    kind: str
    namespace: str
    name: str
    place: str
    change: Change
    before: Outlook | None
    after: Outlook | None
    then: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyPlan:
    """A policy that the tree brings, changes or takes away; ``fields`` says where it differs."""

    namespace: str
    name: str
    change: Change
    fields: tuple[str, ...]
    governs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that applying a tree would change, and how every workload of it would start."""

    workloads: tuple[WorkloadPlan, ...] = ()
    policies: tuple[PolicyPlan, ...] = ()
    snapshots: tuple[SnapshotPlan, ...] = ()
    deletions: tuple[DeletionPlan, ...] = ()

    @property
    def has_changes(self) -> bool:
        """Whether anything is different."""
        return bool(
            self.snapshots
            or any(w.change.counts for w in self.workloads)
            or any(p.change.counts for p in self.policies)
            or any(d.is_new for d in self.deletions)
        )

    @property
    def not_compared(self) -> int:
        """How many workloads there is nothing to compare with."""
        return sum(w.change is Change.UNKNOWN for w in self.workloads)


def plan(before: Side, after: Side, around: Surroundings) -> Plan:
    """Compare two sides; the snapshots are those of ``before``."""
    was, will = Wanted(before, around), Wanted(after, around)
    fates = list(snapshot_plans(before.snapshots, was, will))
    back = {(f.namespace, f.name) for f in fates if f.comes_back}
    usable = tuple(_ready(s) if s.metadata.key in back else s for s in before.snapshots)
    workloads = tuple(_workloads(before, replace(after, snapshots=usable), around))
    deleted = deletion_plans((before.snapshots, usable), was, will, around.now)
    return Plan(
        workloads,
        policies=tuple(_policies(before, after, workloads)),
        snapshots=tuple(replace(f, wanted_by=tuple(_losers(f, workloads))) for f in fates),
        deletions=tuple(deleted),
    )


# -- workloads


def _workloads(before: Side, after: Side, around: Surroundings) -> Iterator[WorkloadPlan]:
    now = Forecast(before, around.classes, around.runtime_classes)
    then = Forecast(after, around.classes, around.runtime_classes)
    same_rules = (before.policies, before.storage, before.snapshots) == (
        after.policies,
        after.storage,
        after.snapshots,
    )
    for key in dict.fromkeys((*after.workloads, *before.workloads)):
        old, new = before.workloads.get(key), after.workloads.get(key)
        told_before = now.of(old) if old else None
        if old and new and same_rules and old.pod == new.pod:
            told_after = told_before
        else:
            told_after = then.of(new) if new else None
        change = _change(told_before, told_after, around)
        shown = new or old
        # Without a place it only stands, because a policy that changes selects it.
        if shown is None or not (change.counts or (new and new.place)):
            continue
        yield WorkloadPlan(
            *key,
            place=shown.place,
            change=change,
            before=told_before,
            after=told_after,
            then=_consequence(old, new, told_after) if change is Change.COLD else "",
            notes=shown.notes,
        )


def _change(before: Outlook | None, after: Outlook | None, around: Surroundings) -> Change:
    if after is None:
        return Change.REMOVED if before and before.governed_by else Change.NONE
    if before is None:
        if not around.knows_workloads:
            return Change.UNKNOWN
        return Change.ADDED if after.governed_by else Change.NONE
    was, will = _by_node(before), _by_node(after)
    if any(was[node] and not will[node] for node in was):
        return Change.COLD
    if before.governed_by != after.governed_by:
        return Change.GOVERNED_ANEW if after.governed_by else Change.UNGOVERNED
    if any(will[node] and not was[node] for node in was):
        return Change.RESTORED
    return Change.OTHER_SNAPSHOT if was != will else Change.NONE


def _by_node(told: Outlook) -> dict[str, str]:
    """Return what each node restores from; without any node there is one answer."""
    return {node: start.restored_from for start in told.starts for node in start.nodes or ("",)}


def _consequence(old: Workload | None, new: Workload | None, after: Outlook | None) -> str:
    if old is None or new is None or after is None:
        return ""
    rolls = new.kind in _ROLLED_OUT and old.pod.spec != new.pod.spec
    first = "the first replica of its next rollout" if rolls else "its next new Pod"
    then = f"; to save anew: {after.next_save}" if after.next_save else ""
    return f"{first} starts cold{then}"


# -- policies


def _policies(before: Side, after: Side, workloads: Sequence[WorkloadPlan]) -> Iterator[PolicyPlan]:
    governed: dict[tuple[str, str], list[str]] = {}
    for workload in workloads:
        told = workload.after
        if told is not None and told.governed_by:
            names = governed.setdefault((workload.namespace, told.governed_by), [])
            names.append(f"{workload.kind} {workload.name}")
    was = {p.metadata.key: p for p in before.policies}
    will = {p.metadata.key: p for p in after.policies}
    for key in sorted(was.keys() | will.keys()):
        old, new = was.get(key), will.get(key)
        differs: tuple[str, ...] = ()
        if old is None or new is None:
            change = Change.ADDED if old is None else Change.REMOVED
        else:
            differs = tuple(
                path
                for name, path in POLICY_FIELDS.items()
                if getattr(old, name) != getattr(new, name)
            )
            change = Change.CHANGED if differs else Change.NONE
        if change.counts:
            yield PolicyPlan(*key, change, differs, tuple(governed.get(key, ())))


# -- snapshots


def _losers(fate: SnapshotPlan, workloads: Iterable[WorkloadPlan]) -> Iterator[str]:
    for workload in workloads:
        before, after = workload.before, workload.after
        if workload.namespace != fate.namespace or (after and fate.name in after.snapshots):
            continue
        was = before is not None and fate.name in before.snapshots
        would = before is None and after and any(s.nearest == fate.name for s in after.starts)
        if was or would:
            yield f"{workload.kind} {workload.name}"


def _ready(snapshot: Snapshot) -> Snapshot:
    ready = Condition(READY, "True", "AllSnapshotsAvailable")
    return replace(snapshot, conditions={**snapshot.conditions, READY: ready})
