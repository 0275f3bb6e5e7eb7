# SPDX-License-Identifier: Apache-2.0
"""What a restored Pod has of the saved one, and what is its own.

One Pod with two containers and a sidecar, filled with every kind of state, is saved once; the tests
look at one restored from it. Its containers run the Python they are sent, so each test says what it
puts in (``BEFORE``) beside what it finds.
"""

import base64
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from localcluster.cluster import LocalCluster
from schemas.pod import Pod
from schemas.snapshot import Snapshot
from statemachine.trace import restore_traceparent
from tests.cluster_scene import COUNTER, INTERPRETER, Scene, eventually, new_scene

pytestmark = pytest.mark.cluster

FRONT, BACK, SIDECAR = 8080, 8081, 8082

# In the second container: three servers, each connection with a count of its own.
BACK_BEFORE = """
import mmap
def talk(connection):
    for n, _ in enumerate(connection.makefile("rb"), 1):
        connection.sendall(f"{nonce} {n}\\n".encode())
def serve(server):
    while True:
        threading.Thread(target=talk, args=(server.accept()[0],), daemon=True).start()
import os, socket, threading
for address in ("/shared/back.sock", "\\0back"):
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    threading.Thread(target=serve, args=(server,), daemon=True).start()
server = socket.create_server(("127.0.0.1", 9000))
threading.Thread(target=serve, args=(server,), daemon=True).start()

open("/shared/note", "w").write("in a shared file")
open("/memory/page", "wb").write(bytes(4096))
page = mmap.mmap(os.open("/memory/page", os.O_RDWR), 4096)
"""

# In the first container: connections to those, open files, a route, everything read once.
FRONT_BEFORE = """
import mmap, os, socket, struct, threading
def dial(family, address):
    connection = socket.socket(family)
    connection.connect(address)
    return connection.makefile("rw")
def say(connection):
    connection.write("hello\\n")
    connection.flush()
    return connection.readline().split()
addresses = {
    "unix": (socket.AF_UNIX, "/shared/back.sock"),
    "abstract": (socket.AF_UNIX, "\\0back"),
    "loopback": (socket.AF_INET, ("127.0.0.1", 9000)),
}
dialled = {name: dial(*where) for name, where in addresses.items()}
answer = {name: say(connection) for name, connection in dialled.items()}

log = open("/shared/log", "w+")
log.write("before "); log.flush()
gone = open("/shared/gone", "w+")
gone.write("no name, still there"); gone.flush()
os.unlink("/shared/gone")
open("/root-note", "w").write("in the root file system")
page = mmap.mmap(os.open("/memory/page", os.O_RDWR), 4096)
page[:5] = b"first"

def read(path):
    with open(path) as file:
        return file.read()
words = ["/settings/word", "/settings-word", "/secret/word", "/secret-word", "/token/token"]
seen = {path: read(path) for path in words}

print("said before the save", flush=True)
idle = socket.create_server(("0.0.0.0", 9001))
outside = socket.create_connection(("OUTSIDE", PORT))
outside.settimeout(5)

def attribute(kind, data):
    return struct.pack("=HH", 4 + len(data), kind) + data
def request(kind, body):  # of rtnetlink: create, and acknowledge
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.bind((0, 0))
        netlink.send(struct.pack("=IHHII", 16 + len(body), kind, 0x605, 1, 0) + body)
        return struct.unpack_from("=i", netlink.recv(4096), 16)[0]
gateway = next(l.split()[2] for l in open("/proc/net/route") if l.split()[1] == "00000000")
link = struct.pack("=I", socket.if_nametoindex("eth0"))
net = attribute(1, socket.inet_aton("203.0.113.0"))
via = attribute(5, struct.pack("=I", int(gateway, 16))) + attribute(4, link)
route = request(24, struct.pack("=BBBBBBBBI", 2, 24, 0, 0, 254, 4, 0, 1, 0) + net + via)
own = attribute(2, socket.inet_aton("203.0.113.7")) + attribute(1, socket.inet_aton("203.0.113.7"))
address = request(20, struct.pack("=BBBBI", 2, 32, 0, 0, 0)[:4] + link + own)
"""

ASK_OUTSIDE = """
try:
    outside.sendall(b"x")
    answer = outside.recv(10).decode() or "closed"
except TimeoutError:
    answer = "open"
except OSError:
    answer = "closed"
"""


def _program(name: str, port: int) -> dict[str, Any]:
    return {
        "name": name,
        "image": COUNTER,
        "imagePullPolicy": "Never",
        "command": ["/usr/bin/python3", "/program/interpreter.py", str(port)],
        "readinessProbe": _probe("/ready", port),
        "volumeMounts": [{"name": "program", "mountPath": "/program"}],
    }


def _probe(path: str, port: int) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": port}, "periodSeconds": 1, "timeoutSeconds": 5}


def pod_spec(memory: str) -> dict[str, Any]:
    """Return the Pod's spec; only the front container's memory differs between Pods."""
    small = {"requests": {"memory": "32Mi"}, "limits": {"memory": "128Mi"}}
    front, back = _program("front", FRONT), _program("back", BACK)
    back["volumeMounts"] += [
        {"name": "shared", "mountPath": "/shared"},
        {"name": "memory", "mountPath": "/memory"},
    ]
    mounts = [
        *back["volumeMounts"],
        {"name": "settings", "mountPath": "/settings"},
        {"name": "settings", "mountPath": "/settings-word", "subPath": "word"},
        {"name": "secret", "mountPath": "/secret"},
        {"name": "secret", "mountPath": "/secret-word", "subPath": "word"},
        {"name": "token", "mountPath": "/token"},
        {"name": "data", "mountPath": "/data"},
    ]
    token = {"serviceAccountToken": {"path": "token", "expirationSeconds": 7200}}
    return {
        "initContainers": [
            {**_program("sidecar", SIDECAR), "restartPolicy": "Always", "resources": small}
        ],
        "containers": [
            {
                **front,
                "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}},
                "resources": {"requests": {"memory": memory}, "limits": {"memory": memory}},
                "volumeMounts": mounts,
                "env": [{"name": "MEMORY", "value": memory}, {"name": "TRACEPARENT", "value": ""}],
            },
            {
                **back,
                "resources": small,
            },
        ],
        "volumes": [
            {"name": "program", "configMap": {"name": "program"}},
            {"name": "shared", "emptyDir": {}},
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
            {"name": "settings", "configMap": {"name": "settings"}},
            {"name": "secret", "secret": {"secretName": "secret"}},
            {"name": "token", "projected": {"sources": [token]}},
            {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
        ],
    }


@dataclass(slots=True)
class Story:
    """The saved Pod, what it knew, and the scene; ``second`` is restored from it."""

    scene: Scene
    snapshot: Snapshot
    volume: Path
    marker: str
    nonces: dict[int, str]
    seen: dict[str, str]
    address: str
    outside: socket.socket

    def second(self, statements: str, port: int = FRONT) -> Any:  # noqa: ANN401 - JSON
        """Tell the restored Pod."""
        return self.scene.tell("second", statements, port)

    def restore(self, name: str, spec: dict[str, Any] | None = None) -> None:
        """Make one more Pod from the snapshot."""
        self.scene.ready_pod(name, spec=spec or pod_spec("64Mi"))
        assert self.scene.restored_from(name), self.scene.events(name)


def config_map(scene: Scene, name: str, data: dict[str, str]) -> None:
    """Write a ConfigMap."""
    common = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
    scene.apply({**common, "data": data})


def write_words(scene: Scene, word: str) -> None:
    """Write the ConfigMap and the Secret."""
    config_map(scene, "settings", {"word": word})
    common = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "secret"}}
    scene.apply({**common, "stringData": {"word": word}})


def claim_volume(scene: Scene, directory: Path) -> None:
    """Make a persistent volume of a directory of the node and bind the claim ``data`` to it.

    Done by hand: the local cluster runs neither the binder nor what takes finalizers off again.
    """
    size, name = {"storage": "1Mi"}, scene.namespace
    common = {"accessModes": ["ReadWriteOnce"], "storageClassName": ""}
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data", "annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {**common, "volumeName": name, "resources": {"requests": size}},
    }
    scene.apply(claim)
    bound = {"namespace": name, "name": "data", "uid": scene.get("pvc", "data")["metadata"]["uid"]}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            **common,
            "capacity": size,
            "hostPath": {"path": str(directory)},
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **bound},
        },
    }
    scene.cluster.kubectl("apply", "-f", "-", text=json.dumps(volume))
    for what in ("pvc/data", f"pv/{name}"):
        patch = ("patch", what, "--type=merge")
        scene.kubectl(*patch, "-p", '{"metadata": {"finalizers": null}}')
        phase = '{"status": {"phase": "Bound"}}'
        scene.kubectl(*patch, "--subresource=status", "-p", phase)


def give_next(cluster: LocalCluster, address: str) -> None:
    """Make a Pod's address the next one that its node gives: the node goes on from the last."""
    before = str(IPv4Address(address) - 1)
    file = "/run/cni-addresses/podsnap/last_reserved_ip.0"
    cluster.run_in("node1", ["/bin/sh", "-c", f"printf {before} > {file}"])
    # The node remembers the old Pod's hardware address, and no Pod at all could be reached.
    cluster.run_in("node1", ["ip", "neighbour", "flush", "dev", "pods"])


@pytest.fixture(scope="module")
def story(cluster: LocalCluster) -> Iterator[Story]:
    """Save the Pod with everything in it, change what it mounts, restore another."""
    volume = cluster.state_dir / "restored-pods"
    volume.mkdir(exist_ok=True)
    marker = os.urandom(16).hex()
    (volume / "file").write_text(marker)
    server = socket.create_server((str(cluster.network.gateway), 0))
    with new_scene(cluster, "restored-pods") as scene, server:
        try:
            claim_volume(scene, volume)
            config_map(scene, "program", {"interpreter.py": INTERPRETER})
            write_words(scene, "old")
            scene.policy()
            scene.ready_pod("first", spec=pod_spec("64Mi"))
            scene.tell("first", BACK_BEFORE, BACK)
            host, port = server.getsockname()
            before = FRONT_BEFORE.replace("OUTSIDE", host).replace("PORT", str(port))
            scene.tell("first", before)
            outside, _ = server.accept()
            seen = scene.tell("first", "answer = [seen, route, address]")
            assert seen[1:] == [0, 0]
            nonces = {p: scene.tell("first", "answer = nonce", p) for p in (FRONT, BACK, SIDECAR)}
            snapshot = scene.save("first")
            address = Pod.parse(scene.get("pod", "first")).pod_ip
            write_words(scene, "new")
            (volume / "file").write_text("changed since")
            with outside:
                found = Story(scene, snapshot, volume, marker, nonces, seen[0], address, outside)
                scene.ready_pod("second", spec=pod_spec("512Mi"))
                yield found
        finally:
            cluster.kubectl("delete", "pv", scene.namespace, "--wait=false", "--ignore-not-found")


@pytest.mark.contract(21)
def test_every_container_goes_on_in_its_memory(story: Story) -> None:
    """Two containers and a sidecar, one image."""
    assert story.scene.restored_from("second")
    for port, nonce in story.nonces.items():
        assert story.second("answer = nonce", port) == nonce
    assert len(set(story.nonces.values())) == 3


def test_files_inside_the_pod_come_back_and_stay_shared(story: Story) -> None:
    """The root file system, an emptyDir, an open file, one without a name, a shared mapping."""
    assert story.second("answer = read('/root-note')") == "in the root file system"
    assert story.second("answer = read('/shared/note')") == "in a shared file"
    story.second("log.write('after'); log.flush()")
    assert story.second("answer = open('/shared/log').read()", BACK) == "before after"
    assert story.second("gone.seek(0); answer = gone.read()") == "no name, still there"


def test_a_tmpfs_emptydir_comes_back_and_stays_shared(story: Story) -> None:
    """``medium: Memory``: both containers still map the same page."""
    assert story.second("answer = page[:5].decode()", BACK) == "first"
    story.second("page[:5] = b'again'")
    assert story.second("answer = page[:5].decode()", BACK) == "again"


@pytest.mark.contract(21)
@pytest.mark.parametrize("kind", ["unix", "abstract", "loopback"])
def test_a_connection_between_containers_stays_open(story: Story, kind: str) -> None:
    """The server counted one line before the save; a new connection begins at one."""
    count = int(story.second(f"answer = say(dialled[{kind!r}])")[1])
    assert count == 2
    fresh = story.second(f"answer = say(dial(*addresses[{kind!r}]))")
    assert fresh == [story.nonces[BACK], "1"]


@pytest.mark.contract(21)
def test_a_listening_socket_accepts_on_the_new_address(story: Story) -> None:
    """Nobody had connected to it before."""
    address = Pod.parse(story.scene.get("pod", "second")).pod_ip
    with socket.create_connection((address, 9001), timeout=5) as connection:
        story.second("taken = idle.accept()[0]; taken.sendall(b'welcome')")
        assert connection.recv(16) == b"welcome"


@pytest.mark.parametrize(
    "path", ["/settings/word", "/settings-word", "/secret/word", "/secret-word"]
)
def test_a_configmap_and_a_secret_are_the_new_pods(story: Story, path: str) -> None:
    """Whole volumes and subPaths; both were changed after the save."""
    assert story.seen[path] == "old"
    assert story.second(f"answer = read({path!r})") == "new"


def test_a_projected_token_is_the_new_pods(story: Story) -> None:
    """It names the Pod that it was made for."""

    def pod_in(token: str) -> str:
        claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
        return str(claims["kubernetes.io"]["pod"]["name"])

    assert pod_in(story.seen["/token/token"]) == "first"
    assert pod_in(story.second("answer = read('/token/token')")) == "second"


def test_a_persistent_volume_is_attached_again_and_not_in_the_image(story: Story) -> None:
    """The Pod sees what the volume holds now, and writes to it."""
    assert story.second("answer = read('/data/file')") == "changed since"
    story.second("open('/data/file', 'w').write('written by second')")
    assert (story.volume / "file").read_text() == "written by second"
    parts = sorted((story.scene.bucket / story.snapshot.metadata.name).iterdir())
    image = b"".join(part.read_bytes() for part in parts)
    assert b"in a shared file" in image  # what is in the image can be found
    assert story.marker.encode() not in image


def test_another_memory_request_and_limit_restore_and_apply(story: Story) -> None:
    """A Burstable Pod with eight times the memory; its control group has the new limit."""
    pod = story.scene.get("pod", "second")
    assert pod["status"]["qosClass"] == "Burstable"
    names = ("memory.limit_in_bytes", "memory.max")
    uid = pod["metadata"]["uid"]
    root = Path("/sys/fs/cgroup")
    limits = {int(f.read_text()) for n in names for f in root.rglob(f"*{uid}/{n}")}
    assert limits == {(512 + 128 + 128) << 20}
    assert story.scene.restored_from("second")


@pytest.mark.contract(21)
def test_name_address_and_environment_are_the_new_pods(story: Story) -> None:
    """The environment is read from ``spec_environ``: a process keeps the one it started with."""
    assert story.second("answer = socket.gethostname()") == "second"
    assert story.second("answer = read('/etc/hostname')") == "second\n"
    address = Pod.parse(story.scene.get("pod", "second")).pod_ip
    assert address != story.address
    assert f"{address}\tsecond" in story.second("answer = read('/etc/hosts')")
    environ = story.second("answer = read('/proc/gvisor/spec_environ')").split("\0")
    assert "MEMORY=512Mi" in environ
    assert story.second("answer = os.environ['MEMORY']") == "64Mi"


def test_a_pod_that_asks_for_it_joins_the_trace_of_its_restore(story: Story) -> None:
    """By an empty variable in its spec; a Pod that started cold has nothing to join."""
    environ = story.second("answer = read('/proc/gvisor/spec_environ')").split("\0")
    uid = story.scene.get("pod", "second")["metadata"]["uid"]
    assert f"TRACEPARENT={restore_traceparent(story.snapshot, uid)}" in environ
    assert story.second("answer = os.environ['TRACEPARENT']") == ""


def test_a_pods_own_routes_and_addresses_are_gone(story: Story) -> None:
    """The network is the new Pod's as its node made it."""
    routes = story.second("answer = [l.split()[1] for l in open('/proc/net/route')][1:]")
    assert sorted(routes) == sorted({*routes} - {"007100CB", "077100CB"})
    assert len(routes) == 2  # the Pods' own network, and the default


def test_logs_begin_with_the_restore(story: Story) -> None:
    """What the saved Pod said is in its own log."""
    story.second("print('said after the restore', flush=True)")

    def logs(pod: str) -> str:
        return story.scene.kubectl("logs", pod, "-c", "front")

    eventually("a line in the log", lambda: "said after the restore" in logs("second"))
    assert "said before the save" in logs("first")
    assert "said before the save" not in logs("second")


@pytest.mark.parametrize("name", ["front", "back", "sidecar"])
def test_exec_works_in_each_container(story: Story, name: str) -> None:
    """A new process, with the new Pod's environment."""
    ran = story.scene.kubectl("exec", "second", "-c", name, "--", "cat", "/proc/self/environ")
    assert "HOSTNAME=second" in ran.split("\0")


def test_a_readiness_probe_decides_on_a_restored_pod(story: Story) -> None:
    """It fails and passes as the program says."""

    def ready() -> bool:
        return story.scene.is_true("pod", "second", "Ready")

    story.second("ready = 503")
    eventually("not Ready", lambda: not ready())
    story.second("ready = 200")
    eventually("Ready", ready)


def test_a_container_whose_liveness_probe_fails_starts_afresh_and_the_others_go_on(
    story: Story,
) -> None:
    """It mounts no emptyDir, so the sandbox stays."""
    scene = story.scene
    spec = pod_spec("64Mi")
    # A container that starts afresh takes its time, a restored one answers at once.
    liveness = {**_probe("/alive", SIDECAR), "initialDelaySeconds": 5}
    spec["initContainers"][0]["livenessProbe"] = liveness
    story.restore("third", spec)

    scene.tell("third", "alive = 500", SIDECAR)
    eventually("a restart", lambda: scene.container("third", "sidecar")["restartCount"])
    eventually("Ready", lambda: scene.is_true("pod", "third", "Ready"))

    nonces = {port: scene.tell("third", "answer = nonce", port) for port in story.nonces}
    assert {p for p in nonces if nonces[p] == story.nonces[p]} == {FRONT, BACK}
    read = "answer = open('/shared/note').read()"
    assert scene.tell("third", read) == scene.tell("third", read, BACK) == "in a shared file"


def test_a_container_with_an_emptydir_that_crashes_starts_the_pod_afresh(story: Story) -> None:
    """A new container could not share it with restored ones; so all start cold, and are told."""
    scene = story.scene
    story.restore("fourth")

    with pytest.raises((OSError, HTTPException)):
        scene.tell("fourth", "import os; os._exit(1)", BACK)
    told = scene.event("fourth", "falling back to a cold start")
    scene.kubectl("wait", "--for=condition=Ready", "pod/fourth", "--timeout=60s")

    assert "container back was to be made anew" in told
    nonces = {port: scene.tell("fourth", "answer = nonce", port) for port in story.nonces}
    assert not {*nonces.values()} & {*story.nonces.values()}
    scene.tell("fourth", "open('/shared/word', 'w').write('shared')")
    assert scene.tell("fourth", "answer = open('/shared/word').read()", BACK) == "shared"


@pytest.mark.contract(21)
def test_a_connection_to_the_outside_is_closed(story: Story) -> None:
    """Another address, so nothing of it could work."""
    assert story.second(ASK_OUTSIDE) == "closed"


@pytest.mark.contract(21)
def test_a_connection_to_the_outside_is_closed_though_the_address_is_the_same(
    story: Story,
) -> None:
    """The saved Pod died without a word, so the peer still holds its end open."""
    cluster = story.scene.cluster
    silence = ["from", story.address, "blackhole"]
    cluster.run_in("node1", ["ip", "rule", "add", *silence])
    story.scene.delete("first")
    cluster.run_in("node1", ["ip", "rule", "del", *silence])
    story.outside.setblocking(False)
    with pytest.raises(BlockingIOError):
        story.outside.recv(1)
    give_next(cluster, story.address)
    story.restore("reborn")

    assert Pod.parse(story.scene.get("pod", "reborn")).pod_ip == story.address
    assert story.scene.tell("reborn", ASK_OUTSIDE) == "closed"


# A Pod that was saved with a file of a ConfigMap's volume held open.
HELD_OPEN = "held = open('/program/interpreter.py')"


def test_a_configmap_file_held_open_costs_the_restore_and_not_the_pod(scene: Scene) -> None:
    """The kubelet gives each Pod's volume a folder of its own, so the open one is not there."""
    spec = {"containers": [_program("counter", FRONT)], "volumes": pod_spec("64Mi")["volumes"][:1]}
    config_map(scene, "program", {"interpreter.py": INTERPRETER})
    scene.policy()
    scene.ready_pod("first", spec=spec)
    scene.tell("first", HELD_OPEN)
    snapshot = scene.save("first")

    scene.ready_pod("second", spec=spec)

    assert scene.restored_from("second") == ""
    assert snapshot.metadata.name in scene.event("second", "falling back to a cold start")
    assert scene.tell("first", "answer = nonce") != scene.tell("second", "answer = nonce")
