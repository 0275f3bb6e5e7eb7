# SPDX-License-Identifier: Apache-2.0
"""Packs, judged by what they say of themselves before anything is unpacked.

A few kilobytes can unpack to gigabytes, plainly or as a delta that copies one block again and
again. Every entry says how large it will be, and zlib is not read beyond that, so the sum is known
while the largest thing in memory is still the pack itself.
"""

import io
import zlib
from collections.abc import Callable
from typing import Final

from dulwich.errors import ApplyDeltaError, ChecksumMismatch, FileFormatException
from dulwich.object_format import DEFAULT_OBJECT_FORMAT
from dulwich.object_store import MemoryObjectStore
from dulwich.pack import PackData, PackInflater, UnresolvedDeltas

from backends.git.errors import FetchFailed, LimitExceeded
from backends.git.limits import ENTRIES, FILE_BYTES, UNPACKED_BYTES

_HEADER_BYTES: Final = 12
_TRAILER_BYTES: Final = 20
_OFFSET_DELTA, _REFERENCE_DELTA = 6, 7
_OFTEN: Final = 1000
_SLICE_BYTES: Final = 1 << 16
_DAMAGED: Final = (
    zlib.error,
    IndexError,
    KeyError,
    ValueError,
    AssertionError,
    ChecksumMismatch,
    ApplyDeltaError,
    FileFormatException,
)


def unpack(
    pack: bytes, store: MemoryObjectStore, in_time: Callable[[], object] = lambda: None
) -> None:
    """Put the objects of a pack into a store.

    ``in_time`` is asked now and then, and raises if there is no time left.

    Raises:
        LimitExceeded: it would need more memory than policies ever do.
        FetchFailed: it is damaged.
    """
    if not pack:
        return
    try:
        check(pack, in_time)
        file = io.BytesIO(pack)
        with PackData.from_file(file, DEFAULT_OBJECT_FORMAT, len(pack)) as data:
            data.check()
            inflated = PackInflater.for_pack_data(data, store.get_raw)
            for number, unpacked in enumerate(inflated):
                if number % _OFTEN == 0:
                    in_time()
                store.add_object(unpacked)
    except (*_DAMAGED, UnresolvedDeltas) as error:
        raise FetchFailed(f"the server sent a damaged pack ({error}); it is tried again") from error


def check(pack: bytes, in_time: Callable[[], object] = lambda: None) -> None:
    """Walk a pack's entries without keeping what they hold.

    Raises:
        LimitExceeded: the objects are larger or more than may be unpacked.
    """
    if pack[:4] != b"PACK":
        raise ValueError("it does not begin as a pack")
    offset, total_bytes = _HEADER_BYTES, 0
    count = int.from_bytes(pack[8:_HEADER_BYTES], "big")
    if count > ENTRIES:
        raise LimitExceeded(
            f"the commit holds {count} objects, more than {ENTRIES}; nothing of it was unpacked. "
            "Keep the policies in a repository of their own"
        )
    for number in range(count):
        if number % _OFTEN == 0:
            in_time()
        size_bytes = entry_size(pack, offset)
        total_bytes += size_bytes
        if total_bytes > UNPACKED_BYTES:
            raise LimitExceeded(
                f"the commit holds more than {UNPACKED_BYTES >> 20} MiB of files, the last one "
                f"looked at {size_bytes >> 20} MiB; nothing of it was unpacked. Keep the policies "
                "in a repository of their own, without large files"
            )
        offset = _skip(pack, offset)
    if offset + _TRAILER_BYTES != len(pack):
        raise ValueError("its length is not that of its entries")


def entry_size(pack: bytes, offset: int) -> int:
    """Return how many bytes an entry has when unpacked; its first 200 bytes are enough.

    For a delta that is the size of what it makes, or its own if that is larger.
    """
    size_bytes, data = _entry(pack, offset)
    if (pack[offset] >> 4) & 7 in {_OFFSET_DELTA, _REFERENCE_DELTA}:
        head = zlib.decompressobj().decompress(memoryview(pack)[data : data + 128], 32)
        _, position = _varint(head, 0)
        size_bytes = max(size_bytes, _varint(head, position)[0])
    return size_bytes


def too_large(name: str, size_bytes: int) -> LimitExceeded:
    """Return the error for one file."""
    return LimitExceeded(
        f"{name}:1:1: the file has {size_bytes} bytes, more than the {FILE_BYTES >> 20} MiB that a "
        "file of manifests may have; remove it or point spec.path at the policies' folder"
    )


def _entry(pack: bytes, offset: int) -> tuple[int, int]:
    """Return an entry's own size and where its zlib stream begins."""
    kind = (pack[offset] >> 4) & 7
    size_bytes, shift = pack[offset] & 15, 4
    position = offset + 1
    while pack[position - 1] & 0x80:
        size_bytes |= (pack[position] & 0x7F) << shift
        shift += 7
        position += 1
    if kind == _OFFSET_DELTA:
        while pack[position] & 0x80:
            position += 1
        position += 1
    elif kind == _REFERENCE_DELTA:
        position += _TRAILER_BYTES
    return size_bytes, position


def _skip(pack: bytes, offset: int) -> int:
    """Return where an entry ends; zlib tells only by being read."""
    size_bytes, position = _entry(pack, offset)
    view = memoryview(pack)
    stream, seen_bytes = zlib.decompressobj(), 0
    while not stream.eof:
        data = view[position : position + _SLICE_BYTES]
        if not data:
            raise ValueError("it ends within an entry")
        position += len(data)
        seen_bytes += len(stream.decompress(data, size_bytes - seen_bytes + 1))
        if stream.unconsumed_tail and seen_bytes > size_bytes:
            raise ValueError("an entry is larger than it says")
        position -= len(stream.unconsumed_tail) + len(stream.unused_data)
    return position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if not byte & 0x80:
            return value, position
