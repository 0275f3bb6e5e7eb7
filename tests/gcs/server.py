# SPDX-License-Identifier: Apache-2.0
"""A double of Cloud Storage's JSON API, of its token service and of IAM Credentials.

Written for what no real part can be made to do: fail, stall, lie, refuse and be slow when asked to.
Without grants everybody may do everything. ``python -m tests.gcs.server`` runs it as a process.
"""

import argparse
import json
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

from tests.gcs.api import Handler, Session
from tests.gcs.connection import Request
from tests.gcs.faults import Fault, Faults, Limits
from tests.gcs.iam import Access
from tests.gcs.objects import CloudObjects
from tests.gcs.sts import TokenService


class CloudStorageDouble:
    """All of it, in the hand of a test."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self.objects = CloudObjects(directory, clock)
        self.access = Access(clock)
        self.tokens = TokenService(self.access)
        self.faults = Faults()
        self.limits = Limits()
        self.requests: list[Request] = []
        self.sessions: dict[str, Session] = {}
        self.session_numbers = count(1)
        self.ended = threading.Event()
        self.connections: set[socket.socket] = set()
        self.busy = 0
        self.most_busy = 0
        self._guard = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), partial(Handler, self))
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(
            target=partial(self._http.serve_forever, poll_interval=0.05), daemon=True
        )
        self._thread.start()

    def fail(self, match: str, how: str = "", **rest: Any) -> Fault:  # noqa: ANN401 - Fault's fields
        """Ask for a fault: see ``Fault``."""
        fault = Fault(match=match, how=how, **rest)
        self.faults.add(fault)
        return fault

    def die_after(self, requests: int, match: str = "") -> Fault:
        """Break off every request that matches after so many, until ``heal``."""
        return self.fail(match, "torn", skip=requests, count=sys.maxsize)

    def heal(self) -> None:
        """Forget faults, and be fast again."""
        self.faults.heal()
        self.limits.clear()

    @contextmanager
    def counted(self, request: Request) -> Iterator[None]:
        """Keep a request, and how many there are at once; one just answered may still count."""
        with self._guard:
            self.requests.append(request)
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        try:
            yield
        finally:
            with self._guard:
                self.busy -= 1

    @property
    def payload_bytes(self) -> tuple[int, int]:
        """How many bytes of objects were sent and received."""
        seen = list(self.requests)
        return sum(r.sent_bytes for r in seen), sum(r.received_bytes for r in seen)

    def seen(self, method: str = "", *, name: str = "", code: int = 0) -> list[Request]:
        """Return the requests so far, by method, a regular expression of the name, and answer."""
        return [
            r
            for r in list(self.requests)
            if method in ("", r.method) and re.search(name, r.name) and code in (0, r.status)
        ]

    def forget_sessions(self) -> None:
        """End all resumable uploads, as a week does."""
        self.sessions.clear()

    def cut_connections(self) -> None:
        """End every connection as it is."""
        for connection in list(self.connections):
            with suppress(OSError):  # it ended by itself
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End; what hangs is let go."""
        self.ended.set()
        self._http.shutdown()
        self._http.server_close()
        self.cut_connections()
        self._thread.join()


@contextmanager
def running_cloud_storage(
    directory: Path, *buckets: str, clock: Callable[[], float] = time.time
) -> Iterator[CloudStorageDouble]:
    """Run a double with these buckets."""
    double = CloudStorageDouble(directory, clock)
    for bucket in buckets:
        double.objects.create_bucket(bucket)
    try:
        yield double
    finally:
        double.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - the base class's
        """Say nothing of a client that went; a defect of ours is to be seen."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def main() -> None:
    """Run a double until SIGTERM; its first line of output is JSON with the address."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--bucket", action="append", default=[], help="to be made; repeatable")
    parser.add_argument("--publish", action="append", default=[], help="BUCKET/NAME=FILE")
    parser.add_argument("--directory", type=Path, help="where bytes go; else a temporary one")
    parser.add_argument("--connection-mb-s", type=float, default=0)
    parser.add_argument("--total-mb-s", type=float, default=0)
    parser.add_argument("--latency-ms", type=float, default=0)
    options = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with (
        tempfile.TemporaryDirectory(dir=options.directory) as directory,
        running_cloud_storage(Path(directory), *options.bucket) as double,
    ):
        double.limits.connection_bytes_s = options.connection_mb_s * 1e6
        double.limits.total_bytes_s = options.total_mb_s * 1e6
        double.limits.latency_s = options.latency_ms / 1e3
        for published in options.publish:
            place, _, file = published.partition("=")
            bucket, _, name = place.partition("/")
            double.objects.publish(bucket, name, Path(file))
        print(json.dumps({"url": double.url}), flush=True)  # noqa: T201 - whoever started it reads this
        ended.wait()


if __name__ == "__main__":
    main()
