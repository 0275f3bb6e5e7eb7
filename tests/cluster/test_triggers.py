# SPDX-License-Identifier: Apache-2.0
"""Who asks for a save: deletions, workloads, readiness; and who waits for it."""

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

import pytest

from tests.cluster.told_pods import (
    GATE,
    GRACE,
    TINY_BUDGET,
    WRITE,
    ballast,
    memory,
    one_available,
    staging_disk,
    told,
)
from tests.cluster_scene import LIMIT_S, Scene, eventually

pytestmark = pytest.mark.cluster


# -- onDelete


def test_a_deleted_pod_is_saved_and_its_successor_goes_on(scene: Scene) -> None:
    """Same memory under the same name, and the count goes on from the deletion."""
    scene.policy("onDelete")
    scene.ready_pod("only", spec=GRACE)
    before = scene.ask("only")

    took_s = scene.delete("only")
    scene.ready_pod("only", spec=GRACE)

    after = scene.ask("only")
    assert after["nonce"] == before["nonce"]
    assert after["count"] >= before["count"]
    assert one_available(scene).metadata.name in scene.restored_from("only")
    assert took_s < 8


def test_an_evicted_pod_is_saved(scene: Scene) -> None:
    """The eviction API is what ``kubectl drain`` calls."""
    scene.policy("onDelete")
    scene.ready_pod("only", spec=GRACE)
    nonce = scene.nonce("only")
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": "only", "namespace": scene.namespace},
    }

    path = f"/api/v1/namespaces/{scene.namespace}/pods/only/eviction"
    scene.kubectl("create", f"--raw={path}", "-f", "-", text=json.dumps(eviction))
    scene.kubectl("wait", "--for=delete", "pod/only", f"--timeout={LIMIT_S:.0f}s")
    scene.ready_pod("only", spec=GRACE)

    assert scene.nonce("only") == nonce


def test_two_containers_of_a_deleted_pod_make_one_save(scene: Scene) -> None:
    """The second signal waits for the first one's save, and both memories are in it."""
    two = {**GRACE, "containers": [told(), told(8081)]}
    scene.policy("onDelete")
    scene.ready_pod("only", spec=two)
    before = memory(scene, "only"), memory(scene, "only", 8081)

    scene.delete("only")
    scene.ready_pod("only", spec=two)

    assert (memory(scene, "only"), memory(scene, "only", 8081)) == before
    one_available(scene)


@pytest.mark.parametrize(
    "how", ["alive = 500", "import os; os._exit(1)"], ids=["by its probe", "by itself"]
)
def test_a_restarted_container_is_not_saved_and_a_later_deletion_is(scene: Scene, how: str) -> None:
    """The signal is the same, only the Pod's own object tells them apart."""
    probe = {"httpGet": {"path": "/alive", "port": 8080}, "periodSeconds": 1}
    container = told(
        startupProbe={**probe, "failureThreshold": 60},
        livenessProbe={**probe, "failureThreshold": 1},
    )
    scene.policy("onDelete")
    scene.ready_pod("only", spec=GRACE, container=container)
    with contextlib.suppress(OSError, HTTPException):  # it may end before it answers
        scene.tell("only", how)

    eventually("a restart", lambda: scene.container("only").get("restartCount") == 1)
    eventually("it runs again", lambda: scene.container("only").get("ready"))
    assert scene.snapshots() == []
    nonce = memory(scene, "only")
    scene.delete("only")
    scene.ready_pod("only", spec=GRACE, container=container)

    assert memory(scene, "only") == nonce


def test_a_pod_with_too_little_grace_goes_unsaved_and_in_time(scene: Scene) -> None:
    """An Event has the figures and says what to change."""
    scene.policy("onDelete")
    short = {"terminationGracePeriodSeconds": 2}
    scene.ready_pod("only", spec=short, container=ballast(400))

    took_s = scene.delete("only")

    assert took_s < 6
    assert scene.snapshots() == []
    assert "raise terminationGracePeriodSeconds" in scene.event("only", "was not saved")


def test_a_pod_deleted_by_force_is_gone_and_replaced_at_once(scene: Scene) -> None:
    """Its object is gone before its signal, so nobody can say that it should be saved."""
    scene.policy("onDelete")
    scene.ready_pod("only", spec=GRACE)

    took_s = scene.delete("only", "--grace-period=0", "--force")
    scene.ready_pod("only", spec=GRACE)

    assert took_s < 5
    assert scene.nonce("only")


def test_the_handler_of_the_signal_runs_after_the_save(scene: Scene) -> None:
    """The signal is late, not lost; and the image is from before it."""
    script = (
        "import signal, sys\n"
        "signal.signal(15, lambda *_: (print('handler ran', flush=True), sys.exit(0)))\n"
        "print('up', flush=True)\n"
        "while True: signal.pause()\n"
    )
    container = {"command": ["/usr/bin/python3", "-c", script], "readinessProbe": None}
    scene.policy("onDelete")
    scene.ready_pod("only", spec=GRACE, container=container)
    eventually("its first line", lambda: "up" in scene.kubectl("logs", "only"))

    with ThreadPoolExecutor(1) as threads:
        log = threads.submit(scene.kubectl, "logs", "-f", "only")
        scene.delete("only")

        assert log.result(timeout=LIMIT_S).splitlines() == ["up", "handler ran"]
    one_available(scene)


def test_without_an_agent_a_pod_goes_as_fast_as_without_podsnap(scene: Scene) -> None:
    """Nobody is asked, so nobody is waited for."""
    scene.policy("onDelete")
    scene.ready_pod("governed", spec=GRACE)
    scene.pod("plain", spec=GRACE, labels={"app": "other"})
    scene.kubectl("wait", "--for=condition=Ready", "pod/plain", "--timeout=60s")
    plain_s = scene.delete("plain")

    with scene.without_agent():
        governed_s = scene.delete("governed")

    assert governed_s < plain_s + 1.5


# -- workload


def reads(scene: Scene, pod: str, count: int) -> list[str]:
    """Return what a Pod's writers have read, once there are so many."""
    return eventually(
        f"{count} reads of {pod}",
        lambda: found if len(found := scene.tell(pod, "answer = reads")) >= count else [],
    )


def awaits(scene: Scene) -> bool:
    """Whether there is one snapshot, and it waits for a workload."""
    ready = [s.conditions.get("Ready") for s in scene.snapshots()]
    return [c.reason if c else "" for c in ready] == ["AwaitingCheckpoint"]


@pytest.fixture
def saved(scene: Scene) -> Scene:
    """Give a scene whose Pod ``first`` has saved itself."""
    scene.policy("workload")
    scene.ready_pod("first", container=told())
    eventually("a snapshot that waits from the start", lambda: awaits(scene))
    scene.tell("first", WRITE)
    one_available(scene)
    return scene


def test_who_saves_itself_reads_resume_and_who_is_restored_restore(saved: Scene) -> None:
    """The program can tell which of the two it is."""
    saved.ready_pod("second", container=told())

    assert reads(saved, "first", 1) == ["resume"]
    assert reads(saved, "second", 1) == ["restore"]
    assert memory(saved, "second") == memory(saved, "first")
    assert len(saved.snapshots()) == 1


def test_of_two_cold_replicas_that_save_themselves_one_is_kept(scene: Scene) -> None:
    """Both read ``resume``, and the bytes are those of the Pod that the record names."""
    scene.policy("workload")
    nonces = {}
    for name in ("one", "two"):
        scene.pod(name, container=told())
    for name in ("one", "two"):
        scene.wait_ready(name)
        nonces[name] = memory(scene, name)
    assert nonces["one"] != nonces["two"]

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda name: scene.tell(name, WRITE), nonces))
    answers = [reads(scene, name, 1) for name in nonces]
    snapshot = one_available(scene)
    scene.ready_pod("third", container=told())

    assert answers == [["resume"], ["resume"]]
    assert snapshot.capture is not None
    assert memory(scene, "third") == nonces[snapshot.capture.pod_name]
    assert len(scene.snapshots()) == 1
    assert {name.partition("/")[0] for name in scene.stored()} == {snapshot.metadata.name}


def test_a_restored_pod_that_saves_itself_reads_resume_and_changes_nothing(saved: Scene) -> None:
    """The snapshot that it came from stays, byte for byte."""
    (before,) = saved.snapshots()
    saved.ready_pod("second", container=told())
    reads(saved, "second", 1)

    saved.tell("second", WRITE)

    assert reads(saved, "second", 2) == ["restore", "resume"]
    (after,) = saved.snapshots()
    assert after.capture == before.capture
    assert len(saved.stored()) == 5


def test_a_manual_trigger_after_a_workloads_save_makes_a_second_snapshot(saved: Scene) -> None:
    """And new Pods are restored from the newer one."""
    saved.tell("first", "since = 'the trigger'")
    manual = saved.save("first")

    saved.ready_pod("second", container=told())

    assert len(saved.snapshots()) == 2
    assert manual.metadata.name in saved.restored_from("second")
    assert saved.tell("second", "answer = since") == "the trigger"


def test_each_manual_trigger_of_one_spec_makes_a_snapshot_and_the_newest_counts(
    scene: Scene,
) -> None:
    """Also when the Pod that is saved was itself restored."""
    scene.policy()
    scene.ready_pod("first", container=told())
    names = []
    for n in range(3):
        scene.tell("first", f"mark = {n}")
        names.append(scene.save("first").metadata.name)

    scene.ready_pod("second", container=told())

    assert {s.metadata.name for s in scene.snapshots()} == set(names)
    assert len(set(names)) == 3
    assert scene.tell("second", "answer = mark") == 2


@pytest.mark.contract(12)
def test_a_workload_whose_save_fails_reads_error_and_goes_on(scene: Scene) -> None:
    """Its snapshot still waits for another replica, and an Event says what became of the save."""
    scene.policy("workload")
    with staging_disk(scene, "workload", "size=1m"):
        scene.ready_pod("first", container=told())
        nonce = memory(scene, "first")
        eventually("a snapshot that waits from the start", lambda: awaits(scene))

        scene.tell("first", WRITE)

        assert reads(scene, "first", 1) == ["error"]
        assert memory(scene, "first") == nonce
        scene.event("first", "the workload's own checkpoint was dropped")
        assert awaits(scene)


# -- readinessProbe


def test_replicas_that_become_ready_together_make_one_snapshot(scene: Scene) -> None:
    """Its name is derived from what they have in common, and later replicas are restored."""
    scene.policy("readinessProbe")
    scene.deployment("web", replicas=3, spec=GRACE)
    ready = scene.times.wait_ready("counter", 3, limit_s=LIMIT_S)
    nonces = {o.pod.metadata.name: scene.nonce(o.pod.metadata.name) for o in ready}

    snapshot = one_available(scene)
    scene.kubectl("scale", "deployment/web", "--replicas=4")
    scene.times.wait_ready("counter", 4, limit_s=LIMIT_S)
    (new,) = (
        o.pod.metadata.name
        for o in scene.times.pods("counter")
        if o.pod.metadata.name not in nonces
    )

    assert snapshot.capture is not None
    assert scene.nonce(new) == nonces[snapshot.capture.pod_name]
    assert len(scene.snapshots()) == 1
    assert nonces == {name: scene.nonce(name) for name in nonces}


def test_a_pause_over_the_budget_is_refused_with_the_figures(scene: Scene) -> None:
    """The Pod serves on, and both its Event and the PodSnapshot say how long it would take."""
    scene.policy("readinessProbe", annotations=TINY_BUDGET)
    scene.ready_pod("first")
    nonce = scene.nonce("first")

    event = scene.event("first", "PauseTooLong")

    (snapshot,) = scene.snapshots()
    name = snapshot.metadata.name
    eventually("Failed", lambda: "MB pauses Pod" in _message(scene, name, "Checkpoint"))
    assert "more than the 0.001 s that a serving Pod may stand still" in event
    assert scene.nonce("first") == nonce
    assert scene.stored() == set()


def _message(scene: Scene, snapshot: str, condition: str) -> str:
    found = scene.condition("ps", snapshot, condition)
    return found["message"] if found else ""


def test_a_manual_save_over_the_budget_is_made_and_warned_of(scene: Scene) -> None:
    """It was asked for."""
    scene.policy(annotations=TINY_BUDGET)
    scene.ready_pod("first")

    scene.save("first")

    assert scene.event("first", "MB pauses Pod first for about").startswith("Warning")


# -- the gate


def is_claimed(scene: Scene) -> bool:
    """Whether the first save is under way."""
    return any(s.capture is not None for s in scene.snapshots())


@pytest.mark.parametrize(
    ("annotations", "is_restored"), [(GATE, True), ({}, False)], ids=["gate", "no gate"]
)
def test_a_replica_waits_for_the_first_save_only_behind_the_gate(
    scene: Scene, annotations: dict[str, str], *, is_restored: bool
) -> None:
    """Without the opt-in it starts cold at once."""
    scene.policy(annotations=annotations)
    scene.ready_pod("first", container=ballast(700))
    trigger = scene.trigger("first")
    eventually("a claim", lambda: is_claimed(scene))

    scene.ready_pod("second", container=ballast(700))

    assert bool(scene.restored_from("second")) is is_restored
    assert (memory(scene, "second") == memory(scene, "first")) is is_restored
    assert scene.triggered(trigger)["reason"] == "Complete"


def test_a_gate_that_is_longer_than_a_sandbox_may_take_is_refused(scene: Scene) -> None:
    """The policy's condition names the annotation and the bound."""
    scene.policy()

    scene.kubectl("annotate", "psp", "policy", "podsnap.dev/gate=86s")

    def refused() -> dict[str, Any] | None:
        found = scene.condition("psp", "policy", "Ready") or {}
        return found if found.get("status") == "False" else None

    found = eventually("a refusal", refused) or {}
    assert found["reason"] == "InvalidAnnotation"
    assert "annotation podsnap.dev/gate: it is 86s" in found["message"]
    assert "at most 85s" in found["message"]
