# SPDX-License-Identifier: Apache-2.0
"""What a person asks on the command line, answered from a real API server."""

import json
import os
import pty
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from cluster_world import World, eventually, resource_of
from kube_apiserver import ApiServer

from backends.kube.client import (
    EVENTS,
    LEASES,
    POD_SNAPSHOTS,
    KubeClient,
    Resource,
)
from backends.kube.errors import NotFound
from policies.distill import distill
from reconciler.command_line import main
from reconciler.commands.connection import in_plain_words
from reconciler.commands.exit_codes import ExitCode
from schemas.instants import to_micro_time
from schemas.names import API_VERSION, EVENT_REASON, SYSTEM_NAMESPACE
from schemas.node_facts import NodeFacts
from schemas.pod import Pod
from schemas.snapshot import CaptureRecord, Compatibility, ControlRecord, SizeParts, StoryEntry

PROGRAM = [sys.executable, "-m", "reconciler.command_line"]
LIMIT_S = 30
SAVED_AT = "2026-01-01T10:00:00.000000Z"
KIND = "podsnapshot.podsnapshot.gke.io"


@dataclass(slots=True)
class Asked:
    """A namespace with a node of its own, and a user who asks about it."""

    world: World
    kubeconfig: Path
    node: str
    compatibility: Compatibility

    def ask(self, *words: str) -> Result:
        """Run a command in this process; its output is no terminal."""
        return CliRunner().invoke(main, self.argv(*words))

    def told(self, *words: str) -> Any:  # noqa: ANN401 - any JSON
        """Return what programs are told."""
        done = self.ask(*words, "-o", "json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    def argv(self, *words: str) -> list[str]:
        """Return the words with this cluster and namespace."""
        command, *rest = words
        namespace = [] if command == "nodes" else ["-n", self.world.namespace]
        return [command, *rest, f"--kubeconfig={self.kubeconfig}", *namespace]

    def pod(self, name: str, **spec: Any) -> Pod:  # noqa: ANN401 - fields of a PodSpec
        """Create a Pod on the node."""
        return Pod.parse(self.world.pod(name, nodeName=self.node, **spec))

    def save(self, of: Pod, **changes: Any) -> str:  # noqa: ANN401 - fields of the record
        """Leave a snapshot of a Pod as agent and controller would, and return its name."""
        name = str(uuid.uuid4())
        body = self.world.object("PodSnapshot", name, {"policyName": "web"})
        body["metadata"] |= {"labels": {"app": "web"}}
        made = self.world.create(POD_SNAPSHOTS, body)
        record = CaptureRecord(
            node=self.node,
            attempt=1,
            pod_name=of.metadata.name,
            pod_uid=of.metadata.uid,
            claimed_at=SAVED_AT,
            checkpointed_at=SAVED_AT,
            sealed_at=SAVED_AT,
            uploaded_at="2026-01-01T10:00:02.000000Z",
            checkpoint_s=0.5,
            size_bytes=50_000_000,
            sizes=SizeParts(50_000_000),
            identity=distill(of),
            compatibility=self.compatibility,
            image_ids={name: f"sha256:{name}" for name in of.running_names},
        )
        story = ControlRecord((StoryEntry("AllSnapshotsAvailable", SAVED_AT),))
        self.status(
            name,
            made["metadata"]["uid"],
            {
                "capture": replace(record, **changes).to_object(),
                "control": story.to_object(),
                "restoredBy": {self.node: 2},
            },
        )
        return name

    def status(self, name: str, uid: str, record: dict[str, Any]) -> None:
        """Write a snapshot's status: it is Ready."""
        conditions = [
            {
                "type": kind,
                "status": "True",
                "reason": reason,
                "message": "",
                "lastTransitionTime": "2026-01-01T10:00:03Z",
            }
            for kind, reason in (
                ("Checkpoint", "Succeeded"),
                ("StorageReplicated", "Succeeded"),
                ("Ready", "AllSnapshotsAvailable"),
            )
        ]
        self.world.admin.apply(
            POD_SNAPSHOTS,
            {
                "apiVersion": API_VERSION,
                "kind": "PodSnapshot",
                "metadata": {"name": name, "namespace": self.world.namespace, "uid": uid},
                "status": {"conditions": conditions, "podsnap": {"version": 1, **record}},
            },
            field_manager="tests",
            subresource="status",
        )

    def event(self, of: Pod, message: str) -> None:
        """Leave an Event on a Pod, as the agent does."""
        reference = {"apiVersion": "v1", "kind": "Pod", "uid": of.metadata.uid}
        reference |= {"name": of.metadata.name, "namespace": self.world.namespace}
        self.world.create(
            EVENTS,
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": f"e-{uuid.uuid4()}", "namespace": self.world.namespace},
                "involvedObject": reference,
                "type": "Warning",
                "reason": EVENT_REASON,
                "message": message,
                "lastTimestamp": "2026-01-01T11:00:00Z",
            },
        )


@pytest.fixture
def asked(world: World, api_server: ApiServer) -> Iterator[Asked]:
    """A policy whose bucket is named, a node that published itself, and nothing saved.

    What was saved goes afterwards: the controllers of other tests would look after it.
    """
    world.storage()
    world.policy()
    node = f"node-{world.namespace}"
    compatibility = Compatibility("release-1", "sha256:aa", "systrap", "x86_64", "n2")
    world.admin.apply(
        LEASES,
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": f"podsnap-node-{node}",
                "namespace": SYSTEM_NAMESPACE,
                "annotations": {
                    "podsnap.dev/node-facts": NodeFacts(node, compatibility).to_annotation()
                },
            },
            "spec": {"holderIdentity": node, "renewTime": to_micro_time(datetime.now(UTC))},
        },
        field_manager="tests",
    )
    yield Asked(world, api_server.kubeconfig("admin"), node, compatibility)
    for snapshot in world.snapshots():
        name = snapshot["metadata"]["name"]
        world.admin.delete(POD_SNAPSHOTS, name, namespace=world.namespace)
    world.admin.delete(LEASES, f"podsnap-node-{node}", namespace=SYSTEM_NAMESPACE)


# -- explain


def test_a_pod_is_explained_with_what_it_would_be_restored_from(asked: Asked) -> None:
    """From what stands in the API, without an agent."""
    name = asked.save(asked.pod("web-0"))
    asked.pod("web-1")
    told = asked.told("explain", "pod", "web-1")
    assert (told["kind"], told["governedBy"], told["chosen"]) == ("pod", "web", name)
    assert told["nodeFacts"]["runscVersion"] == "release-1"
    assert told["unknown"] == []
    page = asked.ask("explain", "pod/web-1").stdout
    assert f"is restored from PodSnapshot {name}" in page
    assert asked.ask("explain", "po/web-1", "-o", "name").stdout == "pod/web-1\n"
    assert yaml.safe_load(asked.ask("explain", "pod/web-1", "-o", "yaml").stdout) == told


def test_a_miss_names_each_field_and_the_event_of_the_start(asked: Asked) -> None:
    """Of the spec and of the node, with both values."""
    name = asked.save(
        asked.pod("web-0"), compatibility=replace(asked.compatibility, platform="kvm")
    )
    other = asked.pod("web-1", containers=[{"name": "main", "image": "registry.example/web:2"}])
    asked.event(other, f"falling back to a cold start of pod: PodSnapshot x/{name} does not fit")
    told = asked.told("explain", "pod", "web-1")
    assert told["chosen"] == ""
    assert told["happened"]["start"] == "Cold"
    assert told["happened"]["snapshot"] == name
    assert told["candidates"][0]["differences"] == [
        {
            "path": "spec.containers[main].image",
            "pod": '"registry.example/web:2"',
            "saved": '"registry.example/web:1"',
        },
        {"path": "node.platform", "pod": "systrap", "saved": "kvm"},
    ]


def test_a_pod_that_is_gone_is_explained_while_something_remembers_it(asked: Asked) -> None:
    """By its Events, and by the snapshot that it was saved as."""
    gone = asked.pod("web-0")
    name = asked.save(gone)
    asked.event(gone, "Started cold: no snapshot of policy web is ready yet")
    resource = Resource("", "v1", "pods", "Pod")
    asked.world.admin.delete(resource, "web-0", namespace=asked.world.namespace)
    told = asked.told("explain", "pod", "web-0")
    assert told["savedAs"] == [name]
    assert told["happened"]["start"] == "Cold"
    unheard = asked.ask("explain", "pod", "web-7")
    assert unheard.exit_code == ExitCode.NOT_FOUND
    assert "neither an Event nor a snapshot remembers it" in unheard.stderr


def test_a_snapshot_a_policy_and_a_trigger_are_explained(asked: Asked) -> None:
    """Each by its kubectl name too."""
    name = asked.save(asked.pod("web-0"))
    snapshot = asked.told("explain", f"ps/{name}")
    assert (snapshot["restores"], snapshot["sizeBytes"]) == (2, 50_000_000)
    assert snapshot["rates"][0]["bytesPerSecond"] == 100_000_000
    assert snapshot["retention"] == "until somebody deletes it"
    assert any(asked.node in n["nodes"] and n["fits"] for n in snapshot["nodes"])
    assert asked.told("explain", "snapshot", name[:8])["name"] == name
    policy = asked.told("explain", "psp", "web")
    assert [p["name"] for p in policy["pods"]] == ["web-0"]
    assert "spec.targetPod: web-0" in policy["pods"][0]["nextSave"]
    assert policy["groups"][0]["usable"] == 1
    asked.world.trigger("save-web", "web-7")
    trigger = asked.told("explain", "podsnapshotmanualtriggers.podsnapshot.gke.io/save-web")
    assert (trigger["state"], trigger["obstacle"].partition(":")[0]) == ("New", "PodNotFound")


@pytest.mark.parametrize("kind", ["snapshot", "policy", "trigger", "pod"])
def test_what_does_not_exist_is_said_with_where_to_look(asked: Asked, kind: str) -> None:
    """And the exit code is its own."""
    done = asked.ask("explain", kind, "nope")
    assert done.exit_code == ExitCode.NOT_FOUND
    assert asked.world.namespace in done.stderr
    assert "lists" in done.stderr


def test_what_a_user_may_not_read_is_left_out_and_named(
    asked: Asked, api_server: ApiServer
) -> None:
    """The agent's identity may read Pods and snapshots, and neither Events nor RuntimeClasses."""
    name = asked.save(asked.pod("web-0"))
    asked.kubeconfig = api_server.kubeconfig("agent")
    told = asked.told("explain", "pod", "web-0")
    assert told["chosen"] == name
    assert [text.partition(":")[0] for text in told["unknown"]] == ["Events", "RuntimeClasses"]
    assert "Not known" in asked.ask("explain", "pod", "web-0").stdout


def test_a_user_of_one_namespace_gets_the_verdict_of_those_who_may_read_all(
    asked: Asked, api_server: ApiServer
) -> None:
    """What stands outside the namespace is taken as good, and named; no advice comes of it."""
    name = asked.save(asked.pod("web-0"))
    metadata = {"name": "reader", "namespace": asked.world.namespace}
    group = "rbac.authorization.k8s.io"
    verbs = ["get", "list"]
    rules = [
        {"apiGroups": [""], "resources": ["pods", "events"], "verbs": verbs},
        {"apiGroups": ["podsnapshot.gke.io"], "resources": ["*"], "verbs": verbs},
    ]
    version = f"{group}/v1"
    role = {"apiVersion": version, "kind": "Role", "metadata": metadata, "rules": rules}
    binding = {
        "apiVersion": version,
        "kind": "RoleBinding",
        "metadata": metadata,
        "roleRef": {"apiGroup": group, "kind": "Role", "name": "reader"},
        "subjects": [{"apiGroup": group, "kind": "User", "name": "tenant"}],
    }
    asked.world.create(resource_of(role), role)
    asked.world.create(resource_of(binding), binding)
    asked.kubeconfig = api_server.kubeconfig("tenant")

    def readable() -> bool:
        return asked.ask("explain", "pod", "web-0").exit_code == ExitCode.OK

    eventually(readable, "the Role is in force")
    told = asked.told("explain", "pod", "web-0")
    assert (told["chosen"], told["whatToDo"]) == (name, [])
    assert len(told["unknown"]) == 3


# -- lists


def test_get_lists_with_stable_columns_and_programs_get_values(asked: Asked) -> None:
    """No colours and no wrapping where the output is no terminal."""
    name = asked.save(asked.pod("web-0"))
    table = asked.ask("get").stdout.splitlines()
    assert table[0].split("   ")[0].strip() == "NAME"
    assert [len(table), name in table[1], "\x1b" in table[1]] == [2, True, False]
    assert "50.0 MB" in table[1]
    (row,) = asked.told("get")
    assert (row["name"], row["status"], row["restores"]) == (name, "AllSnapshotsAvailable", 2)
    assert asked.ask("get", "-o", "name").stdout == f"{KIND}/{name}\n"
    assert asked.told("get", "-l", "app=other") == []
    assert name in asked.ask("get", "-A").stdout


def test_get_of_nothing_says_so_beside_the_output(asked: Asked) -> None:
    """A script that reads the output reads nothing."""
    done = asked.ask("get")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == f"No snapshots found in namespace {asked.world.namespace}.\n"


def test_a_story_and_the_kinds_of_nodes_are_told(asked: Asked) -> None:
    """Also what a roll of gVisor would make void."""
    name = asked.save(asked.pod("web-0"))
    assert [r["state"] for r in asked.told("story", name[:8])] == ["AllSnapshotsAvailable"]
    rolled = asked.told("nodes", "--if-runsc", "release-2")
    assert f"{asked.world.namespace}/{name}" in rolled["void"]
    assert asked.node in asked.ask("nodes").stdout


def test_retention_tells_what_goes_and_never_deletes(asked: Asked) -> None:
    """A group of one, with two snapshots."""
    first, newer = asked.pod("web-0"), "2026-01-01T11:00:00.000000Z"
    grouping = {"labels": ["app"], "groupRetentionPolicy": {"maxSnapshotCountPerGroup": 1}}
    asked.world.admin.merge_patch(
        Resource("podsnapshot.gke.io", "v1", "podsnapshotpolicies", "PodSnapshotPolicy"),
        "web",
        {"spec": {"snapshotGroupingRules": {"groupByLabelValue": grouping}}},
        namespace=asked.world.namespace,
        field_manager="tests",
    )
    old = asked.save(first)
    asked.save(first, checkpointed_at=newer, uploaded_at=newer)
    (row,) = asked.told("retention", "--dry-run")
    assert (row["name"], row["isDue"]) == (old, True)
    assert "maxSnapshotCountPerGroup" in row["reason"]
    assert "is due now" in asked.told("explain", "snapshot", old)["retention"]
    assert len(asked.world.snapshots()) == 2
    assert asked.ask("retention").exit_code == ExitCode.USAGE


def test_a_watch_tells_each_change_on_a_line_and_ends_quietly(asked: Asked) -> None:
    """Ctrl-C is how one leaves it, so it is no error to explain."""
    name = asked.save(asked.pod("web-0"))
    # A child of a program that ignores the signal, as one in the background does, would ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*PROGRAM, *asked.argv("get", "--watch", "-o", "json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    try:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert (first["change"], first["snapshot"]["name"]) == ("ADDED", name)
        asked.world.admin.delete(POD_SNAPSHOTS, name, namespace=asked.world.namespace)
        assert json.loads(process.stdout.readline())["change"] == "DELETED"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, errors) == (ExitCode.INTERRUPTED, "")


# -- where and who


def test_the_namespace_and_the_context_are_the_kubeconfigs(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As kubectl takes them."""
    name = asked.save(asked.pod("web-0"))
    doc = yaml.safe_load(asked.kubeconfig.read_text(encoding="utf-8"))
    here = {"cluster": "c", "user": "u", "namespace": asked.world.namespace}
    doc["contexts"] += [{"name": "here", "context": here}]
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(doc), encoding="utf-8")
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/none:{path}")
    words = ["get", "-o", "name", "--context"]
    assert CliRunner().invoke(main, [*words, "here"]).stdout == f"{KIND}/{name}\n"
    wrong = CliRunner().invoke(main, [*words, "nowhere"])
    assert wrong.exit_code == ExitCode.ERROR
    assert "has no context 'nowhere' with a cluster; name one of its contexts" in wrong.stderr
    assert "here, x" in wrong.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "does not exist; set KUBECONFIG"), ("- x", "is no kubeconfig"), ("", "current")],
    ids=["no file", "another file", "an empty one"],
)
def test_a_kubeconfig_that_is_none_is_an_error_that_teaches(
    tmp_path: Path, text: str | None, says: str
) -> None:
    """Before anything is asked."""
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    done = CliRunner().invoke(main, ["get", f"--kubeconfig={path}"])
    assert done.exit_code == ExitCode.ERROR
    assert says in done.stderr


def test_a_server_that_does_not_answer_and_one_that_refuses_are_told_apart(
    asked: Asked, api_server: ApiServer, tmp_path: Path
) -> None:
    """Each with an exit code of its own, within a bound."""
    asked.kubeconfig = api_server.kubeconfig("agent")
    refused = asked.ask("explain", "trigger", "t")
    assert refused.exit_code == ExitCode.FORBIDDEN
    assert "cannot get resource" in refused.stderr
    assert "ask for a Role that allows it" in refused.stderr
    away = replace(api_server, directory=tmp_path, url="https://127.0.0.1:1")
    asked.kubeconfig = away.kubeconfig("admin")
    silent = asked.ask("get")
    assert silent.exit_code == ExitCode.UNREACHABLE
    assert "does not answer" in silent.stderr
    stranger = replace(api_server, directory=tmp_path, tokens={"admin": "wrong"})
    asked.kubeconfig = stranger.kubeconfig("admin")
    unknown = asked.ask("get")
    assert unknown.exit_code == ExitCode.FORBIDDEN
    assert "does not know who you are" in unknown.stderr


def test_a_cluster_without_podsnap_is_said_to_be_one(admin: KubeClient) -> None:
    """By what a real server answers for a kind that it does not have."""
    with pytest.raises(NotFound) as refusal:
        admin.list(Resource("nowhere.example", "v1", "things", "Thing"))
    error = in_plain_words(refusal.value)
    assert error.exit_code == ExitCode.NOT_INSTALLED
    assert "podsnap crds | kubectl apply" in error.message


# -- beside a terminal


def test_an_answer_loads_nothing_that_it_does_not_need(asked: Asked) -> None:
    """What a command imports is most of the time that it takes."""
    asked.save(asked.pod("web-0"))
    heavy = ("google.auth", "rich", "opentelemetry.sdk", "dulwich", "jsonschema", "localcluster")
    code = (
        "import sys\nfrom reconciler.command_line import main\n"
        f"main({asked.argv('explain', 'pod', 'web-0')!r}, standalone_mode=False)\n"
        f"print([m for m in {heavy!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LIMIT_S
    )
    assert done.stderr == "[]\n"


def test_a_pipe_that_closes_early_is_no_error(asked: Asked) -> None:
    """As with ``head``: nobody reads on, and nothing is said about it."""
    asked.save(asked.pod("web-0"))
    process = subprocess.Popen(
        [*PROGRAM, *asked.argv("get")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    process.wait(LIMIT_S)
    assert errors == ""


@pytest.mark.parametrize("plain", [None, "1"], ids=["", "NO_COLOR"])
def test_a_terminal_gets_colours_unless_it_asks_for_none(asked: Asked, plain: str | None) -> None:
    """A state's colour is green if restores are possible."""
    name = asked.save(asked.pod("web-0"))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200"}
    environment.pop("NO_COLOR", None)
    environment |= {"NO_COLOR": plain} if plain else {}
    ours, theirs = pty.openpty()
    with open(ours, "rb") as terminal:
        argv = [*PROGRAM, *asked.argv("get")]
        subprocess.run(argv, stdout=theirs, env=environment, check=True, timeout=LIMIT_S)
        os.close(theirs)
        shown = terminal.raw.read(1 << 16).decode()
    assert name in shown
    assert ("\x1b[32mAllSnapshotsAvailable" in shown) is (plain is None)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(shell: str) -> None:
    """In its own words."""
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0, done.stderr
    assert "_PODSNAP_COMPLETE" in done.stdout


def test_a_shell_completes_commands_and_kinds() -> None:
    """The words that exist, and no others."""
    for words, expected in (("podsnap expl", "explain"), ("podsnap explain sn", "snapshot")):
        asking = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        asking["_PODSNAP_COMPLETE"] = "bash_complete"
        done = CliRunner().invoke(main, [], env=asking, prog_name="podsnap")
        assert done.stdout == f"plain,{expected}\n"


def test_the_help_lists_every_exit_code() -> None:
    """Where a script's author looks."""
    page = CliRunner().invoke(main, ["--help"]).stdout
    for code in ExitCode:
        assert code.meaning in page


def test_trace_draws_a_snapshot_and_the_pod_that_it_was_saved_from(asked: Asked) -> None:
    """From what the objects tell: by the beginning of its name, by the Pod, and for programs."""
    pod = asked.pod("web-1")
    name = asked.save(pod)
    drawn = asked.ask("trace", name[:8])
    assert drawn.exit_code == 0, drawn.output
    assert drawn.stdout.startswith(f"PodSnapshot {asked.world.namespace}/{name}, trace ")
    assert [line.split()[0] for line in drawn.stdout.splitlines()[1:]][:1] == ["policy"]
    assert asked.ask("trace", "web-1").stdout == drawn.stdout
    spans = asked.told("trace", name)
    assert {"policy", "save", "seal"} <= {span["name"] for span in spans}
    assert {span["traceId"] for span in spans} == {drawn.stdout.split()[3]}


def test_trace_says_what_it_cannot_find(asked: Asked) -> None:
    """A Pod that no trace has, a name that nobody has, and a backend that is not there."""
    asked.pod("stranger")
    name = asked.save(asked.pod("web-1"))
    unknown = asked.ask("trace", "stranger")
    assert unknown.exit_code == ExitCode.NOT_FOUND
    assert "podsnap explain pod stranger" in unknown.output
    assert asked.ask("trace", "nobody").exit_code == ExitCode.NOT_FOUND
    away = asked.ask("trace", name, "--backend", "http://127.0.0.1:9")
    assert away.exit_code == ExitCode.UNREACHABLE
    assert "without --backend" in away.output
