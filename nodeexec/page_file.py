# SPDX-License-Identifier: Apache-2.0
"""A file of which not everything is here yet: what is asked for comes first, the rest behind it.

A chunk is written to the local file after it was verified, and is read from there by whoever wants
it; nothing else ever leaves this module. No mounts here: the file can be filled and read by tests.

Most reads are no page faults. runsc has up to 128 reads under way, in the order of the file, so
they meet the stream: a chunk that a stream brings is waited for, and only one that nobody fetches,
or whose stream stands still, is fetched on its own. So a stream's request must be short in time.

The trap is the end of patience. A read that fails ends the whole sandbox, so whoever has to be told
is told before the first read fails (``on_lost``).
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Final, Protocol

from backends.clock import Clock
from backends.objects.interface import StoreError
from nodeexec.part_download import DamagedError, DownloadCancelledError
from schemas.manifest import CHUNK_BYTES, Part

log = logging.getLogger(__name__)

# One request of the stream takes about so long: a reader may wait for its last chunk.
_RUN_S: Final = 0.25
_LONGEST_RUN_CHUNKS: Final = 32
FAULT_THREADS: Final = 4
# A reader leaves a chunk to a stream that goes on; one that stands still for so long, and for much
# longer than a chunk takes on this link, is overtaken.
_STALL_S: Final = 1.0
_STALL_CHUNKS: Final = 4
_CHUNK_WEIGHT: Final = 0.2
# runsc reads so far ahead, and no further: 128 times 256 KiB.
_AHEAD_CHUNKS: Final = 32
# The stream lets faults pass, but never stands still for longer.
_YIELD_S: Final = 0.5
_RETRY_S: Final = 0.5
# Without a reader nothing is urgent; but not for ever.
_HOPELESS_FACTOR: Final = 6
# Faults come in groups.
_NEAR_KEPT: Final = 16
_WAITS_KEPT: Final = 10_000


class PagesLostError(Exception):
    """The file will never be whole; the text says why."""


class ChunkSource(Protocol):
    """Where verified chunks come from (``nodeexec.part_download.PartReader``)."""

    def read_chunk(self, index: int) -> bytes:
        """Return one chunk.

        Raises:
            DamagedError: it is not the one of the manifest.
            StoreError: the bucket did not answer.
        """
        ...

    def read_run(
        self,
        first: int,
        end: int,
        on_chunk: Callable[[int, memoryview], None],
        *,
        stopped: threading.Event,
    ) -> None:
        """Call ``on_chunk`` with some chunks in order, until ``stopped``.

        Raises:
            DownloadCancelledError: it was stopped; else as ``read_chunk``.
        """
        ...


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """How far the file is, and what readers felt.

    ``faults`` are the chunks that a reader wanted before the stream had come to them; the waits are
    those of such readers, 0 if there was none.
    """

    done_bytes: int
    total_bytes: int
    faults: int = 0
    wait_p50_s: float = 0.0
    wait_p99_s: float = 0.0


class _State(Enum):
    AWAY = 0
    COMING = 1
    WRITING = 2
    HERE = 3


@dataclass(slots=True)
class _Run:
    """Chunks that one stream brings; ``moved_s`` is when the last of them came."""

    first: int
    end: int
    moved_s: float


class PageFile:
    """One part of an image, read while it is fetched. Safe for many threads."""

    def __init__(
        self,
        source: ChunkSource,
        part: Part,
        descriptor: int,
        *,
        connections: int,
        patience_s: float,
        clock: Clock,
        on_lost: Callable[[str, bool], None],
    ) -> None:
        """Fill ``descriptor``, which is made as long as the part.

        A read that waits longer than ``patience_s`` is the end: ``on_lost`` is called, once, with
        the reason and whether the bytes in the bucket are wrong.
        """
        self._source = source
        self._part = part
        self._descriptor = descriptor
        self._patience_s = patience_s
        self._clock = clock
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._states = [_State.AWAY] * part.chunk_count
        self._first_away = 0
        self._left = part.chunk_count
        self._done_bytes = 0
        self._came_s = clock.monotonic_s()
        self._chunk_s = 0.0  # what a chunk takes over one stream
        self._wanted: deque[int] = deque()  # what fault threads fetch next
        self._near: deque[int] = deque(maxlen=_NEAR_KEPT)  # what the stream fetches before the rest
        self._asked: set[int] = set()  # the same, and what they are fetching
        self._arrivals: dict[int, threading.Condition] = {}  # of chunks that somebody waits for
        self._faults = 0
        self._waits_s: deque[float] = deque(maxlen=_WAITS_KEPT)
        self._runs: dict[int, _Run] = {}  # by chunk, while it is coming
        self._trouble = ""
        self._is_losing = False
        self._lost = ""
        self._over = threading.Event()
        os.truncate(descriptor, part.length_bytes)
        self._threads = [
            *(self._thread("fault", self._serve_faults) for _ in range(FAULT_THREADS)),
            *(self._thread("stream", self._stream) for _ in range(connections)),
        ]

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        return threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)

    # -- life

    def start(self) -> None:
        """Begin to fetch."""
        for thread in self._threads:
            thread.start()

    @property
    def is_whole(self) -> bool:
        """Whether every chunk is here."""
        return self._left == 0

    @property
    def lost(self) -> str:
        """Why the file will never be whole, empty while it may be."""
        return self._lost

    def figures(self) -> LoadFigures:
        """Return how far it is."""
        with self._lock:
            waits_s = sorted(self._waits_s)
            return LoadFigures(
                done_bytes=self._done_bytes,
                total_bytes=self._part.length_bytes,
                faults=self._faults,
                wait_p50_s=waits_s[len(waits_s) // 2] if waits_s else 0.0,
                wait_p99_s=waits_s[len(waits_s) * 99 // 100] if waits_s else 0.0,
            )

    def lose(self, reason: str, *, damaged: bool = False) -> None:
        """Give the file up: whoever waits, and every read of what is away, fails from now on."""
        with self._lock:
            if self.is_whole:
                return
            is_first, self._is_losing = not self._is_losing, True
        if not is_first:
            self._over.wait(self._patience_s)  # whoever has to be told is being told
            return
        try:
            self._on_lost(reason, damaged)
        finally:
            with self._lock:
                self._lost = reason
                self._end()
                for arrival in self._arrivals.values():
                    arrival.notify_all()

    # -- reading

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes as ``pread`` does, once they are here and verified.

        Raises:
            PagesLostError: they will not come.
        """
        end = min(offset + size_bytes, self._part.length_bytes)
        if offset >= end:
            return b""
        for index in range(offset // CHUNK_BYTES, (end - 1) // CHUNK_BYTES + 1):
            if self._states[index] is not _State.HERE:
                self._await(index)
        return os.pread(self._descriptor, end - offset, offset)

    def _await(self, index: int) -> None:
        began_s = self._clock.monotonic_s()
        while not self._came(index, began_s):
            waited_s = self._clock.monotonic_s() - began_s
            because = f": {self._trouble}" if self._trouble else ""
            self.lose(f"{self._part.name} stood still for {waited_s:.0f} s{because}")

    def _came(self, index: int, began_s: float) -> bool:
        """Wait for a chunk; false if it is too late."""
        is_fault = False
        with self._lock:
            while self._states[index] is not _State.HERE:
                waited_s = self._clock.monotonic_s() - began_s
                if self._lost:
                    raise PagesLostError(self._lost)
                if waited_s >= self._patience_s:
                    return False
                if not self._is_streaming(index):
                    is_fault = True
                    self._want(index)
                arrival = self._arrivals.setdefault(index, threading.Condition(self._lock))
                arrival.wait(min(self._patience_s - waited_s, _STALL_S))
            if is_fault:
                self._waits_s.append(self._clock.monotonic_s() - began_s)
        return True

    def _is_streaming(self, index: int) -> bool:
        """Whether a stream brings a chunk, or will at once, and has not stopped to move."""
        run = self._runs.get(index)
        if run is None and not 0 <= index - self._first_away < _AHEAD_CHUNKS:
            return False
        still_s = self._clock.monotonic_s() - (run.moved_s if run else self._came_s)
        return still_s < max(_STALL_S, _STALL_CHUNKS * self._chunk_s)

    def _want(self, index: int) -> None:
        if index not in self._asked:
            self._faults += 1
            self._asked.add(index)
            self._wanted.append(index)
            self._near.extend((index - 1, index + 1))
            self._work.notify_all()

    # -- fetching

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except DamagedError as error:
            self.lose(str(error), damaged=True)
        except OSError as error:  # of the local file; a bucket's are StoreErrors
            self.lose(f"the pages could not be written on this node: {error.strerror}")
        except Exception as error:
            log.exception("a thread that fetches pages ended")
            self.lose(f"the pages could not be fetched ({error!r})")

    def _serve_faults(self) -> None:
        while True:
            with self._lock:
                while not self._wanted and not self._over.is_set():
                    self._work.wait()
                if self._over.is_set():
                    return
                index = self._wanted.popleft()
                if self._states[index] is _State.HERE:
                    self._asked.discard(index)
                    continue
            try:
                data = self._source.read_chunk(index)
            except StoreError as error:
                self._note(error)
                with self._lock:
                    self._wanted.append(index)
                continue
            self._arrived(index, data)

    def _stream(self) -> None:
        length = 1
        while (run := self._next_run(length)) is not None:
            began_s = run.moved_s
            try:
                self._source.read_run(
                    run.first, run.end, partial(self._streamed, run), stopped=self._over
                )
            except DownloadCancelledError:
                return
            except StoreError as error:
                self._note(error)
            self._release(run)
            took_s = self._clock.monotonic_s() - began_s
            length = 2 * length if took_s < _RUN_S else max(length // 2, 1)
            length = min(length, _LONGEST_RUN_CHUNKS)

    def _streamed(self, run: _Run, index: int, data: memoryview) -> None:
        self._arrived(index, data)
        with self._lock:
            took_s = self._clock.monotonic_s() - run.moved_s
            self._chunk_s += _CHUNK_WEIGHT * (took_s - self._chunk_s)
            if self._asked:  # let faults pass
                self._work.wait(_YIELD_S)
            run.moved_s = self._clock.monotonic_s()

    def _next_run(self, length: int) -> _Run | None:
        """Claim the next chunks that nobody fetches; ``None`` once all are here."""
        with self._lock:
            while not self._over.is_set():
                first = end = self._next_away()
                while end < min(first + length, len(self._states)) and (
                    self._states[end] is _State.AWAY
                ):
                    self._states[end] = _State.COMING
                    end += 1
                if end > first:
                    run = _Run(first, end, self._clock.monotonic_s())
                    self._runs |= dict.fromkeys(range(first, end), run)
                    return run
                self._work.wait()  # the rest is on its way; it may come back
            return None

    def _next_away(self) -> int:
        """Return the chunk that is fetched next; the number of chunks if there is none."""
        while self._near:
            index = self._near.pop()
            if 0 <= index < len(self._states) and self._states[index] is _State.AWAY:
                return index
        first = self._first_away
        while first < len(self._states) and self._states[first] is not _State.AWAY:
            first += 1
        self._first_away = first
        return first

    def _release(self, run: _Run) -> None:
        """Give back what a run did not bring."""
        with self._lock:
            for index in range(run.first, run.end):
                self._runs.pop(index, None)
                if self._states[index] is _State.COMING:
                    self._states[index] = _State.AWAY
                    self._first_away = min(self._first_away, index)
                    self._work.notify_all()

    def _arrived(self, index: int, data: bytes | memoryview) -> None:
        start, end = self._part.chunk_range(index)
        with self._lock:
            if self._states[index] in {_State.WRITING, _State.HERE}:
                return  # the stream was slow with it, and somebody else was not
            self._states[index] = _State.WRITING
        written = 0
        while written < end - start:
            written += os.pwrite(self._descriptor, data[written:], start + written)
        with self._lock:
            self._states[index] = _State.HERE
            self._asked.discard(index)
            self._left -= 1
            self._done_bytes += end - start
            self._came_s = self._clock.monotonic_s()
            arrival = self._arrivals.pop(index, None)
            if arrival is not None:
                arrival.notify_all()
            if self.is_whole:
                self._end()
            elif not self._asked:
                self._work.notify_all()

    def _end(self) -> None:
        self._over.set()
        self._work.notify_all()

    def _note(self, error: StoreError) -> None:
        """Wait a moment before the bucket is asked again; give up after a long silence."""
        with self._lock:
            self._trouble = str(error)
            silent_s = self._clock.monotonic_s() - self._came_s
        self._clock.wait(self._over, _RETRY_S)
        if silent_s > _HOPELESS_FACTOR * self._patience_s:
            self.lose(f"nothing came for {silent_s:.0f} s: {error}")
