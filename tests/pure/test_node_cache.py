# SPDX-License-Identifier: Apache-2.0
"""Nothing enters the node's cache that was not compared byte by byte with its manifest."""

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from api_objects import NODE, capture_of, pod, snapshot

from backends.objects.interface import ObjectInfo, PreconditionFailed
from backends.objects.localdir import LocalDirStore
from nodeexec.image import PARTS, ImageError, PartHasher, digest_file, inspect, seal
from nodeexec.node_cache import FetchError, NodeCache
from nodeexec.part_download import DamagedError
from nodeexec.upload import (
    ATTEMPT_KEY,
    SNAPSHOT_UID_KEY,
    UploadCancelledError,
    delete_attempt,
    upload,
)
from policies.distill import distill
from schemas.manifest import CHUNK_BYTES, MANIFEST_NAME, Manifest, digest
from schemas.snapshot import Snapshot
from schemas.storage_config import Location

LOCATION = Location("bucket", "snapshots/one")
ALL_PARTS = (*PARTS, "metadata")


def write_image(directory: Path, *, specs: str = '{"main": {}}') -> None:
    """Write files as runsc does."""
    directory.mkdir(exist_ok=True)
    header = {"runsc_version": "r", "container_count": "2", "container_specs": specs}
    text = json.dumps(header).encode()
    state = b"gVisorSF" + struct.pack(">Q", len(text)) + text + b"objects"
    (directory / "checkpoint.img").write_bytes(state)
    (directory / "pages_meta.img").write_bytes(b"m" * 1000)
    (directory / "pages.img").write_bytes(os.urandom(100_000))


UID = snapshot().metadata.uid


@dataclass(frozen=True, slots=True)
class Saved:
    """A snapshot in a bucket, and the directory that it was saved from."""

    store: LocalDirStore
    source: Path
    snapshot: Snapshot
    manifest: Manifest
    cache: NodeCache
    cache_dir: Path

    @property
    def uid(self) -> str:
        """The snapshot's UID."""
        return self.snapshot.metadata.uid

    def object(self, part: str) -> Path:
        """Return the file that is a part's object."""
        return self.store._root / LOCATION.path / part

    def info(self, part: str) -> ObjectInfo:
        """Return what the bucket says of a part."""
        info = self.store.stat(f"{LOCATION.path}/{part}")
        assert info is not None
        return info

    def replace(self, part: str, data: bytes) -> None:
        """Store other bytes under a part's name, with a checksum that is right."""
        self.store.put_bytes(
            f"{LOCATION.path}/{part}",
            data,
            if_generation_match=self.info(part).generation,
            metadata={SNAPSHOT_UID_KEY: UID, ATTEMPT_KEY: "0"},
        )


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """A sealed and uploaded image."""
    (tmp_path / "bucket").mkdir()
    store = LocalDirStore(tmp_path / "bucket")
    source = tmp_path / "source"
    write_image(source)
    parts = seal(source, inspect(source))
    manifest = Manifest(
        snapshot_uid=UID,
        snapshot_name="one",
        namespace="shop",
        cluster_id="c",
        attempt=1,
        parts=parts,
        identity=distill(pod()),
        compatibility=NODE,
    )
    pinned = upload(store, LOCATION, source, manifest, cancelled=lambda: False)
    record = replace(capture_of(pod()), location=LOCATION, manifest_digest=pinned)
    found = snapshot(capture=record)
    return Saved(store, source, found, manifest, NodeCache(tmp_path / "cache"), tmp_path / "cache")


def assert_nothing_cached(saved: Saved) -> None:
    """Neither a verified image nor half of one."""
    assert list(saved.cache_dir.iterdir()) == []
    assert saved.cache.lookup(saved.uid) is None


def test_a_whole_image_is_fetched_and_found_again(saved: Saved) -> None:
    """By another process too, and without the bucket; whoever asked is told how far it is."""
    came: list[tuple[int, int]] = []
    directory = saved.cache.fetch(
        saved.snapshot, saved.store, on_progress=lambda *bytes_: came.append(bytes_)
    )
    assert came == sorted(came)
    assert came[-1] == (saved.manifest.size_bytes, saved.manifest.size_bytes)
    for part in ALL_PARTS:
        assert (directory / part).read_bytes() == (saved.source / part).read_bytes()
    assert saved.cache.lookup(saved.uid) == directory
    assert NodeCache(saved.cache_dir).lookup(saved.uid) == directory
    assert directory.stat().st_mode & 0o777 == 0o700
    saved.object("pages.img").unlink()
    assert saved.cache.fetch(saved.snapshot, saved.store) == directory


@pytest.mark.parametrize("part", ALL_PARTS)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_flipped_byte_is_found_and_the_part_is_named(saved: Saved, part: str, where: str) -> None:
    """In the file itself, under the checksum that the bucket keeps."""
    with saved.object(part).open("r+b") as file:
        size = file.seek(0, 2)
        at = {"first": 0, "middle": size // 2, "last": size - 1}[where]
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(DamagedError, match=part):
        saved.cache.fetch(saved.snapshot, saved.store)
    assert_nothing_cached(saved)


@pytest.mark.parametrize("part", ALL_PARTS)
def test_a_cut_part_is_found_and_named(saved: Saved, part: str) -> None:
    """One byte less is enough."""
    os.truncate(saved.object(part), saved.info(part).size_bytes - 1)
    with pytest.raises(DamagedError, match=f"part {part} has"):
        saved.cache.fetch(saved.snapshot, saved.store)
    assert_nothing_cached(saved)


@pytest.mark.parametrize("part", ALL_PARTS)
def test_a_missing_part_is_named(saved: Saved, part: str) -> None:
    """It cannot come back by trying again."""
    saved.object(part).unlink()
    with pytest.raises(DamagedError, match=f"part {part} is missing or was replaced"):
        saved.cache.fetch(saved.snapshot, saved.store)
    assert_nothing_cached(saved)


@pytest.mark.parametrize("part", ALL_PARTS)
def test_a_replaced_part_is_no_part_even_with_equal_bytes(saved: Saved, part: str) -> None:
    """The manifest pins the generation: another attempt is never mixed in."""
    saved.replace(part, (saved.source / part).read_bytes())
    with pytest.raises(DamagedError, match=f"part {part} is missing or was replaced"):
        saved.cache.fetch(saved.snapshot, saved.store)
    assert_nothing_cached(saved)


def test_a_missing_manifest_means_no_snapshot(saved: Saved) -> None:
    """All parts are there, and yet."""
    saved.object(MANIFEST_NAME).unlink()
    with pytest.raises(DamagedError, match=r"manifest\.json is missing in gs://bucket/snap"):
        saved.cache.fetch(saved.snapshot, saved.store)
    assert_nothing_cached(saved)


def test_another_manifest_than_the_recorded_one_is_refused(saved: Saved) -> None:
    """Even a valid one: who can write the bucket must not choose what is restored."""
    saved.replace(MANIFEST_NAME, replace(saved.manifest, attempt=9).to_bytes())
    with pytest.raises(DamagedError, match="is not the one recorded"):
        saved.cache.fetch(saved.snapshot, saved.store)
    assert_nothing_cached(saved)


def test_a_recorded_manifest_that_cannot_be_read_is_damage(saved: Saved) -> None:
    """Its digest is right and its text is none of this version."""
    saved.replace(MANIFEST_NAME, b"{}")
    capture = saved.snapshot.capture
    assert capture is not None
    pinned = replace(saved.snapshot, capture=replace(capture, manifest_digest=digest(b"{}")))
    with pytest.raises(DamagedError, match="cannot be read"):
        saved.cache.fetch(pinned, saved.store)
    assert_nothing_cached(saved)


def test_a_snapshot_without_a_place_is_refused(saved: Saved) -> None:
    """Nothing can be fetched for it."""
    with pytest.raises(DamagedError, match="no place"):
        saved.cache.fetch(replace(saved.snapshot, capture=None), saved.store)


def test_a_bucket_that_does_not_answer_is_no_damage(saved: Saved) -> None:
    """Trying again may help, so the snapshot is not marked."""
    saved.store._root.rename(saved.store._root.with_name("elsewhere"))
    with pytest.raises(FetchError, match="bucket bucket does not exist"):
        saved.cache.fetch(saved.snapshot, saved.store)
    assert_nothing_cached(saved)


def _copy_over(path: Path) -> None:
    stat = path.stat()
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    os.utime(copy, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    copy.rename(path)


TOUCHES: dict[str, Callable[[Path], object]] = {
    "its bytes": lambda p: p.write_bytes(b"other"),
    "its time": lambda p: os.utime(p, (1, 1)),
    "its inode": _copy_over,
}


@pytest.mark.parametrize("what", TOUCHES)
def test_a_cached_file_that_changed_is_fetched_anew(saved: Saved, what: str) -> None:
    """What was verified is not what is there."""
    directory = saved.cache.fetch(saved.snapshot, saved.store)
    TOUCHES[what](directory / "pages.img")
    assert saved.cache.lookup(saved.uid) is None
    again = saved.cache.fetch(saved.snapshot, saved.store)
    assert (again / "pages.img").read_bytes() == (saved.source / "pages.img").read_bytes()


def test_what_a_killed_fetch_left_is_dropped_at_the_next_start(saved: Saved) -> None:
    """A half image is never taken for a whole one."""
    partial = saved.cache_dir / f"{saved.uid}.partial"
    partial.mkdir()
    (partial / "pages.img").write_bytes(b"half")
    cache = NodeCache(saved.cache_dir)
    assert list(saved.cache_dir.iterdir()) == []
    assert cache.lookup(saved.uid) is None


def test_a_sealed_directory_is_adopted_without_a_copy(saved: Saved) -> None:
    """The node that saved restores from what it has."""
    inode = (saved.source / "pages.img").stat().st_ino
    directory = saved.cache.adopt(saved.uid, saved.source)
    assert saved.cache.lookup(saved.uid) == directory
    assert (directory / "pages.img").stat().st_ino == inode
    assert saved.cache.evict_all_but(lambda uid: uid == saved.uid) == []
    assert saved.cache.evict_all_but(lambda _: False) == [saved.uid]
    assert_nothing_cached(saved)


# -- into the bucket


def test_an_upload_that_was_interrupted_is_taken_up(saved: Saved) -> None:
    """Parts of this attempt are kept, everything else in the way is replaced."""
    kept = saved.info("pages.img").generation
    saved.replace("metadata", b"torn")
    saved.object(MANIFEST_NAME).unlink()
    pinned = upload(saved.store, LOCATION, saved.source, saved.manifest, cancelled=lambda: False)
    assert saved.info("pages.img").generation == kept
    capture = saved.snapshot.capture
    assert capture is not None
    newer = replace(saved.snapshot, capture=replace(capture, manifest_digest=pinned))
    saved.cache.fetch(newer, saved.store)


def test_an_upload_that_is_not_wanted_any_more_writes_no_manifest(saved: Saved) -> None:
    """Its parts are deleted by whoever cancelled."""
    elsewhere = Location("bucket", "snapshots/two")
    answers = iter([False, False, True])
    with pytest.raises(UploadCancelledError):
        upload(
            saved.store, elsewhere, saved.source, saved.manifest, cancelled=lambda: next(answers)
        )
    assert len(list(saved.store.list("snapshots/two/"))) == 2
    assert delete_attempt(saved.store, elsewhere, "uid-of-another") == 0
    assert delete_attempt(saved.store, elsewhere, UID) == 2
    assert delete_attempt(saved.store, elsewhere, UID) == 0


# -- images


def test_an_image_is_read_and_its_secrets_stay_here(saved: Saved) -> None:
    """The small file in the bucket holds no spec, and so no environment."""
    info = inspect(saved.source)
    assert (info.runsc_version, info.container_count, info.container_names) == ("r", 2, ("main",))
    assert "container_specs" not in (saved.source / "metadata").read_text(encoding="utf-8")


HEADERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "missing or empty"),
    "of another kind": (b"ELF" * 10, "does not begin like a gVisor state file"),
    "cut in the length": (b"gVisorSF\0\0", "cannot be read"),
    "too long": (b"gVisorSF" + struct.pack(">Q", 1 << 40), "claims a header of"),
    "cut in the header": (b"gVisorSF" + struct.pack(">Q", 100) + b'{"a"', "cannot be read"),
    "no object": (b"gVisorSF" + struct.pack(">Q", 2) + b"[]", "cannot be read"),
    "null": (b"gVisorSF" + struct.pack(">Q", 4) + b"null", "cannot be read"),
    "without a version": (b"gVisorSF" + struct.pack(">Q", 2) + b"{}", "cannot be read"),
    "with a word for a count": (
        b"gVisorSF"
        + struct.pack(">Q", 47)
        + b'{"runsc_version": "r", "container_count": "two"}'[:47]
        + b"}",
        "cannot be read",
    ),
    "with specs that are null": (
        b"gVisorSF"
        + struct.pack(">Q", 74)
        + b'{"runsc_version": "r", "container_count": "2", "container_specs": "null" }',
        "cannot be read",
    ),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_state_file_that_is_none_is_told(tmp_path: Path, what: str) -> None:
    """A runsc that was killed leaves any of these."""
    data, expected = HEADERS[what]
    write_image(tmp_path / "i")
    (tmp_path / "i/checkpoint.img").write_bytes(data)
    with pytest.raises(ImageError, match=expected):
        inspect(tmp_path / "i")


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_file_of_an_image_is_named(tmp_path: Path, part: str) -> None:
    """Each of the three is needed."""
    write_image(tmp_path / "i")
    (tmp_path / "i" / part).unlink()
    with pytest.raises(ImageError, match=f"{part} is missing or empty"):
        inspect(tmp_path / "i")


def test_digests_do_not_depend_on_how_the_bytes_come(tmp_path: Path) -> None:
    """Chunks are cut at the same places, whatever the blocks; an empty file has one digest."""
    data = os.urandom(1000) * ((CHUNK_BYTES + 5000) // 1000)
    (tmp_path / "p").write_bytes(data)
    expected = digest_file(tmp_path / "p")
    assert expected.chunk_count == 2
    hasher = PartHasher("p")
    for start in range(0, len(data), 7_000_001):
        hasher.update(data[start : start + 7_000_001])
    assert hasher.part() == expected
    (tmp_path / "e").touch()
    assert digest_file(tmp_path / "e").chunk_count == 1


def test_a_status_that_points_at_another_snapshots_bytes_reaches_nothing(saved: Saved) -> None:
    """The manifest names its owner, so a copied record opens no other tenant's memory."""
    thief = snapshot("22222222-2222-5222-8222-222222222222", capture=saved.snapshot.capture)

    with pytest.raises(DamagedError, match="another PodSnapshot"):
        saved.cache.fetch(thief, saved.store)


def test_an_upload_never_removes_another_snapshots_part(saved: Saved) -> None:
    """Two snapshots that share a folder by mistake do not destroy each other."""
    stranger = replace(saved.manifest, snapshot_uid="uid-of-another")

    with pytest.raises(PreconditionFailed, match="another PodSnapshot"):
        upload(saved.store, LOCATION, saved.source, stranger, cancelled=lambda: False)

    assert saved.cache.fetch(saved.snapshot, saved.store)
