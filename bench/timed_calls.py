# SPDX-License-Identifier: Apache-2.0
"""Runs inside a node: starts programs in turn and says how long each took, as JSON.

Standard library only, because it is run by the node's own interpreter. The trap is the starter:
``subprocess`` costs more than what is measured, so processes are spawned directly, and what a call
reads is written afresh before its clock starts.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def timed(argv: list[str], null: int) -> tuple[float, int]:
    """Run a program; return its milliseconds from spawn to end, and its exit code."""
    actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1, 2)]
    began_ns = time.perf_counter_ns()
    child = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)
    _, status = os.waitpid(child, 0)
    ended_ns = time.perf_counter_ns()
    return (ended_ns - began_ns) / 1e6, os.waitstatus_to_exitcode(status)


def prepare(case: dict[str, Any]) -> None:
    """Write a case's files as they are before the runtime is called."""
    for path, text in case["files"].items():
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
    for path in case["remove"]:
        Path(path).unlink(missing_ok=True)


def main() -> None:
    """Time every variant of every case in turn, ``rounds`` times after one that is not counted."""
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    null = os.open(os.devnull, os.O_RDWR)
    for case in plan["cases"]:
        case["ms"] = {name: [] for name in case["variants"]}
        case["exit_codes"] = {name: set() for name in case["variants"]}
    for number in range(plan["rounds"] + 1):
        for case in plan["cases"]:
            names = list(case["variants"])
            for name in names if number % 2 else reversed(names):
                prepare(case)
                took_ms, code = timed(case["variants"][name], null)
                if number:
                    case["ms"][name].append(took_ms)
                    case["exit_codes"][name].add(code)
    answer = []
    for case in plan["cases"]:
        left = {p: Path(p).read_text(encoding="utf-8") for p in case["keep"] if Path(p).exists()}
        codes = {name: sorted(found) for name, found in case["exit_codes"].items()}
        answer.append({"name": case["name"], "ms": case["ms"], "exit_codes": codes, "left": left})
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
