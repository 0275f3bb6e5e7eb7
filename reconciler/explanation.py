# SPDX-License-Identifier: Apache-2.0
"""Explanations as people read them: what is so first, why after it, what to do last."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from policies.explanation import (
    CandidateView,
    GonePodExplanation,
    Happened,
    PodExplanation,
    Start,
    Told,
)
from policies.verdict import Reason
from reconciler.amounts import age, labels, progress, size
from reconciler.commands.output import Block, Facts, Heading, Lines, Table

if TYPE_CHECKING:  # a command about a Pod is not to wait for what others need
    from policies.policy_explanation import PolicyExplanation, TriggerExplanation
    from policies.snapshot_explanation import Rate, SnapshotExplanation

# A person reads the newest; -o json has them all.
_SHOWN: Final = 10
_STARTS: Final = {
    Start.RESTORED: "restored",
    Start.FELL_BACK: "cold, after a restore failed",
    Start.COLD: "cold",
    Start.NOT_STARTED: "not yet",
    Start.UNKNOWN: "nobody knows any more",
}
# Shown field by field in a table of their own.
_AS_FIELDS: Final = {Reason.SPEC_DIFFERS, Reason.NODE_INCOMPATIBLE, Reason.GROUP_DIFFERS}


def pod_blocks(told: PodExplanation, now: datetime) -> Iterator[Block]:
    """Yield what is shown of a Pod."""
    yield Heading(f"Pod {told.namespace}/{told.name}")
    yield Facts(
        [
            ("phase", f"{told.phase} on {told.node}" if told.node else told.phase),
            ("started", _started(told.happened, now)),
            ("restoring now", progress(told.restoring) if told.restoring else ""),
            ("governed by", told.governed_by or "no policy"),
            ("group", labels(told.group)),
            ("ps-name", _pin(told.pin)),
            ("storage", told.storage),
            ("saved as", ", ".join(told.saved_as)),
            ("cannot be saved", told.cannot_be_saved),
        ]
    )
    yield Heading("A Pod like this one, started now")
    if told.chosen:
        yield Lines([f"is restored from PodSnapshot {told.chosen}"])
    else:
        yield Lines([f"starts cold: {told.why_not}"])
    if told.awaited:
        yield Lines([f"PodSnapshot {told.awaited} is being made, and will fit"])
    if len(told.policies) > 1 or not told.governed_by:
        yield from _table(
            "Policies of the namespace",
            ("POLICY", "GOVERNS", "WHY"),
            [(p.name, _yes(p.governs), p.why) for p in told.policies[:_SHOWN]],
        )
        yield from _more(len(told.policies), "further ones, which do not govern it")
    yield from _candidates(told.candidates, now)
    if told.node_facts:
        yield Heading(f"Node {told.node}")
        yield Facts(list(told.node_facts.items()))
    yield from _events(told.events)
    yield from _what_to_do(told.what_to_do)


def gone_pod_blocks(told: GonePodExplanation, now: datetime) -> Iterator[Block]:
    """Yield what is still known of a Pod that is gone."""
    yield Heading(f"Pod {told.namespace}/{told.name}, which is gone")
    yield Facts(
        [
            ("started", _started(told.happened, now)),
            ("saved as", ", ".join(told.saved_as)),
            ("failed restore", "; ".join(told.spoiled)),
        ]
    )
    yield from _events(told.events)
    yield from _what_to_do(told.what_to_do)


def snapshot_blocks(told: "SnapshotExplanation", now: datetime) -> Iterator[Block]:
    """Yield what is shown of a snapshot."""
    yield Heading(f"PodSnapshot {told.namespace}/{told.name}")
    yield Facts(
        [
            ("state", told.state),
            ("because", told.message),
            ("policy", told.policy + ("" if told.policy_exists else " (gone)")),
            ("group", labels(told.group)),
            ("saved from", f"Pod {told.saved_from} on {told.saved_on}"),
            ("asked for by", told.trigger_type),
            ("scope", told.scope),
            ("commit", told.git_revision),
            ("stored in", told.path),
            ("kept", told.retention),
            ("quarantine", told.quarantine),
        ]
    )
    yield from _table(
        "Story",
        ("STATE", "AT", "AFTER", "WHY"),
        [
            (c.state, c.at, "" if c.after_s is None else f"+{c.after_s:.3f} s", c.why)
            for c in told.story
        ],
    )
    if told.size_bytes:
        yield Heading(f"{size(told.size_bytes)}")
        yield Facts([*_sizes(told), *((rate.step, _rate(rate)) for rate in told.rates)])
    yield Heading("Restores")
    yield Facts(
        [
            ("served", str(told.restores)),
            ("by node", ", ".join(f"{n}: {count}" for n, count in told.restored_by.items())),
            ("last", f"{age(told.last_used_at, now)} ago" if told.last_used_at else ""),
            ("running", "; ".join(map(progress, told.restoring))),
            ("failed", "; ".join(told.failed_restores)),
        ]
    )
    yield from _table(
        "Nodes",
        ("NODES", "CAN RUN IT", "WHY NOT"),
        [(", ".join(n.nodes), _yes(n.fits), n.why_not or "-") for n in told.nodes],
    )
    yield from _what_to_do(told.what_to_do)


def policy_blocks(told: "PolicyExplanation", now: datetime) -> Iterator[Block]:
    """Yield what is shown of a policy."""
    yield Heading(f"PodSnapshotPolicy {told.namespace}/{told.name}")
    yield Facts(
        [
            ("ready", f"{_yes(told.ready)}, {told.reason}"),
            ("because", told.message),
            ("selects", told.selector),
            ("trigger", f"{told.trigger_type}, then {told.post_checkpoint}"),
            ("scope", told.snapshot_scope),
            ("groups by", ", ".join(told.grouping_labels)),
            ("storage", told.storage),
            ("unused for", told.last_access_timeout and f"{told.last_access_timeout}: deleted"),
        ]
    )
    if told.warnings:
        yield Heading("Warnings")
        yield Lines(told.warnings)
    yield from _table(
        "Pods that it selects",
        ("POD", "PHASE", "READY", "GOVERNED BY", "NEXT SAVE"),
        [(p.name, p.phase, _yes(p.ready), p.governed_by, p.next_save) for p in told.pods],
    )
    yield from _table(
        "Snapshots by group",
        ("GROUP", "SNAPSHOTS", "USABLE", "LIMIT", "SIZE", "NEWEST", "SAVED"),
        [
            (
                labels(g.labels) or "-",
                str(g.snapshots),
                str(g.usable),
                str(g.limit or "-"),
                size(g.size_bytes),
                g.newest,
                age(g.newest_saved_at, now) or "-",
            )
            for g in told.groups
        ],
    )
    yield from _table(
        "Deleted next",
        ("SNAPSHOT", "KEPT", "WHY"),
        [(d.name, d.when, d.why) for d in told.deletes_next],
    )


def trigger_blocks(told: "TriggerExplanation", now: datetime) -> Iterator[Block]:
    """Yield what is shown of a manual trigger."""
    snapshot = f"{told.snapshot} ({told.snapshot_state})" if told.snapshot else ""
    yield Heading(f"PodSnapshotManualTrigger {told.namespace}/{told.name}")
    yield Facts(
        [
            ("target", f"Pod {told.target}" if told.target else "none"),
            ("state", f"{told.state}{f', {age(told.at, now)} ago' if told.at else ''}"),
            ("because", told.message),
            ("PodSnapshot", snapshot),
            ("policy", told.policy or "none"),
            ("in the way", told.obstacle),
        ]
    )
    yield from _what_to_do(told.what_to_do)


def _candidates(candidates: Sequence[CandidateView], now: datetime) -> Iterator[Block]:
    shown = candidates[:_SHOWN]
    yield from _table(
        "Candidates, newest first",
        ("SNAPSHOT", "STATE", "FITS", "SAVED FROM", "SAVED", "SIZE", "WHY NOT"),
        [
            (
                c.name,
                c.state,
                _yes(c.usable),
                c.saved_from,
                (age(c.saved_at, now) or "-") + (" (after this Pod)" if c.came_later else ""),
                size(c.size_bytes) if c.size_bytes else "-",
                "; ".join(_in_words(c)) or "-",
            )
            for c in shown
        ],
    )
    yield from _more(len(candidates), "older ones")
    for candidate in shown:
        yield from _table(
            f"What differs from {candidate.name}",
            ("FIELD", "THIS POD", "SAVED"),
            [(d.path, _value(d.pod), _value(d.saved)) for d in candidate.differences],
        )
        if candidate.environment:
            yield Heading(f"Environment that differs from {candidate.name} (it fits all the same)")
            yield Lines(candidate.environment)


def _more(count: int, what: str) -> Iterator[Block]:
    if count > _SHOWN:
        yield Lines([f"and {count - _SHOWN} {what}; -o json has them"])


def _in_words(candidate: CandidateView) -> Iterator[str]:
    """Yield the findings, those with rows of their own in one word each."""
    told = set()
    for finding in candidate.findings:
        if finding.reason not in _AS_FIELDS or not candidate.differences:
            yield finding.message
        elif finding.reason not in told:
            told.add(finding.reason)
            yield finding.reason


def _started(happened: Happened, now: datetime) -> str:
    ago = age(happened.at, now)
    what = _STARTS[happened.start] + (f", {ago} ago" if ago else "")
    return f"{what}: {happened.message}" if happened.message else what


def _pin(pin: str | None) -> str:
    return "" if pin is None else pin or "empty: never restore"


def _sizes(told: "SnapshotExplanation") -> Iterator[tuple[str, str]]:
    if told.sizes is not None:
        for name, size_bytes in (
            ("memory", told.sizes.memory_bytes),
            ("files of containers", told.sizes.rootfs_bytes),
            ("tmpfs and emptyDir", told.sizes.volumes_bytes),
            ("GPU", told.sizes.gpu_bytes),
        ):
            yield name, f"{size(size_bytes)} ({size_bytes / told.size_bytes:.0%})"


def _rate(rate: "Rate") -> str:
    return f"{rate.took_s:.3f} s, {size(rate.bytes_per_s)}/s"


def _events(events: Sequence[Told]) -> Iterator[Block]:
    yield from _table(
        "Events",
        ("AT", "TYPE", "MESSAGE"),
        [
            (
                e.at,
                e.type,
                e.message
                + (f" (x{e.count})" if e.count > 1 else "")
                + (" (an earlier Pod of this name)" if e.earlier_pod else ""),
            )
            for e in events
        ],
    )


def _what_to_do(sentences: Iterable[str]) -> Iterator[Block]:
    texts = [f"- {text}" for text in sentences]
    if texts:
        yield Heading("What to do")
        yield Lines(texts)


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[Block]:
    if rows:
        yield Heading(title)
        yield Table(header, rows)


def _yes(holds: bool) -> str:  # noqa: FBT001 - it is the value
    return "yes" if holds else "no"


def _value(value: str | None) -> str:
    return "-" if value is None else value
