# SPDX-License-Identifier: Apache-2.0
"""Semantic search over package descriptions: slow to start, and therefore worth a snapshot.

The concept: load a language model, embed every text, answer searches. Once the index is there and
the listener answers, the program asks for a snapshot of its own Pod; every later Pod starts at that
point. The trap: readiness must never depend on the snapshot. The program is ready before it asks,
asks in a thread of its own, and serves the same whatever the answer is.
"""

import argparse
import json
import os
import random
import re
import secrets
import signal
import socket
import threading
import time
import urllib.request
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import snapshot
import weights
from index import Index

HERE = Path(__file__).resolve().parent
MAX_RESULTS = 50
ANSWER_LIMIT_S = 10  # for our own listener on loopback
REQUEST_LIMIT_S = 30


def log(line: str) -> None:
    """Print with the seconds since the process was started, which a restored Pod inherits."""
    print(f"{time.monotonic() - STARTED_S:8.2f} s  {line}", flush=True)


STARTED_S = time.monotonic()


@dataclass(slots=True)
class Service:
    """What the program knows; all of it is in memory, and so in a snapshot."""

    # Drawn once: equal in every Pod that was restored from the same snapshot.
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))
    # Drawn at every start and again after every restore: never equal in two Pods.
    boot_id: str = field(default_factory=lambda: secrets.token_hex(8))
    started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat())
    snapshot: str = "not asked"
    model: weights.Loaded | None = None
    index: Index | None = None

    def ready(self) -> bool:
        """Say whether searches are answered."""
        return self.index is not None

    def identity(self) -> dict[str, object]:
        """Return what tells this Pod from its replicas."""
        return {"nonce": self.nonce, "boot_id": self.boot_id, "hostname": socket.gethostname()}

    def search(self, query: str, k: int) -> dict[str, object]:
        """Answer one search."""
        assert self.model is not None  # noqa: S101 - the handler asks ready() first
        assert self.index is not None  # noqa: S101 - as above
        began_s = time.monotonic()
        hits = self.index.search(self.model.model.embed([query])[0], k)
        return {
            "query": query,
            "results": [asdict(hit) for hit in hits],
            "took_s": round(time.monotonic() - began_s, 4),
            **self.identity(),
        }

    def info(self, address: str) -> dict[str, object]:
        """Describe this Pod; ``address`` is its own end of the connection."""
        return {
            **self.identity(),
            "pod_ip": address,
            "started_at": self.started_at,
            "snapshot": self.snapshot,
            "indexed": len(self.index) if self.index is not None else 0,
            "weights_bytes_unpacked": self.model.unpacked_bytes if self.model else 0,
            "weights_bytes_left": self.model.left_bytes if self.model else 0,
        }

    def load(self, archive: Path, scratch: Path, corpus: Path) -> None:
        """Do everything that makes the start slow."""
        loaded = weights.load(archive, scratch)
        log(f"{loaded.unpacked_bytes} bytes of weights unpacked, {loaded.left_bytes} left there")
        self.model = loaded
        index = Index(corpus)
        log(f"indexing {len(index)} texts")
        index.build(loaded.model, lambda done: log(f"{done} texts indexed"))
        self.index = index

    def take_snapshot(self, checkpoint: Path) -> None:
        """Ask for a snapshot, and be somebody else if this is the Pod restored from it."""
        host, environment = socket.gethostname(), snapshot.specified(snapshot.SPEC_ENVIRON)
        log("asking for a snapshot")
        answer = snapshot.ask(checkpoint, log)
        if answer == snapshot.RESTORE:
            random.seed()
            self.boot_id = secrets.token_hex(8)
            now = snapshot.specified(snapshot.SPEC_ENVIRON)
            names = ", ".join(snapshot.changed_names(environment, now)) or "none"
            log(f"restored: was {host}, is {socket.gethostname()}; changed environment: {names}")
        elif answer == snapshot.RESUME:
            log("saved; going on")
        elif answer == snapshot.ERROR:
            log("the snapshot failed; serving all the same")
        self.snapshot = answer


Answer = tuple[HTTPStatus, dict[str, object]]


def answer(service: Service, target: str, address: str) -> Answer:
    """Answer one GET; ``address`` is our own end of the connection."""
    url = urlsplit(target)
    if url.path == "/healthz":
        return HTTPStatus.OK, {"healthy": True}
    if url.path == "/info":
        return HTTPStatus.OK, service.info(address)
    if url.path not in ("/readyz", "/search"):
        return HTTPStatus.NOT_FOUND, {"error": "try /search?q=...&k=5"}
    if not service.ready():
        return HTTPStatus.SERVICE_UNAVAILABLE, {"error": "the index is not built"}
    if url.path == "/readyz":
        return HTTPStatus.OK, {"ready": True}
    asked = parse_qs(url.query)
    query, k = asked.get("q", [""])[0].strip(), asked.get("k", ["5"])[0]
    if not query or not re.fullmatch("[0-9]{1,2}", k) or not 1 <= int(k) <= MAX_RESULTS:
        message = f"q must be a text and k a number from 1 to {MAX_RESULTS}"
        return HTTPStatus.BAD_REQUEST, {"error": message}
    return HTTPStatus.OK, service.search(query, int(k))


def listen(service: Service, port: int) -> ThreadingHTTPServer:
    """Return a server on all addresses, so that it survives the change of the Pod's own."""

    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_LIMIT_S

        def do_GET(self) -> None:
            status, content = answer(service, self.path, self.connection.getsockname()[0])
            body = json.dumps(content).encode() + b"\n"
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
            """Say nothing: there is a probe each second."""

    return ThreadingHTTPServer(("0.0.0.0", port), Handler)  # noqa: S104 - a Pod is reached from outside


def main() -> None:
    """Serve at once, load, then ask for the snapshot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=Path, default=HERE / "weights.tar.gz")
    parser.add_argument("--corpus", type=Path, default=HERE / "corpus.jsonl")
    parser.add_argument("--scratch", type=Path, default=Path("/weights"), help="a tmpfs")
    parser.add_argument("--checkpoint", type=Path, default=snapshot.CHECKPOINT)
    parser.add_argument("--port", type=int, default=8080)
    chosen = parser.parse_args()

    # At once: nothing is worth waiting for, and PID 1 ends on no signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    service = Service()
    server = listen(service, chosen.port)
    port = server.server_address[1]
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    log(f"listening on port {port}, nonce {service.nonce}, host {socket.gethostname()}")
    service.load(chosen.weights, chosen.scratch, chosen.corpus)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=ANSWER_LIMIT_S):
        log("ready")
    asking = threading.Thread(
        target=service.take_snapshot, args=(chosen.checkpoint,), name="snapshot", daemon=True
    )
    asking.start()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
