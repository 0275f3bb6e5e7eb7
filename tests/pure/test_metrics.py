# SPDX-License-Identifier: Apache-2.0
"""What is counted, under which names, and that no label grows with the cluster."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from api_objects import capture_of, pod, snapshot, story_of
from prometheus_client import CollectorRegistry
from stepped_clock import SteppedClock

from backends.kube.reflector import Reflector
from backends.queue_metrics import QueueMetrics
from backends.work_queue import WorkQueue
from nodeexec.metrics import RESTORE_PHASES, SAVE_PHASES, AgentMetrics
from policies.verdict import COLD_START_REASONS
from reconciler.cluster_cache import ClusterCache
from reconciler.controller import Controller
from reconciler.metrics import RESULTS, ClusterGauges, ControllerMetrics
from schemas.conditions import Condition
from schemas.git_source import GitSource
from schemas.instants import to_time
from schemas.metadata import Metadata
from schemas.names import READY, TRIGGERED
from schemas.restore_times import RestoreTimes
from schemas.snapshot import ControlRecord
from schemas.trigger import ManualTrigger
from statemachine.snapshot import State

# What controller-runtime v0.24 serves, and dashboards for any controller ask for.
FLOOR = {
    "controller_runtime_reconcile_total",
    "controller_runtime_reconcile_errors_total",
    "controller_runtime_reconcile_time_seconds_bucket",
    "controller_runtime_max_concurrent_reconciles",
    "controller_runtime_active_workers",
    "workqueue_depth",
    "workqueue_adds_total",
    "workqueue_queue_duration_seconds_bucket",
    "workqueue_work_duration_seconds_bucket",
    "workqueue_retries_total",
    "workqueue_unfinished_work_seconds",
    "workqueue_longest_running_processor_seconds",
}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def clock() -> SteppedClock:
    """Time stands still."""
    return SteppedClock(NOW)


@pytest.fixture
def metrics() -> ControllerMetrics:
    """Metrics of one test alone."""
    return ControllerMetrics()


def value(registry: CollectorRegistry, sample: str, /, **labels: str) -> float | None:
    """Return a sample's value, ``None`` if there is no such series."""
    return registry.get_sample_value(sample, labels)


def test_a_controller_serves_the_metrics_that_every_controller_has(
    metrics: ControllerMetrics, clock: SteppedClock
) -> None:
    """Each of them at zero from the start, so that the first change is a change."""
    Controller("snapshot", lambda _: None, clock, metrics, threads=2)
    series = {
        sample.name: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.labels.get("controller") == "snapshot"
    }
    assert series.keys() >= FLOOR
    assert series.pop("controller_runtime_max_concurrent_reconciles") == 2
    assert {n for n, v in series.items() if v and not n.endswith("_created")} == set()


@pytest.mark.parametrize(
    ("again_s", "result"),
    [
        pytest.param(None, "success", id="done"),
        pytest.param(0.0, "requeue", id="at once"),
        pytest.param(5.0, "requeue_after", id="later"),
    ],
)
def test_a_reconcile_is_counted_by_how_it_ended(
    metrics: ControllerMetrics, again_s: float | None, result: str
) -> None:
    """And while it runs, as an active worker."""
    name = "controller_runtime_active_workers"

    def reconcile() -> float | None:
        assert value(metrics.registry, name, controller="policy") == 1
        return again_s

    metrics.of_controller("policy", threads=1)
    assert metrics.counted("policy", reconcile) == again_s
    counted = {
        r: value(
            metrics.registry, "controller_runtime_reconcile_total", controller="policy", result=r
        )
        for r in RESULTS
    }
    assert counted == {**dict.fromkeys(RESULTS, 0), result: 1}
    assert value(metrics.registry, name, controller="policy") == 0


def test_a_reconcile_that_raises_is_an_error_and_still_raises(metrics: ControllerMetrics) -> None:
    """It takes its time like any other."""

    def reconcile() -> float | None:
        raise OSError("the API server is away")

    with pytest.raises(OSError, match="away"):
        metrics.counted("policy", reconcile)
    labels = {"controller": "policy"}
    assert value(metrics.registry, "controller_runtime_reconcile_errors_total", **labels) == 1
    assert value(metrics.registry, "controller_runtime_reconcile_time_seconds_count", **labels) == 1
    name = "controller_runtime_reconcile_total"
    assert value(metrics.registry, name, **labels, result="error") == 1
    assert value(metrics.registry, name, **labels, result="success") is None


def test_a_queue_tells_how_long_keys_waited_and_how_long_they_are_worked_on(
    clock: SteppedClock,
) -> None:
    """Waiting counts from the first wish; what runs grows until it is done."""
    registry = CollectorRegistry()
    queue: WorkQueue[str] = WorkQueue(clock, name="q", metrics=QueueMetrics(registry))
    labels = {"name": "q", "controller": "q"}

    def told(name: str) -> float | None:
        return value(registry, f"workqueue_{name}", **labels)

    for key in ("a", "b", "a"):
        queue.add(key)
    assert (told("depth"), told("adds_total")) == (2, 2)
    clock.step(3)
    assert queue.get() == "a"
    clock.step(1)
    assert queue.get() == "b"
    assert told("queue_duration_seconds_sum") == 3 + 4
    clock.step(10)
    assert told("unfinished_work_seconds") == 11 + 10
    assert told("longest_running_processor_seconds") == 11
    queue.add("a")
    assert (told("depth"), told("adds_total")) == (0, 3)
    queue.done("a")
    queue.done("b")
    assert told("work_duration_seconds_sum") == 11 + 10
    assert told("longest_running_processor_seconds") == 0
    assert told("depth") == 1
    queue.retry("b")
    assert told("retries_total") == 1


# -- what the caches show


def put(reflector: Reflector[Any], *objects: Any) -> None:  # noqa: ANN401 - whatever it holds
    """Show objects to the controller."""
    for found in objects:
        reflector.store.put(found.metadata.key, found.metadata.uid or found.metadata.name, found)


def trigger(name: str, age_s: float, **fields: Any) -> ManualTrigger:  # noqa: ANN401 - its fields
    """Return a trigger that was made a while ago."""
    made = to_time(NOW - timedelta(seconds=age_s))
    return ManualTrigger(Metadata(name, "shop", name, creation_timestamp=made), "web-0", **fields)


def source(name: str, status: str) -> GitSource:
    """Return a GitSource with a status of ``Ready``."""
    conditions = [{"type": READY, "status": status, "reason": "R"}] if status else []
    return GitSource.parse(
        {
            "metadata": {"name": name, "namespace": "shop", "uid": name},
            "spec": {"url": "https://git.example/policies"},
            "status": {"conditions": conditions},
        }
    )


@pytest.fixture
def cache() -> ClusterCache:
    """Caches that no watch fills."""
    return ClusterCache(cast("Any", None))


@pytest.fixture
def told(cache: ClusterCache, clock: SteppedClock) -> Callable[..., float | None]:
    """What is served about the caches."""
    registry = CollectorRegistry()
    registry.register(ClusterGauges(cache, clock))
    return lambda name, **labels: value(registry, name, **labels)


def test_snapshots_are_counted_by_state_and_what_is_stored_by_bytes(
    cache: ClusterCache, told: Callable[..., float | None]
) -> None:
    """Those in quarantine beside; states that no snapshot is in stand at zero."""
    stored, damaged, failed, new = (
        replace(snapshot(name), control=ControlRecord(story_of(*states)))
        for name, states in (
            ("one", ("Pending", "AllSnapshotsAvailable")),
            ("two", ("AllSnapshotsAvailable", "Obsolete")),
            ("three", ("Failed",)),
            ("four", ()),
        )
    )
    put(cache.snapshots, stored, replace(damaged, damage="chunk 3"), failed, new)
    counted = {s: told("podsnap_snapshots", state=s) for s in State}
    assert counted == {
        **dict.fromkeys(State, 0),
        State.PENDING: 1,
        State.AVAILABLE: 1,
        State.OBSOLETE: 1,
        State.FAILED: 1,
    }
    assert told("podsnap_stored_bytes") == 2000
    assert told("podsnap_quarantined_snapshots") == 1


def test_the_oldest_trigger_without_an_answer_tells_its_age(
    cache: ClusterCache, told: Callable[..., float | None], clock: SteppedClock
) -> None:
    """One that was answered is served, and one that is being deleted is not waited for."""
    assert told("podsnap_oldest_unserved_trigger_seconds") == 0
    answered = {TRIGGERED: Condition(TRIGGERED, "True", "Complete", "")}
    waiting = {TRIGGERED: Condition(TRIGGERED, "False", "Pending", "")}
    put(
        cache.triggers,
        trigger("done", 900, conditions=answered),
        trigger("old", 60, conditions=waiting),
        trigger("new", 5),
    )
    clock.step(1)
    assert told("podsnap_oldest_unserved_trigger_seconds") == 61


def test_git_sources_are_counted_by_whether_they_are_ready(
    cache: ClusterCache, told: Callable[..., float | None]
) -> None:
    """A new one is neither."""
    put(cache.git_sources, source("a", "True"), source("b", "False"), source("c", ""))
    counted = [told("podsnap_git_sources", ready=s) for s in ("True", "False", "Unknown")]
    assert counted == [1, 1, 1]


# -- the agent


def test_the_phases_of_a_save_are_read_from_its_record() -> None:
    """Freeze holds the dump; a program that saves itself has neither."""
    metrics = AgentMetrics()
    record = capture_of(pod())

    def took_s(phase: str) -> tuple[float | None, float | None]:
        name = "podsnap_save_phase_seconds"
        return (
            value(metrics.registry, f"{name}_count", phase=phase),
            value(metrics.registry, f"{name}_sum", phase=phase),
        )

    def at(seconds_s: float) -> str:
        return f"2026-01-01T10:00:{seconds_s:09.6f}Z"

    metrics.sealed(replace(record, checkpointed_at=at(2), sealed_at=at(2.5)))
    assert (took_s("freeze"), took_s("dump")) == ((0, 0), (0, 0))
    assert took_s("seal") == (1, 0.5)
    timed = replace(record, frozen_at=at(1), dumping_at=at(1.25), dumped_at=at(3))
    metrics.sealed(timed)
    assert (took_s("freeze"), took_s("dump")) == ((1, 2), (1, 1.75))
    metrics.uploaded(replace(timed, uploading_at=at(3), uploaded_at=at(7)))
    assert took_s("upload") == (1, 4)
    assert value(metrics.registry, "podsnap_uploaded_bytes_total") == record.size_bytes
    assert value(metrics.registry, "podsnap_saves_total") == 1


def test_a_phase_of_a_restore_that_nobody_timed_is_not_counted() -> None:
    """Least of all as taking no time."""
    metrics = AgentMetrics()
    metrics.restored(
        RestoreTimes(
            "shop",
            "web-1",
            "u",
            asked_s=10,
            decided_s=10.5,
            fetching_s=3,
            fetched_s=9,
            restoring_s=11,
            restored_s=13,
        )
    )
    metrics.fetched(7, 2.5)  # counted where it happens: several Pods may have waited for it
    counted = {
        phase: value(metrics.registry, "podsnap_restore_phase_seconds_sum", phase=phase)
        for phase in RESTORE_PHASES
        if value(metrics.registry, "podsnap_restore_phase_seconds_count", phase=phase)
    }
    assert counted == {"decision": 0.5, "fetch": 2.5, "runsc_restore": 2}
    assert value(metrics.registry, "podsnap_fetched_bytes_total") == 7


def test_the_agents_labels_are_closed_sets() -> None:
    """Every series that there will ever be is there at the start, but those of API requests."""
    values: dict[str, set[str]] = {}
    for family in AgentMetrics().registry.collect():
        for sample in family.samples:
            for label, found in sample.labels.items():
                values.setdefault(label, set()).add(found)
    assert values.keys() == {"le", "outcome", "reason", "phase"}
    assert values["reason"] == {"", *COLD_START_REASONS}
    assert values["phase"] == {*SAVE_PHASES, *RESTORE_PHASES}
