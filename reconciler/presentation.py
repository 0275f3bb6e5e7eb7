# SPDX-License-Identifier: Apache-2.0
"""Snapshots as rows, for lists."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from policies.snapshot_explanation import group_of, saved_from, story
from reconciler.amounts import age, labels, progress, size
from schemas.names import READY
from schemas.policy import Policy
from schemas.snapshot import RestoreProgress, Snapshot
from statemachine.restore import running_restores


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """One snapshot in a list; instants are RFC 3339 texts, empty where there is none."""

    namespace: str
    name: str
    status: str
    message: str
    policy: str
    group: Mapping[str, str]
    origin_pod: str
    size_bytes: int
    created_at: str
    saved_at: str
    last_used_at: str
    restores: int
    restoring: tuple[RestoreProgress, ...]


def snapshot_row(
    snapshot: Snapshot, policies: Mapping[tuple[str, str], Policy], now: datetime
) -> SnapshotRow:
    """Return a snapshot's row; ``policies`` by namespace and name tell its group."""
    ready, capture = snapshot.conditions.get(READY), snapshot.capture
    policy = policies.get((snapshot.metadata.namespace, snapshot.policy_name))
    return SnapshotRow(
        namespace=snapshot.metadata.namespace,
        name=snapshot.metadata.name,
        status=ready.reason if ready else "Pending",
        message=ready.message if ready and not ready.is_true else "",
        policy=snapshot.policy_name,
        group=group_of(snapshot, policy),
        origin_pod=saved_from(snapshot),
        size_bytes=capture.size_bytes if capture else 0,
        created_at=snapshot.metadata.creation_timestamp,
        saved_at=capture.checkpointed_at if capture else "",
        last_used_at=snapshot.last_access_time,
        restores=sum(snapshot.restored_by.values()),
        restoring=tuple(running_restores(snapshot, now).values()),
    )


def newest_first(rows: Iterable[SnapshotRow]) -> list[SnapshotRow]:
    """Sort rows by their creation."""
    return sorted(rows, key=lambda r: (r.created_at, r.name), reverse=True)


HEADER = (
    "NAME",
    "STATUS",
    "POLICY",
    "GROUP",
    "ORIGIN POD",
    "SIZE",
    "AGE",
    "LAST USE",
    "RESTORES",
    "RESTORING",
    "REASON",
)


def cells(row: SnapshotRow, now: datetime) -> list[str]:
    """Return a row below ``HEADER``."""
    return [
        row.name,
        row.status,
        row.policy,
        labels(row.group) or "-",
        row.origin_pod,
        size(row.size_bytes) if row.size_bytes else "-",
        age(row.created_at, now) or "-",
        age(row.last_used_at, now) or "-",
        str(row.restores),
        "; ".join(map(progress, row.restoring)) or "-",
        row.message or "-",
    ]


def story_rows(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return one row per state of a snapshot's life, with the seconds since the one before."""
    return [
        {
            "state": c.state,
            "at": c.at,
            "after": "" if c.after_s is None else f"+{c.after_s:.3f} s",
            "what": c.why,
        }
        for c in story(snapshot)
    ]
