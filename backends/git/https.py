# SPDX-License-Identifier: Apache-2.0
"""HTTPS to a Git server: one address, one set of credentials, no detours.

A redirect or a pack that lies elsewhere is told and not followed: whoever answers could otherwise
point the controller, with its view of the cluster's network, at anything.
"""

import base64
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any, Final

import urllib3
from dulwich.client import Urllib3HttpGitClient, default_user_agent_string
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, NewConnectionError, SSLError

from backends.git.address import Address, Credentials
from backends.git.errors import (
    AuthenticationFailed,
    CertificateRefused,
    FetchFailed,
    GitError,
    RepositoryNotFound,
)
from backends.git.limits import Allowance

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_REFUSED: Final = frozenset({401, 403})
_NOT_FOUND: Final = frozenset({404, 410})
_OK: Final = 200


def https_client(
    address: Address, credentials: Credentials, allowance: Allowance
) -> Urllib3HttpGitClient:
    """Return a client; it connects when it is asked for something."""
    headers = {"User-Agent": default_user_agent_string()}
    if credentials.bearer_token:
        headers["Authorization"] = f"Bearer {credentials.bearer_token}"
    elif credentials.username or credentials.password:
        pair = f"{credentials.username}:{credentials.password}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    options: dict[str, Any] = {"headers": headers, "retries": False}
    if address.scheme == "https":
        options["ssl_context"] = _trust(credentials.authority)
    pool = urllib3.PoolManager(**options)
    pool.pool_classes_by_scheme = _guarded_pools(allowance)
    allowance.guard(pool.clear)
    return _Client(address.url, pool, allowance)


class _Client(Urllib3HttpGitClient):
    def __init__(self, url: str, pool: urllib3.PoolManager, allowance: Allowance) -> None:
        super().__init__(url, pool_manager=pool, thin_packs=False)
        self._allowance = allowance
        self._home = self._origin(url)

    def _http_request(
        self,
        url: str,
        headers: dict[str, str] | None = None,
        data: bytes | Iterator[bytes] | None = None,
        raise_for_status: bool = True,  # noqa: ARG002, FBT001, FBT002 - dulwich's signature
    ) -> tuple[Any, Callable[[int], bytes]]:
        if self._origin(url) != self._home:
            raise FetchFailed(f"the server sends to {url}, which is not followed")
        self._timeout = self._allowance.remaining_s()
        try:
            response, read = super()._http_request(url, headers, data, raise_for_status=False)
        except GitError:
            raise
        except Exception as error:
            raise _told(error, url) from error
        self._check(response)
        return response, self._allowance.counting(read)

    def _check(self, response: Any) -> None:  # noqa: ANN401 - urllib3's response
        if response.status == _OK:
            if not str(response.content_type or "").startswith("application/x-git-"):
                response.close()
                raise RepositoryNotFound(
                    f"{self._base_url} answers, but not as a Git server; is spec.url the address "
                    "that `git clone` takes?"
                )
            return
        response.close()
        if response.status in _REDIRECTS:
            target = str(response.headers.get("Location", "")).partition("/info/refs")[0]
            raise FetchFailed(
                f"the server sends to {target or 'another address'}, which is not followed; if "
                "that is right, write it into spec.url"
            )
        if response.status in _REFUSED:
            raise AuthenticationFailed(
                f"the server refuses the credentials of spec.secretRef, or asks for some "
                f"(HTTP {response.status}); mend the Secret"
            )
        if response.status in _NOT_FOUND:
            raise RepositoryNotFound(
                f"{self._base_url.rstrip('/')} is no Git repository (HTTP {response.status}); "
                "check spec.url. Some servers answer so for a private one without credentials: "
                "then name a Secret in spec.secretRef"
            )
        raise FetchFailed(f"the server answers HTTP {response.status}; it is tried again")


def _told(error: Exception, url: str) -> Exception:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (ssl.SSLCertVerificationError, SSLError)):
            return CertificateRefused(
                f"the certificate of {url.split('/')[2]} is not trusted ({cause}); nothing was "
                "sent. If an own authority signed it, put its certificate into the Secret of "
                "spec.secretRef as ca.crt"
            )
        if isinstance(cause, NewConnectionError):
            return FetchFailed(f"{url.split('/')[2]} cannot be reached; it is tried again")
        cause = cause.__cause__ or cause.__context__
    # What others say may quote a header, and that is a password.
    text = error if isinstance(error, (OSError, HTTPError)) else type(error).__name__
    return FetchFailed(f"{url.split('/')[2]} did not answer: {text}; it is tried again")


def _trust(authority: str) -> ssl.SSLContext:
    if not authority:
        return _system_trust()
    try:
        return ssl.create_default_context(cadata=authority)
    except (ssl.SSLError, ValueError) as error:
        raise CertificateRefused(
            f"ca.crt in the Secret is no certificate in PEM form ({error}); mend it"
        ) from error


@cache
def _system_trust() -> ssl.SSLContext:
    return ssl.create_default_context()


def _guarded_pools(allowance: Allowance) -> dict[str, Any]:
    """Pools whose connections are closed when the time is over, even within a read."""

    def connected(connection: HTTPConnection) -> socket.socket:
        try:
            return allowance.connect(connection.host, connection.port)
        except OSError as error:
            raise NewConnectionError(connection, str(error)) from error

    class Plain(HTTPConnection):
        def connect(self) -> None:
            allowance.guard(_shutting(self))
            super().connect()

        def _new_conn(self) -> socket.socket:
            return connected(self)

    class Encrypted(HTTPSConnection):
        def connect(self) -> None:
            allowance.guard(_shutting(self))  # a handshake may drip too
            super().connect()

        def _new_conn(self) -> socket.socket:
            return connected(self)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class EncryptedPool(HTTPSConnectionPool):
        ConnectionCls = Encrypted

    return {"http": PlainPool, "https": EncryptedPool}


def _shutting(connection: HTTPConnection) -> Callable[[], None]:
    def close() -> None:
        with suppress(OSError, AttributeError):
            connection.sock.shutdown(socket.SHUT_RDWR)

    return close
