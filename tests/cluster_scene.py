# SPDX-License-Identifier: Apache-2.0
"""What tests on the real cluster do, in the words of a user: apply, trigger, scale, ask, look.

Each scene has a namespace, a storage config and a bucket of its own, so scenes never meet.
"""

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from localcluster.cluster import LocalCluster
from localcluster.node import METRICS_PORT
from localcluster.pod_times import Observed, PodTimes, watching
from schemas.names import POD_RESTORED
from schemas.pod import Pod
from schemas.snapshot import Snapshot

COUNTER = "podsnap.local/counter:1"
LIMIT_S = 60.0
# A container's program that runs the Python it is sent, so that a test can put any state into a
# Pod's memory and look at it later. ``ready`` and ``alive`` are the answers to probes.
INTERPRETER = """
import http.server, json, os, socket, sys, threading, traceback

names = {"nonce": os.urandom(8).hex(), "ready": 200, "alive": 200}

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(names[self.path.strip("/")], None)

    def do_POST(self):
        statements = self.rfile.read(int(self.headers["Content-Length"])).decode()
        try:
            exec(statements, names)
            self.answer(200, names.pop("answer", None))
        except Exception:
            self.answer(500, traceback.format_exc())

    def answer(self, code, value):
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
"""

T = TypeVar("T")


def eventually(what: str, probe: Callable[[], T], *, limit_s: float = LIMIT_S) -> T:
    """Return the first true thing that ``probe`` returns."""
    pause = threading.Event()
    deadline_s = time.monotonic() + limit_s
    while not (found := probe()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {limit_s:.0f} s: {what}")
        pause.wait(0.02)
    return found


@dataclass(slots=True)
class Scene:
    """One test's part of the cluster."""

    cluster: LocalCluster
    namespace: str
    times: PodTimes
    _triggers: int = 0
    extra_mounts: list[str] = field(default_factory=list)

    # -- objects

    def kubectl(self, *arguments: str, text: str = "") -> str:
        """Run kubectl in the scene's namespace."""
        return self.cluster.kubectl("-n", self.namespace, *arguments, text=text)

    def apply(self, obj: dict[str, Any]) -> None:
        """Apply one object."""
        obj["metadata"].setdefault("namespace", self.namespace)
        self.kubectl("apply", "-f", "-", text=json.dumps(obj))

    def storage(self) -> None:
        """Create the scene's bucket and storage config."""
        self.bucket.mkdir(mode=0o700, exist_ok=True)
        self.apply(
            {
                "apiVersion": "podsnapshot.gke.io/v1",
                "kind": "PodSnapshotStorageConfig",
                "metadata": {"name": self.namespace},
                "spec": {"snapshotStorageConfig": {"gcs": {"bucket": self.namespace}}},
            }
        )

    def policy(
        self,
        trigger: str = "manual",
        name: str = "policy",
        *,
        post: str = "resume",
        scope: str = "whole-pod",
        annotations: Mapping[str, str] | None = None,
    ) -> None:
        """Create a policy for Pods with label ``app: counter``."""
        self.apply(
            {
                "apiVersion": "podsnapshot.gke.io/v1",
                "kind": "PodSnapshotPolicy",
                "metadata": {"name": name, "annotations": dict(annotations or {})},
                "spec": {
                    "storageConfigName": self.namespace,
                    "selector": {"matchLabels": {"app": "counter"}},
                    "triggerConfig": {"type": trigger, "postCheckpoint": post},
                    "snapshotScope": scope,
                },
            }
        )
        # The agent decides by its cache; what a user would not notice, a test must wait for.
        eventually("policy Ready", lambda: self.is_true("psp", name, "Ready"))

    def pod(self, name: str, **changes: Any) -> None:  # noqa: ANN401 - parts of a Pod
        """Create a counter Pod; ``container``, ``spec`` and ``annotations`` are merged in."""
        template = self._template(changes)
        template["metadata"]["name"] = name
        self.apply({"apiVersion": "v1", "kind": "Pod", **template})

    def deployment(self, name: str, *, replicas: int = 1, **changes: Any) -> None:  # noqa: ANN401 - as ``pod``
        """Create a Deployment of counter Pods."""
        self.apply(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": name},
                "spec": {
                    "replicas": replicas,
                    "selector": {"matchLabels": {"app": "counter"}},
                    "template": self._template(changes),
                },
            }
        )

    def _template(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        container: dict[str, Any] = {
            "name": "counter",
            "image": COUNTER,
            "imagePullPolicy": "Never",
            "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
            **changes.get("container", {}),
        }
        spec: dict[str, Any] = {
            "runtimeClassName": "gvisor",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            **changes.get("spec", {}),
        }
        return {
            "metadata": {
                "labels": {"app": "counter", **changes.get("labels", {})},
                "annotations": changes.get("annotations", {}),
            },
            "spec": spec,
        }

    def ready_pod(self, name: str, **changes: Any) -> Observed:  # noqa: ANN401 - as ``pod``
        """Create a Pod and wait until it is Ready."""
        self.pod(name, **changes)
        return self.wait_ready(name)

    def wait_ready(self, name: str) -> Observed:
        """Wait until a Pod is Ready."""

        def found() -> Observed | None:
            return next(
                (
                    o
                    for o in self.times.pods("counter")
                    if o.pod.metadata.name == name and o.pod.is_ready
                ),
                None,
            )

        seen: Observed = self.times.wait(f"Pod {name}", found, limit_s=LIMIT_S)
        return seen

    # -- saves

    def trigger(self, pod: str) -> str:
        """Create a manual trigger and return its name."""
        self._triggers += 1
        name = f"trigger-{self._triggers}"
        self.apply(
            {
                "apiVersion": "podsnapshot.gke.io/v1",
                "kind": "PodSnapshotManualTrigger",
                "metadata": {"name": name},
                "spec": {"targetPod": pod},
            }
        )
        return name

    def triggered(self, trigger: str) -> dict[str, Any]:
        """Wait for a trigger's answer; returns its condition."""

        def answered() -> dict[str, Any] | None:
            found = self.condition("psmt", trigger, "Triggered")
            return found if found and found["reason"] in {"Complete", "Failed"} else None

        return eventually(f"answer of {trigger}", answered)

    def save(self, pod: str) -> Snapshot:
        """Save a Pod and wait until its snapshot can be restored from."""
        trigger = self.trigger(pod)
        answer = self.triggered(trigger)
        assert answer["reason"] == "Complete", answer["message"]
        path = "-o=jsonpath={.status.snapshotCreated.name}"
        return self.wait_available(self.kubectl("get", f"psmt/{trigger}", path))

    def wait_available(self, name: str) -> Snapshot:
        """Wait until a snapshot can be restored from, in the eyes of the agent too."""
        eventually(f"snapshot {name}", lambda: self.is_true("ps", name, "Ready"))
        return self.snapshot(name)

    def snapshot(self, name: str) -> Snapshot:
        """Return a snapshot as it is now."""
        return Snapshot.parse(self.get("ps", name))

    def snapshots(self) -> list[Snapshot]:
        """Return the namespace's snapshots."""
        items = json.loads(self.kubectl("get", "ps", "-o", "json"))["items"]
        return [Snapshot.parse(i) for i in items]

    # -- looks

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return an object."""
        obj: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return obj

    def condition(self, kind: str, name: str, condition: str) -> dict[str, Any] | None:
        """Return a condition of an object."""
        conditions = (self.get(kind, name).get("status") or {}).get("conditions") or ()
        return next((c for c in conditions if c["type"] == condition), None)

    def is_true(self, kind: str, name: str, condition: str) -> bool:
        """Whether a condition holds."""
        found = self.condition(kind, name, condition)
        return found is not None and found["status"] == "True"

    def ask(self, name: str) -> dict[str, Any]:
        """Return what the counter in a Pod answers."""
        pod = Pod.parse(self.get("pod", name))
        with urllib.request.urlopen(f"http://{pod.pod_ip}:8080/", timeout=10) as answer:
            parsed: dict[str, Any] = json.load(answer)
            return parsed

    def nonce(self, name: str) -> str:
        """Return the nonce that the counter in a Pod holds in memory."""
        return str(self.ask(name)["nonce"])

    def restored_from(self, name: str) -> str:
        """Return the message of ``PodRestored`` if it is true, else nothing."""
        found = self.condition("pod", name, POD_RESTORED)
        return found["message"] if found and found["status"] == "True" else ""

    def events(self, pod: str) -> list[str]:
        """Return type and message of podsnap's events on a Pod."""
        selector = f"--field-selector=involvedObject.name={pod},reason=GKEPodSnapshotting"
        items = json.loads(self.kubectl("get", "events", selector, "-o", "json"))["items"]
        return [f"{i['type']} {i['message']}" for i in items]

    def event(self, pod: str, text: str) -> str:
        """Wait for an event on a Pod whose type and message contain a text."""
        return eventually(
            f"event {text!r} on {pod}, there are {self.events(pod)}",
            lambda: next((e for e in self.events(pod) if text in e), ""),
            limit_s=15,
        )

    def phase(self, pod: str) -> str:
        """Return a Pod's phase."""
        return str(self.get("pod", pod)["status"].get("phase", ""))

    def container(self, pod: str, name: str = "counter") -> dict[str, Any]:
        """Return the status of a container, an init container's too."""
        status = self.get("pod", pod)["status"]
        both = (*status.get("containerStatuses", ()), *status.get("initContainerStatuses", ()))
        return next((c for c in both if c["name"] == name), {})

    # -- endings

    def delete(self, pod: str, *flags: str) -> float:
        """Delete a Pod and wait until it is gone; returns the seconds that it took."""
        began_s = time.monotonic()
        self.kubectl("delete", "pod", pod, f"--timeout={LIMIT_S:.0f}s", *flags)
        return time.monotonic() - began_s

    @contextlib.contextmanager
    def without_agent(self) -> Iterator[None]:
        """Do something while the node's agent is away."""
        agent = self.cluster.component("node1", "agent")
        agent.kill()
        agent.stop()
        try:
            yield
        finally:
            agent.start()
            self.wait_for_agent()

    def wait_for_agent(self) -> None:
        """Wait until the node's agent can decide."""
        url = f"http://{self.cluster.nodes[0].address}:{METRICS_PORT}/readyz"

        def is_ready() -> bool:
            try:
                with urllib.request.urlopen(url, timeout=2) as answer:
                    return bool(answer.status == HTTPStatus.OK)
            except OSError:
                return False

        eventually("an agent that is ready", is_ready)

    # -- places

    @property
    def bucket(self) -> Path:
        """The directory that is the scene's bucket."""
        return self.cluster.buckets / self.namespace

    def stored(self) -> set[str]:
        """Return the names of the objects in the bucket."""
        return {
            str(p.relative_to(self.bucket))
            for p in self.bucket.rglob("*")
            if p.is_file() and ".podsnap" not in p.parts
        }

    @property
    def node_state(self) -> Path:
        """The agent's directory on the node."""
        return self.cluster.state_dir / "node1" / "podsnap"

    def forget_cached_images(self) -> None:
        """Empty the node's cache, as on a node that never had the snapshots."""
        import shutil

        for directory in (self.node_state / "cache").iterdir():
            shutil.rmtree(directory)

    def staged(self) -> list[str]:
        """Return what lies in the node's staging directory, the workloads' folder aside."""
        return [p.name for p in (self.node_state / "staging").iterdir() if p.name != "workload"]

    # -- programs told what to do

    def tell(self, pod: str, statements: str, port: int = 8080) -> Any:  # noqa: ANN401 - JSON
        """Have an interpreter (``INTERPRETER``) in a Pod run Python; returns its ``answer``."""
        address = Pod.parse(self.get("pod", pod)).pod_ip
        told = urllib.request.Request(f"http://{address}:{port}/", data=statements.encode())
        try:
            with urllib.request.urlopen(told, timeout=10) as answer:  # noqa: S310 - http
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"in Pod {pod}: {json.load(error)}") from error


@contextlib.contextmanager
def new_scene(cluster: LocalCluster, namespace: str) -> Iterator[Scene]:
    """Make a scene for several tests, and take it away at the end."""
    cluster.kubectl("create", "namespace", namespace)
    with watching(cluster.kubeconfig, namespace) as times:
        found = Scene(cluster, namespace, times)
        found.storage()
        try:
            yield found
        finally:
            with contextlib.suppress(Exception):
                found.kubectl("delete", "pods,ps,psmt,psp", "--all", "--wait=false")
            cluster.kubectl("delete", "namespace", namespace, "--wait=false")
            cluster.kubectl("delete", "pssc", namespace, "--ignore-not-found")
