# SPDX-License-Identifier: Apache-2.0
"""A judgement with its reasons: what was found, in words that stand in events as they are."""

from dataclasses import dataclass
from enum import StrEnum


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
