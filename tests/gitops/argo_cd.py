# SPDX-License-Identifier: Apache-2.0
"""Argo CD for real: its application controller and its repo server, both of the one binary.

Its API server and web page are not needed: Applications are objects. Both parts want a Redis, which
here is fakeredis: a cache of theirs, nothing of it is tested.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from backends.kube.client import KubeClient, Resource
from localcluster.toolchain import REPOSITORY, Toolchain
from tests.cluster_scene import eventually
from tests.gitops.flux import apply_crd, make_namespace, module_folder
from tests.gitops.git_repository import Repository
from tests.gitops.processes import accepts, free_ports, running

NAMESPACE: Final = "argocd"
APPLICATIONS: Final = Resource("argoproj.io", "v1alpha1", "applications", "Application")
REFRESH: Final = "argocd.argoproj.io/refresh"
EXAMPLE: Final = REPOSITORY / "examples/gitops/argocd/application.yaml"
HEALTH: Final = REPOSITORY / "deploy/argocd/argocd-cm.yaml"
_PROJECTS: Final = Resource("argoproj.io", "v1alpha1", "appprojects", "AppProject")
_CONFIG_MAPS: Final = Resource("", "v1", "configmaps", "ConfigMap")
_SECRETS: Final = Resource("", "v1", "secrets", "Secret")
_REDIS: Final = (
    "import sys, fakeredis; "
    "fakeredis.TcpFakeServer(('127.0.0.1', int(sys.argv[1]))).serve_forever()"
)


@dataclass(slots=True)
class ArgoCD:
    """A running Argo CD."""

    client: KubeClient
    logs: Path

    @contextmanager
    def tracking_by_label(self) -> Iterator[None]:
        """Let Argo CD know its objects by label, as it did before version 3."""
        for method in ("label", None):
            settings = {"data": {"application.resourceTrackingMethod": method}}
            self.client.merge_patch(
                _CONFIG_MAPS, "argocd-cm", settings, namespace=NAMESPACE, field_manager="tests"
            )
            if method:
                yield

    def follow(self, name: str, repository: Repository, namespace: str, *options: str) -> None:
        """Create the example's Application for a repository and a namespace."""
        body = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
        body["metadata"]["name"] = name
        body["spec"]["source"]["repoURL"] = repository.url
        body["spec"]["destination"]["namespace"] = namespace
        body["spec"]["syncPolicy"]["syncOptions"] = list(options)
        self.client.create(APPLICATIONS, body, field_manager="user")

    def refresh(self, name: str) -> dict[str, Any]:
        """Have an Application compared anew, past most caches, and return it as it is then.

        Argo CD puts what it wrote into its own view, and may so overwrite a request that came
        meanwhile; only a request that differs is seen again.
        """

        def is_done() -> dict[str, Any] | None:
            found = self.get(name)
            asked = REFRESH in (found["metadata"].get("annotations") or {})
            return None if asked else found

        for kind in ("hard", "normal") * 6:
            self.client.merge_patch(
                APPLICATIONS,
                name,
                {"metadata": {"annotations": {REFRESH: kind}}},
                namespace=NAMESPACE,
                field_manager="user",
            )
            with contextlib.suppress(AssertionError):
                return eventually("the request is answered", is_done, limit_s=5)
        raise AssertionError(f"{name} is not refreshed; see {self.logs}")

    def get(self, name: str) -> dict[str, Any]:
        """Return an Application."""
        found = self.client.get(APPLICATIONS, name, namespace=NAMESPACE)
        return {"status": {}, **found}

    def synced(self, name: str, commit: str) -> dict[str, Any]:
        """Wait until a commit is applied, and all is as it says and healthy."""

        def stands() -> dict[str, Any] | None:
            found = self.get(name)
            return found if standing(found) == ("Synced", "Healthy", commit) else None

        return eventually(f"{name} at {commit}, synced and healthy; see {self.logs}", stands)

    def failures(self, name: str) -> list[str]:
        """Return what an Application's sync says of its failure, empty if it has not failed."""
        operation = self.get(name)["status"].get("operationState") or {}
        results = (operation.get("syncResult") or {}).get("resources") or ()
        failed = [r["message"] for r in results if r["status"] == "SyncFailed"]
        return [operation["message"], *failed] if failed else []

    def health_of(self, name: str, kind: str) -> dict[str, str]:
        """Return the health of an Application's first object of a kind, empty if not told."""
        resources = self.get(name)["status"].get("resources") or ()
        return next((r.get("health") or {} for r in resources if r["kind"] == kind), {})


def standing(application: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return what an Application says: whether it is in sync, its health, and the commit."""
    status = application["status"]
    sync = status.get("sync") or {}
    return (
        sync.get("status", ""),
        (status.get("health") or {}).get("status", ""),
        sync.get("revision", ""),
    )


def assess(tools: Toolchain, obj: Mapping[str, Any], scratch: Path) -> str:
    """Return the health that Argo CD gives an object, by the scripts of deploy/argocd."""
    file = scratch / "object.json"
    file.write_text(json.dumps(obj), encoding="utf-8")
    done = subprocess.run(
        [
            tools.path("argocd"),
            *("admin", "settings", "resource-overrides", "health", file),
            *("--argocd-cm-path", HEALTH),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.partition("STATUS: ")[2].splitlines()[0]


@contextmanager
def running_argo_cd(
    tools: Toolchain, admin: KubeClient, kubeconfig: Path, directory: Path
) -> Iterator[ArgoCD]:
    """Install CRDs and settings, start the three processes, end them."""
    sources = module_folder(tools, "argocd", "github.com/argoproj/argo-cd/v3")
    for name in ("application", "appproject"):
        apply_crd(admin, _read(sources / f"manifests/crds/{name}-crd.yaml"))
    make_namespace(admin, NAMESPACE)
    settings = _read(sources / "manifests/base/config/argocd-cm.yaml")
    settings["data"] |= _read(HEALTH)["data"]
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "argocd-secret", "labels": {"app.kubernetes.io/part-of": "argocd"}},
        "stringData": {"server.secretkey": "only for these tests"},
    }
    project = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "AppProject",
        "metadata": {"name": "default"},
        "spec": {
            "sourceRepos": ["*"],
            "destinations": [{"namespace": "*", "server": "*"}],
            "clusterResourceWhitelist": [{"group": "*", "kind": "*"}],
        },
    }
    for resource, body in ((_CONFIG_MAPS, settings), (_SECRETS, secret), (_PROJECTS, project)):
        body["metadata"]["namespace"] = NAMESPACE
        admin.apply(resource, body, field_manager="tests", force=True)
    with ExitStack() as stack:
        _start(stack, tools, kubeconfig, directory)
        yield ArgoCD(admin, directory)


def _start(stack: ExitStack, tools: Toolchain, kubeconfig: Path, directory: Path) -> None:
    redis, repo, *metrics = free_ports(4)
    scratch = directory / "tmp"
    for folder in ("tls", "ssh", "plugins"):
        (scratch / folder).mkdir(parents=True)
    env = {
        "KUBECONFIG": str(kubeconfig),
        "ARGOCD_FAKE_IN_CLUSTER": "true",  # the cluster is the kubeconfig's, and called in-cluster
        "ARGOCD_GPG_ENABLED": "false",
        "ARGOCD_TLS_DATA_PATH": str(scratch / "tls"),
        "ARGOCD_SSH_DATA_PATH": str(scratch / "ssh"),
        "ARGOCD_PLUGINSOCKFILEPATH": str(scratch / "plugins"),
        "ARGOCD_ASK_PASS_SOCK": str(scratch / "ask-pass.sock"),
        "TMPDIR": str(scratch),
        "HOME": str(scratch),
        "HOSTNAME": "tests",
    }
    common = (f"--redis=127.0.0.1:{redis}", "--loglevel=info")
    argocd = tools.path("argocd")
    programs: dict[str, tuple[int, tuple[str | Path, ...]]] = {
        "redis": (redis, (sys.executable, "-c", _REDIS, str(redis))),
        "argocd-repo-server": (
            repo,
            (
                argocd,
                *common,
                "--address=127.0.0.1",
                f"--port={repo}",
                "--metrics-address=127.0.0.1",
                f"--metrics-port={metrics[0]}",
                "--disable-tls",
            ),
        ),
        "argocd-application-controller": (
            metrics[1],
            (
                argocd,
                *common,
                f"--namespace={NAMESPACE}",
                f"--metrics-port={metrics[1]}",
                f"--repo-server=127.0.0.1:{repo}",
                "--repo-server-plaintext",
                "--self-heal-timeout-seconds=1",
                "--persist-resource-health",
            ),
        ),
    }
    for name, (port, argv) in programs.items():
        named = {"ARGOCD_BINARY_NAME": name}
        process = stack.enter_context(running(name, argv, logs=directory, env=env | named))
        log = directory / f"{name}.log"

        def answers(process: "subprocess.Popen[bytes]" = process, port: int = port) -> bool:
            return process.poll() is not None or accepts(port)

        eventually(f"{name} answers; see {log}", answers)
        assert process.poll() is None, log.read_text()[-2000:]


def _read(path: Path) -> dict[str, Any]:
    body: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return body
