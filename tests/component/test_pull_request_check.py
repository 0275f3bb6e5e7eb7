# SPDX-License-Identifier: Apache-2.0
"""The workflow of examples/github-action and the pre-commit hooks, run as they are written."""

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from dulwich import porcelain
from dulwich.repo import Repo

from reconciler.command_line import main

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / "examples" / "github-action" / "podsnap.yaml"
HOOKS = ROOT / ".pre-commit-hooks.yaml"
LIMIT_S = 60
POLICY = """\
apiVersion: podsnapshot.gke.io/v1
kind: PodSnapshotPolicy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  storageConfigName: models
  triggerConfig: {type: workload}
"""
STORAGE = """\
apiVersion: podsnapshot.gke.io/v1
kind: PodSnapshotStorageConfig
metadata: {name: models}
spec: {snapshotStorageConfig: {gcs: {bucket: models}}}
"""
DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      runtimeClassName: gvisor
      containers: [{name: main, image: web:1}]
"""


def workflow() -> dict[Any, Any]:
    """Return the workflow; ``on`` is a boolean for YAML 1.1, which GitHub does not read."""
    tree: dict[Any, Any] = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    return tree


@dataclass(frozen=True, slots=True)
class Checkout:
    """A clone in which a pull request is checked out."""

    path: Path

    def commit(self, files: dict[str, str]) -> bytes:
        """Write files below ``deploy`` and commit them."""
        for name, text in files.items():
            file = self.path / "deploy" / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
            porcelain.add(str(self.path), [str(file)])
        who = b"t <t@example.org>"
        return porcelain.commit(str(self.path), message=b"change", author=who, committer=who)

    def run(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run the step of that name as GitHub does."""
        (job,) = workflow()["jobs"].values()
        (script,) = (step["run"] for step in job["steps"] if step.get("name") == name)
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=self.path,
            env={
                **os.environ,
                **workflow()["env"],
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "GITHUB_BASE_REF": "main",
                "GITHUB_STEP_SUMMARY": str(self.path.parent / "summary.md"),
            },
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A repository whose main branch is right, and no change yet."""
    path = tmp_path / "repository"
    path.mkdir()
    found = Checkout(path)
    with Repo.init(str(path)) as repository:
        right = {"policy.yaml": POLICY, "storage.yaml": STORAGE, "web.yaml": DEPLOYMENT}
        repository.refs.set_if_equals(b"refs/remotes/origin/main", None, found.commit(right))
    return found


def test_a_pull_request_that_is_right_passes_and_its_plan_is_shown(checkout: Checkout) -> None:
    """Another image is no mistake; the summary says what comes of it."""
    checkout.commit({"web.yaml": DEPLOYMENT.replace("web:1", "web:2")})
    for step in ("Old spellings", "Lint", "Cluster", "Plan"):
        done = checkout.run(step)
        assert done.returncode == 0, f"{step}: {done.stdout}{done.stderr}"
    summary = (checkout.path.parent / "summary.md").read_text(encoding="utf-8")
    assert "web" in summary
    assert "|" in summary


@pytest.mark.parametrize(
    ("step", "old", "new", "told"),
    [
        ("Old spellings", "type: workload", "type: Workload", "v1 is type: workload"),
        ("Lint", "storageConfigName", "storageName", "::error file=deploy/policy.yaml,line=6"),
    ],
)
def test_a_pull_request_that_is_wrong_fails_at_its_line(
    checkout: Checkout, step: str, old: str, new: str, told: str
) -> None:
    """The author sees it beside the change."""
    checkout.commit({"policy.yaml": POLICY.replace(old, new)})
    done = checkout.run(step)
    assert done.returncode == 1
    assert told in done.stdout + done.stderr


def test_a_tree_that_cannot_be_planned_fails(checkout: Checkout) -> None:
    """The code for changes does not hide the code for errors."""
    checkout.commit({"web.yaml": "a: ["})
    assert checkout.run("Cluster").returncode == 0
    assert checkout.run("Plan").returncode == 1


def test_the_workflow_is_one_that_github_reads() -> None:
    """Every step runs or uses something, and the rights are no more than reading."""
    tree = workflow()
    assert tree[True]["pull_request"]["paths"] == [f"{tree['env']['MANIFESTS']}/**"]
    assert tree["permissions"] == {"contents": "read"}
    (job,) = tree["jobs"].values()
    assert all(("run" in step) != ("uses" in step) for step in job["steps"])


def test_the_hooks_name_commands_and_options_that_there_are(tmp_path: Path) -> None:
    """pre-commit appends the arguments, and the files unless told not to."""
    hooks = {hook["id"]: hook for hook in yaml.safe_load(HOOKS.read_text(encoding="utf-8"))}
    assert set(hooks) == {"podsnap-lint", "podsnap-convert"}
    (tmp_path / "a.yaml").write_text(POLICY.replace("workload", "Workload"), encoding="utf-8")
    for hook in hooks.values():
        assert {"id", "name", "entry", "language", "files"} <= hook.keys()
        program, *words = shlex.split(hook["entry"])
        assert program == "podsnap"
        files = [str(tmp_path / "a.yaml")] if hook.get("pass_filenames", True) else []
        arguments = [*words, *(a.replace(".", str(tmp_path)) for a in hook.get("args", ())), *files]
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0, hook["id"]
