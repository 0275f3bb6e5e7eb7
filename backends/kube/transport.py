# SPDX-License-Identifier: Apache-2.0
"""HTTP to the API server: the only module that knows pykube.

pykube reads kubeconfigs and holds the session; its object layer is not used. What it does not do
right is done here: a rotated token is read again, private keys never lie in a shared directory,
every request has a time-out, and an error keeps everything that the server said.
"""

import base64
import contextlib
import copy
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

import orjson
import pykube
import requests
import requests.adapters
import tenacity

from backends.kube.errors import ApiError, ServerUnavailable, TooManyRequests, from_status

DEFAULT_LIMIT_S: Final = 10.0
APPLY: Final = "application/apply-patch+yaml"
_CONNECT_LIMIT_S: Final = 3.0
_ATTEMPTS: Final = 6
_SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Transport:
    """One identity's connection. Safe for many threads.

    ``on_answer`` is called with the method and the code of every answer; set it before the first
    request.
    """

    def __init__(self, config: "pykube.KubeConfig", *, user_agent: str, private_dir: Path) -> None:
        """Take a loaded configuration whose key material lies in ``private_dir``."""
        self.on_answer: Callable[[str, int], None] = lambda *_: None
        self._private_dir = private_dir
        self._user = dict(config.user)
        self._base = str(config.cluster["server"]).rstrip("/")
        self._credentials = _credentials(self._user)
        self._acts_as = ""
        self._session = self._new_session(config, user_agent)
        self._streams = self._new_session(config, user_agent)

    @classmethod
    def from_kubeconfig(cls, path: Path, *, user_agent: str, context: str = "") -> Self:
        """Load a context of a kubeconfig file; without a name the current one."""
        private_dir = Path(tempfile.mkdtemp(prefix="podsnap-"))  # 0700
        import yaml

        doc = yaml.load(path.read_bytes(), Loader=yaml.CSafeLoader)
        _materialise_keys(doc, private_dir, base=path.parent)
        if context:
            doc["current-context"] = context
        return cls(pykube.KubeConfig(doc), user_agent=user_agent, private_dir=private_dir)

    @classmethod
    def in_cluster(cls, *, user_agent: str) -> Self:
        """Use the Pod's service account.

        Raises:
            ServerUnavailable: the process does not run in a Pod.
        """
        host = os.environ.get("KUBERNETES_SERVICE_HOST")
        port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not (_SERVICE_ACCOUNT / "token").exists():
            raise ServerUnavailable("this is no Pod with a service account; give --kubeconfig")
        doc = {
            "clusters": [
                {
                    "name": "c",
                    "cluster": {
                        "server": f"https://{host}:{port}",
                        "certificate-authority": str(_SERVICE_ACCOUNT / "ca.crt"),
                    },
                }
            ],
            "users": [{"name": "u", "user": {"tokenFile": str(_SERVICE_ACCOUNT / "token")}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        private_dir = Path(tempfile.mkdtemp(prefix="podsnap-"))
        return cls(pykube.KubeConfig(doc), user_agent=user_agent, private_dir=private_dir)

    def acting_as(self, user: str) -> Self:
        """Return the same connection as another user, whom this one has to be let impersonate."""
        other = copy.copy(self)
        other._acts_as = user  # noqa: SLF001 - one of us
        return other

    def close(self) -> None:
        """Close connections and remove key material."""
        self._session.close()
        self._streams.close()
        shutil.rmtree(self._private_dir, ignore_errors=True)

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any | None = None,  # noqa: ANN401 - any JSON
        content_type: str = "application/json",
        timeout_s: float = DEFAULT_LIMIT_S,
    ) -> dict[str, Any]:
        """Send one request and return the parsed answer.

        Raises:
            ApiError: the subclass says what to do.
        """

        def send() -> dict[str, Any]:
            return self._send(method, path, params, body, content_type, timeout_s)

        # An unpinned apply says what should be, so saying it twice is as good. A pinned one whose
        # answer was lost would meet its own write; other writes are not sent again either, nor a
        # question whose answer is wanted at once.
        pinned = isinstance(body, Mapping) and "resourceVersion" in (body.get("metadata") or {})
        repeatable = method == "GET" or (content_type == APPLY and not pinned)
        if not repeatable or timeout_s < _CONNECT_LIMIT_S:
            return send()
        return _retrying(send)

    def stream(self, path: str, *, params: Mapping[str, str], read_timeout_s: float) -> "Stream":
        """Open a watch.

        Raises:
            ApiError: the server refused it.
        """
        try:
            response = self._streams.get(
                self._base + path,
                params=dict(params),
                headers=self._headers(),
                stream=True,
                timeout=(_CONNECT_LIMIT_S, read_timeout_s),
            )
        except requests.RequestException as error:
            raise ServerUnavailable(f"the API server does not answer: {_short(error)}") from error
        self.on_answer("WATCH", response.status_code)
        _raise_for(response)
        return Stream(response)

    def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        body: Any,  # noqa: ANN401 - any JSON
        content_type: str,
        timeout_s: float,
    ) -> dict[str, Any]:
        headers = self._headers()
        data = None
        if body is not None:
            headers["Content-Type"] = content_type
            data = orjson.dumps(body)
        try:
            response = self._session.request(
                method,
                self._base + path,
                params=dict(params or {}),
                headers=headers,
                data=data,
                timeout=(min(_CONNECT_LIMIT_S, timeout_s), timeout_s),
            )
        except requests.RequestException as error:
            raise ServerUnavailable(f"the API server does not answer: {_short(error)}") from error
        self.on_answer(method, response.status_code)
        _raise_for(response)
        parsed: dict[str, Any] = orjson.loads(response.content) if response.content else {}
        return parsed

    def _headers(self) -> dict[str, str]:
        token = self._credentials.token()
        headers = {"Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if self._acts_as:
            headers["Impersonate-User"] = self._acts_as
        return headers

    def _new_session(self, config: "pykube.KubeConfig", user_agent: str) -> requests.Session:
        # HTTPClient mounts pykube's own adapter and knows the cluster's address; requests are sent
        # on its session with explicit time-outs and our credentials.
        client = pykube.HTTPClient(
            config, http_adapter=requests.adapters.HTTPAdapter(pool_maxsize=32)
        )
        session: requests.Session = client.session
        session.trust_env = False
        session.headers["User-Agent"] = user_agent
        authority = config.cluster.get("certificate-authority")
        session.verify = authority.filename() if authority else True
        certificate = config.user.get("client-certificate")
        if certificate:
            session.cert = (certificate.filename(), config.user["client-key"].filename())
        return session


class Stream:
    """An open watch: an iterator of events that another thread can end."""

    def __init__(self, response: requests.Response) -> None:
        """Take over the response."""
        self._response = response

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield events until the server or ``stop`` ends the stream.

        Raises:
            ServerUnavailable: the connection broke.
        """
        try:
            for line in self._response.iter_lines(chunk_size=None):
                if line:
                    yield orjson.loads(line)
        except (requests.RequestException, OSError, AttributeError, ValueError) as error:
            raise ServerUnavailable(f"the watch broke: {_short(error)}") from error
        finally:
            self._response.close()

    def stop(self) -> None:
        """End the stream from another thread; ``close`` would wait for data."""
        with contextlib.suppress(ValueError, RuntimeError, AttributeError, OSError):
            self._response.raw.shutdown()


class _Static:
    """A token that does not change, or none."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def token(self) -> str | None:
        return self._token


class _TokenFile:
    """A token in a file that somebody rotates."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_at_ns = -1
        self._token = ""

    def token(self) -> str | None:
        try:
            changed_ns = self._path.stat().st_mtime_ns
            if changed_ns != self._read_at_ns:
                self._token = self._path.read_text(encoding="utf-8").strip()
                self._read_at_ns = changed_ns
        except OSError as error:
            raise ServerUnavailable(
                f"the token in {self._path} cannot be read: {error.strerror}"
            ) from error
        return self._token


class _Exec:
    """A token that a plugin prints (client.authentication.k8s.io/v1), kept until it expires."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._spec = spec
        self._lock = threading.Lock()
        self._token: str | None = None
        self._expires_s = 0.0

    def token(self) -> str | None:
        with self._lock:
            if self._token is None or datetime.now(UTC).timestamp() > self._expires_s - 30:
                self._ask()
            return self._token

    def _ask(self) -> None:
        version = self._spec.get("apiVersion", "client.authentication.k8s.io/v1")
        info = {"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": False}}
        environment = {
            **os.environ,
            **{e["name"]: e["value"] for e in self._spec.get("env") or ()},
            "KUBERNETES_EXEC_INFO": json.dumps(info),
        }
        argv = [self._spec["command"], *(self._spec.get("args") or ())]
        try:
            done = subprocess.run(
                argv, env=environment, capture_output=True, timeout=DEFAULT_LIMIT_S, check=True
            )
            status = json.loads(done.stdout)["status"]
        except (subprocess.SubprocessError, OSError, ValueError, KeyError) as error:
            raise ServerUnavailable(f"the credential plugin {argv[0]} failed: {error}") from error
        self._token = status.get("token")
        expires = status.get("expirationTimestamp")
        self._expires_s = datetime.fromisoformat(expires).timestamp() if expires else float("inf")


def _credentials(user: Mapping[str, Any]) -> "_Static | _TokenFile | _Exec":
    if user.get("tokenFile"):
        return _TokenFile(Path(user["tokenFile"]))
    if user.get("exec"):
        return _Exec(user["exec"])
    return _Static(user.get("token"))


def _materialise_keys(doc: dict[str, Any], private_dir: Path, *, base: Path) -> None:
    """Write inline key material to files of ours, because pykube would use a shared directory.

    Relative paths of a kubeconfig are relative to it.
    """
    pairs = [
        (entry, section)
        for section, kind in (("clusters", "cluster"), ("users", "user"))
        for entry in [e[kind] for e in doc.get(section) or ()]
    ]
    for number, (entry, _) in enumerate(pairs):
        for key in ("certificate-authority", "client-certificate", "client-key"):
            inline = entry.pop(f"{key}-data", None)
            if inline:
                path = private_dir / f"{number}-{key}"
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with open(descriptor, "wb") as file:
                    file.write(base64.b64decode(inline))
                entry[key] = str(path)
            elif entry.get(key):
                entry[key] = str((base / entry[key]).resolve())
        if entry.get("tokenFile"):
            entry["tokenFile"] = str((base / entry["tokenFile"]).resolve())


def _raise_for(response: requests.Response) -> None:
    if response.ok:
        return
    try:
        status = orjson.loads(response.content)
    except (ValueError, requests.RequestException):
        status = {}
    finally:
        response.close()
    after = response.headers.get("Retry-After", "")
    seconds = float(after) if after.isdigit() else None
    raise from_status(
        response.status_code, status if isinstance(status, dict) else {}, retry_after_s=seconds
    )


def _retry_wait_s(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, ApiError) and error.retry_after_s:
        return min(error.retry_after_s, DEFAULT_LIMIT_S)
    return float(tenacity.wait_random_exponential(multiplier=0.1, max=2.0)(state))


@tenacity.retry(
    stop=tenacity.stop_after_attempt(_ATTEMPTS),
    wait=_retry_wait_s,
    retry=tenacity.retry_if_exception_type((ServerUnavailable, TooManyRequests)),
    reraise=True,
)
def _retrying(send: "Any") -> dict[str, Any]:  # noqa: ANN401 - a closure of request()
    answer: dict[str, Any] = send()
    return answer


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
