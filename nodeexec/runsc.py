# SPDX-License-Identifier: Apache-2.0
"""The runsc command line, as an executor may use it.

Facts that shape every call here: any error is exit code 128 with the cause on stderr, sometimes
with a stack trace of many kilobytes; killing the client never stops what the sandbox does; exit
code 0 of a checkpoint says nothing about bytes on disk. The binary must be the build that started
the sandbox.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STDERR_LIMIT = 500
QUESTION_LIMIT_S = 10.0


class RunscError(Exception):
    """A runsc command failed; the text is the first line of what it said."""


class RunscTimeoutError(RunscError):
    """A runsc command did not end in time. What it asked the sandbox for may go on."""


@dataclass(frozen=True, slots=True)
class ContainerState:
    """One entry of ``runsc list``."""

    id: str
    status: str
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Runsc:
    """One runsc binary and the root directory of its containers."""

    binary: Path
    root: Path

    def version(self) -> str:
        """Return the build, e.g. ``release-20260905.0``."""
        text = self._ask("--version")
        first = text.splitlines()[0] if text else ""
        return first.removeprefix("runsc version ").strip()

    def cpu_features(self) -> tuple[str, ...]:
        """Return the features of this machine's CPU under gVisor's names."""
        text = self._ask("cpu-features")
        return tuple(sorted(f.strip() for f in text.replace("\n", ",").split(",") if f.strip()))

    def containers(self) -> list[ContainerState]:
        """Return every container below the root."""
        entries: list[dict[str, Any]] = json.loads(self._ask("list", "--format=json")) or []
        return [
            ContainerState(
                id=e["id"], status=e.get("status", ""), annotations=e.get("annotations") or {}
            )
            for e in entries
        ]

    def checkpoint(self, sandbox: str, directory: Path, *, direct: bool) -> subprocess.Popen[bytes]:
        """Begin to save a sandbox into an empty directory; the sandbox goes on afterwards.

        The caller waits with ``finish``. Compression and zero pages are set explicitly, because
        their defaults changed between releases.
        """
        flags = ["--leave-running", "--compression=none", "--exclude-committed-zero-pages"]
        if direct:
            flags.append("--direct")
        return self._spawn("checkpoint", f"--image-path={directory}", *flags, sandbox)

    def tar_rootfs(self, container: str, file: Path) -> subprocess.Popen[bytes]:
        """Begin to write what a container changed in its root file system, as a tar file."""
        return self._spawn("tar", "rootfs-upper", f"--file={file}", container)

    def pause(self, sandbox: str) -> subprocess.Popen[bytes]:
        """Begin to stop every task. What is killed or deleted while paused never ends.

        The client of a pause or a resume is never killed: the sandbox carries it out nevertheless,
        and one resume too many makes it panic.
        """
        return self._spawn("pause", sandbox)

    def resume(self, sandbox: str) -> subprocess.Popen[bytes]:
        """Begin to let a paused sandbox go on; it waits for a save that is under way."""
        return self._spawn("resume", sandbox)

    def kill(self, container: str) -> None:
        """Send SIGKILL to a container; in a paused sandbox it waits for the resume."""
        self._ask("kill", container, "KILL")

    def status(self, container: str) -> str:
        """Return ``created``, ``running``, ``paused`` or ``stopped``; empty if it is gone."""
        try:
            return str(json.loads(self._ask("state", container))["status"])
        except (RunscError, ValueError, KeyError):
            return ""

    def sandbox_pid(self, sandbox: str) -> int:
        """Return the process id of a sandbox, 0 if it does not run."""
        path = self.root / f"{sandbox}_sandbox:{sandbox}.state"
        try:
            return int(json.loads(path.read_text(encoding="utf-8"))["sandbox"]["pid"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def memory_bytes(self, sandbox: str) -> int:
        """Return what a sandbox holds in memory now, an upper bound of its image.

        Raises:
            RunscError: it does not run.
        """
        pid = self.sandbox_pid(sandbox)
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8") if pid else ""
        except (FileNotFoundError, ProcessLookupError):
            status = ""
        for line in status.splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
        raise RunscError("the sandbox does not run")

    def wait_for_checkpoint(self, sandbox: str) -> subprocess.Popen[bytes]:
        """Begin to wait for the sandbox's next save, whoever asks for it."""
        return self._spawn("wait", "--checkpoint", sandbox)

    def wait_for_restore(self, sandbox: str, *, limit_s: float) -> None:
        """Return once the sandbox's memory is back.

        Raises:
            RunscTimeoutError: it is not known yet.
            RunscError: the restore failed; the sandbox is spent.
        """
        process = self._spawn("wait", "--restore", sandbox)
        try:
            finish(process, limit_s=limit_s)
        except RunscTimeoutError:
            process.kill()  # it only waits; the restore goes on
            process.communicate()
            raise
        except RunscError as error:
            if process.returncode < 0:  # the client was killed, and knows nothing of the restore
                raise RunscTimeoutError(str(error)) from error
            raise

    def _ask(self, *arguments: str) -> str:
        try:
            done = subprocess.run(
                [str(self.binary), f"--root={self.root}", *arguments],
                capture_output=True,
                timeout=QUESTION_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RunscTimeoutError(
                f"runsc {arguments[0]}: no end within {error.timeout} s"
            ) from error
        if done.returncode:
            raise RunscError(first_line(done.stderr))
        return done.stdout.decode("utf-8", "replace")

    def _spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        argv: Sequence[str] = [str(self.binary), f"--root={self.root}", *arguments]
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )


def finish(process: subprocess.Popen[bytes], *, limit_s: float | None) -> None:
    """Wait for a command to end well.

    Raises:
        RunscTimeoutError: it still runs after ``limit_s`` seconds; it is left running.
        RunscError: it failed.
    """
    try:
        _, stderr = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        raise RunscTimeoutError(f"no end within {limit_s:.0f} s") from error
    if process.returncode:
        said = first_line(stderr)
        raise RunscError(f"{said} (runsc error: {_ending(process.returncode)})")


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit status {code}"


def first_line(stderr: bytes) -> str:
    """Return the first line that says something, capped."""
    for line in stderr.decode("utf-8", "replace").splitlines():
        if line.strip():
            return line.strip()[:STDERR_LIMIT]
    return "runsc said nothing"
