# SPDX-License-Identifier: Apache-2.0
"""The manifest reads as it was written, and nothing else passes for one."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from api_objects import NODE
from hypothesis import given
from hypothesis import strategies as st

from schemas.manifest import CHUNK_BYTES, Manifest, ManifestError, Part, digest
from schemas.snapshot import SpecIdentity

PART = Part("pages.img", 5, "AAAAAA==", b"a" * 32, 7)
MANIFEST = Manifest(
    snapshot_uid="u",
    snapshot_name="n",
    namespace="shop",
    cluster_id="c",
    attempt=2,
    parts=(PART, Part("metadata", 0, "AAAAAA==", b"c" * 32, 8)),
    identity=SpecIdentity("h", {"spec.dnsPolicy": '"Default"'}),
    compatibility=NODE,
    image_ids={"main": "sha256:1"},
    origin_node="node-1",
    origin_pod="web-0",
    git_revision="main@sha1:1",
    trace_id="t",
)


def test_a_manifest_survives_being_written() -> None:
    """Equal manifests give equal bytes, and so equal digests."""
    text = MANIFEST.to_bytes()
    assert Manifest.parse(text) == MANIFEST
    assert Manifest.parse(text).to_bytes() == text
    assert digest(text) == digest(MANIFEST.to_bytes())
    assert digest(text) != digest(text + b" ")
    assert MANIFEST.size_bytes == 5


_WORDS = st.text(max_size=8)


@given(
    st.builds(
        Part,
        name=_WORDS,
        length_bytes=st.integers(min_value=0),
        crc32c=_WORDS,
        blake3=st.lists(_WORDS).map(tuple),
        generation=st.integers(min_value=0),
    )
)
def test_a_part_survives_being_written(part: Part) -> None:
    """Whatever the names and numbers are."""
    assert Part.parse(json.loads(json.dumps(part.to_object()))) == part


def _without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda tree: tree.pop(key)


BAD: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a newer format": lambda tree: tree.update(format=3),
    "another chunk size": lambda tree: tree.update(chunkBytes=CHUNK_BYTES * 2),
    "no parts": _without("parts"),
    "no snapshot": _without("snapshot"),
    "no format": _without("format"),
    "no identity": _without("identity"),
    "a part without a digest": lambda tree: tree["parts"][0].pop("blake3"),
    "parts that are a number": lambda tree: tree.update(parts=5),
    "a snapshot that is a list": lambda tree: tree.update(snapshot=[]),
    "an identity that is null": lambda tree: tree.update(identity=None),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_manifest_of_this_version_is_refused(what: str) -> None:
    """Never with another exception than the one that callers expect."""
    tree = json.loads(MANIFEST.to_bytes())
    BAD[what](tree)
    with pytest.raises(ManifestError):
        Manifest.parse(json.dumps(tree).encode())


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"5", b"\xff", b'"x"'])
def test_what_is_no_json_object_is_refused(text: bytes) -> None:
    """A torn or foreign object in the bucket must not end the agent."""
    with pytest.raises(ManifestError):
        Manifest.parse(text)


def test_every_prefix_of_a_manifest_is_refused() -> None:
    """A cut manifest can never pass."""
    text = MANIFEST.to_bytes().rstrip()
    for end in range(0, len(text), 17):
        with pytest.raises(ManifestError):
            Manifest.parse(text[:end])
