# SPDX-License-Identifier: Apache-2.0
"""Runs inside a Pod: ticks every 5 ms and tells the longest time between two ticks.

That is how long the application stood still. ``POST /`` begins anew. The trap is a clock that
stands still too: the wall clock's longest gap is told beside the monotonic one.
"""

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

TICK_S = 0.005
PORT = 8080
gaps = {"monotonic_s": 0.0, "wall_s": 0.0}


class Handler(BaseHTTPRequestHandler):
    """Tells the gaps, or forgets them."""

    def do_GET(self) -> None:
        """Answer with the longest gaps."""
        body = json.dumps(gaps).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Begin anew."""
        gaps.update(monotonic_s=0.0, wall_s=0.0)
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
        """Say nothing."""


def main() -> None:
    """Fill the memory, then tick until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    ballast = [os.urandom(1 << 20) for _ in range(int(sys.argv[1]))]
    server = HTTPServer(("0.0.0.0", PORT), Handler)  # noqa: S104 - a Pod is reached from outside
    threading.Thread(target=server.serve_forever, daemon=True).start()
    then, wall_then = time.monotonic(), time.time()
    while ballast:
        time.sleep(TICK_S)
        now, wall = time.monotonic(), time.time()
        gaps["monotonic_s"] = max(gaps["monotonic_s"], now - then)
        gaps["wall_s"] = max(gaps["wall_s"], wall - wall_then)
        then, wall_then = now, wall


if __name__ == "__main__":
    main()
