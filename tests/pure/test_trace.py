# SPDX-License-Identifier: Apache-2.0
import math
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from api_objects import capture_of, pod, policy, snapshot
from hypothesis import given
from hypothesis import strategies as st

from policies.new_snapshots import manual_snapshot
from schemas.conditions import Condition
from schemas.instants import to_micro_time
from schemas.metadata import Metadata
from schemas.names import (
    CREATED_AT_ANNOTATION,
    GIT_REVISION_ANNOTATION,
    POD_RESTORED,
    POLICY_ORIGIN_ANNOTATION,
    READY,
)
from schemas.policy_origin import PolicyOrigin
from schemas.restore_times import RestoreTimes
from schemas.snapshot import CaptureRecord, ControlRecord, Failure, Snapshot, StoryEntry
from schemas.span import Span
from schemas.trigger import ManualTrigger
from statemachine.trace import (
    restore_spans,
    restore_times,
    restore_traceparent,
    save_spans,
    save_traceparent,
)

REVISION = "main@sha1:0123456789abcdef0123456789abcdef01234567"
BEGAN = datetime(2026, 1, 1, 10, tzinfo=UTC).timestamp()
FAILURE = Failure("UploadFailed", "the bucket is away")


def at(seconds: float) -> str:
    """Return an instant, so many seconds after ten o'clock."""
    return to_micro_time(datetime.fromtimestamp(BEGAN + seconds, UTC))


ORIGIN = PolicyOrigin(
    revision=REVISION,
    source="Kustomization flux-system/apps",
    seen_at=at(-30),
    applied_at=at(-20),
    created_at=at(-20),
    ready_at=at(-19),
)
CAPTURE = replace(
    capture_of(pod()),
    claimed_at=at(1),
    frozen_at=at(2),
    dumping_at=at(3),
    dumped_at=at(5),
    checkpointed_at=at(5),
    sealed_at=at(6),
    uploading_at=at(6),
    uploaded_at=at(8),
    upload_parts=3,
    size_bytes=1000,
)
TIMES = RestoreTimes(
    namespace="shop",
    pod_name="web-1",
    pod_uid="uid-web-1",
    node="node-2",
    asked_s=BEGAN + 100,
    decided_s=BEGAN + 100.25,
    gating_s=BEGAN + 100.25,
    gated_s=BEGAN + 101,
    fetching_s=BEGAN + 101,
    fetched_s=BEGAN + 103,
    verifying_s=BEGAN + 103,
    verified_s=BEGAN + 104,
    restoring_s=BEGAN + 106,
    restored_s=BEGAN + 108,
    ready_s=BEGAN + 109,
)


def saved(
    capture: CaptureRecord | None = CAPTURE,
    *,
    origin: PolicyOrigin = ORIGIN,
    ready_at: str = at(8.5),
    story: Iterable[StoryEntry] = (),
) -> Snapshot:
    """Return a snapshot as it stands after its save, or in the midst of it."""
    annotations = {CREATED_AT_ANNOTATION: at(0), POLICY_ORIGIN_ANNOTATION: origin.to_annotation()}
    if origin.revision:
        annotations[GIT_REVISION_ANNOTATION] = origin.revision
    return replace(
        snapshot(),
        metadata=Metadata(name="one", namespace="shop", uid="u-1", annotations=annotations),
        capture=capture,
        control=ControlRecord(story=tuple(story), ready_at=ready_at),
    )


def tree(spans: Iterable[Span]) -> dict[str, tuple[str, float, float]]:
    """Return each span's parent by name, and its seconds after ten."""
    listed = list(spans)
    names = {s.span_id: s.name for s in listed}
    return {
        s.name: (
            names.get(s.parent_id, s.parent_id),
            round(s.start_s - BEGAN, 3),
            round(s.end_s - BEGAN, 3),
        )
        for s in listed
    }


def test_a_trace_runs_from_the_commit_through_the_save_to_the_restored_pod() -> None:
    """Parent and child throughout, each step with its own time."""
    made = saved()
    assert tree([*save_spans(made), *restore_spans(made, TIMES)]) == {
        "commit 0123456789ab": ("", -30, -20),
        "policy reconciled": ("commit 0123456789ab", -20, -19),
        "save": ("commit 0123456789ab", 0, 8.5),
        "wait": ("save", 0, 1),
        "freeze": ("save", 2, 5),
        "dump": ("save", 3, 5),
        "seal": ("save", 5, 6),
        "upload": ("save", 6, 8),
        "ready": ("save", 8, 8.5),
        "restore": ("save", 100, 109),
        "decision": ("restore", 100, 100.25),
        "gate": ("restore", 100.25, 101),
        "fetch": ("restore", 101, 103),
        "verify": ("restore", 103, 104),
        "runsc restore": ("restore", 106, 108),
        "pod ready": ("restore", 108, 109),
    }


def test_links_say_the_same_as_parents() -> None:
    """In addition, because some backends show only one of the two."""
    commit, _, save, *_ = save_spans(saved())
    restore, *_ = restore_spans(saved(), TIMES)
    assert save.links == ((commit.trace_id, commit.span_id),)
    assert restore.links == ((save.trace_id, save.span_id),)


def test_attributes_name_what_happened_where() -> None:
    """By the semantic conventions where they have a name."""
    commit, _, save, *phases = save_spans(saved())
    assert commit.attributes == {
        "vcs.ref.head.revision": REVISION.rpartition(":")[2],
        "vcs.ref.head.name": "main",
        "podsnap.git.revision": REVISION,
        "podsnap.git.source": "Kustomization flux-system/apps",
    }
    assert save.attributes == {
        "k8s.namespace.name": "shop",
        "k8s.pod.name": "web-0",
        "k8s.pod.uid": "uid-web-0",
        "k8s.node.name": "node-1",
        "podsnap.snapshot.name": "one",
        "podsnap.snapshot.uid": "u-1",
        "podsnap.policy.name": "web",
        "podsnap.save.attempt": 1,
        "podsnap.save.bytes": 1000,
        "podsnap.save.scope": "whole-pod",
    }
    upload = next(s for s in phases if s.name == "upload")
    assert upload.attributes["podsnap.upload.parts"] == 3
    assert upload.attributes["podsnap.upload.bytes_per_second"] == 500
    fetch = next(s for s in restore_spans(saved(), TIMES) if s.name == "fetch")
    assert fetch.attributes["podsnap.fetch.bytes_per_second"] == 500


def test_without_a_commit_the_policy_is_the_root() -> None:
    """Somebody applied it with kubectl; its trace id is made of the empty revision."""
    spans = save_spans(saved(origin=replace(ORIGIN, revision="", seen_at="", applied_at="")))
    assert tree(spans[:2]) == {"policy": ("", -20, -19), "save": ("policy", 0, 8.5)}
    assert spans[0].trace_id != save_spans(saved())[0].trace_id


def test_a_policy_that_was_ready_before_the_commit_was_not_reconciled_for_it() -> None:
    """The commit left it as it was."""
    _, second, *_ = save_spans(saved(origin=replace(ORIGIN, ready_at=at(-500))))
    assert second.name == "save"


def test_a_failed_save_is_an_error_and_so_is_the_step_that_it_failed_in() -> None:
    """What was over before is none; what never began is not there."""
    failed = replace(CAPTURE, uploaded_at="", failure=FAILURE, failed_at=at(7))
    _, _, save, *steps = save_spans(saved(failed, ready_at=""))
    assert (save.error, save.end_s) == ("UploadFailed: the bucket is away", BEGAN + 7)
    assert [(s.name, bool(s.error)) for s in steps] == [
        ("wait", False),
        ("freeze", False),
        ("dump", False),
        ("seal", False),
        ("upload", True),
    ]


def test_a_save_that_the_controller_gave_up_ends_when_its_story_says() -> None:
    """The node that would have recorded the instant is lost."""
    lost = CaptureRecord(node="node-1", attempt=1, claimed_at=at(1), failure=FAILURE)
    story = (StoryEntry("Failed", at(60)),)
    save = save_spans(saved(lost, ready_at="", story=story))[2]
    assert (save.start_s, save.end_s) == (BEGAN, BEGAN + 60)


def test_a_restore_that_failed_ends_in_the_step_that_failed() -> None:
    """The Pod then started cold, which is no part of this trace."""
    times = replace(TIMES, restored_s=0, ready_s=0, failed_s=BEGAN + 107, error="runsc restore: no")
    restore, *steps = restore_spans(saved(), times)
    assert restore.error == "runsc restore: no"
    assert restore.attributes["podsnap.restore.outcome"] == "cold"
    assert [(s.name, s.error) for s in steps if s.error] == [("runsc restore", "runsc restore: no")]
    assert steps[-1].end_s == restore.end_s == BEGAN + 107


def test_a_trace_is_told_while_the_save_goes_on() -> None:
    """As far as it is known: nothing ends that has not ended."""
    going = CaptureRecord(node="node-1", attempt=1, claimed_at=at(1), frozen_at=at(2))
    told = tree(save_spans(saved(going, ready_at="")))
    assert list(told) == ["commit 0123456789ab", "policy reconciled", "save", "wait"]
    assert told["save"][1:] == told["wait"][1:] == (0, 1)
    assert tree(save_spans(saved(None, ready_at=""))[2:])["save"][1:] == (0, 0)


def test_a_pods_conditions_tell_its_restore_with_the_same_ids() -> None:
    """Coarser, in whole seconds, and without the steps that only its node knows."""
    since = {"PodReadyToStartContainers": at(106), POD_RESTORED: at(108), READY: at(109)}
    conditions = {t: Condition(t, "True", "", "", when) for t, when in since.items()}
    restored = replace(pod("web-1"), conditions=conditions)
    times = restore_times(restored)
    assert times is not None
    coarse, exact = restore_spans(saved(), times), restore_spans(saved(), TIMES)
    assert tree(coarse) == {
        "restore": (exact[0].parent_id, 106, 109),
        "runsc restore": ("restore", 106, 108),
        "pod ready": ("restore", 108, 109),
    }
    assert {s.span_id for s in coarse} < {s.span_id for s in exact}
    assert restore_times(pod()) is None


def test_a_failed_restore_is_told_by_the_pods_condition_too() -> None:
    """With its message, and nothing after it."""
    condition = Condition(POD_RESTORED, "False", "FailedToRestore", "why", at(108))
    times = restore_times(replace(pod("web-1"), conditions={POD_RESTORED: condition}))
    assert times is not None
    (restore,) = restore_spans(saved(), times)
    assert (restore.error, restore.end_s) == ("why", BEGAN + 108)


def test_headers_name_the_spans_that_are_told() -> None:
    """A program that joins finds its parent."""
    made = saved()
    assert save_traceparent(made) == save_spans(made)[2].traceparent
    restore, *_ = restore_spans(made, TIMES)
    assert restore_traceparent(made, TIMES.pod_uid) == restore.traceparent


def test_a_pod_of_which_no_instant_is_known_has_no_spans() -> None:
    """An empty time would be 1970."""
    assert restore_spans(saved(), RestoreTimes("shop", "web-1", "u")) == []


def test_what_the_answer_carries_comes_back_from_the_file_beside_the_bundle() -> None:
    """And text in place of an instant does no harm."""
    unknown = RestoreTimes("shop", "web-1", "u")
    known = unknown.with_answer(TIMES.until_answer())
    assert known.until_answer() == TIMES.until_answer()
    assert (known.restoring_s, known.restored_s, known.ready_s) == (0, 0, 0)
    assert unknown.with_answer({"asked_s": "soon", "nonsense": 1.0}) == unknown


@pytest.mark.parametrize(
    ("revision", "commit", "ref"),
    [
        (REVISION, REVISION.rpartition(":")[2], "main"),
        ("feature/x@y@sha1:ab", "ab", "feature/x@y"),
        ("0123abcd", "0123abcd", ""),
        ("", "", ""),
    ],
    ids=["Flux", "a branch with @", "Argo CD", "none"],
)
def test_a_revision_is_read_as_its_tool_writes_it(revision: str, commit: str, ref: str) -> None:
    """Commit and branch apart."""
    origin = PolicyOrigin(revision=revision)
    assert (origin.commit, origin.ref) == (commit, ref)


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "null", '{"seenAt": ""}'])
def test_an_annotation_that_says_nothing_is_no_origin(text: str) -> None:
    """The trace then begins at the policy."""
    assert PolicyOrigin.parse(text) == PolicyOrigin()


def test_a_new_snapshot_pins_what_brought_its_policy() -> None:
    """Later reads need nothing else; without a lookup the policy's own annotations count."""
    trigger = ManualTrigger(Metadata("now", "shop", "u-t"), target_pod="web-0")
    body = manual_snapshot("one", pod(), policy(), by=trigger, now=at(0), origin=ORIGIN)
    pinned = Snapshot.parse(body)
    assert pinned.origin == ORIGIN
    assert pinned.git_revision == REVISION
    plain = Snapshot.parse(manual_snapshot("one", pod(), policy(), by=trigger, now=at(0)))
    assert plain.origin == PolicyOrigin(created_at="2026-01-01T00:00:00Z")


# Clocks that are off by centuries, no zone, no time at all.
odd = ["", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00", "soon"]
instants = st.one_of(st.sampled_from(odd), st.floats(-1000, 1000).map(at))
seconds = st.one_of(
    st.sampled_from([0.0, -6e10, 2.5e11, math.inf, math.nan]),
    st.floats(BEGAN - 1000, BEGAN + 1000),
)
captures = st.builds(
    CaptureRecord,
    node=st.sampled_from(["", "node-1"]),
    attempt=st.integers(0, 3),
    claimed_at=instants,
    frozen_at=instants,
    dumping_at=instants,
    dumped_at=instants,
    checkpointed_at=instants,
    sealed_at=instants,
    uploading_at=instants,
    uploaded_at=instants,
    failed_at=instants,
    size_bytes=st.integers(0, 10**12),
    failure=st.one_of(st.none(), st.just(FAILURE)),
)
origins = st.builds(
    PolicyOrigin,
    revision=st.sampled_from(["", REVISION, "abc"]),
    seen_at=instants,
    applied_at=instants,
    created_at=instants,
    ready_at=instants,
)
times_of = st.builds(
    RestoreTimes,
    namespace=st.just("shop"),
    pod_name=st.just("web-1"),
    pod_uid=st.sampled_from(["a", "b"]),
    asked_s=seconds,
    decided_s=seconds,
    fetching_s=seconds,
    fetched_s=seconds,
    verifying_s=seconds,
    verified_s=seconds,
    restoring_s=seconds,
    gating_s=seconds,
    gated_s=seconds,
    restored_s=seconds,
    ready_s=seconds,
    failed_s=seconds,
    error=st.sampled_from(["", "why"]),
)


@given(captures, origins, instants, st.lists(times_of, max_size=3, unique_by=lambda t: t.pod_uid))
def test_whatever_is_on_record_is_one_tree_with_stable_ids(
    capture: CaptureRecord,
    origin: PolicyOrigin,
    ready_at: str,
    restores: list[RestoreTimes],
) -> None:
    """One root, every parent told, nothing ends before it begins, steps lie within their parent."""

    def told() -> list[Span]:
        made = saved(capture, origin=origin, ready_at=ready_at)
        return [*save_spans(made), *(s for r in restores for s in restore_spans(made, r))]

    spans = told()
    by_id = {s.span_id: s for s in spans}
    assert len(by_id) == len(spans)
    assert len({s.trace_id for s in spans}) == 1
    assert [s.name for s in spans if not s.parent_id] == [spans[0].name]
    for span in spans[1:]:
        parent = by_id[span.parent_id]
        if parent.name == "restore" or (parent.name == "save" and span.name != "restore"):
            assert parent.start_s <= span.start_s
            assert span.end_s <= parent.end_s
    assert all(BEGAN - 1001 < s.start_s <= s.end_s < BEGAN + 1001 for s in spans)
    assert told() == spans
