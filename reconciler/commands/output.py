# SPDX-License-Identifier: Apache-2.0
"""Answers: for people on a terminal, for people in a pipe, and for programs.

On a terminal rich draws, with colours. Anywhere else the same blocks are plain aligned text whose
lines are never wrapped, and rich is not even imported. The trap is what others wrote: messages and
annotations come from the cluster, so control characters never reach a terminal.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

OUTPUT: Final = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml", "name"]),
    default="table",
    show_default=True,
    help="A table for people; the others for programs.",
)
_STYLES: Final[Mapping[str, str]] = {
    "AllSnapshotsAvailable": "green",
    "Restored": "green",
    "Complete": "green",
    "yes": "green",
    "Failed": "red",
    "FellBack": "red",
    "Error": "red",
    "Obsolete": "yellow",
    "Deleting": "yellow",
    "no": "yellow",
}


@dataclass(frozen=True, slots=True)
class Heading:
    """What the next blocks are about."""

    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Names with values; a value that is empty is left out."""

    pairs: Sequence[tuple[str, str]]

    def rows(self) -> list[tuple[str, str]]:
        """Return what is shown."""
        return [(name, value) for name, value in self.pairs if value]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows below a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Lines:
    """Sentences."""

    texts: Sequence[str]


Block = Heading | Facts | Table | Lines


def give(
    output: str,
    value: object,
    *,
    names: Iterable[str],
    blocks: Callable[[], Iterable[Block]],
) -> None:
    """Print an answer in the form that was asked for.

    ``value`` is what programs get, ``names`` what ``-o name`` prints.
    """
    match output:
        case "json":
            click.echo(json.dumps(plain(value), indent=2))
        case "yaml":
            import yaml

            click.echo(yaml.safe_dump(plain(value), sort_keys=False, width=1 << 20), nl=False)
        case "name":
            for name in names:
                click.echo(name)
        case _:
            show(blocks())


def plain(value: Any) -> Any:  # noqa: ANN401 - any tree of values
    """Return a value as JSON has it; a dataclass's names get the API's spelling."""
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {_spelled(f.name): plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(child) for child in value]
    return value


def _spelled(name: str) -> str:
    if name.endswith("_per_s"):
        name = f"{name}econd"
    elif name.endswith("_s"):
        name = f"{name}econds"
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


def show(blocks: Iterable[Block]) -> None:
    """Print for people."""
    if sys.stdout.isatty():
        _draw(blocks)
    else:
        for line in lines(blocks):
            click.echo(line)


def lines(blocks: Iterable[Block]) -> Iterable[str]:
    """Yield blocks as plain text; what follows a heading is indented."""
    indent = ""
    for block in blocks:
        match block:
            case Heading():
                if indent:
                    yield ""
                indent = "  "
                yield clean(block.text)
            case Facts():
                yield from (indent + line for line in _aligned(block.rows()))
            case Table():
                yield from (indent + line for line in _aligned([block.header, *block.rows]))
            case Lines():
                yield from (indent + clean(text) for text in block.texts)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    shown = [[clean(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "   ".join(padded).rstrip()


def clean(text: str) -> str:
    """Return one line without control characters."""
    return "".join(c if c.isprintable() else " " for c in text)


def _draw(blocks: Iterable[Block]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for block in blocks:
        if isinstance(block, Heading):
            console.print()
        console.print(drawn(block))


def drawn(block: Block) -> "RenderableType":
    """Return a block for a terminal."""
    from rich.padding import Padding
    from rich.table import Table as Grid
    from rich.text import Text

    match block:
        case Heading():
            return Text(clean(block.text), style="bold")
        case Lines():
            return Padding(Text("\n".join(map(clean, block.texts))), (0, 0, 0, 2))
        case Facts():
            grid = Grid.grid(padding=(0, 3, 0, 0))
            grid.add_column(style="dim", no_wrap=True)
            grid.add_column(overflow="fold")
            rows: Sequence[Sequence[str]] = block.rows()
        case Table():
            grid = Grid(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
            for number, title in enumerate(block.header):
                grid.add_column(title, overflow="fold", no_wrap=number == 0)
            rows = block.rows
    for row in rows:
        grid.add_row(*(Text(clean(cell), style=_STYLES.get(cell, "")) for cell in row))
    return Padding(grid, (0, 0, 0, 2)) if isinstance(block, Facts) else grid
