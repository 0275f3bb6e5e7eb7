# SPDX-License-Identifier: Apache-2.0
"""How a Pod's start ended, as clients of the contract read it.

``PodRestored`` is absent on a cold start and true after a restore; false means that a restore was
tried and failed, so the Pod started cold after all. The event texts are those that clients match.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from schemas.conditions import Condition
from schemas.names import POD_RESTORED


class Outcome(StrEnum):
    """The ends of a Pod's start."""

    COLD = "Cold"
    COLD_DESPITE_SNAPSHOT = "ColdDespiteSnapshot"
    RESTORED = "Restored"
    FELL_BACK = "FellBack"


@dataclass(frozen=True, slots=True)
class PodReport:
    """What the agent writes on the Pod."""

    condition: Condition | None
    event_type: Literal["Normal", "Warning"] | None
    event_message: str = ""


def report(outcome: Outcome, *, namespace: str, snapshot: str, reason: str = "") -> PodReport:
    """Render an outcome; ``snapshot`` is the PodSnapshot's name, ``reason`` a sentence."""
    match outcome:
        case Outcome.COLD:
            return PodReport(None, None)
        case Outcome.COLD_DESPITE_SNAPSHOT:
            return PodReport(None, "Warning", f"falling back to a cold start of pod: {reason}")
        case Outcome.RESTORED:
            text = f"Successfully restored the pod from PodSnapshot {namespace}/{snapshot}"
            return PodReport(Condition(POD_RESTORED, "True", "Restored", text), "Normal", text)
        case Outcome.FELL_BACK:
            return PodReport(
                Condition(
                    POD_RESTORED,
                    "False",
                    "FailedToRestore",
                    f"PodSnapshot {namespace}/{snapshot} could not be restored: {reason}",
                ),
                "Warning",
                f"falling back to a cold start of pod: restoring PodSnapshot "
                f"{namespace}/{snapshot} failed: {reason}",
            )


def saved_event(namespace: str, snapshot: str) -> str:
    """Return the text of the event on a Pod that was saved."""
    return f"Successfully checkpointed the pod to PodSnapshot [{namespace}/{snapshot}]"
