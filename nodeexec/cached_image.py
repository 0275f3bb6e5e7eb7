# SPDX-License-Identifier: Apache-2.0
"""The directory of one image on this node, and what is known of it.

Its name is the digest of its manifest, so two snapshots that pin one manifest share it.
``<hex>.partial`` while it is filled, ``<hex>`` when every byte was compared; the rename is the
moment in between. ``verified.json`` says in which boot of the node the bytes were compared, and how
the files looked: until the next boot a file that looks the same is the same. Its time of change is
when the image was last used.

Whoever fills a directory, or serves from it in another process, holds a lock on it (``flock``),
which ends with the last process that has it; nothing that is locked is removed. Names change under
a lock on the directory of all of them, because an agent and its successor may live at a time.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from nodeexec.image import digest_file, sync_directory, write_durably
from nodeexec.part_download import DamagedError
from schemas.manifest import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    Manifest,
    NewerFormatError,
    digest,
)

PARTIAL_SUFFIX: Final = ".partial"
REMOVED_SUFFIX: Final = ".removed"
_VERIFIED: Final = "verified.json"
_CLAIM: Final = "claim"
_NAME: Final = re.compile(r"[0-9a-f]{64}")
_BLOCK_BYTES: Final = 512


def boot_id() -> str:
    """Return what tells this boot of the node from all others."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def directory_name(manifest_digest: str) -> str:
    """Return the name of the directory for a digest, empty if it is no digest."""
    name = manifest_digest.removeprefix("sha256:")
    return name if _NAME.fullmatch(name) else ""


@dataclass(frozen=True, slots=True)
class Verified:
    """What was compared: whose image, in which boot, and how each file looked."""

    boot: str
    snapshot_uid: str
    namespace: str
    files: Mapping[str, Sequence[int]]

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """Return the note of a directory, ``None`` if there is none that can be read."""
        try:
            raw = json.loads((directory / _VERIFIED).read_text(encoding="utf-8"))
            return cls(raw["boot"], raw["uid"], raw["namespace"], dict(raw["files"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def holds(self, directory: Path, boot: str) -> bool:
        """Whether it was in this boot, and no file has changed since."""
        try:
            return self.boot == boot and all(
                _fingerprint(directory / name) == then for name, then in self.files.items()
            )
        except OSError:
            return False


def verified(directory: Path, boot: str) -> Verified | None:
    """Return what is known of an image that was compared in this boot and looks the same."""
    note = Verified.read(directory)
    return note if note is not None and note.holds(directory, boot) else None


def note_verified(directory: Path, manifest: Manifest, *, boot: str = "") -> Verified:
    """Write down that every byte of every part was just compared, or its digest computed."""
    files = {p.name: _fingerprint(directory / p.name) for p in manifest.parts}
    note = Verified(boot or boot_id(), manifest.snapshot_uid, manifest.namespace, files)
    tree = {
        "boot": note.boot,
        "uid": note.snapshot_uid,
        "namespace": note.namespace,
        "files": files,
    }
    write_durably(directory / _VERIFIED, json.dumps(tree).encode())
    return note


def verify_sealed(directory: Path, manifest_digest: str, *, boot: str) -> None:
    """Compare an image that was saved here, and remove what is not part of it.

    What was noted when it was sealed is believed as long as the files look as they did then.

    Raises:
        DamagedError, NewerFormatError, OSError: as ``verify``.
    """
    manifest = _read(directory, manifest_digest)
    parts = {p.name for p in manifest.parts}
    for path in directory.iterdir():
        if path.name not in {MANIFEST_NAME, SIGNATURE_NAME, _VERIFIED, *parts}:
            path.unlink()
    note = verified(directory, boot)
    owner = (manifest.snapshot_uid, manifest.namespace)
    if note is None or (note.snapshot_uid, note.namespace) != owner or note.files.keys() != parts:
        verify(directory, manifest_digest, boot=boot)


def verify(directory: Path, manifest_digest: str, *, boot: str = "") -> Verified:
    """Read every byte again, compare it with the manifest beside it, and write that down.

    Raises:
        DamagedError: with what differs, or is not there.
        NewerFormatError: a newer podsnap wrote it.
        OSError: it cannot be told now; the image may be whole.
    """
    manifest = _read(directory, manifest_digest)
    for part in manifest.parts:
        try:
            found = digest_file(directory / part.name, sync=False)
        except FileNotFoundError as error:
            raise DamagedError(f"part {part.name} is missing") from error
        if (found.length_bytes, found.digests) != (part.length_bytes, part.digests):
            raise DamagedError(f"part {part.name} differs from the manifest")
    return note_verified(directory, manifest, boot=boot)


def _read(directory: Path, manifest_digest: str) -> Manifest:
    try:
        text = (directory / MANIFEST_NAME).read_bytes()
    except FileNotFoundError as error:
        raise DamagedError(f"{MANIFEST_NAME} is missing") from error
    if digest(text) != manifest_digest:
        raise DamagedError(f"{MANIFEST_NAME} differs from its digest")
    try:
        return Manifest.parse(text)
    except NewerFormatError:
        raise
    except ValueError as error:
        raise DamagedError(f"{MANIFEST_NAME} cannot be read: {error}") from error


def publish(
    partial: Path, manifest: bytes, signature: bytes | None = None, *, boot: str = ""
) -> Path:
    """Turn a filled directory into an image.

    Every part lies there, was compared chunk by chunk, and is durable. Returns the new path.
    """
    write_durably(partial / MANIFEST_NAME, manifest)
    if signature is not None:
        write_durably(partial / SIGNATURE_NAME, signature)
    note_verified(partial, Manifest.parse(manifest), boot=boot)
    (partial / _CLAIM).unlink(missing_ok=True)
    sync_directory(partial)
    directory = partial.with_name(directory_name(digest(manifest)))
    with exclusive(directory.parent):
        take_place(partial, directory, boot=boot)
    return directory


def take_place(source: Path, directory: Path, *, boot: str = "") -> None:
    """Give an image its name, within ``exclusive``; what had it and is as good stays instead.

    Else what had it is deleted last, because that may take seconds.
    """
    removed = directory.with_name(directory.name + REMOVED_SUFFIX)
    shutil.rmtree(removed, ignore_errors=True)
    if directory.exists():
        if verified(directory, boot or boot_id()) is not None:
            shutil.rmtree(source, ignore_errors=True)
            return
        directory.rename(removed)
    source.rename(directory)
    sync_directory(directory.parent)
    shutil.rmtree(removed, ignore_errors=True)


@contextlib.contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Be the only thread of all processes that makes and removes directories below ``root``."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Filling:
    """A directory that is being filled, and nobody else's as long as it is not closed.

    Another process that inherits ``descriptor`` keeps it so, whatever becomes of this one.
    """

    def __init__(self, directory: Path, claim_bytes: int) -> None:
        """Make the directory; ``claim_bytes`` are those that it will take in the end."""
        directory.mkdir(mode=0o700)
        self.directory = directory
        self.descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)
            write_durably(directory / _CLAIM, str(claim_bytes).encode())
        except OSError:
            self.discard()
            raise

    def close(self) -> None:
        """Leave it to whoever has the descriptor too."""
        os.close(self.descriptor)

    def discard(self) -> None:
        """Remove what did not become an image."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.close()


def is_locked(directory: Path) -> bool:
    """Whether somebody fills the directory or serves from it; asking is in nobody's way."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def allocated_bytes(directory: Path) -> int:
    """Return what the file system gave to the files of a directory."""
    total_bytes = 0
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                total_bytes += entry.stat(follow_symlinks=False).st_blocks * _BLOCK_BYTES
    return total_bytes


def claimed_bytes(directory: Path) -> int:
    """Return what a directory will take once it is filled, 0 if it does not say."""
    try:
        return int((directory / _CLAIM).read_bytes())
    except (OSError, ValueError):
        return 0


def _fingerprint(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]
