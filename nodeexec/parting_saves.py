# SPDX-License-Identifier: Apache-2.0
"""Saves of Pods that are being deleted (trigger ``onDelete``).

A finalizer cannot hold a Pod for it: the kubelet stops the containers of a deleted Pod at once. So
the runtime asks here before it passes the first signal on, and waits. Only a live look at the Pod
tells a deletion from a restarted container or an eviction under pressure, which get the same
signal; without an answer nothing is saved.

The Pod never waits longer than its grace period less a margin. The trap: containerd begins to count
its grace period, and can send SIGKILL, only when the signal has been passed on.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from backends.clock import Clock
from backends.kube.client import POD_SNAPSHOTS, PODS, KubeClient
from backends.kube.errors import ApiError
from nodeexec.capture import Capturer
from nodeexec.capture_job import CaptureFailed
from nodeexec.cluster_view import ClusterView
from nodeexec.decision_server import Reply
from nodeexec.pod_reports import PodReports
from nodeexec.sandboxes import PreparedSandbox, sandbox_of_pod
from nodeexec.saves import NodeSaves
from nodeexec.settings import AgentSettings
from policies.capturing import may_save
from policies.identity import parting_snapshot_name
from policies.new_snapshots import parting_snapshot
from schemas.instants import parse_time, to_micro_time
from schemas.names import CONTROLLER_MANAGER
from schemas.pod import Pod
from schemas.policy import Policy, TriggerType
from schemas.snapshot import Snapshot

log = logging.getLogger(__name__)

# For the signal's own way, and for deletionTimestamp, which has whole seconds.
_MARGIN_S: Final = 1.0
_LIVE_GET_LIMIT_S: Final = 2.0


@dataclass(slots=True)
class _Parting:
    """One Pod's last save: the signals of all its containers wait for it, at most until the end."""

    ends_s: float
    written: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True)
class PartingSaves:
    """Answers the runtime's question before a signal."""

    settings: AgentSettings
    client: KubeClient
    view: ClusterView
    saves: NodeSaves
    capturer: Capturer
    reports: PodReports
    clock: Clock
    _partings: dict[str, _Parting] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def before_signal(self, question: Mapping[str, Any], reply: Reply) -> None:
        """Save the Pod first, if it is being deleted and its policy says so."""
        named = question["pod"]
        pod = self.view.pods.store.get(named["namespace"], named["name"])
        policy = self.view.policy_of(pod) if pod else None
        if policy is None or policy.trigger_type is not TriggerType.ON_DELETE:
            reply({"saved": False})
            return
        ours = _Parting(ends_s=self.clock.monotonic_s() + _LIVE_GET_LIMIT_S)
        with self._guard:
            parting = self._partings.setdefault(named["uid"], ours)
        if parting is not ours:
            # Another container's signal came before: one save is for all of them.
            while not parting.written.is_set():
                left_s = parting.ends_s - self.clock.monotonic_s()
                if left_s <= 0:
                    break
                reply({"wait_s": left_s + _MARGIN_S})
                parting.written.wait(left_s)
            reply({"saved": True})
            return
        reply({"wait_s": _LIVE_GET_LIMIT_S + _MARGIN_S})

        def pass_on() -> None:
            if not parting.written.is_set():
                parting.written.set()
                with contextlib.suppress(OSError):  # the runtime waited long enough
                    reply({"saved": True})

        try:
            live = self._deleted_pod(named)
            if live is None:
                with self._guard:  # a container was restarted; the Pod may still be deleted later
                    self._partings.pop(named["uid"], None)
            else:
                left_s = self._left_s(live)
                parting.ends_s = self.clock.monotonic_s() + left_s
                reply({"wait_s": max(left_s, 0) + _MARGIN_S})
                self._save(live, policy, parting.ends_s, pass_on)
        finally:
            pass_on()

    def forget_all_but(self, pod_uids: set[str]) -> None:
        """Forget Pods that are gone."""
        with self._guard:
            for gone in self._partings.keys() - pod_uids:
                del self._partings[gone]

    def _deleted_pod(self, named: Mapping[str, str]) -> Pod | None:
        """Return the Pod as the API server has it now, if it is this one and being deleted."""
        try:
            raw = self.client.get(
                PODS, named["name"], namespace=named["namespace"], timeout_s=_LIVE_GET_LIMIT_S
            )
        except ApiError as error:
            log.info("Pod %s/%s goes unsaved: %s", named["namespace"], named["name"], error)
            return None
        pod = Pod.parse(raw)
        if pod.metadata.uid != named["uid"] or not pod.metadata.is_deleting:
            return None
        return pod

    def _save(self, pod: Pod, policy: Policy, ends_s: float, pass_on: Callable[[], None]) -> None:
        sandbox = sandbox_of_pod(self.settings.bundles_dir, pod.metadata.uid)
        left_s = ends_s - self.clock.monotonic_s()
        refusal = self._refusal(pod, policy, sandbox, left_s)
        if refusal or sandbox is None:
            self.reports.event(
                pod, "Warning", f"the pod was not saved before its deletion: {refusal}"
            )
            return
        snapshot = self._created(pod, policy)
        self.saves.save_parting(snapshot, pod, sandbox, ends_s=ends_s, on_written=pass_on)

    def _left_s(self, pod: Pod) -> float:
        end = parse_time(pod.metadata.deletion_timestamp or "")
        left_s = (end - self.clock.now()).total_seconds() if end else 0.0
        # The timestamp is of another machine's clock; the period is not.
        return min(left_s, pod.metadata.deletion_grace_period_s) - _MARGIN_S

    def _refusal(
        self, pod: Pod, policy: Policy, sandbox: PreparedSandbox | None, left_s: float
    ) -> str:
        if pod.is_evicted_by_kubelet:
            return "the kubelet evicts it because the node runs out of something"
        if not pod.is_ready:
            return "it is not Ready, and every successor would be restored into that state"
        if sandbox is None:
            return "its sandbox was started before its policy existed or while the agent was away"
        if policy.stops and not sandbox.stops:
            return "its sandbox was made before its policy said postCheckpoint stop"
        verdict = may_save(pod, policy, self.saves.compatibility)
        if not verdict.usable:
            return verdict.message
        if policy.rootfs_only:
            return "" if left_s > 0 else "its grace period is over"
        try:
            memory_bytes = self.capturer.memory_bytes(sandbox)
        except CaptureFailed as failed:
            return failed.failure.message
        needs_s = self.capturer.estimate.seconds(memory_bytes)
        if needs_s > left_s:
            return (
                f"saving {memory_bytes / 1e6:.0f} MB takes about {needs_s:.1f} s and "
                f"{max(left_s, 0):.1f} s of its grace period are left; raise "
                "terminationGracePeriodSeconds"
            )
        return ""

    def _created(self, pod: Pod, policy: Policy) -> Snapshot:
        name = parting_snapshot_name(pod.metadata.uid)
        body = parting_snapshot(name, pod, policy, now=to_micro_time(self.clock.now()))
        made = self.client.create_once(POD_SNAPSHOTS, body, field_manager=CONTROLLER_MANAGER)
        if made is None:  # an earlier process of this agent made it and died
            made = self.client.get(POD_SNAPSHOTS, name, namespace=pod.metadata.namespace)
        return Snapshot.parse(made)
