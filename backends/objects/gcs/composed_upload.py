# SPDX-License-Identifier: Apache-2.0
"""A large file becomes one object: parts in parallel, then composed, 32 at a time, in a tree.

Parts and what is composed of them on the way are objects of their own beside the final one, with
its metadata, named after it, its metadata, their level and their number. So the next process finds
them without listing, which the identity of a Pod may not do, and a sweep knows whose they are. They
lie in the same folder: in a bucket with folders, one of their own would outlive them.

The trap: an answer that was lost may have left a part that nobody knows of. So whatever fails looks
for all names that may exist; the file's size says which. And another process may make the same
object of the same parts: it may be done with them, and remove them, while we go on.
"""

import contextlib
import functools
import hashlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Final, TypeVar

import orjson

from backends.objects.crc32c_combine import combined
from backends.objects.gcs.bucket_requests import BucketRequests
from backends.objects.gcs.limits import COMPOSE_AT_ONCE
from backends.objects.gcs.media_upload import FileRange, UploadStoppedError
from backends.objects.interface import (
    TEMPORARY_INFIX,
    ObjectInfo,
    ObjectNotFound,
    PreconditionFailed,
    PutCancelledError,
    StoreError,
    StoreUnavailable,
    never,
)

_Result = TypeVar("_Result")
_ASK_EVERY_S: Final = 1.0
# How often a temporary object is tried to be made while another process does the same.
_LOOKS: Final = 3
MOST_CONNECTIONS: Final = 64


class ComposedUpload:
    """The making of one object. For one thread; it has ``connections`` others."""

    def __init__(
        self,
        requests: BucketRequests,
        name: str,
        metadata: Mapping[str, str],
        *,
        connections: int,
    ) -> None:
        """Ask nothing yet."""
        self._requests = requests
        self._name = name
        self._metadata = metadata
        self._connections = connections
        self._stopped = threading.Event()
        self._goes_on = False
        marks = hashlib.sha256(orjson.dumps(sorted(metadata.items()))).hexdigest()
        self._stem = f"{name}{TEMPORARY_INFIX}{marks[:16]}"

    def put(
        self, path: Path, if_generation_match: int, cancelled: Callable[[], bool]
    ) -> ObjectInfo:
        """Store the file; removes what it wrote on the way, unless the bucket is away.

        Raises:
            PutCancelledError: ``cancelled`` became true.
            StoreError: the bucket refused, or was away for too long.
        """
        with path.open("rb") as file:
            ranges = self._ranges(file.fileno())
            try:
                with ThreadPoolExecutor(self._connections, "bucket-upload") as pool:
                    if len(ranges) > 1:
                        return self._put_parts(pool, ranges, if_generation_match, cancelled)
                    send = functools.partial(
                        self._requests.put_range,
                        self._name,
                        ranges[0],
                        ranges[0].crc32c(),
                        if_generation_match,
                        self._metadata,
                        self._stopped.is_set,
                    )
                    return self._all(pool, [send], cancelled)[0]
            except UploadStoppedError:
                raise PutCancelledError from None

    def discard(self, size_bytes: int) -> None:
        """Remove all temporary objects of so large a file, as far as the bucket lets us."""
        parts = max(-(-size_bytes // self._requests.limits.part_bytes), 1)
        with (
            contextlib.suppress(StoreError),
            ThreadPoolExecutor(self._connections, "bucket-discard") as pool,
        ):
            self._discard(pool, parts)

    def _put_parts(
        self,
        pool: ThreadPoolExecutor,
        ranges: Sequence[FileRange],
        if_generation_match: int,
        cancelled: Callable[[], bool],
    ) -> ObjectInfo:
        def ask(call: Callable[[], _Result]) -> _Result:
            return self._all(pool, [call], cancelled)[0]

        require = functools.partial(self._require, if_generation_match)
        try:
            ask(require)
            # Parts are begun in order, so many at once: if none of the first is there, none is.
            first = itertools.islice(self._names(len(ranges)), self._connections)
            self._goes_on = any(self._all(pool, self._looks(first), cancelled))
            try:
                return self._compose_parts(pool, ranges, if_generation_match, cancelled)
            except ObjectNotFound:
                ask(require)  # else the other process has finished, and so have we
            self._goes_on = True
            try:
                return self._compose_parts(pool, ranges, if_generation_match, cancelled)
            except ObjectNotFound:
                ask(require)
                raise StoreUnavailable(
                    f"parts of {self._name} went away twice while they were composed; is another "
                    "process uploading the same snapshot?"
                ) from None
        except StoreUnavailable:
            raise  # the next call goes on from what is there
        except Exception:
            with contextlib.suppress(StoreError):
                self._discard(pool, len(ranges))
            raise

    def _compose_parts(
        self,
        pool: ThreadPoolExecutor,
        ranges: Sequence[FileRange],
        if_generation_match: int,
        cancelled: Callable[[], bool],
    ) -> ObjectInfo:
        """Make the object.

        Raises:
            ObjectNotFound: a part went away meanwhile.
        """
        calls = [functools.partial(self._part, *numbered) for numbered in enumerate(ranges)]
        nodes = self._all(pool, calls, cancelled)
        temporary = {node.name: node for node in nodes}
        for level in itertools.count(1):
            if len(nodes) <= COMPOSE_AT_ONCE:
                break
            calls = [
                functools.partial(self._composite, level, index, group)
                for index, group in enumerate(_groups(nodes))
            ]
            nodes = self._all(pool, calls, cancelled)
            temporary |= {node.name: node for node in nodes}
        compose = functools.partial(self._compose, self._name, nodes, if_generation_match)
        (info,) = self._all(pool, [compose], cancelled)
        with contextlib.suppress(StoreError):  # what stays is left to the sweep
            self._delete(pool, list(temporary.values()))
        return info

    def _ranges(self, descriptor: int) -> list[FileRange]:
        size_bytes = os.fstat(descriptor).st_size
        part_bytes = self._requests.limits.part_bytes
        return [
            FileRange(descriptor, start, min(part_bytes, size_bytes - start))
            for start in range(0, max(size_bytes, 1), part_bytes)
        ]

    def _require(self, if_generation_match: int) -> None:
        """Do not begin what can only end in a refusal."""
        found = self._requests.stat(self._name, stopped=self._stopped.is_set)
        if (found.generation if found else 0) != if_generation_match:
            raise PreconditionFailed(f"{self._name} has another generation by now")

    def _part(self, index: int, source: FileRange) -> ObjectInfo:
        crc32c = source.crc32c()
        return self._put_temporary(
            self._temporary(0, index),
            (source.length_bytes, crc32c),
            lambda name: self._requests.put_range(
                name, source, crc32c, 0, self._metadata, self._stopped.is_set
            ),
        )

    def _composite(self, level: int, index: int, sources: Sequence[ObjectInfo]) -> ObjectInfo:
        if len(sources) == 1:
            return sources[0]
        return self._put_temporary(
            self._temporary(level, index),
            (
                sum(source.size_bytes for source in sources),
                combined((source.crc32c, source.size_bytes) for source in sources),
            ),
            lambda name: self._compose(name, sources, 0),
        )

    def _put_temporary(
        self, name: str, content: tuple[int, str], create: Callable[[str], ObjectInfo]
    ) -> ObjectInfo:
        """Keep what an earlier process wrote if it is the same, else write it."""

        def there() -> tuple[ObjectInfo | None, bool]:
            found = self._requests.stat(name, stopped=self._stopped.is_set)
            same = (
                found is not None
                and (found.size_bytes, found.crc32c) == content
                and found.metadata == self._metadata
            )
            return found, same

        found, same = there() if self._goes_on else (None, False)
        for attempt in itertools.count(1):
            if found is not None and same:
                return found
            if found is not None:
                with contextlib.suppress(ObjectNotFound, PreconditionFailed):
                    self._requests.delete(name, found.generation)
            try:
                return create(name)
            except PreconditionFailed:  # another process makes the same object now
                if attempt == _LOOKS:
                    raise
                found, same = there()
        raise AssertionError  # the loop returns or raises

    def _compose(
        self, name: str, sources: Sequence[ObjectInfo], if_generation_match: int
    ) -> ObjectInfo:
        return self._requests.compose(
            name, sources, if_generation_match, self._metadata, self._stopped.is_set
        )

    def _discard(self, pool: ThreadPoolExecutor, parts: int) -> None:
        found = self._all(pool, self._looks(self._names(parts)))
        self._delete(pool, [info for info in found if info is not None])

    def _names(self, parts: int) -> Iterator[str]:
        """Yield the names of all temporary objects that an upload of so many parts may make."""
        if parts == 1:
            return
        for level in itertools.count():
            yield from (self._temporary(level, index) for index in range(parts))
            if parts <= COMPOSE_AT_ONCE:
                return
            parts = -(-parts // COMPOSE_AT_ONCE)

    def _looks(self, names: Iterable[str]) -> list[Callable[[], ObjectInfo | None]]:
        return [functools.partial(self._requests.stat, name) for name in names]

    def _temporary(self, level: int, index: int) -> str:
        return f"{self._stem}-{level}-{index:05d}"

    def _delete(self, pool: ThreadPoolExecutor, infos: Sequence[ObjectInfo]) -> None:
        def delete(info: ObjectInfo) -> None:
            with contextlib.suppress(ObjectNotFound, PreconditionFailed):
                self._requests.delete(info.name, info.generation)

        self._all(pool, [functools.partial(delete, info) for info in reversed(infos)])

    def _all(
        self,
        pool: ThreadPoolExecutor,
        calls: Sequence[Callable[[], _Result]],
        cancelled: Callable[[], bool] = never,
    ) -> list[_Result]:
        """Run calls in order, so many at once; the first failure stops the others."""
        waiting = iter(enumerate(calls))
        running: dict[Future[_Result], int] = {}
        results: dict[int, _Result] = {}
        try:
            while len(results) < len(calls):
                _stop_if(cancelled)
                for index, call in itertools.islice(waiting, self._connections - len(running)):
                    running[pool.submit(call)] = index
                done, _ = wait(running, timeout=_ASK_EVERY_S, return_when=FIRST_COMPLETED)
                for future in done:
                    results[running.pop(future)] = future.result()
        except BaseException as error:
            self._stopped.set()
            while wait(running, timeout=_ASK_EVERY_S).not_done:
                self._requests.stream.hang_up()
            self._stopped.clear()
            ended = {i: f.result() for f, i in running.items() if f.exception() is None}
            results |= ended
            if not isinstance(error, UploadStoppedError) or len(results) < len(calls):
                raise
            # All was done before it could be taken back; the object may be there.
        return [results[index] for index in range(len(calls))]


def _stop_if(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise UploadStoppedError


def _groups(nodes: Sequence[ObjectInfo]) -> list[Sequence[ObjectInfo]]:
    return [nodes[at : at + COMPOSE_AT_ONCE] for at in range(0, len(nodes), COMPOSE_AT_ONCE)]
