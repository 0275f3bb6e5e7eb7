# SPDX-License-Identifier: Apache-2.0
"""Nothing enters the node's cache that was not compared byte by byte with its manifest."""

import fcntl
import json
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from api_objects import snapshot
from saved_image import ALL_PARTS, MIB, CountingStore, Saved, save_image, write_image
from stepped_clock import SteppedClock

from backends.objects.interface import PreconditionFailed, RangeReader
from nodeexec.background_loads import BackgroundLoads, note_owner
from nodeexec.bucket_slots import BucketSlots
from nodeexec.cache_limits import CacheLimits
from nodeexec.cached_image import is_locked, note_verified, publish
from nodeexec.image import PARTS, ImageError, PartHasher, digest_file, inspect
from nodeexec.node_cache import FetchError, NodeCache, TooLargeError
from nodeexec.page_loads import LoadState, LoadStatus
from nodeexec.part_download import DamagedError
from nodeexec.sandboxes import DECISION_FILE, STARTED_DIR, images_to_be_opened
from nodeexec.settings import AgentSettings
from nodeexec.upload import UploadCancelledError, delete_attempt, upload
from schemas.manifest import CHUNK_BYTES, FORMAT, MANIFEST_NAME, SIGNATURE_NAME, digest
from schemas.metadata import Metadata
from schemas.names import STORED_UID_ANNOTATION
from schemas.storage_config import Location


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """A sealed and uploaded image, and a cache that is empty."""
    cache_dir = tmp_path / "cache"
    return save_image(tmp_path, NodeCache(cache_dir), cache_dir)


def test_a_whole_image_is_fetched_and_found_again(saved: Saved) -> None:
    """By another process too, and without the bucket; whoever asked is told how far it is."""
    came: list[tuple[int, int]] = []
    directory = saved.cache.fetch(
        saved.snapshot, saved.open, on_progress=lambda *bytes_: came.append(bytes_)
    )
    assert came == sorted(came)
    assert came[-1] == (saved.manifest.size_bytes, saved.manifest.size_bytes)
    for part in ALL_PARTS:
        assert (directory / part).read_bytes() == (saved.source / part).read_bytes()
    assert saved.cache.lookup(saved.snapshot) == directory
    assert NodeCache(saved.cache_dir).lookup(saved.snapshot) == directory
    assert directory.stat().st_mode & 0o777 == 0o700
    saved.object("pages.img").unlink()
    assert saved.fetch() == directory


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
        saved.fetch()
    saved.assert_nothing_cached()


@pytest.mark.parametrize("part", ALL_PARTS)
def test_a_cut_part_is_found_and_named(saved: Saved, part: str) -> None:
    """One byte less is enough."""
    os.truncate(saved.object(part), saved.info(part).size_bytes - 1)
    with pytest.raises(DamagedError, match=f"part {part} has"):
        saved.fetch()
    saved.assert_nothing_cached()


@pytest.mark.parametrize("part", ALL_PARTS)
def test_a_missing_part_is_named(saved: Saved, part: str) -> None:
    """It cannot come back by trying again."""
    saved.object(part).unlink()
    with pytest.raises(DamagedError, match=f"part {part} is missing or was replaced"):
        saved.fetch()
    saved.assert_nothing_cached()


@pytest.mark.parametrize("part", ALL_PARTS)
def test_a_replaced_part_is_no_part_even_with_equal_bytes(saved: Saved, part: str) -> None:
    """The manifest pins the generation: another attempt is never mixed in."""
    saved.replace(part, (saved.source / part).read_bytes())
    with pytest.raises(DamagedError, match=f"part {part} is missing or was replaced"):
        saved.fetch()
    saved.assert_nothing_cached()


def test_a_missing_manifest_means_no_snapshot(saved: Saved) -> None:
    """All parts are there, and yet."""
    saved.object(MANIFEST_NAME).unlink()
    with pytest.raises(DamagedError, match=r"manifest\.json is missing in gs://bucket/snap"):
        saved.fetch()
    saved.assert_nothing_cached()


def test_another_manifest_than_the_recorded_one_is_refused(saved: Saved) -> None:
    """Even a valid one: who can write the bucket must not choose what is restored."""
    saved.replace(MANIFEST_NAME, replace(saved.manifest, attempt=9).to_bytes())
    with pytest.raises(DamagedError, match="is not the one recorded"):
        saved.fetch()
    saved.assert_nothing_cached()


def test_a_recorded_manifest_that_cannot_be_read_is_damage(saved: Saved) -> None:
    """Its digest is right and its text is none of this version."""
    saved.replace(MANIFEST_NAME, b"{}")
    capture = saved.snapshot.capture
    assert capture is not None
    pinned = replace(saved.snapshot, capture=replace(capture, manifest_digest=digest(b"{}")))
    with pytest.raises(DamagedError, match="cannot be read"):
        saved.fetch(of=pinned)
    saved.assert_nothing_cached()


def test_a_recorded_manifest_of_a_newer_format_is_no_damage(saved: Saved) -> None:
    """While a cluster is upgraded, a mark of damage would be for ever and for all nodes."""
    tree = json.loads(saved.object(MANIFEST_NAME).read_bytes())
    text = json.dumps({**tree, "format": FORMAT + 1}).encode()
    saved.replace(MANIFEST_NAME, text)
    capture = saved.snapshot.capture
    assert capture is not None
    pinned = replace(saved.snapshot, capture=replace(capture, manifest_digest=digest(text)))
    with pytest.raises(FetchError, match="later version of podsnap"):
        saved.fetch(of=pinned)
    saved.assert_nothing_cached()

    image = saved.cache_dir / digest(text).removeprefix("sha256:")
    image.mkdir()
    (image / MANIFEST_NAME).write_bytes(text)
    with pytest.raises(FetchError, match="later version of podsnap"):
        saved.fetch(of=pinned)
    assert image.is_dir()  # an older agent does not delete what a newer one made


@pytest.mark.parametrize("size_bytes", [0, 1 << 20])
def test_what_cannot_be_a_signature_is_none_and_no_damage(saved: Saved, size_bytes: int) -> None:
    """Only a policy that asks for one needs it; and it does not fill the agent's memory."""
    name = f"{saved.folder}/{SIGNATURE_NAME}"
    saved.store.put_bytes(name, b"x" * size_bytes, if_generation_match=0, metadata={})
    directory = saved.fetch()
    assert (directory / SIGNATURE_NAME).stat().st_size == min(size_bytes, 4 << 10)


def test_a_signature_that_came_later_is_read_again(saved: Saved) -> None:
    """The absence of one is not for as long as the image is here."""
    directory = saved.fetch()
    assert not (directory / SIGNATURE_NAME).exists()
    name = f"{saved.folder}/{SIGNATURE_NAME}"
    saved.store.put_bytes(name, b"signed", if_generation_match=0, metadata={})
    saved.cache.renew_signature(saved.snapshot, saved.store)
    assert (directory / SIGNATURE_NAME).read_bytes() == b"signed"
    assert saved.cache.lookup(saved.snapshot) == directory


def test_a_fetch_that_is_too_slow_for_its_size_ends(saved: Saved) -> None:
    """Else one bucket that hardly answers keeps a Pod's node busy for days."""
    clock = SteppedClock()
    cache = NodeCache(saved.cache_dir, clock=clock)
    saved.store.on_read = lambda _: clock.step(40)
    with pytest.raises(FetchError, match="did not come within 60 s"):
        saved.fetch(cache)
    saved.assert_nothing_cached()


def test_a_fetch_that_nobody_wants_any_more_ends(saved: Saved) -> None:
    """The agent ends, or the snapshot is gone."""
    unwanted = threading.Event()
    saved.store.on_read = lambda _: unwanted.set()
    with pytest.raises(FetchError, match="was given up"):
        saved.cache.fetch(saved.snapshot, saved.open, cancelled=unwanted.is_set)
    saved.assert_nothing_cached()


def test_a_snapshot_without_a_place_is_refused(saved: Saved) -> None:
    """Nothing can be fetched for it."""
    with pytest.raises(DamagedError, match="no place"):
        saved.fetch(of=replace(saved.snapshot, capture=None))


def test_a_bucket_that_does_not_answer_is_no_damage(saved: Saved) -> None:
    """Trying again may help, so the snapshot is not marked."""
    saved.store.root.rename(saved.store.root.with_name("elsewhere"))
    with pytest.raises(FetchError, match="bucket bucket does not exist"):
        saved.fetch()
    saved.assert_nothing_cached()


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
    directory = saved.fetch()
    TOUCHES[what](directory / "pages.img")
    assert saved.cache.lookup(saved.snapshot) is None
    again = saved.fetch()
    assert (again / "pages.img").read_bytes() == (saved.source / "pages.img").read_bytes()


def test_what_a_killed_fetch_left_is_dropped_at_the_next_start(saved: Saved) -> None:
    """A half image is never taken for a whole one; nor is what an older version left."""
    for name in (f"{saved.name}.partial", f"{saved.name}.removed", "uid-of-a-snapshot"):
        (saved.cache_dir / name).mkdir()
        (saved.cache_dir / name / "pages.img").write_bytes(b"half")
    cache = NodeCache(saved.cache_dir)
    assert list(saved.cache_dir.iterdir()) == []
    assert cache.lookup(saved.snapshot) is None


# -- one image, several snapshots, several who ask


def test_a_second_restore_moves_no_byte_and_asks_the_bucket_nothing(saved: Saved) -> None:
    """Not even for the manifest, and so for no token."""
    saved.fetch()
    moved_bytes = saved.store.moved_bytes
    assert moved_bytes == saved.manifest.size_bytes
    saved.fetch()
    saved.fetch(NodeCache(saved.cache_dir))
    assert saved.store.moved_bytes == moved_bytes
    assert len(saved.opened) == 1


def test_an_imported_snapshot_shares_the_image_of_the_one_that_was_saved(saved: Saved) -> None:
    """Its object is another one, its bytes are the same."""
    directory = saved.fetch()
    again = Metadata("again", "shop", "uid-again", annotations={STORED_UID_ANNOTATION: "uid-one"})
    imported = replace(saved.snapshot, metadata=again)
    assert saved.cache.lookup(imported) == directory
    assert saved.fetch(of=imported) == directory
    assert len(saved.opened) == 1


@pytest.fixture
def begun(saved: Saved) -> Iterator[BackgroundLoads]:
    """The loads of a node on which the image is on its way."""
    nowhere = saved.cache_dir.with_name("nowhere")
    settings = AgentSettings(
        node_name="n",
        kubeconfig=nowhere,
        state_dir=saved.cache_dir.parent,
        socket=nowhere,
        runsc=nowhere,
        runsc_root=nowhere,
        runsc_config=nowhere,
        kubelet_root=nowhere,
        ctr=nowhere,
        containerd_address=nowhere,
        containerd_state=nowhere,
        cluster_id="c",
        runtime_state_dir=saved.cache_dir.with_name("run"),
    )
    directory = settings.pages_dir / saved.name
    directory.mkdir(parents=True)
    note_owner(directory, saved.manifest)
    LoadStatus(LoadState.LOADING).write(directory)
    server = os.open(directory, os.O_RDONLY)
    fcntl.flock(server, fcntl.LOCK_EX)
    yield BackgroundLoads(settings, saved.cache, lambda _: saved.store, lambda _: None)
    os.close(server)


@pytest.mark.parametrize("where", ["in the bucket", "on the node", "on its way"])
@pytest.mark.parametrize(
    "stranger",
    [
        snapshot("22222222-2222-5222-8222-222222222222").metadata,
        Metadata("one", "bank", "uid-one"),
    ],
    ids=["another snapshot", "another namespace"],
)
def test_a_status_that_points_at_another_snapshots_bytes_reaches_nothing(
    saved: Saved, where: str, stranger: Metadata, request: pytest.FixtureRequest
) -> None:
    """The manifest names its owner, so a copied record opens no other tenant's memory."""
    if where == "on the node":
        saved.fetch()
    thief = replace(saved.snapshot, metadata=stranger)
    if where == "on its way":
        loads: BackgroundLoads = request.getfixturevalue("begun")
        assert loads.running(saved.snapshot) is None  # its own, and not mounted (yet)
        for ask in (loads.running, lambda s: loads.start(s, None)):  # type: ignore[arg-type] # unused
            with pytest.raises(DamagedError, match="another PodSnapshot"):
                ask(thief)
    assert saved.cache.lookup(thief) is None
    with pytest.raises(DamagedError, match="another PodSnapshot"):
        saved.fetch(of=thief)
    assert (saved.cache.lookup(saved.snapshot) is not None) == (where == "on the node")


@pytest.mark.parametrize("text", ["", "sha256:00", "sha256:../../../etc", f"sha256:{'A' * 64}"])
def test_a_digest_that_is_none_names_no_directory(saved: Saved, text: str) -> None:
    """A status chooses no path on the node."""
    capture = saved.snapshot.capture
    assert capture is not None
    odd = replace(saved.snapshot, capture=replace(capture, manifest_digest=text))
    assert saved.cache.lookup(odd) is None
    with pytest.raises(DamagedError, match="no place"):
        saved.fetch(of=odd)


def test_ten_who_ask_at_once_fetch_once(saved: Saved) -> None:
    """All of them get the image when the one fetch has ended."""
    all_ask = threading.Barrier(10)

    def ask(_: int) -> Path:
        all_ask.wait(10)
        return saved.fetch()

    with ThreadPoolExecutor(10) as pool:
        found = set(pool.map(ask, range(10)))
    assert found == {saved.cache_dir / saved.name}
    assert saved.store.moved_bytes == saved.manifest.size_bytes


def test_a_sealed_directory_is_adopted_without_a_copy(saved: Saved) -> None:
    """The node that saved restores from what it has, and keeps nothing else."""
    inode = (saved.source / "pages.img").stat().st_ino
    stored = saved.object(MANIFEST_NAME).read_bytes()
    (saved.source / MANIFEST_NAME).write_bytes(stored)
    (saved.source / "pages.img.zst").write_bytes(b"the same, smaller")
    clock = SteppedClock()
    cache = NodeCache(saved.cache_dir, clock=clock)
    directory = cache.adopt(saved.digest, saved.source)
    assert directory is not None
    assert cache.lookup(saved.snapshot) == directory
    assert {p.name for p in directory.iterdir()} == {*ALL_PARTS, MANIFEST_NAME, "verified.json"}
    assert (directory / "pages.img").stat().st_ino == inode
    assert not saved.source.exists()
    assert cache.evict_all_but(lambda found: found == saved.digest) == []
    assert cache.evict_all_but(lambda _: False) == []  # a watch may not show its snapshot yet
    clock.step(60)
    assert cache.evict_all_but(lambda _: False) == [saved.digest]
    assert list(saved.cache_dir.iterdir()) == []


@pytest.mark.parametrize("note", ["of this boot", "of another boot", "none"])
def test_what_changed_between_a_save_and_its_upload_is_not_kept(saved: Saved, note: str) -> None:
    """The files are compared with how they looked when they were sealed, or byte by byte."""
    (saved.source / MANIFEST_NAME).write_bytes(saved.object(MANIFEST_NAME).read_bytes())
    if note != "none":
        note_verified(saved.source, saved.manifest, boot="" if "this" in note else "another")
    with (saved.source / "pages.img").open("r+b") as pages:
        byte = pages.read(1)
        pages.seek(0)
        pages.write(bytes([byte[0] ^ 1]))
    assert saved.cache.adopt(saved.digest, saved.source) is None
    assert not saved.source.exists()
    saved.assert_nothing_cached()


def test_an_image_of_this_boot_stays_when_the_same_comes_again(saved: Saved) -> None:
    """Whoever was told of it opens it."""
    directory = saved.fetch()
    inode = directory.stat().st_ino
    filling = saved.cache.reserve(saved.digest, 0)
    for part in ALL_PARTS:
        (filling.directory / part).write_bytes((saved.source / part).read_bytes())
    assert publish(filling.directory, saved.object(MANIFEST_NAME).read_bytes()) == directory
    filling.close()
    assert directory.stat().st_ino == inode
    assert [p.name for p in saved.cache_dir.iterdir()] == [saved.name]


@pytest.mark.parametrize("why", ["another manifest", "no manifest", "no room"])
def test_what_cannot_be_adopted_is_removed(saved: Saved, why: str) -> None:
    """Its bytes are in the bucket; a save does not fail for it."""
    cache = NodeCache(saved.cache_dir, limits=CacheLimits(limit_bytes=why != "no room" or 1))
    if why != "no manifest":
        text = saved.object(MANIFEST_NAME).read_bytes()
        (saved.source / MANIFEST_NAME).write_bytes(text + b" " * (why == "another manifest"))
    assert cache.adopt(saved.digest, saved.source) is None
    assert not saved.source.exists()
    saved.assert_nothing_cached()


# -- bounds


@dataclass(slots=True)
class Node:
    """A node whose cache has room for two of three images, whoever is its agent."""

    root: Path
    images: list[Saved]
    evicted: list[int] = field(default_factory=list)
    clock: SteppedClock = field(default_factory=SteppedClock)

    def agent(self) -> NodeCache:
        """Return the cache of an agent that has just started."""
        return NodeCache(
            self.root / "cache",
            limits=CacheLimits(limit_bytes=5 * MIB // 2, disk_share=1.0),
            in_use=lambda: images_to_be_opened(self.root / "bundles", self.root / "cold"),
            clock=self.clock,
            on_evicted=self.evicted.append,
        )

    def fetch(self, index: int) -> Path:
        """Fetch an image, a minute after the last one."""
        self.clock.step(60)
        return self.images[index].fetch(self.agent())

    def here(self) -> list[bool]:
        """Return which images are here; looking is no use of them."""
        return [(self.root / "cache" / i.name).is_dir() for i in self.images]

    def record(self, sandbox: str, image: Path) -> Path:
        """Write the record of a restore as the runtime does; returns the bundle."""
        bundle = self.root / "bundles" / sandbox
        bundle.mkdir(parents=True)
        restore = {"snapshot": "s", "image_dir": str(image), "image_ids": {"main": "sha256:aa"}}
        pod = {"uid": f"uid-of-{sandbox}", "name": sandbox, "namespace": "shop"}
        record = {"sandbox": sandbox, "pod": pod, "restore": restore}
        (bundle / DECISION_FILE).write_text(json.dumps(record))
        return bundle


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """Three images of a mebibyte in a bucket."""
    cache_dir = tmp_path / "cache"
    cache = NodeCache(cache_dir)
    images = [
        save_image(tmp_path, cache, cache_dir, name=name, pages_bytes=MIB)
        for name in ("one", "two", "three")
    ]
    return Node(tmp_path, images)


def test_the_image_that_was_not_used_for_longest_makes_room(node: Node) -> None:
    """Whichever agent it was that used it."""
    node.fetch(0)
    node.fetch(1)
    node.clock.step(60)
    assert node.agent().lookup(node.images[0].snapshot) is not None
    node.fetch(2)
    assert node.here() == [True, False, True]
    (evicted_bytes,) = node.evicted
    assert MIB < evicted_bytes < MIB + (64 << 10)
    assert node.agent().used_bytes() < 5 * MIB // 2


def test_an_image_that_a_restore_will_open_stays(node: Node) -> None:
    """From the runtime's record until its last container runs, whoever restarts meanwhile."""
    bundle = node.record("first", node.fetch(0))
    node.record("second", node.fetch(1))
    with pytest.raises(FetchError, match=r"images of 2\.1 MB are in use by restores"):
        node.fetch(2)
    assert node.here() == [True, True, False]
    assert node.agent().evict_all_but(lambda _: False) == []
    (bundle / STARTED_DIR).mkdir()
    (bundle / STARTED_DIR / "main").touch()
    node.fetch(2)
    assert node.here() == [False, True, True]


def test_an_image_of_a_restore_that_failed_need_not_stay(node: Node) -> None:
    """Its Pod may run for months, cold, in the same sandbox."""
    node.record("first", node.fetch(0))
    node.fetch(1)
    (node.root / "cold").mkdir()
    (node.root / "cold/uid-of-first").touch()
    node.fetch(2)
    assert node.here() == [False, True, True]


def test_an_image_that_was_looked_up_a_moment_ago_stays(node: Node) -> None:
    """The runtime has the answer and has not written its record yet."""
    node.fetch(0)
    node.fetch(1)
    for image in node.images[:2]:
        assert node.agent().lookup(image.snapshot) is not None
    with pytest.raises(FetchError, match="in use by restores"):
        node.images[2].fetch(node.agent())
    assert node.here() == [True, True, False]


def test_an_image_that_is_looked_up_while_room_is_made_stays(node: Node) -> None:
    """Chosen to go, asked for, kept: whoever comes then has to wait."""
    cache_dir = node.root / "cache"
    node.fetch(0)
    node.fetch(1)
    node.clock.step(60)
    agent = node.agent()
    agent._on_evicted = lambda _: agent.lookup(node.images[1].snapshot)
    large = save_image(node.root, agent, cache_dir, name="large", pages_bytes=2 * MIB)
    with pytest.raises(FetchError, match=r"images of 1\.1 MB are in use by restores"):
        large.fetch()
    assert node.here() == [False, True, False]


class _Lines(CountingStore):
    """A bucket whose first streams stay open until somebody has to wait for one, or has one."""

    def __init__(self, root: Path, slots: threading.Semaphore) -> None:
        super().__init__(root)
        self.waiting = slots._cond._waiters  # type: ignore[attr-defined] # nothing else tells
        self.open_now = self.most_open = 0
        self.guard = threading.Lock()
        self.released = threading.Event()

    @contextmanager
    def open_range(
        self, name: str, *, generation: int, start: int, end: int
    ) -> Iterator[RangeReader]:
        with self.guard:
            self.open_now += 1
            self.most_open = max(self.most_open, self.open_now)
        ends_s = time.monotonic() + 20
        while not self.released.wait(0.001):
            assert time.monotonic() < ends_s, "nobody else wanted a stream"
            if self.open_now > 1 and (self.waiting or self.open_now > 2):
                self.released.set()
        with super().open_range(name, generation=generation, start=start, end=end) as stream:
            yield stream
        with self.guard:
            self.open_now -= 1


def test_all_fetches_together_have_so_many_streams_and_no_more(node: Node) -> None:
    """Three at once, of two connections; each would take both for itself."""
    agent = NodeCache(node.root / "cache", connections=2)
    lines = _Lines(node.images[0].store.root, agent.slots.of("bucket"))
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda i: agent.fetch(i.snapshot, lambda: lines), node.images))
    assert lines.most_open == 2
    assert node.here() == [True, True, True]


def test_a_bucket_that_does_not_answer_leaves_streams_to_the_others() -> None:
    """However many of its images are fetched, it has no more than half."""
    slots = BucketSlots(2)
    stalled, other, third = map(slots.of, ("stalled", "other", "third"))
    assert [stalled.acquire(timeout=0) for _ in range(3)] == [True, True, False]
    assert slots.of("stalled") is stalled
    assert [other.acquire(timeout=0) for _ in range(3)] == [True, True, False]
    assert [third.acquire(timeout=0) for _ in range(2)] == [False, False]
    stalled.release()
    assert third.acquire(timeout=0)
    assert not stalled.acquire(timeout=0)
    third.release()
    assert [third.acquire(timeout=0), stalled.acquire(timeout=0)] == [True, False]


def test_directories_are_made_and_removed_by_one_process_at_a_time(node: Node) -> None:
    """An agent and its successor live side by side for a moment."""
    directory = node.fetch(0)
    image = node.images[1]
    (image.source / MANIFEST_NAME).write_bytes(image.object(MANIFEST_NAME).read_bytes())
    tried: list[bool] = []

    def in_use() -> tuple[Path, ...]:
        root = os.open(node.root / "cache", os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(root, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(root)
        tried.append(True)
        return ()

    agent = NodeCache(node.root / "cache", in_use=in_use, clock=node.clock)
    agent.reserve(node.images[2].digest, 1).discard()
    agent.evict_all_but(lambda _: True)
    agent.keep_free()
    agent.adopt(image.digest, image.source)
    assert len(tried) == 4
    looking = os.open(directory, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    assert not is_locked(directory)  # two who look see no third
    os.close(looking)


def test_an_agent_waits_for_its_predecessor_to_give_up_a_fetch(node: Node) -> None:
    """It was told to end, and does within a second or two."""
    agent = node.agent()
    filling = agent.reserve(node.images[0].digest, MIB)

    class Predecessor(SteppedClock):
        def wait(self, event: threading.Event, timeout_s: float) -> bool:
            if self.monotonic_s() < 1 <= self.monotonic_s() + timeout_s:
                filling.close()
            return super().wait(event, timeout_s)

    cache = NodeCache(node.root / "cache", clock=Predecessor())
    assert node.images[0].is_whole(node.images[0].fetch(cache))


def test_an_image_larger_than_the_cache_may_be_is_refused_and_evicts_nothing(node: Node) -> None:
    """It is told how much was allowed, and what to change."""
    node.fetch(0)
    large = save_image(
        node.root, node.agent(), node.root / "cache", name="large", pages_bytes=3 * MIB
    )
    expected = r"has 3\.1 MB and the cache of images may take 2\.6 MB; raise cache_limit_bytes"
    with pytest.raises(TooLargeError, match=expected):
        large.fetch(node.agent())
    assert node.here() == [True, False, False]
    assert large.store.moved_bytes == 0


def test_a_directory_that_another_process_fills_outlives_the_agent(node: Node) -> None:
    """Its room is kept, nobody else fills it, and what it becomes is an image."""
    image = node.images[0]
    agent = node.agent()
    filling = agent.reserve(image.digest, 2 * MIB)
    theirs = os.dup(filling.descriptor)
    filling.close()

    later = node.agent()
    assert filling.directory.is_dir()
    assert later.used_bytes() == 2 * MIB
    with pytest.raises(FetchError, match="another process is loading the image"):
        image.fetch(later)
    with pytest.raises(FetchError, match="do not fit"):
        node.fetch(1)

    (node.root / "cache" / image.name).mkdir()  # as from before the last boot
    assert later.is_on_disk(image.snapshot)
    for part in ALL_PARTS:
        (filling.directory / part).write_bytes((image.source / part).read_bytes())
    directory = publish(filling.directory, image.object(MANIFEST_NAME).read_bytes(), b"signed")
    assert later.lookup(image.snapshot) == directory
    assert (directory / SIGNATURE_NAME).read_bytes() == b"signed"
    node.clock.step(60)
    assert later.evict_all_but(lambda _: False) == []  # it serves from there
    os.close(theirs)
    assert later.evict_all_but(lambda _: False) == [image.digest]


def test_a_directory_that_nobody_fills_any_more_is_taken_over(node: Node) -> None:
    """Its process died: what it had is not believed."""
    agent = node.agent()
    filling = agent.reserve(node.images[0].digest, MIB)
    (filling.directory / "pages.img").write_bytes(b"half")
    filling.close()
    assert node.images[0].is_whole(node.images[0].fetch(agent))


# -- into the bucket


def test_an_upload_that_was_interrupted_is_taken_up(saved: Saved) -> None:
    """Parts of this attempt are kept, everything else in the way is replaced."""
    kept = saved.info("pages.img").generation
    saved.replace("metadata", b"torn")
    saved.object(MANIFEST_NAME).unlink()
    pinned = saved.upload()
    assert saved.info("pages.img").generation == kept
    capture = saved.snapshot.capture
    assert capture is not None
    newer = replace(saved.snapshot, capture=replace(capture, manifest_digest=pinned))
    saved.fetch(of=newer)


def test_an_upload_that_is_not_wanted_any_more_writes_no_manifest(saved: Saved) -> None:
    """Its parts are deleted by whoever cancelled."""
    elsewhere = Location("bucket", "snapshots/two")

    def two_are_there() -> bool:
        return len(list(saved.store.list("snapshots/two/"))) == 2

    with pytest.raises(UploadCancelledError):
        upload(saved.store, elsewhere, saved.source, saved.manifest, cancelled=two_are_there)
    assert two_are_there()
    assert delete_attempt(saved.store, elsewhere, "uid-of-another") == 0
    assert delete_attempt(saved.store, elsewhere, saved.snapshot.metadata.uid) == 2
    assert delete_attempt(saved.store, elsewhere, saved.snapshot.metadata.uid) == 0


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


def test_an_upload_never_removes_another_snapshots_part(saved: Saved) -> None:
    """Two snapshots that share a folder by mistake do not destroy each other."""
    stranger = replace(saved.manifest, snapshot_uid="uid-of-another")

    with pytest.raises(PreconditionFailed, match="another PodSnapshot"):
        saved.upload(stranger)

    assert saved.fetch()
