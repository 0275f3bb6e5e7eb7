# SPDX-License-Identifier: Apache-2.0
"""Control groups below which a node's Pods live, made before the kubelet starts.

The trap is version 1: a new cpuset group is empty and refuses every process until its processors
and memory nodes are filled in, level by level.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

_REMOVE_LIMIT_S = 10.0
_POLL_S = 0.02


class CgroupError(Exception):
    """A group cannot be made or removed."""


def hierarchies() -> Iterator[tuple[Path, bool]]:
    """Yield each mounted hierarchy and whether it is version 2."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        before, _, after = line.partition(" - ")
        kind = after.split(" ", 1)[0]
        if kind in {"cgroup", "cgroup2"}:
            yield Path(before.split(" ")[4]), kind == "cgroup2"


def controllers() -> set[str]:
    """Return the controllers that can be used, of either version."""
    found: set[str] = set()
    for mount, is_v2 in hierarchies():
        if is_v2:
            found.update((mount / "cgroup.controllers").read_text(encoding="ascii").split())
        else:
            found.update(mount.name.split(","))
    return found


def ensure(group: str) -> None:
    """Make a group in every hierarchy, with all controllers enabled.

    Raises:
        CgroupError: the kernel refuses.
    """
    names = group.split("/")
    for mount, is_v2 in hierarchies():
        place = mount
        for name in names:
            if is_v2:
                _enable_controllers(place)
            parent, place = place, place / name
            try:
                place.mkdir(exist_ok=True)
                for file in ("cpuset.cpus", "cpuset.mems"):
                    if not is_v2 and (place / file).exists():
                        (place / file).write_text((parent / file).read_text())
            except OSError as error:
                raise CgroupError(
                    f"the control group {place} cannot be made ({error.strerror}); the kubelet "
                    "cannot run without it: is /sys/fs/cgroup mounted writable?"
                ) from error
        if is_v2:
            _enable_controllers(place)


def _enable_controllers(place: Path) -> None:
    for name in (place / "cgroup.controllers").read_text(encoding="ascii").split():
        # A controller that cannot be given on is missing below; the kubelet says which it needs.
        with contextlib.suppress(OSError):
            (place / "cgroup.subtree_control").write_text(f"+{name}")


def remove(group: str) -> None:
    """Remove a group and all below it, once its processes have gone.

    Raises:
        CgroupError: something still lives in it.
    """
    deadline_s = time.monotonic() + _REMOVE_LIMIT_S
    while left := [p for mount, _ in hierarchies() if (p := mount / group).is_dir()]:
        for top in left:
            for place in [*sorted(top.rglob("*/"), reverse=True), top]:
                with contextlib.suppress(OSError):
                    place.rmdir()
        if time.monotonic() > deadline_s:
            raise CgroupError(
                f"the control group {left[0]} is still in use after {_REMOVE_LIMIT_S:.0f} s; "
                f"find its processes with: cat {left[0]}/**/cgroup.procs"
            )
        if any(top.is_dir() for top in left):
            time.sleep(_POLL_S)
