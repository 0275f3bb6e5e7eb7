# SPDX-License-Identifier: Apache-2.0
"""The YAML files of a tree, without a work tree.

Nothing is executed or written, and nothing leads out: a link or a submodule is refused, not
followed and not passed over, since what is passed over looks as if it had been removed, and what
was removed is pruned. A tree may name one subtree a thousand times, so entries are counted.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from dulwich.objects import Blob, Commit, ObjectID, ShaFile, Tree

from backends.git.errors import EntryRefused, InvalidSource, LimitExceeded, PathNotFound
from backends.git.limits import DEPTH, ENTRIES, FILE_BYTES, YAML_BYTES, YAML_FILES
from backends.git.pack import too_large

_REGULAR_MODES: Final = frozenset({0o100644, 0o100755, 0o100664})
_TREE_MODE: Final = 0o040000
_REFUSED: Final[Mapping[int, str]] = {0o120000: "a symbolic link", 0o160000: "a submodule"}
# What kustomize builds from; a tree with one of these means something else than its files say.
_KUSTOMIZE: Final = frozenset({"kustomization.yaml", "kustomization.yml", "Kustomization"})


class Objects(Protocol):
    """Where objects come from."""

    def __getitem__(self, name: ObjectID, /) -> ShaFile:
        """Return an object; KeyError if it is not there."""
        ...


@dataclass(frozen=True, slots=True)
class GitTree:
    """The YAML files below a folder at a commit; names are relative to the repository."""

    commit: str
    files: Mapping[str, bytes]


@dataclass(slots=True)
class _Walk:
    objects: Objects
    size_of: Callable[[ObjectID], int]
    path: str
    entries: int = 0
    in_time: Callable[[], object] = lambda: None
    files: int = 0
    size_bytes: int = 0
    pending: list[tuple[Tree, str, int]] = field(default_factory=list)


def read_tree(
    objects: Objects,
    commit: Commit,
    *,
    path: str = "",
    size_of: Callable[[ObjectID], int] = lambda _: 0,
    in_time: Callable[[], object] = lambda: None,
) -> GitTree:
    """Read the YAML files.

    ``size_of`` says how large a file is before it is read; ``in_time`` is asked at each folder and
    file, and raises if there is no time left.

    Raises:
        GitError: the subclass says what is missing, refused or too much.
    """
    walk = _Walk(objects, size_of, path, in_time=in_time)
    walk.pending.append((_folder(objects, commit, path), path, 0))
    return GitTree(commit=commit.id.decode(), files=dict(_files(walk)))


def _folder(objects: Objects, commit: Commit, path: str) -> Tree:
    tree = objects[commit.tree]
    parts = list(filter(None, path.split("/")))
    if any(part in {"..", "."} for part in parts):
        raise InvalidSource(
            f"spec.path {path!r} has dots in it; name a folder of the repository by its full path"
        )
    for name in parts:
        try:
            mode, child = tree[name.encode()] if isinstance(tree, Tree) else (0, b"")
        except KeyError:
            mode, child = 0, b""
        if mode != _TREE_MODE:
            what = (
                f"; {name} is {_REFUSED[mode]}, which is not followed" if mode in _REFUSED else ""
            )
            raise PathNotFound(
                f"commit {commit.id.decode()[:12]} has no folder {path}{what}; check spec.path"
            )
        tree = objects[ObjectID(child)]
    if not isinstance(tree, Tree):
        raise PathNotFound(f"{path or 'the root'} is no folder; check spec.path")
    return tree


def _files(walk: _Walk) -> Iterator[tuple[str, bytes]]:
    while walk.pending:
        walk.in_time()
        folder, prefix, depth = walk.pending.pop()
        if depth > DEPTH:
            raise LimitExceeded(f"{prefix}: more than {DEPTH} folders deep; make it flatter")
        for entry in folder.items():
            base = entry.path.decode(errors="replace")
            name = f"{prefix}/{base}".lstrip("/")
            walk.entries += 1
            if walk.entries > ENTRIES:
                raise LimitExceeded(
                    f"more than {ENTRIES} files and folders below {walk.path or 'the root'}; "
                    "point spec.path at the policies' folder"
                )
            if entry.mode in _REFUSED:
                raise EntryRefused(
                    f"{name}:1:1: {_REFUSED[entry.mode]}, which is not followed; put the files "
                    "themselves there, or point spec.path at a folder without it"
                )
            if base in _KUSTOMIZE and entry.mode in _REGULAR_MODES:
                raise EntryRefused(
                    f"{name}:1:1: a kustomization, which podsnap does not build: what it would "
                    "make is not what the files beside it say. Let Flux or Argo CD apply this "
                    "folder, or point spec.path at plain manifests"
                )
            if entry.mode == _TREE_MODE:
                child = walk.objects[entry.sha]
                if isinstance(child, Tree):
                    walk.pending.append((child, name, depth + 1))
            elif entry.mode in _REGULAR_MODES and name.endswith((".yaml", ".yml")):
                yield name, _content(walk, entry.sha, name)


def _content(walk: _Walk, sha: ObjectID, name: str) -> bytes:
    walk.in_time()
    size_bytes = walk.size_of(sha)
    if size_bytes > FILE_BYTES:
        raise too_large(name, size_bytes)
    try:
        blob = walk.objects[sha]
    except KeyError:  # the server was asked to leave larger ones out
        raise too_large(name, FILE_BYTES + 1) from None
    data = blob.data if isinstance(blob, Blob) else b""
    if len(data) > FILE_BYTES:
        raise too_large(name, len(data))
    walk.files += 1
    walk.size_bytes += len(data)
    if walk.files > YAML_FILES or walk.size_bytes > YAML_BYTES:
        raise LimitExceeded(
            f"more than {YAML_FILES} YAML files or {YAML_BYTES >> 20} MiB below "
            f"{walk.path or 'the root'}; point spec.path at the policies' folder"
        )
    return data
