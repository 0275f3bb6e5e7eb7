# SPDX-License-Identifier: Apache-2.0
"""Behaviours 18 to 25: which Pod is restored from which snapshot, and what it has then."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from backends.kube.client import POD_SNAPSHOTS, KubeClient
from backends.kube.events import EventRecorder
from localcluster.cluster import LocalCluster
from nodeexec.pod_reports import PodReports
from nodeexec.restore_counts import RestoreCounts
from schemas.pod import Pod
from schemas.snapshot import Snapshot
from tests.cluster.told_pods import memory, told
from tests.cluster_scene import Scene, eventually, new_scene
from tests.component.cluster_world import World
from tests.component.snapshot_bytes import make_snapshot
from tests.contract.policies import BY_TENANT, policy
from tests.pure.stepped_clock import SteppedClock

PS_NAME = "podsnapshot.gke.io/ps-name"


# -- which


@pytest.mark.cluster
@pytest.mark.contract(16, 18, 22, 24)
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
    restored = scene.event("second", "Successfully restored the pod from PodSnapshot")
    assert restored.startswith("Normal")
    assert restored.endswith(name)
    saved = scene.event("first", "Successfully checkpointed the pod")
    assert saved.startswith("Normal")
    assert saved.endswith(f"[{name}]")
    eventually("last access", lambda: scene.snapshot(snapshot.metadata.name).last_access_time)


@pytest.mark.cluster
@pytest.mark.contract(18, 19, 22)
def test_the_newest_snapshot_wins_and_a_pin_chooses_another(scene: Scene) -> None:
    """``ps-name`` takes exactly the named one if it fits; an empty one means never."""
    scene.policy()
    scene.ready_pod("first")
    older = scene.save("first")
    newer = scene.save("first")
    pinned = {PS_NAME: older.metadata.name}
    other = {"command": ["/usr/bin/python3", "-u", "/app/counter.py"]}

    scene.ready_pod("unpinned")
    scene.ready_pod("pinned", annotations=pinned)
    cold = {
        "never": {"annotations": {PS_NAME: ""}},
        "astray": {"annotations": {PS_NAME: "nowhere"}},
        "other-spec": {"annotations": pinned, "container": other},
    }
    for name, changes in cold.items():
        scene.ready_pod(name, **changes)

    assert newer.metadata.name in scene.restored_from("unpinned")
    assert older.metadata.name in scene.restored_from("pinned")
    assert not any(scene.condition("pod", name, "PodRestored") for name in cold)
    assert "does not exist" in scene.event("astray", "falling back to a cold start")
    assert "spec.containers[counter].command" in scene.event("other-spec", "falling back")


@pytest.fixture
def elsewhere(cluster: LocalCluster) -> Iterator[Scene]:
    """Give another namespace."""
    with new_scene(cluster, "elsewhere") as found:
        yield found


@pytest.mark.cluster
@pytest.mark.contract(19)
def test_a_snapshot_of_another_namespace_is_not_there(scene: Scene, elsewhere: Scene) -> None:
    """Its name, its policy and its Pod's spec are the same, and the Pod still starts cold."""
    for each in (scene, elsewhere):
        each.policy()
    elsewhere.ready_pod("first")
    name = elsewhere.save("first").metadata.name

    scene.ready_pod("pinned", annotations={PS_NAME: name})

    assert scene.condition("pod", "pinned", "PodRestored") is None
    assert f"{name}, named by the ps-name annotation, does not exist" in scene.event(
        "pinned", "falling back to a cold start"
    )


@pytest.mark.cluster
@pytest.mark.contract(18)
def test_env_and_resources_may_change_and_the_image_may_not(scene: Scene) -> None:
    """A changed env is found in spec_environ; each field that forbids it is named in the event."""
    scene.policy()
    scene.ready_pod("first")
    scene.save("first")
    nonce = scene.nonce("first")
    tag = ("images", "tag", "--force", "podsnap.local/counter:1", "podsnap.local/counter:other")
    scene.cluster.run_in("node1", scene.cluster.nodes[0].ctr(*tag))
    volume = {"volumes": [{"name": "more", "emptyDir": {}}]}
    misses = {
        "image": {"container": {"image": "podsnap.local/counter:other"}},
        "command": {"container": {"command": ["/usr/bin/python3", "-u", "/app/counter.py"]}},
        "args": {"container": {"args": ["--port", "8080"]}},
        "volumeMounts": {
            "spec": volume,
            "container": {"volumeMounts": [{"name": "more", "mountPath": "/more"}]},
        },
        "securityContext": {"container": {"securityContext": {"runAsUser": 0}}},
    }

    env = {"env": [{"name": "COLOUR", "value": "green"}]}
    probe = {"tcpSocket": {"port": 8080}, "periodSeconds": 2}
    node = {"nodeSelector": {"kubernetes.io/os": "linux"}}
    limits = {"resources": {"limits": {"memory": "300Mi"}}}
    scene.ready_pod("other-env", container={**env, **limits, "readinessProbe": probe}, spec=node)
    for field, changes in misses.items():
        scene.pod(field.lower(), **changes)

    assert scene.nonce("other-env") == nonce
    environ = scene.kubectl("exec", "other-env", "--", "cat", "/proc/gvisor/spec_environ")
    assert "COLOUR=green" in environ.split("\0")
    for field in misses:
        scene.wait_ready(field.lower())
        assert scene.restored_from(field.lower()) == ""
        told_of = scene.event(field.lower(), "falling back to a cold start")
        assert f"spec.containers[counter].{field}" in told_of


@pytest.mark.cluster
@pytest.mark.contract(20)
def test_a_pod_is_restored_from_its_own_group_only(scene: Scene) -> None:
    """The older snapshot of its group is taken before the newer one of another."""
    policy(scene, **BY_TENANT)
    groups = {"one": {"tenant": "one"}, "two": {"tenant": "two"}}
    for group, labels in groups.items():
        scene.ready_pod(f"first-{group}", labels=labels)
        scene.save(f"first-{group}")
    nonces = {group: scene.nonce(f"first-{group}") for group in groups}
    assert nonces["one"] != nonces["two"]

    for group, labels in groups.items():
        scene.ready_pod(f"second-{group}", labels=labels)
    scene.ready_pod("second-three", labels={"tenant": "three"})
    scene.ready_pod("second-none")

    assert {group: scene.nonce(f"second-{group}") for group in groups} == nonces
    for pod in ("second-three", "second-none"):
        assert scene.nonce(pod) not in nonces.values()
        assert "its group is" in scene.event(pod, "falling back to a cold start")


# -- what a restored Pod has

BEFORE = """
import os, socket, threading, time
listening = socket.create_server(("0.0.0.0", 9001))
unix = socket.socket(socket.AF_UNIX)
unix.bind("/tmp/unix")
unix.listen()
near = socket.socket(socket.AF_UNIX)
near.connect("/tmp/unix")
far = unix.accept()[0]
outside = socket.create_connection(("OUTSIDE", PORT))
outside.settimeout(5)
"""
AFTER = """
far.sendall(b"still here")
fresh = socket.socket(socket.AF_UNIX)
fresh.connect("/tmp/unix")
unix.accept()[0].sendall(b"accepted")
try:
    outside.sendall(b"x")
    state = outside.recv(10) and "open" or "closed"
except OSError as error:
    state = "open" if isinstance(error, TimeoutError) else "closed"
environ = open("/proc/gvisor/spec_environ").read().split(chr(0))
answer = {
    "unix": [near.recv(20).decode(), fresh.recv(20).decode()],
    "outside": state,
    "hostname": socket.gethostname(),
    "clock": time.time(),
    "colour": [os.environ["COLOUR"], [e for e in environ if e.startswith("COLOUR=")]],
}
"""


def coloured(colour: str) -> dict[str, object]:
    """Return a container that does what it is told, with an environment."""
    return told(env=[{"name": "COLOUR", "value": colour}])


@pytest.mark.cluster
@pytest.mark.contract(21)
def test_a_restored_pod_has_its_own_identity_and_the_saved_ones_memory(scene: Scene) -> None:
    """Address, name, clock and environment are new; sockets inside live, those outside do not."""
    server = socket.create_server((str(scene.cluster.network.gateway), 0))
    with server:
        host, port = server.getsockname()
        scene.policy()
        scene.ready_pod("first", container=coloured("red"))
        scene.tell("first", BEFORE.replace("OUTSIDE", host).replace("PORT", str(port)))
        scene.save("first")
        scene.ready_pod("second", container=coloured("green"))
        began_s = time.time()
        seen = scene.tell("second", AFTER)
        ended_s = time.time()
    address = Pod.parse(scene.get("pod", "second")).pod_ip
    with socket.create_connection((address, 9001), timeout=5) as connection:
        scene.tell("second", "taken = listening.accept()[0]; taken.sendall(b'welcome')")
        assert connection.recv(16) == b"welcome"

    assert memory(scene, "second") == memory(scene, "first")
    assert address != Pod.parse(scene.get("pod", "first")).pod_ip
    assert began_s - 0.2 < seen.pop("clock") < ended_s + 0.2
    assert seen == {
        "unix": ["still here", "accepted"],
        "outside": "closed",
        "hostname": "second",
        "colour": ["red", ["COLOUR=green"]],
    }


# -- where and how many


@contextmanager
def described_as(scene: Scene, line: str) -> Iterator[None]:
    """Have the node's agent say something else of its node."""
    settings = scene.cluster.nodes[0].agent_settings
    agent = scene.cluster.component("node1", "agent")
    before = settings.read_text(encoding="utf-8")

    def write(text: str) -> None:
        agent.stop()
        settings.write_text(text, encoding="utf-8")
        agent.start()
        scene.wait_for_agent()

    try:
        write(f"{before}{line}\n")
        yield
    finally:
        write(before)


@pytest.mark.cluster
@pytest.mark.contract(23, injected="the machine series")
def test_a_node_of_another_machine_series_is_a_cold_start(scene: Scene) -> None:
    """What the agent says of its node decides; the reason names both series, and nothing loops."""
    scene.policy()
    scene.ready_pod("first")
    scene.save("first")
    with described_as(scene, 'machine_series = "n2"'):
        scene.ready_pod("second")

        told_of = scene.event("second", "falling back to a cold start")
        assert told_of.startswith("Warning")
        assert "the machine series is n2 on this node" in told_of
        assert scene.restored_from("second") == ""
        assert scene.nonce("second") != scene.nonce("first")
        assert scene.container("second")["restartCount"] == 0
    scene.ready_pod("third")
    assert scene.restored_from("third")


@pytest.mark.contract(24)
def test_every_restore_is_in_the_last_access_within_a_minute(
    world: World, agent_client: KubeClient
) -> None:
    """A hundred restores at once are one write, and the last of them is not forgotten."""
    world.make_bucket()
    make_snapshot(world, agent_client, "saved")
    clock = SteppedClock()
    events = EventRecorder(agent_client, component="tests", instance="node")
    reports = PodReports(agent_client, events, clock)
    counts = RestoreCounts(reports, node="node", clock=clock)

    def saved() -> Snapshot:
        return Snapshot.parse(world.get(POD_SNAPSHOTS, "saved") or {})

    assert saved().last_access_time == ""
    counts.restored(saved())
    assert saved().last_access_time == "2026-01-01T00:00:00Z"
    clock.step(30)
    counts.restored(saved())
    assert saved().last_access_time == "2026-01-01T00:00:00Z"
    clock.step(31)
    counts.flush()
    assert saved().last_access_time == "2026-01-01T00:00:30Z"


@pytest.mark.cluster
@pytest.mark.contract(25)
def test_several_pods_restore_from_one_image_at_a_time(scene: Scene) -> None:
    """Running Pods are never touched, and the image is shared."""
    scene.policy()
    scene.ready_pod("first")
    scene.save("first")
    before = scene.ask("first")

    names = [f"clone-{n}" for n in range(4)]
    for name in names:
        scene.pod(name)
    for name in names:
        scene.wait_ready(name)

    assert {scene.nonce(name) for name in ["first", *names]} == {before["nonce"]}
    assert all(scene.restored_from(name) for name in names)
    assert scene.ask("first")["count"] >= before["count"]
    assert {scene.container(name)["restartCount"] for name in ["first", *names]} == {0}
