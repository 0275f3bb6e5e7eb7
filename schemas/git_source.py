# SPDX-License-Identifier: Apache-2.0
"""GitSource (``podsnap.dev/v1alpha1``): a repository whose policies podsnap applies by itself.

What it has is named as Flux names it in its GitRepository and Kustomization, so that who knows one
knows the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self

from schemas.conditions import Condition, parse_conditions
from schemas.durations import parse_go_duration_s
from schemas.metadata import Metadata
from schemas.names import GIT_SOURCE_FINALIZER, REQUESTED_AT_ANNOTATION

VerifyMode = Literal["HEAD", "Tag", "TagAndHEAD"]

# As the schema has them, for objects that are older than it.
_INTERVAL_S: Final = (0.1, 365 * 86400.0)
_TIMEOUT_S: Final = (1.0, 600.0)


@dataclass(frozen=True, slots=True)
class InventoryEntry:
    """One object that this source applied, and so may prune."""

    group: str
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

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
class Verify:
    """Whose signature a commit needs: the mode, and the Secret with the signers' keys."""

    mode: VerifyMode
    secret: str

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """Read ``spec.verify``."""
        return cls(mode=raw.get("mode", "HEAD"), secret=(raw.get("secretRef") or {})["name"])


@dataclass(frozen=True, slots=True)
class GitSource:
    """A source; the schema lets at most one of ``branch``, ``tag`` and ``commit`` be set.

    ``revision_seen_time`` and ``revision_applied_time`` are of ``applied_revision``; a revision
    that was seen and not applied yet stands in ``attempted_revision``.
    """

    metadata: Metadata
    url: str
    branch: str | None
    tag: str | None
    commit: str | None
    path: str
    interval_s: float
    prune: bool
    timeout_s: float = 60.0
    secret: str | None = None
    verify: Verify | None = None
    is_suspended: bool = False
    applied_revision: str = ""
    attempted_revision: str = ""
    attempted_seen_time: str = ""
    revision_seen_time: str = ""
    revision_applied_time: str = ""
    next_look_time: str = ""
    handled_request: str = ""
    observed_generation: int = 0
    inventory: tuple[InventoryEntry, ...] = ()
    conditions: Mapping[str, Condition] = field(default_factory=dict)

    @property
    def request(self) -> str:
        """What the annotation that asks for a look says, empty if nothing."""
        return self.metadata.annotations.get(REQUESTED_AT_ANNOTATION, "")

    @property
    def is_held(self) -> bool:
        """Whether its deletion waits for us."""
        return GIT_SOURCE_FINALIZER in self.metadata.finalizers

    @classmethod
    def parse(cls, obj: Mapping[str, Any]) -> Self:
        """Read the API object."""
        spec = obj["spec"]
        ref = spec.get("ref") or {}
        status = obj.get("status") or {}
        verify = spec.get("verify")
        path = (spec.get("path") or "").removeprefix("./").strip("/")
        return cls(
            metadata=Metadata.parse(obj),
            url=spec["url"],
            branch=ref.get("branch"),
            tag=ref.get("tag"),
            commit=ref.get("commit"),
            path="" if path == "." else path,
            interval_s=_within(spec.get("interval") or "1m", *_INTERVAL_S),
            prune=spec.get("prune", True),
            timeout_s=_within(spec.get("timeout") or "60s", *_TIMEOUT_S),
            secret=(spec.get("secretRef") or {}).get("name"),
            verify=Verify.parse(verify) if verify else None,
            is_suspended=spec.get("suspend", False),
            applied_revision=status.get("lastAppliedRevision", ""),
            attempted_revision=status.get("lastAttemptedRevision", ""),
            attempted_seen_time=status.get("lastAttemptedSeenTime", ""),
            revision_seen_time=status.get("revisionSeenTime", ""),
            revision_applied_time=status.get("revisionAppliedTime", ""),
            next_look_time=status.get("nextLookTime", ""),
            handled_request=status.get("lastHandledReconcileAt", ""),
            observed_generation=status.get("observedGeneration", 0),
            inventory=tuple(map(InventoryEntry.parse, status.get("inventory") or ())),
            conditions=parse_conditions(status),
        )


def _within(duration: str, least_s: float, most_s: float) -> float:
    return min(max(parse_go_duration_s(duration), least_s), most_s)
