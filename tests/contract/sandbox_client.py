# SPDX-License-Identifier: Apache-2.0
"""Clients of snapshots as others have written them for GKE: their calls, their rules, their limits.

``SnapshotClient`` does what the sandbox SDK's snapshot client does, over plain HTTP, with a service
account that has that client's rights and no other. ``migration_verdict`` is how pod-migration reads
a save. The trap: nothing here may use podsnap's own code, or it would show only that we agree with
ourselves.
"""

import base64
import contextlib
import json
import secrets
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import requests
import yaml

from tests.cluster_scene import Scene

GROUP: Final = "podsnapshot.gke.io"
SANDBOX_LABEL: Final = "agents.x-k8s.io/sandbox-name-hash"
LIMIT_S: Final = 180
_NAME_LIMIT: Final = 38
ACCOUNT: Final = "sandbox-client"
RIGHTS: Final = [
    {
        "apiGroups": [GROUP],
        "resources": ["podsnapshots"],
        "verbs": ["get", "list", "watch", "delete"],
    },
    {
        "apiGroups": [GROUP],
        "resources": ["podsnapshotmanualtriggers"],
        "verbs": ["create", "get", "list", "watch", "delete"],
    },
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
]


class ClientError(Exception):
    """What the client tells its user."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A save that was answered with Complete."""

    trigger: str
    snapshot: str
    timestamp: str


@dataclass(slots=True)
class SnapshotClient:
    """One namespace's snapshots, through one session."""

    server: str
    namespace: str
    session: requests.Session

    def __post_init__(self) -> None:
        """Look whether the cluster has snapshots at all.

        Raises:
            ClientError: it has not.
        """
        answer = self.session.get(f"{self.server}/apis/{GROUP}/v1", timeout=LIMIT_S)
        kinds = {r["kind"] for r in answer.json().get("resources", ())}
        if not answer.ok or "PodSnapshot" not in kinds:
            raise ClientError("Pod Snapshot Controller is not ready")

    def create(self, prefix: str, pod: str) -> Taken:
        """Save a Pod and wait for the answer.

        Raises:
            ClientError: the save failed, the trigger was deleted, or the time is over.
        """
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        name = prefix.lower().replace("_", "-")[:_NAME_LIMIT].rstrip("-")
        name = f"{name}-{stamp}-{secrets.token_hex(4)}"
        body = {
            "apiVersion": f"{GROUP}/v1",
            "kind": "PodSnapshotManualTrigger",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"targetPod": pod},
        }
        made = self._call("POST", "podsnapshotmanualtriggers", body)
        version = made["metadata"]["resourceVersion"]
        for kind, found in self.watch("podsnapshotmanualtriggers", version, name=name):
            if kind in {"ERROR", "DELETED"}:
                raise ClientError(f"the trigger ended with {kind}: {found}")
            answer = condition(found, "Triggered")
            if answer.get("status") == "True" and answer["reason"] == "Complete":
                snapshot = found["status"]["snapshotCreated"]["name"]
                return Taken(name, snapshot, answer["lastTransitionTime"])
            if answer.get("status") == "False" and answer["reason"] in {"Failed", "Error"}:
                raise ClientError(answer["message"])
        raise ClientError(f"no answer of {name} in {LIMIT_S} s")

    def list(self, sandbox: str, *, ready_only: bool = True) -> list[dict[str, Any]]:
        """Return the snapshots of a sandbox, the newest first."""
        params = {"labelSelector": f"{SANDBOX_LABEL}={sandbox}"}
        found = self._call("GET", "podsnapshots", params=params)["items"]
        kept = [i for i in found if not ready_only or condition(i, "Ready").get("status") == "True"]
        return sorted(kept, key=lambda i: i["metadata"]["creationTimestamp"], reverse=True)

    def delete(self, snapshot: str) -> None:
        """Delete a snapshot and wait until it is gone.

        Raises:
            ClientError: it was still there when the time was over.
        """
        self._call("DELETE", f"podsnapshots/{snapshot}")
        answer = self.session.get(self._url(f"podsnapshots/{snapshot}"), timeout=LIMIT_S)
        if answer.status_code == HTTPStatus.NOT_FOUND:
            return
        answer.raise_for_status()
        version = answer.json()["metadata"]["resourceVersion"]
        for kind, _ in self.watch("podsnapshots", version, name=snapshot):
            if kind == "DELETED":
                return
        raise ClientError(f"{snapshot} was not deleted in {LIMIT_S} s")

    def is_restored(self, pod: dict[str, Any], snapshot: str) -> bool:
        """Whether a Pod says that it came from a snapshot."""
        found = condition(pod, "PodRestored")
        return found.get("status") == "True" and snapshot in found["message"]

    def terminate(self, *triggers: str) -> None:
        """Delete the triggers; one that is gone is as good."""
        for name in triggers:
            url = self._url(f"podsnapshotmanualtriggers/{name}")
            answer = self.session.delete(url, timeout=LIMIT_S)
            if answer.status_code != HTTPStatus.NOT_FOUND:
                answer.raise_for_status()

    def watch(
        self, plural: str, version: str, *, name: str = "", limit_s: int = LIMIT_S
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield every event since a version: its type and the object."""
        params = {"watch": "true", "resourceVersion": version, "timeoutSeconds": str(limit_s)}
        if name:
            params["fieldSelector"] = f"metadata.name={name}"
        url = self._url(plural)
        with self.session.get(url, params=params, stream=True, timeout=limit_s + 5) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                event = json.loads(line)
                yield event["type"], event["object"]

    def first(
        self, plural: str, version: str, holds: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        """Return the first write since a version of which something holds."""
        return next(written for _, written in self.watch(plural, version) if holds(written))

    def version(self, plural: str) -> str:
        """Return the version from which a watch sees what happens from now on."""
        return str(self._call("GET", plural)["metadata"]["resourceVersion"])

    def _call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        params: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        url = self._url(path)
        answer = self.session.request(method, url, json=body, params=params, timeout=LIMIT_S)
        if not answer.ok:
            raise ClientError(f"{method} {path}: {answer.status_code} {answer.text}")
        parsed: dict[str, Any] = answer.json()
        return parsed

    def _url(self, path: str) -> str:
        return f"{self.server}/apis/{GROUP}/v1/namespaces/{self.namespace}/{path}"


def condition(obj: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return a condition of an object, empty if it is not there."""
    conditions = (obj.get("status") or {}).get("conditions") or ()
    return next((c for c in conditions if c["type"] == kind), {})


def is_true(obj: dict[str, Any], kind: str) -> bool:
    """Whether a condition of an object holds."""
    return bool(condition(obj, kind).get("status") == "True")


def migration_verdict(trigger: dict[str, Any], snapshot: dict[str, Any]) -> str:
    """Return what pod-migration makes of a save: it fails, it goes on, or it waits."""
    answer = condition(trigger, "Triggered")
    said = [condition(snapshot, kind) for kind in ("Checkpoint", "StorageReplicated", "Ready")]
    bad = [c for c in said if c.get("status") == "False" and c["reason"] in {"Failed", "Error"}]
    if bad or (answer.get("status") == "False" and answer["reason"] == "Failed"):
        return "fails"
    checkpoint, _, ready = said
    is_written = checkpoint.get("status") == "True" and checkpoint["reason"] == "Succeeded"
    return "goes on" if is_written or ready.get("status") == "True" else "waits"


@contextlib.contextmanager
def snapshot_client(scene: Scene) -> Iterator[SnapshotClient]:
    """Make a service account with the client's rights, and a client that acts as it."""
    rbac = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT}
    subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": scene.namespace}
    for kind, version, rest in (
        ("ServiceAccount", "v1", {}),
        ("Role", "rbac.authorization.k8s.io/v1", {"rules": RIGHTS}),
        (
            "RoleBinding",
            "rbac.authorization.k8s.io/v1",
            {"roleRef": rbac, "subjects": [subject]},
        ),
    ):
        scene.apply({"apiVersion": version, "kind": kind, "metadata": {"name": ACCOUNT}, **rest})
    token = scene.kubectl("create", "token", ACCOUNT).strip()
    config = yaml.safe_load(scene.cluster.kubeconfig.read_text(encoding="utf-8"))
    cluster = config["clusters"][0]["cluster"]
    with tempfile.TemporaryDirectory() as directory, requests.Session() as session:
        authority = Path(directory) / "ca.crt"
        authority.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
        session.trust_env = False
        session.verify = str(authority)
        session.headers["Authorization"] = f"Bearer {token}"
        yield SnapshotClient(cluster["server"], scene.namespace, session)
