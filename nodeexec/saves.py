# SPDX-License-Identifier: Apache-2.0
"""The saves of this node: which snapshot is mine to make, and how far did an earlier process get?

Level-triggered: a key says "look at this snapshot", never "do this". What an earlier process began
is recognised by the record on the snapshot and the files on disk, and is finished or dropped; so
the agent may be killed at any line.

The trap: the watch lags behind our own writes, and an old view of a save in progress looks like one
that a crash cut short. So a claim fails if the record is another one by then, and nothing is taken
up again before a live look.
"""

import functools
import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from backends.objects.interface import ObjectStore
from nodeexec.bucket_stores import BucketUse
from nodeexec.capture import MAX_ATTEMPTS, Capturer
from nodeexec.capture_job import CaptureFailed, CaptureJob, StoppedError
from nodeexec.cluster_view import ClusterView
from nodeexec.image_ids import ImageIds, ImageIdUnknownError
from nodeexec.metrics import AgentMetrics
from nodeexec.mounted_content import ContentError, MountedContent
from nodeexec.pod_reports import PodReports
from nodeexec.sandboxes import PreparedSandbox, prepared_sandboxes, sandbox_of_pod
from nodeexec.settings import AgentSettings
from nodeexec.store_delays import StoreDelayedError
from nodeexec.upload import single_stream
from nodeexec.workload_saves import is_complete
from policies.capturing import may_save, storage_usable, warnings
from policies.distill import distill
from policies.environment import env_marks
from policies.identity import automatic_identity
from policies.selection import group_labels
from policies.verdict import Reason
from schemas.names import CHECKPOINT, PROBE_BUDGET_ANNOTATION, STORAGE_REPLICATED
from schemas.pod import Pod
from schemas.policy import Policy, TriggerType
from schemas.snapshot import CaptureRecord, Compatibility, Failure, Snapshot
from schemas.storage_config import Location
from schemas.token_request import Role

log = logging.getLogger(__name__)

Key = tuple[str, str]

_STORAGE_RETRY_S: Final = 5.0
_PAGES_RETRY_S: Final = 2.0
_IMAGE_ID_RETRY_S: Final = 0.5
_SYNC_LOOK_S: Final = 0.2
_UNWANTED_AFTER_S: Final = 60.0
_LOOK_AGAIN_S: Final = 1.0


class SandboxLocks:
    """One lock per sandbox: at most one save, and one report, at a time."""

    def __init__(self) -> None:
        """Begin without any."""
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}

    def of(self, sandbox: str) -> threading.Lock:
        """Return the sandbox's lock."""
        with self._guard:
            return self._locks.setdefault(sandbox, threading.Lock())

    def keep_only(self, sandboxes: set[str]) -> None:
        """Forget the locks of sandboxes that are gone."""
        with self._guard:
            for gone in self._locks.keys() - sandboxes:
                if not self._locks[gone].locked():  # else it is of a sandbox made just now
                    del self._locks[gone]


@dataclass(slots=True)
class NodeSaves:
    """Brings the snapshots that concern this node to their end."""

    settings: AgentSettings
    compatibility: Compatibility
    view: ClusterView
    capturer: Capturer
    image_ids: ImageIds
    reports: PodReports
    metrics: AgentMetrics
    locks: SandboxLocks
    open_store: Callable[[BucketUse], ObjectStore]
    # Saves that go on outside of the queue, by UID of the snapshot.
    _parting: set[str] = field(default_factory=set)
    # When, on the monotonic clock, to try again to store an image; other looks come in between.
    _later_s: dict[Key, float] = field(default_factory=dict)

    def concern(self, snapshot: Snapshot) -> bool:
        """Whether this node may have something to do for a snapshot."""
        node = self.settings.node_name
        if snapshot.capture is not None:
            return snapshot.capture.node == node
        return snapshot.origin_node == node or snapshot.awaits_workload

    def unfinished(self) -> list[Key]:
        """Return what a workload of this node might fill, and what was begun here and not ended."""
        return [
            s.metadata.key
            for s in self.view.snapshots.store.items()
            if (s.awaits_workload if s.capture is None else self._is_open(s))
        ]

    def _is_open(self, snapshot: Snapshot) -> bool:
        """Whether this node has begun a save that has no end yet."""
        capture = snapshot.capture
        return (
            capture is not None
            and capture.node == self.settings.node_name
            and capture.failure is None
            and not _holds(snapshot, STORAGE_REPLICATED)
        )

    def drop_unwanted_workload_saves(self, now_s: float) -> None:
        """Remove images that workloads of this node wrote after another node's was taken."""
        for sandbox in prepared_sandboxes(self.settings.bundles_dir):
            directory = sandbox.workload_dir
            if directory is None or not is_complete(directory):
                continue
            pod = self.view.pod(sandbox.namespace, sandbox.pod_name, sandbox.pod_uid)
            identity = self._identity(pod) if pod else ""
            wanted = any(
                s.capture is None and s.awaits_workload and s.identity_label == identity
                for s in self.view.snapshots.store.items()
            )
            if not wanted and now_s - directory.stat().st_mtime > _UNWANTED_AFTER_S:
                log.info("a save of Pod %s/%s is not needed", sandbox.namespace, sandbox.pod_name)
                shutil.rmtree(directory, ignore_errors=True)

    def reconcile(self, key: Key) -> float | None:
        """Bring one snapshot's save one step further; returns seconds until the next look."""
        if not self.view.is_synced():
            return _SYNC_LOOK_S  # half a view would judge a save by what has not arrived yet
        snapshot = self.view.snapshots.store.get(*key)
        if snapshot is None or snapshot.metadata.is_deleting:
            self._later_s.pop(key, None)
        if snapshot is None or snapshot.metadata.uid in self._parting:
            return None
        if snapshot.metadata.is_deleting:
            self.capturer.remove_staging(snapshot)
            return None
        left_s = self._later_s.get(key, 0.0) - self.capturer.clock.monotonic_s()
        if left_s > 0:
            return left_s
        try:
            if snapshot.capture is None:
                return self._begin(snapshot)
            return self._go_on(snapshot) if self._is_open(snapshot) else None
        except StoppedError as stopped:
            log.info("%s", stopped)
            return _LOOK_AGAIN_S

    def _begin(self, snapshot: Snapshot) -> float | None:
        if snapshot.awaits_workload:
            return self._adopt_workload_save(snapshot)
        if snapshot.trigger_type == TriggerType.ON_DELETE:
            return None  # made and claimed in one go, while the Pod's signal waits
        if snapshot.origin_node != self.settings.node_name:
            return None
        return self._save(snapshot, attempt=1)

    def _save(self, snapshot: Snapshot, *, attempt: int) -> float | None:
        pod = self.view.pod_for_certain(
            snapshot.metadata.namespace, snapshot.origin_pod, snapshot.origin_pod_uid
        )
        policy = self.view.policies.store.get(snapshot.metadata.namespace, snapshot.policy_name)
        if policy is None:
            if snapshot.capture is None:
                return _STORAGE_RETRY_S  # the controller deletes it, if that is so
            gone = Failure("PolicyGone", "its policy was deleted while the Pod was being saved")
            self.capturer.refuse(snapshot, pod, gone)
            self._tell_failure(snapshot, gone, pod)
            return None
        sandbox = sandbox_of_pod(self.settings.bundles_dir, snapshot.origin_pod_uid)
        refusal = self._refusal(snapshot, policy, pod, sandbox)
        if refusal is not None or pod is None or sandbox is None:
            gone = Failure("PodGone", "the Pod to be saved is gone")
            self._refuse(snapshot, pod, refusal or gone)
            return None
        if not sandbox.has_its_pages:
            return _PAGES_RETRY_S  # paused, it would stand still until they came
        job = self._job(snapshot, pod, sandbox, policy)
        if isinstance(job, float):
            return job
        if isinstance(job, Failure):
            self._refuse(snapshot, pod, job)
            return None
        return self._carry_through(snapshot, lambda: self._capture(job, attempt=attempt), pod)

    def _capture(self, job: CaptureJob, *, attempt: int) -> tuple[Snapshot, CaptureRecord]:
        """Save a sandbox, one save at a time; a Pod that is being deleted waits until its end."""
        lock = self.locks.of(job.sandbox.id)
        limit_s = -1.0  # as long as it takes
        if job.ends_s is not None:
            limit_s = max(job.ends_s - self.capturer.clock.monotonic_s(), 0)
        held = lock.acquire(timeout=limit_s)  # without it the save is late, and told as such
        try:
            with self.metrics.saving.track_inprogress():
                return self.capturer.save(job, attempt=attempt)
        finally:
            if held:
                lock.release()

    def save_parting(
        self,
        snapshot: Snapshot,
        pod: Pod,
        sandbox: PreparedSandbox,
        *,
        ends_s: float,
        on_written: Callable[[], None],
    ) -> None:
        """Save a Pod that is being deleted until ``ends_s`` on the monotonic clock.

        ``on_written`` is called when it may go.
        """
        policy = self.view.policies.store.get(pod.metadata.namespace, snapshot.policy_name)
        job = self._job(snapshot, pod, sandbox, policy) if policy else _STORAGE_RETRY_S
        if isinstance(job, float):
            job = Failure("NotPrepared", "its storage or its images are not known yet")
        if not sandbox.has_its_pages:
            job = Failure("StillLoading", "its own memory was not all on the node yet")
        if isinstance(job, Failure):
            self._refuse(snapshot, pod, job)
            return
        job = replace(job, ends_s=ends_s, on_written=on_written)
        self._parting.add(snapshot.metadata.uid)
        try:
            self._carry_through(snapshot, lambda: self._capture(job, attempt=1), pod)
        except StoppedError as stopped:
            log.info("%s", stopped)
        finally:
            self._parting.discard(snapshot.metadata.uid)

    def is_parting(self, snapshot_uid: str) -> bool:
        """Whether a save of a Pod that is being deleted goes on."""
        return snapshot_uid in self._parting

    def resume_forgotten(self) -> None:
        """Let sandboxes go on that an earlier process paused for a save and died."""
        for sandbox in prepared_sandboxes(self.settings.bundles_dir):
            if not sandbox.paused_note.exists():
                continue
            lock = self.locks.of(sandbox.id)
            if not lock.acquire(blocking=False):
                continue  # a save of this process holds it
            try:
                if not self._is_sealed(sandbox.pod_uid):
                    self.capturer.stopper.resume(sandbox)
            finally:
                lock.release()

    def _is_sealed(self, pod_uid: str) -> bool:
        """Whether a save of a Pod is to be carried through, and its end with it."""
        return any(
            self._is_open(s)
            and s.capture is not None
            and s.capture.pod_uid == pod_uid
            and _holds(s, CHECKPOINT)
            for s in self.view.snapshots.store.items()
        )

    def _refusal(
        self,
        snapshot: Snapshot,
        policy: Policy,
        pod: Pod | None,
        sandbox: PreparedSandbox | None,
    ) -> Failure | None:
        if pod is None or pod.metadata.is_deleting or pod.is_over:
            return Failure(
                "PodGone", f"Pod {snapshot.origin_pod} is gone; create a trigger for its successor"
            )
        verdict = may_save(pod, policy, self.compatibility)
        if not verdict.usable:
            return Failure(verdict.findings[0].reason, verdict.message)
        if sandbox is None:
            return Failure(
                "NoPreparedSandbox",
                f"the sandbox of Pod {snapshot.origin_pod} was started before its policy existed "
                "or while the agent was away, so its image could not be restored; "
                "restart the Pod once and create a new trigger",
            )
        if policy.stops and not sandbox.stops:
            return Failure(
                "NoPreparedSandbox",
                f"the sandbox of Pod {snapshot.origin_pod} was made before its policy said "
                "postCheckpoint stop, so it would end with an error; restart the Pod once",
            )
        return self._pause_refusal(snapshot, policy, pod, sandbox)

    def _pause_refusal(
        self, snapshot: Snapshot, policy: Policy, pod: Pod, sandbox: PreparedSandbox
    ) -> Failure | None:
        """Refuse a save that nobody asked for if it paused a serving Pod too long; else warn."""
        try:
            memory_bytes = self.capturer.memory_bytes(sandbox)
        except CaptureFailed as failed:
            return failed.failure
        for text in warnings(pod, memory_bytes):
            self.reports.event(pod, "Warning", text)
        pause_s = 0.0 if policy.rootfs_only else self.capturer.estimate.seconds(memory_bytes)
        if pause_s <= policy.options.probe_budget_s:
            return None
        figures = (
            f"saving {memory_bytes / 1e6:.0f} MB pauses Pod {pod.metadata.name} for about "
            f"{pause_s:.1f} s"
        )
        if snapshot.trigger_type != TriggerType.READINESS_PROBE:
            self.reports.event(pod, "Warning", figures)
            return None
        return Failure(
            "PauseTooLong",
            f"{figures}, more than the {policy.options.probe_budget_s:g} s that a serving Pod may "
            f"stand still; raise the policy's annotation {PROBE_BUDGET_ANNOTATION}, or use a "
            "manual or workload trigger",
        )

    def _job(
        self, snapshot: Snapshot, pod: Pod, sandbox: PreparedSandbox, policy: Policy
    ) -> CaptureJob | Failure | float:
        """Gather what a save needs, or say in how many seconds to look again, or why never."""
        location = self._location(snapshot, policy)
        if location is None:
            return _STORAGE_RETRY_S
        try:
            known = self.image_ids.of_pod(pod)
        except ImageIdUnknownError as error:
            log.info("%s", error)
            return _IMAGE_ID_RETRY_S
        # An init container has ended and is not in the image.
        image_ids = {name: known[name] for name in pod.running_names if name in known}
        if len(image_ids) < len(pod.running_names):
            return _IMAGE_ID_RETRY_S  # the watch does not show every container yet
        content = MountedContent(self.settings.kubelet_root, self.settings.bundles_dir)
        try:
            identity = content.identity_since_start(sandbox.id, pod, policy)
        except ContentError as error:
            return Failure(Reason.CONTENT_UNKNOWN, str(error))
        return CaptureJob(
            snapshot=snapshot,
            pod=pod,
            sandbox=sandbox,
            identity=identity,
            image_ids=image_ids,
            env_marks={} if policy.rootfs_only else env_marks(pod, pod.metadata.namespace),
            group_labels=group_labels(pod.metadata.labels, policy),
            location=location,
            stops=policy.stops,
            rootfs_only=policy.rootfs_only,
            encoding=policy.options.encoding,
        )

    def _location(self, snapshot: Snapshot, policy: Policy) -> Location | None:
        if snapshot.capture is not None and snapshot.capture.location is not None:
            return snapshot.capture.location  # of the first attempt, wherever the policy points now
        storage = self.view.storage_of(policy)
        if storage is None or storage.location is None:
            return None
        if not storage_usable(policy, storage).usable:
            return None
        return storage.location.below(snapshot.metadata.name)

    def _adopt_workload_save(self, snapshot: Snapshot) -> float | None:
        for sandbox in prepared_sandboxes(self.settings.bundles_dir):
            directory = sandbox.workload_dir
            if directory is None or not is_complete(directory):
                continue
            pod = self.view.pod(sandbox.namespace, sandbox.pod_name, sandbox.pod_uid)
            if pod is None or self._identity(pod) != snapshot.identity_label:
                continue
            policy = self.view.policy_of(pod)
            if policy is None:
                continue
            job = self._job(snapshot, pod, sandbox, policy)
            if isinstance(job, float):
                return job
            if isinstance(job, Failure):
                continue
            return self._carry_through(
                snapshot,
                functools.partial(self.capturer.adopt_workload_save, job, directory, attempt=1),
                pod,
            )
        return None

    def _identity(self, pod: Pod) -> str:
        """Return the identity of a Pod that may be saved for all equal ones, else nothing."""
        policy = self.view.policy_of(pod)
        if policy is None or not may_save(pod, policy, self.compatibility).usable:
            return ""
        group = group_labels(pod.metadata.labels, policy)
        return automatic_identity(policy, distill(pod, policy), group, self.compatibility)

    def _carry_through(
        self, snapshot: Snapshot, save: Callable[[], tuple[Snapshot, CaptureRecord]], pod: Pod
    ) -> float | None:
        try:
            sealed, record = save()
        except CaptureFailed as failed:
            self._tell_failure(snapshot, failed.failure, pod)
            return None
        self.metrics.sealed(record)
        return self._store_sealed(sealed, pod)

    def _store_sealed(self, sealed: Snapshot, pod: Pod | None) -> float | None:
        """Store what is sealed, or return in how many seconds to try again."""
        record = sealed.capture
        if record is None or record.location is None:
            return None
        key = sealed.metadata.key
        try:
            use = BucketUse(
                record.location, Role.CHECKPOINT, sealed, record.pod_name, record.pod_uid
            )
            stored = self.capturer.store(sealed, record, self.open_store(use))
        except CaptureFailed as failed:
            self._later_s.pop(key, None)
            self._tell_failure(sealed, failed.failure, pod)
            return None
        except StoreDelayedError as delayed:
            self._later_s[key] = self.capturer.clock.monotonic_s() + delayed.again_s
            return delayed.again_s
        self._later_s.pop(key, None)
        self.metrics.uploaded(stored.capture or record)
        if pod is not None:
            self.reports.saved(pod, stored)
            if stored.capture is not None and (text := single_stream(stored.capture)):
                self.reports.event(pod, "Warning", text)
        return None

    def _go_on(self, cached: Snapshot) -> float | None:
        """Finish what an earlier process of this node's agent began."""
        snapshot = self.view.live_snapshot(cached)
        capture = snapshot.capture if snapshot else None
        if snapshot is None or capture is None or not self._is_open(snapshot):
            return None
        if not _holds(snapshot, CHECKPOINT):
            snapshot = self.capturer.take_up(snapshot, capture) or snapshot
        if _holds(snapshot, CHECKPOINT):
            pod = self.view.pod(snapshot.metadata.namespace, capture.pod_name, capture.pod_uid)
            self._end_pod(snapshot, pod)
            return self._store_sealed(snapshot, pod)
        once = {TriggerType.WORKLOAD, TriggerType.ON_DELETE}
        if snapshot.trigger_type not in once and capture.attempt < MAX_ATTEMPTS:
            return self._save(snapshot, attempt=capture.attempt + 1)
        restarted = Failure(
            "AgentRestarted", "the agent was restarted while the Pod was being saved"
        )
        self.capturer.refuse(snapshot, None, restarted)
        self.capturer.remove_staging(snapshot)
        self._tell_failure(snapshot, restarted, None)
        return None

    def _end_pod(self, snapshot: Snapshot, pod: Pod | None) -> None:
        """End or resume a Pod that an earlier process paused for this very save."""
        uid = snapshot.capture.pod_uid if snapshot.capture else ""
        sandbox = sandbox_of_pod(self.settings.bundles_dir, uid)
        if pod is None or sandbox is None or sandbox.paused_for != snapshot.metadata.uid:
            return
        policy = self.view.policies.store.get(pod.metadata.namespace, snapshot.policy_name)
        with self.locks.of(sandbox.id):
            if policy is not None and policy.stops:
                self.capturer.stopper.stop(sandbox, pod)
            else:
                self.capturer.stopper.resume(sandbox)

    def _refuse(self, snapshot: Snapshot, pod: Pod | None, failure: Failure) -> None:
        self.capturer.refuse(snapshot, pod, failure)
        self._tell_failure(snapshot, failure, pod)

    def _tell_failure(self, snapshot: Snapshot, failure: Failure, pod: Pod | None) -> None:
        log.warning("save %s failed: %s: %s", snapshot.metadata, failure.reason, failure.message)
        self.metrics.failed_saves.inc()
        if pod is not None:
            self.reports.event(
                pod,
                "Warning",
                f"could not checkpoint the pod to PodSnapshot [{snapshot.metadata}]: "
                f"{failure.reason}: {failure.message}",
            )


def _holds(snapshot: Snapshot, condition_type: str) -> bool:
    condition = snapshot.conditions.get(condition_type)
    return condition is not None and condition.is_true
