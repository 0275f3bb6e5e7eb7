# SPDX-License-Identifier: Apache-2.0
"""Flux and Argo CD as real processes beside the component tests' API server and manager."""

from collections.abc import Iterator
from typing import Final

import pytest

from backends.kube.client import KubeClient, Resource
from localcluster.toolchain import Toolchain
from tests.component.conftest import (
    admin,
    agent_client,
    api_server,
    bucket_root,
    controller_client,
    manager,
    toolchain,
    world,
)
from tests.component.kube_apiserver import ApiServer
from tests.gitops.argo_cd import ArgoCD, running_argo_cd
from tests.gitops.flux import Flux, running_flux
from tests.gitops.git_repository import GitServer, serving

__all__ = [
    "admin",
    "agent_client",
    "api_server",
    "bucket_root",
    "controller_client",
    "manager",
    "toolchain",
    "world",
]

_BINDINGS: Final = Resource(
    "rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False
)


@pytest.fixture(scope="session")
def gitops_tools(toolchain: Toolchain) -> Toolchain:
    """Flux and Argo CD; skips where they were not built."""
    missing = {"kustomize-controller", "argocd"} & set(toolchain.missing("gitops"))
    if missing:
        pytest.skip(f"{', '.join(sorted(missing))} not built; run `make tools-gitops`")
    return toolchain


@pytest.fixture(scope="session")
def git_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    """Repositories on loopback."""
    with serving(tmp_path_factory.mktemp("git")) as server:
        yield server


@pytest.fixture(scope="session")
def flux(
    gitops_tools: Toolchain,
    api_server: ApiServer,
    admin: KubeClient,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Flux]:
    """Flux's kustomize-controller, with the rights that its installation gives it."""
    _make_administrator(admin, api_server, "flux")
    directory = tmp_path_factory.mktemp("flux")
    with running_flux(gitops_tools, admin, api_server.kubeconfig("flux"), directory) as made:
        yield made


@pytest.fixture(scope="module")
def argo_cd(
    gitops_tools: Toolchain,
    api_server: ApiServer,
    admin: KubeClient,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ArgoCD]:
    """Argo CD's application controller and repo server, with the rights of its installation."""
    _make_administrator(admin, api_server, "argocd")
    directory = tmp_path_factory.mktemp("argocd")
    with running_argo_cd(gitops_tools, admin, api_server.kubeconfig("argocd"), directory) as made:
        yield made


def _make_administrator(admin: KubeClient, api_server: ApiServer, user: str) -> None:
    """Bind a user as both tools' own installations do."""
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": user},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "cluster-admin",
        },
        "subjects": [
            {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "User",
                "name": api_server.username(user),
            }
        ],
    }
    admin.apply(_BINDINGS, binding, field_manager="tests", force=True)
