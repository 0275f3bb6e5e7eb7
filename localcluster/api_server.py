# SPDX-License-Identifier: Apache-2.0
"""The few questions that starting a cluster asks its API server, as its administrator.

podsnap's own programs never use this: they speak through ``backends.kube`` under their own
identities. The trap: right after its start the server refuses connections, then answers 403 and
404 for what it will have in a moment; here all of that means "not yet".
"""

from datetime import datetime
from pathlib import Path
from typing import Any

import requests

_LIMIT_S = 10.0
_MANAGER = "podsnap-local"


class ApiServer:
    """One API server."""

    def __init__(self, server: str, *, ca: Path, certificate: Path, key: Path) -> None:
        self.server = server
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = str(ca)
        self._session.cert = (str(certificate), str(key))

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def is_ready(self) -> bool:
        """Tell whether ``/readyz`` says ok."""
        try:
            answer = self._session.get(f"{self.server}/readyz", timeout=_LIMIT_S)
        except requests.RequestException:
            return False
        return answer.ok

    def get(self, path: str) -> dict[str, Any] | None:
        """Return an object, ``None`` if it is not there yet."""
        try:
            answer = self._session.get(f"{self.server}{path}", timeout=_LIMIT_S)
        except requests.RequestException:
            return None
        if not answer.ok:
            return None
        found: dict[str, Any] = answer.json()
        return found

    def apply(self, path: str, tree: dict[str, Any]) -> None:
        """Apply an object server-side.

        Raises:
            requests.RequestException: the server refused, or cannot be reached.
        """
        answer = self._session.patch(
            f"{self.server}{path}",
            params={"fieldManager": _MANAGER, "force": "true"},
            json=tree,
            headers={"Content-Type": "application/apply-patch+yaml"},
            timeout=_LIMIT_S,
        )
        answer.raise_for_status()

    def token(self, namespace: str, account: str, *, valid_s: int, node: str = "") -> str:
        """Return a new token of a service account; with ``node`` it names it, and ends with it.

        Raises:
            requests.RequestException: there is no such account or node, or the server cannot be
                reached.
        """
        spec: dict[str, Any] = {"expirationSeconds": valid_s}
        if node:
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Node", "name": node}
        answer = self._session.post(
            f"{self.server}/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token",
            json={
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": spec,
            },
            timeout=_LIMIT_S,
        )
        answer.raise_for_status()
        return str(answer.json()["status"]["token"])

    def node_is_ready(self, name: str, *, since: datetime) -> bool:
        """Tell whether a node's kubelet has said Ready since a time (to the second).

        After a crash the API still holds what the kubelet said in its last life.
        """
        for condition in _conditions(self.get(f"/api/v1/nodes/{name}")):
            if condition["type"] == "Ready" and condition["status"] == "True":
                return datetime.fromisoformat(condition["lastHeartbeatTime"]) >= since
        return False

    def crd_is_established(self, name: str) -> bool:
        """Tell whether a custom kind is served."""
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"
        conditions = _conditions(self.get(path))
        return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)


def _conditions(tree: dict[str, Any] | None) -> list[dict[str, Any]]:
    return ((tree or {}).get("status") or {}).get("conditions") or []
