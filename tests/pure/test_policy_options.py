# SPDX-License-Identifier: Apache-2.0
"""What a policy's annotations ask for, and what a typing error in one of them does."""

import pytest

from schemas.names import (
    GATE_ANNOTATION,
    KEEP_LAST_ANNOTATION,
    OBSOLETE_TTL_ANNOTATION,
    PROBE_BUDGET_ANNOTATION,
    SAVE_SELECTOR_ANNOTATION,
    STRICT_IDENTITY_ANNOTATION,
)
from schemas.policy_options import PolicyOptions, Strictness
from schemas.selectors import LabelSelector

ALL = frozenset(Strictness)
OPTIONS: dict[str, tuple[dict[str, str], PolicyOptions]] = {
    "none": ({}, PolicyOptions()),
    "both waits": (
        {GATE_ANNOTATION: "1m", PROBE_BUDGET_ANNOTATION: "250ms"},
        PolicyOptions(gate_s=60.0, probe_budget_s=0.25),
    ),
    "a strict identity": (
        {STRICT_IDENTITY_ANNOTATION: "env, secrets"},
        PolicyOptions(strict=frozenset({Strictness.ENV, Strictness.SECRETS})),
    ),
    "retention": (
        {KEEP_LAST_ANNOTATION: "true", OBSOLETE_TTL_ANNOTATION: "2d"},
        PolicyOptions(keeps_last=True, obsolete_ttl_s=172800),
    ),
    "a golden Pod": (
        {SAVE_SELECTOR_ANNOTATION: "role=golden"},
        PolicyOptions(save_from=LabelSelector.parse({"matchLabels": {"role": "golden"}})),
    ),
}


@pytest.mark.parametrize("what", OPTIONS)
def test_an_option_is_read_from_its_annotation(what: str) -> None:
    """And what is not set has its default."""
    annotations, expected = OPTIONS[what]
    assert PolicyOptions.parse(annotations) == expected


WRONG: dict[str, tuple[dict[str, str], PolicyOptions, str]] = {
    "a gate that is no duration": (
        {GATE_ANNOTATION: "soon"},
        PolicyOptions(),
        "annotation podsnap.dev/gate: 'soon' is not a duration; write it like 30s, 5m or 1h30m",
    ),
    "a gate that is too long": (
        {GATE_ANNOTATION: "2m"},
        PolicyOptions(),
        "annotation podsnap.dev/gate: it is 2m; a sandbox must be made within two minutes, so the "
        "gate is at most 85s",
    ),
    "a budget that is no duration": (
        {PROBE_BUDGET_ANNOTATION: "10"},
        PolicyOptions(),
        "annotation podsnap.dev/probe-budget: '10' is not a duration; write it like 30s, 5m or "
        "1h30m",
    ),
    "a selector that is none saves nothing": (
        {SAVE_SELECTOR_ANNOTATION: "role golden"},
        PolicyOptions(save_from=LabelSelector.nothing()),
        "annotation podsnap.dev/save-selector: 'role golden' is no label selector; write it like "
        "role=golden,!old",
    ),
    "an unknown strictness is strict in everything": (
        {STRICT_IDENTITY_ANNOTATION: "env,secret"},
        PolicyOptions(strict=ALL),
        "annotation podsnap.dev/strict-identity: 'secret' is none of env, secrets, configmaps; "
        "until it is mended, all of them count",
    ),
    "a switch that is neither keeps": (
        {KEEP_LAST_ANNOTATION: "yes"},
        PolicyOptions(keeps_last=True),
        "annotation podsnap.dev/keep-last: 'yes' is neither true nor false; until it is mended, "
        "it is true",
    ),
    "a selector that would take long to read": (
        {SAVE_SELECTOR_ANNOTATION: "," * 100_000},
        PolicyOptions(save_from=LabelSelector.nothing()),
        "annotation podsnap.dev/save-selector: it is longer than 1024 characters",
    ),
    "a gate that would take long to read": (
        {GATE_ANNOTATION: "9" * 100_000},
        PolicyOptions(),
        "annotation podsnap.dev/gate: it is longer than 1024 characters",
    ),
    "a time to live that is none": (
        {OBSOLETE_TTL_ANNOTATION: "1w"},
        PolicyOptions(),
        "annotation podsnap.dev/obsolete-ttl: '1w' is not a retention; write a number and y, mo, "
        "d, h or min",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_option_is_told_and_never_opens_what_it_was_to_shut(what: str) -> None:
    """A typing error must not stop a policy from working, nor take a protection away."""
    annotations, expected, error = WRONG[what]
    found = PolicyOptions.parse(annotations)
    assert found.errors == (error,)
    assert PolicyOptions(**{**_fields(found), "errors": ()}) == expected


def _fields(options: PolicyOptions) -> dict[str, object]:
    return {name: getattr(options, name) for name in PolicyOptions.__slots__}


SELECTED: dict[str, tuple[str, bool]] = {
    "an equal value": ("role=golden", True),
    "kubectl's double sign": ("role == golden", True),
    "another value": ("role=silver", False),
    "not another value": ("role!=silver", True),
    "a key": ("role", True),
    "no such key": ("!role", False),
    "one of a set": ("role in (silver, golden)", True),
    "none of a set": ("role notin (silver,golden)", False),
    "all terms": ("role=golden,tier in (a,b),!old", True),
    "one term of several fails": ("role=golden,tier=b", False),
    "a key with a prefix": ("app.kubernetes.io/name=web", True),
}


@pytest.mark.parametrize("what", SELECTED)
def test_a_selector_is_read_as_kubectl_spells_it(what: str) -> None:
    """Against one set of labels."""
    text, expected = SELECTED[what]
    labels = {"role": "golden", "tier": "a", "app.kubernetes.io/name": "web"}
    assert LabelSelector.parse_text(text).matches(labels) is expected


@pytest.mark.parametrize("text", ["", ",", "a b", "=x", "a in b", "a=b,,c=d", "a in (b", "a=b c"])
def test_what_is_no_selector_is_refused(text: str) -> None:
    """With an example of one."""
    with pytest.raises(ValueError, match="write it like role=golden"):
        LabelSelector.parse_text(text)


def test_a_selector_of_nothing_selects_nothing() -> None:
    """Whatever the labels."""
    assert not any(map(LabelSelector.nothing().matches, ({}, {"nothing": "x"})))
