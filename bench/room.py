# SPDX-License-Identifier: Apache-2.0
"""A namespace of the benchmark's cluster, with a bucket of its own, one client and one watch.

Every instant is taken by this one process, so no two clocks are compared. The trap is what a
measurement leaves behind: a Pod that is still being torn down slows the next one, so a Pod counts
as gone only when the API server has forgotten it.
"""

import json
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from backends.kube.client import (
    POD_SNAPSHOT_MANUAL_TRIGGERS,
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    POD_SNAPSHOTS,
    PODS,
    KubeClient,
    Resource,
)
from backends.kube.errors import NotFound
from backends.kube.transport import Transport
from localcluster.cluster import LocalCluster
from localcluster.pod_times import Observed, PodTimes
from schemas.names import PS_NAME_ANNOTATION, READY, TRIGGERED
from schemas.policy import Policy
from schemas.snapshot import Snapshot
from schemas.trigger import ManualTrigger

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
MANAGER = "podsnap-bench"
POD_LIMIT_S = 60.0
SAVE_LIMIT_S = 60.0
CLEAN_LIMIT_S = 120.0
_POLL_S = 0.05
NEVER_RESTORE = {PS_NAME_ANNOTATION: ""}
# A Pod with this label is governed by no policy of its room.
_UNGOVERNED = "podsnap-bench/ungoverned"
_TICKER = Path(__file__).resolve().parent / "ticker.py"

T = TypeVar("T")


class BenchError(Exception):
    """Something did not happen that a measurement needs; the text says what was seen."""


@dataclass(frozen=True, slots=True)
class Room:
    """One namespace in the hand of one measurement."""

    cluster: LocalCluster
    namespace: str
    client: KubeClient
    times: PodTimes

    # -- Pods

    def create_pod(
        self,
        name: str,
        spec: dict[str, Any],
        *,
        annotations: dict[str, str] | None = None,
        governed: bool = True,
    ) -> None:
        """Create a bare Pod; its label ``app`` is the namespace's name."""
        labels = {"app": self.namespace} | ({} if governed else {_UNGOVERNED: ""})
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "labels": labels,
                "annotations": annotations or {},
            },
            "spec": spec,
        }
        self.client.create(PODS, body, field_manager=MANAGER)

    def wait_pod(self, name: str, what: str, holds: Callable[[Observed], bool]) -> Observed:
        """Wait for a fact about a Pod."""

        def found() -> Observed | None:
            seen = [o for o in self.times.pods(self.namespace) if o.pod.metadata.name == name]
            return next((o for o in seen if holds(o)), None)

        pod: Observed = self.times.wait(f"Pod {name} {what}", found, limit_s=POD_LIMIT_S)
        return pod

    def remove_pod(self, name: str) -> None:
        """Delete a Pod and wait until it is gone."""
        self.client.delete(PODS, name, namespace=self.namespace)
        until(f"Pod {name} gone", lambda: not self._exists(PODS, name), limit_s=POD_LIMIT_S)

    def remove_pods(self, names: Iterable[str]) -> None:
        """Delete Pods at once and wait until all are gone."""
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(self.remove_pod, names))

    def remove_snapshot(self, name: str) -> None:
        """Delete a snapshot and wait until its bytes are gone too."""
        self.client.delete(POD_SNAPSHOTS, name, namespace=self.namespace)
        until(
            f"snapshot {name} gone",
            lambda: not self._exists(POD_SNAPSHOTS, name),
            limit_s=SAVE_LIMIT_S,
        )

    def _exists(self, resource: Resource, name: str) -> bool:
        try:
            self.client.get(resource, name, namespace=self.namespace)
        except NotFound:
            return False
        return True

    def seed(self, name: str, spec: dict[str, Any], *, governed: bool = True) -> Observed:
        """Start a Pod cold and wait until its program answers."""
        self.create_pod(name, spec, annotations=NEVER_RESTORE, governed=governed)
        seen = self.wait_pod(name, "Running", lambda o: o.pod.is_ready and bool(o.pod.pod_ip))
        until(f"an answer of Pod {name}", lambda: ask(seen.pod.pod_ip), limit_s=POD_LIMIT_S)
        return seen

    # -- policies and saves

    def add_policy(self, trigger: str = "manual") -> None:
        """Govern the Pods of this namespace."""
        bucket = self.cluster.buckets / self.namespace
        bucket.mkdir(mode=0o700, exist_ok=True)
        storage = {
            "apiVersion": "podsnapshot.gke.io/v1",
            "kind": "PodSnapshotStorageConfig",
            "metadata": {"name": self.namespace},
            "spec": {"snapshotStorageConfig": {"gcs": {"bucket": self.namespace}}},
        }
        policy = {
            "apiVersion": "podsnapshot.gke.io/v1",
            "kind": "PodSnapshotPolicy",
            "metadata": {"name": "policy", "namespace": self.namespace},
            "spec": {
                "storageConfigName": self.namespace,
                "selector": {
                    "matchLabels": {"app": self.namespace},
                    "matchExpressions": [{"key": _UNGOVERNED, "operator": "DoesNotExist"}],
                },
                "triggerConfig": {"type": trigger},
            },
        }
        self.client.apply(POD_SNAPSHOT_STORAGE_CONFIGS, storage, field_manager=MANAGER)
        self.client.apply(POD_SNAPSHOT_POLICIES, policy, field_manager=MANAGER)

        def ready() -> bool:
            found = self.client.get(POD_SNAPSHOT_POLICIES, "policy", namespace=self.namespace)
            condition = Policy.parse(found).conditions.get(READY)
            return condition is not None and condition.is_true

        until("the policy Ready", ready, limit_s=30)

    def create_trigger(self, name: str, pod: str) -> None:
        """Ask for a save of a Pod."""
        body = {
            "apiVersion": "podsnapshot.gke.io/v1",
            "kind": "PodSnapshotManualTrigger",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"targetPod": pod},
        }
        self.client.create(POD_SNAPSHOT_MANUAL_TRIGGERS, body, field_manager=MANAGER)

    def save(self, pod: str) -> Snapshot:
        """Save a Pod and wait until Pods can be restored from it."""
        name = f"save-{pod}"
        self.create_trigger(name, pod)

        def answered() -> ManualTrigger | None:
            found = ManualTrigger.parse(
                self.client.get(POD_SNAPSHOT_MANUAL_TRIGGERS, name, namespace=self.namespace)
            )
            return found if found.is_answered else None

        return self.saved_by(until(f"an answer to {name}", answered, limit_s=SAVE_LIMIT_S))

    def saved_by(self, trigger: ManualTrigger) -> Snapshot:
        """Return the snapshot that a trigger made, once it is in the bucket.

        Raises:
            BenchError: the trigger failed.
        """
        condition = trigger.conditions[TRIGGERED]
        if condition.reason != "Complete":
            raise BenchError(f"{trigger.metadata} failed: {condition.reason}: {condition.message}")
        return self.available(trigger.snapshot_name)

    def available(self, name: str) -> Snapshot:
        """Wait until Pods can be restored from a snapshot."""

        def ready() -> Snapshot | None:
            try:
                raw = self.client.get(POD_SNAPSHOTS, name, namespace=self.namespace)
            except NotFound:
                return None
            found = Snapshot.parse(raw)
            condition = found.conditions.get(READY)
            return found if condition is not None and condition.is_true else None

        return until(f"snapshot {name} Ready", ready, limit_s=SAVE_LIMIT_S)

    def image_dir(self, snapshot: Snapshot) -> Path:
        """Return where the node keeps a snapshot's image, once it is there."""
        cache = self.cluster.nodes[0].directory / "podsnap" / "cache"
        digest = snapshot.capture.manifest_digest if snapshot.capture else ""
        directory = cache / digest.removeprefix("sha256:")
        until(f"the image {directory}", directory.is_dir, limit_s=SAVE_LIMIT_S)
        return directory

    # -- the node

    def container_ids(self, pod: str) -> list[str]:
        """Return containerd's ids of a Pod: its sandbox first, then its containers."""
        node = self.cluster.nodes[0]
        uid = self.client.get(PODS, pod, namespace=self.namespace)["metadata"]["uid"]
        labels = f'labels."io.kubernetes.pod.uid"=={uid}'
        listed = self.cluster.run_in(node.name, node.ctr("containers", "list", "-q", labels))
        ids = listed.stdout.split()
        return sorted(ids, key=lambda i: not self._is_sandbox(i))

    def _is_sandbox(self, container: str) -> bool:
        kind: str = self.spec_of(container)["annotations"]["io.kubernetes.cri.container-type"]
        return kind == "sandbox"

    def spec_of(self, container: str) -> dict[str, Any]:
        """Return the OCI spec with which containerd calls the runtime, before any change."""
        node = self.cluster.nodes[0]
        info = self.cluster.run_in(node.name, node.ctr("containers", "info", container))
        spec: dict[str, Any] = json.loads(info.stdout)["Spec"]
        return spec


@contextmanager
def room(cluster: LocalCluster, name: str) -> Iterator[Room]:
    """Make a room and remove everything in it, whatever happens in between."""
    namespace = f"bench-{name}"
    _remove(cluster, namespace)  # what a killed run left
    cluster.kubectl("create", "namespace", namespace)
    transport = Transport.from_kubeconfig(cluster.kubeconfig, user_agent=MANAGER)
    client = KubeClient(transport)
    times = PodTimes(client, namespace)
    times.start()
    try:
        yield Room(cluster, namespace, client, times)
    finally:
        times.stop()
        transport.close()
        _remove(cluster, namespace)


def _remove(cluster: LocalCluster, namespace: str) -> None:
    flags = ("--ignore-not-found", "--wait", f"--timeout={CLEAN_LIMIT_S:.0f}s")
    limit_s = CLEAN_LIMIT_S + 10
    cluster.kubectl("delete", "namespace", namespace, *flags, limit_s=limit_s)
    cluster.kubectl("delete", "pssc", namespace, *flags, limit_s=limit_s)


def until(what: str, found: Callable[[], T | None], *, limit_s: float) -> T:
    """Return the first true thing that ``found`` returns.

    Raises:
        BenchError: there was none within ``limit_s`` seconds.
    """
    deadline_s = time.monotonic() + limit_s
    while not (result := found()):
        if time.monotonic() > deadline_s:
            raise BenchError(f"waited {limit_s:.0f} s in vain for: {what}")
        time.sleep(_POLL_S)
    return result


def ask(address: str, *, data: bytes | None = None) -> dict[str, Any]:
    """Return what a Pod's program answers to a GET, or a POST of ``data``; empty if nothing."""
    try:
        with urllib.request.urlopen(f"http://{address}:8080/", data, timeout=10) as answer:
            parsed: dict[str, Any] = json.load(answer)
            return parsed
    except OSError:
        return {}


def counter_spec() -> dict[str, Any]:
    """Return the counter's Pod spec without its readiness probe, which would hide milliseconds."""
    text = (EXAMPLES / "counter" / "deployment.yaml").read_text(encoding="utf-8")
    spec: dict[str, Any] = yaml.safe_load(text)["spec"]["template"]["spec"]
    for container in spec["containers"]:
        container.pop("readinessProbe", None)
    spec["terminationGracePeriodSeconds"] = 1
    return spec


def ticker_spec(ballast_mib: int) -> dict[str, Any]:
    """Return the spec of a Pod that ticks, with so much memory that cannot be compressed."""
    spec = counter_spec()
    container = spec["containers"][0]
    program = _TICKER.read_text(encoding="utf-8")
    container["command"] = ["/usr/bin/python3", "-c", program, str(ballast_mib)]
    container.pop("resources")
    spec["terminationGracePeriodSeconds"] = 30
    return spec
