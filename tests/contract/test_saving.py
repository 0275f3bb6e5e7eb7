# SPDX-License-Identifier: Apache-2.0
"""Behaviours 7 to 17: what asks for a save, how it is answered, and what it leaves."""

import fcntl
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cluster.told_pods import (
    NEVER,
    WRITE,
    memory,
    one_available,
    told,
)
from tests.cluster_scene import COUNTER, Scene, eventually
from tests.contract.policies import BY_TENANT, policy
from tests.contract.sandbox_client import condition, is_true, snapshot_client

pytestmark = pytest.mark.cluster


@contextmanager
def uploads_held(scene: Scene) -> Iterator[None]:
    """Keep everybody from writing to the bucket."""
    held = scene.bucket / ".podsnap" / "lock"
    held.parent.mkdir(mode=0o700, exist_ok=True)
    with held.open("a+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def controller_away(scene: Scene) -> Iterator[None]:
    """Do something while nobody decides; then there is a new leader."""
    controller = scene.cluster.component("control-plane", "controller")
    controller.stop()
    try:
        yield
    finally:
        controller.start()


# -- what a manual trigger leads to


@pytest.mark.contract(7, 17)
def test_the_snapshot_object_is_what_the_contract_says(scene: Scene) -> None:
    """UUID name, labels, annotations, finalizer, path of the bytes, five states by name."""
    policy(scene, **BY_TENANT)
    scene.ready_pod("first", labels={"tenant": "t1", "other": "unasked"})
    snapshot = scene.save("first")

    raw = scene.get("ps", snapshot.metadata.name)

    assert str(uuid.UUID(raw["metadata"]["name"])) == raw["metadata"]["name"]
    assert raw["spec"] == {"policyName": "policy"}
    assert raw["metadata"]["finalizers"] == ["podsnapshot.gke.io/podsnapshot-finalizer"]
    assert raw["metadata"]["annotations"]["podsnapshot.gke.io/origin-pod"] == "first"
    assert raw["metadata"]["annotations"]["podsnapshot.gke.io/origin-node"] == "node1"
    assert raw["metadata"]["labels"]["gke-pod-snapshot-triggered-by"] == "trigger-1"
    assert raw["metadata"]["labels"]["tenant"] == "t1"
    assert "other" not in raw["metadata"]["labels"]
    assert snapshot.observed_path == f"gs://{scene.namespace}/{snapshot.metadata.name}"
    assert {"checkpoint.img", "pages.img", "pages_meta.img", "metadata", "manifest.json"} == {
        path.name for path in (scene.bucket / snapshot.metadata.name).iterdir()
    }
    assert [e.state for e in snapshot.control.story] == [
        "Pending",
        "Checkpointing",
        "Uploading",
        "AllSnapshotsAvailable",
    ]
    columns = scene.kubectl("get", "ps").splitlines()[1].split()
    assert columns[:3] == [snapshot.metadata.name, "AllSnapshotsAvailable", "policy"]


@pytest.mark.contract(8, 9, 19)
def test_a_trigger_is_complete_before_its_bytes_are_stored_and_nobody_restores_until_then(
    scene: Scene,
) -> None:
    """Not even a Pod that is pinned to it; every write is looked at, and none says too much."""
    scene.policy()
    scene.ready_pod("first")
    nonce = scene.nonce("first")
    with snapshot_client(scene) as client:
        triggers, snapshots = "podsnapshotmanualtriggers", "podsnapshots"
        since = {plural: client.version(plural) for plural in (triggers, snapshots)}
        with uploads_held(scene):
            trigger = scene.trigger("first")
            assert scene.triggered(trigger)["reason"] == "Complete"
            name = scene.get("psmt", trigger)["status"]["snapshotCreated"]["name"]
            scene.pod("meanwhile")
            scene.pod("pinned", annotations={"podsnapshot.gke.io/ps-name": name})
            for pod in ("meanwhile", "pinned"):
                scene.wait_ready(pod)
                assert scene.restored_from(pod) == ""
                assert scene.nonce(pod) != nonce
            assert not scene.is_true("ps", name, "Ready")
        scene.wait_available(name)
        answered = client.first(triggers, since[triggers], lambda o: is_true(o, "Triggered"))
        ready = client.first(snapshots, since[snapshots], lambda o: is_true(o, "Ready"))
    assert condition(answered, "Triggered")["reason"] == "Complete"
    assert answered["status"]["snapshotCreated"] == {"name": name}
    assert condition(ready, "Ready")["reason"] == "AllSnapshotsAvailable"
    for earlier in ("Checkpoint", "StorageReplicated"):
        assert condition(ready, earlier)["reason"] == "Succeeded"
    scene.ready_pod("afterwards")
    assert scene.nonce("afterwards") == nonce


# -- a trigger that cannot be, and one that was


@pytest.mark.contract(10)
def test_a_save_that_cannot_be_fails_with_its_cause(scene: Scene) -> None:
    """The Pod is not there, not in gVisor, or nobody's; it runs on."""
    scene.policy()
    scene.pod("outside", spec={"runtimeClassName": None})
    scene.pod("ungoverned", labels={"app": "other"})
    for pod in ("outside", "ungoverned"):
        scene.kubectl("wait", "--for=condition=Ready", f"pod/{pod}", "--timeout=60s")
    causes = {
        "missing": ("PodNotFound", "name a running Pod"),
        "outside": ("NotInGVisor", "set runtimeClassName: gvisor"),
        "ungoverned": ("NotGoverned", "create one whose selector"),
    }

    triggers = {pod: scene.trigger(pod) for pod in causes}

    for pod, (reason, advice) in causes.items():
        answer = scene.triggered(triggers[pod])
        assert (answer["status"], answer["reason"]) == ("False", "Failed")
        assert answer["message"].startswith(f"{reason}: ")
        assert advice in answer["message"]
    assert scene.snapshots() == []
    assert scene.nonce("outside")


@pytest.mark.contract(11)
def test_a_pod_has_one_open_trigger_and_an_answered_one_is_history(scene: Scene) -> None:
    """The other is refused in words that clients know; the next leader runs neither again."""
    scene.policy()
    scene.ready_pod("first")
    with controller_away(scene):
        names = [scene.trigger("first"), scene.trigger("first")]

    answers = [scene.triggered(name) for name in names]

    assert {answer["reason"] for answer in answers} == {"Complete", "Failed"}
    (refusal,) = (answer["message"] for answer in answers if answer["reason"] == "Failed")
    assert "Another PodSnapshotManualTrigger" in refusal
    assert "is already targeting Pod first and is not yet completed" in refusal
    one_available(scene)
    answered = [scene.get("psmt", name) for name in names]
    with controller_away(scene):
        scene.kubectl("delete", "ps", "--all", "--wait=false")
    later = scene.save("first")
    eventually("the first is gone", lambda: len(scene.snapshots()) == 1)
    assert one_available(scene).metadata.name == later.metadata.name
    assert [scene.get("psmt", name) for name in names] == answered


# -- the other ways to ask


@pytest.mark.contract(12)
def test_a_workload_saves_itself_and_each_reader_learns_what_it_is(scene: Scene) -> None:
    """The saved Pod reads ``resume``, a restored one ``restore``."""
    scene.policy("workload")
    scene.ready_pod("first", container=told())
    (waiting,) = eventually("a snapshot from the start", scene.snapshots)
    reason = eventually("Ready", lambda: scene.condition("ps", waiting.metadata.name, "Ready"))
    assert reason["reason"] == "AwaitingCheckpoint"

    scene.tell("first", WRITE)
    scene.wait_available(waiting.metadata.name)
    scene.ready_pod("second", container=told())

    for pod, word in (("first", "resume"), ("second", "restore")):
        eventually(word, lambda pod=pod: scene.tell(pod, "answer = reads"))
        assert scene.tell(pod, "answer = reads") == [word]
    assert memory(scene, "first") == memory(scene, "second")
    assert len(scene.snapshots()) == 1


@pytest.mark.contract(13)
def test_writing_does_nothing_under_a_manual_policy(scene: Scene) -> None:
    """The writer gets an error, the Pod serves on, and no snapshot appears."""
    scene.policy()
    scene.ready_pod("first", container=told())

    text = scene.tell(
        "first",
        "try:\n    open('/proc/gvisor/checkpoint', 'r+').write('1')\n    answer = ''\n"
        "except PermissionError:\n    answer = 'not permitted'\n",
    )

    assert text == "not permitted"
    assert memory(scene, "first")
    assert scene.snapshots() == []


# -- what becomes of the Pod, and what is in the image


@pytest.mark.contract(14)
@pytest.mark.parametrize("post", ["resume", "stop"])
def test_a_saved_pod_goes_on_or_ends_as_its_policy_says(scene: Scene, post: str) -> None:
    """All its containers; and either way a new Pod has the memory."""
    two = {**NEVER, "containers": [told(), told(8081)]}
    scene.policy(post=post)
    scene.ready_pod("first", spec=two)
    before = memory(scene, "first"), memory(scene, "first", 8081)

    scene.save("first")

    if post == "stop":
        eventually("Succeeded", lambda: scene.phase("first") == "Succeeded")
        for name in ("counter", "port-8081"):
            assert scene.container("first", name)["state"]["terminated"]["exitCode"] == 0
    else:
        assert (memory(scene, "first"), memory(scene, "first", 8081)) == before
        assert scene.container("first")["restartCount"] == 0
    scene.ready_pod("second", spec=two)
    assert (memory(scene, "second"), memory(scene, "second", 8081)) == before


@pytest.mark.contract(15)
def test_files_come_back_and_processes_are_fresh(scene: Scene) -> None:
    """What was written is there, what was deleted is not, and nothing of the memory is."""
    two = {"containers": [told(), told(8081)]}
    scene.policy(scope="rootfs-only")
    scene.ready_pod("first", spec=two)
    for port in (8080, 8081):
        scene.tell("first", f"open('/note', 'w').write('of {port}')", port)
        scene.tell("first", "import os; os.unlink('/app/counter.py'); os.mkdir('/made')", port)
    old = {memory(scene, "first"), memory(scene, "first", 8081)}
    snapshot = scene.save("first")

    scene.ready_pod("second", spec=two)

    assert snapshot.metadata.name in scene.restored_from("second")
    assert not old & {memory(scene, "second"), memory(scene, "second", 8081)}
    look = "import os; answer = [open('/note').read(), os.listdir('/app'), os.path.isdir('/made')]"
    assert scene.tell("second", look) == ["of 8080", [], True]
    assert scene.tell("second", look, 8081) == ["of 8081", [], True]
    assert memory(scene, "first") in old


@pytest.mark.contract(15)
def test_files_come_back_into_another_image_and_command(scene: Scene) -> None:
    """Files are not tied to a spec; memory is."""
    tag = ["images", "tag", "--force", COUNTER, "podsnap.local/counter:other"]
    scene.cluster.run_in("node1", scene.cluster.nodes[0].ctr(*tag))
    scene.policy(scope="rootfs-only")
    scene.ready_pod("first", container=told())
    scene.tell("first", "open('/note', 'w').write('kept')")
    snapshot = scene.save("first")

    other = told(image="podsnap.local/counter:other")
    other["command"] = [*other["command"][:3], "8080", "another", "argument"]
    scene.ready_pod("second", container=other)

    assert snapshot.metadata.name in scene.restored_from("second")
    assert scene.tell("second", "import sys; answer = [open('/note').read(), sys.argv[2:]]") == [
        "kept",
        ["another", "argument"],
    ]
