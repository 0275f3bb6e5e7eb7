# SPDX-License-Identifier: Apache-2.0
"""Conditions as ``metav1.Condition`` defines them.

The trap is ``lastTransitionTime``: it moves only when ``status`` changes, so a condition is never
written without looking at the one it replaces.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

Status = Literal["True", "False", "Unknown"]

MESSAGE_LIMIT = 32768


@dataclass(frozen=True, slots=True)
class Condition:
    """One observation of an object, with the reason a program reads and the message people read."""

    type: str
    status: Status
    reason: str
    message: str = ""
    last_transition_time: str = ""
    observed_generation: int | None = None

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """Read one entry of ``status.conditions``."""
        return cls(
            type=raw.get("type", ""),
            status=raw.get("status", "Unknown"),
            reason=raw.get("reason", ""),
            message=raw.get("message", ""),
            last_transition_time=raw.get("lastTransitionTime", ""),
            observed_generation=raw.get("observedGeneration"),
        )

    @property
    def is_true(self) -> bool:
        """Whether the condition holds."""
        return self.status == "True"

    def says_the_same_as(self, other: "Condition | None") -> bool:
        """Compare all that a reader sees, leaving the instant aside."""
        return other is not None and (self.type, self.status, self.reason, self.message) == (
            other.type,
            other.status,
            other.reason,
            other.message,
        )

    def to_object(self, *, previous: "Condition | None", now: str) -> dict[str, Any]:
        """Render for the API; ``now`` (RFC 3339) is used only if ``status`` changed."""
        unchanged = previous is not None and previous.status == self.status
        at = previous.last_transition_time if previous and unchanged else now
        rendered: dict[str, Any] = {
            "type": self.type,
            "status": self.status,
            "reason": self.reason,
            "message": self.message[:MESSAGE_LIMIT],
            "lastTransitionTime": at or now,
        }
        if self.observed_generation is not None:
            rendered["observedGeneration"] = self.observed_generation
        return rendered


def parse_conditions(status: Mapping[str, Any]) -> dict[str, Condition]:
    """Return the conditions of a status by type."""
    return {c.type: c for c in map(Condition.parse, status.get("conditions") or ())}


def render_conditions(
    conditions: Iterable[Condition], *, previous: Mapping[str, Condition], now: str
) -> list[dict[str, Any]]:
    """Render conditions for an apply, keeping transition times that did not move."""
    return [c.to_object(previous=previous.get(c.type), now=now) for c in conditions]
