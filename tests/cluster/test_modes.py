# SPDX-License-Identifier: Apache-2.0
"""What a save holds, and what becomes of the Pod."""

import contextlib
import json
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

import pytest

from tests.cluster.told_pods import (
    GRACE,
    NEVER,
    SERVE,
    ballast,
    is_paused,
    memory,
    one_available,
    staging_disk,
    told,
)
from tests.cluster_scene import COUNTER, LIMIT_S, Scene, eventually

pytestmark = pytest.mark.cluster


# -- postCheckpoint: stop


@dataclass
class Client:
    """Asks a Pod as often as it can; ``last`` is the highest number that it was served."""

    address: str
    last: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)

    def ask_until_ended(self) -> None:
        """Keep asking; a Pod that is gone serves nothing."""
        request = urllib.request.Request(f"http://{self.address}:8080/", data=SERVE.encode())
        while not self._ended.wait(0.002):
            with (
                contextlib.suppress(OSError, HTTPException),
                urllib.request.urlopen(request, timeout=2) as got,  # noqa: S310 - http
            ):
                self.last = max(self.last, json.load(got))

    @classmethod
    @contextlib.contextmanager
    def of(cls, scene: Scene, pod: str) -> Iterator["Client"]:
        """Ask a Pod meanwhile."""
        client = cls(scene.get("pod", pod)["status"]["podIP"])
        thread = threading.Thread(target=client.ask_until_ended)
        thread.start()
        try:
            yield client
        finally:
            client._ended.set()
            thread.join(10)


def until_succeeded(scene: Scene, pod: str) -> float:
    """Wait until a Pod is ``Succeeded``; returns the seconds that it took."""
    began_s = time.monotonic()
    eventually("Succeeded", lambda: scene.phase(pod) == "Succeeded")
    return time.monotonic() - began_s


@pytest.mark.parametrize("policy", ["Never", "OnFailure"])
def test_a_pod_that_ends_with_its_save_succeeds_and_served_nothing_after(
    scene: Scene, policy: str
) -> None:
    """The restored Pod begins above every number that a client was served."""
    spec = {**GRACE, "restartPolicy": policy}
    scene.policy(post="stop")
    scene.ready_pod("by-itself", spec=spec, container=told())
    with contextlib.suppress(OSError, HTTPException):  # it ends before it answers
        scene.tell("by-itself", "import os; os._exit(0)")
    kubelet_s = until_succeeded(scene, "by-itself")
    scene.ready_pod("first", spec=spec, container=told())
    nonce = memory(scene, "first")
    with Client.of(scene, "first") as client:
        eventually("a client that is served", lambda: client.last > 20)

        answer = scene.triggered(scene.trigger("first"))
        took_s = until_succeeded(scene, "first")

    assert answer["reason"] == "Complete"
    # Two seconds on a machine that is not busy; a kubelet that is takes longer for any Pod.
    assert took_s < max(2.0, kubelet_s + 1.0)
    assert scene.container("first")["state"]["terminated"]["exitCode"] == 0
    one_available(scene)
    scene.ready_pod("second", spec=spec, container=told())
    assert memory(scene, "second") == nonce
    assert scene.tell("second", SERVE) > client.last


def test_a_pod_that_deletes_itself_with_its_save_is_stopped_too(scene: Scene) -> None:
    """OnDelete with stop: nothing runs after the image, and the deletion is quick."""
    scene.policy("onDelete", post="stop")
    scene.ready_pod("only", spec=GRACE, container=told())
    with Client.of(scene, "only") as client:
        eventually("a client that is served", lambda: client.last > 20)
        took_s = scene.delete("only")

    scene.ready_pod("only", spec=GRACE, container=told())

    assert took_s < 8
    assert scene.tell("only", SERVE) > client.last


def test_the_successor_of_a_stopped_pod_waits_for_its_snapshot(scene: Scene) -> None:
    """With a controller the Pod is deleted, and the next one goes on."""
    scene.policy(post="stop")
    scene.deployment("web", spec=GRACE)
    (first,) = scene.times.wait_ready("counter", 1, limit_s=LIMIT_S)
    name = first.pod.metadata.name
    nonce = scene.nonce(name)

    answer = scene.triggered(scene.trigger(name))

    assert answer["reason"] == "Complete", answer["message"]
    scene.event(name, "is deleted, because its restartPolicy Always")
    scene.kubectl("wait", "--for=delete", f"pod/{name}", "--timeout=30s")
    (second,) = scene.times.wait_ready("counter", 1, limit_s=LIMIT_S)
    assert scene.nonce(second.pod.metadata.name) == nonce
    assert second.is_restored


def test_a_stopped_bare_pod_with_restart_policy_always_restarts_in_place(scene: Scene) -> None:
    """Nobody would make another one; an Event says so and what to set."""
    scene.policy(post="stop")
    scene.ready_pod("first", spec=GRACE)
    nonce = scene.nonce("first")

    scene.save("first")

    assert "set restartPolicy Never" in scene.event("first", "restarted in place")
    eventually("a restart", lambda: scene.container("first").get("restartCount") == 1)
    eventually("it serves again", lambda: scene.container("first").get("ready"))
    assert scene.nonce("first") != nonce


@pytest.mark.parametrize("scope", ["whole-pod", "rootfs-only"])
def test_a_pod_whose_save_fails_while_it_is_paused_runs_on(scene: Scene, scope: str) -> None:
    """It is resumed, serves, and can be saved by a new trigger."""
    scene.policy(post="stop", scope=scope)
    scene.ready_pod("first", spec=NEVER)
    nonce = scene.nonce("first")

    with staging_disk(scene, "", "ro,size=4g"):  # with room, so that it fails while it writes
        answer = scene.triggered(scene.trigger("first"))

        assert answer["reason"] == "Failed"
        count = scene.ask("first")["count"]
        eventually("it counts on", lambda: scene.ask("first")["count"] > count)
        assert scene.nonce("first") == nonce
        assert not is_paused(scene)
    scene.save("first")
    until_succeeded(scene, "first")


def test_the_next_agent_ends_a_pod_that_the_last_one_left_paused(scene: Scene) -> None:
    """The save is done anew or carried through; the Pod does not stand still for ever."""
    scene.policy(post="stop")
    scene.ready_pod("first", spec=NEVER, container=ballast(400))
    trigger = scene.trigger("first")
    eventually("a paused sandbox", lambda: is_paused(scene))

    scene.cluster.component("node1", "agent").kill()

    answer = scene.triggered(trigger)
    assert answer["reason"] == "Complete", answer["message"]
    until_succeeded(scene, "first")
    assert not is_paused(scene)


@pytest.mark.parametrize("agent", ["the next one comes", "none comes"])
def test_a_pod_left_paused_by_a_killed_agent_can_be_deleted(scene: Scene, agent: str) -> None:
    """It would stick in Terminating for ever; so it is resumed before its signal."""
    scene.policy(post="stop")
    scene.ready_pod("first", spec=NEVER, container=ballast(400))
    scene.trigger("first")
    eventually("a paused sandbox", lambda: is_paused(scene))

    if agent == "none comes":
        with scene.without_agent():
            took_s = scene.delete("first")
    else:
        scene.cluster.component("node1", "agent").kill()
        took_s = scene.delete("first")
        scene.wait_for_agent()

    assert took_s < GRACE["terminationGracePeriodSeconds"] + 6


# -- init containers, sidecars, hooks

WORK: dict[str, Any] = {"volumeMounts": [{"name": "work", "mountPath": "/shared"}]}
PREPARE = {
    "name": "prepare",
    "image": COUNTER,
    "imagePullPolicy": "Never",
    "command": [
        "/usr/bin/python3",
        "-c",
        "import os; open('/shared/prepared', 'a').write(os.urandom(8).hex() + '\\n')",
    ],
    **WORK,
}


def with_work(*containers: dict[str, Any], inits: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Return a Pod's spec with an emptyDir that all its containers see."""
    return {
        **GRACE,
        "initContainers": list(inits),
        "containers": list(containers),
        "volumes": [{"name": "work", "emptyDir": {}}],
    }


def test_a_restored_pod_does_not_run_its_init_containers_again(scene: Scene) -> None:
    """What they prepared is in the image, and the kubelet sees them end well."""
    spec = with_work(told(**WORK), inits=[PREPARE, {**PREPARE, "name": "again"}])
    scene.policy()
    scene.ready_pod("first", spec=spec)
    look = "answer = open('/shared/prepared').read().split()"
    prepared = scene.tell("first", look)
    nonce = memory(scene, "first")
    scene.save("first")

    scene.ready_pod("second", spec=spec)

    assert len(prepared) == 2
    assert memory(scene, "second") == nonce
    assert scene.tell("second", look) == prepared
    for name in ("prepare", "again"):
        ended = scene.container("second", name)["state"]["terminated"]
        assert (ended["exitCode"], ended["reason"]) == (0, "Completed")
    assert scene.delete("second") < 25


def test_a_sidecar_comes_back_with_the_pod(scene: Scene) -> None:
    """Its memory too, beside an ordinary init container."""
    sidecar = told(8081, restartPolicy="Always", **WORK)
    spec = with_work(told(**WORK), inits=[PREPARE, sidecar])
    scene.policy()
    scene.ready_pod("first", spec=spec)
    before = memory(scene, "first"), memory(scene, "first", 8081)
    scene.save("first")

    scene.ready_pod("second", spec=spec)

    assert (memory(scene, "second"), memory(scene, "second", 8081)) == before
    assert "running" in scene.container("second", "port-8081")["state"]


PROBE: dict[str, Any] = {
    "startupProbe": {"httpGet": {"path": "/ready", "port": 8081}, "periodSeconds": 1}
}
HOOK: dict[str, Any] = {
    "lifecycle": {
        "postStart": {
            "exec": {
                "command": ["/usr/bin/python3", "-c", "open('/shared/hooks', 'a').write('ran\\n')"]
            }
        }
    }
}


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            with_work(told(), inits=[told(8081, restartPolicy="Always", **PROBE)]),
            "a startup probe on sidecar port-8081",
        ),
        (with_work(told(**WORK, **HOOK), told(8081)), "a postStart hook on container counter"),
    ],
    ids=["startup probe of a sidecar", "postStart before the last container"],
)
def test_what_could_not_be_restored_is_refused_at_the_save(
    scene: Scene, spec: dict[str, Any], reason: str
) -> None:
    """With the reason, before anything is paused."""
    scene.policy()
    scene.ready_pod("first", spec=spec)
    nonce = memory(scene, "first")

    answer = scene.triggered(scene.trigger("first"))

    assert answer["reason"] == "Failed"
    assert reason in answer["message"]
    assert memory(scene, "first") == nonce


def test_the_hook_of_the_last_container_runs_again_in_the_restored_pod(scene: Scene) -> None:
    """It runs beside the memory that is back, so a hook must bear to run twice."""
    spec = with_work(told(**WORK, **HOOK))
    scene.policy()
    scene.ready_pod("first", spec=spec)
    look = "answer = open('/shared/hooks').read().split()"
    assert scene.tell("first", look) == ["ran"]
    nonce = memory(scene, "first")
    scene.save("first")

    scene.ready_pod("second", spec=spec)

    assert memory(scene, "second") == nonce
    assert scene.tell("second", look) == ["ran", "ran"]
