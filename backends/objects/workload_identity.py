# SPDX-License-Identifier: Apache-2.0
"""How a cluster is known to Google Cloud: which Kubernetes identity is which principal.

Two spellings of a provider exist. Any cluster's own is a resource of a workload identity pool
(``//iam.googleapis.com/projects/…/workloadIdentityPools/POOL/providers/NAME``), and its Kubernetes
tokens carry that name as audience. GKE's is ``identitynamespace:POOL:CLUSTER``; there the tokens
carry the pool (``PROJECT.svc.id.goog``), and principals are spelled differently.
"""

import re
from dataclasses import dataclass
from typing import Final

GOOGLE_STS: Final = "https://sts.googleapis.com"
GOOGLE_IAM: Final = "https://iamcredentials.googleapis.com"
_OWN: Final = re.compile(
    r"(?:https:)?//iam\.googleapis\.com/(?P<pool>projects/[^/]+/locations/global/"
    r"workloadIdentityPools/[^/]+)/providers/[^/]+"
)
_GKE: Final = re.compile(r"identitynamespace:(?P<pool>[^:]+\.svc\.id\.goog):\S+")


@dataclass(frozen=True, slots=True)
class WorkloadIdentity:
    """Where Kubernetes tokens are exchanged, and as whom.

    Without ``provider`` none is exchanged. ``impersonate`` is the e-mail of the service account
    that every Pod's tokens are for, unless its own ServiceAccount names another; empty: the Pod's
    principal itself.
    """

    provider: str = ""
    sts_url: str = GOOGLE_STS
    iam_url: str = GOOGLE_IAM
    impersonate: str = ""

    def __post_init__(self) -> None:
        """Refuse a provider that is none.

        Raises:
            ValueError: the text says which spellings there are.
        """
        if self.provider and not (_OWN.fullmatch(self.provider) or _GKE.fullmatch(self.provider)):
            raise ValueError(
                f"{self.provider!r} is no workload identity provider; write "
                "//iam.googleapis.com/projects/NUMBER/locations/global/workloadIdentityPools/POOL/"
                "providers/NAME or, on GKE, identitynamespace:PROJECT.svc.id.goog:CLUSTER-URL"
            )

    @property
    def token_audience(self) -> str:
        """The audience of the Kubernetes tokens that the provider takes."""
        gke = _GKE.fullmatch(self.provider)
        return gke["pool"] if gke else self.provider

    def principal(self, namespace: str, account: str) -> str:
        """Return how IAM calls a Kubernetes service account."""
        gke = _GKE.fullmatch(self.provider)
        if gke:
            pool = f"projects/PROJECT_NUMBER/locations/global/workloadIdentityPools/{gke['pool']}"
            subject = f"ns/{namespace}/sa/{account}"
        else:
            own = _OWN.fullmatch(self.provider)
            pool = own["pool"] if own else "POOL"
            subject = f"system:serviceaccount:{namespace}:{account}"
        return f"principal://iam.googleapis.com/{pool}/subject/{subject}"


# A cluster that Google Cloud does not know.
NO_IDENTITY: Final = WorkloadIdentity()
