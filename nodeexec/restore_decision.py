# SPDX-License-Identifier: Apache-2.0
"""Restore or cold? Asked once per sandbox, while the kubelet waits.

The answer says everything the runtime needs to finish alone: it never has to ask again. An image
that is not on the node yet is fetched within a bound; whatever takes longer, or fails, or is not
certain, is a cold start with the reason on the Pod.
"""

import logging
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from opentelemetry import context, trace

from backends.objects.interface import ObjectStore, StoreError
from nodeexec.cluster_view import ClusterView
from nodeexec.node_cache import DamagedError, FetchError, NodeCache
from nodeexec.sandboxes import ColdMark
from policies.distill import distill
from policies.matching import Candidate, choose
from schemas.pod import Pod
from schemas.policy import Policy, TriggerType
from schemas.snapshot import Compatibility, Snapshot
from schemas.storage_config import Location
from statemachine.restore import Outcome

log = logging.getLogger(__name__)
tracer = trace.get_tracer("podsnap.nodeexec.restore")

# The kubelet gives the container runtime two minutes; half a minute of it is not ours.
GATE_LIMIT_S: Final = 85.0
# After the gate, within the same two minutes; the sandbox only opens the image there.
_SANDBOX_DEADLINE_S: Final = 25.0
# The last container's start loads the memory, within two minutes of its own.
_DEADLINE_S: Final = 90.0
_RESTORE_FLOOR_S: Final = 60.0
_SLOWEST_BYTES_PER_S: Final = 20e6
_FAILURES_BEFORE_QUARANTINE: Final = 3


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer for one sandbox, and what to tell about it once it is given."""

    pod: Pod | None = None
    policy: Policy | None = None
    internal: Mapping[str, str] = field(default_factory=dict)
    enable: bool = False
    snapshot: Snapshot | None = None
    image_dir: Path | None = None
    outcome: Outcome = Outcome.COLD
    reason: str = ""

    def to_answer(self) -> dict[str, Any]:
        """Render for the runtime."""
        if self.policy is None:
            return {"governed": False}
        answer: dict[str, Any] = {
            "governed": True,
            "policy": self.policy.metadata.name,
            "internal": dict(self.internal),
            "enable": self.enable,
            "restore": None,
        }
        capture = self.snapshot.capture if self.snapshot else None
        if self.snapshot is not None and capture is not None and self.image_dir is not None:
            answer["restore"] = {
                "snapshot": self.snapshot.metadata.name,
                "image_dir": str(self.image_dir),
                "image_ids": dict(capture.image_ids),
                "sandbox_deadline_s": _SANDBOX_DEADLINE_S,
                "deadline_s": min(
                    _RESTORE_FLOOR_S + capture.size_bytes / _SLOWEST_BYTES_PER_S, _DEADLINE_S
                ),
            }
        return answer


@dataclass(slots=True)
class RestoreDecider:
    """Decides for this node."""

    view: ClusterView
    cache: NodeCache
    node: Compatibility
    workload_dirs: Path
    open_store: Callable[[Location], ObjectStore]
    on_damage: Callable[[Snapshot, str], None]
    _fetches: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(2, thread_name_prefix="fetch")
    )
    _running: dict[str, Future[Path]] = field(default_factory=dict)
    _failed: dict[str, set[str]] = field(default_factory=dict)

    def decide(
        self,
        *,
        namespace: str,
        name: str,
        uid: str,
        sandbox: str,
        cold: Mapping[str, Any] | None,
        hold: Callable[[float], None],
    ) -> Decision:
        """Decide for a sandbox that is being created.

        ``cold`` is the record of an earlier failed restore of this Pod; ``hold`` is called with a
        number of seconds if the answer has to wait for a fetch.
        """
        with tracer.start_as_current_span(
            "podsnap.decide",
            attributes={"k8s.namespace.name": namespace, "k8s.pod.name": name},
        ) as span:
            decision = self._decide(namespace, name, uid, sandbox, cold, hold)
            span.set_attribute("podsnap.outcome", decision.outcome)
            span.set_attribute("podsnap.reason", decision.reason)
            return decision

    def count_failure(self, pod: Pod, cold: ColdMark) -> None:
        """Count a failed restore against its snapshot; several take it out of use."""
        snapshot = self.view.snapshots.store.get(pod.metadata.namespace, cold.snapshot)
        # Another image is the Pod's matter, and a deleted Pod takes its sandbox with it; everything
        # else counts against the snapshot, once a Pod.
        if snapshot is None or ".image is " in cold.reason or pod.metadata.is_deleting:
            return
        failed = self._failed.setdefault(snapshot.metadata.uid, set())
        failed.add(pod.metadata.uid)
        if len(failed) >= _FAILURES_BEFORE_QUARANTINE:
            self.on_damage(snapshot, f"{len(failed)} restores failed, the last: {cold.reason}")

    def count_success(self, snapshot: Snapshot) -> None:
        """A restore that works clears a snapshot of earlier failures."""
        self._failed.pop(snapshot.metadata.uid, None)

    def prefetch(self, pod: Pod) -> None:
        """Begin to fetch what a Pod bound to this node will be restored from."""
        policy = self.view.policy_of(pod)
        if policy is None:
            return
        snapshot = choose(self._candidate(pod, policy), self.view.snapshots.store.items()).snapshot
        if snapshot is not None and self.cache.lookup(snapshot.metadata.uid) is None:
            self._fetch(snapshot)

    def _decide(
        self,
        namespace: str,
        name: str,
        uid: str,
        sandbox: str,
        cold: Mapping[str, Any] | None,
        hold: Callable[[float], None],
    ) -> Decision:
        if not self.view.is_synced():
            return Decision(reason="the agent has just started and does not know the cluster yet")
        pod = self.view.pod(namespace, name, uid)
        if pod is None:
            return Decision(reason="the API server does not know the Pod with this UID (yet)")
        policy = self.view.policy_of(pod)
        if policy is None:
            return Decision(pod=pod, reason="no policy governs the Pod")
        if policy.snapshot_scope != "whole-pod":
            return Decision(pod=pod, reason="the policy asks for rootfs-only")
        internal = self._internal(policy, sandbox)
        base = Decision(pod=pod, policy=policy, internal=internal, enable=bool(internal))
        if cold is not None:
            return self._after_failure(base, cold)
        choice = choose(self._candidate(pod, policy), self.view.snapshots.store.items())
        if choice.snapshot is None:
            outcome = Outcome.COLD_DESPITE_SNAPSHOT if choice.noteworthy else Outcome.COLD
            return replace(base, outcome=outcome, reason=choice.reason)
        return self._with_image(base, choice.snapshot, hold)

    def _with_image(
        self, base: Decision, snapshot: Snapshot, hold: Callable[[float], None]
    ) -> Decision:
        uid = snapshot.metadata.uid
        image = self.cache.lookup(uid)
        if image is None:
            hold(GATE_LIMIT_S + 1)
            try:
                image = self._fetch(snapshot).result(timeout=GATE_LIMIT_S)
            except (DamagedError, FetchError) as error:
                return replace(
                    base,
                    outcome=Outcome.COLD_DESPITE_SNAPSHOT,
                    reason=f"PodSnapshot {snapshot.metadata}: {error}",
                )
            except FutureTimeoutError:
                return replace(
                    base,
                    outcome=Outcome.COLD_DESPITE_SNAPSHOT,
                    reason=f"PodSnapshot {snapshot.metadata} was not fetched within "
                    f"{GATE_LIMIT_S:.0f} s; the fetch goes on for later Pods",
                )
        return replace(base, outcome=Outcome.RESTORED, snapshot=snapshot, image_dir=image)

    def _after_failure(self, base: Decision, cold: Mapping[str, Any]) -> Decision:
        return replace(base, outcome=Outcome.FELL_BACK, reason=str(cold.get("reason", "")))

    def _internal(self, policy: Policy, sandbox: str) -> dict[str, str]:
        if policy.trigger_type is not TriggerType.WORKLOAD:
            return {}
        directory = self.workload_dirs / sandbox
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700, parents=True)
        return {
            "checkpoint.path": str(directory),
            "checkpoint.resume": "true",
            "checkpoint.compression": "none",
            "checkpoint.exclude-committed-zero-pages": "true",
        }

    def _candidate(self, pod: Pod, policy: Policy) -> Candidate:
        return Candidate(pod=pod, policy=policy, identity=distill(pod), node=self.node)

    def _fetch(self, snapshot: Snapshot) -> Future[Path]:
        uid = snapshot.metadata.uid
        running = self._running.get(uid)
        if running is None or running.done():
            running = self._fetches.submit(self._fetch_now, snapshot, context.get_current())
            self._running[uid] = running
        return running

    def _fetch_now(self, snapshot: Snapshot, asked_in: context.Context) -> Path:
        capture = snapshot.capture
        if capture is None or capture.location is None:
            raise FetchError("the snapshot records no place of its bytes")
        with tracer.start_as_current_span(
            "podsnap.fetch",
            context=asked_in,  # a pool's thread does not inherit it
            attributes={
                "k8s.namespace.name": snapshot.metadata.namespace,
                "podsnap.snapshot.name": snapshot.metadata.name,
                "podsnap.bytes": capture.size_bytes,
            },
        ):
            try:
                return self.cache.fetch(snapshot, self.open_store(capture.location))
            except DamagedError as error:
                self.on_damage(snapshot, str(error))
                raise
            except StoreError as error:
                raise FetchError(str(error)) from error
