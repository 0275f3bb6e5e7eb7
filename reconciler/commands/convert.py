# SPDX-License-Identifier: Apache-2.0
"""``podsnap convert``: old spellings mended in the files, which else stay as they are.

The trap: a link. The file behind it is rewritten and the link stays one; but a link that leads out
of a folder that was named is left alone, because nobody asked for what lies there.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reconciler.commands.exit_codes import CommandError, ExitCode

if TYPE_CHECKING:
    from reconciler.manifest_files import ManifestFile


@click.command()
@click.argument("paths", metavar="PATH|-...", nargs=-1, required=True)
@click.option("--check", is_flag=True, help="Write nothing; end with 1 if something would change.")
@click.option("--diff", is_flag=True, help="Write nothing; print what would change.")
def convert(paths: tuple[str, ...], *, check: bool, diff: bool) -> None:
    """Rewrite manifests of GKE's preview and of articles as v1 spells them.

    Files, folders, or - for standard input, whose result is printed. Comments and everything that
    is no old spelling stay as they are.
    """
    from reconciler.manifest_files import ManifestFile, manifest_files

    changed = failed = 0
    try:
        for path in paths:
            for file in manifest_files([path]):
                if not isinstance(file, ManifestFile):
                    continue
                after = _converted(path, file)
                failed += after is None
                changed += after not in {None, file.text}
                if after is not None and not check:
                    _deliver(path, file, after, diff=diff)
    except OSError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from error
    if failed or (check and changed):
        sys.exit(ExitCode.ERROR)


def _converted(path: str, file: "ManifestFile") -> bytes | None:
    """Return the new text, told on standard error; ``None`` if the file cannot be mended."""
    from schemas.conversion import ConversionError, converted

    try:
        result = converted(file.name, file.text)
    except ConversionError as error:
        click.echo(str(error), err=True)
        return None
    if not result.changes or _leads_out(path, file.name):
        return file.text
    for change in result.changes:
        click.echo(str(change), err=True)
    return result.text


def _deliver(path: str, file: "ManifestFile", after: bytes, *, diff: bool) -> None:
    if diff:
        click.echo("".join(_difference(file.name, file.text, after)), nl=False)
    elif path == "-":
        sys.stdout.buffer.write(after)
    elif after != file.text:
        _write(Path(file.name), after)


def _leads_out(path: str, file: str) -> bool:
    folder = Path(path)
    out = folder.is_dir() and not Path(file).resolve().is_relative_to(folder.resolve())
    if out:
        click.echo(f"{file} is a link out of {path}, and is left alone; name it itself", err=True)
    return out


def _difference(name: str, before: bytes, after: bytes) -> Iterator[str]:
    import difflib

    old, new = (text.decode().splitlines(keepends=True) for text in (before, after))
    for line in difflib.unified_diff(old, new, fromfile=name, tofile=name):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _write(path: Path, text: bytes) -> None:
    """Replace a file as a whole, with its mode; a link stays a link."""
    import tempfile

    target = path.resolve()
    mode = target.stat().st_mode & 0o7777
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(text)
            os.fchmod(descriptor, mode)
            file.flush()
            os.fsync(descriptor)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
