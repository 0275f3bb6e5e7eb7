# SPDX-License-Identifier: Apache-2.0
"""Sizes, times, labels and progress as people read them."""

from collections.abc import Mapping
from datetime import datetime

from schemas.instants import parse_time
from schemas.snapshot import RestoreProgress

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


def progress(restore: RestoreProgress) -> str:
    """Say how far one restore is."""
    done = ""
    if restore.total_bytes:
        percent = min(100, 100 * restore.done_bytes // restore.total_bytes)
        done = f" {percent}% of {size(restore.total_bytes)}"
    return f"{restore.pod_name} on {restore.node}: {restore.phase}{done}"


def labels(group: Mapping[str, str]) -> str:
    """Return labels as kubectl writes them."""
    return ",".join(f"{key}={value}" for key, value in group.items())


def size(size_bytes: float) -> str:
    """Return a size for people, in decimal units."""
    amount = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:  # noqa: PLR2004 - decimal units
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def age(at: str, now: datetime) -> str:
    """Return how long ago an instant was, in its largest sensible unit; empty for no instant."""
    then = parse_time(at)
    if then is None:
        return ""
    return span((now - then).total_seconds())


def span(took_s: float) -> str:
    """Return a time in its largest sensible unit."""
    seconds = max(0, int(took_s))
    for unit, unit_s in (("d", _DAY_S), ("h", _HOUR_S), ("m", _MINUTE_S)):
        if seconds >= 2 * unit_s:
            return f"{seconds // unit_s}{unit}"
    return f"{seconds}s"
