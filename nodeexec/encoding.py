# SPDX-License-Identifier: Apache-2.0
"""Chunks in the form in which they are stored, each by itself, so that any one can be read alone.

The trap: a frame's header says how much it holds, and a few bytes may claim terabytes. So a frame
is unpacked into room that was there before, and what does not fill it exactly is damage.
"""

import base64
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import google_crc32c
import zstandard

from schemas.encoding import Encoding
from schemas.manifest import CHUNK_BYTES, Stored

# The upload waits for it, and other Pods of the node want their cores.
_LEVEL: Final = 1
_THREADS: Final = 4
_BATCH: Final = 32
ZEROS: Final = bytes(CHUNK_BYTES)


class EncodingError(Exception):
    """A stored chunk is none of its length."""


def encode_file(path: Path, encoding: Encoding) -> Stored:
    """Write a file's chunks, encoded, into a file beside it, and fsync that."""
    lengths: list[int] = []
    checksum = google_crc32c.Checksum()
    with (
        path.open("rb") as source,
        path.with_name(path.name + encoding).open("wb") as target,
        ThreadPoolExecutor(_THREADS, thread_name_prefix="encode") as pool,
    ):
        for batch in _batches(source.fileno(), path.stat().st_size):
            for frame in pool.map(_encoded, batch):
                target.write(frame)
                checksum.update(frame)
                lengths.append(len(frame))
        target.flush()
        os.fsync(target.fileno())
    return Stored(encoding, base64.b64encode(checksum.digest()).decode(), tuple(lengths))


def decode_chunk(frame: memoryview, into: memoryview) -> None:
    """Unpack a stored chunk.

    Raises:
        EncodingError: it does not hold exactly as many bytes as there is room for.
    """
    if not frame:
        into[:] = ZEROS[: len(into)]
        return
    filled = 0
    try:
        with zstandard.ZstdDecompressor(max_window_size=CHUNK_BYTES).stream_reader(frame) as reader:
            while filled < len(into) and (count := reader.readinto(into[filled:])):
                filled += count
            if filled < len(into) or reader.read(1):
                raise EncodingError(f"a chunk does not hold the {len(into)} bytes that it should")
    except zstandard.ZstdError as error:
        raise EncodingError(f"a chunk cannot be unpacked ({error})") from error


def _batches(descriptor: int, size_bytes: int) -> Iterator[list[bytes]]:
    starts = range(0, max(size_bytes, 1), CHUNK_BYTES)
    for first in range(0, len(starts), _BATCH):
        yield [os.pread(descriptor, CHUNK_BYTES, at) for at in starts[first : first + _BATCH]]


def _encoded(chunk: bytes) -> bytes:
    if chunk == ZEROS[: len(chunk)]:
        return b""
    return zstandard.ZstdCompressor(level=_LEVEL).compress(chunk)
