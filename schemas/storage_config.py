# SPDX-License-Identifier: Apache-2.0
"""PodSnapshotStorageConfig: where the bytes of snapshots go (cluster-scoped)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from schemas.conditions import Condition, parse_conditions
from schemas.metadata import Metadata
from schemas.names import NAMESPACES_ANNOTATION, READY


@dataclass(frozen=True, slots=True)
class Location:
    """A folder in a bucket; ``path`` has neither a leading nor a trailing slash."""

    bucket: str
    path: str = ""

    def below(self, name: str) -> "Location":
        """Return the folder ``name`` inside this one."""
        return Location(bucket=self.bucket, path=f"{self.path}/{name}" if self.path else name)

    @property
    def url(self) -> str:
        """The address as the contract writes it: ``gs://bucket/path``."""
        return f"gs://{self.bucket}/{self.path}"

    def to_object(self) -> dict[str, str]:
        """Render for a record."""
        return {"bucket": self.bucket, "path": self.path}

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """Read a record."""
        return cls(bucket=raw.get("bucket", ""), path=raw.get("path", ""))


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """A storage config; ``location`` is ``None`` when no back end is named."""

    metadata: Metadata
    location: Location | None
    token_source: str = "podKSA"  # noqa: S105 - the name of a mode, not a secret
    conditions: Mapping[str, Condition] = field(default_factory=dict)

    @classmethod
    def parse(cls, obj: Mapping[str, Any]) -> Self:
        """Read the API object."""
        gcs = ((obj.get("spec") or {}).get("snapshotStorageConfig") or {}).get("gcs")
        location = None
        if gcs:
            location = Location(bucket=gcs["bucket"], path=(gcs.get("path") or "").strip("/"))
        return cls(
            metadata=Metadata.parse(obj),
            location=location,
            token_source=(gcs or {}).get("tokenSource", "podKSA"),
            conditions=parse_conditions(obj.get("status") or {}),
        )

    @property
    def not_ready_because(self) -> str | None:
        """Why the bucket cannot be used, or ``None``. Not yet judged counts as usable."""
        ready = self.conditions.get(READY)
        return ready.message if ready is not None and ready.status == "False" else None

    @property
    def path_error(self) -> str | None:
        """What is wrong with the folder, or ``None``: a segment that no bucket takes as a name."""
        path = self.location.path if self.location else ""
        for segment in path.split("/") if path else ():
            if segment in {"", ".", ".."}:
                return (
                    f"spec.snapshotStorageConfig.gcs.path {path!r} has the segment {segment!r}; "
                    "write folders with one slash between them, such as team-a/snapshots"
                )
        return None

    def allows(self, namespace: str) -> bool:
        """Whether a namespace may use the bucket; without the annotation all may."""
        text = self.metadata.annotations.get(NAMESPACES_ANNOTATION)
        return text is None or namespace in (name.strip() for name in text.split(","))

    def refusal(self, namespace: str) -> str:
        """Say why a namespace may not use the bucket, empty if it may."""
        if self.allows(namespace):
            return ""
        return f"PodSnapshotStorageConfig {self.metadata.name} is not for this namespace"
