# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at the worst moments: the Pod runs on, and nothing is left that nobody owns.

The moments are found on disk, where the work shows: a staging directory with bytes, a temporary
file in the bucket, a partial image in the cache. A large Pod makes them wide enough to hit.
"""

from pathlib import Path

import pytest

from schemas.snapshot import Snapshot
from tests.cluster_scene import Scene, eventually

pytestmark = pytest.mark.cluster

RECOVERY_LIMIT_S = 90
BALLAST = {
    "command": [
        "/usr/bin/python3",
        "-c",
        "import os,runpy; ballast=os.urandom(300<<20); "
        "runpy.run_path('/app/counter.py', run_name='__main__')",
    ],
    "resources": {"limits": {"memory": "1Gi"}},
}


@pytest.fixture
def large(scene: Scene) -> Scene:
    """Give a scene with a Pod of 300 MB that is not saved yet."""
    scene.policy()
    scene.ready_pod("first", container=BALLAST)
    return scene


def kill_agent(scene: Scene) -> None:
    """Kill the agent; its supervisor starts it again."""
    scene.cluster.component("node1", "agent").kill()


def kill_controller(scene: Scene) -> None:
    """Kill the controller; the next one waits for the lease to run out."""
    scene.cluster.component("control-plane", "controller").kill()


def staging_has_bytes(scene: Scene) -> bool:
    """Whether runsc is writing."""
    return any(
        (scene.node_state / "staging" / name / "checkpoint.img").exists() for name in scene.staged()
    )


def upload_runs(scene: Scene) -> bool:
    """Whether a part is on its way into the bucket."""
    return any(p.stat().st_size for p in _files(scene.bucket / ".podsnap" / "tmp"))


def fetch_runs(scene: Scene) -> bool:
    """Whether an image is on its way to the node."""
    return any((scene.node_state / "cache").glob("*.partial/*"))


def _files(directory: Path) -> list[Path]:
    return [p for p in directory.glob("*") if p.is_file()] if directory.is_dir() else []


def settled(scene: Scene) -> Snapshot | None:
    """Return the one snapshot once it is available."""
    found = [s for s in scene.snapshots() if scene.is_true("ps", s.metadata.name, "Ready")]
    return found[0] if found else None


def assert_nothing_is_left(scene: Scene, snapshot: Snapshot) -> None:
    """No staging, no partial image, no object of another attempt."""
    eventually("clean staging", lambda: scene.staged() == [], limit_s=60)
    assert not list((scene.node_state / "cache").glob("*.partial"))
    owners = {name.partition("/")[0] for name in scene.stored()}
    assert owners == {snapshot.metadata.name}
    assert len(scene.stored()) == 5


@pytest.mark.parametrize("kill", [kill_agent, kill_controller])
@pytest.mark.parametrize("moment", [staging_has_bytes, upload_runs])
def test_killed_while_saving(large: Scene, kill: object, moment: object) -> None:
    """The save is finished or done again, the trigger answered, the Pod not disturbed."""
    assert callable(kill)
    assert callable(moment)
    nonce = large.nonce("first")
    trigger = large.trigger("first")
    eventually(moment.__name__, lambda: moment(large))
    kill(large)

    answer = eventually(
        "an answer",
        lambda: large.condition("psmt", trigger, "Triggered") or None,
        limit_s=RECOVERY_LIMIT_S,
    )
    snapshot = eventually("available", lambda: settled(large), limit_s=RECOVERY_LIMIT_S)
    answer = large.triggered(trigger)

    assert answer["reason"] == "Complete"
    assert large.nonce("first") == nonce
    assert_nothing_is_left(large, snapshot)
    large.ready_pod("second", container=BALLAST)
    assert large.nonce("second") == nonce


@pytest.mark.parametrize("kill", [kill_agent, kill_controller])
def test_killed_while_fetching_for_a_restore(large: Scene, kill: object) -> None:
    """The new Pod runs, restored or cold, and the next one restores."""
    assert callable(kill)
    snapshot = large.save("first")
    nonce = large.nonce("first")
    large.forget_cached_images()
    large.pod("second", container=BALLAST)
    eventually("fetch_runs", lambda: fetch_runs(large))
    kill(large)

    large.wait_ready("second")

    assert large.nonce("second")
    assert large.nonce("first") == nonce

    def restores() -> bool:
        name = f"later-{len(large.times.pods('counter'))}"
        large.ready_pod(name, container=BALLAST)
        return bool(large.restored_from(name))

    eventually("a restore", restores, limit_s=RECOVERY_LIMIT_S)
    assert_nothing_is_left(large, snapshot)


def test_agent_killed_between_restore_and_report(scene: Scene) -> None:
    """A Pod whose restore nobody reported is reported by the next agent."""
    scene.policy()
    scene.ready_pod("first")
    scene.save("first")
    scene.pod("second")
    bundles = "/run/containerd/io.containerd.runtime.v2.task/k8s.io"
    read_all = ["find", bundles, "-name", "podsnap.json", "-exec", "cat", "{}", "+"]
    mine = f'"namespace":"{scene.namespace}","name":"second"'

    def decided() -> bool:
        return mine in scene.cluster.run_in("node1", read_all).stdout

    eventually("the decision", decided)
    kill_agent(scene)

    scene.wait_ready("second")
    eventually("the report", lambda: scene.restored_from("second"), limit_s=RECOVERY_LIMIT_S)
    assert scene.nonce("second") == scene.nonce("first")


def test_a_deletion_survives_the_controller(scene: Scene) -> None:
    """Bytes and object go, whoever does it."""
    scene.policy()
    scene.ready_pod("first")
    snapshot = scene.save("first")

    scene.kubectl("delete", "ps", snapshot.metadata.name, "--wait=false")
    kill_controller(scene)

    eventually("gone", lambda: scene.snapshots() == [], limit_s=RECOVERY_LIMIT_S)
    assert scene.stored() == set()
