# SPDX-License-Identifier: Apache-2.0
"""A machine of the local cluster, seen from the host: started, commanded, entered, ended.

Its supervisor inherits an exclusive lock on a file of the machine's directory, so "the machine
lives" and "the lock is held" are one fact, from before the supervisor's first instruction until
after its last.

The trap is the process id: it may belong to somebody else by now. A supervisor is recognised by its
whole command line, which names its settings file, and is signalled through a pidfd that was opened
before the command line was read.
"""

import fcntl
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcluster import network, supervisor

START_LIMIT_S = 20.0
END_LIMIT_S = 20.0
STOP_GRACE_S = 10.0
REQUEST_LIMIT_S = 20.0
POLL_S = 0.01


class MachineError(Exception):
    """A machine cannot be started, reached or ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentStatus:
    """One supervised process. ``pid`` is its number inside the machine."""

    machine: str
    name: str
    state: str
    pid: int
    restarts: int
    uptime_s: float
    rss_bytes: int
    last_exit: int | None
    description: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """What a supervisor is to run.

    ``after_socket`` is waited for before each start. ``config`` are the files it reads at its
    start: a change in one makes it another component, so ``ensure`` starts it again.
    """

    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    after_socket: str = ""
    config: tuple[Path, ...] = ()

    def description(self) -> dict[str, Any]:
        """Return the form the supervisor keeps."""
        return {
            "name": self.name,
            "argv": list(self.argv),
            "env": self.env,
            "after_socket": self.after_socket,
            "config_digest": self._config_digest(),
        }

    def _config_digest(self) -> str:
        digest = hashlib.sha256()
        for path in self.config:
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Name, place and network of one machine; the state is what the kernel says."""

    name: str
    directory: Path
    state_dir: Path
    link: network.Link
    binds: dict[str, Path]
    logs: Path

    @property
    def _settings_path(self) -> Path:
        return self.directory / "machine.json"

    def is_alive(self) -> bool:
        """Tell whether its supervisor lives."""
        try:
            descriptor = os.open(self.directory / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return bool(self._supervisor_pids())
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def start(self) -> bool:
        """Start it, or take over the one that lives; returns whether it was started.

        Raises:
            MachineError: it did not come up; with the supervisor's last words.
        """
        started = not self.is_alive()
        if started:
            # The kernel removes a dead machine's cable in its own time: it must not be taken for
            # the new one's.
            network.remove_link(self.link.veth)
            self._spawn()
        deadline_s = time.monotonic() + START_LIMIT_S
        while not (pids := self._supervisor_pids()):
            self._give_up_at(deadline_s)
            time.sleep(POLL_S)
        network.join(self.link, pids[0])
        while True:
            try:
                self.request({"op": "status"})
            except OSError:
                self._give_up_at(deadline_s)
                time.sleep(POLL_S)
            else:
                return started

    def _give_up_at(self, deadline_s: float) -> None:
        if time.monotonic() > deadline_s or not self.is_alive():
            raise MachineError(
                f"machine {self.name} did not come up: {self._last_words()}; "
                f"the whole log is {self._supervisor_log}"
            )

    @property
    def _supervisor_log(self) -> Path:
        return self.logs / f"supervisor-{self.name}.log"

    def _last_words(self) -> str:
        try:
            lines = self._supervisor_log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "its supervisor said nothing"

    def _spawn(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings = {
            "hostname": self.name,
            "state_dir": str(self.state_dir),
            "binds": {target: str(source) for target, source in self.binds.items()},
            "logs": str(self.logs),
            "network": {
                "address": f"{self.link.address}/{self.link.prefix}",
                "gateway": str(self.link.gateway),
                "routes": [[str(s), str(v)] for s, v in self.link.routes],
            },
        }
        descriptor = os.open(
            self._settings_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
        )
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(settings, file)
        lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        log = os.open(
            self._supervisor_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        try:
            # A probe of is_alive() holds the lock for an instant, hence the bounded wait.
            deadline_s = time.monotonic() + 1.0
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline_s:
                        raise MachineError(f"machine {self.name} is being started twice") from None
                    time.sleep(POLL_S)
            # setsid --fork: nobody is left to wait for the machine, it outlives this process.
            subprocess.run(
                [
                    *("setsid", "--fork"),
                    *("unshare", "--mount", "--pid", "--net", "--uts", "--ipc"),
                    *("--fork", "--kill-child", "--mount-proc", "--"),
                    *self._command_line(),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                cwd="/",
                env={"PATH": network.SYSTEM_PATH, "LANG": "C.UTF-8"},
                check=True,
                timeout=START_LIMIT_S,
            )
        finally:
            os.close(lock)
            os.close(log)

    def _command_line(self) -> list[str]:
        program = Path(supervisor.__file__).resolve()
        python = str(Path(sys.executable).resolve())
        return [python, "-IS", str(program), str(self._settings_path)]

    def _supervisor_pids(self) -> list[int]:
        """Return the host's process ids of supervisors of this machine: one, or none."""
        numbers = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [number for number in numbers if self._is_ours(number)]

    def _is_ours(self, pid: int) -> bool:
        settings = os.fsencode(self._settings_path)
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if len(argv) < 2 or argv[-2] != settings or b"supervisor.py" not in argv[-3]:  # noqa: PLR2004 - the end of the command line
                return False
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
        numbers = status.partition("\nNSpid:")[2].partition("\n")[0].split()
        return len(numbers) > 1 and numbers[-1] == "1"

    def pid(self) -> int:
        """Return the host's process id of the supervisor.

        Raises:
            MachineError: it does not run.
        """
        pids = self._supervisor_pids()
        if not pids:
            raise MachineError(f"machine {self.name} does not run; start it with podsnap local up")
        return pids[0]

    def kill(self) -> None:
        """End it and everything in it; harmless when it does not run.

        Raises:
            MachineError: it did not end in time.
        """
        deadline_s = time.monotonic() + END_LIMIT_S
        while self.is_alive():
            for pid in self._supervisor_pids():
                self._kill_pid(pid, deadline_s)
            if time.monotonic() > deadline_s:
                raise MachineError(
                    f"machine {self.name} did not end within {END_LIMIT_S:.0f} s; a process in it "
                    "is stuck in the kernel (see dmesg); try again, or restart the host"
                )
            time.sleep(POLL_S)
        network.remove_link(self.link.veth)

    def _kill_pid(self, pid: int, deadline_s: float) -> None:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            if self._is_ours(pid):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [], max(0.0, deadline_s - time.monotonic()))
        except ProcessLookupError:
            return
        finally:
            os.close(handle)

    @contextmanager
    def _connection(self) -> Iterator[socket.socket]:
        # Through a descriptor of the directory: a unix socket's path has at most 107 bytes.
        directory = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(REQUEST_LIMIT_S)
                connection.connect(f"/proc/self/fd/{directory}/{supervisor.SOCKET}")
                yield connection
        finally:
            os.close(directory)

    def request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ask the supervisor.

        Raises:
            OSError: it cannot be reached.
            MachineError: it refused, with its reason.
        """
        with self._connection() as connection:
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as lines:
                text = lines.readline()
        if not text:
            raise ConnectionResetError(f"the supervisor of {self.name} hung up")
        answer: dict[str, Any] = json.loads(text)
        if "error" in answer:
            raise MachineError(f"{self.name}: {answer['error']}")
        return answer

    def status(self) -> list[ComponentStatus]:
        """Return its components; none when it does not run."""
        if not self.is_alive():
            return []
        try:
            answer = self.request({"op": "status"})
        except OSError:
            return []
        return [ComponentStatus(machine=self.name, **report) for report in answer["components"]]

    def ensure(self, component: Component) -> bool:
        """Have a component run with this description; returns whether anything was changed."""
        wanted = component.description()
        for now in self.status():
            if now.name != component.name:
                continue
            if now.description == wanted and now.state in {"running", "waiting", "backing-off"}:
                return False
            self.stop(component.name)
        self.request({"op": "start", "component": wanted})
        return True

    def stop(self, name: str, *, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop a component and keep it stopped; after 10 s it is killed."""
        self.request({"op": "stop", "name": name, "signal": int(number)})
        killed_at_s = time.monotonic() + STOP_GRACE_S
        killed = False
        while any(c.name == name and c.state == "stopping" for c in self.status()):
            if time.monotonic() > killed_at_s:
                if killed:
                    raise MachineError(f"{name} on {self.name} survives SIGKILL; see dmesg")
                self.request({"op": "stop", "name": name, "signal": int(signal.SIGKILL)})
                killed, killed_at_s = True, time.monotonic() + STOP_GRACE_S
            time.sleep(POLL_S)

    def start_again(self, name: str) -> None:
        """Start a stopped component as it was."""
        self.request({"op": "start-again", "name": name})

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a component; if it dies of it, the supervisor starts it again."""
        self.request({"op": "kill", "name": name, "signal": int(number)})

    def enter(self, argv: list[str]) -> list[str]:
        """Return the command line that runs ``argv`` inside the machine."""
        namespaces = ("--mount", "--pid", "--net", "--uts", "--ipc")
        return ["nsenter", f"--target={self.pid()}", *namespaces, "--", *argv]


@dataclass(frozen=True, slots=True)
class RunningComponent:
    """One component of a running cluster, as a test handles it."""

    machine: Machine
    name: str

    def status(self) -> ComponentStatus:
        """Return how it is.

        Raises:
            MachineError: there is no such component.
        """
        for status in self.machine.status():
            if status.name == self.name:
                return status
        raise MachineError(f"there is no component {self.name} on {self.machine.name}")

    def stop(self) -> None:
        """Stop it and keep it stopped."""
        self.machine.stop(self.name)

    def start(self) -> None:
        """Start it after ``stop``."""
        self.machine.start_again(self.name)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal; the supervisor starts it again if it dies."""
        self.machine.signal(self.name, number)
