# SPDX-License-Identifier: Apache-2.0
"""One span of a trace, as a value.

Spans are not measured by context managers that a crash would take with it: they are computed from
the instants that objects have recorded. Their ids are derived from what they tell of, so that two
processes, or one that runs twice, tell the same span and not two.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

AttributeValue = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Span:
    """A span; instants are seconds since the epoch, ids lower-case hex as in W3C trace context."""

    trace_id: str
    span_id: str
    parent_id: str  # empty: the root
    name: str
    service: str
    start_s: float
    end_s: float
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    links: tuple[tuple[str, str], ...] = ()  # (trace id, span id)
    error: str = ""  # what failed, empty if nothing did

    @property
    def traceparent(self) -> str:
        """The W3C header that makes something a child of this span."""
        return f"00-{self.trace_id}-{self.span_id}-01"


def trace_id(git_revision: str, snapshot_uid: str) -> str:
    """Return the id of the one trace of a snapshot's life (the idea is Flux's RFC-0011)."""
    return hashlib.sha256(f"{git_revision}\0{snapshot_uid}".encode()).hexdigest()[:32]


def span_id(trace: str, *what: str) -> str:
    """Return the id of the span that tells of ``what`` in a trace."""
    return hashlib.sha256("\0".join((trace, *what)).encode()).hexdigest()[:16]
