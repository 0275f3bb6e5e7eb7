# SPDX-License-Identifier: Apache-2.0
"""One transfer, in a process of its own: ``transfer.py WAY`` reads its order on stdin.

It says on stdout how long it took and what it cost, as JSON. Processor time is that of this process
and of its children. The trap is what comes before: imports, clients and pools are made, and the
object is looked at, before the clock starts; the first connection belongs to the transfer.
"""

import http.client
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from backends.objects.interface import ObjectStore

_BUFFER_BYTES = 1 << 20
_PIECE_BYTES = 32 << 20
_LIMIT_S = 300.0
_ANONYMOUS = "not-secret"
Ready = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be moved: for our own reader the manifest's ``part``, or a whole ``snapshot``."""

    endpoint: str
    bucket: str
    name: str
    path: str
    connections: int
    part: dict[str, Any] | None = None
    snapshot: dict[str, Any] | None = None

    def to_json(self) -> str:
        """Render for another process."""
        return json.dumps(asdict(self))

    def range_of(self, generation: int) -> str:
        """Return the address of the object's bytes."""
        name = quote(self.name, safe="")
        return f"/storage/v1/b/{self.bucket}/o/{name}?alt=media&generation={generation}"


def _plain(order: Order) -> Ready:
    """The same bytes by ``http.client`` into the same file; nothing is compared."""
    from schemas.manifest import Part

    part = Part.parse(order.part or {})
    host = urlsplit(order.endpoint)
    target = os.open(order.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    pieces = [
        (start, min(start + _PIECE_BYTES, part.length_bytes))
        for start in range(0, part.length_bytes, _PIECE_BYTES)
    ]

    def stream(worker: int) -> None:
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        line = http.client.HTTPConnection(host.hostname or "", host.port, timeout=_LIMIT_S)
        for start, end in pieces[worker :: order.connections]:
            headers = {"Range": f"bytes={start}-{end - 1}", "Authorization": f"Bearer {_ANONYMOUS}"}
            line.request("GET", order.range_of(part.generation), headers=headers)
            answer = line.getresponse()
            if answer.status != http.client.PARTIAL_CONTENT:
                raise OSError(f"the server answered {answer.status}: {answer.read(300)!r}")
            at = start
            while count := answer.readinto(buffer):
                os.pwrite(target, buffer[:count], at)
                at += count
            if at != end:
                raise OSError(f"the stream ended at {at} instead of {end}")
        line.close()

    pool = ThreadPoolExecutor(order.connections)
    return lambda: list(pool.map(stream, range(order.connections)))


def _library(order: Order) -> Any:  # noqa: ANN401 - the library is not typed
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    client = storage.Client(
        project="bench",
        credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]  # as it is
        client_options={"api_endpoint": order.endpoint},
    )
    return client.bucket(order.bucket).blob(order.name)


def _library_in_parallel(order: Order, worker_type: str) -> Ready:
    from google.cloud.storage import transfer_manager

    blob = _library(order)
    blob.reload()
    return lambda: transfer_manager.download_chunks_concurrently(
        blob,
        order.path,
        chunk_size=_PIECE_BYTES,
        worker_type=worker_type,
        max_workers=order.connections,
    )


def _library_stream(order: Order) -> Ready:
    blob = _library(order)
    return lambda: blob.upload_from_filename(
        order.path, if_generation_match=0, timeout=_LIMIT_S, checksum="crc32c"
    )


def open_bucket(order: Order) -> "ObjectStore":
    """Open the order's bucket by podsnap's own client."""
    from backends.objects.access_token import AccessToken
    from backends.objects.factory import BucketAccess, open_store

    token = AccessToken(_ANONYMOUS, time.time() + 3600)
    access = BucketAccess(endpoint=order.endpoint, connections=order.connections)
    return open_store(order.bucket, access, tokens=lambda: token)


def _podsnap_fetch(order: Order) -> Ready:
    from nodeexec.part_download import download_part
    from schemas.manifest import Part

    store, part = open_bucket(order), Part.parse(order.part or {})
    folder = order.name.rpartition("/")[0]
    return lambda: download_part(
        store,
        folder,
        part,
        Path(order.path),
        connections=order.connections,
        slots=threading.BoundedSemaphore(order.connections),
        on_bytes=lambda _: None,
    )


def _podsnap_upload(order: Order) -> Ready:
    store = open_bucket(order)
    return lambda: store.put_file(
        order.name, Path(order.path), if_generation_match=0, metadata={"podsnap-cluster": "bench"}
    )


def _ten_restores(order: Order) -> Ready:
    """As ten sandboxes ask for an image that is not there, and then ten more."""
    import shutil

    from nodeexec.node_cache import NodeCache
    from schemas.snapshot import Snapshot

    snapshot = Snapshot.parse(order.snapshot or {})
    shutil.rmtree(order.path, ignore_errors=True)
    cache = NodeCache(Path(order.path), connections=order.connections)

    def ask() -> None:
        with ThreadPoolExecutor(10) as pool:
            asked = [
                pool.submit(cache.fetch, snapshot, lambda: open_bucket(order)) for _ in range(10)
            ]
            found = {future.result() for future in asked}
        if len(found) != 1:
            raise OSError(f"one image is in {len(found)} places")

    def both() -> None:
        ask()
        ask()

    return both


WAYS: dict[str, Callable[[Order], Ready]] = {
    "plain": _plain,
    "library, threads": lambda order: _library_in_parallel(order, "thread"),
    "library, processes": lambda order: _library_in_parallel(order, "process"),
    "podsnap fetch": _podsnap_fetch,
    "library, one stream": _library_stream,
    "podsnap upload": _podsnap_upload,
    "ten restores": _ten_restores,
}


def _processor_s() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def _peak_kib() -> int:
    """Return the largest resident set; ``getrusage`` would tell that of who forked us, too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def main() -> None:
    """Do what the order says and tell what it took."""
    move = WAYS[sys.argv[1]](Order(**json.load(sys.stdin)))
    processor_s, began_s = _processor_s(), time.monotonic()
    move()
    taken_s = time.monotonic() - began_s
    told = {
        "seconds": taken_s,
        "processor_s": _processor_s() - processor_s,
        "peak_mib": _peak_kib() / 1024,
    }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
