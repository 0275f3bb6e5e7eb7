# SPDX-License-Identifier: Apache-2.0
"""In which region the cluster is: as it was told, else as a Node with an agent says.

Cloud providers label their Nodes; others do not, and then nothing is judged by the region.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from backends.kube.client import KubeClient, Resource
from backends.kube.errors import ApiError

REGION_LABEL: Final = "topology.kubernetes.io/region"
_NODES: Final = Resource("", "v1", "nodes", "Node", namespaced=False)
_ASKED: Final = 3


@dataclass(slots=True)
class ClusterRegion:
    """The cluster's region, asked for until it is known.

    ``nodes`` names those to look at, the surest first: a Node that is gone leaves its Lease.
    """

    client: KubeClient
    nodes: Callable[[], Sequence[str]]
    known: str = ""

    def get(self) -> str:
        """Return the region, empty if nobody says."""
        for node in self.nodes()[:_ASKED] if not self.known else ():
            try:
                labels = self.client.get(_NODES, node)["metadata"].get("labels") or {}
            except ApiError:
                continue  # gone, or nobody's to read: without a region nothing is judged
            self.known = labels.get(REGION_LABEL, "")
            if self.known:
                break
        return self.known
