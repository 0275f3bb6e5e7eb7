# SPDX-License-Identifier: Apache-2.0
"""What podsnap stands on is taken away: disk, directory, socket, objects, the node's own object.

Nobody dies here (the kill table has that); the Pod runs on or starts cold, within bounds.
"""

import contextlib
import shutil
import signal
import socket
from collections.abc import Iterator

import pytest

from localcluster.cluster import LocalCluster
from tests.cluster_scene import Scene, eventually
from tests.faults.kill_scene import BALLAST, KillScene, converge
from tests.faults.kill_steps import (
    assert_no_orphans,
    is_settled,
    kill_scene,
    reach_restore,
    reach_save,
    snapshot_of,
)
from tests.faults.kill_table import SEALED, STEPS, STORED, WRITING, Step

pytestmark = pytest.mark.cluster

# A cold start takes two seconds; the runtime waits one for an agent that is silent.
COLD_LIMIT_S = 15.0
# Where the API server is held nobody can delete anything.
SAVE_STEPS = [s for s in STEPS if s.phase in {"save", "upload"} and s not in {SEALED, STORED}]
RESTORE_STEPS = [s for s in STEPS if s.phase in {"fetch", "restore"}]


@pytest.fixture(scope="module")
def saving(cluster: LocalCluster) -> Iterator[KillScene]:
    """A large Pod that is saved again and again."""
    with kill_scene(cluster, "torn-save") as scene:
        scene.ready_pod("first", container=BALLAST)
        yield scene
        assert_no_orphans(scene)


@pytest.fixture(scope="module")
def restoring(cluster: LocalCluster) -> Iterator[KillScene]:
    """A large Pod with a snapshot that new Pods are restored from."""
    with kill_scene(cluster, "torn-restore") as scene:
        scene.ready_pod("first", container=BALLAST)
        scene.save("first")
        yield scene
        assert_no_orphans(scene)


# -- disk and directory


@contextlib.contextmanager
def small_staging(scene: KillScene) -> Iterator[None]:
    """Mount a small file system over the staging directory of the node."""
    staging = str(scene.node_state / "staging")
    size = "size=400m,mode=700"
    scene.cluster.run_in("node1", ["mount", "-t", "tmpfs", "-o", size, "tmpfs", staging])
    try:
        yield
    finally:
        scene.cluster.run_in("node1", ["umount", "--lazy", staging])


def test_a_disk_that_fills_while_runsc_writes_fails_the_save_and_not_the_pod(
    saving: KillScene,
) -> None:
    """What somebody else wrote meanwhile is not seen by the check before the save."""
    scene = saving
    nonce = scene.nonce("first")
    with small_staging(scene):
        with (
            reach_save(scene, WRITING, "first") as trigger,
            (scene.staging / "filler").open("wb", buffering=0) as filler,
            contextlib.suppress(OSError),
        ):
            while True:
                filler.write(bytes(1 << 20))
        answer = converge("an answer", lambda: scene.answer(trigger))
        left = {p.name for p in scene.staging.iterdir()} - {"filler", "workload"}

    assert answer["reason"] == "Failed"
    assert "CheckpointFailed" in answer["message"]
    assert left == set()
    assert scene.nonce("first") == nonce
    assert scene.half_visible() == []


@pytest.mark.parametrize("what", ["the save's directory", "the whole directory"])
def test_a_staging_directory_that_goes_while_saving_fails_the_save_alone(
    saving: KillScene, what: str
) -> None:
    """The image has no name any more; the Pod goes on and the next save works."""
    scene = saving
    nonce = scene.nonce("first")
    with reach_save(scene, WRITING, "first") as trigger:
        for path in scene.staging.iterdir() if what == "the save's directory" else [scene.staging]:
            shutil.rmtree(path)
    answer = converge("an answer", lambda: scene.answer(trigger))

    assert answer["reason"] == "Failed"
    assert scene.nonce("first") == nonce
    assert scene.half_visible() == []
    scene.remove("ps", scene.save("first").metadata.name)


# -- the decision socket


@pytest.mark.parametrize("how", ["stolen", "stale", "gone"])
def test_a_decision_socket_without_agent_behind_it_costs_a_cold_start(
    cluster: LocalCluster, how: str
) -> None:
    """Stolen: somebody listens and never answers. Stale: the file of a listener that died."""
    with kill_scene(cluster, f"torn-{how}") as scene:
        scene.ready_pod("first")
        scene.save("first")
        _without_agent_behind(scene, how)
        scene.ready_pod("third")
        assert scene.restored_from("third")


def _without_agent_behind(scene: KillScene, how: str) -> None:
    at = scene.agent_socket
    aside = at.with_suffix(".aside")
    at.rename(aside)
    with socket.socket(socket.AF_UNIX) as listener:
        if how != "gone":
            listener.bind(str(at))
        if how == "stolen":
            listener.listen(16)
        if how == "stale":
            listener.close()
        try:
            second = scene.ready_pod("second")
        finally:
            at.unlink(missing_ok=True)
            aside.rename(at)

    assert second.create_to_ready_s < COLD_LIMIT_S
    assert scene.restored_from("second") == ""
    assert scene.nonce("second") != scene.nonce("first")


# -- objects deleted at each step


def take_away(scene: KillScene, kind: str, trigger: str) -> None:
    """Delete an object as a user does."""
    names = {"psp": "policy", "pssc": scene.namespace, "psmt": trigger}
    scene.remove(kind, names[kind])


def put_back(scene: KillScene, kind: str) -> None:
    """Make again what was deleted."""
    if kind == "psp":
        scene.policy()
    if kind == "pssc":
        scene.storage()


@pytest.mark.parametrize("kind", ["psp", "pssc", "psmt"])
@pytest.mark.parametrize("step", SAVE_STEPS, ids=lambda s: s.id)
def test_an_object_deleted_while_saving_ends_the_wait_and_not_the_pod(
    saving: KillScene, step: Step, kind: str
) -> None:
    """Finished, failed with a reason, or gone with its trigger; never pending for ever."""
    scene = saving
    nonce = scene.nonce("first")
    before = {s.metadata.name for s in scene.snapshots()}
    with reach_save(scene, step, "first") as trigger:
        take_away(scene, kind, trigger)
    put_back(scene, kind)

    if kind != "psmt":
        converge("an answer", lambda: scene.answer(trigger))
    converge("the save's end", lambda: all(is_settled(s) for s in scene.snapshots()))
    assert scene.nonce("first") == nonce
    assert scene.half_visible() == []
    for snapshot in scene.snapshots():
        if snapshot.metadata.name not in before:
            scene.remove("ps", snapshot.metadata.name)


@pytest.mark.parametrize("kind", ["psp", "pssc", "psmt", "ps"])
@pytest.mark.parametrize("step", RESTORE_STEPS, ids=lambda s: s.id)
def test_an_object_deleted_while_restoring_never_keeps_the_pod_from_running(
    restoring: KillScene, step: Step, kind: str
) -> None:
    """Restored or cold; the saved Pod is not disturbed and the next one is restored."""
    scene = restoring
    if not any(is_settled(s) for s in scene.snapshots()):
        scene.save("first")
    nonce = scene.nonce("first")
    pod = f"{step.name.replace(' ', '-').replace(',', '')}-{kind}"
    with reach_restore(scene, step, pod):
        if kind == "ps":
            for snapshot in scene.snapshots():
                scene.remove("ps", snapshot.metadata.name)
        else:
            trigger = next((t["metadata"]["name"] for t in scene.all_of("psmt")), "none")
            take_away(scene, kind, trigger)
    put_back(scene, kind)

    converge("the new Pod is Ready", lambda: scene.is_true("pod", pod, "Ready"))
    assert scene.nonce(pod)
    assert scene.nonce("first") == nonce
    scene.remove("pod", pod)
    if kind == "ps":
        converge("the snapshot is gone", lambda: not scene.snapshots())
        assert scene.stored() == set()
    else:
        (snapshot,) = scene.snapshots()
        scene.wait_available(snapshot.metadata.name)


@pytest.mark.parametrize("step", [*SAVE_STEPS, *RESTORE_STEPS], ids=lambda s: s.id)
def test_a_namespace_deleted_at_any_step_takes_everything_along(
    cluster: LocalCluster, step: Step
) -> None:
    """Pods, objects, bytes and sandboxes; nothing waits for what can never come."""
    with kill_scene(cluster, "torn-namespace") as scene:
        scene.ready_pod("first", container=BALLAST)
        if step in RESTORE_STEPS:
            scene.save("first")
            reached = reach_restore(scene, step, "second")
        else:
            reached = reach_save(scene, step, "first")
        with reached:
            scene.remove("namespace", scene.namespace)

        converge("the namespace is gone", lambda: not scene.exists("namespace", scene.namespace))
        converge("no bytes", lambda: scene.stored() == set())
        converge("no staging", lambda: scene.staged() == [])
        converge("no sandbox", lambda: not scene.sandbox_of("first") + scene.sandbox_of("second"))


# -- the node's own object, and a crowd


def test_a_node_object_deleted_while_saving_costs_neither_save_nor_pod(saving: KillScene) -> None:
    """The kubelet registers again when it is started, the agent goes on with its next token."""
    scene = saving
    nonce = scene.nonce("first")
    try:
        with reach_save(scene, WRITING, "first") as trigger:
            scene.remove("node", "node1")
    finally:
        scene.signal("kubelet", signal.SIGKILL)
        converge("the node is Ready", lambda: scene.is_true("node", "node1", "Ready"))
        scene.cluster.up()  # tokens are bound to the node's object: it brings new ones
    answer = converge("an answer", lambda: scene.answer(trigger))

    assert answer["reason"] == "Complete"
    assert scene.nonce("first") == nonce
    assert scene.half_visible() == []
    snapshot = snapshot_of(scene, trigger)
    assert snapshot is not None
    scene.remove("ps", snapshot.metadata.name)


def test_twenty_pods_at_once_are_all_restored_from_one_snapshot(scene: Scene) -> None:
    """Each becomes Ready, and none falls back."""
    # Two processors are busy with twenty starts: a probe must have the time to be answered.
    patient = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 2, "timeoutSeconds": 10}
    container = {"readinessProbe": patient}
    scene.policy()
    scene.ready_pod("first", container=container)
    scene.save("first")
    nonce = scene.nonce("first")
    names = {f"clone-{n}" for n in range(20)}

    for name in sorted(names):
        scene.pod(name, container=container)

    def were_ready() -> bool:
        seen = {o.pod.metadata.name for o in scene.times.pods("counter") if o.ready_s}
        return names <= seen

    eventually("all were Ready", were_ready, limit_s=150)
    assert {scene.nonce(name) for name in names} == {nonce}
    assert all(scene.restored_from(name) for name in names)
