# SPDX-License-Identifier: Apache-2.0
"""What is asked of one bucket: each method is one question, put again until it is answered.

The trap is an answer that was lost: the object that now stands in the way of a repeated creation
may be the one that the first request created, and the one that a repeated delete misses was deleted
by it. So a second answer is compared with what was wanted before it counts as a refusal.
"""

import base64
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import quote

import google_crc32c
from google.api_core.exceptions import GoogleAPICallError
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from backends.objects.crc32c_combine import combined
from backends.objects.gcs.connections import Connections
from backends.objects.gcs.errors import LIBRARY_ERRORS, Asked, Permission
from backends.objects.gcs.identity import Identity
from backends.objects.gcs.limits import Limits
from backends.objects.gcs.media_upload import CONTENT_TYPE, FileRange, upload_range
from backends.objects.gcs.retries import attempt_repeatedly
from backends.objects.gcs.sessions import IdentitySession
from backends.objects.interface import (
    BucketDescription,
    IntegrityError,
    ObjectInfo,
    ObjectNotFound,
    PreconditionFailed,
    StoreError,
    never,
)

_Answer = TypeVar("_Answer")
_PAGE: Final = 500
_LISTED: Final = (
    "items(name,generation,size,crc32c,metadata,componentCount,timeCreated),nextPageToken"
)
# A folder that is gone, in use by others, or in a bucket that has none: nothing to remove.
_NO_EMPTY_FOLDER: Final = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.CONFLICT,
        HTTPStatus.PRECONDITION_FAILED,
        HTTPStatus.NOT_IMPLEMENTED,
    }
)


class BucketRequests:
    """One bucket, asked by one identity. Safe for many threads."""

    def __init__(self, bucket: str, endpoint: str, identity: Identity, *, limits: Limits) -> None:
        """Make the client; nothing is asked yet."""
        self.bucket = bucket
        self.limits = limits
        self.stream = Connections(endpoint, identity, limits)
        self._timeouts_s = (limits.connect_s, limits.silence_s)
        self._client = storage.Client(
            project="podsnap",  # only asked for where buckets are made, which is not done
            credentials=AnonymousCredentials(),  # the session says who asks
            client_options={"api_endpoint": endpoint},
            _http=IdentitySession(identity),
        )
        # It would ask for the bucket in a thread of its own, with retries of its own, and as an
        # identity that may not, for an attribute of traces that are off.
        self._client._bucket_metadata_cache = None  # noqa: SLF001 - else only by the environment
        self._bucket = self._client.bucket(bucket)

    def stat(
        self, name: str, generation: int | None = None, stopped: Callable[[], bool] = never
    ) -> ObjectInfo | None:
        """Return what is known of an object, ``None`` if it (of that generation) is not there."""
        return self._ask(name, Permission.GET, lambda _: self._stat(name, generation), stopped)

    def put_bytes(
        self, name: str, data: bytes, if_generation_match: int, metadata: Mapping[str, str]
    ) -> ObjectInfo:
        """Store a few bytes."""
        crc32c = base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()

        def send() -> ObjectInfo:
            blob = self._bucket.blob(name)
            blob.metadata = dict(metadata)
            blob.upload_from_string(
                data,
                content_type=CONTENT_TYPE,
                if_generation_match=if_generation_match,
                checksum="crc32c",
                timeout=self._timeouts_s,
                retry=None,
            )
            return self._info(blob)

        return self._create(name, (len(data), crc32c), metadata, send)

    def put_range(
        self,
        name: str,
        source: FileRange,
        crc32c: str,
        if_generation_match: int,
        metadata: Mapping[str, str],
        stopped: Callable[[], bool] = never,
    ) -> ObjectInfo:
        """Store a range of a file.

        Raises:
            UploadStoppedError: ``stopped`` became true.
        """
        return self._create(
            name,
            (source.length_bytes, crc32c),
            metadata,
            lambda: upload_range(
                self.stream,
                Asked(self.bucket, name, Permission.CREATE),
                source,
                crc32c=crc32c,
                if_generation_match=if_generation_match,
                metadata=metadata,
                stopped=stopped,
            ),
            stopped,
        )

    def compose(
        self,
        name: str,
        sources: Sequence[ObjectInfo],
        if_generation_match: int,
        metadata: Mapping[str, str],
        stopped: Callable[[], bool] = never,
    ) -> ObjectInfo:
        """Make one object of up to 32, each of the generation given.

        Raises:
            ObjectNotFound: one of them is gone.
        """
        size_bytes = sum(source.size_bytes for source in sources)
        crc32c = combined((source.crc32c, source.size_bytes) for source in sources)
        generations = [source.generation for source in sources]

        def send() -> ObjectInfo:
            blob = self._bucket.blob(name)
            blob.metadata = dict(metadata)
            blob.content_type = CONTENT_TYPE
            blob.compose(
                [self._bucket.blob(s.name, generation=s.generation) for s in sources],
                if_generation_match=if_generation_match,
                if_source_generation_match=generations,
                timeout=self._timeouts_s,
                retry=None,
            )
            return self._info(blob)

        made = self._create(name, (size_bytes, crc32c), metadata, send, stopped)
        # Not every server counts.
        counted = sum(source.component_count for source in sources)
        return replace(made, component_count=max(made.component_count, counted))

    def delete(self, name: str, if_generation_match: int) -> None:
        """Delete one generation of an object.

        Raises:
            ObjectNotFound: it was gone before.
            PreconditionFailed: it is another generation by now.
        """

        def send(again: bool) -> None:  # noqa: FBT001 - the policy's signature
            try:
                self._bucket.blob(name).delete(
                    if_generation_match=if_generation_match, timeout=self._timeouts_s, retry=None
                )
            except GoogleAPICallError as error:
                refusal = Asked(self.bucket, name, Permission.DELETE).failed(error)
                gone = isinstance(refusal, ObjectNotFound) or (
                    isinstance(refusal, PreconditionFailed) and self._stat(name, None) is None
                )
                if gone and again:
                    return
                if gone:
                    raise ObjectNotFound(f"{name} does not exist") from None
                raise refusal from None

        self._ask(name, Permission.DELETE, send)

    def list_page(self, prefix: str, token: str | None) -> tuple[list[ObjectInfo], str | None]:
        """Return one page of objects, and the token of the next one if there is any."""

        def send(_: bool) -> tuple[list[ObjectInfo], str | None]:  # noqa: FBT001 - the policy's signature
            found = self._client.list_blobs(
                self._bucket,
                prefix=prefix or None,
                page_size=_PAGE,
                page_token=token,
                fields=_LISTED,
                timeout=self._timeouts_s,
                retry=None,
            )
            page = [self._info(blob) for blob in next(found.pages, ())]
            return page, found.next_page_token

        return self._ask("", Permission.LIST, send)

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder of a bucket with hierarchical namespace."""

        def send(_: bool) -> None:  # noqa: FBT001 - the policy's signature
            folder = quote(path.rstrip("/") + "/", safe="")
            with contextlib.suppress(ObjectNotFound):
                try:
                    # The library has no call for folders (its gRPC sister has: 40 MB more).
                    self._client._connection.api_request(  # noqa: SLF001 - its own way to the API
                        method="DELETE",
                        path=f"/b/{self.bucket}/folders/{folder}",
                        timeout=self._timeouts_s,
                        retry=None,
                    )
                except GoogleAPICallError as error:
                    if error.code not in _NO_EMPTY_FOLDER:
                        raise

        self._ask(path, Permission.DELETE_FOLDER, send)

    def describe(self) -> BucketDescription:
        """Return what the bucket says of itself."""

        def send(_: bool) -> BucketDescription:  # noqa: FBT001 - the policy's signature
            bucket = self._client.bucket(self.bucket)
            bucket.reload(timeout=self._timeouts_s, retry=None)
            return BucketDescription(
                location=bucket.location,
                hierarchical_namespace=bool(bucket.hierarchical_namespace_enabled),
                uniform_access=bool(bucket.iam_configuration.uniform_bucket_level_access_enabled),
                soft_delete_s=float(bucket.soft_delete_policy.retention_duration_seconds or 0),
            )

        return self._ask("", Permission.DESCRIBE, send)

    def _ask(
        self,
        name: str,
        permission: Permission,
        send: Callable[[bool], _Answer],
        stopped: Callable[[], bool] = never,
    ) -> _Answer:
        asked = Asked(self.bucket, name, permission)

        def translated(again: bool) -> _Answer:  # noqa: FBT001 - the policy's signature
            try:
                return send(again)
            except LIBRARY_ERRORS as error:
                raise asked.failed(error) from None

        return attempt_repeatedly(self.limits, translated, stopped)

    def _create(
        self,
        name: str,
        content: tuple[int, str],
        metadata: Mapping[str, str],
        send: Callable[[], ObjectInfo],
        stopped: Callable[[], bool] = never,
    ) -> ObjectInfo:
        def once(again: bool) -> ObjectInfo:  # noqa: FBT001 - the policy's signature
            try:
                return send()
            except (StoreError, *LIBRARY_ERRORS) as error:
                refusal = Asked(self.bucket, name, Permission.CREATE).failed(error)
                if not (again and isinstance(refusal, PreconditionFailed)):
                    raise
                found = self._stat(name, None)
                if found is None or not _same(found, content, metadata):
                    raise
                return found

        info = self._ask(name, Permission.CREATE, once, stopped)
        if (info.size_bytes, info.crc32c) != content:
            with contextlib.suppress(StoreError):
                self.delete(name, info.generation)
            raise IntegrityError(
                f"gs://{self.bucket}/{name}: {content[0]} bytes with CRC32C {content[1]} were "
                f"sent, {info.size_bytes} with {info.crc32c} are there; they were deleted again"
            )
        return info

    def _stat(self, name: str, generation: int | None) -> ObjectInfo | None:
        blob = self._bucket.blob(name, generation=generation)
        try:
            blob.reload(timeout=self._timeouts_s, retry=None)
        except GoogleAPICallError as error:
            refusal = Asked(self.bucket, name, Permission.GET).failed(error)
            if isinstance(refusal, ObjectNotFound):
                return None
            raise refusal from None
        return self._info(blob)

    def _info(self, blob: Any) -> ObjectInfo:  # noqa: ANN401 - the library has no types
        try:
            return ObjectInfo(
                name=blob.name,
                generation=int(blob.generation),
                size_bytes=int(blob.size or 0),
                crc32c=blob.crc32c or "",
                metadata=blob.metadata or {},
                component_count=blob.component_count or 1,
                created_s=blob.time_created.timestamp() if blob.time_created else 0.0,
            )
        except (AttributeError, TypeError, ValueError):
            raise Asked(self.bucket, blob.name or "", Permission.GET).no_resource() from None


def _same(found: ObjectInfo, content: tuple[int, str], metadata: Mapping[str, str]) -> bool:
    return (found.size_bytes, found.crc32c) == content and dict(found.metadata) == dict(metadata)
