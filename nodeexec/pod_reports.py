# SPDX-License-Identifier: Apache-2.0
"""What the agent tells on Pods and of restores: conditions, events, last access.

``PodRestored`` is the one thing the agent writes on a Pod; the kubelet overwrites a phase from
outside within seconds, and other conditions are not ours.
"""

import logging
import threading
from collections.abc import Mapping, Sequence

from backends.clock import Clock
from backends.kube.client import POD_SNAPSHOTS, PODS, KubeClient
from backends.kube.errors import ApiError
from backends.kube.events import EventRecorder
from schemas.conditions import Condition, render_conditions
from schemas.instants import to_time
from schemas.names import (
    ACCESS_MANAGER,
    AGENT_MANAGER,
    API_VERSION,
    DAMAGE_MANAGER,
    EVENT_REASON,
    POD_RESTORED,
)
from schemas.pod import Pod
from schemas.snapshot import Snapshot
from statemachine.restore import Outcome, report, saved_event

log = logging.getLogger(__name__)

_ACCESS_INTERVAL_S = 60.0


class PodReports:
    """Writes the outcomes of starts and saves."""

    def __init__(self, client: KubeClient, events: EventRecorder, clock: Clock) -> None:
        """Use the agent's own identity."""
        self._client = client
        self._events = events
        self._clock = clock
        self._accessed_s: dict[str, float] = {}
        self._guard = threading.Lock()

    def outcome(self, pod: Pod, outcome: Outcome, *, snapshot: str = "", reason: str = "") -> bool:
        """Tell how a Pod's start ended; returns whether the condition stands."""
        told = report(outcome, namespace=pod.metadata.namespace, snapshot=snapshot, reason=reason)
        written = True
        if told.condition is not None:
            written = self._apply_conditions(pod, [told.condition])
        if told.event_type is not None and written:
            self.event(pod, told.event_type, told.event_message)
        return written

    def saved(self, pod: Pod, snapshot: Snapshot) -> None:
        """Tell that a Pod was saved and its bytes are in the bucket."""
        self.event(pod, "Normal", saved_event(pod.metadata.namespace, snapshot.metadata.name))

    def event(self, pod: Pod, event_type: str, message: str) -> None:
        """Emit the contract's event on a Pod."""
        self._events.emit(reference(pod), event_type, EVENT_REASON, message)

    def accessed(self, snapshot: Snapshot) -> None:
        """Record that a Pod was restored from a snapshot, at most once a minute."""
        uid, now_s = snapshot.metadata.uid, self._clock.monotonic_s()
        with self._guard:
            if now_s - self._accessed_s.get(uid, -_ACCESS_INTERVAL_S) < _ACCESS_INTERVAL_S:
                return
            self._accessed_s[uid] = now_s
        status = {"lastAccessTime": to_time(self._clock.now())}
        self._record(snapshot, status, manager=ACCESS_MANAGER)

    def damaged(self, snapshot: Snapshot, message: str) -> None:
        """Record that a snapshot's bytes are wrong; nobody restores from it any more."""
        status = {"podsnap": {"damage": {"message": message}}}
        self._record(snapshot, status, manager=DAMAGE_MANAGER)

    def restore_failed(self, snapshot: Snapshot, pod: Pod, reason: str) -> None:
        """Record that a Pod's restore failed; some failures take the snapshot out of use."""
        self._patch_failures(snapshot, {pod.metadata.uid: reason})

    def restore_worked(self, snapshot: Snapshot) -> None:
        """Clear a snapshot that a Pod does well with of earlier failures."""
        self._patch_failures(snapshot, dict.fromkeys(snapshot.failures))

    def _patch_failures(self, snapshot: Snapshot, failures: Mapping[str, str | None]) -> None:
        patch = {
            "metadata": {"uid": snapshot.metadata.uid},
            "status": {"podsnap": {"failures": failures}},
        }
        try:
            self._client.merge_patch(
                POD_SNAPSHOTS,
                snapshot.metadata.name,
                patch,
                namespace=snapshot.metadata.namespace,
                field_manager=AGENT_MANAGER,
                subresource="status",
            )
        except ApiError as error:
            log.warning("status of %s could not be written: %s", snapshot.metadata, error)

    def forget_restore(self, pod: Pod) -> None:
        """Remove ``PodRestored`` from a Pod whose next sandbox starts cold."""
        if POD_RESTORED in pod.conditions:
            self._apply_conditions(pod, [])

    def _apply_conditions(self, pod: Pod, conditions: Sequence[Condition]) -> bool:
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": pod.metadata.identity(),
            "status": {
                "conditions": render_conditions(
                    conditions, previous=pod.conditions, now=to_time(self._clock.now())
                )
            },
        }
        try:
            self._client.apply(
                PODS, body, field_manager=AGENT_MANAGER, subresource="status", force=True
            )
        except ApiError as error:
            log.warning("PodRestored of %s could not be written: %s", pod.metadata, error)
            return False
        return True

    def _record(self, snapshot: Snapshot, status: Mapping[str, object], *, manager: str) -> None:
        body = {
            "apiVersion": API_VERSION,
            "kind": "PodSnapshot",
            "metadata": snapshot.metadata.identity(),
            "status": status,
        }
        try:
            self._client.apply(
                POD_SNAPSHOTS, body, field_manager=manager, subresource="status", force=True
            )
        except ApiError as error:
            log.warning("status of %s could not be written: %s", snapshot.metadata, error)


def reference(pod: Pod) -> dict[str, str]:
    """Return the reference by which events find their Pod."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": pod.metadata.namespace,
        "name": pod.metadata.name,
        "uid": pod.metadata.uid,
    }
