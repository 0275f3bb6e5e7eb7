# SPDX-License-Identifier: Apache-2.0
"""How long ``podsnap local up`` takes from nothing to a Ready node, as a user would time it.

The trap is the warm half: an ``up`` that finds files of an earlier one is faster, so each starts
after a ``down``, and the command is a process of its own, imports included.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from figure import Figure, Target
from room import BenchError

from localcluster.cluster import LocalCluster

ROUNDS = 3
_LIMIT_S = 120.0


def measure(cluster: LocalCluster, say: Callable[[str], None]) -> list[Figure]:
    """Take the cluster down and bring it up again, several times; it stays up."""
    podsnap = str(Path(sys.executable).parent / "podsnap")
    samples = []
    for number in range(1, ROUNDS + 1):
        cluster.down()
        began_s = time.monotonic()
        done = subprocess.run(
            [podsnap, "local", "up", "--name", cluster.name],
            capture_output=True,
            text=True,
            check=False,
            timeout=_LIMIT_S,
        )
        samples.append(time.monotonic() - began_s)
        if done.returncode:
            raise BenchError(f"podsnap local up failed: {done.stderr.strip()}")
        if not all(_ready_nodes(cluster)):
            raise BenchError("podsnap local up returned before the node was Ready")
        say(f"{number}/{ROUNDS}  up in {samples[-1]:.1f} s")
    say("the steps of the last one:")
    for line in done.stderr.splitlines():
        say(f"  {line}")
    return [
        Figure.of(
            samples,
            part="up",
            name="podsnap local up",
            unit="s",
            target=Target(limit=12),
            covers=(
                "the whole command, from nothing, with tools built, until the node is Ready and "
                "controller and agent are ready"
            ),
        )
    ]


def _ready_nodes(cluster: LocalCluster) -> list[bool]:
    nodes = json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"]
    return [
        any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"]["conditions"])
        for node in nodes
    ] or [False]
