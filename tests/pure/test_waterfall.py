# SPDX-License-Identifier: Apache-2.0
"""A trace in a terminal: whatever lies between a save and a restore, both can be read."""

import pytest

from reconciler.waterfall import duration, waterfall
from schemas.span import AttributeValue, Span

DAY_S = 86400.0


def span(
    name: str, parent: str, start_s: float, end_s: float, error: str = "", **attributes: str
) -> Span:
    """Return a span whose id is its name."""
    known: dict[str, AttributeValue] = {k.replace("_", "."): v for k, v in attributes.items()}
    return Span("t", name, parent, name, "agent", start_s, end_s, attributes=known, error=error)


def drawn(*spans: Span, width: int = 44, is_unicode: bool = True) -> list[str]:
    """Return the lines as they are read."""
    lines = waterfall(spans, width=width, is_unicode=is_unicode)
    return [f"{x.name}  {x.took}  {x.bar}".rstrip() for x in lines]


SAVE = (span("save", "", 0, 10), span("freeze", "save", 2, 5), span("upload", "save", 5, 10))


def test_a_bar_is_where_its_span_was() -> None:
    """Children are indented, in the order in which they began, whatever the order they came in."""
    assert drawn(*reversed(SAVE)) == [
        "save      10 s  ████████████████████████████",
        "  freeze   3 s        ████████",
        "  upload   5 s                ██████████████",
    ]


def test_what_begins_after_its_parent_ended_has_a_scale_of_its_own() -> None:
    """A day between save and restore squeezes neither, and is told."""
    lines = drawn(*SAVE, span("restore", "save", 10 + DAY_S, 13 + DAY_S), is_unicode=False)
    assert lines == [
        "save       10 s  ###########################",
        "  freeze    3 s       #########",
        "  upload    5 s                #############",
        "  ... 1 d later",
        "  restore   3 s  ###########################",
    ]


def test_where_nothing_happens_for_most_of_a_scale_it_is_cut() -> None:
    """The bars across it show where."""
    waiting = (
        span("save", "", 0, 3610),
        span("wait", "save", 0, 3600),
        span("freeze", "save", 3600, 3602),
        span("dump", "save", 3601, 3602),
        span("upload", "save", 3602, 3610),
    )
    bars = [line.bar for line in waterfall(waiting, width=60)]
    assert [bar.count("╌") for bar in bars] == [1, 1, 0, 0, 0]
    assert all(bar.strip(" ╌") for bar in bars)
    assert len(bars[4].strip()) > 3 * len(bars[2].strip())


def test_without_unicode_there_are_only_ascii_characters() -> None:
    """Also in units."""
    text = "".join(drawn(*SAVE, span("x", "save", 9.99999, 10), is_unicode=False))
    assert text.isascii()
    assert "10 us" in text


def test_a_moment_has_a_mark_and_nothing_is_wider_than_asked() -> None:
    """An instant at the very end is still on the screen."""
    for width in (60, 100):
        lines = drawn(*SAVE, span("ready", "save", 10, 10), width=width)
        assert lines[-1].endswith("▏")
        assert max(map(len, lines)) <= width


def test_a_span_without_its_parent_is_a_root_and_pods_are_named() -> None:
    """A backend may have forgotten the half."""
    (line,) = drawn(span("restore", "gone", 1, 2, k8s_pod_name="web-1"), width=40)
    assert line.startswith("restore web-1  1 s  ██")
    assert drawn() == []


def test_a_failure_is_told_with_its_span() -> None:
    """For the command to show."""
    (line,) = waterfall([span("save", "", 1, 2, error="disk full")], width=40)
    assert line.error == "disk full"


@pytest.mark.parametrize(
    ("took_s", "text"),
    [
        (0, "< 1 s"),
        (0.0005, "500 µs"),
        (0.0123, "12.3 ms"),
        (0.9996, "1 s"),
        (1.5, "1.5 s"),
        (61, "1 min 1 s"),
        (7200, "2 h"),
        (90000, "1 d 1 h"),
    ],
)
def test_durations_have_units(took_s: float, text: str) -> None:
    """Three digits are enough."""
    assert duration(took_s) == text
