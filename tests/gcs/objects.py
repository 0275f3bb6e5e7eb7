# SPDX-License-Identifier: Apache-2.0
"""What Cloud Storage keeps, and its rules: generations, preconditions, compose, listing.

Bytes lie in files that nobody writes twice; a composed object points into those of its parts, so
composing moves nothing. Unlike Google's, an object above 1 MiB has no MD5: it would be the slowest
thing of an upload. The methods at the end are the stranger's hand: what happens behind podsnap.
"""

import base64
import hashlib
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import google_crc32c

MAX_COMPONENTS = 32
MAX_PAGE = 1000
MD5_LIMIT_BYTES = 1 << 20
_REASONS = {
    400: "invalid",
    401: "authError",
    403: "forbidden",
    404: "notFound",
    409: "conflict",
    412: "conditionNotMet",
    416: "requestedRangeNotSatisfiable",
    429: "rateLimitExceeded",
    500: "internalError",
    503: "backendError",
}


class ApiError(Exception):
    """An answer that is none of success, in Google's words."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def body(self) -> dict[str, Any]:
        """Return the JSON that Google sends."""
        reason = _REASONS.get(self.code, "error")
        one = {"message": self.message, "domain": "global", "reason": reason}
        return {"error": {"code": self.code, "message": self.message, "errors": [one]}}


class Blob:
    """Bytes in a file; it goes with its last user, unless it was ours before."""

    def __init__(self, directory: Path | None = None, *, path: Path | None = None) -> None:
        if path is None:
            descriptor, name = tempfile.mkstemp(dir=directory)
            self.file = open(descriptor, "r+b", buffering=0)  # noqa: SIM115 - the finalizer closes it
            path = Path(name)
            weakref.finalize(self, _discard, self.file, path)
        self.path = path


def _discard(file: Any, path: Path) -> None:  # noqa: ANN401 - a raw file
    file.close()
    path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a blob."""

    blob: Blob
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """One generation of an object."""

    bucket: str
    name: str
    pieces: tuple[Piece, ...] = ()
    crc32c: int = 0
    stated_crc32c: str = ""
    md5: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/octet-stream"
    components: int = 0
    generation: int = 0
    created: str = ""

    @property
    def size_bytes(self) -> int:
        """Its length, as the metadata say it."""
        return sum(piece.length for piece in self.pieces)

    @property
    def crc32c_base64(self) -> str:
        """The checksum as Google writes it."""
        return base64.b64encode(self.crc32c.to_bytes(4, "big")).decode()

    def resource(self) -> dict[str, Any]:
        """Return the JSON representation."""
        found: dict[str, Any] = {
            "kind": "storage#object",
            "id": f"{self.bucket}/{self.name}/{self.generation}",
            "name": self.name,
            "bucket": self.bucket,
            "generation": str(self.generation),
            "metageneration": "1",
            "contentType": self.content_type,
            "storageClass": "STANDARD",
            "size": str(self.size_bytes),
            "crc32c": self.crc32c_base64,
            "etag": f"{self.generation:x}",
            "timeCreated": self.created,
            "updated": self.created,
        }
        more: dict[str, Any] = {"md5Hash": self.md5, "metadata": dict(self.metadata)}
        more["componentCount"] = self.components
        return found | {key: value for key, value in more.items() if value}


@dataclass(frozen=True, slots=True)
class Preconditions:
    """What the caller takes for granted of the object as it is now; 0 means that there is none."""

    generation: int | None = None
    not_generation: int | None = None

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "Preconditions":
        """Read them from a request's query."""
        wanted, unwanted = query.get("ifGenerationMatch"), query.get("ifGenerationNotMatch")
        return cls(
            None if wanted is None else int(wanted), None if unwanted is None else int(unwanted)
        )

    def check(self, current: StoredObject | None) -> None:
        """Refuse if one does not hold."""
        is_now = current.generation if current else 0
        if self.generation not in (None, is_now) or self.not_generation == is_now:
            raise ApiError(412, "At least one of the pre-conditions you specified did not hold.")


@dataclass(slots=True)
class Bucket:
    """One bucket: ``settings`` is its JSON resource."""

    name: str
    settings: dict[str, Any]
    objects: dict[str, StoredObject] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    managed_folders: set[str] = field(default_factory=set)

    @property
    def has_folders(self) -> bool:
        """Tell whether its namespace is hierarchical."""
        return bool(self.settings["hierarchicalNamespace"]["enabled"])

    def missing_folders(self, name: str) -> list[str]:
        """Return the folders that an object of this name makes by being there."""
        parts = name.split("/")[:-1]
        all_of_them = ["/".join(parts[: n + 1]) + "/" for n in range(len(parts))]
        return [f for f in all_of_them if f not in self.folders] if self.has_folders else []


class CloudObjects:
    """All buckets. Every method is atomic; ``directory`` has the bytes."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self.directory = directory
        self.clock = clock
        self.guard = threading.RLock()
        self.buckets: dict[str, Bucket] = {}
        self._generation = 0

    # -- the API

    def create_bucket(
        self,
        name: str,
        *,
        location: str = "EUROPE-WEST4",
        hierarchical: bool = True,
        uniform: bool = True,
        soft_delete_s: int = 0,
    ) -> Bucket:
        """Make a bucket as the how-to wants it, or with one thing wrong."""
        policy = {"enabled": uniform}
        settings = {
            "kind": "storage#bucket",
            "id": name,
            "name": name,
            "location": location,
            "locationType": "region" if "-" in location else "multi-region",
            "hierarchicalNamespace": {"enabled": hierarchical},
            "iamConfiguration": {"uniformBucketLevelAccess": policy},
            "softDeletePolicy": {"retentionDurationSeconds": str(soft_delete_s)},
        }
        with self.guard:
            if name in self.buckets:
                raise ApiError(409, "Your previous request to create the named bucket succeeded.")
            self.buckets[name] = Bucket(name, settings)
            return self.buckets[name]

    def bucket(self, name: str) -> Bucket:
        """Return a bucket, or say 404."""
        with self.guard:
            if name not in self.buckets:
                raise ApiError(404, "The specified bucket does not exist.")
            return self.buckets[name]

    def get(self, bucket: str, name: str, query: Mapping[str, str]) -> StoredObject:
        """Return an object of the generation that the query names."""
        with self.guard:
            found = self.bucket(bucket).objects.get(name)
            wanted = query.get("generation")
            if found is None or (wanted and int(wanted) != found.generation):
                raise ApiError(404, f"No such object: {bucket}/{name}")
            Preconditions.of(query).check(found)
            return found

    def insert(self, new: StoredObject, preconditions: Preconditions) -> StoredObject:
        """Store one generation; it is there at once or not at all."""
        with self.guard:
            into = self.bucket(new.bucket)
            preconditions.check(into.objects.get(new.name))
            now_s = self.clock()
            self._generation = max(self._generation + 1, int(now_s * 1e6))
            created = datetime.fromtimestamp(now_s, UTC).isoformat(timespec="milliseconds")
            stored = replace(
                new, generation=self._generation, created=created.replace("+00:00", "Z")
            )
            into.folders.update(into.missing_folders(new.name))
            into.objects[new.name] = stored
            return stored

    def compose(
        self, target: StoredObject, sources: list[dict[str, Any]], preconditions: Preconditions
    ) -> StoredObject:
        """Make one object of up to 32, without moving a byte."""
        if not 1 <= len(sources) <= MAX_COMPONENTS:
            raise ApiError(
                400,
                f"The number of source components provided ({len(sources)}) exceeds the "
                f"maximum (32).",
            )
        with self.guard:
            parts = [self._source(target.bucket, source) for source in sources]
            crc = 0
            for part in parts:
                crc = crc32c_of_both(crc, part.crc32c, part.size_bytes)
            pieces = tuple(piece for part in parts for piece in part.pieces)
            components = sum(part.components or 1 for part in parts)
            made = replace(target, pieces=pieces, crc32c=crc, components=components)
            return self.insert(made, preconditions)

    def _source(self, bucket: str, source: dict[str, Any]) -> StoredObject:
        wanted = {k: str(source[k]) for k in ("generation",) if k in source}
        query = {k: str(v) for k, v in source.get("objectPreconditions", {}).items()}
        return self.get(bucket, source["name"], wanted | query)

    def delete(self, bucket: str, name: str, query: Mapping[str, str]) -> None:
        """Delete an object."""
        with self.guard:
            found = self.bucket(bucket).objects.get(name)
            if found is not None:
                Preconditions.of(query).check(found)
            self.get(bucket, name, query)
            del self.bucket(bucket).objects[name]

    def page(self, bucket: str, query: Mapping[str, str]) -> dict[str, Any]:
        """Return a page; a token is the last name of the page before."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        limit = min(int(query.get("maxResults", MAX_PAGE)), MAX_PAGE)
        after = base64.b64decode(query.get("pageToken", "")).decode()
        items: list[dict[str, Any]] = []
        prefixes: list[str] = []
        last = ""
        with self.guard:
            names = sorted(n for n in self.bucket(bucket).objects if n.startswith(prefix))
            for name in names:
                rest, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("",) * 3
                folder = prefix + rest + cut if cut else ""
                if (folder or name) <= after or folder in prefixes[-1:]:
                    continue
                if len(items) + len(prefixes) == limit:
                    token = base64.b64encode(last.encode()).decode()
                    break
                if folder:
                    prefixes.append(folder)
                else:
                    items.append(self.buckets[bucket].objects[name].resource())
                last = folder or name
            else:
                token = ""
        page = {"items": items, "prefixes": prefixes, "nextPageToken": token}
        return {"kind": "storage#objects"} | {k: v for k, v in page.items() if v}

    def remove_folder(self, bucket: str, name: str) -> None:
        """Remove a folder, if nothing is in it."""
        with self.guard:
            within = self.bucket(bucket)
            if name not in within.folders:
                raise ApiError(404, f"The folder {name} does not exist.")
            if any(o.startswith(name) for o in [*within.objects, *within.folders - {name}]):
                raise ApiError(409, "The folder you tried to delete is not empty.")
            within.folders.discard(name)

    # -- the stranger's hand

    def put(
        self, bucket: str, name: str, data: bytes, metadata: Mapping[str, str] | None = None
    ) -> StoredObject:
        """Store bytes whatever was there, as another writer would."""
        blob = Blob(self.directory)
        blob.file.write(data)
        return self._put(bucket, name, blob, data, metadata or {})

    def publish(self, bucket: str, name: str, path: Path) -> StoredObject:
        """Serve a file as an object, from where it lies."""
        return self._put(bucket, name, Blob(path=path), path.read_bytes(), {})

    def _put(
        self, bucket: str, name: str, blob: Blob, data: bytes, metadata: Mapping[str, str]
    ) -> StoredObject:
        new = StoredObject(
            bucket=bucket,
            name=name,
            pieces=(Piece(blob, 0, len(data)),),
            crc32c=google_crc32c.value(data),
            md5=md5_of(data),
            metadata=metadata,
        )
        return self.insert(new, Preconditions())

    def names(self, bucket: str) -> list[str]:
        """Return the names of all objects."""
        with self.guard:
            return sorted(self.bucket(bucket).objects)

    def read(self, bucket: str, name: str) -> bytes:
        """Return an object's bytes as they lie there."""
        return b"".join(_read(self.get(bucket, name, {})))

    def flip(self, bucket: str, name: str, at_byte: int) -> None:
        """Change one byte where it lies; metadata and checksum stay."""
        for piece in self.get(bucket, name, {}).pieces:
            if at_byte < piece.length:
                with piece.blob.path.open("r+b") as file:
                    file.seek(piece.offset + at_byte)
                    was = file.read(1)
                    file.seek(piece.offset + at_byte)
                    file.write(bytes([was[0] ^ 0xFF]))
                return
            at_byte -= piece.length
        raise IndexError(at_byte)

    def truncate(self, bucket: str, name: str, size_bytes: int) -> None:
        """Lose the end where it lies; metadata and checksum stay, an answer breaks off there."""
        before = 0
        for piece in self.get(bucket, name, {}).pieces:
            if size_bytes < before + piece.length:
                with piece.blob.path.open("r+b") as file:
                    file.truncate(piece.offset + max(0, size_bytes - before))
            before += piece.length


def _read(found: StoredObject) -> Iterator[bytes]:
    for piece in found.pieces:
        with piece.blob.path.open("rb") as file:
            file.seek(piece.offset)
            yield file.read(piece.length)


def md5_of(data: bytes | memoryview) -> str:
    """Return the MD5 as Google writes it, empty for large data."""
    if len(data) > MD5_LIMIT_BYTES:
        return ""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


_POLYNOMIAL = 0x82F63B78


def _product(a: int, b: int) -> int:
    """Multiply two polynomials modulo CRC32C's, lowest power in the highest bit."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


def crc32c_of_both(first: int, second: int, second_bytes: int) -> int:
    """Return the checksum of two texts one after the other: first times x to the power of bits."""
    power, square, bits = 1 << 31, 1 << 30, second_bytes * 8
    while bits:
        if bits & 1:
            power = _product(power, square)
        square = _product(square, square)
        bits >>= 1
    return _product(power, first) ^ second
