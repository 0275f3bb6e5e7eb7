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
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from backends.clock import Clock
from backends.kube.errors import AlreadyExists, ApiError, Conflict, NotFound
from backends.objects.interface import (
    IntegrityError,
    ObjectStore,
    StoreError,
    never,
)
from nodeexec import cached_image
from nodeexec.capture_job import CaptureFailed, CaptureJob, StoppedError
from nodeexec.capture_status import CaptureStatus
from nodeexec.image import seal, write_durably
from nodeexec.node_cache import NodeCache
from nodeexec.pause_estimate import PauseEstimate
from nodeexec.runsc import Runsc, RunscError, RunscTimeoutError, finish
from nodeexec.sandboxes import PreparedSandbox
from nodeexec.saved_sizes import saved_sizes
from nodeexec.signing import SigningError
from nodeexec.stopping import Stopper
from nodeexec.store_delays import StoreDelayedError, delay_s
from nodeexec.upload import UploadCancelledError, Uploaded, discard, unsigned, upload
from nodeexec.written_image import inspected, remove_when_ended, sealed_manifest
from schemas.encoding import Encoding
from schemas.instants import to_micro_time
from schemas.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest, Part
from schemas.names import STORAGE_REPLICATED
from schemas.pod import Pod
from schemas.snapshot import CaptureRecord, Compatibility, Failure, Snapshot
from schemas.storage_config import Location
from statemachine.snapshot import State

log = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 3
# A save writes at hundreds of MB/s; far slower means that it hangs.
_DEADLINE_FLOOR_S: Final = 60.0
_SLOWEST_BYTES_PER_S: Final = 20e6
_SPACE_MARGIN_BYTES: Final = 64 << 20


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
    # Returns the text of a manifest's signature, ``None`` where the cluster does not sign.
    sign: Callable[[bytes], bytes | None] = unsigned
    # Whether this process ends: what fails then may only fail because of that.
    is_stopping: Callable[[], bool] = never

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
        info = inspected(directory, job, self.compatibility.runsc_version)
        parts = seal(directory, info, job.encoding)
        manifest = self._manifest(job, snapshot, record, parts)
        cached_image.note_verified(directory, manifest)  # what changes from now on is no image
        # Its presence is what tells a restarted agent that this directory is whole.
        write_durably(directory / MANIFEST_NAME, manifest.to_bytes())
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
            CaptureFailed: the bucket refused, was away for too long, or the sealed image is gone;
                that is recorded.
            StoreDelayedError: the bucket, its token or the signing keys are not to be had now; try
                again, what is stored stays.
            StoppedError: the snapshot is not ours any more; nothing of it is left in the bucket.
        """
        record = replace(record, uploading_at=self._now())
        sealed = self.directory(snapshot, record.attempt)
        manifest: Manifest | None = None
        started_s = self.clock.monotonic_s()
        try:
            with self._failing(snapshot, record):
                manifest = sealed_manifest(sealed)
                uploaded = self._uploaded(snapshot, record, manifest, store)
            took_s = self.clock.monotonic_s() - started_s
            record = replace(
                record,
                uploaded_at=self._now(),
                upload_parts=len(manifest.parts),
                upload_components=uploaded.components,
                upload_bytes_per_s=int(uploaded.moved_bytes / took_s) if took_s > 0 else 0,
                upload_parallel=uploaded.is_parallel,
                manifest_digest=uploaded.digest,
            )
            url = record.location.url if record.location else ""
            text = f"{record.size_bytes / 1e6:.1f} MB stored in {url}"
            written = self._write(
                lambda: self.status.write(snapshot, record, State.AVAILABLE, text), of=snapshot
            )
        except (CaptureFailed, StoppedError):
            if manifest is not None and record.location is not None:
                self._discard(snapshot, record.location, manifest, store)
            raise
        # Last, so that a crash before it finds the sealed image where it was.
        self._keep(sealed, uploaded)
        return written

    def _keep(self, sealed: Path, uploaded: Uploaded) -> None:
        """Hand the image to this node's cache; it is stored, so what goes wrong is no harm."""
        if not sealed.is_dir():
            return
        try:
            write_durably(sealed / MANIFEST_NAME, uploaded.manifest)
            if uploaded.signature is not None:
                write_durably(sealed / SIGNATURE_NAME, uploaded.signature)
        except OSError as error:
            log.warning("the image of %s is not kept on this node: %s", sealed.name, error)
            shutil.rmtree(sealed, ignore_errors=True)
            return
        self.cache.adopt(uploaded.digest, sealed)

    def _tell_delay(self, snapshot: Snapshot, record: CaptureRecord, cause: str) -> None:
        """Say what a sealed image waits for, if the API server takes it.

        Raises:
            StoppedError: the snapshot is not ours any more.
        """
        text = f"saved on node {self.node}, and waits to be stored: {cause}"
        shown = snapshot.conditions.get(STORAGE_REPLICATED)
        log.warning("PodSnapshot %s is %s", snapshot.metadata, text)
        if shown is None or shown.message != text:
            with contextlib.suppress(ApiError):
                self._write(
                    lambda: self.status.write(snapshot, record, State.UPLOADING, text), of=snapshot
                )

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

    def _uploaded(
        self, snapshot: Snapshot, record: CaptureRecord, manifest: Manifest, store: ObjectStore
    ) -> Uploaded:
        directory = self.directory(snapshot, record.attempt)
        location = record.location
        if location is None:
            raise CaptureFailed("LocationLost", "the record names no bucket")
        gone = partial(self.is_gone, snapshot)
        try:
            return upload(store, location, directory, manifest, cancelled=gone, sign=self.sign)
        except UploadCancelledError as error:
            raise StoppedError("the PodSnapshot was deleted during the upload") from error
        except SigningError as error:
            raise CaptureFailed("SigningFailed", str(error)) from error
        except IntegrityError as error:
            raise CaptureFailed(
                "UploadFailed", f"{error}; create a new trigger, and mind the disk of the node"
            ) from error
        except (ApiError, StoreError, OSError) as error:
            stopping = self.is_stopping()
            again_s = delay_s(record, error, self.clock, is_stopping=stopping)
            if again_s is not None:
                self._tell_delay(snapshot, record, str(error))
                raise StoreDelayedError(str(error), again_s=again_s) from error
            raise CaptureFailed(
                "UploadFailed",
                f"the image could not be stored in {location.url}: {error}; "
                "mend the bucket and create a new trigger",
            ) from error

    def _discard(
        self, snapshot: Snapshot, location: Location, manifest: Manifest, store: ObjectStore
    ) -> None:
        """Remove what was stored, unless another process of this node goes on with it."""
        try:
            if self.status.is_over(snapshot):
                discard(store, location, manifest)
        except (ApiError, StoreError) as error:
            # The controller's sweep finds what is left.
            log.warning("parts of %s remain in the bucket: %s", snapshot.metadata, error)

    def _check_space(self, job: CaptureJob) -> None:
        self.staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        memory_bytes = 0 if job.rootfs_only else self.memory_bytes(job.sandbox)
        copies = 1 if job.encoding is Encoding.RAW else 2  # the plain one is for this node's cache
        need_bytes = memory_bytes * copies + _SPACE_MARGIN_BYTES
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
            remove_when_ended(process, directory)
            raise CaptureFailed(
                "CheckpointTimeout",
                f"context deadline exceeded: runsc did not finish within {limit_s:.0f} s",
            ) from error
        except RunscError as error:
            shutil.rmtree(directory, ignore_errors=True)
            raise CaptureFailed("CheckpointFailed", str(error)) from error

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
            policy_name=snapshot.policy_name,
            group_labels=job.group_labels,
        )

    def _write(self, write: Callable[[], Snapshot], *, of: Snapshot) -> Snapshot:
        try:
            return write()
        except (NotFound, Conflict, AlreadyExists) as error:
            raise StoppedError(f"PodSnapshot {of.metadata} is not ours any more") from error

    def _now(self) -> str:
        return to_micro_time(self.clock.now())
