# SPDX-License-Identifier: Apache-2.0
"""A namespace of a real cluster, as a user sees it, and how to wait for what happens there."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.clock import SystemClock
from backends.kube.client import (
    POD_SNAPSHOT_MANUAL_TRIGGERS,
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    POD_SNAPSHOTS,
    PODS,
    KubeClient,
    Resource,
)
from backends.kube.errors import NotFound
from backends.objects.factory import BucketAccess
from reconciler.manager import Manager, ManagerSettings
from schemas.names import API_VERSION

WAIT_S = 20.0
PLURALS = {
    "CustomResourceDefinition": "apiextensions.k8s.io/v1/customresourcedefinitions",
    "ClusterRole": "rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Role": "rbac.authorization.k8s.io/v1/roles",
    "RoleBinding": "rbac.authorization.k8s.io/v1/rolebindings",
    "RuntimeClass": "node.k8s.io/v1/runtimeclasses",
    "Namespace": "/v1/namespaces",
    "ServiceAccount": "/v1/serviceaccounts",
}


def eventually(holds: Callable[[], Any], what: str, missing: Callable[[], object] = str) -> Any:  # noqa: ANN401 - what the condition returns
    """Wait, bounded, until a condition returns something true, and return that.

    ``missing`` says at the end of a wait in vain how far it was.
    """
    never = threading.Event()
    deadline_s = time.monotonic() + WAIT_S
    while not (found := holds()):
        in_vain = f"waited {WAIT_S:.0f} s in vain: {what}"
        assert time.monotonic() < deadline_s, f"{in_vain} {missing()}"
        never.wait(0.02)
    return found


@contextmanager
def leading(client: KubeClient, bucket_root: Path) -> Iterator[Manager]:
    """Run a controller until the end of the block."""
    settings = ManagerSettings(
        cluster_id="c1", buckets=BucketAccess(bucket_root), identity=uuid.uuid4().hex
    )
    running = Manager(settings, client, SystemClock())
    running.start()
    try:
        eventually(lambda: running.is_leader and running.is_ready(), "the controller leads")
        yield running
    finally:
        running.stop()


def resource_of(obj: dict[str, Any]) -> Resource:
    """Return the resource of a deployed kind."""
    group_version, _, plural = PLURALS[obj["kind"]].rpartition("/")
    group, _, version = group_version.rpartition("/")
    return Resource(group, version, plural, obj["kind"])


@dataclass(slots=True)
class World:
    """One namespace with a bucket of its own, and what stands in it."""

    admin: KubeClient
    namespace: str
    bucket: Path

    @property
    def store(self) -> str:
        """The name of the namespace's storage config."""
        return f"store-{self.namespace}"

    def create(self, resource: Resource, body: dict[str, Any]) -> dict[str, Any]:
        """Create an object as a user."""
        return self.admin.create(resource, body, field_manager="user")

    def object(self, kind: str, name: str, spec: dict[str, Any] | None) -> dict[str, Any]:
        """Return an object of the contract's group."""
        body: dict[str, Any] = {
            "apiVersion": API_VERSION,
            "kind": kind,
            "metadata": {"name": name, "namespace": self.namespace},
        }
        if spec is not None:
            body["spec"] = spec
        return body

    def storage(self) -> dict[str, Any]:
        """Create the storage config; the bucket is ``make_bucket``'s."""
        body = self.object(
            "PodSnapshotStorageConfig",
            self.store,
            {"snapshotStorageConfig": {"gcs": {"bucket": self.bucket.name, "path": "snapshots"}}},
        )
        del body["metadata"]["namespace"]
        return self.create(POD_SNAPSHOT_STORAGE_CONFIGS, body)

    def make_bucket(self) -> None:
        """Create the bucket's directory."""
        self.bucket.mkdir()

    def policy(self, name: str = "web", **spec: Any) -> dict[str, Any]:  # noqa: ANN401 - spec fields
        """Create a manual policy that selects ``app=web``."""
        base: dict[str, Any] = {
            "selector": {"matchLabels": {"app": "web"}},
            "storageConfigName": self.store,
            "triggerConfig": {"type": "manual"},
        }
        body = self.object("PodSnapshotPolicy", name, {**base, **spec})
        return self.create(POD_SNAPSHOT_POLICIES, body)

    def pod(
        self,
        name: str = "web-0",
        *,
        is_ready: bool = True,
        labels: dict[str, str] | None = None,
        **spec: Any,  # noqa: ANN401 - fields of a PodSpec
    ) -> dict[str, Any]:
        """Create a Pod bound to ``node-1`` whose kubelet is this test."""
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "labels": {"app": "web"} if labels is None else labels,
            },
            "spec": {
                "runtimeClassName": "gvisor",
                "nodeName": "node-1",
                "containers": [{"name": "main", "image": "registry.example/web:1"}],
                "terminationGracePeriodSeconds": 0,
                **spec,
            },
        }
        made = self.create(PODS, body)
        status = "True" if is_ready else "False"
        condition = {"type": "Ready", "status": status, "lastTransitionTime": None}
        self.admin.apply(
            PODS,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": self.namespace},
                "status": {"phase": "Running", "conditions": [condition]},
            },
            field_manager="kubelet",
            subresource="status",
            force=True,
        )
        return made

    def trigger(self, name: str, target: str | None = "web-0") -> dict[str, Any]:
        """Create a manual trigger."""
        spec = None if target is None else {"targetPod": target}
        body = self.object("PodSnapshotManualTrigger", name, spec)
        return self.create(POD_SNAPSHOT_MANUAL_TRIGGERS, body)

    def get(self, resource: Resource, name: str) -> dict[str, Any] | None:
        """Return an object, ``None`` if it is gone."""
        namespace = self.namespace if resource.namespaced else None
        try:
            return self.admin.get(resource, name, namespace=namespace)
        except NotFound:
            return None

    def condition(self, resource: Resource, name: str, kind: str) -> dict[str, Any]:
        """Return a condition, empty if it is not there yet."""
        obj = self.get(resource, name) or {}
        conditions = (obj.get("status") or {}).get("conditions") or []
        return next((c for c in conditions if c["type"] == kind), {})

    def snapshots(self) -> list[dict[str, Any]]:
        """Return the namespace's PodSnapshots."""
        return self.admin.list(POD_SNAPSHOTS, namespace=self.namespace)[0]
