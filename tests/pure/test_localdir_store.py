# SPDX-License-Identifier: Apache-2.0
"""A directory keeps the promises of a bucket, also among processes and under kill -9."""

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from backends.objects.factory import BucketAccess, open_store
from backends.objects.interface import (
    BucketDescription,
    BucketMissing,
    ObjectNotFound,
    PreconditionFailed,
    StoreError,
)
from backends.objects.localdir import LocalDirStore

MARKS = {"podsnap-cluster": "c"}
LIMIT_S = 20


@pytest.fixture
def store(tmp_path: Path) -> LocalDirStore:
    """An empty bucket."""
    (tmp_path / "bucket").mkdir()
    return LocalDirStore(tmp_path / "bucket")


def put(store: LocalDirStore, name: str, data: bytes = b"x", generation: int = 0) -> int:
    """Store bytes and return the new generation."""
    return store.put_bytes(name, data, if_generation_match=generation, metadata=MARKS).generation


def names(store: LocalDirStore, prefix: str = "") -> list[str]:
    """Return the names below a prefix."""
    return [info.name for info in store.list(prefix)]


def test_an_object_is_read_as_it_was_written(store: LocalDirStore, tmp_path: Path) -> None:
    """Bytes, size, checksum, metadata and ranges."""
    source = tmp_path / "source"
    source.write_bytes(os.urandom(5_000_000))
    info = store.put_file("a/b/pages.img", source, if_generation_match=0, metadata=MARKS)
    assert store.stat("a/b/pages.img") == info
    assert info.size_bytes == 5_000_000
    assert dict(info.metadata) == MARKS
    piece = store.read_range("a/b/pages.img", generation=info.generation, start=100, end=110)
    assert piece == source.read_bytes()[100:110]
    buffer = memoryview(bytearray(999_999))
    data = b""
    with store.open_range(info.name, generation=info.generation, start=0, end=10**9) as stream:
        while count := stream.readinto(buffer):
            data += bytes(buffer[:count])
    assert data == source.read_bytes()


def test_the_checksum_is_the_one_of_cloud_storage(store: LocalDirStore) -> None:
    """CRC32C of "123456789" is 0xe3069283, in base64 and big-endian."""
    put(store, "a", b"123456789")
    info = store.stat("a")
    assert info is not None
    assert info.crc32c == "4waSgw=="


def test_creation_is_the_lock(store: LocalDirStore) -> None:
    """The second creator is refused and the first one's bytes stay."""
    generation = put(store, "a", b"first")
    with pytest.raises(PreconditionFailed):
        put(store, "a", b"second")
    assert store.read_range("a", generation=generation, start=0, end=99) == b"first"


def test_a_write_compares_the_generation(store: LocalDirStore) -> None:
    """Only who read the newest one may replace it."""
    first = put(store, "a", b"1")
    second = put(store, "a", b"2", first)
    assert second > first
    with pytest.raises(PreconditionFailed):
        put(store, "a", b"3", first)
    with pytest.raises(PreconditionFailed):
        put(store, "absent", b"3", first)


def test_a_read_pins_the_generation(store: LocalDirStore) -> None:
    """A replaced object is not there any more for who wanted the old one."""
    first = put(store, "a", b"1")
    second = put(store, "a", b"2", first)
    assert store.stat("a", generation=first) is None
    with pytest.raises(ObjectNotFound):
        store.read_range("a", generation=first, start=0, end=1)
    with (
        pytest.raises(ObjectNotFound),
        store.open_range("a", generation=first, start=0, end=1),
    ):
        pass
    assert store.read_range("a", generation=second, start=0, end=1) == b"2"


def test_a_delete_compares_the_generation(store: LocalDirStore) -> None:
    """Another attempt's object is never deleted by mistake."""
    first = put(store, "a")
    second = put(store, "a", b"2", first)
    with pytest.raises(PreconditionFailed):
        store.delete("a", if_generation_match=first)
    store.delete("a", if_generation_match=second)
    with pytest.raises(ObjectNotFound):
        store.delete("a", if_generation_match=second)
    assert put(store, "a") > second


def test_generations_grow_even_if_the_clock_runs_backwards(store: LocalDirStore) -> None:
    """A generation that comes back would let a stale reader pass."""
    far = 2**60
    put(store, "first")
    (store._root / ".podsnap" / "lock").write_text(str(far), encoding="utf-8")
    assert put(store, "a") == far + 1
    assert put(store, "b") == far + 2


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", ".podsnap/x", "a/.podsnap", "a\0b"]
)
def test_a_name_that_leaves_the_bucket_is_refused(store: LocalDirStore, name: str) -> None:
    """By every verb that takes one."""
    with pytest.raises(StoreError):
        put(store, name)
    with pytest.raises(StoreError):
        store.stat(name)
    with pytest.raises(StoreError):
        store.delete(name, if_generation_match=1)


def test_a_link_is_not_followed(store: LocalDirStore, tmp_path: Path) -> None:
    """Somebody who may write into the directory must not make us read elsewhere."""
    secret = tmp_path / "secret"
    secret.write_text("s", encoding="utf-8")
    (store._root / "link").symlink_to(secret)
    with pytest.raises(StoreError):
        store.stat("link")


def test_listing_is_by_prefix_and_shows_objects_alone(store: LocalDirStore) -> None:
    """Neither our own files nor somebody else's."""
    for name in ("b/2", "a/1", "a/10", "ab", "b/c/3"):
        put(store, name)
    (store._root / "a/foreign").write_text("x", encoding="utf-8")
    assert sorted(names(store)) == ["a/1", "a/10", "ab", "b/2", "b/c/3"]
    assert sorted(names(store, "a/")) == ["a/1", "a/10"]
    assert set(names(store, "a")) == {"a/1", "a/10", "ab"}
    assert names(store, "a/10") == ["a/10"]
    assert names(store, "none/") == []


def test_deleting_the_last_object_removes_its_folders(store: LocalDirStore) -> None:
    """As in Cloud Storage there are no folders, and the directory stays tidy."""
    generation = put(store, "a/b/c/1")
    other = put(store, "a/2")
    store.delete("a/b/c/1", if_generation_match=generation)
    assert not (store._root / "a/b").exists()
    store.delete("a/2", if_generation_match=other)
    assert store._root.is_dir()
    assert not (store._root / "a").exists()


def test_a_reader_s_own_error_is_not_the_bucket_s(store: LocalDirStore) -> None:
    """A full disk where the bytes go is told as what it is."""
    generation = put(store, "a")
    with (
        pytest.raises(OSError, match="No space left"),
        store.open_range("a", generation=generation, start=0, end=1),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_missing_bucket_is_told_with_advice(tmp_path: Path) -> None:
    """It is not created by accident."""
    store = LocalDirStore(tmp_path / "none")
    for attempt in (
        store.describe,
        lambda: put(store, "a"),
        lambda: names(store),
        lambda: store.stat("a"),
        lambda: store.delete("a", if_generation_match=1),
    ):
        with pytest.raises(BucketMissing, match="mkdir"):
            attempt()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("after", ["half", "all"])
def test_a_bucket_that_is_deleted_meanwhile_stays_deleted(store: LocalDirStore, after: str) -> None:
    """A write that is under way does not bring it back."""

    def blocks() -> Iterator[bytes]:
        yield b"half"
        if after == "half":
            shutil.rmtree(store._root)
        yield b"half"
        if after == "all":
            shutil.rmtree(store._root)

    with pytest.raises(BucketMissing), store._errors("a/b"):
        store._put("a/b", blocks(), 0, {})
    assert not store._root.exists()


def test_a_look_leaves_the_bucket_empty(store: LocalDirStore) -> None:
    """It is there, and has no word for the rest."""
    assert store.describe() == BucketDescription()
    assert names(store) == []


@pytest.mark.parametrize("bucket", ["", "a", "..", "../x", "A", "-ab", "a/b", "x" * 64])
def test_a_bucket_name_is_checked_before_it_is_a_path(tmp_path: Path, bucket: str) -> None:
    """A storage config is written by users."""
    with pytest.raises(StoreError):
        open_store(bucket, BucketAccess(tmp_path))


def test_without_a_bucket_root_a_bucket_is_one_of_cloud_storage() -> None:
    """At an address it is an emulator's, and nobody has to be somebody."""
    store = open_store("bucket-1", BucketAccess(endpoint="http://127.0.0.1:1"))
    assert type(store).__name__ == "GcsStore"


# -- many processes


def _create(root: Path, barrier: Barrier, number: int) -> None:
    store = LocalDirStore(root)
    won = 0
    barrier.wait(LIMIT_S)
    for n in range(20):
        try:
            put(store, f"race/{n}", b"%d" % number)
        except PreconditionFailed:
            continue
        won += 1
        (root.parent / f"won-{n}-{number}").touch()


def test_one_of_many_processes_creates_an_object(tmp_path: Path) -> None:
    """Each of twenty names has exactly one winner, and holds the winner's bytes."""
    root = tmp_path / "bucket"
    root.mkdir()
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    processes = [context.Process(target=_create, args=(root, barrier, n)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT_S)
        assert process.exitcode == 0
    store = LocalDirStore(root)
    for n in range(20):
        (winner,) = tmp_path.glob(f"won-{n}-*")
        info = store.stat(f"race/{n}")
        assert info is not None
        data = store.read_range(f"race/{n}", generation=info.generation, start=0, end=9)
        assert data.decode() == winner.name.rpartition("-")[2]
    generations = [info.generation for info in store.list("race/")]
    assert len(set(generations)) == 20


_KILLED_WRITER = """
import sys
from pathlib import Path
from backends.objects.localdir import LocalDirStore

def blocks():
    yield b"x" * 1000000
    print("half", flush=True)
    sys.stdin.read()

store = LocalDirStore(Path(sys.argv[1]))
store._put("a/b", blocks(), 0, {})
"""


def test_a_writer_killed_in_the_middle_leaves_nothing_visible(store: LocalDirStore) -> None:
    """The next writer creates the object as if nothing had been."""
    writer = subprocess.Popen(
        [sys.executable, "-c", _KILLED_WRITER, str(store._root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"half\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate(timeout=LIMIT_S)
    assert names(store) == []
    assert store.stat("a/b") is None
    put(store, "a/b", b"whole")
    assert names(store) == ["a/b"]


def test_what_a_killed_writer_left_is_swept_when_it_is_old(store: LocalDirStore) -> None:
    """Young files may belong to a living process of another pid namespace."""
    put(store, "a")
    temporary = store._root / ".podsnap/tmp"
    old, young = temporary / "1-old", temporary / "1-young"
    old.touch()
    young.touch()
    os.utime(old, (0, 0))
    store.discard_put("a", metadata={}, size_bytes=1)
    assert (old.exists(), young.exists()) == (False, True)
