# SPDX-License-Identifier: Apache-2.0
"""How much the images of a node may take, and which of them make room for another."""

from dataclasses import replace

import pytest

from nodeexec.cache_limits import CacheLimits, Held, Room, longest_unused, make_room

MB = 1_000_000
OLD, MIDDLE, NEW = (Held(n, 10 * MB, used_s=at) for at, n in enumerate(("old", "middle", "new")))
PINNED = replace(OLD, is_pinned=True)


@pytest.mark.parametrize(
    ("limits", "allowed_bytes"),
    [
        (CacheLimits(0, 0.5), 50),
        (CacheLimits(30, 0.5), 30),
        (CacheLimits(80, 0.5), 50),
        (CacheLimits(80, 1.0), 80),
    ],
    ids=["a share alone", "a limit below it", "a limit above it", "the whole disk"],
)
def test_the_stricter_of_limit_and_share_holds(limits: CacheLimits, allowed_bytes: int) -> None:
    """Of a disk of 100 bytes."""
    assert limits.allowed_bytes(100) == allowed_bytes


def test_a_share_of_the_disk_stays_free() -> None:
    """Of a disk of 100 bytes; nothing, unless somebody wants it."""
    assert CacheLimits(free_share=0.15).floor_bytes(100) == 15
    assert CacheLimits().floor_bytes(100) == 0


@pytest.mark.parametrize(
    ("short_mb", "evicted"),
    [(-5, ()), (0, ()), (1, (OLD,)), (11, (OLD, MIDDLE)), (99, (OLD, MIDDLE, NEW))],
    ids=["more is free", "just enough is", "a little", "more than one has", "more than all have"],
)
def test_what_was_not_used_for_longest_goes_as_far_as_it_helps(
    short_mb: int, evicted: tuple[Held, ...]
) -> None:
    """For others that fill the disk, so all of it if need be."""
    assert longest_unused((NEW, OLD, MIDDLE), short_mb * MB) == evicted
    assert longest_unused((PINNED,), short_mb * MB) == ()


@pytest.mark.parametrize(
    ("need_mb", "allowed_mb", "free_mb", "held", "evicted"),
    [
        (10, 40, 99, (NEW, OLD, MIDDLE), ()),
        (10, 30, 99, (NEW, OLD, MIDDLE), (OLD,)),
        (11, 30, 99, (NEW, OLD, MIDDLE), (OLD, MIDDLE)),
        (10, 30, 99, (NEW, PINNED, MIDDLE), (MIDDLE,)),
        (10, 99, 1, (NEW, OLD, MIDDLE), (OLD,)),
        (10, 99, None, (NEW, OLD, MIDDLE), ()),
        (10, 30, None, (NEW, OLD, MIDDLE), (OLD,)),
        (10, 15, 99, (NEW, OLD, MIDDLE), (OLD, MIDDLE, NEW)),
        (0, 25, 99, (NEW, OLD, MIDDLE), (OLD,)),
    ],
    ids=[
        "there is room",
        "the one that was not used for longest",
        "as many as it takes",
        "but none that is pinned",
        "for a disk that others filled",
        "nothing for bytes that are on the disk already",
        "but for the limit, too",
        "all of them",
        "a limit that became smaller",
    ],
)
def test_images_make_room_in_the_order_of_their_last_use(
    need_mb: int,
    allowed_mb: int,
    free_mb: int | None,
    held: tuple[Held, ...],
    evicted: tuple[Held, ...],
) -> None:
    """No more of them than needed."""
    free_bytes = None if free_mb is None else free_mb * MB
    room = make_room(need_mb * MB, held, allowed_bytes=allowed_mb * MB, free_bytes=free_bytes)
    assert room == Room(evicted)


@pytest.mark.parametrize(
    ("need_mb", "free_mb", "never", "text"),
    [
        (
            31,
            99,
            True,
            "the image has 31.0 MB and the cache of images may take 30.0 MB; "
            "raise cache_limit_bytes or cache_disk_share",
        ),
        (
            25,
            99,
            False,
            "the image has 25.0 MB, which do not fit: the cache may take 30.0 MB, 99.0 MB of the "
            "disk are free above cache_free_share, and images of 10.0 MB are in use by restores or "
            "on their way; make room below the cache's directory",
        ),
        (
            15,
            1,
            False,
            "the image has 15.0 MB, which do not fit: the cache may take 30.0 MB, 1.0 MB of the "
            "disk are free above cache_free_share, and images of 10.0 MB are in use by restores or "
            "on their way; make room below the cache's directory",
        ),
    ],
    ids=["never", "not beside what is pinned", "not on this disk"],
)
def test_a_refusal_has_the_sizes_and_evicts_nothing(
    *, need_mb: int, free_mb: int, never: bool, text: str
) -> None:
    """Whoever reads it knows what would help."""
    room = make_room(need_mb * MB, (PINNED, NEW), allowed_bytes=30 * MB, free_bytes=free_mb * MB)
    assert room == Room(refusal=text, never=never)
