# SPDX-License-Identifier: Apache-2.0
"""How a Pod's start ended, as clients of the contract read it, and who is being restored now.

``PodRestored`` is absent on a cold start and true after a restore; false means that a restore was
tried and failed, so the Pod started cold after all. The event texts begin with what clients match;
what podsnap adds stands behind it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Literal

from schemas.conditions import Condition
from schemas.instants import parse_time
from schemas.names import POD_RESTORED
from schemas.pod import Pod
from schemas.snapshot import RestoreProgress, Snapshot

# The API server's defaults of a probe.
_PERIOD_S: Final = 10
_TIMEOUT_S: Final = 1
_PROBE_FACTOR: Final = 3
# A busy node starts to probe late.
_READY_FLOOR_S: Final = 20.0
# An event holds 1,024 characters, and its end says where the rest is.
_REASON_LIMIT: Final = 500
# Longer than any restore may take: an entry that is older was left behind by a node that is gone.
_LONGEST_RESTORE: Final = timedelta(minutes=10)


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
    event_type: Literal["Normal", "Warning"]
    event_message: str


def report(
    outcome: Outcome,
    *,
    namespace: str,
    pod: str,
    snapshot: str = "",
    reason: str = "",
    env_differences: Sequence[str] = (),
) -> PodReport:
    """Render an outcome; ``snapshot`` is the PodSnapshot's name, ``reason`` a sentence.

    ``env_differences`` say how the environment of a restored Pod differs from its memory's.
    """
    reason = reason if len(reason) <= _REASON_LIMIT else f"{reason[:_REASON_LIMIT]}…"
    rest = f"; see `podsnap explain pod {pod} -n {namespace}`"
    match outcome:
        case Outcome.COLD:
            return PodReport(None, "Normal", f"Started cold: {reason}{rest}")
        case Outcome.COLD_DESPITE_SNAPSHOT:
            text = f"falling back to a cold start of pod: {reason}{rest}"
            return PodReport(None, "Warning", text)
        case Outcome.RESTORED:
            text = f"Successfully restored the pod from PodSnapshot {namespace}/{snapshot}"
            condition = Condition(POD_RESTORED, "True", "Restored", text)
            return PodReport(condition, "Normal", text + _env(env_differences))
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
                f"{namespace}/{snapshot} failed: {reason}{rest}",
            )


def _env(differences: Sequence[str]) -> str:
    if not differences:
        return ""
    text = "; ".join(differences)
    text = text if len(text) <= _REASON_LIMIT else f"{text[:_REASON_LIMIT]}…"
    return f"; env differs: {text} (see /proc/gvisor/spec_environ)"


def running_restores(snapshot: Snapshot, now: datetime) -> dict[str, RestoreProgress]:
    """Return the restores that a snapshot lists, by Pod UID, without what was left behind.

    An agent removes its entries at the end and when it starts; those of a node that never comes
    back stay, so whoever reads them leaves out what is too old to be true.
    """
    return {
        uid: progress
        for uid, progress in snapshot.restores.items()
        if (started := parse_time(progress.started_at)) and now - started < _LONGEST_RESTORE
    }


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
