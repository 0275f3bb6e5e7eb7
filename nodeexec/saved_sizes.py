# SPDX-License-Identifier: Apache-2.0
"""What a saved image's bytes are: memory, changes of root file systems, tmpfs and emptyDir volumes.

gVisor keeps the pages of a sandbox in memory files: one for the programs, and one for each root
file system and each emptyDir that lies inside the sandbox. ``pages_meta.img`` says of each which of
its pages are in ``pages.img``, of what kind they are, and whose file it is. So the split is exact
to the page (4 KiB), and is read from the image itself, whoever asked for the save.

The parts add up to the size, because what is no page of a file is called memory: that includes the
kernel's objects in ``checkpoint.img``, and with them the names and owners of changed files. What
lies in ``/tmp``, ``/dev/shm`` or a memfd counts as a volume, because all of them are tmpfs.

The trap: the format is gVisor's own and may change. Then there is no split, and the save stands.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from nodeexec.image import STATE_FILE
from schemas.snapshot import SizeParts

log = logging.getLogger(__name__)

_META_FILE: Final = "pages_meta.img"
_PAGES_FILE: Final = "pages.img"
# A larger one would take seconds to read: gigabytes in pieces of a few pages.
_META_LIMIT_BYTES: Final = 8 << 20
# usage.MemoryKind
_TMPFS: Final = 3
# Fields of MemoryFileMetadataProto and MemAcctRangeProto.
_VERSION, _ACCOUNTED = 1, 3
_START, _END, _KIND, _COMMITTED = 1, 2, 3, 5
# Wire types of protobuf.
_VARINT, _BYTES = 0, 2
# The sandbox wrote these bytes: no number in them may cost more than a sandbox can.
_VARINT_BITS: Final = 63
_ARRAY_LIMIT: Final = 100_000
# On the number of objects of a stateify stream.
_OBJECTS_FLAG: Final = 1 << 63
# The number of the object that was asked to be saved.
_ROOT: Final = 1


class _Object(IntEnum):
    """The objects of a stateify stream that the owners are made of."""

    UINT = 2
    NIL = 5
    REFERENCE = 6
    STRING = 7
    SLICE = 8
    ARRAY = 9
    STRUCT = 11
    NO_FIELDS = 12
    FIELDS = 13
    TYPE = 17


def saved_sizes(directory: Path, size_bytes: int) -> SizeParts | None:
    """Split the bytes of a sealed image; ``None`` if its format is not the one known here."""
    if not (directory / STATE_FILE).exists():
        return SizeParts(rootfs_bytes=size_bytes)  # files alone
    try:
        main, others = _memory_files(directory)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        log.warning("the parts of the image in %s are not known: %s", directory, error)
        return None
    rootfs = sum(f.total() for path, f in others if path == "/")
    volumes = main[_TMPFS] + sum(f.total() for path, f in others if path != "/")
    return SizeParts(
        memory_bytes=size_bytes - rootfs - volumes, rootfs_bytes=rootfs, volumes_bytes=volumes
    )


def _memory_files(directory: Path) -> tuple[Counter[int], list[tuple[str, Counter[int]]]]:
    """Return bytes by kind of the main memory file, and of the others with their mount points."""
    path = directory / _META_FILE
    if path.stat().st_size > _META_LIMIT_BYTES:
        raise ValueError(f"{path.name} is too large to be read")
    reader = _Reader(path.read_bytes())
    main = _bytes_by_kind(reader.block())
    owners = reader.owners()
    others = [(owner, _bytes_by_kind(reader.block())) for owner in owners]
    if reader.at != len(reader.data):
        raise ValueError(f"{path.name} goes on after its last memory file")
    pages_bytes = main.total() + sum(f.total() for _, f in others)
    if pages_bytes != (directory / _PAGES_FILE).stat().st_size:
        raise ValueError(f"{_PAGES_FILE} does not have the {pages_bytes} bytes of its pages")
    return main, others


def _bytes_by_kind(metadata: bytes) -> Counter[int]:
    found: Counter[int] = Counter()
    fields = list(_Reader(metadata).fields())
    if (_VERSION, 1) not in fields:
        raise ValueError("a memory file of an unknown version")
    for number, value in fields:
        if number == _ACCOUNTED and isinstance(value, bytes):
            piece = dict(_Reader(value).fields())
            if piece.get(_COMMITTED):
                found[piece.get(_KIND, 0)] += piece[_END] - piece.get(_START, 0)
    return found


class _Reader:
    """Reads both encodings from one run of bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, length: int) -> bytes:
        taken = self.data[self.at : self.at + length]
        if len(taken) != length:
            raise ValueError("it ends too early")
        self.at += length
        return taken

    def block(self) -> bytes:
        """Return what is behind its length."""
        return self.take(int.from_bytes(self.take(8), "little"))

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:  # noqa: PLR2004 - the bit that says: more follows
                return value
            shift += 7
            if shift > _VARINT_BITS:
                raise ValueError(f"a number of more than {_VARINT_BITS} bits")

    def fields(self) -> Iterator[tuple[int, Any]]:
        """Yield number and value of a protobuf message's fields."""
        while self.at < len(self.data):
            key = self.varint()
            if key & 7 == _VARINT:
                yield key >> 3, self.varint()
            elif key & 7 == _BYTES:
                yield key >> 3, self.take(self.varint())
            else:
                raise ValueError(f"a field of wire type {key & 7}")

    def owners(self) -> list[str]:
        """Read a stateify stream of ``privateMemoryFileMetadata``; returns the mount points.

        It holds types, then numbered objects. The first is a slice of an array, whose members are
        two texts: the container's name and the path. Behind its length the array may be empty.
        """
        left = self.varint() & ~_OBJECTS_FLAG
        objects: dict[int, Any] = {}
        while left:
            kind = self.varint()
            if kind == _Object.TYPE:
                self.take(self.varint())
                for _ in range(self.varint()):
                    self.take(self.varint())
            elif kind == _Object.UINT:
                number = self.varint()
                objects[number] = self.object()
                left -= 1
            else:
                raise ValueError(f"an object of kind {kind} where a number was expected")
        if not objects[_ROOT]:
            return []
        length, _, array = objects[_ROOT]
        return [path for _, path in objects[array][:length]]

    def object(self, kind: int | None = None) -> Any:  # noqa: ANN401 - texts, and lists of them
        """Read an object, of the given kind or of the one that is written before it."""
        kind = self.varint() if kind is None else kind
        match kind:
            case _Object.UINT:
                return self.varint()
            case _Object.NIL | _Object.NO_FIELDS:
                return []
            case _Object.STRING:
                return self.take(self.varint()).decode()
            case _Object.REFERENCE:
                return self.reference()
            case _Object.SLICE:
                return [self.varint(), self.varint(), self.reference()]
            case _Object.STRUCT:
                self.varint()
                return self.object()
            case _Object.FIELDS:
                return [self.object() for _ in range(self.length())]
            case _Object.ARRAY:
                length = self.length()
                of_kind = self.varint() if length else None
                return [self.object(of_kind) for _ in range(length)]
        raise ValueError(f"an object of unknown kind {kind}")

    def length(self) -> int:
        """Read how many objects follow."""
        found = self.varint()
        if found > _ARRAY_LIMIT:
            raise ValueError(f"{found} objects in one")
        return found

    def reference(self) -> int:
        """Read which object is meant; a part of one never is."""
        number = self.varint()
        if self.varint():
            raise ValueError("a reference into an object")
        return number
