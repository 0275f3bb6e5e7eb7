# SPDX-License-Identifier: Apache-2.0
"""Shows what two Pods of one snapshot share, and what they do not with ``renewal``.

``GET /`` answers with a secret of the memory (the same in all of them, and it should be: that is
what the snapshot is for), an identifier and random draws that are renewed, and a draw from a
generator that nobody renews, which is the same in all of them.
"""

import json
import os
import random
import signal
import socket
import ssl
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from renewal import Renewal


class App:
    """The state of one replica."""

    def __init__(self, renewal: Renewal) -> None:
        """Warm up, and say what is to be renewed."""
        self.renewal = renewal
        self.memory = os.urandom(8).hex()
        self.forgotten = random.Random(os.urandom(8))  # noqa: S311 - it shows what goes wrong
        self.instance = ""
        self.identify()
        renewal.on_restore(self.identify)

    def identify(self) -> None:
        """Take an identifier of this replica's own."""
        self.instance = str(uuid.uuid4())

    def state(self) -> dict[str, object]:
        """Return what ``GET /`` answers."""
        self.renewal.settle()
        return {
            "memory": self.memory,
            "instance": self.instance,
            "random": random.getrandbits(64),
            "tls": ssl.RAND_bytes(8).hex(),
            "forgotten": self.forgotten.getrandbits(64),
            "mode": os.environ.get("MODE", ""),
            "restores": self.renewal.restores,
            "hostname": socket.gethostname(),
        }


def main() -> None:
    """Answer until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    renewal = Renewal()
    app = App(renewal)
    renewal.start()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ready = self.path == "/ready"  # a probe draws nothing
            body = json.dumps({} if ready else app.state()).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
            """Say nothing."""

    ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()  # noqa: S104 - a Pod is reached from outside


if __name__ == "__main__":
    main()
