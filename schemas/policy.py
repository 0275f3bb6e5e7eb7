# SPDX-License-Identifier: Apache-2.0
"""PodSnapshotPolicy: which Pods are saved, when, and what they are restored from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from schemas.conditions import Condition, parse_conditions
from schemas.metadata import Metadata
from schemas.names import GIT_REVISION_ANNOTATION, GIT_SOURCE_ANNOTATION, READY
from schemas.policy_options import PolicyOptions
from schemas.policy_origin import PolicyOrigin
from schemas.selectors import LabelSelector


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
    options: PolicyOptions = field(default_factory=PolicyOptions)
    conditions: Mapping[str, Condition] = field(default_factory=dict)

    @classmethod
    def parse(cls, obj: Mapping[str, Any]) -> Self:
        """Read the API object."""
        spec = obj["spec"]
        trigger = spec["triggerConfig"]
        group = (spec.get("snapshotGroupingRules") or {}).get("groupByLabelValue") or {}
        metadata = Metadata.parse(obj)
        return cls(
            metadata=metadata,
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
            options=PolicyOptions.parse(metadata.annotations),
            conditions=parse_conditions(obj.get("status") or {}),
        )

    @property
    def git_revision(self) -> str | None:
        """The commit that brought this policy, if a GitSource applied it."""
        return self.metadata.annotations.get(GIT_REVISION_ANNOTATION)

    @property
    def origin(self) -> PolicyOrigin:
        """Where it came from, as far as the policy itself tells."""
        ready, source = (
            self.conditions.get(READY),
            self.metadata.annotations.get(GIT_SOURCE_ANNOTATION),
        )
        is_judged = (
            ready is not None
            and ready.is_true
            and ready.observed_generation in {None, self.metadata.generation}
        )
        return PolicyOrigin(
            revision=self.git_revision or "",
            source=f"GitSource {source}" if source else "",
            created_at=self.metadata.creation_timestamp,
            ready_at=ready.last_transition_time if ready is not None and is_judged else "",
        )

    @property
    def stops(self) -> bool:
        """Whether a Pod ends after its save."""
        return self.post_checkpoint == "stop"

    @property
    def rootfs_only(self) -> bool:
        """Whether only files are saved, no memory."""
        return self.snapshot_scope == "rootfs-only"
