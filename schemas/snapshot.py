# SPDX-License-Identifier: Apache-2.0
"""PodSnapshot: one saved state of one Pod, from the wish to the bytes in the bucket.

The contract's own status tells clients how far it is. What facts cannot show again stands in
``status.podsnap``, in parts: ``capture`` (written by the node that saves), ``control`` (by the
leader), ``damage`` (by any node that found the bytes wrong) and three maps that several nodes
write: ``failures`` (a key for each Pod whose restore failed), ``restores`` (a key for each Pod that
is being restored) and ``restoredBy`` (a count for each node). The trap: a field applied by two
managers would be taken away from the first at its next apply; so the maps grow by merge patches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from schemas.conditions import Condition, parse_conditions
from schemas.metadata import Metadata
from schemas.names import (
    GIT_REVISION_ANNOTATION,
    IDENTITY_LABEL,
    ORIGIN_NODE_ANNOTATION,
    ORIGIN_POD_ANNOTATION,
    ORIGIN_POD_UID_ANNOTATION,
    POLICY_ORIGIN_ANNOTATION,
    READY,
    STORED_UID_ANNOTATION,
    TRACEPARENT_ANNOTATION,
    TRIGGER_TYPE_ANNOTATION,
)
from schemas.policy import TriggerType
from schemas.policy_origin import PolicyOrigin
from schemas.span import trace_id
from schemas.storage_config import Location

RECORD_VERSION = 1
# So many Pods whose restore failed take a snapshot out of use.
FAILURES_TO_QUARANTINE: Final = 3


@dataclass(frozen=True, slots=True)
class SpecIdentity:
    """The distilled Pod spec: its hash and the fields that went in, path to canonical JSON."""

    hash: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)

    def to_object(self) -> dict[str, Any]:
        """Render for a record or a manifest."""
        return {"hash": self.hash, "fields": dict(self.fields)}

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """Read a record."""
        return cls(hash=raw.get("hash", ""), fields=dict(raw.get("fields") or {}))


@dataclass(frozen=True, slots=True)
class Compatibility:
    """What must fit between the node that saved and the node that restores (runsc.md, 16)."""

    runsc_version: str = ""
    runsc_digest: str = ""
    platform: str = ""
    architecture: str = ""
    machine_series: str = ""
    runtime_config: Mapping[str, str] = field(default_factory=dict)
    cpu_features: tuple[str, ...] = ()

    def to_object(self) -> dict[str, Any]:
        """Render for a record, a manifest or a node's facts."""
        return {
            "runscVersion": self.runsc_version,
            "runscDigest": self.runsc_digest,
            "platform": self.platform,
            "architecture": self.architecture,
            "machineSeries": self.machine_series,
            "runtimeConfig": dict(self.runtime_config),
            "cpuFeatures": ",".join(self.cpu_features),
        }

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """Read what ``to_object`` wrote."""
        features = raw.get("cpuFeatures") or ""
        return cls(
            runsc_version=raw.get("runscVersion", ""),
            runsc_digest=raw.get("runscDigest", ""),
            platform=raw.get("platform", ""),
            architecture=raw.get("architecture", ""),
            machine_series=raw.get("machineSeries", ""),
            runtime_config=dict(raw.get("runtimeConfig") or {}),
            cpu_features=tuple(f for f in features.split(",") if f),
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a save ended: a CamelCase reason and a sentence with what to do."""

    reason: str
    message: str

    def to_object(self) -> dict[str, str]:
        """Render for a record."""
        return {"reason": self.reason, "message": self.message}


@dataclass(frozen=True, slots=True)
class SizeParts:
    """What the saved bytes hold: they add up to the snapshot's size, as far as a node can tell."""

    memory_bytes: int = 0
    rootfs_bytes: int = 0
    volumes_bytes: int = 0
    gpu_bytes: int = 0

    def to_object(self) -> dict[str, int]:
        """Render for a record."""
        return {
            "memoryBytes": self.memory_bytes,
            "rootfsBytes": self.rootfs_bytes,
            "volumesBytes": self.volumes_bytes,
            "gpuBytes": self.gpu_bytes,
        }

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """Read what ``to_object`` wrote."""
        return cls(
            memory_bytes=raw.get("memoryBytes", 0),
            rootfs_bytes=raw.get("rootfsBytes", 0),
            volumes_bytes=raw.get("volumesBytes", 0),
            gpu_bytes=raw.get("gpuBytes", 0),
        )


@dataclass(frozen=True, slots=True)
class RestoreProgress:
    """One Pod that is being restored. ``phase`` is ``Fetching``, ``Restoring`` or ``Loading``."""

    pod_name: str
    node: str
    phase: str
    started_at: str
    done_bytes: int = 0
    total_bytes: int = 0

    def to_object(self) -> dict[str, Any]:
        """Render for the status."""
        return {
            "podName": self.pod_name,
            "node": self.node,
            "phase": self.phase,
            "startedAt": self.started_at,
            "doneBytes": self.done_bytes,
            "totalBytes": self.total_bytes,
        }

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """Read what ``to_object`` wrote."""
        return cls(
            pod_name=raw.get("podName", ""),
            node=raw.get("node", ""),
            phase=raw.get("phase", ""),
            started_at=raw.get("startedAt", ""),
            done_bytes=raw.get("doneBytes", 0),
            total_bytes=raw.get("totalBytes", 0),
        )


@dataclass(frozen=True, slots=True)
class CaptureRecord:
    """What the node that claimed the save has done so far. Instants are ``MicroTime`` texts.

    From ``frozen_at`` the Pod stands still, from ``dumping_at`` runsc writes until ``dumped_at``; a
    program that saves itself tells nobody of these.
    Of the largest part, ``upload_components`` tells of how many parts the bucket says that it was
    composed, ``upload_parallel`` whether it went over several streams (``None``: one was meant).
    ``env_marks`` maps each container to its environment's keys, each with a mark that tells whether
    a value differs and nothing else about it.
    """

    node: str = ""
    attempt: int = 0
    pod_name: str = ""
    pod_uid: str = ""
    claimed_at: str = ""
    frozen_at: str = ""
    dumping_at: str = ""
    dumped_at: str = ""
    checkpointed_at: str = ""
    sealed_at: str = ""
    uploading_at: str = ""
    uploaded_at: str = ""
    failed_at: str = ""
    upload_parts: int = 0
    upload_components: int = 0
    upload_bytes_per_s: int = 0
    upload_parallel: bool | None = None
    checkpoint_s: float = 0.0
    seal_s: float = 0.0
    size_bytes: int = 0
    location: Location | None = None
    manifest_digest: str = ""
    identity: SpecIdentity = field(default_factory=SpecIdentity)
    compatibility: Compatibility = field(default_factory=Compatibility)
    image_ids: Mapping[str, str] = field(default_factory=dict)
    rootfs_only: bool = False
    env_marks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    sizes: SizeParts | None = None
    failure: Failure | None = None

    def to_object(self) -> dict[str, Any]:
        """Render for the status."""
        rendered: dict[str, Any] = {
            "node": self.node,
            "attempt": self.attempt,
            "podName": self.pod_name,
            "podUID": self.pod_uid,
            "claimedAt": self.claimed_at,
            "frozenAt": self.frozen_at,
            "dumpingAt": self.dumping_at,
            "dumpedAt": self.dumped_at,
            "checkpointedAt": self.checkpointed_at,
            "sealedAt": self.sealed_at,
            "uploadingAt": self.uploading_at,
            "uploadedAt": self.uploaded_at,
            "failedAt": self.failed_at,
            "uploadParts": self.upload_parts,
            "uploadComponents": self.upload_components,
            "uploadBytesPerSecond": self.upload_bytes_per_s,
            "checkpointSeconds": f"{self.checkpoint_s:.3f}",
            "sealSeconds": f"{self.seal_s:.3f}",
            "sizeBytes": self.size_bytes,
            "manifestDigest": self.manifest_digest,
            "identity": self.identity.to_object(),
            "compatibility": self.compatibility.to_object(),
            "imageIDs": dict(self.image_ids),
            "scope": "rootfs-only" if self.rootfs_only else "whole-pod",
            "env": {c: dict(marks) for c, marks in self.env_marks.items()},
        }
        if self.upload_parallel is not None:
            rendered["uploadParallel"] = self.upload_parallel
        if self.sizes is not None:
            rendered["sizes"] = self.sizes.to_object()
        if self.location is not None:
            rendered["location"] = self.location.to_object()
        if self.failure is not None:
            rendered["failure"] = self.failure.to_object()
        return rendered

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """Read what ``to_object`` wrote."""
        failure, location, sizes = raw.get("failure"), raw.get("location"), raw.get("sizes")
        return cls(
            node=raw.get("node", ""),
            attempt=raw.get("attempt", 0),
            pod_name=raw.get("podName", ""),
            pod_uid=raw.get("podUID", ""),
            claimed_at=raw.get("claimedAt", ""),
            frozen_at=raw.get("frozenAt", ""),
            dumping_at=raw.get("dumpingAt", ""),
            dumped_at=raw.get("dumpedAt", ""),
            checkpointed_at=raw.get("checkpointedAt", ""),
            sealed_at=raw.get("sealedAt", ""),
            uploading_at=raw.get("uploadingAt", ""),
            uploaded_at=raw.get("uploadedAt", ""),
            failed_at=raw.get("failedAt", ""),
            upload_parts=raw.get("uploadParts", 0),
            upload_components=raw.get("uploadComponents", 0),
            upload_bytes_per_s=raw.get("uploadBytesPerSecond", 0),
            upload_parallel=raw.get("uploadParallel"),
            checkpoint_s=float(raw.get("checkpointSeconds") or 0),
            seal_s=float(raw.get("sealSeconds") or 0),
            size_bytes=raw.get("sizeBytes", 0),
            location=Location.parse(location) if location else None,
            manifest_digest=raw.get("manifestDigest", ""),
            identity=SpecIdentity.parse(raw.get("identity") or {}),
            compatibility=Compatibility.parse(raw.get("compatibility") or {}),
            image_ids=dict(raw.get("imageIDs") or {}),
            rootfs_only=raw.get("scope") == "rootfs-only",
            env_marks={c: dict(marks) for c, marks in (raw.get("env") or {}).items()},
            sizes=SizeParts.parse(sizes) if sizes else None,
            failure=Failure(failure["reason"], failure["message"]) if failure else None,
        )


@dataclass(frozen=True, slots=True)
class StoryEntry:
    """One state that the snapshot reached, and when (``MicroTime``)."""

    state: str
    at: str
    reason: str = ""

    def to_object(self) -> dict[str, str]:
        """Render for the status."""
        return {"state": self.state, "at": self.at, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class ControlRecord:
    """What the leader decided and cannot see again.

    ``ready_at`` is when it first wrote that the snapshot is in the bucket.
    ``unwanted_since`` and ``unrunnable_since`` (``MicroTime``, empty if it is not so) are when the
    leader first saw that no Pod, template or pin wants the snapshot, and that no node can run it.
    """

    story: tuple[StoryEntry, ...] = ()
    unwanted_since: str = ""
    unrunnable_since: str = ""
    ready_at: str = ""

    def to_object(self) -> dict[str, Any]:
        """Render for the status."""
        rendered: dict[str, Any] = {"story": [e.to_object() for e in self.story]}
        if self.unwanted_since:
            rendered["unwantedSince"] = self.unwanted_since
        if self.unrunnable_since:
            rendered["unrunnableSince"] = self.unrunnable_since
        if self.ready_at:
            rendered["readyAt"] = self.ready_at
        return rendered

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """Read what ``to_object`` wrote."""
        return cls(
            story=tuple(
                StoryEntry(e["state"], e["at"], e.get("reason", "")) for e in raw.get("story") or ()
            ),
            unwanted_since=raw.get("unwantedSince", ""),
            unrunnable_since=raw.get("unrunnableSince", ""),
            ready_at=raw.get("readyAt", ""),
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A PodSnapshot as the API holds it.

    ``failures`` maps a Pod's UID to why its restore failed, ``restores`` to how far it is;
    ``restored_by`` maps a node to the number of Pods that it restored from this snapshot.
    """

    metadata: Metadata
    policy_name: str
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    last_access_time: str = ""
    observed_path: str = ""
    capture: CaptureRecord | None = None
    control: ControlRecord = field(default_factory=ControlRecord)
    damage: str = ""
    failures: Mapping[str, str] = field(default_factory=dict)
    restores: Mapping[str, RestoreProgress] = field(default_factory=dict)
    restored_by: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, obj: Mapping[str, Any]) -> Self:
        """Read the API object."""
        status = obj.get("status") or {}
        record = status.get("podsnap") or {}
        capture = record.get("capture")
        return cls(
            metadata=Metadata.parse(obj),
            policy_name=(obj.get("spec") or {}).get("policyName", ""),
            conditions=parse_conditions(status),
            last_access_time=status.get("lastAccessTime") or "",
            observed_path=((status.get("storageStatus") or {}).get("gcs") or {}).get(
                "observedGCSPath", ""
            ),
            capture=CaptureRecord.parse(capture) if capture and capture.get("node") else None,
            control=ControlRecord.parse(record.get("control") or {}),
            damage=(record.get("damage") or {}).get("message", ""),
            failures=dict(record.get("failures") or {}),
            restores={
                uid: RestoreProgress.parse(raw)
                for uid, raw in (record.get("restores") or {}).items()
            },
            restored_by=dict(record.get("restoredBy") or {}),
        )

    @property
    def origin_node(self) -> str:
        """The node whose agent is to save; for a workload's snapshot the first node that might."""
        return self.metadata.annotations.get(ORIGIN_NODE_ANNOTATION, "")

    @property
    def origin_pod(self) -> str:
        """The Pod that is or was saved."""
        return self.metadata.annotations.get(ORIGIN_POD_ANNOTATION, "")

    @property
    def origin_pod_uid(self) -> str:
        """The UID of that Pod."""
        return self.metadata.annotations.get(ORIGIN_POD_UID_ANNOTATION, "")

    @property
    def stored_uid(self) -> str:
        """The UID that its manifest and its objects carry; that of an imported one is new."""
        return self.metadata.annotations.get(STORED_UID_ANNOTATION, self.metadata.uid)

    @property
    def is_imported(self) -> bool:
        """Whether it was made from a manifest in a bucket, and not to save a Pod."""
        return STORED_UID_ANNOTATION in self.metadata.annotations

    @property
    def trigger_type(self) -> str:
        """What asked for the save."""
        return self.metadata.annotations.get(TRIGGER_TYPE_ANNOTATION, "")

    @property
    def git_revision(self) -> str:
        """The commit that its policy was at when it was created, as the tool writes it."""
        return self.metadata.annotations.get(GIT_REVISION_ANNOTATION, "")

    @property
    def origin(self) -> PolicyOrigin:
        """Where its policy came from, as it was known when it was created."""
        pinned = PolicyOrigin.parse(self.metadata.annotations.get(POLICY_ORIGIN_ANNOTATION, ""))
        return pinned if pinned.revision else replace(pinned, revision=self.git_revision)

    @property
    def trace_id(self) -> str:
        """The one trace of its life. It never changes, because what it is made of does not."""
        return trace_id(self.git_revision, self.metadata.uid)

    @property
    def traceparent(self) -> str:
        """The W3C header of its save, empty until the save has ended and was traced."""
        return self.metadata.annotations.get(TRACEPARENT_ANNOTATION, "")

    @property
    def identity_label(self) -> str:
        """The short identity by which an automatic save finds its object."""
        return self.metadata.labels.get(IDENTITY_LABEL, "")

    @property
    def awaits_workload(self) -> bool:
        """Whether the program in the Pod asks for the save, so that any of several may fill it."""
        return self.trigger_type == TriggerType.WORKLOAD

    @property
    def quarantine(self) -> str:
        """Why no Pod may be restored from its bytes, empty if nothing is known against them."""
        if self.damage:
            return f"its bytes are damaged: {self.damage}"
        if len(self.failures) < FAILURES_TO_QUARANTINE:
            return ""
        reasons = "; ".join(sorted(set(self.failures.values())))
        return f"{len(self.failures)} restores failed: {reasons}"

    @property
    def saved_at(self) -> str:
        """When the Pod was saved, empty before."""
        return self.capture.checkpointed_at if self.capture else ""

    @property
    def age_key(self) -> tuple[str, str, str]:
        """What the newest has most of: saved, not wished for, which may be days before."""
        return (self.saved_at, self.metadata.creation_timestamp, self.metadata.name)

    @property
    def is_stored(self) -> bool:
        """Whether the bucket holds all of it, wanted or not."""
        ready = self.conditions.get(READY)
        return ready is not None and (ready.is_true or ready.reason == "Obsolete")

    @property
    def is_spent(self) -> bool:
        """Whether no Pod will ever be restored from it, unless a person interferes."""
        failed = self.capture is not None and self.capture.failure is not None
        return failed or bool(self.quarantine)
