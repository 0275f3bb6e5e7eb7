# SPDX-License-Identifier: Apache-2.0
"""GitSource (``podsnap.dev/v1alpha1``): a repository whose policies podsnap applies by itself.

Minimal on purpose: what it has is named as Flux names it, so that it can grow without renaming.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from schemas.conditions import Condition, parse_conditions
from schemas.durations import parse_go_duration_s
from schemas.metadata import Metadata


@dataclass(frozen=True, slots=True)
class InventoryEntry:
    """One object that this source applied, and so may prune."""

    group: str
    kind: str
    namespace: str
    name: str

    def to_object(self) -> dict[str, str]:
        """Render for ``status.inventory``."""
        return {
            "group": self.group,
            "kind": self.kind,
            "namespace": self.namespace,
            "name": self.name,
        }

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """Read an entry of ``status.inventory``."""
        return cls(
            group=raw.get("group", ""),
            kind=raw.get("kind", ""),
            namespace=raw.get("namespace", ""),
            name=raw.get("name", ""),
        )


@dataclass(frozen=True, slots=True)
class GitSource:
    """A source; the schema lets at most one of ``branch``, ``tag`` and ``commit`` be set."""

    metadata: Metadata
    url: str
    branch: str | None
    tag: str | None
    commit: str | None
    path: str
    interval_s: float
    prune: bool
    applied_revision: str = ""
    observed_generation: int = 0
    inventory: tuple[InventoryEntry, ...] = ()
    conditions: Mapping[str, Condition] = field(default_factory=dict)

    @classmethod
    def parse(cls, obj: Mapping[str, Any]) -> Self:
        """Read the API object."""
        spec = obj["spec"]
        ref = spec.get("ref") or {}
        status = obj.get("status") or {}
        return cls(
            metadata=Metadata.parse(obj),
            url=spec["url"],
            branch=ref.get("branch"),
            tag=ref.get("tag"),
            commit=ref.get("commit"),
            path=(spec.get("path") or "").removeprefix("./").strip("/"),
            interval_s=parse_go_duration_s(spec.get("interval") or "1m"),
            prune=spec.get("prune", True),
            applied_revision=status.get("lastAppliedRevision", ""),
            observed_generation=status.get("observedGeneration", 0),
            inventory=tuple(map(InventoryEntry.parse, status.get("inventory") or ())),
            conditions=parse_conditions(status),
        )
