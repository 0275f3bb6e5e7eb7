# SPDX-License-Identifier: Apache-2.0
"""The runtime wrapper before it calls runsc: what it writes, whom it asks, and for how long."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeexec import podsnap_runtime as runtime

SANDBOX_ID = "0123456789abcdef"
CRI = "io.kubernetes.cri."


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """What the agent's installer writes beside the wrapper."""
    return {
        "runsc": "/usr/local/bin/runsc",
        "agent_socket": str(tmp_path / "agent.sock"),
        "state_dir": str(tmp_path / "state"),
        "kubelet_root": str(tmp_path / "kubelet"),
    }


def annotations(kind: str = "sandbox", **more: str) -> dict[str, str]:
    """Return the annotations that containerd writes."""
    return {
        f"{CRI}container-type": kind,
        f"{CRI}sandbox-id": SANDBOX_ID,
        f"{CRI}sandbox-namespace": "shop",
        f"{CRI}sandbox-name": "web-0",
        f"{CRI}sandbox-uid": "uid-1",
        **more,
    }


def raw_spec(**fields: Any) -> bytes:  # noqa: ANN401 - any part of an OCI spec
    """Return a spec as containerd's encoder writes it."""
    spec = {"ociVersion": "1.2.0", "annotations": annotations(), **fields}
    return json.dumps(spec, separators=(",", ":")).encode()


@contextmanager
def agent(path: str, talk: Callable[[socket.socket], None]) -> Iterator[list[dict[str, Any]]]:
    """Serve one connection; yields the questions that came."""
    questions: list[dict[str, Any]] = []
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(1)
    server.settimeout(10)

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(10)
            with connection.makefile("rb") as lines:
                questions.append(json.loads(lines.readline()))
            try:
                talk(connection)
            except OSError:
                return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield questions
    finally:
        thread.join(10)
        server.close()


def says(*lines: bytes) -> Callable[[socket.socket], None]:
    """Return an agent that sends lines and hangs up."""
    return lambda connection: connection.sendall(b"".join(lines))


def hangs(connection: socket.socket) -> None:
    """Be an agent that never answers, until the other side leaves."""
    connection.recv(1)


# -- asking


def test_an_answer_is_an_object(settings: dict[str, str]) -> None:
    """The question arrives as it was put."""
    with agent(settings["agent_socket"], says(b'{"governed":true}\n')) as questions:
        assert runtime.ask_agent(settings, {"op": "create"}, 5) == {"governed": True}
    assert questions == [{"op": "create"}]


def test_an_agent_that_fetches_is_waited_for(settings: dict[str, str]) -> None:
    """Its first line says for how long."""
    lines = says(b'{"wait_s":5}\n', b'{"governed":', b"false}\n")
    with agent(settings["agent_socket"], lines):
        assert runtime.ask_agent(settings, {}, 5) == {"governed": False}


def test_an_agent_that_is_away_is_no_answer_at_once(settings: dict[str, str]) -> None:
    """Neither without a socket nor with one that nobody serves."""
    began_s = time.monotonic()
    assert runtime.ask_agent(settings, {}, 5) is None
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(settings["agent_socket"])
    assert runtime.ask_agent(settings, {}, 5) is None
    assert time.monotonic() - began_s < 1


NONSENSE = {
    "nothing": b"",
    "half a line": b'{"governed":tr',
    "no JSON": b"hello\n",
    "no text": b"\xff\xfe\n",
    "a number": b"5\n",
    "a string": b'"governed"\n',
    "a list": b'["governed"]\n',
    "null": b"null\n",
    "a wait of words": b'{"wait_s":"long"}\n{"governed":true}\n',
    "a wait of null": b'{"wait_s":null}\n{"governed":true}\n',
    "a wait and then nothing": b'{"wait_s":5}\n',
}


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_is_no_answer(settings: dict[str, str], what: str) -> None:
    """The Pod starts cold; it never fails for it."""
    with agent(settings["agent_socket"], says(NONSENSE[what])):
        assert runtime.ask_agent(settings, {"op": "create"}, 2) is None


def drips(connection: socket.socket) -> None:
    """Send a byte at a time, always in time for the next read, until the other side leaves."""
    connection.settimeout(0.05)
    while True:
        connection.sendall(b" ")
        try:
            if not connection.recv(1):
                return
        except TimeoutError:
            continue


@pytest.mark.parametrize("talk", [hangs, drips])
def test_an_agent_that_hangs_costs_its_limit_and_no_more(
    settings: dict[str, str], talk: Callable[[socket.socket], None]
) -> None:
    """Silent or dripping, the sandbox's start is not held up."""
    with agent(settings["agent_socket"], talk):
        began_s = time.monotonic()
        assert runtime.ask_agent(settings, {}, 0.3) is None
        took_s = time.monotonic() - began_s
    assert 0.2 < took_s < 1.5


def test_an_agent_that_hangs_while_it_fetches_costs_what_it_asked_for(
    settings: dict[str, str],
) -> None:
    """The deadline of the answer counts, not that of the first line."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(b'{"wait_s":0.3}\n')
        hangs(connection)

    with agent(settings["agent_socket"], talk):
        began_s = time.monotonic()
        assert runtime.ask_agent(settings, {}, 5) is None
        assert time.monotonic() - began_s < 1.5


# -- specs


@pytest.mark.parametrize(
    ("key", "value", "stays"),
    [
        ("dev.gvisor.internal.checkpoint.path", "/etc", False),
        ("dev.gvisor.internal.", "x", False),
        ("dev.gvisor.tar.rootfs.upper.main", "relative.tar", False),
        ("dev.gvisor.spec.mount.data.source", "/etc", False),
        ("dev.gvisor.spec.mount.data.source", "{pods}/../../etc", False),
        ("dev.gvisor.spec.rootfs.source", "/dev/sda", False),
        ("dev.gvisor.spec.mount.data.source", "{pods}/another/volumes/x", False),
        ("dev.gvisor.spec.rootfs.overlay", "dir=/run", False),
        ("dev.gvisor.spec.mount.data.options", "upper=/run", False),
        ("dev.gvisor.spec.mount.data.source", "{pods}/uid-1/volumes/x", True),
        ("dev.gvisor.spec.mount.gvisorinternaldevshm.source", "/run/shm/1", True),
        ("dev.gvisor.spec.mount.data.type", "tmpfs", True),
        ("note", "/etc", True),
    ],
)
def test_no_annotation_steers_runsc_to_files_of_the_node(
    settings: dict[str, str], key: str, value: str, *, stays: bool
) -> None:
    """Else a user could have files of the node read or written as root."""
    found = {key: value.format(pods=settings["kubelet_root"] + "/pods")}
    found["io.kubernetes.cri.sandbox-uid"] = "uid-1"
    spec = {"annotations": found, "mounts": [{"source": "/run/shm/1"}]}
    runtime.drop_steering(runtime.Call(["create"], settings), spec)
    assert (key in found) is stays


_HOSTILE = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        [
            '"io.kubernetes.cri.sandbox-id":"evil"',
            'X="io.kubernetes.cri.sandbox-id":"../../evil"',
            '\\"io.kubernetes.cri.sandbox-id\\":\\"evil\\"',
            '"io.kubernetes.cri.container-type":"sandbox"',
            'a\\","io.kubernetes.cri.container-type":"sandbox',
        ]
    ),
)


@given(env=st.lists(_HOSTILE, max_size=4), args=st.lists(_HOSTILE, max_size=4))
def test_no_string_of_a_container_passes_for_containerds_marks(
    env: list[str], args: list[str]
) -> None:
    """Env and arguments stand before the annotations in the bytes that are searched."""
    process = {"env": env, "args": args, "cwd": "/"}
    spec = {
        "ociVersion": "1.2.0",
        "process": process,
        "annotations": annotations("container"),
    }
    for ascii_only in (True, False):
        text = json.dumps(spec, separators=(",", ":"), ensure_ascii=ascii_only)
        raw = text.encode("utf-8", "surrogatepass")
        assert runtime.SANDBOX_MARK not in raw
        assert runtime.sandbox_bundle("/run/bundles/app", raw) == f"/run/bundles/{SANDBOX_ID}"


def test_a_sandbox_id_never_leaves_the_bundles_folder() -> None:
    """Nor does a spec without one name a decision."""
    raw = b'{"annotations":{"io.kubernetes.cri.sandbox-id":"../../etc"}}'
    assert runtime.sandbox_bundle("/run/bundles/app", raw) == "/run/bundles/etc"
    assert runtime.sandbox_bundle("/run/bundles/app", b"{}") == ""
    assert runtime.decision_for("/run/bundles/app", b"{}") is None


def call_for(settings: dict[str, str], tmp_path: Path, spec: bytes) -> tuple[runtime.Call, Path]:
    """Return a ``create`` call of a sandbox with its bundle."""
    bundle = tmp_path / SANDBOX_ID
    bundle.mkdir(exist_ok=True)
    (bundle / "config.json").write_bytes(spec)
    argv = ["--root=/run/runsc", f"--log={bundle}/log.json", "create", "--bundle", str(bundle)]
    return runtime.Call([*argv, SANDBOX_ID], settings), bundle


def config(bundle: Path) -> dict[str, Any]:
    """Return a bundle's spec as it stands."""
    found: dict[str, Any] = json.loads((bundle / "config.json").read_bytes())
    return found


def test_without_an_agent_a_sandbox_is_made_comparable_and_starts_cold(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """The Pod's UID leaves the annotations and stays in the cgroup's path."""
    more = {
        "dev.gvisor.spec.cgroup-parent": "/kubepods/uid-1",
        "dev.gvisor.internal.checkpoint.path": "/etc",
    }
    spec = raw_spec(annotations=annotations(**more), process={"oomScoreAdj": 900})
    call, bundle = call_for(settings, tmp_path, spec)
    runtime.create(call)
    found = config(bundle)
    assert found["linux"]["cgroupsPath"] == "/kubepods/uid-1"
    assert found["annotations"] == annotations()
    assert found["process"]["oomScoreAdj"] == 900
    assert not (bundle / runtime.DECISION).exists()
    assert (bundle / "config.json").stat().st_mode & 0o777 == 0o600
    # What was rewritten is still recognised at the next call.
    assert runtime.SANDBOX_MARK in (bundle / "config.json").read_bytes()


def test_a_governed_sandbox_is_prepared_and_the_decision_kept(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """Complete mount hints, one constant OOM score, the agent's own annotations."""
    volumes = tmp_path / "kubelet/pods/uid-1/volumes/kubernetes.io~empty-dir"
    (volumes / "scratch").mkdir(parents=True)
    call, bundle = call_for(settings, tmp_path, raw_spec(process={"oomScoreAdj": 900}))
    restore = {"snapshot": "s", "image_ids": {"main": "sha256:1"}}
    answer = {
        "governed": True,
        "policy": "web",
        "enable": True,
        "internal": {"checkpoint.path": "/images/1"},
        "restore": restore,
    }
    with agent(settings["agent_socket"], says(json.dumps(answer).encode() + b"\n")) as questions:
        runtime.create(call)
    (question,) = questions
    assert question["pod"] == {"namespace": "shop", "name": "web-0", "uid": "uid-1"}
    assert (question["op"], question["sandbox"]) == ("create", SANDBOX_ID)
    found = config(bundle)
    hint = "dev.gvisor.spec.mount.scratch"
    assert found["annotations"] == annotations(
        **{
            f"{hint}.source": str(volumes / "scratch"),
            f"{hint}.type": "tmpfs",
            f"{hint}.share": "pod",
            f"{hint}.options": "rw,rprivate",
            "dev.gvisor.internal.checkpoint.path": "/images/1",
        }
    )
    assert found["process"]["oomScoreAdj"] == runtime.OOM_CONSTANT
    assert json.loads((bundle / runtime.REAL_OOM).read_bytes()) == 900
    raw = raw_spec(annotations=annotations("container"))
    decision = runtime.decision_for(str(tmp_path / "app"), raw)
    assert decision["restore"] == restore
    assert (bundle / runtime.DECISION).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mark", ["missing", "torn"])
def test_a_pod_that_fell_back_says_so_at_its_next_sandbox(
    settings: dict[str, str], tmp_path: Path, mark: str
) -> None:
    """A torn mark still means cold."""
    call, _ = call_for(settings, tmp_path, raw_spec())
    path = Path(runtime.cold_mark(settings, "uid-1"))
    path.parent.mkdir(parents=True)
    if mark == "torn":
        path.write_text('{"reason', encoding="utf-8")
    with agent(settings["agent_socket"], says(b"{}\n")) as questions:
        runtime.create(call)
    assert (questions[0]["cold"] is None) is (mark == "missing")


def test_an_attempt_that_nobody_saw_do_well_means_cold(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """The note of a restore becomes that of a failure when the Pod needs another sandbox."""
    call, _ = call_for(settings, tmp_path, raw_spec())
    attempt = Path(runtime.attempt_mark(settings, "uid-1"))
    attempt.parent.mkdir(parents=True)
    note = {"snapshot": "s", "reason": "the sandbox ended"}
    attempt.write_text(json.dumps(note), encoding="utf-8")

    with agent(settings["agent_socket"], says(b"{}\n")) as questions:
        runtime.create(call)

    assert questions[0]["cold"] == note
    assert not attempt.exists()
    assert Path(runtime.cold_mark(settings, "uid-1")).exists()


def test_an_ordinary_container_is_left_byte_for_byte(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """Most containers of a node are none of ours."""
    spec = raw_spec(annotations=annotations("container"))
    call, bundle = call_for(settings, tmp_path, spec)
    runtime.create(call)
    assert (bundle / "config.json").read_bytes() == spec


def test_a_cold_mark_stays_in_its_folder(settings: dict[str, str]) -> None:
    """Whatever the UID says."""
    assert runtime.cold_mark(settings, "../../etc/passwd").endswith("/state/cold/passwd")


# -- calls and settings


def test_flags_are_read_in_both_spellings(settings: dict[str, str]) -> None:
    """As the shim writes them."""
    call = runtime.Call(
        ["--root=/r", "-log=/b/log.json", "create", "--bundle", "/b", "id-1"], settings
    )
    assert (call.flag("root"), call.flag("log"), call.flag("bundle")) == ("/r", "/b/log.json", "/b")
    assert (call.command, call.container, call.flag("absent")) == ("create", "id-1", "")
    assert call.with_command("restore", "--detach") == [
        "--root=/r",
        "-log=/b/log.json",
        "restore",
        "--detach",
        "id-1",
    ]


def test_no_arguments_are_no_command(settings: dict[str, str]) -> None:
    """Runsc itself says what it makes of them."""
    assert runtime.Call([], settings).command == ""
    assert runtime.Call(["--version"], settings).command == ""


def test_settings_lie_beside_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KEY=VALUE, comments and empty lines; a value may hold an equals sign; links are followed."""
    program = tmp_path / "lib/podsnap-runtime"
    program.parent.mkdir()
    shutil.copy(runtime.__file__, program)
    text = "# a comment\n\nrunsc=/r\nagent_socket=/s=1\nnonsense\n#x=y\n"
    (tmp_path / "lib/podsnap-runtime.conf").write_text(text, encoding="utf-8")
    link = tmp_path / "podsnap-runtime"
    link.symlink_to(program)
    monkeypatch.setattr(runtime, "__file__", str(link))
    assert runtime.read_settings() == {"runsc": "/r", "agent_socket": "/s=1"}


def test_a_stored_file_is_replaced_at_once(tmp_path: Path) -> None:
    """A reader sees the old one or the new one, and nothing is left beside it."""
    path = tmp_path / "x.json"
    for tree in ({"a": 1}, {"a": 2}):
        runtime.store(str(path), tree)
        assert runtime.load(str(path)) == tree
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600


# -- whole calls, with a program in runsc's place that notes how it was called


@dataclass(frozen=True)
class Node:
    """The wrapper as it is installed, a governed sandbox and a container in it."""

    program: Path
    calls: Path
    sandbox: Path
    container: Path
    socket: str

    def call(self, *words: str, bundle: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Call the wrapper as the shim does."""
        log = (bundle or self.container) / "log.json"
        argv = [sys.executable, "-IS", str(self.program), "--root=/run/runsc", f"--log={log}"]
        return subprocess.run(
            [*argv, *words], capture_output=True, text=True, check=False, timeout=20
        )

    def runsc_calls(self) -> list[str]:
        """Return the subcommands that reached runsc, with what follows them."""
        lines = self.calls.read_text(encoding="utf-8").splitlines() if self.calls.exists() else []
        return [" ".join(w for w in line.split() if not w.startswith("--")) for line in lines]

    def decide(self, **changes: Any) -> None:  # noqa: ANN401 - parts of the record
        """Record a decision for the sandbox."""
        record = {
            "version": 1,
            "pod": {"namespace": "shop", "name": "web-0", "uid": "uid-1"},
            "sandbox": SANDBOX_ID,
            "policy": "web",
            "enable": False,
            "stop": False,
            "workload_dir": "",
            "restore": None,
            **changes,
        }
        runtime.store(str(self.sandbox / runtime.DECISION), record)


@pytest.fixture
def node(settings: dict[str, str], tmp_path: Path) -> Node:
    """Install the wrapper; the program in runsc's place says that what it waits for was killed."""
    calls = tmp_path / "calls"
    runsc = tmp_path / "runsc"
    said = '{"id":"app","exitStatus":137}'
    runsc.write_text(f"#!/bin/sh\necho \"$@\" >> {calls}\necho '{said}'\n", encoding="utf-8")
    runsc.chmod(0o700)
    program = tmp_path / "podsnap-runtime"
    shutil.copy(runtime.__file__, program)
    lines = [f"{k}={v}" for k, v in {**settings, "runsc": str(runsc)}.items()]
    (tmp_path / "podsnap-runtime.conf").write_text("\n".join(lines), encoding="utf-8")
    sandbox, container = tmp_path / SANDBOX_ID, tmp_path / "app"
    named = annotations("container", **{f"{CRI}container-name": "prepare"})
    for bundle, found in ((sandbox, annotations()), (container, named)):
        bundle.mkdir()
        (bundle / "config.json").write_bytes(raw_spec(annotations=found))
    made = Node(program, calls, sandbox, container, settings["agent_socket"])
    made.decide()
    return made


RESTORE = {"snapshot": "s", "image_dir": "/i", "image_ids": {"main": "sha256:1"}}


def test_a_restored_pods_init_container_is_answered_for(node: Node, tmp_path: Path) -> None:
    """Runsc never hears of it; the kubelet sees it made, started and ended well."""
    node.decide(restore=RESTORE)
    pid_file = tmp_path / "pid"

    words = ("--bundle", str(node.container), "--pid-file", str(pid_file))
    assert node.call("create", *words, "app").returncode == 0
    created = json.loads(node.call("state", "app").stdout)
    assert node.call("start", "app").returncode == 0
    stopped = json.loads(node.call("state", "app").stdout)
    waited = json.loads(node.call("wait", "app").stdout)
    ends = [node.call(*words, "app").returncode for words in (("kill",), ("delete", "--force"))]

    assert int(pid_file.read_text(encoding="utf-8")) > 1
    assert (created["status"], stopped["status"]) == ("created", "stopped")
    assert waited == {"id": "app", "exitStatus": 0}
    assert ends == [0, 0]
    assert node.runsc_calls() == []


@pytest.mark.parametrize(
    "restore",
    [None, {**RESTORE, "rootfs_only": True}],
    ids=["cold", "files alone"],
)
def test_an_init_container_of_any_other_pod_is_made(
    node: Node, restore: dict[str, Any] | None
) -> None:
    """Where no memory comes back, what it does has to be done."""
    node.decide(restore=restore)

    node.call("create", "--bundle", str(node.container), "app")

    assert node.runsc_calls() == [f"create {node.container} app"]


@pytest.mark.parametrize(
    ("stops", "ended", "status"),
    [(True, True, 0), (True, False, 137), (False, True, 137)],
    ids=["ended by its save", "ended otherwise", "a policy that does not stop"],
)
def test_only_a_container_that_its_save_ended_ends_well(
    node: Node, *, stops: bool, ended: bool, status: int
) -> None:
    """Any other end is told as it was."""
    node.decide(stop=stops)
    if ended:
        (node.container / runtime.ENDED).touch()

    assert json.loads(node.call("wait", "app").stdout)["exitStatus"] == status
    assert node.runsc_calls() == ["wait app"]


def test_the_agent_is_asked_before_a_containers_signal_is_passed_on(node: Node) -> None:
    """Runsc gets it when the agent has answered, not before."""
    before: list[list[str]] = []

    def talk(connection: socket.socket) -> None:
        before.append(node.runsc_calls())
        connection.sendall(b'{"saved":true}\n')

    with agent(node.socket, talk) as questions:
        assert node.call("kill", "app", "15").returncode == 0

    pod = {"namespace": "shop", "name": "web-0", "uid": "uid-1"}
    assert questions == [{"op": "signal", "pod": pod, "sandbox": SANDBOX_ID}]
    assert before == [[]]
    assert node.runsc_calls() == ["kill app 15"]


@pytest.mark.parametrize("signal", ["9", "KILL", "SIGKILL"])
def test_a_sigkill_is_passed_on_unasked(node: Node, signal: str) -> None:
    """The grace period is over by then; an agent that hangs would cost a second each."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(node.socket)
        server.listen()
        server.setblocking(False)
        node.call("kill", "app", signal)
        with pytest.raises(BlockingIOError):
            server.accept()

    assert node.runsc_calls() == [f"kill app {signal}"]


def test_a_signal_of_the_sandbox_itself_is_passed_on_unasked(node: Node) -> None:
    """It comes last, when there is nothing left to save."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(node.socket)
        server.listen()
        server.setblocking(False)
        node.call("kill", SANDBOX_ID, "15", bundle=node.sandbox)
        with pytest.raises(BlockingIOError):
            server.accept()

    assert node.runsc_calls() == [f"kill {SANDBOX_ID} 15"]


def test_without_an_agent_a_signal_is_passed_on(node: Node) -> None:
    """A Pod never stays because of podsnap."""
    assert node.call("kill", "app", "15").returncode == 0
    assert node.runsc_calls() == ["kill app 15"]


@pytest.mark.parametrize(
    "words", [("kill", "app", "9"), ("kill", "app", "15"), ("delete", "--force", "app")]
)
def test_what_is_paused_is_resumed_before_it_is_ended(node: Node, words: tuple[str, ...]) -> None:
    """Else it would never end; what is not paused is not touched."""
    node.call(*words)
    (node.sandbox / runtime.PAUSED).touch()
    node.call(*words)

    passed_on = " ".join(w for w in words if not w.startswith("--"))
    assert node.runsc_calls() == [passed_on, f"resume {SANDBOX_ID}", passed_on]


def test_the_reason_of_a_failed_start_is_told_without_the_command_line(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """A script as an argument would push the reason out of the one line that is kept."""
    script = "import os\n" + "x = 1\n" * 200
    spec = {"process": {"args": ["python3", "-c", script]}}
    (tmp_path / "config.json").write_text(json.dumps(spec), encoding="utf-8")
    said = f"starting container: starting sub-container [python3 -c {script}]: no such file\nstack"
    entry = {"level": "error", "msg": said}
    (tmp_path / "log.json").write_text(json.dumps(entry) + "\n", encoding="utf-8")

    call = runtime.Call([f"--log={tmp_path}/log.json", "start", SANDBOX_ID], settings)

    assert call.last_error() == "starting container: starting sub-container: no such file"


@pytest.mark.parametrize("restoring", [True, False])
def test_a_sandbox_that_waits_for_its_memory_gives_no_statistics(
    node: Node, *, restoring: bool
) -> None:
    """Asked for them, runsc crashes: there is no kernel yet. Afterwards it answers."""
    node.decide(restore=RESTORE)
    if not restoring:
        (node.sandbox / runtime.STARTED).mkdir()
        (node.sandbox / runtime.STARTED / "app").touch()

    asked = node.call("events", "--stats", "app")

    assert (asked.returncode, len(node.runsc_calls())) == ((1, 0) if restoring else (0, 1))


@pytest.mark.parametrize(
    ("name", "volume", "code", "cold"),
    [
        ("main", "kubernetes.io~empty-dir/data", 1, True),
        ("debugger", "kubernetes.io~empty-dir/data", 1, False),
        ("main", "kubernetes.io~configmap/data", 0, False),
    ],
    ids=["a container that was saved", "one that was not", "one without an emptyDir"],
)
def test_no_container_is_made_anew_beside_restored_ones_that_share_an_emptydir(
    node: Node, settings: dict[str, str], name: str, volume: str, code: int, *, cold: bool
) -> None:
    """The others would lose theirs; so the whole Pod starts cold, and the snapshot has no blame."""
    node.decide(restore=RESTORE)
    (node.sandbox / runtime.STARTED).mkdir()
    (node.sandbox / runtime.STARTED / "main").touch()
    mount = {"source": f"{settings['kubelet_root']}/pods/uid-1/volumes/{volume}"}
    named = annotations("container", **{f"{CRI}container-name": name})
    (node.container / "config.json").write_bytes(raw_spec(annotations=named, mounts=[mount]))

    made = node.call("create", "--bundle", str(node.container), "app")

    mark = Path(runtime.cold_mark(settings, "uid-1"))
    assert (made.returncode, mark.exists(), len(node.runsc_calls())) == (code, cold, 1 - code)
    assert not cold or runtime.load(str(mark))["blame"] is False
