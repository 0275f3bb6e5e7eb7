# SPDX-License-Identifier: Apache-2.0
"""Why a Pod was restored or started cold: the agent's own judgement, told field by field.

Every verdict here is ``matching``'s, so that the explanation cannot differ from the decision. The
trap: it says what would be decided *now*. What was decided stands in the Pod's condition and its
Events, and snapshots may have come or gone since.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, Self

from policies.advice import how_to_mend, how_to_save, storage_text, unmatched
from policies.capturing import may_save, storage_usable
from policies.difference import Difference, differences, node_fields
from policies.distill import content_volumes, distill
from policies.environment import env_differences
from policies.matching import Candidate, Choice, awaited, choose, judge
from policies.selection import group_labels, selecting_policies
from policies.verdict import Finding, Reason
from schemas.names import POD_RESTORED, PS_NAME_ANNOTATION, READY
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.selectors import LabelSelector
from schemas.snapshot import Compatibility, RestoreProgress, Snapshot
from schemas.storage_config import StorageConfig

# Whoever asks here need not be told where to ask.
_SEE_EXPLAIN: Final = "; see `podsnap explain"
_SNAPSHOT_IN_TEXT: Final = re.compile(r"PodSnapshot \[?[^/\s]+/([^\s,:;\]]+)")


@dataclass(frozen=True, slots=True)
class PolicyStanding:
    """One policy of the Pod's namespace, and why it governs the Pod or does not."""

    name: str
    governs: bool
    why: str


@dataclass(frozen=True, slots=True)
class CandidateView:
    """One snapshot, judged for the Pod on its node.

    ``environment`` names variables that differ, which forbids nothing. ``came_later`` is whether
    the snapshot was saved after the Pod was created, so that the Pod could not have had it.
    """

    name: str
    state: str
    saved_from: str
    saved_at: str
    size_bytes: int
    usable: bool
    came_later: bool
    findings: tuple[Finding, ...]
    differences: tuple[Difference, ...]
    environment: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Told:
    """An Event of ours on a Pod; ``earlier_pod`` if it was another Pod of that name."""

    at: str
    type: str
    message: str
    count: int = 1
    pod_uid: str = ""
    earlier_pod: bool = False

    @classmethod
    def parse(cls, obj: Mapping[str, Any]) -> Self:
        """Read a core/v1 Event."""
        return cls(
            at=obj.get("lastTimestamp") or obj.get("eventTime") or "",
            type=obj.get("type", ""),
            message=obj.get("message", ""),
            count=obj.get("count") or 1,
            pod_uid=(obj.get("involvedObject") or {}).get("uid", ""),
        )


class Start(StrEnum):
    """How a Pod started, as far as the cluster still knows."""

    RESTORED = "Restored"
    FELL_BACK = "FellBack"
    COLD = "Cold"
    NOT_STARTED = "NotStarted"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class Happened:
    """How the Pod started, from what snapshot, and what was said about it."""

    start: Start
    snapshot: str = ""
    at: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class PodFacts:
    """A Pod and what surrounds it in its namespace.

    ``node`` is what its node published, ``None`` if that is not known; ``node_name`` is another
    node than the Pod's where the Pod has none yet. ``is_gvisor`` is ``None`` if nobody could say;
    ``agent_is_silent`` is whether the agent of the Pod's node gives no sign of life.
    """

    pod: Pod
    policies: Sequence[Policy] = ()
    storage: StorageConfig | None = None
    node: Compatibility | None = None
    node_name: str = ""
    snapshots: Sequence[Snapshot] = ()
    is_gvisor: bool | None = True
    agent_is_silent: bool = False
    events: Sequence[Told] = ()


@dataclass(frozen=True, slots=True)
class PodExplanation:
    """Everything that decides about one Pod, and what happened to it."""

    namespace: str
    name: str
    phase: str
    node: str
    pin: str | None
    group: Mapping[str, str]
    governed_by: str
    policies: tuple[PolicyStanding, ...]
    storage: str
    node_facts: Mapping[str, str] | None
    happened: Happened
    restoring: RestoreProgress | None
    chosen: str
    cause: str
    why_not: str
    awaited: str
    candidates: tuple[CandidateView, ...]
    saved_as: tuple[str, ...]
    cannot_be_saved: str
    events: tuple[Told, ...]
    what_to_do: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GonePodExplanation:
    """What is still known of a Pod that the API server does not have."""

    namespace: str
    name: str
    happened: Happened
    saved_as: tuple[str, ...]
    spoiled: tuple[str, ...]
    events: tuple[Told, ...]
    what_to_do: tuple[str, ...]


def explain_pod(facts: PodFacts) -> PodExplanation:
    """Explain a Pod that exists."""
    pod = facts.pod
    selecting = selecting_policies(pod, facts.policies)
    policy = selecting[0] if selecting and facts.is_gvisor is not False else None
    choice = _choice(facts, policy)
    candidates = tuple(_candidates(facts, policy)) if policy else ()
    events = _newest_first(replace(e, earlier_pod=_is_other(e, pod)) for e in facts.events)
    happened = how_it_started(pod, events)
    return PodExplanation(
        namespace=pod.metadata.namespace,
        name=pod.metadata.name,
        phase=pod.phase or "Unknown",
        node=facts.node_name or pod.node_name,
        pin=pod.pinned_snapshot,
        group=group_labels(pod.metadata.labels, policy) if policy else {},
        governed_by=policy.metadata.name if policy else "",
        policies=tuple(_standings(pod, facts.policies)),
        storage=storage_text(policy, facts.storage) if policy else "",
        node_facts=node_fields(facts.node) if facts.node else None,
        happened=happened,
        restoring=next(
            (s.restores[uid] for s in facts.snapshots if (uid := pod.metadata.uid) in s.restores),
            None,
        ),
        chosen=choice.snapshot.metadata.name if choice.snapshot else "",
        cause=choice.cause or "",
        why_not=choice.reason,
        awaited=_awaited(facts, policy),
        candidates=candidates,
        saved_as=_saved_as(facts.snapshots, {pod.metadata.uid}),
        cannot_be_saved=may_save(pod, policy, facts.node).message if policy else "",
        events=events,
        what_to_do=tuple(_what_to_do(facts, policy, choice, candidates)),
    )


def explain_gone_pod(
    namespace: str, name: str, *, snapshots: Iterable[Snapshot], events: Iterable[Told]
) -> GonePodExplanation | None:
    """Explain a Pod that is gone, ``None`` if neither an Event nor a snapshot remembers it."""
    ours = list(snapshots)
    told = _newest_first(events)
    uids = {e.pod_uid for e in told} | {
        uid for s in ours for uid in _origin_uids(s) if name in _origin_names(s)
    }
    saved_as = _saved_as(ours, uids)
    spoiled = tuple(
        f"{s.metadata.name}: {s.failures[uid]}" for s in ours for uid in uids if uid in s.failures
    )
    if not told and not saved_as and not spoiled:
        return None
    return GonePodExplanation(
        namespace=namespace,
        name=name,
        happened=_told_start(told),
        saved_as=saved_as,
        spoiled=spoiled,
        events=told,
        what_to_do=(
            "ask about its successor: `podsnap explain pod NAME`, "
            f"or about what it left: `podsnap get -n {namespace}`",
        ),
    )


def how_it_started(pod: Pod, events: Sequence[Told]) -> Happened:
    """Return how a Pod started: by its condition, else by its newest Event about a cold start."""
    restored = pod.conditions.get(POD_RESTORED)
    if restored is not None:
        return Happened(
            Start.RESTORED if restored.is_true else Start.FELL_BACK,
            _named_snapshot(restored.message),
            restored.last_transition_time,
            restored.message,
        )
    own = [e for e in events if not e.earlier_pod]
    told = _told_start(own)
    if told.start is not Start.UNKNOWN:
        return told
    if not pod.node_name or (pod.phase == "Pending" and not pod.container_ids):
        return Happened(Start.NOT_STARTED, message="its sandbox is not made yet")
    return Happened(
        Start.COLD,
        message="no Event says more: nothing was there to restore from, or the agent was away",
    )


def _told_start(events: Sequence[Told]) -> Happened:
    for event in events:
        if event.message.startswith(("falling back to a cold start", "Started cold")):
            failed = "restoring PodSnapshot" in event.message
            start = Start.FELL_BACK if failed else Start.COLD
            text = event.message.partition(_SEE_EXPLAIN)[0]
            return Happened(start, _named_snapshot(text), event.at, text)
        if event.message.startswith("Successfully restored"):
            named = _named_snapshot(event.message)
            return Happened(Start.RESTORED, named, event.at, event.message)
    return Happened(Start.UNKNOWN, message="no Event tells how it started")


def _named_snapshot(text: str) -> str:
    found = _SNAPSHOT_IN_TEXT.search(text)
    return found[1] if found else ""


def _is_other(event: Told, pod: Pod) -> bool:
    return event.pod_uid not in {"", pod.metadata.uid}


def _newest_first(events: Iterable[Told]) -> tuple[Told, ...]:
    return tuple(sorted(events, key=lambda e: e.at, reverse=True))


def _saved_as(snapshots: Iterable[Snapshot], uids: set[str]) -> tuple[str, ...]:
    return tuple(s.metadata.name for s in snapshots if uids & _origin_uids(s) - {""})


def _origin_uids(snapshot: Snapshot) -> set[str]:
    # A workload's snapshot may be filled by another Pod than the one it was made for.
    return {snapshot.capture.pod_uid if snapshot.capture else snapshot.origin_pod_uid}


def _origin_names(snapshot: Snapshot) -> set[str]:
    return {snapshot.capture.pod_name if snapshot.capture else snapshot.origin_pod}


# -- which policy


def _standings(pod: Pod, policies: Iterable[Policy]) -> Iterator[PolicyStanding]:
    everyone = sorted(policies, key=lambda p: (p.metadata.creation_timestamp, p.metadata.name))
    selecting = selecting_policies(pod, everyone)
    for policy in [*selecting, *(p for p in everyone if p not in selecting)]:
        name = policy.metadata.name
        if pod.is_static:
            yield PolicyStanding(name, governs=False, why="no policy governs a static Pod")
        elif policy.metadata.is_deleting:
            yield PolicyStanding(name, governs=False, why="it is being deleted")
        elif policy not in selecting:
            why = why_not_selected(policy.selector, pod.metadata.labels)
            yield PolicyStanding(name, governs=False, why=why)
        elif policy == selecting[0]:
            only = len(selecting) == 1
            why = "it alone selects the Pod" if only else "of those that select the Pod the oldest"
            yield PolicyStanding(name, governs=True, why=why)
        else:
            first = selecting[0].metadata
            same = first.creation_timestamp == policy.metadata.creation_timestamp
            rank = "comes first by name, being as old" if same else "is older"
            why = f"it selects the Pod too, but {first.name} {rank}"
            yield PolicyStanding(name, governs=False, why=why)


def why_not_selected(selector: LabelSelector, labels: Mapping[str, str]) -> str:
    """Name the first requirement of a selector that labels do not meet."""
    for need in selector.requirements:
        if not need.matches(labels):
            have = labels.get(need.key)
            is_so = "the Pod does not have it" if have is None else f"the Pod's is {have!r}"
            values = f" {', '.join(need.values)}" if need.values else ""
            return f"its selector wants label {need.key} {need.operator}{values}; {is_so}"
    return ""


# -- what would be chosen


def _choice(facts: PodFacts, policy: Policy | None) -> Choice:
    """Decide as the agent does (``nodeexec.restore_decision``), before it fetches."""
    pod = facts.pod
    if facts.is_gvisor is False:
        name = pod.runtime_class or "not set"
        text = f"the Pod does not run in gVisor: its runtimeClassName is {name}"
        return Choice(None, Reason.NOT_IN_GVISOR, text)
    if policy is None:
        return Choice(None, Reason.NOT_GOVERNED, "no policy governs the Pod")
    if facts.agent_is_silent:
        text = f"the agent of node {pod.node_name} gives no sign of life, so every Pod starts cold"
        return Choice(None, Reason.AGENT_AWAY, text)
    if facts.storage is not None and (text := facts.storage.refusal(pod.metadata.namespace)):
        return Choice(None, Reason.STORAGE_NOT_ALLOWED, text)
    candidate = _candidate(facts, policy)
    return choose(candidate, _as_far_as_seen(candidate, facts))


def _candidate(facts: PodFacts, policy: Policy) -> Candidate:
    unseen = dict.fromkeys(content_volumes(facts.pod, policy), "")
    identity = distill(facts.pod, policy, unseen)
    return Candidate(facts.pod, policy, identity, facts.node or Compatibility())


def _as_far_as_seen(candidate: Candidate, facts: PodFacts) -> list[Snapshot]:
    """Return the snapshots, with what nobody but the node sees as if it were the same."""
    seen = distill(candidate.pod, candidate.policy).fields
    unseen = {k: v for k, v in candidate.identity.fields.items() if k not in seen}
    return [_beside(s, unseen, None if facts.node else candidate.node) for s in facts.snapshots]


def _beside(
    snapshot: Snapshot, unseen: Mapping[str, str], stand_in: Compatibility | None
) -> Snapshot:
    capture = snapshot.capture
    if capture is None:
        return snapshot
    fields = {path: unseen.get(path, value) for path, value in capture.identity.fields.items()}
    as_seen = replace(
        capture,
        identity=replace(capture.identity, fields=fields),
        compatibility=stand_in or capture.compatibility,
    )
    return replace(snapshot, capture=as_seen)


def _awaited(facts: PodFacts, policy: Policy | None) -> str:
    if policy is None:
        return ""
    candidate = _candidate(facts, policy)
    found = awaited(candidate, _as_far_as_seen(candidate, facts))
    return found.metadata.name if found else ""


def _candidates(facts: PodFacts, policy: Policy) -> Iterator[CandidateView]:
    candidate = _candidate(facts, policy)
    pin = facts.pod.pinned_snapshot
    ours = [
        s
        for s in _as_far_as_seen(candidate, facts)
        if s.policy_name == policy.metadata.name or s.metadata.name == pin
    ]
    for snapshot in sorted(ours, key=lambda s: s.age_key, reverse=True):
        verdict = judge(candidate, snapshot)
        capture = snapshot.capture
        ready = snapshot.conditions.get(READY)
        yield CandidateView(
            name=snapshot.metadata.name,
            state=ready.reason if ready else "Pending",
            saved_from=(capture.pod_name if capture else "") or snapshot.origin_pod,
            saved_at=snapshot.saved_at,
            size_bytes=capture.size_bytes if capture else 0,
            usable=verdict.usable,
            came_later=snapshot.saved_at[:19] > facts.pod.metadata.creation_timestamp[:19] > "",
            findings=verdict.findings,
            differences=tuple(differences(candidate, snapshot)),
            environment=tuple(
                env_differences(capture.env_marks, facts.pod, snapshot.metadata.namespace)
                if capture
                else ()
            ),
        )


# -- what to do


def _what_to_do(
    facts: PodFacts,
    policy: Policy | None,
    choice: Choice,
    candidates: Sequence[CandidateView],
) -> Iterator[str]:
    pod = facts.pod
    if policy is None:
        yield from unmatched(pod, is_gvisor=facts.is_gvisor is not False)
        return
    if "" < pod.metadata.creation_timestamp < policy.metadata.creation_timestamp:
        yield "the Pod is older than its policy: create it anew once, before it can be saved"
    storage = storage_usable(policy, facts.storage)
    if not storage.usable:
        yield f"mend the storage: {storage.message}"
    if choice.cause is Reason.AGENT_AWAY:
        yield f"start the agent of node {pod.node_name}; `podsnap-node doctor` says what it lacks"
    elif choice.snapshot is None:
        yield from _toward_a_restore(pod, policy, candidates)


def _toward_a_restore(
    pod: Pod, policy: Policy, candidates: Sequence[CandidateView]
) -> Iterator[str]:
    pin, save = pod.pinned_snapshot, how_to_save(policy, pod.metadata.name)
    if pin == "":
        yield f"remove the annotation {PS_NAME_ANNOTATION} to have the Pod restored"
        return
    if pin:
        yield f"correct or remove the annotation {PS_NAME_ANNOTATION}"
        candidates = [c for c in candidates if c.name == pin]
    nearest = min(candidates, key=lambda c: len(c.findings), default=None)
    if nearest is None:
        yield save
        return
    for reason in dict.fromkeys(f.reason for f in nearest.findings):
        yield from how_to_mend(reason, snapshot=nearest.name, save=save)
