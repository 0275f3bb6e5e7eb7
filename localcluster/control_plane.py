# SPDX-License-Identifier: Apache-2.0
"""The control plane: what runs on its machine, with which flags, under which identity.

Kubernetes's own components, one of each, as on any cluster; the flags below say what differs from
their defaults and why. The trap: each controller has its own service account, because admission
tells the garbage collector from the rest by it, and with the usual set of controllers the first
Pod would wait four seconds longer for all the tokens; podsnap needs only those listed here.
"""

from dataclasses import dataclass
from pathlib import Path

from localcluster.certificates import Authority, Identity
from localcluster.machine import Component
from localcluster.network import SYSTEM_PATH, ClusterNetwork
from localcluster.toolchain import Toolchain

NAME = "control-plane"
PORT = 6443
METRICS_PORT = 8080
ENVIRONMENT = {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8", "HOME": "/root"}

_CONTROLLERS = (
    "daemonset-controller",
    "deployment-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "job-controller",
    "namespace-controller",
    "node-lifecycle-controller",
    "pod-garbage-collector-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "statefulset-controller",
    "taint-eviction-controller",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """The control plane of one cluster."""

    network: ClusterNetwork
    authority: Authority
    toolchain: Toolchain
    directory: Path

    @property
    def server(self) -> str:
        """The API server's URL."""
        return f"https://{self.network.control}:{PORT}"

    def identities(self) -> list[Identity]:
        """Return whom to issue certificates for."""
        service = str(self.network.services[1])
        names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost")
        hosts = (*names, str(self.network.control), service, "127.0.0.1")
        masters = "system:masters"
        return [
            Identity(file="apiserver", common_name="kube-apiserver", hosts=hosts),
            Identity(
                file="kubelet-client", common_name="kube-apiserver-kubelet", organization=masters
            ),
            Identity(file="admin", common_name="podsnap-local-admin", organization=masters),
            Identity(file="scheduler", common_name="system:kube-scheduler"),
            Identity(file="controller-manager", common_name="system:kube-controller-manager"),
        ]

    def prepare(self) -> None:
        """Write what the components read."""
        (self.directory / "etcd").mkdir(parents=True, exist_ok=True, mode=0o700)
        for file in ("admin", "scheduler", "controller-manager"):
            self.authority.kubeconfig(file, server=self.server)

    def _component(self, name: str, *flags: str) -> Component:
        argv = (str(self.toolchain.path(name)), *flags)
        return Component(name=name, argv=argv, env=ENVIRONMENT)

    def etcd(self) -> Component:
        """Return the store; it listens inside its machine alone."""
        client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
        return self._component(
            "etcd",
            "--name=local",
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=local={peer}",
            "--log-level=warn",
        )

    def apiserver(self) -> Component:
        """Return the API server."""
        pki = self.authority
        return self._component(
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--secure-port={PORT}",
            f"--advertise-address={self.network.control}",
            f"--tls-cert-file={pki.certificate('apiserver')}",
            f"--tls-private-key-file={pki.key('apiserver')}",
            f"--client-ca-file={pki.ca}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki.directory / 'sa.pub'}",
            f"--service-account-signing-key-file={pki.key('sa')}",
            f"--kubelet-certificate-authority={pki.ca}",
            f"--kubelet-client-certificate={pki.certificate('kubelet-client')}",
            f"--kubelet-client-key={pki.key('kubelet-client')}",
            "--kubelet-preferred-address-types=InternalIP",  # names of nodes are in no DNS
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--service-cluster-ip-range={self.network.services}",
            "--allow-privileged=true",
            # Without these the others complain about a missing ConfigMap for ever.
            f"--requestheader-client-ca-file={pki.ca}",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--endpoint-reconciler-type=none",  # no kube-proxy would serve the endpoints
        )

    def scheduler(self) -> Component:
        """Return the scheduler."""
        return self._component("kube-scheduler", *self._client_flags("scheduler"))

    def controller_manager(self) -> Component:
        """Return the controllers that Deployments, Jobs and service accounts need."""
        return self._component(
            "kube-controller-manager",
            *self._client_flags("controller-manager"),
            f"--controllers={','.join(_CONTROLLERS)}",
            f"--service-account-private-key-file={self.authority.key('sa')}",
            f"--root-ca-file={self.authority.ca}",
            "--use-service-account-credentials",
        )

    def _client_flags(self, identity: str) -> tuple[str, ...]:
        kubeconfig = self.authority.directory / f"{identity}.kubeconfig"
        return (
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        )
