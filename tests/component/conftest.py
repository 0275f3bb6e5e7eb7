# SPDX-License-Identifier: Apache-2.0
"""One real API server for the whole session, with our CRDs and RBAC, and a manager that runs.

Tests share the server, so each uses a namespace of its own; cluster-scoped names carry its name.
"""

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

# Tests are no package; the clock and the table of scalars lie with the pure tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "pure"))
sys.path.insert(0, str(Path(__file__).parent))

from cluster_world import PLURALS, World, eventually, resource_of
from dulwich.repo import Repo
from git_repository import Repository
from kube_apiserver import ApiServer, run_apiserver

from backends.clock import SystemClock
from backends.kube.client import KubeClient, Resource
from backends.kube.errors import NotFound
from backends.objects.factory import BucketAccess
from localcluster.toolchain import Toolchain, ToolchainError
from reconciler.manager import Manager, ManagerSettings
from schemas.crd_validation import crd_texts
from schemas.names import SYSTEM_NAMESPACE

DEPLOY = Path(__file__).parents[2] / "deploy"


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
            if document["kind"] in PLURALS:
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


@pytest.fixture(scope="module")
def manager(controller_client: KubeClient, bucket_root: Path) -> Iterator[Manager]:
    """The controller process's inside, with the controller's own identity.

    Only for the modules that ask for it: it would act on what others put there.
    """
    running = Manager(
        ManagerSettings(cluster_id="c1", buckets=BucketAccess(bucket_root), identity="tests"),
        controller_client,
        SystemClock(),
    )
    running.start()
    eventually(lambda: running.is_leader and running.is_ready(), "the manager leads")
    yield running
    running.stop()


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


@pytest.fixture
def repository(world: World, tmp_path: Path) -> Repository:
    """An empty repository, followed by nobody yet."""
    path = tmp_path / "repository"
    Repo.init(str(path), mkdir=True, default_branch=b"main").close()
    return Repository(world, path)
