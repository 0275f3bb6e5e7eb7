# SPDX-License-Identifier: Apache-2.0
"""How a Pod's start ended, as clients of the contract read it.

``PodRestored`` is absent on a cold start and true after a restore; false means that a restore was
tried and failed, so the Pod started cold after all. The event texts are those that clients match.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal

from schemas.conditions import Condition
from schemas.names import POD_RESTORED
from schemas.pod import Pod

# The API server's defaults of a probe.
_PERIOD_S: Final = 10
_TIMEOUT_S: Final = 1
_PROBE_FACTOR: Final = 3
# A busy node starts to probe late.
_READY_FLOOR_S: Final = 20.0


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


def ready_limit_s(pod: Pod) -> float | None:
    """Return how long a restored Pod's containers may take to be ready, ``None`` if none is probed.

    Three times what the slowest of them needs for an application that answers at once. The kubelet
    begins to probe readiness when the startup probe has succeeded.
    """
    slowest_s = max(
        (
            sum(map(_answer_s, filter(None, (c.get("startupProbe"), c["readinessProbe"]))))
            for c in pod.running_containers
            if c.get("readinessProbe")
        ),
        default=None,
    )
    return None if slowest_s is None else max(_PROBE_FACTOR * slowest_s, _READY_FLOOR_S)


def _answer_s(probe: Mapping[str, Any]) -> float:
    seconds: float = (
        (probe.get("initialDelaySeconds") or 0)
        + (probe.get("periodSeconds") or _PERIOD_S) * (probe.get("successThreshold") or 1)
        + (probe.get("timeoutSeconds") or _TIMEOUT_S)
    )
    return seconds
