# SPDX-License-Identifier: Apache-2.0
"""What a node's cache is worth after somebody was killed, a disk was full, or a byte flipped.

Real processes, a real file system of a few MB, a bucket that is a directory. Each test ends with
what the next agent finds: a whole image or none, nothing beside it, and a fetch that works.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from cluster_world import eventually
from saved_image import ALL_PARTS, MIB, CountingStore, Saved, save_image
from stepped_clock import SteppedClock

from nodeexec.cache_limits import CacheLimits
from nodeexec.node_cache import FetchError, NodeCache
from nodeexec.part_download import DamagedError
from schemas.manifest import MANIFEST_NAME, digest

PAGES_BYTES = 3 * MIB


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """One image in a bucket, for tests that leave the bucket as it is."""
    directory = tmp_path_factory.mktemp("saved")
    cache_dir = directory / "cache"
    return save_image(directory, NodeCache(cache_dir), cache_dir, pages_bytes=PAGES_BYTES)


# -- killed

# The named points of a fetch: what the kernel is asked at each, as Python's audit events tell it,
# and the file; "read" is the first byte range of a part that the bucket is asked for.
KILL_POINTS: dict[str, tuple[str, str]] = {
    "before the manifest is read": ("open", "manifest.json of the bucket"),
    "before there is a directory": ("os.mkdir", ".partial"),
    "with an empty directory, not locked": ("open", ".partial"),
    "with the claim half written": ("os.rename", "claim.tmp"),
    "before the first part": ("open", "checkpoint.img"),
    "before the first byte of a part": ("read", "checkpoint.img"),
    "between two parts": ("open", "pages_meta.img"),
    "in the middle of the pages": ("read", "pages.img"),
    "before the last part": ("open", "metadata"),
    "before the manifest is written": ("open", "manifest.json.tmp"),
    "before the manifest has its name": ("os.rename", "manifest.json.tmp"),
    "before what was verified is noted": ("open", "verified.json.tmp"),
    "before the note has its name": ("os.rename", "verified.json.tmp"),
    "before the claim is withdrawn": ("os.remove", "claim"),
    "before the image has its name": ("os.rename", ".partial"),
    "before it is used for the first time": ("os.utime", ""),
}
VISIBLE = {"before it is used for the first time"}


def run_and_die(body: Callable[[], object]) -> int:
    """Run something in a process of its own; returns how it ended."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)  # a fork of many threads that hangs is a failure, not a wait
        try:
            body()
        except BaseException:  # noqa: BLE001 - the parent's pytest must not go on in here
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(event: str, name: str, saved: Saved, cache_dir: Path) -> None:
    """Fetch, and be killed at an event that concerns a file."""

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(found: str, arguments: tuple[object, ...]) -> None:
        if found != event or not isinstance(arguments[0], (str, os.PathLike)):
            return
        path = os.fspath(arguments[0])
        if name.endswith("of the bucket"):
            if path.endswith("manifest.json") and not path.startswith(str(cache_dir)):
                die()
        elif path.startswith(f"{cache_dir}/") and path.endswith(name):
            die()

    reads = iter(range(99))

    def read(_: int) -> None:
        # One stream for each small part; of the pages, the second of three reads.
        if event == "read" and next(reads) == (0 if name == "checkpoint.img" else 3):
            die()

    store = CountingStore(saved.store.root)
    store.on_read = read
    sys.addaudithook(hook)
    NodeCache(cache_dir, connections=1).fetch(saved.snapshot, lambda: store)


@pytest.mark.parametrize("point", KILL_POINTS)
def test_an_agent_that_is_killed_during_a_fetch_leaves_a_whole_image_or_none(
    bucket: Saved, tmp_path: Path, point: str
) -> None:
    """Never half of one; the next agent clears up, fetches, and has room for it."""
    cache_dir = tmp_path / "cache"
    event, name = KILL_POINTS[point]
    assert run_and_die(lambda: die_at(event, name, bucket, cache_dir)) == -signal.SIGKILL

    cache = NodeCache(cache_dir, limits=CacheLimits(limit_bytes=4 * MIB, disk_share=1.0))
    is_visible = point in VISIBLE
    assert [p.name for p in cache_dir.iterdir()] == ([bucket.name] if is_visible else [])
    assert (cache.lookup(bucket.snapshot) is not None) == is_visible
    assert bucket.is_whole(bucket.fetch(cache))
    assert [p.name for p in cache_dir.iterdir()] == [bucket.name]


def test_an_agent_that_is_killed_while_it_evicts_leaves_no_half_image(
    bucket: Saved, tmp_path: Path
) -> None:
    """The name goes first, so that nobody finds what is left of the files."""
    cache_dir = tmp_path / "cache"
    directory = bucket.fetch(NodeCache(cache_dir))
    os.utime(directory, (1, 1))

    def die(found: str, arguments: tuple[object, ...]) -> None:
        if found == "os.remove" and str(arguments[0]).endswith("pages.img"):
            os.kill(os.getpid(), signal.SIGKILL)

    def evict() -> None:
        cache = NodeCache(cache_dir)
        sys.addaudithook(die)
        cache.evict_all_but(lambda _: False)

    assert run_and_die(evict) == -signal.SIGKILL
    assert [p.suffix for p in cache_dir.iterdir()] == [".removed"]
    cache = NodeCache(cache_dir)
    assert list(cache_dir.iterdir()) == []
    assert cache.lookup(bucket.snapshot) is None


# -- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", directory], check=True)
    yield directory
    subprocess.run(["umount", directory], check=True)


def test_a_disk_without_room_is_told_before_a_byte_moves(bucket: Saved, small_disk: Path) -> None:
    """And the image comes as soon as somebody made room."""
    cache = NodeCache(small_disk / "cache")
    (small_disk / "log").write_bytes(b"x" * (6 * MIB))
    moved_bytes = bucket.store.moved_bytes
    with pytest.raises(FetchError, match=r"has 3\.1 MB, which do not fit.* 2\.\d MB of the disk"):
        bucket.fetch(cache)
    assert bucket.store.moved_bytes == moved_bytes
    assert list((small_disk / "cache").iterdir()) == []
    (small_disk / "log").unlink()
    assert bucket.is_whole(bucket.fetch(cache))


def test_a_disk_that_somebody_else_fills_meanwhile_costs_this_fetch_alone(
    bucket: Saved, small_disk: Path
) -> None:
    """What came is given back at once, so that the node recovers by itself."""
    cache = NodeCache(small_disk / "cache")
    store = CountingStore(bucket.store.root)

    def fill(_: int) -> None:
        with (small_disk / "log").open("wb") as file:
            file.write(b"x" * (8 * MIB))

    def fill_once(moved_bytes: int) -> None:
        store.on_read = lambda _: None
        with pytest.raises(OSError, match="No space left"):
            fill(moved_bytes)

    store.on_read = fill_once
    with pytest.raises(FetchError, match="No space left on device"):
        cache.fetch(bucket.snapshot, lambda: store)
    assert list((small_disk / "cache").iterdir()) == []
    (small_disk / "log").unlink()
    assert bucket.is_whole(bucket.fetch(cache))


def test_a_disk_that_is_quite_full_leaves_no_directory_that_nobody_may_fill(
    bucket: Saved, small_disk: Path
) -> None:
    """Not even the note of how much is wanted can be written."""
    cache = NodeCache(small_disk / "cache")
    with pytest.raises(OSError, match="No space left"), (small_disk / "log").open("wb") as file:
        file.write(b"x" * (9 * MIB))
    with pytest.raises(OSError, match="No space left"):
        cache.reserve(bucket.digest, 0)
    (small_disk / "log").unlink()
    assert bucket.is_whole(bucket.fetch(cache))


def test_images_go_before_the_kubelet_evicts_pods(bucket: Saved, small_disk: Path) -> None:
    """A share of the disk stays free, whoever fills it: of 8.4 MB, 3.4."""
    clock, limits = SteppedClock(), CacheLimits(disk_share=1.0, free_share=0.4)
    cache = NodeCache(small_disk / "cache", limits=limits, clock=clock)
    bucket.fetch(cache)
    clock.step(60)
    cache.keep_free()
    assert cache.lookup(bucket.snapshot) is not None
    (small_disk / "log").write_bytes(b"x" * (3 * MIB))
    cache.keep_free()
    assert cache.lookup(bucket.snapshot) is not None  # it was asked for a moment ago
    clock.step(60)
    cache.keep_free()
    assert list((small_disk / "cache").iterdir()) == []
    with pytest.raises(FetchError, match=r"1\.\d MB of the disk are free above cache_free_share"):
        bucket.fetch(cache)


def test_a_share_of_the_disk_is_a_bound_as_well(bucket: Saved, small_disk: Path) -> None:
    """The node's other programs keep theirs."""
    cache = NodeCache(small_disk / "cache", limits=CacheLimits(disk_share=0.25))
    with pytest.raises(FetchError, match=r"may take 2\.1 MB; raise cache_limit_bytes or cache_di"):
        bucket.fetch(cache)
    wider = NodeCache(small_disk / "cache", limits=CacheLimits(disk_share=0.5))
    assert bucket.fetch(wider)


# -- a byte on the disk


def flip(path: Path) -> None:
    """Change a byte as a failing disk does it: the file looks as before."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(stat.st_size // 2)
        byte = file.read(1)
        file.seek(stat.st_size // 2)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("damaged", ["nothing", *ALL_PARTS, "manifest.json", "verified.json"])
def test_after_a_boot_an_image_is_read_again_before_it_is_used(
    bucket: Saved, tmp_path: Path, damaged: str
) -> None:
    """A whole one costs no byte of the network, a damaged one comes anew."""
    cache_dir = tmp_path / "cache"
    directory = bucket.fetch(NodeCache(cache_dir, boot="first"))
    moved_bytes = bucket.store.moved_bytes
    if damaged != "nothing":
        flip(directory / damaged)

    cache = NodeCache(cache_dir, boot="second")
    assert cache.lookup(bucket.snapshot) is None
    assert bucket.is_whole(bucket.fetch(cache))
    came_bytes = bucket.store.moved_bytes - moved_bytes
    is_lost = damaged not in {"nothing", "verified.json"}
    assert came_bytes == (bucket.manifest.size_bytes if is_lost else 0)

    restarted = NodeCache(cache_dir, boot="second")
    assert restarted.lookup(bucket.snapshot) == directory
    assert [p.name for p in cache_dir.iterdir()] == [bucket.name]


def test_after_a_boot_a_manifest_is_believed_for_its_digest_alone(
    bucket: Saved, tmp_path: Path
) -> None:
    """One that can be read, of the same bytes and of another tenant, is as good as none."""
    cache_dir = tmp_path / "cache"
    directory = bucket.fetch(NodeCache(cache_dir, boot="first"))
    other = replace(bucket.manifest, namespace="bank")
    (directory / MANIFEST_NAME).write_bytes(other.to_bytes())
    moved_bytes = bucket.store.moved_bytes
    bucket.fetch(NodeCache(cache_dir, boot="second"))
    assert bucket.store.moved_bytes == moved_bytes + bucket.manifest.size_bytes
    assert digest((directory / MANIFEST_NAME).read_bytes()) == bucket.digest


def test_a_damaged_image_keeps_its_name_until_another_one_has_it(
    bucket: Saved, tmp_path: Path
) -> None:
    """To delete it takes seconds, in which Pods ask."""
    cache_dir = tmp_path / "cache"
    directory = bucket.fetch(NodeCache(cache_dir, boot="first"))
    flip(directory / "pages.img")

    def die(found: str, arguments: tuple[object, ...]) -> None:
        if found == "os.remove" and str(arguments[0]).endswith("pages.img"):
            os.kill(os.getpid(), signal.SIGKILL)

    def fetch() -> None:
        sys.addaudithook(die)
        bucket.fetch(NodeCache(cache_dir, boot="second"))

    assert run_and_die(fetch) == -signal.SIGKILL
    assert bucket.is_whole(directory)
    assert NodeCache(cache_dir, boot="second").lookup(bucket.snapshot) == directory
    assert [p.name for p in cache_dir.iterdir()] == [bucket.name]


def test_an_image_that_cannot_be_read_now_is_neither_damaged_nor_removed(
    bucket: Saved, tmp_path: Path
) -> None:
    """Too many open files, a disk that answers with an error: later it may be read."""
    cache_dir = tmp_path / "cache"
    directory = bucket.fetch(NodeCache(cache_dir, boot="first"))
    pages, aside = directory / "pages.img", tmp_path / "aside"
    pages.rename(aside)
    pages.symlink_to("pages.img")  # the system's own error: too many levels
    with pytest.raises(FetchError, match="Too many levels"):
        bucket.fetch(NodeCache(cache_dir, boot="second"))
    pages.unlink()
    aside.rename(pages)
    moved_bytes = bucket.store.moved_bytes
    assert bucket.fetch(NodeCache(cache_dir, boot="second")) == directory
    assert bucket.store.moved_bytes == moved_bytes


def test_a_restart_of_the_agent_alone_reads_no_image_again(bucket: Saved, tmp_path: Path) -> None:
    """Shown by a byte that nobody sees: the promise is per boot, not per agent."""
    directory = bucket.fetch(NodeCache(tmp_path / "cache", boot="first"))
    flip(directory / "pages.img")
    assert NodeCache(tmp_path / "cache", boot="first").lookup(bucket.snapshot) == directory
    with pytest.raises(AssertionError):
        assert bucket.is_whole(directory)


# -- the bucket


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """An image in a bucket that a test may break."""
    cache_dir = tmp_path / "cache"
    return save_image(tmp_path, NodeCache(cache_dir), cache_dir, pages_bytes=PAGES_BYTES)


def test_a_bucket_that_goes_in_the_middle_leaves_nothing_and_may_come_back(saved: Saved) -> None:
    """It is no damage: the snapshot stays usable."""
    away = saved.store.root.with_name("away")

    def take_away(moved_bytes: int) -> None:
        if moved_bytes and not away.exists():
            saved.store.root.rename(away)

    saved.store.on_read = take_away
    with pytest.raises(FetchError, match="bucket bucket does not exist"):
        saved.fetch()
    saved.assert_nothing_cached()
    away.rename(saved.store.root)
    saved.store.on_read = lambda _: None
    assert saved.is_whole(saved.fetch())


def test_a_damaged_image_is_not_given_up_for_a_bucket_that_is_away(saved: Saved) -> None:
    """There may be no other copy for long."""
    directory = saved.fetch(NodeCache(saved.cache_dir, boot="first"))
    flip(directory / "pages.img")
    saved.store.root.rename(saved.store.root.with_name("away"))
    with pytest.raises(FetchError, match="bucket bucket does not exist"):
        saved.fetch(NodeCache(saved.cache_dir, boot="second"))
    assert (directory / "pages.img").exists()


def test_ten_who_ask_while_a_fetch_fails_all_hear_why_and_the_next_try_works(
    saved: Saved,
) -> None:
    """Ten Pods are ten cold starts for one reason, not ten fetches one after the other."""
    flip(saved.object("pages.img"))
    all_wait = threading.Event()

    def hold(_: int) -> None:
        assert all_wait.wait(20)

    saved.store.on_read = hold

    def ask(_: int) -> str:
        with pytest.raises(DamagedError) as refused:
            saved.fetch()
        return str(refused.value)

    with ThreadPoolExecutor(10) as pool:
        answers = pool.map(ask, range(10))
        eventually(lambda: waiting(saved) == 9, "nine wait for the tenth")
        all_wait.set()
        (text,) = set(answers)
    assert text.startswith("part pages.img, chunk 1 ")
    assert len(saved.opened) == 1
    saved.assert_nothing_cached()

    flip(saved.object("pages.img"))
    assert saved.is_whole(saved.fetch())


def waiting(saved: Saved) -> int:
    """Return how many wait for a fetch that somebody else makes."""
    return sum(len(f.landed._condition._waiters) for f in saved.cache._flights.values())
