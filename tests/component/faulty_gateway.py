# SPDX-License-Identifier: Apache-2.0
"""A way to the API server on which answers go wrong, because no real server does so on demand.

It has the server's own certificate, so clients verify it like the server. Faults are asked for by
number: the next so many requests that match get them, everything else passes through.
"""

import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests
from kube_apiserver import ApiServer

_HANG_LIMIT_S = 30.0


@dataclass(slots=True)
class Fault:
    """What happens to the next ``count`` requests whose method and path match.

    ``how`` is a status code to answer with; or ``hang``: no answer; ``lost``: done, but the answer
    does not come; ``torn``: the answer ends in the middle of its first line.
    """

    how: str
    method: str
    path: str
    count: int


class FaultyGateway:
    """Forwards to one API server."""

    def __init__(self, server: ApiServer) -> None:
        """Listen on a port of loopback."""
        self._server = server
        self._faults: list[Fault] = []
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self.hits = 0
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # a watch comes in chunks

            def _any(self) -> None:
                gateway._handle(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any  # noqa: N815 - the base class names them

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
                """Say nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server.authority, server.authority.with_suffix(".key"))
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Where to connect to."""
        return f"https://127.0.0.1:{self._http.server_port}"

    def fail(self, how: str, *, method: str, path: str, count: int) -> None:
        """Ask for faults; ``method`` and ``path`` are regular expressions."""
        with self._guard:
            self._faults.append(Fault(how, method, path, count))

    def heal(self) -> None:
        """Forget the faults that were not met."""
        with self._guard:
            self._faults.clear()

    def close(self) -> None:
        """End; what hangs is let go."""
        self._ended.set()
        self._http.shutdown()
        self._http.server_close()

    def _fault(self, method: str, path: str) -> str:
        with self._guard:
            for fault in self._faults:
                if fault.count and re.search(fault.method, method) and re.search(fault.path, path):
                    fault.count -= 1
                    self.hits += 1
                    return fault.how
        return ""

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        how = self._fault(request.command, request.path)
        if how.isdigit():
            _answer_status(request, int(how))
            return
        if how == "hang":
            self._ended.wait(_HANG_LIMIT_S)
            return
        with self._forwarded(request, body) as answer:
            if how == "lost":
                return
            request.send_response(answer.status_code)
            request.send_header("Content-Type", answer.headers.get("Content-Type", ""))
            request.send_header("Transfer-Encoding", "chunked")
            request.end_headers()
            try:
                for block in answer.iter_content(chunk_size=None):
                    piece = block[: len(block) // 2] if how == "torn" else block
                    request.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    request.wfile.flush()
                    if how == "torn":
                        return
                request.wfile.write(b"0\r\n\r\n")
            except (OSError, requests.RequestException):
                return  # either side has gone

    @contextmanager
    def _forwarded(
        self, request: BaseHTTPRequestHandler, body: bytes
    ) -> Iterator[requests.Response]:
        kept = ("Authorization", "Content-Type", "Accept")
        with requests.Session() as session:
            session.trust_env = False
            with session.request(
                request.command,
                self._server.url + request.path,
                data=body or None,
                headers={k: request.headers[k] for k in kept if k in request.headers},
                verify=str(self._server.authority),
                stream=True,
                timeout=(3, 300),
            ) as answer:
                yield answer


def _answer_status(request: BaseHTTPRequestHandler, code: int) -> None:
    reason = {409: "Conflict", 429: "TooManyRequests", 500: "InternalError"}[code]
    status: dict[str, Any] = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": reason,
        "message": f"made by a test: {reason}",
        "code": code,
    }
    text = json.dumps(status).encode()
    request.send_response(code)
    if code == 429:
        request.send_header("Retry-After", "1")
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(text)))
    request.end_headers()
    request.wfile.write(text)
