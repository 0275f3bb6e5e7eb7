# SPDX-License-Identifier: Apache-2.0
"""A tree of YAML files at one commit, read out of a repository.

dulwich reads the objects; there is no work tree, so nothing of the repository is ever executed or
written to disk, and links and submodules are not followed. What is read is bounded.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from dulwich.errors import NotGitRepository
from dulwich.objects import Blob, Commit, ObjectID, Tag, Tree
from dulwich.repo import Repo

FILE_LIMIT: Final = 1000
BYTES_LIMIT: Final = 10 << 20
_DEPTH_LIMIT: Final = 30
_REGULAR_MODES: Final = frozenset({0o100644, 0o100755, 0o100664})
_TREE_MODE: Final = 0o040000


class GitError(Exception):
    """The repository cannot be read; the text says what was looked for and what to do."""


class RepositoryNotFound(GitError):  # noqa: N818 - reads as what happened
    """There is no repository at the address."""


class RefNotFound(GitError):  # noqa: N818
    """The branch, tag or commit is not in the repository."""


class PathNotFound(GitError):  # noqa: N818
    """The folder is not in the commit."""


class LimitExceeded(GitError):  # noqa: N818
    """More files or bytes than policies ever need."""


@dataclass(frozen=True, slots=True)
class GitTree:
    """The YAML files below a folder at a commit; names are relative to the repository."""

    commit: str
    files: Mapping[str, bytes]


def read_tree(
    url: str,
    *,
    branch: str | None = None,
    tag: str | None = None,
    commit: str | None = None,
    path: str = "",
) -> GitTree:
    """Read a tree; without branch, tag and commit the default branch is meant.

    Raises:
        GitError: the subclass says what is missing.
    """
    with _open(url) as repository:
        found = _commit(repository, url, branch=branch, tag=tag, commit=commit)
        tree = _folder(repository, found, path)
        files = dict(_yaml_files(repository, tree, path))
        return GitTree(commit=found.id.decode(), files=files)


def _open(url: str) -> Repo:
    parts = urlsplit(url)
    if parts.scheme != "file":
        raise RepositoryNotFound(f"{url}: this version reads file:// only")
    location = Path(unquote(parts.path))
    try:
        return Repo(str(location))
    except (NotGitRepository, OSError) as error:
        raise RepositoryNotFound(f"{url} is no Git repository; check spec.url") from error


def _commit(
    repository: Repo, url: str, *, branch: str | None, tag: str | None, commit: str | None
) -> Commit:
    if commit:
        wanted, name = f"commit {commit}", ObjectID(commit.encode())
    else:
        reference = f"refs/heads/{branch}" if branch else f"refs/tags/{tag}" if tag else "HEAD"
        wanted = f"branch {branch}" if branch else f"tag {tag}" if tag else "a default branch"
        try:
            name = repository.refs[reference.encode()]  # type: ignore[index] # a Ref is bytes
        except KeyError as error:
            raise RefNotFound(f"{url} has no {wanted}; check spec.ref") from error
    try:
        found = repository[name]
        while isinstance(found, Tag):
            found = repository[found.object[1]]
    except (KeyError, ValueError) as error:
        raise RefNotFound(f"{url} has no {wanted}; check spec.ref") from error
    if not isinstance(found, Commit):
        raise RefNotFound(f"{wanted} in {url} is no commit; check spec.ref")
    return found


def _folder(repository: Repo, commit: Commit, path: str) -> Tree:
    tree = repository[commit.tree]
    for name in filter(None, path.split("/")):
        try:
            mode, child = tree[name.encode()] if isinstance(tree, Tree) else (0, b"")
        except KeyError:
            mode, child = 0, b""
        if mode != _TREE_MODE:
            raise PathNotFound(
                f"commit {commit.id.decode()[:12]} has no folder {path}; check spec.path"
            )
        tree = repository[ObjectID(child)]
    if not isinstance(tree, Tree):
        raise PathNotFound(f"{path} is no folder; check spec.path")
    return tree


def _yaml_files(repository: Repo, tree: Tree, path: str) -> Iterator[tuple[str, bytes]]:
    count, size_bytes = 0, 0
    pending: list[tuple[Tree, str, int]] = [(tree, path.strip("/"), 0)]
    while pending:
        folder, prefix, depth = pending.pop()
        for entry in folder.items():
            name = f"{prefix}/{entry.path.decode()}".lstrip("/")
            if entry.mode == _TREE_MODE and depth < _DEPTH_LIMIT:
                child = repository[entry.sha]
                if isinstance(child, Tree):
                    pending.append((child, name, depth + 1))
            elif entry.mode in _REGULAR_MODES and name.endswith((".yaml", ".yml")):
                blob = repository[entry.sha]
                if not isinstance(blob, Blob):
                    continue
                count += 1
                size_bytes += len(blob.data)
                if count > FILE_LIMIT or size_bytes > BYTES_LIMIT:
                    raise LimitExceeded(
                        f"more than {FILE_LIMIT} YAML files or {BYTES_LIMIT >> 20} MiB below "
                        f"{path or 'the root'}; point spec.path at the policies' folder"
                    )
                yield name, blob.data
