# SPDX-License-Identifier: Apache-2.0
"""What ``podsnap plan`` says of one workload, for tests that see afterwards whether it was so."""

import json
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from reconciler.command_line import main


@dataclass(frozen=True, slots=True)
class Foretold:
    """How the next Pod of a workload starts; a cluster of one kind of node has one answer."""

    exit_code: int
    change: str
    governed_by: str
    restored_from: str
    cause: str
    why: str
    differences: list[str]
    environment: list[str]
    obsolete: list[str]
    completed: list[str]


def foretell(kubeconfig: Path, namespace: str, file: Path) -> Foretold:
    """Plan a file with one workload against a cluster."""
    words = ["plan", str(file), f"--kubeconfig={kubeconfig}", "-n", namespace, "-o", "json"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code in {0, 2}, done.output
    told = json.loads(done.stdout)
    (workload,) = told["workloads"]
    (start,) = workload["after"]["starts"]
    return Foretold(
        exit_code=done.exit_code,
        change=workload["change"],
        governed_by=workload["after"]["governedBy"],
        restored_from=start["restoredFrom"],
        cause=start["cause"],
        why=start["why"],
        differences=[d["path"] for d in start["differences"]],
        environment=start["environment"],
        obsolete=[s["name"] for s in told["snapshots"]],
        completed=told["completed"],
    )
