# SPDX-License-Identifier: Apache-2.0
"""Both examples, run as ``make demo`` runs them."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from localcluster.cluster import LocalCluster

pytestmark = pytest.mark.cluster

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


def load_demo() -> ModuleType:
    """Import the script."""
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(600)
def test_the_demo_tells_its_story_and_writes_its_result(
    cluster: LocalCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slow Pod is saved from a Git policy, its replicas are restored, and the figures say so."""
    load_demo().Demo(cluster, tmp_path).run()

    result = json.loads((tmp_path / "result.json").read_text())
    told = capsys.readouterr().out
    assert result["same_nonce"]
    assert result["same_answer"]
    assert result["pod_ip_changed"]
    assert result["restored_before_ready"]
    assert result["cold_ready_s"] > 10 * result["restored_ready_s"]
    assert result["snapshot_bytes"] > 50e6
    assert result["weights_bytes_left"] == 0
    assert result["git_commit"][:12] in told
    for state in ("AwaitingCheckpoint", "Checkpointing", "Uploading", "AllSnapshotsAvailable"):
        assert state in told
