# SPDX-License-Identifier: Apache-2.0
"""Policies: their own ``Ready``, and the PodSnapshots of saves that nobody asks for by hand.

For every governed Pod of a ``workload`` policy there is one PodSnapshot of its identity, from the
Pod's start (contract, section 12, 12). Ten equal replicas share one object; which of them saves is
settled at the claim. A ``readinessProbe`` policy's is created when one of them becomes Ready, for
that Pod alone; its derived name lets the ten make one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from backends.clock import Clock
from backends.kube.client import POD_SNAPSHOT_POLICIES, POD_SNAPSHOTS, KubeClient, Resource
from backends.kube.errors import Conflict, NotFound
from policies.capturing import may_save, storage_usable, unsupported
from policies.distill import distill
from policies.identity import automatic_identity, automatic_snapshot_name
from policies.matching import Candidate
from policies.new_snapshots import automatic_snapshot
from policies.policy_review import PolicyFacts, review
from policies.ready_saves import ReadyInput, became_ready_lately, due_when_ready
from policies.selection import group_labels
from reconciler.cluster_cache import ClusterCache
from reconciler.controller import Key
from reconciler.policy_origin import PolicyOrigins
from schemas.conditions import Condition, render_conditions
from schemas.instants import to_micro_time, to_time
from schemas.metadata import Metadata
from schemas.names import API_VERSION, CONTROLLER_MANAGER
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
        if unsupported(policy):
            return None
        match policy.trigger_type:
            case TriggerType.WORKLOAD:
                take = self._await_workload
            case TriggerType.READINESS_PROBE:
                take = self._save_if_due
            case _:
                return None
        unknown_node = False
        for pod in self.cache.pods.store.items():
            if not self._is_ours(pod, policy):
                continue
            node = self.cache.node(pod.node_name)
            if node is None:
                unknown_node = True
            elif may_save(pod, policy, node.compatibility).usable:
                take(Candidate(pod, policy, distill(pod, policy), node.compatibility))
        return _NODE_FACTS_RETRY_S if unknown_node else None

    def _is_ours(self, pod: Pod, policy: Policy) -> bool:
        return (
            pod.metadata.namespace == policy.metadata.namespace
            and bool(pod.node_name)
            and not pod.metadata.is_deleting
            and not pod.is_over
            and pod.runtime_class in self.cache.gvisor_classes()
            and self.cache.policy_of(pod) == policy
        )

    def _await_workload(self, candidate: Candidate) -> None:
        """Create the identity's snapshot, unless one waits or is usable."""
        identity = _identity(candidate)
        name, present = self._newest_generation(candidate.policy, identity)
        if present is None:
            self._create(name, candidate, identity)

    def _save_if_due(self, candidate: Candidate) -> None:
        """Create the snapshot of a Pod that became Ready, if one is due and could be stored."""
        pod, policy, now = candidate.pod, candidate.policy, self.clock.now()
        if not became_ready_lately(pod, policy, now):
            return  # most Pods, so it comes before what costs more
        if not storage_usable(policy, self.cache.storage_of(policy)).usable:
            return  # a Pod that serves is not paused by a save that waited; storage wakes us
        identity = _identity(candidate)
        snapshots = self.cache.snapshots.store.items()
        if not due_when_ready(ReadyInput(candidate, identity, snapshots, now)).usable:
            return
        name, present = self._newest_generation(policy, identity)
        if present is None:
            self._create(name, candidate, identity)

    def _newest_generation(self, policy: Policy, identity: str) -> tuple[str, Snapshot | None]:
        """Return the first name that is free, or that of a snapshot which is not spent.

        A failed one is terminal by contract, so the next generation takes over.
        """
        for generation in range(_GENERATIONS):
            name = automatic_snapshot_name(identity, generation)
            present = self.cache.snapshots.store.get(policy.metadata.namespace, name)
            if present is None or not (present.is_spent or present.metadata.is_deleting):
                break
        return name, present

    def _create(self, name: str, candidate: Candidate, identity: str) -> None:
        pod, policy = candidate.pod, candidate.policy
        now = to_micro_time(self.clock.now())
        origin = PolicyOrigins(self.client).of(policy)
        body = automatic_snapshot(name, pod, policy, identity=identity, now=now, origin=origin)
        self.client.create_once(POD_SNAPSHOTS, body, field_manager=CONTROLLER_MANAGER)

    def _condition(self, policy: Policy) -> Condition:
        namespace = policy.metadata.namespace
        return review(
            PolicyFacts(
                policy=policy,
                storage=self.cache.storage_of(policy),
                pods=[
                    p for p in self.cache.pods.store.items() if p.metadata.namespace == namespace
                ],
                policies=[
                    p
                    for p in self.cache.policies.store.items()
                    if p.metadata.namespace == namespace
                ],
                snapshots=self.cache.snapshots.store.items(),
                gvisor_classes=self.cache.gvisor_classes(),
                nodes=self.cache.compatibilities(),
            )
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


def _identity(candidate: Candidate) -> str:
    policy = candidate.policy
    group = group_labels(candidate.pod.metadata.labels, policy)
    return automatic_identity(policy, candidate.identity, group, candidate.node)
