# SPDX-License-Identifier: Apache-2.0
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from nodeexec.command_line import main as podsnap_node
from reconciler.command_line import main as podsnap

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    ]
)
PROGRAMS = {"podsnap": podsnap, "podsnap-node": podsnap_node}

_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```sh\n(.*?)^```|`([^`\n]+)`", re.MULTILINE | re.DOTALL)
_MAKE = re.compile(r"(?:^|[\s`])make ((?:[a-z-]+ ?)+)(?=$|[`#\n])", re.MULTILINE)
_CALL = re.compile(r"(?:^|[\s(/\"])(podsnap(?:-node)?) ([^`|;)\n#]+)")


def name_of(page: Path) -> str:
    """Name a page as people do."""
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Return the anchors that the page's headings have on a forge."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def code_in(page: Path) -> Iterator[str]:
    """Yield what the page shows as something to type, line by line."""
    for block, inline in _CODE.findall(page.read_text(encoding="utf-8")):
        yield from (block or inline).splitlines()


def calls_in(page: Path) -> list[tuple[str, list[str]]]:
    """Return every call of our programs that the page shows."""
    return [
        (program, shlex.split(rest.replace('"', " ").replace("'", " ")))
        for line in code_in(page)
        for program, rest in _CALL.findall(line)
    ]


def strange(program: str, words: list[str]) -> list[str]:
    """Return what a call names and the program does not have."""
    command: click.Command = PROGRAMS[program]
    context = click.Context(command)
    rest = list(words)
    while rest and isinstance(command, click.Group) and not rest[0].startswith("-"):
        found = command.get_command(context, rest[0])
        if found is None:
            return [f"{program} {rest[0]}"]
        command = found
        del rest[0]
    options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
    options |= {"--help", "-h", "--version"}
    own = rest[: rest.index("--")] if "--" in rest else rest
    return [
        f"{program} {command.name} {word}"
        for word in own
        if word.startswith("-") and word != "-" and word.partition("=")[0] not in options
    ]


def make_targets() -> set[str]:
    """Return the targets of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    """A relative link names a file of the repository, and its anchor a heading of that file."""
    broken = []
    for link in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)

    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    """A reader can type each ``make`` command of the docs."""
    named = {
        word for line in code_in(page) for words in _MAKE.findall(line) for word in words.split()
    }

    assert named - make_targets() == set()


def test_the_readme_names_the_commands_that_a_stranger_needs() -> None:
    """The demo, its removal and the test command stand in the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    for target in ("demo", "demo-down", "test"):
        assert f"\nmake {target} " in text


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_and_option_that_is_named_exists(page: Path) -> None:
    """A reader can type each call of podsnap that the docs show."""
    unknown = [finding for program, words in calls_in(page) for finding in strange(program, words)]

    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_page_says_its_licence_first(page: Path) -> None:
    """The licence line stands first in pages as it does in code."""
    first = page.read_text(encoding="utf-8").partition("\n")[0]

    assert first == "<!-- SPDX-License-Identifier: Apache-2.0 -->"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    """A promise without the test that shows it would be worth nothing."""
    sources = (p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"^def (test_\w+)", "\n".join(sources), re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")))
    assert named <= there
