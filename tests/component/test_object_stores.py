# SPDX-License-Identifier: Apache-2.0
"""Every store keeps the same promises: a directory, a stranger's server, and our double.

What each of the three cannot show: docs/decisions/0008-the-bucket.md.
"""

import base64
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import pytest
import requests
from cluster_world import eventually

from backends.objects.factory import BucketAccess
from backends.objects.gcs import bucket_requests, composed_upload
from backends.objects.gcs.limits import Limits
from backends.objects.gcs.store import GcsStore
from backends.objects.interface import (
    BucketMissing,
    ObjectInfo,
    ObjectNotFound,
    ObjectStore,
    PreconditionFailed,
    PutCancelledError,
)
from backends.objects.localdir import LocalDirStore
from localcluster.toolchain import Toolchain, ToolchainError
from tests.gcs.server import running_cloud_storage

MARKS = {"podsnap-cluster": "c", "podsnap-attempt": "1"}
PART_BYTES = 64 << 10
PARTS = 34  # the tree has two levels
BIG_BYTES = PARTS * PART_BYTES - 17
LIMITS = Limits(part_bytes=PART_BYTES, first_wait_s=0.01, longest_wait_s=0.05)
LOCAL, FAKE, DOUBLE = "localdir", "fake-gcs-server", "double"


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket of one kind, opened, and one that is not there."""

    kind: str
    store: ObjectStore
    absent: ObjectStore

    def put(
        self, name: str, data: bytes = b"x", generation: int = 0, marks: Mapping[str, str] = MARKS
    ) -> ObjectInfo:
        """Store bytes."""
        return self.store.put_bytes(name, data, if_generation_match=generation, metadata=marks)

    def read(self, info: ObjectInfo) -> bytes:
        """Read all of an object by a stream, in pieces that fit nothing."""
        buffer = memoryview(bytearray(70_001))
        data = b""
        with self.store.open_range(
            info.name, generation=info.generation, start=0, end=info.size_bytes
        ) as stream:
            while count := stream.readinto(buffer):
                data += bytes(buffer[:count])
        return data

    def names(self, prefix: str = "") -> list[str]:
        """Return the names below a prefix."""
        return [info.name for info in self.store.list(prefix)]


@pytest.fixture(scope="session")
def fake_gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a fake-gcs-server; skips where it was not built."""
    tools = Toolchain()
    try:
        program = tools.path(FAKE)
    except ToolchainError as error:
        pytest.skip(str(error))
    if not Path(program).exists():
        pytest.skip(f"{FAKE} is not built; run `make tools`")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("fake-gcs") / "log"
    arguments = ["-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    with log.open("w") as output:
        server = subprocess.Popen(
            [program, *arguments, "-public-host", f"127.0.0.1:{port}", "-external-url", url],
            stdout=output,
            stderr=output,
        )
    try:
        eventually(lambda: _answers(url), "fake-gcs-server answers")
        yield url
    finally:
        server.terminate()
        server.wait(10)


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/_internal/healthcheck", timeout=1).ok
    except requests.ConnectionError:
        return False


@pytest.fixture(params=[LOCAL, FAKE, DOUBLE])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty bucket of each kind."""
    if request.param == LOCAL:
        (tmp_path / "bucket").mkdir()
        yield Place(LOCAL, LocalDirStore(tmp_path / "bucket"), LocalDirStore(tmp_path / "none"))
        return
    if request.param == FAKE:
        url = request.getfixturevalue("fake_gcs")
        name = f"bucket-{time.time_ns()}"
        requests.post(f"{url}/storage/v1/b", json={"name": name}, timeout=5).raise_for_status()
        yield Place(FAKE, _cloud(name, url), _cloud("none", url))
        return
    with running_cloud_storage(tmp_path, "bucket-1") as double:
        yield Place(DOUBLE, _cloud("bucket-1", double.url), _cloud("none", double.url))


def _cloud(bucket: str, url: str) -> GcsStore:
    return GcsStore(bucket, BucketAccess(endpoint=url, connections=4), _limits=LIMITS)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file of many parts."""
    path = tmp_path / "big"
    path.write_bytes(os.urandom(BIG_BYTES))
    return path


def checksum(data: bytes) -> str:
    """Return a CRC32C as objects have it."""
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


@pytest.mark.parametrize("data", [b"", b"123456789", os.urandom(200_000)], ids=["0", "9", "200 kB"])
def test_an_object_is_read_as_it_was_written(place: Place, tmp_path: Path, data: bytes) -> None:
    """Bytes, size, checksum, metadata and time; from memory and from a file."""
    (tmp_path / "source").write_bytes(data)
    for info in (
        place.put("a/memory", data),
        place.store.put_file("a/file", tmp_path / "source", if_generation_match=0, metadata=MARKS),
    ):
        found = place.store.stat(info.name)
        assert found is not None
        assert (found.generation, found.crc32c) == (info.generation, checksum(data))
        assert (found.size_bytes, dict(found.metadata)) == (len(data), MARKS)
        assert abs(found.created_s - time.time()) < 60
        assert place.read(found) == data


def test_a_range_ends_with_the_object(place: Place) -> None:
    """The middle, beyond the end, and nothing at all."""
    info = place.put("a", b"0123456789")

    def read(start: int, end: int) -> bytes:
        return place.store.read_range("a", generation=info.generation, start=start, end=end)

    assert (read(2, 5), read(7, 99), read(0, 0), read(4, 4)) == (b"234", b"789", b"", b"")


@pytest.mark.parametrize("name", ["a b/ü.img", "a/#?&=+%2F", "a/'\"\\", "x" * 200])
def test_any_name_is_itself(place: Place, name: str) -> None:
    """No character of a name means anything to a URL."""
    info = place.put(name, b"data")
    assert place.read(info) == b"data"
    assert place.names() == [name]
    place.store.delete(name, if_generation_match=info.generation)
    assert place.names() == []


def test_creation_is_the_lock(place: Place, tmp_path: Path) -> None:
    """The second creator is refused and the first one's bytes stay."""
    first = place.put("a", b"first")
    (tmp_path / "source").write_bytes(b"second")
    with pytest.raises(PreconditionFailed):
        place.put("a", b"second")
    with pytest.raises(PreconditionFailed):
        place.store.put_file("a", tmp_path / "source", if_generation_match=0, metadata=MARKS)
    assert place.read(first) == b"first"


def test_a_write_names_the_generation_that_it_replaces(place: Place) -> None:
    """Only who read the newest one may replace it."""
    first = place.put("a", b"1")
    second = place.put("a", b"2", first.generation, {"k": "v"})
    assert second.generation != first.generation
    with pytest.raises(PreconditionFailed):
        place.put("a", b"3", first.generation)
    found = place.store.stat("a")
    assert found is not None
    assert (place.read(found), dict(found.metadata)) == (b"2", {"k": "v"})


def test_a_read_pins_the_generation(place: Place) -> None:
    """A replaced object is not there any more for who wanted the old one."""
    first = place.put("a", b"1")
    second = place.put("a", b"2", first.generation)
    assert place.store.stat("a", generation=first.generation) is None
    with pytest.raises(ObjectNotFound):
        place.read(first)
    with pytest.raises(ObjectNotFound):
        place.store.read_range("a", generation=first.generation, start=0, end=0)
    assert place.read(second) == b"2"


def test_what_is_not_there_is_told(place: Place) -> None:
    """By every verb that takes a name."""
    assert place.store.stat("a") is None
    with pytest.raises(ObjectNotFound):
        place.store.read_range("a", generation=1, start=0, end=1)
    with pytest.raises(ObjectNotFound):
        place.store.delete("a", if_generation_match=1)


def test_a_delete_names_the_generation(place: Place) -> None:
    """Another attempt's object is never deleted by mistake."""
    first = place.put("a", b"1")
    second = place.put("a", b"2", first.generation)
    if place.kind != FAKE:  # which looks at no precondition of a delete
        with pytest.raises(PreconditionFailed):
            place.store.delete("a", if_generation_match=first.generation)
    place.store.delete("a", if_generation_match=second.generation)
    with pytest.raises(ObjectNotFound):
        place.store.delete("a", if_generation_match=second.generation)


def test_a_listing_is_by_prefix_over_all_pages(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prefix is the beginning of a name, not a folder; metadata come along."""
    monkeypatch.setattr(bucket_requests, "_PAGE", 2)
    names = ["a/1", "a/10", "a/2", "a/b/3", "ab", "b/1"]
    made = {name: place.put(name, name.encode(), 0, {"n": name}) for name in names}
    assert sorted(place.names()) == names
    assert place.names("a/1") == ["a/1", "a/10"]
    assert place.names("none/") == []
    for info in place.store.list("a"):
        assert (info.generation, info.crc32c) == (
            made[info.name].generation,
            made[info.name].crc32c,
        )
        assert dict(info.metadata) == {"n": info.name}


def test_one_of_many_writers_wins(place: Place, big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of bytes and of files, small and composed ones."""
    monkeypatch.setattr(composed_upload, "MOST_CONNECTIONS", 8)
    start = threading.Barrier(3)
    won: list[ObjectInfo] = []
    lost: list[Exception] = []

    def write(number: int) -> None:
        start.wait(10)
        for name, big_one in (("small", False), ("big", True)):
            marks = {"writer": str(number)}
            try:
                won.append(
                    place.store.put_file(name, big, if_generation_match=0, metadata=marks)
                    if big_one
                    else place.put(name, b"%d" % number, 0, marks)
                )
            except PreconditionFailed as error:
                lost.append(error)

    if place.kind == FAKE:
        pytest.skip("fake-gcs-server looks at no precondition of a compose")
    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (sorted(info.name for info in won), len(lost)) == (["big", "small"], 4)
    assert sorted(place.names()) == ["big", "small"]
    for info in won:
        found = place.store.stat(info.name)
        assert found is not None
        assert (found.generation, found.metadata) == (info.generation, info.metadata)


def test_a_large_file_is_one_object(place: Place, big: Path) -> None:
    """Whole, with its checksum, in as many parts as were meant, and nothing beside it."""
    info = place.store.put_file("a/pages.img", big, if_generation_match=0, metadata=MARKS)
    data = big.read_bytes()
    found = place.store.stat("a/pages.img")
    assert found is not None
    assert (found.size_bytes, found.crc32c) == (len(data), checksum(data))
    assert dict(found.metadata) == MARKS
    assert place.read(info) == data
    assert place.names() == ["a/pages.img"]
    expected = 1 if place.kind == LOCAL else PARTS
    assert (info.component_count, info.expected_components) == (expected, expected)
    assert found.expected_components == expected
    if place.kind != FAKE:  # which does not count
        assert found.component_count == expected


@pytest.mark.parametrize("after", [0, 3])
def test_a_write_that_is_taken_back_leaves_nothing(place: Place, big: Path, after: int) -> None:
    """Not even temporary parts."""
    asked = iter(range(1000))
    enough = 0 if place.kind == LOCAL else after  # which reads so small a file at once
    with pytest.raises(PutCancelledError):
        place.store.put_file(
            "a",
            big,
            if_generation_match=0,
            metadata=MARKS,
            cancelled=lambda: next(asked) >= enough,
        )
    assert place.names() == []
    assert place.store.stat("a") is None


def test_a_bucket_that_is_away_does_not_look_empty(place: Place, tmp_path: Path) -> None:
    """A lost bucket must not read as lost snapshots; how it is created stands in the text."""
    (tmp_path / "source").write_bytes(b"x")
    store = place.absent
    attempts = [
        store.describe,
        lambda: list(store.list("")),
    ]
    if place.kind != FAKE:  # which says of a bucket what it says of an object
        attempts += [
            lambda: store.put_bytes("a", b"x", if_generation_match=0, metadata={}),
            lambda: store.put_file("a", tmp_path / "source", if_generation_match=0, metadata={}),
            lambda: store.stat("a"),
            lambda: store.delete("a", if_generation_match=1),
            lambda: store.read_range("a", generation=1, start=0, end=1),
        ]
    for attempt in attempts:
        with pytest.raises(BucketMissing, match="create it"):
            attempt()


def test_a_bucket_describes_itself(place: Place) -> None:
    """What it has no word for is left out."""
    found = place.store.describe()
    assert (found.location is None) == (place.kind == LOCAL)
    if place.kind == DOUBLE:
        assert found.location == "EUROPE-WEST4"
        assert (found.hierarchical_namespace, found.uniform_access) == (True, True)
        assert found.soft_delete_s == 0


def test_tidying_up_hurts_nobody(place: Place) -> None:
    """Neither discarding what is not there, nor a folder that is gone or in use."""
    info = place.put("a/b/1")
    place.store.discard_put("a/b/1", metadata=MARKS, size_bytes=1)
    place.store.discard_put("none", metadata=MARKS, size_bytes=3 * PART_BYTES)
    place.store.remove_folder("a/b")
    place.store.remove_folder("none")
    assert place.read(info) == b"x"
    place.store.delete("a/b/1", if_generation_match=info.generation)
    place.store.remove_folder("a/b")
    assert place.names() == []
