# SPDX-License-Identifier: Apache-2.0
"""What becomes of stored snapshots when a tree is applied: obsolete, back again, deleted.

Whether somebody wants a snapshot is what the controller asks itself (``obsolescence``), so what is
told here is what it will do. The trap: it waits an hour before it calls a snapshot obsolete, and a
template is compared only in what it names, so a snapshot may outlive its last use.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Final

from policies.obsolescence import Demand, Template, demand, standing_of
from policies.planned_starts import Side, Surroundings
from policies.retention import Doomed, schedule
from policies.selection import group_key
from schemas.instants import to_time
from schemas.names import READY
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.snapshot import Snapshot

_OBSOLETE: Final = "Obsolete"


@dataclass(frozen=True, slots=True)
class SnapshotPlan:
    """A snapshot that becomes obsolete by the tree, or that comes back (``comes_back``).

    ``wanted_by`` names the workloads that are restored from it before and no longer after.
    ``kept_s`` is how long it is kept obsolete, ``None`` for as long as nobody deletes it.
    """

    namespace: str
    name: str
    policy: str
    comes_back: bool
    why: str
    wanted_by: tuple[str, ...] = ()
    kept_s: float | None = None


@dataclass(frozen=True, slots=True)
class DeletionPlan:
    """A snapshot that retention deletes; ``is_new`` if the tree causes it or moves its time."""

    namespace: str
    name: str
    policy: str
    due_at: str
    is_due: bool
    is_new: bool
    reason: str
    size_bytes: int


class Wanted:
    """What one side's Pods and templates ask for, policy by policy."""

    def __init__(self, side: Side, around: Surroundings) -> None:
        """What stands in the cluster beside the tree asks too."""
        self._images: dict[tuple[str, str], dict[tuple[object, ...], frozenset[object]]] = {}
        self.policies = {p.metadata.key: p for p in side.policies if not p.metadata.is_deleting}
        self._around = around
        self._templates: dict[str, list[Template]] = {}
        self._pods: dict[str, list[Pod]] = {}
        for workload in side.workloads.values():
            namespace = workload.pod.metadata.namespace
            if workload.template is None:
                self._pods.setdefault(namespace, []).append(workload.pod)
            else:
                self._templates.setdefault(namespace, []).append(workload.template)
        for template in around.templates:
            self._templates.setdefault(template.metadata.namespace, []).append(template)
        for pod in around.pods:
            self._pods.setdefault(pod.metadata.namespace, []).append(pod)
        self._demands: dict[tuple[str, str], Demand] = {}

    def demand(self, policy: Policy) -> Demand:
        """Return what a policy's Pods and templates ask for."""
        key = policy.metadata.key
        if key not in self._demands:
            namespace = policy.metadata.namespace
            pods, templates = self._pods.get(namespace, ()), self._templates.get(namespace, ())
            self._demands[key] = found = demand(policy, pods, templates)
            self._images[key] = {
                name: frozenset(i for i in wish.identity.fields.items() if i[0].endswith("].image"))
                for name, wish in found.wishes.items()
            }
        return self._demands[key]

    def standing(self, snapshot: Snapshot) -> tuple[bool, bool]:
        """Return whether nobody wants a snapshot of a policy, and whether it may serve."""
        policy = self.policies[snapshot.metadata.namespace, snapshot.policy_name]
        wanted = self._deciding(snapshot, policy)
        found = standing_of(snapshot, policy, wanted, self._around.classes, self._around.now)
        return bool(found.unwanted_since), not found.superseded

    def _deciding(self, snapshot: Snapshot, policy: Policy) -> Demand:
        """Return as much of the demand as decides whether somebody wants a snapshot.

        Of hundreds only those are compared whose images the snapshot has.
        """
        wanted, capture = self.demand(policy), snapshot.capture
        if capture is None:
            return wanted
        saved, images = capture.identity.fields.items(), self._images[policy.metadata.key]
        group = group_key(snapshot.metadata.labels, policy)
        rivals = {key: wish for key, wish in wanted.wishes.items() if wish.group == group}
        likely = {key: wish for key, wish in rivals.items() if saved >= images[key]}
        return Demand(likely or dict(islice(rivals.items(), 1)), wanted.pins)

    def doomed(self, key: tuple[str, str], snapshots: Iterable[Snapshot]) -> list[Doomed]:
        """Return which of a policy's snapshots retention deletes, none without the policy."""
        policy = self.policies.get(key)
        return schedule(policy, snapshots, self.demand(policy).pins) if policy else []

    def was_unwanted(self, snapshot: Snapshot) -> bool:
        """Return whether nobody wants it; without the workloads, what the controller recorded."""
        if self._around.knows_workloads:
            return self.standing(snapshot)[0]
        return bool(snapshot.control.unwanted_since)


def snapshot_plans(
    snapshots: Iterable[Snapshot], was: Wanted, will: Wanted
) -> Iterator[SnapshotPlan]:
    """Yield what becomes obsolete and what comes back; ``wanted_by`` is for others to fill."""
    for snapshot in snapshots:
        fate = _fate(snapshot, was, will) if _is_stored(snapshot) else None
        if fate is not None:
            yield fate


def _fate(snapshot: Snapshot, was: Wanted, will: Wanted) -> SnapshotPlan | None:
    key = (snapshot.metadata.namespace, snapshot.policy_name)
    had, has = key in was.policies, will.policies.get(key)
    ready = snapshot.conditions[READY].is_true
    if has is None:
        gone = f"policy {snapshot.policy_name} is gone; it comes back with one of that name"
        return _told(snapshot, gone) if had and ready else None
    unwanted, usable = will.standing(snapshot)
    if ready and unwanted and not (had and was.was_unwanted(snapshot)):
        return _told(snapshot, _why_unwanted(snapshot, has, will.demand(has)), has)
    returns = not ready and not unwanted and usable and not snapshot.quarantine
    if returns and not (had and not was.was_unwanted(snapshot)):
        why = f"a Pod or template that policy {has.metadata.name} selects has its spec again"
        return replace(_told(snapshot, why, has), comes_back=True)
    return None


def _told(snapshot: Snapshot, why: str, policy: Policy | None = None) -> SnapshotPlan:
    return SnapshotPlan(
        *snapshot.metadata.key,
        policy=snapshot.policy_name,
        comes_back=False,
        why=why,
        kept_s=policy.options.obsolete_ttl_s if policy else None,
    )


def _why_unwanted(snapshot: Snapshot, policy: Policy, wanted: Demand) -> str:
    """Name in what the closest spec differs, as the controller will."""
    capture = snapshot.capture
    group = group_key(snapshot.metadata.labels, policy)
    rivals = (
        wish.differs_in(capture.identity)
        for wish in wanted.wishes.values()
        if wish.group == group and capture is not None
    )
    paths = min(rivals, key=lambda found: (len(found), found), default=[])
    who = f"no Pod or template that policy {policy.metadata.name} selects has its spec any more"
    return f"{who}: they differ in {', '.join(paths)}"


def _is_stored(snapshot: Snapshot) -> bool:
    ready = snapshot.conditions.get(READY)
    is_stored = ready is not None and (ready.is_true or ready.reason == _OBSOLETE)
    return is_stored and not snapshot.metadata.is_deleting


def deletion_plans(
    states: tuple[Iterable[Snapshot], Iterable[Snapshot]], was: Wanted, will: Wanted, now: datetime
) -> Iterator[DeletionPlan]:
    """Yield what retention deletes after the tree is applied, the first one first.

    ``states`` are the snapshots before, and as they will be once those that come back are back.
    """
    stored, later = map(_by_policy, states)
    found = []
    for key in stored:
        before = {d.snapshot.metadata.name: d.due_at for d in was.doomed(key, stored[key])}
        for doomed in will.doomed(key, later[key]):
            metadata, capture = doomed.snapshot.metadata, doomed.snapshot.capture
            found.append(
                DeletionPlan(
                    *metadata.key,
                    policy=doomed.snapshot.policy_name,
                    due_at=to_time(doomed.due_at),
                    is_due=doomed.due_at <= now,
                    is_new=before.get(metadata.name) != doomed.due_at,
                    reason=doomed.reason,
                    size_bytes=capture.size_bytes if capture else 0,
                )
            )
    yield from sorted(found, key=lambda row: (row.due_at, row.namespace, row.name))


def _by_policy(snapshots: Iterable[Snapshot]) -> dict[tuple[str, str], list[Snapshot]]:
    found: dict[tuple[str, str], list[Snapshot]] = {}
    for snapshot in snapshots:
        found.setdefault((snapshot.metadata.namespace, snapshot.policy_name), []).append(snapshot)
    return found
