# SPDX-License-Identifier: Apache-2.0
"""How a cluster and its accounts are called by Google Cloud."""

import pytest

from backends.objects.workload_identity import NO_IDENTITY, WorkloadIdentity

POOL = "projects/12/locations/global/workloadIdentityPools/clusters"
OWN = f"//iam.googleapis.com/{POOL}/providers/one"
CLUSTER = "https://container.googleapis.com/v1/projects/shop/locations/europe-west4/clusters/one"
GKE = f"identitynamespace:shop.svc.id.goog:{CLUSTER}"


@pytest.mark.parametrize(
    ("provider", "audience", "principal"),
    [
        pytest.param(OWN, OWN, f"{POOL}/subject/system:serviceaccount:team:web", id="any cluster"),
        pytest.param(
            GKE,
            "shop.svc.id.goog",
            "projects/PROJECT_NUMBER/locations/global/workloadIdentityPools/shop.svc.id.goog/"
            "subject/ns/team/sa/web",
            id="GKE",
        ),
    ],
)
def test_tokens_carry_what_the_provider_takes(provider: str, audience: str, principal: str) -> None:
    """And a principal is spelled as `gcloud` wants it."""
    identity = WorkloadIdentity(provider=provider)
    assert identity.token_audience == audience
    assert identity.principal("team", "web") == f"principal://iam.googleapis.com/{principal}"


@pytest.mark.parametrize(
    "provider",
    [
        "https://kubernetes.default.svc",
        f"//iam.googleapis.com/{POOL}",
        "identitynamespace:shop:cluster",
        "shop.svc.id.goog",
    ],
)
def test_what_is_no_provider_is_refused(provider: str) -> None:
    """A token for another audience might open the API server."""
    with pytest.raises(ValueError, match="no workload identity provider"):
        WorkloadIdentity(provider=provider)


def test_without_a_provider_there_is_no_audience() -> None:
    """Nobody is asked for a token then."""
    assert NO_IDENTITY.token_audience == ""
