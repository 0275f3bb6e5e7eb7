# SPDX-License-Identifier: Apache-2.0
"""``podsnap lint`` and ``podsnap convert`` on files, and a real API server's word on the same."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from cluster_world import World
from old_manifests import OLD
from yaml_scalars import MERGES

from backends.kube.client import POD_SNAPSHOT_POLICIES, POD_SNAPSHOT_STORAGE_CONFIGS
from backends.kube.errors import ApiError
from localcluster.toolchain import Toolchain
from reconciler import kubernetes_schemas
from reconciler.command_line import main
from reconciler.commands.exit_codes import ExitCode

LIMIT_S = 30
RESOURCES = (POD_SNAPSHOT_POLICIES, POD_SNAPSHOT_STORAGE_CONFIGS)
POD = """\
apiVersion: v1
kind: Pod
metadata: {name: a}
spec:
  containers:
  - {name: main, imagee: x}
"""
POLICY = """\
apiVersion: podsnapshot.gke.io/v1
kind: PodSnapshotPolicy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  storageConfigName: models
  triggerConfig: {type: workload}
  snapshotGroupingRules: {groupByLabelValue: {labels: [app]}}
"""
OLD_POLICY = POLICY.replace("type: workload", "type: Workload")


def podsnap(*words: str | Path, stdin: bytes = b"") -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, [str(word) for word in words], input=stdin)


def write(folder: Path, files: dict[str, str]) -> Path:
    """Write files below a folder."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


# -- what a real API server and kubectl say


@pytest.mark.parametrize("what", OLD)
def test_lint_and_the_api_server_agree_on_old_spellings(world: World, what: str) -> None:
    """An error is what the server refuses, a warning what it takes."""
    name = f"old-{world.namespace}"
    old = OLD[what]
    body = yaml.safe_load(old.text.replace("web1", name))
    group, _, version = body["apiVersion"].partition("/")
    known = next(r for r in RESOURCES if r.kind == body["kind"])
    if known.namespaced:
        body["metadata"]["namespace"] = world.namespace
    try:
        world.create(replace(known, group=group, version=version), body)
    except ApiError as error:
        answer = error.code
    else:
        answer = 201

    assert answer in ({404, 422} if old.is_refused else {201})
    result = podsnap("lint", "-", stdin=old.text.encode())
    assert result.exit_code == (ExitCode.ERROR if old.is_refused else ExitCode.OK)
    assert f"[{old.rule}]" in result.stdout


def test_lint_and_the_api_server_take_a_field_without_a_value(world: World) -> None:
    """A null that no schema allows is dropped, and missed only where the field has to be there."""
    body = yaml.safe_load(POLICY)
    body["metadata"].update(annotations=None, namespace=world.namespace)
    body["spec"].update(retentionConfig=None, snapshotScope=None)
    world.create(POD_SNAPSHOT_POLICIES, body)
    assert podsnap("lint", "-", stdin=json.dumps(body).encode()).exit_code == ExitCode.OK

    body["metadata"]["name"] = "without"
    body["spec"]["storageConfigName"] = None
    with pytest.raises(ApiError) as refused:
        world.create(POD_SNAPSHOT_POLICIES, body)
    assert refused.value.code == 422
    result = podsnap("lint", "-", stdin=json.dumps(body).encode())
    assert "[missing-field]" in result.stdout


def test_kubectl_merges_as_our_table_says(toolchain: Toolchain) -> None:
    """The table that our own reader is tested against is kubectl's."""
    lines = [f"k{n}: {written}" for n, (written, _) in enumerate(MERGES.values())]
    head = [
        "apiVersion: x.example/v1",
        "kind: X",
        "metadata: {name: x}",
        "base: &base {a: 1, b: 2}",
    ]
    text = "\n".join([*head, *lines])
    argv = ["patch", "--local", "-f", "-", "--type=merge", "--patch={}", "--output=json"]
    done = subprocess.run(
        [str(toolchain.path("kubectl")), *argv],
        input=text.encode(),
        capture_output=True,
        check=True,
        timeout=LIMIT_S,
    )
    found = json.loads(done.stdout)
    assert [found[f"k{n}"] for n in range(len(MERGES))] == [value for _, value in MERGES.values()]


# -- lint


def test_a_tree_is_judged_as_one(tmp_path: Path) -> None:
    """A policy in one file, its Deployment in another; what is no manifest is passed over."""
    write(
        tmp_path,
        {
            "a/pod.yaml": POD,
            "b/policy.yml": POLICY,
            "b/patch.json": "[1]",
            "c/README.md": "a: [",
            ".git/x.yaml": "a: [",
            "chart/Chart.yaml": "name: c",
            "chart/templates/d.yaml": "a: {{ .Values.b }}",
            "over/kustomization.yaml": "patches: [{path: patch.yaml}]",
            "over/patch.yaml": "apiVersion: v1\nkind: Pod\nspec: {}\n",
            "under/kustomization.yaml": "patches: [{path: p/p.yaml}, {path: ../shared/q.yaml}]",
            "under/p/p.yaml": "apiVersion: v1\nkind: Pod\nspec: {}\n",
            "shared/q.yaml": "apiVersion: v1\nkind: Pod\nspec: {}\n",
        },
    )
    (tmp_path / "b" / "again").symlink_to(tmp_path)
    result = podsnap("lint", tmp_path)
    assert result.exit_code == ExitCode.ERROR
    told = [(line.split(":")[0], line.split("[")[-1]) for line in result.stdout.splitlines()]
    assert told == [
        (f"{tmp_path}/a/pod.yaml", "unknown-field]"),
        (f"{tmp_path}/b/patch.json", "no-object]"),
        (f"{tmp_path}/b/policy.yml", "selects-nothing]"),
        (f"{tmp_path}/b/policy.yml", "missing-storage]"),
        (f"{tmp_path}/chart/Chart.yaml", "not-rendered]"),
        (f"{tmp_path}/over/kustomization.yaml", "not-rendered]"),
        (f"{tmp_path}/under/kustomization.yaml", "not-rendered]"),
    ]
    assert result.stderr.endswith("1 error, 2 warnings, 4 notes in 3 files\n")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("what", ["nested", "a date", "a pipe", "a dangling link", "large"])
def test_a_kustomization_that_cannot_be_read_is_only_named(tmp_path: Path, what: str) -> None:
    """It is a stranger's file as any other."""
    file = tmp_path / "kustomization.yaml"
    if what == "a pipe":
        os.mkfifo(file)
    elif what == "a dangling link":
        file.symlink_to("nowhere")
    else:
        texts = {"nested": "[" * 200_000, "a date": "a: 2001-99-99", "large": "#" * (9 << 20)}
        file.write_text(texts[what], encoding="utf-8")
    result = podsnap("lint", tmp_path)
    assert (result.exit_code, result.exception) == (ExitCode.OK, None), result.output
    assert result.stdout.count("[not-rendered]") == 1


@pytest.mark.parametrize(("written", "meant"), [("v1", "apps/v1"), ("batch/v1", "apps/v1")])
def test_a_workload_in_another_group_is_told_where_it_belongs(written: str, meant: str) -> None:
    """The groups of Kubernetes are easily mixed up."""
    text = f"apiVersion: {written}\nkind: Deployment\n"
    result = podsnap("lint", "-", stdin=text.encode())
    assert result.stdout == (
        f"<stdin>:1:1: error: no Kubernetes has Deployment of {written}; "
        f"write apiVersion: {meant} [unknown-kind]\n"
    )


@pytest.mark.parametrize("output", ["text", "json", "sarif", "github"])
def test_a_file_whose_name_is_no_utf_8_is_told(tmp_path: Path, output: str) -> None:
    """A disk has names that nobody could print."""
    name = os.fsencode(tmp_path) + b"/a\xff.yaml"
    Path(os.fsdecode(name)).write_text(OLD_POLICY, encoding="utf-8")
    result = podsnap("lint", "-o", output, tmp_path)
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == ExitCode.ERROR
    assert "old-value" in result.stdout
    assert "a%FF.yaml" in result.stdout or output != "sarif"


@pytest.mark.parametrize(
    ("words", "stdin", "code"),
    [
        (["-"], POD.replace("imagee", "image"), ExitCode.OK),
        (["-"], POLICY, ExitCode.OK),
        (["--strict", "-"], POLICY, ExitCode.ERROR),
        (["-"], "a: [", ExitCode.ERROR),
        (["-"], "", ExitCode.OK),
        (["nowhere"], "", ExitCode.USAGE),
        ([], "", ExitCode.USAGE),
        (["--kubernetes-version=1.99", "-"], "", ExitCode.USAGE),
        (["--kubernetes-version=v1.30.4", "-"], POD, ExitCode.ERROR),
    ],
)
def test_lint_ends_as_promised(words: list[str], stdin: str, code: ExitCode) -> None:
    """Scripts rely on the number: errors fail, warnings only where they are asked to."""
    result = podsnap("lint", *words, stdin=stdin.encode())
    assert result.exit_code == code, result.output


def test_the_help_names_the_version_that_is_taken() -> None:
    """The number stands in two places, since the help page loads no schemas."""
    assert f"[default: {kubernetes_schemas.DEFAULT_VERSION}]" in podsnap("lint", "--help").stdout


def test_a_kubernetes_version_decides_what_a_pod_may_have() -> None:
    """A field that came later is unknown to an older cluster."""
    text = POD.replace("imagee: x", "image: x, resizePolicy: []")
    assert podsnap("lint", "--kubernetes-version=1.36", "-", stdin=text.encode()).exit_code == 0
    old = podsnap("lint", "--kubernetes-version=1.25", "-", stdin=text.encode())
    assert "<stdin>:6:28: error" in old.stdout


def test_without_the_schemas_the_rest_is_checked_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are an extra; whoever asks for a version by name gets no half answer."""
    monkeypatch.setattr(kubernetes_schemas, "find_spec", lambda _: None)
    result = podsnap("lint", "-", stdin=f"{POD}---\n{OLD_POLICY}".encode())
    assert "[old-value]" in result.stdout
    assert "[unknown-field]" not in result.stdout
    assert "pip install 'podsnap[lint]'" in result.stderr
    asked = podsnap("lint", "--kubernetes-version=1.36", "-", stdin=POD.encode())
    assert asked.exit_code == ExitCode.USAGE


def test_json_has_every_field_of_a_finding() -> None:
    """For scripts; nothing else is on standard output."""
    (finding,) = json.loads(podsnap("lint", "-o", "json", "-", stdin=POD.encode()).stdout)
    assert finding == {
        "file": "<stdin>",
        "line": 6,
        "column": 18,
        "severity": "error",
        "rule": "unknown-field",
        "message": "spec.containers.0: Additional properties are not allowed "
        "('imagee' was unexpected)",
        "hint": "did you mean image?",
    }
    assert podsnap("lint", "-o", "json", "-").stdout == "[]\n"


def test_github_is_told_in_workflow_commands(tmp_path: Path) -> None:
    """A name or a message with a colon, a comma or an end of line begins no other command."""
    folder = write(tmp_path, {"a,b:c%\n::error::d.yaml": POLICY.replace("workload", "100%")})
    lines = podsnap("lint", "-o", "github", folder).stdout.splitlines()
    name = f"{tmp_path}/a%2Cb%3Ac%25%0A%3A%3Aerror%3A%3Ad.yaml"
    assert lines == [
        f"::error file={name},line=7,col=19,title=unknown-value::spec.triggerConfig.type: '100%25' "
        "is not one of ['readinessProbe', 'workload', 'manual', 'onDelete']; use one of these"
    ]


def test_text_hides_no_character_of_control(tmp_path: Path) -> None:
    """What a stranger wrote does not reach a terminal as a command."""
    text = POLICY.replace("type: workload", 'type: "\\e[2Jnothing here"')
    output = podsnap("lint", write(tmp_path, {"a.yaml": text})).stdout
    assert "\x1b" not in output
    assert "x1b[2Jnothing here" in output


def test_sarif_says_each_finding_with_its_rule_and_place(tmp_path: Path) -> None:
    """As code scanning reads it: a rule for each result, relative places, lines from 1."""
    folder = write(tmp_path, {"a b.yaml": POD, "c.yaml": POLICY})
    log = json.loads(podsnap("lint", "-o", "sarif", folder).stdout)
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["message"]["text"]
    levels = [(result["ruleId"], result["level"]) for result in run["results"]]
    assert levels == [
        ("unknown-field", "error"),
        ("selects-nothing", "warning"),
        ("missing-storage", "warning"),
    ]
    (place,) = (location["physicalLocation"] for location in run["results"][0]["locations"])
    assert place["artifactLocation"]["uri"].endswith("/a%20b.yaml")
    assert place["region"] == {"startLine": 6, "startColumn": 18}
    empty = json.loads(podsnap("lint", "-o", "sarif", "-").stdout)
    assert empty["runs"][0]["results"] == []


# -- convert


def test_convert_tells_nothing_that_is_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log of a workflow and a terminal read what it says."""
    text = OLD_POLICY.replace("type: Workload", "type: Workload, 'a': 1, 'a': \"\\e\"")
    folder = write(tmp_path, {"::error::a.yaml": OLD_POLICY, "b\n::error::c.yaml": text})
    monkeypatch.chdir(folder)
    said = podsnap("convert", ".").stderr
    assert said.count("error::") == 2
    assert [line for line in said.splitlines() if line.lstrip().startswith("::")] == []


def test_what_convert_passes_over_is_told(tmp_path: Path) -> None:
    """A check that skips a file is no check of it."""
    files = {
        "a.yaml": f"{OLD_POLICY}# {'x' * (8 << 20)}",
        "b/kustomization.yaml": "patches: [{path: p.yaml}]",
        "b/p.yaml": OLD_POLICY,
        "c.yaml": "a: {{ .Values.b }}",
    }
    result = podsnap("convert", "--check", write(tmp_path, files))
    assert result.exit_code == ExitCode.ERROR
    told = [line.split(":")[0].removeprefix(f"{tmp_path}/") for line in result.stderr.splitlines()]
    assert told == ["a.yaml", "b/kustomization.yaml"]


def test_a_file_keeps_its_owner(tmp_path: Path) -> None:
    """Whoever runs it as root takes no file from anybody."""
    if os.getuid() != 0:
        pytest.skip("only root may give a file away")
    file = write(tmp_path, {"a.yaml": OLD_POLICY}) / "a.yaml"
    os.chown(file, 1234, 1235)
    assert podsnap("convert", file).exit_code == ExitCode.OK
    assert file.read_text(encoding="utf-8") == POLICY
    assert (file.stat().st_uid, file.stat().st_gid) == (1234, 1235)


def test_convert_mends_files_and_keeps_mode_and_links(tmp_path: Path) -> None:
    """A link that leads out of the folder is left; named itself, what it leads to is mended."""
    outside = write(tmp_path / "outside", {"b.yaml": OLD_POLICY})
    folder = write(tmp_path / "in", {"a.yaml": OLD_POLICY, "fine.yaml": POLICY})
    (folder / "a.yaml").chmod(0o640)
    (folder / "link.yaml").symlink_to("a.yaml")
    (folder / "out.yaml").symlink_to(outside / "b.yaml")
    untouched = (folder / "fine.yaml").stat()

    result = podsnap("convert", folder)

    assert result.exit_code == ExitCode.OK, result.output
    assert (folder / "a.yaml").read_text(encoding="utf-8") == POLICY
    assert (folder / "a.yaml").stat().st_mode & 0o777 == 0o640
    assert (folder / "link.yaml").is_symlink()
    assert (folder / "fine.yaml").stat() == untouched
    assert (outside / "b.yaml").read_text(encoding="utf-8") == OLD_POLICY
    assert "out.yaml is a link out of" in result.stderr
    assert f"{folder}/a.yaml:7:19: spec.triggerConfig.type: 'Workload'; v1 is" in result.stderr
    assert sorted(p.name for p in folder.iterdir()) == [
        "a.yaml",
        "fine.yaml",
        "link.yaml",
        "out.yaml",
    ]

    assert podsnap("convert", folder / "out.yaml").exit_code == ExitCode.OK
    assert (folder / "out.yaml").is_symlink()
    assert (outside / "b.yaml").read_text(encoding="utf-8") == POLICY


@pytest.mark.parametrize(("option", "code"), [("--check", ExitCode.ERROR), ("--diff", ExitCode.OK)])
def test_convert_writes_nothing_where_it_is_asked_not_to(
    tmp_path: Path, option: str, code: ExitCode
) -> None:
    """A check in CI, and a look before."""
    folder = write(tmp_path, {"a.yaml": OLD_POLICY})
    result = podsnap("convert", option, folder)
    assert result.exit_code == code
    assert (folder / "a.yaml").read_text(encoding="utf-8") == OLD_POLICY
    shown = [line for line in result.stdout.splitlines() if re.match(r"[-+][^-+]", line)]
    expected = ["-  triggerConfig: {type: Workload}", "+  triggerConfig: {type: workload}"]
    assert shown == (expected if option == "--diff" else [])
    write(tmp_path, {"a.yaml": POLICY})
    assert podsnap("convert", option, folder).exit_code == ExitCode.OK


def test_convert_is_a_filter_too() -> None:
    """Only the result is on standard output."""
    result = podsnap("convert", "-", stdin=OLD_POLICY.encode())
    assert (result.exit_code, result.stdout) == (ExitCode.OK, POLICY)
    assert "podsnap convert" not in podsnap("lint", "-", stdin=OLD_POLICY.encode()).stdout


def test_what_cannot_be_mended_is_left_and_told_and_the_others_are_mended(tmp_path: Path) -> None:
    """One bad file is no reason to leave the rest."""
    bad = "a: [\n---\n" + OLD_POLICY
    folder = write(tmp_path, {"a.yaml": bad, "b.yaml": OLD_POLICY})
    result = podsnap("convert", folder)
    assert result.exit_code == ExitCode.ERROR
    assert f"{folder}/a.yaml:2:1: syntax error" in result.stderr
    assert (folder / "a.yaml").read_text(encoding="utf-8") == bad
    assert (folder / "b.yaml").read_text(encoding="utf-8") == POLICY


def test_a_file_that_cannot_be_written_keeps_none_from_being_mended(tmp_path: Path) -> None:
    """Nothing stands beside a name that is as long as names may be."""
    long = "a" * 250 + ".yaml"
    folder = write(tmp_path, {long: OLD_POLICY, "b.yaml": OLD_POLICY})
    result = podsnap("convert", folder)
    assert result.exit_code == ExitCode.ERROR
    assert f"{long}: cannot be written, and is left as it is" in result.stderr
    assert (folder / long).read_text(encoding="utf-8") == OLD_POLICY
    assert (folder / "b.yaml").read_text(encoding="utf-8") == POLICY


def test_a_file_that_cannot_be_written_is_left_whole(tmp_path: Path) -> None:
    """The new file is put in place of the old one at once, or not at all."""
    folder = write(tmp_path, {"a.yaml": OLD_POLICY})
    script = (
        "import os, sys; os.fsync = lambda _: sys.exit(9)\n"
        "from reconciler.command_line import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "convert", str(folder)],
        check=False,
        timeout=LIMIT_S,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 9
    assert [(p.name, p.read_text(encoding="utf-8")) for p in folder.iterdir()] == [
        ("a.yaml", OLD_POLICY)
    ]
