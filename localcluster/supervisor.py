# SPDX-License-Identifier: Apache-2.0
"""The first process of a machine: it furnishes the machine, runs its components, reaps its orphans.

A machine is a set of namespaces (process, mount, network, host name), and this program is its
process number 1: when it dies, the kernel ends everything in the machine and its mounts and
interfaces go with it. That is the whole clean-up, after any crash.

The trap: every process that loses its parent (containerd's shims do so on purpose) becomes a child
of this one, so children are reaped by ``waitpid(-1)``, and ``subprocess`` must not be used while
the loop runs. Standard library only, and few imports: it lives as long as the cluster.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

INTERFACE = "eth0"
SOCKET = "supervisor.sock"
INTERFACE_LIMIT_S = 15.0
REQUEST_LIMIT_S = 1.0
REQUEST_LIMIT_BYTES = 1 << 20
POLL_S = 0.05
FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 10.0
STEADY_S = 30.0
LOG_LIMIT_BYTES = 64 << 20


def say(*words: object) -> None:
    """Write a line to the supervisor's log (its standard output)."""
    print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), *words, flush=True)  # noqa: T201 - a file


@dataclass(slots=True)
class Component:
    """One supervised process; ``description`` is what the client sent, compared on a new start."""

    description: dict[str, Any]
    log: Path
    wanted: bool = True
    pid: int = 0
    restarts: int = 0
    last_exit: int | None = None
    started_s: float = 0.0
    next_start_s: float = 0.0
    delay_s: float = field(default=FIRST_DELAY_S)

    @property
    def name(self) -> str:
        """The component's name."""
        return str(self.description["name"])

    def state(self, now_s: float) -> str:
        """Return running, stopped, stopping, waiting (for what it needs) or backing-off."""
        if self.pid:
            return "running" if self.wanted else "stopping"
        if not self.wanted:
            return "stopped"
        return "backing-off" if self.next_start_s > now_s else "waiting"

    def due(self, now_s: float) -> bool:
        """Tell whether it is to be started now."""
        if self.pid or not self.wanted or self.next_start_s > now_s:
            return False
        needs = self.description.get("after_socket")
        return not needs or accepts(needs)

    def start(self, now_s: float) -> None:
        """Start the process; its output is appended to its log."""
        with contextlib.suppress(OSError):
            if self.log.stat().st_size > LOG_LIMIT_BYTES:
                self.log.rename(self.log.with_suffix(".log.1"))
        argv = self.description["argv"]
        try:
            self.pid = os.posix_spawn(
                argv[0],
                argv,
                self.description["env"],
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (
                        os.POSIX_SPAWN_OPEN,
                        1,
                        str(self.log),
                        os.O_WRONLY | os.O_CREAT | os.O_APPEND,
                        0o600,
                    ),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE, signal.SIGTERM, signal.SIGINT],
            )
        except OSError as error:
            say(f"{self.name} cannot be started: {argv[0]}: {error.strerror}")
            self.ended(127, now_s)
            return
        self.started_s = now_s
        say(f"{self.name} started, pid {self.pid}")

    def ended(self, code: int, now_s: float) -> None:
        """Note the end of the process; plan the next start unless it was asked to stop."""
        self.pid = 0
        self.last_exit = code
        if not self.wanted:
            say(f"{self.name} stopped, exit code {code}")
            return
        if self.started_s and now_s - self.started_s >= STEADY_S:
            self.delay_s = FIRST_DELAY_S
        self.restarts += 1
        self.next_start_s = now_s + self.delay_s
        say(f"{self.name} ended with exit code {code}; starts again in {self.delay_s:.1f} s")
        self.delay_s = min(2 * self.delay_s, LONGEST_DELAY_S)

    def report(self, now_s: float) -> dict[str, Any]:
        """Return what ``status`` says."""
        return {
            "name": self.name,
            "state": self.state(now_s),
            "pid": self.pid,
            "restarts": self.restarts,
            "last_exit": self.last_exit,
            "uptime_s": round(now_s - self.started_s, 3) if self.pid else 0.0,
            "rss_bytes": resident_bytes(self.pid),
            "description": self.description,
        }


def accepts(path: str) -> bool:
    """Tell whether something listens on a unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
        return True


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process, 0 if it is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


class Supervisor:
    """The components of one machine and the socket that commands them."""

    def __init__(self, logs: Path, listener: socket.socket) -> None:
        self.logs = logs
        self.listener = listener
        self.components: dict[str, Component] = {}

    def run(self) -> NoReturn:
        """Serve until killed."""
        read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        # The handler does nothing: the wake-up pipe is what ends the wait below.
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        while True:
            self.reap()
            self.start_due()
            listening = self.listener.fileno()
            ready = select.select([listening, read_end], [], [], self.wait_s())[0]
            if read_end in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(read_end, 4096)
            if listening in ready:
                connection, _ = self.listener.accept()
                with connection:
                    self.serve(connection)

    def reap(self) -> None:
        """Collect every ended child; those that are no component are orphans of the machine."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for component in self.components.values():
                if component.pid == pid:
                    component.ended(os.waitstatus_to_exitcode(status), time.monotonic())

    def start_due(self) -> None:
        """Start what is wanted, not running, and past its delay."""
        now_s = time.monotonic()
        for component in self.components.values():
            if component.due(now_s):
                component.start(now_s)

    def wait_s(self) -> float | None:
        """Return how long nothing needs to be done; ``None`` until something happens."""
        now_s = time.monotonic()
        pending = [c for c in self.components.values() if c.wanted and not c.pid]
        return min((max(c.next_start_s - now_s, POLL_S) for c in pending), default=None)

    def serve(self, connection: socket.socket) -> None:
        """Answer one request: one line of JSON each way."""
        connection.settimeout(REQUEST_LIMIT_S)
        text = b""
        try:
            while not text.endswith(b"\n") and len(text) < REQUEST_LIMIT_BYTES:
                block = connection.recv(65536)
                if not block:
                    return
                text += block
            try:
                answer = self.answer(json.loads(text))
            except (KeyError, TypeError, ValueError) as error:
                answer = {"error": f"the request makes no sense ({error!r})"}
            connection.sendall(json.dumps(answer).encode() + b"\n")
        except OSError:
            return  # the client went away: its loss

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks. ``stop`` and ``kill`` send a signal and do not wait."""
        operation = request["op"]
        if operation == "status":
            now_s = time.monotonic()
            return {"components": [c.report(now_s) for c in self.components.values()]}
        if operation == "start":
            return self.start(request["component"])
        component = self.components.get(request["name"])
        if component is None:
            known = ", ".join(self.components) or "none"
            return {"error": f"there is no component {request['name']!r}; there are: {known}"}
        if operation == "start-again":
            component.wanted, component.next_start_s = True, 0.0
        elif operation in {"stop", "kill"}:
            component.wanted = component.wanted and operation == "kill"
            if component.pid:
                os.kill(component.pid, int(request["signal"]))
        else:
            return {"error": f"unknown operation {operation!r}"}
        return {}

    def start(self, description: dict[str, Any]) -> dict[str, Any]:
        """Add a component, or set a stopped one going. A running one keeps its description."""
        name = str(description["name"])
        old = self.components.get(name)
        if old is not None and old.pid:
            if old.wanted and old.description == description:
                return {}
            return {"error": f"{name} runs with another description; stop it first"}
        restarts = old.restarts if old else 0
        component = Component(description, self.logs / f"{name}.log", restarts=restarts)
        self.components[name] = component
        return {}


# -- furnishing: before the loop, so subprocess is allowed


def tool(*argv: str, text: str = "") -> None:
    """Run a program of the base system; its failure ends the machine, the reason is in the log."""
    done = subprocess.run(argv, input=text, text=True, capture_output=True, check=False, timeout=30)
    if done.returncode:
        say(f"{' '.join(argv)} failed ({done.returncode}): {done.stderr.strip()}")
        sys.exit(1)


def furnish_mounts(state_dir: Path, binds: dict[str, str]) -> None:
    """Give the machine its own /run, /var/lib and the directories bound from its state.

    /var/lib is an overlay whose writes go to memory: mount points for the kubelet and CNI can be
    made there without touching the host's. The state directory is put back over it, because
    containerd cannot keep its own overlays on an overlay.
    """
    tool("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    aside, upper, work = Path("/run/aside"), Path("/run/lib/upper"), Path("/run/lib/work")
    for directory in (aside, upper, work):
        directory.mkdir(parents=True)
    tool("mount", "--bind", str(state_dir), str(aside))
    layers = f"lowerdir=/var/lib,upperdir={upper},workdir={work}"
    tool("mount", "-t", "overlay", "-o", layers, "overlay", "/var/lib")
    state_dir.mkdir(parents=True, exist_ok=True)
    tool("mount", "--move", str(aside), str(state_dir))
    for target, source in binds.items():
        Path(target).mkdir(parents=True, exist_ok=True)
        Path(source).mkdir(parents=True, exist_ok=True, mode=0o700)
        tool("mount", "--bind", source, target)
        tool("mount", "--make-rshared", target)


def furnish_network(network: dict[str, Any]) -> None:
    """Wait for the interface that the host puts in, then set addresses and routes."""
    deadline_s = time.monotonic() + INTERFACE_LIMIT_S
    while INTERFACE not in {name for _, name in socket.if_nameindex()}:
        if time.monotonic() > deadline_s:
            say(f"no {INTERFACE} within {INTERFACE_LIMIT_S:.0f} s: whoever started this has died")
            sys.exit(1)
        time.sleep(0.005)
    lines = [
        "link set lo up",
        f"address add {network['address']} dev {INTERFACE}",
        f"link set {INTERFACE} up",
        f"route add default via {network['gateway']}",
        *(f"route add {subnet} via {via}" for subnet, via in network["routes"]),
    ]
    tool("ip", "-batch", "-", text="\n".join(lines) + "\n")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="ascii")


def main() -> NoReturn:
    """Run as process 1 of the machine that the settings file describes."""
    settings_path = Path(sys.argv[1])
    settings = json.loads(settings_path.read_text(encoding="utf-8"))
    os.umask(0o077)
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    # Bound by a relative name: the path of a unix socket may be no longer than 107 bytes.
    os.chdir(settings_path.parent)
    Path(SOCKET).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(SOCKET)
    listener.listen(16)
    os.chdir("/")
    socket.sethostname(settings["hostname"])
    furnish_mounts(Path(settings["state_dir"]), settings["binds"])
    furnish_network(settings["network"])
    os.umask(0o022)
    say("the machine is furnished")
    Supervisor(Path(settings["logs"]), listener).run()


if __name__ == "__main__":
    main()
