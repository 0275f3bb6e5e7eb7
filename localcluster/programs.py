# SPDX-License-Identifier: Apache-2.0
"""podsnap's own programs on the local cluster: kinds, rights, identities, processes.

They run as they would on any cluster: each under its own service account, never as administrator.
The trap: their tokens end after a year, so every ``up`` writes new ones; the programs read the
token's file, not a copy.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import requests

from localcluster import control_plane
from localcluster.machine import Component
from localcluster.toolchain import REPOSITORY
from schemas import names

if TYPE_CHECKING:
    from localcluster.api_server import ApiServer
    from localcluster.cluster import LocalCluster

_TOKEN_VALID_S = 365 * 24 * 3600
_PROBE_LIMIT_S = 2.0


def manifests() -> list[Path]:
    """Return what is applied: the kinds first, then the rights."""
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
    kinds = sorted(p.stem for p in (REPOSITORY / "schemas" / "crds").glob("*.yaml"))
    for kind in kinds:
        cluster.until(
            f"{kind} served",
            lambda kind=kind: api.crd_is_established(kind),  # type: ignore[misc]  # mypy sees no default's type
            limit_s=30,
            log="kube-apiserver",
        )
    control, *workers = cluster.machines()
    control.ensure(_controller(cluster, api))
    for node, machine in zip(cluster.nodes, workers, strict=True):
        node.write_agent_settings(
            kubeconfig=_identity(cluster, api, names.AGENT_SERVICE_ACCOUNT),
            buckets=cluster.buckets,
            cluster_id=cluster.id,
        )
        argv = ("-m", "nodeexec.command_line", "agent", f"--settings={node.agent_settings}")
        machine.ensure(_program("agent", argv, after_socket=str(CONTAINERD_SOCKET)))
    addresses = {"controller": f"{cluster.network.control}:{control_plane.METRICS_PORT}"}
    for node in cluster.nodes:
        addresses["agent"] = f"{node.address}:{METRICS_PORT}"
    for name, address in addresses.items():
        cluster.until(
            f"{name} ready",
            lambda address=address: _is_ready(address),  # type: ignore[misc]  # as above
            limit_s=60,
            log=name,
        )
