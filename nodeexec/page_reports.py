# SPDX-License-Identifier: Apache-2.0
"""Pods that run before all of their memory is on the node: watched until it is, and told.

The Pod says so by a condition of its own; ``PodRestored`` says that it runs. The truth is runsc's:
``wait --restore`` ends when the sandbox holds every page, or when it could not get one.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from backends.clock import Clock
from nodeexec.background_loads import BackgroundLoads
from nodeexec.cluster_view import ClusterView
from nodeexec.page_loads import LoadState, LoadStatus
from nodeexec.pod_reports import PodReports
from nodeexec.restore_progress import RunningRestores
from nodeexec.restore_reports import RestoreReports
from nodeexec.runsc import Runsc, RunscError, RunscTimeoutError
from nodeexec.sandboxes import PreparedSandbox
from policies.loading import Unsure, after_no_answer
from schemas.pod import Pod

log = logging.getLogger(__name__)

_WAIT_S: Final = 10.0
_AGAIN_S: Final = 2.0
_MB: Final = 1e6


@dataclass(slots=True)
class PageReports:
    """Watches the sandboxes of this node whose memory is on its way."""

    loads: BackgroundLoads
    view: ClusterView
    runsc: Runsc
    reports: PodReports
    restores: RestoreReports
    progress: RunningRestores
    clock: Clock
    stopped: threading.Event
    # Called with the bytes of a load, and the seconds that it took.
    on_loaded: Callable[[int, float], None] = lambda _bytes, _took_s: None
    _watched: set[str] = field(default_factory=set)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def catch_up(self, sandbox: PreparedSandbox) -> None:
        """Watch a sandbox that an earlier agent began to watch."""
        if sandbox.is_reported and not sandbox.has_its_pages:
            pod = self.view.pod(sandbox.namespace, sandbox.pod_name, sandbox.pod_uid)
            if pod is not None and not pod.metadata.is_deleting:
                self.watch(sandbox, pod)

    def watch(self, sandbox: PreparedSandbox, pod: Pod) -> None:
        """Begin to watch a sandbox, unless somebody does already."""
        with self._guard:
            if sandbox.id in self._watched:
                return
            self._watched.add(sandbox.id)
        threading.Thread(
            target=self._watch, args=(sandbox, pod), name=f"pages-{sandbox.id[:8]}", daemon=True
        ).start()

    def _watch(self, sandbox: PreparedSandbox, pod: Pod) -> None:
        try:
            snapshot = self.view.snapshots.store.get(sandbox.namespace, sandbox.restored_from)
            if snapshot is not None:
                self.progress.loading(pod, snapshot, lambda: self._done_bytes(sandbox))
            self.reports.pages(pod, are_local=False, message=_so_far(self._status(sandbox)))
            self._await(sandbox, pod)
        finally:
            self.progress.ended(pod.metadata.uid)
            with self._guard:
                self._watched.discard(sandbox.id)

    def _await(self, sandbox: PreparedSandbox, pod: Pod) -> None:
        began_s = self.clock.monotonic_s()
        while not self.stopped.is_set() and sandbox.bundle.exists():
            try:
                self.runsc.wait_for_restore(sandbox.id, limit_s=_WAIT_S)
            except RunscTimeoutError:
                continue
            except RunscError as error:
                if self._is_over(sandbox, pod, str(error)):
                    return
                self.clock.wait(self.stopped, _AGAIN_S)
                continue
            took_s = self.clock.monotonic_s() - began_s
            if self.reports.pages(
                pod, are_local=True, message=_in_the_end(self._status(sandbox), took_s)
            ):
                sandbox.mark_pages_local()
            self._learn(self._status(sandbox))
            return

    def _is_over(self, sandbox: PreparedSandbox, pod: Pod, said: str) -> bool:
        """Whether there is nothing to wait for: the Pod ends, or its pages will not come."""
        now = self.view.pod(sandbox.namespace, sandbox.pod_name, sandbox.pod_uid)
        status = self._status(sandbox)
        has_failed = status is not None and status.state is LoadState.FAILED
        then = after_no_answer(
            is_ending=now is None or now.metadata.is_deleting or now.is_over,
            lives=self._lives(sandbox),
            has_failed=has_failed,
        )
        if then is Unsure.ASK_AGAIN:
            log.warning("asked for the memory of %s, runsc said: %s", pod.metadata, said)
            return False
        self.reports.forget_pages(pod)
        if then is Unsure.START_COLD:
            why = status.reason if status is not None and has_failed else said
            self.restores.give_up(sandbox, why, blame=False)
        return True

    def _lives(self, sandbox: PreparedSandbox) -> bool:
        try:
            self.runsc.memory_bytes(sandbox.id)
        except RunscError:
            return False
        return True

    def _learn(self, status: LoadStatus | None) -> None:
        if status is not None and status.state is LoadState.COMPLETE:
            self.on_loaded(status.total_bytes, status.took_s)

    def _status(self, sandbox: PreparedSandbox) -> LoadStatus | None:
        return self.loads.status(sandbox.image_dir) if sandbox.image_dir else None

    def _done_bytes(self, sandbox: PreparedSandbox) -> int:
        status = self._status(sandbox)
        return status.done_bytes if status else 0


def _so_far(status: LoadStatus | None) -> str:
    if status is None:
        return "The Pod runs while its memory is loaded"
    return (
        f"The Pod runs; {status.done_bytes / _MB:.0f} of {status.total_bytes / _MB:.0f} MB of its "
        "memory are on the node"
    )


def _in_the_end(status: LoadStatus | None, took_s: float) -> str:
    text = f"All of the Pod's memory is on the node, {took_s:.1f} s after it ran"
    if status is None or not status.total_bytes:
        return text
    return (
        f"{text}; {status.total_bytes / _MB:.0f} MB came in {status.took_s:.1f} s, "
        f"{status.faults} page faults waited for the bucket, p50 {status.wait_p50_s * 1e3:.0f} ms, "
        f"p99 {status.wait_p99_s * 1e3:.0f} ms"
    )
