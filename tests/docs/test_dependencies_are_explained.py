# SPDX-License-Identifier: Apache-2.0
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "decisions" / "0002-dependencies.md"


def test_every_declared_dependency_is_explained() -> None:
    """Whoever adds a package says what it does, who keeps it and where it is used."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    declared = {re.split(r"[\[<>=~!; ]", line)[0] for line in (*project["dependencies"], *extras)}
    rows = [row for row in PAGE.read_text(encoding="utf-8").splitlines() if row.startswith("| ")]
    explained = {name for row in rows for name in re.split(r"[ ,|()]+", row.split(" | ")[0])}

    missing = {d for d in declared - {"podsnap"} if not d.startswith("types-")} - explained

    assert missing == set()
