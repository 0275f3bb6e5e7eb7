# SPDX-License-Identifier: Apache-2.0
"""PodSnapshots: the state machine's facts gathered, its effects carried out, ``Ready`` written.

The bytes go before the object (reconciler.byte_deletion), in threads of their own: a bucket that
does not answer must hold up no other snapshot.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from backends.clock import Clock
from backends.kube.client import POD_SNAPSHOT_POLICIES, POD_SNAPSHOTS, KubeClient
from backends.kube.errors import Conflict, NotFound
from backends.kube.events import EventRecorder
from backends.objects.interface import ObjectStore
from policies.capturing import storage_usable
from policies.obsolescence import Standing, standing_of
from reconciler.byte_deletion import ByteDeletion
from reconciler.cluster_cache import ClusterCache
from reconciler.controller import Key
from reconciler.demand_book import DemandBook
from reconciler.policy_origin import PolicyOrigins
from schemas.conditions import Condition, render_conditions
from schemas.instants import to_micro_time, to_time
from schemas.names import (
    API_VERSION,
    CAPTURE_MANAGER,
    CHECKPOINT,
    CONTROLLER_MANAGER,
    FINALIZER,
    POLICY_ORIGIN_ANNOTATION,
    QUARANTINE_ANNOTATION,
    QUARANTINE_LIFTED,
    READY,
    STORAGE_REPLICATED,
    TRACEPARENT_ANNOTATION,
)
from schemas.node_facts import AGENT_LOST_S
from schemas.policy_origin import PolicyOrigin
from schemas.snapshot import RECORD_VERSION, CaptureRecord, ControlRecord, Failure, Snapshot
from schemas.span import Span
from schemas.storage_config import Location
from statemachine.snapshot import (
    Effect,
    SnapshotFacts,
    State,
    Step,
    capture_conditions,
    extend_story,
    ready_condition,
    recorded_state,
    step,
)
from statemachine.trace import instant_s, save_spans, save_traceparent

log = logging.getLogger(__name__)

_LOOK_AGAIN_S: Final = 15.0
# Both instants may have been cut to whole seconds.
_COARSE_S: Final = 1.0
_LOST: Final = "AgentLost"
_POD_GONE: Final = "PodGone"
# The node of a record that no node wrote.
_NOBODY: Final = "none"
_ENDED: Final = {State.AVAILABLE, State.OBSOLETE, State.FAILED}


@dataclass(slots=True)
class SnapshotController:
    """Reconciles PodSnapshots."""

    client: KubeClient
    cache: ClusterCache
    clock: Clock
    open_store: Callable[[Location], ObjectStore]
    demands: DemandBook
    events: EventRecorder
    # Who takes the spans of a save that has ended, if anybody does; returns whether it did.
    send_spans: Callable[[Sequence[Span]], bool] | None = None
    # Who calls ``delete_bytes`` for a key, in a thread that may wait.
    delete_soon: Callable[[Key], object] = lambda _key: None
    _signs_of_life: dict[str, tuple[float, float]] = field(default_factory=dict)
    _deletion: ByteDeletion = field(init=False)

    def __post_init__(self) -> None:
        """Share what is given."""
        self._deletion = ByteDeletion(self.open_store, self.events, self.clock)

    def reconcile(self, key: Key) -> float | None:
        """Bring one snapshot one step further."""
        snapshot = self.cache.snapshots.store.get(*key)
        if snapshot is None:
            return None
        if snapshot.metadata.annotations.get(QUARANTINE_ANNOTATION) == QUARANTINE_LIFTED:
            self._lift_quarantine(snapshot)
            return None  # what was patched queues the key again
        standing = self._standing(snapshot)
        facts = self._facts(snapshot, standing)
        outcome = step(facts)
        if Effect.DELETE_BYTES in outcome.effects:
            if recorded_state(snapshot) is not State.DELETING:
                self._write(snapshot, outcome, standing)
            self.delete_soon(key)
            return None
        if Effect.RELEASE in outcome.effects:
            self._release(snapshot)
            return None
        if Effect.DELETE_OBJECT in outcome.effects:
            self._delete_object(snapshot)
            return None
        if Effect.ABANDON in outcome.effects:
            self._abandon(snapshot, outcome, _LOST if facts.origin_alive else _POD_GONE)
            return 0.0
        is_told = self._write(snapshot, outcome, standing)
        if outcome.state is State.PENDING and CHECKPOINT not in snapshot.conditions:
            self._announce_waiting(snapshot)
        waiting = outcome.state in {State.PENDING, State.CHECKPOINTING, State.UPLOADING}
        return _LOOK_AGAIN_S if waiting or not is_told else standing.look_again_s

    def delete_bytes(self, key: Key) -> float | None:
        """Delete the bytes of a snapshot that goes, or whose save was lost; then let it go."""
        snapshot = self.cache.snapshots.store.get(*key)
        if snapshot is None or not (snapshot.metadata.is_deleting or _is_lost(snapshot)):
            return None
        kept = self._deletion.delete(snapshot)
        if kept is not None:
            if snapshot.metadata.is_deleting and kept.because:
                self._write(snapshot, Step(State.DELETING, kept.because), Standing())
            return kept.retry_s
        if snapshot.metadata.is_deleting:
            self._release(snapshot)
        return None

    def _trace(self, snapshot: Snapshot) -> bool:
        """Tell the spans of a save that has ended; the annotation says that they were taken.

        A kill in between tells them twice, with the same ids. Returns whether they were taken.
        """
        annotations = {TRACEPARENT_ANNOTATION: save_traceparent(snapshot)}
        if origin := self._late_origin(snapshot):
            annotations[POLICY_ORIGIN_ANNOTATION] = origin.to_annotation()
        if self.send_spans is not None:
            metadata = snapshot.metadata
            known = {**metadata.annotations, **annotations}
            traced = replace(snapshot, metadata=replace(metadata, annotations=known))
            if not self.send_spans(save_spans(traced)):
                return False
        patch = {
            "metadata": {
                "annotations": annotations,
                "resourceVersion": snapshot.metadata.resource_version,
                "uid": snapshot.metadata.uid,
            }
        }
        # Gone, or changed since: that change queued the key again.
        with contextlib.suppress(NotFound, Conflict):
            self.client.merge_patch(
                POD_SNAPSHOTS,
                snapshot.metadata.name,
                patch,
                namespace=snapshot.metadata.namespace,
                field_manager=CONTROLLER_MANAGER,
            )
        return True

    def _late_origin(self, snapshot: Snapshot) -> PolicyOrigin | None:
        """Return where the policy came from if that was not known when the snapshot was made.

        Then a node made it, or the tool had not written its status yet. A commit that came after
        the snapshot did not bring it.
        """
        policy = self.cache.policies.store.get(snapshot.metadata.namespace, snapshot.policy_name)
        if policy is None or snapshot.origin.applied_at:
            return None
        origin = PolicyOrigins(self.client).of(policy)
        if origin.revision == snapshot.git_revision:
            return origin
        applied_s = instant_s(origin.applied_at)
        created_s = instant_s(snapshot.metadata.creation_timestamp)
        came_before = 0 < applied_s <= created_s + _COARSE_S
        return origin if came_before and not snapshot.git_revision else None

    def _lift_quarantine(self, snapshot: Snapshot) -> None:
        """Forget what is known against a snapshot, then the wish, so that it can come again."""
        forget = {"status": {"podsnap": {"failures": None, "damage": None}}}
        granted = {"metadata": {"annotations": {QUARANTINE_ANNOTATION: None}}}
        try:
            for patch, subresource in ((forget, "status"), (granted, "")):
                self.client.merge_patch(
                    POD_SNAPSHOTS,
                    snapshot.metadata.name,
                    patch,
                    namespace=snapshot.metadata.namespace,
                    field_manager=CONTROLLER_MANAGER,
                    subresource=subresource,
                )
        except NotFound:
            return
        log.info("the quarantine of %s was lifted", snapshot.metadata)

    def _standing(self, snapshot: Snapshot) -> Standing:
        """Judge whether anybody wants what is stored, and whether any node can run it."""
        policy = self.cache.policies.store.get(snapshot.metadata.namespace, snapshot.policy_name)
        stored = snapshot.conditions.get(STORAGE_REPLICATED)
        is_stored = stored is not None and stored.is_true
        if policy is None or not is_stored or snapshot.metadata.is_deleting:
            return Standing()
        return standing_of(
            snapshot, policy, self.demands.of(policy), self.demands.classes(), self.clock.now()
        )

    def _facts(self, snapshot: Snapshot, standing: Standing) -> SnapshotFacts:
        policy = self.cache.policies.store.get(snapshot.metadata.namespace, snapshot.policy_name)
        capture = snapshot.capture
        pod_uid = capture.pod_uid if capture else snapshot.origin_pod_uid
        waiting_for = ""
        if policy is not None and capture is None:
            waiting_for = storage_usable(policy, self.cache.storage_of(policy)).message
        return SnapshotFacts(
            snapshot=snapshot,
            policy_exists=policy is not None and not policy.metadata.is_deleting,
            origin_alive=self.cache.pods.store.by_uid(pod_uid) is not None,
            agent_alive=self._agent_is_alive(capture.node if capture else snapshot.origin_node),
            waiting_for=waiting_for,
            superseded=standing.superseded,
            bytes_remain=capture is not None and capture.location is not None,
        )

    def _agent_is_alive(self, name: str) -> bool:
        """Whether the agent's sign of life changed lately, by our own clock alone."""
        node = self.cache.node(name)
        renewed_s = node.renewed_at_s if node else 0.0
        now_s = self.clock.monotonic_s()
        seen, seen_at_s = self._signs_of_life.get(name, (-1.0, now_s))
        if seen != renewed_s:
            seen_at_s = now_s
            self._signs_of_life[name] = (renewed_s, now_s)
        return now_s - seen_at_s < AGENT_LOST_S

    def _release(self, snapshot: Snapshot) -> None:
        remaining = [f for f in snapshot.metadata.finalizers if f != FINALIZER]
        if len(remaining) == len(snapshot.metadata.finalizers):
            return
        patch = {
            "metadata": {
                "finalizers": remaining,
                "resourceVersion": snapshot.metadata.resource_version,
                "uid": snapshot.metadata.uid,
            }
        }
        try:
            self.client.merge_patch(
                POD_SNAPSHOTS,
                snapshot.metadata.name,
                patch,
                namespace=snapshot.metadata.namespace,
                field_manager=CONTROLLER_MANAGER,
            )
        except (NotFound, Conflict):
            return  # gone already, or changed: the change queued the key again

    def _delete_object(self, snapshot: Snapshot) -> None:
        """Delete a snapshot that was never saved, if its policy is really gone.

        A cache may not show a policy yet that was created a moment before the snapshot; this cannot
        be taken back, so the API server is asked.
        """
        namespace = snapshot.metadata.namespace
        try:
            self.client.get(POD_SNAPSHOT_POLICIES, snapshot.policy_name, namespace=namespace)
        except NotFound:
            log.info("%s was never saved and its policy is gone", snapshot.metadata)
        else:
            return  # the policy's own event queues the key again
        try:
            self.client.delete(
                POD_SNAPSHOTS,
                snapshot.metadata.name,
                namespace=snapshot.metadata.namespace,
                uid=snapshot.metadata.uid,
                # It may be saved by now, and a view be old.
                resource_version=snapshot.metadata.resource_version,
            )
        except (NotFound, Conflict):
            return

    def _abandon(self, snapshot: Snapshot, outcome: Step, reason: str) -> None:
        """Take the save away from a node that is lost; its next apply gets a conflict."""
        lost = Failure(_LOST if snapshot.capture else reason, outcome.message)
        record = replace(snapshot.capture or CaptureRecord(node=_NOBODY), failure=lost)
        # Its bytes go once that is written.
        self._apply(
            snapshot,
            outcome,
            taken=record,
            control=self._control(snapshot, outcome, Standing()),
            conditions=capture_conditions(State.FAILED, f"{lost.reason}: {lost.message}"),
        )

    def _control(self, snapshot: Snapshot, outcome: Step, standing: Standing) -> ControlRecord:
        now = to_micro_time(self.clock.now())
        was_ready = any(e.state == State.AVAILABLE for e in snapshot.control.story)
        is_first = outcome.state is State.AVAILABLE and not was_ready
        return ControlRecord(
            extend_story(snapshot, outcome, now=now),
            unwanted_since=standing.unwanted_since,
            unrunnable_since=standing.unrunnable_since,
            ready_at=now if is_first else snapshot.control.ready_at,
        )

    def _write(self, snapshot: Snapshot, outcome: Step, standing: Standing) -> bool:
        """Write what was judged; a save that has ended is told. Returns whether nothing is left."""
        ready = ready_condition(outcome)
        control = self._control(snapshot, outcome, standing)
        same = ready.says_the_same_as(snapshot.conditions.get(READY))
        if same and control == snapshot.control:
            if not snapshot.traceparent and outcome.state in _ENDED:
                return self._trace(snapshot)  # what was judged stands, so the record is whole
            return True
        capture = snapshot.capture
        # What was once taken away must stand in every later apply, or it would be removed.
        if capture is not None and capture.failure is not None and _is_lost(snapshot):
            text = f"{capture.failure.reason}: {capture.failure.message}"
            self._apply(
                snapshot,
                outcome,
                taken=capture,
                control=control,
                conditions=capture_conditions(State.FAILED, text),
            )
            self.delete_soon(snapshot.metadata.key)
            return True
        self._apply(snapshot, outcome, taken=None, control=control, conditions=())
        return True

    def _apply(
        self,
        snapshot: Snapshot,
        outcome: Step,
        *,
        taken: CaptureRecord | None,
        control: ControlRecord,
        conditions: tuple[Condition, ...],
    ) -> None:
        """Write what was judged onto what was judged: a story that is told goes on."""
        podsnap: dict[str, Any] = {"version": RECORD_VERSION, "control": control.to_object()}
        if taken is not None:
            podsnap["capture"] = taken.to_object()
        version = {"resourceVersion": snapshot.metadata.resource_version}
        body = {
            "apiVersion": API_VERSION,
            "kind": "PodSnapshot",
            "metadata": {**snapshot.metadata.identity(), **version},
            "status": {
                "observedGeneration": snapshot.metadata.generation,
                "conditions": render_conditions(
                    [ready_condition(outcome), *conditions],
                    previous=snapshot.conditions,
                    now=to_time(self.clock.now()),
                ),
                "podsnap": podsnap,
            },
        }
        try:
            self.client.apply(
                POD_SNAPSHOTS,
                body,
                field_manager=CONTROLLER_MANAGER,
                subresource="status",
                force=True,
            )
        except (NotFound, Conflict):
            return  # gone, or changed since: that change queued the key again

    def _announce_waiting(self, snapshot: Snapshot) -> None:
        """Fill the saving node's conditions in for it, if nobody claimed the object meanwhile."""
        if not snapshot.awaits_workload:
            return  # any other save is claimed within milliseconds; do not race it
        body = {
            "apiVersion": API_VERSION,
            "kind": "PodSnapshot",
            "metadata": {
                "name": snapshot.metadata.name,
                "namespace": snapshot.metadata.namespace,
                "uid": snapshot.metadata.uid,
                "resourceVersion": snapshot.metadata.resource_version,
            },
            "status": {
                "conditions": render_conditions(
                    capture_conditions(State.PENDING, "nothing was saved yet"),
                    previous=snapshot.conditions,
                    now=to_time(self.clock.now()),
                )
            },
        }
        try:
            self.client.apply(
                POD_SNAPSHOTS, body, field_manager=CAPTURE_MANAGER, subresource="status"
            )
        except (NotFound, Conflict):
            return


def _is_lost(snapshot: Snapshot) -> bool:
    """Whether the controller took the save away from its node."""
    capture = snapshot.capture
    if capture is None or capture.failure is None:
        return False
    return capture.failure.reason == _LOST or capture.node == _NOBODY
