# SPDX-License-Identifier: Apache-2.0
"""A part comes whole and compared, in whatever pieces and however often its streams break."""

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import zstandard

from backends.objects.interface import (
    ObjectNotFound,
    PermissionDenied,
    RangeReader,
    StoreError,
    StoreUnavailable,
)
from backends.objects.localdir import LocalDirStore
from nodeexec import part_download
from nodeexec.encoding import ZEROS, EncodingError, decode_chunk
from nodeexec.image import PAGES_FILE, seal
from nodeexec.image import ImageInfo as Image
from nodeexec.part_download import (
    RUN_CHUNKS,
    DamagedError,
    DownloadCancelledError,
    PartReader,
    download_part,
)
from schemas.encoding import Encoding
from schemas.manifest import CHUNK_BYTES, ENCODED_LIMIT_BYTES, Part

FOLDER = "snapshots/one"
CONNECTIONS = 4


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for is a server; here is none."""
    monkeypatch.setattr(part_download, "_pause_s", lambda _state: 0.0)


class FaultyStore(LocalDirStore):
    """A real bucket whose streams end, lie or vanish as the test says.

    ``befall`` gets the number of the stream and the byte at which it begins, and returns how many
    bytes come before the line breaks (``None``: all), or raises. ``lie_at`` are bytes of the object
    that come wrong, once each for every time that they are listed.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.streams: list[tuple[int, int]] = []
        self.befall: Callable[[int, int], int | None] = lambda _number, _start: None
        self.lie_at: list[int] = []
        self.lie_one_by_one = False
        self.open = 0
        self.most_open = 0
        self._guard = threading.Lock()

    @contextmanager
    def open_range(
        self, name: str, *, generation: int, start: int, end: int
    ) -> Iterator[RangeReader]:
        """Open a stream that something befalls."""
        with self._guard:
            self.streams.append((start, end))
            number = len(self.streams)
            self.open += 1
            self.most_open = max(self.open, self.most_open)
        try:
            limit = self.befall(number, start)
            with super().open_range(name, generation=generation, start=start, end=end) as inner:
                yield _FaultyStream(self, inner, start, limit)
        finally:
            with self._guard:
                self.open -= 1

    def read_range(self, name: str, *, generation: int, start: int, end: int) -> bytes:
        """Return a range, or a lie."""
        data = bytearray(super().read_range(name, generation=generation, start=start, end=end))
        self.lie(memoryview(data), start)
        return bytes(data)

    def lie(self, data: memoryview, start: int) -> None:
        """Change what is to come wrong."""
        with self._guard:
            hit = sorted(at for at in set(self.lie_at) if start <= at < start + len(data))
            for at in hit[:1] if self.lie_one_by_one else hit:
                self.lie_at.remove(at)
                data[at - start] ^= 1


@dataclass(slots=True)
class _FaultyStream:
    store: FaultyStore
    inner: RangeReader
    at: int
    limit_bytes: int | None

    def readinto(self, buffer: memoryview) -> int:
        if self.limit_bytes is not None:
            if not self.limit_bytes:
                raise StoreUnavailable("the line broke")
            buffer = buffer[: self.limit_bytes]
        count = self.inner.readinto(buffer[:300_000])  # never as much as one asks for
        if self.limit_bytes is not None:
            self.limit_bytes -= count
        self.store.lie(buffer[:count], self.at)
        self.at += count
        return count


@dataclass(slots=True)
class Stored:
    """A part in a bucket."""

    store: FaultyStore
    part: Part
    plain: bytes
    target: Path
    connections: int = CONNECTIONS
    slots: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(CONNECTIONS))
    came: list[int] = field(default_factory=list)

    def download(self, *, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Bring it here."""
        download_part(
            self.store,
            FOLDER,
            self.part,
            self.target,
            connections=self.connections,
            slots=self.slots,
            on_bytes=self.came.append,
            cancelled=cancelled,
        )

    def reader(self) -> PartReader:
        """Return what reads single chunks."""
        return PartReader(self.store, FOLDER, self.part, slots=threading.Semaphore(1))

    @property
    def object(self) -> Path:
        """The file that is the object."""
        return self.store._root / FOLDER / self.part.object_name


def plain(chunks: int, *, rest: int = 5000) -> bytes:
    """Return bytes that do not shrink, with holes."""
    words = [os.urandom(CHUNK_BYTES) if i % 3 else ZEROS for i in range(chunks)]
    return b"".join(words) + os.urandom(rest)


def stored(directory: Path, data: bytes, encoding: Encoding = Encoding.RAW) -> Stored:
    """Put bytes into a bucket as a save does."""
    (directory / "bucket").mkdir(parents=True)
    source = directory / "source"
    source.mkdir()
    (source / PAGES_FILE).write_bytes(data)
    part, _ = seal(source, Image("", 0, (), {}, parts=(PAGES_FILE,)), encoding)
    store = FaultyStore(directory / "bucket")
    name = f"{FOLDER}/{part.object_name}"
    info = store.put_file(name, source / part.object_name, if_generation_match=0, metadata={})
    part = replace(part, generation=info.generation)
    return Stored(store, part, data, directory / "target")


ENCODINGS = pytest.mark.parametrize("encoding", Encoding, ids=lambda e: e.name.lower())
SIZES = {
    "empty": 0,
    "one byte": 1,
    "one chunk": CHUNK_BYTES,
    "one chunk and a byte": CHUNK_BYTES + 1,
    "several runs": (RUN_CHUNKS + 3) * CHUNK_BYTES + 17,
}


@ENCODINGS
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_part_comes_as_it_was(tmp_path: Path, size: int, encoding: Encoding) -> None:
    """Over several streams at a time if it is large, and whoever asks is told how much came."""
    there = stored(tmp_path, plain(size // CHUNK_BYTES, rest=size % CHUNK_BYTES), encoding)
    there.target.write_bytes(b"left by somebody else" * 1000)
    there.download()
    assert there.target.read_bytes() == there.plain
    assert sum(there.came) == there.part.stored_bytes == there.object.stat().st_size
    assert there.store.most_open <= CONNECTIONS


@ENCODINGS
def test_a_stream_that_breaks_is_taken_up_where_it_broke(
    tmp_path: Path, encoding: Encoding
) -> None:
    """Nothing that was verified is asked for again."""
    there = stored(tmp_path, plain(20), encoding)
    there.connections = 1
    there.store.befall = lambda number, _start: 2_500_000 if number <= 4 else None
    there.download()
    assert there.target.read_bytes() == there.plain
    assert sum(there.came) == there.part.stored_bytes
    starts = [start for start, _ in there.store.streams]
    assert len(starts) == 5
    assert set(starts) <= set(there.part.stored_offsets())
    for one, next_ in itertools.pairwise(starts):
        assert one < next_ <= one + 2_500_000 < next_ + ENCODED_LIMIT_BYTES


def test_a_stream_that_never_gets_anywhere_is_given_up(tmp_path: Path) -> None:
    """After so many attempts; the other streams end, too."""
    there = stored(tmp_path, plain(40))
    there.store.befall = lambda _number, start: 0 if start == 0 else None
    with pytest.raises(StoreUnavailable, match="the line broke"):
        there.download()
    assert there.store.streams.count((0, RUN_CHUNKS // 2 * CHUNK_BYTES)) <= 8
    assert there.store.open == 0


@pytest.mark.parametrize(
    ("error", "told", "message"),
    [
        (PermissionDenied("storage.objects.get"), PermissionDenied, "storage.objects.get"),
        (StoreError("no"), StoreError, "no"),
        (ObjectNotFound("gone"), DamagedError, "pages.img is missing or was replaced"),
    ],
    ids=["no right", "no", "gone"],
)
def test_what_does_not_get_better_is_not_tried_again(
    tmp_path: Path, error: StoreError, told: type[Exception], message: str
) -> None:
    """One request, and the reason."""
    there = stored(tmp_path, plain(3))

    def fail(_number: int, _start: int) -> None:
        raise error

    there.store.befall = fail
    with pytest.raises(told, match=message):
        there.download()
    assert len(there.store.streams) == 1


@ENCODINGS
def test_wrong_bytes_are_asked_for_once_more(tmp_path: Path, encoding: Encoding) -> None:
    """A line may lie once; whole chunks before it do not come again."""
    there = stored(tmp_path, plain(9), encoding)
    wrong = there.part.stored_offsets()[5] + 10
    there.store.lie_at = [wrong]
    there.download()
    assert there.target.read_bytes() == there.plain
    assert there.store.lie_at == []
    assert there.part.stored_offsets()[5] in {start for start, _ in there.store.streams}


@ENCODINGS
def test_bytes_that_are_wrong_twice_alike_are_damage(tmp_path: Path, encoding: Encoding) -> None:
    """Part, chunk and byte are named."""
    there = stored(tmp_path, plain(9), encoding)
    there.store.lie_at = [there.part.stored_offsets()[5] + 10] * 2
    expected = rf"part pages\.img, chunk 5 \(from byte {5 * CHUNK_BYTES}\) differs"
    with pytest.raises(DamagedError, match=expected):
        there.download()


def test_bytes_that_are_wrong_in_another_way_each_time_are_no_damage(tmp_path: Path) -> None:
    """The bucket holds one thing; this node's memory or network makes many of it."""
    there = stored(tmp_path, plain(9))
    wrong = [5 * CHUNK_BYTES + offset for offset in range(20)]
    there.store.lie_one_by_one = True
    there.store.lie_at = wrong[:5]
    there.download()
    assert there.target.read_bytes() == there.plain
    there.store.lie_at = wrong
    with pytest.raises(StoreUnavailable, match=r"chunk 5 came wrong.*this node's memory"):
        there.download()
    with pytest.raises(StoreUnavailable, match=r"chunk 5 came wrong.*this node's memory"):
        there.reader().read_chunk(5)


@ENCODINGS
def test_single_chunks_are_read_and_compared(tmp_path: Path, encoding: Encoding) -> None:
    """As a page fault does; a lie is asked about once."""
    there = stored(tmp_path, plain(4), encoding)
    reader = there.reader()
    reader.look()
    for index in range(there.part.chunk_count):
        start, end = there.part.chunk_range(index)
        assert reader.read_chunk(index) == there.plain[start:end]
    wrong = there.part.stored_offsets()[2] + 1
    there.store.lie_at = [wrong]
    assert reader.read_chunk(2) == there.plain[2 * CHUNK_BYTES : 3 * CHUNK_BYTES]
    there.store.lie_at = [wrong, wrong]
    with pytest.raises(DamagedError, match="chunk 2"):
        reader.read_chunk(2)
    there.object.unlink()
    with pytest.raises(DamagedError, match="missing or was replaced"):
        reader.read_chunk(1)


def test_a_chunk_of_zeros_is_stored_as_nothing_and_never_asked_for(tmp_path: Path) -> None:
    """And neither is a run of nothing else."""
    there = stored(tmp_path, ZEROS * 20, Encoding.ZSTD)
    assert there.object.stat().st_size == 0
    there.download()
    assert there.target.read_bytes() == there.plain
    assert there.target.stat().st_mode & 0o777 == 0o600
    assert there.reader().read_chunk(7) == ZEROS
    assert there.store.streams == []


def test_a_download_that_nobody_wants_any_more_ends(tmp_path: Path) -> None:
    """Between two chunks, on every stream."""
    there = stored(tmp_path, plain(40))
    with pytest.raises(DownloadCancelledError):
        there.download(cancelled=lambda: len(there.came) >= 3)
    assert there.store.open == 0
    assert len(there.came) <= 3 + CONNECTIONS


def test_a_download_that_waits_for_a_slot_ends_when_nobody_wants_it(tmp_path: Path) -> None:
    """Whoever holds the slots may be stuck; it has not even asked for memory."""
    there = stored(tmp_path, plain(40))
    there.slots = threading.Semaphore(0)
    asked = itertools.count()
    with pytest.raises(DownloadCancelledError):
        there.download(cancelled=lambda: next(asked) > CONNECTIONS)
    assert there.store.streams == []


def test_a_download_that_waits_to_try_again_ends_when_nobody_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the bucket asks it to wait; meanwhile others have its slot."""
    monkeypatch.setattr(part_download, "_pause_s", lambda _state: 1e6)
    there = stored(tmp_path, plain(3))
    there.store.befall = lambda _number, _start: 0
    there.slots = threading.Semaphore(1)

    def is_unwanted() -> bool:
        return bool(there.store.streams) and not there.store.open and there.slots.acquire(timeout=5)

    with pytest.raises(DownloadCancelledError):
        there.download(cancelled=is_unwanted)


def test_a_stream_that_trickles_ends_when_nobody_wants_it(tmp_path: Path) -> None:
    """In the middle of a chunk: its bytes would go on to come for hours."""
    there = stored(tmp_path, plain(3))
    there.connections = 1
    asked = itertools.count()
    with pytest.raises(DownloadCancelledError):
        there.download(cancelled=lambda: next(asked) == 4)
    assert there.came == []


def test_an_object_of_another_length_or_checksum_is_not_even_read(tmp_path: Path) -> None:
    """The bucket itself says that it is not the one of the manifest."""
    there = stored(tmp_path, plain(2))
    for part, told in (
        (replace(there.part, length_bytes=there.part.length_bytes - 1), "the manifest says"),
        (replace(there.part, crc32c="AAAAAA=="), "another checksum"),
        (replace(there.part, generation=there.part.generation + 1), "missing or was replaced"),
    ):
        there.part = part
        with pytest.raises(DamagedError, match=told):
            there.download()
    assert there.store.streams == []


def test_downloads_side_by_side_have_so_many_streams_together(tmp_path: Path) -> None:
    """However many threads each of them has."""
    there = stored(tmp_path, plain(40))
    there.slots = threading.BoundedSemaphore(1)
    there.download()
    assert there.target.read_bytes() == there.plain
    assert there.store.most_open == 1


# -- frames


BOMB = zstandard.compress(bytes(64 << 20), 19)  # some kilobytes that unpack into 64 MiB
RIGHT = zstandard.compress(b"x" * 1000)
_WINDOW = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
_WIDE = zstandard.ZstdCompressor(compression_params=_WINDOW).compressobj()
FRAMES = {
    "too much": BOMB,
    "too little": zstandard.compress(b"x" * 999),
    "one byte more": zstandard.compress(b"x" * 1001),
    "no frame": b"no frame at all",
    "half a frame": RIGHT[:-2],
    "a header alone": RIGHT[:6],
    "more memory than a chunk's, for a window": _WIDE.compress(b"x" * 1000) + _WIDE.flush(),
}


@pytest.mark.parametrize("what", FRAMES)
def test_a_frame_that_does_not_fill_its_room_is_damage(what: str) -> None:
    """Whatever its header says, no more memory than the chunk's is used."""
    room = bytearray(1000)
    with pytest.raises(EncodingError):
        decode_chunk(memoryview(FRAMES[what]), memoryview(room))
    decode_chunk(memoryview(RIGHT), memoryview(room))
    assert room == b"x" * 1000
