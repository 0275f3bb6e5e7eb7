# SPDX-License-Identifier: Apache-2.0
"""A scene in which processes are held and killed, and what must hold whoever was killed.

A step is reached by stopping (SIGSTOP) the process that would go past it, so nothing here depends
on being fast. Looks go to disk or over one connection to the API, because a kubectl for each look
would be the busiest process of the machine; while the API server is dead, a look sees nothing.
"""

import contextlib
import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import requests

from backends.kube.client import (
    POD_SNAPSHOT_MANUAL_TRIGGERS,
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    POD_SNAPSHOTS,
    PODS,
    KubeClient,
    Resource,
)
from backends.kube.errors import ApiError, NotFound
from backends.objects.interface import StoreError
from backends.objects.localdir import LocalDirStore
from localcluster.cluster import ClusterError
from localcluster.machine import MachineError
from localcluster.node import AGENT_SOCKET, CONTAINERD_STATE, RUNSC_ROOT
from nodeexec.image import digest_file
from nodeexec.manifest_reader import read_manifest
from nodeexec.part_download import DamagedError
from schemas.snapshot import Snapshot
from tests.cluster_scene import Scene
from tests.faults.kill_table import MACHINES

REACH_LIMIT_S = 30.0
# A dead leader's lease runs out within 15 s, a dead API server is back within 10 s; but a call that
# the container runtime never answers ends for the kubelet after two minutes.
CONVERGE_LIMIT_S = 200.0
BALLAST_BYTES = 200 << 20
BALLAST = {
    "command": [
        "/usr/bin/python3",
        "-c",
        f"import os,runpy; ballast=os.urandom({BALLAST_BYTES}); "
        "runpy.run_path('/app/counter.py', run_name='__main__')",
    ],
    "resources": {"limits": {"memory": "1Gi"}},
}
_RESOURCES = {
    "namespace": Resource("", "v1", "namespaces", "Namespace", namespaced=False),
    "node": Resource("", "v1", "nodes", "Node", namespaced=False),
    "pssc": POD_SNAPSHOT_STORAGE_CONFIGS,
    "pod": PODS,
    "ps": POD_SNAPSHOTS,
    "psp": POD_SNAPSHOT_POLICIES,
    "psmt": POD_SNAPSHOT_MANUAL_TRIGGERS,
}

T = TypeVar("T")


def spin(what: str, probe: Callable[[], T], *, limit_s: float = REACH_LIMIT_S) -> T:
    """Return the first true thing that ``probe`` returns, looking as often as the machine can."""
    deadline_s = time.monotonic() + limit_s
    while not (found := probe()):
        assert time.monotonic() < deadline_s, f"not within {limit_s:.0f} s: {what}"
        os.sched_yield()
    return found


def converge(
    what: str,
    probe: Callable[[], T | None],
    *,
    limit_s: float = CONVERGE_LIMIT_S,
    pause_s: float = 0.1,
) -> T:
    """Return the first true thing that ``probe`` returns; an API server that is away is no end."""
    never = threading.Event()
    deadline_s = time.monotonic() + limit_s
    seen: object = None
    while True:
        try:
            found = probe()
            if found:
                return found
        except (ApiError, OSError, ClusterError, requests.RequestException) as error:
            seen = error
        assert time.monotonic() < deadline_s, f"not within {limit_s:.0f} s: {what} ({seen})"
        never.wait(pause_s)


def _processes(*arguments: str) -> Iterator[int]:
    """Yield the host's ids of the processes that have all of these arguments."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
                if set(arguments) <= set(line.split("\0")):
                    yield int(entry.name)


def _is_runsc(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/exe").readlink().name == "runsc"
    return False


@dataclass(slots=True)
class KillScene(Scene):
    """A scene whose looks survive an API server that is away."""

    client: KubeClient = field(kw_only=True)
    answers: dict[str, str] = field(default_factory=dict)

    # -- looks

    def kubectl(self, *arguments: str, text: str = "") -> str:
        """Run kubectl, again if the API server has just been killed."""
        return converge(
            f"kubectl {' '.join(arguments)}",
            lambda: self.cluster.kubectl("-n", self.namespace, *arguments, text=text) or " ",
            limit_s=30,
        )

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return an object."""
        return self.client.get(_RESOURCES[kind], name, namespace=self._namespace_of(kind))

    def exists(self, kind: str, name: str) -> bool:
        """Whether an object is still there, deleted or not."""
        try:
            self.get(kind, name)
        except NotFound:
            return False
        return True

    def _namespace_of(self, kind: str) -> str | None:
        return self.namespace if _RESOURCES[kind].namespaced else None

    def all_of(self, kind: str) -> list[dict[str, Any]]:
        """Return all objects of a kind."""
        return self.client.list(_RESOURCES[kind], namespace=self.namespace)[0]

    def snapshots(self) -> list[Snapshot]:
        """Return the namespace's snapshots."""
        return [Snapshot.parse(i) for i in self.all_of("ps")]

    def remove(self, kind: str, name: str) -> None:
        """Ask for a deletion, and do not wait for its end."""
        with contextlib.suppress(NotFound):
            self.client.delete(_RESOURCES[kind], name, namespace=self._namespace_of(kind))

    # -- processes

    @property
    def node_root(self) -> Path:
        """The node's file system, seen from the host."""
        return Path(f"/proc/{self.cluster.machine('node1').pid()}/root")

    @property
    def bundles(self) -> Path:
        """Where containerd keeps the bundles of the node."""
        below = CONTAINERD_STATE / "io.containerd.runtime.v2.task/k8s.io"
        return self.node_root / below.relative_to("/")

    @property
    def runsc_root(self) -> Path:
        """Where runsc keeps the state of the node's containers."""
        return self.node_root / (RUNSC_ROOT / "k8s.io").relative_to("/")

    def signal(self, component: str, number: signal.Signals) -> None:
        """Send a signal to a supervised process."""
        self.cluster.component(MACHINES[component], component).kill(number)

    def restarts(self, component: str) -> int:
        """Return how often a supervised process was started again."""
        return self.cluster.component(MACHINES[component], component).status().restarts

    @contextlib.contextmanager
    def holding(self, component: str) -> Iterator[None]:
        """Stop a component for a while."""
        self.signal(component, signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(component, signal.SIGCONT)

    @contextlib.contextmanager
    def holding_process(self, pid: int) -> Iterator[None]:
        """Stop a process of the node by its number on the host."""
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    @contextlib.contextmanager
    def holding_bucket(self) -> Iterator[None]:
        """Keep everybody from writing to and deleting from the bucket."""
        with (self.bucket / ".podsnap" / "lock").open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def sandbox_pid(self, sandbox: str) -> int:
        """Return the sandbox process's id on the host, 0 if it does not run."""
        return next(_processes("runsc-sandbox", sandbox), 0)

    def calls(self, command: str, container: str) -> list[int]:
        """Return the host's ids of the runtime's and runsc's calls for a container."""
        return list(_processes(command, container))

    def children(self, pid: int) -> str:
        """Return the ids of a process's children."""
        return Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")

    def clients(self, command: str, container: str) -> list[int]:
        """Return the host's ids of the runsc clients with a command for a container."""
        return [p for p in _processes(command, container) if _is_runsc(p)]

    def sandbox_of(self, pod: str) -> str:
        """Return the id of a Pod's newest recorded sandbox, empty if it has none."""
        newest = ("", 0)
        for record in self.bundles.glob("*/podsnap.json"):
            with contextlib.suppress(OSError, ValueError):
                raw = json.loads(record.read_text(encoding="utf-8"))
                if (raw["pod"]["namespace"], raw["pod"]["name"]) == (self.namespace, pod):
                    newest = max(
                        newest, (raw["sandbox"], record.stat().st_ctime_ns), key=lambda n: n[1]
                    )
        return newest[0]

    def record_of(self, sandbox: str) -> dict[str, Any]:
        """Return what the runtime recorded for a sandbox."""
        text = (self.bundles / sandbox / "podsnap.json").read_text(encoding="utf-8")
        record: dict[str, Any] = json.loads(text)
        return record

    def containers_in(self, sandbox: str) -> list[str]:
        """Return the application containers that runsc has created in a sandbox."""
        ids = [
            p.name.partition("_sandbox:")[0]
            for p in self.runsc_root.glob(f"*_sandbox:{sandbox}.state")
        ]
        return [i for i in ids if i != sandbox]

    # -- what lies where

    @property
    def staging(self) -> Path:
        """The staging directory as the node sees it, with what is mounted there."""
        return self.node_root / (self.node_state / "staging").relative_to("/")

    @property
    def agent_socket(self) -> Path:
        """Where the runtime asks the agent."""
        return self.node_root / AGENT_SOCKET.relative_to("/")

    def staged_parts(self, name: str) -> list[Path]:
        """Return the files of one name in the staging directories."""
        return list(self.staging.glob(f"*/{name}"))

    def stored_of(self, snapshot: str) -> list[str]:
        """Return the objects of one snapshot in the bucket."""
        return [n for n in self.stored() if n.startswith(f"{snapshot}/")]

    def sending(self) -> list[Path]:
        """Return the parts that are on their way into the bucket."""
        return [p for p in (self.bucket / ".podsnap" / "tmp").glob("*") if p.is_file()]

    # -- what must hold

    def half_visible(self) -> list[str]:
        """Return what is wrong with snapshots that are offered: nothing, whoever was killed."""
        store = LocalDirStore(self.bucket)
        wrong = []
        for raw in self.all_of("ps"):
            conditions = (raw.get("status") or {}).get("conditions") or ()
            ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
            if not ready or raw["metadata"].get("deletionTimestamp"):
                continue
            snapshot = Snapshot.parse(raw)
            try:
                wrong += self._damage(snapshot, store)
            except (DamagedError, StoreError) as error:
                wrong.append(f"{snapshot.metadata.name}: {error}")
        return wrong

    def _damage(self, snapshot: Snapshot, store: LocalDirStore) -> Iterator[str]:
        name = snapshot.metadata.name
        manifest = read_manifest(snapshot, store)
        key = f"{snapshot.metadata.uid} {manifest.attempt}"
        if self.answers.get(key) == "whole":
            return
        for part in manifest.parts:
            info = store.stat(f"{name}/{part.name}", generation=part.generation)
            if info is None:
                yield f"{name}: {part.name} is missing or another"
                continue
            found = digest_file(self.bucket / name / part.name, sync=False)
            if (found.length_bytes, found.digests) != (part.length_bytes, part.digests):
                yield f"{name}: {part.name} differs"
        self.answers[key] = "whole"

    def orphans(self) -> list[str]:
        """Return what nobody owns in staging, cache, bucket, runsc root and API."""
        snapshots = self.snapshots()
        every = [Snapshot.parse(i) for i in self.client.list(POD_SNAPSHOTS)[0]]
        images = {s.capture.manifest_digest for s in every if s.capture}
        names = {s.metadata.name for s in snapshots if s.capture and not s.capture.failure}
        left = [f"staging/{n}" for n in self.staged()]
        left += [
            f"cache/{d.name}"
            for d in (self.node_state / "cache").iterdir()
            if f"sha256:{d.name}" not in images
        ]
        for folder in {n.partition("/")[0] for n in self.stored()} | names:
            objects = self.stored_of(folder)
            if folder not in names or len(objects) != 5:
                left.append(f"bucket: {len(objects)} objects in {folder}")
        for snapshot in snapshots:
            state = snapshot.control.story[-1].state if snapshot.control.story else "new"
            if state not in {"AllSnapshotsAvailable", "Failed", "Obsolete"}:
                left.append(f"PodSnapshot {snapshot.metadata.name} is {state}")
        left += [
            f"trigger {t['metadata']['name']} has no answer"
            for t in self.all_of("psmt")
            if self._answer(t) is None
        ]
        return left + self._orphans_of_runsc()

    def _orphans_of_runsc(self) -> list[str]:
        bundles = {p.name for p in self.bundles.iterdir()}
        # containerd cannot clean up after a container whose creation a killed kubelet cancelled:
        # runsc's note of it stays, without a process.
        left = []
        for path in self.runsc_root.glob("*.state"):
            container, _, sandbox = path.stem.partition("_sandbox:")
            if container not in bundles and self.sandbox_pid(sandbox):
                left.append(f"runsc root: {container} without bundle")
        pods = {p["metadata"]["uid"] for p in self.all_of("pod")}
        for record in self.bundles.glob("*/podsnap.json"):
            pod = json.loads(record.read_text(encoding="utf-8"))["pod"]
            gone = pod["namespace"] == self.namespace and pod["uid"] not in pods
            # Whoever dies before a sandbox is started leaves it to gVisor's shim, which keeps it
            # (kill_table.py).
            if gone and self._status(record.parent.name) != "created":
                left.append(f"sandbox {record.parent.name} of a Pod that is gone")
        return left + [f"runsc checkpoint {p}" for p in _processes("checkpoint") if _is_runsc(p)]

    def _status(self, sandbox: str) -> str:
        state = self.runsc_root / f"{sandbox}_sandbox:{sandbox}.state"
        with contextlib.suppress(FileNotFoundError):
            return str(json.loads(state.read_text(encoding="utf-8"))["status"])
        return "gone"

    @staticmethod
    def _answer(trigger: dict[str, Any]) -> dict[str, Any] | None:
        conditions = (trigger.get("status") or {}).get("conditions") or ()
        return next(
            (
                c
                for c in conditions
                if c["type"] == "Triggered" and c["reason"] in {"Complete", "Failed"}
            ),
            None,
        )

    def answer(self, trigger: str) -> dict[str, Any] | None:
        """Return a trigger's final answer, ``None`` while there is none."""
        return self._answer(self.get("psmt", trigger))

    def is_up(self, victim: str) -> bool:
        """Whether a supervised victim runs again."""
        try:
            return self.cluster.component(MACHINES[victim], victim).status().state == "running"
        except MachineError:
            return False
