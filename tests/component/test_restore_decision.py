# SPDX-License-Identifier: Apache-2.0
"""Restore or cold: the answer to a sandbox's question, from a real cluster, bucket and image."""

import base64
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cluster_world import World, eventually
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from kube_apiserver import ApiServer
from runsc_sandbox import (
    CONTAINER,
    NODE,
    GvisorNode,
    RunningPod,
    SavingNode,
    counter_pod,
    running_pod,
    snapshot_controller,
)

from backends.clock import SystemClock
from backends.kube.client import POD_SNAPSHOT_POLICIES, POD_SNAPSHOT_STORAGE_CONFIGS, KubeClient
from backends.kube.events import EventRecorder
from backends.objects.interface import RangeReader
from backends.objects.localdir import LocalDirStore
from localcluster.fuse_library import fuse_library
from localcluster.toolchain import Toolchain, default_cache
from nodeexec import fuse, restore_decision
from nodeexec.background_loads import BackgroundLoads
from nodeexec.bucket_stores import BucketUse
from nodeexec.cluster_view import ClusterView, Listeners
from nodeexec.decision import Decision
from nodeexec.image import PARTS
from nodeexec.mounted_content import MountedContent
from nodeexec.node_cache import NodeCache
from nodeexec.pod_reports import PodReports
from nodeexec.restore_decision import RestoreDecider
from nodeexec.restore_progress import RunningRestores
from nodeexec.settings import AgentSettings
from nodeexec.signing import PRIVATE_KEY, SECRETS, SIGNING_SECRET, ManifestSigning
from policies.verdict import COLD_START_REASONS, Reason
from reconciler.snapshot_controller import SnapshotController
from schemas.manifest import MANIFEST_NAME, SIGNATURE_NAME
from schemas.names import (
    BACKGROUND_LOADING_ANNOTATION,
    GATE_ANNOTATION,
    NAMESPACES_ANNOTATION,
    READY,
    REQUIRE_SIGNATURE_ANNOTATION,
    SYSTEM_NAMESPACE,
)
from schemas.pod import Pod
from schemas.policy_options import GATE_LIMIT_S
from schemas.snapshot import Compatibility, Snapshot
from statemachine.restore import Outcome
from statemachine.trace import restore_spans

# The kubelet waits for the answer; a live look is bound by half of it.
COLD_LIMIT_S = 0.1


@pytest.fixture(scope="module")
def gvisor(toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GvisorNode]:
    """The node's runsc and images."""
    node = GvisorNode.prepare(tmp_path_factory.mktemp("node"), toolchain.path("runsc"))
    yield node
    node.release()


@pytest.fixture(scope="module")
def running(gvisor: GvisorNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPod]:
    """The sandbox that was saved."""
    with running_pod(gvisor, tmp_path_factory.mktemp("origin")) as pod:
        pod.counter()
        yield pod


@pytest.fixture(scope="module")
def controller(controller_client: KubeClient, bucket_root: Path) -> Iterator[SnapshotController]:
    """The controller, when a test lets it look."""
    with snapshot_controller(controller_client, bucket_root) as made:
        yield made


@pytest.fixture(scope="module")
def view(agent_client: KubeClient) -> Iterator[ClusterView]:
    """What the node's agent sees."""
    made = new_view(agent_client)
    made.start()
    eventually(made.is_synced, "the agent's caches are filled")
    yield made
    made.stop()


def new_view(client: KubeClient) -> ClusterView:
    """Return a view that nobody listens to."""
    return ClusterView(client, NODE, Listeners(lambda _, __: None, lambda _, __: None))


@dataclass(slots=True)
class Deciding:
    """An agent's decider over a saved Pod, and what it told others."""

    view: ClusterView
    saving: SavingNode
    snapshot: Snapshot
    state: Path
    reports: PodReports
    store: LocalDirStore
    compatibility: Compatibility
    damaged: list[tuple[str, str]] = field(default_factory=list)
    holds: list[float] = field(default_factory=list)
    fetches: int = 0
    fetched: list[tuple[int, float]] = field(default_factory=list)

    @property
    def progress(self) -> RunningRestores:
        """Return what nobody looks at here."""
        latest = self.view.snapshots.store.by_uid
        return RunningRestores(self.reports, node=NODE, latest=latest, clock=SystemClock())

    def decider(self, cache: NodeCache, *, node: Compatibility | None = None) -> RestoreDecider:
        """Return the decider of an agent that has this cache."""
        return RestoreDecider(
            view=self.view,
            cache=cache,
            node=node or self.compatibility,
            workload_dirs=self.state / "workload",
            open_store=self._open,
            on_damage=self._on_damage,
            progress=self.progress,
            contents=MountedContent(self.state / "kubelet", self.state / "bundles"),
            clock=self.saving.capturer.clock,
            on_fetched=lambda size_bytes, took_s: self.fetched.append((size_bytes, took_s)),
        )

    def here(self) -> RestoreDecider:
        """Return the decider of the node that saved."""
        return self.decider(self.saving.capturer.cache)

    def elsewhere(self) -> RestoreDecider:
        """Return the decider of a like node that never had the image."""
        return self.decider(self.empty_cache())

    def empty_cache(self) -> NodeCache:
        """Return the cache of a node that has nothing."""
        return NodeCache(self.state / "other-cache")

    def new_pod(self, *, labels: dict[str, str] | None = None) -> Pod:
        """Bind another Pod of the same template to the node; its sandbox is about to be made."""
        pod = counter_pod(self.saving.world, "web-1", labels=labels)
        eventually(
            lambda: self.view.pods.store.get(*pod.metadata.key), "the agent's cache shows the Pod"
        )
        return pod

    def ask(
        self, decider: RestoreDecider, pod: Pod, *, cold: dict[str, str] | None = None
    ) -> Decision:
        """Ask as the runtime does; whatever the answer, its cause is of the closed set."""
        decision = decider.decide(
            namespace=pod.metadata.namespace,
            name=pod.metadata.name,
            uid=pod.metadata.uid,
            sandbox="sandbox-of-web-1",
            cold=cold,
            hold=self.holds.append,
        )
        if decision.policy is not None and decision.outcome is not Outcome.RESTORED:
            assert decision.cause in COLD_START_REASONS
        return decision

    def part(self, name: str) -> Path:
        """Return the file that is a part's object in the bucket."""
        assert self.snapshot.capture is not None
        assert self.snapshot.capture.location is not None
        return self.saving.world.bucket / self.snapshot.capture.location.path / name

    def _open(self, use: BucketUse) -> LocalDirStore:
        assert use.location.bucket == self.saving.world.bucket.name
        self.fetches += 1
        return self.store

    def _on_damage(self, snapshot: Snapshot, message: str) -> None:
        self.damaged.append((snapshot.metadata.uid, message))
        self.reports.damaged(snapshot, message)


@pytest.fixture
def deciding(
    world: World,
    running: RunningPod,
    agent_client: KubeClient,
    controller: SnapshotController,
    view: ClusterView,
    tmp_path: Path,
) -> Deciding:
    """A Pod was saved and stored, and the agent knows that restores are possible."""
    saving = SavingNode.build(
        world, running, state=tmp_path, agent=agent_client, controller=controller
    )
    snapshot = saving.saved()

    def is_ready() -> bool:
        shown = view.snapshots.store.get(*snapshot.metadata.key)
        governed = view.policies.store.get(world.namespace, "web") is not None
        return governed and shown is not None and is_true(shown)

    eventually(is_ready, "the agent's cache shows a snapshot that is ready")
    clock = SystemClock()
    return Deciding(
        view=view,
        saving=saving,
        snapshot=snapshot,
        state=tmp_path,
        reports=PodReports(
            agent_client, EventRecorder(agent_client, component="tests", instance=NODE), clock
        ),
        store=saving.store,
        compatibility=running.node.compatibility,
    )


def is_true(snapshot: Snapshot) -> bool:
    """Whether restores are possible."""
    return READY in snapshot.conditions and snapshot.conditions[READY].is_true


def timed(deciding: Deciding, decider: RestoreDecider, pod: Pod) -> tuple[Decision, float]:
    """Return an answer and the seconds that it took."""
    began_s = time.monotonic()
    decision = deciding.ask(decider, pod)
    return decision, time.monotonic() - began_s


def test_a_pod_is_restored_from_the_cache_of_the_node_that_saved(deciding: Deciding) -> None:
    """Without the bucket, and without telling the runtime to wait."""
    shutil.rmtree(deciding.saving.world.bucket)
    decision = deciding.ask(deciding.here(), deciding.new_pod())
    assert decision.outcome is Outcome.RESTORED
    assert deciding.holds == []
    assert deciding.fetches == 0
    answer = decision.to_answer()
    assert answer["governed"]
    assert answer["policy"] == "web"
    assert answer["restore"]["snapshot"] == deciding.snapshot.metadata.name
    assert answer["restore"]["image_ids"] == {
        CONTAINER: deciding.saving.running.node.counter.image_id
    }
    assert answer["restore"]["deadline_s"] > 60
    image = deciding.saving.capturer.cache.lookup(deciding.snapshot)
    assert answer["restore"]["image_dir"] == str(image)


def test_another_node_fetches_the_image_and_runsc_restores_the_pod_from_it(
    deciding: Deciding, gvisor: GvisorNode, tmp_path: Path
) -> None:
    """The memory goes on: same nonce, no smaller count, another hostname."""
    at_save = deciding.saving.running.counter()
    decision = deciding.ask(deciding.elsewhere(), deciding.new_pod())
    assert decision.outcome is Outcome.RESTORED
    assert deciding.holds == [GATE_LIMIT_S + 1]
    assert decision.times is not None
    steps = restore_spans(deciding.snapshot, decision.times)[1:]
    assert [span.name for span in steps] == ["decision", "fetch", "verify"]
    assert [span.end_s for span in steps] == sorted(span.end_s for span in steps)
    restore = decision.to_answer()["restore"]
    assert restore["times"] == decision.times.until_answer()
    assert restore["traceparent"].split("-")[1] == deciding.snapshot.trace_id
    assert decision.image_dir is not None
    for part in PARTS:
        assert (decision.image_dir / part).read_bytes() == deciding.part(part).read_bytes()
    with running_pod(gvisor, tmp_path / "clone", image=decision.image_dir) as clone:
        restored = clone.counter()
    assert restored["nonce"] == at_save["nonce"]
    assert restored["started_at"] == at_save["started_at"]
    assert restored["hostname"] != at_save["hostname"]


def test_an_image_that_was_fetched_once_is_not_fetched_again(deciding: Deciding) -> None:
    """Not even by another agent process on that node."""
    pod = deciding.new_pod()
    first = deciding.ask(deciding.elsewhere(), pod)
    shutil.rmtree(deciding.saving.world.bucket)
    second = deciding.ask(deciding.elsewhere(), pod)
    assert (first.outcome, second.outcome) == (Outcome.RESTORED, Outcome.RESTORED)
    assert first.image_dir == second.image_dir
    assert deciding.fetches == 1


def test_a_prefetch_brings_the_image_before_the_sandbox_is_asked_for(deciding: Deciding) -> None:
    """The Pod was seen bound to the node; the decision then waits for nothing."""
    pod, cache = deciding.new_pod(), deciding.empty_cache()
    decider = deciding.decider(cache)
    decider.prefetch(pod)
    eventually(lambda: deciding.fetched, "the image is there")
    fetched_s = time.time()
    decision = deciding.ask(decider, pod)
    assert decision.outcome is Outcome.RESTORED
    assert deciding.holds == []
    times = decision.times
    assert times is not None
    assert 0 < times.fetching_s < times.fetched_s <= fetched_s
    assert fetched_s <= times.decided_s <= times.verifying_s <= times.verified_s


def test_a_fetch_that_several_restores_tell_of_is_counted_once(deciding: Deciding) -> None:
    """By where it happens, and only as long as its snapshot is there."""
    pod, decider = deciding.new_pod(), deciding.elsewhere()
    first, second = deciding.ask(decider, pod), deciding.ask(decider, pod)
    assert first.times is not None
    assert second.times is not None
    assert first.times.fetched_s == second.times.fetched_s > 0
    ((size_bytes, took_s),) = deciding.fetched
    assert size_bytes > 0
    assert took_s == first.times.fetched_s - first.times.fetching_s
    decider.keep_only(set())
    third = deciding.ask(decider, pod)
    assert third.times is not None
    assert third.times.fetched_s == 0


def test_the_wait_at_the_gate_is_no_part_of_the_decision(
    deciding: Deciding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is another's save that takes so long."""
    making = iter([deciding.snapshot])

    def awaited(*_: object) -> Snapshot | None:
        return next(making, None)

    monkeypatch.setattr(restore_decision, "awaited", awaited)
    patch = {"metadata": {"annotations": {GATE_ANNOTATION: "5s"}}}
    world = deciding.saving.world
    world.admin.merge_patch(
        POD_SNAPSHOT_POLICIES, "web", patch, namespace=world.namespace, field_manager="tests"
    )

    def has_gate() -> bool:
        policy = deciding.view.policies.store.get(world.namespace, "web")
        return policy is not None and policy.options.gate_s > 0

    eventually(has_gate, "the agent's cache shows the gate")
    decision = deciding.ask(deciding.here(), deciding.new_pod())
    times = decision.times
    assert times is not None
    assert 0 < times.asked_s <= times.decided_s == times.gating_s <= times.gated_s
    names = [s.name for s in restore_spans(deciding.snapshot, times)]
    assert names == ["restore", "decision", "gate", "verify"]


def test_a_pod_that_no_policy_selects_is_left_alone(deciding: Deciding) -> None:
    """The runtime steps out of its way."""
    decision = deciding.ask(deciding.here(), deciding.new_pod(labels={"app": "other"}))
    assert decision.outcome is Outcome.COLD
    assert decision.to_answer() == {"governed": False}
    assert decision.cause is Reason.NOT_GOVERNED
    assert decision.reason == "no policy governs the Pod"


def test_a_pod_that_the_api_server_does_not_know_starts_cold_at_once(deciding: Deciding) -> None:
    """A name with another UID is another Pod."""
    pod = deciding.new_pod()
    stranger = replace(pod, metadata=replace(pod.metadata, uid="another-uid"))
    decider = deciding.here()
    for unknown in (stranger, replace(pod, metadata=replace(pod.metadata, name="web-9"))):
        decision, took_s = timed(deciding, decider, unknown)
        assert decision.outcome is Outcome.COLD
        assert "does not know the Pod" in decision.reason
        assert decision.to_answer() == {"governed": False}
        assert took_s < COLD_LIMIT_S


def test_an_api_server_that_hangs_delays_nobody(deciding: Deciding, api_server: ApiServer) -> None:
    """A known Pod is decided from the caches, an unknown one starts cold within the bound."""
    pod = deciding.new_pod()
    unknown = replace(pod, metadata=replace(pod.metadata, name="web-9"))
    decider = deciding.here()
    os.kill(api_server.process.pid, signal.SIGSTOP)
    try:
        cold, cold_s = timed(deciding, decider, unknown)
        warm = deciding.ask(decider, pod)
    finally:
        os.kill(api_server.process.pid, signal.SIGCONT)
    assert cold.outcome is Outcome.COLD
    assert cold_s < COLD_LIMIT_S
    assert warm.outcome is Outcome.RESTORED


def test_an_agent_that_has_just_started_answers_cold(
    deciding: Deciding, agent_client: KubeClient
) -> None:
    """It does not know the cluster yet, and the Pod does not wait until it does."""
    pod = deciding.new_pod()
    deciding.view = new_view(agent_client)
    decision = deciding.ask(deciding.here(), pod)
    assert (decision.outcome, decision.cause) == (Outcome.COLD, Reason.AGENT_AWAY)
    assert "has just started" in decision.reason


def test_a_damaged_part_is_told_by_name_and_never_restored(deciding: Deciding) -> None:
    """The Pod starts cold, and nobody asks for these bytes again."""
    pod, pages = deciding.new_pod(), deciding.part("pages.img")
    with pages.open("r+b") as file:
        file.seek(pages.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    decider = deciding.elsewhere()
    decision = deciding.ask(decider, pod)
    assert decision.outcome is Outcome.COLD_DESPITE_SNAPSHOT
    assert decision.cause is Reason.BYTES_DAMAGED
    assert "pages.img" in decision.reason
    assert decision.to_answer()["restore"] is None
    ((uid, message),) = deciding.damaged
    assert uid == deciding.snapshot.metadata.uid
    assert message.startswith("part pages.img")
    assert list((deciding.state / "other-cache").iterdir()) == []
    key = deciding.snapshot.metadata.key
    eventually(
        lambda: (deciding.view.snapshots.store.get(*key) or deciding.snapshot).damage,
        "the agent's cache shows the damage",
    )
    again = deciding.ask(decider, pod)
    assert again.outcome is Outcome.COLD_DESPITE_SNAPSHOT
    assert again.cause is Reason.QUARANTINED
    assert "damaged" in again.reason
    assert deciding.fetches == 1
    assert len(deciding.damaged) == 1


def test_a_bucket_that_is_away_is_no_damage(deciding: Deciding) -> None:
    """The Pod starts cold with the reason; the next one is restored when the bucket is back."""
    pod, bucket = deciding.new_pod(), deciding.saving.world.bucket
    away = bucket.rename(bucket.with_name(f"{bucket.name}-away"))
    decider = deciding.elsewhere()
    decision = deciding.ask(decider, pod)
    assert decision.outcome is Outcome.COLD_DESPITE_SNAPSHOT
    assert decision.cause is Reason.FETCH_FAILED
    assert f"bucket {bucket.name} does not exist" in decision.reason
    assert deciding.damaged == []
    away.rename(bucket)
    assert deciding.ask(decider, pod).outcome is Outcome.RESTORED


class _SlowStore(LocalDirStore):
    """The real bucket behind a line that lets nothing through until it is told to."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.open_line = threading.Event()

    @contextmanager
    def open_range(
        self, name: str, *, generation: int, start: int, end: int
    ) -> Iterator[RangeReader]:
        assert self.open_line.wait(20)
        with super().open_range(name, generation=generation, start=start, end=end) as stream:
            yield stream


def test_a_fetch_slower_than_the_gate_is_a_cold_start_and_serves_the_next_pod(
    deciding: Deciding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kubelet's time runs out before ours; the bytes that came are not thrown away."""
    monkeypatch.setattr(restore_decision, "GATE_LIMIT_S", 0.2)
    slow = _SlowStore(deciding.saving.world.bucket)
    deciding.store = slow
    pod, cache = deciding.new_pod(), deciding.empty_cache()
    decider = deciding.decider(cache)
    try:
        decision, took_s = timed(deciding, decider, pod)
    finally:
        slow.open_line.set()
    assert decision.outcome is Outcome.COLD_DESPITE_SNAPSHOT
    assert 0.2 <= took_s < 5
    assert decision.cause is Reason.FETCH_TOO_SLOW
    assert "was not fetched within" in decision.reason
    assert decision.unfetched is not None
    assert decision.unfetched.metadata.uid == deciding.snapshot.metadata.uid
    assert str(deciding.snapshot.metadata) in decision.reason
    assert deciding.damaged == []
    eventually(lambda: cache.lookup(deciding.snapshot), "the fetch went on")
    assert deciding.ask(decider, pod).outcome is Outcome.RESTORED
    assert deciding.fetches == 1


class _StalledStore(LocalDirStore):
    """The real bucket behind a line over which the first byte comes late."""

    @contextmanager
    def open_range(
        self, name: str, *, generation: int, start: int, end: int
    ) -> Iterator[RangeReader]:
        threading.Event().wait(1.0)
        with super().open_range(name, generation=generation, start=start, end=end) as stream:
            yield stream


@pytest.fixture
def loads(deciding: Deciding, monkeypatch: pytest.MonkeyPatch) -> Iterator[BackgroundLoads]:
    """The loads of a like node that never had the image."""
    library = fuse_library(default_cache(), progress=lambda _: None)
    monkeypatch.setenv(fuse.LIBRARY_VARIABLE, str(library))
    if problem := fuse.problem():
        pytest.skip(problem)
    bucket, state = deciding.saving.world.bucket, deciding.state
    settings = AgentSettings("node-1", *(state,) * 10, cluster_id="c", bucket_root=bucket.parent)
    settings = replace(settings, runtime_state_dir=state / "run", pages_cgroup="")
    store = LocalDirStore(bucket)
    cache = deciding.empty_cache()
    made = BackgroundLoads(settings, cache, lambda _: store, lambda _: None, linger_s=0.2)
    yield made
    eventually(lambda: not any(settings.pages_dir.glob("*")), "the server ends")


def test_a_policy_that_says_so_restores_before_the_memory_is_here(
    deciding: Deciding, loads: BackgroundLoads
) -> None:
    """From a mount, of which every byte is right."""
    decider = deciding.decider(loads.cache)
    decider.loads = loads
    world = deciding.saving.world
    key = (world.namespace, "web")
    change = {"metadata": {"annotations": {BACKGROUND_LOADING_ANNOTATION: "true"}}}
    world.admin.merge_patch(
        POD_SNAPSHOT_POLICIES, key[1], change, namespace=key[0], field_manager="tests"
    )

    def is_shown() -> bool:
        policy = deciding.view.policies.store.get(*key)
        return policy is not None and policy.options.background is True

    eventually(is_shown, "the agent sees the policy")
    decision = deciding.ask(decider, deciding.new_pod())
    assert decision.background
    assert decision.image_dir is not None
    assert decision.image_dir.parent.parent == loads.settings.pages_dir
    for name in PARTS:
        assert (decision.image_dir / name).read_bytes() == deciding.part(name).read_bytes()


def test_a_fetch_that_stands_still_is_replaced_by_a_load(
    deciding: Deciding, loads: BackgroundLoads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was small enough to be fetched, as far as anybody knew."""
    monkeypatch.setattr(restore_decision, "_LOAD_START_S", GATE_LIMIT_S - 0.2)
    monkeypatch.setattr(restore_decision, "_FETCH_SHARE", 0.0)
    deciding.store = _StalledStore(deciding.saving.world.bucket)
    decider = deciding.decider(loads.cache)
    decider.loads = loads
    decision = deciding.ask(decider, deciding.new_pod())
    assert decision.outcome is Outcome.RESTORED, decision.reason
    assert decision.background


@pytest.mark.contract(23, injected="the runsc version, the CPU's features")
@pytest.mark.parametrize(
    ("difference", "reason"),
    [
        (
            {"runsc_version": "release-20200101.0"},
            "the runsc version is release-20200101.0 on this node",
        ),
        ({"cpu_features": ()}, "this node's CPU lacks features that were saved"),
    ],
    ids=["runsc", "CPU"],
)
def test_a_node_with_another_runsc_starts_the_pod_cold_and_says_why(
    deciding: Deciding, difference: dict[str, Any], reason: str
) -> None:
    """Before any byte is fetched."""
    other = replace(deciding.compatibility, **difference)
    decision = deciding.ask(
        deciding.decider(deciding.empty_cache(), node=other), deciding.new_pod()
    )
    assert decision.outcome is Outcome.COLD_DESPITE_SNAPSHOT
    assert decision.cause is Reason.NODE_INCOMPATIBLE
    assert reason in decision.reason
    assert deciding.fetches == 0


def test_a_pod_whose_restore_failed_starts_cold_with_that_reason(deciding: Deciding) -> None:
    """Never twice from the same image, however good it is."""
    cold = {"snapshot": deciding.snapshot.metadata.name, "reason": "the sandbox ended"}
    decision = deciding.ask(deciding.here(), deciding.new_pod(), cold=cold)
    assert (decision.outcome, decision.cause) == (Outcome.FELL_BACK, Reason.RESTORE_FAILED)
    assert decision.reason == "the sandbox ended"
    assert decision.to_answer()["restore"] is None
    assert decision.to_answer()["governed"]


def test_a_bucket_that_is_not_for_the_namespace_is_not_restored_from(deciding: Deciding) -> None:
    """Whoever took a bucket away from a namespace means its old snapshots too."""
    world, pod = deciding.saving.world, deciding.new_pod()
    world.admin.merge_patch(
        POD_SNAPSHOT_STORAGE_CONFIGS,
        world.store,
        {"metadata": {"annotations": {NAMESPACES_ANNOTATION: "another"}}},
        field_manager="test",
    )
    configs = deciding.view.storage_configs.store

    def is_closed() -> bool:
        found = configs.get("", world.store)
        return found is not None and not found.allows(world.namespace)

    eventually(is_closed, "the agent's cache shows the annotation")
    decision = deciding.ask(deciding.here(), pod)

    assert (decision.snapshot, decision.cause) == (None, Reason.STORAGE_NOT_ALLOWED)
    assert decision.reason.endswith("is not for this namespace")


def test_a_policy_that_asks_for_a_signature_restores_nothing_else(
    deciding: Deciding, agent_client: KubeClient
) -> None:
    """The agent's own rights reach the keys; without a signature the Pod starts cold, and why."""
    world, pod = deciding.saving.world, deciding.new_pod()
    annotations = {REQUIRE_SIGNATURE_ANNOTATION: "true"}
    world.admin.merge_patch(
        POD_SNAPSHOT_POLICIES,
        "web",
        {"metadata": {"annotations": annotations}},
        namespace=world.namespace,
        field_manager="t",
    )
    key = (world.namespace, "web")

    def asks() -> bool:
        policy = deciding.view.policies.store.get(*key)
        return policy is not None and policy.options.requires_signature

    eventually(asks, "the agent's cache shows the policy")
    signing = ManifestSigning(agent_client, SystemClock())
    decider = deciding.here()
    decider.signature_refusal = signing.refusal
    cold = deciding.ask(decider, pod)
    assert (cold.outcome, cold.cause) == (Outcome.COLD_DESPITE_SNAPSHOT, Reason.UNTRUSTED)
    assert "its manifest is not signed" in cold.reason
    assert deciding.damaged == []

    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SIGNING_SECRET, "namespace": SYSTEM_NAMESPACE},
        "data": {PRIVATE_KEY: base64.b64encode(pem).decode()},
    }
    world.admin.create(SECRETS, body, field_manager="t")
    try:
        signing = ManifestSigning(agent_client, SystemClock())
        image = deciding.saving.capturer.cache.lookup(deciding.snapshot)
        assert image is not None
        signature = signing.sign((image / MANIFEST_NAME).read_bytes())
        assert signature is not None
        name = deciding.part(SIGNATURE_NAME).relative_to(world.bucket)
        deciding.store.put_bytes(str(name), signature, if_generation_match=0, metadata={})
        decider.signature_refusal = signing.refusal
        # The image was here before its signature was.
        assert deciding.ask(decider, pod).outcome is Outcome.RESTORED
        assert (image / SIGNATURE_NAME).read_bytes() == signature
    finally:
        world.admin.delete(SECRETS, SIGNING_SECRET, namespace=SYSTEM_NAMESPACE)
