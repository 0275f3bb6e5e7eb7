# SPDX-License-Identifier: Apache-2.0
"""One authenticated way to an API server: requests, and streams of watch events.

pykube-ng loads the kubeconfig and holds the sessions; everything it is weak at (rotating tokens,
key files, time-outs, errors) is done here. The trap is a stream: closing it from another thread
blocks until data arrives, so ``Watch.stop`` shuts the socket down instead.
"""

import contextlib
import copy
import tempfile
import threading
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Self

import orjson
import pykube
import requests
import tenacity
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError as StreamError

from backends.clock import Clock, SystemClock
from backends.kube.credentials import Credentials, ExecPlugin, StaticToken, TokenFile
from backends.kube.errors import (
    ApiError,
    KubeConfigError,
    ServerUnavailable,
    TooManyRequests,
    from_answer,
    unreachable,
)

Json = dict[str, Any]
Params = Mapping[str, str | int | bool]

REQUEST_LIMIT_S: Final = 15.0
_CONNECT_LIMIT_S: Final = 3.0
_POOL: Final = 32
_GET_ATTEMPTS: Final = 4
_STREAM_BLOCK_BYTES: Final = 64 * 1024
_SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the server is, how it is recognised and who we are."""

    config: Any  # pykube.KubeConfig, which has no types
    credentials: Credentials
    verify: str | bool
    certificate: tuple[str, str] | None = None
    server_name: str | None = None
    proxy: str | None = None


class _Adapter(HTTPAdapter):
    """Adds credentials and TLS material to each request, and asks once more after a 401."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        super().__init__(pool_connections=1, pool_maxsize=_POOL)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as the base
        if self._endpoint.server_name:
            kwargs["server_hostname"] = self._endpoint.server_name
            kwargs["assert_hostname"] = self._endpoint.server_name
        super().init_poolmanager(*args, **kwargs)

    def send(  # noqa: PLR0913 - the signature is the base class's
        self,
        request: requests.PreparedRequest,
        stream: bool = False,  # noqa: FBT001, FBT002 - as the base
        timeout: Any = None,  # noqa: ANN401 - as the base
        verify: Any = True,  # noqa: ANN401, ARG002, FBT002 - as the base
        cert: Any = None,  # noqa: ANN401, ARG002 - as the base
        proxies: Any = None,  # noqa: ANN401 - as the base
    ) -> requests.Response:
        endpoint = self._endpoint
        for attempt in range(2):
            token = endpoint.credentials.token()
            if token:
                request.headers["Authorization"] = f"Bearer {token}"
            response = super().send(
                request,
                stream=stream,
                timeout=timeout,
                verify=endpoint.verify,
                cert=endpoint.certificate,
                proxies=proxies,
            )
            refused = response.status_code == HTTPStatus.UNAUTHORIZED
            if not refused or attempt or not endpoint.credentials.forget():
                break
            response.close()
        return response


class Watch:
    """Events as they arrive; ends when the server ends the stream, or after ``stop``."""

    def __init__(self, response: requests.Response, server: str) -> None:
        """Own an open response."""
        self._response = response
        self._server = server
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[Json]:
        """Yield events.

        Raises:
            ServerUnavailable: the connection broke or was silent for too long.
        """
        rest = b""
        try:
            for block in self._response.raw.stream(_STREAM_BLOCK_BYTES, decode_content=True):
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    if self._stopped.is_set():
                        return
                    if line:
                        yield orjson.loads(line)
        except (OSError, StreamError, ValueError, AttributeError) as error:
            # urllib3 answers a socket shut down under it with several types; only without a stop
            # is any of them news.
            if not self._stopped.is_set():
                raise unreachable(self._server, error) from error
        finally:
            self._response.close()

    def stop(self) -> None:
        """End the iteration, from any thread, at once."""
        self._stopped.set()
        with contextlib.suppress(ValueError, RuntimeError, OSError, AttributeError):
            self._response.raw.shutdown()


class Transport:
    """A session for requests, a second one for watches. Safe to share between threads."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        user_agent: str,
        private: "tempfile.TemporaryDirectory[str] | None" = None,
        clock: Clock | None = None,
    ) -> None:
        """Use ``from_kubeconfig`` or ``in_cluster``."""
        self._clock = clock or SystemClock()
        self._private = private
        self._closed = threading.Event()
        self._requests = _session(endpoint, user_agent)
        self._watches = _session(endpoint, user_agent)
        self.server: str = endpoint.config.cluster["server"].rstrip("/")
        self.namespace: str = endpoint.config.namespace

    @classmethod
    def from_kubeconfig(
        cls, path: Path, *, user_agent: str, context: str | None = None, clock: Clock | None = None
    ) -> Self:
        """Use a context of a kubeconfig, the current one by default.

        Raises:
            KubeConfigError: the file cannot be used; the message says why.
        """
        private = tempfile.TemporaryDirectory(prefix="podsnap-")  # 0700, removed by close
        try:
            endpoint = _endpoint(path, context, Path(private.name), clock or SystemClock())
        except BaseException:
            private.cleanup()
            raise
        return cls(endpoint, user_agent=user_agent, private=private, clock=clock)

    @classmethod
    def in_cluster(
        cls, *, user_agent: str, directory: Path = _SERVICE_ACCOUNT, clock: Clock | None = None
    ) -> Self:
        """Use the ServiceAccount of the Pod that this process runs in.

        Raises:
            KubeConfigError: this is no Pod, or it has no ServiceAccount token.
        """
        try:
            config = pykube.KubeConfig.from_service_account(str(directory))
        except (OSError, KeyError) as error:
            raise KubeConfigError(
                f"no ServiceAccount of a Pod found ({type(error).__name__}: {error}); "
                "outside a cluster name a kubeconfig"
            ) from error
        endpoint = Endpoint(
            config=config,
            credentials=TokenFile(directory / "token"),
            verify=str(directory / "ca.crt"),
        )
        return cls(endpoint, user_agent=user_agent, clock=clock)

    def request(  # noqa: PLR0913 - one call is one HTTP request
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: Any | None = None,
        content_type: str = "application/json",
        timeout_s: float = REQUEST_LIMIT_S,
    ) -> Json:
        """Send one request and return the parsed answer.

        A GET is tried again after connection errors, 429 and 503, never past ``timeout_s`` seconds
        in all; nothing else is, because only the caller knows whether it may happen twice.

        Raises:
            ApiError: the refusal, as its type.
        """
        deadline_s = self._clock.monotonic_s() + timeout_s

        def once() -> Json:
            left_s = max(deadline_s - self._clock.monotonic_s(), 0.001)
            data = None if body is None else orjson.dumps(body)
            headers = {"Content-Type": content_type} if data is not None else {}
            response = self._send(
                self._requests,
                method,
                path,
                params=params,
                data=data,
                headers=headers,
                timeout=(min(_CONNECT_LIMIT_S, left_s), left_s),
            )
            content = response.content
            if response.status_code >= HTTPStatus.BAD_REQUEST:
                raise from_answer(response.status_code, response.headers, content)
            parsed: Json = orjson.loads(content) if content else {}
            return parsed

        if method != "GET":
            return once()
        return tenacity.Retrying(
            stop=tenacity.stop_after_attempt(_GET_ATTEMPTS) | tenacity.stop_before_delay(timeout_s),
            wait=_pause_s,
            retry=tenacity.retry_if_exception(_is_passing),
            sleep=tenacity.sleep_using_event(self._closed),
            reraise=True,
        )(once)

    def stream(self, path: str, params: Params, *, read_timeout_s: float) -> Watch:
        """Open a watch; silence of ``read_timeout_s`` seconds ends it with ServerUnavailable.

        Raises:
            ApiError: the refusal, as its type.
        """
        response = self._send(
            self._watches,
            "GET",
            path,
            params=params,
            headers={"Accept-Encoding": "identity"},
            timeout=(_CONNECT_LIMIT_S, read_timeout_s),
            stream=True,
        )
        if response.status_code >= HTTPStatus.BAD_REQUEST:
            with response:
                raise from_answer(response.status_code, response.headers, response.content)
        return Watch(response, self.server)

    def close(self) -> None:
        """Close the connections and remove key material; open watches are to be stopped before."""
        self._closed.set()
        self._requests.close()
        self._watches.close()
        if self._private is not None:
            self._private.cleanup()

    def _send(
        self,
        session: requests.Session,
        method: str,
        path: str,
        *,
        params: Params | None,
        **kwargs: Any,  # noqa: ANN401 - handed on to requests
    ) -> requests.Response:
        query = {k: str(v).lower() if isinstance(v, bool) else v for k, v in (params or {}).items()}
        try:
            return session.request(
                method, self.server + path, params=query, allow_redirects=False, **kwargs
            )
        except requests.RequestException as error:
            raise unreachable(self.server, error) from error


def _session(endpoint: Endpoint, user_agent: str) -> requests.Session:
    # trust_env off: a stray .netrc must not win over our token, and reading it costs 0.1 ms a call.
    session: requests.Session = pykube.HTTPClient(
        endpoint.config, http_adapter=_Adapter(endpoint)
    ).session
    session.trust_env = False
    session.headers["User-Agent"] = user_agent
    session.headers["Accept"] = "application/json"
    if endpoint.proxy:
        session.proxies = {"http": endpoint.proxy, "https": endpoint.proxy}
    return session


def _endpoint(path: Path, context: str | None, private: Path, clock: Clock) -> Endpoint:
    try:
        config = pykube.KubeConfig.from_file(str(path), current_context=context)
        chosen = config.contexts[config.current_context]
        cluster = copy.deepcopy(_named(config.doc, "clusters", "cluster", chosen["cluster"]))
        user = copy.deepcopy(_named(config.doc, "users", "user", chosen.get("user", "")))
    except (pykube.exceptions.PyKubeError, OSError, KeyError, TypeError, ValueError) as error:
        raise KubeConfigError(
            f"kubeconfig {path} cannot be used ({type(error).__name__}: {error}); "
            "try it with kubectl, or name another one"
        ) from error
    files = _KeyFiles(path.resolve().parent, private)
    authority = files.path_of(cluster, "certificate-authority")
    key = files.path_of(user, "client-key")
    certificate = files.path_of(user, "client-certificate")
    credentials: Credentials
    if user.get("tokenFile"):
        credentials = TokenFile(files.directory / user["tokenFile"])
    elif "exec" in user:
        credentials = ExecPlugin.parse(user["exec"], directory=files.directory, clock=clock)
    elif "auth-provider" in user or "username" in user:
        raise KubeConfigError(
            f"kubeconfig {path} uses auth-provider or a password, which Kubernetes has removed; "
            "use a token, a client certificate or an exec plug-in"
        )
    else:
        credentials = StaticToken(user.get("token"))
    endpoint = Endpoint(
        config=config,
        credentials=credentials,
        verify=authority or not cluster.get("insecure-skip-tls-verify", False),
        server_name=cluster.get("tls-server-name"),
        proxy=cluster.get("proxy-url"),
    )
    if key and certificate:
        return replace(endpoint, certificate=(certificate, key))
    return endpoint


def _named(doc: Json, plural: str, singular: str, name: str) -> Json:
    for entry in doc.get(plural) or ():
        if entry["name"] == name:
            found: Json = entry[singular] or {}
            return found
    if singular == "user" and not name:
        return {}
    raise KeyError(f"{singular} {name!r}")


@dataclass(frozen=True, slots=True)
class _KeyFiles:
    """Files that a kubeconfig names, and files for what it holds inline."""

    directory: Path
    private: Path

    def path_of(self, entry: Json, key: str) -> str | None:
        inline = entry.get(f"{key}-data")
        if inline:
            path = self.private / key
            path.touch(mode=0o600)
            path.write_bytes(b64decode(inline))
            return str(path)
        return str(self.directory / entry[key]) if entry.get(key) else None


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, ServerUnavailable):
        return error.code in {0, HTTPStatus.SERVICE_UNAVAILABLE}
    return isinstance(error, TooManyRequests)


_backoff_s = tenacity.wait_exponential_jitter(initial=0.1, max=2.0, jitter=0.1)


def _pause_s(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked_s = error.retry_after_s if isinstance(error, ApiError) else None
    return max(asked_s or 0.0, _backoff_s(state))
