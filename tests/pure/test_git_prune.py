# SPDX-License-Identifier: Apache-2.0
"""What a commit may delete, and when that looks like an accident."""

import pytest

from reconciler.git_prune import leaving, refusal
from schemas.git_source import GitSource, InventoryEntry
from schemas.metadata import Metadata
from schemas.names import ALLOW_PRUNE_ANNOTATION

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISION = f"main@sha1:{COMMIT}"


def policies(names: str) -> tuple[InventoryEntry, ...]:
    """Return one policy for each letter."""
    return tuple(InventoryEntry("g", "PodSnapshotPolicy", "n", name) for name in names)


STORAGE = InventoryEntry("g", "PodSnapshotStorageConfig", "", "s")
TRIGGER = InventoryEntry("g", "PodSnapshotManualTrigger", "n", "t")


def source(
    inventory: tuple[InventoryEntry, ...], *, prune: bool = True, allow: str = ""
) -> GitSource:
    """Return a source that has applied something."""
    annotations = {ALLOW_PRUNE_ANNOTATION: allow} if allow else {}
    return GitSource(
        metadata=Metadata(name="s", namespace="n", annotations=annotations),
        url="file:///x",
        branch="main",
        tag=None,
        commit=None,
        path="",
        interval_s=60,
        prune=prune,
        inventory=inventory,
    )


JUDGED = {
    "nothing leaves": (policies("ab"), policies("ab"), ""),
    "half of them leave": (policies("abcd"), policies("ab"), ""),
    "more than half leave": (policies("abc"), policies("a"), "would remove 2 of 3 policies"),
    "more than half leave and as many come": (
        policies("abc"),
        policies("axyz"),
        "would remove 2 of 3 policies",
    ),
    "the only one leaves, another comes": (
        policies("a"),
        policies("b"),
        "would remove 1 of 1 policies",
    ),
    "all leave": (policies("ab"), (), "has no objects of podsnap any more"),
    "all leave, and none was a policy": ((STORAGE,), (), "has no objects of podsnap any more"),
    "triggers and storage leave": ((STORAGE, TRIGGER, *policies("a")), policies("a"), ""),
    "nothing was there": ((), policies("a"), ""),
    "nothing was there and nothing is": ((), (), ""),
}


@pytest.mark.parametrize("what", JUDGED)
def test_more_than_half_of_the_policies_is_too_much(what: str) -> None:
    """Or all there was; and the message says how to do it all the same."""
    before, wanted, expected = JUDGED[what]
    message = refusal(source(before), wanted, REVISION)
    assert expected in message
    assert bool(expected) == bool(message)
    if expected:
        assert f"{ALLOW_PRUNE_ANNOTATION}={COMMIT}" in message


ALLOWED = {
    "true": True,
    REVISION: True,
    COMMIT: True,
    COMMIT[:7]: True,
    COMMIT[:6]: False,
    "9" * 40: False,
    "yes": False,
}


@pytest.mark.parametrize("said", ALLOWED)
def test_an_annotation_allows_one_revision_or_all(said: str) -> None:
    """Of a commit at least seven digits, as Git itself asks for."""
    message = refusal(source(policies("abc"), allow=said), (), REVISION)
    assert (message == "") == ALLOWED[said]


def test_without_prune_nothing_is_refused() -> None:
    """Since nothing is deleted."""
    assert refusal(source(policies("abc"), prune=False), (), REVISION) == ""


def test_what_others_refer_to_is_deleted_last() -> None:
    """The reverse of the order in which it is applied."""
    inventory = (STORAGE, *policies("ba"), TRIGGER)
    assert leaving(inventory, ()) == [TRIGGER, *policies("ab"), STORAGE]
