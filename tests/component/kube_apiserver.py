# SPDX-License-Identifier: Apache-2.0
"""A real kube-apiserver over a real etcd on loopback, for tests that need no Pod.

Its users come from a token file, so that a test can act as the controller or an agent, with the
RBAC of ``deploy/``, and never as an administrator by accident.
"""

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import requests
import yaml

from backends.kube.client import KubeClient
from backends.kube.transport import Transport
from localcluster.toolchain import Toolchain

_READY_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class ApiServer:
    """A running server and how to talk to it."""

    directory: Path
    url: str
    authority: Path
    tokens: dict[str, str]
    process: "subprocess.Popen[bytes]"

    def kubeconfig(self, user: str) -> Path:
        """Write and return the kubeconfig of a user of ``_USERS``."""
        token = self.directory / f"{user}.token"
        token.write_text(self.tokens[user], encoding="utf-8")
        doc = {
            "clusters": [
                {
                    "name": "c",
                    "cluster": {"server": self.url, "certificate-authority": str(self.authority)},
                }
            ],
            "users": [{"name": "u", "user": {"tokenFile": str(token)}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path = self.directory / f"{user}.kubeconfig"
        path.write_text(yaml.safe_dump(doc), encoding="utf-8")
        return path

    def username(self, user: str) -> str:
        """Return a user's name as the API server has it."""
        return _USERS[user][0]

    def client(self, user: str = "admin") -> KubeClient:
        """Return a client with a user's rights."""
        return KubeClient(Transport.from_kubeconfig(self.kubeconfig(user), user_agent="tests"))


_USERS = {
    "tenant": ("tenant", "tenants"),
    "admin": ("admin", "system:masters"),
    "controller": (
        "system:serviceaccount:podsnap-system:podsnap-controller",
        "system:serviceaccounts",
    ),
    "agent": ("system:serviceaccount:podsnap-system:podsnap-agent", "system:serviceaccounts"),
    "flux": ("system:serviceaccount:flux-system:kustomize-controller", "system:serviceaccounts"),
    "argocd": (
        "system:serviceaccount:argocd:argocd-application-controller",
        "system:serviceaccounts",
    ),
}


def run_apiserver(directory: Path) -> Iterator[ApiServer]:
    """Start both processes, yield when ready, end them."""
    tools = Toolchain()
    etcd_port, peer_port, port = _free_ports(3)
    log = (directory / "log").open("wb")
    etcd = subprocess.Popen(
        [
            str(tools.path("etcd")),
            f"--data-dir={directory}/etcd",
            "--unsafe-no-fsync",
            f"--listen-client-urls=http://127.0.0.1:{etcd_port}",
            f"--advertise-client-urls=http://127.0.0.1:{etcd_port}",
            f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
            "--log-level=error",
        ],
        stdout=log,
        stderr=log,
    )
    tokens = {user: secrets.token_hex(16) for user in _USERS}
    token_file = directory / "tokens.csv"
    token_file.write_text(
        "".join(f"{tokens[u]},{name},{u},{group}\n" for u, (name, group) in _USERS.items()),
        encoding="utf-8",
    )
    key = directory / "sa.key"
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    server = subprocess.Popen(
        [
            str(tools.path("kube-apiserver")),
            f"--etcd-servers=http://127.0.0.1:{etcd_port}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--cert-dir={directory}/certs",
            f"--token-auth-file={token_file}",
            "--authorization-mode=RBAC",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--endpoint-reconciler-type=none",
            "--disable-admission-plugins=ServiceAccount",
        ],
        stdout=log,
        stderr=log,
    )
    try:
        found = ApiServer(
            directory=directory,
            url=f"https://127.0.0.1:{port}",
            authority=directory / "certs/apiserver.crt",
            tokens=tokens,
            process=server,
        )
        _wait_ready(found, directory / "log")
        yield found
    finally:
        for process in (server, etcd):
            process.kill()
            process.wait()
        log.close()


def _wait_ready(server: ApiServer, log: Path) -> None:
    deadline_s = time.monotonic() + _READY_LIMIT_S
    session = requests.Session()
    session.trust_env = False
    while time.monotonic() < deadline_s:
        if server.process.poll() is not None:
            raise RuntimeError(f"kube-apiserver ended:\n{log.read_text()[-2000:]}")
        try:
            answer = session.get(
                f"{server.url}/readyz",
                headers={"Authorization": f"Bearer {server.tokens['admin']}"},
                verify=str(server.authority),
                timeout=2,
            )
        except (requests.RequestException, OSError):
            os.sched_yield()
            continue
        if answer.ok:
            return
    raise RuntimeError(f"kube-apiserver was not ready in {_READY_LIMIT_S} s; see {log}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
