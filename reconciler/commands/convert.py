# SPDX-License-Identifier: Apache-2.0
"""``podsnap convert``: old spellings mended in the files, which else stay as they are.

The trap: a link. The file behind it is rewritten and the link stays one; but a link that leads out
of a folder that was named is left alone, because nobody asked for what lies there.
"""

import contextlib
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
    from reconciler.commands.findings_output import printable
    from reconciler.manifest_files import ManifestFile, manifest_files
    from schemas.findings import Severity

    changed = failed = 0
    try:
        for path in paths:
            for file in manifest_files([path]):
                if not isinstance(file, ManifestFile):
                    _say(file)
                    failed += file.severity is Severity.ERROR
                    continue
                after = _converted(path, file)
                failed += after is None
                changed += after not in {None, file.text}
                if after is not None and not check:
                    failed += not _delivered(path, file, after, diff=diff)
    except OSError as error:
        raise CommandError(ExitCode.USAGE, printable(str(error))) from error
    if failed or (check and changed):
        sys.exit(ExitCode.ERROR)


def _converted(path: str, file: "ManifestFile") -> bytes | None:
    """Return the new text, told on standard error; ``None`` if the file cannot be mended."""
    from schemas.conversion import ConversionError, converted

    try:
        result = converted(file.name, file.text)
    except ConversionError as error:
        _say(error)
        return None
    if not result.changes or _leads_out(path, file.name):
        return file.text
    for change in result.changes:
        _say(change)
    return result.text


def _say(text: object) -> None:
    """Tell something on standard error; it may quote what a stranger wrote."""
    from reconciler.commands.findings_output import printable

    click.echo(printable(str(text)), err=True)


def _delivered(path: str, file: "ManifestFile", after: bytes, *, diff: bool) -> bool:
    if diff:
        click.echo("".join(_difference(file.name, file.text, after)), nl=False)
    elif path == "-":
        sys.stdout.buffer.write(after)
    elif after != file.text:
        try:
            _write(Path(file.name), after)
        except OSError as error:
            _say(f"{file.name}: cannot be written, and is left as it is: {error.strerror}")
            return False
    return True


def _leads_out(path: str, file: str) -> bool:
    folder = Path(path)
    out = folder.is_dir() and not Path(file).resolve().is_relative_to(folder.resolve())
    if out:
        _say(f"{file} is a link out of {path}, and is left alone; name it itself")
    return out


def _difference(name: str, before: bytes, after: bytes) -> Iterator[str]:
    import difflib

    from reconciler.commands.findings_output import printable

    name = printable(name)
    old, new = (text.decode().splitlines(keepends=True) for text in (before, after))
    for line in difflib.unified_diff(old, new, fromfile=name, tofile=name):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _write(path: Path, text: bytes) -> None:
    """Replace a file as a whole, with its mode and owner; a link stays a link."""
    import tempfile

    target = path.resolve()
    before = target.stat()
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(text)
            with contextlib.suppress(PermissionError):  # only root may give a file away
                os.fchown(descriptor, before.st_uid, before.st_gid)
            os.fchmod(descriptor, before.st_mode & 0o7777)
            file.flush()
            os.fsync(descriptor)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
