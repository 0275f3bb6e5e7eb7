# SPDX-License-Identifier: Apache-2.0
"""A plan as people read it, on a terminal and in a pull request: what changes first, then all.

In Markdown everything comes from files and from the cluster, so nothing of it may end a cell or
begin a tag: each value is escaped, and the details are folded.
"""

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from policies.planned_starts import Outcome, Outlook, Start
from policies.planning import Change, Plan, WorkloadPlan
from reconciler.amounts import size, span
from reconciler.commands.output import Block, Facts, Heading, Lines, Table, clean
from schemas.sentences import some_of

_CHANGES: Final = {
    Change.NONE: "",
    Change.UNKNOWN: "",
    Change.ADDED: "new",
    Change.REMOVED: "removed",
    Change.CHANGED: "changed",
    Change.GOVERNED_ANEW: "governed anew",
    Change.UNGOVERNED: "no longer governed",
    Change.COLD: "was restored",
    Change.RESTORED: "was cold",
    Change.OTHER_SNAPSHOT: "another snapshot",
}
# What may be so on some nodes only.
_BY_NODE: Final = frozenset({Change.COLD, Change.RESTORED, Change.OTHER_SNAPSHOT})
_STARTS: Final = {
    Outcome.UNGOVERNED: "as always",
    Outcome.RESTORED: "restored",
    Outcome.BY_NODE: "by node",
    Outcome.COLD: "cold",
}
_UUID_LENGTH: Final = 36
_VERSION: Final = 1
_PATHS: Final = 3
# GitHub takes 65,536 characters; what is folded gets what the rest leaves.
_COMMENT_CHARS: Final = 60_000
_FOLDED_CHARS: Final = 15_000
_CONSEQUENCES: Final = "What follows"


@dataclass(frozen=True, slots=True)
class Told:
    """A plan, with what it is about and what it was made from."""

    path: str
    compared_with: str
    completed: Sequence[str]
    unknown: Sequence[str]
    plan: Plan


def summary(plan: Plan) -> str:
    """Say in one line what changes."""
    cold = sum(w.change is Change.COLD for w in plan.workloads)
    others = sum(w.change.counts for w in plan.workloads) - cold
    back = sum(s.comes_back for s in plan.snapshots)
    found = (
        (cold, "workload starts cold", "workloads start cold"),
        (
            others,
            f"{'other ' if cold else ''}workload changes",
            f"{'other ' if cold else ''}workloads change",
        ),
        (len(plan.policies), "policy changes", "policies change"),
        (len(plan.snapshots) - back, "snapshot becomes obsolete", "snapshots become obsolete"),
        (back, "snapshot comes back", "snapshots come back"),
        (sum(d.is_new for d in plan.deletions), "deletion is new", "deletions are new"),
    )
    parts = [f"{count} {one if count == 1 else many}" for count, one, many in found if count]
    if missing := plan.not_compared:
        parts.append(f"{missing} workload{'' if missing == 1 else 's'} not compared")
    if parts:
        return ", ".join(parts)
    told = [w.after for w in plan.workloads if w.after and w.after.governed_by]
    restored = sum(o.outcome is Outcome.RESTORED for o in told)
    governed = f"{len(told)} workload{'' if len(told) == 1 else 's'} governed"
    return f"nothing changes: {governed}, {restored} restored"


def document(told: Told) -> dict[str, Any]:
    """Return what programs get; a change of the shape that could break one raises ``version``."""
    plan = told.plan
    return {
        "version": _VERSION,
        "path": told.path,
        "comparedWith": told.compared_with,
        "hasChanges": plan.has_changes,
        "summary": summary(plan),
        "workloads": plan.workloads,
        "policies": plan.policies,
        "snapshots": plan.snapshots,
        "deletions": plan.deletions,
        "completed": told.completed,
        "unknown": told.unknown,
    }


def blocks(told: Told) -> Iterator[Block]:
    """Yield what is shown on a terminal."""
    plan = told.plan
    yield Heading(f"Plan for {told.path}: {summary(plan)}")
    yield Facts(
        [("compared with", told.compared_with), ("Pods completed", "; ".join(told.completed))]
    )
    for title, header, rows in _tables(plan):
        yield Heading(title)
        yield Table(header, rows)
    for title, texts in (*_notes(plan), ("Not known", list(told.unknown))):
        if texts:
            yield Heading(title)
            yield Lines(texts)


def markdown(told: Told) -> Iterator[str]:
    """Yield the lines of a comment on a pull request."""
    plan = told.plan
    mark = "⚠️" if plan.has_changes else "❔" if plan.not_compared else "✅"
    yield f"**podsnap plan** {mark} {_escaped(summary(plan))}"
    yield ""
    shown: list[tuple[list[str], list[str]]] = []
    folded: list[tuple[list[str], list[str]]] = []
    for title, header, rows in _tables(plan):
        table = [f"| {' | '.join(map(_escaped, row))} |" for row in rows]
        head = [f"| {' | '.join(h.capitalize() for h in header)} |", "|" + " --- |" * len(header)]
        section = ([f"**{_escaped(title)}**", "", *head], table)
        (folded if title.startswith("What differs") else shown).append(section)
    for title, texts in (*_notes(plan), ("Not known", told.unknown)):
        section = ([f"**{_escaped(title)}**", ""], [f"- {_escaped(t)}" for t in texts])
        (shown if title == _CONSEQUENCES else folded).append(section)
    above = list(_fitting(shown, _COMMENT_CHARS - _FOLDED_CHARS))
    yield from above
    yield from ("<details><summary>Details</summary>", "")
    yield from _fitting(folded, _COMMENT_CHARS - sum(len(line) + 1 for line in above))
    yield f"Compared with {_escaped(told.compared_with)}."
    if told.completed:
        yield f"Pods completed: {_escaped('; '.join(told.completed))[: _FOLDED_CHARS // 5]}."
    yield from ("", "</details>")


def _fitting(sections: Iterable[tuple[Sequence[str], Sequence[str]]], room: int) -> Iterator[str]:
    """Yield sections (head, rows) as far as there is room for them, and how much more there is."""
    left_out = 0
    for head, rows in sections:
        left = room - sum(len(line) + 1 for line in head)
        kept = []
        for row in rows:
            if left < len(row) + 1:
                break
            left -= len(row) + 1
            kept.append(row)
        if kept:
            room = left
            yield from (*head, *kept, "")
        left_out += len(rows) - len(kept)
    if left_out:
        yield from (f"… and {left_out} more; see -o json", "")


def _tables(plan: Plan) -> Iterator[tuple[str, Sequence[str], list[list[str]]]]:
    shown = [w for w in plan.workloads if _is_shown(w)]
    several = any(len(o.starts) > 1 for w in shown if (o := w.after or w.before))
    header = ["WORKLOAD", "CHANGE", "GOVERNED BY", "NEXT POD", "FROM"]
    rows = [row for w in shown for row in _workload_rows(w, with_nodes=several)]
    if rows:
        yield "Workloads", [*header, *(["ON NODES"] if several else []), "WHY"], rows
    for workload in shown:
        for start in workload.after.starts if workload.after else ():
            if start.differences:
                yield (
                    f"What differs: {_name(workload)} from {short(start.nearest)}{_on(start)}",
                    ("FIELD", "IN THE TREE", "SAVED"),
                    [[d.path, d.pod or "-", d.saved or "-"] for d in start.differences],
                )
    rows = [
        [
            f"{p.namespace}/{p.name}",
            _CHANGES[p.change],
            ", ".join(p.fields) or "-",
            ", ".join(p.governs) or "-",
        ]
        for p in plan.policies
    ]
    if rows:
        yield "Policies", ("POLICY", "CHANGE", "FIELDS", "GOVERNS"), rows
    rows = [
        [
            f"{s.namespace}/{short(s.name)}",
            "comes back" if s.comes_back else "obsolete",
            s.policy,
            ", ".join(s.wanted_by) or "-",
            s.why + (f"; deleted {span(s.kept_s)} after that" if s.kept_s is not None else ""),
        ]
        for s in plan.snapshots
    ]
    if rows:
        yield "Snapshots", ("SNAPSHOT", "BECOMES", "POLICY", "RESTORED SO FAR", "WHY"), rows
    rows = [
        [
            f"{d.namespace}/{short(d.name)}",
            "now" if d.is_due else d.due_at,
            "yes" if d.is_new else "no",
            size(d.size_bytes),
            d.reason,
        ]
        for d in plan.deletions
    ]
    if rows:
        yield "Deleted by retention", ("SNAPSHOT", "GOES", "BY THIS TREE", "SIZE", "WHY"), rows


def _is_shown(workload: WorkloadPlan) -> bool:
    told = workload.after
    return workload.change.counts or bool(told and (told.governed_by or _missed(told)))


def _missed(told: Outlook) -> bool:
    """Whether a policy selects it in vain: it does not run in gVisor."""
    return any(start.cause == "NotInGVisor" and told.selected_by for start in told.starts)


def _workload_rows(workload: WorkloadPlan, *, with_nodes: bool) -> Iterator[list[str]]:
    told, before = workload.after, workload.before
    name, change = _name(workload), _CHANGES[workload.change]
    if told is None:
        yield [name, change, "-", "-", "-", *(["-"] if with_nodes else []), "-"]
        return
    was = {n: s.restored_from for s in (before.starts if before else ()) for n in s.nodes}
    for start in told.starts:
        same_here = bool(start.nodes) and all(
            was.get(node) == start.restored_from for node in start.nodes
        )
        yield [
            name,
            "" if workload.change in _BY_NODE and same_here else change,
            told.governed_by or "-",
            _next_pod(told, start),
            short(start.restored_from) or "-",
            *([",".join(start.nodes) or "any"] if with_nodes else []),
            _why(start),
        ]


def _next_pod(told: Outlook, start: Start) -> str:
    if not start.restored_from:
        return _STARTS[Outcome.COLD if told.governed_by else Outcome.UNGOVERNED]
    doubts = sorted({text.partition(":")[0] for text in start.unknown})
    return f"restored (unknown: {', '.join(doubts)})" if doubts else "restored"


def _why(start: Start) -> str:
    if start.restored_from:
        return "-"
    why = start.why
    if start.differences:  # each has a row of its own
        paths = [d.path for d in start.differences]
        why = f"{start.cause}: {some_of(paths, _PATHS)}"
    later = f"; PodSnapshot {short(start.awaited)} is being made, and will fit"
    return why + (later if start.awaited else "")


def _notes(plan: Plan) -> Iterator[tuple[str, list[str]]]:
    shown = [w for w in plan.workloads if _is_shown(w)]
    yield _CONSEQUENCES, [f"{_name(w)}: {w.then}" for w in shown if w.then]
    told = [(w, w.after) for w in shown if w.after]
    yield (
        "Selected by several policies",
        [
            f"{_name(w)}: {o.governed_by} governs it, not {', '.join(o.selected_by)}"
            for w, o in told
            if o.selected_by and o.governed_by
        ],
    )
    yield "Never saved", [f"{_name(w)}: {o.cannot_be_saved}" for w, o in told if o.cannot_be_saved]
    yield (
        "Environment that differs (it is restored all the same)",
        [f"{_name(w)}: {text}" for w, o in told for text in _all(s.environment for s in o.starts)],
    )
    yield (
        "Unknown before a container is made",
        [f"{_name(w)}: {text}" for w, o in told for text in _all(s.unknown for s in o.starts)],
    )
    yield "How it was judged", [f"{_name(w)}: {text}" for w in shown for text in w.notes]
    hidden = len(plan.workloads) - len(shown)
    yield "Others", [f"{hidden} that no policy governs; -o json has them"] if hidden else []


def _all(parts: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(text for part in parts for text in part))


def _on(start: Start) -> str:
    return f" on {', '.join(start.nodes)}" if start.nodes else ""


def _name(workload: WorkloadPlan) -> str:
    return f"{workload.kind} {workload.namespace}/{workload.name}"


def short(snapshot: str) -> str:
    """Return the beginning of a UUID, which every command takes for the whole."""
    return snapshot[:8] if len(snapshot) == _UUID_LENGTH else snapshot


def _escaped(text: str) -> str:
    """Return one line that Markdown shows as it is."""
    shown = html.escape(clean(text), quote=False)
    for character in "\\|`*_[]":
        shown = shown.replace(character, f"\\{character}")
    return shown.replace("@", "@<!-- -->")
