#!/usr/bin/python3 -IS
# SPDX-License-Identifier: Apache-2.0
"""podsnap-runtime: the OCI runtime that gVisor's containerd shim calls instead of runsc.

It asks the node's agent once, when a sandbox is created, whether the Pod restores, and turns that
sandbox's ``start`` into ``restore``; it asks again before a container's first signal, because a Pod
that is deleted may be saved. Every other call becomes runsc at once. One file, standard library
only, few imports, because each runsc call of every Pod on the node pays for its start.

The trap is failing: a sandbox ``start`` that returns an error costs the Pod minutes, and an
application ``start`` that fails leaves a dead sandbox which the kubelet retries for ever. So a
sandbox ``start`` never fails, and a failed application ``start`` kills the sandbox; the kubelet
makes a new one in the same Pod, and that one starts cold.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

CONFIG = "config.json"
DECISION = "podsnap.json"
STARTED = "podsnap-started"
REAL_OOM = "podsnap-oom-score-adj"
SKIPPED = "podsnap-skipped"  # in the bundle of an init container that a restored Pod does not run
PAUSED = "podsnap-paused"  # the agent is about to pause the sandbox, or did
ENDED = "podsnap-ended"  # in a container's bundle: it is ended after a save, which is no failure
OOM_CONSTANT = 0
EMPTY_TRACEPARENT = "TRACEPARENT="
FIRST_ANSWER_S = 1.0
REPORT_S = 2.0
MESSAGE_LIMIT = 1024
INTERNAL = "dev.gvisor.internal."
ROOTFS_TAR = "dev.gvisor.tar."
OURS = (INTERNAL, ROOTFS_TAR, "dev.gvisor.spec.rootfs.")
GVISOR = "dev.gvisor."
SANDBOX_MARK = b'"io.kubernetes.cri.container-type":"sandbox"'
SANDBOX_ID_MARK = b'"io.kubernetes.cri.sandbox-id":"'


def read_settings() -> "dict[str, str]":
    """Read KEY=VALUE lines from ``podsnap-runtime.conf`` beside this file."""
    settings = {}
    path = os.path.join(os.path.dirname(os.path.realpath(__file__)), "podsnap-runtime.conf")
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            key, separator, value = line.strip().partition("=")
            if separator and not key.startswith("#"):
                settings[key] = value
    return settings


class Call:
    """One invocation: global flags, subcommand, its flags, and the container it concerns."""

    def __init__(self, argv: "list[str]", settings: "dict[str, str]") -> None:
        self.argv = argv
        self.settings = settings
        self.runsc = settings["runsc"]
        self.at = next((n for n, a in enumerate(argv) if not a.startswith("-")), len(argv))
        self.command = argv[self.at] if self.at < len(argv) else ""
        self.container = argv[-1] if argv else ""

    def flag(self, name: str) -> str:
        """Return a flag's value, given as ``--name=value`` or ``--name value``."""
        for n, argument in enumerate(self.argv):
            if argument.startswith((f"--{name}=", f"-{name}=")):
                return argument.split("=", 1)[1]
            if argument in {f"--{name}", f"-{name}"} and n + 1 < len(self.argv):
                return self.argv[n + 1]
        return ""

    def become_runsc(self) -> "NoReturn":
        """Replace this process by runsc, with the same arguments."""
        os.execv(self.runsc, [self.runsc, *self.argv])  # noqa: S606 - no shell wanted

    @property
    def bundle(self) -> str:
        """The container's bundle: the shim keeps its log there."""
        return os.path.dirname(self.flag("log"))

    def with_command(self, *words: str) -> "list[str]":
        """Return the arguments with the subcommand replaced; the container stays last."""
        return [*self.argv[: self.at], *words, self.container]

    def run(self, arguments: "list[str]", deadline_s: float = 0) -> "tuple[int, str]":
        """Run runsc as a child; return its exit code and, if it failed, why.

        It keeps our standard streams: they are the container's, which ``start`` hands to the
        sandbox. A child that passes its deadline is killed and counts as exit code 124.
        """
        import select

        child = os.posix_spawn(self.runsc, [self.runsc, *arguments], os.environ)
        ended = os.pidfd_open(child)
        in_time = select.select([ended], [], [], deadline_s or None)[0]
        if not in_time:
            os.kill(child, 9)
        _, status = os.waitpid(child, 0)
        if not in_time:
            return 124, f"no end within {deadline_s:.0f} s"
        code = os.waitstatus_to_exitcode(status)
        return code, self.last_error() if code else ""

    def ask(self, arguments: "list[str]", program: str = "") -> "tuple[int, str]":
        """Run runsc, or another program, and return its exit code and what it prints."""
        read_end, write_end = os.pipe()
        program = program or self.runsc
        child = os.posix_spawn(
            program,
            [program, *arguments],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, write_end, 1),
                (os.POSIX_SPAWN_CLOSE, read_end),
            ],
        )
        os.close(write_end)
        with open(read_end, encoding="utf-8") as output:
            text = output.read()
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), text

    def last_error(self) -> str:
        """Return the last error in runsc's log: its first line, never its stack trace.

        runsc puts the container's whole command line in front of the reason; that goes too.
        """
        import json

        text = ""
        try:
            with open(self.flag("log"), encoding="utf-8", errors="replace") as log:
                for line in log:
                    try:
                        entry = json.loads(line)
                    except ValueError:
                        continue
                    if entry.get("level") == "error":
                        text = entry.get("msg", "")
            args = load(os.path.join(self.bundle, CONFIG))["process"]["args"]
            text = text.replace(f" [{' '.join(args)}]", "")
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return next((t.strip()[:500] for t in text.splitlines() if t.strip()), "no message")

    def tell(self, text: str) -> None:
        """Say why a call fails, where the shim looks for it: it takes the log's last error."""
        import json

        entry = {"msg": f"podsnap-runtime: {text}"[:MESSAGE_LIMIT], "level": "error"}
        try:
            with open(self.flag("log"), "a", encoding="utf-8") as log:
                log.write(json.dumps(entry) + "\n")
        except OSError:
            return


class _JsonScanner:
    """What the json package gives to its C part; importing the package itself costs 10 ms."""

    strict = True
    parse_float, parse_int = float, int
    object_hook = object_pairs_hook = parse_constant = None

    def __init__(self) -> None:
        self.memo: dict[str, str] = {}


def parse(text: "bytes | str") -> "Any":
    """Parse JSON. The json package takes over wherever the short way does not work."""
    if isinstance(text, bytes):
        text = text.decode()
    try:
        import _json

        scan = _json.make_scanner(_JsonScanner())  # type: ignore[arg-type] # any such object does
        tree, end = scan(text, 0)
        if not text[end:].strip():
            return tree
    except Exception:  # noqa: BLE001, S110 - another Python, a space in front, or no JSON
        pass
    import json

    return json.loads(text)


def render(tree: "Any") -> str:
    """Render JSON, compact like containerd's own: the marks above are looked for in the bytes."""
    try:
        import _json

        quote = _json.encode_basestring_ascii
        encode = _json.make_encoder(None, str, quote, None, ":", ",", False, False, True)
        return "".join(encode(tree, 0))
    except Exception:  # noqa: BLE001 - another Python's C part
        import json

        return json.dumps(tree, separators=(",", ":"))


def load(path: str) -> "Any":
    """Read a JSON file."""
    with open(path, encoding="utf-8") as file:
        return parse(file.read())


def store(path: str, tree: "Any") -> None:
    """Replace a JSON file at once, readable by root alone."""
    temporary = f"{path}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(render(tree))
    os.rename(temporary, path)


def ask_agent(settings: "dict[str, str]", question: "dict[str, Any]", limit_s: float) -> "Any":
    """Put one question to the agent; ``None`` if it is away, too late or answers nonsense.

    The first line must come within ``limit_s``. It is the answer, or ``{"wait_s": N}``: the agent
    lives and works on it, and the next line comes within that time.
    """
    import _socket  # what the socket module wraps; the wrapper costs another 9 ms to import
    import time

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    received = b""

    def line(limit_s: float) -> "dict[str, Any]":
        nonlocal received
        deadline_s = time.monotonic() + limit_s
        while b"\n" not in received:
            # The limit is for the whole line: an agent that drips bytes is as late as a silent one.
            connection.settimeout(max(deadline_s - time.monotonic(), 0.001))
            block = connection.recv(65536)
            if not block:
                raise ValueError("the agent hung up")
            received += block
        text, _, received = received.partition(b"\n")
        answer = parse(text)
        if not isinstance(answer, dict):
            raise TypeError("the answer is no object")
        return answer

    try:
        connection.settimeout(limit_s)
        connection.connect(settings["agent_socket"])
        connection.sendall(render(question).encode() + b"\n")
        answer = line(limit_s)
        while "wait_s" in answer:
            answer = line(answer["wait_s"])
    except (OSError, ValueError, TypeError, OverflowError):
        return None
    else:
        return answer
    finally:
        connection.close()


def pod_of(annotations: "dict[str, str]") -> "dict[str, str]":
    """Return the Pod that the CRI names."""
    return {k: annotations.get(f"io.kubernetes.cri.sandbox-{k}", "") for k in _POD_KEYS}


_POD_KEYS = ("namespace", "name", "uid")


def cold_mark(settings: "dict[str, str]", uid: str) -> str:
    """Return the file that says: this Pod's next sandbox starts cold."""
    return os.path.join(settings["state_dir"], "cold", os.path.basename(uid))


def attempt_mark(settings: "dict[str, str]", uid: str) -> str:
    """Return the file that says: this Pod was restored and was not seen to do well yet."""
    return os.path.join(settings["state_dir"], "attempts", os.path.basename(uid))


def write_mark(
    call: Call, path: str, decision: "dict[str, Any]", reason: str, *, blame: bool = True
) -> None:
    """Leave a note about a restore for the Pod's next sandbox, and for the agent.

    ``blame`` if it counts against the snapshot.
    """
    import time

    mark = {
        "pod": decision["pod"],
        "sandbox": decision["sandbox"],
        "snapshot": (decision.get("restore") or {}).get("snapshot", ""),
        "snapshot_uid": (decision.get("restore") or {}).get("snapshot_uid", ""),
        "reason": reason,
        "blame": blame,
        "at": time.time(),
        "times": (decision.get("restore") or {}).get("times") or {},
    }
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        store(path, mark)
    except OSError as error:
        # Without the mark the next sandbox tries again; a dead sandbox that stays would be worse.
        call.tell(f"{path}: {error.strerror}")


def earlier_failure(settings: "dict[str, str]", uid: str) -> "Any":
    """Return the note of a restore of this Pod that failed, ``None`` if there was none.

    The note of an attempt is written before the restore and removed by the agent when the Pod has
    done well for a while. If it is still there when a sandbox is made, the one before is dead.
    """
    mark, attempt = cold_mark(settings, uid), attempt_mark(settings, uid)
    try:
        if os.path.exists(attempt) and not os.path.exists(mark):
            os.makedirs(os.path.dirname(mark), mode=0o700, exist_ok=True)
            os.rename(attempt, mark)
        if os.path.exists(mark):
            return load(mark)
    except (OSError, ValueError):
        return {"reason": "an earlier restore of this Pod failed"}
    return None


def start_cold_from_now_on(
    call: Call, decision: "dict[str, Any]", reason: str, *, kill: bool, blame: bool = True
) -> None:
    """Mark the Pod cold and, if ``kill``, end its sandbox so that the kubelet makes a new one."""
    path = cold_mark(call.settings, decision["pod"]["uid"])
    if not os.path.exists(path):  # whoever serves the memory knows better why it did not come
        write_mark(call, path, decision, reason, blame=blame)
    if kill:
        kill_sandbox(call, decision["sandbox"])
    ask_agent(call.settings, {"op": "fell-back", "pod": decision["pod"]}, REPORT_S)


def sandbox_pid(call: Call, sandbox: str) -> int:
    """Return the sandbox's process id from runsc's state file, 0 if unknown."""
    path = os.path.join(call.flag("root"), f"{sandbox}_sandbox:{sandbox}.state")
    try:
        return int(load(path)["sandbox"]["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def kill_sandbox(call: Call, sandbox: str) -> None:
    """End a sandbox whatever state it is in."""
    pid = sandbox_pid(call, sandbox)
    if pid > 1:
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            return


def is_restoring(call: Call, decision: "dict[str, Any]", sandbox: str) -> bool:
    """Tell whether a sandbox still waits for its memory; ``sandbox`` is its bundle.

    Once every container has started, it is a sandbox like any other: a container that crashes is
    made anew, perhaps from another image.
    """
    restore = decision.get("restore")
    if not restore or os.path.exists(cold_mark(call.settings, decision["pod"]["uid"])):
        return False
    try:
        return len(os.listdir(os.path.join(sandbox, STARTED))) < len(restore["image_ids"])
    except FileNotFoundError:
        return True


# -- create


def create(call: Call) -> "int | None":
    """Prepare a container's spec; returns an exit code, or ``None`` if runsc is to create it."""
    bundle = call.flag("bundle")
    with open(os.path.join(bundle, CONFIG), "rb") as file:
        raw = file.read()
    if SANDBOX_MARK in raw:
        create_sandbox(call, bundle, raw)
        return None
    decision = decision_for(bundle, raw)
    if decision is not None:
        return create_governed(call, bundle, raw, decision)
    if GVISOR.encode() in raw:
        spec = parse(raw)
        drop_steering(call, spec)
        store(os.path.join(bundle, CONFIG), spec)
    return None


def drop_steering(call: Call, spec: "dict[str, Any]") -> None:
    """Remove what only we may set, and every path of the node that is not the Pod's anyway.

    These make runsc read and write the node's files as root.
    """
    annotations = spec.get("annotations") or {}
    uid = os.path.basename(pod_of(annotations)["uid"])
    volumes = os.path.join(call.settings["kubelet_root"], "pods", uid, "volumes", "")
    mounted = {mount.get("source") for mount in spec.get("mounts") or ()}
    for key, value in list(annotations.items()):
        own = value in mounted or (uid and os.path.normpath(value).startswith(volumes))
        foreign = key.startswith(GVISOR) and "/" in value and not own
        if foreign or key.startswith(OURS):
            del annotations[key]


def create_sandbox(call: Call, bundle: str, raw: bytes) -> None:
    """Make the sandbox's spec comparable between Pods, and decide whether it restores."""
    spec = parse(raw)
    annotations = spec.setdefault("annotations", {})
    # The shim's value holds the Pod's UID, and runsc compares it; the same cgroup by other means.
    parent = annotations.pop("dev.gvisor.spec.cgroup-parent", "")
    drop_steering(call, spec)
    if parent:
        spec.setdefault("linux", {})["cgroupsPath"] = parent
    pod = pod_of(annotations)
    cold = earlier_failure(call.settings, pod["uid"])
    answer = ask_agent(
        call.settings,
        {"op": "create", "pod": pod, "sandbox": call.container, "bundle": bundle, "cold": cold},
        FIRST_ANSWER_S,
    )
    plain = render(spec)
    try:
        if answer and answer.get("governed"):
            prepare_sandbox(call, bundle, spec, answer)
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        # Whatever is wrong with our own part, the Pod starts as it would without us.
        call.tell(f"the sandbox could not be prepared and starts cold: {error}")
        spec = parse(plain)
    store(os.path.join(bundle, CONFIG), spec)


def prepare_sandbox(
    call: Call, bundle: str, spec: "dict[str, Any]", answer: "dict[str, Any]"
) -> None:
    """Write what makes a governed sandbox restorable, and remember the decision."""
    annotations = spec["annotations"]
    pod = pod_of(annotations)
    volumes = empty_dirs(call, pod)
    names = sorted(os.listdir(volumes)) if os.path.isdir(volumes) else []
    for name in names:
        # With complete hints an emptyDir lives inside the sandbox, and so in the image.
        hint = f"dev.gvisor.spec.mount.{name}"
        annotations[f"{hint}.source"] = os.path.join(volumes, name)
        annotations[f"{hint}.type"] = "tmpfs"
        annotations[f"{hint}.share"] = "pod"
        annotations[f"{hint}.options"] = "rw,rprivate"
        # runsc names its memory after the first container that mounts it. That may be an init
        # container, which a restored Pod does not run; the sandbox's own is always there.
        mount = {"destination": f"/podsnap/{name}", "source": os.path.join(volumes, name)}
        spec.setdefault("mounts", []).append(
            {**mount, "type": "bind", "options": ["rbind", "rprivate", "rw"]}
        )
    for key, value in (answer.get("internal") or {}).items():
        annotations[INTERNAL + key] = value
    set_oom_constant(bundle, spec)
    decision = {
        "version": 1,
        "pod": pod,
        "sandbox": call.container,
        "policy": answer.get("policy", ""),
        "enable": bool(answer.get("enable")),
        "stop": bool(answer.get("stop")),
        "workload_dir": (answer.get("internal") or {}).get("checkpoint.path", ""),
        "restore": answer.get("restore"),
    }
    store(os.path.join(bundle, DECISION), decision)


def set_oom_constant(bundle: str, spec: "dict[str, Any]") -> None:
    """Hide the score from runsc's comparison: it depends on the node's size (see REAL_OOM)."""
    process = spec.get("process") or {}
    if "oomScoreAdj" in process:
        store(os.path.join(bundle, REAL_OOM), process["oomScoreAdj"])
        process["oomScoreAdj"] = OOM_CONSTANT


def sandbox_bundle(bundle: str, raw: bytes) -> str:
    """Return the bundle of the sandbox that a container belongs to."""
    start = raw.find(SANDBOX_ID_MARK)
    if start < 0:
        return ""
    start += len(SANDBOX_ID_MARK)
    sandbox = raw[start : raw.index(b'"', start)].decode()
    return os.path.join(os.path.dirname(bundle), os.path.basename(sandbox))


def name_of(raw: bytes) -> str:
    """Return the name that a Pod's spec gives to a container."""
    annotations = parse(raw).get("annotations") or {}
    return str(annotations.get("io.kubernetes.cri.container-name", ""))


def decision_for(bundle: str, raw: bytes) -> "Any":
    """Return the decision recorded for a container's sandbox, ``None`` if it is not governed."""
    try:
        return load(os.path.join(sandbox_bundle(bundle, raw), DECISION))
    except (OSError, ValueError):
        return None


def create_governed(
    call: Call, bundle: str, raw: bytes, decision: "dict[str, Any]"
) -> "int | None":
    """Prepare an application container; on a restore make sure it runs the saved image."""
    spec = parse(raw)
    annotations = spec.setdefault("annotations", {})
    drop_steering(call, spec)
    name = annotations.get("io.kubernetes.cri.container-name", "")
    restore = decision["restore"]
    if not is_restoring(call, decision, sandbox_bundle(bundle, raw)):
        restore = None
    if restore and name not in restore["image_ids"] and not restore.get("rootfs_only"):
        return skip(call, bundle, decision)
    if decision["enable"]:
        annotations[f"{INTERNAL}checkpoint.enable"] = "true"
    if restore and restore.get("rootfs_only"):
        files = os.path.join(restore["image_dir"], f"{name}.tar")
        # runsc refuses files for a root file system that is read-only in this Pod.
        if os.path.exists(files) and not spec["root"].get("readonly"):
            annotations[f"{ROOTFS_TAR}rootfs.upper.{name}"] = files
            allow_rootfs_tar(call)
    if restore:
        join_trace(spec, restore.get("traceparent", ""))
    set_oom_constant(bundle, spec)
    store(os.path.join(bundle, CONFIG), spec)
    if not restore and shares_lost_volumes(call, decision, spec):
        return refuse_anew(call, decision, name)
    if not restore or restore.get("rootfs_only"):
        return None
    expected = restore["image_ids"][name]
    found = image_id(call)
    if found != expected:
        reason = (
            f"spec.containers[{name}].image is {found or 'unknown'} by its ID, "
            f"saved with {expected or 'none'}"
        )
        start_cold_from_now_on(call, decision, reason, kill=True, blame=False)
        call.tell(f"{reason}; the Pod starts cold")
        return 1
    return None


def join_trace(spec: "dict[str, Any]", traceparent: str) -> None:
    """Fill in the trace context of the restore where the Pod's spec has it with an empty value.

    The program finds it in /proc/gvisor/spec_environ; its own environment is memory.
    """
    env = (spec.get("process") or {}).get("env") or []
    for n, variable in enumerate(env):
        if variable == EMPTY_TRACEPARENT:
            env[n] = EMPTY_TRACEPARENT + traceparent


def shares_lost_volumes(call: Call, decision: "dict[str, Any]", spec: "dict[str, Any]") -> bool:
    """Tell whether a container is made in a restored sandbox and mounts an emptyDir.

    After a restore runsc has forgotten which of them are shared. The container would get an empty
    one, and its backing file is that of the other containers' memory, which they lose.
    """
    restore, pod = decision["restore"], decision["pod"]
    if not restore or restore.get("rootfs_only"):
        return False
    if os.path.exists(cold_mark(call.settings, pod["uid"])):
        return False
    volumes = empty_dirs(call, pod)
    return any(str(m.get("source")).startswith(volumes) for m in spec.get("mounts") or ())


def refuse_anew(call: Call, decision: "dict[str, Any]", name: str) -> int:
    """Start the whole Pod cold in place of one container that was saved; refuse any other."""
    reason = (
        f"container {name} was to be made anew, and gVisor cannot share an emptyDir of a restored "
        "Pod with a new container"
    )
    if name in decision["restore"]["image_ids"]:
        start_cold_from_now_on(call, decision, reason, kill=True, blame=False)
    call.tell(reason)
    return 1


def empty_dirs(call: Call, pod: "dict[str, str]") -> str:
    """Return the directory of a Pod's emptyDir volumes, with a slash at its end."""
    root = call.settings["kubelet_root"]
    return os.path.join(root, "pods", pod["uid"], "volumes/kubernetes.io~empty-dir", "")


def allow_rootfs_tar(call: Call) -> None:
    """Let runsc read the files of a root file system: off unless we ask, for no one else may."""
    call.argv.insert(call.at, "--allow-rootfs-tar-annotation")
    call.at += 1


def skip(call: Call, bundle: str, decision: "dict[str, Any]") -> int:
    """Pretend to create an init container of a restored Pod.

    What it did before the save is in the image, and in the restoring sandbox it would take the
    place of a saved container. The kubelet wants to see it end well, so it does.
    """
    with open(call.flag("pid-file"), "w", encoding="utf-8") as file:
        file.write(str(sandbox_pid(call, decision["sandbox"]) or os.getppid()))
    store(os.path.join(bundle, SKIPPED), "created")
    return 0


def answer_for_skipped(call: Call) -> int:
    """Answer any call about an init container that does not exist."""
    note = os.path.join(call.bundle, SKIPPED)
    if call.command == "start":
        store(note, "stopped")
    elif call.command == "wait":
        sys.stdout.write(render({"id": call.container, "exitStatus": 0}))
    elif call.command == "state":
        state = {"ociVersion": "1.1.0", "id": call.container, "status": load(note), "pid": 0}
        sys.stdout.write(render({**state, "bundle": call.bundle, "annotations": {}}))
    return 0


def image_id(call: Call) -> str:
    """Return the CRI image ID (config digest) of a container that containerd has just made.

    Neither the spec nor the bundle holds it, only containerd's record of the container.
    """
    import base64
    import json

    address = call.settings["containerd_address"]
    words = ["-a", address, "-n", "k8s.io", "--timeout", "5s", "c", "info", call.container]
    _, text = call.ask(words, call.settings["ctr"])
    try:
        record = json.loads(text)["Extensions"]["io.cri-containerd.container.metadata"]
        metadata = json.loads(base64.b64decode(record["value"]))
        return str(metadata["Metadata"]["ImageRef"])
    except (ValueError, KeyError, TypeError):
        return ""


# -- start


def start(call: Call) -> int:
    """Start or restore; returns the exit code, or becomes runsc for a Pod that is not governed."""
    bundle = call.bundle
    raw, decision = governed(call)
    restoring = is_restoring(call, decision, sandbox_bundle(bundle, raw))
    if SANDBOX_MARK in raw:
        if not restoring:
            return start_plainly(call)
        uid = decision["pod"]["uid"]
        reason = "the sandbox ended before the Pod did well for a while"
        # Of a restore in the background the pages may not come, which is not the snapshot's fault.
        blame = not decision["restore"].get("background")
        write_mark(call, attempt_mark(call.settings, uid), decision, reason, blame=blame)
        if decision["restore"].get("rootfs_only"):
            return start_plainly(call)
        try:
            return restore_sandbox(call, decision)
        except (OSError, KeyError, TypeError, ValueError):
            kill_sandbox(call, decision["sandbox"])
            return 0  # an error here would cost the Pod minutes; a dead sandbox costs seconds
    if not restoring:
        code = start_plainly(call)
        set_real_oom(call, bundle, decision)
        return code
    return start_restored(call, bundle, decision, raw)


def governed(call: Call) -> "tuple[bytes, dict[str, Any]]":
    """Return a container's spec and its sandbox's record, or become runsc if there is none."""
    try:
        with open(os.path.join(call.bundle, CONFIG), "rb") as file:
            raw = file.read()
    except OSError:
        call.become_runsc()
    decision = decision_for(call.bundle, raw)
    if decision is None:
        call.become_runsc()
    return raw, decision


def start_plainly(call: Call) -> int:
    """Run the start as it came."""
    code, reason = call.run(call.argv)
    if code:
        call.tell(reason)
    return code


def restore_sandbox(call: Call, decision: "dict[str, Any]") -> int:
    """Turn the sandbox's start into a restore. Never returns an error."""
    restore = decision["restore"]
    words = ["restore", "--detach", f"--image-path={restore['image_dir']}"]
    if restore.get("background"):
        words.append("--background")  # the Pod runs before all of its memory is on the node
    code, why = call.run(call.with_command(*words), restore["sandbox_deadline_s"])
    if code == 0:
        return 0
    reason, blame = f"runsc restore: {why}", not restore.get("background")
    if state_of(call) == "created":
        start_cold_from_now_on(call, decision, reason, kill=False, blame=blame)
        code, _ = call.run(call.argv)
        if code == 0:
            return 0
    start_cold_from_now_on(call, decision, reason, kill=True, blame=blame)
    return 0


def state_of(call: Call) -> str:
    """Return what ``runsc state`` says, empty if it says nothing."""
    import json

    _, text = call.ask([f"--root={call.flag('root')}", "state", call.container])
    try:
        return str(json.loads(text)["status"])
    except (ValueError, KeyError, TypeError):
        return ""


def start_restored(call: Call, bundle: str, decision: "dict[str, Any]", raw: bytes) -> int:
    """Start an application container of a restoring sandbox.

    The last one loads the memory; when it is back the agent is given ``REPORT_S`` to say so on the
    Pod, so that nobody sees the Pod Ready and not yet restored.
    """
    restore = decision["restore"]
    if restore.get("rootfs_only"):
        allow_rootfs_tar(call)
    code, reason = call.run(call.argv, restore["deadline_s"])
    if code:
        blame = not restore.get("background")
        start_cold_from_now_on(call, decision, reason, kill=True, blame=blame)
        call.tell(f"the restore failed and the Pod starts cold: {reason}")
        return code
    set_real_oom(call, bundle, decision)
    name = name_of(raw)
    if name not in restore["image_ids"]:
        return code  # an init container, which runs if files alone come back
    started = os.path.join(sandbox_bundle(bundle, raw), STARTED)
    os.makedirs(started, mode=0o700, exist_ok=True)
    with open(os.path.join(started, os.path.basename(name)), "w", encoding="utf-8"):
        pass
    if len(os.listdir(started)) == len(restore["image_ids"]):
        ask_agent(
            call.settings,
            {"op": "restored", "pod": decision["pod"], "sandbox": decision["sandbox"]},
            REPORT_S,
        )
    return code


def set_real_oom(call: Call, bundle: str, decision: "dict[str, Any]") -> None:
    """Give the sandbox process the score that the spec asked for before the constant."""
    try:
        wanted = load(os.path.join(bundle, REAL_OOM))
        pid = sandbox_pid(call, decision["sandbox"])
        with open(f"/proc/{pid}/oom_score_adj", "r+", encoding="utf-8") as file:
            now = int(file.read())
            # Several containers share the process: the most protected one counts, as in runsc.
            if now == OOM_CONSTANT or wanted < now:
                file.write(str(wanted))
    except (OSError, ValueError):
        return  # lowering needs CAP_SYS_RESOURCE; a Pod runs without it


# -- the end


def kill(call: Call) -> "NoReturn":
    """Pass a signal on; before a container's first one the agent may save the Pod.

    The kubelet stops the containers of a deleted Pod at once, whatever finalizer the Pod has, so
    this is the last moment in which its memory exists. Whether it is deleted only the API knows:
    a container that is merely restarted gets the same signal.
    """
    words = call.argv[call.at + 1 :]
    signal = words[-1]
    if "--pid" in words:
        call.become_runsc()
    raw, decision = governed(call)
    if signal not in {"9", "KILL", "SIGKILL"} and SANDBOX_MARK not in raw:
        question = {"op": "signal", "pod": decision["pod"], "sandbox": decision["sandbox"]}
        ask_agent(call.settings, question, FIRST_ANSWER_S)
    resume(call, sandbox_bundle(call.bundle, raw), decision)
    call.become_runsc()


def delete(call: Call) -> "NoReturn":
    """Delete a container, never in a paused sandbox."""
    raw, decision = governed(call)
    resume(call, sandbox_bundle(call.bundle, raw), decision)
    call.become_runsc()


def resume(call: Call, sandbox: str, decision: "dict[str, Any]") -> None:
    """Wake a sandbox that a save paused: what is killed while paused never ends.

    A resume that waits for the save is left to itself. Killed, it would still be carried out, and
    the next one with it; runsc dies of a resume too many.
    """
    import select

    if os.path.exists(os.path.join(sandbox, PAUSED)):
        arguments = [f"--root={call.flag('root')}", "resume", decision["sandbox"]]
        child = os.posix_spawn(call.runsc, [call.runsc, *arguments], os.environ)
        select.select([os.pidfd_open(child)], [], [], REPORT_S)


def events(call: Call) -> int:
    """Give no statistics of a sandbox that waits for its memory: runsc would crash it."""
    raw, decision = governed(call)
    if is_restoring(call, decision, sandbox_bundle(call.bundle, raw)):
        call.tell("no statistics: the sandbox is being restored")
        return 1
    return call.become_runsc()


def wait(call: Call) -> int:
    """Wait for a container's end; one that is ended after its save ended well."""
    _, decision = governed(call)
    if not decision.get("stop"):
        call.become_runsc()
    code, text = call.ask(call.argv)
    if code == 0 and os.path.exists(os.path.join(call.bundle, ENDED)):
        text = render({"id": call.container, "exitStatus": 0})
    sys.stdout.write(text)
    return code


_ACTS = {"start": start, "wait": wait, "kill": kill, "delete": delete, "events": events}


def main() -> int:
    """Do one call."""
    call = Call(sys.argv[1:], read_settings())
    if call.command == "create":
        code = create(call)
        if code is not None:
            return code
    elif call.command in {"start", "wait", "state", "kill", "delete", "events"}:
        if os.path.exists(os.path.join(call.bundle, SKIPPED)):
            return answer_for_skipped(call)
        act = _ACTS.get(call.command)
        if act is not None:
            return act(call)
    return call.become_runsc()


if __name__ == "__main__":
    sys.exit(main())
