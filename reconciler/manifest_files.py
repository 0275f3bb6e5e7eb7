# SPDX-License-Identifier: Apache-2.0
"""The manifests below a path, as a person would hand them to kubectl.

Only what is meant for an API server: no hidden folders, no templates of a chart, no patches of a
kustomization, because those are not YAML yet or not whole yet. The traps: a link may lead out of
the folder or in a circle, so folders are never entered through one; and nothing says that a file is
small.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schemas.documents import DocumentError, read_documents
from schemas.findings import Finding, Severity

STDIN: Final = "-"
STDIN_NAME: Final = "<stdin>"
FILE_LIMIT_BYTES: Final = 8 << 20
_SUFFIXES: Final = (".yaml", ".yml", ".json")
_KUSTOMIZATIONS: Final = ("kustomization.yaml", "kustomization.yml", "Kustomization")


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A file by the name it was given or found under, with its text."""

    name: str
    text: bytes


def manifest_files(paths: Iterable[str]) -> Iterator[ManifestFile | Finding]:
    """Yield the manifests of files and folders, each once, ``-`` being standard input.

    A file that is too large or cannot be read, and a folder that would have to be rendered, is
    told by a finding.

    Raises:
        OSError: a path does not exist, or a folder cannot be read.
    """
    seen: set[Path] = set()
    for path in paths:
        if path == STDIN:
            yield ManifestFile(STDIN_NAME, sys.stdin.buffer.read())
            continue
        for found in _below(Path(path)):
            if isinstance(found, Finding):
                yield found
            elif (real := found.resolve()) not in seen:
                seen.add(real)
                yield _read(found)


def _read(path: Path) -> ManifestFile | Finding:
    try:
        size_bytes = path.stat().st_size
        text = path.read_bytes() if size_bytes <= FILE_LIMIT_BYTES else b""
    except OSError as error:
        message, hint = f"the file cannot be read: {error.strerror}", "mend its rights"
        return Finding(str(path), 1, 1, Severity.ERROR, "unreadable", message, hint)
    if size_bytes > FILE_LIMIT_BYTES:
        message = f"the file has {size_bytes} bytes; no manifest has more than {FILE_LIMIT_BYTES}"
        return Finding(str(path), 1, 1, Severity.ERROR, "too-large", message, "leave it out")
    return ManifestFile(str(path), text)


def _below(path: Path) -> Iterator[Path | Finding]:
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; name a file or a folder, or -")
        yield path
        return
    # A patch may lie in any folder, beside those that were passed already.
    found: list[Path | Finding] = []
    patches: set[Path] = set()
    for folder, names, files in os.walk(path, onerror=_unreadable):
        here = Path(folder)
        names[:] = sorted(n for n in names if not n.startswith("."))
        passed: set[str] = set()
        if "Chart.yaml" in files:
            names[:] = [n for n in names if n != "templates"]
            passed = {"Chart.yaml", "values.yaml"}
            found.append(_not_rendered(here / "Chart.yaml", "a Helm chart", "helm template"))
        for kustomization in (here / n for n in _KUSTOMIZATIONS if n in files):
            passed.add(kustomization.name)
            patches.update(_patches(kustomization))
            found.append(_not_rendered(kustomization, "a kustomization", "kubectl kustomize"))
        for name in sorted(files):
            file = here / name
            if name.endswith(_SUFFIXES) and name not in passed and file.is_file():
                found.append(file)
    yield from (f for f in found if isinstance(f, Finding) or f.resolve() not in patches)


def _unreadable(error: OSError) -> None:
    """A folder that is passed over would count as right."""
    raise error


def _not_rendered(file: Path, what: str, command: str) -> Finding:
    message = f"{what} is not rendered here, so what it adds or changes is not judged"
    hint = f"{command} {file.parent} | podsnap lint -"
    return Finding(str(file), 1, 1, Severity.NOTE, "not-rendered", message, hint)


def _patches(kustomization: Path) -> Iterator[Path]:
    """Yield the files of a kustomization that are pieces of objects."""
    read = _read(kustomization) if kustomization.is_file() else None
    if not isinstance(read, ManifestFile):
        return
    try:
        tree = next((d.tree for d in read_documents(read.name, read.text)), {})
    except DocumentError:
        return  # told when somebody renders it
    for key in ("patches", "patchesStrategicMerge", "patchesJson6902"):
        listed = tree.get(key)
        for entry in listed if isinstance(listed, list) else ():
            named = entry.get("path") if isinstance(entry, dict) else entry
            if isinstance(named, str) and "\n" not in named:
                yield (kustomization.parent / named).resolve()
