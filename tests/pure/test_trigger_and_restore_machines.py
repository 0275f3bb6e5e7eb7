# SPDX-License-Identifier: Apache-2.0
"""A trigger is answered once; a Pod's start ends in words that clients match."""

from dataclasses import replace

import pytest
from api_objects import FAILURE, capture_of, pod, snapshot

from schemas.conditions import Condition
from schemas.metadata import Metadata
from schemas.names import CHECKPOINT, POD_RESTORED, TRIGGERED
from schemas.trigger import ManualTrigger
from statemachine.restore import Outcome, report, saved_event
from statemachine.trigger import TriggerEffect, TriggerFacts, step

WAITING = replace(snapshot(), capture=None, conditions={})
SAVED = replace(WAITING, conditions={CHECKPOINT: Condition(CHECKPOINT, "True", "Succeeded")})
FAILED = replace(WAITING, capture=replace(capture_of(pod()), failure=FAILURE))
GOING = replace(WAITING, metadata=replace(WAITING.metadata, deletion_timestamp="2026"))
TRIGGER = ManualTrigger(Metadata(name="now", namespace="shop", uid="u"), "web-0")


def facts(**changes: object) -> TriggerFacts:
    """Return a new trigger's facts with changes."""
    base = TriggerFacts(trigger=TRIGGER, snapshot=None, was_created=False)
    return replace(base, **changes)  # type: ignore[arg-type] # a table's row


ROWS: dict[str, tuple[TriggerFacts, str, str, bool]] = {
    "nothing stands in the way": (facts(), "False/Pending", "was asked to save it", True),
    "the Pod cannot be saved": (
        facts(refusal="PodNotFound: no Pod"),
        "False/Failed",
        "PodNotFound: no Pod",
        False,
    ),
    "storage may still come": (
        facts(waiting_for="no bucket"),
        "False/Pending",
        "waits for storage: no bucket",
        False,
    ),
    "a refusal outranks waiting": (
        facts(refusal="R: x", waiting_for="y"),
        "False/Failed",
        "",
        False,
    ),
    "its snapshot is being made": (
        facts(snapshot=WAITING),
        "False/Pending",
        "is being made",
        False,
    ),
    "a refusal after the creation changes nothing": (
        facts(snapshot=WAITING, refusal="PodNotReady: paused"),
        "False/Pending",
        "is being made",
        False,
    ),
    "its snapshot is saved, not yet uploaded": (
        facts(snapshot=SAVED, was_created=True),
        "True/Complete",
        WAITING.metadata.name,
        False,
    ),
    "its save ended": (
        facts(snapshot=FAILED),
        "False/Failed",
        "RunscFailed: runsc checkpoint: exit status 128",
        False,
    ),
    "its snapshot is being deleted": (facts(snapshot=GOING), "False/Failed", "was deleted", False),
    "its snapshot is gone": (facts(was_created=True), "False/Failed", "was deleted", False),
}


@pytest.mark.parametrize("sentence", ROWS)
def test_a_trigger_mirrors_its_snapshot(sentence: str) -> None:
    """Pending is not terminal, Complete and Failed are."""
    given, expected, message, creates = ROWS[sentence]
    outcome = step(given)
    assert outcome.condition is not None
    assert outcome.condition.type == TRIGGERED
    assert f"{outcome.condition.status}/{outcome.condition.reason}" == expected
    assert message in outcome.condition.message
    assert (TriggerEffect.CREATE_SNAPSHOT in outcome.effects) is creates


@pytest.mark.parametrize("reason", ["Complete", "Failed", "Error"])
def test_an_answered_trigger_never_runs_again(reason: str) -> None:
    """Not even if its snapshot was deleted and everything would allow it."""
    condition = Condition(TRIGGERED, "True" if reason == "Complete" else "False", reason)
    answered = replace(TRIGGER, conditions={TRIGGERED: condition})
    for snapshot_now in (None, SAVED, FAILED):
        outcome = step(facts(trigger=answered, snapshot=snapshot_now, was_created=True))
        assert (outcome.condition, outcome.effects) == (None, ())


def test_a_pending_trigger_is_not_answered() -> None:
    """A restarted controller goes on with it."""
    pending = replace(TRIGGER, conditions={TRIGGERED: Condition(TRIGGERED, "False", "Pending")})
    assert step(facts(trigger=pending)).effects == (TriggerEffect.CREATE_SNAPSHOT,)


# -- restores


def test_a_cold_start_leaves_no_trace_on_the_pod() -> None:
    """``PodRestored`` is absent, and so is the event."""
    found = report(Outcome.COLD, namespace="shop", snapshot="", reason="")
    assert (found.condition, found.event_type, found.event_message) == (None, None, "")


def test_a_cold_start_despite_a_snapshot_is_a_warning() -> None:
    """With the words that GKE's clients look for, and no condition."""
    found = report(Outcome.COLD_DESPITE_SNAPSHOT, namespace="shop", snapshot="s", reason="why")
    assert (found.condition, found.event_type) == (None, "Warning")
    assert found.event_message == "falling back to a cold start of pod: why"


def test_a_restore_names_the_snapshot_in_the_condition() -> None:
    """Clients read the name out of the message."""
    found = report(Outcome.RESTORED, namespace="shop", snapshot="s-1")
    assert found.condition is not None
    assert (found.condition.type, found.condition.status) == (POD_RESTORED, "True")
    assert "shop/s-1" in found.condition.message
    assert found.event_type == "Normal"
    assert found.event_message == "Successfully restored the pod from PodSnapshot shop/s-1"


def test_a_restore_that_fell_back_says_both() -> None:
    """That it was tried, and that the Pod started cold after all."""
    found = report(Outcome.FELL_BACK, namespace="shop", snapshot="s-1", reason="no image")
    assert found.condition is not None
    assert (found.condition.status, found.condition.reason) == ("False", "FailedToRestore")
    assert "no image" in found.condition.message
    assert found.event_type == "Warning"
    assert "falling back to a cold start of pod: " in found.event_message


def test_the_event_of_a_save_has_the_text_of_the_contract() -> None:
    """Scripts grep for it."""
    expected = "Successfully checkpointed the pod to PodSnapshot [shop/s-1]"
    assert saved_event("shop", "s-1") == expected
