# SPDX-License-Identifier: Apache-2.0
"""Looks at a node and says what would keep saves and restores from working.

Each check tries the thing itself where that is harmless; a configuration file is believed last.
"""

import os
import platform
import shutil
import socket
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from nodeexec import fuse
from nodeexec.cache_limits import CacheLimits
from nodeexec.cached_image import allocated_bytes
from nodeexec.runsc import Runsc, RunscError
from nodeexec.settings import AgentSettings

_OLDEST_RUNSC: Final = "release-20260810"
_FREE_BYTES: Final = 2 << 30
_OLDEST_KERNEL: Final = (5, 10)
_CAP_SYS_ADMIN: Final = 21
_CAP_SYS_RESOURCE: Final = 24


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; ``advice`` is what to do if it is not ``ok``."""

    subject: str
    ok: bool
    found: str
    advice: str = ""

    def to_object(self) -> dict[str, object]:
        """Render for scripts."""
        return asdict(self)


def examine(settings: AgentSettings) -> list[Finding]:
    """Look at everything; never raises."""
    return [check(settings) for check in _CHECKS]


def _runsc_version(settings: AgentSettings) -> Finding:
    subject = "runsc version"
    try:
        version = Runsc(binary=settings.runsc, root=settings.runsc_root).version()
    except (RunscError, OSError) as error:
        return Finding(subject, False, f"{settings.runsc}: {error}", "install runsc there")
    new_enough = version.startswith("release-") and version >= _OLDEST_RUNSC
    return Finding(subject, new_enough, version, f"install runsc {_OLDEST_RUNSC} or newer")


def _runtime_active(settings: AgentSettings) -> Finding:
    subject = "shim calls podsnap-runtime"
    try:
        config = tomllib.loads(settings.runsc_config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return Finding(subject, False, f"{settings.runsc_config}: {error}", "write the file")
    binary = str(config.get("binary_name", "runsc"))
    active = Path(binary).name == "podsnap-runtime" and os.access(binary, os.X_OK)
    advice = f"set binary_name in {settings.runsc_config} and restart containerd"
    return Finding(subject, active, f"binary_name = {binary}", advice)


def _runtime_settings(settings: AgentSettings) -> Finding:
    subject = "podsnap-runtime settings"
    try:
        config = tomllib.loads(settings.runsc_config.read_text(encoding="utf-8"))
        path = Path(str(config.get("binary_name", ""))).parent / "podsnap-runtime.conf"
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        return Finding(subject, False, str(error), "install podsnap-runtime with its .conf")
    pairs = dict(line.split("=", 1) for line in lines if "=" in line)
    same = pairs.get("runsc") == str(settings.runsc)
    advice = "the agent and the runtime must name the same runsc build"
    return Finding(subject, same, f"runsc = {pairs.get('runsc')}", advice)


def _no_grouping(settings: AgentSettings) -> Finding:
    subject = "grouping is off"
    try:
        config = tomllib.loads(settings.runsc_config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return Finding(subject, False, str(error), "write the file")
    grouped = bool(config.get("grouping"))
    advice = "with grouping the exit of a container is never reported; remove it"
    return Finding(subject, not grouped, f"grouping = {str(grouped).lower()}", advice)


def _agent_answers(settings: AgentSettings) -> Finding:
    subject = "agent socket"
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.settimeout(1.0)
        probe.connect(str(settings.socket))
    except OSError as error:
        text = f"{settings.socket}: {error.strerror}"
        return Finding(
            subject, False, text, "start `podsnap-node agent`; until then Pods start cold"
        )
    finally:
        probe.close()
    return Finding(subject, True, f"{settings.socket} answers")


def _staging_space(settings: AgentSettings) -> Finding:
    subject = "staging space"
    try:
        settings.staging_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(settings.staging_dir).free
    except OSError as error:
        return Finding(subject, False, str(error), "make the directory writable for root")
    text = f"{free_bytes >> 20} MiB free below {settings.staging_dir}"
    return Finding(
        subject, free_bytes > _FREE_BYTES, text, "a save needs as much as the Pod has in memory"
    )


def _fuse(_: AgentSettings) -> Finding:
    problem = fuse.problem()
    # Nothing fails without it: an image is fetched whole, and too large a one is a cold start.
    found = (
        f"off: {problem}; for large images give the agent /dev/fuse and libfuse3"
        if problem
        else f"/dev/fuse and {Path(fuse.library()).name}"
    )
    return Finding("background loading", True, found)


def _image_cache(settings: AgentSettings) -> Finding:
    subject = "image cache"
    try:
        disk = shutil.disk_usage(settings.state_dir)
        images = settings.cache_dir.iterdir() if settings.cache_dir.is_dir() else ()
        used_bytes = sum(map(allocated_bytes, images))
    except OSError as error:
        return Finding(subject, False, str(error), "make the directory readable for root")
    limits = CacheLimits(
        settings.cache_limit_bytes, settings.cache_disk_share, settings.cache_free_share
    )
    allowed_bytes = limits.allowed_bytes(disk.total)
    spare_bytes = max(disk.free - limits.floor_bytes(disk.total), 0)
    room_bytes = min(allowed_bytes, used_bytes + spare_bytes)
    text = f"{used_bytes >> 20} MiB of {allowed_bytes >> 20} MiB below {settings.cache_dir}"
    if room_bytes < allowed_bytes:
        text += f", and room for {room_bytes >> 20} MiB in all"
    advice = (
        "a larger image is not kept on this node: raise cache_limit_bytes or cache_disk_share, or "
        "make room on the disk"
    )
    return Finding(subject, room_bytes > _FREE_BYTES, text, advice)


def _kernel(_: AgentSettings) -> Finding:
    release = platform.release()
    parts = release.split(".")
    version = (int(parts[0]), int(parts[1])) if parts[1:] and parts[0].isdigit() else (0, 0)
    return Finding("kernel", version >= _OLDEST_KERNEL, release, "gVisor's systrap needs 5.10")


def _privileges(_: AgentSettings) -> Finding:
    effective = 0
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
    root = os.geteuid() == 0 and bool(effective >> _CAP_SYS_ADMIN & 1)
    scores = "" if effective >> _CAP_SYS_RESOURCE & 1 else ", without CAP_SYS_RESOURCE"
    return Finding(
        "privileges", root, f"uid {os.geteuid()}{scores}", "run as root in the host's pid namespace"
    )


_CHECKS: Final[tuple[Callable[[AgentSettings], Finding], ...]] = (
    _runsc_version,
    _runtime_active,
    _runtime_settings,
    _no_grouping,
    _agent_answers,
    _staging_space,
    _image_cache,
    _fuse,
    _kernel,
    _privileges,
)
