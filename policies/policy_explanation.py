# SPDX-License-Identifier: Apache-2.0
"""What a policy reaches, saves and deletes, and what became of a manual trigger.

Whether a save is due is judged by what the controller asks. The trap is a promise: most saves come
from outside (a trigger, a program, a deletion), so "next" says what they wait for, never when.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from policies.advice import how_to_save, storage_text
from policies.capturing import TriggerInput, may_save, may_trigger, storage_usable, unsupported
from policies.distill import distill
from policies.identity import automatic_identity
from policies.matching import Candidate
from policies.policy_review import PolicyFacts, review
from policies.ready_saves import ReadyInput, due_when_ready, generations
from policies.selection import group_labels, selecting_policies
from policies.snapshot_explanation import group_of
from schemas.names import READY, TRIGGERED
from schemas.pod import Pod
from schemas.policy import Policy, TriggerType
from schemas.snapshot import Snapshot
from schemas.storage_config import StorageConfig
from schemas.trigger import ManualTrigger

_CREATE_ANEW: Final = "a trigger is answered once: mend the cause, then create a new trigger"


@dataclass(frozen=True, slots=True)
class PodReach:
    """One Pod that the policy selects; ``next_save`` is what its save waits for, or why none."""

    name: str
    phase: str
    ready: bool
    governed_by: str
    next_save: str


@dataclass(frozen=True, slots=True)
class GroupView:
    """The snapshots of one label set; ``limit`` is how many may be kept (0: any number)."""

    labels: Mapping[str, str]
    snapshots: int
    usable: int
    size_bytes: int
    newest: str
    newest_saved_at: str
    limit: int


@dataclass(frozen=True, slots=True)
class Departure:
    """A snapshot that retention deletes next, when, and why."""

    name: str
    when: str
    why: str


@dataclass(frozen=True, slots=True)
class PolicyExplanation:
    """Everything that a policy does now and does next."""

    namespace: str
    name: str
    ready: bool
    reason: str
    message: str
    selector: str
    trigger_type: str
    post_checkpoint: str
    snapshot_scope: str
    grouping_labels: tuple[str, ...]
    last_access_timeout: str
    storage: str
    pods: tuple[PodReach, ...]
    groups: tuple[GroupView, ...]
    deletes_next: tuple[Departure, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TriggerExplanation:
    """Where a manual trigger stands; ``obstacle`` is why its Pod could not be saved now."""

    namespace: str
    name: str
    target: str
    state: str
    at: str
    message: str
    snapshot: str
    snapshot_state: str
    policy: str
    obstacle: str
    what_to_do: tuple[str, ...]


def explain_policy(
    facts: PolicyFacts,
    *,
    now: datetime,
    deletes_next: Sequence[Departure] = (),
    warnings: Sequence[str] = (),
) -> PolicyExplanation:
    """Explain a policy; of ``facts`` only what concerns its namespace is looked at."""
    policy = facts.policy
    condition = review(facts)
    return PolicyExplanation(
        namespace=policy.metadata.namespace,
        name=policy.metadata.name,
        ready=condition.is_true,
        reason=condition.reason,
        message=condition.message,
        selector=", ".join(map(str, _requirements(policy))) or "every Pod of the namespace",
        trigger_type=policy.trigger_type,
        post_checkpoint=policy.post_checkpoint,
        snapshot_scope=policy.snapshot_scope,
        grouping_labels=policy.grouping_labels,
        last_access_timeout=policy.last_access_timeout or "",
        storage=storage_text(policy, facts.storage),
        pods=tuple(_reach(facts, now)),
        groups=tuple(_groups(policy, facts.snapshots)),
        deletes_next=tuple(deletes_next),
        warnings=(*policy.options.errors, *warnings),
    )


def _requirements(policy: Policy) -> Iterator[str]:
    for need in policy.selector.requirements:
        values = f" ({', '.join(need.values)})" if need.values else ""
        yield f"{need.key} {need.operator}{values}"


def _reach(facts: PolicyFacts, now: datetime) -> Iterator[PodReach]:
    policy = facts.policy
    for pod in sorted(facts.pods, key=lambda p: p.metadata.name):
        selecting = selecting_policies(pod, facts.policies)
        if policy.metadata.key not in {p.metadata.key for p in selecting}:
            continue
        first = selecting[0].metadata
        mine = first.key == policy.metadata.key
        yield PodReach(
            name=pod.metadata.name,
            phase=pod.phase or "Unknown",
            ready=pod.is_ready,
            governed_by=first.name,
            next_save=_next_save(facts, pod, now) if mine else f"none: {first.name} governs it",
        )


def _next_save(facts: PolicyFacts, pod: Pod, now: datetime) -> str:
    policy = facts.policy
    if pod.metadata.is_deleting or pod.is_over:
        return "none: it is being deleted" if pod.metadata.is_deleting else "none: it is over"
    if pod.runtime_class not in facts.gvisor_classes:
        return "none: it does not run in gVisor"
    never = unsupported(policy) or may_save(pod, policy, facts.nodes.get(pod.node_name)).message
    if never:
        return f"none: {never}"
    storage = storage_usable(policy, facts.storage)
    if not storage.usable:
        return f"waits for storage: {storage.message}"
    match policy.trigger_type:
        case TriggerType.WORKLOAD:
            return _next_of_workload(facts, pod)
        case TriggerType.READINESS_PROBE:
            return _next_when_ready(facts, pod, now)
        case TriggerType.ON_DELETE | TriggerType.MANUAL:
            how = how_to_save(policy, pod.metadata.name)
            return how if pod.is_ready else f"{how}, but it is not Ready now"


def _next_of_workload(facts: PolicyFacts, pod: Pod) -> str:
    shared = _identity(facts, pod)
    if shared is None:
        return "waits for the agent of its node"
    ours = generations(facts.policy, shared[1], facts.snapshots)
    for snapshot in ours:
        ready = snapshot.conditions.get(READY)
        if ready is not None and ready.is_true:
            return f"none: PodSnapshot {snapshot.metadata.name} of equal Pods is there"
        if not snapshot.is_spent and not snapshot.metadata.is_deleting:
            how = how_to_save(facts.policy, pod.metadata.name)
            return f"{how}; PodSnapshot {snapshot.metadata.name} waits for it"
    return "waits for the controller to create its PodSnapshot"


def _next_when_ready(facts: PolicyFacts, pod: Pod, now: datetime) -> str:
    if not pod.is_ready:
        return "when it becomes Ready"
    shared = _identity(facts, pod)
    if shared is None:
        return "waits for the agent of its node"
    verdict = due_when_ready(ReadyInput(shared[0], shared[1], facts.snapshots, now))
    return f"none: {verdict.message}" if verdict.findings else "due now"


def _identity(facts: PolicyFacts, pod: Pod) -> tuple[Candidate, str] | None:
    node = facts.nodes.get(pod.node_name)
    if node is None:
        return None
    candidate = Candidate(pod, facts.policy, distill(pod, facts.policy), node)
    group = group_labels(pod.metadata.labels, facts.policy)
    return candidate, automatic_identity(facts.policy, candidate.identity, group, node)


def _groups(policy: Policy, snapshots: Iterable[Snapshot]) -> Iterator[GroupView]:
    groups: dict[tuple[tuple[str, str], ...], list[Snapshot]] = {}
    for snapshot in snapshots:
        if (snapshot.metadata.namespace, snapshot.policy_name) == policy.metadata.key:
            groups.setdefault(tuple(group_of(snapshot, policy).items()), []).append(snapshot)
    for labels, members in sorted(groups.items()):
        newest = max(members, key=lambda s: s.saved_at)
        yield GroupView(
            labels=dict(labels),
            snapshots=len(members),
            usable=sum(READY in s.conditions and s.conditions[READY].is_true for s in members),
            size_bytes=sum(s.capture.size_bytes for s in members if s.capture),
            newest=newest.metadata.name,
            newest_saved_at=newest.saved_at,
            limit=policy.max_snapshots_per_group,
        )


# -- triggers


def explain_trigger(
    trigger: ManualTrigger,
    *,
    given: TriggerInput,
    storage: StorageConfig | None,
    snapshot: Snapshot | None,
    snapshot_name: str,
) -> TriggerExplanation:
    """Explain a manual trigger; ``snapshot_name`` is what its PodSnapshot is or would be called."""
    condition = trigger.conditions.get(TRIGGERED)
    ready = snapshot.conditions.get(READY) if snapshot else None
    obstacle = ""
    if not trigger.is_answered and snapshot is None:
        verdict = may_trigger(given)
        if verdict.usable and given.policy is not None:
            verdict = storage_usable(given.policy, storage)
        obstacle = verdict.refusal
    return TriggerExplanation(
        namespace=trigger.metadata.namespace,
        name=trigger.metadata.name,
        target=trigger.target_pod,
        state=condition.reason if condition else "New",
        at=condition.last_transition_time if condition else "",
        message=condition.message if condition else "the controller has not looked at it yet",
        snapshot=snapshot_name if snapshot or trigger.snapshot_name else "",
        snapshot_state=_state(trigger, snapshot, ready.reason if ready else "Pending"),
        policy=given.policy.metadata.name if given.policy else "",
        obstacle=obstacle,
        what_to_do=tuple(_after_answer(trigger, snapshot)),
    )


def _state(trigger: ManualTrigger, snapshot: Snapshot | None, state: str) -> str:
    if snapshot is not None:
        return state
    return "Deleted" if trigger.snapshot_name else ""


def _after_answer(trigger: ManualTrigger, snapshot: Snapshot | None) -> Iterator[str]:
    condition = trigger.conditions.get(TRIGGERED)
    if condition is None:
        yield "see whether `podsnap controller` runs and leads"
    elif trigger.is_answered and not condition.is_true:
        yield _CREATE_ANEW
    elif trigger.is_answered and snapshot is None and trigger.snapshot_name:
        yield "its PodSnapshot was deleted since; create a new trigger to save again"
    elif snapshot is not None and not trigger.is_answered:
        yield f"see how far it is: `podsnap explain snapshot {snapshot.metadata.name}`"
