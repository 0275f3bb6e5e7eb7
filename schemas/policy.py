# SPDX-License-Identifier: Apache-2.0
"""PodSnapshotPolicy: which Pods are saved, when, and what they are restored from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Self

from schemas.conditions import Condition, parse_conditions
from schemas.durations import parse_go_duration_s
from schemas.metadata import Metadata
from schemas.names import GATE_ANNOTATION, GIT_REVISION_ANNOTATION, PROBE_BUDGET_ANNOTATION
from schemas.selectors import LabelSelector

DEFAULT_PROBE_BUDGET_S: Final = 10.0
# The CRI gives a sandbox two minutes; half a minute is not ours, and five seconds fetch.
GATE_LIMIT_S: Final = 85.0


class TriggerType(StrEnum):
    """What asks for a save (contract, section 3.2)."""

    WORKLOAD = "workload"
    MANUAL = "manual"
    READINESS_PROBE = "readinessProbe"
    ON_DELETE = "onDelete"


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy as the API server admitted it: enums and defaults are the schema's business."""

    metadata: Metadata
    selector: LabelSelector
    storage_config_name: str
    trigger_type: TriggerType
    post_checkpoint: str = "resume"
    snapshot_scope: str = "whole-pod"
    last_access_timeout: str | None = None
    grouping_labels: tuple[str, ...] = ()
    max_snapshots_per_group: int = 0
    conditions: Mapping[str, Condition] = field(default_factory=dict)

    @classmethod
    def parse(cls, obj: Mapping[str, Any]) -> Self:
        """Read the API object."""
        spec = obj["spec"]
        trigger = spec["triggerConfig"]
        group = (spec.get("snapshotGroupingRules") or {}).get("groupByLabelValue") or {}
        return cls(
            metadata=Metadata.parse(obj),
            selector=LabelSelector.parse(spec.get("selector") or {}),
            storage_config_name=spec["storageConfigName"],
            trigger_type=TriggerType(trigger["type"]),
            post_checkpoint=trigger.get("postCheckpoint", "resume"),
            snapshot_scope=spec.get("snapshotScope", "whole-pod"),
            last_access_timeout=(spec.get("retentionConfig") or {}).get("lastAccessTimeout"),
            grouping_labels=tuple(group.get("labels") or ()),
            max_snapshots_per_group=(group.get("groupRetentionPolicy") or {}).get(
                "maxSnapshotCountPerGroup", 0
            ),
            conditions=parse_conditions(obj.get("status") or {}),
        )

    @property
    def git_revision(self) -> str | None:
        """The commit that brought this policy, if a GitSource applied it."""
        return self.metadata.annotations.get(GIT_REVISION_ANNOTATION)

    @property
    def stops(self) -> bool:
        """Whether a Pod ends after its save."""
        return self.post_checkpoint == "stop"

    @property
    def rootfs_only(self) -> bool:
        """Whether only files are saved, no memory."""
        return self.snapshot_scope == "rootfs-only"

    @property
    def gate_s(self) -> float:
        """How long a Pod waits for the first snapshot of its identity; 0 without the opt-in."""
        found = self._option_s(GATE_ANNOTATION)
        return found if found is not None and found <= GATE_LIMIT_S else 0.0

    @property
    def probe_budget_s(self) -> float:
        """How long a save that nobody asked for may pause a serving Pod."""
        found = self._option_s(PROBE_BUDGET_ANNOTATION)
        return DEFAULT_PROBE_BUDGET_S if found is None else found

    @property
    def option_errors(self) -> tuple[str, ...]:
        """What is wrong with the annotations; a wrong one counts as not set."""
        found = []
        for key in (GATE_ANNOTATION, PROBE_BUDGET_ANNOTATION):
            text = self.metadata.annotations.get(key)
            if text is None:
                continue
            try:
                value_s = parse_go_duration_s(text)
            except ValueError as error:
                found.append(f"annotation {key}: {error}")
                continue
            if key == GATE_ANNOTATION and value_s > GATE_LIMIT_S:
                found.append(
                    f"annotation {key} is {text}; a sandbox must be made within two minutes, so "
                    f"the gate is at most {GATE_LIMIT_S:.0f}s"
                )
        return tuple(found)

    def _option_s(self, key: str) -> float | None:
        text = self.metadata.annotations.get(key)
        try:
            return None if text is None else parse_go_duration_s(text)
        except ValueError:
            return None
