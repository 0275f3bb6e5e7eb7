# SPDX-License-Identifier: Apache-2.0
"""One trace from the commit to the restored Pod, in a real backend, as its API tells it."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from backends.zipkin import read_trace
from localcluster.cluster import LocalCluster
from localcluster.trace_backend import TraceBackend, trace_backend
from schemas.snapshot import Snapshot
from schemas.span import Span
from statemachine.trace import restore_id
from tests.cluster_scene import Scene, eventually, new_scene

pytestmark = pytest.mark.cluster

PROGRAM = [sys.executable, "-m", "reconciler.command_line"]
SAVE = {"wait", "freeze", "dump", "seal", "upload", "ready"}
RESTORE = {"decision", "fetch", "verify", "runsc restore", "pod ready"}
CONTROLLER, AGENT = "podsnap-controller", "podsnap-agent"


@pytest.fixture(scope="module")
def backend(
    cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TraceBackend]:
    """Zipkin behind a collector, and podsnap's programs sending there until the module ends."""
    directory = tmp_path_factory.mktemp("traces")
    listen = str(cluster.network.gateway)
    with trace_backend(directory, listen=listen) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        cluster.up()
        yield running
    cluster.up()


@dataclass(frozen=True, slots=True)
class Told:
    """A life that was lived, and the backend's account of it."""

    scene: Scene
    snapshot: Snapshot
    commit: str
    spans: list[Span]

    def one(self, name: str) -> Span:
        """Return the only span of that name."""
        (found,) = (s for s in self.spans if s.name == name)
        return found

    def restore(self, pod: str) -> Span:
        """Return the restore of a Pod."""
        uid = self.scene.get("pod", pod)["metadata"]["uid"]
        (found,) = (s for s in self.spans if s.span_id == restore_id(self.snapshot, uid))
        return found

    def below(self, parent: Span) -> dict[str, Span]:
        """Return a span's children by name, but the restores of a save."""
        return {
            s.name: s for s in self.spans if s.parent_id == parent.span_id and s.name != "restore"
        }


@pytest.fixture(scope="module")
def told(
    cluster: LocalCluster, backend: TraceBackend, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Told]:
    """A policy comes from Git, a Pod is saved, two are restored, one of them from the bucket."""
    with new_scene(cluster, "scene-trace") as scene:
        commit = sync_policy(scene, tmp_path_factory.mktemp("policies"))
        scene.ready_pod("first")
        snapshot = scene.save("first")
        scene.ready_pod("second")
        scene.forget_cached_images()
        scene.ready_pod("third")

        def whole() -> list[Span]:
            spans = read_trace(backend.url, snapshot.trace_id)
            names = [s.name for s in spans]
            return spans if names.count("pod ready") == 2 and "save" in names else []

        yield Told(scene, snapshot, commit, eventually("the whole trace", whole))


def sync_policy(scene: Scene, repository: Path) -> str:
    """Have the controller sync a policy from a Git repository; returns the commit."""
    policy = {
        "apiVersion": "podsnapshot.gke.io/v1",
        "kind": "PodSnapshotPolicy",
        "metadata": {"name": "policy"},
        "spec": {
            "storageConfigName": scene.namespace,
            "selector": {"matchLabels": {"app": "counter"}},
            "triggerConfig": {"type": "manual"},
        },
    }
    (repository / "policy.yaml").write_text(yaml.safe_dump(policy), encoding="utf-8")
    git = ["git", "-C", str(repository), "-c", "user.name=t", "-c", "user.email=t@t.invalid"]
    for command in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "--all"],
        ["commit", "--quiet", "--message=A policy"],
    ):
        subprocess.run([*git, *command], check=True, timeout=30)
    head = subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, timeout=30, capture_output=True, text=True
    )
    scene.apply(
        {
            "apiVersion": "podsnap.dev/v1alpha1",
            "kind": "GitSource",
            "metadata": {"name": "policies"},
            "spec": {
                "url": f"file://{repository}",
                "ref": {"branch": "main"},
                "interval": "1m",
            },
        }
    )
    eventually("policy Ready", lambda: scene.kubectl("get", "psp", "-o", "name"))
    eventually("policy Ready", lambda: scene.is_true("psp", "policy", "Ready"))
    return head.stdout.strip()


def test_the_trace_begins_at_the_commit_and_every_restore_is_in_it(told: Told) -> None:
    """One id, one root, and each step below what it was a part of."""
    assert {s.trace_id for s in told.spans} == {told.snapshot.trace_id}
    commit = told.one(f"commit {told.commit[:12]}")
    assert [s for s in told.spans if not s.parent_id] == [commit]
    save = told.one("save")
    assert told.below(commit).keys() == {"policy reconciled", "save"}
    assert told.below(save).keys() == SAVE
    second, third = told.restore("second"), told.restore("third")
    assert {second.parent_id, third.parent_id} == {save.span_id}
    assert told.below(third).keys() == RESTORE
    assert RESTORE - {"fetch"} <= told.below(second).keys()
    assert len(told.spans) == 3 + len(SAVE) + 2 + len(told.below(second)) + len(RESTORE)
    services = {told.one(name).service for name in ("freeze", "dump", "seal", "upload")}
    assert (commit.service, save.service, services) == (CONTROLLER, CONTROLLER, {AGENT})
    assert second.service == third.service == AGENT


def test_the_spans_say_of_what_they_tell(told: Told) -> None:
    """In the names of the semantic conventions, where there are any."""
    commit = told.one(f"commit {told.commit[:12]}").attributes
    assert commit["vcs.ref.head.revision"] == told.commit
    save = told.one("save").attributes
    assert save["k8s.namespace.name"] == told.scene.namespace
    assert save["k8s.pod.name"] == "first"
    assert save["k8s.node.name"] == "node1"
    assert save["podsnap.snapshot.uid"] == told.snapshot.metadata.uid
    assert told.snapshot.capture is not None
    upload = told.one("upload").attributes
    assert int(str(upload["podsnap.upload.bytes"])) == told.snapshot.capture.size_bytes
    assert int(str(upload["podsnap.upload.parts"])) > 0
    third = told.restore("third").attributes
    assert third["k8s.pod.name"] == "third"
    assert third["podsnap.restore.outcome"] == "restored"
    assert not [s.error for s in told.spans if s.error]


def test_time_runs_forward_and_parents_hold_their_steps(told: Told) -> None:
    """A restore comes after the save, and so on its own; everything else is inside."""
    known = {s.span_id: s for s in told.spans}
    for span in told.spans:
        assert span.start_s <= span.end_s
        parent = known.get(span.parent_id)
        if parent is not None and span.name not in {"restore", "save", "policy reconciled"}:
            assert parent.start_s <= span.start_s
            assert span.end_s <= parent.end_s + 1e-5
    save = told.below(told.one("save"))
    order = [save[name].start_s for name in ("freeze", "dump", "seal", "upload", "ready")]
    assert order == sorted(order)
    assert told.one("save").end_s <= told.restore("second").start_s
    steps = told.below(told.restore("third"))
    assert steps["decision"].end_s <= steps["verify"].end_s <= steps["runsc restore"].start_s
    assert 0 < steps["runsc restore"].end_s - steps["runsc restore"].start_s < 30


def test_podsnap_trace_draws_it_from_the_backend_and_from_the_objects(
    told: Told, backend: TraceBackend
) -> None:
    """A Pod's own restore alone, if a Pod is named."""

    def trace(*words: str) -> str:
        flags = ("-n", told.scene.namespace, f"--kubeconfig={told.scene.cluster.kubeconfig}")
        argv = [*PROGRAM, "trace", *words, *flags]
        return subprocess.run(argv, check=True, timeout=30, capture_output=True, text=True).stdout

    name = told.snapshot.metadata.name
    drawn = trace(name[:8], "--backend", backend.url)
    assert f"commit {told.commit[:12]}" in drawn
    assert drawn.count("runsc restore") == 2
    of_third = trace("third", "--backend", backend.url)
    assert of_third.count("runsc restore") == 1
    assert "restore third" in of_third
    assert "restore second" not in of_third
    computed = trace(name)
    assert f"commit {told.commit[:12]}" in computed
    for line in ("upload", "restore second", "restore third"):
        assert line in computed
