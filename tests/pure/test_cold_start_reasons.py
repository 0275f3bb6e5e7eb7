# SPDX-License-Identifier: Apache-2.0
"""Why a Pod starts cold: of all that stands in the way, the one thing that is told and counted."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from api_objects import NODE, capture_of, pinned, pod, policy, snapshot

from nodeexec.metrics import AgentMetrics
from policies.distill import distill
from policies.matching import Candidate, Choice, choose
from policies.verdict import COLD_START_REASONS, IMPORTANCE, Finding, Reason, Verdict
from schemas.pod import Pod
from schemas.snapshot import CaptureRecord, Snapshot
from statemachine.restore import Outcome

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
OLDER, NEWER = (f"2026-01-0{day}T10:00:00.000000Z" for day in (1, 2))
OTHER_NODE = replace(NODE, platform="kvm")
OTHER_SPEC = pod(hostIPC=True)


@dataclass(frozen=True, slots=True)
class Row:
    """Snapshots, the Pod that looks for one, and what it is told."""

    snapshots: tuple[Snapshot, ...]
    expected: Reason
    text: str
    pod: Pod = pod()  # noqa: RUF009 - a frozen value
    is_noteworthy: bool = True


def saved(capture: CaptureRecord | None = None, **fields: object) -> Snapshot:
    """Return a snapshot that is ready."""
    return snapshot(capture=capture, **fields)  # type: ignore[arg-type] # a table's row


def of_tenant(tenant: str, source: Pod, at: str) -> Snapshot:
    """Return the snapshot of a tenant."""
    return saved(capture_of(source, at=at), name=f"of-{tenant}", labels={"tenant": tenant})


ROWS = {
    "there is none": Row((), Reason.NO_SNAPSHOT_YET, "is ready yet", is_noteworthy=False),
    "the first one is being made": Row(
        (saved(is_ready=False),), Reason.NO_SNAPSHOT_YET, "is ready yet", is_noteworthy=False
    ),
    "it is pinned to none": Row(
        (saved(),), Reason.PINNED_TO_NONE, "never restore", pinned(""), is_noteworthy=False
    ),
    "its pin is missing": Row((saved(),), Reason.PIN_MISSING, "does not exist", pinned("x")),
    "its pin is damaged, and so not ready": Row(
        (saved(name="x", is_ready=False, damage="pages.img"),),
        Reason.QUARANTINED,
        "named by the ps-name annotation, does not fit: its bytes are damaged: pages.img "
        "(and 1 more)",
        pinned("x"),
    ),
    "the only one is damaged": Row((saved(is_ready=False, damage="p"),), Reason.QUARANTINED, "p"),
    "the spec differs, and the node": Row(
        (saved(replace(capture_of(OTHER_SPEC), compatibility=OTHER_NODE)),),
        Reason.SPEC_DIFFERS,
        "does not fit: spec.hostIPC is absent, saved with true (and 1 more)",
    ),
    "the node alone differs": Row(
        (saved(replace(capture_of(pod()), compatibility=OTHER_NODE)),),
        Reason.NODE_INCOMPATIBLE,
        "platform",
    ),
    "only other groups have one": Row(
        (of_tenant("2", OTHER_SPEC, NEWER),),
        Reason.GROUP_DIFFERS,
        "of-2 does not fit: its group is",
        pod(labels={"app": "web", "tenant": "1"}),
    ),
    "its own group's differs, another group has a newer one": Row(
        (of_tenant("1", OTHER_SPEC, OLDER), of_tenant("2", pod(), NEWER)),
        Reason.SPEC_DIFFERS,
        "of-1 does not fit: spec.hostIPC",
        pod(labels={"app": "web", "tenant": "1"}),
    ),
}


def chosen(row: Row) -> Choice:
    """Return what a row's Pod is told."""
    governing = policy(labels=("tenant",) if "tenant" in row.pod.metadata.labels else ())
    return choose(Candidate(row.pod, governing, distill(row.pod), NODE), row.snapshots)


@pytest.mark.parametrize("sentence", ROWS)
def test_a_pod_that_starts_cold_is_told_the_most_important_reason(sentence: str) -> None:
    """One cause out of a closed set, and a sentence about one snapshot."""
    row = ROWS[sentence]
    choice = chosen(row)
    assert (choice.snapshot, choice.cause) == (None, row.expected)
    assert row.text in choice.reason
    assert choice.noteworthy is row.is_noteworthy


def test_a_finding_without_a_rank_comes_last() -> None:
    """Whoever adds a reason may forget the order; nothing breaks."""
    unranked = Finding(Reason.GAVE_UP, "x")
    ranked = Finding(Reason.NODE_INCOMPATIBLE, "y")
    assert Verdict((unranked, ranked)).most_important is ranked


def test_the_reasons_of_cold_starts_are_a_closed_set_that_the_reference_explains() -> None:
    """Labels of a metric may never grow with the cluster."""
    page = REFERENCE.read_text(encoding="utf-8")
    assert {chosen(row).cause for row in ROWS.values()} <= COLD_START_REASONS
    assert set(IMPORTANCE) <= COLD_START_REASONS <= set(Reason)
    assert [reason for reason in COLD_START_REASONS if f"| `{reason}` |" not in page] == []


def test_every_metric_of_the_agent_stands_in_the_reference() -> None:
    """And the counter of starts is labelled by outcome and reason alone."""
    metrics = AgentMetrics()
    metrics.started(Outcome.RESTORED, None)
    metrics.started(Outcome.COLD_DESPITE_SNAPSHOT, Reason.SPEC_DIFFERS)
    page = REFERENCE.read_text(encoding="utf-8")
    assert [m.name for m in metrics.registry.collect() if f"`{m.name}" not in page] == []
    starts = next(m for m in metrics.registry.collect() if m.name == "podsnap_pod_starts")
    counted = {
        tuple(s.labels.items()): s.value for s in starts.samples if s.name.endswith("_total")
    }
    assert counted[("outcome", "Restored"), ("reason", "")] == 1
    assert counted[("outcome", "ColdDespiteSnapshot"), ("reason", "SpecDiffers")] == 1
