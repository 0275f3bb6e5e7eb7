# SPDX-License-Identifier: Apache-2.0
"""Who this process is for the API server.

Tokens are short-lived: a file is replaced under us about every hour, a plug-in's answer has an
expiry. The trap is to read one once and send it for ever; so the header is asked for on each
request, and a 401 makes the source forget what it knew.
"""

import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol

import orjson

from backends.clock import Clock
from backends.kube.errors import KubeConfigError

# Renewed this much before the expiry, so that a request on its way is not caught by it.
_EXPIRY_MARGIN: Final = timedelta(seconds=30)
_PLUGIN_LIMIT_S: Final = 60.0
_EXEC_VERSIONS: Final = tuple(f"client.authentication.k8s.io/{v}" for v in ("v1", "v1beta1"))


class Credentials(Protocol):
    """A source of bearer tokens."""

    def token(self) -> str | None:
        """Return the token to send now; ``None`` where the client certificate is the identity."""
        ...

    def forget(self) -> bool:
        """Drop what is cached after a 401; returns whether asking again can help."""
        ...


@dataclass(frozen=True, slots=True)
class StaticToken:
    """A token that stands in the kubeconfig, or none."""

    value: str | None

    def token(self) -> str | None:
        """Return the token."""
        return self.value

    def forget(self) -> bool:
        """Return ``False``: it will not change."""
        return False


class TokenFile:
    """A token in a file that is replaced when it rotates, as projected volumes do."""

    def __init__(self, path: Path) -> None:
        """``path`` is read when first needed."""
        self._path = path
        self._guard = threading.Lock()
        self._read: tuple[int, int] | None = None
        self._token = ""

    def token(self) -> str | None:
        """Return the token, reading the file again if it changed.

        Raises:
            KubeConfigError: the file cannot be read.
        """
        with self._guard:
            try:
                stat = self._path.stat()
                mark = (stat.st_mtime_ns, stat.st_ino)
                if mark != self._read:
                    self._token = self._path.read_text(encoding="utf-8").strip()
                    self._read = mark
            except OSError as error:
                # A moment without the file (a volume being remounted) must not end a known token.
                if not self._token:
                    raise KubeConfigError(f"the token file cannot be read: {error}") from error
            return self._token

    def forget(self) -> bool:
        """Read the file again next time."""
        with self._guard:
            self._read = None
        return True


@dataclass(slots=True)
class ExecPlugin:
    """A credential plug-in of a kubeconfig (``user.exec``), run once per lifetime of its token."""

    command: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    api_version: str
    clock: Clock
    cluster: Mapping[str, Any] | None = None
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _token: str | None = None
    _expires_at: datetime | None = None

    @classmethod
    def parse(cls, raw: Mapping[str, Any], *, directory: Path, clock: Clock) -> "ExecPlugin":
        """Read ``user.exec``; a relative command with a slash is relative to ``directory``.

        Raises:
            KubeConfigError: the plug-in speaks a version that nobody supports.
        """
        version = raw.get("apiVersion", "")
        if version not in _EXEC_VERSIONS:
            raise KubeConfigError(
                f"the exec plug-in has apiVersion {version!r}; only {', '.join(_EXEC_VERSIONS)} "
                "are supported, so change it in the kubeconfig"
            )
        command = raw["command"]
        if "/" in command and not command.startswith("/"):
            command = str(directory / command)
        return cls(
            command=command,
            arguments=tuple(raw.get("args") or ()),
            environment={e["name"]: e["value"] for e in raw.get("env") or ()},
            api_version=version,
            clock=clock,
        )

    def token(self) -> str | None:
        """Return the cached token, or run the plug-in (at most 60 s).

        Raises:
            KubeConfigError: the plug-in failed or its answer holds no token.
        """
        with self._guard:
            fresh = self._expires_at is None or self.clock.now() + _EXPIRY_MARGIN < self._expires_at
            if self._token is None or not fresh:
                self._run()
            return self._token

    def forget(self) -> bool:
        """Run the plug-in again next time."""
        with self._guard:
            self._token = None
        return True

    def _run(self) -> None:
        info = {
            "apiVersion": self.api_version,
            "kind": "ExecCredential",
            "spec": {"interactive": False},
        }
        environment = {
            **os.environ,
            **self.environment,
            "KUBERNETES_EXEC_INFO": orjson.dumps(info).decode(),
        }
        try:
            answer = subprocess.run(
                [self.command, *self.arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                timeout=_PLUGIN_LIMIT_S,
                check=True,
            ).stdout
            status = orjson.loads(answer)["status"]
            token = status["token"]
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
            raise KubeConfigError(
                f"the exec plug-in {self.command} gave no token ({type(error).__name__}: {error}); "
                "run it by hand to see why"
            ) from error
        expiry = status.get("expirationTimestamp")
        self._expires_at = datetime.fromisoformat(expiry) if expiry else None
        self._token = token
