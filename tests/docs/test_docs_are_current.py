# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GENERATE = ROOT / "docs" / "generate.py"
_LIMIT_S = 60


def run(*arguments: str, script: Path = GENERATE) -> subprocess.CompletedProcess[str]:
    """Run the generator as ``make docs`` does."""
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=_LIMIT_S,
    )


def copy_of_docs(directory: Path) -> Path:
    """Copy the generated pages and the generator, so that a test may spoil them."""
    mixed = (ROOT / "docs" / "concepts.md", ROOT / "docs" / "storage.md")
    whole = (ROOT / "docs" / "state-machine.md", *(ROOT / "docs/reference").glob("*.md"))
    for page in (GENERATE, *mixed, *whole):
        copy = directory / page.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(page.read_bytes())
    return directory / "docs" / "generate.py"


def test_the_committed_pages_are_what_the_code_says() -> None:
    """States, conditions, fields and commands in the docs are those of the code."""
    done = run("--check")

    assert done.returncode == 0, done.stderr


def test_a_stale_page_is_named_with_what_to_do(tmp_path: Path) -> None:
    """Whoever changes the code learns which page to generate again."""
    script = copy_of_docs(tmp_path)
    page = tmp_path / "docs" / "reference" / "conditions.md"
    page.write_text(page.read_text(encoding="utf-8").replace("Uploading", "Sending"))

    done = run("--check", script=script)

    assert done.returncode == 1
    assert done.stderr.strip() == (
        "not what the code says: docs/reference/conditions.md; run: make docs"
    )


def test_generating_mends_a_page_and_keeps_what_people_wrote(tmp_path: Path) -> None:
    """In a page with a generated part everything outside the markers stays."""
    script = copy_of_docs(tmp_path)
    page = tmp_path / "docs" / "concepts.md"
    before = page.read_text(encoding="utf-8")
    page.write_text(before.replace("Pending --> Checkpointing", "") + "\nby hand\n")

    run(script=script)

    assert page.read_text(encoding="utf-8") == before + "\nby hand\n"
