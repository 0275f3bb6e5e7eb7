# SPDX-License-Identifier: Apache-2.0
"""HTTP for the bytes of images, both ways: http.client, connections kept and used again.

The library reads in pieces of 8 KiB and sends what lies in memory as a whole, under the time-out
that was meant for connecting (docs/decisions/0008). Here a body is never whole in memory, and every
block has a time-out of its own. The trap: a kept connection may have been closed by the server, so
a question that dies on one before any answer is asked again on a new one. One with a body is not:
it may have been heard, and the sender has to know that its next one is a repetition.
"""

import atexit
import contextlib
import http.client
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from google.auth.exceptions import GoogleAuthError

from backends.objects.gcs.dialing import authorities, dial, tls
from backends.objects.gcs.errors import Asked
from backends.objects.gcs.identity import Identity
from backends.objects.gcs.limits import Limits
from backends.objects.interface import StoreError, StoreUnavailable, never

_MOST_IDLE: Final = 64
_LONGEST_ERROR_BYTES: Final = 64 << 10
# Stores come and go with their snapshots; connections and their TLS sessions stay. Who asks stands
# in each request.
_idle: dict[tuple[str, float], list[http.client.HTTPConnection]] = {}
_idle_lock: Final = threading.Lock()


@atexit.register
def _close_idle() -> None:
    for waiting in _idle.values():
        for connection in waiting:
            connection.close()


class Answer:
    """A success, whose body is read once. Close it: a connection half read is of no more use."""

    def __init__(
        self,
        asked: Asked,
        response: http.client.HTTPResponse,
        connection: http.client.HTTPConnection,
        give_back: Callable[[http.client.HTTPConnection], None],
        limits: Limits,
    ) -> None:
        self._asked = asked
        self._response = response
        self._connection = connection
        self._give_back = give_back
        self._limits = limits
        self._waited_s = 0.0
        self._came_bytes = 0
        self._failure: StoreError | None = None
        self.status = response.status
        self.headers = response.headers

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer, or its beginning if no more can come; 0 only at the body's end.

        Raises:
            StoreUnavailable: the connection broke, was silent, or too slow for too long.
        """
        if self._failure is not None:
            raise self._failure
        filled = 0
        while filled < len(buffer):
            began_s = time.monotonic()
            try:
                count = self._response.readinto(buffer[filled:])
            except (OSError, http.client.HTTPException) as error:
                self._failure = self._asked.broken(error)
                if filled:
                    break  # what came is good; the next call is told
                raise self._failure from None
            if not count:
                break
            filled += count
            self._keep_pace(count, time.monotonic() - began_s)
        return filled

    def _keep_pace(self, count: int, waited_s: float) -> None:
        """End a trickle, which no time-out of a socket does; only waiting counts."""
        self._came_bytes += count
        self._waited_s += waited_s
        limits = self._limits
        if self._waited_s > limits.silence_s + self._came_bytes / limits.least_bytes_s:
            raise StoreUnavailable(
                f"{self._asked}: only {self._came_bytes} bytes came in {self._waited_s:.0f} s"
            )

    def read(self) -> bytes:
        """Return the whole body, and close.

        Raises:
            StoreUnavailable: the connection broke, or was silent for too long.
        """
        try:
            return self._response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._asked.broken(error) from None
        finally:
            self.close()

    def close(self) -> None:
        """Give the connection back if the body was read to its end."""
        if self._response.isclosed() and self._connection.sock is not None:
            self._give_back(self._connection)
        else:
            self._response.close()
            self._connection.close()


class Connections:
    """One identity's connections to one server. Safe for many threads."""

    def __init__(self, endpoint: str, identity: Identity, limits: Limits) -> None:
        """Open nothing yet."""
        self._url = urlsplit(endpoint)
        self._base_path = self._url.path.rstrip("/")
        self._identity = identity
        self._limits = limits
        self._sending: dict[http.client.HTTPConnection, Callable[[], bool]] = {}
        self._key = (f"{self._url.scheme}://{self._url.netloc}", limits.silence_s)

    def request(
        self,
        asked: Asked,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str],
        body: Callable[[], Iterable[bytes]] | None = None,
        stopped: Callable[[], bool] = never,
    ) -> Answer:
        """Send a request once, and once more with another token if this one was refused.

        While ``stopped`` says so, ``hang_up`` ends it.

        Raises:
            StoreError: the answer is no success, or none came.
        """
        try:
            who = self._identity.headers()
            answer = self._send(asked, method, target, {**headers, **who}, body, stopped)
            if answer.status == HTTPStatus.UNAUTHORIZED and self._identity.refused(who):
                answer.close()
                who = self._identity.headers()
                answer = self._send(asked, method, target, {**headers, **who}, body, stopped)
        except GoogleAuthError as error:
            raise asked.failed(error) from None
        if answer.status >= HTTPStatus.MULTIPLE_CHOICES:
            raise asked.refused(
                answer.status, _beginning(answer), retry_after=answer.headers.get("Retry-After")
            )
        return answer

    def hang_up(self) -> None:
        """End requests that are stopped; else a dead line would be noticed after ``silence_s``."""
        for connection, stopped in list(self._sending.items()):
            if stopped() and connection.sock is not None:
                with contextlib.suppress(OSError):
                    # Not TLS's own, which takes its state from the thread that uses it.
                    socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    def _send(
        self,
        asked: Asked,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Callable[[], Iterable[bytes]] | None,
        stopped: Callable[[], bool],
    ) -> Answer:
        while True:
            try:
                connection, used = self._take()
            except OSError as error:
                raise asked.broken(error) from None
            self._sending[connection] = stopped
            try:
                response = self._converse(connection, method, target, headers, body)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if used:
                    self._forget_idle()  # the others are as old
                if used and body is None and not isinstance(error, TimeoutError):
                    continue  # a kept one that the server had closed; a new one ends the loop
                raise asked.broken(error) from None
            except BaseException:
                connection.close()
                raise
            finally:
                del self._sending[connection]
            return Answer(asked, response, connection, self._give_back, self._limits)

    def _converse(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Callable[[], Iterable[bytes]] | None,
    ) -> http.client.HTTPResponse:
        try:
            connection.request(
                method,
                self._base_path + target,
                body=body() if body else None,
                headers=dict(headers),
            )
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            # A server that refuses a body need not read it; what it says may be there already.
            if connection.sock is None:
                raise
        return connection.getresponse()

    def _take(self) -> tuple[http.client.HTTPConnection, bool]:
        while True:
            with _idle_lock:
                waiting = _idle.get(self._key)
                connection = waiting.pop() if waiting else None
            if connection is None:
                return self._connect(), False
            if not _spoken_to(connection):
                return connection, True
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        connection: http.client.HTTPConnection
        if self._url.scheme == "https":
            connection = http.client.HTTPSConnection(
                host, port, timeout=self._limits.connect_s, context=tls(authorities())
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=self._limits.connect_s)
        connection.response_class = _Response
        connection._create_connection = dial  # type: ignore[attr-defined] # noqa: SLF001 - it counts the time-out for each address anew
        connection.connect()
        connection.sock.settimeout(self._limits.silence_s)
        return connection

    def _forget_idle(self) -> None:
        with _idle_lock:
            waiting = _idle.pop(self._key, [])
        for connection in waiting:
            connection.close()

    def _give_back(self, connection: http.client.HTTPConnection) -> None:
        with _idle_lock:
            waiting = _idle.setdefault(self._key, [])
            if len(waiting) < _MOST_IDLE:
                waiting.append(connection)
                return
        connection.close()


class _Response(http.client.HTTPResponse):
    """Hands out what has come, without waiting for a buffer to be full."""

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # any buffer would do
        if self.isclosed() or self.chunked or self.length is None:
            return super().readinto(buffer)
        count = self.fp.readinto1(buffer[: self.length])
        self.length -= count
        if not self.length or (len(buffer) and not count):
            self.close()
        return count


def _spoken_to(connection: http.client.HTTPConnection) -> bool:
    """Tell whether an idle connection has something to read: its end, that is."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _beginning(answer: Answer) -> bytes:
    """Return enough of an error's body to understand it."""
    buffer = memoryview(bytearray(_LONGEST_ERROR_BYTES))
    try:
        return bytes(buffer[: answer.readinto(buffer)])
    except StoreError:
        return b""  # the status alone says enough
    finally:
        answer.close()
