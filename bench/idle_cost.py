# SPDX-License-Identifier: Apache-2.0
"""What controller and agent cost while nothing happens: resident memory and processor time.

Read from /proc inside the machines, children that have ended included. The trap is the moment: just
after work, caches are still being cleaned, so the quiet minute begins when no Pod is left and one
more of the agent's scans has passed.
"""

import json
import os
import time
from collections.abc import Callable

from figure import Figure, Target
from room import CLEAN_LIMIT_S, until

from localcluster import control_plane
from localcluster.cluster import LocalCluster

QUIET_S = 60.0
SETTLE_S = 25.0  # the agent scans every 20 s
_PROGRAMS = ((control_plane.NAME, "controller"), ("node1", "agent"))
_RSS_LIMIT_MIB = 90.0


def measure(cluster: LocalCluster, say: Callable[[str], None]) -> list[Figure]:
    """Watch both programs for a quiet minute."""
    until("no Pod is left", lambda: not _pods(cluster), limit_s=CLEAN_LIMIT_S)
    say(f"{SETTLE_S + QUIET_S:.0f} s of nothing")
    time.sleep(SETTLE_S)
    before = {name: processor_s(cluster, machine, name) for machine, name in _PROGRAMS}
    began_s = time.monotonic()
    time.sleep(QUIET_S)
    lasted_s = time.monotonic() - began_s
    used = {name: processor_s(cluster, machine, name) - before[name] for machine, name in _PROGRAMS}
    figures = [
        Figure.of(
            [cluster.component(machine, name).status().rss_bytes / (1 << 20)],
            part="idle",
            name=f"{name} resident",
            unit="MiB",
            target=Target(limit=_RSS_LIMIT_MIB),
            covers="once, at the end of the quiet minute, after whatever was measured before",
        )
        for machine, name in _PROGRAMS
    ]
    shares = {name: 100 * seconds / lasted_s for name, seconds in used.items()}
    figures += [
        Figure.of(
            [share],
            part="idle",
            name=f"{name} processor",
            unit="%",
            covers="of one core; the kernel counts in steps of 10 ms",
        )
        for name, share in shares.items()
    ]
    return [
        *figures,
        Figure.of(
            [sum(shares.values())],
            part="idle",
            name="both, processor",
            unit="%",
            target=Target(limit=1),
            covers=f"of one core over {lasted_s:.0f} s, ended children included",
        ),
    ]


def _pods(cluster: LocalCluster) -> list[str]:
    tree = json.loads(cluster.kubectl("get", "pods", "--all-namespaces", "-o", "json"))
    return [item["metadata"]["name"] for item in tree["items"]]


def processor_s(cluster: LocalCluster, machine: str, name: str) -> float:
    """Return the seconds that a component and its ended children have computed."""
    pid = cluster.component(machine, name).status().pid
    stat = cluster.run_in(machine, ["cat", f"/proc/{pid}/stat"]).stdout
    # The program's name may hold spaces: fields are counted after its closing bracket.
    fields = stat.rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
