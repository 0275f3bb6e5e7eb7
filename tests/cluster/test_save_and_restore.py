# SPDX-License-Identifier: Apache-2.0
"""A Pod saved by a trigger, and what its successors are."""

import contextlib
import json

import pytest

from localcluster.cluster import ClusterError, LocalCluster
from tests.cluster_scene import Scene, eventually

pytestmark = pytest.mark.cluster


def test_files_of_an_emptydir_and_of_a_second_container_come_back(scene: Scene) -> None:
    """Volumes inside the Pod are in the image, and every container goes on."""
    script = (
        "import os,time,pathlib\n"
        "p=pathlib.Path('/shared/note'); p.write_text(os.urandom(8).hex())\n"
        "while True: time.sleep(1)\n"
    )
    side = {
        "name": "side",
        "image": "podsnap.local/counter:1",
        "imagePullPolicy": "Never",
        "command": ["/usr/bin/python3", "-c", script],
        "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
    }
    counter = {
        "name": "counter",
        "image": "podsnap.local/counter:1",
        "imagePullPolicy": "Never",
        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
        "volumeMounts": [{"name": "shared", "mountPath": "/data"}],
    }
    spec = {"containers": [counter, side], "volumes": [{"name": "shared", "emptyDir": {}}]}
    scene.policy()
    scene.ready_pod("first", spec=spec)
    note = scene.kubectl("exec", "first", "-c", "side", "--", "cat", "/shared/note")
    scene.save("first")

    scene.ready_pod("second", spec=spec)

    assert scene.nonce("first") == scene.nonce("second")
    read = ("exec", "second", "-c", "counter", "--", "cat", "/data/note")
    assert scene.kubectl(*read) == note


def test_a_policy_that_comes_back_makes_its_snapshots_usable_again(scene: Scene) -> None:
    """Obsolete is reversible: a rollback in Git must not cost the snapshots."""
    scene.policy()
    scene.ready_pod("first")
    snapshot = scene.save("first")
    scene.kubectl("delete", "psp", "policy")
    name = snapshot.metadata.name
    eventually("Obsolete", lambda: not scene.is_true("ps", name, "Ready"))

    scene.policy()
    scene.wait_available(name)
    scene.ready_pod("second")

    assert scene.nonce("second") == scene.nonce("first")


def test_a_restored_pod_is_an_ordinary_pod(scene: Scene) -> None:
    """Logs, exec, a crash and its restart, and a save of the restored Pod all work."""
    scene.policy()
    scene.ready_pod("first")
    scene.save("first")
    scene.ready_pod("second")
    nonce = scene.nonce("second")

    assert scene.kubectl("exec", "second", "--", "cat", "/etc/hostname").strip() == "second"
    again = scene.save("second")
    pin = {"podsnapshot.gke.io/ps-name": again.metadata.name}
    scene.ready_pod("third", annotations=pin)
    assert scene.nonce("third") == nonce
    # The exec may end with the container that it ends.
    with contextlib.suppress(ClusterError):
        scene.kubectl("exec", "second", "--", "/usr/bin/python3", "-c", "import os; os.kill(1, 15)")

    def restarts() -> int:
        return int(scene.get("pod", "second")["status"]["containerStatuses"][0]["restartCount"])

    eventually("a restart", lambda: restarts() == 1)
    eventually("another nonce", lambda: scene.get("pod", "second")["status"].get("podIP"))
    scene.kubectl("wait", "--for=condition=Ready", "pod/second", "--timeout=30s")
    assert scene.nonce("second") != nonce


def test_the_identities_of_controller_and_agent_are_service_accounts(
    cluster: LocalCluster,
) -> None:
    """Neither may do what an administrator may."""
    for account in ("podsnap-controller", "podsnap-agent"):
        user = f"--as=system:serviceaccount:podsnap-system:{account}"
        for verb, kind in (("get", "secrets"), ("create", "pods"), ("update", "nodes")):
            with pytest.raises(Exception, match="auth can-i"):
                cluster.kubectl("auth", "can-i", verb, kind, user, "-A")
    managers = json.loads(cluster.kubectl("get", "lease", "-n", "podsnap-system", "-o", "json"))
    assert {i["metadata"]["name"] for i in managers["items"]} == {
        "podsnap-controller",
        "podsnap-node-node1",
    }
