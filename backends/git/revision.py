# SPDX-License-Identifier: Apache-2.0
"""The files of a folder as they were at a revision of the repository around it.

The repository is the user's own checkout, so nothing is fetched and nothing is guarded beyond its
size; dulwich reads the objects, and the work tree stays as it is.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from posixpath import dirname, join, normpath
from stat import S_ISLNK, S_ISREG

from dulwich.errors import NotGitRepository, NotTreeError
from dulwich.object_store import iter_tree_contents
from dulwich.objects import Blob, Commit, ObjectID, ShaFile, SubmoduleEncountered, Tag, Tree
from dulwich.objectspec import parse_commit, parse_object
from dulwich.repo import Repo, UnsupportedExtension, UnsupportedVersion

from backends.git.errors import GitError, RefNotFound, RepositoryNotFound


@dataclass(frozen=True, slots=True)
class Revision:
    """A commit, and every file below the folder with its bytes; names are relative to it."""

    commit: str
    files: dict[str, bytes]


def read_revision(path: Path, revision: str, endings: tuple[str, ...]) -> Revision:
    """Read a folder, or one file, as it was; nothing if it was not there yet.

    ``revision`` is a branch, tag or commit, also with ``~N`` and ``^N``. Below a folder only files
    are read whose names end so. A link counts as the file of the same revision that it names.

    Raises:
        RepositoryNotFound: the path lies in no Git repository.
        RefNotFound: the repository has no such revision.
        GitError: it has the revision, but not the objects of it.
    """
    try:
        repository = Repo.discover(path.resolve() if path.is_dir() else path.resolve().parent)
    except (NotGitRepository, OSError) as error:
        raise RepositoryNotFound(f"{path} lies in no Git repository; leave out --base") from error
    except (UnsupportedExtension, UnsupportedVersion) as error:
        raise GitError(
            f"the repository of {path} is in a format that is not read here: {error}; "
            "ask in a plain clone of it (git clone --no-local REPOSITORY COPY)"
        ) from error
    with repository:
        commit = _commit(repository, path, revision)
        inside = path.resolve().relative_to(Path(repository.path).resolve())
        try:
            files = dict(_files(repository, commit, path, inside.as_posix(), endings))
        except KeyError as error:
            raise GitError(
                f"the repository of {path} lacks objects of {revision}, as a shallow clone does; "
                "fetch them (git fetch --unshallow) and ask again"
            ) from error
        return Revision(commit.id.decode(), files)


def _commit(repository: Repo, path: Path, revision: str) -> Commit:
    found: ShaFile
    try:
        # The first knows names and short ids, the second ~ and ^.
        with contextlib.suppress(KeyError):
            return parse_commit(repository, revision)
        found = parse_object(repository, revision)
        while isinstance(found, Tag):
            found = repository[found.object[1]]
    except (KeyError, ValueError) as error:
        raise RefNotFound(
            f"the repository of {path} has no revision {revision!r}; `git branch -a` and `git log` "
            "show those it has, and a shallow clone has few"
        ) from error
    if not isinstance(found, Commit):
        raise RefNotFound(f"{revision!r} is no commit in the repository of {path}; name a commit")
    return found


def _files(
    repository: Repo, commit: Commit, path: Path, inside: str, endings: tuple[str, ...]
) -> Iterator[tuple[str, bytes]]:
    root = commit.tree
    tree = repository[root]
    assert isinstance(tree, Tree)  # noqa: S101 - a commit's tree is one
    if inside != ".":
        try:
            mode, root = tree.lookup_path(repository.object_store.__getitem__, inside.encode())
        except KeyError:
            return  # the folder is new
        if S_ISREG(mode):
            blob = repository[root]
            if isinstance(blob, Blob):
                yield path.name, blob.data
            return
    for entry in iter_tree_contents(repository.object_store, root):
        name = (entry.path or b"").decode(errors="replace")
        mode, sha = entry.mode, entry.sha
        if mode is None or sha is None or not name.endswith(endings):
            continue
        if S_ISLNK(mode):
            target = normpath(join(inside, dirname(name), _data(repository, sha).decode()))
            try:
                mode, sha = tree.lookup_path(repository.object_store.__getitem__, target.encode())
            except (KeyError, SubmoduleEncountered, NotTreeError):
                continue  # it leads out of the repository, or nowhere
        if S_ISREG(mode):
            yield name, _data(repository, sha)


def _data(repository: Repo, sha: ObjectID) -> bytes:
    found = repository[sha]
    return found.data if isinstance(found, Blob) else b""
