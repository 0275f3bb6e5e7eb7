# SPDX-License-Identifier: Apache-2.0
"""A trigger is answered once; a Pod's start ends in words that clients match."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from api_objects import FAILURE, capture_of, pod, snapshot

from schemas.conditions import Condition
from schemas.metadata import Metadata
from schemas.names import CHECKPOINT, POD_RESTORED, TRIGGERED
from schemas.snapshot import RestoreProgress
from schemas.trigger import ManualTrigger
from statemachine.restore import Outcome, report, running_restores, saved_event
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


def test_a_cold_start_that_anybody_expects_is_no_warning() -> None:
    """One event with the reason and where the rest is; ``PodRestored`` is absent."""
    found = report(Outcome.COLD, namespace="shop", pod="web-0", reason="no snapshot is ready yet")
    assert (found.condition, found.event_type) == (None, "Normal")
    assert found.event_message == (
        "Started cold: no snapshot is ready yet; see `podsnap explain pod web-0 -n shop`"
    )


def test_a_cold_start_despite_a_snapshot_is_a_warning() -> None:
    """It begins with the words that GKE's clients look for, and there is no condition."""
    found = report(Outcome.COLD_DESPITE_SNAPSHOT, namespace="shop", pod="web-0", reason="why")
    assert (found.condition, found.event_type) == (None, "Warning")
    assert found.event_message == (
        "falling back to a cold start of pod: why; see `podsnap explain pod web-0 -n shop`"
    )


def test_a_restore_names_the_snapshot_in_the_condition() -> None:
    """Clients read the name out of the message."""
    found = report(Outcome.RESTORED, namespace="shop", pod="web-0", snapshot="s-1")
    assert found.condition is not None
    assert (found.condition.type, found.condition.status) == (POD_RESTORED, "True")
    assert "shop/s-1" in found.condition.message
    assert found.event_type == "Normal"
    assert found.event_message == "Successfully restored the pod from PodSnapshot shop/s-1"


def test_a_restore_into_another_environment_says_so_behind_the_contracts_words() -> None:
    """The condition stays as it is, because clients take the name from its end."""
    plain = report(Outcome.RESTORED, namespace="shop", pod="web-0", snapshot="s-1")
    differs = ["container main: LOG_LEVEL differs", "container log: A is new"]
    found = report(
        Outcome.RESTORED, namespace="shop", pod="web-0", snapshot="s-1", env_differences=differs
    )
    assert found.condition == plain.condition
    assert found.event_message == (
        f"{plain.event_message}; env differs: container main: LOG_LEVEL differs; "
        "container log: A is new (see /proc/gvisor/spec_environ)"
    )


def test_a_restore_that_fell_back_says_both() -> None:
    """That it was tried, and that the Pod started cold after all."""
    found = report(
        Outcome.FELL_BACK, namespace="shop", pod="web-0", snapshot="s-1", reason="no image"
    )
    assert found.condition is not None
    assert (found.condition.status, found.condition.reason) == ("False", "FailedToRestore")
    assert "no image" in found.condition.message
    assert found.event_type == "Warning"
    assert found.event_message == (
        "falling back to a cold start of pod: restoring PodSnapshot shop/s-1 failed: no image; "
        "see `podsnap explain pod web-0 -n shop`"
    )


@pytest.mark.parametrize("outcome", Outcome)
def test_an_event_says_where_the_rest_is_however_long_its_reason(outcome: Outcome) -> None:
    """An event holds 1,024 characters; names may have 253 and 63 of them."""
    found = report(
        outcome,
        namespace="n" * 63,
        pod="p" * 253,
        snapshot="s" * 36,
        reason="r" * 2000,
        env_differences=["e" * 2000],
    )
    assert len(found.event_message) <= 1024
    assert found.event_message.endswith(("`", "(see /proc/gvisor/spec_environ)"))


def test_a_restore_that_began_too_long_ago_to_be_true_does_not_run() -> None:
    """The node that should have told of its end is gone."""
    began = {"fresh": "2026-01-01T10:00:00.000000Z", "old": "2026-01-01T09:45:00Z", "wrong": "?"}
    restores = {u: RestoreProgress("web-1", "node-1", "Fetching", at) for u, at in began.items()}
    now = datetime(2026, 1, 1, 10, 5, tzinfo=UTC)
    assert running_restores(replace(snapshot(), restores=restores), now).keys() == {"fresh"}


def test_the_event_of_a_save_has_the_text_of_the_contract() -> None:
    """Scripts grep for it."""
    expected = "Successfully checkpointed the pod to PodSnapshot [shop/s-1]"
    assert saved_event("shop", "s-1") == expected
