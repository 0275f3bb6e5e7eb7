# SPDX-License-Identifier: Apache-2.0
"""Durations, instants, conditions and derived names."""

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from api_objects import NODE, policy
from hypothesis import given
from hypothesis import strategies as st

from policies.identity import (
    automatic_identity,
    automatic_snapshot_name,
    manual_snapshot_name,
)
from schemas.conditions import MESSAGE_LIMIT, Condition, Status, parse_conditions
from schemas.durations import parse_go_duration_s, parse_retention_s
from schemas.instants import parse_time, to_micro_time, to_time
from schemas.quantities import parse_bytes
from schemas.snapshot import SpecIdentity

GO = {"30s": 30, "1m30s": 90, "1h": 3600, "1.5h": 5400, "250ms": 0.25, "1h1m1s1ms": 3661.001}
RETENTION = {
    "30d": 30 * 86400,
    "6 h": 6 * 3600,
    "1y": 365 * 86400,
    "2mo": 60 * 86400,
    "5min": 300,
    "0h": 0,
}


@pytest.mark.parametrize("text", GO)
def test_a_go_duration_is_read_in_seconds(text: str) -> None:
    """GitSource's interval is spelled as Flux spells it."""
    assert parse_go_duration_s(text) == pytest.approx(GO[text])


@pytest.mark.parametrize("text", ["", "30", "s", "1d", "-1s", "1m 30s", "1m30", "1h\n"])
def test_what_is_no_go_duration_is_refused_with_an_example(text: str) -> None:
    """The message says how to write one."""
    with pytest.raises(ValueError, match="write it like 30s, 5m or 1h30m"):
        parse_go_duration_s(text)


@pytest.mark.parametrize("text", RETENTION)
def test_a_retention_is_read_in_seconds(text: str) -> None:
    """The five units of the contract, with or without a space."""
    assert parse_retention_s(text) == RETENTION[text]


@pytest.mark.parametrize("text", ["", "30", "d", "30s", "1m", "-1d", "1.5d", "30d ", "30d\n"])
def test_what_is_no_retention_is_refused_with_the_units(text: str) -> None:
    """``m`` is neither a month nor a minute."""
    with pytest.raises(ValueError, match="write a number and y, mo, d, h or min"):
        parse_retention_s(text)


BYTES = {
    "0": 0,
    "1": 1,
    "1k": 1000,
    "1.5Gi": 1610612736,
    "2G": 2 * 10**9,
    "512Mi": 512 * 1024**2,
    "1e3": 1000,
    "1E3": 1000,
    "1E": 10**18,
    "128974848000m": 128974848,
    ".5Ki": 512,
    "+1Ki": 1024,
}


@pytest.mark.parametrize("text", BYTES)
def test_a_quantity_of_memory_is_read_in_bytes(text: str) -> None:
    """Every unit that the API takes, with and without a fraction."""
    assert parse_bytes(text) == BYTES[text]


@pytest.mark.parametrize(
    "text", ["", "Mi", "1 Gi", "-1", "1KB", "1Gi\n", ".", "1e3000000", "1e999999", "9" * 99]
)
def test_what_is_no_quantity_is_refused_with_an_example(text: str) -> None:
    """The API server refuses them before us."""
    with pytest.raises(ValueError, match="write it like 512Mi or 2G"):
        parse_bytes(text)


@given(
    st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1)),  # noqa: DTZ001 - the zone is the other argument
    st.integers(min_value=-14, max_value=14),
)
def test_an_instant_survives_being_written(at: datetime, hours: int) -> None:
    """Both spellings are UTC; the fine one keeps microseconds, the API's own whole seconds."""
    local = at.replace(tzinfo=timezone(timedelta(hours=hours)))
    assert parse_time(to_micro_time(local)) == local
    assert parse_time(to_time(local)) == local.replace(microsecond=0)
    assert to_time(local).endswith("Z")


@pytest.mark.parametrize("text", ["", "yesterday", "12"])
def test_a_foreign_instant_is_none(text: str) -> None:
    """A field that somebody else wrote must not stop a reconcile."""
    assert parse_time(text) is None


_STATUS: st.SearchStrategy[Status] = st.sampled_from(["True", "False", "Unknown"])


@given(_STATUS, _STATUS, st.text(max_size=5), st.text(max_size=5))
def test_the_transition_time_moves_only_with_the_status(
    before: Status, after: Status, reason: str, message: str
) -> None:
    """Another reason or message is no transition."""
    previous = Condition("Ready", before, "Old", "old", "2026-01-01T00:00:00Z")
    rendered = Condition("Ready", after, reason, message).to_object(
        previous=previous, now="2026-02-02T00:00:00Z"
    )
    expected = "2026-01-01T00:00:00Z" if before == after else "2026-02-02T00:00:00Z"
    assert rendered["lastTransitionTime"] == expected
    assert (rendered["reason"], rendered["message"]) == (reason, message)


def test_a_first_condition_gets_the_present_instant() -> None:
    """Without a predecessor, or with one that nobody dated."""
    now = "2026-02-02T00:00:00Z"
    condition = Condition("Ready", "True", "R")
    assert condition.to_object(previous=None, now=now)["lastTransitionTime"] == now
    undated = Condition("Ready", "True", "R")
    assert condition.to_object(previous=undated, now=now)["lastTransitionTime"] == now


def test_a_message_is_cut_to_what_the_api_accepts() -> None:
    """A long stack must not make the whole status invalid."""
    rendered = Condition("Ready", "True", "R", "x" * 40000).to_object(previous=None, now="now")
    assert len(rendered["message"]) == MESSAGE_LIMIT


def test_conditions_are_read_by_type_and_incomplete_ones_are_unknown() -> None:
    """A condition without a status is Unknown, as the API means it."""
    found = parse_conditions({"conditions": [{"type": "Ready"}, {"type": "A", "status": "True"}]})
    assert found["Ready"].status == "Unknown"
    assert found["A"].is_true
    assert parse_conditions({"conditions": None}) == {}


def test_saying_the_same_leaves_the_instant_aside() -> None:
    """So that an unchanged status is not written again."""
    one = Condition("Ready", "True", "R", "m", "2026-01-01T00:00:00Z")
    assert one.says_the_same_as(replace(one, last_transition_time="later"))
    assert not one.says_the_same_as(replace(one, message="n"))
    assert not one.says_the_same_as(None)


def test_to_time_is_in_utc() -> None:
    """The API server wants a zone, and everybody reads UTC."""
    assert to_time(datetime(2026, 1, 1, 12, tzinfo=UTC)) == "2026-01-01T12:00:00Z"


# -- names


def test_a_manual_name_is_a_stable_uuid_of_its_trigger() -> None:
    """A controller that died after the creation derives the same name."""
    name = manual_snapshot_name("uid-1")
    assert name == manual_snapshot_name("uid-1") == str(uuid.UUID(name))
    assert name != manual_snapshot_name("uid-2")
    # Fixed for ever: a new version must find what an old one made.
    assert name == "7760f8c9-0833-52e2-8b4d-8344ca0fc89c"


def test_an_automatic_identity_differs_with_every_input() -> None:
    """Pods that are not interchangeable never share a snapshot."""
    spec = SpecIdentity(hash="a")
    base = automatic_identity(policy(), spec, {"tenant": "1"}, NODE)
    others = [
        automatic_identity(policy("other"), spec, {"tenant": "1"}, NODE),
        automatic_identity(policy(), SpecIdentity(hash="b"), {"tenant": "1"}, NODE),
        automatic_identity(policy(), spec, {"tenant": "2"}, NODE),
        automatic_identity(policy(), spec, {}, NODE),
        automatic_identity(policy(), spec, {"tenant": "1"}, replace(NODE, runsc_version="x")),
        automatic_identity(policy(), spec, {"tenant": "1"}, replace(NODE, cpu_features=())),
    ]
    assert len({base, *others}) == 7
    assert len(base) == 32
    assert base == automatic_identity(policy(), SpecIdentity(hash="a"), {"tenant": "1"}, NODE)


def test_the_order_of_group_labels_does_not_matter() -> None:
    """A label set is a set."""
    one = automatic_identity(policy(), SpecIdentity(), {"a": "1", "b": "2"}, NODE)
    two = automatic_identity(policy(), SpecIdentity(), {"b": "2", "a": "1"}, NODE)
    assert one == two


def test_each_generation_of_an_identity_has_its_own_uuid() -> None:
    """A terminal failure moves on to the next name."""
    names = {automatic_snapshot_name("f" * 32, generation) for generation in range(5)}
    assert len(names) == 5
    assert all(str(uuid.UUID(name)) == name for name in names)
