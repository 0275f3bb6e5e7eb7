# SPDX-License-Identifier: Apache-2.0
"""Which snapshots go, when, and why."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from api_objects import FAILURE, NODE, capture_of, pinned, pod, policy, snapshot
from hypothesis import given
from hypothesis import strategies as st

from policies.obsolescence import Template
from policies.retention import doomed, retention_rows, schedule
from schemas.conditions import Condition
from schemas.names import KEEP_LAST_ANNOTATION, OBSOLETE_TTL_ANNOTATION, READY
from schemas.policy import Policy
from schemas.policy_options import PolicyOptions
from schemas.snapshot import ControlRecord, RestoreProgress, Snapshot, StoryEntry

START = datetime(2026, 1, 1, tzinfo=UTC)


def day(number: float) -> str:
    """Return an instant as it stands in a record."""
    return (START + timedelta(days=number)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def under(
    timeout: str | None = None,
    *,
    most: int = 0,
    labels: tuple[str, ...] = (),
    **annotations: str,
) -> Policy:
    """Return a policy with limits; ``ttl`` and ``keep`` are its annotations."""
    names = {"ttl": OBSOLETE_TTL_ANNOTATION, "keep": KEEP_LAST_ANNOTATION}
    found = policy()
    given_annotations = {names[key]: value for key, value in annotations.items()}
    return replace(
        found,
        metadata=replace(found.metadata, annotations=given_annotations),
        options=PolicyOptions.parse(given_annotations),
        last_access_timeout=timeout,
        max_snapshots_per_group=most,
        grouping_labels=labels,
    )


def saved(
    name: str,
    on: float = 0,
    *,
    used: float | None = None,
    image: str = "web:1",
    labels: Mapping[str, str] | None = None,
    **changes: Any,  # noqa: ANN401 - fields of a Snapshot
) -> Snapshot:
    """Return a snapshot that was stored on a day, and restored from on another."""
    source = pod(containers=[{"name": "main", "image": image}])
    found = snapshot(name, labels=labels, capture=capture_of(source, at=day(on)))
    access = "" if used is None else day(used)
    return replace(found, last_access_time=access, **changes)


def obsolete(name: str, on: float = 0, *, since: float, **fields: Any) -> Snapshot:  # noqa: ANN401
    """Return a stored snapshot that nobody wants since a day."""
    return saved(
        name,
        on,
        conditions={READY: Condition(READY, "False", "Obsolete")},
        control=ControlRecord((StoryEntry("Obsolete", day(since)),)),
        **fields,
    )


def failed(name: str, on: float = 0) -> Snapshot:
    """Return a save that ended without bytes on a day."""
    found = saved(name, on)
    assert found.capture
    return replace(
        found,
        capture=replace(found.capture, failure=FAILURE),
        conditions={READY: Condition(READY, "False", "Failed")},
        control=ControlRecord((StoryEntry("Failed", day(on)),)),
    )


def uploading(name: str, on: float = 0) -> Snapshot:
    """Return a save that is not stored yet."""
    return saved(name, on, conditions={READY: Condition(READY, "False", "Uploading")})


def names(policy: Policy, snapshots: list[Snapshot], on: float, pins: tuple[str, ...] = ()) -> str:
    """Return what is due on a day, the first one first."""
    found = doomed(policy, snapshots, START + timedelta(days=on), pins)
    return " ".join(d.snapshot.metadata.name for d in found)


THREE = [saved("a", 1), saved("b", 2), saved("c", 3)]
IN_GROUPS = [
    saved("none", 1),
    saved("k1", 2, labels={"k1": "x"}),
    saved("both", 3, labels={"k1": "x", "k2": "y"}),
    saved("k1-new", 4, labels={"k1": "x", "other": "z"}),
    saved("k1-else", 5, labels={"k1": "w"}),
]
WORTH_NOTHING = {f"pod-{n}": "CrashLoop" for n in range(3)}
RUNNING = RestoreProgress("web-1", "node-1", "Fetching", day(30.999))

# what: (policy, snapshots, day, pins, what is due)
TABLE: dict[str, tuple[Policy, list[Snapshot], float, tuple[str, ...], str]] = {
    "without a limit everything stays for ever": (under(), [*THREE, failed("f")], 9999, (), ""),
    "an idle one goes after the timeout": (under("30d"), [saved("a")], 30, (), "a"),
    "not a moment before": (under("30d"), [saved("a")], 29.999, (), ""),
    "a restore begins the time anew": (under("30d"), [saved("a", used=20)], 49, (), ""),
    "and it counts from the restore": (under("30d"), [saved("a", used=20)], 50, (), "a"),
    "the longest idle one is first": (under("1d"), [saved("a", 2), saved("b", 1)], 5, (), "b a"),
    "a failed save goes by the timeout": (under("30d"), [failed("f")], 30, (), "f"),
    "a save in the making never goes": (
        under("30d", most=1),
        [uploading("u"), *THREE],
        4,
        (),
        "a b",
    ),
    "an obsolete one goes by the timeout too": (
        under("30d"),
        [obsolete("o", since=29)],
        30,
        (),
        "o",
    ),
    "a pin holds the timeout off": (under("30d"), [saved("a"), saved("b")], 30, ("a",), "b"),
    "a running restore is let end": (
        under("31d"),
        [saved("a", restores={"uid": RUNNING})],
        31,
        (),
        "",
    ),
    "what an agent left behind is no restore": (
        under("31d"),
        [saved("a", restores={"uid": RUNNING})],
        31.01,
        (),
        "a",
    ),
    "the newest n of a group stay": (under(most=2), THREE, 4, (), "a"),
    "a timeout goes on within the newest n": (under("1d", most=2), THREE, 4, (), "a b c"),
    "a group is the exact set of labels": (
        under(most=1, labels=("k1", "k2")),
        IN_GROUPS,
        6,
        (),
        "k1",
    ),
    "one in the making pushes nobody out": (under(most=3), [*THREE, uploading("u", 4)], 5, (), ""),
    "a failed one pushes nobody out": (under(most=3), [*THREE, failed("f", 4)], 5, (), ""),
    "a damaged one pushes nobody out": (
        under(most=3),
        [*THREE, saved("d", 4, damage="torn")],
        5,
        (),
        "",
    ),
    "a quarantined one goes with the older ones": (
        under(most=1),
        [saved("q", 1, failures=WORTH_NOTHING), saved("good", 2), saved("new", 3)],
        5,
        (),
        "q good",
    ),
    "a failed one is not counted out": (under(most=1), [failed("f", 1), *THREE], 4, (), "a b"),
    "an obsolete one has its place in the group": (
        under(most=2),
        [saved("a", 1), obsolete("o", 2, since=2), saved("c", 3)],
        4,
        (),
        "a",
    ),
    "a pin holds the count off": (under(most=1), THREE, 4, ("a",), "b"),
    "an obsolete one goes by its own time": (
        under(ttl="2h"),
        [obsolete("o", since=1)],
        1.1,
        (),
        "o",
    ),
    "which counts from when it became so": (
        under(ttl="2h"),
        [obsolete("o", since=1)],
        1.05,
        (),
        "",
    ),
    "and is not for usable ones": (under(ttl="2h"), THREE, 99, (), ""),
    "the last usable one can be kept": (under("1d", keep="true"), THREE, 9, (), "a b"),
    "of each spec": (
        under(most=1, keep="true"),
        [saved("v1", 1), saved("v2", 2, image="web:2"), saved("v2-new", 3, image="web:2")],
        9,
        (),
        "v2",
    ),
    "and of each group": (
        under("1d", keep="true", labels=("k1",)),
        [saved("a", 1), saved("b", 2, labels={"k1": "x"})],
        9,
        (),
        "",
    ),
    "an obsolete one is not usable": (
        under(ttl="2h", keep="true"),
        [obsolete("o", since=1)],
        9,
        (),
        "o",
    ),
    "a timeout longer than the calendar": (under("99999y"), THREE, 9999, (), ""),
}


@pytest.mark.parametrize("what", TABLE)
def test_what_is_due(what: str) -> None:
    """Each limit alone and together, and what holds it off."""
    limits, snapshots, on, pins, expected = TABLE[what]
    assert names(limits, snapshots, on, pins) == expected


def test_every_kind_of_node_keeps_its_last() -> None:
    """An image that another kind of node made is no use to the Pods of this one."""
    first, second = saved("a", 1), saved("b", 2)
    assert second.capture
    other = replace(second.capture, compatibility=replace(NODE, machine_series="c3"))
    found = [first, replace(second, capture=other)]
    assert names(under("1d", keep="true"), found, 9) == ""


def test_what_is_being_deleted_counts_no_more() -> None:
    """Else it would be deleted again and again, and push others out."""
    going = saved("c", 3)
    going = replace(going, metadata=replace(going.metadata, deletion_timestamp=day(3)))
    assert names(under(most=2), [*THREE[:2], going], 4) == ""


def test_snapshots_of_another_policy_are_not_ours() -> None:
    """Neither of another name nor of another namespace."""
    others = [
        replace(saved("a"), policy_name="db"),
        replace(saved("b"), metadata=replace(saved("b").metadata, namespace="other")),
    ]
    assert names(under("1d", most=1), others, 99) == ""


REASONS = {
    "2026-01-02T00:00:00Z, and policy web has lastAccessTimeout 30d": under("30d"),
    "1 newer of its group (k1=x) are stored, and policy web has maxSnapshotCountPerGroup 1": under(
        most=1, labels=("k1",)
    ),
    "it is Obsolete since 2026-01-02T00:00:00Z, and policy web has annotation "
    "podsnap.dev/obsolete-ttl: 2h": under(ttl="2h"),
}


@pytest.mark.parametrize("reason", REASONS)
def test_the_reason_names_the_limit_and_what_met_it(reason: str) -> None:
    """It stands in the Event, after the object is gone."""
    found = [obsolete("o", 1, since=1, labels={"k1": "x"}), saved("new", 60, labels={"k1": "x"})]
    assert reason in schedule(REASONS[reason], found)[0].reason


def test_the_rows_tell_what_goes_now_and_later() -> None:
    """A dry run shows both, and spares what a live Pod or a template pins."""
    now = START + timedelta(days=11.5)
    rows = retention_rows([under("10d")], THREE, [pinned("b"), pinned("a", namespace="x")], now)
    assert [(r.name, r.is_due, r.due_at[:10], r.size_bytes) for r in rows] == [
        ("a", True, "2026-01-12", 1000),
        ("c", False, "2026-01-14", 1000),
    ]
    pinning = Template(policy().metadata, {"app": "web"}, pin="c")
    rows = retention_rows([under("10d")], THREE, [pinned("b")], now, [pinning])
    assert [r.name for r in rows] == ["a"]


# -- random ones

SNAPSHOTS = st.lists(
    st.builds(
        lambda kind, on, used, image, group: (kind, on, max(on, used), image, group),
        st.sampled_from(["saved", "saved", "obsolete", "failed", "uploading"]),
        st.integers(0, 40),
        st.integers(0, 40),
        st.sampled_from(["web:1", "web:2"]),
        st.sampled_from([{}, {"k1": "x"}]),
    ),
    max_size=12,
)
LIMITS = st.builds(
    under,
    st.sampled_from([None, "5d", "1mo"]),
    most=st.integers(0, 3),
    labels=st.sampled_from([(), ("k1",)]),
    ttl=st.sampled_from(["1d", "10d"]),
    keep=st.sampled_from(["true", "false"]),
)
DAYS = st.integers(0, 80)


def made(drawn: list[tuple[str, int, int, str, dict[str, str]]]) -> list[Snapshot]:
    """Return the snapshots of a draw."""
    kinds = {
        "saved": lambda name, on, used, image, group: saved(
            name, on, used=used, image=image, labels=group
        ),
        "obsolete": lambda name, on, used, image, group: obsolete(
            name, on, since=used, image=image, labels=group
        ),
        "failed": lambda name, on, *_: failed(name, on),
        "uploading": lambda name, on, *_: uploading(name, on),
    }
    return [kinds[kind](f"s{n}", *rest) for n, (kind, *rest) in enumerate(drawn)]


@given(LIMITS, SNAPSHOTS, DAYS, DAYS)
def test_what_is_due_stays_due(limits: Policy, drawn: Any, one: int, other: int) -> None:  # noqa: ANN401
    """Time alone spares nothing, so a late look deletes what an early one would have."""
    snapshots = made(drawn)
    early, late = sorted((one, other))
    assert set(names(limits, snapshots, early).split()) <= set(
        names(limits, snapshots, late).split()
    )


@given(LIMITS, SNAPSHOTS, DAYS)
def test_deleting_makes_nothing_else_due(limits: Policy, drawn: Any, on: int) -> None:  # noqa: ANN401
    """One sweep is enough: what a look spares, the next one spares."""
    snapshots = made(drawn)
    gone = names(limits, snapshots, on).split()
    left = [s for s in snapshots if s.metadata.name not in gone]
    assert names(limits, left, on) == ""


@given(LIMITS, SNAPSHOTS, DAYS)
def test_the_newest_usable_of_each_spec_is_kept_if_the_policy_asks(
    limits: Policy,
    drawn: Any,  # noqa: ANN401
    on: int,
) -> None:
    """Whatever else the policy limits."""
    limits = replace(limits, options=replace(limits.options, keeps_last=True))
    snapshots = made(drawn)
    gone = names(limits, snapshots, on).split()

    def specs(of: list[Snapshot]) -> set[str]:
        return {s.capture.identity.hash for s in of if s.capture and s.conditions[READY].is_true}

    assert specs(snapshots) == specs([s for s in snapshots if s.metadata.name not in gone])


@given(SNAPSHOTS, st.integers(1, 3), DAYS)
def test_the_count_alone_leaves_exactly_the_newest_n(drawn: Any, most: int, on: int) -> None:  # noqa: ANN401
    """Fewer only if there are fewer, and never a newer one before an older one."""
    snapshots = made(drawn)
    gone = names(under(most=most), snapshots, max(on, 41)).split()
    stored = sorted(
        (s for s in snapshots if s.conditions[READY].reason not in {"Failed", "Uploading"}),
        key=lambda s: (s.capture.checkpointed_at if s.capture else "", s.metadata.name),
        reverse=True,
    )
    assert sorted(gone) == sorted(s.metadata.name for s in stored[most:])
