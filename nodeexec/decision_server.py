# SPDX-License-Identifier: Apache-2.0
"""The socket on which the runtime asks the agent (protocol: one JSON line each way).

0600 in a 0700 directory: whoever may connect may also start containers as root. A question that
cannot be answered is not answered; the runtime then starts the Pod cold, which is always safe.
"""

import json
import logging
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_READ_LIMIT_S = 5.0
_LINE_LIMIT_BYTES = 1 << 20

Reply = Callable[[Mapping[str, Any]], None]
Handler = Callable[[Mapping[str, Any], Reply], None]


class DecisionServer:
    """Serves one socket; each connection has its own thread, so a slow fetch delays nobody else."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        """``handlers`` maps the question's ``op``; each gets a function that sends a line."""
        self._path = path
        self._handlers = handlers
        self._inode = 0
        self._server: socketserver.ThreadingUnixStreamServer | None = None

    def start(self) -> None:
        """Take the socket over from whoever had it, and serve."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        outer = self

        class Connection(socketserver.StreamRequestHandler):
            timeout = _READ_LIMIT_S

            def handle(self) -> None:
                outer.serve(self.connection, self.rfile.readline(_LINE_LIMIT_BYTES))

        mask = os.umask(0o177)
        try:
            server = socketserver.ThreadingUnixStreamServer(str(self._path), Connection)
        finally:
            os.umask(mask)
        server.daemon_threads = True
        self._inode = self._path.stat().st_ino
        self._server = server
        threading.Thread(target=server.serve_forever, name="decisions", daemon=True).start()

    def stop(self) -> None:
        """Stop to serve; the socket file goes, so that the runtime does not wait."""
        try:
            if self._path.stat().st_ino == self._inode:  # a successor may have taken it over
                self._path.unlink()
        except FileNotFoundError:
            log.debug("the socket is gone already")
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def serve(self, connection: socket.socket, line: bytes) -> None:
        """Answer one question."""

        def reply(answer: Mapping[str, Any]) -> None:
            connection.sendall(json.dumps(answer).encode() + b"\n")

        if not line.strip():
            return  # somebody looked whether anyone is here
        try:
            question = json.loads(line)
            self._handlers[question["op"]](question, reply)
        except BrokenPipeError:
            log.info("the runtime did not wait for its answer")
        except Exception:
            log.exception("a question of the runtime could not be answered")
