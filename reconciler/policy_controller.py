# SPDX-License-Identifier: Apache-2.0
"""Policies: their own ``Ready``, and the PodSnapshots that wait for workloads to save themselves.

For every governed Pod of a ``workload`` policy there is one PodSnapshot of its identity, from the
Pod's start (contract, section 12, 12). Ten equal replicas share one object; which of them saves is
settled at the claim.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from backends.clock import Clock
from backends.kube.client import POD_SNAPSHOT_POLICIES, POD_SNAPSHOTS, KubeClient, Resource
from backends.kube.errors import Conflict, NotFound
from policies.capturing import restorable, storage_usable
from policies.distill import distill
from policies.identity import automatic_identity, automatic_snapshot_name
from policies.new_snapshots import automatic_snapshot
from policies.selection import group_labels
from reconciler.cluster_cache import ClusterCache
from reconciler.controller import Key
from schemas.conditions import Condition, render_conditions
from schemas.instants import to_micro_time, to_time
from schemas.metadata import Metadata
from schemas.names import API_VERSION, CONTROLLER_MANAGER, READY
from schemas.pod import Pod
from schemas.policy import Policy, TriggerType
from schemas.snapshot import Snapshot

_GENERATIONS: Final = 100
_NODE_FACTS_RETRY_S: Final = 2.0


@dataclass(slots=True)
class PolicyController:
    """Reconciles PodSnapshotPolicies."""

    client: KubeClient
    cache: ClusterCache
    clock: Clock

    def reconcile(self, key: Key) -> float | None:
        """Write the policy's condition and create what its Pods need."""
        policy = self.cache.policies.store.get(*key)
        if policy is None or policy.metadata.is_deleting:
            return None
        self._write(policy, self._condition(policy))
        if policy.trigger_type is not TriggerType.WORKLOAD:
            return None
        if policy.snapshot_scope != "whole-pod" or policy.post_checkpoint != "resume":
            return None
        unknown_node = False
        for pod in self.cache.pods.store.items():
            if not self._should_wait_for(pod, policy):
                continue
            node = self.cache.node(pod.node_name)
            if node is None:
                unknown_node = True
                continue
            identity = automatic_identity(
                policy, distill(pod), group_labels(pod.metadata.labels, policy), node.compatibility
            )
            self._ensure(pod, policy, identity)
        return _NODE_FACTS_RETRY_S if unknown_node else None

    def _should_wait_for(self, pod: Pod, policy: Policy) -> bool:
        return (
            pod.metadata.namespace == policy.metadata.namespace
            and bool(pod.node_name)
            and not pod.metadata.is_deleting
            and not pod.is_over
            and pod.runtime_class in self.cache.gvisor_classes()
            and self.cache.policy_of(pod) == policy
            and restorable(pod).usable
        )

    def _ensure(self, pod: Pod, policy: Policy, identity: str) -> None:
        """Create the identity's snapshot, unless one waits or is usable.

        A failed one is terminal by contract, so the next generation takes over.
        """
        namespace = policy.metadata.namespace
        for generation in range(_GENERATIONS):
            name = automatic_snapshot_name(identity, generation)
            present = self.cache.snapshots.store.get(namespace, name)
            if present is None:
                now = to_micro_time(self.clock.now())
                body = automatic_snapshot(name, pod, policy, identity=identity, now=now)
                self.client.create_once(POD_SNAPSHOTS, body, field_manager=CONTROLLER_MANAGER)
                return
            if not _is_spent(present):
                return

    def _condition(self, policy: Policy) -> Condition:
        generation = policy.metadata.generation
        unsupported = _unsupported(policy)
        if unsupported:
            return Condition(
                READY, "False", "Unsupported", unsupported, observed_generation=generation
            )
        storage = storage_usable(policy, self.cache.storage_of(policy))
        if not storage.usable:
            return Condition(
                READY,
                "False",
                storage.findings[0].reason,
                f"saves and restores wait: {storage.message}",
                observed_generation=generation,
            )
        return Condition(
            READY,
            "True",
            "Ready",
            "Pods that it selects are saved and restored",
            observed_generation=generation,
        )

    def _write(self, policy: Policy, condition: Condition) -> None:
        write_ready(
            self.client,
            POD_SNAPSHOT_POLICIES,
            policy.metadata,
            condition,
            previous=policy.conditions,
            clock=self.clock,
        )


def write_ready(
    client: KubeClient,
    resource: Resource,
    metadata: Metadata,
    condition: Condition,
    *,
    previous: Mapping[str, Condition],
    clock: Clock,
) -> None:
    """Apply a kind's single ``Ready`` condition, if it changed."""
    before = previous.get(condition.type)
    if condition.says_the_same_as(before) and (
        before is not None and before.observed_generation == condition.observed_generation
    ):
        return
    body = {
        "apiVersion": API_VERSION,
        "kind": resource.kind,
        "metadata": metadata.identity(),
        "status": {
            "conditions": render_conditions(
                [condition], previous=previous, now=to_time(clock.now())
            ),
            "observedGeneration": metadata.generation,
        },
    }
    try:
        client.apply(
            resource, body, field_manager=CONTROLLER_MANAGER, subresource="status", force=True
        )
    except (NotFound, Conflict):
        return  # deleted meanwhile


def _is_spent(snapshot: Snapshot) -> bool:
    failed = snapshot.capture is not None and snapshot.capture.failure is not None
    return failed or bool(snapshot.damage) or snapshot.metadata.is_deleting


def _unsupported(policy: Policy) -> str:
    if policy.trigger_type not in {TriggerType.MANUAL, TriggerType.WORKLOAD}:
        return (
            f"triggerConfig.type {policy.trigger_type} is accepted but not acted on by this "
            "version; use workload or manual"
        )
    if policy.snapshot_scope != "whole-pod":
        return f"snapshotScope {policy.snapshot_scope} is not acted on by this version"
    if policy.post_checkpoint != "resume":
        return f"postCheckpoint {policy.post_checkpoint} is not acted on by this version"
    return ""
