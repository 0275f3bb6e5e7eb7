# SPDX-License-Identifier: Apache-2.0
"""A server that speaks Cloud Storage's protocol: fake-gcs-server on the control plane's machine.

With it the programs go the way that they go on Google's cloud, all but the identities: it asks
nobody who they are. What it cannot show: it ignores preconditions on compose and delete, knows no
folders, and does not tell how many parts an object was composed of. Its files are the objects, each
bucket a folder.
"""

import json
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

import requests

from localcluster.control_plane import ENVIRONMENT
from localcluster.machine import Component

if TYPE_CHECKING:
    from localcluster.cluster import LocalCluster

NAME = "object-server"
PORT = 4443
_LIMIT_S = 10.0


class ObjectServerError(Exception):
    """The server refuses a bucket."""


def endpoint(cluster: "LocalCluster") -> str:
    """Return its address, for the programs and for this host."""
    return f"http://{cluster.network.control}:{PORT}"


def start(cluster: "LocalCluster") -> None:
    """Start it; wait until it answers. All bytes lie in the cluster's folder of buckets.

    Raises:
        ToolchainError: it cannot be built.
        ClusterError: it does not answer.
    """
    cluster.toolchain.build(cluster.progress, "storage")
    address = f"{cluster.network.control}:{PORT}"
    flags = (
        *("-backend=filesystem", f"-filesystem-root={cluster.buckets}", "-scheme=http"),
        *(f"-host={cluster.network.control}", f"-port={PORT}", "-log-level=warn"),
        # It writes its own address into the answers that say where an upload goes on.
        *(f"-external-url=http://{address}", f"-public-host={address}"),
    )
    program = str(cluster.toolchain.path("fake-gcs-server"))
    server = Component(name=NAME, argv=(program, *flags), env=ENVIRONMENT)
    cluster.machines()[0].ensure(server)
    cluster.until(f"{NAME} ready", partial(_is_up, cluster), limit_s=30, log=NAME)


def _is_up(cluster: "LocalCluster") -> bool:
    with requests.Session() as session:
        session.trust_env = False  # a proxy cannot reach the cluster's addresses
        try:
            return session.get(f"{endpoint(cluster)}/_internal/healthcheck", timeout=_LIMIT_S).ok
        except requests.RequestException:
            return False


def make_bucket(cluster: "LocalCluster", name: str) -> None:
    """Make a bucket of whatever kind the cluster's are; harmless if it is there.

    Raises:
        ObjectServerError: the server does not answer, or refuses the name.
    """
    if not cluster.bucket_endpoint:
        (cluster.buckets / name).mkdir(mode=0o700, exist_ok=True)
        return
    with requests.Session() as session:
        session.trust_env = False
        try:
            answer = session.post(
                f"{endpoint(cluster)}/storage/v1/b?project=podsnap",
                data=json.dumps({"name": name}),
                timeout=_LIMIT_S,
            )
        except requests.RequestException as error:
            raise ObjectServerError(
                f"bucket {name} cannot be made, the server does not answer ({error}); "
                f"see: podsnap local logs {NAME}"
            ) from error
    if not answer.ok and answer.status_code != HTTPStatus.CONFLICT:
        raise ObjectServerError(f"bucket {name} cannot be made: {answer.text.strip()}")
