# SPDX-License-Identifier: Apache-2.0
"""A directory as a bucket, with a real bucket's guarantees: whole objects, generations, create-once.

An object is a file at its own name, so that people find it; what a bucket knows beside the bytes
(generation, CRC32C, custom metadata) stands in the file's extended attributes, so that bytes and
knowledge appear by one rename. The trap is any order in which a crash leaves a name without all of
it: everything is written and synced under ``.tmp`` first.
"""

import base64
import contextlib
import errno
import fcntl
import json
import os
import secrets
import stat as file_modes
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

import google_crc32c

from backends.objects.interface import (
    BLOCK_BYTES,
    BucketMissing,
    IntegrityError,
    ObjectInfo,
    ObjectNotFound,
    OnBlock,
    PermissionDenied,
    PreconditionFailed,
    Progress,
    StoreError,
)

_ATTRIBUTE: Final = "user.podsnap.object"
_TEMPORARY: Final = ".tmp"
_LOCK: Final = "lock"
_GENERATION: Final = "generation"
_NAME_LIMIT_BYTES: Final = 1024
_STALE_S: Final = 24 * 3600.0

Opened = tuple[BinaryIO, ObjectInfo]


class LocalDirectory:
    """One bucket below a root directory."""

    def __init__(self, root: Path, bucket: str) -> None:
        """``root/bucket`` is the bucket; it must exist before anything is stored.

        Raises:
            StoreError: the bucket's name is not one.
        """
        if not bucket or bucket.startswith(".") or "/" in bucket or "\0" in bucket:
            raise StoreError(f"{bucket!r} is not a bucket name; use letters, digits, '.', '_', '-'")
        self.bucket = bucket
        self._top = root / bucket
        self._temporaries = self._top / _TEMPORARY

    def create_bucket(self) -> None:
        """Make the bucket, if it is not there."""
        with _translated(self.bucket):
            self._top.mkdir(mode=0o700, parents=True, exist_ok=True)

    # -- writing

    def put_file(
        self,
        name: str,
        path: Path,
        *,
        if_generation_match: int | None,
        metadata: Mapping[str, str],
        progress: Progress | None = None,
    ) -> ObjectInfo:
        """Store a file; ``if_generation_match=0`` only creates, ``None`` overwrites anything."""
        with _translated(str(path)), path.open("rb", buffering=0) as source:
            blocks = _blocks(source)
            return self._put(
                name, blocks, match=if_generation_match, metadata=metadata, progress=progress
            )

    def put_bytes(
        self,
        name: str,
        data: bytes,
        *,
        if_generation_match: int | None,
        metadata: Mapping[str, str],
    ) -> ObjectInfo:
        """Store bytes, as ``put_file`` does."""
        return self._put(
            name, iter((data,)), match=if_generation_match, metadata=metadata, progress=None
        )

    def delete(self, name: str, *, if_generation_match: int | None) -> None:
        """Delete the object; folders that it leaves empty go too."""
        path = self._path(name)
        with _translated(name), self._locked():
            present = self._info(name)
            if present is None:
                raise ObjectNotFound(f"gs://{self.bucket}/{name} does not exist")
            _require(present, name, if_generation_match)
            path.unlink()
            _sync_directory(path.parent)
            for folder in path.parents:
                if folder == self._top:
                    break
                try:
                    folder.rmdir()
                except OSError:
                    break  # not empty

    def sweep(self, *, older_than_s: float = _STALE_S) -> int:
        """Remove temporary files that a crash left behind; returns how many."""
        removed = 0
        if not self._temporaries.is_dir():
            return removed
        with _translated(_TEMPORARY):
            for entry in self._temporaries.iterdir():
                if entry.name in {_LOCK, _GENERATION}:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - entry.stat().st_mtime > older_than_s:
                        entry.unlink()
                        removed += 1
        return removed

    def check_writable(self) -> None:
        """Return if objects can be written, extended attributes included."""
        with _translated(self.bucket):
            probe = self._temporary()
            try:
                with probe.open("xb", buffering=0) as file:
                    _write_attribute(file.fileno(), {"probe": True})
            finally:
                probe.unlink(missing_ok=True)

    # -- reading

    def stat(self, name: str, generation: int | None = None) -> ObjectInfo | None:
        """Return the object, or ``None`` if there is none of this name and generation."""
        self._path(name)
        with _translated(name):
            self._require_bucket()
            present = self._info(name)
        if present is None or generation not in {None, present.generation}:
            return None
        return present

    def read_range(self, name: str, *, generation: int, start: int, end: int) -> bytes:
        """Return bytes ``start`` up to, not including, ``end``; fewer at the object's end."""
        with _translated(name), self._open(name, generation) as (file, _):
            file.seek(start)
            return b"".join(_blocks(file, limit=max(end - start, 0)))

    def download(
        self, name: str, path: Path, *, generation: int, on_block: OnBlock | None = None
    ) -> ObjectInfo:
        """Copy the object into a new file (0600) that is on disk when this returns."""
        with _translated(name), self._open(name, generation) as (file, info):
            checksum, length = google_crc32c.Checksum(), 0
            target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                with open(target, "wb", buffering=0) as out:  # noqa: PTH123 - a descriptor
                    for block in _blocks(file):
                        checksum.update(block)
                        length += len(block)
                        if on_block:
                            on_block(block)
                        _write_all(out, block)
                    os.fsync(out.fileno())
                found = _encoded(checksum)
                if (found, length) != (info.crc32c, info.size_bytes):
                    raise IntegrityError(
                        name,
                        f"crc32c {found} of {length} bytes, stored was {info.crc32c} of "
                        f"{info.size_bytes}; the file in the bucket's directory was changed",
                    )
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            return info

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose names start with ``prefix``, ordered by name."""
        folder, _, _ = prefix.rpartition("/")
        if folder:
            self._path(folder)
        with _translated(self.bucket):
            self._require_bucket()
            top = self._top / folder if folder else self._top
            names = sorted(
                str(Path(directory, file).relative_to(self._top))
                for directory, _, files in os.walk(top)
                if self._temporaries not in (Path(directory), *Path(directory).parents)
                for file in files
            )
        for name in names:
            if name.startswith(prefix):
                with _translated(name):
                    info = self._info(name)
                if info is not None:
                    yield info

    # -- inside

    def _put(
        self,
        name: str,
        blocks: Iterator[bytes],
        *,
        match: int | None,
        metadata: Mapping[str, str],
        progress: Progress | None,
    ) -> ObjectInfo:
        path = self._path(name)
        with _translated(name):
            self._require_bucket()
            _require(self._info(name), name, match)  # before the bytes; decided below
            temporary = self._temporary()
            try:
                crc32c, length = _write_new(temporary, blocks, progress)
                with self._locked():
                    _require(self._info(name), name, match)
                    generation = self._next_generation()
                    known = {"generation": generation, "crc32c": crc32c, "metadata": dict(metadata)}
                    with temporary.open("rb+", buffering=0) as file:
                        _write_attribute(file.fileno(), known)
                        os.fsync(file.fileno())
                    self._make_parents(path)
                    _publish(temporary, path, create=match == 0)
                    _sync_directory(path.parent)
            finally:
                temporary.unlink(missing_ok=True)
            info = ObjectInfo(
                name=name,
                generation=generation,
                size_bytes=length,
                crc32c=crc32c,
                metadata=dict(metadata),
                updated=datetime.now(UTC),
            )
            return self._info(name, expected=generation) or info

    def _path(self, name: str) -> Path:
        segments = name.split("/")
        bad = (
            not name
            or "\0" in name
            or len(name.encode()) > _NAME_LIMIT_BYTES
            or any(segment in {"", ".", ".."} for segment in segments)
            or segments[0] == _TEMPORARY
        )
        if bad:
            raise StoreError(
                f"{name[:80]!r} is not an object name here: no empty, '.' or '..' segment, no "
                f"leading {_TEMPORARY}, no NUL, at most {_NAME_LIMIT_BYTES} bytes"
            )
        return self._top.joinpath(*segments)

    def _require_bucket(self) -> None:
        if not self._top.is_dir():
            raise BucketMissing(
                f"bucket {self.bucket} does not exist; create it as the directory {self._top}"
            )

    def _temporary(self) -> Path:
        self._require_bucket()
        self._temporaries.mkdir(mode=0o700, exist_ok=True)
        return self._temporaries / secrets.token_hex(16)

    def _make_parents(self, path: Path) -> None:
        missing = []
        for folder in path.parents:
            if folder.is_dir():
                break
            missing.append(folder)
        for folder in reversed(missing):
            folder.mkdir(mode=0o700)
            _sync_directory(folder.parent)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the bucket's lock; the kernel drops it with the process that held it."""
        self._require_bucket()
        self._temporaries.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(self._temporaries / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _next_generation(self) -> int:
        """Return a number above every earlier one, even if the machine's clock went back."""
        counter = self._temporaries / _GENERATION
        try:
            last = int(counter.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            last = 0
        generation = max(last + 1, time.time_ns() // 1000)
        fresh = self._temporary()
        _write_new(fresh, iter((str(generation).encode(),)), None)
        fresh.rename(counter)
        return generation

    def _info(self, name: str, expected: int | None = None) -> ObjectInfo | None:
        with contextlib.suppress(ObjectNotFound), self._open(name, expected) as (_, info):
            return info
        return None

    @contextlib.contextmanager
    def _open(self, name: str, generation: int | None) -> Iterator[Opened]:
        """Open one generation: the descriptor stays on it whatever happens to the name."""
        self._require_bucket()
        path = self._path(name)
        absent = ObjectNotFound(f"gs://{self.bucket}/{name} does not exist in this generation")
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                raise absent from error
            raise
        with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
            info = _read_info(name, descriptor)
            if info is None or generation not in {None, info.generation}:
                raise absent
            yield file, info


def _publish(temporary: Path, path: Path, *, create: bool) -> None:
    try:
        if create:
            os.link(temporary, path)  # fails where anything has the name, lock or not
        else:
            temporary.rename(path)
    except (FileExistsError, IsADirectoryError) as error:
        raise PreconditionFailed(f"{path} exists; only another generation was expected") from error


def _require(present: ObjectInfo | None, name: str, match: int | None) -> None:
    found = present.generation if present else 0
    if match is not None and match != found:
        raise PreconditionFailed(f"{name} has generation {found}, expected was {match}")


def _write_new(path: Path, blocks: Iterator[bytes], progress: Progress | None) -> tuple[str, int]:
    """Write and sync a new file; returns its CRC32C and length."""
    checksum, length = google_crc32c.Checksum(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor
        for block in blocks:
            checksum.update(block)
            _write_all(file, block)
            length += len(block)
            if progress:
                progress(length)
        os.fsync(descriptor)
    return _encoded(checksum), length


def _write_all(file: BinaryIO, block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[file.write(rest) :]


def _blocks(file: BinaryIO, limit: int | None = None) -> Iterator[bytes]:
    left = limit
    while left is None or left > 0:
        block = file.read(BLOCK_BYTES if left is None else min(BLOCK_BYTES, left))
        if not block:
            return
        if left is not None:
            left -= len(block)
        yield block


def _encoded(checksum: google_crc32c.Checksum) -> str:
    return base64.b64encode(checksum.digest()).decode("ascii")


def _write_attribute(descriptor: int, known: Mapping[str, object]) -> None:
    os.setxattr(descriptor, _ATTRIBUTE, json.dumps(known).encode())


def _read_info(name: str, descriptor: int) -> ObjectInfo | None:
    """Return what the attributes say; a file without them was never stored by us."""
    status = os.fstat(descriptor)
    if not file_modes.S_ISREG(status.st_mode):
        return None
    try:
        known = json.loads(os.getxattr(descriptor, _ATTRIBUTE))
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise
    return ObjectInfo(
        name=name,
        generation=known["generation"],
        size_bytes=status.st_size,
        crc32c=known["crc32c"],
        metadata=known["metadata"],
        updated=datetime.fromtimestamp(status.st_mtime, UTC),
    )


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """Let only ``StoreError`` types out, each with what to do."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            raise StoreError(
                f"{what}: the file system keeps no user extended attributes, so generations cannot "
                "be stored; put the bucket's directory on ext4, xfs or btrfs"
            ) from error
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise PermissionDenied(f"{what}: {error}; check owner and mount") from error
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StoreError(f"{what}: the disk is full ({error}); free space") from error
        raise StoreError(f"{what}: {error}") from error
