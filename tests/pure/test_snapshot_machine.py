# SPDX-License-Identifier: Apache-2.0
"""The life of a snapshot: every row of the rules, every transition, every condition."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

import pytest
from api_objects import FAILURE, capture_of, pod, snapshot, story_of
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.conditions import Condition, Status
from schemas.names import (
    CHECKPOINT,
    ORIGIN_NODE_ANNOTATION,
    ORIGIN_POD_ANNOTATION,
    READY,
    STORAGE_REPLICATED,
    TRIGGER_TYPE_ANNOTATION,
)
from schemas.policy import TriggerType
from schemas.snapshot import CaptureRecord, ControlRecord, Snapshot
from statemachine.snapshot import (
    CONDITIONS,
    RULES,
    TRANSITIONS,
    Effect,
    InvalidTransitionError,
    SnapshotFacts,
    State,
    Step,
    capture_conditions,
    extend_story,
    ready_condition,
    step,
)

NOW = "2026-01-01T12:00:00.000000Z"
CLAIMED = CaptureRecord(node="node-1", attempt=1, claimed_at="2026-01-01T10:00:00.000000Z")


def waiting(trigger: str = "manual") -> Snapshot:
    """Return a snapshot that nobody claimed."""
    found = replace(snapshot(), capture=None, conditions={})
    annotations = {
        TRIGGER_TYPE_ANNOTATION: trigger,
        ORIGIN_POD_ANNOTATION: "web-0",
        ORIGIN_NODE_ANNOTATION: "node-1",
    }
    return replace(found, metadata=replace(found.metadata, annotations=annotations))


def claimed() -> Snapshot:
    """Return a snapshot that a node is saving."""
    return replace(snapshot(), capture=CLAIMED, conditions={})


def saved() -> Snapshot:
    """Return a snapshot whose bytes are on the node."""
    done = Condition(CHECKPOINT, "True", "Succeeded")
    return replace(snapshot(), capture=capture_of(pod()), conditions={CHECKPOINT: done})


def stored() -> Snapshot:
    """Return a snapshot whose bytes are in the bucket."""
    conditions = {t: Condition(t, "True", "Succeeded") for t in (CHECKPOINT, STORAGE_REPLICATED)}
    return replace(saved(), conditions=conditions)


def failed() -> Snapshot:
    """Return a snapshot whose save ended."""
    return replace(claimed(), capture=replace(CLAIMED, failure=FAILURE))


def deleting(source: Snapshot) -> Snapshot:
    """Return a snapshot whose deletion was asked for."""
    return replace(source, metadata=replace(source.metadata, deletion_timestamp="2026"))


def failed_to_restore(*reasons: str) -> Snapshot:
    """Return a stored snapshot from which so many Pods could not be restored."""
    return replace(stored(), failures={f"uid-{n}": text for n, text in enumerate(reasons)})


F = SnapshotFacts
ROWS: dict[str, tuple[SnapshotFacts, State, tuple[Effect, ...], str]] = {
    "nobody claimed it": (F(waiting()), State.PENDING, (), "waits for the agent on node"),
    "the workload has not asked": (
        F(waiting("workload")),
        State.PENDING,
        (),
        "waits until the workload writes 1 to /proc/gvisor/checkpoint",
    ),
    "nobody claimed a Pod that became Ready": (
        F(waiting("readinessProbe")),
        State.PENDING,
        (),
        "waits for the agent on node node-1; Pod web-0 became Ready",
    ),
    "nobody claimed a Pod that is deleted": (
        F(waiting("onDelete")),
        State.PENDING,
        (),
        "waits for the agent on node node-1; Pod web-0 is being deleted",
    ),
    "storage is not there": (F(waiting(), waiting_for="no bucket"), State.PENDING, (), "no bucket"),
    "a node saves it": (F(claimed()), State.CHECKPOINTING, (), "is being saved"),
    "the Pod left during the save, the agent will tell": (
        F(claimed(), origin_alive=False),
        State.CHECKPOINTING,
        (),
        "",
    ),
    "its bytes are on the node": (F(saved()), State.UPLOADING, (), "0.0 MB are being uploaded"),
    "the Pod left during the upload": (F(saved(), origin_alive=False), State.UPLOADING, (), ""),
    "its bytes are in the bucket": (F(stored()), State.AVAILABLE, (), "restores are possible"),
    "the node left after the upload": (F(stored(), agent_alive=False), State.AVAILABLE, (), ""),
    "the Pod left after the upload": (F(stored(), origin_alive=False), State.AVAILABLE, (), ""),
    "its policy is gone": (F(stored(), policy_exists=False), State.OBSOLETE, (), "policy web"),
    "its bytes are damaged": (
        F(replace(stored(), damage="pages.img")),
        State.OBSOLETE,
        (),
        "quarantined: its bytes are damaged: pages.img",
    ),
    "two Pods could not be restored from it": (
        F(failed_to_restore("no", "no")),
        State.AVAILABLE,
        (),
        "",
    ),
    "three Pods could not be restored from it": (
        F(failed_to_restore("bad fd", "bad fd", "bad fd")),
        State.OBSOLETE,
        (),
        "quarantined: 3 restores failed: bad fd",
    ),
    "four Pods could not be restored from it, for two reasons": (
        F(failed_to_restore("b", "a", "b", "a")),
        State.OBSOLETE,
        (),
        "quarantined: 4 restores failed: a; b",
    ),
    "its save ended": (F(failed()), State.FAILED, (), "RunscFailed: runsc checkpoint: exit status"),
    "its save ended and the policy is gone": (
        F(failed(), policy_exists=False),
        State.FAILED,
        (),
        "",
    ),
    "the node was lost during the save": (
        F(claimed(), agent_alive=False),
        State.FAILED,
        (Effect.ABANDON,),
        "the save on node node-1 was lost: its agent is gone",
    ),
    "the node was lost during the upload": (
        F(saved(), agent_alive=False),
        State.FAILED,
        (Effect.ABANDON,),
        "its agent is gone",
    ),
    "nobody lives on the node that should save": (
        F(waiting(), agent_alive=False),
        State.FAILED,
        (Effect.ABANDON,),
        "node node-1 has no agent that lives; nothing was saved",
    ),
    "a workload's save is claimed by whichever node's Pod asks": (
        F(waiting("workload"), agent_alive=False),
        State.PENDING,
        (),
        "waits until the workload",
    ),
    "the Pod left before the claim of a manual save": (
        F(waiting(), origin_alive=False),
        State.FAILED,
        (Effect.ABANDON,),
        "Pod web-0 ended or was replaced before node node-1 began to save it; nothing was saved",
    ),
    "the Pod that became Ready left before the claim": (
        F(waiting("readinessProbe"), origin_alive=False),
        State.FAILED,
        (Effect.ABANDON,),
        "ended or was replaced",
    ),
    "the deleted Pod left before the claim": (
        F(waiting("onDelete"), origin_alive=False),
        State.FAILED,
        (Effect.ABANDON,),
        "ended or was replaced",
    ),
    "the Pod left before the claim of a workload's save": (
        F(waiting("workload"), origin_alive=False),
        State.PENDING,
        (),
        "",
    ),
    "the policy left before the claim": (
        F(waiting(), policy_exists=False),
        State.PENDING,
        (Effect.DELETE_OBJECT,),
        "its policy is gone",
    ),
    "it is deleted and bytes remain": (
        F(deleting(stored())),
        State.DELETING,
        (Effect.DELETE_BYTES,),
        "its bytes are being deleted",
    ),
    "it is deleted and nothing remains": (
        F(deleting(stored()), bytes_remain=False),
        State.DELETING,
        (Effect.RELEASE,),
        "its bytes are gone",
    ),
    "it is deleted after a failure": (
        F(deleting(failed())),
        State.DELETING,
        (Effect.DELETE_BYTES,),
        "",
    ),
}


@pytest.mark.parametrize("sentence", ROWS)
def test_facts_decide_state_message_and_effects(sentence: str) -> None:
    """Nothing else does: the state is never trusted because it was once written."""
    facts, state, effects, message = ROWS[sentence]
    outcome = step(facts)
    assert (outcome.state, outcome.effects) == (state, effects)
    assert message in outcome.message
    assert outcome.message


def test_every_rule_has_a_row_here() -> None:
    """A rule that no row reaches is untested or dead."""
    reached = set()
    for facts, *_ in ROWS.values():
        reached.add(next(n for n, (holds, _) in enumerate(RULES) if holds(facts)))
    assert reached == set(range(len(RULES)))


def test_transitions_are_complete() -> None:
    """Every state has a row, every target is a state, and only Deleting is an end."""
    assert set(TRANSITIONS) == {None, *State}
    assert all(targets <= set(State) for targets in TRANSITIONS.values())
    assert [s for s, targets in TRANSITIONS.items() if not targets] == [State.DELETING]
    assert all(s not in targets for s, targets in TRANSITIONS.items())
    assert TRANSITIONS[State.FAILED] == {State.DELETING}


def test_every_state_can_be_deleted() -> None:
    """A user may delete a snapshot at any time."""
    for state, targets in TRANSITIONS.items():
        assert state is State.DELETING or State.DELETING in targets


def test_an_impossible_change_tells_the_story() -> None:
    """It is a bug, and the text is what its report needs."""
    once_stored = replace(
        waiting(), control=ControlRecord(story=story_of("Pending", "AllSnapshotsAvailable"))
    )
    with pytest.raises(InvalidTransitionError) as caught:
        step(SnapshotFacts(once_stored))
    text = str(caught.value)
    assert "cannot go from AllSnapshotsAvailable to Pending" in text
    assert "Pending → AllSnapshotsAvailable" in text


# -- what clients read

TRIPLES: dict[State, tuple[str | None, str | None, str]] = {
    State.PENDING: ("False/AwaitingCheckpoint", "False/Pending", "False/AwaitingCheckpoint"),
    State.CHECKPOINTING: ("False/InProgress", "False/Pending", "False/Checkpointing"),
    State.UPLOADING: ("True/Succeeded", "False/Pending", "False/Uploading"),
    State.AVAILABLE: ("True/Succeeded", "True/Succeeded", "True/AllSnapshotsAvailable"),
    State.OBSOLETE: (None, None, "False/Obsolete"),
    State.FAILED: ("False/Failed", "False/Failed", "False/Failed"),
    State.DELETING: (None, None, "False/Deleting"),
}


@pytest.mark.parametrize("state", State)
def test_each_state_reads_as_the_contract_says(state: State) -> None:
    """Checkpoint, StorageReplicated and Ready, as section 4.1 has them."""
    found = {
        c.type: f"{c.status}/{c.reason}"
        for c in (*capture_conditions(state, "m"), ready_condition(Step(state, "m")))
    }
    expected = zip((CHECKPOINT, STORAGE_REPLICATED, READY), TRIPLES[state], strict=True)
    assert found == {t: text for t, text in expected if text}


def test_terminal_reasons_are_given_to_terminal_states_alone() -> None:
    """Clients written for GKE give up at ``Failed`` and ``Error``."""
    for state, row in CONDITIONS.items():
        for pair in (row.checkpoint, row.storage_replicated, row.ready):
            if pair is not None:
                assert pair[0] in get_args(Status)
                assert (pair[1] in {"Failed", "Error"}) is (state is State.FAILED)


def test_only_an_available_snapshot_is_ready() -> None:
    """``Ready=True`` is what a restore depends on."""
    ready = [s for s, row in CONDITIONS.items() if row.ready[0] == "True"]
    assert ready == [State.AVAILABLE]


# -- lives: what agent, controller and users may do, in any order


@dataclass(frozen=True, slots=True)
class World:
    """The facts of one snapshot as time goes on."""

    snapshot: Snapshot
    policy_exists: bool = True
    origin_alive: bool = True
    agent_alive: bool = True
    bytes_remain: bool = False

    def facts(self) -> SnapshotFacts:
        """Return what the controller would gather now."""
        return SnapshotFacts(
            snapshot=self.snapshot,
            policy_exists=self.policy_exists,
            origin_alive=self.origin_alive,
            agent_alive=self.agent_alive,
            bytes_remain=self.bytes_remain,
        )

    def is_over(self) -> bool:
        """Whether the agent does nothing more with it."""
        s = self.snapshot
        return s.metadata.is_deleting or bool(s.capture and s.capture.failure)


Move = Callable[[World], World]


def _claim(w: World) -> World:
    if w.is_over() or w.snapshot.capture or not (w.agent_alive and w.origin_alive):
        return w
    return replace(w, snapshot=replace(w.snapshot, capture=CLAIMED), bytes_remain=True)


def _reached(w: World, condition: str, *, after: str | None) -> World:
    conditions = w.snapshot.conditions
    ready = after is None or (after in conditions and conditions[after].is_true)
    if w.is_over() or not w.snapshot.capture or not w.agent_alive or not ready:
        return w
    now = {**conditions, condition: Condition(condition, "True", "Succeeded")}
    return replace(w, snapshot=replace(w.snapshot, conditions=now))


def _fail(w: World) -> World:
    capture = w.snapshot.capture
    stored_already = STORAGE_REPLICATED in w.snapshot.conditions
    if w.is_over() or capture is None or not w.agent_alive or stored_already:
        return w
    return replace(w, snapshot=replace(w.snapshot, capture=replace(capture, failure=FAILURE)))


def _give_up_the_claim(w: World) -> World:
    if w.is_over() or w.snapshot.capture is None or w.snapshot.conditions or not w.agent_alive:
        return w
    return replace(w, snapshot=replace(w.snapshot, capture=None))


def _damage(w: World) -> World:
    if STORAGE_REPLICATED not in w.snapshot.conditions:
        return w
    return replace(w, snapshot=replace(w.snapshot, damage="pages.img"))


def _fail_to_restore(w: World) -> World:
    if STORAGE_REPLICATED not in w.snapshot.conditions:
        return w
    failures = {**w.snapshot.failures, f"uid-{len(w.snapshot.failures)}": "bad fd"}
    return replace(w, snapshot=replace(w.snapshot, failures=failures))


def _lift(w: World) -> World:
    return replace(w, snapshot=replace(w.snapshot, failures={}, damage=""))


MOVES: dict[str, Move] = {
    "claim": _claim,
    "checkpoint": lambda w: _reached(w, CHECKPOINT, after=None),
    "store": lambda w: _reached(w, STORAGE_REPLICATED, after=CHECKPOINT),
    "fail": _fail,
    "give up the claim": _give_up_the_claim,
    "damage": _damage,
    "fail to restore": _fail_to_restore,
    "lift the quarantine": _lift,
    "policy goes": lambda w: replace(w, policy_exists=False),
    "policy comes": lambda w: replace(w, policy_exists=True),
    "Pod goes": lambda w: replace(w, origin_alive=False),
    "agent goes": lambda w: replace(w, agent_alive=False),
    "agent comes": lambda w: replace(w, agent_alive=True),
    "delete": lambda w: replace(w, snapshot=deleting(w.snapshot)),
}


def _reconcile(w: World) -> tuple[World, Step]:
    """Do what the controller does with the outcome, without its I/O."""
    outcome = step(w.facts())
    s = w.snapshot
    story = extend_story(s, outcome, now=NOW)
    s = replace(s, control=replace(s.control, story=story))
    if Effect.ABANDON in outcome.effects:
        s = replace(s, capture=replace(s.capture or CaptureRecord(node="none"), failure=FAILURE))
    if Effect.DELETE_OBJECT in outcome.effects:
        s = deleting(s)
    remain = w.bytes_remain and Effect.DELETE_BYTES not in outcome.effects
    return replace(w, snapshot=s, bytes_remain=remain), outcome


@settings(max_examples=400)
@given(
    trigger=st.sampled_from(TriggerType),
    moves=st.lists(st.tuples(st.sampled_from(sorted(MOVES)), st.booleans()), max_size=25),
)
def test_no_life_reaches_an_impossible_change(
    trigger: TriggerType,
    moves: list[tuple[str, bool]],
) -> None:
    """Whatever happens, in whatever order, and however often the controller sleeps through it."""
    world = World(waiting(trigger))
    world, _ = _reconcile(world)
    terminal = False
    for move, controller_is_awake in moves:
        world = MOVES[move](world)
        if not controller_is_awake:
            continue
        world, outcome = _reconcile(world)
        condition = ready_condition(outcome)
        assert condition.reason not in {"Failed", "Error"} or outcome.state is State.FAILED
        # Terminal stays terminal: a client that gave up was right to.
        assert not terminal or outcome.state in {State.FAILED, State.DELETING}
        terminal = terminal or outcome.state is State.FAILED
        again, same = _reconcile(world)
        if not outcome.effects:
            assert (again, same) == (world, outcome)


# -- the story


def test_a_story_holds_the_states_that_were_slept_through() -> None:
    """The capture's own instants still show when they began."""
    record = replace(
        capture_of(pod()),
        claimed_at="2026-01-01T10:00:01.000000Z",
        sealed_at="2026-01-01T10:00:02.000000Z",
        uploaded_at="2026-01-01T10:00:03.000000Z",
    )
    seen = replace(stored(), capture=record)
    story = extend_story(seen, step(SnapshotFacts(seen)), now=NOW)
    assert [(e.state, e.at) for e in story] == [
        ("Pending", "2026-01-01T09:00:00Z"),
        ("Checkpointing", "2026-01-01T10:00:01.000000Z"),
        ("Uploading", "2026-01-01T10:00:02.000000Z"),
        ("AllSnapshotsAvailable", "2026-01-01T10:00:03.000000Z"),
    ]


def test_a_story_does_not_grow_without_a_change() -> None:
    """A reconcile that finds nothing new writes nothing."""
    outcome = step(SnapshotFacts(stored()))
    once = replace(stored(), control=ControlRecord(story=extend_story(stored(), outcome, now=NOW)))
    assert extend_story(once, outcome, now="later") == once.control.story


def test_coming_back_from_obsolete_is_a_new_entry_of_now() -> None:
    """Not of the upload, long before."""
    story = story_of("Pending", "Checkpointing", "Uploading", "AllSnapshotsAvailable", "Obsolete")
    back = replace(stored(), control=ControlRecord(story=story))
    extended = extend_story(back, step(SnapshotFacts(back)), now=NOW)
    assert (extended[-1].state, extended[-1].at) == ("AllSnapshotsAvailable", NOW)
    assert len(extended) == len(story) + 1
