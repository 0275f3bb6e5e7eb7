# SPDX-License-Identifier: Apache-2.0
"""What a policy's own ``Ready`` says: what is wrong with it, and what its author should know.

A policy that selects the wrong Pods is valid, and nothing ever fails because of it; so what it
selects now is told in the message of a condition that stays true. Names are capped, because a
message that lists a thousand Pods is read by nobody.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from policies.capturing import may_save, storage_usable, unsupported
from policies.ready_saves import given_up
from policies.selection import selecting_policies
from schemas.conditions import Condition
from schemas.metadata import Metadata
from schemas.names import READY, SAVE_SELECTOR_ANNOTATION
from schemas.pod import Pod
from schemas.policy import Policy, TriggerType
from schemas.sentences import some_of
from schemas.snapshot import Compatibility, Snapshot
from schemas.storage_config import StorageConfig

_NAMES: Final = 3


@dataclass(frozen=True, slots=True)
class PolicyFacts:
    """A policy and what surrounds it; the sequences may hold all that the cluster has.

    ``nodes`` maps a node to what it published.
    """

    policy: Policy
    storage: StorageConfig | None = None
    pods: Sequence[Pod] = ()
    policies: Sequence[Policy] = ()
    snapshots: Sequence[Snapshot] = ()
    gvisor_classes: Collection[str] = ()
    nodes: Mapping[str, Compatibility] = field(default_factory=dict)


def review(facts: PolicyFacts) -> Condition:
    """Return the policy's ``Ready``."""
    policy = facts.policy
    if policy.options.errors:
        wrong = "; ".join(policy.options.errors)
        meanwhile = "meanwhile the default holds, or the strictest if it protects something"
        return _ready(policy, "InvalidAnnotation", f"{wrong}; {meanwhile}")
    found = unsupported(policy)
    if found:
        return _ready(policy, "Unsupported", found)
    storage = storage_usable(policy, facts.storage)
    if not storage.usable:
        message = f"saves and restores wait: {storage.message}"
        return _ready(policy, storage.findings[0].reason, message)
    notes = (note for take in _NOTES for note in take(facts))
    return _ready(
        policy, "Ready", "; ".join(("Pods that it selects are saved and restored", *notes))
    )


def invitations(policy: Policy) -> list[str]:
    """Say where one user's live session may become every new Pod's start; empty if nowhere.

    A Pod that is saved as it becomes Ready has served nobody yet.
    """
    early = policy.trigger_type is TriggerType.READINESS_PROBE
    if early or policy.grouping_labels or policy.options.save_from is not None:
        return []
    return [
        "any Pod that it selects may be saved, and its live sessions become every new Pod's start; "
        f"name the labels of those that may in annotation {SAVE_SELECTOR_ANNOTATION}, or keep "
        "users apart with snapshotGroupingRules"
    ]


def _invited(facts: PolicyFacts) -> Iterable[str]:
    return (f"warning: {text}" for text in invitations(facts.policy))


def _ready(policy: Policy, reason: str, message: str) -> Condition:
    return Condition(
        READY,
        "True" if reason == "Ready" else "False",
        reason,
        message,
        observed_generation=policy.metadata.generation,
    )


def _selected(facts: PolicyFacts) -> list[Pod]:
    policy = facts.policy
    return [
        p
        for p in facts.pods
        if p.metadata.namespace == policy.metadata.namespace
        and not p.metadata.is_deleting
        and not p.is_over
        and not p.is_static
        and policy.selector.matches(p.metadata.labels)
    ]


def _governed(facts: PolicyFacts) -> list[Pod]:
    return [
        p for p in _selected(facts) if selecting_policies(p, facts.policies)[:1] == [facts.policy]
    ]


def _extent(facts: PolicyFacts) -> Iterable[str]:
    if not facts.policy.selector.requirements:
        yield "warning: its selector is empty, so it selects every Pod of the namespace"
    elif not _selected(facts):
        yield "no Pod is selected now"


def _rivals(facts: PolicyFacts) -> Iterable[str]:
    """Tell both sides, by name, where several policies select one Pod."""
    mine = facts.policy.metadata
    told: dict[str, list[str]] = {}
    for pod in _selected(facts):
        governing, *others = selecting_policies(pod, facts.policies) or [facts.policy]
        if governing.metadata.name == mine.name:
            for other in others:
                text = f"selected by policy {other.metadata.name} too, which does not govern: "
                told.setdefault(text + f"{mine.name} {_rank(mine, other.metadata)}", []).append(
                    pod.metadata.name
                )
        else:
            rank = _rank(governing.metadata, mine)
            text = f"governed by policy {governing.metadata.name}, which {rank}"
            told.setdefault(text, []).append(pod.metadata.name)
    for text in sorted(told)[:_NAMES]:
        yield f"{_pods(told[text])} {text}"


def _rank(first: Metadata, second: Metadata) -> str:
    same = first.creation_timestamp == second.creation_timestamp
    return "comes first by name, being as old" if same else "is older"


def _refused(facts: PolicyFacts) -> Iterable[str]:
    refused: dict[str, list[str]] = {}
    for pod in _governed(facts):
        if pod.runtime_class not in facts.gvisor_classes:
            why = "not in gVisor; set runtimeClassName: gvisor"
        else:
            why = may_save(pod, facts.policy, facts.nodes.get(pod.node_name)).message
        if why:
            refused.setdefault(why, []).append(pod.metadata.name)
    for why in sorted(refused)[:_NAMES]:
        yield f"{_pods(refused[why])} never saved: {why}"


def _hooks(facts: PolicyFacts) -> Iterable[str]:
    if facts.policy.trigger_type is not TriggerType.ON_DELETE:
        return
    hooked = [
        p.metadata.name
        for p in _governed(facts)
        if any((c.get("lifecycle") or {}).get("preStop") for c in p.running_containers)
    ]
    if hooked:
        yield f"warning: {_pods(hooked)} saved after the preStop hook has run"


def _exhausted(facts: PolicyFacts) -> Iterable[str]:
    if facts.policy.trigger_type is not TriggerType.READINESS_PROBE:
        return
    shared: dict[str, list[Snapshot]] = {}
    for snapshot in facts.snapshots:
        ours = (snapshot.metadata.namespace, snapshot.policy_name) == facts.policy.metadata.key
        if ours and snapshot.identity_label:
            shared.setdefault(snapshot.identity_label, []).append(snapshot)
    yield from sorted(filter(None, map(given_up, shared.values())))[:_NAMES]


def _pods(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"Pod {names[0]} is"
    return f"Pods {some_of(sorted(names), _NAMES)} are"


_NOTES: tuple[Callable[[PolicyFacts], Iterable[str]], ...] = (
    _extent,
    _rivals,
    _refused,
    _hooks,
    _exhausted,
    _invited,
)
