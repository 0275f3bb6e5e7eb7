# SPDX-License-Identifier: Apache-2.0
"""The node's agent: everything wired, and one reconcile for the saves of this node.

All of it is level-triggered: a key says "look at this snapshot", never "do this". What an earlier
process began is recognised by the record on the snapshot and the files on disk, and is finished or
dropped; so the agent may be killed at any line.
"""

import functools
import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from backends.clock import Clock
from backends.kube.client import KubeClient
from backends.kube.events import EventRecorder
from backends.kube.lease import Heartbeat
from backends.objects.factory import open_store
from backends.objects.interface import ObjectStore
from backends.work_queue import Workers, WorkQueue
from nodeexec.capture import (
    MAX_ATTEMPTS,
    CaptureFailed,
    CaptureJob,
    Capturer,
    StoppedError,
)
from nodeexec.capture_status import CaptureStatus
from nodeexec.cluster_view import ClusterView, Listeners
from nodeexec.decision_server import DecisionServer, Reply
from nodeexec.image_ids import ImageIds, ImageIdUnknownError
from nodeexec.metrics import AgentMetrics
from nodeexec.node_cache import NodeCache
from nodeexec.node_description import describe
from nodeexec.pod_reports import PodReports
from nodeexec.restore_decision import Decision, RestoreDecider
from nodeexec.runsc import Runsc, RunscError
from nodeexec.sandboxes import (
    DECISION_FILE,
    PreparedSandbox,
    prepared_sandboxes,
    read_cold_mark,
    read_record,
    sandbox_of_pod,
)
from nodeexec.settings import AgentSettings
from nodeexec.workload_saves import WorkloadSaves, is_complete
from policies.capturing import restorable, storage_usable
from policies.distill import distill
from policies.identity import automatic_identity
from policies.selection import group_labels
from schemas.names import CHECKPOINT, NODE_LEASE_PREFIX, STORAGE_REPLICATED, SYSTEM_NAMESPACE
from schemas.node_facts import NodeFacts
from schemas.pod import Pod
from schemas.policy import Policy, TriggerType
from schemas.snapshot import CaptureRecord, Failure, Snapshot
from schemas.storage_config import Location
from statemachine.restore import Outcome

log = logging.getLogger(__name__)

Key = tuple[str, str]

HEARTBEAT_S: Final = 10.0
_SCAN_S: Final = 20.0
_WAIT_FOR_RESTORE_S: Final = 120.0
_STORAGE_RETRY_S: Final = 5.0
_IMAGE_ID_RETRY_S: Final = 0.5
# Longer than a watch takes to show what was just written.
_CACHE_LAG_S: Final = 5.0


class Agent:
    """One node's agent."""

    def __init__(self, settings: AgentSettings, client: KubeClient, clock: Clock) -> None:
        """Read what the node is; nothing runs before ``start``.

        Raises:
            RunscError: the runsc binary does not answer.
        """
        self.settings = settings
        self.metrics = AgentMetrics()
        self._clock = clock
        self._runsc = Runsc(binary=settings.runsc, root=settings.runsc_root)
        self.compatibility = describe(settings)
        self._events = EventRecorder(client, component="podsnap-agent", instance=settings.node_name)
        self.reports = PodReports(client, self._events, clock)
        self.view = ClusterView(
            client, settings.node_name, Listeners(self._pod_changed, self._snapshot_changed)
        )
        self._cache = NodeCache(settings.cache_dir)
        self._image_ids = ImageIds(ctr=settings.ctr, address=settings.containerd_address)
        self._capturer = Capturer(
            node=settings.node_name,
            cluster_id=settings.cluster_id,
            staging=settings.staging_dir,
            compatibility=self.compatibility,
            runsc=self._runsc,
            cache=self._cache,
            status=CaptureStatus(client, clock),
            clock=clock,
            is_gone=self._is_gone,
        )
        self._decider = RestoreDecider(
            view=self.view,
            cache=self._cache,
            node=self.compatibility,
            workload_dirs=settings.staging_dir / "workload",
            open_store=self._store,
            on_damage=self._damaged,
        )
        self._workload_saves = WorkloadSaves(
            self._runsc, on_saved=self._workload_saved, on_failed=self._workload_failed
        )
        self._queue: WorkQueue[Key] = WorkQueue(clock)
        self._workers = Workers("capture", self._queue, self.reconcile, threads=2)
        self._server = DecisionServer(
            settings.socket,
            {
                "create": self._on_create,
                "restored": self._on_restored,
                "fell-back": self._on_fell_back,
            },
        )
        self._heartbeat = Heartbeat(
            client,
            namespace=SYSTEM_NAMESPACE,
            name=f"{NODE_LEASE_PREFIX}{settings.node_name}",
            holder=settings.node_name,
            annotations=lambda: _facts(settings.node_name, self),
            period_s=HEARTBEAT_S,
            clock=clock,
        )
        self._mine: dict[str, int] = {}
        self._told_fallbacks: set[tuple[str, float]] = set()
        self._sandbox_locks: dict[str, threading.Lock] = {}
        self._locks_guard = threading.Lock()
        self._stopped = threading.Event()
        self._scanner = threading.Thread(target=self._scan_forever, name="scan", daemon=True)

    # -- life

    def start(self) -> None:
        """Serve decisions first (a Pod may be waiting), then watch and work."""
        self.settings.staging_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._server.start()
        self._events.start()
        self.view.start()
        self._heartbeat.start()
        self._workers.start()
        self._scanner.start()

    def stop(self) -> None:
        """End everything within seconds; running saves are finished by the next agent."""
        self._stopped.set()
        self._server.stop()
        self._heartbeat.stop()
        self._workload_saves.stop()
        self._workers.stop(limit_s=2.0)
        self.view.stop()
        self._events.stop()

    def is_ready(self) -> bool:
        """Whether decisions can be made."""
        return self.view.is_synced()

    # -- what the runtime asks

    def _on_create(self, question: Mapping[str, Any], reply: Reply) -> None:
        pod = question["pod"]
        with self.metrics.decision_seconds.time():
            decision = self._decider.decide(
                namespace=pod["namespace"],
                name=pod["name"],
                uid=pod["uid"],
                sandbox=question["sandbox"],
                cold=question.get("cold"),
                hold=lambda limit_s: reply({"wait_s": limit_s}),
            )
        reply(decision.to_answer())
        self.metrics.decisions.labels(outcome=decision.outcome).inc()
        self._after_decision(decision, Path(question["bundle"]))

    def _after_decision(self, decision: Decision, bundle: Path) -> None:
        if decision.pod is None or decision.policy is None:
            if decision.pod is None:
                log.info("a sandbox starts cold: %s", decision.reason)
            return
        if decision.outcome is Outcome.COLD_DESPITE_SNAPSHOT:
            self.reports.outcome(decision.pod, decision.outcome, reason=decision.reason)
        if decision.outcome is Outcome.FELL_BACK:
            self._report_fallbacks()
        if decision.internal:
            record = _appearing_record(bundle, self._stopped)
            if record is not None:
                self._workload_saves.watch(record)

    def _on_restored(self, question: Mapping[str, Any], reply: Reply) -> None:
        for sandbox in prepared_sandboxes(self.settings.bundles_dir):
            if sandbox.id == question["sandbox"]:
                reply({"reported": self._report_restore(sandbox)})
                return
        reply({"reported": False})

    def _on_fell_back(self, _: Mapping[str, Any], reply: Reply) -> None:
        reply({"seen": True})
        self._report_fallbacks()

    def _report_restore(self, sandbox: PreparedSandbox) -> bool:
        with self._lock_of(sandbox.id):
            if sandbox.is_reported:
                return True
            pod = self.view.pod(sandbox.namespace, sandbox.pod_name, sandbox.pod_uid)
            if pod is None:
                return False
            try:
                self._runsc.wait_for_restore(sandbox.id, limit_s=_WAIT_FOR_RESTORE_S)
            except RunscError as error:
                self.reports.outcome(
                    pod, Outcome.FELL_BACK, snapshot=sandbox.restored_from, reason=str(error)
                )
                return False
            written = self.reports.outcome(pod, Outcome.RESTORED, snapshot=sandbox.restored_from)
            if written:
                sandbox.mark_reported()
                self.metrics.restores.inc()
        snapshot = self.view.snapshots.store.get(sandbox.namespace, sandbox.restored_from)
        if snapshot is not None:
            self.reports.accessed(snapshot)
        return written

    def _report_fallbacks(self) -> None:
        """Tell of every failed restore that the runtime left a mark of, once each."""
        root = self.settings.runtime_state_dir / "cold"
        for mark in root.iterdir() if root.is_dir() else ():
            cold = read_cold_mark(mark)
            pod = self.view.pods.store.by_uid(mark.name)
            if cold is None or pod is None or (mark.name, cold.at_s) in self._told_fallbacks:
                continue
            self._told_fallbacks.add((mark.name, cold.at_s))
            self._decider.count_failure(pod, cold)
            self.reports.outcome(pod, Outcome.FELL_BACK, snapshot=cold.snapshot, reason=cold.reason)

    # -- what changes in the cluster

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        if new is None or new.metadata.is_deleting:
            return
        if old is None and not new.container_ids:
            self._decider.prefetch(new)
        if new.is_ready and not (old and old.is_ready) and self.view.policy_of(new) is not None:
            threading.Thread(
                target=self._learn_images, args=(new,), name="image-ids", daemon=True
            ).start()

    def _learn_images(self, pod: Pod) -> None:
        try:
            self._image_ids.of_pod(pod)
        except ImageIdUnknownError as error:
            log.debug("%s", error)  # asked again when it is needed

    def _snapshot_changed(self, old: Snapshot | None, new: Snapshot | None) -> None:
        found = new or old
        if found is not None and self._concerns_me(found):
            self._queue.add(found.metadata.key)

    def _concerns_me(self, snapshot: Snapshot) -> bool:
        node = self.settings.node_name
        if snapshot.capture is not None:
            return snapshot.capture.node == node
        return snapshot.origin_node == node or bool(snapshot.identity_label)

    def _is_gone(self, snapshot: Snapshot) -> bool:
        now = self.view.snapshots.store.get(*snapshot.metadata.key)
        return (
            now is not None
            and now.metadata.uid == snapshot.metadata.uid
            and now.metadata.is_deleting
        )

    # -- saves

    def reconcile(self, key: Key) -> float | None:
        """Bring one snapshot's save one step further; returns seconds until the next look."""
        snapshot = self.view.snapshots.store.get(*key)
        if snapshot is None:
            return None
        if snapshot.metadata.is_deleting:
            self._remove_staging(snapshot)
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
            return _CACHE_LAG_S

    def _begin(self, snapshot: Snapshot) -> float | None:
        if snapshot.metadata.uid in self._mine:
            return _CACHE_LAG_S  # the watch does not show yet what this process did
        if snapshot.trigger_type == TriggerType.WORKLOAD:
            return self._adopt_workload_save(snapshot)
        if snapshot.origin_node != self.settings.node_name:
            return None
        return self._save(snapshot, attempt=1)

    def _save(self, snapshot: Snapshot, *, attempt: int) -> float | None:
        pod = self.view.pod(
            snapshot.metadata.namespace, snapshot.origin_pod, snapshot.origin_pod_uid
        )
        sandbox = sandbox_of_pod(self.settings.bundles_dir, snapshot.origin_pod_uid)
        refusal = self._refusal(snapshot, pod, sandbox)
        if refusal is not None or pod is None or sandbox is None:
            failure = refusal or Failure("PodGone", "the Pod to be saved is gone")
            self._capturer.refuse(snapshot, pod, failure)
            self._mine[snapshot.metadata.uid] = attempt
            self._tell_failure(snapshot, failure, pod)
            return None
        job = self._job(snapshot, pod, sandbox)
        if isinstance(job, float):
            return job
        self._mine[snapshot.metadata.uid] = attempt
        with self._lock_of(sandbox.id), self.metrics.saving.track_inprogress():
            self._carry_through(snapshot, lambda: self._capturer.save(job, attempt=attempt), pod)
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
            image_ids = self._image_ids.of_pod(pod)
        except ImageIdUnknownError as error:
            log.info("%s", error)
            return _IMAGE_ID_RETRY_S
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
            if not pod.container_ids:
                return _IMAGE_ID_RETRY_S
            job = self._job(snapshot, pod, sandbox)
            if isinstance(job, float):
                return job
            self._mine[snapshot.metadata.uid] = 1
            self._carry_through(
                snapshot,
                functools.partial(self._capturer.adopt_workload_save, job, directory, attempt=1),
                pod,
            )
            return None
        return None

    def _identity(self, pod: Pod) -> str:
        policy = self.view.policy_of(pod)
        if policy is None:
            return ""
        return automatic_identity(
            policy, distill(pod), group_labels(pod, policy), self.compatibility
        )

    def _carry_through(
        self, snapshot: Snapshot, save: Callable[[], tuple[Snapshot, CaptureRecord]], pod: Pod
    ) -> None:
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
            stored = self._capturer.store(sealed, record, self._store(record.location))
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
        self._mine[uid] = capture.attempt
        if saved is not None and saved.is_true:
            pod = self.view.pod(snapshot.metadata.namespace, capture.pod_name, capture.pod_uid)
            self._store_sealed(snapshot, pod)
            return None
        self._remove_staging(snapshot)
        if snapshot.trigger_type == TriggerType.WORKLOAD or capture.attempt >= MAX_ATTEMPTS:
            restarted = Failure(
                "AgentRestarted", "the agent was restarted while the Pod was being saved"
            )
            self._capturer.refuse(snapshot, None, restarted)
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

    # -- workload

    def _workload_saved(self, sandbox: PreparedSandbox) -> None:
        log.info("the workload of Pod %s/%s saved itself", sandbox.namespace, sandbox.pod_name)
        self._queue_automatic()

    def _queue_automatic(self) -> None:
        for snapshot in self.view.snapshots.store.items():
            if snapshot.capture is None and snapshot.identity_label:
                self._queue.add(snapshot.metadata.key)

    def _workload_failed(self, sandbox: PreparedSandbox, why: str) -> None:
        pod = self.view.pod(sandbox.namespace, sandbox.pod_name, sandbox.pod_uid)
        if pod is not None:
            self.reports.event(pod, "Warning", f"the workload's own checkpoint was dropped: {why}")

    # -- clean-up and what was missed

    def _scan_forever(self) -> None:
        while not self._stopped.is_set():
            if self.view.is_synced():
                try:
                    self.scan()
                except Exception:
                    log.exception("the periodic scan failed")
                self._clock.wait(self._stopped, _SCAN_S)
            else:
                self._clock.wait(self._stopped, 0.2)

    def scan(self) -> None:
        """Catch up on what happened while the agent was away, and remove what nobody owns."""
        alive = set()
        for sandbox in prepared_sandboxes(self.settings.bundles_dir):
            alive.add(sandbox.id)
            if sandbox.restore_is_complete and not sandbox.is_reported:
                self._report_restore(sandbox)
            self._workload_saves.watch(sandbox)
        self._report_fallbacks()
        self._remove_dead_workload_dirs(alive)
        self._remove_cold_marks()
        self._remove_unowned_staging()
        snapshots = {s.metadata.uid for s in self.view.snapshots.store.items()}
        self._cache.evict_all_but(lambda uid: uid in snapshots)
        self._queue_automatic()

    def _remove_dead_workload_dirs(self, alive: set[str]) -> None:
        root = self.settings.staging_dir / "workload"
        if root.is_dir():
            for directory in root.iterdir():
                # A sandbox's directory is made before its record: only an old one is dead.
                if directory.name not in alive and self._is_old(directory):
                    shutil.rmtree(directory, ignore_errors=True)

    def _remove_cold_marks(self) -> None:
        root = self.settings.runtime_state_dir / "cold"
        if root.is_dir():
            for mark in root.iterdir():
                if self.view.pods.store.by_uid(mark.name) is None and self._is_old(mark):
                    mark.unlink(missing_ok=True)

    def _remove_unowned_staging(self) -> None:
        for directory in self.settings.staging_dir.iterdir():
            if directory.name == "workload" or not self._is_old(directory):
                continue
            uid = directory.name.rpartition("-")[0]
            owner = self.view.snapshots.store.by_uid(uid)
            if owner is None or owner.metadata.is_deleting:
                shutil.rmtree(directory, ignore_errors=True)

    def _is_old(self, path: Path) -> bool:
        try:
            return self._clock.now().timestamp() - path.stat().st_mtime > _CACHE_LAG_S
        except FileNotFoundError:
            return False

    def _remove_staging(self, snapshot: Snapshot) -> None:
        for directory in self.settings.staging_dir.glob(f"{snapshot.metadata.uid}-*"):
            shutil.rmtree(directory, ignore_errors=True)

    # -- small things

    def _store(self, location: Location) -> ObjectStore:
        return open_store(location.bucket, bucket_root=self.settings.bucket_root)

    def _damaged(self, snapshot: Snapshot, message: str) -> None:
        log.warning("PodSnapshot %s is damaged: %s", snapshot.metadata, message)
        self.reports.damaged(snapshot, message)

    def _lock_of(self, sandbox: str) -> threading.Lock:
        with self._locks_guard:
            return self._sandbox_locks.setdefault(sandbox, threading.Lock())


def _facts(node: str, agent: Agent) -> dict[str, str]:
    from schemas.names import NODE_FACTS_ANNOTATION

    facts = NodeFacts(node=node, compatibility=agent.compatibility)
    return {NODE_FACTS_ANNOTATION: facts.to_annotation()}


def _appearing_record(bundle: Path, stopped: threading.Event) -> PreparedSandbox | None:
    """Return the record that the runtime writes right after our answer."""
    for _ in range(100):
        record = read_record(bundle / DECISION_FILE)
        if record is not None:
            return record
        if stopped.wait(0.02):
            return None
    return None
