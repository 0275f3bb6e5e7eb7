# SPDX-License-Identifier: Apache-2.0
"""An image says what its bytes are, or nothing: files as gVisor writes them, made by hand."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from nodeexec.saved_sizes import saved_sizes
from schemas.snapshot import SizeParts

PAGE = 4096
ANONYMOUS, TMPFS = 1, 3
STATE_BYTES = 1000
# A type with one field, then one object of it whose slice is nil: no file of its own.
TYPE = b"\x11\x01T\x01\x06owners"
NO_OWNERS = TYPE + b"\x02\x01\x0b\x01\x05"


def varint(number: int) -> bytes:
    """Return a number as both encodings have it."""
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def text(value: str) -> bytes:
    """Return a text of a stateify stream."""
    return varint(7) + varint(len(value)) + value.encode()


def memory_file(pages: Mapping[int, int], *, version: int = 1) -> bytes:
    """Return a memory file's metadata: pages by kind, and as many that were never touched."""
    message, at = b"\x08" + varint(version), 0
    for kind, count in pages.items():
        for committed in (1, 0):
            end = at + count * PAGE
            piece = b"\x08" + varint(at) + b"\x10" + varint(end) + b"\x18" + varint(kind)
            piece += b"\x28\x01" if committed else b""
            message += b"\x1a" + varint(len(piece)) + piece
            at = end
    return len(message).to_bytes(8, "little") + message


def owners(paths: Iterable[str]) -> bytes:
    """Return the stream that names the mount points."""
    paths = list(paths)
    if not paths:
        return varint(1 | 1 << 63) + NO_OWNERS
    count = varint(len(paths))
    fields = [b"\x02" + b"\x0d\x02" + text("main") + text(path) for path in paths]
    # Go's slices grow in steps, so one place of the array is empty.
    capacity = varint(len(paths) + 1)
    array = b"\x09" + capacity + b"\x0b" + b"".join(fields) + b"\x02\x0d\x02\x05\x05"
    one = (
        TYPE + b"\x11\x01R\x02\x01a\x01b" + b"\x02\x01\x0b\x01\x08" + count + capacity + b"\x02\x00"
    )
    return varint(2 | 1 << 63) + one + b"\x02\x02" + array


def write(directory: Path, main: Mapping[int, int], others: Mapping[str, Mapping[int, int]]) -> int:
    """Write an image; returns its size."""
    meta = memory_file(main) + owners(others) + b"".join(map(memory_file, others.values()))
    pages = sum(main.values()) + sum(sum(f.values()) for f in others.values())
    (directory / "pages_meta.img").write_bytes(meta)
    (directory / "pages.img").write_bytes(bytes(pages * PAGE))
    (directory / "checkpoint.img").write_bytes(bytes(STATE_BYTES))
    return STATE_BYTES + len(meta) + pages * PAGE


def test_the_parts_of_an_image_add_up_to_its_size(tmp_path: Path) -> None:
    """Pages of each file go to their part, everything else is memory."""
    size_bytes = write(
        tmp_path,
        {ANONYMOUS: 100, TMPFS: 5},
        {"/": {TMPFS: 30}, "/data": {TMPFS: 20}, "/podsnap/cache": {TMPFS: 1000}},
    )
    found = saved_sizes(tmp_path, size_bytes)
    assert found is not None
    assert (found.rootfs_bytes, found.volumes_bytes) == (30 * PAGE, 1025 * PAGE)
    assert found.memory_bytes == size_bytes - found.rootfs_bytes - found.volumes_bytes
    assert found.gpu_bytes == 0


def test_an_image_without_changed_files_is_memory(tmp_path: Path) -> None:
    """Then no memory file but the main one is there."""
    size_bytes = write(tmp_path, {ANONYMOUS: 100}, {})
    assert saved_sizes(tmp_path, size_bytes) == SizeParts(memory_bytes=size_bytes)


def test_files_alone_are_changes_of_root_file_systems(tmp_path: Path) -> None:
    """There is nothing else in them."""
    (tmp_path / "main.tar").write_bytes(bytes(1024))
    assert saved_sizes(tmp_path, 1100) == SizeParts(rootfs_bytes=1100)


GOOD = memory_file({ANONYMOUS: 1}) + owners(())
UNREADABLE = {
    "nothing": b"",
    "text": b"m" * 1000,
    "a length without bytes": (1 << 40).to_bytes(8, "little"),
    "another version": memory_file({ANONYMOUS: 1}, version=2) + owners(()),
    "cut in the first file": GOOD[:10],
    "cut in the owners": GOOD[:-3],
    "more than is known": GOOD + b"\x00",
    "an owner without its file": memory_file({ANONYMOUS: 1}) + owners(["/"]),
    "an unknown object": GOOD[:-1] + b"\x0e",
    "more pages than there are": memory_file({ANONYMOUS: 2}) + owners(()),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_format_that_is_not_known_is_no_split_and_no_failure(what: str, tmp_path: Path) -> None:
    """The save stands."""
    write(tmp_path, {ANONYMOUS: 1}, {})
    (tmp_path / "pages_meta.img").write_bytes(GOOD)
    assert saved_sizes(tmp_path, 10_000) is not None
    (tmp_path / "pages_meta.img").write_bytes(UNREADABLE[what])
    assert saved_sizes(tmp_path, 10_000) is None


def test_every_cut_and_every_flipped_bit_of_metadata_ends_without_an_error(tmp_path: Path) -> None:
    """Whatever is read, the parts add up or there are none."""
    size_bytes = write(tmp_path, {ANONYMOUS: 3}, {"/": {TMPFS: 2}, "/data": {TMPFS: 1}})
    meta = tmp_path / "pages_meta.img"
    whole = meta.read_bytes()
    flipped = [
        whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
        for at in range(len(whole))
        for bit in range(8)
    ]
    for wrong in (*(whole[:end] for end in range(len(whole))), *flipped):
        meta.write_bytes(wrong)
        found = saved_sizes(tmp_path, size_bytes)
        if found is not None:
            assert sum(found.to_object().values()) == size_bytes
