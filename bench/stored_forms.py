# SPDX-License-Identifier: Apache-2.0
"""Plain or compressed: what a save and a restore take by the speed of the link.

The image looks like the memory of a service: half of it zero, a quarter text that shrinks, the rest
bytes that do not. A save packs and uploads, a restore fetches, unpacks and compares; all of it lies
in memory. The trap: the link decides, so neither form is better everywhere.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from bucket_server import BUCKET, LOOPBACK, Speed, bucket_server
from bucket_transfers import CONNECTIONS, PODSNAP_FETCH, PODSNAP_UPLOAD, in_memory, transfer
from figure import Figure
from transfer import Order

from localcluster.cluster import LocalCluster
from nodeexec.encoding import encode_file
from nodeexec.image import digest_file
from schemas.encoding import Encoding
from schemas.manifest import Part

SIZE_BYTES: Final = 512 << 20
ROUNDS: Final = 3
SPEEDS: Final = (
    *(Speed(f"{n} MB/s", total_mb_s=n, latency_ms=20) for n in (50, 200, 500)),
    LOOPBACK,
)
_BLOCK_BYTES: Final = 1 << 20


@dataclass(slots=True)
class _Form:
    """One form of the image, and what it took at one speed."""

    name: str
    part: Part
    pack_s: float = 0.0
    save_s: list[float] = field(default_factory=list)
    restore_s: list[float] = field(default_factory=list)

    def round(self, endpoint: str, scratch: Path, generation: Callable[[str], int]) -> None:
        """Save and restore once."""
        name = f"snapshot/{self.part.object_name}"
        stored, target = scratch / self.part.object_name, scratch / "target"
        up = Order(endpoint, BUCKET, name, str(stored), CONNECTIONS)
        self.save_s.append(self.pack_s + transfer(PODSNAP_UPLOAD, up).seconds)
        part = replace(self.part, generation=generation(name)).to_object()
        down = Order(endpoint, BUCKET, name, str(target), CONNECTIONS, part)
        self.restore_s.append(transfer(PODSNAP_FETCH, down).seconds)
        target.unlink()


def measure(_: LocalCluster, say: Callable[[str], None]) -> list[Figure]:
    """Compare both forms at several speeds."""
    figures: list[Figure] = []
    with in_memory() as scratch:
        path = scratch / "pages.img"
        write_memory(path, SIZE_BYTES)
        plain = digest_file(path, sync=False)
        began_s = time.monotonic()
        packed = replace(plain, stored=encode_file(path, Encoding.ZSTD))
        pack_s = time.monotonic() - began_s
        say(f"zstd: {packed.stored_bytes / SIZE_BYTES:.0%} of it, packed in {pack_s:.1f} s")
        for speed in SPEEDS:
            forms = [_Form("raw", plain), _Form("zstd", packed, pack_s)]
            with bucket_server(scratch, speed) as server:
                for number in range(ROUNDS):
                    for form in forms[:: 1 if number % 2 else -1]:
                        form.round(server.endpoint, scratch, server.generation)
                        server.remove_objects()
            figures += _figures(speed, *forms)
            last = (f"{f.name} {f.save_s[-1]:.1f} + {f.restore_s[-1]:.1f} s" for f in forms)
            say(f"{speed.name}  {', '.join(last)}")
    return figures


def write_memory(path: Path, size_bytes: int) -> None:
    """Write blocks of zeros, of text, and of bytes that nothing makes smaller."""
    text = "".join(f'{{"id": {n}, "name": "item {n % 97}"}}\n' for n in range(_BLOCK_BYTES // 24))
    kinds = (bytes(_BLOCK_BYTES), text.encode()[:_BLOCK_BYTES], bytes(_BLOCK_BYTES))
    with path.open("wb") as file:
        for number in range(size_bytes // _BLOCK_BYTES):
            file.write(kinds[number % 4] if number % 4 < len(kinds) else os.urandom(_BLOCK_BYTES))


def _figures(speed: Speed, raw: _Form, zstd: _Form) -> Iterator[Figure]:
    for what, upper, lower in (
        ("save", raw.save_s, zstd.save_s),
        ("restore", raw.restore_s, zstd.restore_s),
    ):
        for form, seconds in (("raw", upper), ("zstd", lower)):
            yield Figure.of(
                seconds,
                part="forms",
                name=f"{speed.name}: {what}, {form}",
                unit="s",
                covers=f"512 MiB in memory, half of it zero; {speed.covers}",
            )
        yield Figure.ratio(
            upper,
            lower,
            part="forms",
            name=f"{speed.name}: {what}, raw : zstd",
            covers="above 1 compression is faster at this speed",
        )
