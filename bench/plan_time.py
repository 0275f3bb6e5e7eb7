# SPDX-License-Identifier: Apache-2.0
"""What ``podsnap plan`` of a large tree costs, from the start of the program to its last line.

The tree has 2,000 manifests, of which 200 are workloads and 50 of our kinds; the cluster is a file
with two snapshots for each workload and two kinds of nodes. Every tenth workload has another image
than was saved. Processor time is measured, because a waiting disk says
nothing about the program.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from figure import Figure, Target
from manifest_tree import write_tree
from room import BenchError

from localcluster.cluster import LocalCluster
from policies.distill import distill
from policies.expected_pod import admitted_pod
from policies.planned_starts import Workload
from reconciler.manifest_files import manifest_files
from reconciler.planned_manifests import Manifests, read_manifests
from schemas.names import API_VERSION, NODE_FACTS_ANNOTATION
from schemas.node_facts import NodeFacts
from schemas.snapshot import CaptureRecord, Compatibility

MANIFESTS: Final = 2000
RUNS: Final = 5
_CHANGES: Final = 2  # the exit code
_NODE: Final = Compatibility("release-1", "sha256:aa", "systrap", "x86_64", "n2")
_PROGRAM: Final = (sys.executable, "-m", "reconciler.command_line", "plan")


def measure(_: LocalCluster, say: Callable[[str], None]) -> list[Figure]:
    """Plan one tree five times; no cluster is asked."""
    with tempfile.TemporaryDirectory(prefix="podsnap-bench-") as scratch:
        tree, file = Path(scratch, "tree"), Path(scratch, "snapshots.json")
        write_tree(tree, MANIFESTS)
        items = list(_cluster(read_manifests(manifest_files([str(tree)]), "default")))
        file.write_text(json.dumps({"kind": "List", "items": items}), "utf-8")
        _change_images(tree)
        used = [_run(tree, file) for _ in range(RUNS)]
    say(f"{RUNS} plans with {sum(i['kind'] == 'PodSnapshot' for i in items)} snapshots")
    covers = f"podsnap plan --offline of {MANIFESTS} manifests, with the start of the program"
    return [
        Figure.of(
            [taken_s for taken_s, _ in used],
            part="plan",
            name="plan of a large tree",
            unit="s",
            target=Target(limit=3),
            covers=f"processor time: {covers}",
        ),
        Figure.of(
            [mebibytes for _, mebibytes in used],
            part="plan",
            name="memory of that plan",
            unit="MiB",
            target=Target(limit=250),
            covers=f"largest resident set: {covers}",
        ),
    ]


def _run(tree: Path, file: Path) -> tuple[float, float]:
    """Return processor seconds and MiB of one plan."""
    words = [*_PROGRAM, str(tree), "--offline", str(file), "-o", "json"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != _CHANGES:
        raise BenchError(f"podsnap plan ended with {process.returncode}; run it by hand: {words}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def _cluster(tree: Manifests) -> Iterator[dict[str, Any]]:
    """Yield what kubectl would print: the policies, two kinds of nodes, and snapshots."""
    for name, node in (("a", _NODE), ("b", replace(_NODE, platform="kvm"))):
        metadata = {
            "name": f"podsnap-node-{name}",
            "annotations": {NODE_FACTS_ANNOTATION: NodeFacts(name, node).to_annotation()},
        }
        yield {"kind": "Lease", "metadata": metadata}
    yield {"kind": "RuntimeClass", "metadata": {"name": "gvisor"}, "handler": "runsc"}
    for number, workload in enumerate(tree.workloads.values()):
        for save in range(2):
            yield _snapshot(workload, f"{number}-{save}")


def _snapshot(workload: Workload, name: str) -> dict[str, Any]:
    metadata = workload.pod.metadata
    capture = CaptureRecord(
        node="a",
        checkpointed_at="2026-01-01T10:00:00.000000Z",
        uploaded_at="2026-01-01T10:00:00.000000Z",
        identity=distill(admitted_pod(workload.pod)),
        compatibility=_NODE,
        image_ids=dict.fromkeys(workload.pod.running_names, "sha256:00"),
    )
    return {
        "apiVersion": API_VERSION,
        "kind": "PodSnapshot",
        "metadata": {
            "name": name,
            "namespace": metadata.namespace,
            "labels": dict(metadata.labels),
            "creationTimestamp": "2026-01-01T09:00:00Z",
        },
        "spec": {"policyName": metadata.labels["app"]},
        "status": {
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "AllSnapshotsAvailable"},
            ],
            "podsnap": {"capture": capture.to_object()},
        },
    }


def _change_images(tree: Path) -> None:
    for file in tree.rglob("deployment-*0.yaml"):
        file.write_text(file.read_text("utf-8").replace(":1.4.2", ":1.4.3"), "utf-8")
