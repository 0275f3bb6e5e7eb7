# SPDX-License-Identifier: Apache-2.0
"""The controller process: caches, controllers, leadership, and which change wakes which key.

Every replica fills its caches; only the leader works. Losing the lease ends the process: starting
anew is the one way back that is exercised every day.
"""

import functools
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.clock import Clock
from backends.kube.client import KubeClient
from backends.kube.events import EventRecorder
from backends.kube.lease import LeaderElection
from backends.objects.factory import BucketAccess, open_store
from backends.objects.interface import ObjectStore
from backends.objects.workload_identity import NO_IDENTITY, WorkloadIdentity
from policies.identity import manual_snapshot_name
from policies.obsolescence import SILENT_S, Template
from policies.selection import selecting_policies
from policies.sweeping import DEFAULT_GRACE_S
from reconciler.bucket_sweep import BucketSweep
from reconciler.cluster_cache import ClusterCache
from reconciler.cluster_id import LEASE_NAME
from reconciler.cluster_region import ClusterRegion
from reconciler.controller import Controller, Key
from reconciler.demand_book import DemandBook
from reconciler.git_source_controller import GitSourceController
from reconciler.metrics import ClusterGauges, ControllerMetrics
from reconciler.policy_controller import PolicyController
from reconciler.retention_controller import RetentionController
from reconciler.snapshot_controller import SnapshotController
from reconciler.storage_controller import StorageController
from reconciler.token_request_controller import Mint, TokenRequestController
from reconciler.trigger_controller import TriggerController
from schemas.names import (
    CLUSTER_ID_ANNOTATION,
    CONTROLLER_MANAGER,
    READY,
    SYSTEM_NAMESPACE,
    TRIGGERED_BY_LABEL,
)
from schemas.node_facts import NodeFacts
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.snapshot import Snapshot
from schemas.span import Span
from schemas.storage_config import Location, StorageConfig
from schemas.trigger import ManualTrigger

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ManagerSettings:
    """What a controller process is told."""

    cluster_id: str
    buckets: BucketAccess
    identity: str
    namespace: str = SYSTEM_NAMESPACE
    region: str = ""
    sweep_grace_s: float = DEFAULT_GRACE_S
    workload_identity: WorkloadIdentity = NO_IDENTITY


class Manager:
    """All controllers of one process."""

    def __init__(self, settings: ManagerSettings, client: KubeClient, clock: Clock) -> None:
        """Wire everything; nothing runs before ``start``."""
        self.cache = ClusterCache(client)
        self.metrics = ControllerMetrics()
        self.metrics.registry.register(ClusterGauges(self.cache, clock))
        self.lost_leadership = threading.Event()
        self._clock = clock
        self._buckets = settings.buckets
        self._demands = DemandBook(self.cache, clock)
        self._events = EventRecorder(
            client, component=CONTROLLER_MANAGER, instance=settings.identity, clock=clock
        )
        triggers = TriggerController(client, self.cache, clock)
        snapshots = SnapshotController(
            client, self.cache, clock, self._store, self._demands, self._events
        )
        self._snapshot_controller = snapshots
        policies = PolicyController(client, self.cache, clock)
        sweep = BucketSweep(
            client,
            self.cache,
            clock,
            settings.cluster_id,
            self._store,
            settings.sweep_grace_s,
        )
        storage = StorageController(
            client,
            self.cache,
            clock,
            settings.cluster_id,
            self._store,
            self._pod_side_store,
            ClusterRegion(client, self._nodes, settings.region).get,
            self._pod_identity,
            sweep.stopped,
        )
        sources = GitSourceController(client, self.cache, clock, self._events)
        retention = RetentionController(
            client, self.cache, clock, self._demands, self._events, self.metrics
        )
        self._triggers = self._controller("trigger", triggers.reconcile, threads=2)
        self._snapshots = self._controller("snapshot", snapshots.reconcile, threads=2)
        # Each may wait minutes for a bucket that does not answer.
        self._deletions = self._controller("deletion", snapshots.delete_bytes, threads=4)
        snapshots.delete_soon = self._deletions.queue.add
        self._policies = self._controller("policy", policies.reconcile)
        # One bucket that is long, or does not answer, holds up no other.
        self._storage = self._controller("storage", storage.reconcile, threads=4)
        self._sweeps = self._controller("sweep", sweep.reconcile, threads=2)
        # One repository that does not answer holds up no other.
        self._sources = self._controller("gitsource", sources.reconcile, threads=4)
        self._retention = self._controller("retention", retention.reconcile)
        tokens = self._token_requests = TokenRequestController(
            client, self.cache, clock, settings.workload_identity, self._mint(settings)
        )
        # Each waits for answers from outside of the cluster.
        self._tokens = self._controller("tokenrequest", tokens.reconcile, threads=4)
        self._sightings = self._controller("sighting", tokens.look_at_save)
        self._demand = self._controller("demand", self._look_at_demand)
        self._controllers = (
            self._triggers,
            self._snapshots,
            self._deletions,
            self._policies,
            self._storage,
            self._sweeps,
            self._sources,
            self._retention,
            self._tokens,
            self._sightings,
            self._demand,
        )
        self._wire()
        self._election = LeaderElection(
            client,
            namespace=settings.namespace,
            name=LEASE_NAME,
            identity=settings.identity,
            on_started=self._lead,
            on_stopped=self._stop_leading,
            clock=clock,
            annotations={CLUSTER_ID_ANNOTATION: settings.cluster_id},
        )
        leading = self.metrics.leading.labels(name=LEASE_NAME)
        leading.set_function(lambda: self._election.is_leader)

    def start(self) -> None:
        """Fill the caches and stand for election."""
        self.cache.start()
        self._events.start()
        self._election.start()

    def stop(self) -> None:
        """Give the lease back and end."""
        for controller in self._controllers:
            controller.stop()
        self._election.stop()
        self._events.stop()
        self.cache.stop()

    def export_spans(self, send: Callable[[Sequence[Span]], bool]) -> None:
        """Tell the traces of saves to somebody, from now on."""
        self._snapshot_controller.send_spans = send

    def is_ready(self) -> bool:
        """Whether this replica could lead now."""
        return self.cache.is_synced()

    @property
    def is_leader(self) -> bool:
        """Whether this replica leads."""
        return self._election.is_leader

    def _lead(self) -> None:
        while not self.cache.is_synced():
            if self._clock.wait(self.lost_leadership, 0.05):
                return
        log.info("leading; all caches are filled")
        for controller in self._controllers:
            controller.start()

    def _stop_leading(self) -> None:
        log.warning("the lease was lost")
        self.lost_leadership.set()

    def _controller(
        self, name: str, handle: Callable[[Any], float | None], *, threads: int = 1
    ) -> Controller:
        return Controller(name, handle, self._clock, self.metrics, threads=threads)

    def _store(self, location: Location) -> ObjectStore:
        return open_store(location.bucket, self._buckets)

    def _nodes(self) -> list[str]:
        known = sorted(self.cache.leases.store.items(), key=lambda n: -n.renewed_at_s)
        return [n.node for n in known]

    def _pod_side_store(self, config: StorageConfig) -> ObjectStore | None:
        """Open a bucket as a Pod's identity, if there is a Pod; a directory knows but one."""
        if config.location is None or self._buckets.root is not None:
            return self._store(config.location) if config.location else None
        tokens = self._token_requests.pod_side_tokens(config)
        if tokens is None:
            return None
        return open_store(config.location.bucket, self._buckets, tokens=tokens)

    def _pod_identity(self, config: StorageConfig) -> str:
        return self._token_requests.pod_identity(config)

    def _mint(self, settings: ManagerSettings) -> Callable[[], Mint]:
        @functools.cache
        def mint() -> Mint:
            # 250 ms that a cluster without Cloud Storage need not pay
            from backends.objects.gcs.credentials import TokenExchange

            return TokenExchange(settings.workload_identity, self._clock)

        return mint

    # -- which change wakes which key

    def _wire(self) -> None:
        cache = self.cache
        cache.pods.on_change = self._pod_changed
        cache.snapshots.on_change = self._snapshot_changed
        cache.policies.on_change = self._policy_changed
        cache.triggers.on_change = _queue_into(self._triggers)
        cache.storage_configs.on_change = self._storage_changed
        cache.git_sources.on_change = _queue_into(self._sources)
        cache.token_requests.on_change = _queue_into(self._tokens)
        cache.leases.on_change = self._node_changed
        for workload in cache.workloads:
            workload.on_change = self._template_changed

    def _look_at_demand(self, key: Key) -> None:
        if self._demands.refresh(key):
            self._retention.queue.add(key)
            self._queue_snapshots_of(key)

    def _queue_snapshots_of(self, policy: Key) -> None:
        for snapshot in self.cache.snapshots.store.items():
            if (snapshot.metadata.namespace, snapshot.policy_name) == policy:
                self._snapshots.queue.add(snapshot.metadata.key)

    def _queue_demand(self, namespace: str, labels: Mapping[str, str]) -> None:
        for policy in self.cache.policies.store.items():
            if policy.metadata.namespace == namespace and policy.selector.matches(labels):
                self._demand.queue.add(policy.metadata.key)

    def _template_changed(self, old: Template | None, new: Template | None) -> None:
        for template in filter(None, (old, new)):
            if _asks_for(old) != _asks_for(new):
                self._queue_demand(template.metadata.namespace, template.labels)

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        if _asks_for(old) != _asks_for(new):
            for pod in filter(None, (old, new)):
                self._queue_demand(pod.metadata.namespace, pod.metadata.labels)
        if old is None or new is None or _concerns_policies(old, new):
            policies = self.cache.policies.store.items()
            for pod in filter(None, (old, new)):
                for policy in selecting_policies(pod, policies):
                    self._policies.queue.add(policy.metadata.key)
        if old is not None and (new is None or new.metadata.uid != old.metadata.uid):
            for snapshot in self.cache.snapshots.store.items():
                if snapshot.origin_pod_uid == old.metadata.uid:
                    self._snapshots.queue.add(snapshot.metadata.key)

    def _snapshot_changed(self, old: Snapshot | None, new: Snapshot | None) -> None:
        snapshot = new or old
        if snapshot is None:
            return
        self._snapshots.queue.add(snapshot.metadata.key)
        # Where buckets are directories nobody asks as whom.
        if self._buckets.root is None and _claim(new) not in {None, _claim(old)}:
            self._sightings.queue.add(snapshot.metadata.key)
        if TRIGGERED_BY_LABEL in snapshot.metadata.labels:
            for trigger in self._open_triggers(snapshot.metadata.namespace):
                if manual_snapshot_name(trigger.metadata.uid) == snapshot.metadata.name:
                    self._triggers.queue.add(trigger.metadata.key)
        if old is None or new is None or old.conditions.get(READY) != new.conditions.get(READY):
            self._retention.queue.add((snapshot.metadata.namespace, snapshot.policy_name))
        if new is None or (new.is_spent and not (old is not None and old.is_spent)):
            self._policies.queue.add((snapshot.metadata.namespace, snapshot.policy_name))

    def _policy_changed(self, old: Policy | None, new: Policy | None) -> None:
        policy = new or old
        if policy is None:
            return
        self._policies.queue.add(policy.metadata.key)
        if old is None or new is None or _is_news(old, new):
            self._demand.queue.add(policy.metadata.key)
            self._retention.queue.add(policy.metadata.key)
        if (
            old is None
            or new is None
            or old.metadata.generation != new.metadata.generation
            or old.metadata.is_deleting != new.metadata.is_deleting
        ):
            for other in self.cache.policies.store.items():
                if other.metadata.namespace == policy.metadata.namespace:
                    self._policies.queue.add(other.metadata.key)  # one Pod may have several
            self._queue_snapshots_of(policy.metadata.key)

    def _storage_changed(self, old: StorageConfig | None, new: StorageConfig | None) -> None:
        config = new or old
        if config is None:
            return
        if old is not None and new is not None and _is_same_storage(old, new):
            return
        if old is None or new is None or _is_news(old, new):
            self._storage.queue.add(config.metadata.key)
            self._sweeps.queue.add(config.metadata.key)
        for policy in self.cache.policies.store.items():
            if policy.storage_config_name == config.metadata.name:
                self._policies.queue.add(policy.metadata.key)
        for snapshot in self.cache.snapshots.store.items():
            if snapshot.capture is None:
                self._snapshots.queue.add(snapshot.metadata.key)
        for trigger in self._open_triggers():
            self._triggers.queue.add(trigger.metadata.key)

    def _node_changed(self, old: NodeFacts | None, new: NodeFacts | None) -> None:
        before, after = (n.compatibility if n else None for n in (old, new))
        if old and new and new.renewed_at_s - old.renewed_at_s >= SILENT_S:
            before = None  # it is as good as new
        if before == after:
            return  # a sign of life
        if after is not None:
            for policy in self.cache.policies.store.items():
                self._policies.queue.add(policy.metadata.key)
        names = {n.node for n in (old, new) if n}
        now_s = self._clock.now().timestamp()
        others = [
            n
            for n in self.cache.leases.store.items()
            # The Lease of a node that is gone stays.
            if n.node not in names and now_s - n.renewed_at_s < SILENT_S
        ]
        for kind in filter(None, (before, after)):
            if not any(other.compatibility == kind for other in others):
                self._demands.forget_classes()
                for snapshot in self.cache.snapshots.store.items():
                    self._snapshots.queue.add(snapshot.metadata.key)

    def _open_triggers(self, namespace: str | None = None) -> Iterable[ManualTrigger]:
        return (
            t
            for t in self.cache.triggers.store.items()
            if not t.is_answered and namespace in {None, t.metadata.namespace}
        )


def _queue_into(controller: Controller) -> Callable[[Any, Any], None]:
    def changed(old: Any, new: Any) -> None:  # noqa: ANN401 - whatever the reflector holds
        found = new or old
        # An answer written by us needs no other look.
        if found is not None and (old is None or new is None or _is_news(old, new)):
            controller.queue.add(found.metadata.key)

    return changed


def _is_news(old: Any, new: Any) -> bool:  # noqa: ANN401 - two values of one kind
    return bool(
        old.metadata.generation != new.metadata.generation
        or old.metadata.is_deleting != new.metadata.is_deleting
        or old.metadata.annotations != new.metadata.annotations
    )


def _asks_for(asker: Pod | Template | None) -> tuple[object, ...]:
    """Return what a Pod or a template asks of snapshots; equal if a change is no news to them."""
    match asker:
        case Pod():
            return (asker.metadata.labels, asker.pinned_snapshot, asker.is_over, asker.spec)
        case Template():
            return (asker.labels, asker.pin, asker.counts, asker.identity, asker.claims)
        case _:
            return ()


def _concerns_policies(old: Pod, new: Pod) -> bool:
    """Whether a policy may judge a Pod anew, or tell something else of it."""
    return (
        (old.metadata.uid, old.metadata.labels, old.metadata.is_deleting, old.is_over)
        != (new.metadata.uid, new.metadata.labels, new.metadata.is_deleting, new.is_over)
        or old.node_name != new.node_name
        or old.ready_since != new.ready_since
    )


def _claim(snapshot: Snapshot | None) -> tuple[str, str] | None:
    capture = snapshot.capture if snapshot else None
    return (capture.node, capture.pod_uid) if capture else None


def _is_same_storage(old: StorageConfig, new: StorageConfig) -> bool:
    return not _is_news(old, new) and _verdicts(old) == _verdicts(new)


def _verdicts(config: StorageConfig) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status, c.reason) for c in config.conditions.values()}


def default_identity() -> str:
    """Return a name for this replica, unique among live ones."""
    return f"{os.uname().nodename}_{os.getpid()}"
