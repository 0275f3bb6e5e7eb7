# SPDX-License-Identifier: Apache-2.0
"""A bucket of Cloud Storage.

google-cloud-storage does all but the bytes of images, which have connections of their own both
ways (docs/decisions/0008 says why). Its retries are off; ours are in one place, bounded, and every
write, read and delete says which generation it means.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from backends.objects.access_token import TokenSource
from backends.objects.factory import BucketAccess
from backends.objects.gcs.bucket_requests import BucketRequests
from backends.objects.gcs.composed_upload import MOST_CONNECTIONS, ComposedUpload
from backends.objects.gcs.identity import endpoint_of, identity_for
from backends.objects.gcs.limits import DEFAULT_LIMITS, Limits
from backends.objects.gcs.range_reader import open_range
from backends.objects.gcs.retries import attempt_repeatedly
from backends.objects.interface import (
    BucketDescription,
    ObjectInfo,
    RangeReader,
    never,
)


class GcsStore:
    """One bucket, as one identity. Safe for many threads."""

    def __init__(
        self,
        bucket: str,
        access: BucketAccess,
        *,
        tokens: TokenSource | None = None,
        _limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """Find credentials; the bucket is not asked yet.

        Raises:
            PermissionDenied: there are none.
        """
        endpoint = endpoint_of(access.endpoint)
        self._limits = _limits
        self._connections = max(1, min(access.connections, MOST_CONNECTIONS))
        self._requests = BucketRequests(
            bucket,
            endpoint,
            identity_for(endpoint, tokens),
            limits=_limits,
        )

    def put_file(
        self,
        name: str,
        path: Path,
        *,
        if_generation_match: int,
        metadata: Mapping[str, str],
        cancelled: Callable[[], bool] = never,
    ) -> ObjectInfo:
        """Store a file, a large one in parts."""
        return self._expecting(
            self._upload(name, metadata).put(path, if_generation_match, cancelled)
        )

    def put_bytes(
        self,
        name: str,
        data: bytes,
        *,
        if_generation_match: int,
        metadata: Mapping[str, str],
    ) -> ObjectInfo:
        """Store a few bytes."""
        return self._requests.put_bytes(name, data, if_generation_match, metadata)

    def discard_put(self, name: str, *, metadata: Mapping[str, str], size_bytes: int) -> None:
        """Remove temporary objects, by their names."""
        self._upload(name, metadata).discard(size_bytes)

    def stat(self, name: str, *, generation: int | None = None) -> ObjectInfo | None:
        """Return what is known of an object."""
        info = self._requests.stat(name, generation)
        return self._expecting(info) if info else None

    def read_range(self, name: str, *, generation: int, start: int, end: int) -> bytes:
        """Return a few bytes."""
        buffer = memoryview(bytearray(max(end - start, 0)))

        def read(_: bool) -> bytes:  # noqa: FBT001 - the policy's signature
            filled = 0
            with self.open_range(name, generation=generation, start=start, end=end) as stream:
                while count := stream.readinto(buffer[filled:]):
                    filled += count
            return bytes(buffer[:filled])

        return attempt_repeatedly(self._limits, read)

    def open_range(
        self, name: str, *, generation: int, start: int, end: int
    ) -> AbstractContextManager[RangeReader]:
        """Open one stream of a range, once."""
        return open_range(
            self._requests.stream,
            self._requests.bucket,
            name,
            generation=generation,
            start=start,
            end=end,
        )

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects below a prefix, a page of 500 at a time."""
        token: str | None = None
        for number in itertools.count():
            if number and token is None:
                return
            page, token = self._requests.list_page(prefix, token)
            yield from (self._expecting(info) for info in page)

    def delete(self, name: str, *, if_generation_match: int) -> None:
        """Delete one generation of an object."""
        self._requests.delete(name, if_generation_match)

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder, where the bucket has such."""
        self._requests.remove_folder(path)

    def describe(self) -> BucketDescription:
        """Return what the bucket says of itself."""
        return self._requests.describe()

    def _upload(self, name: str, metadata: Mapping[str, str]) -> ComposedUpload:
        return ComposedUpload(self._requests, name, metadata, connections=self._connections)

    def _expecting(self, info: ObjectInfo) -> ObjectInfo:
        parts = -(-info.size_bytes // self._limits.part_bytes)
        return replace(info, expected_components=max(parts, 1))
