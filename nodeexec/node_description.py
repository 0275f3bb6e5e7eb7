# SPDX-License-Identifier: Apache-2.0
"""What this node is, for the compatibility key (reference: runsc's restore checks).

Read once at the agent's start: a changed runsc means a restarted agent, because the installer
restarts both. It tells the instance type too, because an agent has no right on Nodes; only the
series counts, never the number of CPUs or the memory. The flags that count are those that runsc was
seen to refuse or to misread.
"""

import hashlib
import platform
import tomllib
from pathlib import Path

from nodeexec.runsc import Runsc
from nodeexec.settings import AgentSettings
from policies.compatibility import machine_series
from schemas.snapshot import Compatibility

# Flags whose change breaks a restore, with runsc's defaults.
_FLAGS = {
    "overlay2": "root:self",
    "network": "sandbox",
    "directfs": "true",
    "file-access": "exclusive",
}


def describe(settings: AgentSettings) -> Compatibility:
    """Describe the node.

    Raises:
        RunscError: the runsc binary does not answer.
        OSError: the binary or the shim's configuration cannot be read.
    """
    runsc = Runsc(binary=settings.runsc, root=settings.runsc_root)
    config = tomllib.loads(settings.runsc_config.read_text(encoding="utf-8"))
    flags = {k: str(v) for k, v in (config.get("runsc_config") or {}).items()}
    with settings.runsc.open("rb") as binary:
        build = hashlib.file_digest(binary, "sha256").hexdigest()
    return Compatibility(
        runsc_version=runsc.version(),
        runsc_digest=f"sha256:{build}",
        platform=flags.get("platform", "systrap"),
        architecture=platform.machine(),
        machine_series=machine_series(settings.machine_series) or cpu_series(Path("/proc/cpuinfo")),
        runtime_config={k: flags.get(k, default) for k, default in _FLAGS.items()},
        cpu_features=runsc.cpu_features(),
    )


def cpu_series(cpuinfo: Path) -> str:
    """Return vendor, family and model of the first CPU, e.g. ``GenuineIntel-6-143``."""
    wanted = {"vendor_id": "", "cpu family": "", "model": ""}
    for line in cpuinfo.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in wanted and not wanted[key.strip()]:
            wanted[key.strip()] = value.strip()
        if not line.strip():
            break
    return "-".join(wanted.values())
