# SPDX-License-Identifier: Apache-2.0
"""One real API server for the whole session, with our CRDs and RBAC, and a manager that runs.

Tests share the server, so each uses a namespace of its own; cluster-scoped names carry its name.
"""

import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from kube_apiserver import ApiServer, run_apiserver

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
from localcluster.toolchain import Toolchain, ToolchainError
from reconciler.manager import Manager, ManagerSettings
from schemas.crd_validation import crd_texts
from schemas.names import API_VERSION, SYSTEM_NAMESPACE

WAIT_S = 20.0
DEPLOY = Path(__file__).parents[2] / "deploy"
_PLURALS = {
    "CustomResourceDefinition": "apiextensions.k8s.io/v1/customresourcedefinitions",
    "ClusterRole": "rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Role": "rbac.authorization.k8s.io/v1/roles",
    "RoleBinding": "rbac.authorization.k8s.io/v1/rolebindings",
    "RuntimeClass": "node.k8s.io/v1/runtimeclasses",
    "Namespace": "/v1/namespaces",
    "ServiceAccount": "/v1/serviceaccounts",
}

Eventually = Callable[[Callable[[], Any], str], Any]


def eventually(holds: Callable[[], Any], what: str) -> Any:  # noqa: ANN401 - what the condition returns
    """Wait, bounded, until a condition returns something true, and return that."""
    never = threading.Event()
    deadline_s = time.monotonic() + WAIT_S
    while not (found := holds()):
        assert time.monotonic() < deadline_s, f"waited {WAIT_S:.0f} s in vain: {what}"
        never.wait(0.02)
    return found


def resource_of(obj: dict[str, Any]) -> Resource:
    """Return the resource of a deployed kind."""
    group_version, _, plural = _PLURALS[obj["kind"]].rpartition("/")
    group, _, version = group_version.rpartition("/")
    return Resource(group, version, plural, obj["kind"])


@pytest.fixture(scope="session")
def toolchain() -> Toolchain:
    """The real programs; skips where they were not built."""
    tools = Toolchain()
    try:
        missing = {"etcd", "kube-apiserver", "kubectl"} & set(tools.missing())
    except ToolchainError as error:
        pytest.skip(str(error))
    if missing:
        pytest.skip(f"{', '.join(sorted(missing))} not built; run `make tools`")
    return tools


@pytest.fixture(scope="session")
def api_server(
    toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApiServer]:
    """A real API server with our CRDs, our RBAC and a RuntimeClass for gVisor."""
    for server in run_apiserver(tmp_path_factory.mktemp("apiserver")):
        client = server.client()
        texts = [text for _, text in crd_texts()]
        texts += [path.read_text(encoding="utf-8") for path in sorted(DEPLOY.glob("*.yaml"))]
        documents = [d for text in texts for d in yaml.safe_load_all(text) if d]
        documents.append(
            {
                "apiVersion": "node.k8s.io/v1",
                "kind": "RuntimeClass",
                "metadata": {"name": "gvisor"},
                "handler": "runsc",
            }
        )
        for document in documents:
            if document["kind"] in _PLURALS:
                client.apply(resource_of(document), document, field_manager="tests", force=True)
        for document in documents:
            if document["kind"] == "CustomResourceDefinition":
                _wait_established(client, document)
        yield server


def _wait_established(client: KubeClient, crd: dict[str, Any]) -> None:
    spec = crd["spec"]
    served = Resource(
        spec["group"], spec["versions"][0]["name"], spec["names"]["plural"], spec["names"]["kind"]
    )

    def is_served() -> bool:
        try:
            client.list(served)
        except NotFound:
            return False
        return True

    eventually(is_served, f"{served.kind} is served")


@pytest.fixture(scope="session")
def admin(api_server: ApiServer) -> KubeClient:
    """A user with all rights."""
    return api_server.client("admin")


@pytest.fixture(scope="session")
def controller_client(api_server: ApiServer) -> KubeClient:
    """The controller's own identity."""
    return api_server.client("controller")


@pytest.fixture(scope="session")
def agent_client(api_server: ApiServer) -> KubeClient:
    """The agent's own identity."""
    return api_server.client("agent")


@pytest.fixture(scope="session")
def bucket_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where buckets are directories."""
    return tmp_path_factory.mktemp("buckets")


@pytest.fixture(scope="session")
def manager(controller_client: KubeClient, bucket_root: Path) -> Iterator[Manager]:
    """The controller process's inside, with the controller's own identity."""
    running = Manager(
        ManagerSettings(cluster_id="c1", bucket_root=bucket_root, identity="tests"),
        controller_client,
        SystemClock(),
    )
    running.start()
    eventually(lambda: running.is_leader and running.is_ready(), "the manager leads")
    yield running
    running.stop()


@dataclass(slots=True)
class World:
    """One namespace with a bucket of its own, and what stands in it."""

    admin: KubeClient
    namespace: str
    bucket: Path
    made: list[tuple[Resource, str]] = field(default_factory=list)

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


@pytest.fixture
def world(admin: KubeClient, bucket_root: Path) -> World:
    """A namespace of the test's own."""
    namespace = f"t{uuid.uuid4().hex[:10]}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    admin.create(resource_of(body), body, field_manager="tests")
    return World(admin, namespace, bucket_root / f"bucket-{namespace}")


@pytest.fixture(scope="session")
def system_namespace() -> str:
    """Where leases live."""
    return SYSTEM_NAMESPACE
