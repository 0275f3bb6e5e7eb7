# SPDX-License-Identifier: Apache-2.0
"""What a manifest from a bucket may say of its snapshot, whoever wrote it."""

from dataclasses import replace
from typing import Any

import pytest

from policies.imported_snapshots import malformed
from schemas.manifest import Manifest
from schemas.snapshot import Compatibility, SpecIdentity

GOOD = Manifest(
    snapshot_uid="uid",
    snapshot_name="web-1.a",
    namespace="shop",
    cluster_id="c1",
    attempt=1,
    parts=(),
    identity=SpecIdentity("hash", {}),
    compatibility=Compatibility("release-1"),
)
WRONG: dict[str, dict[str, Any]] = {
    "a name with a slash": {"snapshot_name": "a/b"},
    "a name that leads up": {"snapshot_name": ".."},
    "a name with a line": {"snapshot_name": "a\n"},
    "a name that is too long": {"snapshot_name": "a" * 254},
    "a name that is no text": {"snapshot_name": 7},
    "a namespace with a dot": {"namespace": "a.b"},
    "no uid": {"snapshot_uid": ""},
    "a uid that is no text": {"snapshot_uid": {"a": 1}},
    "an attempt that is text": {"attempt": "1"},
    "an attempt that is true": {"attempt": True},
    "no attempt": {"attempt": 0},
    "a Pod that is no text": {"origin_pod": ["a"]},
}


@pytest.mark.parametrize("what", WRONG)
def test_what_no_snapshot_can_be_called_is_named(what: str) -> None:
    """It would be put into objects and paths as it is."""
    assert malformed(replace(GOOD, **WRONG[what]))


def test_what_podsnap_writes_is_taken() -> None:
    """Names as the API server takes them."""
    assert malformed(GOOD) == ""
