# SPDX-License-Identifier: Apache-2.0
"""Flux's kustomize-controller for real, and what its source-controller would have told it.

The source-controller cannot be built from published modules, so the test publishes the artifact of
a commit itself: a tarball on loopback, and a GitRepository whose status points at it. The trap: the
controller starts when its sources change, so the status is written last.
"""

import functools
import hashlib
import http.server
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from backends.kube.client import KubeClient, Resource
from localcluster.toolchain import REPOSITORY, Toolchain
from tests.cluster_scene import eventually
from tests.gitops.git_repository import Repository
from tests.gitops.processes import accepts, free_ports, running

NAMESPACE: Final = "flux-system"
KUSTOMIZATIONS: Final = Resource("kustomize.toolkit.fluxcd.io", "v1", "kustomizations", "")
GIT_REPOSITORIES: Final = Resource("source.toolkit.fluxcd.io", "v1", "gitrepositories", "")
REQUESTED: Final = "reconcile.fluxcd.io/requestedAt"
EXAMPLE: Final = REPOSITORY / "examples/gitops/flux"
_CRDS: Final = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "", False)
_NAMESPACES: Final = Resource("", "v1", "namespaces", "", False)
_SOURCES: Final = {
    "GitRepository": "gitrepositories",
    "OCIRepository": "ocirepositories",
    "Bucket": "buckets",
    "ExternalArtifact": "externalartifacts",
}


class _Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Keep the tests' output for the tests."""


@dataclass(slots=True)
class Flux:
    """A running kustomize-controller and the folder from which it is given artifacts."""

    client: KubeClient
    files: Path
    address: str
    log: Path
    _requests: int = field(default=0)

    def publish(self, name: str, repository: Repository, commit: str) -> str:
        """Do the source-controller's part for a commit; returns its revision."""
        archive = repository.archive(commit)
        digest = hashlib.sha256(archive).hexdigest()
        (self.files / f"{digest}.tar.gz").write_bytes(archive)
        revision = f"main@sha1:{commit}"
        body = example("GitRepository")
        body["metadata"]["name"] = name
        body["spec"]["url"] = repository.url
        self.client.apply(GIT_REPOSITORIES, body, field_manager="user")
        del body["spec"]
        artifact = {
            "path": f"{digest}.tar.gz",
            "url": f"http://{self.address}/{digest}.tar.gz",
            "revision": revision,
            "digest": f"sha256:{digest}",
            "size": len(archive),
            "lastUpdateTime": "2026-01-01T00:00:00Z",
        }
        condition = {
            "type": "Ready",
            "status": "True",
            "reason": "Succeeded",
            "message": f"stored artifact for revision '{revision}'",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        status = {"artifact": artifact, "conditions": [condition], "observedGeneration": 1}
        self.client.apply(
            GIT_REPOSITORIES,
            {**body, "status": status},
            field_manager="source-controller",
            subresource="status",
        )
        return revision

    def follow(self, name: str, **spec: Any) -> None:  # noqa: ANN401 - fields of the spec
        """Create the Kustomization of the example under another name, with a few other fields."""
        body = example("Kustomization")
        body["metadata"]["name"] = name
        body["spec"] |= {"sourceRef": {"kind": "GitRepository", "name": name}, **spec}
        self.client.create(KUSTOMIZATIONS, body, field_manager="user")

    def request(self, name: str) -> dict[str, Any]:
        """Have a Kustomization reconciled now, and return it as it is then."""
        self._requests += 1
        asked = f"request {self._requests}"
        self.client.merge_patch(
            KUSTOMIZATIONS,
            name,
            {"metadata": {"annotations": {REQUESTED: asked}}},
            namespace=NAMESPACE,
            field_manager="user",
        )

        def handled() -> dict[str, Any] | None:
            found = self.get(name)
            return found if found["status"].get("lastHandledReconcileAt") == asked else None

        return eventually(f"{name} is reconciled", handled)

    def get(self, name: str) -> dict[str, Any]:
        """Return a Kustomization."""
        found = self.client.get(KUSTOMIZATIONS, name, namespace=NAMESPACE)
        return {"status": {}, **found}

    def condition(self, name: str, condition: str = "Ready") -> dict[str, Any]:
        """Return a condition of a Kustomization, empty if it is not there."""
        conditions = self.get(name)["status"].get("conditions") or ()
        return next((c for c in conditions if c["type"] == condition), {})

    def applied(self, name: str, revision: str) -> dict[str, Any]:
        """Wait until a revision is applied and healthy."""

        def stands() -> dict[str, Any] | None:
            found = self.get(name)
            current = found["status"].get("lastAppliedRevision") == revision
            return found if current and self.condition(name).get("status") == "True" else None

        return eventually(f"{name} at {revision}; see {self.log}", stands)

    def refused(self, name: str, text: str) -> str:
        """Wait until a Kustomization is not Ready with a text, and return the message."""

        def tells() -> str:
            ready = self.condition(name)
            message = str(ready.get("message", ""))
            return message if ready.get("status") == "False" and text in message else ""

        return eventually(f"{name} refused with {text!r}; see {self.log}", tells)


def example(kind: str) -> dict[str, Any]:
    """Return an object of examples/gitops/flux with deploy/flux in it, as kubectl builds it."""
    found: dict[str, Any] = next(d for d in yaml.safe_load_all(_built()) if d["kind"] == kind)
    return found


@functools.cache
def _built() -> bytes:
    kubectl = Toolchain().path("kubectl")
    done = subprocess.run([kubectl, "kustomize", EXAMPLE], check=True, capture_output=True)
    return done.stdout


@contextmanager
def running_flux(
    tools: Toolchain, admin: KubeClient, kubeconfig: Path, directory: Path
) -> Iterator[Flux]:
    """Install the CRDs, start the controller and a server for artifacts, end both."""
    for crd in (_kustomization_crd(tools), *map(_source_crd, _SOURCES)):
        apply_crd(admin, crd)
    make_namespace(admin, NAMESPACE)
    files = directory / "artifacts"
    files.mkdir()
    handler = functools.partial(_Files, directory=str(files))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    health, metrics = free_ports(2)
    argv = [
        tools.path("kustomize-controller"),
        "--watch-all-namespaces",
        f"--health-addr=127.0.0.1:{health}",
        f"--metrics-addr=127.0.0.1:{metrics}",
        "--concurrent=32",
        "--requeue-dependency=1s",
        "--enable-leader-election=false",
    ]
    env = {"KUBECONFIG": str(kubeconfig), "RUNTIME_NAMESPACE": NAMESPACE}
    with ExitStack() as stack:
        stack.callback(server.server_close)
        stack.callback(thread.join)
        stack.callback(server.shutdown)
        process = stack.enter_context(
            running("kustomize-controller", argv, logs=directory, env=env | _private(directory))
        )
        log = directory / "kustomize-controller.log"
        eventually(
            f"kustomize-controller answers; see {log}",
            lambda: process.poll() is not None or accepts(health),
        )
        assert process.poll() is None, log.read_text()[-2000:]
        yield Flux(admin, files, f"127.0.0.1:{server.server_port}", log)


def _private(directory: Path) -> dict[str, str]:
    scratch = directory / "tmp"
    scratch.mkdir()
    return {"TMPDIR": str(scratch), "HOME": str(scratch)}


def _kustomization_crd(tools: Toolchain) -> dict[str, Any]:
    """Return the CRD from the sources that the controller was built from."""
    folder = module_folder(tools, "flux", "github.com/fluxcd/kustomize-controller")
    path = folder / "config/crd/bases/kustomize.toolkit.fluxcd.io_kustomizations.yaml"
    crd: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return crd


def module_folder(tools: Toolchain, module: str, path: str) -> Path:
    """Return where Go has the sources of a pinned module, fetched if need be."""
    done = subprocess.run(
        ["go", "mod", "download", "-json", path],
        cwd=tools.tools / module,
        check=True,
        capture_output=True,
    )
    return Path(json.loads(done.stdout)["Dir"])


def _source_crd(kind: str) -> dict[str, Any]:
    """Return a CRD that takes everything: the one who fills these kinds in is the test."""
    plural = _SOURCES[kind]
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "properties": {"spec": anything, "status": anything},
            }
        },
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.source.toolkit.fluxcd.io"},
        "spec": {
            "group": "source.toolkit.fluxcd.io",
            "names": {"kind": kind, "plural": plural},
            "scope": "Namespaced",
            "versions": [version],
        },
    }


def make_namespace(admin: KubeClient, name: str) -> None:
    """Create a namespace if it is not there."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    admin.apply(_NAMESPACES, namespace, field_manager="tests", force=True)


def apply_crd(admin: KubeClient, crd: dict[str, Any]) -> None:
    """Install a CRD and wait until it is served."""
    admin.apply(_CRDS, crd, field_manager="tests", force=True)

    def is_established() -> bool:
        status = admin.get(_CRDS, crd["metadata"]["name"]).get("status") or {}
        return any(
            c["type"] == "Established" and c["status"] == "True"
            for c in status.get("conditions") or ()
        )

    eventually(f"CRD {crd['metadata']['name']} is served", is_established)
