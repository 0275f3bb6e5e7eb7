# SPDX-License-Identifier: Apache-2.0
"""The table a person reads and the file a script reads, from the same figures.

The trap is silence: a part that broke must not look like a part that was not asked for, so broken
parts have lines of their own and fail the run.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from figure import Figure

HEADER = ("NUMBER", "TARGET", "P50", "P90", "P99", "N", "UNIT", "MET")
_SMALL = 10.0


def table(figures: Sequence[Figure]) -> list[str]:
    """Return the lines of the table, aligned."""
    rows = [HEADER, *(_row(figure) for figure in figures)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def notes(figures: Sequence[Figure]) -> list[str]:
    """Return one line per figure that says what it covers."""
    return [f"{figure.part}/{figure.name}: {figure.covers}" for figure in figures]


def result(
    figures: Sequence[Figure], broken: Mapping[str, str], *, load_before: float
) -> dict[str, Any]:
    """Return what is kept: the figures, what broke, and how busy the machine was."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpus": os.cpu_count(),
            "kernel": platform.release(),
            "load_before": round(load_before, 2),
            "load_after": round(os.getloadavg()[0], 2),
        },
        "met": not broken and all(figure.is_met is not False for figure in figures),
        "broken": dict(broken),
        "figures": [figure.to_object() for figure in figures],
    }


def write(path: Path, tree: Mapping[str, Any]) -> None:
    """Replace the result file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def _row(figure: Figure) -> tuple[str, ...]:
    met = {True: "yes", False: "NO", None: "-"}[figure.is_met]
    return (
        f"{figure.part}: {figure.name}",
        str(figure.target) if figure.target else "-",
        _number(figure.p50),
        _number(figure.p90),
        _number(figure.p99),
        str(figure.count),
        figure.unit,
        met,
    )


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < _SMALL else f"{value:.1f}"
