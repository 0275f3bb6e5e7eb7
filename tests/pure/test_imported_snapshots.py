# SPDX-License-Identifier: Apache-2.0
"""A manifest from a bucket becomes a PodSnapshot of the policy and the group that it had."""

from dataclasses import replace
from typing import Any

import pytest
from api_objects import NODE, policy

from policies.imported_snapshots import governing, imported_object, unsaid
from schemas.manifest import Manifest, Part
from schemas.snapshot import SpecIdentity

MANIFEST = Manifest(
    snapshot_uid="u",
    snapshot_name="n",
    namespace="shop",
    cluster_id="c",
    attempt=1,
    parts=(Part("checkpoint.img", 5, "AAAAAA==", b"a" * 32, 7),),
    identity=SpecIdentity("h", {}),
    compatibility=NODE,
    policy_name="web",
    group_labels={"tenant": "a", "podsnap.dev/identity": "forged"},
)
POLICIES = (policy("web", labels=("tenant",)), policy("other"))

CHOSEN: dict[str, tuple[Manifest, str, str]] = {
    "as it was": (MANIFEST, "", "web"),
    "as one wants": (MANIFEST, "other", "other"),
    "nobody says": (replace(MANIFEST, policy_name=""), "", "choose one with --policy"),
    "its own is gone": (replace(MANIFEST, policy_name="gone"), "", "choose one with --policy"),
}


@pytest.mark.parametrize("what", CHOSEN)
def test_an_imported_snapshot_belongs_to_the_policy_that_it_had(what: str) -> None:
    """Unless somebody wants another one."""
    manifest, wanted, expected = CHOSEN[what]
    found = governing(manifest, POLICIES, wanted)
    assert expected in (found if isinstance(found, str) else found.metadata.name)


def test_an_imported_snapshot_is_of_the_group_that_it_was_of() -> None:
    """No other label is taken from what lies in a bucket; and what is not said is told."""

    def labels(of: Manifest) -> Any:  # noqa: ANN401 - any JSON
        return imported_object(of, POLICIES[0], stored_at="")["metadata"]["labels"]

    assert labels(MANIFEST) == {"tenant": "a"}
    assert unsaid(MANIFEST, POLICIES[0]) == ()
    old = replace(MANIFEST, policy_name="", group_labels={})
    assert labels(old) == {}
    assert "groups by tenant" in unsaid(old, POLICIES[0])[0]
