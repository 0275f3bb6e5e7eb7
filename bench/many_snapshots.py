# SPDX-License-Identifier: Apache-2.0
"""Controller and agent beside 2,000 snapshots of 200 policies, all in one namespace.

One namespace is the worst case: every policy of it is judged for each of its Pods. The programs are
stopped and started anew, so a start contains the lists; from then until nothing is reconciled any
more everything is looked at once and nothing changes, which is what a resync costs. Requests are
counted by the programs themselves (``rest_client_requests_total``); what they send in the same time
while nothing happens (Leases) is taken off.
"""

import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from copied_snapshots import copy_snapshot
from figure import Figure, Target
from idle_cost import processor_s
from prometheus_client.parser import text_string_to_metric_families
from room import MANAGER, BenchError, Room, counter_spec, room, until

from backends.kube.client import POD_SNAPSHOT_POLICIES
from backends.kube.reflector import Reflector
from localcluster import control_plane
from localcluster.cluster import LocalCluster
from localcluster.node import METRICS_PORT
from schemas.names import READY
from schemas.policy import Policy

POLICIES = 200
SNAPSHOTS = 2000
STARTS = 5
CHANGES = 100
QUESTIONS = 10
_QUIET_S = 10.0
_START_LIMIT_S = 120.0
_EFFECT_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Program:
    """One of podsnap's two programs on the cluster."""

    cluster: LocalCluster
    machine: str
    name: str
    address: str

    def restart(self) -> float:
        """Start it anew; return the seconds until its caches are filled."""
        component = self.cluster.component(self.machine, self.name)
        component.stop()
        component.start()
        began_s = time.monotonic()
        until(f"{self.name} ready", self._is_ready, limit_s=_START_LIMIT_S)
        return time.monotonic() - began_s

    def settle(self) -> None:
        """Wait until it has reconciled nothing for two seconds."""
        last, since_s = -1.0, time.monotonic()
        while time.monotonic() - since_s < 2.0:  # noqa: PLR2004 - as the docstring says
            now = self.count("controller_runtime_reconcile_total")
            if now != last:
                last, since_s = now, time.monotonic()
            time.sleep(0.1)

    def count(self, sample: str, **labels: str) -> float:
        """Return the sum of a metric's samples with these labels."""
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        return sum(
            each.value
            for family in text_string_to_metric_families(text)
            for each in family.samples
            if each.name == sample and labels.items() <= each.labels.items()
        )

    def requests(self) -> float:
        """Return how many answers it had from the API server."""
        return self.count("rest_client_requests_total")

    def used_s(self) -> float:
        """Return the processor time that it used since its start."""
        return processor_s(self.cluster, self.machine, self.name)

    def resident_mib(self) -> float:
        """Return its resident memory."""
        return self.cluster.component(self.machine, self.name).status().rss_bytes / (1 << 20)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.address}/readyz", timeout=1):
                return True
        except OSError:
            return False


def measure(cluster: LocalCluster, say: Callable[[str], None]) -> list[Figure]:
    """Fill a namespace, start both programs anew in it, change one thing at a time."""
    network, node = cluster.network, cluster.nodes[0]
    controller = Program(
        cluster,
        control_plane.NAME,
        "controller",
        f"{network.control}:{control_plane.METRICS_PORT}",
    )
    agent = Program(cluster, node.name, "agent", f"{node.address}:{METRICS_PORT}")
    with room(cluster, "many") as place:
        place.add_policy()
        place.seed("seed", counter_spec())
        saved = place.save("seed")
        names = [f"policy-{number:03}" for number in range(POLICIES)]
        _add_policies(place, names)
        copy_snapshot(place, saved, [names[i % POLICIES] for i in range(SNAPSHOTS - 1)])
        say(f"{SNAPSHOTS} snapshots of {POLICIES} policies")
        controller.settle()
        figures = [*_starts(controller, say), *_starts(agent, say)]
        figures += _changes(place, controller, agent, names)
        say(f"{CHANGES} changes of one policy each")
        return [*figures, *_questions(place, say)]


def _starts(program: Program, say: Callable[[str], None]) -> list[Figure]:
    """Start a program again and again, and let it look at everything once."""
    synced_s, looked_s, resident_mib = [], [], []
    for _ in range(STARTS):
        synced_s.append(program.restart())
        program.settle()
        looked_s.append(program.used_s())
        resident_mib.append(program.resident_mib())
    say(f"{STARTS} starts of the {program.name}")
    part = "many"
    return [
        Figure.of(
            synced_s,
            part=part,
            name=f"{program.name}: start to synced",
            unit="s",
            covers="from the process's start until /readyz says that every cache is filled",
        ),
        Figure.of(
            looked_s,
            part=part,
            name=f"{program.name}: processor of start and resync",
            unit="s",
            covers="interpreter, imports, lists, and one look at every object; nothing changes",
        ),
        Figure.of(
            resident_mib,
            part=part,
            name=f"{program.name}: resident",
            unit="MiB",
            covers="after that",
        ),
    ]


def _add_policies(place: Room, names: list[str]) -> None:
    def add(name: str) -> None:
        body = {
            "apiVersion": "podsnapshot.gke.io/v1",
            "kind": "PodSnapshotPolicy",
            "metadata": {"name": name, "namespace": place.namespace},
            "spec": {
                "storageConfigName": place.namespace,
                "selector": {"matchLabels": {"app": name}},
                "triggerConfig": {"type": "manual"},
            },
        }
        place.client.apply(POD_SNAPSHOT_POLICIES, body, field_manager=MANAGER)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, names))


class _PolicyTimes:
    """Stamps the instant at which a policy was first seen to be ready, or not."""

    def __init__(self, place: Room) -> None:
        self._changed = threading.Condition()
        self._seen: dict[str, tuple[bool, float]] = {}
        self._reflector = Reflector(
            place.client,
            POD_SNAPSHOT_POLICIES,
            project=Policy.parse,
            namespace=place.namespace,
            on_change=self._on_change,
        )

    def __enter__(self) -> Self:
        self._reflector.start()
        self._reflector.synced.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._reflector.stop()

    def wait(self, name: str, *, ready: bool) -> float:
        with self._changed:

            def holds() -> bool:
                return self._seen.get(name, (not ready, 0.0))[0] is ready

            if not self._changed.wait_for(holds, _EFFECT_LIMIT_S):
                raise BenchError(f"policy {name} did not become {'' if ready else 'not '}ready")
            return self._seen[name][1]

    def _on_change(self, _: Policy | None, new: Policy | None) -> None:
        now_s = time.monotonic()
        condition = new.conditions.get(READY) if new else None
        if new is None or condition is None:
            return
        with self._changed:
            before = self._seen.get(new.metadata.name)
            if before is None or before[0] is not condition.is_true:
                self._seen[new.metadata.name] = (condition.is_true, now_s)
                self._changed.notify_all()


def _changes(place: Room, controller: Program, agent: Program, names: list[str]) -> list[Figure]:
    """Take the storage from one policy after another and wait until each says so."""
    programs = (controller, agent)
    time.sleep(_QUIET_S)
    before = [p.requests() for p in programs]
    began_s = time.monotonic()
    time.sleep(_QUIET_S)
    idle_per_s = [
        (p.requests() - b) / (time.monotonic() - began_s)
        for p, b in zip(programs, before, strict=True)
    ]
    before, began_s = [p.requests() for p in programs], time.monotonic()
    effects_ms = []
    with _PolicyTimes(place) as times:
        for name in names[:CHANGES]:
            times.wait(name, ready=True)
            changed_s = time.monotonic()
            _set_storage(place, name, "none")
            effects_ms.append((times.wait(name, ready=False) - changed_s) * 1000)
    time.sleep(1)  # what a change costs later belongs to it
    lasted_s = time.monotonic() - began_s
    per_change = [
        max((p.requests() - b - idle * lasted_s) / CHANGES, 0)
        for p, b, idle in zip(programs, before, idle_per_s, strict=True)
    ]
    figures = [
        Figure.of(
            effects_ms,
            part="many",
            name="one change to its effect",
            unit="ms",
            covers=(
                "a policy's storage config is taken away: from before the PATCH is sent until a "
                "watch shows its condition Ready=False"
            ),
        )
    ]
    return figures + [
        Figure.of(
            [requests],
            part="many",
            name=f"{program.name}: API requests per change",
            unit="",
            covers="mean; what it sends in the same time while nothing happens is taken off",
        )
        for program, requests in zip(programs, per_change, strict=True)
    ]


def _set_storage(place: Room, policy: str, storage: str) -> None:
    place.client.merge_patch(
        POD_SNAPSHOT_POLICIES,
        policy,
        {"spec": {"storageConfigName": storage}},
        namespace=place.namespace,
        field_manager=MANAGER,
    )


def _questions(place: Room, say: Callable[[str], None]) -> list[Figure]:
    """Ask why a Pod started as it did, each time with a new process."""
    podsnap = Path(sys.executable).with_name("podsnap")
    kubeconfig = str(place.cluster.kubeconfig)
    argv = [str(podsnap), "explain", "pod", "seed", "-n", place.namespace]
    took_ms = []
    for _ in range(QUESTIONS):
        began_s = time.monotonic()
        subprocess.run(
            [*argv, "--kubeconfig", kubeconfig], check=True, capture_output=True, timeout=30
        )
        took_ms.append((time.monotonic() - began_s) * 1000)
    say(f"{QUESTIONS} questions about one Pod")
    return [
        Figure.of(
            took_ms,
            part="many",
            name="explain",
            unit="ms",
            target=Target(limit=400),
            covers="the whole command, a new process each time",
        )
    ]
