# SPDX-License-Identifier: Apache-2.0
"""The node's agent: everything of this folder, wired together and woken up.

Decisions are served before anything else, because a Pod may be waiting. Everything that is missed
while the agent is away is found again by the scan: it compares what lies on the node with what the
cluster says, and does not depend on having seen it happen.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from backends.clock import Clock
from backends.kube.client import KubeClient
from backends.kube.errors import ApiError
from backends.kube.events import EventRecorder
from backends.kube.lease import Heartbeat
from backends.work_queue import Workers, WorkQueue
from nodeexec.background_loads import BackgroundLoads
from nodeexec.bucket_stores import NodeStores
from nodeexec.bucket_tokens import BucketTokens
from nodeexec.cache_limits import CacheLimits
from nodeexec.capture import Capturer
from nodeexec.capture_status import CaptureStatus
from nodeexec.cluster_view import ClusterView, Listeners
from nodeexec.decision import Decision
from nodeexec.decision_server import DecisionServer, Reply
from nodeexec.housekeeping import Housekeeping
from nodeexec.image_ids import ImageIds, ImageIdUnknownError
from nodeexec.metrics import AgentMetrics
from nodeexec.mounted_content import MountedContent
from nodeexec.node_cache import NodeCache
from nodeexec.node_description import describe
from nodeexec.page_reports import PageReports
from nodeexec.parting_saves import PartingSaves
from nodeexec.pause_estimate import PauseEstimate
from nodeexec.pod_reports import PodReports
from nodeexec.restore_counts import RestoreCounts
from nodeexec.restore_decision import RestoreDecider
from nodeexec.restore_progress import RunningRestores
from nodeexec.restore_reports import RestoreReports
from nodeexec.restore_traces import RestoreTraces
from nodeexec.runsc import Runsc, RunscError
from nodeexec.sandboxes import (
    DECISION_FILE,
    PreparedSandbox,
    images_to_be_opened,
    prepared_sandboxes,
    read_record,
)
from nodeexec.saves import Key, NodeSaves, SandboxLocks
from nodeexec.settings import AgentSettings
from nodeexec.signing import ManifestSigning
from nodeexec.stopping import Stopper
from nodeexec.untold_starts import UntoldStarts, note_answer
from nodeexec.workload_saves import WorkloadSaves
from schemas.names import NODE_FACTS_ANNOTATION, NODE_LEASE_PREFIX, SYSTEM_NAMESPACE
from schemas.node_facts import NodeFacts
from schemas.pod import Pod
from schemas.snapshot import Snapshot
from schemas.span import Span
from statemachine.restore import Outcome

log = logging.getLogger(__name__)

HEARTBEAT_S: Final = 10.0
_SCAN_S: Final = 20.0
_ATTEMPT_LOOK_S: Final = 3.0
_SYNC_LOOK_S: Final = 0.2
_RECORD_LOOKS: Final = 100
_RECORD_LOOK_S: Final = 0.02


class Agent:
    """One node's agent."""

    def __init__(self, settings: AgentSettings, client: KubeClient, clock: Clock) -> None:
        """Read what the node is; nothing runs before ``start``.

        Raises:
            RunscError: the runsc binary does not answer.
        """
        self.metrics = AgentMetrics()
        self._settings = settings
        self._clock = clock
        self._stopped = threading.Event()
        runsc = Runsc(binary=settings.runsc, root=settings.runsc_root)
        compatibility = describe(settings)
        locks = SandboxLocks()
        cache = NodeCache(
            settings.cache_dir,
            limits=CacheLimits(
                settings.cache_limit_bytes, settings.cache_disk_share, settings.cache_free_share
            ),
            in_use=partial(images_to_be_opened, settings.bundles_dir, settings.cold_marks_dir),
            connections=settings.bucket_connections,
            clock=clock,
            on_evicted=self.metrics.evicted_bytes.inc,
        )
        self.metrics.cache_bytes.set_function(cache.used_bytes)
        self.metrics.cache_limit_bytes.set_function(cache.allowed_bytes)
        self._events = EventRecorder(client, component="podsnap-agent", instance=settings.node_name)
        self._reports = PodReports(client, self._events, clock)
        self._view = ClusterView(
            client, settings.node_name, Listeners(self._pod_changed, self._snapshot_changed)
        )
        self._image_ids = ImageIds(ctr=settings.ctr, address=settings.containerd_address)
        signing = ManifestSigning(client, clock)
        capturer = Capturer(
            node=settings.node_name,
            cluster_id=settings.cluster_id,
            staging=settings.staging_dir,
            compatibility=compatibility,
            runsc=runsc,
            cache=cache,
            status=CaptureStatus(client, clock),
            stopper=Stopper(runsc, client, self._reports, settings.bundles_dir),
            estimate=PauseEstimate(),
            clock=clock,
            is_gone=self._is_gone,
            sign=signing.sign,
            is_stopping=self._stopped.is_set,
        )
        stores = NodeStores(settings.bucket_access, self._tokens(client))
        self._saves = NodeSaves(
            settings=settings,
            compatibility=compatibility,
            view=self._view,
            capturer=capturer,
            image_ids=self._image_ids,
            reports=self._reports,
            metrics=self.metrics,
            locks=locks,
            open_store=stores.open,
        )
        self._parting = PartingSaves(
            settings=settings,
            client=client,
            view=self._view,
            saves=self._saves,
            capturer=capturer,
            reports=self._reports,
            clock=clock,
        )
        self._progress = RunningRestores(
            self._reports,
            node=settings.node_name,
            latest=self._view.snapshots.store.by_uid,
            clock=clock,
        )
        self._counts = RestoreCounts(self._reports, node=settings.node_name, clock=clock)
        self._loads = BackgroundLoads(settings, cache, stores.open, stores.token_for)
        self._decider = RestoreDecider(
            view=self._view,
            cache=cache,
            node=compatibility,
            workload_dirs=settings.workload_dir,
            open_store=stores.open,
            on_damage=self._damaged,
            progress=self._progress,
            contents=MountedContent(settings.kubelet_root, settings.bundles_dir),
            clock=clock,
            on_fetched=self.metrics.fetched,
            on_looked=self.metrics.looked_up,
            loads=self._loads if self._loads.is_possible() else None,
            signature_refusal=signing.refusal,
            stopped=self._stopped,
        )
        self._traces = RestoreTraces(
            settings, self._view.snapshots.store.get, clock, count=self.metrics.restored
        )
        self._restores = RestoreReports(
            settings=settings,
            view=self._view,
            runsc=runsc,
            reports=self._reports,
            counts=self._counts,
            progress=self._progress,
            clock=clock,
            metrics=self.metrics,
            locks=locks,
            traces=self._traces,
        )
        self._pages = PageReports(
            loads=self._loads,
            view=self._view,
            runsc=runsc,
            reports=self._reports,
            restores=self._restores,
            progress=self._progress,
            clock=clock,
            stopped=self._stopped,
            on_loaded=self._decider.learn_rate,
        )
        self._restores.on_loading = self._pages.watch
        self._untold = UntoldStarts(
            settings, self._view, self._reports, self.metrics, self._decider.fitting
        )
        self._runsc = runsc
        self._locks = locks
        self._housekeeping = Housekeeping(
            settings, self._view, cache, clock, self._saves.is_parting
        )
        self._workload_saves = WorkloadSaves(
            runsc, on_saved=self._workload_saved, on_failed=self._workload_failed
        )
        self._queue: WorkQueue[Key] = WorkQueue(clock, name="capture", metrics=self.metrics.queues)
        self._workers = Workers("capture", self._queue, self._saves.reconcile, threads=2)
        self._server = DecisionServer(
            settings.socket,
            {
                "create": self._on_create,
                "restored": self._on_restored,
                "fell-back": self._on_fell_back,
                "signal": self._parting.before_signal,
            },
        )
        facts = NodeFacts(node=settings.node_name, compatibility=compatibility)
        annotations = {NODE_FACTS_ANNOTATION: facts.to_annotation()}
        self._heartbeat = Heartbeat(
            client,
            namespace=SYSTEM_NAMESPACE,
            name=f"{NODE_LEASE_PREFIX}{settings.node_name}",
            holder=settings.node_name,
            annotations=lambda: annotations,
            period_s=HEARTBEAT_S,
            clock=clock,
        )
        self._knows_leftovers = False
        self._scanner = threading.Thread(target=self._scan_forever, name="scan", daemon=True)

    def _tokens(self, client: KubeClient) -> BucketTokens | None:
        settings = self._settings
        if settings.bucket_root is not None or not settings.bucket_tokens:
            return None
        return BucketTokens(client, settings.node_name, self._clock, self._stopped)

    # -- life

    def start(self) -> None:
        """Serve decisions first, then watch and work."""
        self._settings.staging_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._server.start()
        self._events.start()
        self._view.start()
        self._progress.start()
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
        self._progress.stop()
        self._counts.stop()
        self._view.stop()
        self._events.stop()

    def export_spans(self, send: Callable[[Sequence[Span]], bool]) -> None:
        """Tell the traces of restores to somebody, from now on."""
        self._traces.send = send

    def is_ready(self) -> bool:
        """Whether decisions can be made."""
        return self._view.is_synced()

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
        if decision.pod is not None and decision.snapshot is not None:
            measure = partial(self._memory_bytes, question["sandbox"])
            self._progress.restoring(decision.pod, decision.snapshot, measure)
        try:
            reply(decision.to_answer())
        except OSError:
            self._progress.ended(pod["uid"])
            raise
        self.metrics.decisions.labels(outcome=decision.outcome).inc()
        self._after_decision(decision, Path(question["bundle"]))

    def _after_decision(self, decision: Decision, bundle: Path) -> None:
        if decision.pod is None:
            log.info("a sandbox starts cold: %s", decision.reason)
            return
        if decision.outcome is not Outcome.RESTORED:
            note_answer(bundle)
        if decision.policy is None:
            return
        if decision.outcome in {Outcome.COLD, Outcome.COLD_DESPITE_SNAPSHOT}:
            self._reports.forget_restore(decision.pod)
            self._reports.outcome(decision.pod, decision.outcome, reason=decision.reason)
            self.metrics.started(decision.outcome, decision.cause)
            self._traces.unfetched(decision)
        if decision.outcome is Outcome.FELL_BACK:
            self._restores.fallbacks()
        if decision.internal:
            record = _appearing_record(bundle, self._stopped)
            if record is not None:
                self._workload_saves.watch(record)

    def _on_restored(self, question: Mapping[str, Any], reply: Reply) -> None:
        reply({"reported": self._restores.restored(question["sandbox"])})

    def _on_fell_back(self, _: Mapping[str, Any], reply: Reply) -> None:
        reply({"seen": True})
        self._restores.fallbacks()

    # -- what changes in the cluster

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        if new is None or new.metadata.is_deleting:
            if old is not None:
                self._progress.ended(old.metadata.uid)
            return
        if old is None and not new.container_ids:
            self._decider.prefetch(new)
        if new.is_ready and not (old and old.is_ready) and self._view.policy_of(new) is not None:
            threading.Thread(
                target=self._became_ready,
                args=(new, self._clock.now().timestamp()),
                name="became-ready",
                daemon=True,
            ).start()

    def _became_ready(self, pod: Pod, ready_s: float) -> None:
        try:
            self._image_ids.of_pod(pod)
        except ImageIdUnknownError as error:
            log.debug("%s", error)  # asked again when it is needed
        self._traces.became_ready(pod, ready_s)

    def _snapshot_changed(self, old: Snapshot | None, new: Snapshot | None) -> None:
        self._decider.snapshot_changed()
        found = new or old
        if found is not None and self._saves.concern(found):
            self._queue.add(found.metadata.key)

    def _is_gone(self, snapshot: Snapshot) -> bool:
        now = self._view.snapshots.store.get(*snapshot.metadata.key)
        if now is None or now.metadata.uid != snapshot.metadata.uid:
            try:  # the watch may not show yet what was made here a moment ago
                now = self._view.live_snapshot(snapshot)
            except ApiError:
                return False  # the report at the end will tell
        if now is None:
            return True
        return now.metadata.is_deleting or bool(now.capture and now.capture.failure)

    # -- workloads that save themselves

    def _workload_saved(self, sandbox: PreparedSandbox) -> None:
        log.info("the workload of Pod %s/%s saved itself", sandbox.namespace, sandbox.pod_name)
        self._queue_unfinished()

    def _queue_unfinished(self) -> None:
        for key in self._saves.unfinished():
            self._queue.add(key)

    def _workload_failed(self, sandbox: PreparedSandbox, why: str) -> None:
        pod = self._view.pod(sandbox.namespace, sandbox.pod_name, sandbox.pod_uid)
        if pod is not None:
            self._reports.event(pod, "Warning", f"the workload's own checkpoint was dropped: {why}")

    # -- what was missed

    def _scan_forever(self) -> None:
        while not self._stopped.is_set():
            synced = self._view.is_synced()
            if synced:
                try:
                    self._scan()
                except Exception:
                    log.exception("the periodic scan failed")
            self._clock.wait(self._stopped, self._scan_pause_s() if synced else _SYNC_LOOK_S)

    def _scan_pause_s(self) -> float:
        """A restored Pod that may not do well is looked at more often."""
        attempts = self._settings.attempts_dir
        watched = attempts.is_dir() and any(attempts.iterdir())
        return _ATTEMPT_LOOK_S if watched else _SCAN_S

    def _scan(self) -> None:
        """Catch up on what happened while the agent was away, and remove what nobody owns."""
        alive = set()
        for sandbox in prepared_sandboxes(self._settings.bundles_dir):
            alive.add(sandbox.id)
            if sandbox.restore_is_complete and not sandbox.is_reported:
                self._restores.report(sandbox)
            self._workload_saves.watch(sandbox)
            self._restores.look_after(sandbox)
            self._pages.catch_up(sandbox)
        self._saves.resume_forgotten()
        self._loads.look(self._pages_damaged)
        self._restores.fallbacks()
        self._untold.tell()
        self._counts.flush()
        snapshots = self._view.snapshots.store.items()
        uids = {s.metadata.uid for s in snapshots}
        self._counts.keep_only(uids)
        self._decider.keep_only(uids)
        if not self._knows_leftovers:
            self._knows_leftovers = self._progress.remove_left_behind(snapshots)
        self._housekeeping.sweep(alive)
        self._locks.keep_only(alive)
        self._traces.keep_only(alive)
        self._saves.drop_unwanted_workload_saves(self._clock.now().timestamp())
        self._parting.forget_all_but({p.metadata.uid for p in self._view.pods.store.items()})
        self._queue_unfinished()

    # -- small things

    def _memory_bytes(self, sandbox: str) -> int:
        try:
            return self._runsc.memory_bytes(sandbox)
        except RunscError:
            return 0  # not yet, or not any more

    def _pages_damaged(self, manifest_digest: str, message: str) -> None:
        for snapshot in self._view.snapshots.store.items():
            if snapshot.capture and snapshot.capture.manifest_digest == manifest_digest:
                self._damaged(snapshot, message)

    def _damaged(self, snapshot: Snapshot, message: str) -> None:
        log.warning("PodSnapshot %s is damaged: %s", snapshot.metadata, message)
        self._reports.damaged(snapshot, message)


def _appearing_record(bundle: Path, stopped: threading.Event) -> PreparedSandbox | None:
    """Return the record that the runtime writes right after our answer."""
    for _ in range(_RECORD_LOOKS):
        record = read_record(bundle / DECISION_FILE)
        if record is not None:
            return record
        if stopped.wait(_RECORD_LOOK_S):
            return None
    return None
