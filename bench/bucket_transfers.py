# SPDX-License-Identifier: Apache-2.0
"""2 GiB from a bucket and into it, beside what Google's own library and tools take for them.

The bucket is the tests' double of Cloud Storage, a process of its own on this machine: on the
loopback it shows what the client costs, and slowed down to 100 MB/s and 20 ms for each connection
what parallelism buys. Everything lies in memory. All ways take turns, each in a process of its own.

The trap is the two cores that client and server share: a client that computes less also gets a
faster server, so only ratios of one run mean anything.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bucket_server import BUCKET, LOOPBACK, SLOW, Speed, bucket_server
from figure import Figure, Target, percentile
from gcloud_copy import GcloudCopy, gcloud_copy
from room import BenchError
from transfer import Order

from localcluster.cluster import LocalCluster
from nodeexec.image import digest_file

SIZE_BYTES: Final = 2 << 30
GIB: Final = 1 << 30
ROUNDS: Final = 3
CONNECTIONS: Final = 8
_BLOCK_BYTES: Final = 64 << 20
_LIMIT_S: Final = 600.0
_TRANSFER: Final = Path(__file__).resolve().parent / "transfer.py"
_ROOT: Final = _TRANSFER.parent.parent
_NAME: Final = "snapshot/pages.img"


@dataclass(frozen=True, slots=True)
class Taken:
    """What one transfer took."""

    seconds: float
    processor_s: float
    peak_mib: float


@dataclass(frozen=True, slots=True)
class Way:
    """One way to move the bytes: a word of ``transfer.py``, and over how many connections."""

    name: str
    word: str
    connections: int = CONNECTIONS


PODSNAP_FETCH: Final = Way("podsnap", "podsnap fetch")
PLAIN: Final = (
    Way("http.client", "plain"),
    Way("http.client, one connection", "plain", 1),
)
LIBRARY_FETCH: Final = (
    Way("library, threads", "library, threads"),
    Way("library, processes", "library, processes", 4),
)
PODSNAP_UPLOAD: Final = Way("podsnap", "podsnap upload")
LIBRARY_UPLOAD: Final = Way("library, one stream", "library, one stream", 1)


class Table(dict[str, list[Taken]]):
    """What each way took, by its name."""

    def seconds(self, *ways: Way) -> list[float]:
        """Return the times of the way that is fastest by its median."""
        return min(
            ([t.seconds for t in self[w.name]] for w in ways), key=lambda s: percentile(s, 0.5)
        )


def measure_fetch(_: LocalCluster, say: Callable[[str], None]) -> list[Figure]:
    """Fetch on the loopback and over slow connections."""
    figures: list[Figure] = []
    with in_memory() as scratch:
        source, target = scratch / "source", scratch / "target"
        write_random(source, SIZE_BYTES)
        part = replace(digest_file(source, sync=False), name="pages.img")
        for speed in (LOOPBACK, SLOW):
            with bucket_server(scratch, speed, [(_NAME, source)]) as server:
                rendered = replace(part, generation=server.generation(_NAME)).to_object()
                order = Order(server.endpoint, BUCKET, _NAME, str(target), CONNECTIONS, rendered)
                ways = [PODSNAP_FETCH, *(PLAIN[:1] if speed.is_limited else PLAIN), *LIBRARY_FETCH]
                copy = gcloud_copy(server, order)
                turns = Turns(ways, order, speed, partial(target.unlink, missing_ok=True), copy)
                figures += _fetch_figures(turns.take(say), speed)
    return figures


def measure_upload(_: LocalCluster, say: Callable[[str], None]) -> list[Figure]:
    """Upload on the loopback and over slow connections."""
    figures: list[Figure] = []
    with in_memory() as scratch:
        source = scratch / "source"
        write_random(source, SIZE_BYTES)
        for speed in (LOOPBACK, SLOW):
            with bucket_server(scratch, speed) as server:
                order = Order(server.endpoint, BUCKET, _NAME, str(source), CONNECTIONS)
                copy = gcloud_copy(server, order, up=True)
                ways = [PODSNAP_UPLOAD, LIBRARY_UPLOAD]
                turns = Turns(ways, order, speed, server.remove_objects, copy)
                figures += _upload_figures(turns.take(say), speed)
    return figures


def write_random(path: Path, size_bytes: int) -> None:
    """Write bytes that no compression makes smaller."""
    with path.open("wb") as file:
        for _ in range(size_bytes // _BLOCK_BYTES):
            file.write(os.urandom(_BLOCK_BYTES))


@contextmanager
def in_memory() -> Iterator[Path]:
    """Return a directory in memory, for the time of the block."""
    with TemporaryDirectory(prefix="podsnap-bench-", dir="/dev/shm") as scratch:
        yield Path(scratch)


@dataclass(slots=True)
class Turns:
    """The ways that take turns, and what clears away after each."""

    ways: Sequence[Way]
    order: Order
    speed: Speed
    clear: Callable[[], None]
    gcloud: GcloudCopy | None

    def take(self, say: Callable[[str], None]) -> Table:
        """Take all turns; on the loopback one goes before that does not count."""
        table = Table()
        for number in range(0 if self.speed.is_limited else -1, ROUNDS):
            turn = number % len(self.ways)
            for way in (*self.ways[turn:], *self.ways[:turn]):
                taken = transfer(way, self.order)
                self.clear()
                if number >= 0:
                    table.setdefault(way.name, []).append(taken)
            if number >= 0:
                self._take_gcloud(table, say)
            last = ", ".join(f"{name} {taken[-1].seconds:.2f} s" for name, taken in table.items())
            say(f"{self.speed.name} {number + 1}/{ROUNDS}  {last}")
        return table

    def _take_gcloud(self, table: Table, say: Callable[[str], None]) -> None:
        """Let gcloud copy, if this release can be made to speak to the double."""
        if self.gcloud is None:
            return
        try:
            table.setdefault(self.gcloud.name, []).append(Taken(*self.gcloud.run()))
        except BenchError as error:
            del table[self.gcloud.name]
            self.gcloud = None
            say(str(error).replace("\n", " ")[:200])
        else:
            self.clear()


def transfer(way: Way, order: Order) -> Taken:
    """Move the bytes once, in a process of its own.

    Raises:
        BenchError: it failed; the text has what the process said last.
    """
    words = [sys.executable, str(_TRANSFER), way.word]
    ended = subprocess.run(
        words,
        input=replace(order, connections=way.connections).to_json(),
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )
    if ended.returncode:
        raise BenchError(f"{way.name} failed: {ended.stderr.strip()[-500:]}")
    told = json.loads(ended.stdout)
    return Taken(told["seconds"], told["processor_s"], told["peak_mib"])


def _fetch_figures(table: Table, speed: Speed) -> Iterator[Figure]:
    part, where = "fetch", speed.name
    yield from _times(part, table, speed, "2 GiB into a file in memory")
    ours = table.seconds(PODSNAP_FETCH)
    on_loopback = speed is LOOPBACK
    yield Figure.ratio(
        table.seconds(*LIBRARY_FETCH),
        ours,
        part=part,
        name=f"{where}: library : podsnap",
        target=Target(limit=3, at_least=True) if on_loopback else None,
        covers="transfer_manager with threads or processes, whichever is faster, with its "
        "checksum; podsnap compares every byte with CRC32C and BLAKE3",
    )
    yield Figure.ratio(
        table.seconds(*(way for way in PLAIN if way.name in table)),
        ours,
        part=part,
        name=f"{where}: http.client : podsnap",
        target=Target(limit=0.8, at_least=True) if on_loopback else None,
        covers="the same bytes into the same file and nothing compared, over one connection or "
        "as many as podsnap, whichever is faster",
    )
    yield _processor(part, where, table[PODSNAP_FETCH.name], 1.0 if on_loopback else None)
    yield _memory(part, where, table[PODSNAP_FETCH.name])


def _upload_figures(table: Table, speed: Speed) -> Iterator[Figure]:
    part, where = "upload", speed.name
    yield from _times(part, table, speed, "2 GiB from a file in memory")
    yield Figure.ratio(
        table.seconds(LIBRARY_UPLOAD),
        table.seconds(PODSNAP_UPLOAD),
        part=part,
        name=f"{where}: library : podsnap",
        target=Target(limit=6 if speed.is_limited else 0.9, at_least=True),
        covers="one resumable stream by the library; podsnap uploads parts and composes them",
    )
    yield _processor(part, where, table[PODSNAP_UPLOAD.name], None)
    yield _memory(part, where, table[PODSNAP_UPLOAD.name])


def _times(part: str, table: Table, speed: Speed, covers: str) -> Iterator[Figure]:
    for name, taken in table.items():
        yield Figure.of(
            [t.seconds for t in taken],
            part=part,
            name=f"{speed.name}: {name}",
            unit="s",
            covers=f"{covers}; {speed.covers}",
        )


def _processor(part: str, where: str, taken: list[Taken], limit: float | None) -> Figure:
    return Figure.of(
        [t.processor_s * GIB / SIZE_BYTES for t in taken],
        part=part,
        name=f"{where}: podsnap, processor per GiB",
        unit="s",
        target=None if limit is None else Target(limit=limit),
        covers="user and system time of the client's process, without its start",
    )


def _memory(part: str, where: str, taken: list[Taken]) -> Figure:
    return Figure.of(
        [t.peak_mib for t in taken],
        part=part,
        name=f"{where}: podsnap, memory",
        unit="MiB",
        target=Target(limit=350),
        covers="largest resident set of the client's process, with Python and all libraries",
    )
