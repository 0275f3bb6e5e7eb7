# SPDX-License-Identifier: Apache-2.0
"""SIGKILL of every process at every named step; the table of results is docs/fault-table.md.

One scene per group of phases, walked through step by step, because a Pod that is wide enough to be
hit costs seconds to make. What happened is appended to build/faults.json, one line a cell.
"""

import itertools
import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from localcluster.cluster import LocalCluster
from localcluster.toolchain import REPOSITORY
from tests.faults.kill_scene import BALLAST, KillScene, converge, spin
from tests.faults.kill_steps import (
    assert_no_orphans,
    is_settled,
    kill_scene,
    reach_delete,
    reach_restore,
    reach_save,
    snapshot_of,
)
from tests.faults.kill_table import Step, cells

pytestmark = [
    pytest.mark.cluster,
    # What becomes of a connection whose server was killed in the middle of a handshake.
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
    ),
]

RESULTS = REPOSITORY / "build" / "faults.json"
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def saving(cluster: LocalCluster) -> Iterator[KillScene]:
    """A large Pod that is saved again and again."""
    with kill_scene(cluster, "save") as scene:
        scene.ready_pod("first", container=BALLAST)
        yield scene


@pytest.fixture(scope="module")
def restoring(cluster: LocalCluster) -> Iterator[KillScene]:
    """A large Pod with a snapshot that new Pods are restored from."""
    with kill_scene(cluster, "restore") as scene:
        scene.ready_pod("first", container=BALLAST)
        scene.save("first")
        yield scene


@pytest.fixture(scope="module")
def deleting(cluster: LocalCluster) -> Iterator[KillScene]:
    """A small Pod whose snapshots are deleted."""
    with kill_scene(cluster, "delete") as scene:
        scene.ready_pod("first")
        yield scene


# How often a step may be missed before a cell fails.
MISSES = 2


def cells_of(*phases: str) -> list[object]:
    """Return the cells of some phases as parameters."""
    return [
        pytest.param(step, victim, id=f"{step.id}, {victim}")
        for step, victim in cells()
        if step.phase in phases
    ]


def record(step: Step, victim: str, outcome: str, seconds_s: float) -> None:
    """Append a result."""
    RESULTS.parent.mkdir(exist_ok=True)
    line = {"step": step.id, "victim": victim, "outcome": outcome, "seconds": round(seconds_s, 1)}
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def kill(scene: KillScene, victim: str, *, sandbox: str, clients: list[int]) -> None:
    """SIGKILL the victim; of a supervised one see that it really died."""
    if victim == "sandbox":
        os.kill(scene.sandbox_pid(sandbox), signal.SIGKILL)
    elif victim == "runsc client":
        assert clients, "no runsc client runs: the step was missed"
        for pid in clients:
            os.kill(pid, signal.SIGKILL)
    else:
        before = scene.restarts(victim)
        scene.signal(victim, signal.SIGKILL)
        spin(f"{victim} is dead", lambda: scene.restarts(victim) > before)


# -- saves and uploads


@pytest.mark.parametrize(("step", "victim"), cells_of("save", "upload"))
def test_killed_while_saving(saving: KillScene, step: Step, victim: str) -> None:
    """The save is finished or done again, or told as failed; the Pod runs on."""
    scene = saving
    pod = "first"
    if victim == "sandbox":
        pod = f"victim-{next(_numbers)}"
        scene.ready_pod(pod, container=BALLAST)
    nonce = scene.nonce(pod)
    sandbox = scene.sandbox_of(pod)
    with reach_save(scene, step, pod) as trigger:
        began_s = time.monotonic()
        kill(scene, victim, sandbox=sandbox, clients=scene.clients("checkpoint", sandbox))

    answer = converge("an answer", lambda: scene.answer(trigger))
    converge("the save's end", lambda: is_settled(snapshot_of(scene, trigger)))
    snapshot = snapshot_of(scene, trigger)
    if victim == "sandbox":
        converge("the Pod's return", lambda: scene.sandbox_of(pod) not in {"", sandbox})
        converge("the Pod answers", lambda: scene.nonce(pod))
    else:
        assert scene.nonce(pod) == nonce
    seconds_s = time.monotonic() - began_s

    assert scene.half_visible() == []
    if answer["reason"] == "Complete":
        assert snapshot is not None
        assert snapshot.capture is not None
        outcome = "finished" if snapshot.capture.attempt == 1 else "done again"
    else:
        assert victim in {"sandbox", "runsc client"}, answer["message"]
        outcome = "failed, told"
    record(step, victim, outcome, seconds_s)
    if snapshot is not None:
        scene.remove("ps", snapshot.metadata.name)
    if pod != "first":
        scene.remove("pod", pod)


# -- fetches and restores


@pytest.mark.parametrize(("step", "victim"), cells_of("fetch", "restore"))
def test_killed_while_restoring(restoring: KillScene, step: Step, victim: str) -> None:
    """The new Pod runs, restored or cold, and says which; the saved one is not disturbed."""
    scene = restoring
    lift_quarantine(scene)
    nonce = scene.nonce("first")
    for left in reversed(range(MISSES + 1)):
        pod = f"new-{next(_numbers)}"
        began_s = 0.0
        try:
            with reach_restore(scene, step, pod):
                began_s = time.monotonic()
                sandbox = scene.sandbox_of(pod)
                clients = [
                    p for c in scene.containers_in(sandbox) for p in scene.clients("start", c)
                ]
                kill(scene, victim, sandbox=sandbox, clients=clients)
            break
        except AssertionError:
            # A moment that was too short to be held: nothing was killed yet.
            if began_s or not left:
                raise
            scene.remove("pod", pod)

    if victim == "sandbox":
        converge("another sandbox", lambda: scene.sandbox_of(pod) not in {"", sandbox})
    converge("the new Pod is Ready", lambda: scene.is_true("pod", pod, "Ready"))
    found = converge("the new Pod answers", lambda: scene.nonce(pod))
    if found == nonce:
        converge("the report", lambda: scene.restored_from(pod))
    seconds_s = time.monotonic() - began_s

    if found == nonce:
        outcome = "restored"
    elif scene.restored_from(pod):
        # The kubelet knows nothing of a start whose answer it did not get, and starts again.
        assert victim in {"kubelet", "containerd"}
        outcome = "restored, then started again"
    else:
        outcome = "cold start"
    assert scene.nonce("first") == nonce
    assert scene.half_visible() == []
    record(step, victim, outcome, seconds_s)
    scene.remove("pod", pod)


def lift_quarantine(scene: KillScene) -> None:
    """Let earlier cells not count: three killed sandboxes take the snapshot out of use."""
    for snapshot in scene.snapshots():
        if snapshot.failures:
            name = snapshot.metadata.name
            scene.kubectl("annotate", "ps", name, "podsnap.dev/quarantine=lifted")
            converge("no failures", lambda name=name: not scene.snapshot(name).failures)
            converge("Ready", lambda name=name: scene.is_true("ps", name, "Ready"))


# -- deletions


@pytest.mark.parametrize(("step", "victim"), cells_of("delete"))
def test_killed_while_deleting(deleting: KillScene, step: Step, victim: str) -> None:
    """Object and bytes go, whoever does it."""
    scene = deleting
    name = scene.save("first").metadata.name
    nonce = scene.nonce("first")
    with reach_delete(scene, step, name):
        began_s = time.monotonic()
        kill(scene, victim, sandbox="", clients=[])

    converge("the object is gone", lambda: name not in {s.metadata.name for s in scene.snapshots()})
    seconds_s = time.monotonic() - began_s

    assert not scene.stored_of(name)
    assert scene.nonce("first") == nonce
    assert scene.half_visible() == []
    record(step, victim, "gone", seconds_s)


# -- afterwards


@pytest.mark.parametrize("group", ["saving", "restoring", "deleting"])
def test_nothing_is_left_that_nobody_owns(group: str, request: pytest.FixtureRequest) -> None:
    """After the next look of agent and controller: staging, cache, bucket, runsc root and API."""
    scene: KillScene = request.getfixturevalue(group)

    assert_no_orphans(scene)
    for pod in scene.all_of("pod"):
        scene.remove("pod", pod["metadata"]["name"])
    converge("no Pod", lambda: not scene.all_of("pod"))
    assert_no_orphans(scene)
