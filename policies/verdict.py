# SPDX-License-Identifier: Apache-2.0
"""A judgement with its reasons: what was found, in words that stand in events as they are.

Where several things stand in the way, ``IMPORTANCE`` says which is told first: an event has room
for one, and mending the smaller thing first would be in vain.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Reason(StrEnum):
    """Why something is not so. The text is what a program may match on."""

    SPEC_DIFFERS = "SpecDiffers"
    GROUP_DIFFERS = "GroupDiffers"
    NODE_INCOMPATIBLE = "NodeIncompatible"
    NOT_READY = "NotReady"
    OTHER_NAMESPACE = "OtherNamespace"
    NOT_GOVERNED = "NotGoverned"
    OTHER_POLICY = "OtherPolicy"
    QUARANTINED = "Quarantined"
    POD_NOT_FOUND = "PodNotFound"
    POD_NOT_READY = "PodNotReady"
    POD_IS_OVER = "PodIsOver"
    NOT_IN_GVISOR = "NotInGVisor"
    NOT_RESTORABLE = "NotRestorable"
    STORAGE_NOT_READY = "StorageNotReady"
    STORAGE_NOT_ALLOWED = "StorageNotAllowed"
    NOT_DUE = "NotDue"
    GAVE_UP = "GaveUp"
    SCOPE_UNSUPPORTED = "ScopeUnsupported"
    NOT_GOLDEN = "NotGolden"
    CONTENT_UNKNOWN = "ContentUnknown"
    # -- why a Pod starts cold, beyond the above
    NO_SNAPSHOT_YET = "NoSnapshotYet"
    PINNED_TO_NONE = "PinnedToNone"
    PIN_MISSING = "PinMissing"
    GATE_TIMED_OUT = "GateTimedOut"
    FETCH_FAILED = "FetchFailed"
    FETCH_TOO_SLOW = "FetchTooSlow"
    BYTES_DAMAGED = "BytesDamaged"
    UNTRUSTED = "SignatureNotTrusted"
    RESTORE_FAILED = "RestoreFailed"
    AGENT_AWAY = "AgentAway"


# Of what may be found about a snapshot. First what no change of the Pod mends: it is another's, it
# is not whole. Then whom it is for, then what it holds, then where it runs. Others come last.
IMPORTANCE: Final = (
    Reason.OTHER_NAMESPACE,
    Reason.OTHER_POLICY,
    Reason.QUARANTINED,
    Reason.NOT_READY,
    Reason.GROUP_DIFFERS,
    Reason.SPEC_DIFFERS,
    Reason.NODE_INCOMPATIBLE,
)

# All that a governed Pod's cold start may be put down to; each is a label of a metric.
COLD_START_REASONS: Final = frozenset(
    {
        *IMPORTANCE,
        Reason.NO_SNAPSHOT_YET,
        Reason.PINNED_TO_NONE,
        Reason.PIN_MISSING,
        Reason.STORAGE_NOT_ALLOWED,
        Reason.CONTENT_UNKNOWN,
        Reason.GATE_TIMED_OUT,
        Reason.FETCH_FAILED,
        Reason.FETCH_TOO_SLOW,
        Reason.BYTES_DAMAGED,
        Reason.UNTRUSTED,
        Reason.RESTORE_FAILED,
        Reason.AGENT_AWAY,
    }
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that stands in the way."""

    reason: Reason
    message: str

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class Verdict:
    """Usable if nothing was found."""

    findings: tuple[Finding, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether nothing stands in the way."""
        return not self.findings

    @property
    def refusal(self) -> str:
        """The first finding's reason and all messages; empty if usable."""
        return f"{self.findings[0].reason}: {self.message}" if self.findings else ""

    @property
    def message(self) -> str:
        """All findings as one sentence."""
        return "; ".join(f.message for f in self.findings)

    @property
    def most_important(self) -> Finding:
        """The finding to tell if there is room for one; the verdict must not be usable."""
        return min(self.findings, key=lambda f: _rank(f.reason))


def _rank(reason: Reason) -> int:
    return IMPORTANCE.index(reason) if reason in IMPORTANCE else len(IMPORTANCE)
