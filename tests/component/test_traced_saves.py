# SPDX-License-Identifier: Apache-2.0
"""The controller's part of a trace: told once a save has ended, and marked on the PodSnapshot."""

import uuid
from collections.abc import Iterator, Sequence

import pytest
from cluster_world import World, eventually
from snapshot_bytes import make_snapshot

from backends.kube.client import POD_SNAPSHOTS, PODS, KubeClient
from reconciler.manager import Manager
from schemas.names import GIT_REVISION_ANNOTATION, POLICY_ORIGIN_ANNOTATION, TRACEPARENT_ANNOTATION
from schemas.snapshot import Snapshot
from schemas.span import Span, trace_id
from statemachine.trace import save_traceparent


@pytest.fixture
def told(manager: Manager) -> Iterator[list[Span]]:
    """What the controller tells, of all snapshots."""
    spans: list[Span] = []

    def take(new: Sequence[Span]) -> bool:
        spans.extend(new)
        return True

    manager.export_spans(take)
    yield spans
    manager.export_spans(lambda _: True)


def traced(world: World, name: str) -> Snapshot:
    """Wait until a snapshot carries the mark, and return it."""
    raw = eventually(
        lambda: (
            (found := world.get(POD_SNAPSHOTS, name))
            and TRACEPARENT_ANNOTATION in found["metadata"].get("annotations", {})
            and found
        ),
        f"{name} is traced",
    )
    return Snapshot.parse(raw)


def of(told: Sequence[Span], snapshot: Snapshot) -> list[str]:
    """Return the names of the spans of one snapshot."""
    return [s.name for s in told if s.trace_id == snapshot.trace_id]


def test_a_save_is_told_when_it_is_available_and_the_annotation_names_it(
    world: World, agent_client: KubeClient, told: list[Span]
) -> None:
    """With the instant of Ready, which only the controller knows; the policy is the root."""
    world.make_bucket()
    policy = world.policy()
    name = str(uuid.uuid4())
    make_snapshot(world, agent_client, name)
    snapshot = traced(world, name)
    assert snapshot.traceparent == save_traceparent(snapshot)
    assert of(told, snapshot) == ["policy", "save", "wait", "seal", "ready"]
    assert snapshot.origin.created_at == policy["metadata"]["creationTimestamp"]
    save = next(s for s in told if s.traceparent == snapshot.traceparent)
    assert save.attributes["podsnap.snapshot.name"] == name


def test_a_save_is_told_once_however_often_its_snapshot_changes(
    world: World, agent_client: KubeClient, told: list[Span]
) -> None:
    """The annotation is the mark, so neither does another process tell it again."""
    world.make_bucket()
    world.policy()
    name = str(uuid.uuid4())
    make_snapshot(world, agent_client, name)
    snapshot = traced(world, name)
    once = of(told, snapshot)
    world.admin.delete(POD_SNAPSHOTS, name, namespace=world.namespace)
    eventually(lambda: world.get(POD_SNAPSHOTS, name) is None, "the object is gone")
    assert of(told, snapshot) == once


def test_a_save_that_failed_is_told_as_an_error(world: World, told: list[Span]) -> None:
    """Its Pod is gone before any node claimed it."""
    world.make_bucket()
    world.storage()
    world.policy()
    world.pod()
    world.trigger("now")
    (raw,) = eventually(world.snapshots, "the snapshot is made")
    world.admin.delete(PODS, "web-0", namespace=world.namespace)
    snapshot = traced(world, raw["metadata"]["name"])
    (save,) = (s for s in told if s.traceparent == snapshot.traceparent)
    assert save.error.startswith("PodGone: ")
    assert GIT_REVISION_ANNOTATION not in snapshot.metadata.annotations
    assert snapshot.trace_id == trace_id("", snapshot.metadata.uid)
    assert POLICY_ORIGIN_ANNOTATION in snapshot.metadata.annotations


def test_a_save_whose_spans_were_not_taken_is_told_again(
    world: World, agent_client: KubeClient, manager: Manager, told: list[Span]
) -> None:
    """A full queue; the annotation would say that it was done."""
    asked: list[Span] = []

    def refuse(new: Sequence[Span]) -> bool:
        asked.extend(new)
        return False

    def take(new: Sequence[Span]) -> bool:
        told.extend(new)
        return True

    manager.export_spans(refuse)
    world.make_bucket()
    world.policy()
    name = str(uuid.uuid4())
    made = make_snapshot(world, agent_client, name)
    trace = trace_id("", made["metadata"]["uid"])
    eventually(lambda: any(s.trace_id == trace for s in asked), "the spans were refused")
    found = world.get(POD_SNAPSHOTS, name)
    assert found is not None
    assert TRACEPARENT_ANNOTATION not in found["metadata"].get("annotations", {})
    manager.export_spans(take)
    patch = {"metadata": {"annotations": {"a-change": "queues it"}}}
    world.admin.merge_patch(
        POD_SNAPSHOTS, name, patch, namespace=world.namespace, field_manager="tests"
    )
    assert "save" in of(told, traced(world, name))
