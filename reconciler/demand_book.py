# SPDX-License-Identifier: Apache-2.0
"""What each policy's Pods and templates ask for, gathered once a change and read by all.

Thousands of snapshots are judged by the same few specs and kinds of nodes, so a judgement must not
go through all Pods. A policy's demand is gathered under a lock, from the caches as they are by
then, so a later gathering is never replaced by an earlier one.
"""

import threading
from typing import Final

from backends.clock import Clock
from policies.obsolescence import Demand, NodeClass, demand, node_classes
from reconciler.cluster_cache import ClusterCache
from reconciler.controller import Key
from schemas.policy import Policy

# Signs of life change all the time, and are compared with a day.
_CLASSES_KEPT_S: Final = 60.0
_NEVER_S: Final = float("-inf")


class DemandBook:
    """Demand by policy, and the kinds of nodes."""

    def __init__(self, cache: ClusterCache, clock: Clock) -> None:
        """Everything is gathered when it is first asked for."""
        self._cache = cache
        self._clock = clock
        self._lock = threading.Lock()
        self._demands: dict[Key, Demand] = {}
        self._classes: list[NodeClass] = []
        self._classes_until_s = _NEVER_S

    def of(self, policy: Policy) -> Demand:
        """Return what a policy's Pods and templates ask for."""
        with self._lock:
            found = self._demands.get(policy.metadata.key)
            return self._gather(policy) if found is None else found

    def refresh(self, key: Key) -> bool:
        """Gather a policy's demand anew; returns whether it is another than was told before."""
        policy = self._cache.policies.store.get(*key)
        with self._lock:
            before = self._demands.pop(key, None)
            if policy is None:
                return False
            return self._gather(policy) != before and before is not None

    def classes(self) -> list[NodeClass]:
        """Return the kinds of nodes; a sign of life may be a minute old."""
        with self._lock:
            now_s = self._clock.monotonic_s()
            if now_s >= self._classes_until_s:
                self._classes = node_classes(self._cache.leases.store.items())
                self._classes_until_s = now_s + _CLASSES_KEPT_S
            return self._classes

    def forget_classes(self) -> None:
        """Gather the kinds of nodes anew when they are asked for next."""
        with self._lock:
            self._classes_until_s = _NEVER_S

    def _gather(self, policy: Policy) -> Demand:
        found = demand(policy, self._cache.pods.store.items(), self._cache.templates())
        self._demands[policy.metadata.key] = found
        return found
