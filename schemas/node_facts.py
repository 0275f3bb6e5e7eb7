# SPDX-License-Identifier: Apache-2.0
"""What an agent publishes about its node, in the annotation of the node's Lease.

The Lease's renewal is the agent's sign of life; its annotation says what the node can restore. A
Lease in our own namespace keeps the agent from needing any right on Node objects.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from schemas.instants import parse_time
from schemas.names import NODE_FACTS_ANNOTATION, NODE_LEASE_PREFIX
from schemas.snapshot import Compatibility

# Three missed heartbeats and some: an agent that restarts is back long before.
AGENT_LOST_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node, as its agent last described it. ``renewed_at_s`` is seconds since the epoch."""

    node: str
    compatibility: Compatibility
    renewed_at_s: float = 0.0

    def to_annotation(self) -> str:
        """Render for the Lease."""
        return json.dumps({"version": 1, "compatibility": self.compatibility.to_object()})

    @classmethod
    def parse(cls, lease: Mapping[str, Any]) -> Self:
        """Read a node's Lease; an unreadable annotation gives empty facts."""
        metadata = lease.get("metadata") or {}
        text = (metadata.get("annotations") or {}).get(NODE_FACTS_ANNOTATION) or "{}"
        try:
            facts = json.loads(text)
        except ValueError:
            facts = {}
        renewed = parse_time((lease.get("spec") or {}).get("renewTime") or "")
        return cls(
            node=metadata.get("name", "").removeprefix(NODE_LEASE_PREFIX),
            compatibility=Compatibility.parse(facts.get("compatibility") or {}),
            renewed_at_s=renewed.timestamp() if renewed else 0.0,
        )
