# SPDX-License-Identifier: Apache-2.0
"""What nodes tell of restores in a snapshot's status: few writes, and nothing that stays."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from api_objects import capture_of, pod, snapshot
from stepped_clock import SteppedClock

from backends.kube.errors import ServerUnavailable
from backends.kube.events import EventRecorder
from nodeexec.pod_reports import PodReports
from nodeexec.restore_counts import RestoreCounts
from nodeexec.restore_progress import SHOWN_AT_MOST, RunningRestores
from schemas.pod import Pod
from schemas.snapshot import RestoreProgress, Snapshot

LARGE_BYTES = 200 << 20


class OneObject:
    """A client of an API server that has one PodSnapshot, and may refuse to write it."""

    def __init__(self) -> None:
        self.found = snapshot()
        capture = replace(capture_of(pod()), size_bytes=LARGE_BYTES)
        self.found = replace(self.found, capture=capture)
        self.status: dict[str, Any] = {}
        self.writes: list[Mapping[str, Any]] = []
        self.refuses = False
        self.living_uid = ""

    def get(self, _: object, name: str, **__: object) -> dict[str, Any]:
        """Return what has that name now, which may be another object."""
        if self.refuses:
            raise ServerUnavailable("later")
        assert name == self.found.metadata.name
        return {"metadata": {"uid": self.living_uid or self.found.metadata.uid}}

    def merge_patch(self, _: object, name: str, patch: Mapping[str, Any], **__: object) -> None:
        """Merge as the API server does, which takes any UID."""
        assert name == self.found.metadata.name
        self.writes.append(patch["status"])
        _merge(self.status, patch["status"])

    def latest(self, uid: str) -> Snapshot | None:
        """Return the snapshot as it is."""
        assert uid == self.found.metadata.uid
        record = Snapshot.parse({"status": self.status})
        return replace(self.found, restores=record.restores, restored_by=record.restored_by)

    @property
    def now(self) -> Snapshot:
        """The snapshot as it is."""
        found = self.latest(self.found.metadata.uid)
        assert found is not None
        return found


def _merge(into: dict[str, Any], patch: Mapping[str, Any]) -> None:
    for key, value in patch.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, Mapping):
            _merge(into.setdefault(key, {}), value)
        else:
            into[key] = value


@dataclass(slots=True)
class Node:
    """A node's restores, and what became of them in the API."""

    api: OneObject = field(default_factory=OneObject)
    clock: SteppedClock = field(default_factory=SteppedClock)
    name: str = "node-1"
    restores: RunningRestores = field(init=False)
    counts: RestoreCounts = field(init=False)

    def __post_init__(self) -> None:
        """Start an agent."""
        client: Any = self.api
        recorder = EventRecorder(client, component="tests", instance=self.name)
        reports = PodReports(client, recorder, self.clock)
        self.restores = RunningRestores(
            reports, node=self.name, latest=self.api.latest, clock=self.clock
        )
        self.counts = RestoreCounts(reports, node=self.name, clock=self.clock)

    def restore(self, one: Pod, measure: Callable[[], int] = lambda: 0) -> None:
        """Begin to restore a Pod."""
        self.restores.restoring(one, self.api.now, measure)

    def passes(self, seconds_s: float) -> None:
        """Let time pass, with the looks that the agent takes meanwhile."""
        for _ in range(round(seconds_s / 0.5)):
            self.restores.step()
            self.clock.step(0.5)
        self.restores.step()


@pytest.fixture
def node() -> Node:
    """A node on which nothing was restored yet."""
    return Node()


def test_a_restore_is_shown_once_it_takes_a_second_and_goes_with_its_end(node: Node) -> None:
    """With the bytes that are there, of all that will be."""
    node.restore(pod("web-1"), lambda: 50 << 20)
    node.passes(0.5)
    assert node.api.writes == []
    node.passes(0.5)
    assert node.api.now.restores == {
        "uid-web-1": RestoreProgress(
            "web-1",
            "node-1",
            "Restoring",
            "2026-01-01T00:00:00.000000Z",
            done_bytes=50 << 20,
            total_bytes=LARGE_BYTES,
        )
    }
    node.restores.ended("uid-web-1")
    node.passes(2)
    assert node.api.now.restores == {}
    assert len(node.api.writes) == 2
    node.passes(60)
    assert len(node.api.writes) == 2


def test_a_herd_of_quick_or_small_pods_costs_no_write(node: Node) -> None:
    """Ten at once keep a node busy for seconds, and nobody waits for bytes."""
    node.api.found = replace(node.api.found, capture=capture_of(pod()))
    for number in range(10):
        node.restore(pod(f"small-{number}"))
    node.passes(5)
    node.api.found = replace(
        node.api.found, capture=replace(capture_of(pod()), size_bytes=LARGE_BYTES)
    )
    for number in range(10):
        node.restores.ended(f"uid-small-{number}")
        node.restore(pod(f"quick-{number}"))
    node.passes(0.5)
    for number in range(10):
        node.restores.ended(f"uid-quick-{number}")
    node.passes(5)
    assert node.api.writes == []


def test_a_herd_of_large_pods_is_one_write_in_two_seconds(node: Node) -> None:
    """Whatever their number, and only while something moves."""
    arrived = [0]
    for number in range(10):
        node.restore(pod(f"web-{number}"), lambda: arrived[0])
    for _ in range(8):
        arrived[0] += 10 << 20
        node.passes(1)
    assert 3 <= len(node.api.writes) <= 5
    assert len(node.api.now.restores) == 10
    written = len(node.api.writes)
    node.passes(20)
    assert len(node.api.writes) - written <= 1


def test_a_slow_fetch_is_shown_whatever_its_size_and_goes_on_as_a_restore(node: Node) -> None:
    """One entry with one beginning, from the bucket to the memory."""
    node.api.found = replace(node.api.found, capture=capture_of(pod()))
    with node.restores.fetching(pod("web-1"), node.api.now):
        node.restores.fetched(node.api.found.metadata.uid, 400, 1000)
        node.passes(3)
        fetching = node.api.now.restores["uid-web-1"]
        assert (fetching.phase, fetching.done_bytes) == ("Fetching", 400)
    node.restore(pod("web-1"), lambda: 5000)
    node.passes(3)
    restoring = node.api.now.restores["uid-web-1"]
    assert (restoring.phase, restoring.done_bytes) == ("Restoring", 1000)
    assert restoring.started_at == fetching.started_at


def test_only_so_many_restores_are_shown(node: Node) -> None:
    """The status must not grow with the cluster; another node's entries count too."""
    other = Node(node.api, node.clock, "node-2")
    for number in range(SHOWN_AT_MOST - 2):
        node.restore(pod(f"here-{number}"))
    node.passes(1)
    for number in range(5):
        other.restore(pod(f"there-{number}"))
    other.passes(1)
    assert len(node.api.now.restores) == SHOWN_AT_MOST
    node.restores.ended("uid-here-0")
    node.passes(2)
    other.passes(2)
    assert len(node.api.now.restores) == SHOWN_AT_MOST
    assert len([p for p in node.api.now.restores.values() if p.node == "node-2"]) == 3


def test_an_end_that_could_not_be_written_is_written_later(node: Node) -> None:
    """Or the status would say for ever that a Pod is being restored."""
    node.restore(pod("web-1"))
    node.passes(1)
    node.api.refuses = True
    node.restores.ended("uid-web-1")
    node.passes(10)
    node.api.refuses = False
    node.passes(2)
    assert node.api.now.restores == {}


def test_a_restore_of_whose_end_nobody_tells_is_given_up(node: Node) -> None:
    """After ten minutes, which is longer than any takes."""
    node.restore(pod("web-1"))
    node.passes(590)
    assert node.api.now.restores
    node.passes(12)
    assert not node.api.now.restores


def test_an_agent_that_starts_removes_what_its_predecessor_left(node: Node) -> None:
    """And leaves alone what other nodes tell."""
    other = Node(node.api, node.clock, "node-2")
    for one in (node, other):
        one.restore(pod(f"on-{one.name}"))
        one.passes(1)
    successor = Node(node.api, node.clock)
    successor.restores.remove_left_behind([node.api.now])
    assert [p.node for p in node.api.now.restores.values()] == ["node-2"]


def test_what_a_lost_node_left_goes_with_another_nodes_next_write(node: Node) -> None:
    """Nobody else looks for it."""
    lost = Node(node.api, node.clock, "lost")
    lost.restore(pod("web-0"))
    lost.passes(1)
    node.clock.step(700)
    node.restore(pod("web-1"))
    node.passes(1)
    assert list(node.api.now.restores) == ["uid-web-1"]


# -- counts


def test_restores_are_counted_together_and_written_once_a_minute(node: Node) -> None:
    """The first at once, with the time of the last access."""
    for _ in range(10):
        node.counts.restored(node.api.now)
    assert node.api.writes == [
        {"lastAccessTime": "2026-01-01T00:00:00Z", "podsnap": {"restoredBy": {"node-1": 1}}}
    ]
    node.clock.step(30)
    node.counts.restored(node.api.now)
    node.clock.step(31)
    node.counts.flush()
    node.counts.flush()
    assert len(node.api.writes) == 2
    assert node.api.now.restored_by == {"node-1": 11}
    assert node.api.status["lastAccessTime"] == "2026-01-01T00:00:30Z"


def test_counts_of_nodes_and_of_an_earlier_agent_are_kept(node: Node) -> None:
    """Each node has its own number and goes on from it."""
    other = Node(node.api, node.clock, "node-2")
    for counts in (node.counts, other.counts, Node(node.api, node.clock).counts):
        counts.restored(node.api.now)
    assert node.api.now.restored_by == {"node-1": 2, "node-2": 1}


def test_an_agent_that_stops_writes_what_it_remembers(node: Node) -> None:
    """Without waiting for the minute."""
    for _ in range(3):
        node.counts.restored(node.api.now)
    node.counts.stop()
    assert node.api.now.restored_by == {"node-1": 3}


def test_a_count_that_could_not_be_written_is_not_lost(node: Node) -> None:
    """It is written with the next one that is due."""
    node.api.refuses = True
    node.counts.restored(node.api.now)
    node.api.refuses = False
    node.clock.step(61)
    node.counts.restored(node.api.now)
    assert node.api.now.restored_by == {"node-1": 2}


def test_another_object_of_the_same_name_is_left_alone(node: Node) -> None:
    """Derived names come back, and the API server compares no UID in a patch of a status."""
    node.api.living_uid = "of-another"
    node.counts.restored(node.api.now)
    assert node.api.writes == []
