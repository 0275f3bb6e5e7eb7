# SPDX-License-Identifier: Apache-2.0
"""A trace as text: one line for each span, its duration and a bar where it was.

The trap is time itself: a save takes seconds, a Pod is restored from it a week later, and on one
scale both would be a dot. So a span that begins after its parent has ended starts a scale of its
own, for itself and what is below it, and says how much later it came; and where nothing at all
happens for most of a scale, the scale is cut, which the bars across it show.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final

from schemas.span import Span

# A stretch without any event that is so many times longer than all others together is cut, if these
# are so many that they would be dots.
_CUT_FACTOR: Final = 10.0
_CUT_OTHERS: Final = 3
# What follows at once is not later.
_SLACK_S: Final = 0.001
_NAME_LIMIT: Final = 44
_BAR_FLOOR: Final = 10
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


@dataclass(frozen=True, slots=True)
class Line:
    """Three columns of one span, its service and why it failed; or a remark, and the rest empty."""

    name: str
    took: str
    bar: str
    service: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Node:
    span: Span
    depth: int
    later_s: float  # after the end of its parent; negative: it began before that
    children: "list[_Node]" = field(default_factory=list)

    @property
    def begins_scale(self) -> bool:
        return self.depth == 0 or self.later_s > _SLACK_S


def waterfall(spans: Iterable[Span], *, width: int, is_unicode: bool = True) -> list[Line]:
    """Draw a trace on so many columns; spans whose parent is not among them are roots."""
    rows = [(scale, node) for root in _trees(spans) for scale, node in _scaled(root)]
    names = [_shortened("  " * node.depth + _called(node.span)) for _, node in rows]
    took = [duration(node.span.end_s - node.span.start_s) for _, node in rows]
    name_width, took_width = (max(map(len, column), default=0) for column in (names, took))
    room = max(width - name_width - took_width - 4, _BAR_FLOOR)
    lines = []
    for (scale, node), name, text in zip(rows, names, took, strict=True):
        if node.depth and node.begins_scale:
            lines.append(Line(f"{'  ' * node.depth}... {duration(node.later_s)} later", "", ""))
        bar = scale.bar(node.span, room, is_unicode=is_unicode)
        span = node.span
        lines.append(
            Line(name.ljust(name_width), text.rjust(took_width), bar, span.service, span.error)
        )
    return lines if is_unicode else [replace(x, took=x.took.replace("µ", "u")) for x in lines]


def duration(took_s: float) -> str:
    """Return a duration with three digits and its unit, or in its two largest units.

    Nothing takes no time: then its instants are those of conditions, which have whole seconds.
    """
    if took_s == 0:
        return "< 1 s"
    for unit, factor in (("µs", 1e6), ("ms", 1e3), ("s", 1.0)):
        amount = took_s * factor
        if amount < (_MINUTE_S if unit == "s" else 999.5):
            return f"{amount:.3g} {unit}"
    seconds = round(took_s)
    for unit_s, unit, small_s, small in (
        (_DAY_S, "d", _HOUR_S, "h"),
        (_HOUR_S, "h", _MINUTE_S, "min"),
        (_MINUTE_S, "min", 1, "s"),
    ):
        if seconds >= unit_s:
            rest = seconds % unit_s // small_s
            return f"{seconds // unit_s} {unit}" + (f" {rest} {small}" if rest else "")
    return f"{seconds} s"


@dataclass(frozen=True, slots=True)
class _Scale:
    """Instants in seconds, each with its place between 0 and 1, and the stretch that was cut."""

    places: dict[float, float]
    cut: tuple[float, float] | None

    def bar(self, span: Span, room: int, *, is_unicode: bool) -> str:
        full, thin, broken = ("█", "▏", "╌") if is_unicode else ("#", "|", "~")
        begin, end = (round(self.places[at] * room) for at in (span.start_s, span.end_s))
        drawn = full * (end - begin) or thin
        first = min(begin, room - len(drawn))
        if self.cut and span.start_s <= self.cut[0] and self.cut[1] <= span.end_s:
            middle = round((self.places[self.cut[0]] + self.places[self.cut[1]]) / 2 * room)
            at = min(max(middle - first, 0), len(drawn) - 1)
            drawn = drawn[:at] + broken + drawn[at + 1 :]
        return " " * first + drawn


def _scale(spans: Sequence[Span]) -> _Scale:
    instants = sorted({i for s in spans for i in (s.start_s, s.end_s)})
    lengths = {(a, b): b - a for a, b in pairwise(instants)}
    whole_s = sum(lengths.values())
    cut = max(lengths, key=lambda k: lengths[k], default=None)
    others_s = whole_s - lengths[cut] if cut else 0.0
    if cut and len(lengths) > _CUT_OTHERS and lengths[cut] > _CUT_FACTOR * others_s > 0:
        lengths[cut] = others_s
        whole_s = 2 * others_s
    else:
        cut = None
    places, at_s = {instants[0]: 0.0}, 0.0
    for (_, end), length_s in lengths.items():
        at_s += length_s
        places[end] = at_s / whole_s
    return _Scale(places, cut)


def _scaled(root: _Node) -> Iterator[tuple[_Scale, _Node]]:
    """Yield a tree's nodes from the top, each with the scale that it is drawn on."""
    scales: dict[int, _Scale] = {}

    def walk(node: _Node, top: _Node) -> Iterator[tuple[_Scale, _Node]]:
        top = node if node.begins_scale else top
        if id(top) not in scales:
            scales[id(top)] = _scale([n.span for n in _group(top)])
        yield scales[id(top)], node
        for child in node.children:
            yield from walk(child, top)

    return walk(root, root)


def _group(top: _Node) -> Iterator[_Node]:
    yield top
    for child in top.children:
        if not child.begins_scale:
            yield from _group(child)


def _trees(spans: Iterable[Span]) -> list[_Node]:
    known = {span.span_id: span for span in spans}
    below: dict[str, list[Span]] = {}
    for span in sorted(known.values(), key=lambda s: (s.start_s, s.end_s)):
        below.setdefault(span.parent_id if span.parent_id in known else "", []).append(span)

    def tree(span: Span, depth: int) -> _Node:
        parent = known.get(span.parent_id)
        later_s = span.start_s - parent.end_s if parent is not None else 0.0
        children = [tree(child, depth + 1) for child in below.get(span.span_id, ())]
        return _Node(span, depth, later_s, children)

    return [tree(span, 0) for span in below.get("", ())]


def _called(span: Span) -> str:
    pod = span.attributes.get("k8s.pod.name")
    return f"{span.name} {pod}" if pod and span.name == "restore" else span.name


def _shortened(name: str) -> str:
    return name if len(name) <= _NAME_LIMIT else f"{name[: _NAME_LIMIT - 2]}.."
