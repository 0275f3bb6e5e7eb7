# SPDX-License-Identifier: Apache-2.0
"""A Pod saved by a trigger, and what its successors are."""

import contextlib
import json

import pytest

from localcluster.cluster import ClusterError, LocalCluster
from tests.cluster_scene import Scene, eventually

pytestmark = pytest.mark.cluster


def test_a_new_pod_goes_on_where_the_saved_one_was(scene: Scene) -> None:
    """Same memory, own identity, told before anybody sees the Pod Ready."""
    scene.policy()
    scene.ready_pod("first")
    snapshot = scene.save("first")
    before = scene.ask("first")

    second = scene.ready_pod("second")
    after = scene.ask("second")

    assert before["nonce"] == after["nonce"]
    assert after["hostname"] == "second"
    assert second.pod.pod_ip != scene.get("pod", "first")["status"]["podIP"]
    assert second.restored_when_ready
    assert snapshot.metadata.name in scene.restored_from("second")
    name = f"{scene.namespace}/{snapshot.metadata.name}"
    assert scene.event("second", "Successfully restored the pod from PodSnapshot").endswith(name)
    assert scene.event("first", "Successfully checkpointed the pod").endswith(f"[{name}]")
    eventually("last access", lambda: scene.snapshot(snapshot.metadata.name).last_access_time)


def test_the_snapshot_object_is_what_the_contract_says(scene: Scene) -> None:
    """UUID name, labels, annotations, finalizer, path of the bytes, five states by name."""
    scene.policy()
    scene.ready_pod("first")
    snapshot = scene.save("first")

    raw = scene.get("ps", snapshot.metadata.name)

    assert raw["metadata"]["finalizers"] == ["podsnapshot.gke.io/podsnapshot-finalizer"]
    assert raw["metadata"]["annotations"]["podsnapshot.gke.io/origin-pod"] == "first"
    assert raw["metadata"]["annotations"]["podsnapshot.gke.io/origin-node"] == "node1"
    assert raw["metadata"]["labels"]["gke-pod-snapshot-triggered-by"] == "trigger-1"
    assert snapshot.observed_path == f"gs://{scene.namespace}/{snapshot.metadata.name}"
    assert {"checkpoint.img", "pages.img", "pages_meta.img", "metadata", "manifest.json"} == {
        name.partition("/")[2] for name in scene.stored()
    }
    assert [e.state for e in snapshot.control.story] == [
        "Pending",
        "Checkpointing",
        "Uploading",
        "AllSnapshotsAvailable",
    ]
    columns = scene.kubectl("get", "ps").splitlines()[1].split()
    assert columns[:3] == [snapshot.metadata.name, "AllSnapshotsAvailable", "policy"]


def test_the_newest_snapshot_wins_and_a_pin_chooses_another(scene: Scene) -> None:
    """``ps-name`` takes exactly the named one; an empty one means never."""
    scene.policy()
    scene.ready_pod("first")
    older = scene.save("first")
    newer = scene.save("first")

    scene.ready_pod("unpinned")
    pin = {"podsnapshot.gke.io/ps-name": older.metadata.name}
    scene.ready_pod("pinned", annotations=pin)
    scene.ready_pod("never", annotations={"podsnapshot.gke.io/ps-name": ""})
    scene.ready_pod("astray", annotations={"podsnapshot.gke.io/ps-name": "nowhere"})

    assert newer.metadata.name in scene.restored_from("unpinned")
    assert older.metadata.name in scene.restored_from("pinned")
    assert scene.restored_from("never") == ""
    assert scene.restored_from("astray") == ""
    assert "does not exist" in scene.event("astray", "falling back to a cold start")


def test_env_and_resources_may_change_and_the_image_may_not(scene: Scene) -> None:
    """A changed env is found in spec_environ; a changed image is named in the event."""
    scene.policy()
    scene.ready_pod("first")
    scene.save("first")
    nonce = scene.nonce("first")
    scene.cluster.run_in(
        "node1",
        scene.cluster.nodes[0].ctr(
            "images", "tag", "--force", "podsnap.local/counter:1", "podsnap.local/counter:other"
        ),
    )

    env = {"env": [{"name": "COLOUR", "value": "green"}]}
    scene.ready_pod("other-env", container={**env, "resources": {"limits": {"memory": "300Mi"}}})
    scene.ready_pod("other-image", container={"image": "podsnap.local/counter:other"})

    assert scene.nonce("other-env") == nonce
    environ = scene.kubectl("exec", "other-env", "--", "cat", "/proc/gvisor/spec_environ")
    assert "COLOUR=green" in environ.split("\0")
    assert scene.restored_from("other-image") == ""
    assert "spec.containers[counter].image" in scene.event("other-image", "falling back")


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


def test_a_workload_saves_itself_and_each_reader_learns_what_it_is(scene: Scene) -> None:
    """The saved Pod reads ``resume``, a restored one ``restore``."""
    script = (
        "import http.server,json,os,socket,threading\n"
        "state={'nonce':os.urandom(8).hex(),'read':''}\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "  def do_GET(self):\n"
        "    b=json.dumps({**state,'hostname':socket.gethostname()}).encode()\n"
        "    self.send_response(200); self.send_header('Content-Length',str(len(b)))\n"
        "    self.end_headers(); self.wfile.write(b)\n"
        "s=http.server.ThreadingHTTPServer(('0.0.0.0',8080),H)\n"
        "threading.Thread(target=s.serve_forever,daemon=True).start()\n"
        "f=open('/proc/gvisor/checkpoint','rb+',buffering=0)\n"
        "f.write(b'1'); state['read']=f.read(64).decode().strip()\n"
        "threading.Event().wait()\n"
    )
    container = {"command": ["/usr/bin/python3", "-c", script]}
    scene.policy("workload")
    scene.ready_pod("first", container=container)
    waiting = eventually("a snapshot object", scene.snapshots)[0]
    scene.wait_available(waiting.metadata.name)

    scene.ready_pod("second", container=container)

    eventually("the source's answer", lambda: scene.ask("first")["read"] == "resume")
    eventually("the clone's answer", lambda: scene.ask("second")["read"] == "restore")
    assert scene.nonce("first") == scene.nonce("second")
    assert len(scene.snapshots()) == 1


def test_a_manual_policy_gives_the_workload_no_trigger(scene: Scene) -> None:
    """Writing has no effect where the policy does not ask for it (contract, 12, 13)."""
    scene.policy()
    scene.ready_pod("first")

    script = "open('/proc/gvisor/checkpoint','r+').write('1')"
    with pytest.raises(Exception, match="Permission"):
        scene.kubectl("exec", "first", "--", "/usr/bin/python3", "-c", script)

    assert scene.snapshots() == []


def test_deleting_a_snapshot_deletes_its_bytes_even_without_policy(scene: Scene) -> None:
    """The place of the bytes is recorded, so nothing else has to exist any more."""
    scene.policy()
    scene.ready_pod("first")
    snapshot = scene.save("first")
    assert scene.stored()
    scene.kubectl("delete", "psp", "policy")
    scene.kubectl("delete", "pssc", scene.namespace)
    eventually(
        "Obsolete",
        lambda: (
            (scene.condition("ps", snapshot.metadata.name, "Ready") or {})["reason"] == "Obsolete"
        ),
    )

    scene.kubectl("delete", "ps", snapshot.metadata.name, "--wait", "--timeout=30s")

    assert scene.stored() == set()


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


def test_several_pods_restore_from_one_image_at_a_time(scene: Scene) -> None:
    """Running Pods are never touched, and the image is shared."""
    scene.policy()
    scene.ready_pod("first")
    scene.save("first")

    names = [f"clone-{n}" for n in range(4)]
    for name in names:
        scene.pod(name)
    for name in names:
        scene.wait_ready(name)

    assert {scene.nonce(name) for name in ["first", *names]} == {scene.nonce("first")}


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
