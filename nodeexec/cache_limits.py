# SPDX-License-Identifier: Apache-2.0
"""How much disk the images of a node may take, and which of them go when another one comes.

Space is what the file system gave away, not the length of files: a file that is still filled counts
with all that it will take, a sparse one only with its blocks.

A share of the disk stays free, and more of it than where the kubelet begins to evict Pods: images
can be fetched again, Pods are what they are for.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_MB: Final = 1e6


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """The settings: ``limit_bytes`` (0: none), and two shares of the whole file system.

    Images take at most ``disk_share`` of it, and none of ``free_share``.
    """

    limit_bytes: int = 0
    disk_share: float = 0.5
    free_share: float = 0.0

    def allowed_bytes(self, disk_bytes: int) -> int:
        """Return the stricter of both, on a file system of that size."""
        share_bytes = int(disk_bytes * self.disk_share)
        return min(self.limit_bytes, share_bytes) if self.limit_bytes else share_bytes

    def floor_bytes(self, disk_bytes: int) -> int:
        """Return what stays free on a file system of that size."""
        return int(disk_bytes * self.free_share)


@dataclass(frozen=True, slots=True)
class Held:
    """One image in the cache, whole or on its way. ``used_s`` is when it was last asked for."""

    name: str
    size_bytes: int
    used_s: float
    is_pinned: bool = False


@dataclass(frozen=True, slots=True)
class Room:
    """What has to go so that an image has room, or why it gets none.

    ``never`` if nothing that ends would help.
    """

    evicted: tuple[Held, ...] = ()
    refusal: str = ""
    never: bool = False


def make_room(
    need_bytes: int, held: Iterable[Held], *, allowed_bytes: int, free_bytes: int | None
) -> Room:
    """Choose what to evict: what was not used for longest first, and never what is pinned.

    ``free_bytes`` are those above the floor that nobody will take yet; ``None`` if the bytes are on
    the disk already.
    """
    if need_bytes > allowed_bytes:
        text = (
            f"the image has {_mb(need_bytes)} and the cache of images may take "
            f"{_mb(allowed_bytes)}; raise cache_limit_bytes or cache_disk_share"
        )
        return Room(refusal=text, never=True)
    images = list(held)
    over_bytes = sum(i.size_bytes for i in images) + need_bytes - allowed_bytes
    short_bytes = over_bytes if free_bytes is None else max(over_bytes, need_bytes - free_bytes)
    evicted = longest_unused(images, short_bytes)
    if sum(i.size_bytes for i in evicted) >= short_bytes:
        return Room(evicted)
    pinned = [i for i in images if i.is_pinned]
    text = (
        f"the image has {_mb(need_bytes)}, which do not fit: the cache may take "
        f"{_mb(allowed_bytes)}"
    )
    if free_bytes is not None:
        text += f", {_mb(free_bytes)} of the disk are free above cache_free_share"
    if pinned:
        used_bytes = sum(i.size_bytes for i in pinned)
        text += f", and images of {_mb(used_bytes)} are in use by restores or on their way"
    return Room(refusal=f"{text}; make room below the cache's directory")


def longest_unused(held: Iterable[Held], short_bytes: int) -> tuple[Held, ...]:
    """Return what goes if so many bytes are short, or all that may go."""
    evicted = []
    for image in sorted((i for i in held if not i.is_pinned), key=lambda i: i.used_s):
        if short_bytes <= 0:
            break
        evicted.append(image)
        short_bytes -= image.size_bytes
    return tuple(evicted)


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / _MB:.1f} MB"
