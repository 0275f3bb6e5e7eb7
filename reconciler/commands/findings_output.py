# SPDX-License-Identifier: Apache-2.0
"""Findings for people, for scripts, and for those who show them beside the code.

The trap: a message quotes what somebody wrote, so whoever reads it next (a terminal, a workflow
log) must not take a part of it for a command.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import quote

from policies.lint_catalogue import RULES
from schemas.findings import Finding, Severity

_DOCUMENTATION: Final = "docs/lint.md"
_SARIF_SCHEMA: Final = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_GITHUB: Final[Mapping[Severity, str]] = {
    Severity.ERROR: "error",
    Severity.WARNING: "warning",
    Severity.NOTE: "notice",
}


def as_text(findings: Sequence[Finding]) -> str:
    """Return a line for each, as compilers write it."""
    return "\n".join(
        printable(f"{f.place}: {f.severity}: {f.message}{f.hint and f'; {f.hint}'} [{f.rule}]")
        for f in findings
    )


def as_json(findings: Sequence[Finding]) -> str:
    """Return a list of objects."""
    return json.dumps([asdict(f) for f in findings], indent=2)


def as_github(findings: Sequence[Finding]) -> str:
    """Return workflow commands, which GitHub shows at the line of a pull request."""
    return "\n".join(
        f"::{_GITHUB[f.severity]} file={_property(f.file)},line={f.line},col={f.column},"
        f"title={_property(f.rule)}::{_data(f.message + (f.hint and f'; {f.hint}'))}"
        for f in findings
    )


def as_sarif(findings: Sequence[Finding]) -> str:
    """Return a SARIF 2.1.0 log with one run."""
    used = sorted({f.rule for f in findings})
    driver = {
        "name": "podsnap lint",
        "semanticVersion": version("podsnap"),
        "rules": [
            {
                "id": rule,
                "shortDescription": {"text": RULES.get(rule, rule)},
                "help": {"text": f"{RULES.get(rule, rule)} See {_DOCUMENTATION}."},
            }
            for rule in used
        ],
    }
    results = [_result(f, used.index(f.rule)) for f in findings]
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return json.dumps({"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def counted(findings: Iterable[Finding], files: int) -> str:
    """Return one line that sums up."""
    amounts = dict.fromkeys(Severity, 0)
    for finding in findings:
        amounts[finding.severity] += 1
    parts = [_amount(n, str(severity)) for severity, n in amounts.items()]
    return f"{', '.join(parts)} in {_amount(files, 'file')}"


def _amount(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _result(finding: Finding, rule_index: int) -> dict[str, Any]:
    region = {"startLine": finding.line, "startColumn": finding.column}
    place = {"artifactLocation": {"uri": quote(os.fsencode(finding.file))}, "region": region}
    return {
        "ruleId": finding.rule,
        "ruleIndex": rule_index,
        "level": str(finding.severity),
        "message": {"text": _unicode(finding.message + (finding.hint and f"; {finding.hint}"))},
        "locations": [{"physicalLocation": place}],
    }


def printable(text: str) -> str:
    """Return one line that is a command neither to a terminal nor to a workflow."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    line = line.replace("##[", "#\\x23[")
    return f"./{line}" if line.lstrip().startswith("::") else line


def _unicode(text: str) -> str:
    """Return a text without the bytes that Python keeps of file names that are no UTF-8."""
    return os.fsencode(text).decode("utf-8", "replace")


def _data(text: str) -> str:
    return _unicode(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
