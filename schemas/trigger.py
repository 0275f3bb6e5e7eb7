# SPDX-License-Identifier: Apache-2.0
"""PodSnapshotManualTrigger: one request to save one Pod, answered once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from schemas.conditions import Condition, parse_conditions
from schemas.metadata import Metadata
from schemas.names import TRIGGERED

FINAL_REASONS = frozenset({"Complete", "Failed", "Error"})


@dataclass(frozen=True, slots=True)
class ManualTrigger:
    """A trigger; ``target_pod`` is empty where the user left ``spec`` out."""

    metadata: Metadata
    target_pod: str
    snapshot_name: str = ""
    conditions: Mapping[str, Condition] = field(default_factory=dict)

    @classmethod
    def parse(cls, obj: Mapping[str, Any]) -> Self:
        """Read the API object."""
        status = obj.get("status") or {}
        return cls(
            metadata=Metadata.parse(obj),
            target_pod=(obj.get("spec") or {}).get("targetPod", ""),
            snapshot_name=(status.get("snapshotCreated") or {}).get("name", ""),
            conditions=parse_conditions(status),
        )

    @property
    def is_answered(self) -> bool:
        """Whether the trigger reached its end; an answered one never runs again."""
        triggered = self.conditions.get(TRIGGERED)
        return triggered is not None and triggered.reason in FINAL_REASONS
