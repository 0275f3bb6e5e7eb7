# SPDX-License-Identifier: Apache-2.0
"""What a GitSource's status says, by the rules of kstatus.

Ready says whether the repository's head is applied. Reconciling stands beside it while that is
worked on or tried again, Stalled if only somebody else can mend it; each is there only while it is
true, so that tools which wait for a result know when to stop waiting.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from schemas.conditions import Condition, render_conditions
from schemas.git_source import GitSource
from schemas.names import OWN_API_VERSION, READY, RECONCILING, STALLED

_MESSAGE_LIMIT: Final = 8000


class Failure(Exception):  # noqa: N818 - reads as what happened
    """Why the head is not applied; the reason is the condition's."""

    def __init__(self, reason: str, message: str, *, is_stalled: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.is_stalled = is_stalled


@dataclass(frozen=True, slots=True)
class Status:
    """What a look says; Ready is the first condition."""

    conditions: tuple[Condition, ...]
    next_look: str = ""

    @property
    def ready(self) -> Condition:
        """The condition that people read."""
        return self.conditions[0]


def working(source: GitSource, what: str) -> Status:
    """A new commit, or a new spec, is being read or applied."""
    return Status(
        (
            _condition(source, READY, "Unknown", "Progressing", what),
            _condition(source, RECONCILING, "True", "Progressing", what),
        )
    )


def applied(source: GitSource, notes: Sequence[str]) -> Status:
    """The head is applied."""
    return Status((_condition(source, READY, "True", "Applied", "; ".join(notes)),))


def failed(source: GitSource, failure: Failure) -> Status:
    """The head is not applied; what was, stays."""
    revision = source.applied_revision
    message = str(failure) + (f"; revision {revision} stays applied" if revision else "")
    if failure.is_stalled:
        beside = _condition(source, STALLED, "True", failure.reason, message)
    else:
        beside = _condition(source, RECONCILING, "True", "ProgressingWithRetry", message)
    return Status((_condition(source, READY, "False", failure.reason, message), beside))


def suspended(source: GitSource) -> Status | None:
    """Nothing is looked at: what was said stays, what was to come is taken back."""
    stays = tuple(c for t, c in source.conditions.items() if t != RECONCILING)
    is_told = source.observed_generation == source.metadata.generation
    if is_told and not source.next_look_time and len(stays) == len(source.conditions):
        return None
    return Status(stays)


def render(source: GitSource, status: Status, now: str) -> dict[str, Any]:
    """Return the object to apply to the status subresource."""
    rest = {
        "lastAppliedRevision": source.applied_revision,
        "revisionSeenTime": source.revision_seen_time,
        "revisionAppliedTime": source.revision_applied_time,
        "lastAttemptedRevision": source.attempted_revision,
        "lastAttemptedSeenTime": source.attempted_seen_time,
        "nextLookTime": status.next_look,
        "lastHandledReconcileAt": source.handled_request,
    }
    return {
        "apiVersion": OWN_API_VERSION,
        "kind": "GitSource",
        "metadata": source.metadata.identity(),
        "status": {
            "conditions": render_conditions(status.conditions, previous=source.conditions, now=now),
            "observedGeneration": source.metadata.generation,
            "inventory": [e.to_object() for e in source.inventory],
            **{key: value for key, value in rest.items() if value},
        },
    }


def _condition(source: GitSource, kind: str, status: Any, reason: str, message: str) -> Condition:  # noqa: ANN401 - one of three texts
    return Condition(
        kind,
        status,
        reason,
        message[:_MESSAGE_LIMIT],
        observed_generation=source.metadata.generation,
    )
