# SPDX-License-Identifier: Apache-2.0
"""The slow example, cold once and restored several times: create to Ready.

The trap is two restores at once: they share the cores, and each looks slower than it is. So one new
replica is started at a time.
"""

import statistics
from collections.abc import Callable
from typing import Any

import yaml
from figure import Figure, Target
from room import EXAMPLES, SAVE_LIMIT_S, BenchError, room, until

from backends.kube.client import POD_SNAPSHOTS, KubeClient, Resource
from localcluster.cluster import LocalCluster
from localcluster.pod_times import Observed, PodTimes
from schemas.names import READY
from schemas.snapshot import Snapshot

RESTORES = 5
COLD_LIMIT_S = 300.0
RESTORED_LIMIT_S = 60.0
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
_TELL_EVERY_S = 15.0


def measure(cluster: LocalCluster, say: Callable[[str], None]) -> list[Figure]:
    """Start one replica cold, let it save itself, then restore replicas one after another."""
    with room(cluster, "search") as place:
        place.add_policy("workload")
        deployment = _deployment(place.namespace)
        place.client.apply(DEPLOYMENTS, deployment, field_manager="podsnap-bench")
        cold = _wait(place.times, place.namespace, 1, limit_s=COLD_LIMIT_S, say=say)[0]
        say(f"cold {cold.create_to_ready_s:.1f} s")
        saved = until(
            "the workload's snapshot Ready",
            lambda: _ready_snapshot(place.client, place.namespace),
            limit_s=SAVE_LIMIT_S,
        )
        restored = []
        for number in range(1, RESTORES + 1):
            known = {o.pod.metadata.uid for o in place.times.pods(place.namespace)}
            _scale(place.client, deployment, 2)
            pods = _wait(place.times, place.namespace, 2, limit_s=RESTORED_LIMIT_S, say=say)
            new = next(o for o in pods if o.pod.metadata.uid not in known)
            if not new.restored_when_ready:
                raise BenchError(f"{new.pod.metadata} became Ready without being restored")
            restored.append(new.create_to_ready_s)
            say(f"{number}/{RESTORES}  restored {restored[-1]:.2f} s")
            _scale(place.client, deployment, 1)
            _wait(place.times, place.namespace, 1, limit_s=RESTORED_LIMIT_S, say=say)
    size_mb = saved.capture.size_bytes / 1e6 if saved.capture else 0
    cold_s = [cold.create_to_ready_s]
    ratio = cold_s[0] / statistics.median(restored)
    return [
        Figure.of(
            cold_s,
            part="restore",
            name="semantic-search cold",
            unit="s",
            covers="create to Ready by one watch; the readiness probe asks each second",
        ),
        Figure.of(
            restored,
            part="restore",
            name="semantic-search restored",
            unit="s",
            covers=f"the same, from an image of {size_mb:.0f} MB in the node's cache",
        ),
        Figure(
            part="restore",
            name="cold : restored",
            unit="x",
            p50=ratio,
            p90=cold_s[0] / max(restored),
            p99=cold_s[0] / max(restored),
            count=len(restored),
            target=Target(limit=20, at_least=True),
            covers="one cold start by the median restore; P90 and P99 have the slowest restore",
        ),
    ]


def _deployment(namespace: str) -> dict[str, Any]:
    """Return the example's Deployment, moved into the room."""
    text = (EXAMPLES / "semantic-search" / "deployment.yaml").read_text(encoding="utf-8")
    tree: dict[str, Any] = yaml.safe_load(text)
    tree["metadata"]["namespace"] = namespace
    tree["spec"]["selector"]["matchLabels"] = {"app": namespace}
    tree["spec"]["template"]["metadata"]["labels"] = {"app": namespace}
    return tree


def _wait(
    times: PodTimes, app: str, count: int, *, limit_s: float, say: Callable[[str], None]
) -> list[Observed]:
    told_s = 0.0

    def tick(waited_s: float) -> None:
        nonlocal told_s
        if waited_s - told_s >= _TELL_EVERY_S:
            told_s = waited_s
            say(f"{waited_s:5.1f} s  still waiting for {count} Pods to be Ready")

    return times.wait_ready(app, count, limit_s=limit_s, tick=tick)


def _scale(client: KubeClient, deployment: dict[str, Any], replicas: int) -> None:
    metadata = deployment["metadata"]
    client.merge_patch(
        DEPLOYMENTS,
        metadata["name"],
        {"spec": {"replicas": replicas}},
        namespace=metadata["namespace"],
        field_manager="podsnap-bench",
    )


def _ready_snapshot(client: KubeClient, namespace: str) -> Snapshot | None:
    for item in client.list(POD_SNAPSHOTS, namespace=namespace)[0]:
        found = Snapshot.parse(item)
        condition = found.conditions.get(READY)
        if condition is not None and condition.is_true:
            return found
    return None
