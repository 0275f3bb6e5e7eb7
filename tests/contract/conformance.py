# SPDX-License-Identifier: Apache-2.0
"""Which of the contract's behaviours hold: what ``make conformance`` loads into pytest.

It keeps the tests marked ``contract(number)``, wherever they are, and prints one line a behaviour.
The trap is the behaviour that nobody tests: its line says FAIL, and so does a skipped test's.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.contract.behaviours import BEHAVIOURS

RESULTS = Path(__file__).with_name("results.json")
INJECTED = "in part one level below, with injected host facts: "


@dataclass(slots=True)
class Behaviour:
    """What was found out about one behaviour."""

    tests: set[str] = field(default_factory=set)
    injected: set[str] = field(default_factory=set)
    items: set[str] = field(default_factory=set)

    def result(self, passed: set[str]) -> str:
        """Return ``pass``, or ``FAIL`` if a test did not pass or there is none."""
        return "pass" if self.items and self.items <= passed else "FAIL"

    def to_object(self, passed: set[str]) -> dict[str, Any]:
        """Render for the results."""
        return {
            "result": self.result(passed),
            "tests": sorted(self.tests),
            "injected": sorted(self.injected),
        }


class Conformance:
    """Collects the marked tests and how they end."""

    def __init__(self) -> None:
        self.behaviours = {number: Behaviour() for number in BEHAVIOURS}
        self.passed: set[str] = set()

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """What is known so far, by number."""
        return {str(n): b.to_object(self.passed) for n, b in self.behaviours.items()}

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Keep the marked tests."""
        kept = [item for item in items if item.get_closest_marker("contract")]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
        for item in kept:
            for mark in item.iter_markers("contract"):
                for number in mark.args:
                    behaviour = self.behaviours[number]
                    behaviour.items.add(item.nodeid)
                    behaviour.tests.add(item.nodeid.partition("[")[0])
                    behaviour.injected.update([mark.kwargs.get("injected", "")])
                    behaviour.injected.discard("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a test that passed; one whose clean-up failed has not."""
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)
        elif report.failed:
            self.passed.discard(report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the results, and fail the run unless every behaviour was shown."""
        if session.config.option.collectonly:
            return
        RESULTS.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")
        if any(found["result"] != "pass" for found in self.results.values()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table: number, sentence, result."""
        if terminalreporter.config.option.collectonly:
            return
        results = self.results
        terminalreporter.section("conformance")
        for number, sentence in BEHAVIOURS.items():
            found = results[str(number)]
            line = f"{number:>2} | {sentence} | {found['result']}"
            terminalreporter.write_line(line, red=found["result"] != "pass")
            if found["injected"]:
                terminalreporter.write_line(f"   | {INJECTED}{'; '.join(found['injected'])}")
            if not found["tests"]:
                terminalreporter.write_line("   | no test has this number")
        shown = sum(found["result"] == "pass" for found in results.values())
        terminalreporter.write_line(f"{shown} of {len(results)}")


def pytest_configure(config: pytest.Config) -> None:
    """Register the collector."""
    config.pluginmanager.register(Conformance())
