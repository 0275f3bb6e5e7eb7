# SPDX-License-Identifier: Apache-2.0
"""Pods that do what a test tells them, and what tests ask about their saves."""

import contextlib
from collections.abc import Iterator
from typing import Any

from schemas.snapshot import Snapshot
from tests.cluster_scene import COUNTER, INTERPRETER, Scene, eventually

GRACE = {"terminationGracePeriodSeconds": 15}
NEVER = {**GRACE, "restartPolicy": "Never"}
GATE = {"podsnap.dev/gate": "30s"}
TINY_BUDGET = {"podsnap.dev/probe-budget": "1ms"}
SERVE = "served = globals().get('served', 0) + 1; answer = served"
# Process 1 ends at a signal only if it has a handler, and its grace period is long here.
LISTENER = f"import os, signal\nsignal.signal(15, lambda *_: os._exit(0))\n{INTERPRETER}"
# The answer to the write comes after the save, and in a restored Pod: so a thread waits for it.
WRITE = """
import threading
reads = globals().get('reads', [])
def write():
    with open('/proc/gvisor/checkpoint', 'rb+', buffering=0) as file:
        file.write(b'1')
        reads.append(file.read(64).decode().strip())
threading.Thread(target=write, daemon=True).start()
"""


def told(port: int = 8080, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - parts of a container
    """Return a container that does what it is told."""
    return {
        "name": "counter" if port == 8080 else f"port-{port}",
        "image": COUNTER,
        "imagePullPolicy": "Never",
        "command": ["/usr/bin/python3", "-c", LISTENER, str(port)],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": port}, "periodSeconds": 1},
        **more,
    }


def ballast(mebibytes: int) -> dict[str, Any]:
    """Return a container whose save takes a while."""
    return told(
        command=[
            "/usr/bin/python3",
            "-c",
            f"import os; ballast = os.urandom({mebibytes} << 20)\n{LISTENER}",
            "8080",
        ],
        resources={"limits": {"memory": "2Gi"}},
    )


def memory(scene: Scene, pod: str, port: int = 8080) -> str:
    """Return the nonce that a told container holds in memory."""
    return str(scene.tell(pod, "answer = nonce", port))


def is_paused(scene: Scene) -> bool:
    """Whether a sandbox of the node stands still: runsc writes what the agent paused."""
    find = ["find", "/run/containerd/io.containerd.runtime.v2.task/k8s.io", "-name"]
    paused = scene.cluster.run_in("node1", [*find, "podsnap-paused"]).stdout
    staged = (scene.node_state / "staging").glob("*/checkpoint.img")
    return bool(paused) and any(staged)


def one_available(scene: Scene) -> Snapshot:
    """Wait for a snapshot, which is the only one, and until it can be restored from."""
    eventually("a snapshot", scene.snapshots)
    (snapshot,) = scene.snapshots()
    return scene.wait_available(snapshot.metadata.name)


@contextlib.contextmanager
def staging_disk(scene: Scene, folder: str, options: str) -> Iterator[None]:
    """Give the node another disk for what is being saved."""
    (scene.node_state / "staging" / folder).mkdir(mode=0o700, exist_ok=True)
    place = str(scene.node_state / "staging" / folder)
    scene.cluster.run_in("node1", ["mount", "-t", "tmpfs", "-o", options, "podsnap-test", place])
    try:
        yield
    finally:
        scene.cluster.run_in("node1", ["umount", "--lazy", place])
