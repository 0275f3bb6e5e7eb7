# SPDX-License-Identifier: Apache-2.0
"""How long a person waits for ``podsnap lint`` and for a help page; no cluster is asked.

Each sample is a process of its own, since most of a small run is the start of Python. The trap is
the first run of all, which compiles: one run of each goes before.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from figure import Figure, Target
from manifest_tree import write_tree
from room import BenchError

from localcluster.cluster import LocalCluster

ROUNDS = 7
MANIFESTS = 2000
FEW = 100
_PROGRAM = str(Path(sys.executable).with_name("podsnap"))


def measure(_: LocalCluster, say: Callable[[str], None]) -> list[Figure]:
    """Time the commands on generated trees, in turn."""
    with TemporaryDirectory() as folder:
        few, many = Path(folder, "few"), Path(folder, "many")
        write_tree(few, FEW)
        write_tree(many, MANIFESTS)
        calls = {"help": ["--help"], "few": ["lint", str(few)], "many": ["lint", str(many)]}
        for words in calls.values():
            _timed(words)
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
        for _round in range(ROUNDS):
            for name, words in calls.items():
                runs[name].append(_timed(words))
    say(f"{ROUNDS} rounds")
    times_s = {name: [seconds for seconds, _ in found] for name, found in runs.items()}
    return [
        _figure([s * 1e3 for s in times_s["help"]], "podsnap --help", "ms", 150, "process"),
        _figure(times_s["few"], f"lint of {FEW} files", "s", 1.5, "process, cold"),
        _figure(times_s["many"], f"lint of {MANIFESTS} files", "s", 8, "process, cold; 1 MB"),
        _figure(
            [mib for _, mib in runs["many"]],
            f"memory of lint of {MANIFESTS} files",
            "MiB",
            250,
            "largest resident set of the process",
        ),
    ]


def _figure(samples: list[float], name: str, unit: str, limit: float, covers: str) -> Figure:
    target = Target(limit=limit)
    return Figure.of(samples, part="lint", name=name, unit=unit, target=target, covers=covers)


def _timed(words: list[str]) -> tuple[float, float]:
    """Return seconds and MiB of one run."""
    began_s = time.perf_counter()
    process = subprocess.Popen(
        [_PROGRAM, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    took_s = time.perf_counter() - began_s
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise BenchError(f"podsnap {' '.join(words)} ended with {process.returncode}")
    return took_s, usage.ru_maxrss / 1024
