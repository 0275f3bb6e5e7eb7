# SPDX-License-Identifier: Apache-2.0
"""One snapshot's life under thousands of schedules, of which every version is looked at."""

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interleaving import Move
from schedule_world import MOVES, World

from schemas.conditions import Condition
from schemas.manifest import MANIFEST_NAME, Manifest, digest
from schemas.names import CHECKPOINT, READY, STORAGE_REPLICATED
from schemas.policy import TriggerType
from schemas.snapshot import Snapshot
from statemachine.snapshot import CONDITIONS, TRANSITIONS, State, recorded_state

SCHEDULES = 2000
# What happens all the time, so that the rest meets a save at every stage.
OFTEN = (
    *("goes on",) * 16,
    *("catches up",) * 8,
    *("works",) * 4,
    *("whoever acts is killed", "the dead start", "sees one change") * 2,
)
BREATHS = (0, 0, 0, 1, 2, 3, 5, 8, 13)

moves = st.tuples(st.sampled_from((*OFTEN, *MOVES)), st.integers(0, 7), st.sampled_from(BREATHS))


class Witness:
    """Sees every version of the PodSnapshot, and says what no version may be."""

    def __init__(self, world: World) -> None:
        """Look into a world's bucket."""
        self.world = world
        self.newest: dict[str, int] = {}

    def __call__(self, before: Snapshot | None, after: Snapshot | None) -> None:
        """Look at a version and at the one that it follows."""
        if after is None:
            self.bytes_go_first(before)
            return
        same = before if before and before.metadata.uid == after.metadata.uid else None
        self.conditions_render_per_table(after)
        self.ready_only_with_a_verified_manifest(same, after)
        self.bytes_have_a_record(after)
        assert not after.damage or after.metadata.uid in self.world.damaged, after
        if same is not None:
            self.what_was_claimed_is_deleted_by_users_alone(same, after)
            self.the_story_grows_by_known_transitions(same, after)
            self.terminal_is_terminal(same, after)
            self.only_the_claiming_attempt_is_recorded(same, after)

    def conditions_render_per_table(self, now: Snapshot) -> None:
        """``Ready`` is that of the recorded state; the node's two are one row's."""
        state = recorded_state(now)
        if state is State.DELETING:
            self.newest.setdefault(now.metadata.uid, self.world.bucket.newest)
        ready = now.conditions.get(READY)
        assert (ready is None) == (state is None)
        if ready is not None and state is not None:
            assert _shown(ready) == CONDITIONS[state].ready, now
        pair = tuple(_shown(now.conditions.get(t)) for t in (CHECKPOINT, STORAGE_REPLICATED))
        rows = {(r.checkpoint, r.storage_replicated) for r in CONDITIONS.values()}
        assert pair in rows, now

    def ready_only_with_a_verified_manifest(self, before: Snapshot | None, now: Snapshot) -> None:
        """At the moment when it becomes so, everything is in the bucket."""
        if not _is_ready(now) or (before is not None and _is_ready(before)):
            return
        capture = now.capture
        assert capture is not None
        assert capture.failure is None
        assert not now.metadata.is_deleting
        assert is_whole(self.world, now), now

    def bytes_have_a_record(self, now: Snapshot) -> None:
        """Whoever deletes the object knows from it where its bytes are."""
        place = now.capture.location.path if now.capture and now.capture.location else None
        for name, (info, _) in self.world.bucket.objects.items():
            if info.metadata["podsnap-snapshot-uid"] == now.metadata.uid:
                assert place is not None, now
                assert name.startswith(f"{place}/"), now

    def bytes_go_first(self, gone: Snapshot | None) -> None:
        """What was there when its end began is gone when the object goes."""
        uid = gone.metadata.uid if gone else ""
        newest = self.newest.get(uid, self.world.bucket.newest)
        for info, _ in self.world.bucket.objects.values():
            assert info.metadata["podsnap-snapshot-uid"] != uid or info.generation > newest, gone

    def what_was_claimed_is_deleted_by_users_alone(self, before: Snapshot, now: Snapshot) -> None:
        """The controller deletes only what nobody began to save."""
        if now.metadata.is_deleting and not before.metadata.is_deleting:
            assert before.capture is None or now.metadata.uid in self.world.unwanted, now

    def the_story_grows_by_known_transitions(self, before: Snapshot, now: Snapshot) -> None:
        """Nothing that was told is taken back."""
        told, story = before.control.story, now.control.story
        assert story[: len(told)] == told, (told, story)
        for first, second in itertools.pairwise((told[-1:] or (None,)) + story[len(told) :]):
            origin = State(first.state) if first else None
            assert State(second.state) in TRANSITIONS[origin], story

    def terminal_is_terminal(self, before: Snapshot, now: Snapshot) -> None:
        """A client that gave up was right to."""
        for kind in (CHECKPOINT, STORAGE_REPLICATED, READY):
            then, is_now = before.conditions.get(kind), now.conditions.get(kind)
            if then is not None and then.reason in {"Failed", "Error"}:
                allowed = {"Failed", "Deleting"} if kind == READY else {"Failed"}
                assert is_now is not None
                assert is_now.reason in allowed

    def only_the_claiming_attempt_is_recorded(self, before: Snapshot, now: Snapshot) -> None:
        """An ended save is never written to; an attempt only gives way to the next one."""
        was, record = before.capture, now.capture
        if was is None:
            return
        assert record is not None
        if was.failure is not None or was.uploaded_at:
            assert record == was
        elif record.claimed_at != was.claimed_at and record.failure is None:
            assert (record.node, record.attempt) == (was.node, was.attempt + 1)


def is_whole(world: World, snapshot: Snapshot) -> bool:
    """Whether the bucket has the manifest that the record names, and every part as it says."""
    capture, objects = snapshot.capture, world.bucket.objects
    place = capture.location.path if capture and capture.location else ""
    _, text = objects.get(f"{place}/{MANIFEST_NAME}", (None, b""))
    if capture is None or digest(text) != capture.manifest_digest:
        return False
    manifest = Manifest.parse(text)
    if (manifest.snapshot_uid, manifest.attempt) != (snapshot.metadata.uid, capture.attempt):
        return False
    found = (objects.get(f"{place}/{part.name}") for part in manifest.parts)
    return all(
        f is not None and (f[0].generation, f[0].crc32c) == (part.generation, part.crc32c)
        for f, part in zip(found, manifest.parts, strict=True)
    )


def _shown(condition: Condition | None) -> tuple[str, str] | None:
    return (condition.status, condition.reason) if condition else None


def _is_ready(snapshot: Snapshot) -> bool:
    return READY in snapshot.conditions and snapshot.conditions[READY].is_true


def check_the_end(world: World) -> None:
    """Nothing is left for ever without a reason and a next look, and no byte without an owner."""
    now = world.live()
    owned = now.metadata.uid if now else ""
    has_storage = world.api.get("podsnapshotstorageconfigs", "store") is not None
    for name, (info, _) in world.bucket.objects.items():
        is_owned = info.metadata["podsnap-snapshot-uid"] == owned
        assert is_owned or not has_storage, f"{name} belongs to nobody"
    if now is None:
        return
    state = recorded_state(now)
    assert state is not None
    ready = now.conditions[READY]
    assert ready.message
    assert not now.metadata.is_deleting, "the object is never released"
    if state in {State.AVAILABLE, State.OBSOLETE}:
        is_wanted = world.api.get("podsnapshotpolicies", "web", "shop") and not now.quarantine
        assert (state is State.AVAILABLE) == bool(is_wanted)
        assert is_whole(world, now), now
    if state in {State.AVAILABLE, State.OBSOLETE, State.FAILED}:
        return
    # Everybody lives and the bucket takes bytes: only what must come from outside is waited for.
    assert state is State.PENDING, now
    assert now.awaits_workload or not has_storage, now
    assert world.controllers[1].looks_again(), now


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the nodes' disks are; a killed program loses nothing of what it did not sync."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: None)
        patched.setattr(logging.root.manager, "disable", logging.CRITICAL)
        yield tmp_path_factory.mktemp("worlds")


# Short schedules by which a defect shows; the comment says which.
FOUND: tuple[tuple[TriggerType, tuple[Move, ...]], ...] = (
    # A second leader took a story back.
    (TriggerType.READINESS_PROBE, (("goes on", 1, 0), ("goes on", 2, 8), ("works", 0, 0))),
    # The policy or the storage config went between two attempts: nobody ever ended the save.
    (
        TriggerType.READINESS_PROBE,
        (("goes on", 1, 1), ("whoever acts is killed", 0, 5), ("the policy is deleted", 0, 0)),
    ),
    (
        TriggerType.MANUAL,
        (
            ("goes on", 1, 1),
            ("whoever acts is killed", 0, 5),
            ("the storage config is deleted", 0, 0),
        ),
    ),
    # The answer to the last report was lost, and the stored bytes were taken for another save's.
    (
        TriggerType.WORKLOAD,
        (
            ("the workload asks", 1, 8),
            ("goes on", 3, 0),
            ("an answer is bad", 1, 13),
            ("goes on", 1, 13),
            ("a Pod is made", 0, 2),
            ("goes on", 0, 2),
        ),
    ),
    # Ready was written on an object whose deletion had begun.
    (
        TriggerType.MANUAL,
        (
            ("goes on", 1, 3),
            ("a node is lost", 1, 0),
            ("goes on", 0, 13),
            ("goes on", 0, 8),
            ("goes on", 0, 8),
            ("the snapshot is deleted", 0, 0),
        ),
    ),
    # A late report of damage is about an object that is gone, and another one has its name.
    (
        TriggerType.READINESS_PROBE,
        (
            ("catches up", 1, 0),
            ("catches up", 0, 0),
            ("catches up", 1, 0),
            ("the snapshot is deleted", 0, 0),
            ("catches up", 0, 0),
            ("a snapshot is made", 0, 0),
            ("bytes are found damaged", 0, 0),
        ),
    ),
    # The bucket refuses a deletion: two messages took turns, and each of them woke the controller.
    (
        TriggerType.MANUAL,
        (
            ("catches up", 1, 0),
            ("catches up", 0, 0),
            ("the bucket", 0, 0),
            ("the snapshot is deleted", 0, 0),
            ("catches up", 0, 0),
        ),
    ),
    # A leader that was away for a moment deletes by a list in which its object's successor is.
    (
        TriggerType.READINESS_PROBE,
        (
            ("catches up", 1, 0),
            ("catches up", 0, 0),
            ("the snapshot is deleted", 0, 0),
            ("goes on", 0, 0),
            ("catches up", 2, 1),
            ("a snapshot is made", 0, 0),
            ("catches up", 1, 0),
        ),
    ),
    # A part arrives after its object's end, and its agent dies: only the sweep knows of it.
    (
        TriggerType.MANUAL,
        (
            ("catches up", 0, 0),
            ("goes on", 1, 0),
            ("the snapshot is deleted", 0, 16),
            ("catches up", 0, 0),
            ("whoever acts is killed", 0, 2),
        ),
    ),
)


def _end(world: World) -> State | None:
    now = world.live()
    return recorded_state(now) if now else None


def live_through(directory: Path, trigger: TriggerType, schedule: Sequence[Move]) -> None:
    """Let a schedule happen, then let everything come to rest."""
    world = World(directory, trigger, schedule)
    world.on_version = Witness(world)
    world.run()
    world.settle()
    check_the_end(world)


@pytest.mark.parametrize(("trigger", "schedule"), FOUND)
def test_short_schedules_find_no_defect_any_more(
    directory: Path, tmp_path: Path, trigger: TriggerType, schedule: tuple[Move, ...]
) -> None:
    """Two leaders, a lost answer, and kills at the wrong moment."""
    live_through(tmp_path, trigger, schedule)


UNDISTURBED: dict[TriggerType, Move] = {
    TriggerType.MANUAL: ("works", 1, 0),
    TriggerType.READINESS_PROBE: ("works", 1, 0),
    TriggerType.WORKLOAD: ("the workload asks", 0, 0),
    TriggerType.ON_DELETE: ("the Pod is saved and goes", 0, 0),
}


@pytest.mark.parametrize("trigger", UNDISTURBED)
def test_a_save_that_nothing_disturbs_ends_well_however_late_the_views_are(
    directory: Path, tmp_path: Path, trigger: TriggerType
) -> None:
    """What a cache does not show yet is not gone."""
    world = World(tmp_path, trigger, [UNDISTURBED[trigger]])
    world.run()
    world.settle()
    assert _end(world) is State.AVAILABLE


@pytest.mark.parametrize("trigger", UNDISTURBED)
def test_a_sealed_image_outlives_an_outage_of_the_bucket_and_an_agent(
    directory: Path, tmp_path: Path, trigger: TriggerType
) -> None:
    """It waits on its node, and whoever starts there stores it; the Pod is not saved again."""
    away, sees = ("the bucket", 1, 0), ("catches up", 1, 0)
    world = World(tmp_path, trigger, [away, UNDISTURBED[trigger], sees])
    world.run()
    found = world.live()
    assert found is not None
    assert found.capture is not None
    assert found.conditions[CHECKPOINT].is_true
    assert "waits to be stored: made by a test" in found.conditions[STORAGE_REPLICATED].message
    assert not world.bucket.objects
    world.agents[0].is_alive = False
    world.settle()
    assert _end(world) is State.AVAILABLE
    now = world.live()
    assert now is not None
    assert now.capture is not None
    assert now.capture.claimed_at == found.capture.claimed_at


def test_a_bucket_that_is_away_is_not_asked_at_every_look(directory: Path, tmp_path: Path) -> None:
    """Nor is it forgotten; a change of the object, or the agent's scan, comes sooner."""
    world = World(tmp_path, TriggerType.MANUAL, [("the bucket", 1, 0), ("catches up", 1, 0)])
    world.run()
    world.bucket.is_away = False
    agent = world.agents[0]
    agent.scan()
    world.catch_up(agent)
    assert not world.bucket.objects
    world.now_s += 16
    world.catch_up(agent)
    assert world.bucket.objects


def test_whatever_happens_in_whatever_order(directory: Path) -> None:
    """Two leaders, two agents, stale caches, lost answers, kills: no version is a wrong one."""
    lived = itertools.count()

    @settings(max_examples=SCHEDULES, suppress_health_check=[HealthCheck.too_slow])
    @given(trigger=st.sampled_from(TriggerType), schedule=st.lists(moves, min_size=5, max_size=50))
    def once(trigger: TriggerType, schedule: Sequence[Move]) -> None:
        live_through(directory / str(next(lived)), trigger, schedule)

    once()

    assert next(lived) >= SCHEDULES
