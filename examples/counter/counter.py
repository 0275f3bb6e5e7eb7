# SPDX-License-Identifier: Apache-2.0
"""A counter that shows whether a Pod was restored: its count and its nonce live in memory only.

A Pod that starts cold begins at 0 with a new nonce; a restored one goes on with both, under a new
hostname. The trap: nothing may be written to disk, or the files would prove it instead of memory.
"""

import argparse
import json
import os
import secrets
import signal
import socket
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STEP_S = 0.2
STEPS_PER_LOG_LINE = 25


@dataclass(slots=True)
class Counter:
    """The state that a snapshot has to carry."""

    count: int = 0
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))
    started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat())

    def run(self) -> None:
        """Count for ever."""
        while True:
            time.sleep(STEP_S)
            self.count += 1
            if self.count % STEPS_PER_LOG_LINE == 0:
                print(f"count {self.count} nonce {self.nonce} on {socket.gethostname()}")

    def state(self) -> dict[str, object]:
        """Return what ``GET /`` answers; the hostname is read anew each time."""
        return {
            "count": self.count,
            "nonce": self.nonce,
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "started_at": self.started_at,
        }


def serve(counter: Counter, port: int) -> ThreadingHTTPServer:
    """Return a server on all addresses, so that it survives the change of the Pod's own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(counter.state()).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
            """Say nothing: a probe each second would drown the count."""

    return ThreadingHTTPServer(("0.0.0.0", port), Handler)  # noqa: S104 - a Pod is reached from outside


def main() -> None:
    """Count and answer until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8080)
    port = parser.parse_args().port
    # At once: nothing is worth waiting for, and a handler as PID 1 is needed to end at all.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    counter = Counter()
    server = serve(counter, port)
    threading.Thread(target=counter.run, name="counter", daemon=True).start()
    print(f"counting from 0 with nonce {counter.nonce} on {socket.gethostname()}")
    server.serve_forever()


if __name__ == "__main__":
    main()
