# SPDX-License-Identifier: Apache-2.0
"""One connection of a client: requests are noted, befallen by faults, and answered in JSON.

A body that nobody read is read to its end before an error is answered: a client that is still
sending would see a broken connection instead.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from tests.gcs.faults import Pace
from tests.gcs.objects import ApiError
from tests.gcs.transfer import BLOCK_BYTES, BrokenOffError, Line

if TYPE_CHECKING:
    from tests.gcs.server import CloudStorageDouble


@dataclass(slots=True)
class Request:
    """One request as it was seen; ``status`` 0 while it is under way or was never answered."""

    method: str
    path: str
    query: dict[str, str]
    range: str
    bucket: str = ""
    name: str = ""
    principal: str = ""
    status: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0

    @property
    def generation(self) -> str:
        """The generation that it pins or takes for granted."""
        return self.query.get("generation", self.query.get("ifGenerationMatch", ""))


class Connection(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, double: "CloudStorageDouble", *rest: Any) -> None:  # noqa: ANN401 - the base class's
        self.double = double
        self.pace = Pace()
        super().__init__(*rest)

    def setup(self) -> None:
        """Be among those that can be cut."""
        super().setup()
        self.double.connections.add(self.connection)

    def finish(self) -> None:
        """Be no more."""
        self.double.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's
        """Say nothing: a test reads ``requests``."""

    # -- one request

    def _any(self) -> None:
        parts = urlsplit(self.path)
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.unread = int(self.headers.get("Content-Length") or 0)
        self.seen = Request(self.command, parts.path, self.query, self.headers.get("Range", ""))
        self.line = Line(
            self.connection, self.rfile, self.double.limits, self.double.ended, self.pace
        )
        with self.double.counted(self.seen):
            self.fault = self.double.faults.take(f"{self.command} {self.path}")
            try:
                self._befall_before()
                self._take_time()
                self._route(parts.path)
            except ApiError as error:
                self._refuse(error)
            except (BrokenOffError, OSError):
                self.close_connection = True

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _any  # noqa: N815 - the base class's

    def _befall_before(self) -> None:
        if (fault := self.fault) is None:
            return
        if fault.before is not None:
            fault.before()
        if fault.status:
            raise ApiError(fault.status, f"made by a test: {fault.status}")
        if fault.how in {"stall", "torn", "reset"} and fault.at_byte is None:
            self.line.befall(fault)

    def _take_time(self) -> None:
        if self.double.limits.latency_s:
            time.sleep(self.double.limits.latency_s)
        if self.double.limits.is_too_often():
            raise ApiError(429, "The rate of requests is too high.")

    def _refuse(self, error: ApiError) -> None:
        self._drain()
        headers = {}
        if self.fault is not None and self.fault.retry_after:
            headers["Retry-After"] = self.fault.retry_after
        if error.code == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="https://accounts.google.com/"'
        if self.query.get("alt") == "media":
            self._answer(error.code, error.message.encode(), headers, "text/html; charset=UTF-8")
        else:
            self._json(error.body(), error.code, headers)

    def _route(self, path: str) -> None:
        raise NotImplementedError

    # -- answers

    def _answer(
        self,
        code: int,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json; charset=UTF-8",
    ) -> None:
        if self.fault is not None and self.fault.how == "lost":
            raise BrokenOffError
        self._head(code, len(body), {"Content-Type": content_type, **(headers or {})})
        self.wfile.write(body)

    def _head(self, code: int, length: int, headers: Mapping[str, str]) -> None:
        self.seen.status = code
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        if code != 204:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _json(
        self, body: object, code: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        self._answer(code, json.dumps(body).encode(), headers)

    def _body(self) -> bytes:
        size_bytes, self.unread = self.unread, 0
        data = self.rfile.read(size_bytes)
        if len(data) < size_bytes:
            raise BrokenOffError
        return data

    def _asked(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._body() or b"{}")
        return found

    def _drain(self) -> None:
        while self.unread > 0 and (data := self.rfile.read(min(self.unread, BLOCK_BYTES))):
            self.unread -= len(data)

    def _read_until(self, end: bytes) -> bytes:
        """Return the lines of the body before one; empty stands for an empty line."""
        lines = b""
        while (line := self.rfile.readline(BLOCK_BYTES)).rstrip(b"\r\n") != end:
            if not line:
                raise BrokenOffError
            lines += line
            self.unread -= len(line)
        self.unread -= len(line)
        return lines
