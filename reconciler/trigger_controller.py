# SPDX-License-Identifier: Apache-2.0
"""Manual triggers: judged once, then they follow their snapshot to its end."""

from dataclasses import dataclass
from typing import Any

from backends.clock import Clock
from backends.kube.client import (
    POD_SNAPSHOT_MANUAL_TRIGGERS,
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOTS,
    PODS,
    KubeClient,
)
from backends.kube.errors import Conflict, NotFound
from policies.capturing import TriggerInput, may_trigger, storage_usable
from policies.identity import manual_snapshot_name
from policies.new_snapshots import manual_snapshot
from policies.selection import governing_policy
from reconciler.cluster_cache import ClusterCache
from reconciler.controller import Key
from reconciler.policy_origin import PolicyOrigins
from schemas.conditions import Condition, render_conditions
from schemas.instants import to_micro_time, to_time
from schemas.names import API_VERSION, CONTROLLER_MANAGER, TRIGGERED
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.snapshot import Snapshot
from schemas.trigger import ManualTrigger
from statemachine.trigger import TriggerEffect, TriggerFacts, step

_STORAGE_LOOK_S = 10.0
# A snapshot that came and went between two lists was never seen, so no event tells of its end.
_OLD_VIEW_LOOK_S = 1.0


@dataclass(slots=True)
class TriggerController:
    """Reconciles PodSnapshotManualTriggers."""

    client: KubeClient
    cache: ClusterCache
    clock: Clock

    def reconcile(self, key: Key) -> float | None:
        """Bring one trigger one step further."""
        trigger = self.cache.triggers.store.get(*key)
        if trigger is None or trigger.metadata.is_deleting or trigger.is_answered:
            return None
        name = manual_snapshot_name(trigger.metadata.uid)
        pod = self.cache.pods.store.get(trigger.metadata.namespace, trigger.target_pod)
        policy = self.cache.policy_of(pod) if pod else None
        facts = self._facts(trigger, name, pod, policy)
        outcome = step(facts)
        if outcome.condition is not None and outcome.condition.reason == "Failed":
            # An answer is for good, and a cache may be a moment behind: ask the API server itself.
            pod, policy = self._live(trigger)
            facts = self._facts(
                trigger, name, pod, policy, snapshot=self._live_snapshot(trigger, name)
            )
            outcome = step(facts)
        created = facts.snapshot is not None or facts.was_created
        if TriggerEffect.CREATE_SNAPSHOT in outcome.effects and pod and policy:
            if self._was_created(trigger):
                return _OLD_VIEW_LOOK_S
            now = to_micro_time(self.clock.now())
            origin = PolicyOrigins(self.client).of(policy)
            body = manual_snapshot(name, pod, policy, by=trigger, now=now, origin=origin)
            self.client.create_once(POD_SNAPSHOTS, body, field_manager=CONTROLLER_MANAGER)
            created = True
        if outcome.condition is not None:
            self._write(trigger, outcome.condition, name if created else "")
        if facts.waiting_for:
            return _STORAGE_LOOK_S
        is_open = outcome.condition is not None and outcome.condition.reason == "Pending"
        is_seen = self.cache.snapshots.store.get(trigger.metadata.namespace, name) is not None
        return None if is_seen or not is_open else _OLD_VIEW_LOOK_S

    def _live(self, trigger: ManualTrigger) -> tuple[Pod | None, Policy | None]:
        namespace = trigger.metadata.namespace
        if not trigger.target_pod:
            return None, None
        try:
            pod = Pod.parse(self.client.get(PODS, trigger.target_pod, namespace=namespace))
        except NotFound:
            return None, None
        policies, _ = self.client.list(POD_SNAPSHOT_POLICIES, namespace=namespace)
        return pod, governing_policy(pod, map(Policy.parse, policies))

    def _was_created(self, trigger: ManualTrigger) -> bool:
        """Whether the trigger is gone, or has its snapshot, which a user may have deleted since."""
        try:
            namespace, name = trigger.metadata.key
            raw = self.client.get(POD_SNAPSHOT_MANUAL_TRIGGERS, name, namespace=namespace)
        except NotFound:
            return True
        live = ManualTrigger.parse(raw)
        return live.metadata.uid != trigger.metadata.uid or bool(live.snapshot_name)

    def _live_snapshot(self, trigger: ManualTrigger, name: str) -> Snapshot | None:
        try:
            namespace = trigger.metadata.namespace
            return Snapshot.parse(self.client.get(POD_SNAPSHOTS, name, namespace=namespace))
        except NotFound:
            return None

    def _facts(
        self,
        trigger: ManualTrigger,
        name: str,
        pod: Pod | None,
        policy: Policy | None,
        *,
        snapshot: Snapshot | None = None,
    ) -> TriggerFacts:
        snapshot = snapshot or self.cache.snapshots.store.get(trigger.metadata.namespace, name)
        refusal = self._other_open_trigger(trigger)
        waiting_for = ""
        if not refusal:
            node = self.cache.node(pod.node_name) if pod else None
            refusal = may_trigger(
                TriggerInput(
                    target=trigger.target_pod,
                    pod=pod,
                    policy=policy,
                    classes=self.cache.classes(),
                    node=node.compatibility if node else None,
                )
            ).refusal
        if not refusal and policy is not None:
            waiting_for = storage_usable(policy, self.cache.storage_of(policy)).message
        return TriggerFacts(
            trigger=trigger,
            snapshot=snapshot,
            was_created=bool(trigger.snapshot_name) and snapshot is None,
            refusal=refusal,
            waiting_for=waiting_for,
        )

    def _other_open_trigger(self, trigger: ManualTrigger) -> str:
        """One save at a time for a Pod: the older of two open triggers has it."""

        def age(t: ManualTrigger) -> tuple[bool, str, str]:
            return (not t.snapshot_name, t.metadata.creation_timestamp, t.metadata.uid)

        for other in self.cache.triggers.store.items():
            if (
                other.metadata.uid != trigger.metadata.uid
                and other.metadata.namespace == trigger.metadata.namespace
                and other.target_pod == trigger.target_pod
                and not other.is_answered
                and not other.metadata.is_deleting
                and age(other) < age(trigger)
            ):
                return (
                    f"Another PodSnapshotManualTrigger {other.metadata.name} is already targeting "
                    f"Pod {trigger.target_pod} and is not yet completed; wait for it and create "
                    "a new trigger"
                )
        return ""

    def _write(self, trigger: ManualTrigger, condition: Condition, snapshot_name: str) -> None:
        unchanged = condition.says_the_same_as(trigger.conditions.get(TRIGGERED))
        if unchanged and snapshot_name == trigger.snapshot_name:
            return
        status: dict[str, Any] = {
            "conditions": render_conditions(
                [condition], previous=trigger.conditions, now=to_time(self.clock.now())
            ),
            "observedGeneration": trigger.metadata.generation,
        }
        if snapshot_name:
            status["snapshotCreated"] = {"name": snapshot_name}
        body = {
            "apiVersion": API_VERSION,
            "kind": "PodSnapshotManualTrigger",
            "metadata": trigger.metadata.identity(),
            "status": status,
        }
        try:
            self.client.apply(
                POD_SNAPSHOT_MANUAL_TRIGGERS,
                body,
                field_manager=CONTROLLER_MANAGER,
                subresource="status",
                force=True,
            )
        except (NotFound, Conflict):
            return  # deleted meanwhile; nobody waits for the answer
