# SPDX-License-Identifier: Apache-2.0
"""One save, from the claim to the manifest in the bucket (rules: gVisor's, for an executor).

The Pod is paused only while runsc writes. Everything before it may refuse, everything after it may
fail, and the Pod goes on in each case. What a save leaves behind is named by snapshot UID and
attempt, so whoever starts next knows what is garbage.

The trap: a killed runsc client does not stop the save. A directory is therefore never used twice,
and one of a save that passed its deadline is removed only after the client has really ended.
"""

import contextlib
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from backends.clock import Clock
from backends.kube.errors import AlreadyExists, Conflict, NotFound
from backends.objects.interface import ObjectStore, StoreError
from nodeexec.capture_status import CaptureStatus
from nodeexec.image import ImageError, ImageInfo, inspect, inspect_files, seal
from nodeexec.node_cache import NodeCache
from nodeexec.pause_estimate import PauseEstimate
from nodeexec.runsc import Runsc, RunscError, RunscTimeoutError, finish
from nodeexec.sandboxes import PreparedSandbox
from nodeexec.saved_sizes import saved_sizes
from nodeexec.stopping import Stopper
from nodeexec.upload import UploadCancelledError, delete_attempt, upload
from schemas.instants import to_micro_time
from schemas.manifest import MANIFEST_NAME, Manifest, Part
from schemas.pod import Pod
from schemas.snapshot import CaptureRecord, Compatibility, Failure, Snapshot, SpecIdentity
from schemas.storage_config import Location
from statemachine.snapshot import State

log = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 3
# A save writes at hundreds of MB/s; far slower means that it hangs.
_DEADLINE_FLOOR_S: Final = 60.0
_SLOWEST_BYTES_PER_S: Final = 20e6
_ABANDONED_LIMIT_S: Final = 3600.0
_SPACE_MARGIN_BYTES: Final = 64 << 20


class CaptureFailed(Exception):  # noqa: N818 - an outcome, not an error of ours
    """The save ended without an image; carries what to tell."""

    def __init__(self, reason: str, message: str) -> None:
        """Keep both parts for the record."""
        super().__init__(f"{reason}: {message}")
        self.failure = Failure(reason, message)


class StoppedError(Exception):
    """The snapshot is gone or was taken away from this node: drop everything."""


@dataclass(frozen=True, slots=True)
class CaptureJob:
    """All that a save needs to know.

    ``stops`` if the Pod ends with it. A Pod that is being deleted waits for the write until
    ``ends_s`` on the monotonic clock, when its signal is passed on; ``on_written`` does it sooner.
    """

    snapshot: Snapshot
    pod: Pod
    sandbox: PreparedSandbox
    identity: SpecIdentity
    image_ids: dict[str, str]
    location: Location
    env_marks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    stops: bool = False
    rootfs_only: bool = False
    ends_s: float | None = None
    on_written: Callable[[], None] | None = None


@dataclass(slots=True)
class _Known:
    """A save's record as it grows, so that a failure tells how far it came."""

    record: CaptureRecord


@dataclass(slots=True)
class Capturer:
    """Performs saves on this node. One per sandbox at a time; several sandboxes side by side."""

    node: str
    cluster_id: str
    staging: Path
    compatibility: Compatibility
    runsc: Runsc
    cache: NodeCache
    status: CaptureStatus
    stopper: Stopper
    estimate: PauseEstimate
    clock: Clock
    is_gone: Callable[[Snapshot], bool]

    def remove_staging(self, snapshot: Snapshot) -> None:
        """Remove every attempt's directory of a snapshot."""
        for directory in self.staging.glob(f"{snapshot.metadata.uid}-*"):
            shutil.rmtree(directory, ignore_errors=True)

    def directory(self, snapshot: Snapshot, attempt: int) -> Path:
        """Return the staging directory of one attempt."""
        return self.staging / f"{snapshot.metadata.uid}-{attempt}"

    def save(self, job: CaptureJob, *, attempt: int) -> tuple[Snapshot, CaptureRecord]:
        """Claim, checkpoint and seal; returns the snapshot whose image is now durable here.

        Raises:
            CaptureFailed: it was refused or went wrong, and that is recorded; the Pod goes on.
            StoppedError: the snapshot is not ours any more.
        """
        snapshot, record = self._claim(job, attempt)
        with self._failing(snapshot, record) as known:
            return self._save(job, snapshot, known)

    def _save(
        self, job: CaptureJob, snapshot: Snapshot, known: _Known
    ) -> tuple[Snapshot, CaptureRecord]:
        directory = self.directory(snapshot, known.record.attempt)
        # A tar of files that change while it is written would be of no moment.
        held = job.stops or job.rootfs_only
        try:
            self._check_space(job)
            started_s = self.clock.monotonic_s()
            known.record = replace(known.record, frozen_at=self._now())
            if held:
                self._pause(job)
            known.record = replace(known.record, dumping_at=self._now())
            self._write_image(job, directory)
            known.record = replace(
                known.record,
                dumped_at=self._now(),
                checkpoint_s=self.clock.monotonic_s() - started_s,
            )
            if held and not job.stops:
                self.stopper.resume(job.sandbox)
            if job.on_written is not None:
                if job.stops:
                    self.stopper.stop(job.sandbox, job.pod, going=True)
                job.on_written()
            sealed = self._sealed(job, snapshot, known, directory)
        except BaseException:
            if held:
                self.stopper.resume(job.sandbox)
            raise
        if job.stops and job.on_written is None:
            self.stopper.stop(job.sandbox, job.pod)
        return sealed

    def _pause(self, job: CaptureJob) -> None:
        try:
            self.stopper.pause(job.sandbox, job.snapshot.metadata.uid)
        except (RunscError, OSError) as error:
            raise CaptureFailed("PauseFailed", f"the sandbox was not paused: {error}") from error

    def take_up(self, snapshot: Snapshot, record: CaptureRecord) -> Snapshot | None:
        """Return the snapshot of an image that an earlier process sealed and could not report.

        Raises:
            StoppedError: the snapshot is not ours any more.
        """
        path = self.directory(snapshot, record.attempt) / MANIFEST_NAME
        try:
            manifest = Manifest.parse(path.read_bytes())
        except (OSError, ValueError):
            return None
        sealed = replace(
            record,
            checkpointed_at=self._now(),
            sealed_at=self._now(),
            size_bytes=manifest.size_bytes,
            sizes=saved_sizes(self.directory(snapshot, record.attempt), manifest.size_bytes),
        )
        text = f"saved on node {self.node}, {manifest.size_bytes / 1e6:.1f} MB"
        return self._write(
            lambda: self.status.write(snapshot, sealed, State.UPLOADING, text), of=snapshot
        )

    def adopt_workload_save(
        self, job: CaptureJob, written: Path, *, attempt: int
    ) -> tuple[Snapshot, CaptureRecord]:
        """Claim and seal an image that the workload made runsc write.

        Raises:
            CaptureFailed: the image is not usable.
            StoppedError: another node's save was first.
        """
        snapshot, record = self._claim(job, attempt)
        directory = self.directory(snapshot, attempt)
        shutil.rmtree(directory, ignore_errors=True)
        with self._failing(snapshot, record) as known:
            written.rename(directory)
            try:
                if job.stops:
                    self._pause(job)
                sealed = self._sealed(job, snapshot, known, directory)
            except BaseException:
                if job.stops:
                    self.stopper.resume(job.sandbox)
                raise
            if job.stops:
                self.stopper.stop(job.sandbox, job.pod)
            return sealed

    def _claim(self, job: CaptureJob, attempt: int) -> tuple[Snapshot, CaptureRecord]:
        record = CaptureRecord(
            node=self.node,
            attempt=attempt,
            pod_name=job.pod.metadata.name,
            pod_uid=job.pod.metadata.uid,
            claimed_at=self._now(),
            location=job.location,
            identity=job.identity,
            compatibility=self.compatibility,
            image_ids=job.image_ids,
            rootfs_only=job.rootfs_only,
            env_marks=job.env_marks,
        )
        message = f"being saved on node {self.node}"
        claimed = self._write(
            lambda: self.status.write(job.snapshot, record, State.CHECKPOINTING, message),
            of=job.snapshot,
        )
        # Only now is it certain that no save of ours goes on: clear what an earlier one left.
        if job.sandbox.paused_note.exists():
            self.stopper.resume(job.sandbox)
        self.remove_staging(job.snapshot)
        return claimed, record

    def _sealed(
        self, job: CaptureJob, snapshot: Snapshot, known: _Known, directory: Path
    ) -> tuple[Snapshot, CaptureRecord]:
        known.record = record = replace(known.record, checkpointed_at=self._now())
        started_s = self.clock.monotonic_s()
        info = self._inspected(directory, job)
        parts = seal(directory, info)
        manifest = self._manifest(job, snapshot, record, parts)
        # Its presence is what tells a restarted agent that this directory is whole.
        _write_durably(directory / MANIFEST_NAME, manifest.to_bytes())
        record = replace(
            record,
            sealed_at=self._now(),
            seal_s=self.clock.monotonic_s() - started_s,
            size_bytes=manifest.size_bytes,
            sizes=saved_sizes(directory, manifest.size_bytes),
        )
        text = f"saved on node {self.node}, {manifest.size_bytes / 1e6:.1f} MB"
        written = self._write(
            lambda: self.status.write(snapshot, record, State.UPLOADING, text), of=snapshot
        )
        return written, record

    def store(self, snapshot: Snapshot, record: CaptureRecord, store: ObjectStore) -> Snapshot:
        """Upload a sealed image and report it; afterwards it lies in the node's cache.

        Raises:
            CaptureFailed: the bucket refused, or the sealed image is gone; that is recorded.
            StoppedError: the snapshot is not ours any more; nothing of it is left in the bucket.
        """
        record = replace(record, uploading_at=self._now())
        with self._failing(snapshot, record):
            manifest, digest = self._uploaded(snapshot, record, store)
        record = replace(
            record,
            uploaded_at=self._now(),
            upload_parts=len(manifest.parts),
            manifest_digest=digest,
        )
        url = record.location.url if record.location else ""
        text = f"{record.size_bytes / 1e6:.1f} MB stored in {url}"
        try:
            written = self._write(
                lambda: self.status.write(snapshot, record, State.AVAILABLE, text), of=snapshot
            )
        except StoppedError:
            self._discard(snapshot, record, store)
            raise
        # Last, so that a crash before it finds the sealed image where it was.
        sealed = self.directory(snapshot, record.attempt)
        if sealed.is_dir():
            self.cache.adopt(snapshot.metadata.uid, sealed)
        return written

    def _uploaded(
        self, snapshot: Snapshot, record: CaptureRecord, store: ObjectStore
    ) -> tuple[Manifest, str]:
        directory = self.directory(snapshot, record.attempt)
        location = record.location
        if location is None:
            raise CaptureFailed("LocationLost", "the record names no bucket")
        try:
            manifest = Manifest.parse((directory / MANIFEST_NAME).read_bytes())
            gone = partial(self.is_gone, snapshot)
            return manifest, upload(store, location, directory, manifest, cancelled=gone)
        except UploadCancelledError as error:
            self._discard(snapshot, record, store)
            raise StoppedError("the PodSnapshot was deleted during the upload") from error
        except (StoreError, OSError, ValueError) as error:
            self._discard(snapshot, record, store)
            raise CaptureFailed(
                "UploadFailed",
                f"the image could not be stored in {location.url}: {error}; "
                "mend the bucket and create a new trigger",
            ) from error

    @contextlib.contextmanager
    def _failing(self, snapshot: Snapshot, record: CaptureRecord) -> Iterator[_Known]:
        """Record whatever ends a claimed save, so that none of them is left as it is."""
        known = _Known(record)
        try:
            yield known
        except CaptureFailed as failed:
            self._fail(snapshot, known.record, failed.failure)
            raise
        except OSError as error:
            failure = CaptureFailed("NodeError", f"on node {self.node}: {error}")
            self._fail(snapshot, known.record, failure.failure)
            raise failure from error
        except StoppedError:
            shutil.rmtree(self.directory(snapshot, record.attempt), ignore_errors=True)
            raise

    def _fail(self, snapshot: Snapshot, record: CaptureRecord, failure: Failure) -> None:
        """Record a terminal failure and drop the image."""
        shutil.rmtree(self.directory(snapshot, record.attempt), ignore_errors=True)
        self._write(
            lambda: self.status.write(
                snapshot,
                replace(record, failure=failure, failed_at=self._now()),
                State.FAILED,
                f"{failure.reason}: {failure.message}",
            ),
            of=snapshot,
        )

    def refuse(self, snapshot: Snapshot, pod: Pod | None, failure: Failure) -> None:
        """Record that a save was not even begun, or died with an earlier process, and why."""
        record = CaptureRecord(
            node=self.node,
            attempt=max(1, snapshot.capture.attempt if snapshot.capture else 1),
            location=snapshot.capture.location if snapshot.capture else None,
            pod_name=pod.metadata.name if pod else snapshot.origin_pod,
            pod_uid=pod.metadata.uid if pod else snapshot.origin_pod_uid,
            claimed_at=self._now(),
            failed_at=self._now(),
            failure=failure,
        )
        text = f"{failure.reason}: {failure.message}"
        self._write(lambda: self.status.write(snapshot, record, State.FAILED, text), of=snapshot)

    def _discard(self, snapshot: Snapshot, record: CaptureRecord, store: ObjectStore) -> None:
        shutil.rmtree(self.directory(snapshot, record.attempt), ignore_errors=True)
        if record.location is None:
            return
        try:
            delete_attempt(store, record.location, snapshot.metadata.uid)
        except StoreError as error:
            # The controller's sweep finds what is left.
            log.warning("parts of %s remain in the bucket: %s", snapshot.metadata, error)

    def _check_space(self, job: CaptureJob) -> None:
        self.staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        memory_bytes = 0 if job.rootfs_only else self.memory_bytes(job.sandbox)
        need_bytes = memory_bytes + _SPACE_MARGIN_BYTES
        free_bytes = shutil.disk_usage(self.staging).free
        if free_bytes < need_bytes:
            raise CaptureFailed(
                "NoSpace",
                f"saving may need {need_bytes >> 20} MiB and {self.staging} on node {self.node} "
                f"has {free_bytes >> 20} MiB free; make room and create a new trigger",
            )

    def memory_bytes(self, sandbox: PreparedSandbox) -> int:
        """Return what a sandbox holds in memory now, an upper bound of its image.

        Raises:
            CaptureFailed: it does not run.
        """
        try:
            return self.runsc.memory_bytes(sandbox.id)
        except RunscError as error:
            raise CaptureFailed(
                "SandboxGone", f"the sandbox of the Pod on node {self.node} has ended"
            ) from error

    def _write_image(self, job: CaptureJob, directory: Path) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700)
        memory_bytes = self.memory_bytes(job.sandbox)
        limit_s = _DEADLINE_FLOOR_S + memory_bytes / _SLOWEST_BYTES_PER_S
        if job.ends_s is not None:
            limit_s = job.ends_s - self.clock.monotonic_s()
            if limit_s <= 0:
                raise CaptureFailed(
                    "TooLate", "the Pod's signal was passed on before the save could begin"
                )
        if job.rootfs_only:
            for name in job.pod.writable_names:
                file = directory / f"{name}.tar"
                process = self.runsc.tar_rootfs(job.pod.container_ids[name], file)
                self._finish(process, directory, limit_s)
            return
        started_s = self.clock.monotonic_s()
        process = self.runsc.checkpoint(job.sandbox.id, directory, direct=True)
        self._finish(process, directory, limit_s)
        self.estimate.learn(memory_bytes, self.clock.monotonic_s() - started_s)

    def _finish(self, process: subprocess.Popen[bytes], directory: Path, limit_s: float) -> None:
        try:
            finish(process, limit_s=limit_s)
        except RunscTimeoutError as error:
            _remove_when_ended(process, directory)
            raise CaptureFailed(
                "CheckpointTimeout",
                f"context deadline exceeded: runsc did not finish within {limit_s:.0f} s",
            ) from error
        except RunscError as error:
            shutil.rmtree(directory, ignore_errors=True)
            raise CaptureFailed("CheckpointFailed", str(error)) from error

    def _inspected(self, directory: Path, job: CaptureJob) -> ImageInfo:
        try:
            if job.rootfs_only:
                return inspect_files(directory, job.pod.writable_names)
            info = inspect(directory)
        except ImageError as error:
            shutil.rmtree(directory, ignore_errors=True)
            raise CaptureFailed("ImageIncomplete", str(error)) from error
        expected = len(job.pod.running_names) + 1
        if info.container_count != expected or info.runsc_version != (
            self.compatibility.runsc_version
        ):
            shutil.rmtree(directory, ignore_errors=True)
            raise CaptureFailed(
                "ImageUnexpected",
                f"the image holds {info.container_count} containers of runsc "
                f"{info.runsc_version}; expected {expected} of "
                f"{self.compatibility.runsc_version}",
            )
        return info

    def _manifest(
        self, job: CaptureJob, snapshot: Snapshot, record: CaptureRecord, parts: tuple[Part, ...]
    ) -> Manifest:
        return Manifest(
            snapshot_uid=snapshot.metadata.uid,
            snapshot_name=snapshot.metadata.name,
            namespace=snapshot.metadata.namespace,
            cluster_id=self.cluster_id,
            attempt=record.attempt,
            parts=parts,
            identity=record.identity,
            compatibility=record.compatibility,
            image_ids=record.image_ids,
            origin_node=self.node,
            origin_pod=job.pod.metadata.name,
            git_revision=snapshot.git_revision,
            trace_id=snapshot.trace_id,
        )

    def _write(self, write: Callable[[], Snapshot], *, of: Snapshot) -> Snapshot:
        try:
            return write()
        except (NotFound, Conflict, AlreadyExists) as error:
            raise StoppedError(f"PodSnapshot {of.metadata} is not ours any more") from error

    def _now(self) -> str:
        return to_micro_time(self.clock.now())


def _remove_when_ended(process: subprocess.Popen[bytes], directory: Path) -> None:
    """Remove the directory of an abandoned save once its client has ended."""

    def wait() -> None:
        try:
            process.communicate(timeout=_ABANDONED_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.rmtree(directory, ignore_errors=True)

    threading.Thread(target=wait, name="abandoned-save", daemon=True).start()


def _write_durably(path: Path, text: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
