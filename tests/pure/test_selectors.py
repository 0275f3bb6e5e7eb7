# SPDX-License-Identifier: Apache-2.0
"""Label selectors select what Kubernetes' own would."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.selectors import LabelSelector, Requirement

LABELS = {"app": "web", "tier": "front"}

TABLE: dict[str, tuple[dict[str, Any], bool]] = {
    "an empty selector selects everything": ({}, True),
    "matchLabels: equal value": ({"matchLabels": {"app": "web"}}, True),
    "matchLabels: other value": ({"matchLabels": {"app": "db"}}, False),
    "matchLabels: key is absent": ({"matchLabels": {"zone": ""}}, False),
    "all matchLabels must hold": ({"matchLabels": {"app": "web", "tier": "back"}}, False),
    "In holds one of the values": (
        {"matchExpressions": [{"key": "app", "operator": "In", "values": ["db", "web"]}]},
        True,
    ),
    "In needs the key": (
        {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]},
        False,
    ),
    "NotIn holds for another value": (
        {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["db"]}]},
        True,
    ),
    "NotIn does not hold for the value": (
        {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]},
        False,
    ),
    "NotIn holds where the key is absent": (
        {"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]},
        True,
    ),
    "Exists needs the key only": (
        {"matchExpressions": [{"key": "app", "operator": "Exists"}]},
        True,
    ),
    "Exists fails without the key": (
        {"matchExpressions": [{"key": "zone", "operator": "Exists"}]},
        False,
    ),
    "DoesNotExist holds without the key": (
        {"matchExpressions": [{"key": "zone", "operator": "DoesNotExist"}]},
        True,
    ),
    "DoesNotExist fails with the key": (
        {"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]},
        False,
    ),
    "labels and expressions must both hold": (
        {
            "matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}],
        },
        False,
    ),
    "an unknown operator selects nothing": (
        {"matchExpressions": [{"key": "app", "operator": "Gt", "values": ["1"]}]},
        False,
    ),
    "null parts count as absent": ({"matchLabels": None, "matchExpressions": None}, True),
}


@pytest.mark.parametrize("sentence", TABLE)
def test_a_selector_selects_as_in_kubernetes(sentence: str) -> None:
    """Each row is a rule of the label selector documentation."""
    raw, expected = TABLE[sentence]
    assert LabelSelector.parse(raw).matches(LABELS) is expected


_WORDS = st.sampled_from(["a", "b", "c"])


@given(
    labels=st.dictionaries(_WORDS, _WORDS),
    key=_WORDS,
    values=st.lists(_WORDS, min_size=1, max_size=3),
)
def test_opposite_operators_never_agree(
    labels: dict[str, str], key: str, values: list[str]
) -> None:
    """In and NotIn, Exists and DoesNotExist are each other's negation for every label set."""

    def holds(operator: str) -> bool:
        return Requirement(key, operator, tuple(values)).matches(labels)

    assert holds("In") is not holds("NotIn")
    assert holds("Exists") is not holds("DoesNotExist")


@given(labels=st.dictionaries(_WORDS, _WORDS))
def test_a_label_set_selects_itself_and_every_superset(labels: dict[str, str]) -> None:
    """``matchLabels`` asks for no more than it names."""
    selector = LabelSelector.parse({"matchLabels": labels})
    assert selector.matches(labels)
    assert selector.matches({**labels, "another": "x"})
