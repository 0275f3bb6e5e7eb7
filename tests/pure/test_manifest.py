# SPDX-License-Identifier: Apache-2.0
"""The manifest reads as it was written, and nothing else passes for one."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from api_objects import NODE
from hypothesis import given
from hypothesis import strategies as st

from schemas.encoding import Encoding
from schemas.manifest import (
    CHUNK_BYTES,
    DIGEST_BYTES,
    ENCODED_LIMIT_BYTES,
    Manifest,
    ManifestError,
    NewerFormatError,
    Part,
    Stored,
    digest,
)
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
    policy_name="web",
    group_labels={"tenant": "a"},
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


@st.composite
def _parts(draw: st.DrawFn) -> Part:
    length_bytes = draw(st.integers(min_value=0, max_value=5 * CHUNK_BYTES))
    chunks = max(-(-length_bytes // CHUNK_BYTES), 1)
    lengths = st.tuples(*[st.integers(0, ENCODED_LIMIT_BYTES)] * chunks)
    return Part(
        name=draw(st.sampled_from(("pages.img", "pages_meta.img", "metadata", "web-0.tar"))),
        length_bytes=length_bytes,
        crc32c=draw(_WORDS),
        digests=draw(st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES)) * chunks,
        generation=draw(st.integers(min_value=0)),
        stored=draw(st.none() | st.builds(Stored, st.just(Encoding.ZSTD), _WORDS, lengths)),
    )


@given(_parts())
def test_a_part_survives_being_written(part: Part) -> None:
    """Whatever the numbers are; and its chunks cover file and object without a gap."""
    assert Part.parse(json.loads(json.dumps(part.to_object()))) == part
    ranges = [part.chunk_range(i) for i in range(part.chunk_count)]
    assert [ranges[0][0], ranges[-1][1]] == [0, part.length_bytes]
    assert [end for _, end in ranges[:-1]] == [start for start, _ in ranges[1:]]
    offsets = part.stored_offsets()
    assert (offsets[0], offsets[-1], len(offsets)) == (0, part.stored_bytes, part.chunk_count + 1)


def test_an_encoded_part_is_another_object_with_the_same_digests() -> None:
    """So an image that is read plainly is never taken for one that is not."""
    stored = replace(PART, stored=Stored(Encoding.ZSTD, "BBBBBB==", (3,)))
    assert (stored.object_name, stored.stored_bytes, stored.stored_crc32c) == (
        "pages.img.zst",
        3,
        "BBBBBB==",
    )
    assert (PART.object_name, PART.stored_bytes, PART.stored_crc32c) == ("pages.img", 5, "AAAAAA==")
    whole = replace(MANIFEST, parts=(stored, MANIFEST.parts[1]))
    assert Manifest.parse(whole.to_bytes()) == whole
    assert (whole.size_bytes, whole.stored_bytes) == (5, 3)


def _part(**fields: Any) -> Callable[[dict[str, Any]], Any]:  # noqa: ANN401 - any JSON
    return lambda tree: tree["parts"][0].update(fields)


def _stored(lengths: Any) -> Callable[[dict[str, Any]], Any]:  # noqa: ANN401 - any JSON
    return _part(stored={"encoding": "zstd", "crc32c": "", "chunkLengths": lengths})


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
    "a part without all its digests": _part(blake3=base64.b64encode(b"a" * 31).decode()),
    "a part with digests that are no base64": _part(blake3="!" * 44),
    "a part that is longer than its digests": _part(length=CHUNK_BYTES + 1),
    "a part of less than nothing": _part(length=-1),
    "a part with a word for a length": _part(length="5"),
    "a part with a generation that is none": _part(generation=True),
    "a part above its directory": _part(name="../pages.img"),
    "a part that is its directory": _part(name=".."),
    "a part without a name": _part(name=""),
    "a part that is the manifest": _part(name="manifest.json"),
    "a part that is the cache's own note": _part(name="verified.json"),
    "a part that looks like another one's object": _part(name="pages.img.zst"),
    "a part with a name that no file may have": _part(name="a" * 300 + ".img"),
    "a part with a name of two lines": _part(name="pages.img\n"),
    "two parts of one name": lambda tree: tree["parts"][1].update(name="pages.img"),
    "a manifest of nothing": lambda tree: tree.update(parts=[]),
    "group labels that are a list": lambda tree: tree["snapshot"].update(groupLabels=[]),
    "an encoding that nobody knows": _part(
        stored={"encoding": "lzma", "crc32c": "", "chunkLengths": [3]}
    ),
    "an encoded part without its chunks": _stored([]),
    "an encoded part with one chunk too many": _stored([3, 3]),
    "an encoded chunk that would fill the memory": _stored([1 << 40]),
    "an encoded chunk of less than nothing": _stored([-1]),
    "an encoded chunk with a word for a length": _stored(["3"]),
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


def test_a_manifest_of_a_later_version_is_told_from_a_wrong_one() -> None:
    """Nothing is wrong with the snapshot, whatever else that version writes."""
    with pytest.raises(NewerFormatError, match=r"has format 3.*update this one"):
        Manifest.parse(b'{"format": 3}')
    for format_ in (1, -1, True, "3", 3.5, None):
        with pytest.raises(ManifestError) as raised:
            Manifest.parse(json.dumps({"format": format_, "chunkBytes": CHUNK_BYTES}).encode())
        assert not isinstance(raised.value, NewerFormatError)


def test_a_manifest_may_leave_out_what_only_an_import_needs() -> None:
    """The first ones of this format did."""
    tree = json.loads(MANIFEST.to_bytes())
    del tree["snapshot"]["policy"], tree["snapshot"]["groupLabels"]
    bare = replace(MANIFEST, policy_name="", group_labels={})
    assert Manifest.parse(json.dumps(tree).encode()) == bare


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"5", b"\xff", b'"x"', pytest.param(b"[" * 500_000, id="deep")],
)
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
