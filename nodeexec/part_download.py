# SPDX-License-Identifier: Apache-2.0
"""One part of an image, from the bucket into a file, compared with the manifest on its way."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from backends.objects.interface import ObjectStore
from nodeexec.image import PartHasher
from schemas.manifest import CHUNK_BYTES, Part

_BUFFER_BYTES: Final = 1 << 20


class DamagedError(Exception):
    """The bytes in the bucket are not those that were saved; the text names the part."""


def download_part(
    store: ObjectStore,
    folder: str,
    part: Part,
    path: Path,
    *,
    on_block: Callable[[bytes], None],
) -> None:
    """Write a part to a file and fsync it.

    Raises:
        DamagedError: a chunk is not the one of the manifest.
        StoreError: the bucket did not answer.
    """
    name = f"{folder}/{part.object_name}"

    def compare(index: int, found: bytes) -> None:
        if found != part.digest_of(index):
            raise DamagedError(
                f"part {part.name}, chunk {index} (from byte {index * CHUNK_BYTES}) differs from "
                "the manifest"
            )

    info = store.stat(name, generation=part.generation)
    if info is None:
        raise DamagedError(f"part {part.name} is missing or was replaced")
    if info.size_bytes != part.stored_bytes:
        raise DamagedError(
            f"part {part.name} has {info.size_bytes} bytes, the manifest says {part.stored_bytes}"
        )
    hasher = PartHasher(part.name, on_chunk=compare)
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with store.open_range(
            name, generation=part.generation, start=0, end=part.length_bytes
        ) as stream:
            while count := stream.readinto(buffer):
                block = bytes(buffer[:count])
                hasher.update(block)
                os.write(target, block)
                on_block(block)
        os.fsync(target)
    finally:
        os.close(target)
    found = hasher.part()
    if (found.length_bytes, found.crc32c) != (part.length_bytes, part.crc32c):
        raise DamagedError(f"part {part.name} differs from the manifest")
