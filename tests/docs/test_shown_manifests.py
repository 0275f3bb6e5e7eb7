# SPDX-License-Identifier: Apache-2.0
"""Manifests that docs/gitops.md shows are the examples that tests/gitops applies."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```yaml\n# (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def without_comments(text: str) -> str:
    """Return a manifest without the comments at its top."""
    return re.sub(r"\A(?:#.*\n)+", "", text)


def test_what_the_page_shows_is_what_the_files_say() -> None:
    """Each block names its file in its first line."""
    page = (ROOT / "docs/gitops.md").read_text(encoding="utf-8")
    shown = BLOCK.findall(page)
    assert len(shown) == page.count("```yaml") == 4
    for name, text in shown:
        assert text == without_comments((ROOT / name).read_text(encoding="utf-8")), name
