# SPDX-License-Identifier: Apache-2.0
"""The bucket of the benchmark: the tests' double of Cloud Storage, as a process of its own.

It sends from files in memory by sendfile. The trap is its own price, since it shares the machine
with the client: what it computes is in every time, and in none of the client's processor seconds.
"""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from room import BenchError

BUCKET: Final = "bench"
_ROOT: Final = Path(__file__).resolve().parent.parent
_END_LIMIT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast it is: 0 is without limit."""

    name: str = "loopback"
    connection_mb_s: float = 0.0
    total_mb_s: float = 0.0
    latency_ms: float = 0.0

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return self != Speed(self.name)

    @property
    def covers(self) -> str:
        """Say it in words."""
        limits = [
            f"{value:g} {words}"
            for value, words in (
                (self.connection_mb_s, "MB/s for each connection"),
                (self.total_mb_s, "MB/s for all together"),
                (self.latency_ms, "ms before each answer"),
            )
            if value
        ]
        return ", ".join(limits) or "no limit but the machine"


LOOPBACK: Final = Speed()
SLOW: Final = Speed("100 MB/s", connection_mb_s=100, latency_ms=20)


@dataclass(frozen=True, slots=True)
class BucketServer:
    """A running one."""

    endpoint: str

    @property
    def sent_bytes(self) -> int:
        """How many bytes of objects it has sent."""
        sent: int = self._ask("GET", "/double/counters")["sent_bytes"]
        return sent

    def remove_objects(self) -> None:
        """Empty the bucket."""
        place = f"/storage/v1/b/{BUCKET}/o"
        for found in self._ask("GET", place).get("items", []):
            name, generation = found["name"].replace("/", "%2F"), found["generation"]
            self._ask("DELETE", f"{place}/{name}?ifGenerationMatch={generation}")

    def generation(self, name: str) -> int:
        """Return the generation of an object."""
        found = self._ask("GET", f"/storage/v1/b/{BUCKET}/o/{name.replace('/', '%2F')}")
        return int(found["generation"])

    def _ask(self, method: str, path: str) -> dict[str, Any]:
        asked = urllib.request.Request(self.endpoint + path, method=method)  # noqa: S310 - our own server
        with urllib.request.urlopen(asked, timeout=_END_LIMIT_S) as answer:  # noqa: S310
            told: dict[str, Any] = json.loads(answer.read() or b"{}")
            return told


@contextmanager
def bucket_server(
    directory: Path, speed: Speed, published: Sequence[tuple[str, Path]] = ()
) -> Iterator[BucketServer]:
    """Run a server whose bytes lie in ``directory``; it begins with these names and files.

    Raises:
        BenchError: it does not start.
    """
    words = [sys.executable, "-m", "tests.gcs.server", "--bucket", BUCKET]
    words += ["--directory", str(directory), "--latency-ms", str(speed.latency_ms)]
    words += ["--connection-mb-s", str(speed.connection_mb_s)]
    words += ["--total-mb-s", str(speed.total_mb_s)]
    for name, file in published:
        words += ["--publish", f"{BUCKET}/{name}={file}"]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=_ROOT, env=environment)
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise BenchError(f"the bucket's server ended with {process.wait(_END_LIMIT_S)}")
        yield BucketServer(json.loads(line)["url"])
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()
