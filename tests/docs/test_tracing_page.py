# SPDX-License-Identifier: Apache-2.0
import inspect
import re
from pathlib import Path

from statemachine import trace

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tracing.md").read_text(encoding="utf-8")


def test_the_page_names_every_attribute_and_no_other() -> None:
    """Somebody builds a search on them."""
    told = set(re.findall(r'"((?:k8s|podsnap|vcs)\.[a-z_.]+)"', inspect.getsource(trace)))
    table = PAGE.partition("## Attributes")[2]
    assert set(re.findall(r"`((?:k8s|podsnap|vcs)\.[a-z_.]+)`", table)) == told


def test_the_page_draws_every_step() -> None:
    """In the order of their names in the code, which is the order in time."""
    steps = re.findall(r'_Step\(\s*"([a-z ]+)"', inspect.getsource(trace))
    drawing = PAGE.partition("```")[2].partition("```")[0]
    lines = [re.sub(r"^[│├└─ ]+", "", line) for line in drawing.splitlines() if line]
    save, restore = ["commit 0123456789ab", "policy reconciled", "save"], ["restore"]
    assert [line.split("  ")[0] for line in lines] == [*save, *steps[:6], *restore, *steps[6:]]
