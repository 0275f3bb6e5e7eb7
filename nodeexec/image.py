# SPDX-License-Identifier: Apache-2.0
"""A checkpoint image on disk: is it whole, and what is in it?

runsc writes ``checkpoint.img`` (the kernel's objects behind a header), ``pages_meta.img`` and
``pages.img``. It checks nothing of the pages at restore and never calls fsync, so both are done
here: an image is *sealed* when its files are durable and their digests known.
"""

import base64
import json
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import blake3
import google_crc32c

from nodeexec.encoding import encode_file
from schemas.encoding import Encoding
from schemas.manifest import CHUNK_BYTES, Part

STATE_FILE: Final = "checkpoint.img"
PAGES_FILE: Final = "pages.img"
TAR_SUFFIX: Final = ".tar"
PARTS: Final = (STATE_FILE, "pages_meta.img", PAGES_FILE)
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
    parts = tuple(f"{name}{TAR_SUFFIX}" for name in containers)
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


def seal(directory: Path, info: ImageInfo, encoding: Encoding = Encoding.RAW) -> tuple[Part, ...]:
    """Make an image durable and compute its digests; adds the small ``metadata`` file.

    What is large is encoded, too, into files beside it.
    """
    metadata = directory / METADATA_PART
    metadata.write_text(json.dumps(info.public, sort_keys=True) + "\n", encoding="utf-8")
    parts = []
    for name in (*info.parts, METADATA_PART):
        part = digest_file(directory / name)
        is_large = name == PAGES_FILE or name.endswith(TAR_SUFFIX)
        if is_large and encoding is not Encoding.RAW:
            part = replace(part, stored=encode_file(directory / name, encoding))
        parts.append(part)
    sync_directory(directory)
    return tuple(parts)


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


def write_durably(path: Path, data: bytes) -> None:
    """Replace a small file: it is there whole, or as it was; nobody else may read it."""
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "wb", opener=_private) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class PartHasher:
    """Digests of one part while its bytes pass, in any block size."""

    def __init__(self, name: str) -> None:
        """Begin without a byte."""
        self._name = name
        self._crc = google_crc32c.Checksum()
        self._chunk = blake3.blake3()
        self._in_chunk_bytes = 0
        self._length_bytes = 0
        self._digests = bytearray()

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
        if self._in_chunk_bytes or not self._digests:
            self._close_chunk()
        return Part(
            name=self._name,
            length_bytes=self._length_bytes,
            crc32c=base64.b64encode(self._crc.digest()).decode(),
            digests=bytes(self._digests),
        )

    def _close_chunk(self) -> None:
        self._digests += self._chunk.digest()
        self._chunk = blake3.blake3()
        self._in_chunk_bytes = 0
