# SPDX-License-Identifier: Apache-2.0
"""A directory that behaves as a bucket.

An object is one file at its own name, so that a person can look at it; generation, checksum and
metadata are extended attributes of that file. It is written elsewhere, made durable and renamed
into place, under a lock that dies with its process: an object is there whole or not at all, and
every write and delete has compared the generation.
"""

import base64
import contextlib
import errno
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Final

import google_crc32c

from backends.objects.interface import (
    BucketDescription,
    BucketMissing,
    ObjectInfo,
    ObjectNotFound,
    PermissionDenied,
    PreconditionFailed,
    PutCancelledError,
    RangeReader,
    StoreError,
    never,
)

_ATTRIBUTE: Final = "user.podsnap"
_INTERNAL: Final = ".podsnap"
_BLOCK_BYTES: Final = 4 << 20


class LocalDirStore:
    """One bucket in a directory. The bucket must exist, as in Cloud Storage."""

    def __init__(self, root: Path) -> None:
        """Use the directory ``root`` as the bucket."""
        self._root = root
        self._temporary = root / _INTERNAL / "tmp"
        self._lock_file = root / _INTERNAL / "lock"

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
        with path.open("rb") as source, self._errors(name):
            return self._put(name, _blocks(source, cancelled), if_generation_match, metadata)

    def put_bytes(
        self,
        name: str,
        data: bytes,
        *,
        if_generation_match: int,
        metadata: Mapping[str, str],
    ) -> ObjectInfo:
        """Store bytes."""
        with self._errors(name):
            return self._put(name, iter([data]), if_generation_match, metadata)

    def discard_put(
        self,
        name: str,  # noqa: ARG002 - a writer's file has no name yet, nor marks
        *,
        metadata: Mapping[str, str],  # noqa: ARG002 - as above
        size_bytes: int,  # noqa: ARG002 - as above
    ) -> None:
        """Remove what killed writers left: a living one's file goes with its call."""
        with contextlib.suppress(StoreError), self._errors(""):
            self._sweep_temporary()

    def stat(self, name: str, *, generation: int | None = None) -> ObjectInfo | None:
        """Return what is known of an object."""
        with self._errors(name):
            self._require_bucket()  # a bucket that is away must not look like lost objects
            info = self._info(name, self._path(name))
            if info is None or generation not in {None, info.generation}:
                return None
            return info

    def read_range(self, name: str, *, generation: int, start: int, end: int) -> bytes:
        """Return a range of an object."""
        with self._errors(name), self._open(name, generation) as descriptor:
            return os.pread(descriptor, max(end - start, 0), start)

    @contextlib.contextmanager
    def open_range(
        self, name: str, *, generation: int, start: int, end: int
    ) -> Iterator[RangeReader]:
        """Open one stream of a range."""
        with contextlib.ExitStack() as stack:
            # Only our own errors are the bucket's: the block's may be a full disk's.
            with self._errors(name):
                descriptor = stack.enter_context(self._open(name, generation))
            yield _FileRange(descriptor, start, end, lambda: self._errors(name))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects below a prefix, folder by folder."""
        with self._errors(prefix):
            self._require_bucket()
            self._path(f"{prefix}x")  # a prefix is the beginning of a name, and bound as one
            # Only the folder that the prefix names is walked.
            folder = self._root / prefix.rpartition("/")[0]
            for directory, folders, files in os.walk(folder):
                folders[:] = sorted(f for f in folders if f != _INTERNAL)
                for file in sorted(files):
                    path = Path(directory) / file
                    name = str(path.relative_to(self._root))
                    info = self._info(name, path) if name.startswith(prefix) else None
                    if info is not None:
                        yield info

    def delete(self, name: str, *, if_generation_match: int) -> None:
        """Delete one generation of an object."""
        path = self._path(name)
        self._require_bucket()
        with self._errors(name), self._locked():
            info = self._info(name, path)
            if info is None:
                raise ObjectNotFound(f"{name} does not exist")
            if info.generation != if_generation_match:
                raise PreconditionFailed(f"{name} has generation {info.generation} by now")
            path.unlink()
            _sync_directory(path.parent)
            self._prune(path.parent)

    def remove_folder(self, path: str) -> None:
        """Do nothing: ``delete`` removed the folder with its last file."""

    def describe(self) -> BucketDescription:
        """Return nothing but that the bucket is there."""
        with self._errors(""):
            self._require_bucket()
            self._sweep_temporary()
        return BucketDescription()

    def _put(
        self,
        name: str,
        blocks: Iterator[bytes],
        if_generation_match: int,
        metadata: Mapping[str, str],
    ) -> ObjectInfo:
        self._require_bucket()
        target = self._path(name)
        temporary = self._temporary_file()
        checksum = google_crc32c.Checksum()
        size_bytes = 0
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            for block in blocks:
                checksum.update(block)
                size_bytes += len(block)
                _write_all(descriptor, block)
            info = ObjectInfo(
                name=name,
                generation=0,
                size_bytes=size_bytes,
                crc32c=base64.b64encode(checksum.digest()).decode(),
                metadata=dict(metadata),
            )
            os.fsync(descriptor)
            with self._locked() as lock:
                info = replace(
                    info,
                    generation=_next_generation(lock),
                    created_s=os.fstat(descriptor).st_mtime,
                )
                self._place(info, descriptor, temporary, target, if_generation_match)
        finally:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
        return info

    def _place(
        self,
        info: ObjectInfo,
        descriptor: int,
        temporary: Path,
        target: Path,
        if_generation_match: int,
    ) -> None:
        present = self._info(info.name, target)
        found = present.generation if present else 0
        if found != if_generation_match:
            raise PreconditionFailed(f"{info.name} has generation {found} by now")
        attribute = {
            "generation": info.generation,
            "crc32c": info.crc32c,
            "metadata": dict(info.metadata),
        }
        os.setxattr(descriptor, _ATTRIBUTE, json.dumps(attribute).encode())
        os.fsync(descriptor)  # the name must not outlive the attributes
        self._make_folder(target.parent)
        temporary.rename(target)
        for folder in target.relative_to(self._root).parents:
            _sync_directory(self._root / folder)

    def _info(self, name: str, path: Path) -> ObjectInfo | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return _read_info(name, descriptor)
        except OSError as error:
            if error.errno in {errno.ENODATA, errno.EISDIR}:
                return None  # a file that somebody else put here is no object
            raise
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _open(self, name: str, generation: int) -> Iterator[int]:
        self._require_bucket()
        try:
            descriptor = os.open(self._path(name), os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise ObjectNotFound(f"{name} does not exist") from error
        try:
            if _read_info(name, descriptor).generation != generation:
                raise ObjectNotFound(f"{name} is not there with generation {generation}")
            yield descriptor
        finally:
            os.close(descriptor)

    def _path(self, name: str) -> Path:
        parts = name.split("/")
        if not name or "\0" in name or any(p in {"", ".", "..", _INTERNAL} for p in parts):
            raise StoreError(f"{name!r} is no name of an object")
        return self._root.joinpath(*parts)

    def _temporary_file(self) -> Path:
        self._make_folder(self._temporary)
        return self._temporary / f"{os.getpid()}-{secrets.token_hex(8)}"

    def _make_folder(self, folder: Path) -> None:
        """Make a folder of the bucket, never the bucket: it may just have been deleted."""
        for each in reversed([folder, *folder.parents]):
            if each.is_relative_to(self._root) and each != self._root:
                each.mkdir(mode=0o700, exist_ok=True)

    def _sweep_temporary(self) -> None:
        """Remove what a killed process left; its number is the name's first part."""
        if not self._temporary.is_dir():
            return
        now_s = time.time()
        for leftover in self._temporary.iterdir():
            with contextlib.suppress(FileNotFoundError, ValueError):
                # Another pid namespace may share the directory, so age counts as well.
                if now_s - leftover.stat().st_mtime > _TEMPORARY_LIMIT_S:
                    leftover.unlink()

    def _prune(self, directory: Path) -> None:
        while directory != self._root:
            try:
                directory.rmdir()
            except OSError:
                return  # not empty: the folder of something else
            directory = directory.parent

    def _require_bucket(self) -> None:
        if not self._root.is_dir():
            raise BucketMissing(
                f"bucket {self._root.name} does not exist; create it "
                f"(on a local cluster: mkdir {self._root})"
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        self._make_folder(self._lock_file.parent)
        descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            self._require_bucket()
            raise StoreError(f"{name}: {error.strerror} ({error.filename})") from error
        except PermissionError as error:
            raise PermissionDenied(f"{name}: {error.strerror} ({error.filename})") from error
        except OSError as error:
            if error.errno == errno.ENOTSUP:
                raise StoreError(
                    f"the file system below {self._root} has no extended attributes; "
                    "use ext4, xfs or btrfs"
                ) from error
            raise StoreError(f"{name}: {error.strerror or error}") from error


_TEMPORARY_LIMIT_S: Final = 3600.0


class _FileRange:
    """A range of an open file."""

    def __init__(
        self,
        descriptor: int,
        start: int,
        end: int,
        errors: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._descriptor, self._at, self._end, self._errors = descriptor, start, end, errors

    def readinto(self, buffer: memoryview) -> int:
        with self._errors():
            count = os.preadv(self._descriptor, [buffer[: max(self._end - self._at, 0)]], self._at)
        self._at += count
        return count


def _blocks(source: BinaryIO, cancelled: Callable[[], bool]) -> Iterator[bytes]:
    while block := source.read(_BLOCK_BYTES):
        if cancelled():
            raise PutCancelledError
        yield block


def _next_generation(lock: int) -> int:
    """Return a number above every earlier one of the bucket; the lock's file remembers it."""
    text = os.pread(lock, 64, 0)
    generation = max(time.time_ns() // 1000, int(text or b"0") + 1)
    os.pwrite(lock, b"%d" % generation, 0)
    return generation


def _read_info(name: str, descriptor: int) -> ObjectInfo:
    attribute = json.loads(os.getxattr(descriptor, _ATTRIBUTE))
    stat = os.fstat(descriptor)
    return ObjectInfo(
        name=name,
        generation=attribute["generation"],
        size_bytes=stat.st_size,
        crc32c=attribute["crc32c"],
        metadata=attribute["metadata"],
        created_s=stat.st_mtime,
    )


def _write_all(descriptor: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
