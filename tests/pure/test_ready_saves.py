# SPDX-License-Identifier: Apache-2.0
"""Which Pod that became Ready is saved, and which is left alone."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from api_objects import FAILURE, NODE, capture_of, pod, policy, snapshot

from policies.distill import distill
from policies.matching import Candidate
from policies.ready_saves import ReadyInput, due_when_ready, generations, given_up
from policies.verdict import Reason
from schemas.conditions import Condition
from schemas.names import IDENTITY_LABEL, ORIGIN_POD_ANNOTATION, ORIGIN_POD_UID_ANNOTATION
from schemas.pod import Pod
from schemas.snapshot import Snapshot

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
POLICY = policy(trigger="readinessProbe", created="2026-01-01T08:00:00Z")


def ready(since: str, *, created: str = "2026-01-01T11:00:00Z", status: str = "True") -> Pod:
    """Return a Pod whose Ready condition turned at an instant of the day."""
    found = pod()
    return replace(
        found,
        metadata=replace(found.metadata, creation_timestamp=created),
        conditions={
            "Ready": Condition("Ready", "True" if status == "True" else "False", "", "", since)
        },
    )


FRESH = ready("2026-01-01T11:59:58Z")


def of_identity(name: str, *, of: str = "uid-other", identity: str = "i") -> Snapshot:
    """Return a snapshot of the identity that nobody claimed."""
    found = snapshot(name, is_ready=False)
    metadata = replace(
        found.metadata,
        labels={IDENTITY_LABEL: identity},
        annotations={ORIGIN_POD_UID_ANNOTATION: of, ORIGIN_POD_ANNOTATION: "web-9"},
    )
    return replace(found, metadata=metadata, capture=None)


def failed(name: str, *, of: str = "uid-other") -> Snapshot:
    """Return one whose save failed."""
    record = replace(capture_of(pod()), failure=FAILURE)
    return replace(of_identity(name, of=of), capture=record)


def deleting(source: Snapshot) -> Snapshot:
    """Return one that is being deleted."""
    return replace(source, metadata=replace(source.metadata, deletion_timestamp="2026"))


UNUSABLE = replace(snapshot("u"), damage="pages.img")
ROWS: dict[str, tuple[Pod, list[Snapshot], str]] = {
    "a Pod that became Ready, and no snapshot": (FRESH, [], ""),
    "a Pod that is Ready for nearly ten minutes": (ready("2026-01-01T11:50:00Z"), [], ""),
    "a Pod that has served longer": (ready("2026-01-01T11:49:59Z"), [], "Ready lately"),
    "a Pod of a clock that is ahead": (ready("2026-01-01T12:00:03Z"), [], ""),
    "a Pod that is not Ready": (ready("2026-01-01T11:59:58Z", status="False"), [], "Ready lately"),
    "a Pod of which nobody says since when": (ready(""), [], "Ready lately"),
    "a Pod older than its policy": (
        ready("2026-01-01T11:59:58Z", created="2026-01-01T07:59:59Z"),
        [],
        "older than its policy",
    ),
    "a Pod from one apply with its policy": (
        ready("2026-01-01T11:59:58Z", created="2026-01-01T08:00:00Z"),
        [],
        "",
    ),
    "a snapshot that fits": (FRESH, [snapshot()], "can be restored from exists"),
    "a snapshot that does not fit": (FRESH, [snapshot(capture=capture_of(pod(hostIPC=True)))], ""),
    "a snapshot that is damaged": (FRESH, [UNUSABLE], ""),
    "a save of an equal Pod in flight": (FRESH, [of_identity("a")], "an equal Pod is being saved"),
    "a save of another identity in flight": (FRESH, [of_identity("a", identity="x")], ""),
    "a save in flight that is being deleted": (FRESH, [deleting(of_identity("a"))], ""),
    "a failed save of another Pod": (FRESH, [failed("a")], ""),
    "a failed save of this very Pod": (
        FRESH,
        [failed("a", of="uid-web-0")],
        "it was saved before, without success",
    ),
    "a second generation in flight": (FRESH, [failed("a"), of_identity("b")], "is being saved"),
    "two failed generations": (FRESH, [failed("a"), failed("b")], ""),
    "three failed generations": (
        FRESH,
        [failed("a"), failed("b"), failed("c")],
        "no more saves are tried for Pods like web-9, because 3 failed, the last being PodSnapshot "
        "c (RunscFailed: runsc checkpoint: exit status 128); mend the cause and delete a failed "
        "PodSnapshot to let it try again",
    ),
    "three of which one is being deleted": (
        FRESH,
        [failed("a"), failed("b"), deleting(failed("c"))],
        "",
    ),
}


@pytest.mark.parametrize("what", ROWS)
def test_a_pod_is_saved_when_it_becomes_ready_and_nothing_says_otherwise(what: str) -> None:
    """Nobody asked for its pause, so every doubt leaves it alone."""
    asked, snapshots, expected = ROWS[what]
    candidate = Candidate(asked, POLICY, distill(asked), NODE)
    verdict = due_when_ready(ReadyInput(candidate, "i", snapshots, NOW))
    assert verdict.usable is (not expected)
    assert expected in verdict.message


def test_an_identity_is_given_up_with_a_reason_of_its_own() -> None:
    """So that it can be told apart from a Pod that is merely not due."""
    candidate = Candidate(FRESH, POLICY, distill(FRESH), NODE)
    three = [failed(name) for name in "abc"]
    (finding,) = due_when_ready(ReadyInput(candidate, "i", three, NOW)).findings
    assert finding.reason is Reason.GAVE_UP


def test_saves_that_could_not_be_restored_count_as_failed() -> None:
    """Making the same bytes again would only pause another Pod."""
    bad = replace(snapshot("z"), damage="pages.img")
    assert "c (its bytes" not in given_up([failed("a"), failed("b")])
    assert "(its bytes are damaged: pages.img)" in given_up([failed("a"), failed("b"), bad])


def test_generations_of_another_namespace_are_not_ours() -> None:
    """The label may be the same by accident or by intent."""
    ours, theirs = of_identity("a"), of_identity("b")
    theirs = replace(theirs, metadata=replace(theirs.metadata, namespace="other"))
    assert generations(POLICY, "i", [ours, theirs]) == [ours]
