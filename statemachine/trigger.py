# SPDX-License-Identifier: Apache-2.0
"""The life of a manual trigger: judged once, then it mirrors the snapshot it asked for.

The trap: a trigger is one-shot. Once answered it never runs again, not even if its snapshot is
deleted later or the controller forgets; so the answer on the object outranks every fact.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from schemas.conditions import Condition
from schemas.names import CHECKPOINT, TRIGGERED
from schemas.snapshot import Failure, Snapshot
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


# The first one's docstring says in words what holds; docs/state-machine.md shows it.
TriggerRule = tuple[Callable[[TriggerFacts], bool], Callable[[TriggerFacts], TriggerStep]]


def step(facts: TriggerFacts) -> TriggerStep:
    """Compute what a trigger shows next."""
    return next(then(facts) for holds, then in RULES if holds(facts))


def _is_answered(facts: TriggerFacts) -> bool:
    """It was answered before."""
    return facts.trigger.is_answered


def _is_saved(facts: TriggerFacts) -> bool:
    """Its PodSnapshot is saved."""
    checkpoint = facts.snapshot.conditions.get(CHECKPOINT) if facts.snapshot else None
    return checkpoint is not None and checkpoint.is_true


def _has_failed(facts: TriggerFacts) -> bool:
    """Its PodSnapshot's save has failed."""
    return _failure(facts) is not None


def _is_deleted(facts: TriggerFacts) -> bool:
    """Its PodSnapshot was deleted, or is being deleted, before it was saved."""
    if facts.snapshot is None:
        return facts.was_created
    return facts.snapshot.metadata.is_deleting


def _is_being_made(facts: TriggerFacts) -> bool:
    """Its PodSnapshot exists."""
    return facts.snapshot is not None


def _is_refused(facts: TriggerFacts) -> bool:
    """The Pod cannot be saved."""
    return bool(facts.refusal)


def _waits(facts: TriggerFacts) -> bool:
    """The bucket is not there yet."""
    return bool(facts.waiting_for)


def _is_new(_: TriggerFacts) -> bool:
    """Nothing stands in its way."""
    return True


def _complete(facts: TriggerFacts) -> TriggerStep:
    name = facts.snapshot.metadata.name if facts.snapshot else ""
    return TriggerStep(Condition(TRIGGERED, "True", "Complete", f"saved as PodSnapshot {name}"))


def _save_failed(facts: TriggerFacts) -> TriggerStep:
    failure = _failure(facts)
    return _failed(f"{failure.reason}: {failure.message}" if failure else "the save failed")


def _mirror(facts: TriggerFacts) -> TriggerStep:
    name = facts.snapshot.metadata.name if facts.snapshot else ""
    return _pending(f"PodSnapshot {name} is being made")


RULES: Final[tuple[TriggerRule, ...]] = (
    (_is_answered, lambda _: TriggerStep(None)),
    (_is_saved, _complete),
    (_has_failed, _save_failed),
    (
        _is_deleted,
        lambda _: _failed("the PodSnapshot was deleted before it was saved; create a new trigger"),
    ),
    (_is_being_made, _mirror),
    (_is_refused, lambda f: _failed(f.refusal)),
    (_waits, lambda f: _pending(f"waits for storage: {f.waiting_for}")),
    (
        _is_new,
        lambda _: _pending("the Pod's node was asked to save it", TriggerEffect.CREATE_SNAPSHOT),
    ),
)


def _failure(facts: TriggerFacts) -> Failure | None:
    return facts.snapshot.capture.failure if facts.snapshot and facts.snapshot.capture else None


def _failed(message: str) -> TriggerStep:
    return TriggerStep(Condition(TRIGGERED, "False", "Failed", message))


def _pending(message: str, *effects: TriggerEffect) -> TriggerStep:
    return TriggerStep(Condition(TRIGGERED, "False", "Pending", message), effects)
