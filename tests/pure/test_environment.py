# SPDX-License-Identifier: Apache-2.0
"""Which variables differ from the saved Pod's: told by name, never by value."""

from typing import Any

import pytest
from api_objects import pod
from hypothesis import given
from hypothesis import strategies as st

from policies.environment import env_differences, env_marks

UID = "6f4a-1"


def container(*variables: dict[str, Any], **more: Any) -> dict[str, Any]:  # noqa: ANN401 - parts of a container
    """Return a container with these variables."""
    return {"name": "main", "image": "i", "env": list(variables), **more}


def value(name: str, text: str | None = None) -> dict[str, Any]:
    """Return one variable."""
    return {"name": name, "value": text} if text is not None else {"name": name}


SECRET = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
OTHER_KEY = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k2"}}}
SAVED = container(
    value("LOG_LEVEL", "info"),
    value("OLD_KEY", "x"),
    value("EMPTY"),
    SECRET,
    envFrom=[{"configMapRef": {"name": "defaults"}}],
)


def but(*variables: dict[str, Any], without: str = "", **more: Any) -> dict[str, Any]:  # noqa: ANN401 - parts of a container
    """Return the saved container with some variables set, and one left out."""
    named = {v["name"]: v for v in (*SAVED["env"], *variables)}
    named.pop(without, None)
    return {**SAVED, "env": list(named.values()), **more}


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": (but(), ""),
    "the order": ({**SAVED, "env": SAVED["env"][::-1]}, ""),
    "an empty value that is written out": (but(value("EMPTY", "")), ""),
    "a value": (but(value("LOG_LEVEL", "debug")), "LOG_LEVEL differs"),
    "one more": (but(value("NEW_KEY", "y")), "NEW_KEY is new"),
    "one fewer": (but(without="OLD_KEY"), "OLD_KEY is gone"),
    "a reference": (but(OTHER_KEY), "KEY differs"),
    "a reference that became a value": (but(value("KEY", "k")), "KEY differs"),
    "all of an object": (
        but(envFrom=[{"secretRef": {"name": "more"}}]),
        "envFrom secretRef more is new, envFrom configMapRef defaults is gone",
    ),
    "everything at once": (
        but(value("LOG_LEVEL", "debug"), value("NEW_KEY", "y"), without="OLD_KEY"),
        "LOG_LEVEL differs, NEW_KEY is new, OLD_KEY is gone",
    ),
    "too many to list": (
        but(*(value(f"K{n}", "x") for n in range(9))),
        "K0, K1, K2, K3, K4 and 4 more are new",
    ),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_differs_is_told_by_name(what: str) -> None:
    """In an event of bounded length."""
    other, expected = DIFFERENT[what]
    marks = env_marks(pod(containers=[SAVED]), UID)
    found = env_differences(marks, pod(containers=[other]), UID)
    assert found == ([f"container main: {expected}"] if expected else [])


def test_sidecars_count_and_init_containers_have_no_memory_left() -> None:
    """The marks are of what runs side by side."""
    sidecar = {"name": "side", "restartPolicy": "Always", "env": [value("A", "1")]}
    init = {"name": "setup", "env": [value("A", "1")]}
    marks = env_marks(pod(containers=[SAVED], initContainers=[init, sidecar]), UID)
    assert marks.keys() == {"side", "main"}


def test_a_snapshot_without_marks_is_not_compared() -> None:
    """An older record, or one of files alone, says nothing about an environment."""
    assert env_differences({}, pod(containers=[SAVED]), UID) == []


@given(st.text(), st.text(min_size=8))
def test_a_mark_says_that_a_value_differs_and_is_too_short_to_say_more(key: str, text: str) -> None:
    """Neither the value nor anything of its length; another namespace has other marks."""
    source = pod(containers=[container(value("K", text))])
    mark = env_marks(source, key)["main"]["K"]
    assert len(mark) == 4
    assert text not in str(env_marks(source, key))
    assert env_differences({"main": {"K": mark}}, source, key) == []


def test_equal_values_have_other_marks_in_another_namespace() -> None:
    """So that one table does not serve for all; within one they are equal, or they would add up."""
    source = pod(containers=[SAVED])
    assert (
        env_marks(source, UID)["main"]["LOG_LEVEL"] != env_marks(source, "b")["main"]["LOG_LEVEL"]
    )
