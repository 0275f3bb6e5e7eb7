# SPDX-License-Identifier: Apache-2.0
"""The committed results are whole and of today's tests; docs/conformance.md is made from them."""

import ast
import json
from pathlib import Path

import pytest

from tests.contract.behaviours import BEHAVIOURS
from tests.contract.conformance import RESULTS

ROOT = Path(__file__).resolve().parents[2]


def marked_tests() -> dict[int, set[str]]:
    """Return the tests that are marked with each number."""
    found: dict[int, set[str]] = {number: set() for number in BEHAVIOURS}
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        if "mark.contract(" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            for mark in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.contract":
                    for number in map(ast.literal_eval, mark.args):
                        found[number].add(f"{path.relative_to(ROOT)}::{node.name}")
    return found


@pytest.fixture(scope="module")
def marked() -> dict[int, set[str]]:
    """Look once."""
    return marked_tests()


@pytest.mark.parametrize("number", BEHAVIOURS)
def test_every_behaviour_was_shown_by_the_tests_that_are_there(
    marked: dict[int, set[str]], number: int
) -> None:
    """At least one of them stands in tests/contract/, and all of them passed."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))[str(number)]

    assert found["result"] == "pass"
    assert set(found["tests"]) == marked[number], "run: make conformance, then: make docs"
    assert any(test.startswith("tests/contract/") for test in found["tests"])


def test_there_are_thirty_three() -> None:
    """Numbers are the contract's, without a gap."""
    assert list(BEHAVIOURS) == list(range(1, 34))
