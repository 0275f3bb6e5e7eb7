# SPDX-License-Identifier: Apache-2.0
"""One stream of one range of one generation, into the caller's buffer.

Nothing is asked for twice here: who reads an image has many ranges under way and knows best which
one to ask for again. A body that ends early is told, never passed off as the end.
"""

import contextlib
import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from backends.objects.gcs.connections import Answer, Connections
from backends.objects.gcs.errors import Asked, Permission
from backends.objects.interface import RangeReader, StoreError, StoreUnavailable

_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@contextlib.contextmanager
def open_range(
    connections: Connections, bucket: str, name: str, *, generation: int, start: int, end: int
) -> Iterator[RangeReader]:
    """Open a stream of the bytes from ``start`` up to but without ``end``.

    Raises:
        ObjectNotFound: it (of that generation) is not there.
        StoreUnavailable: the server does not answer.
    """
    asked = Asked(bucket, name, Permission.GET)
    target = f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}?generation={generation}"
    if end <= start:
        connections.request(asked, "GET", f"{target}&fields=generation", headers={}).read()
        yield _Nothing()
        return
    answer = connections.request(
        asked, "GET", f"{target}&alt=media", headers={"Range": f"bytes={start}-{end - 1}"}
    )
    try:
        yield _Body(asked, answer, _length_bytes(asked, answer, start, end))
    finally:
        answer.close()


class _Body:
    """The body of an answer, whose length is known."""

    def __init__(self, asked: Asked, answer: Answer, length_bytes: int) -> None:
        self._asked, self._answer, self._left = asked, answer, length_bytes

    def readinto(self, buffer: memoryview) -> int:
        if not self._left:
            return 0
        count = self._answer.readinto(buffer[: self._left])
        if not count and len(buffer):
            raise StoreUnavailable(
                f"{self._asked}: the connection ended {self._left} bytes before the range did"
            )
        self._left -= count
        return count


class _Nothing:
    """An empty range of an object that is there."""

    def readinto(self, buffer: memoryview) -> int:  # noqa: ARG002 - the protocol's signature
        return 0


def _length_bytes(asked: Asked, answer: Answer, start: int, end: int) -> int:
    """Compare the range that came with the one that was asked for; only the object may end it."""
    text = answer.headers.get("Content-Range", "")
    found = _CONTENT_RANGE.fullmatch(text)
    if answer.status != HTTPStatus.PARTIAL_CONTENT or not found:
        raise StoreError(
            f"{asked}: asked for bytes {start}-{end - 1}, and the server answered {answer.status} "
            f"with range {text!r}; something between here and Cloud Storage drops ranges"
        )
    first, last, size_bytes = (int(group) for group in found.groups())
    if (first, last + 1) != (start, min(end, size_bytes)):
        raise StoreError(f"{asked}: asked for bytes {start}-{end - 1}, got {text!r}")
    return last + 1 - first
