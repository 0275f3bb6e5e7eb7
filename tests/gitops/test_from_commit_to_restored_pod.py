# SPDX-License-Identifier: Apache-2.0
"""From a commit to a restored Pod, by each of the three ways, on the real cluster.

The tree is the example's policy and Deployment. Each commit is planned before it is applied, and
what the plan says is what then happens; the trace in the backend begins at the commit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml

from backends.kube.client import KubeClient
from backends.kube.errors import NotFound
from backends.kube.transport import Transport
from backends.zipkin import read_trace
from localcluster.cluster import LocalCluster
from localcluster.pod_times import Observed
from localcluster.toolchain import REPOSITORY, Toolchain
from localcluster.trace_backend import TraceBackend
from schemas.span import Span
from tests.cluster.test_trace import backend
from tests.cluster_scene import LIMIT_S, Scene, eventually
from tests.gitops.argo_cd import APPLICATIONS, ArgoCD, running_argo_cd
from tests.gitops.argo_cd import NAMESPACE as ARGOCD
from tests.gitops.flux import KUSTOMIZATIONS, Flux, running_flux
from tests.gitops.flux import NAMESPACE as FLUX
from tests.gitops.git_repository import GitServer, Repository
from tests.gitops.tree import example
from tests.planned_starts import foretell

__all__ = ["backend"]

pytestmark = pytest.mark.cluster

EXAMPLES = REPOSITORY / "examples/gitops"


class Way(Protocol):
    """How a commit comes into the cluster."""

    def apply(self, commit: str) -> None:
        """Have a commit applied."""

    def stop(self) -> None:
        """Let go of the scene, so that it can be taken away."""


@dataclass(frozen=True, slots=True)
class ByGitSource:
    """podsnap's own sync brings the policy; a Deployment is none of its kinds."""

    scene: Scene
    repository: Repository

    def apply(self, commit: str) -> None:
        """Create the source of the example, and apply the Deployment as people do."""
        source = yaml.safe_load((EXAMPLES / "git-source/source.yaml").read_text(encoding="utf-8"))
        source["metadata"]["namespace"] = self.scene.namespace
        # The controller has a network of its own, and no server there; the file system is the same.
        source["spec"] |= {"url": f"file://{self.repository.path}", "interval": "1s"}
        self.scene.apply(source)

        def stands() -> bool:
            status = self.scene.get("gitsource", "shop").get("status") or {}
            return str(status.get("lastAppliedRevision", "")).endswith(commit)

        eventually(f"commit {commit} is applied", stands)
        self.scene.kubectl("apply", "-f", str(self.repository.path / "deployment.yaml"))

    def stop(self) -> None:
        """Delete the source."""
        self.scene.kubectl("delete", "gitsource", "shop")


@dataclass(frozen=True, slots=True)
class ByFlux:
    """Flux brings all of it."""

    scene: Scene
    repository: Repository
    flux: Flux

    def apply(self, commit: str) -> None:
        """Publish the commit, and follow it from the first on."""
        name = self.scene.namespace
        revision = self.flux.publish(name, self.repository, commit)
        try:
            self.flux.get(name)
        except NotFound:
            self.flux.follow(name, targetNamespace=name)
        self.flux.applied(name, revision)

    def stop(self) -> None:
        """Delete the Kustomization and with it what it applied."""
        name = self.scene.namespace
        self.flux.client.delete(KUSTOMIZATIONS, name, namespace=FLUX)
        eventually("Flux has let go", lambda: is_gone(self.flux, name))


@dataclass(frozen=True, slots=True)
class ByArgoCD:
    """Argo CD brings all of it."""

    scene: Scene
    repository: Repository
    argo_cd: ArgoCD

    def apply(self, commit: str) -> None:
        """Follow the repository, or have it looked at again."""
        name = self.scene.namespace
        try:
            self.argo_cd.refresh(name)
        except NotFound:
            self.argo_cd.follow(name, self.repository, name)
        self.argo_cd.synced(name, commit)

    def stop(self) -> None:
        """Delete the Application; what it applied goes with the scene."""
        self.argo_cd.client.delete(APPLICATIONS, self.scene.namespace, namespace=ARGOCD)


def is_gone(flux: Flux, name: str) -> bool:
    """Tell whether a Kustomization is gone."""
    try:
        flux.get(name)
    except NotFound:
        return True
    return False


@pytest.fixture(scope="module")
def cluster_admin(cluster: LocalCluster) -> KubeClient:
    """The cluster's administrator; as both tools are by their own installations."""
    return KubeClient(Transport.from_kubeconfig(cluster.kubeconfig, user_agent="tests"))


@pytest.fixture(scope="module")
def tools(
    gitops_tools: Toolchain,
    cluster: LocalCluster,
    cluster_admin: KubeClient,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Flux, ArgoCD]]:
    """Flux and Argo CD beside the cluster."""
    directories = (tmp_path_factory.mktemp("flux"), tmp_path_factory.mktemp("argocd"))
    parts = (gitops_tools, cluster_admin, cluster.kubeconfig)
    with (
        running_flux(*parts, directories[0]) as flux,
        running_argo_cd(*parts, directories[1]) as argo_cd,
    ):
        yield flux, argo_cd


@pytest.fixture(params=["git-source", "flux", "argocd"])
def way(
    request: pytest.FixtureRequest,
    backend: TraceBackend,
    scene: Scene,
    git_server: GitServer,
    tools: tuple[Flux, ArgoCD],
) -> Iterator[Any]:
    """One of the three ways, into a scene of its own."""
    repository = git_server.repository(scene.namespace)
    made: Way
    match request.param:
        case "flux":
            made = ByFlux(scene, repository, tools[0])
        case "argocd":
            made = ByArgoCD(scene, repository, tools[1])
        case _:
            made = ByGitSource(scene, repository)
    yield made
    made.stop()


def manifests(namespace: str, replicas: int) -> dict[str, str]:
    """Return the example's policy and Deployment for a namespace and its bucket."""
    policy, deployment = example("policy"), example("deployment")
    policy["spec"]["storageConfigName"] = namespace
    deployment["spec"]["replicas"] = replicas
    deployment["metadata"]["namespace"] = namespace
    return {"policy": yaml.safe_dump(policy), "deployment": yaml.safe_dump(deployment)}


def ready_pods(scene: Scene, count: int) -> list[Observed]:
    """Wait until so many Pods of the Deployment are Ready."""

    def found() -> list[Observed]:
        ready = [o for o in scene.times.pods("shop") if o.pod.is_ready]
        return ready if len(ready) == count else []

    pods: list[Observed] = scene.times.wait(f"{count} Pods", found, limit_s=LIMIT_S)
    return pods


def test_a_commit_becomes_a_restored_pod_as_was_planned(
    way: Any,  # noqa: ANN401 - a Way with its scene
    backend: TraceBackend,
    cluster: LocalCluster,
) -> None:
    """The first Pod starts cold and is saved, the second is restored; the trace has it all."""
    scene: Scene = way.scene
    tree: Path = way.repository.path
    first = way.repository.commit(**manifests(scene.namespace, 1))
    plan = foretell(cluster.kubeconfig, scene.namespace, tree)
    assert (plan.governed_by, plan.cause, plan.exit_code) == ("shop", "NoSnapshotYet", 2)
    way.apply(first)
    (cold,) = ready_pods(scene, 1)
    assert scene.restored_from(cold.pod.metadata.name) == ""
    saved = eventually("a snapshot", scene.snapshots)[0]
    saved = scene.wait_available(saved.metadata.name)

    second = way.repository.commit(**manifests(scene.namespace, 2))
    plan = foretell(cluster.kubeconfig, scene.namespace, tree)
    assert plan.restored_from == saved.metadata.name
    way.apply(second)

    new = next(
        o.pod.metadata.name
        for o in ready_pods(scene, 2)
        if o.pod.metadata.uid != cold.pod.metadata.uid
    )
    assert scene.restored_from(new).endswith(plan.restored_from)

    def whole() -> list[Span]:
        spans = read_trace(backend.url, saved.trace_id)
        return spans if {"save", "pod ready"} <= {s.name for s in spans} else []

    spans = eventually("the whole trace", whole)
    (root,) = (s for s in spans if not s.parent_id)
    assert root.name == f"commit {first[:12]}"
    assert root.attributes["vcs.ref.head.revision"] == first
    (restore,) = (s for s in spans if s.name == "restore")
    (save,) = (s for s in spans if s.name == "save")
    assert (restore.parent_id, save.parent_id) == (save.span_id, root.span_id)
    assert restore.attributes["k8s.pod.name"] == new
