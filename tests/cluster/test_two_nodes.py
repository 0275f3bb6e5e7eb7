# SPDX-License-Identifier: Apache-2.0
"""A cluster of two nodes: saved on one, restored on the other, whatever became of the first.

The cluster is this module's own. The tests stand in the order in which the first node loses its
work, then its life.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from localcluster.cluster import LocalCluster
from localcluster.images import build_image, default_cache
from tests.cluster_scene import INTERPRETER, Scene, eventually, new_scene

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parents[2]


def podsnap(*words: str) -> str:
    """Run the command line as a user does."""
    argv = [sys.executable, "-m", "reconciler.command_line", *words]
    done = subprocess.run(
        argv, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[LocalCluster]:
    """Bring up a cluster of two nodes, and take it down whatever happens."""
    made = LocalCluster("two-nodes")
    made.down()
    try:
        podsnap("local", "up", "--name", made.name, "--nodes", "2")
        recipe = REPOSITORY / "examples" / "counter"
        made.load(build_image(recipe, cache=default_cache(), progress=print).archive)
        yield made
    finally:
        podsnap("local", "down", "--name", made.name)


@dataclass(frozen=True, slots=True)
class Saved:
    """A scene with a Pod that was saved on node1, and what it answered before."""

    scene: Scene
    before: dict[str, Any]

    def continued(self, name: str) -> None:
        """Make a Pod and assert that it goes on, on node2, with bytes from the bucket."""
        cache = self.scene.cluster.state_dir / "node2" / "podsnap" / "cache"
        for image in cache.iterdir():
            shutil.rmtree(image)
        self.scene.ready_pod(name)
        after = self.scene.ask(name)
        assert self.scene.get("pod", name)["spec"]["nodeName"] == "node2"
        assert self.scene.restored_from(name)
        assert after["nonce"] == self.before["nonce"]
        assert after["count"] >= self.before["count"]


@pytest.fixture(scope="module")
def saved(two_nodes: LocalCluster) -> Iterator[Saved]:
    """Save a Pod on node1."""
    with new_scene(two_nodes, "saved-on-node1") as scene:
        scene.policy()
        scene.ready_pod("first", spec={"nodeName": "node1"})
        before = scene.ask("first")
        scene.save("first")
        yield Saved(scene, before)


def test_two_nodes_that_want_to_fill_one_snapshot_make_one_save(two_nodes: LocalCluster) -> None:
    """Equal workloads write at the same moment: one claim wins, and both go on."""
    ask = "f = open('/proc/gvisor/checkpoint', 'rb+', buffering=0); f.write(b'1')\n"
    ask += "answer = f.read(64).decode().strip()"
    container = {
        "command": ["/usr/bin/python3", "-c", INTERPRETER, "8080"],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1},
    }
    with new_scene(two_nodes, "one-claim-wins") as scene, ThreadPoolExecutor() as both:
        scene.policy("workload")
        pods = {"left": "node1", "right": "node2"}
        for name, node in pods.items():
            scene.pod(name, container=container, spec={"nodeName": node})
        for name in pods:
            scene.wait_ready(name)
        nonces = {name: scene.tell(name, "answer = nonce") for name in pods}
        eventually("the snapshot to fill", scene.snapshots)

        told = dict(zip(pods, both.map(lambda name: scene.tell(name, ask), pods), strict=True))

        (snapshot,) = scene.snapshots()
        scene.wait_available(snapshot.metadata.name)
        (snapshot,) = scene.snapshots()
        assert snapshot.capture is not None
        winner = snapshot.capture.pod_name
        assert told == {"left": "resume", "right": "resume"}
        assert [e.state for e in snapshot.control.story].count("Checkpointing") == 1
        assert {name.partition("/")[0] for name in scene.stored()} == {snapshot.metadata.name}
        assert {name: scene.tell(name, "answer = nonce") for name in pods} == nonces
        scene.ready_pod("third", container=container)
        assert snapshot.metadata.name in scene.restored_from("third"), scene.events("third")
        assert scene.tell("third", "answer = nonce") == nonces[winner]


def test_a_pod_saved_on_a_node_goes_on_on_the_other_after_a_cordon(saved: Saved) -> None:
    """The scheduler may not use the first node any more."""
    saved.scene.cluster.kubectl("cordon", "node1")

    saved.continued("after-cordon")


def test_a_pod_goes_on_on_the_other_node_after_the_death_of_the_first(saved: Saved) -> None:
    """Agent, kubelet, containerd and every sandbox of the first node are gone at once."""
    saved.scene.cluster.kubectl("cordon", "node1")
    saved.scene.cluster.machine("node1").kill()

    saved.continued("after-death")


@pytest.mark.contract(28)
def test_a_snapshot_whose_node_died_is_deleted_with_its_bytes(saved: Saved) -> None:
    """Nobody waits for the agent that made it."""
    saved.scene.cluster.machine("node1").kill()
    assert saved.scene.stored()

    saved.scene.kubectl("delete", "ps", "--all", "--timeout=60s")

    assert saved.scene.stored() == set()
