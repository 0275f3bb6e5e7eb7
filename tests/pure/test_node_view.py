# SPDX-License-Identifier: Apache-2.0
"""Which kind of node runs what, now and after a roll of gVisor."""

from dataclasses import replace
from datetime import UTC, datetime

from api_objects import NODE, capture_of, pod, snapshot

from reconciler.node_view import node_rows, void_after
from schemas.node_facts import NodeFacts
from schemas.snapshot import Compatibility, Snapshot

NOW = datetime(2026, 1, 5, tzinfo=UTC)
NEXT = replace(NODE, runsc_version="release-2", runsc_digest="sha256:bb")
NODES = [
    NodeFacts("node-1", NODE, NOW.timestamp() - 30),
    NodeFacts("node-2", NODE, NOW.timestamp() - 5),
    NodeFacts("node-3", NEXT, NOW.timestamp() - 5),
    NodeFacts("podsnap-controller", Compatibility(), NOW.timestamp()),
]


def saved(name: str, on: Compatibility = NODE, *, rootfs_only: bool = False) -> Snapshot:
    """Return a stored snapshot that a kind of node made."""
    capture = replace(capture_of(pod()), compatibility=on, rootfs_only=rootfs_only)
    return snapshot(name, capture=capture)


STORED = [
    saved("old"),
    saved("new", NEXT),
    saved("files", rootfs_only=True),
    snapshot("uploading", is_ready=False),
]


def test_each_kind_of_node_is_a_row_with_what_it_runs() -> None:
    """The largest kind first; files run anywhere; what is not stored runs nowhere."""
    first, second = node_rows(NODES, STORED, NOW)
    assert (first.nodes, first.seen_s, first.runs) == (
        ("node-1", "node-2"),
        5.0,
        ("shop/files", "shop/old"),
    )
    assert (second.nodes, second.runs) == (("node-3",), ("shop/files", "shop/new"))
    assert (second.runsc_version, second.runsc_digest) == ("release-2", "sha256:bb")
    assert first.loses == ()


def test_a_roll_says_beforehand_what_becomes_void() -> None:
    """On each kind of node, and in the whole cluster; an image of that version is not."""
    rows = node_rows(NODES, STORED, NOW, if_runsc="release-2")
    assert [row.loses for row in rows] == [("shop/old",), ()]
    assert void_after(rows) == ["shop/old"]
    rows = node_rows(NODES, STORED, NOW, if_runsc="release-3")
    assert void_after(rows) == ["shop/new", "shop/old"]
    assert void_after(node_rows(NODES, STORED, NOW)) == []
