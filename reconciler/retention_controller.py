# SPDX-License-Identifier: Apache-2.0
"""Retention: deletes what a policy no longer keeps, and says why on the PodSnapshot.

A deletion cannot be taken back, so what a cache says is not enough: the policy and all of its
snapshots are read live and judged again, each deletion names the version that was judged (a restore
that came in between saves the snapshot), and nothing is deleted for a while after the clock jumped.
"""

import logging
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from backends.clock import Clock
from backends.kube.client import POD_SNAPSHOT_POLICIES, POD_SNAPSHOTS, PODS, KubeClient
from backends.kube.errors import ApiError, Conflict, NotFound
from backends.kube.events import EventRecorder
from policies.obsolescence import pins
from policies.retention import Doomed, doomed, schedule
from reconciler.cluster_cache import ClusterCache
from reconciler.controller import Key
from reconciler.demand_book import DemandBook
from reconciler.metrics import ControllerMetrics
from schemas.names import API_VERSION
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.snapshot import Snapshot

log = logging.getLogger(__name__)

DELETED_REASON: Final = "RetentionDeleted"
_RETRY_S: Final = 1.0
# The wall clock may be set forward meanwhile, which no timer sees.
_LOOK_AGAIN_S: Final = 3600.0
_JUMP_S: Final = 60.0
# Long enough for a wrong clock to be set right; a machine that slept loses nothing by it.
_AFTER_JUMP_S: Final = 600.0


@dataclass(slots=True)
class RetentionController:
    """Reconciles what each PodSnapshotPolicy keeps."""

    client: KubeClient
    cache: ClusterCache
    clock: Clock
    demands: DemandBook
    events: EventRecorder
    metrics: ControllerMetrics
    _offset_s: float | None = None
    _unsteady_until_s: float = field(default=0.0)

    def reconcile(self, key: Key) -> float | None:
        """Delete what is due under one policy."""
        policy = self.cache.policies.store.get(*key)
        if policy is None or policy.metadata.is_deleting:
            return None
        now = self.clock.now()
        held_s = self._held_s(now)
        plan = schedule(policy, self.cache.snapshots.store.items(), self.demands.of(policy).pins)
        if not plan:
            return None
        if plan[0].due_at > now:
            return min((plan[0].due_at - now).total_seconds(), _LOOK_AGAIN_S)
        if held_s > 0:
            log.warning("the clock jumped; nothing is deleted for %.0f s", held_s)
            return held_s
        return self._sweep(key, now)

    def _sweep(self, key: Key, now: datetime) -> float | None:
        """Judge again by what is live, and delete."""
        namespace, name = key
        try:
            live = self.client.get(POD_SNAPSHOT_POLICIES, name, namespace=namespace)
        except NotFound:
            return None  # its snapshots became obsolete, and no limit holds any more
        policy = Policy.parse(live)
        items, _ = self.client.list(
            POD_SNAPSHOTS, namespace=namespace, field_selector=f"spec.policyName={name}"
        )
        if policy.metadata.is_deleting or not doomed(policy, map(Snapshot.parse, items), now):
            return _RETRY_S
        pods, _ = self.client.list(PODS, namespace=namespace)
        pinned = pins(policy, map(Pod.parse, pods), self.cache.templates())
        due = doomed(policy, map(Snapshot.parse, items), now, pinned)
        log.info("%d snapshots of policy %s are due", len(due), policy.metadata)
        refused = [error for error in map(self._delete, due) if error is not None]
        if refused:
            raise refused[0]
        return _RETRY_S  # the cache follows; what changed meanwhile is judged anew

    def _delete(self, found: Doomed) -> ApiError | None:
        """Delete one; what the API server answers to it must not keep the others."""
        metadata = found.snapshot.metadata
        try:
            self.client.delete(
                POD_SNAPSHOTS,
                metadata.name,
                namespace=metadata.namespace,
                uid=metadata.uid,
                resource_version=metadata.resource_version,
            )
        except (NotFound, Conflict):
            return None  # gone, or used: the next look tells
        except ApiError as error:
            return error
        self.metrics.retention_deletions.inc()
        log.info("%s is deleted by retention: %s", metadata, found.reason)
        about = {"apiVersion": API_VERSION, "kind": "PodSnapshot", **metadata.identity()}
        self.events.emit(about, "Normal", DELETED_REASON, f"deleted by retention: {found.reason}")
        return None

    def _held_s(self, now: datetime) -> float:
        """Return for how long a jump of the clock still forbids to delete, in seconds."""
        monotonic_s = self.clock.monotonic_s()
        offset_s = now.timestamp() - monotonic_s
        if self._offset_s is not None and abs(offset_s - self._offset_s) > _JUMP_S:
            self._unsteady_until_s = monotonic_s + _AFTER_JUMP_S
        self._offset_s = offset_s
        return self._unsteady_until_s - monotonic_s
