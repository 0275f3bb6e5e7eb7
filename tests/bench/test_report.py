# SPDX-License-Identifier: Apache-2.0

import json
from pathlib import Path

import report
from figure import Figure, Target


def _figure(value: float, target: Target | None = None) -> Figure:
    return Figure.of(
        [value], part="wrapper", name="added", unit="ms", target=target, covers="spawn to end"
    )


def test_the_table_says_which_target_is_missed() -> None:
    """A person sees number, target, both percentiles and the verdict in one line."""
    lines = report.table([_figure(16.5, Target(limit=15)), _figure(2.0)])
    assert lines[0].split() == list(report.HEADER)
    assert lines[1].split() == [
        "wrapper:",
        "added",
        "<=",
        "15",
        "16.5",
        "16.5",
        "16.5",
        "1",
        "ms",
        "NO",
    ]
    assert lines[2].split() == ["wrapper:", "added", "-", "2.00", "2.00", "2.00", "1", "ms", "-"]


def test_the_columns_are_aligned() -> None:
    """Numbers of different length stand below each other."""
    lines = report.table([_figure(1234.5, Target(limit=15)), _figure(2.0)])
    assert {line.index("ms") for line in lines[1:]} == {lines[0].index("UNIT")}


def test_every_number_says_what_it_covers() -> None:
    """A number without its bounds would be misread."""
    assert report.notes([_figure(1)]) == ["wrapper/added: spawn to end"]


def test_a_broken_part_spoils_the_result() -> None:
    """What was not measured is not met."""
    good = [_figure(1, Target(limit=15))]
    assert report.result(good, {}, load_before=0)["met"] is True
    assert report.result(good, {"idle": "no agent"}, load_before=0)["met"] is False


def test_a_missed_target_spoils_the_result() -> None:
    """One miss is enough; a number without a target never is one."""
    assert report.result([_figure(99)], {}, load_before=0)["met"] is True
    missed = [_figure(99), _figure(99, Target(limit=15))]
    assert report.result(missed, {}, load_before=0)["met"] is False


def test_the_result_file_is_replaced_whole(tmp_path: Path) -> None:
    """A second run leaves one valid file and nothing beside it."""
    path = tmp_path / "bench" / "result.json"
    for value in (1.0, 2.0):
        report.write(path, report.result([_figure(value)], {}, load_before=0.5))
    tree = json.loads(path.read_text(encoding="utf-8"))
    assert tree["figures"][0]["p50"] == 2.0
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]
