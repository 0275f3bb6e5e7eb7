# SPDX-License-Identifier: Apache-2.0
"""What the agent tells on Pods and of restores: conditions, events, parts of snapshots' status.

``PodRestored`` and, on a Pod that runs before all of its memory is there, ``PagesLocal`` are all
that the agent writes on a Pod; the kubelet overwrites a phase from outside within seconds, and
other conditions are not ours.
"""

import logging
from collections.abc import Mapping, Sequence

from backends.clock import Clock
from backends.kube.client import POD_SNAPSHOTS, PODS, KubeClient
from backends.kube.errors import ApiError, NotFound
from backends.kube.events import EventRecorder
from schemas.conditions import Condition, render_conditions
from schemas.instants import to_time
from schemas.names import (
    AGENT_MANAGER,
    API_VERSION,
    DAMAGE_MANAGER,
    EVENT_REASON,
    PAGES_LOCAL,
    PAGES_MANAGER,
    POD_RESTORED,
)
from schemas.pod import Pod
from schemas.snapshot import Snapshot
from statemachine.restore import Outcome, report, saved_event

log = logging.getLogger(__name__)


class PodReports:
    """Writes the outcomes of starts and saves."""

    def __init__(self, client: KubeClient, events: EventRecorder, clock: Clock) -> None:
        """Use the agent's own identity."""
        self._client = client
        self._events = events
        self._clock = clock

    def outcome(
        self,
        pod: Pod,
        outcome: Outcome,
        *,
        snapshot: str = "",
        reason: str = "",
        env_differences: Sequence[str] = (),
    ) -> bool:
        """Tell how a Pod's start ended; returns whether the condition stands."""
        told = report(
            outcome,
            namespace=pod.metadata.namespace,
            pod=pod.metadata.name,
            snapshot=snapshot,
            reason=reason,
            env_differences=env_differences,
        )
        written = True
        if told.condition is not None:
            written = self._apply_conditions(pod, [told.condition])
        if outcome is not Outcome.RESTORED and PAGES_LOCAL in pod.conditions:
            self.forget_pages(pod)
        if written:
            self.event(pod, told.event_type, told.event_message)
        return written

    def saved(self, pod: Pod, snapshot: Snapshot) -> None:
        """Tell that a Pod was saved and its bytes are in the bucket."""
        self.event(pod, "Normal", saved_event(pod.metadata.namespace, snapshot.metadata.name))

    def event(self, pod: Pod, event_type: str, message: str) -> None:
        """Emit the contract's event on a Pod."""
        self._events.emit(reference(pod), event_type, EVENT_REASON, message)

    def damaged(self, snapshot: Snapshot, message: str) -> None:
        """Record that a snapshot's bytes are wrong; nobody restores from it any more."""
        body = {
            "apiVersion": API_VERSION,
            "kind": "PodSnapshot",
            "metadata": snapshot.metadata.identity(),
            "status": {"podsnap": {"damage": {"message": message}}},
        }
        try:
            self._client.apply(
                POD_SNAPSHOTS,
                body,
                field_manager=DAMAGE_MANAGER,
                subresource="status",
                force=True,
            )
        except ApiError as error:
            log.warning("status of %s could not be written: %s", snapshot.metadata, error)

    def restore_failed(self, snapshot: Snapshot, pod: Pod, reason: str) -> None:
        """Record that a Pod's restore failed; some failures take the snapshot out of use."""
        self.merge_status(snapshot, {"podsnap": {"failures": {pod.metadata.uid: reason}}})

    def restore_worked(self, snapshot: Snapshot) -> None:
        """Clear a snapshot that a Pod does well with of earlier failures."""
        gone = dict.fromkeys(snapshot.failures)
        self.merge_status(snapshot, {"podsnap": {"failures": gone}})

    def merge_status(
        self, snapshot: Snapshot, status: Mapping[str, object], *, manager: str = AGENT_MANAGER
    ) -> bool:
        """Merge into a snapshot's status what several nodes write; ``None`` removes a field.

        No apply, because that would take away what the same manager wrote on another node. Returns
        whether it stands, or has no place any more because the snapshot is gone.
        """
        name, namespace = snapshot.metadata.name, snapshot.metadata.namespace
        try:
            # The API server takes any UID in such a patch, and names come back.
            live = self._client.get(POD_SNAPSHOTS, name, namespace=namespace)
            if live["metadata"]["uid"] != snapshot.metadata.uid:
                return True
            self._client.merge_patch(
                POD_SNAPSHOTS,
                name,
                {"status": status},
                namespace=namespace,
                field_manager=manager,
                subresource="status",
            )
        except NotFound:
            return True
        except ApiError as error:
            log.warning("status of %s could not be written: %s", snapshot.metadata, error)
            return False
        return True

    def forget_restore(self, pod: Pod) -> None:
        """Remove ``PodRestored`` from a Pod whose next sandbox starts cold."""
        if POD_RESTORED in pod.conditions:
            self._apply_conditions(pod, [])

    def pages(self, pod: Pod, *, are_local: bool, message: str) -> bool:
        """Tell whether all of a Pod's memory is on its node; returns whether it stands."""
        told = (
            Condition(PAGES_LOCAL, "True", "AllPagesLocal", message)
            if are_local
            else Condition(PAGES_LOCAL, "False", "Loading", message)
        )
        return self._apply_conditions(pod, [told], manager=PAGES_MANAGER)

    def forget_pages(self, pod: Pod) -> None:
        """Remove ``PagesLocal`` from a Pod whose next sandbox starts cold."""
        self._apply_conditions(pod, [], manager=PAGES_MANAGER)

    def _apply_conditions(
        self, pod: Pod, conditions: Sequence[Condition], *, manager: str = AGENT_MANAGER
    ) -> bool:
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
            self._client.apply(PODS, body, field_manager=manager, subresource="status", force=True)
        except ApiError as error:
            log.warning("conditions of %s could not be written: %s", pod.metadata, error)
            return False
        return True


def reference(pod: Pod) -> dict[str, str]:
    """Return the reference by which events find their Pod."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": pod.metadata.namespace,
        "name": pod.metadata.name,
        "uid": pod.metadata.uid,
    }
