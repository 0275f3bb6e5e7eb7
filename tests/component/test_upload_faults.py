# SPDX-License-Identifier: Apache-2.0
"""Whatever ends an upload: a snapshot is there whole or not at all, and nothing is left behind.

Real processes that are killed, a real directory and our double of Cloud Storage as buckets, a real
file system that is full. What the API server would say is modelled: it is not what is tried here.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from api_objects import NODE, pod
from modelled_surroundings import Line, ModelledApi
from saved_image import write_image
from sealed_image import (
    BUCKET,
    FILES,
    LOCATION,
    PIECES,
    POD,
    SealedImage,
    Victim,
    as_pod,
    names,
    sealed_image,
    signature_of,
    tiny_file_system,
)

from backends.clock import SystemClock
from backends.kube.client import POD_SNAPSHOTS, KubeClient
from backends.kube.errors import ServerUnavailable
from backends.kube.transport import Transport
from backends.objects.interface import ObjectStore, PreconditionFailed
from backends.objects.localdir import LocalDirStore
from nodeexec.capture import Capturer
from nodeexec.capture_job import CaptureFailed, CaptureJob, StoppedError
from nodeexec.capture_status import CaptureStatus
from nodeexec.node_cache import NodeCache
from nodeexec.part_download import DamagedError
from nodeexec.pause_estimate import PauseEstimate
from nodeexec.runsc import Runsc
from nodeexec.sandboxes import PreparedSandbox
from nodeexec.signing import SigningError
from nodeexec.stopping import Stopper
from nodeexec.store_delays import STORE_LIMIT_S, StoreDelayedError
from nodeexec.upload import UploadCancelledError, discard, single_stream
from policies.distill import distill
from schemas.encoding import Encoding
from schemas.instants import to_micro_time
from schemas.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest
from schemas.names import STORAGE_REPLICATED
from schemas.snapshot import CaptureRecord, Snapshot
from tests.gcs.server import CloudStorageDouble, running_cloud_storage

PAGES = f"{LOCATION.path}/pages.img"


@pytest.fixture
def double(tmp_path: Path) -> Iterator[CloudStorageDouble]:
    """Cloud Storage with one bucket."""
    (tmp_path / "cloud").mkdir()
    with running_cloud_storage(tmp_path / "cloud", BUCKET) as double:
        yield double


@pytest.fixture
def image(tmp_path: Path) -> SealedImage:
    """A sealed image."""
    return sealed_image(tmp_path / "sealed")


# -- killed: Cloud Storage

# The named points of an upload, each as the request that is never answered, and how many of its
# kind were before it. In order: two small parts, the pages in five pieces that are composed and
# removed, a small part, the signature, the manifest.
_PUT, _COMPOSE, _REMOVE = "POST /upload/", "/compose", "DELETE "
KILLED_AT: dict[str, tuple[str, int]] = {
    "before the first part": (_PUT, 0),
    "between two parts": (_PUT, 1),
    "before the first piece of the pages": (_PUT, 2),
    "between two pieces": (_PUT, 4),
    "before the last piece": (_PUT, 6),
    "before the pieces are composed": (_COMPOSE, 0),
    "before the first piece is removed": (_REMOVE, 0),
    "between the removal of two pieces": (_REMOVE, 2),
    "before the last part": (_PUT, 7),
    "before the signature": (_PUT, 8),
    "between signature and manifest": (_PUT, 9),
}


def upload_and_die(double: CloudStorageDouble, image: SealedImage, point: str) -> None:
    """Upload in a process that is killed at a point."""
    match, before = KILLED_AT[point]
    store, victim = as_pod(double), Victim()
    double.fail(match, "torn", skip=before, before=victim.kill)
    assert victim.run(lambda: image.upload(store)) == -signal.SIGKILL
    assert double.faults.hits == 1


@pytest.mark.parametrize("point", KILLED_AT)
def test_an_upload_that_was_killed_is_gone_on_from(
    double: CloudStorageDouble, image: SealedImage, tmp_path: Path, point: str
) -> None:
    """By the next process: nobody saw half a snapshot, and no whole part is moved twice."""
    upload_and_die(double, image, point)
    assert MANIFEST_NAME not in names(double)
    before = {n: double.objects.get(BUCKET, f"{LOCATION.path}/{n}", {}) for n in names(double)}
    whole = before.keys() & set(FILES)

    uploaded = image.upload(as_pod(double))

    assert names(double) == FILES
    for name in whole:
        now = double.objects.get(BUCKET, f"{LOCATION.path}/{name}", {})
        assert now.generation == before[name].generation
    pieces = sum("-part-" in name for name in before)
    sent = [r for r in double.seen("POST", code=200) if "/compose" not in r.path]
    assert len(sent) == len(FILES) - 1 + PIECES
    assert pieces <= PIECES
    assert image.is_fetched_whole(as_pod(double), uploaded.digest, tmp_path / "cache")


@pytest.mark.parametrize("point", [*KILLED_AT][3::2])
def test_an_upload_that_was_killed_and_is_not_wanted_any_more_leaves_nothing(
    double: CloudStorageDouble, image: SealedImage, point: str
) -> None:
    """Removed by an identity that may not list: every name can be derived."""
    upload_and_die(double, image, point)
    discard(as_pod(double), LOCATION, image.manifest)
    assert names(double) == []
    assert double.seen("GET", name="^$", code=403) == []


def test_an_upload_that_was_killed_before_it_could_tell_is_done_already(
    double: CloudStorageDouble, image: SealedImage
) -> None:
    """The next process finds the very manifest that it would write, and moves no byte."""
    store = as_pod(double)

    def body() -> None:
        image.upload(store)
        os.kill(os.getpid(), signal.SIGKILL)

    assert Victim().run(body) == -signal.SIGKILL
    there = double.objects.read(BUCKET, f"{LOCATION.path}/{MANIFEST_NAME}")
    again = image.upload(as_pod(double))
    assert (again.manifest, again.moved_bytes) == (there, 0)
    assert names(double) == FILES


# -- killed: a directory

PLACED = {
    f"before {file} has its name": number
    for number, file in enumerate(
        ("checkpoint.img", "pages_meta.img", "pages.img", "metadata", SIGNATURE_NAME, MANIFEST_NAME)
    )
}


@pytest.mark.parametrize("point", PLACED)
def test_an_upload_into_a_directory_that_was_killed_is_gone_on_from(
    image: SealedImage, tmp_path: Path, point: str
) -> None:
    """The same promise, by the file system's own means."""
    (tmp_path / "bucket").mkdir()
    store = LocalDirStore(tmp_path / "bucket")

    def body() -> None:
        left = PLACED[point]

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            if event == "os.rename" and str(arguments[1]).startswith(str(tmp_path / "bucket")):
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        sys.addaudithook(hook)
        image.upload(store)

    assert Victim().run(body) == -signal.SIGKILL
    there = [info.name.removeprefix(f"{LOCATION.path}/") for info in store.list("")]
    assert len(there) == PLACED[point]
    assert MANIFEST_NAME not in there

    uploaded = image.upload(LocalDirStore(tmp_path / "bucket"))

    found = [info.name.removeprefix(f"{LOCATION.path}/") for info in store.list("")]
    assert sorted(found) == sorted(FILES)
    assert image.is_fetched_whole(store, uploaded.digest, tmp_path / "cache")
    discard(store, LOCATION, image.manifest)
    assert list(store.list("")) == []


# -- two at once, and strangers


def test_two_processes_that_upload_the_same_image_make_one_snapshot(
    double: CloudStorageDouble, image: SealedImage, tmp_path: Path
) -> None:
    """A rollout lets an old agent and a new one meet; neither spoils the other's work."""
    stores = [as_pod(double, connections=2) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(image.upload, stores)
    assert one.digest == two.digest
    assert names(double) == FILES
    assert image.is_fetched_whole(as_pod(double), one.digest, tmp_path / "cache")


@pytest.mark.parametrize("file", ["pages.img", MANIFEST_NAME, SIGNATURE_NAME])
def test_an_object_of_somebody_else_in_the_way_is_left_alone(
    double: CloudStorageDouble, image: SealedImage, file: str
) -> None:
    """The upload ends with its name, and takes back what it stored itself."""
    double.objects.put(BUCKET, f"{LOCATION.path}/{file}", b"a stranger's", {"owner": "them"})
    with pytest.raises(PreconditionFailed, match=rf"one/{file} belongs to another PodSnapshot"):
        image.upload(as_pod(double))
    discard(as_pod(double), LOCATION, image.manifest)
    assert names(double) == [file]
    assert double.objects.read(BUCKET, f"{LOCATION.path}/{file}") == b"a stranger's"


def test_a_part_that_a_stranger_overwrites_before_the_manifest_is_never_restored(
    double: CloudStorageDouble, image: SealedImage, tmp_path: Path
) -> None:
    """The manifest names the generation that was written, not whatever has the name."""
    double.fail(_PUT, skip=9, before=lambda: double.objects.put(BUCKET, PAGES, b"a stranger's", {}))
    uploaded = image.upload(as_pod(double))
    with pytest.raises(DamagedError, match=r"part pages\.img is missing or was replaced"):
        image.is_fetched_whole(as_pod(double), uploaded.digest, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_upload_that_nobody_wants_any_more_ends_before_the_manifest(
    double: CloudStorageDouble, image: SealedImage
) -> None:
    """Whenever that is noticed."""
    with pytest.raises(UploadCancelledError):
        image.upload(as_pod(double), cancelled=lambda: "metadata" in names(double))
    assert "metadata" in names(double)
    assert MANIFEST_NAME not in names(double)
    discard(as_pod(double), LOCATION, image.manifest)
    assert names(double) == []


# -- what the agent makes of it


@dataclass(slots=True)
class Node:
    """An agent's way from a workload's image to the bucket, with a modelled API server."""

    state: Path
    api: ModelledApi

    @property
    def client(self) -> KubeClient:
        """A connection."""
        return KubeClient(cast("Transport", Line(self.api, lambda: None)))

    def capturer(self, sign: Callable[[bytes], bytes | None] = signature_of) -> Capturer:
        """Return what a new process of the agent has."""
        clock = SystemClock()
        return Capturer(
            node="node-1",
            cluster_id="c",
            staging=self.state / "staging",
            compatibility=replace(NODE, runsc_version="r"),
            runsc=cast("Runsc", None),
            cache=NodeCache(self.state / "cache"),
            status=CaptureStatus(self.client, clock),
            stopper=cast("Stopper", None),
            estimate=PauseEstimate(),
            clock=clock,
            is_gone=lambda snapshot: self.live(snapshot.metadata.name).metadata.is_deleting,
            sign=sign,
        )

    def live(self, name: str = "one") -> Snapshot:
        """Return the PodSnapshot as the API has it."""
        raw = self.api.get(POD_SNAPSHOTS.plural, name, "shop")
        assert raw is not None
        return Snapshot.parse(raw)

    def seal(
        self, encoding: Encoding = Encoding.RAW, pages_bytes: int = 300_000
    ) -> tuple[Snapshot, CaptureRecord]:
        """Take over an image that a workload made runsc write."""
        written = self.state / "written"
        write_image(written, pages_bytes=pages_bytes)
        job = CaptureJob(
            snapshot=self.live(),
            pod=pod(),
            sandbox=PreparedSandbox(
                "s", self.state / "bundle", "u", "web-0", "shop", "web", None, "", 1
            ),
            identity=distill(pod()),
            image_ids={},
            location=LOCATION,
            encoding=encoding,
        )
        return self.capturer().adopt_workload_save(job, written, attempt=1)

    @property
    def staged(self) -> list[str]:
        """What lies in the staging directory."""
        return sorted(p.name for p in (self.state / "staging").iterdir())


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node without images."""
    (tmp_path / "staging").mkdir()
    api = ModelledApi(lambda *_: None)
    metadata = {"name": "one", "namespace": "shop", "uid": "uid-one"}
    api.put(POD_SNAPSHOTS.plural, {"metadata": metadata, "spec": {"policyName": "web"}})
    return Node(tmp_path, api)


def assert_failed(node: Node, *told: str) -> None:
    """The PodSnapshot says why, and neither node nor bucket has anything of it."""
    capture = node.live().capture
    assert capture is not None
    assert capture.failure is not None
    for words in told:
        assert words in f"{capture.failure.reason}: {capture.failure.message}"
    assert not node.live().conditions[STORAGE_REPLICATED].is_true
    assert node.staged == []
    assert list((node.state / "cache").iterdir()) == []


@pytest.mark.parametrize("encoding", Encoding, ids=lambda e: e.name.lower())
def test_the_record_tells_whether_the_pages_went_over_many_streams(
    double: CloudStorageDouble, node: Node, encoding: Encoding
) -> None:
    """And at what rate; this node has the plain image and its manifest, and nothing else."""
    sealed, record = node.seal(encoding)
    stored = node.capturer().store(sealed, record, as_pod(double, connections=4)).capture
    assert stored is not None
    assert CaptureRecord.parse(stored.to_object()) == node.live().capture
    assert (stored.upload_components, stored.upload_parallel) == (PIECES, True)
    assert stored.upload_bytes_per_s > 0
    assert single_stream(stored) == ""
    assert f"pages.img{encoding}" in names(double)
    image = NodeCache(node.state / "cache").lookup(node.live())
    assert image is not None
    assert {p.name for p in image.iterdir()} - {"verified.json"} == set(FILES)
    assert (image / SIGNATURE_NAME).read_bytes() == signature_of(
        (image / MANIFEST_NAME).read_bytes()
    )
    elsewhere = NodeCache(node.state / "elsewhere").fetch(node.live(), lambda: as_pod(double))
    assert (elsewhere / "pages.img").read_bytes() == (image / "pages.img").read_bytes()


def test_a_single_stream_where_many_were_meant_is_a_warning(
    double: CloudStorageDouble, node: Node
) -> None:
    """It works, and takes ten times as long: nobody finds that out by himself."""
    sealed, record = node.seal()
    directory = node.state / "staging/uid-one-1"
    manifest = Manifest.parse((directory / MANIFEST_NAME).read_bytes())
    marks = {
        "podsnap-cluster": "c",
        "podsnap-namespace": "shop",
        "podsnap-snapshot-uid": manifest.snapshot_uid,
        "podsnap-attempt": "1",
    }
    store = as_pod(double)
    double.objects.put(BUCKET, PAGES, (directory / "pages.img").read_bytes(), marks)
    stored = node.capturer().store(sealed, record, store).capture
    assert stored is not None
    assert (stored.upload_components, stored.upload_parallel) == (1, False)
    assert "in one stream" in single_stream(stored)
    assert "storage.buckets.get" in single_stream(stored)


def test_a_directory_is_no_fall_back(node: Node) -> None:
    """It means to have one stream."""
    (node.state / "bucket").mkdir()
    sealed, record = node.seal()
    stored = node.capturer().store(sealed, record, LocalDirStore(node.state / "bucket")).capture
    assert stored is not None
    assert (stored.upload_components, stored.upload_parallel) == (1, None)
    assert single_stream(stored) == ""


Spoil = Callable[[CloudStorageDouble], object]
SPOILT: dict[str, tuple[Spoil, str]] = {
    "the right to create is taken away": (
        lambda d: d.access.revoke(POD, "storage.objects.create"),
        "storage.objects.create",
    ),
    "the bucket is deleted": (
        lambda d: d.objects.buckets.pop(BUCKET),
        f"bucket {BUCKET}",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_an_upload_that_cannot_go_on_fails_with_the_reason_and_leaves_nothing(
    double: CloudStorageDouble, node: Node, what: str
) -> None:
    """In the middle of the pages; the node is as if nothing had been."""
    spoil, told = SPOILT[what]
    sealed, record = node.seal()
    store = as_pod(double)
    double.fail(_PUT, skip=4, before=lambda: spoil(double))
    with pytest.raises(CaptureFailed, match="UploadFailed"):
        node.capturer().store(sealed, record, store)
    assert_failed(node, "UploadFailed: ", told, "create a new trigger")
    if BUCKET in double.objects.buckets:
        assert names(double) == []


def test_a_sealed_image_waits_for_a_bucket_that_is_away(
    double: CloudStorageDouble, node: Node, tmp_path: Path
) -> None:
    """It exists once, and its Pod may be gone; what it waits for is told, and nothing is lost."""
    sealed, record = node.seal()
    double.fail(_PUT, skip=4, status=503, count=sys.maxsize)
    with pytest.raises(StoreDelayedError, match="503") as raised:
        node.capturer().store(sealed, record, as_pod(double))
    assert raised.value.again_s == 15
    told = node.live().conditions[STORAGE_REPLICATED]
    assert (told.status, told.reason) == ("False", "Pending")
    assert "waits to be stored: " in told.message
    assert "503" in told.message
    capture = node.live().capture
    assert capture is not None
    assert capture.failure is None
    assert node.staged == ["uid-one-1"]
    sent = len([r for r in double.seen("POST", code=200) if "/compose" not in r.path])

    double.heal()
    sealed = node.live()
    stored = node.capturer().store(sealed, record, as_pod(double)).capture
    assert stored is not None
    assert names(double) == FILES
    all_sent = len([r for r in double.seen("POST", code=200) if "/compose" not in r.path])
    assert sent > 0
    assert all_sent == len(FILES) - 1 + PIECES  # none came twice
    NodeCache(tmp_path / "elsewhere").fetch(node.live(), lambda: as_pod(double))


def test_a_sealed_image_does_not_wait_for_ever(double: CloudStorageDouble, node: Node) -> None:
    """It holds the disk that other saves need."""
    sealed, record = node.seal()
    double.fail(_PUT, status=503, count=sys.maxsize)
    ago = datetime.now(UTC) - timedelta(seconds=STORE_LIMIT_S + 1)
    record = replace(record, sealed_at=to_micro_time(ago))
    with pytest.raises(CaptureFailed, match="UploadFailed"):
        node.capturer().store(sealed, record, as_pod(double))
    assert_failed(node, "UploadFailed: ", "503", "create a new trigger")


def test_a_process_that_ends_fails_nothing(double: CloudStorageDouble, node: Node) -> None:
    """What its parts say of each other while they end is no word of the bucket's."""
    sealed, record = node.seal()
    double.fail(_PUT, skip=4, before=lambda: double.access.revoke(POD, "storage.objects.create"))
    store = as_pod(double)
    ending = replace(node.capturer(), is_stopping=lambda: True)
    with pytest.raises(StoreDelayedError):
        ending.store(sealed, record, store)
    assert node.staged == ["uid-one-1"]
    capture = node.live().capture
    assert capture is not None
    assert capture.failure is None


@pytest.mark.parametrize("encoding", Encoding, ids=lambda e: e.name.lower())
def test_a_file_that_changed_after_it_was_sealed_is_never_acknowledged(
    double: CloudStorageDouble, node: Node, encoding: Encoding
) -> None:
    """The manifest has the digests of what was saved; nobody could ever restore it."""
    sealed, record = node.seal(encoding)
    with (node.state / f"staging/uid-one-1/pages.img{encoding}").open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(CaptureFailed, match="UploadFailed"):
        node.capturer().store(sealed, record, as_pod(double, connections=4))
    assert_failed(node, "UploadFailed: pages.img", "changed on this node's disk")
    assert names(double) == []


def test_a_node_that_cannot_keep_a_stored_image_has_stored_it(node: Node) -> None:
    """A disk that is full by then is no reason to tell the save as failed."""
    (node.state / "bucket").mkdir()
    sealed, record = node.seal()
    store = LocalDirStore(node.state / "bucket")
    (node.state / f"staging/uid-one-1/{MANIFEST_NAME}.tmp").mkdir()
    stored = node.capturer().store(sealed, record, store)
    assert stored.capture is not None
    assert node.live().conditions[STORAGE_REPLICATED].is_true
    assert node.staged == []


def test_a_snapshot_that_is_deleted_meanwhile_leaves_nothing(
    double: CloudStorageDouble, node: Node
) -> None:
    """Neither in the bucket nor on the node."""
    sealed, record = node.seal()
    metadata = {"name": "one", "namespace": "shop", "uid": "uid-one", "finalizers": ["podsnap"]}
    node.api.put(
        POD_SNAPSHOTS.plural,
        {"metadata": {**metadata, "deletionTimestamp": "2026-01-01T00:00:00Z"}},
    )
    with pytest.raises(StoppedError):
        node.capturer().store(sealed, record, as_pod(double))
    assert names(double) == []
    assert node.staged == []


def test_an_agent_that_comes_late_does_not_take_back_what_another_process_stored(
    double: CloudStorageDouble, node: Node, tmp_path: Path
) -> None:
    """It learns from the API server that the snapshot is there, and goes away quietly."""
    sealed, record = node.seal()
    staged = node.state / "staging/uid-one-1"
    subprocess.run(["cp", "-a", staged, tmp_path / "kept"], check=True)
    node.capturer().store(sealed, record, as_pod(double))
    subprocess.run(["cp", "-a", tmp_path / "kept", staged], check=True)

    with pytest.raises(StoppedError, match="is not ours any more"):
        node.capturer().store(sealed, record, as_pod(double))

    assert names(double) == FILES
    capture = node.live().capture
    assert capture is not None
    assert capture.failure is None
    NodeCache(tmp_path / "elsewhere").fetch(node.live(), lambda: as_pod(double))


def test_keys_that_cannot_be_read_now_let_the_upload_wait(
    double: CloudStorageDouble, node: Node
) -> None:
    """What is stored stays, and the next attempt signs it."""
    sealed, record = node.seal()

    def away(_: bytes) -> bytes:
        raise ServerUnavailable("the API server is away")

    with pytest.raises(StoreDelayedError, match="the API server is away"):
        node.capturer(away).store(sealed, record, as_pod(double))
    assert set(FILES) - set(names(double)) == {MANIFEST_NAME, SIGNATURE_NAME}
    stored = node.capturer().store(sealed, record, as_pod(double)).capture
    assert names(double) == FILES
    assert stored is not None
    assert stored.upload_bytes_per_s == 0


def test_a_signing_key_that_is_none_fails_the_save(double: CloudStorageDouble, node: Node) -> None:
    """Who wants signatures does not get snapshots without."""
    sealed, record = node.seal()

    def wrong(_: bytes) -> bytes:
        raise SigningError("signing.pem holds no key")

    with pytest.raises(CaptureFailed, match="SigningFailed"):
        node.capturer(wrong).store(sealed, record, as_pod(double))
    assert_failed(node, "SigningFailed: signing.pem holds no key")
    assert names(double) == []


# -- a full disk


def test_a_staging_disk_that_fills_up_while_the_image_is_encoded_fails_the_save(
    node: Node,
) -> None:
    """The plain image found room, its encoded form does not; the room is free again."""
    node.state /= "tiny"
    with tiny_file_system(node.state, "3m"):
        (node.state / "staging").mkdir()
        with pytest.raises(CaptureFailed, match="No space left on device"):
            node.seal(Encoding.ZSTD, pages_bytes=2 << 20)
        assert_failed(node, "NodeError: on node node-1", "No space left on device")
        free = os.statvfs(node.state)
        assert free.f_bavail * free.f_bsize > 2 << 20


def test_a_bucket_directory_that_is_full_fails_the_upload(node: Node) -> None:
    """The reason names the bucket; no half of an object is left in it."""
    sealed, record = node.seal()
    with tiny_file_system(node.state / "bucket", "200k"):
        store: ObjectStore = LocalDirStore(node.state / "bucket")
        with pytest.raises(CaptureFailed, match="UploadFailed"):
            node.capturer().store(sealed, record, store)
        assert list(store.list("")) == []
        left = [p for p in (node.state / "bucket").rglob("*") if p.is_file() and p.name != "lock"]
        assert left == []
    assert_failed(node, "UploadFailed", "No space left on device")
