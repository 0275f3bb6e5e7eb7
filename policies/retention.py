# SPDX-License-Identifier: Apache-2.0
"""Which stored snapshots a policy no longer keeps, since when, and why.

Three limits, each of its own: not restored from for ``lastAccessTimeout``, more than
``maxSnapshotCountPerGroup`` in one exact label set, ``Obsolete`` for longer than the policy's
annotation allows. Without a limit a snapshot stays until somebody deletes it (contract, section 12,
26). The traps: a save in the making must not push out a good snapshot before it is good itself, so
only what is stored counts; a failed one holds no bytes and its number is what ends an automatic
policy's attempts, so it neither counts nor is counted, and goes by ``lastAccessTimeout`` alone; and
what a live Pod or a template pins by name is in use, however old it is.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from policies.obsolescence import Template, pins
from policies.selection import group_key
from schemas.durations import parse_retention_s
from schemas.instants import parse_time, to_time
from schemas.names import OBSOLETE_TTL_ANNOTATION, READY
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.snapshot import Snapshot

# Longer than any restore; a record that an agent left behind must not keep a snapshot for ever.
_RESTORE_LIMIT: Final = timedelta(minutes=10)
# datetime ends with the year 9999.
_LONGEST_S: Final = 1000 * 365 * 86400
_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FAR_AWAY: Final = datetime(8000, 1, 1, tzinfo=UTC)
_OBSOLETE: Final = "Obsolete"


@dataclass(frozen=True, slots=True)
class Doomed:
    """A snapshot that goes at ``due_at`` if nothing changes, and why, as a clause on it."""

    snapshot: Snapshot
    reason: str
    due_at: datetime


@dataclass(frozen=True, slots=True)
class RetentionRow:
    """One line of ``podsnap retention --dry-run``; ``due_at`` is RFC 3339, in whole seconds."""

    namespace: str
    name: str
    policy: str
    is_due: bool
    due_at: str
    size_bytes: int
    reason: str


def schedule(
    policy: Policy, snapshots: Iterable[Snapshot], pinned: Collection[str] = ()
) -> list[Doomed]:
    """Return every snapshot of the policy that will go, the first one first.

    ``snapshots`` may hold those of others; ``pinned`` are names that a Pod or template asks for.
    """
    ours = [
        s
        for s in snapshots
        if (s.metadata.namespace, s.policy_name) == policy.metadata.key and _has_ended(s)
    ]
    spared = {*pinned, *(_last_usable(policy, ours) if policy.options.keeps_last else ())}
    first: dict[str, Doomed] = {}
    for found in (*_idle(policy, ours), *_beyond_count(policy, ours), *_outdated(policy, ours)):
        name = found.snapshot.metadata.name
        if name not in spared and (name not in first or found.due_at < first[name].due_at):
            first[name] = found
    return sorted(map(_after_restores, first.values()), key=_order)


def doomed(
    policy: Policy, snapshots: Iterable[Snapshot], now: datetime, pinned: Collection[str] = ()
) -> list[Doomed]:
    """Return what is to be deleted now."""
    return [d for d in schedule(policy, snapshots, pinned) if d.due_at <= now]


def retention_rows(
    policies: Iterable[Policy],
    snapshots: Sequence[Snapshot],
    pods: Sequence[Pod],
    now: datetime,
    templates: Sequence[Template] = (),
) -> list[RetentionRow]:
    """Tell for all policies what goes and when, the first one first; whose Pods pin is judged."""
    rows = [
        RetentionRow(
            namespace=found.snapshot.metadata.namespace,
            name=found.snapshot.metadata.name,
            policy=policy.metadata.name,
            is_due=found.due_at <= now,
            due_at=to_time(found.due_at),
            size_bytes=found.snapshot.capture.size_bytes if found.snapshot.capture else 0,
            reason=found.reason,
        )
        for policy in policies
        if not policy.metadata.is_deleting
        for found in schedule(policy, snapshots, pins(policy, pods, templates))
    ]
    return sorted(rows, key=lambda row: (row.due_at, row.namespace, row.name))


# -- the limits


def _idle(policy: Policy, ours: Sequence[Snapshot]) -> Iterator[Doomed]:
    if policy.last_access_timeout is None:
        return
    allowed = timedelta(seconds=min(parse_retention_s(policy.last_access_timeout), _LONGEST_S))
    for snapshot in ours:
        used = _instant(snapshot.last_access_time)
        since = max(used, _ended_at(snapshot))
        what = (
            "the last restore from it was"
            if since == used
            else "nothing was restored from it since its save ended"
        )
        reason = (
            f"{what} at {to_time(since)}, and policy {policy.metadata.name} has lastAccessTimeout "
            f"{policy.last_access_timeout}"
        )
        yield Doomed(snapshot, reason, since + allowed)


def _beyond_count(policy: Policy, ours: Sequence[Snapshot]) -> Iterator[Doomed]:
    most = policy.max_snapshots_per_group
    if most <= 0:
        return
    newer_usable: dict[tuple[tuple[str, str], ...], list[Snapshot]] = {}
    for snapshot in sorted((s for s in ours if s.is_stored), key=lambda s: s.age_key, reverse=True):
        group = group_key(snapshot.metadata.labels, policy)
        newer = newer_usable.setdefault(group, [])
        if len(newer) >= most:
            of_group = ", ".join(f"{k}={v}" for k, v in group) or "without labels"
            reason = (
                f"{most} newer of its group ({of_group}) are stored, and policy "
                f"{policy.metadata.name} has maxSnapshotCountPerGroup {most}"
            )
            yield Doomed(snapshot, reason, _ended_at(newer[-most]))
        if not snapshot.quarantine:  # else it could push out the last that works
            newer.append(snapshot)


def _outdated(policy: Policy, ours: Sequence[Snapshot]) -> Iterator[Doomed]:
    allowed_s = policy.options.obsolete_ttl_s
    if allowed_s is None:
        return
    text = policy.metadata.annotations.get(OBSOLETE_TTL_ANNOTATION, "")
    for snapshot in ours:
        story = snapshot.control.story
        if not _is_obsolete(snapshot) or not story:
            continue
        since = _instant(story[-1].at)
        reason = (
            f"it is Obsolete since {to_time(since)}, and policy {policy.metadata.name} has "
            f"annotation {OBSOLETE_TTL_ANNOTATION}: {text}"
        )
        yield Doomed(snapshot, reason, since + timedelta(seconds=min(allowed_s, _LONGEST_S)))


def _last_usable(policy: Policy, ours: Sequence[Snapshot]) -> Iterator[str]:
    """Yield the newest usable snapshot of each identity: group, spec and kind of node."""
    newest: dict[tuple[object, ...], Snapshot] = {}
    for snapshot in sorted(filter(_is_usable, ours), key=lambda s: s.age_key):
        capture = snapshot.capture
        memory = (
            (capture.identity.hash, repr(capture.compatibility))
            if capture and not capture.rootfs_only
            else ()
        )
        newest[(group_key(snapshot.metadata.labels, policy), memory)] = snapshot
    return (s.metadata.name for s in newest.values())


def _after_restores(found: Doomed) -> Doomed:
    """Let running restores end: bytes that go meanwhile would cost a Pod its restore."""
    running = found.snapshot.restores.values()
    busy_until = max((_instant(r.started_at) for r in running), default=_LONG_AGO) + _RESTORE_LIMIT
    return Doomed(found.snapshot, found.reason, max(found.due_at, busy_until))


# -- what a snapshot is


def _has_ended(snapshot: Snapshot) -> bool:
    failed = snapshot.capture is not None and snapshot.capture.failure is not None
    return not snapshot.metadata.is_deleting and (failed or snapshot.is_stored)


def _is_usable(snapshot: Snapshot) -> bool:
    ready = snapshot.conditions.get(READY)
    if ready is None or snapshot.quarantine:
        return False
    record = snapshot.control
    waits_for_node = (
        _is_obsolete(snapshot) and bool(record.unrunnable_since) and not record.unwanted_since
    )
    return ready.is_true or waits_for_node


def _is_obsolete(snapshot: Snapshot) -> bool:
    ready = snapshot.conditions.get(READY)
    return ready is not None and ready.reason == _OBSOLETE


def _ended_at(snapshot: Snapshot) -> datetime:
    """Return when its save ended; for a failed one when that was first seen."""
    capture, story = snapshot.capture, snapshot.control.story
    if capture is not None and capture.failure is None:
        return _instant(capture.uploaded_at or snapshot.metadata.creation_timestamp)
    return _instant(story[-1].at if story else snapshot.metadata.creation_timestamp)


def _order(found: Doomed) -> tuple[datetime, str]:
    return (found.due_at, found.snapshot.metadata.name)


def _instant(text: str) -> datetime:
    # A node's clock may be anywhere; what is added to it must stay a date.
    return min(parse_time(text) or _LONG_AGO, _FAR_AWAY)
