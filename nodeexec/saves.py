# SPDX-License-Identifier: Apache-2.0
"""The saves of this node: which snapshot is mine to make, and how far did an earlier process get?

Level-triggered: a key says "look at this snapshot", never "do this". What an earlier process began
is recognised by the record on the snapshot and the files on disk, and is finished or dropped; so
the agent may be killed at any line.
"""

import functools
import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from opentelemetry import trace

from backends.objects.interface import ObjectStore
from nodeexec.capture import MAX_ATTEMPTS, CaptureFailed, CaptureJob, Capturer, StoppedError
from nodeexec.cluster_view import ClusterView
from nodeexec.image_ids import ImageIds, ImageIdUnknownError
from nodeexec.metrics import AgentMetrics
from nodeexec.pod_reports import PodReports
from nodeexec.sandboxes import PreparedSandbox, prepared_sandboxes, sandbox_of_pod
from nodeexec.settings import AgentSettings
from nodeexec.workload_saves import is_complete
from policies.capturing import restorable, storage_usable
from policies.distill import distill
from policies.identity import automatic_identity
from policies.selection import group_labels
from schemas.names import CHECKPOINT, STORAGE_REPLICATED
from schemas.pod import Pod
from schemas.policy import Policy, TriggerType
from schemas.snapshot import CaptureRecord, Compatibility, Failure, Snapshot
from schemas.storage_config import Location

log = logging.getLogger(__name__)
tracer = trace.get_tracer("podsnap.nodeexec.saves")

Key = tuple[str, str]

_STORAGE_RETRY_S: Final = 5.0
_IMAGE_ID_RETRY_S: Final = 0.5
_SYNC_LOOK_S: Final = 0.2
_UNWANTED_AFTER_S: Final = 60.0
# Longer than a watch takes to show what was just written.
_CACHE_LAG_S: Final = 5.0


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
    open_store: Callable[[Location], ObjectStore]
    # What this process took on: the watch may not show it yet, and it must not look like a crash.
    _mine: dict[str, int] = field(default_factory=dict)

    def concern(self, snapshot: Snapshot) -> bool:
        """Whether this node may have something to do for a snapshot."""
        node = self.settings.node_name
        if snapshot.capture is not None:
            return snapshot.capture.node == node
        return snapshot.origin_node == node or bool(snapshot.identity_label)

    def waiting_for_workloads(self) -> list[Key]:
        """Return the snapshots that a workload of this node might fill."""
        return [
            s.metadata.key
            for s in self.view.snapshots.store.items()
            if s.capture is None and s.identity_label
        ]

    def drop_unwanted_workload_saves(self, now_s: float) -> None:
        """Remove images that workloads of this node wrote after another node's was taken."""
        for sandbox in prepared_sandboxes(self.settings.bundles_dir):
            directory = sandbox.workload_dir
            if directory is None or not is_complete(directory):
                continue
            pod = self.view.pod(sandbox.namespace, sandbox.pod_name, sandbox.pod_uid)
            identity = self._identity(pod) if pod else ""
            wanted = any(
                s.capture is None and s.identity_label == identity
                for s in self.view.snapshots.store.items()
            )
            if not wanted and now_s - directory.stat().st_mtime > _UNWANTED_AFTER_S:
                log.info("a save of Pod %s/%s is not needed", sandbox.namespace, sandbox.pod_name)
                shutil.rmtree(directory, ignore_errors=True)

    def forget_all_but(self, uids: set[str]) -> None:
        """Forget snapshots that are gone."""
        for gone in self._mine.keys() - uids:
            self._mine.pop(gone, None)

    def reconcile(self, key: Key) -> float | None:
        """Bring one snapshot's save one step further; returns seconds until the next look."""
        if not self.view.is_synced():
            return _SYNC_LOOK_S  # half a view would judge a save by what has not arrived yet
        snapshot = self.view.snapshots.store.get(*key)
        if snapshot is None:
            return None
        if snapshot.metadata.is_deleting:
            self.remove_staging(snapshot)
            return None
        try:
            capture = snapshot.capture
            if capture is None:
                return self._begin(snapshot)
            if capture.node != self.settings.node_name or capture.failure is not None:
                return None
            return self._go_on(snapshot)
        except StoppedError as stopped:
            log.info("%s", stopped)
            # Looked at anew when the watch has caught up, like a save that a crash cut short.
            self._mine.pop(snapshot.metadata.uid, None)
            return _CACHE_LAG_S
        except Exception:
            self._mine.pop(snapshot.metadata.uid, None)
            raise

    def _begin(self, snapshot: Snapshot) -> float | None:
        if snapshot.metadata.uid in self._mine:
            return _CACHE_LAG_S  # the watch does not show yet what this process did
        if snapshot.trigger_type == TriggerType.WORKLOAD:
            return self._adopt_workload_save(snapshot)
        if snapshot.origin_node != self.settings.node_name:
            return None
        return self._save(snapshot, attempt=1)

    def _save(self, snapshot: Snapshot, *, attempt: int) -> float | None:
        pod = self.view.pod_for_certain(
            snapshot.metadata.namespace, snapshot.origin_pod, snapshot.origin_pod_uid
        )
        sandbox = sandbox_of_pod(self.settings.bundles_dir, snapshot.origin_pod_uid)
        refusal = self._refusal(snapshot, pod, sandbox)
        if refusal is not None or pod is None or sandbox is None:
            failure = refusal or Failure("PodGone", "the Pod to be saved is gone")
            self.capturer.refuse(snapshot, pod, failure)
            self._mine[snapshot.metadata.uid] = attempt
            self._tell_failure(snapshot, failure, pod)
            return None
        job = self._job(snapshot, pod, sandbox)
        if isinstance(job, float):
            return job
        self._mine[snapshot.metadata.uid] = attempt
        with self.locks.of(sandbox.id), self.metrics.saving.track_inprogress():
            self._carry_through(snapshot, lambda: self.capturer.save(job, attempt=attempt), pod)
        return None

    def _refusal(
        self, snapshot: Snapshot, pod: Pod | None, sandbox: PreparedSandbox | None
    ) -> Failure | None:
        if pod is None or pod.metadata.is_deleting or pod.is_over:
            return Failure(
                "PodGone", f"Pod {snapshot.origin_pod} is gone; create a trigger for its successor"
            )
        shape = restorable(pod)
        if not shape.usable:
            return Failure("NotRestorable", shape.message)
        if sandbox is None:
            return Failure(
                "NoPreparedSandbox",
                f"the sandbox of Pod {snapshot.origin_pod} was started before its policy existed "
                "or while the agent was away, so its image could not be restored; "
                "restart the Pod once and create a new trigger",
            )
        return None

    def _job(self, snapshot: Snapshot, pod: Pod, sandbox: PreparedSandbox) -> CaptureJob | float:
        """Gather what a save needs, or say in how many seconds to look again."""
        policy = self.view.policies.store.get(pod.metadata.namespace, snapshot.policy_name)
        if policy is None:
            return _STORAGE_RETRY_S
        location = self._location(snapshot, policy)
        if location is None:
            return _STORAGE_RETRY_S
        try:
            image_ids = self.image_ids.of_pod(pod)
        except ImageIdUnknownError as error:
            log.info("%s", error)
            return _IMAGE_ID_RETRY_S
        if not image_ids.keys() >= set(pod.running_names):
            return _IMAGE_ID_RETRY_S  # the watch does not show every container yet
        return CaptureJob(
            snapshot=snapshot,
            pod=pod,
            sandbox=sandbox,
            identity=distill(pod),
            image_ids=image_ids,
            location=location,
            git_revision=policy.git_revision or "",
        )

    def _location(self, snapshot: Snapshot, policy: Policy) -> Location | None:
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
            job = self._job(snapshot, pod, sandbox)
            if isinstance(job, float):
                return job
            self._mine[snapshot.metadata.uid] = 1
            self._carry_through(
                snapshot,
                functools.partial(self.capturer.adopt_workload_save, job, directory, attempt=1),
                pod,
            )
            return None
        return None

    def _identity(self, pod: Pod) -> str:
        policy = self.view.policy_of(pod)
        if policy is None:
            return ""
        return automatic_identity(
            policy, distill(pod), group_labels(pod.metadata.labels, policy), self.compatibility
        )

    def _carry_through(
        self, snapshot: Snapshot, save: Callable[[], tuple[Snapshot, CaptureRecord]], pod: Pod
    ) -> None:
        # One span over all phases: a snapshot's life on its node is one trace.
        with tracer.start_as_current_span(
            "podsnap.save",
            attributes={
                "k8s.namespace.name": snapshot.metadata.namespace,
                "k8s.pod.name": pod.metadata.name,
                "podsnap.snapshot.name": snapshot.metadata.name,
            },
        ):
            try:
                sealed, record = save()
            except CaptureFailed as failed:
                self._tell_failure(snapshot, failed.failure, pod)
                return
            self.metrics.observe_save(record)
            self._store_sealed(sealed, pod)

    def _store_sealed(self, sealed: Snapshot, pod: Pod | None) -> None:
        record = sealed.capture
        if record is None or record.location is None:
            return
        try:
            stored = self.capturer.store(sealed, record, self.open_store(record.location))
        except CaptureFailed as failed:
            self._tell_failure(sealed, failed.failure, pod)
            return
        self.metrics.saves.inc()
        if pod is not None:
            self.reports.saved(pod, stored)

    def _go_on(self, snapshot: Snapshot) -> float | None:
        """Finish what an earlier process of this node's agent began."""
        capture = snapshot.capture
        uid = snapshot.metadata.uid
        if capture is None or uid in self._mine:
            return None
        stored = snapshot.conditions.get(STORAGE_REPLICATED)
        if stored is not None and stored.is_true:
            return None
        saved = snapshot.conditions.get(CHECKPOINT)
        if saved is not None and saved.is_true:
            self._mine[uid] = capture.attempt
            pod = self.view.pod(snapshot.metadata.namespace, capture.pod_name, capture.pod_uid)
            self._store_sealed(snapshot, pod)
            return None
        self.remove_staging(snapshot)
        if snapshot.trigger_type == TriggerType.WORKLOAD or capture.attempt >= MAX_ATTEMPTS:
            restarted = Failure(
                "AgentRestarted", "the agent was restarted while the Pod was being saved"
            )
            self.capturer.refuse(snapshot, None, restarted)
            self._tell_failure(snapshot, restarted, None)
            return None
        return self._save(snapshot, attempt=capture.attempt + 1)

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

    def remove_staging(self, snapshot: Snapshot) -> None:
        """Remove every attempt's directory of a snapshot."""
        for directory in self.settings.staging_dir.glob(f"{snapshot.metadata.uid}-*"):
            shutil.rmtree(directory, ignore_errors=True)
