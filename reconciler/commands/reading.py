# SPDX-License-Identifier: Apache-2.0
"""What explanations are made of, read from the API server as typed values.

Each method asks at once and returns what will be the answer, so that a command asks for all that it
needs before it waits for any of it.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from backends.kube.client import (
    EVENTS,
    LEASES,
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    POD_SNAPSHOTS,
    PODS,
    RUNTIME_CLASSES,
    Resource,
)
from policies.explanation import Told
from reconciler.commands.connection import Cluster
from schemas.metadata import Metadata
from schemas.names import EVENT_REASON, GVISOR_HANDLERS, NODE_LEASE_PREFIX, SYSTEM_NAMESPACE
from schemas.node_facts import NodeFacts
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.snapshot import Snapshot
from schemas.storage_config import StorageConfig
from schemas.trigger import ManualTrigger

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads one namespace of a cluster, ``None`` for all of them."""

    cluster: Cluster
    namespace: str | None

    def pod(self, name: str) -> "Future[Pod | None]":
        """Read a Pod."""
        return self._one(PODS, name, Pod.parse)

    def policy(self, name: str) -> "Future[Policy | None]":
        """Read a policy."""
        return self._one(POD_SNAPSHOT_POLICIES, name, Policy.parse)

    def snapshot(self, name: str) -> "Future[Snapshot | None]":
        """Read a snapshot."""
        return self._one(POD_SNAPSHOTS, name, Snapshot.parse)

    def storage(self, name: str) -> "Future[StorageConfig | None]":
        """Read a storage config."""
        return self._one(POD_SNAPSHOT_STORAGE_CONFIGS, name, StorageConfig.parse)

    def node(self, name: str) -> "Future[NodeFacts | None]":
        """Read what the agent of one node published."""
        found = self.cluster.find
        return self.cluster.soon(
            lambda: _parsed(
                found(LEASES, f"{NODE_LEASE_PREFIX}{name}", namespace=SYSTEM_NAMESPACE),
                NodeFacts.parse,
            )
        )

    def trigger(self, name: str) -> "Future[ManualTrigger | None]":
        """Read a manual trigger."""
        from backends.kube.client import POD_SNAPSHOT_MANUAL_TRIGGERS

        return self._one(POD_SNAPSHOT_MANUAL_TRIGGERS, name, ManualTrigger.parse)

    def pods(self) -> "Future[list[Pod]]":
        """Read the Pods."""
        return self.all_of(PODS, Pod.parse)

    def policies(self) -> "Future[list[Policy]]":
        """Read the policies."""
        return self.all_of(POD_SNAPSHOT_POLICIES, Policy.parse)

    def snapshots(self, policy: str = "") -> "Future[list[Snapshot]]":
        """Read the snapshots, or those of one policy."""
        selectors = {"field_selector": f"spec.policyName={policy}"} if policy else {}
        return self.all_of(POD_SNAPSHOTS, Snapshot.parse, **selectors)

    def events(self, pod: str) -> "Future[list[Told]]":
        """Read our Events on Pods of one name."""
        selector = f"involvedObject.kind=Pod,involvedObject.name={pod},reason={EVENT_REASON}"
        return self.all_of(EVENTS, Told.parse, field_selector=selector)

    def nodes(self) -> "Future[list[NodeFacts]]":
        """Read what all agents published."""

        def read() -> list[NodeFacts]:
            leases = self.cluster.list(LEASES, namespace=SYSTEM_NAMESPACE)
            ours = (o for o in leases if o["metadata"]["name"].startswith(NODE_LEASE_PREFIX))
            return [NodeFacts.parse(lease) for lease in ours]

        return self.cluster.soon(read)

    def classes(self) -> "Future[dict[str, bool]]":
        """Read the RuntimeClasses: the name, and whether it means gVisor."""

        def read() -> dict[str, bool]:
            found = self.cluster.list(RUNTIME_CLASSES)
            return {Metadata.parse(o).name: o.get("handler") in GVISOR_HANDLERS for o in found}

        return self.cluster.soon(read)

    def runtime_class(self, name: str) -> "Future[bool]":
        """Read whether one RuntimeClass means gVisor."""

        def read() -> bool:
            found = self.cluster.find(RUNTIME_CLASSES, name) if name else None
            return (found or {}).get("handler") in GVISOR_HANDLERS

        return self.cluster.soon(read)

    def _one(
        self, resource: Resource, name: str, parse: Callable[[dict[str, Any]], T]
    ) -> "Future[T | None]":
        namespace = self.namespace if resource.namespaced else None
        find = self.cluster.find
        return self.cluster.soon(lambda: _parsed(find(resource, name, namespace=namespace), parse))

    def all_of(
        self, resource: Resource, parse: Callable[[dict[str, Any]], T], **selectors: str
    ) -> "Future[list[T]]":
        """Read and parse what the selectors of ``KubeClient.list`` select."""

        def read() -> list[T]:
            found = self.cluster.list(resource, namespace=self.namespace, **selectors)
            return [parse(obj) for obj in found]

        return self.cluster.soon(read)


def _parsed(obj: dict[str, Any] | None, parse: Callable[[dict[str, Any]], T]) -> T | None:
    return None if obj is None else parse(obj)
