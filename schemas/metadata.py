# SPDX-License-Identifier: Apache-2.0
"""The part of ``metadata`` that podsnap reads, and object identity."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Metadata:
    """Identity, labels and life of an API object. ``namespace`` is empty for cluster scope."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    finalizers: tuple[str, ...] = ()
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    deletion_grace_period_s: float = 0.0
    has_controller: bool = False

    @classmethod
    def parse(cls, obj: Mapping[str, Any]) -> Self:
        """Read ``metadata`` of a whole object."""
        raw = obj.get("metadata") or {}
        grace_s = raw.get("deletionGracePeriodSeconds")  # a file may have anything here
        return cls(
            name=raw.get("name", ""),
            namespace=raw.get("namespace", ""),
            uid=raw.get("uid", ""),
            resource_version=raw.get("resourceVersion", ""),
            generation=raw.get("generation", 0),
            labels=dict(raw.get("labels") or {}),
            annotations=dict(raw.get("annotations") or {}),
            finalizers=tuple(raw.get("finalizers") or ()),
            creation_timestamp=raw.get("creationTimestamp") or "",
            deletion_timestamp=raw.get("deletionTimestamp"),
            deletion_grace_period_s=float(grace_s) if isinstance(grace_s, int | float) else 0.0,
            has_controller=any(o.get("controller") for o in raw.get("ownerReferences") or ()),
        )

    @property
    def is_deleting(self) -> bool:
        """Whether deletion was asked for."""
        return self.deletion_timestamp is not None

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return (self.namespace, self.name)

    def identity(self) -> dict[str, str]:
        """Return the metadata of an apply to exactly this object: its name and its UID."""
        found = {"name": self.name, "uid": self.uid}
        return {**found, "namespace": self.namespace} if self.namespace else found

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name
