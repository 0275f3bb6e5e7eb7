# SPDX-License-Identifier: Apache-2.0
"""The life of a snapshot, as a pure function of facts.

The state is computed anew at every reconcile: the first row of ``RULES`` that holds names it. It is
never trusted because it was once written; only what facts cannot show again is recorded (a terminal
failure, damage, failed restores, when a state was first seen). ``TRANSITIONS`` says which changes
can occur; one that is not in it is a bug, reported with the snapshot's story.

The trap: ``Failed`` and ``Error`` are terminal for clients written for GKE, so those reasons are
given only to a save that can never recover (contract, section 4.1).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from schemas.conditions import Condition, Status
from schemas.names import CHECKPOINT, CREATED_AT_ANNOTATION, READY, STORAGE_REPLICATED
from schemas.policy import TriggerType
from schemas.snapshot import Snapshot, StoryEntry


class State(StrEnum):
    """Where a snapshot is. The five of the contract, and two ends."""

    PENDING = "Pending"
    CHECKPOINTING = "Checkpointing"
    UPLOADING = "Uploading"
    AVAILABLE = "AllSnapshotsAvailable"
    OBSOLETE = "Obsolete"
    FAILED = "Failed"
    DELETING = "Deleting"


class Effect(StrEnum):
    """What the controller does about it. Each is idempotent."""

    DELETE_BYTES = "DeleteBytes"
    RELEASE = "ReleaseFinalizer"
    ABANDON = "AbandonCapture"
    DELETE_OBJECT = "DeleteObject"


@dataclass(frozen=True, slots=True)
class SnapshotFacts:
    """All that is known of one snapshot and its surroundings at one instant.

    ``origin_alive`` is whether the Pod to be saved still exists with the same UID;
    ``agent_alive`` whether the capturing node's agent gave a sign of life lately;
    ``waiting_for`` what keeps a pending save from starting, for people; ``superseded`` why nobody
    will want the stored snapshot again (a sentence, empty if somebody might).
    """

    snapshot: Snapshot
    policy_exists: bool = True
    origin_alive: bool = True
    agent_alive: bool = True
    waiting_for: str = ""
    superseded: str = ""
    bytes_remain: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    """The outcome: the state, a sentence about it, and what to do."""

    state: State
    message: str
    effects: tuple[Effect, ...] = ()


# The first one's docstring says in words what holds; docs/state-machine.md shows it.
Rule = tuple[Callable[[SnapshotFacts], bool], Callable[[SnapshotFacts], Step]]


def _condition_holds(facts: SnapshotFacts, condition_type: str) -> bool:
    condition = facts.snapshot.conditions.get(condition_type)
    return condition is not None and condition.is_true


def _is_being_deleted(facts: SnapshotFacts) -> bool:
    """Its deletion was asked for."""
    return facts.snapshot.metadata.is_deleting


def _has_failed(facts: SnapshotFacts) -> bool:
    """A failure of its save is recorded."""
    capture = facts.snapshot.capture
    return capture is not None and capture.failure is not None


def _is_stored_and_unwanted(facts: SnapshotFacts) -> bool:
    """Its bytes are in the bucket, and it is quarantined, superseded or without its policy."""
    unwanted = facts.snapshot.quarantine or not facts.policy_exists or facts.superseded
    return _is_stored(facts) and bool(unwanted)


def _is_stored(facts: SnapshotFacts) -> bool:
    """Its bytes are in the bucket, the manifest last."""
    return _is_saved(facts) and _condition_holds(facts, STORAGE_REPLICATED)


def _is_lost_with_its_node(facts: SnapshotFacts) -> bool:
    """A node has claimed it, and that node's agent gives no sign of life."""
    # Until the bytes are in the bucket they are on that node alone.
    return _is_claimed(facts) and not facts.agent_alive


def _is_saved(facts: SnapshotFacts) -> bool:
    """Its bytes are whole and durable on the node that saved it."""
    return _condition_holds(facts, CHECKPOINT)


def _is_claimed(facts: SnapshotFacts) -> bool:
    """A node has claimed it."""
    return facts.snapshot.capture is not None


def _has_no_policy(facts: SnapshotFacts) -> bool:
    """Nobody has claimed it, and its policy is gone."""
    return not facts.policy_exists


# What waits for a workload can be filled by another Pod, and what is imported is in the bucket;
# every other save is of one Pod.
def _has_no_pod(facts: SnapshotFacts) -> bool:
    """Nobody has claimed it, and the one Pod that it is to be made from is gone."""
    return _is_of_one_pod(facts.snapshot) and not facts.origin_alive


def _has_no_agent(facts: SnapshotFacts) -> bool:
    """Nobody has claimed it, and the agent of that Pod's node gives no sign of life."""
    return _is_of_one_pod(facts.snapshot) and not facts.agent_alive


def _is_of_one_pod(snapshot: Snapshot) -> bool:
    return not snapshot.awaits_workload and not snapshot.is_imported


def _is_only_asked_for(_: SnapshotFacts) -> bool:
    """Nobody has claimed it yet."""
    return True


def _deleting(facts: SnapshotFacts) -> Step:
    if facts.bytes_remain:
        return Step(State.DELETING, "its bytes are being deleted", (Effect.DELETE_BYTES,))
    return Step(State.DELETING, "its bytes are gone", (Effect.RELEASE,))


def _failed(facts: SnapshotFacts) -> Step:
    capture = facts.snapshot.capture
    failure = capture.failure if capture else None
    text = f"{failure.reason}: {failure.message}" if failure else "the save failed"
    return Step(State.FAILED, text)


def _node_lost(facts: SnapshotFacts) -> Step:
    capture = facts.snapshot.capture
    if capture is None:
        text = f"node {facts.snapshot.origin_node} has no agent that lives; nothing was saved"
    else:
        text = f"the save on node {capture.node} was lost: its agent is gone"
    return Step(State.FAILED, text, (Effect.ABANDON,))


def _pod_lost(facts: SnapshotFacts) -> Step:
    snapshot = facts.snapshot
    return Step(
        State.FAILED,
        f"Pod {snapshot.origin_pod} ended or was replaced before node {snapshot.origin_node} began "
        "to save it; nothing was saved",
        (Effect.ABANDON,),
    )


def _obsolete(facts: SnapshotFacts) -> Step:
    snapshot = facts.snapshot
    if snapshot.quarantine:
        return Step(State.OBSOLETE, f"quarantined: {snapshot.quarantine}")
    if facts.policy_exists:
        return Step(State.OBSOLETE, facts.superseded)
    return Step(
        State.OBSOLETE,
        f"its policy {snapshot.policy_name} is gone; it comes back with a policy of that name",
    )


def _pending(facts: SnapshotFacts) -> Step:
    snapshot = facts.snapshot
    if snapshot.is_imported:
        return Step(State.PENDING, "its import was cut short; run podsnap store import again")
    agent = f"waits for the agent on node {snapshot.origin_node}"
    match snapshot.trigger_type:
        case TriggerType.WORKLOAD:
            default = "waits until the workload writes 1 to /proc/gvisor/checkpoint"
        case TriggerType.READINESS_PROBE:
            default = f"{agent}; Pod {snapshot.origin_pod} became Ready"
        case TriggerType.ON_DELETE:
            default = f"{agent}; Pod {snapshot.origin_pod} is being deleted"
        case _:
            default = agent
    return Step(State.PENDING, facts.waiting_for or default)


RULES: Final[tuple[Rule, ...]] = (
    (_is_being_deleted, _deleting),
    (_has_failed, _failed),
    (_is_stored_and_unwanted, _obsolete),
    (_is_stored, lambda _: Step(State.AVAILABLE, "restores are possible")),
    (_is_lost_with_its_node, _node_lost),
    (_is_saved, lambda f: Step(State.UPLOADING, f"{_size(f)} are being uploaded")),
    (_is_claimed, lambda f: Step(State.CHECKPOINTING, f"Pod {_saved_pod(f)} is being saved")),
    (
        _has_no_policy,
        lambda _: Step(State.PENDING, "its policy is gone", (Effect.DELETE_OBJECT,)),
    ),
    (_has_no_pod, _pod_lost),
    (_has_no_agent, _node_lost),
    (_is_only_asked_for, _pending),
)

# From ``None`` an object is new to us. A controller that was away may see a later state first, so
# every state that only time separates from an earlier one can be reached from it.
TRANSITIONS: Final[Mapping[State | None, frozenset[State]]] = {
    None: frozenset(State),
    State.PENDING: frozenset(
        {
            State.CHECKPOINTING,
            State.UPLOADING,
            State.AVAILABLE,
            State.OBSOLETE,
            State.FAILED,
            State.DELETING,
        }
    ),
    State.CHECKPOINTING: frozenset(
        {State.PENDING, State.UPLOADING, State.AVAILABLE, State.OBSOLETE, State.FAILED}
        | {State.DELETING}
    ),
    State.UPLOADING: frozenset({State.AVAILABLE, State.OBSOLETE, State.FAILED, State.DELETING}),
    State.AVAILABLE: frozenset({State.OBSOLETE, State.DELETING}),
    State.OBSOLETE: frozenset({State.AVAILABLE, State.DELETING}),
    State.FAILED: frozenset({State.DELETING}),
    State.DELETING: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Rendering:
    """How a state reads in the three conditions: (status, reason) each."""

    checkpoint: tuple[Status, str] | None
    storage_replicated: tuple[Status, str] | None
    ready: tuple[Status, str]


# The one table of conditions. The first two columns belong to the capturing node, the third to the
# controller; ``None`` leaves a condition as it is.
CONDITIONS: Final[Mapping[State, Rendering]] = {
    State.PENDING: Rendering(
        ("False", "AwaitingCheckpoint"), ("False", "Pending"), ("False", "AwaitingCheckpoint")
    ),
    State.CHECKPOINTING: Rendering(
        ("False", "InProgress"), ("False", "Pending"), ("False", "Checkpointing")
    ),
    State.UPLOADING: Rendering(("True", "Succeeded"), ("False", "Pending"), ("False", "Uploading")),
    State.AVAILABLE: Rendering(
        ("True", "Succeeded"), ("True", "Succeeded"), ("True", "AllSnapshotsAvailable")
    ),
    State.OBSOLETE: Rendering(None, None, ("False", "Obsolete")),
    State.FAILED: Rendering(("False", "Failed"), ("False", "Failed"), ("False", "Failed")),
    State.DELETING: Rendering(None, None, ("False", "Deleting")),
}


@dataclass(frozen=True, slots=True)
class Turn:
    """Whose turn it is in a state, and what ends the state if that one never acts."""

    actor: str
    bound: str


TURNS: Final[Mapping[State, Turn]] = {
    State.PENDING: Turn(
        "the agent of the Pod's node; the workload, if it asks for the save itself; you, where the "
        "message says that the bucket is missing",
        "the Pod, its node's agent or the policy is gone; a workload may take as long as it likes",
    ),
    State.CHECKPOINTING: Turn(
        "the agent that claimed it",
        "runsc's deadline, which grows with the memory; three attempts; the agent is silent",
    ),
    State.UPLOADING: Turn(
        "the agent that claimed it",
        "the bucket refuses, or is away for an hour; the agent is silent",
    ),
    State.AVAILABLE: Turn("nobody: it is what was wanted", "none: retention and you delete it"),
    State.OBSOLETE: Turn(
        "you: bring back the policy, the spec or the node that its message names, lift the "
        "quarantine, or delete it",
        "none: retention and you delete it",
    ),
    State.FAILED: Turn(
        "you: read the reason, create a new trigger", "none: retention and you delete it"
    ),
    State.DELETING: Turn(
        "the controller", "none: an object is not released before its bytes are gone"
    ),
}


class InvalidTransitionError(Exception):
    """A change of state that the table does not have: a bug, shown with the story so far."""


def step(facts: SnapshotFacts) -> Step:
    """Compute the state of a snapshot and what to do about it.

    Raises:
        InvalidTransitionError: the recorded state cannot lead to the computed one.
    """
    outcome = next(then(facts) for holds, then in RULES if holds(facts))
    before = recorded_state(facts.snapshot)
    if outcome.state != before and outcome.state not in TRANSITIONS[before]:
        story = " → ".join(e.state for e in facts.snapshot.control.story)
        raise InvalidTransitionError(
            f"PodSnapshot {facts.snapshot.metadata} cannot go from {before} to {outcome.state} "
            f"({outcome.message}); its story: {story}"
        )
    return outcome


def recorded_state(snapshot: Snapshot) -> State | None:
    """Return the state that the story ends with, ``None`` for a new object."""
    story = snapshot.control.story
    return State(story[-1].state) if story else None


def extend_story(snapshot: Snapshot, outcome: Step, *, now: str) -> tuple[StoryEntry, ...]:
    """Append the new state, and the passed ones that the capture's own instants still show."""
    story = snapshot.control.story
    if story and story[-1].state == outcome.state:
        return story
    seen = {e.state for e in story}
    passed: list[StoryEntry] = []
    if not story and outcome.state is not State.PENDING:
        passed.append(StoryEntry(State.PENDING, _created_at(snapshot)))
    capture = snapshot.capture
    if capture is not None:
        for state, at in (
            (State.CHECKPOINTING, capture.claimed_at),
            (State.UPLOADING, capture.sealed_at),
        ):
            if at and state not in seen and state != outcome.state:
                passed.append(StoryEntry(state, at))
    at = _entered_at(snapshot, outcome.state) or now
    reason = "" if outcome.state in {State.CHECKPOINTING, State.AVAILABLE} else outcome.message
    return (*story, *passed, StoryEntry(outcome.state, at, reason))


def ready_condition(outcome: Step) -> Condition:
    """Render the controller's condition for a state."""
    status, reason = CONDITIONS[outcome.state].ready
    return Condition(READY, status, reason, outcome.message)


def capture_conditions(state: State, message: str) -> tuple[Condition, ...]:
    """Render the capturing node's two conditions for a state."""
    row = CONDITIONS[state]
    pairs = ((CHECKPOINT, row.checkpoint), (STORAGE_REPLICATED, row.storage_replicated))
    return tuple(Condition(t, pair[0], pair[1], message) for t, pair in pairs if pair)


def _created_at(snapshot: Snapshot) -> str:
    metadata = snapshot.metadata
    return metadata.annotations.get(CREATED_AT_ANNOTATION, metadata.creation_timestamp)


def _entered_at(snapshot: Snapshot, state: State) -> str:
    capture = snapshot.capture
    if state is State.PENDING:
        return _created_at(snapshot)
    if capture is None:
        return ""
    return {
        State.CHECKPOINTING: capture.claimed_at,
        State.UPLOADING: capture.sealed_at,
        State.AVAILABLE: "" if State.OBSOLETE in _states(snapshot) else capture.uploaded_at,
    }.get(state, "")


def _states(snapshot: Snapshot) -> set[str]:
    return {e.state for e in snapshot.control.story}


def _saved_pod(facts: SnapshotFacts) -> str:
    # A workload's snapshot may be filled by another Pod than the one it was made for.
    capture = facts.snapshot.capture
    return capture.pod_name if capture and capture.pod_name else facts.snapshot.origin_pod


def _size(facts: SnapshotFacts) -> str:
    size_bytes = facts.snapshot.capture.size_bytes if facts.snapshot.capture else 0
    return f"{size_bytes / 1e6:.1f} MB"
