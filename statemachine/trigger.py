# SPDX-License-Identifier: Apache-2.0
"""The life of a manual trigger: judged once, then it mirrors the snapshot it asked for.

The trap: a trigger is one-shot. Once answered it never runs again, not even if its snapshot is
deleted later or the controller forgets; so the answer on the object outranks every fact.
"""

from dataclasses import dataclass
from enum import StrEnum

from schemas.conditions import Condition
from schemas.names import CHECKPOINT, TRIGGERED
from schemas.snapshot import Snapshot
from schemas.trigger import ManualTrigger


class TriggerEffect(StrEnum):
    """What the controller does for a trigger."""

    CREATE_SNAPSHOT = "CreateSnapshot"


@dataclass(frozen=True, slots=True)
class TriggerFacts:
    """A trigger and all that it depends on.

    ``snapshot`` is the PodSnapshot of the trigger's derived name, if it exists; ``was_created``
    whether this trigger already recorded it; ``refusal`` why the Pod cannot be saved,
    ``waiting_for`` what may still come (both empty if nothing).
    """

    trigger: ManualTrigger
    snapshot: Snapshot | None
    was_created: bool
    refusal: str = ""
    waiting_for: str = ""


@dataclass(frozen=True, slots=True)
class TriggerStep:
    """The condition to show and what to do. ``condition`` is ``None`` for an answered trigger."""

    condition: Condition | None
    effects: tuple[TriggerEffect, ...] = ()


def step(facts: TriggerFacts) -> TriggerStep:
    """Compute what a trigger shows next."""
    if facts.trigger.is_answered:
        return TriggerStep(None)
    if facts.snapshot is not None:
        return _mirror(facts.snapshot)
    if facts.was_created:
        return _failed("the PodSnapshot was deleted before it was saved; create a new trigger")
    if facts.refusal:
        return _failed(facts.refusal)
    if facts.waiting_for:
        return TriggerStep(_pending(f"waits for storage: {facts.waiting_for}"))
    asked = _pending("the Pod's node was asked to save it")
    return TriggerStep(asked, (TriggerEffect.CREATE_SNAPSHOT,))


def _mirror(snapshot: Snapshot) -> TriggerStep:
    checkpoint = snapshot.conditions.get(CHECKPOINT)
    name = snapshot.metadata.name
    if checkpoint is not None and checkpoint.is_true:
        return TriggerStep(Condition(TRIGGERED, "True", "Complete", f"saved as PodSnapshot {name}"))
    failure = snapshot.capture.failure if snapshot.capture else None
    if failure is not None:
        return _failed(f"{failure.reason}: {failure.message}")
    if snapshot.metadata.is_deleting:
        return _failed("the PodSnapshot was deleted before it was saved; create a new trigger")
    return TriggerStep(_pending(f"PodSnapshot {name} is being made"))


def _failed(message: str) -> TriggerStep:
    return TriggerStep(Condition(TRIGGERED, "False", "Failed", message))


def _pending(message: str) -> Condition:
    return Condition(TRIGGERED, "False", "Pending", message)
