# SPDX-License-Identifier: Apache-2.0
"""The agent's part of a trace, out of the files that the runtime wrote beside a bundle."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from api_objects import capture_of, pod, snapshot
from stepped_clock import SteppedClock

from nodeexec import podsnap_runtime as runtime
from nodeexec import restore_traces, sandboxes
from nodeexec.decision import Decision
from nodeexec.restore_traces import RestoreTraces
from nodeexec.sandboxes import PreparedSandbox, mark_cold, read_cold_mark, read_record
from nodeexec.settings import AgentSettings
from policies.verdict import Reason
from schemas.conditions import Condition
from schemas.instants import to_time
from schemas.names import READY
from schemas.pod import Pod
from schemas.restore_times import RestoreTimes
from schemas.snapshot import Snapshot
from schemas.span import Span
from statemachine.restore import Outcome
from statemachine.trace import restore_traceparent

SANDBOX = "0123456789abcdef"


def _saved() -> Snapshot:
    return replace(snapshot("one"), capture=capture_of(pod()))


@dataclass(slots=True)
class Node:
    """A node with one Pod that is being restored, and what its agent tells."""

    root: Path
    clock: SteppedClock = field(default_factory=SteppedClock)
    pod: Pod = field(default_factory=lambda: pod("web-1"))
    found: Snapshot | None = field(default_factory=_saved)
    told: list[Span] = field(default_factory=list)

    @property
    def settings(self) -> AgentSettings:
        """The node's paths."""
        paths = (self.root,) * 10
        named = AgentSettings("node-1", *paths, bucket_root=self.root, cluster_id="c1")
        return replace(named, runtime_state_dir=self.root / "state")

    def traces(self) -> RestoreTraces:
        """Return those of an agent that has just started."""

        def send(spans: Sequence[Span]) -> bool:
            self.told.extend(spans)
            return True

        return RestoreTraces(self.settings, lambda *_: self.found, self.clock, send)

    @property
    def now_s(self) -> float:
        """The clock's seconds since the epoch."""
        return self.clock.now().timestamp()

    @property
    def bundle(self) -> Path:
        """The sandbox's bundle."""
        return self.settings.bundles_dir / SANDBOX

    def call(self) -> runtime.Call:
        """Return a call of the runtime on this node."""
        return runtime.Call([], {"runsc": "", "state_dir": str(self.settings.runtime_state_dir)})

    def decided(self) -> dict[str, Any]:
        """Write the record of a sandbox that restores, as the runtime does; returns it."""
        times = RestoreTimes(
            "shop", "web-1", "uid-web-1", asked_s=self.now_s - 3, decided_s=self.now_s - 2
        )
        assert self.found is not None
        restore = {
            "snapshot": "one",
            "snapshot_uid": self.found.metadata.uid,
            "image_ids": {"main": "sha256:1"},
            "times": times.until_answer(),
        }
        named = {"namespace": "shop", "name": "web-1", "uid": "uid-web-1"}
        record = {"pod": named, "sandbox": SANDBOX, "restore": restore}
        self.bundle.mkdir(parents=True)
        runtime.store(str(self.bundle / runtime.DECISION), record)
        return record

    def attempted(self, record: dict[str, Any]) -> None:
        """Note the attempt, as the runtime does before it calls runsc."""
        path = runtime.attempt_mark(self.call().settings, "uid-web-1")
        runtime.write_mark(self.call(), path, record, "the sandbox ended")
        self._at(Path(path), self.now_s - 1)

    def started(self) -> PreparedSandbox:
        """Note that the last container has started; returns the sandbox."""
        started = self.bundle / runtime.STARTED
        started.mkdir()
        (started / "main").touch()
        os.utime(started / "main", (self.now_s, self.now_s))
        sandbox = read_record(self.bundle / runtime.DECISION)
        assert sandbox is not None
        return sandbox

    def cold(self, record: dict[str, Any], reason: str) -> Path:
        """Note that the restore failed, as the runtime does; returns the note."""
        path = Path(runtime.cold_mark(self.call().settings, "uid-web-1"))
        runtime.write_mark(self.call(), str(path), record, reason)
        self._at(path, self.now_s)
        return path

    @staticmethod
    def _at(mark: Path, at_s: float) -> None:
        # The runtime has the machine's clock.
        raw = json.loads(mark.read_text(encoding="utf-8"))
        mark.write_text(json.dumps({**raw, "at": at_s}), encoding="utf-8")

    def shape(self) -> list[tuple[str, float, float]]:
        """Return what was told: each span, and its seconds before or after now."""
        now_s = self.now_s
        return [(s.name, s.start_s - now_s, s.end_s - now_s) for s in self.told]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node on which nothing was restored yet."""
    return Node(tmp_path)


def test_a_restored_pod_is_told_when_it_is_ready_and_once(node: Node) -> None:
    """By whatever sees it first, the watch or the scan."""
    node.attempted(node.decided())
    sandbox = node.started()
    traces = node.traces()
    node.clock.step(1)
    traces.became_ready(node.pod, node.now_s)
    traces.restored(sandbox, node.pod)
    assert node.shape() == [
        ("restore", -4, 0),
        ("decision", -4, -3),
        ("runsc restore", -2, -1),
        ("pod ready", -1, 0),
    ]
    assert node.found is not None
    assert node.told[0].traceparent == restore_traceparent(node.found, "uid-web-1")


def test_an_agent_that_was_away_tells_it_with_the_conditions_instant(node: Node) -> None:
    """And never that a Pod was Ready before its memory was back, however coarse that is."""
    node.attempted(node.decided())
    sandbox = node.started()
    early = to_time(node.clock.now() - timedelta(seconds=1))
    ready = Condition(READY, "True", "", last_transition_time=early)
    node.traces().restored(sandbox, replace(node.pod, conditions={READY: ready}))
    assert node.shape()[-1] == ("pod ready", 0, 0)


def test_a_pod_that_does_well_for_a_while_is_not_told_again(node: Node) -> None:
    """The note of its attempt is gone, which also a restarted agent sees."""
    node.decided()
    node.traces().restored(node.started(), node.pod)
    assert node.told == []


def test_a_pod_that_started_cold_has_no_restore(node: Node) -> None:
    """It becomes Ready as well."""
    node.traces().became_ready(node.pod, node.now_s)
    assert node.told == []


def test_a_failed_restore_is_told_from_the_runtimes_note(node: Node) -> None:
    """With the instants of its decision, and an error where it failed."""
    record = node.decided()
    node.attempted(record)
    mark = node.cold(record, "runsc restore: no memory")
    cold = read_cold_mark(mark)
    assert cold is not None
    node.traces().fell_back(node.pod, mark, cold)
    assert node.shape() == [
        ("restore", -3, 0),
        ("decision", -3, -2),
        ("runsc restore", -1, 0),
    ]
    assert [bool(s.error) for s in node.told] == [True, False, True]
    assert node.told[0].error == "runsc restore: no memory"


def test_a_restore_that_was_given_up_later_ends_when_that_is_told(node: Node) -> None:
    """The attempt's own note became that of the failure."""
    node.attempted(node.decided())
    node.clock.step(60)
    settings = node.settings
    attempt, mark = settings.attempts_dir / "uid-web-1", settings.cold_marks_dir / "uid-web-1"
    assert mark_cold(attempt, mark, "the Pod was not Ready")
    cold = read_cold_mark(mark)
    assert cold is not None
    node.traces().fell_back(node.pod, mark, cold)
    assert node.shape()[-1] == ("runsc restore", -61, 0)


def test_bytes_that_could_not_be_had_are_an_error_of_the_fetch(node: Node) -> None:
    """The decision was to restore; the Pod starts cold all the same."""
    times = RestoreTimes("shop", "web-1", "u", asked_s=node.now_s - 2, decided_s=node.now_s - 1)
    decision = Decision(
        pod=node.pod,
        outcome=Outcome.COLD_DESPITE_SNAPSHOT,
        cause=Reason.FETCH_FAILED,
        reason="the bucket is away",
        unfetched=node.found,
        times=times,
    )
    node.traces().unfetched(decision)
    assert node.shape() == [("restore", -2, 0), ("decision", -2, -1), ("fetch", -1, 0)]
    assert node.told[-1].error == "the bucket is away"


@pytest.mark.parametrize("found", [None, snapshot("one")], ids=["deleted", "another of its name"])
def test_without_its_snapshot_a_restore_has_no_trace(node: Node, found: Snapshot | None) -> None:
    """Names come back."""
    node.attempted(node.decided())
    sandbox = node.started()
    node.found = replace(found, metadata=replace(found.metadata, uid="other")) if found else None
    node.traces().restored(sandbox, node.pod)
    assert node.told == []


def test_files_that_are_no_notes_do_no_harm(node: Node) -> None:
    """What is missing in them is missing in the trace."""
    node.attempted(node.decided())
    sandbox = node.started()
    (node.bundle / runtime.DECISION).write_text("[]")
    node.traces().restored(sandbox, node.pod)
    assert [s.name for s in node.told] == ["restore", "runsc restore", "pod ready"]


def test_without_a_collector_a_restore_is_counted_and_no_span_is_made(node: Node) -> None:
    """Once, whoever tells of it first."""
    counted: list[RestoreTimes] = []
    traces = RestoreTraces(
        node.settings, lambda *_: pytest.fail("it was asked"), node.clock, count=counted.append
    )
    node.attempted(node.decided())
    traces.restored(node.started(), node.pod)
    traces.became_ready(node.pod, node.now_s)
    assert [times.pod_uid for times in counted] == [node.pod.metadata.uid]
    assert 0 < counted[0].restoring_s <= counted[0].restored_s


def test_whatever_goes_wrong_with_a_trace_stays_with_it(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Reports, counts and the note of the attempt matter more."""

    def broken(*_: object) -> Snapshot:
        raise RuntimeError("a view that is closed")

    record = node.decided()
    node.attempted(record)
    sandbox = node.started()
    traces = replace(node.traces(), snapshot_of=broken)
    traces.restored(sandbox, node.pod)
    mark = node.cold(record, "why")
    cold = read_cold_mark(mark)
    assert cold is not None
    traces.fell_back(node.pod, mark, cold)
    traces = replace(traces, count=broken)
    times = RestoreTimes("shop", "web-1", "u", decided_s=1)
    traces.unfetched(Decision(unfetched=node.found, times=times))
    monkeypatch.setattr(restore_traces, "sandbox_of_pod", broken)
    traces.became_ready(node.pod, node.now_s)
    assert [r.message for r in caplog.records] == ["a restore has no trace"] * 4


def test_a_bundle_that_goes_while_it_is_looked_for_is_no_error(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a Pod with two sandboxes the newest counts."""
    node.decided()
    sandbox = read_record(node.bundle / runtime.DECISION)
    assert sandbox is not None
    gone = replace(sandbox, bundle=node.bundle / "gone")
    monkeypatch.setattr(sandboxes, "prepared_sandboxes", lambda _: [gone, sandbox])
    assert sandboxes.sandbox_of_pod(node.settings.bundles_dir, "uid-web-1") == sandbox


@pytest.mark.parametrize(
    ("env", "joined"),
    [
        (["A=1", "TRACEPARENT="], ["A=1", "TRACEPARENT=00-a-b-01"]),
        (["TRACEPARENT=mine"], ["TRACEPARENT=mine"]),
        (["XTRACEPARENT=", "TRACEPARENT"], ["XTRACEPARENT=", "TRACEPARENT"]),
        ([], []),
    ],
    ids=["asked for", "set by the user", "other names", "not asked for"],
)
def test_a_container_joins_the_trace_only_if_its_spec_asks(
    env: list[str], joined: list[str]
) -> None:
    """By an empty variable."""
    spec = {"process": {"env": env}}
    runtime.join_trace(spec, "00-a-b-01")
    assert spec["process"]["env"] == joined
    runtime.join_trace({}, "00-a-b-01")
