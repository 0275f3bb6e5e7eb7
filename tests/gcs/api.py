# SPDX-License-Identifier: Apache-2.0
"""The requests that the double answers: Cloud Storage's JSON API, tokens, and its own two.

Rights are asked before preconditions, both before bytes are taken for good.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import google_crc32c

from tests.gcs.connection import Connection
from tests.gcs.iam import Caller
from tests.gcs.objects import (
    MD5_LIMIT_BYTES,
    ApiError,
    Blob,
    Piece,
    Preconditions,
    StoredObject,
    md5_of,
)
from tests.gcs.transfer import BrokenOffError

QUANTUM_BYTES = 256 << 10  # what of a resumable upload is kept when the line breaks
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


@dataclass(slots=True)
class Session:
    """A resumable upload."""

    target: StoredObject
    preconditions: Preconditions
    blob: Blob
    caller: Caller
    size_bytes: int = 0
    crc32c: int = 0
    done: StoredObject | None = None
    guard: threading.Lock = field(default_factory=threading.Lock)


class Handler(Connection):
    """One connection, and what can be asked on it."""

    caller: Caller

    def _route(self, path: str) -> None:
        for method, pattern, answer in _ROUTES:
            if method == self.command and (found := pattern.fullmatch(path)):
                names = [unquote(group) for group in found.groups()]
                self.seen.bucket, self.seen.name = [*names, ""][0], names[-1] if names[1:] else ""
                self.caller = self.double.access.caller(self.headers.get("Authorization", ""))
                self.seen.principal = self.caller.principal
                answer(self, *names)
                return
        raise ApiError(404, f"Not Found: {self.command} {path}")

    def _demand(self, permission: str, bucket: str, kind: str = "bucket", name: str = "") -> None:
        self.double.access.demand(self.caller, permission, bucket, kind, name)

    # -- buckets and folders

    def _get_bucket(self, bucket: str) -> None:
        settings = self.double.objects.bucket(bucket).settings
        self._demand("storage.buckets.get", bucket)
        self._json(settings)

    def _create_bucket(self) -> None:
        self._json(self.double.objects.create_bucket(self._asked()["name"]).settings)

    def _test_permissions(self, bucket: str) -> None:
        self.double.objects.bucket(bucket)
        asked = [v for k, v in parse_qsl(urlsplit(self.path).query) if k == "permissions"]
        allowed = partial(self.double.access.allows, self.caller)
        held = [p for p in asked if allowed(p, bucket, "bucket", "")]
        found: dict[str, object] = {"permissions": held} if held else {}
        self._json({"kind": "storage#testIamPermissionsResponse", **found})

    def _folders(self, bucket: str, kind: str) -> set[str]:
        found = self.double.objects.bucket(bucket)
        if kind == "folders" and not found.has_folders:
            raise ApiError(400, "The bucket does not have hierarchical namespace enabled.")
        return found.folders if kind == "folders" else found.managed_folders

    def _create_folder(self, bucket: str, kind: str) -> None:
        name = str(self._asked()["name"]).rstrip("/") + "/"
        folders = self._folders(bucket, kind)
        self._demand(f"storage.{kind}.create", bucket, kind[:-1], name)
        if name in folders:
            raise ApiError(409, f"The folder {name} already exists.")
        folders.add(name)
        self._json({"kind": f"storage#{kind[:-1]}", "name": name, "bucket": bucket})

    def _get_folder(self, bucket: str, kind: str, name: str) -> None:
        self._demand(f"storage.{kind}.get", bucket, kind[:-1], name)
        if name not in self._folders(bucket, kind):
            raise ApiError(404, f"The folder {name} does not exist.")
        self._json({"kind": f"storage#{kind[:-1]}", "name": name, "bucket": bucket})

    def _delete_folder(self, bucket: str, kind: str, name: str) -> None:
        folders = self._folders(bucket, kind)
        self._demand(f"storage.{kind}.delete", bucket, kind[:-1], name)
        if kind == "folders":
            self.double.objects.remove_folder(bucket, name)
        elif name in folders:
            folders.discard(name)
        else:
            raise ApiError(404, f"The managed folder {name} does not exist.")
        self._answer(204)

    # -- objects

    def _list(self, bucket: str) -> None:
        self.double.objects.bucket(bucket)
        prefix = self.query.get("prefix", "")
        self._demand("storage.objects.list", bucket, "object", prefix)
        self._json(self.double.objects.page(bucket, self.query))

    def _found(self, bucket: str, name: str) -> StoredObject:
        self.double.objects.bucket(bucket)
        self._demand("storage.objects.get", bucket, "object", name)
        with self._hiding(bucket, name):
            return self.double.objects.get(bucket, name, self.query)

    @contextmanager
    def _hiding(self, bucket: str, name: str) -> Iterator[None]:
        """Tell nobody that an object is missing who may not list."""
        try:
            yield
        except ApiError as error:
            if error.code == 404:
                self._demand("storage.objects.list", bucket, "object", name)
            raise

    def _get(self, bucket: str, name: str) -> None:
        if self.query.get("alt") == "media":
            self._media(bucket, name)
        else:
            self._json(self._found(bucket, name).resource())

    def _media(self, bucket: str, name: str) -> None:
        self.query["alt"] = "media"
        found = self._found(bucket, name)
        size, start, end = found.size_bytes, 0, found.size_bytes
        hashes = f"crc32c={found.crc32c_base64}" + (f",md5={found.md5}" if found.md5 else "")
        headers = {
            "Content-Type": found.content_type,
            "X-Goog-Generation": str(found.generation),
            "X-Goog-Hash": hashes,
            "X-Goog-Stored-Content-Length": str(size),
            "X-Goog-Stored-Content-Encoding": "identity",
            "Accept-Ranges": "bytes",
        }
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        if asked:
            first, last = asked.groups()
            start = int(first) if first else max(0, size - int(last))
            end = min(size, int(last) + 1) if first and last else size
            if start >= size:
                raise ApiError(416, "The requested range cannot be satisfied.")
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        if self.fault is not None and self.fault.how == "lost":
            raise BrokenOffError
        self._head(206 if asked else 200, end - start, headers)
        self.line.send(found.pieces, start, end, self.fault, self.seen)

    def _delete(self, bucket: str, name: str) -> None:
        self.double.objects.bucket(bucket)
        self._demand("storage.objects.delete", bucket, "object", name)
        with self._hiding(bucket, name):
            self.double.objects.delete(bucket, name, self.query)
        self._answer(204)

    def _may_write(self, target: StoredObject, preconditions: Preconditions) -> None:
        """Ask for what writing takes: overwriting deletes, a new folder is created."""
        bucket = self.double.objects.bucket(target.bucket)
        self._demand("storage.objects.create", target.bucket, "object", target.name)
        if (there := bucket.objects.get(target.name)) is not None:
            preconditions.check(there)
            self._demand("storage.objects.delete", target.bucket, "object", target.name)
        for folder in bucket.missing_folders(target.name):
            self._demand("storage.folders.create", target.bucket, "folder", folder)

    def _insert(self, new: StoredObject, preconditions: Preconditions) -> StoredObject:
        self._check_hash(self.headers.get("X-Goog-Hash", ""), new)
        self._may_write(new, preconditions)
        return self.double.objects.insert(new, preconditions)

    def _check_hash(self, header: str, new: StoredObject) -> None:
        stated = dict(part.strip().split("=", 1) for part in header.split(",") if "=" in part)
        if new.stated_crc32c:
            stated["crc32c"] = new.stated_crc32c
        if stated.get("crc32c", new.crc32c_base64) != new.crc32c_base64:
            raise ApiError(
                400,
                f'Provided CRC32C "{stated["crc32c"]}" doesn\'t match calculated CRC32C '
                f'"{new.crc32c_base64}".',
            )

    def _compose(self, bucket: str, name: str) -> None:
        asked = self._asked()
        target = _target(bucket, {"name": name, **asked.get("destination", {})})
        for source in asked["sourceObjects"]:
            self._demand("storage.objects.get", bucket, "object", source["name"])
        preconditions = Preconditions.of(self.query)
        self._may_write(target, preconditions)
        made = self.double.objects.compose(target, asked["sourceObjects"], preconditions)
        self._json(made.resource())

    # -- uploads

    def _upload(self, bucket: str) -> None:
        preconditions = Preconditions.of(self.query)
        kind = self.query.get("uploadType", "media")
        if kind == "resumable":
            asked = self._asked()
            target = _target(bucket, {"name": self.query.get("name", ""), **asked})
            self.seen.name = target.name
            self._may_write(target, preconditions)
            number = f"s{next(self.double.session_numbers)}"
            blob = Blob(self.double.objects.directory)
            self.double.sessions[number] = Session(target, preconditions, blob, self.caller)
            where = f"{self.double.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable"
            headers = {"Location": f"{where}&upload_id={number}", "X-GUploader-UploadID": number}
            self._answer(200, b"", headers)
            return
        blob, described, crc = Blob(self.double.objects.directory), dict(self.query), 0
        if kind == "multipart":
            described, crc = self._receive_multipart(blob)
        else:
            size_bytes, self.unread = self.unread, 0
            crc = self._receive(size_bytes, blob, crc)
        target = _target(bucket, {"name": self.query.get("name", ""), **described})
        self.seen.name = target.name
        self._json(self._insert(_whole(target, blob, crc), preconditions).resource())

    def _receive_multipart(self, blob: Blob) -> tuple[dict[str, Any], int]:
        """Receive a description and data; return the one, and the checksum of the other."""
        content_type = self.headers["Content-Type"]
        boundary = b"--" + content_type.partition("boundary=")[2].strip("\"'").encode()
        self._read_until(boundary)
        self._read_until(b"")
        described: dict[str, Any] = json.loads(self._read_until(boundary))
        self._read_until(b"")
        size_bytes, self.unread = self.unread, 0
        end = b"\r\n" + boundary + b"--"
        tail_bytes = min(size_bytes, len(end) + 2)  # a line's end may follow, or not
        crc = self._receive(size_bytes - tail_bytes, blob, 0)
        rest = self.rfile.read(tail_bytes).rpartition(end)[0]
        blob.file.write(rest)
        return described, google_crc32c.extend(crc, rest)

    def _receive(self, size_bytes: int, blob: Blob, crc: int) -> int:
        return self.line.receive(size_bytes, blob, crc, self.fault, self.seen)

    def _go_on(self, bucket: str) -> None:
        session = self.double.sessions.get(self.query.get("upload_id", ""))
        if session is None:
            raise ApiError(404, "The upload session does not exist or has expired.")
        self.seen.bucket, self.seen.name = bucket, session.target.name
        if "Authorization" not in self.headers:
            self.caller = session.caller  # the session's address is as good as a token
        with session.guard:
            self._continue(session)

    def _continue(self, session: Session) -> None:
        if session.done is not None:
            self._drain()
            self._json(session.done.resource())
            return
        first, total = session.size_bytes, str(session.size_bytes + self.unread)
        if asked := _CONTENT_RANGE.fullmatch(self.headers.get("Content-Range", "")):
            first, total = int(asked[1] or session.size_bytes), asked[3]
        if self.unread:
            if first != session.size_bytes:
                raise ApiError(503, f"The upload goes on at {session.size_bytes}, not at {first}.")
            if total != str(first + self.unread) and self.unread % QUANTUM_BYTES:
                raise ApiError(400, "A chunk that is not the last must be a multiple of 256 KiB.")
            try:
                size_bytes, self.unread = self.unread, 0
                session.crc32c = self._receive(size_bytes, session.blob, session.crc32c)
                session.size_bytes = session.blob.file.tell()
            except (BrokenOffError, OSError):
                _keep_quanta(session)
                raise
        if total != str(session.size_bytes):
            kept = session.size_bytes
            self._answer(308, b"", {"Range": f"bytes=0-{kept - 1}"} if kept else {})
            return
        new = _whole(session.target, session.blob, session.crc32c)
        session.done = self._insert(new, session.preconditions)
        self._json(session.done.resource())

    def _give_up(self, _bucket: str) -> None:
        self.double.sessions.pop(self.query.get("upload_id", ""), None)
        self._answer(499)

    # -- tokens, and the process's own

    def _exchange(self) -> None:
        body = self._body().decode()
        form = "x-www-form-urlencoded" in self.headers.get("Content-Type", "")
        self._json(self.double.tokens.exchange(dict(parse_qsl(body)) if form else json.loads(body)))

    def _impersonate(self, email: str) -> None:
        authorization = self.headers.get("Authorization", "")
        self._json(self.double.tokens.impersonate(authorization, email, self._asked()))

    def _counters(self) -> None:
        sent, received = self.double.payload_bytes
        requests = len(self.double.requests)
        self._json({"sent_bytes": sent, "received_bytes": received, "requests": requests})

    def _set_limits(self) -> None:
        for name, value in self._asked().items():
            setattr(self.double.limits, name, value)
        self._answer(204)


def _target(bucket: str, described: Mapping[str, Any]) -> StoredObject:
    if not described["name"]:
        raise ApiError(400, "Required parameter: name")
    return StoredObject(
        bucket=bucket,
        name=described["name"],
        stated_crc32c=described.get("crc32c", ""),
        metadata=described.get("metadata") or {},
        content_type=described.get("contentType", "application/octet-stream"),
    )


def _whole(target: StoredObject, blob: Blob, crc: int) -> StoredObject:
    size_bytes = blob.file.tell()
    md5 = md5_of(blob.path.read_bytes()) if size_bytes <= MD5_LIMIT_BYTES else ""
    return replace(target, pieces=(Piece(blob, 0, size_bytes),), crc32c=crc, md5=md5)


def _keep_quanta(session: Session) -> None:
    """Keep of a body that broke off what Google is sure to keep."""
    file = session.blob.file
    session.size_bytes = file.tell() // QUANTUM_BYTES * QUANTUM_BYTES
    file.truncate(session.size_bytes)
    file.seek(session.size_bytes)
    session.crc32c = google_crc32c.value(session.blob.path.read_bytes())


_BUCKET = "/storage/v1/b/([^/]+)"
_KIND = "(folders|managedFolders)"
_ROUTES: list[tuple[str, re.Pattern[str], Callable[..., None]]] = [
    (method, re.compile(pattern), answer)
    for method, pattern, answer in (
        ("POST", "/storage/v1/b", Handler._create_bucket),
        ("GET", _BUCKET, Handler._get_bucket),
        ("GET", f"{_BUCKET}/iam/testPermissions", Handler._test_permissions),
        ("POST", f"{_BUCKET}/{_KIND}", Handler._create_folder),
        ("GET", f"{_BUCKET}/{_KIND}/([^/]+)", Handler._get_folder),
        ("DELETE", f"{_BUCKET}/{_KIND}/([^/]+)", Handler._delete_folder),
        ("GET", f"{_BUCKET}/o", Handler._list),
        ("GET", f"{_BUCKET}/o/([^/]+)", Handler._get),
        ("GET", f"/download{_BUCKET}/o/([^/]+)", Handler._media),
        ("DELETE", f"{_BUCKET}/o/([^/]+)", Handler._delete),
        ("POST", f"{_BUCKET}/o/([^/]+)/compose", Handler._compose),
        ("POST", f"(?:/resumable)?/upload{_BUCKET}/o", Handler._upload),
        ("PUT", f"(?:/resumable)?/upload{_BUCKET}/o", Handler._go_on),
        ("DELETE", f"(?:/resumable)?/upload{_BUCKET}/o", Handler._give_up),
        ("POST", "/v1/token", Handler._exchange),
        (
            "POST",
            "/v1/projects/-/serviceAccounts/([^/:]+):generateAccessToken",
            Handler._impersonate,
        ),
        ("GET", "/double/counters", Handler._counters),
        ("POST", "/double/limits", Handler._set_limits),
    )
]
