# SPDX-License-Identifier: Apache-2.0
"""A checkpoint image on disk: is it whole, and what is in it?

runsc writes ``checkpoint.img`` (the kernel's objects behind a header), ``pages_meta.img`` and
``pages.img``. It checks nothing of the pages at restore and never calls fsync, so both are done
here: an image is *sealed* when its files are durable and their digests known.
"""

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import blake3
import google_crc32c

from schemas.manifest import CHUNK_BYTES, Part

STATE_FILE: Final = "checkpoint.img"
PARTS: Final = (STATE_FILE, "pages_meta.img", "pages.img")
METADATA_PART: Final = "metadata"
_MAGIC: Final = b"gVisorSF"
_HEADER_LIMIT_BYTES: Final = 64 << 20
_BLOCK_BYTES: Final = 4 << 20
# The specs hold every environment variable in clear; the bucket's small file leaves them out.
_PUBLIC_KEYS: Final = ("runsc_version", "container_count", "network", "compression", "timestamp")


class ImageError(Exception):
    """The directory holds no complete image; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What the header of ``checkpoint.img`` says."""

    runsc_version: str
    container_count: int
    container_names: tuple[str, ...]
    public: dict[str, str]
    parts: tuple[str, ...] = PARTS


def inspect(directory: Path) -> ImageInfo:
    """Read an image's header and check that all files are there (executor rule 6).

    Raises:
        ImageError: a file is missing or empty, or the header is not gVisor's.
    """
    for name in PARTS:
        path = directory / name
        if not path.is_file() or path.stat().st_size == 0:
            raise ImageError(f"{name} is missing or empty")
    with (directory / STATE_FILE).open("rb") as file:
        magic = file.read(8)
        if magic != _MAGIC:
            raise ImageError(f"{STATE_FILE} does not begin like a gVisor state file")
        try:
            (length,) = struct.unpack(">Q", file.read(8))
            if length > _HEADER_LIMIT_BYTES:
                raise ImageError(f"{STATE_FILE} claims a header of {length} bytes")
            header = json.loads(file.read(length))
            specs = json.loads(header.get("container_specs") or "{}")
            return ImageInfo(
                runsc_version=header["runsc_version"],
                container_count=int(header["container_count"]),
                container_names=tuple(sorted(specs)),
                public={k: header[k] for k in _PUBLIC_KEYS if k in header},
            )
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ImageError(f"the header of {STATE_FILE} cannot be read ({error!r})") from error


def inspect_files(directory: Path, containers: tuple[str, ...]) -> ImageInfo:
    """Check that the tar file of every container's root file system is there.

    Raises:
        ImageError: one is missing or empty; a file system without changes has a tar file too.
    """
    parts = tuple(f"{name}.tar" for name in containers)
    for name in parts:
        path = directory / name
        if not path.is_file() or path.stat().st_size == 0:
            raise ImageError(f"{name} is missing or empty")
    return ImageInfo(
        runsc_version="",
        container_count=len(containers),
        container_names=containers,
        public={"scope": "rootfs-only"},
        parts=parts,
    )


def seal(directory: Path, info: ImageInfo) -> tuple[Part, ...]:
    """Make an image durable and compute its digests; adds the small ``metadata`` file."""
    metadata = directory / METADATA_PART
    metadata.write_text(json.dumps(info.public, sort_keys=True) + "\n", encoding="utf-8")
    parts = tuple(digest_file(directory / name) for name in (*info.parts, METADATA_PART))
    sync_directory(directory)
    return parts


def digest_file(path: Path, *, sync: bool = True) -> Part:
    """Read a file once for its length, CRC32C and per-chunk BLAKE3, and fsync it."""
    hasher = PartHasher(path.name)
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            hasher.update(block)
        if sync:
            os.fsync(file.fileno())
    return hasher.part()


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class PartHasher:
    """Digests of one part while its bytes pass, in any block size."""

    def __init__(self, name: str, *, on_chunk: Callable[[int, bytes], None] | None = None) -> None:
        """``on_chunk`` is called with index and BLAKE3 of each chunk as it completes."""
        self._name = name
        self._on_chunk = on_chunk
        self._crc = google_crc32c.Checksum()
        self._chunk = blake3.blake3()
        self._in_chunk_bytes = 0
        self._length_bytes = 0
        self._digests = bytearray()
        self._count = 0

    def update(self, block: bytes) -> None:
        """Add bytes."""
        self._crc.update(block)
        self._length_bytes += len(block)
        view = memoryview(block)
        while view:
            room = CHUNK_BYTES - self._in_chunk_bytes
            piece = view[:room]
            self._chunk.update(piece)
            self._in_chunk_bytes += len(piece)
            view = view[room:]
            if self._in_chunk_bytes == CHUNK_BYTES:
                self._close_chunk()

    def part(self) -> Part:
        """Return the digests of everything added."""
        import base64

        if self._in_chunk_bytes or not self._count:
            self._close_chunk()
        return Part(
            name=self._name,
            length_bytes=self._length_bytes,
            crc32c=base64.b64encode(self._crc.digest()).decode(),
            digests=bytes(self._digests),
        )

    def _close_chunk(self) -> None:
        digest = self._chunk.digest()
        self._digests += digest
        if self._on_chunk:
            self._on_chunk(self._count, digest)
        self._count += 1
        self._chunk = blake3.blake3()
        self._in_chunk_bytes = 0
