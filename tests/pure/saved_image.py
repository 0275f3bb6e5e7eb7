# SPDX-License-Identifier: Apache-2.0
"""An image that was saved and uploaded into a directory as a bucket, and a cache without it."""

import json
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from api_objects import NODE, capture_of, pod, snapshot

from backends.objects.interface import ObjectInfo, ObjectStore, RangeReader
from backends.objects.localdir import LocalDirStore
from nodeexec.image import PARTS, inspect, seal
from nodeexec.node_cache import NodeCache
from nodeexec.upload import ATTEMPT_KEY, SNAPSHOT_UID_KEY, upload
from policies.distill import distill
from schemas.manifest import Manifest
from schemas.snapshot import Snapshot
from schemas.storage_config import Location

ALL_PARTS = (*PARTS, "metadata")
MIB = 1 << 20


def write_image(
    directory: Path, *, specs: str = '{"main": {}}', pages_bytes: int = 100_000
) -> None:
    """Write files as runsc does."""
    directory.mkdir(exist_ok=True)
    header = {"runsc_version": "r", "container_count": "2", "container_specs": specs}
    text = json.dumps(header).encode()
    state = b"gVisorSF" + struct.pack(">Q", len(text)) + text + b"objects"
    (directory / "checkpoint.img").write_bytes(state)
    (directory / "pages_meta.img").write_bytes(b"m" * 1000)
    (directory / "pages.img").write_bytes(os.urandom(pages_bytes))


class CountingStore(LocalDirStore):
    """A bucket that counts the bytes of parts that leave it, and can be told to act on each."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.root = root
        self.moved_bytes = 0
        self.on_read: Callable[[int], None] = lambda _: None

    @contextmanager
    def open_range(
        self, name: str, *, generation: int, start: int, end: int
    ) -> Iterator[RangeReader]:
        """Open one stream of a range."""
        with super().open_range(name, generation=generation, start=start, end=end) as stream:
            yield _CountedReader(stream, self)


@dataclass(frozen=True, slots=True)
class _CountedReader:
    stream: RangeReader
    store: CountingStore

    def readinto(self, buffer: memoryview) -> int:
        self.store.on_read(self.store.moved_bytes)
        count = self.stream.readinto(buffer)
        self.store.moved_bytes += count
        return count


@dataclass(slots=True)
class Saved:
    """A snapshot in a bucket, and the directory that it was saved from."""

    store: CountingStore
    source: Path
    snapshot: Snapshot
    manifest: Manifest
    cache: NodeCache
    cache_dir: Path
    opened: list[Snapshot] = field(default_factory=list)

    @property
    def folder(self) -> str:
        """Where its objects lie in the bucket."""
        capture = self.snapshot.capture
        assert capture is not None
        assert capture.location is not None
        return capture.location.path

    def upload(self, manifest: Manifest | None = None) -> str:
        """Upload it (again); returns the manifest's digest."""
        location = Location("bucket", self.folder)
        found = manifest or self.manifest
        return upload(self.store, location, self.source, found, cancelled=lambda: False).digest

    @property
    def digest(self) -> str:
        """The digest of its manifest."""
        assert self.snapshot.capture is not None
        return self.snapshot.capture.manifest_digest

    @property
    def name(self) -> str:
        """The name of its directory in a cache."""
        return self.digest.removeprefix("sha256:")

    def object(self, part: str) -> Path:
        """Return the file that is a part's object."""
        return self.store.root / self.folder / part

    def info(self, part: str) -> ObjectInfo:
        """Return what the bucket says of a part."""
        info = self.store.stat(f"{self.folder}/{part}")
        assert info is not None
        return info

    def replace(self, part: str, data: bytes) -> None:
        """Store other bytes under a part's name, with a checksum that is right."""
        self.store.put_bytes(
            f"{self.folder}/{part}",
            data,
            if_generation_match=self.info(part).generation,
            metadata={SNAPSHOT_UID_KEY: self.snapshot.metadata.uid, ATTEMPT_KEY: "0"},
        )

    def open(self) -> ObjectStore:
        """Open the bucket, and remember that it was."""
        self.opened.append(self.snapshot)
        return self.store

    def fetch(self, cache: NodeCache | None = None, *, of: Snapshot | None = None) -> Path:
        """Fetch the snapshot into a cache."""
        return (cache or self.cache).fetch(of or self.snapshot, self.open)

    def is_whole(self, directory: Path) -> bool:
        """Whether a directory holds the bytes that were saved."""
        return all(
            (directory / part).read_bytes() == (self.source / part).read_bytes()
            for part in ALL_PARTS
        )

    def assert_nothing_cached(self) -> None:
        """Neither a verified image nor half of one."""
        assert list(self.cache_dir.iterdir()) == []
        assert self.cache.lookup(self.snapshot) is None


def save_image(
    directory: Path,
    cache: NodeCache,
    cache_dir: Path,
    *,
    name: str = "one",
    pages_bytes: int = 100_000,
) -> Saved:
    """Seal and upload an image."""
    (directory / "bucket").mkdir(exist_ok=True)
    store = CountingStore(directory / "bucket")
    source = directory / f"source-of-{name}"
    write_image(source, pages_bytes=pages_bytes)
    parts = seal(source, inspect(source))
    empty = snapshot(name)
    manifest = Manifest(
        snapshot_uid=empty.metadata.uid,
        snapshot_name=name,
        namespace=empty.metadata.namespace,
        cluster_id="c",
        attempt=1,
        parts=parts,
        identity=distill(pod()),
        compatibility=NODE,
    )
    location = Location("bucket", f"snapshots/{name}")
    pinned = upload(store, location, source, manifest, cancelled=lambda: False).digest
    record = replace(capture_of(pod()), location=location, manifest_digest=pinned)
    return Saved(store, source, replace(empty, capture=record), manifest, cache, cache_dir)
