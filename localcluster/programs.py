# SPDX-License-Identifier: Apache-2.0
"""podsnap's own programs on the local cluster: kinds, rights, identities, processes.

They run as they would on any cluster: each under its own service account, never as administrator.
The trap: their tokens end after a year, and an agent's, which is bound to its Node, with that
object; so every ``up`` writes new ones. The programs read the token's file, not a copy.
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import requests

from localcluster import control_plane, debian
from localcluster.control_plane import ENVIRONMENT
from localcluster.fuse_library import fuse_library
from localcluster.machine import Component
from localcluster.node import CONTAINERD_SOCKET, METRICS_PORT
from localcluster.toolchain import REPOSITORY, default_cache
from schemas import names

if TYPE_CHECKING:
    from localcluster.api_server import ApiServer
    from localcluster.cluster import LocalCluster

_TOKEN_VALID_S = 365 * 24 * 3600
_PROBE_LIMIT_S = 2.0
# Nobody waits a day here to see that what was left behind is removed.
_SWEEP_GRACE = "20s"


def manifests() -> list[Path]:
    """Return what is applied: the kinds first, then who may do what with them."""
    kinds = sorted((REPOSITORY / "schemas" / "crds").glob("*.yaml"))
    return [*kinds, *sorted((REPOSITORY / "deploy").glob("*.yaml"))]


def start(cluster: "LocalCluster", api: "ApiServer") -> None:
    """Install podsnap and start its controller and one agent per node; wait until they are ready.

    Raises:
        ClusterError: something is refused, or does not become ready.
    """
    with cluster.step("podsnap's kinds and rights"):
        files = [argument for path in manifests() for argument in ("-f", str(path))]
        flags = ("--server-side", "--force-conflicts", "--field-manager=podsnap-local")
        cluster.kubectl("apply", *flags, *files)
    kinds = [path.stem for path in (REPOSITORY / "schemas" / "crds").glob("*.yaml")]
    cluster.until(
        "podsnap's kinds served",
        lambda: all(api.crd_is_established(kind) for kind in kinds),
        limit_s=30,
        log="kube-apiserver",
    )
    control, *workers = cluster.machines()
    control.ensure(_controller(cluster, api))
    agent_environment = {**_environment(), **_fuse(cluster)}
    for node, machine in zip(cluster.nodes, workers, strict=True):
        node.write_agent_settings(
            kubeconfig=_identity(cluster, api, names.AGENT_SERVICE_ACCOUNT, node=node.name),
            buckets=_buckets(cluster),
            cluster_id=cluster.id,
        )
        machine.ensure(
            Component(
                name="agent",
                argv=(
                    *(sys.executable, "-m", "nodeexec.command_line", "agent"),
                    f"--settings={node.agent_settings}",
                ),
                env=agent_environment,
                after_socket=str(CONTAINERD_SOCKET),
                config=(node.agent_settings,),
            )
        )
    waits = [("controller", f"{cluster.network.control}:{control_plane.METRICS_PORT}")]
    waits += [("agent", f"{node.address}:{METRICS_PORT}") for node in cluster.nodes]
    for name, address in waits:
        cluster.until(f"{name} ready", partial(_is_ready, address), limit_s=60, log=name)


def _controller(cluster: "LocalCluster", api: "ApiServer") -> Component:
    kubeconfig = _identity(cluster, api, names.CONTROLLER_SERVICE_ACCOUNT)
    flags = (
        f"--kubeconfig={kubeconfig}",
        *(f"--{key.replace('_', '-')}={value}" for key, value in _buckets(cluster).items()),
        f"--sweep-grace={_SWEEP_GRACE}",
        f"--metrics-address={cluster.network.control}:{control_plane.METRICS_PORT}",
        f"--cluster-id={cluster.id}",
    )
    program = (sys.executable, "-m", "reconciler.command_line", "controller")
    return Component(name="controller", argv=(*program, *flags), env=_environment())


def _buckets(cluster: "LocalCluster") -> dict[str, str]:
    """Return how the programs reach buckets, in the words of the agent's settings."""
    if cluster.bucket_endpoint:
        return {"bucket_endpoint": cluster.bucket_endpoint}
    return {"bucket_root": str(cluster.buckets)}


def _fuse(cluster: "LocalCluster") -> dict[str, str]:
    """Return what lets an agent load images in the background."""
    try:
        library = fuse_library(default_cache(), progress=cluster.progress)
    except debian.PackageError as error:
        cluster.progress(f"without loading in the background: {error}")
        return {}
    return {"FUSE_LIBRARY_PATH": str(library)}


def _environment() -> dict[str, str]:
    """Return a program's environment: our own, and where the caller wants telemetry to go."""
    return {**ENVIRONMENT, **{k: v for k, v in os.environ.items() if k.startswith("OTEL_")}}


def _identity(cluster: "LocalCluster", api: "ApiServer", account: str, *, node: str = "") -> Path:
    """Return the kubeconfig of a service account, on a node, with a new token."""
    from localcluster.cluster import ClusterError

    try:
        token = api.token(names.SYSTEM_NAMESPACE, account, valid_s=_TOKEN_VALID_S, node=node)
    except requests.RequestException as error:
        raise ClusterError(
            f"no token for the service account {names.SYSTEM_NAMESPACE}/{account} ({error}); "
            "it should come from deploy/*.yaml: is that folder complete?"
        ) from error
    server = cluster.control_plane.server
    file = f"{account}-{node}" if node else account
    return cluster.authority.token_kubeconfig(file, server=server, token=token)


def _is_ready(address: str) -> bool:
    with requests.Session() as session:
        session.trust_env = False  # a proxy cannot reach the cluster's addresses
        try:
            return session.get(f"http://{address}/readyz", timeout=_PROBE_LIMIT_S).ok
        except requests.RequestException:
            return False
