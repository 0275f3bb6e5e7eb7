# SPDX-License-Identifier: Apache-2.0
"""A save of a real sandbox: what ends up in the bucket, on the PodSnapshot, and in the Pod."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from cluster_world import World, eventually
from runsc_sandbox import (
    CLUSTER,
    NODE,
    GvisorNode,
    RunningPod,
    SavingNode,
    running_pod,
    snapshot_controller,
)

from backends.kube.client import POD_SNAPSHOTS, KubeClient
from backends.objects.interface import ObjectInfo, never
from backends.objects.localdir import LocalDirStore
from localcluster.toolchain import Toolchain
from nodeexec import capture
from nodeexec.capture import CaptureFailed, StoppedError
from nodeexec.image import METADATA_PART, PARTS
from nodeexec.upload import ATTEMPT_KEY, CLUSTER_KEY, NAMESPACE_KEY, SNAPSHOT_UID_KEY
from reconciler.snapshot_controller import SnapshotController
from schemas.manifest import MANIFEST_NAME, Manifest, digest
from schemas.names import CHECKPOINT, STORAGE_REPLICATED
from schemas.snapshot import Snapshot
from statemachine.trace import save_spans

ALL_FILES = sorted((*PARTS, METADATA_PART, MANIFEST_NAME))
PHASES = ["wait", "freeze", "dump", "seal", "upload"]


@pytest.fixture(scope="module")
def gvisor(toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GvisorNode]:
    """The node's runsc and images."""
    node = GvisorNode.prepare(tmp_path_factory.mktemp("node"), toolchain.path("runsc"))
    yield node
    node.release()


@pytest.fixture(scope="module")
def running(gvisor: GvisorNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPod]:
    """One sandbox for all tests: no save, good or bad, may end it."""
    with running_pod(gvisor, tmp_path_factory.mktemp("shared")) as pod:
        pod.counter()
        yield pod


@pytest.fixture(scope="module")
def controller(controller_client: KubeClient, bucket_root: Path) -> Iterator[SnapshotController]:
    """The controller, when a test lets it look."""
    with snapshot_controller(controller_client, bucket_root) as made:
        yield made


@pytest.fixture
def node(
    world: World,
    running: RunningPod,
    agent_client: KubeClient,
    controller: SnapshotController,
    tmp_path: Path,
) -> SavingNode:
    """A Pod that was never saved."""
    return SavingNode.build(
        world, running, state=tmp_path, agent=agent_client, controller=controller
    )


def assert_goes_on(running: RunningPod, before: Mapping[str, object]) -> None:
    """The workload inside is the same one, and counts."""
    now = running.counter()
    assert now["nonce"] == before["nonce"]
    eventually(lambda: running.counter()["count"] > now["count"], "the counter goes on")


def assert_failed(node: SavingNode, name: str, reason: str) -> str:
    """The PodSnapshot says why the save failed; returns the sentence."""
    now = node.snapshot(name)
    assert now.capture is not None
    assert now.capture.failure is not None
    assert now.capture.failure.reason == reason
    for kind in (CHECKPOINT, STORAGE_REPLICATED):
        assert now.conditions[kind].reason == "Failed"
        assert now.conditions[kind].message.startswith(f"{reason}: ")
    return now.capture.failure.message


def test_a_save_puts_parts_and_manifest_into_the_bucket_and_the_pod_goes_on(
    node: SavingNode, running: RunningPod
) -> None:
    """Every part carries its owner's marks; the manifest pins their generations."""
    before = running.counter()
    job = node.job()
    sealed, record = node.capturer.save(job, attempt=1)
    assert node.objects() == []
    assert sealed.conditions[CHECKPOINT].is_true
    assert not sealed.conditions[STORAGE_REPLICATED].is_true
    stored = node.capturer.store(sealed, record, node.store)
    assert node.objects() == ALL_FILES
    for info in node.store.list("snapshots/"):
        assert info.metadata == {
            CLUSTER_KEY: CLUSTER,
            NAMESPACE_KEY: node.world.namespace,
            SNAPSHOT_UID_KEY: stored.metadata.uid,
            ATTEMPT_KEY: "1",
        }
    manifest, text = read_manifest(node, stored)
    for part in manifest.parts:
        info = stat(node, stored, part.name)
        assert (info.generation, info.size_bytes) == (part.generation, part.length_bytes)
    assert manifest.image_ids == job.image_ids
    assert manifest.identity == job.identity
    assert manifest.compatibility == running.node.compatibility
    now = node.snapshot(stored.metadata.name).capture
    assert now is not None
    assert now.manifest_digest == digest(text)
    assert now.size_bytes == manifest.size_bytes
    assert_goes_on(running, before)


def test_the_record_tells_when_each_phase_ended_and_how_long_the_pod_was_paused(
    node: SavingNode,
) -> None:
    """As the API has it, not as the agent remembers it."""
    sealed, record = node.capturer.save(node.job(), attempt=1)
    stored = node.capturer.store(sealed, record, node.store)
    now = node.snapshot(stored.metadata.name)
    capture = now.capture
    assert capture is not None
    times = [
        capture.claimed_at,
        capture.checkpointed_at,
        capture.sealed_at,
        capture.uploaded_at,
    ]
    assert all(times)
    assert times == sorted(times)
    assert 0 < capture.checkpoint_s < 10
    assert 0 < capture.seal_s < 10
    assert (capture.node, capture.pod_uid) == (NODE, node.pod.metadata.uid)
    assert now.conditions[CHECKPOINT].reason == "Succeeded"
    assert now.conditions[STORAGE_REPLICATED].reason == "Succeeded"
    assert now.observed_path == f"gs://{node.world.bucket.name}/snapshots/{now.metadata.name}"


def test_the_stored_image_lies_in_the_node_s_cache_and_nothing_in_staging(
    node: SavingNode,
) -> None:
    """The node that saved a Pod restores the next one without a fetch."""
    sealed, record = node.capturer.save(node.job(), attempt=1)
    stored = node.capturer.store(sealed, record, node.store)
    cached = node.capturer.cache.lookup(stored)
    assert cached is not None
    assert cached.stat().st_mode & 0o777 == 0o700
    assert list(node.capturer.staging.iterdir()) == []


def test_each_phase_is_a_span_and_the_manifest_names_the_trace(node: SavingNode) -> None:
    """The PodSnapshot's record tells them all, in order, with what they are about."""
    sealed, record = node.capturer.save(node.job(), attempt=1)
    stored = node.capturer.store(sealed, record, node.store)
    _, save, *phases = save_spans(node.snapshot(stored.metadata.name))
    assert [span.name for span in phases] == PHASES
    assert [span.error for span in phases] == [""] * len(PHASES)
    assert [span.end_s for span in phases] == sorted(span.end_s for span in phases)
    dump = phases[PHASES.index("dump")]
    assert 0 < dump.end_s - dump.start_s <= record.checkpoint_s
    assert phases[-1].attributes["podsnap.upload.bytes"] == record.size_bytes
    manifest, _ = read_manifest(node, stored)
    assert phases[-1].attributes["podsnap.upload.parts"] == len(manifest.parts)
    assert manifest.trace_id == save.trace_id


def test_a_second_attempt_never_reuses_a_directory(node: SavingNode) -> None:
    """A killed runsc client leaves files that the sandbox may still write to."""
    job = node.job()
    first = node.capturer.directory(job.snapshot, 1)
    first.mkdir(parents=True)
    client = node.capturer.runsc.checkpoint(job.sandbox.id, first, direct=True)
    eventually(lambda: list(first.iterdir()), "the client opened its files")
    client.kill()
    client.communicate(timeout=10)
    sealed, record = node.capturer.save(job, attempt=2)
    second = node.capturer.directory(job.snapshot, 2)
    assert sorted(f.name for f in second.iterdir()) == sorted([*ALL_FILES, "verified.json"])
    assert not first.exists()
    stored = node.capturer.store(sealed, record, node.store)
    assert stat(node, stored, "pages.img").metadata[ATTEMPT_KEY] == "2"
    raw = node.world.get(POD_SNAPSHOTS, stored.metadata.name) or {}
    assert raw["status"]["observedCheckpointRetryCount"] == 1


def test_a_full_staging_file_system_refuses_the_save_before_the_pod_is_paused(
    node: SavingNode, running: RunningPod, tmp_path: Path
) -> None:
    """Half an image would be worth nothing, and writing it would cost the pause."""
    before = running.counter()
    tiny = tmp_path / "tiny"
    tiny.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tiny)], check=True)
    try:
        node.capturer.staging = tiny
        job = node.job()
        with pytest.raises(CaptureFailed, match="NoSpace"):
            node.capturer.save(job, attempt=1)
        assert list(tiny.iterdir()) == []
    finally:
        subprocess.run(["umount", "--lazy", str(tiny)], check=True)
    message = assert_failed(node, job.snapshot.metadata.name, "NoSpace")
    assert str(tiny) in message
    assert "has 8 MiB free; make room" in message
    _, save, *phases = save_spans(node.snapshot(job.snapshot.metadata.name))
    assert save.error == f"NoSpace: {message}"
    assert [span.name for span in phases] == ["wait"]
    assert_goes_on(running, before)


def test_a_bucket_that_vanished_fails_the_save_and_the_pod_goes_on(
    node: SavingNode, running: RunningPod
) -> None:
    """The PodSnapshot says which bucket and what to do; no image is kept for nobody."""
    before = running.counter()
    sealed, record = node.capturer.save(node.job(), attempt=1)
    shutil.rmtree(node.world.bucket)
    with pytest.raises(CaptureFailed, match="UploadFailed"):
        node.capturer.store(sealed, record, node.store)
    message = assert_failed(node, sealed.metadata.name, "UploadFailed")
    assert f"bucket {node.world.bucket.name} does not exist" in message
    assert list(node.capturer.staging.iterdir()) == []
    _, save, *_, last = save_spans(node.snapshot(sealed.metadata.name))
    assert (last.name, last.error) == ("upload", save.error)
    assert save.error == f"UploadFailed: {message}"
    assert_goes_on(running, before)


class _DeletingStore(LocalDirStore):
    """The real bucket; the user deletes the PodSnapshot while the first part is on the way."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world.bucket)
        self._world = world
        self._name = name

    def put_file(
        self,
        name: str,
        path: Path,
        *,
        if_generation_match: int,
        metadata: Mapping[str, str],
        cancelled: Callable[[], bool] = never,
    ) -> ObjectInfo:
        info = super().put_file(
            name,
            path,
            if_generation_match=if_generation_match,
            metadata=metadata,
            cancelled=cancelled,
        )
        self._world.admin.delete(POD_SNAPSHOTS, self._name, namespace=self._world.namespace)
        return info


def test_a_deletion_during_the_upload_leaves_nothing_in_the_bucket(node: SavingNode) -> None:
    """The part that was there already goes too, and so does the image on the node."""
    sealed, record = node.capturer.save(node.job(), attempt=1)
    store = _DeletingStore(node.world, sealed.metadata.name)
    with pytest.raises(StoppedError, match="deleted during the upload"):
        node.capturer.store(sealed, record, store)
    assert node.objects() == []
    assert list(node.capturer.staging.iterdir()) == []
    assert list((node.capturer.staging.parent / "cache").iterdir()) == []
    now = node.snapshot(sealed.metadata.name)
    assert now.metadata.is_deleting
    assert now.capture is not None
    assert now.capture.failure is None


def test_an_agent_whose_save_was_taken_away_stops_and_removes_its_bytes(
    node: SavingNode,
) -> None:
    """No sign of life of the node: the controller gives the save up; then the agent comes back."""
    sealed, record = node.capturer.save(node.job(), attempt=1)
    node.give_up(sealed.metadata.name, once=is_saved)
    with pytest.raises(StoppedError, match="is not ours any more"):
        node.capturer.store(sealed, record, node.store)
    assert node.objects() == []
    assert_failed(node, sealed.metadata.name, "AgentLost")


def test_an_agent_whose_claim_was_taken_away_stops_when_it_has_saved(node: SavingNode) -> None:
    """The image of a save that was given up meanwhile is never reported as one."""
    job = node.job()
    name = job.snapshot.metadata.name
    claimed, record = node.capturer._claim(job, 1)
    node.give_up(name, once=lambda s: s.capture is not None)
    with pytest.raises(StoppedError, match="is not ours any more"):
        node.capturer._save(job, claimed, capture._Known(record))
    assert_failed(node, name, "AgentLost")


def test_a_sandbox_that_died_fails_the_save(
    node: SavingNode, gvisor: GvisorNode, tmp_path: Path
) -> None:
    """Its state file still names a process."""
    with running_pod(gvisor, tmp_path / "doomed") as doomed:
        job = replace(node.job(), sandbox=replace(node.sandbox, id=doomed.sandbox))
        doomed.kill()
        process = Path(f"/proc/{doomed.pid}")
        eventually(lambda: not process.exists(), "the sandbox is dead and was reaped")
        with pytest.raises(CaptureFailed) as raised:
            node.capturer.save(job, attempt=1)
    assert_failed(node, job.snapshot.metadata.name, raised.value.failure.reason)


@pytest.mark.contract(10)
def test_a_save_that_hangs_is_given_up_and_its_files_go_when_it_has_ended(
    node: SavingNode, running: RunningPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox that stands still keeps the runsc client waiting past its deadline."""
    before = running.counter()
    monkeypatch.setattr(capture, "_DEADLINE_FLOOR_S", 0.3)
    monkeypatch.setattr(capture, "_SLOWEST_BYTES_PER_S", 1e12)
    job = node.job()
    os.kill(running.pid, signal.SIGSTOP)
    try:
        with pytest.raises(CaptureFailed, match="CheckpointTimeout"):
            node.capturer.save(job, attempt=1)
    finally:
        os.kill(running.pid, signal.SIGCONT)
    assert "within 0 s" in assert_failed(node, job.snapshot.metadata.name, "CheckpointTimeout")
    eventually(lambda: not list(node.capturer.staging.iterdir()), "the abandoned files are gone")
    assert_goes_on(running, before)


def is_saved(snapshot: Snapshot) -> bool:
    """Whether a cache shows that the image is on the node."""
    return CHECKPOINT in snapshot.conditions and snapshot.conditions[CHECKPOINT].is_true


def stat(node: SavingNode, snapshot: Snapshot, part: str) -> ObjectInfo:
    """Return what the bucket says of a part."""
    assert snapshot.capture is not None
    assert snapshot.capture.location is not None
    info = node.store.stat(f"{snapshot.capture.location.path}/{part}")
    assert info is not None
    return info


def read_manifest(node: SavingNode, snapshot: Snapshot) -> tuple[Manifest, bytes]:
    """Return the manifest in the bucket, parsed and as it lies there."""
    info = stat(node, snapshot, MANIFEST_NAME)
    text = node.store.read_range(
        info.name, generation=info.generation, start=0, end=info.size_bytes
    )
    return Manifest.parse(text), text
