# SPDX-License-Identifier: Apache-2.0
"""A restore that succeeded, and a Pod that does not do well afterwards.

The application here is Ready only under the name of the Pod in which it started, so a restored one
never is, and a cold one is at once.
"""

import json
from typing import Any

import pytest

from tests.cluster_scene import COUNTER, Scene, eventually

pytestmark = pytest.mark.cluster

COLD = "falling back to a cold start of pod"
SELFISH: dict[str, Any] = {
    "name": "counter",
    "image": COUNTER,
    "imagePullPolicy": "Never",
    "command": [
        "/bin/sh",
        "-c",
        "touch /tmp/born-$(hostname); exec /usr/bin/python3 /app/counter.py",
    ],
    "readinessProbe": {
        "exec": {"command": ["/bin/sh", "-c", "test -e /tmp/born-$(hostname)"]},
        "periodSeconds": 1,
    },
}
LATER_S = 150.0


def test_pods_that_are_never_ready_after_their_restore_start_cold_and_three_are_enough(
    scene: Scene,
) -> None:
    """The snapshot is out of use then, until a person lifts the quarantine."""
    scene.policy()
    scene.ready_pod("first", container=SELFISH)
    name = scene.save("first").metadata.name
    sick = ("second", "third", "fourth")
    for pod in sick:
        scene.pod(pod, container=SELFISH)

    for pod in sick:
        eventually(f"Pod {pod} cold", lambda pod=pod: is_cold(scene, pod), limit_s=LATER_S)
        assert "was not Ready" in scene.event(pod, COLD)
        assert restarts(scene, pod) <= 2  # one in the dead sandbox, one in the next
    quarantined = eventually("quarantine", lambda: refusal(scene, name))
    scene.ready_pod("fifth", container=SELFISH)
    scene.kubectl("annotate", "ps", name, "podsnap.dev/quarantine=lifted")
    eventually("lifted", lambda: scene.is_true("ps", name, "Ready"))
    scene.pod("sixth", container=SELFISH)

    assert "3 restores failed" in quarantined
    assert not scene.restored_from("fifth")
    eventually("a restore", lambda: scene.restored_from("sixth"))
    annotations = scene.get("ps", name)["metadata"]["annotations"]
    assert "podsnap.dev/quarantine" not in annotations


def test_a_sandbox_that_dies_right_after_its_restore_is_followed_by_a_cold_one(
    scene: Scene,
) -> None:
    """What the snapshot brings back may be what killed it."""
    scene.policy()
    scene.ready_pod("first")
    scene.save("first")
    scene.ready_pod("second")
    assert scene.restored_from("second")
    nonce = scene.nonce("second")

    kill_sandbox(scene, "second")

    eventually("another memory", lambda: answers(scene, "second") not in {"", nonce}, limit_s=60)
    assert "the sandbox ended before the Pod did well" in scene.event("second", COLD)
    eventually("no restore is claimed", lambda: not scene.restored_from("second"))


def is_cold(scene: Scene, pod: str) -> bool:
    """Whether a Pod is Ready and not restored."""
    return scene.is_true("pod", pod, "Ready") and not scene.restored_from(pod)


def restarts(scene: Scene, pod: str) -> int:
    """Return how often the kubelet restarted the one container."""
    return int(scene.get("pod", pod)["status"]["containerStatuses"][0]["restartCount"])


def refusal(scene: Scene, snapshot: str) -> str:
    """Return why a snapshot is obsolete, empty if it is not."""
    ready = scene.condition("ps", snapshot, "Ready")
    return ready["message"] if ready and ready["reason"] == "Obsolete" else ""


def answers(scene: Scene, pod: str) -> str:
    """Return the nonce of a Pod, empty while it does not answer."""
    try:
        return scene.nonce(pod)
    except OSError:
        return ""


def kill_sandbox(scene: Scene, pod: str) -> None:
    """Kill the sandbox of a Pod that was restored a moment ago."""
    uid = scene.get("pod", pod)["metadata"]["uid"]
    note = scene.cluster.run_in("node1", ["cat", f"/run/podsnap/runtime/attempts/{uid}"]).stdout
    sandbox = json.loads(note)["sandbox"]
    state = f"/run/runsc/k8s.io/{sandbox}_sandbox:{sandbox}.state"
    text = scene.cluster.run_in("node1", ["cat", state]).stdout
    pid = json.loads(text)["sandbox"]["pid"]
    scene.cluster.run_in("node1", ["kill", "-9", str(pid)])
