# SPDX-License-Identifier: Apache-2.0
"""What an ``image.toml`` says, read strictly.

The concept: a recipe only names things (packages, pinned wheels, files beside it, another recipe
as its base); it has no commands, but for one named program that writes into the image's root.

The trap: a misspelt key that is quietly ignored gives an image that lacks something and a cache
that keeps it. Unknown keys and missing files are therefore errors here, before anything is built.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_KEYS: Final = frozenset(
    {
        "ref", "base", "packages", "wheels", "files", "symlinks",
        "program", "remove", "env", "entrypoint", "cwd",
    }
)  # fmt: skip


class ImageError(Exception):
    """An image could not be made; the message says what failed and what to do."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One image. Targets are paths below the image's root; sources are files on this machine."""

    directory: Path
    ref: str
    base: "Recipe | None"
    packages: tuple[str, ...]
    requirements: Path | None
    wheels_target: str
    files: Mapping[str, Path]
    symlinks: Mapping[str, str]
    program: Path | None
    remove: tuple[str, ...]
    env: Mapping[str, str]
    entrypoint: tuple[str, ...]
    cwd: str

    def inputs(self) -> Iterator[Path]:
        """Yield every file besides ``image.toml`` whose content goes into the image."""
        if self.requirements is not None:
            yield self.requirements
        for _, source in sorted(self.files.items()):
            yield source
        if self.program is not None:
            yield self.program


def read_recipe(directory: Path) -> Recipe:
    """Read ``directory/image.toml`` and the recipes that it is based on.

    ``env``, ``entrypoint`` and ``cwd`` that a recipe leaves out are those of its base.

    Raises:
        ImageError: the file is absent or not as it should be, or it names a file that is absent.
    """
    return _read(directory.resolve(), ())


def _read(directory: Path, above: tuple[Path, ...]) -> Recipe:
    if directory in above:
        raise ImageError(f"{directory}/image.toml is its own base; break the circle")
    table = _Table.load(directory / "image.toml")
    base_name = table.text("base", "")
    base = _read((directory / base_name).resolve(), (*above, directory)) if base_name else None
    wheels = table.texts_by_name("wheels")
    if wheels and set(wheels) != {"requirements", "target"}:
        raise table.wrong("wheels", "a table with the keys requirements and target")
    program = table.text("program", "")
    return Recipe(
        directory=directory,
        ref=table.text("ref"),
        base=base,
        packages=table.texts("packages"),
        requirements=table.file(wheels["requirements"]) if wheels else None,
        wheels_target=table.target(wheels["target"]) if wheels else "",
        files={
            table.target(target): table.file(source)
            for target, source in table.texts_by_name("files").items()
        },
        symlinks={
            table.target(path): points_to
            for path, points_to in table.texts_by_name("symlinks").items()
        },
        program=table.file(program) if program else None,
        remove=tuple(map(table.target, table.texts("remove"))),
        env={**(base.env if base else {}), **table.texts_by_name("env")},
        entrypoint=table.texts("entrypoint") or (base.entrypoint if base else ()),
        cwd=table.text("cwd", base.cwd if base else "/"),
    )


class _Table:
    """The parsed file; every way of reading a key checks its type."""

    def __init__(self, path: Path, content: Mapping[str, object]) -> None:
        self._path = path
        self._content = content

    @classmethod
    def load(cls, path: Path) -> "_Table":
        try:
            content = tomllib.loads(path.read_text())
        except FileNotFoundError as error:
            raise ImageError(f"{path} does not exist; name a directory that has one") from error
        except tomllib.TOMLDecodeError as error:
            raise ImageError(f"{path} is not valid TOML: {error}; correct it") from error
        if unknown := sorted(set(content) - _KEYS):
            raise ImageError(
                f"{path} has the unknown keys {', '.join(unknown)}; known are "
                f"{', '.join(sorted(_KEYS))}"
            )
        return cls(path, content)

    def wrong(self, key: str, expected: str) -> ImageError:
        return ImageError(f"{self._path}: {key} must be {expected}; correct it")

    def text(self, key: str, default: str | None = None) -> str:
        value = self._content.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._content.get(key, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.wrong(key, "a list of strings")
        return tuple(value)

    def texts_by_name(self, key: str) -> dict[str, str]:
        value = self._content.get(key, {})
        if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
            raise self.wrong(key, "a table of strings")
        return dict(value)

    def file(self, name: str) -> Path:
        path = (self._path.parent / name).resolve()
        if not path.is_file():
            raise ImageError(f"{self._path} names {name}, but {path} is not a file; correct it")
        return path

    def target(self, name: str) -> str:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ImageError(
                f"{self._path}: the target {name} must be relative to the image's root, without .."
            )
        return name
