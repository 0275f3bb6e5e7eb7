# SPDX-License-Identifier: Apache-2.0
"""A range of a file becomes an object, in one request, block by block.

The checksum is made before and travels in front of the bytes, so the server refuses bytes that
changed on their way: they never show under the object's name.
"""

import base64
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import google_crc32c
import orjson

from backends.objects.gcs.connections import Connections
from backends.objects.gcs.errors import Asked
from backends.objects.gcs.limits import BLOCK_BYTES, IN_FLIGHT_BYTES
from backends.objects.interface import ObjectInfo, StoreError

CONTENT_TYPE: Final = "application/octet-stream"
# A stream holds the block that is sent and the one that is read next.
_streams: Final = threading.BoundedSemaphore(IN_FLIGHT_BYTES // (2 * BLOCK_BYTES))


class UploadStoppedError(Exception):
    """Another part failed, or the caller took the upload back."""


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes of an open file."""

    descriptor: int
    start: int
    length_bytes: int

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes.

        Raises:
            StoreError: the file became shorter, or cannot be read.
        """
        at, end = self.start, self.start + self.length_bytes
        while at < end:
            try:
                block = os.pread(self.descriptor, min(BLOCK_BYTES, end - at), at)
            except OSError as error:  # not to be taken for the connection's
                raise StoreError(f"the file to upload cannot be read: {error.strerror}") from error
            if not block:
                raise StoreError(f"the file ended at byte {at}, though it had {end} when opened")
            yield block
            at += len(block)

    def crc32c(self) -> str:
        """Return the checksum as Cloud Storage writes it."""
        checksum = google_crc32c.Checksum()
        for block in self.blocks():
            checksum.update(block)
        return base64.b64encode(checksum.digest()).decode()


def upload_range(
    connections: Connections,
    asked: Asked,
    source: FileRange,
    *,
    crc32c: str,
    if_generation_match: int,
    metadata: Mapping[str, str],
    stopped: Callable[[], bool],
) -> ObjectInfo:
    """Store a range of a file as an object, once.

    Raises:
        UploadStoppedError: ``stopped`` became true.
        StoreError: the server did not take it.
    """
    boundary = secrets.token_hex(16)
    resource = {"name": asked.name, "crc32c": crc32c, "metadata": dict(metadata)}
    head = (
        f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
        f"{orjson.dumps(resource).decode()}\r\n"
        f"--{boundary}\r\nContent-Type: {CONTENT_TYPE}\r\n\r\n"
    ).encode()
    tail = f"\r\n--{boundary}--\r\n".encode()

    def body() -> Iterator[bytes]:
        yield head
        for block in source.blocks():
            if stopped():
                raise UploadStoppedError
            yield block
        yield tail

    with _streams:
        answer = connections.request(
            asked,
            "POST",
            f"/upload/storage/v1/b/{asked.bucket}/o"
            f"?uploadType=multipart&ifGenerationMatch={if_generation_match}",
            headers={
                "Content-Type": f"multipart/related; boundary={boundary}",
                "Content-Length": str(len(head) + source.length_bytes + len(tail)),
            },
            body=body,
            stopped=stopped,
        )
        text = answer.read()
    try:
        return _info(orjson.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise asked.no_resource() from None


def _info(resource: Mapping[str, Any]) -> ObjectInfo:
    return ObjectInfo(
        name=resource["name"],
        generation=int(resource["generation"]),
        size_bytes=int(resource["size"]),
        crc32c=resource["crc32c"],
        metadata=resource.get("metadata") or {},
        component_count=int(resource.get("componentCount") or 1),
        created_s=datetime.fromisoformat(resource["timeCreated"]).timestamp(),
    )
