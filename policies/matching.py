# SPDX-License-Identifier: Apache-2.0
"""Whether a snapshot fits a Pod on a node, and which of several is taken.

One function for three callers: the agent restores by it, ``plan`` predicts by it, ``explain`` tells
why not. It never stops at the first difference, because a user who mends one wants to see them all.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from policies.compatibility import incompatibilities
from policies.distill import differences
from policies.selection import group_labels
from policies.verdict import Finding, Reason, Verdict
from schemas.conditions import Condition
from schemas.names import READY
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.snapshot import CaptureRecord, Compatibility, Snapshot, SpecIdentity


@dataclass(frozen=True, slots=True)
class Candidate:
    """A Pod that could be restored, with everything a judgement needs about its side."""

    pod: Pod
    policy: Policy
    identity: SpecIdentity
    node: Compatibility


@dataclass(frozen=True, slots=True)
class Choice:
    """The snapshot to restore, or why the Pod starts cold: the cause, and a sentence about it."""

    snapshot: Snapshot | None
    cause: Reason | None = None
    reason: str = ""

    @property
    def noteworthy(self) -> bool:
        """Whether a snapshot exists and could not be used; else a cold start surprises nobody."""
        return self.cause not in {None, Reason.NO_SNAPSHOT_YET, Reason.PINNED_TO_NONE}


def judge(candidate: Candidate, snapshot: Snapshot) -> Verdict:
    """Judge one snapshot for one Pod on one node."""
    found: list[Finding] = []
    pod, policy = candidate.pod, candidate.policy
    if snapshot.metadata.namespace != pod.metadata.namespace:
        found.append(Finding(Reason.OTHER_NAMESPACE, "it belongs to another namespace"))
    if snapshot.policy_name != policy.metadata.name:
        found.append(
            Finding(
                Reason.OTHER_POLICY,
                f"it was saved under policy {snapshot.policy_name}, "
                f"the Pod is governed by {policy.metadata.name}",
            )
        )
    if not _is_ready(snapshot):
        found.append(Finding(Reason.NOT_READY, _why_not_ready(snapshot.conditions)))
    if snapshot.quarantine:
        found.append(Finding(Reason.QUARANTINED, snapshot.quarantine))
    capture = snapshot.capture
    if capture is None:
        return Verdict(tuple(found))
    if capture.rootfs_only != policy.rootfs_only:
        was = "files alone" if capture.rootfs_only else "memory"
        text = f"it holds {was}, the policy says snapshotScope {policy.snapshot_scope}"
        found.append(Finding(Reason.SPEC_DIFFERS, text))
    elif not capture.rootfs_only:
        found += _memory_findings(candidate, capture)
    want = group_labels(snapshot.metadata.labels, policy)
    have = group_labels(pod.metadata.labels, policy)
    if want != have:
        found.append(Finding(Reason.GROUP_DIFFERS, f"its group is {want}, the Pod's is {have}"))
    return Verdict(tuple(found))


def _memory_findings(candidate: Candidate, capture: CaptureRecord) -> list[Finding]:
    """Judge what matters to memory alone: files fit any spec and any node (contract, 6.1)."""
    found = [
        Finding(Reason.SPEC_DIFFERS, text)
        for text in differences(capture.identity, candidate.identity)
    ]
    here, saved = set(candidate.pod.running_names), capture.image_ids.keys()
    for name in sorted(here - saved):
        text = f"it does not say which image container {name} was made from"
        found.append(Finding(Reason.SPEC_DIFFERS, text))
    for name in sorted(saved - here):
        text = f"container {name} does not run in the Pod, and did in the saved one"
        found.append(Finding(Reason.SPEC_DIFFERS, text))
    return found + [
        Finding(Reason.NODE_INCOMPATIBLE, text)
        for text in incompatibilities(capture.compatibility, candidate.node)
    ]


def choose(candidate: Candidate, snapshots: Iterable[Snapshot]) -> Choice:
    """Take the newest snapshot that fits; a pin takes exactly that one or none (contract, 6.3).

    If none fits, the reason is about one of them: the newest of the Pod's own group, else the
    newest; if none is ready, the newest that is quarantined. Of what stands in its way the most
    important is told (``verdict.IMPORTANCE``), and how much more there is.
    """
    pod, policy = candidate.pod, candidate.policy
    ours = [s for s in snapshots if s.metadata.namespace == pod.metadata.namespace]
    pin = pod.pinned_snapshot
    if pin is not None:
        return _choose_pinned(candidate, ours, pin)
    # A namespace may hold hundreds of them, and a sandbox waits: judge until the first one fits.
    governed = [s for s in ours if s.policy_name == policy.metadata.name]
    ready: list[tuple[Snapshot, Verdict]] = []
    usable = [s for s in governed if _is_ready(s)]
    for snapshot in sorted(usable, key=lambda s: s.age_key, reverse=True):
        verdict = judge(candidate, snapshot)
        if verdict.usable:
            return Choice(snapshot)
        ready.append((snapshot, verdict))
    if not ready:
        quarantined = [s for s in governed if s.quarantine]
        if quarantined:
            newest = max(quarantined, key=lambda s: s.age_key)
            text = f"PodSnapshot {newest.metadata} is quarantined: {newest.quarantine}"
            return Choice(None, Reason.QUARANTINED, text)
        text = f"no snapshot of policy {policy.metadata.name} is ready yet"
        return Choice(None, Reason.NO_SNAPSHOT_YET, text)
    of_group = (r for r in ready if Reason.GROUP_DIFFERS not in {f.reason for f in r[1].findings})
    newest, verdict = next(of_group, ready[0])
    return _misfit(f"PodSnapshot {newest.metadata}", verdict)


def awaited(candidate: Candidate, snapshots: Iterable[Snapshot]) -> Snapshot | None:
    """Return the newest snapshot in the making that will fit the Pod once it is ready."""
    if candidate.pod.pinned_snapshot is not None:
        return None
    making = [
        s
        for s in snapshots
        if s.policy_name == candidate.policy.metadata.name
        and s.capture is not None
        and s.capture.failure is None
        and _is_in_the_making(s)
        and all(f.reason is Reason.NOT_READY for f in judge(candidate, s).findings)
    ]
    return max(making, key=lambda s: s.metadata.creation_timestamp, default=None)


def _is_in_the_making(snapshot: Snapshot) -> bool:
    ready = snapshot.conditions.get(READY)
    return not snapshot.metadata.is_deleting and (
        ready is None or ready.reason in {"AwaitingCheckpoint", "Checkpointing", "Uploading"}
    )


def _choose_pinned(candidate: Candidate, ours: list[Snapshot], pin: str) -> Choice:
    if not pin:
        text = "the Pod's ps-name annotation is empty, which means: never restore"
        return Choice(None, Reason.PINNED_TO_NONE, text)
    named = next((s for s in ours if s.metadata.name == pin), None)
    namespace = candidate.pod.metadata.namespace
    subject = f"PodSnapshot {namespace}/{pin}, named by the ps-name annotation,"
    if named is None:
        return Choice(None, Reason.PIN_MISSING, f"{subject} does not exist")
    verdict = judge(candidate, named)
    return Choice(named) if verdict.usable else _misfit(subject, verdict)


def _misfit(subject: str, verdict: Verdict) -> Choice:
    first, others = verdict.most_important, len(verdict.findings) - 1
    more = f" (and {others} more)" if others else ""
    return Choice(None, first.reason, f"{subject} does not fit: {first.message}{more}")


def _is_ready(snapshot: Snapshot) -> bool:
    ready = snapshot.conditions.get(READY)
    return ready is not None and ready.is_true and not snapshot.metadata.is_deleting


def _why_not_ready(conditions: Mapping[str, Condition]) -> str:
    ready = conditions.get(READY)
    if ready is None:
        return "it is not ready"
    return f"it is not ready ({ready.reason}{': ' + ready.message if ready.message else ''})"
