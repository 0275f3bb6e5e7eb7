# SPDX-License-Identifier: Apache-2.0
"""What the host must offer, checked before anything is made.

Each missing piece is named together with what it prevents, all of them at once. The trap: a
capability in the list may still be useless in a container, so what can be tried is tried.
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from localcluster import cgroups

FREE_FLOOR_BYTES = 2 << 30
_LIMIT_S = 20
_CAPABILITIES = {
    21: ("CAP_SYS_ADMIN", "machines cannot have namespaces and mounts of their own"),
    12: ("CAP_NET_ADMIN", "machines cannot be given a network"),
    7: ("CAP_SETUID", "containers cannot change users"),
    18: ("CAP_SYS_CHROOT", "gVisor cannot lock its sandboxes in"),
    19: ("CAP_SYS_PTRACE", "gVisor's systrap platform cannot run"),
}
_PROGRAMS = {
    "ip": "the network cannot be set up (Debian: iproute2)",
    "unshare": "machines cannot be started (Debian: util-linux)",
    "nsenter": "machines cannot be entered (Debian: util-linux)",
    "setsid": "machines cannot be started (Debian: util-linux)",
    "mount": "machines cannot be furnished (Debian: mount)",
}
_CONTROLLERS = {
    "cpu": "Pods cannot be given shares of the processors",
    "cpuset": "the kubelet does not start",
    "memory": "memory limits cannot be kept",
    "pids": "the kubelet does not start",
}


class PreflightError(Exception):
    """The host lacks something; the message lists everything that is missing."""


def problems(state_root: Path) -> list[str]:
    """Return what is missing, each with what it prevents; nothing is changed on the host."""
    found = [*_machine(), *_capabilities(), *_programs()]
    if not found:  # the rest can be tried only where these are there
        found = [*_controllers(), *_namespaces(), *_disk(state_root)]
    return found


def check(state_root: Path, find: Callable[[Path], list[str]] = problems) -> None:
    """Refuse to start where something is missing.

    Raises:
        PreflightError: with all of it.
    """
    if found := find(state_root):
        listed = "\n".join(f"  - {line}" for line in found)
        raise PreflightError(f"this host cannot run a local cluster:\n{listed}")


def _machine() -> list[str]:
    found = []
    if os.geteuid() != 0:
        found.append("not root: namespaces, mounts and bridges cannot be made; run it with sudo")
    if (machine := platform.machine()) != "x86_64":
        found.append(f"the processor is {machine}: the pinned components are built for x86_64")
    return found


def _capabilities() -> list[str]:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    effective = int(status.partition("\nCapEff:")[2].split()[0], 16)
    return [
        f"{name} is missing: {prevents}"
        for bit, (name, prevents) in _CAPABILITIES.items()
        if not effective >> bit & 1
    ]


def _programs() -> list[str]:
    return [
        f"the program {name} is not found: {prevents}"
        for name, prevents in _PROGRAMS.items()
        if shutil.which(name) is None
    ]


def _controllers() -> list[str]:
    there = cgroups.controllers()
    return [
        f"the control group controller {name} is not available: {prevents}"
        for name, prevents in _CONTROLLERS.items()
        if name not in there
    ]


def _namespaces() -> list[str]:
    """Try, in namespaces that end with the trial, what a machine is made of."""
    trials = {
        "a bridge and a virtual cable": (
            ["ip", "link", "add", "trial0", "type", "bridge"],
            ["ip", "link", "add", "trial1", "type", "veth", "peer", "name", "trial2"],
        ),
        "an overlay file system (overlayfs)": (
            ["mount", "-t", "tmpfs", "tmpfs", "/mnt"],
            ["mkdir", "/mnt/upper", "/mnt/work"],
            [
                *("mount", "-t", "overlay", "-o"),
                "lowerdir=/usr,upperdir=/mnt/upper,workdir=/mnt/work",
                *("overlay", "/mnt"),
            ],
        ),
    }
    inside = ["unshare", "--mount", "--net", "--pid", "--fork", "--uts", "--ipc"]
    found = []
    for what, commands in trials.items():
        script = " && ".join(" ".join(command) for command in commands)
        done = subprocess.run(
            [*inside, "sh", "-c", script],
            capture_output=True,
            text=True,
            check=False,
            timeout=_LIMIT_S,
        )
        if done.returncode:
            found.append(f"{what} cannot be made in a new namespace: {done.stderr.strip()}")
    return found


def _disk(state_root: Path) -> list[str]:
    place = state_root
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < FREE_FLOOR_BYTES:
        return [
            f"{place} has {free >> 20} MiB free: images and snapshots need at least "
            f"{FREE_FLOOR_BYTES >> 20} MiB"
        ]
    return []
