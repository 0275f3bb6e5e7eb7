# SPDX-License-Identifier: Apache-2.0
"""GKE's own Pod snapshots, beside which podsnap does not run.

Both act on the same kinds. With two controllers each save would be made twice or by neither, and
each would undo the conditions of the other; so the controller looks once, before it does anything.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Final

from backends.clock import Clock
from backends.kube.client import KubeClient, Resource
from backends.kube.errors import ApiError, NotFound

log = logging.getLogger(__name__)

_RETRY_S: Final = 2.0
# Fixed names of the addon (contract, section 5).
_TRACES: Final = (
    (
        Resource(
            "admissionregistration.k8s.io",
            "v1",
            "validatingadmissionpolicies",
            "ValidatingAdmissionPolicy",
            namespaced=False,
        ),
        "gke-pod-snapshot-validating-admission-policy",
    ),
    (
        Resource("", "v1", "namespaces", "Namespace", namespaced=False),
        "gke-managed-pod-snapshots",
    ),
)


def traces_of_addon(client: KubeClient, clock: Clock) -> list[str]:
    """Return what of the addon is in the cluster, by kind and name.

    Waits, told in the log, for as long as the API server does not say: not knowing is no leave.
    """
    found = []
    for resource, name in _TRACES:
        while True:
            try:
                client.get(resource, name)
                found.append(f"{resource.kind} {name}")
            except NotFound:
                pass
            except ApiError as error:
                log.warning("cannot see whether GKE's Pod snapshot addon is here: %s", error)
                clock.wait(threading.Event(), _RETRY_S)
                continue
            break
    return found


def refusal(found: Sequence[str]) -> str:
    """Say why the controller does not start; empty if nothing was found."""
    if not found:
        return ""
    return (
        f"GKE's own Pod snapshot addon is in this cluster (found: {', '.join(found)}). podsnap "
        "does not start beside it, because two controllers would fight over the same PodSnapshots. "
        "Disable the addon (addonsConfig.podSnapshotConfig.enabled=false) and delete what it left "
        "behind, or uninstall podsnap"
    )
