# SPDX-License-Identifier: Apache-2.0
"""A file that is read while it is fetched: no wrong byte, no endless wait, nothing twice."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from stepped_clock import SteppedClock

from backends.clock import Clock, SystemClock
from backends.objects.interface import StoreError
from nodeexec.image import PartHasher
from nodeexec.page_file import PageFile, PagesLostError
from nodeexec.part_download import DamagedError, DownloadCancelledError
from schemas.manifest import CHUNK_BYTES, Part

# More than runsc reads ahead of the stream, so that the last ones are faults.
CHUNKS = 48
DATA = os.urandom((CHUNKS - 1) * CHUNK_BYTES + 1234)
LIMIT_S = 10


def _part() -> Part:
    hasher = PartHasher("pages.img")
    hasher.update(DATA)
    return hasher.part()


PART = _part()


@dataclass
class Bucket:
    """Chunks that come when a test lets them: the stream's and single ones."""

    streaming: threading.Event = field(default_factory=threading.Event)
    singles: threading.Event = field(default_factory=threading.Event)
    fetched: list[int] = field(default_factory=list)
    error: Exception | None = None
    single_error: Exception | None = None

    def read_chunk(self, index: int) -> bytes:
        """Return one chunk."""
        assert self.singles.wait(LIMIT_S)
        if self.single_error is not None:
            raise self.single_error
        self.fetched.append(index)
        return self._chunk(index)

    def read_run(
        self,
        first: int,
        end: int,
        on_chunk: Callable[[int, memoryview], None],
        *,
        stopped: threading.Event,
    ) -> None:
        """Hand out some chunks."""
        for index in range(first, end):
            while not self.streaming.wait(0.01):
                if stopped.is_set():
                    raise DownloadCancelledError
            if self.error is not None:
                error, self.error = self.error, None
                raise error
            self.fetched.append(index)
            on_chunk(index, memoryview(self._chunk(index)))

    def _chunk(self, index: int) -> bytes:
        start, end = PART.chunk_range(index)
        return DATA[start:end]


@dataclass
class Scene:
    """A file over a bucket, and what was told when it was lost."""

    bucket: Bucket
    path: Path
    descriptor: int
    lost: list[tuple[str, bool]] = field(default_factory=list)
    on_lost: Callable[[], None] = lambda: None

    def file(
        self, *, connections: int = 1, patience_s: float = LIMIT_S, clock: Clock | None = None
    ) -> PageFile:
        """Make the file and let it fetch."""

        def lost(reason: str, damaged: bool) -> None:  # noqa: FBT001 - the callback's
            self.lost.append((reason, damaged))
            self.on_lost()

        made = PageFile(
            self.bucket,
            PART,
            self.descriptor,
            connections=connections,
            patience_s=patience_s,
            clock=clock or SystemClock(),
            on_lost=lost,
        )
        made.start()
        return made


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """Nothing is here yet."""
    path = tmp_path / "pages.img"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    made = Scene(Bucket(), path, descriptor)
    yield made
    made.bucket.streaming.set()
    made.bucket.singles.set()


def test_what_is_asked_for_comes_before_the_stream_gets_there(scene: Scene) -> None:
    """The stream stands still, and the last page is read nevertheless; it counts as a fault."""
    file = scene.file()
    scene.bucket.singles.set()
    at = (CHUNKS - 1) * CHUNK_BYTES - 10
    assert file.read(at, 100) == DATA[at : at + 100]
    # Its first chunk and the one behind it, no more.
    assert scene.bucket.fetched == [CHUNKS - 2, CHUNKS - 1]
    figures = file.figures()
    assert figures.faults == 2
    assert figures.done_bytes == 2 * CHUNK_BYTES - (CHUNK_BYTES - 1234)
    assert not file.is_whole


def test_the_stream_brings_the_rest_once_each(scene: Scene) -> None:
    """Around what a fault had brought before."""
    file = scene.file()
    scene.bucket.singles.set()
    file.read(40 * CHUNK_BYTES, 1)
    scene.bucket.streaming.set()
    assert file.read(0, len(DATA) + 5) == DATA
    assert file.is_whole
    assert scene.bucket.fetched[0] == 40
    assert sorted(scene.bucket.fetched) == list(range(CHUNKS))
    # Faults come in groups, so its neighbours are next.
    assert {39, 41} <= set(scene.bucket.fetched[:5])
    assert scene.path.read_bytes() == DATA


def test_a_chunk_that_the_stream_has_begun_is_waited_for(scene: Scene) -> None:
    """Readers in the stream's order cost no requests of their own."""
    file = scene.file()
    with ThreadPoolExecutor(8) as pool:
        reads = [pool.submit(file.read, n * 1000, 1000) for n in range(8)]
        scene.bucket.streaming.set()
        assert b"".join(r.result(LIMIT_S) for r in reads) == DATA[:8000]
    assert file.figures().faults == 0


def test_a_stream_that_is_slow_with_a_chunk_is_overtaken(scene: Scene) -> None:
    """One connection that stalls does not stall a page for long."""
    file = scene.file()
    scene.bucket.singles.set()
    assert file.read(0, 4) == DATA[:4]  # the stream's first run stands still
    assert file.figures().faults == 1
    scene.bucket.streaming.set()
    assert file.read(0, len(DATA)) == DATA


def test_many_readers_get_every_byte_right(scene: Scene) -> None:
    """At random places, while four connections bring the rest."""
    scene.bucket.streaming.set()
    scene.bucket.singles.set()
    file = scene.file(connections=4)
    places = [(n * 7_919_317) % len(DATA) for n in range(200)]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda at: file.read(at, 5000), places))
    assert found == [DATA[at : at + 5000] for at in places]
    assert sorted(set(scene.bucket.fetched)) == list(range(CHUNKS))
    assert file.read(len(DATA), 10) == b""


def test_a_break_of_the_stream_costs_no_chunk(scene: Scene) -> None:
    """What a broken run lacked is fetched by the next one."""
    scene.bucket.error = StoreError("the connection broke")
    scene.bucket.streaming.set()
    file = scene.file(clock=SteppedClock())
    assert file.read(0, len(DATA)) == DATA
    assert scene.lost == []


def test_a_read_that_waits_too_long_ends_the_file_and_says_why(scene: Scene) -> None:
    """Whoever has to be told is told before any read fails."""
    told = threading.Event()
    scene.bucket.single_error = StoreError("503 from the bucket")
    scene.bucket.singles.set()
    scene.on_lost = told.set
    file = scene.file(patience_s=0.6)

    def read(at: int) -> bool:
        with pytest.raises(PagesLostError, match=r"pages\.img stood still .* 503 from the bucket"):
            file.read(at, 10)
        return told.is_set()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, [0, 1, 46 * CHUNK_BYTES, 47 * CHUNK_BYTES]))
    ((reason, damaged),) = scene.lost
    assert file.lost == reason
    assert not damaged


def test_damage_is_told_as_damage_and_no_byte_of_it_is_read(scene: Scene) -> None:
    """The reader does not wait for its patience to end."""
    scene.bucket.single_error = DamagedError("chunk 47 differs from the manifest")
    scene.bucket.singles.set()
    file = scene.file()
    with pytest.raises(PagesLostError, match="chunk 47 differs"):
        file.read(47 * CHUNK_BYTES, 10)
    assert scene.lost == [("chunk 47 differs from the manifest", True)]


def test_what_is_here_can_be_read_after_the_rest_was_lost(scene: Scene) -> None:
    """And a file that is whole cannot be lost any more."""
    file = scene.file()
    scene.bucket.singles.set()
    assert file.read(0, 10) == DATA[:10]
    file.lose("the process was told to end")
    assert file.read(0, 10) == DATA[:10]
    with pytest.raises(PagesLostError, match="told to end"):
        file.read(47 * CHUNK_BYTES, 10)


def test_a_whole_file_is_not_lost(scene: Scene) -> None:
    """Nobody is told anything at the end."""
    scene.bucket.streaming.set()
    file = scene.file()
    assert file.read(0, len(DATA)) == DATA
    file.lose("too late")
    assert file.lost == ""
    assert scene.lost == []


def test_a_full_disk_ends_the_file(scene: Scene, tmp_path: Path) -> None:
    """The reason names the node, not the bucket."""
    os.close(scene.descriptor)
    scene.descriptor = os.open(tmp_path / "pages.img", os.O_RDWR)
    file = scene.file()
    os.close(scene.descriptor)
    scene.descriptor = os.open("/dev/full", os.O_RDWR)
    os.dup2(scene.descriptor, file._descriptor)
    scene.bucket.singles.set()
    with pytest.raises(PagesLostError, match="could not be written on this node: No space left"):
        file.read(47 * CHUNK_BYTES, 10)
