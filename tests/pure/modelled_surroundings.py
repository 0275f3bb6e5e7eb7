# SPDX-License-Identifier: Apache-2.0
"""An API server, a bucket and a runsc whose every request is a place where something may happen.

Real ones cannot be stopped between two requests of one program, thousands of times a minute. These
know only what the programs' preconditions rest on: server-side apply with its field managers, merge
patches, resourceVersion, UID and finalizers; generations; an image that is always whole.
"""

import base64
import itertools
import json
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import google_crc32c
import orjson

from backends.kube.errors import AlreadyExists, Conflict, NotFound, ServerUnavailable
from backends.kube.transport import APPLY
from backends.objects.interface import (
    BucketDescription,
    ObjectInfo,
    ObjectNotFound,
    PermissionDenied,
    PreconditionFailed,
    PutCancelledError,
    RangeReader,
    StoreUnavailable,
    never,
)
from nodeexec.image import PARTS, STATE_FILE

Object = dict[str, Any]
Leaves = dict[tuple[str, ...], Any]
# Where something else may happen; raises if the program that is there was killed.
Pause = Callable[[], None]


def _copy(obj: Object) -> Object:
    copied: Object = orjson.loads(orjson.dumps(obj))
    return copied


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    """Yield path and value of each field; conditions are keyed by type, other lists are atomic."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        elif key == "conditions":
            for condition in value:
                yield from _leaves(condition, (*path, key, condition["type"]))
        else:
            yield (*path, key), value


def _tree(leaves: Leaves) -> Object:
    tree: Object = {}
    for path, value in leaves.items():
        inner = tree
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = value
    if "conditions" in tree:
        tree["conditions"] = list(tree["conditions"].values())
    return tree


@dataclass(slots=True)
class _Stored:
    obj: Object
    status: Leaves = field(default_factory=dict)
    owners: dict[tuple[str, ...], set[str]] = field(default_factory=lambda: defaultdict(set))

    def apply(self, status: Mapping[str, Any], manager: str, *, force: bool) -> None:
        wanted = dict(_leaves(status))
        others = [
            p
            for p, value in wanted.items()
            if p in self.status and self.status[p] != value and self.owners[p] - {manager}
        ]
        if others and not force:
            raise Conflict("a field is another manager's", details={"causes": others})
        for path in [p for p, who in self.owners.items() if manager in who and p not in wanted]:
            self.owners[path].discard(manager)
            if not self.owners[path]:
                del self.owners[path], self.status[path]
        for path, value in wanted.items():
            self._set(path, value, manager)

    def merge(self, patch: Mapping[str, Any], manager: str, path: tuple[str, ...] = ()) -> None:
        for key, value in patch.items():
            if isinstance(value, Mapping):
                self.merge(value, manager, (*path, key))
            elif value is None:
                below = (*path, key)
                for gone in [p for p in self.status if p[: len(below)] == below]:
                    del self.status[gone]
                    self.owners.pop(gone, None)
            else:
                self._set((*path, key), value, manager)

    def _set(self, path: tuple[str, ...], value: Any, manager: str) -> None:  # noqa: ANN401 - any JSON
        if path not in self.status or self.status[path] != value:
            self.owners[path] = set()
            self.status[path] = value
        self.owners[path].add(manager)


class ModelledApi:
    """Objects by plural, namespace and name; ``log`` has every version of a plural, in order.

    ``on_version`` is called with the plural and an object before and after a change.
    """

    def __init__(self, on_version: Callable[[str, Object | None, Object | None], None]) -> None:
        """Begin empty."""
        self.log: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
        self.fault = ""
        self._objects: dict[tuple[str, str, str], _Stored] = {}
        self._versions = itertools.count(1)
        self._on_version = on_version

    def get(self, plural: str, name: str, namespace: str = "") -> Object | None:
        """Return an object as it is now."""
        found = self._objects.get((plural, namespace, name))
        return _copy(found.obj) if found else None

    def put(self, plural: str, obj: Object) -> None:
        """Create an object, or replace all but its identity; for what the programs do not write."""
        metadata = obj["metadata"]
        key = (plural, metadata.get("namespace", ""), metadata["name"])
        found = self._objects.get(key)
        made = _Stored(_copy(obj))
        made.status = dict(_leaves(obj.get("status") or {}))
        self._objects[key] = made
        self._publish(plural, "MODIFIED" if found else "ADDED", found.obj if found else None, made)

    def delete(self, plural: str, name: str, namespace: str = "", *, uid: str = "") -> None:
        """Ask for a deletion; the object stays while it has finalizers."""
        key = (plural, namespace, name)
        found = self._objects.get(key)
        if found is None:
            raise NotFound(name, details={"name": name})
        if uid and found.obj["metadata"]["uid"] != uid:
            raise Conflict("another object of that name")
        before = _copy(found.obj)
        if not found.obj["metadata"].get("finalizers"):
            del self._objects[key]
            self._publish(plural, "DELETED", before, found)
        elif "deletionTimestamp" not in found.obj["metadata"]:
            found.obj["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:00Z"
            self._publish(plural, "MODIFIED", before, found)

    def handle(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        body: Any,  # noqa: ANN401 - any JSON
        content_type: str,
    ) -> Object:
        """Answer one request as an API server does."""
        parts = path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = ""
        if parts[0] == "namespaces":
            namespace, parts = parts[1], parts[2:]
        plural, name, subresource = (*parts, "", "")[:3]
        if method == "POST":
            return self._create(plural, body)
        if not name:
            return self._list(plural, namespace, params.get("fieldSelector", ""))
        found = self._objects.get((plural, namespace, name))
        if found is None:
            raise NotFound(name, details={"name": name})
        if method == "GET":
            return _copy(found.obj)
        if method == "DELETE":
            self.delete(plural, name, namespace, uid=body["preconditions"].get("uid", ""))
            return {}
        return self._patch(found, plural, subresource, params, body, is_apply=content_type == APPLY)

    def _list(self, plural: str, namespace: str, selector: str) -> Object:
        node = selector.removeprefix("spec.nodeName=")
        items = [
            _copy(stored.obj)
            for (kind, where, _), stored in self._objects.items()
            if kind == plural
            and namespace in {"", where}
            and (not node or stored.obj["spec"]["nodeName"] == node)
        ]
        return {"items": items, "metadata": {"resourceVersion": "0"}}

    def _create(self, plural: str, body: Object) -> Object:
        metadata = body["metadata"]
        if self.get(plural, metadata["name"], metadata.get("namespace", "")):
            raise AlreadyExists(metadata["name"])
        uid = f"{plural}-{next(self._versions)}"
        self.put(plural, {**body, "metadata": {**metadata, "uid": uid}})
        return self.get(plural, metadata["name"], metadata.get("namespace", "")) or {}

    def _patch(
        self,
        found: _Stored,
        plural: str,
        subresource: str,
        params: Mapping[str, str],
        body: Object,
        *,
        is_apply: bool,
    ) -> Object:
        before, metadata = _copy(found.obj), body.get("metadata") or {}
        # The status of a custom kind takes any UID.
        if (
            not subresource
            and metadata.get("uid", before["metadata"]["uid"]) != (before["metadata"]["uid"])
        ):
            raise Conflict("another object of that name")
        pinned = metadata.get("resourceVersion")
        if pinned and pinned != before["metadata"]["resourceVersion"]:
            raise Conflict("the object has been modified")
        manager = params["fieldManager"]
        if not subresource:
            self._patch_metadata(found, metadata)
        elif is_apply:
            found.apply(body["status"], manager, force=params.get("force") == "true")
        else:
            found.merge(body["status"], manager)
        if subresource:
            found.obj["status"] = _tree(found.status)
        if found.obj != before:
            is_gone = found.obj["metadata"].get("deletionTimestamp") and not (
                found.obj["metadata"].get("finalizers")
            )
            if is_gone:
                now = found.obj["metadata"]
                del self._objects[plural, now.get("namespace", ""), now["name"]]
            self._publish(plural, "DELETED" if is_gone else "MODIFIED", before, found)
        return _copy(found.obj)

    def _patch_metadata(self, found: _Stored, patch: Mapping[str, Any]) -> None:
        metadata = found.obj["metadata"]
        if "finalizers" in patch:
            metadata["finalizers"] = patch["finalizers"]
        for key, value in (patch.get("annotations") or {}).items():
            if value is None:
                metadata["annotations"].pop(key, None)
            else:
                metadata["annotations"][key] = value

    def _publish(self, plural: str, kind: str, before: Object | None, stored: _Stored) -> None:
        stored.obj["metadata"]["resourceVersion"] = str(next(self._versions))
        self.log[plural].append((kind, orjson.dumps(stored.obj)))
        self._on_version(plural, before, None if kind == "DELETED" else _copy(stored.obj))


@dataclass(slots=True)
class Line:
    """One program's connection, in place of ``Transport``."""

    api: ModelledApi
    pause: Pause

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any | None = None,  # noqa: ANN401 - any JSON
        content_type: str = "",
        timeout_s: float = 0.0,  # noqa: ARG002 - every answer is at once
    ) -> Object:
        """Send a request; a fault that was asked for hits the next write."""
        self.pause()
        fault = "" if method == "GET" else self.api.fault
        if fault:
            self.api.fault = ""
        if fault == "refused":
            raise ServerUnavailable("made by a test")
        answer = self.api.handle(method, path, params or {}, body, content_type)
        self.pause()
        if fault == "lost":
            raise ServerUnavailable("made by a test: done, and the answer is lost")
        return answer


class ModelledBucket:
    """Objects with generations; ``now_s`` is its clock.

    ``is_broken`` refuses everything, ``is_away`` answers nothing.

    ``on_change`` is called with an object as it was and as it is.
    """

    def __init__(self, now_s: Callable[[], float] = lambda: 0.0) -> None:
        """Begin empty."""
        self.objects: dict[str, tuple[ObjectInfo, bytes]] = {}
        self.is_broken = False
        self.is_away = False
        self.newest = 0
        self.now_s = now_s
        self.on_change: Callable[[ObjectInfo | None, ObjectInfo | None], None] = lambda *_: None

    def keep(self, name: str, data: bytes, metadata: Mapping[str, str]) -> ObjectInfo:
        """Let an object be there, with a generation that none had."""
        self.newest += 1
        crc32c = base64.b64encode(google_crc32c.Checksum(data).digest()).decode()
        info = ObjectInfo(
            name, self.newest, len(data), crc32c, dict(metadata), created_s=self.now_s()
        )
        before, _ = self.objects.get(name, (None, b""))
        self.objects[name] = (info, data)
        self.on_change(before, info)
        return info

    def drop(self, name: str) -> None:
        """Let an object be gone."""
        info, _ = self.objects.pop(name)
        self.on_change(info, None)


@dataclass(slots=True)
class BucketLine:
    """An ``ObjectStore``."""

    bucket: ModelledBucket
    pause: Pause

    def put_file(
        self,
        name: str,
        path: Path,
        *,
        if_generation_match: int,
        metadata: Mapping[str, str],
        cancelled: Callable[[], bool] = never,
    ) -> ObjectInfo:
        """Store a file."""
        if cancelled():
            raise PutCancelledError
        data = path.read_bytes()
        return self.put_bytes(
            name, data, if_generation_match=if_generation_match, metadata=metadata
        )

    def put_bytes(
        self, name: str, data: bytes, *, if_generation_match: int, metadata: Mapping[str, str]
    ) -> ObjectInfo:
        """Store bytes, once."""
        self.begin()
        present = self.bucket.objects.get(name)
        if if_generation_match != (present[0].generation if present else 0):
            raise PreconditionFailed(name)
        info = self.bucket.keep(name, data, metadata)
        self.pause()
        return info

    def discard_put(self, name: str, *, metadata: Mapping[str, str], size_bytes: int) -> None:
        """Do nothing: a put is one request."""

    def stat(self, name: str, *, generation: int | None = None) -> ObjectInfo | None:
        """Return what is known of an object."""
        self.begin()
        found = self.bucket.objects.get(name)
        return found[0] if found and generation in {None, found[0].generation} else None

    def read_range(self, name: str, *, generation: int, start: int, end: int) -> bytes:
        """Return bytes of one generation."""
        self.begin()
        return self._at(name, generation)[1][start:end]

    @contextmanager
    def open_range(
        self, name: str, *, generation: int, start: int, end: int
    ) -> Iterator[RangeReader]:
        """Open one stream of bytes of one generation."""
        data = self.read_range(name, generation=generation, start=start, end=end)
        yield cast("RangeReader", BytesIO(data))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield what is there now."""
        self.begin()
        yield from [i for n, (i, _) in self.bucket.objects.items() if n.startswith(prefix)]

    def delete(self, name: str, *, if_generation_match: int) -> None:
        """Delete one generation."""
        self.begin()
        self._at(name, if_generation_match)
        self.bucket.drop(name)
        self.pause()

    def remove_folder(self, path: str) -> None:
        """Do nothing: there are no folders."""

    def describe(self) -> BucketDescription:
        """Say that the bucket is there."""
        self.begin()
        return BucketDescription()

    def begin(self) -> None:
        """Let others act, and refuse if the bucket is broken or away."""
        self.pause()
        if self.bucket.is_broken:
            raise PermissionDenied("made by a test")
        if self.bucket.is_away:
            raise StoreUnavailable("made by a test")

    def _at(self, name: str, generation: int) -> tuple[ObjectInfo, bytes]:
        found = self.bucket.objects.get(name)
        if found is None:
            raise ObjectNotFound(name)
        if found[0].generation != generation:
            raise PreconditionFailed(name)
        return found


@dataclass(slots=True)
class _Ended:
    """A client of runsc that has ended."""

    returncode: int = 0

    def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:  # noqa: ARG002 - as Popen has it
        """Return at once."""
        return b"", b"made by a test"


@dataclass(slots=True)
class ModelledRunsc:
    """Saves a sandbox of one container at once; ``fails`` makes the next save fail."""

    root: Path
    version: str
    pause: Pause
    fails: bool = False

    def checkpoint(self, sandbox: str, directory: Path, *, direct: bool) -> _Ended:  # noqa: ARG002 - one way to write
        """Write an image."""
        self.pause()
        if self.fails:
            self.fails = False
            return _Ended(128)
        write_image(directory, self.version, content=sandbox)
        self.pause()
        return _Ended()

    def memory_bytes(self, sandbox: str) -> int:  # noqa: ARG002 - all are alike
        """Return a size."""
        return 1 << 20

    def status(self, container: str) -> str:  # noqa: ARG002 - all are alike
        """Return ``running``."""
        return "running"


def write_image(directory: Path, version: str, *, content: str) -> None:
    """Write what runsc leaves of a sandbox with one container."""
    header = {"runsc_version": version, "container_count": "2", "container_specs": "{}"}
    text = json.dumps(header).encode()
    for part in PARTS:
        (directory / part).write_text(content, encoding="utf-8")
    (directory / STATE_FILE).write_bytes(b"gVisorSF" + struct.pack(">Q", len(text)) + text)
