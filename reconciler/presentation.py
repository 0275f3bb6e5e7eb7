# SPDX-License-Identifier: Apache-2.0
"""Snapshots as people read them."""

from schemas.instants import parse_time
from schemas.names import READY
from schemas.snapshot import Snapshot


def snapshot_rows(snapshots: list[Snapshot]) -> list[dict[str, str]]:
    """Return one row per snapshot, newest first."""
    newest_first = sorted(
        snapshots, key=lambda s: (s.metadata.creation_timestamp, s.metadata.name), reverse=True
    )
    return [
        {
            "namespace": s.metadata.namespace,
            "name": s.metadata.name,
            "status": s.conditions[READY].reason if READY in s.conditions else "Pending",
            "policy": s.policy_name,
            "originPod": s.capture.pod_name if s.capture else s.origin_pod,
            "size": size(s.capture.size_bytes) if s.capture else "-",
            "saved": (s.capture.checkpointed_at[:19] + "Z")
            if s.capture and s.capture.checkpointed_at
            else "-",
            "lastRestore": s.last_access_time or "-",
        }
        for s in newest_first
    ]


def story_rows(snapshot: Snapshot) -> list[dict[str, str]]:
    """Return one row per state of a snapshot's life, with the seconds since the one before."""
    rows = []
    before = None
    for entry in snapshot.control.story:
        at = parse_time(entry.at)
        after = f"+{(at - before).total_seconds():.3f} s" if at and before else ""
        rows.append(
            {
                "state": entry.state,
                "at": entry.at,
                "after": after,
                "what": entry.reason or _what(snapshot, entry.state),
            }
        )
        before = at or before
    return rows


def size(size_bytes: int) -> str:
    """Return a size for people, in decimal units."""
    amount = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:  # noqa: PLR2004 - decimal units
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _what(snapshot: Snapshot, state: str) -> str:
    capture = snapshot.capture
    if capture is None:
        return ""
    if state == "Checkpointing":
        wrote = f", runsc wrote for {capture.checkpoint_s:.3f} s" if capture.checkpoint_s else ""
        return f"Pod {capture.pod_name} on node {capture.node}{wrote}"
    if state == "AllSnapshotsAvailable":
        return f"{size(capture.size_bytes)} in {snapshot.observed_path}"
    return ""
