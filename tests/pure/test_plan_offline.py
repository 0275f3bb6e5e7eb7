# SPDX-License-Identifier: Apache-2.0
"""``podsnap plan`` without a cluster: of a file that kubectl printed, and of a Git repository."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from reconciler.command_line import main
from reconciler.commands.exit_codes import ExitCode, PlanExit

LIMIT_S = 30


def deployment(name: str = "web") -> dict[str, Any]:
    """Return a Deployment in gVisor."""
    spec = {"runtimeClassName": "gvisor", "containers": [{"name": "main", "image": "web:1"}]}
    template = {"metadata": {"labels": {"app": name}}, "spec": spec}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": template},
    }


def policy(kind: str = "workload") -> dict[str, Any]:
    """Return a policy that selects it."""
    return {
        "apiVersion": "podsnapshot.gke.io/v1",
        "kind": "PodSnapshotPolicy",
        "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "storageConfigName": "store",
            "triggerConfig": {"type": kind},
        },
    }


def git(repository: Path, *arguments: str) -> None:
    """Run git, whatever the user has configured."""
    author = ["-c", "user.name=tests", "-c", "user.email=tests@podsnap.invalid"]
    subprocess.run(
        ["git", "-C", str(repository), *author, *arguments],
        check=True,
        capture_output=True,
        timeout=LIMIT_S,
    )


@pytest.fixture
def empty(tmp_path: Path) -> str:
    """What kubectl prints of a cluster that has nothing."""
    file = tmp_path / "snapshots.json"
    file.write_text(json.dumps({"kind": "List", "items": []}), encoding="utf-8")
    return str(file)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a commit of a policy and a Deployment."""
    made = tmp_path / "repository"
    (made / "deploy").mkdir(parents=True)
    (made / "deploy" / "web.yaml").write_text(
        yaml.safe_dump_all([deployment(), policy()]), encoding="utf-8"
    )
    git(made, "init", "--quiet", "--initial-branch=main")
    git(made, "add", "--all")
    git(made, "commit", "--quiet", "--message=first")
    return made


def ask(path: Path, offline: str, *words: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(main, ["plan", str(path), "--offline", offline, *words])


@pytest.mark.parametrize("path", ["deploy", "deploy/web.yaml", "."])
@pytest.mark.parametrize("revision", ["main", "HEAD", "first~1"])
def test_what_was_committed_is_no_change(
    repository: Path, empty: str, path: str, revision: str
) -> None:
    """Of a folder, a file or the whole repository; by branch, tag or ancestor."""
    git(repository, "commit", "--quiet", "--allow-empty", "--message=second")
    git(repository, "tag", "--annotate", "--message=x", "first", "HEAD")
    done = ask(repository / path, empty, "--base", revision, "-o", "json")
    assert done.exit_code == PlanExit.NO_CHANGES, done.output
    told = json.loads(done.stdout)
    assert [w["change"] for w in told["workloads"]] == ["None"]
    assert told["comparedWith"].startswith(f"revision {revision} (")


def test_what_is_new_in_the_work_tree_is_a_change(repository: Path, empty: str) -> None:
    """A folder that the revision does not have, too; a spelling of old is none."""
    later = repository / "later"
    later.mkdir()
    (later / "web.yaml").write_text(yaml.safe_dump(deployment()), encoding="utf-8")
    old = {**policy("Workload"), "apiVersion": "podsnapshot.gke.io/v1alpha1"}
    (repository / "deploy" / "web.yaml").write_text(
        yaml.safe_dump_all([deployment(), old]), encoding="utf-8"
    )
    assert ask(repository / "deploy", empty, "--base", "main").exit_code == PlanExit.NO_CHANGES
    done = ask(later, empty, "--base", "main", "-o", "json")
    assert done.exit_code == PlanExit.NO_CHANGES  # no policy governs it
    assert json.loads(done.stdout)["workloads"][0]["after"]["outcome"] == "Ungoverned"
    (later / "policy.yaml").write_text(yaml.safe_dump(policy()), encoding="utf-8")
    done = ask(later, empty, "--base", "main", "-o", "json")
    assert done.exit_code == PlanExit.CHANGES
    assert json.loads(done.stdout)["workloads"][0]["change"] == "Added"


def test_what_is_not_rendered_is_not_planned_but_its_rendering_is(
    repository: Path, empty: str
) -> None:
    """Neither a folder whose result nobody knows, nor standard input at a revision."""
    deploy = repository / "deploy"
    patch = {**deployment("web"), "spec": {"replicas": 3}}
    (deploy / "patch.yaml").write_text(yaml.safe_dump(patch), encoding="utf-8")
    kustomization = {"kind": "Kustomization", "patches": [{"path": "patch.yaml"}]}
    (deploy / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    done = ask(deploy, empty)
    assert (done.exit_code, done.stdout) == (PlanExit.ERROR, "")
    assert "| podsnap plan -" in done.stderr
    rendered = yaml.safe_dump_all([deployment(), policy()])
    words = ["plan", "-", "--offline", empty, "-o", "json"]
    done = CliRunner().invoke(main, words, input=rendered)
    assert done.exit_code == PlanExit.CHANGES  # a policy is added
    assert json.loads(done.stdout)["workloads"][0]["place"] == "<stdin>:1:1"
    done = CliRunner().invoke(main, [*words, "--base", "main"], input=rendered)
    assert (done.exit_code, "--base" in done.stderr) == (PlanExit.ERROR, True)


@pytest.mark.parametrize(
    "broken",
    ["kind: Deployment\n x: [", yaml.safe_dump({**policy(), "spec": {}})],
    ids=["no YAML", "no policy"],
)
def test_a_base_that_is_broken_does_not_hold_up_what_mends_it(
    repository: Path, empty: str, broken: str
) -> None:
    """What could not be read is told, by its name in the repository, and compared with nothing."""
    file = repository / "deploy" / "web.yaml"
    right = file.read_text(encoding="utf-8")
    file.write_text(broken, encoding="utf-8")
    git(repository, "commit", "--quiet", "--all", "--message=broken")
    file.write_text(right, encoding="utf-8")
    done = ask(repository / "deploy", empty, "--base", "HEAD", "-o", "json")
    assert done.exit_code == PlanExit.CHANGES, done.output
    told = json.loads(done.stdout)
    assert told["workloads"][0]["change"] == "Unknown"
    assert told["summary"].endswith("1 workload not compared")
    assert "): web.yaml: not compared: " in "\n".join(told["unknown"])
    assert "podsnap-plan-" not in done.stdout


def test_a_link_is_the_file_that_it_names_on_both_sides(repository: Path, empty: str) -> None:
    """One that leads nowhere is none."""
    (repository / "shared.yaml").write_text(yaml.safe_dump(deployment("other")), encoding="utf-8")
    (repository / "deploy" / "other.yaml").symlink_to("../shared.yaml")
    (repository / "deploy" / "gone.yaml").symlink_to("../gone.yaml")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message=links")
    done = ask(repository / "deploy", empty, "--base", "HEAD", "-o", "json")
    assert done.exit_code == PlanExit.NO_CHANGES, done.output
    assert [w["before"] is None for w in json.loads(done.stdout)["workloads"]] == [False, False]


def test_what_only_the_base_has_is_told_without_a_place(repository: Path, empty: str) -> None:
    """It was read from a copy, which is gone."""
    (repository / "deploy" / "web.yaml").write_text(yaml.safe_dump(policy()), encoding="utf-8")
    done = ask(repository / "deploy", empty, "--base", "HEAD", "-o", "json")
    (gone,) = json.loads(done.stdout)["workloads"]
    assert (gone["change"], gone["place"]) == ("Removed", "")


def test_a_repository_in_an_unknown_format_is_told_with_what_to_do(
    repository: Path, empty: str
) -> None:
    """Git may store references in ways that are not read here."""
    git(repository, "config", "core.repositoryFormatVersion", "1")
    git(repository, "config", "extensions.unheardOf", "true")
    done = ask(repository / "deploy", empty, "--base", "HEAD")
    assert done.exit_code == PlanExit.ERROR
    assert "git clone" in done.stderr


def test_a_file_with_pods_and_not_what_made_them_knows_no_workloads(
    repository: Path, tmp_path: Path
) -> None:
    """Else each of the tree would count as new; what is of other namespaces is passed over."""
    owner = {"kind": "ReplicaSet", "name": "web-1", "uid": "1", "controller": True}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web-1-a", "namespace": "default", "ownerReferences": [owner]},
        "spec": deployment()["spec"]["template"]["spec"],
    }
    far = json.loads(json.dumps(pod).replace("default", "far").replace("ReplicaSet", "Job"))
    file = tmp_path / "snapshots.json"
    file.write_text(json.dumps({"items": [pod, far]}), encoding="utf-8")
    done = ask(repository / "deploy", str(file), "-o", "json")
    told = json.loads(done.stdout)
    assert [w["change"] for w in told["workloads"]] == ["Unknown"]
    assert [text.partition(",")[0] for text in told["unknown"] if "though" in text] == [
        "ReplicaSets"
    ]
    assert ask(repository / "deploy", str(file), "-o", "markdown").stdout.startswith(
        "**podsnap plan** ⚠️ 1 policy changes, 1 workload not compared"
    )


def test_what_a_shallow_clone_lacks_is_told(repository: Path, tmp_path: Path, empty: str) -> None:
    """With what to do about it."""
    git(repository, "commit", "--quiet", "--allow-empty", "--message=second")
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{repository}", "shallow")
    done = ask(tmp_path / "shallow" / "deploy", empty, "--base", "HEAD~1")
    assert done.exit_code == PlanExit.ERROR
    assert "shallow" in done.stderr


def test_what_is_not_in_the_file_is_told_and_not_guessed(repository: Path, empty: str) -> None:
    """Nodes, RuntimeClasses, workloads, snapshots."""
    told = ask(repository / "deploy", empty).stdout
    _, _, unknown = told.partition("Not known")
    for text in ("what any node is", "RuntimeClasses", "the workloads that stand", "neither"):
        assert text in unknown


@pytest.mark.parametrize(
    "changes",
    [
        {"volumeClaimTemplates": "data"},
        {"template": {"spec": {}}},
        {"template": None},
        {
            "template": {
                "spec": {
                    "containers": [
                        {
                            "name": "main",
                            "envFrom": [
                                {"configMapRef": {"name": "a"}, "secretRef": {"name": "b"}}
                            ],
                        }
                    ]
                }
            }
        },
    ],
    ids=["claims", "no container", "no template", "a source of two kinds"],
)
def test_a_workload_of_no_known_shape_is_an_error_with_its_place(
    tmp_path: Path, empty: str, changes: dict[str, Any]
) -> None:
    """People write these files, and no API server has looked at them yet."""
    made = {**deployment(), "kind": "StatefulSet"}
    made["spec"].update(changes)
    file = tmp_path / "web.yaml"
    file.write_text(yaml.safe_dump(made), encoding="utf-8")
    done = ask(file, empty)
    assert done.exit_code == PlanExit.ERROR
    assert f"{file}:" in done.stderr


def test_a_folder_without_a_repository_has_no_base(tmp_path: Path, empty: str) -> None:
    """The message says what to leave out."""
    (tmp_path / "web.yaml").write_text(yaml.safe_dump(deployment()), encoding="utf-8")
    done = ask(tmp_path / "web.yaml", empty, "--base", "main")
    assert (done.exit_code, "--base" in done.stderr) == (PlanExit.ERROR, True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--no-such-option"], PlanExit.ERROR, "--no-such-option"),
        (["--offline=web.yaml", "--context=x"], PlanExit.ERROR, "--offline"),
        (["--kubeconfig=nowhere"], ExitCode.ERROR, "nowhere does not exist"),
    ],
    ids=["an unknown option", "a file and a cluster", "no kubeconfig"],
)
def test_a_wrong_command_line_does_not_end_as_a_change_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, said: str
) -> None:
    """A pull request would else be held up by a typing error."""
    monkeypatch.chdir(tmp_path)
    Path("web.yaml").write_text(yaml.safe_dump(deployment()), encoding="utf-8")
    done = CliRunner().invoke(main, ["plan", "web.yaml", *words])
    assert (done.exit_code, said in done.stderr) == (code, True)


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"items": [{"kind": "PodSnapshotPolicy"}]}', '{"items": ["x"]}'],
    ids=["a list", "no JSON", "a policy without a spec", "no objects"],
)
def test_a_file_that_kubectl_did_not_print_is_refused(tmp_path: Path, text: str) -> None:
    """With the command that prints one."""
    tree, file = tmp_path / "web.yaml", tmp_path / "snapshots.json"
    tree.write_text(yaml.safe_dump(deployment()), encoding="utf-8")
    file.write_text(text, encoding="utf-8")
    done = CliRunner().invoke(main, ["plan", str(tree), "--offline", str(file)])
    assert done.exit_code == PlanExit.ERROR
    assert "kubectl get" in done.stderr
