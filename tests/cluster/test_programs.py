# SPDX-License-Identifier: Apache-2.0
"""The programs as an operator meets them: doctor, tables, health, metrics."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from localcluster.cluster import LocalCluster
from tests.cluster_scene import Scene

pytestmark = pytest.mark.cluster

BIN = Path(sys.executable).parent


def podsnap(*arguments: str) -> str:
    """Run the command line and return what it prints."""
    argv = [str(BIN / "podsnap"), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout


def test_the_doctor_finds_the_local_node_in_order(cluster: LocalCluster) -> None:
    """Every check passes on a node that podsnap itself set up."""
    settings = cluster.nodes[0].agent_settings
    argv = [str(BIN / "podsnap-node"), "doctor", f"--settings={settings}", "-o", "json"]

    findings = json.loads(cluster.run_in("node1", argv).stdout)

    assert [f["subject"] for f in findings if not f["ok"]] == []
    assert {"runsc version", "shim calls podsnap-runtime", "agent socket"} <= {
        f["subject"] for f in findings
    }


def test_the_doctor_says_what_to_change(cluster: LocalCluster, tmp_path: Path) -> None:
    """A wrong runsc and a missing agent are found, each with an advice, and the exit code is 1."""
    settings = cluster.nodes[0].agent_settings.read_text()
    wrong = tmp_path / "agent.toml"
    lines = [line for line in settings.splitlines() if not line.startswith(("runsc =", "socket"))]
    wrong.write_text("\n".join([*lines, 'runsc = "/bin/false"', 'socket = "/nowhere/sock"']))

    argv = [str(BIN / "podsnap-node"), "doctor", f"--settings={wrong}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)

    assert done.returncode == 1
    assert "FAIL runsc version" in done.stdout
    assert "FAIL agent socket" in done.stdout
    assert "start `podsnap-node agent`" in done.stdout


def test_get_and_story_show_a_snapshot(scene: Scene) -> None:
    """Tables for people, JSON for scripts, and times that never run backwards."""
    scene.policy()
    scene.ready_pod("first")
    name = scene.save("first").metadata.name
    flags = ("-n", scene.namespace, f"--kubeconfig={scene.cluster.kubeconfig}")

    table = podsnap("get", *flags)
    rows = json.loads(podsnap("get", *flags, "-o", "json"))
    story = json.loads(podsnap("story", name[:8], *flags, "-o", "json"))

    assert name in table
    assert rows[0]["status"] == "AllSnapshotsAvailable"
    assert rows[0]["originPod"] == "first"
    assert [r["state"] for r in story] == [
        "Pending",
        "Checkpointing",
        "Uploading",
        "AllSnapshotsAvailable",
    ]
    assert not [r["after"] for r in story if "-" in r["after"]]


def test_story_of_an_unknown_snapshot_teaches(scene: Scene) -> None:
    """The error says how to find the names that exist."""
    argv = [str(BIN / "podsnap"), "story", "nope", "-n", scene.namespace]
    done = subprocess.run(
        [*argv, f"--kubeconfig={scene.cluster.kubeconfig}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )

    assert done.returncode == 3
    assert "podsnap get" in done.stderr


def test_both_programs_answer_health_readiness_and_metrics(cluster: LocalCluster) -> None:
    """On the addresses they were told, with counters that exist from the start."""
    reconciled = 'controller_runtime_reconcile_total{controller="snapshot",result="success"}'
    addresses = {
        f"{cluster.network.control}:8080": reconciled,
        f"{cluster.nodes[0].address}:8081": 'podsnap_decisions_total{outcome="Restored"}',
    }
    for address, metric in addresses.items():
        for path in ("healthz", "readyz"):
            assert requests.get(f"http://{address}/{path}", timeout=5).text == "ok\n"
        assert metric in requests.get(f"http://{address}/metrics", timeout=5).text


def test_crds_prints_what_the_cluster_serves(cluster: LocalCluster) -> None:
    """Applying the printed CRDs changes nothing on a cluster that has them."""
    flags = ("--server-side", "--dry-run=server", "--force-conflicts", "-f", "-")
    printed = cluster.kubectl("apply", *flags, text=podsnap("crds"))

    assert printed.count("serverside-applied") == 6
    assert podsnap("--version").startswith("podsnap, version 0.1.0")
