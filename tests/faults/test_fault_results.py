# SPDX-License-Identifier: Apache-2.0
"""The table of results is whole: each cell was run, or says why it cannot be."""

import json
from pathlib import Path

import pytest

from tests.faults.kill_table import STEPS, VICTIMS, Step, cells, unreachable

RESULTS = Path(__file__).with_name("results.json")
# What each phase promises, whoever dies.
ENDS = {
    "save": {"finished", "done again", "failed, told"},
    "upload": {"finished", "done again", "failed, told"},
    "fetch": {"restored", "cold start"},
    "restore": {"restored", "cold start", "restored, then started again"},
    "delete": {"gone"},
}


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("step", STEPS, ids=lambda s: s.id)
def test_every_cell_was_run_or_carries_its_reason(step: Step, victim: str) -> None:
    """The committed results have what kill_table.py says, and nothing for cells that are none."""
    found = json.loads(RESULTS.read_text(encoding="utf-8")).get(step.id, {}).get(victim)

    if unreachable(step, victim):
        assert found is None
    else:
        assert found is not None, "run tests/faults/test_kill_table.py, then: make docs"
        assert found["outcome"] in ENDS[step.phase]


def test_the_results_are_of_steps_that_exist() -> None:
    """A renamed step leaves no old line behind."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))

    assert results.keys() == {step.id for step in STEPS}
    assert len(cells()) >= 60
