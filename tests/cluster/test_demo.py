# SPDX-License-Identifier: Apache-2.0
"""Both examples, run as ``make demo`` runs them."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from localcluster.cluster import LocalCluster
from schemas.names import POD_RESTORED
from schemas.pod import Pod
from tests.planned_starts import Foretold, foretell

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


def foretelling(module: ModuleType, cluster: LocalCluster, results: Path) -> Any:  # noqa: ANN401
    """Return the demo, which plans each Deployment before it is applied or scaled."""

    class Foretelling(module.Demo):  # the module is found by its path
        def __init__(self) -> None:
            super().__init__(cluster, results)
            self.foretold: list[Foretold] = []

        def kubectl(self, *arguments: str, text: str = "", limit_s: float = 60) -> str:
            manifests = {
                "semantic-search": self.repository / "deployment.yaml",
                "counter": DEMO.parent / "counter" / "deployment.yaml",
            }
            scaled = manifests.get(arguments[1].removeprefix("deployment/"))
            applied = next((f for f in manifests.values() if str(f) in arguments), None)
            file = scaled if arguments[0] == "scale" else applied
            if file is not None:
                found = foretell(cluster.kubeconfig, module.NAMESPACE, file)
                self.foretold.append(found)
            answer: str = super().kubectl(*arguments, text=text, limit_s=limit_s)
            return answer

    return Foretelling()


@pytest.mark.timeout(600)
def test_the_demo_tells_its_story_and_writes_its_result(
    cluster: LocalCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slow Pod is saved from a Git policy, its replicas are restored, and the figures say so.

    Each start was planned before, and is as it was planned.
    """
    demo = foretelling(load_demo(), cluster, tmp_path)
    demo.run()

    starts = [(f.cause, bool(f.restored_from)) for f in demo.foretold]
    assert starts == [("NoSnapshotYet", False), ("", True)] * 2
    pods = json.loads(demo.kubectl("get", "pods", "-o", "json"))["items"]
    restored = [
        c.message for p in pods if (c := Pod.parse(p).conditions.get(POD_RESTORED)) and c.is_true
    ]
    for foretold, count in ((demo.foretold[1], 2), (demo.foretold[3], 1)):
        assert sum(m.endswith(foretold.restored_from) for m in restored) == count
    assert len(restored) == 3
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
    assert told.count("restore semantic-search-") == 2
    for state in ("AwaitingCheckpoint", "Checkpointing", "Uploading", "AllSnapshotsAvailable"):
        assert state in told
