# SPDX-License-Identifier: Apache-2.0
"""How starts ended, told on the Pods: once each, also by an agent that was away meanwhile.

What happened stands in files that the runtime wrote: the sandbox's record with the containers that
started, and a mark for each restore that failed. So the report does not depend on who was asked.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from backends.clock import Clock
from nodeexec.cluster_view import ClusterView
from nodeexec.metrics import AgentMetrics
from nodeexec.pod_reports import PodReports
from nodeexec.restore_counts import RestoreCounts
from nodeexec.restore_progress import RunningRestores
from nodeexec.restore_traces import RestoreTraces
from nodeexec.runsc import Runsc, RunscError, RunscTimeoutError
from nodeexec.sandboxes import (
    ColdMark,
    PreparedSandbox,
    mark_cold,
    mark_told,
    prepared_sandboxes,
    read_cold_mark,
)
from nodeexec.saves import SandboxLocks
from nodeexec.settings import AgentSettings
from policies.environment import env_differences
from policies.verdict import Reason
from schemas.pod import Pod
from schemas.snapshot import Snapshot
from statemachine.restore import Outcome, ready_limit_s

log = logging.getLogger(__name__)

_WAIT_FOR_RESTORE_S: Final = 15.0
_LOCK_LIMIT_S: Final = 2.0
# A Pod without a readiness probe is Ready at once, also one that is about to crash.
_SETTLED_S: Final = 10.0


@dataclass(slots=True)
class RestoreReports:
    """Reports restores and fall-backs of this node."""

    settings: AgentSettings
    view: ClusterView
    runsc: Runsc
    reports: PodReports
    counts: RestoreCounts
    progress: RunningRestores
    clock: Clock
    metrics: AgentMetrics
    locks: SandboxLocks
    traces: RestoreTraces
    # Called with a sandbox that runs while its memory is still on its way.
    on_loading: Callable[[PreparedSandbox, Pod], None] = lambda _sandbox, _pod: None
    _done_since_s: dict[str, float] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def restored(self, sandbox_id: str) -> bool:
        """Report one restore that the runtime says is complete; returns whether it stands."""
        for sandbox in prepared_sandboxes(self.settings.bundles_dir):
            if sandbox.id == sandbox_id:
                return self.report(sandbox)
        return False

    def report(self, sandbox: PreparedSandbox) -> bool:
        """Wait until a sandbox's memory is back, and say so on its Pod; returns whether it stands.

        A sandbox that is being saved is looked at later.
        """
        lock = self.locks.of(sandbox.id)
        if not lock.acquire(timeout=_LOCK_LIMIT_S):
            return False
        try:
            return self._report(sandbox)
        finally:
            lock.release()

    def _report(self, sandbox: PreparedSandbox) -> bool:
        if sandbox.is_reported:
            return True
        pod = self.view.pod(sandbox.namespace, sandbox.pod_name, sandbox.pod_uid)
        if pod is None or (self.settings.cold_marks_dir / sandbox.pod_uid).exists():
            return False
        try:
            if not sandbox.rootfs_only and not sandbox.background:
                self.runsc.wait_for_restore(sandbox.id, limit_s=_WAIT_FOR_RESTORE_S)
        except RunscTimeoutError as error:
            log.warning("the restore of %s has no end yet: %s", pod.metadata, error)
            return False
        except RunscError as error:
            # Marked now, or the Pod's next sandbox would tell of the same failure in other words; a
            # mark on a sandbox that lives on would keep anybody from looking after it.
            self.give_up(sandbox, str(error))
            return False
        self.progress.ended(pod.metadata.uid)
        snapshot = self.view.snapshots.store.get(sandbox.namespace, sandbox.restored_from)
        if not self.reports.outcome(
            pod,
            Outcome.RESTORED,
            snapshot=sandbox.restored_from,
            env_differences=_env_differences(snapshot, pod),
        ):
            return False
        sandbox.mark_reported()
        self.metrics.restores.inc()
        self.metrics.started(Outcome.RESTORED, None)
        if snapshot is not None:
            self.counts.restored(snapshot)
        if not sandbox.has_its_pages:
            self.on_loading(sandbox, pod)
        return True

    def fallbacks(self) -> None:
        """Tell of every failed restore that the runtime left a mark of, once each."""
        root = self.settings.cold_marks_dir
        for mark in root.iterdir() if root.is_dir() else ():
            cold = read_cold_mark(mark)
            pod = self.view.pods.store.by_uid(mark.name)
            if cold is None or pod is None or cold.is_told:
                continue
            with self._guard:
                if read_cold_mark(mark) != cold:
                    continue  # another thread was first
                mark_told(mark)
            self.progress.ended(pod.metadata.uid)
            self.metrics.started(Outcome.FELL_BACK, Reason.RESTORE_FAILED)
            self._count(pod, cold)
            self.reports.outcome(pod, Outcome.FELL_BACK, snapshot=cold.snapshot, reason=cold.reason)
            self.traces.fell_back(pod, mark, cold)

    def give_up(self, sandbox: PreparedSandbox, why: str, *, blame: bool = True) -> None:
        """Let a Pod that does not do well after its restore start cold: a new sandbox does.

        ``blame`` if it counts against the snapshot.
        """
        attempt = self.settings.attempts_dir / sandbox.pod_uid
        mark = self.settings.cold_marks_dir / sandbox.pod_uid
        if not mark_cold(attempt, mark, why, blame=blame):
            return
        pid = self.runsc.sandbox_pid(sandbox.id)
        if pid > 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.fallbacks()

    def look_after(self, sandbox: PreparedSandbox) -> None:
        """Forget the attempt of a Pod that does well; give one up that does not become Ready."""
        attempt = self.settings.attempts_dir / sandbox.pod_uid
        if not sandbox.restore_is_complete or not attempt.exists():
            self._done_since_s.pop(sandbox.id, None)
            return
        pod = self.view.pod(sandbox.namespace, sandbox.pod_name, sandbox.pod_uid)
        now_s = self.clock.monotonic_s()
        if not sandbox.has_its_pages:  # it answers when they are here
            self._done_since_s[sandbox.id] = now_s
        since_s = now_s - self._done_since_s.setdefault(sandbox.id, now_s)
        if pod is None or pod.metadata.is_deleting:
            return
        limit_s = ready_limit_s(pod)
        if pod.are_containers_ready or pod.is_over:
            self.traces.restored(sandbox, pod)  # reads the attempt; never raises
            if (since_s > _SETTLED_S and sandbox.has_its_pages) or pod.is_over:
                attempt.unlink(missing_ok=True)
                self._settled(sandbox)
        # Without another sandbox there is nothing to fall back to.
        elif limit_s is not None and since_s > limit_s and pod.gets_new_sandboxes:
            self.give_up(sandbox, f"the Pod was not Ready {limit_s:.0f} s after its restore")

    def _settled(self, sandbox: PreparedSandbox) -> None:
        snapshot = self.view.snapshots.store.get(sandbox.namespace, sandbox.restored_from)
        if snapshot is not None and snapshot.failures:
            self.reports.restore_worked(snapshot)

    def _count(self, pod: Pod, cold: ColdMark) -> None:
        """Count a failed restore against its snapshot; several take it out of use."""
        snapshot = self.view.snapshots.store.get(pod.metadata.namespace, cold.snapshot)
        # A deleted Pod takes its sandbox with it.
        if snapshot is None or not cold.blame or pod.metadata.is_deleting:
            return
        if cold.snapshot_uid not in {"", snapshot.metadata.uid}:
            return  # of an earlier snapshot of the same name
        self.reports.restore_failed(snapshot, pod, cold.reason)


def _env_differences(snapshot: Snapshot | None, pod: Pod) -> list[str]:
    """Say what a restored process does not know of its environment; files alone have none."""
    capture = snapshot.capture if snapshot is not None else None
    if snapshot is None or capture is None or capture.rootfs_only:
        return []
    return env_differences(capture.env_marks, pod, pod.metadata.namespace)
