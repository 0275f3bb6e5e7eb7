# SPDX-License-Identifier: Apache-2.0
"""One part of an image, from the bucket into a file, compared with the manifest on its way.

Each chunk is compared before anybody sees a byte of it. The part comes in runs of chunks, each over
a stream of its own; one that breaks is taken up at the first chunk that is missing. Bytes that are
wrong are asked for again, over another stream. If the same wrong ones come, the bucket holds them,
and they are damage; what is wrong in another way each time, the line or this node's memory did.

The trap: every copy of a byte costs as much as the network's. A chunk is read into one buffer, and
compared and written from there.
"""

import base64
import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import blake3
import google_crc32c
import tenacity

from backends.objects.crc32c_combine import combined
from backends.objects.interface import (
    ObjectNotFound,
    ObjectStore,
    RangeReader,
    StoreUnavailable,
    never,
)
from nodeexec.encoding import EncodingError, decode_chunk
from schemas.manifest import CHUNK_BYTES, Part

# How many chunks one stream brings: a stream's beginning costs a round trip.
RUN_CHUNKS: Final = 32
_SHORTEST_RUN_CHUNKS: Final = 8
# Of one run. None lasts long without a byte, by the store's own bound on silence.
_ATTEMPTS: Final = 8
# Of a single chunk that comes wrong.
_READS: Final = 3
_ASKED_LIMIT_S: Final = 30.0
_BACK_OFF: Final = tenacity.wait_random_exponential(multiplier=0.1, max=5)
# How often somebody who waits asks whether he still has to.
_LOOK_S: Final = 0.5

OnChunk = Callable[[int, memoryview], None]


class DamagedError(Exception):
    """The bytes in the bucket are not those that were saved; the text names the part."""


class DownloadCancelledError(Exception):
    """The caller does not want the bytes any more."""


class _WrongBytesError(StoreUnavailable):
    """A chunk differs from the manifest, and did not come so before."""


@dataclass(slots=True)
class _Run:
    """Chunks that come over one stream at a time; ``index`` is the next one."""

    index: int
    end: int
    on_chunk: OnChunk
    cancelled: Callable[[], bool]
    stopped: threading.Event
    # Digests of what came wrong for the next chunk.
    wrong: set[bytes] = field(default_factory=set)

    def check(self) -> None:
        """Raise ``DownloadCancelledError`` if nobody wants it any more."""
        if self.stopped.is_set() or self.cancelled():
            raise DownloadCancelledError

    def sleep(self, pause_s: float) -> None:
        """Wait, and ask meanwhile."""
        while pause_s > 0:
            self.stopped.wait(min(pause_s, _LOOK_S))
            self.check()
            pause_s -= _LOOK_S


class PartReader:
    """Reads chunks of one part, and hands out none that is wrong. Safe for many threads."""

    def __init__(
        self, store: ObjectStore, folder: str, part: Part, *, slots: threading.Semaphore
    ) -> None:
        """Read a part of the snapshot in ``folder``; asks the bucket for nothing yet.

        Of ``slots`` it holds one for each stream that is open.
        """
        self.part = part
        self._slots = slots
        self._store = store
        self._name = f"{folder}/{part.object_name}"
        self._offsets = part.stored_offsets()

    def look(self) -> None:
        """Ask whether the object is there, as the manifest has it.

        Raises:
            DamagedError: it is not.
            StoreError: the bucket did not answer.
        """
        info = self._store.stat(self._name, generation=self.part.generation)
        if info is None:
            raise self._gone()
        if info.size_bytes != self.part.stored_bytes:
            raise DamagedError(
                f"part {self.part.name} has {info.size_bytes} bytes, the manifest says "
                f"{self.part.stored_bytes}"
            )
        if info.crc32c != self.part.stored_crc32c:
            raise DamagedError(f"part {self.part.name} has another checksum than the manifest")

    def stored_length_bytes(self, index: int) -> int:
        """Return how much of the object a chunk takes; nothing, if it is known to be all zero."""
        return self._offsets[index + 1] - self._offsets[index]

    def read_chunk(self, index: int) -> bytes:
        """Return one chunk.

        Raises:
            DamagedError: it came wrong twice alike, or the object is gone.
            StoreError: the bucket did not answer, or the bytes never came right.
        """
        start, end = self._offsets[index], self._offsets[index + 1]
        wrong: set[bytes] = set()
        for _ in range(_READS):
            data = b""
            if start < end:
                try:
                    with self._slots:
                        data = self._store.read_range(
                            self._name, generation=self.part.generation, start=start, end=end
                        )
                except ObjectNotFound as error:
                    raise self._gone() from error
            chunk = self._verified(index, memoryview(data), self._room())
            if chunk is not None:
                return bytes(chunk)
            self._remember(index, memoryview(data), wrong)
        raise self._differs(index)

    def read_run(
        self,
        first: int,
        end: int,
        on_chunk: OnChunk,
        *,
        cancelled: Callable[[], bool] = never,
        stopped: threading.Event | None = None,
    ) -> None:
        """Call ``on_chunk`` with the chunks from ``first`` up to but without ``end``, in order.

        The view is of a buffer that the next chunk overwrites. ``stopped`` ends waits, too. A run
        holds its slot while its stream is open, not while it waits to open the next one.

        Raises:
            DamagedError: a chunk came wrong twice alike, or the object is gone.
            DownloadCancelledError: ``cancelled`` or ``stopped`` became true.
            StoreError: the bucket did not answer, again and again.
        """
        stop = stopped or threading.Event()
        run = _Run(first, end, on_chunk, cancelled, stop)
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(_ATTEMPTS),
            wait=_pause_s,
            retry=tenacity.retry_if_exception_type(StoreUnavailable),
            sleep=run.sleep,
            reraise=True,
        )
        try:
            retrying(self._go_on, run)
        except ObjectNotFound as error:
            raise self._gone() from error

    def _go_on(self, run: _Run) -> None:
        """Bring what a run lacks."""
        start, end = self._offsets[run.index], self._offsets[run.end]
        with self._slot(run), self._opened(start, end) as stream:
            # Only now, so that runs which wait take no memory.
            longest_bytes = max(map(self.stored_length_bytes, range(run.index, run.end)))
            buffer, room = memoryview(bytearray(longest_bytes)), self._room()
            while run.index < run.end:
                run.check()
                data = buffer[: self.stored_length_bytes(run.index)]
                _fill(stream, data, run)
                chunk = self._verified(run.index, data, room)
                if chunk is None:
                    self._remember(run.index, data, run.wrong)
                    raise self._differs(run.index)
                run.on_chunk(run.index, chunk)
                run.wrong.clear()
                run.index += 1

    @contextlib.contextmanager
    def _slot(self, run: _Run) -> Iterator[None]:
        run.check()
        while not self._slots.acquire(timeout=_LOOK_S):
            run.check()
        try:
            yield
        finally:
            self._slots.release()

    def _remember(self, index: int, data: memoryview, wrong: set[bytes]) -> None:
        """Note how a chunk came wrong.

        Raises:
            DamagedError: it came so before.
        """
        found = blake3.blake3(data).digest()
        if found in wrong:
            raise DamagedError(
                f"part {self.part.name}, chunk {index} (from byte {index * CHUNK_BYTES}) differs "
                "from the manifest"
            )
        wrong.add(found)

    def _differs(self, index: int) -> _WrongBytesError:
        return _WrongBytesError(
            f"part {self.part.name}, chunk {index} came wrong, and not twice alike; see this "
            "node's memory and network"
        )

    def _room(self) -> memoryview:
        """Return where chunks are unpacked, one after the other."""
        return memoryview(bytearray(CHUNK_BYTES if self.part.stored else 0))

    def _verified(self, index: int, data: memoryview, room: memoryview) -> memoryview | None:
        """Return the chunk that is stored as ``data``, ``None`` if that is not it."""
        start, end = self.part.chunk_range(index)
        chunk = data
        if self.part.stored is not None:
            chunk = room[: end - start]
            try:
                decode_chunk(data, chunk)
            except EncodingError:
                return None
        if len(chunk) != end - start or blake3.blake3(chunk).digest() != self.part.digest_of(index):
            return None
        return chunk

    def _opened(self, start: int, end: int) -> contextlib.AbstractContextManager[RangeReader]:
        if start == end:
            return contextlib.nullcontext(_Nothing())
        return self._store.open_range(
            self._name, generation=self.part.generation, start=start, end=end
        )

    def _gone(self) -> DamagedError:
        return DamagedError(f"part {self.part.name} is missing or was replaced")


def download_part(
    store: ObjectStore,
    folder: str,
    part: Part,
    path: Path,
    *,
    connections: int,
    slots: threading.Semaphore,
    on_bytes: Callable[[int], None],
    cancelled: Callable[[], bool] = never,
) -> None:
    """Write a part to a file and fsync it, over so many streams at a time.

    All that use the same ``slots`` have at most as many streams together.
    ``on_bytes`` is told how many bytes of the object came and are right; never by two threads at
    once.

    Raises:
        DamagedError: the bytes are not those of the manifest.
        DownloadCancelledError: ``cancelled`` became true.
        OSError: there is no room for the file; told before anything is fetched.
        StoreError: the bucket did not answer, again and again.
    """
    reader = PartReader(store, folder, part, slots=slots)
    reader.look()
    checksums = [""] * part.chunk_count
    guard, stopped = threading.Lock(), threading.Event()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    def keep(index: int, chunk: memoryview) -> None:
        checksum = google_crc32c.Checksum(bytes(chunk))  # it takes no view
        checksums[index] = base64.b64encode(checksum.digest()).decode()
        stored_bytes = reader.stored_length_bytes(index)
        if stored_bytes:  # else the file has these zeros already
            _write(descriptor, chunk, part.chunk_range(index)[0])
            with guard:
                on_bytes(stored_bytes)

    def fetch(run: tuple[int, int]) -> None:
        reader.read_run(*run, keep, cancelled=cancelled, stopped=stopped)

    try:
        if part.length_bytes:
            os.posix_fallocate(descriptor, 0, part.length_bytes)
        _each(fetch, list(_runs(part.chunk_count, connections)), connections, stopped)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    ranges = map(part.chunk_range, range(part.chunk_count))
    lengths = (end - start for start, end in ranges)
    if combined(zip(checksums, lengths, strict=True)) != part.crc32c:
        raise DamagedError(f"part {part.name} differs from the manifest")


class _Nothing:
    """The stream of no bytes."""

    def readinto(self, buffer: memoryview) -> int:  # noqa: ARG002 - nothing comes
        return 0


def _pause_s(state: tenacity.RetryCallState) -> float:
    """Wait as long as the bucket asks, else longer each time; never alike for two of us."""
    error = state.outcome.exception() if state.outcome else None
    asked_s = error.retry_after_s if isinstance(error, StoreUnavailable) else None
    return _BACK_OFF(state) + min(asked_s or 0.0, _ASKED_LIMIT_S)


def _fill(stream: RangeReader, data: memoryview, run: _Run) -> None:
    while data:
        run.check()  # a stream may trickle
        count = stream.readinto(data)
        if not count:
            raise StoreUnavailable("the stream ended before its range did")
        data = data[count:]


def _write(descriptor: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, at)
        data, at = data[count:], at + count


def _runs(chunks: int, connections: int) -> Iterator[tuple[int, int]]:
    """Cut a part so that all connections have something to do, and none begins anew for little."""
    length = min(max(-(-chunks // connections), _SHORTEST_RUN_CHUNKS), RUN_CHUNKS)
    for first in range(0, chunks, length):
        yield first, min(first + length, chunks)


def _each(
    fetch: Callable[[tuple[int, int]], None],
    runs: Sequence[tuple[int, int]],
    connections: int,
    stopped: threading.Event,
) -> None:
    """Fetch all runs; the first that fails ends the others.

    Returns when all threads have ended, which takes no longer than a store's bound on silence. They
    are daemons: an interpreter that exits waits for none of them.
    """
    if len(runs) == 1:
        fetch(runs[0])
        return
    left, errors = iter(runs), list[BaseException]()

    def work() -> None:
        try:
            for run in left:  # shared by all threads; the rest ends at once if one fails
                fetch(run)
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)
            stopped.set()

    threads = [
        threading.Thread(target=work, name=f"download-{n}", daemon=True)
        for n in range(min(connections, len(runs)))
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        stopped.set()
        for thread in threads:
            thread.join()
        raise
    if errors:
        raise errors[0]
