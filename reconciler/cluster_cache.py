# SPDX-License-Identifier: Apache-2.0
"""What the controller sees: caches of every kind it decides by, filled by watches.

The controllers read only from here and write only through the API. A cache may be a moment old, so
each write that depends on what was read is preconditioned or idempotent.
"""

from collections.abc import Callable
from typing import Any, Final

from backends.kube.client import (
    GIT_SOURCES,
    LEASES,
    POD_SNAPSHOT_MANUAL_TRIGGERS,
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    POD_SNAPSHOT_TOKEN_REQUESTS,
    POD_SNAPSHOTS,
    PODS,
    RUNTIME_CLASSES,
    KubeClient,
    Resource,
)
from backends.kube.reflector import Reflector, ReflectorSet
from policies.obsolescence import Template
from policies.selection import governing_policy
from schemas.git_source import GitSource
from schemas.metadata import Metadata
from schemas.names import GVISOR_HANDLERS, NODE_LEASE_PREFIX, SYSTEM_NAMESPACE
from schemas.node_facts import NodeFacts
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.snapshot import Compatibility, Snapshot
from schemas.storage_config import StorageConfig
from schemas.token_request import TokenRequest
from schemas.trigger import ManualTrigger

Changed = Callable[[Any, Any], None]

# Whatever makes Pods from a template, so that a workload at zero still has a spec.
TEMPLATES: Final = (
    Resource("apps", "v1", "deployments", "Deployment"),
    Resource("apps", "v1", "statefulsets", "StatefulSet"),
    Resource("apps", "v1", "daemonsets", "DaemonSet"),
    Resource("apps", "v1", "replicasets", "ReplicaSet"),
    Resource("batch", "v1", "jobs", "Job"),
    Resource("batch", "v1", "cronjobs", "CronJob"),
)


class ClusterCache(ReflectorSet):
    """Typed, read-only views of the cluster."""

    def __init__(self, client: KubeClient) -> None:
        """Nothing is watched before ``start``; set ``on_change`` of the reflectors before."""
        self.pods: Reflector[Pod] = Reflector(client, PODS, project=Pod.parse)
        self.snapshots: Reflector[Snapshot] = Reflector(
            client, POD_SNAPSHOTS, project=Snapshot.parse
        )
        self.policies: Reflector[Policy] = Reflector(
            client, POD_SNAPSHOT_POLICIES, project=Policy.parse
        )
        self.triggers: Reflector[ManualTrigger] = Reflector(
            client, POD_SNAPSHOT_MANUAL_TRIGGERS, project=ManualTrigger.parse
        )
        self.storage_configs: Reflector[StorageConfig] = Reflector(
            client, POD_SNAPSHOT_STORAGE_CONFIGS, project=StorageConfig.parse
        )
        self.token_requests: Reflector[TokenRequest] = Reflector(
            client, POD_SNAPSHOT_TOKEN_REQUESTS, project=TokenRequest.parse
        )
        self.git_sources: Reflector[GitSource] = Reflector(
            client, GIT_SOURCES, project=GitSource.parse
        )
        self.leases: Reflector[NodeFacts] = Reflector(
            client, LEASES, namespace=SYSTEM_NAMESPACE, project=NodeFacts.parse
        )
        self.runtime_classes: Reflector[tuple[str, str]] = Reflector(
            client, RUNTIME_CLASSES, project=_runtime_class
        )
        self.workloads: tuple[Reflector[Template], ...] = tuple(
            Reflector(client, resource, project=Template.parse) for resource in TEMPLATES
        )
        super().__init__(
            self.pods,
            self.snapshots,
            self.policies,
            self.triggers,
            self.storage_configs,
            self.token_requests,
            self.git_sources,
            self.leases,
            self.runtime_classes,
            *self.workloads,
        )

    def classes(self) -> dict[str, bool]:
        """Return the name of every RuntimeClass, and whether it means gVisor."""
        return {
            name: handler in GVISOR_HANDLERS for name, handler in self.runtime_classes.store.items()
        }

    def gvisor_classes(self) -> frozenset[str]:
        """Return the names of the RuntimeClasses that mean gVisor."""
        return frozenset(name for name, is_gvisor in self.classes().items() if is_gvisor)

    def policy_of(self, pod: Pod) -> Policy | None:
        """Return the policy that governs a Pod."""
        return governing_policy(pod, self.policies.store.items())

    def compatibilities(self) -> dict[str, Compatibility]:
        """Return what each node's agent last published."""
        return {n.node: n.compatibility for n in self.leases.store.items()}

    def templates(self) -> list[Template]:
        """Return what all workloads make Pods from."""
        return [template for workload in self.workloads for template in workload.store.items()]

    def storage_of(self, policy: Policy) -> StorageConfig | None:
        """Return the storage config that a policy names."""
        return self.storage_configs.store.get("", policy.storage_config_name)

    def node(self, name: str) -> NodeFacts | None:
        """Return what the node's agent last published."""
        return self.leases.store.get(SYSTEM_NAMESPACE, f"{NODE_LEASE_PREFIX}{name}")


def _runtime_class(obj: dict[str, Any]) -> tuple[str, str]:
    return (Metadata.parse(obj).name, obj.get("handler", ""))
