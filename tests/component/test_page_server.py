# SPDX-License-Identifier: Apache-2.0
"""An image that is mounted before its pages are here, served by a process of its own.

The mount, the process and the file system are real; the bucket is the double of Cloud Storage,
which can be slow, die and lie.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from api_objects import NODE, capture_of, pod, snapshot
from cluster_world import eventually
from saved_image import write_image

from backends.objects.access_token import AccessToken
from backends.objects.factory import open_store
from backends.objects.interface import ObjectStore, PermissionDenied
from localcluster.fuse_library import fuse_library
from localcluster.toolchain import default_cache
from nodeexec import background_loads, fuse
from nodeexec.background_loads import BackgroundLoads, LoadError
from nodeexec.bucket_stores import BucketUse
from nodeexec.cache_limits import CacheLimits
from nodeexec.cached_image import is_locked
from nodeexec.image import inspect, seal
from nodeexec.node_cache import NodeCache
from nodeexec.page_loads import (
    PAGES_PART,
    LoadState,
    LoadStatus,
    read_token,
    write_token,
)
from nodeexec.sandboxes import DECISION_FILE, PAGES_LOCAL_FILE, read_cold_mark
from nodeexec.settings import AgentSettings
from nodeexec.upload import upload
from policies.distill import distill
from schemas.manifest import Manifest
from schemas.snapshot import Snapshot
from schemas.storage_config import Location
from schemas.token_request import Role
from tests.gcs.server import CloudStorageDouble, running_cloud_storage

MIB = 1 << 20
# More than is left to the stream, so that the end is a fault.
PAGES_BYTES = 48 * MIB + 4096
BUCKET = "snapshots"
POD_UID = "pod-uid"


@dataclass(slots=True)
class Node:
    """A node whose cache lacks a snapshot that is in the bucket."""

    settings: AgentSettings
    gcs: CloudStorageDouble
    cache: NodeCache
    loads: BackgroundLoads
    source: Path
    snapshot: Snapshot
    sandboxes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def start(self) -> Path:
        """Begin to load the snapshot."""
        capture = self.snapshot.capture
        assert capture is not None
        assert capture.location is not None
        use = BucketUse(capture.location, Role.RESTORE, self.snapshot, "web-0", POD_UID)
        return self.loads.start(self.snapshot, use)

    def status(self, image: Path) -> LoadStatus:
        """Return what the server says."""
        status = self.loads.status(image)
        assert status is not None
        return status

    def pages(self) -> bytes:
        """Return what was saved."""
        return (self.source / PAGES_PART).read_bytes()

    def slow(self, bytes_per_s: float = 12 * MIB) -> None:
        """Let the whole bucket have so much; the image takes seconds."""
        self.gcs.limits.total_bytes_s = bytes_per_s

    def sandbox(self, image: Path, name: str = "sandbox") -> "subprocess.Popen[bytes]":
        """Make a process that looks like a sandbox restored from an image."""
        process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
        self.sandboxes.append(process)
        bundle = self.settings.bundles_dir / name
        bundle.mkdir(parents=True)
        restore = {"snapshot": "one", "image_dir": str(image), "background": True}
        named = {"uid": f"uid-of-{name}", "name": "web-0", "namespace": "shop"}
        record = {"sandbox": name, "pod": named, "restore": restore}
        (bundle / DECISION_FILE).write_text(json.dumps(record))
        state = self.settings.runsc_root / f"{name}_sandbox:{name}.state"
        state.parent.mkdir(exist_ok=True)
        state.write_text(json.dumps({"sandbox": {"pid": process.pid}}))
        self.settings.attempts_dir.mkdir(parents=True, exist_ok=True)
        attempt = {"snapshot": "one", "reason": "?", "blame": True, "at": 1.0}
        (self.settings.attempts_dir / f"uid-of-{name}").write_text(json.dumps(attempt))
        return process

    def why_cold(self, name: str = "sandbox") -> str:
        """Return why a sandbox's Pod starts cold, empty if it does not; never the snapshot."""
        mark = read_cold_mark(self.settings.cold_marks_dir / f"uid-of-{name}")
        assert mark is None or not mark.blame
        return mark.reason if mark else ""

    def assert_nothing_left(self) -> None:
        """No mount, no half image."""
        eventually(lambda: not _mounts(self.settings.pages_dir), "everything is unmounted")
        eventually(lambda: list(self.settings.cache_dir.iterdir()) == [], "no half image is left")


def _mounts(below: Path) -> list[str]:
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return [line for line in mounts if str(below) in line]


@pytest.fixture
def gcs(tmp_path: Path) -> Iterator[CloudStorageDouble]:
    """The bucket's server."""
    (tmp_path / "gcs").mkdir()
    with running_cloud_storage(tmp_path / "gcs", BUCKET) as double:
        yield double


@pytest.fixture
def node(
    tmp_path: Path, gcs: CloudStorageDouble, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Node]:
    """A saved snapshot, and a node that has none of it."""
    library = fuse_library(default_cache(), progress=lambda _: None)
    monkeypatch.setenv(fuse.LIBRARY_VARIABLE, str(library))
    if problem := fuse.problem():
        pytest.skip(problem)
    settings = AgentSettings(
        node_name="node-1",
        kubeconfig=tmp_path / "kubeconfig",
        state_dir=tmp_path / "state",
        socket=tmp_path / "agent.sock",
        runsc=tmp_path / "runsc",
        runsc_root=tmp_path / "runsc-root",
        runsc_config=tmp_path / "runsc.toml",
        kubelet_root=tmp_path / "kubelet",
        ctr=tmp_path / "ctr",
        containerd_address=tmp_path / "containerd.sock",
        containerd_state=tmp_path / "containerd",
        cluster_id="c",
        bucket_endpoint=gcs.url,
        runtime_state_dir=tmp_path / "run",
        pages_cgroup="",
    )
    source = tmp_path / "source"
    write_image(source, pages_bytes=PAGES_BYTES)
    store = open_store(BUCKET, settings.bucket_access)
    empty = snapshot("one")
    manifest = Manifest(
        snapshot_uid=empty.metadata.uid,
        snapshot_name="one",
        namespace=empty.metadata.namespace,
        cluster_id="c",
        attempt=1,
        parts=seal(source, inspect(source)),
        identity=distill(pod()),
        compatibility=NODE,
    )
    location = Location(BUCKET, "snapshots/one")
    pinned = upload(store, location, source, manifest, cancelled=lambda: False).digest
    record = replace(capture_of(pod()), location=location, manifest_digest=pinned)
    cache = NodeCache(settings.cache_dir)

    def opened(_use: BucketUse) -> ObjectStore:
        return store

    loads = BackgroundLoads(settings, cache, opened, lambda _: None, patience_s=10.0, linger_s=0.2)
    made = Node(settings, gcs, cache, loads, source, replace(empty, capture=record))
    yield made
    gcs.heal()
    for process in made.sandboxes:
        process.kill()
        process.wait()
    for line in _mounts(settings.pages_dir):
        fuse.unmount(Path(line.split(" ")[4]), detach=True)


def test_an_image_is_read_before_it_is_here_and_then_is_in_the_cache(node: Node) -> None:
    """What is asked for comes first, verified; the process ends by itself."""
    node.slow()
    image = node.start()
    assert (image / "checkpoint.img").read_bytes() == (node.source / "checkpoint.img").read_bytes()
    assert (image / PAGES_PART).stat().st_size == PAGES_BYTES
    with (image / PAGES_PART).open("rb") as file:
        file.seek(-100_000, os.SEEK_END)
        assert file.read() == node.pages()[-100_000:]
        assert node.status(image).state is LoadState.LOADING
        assert node.cache.lookup(node.snapshot) is None
        node.gcs.heal()
        eventually(lambda: node.status(image).state is LoadState.COMPLETE, "all pages are here")
        # Nobody who has it open loses it, whatever becomes of the rest.
        assert _mounts(node.settings.pages_dir)
        file.seek(0)
        assert file.read() == node.pages()
        told = node.status(image)
        assert told.faults >= 1
        assert told.wait_p99_s > 0
        assert told.done_bytes == told.total_bytes == PAGES_BYTES
    cached = node.cache.lookup(node.snapshot)
    assert cached is not None
    assert (cached / PAGES_PART).read_bytes() == node.pages()
    eventually(lambda: not image.parent.exists(), "the server removes what it needed")
    assert not _mounts(node.settings.pages_dir)


def test_ten_readers_move_one_image(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for the same snapshot reads from the same mount."""
    before = node.gcs.payload_bytes[0]
    node.slow(30 * MIB)
    monkeypatch.setattr(background_loads, "MAX_LOADS", 1)
    assert not node.loads.is_full()
    with ThreadPoolExecutor(10) as pool:
        images = set(pool.map(lambda _: node.start(), range(10)))
        (image,) = images
        assert node.loads.is_full()
        whole = list(pool.map(lambda _: (image / PAGES_PART).read_bytes(), range(10)))
    assert set(whole) == {node.pages()}
    moved_bytes = node.gcs.payload_bytes[0] - before
    assert moved_bytes < 1.2 * PAGES_BYTES


def test_a_bucket_that_dies_costs_no_wrong_page_and_tells_the_pod(node: Node) -> None:
    """Without an agent: the Pod is marked before the first read fails, and its sandbox killed."""
    node.slow()
    node.loads.patience_s = 1.5
    image = node.start()
    sandbox = node.sandbox(image)
    done = node.sandbox(image, "done")
    (node.settings.bundles_dir / "done" / PAGES_LOCAL_FILE).touch()
    node.gcs.die_after(0)
    node.gcs.cut_connections()
    with pytest.raises(OSError, match="Input/output"):
        (image / PAGES_PART).read_bytes()
    assert sandbox.wait(5) == -signal.SIGKILL
    assert PAGES_PART in node.why_cold()
    assert done.poll() is None
    assert not node.why_cold("done")
    assert node.status(image).state is LoadState.FAILED
    node.assert_nothing_left()
    eventually(lambda: not is_locked(image.parent), "the server ends")
    node.loads.look(lambda *_: pytest.fail("a dead bucket is no damage"))
    assert not image.parent.exists()
    node.gcs.heal()
    again = node.start()
    assert (again / PAGES_PART).read_bytes() == node.pages()


def test_a_load_is_renewed_as_any_pod_that_reads_from_it(node: Node) -> None:
    """The first one goes, and then the controller gives nothing more in its name."""
    node.slow()
    image = node.start()
    ends_s = time.time() + 3600
    write_token(image.parent, AccessToken("old", ends_s))

    def token_for(use: BucketUse) -> AccessToken:
        if use.pod_uid == POD_UID:
            raise PermissionDenied("PodGone")
        return AccessToken("new", ends_s)

    node.loads.token_for = token_for
    capture = node.snapshot.capture
    assert capture is not None
    assert capture.location is not None
    other = BucketUse(capture.location, Role.RESTORE, node.snapshot, "web-1", "uid-web-1")
    assert node.loads.running(node.snapshot, other) == image
    node.loads.look(lambda *_: pytest.fail("no damage"))
    assert read_token(image.parent).value == "new"


def test_wrong_bytes_are_never_handed_out(node: Node) -> None:
    """They are damage: told to whoever looks, and no Pod is restored from them again."""
    node.slow()
    node.gcs.objects.flip(BUCKET, f"snapshots/one/{PAGES_PART}", 20 * MIB)
    image = node.start()
    with (image / PAGES_PART).open("rb") as file:
        file.seek(20 * MIB - 5)
        with pytest.raises(OSError, match="Input/output"):
            file.read(10)
    eventually(lambda: not is_locked(image.parent), "the server ends")
    told: list[tuple[str, str]] = []
    node.loads.look(lambda *damage: told.append(damage))
    capture = node.snapshot.capture
    assert capture is not None
    assert [digest for digest, _ in told] == [capture.manifest_digest]
    assert PAGES_PART in told[0][1]
    node.assert_nothing_left()


@pytest.mark.parametrize("by", ["the scan", "the next Pod"])
def test_a_server_that_was_killed_is_cleared_up_after(node: Node, by: str) -> None:
    """Its mount answers nothing any more: unmounted, and whoever read from it starts cold."""
    node.slow()
    image = node.start()
    sandbox = node.sandbox(image)
    (server,) = _servers(image.parent)
    status = Path(f"/proc/{server}/status").read_text(encoding="utf-8")
    assert f"PPid:\t{os.getpid()}\n" not in status
    assert os.getsid(server) != os.getsid(0)
    os.kill(server, signal.SIGKILL)
    eventually(lambda: not is_locked(image.parent), "it is dead")
    if by == "the scan":
        node.loads.look(lambda *_: None)
        assert not _mounts(node.settings.pages_dir)
        assert node.loads.running(node.snapshot) is None
    else:
        node.gcs.heal()
        assert (node.start() / PAGES_PART).read_bytes() == node.pages()
    assert sandbox.wait(5) == -signal.SIGKILL
    assert node.why_cold() == "the process that served its memory ended"


def test_a_server_that_hangs_is_ended(node: Node) -> None:
    """Its reads would wait for ever; a restore begun afterwards is not in its way."""
    node.slow()
    node.loads.hang_s = 1.5
    image = node.start()
    sandbox = node.sandbox(image)
    (server,) = _servers(image.parent)
    for _ in range(2):
        node.loads.look(lambda *_: None)
    assert sandbox.poll() is None
    os.kill(server, signal.SIGSTOP)

    def is_over() -> bool:
        node.loads.look(lambda *_: None)
        return not image.parent.exists()

    eventually(is_over, "somebody notices")
    assert sandbox.wait(5) == -signal.SIGKILL
    assert node.why_cold() == "the process that served its memory did not answer any more"
    assert not _mounts(node.settings.pages_dir)
    node.gcs.heal()
    assert (node.start() / PAGES_PART).read_bytes() == node.pages()


def test_a_server_that_does_not_begin_in_time_is_ended(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own child, which would fill a directory that is somebody else's."""
    monkeypatch.setattr(background_loads, "_START_LIMIT_S", 0.0)
    with pytest.raises(LoadError, match="was not ready within"):
        node.start()
    node.assert_nothing_left()
    monkeypatch.undo()
    monkeypatch.setenv(
        fuse.LIBRARY_VARIABLE, str(fuse_library(default_cache(), progress=lambda _: None))
    )
    assert (node.start() / PAGES_PART).read_bytes() == node.pages()


def test_a_server_leaves_alone_what_is_not_its_own_any_more(node: Node) -> None:
    """Somebody took its directory away and made another one of that name."""
    node.slow()
    image = node.start()
    (partial,) = node.settings.cache_dir.iterdir()
    partial.rename(node.settings.cache_dir.with_name("away"))
    partial.mkdir()
    (partial / "theirs").touch()
    node.gcs.heal()
    assert (image / PAGES_PART).read_bytes() == node.pages()
    eventually(lambda: not image.parent.exists(), "the server ends")
    assert [p.name for p in partial.iterdir()] == ["theirs"]
    assert node.cache.lookup(node.snapshot) is None


def test_an_image_that_is_larger_than_the_cache_is_served_and_not_kept(node: Node) -> None:
    """No Pod starts cold for the size of its image."""
    node.loads.cache = NodeCache(node.settings.cache_dir, limits=CacheLimits(limit_bytes=MIB))
    image = node.start()
    assert (image / PAGES_PART).read_bytes() == node.pages()
    node.assert_nothing_left()


def _servers(directory: Path) -> list[int]:
    """Return the processes that hold the lock on a load's directory."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and any(
                descriptor.readlink() == directory for descriptor in (entry / "fd").iterdir()
            ):
                found.append(int(entry.name))
    return found


def test_without_the_library_the_image_is_fetched_first(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that cannot mount says so at once, and leaves nothing."""
    monkeypatch.setenv(fuse.LIBRARY_VARIABLE, "/nonexistent/libfuse3.so.3")
    assert not node.loads.is_possible()
    began_s = time.monotonic()
    with pytest.raises(LoadError, match="page server did not start"):
        node.start()
    assert time.monotonic() - began_s < 10
    node.assert_nothing_left()
