# SPDX-License-Identifier: Apache-2.0
"""The mark by which a cluster knows what it wrote to buckets: no two clusters may have the same.

It is what the controller was told, else the UID of namespace kube-system, which no other cluster
has. The leader publishes it on its Lease. The trap: a command may be asked through the context of
another cluster, and would then judge this one's bytes by that one's objects; so it takes the mark
from the cluster that it talks to, and no other.
"""

from typing import Final

from backends.kube.client import LEASES, KubeClient, Resource
from backends.kube.errors import NotFound
from schemas.names import CLUSTER_ID_ANNOTATION, SYSTEM_NAMESPACE

LEASE_NAME: Final = "podsnap-controller"
_NAMESPACES: Final = Resource("", "v1", "namespaces", "Namespace", namespaced=False)


def own_cluster_id(client: KubeClient) -> str:
    """Return the mark of a cluster that was told none.

    Raises:
        ApiError: the API server refused, or did not answer.
    """
    return str(client.get(_NAMESPACES, "kube-system")["metadata"]["uid"])


def published_cluster_id(client: KubeClient) -> str:
    """Return the mark that the cluster's leader uses, empty if none ever led.

    Raises:
        ApiError: the API server refused, or did not answer.
    """
    try:
        lease = client.get(LEASES, LEASE_NAME, namespace=SYSTEM_NAMESPACE)
    except NotFound:
        return ""
    return str((lease["metadata"].get("annotations") or {}).get(CLUSTER_ID_ANNOTATION, ""))
