# SPDX-License-Identifier: Apache-2.0
"""A look at a repository: first what its head is, and the commit only if that is news.

dulwich speaks the protocol and reads the objects, into memory; of a remote repository one commit
is fetched without its history. A repository on this machine's disk is read where it lies.
"""

import logging
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from dulwich.client import GitClient, HTTPUnauthorized
from dulwich.errors import GitProtocolError, HangupException, NotGitRepository
from dulwich.object_store import DiskObjectStore, MemoryObjectStore
from dulwich.objects import Commit, ObjectID, ShaFile, Tag, Tree, hex_to_filename
from dulwich.refs import Ref, check_ref_format
from dulwich.repo import Repo

from backends.git.address import Address, Credentials
from backends.git.errors import (
    AuthenticationFailed,
    FetchFailed,
    GitError,
    InvalidSource,
    LimitExceeded,
    RefNotFound,
    RepositoryNotFound,
)
from backends.git.limits import FILE_BYTES, TRANSFER_BYTES, Allowance
from backends.git.pack import entry_size, unpack
from backends.git.tree import GitTree, Objects, read_tree

# How far back a rewritten branch is told from one that went on.
_HISTORY: Final = 100
_PEELED: Final = b"^{}"
_REMOTE_TEXT_LIMIT: Final = 200
_NO_CREDENTIALS: Final = Credentials()

# It warns at each look of a server that cannot leave large files out, as most cannot.
logging.getLogger("dulwich.client").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to follow; at most one is set, none means the default branch."""

    branch: str | None = None
    tag: str | None = None
    commit: str | None = None

    @property
    def name(self) -> bytes:
        """The ref as Git names it.

        Raises:
            InvalidSource: Git has no such names.
        """
        if not self.branch and not self.tag:
            return b"HEAD"
        name = f"refs/heads/{self.branch}" if self.branch else f"refs/tags/{self.tag}"
        if not check_ref_format(Ref(name.encode())):
            raise InvalidSource(f"{self} is no name that Git allows; mend spec.ref")
        return name.encode()

    def __str__(self) -> str:
        if self.commit:
            return f"commit {self.commit}"
        if self.branch:
            return f"branch {self.branch}"
        return f"tag {self.tag}" if self.tag else "default branch"

    def revision(self, commit: str) -> str:
        """Return the revision as Flux writes it."""
        name = "" if self.commit else f"{self.branch or self.tag or 'HEAD'}@"
        return f"{name}sha1:{commit}"


@dataclass(frozen=True, slots=True)
class Head:
    """Where a ref points; ``target`` is the tag object of an annotated tag, else the commit."""

    target: ObjectID
    commit: ObjectID


@dataclass(frozen=True, slots=True)
class Checkout:
    """A commit and what it needs to be judged and read."""

    commit: Commit
    tag: Tag | None
    objects: Objects
    size_of: Callable[[ObjectID], int]
    in_time: Callable[[], object] = lambda: None

    def tree(self, path: str) -> GitTree:
        """Read the YAML files below a folder.

        Raises:
            GitError: the subclass says what is missing, refused or too much.
        """
        with _reading(f"commit {self.commit.id.decode()[:12]}"):
            return read_tree(
                self.objects, self.commit, path=path, size_of=self.size_of, in_time=self.in_time
            )


class Repository(Protocol):
    """A repository that one look is taken at. All methods raise ``GitError``."""

    def head(self, ref: Wanted) -> Head:
        """Ask where a ref points; nothing is fetched."""
        ...

    def fetch(self, ref: Wanted, head: Head) -> Checkout:
        """Return the commit with its files."""
        ...

    def is_rewritten(self, head: Head, before: str) -> bool:
        """Whether the branch is known to have lost the commit ``before``."""
        ...


@contextmanager
def open_repository(
    url: str, credentials: Credentials = _NO_CREDENTIALS, *, timeout_s: float = 60.0
) -> Iterator[Repository]:
    """Open a repository for one look, which ends after ``timeout_s`` seconds at the latest.

    Raises:
        GitError: the subclass says what is wrong and what to do.
    """
    address = Address.parse(url)
    credentials.check_against(address)
    if address.scheme == "file":
        with _open_local(address) as repository:
            yield _Local(repository, url, Allowance(timeout_s))
        return
    with Allowance(timeout_s).running() as allowance:
        yield _Remote(_client(address, credentials, allowance), address, allowance)


def _client(address: Address, credentials: Credentials, allowance: Allowance) -> GitClient:
    # Each brings a library that a controller without such a source need not load.
    if address.scheme == "ssh":
        from backends.git.ssh import ssh_client

        return ssh_client(address, credentials, allowance)
    from backends.git.https import https_client

    return https_client(address, credentials, allowance)


class _NoHistory:
    """Tells the server that nothing is here yet."""

    def __next__(self) -> None:
        return None

    def ack(self, sha: ObjectID) -> None:
        """Nothing was offered."""

    def nak(self) -> None:
        """Nothing was offered."""


class _Remote:
    def __init__(self, client: GitClient, address: Address, allowance: Allowance) -> None:
        self._client = client
        self._address = address
        self._path = address.path if address.scheme == "ssh" else ""
        self._allowance = allowance

    def head(self, ref: Wanted) -> Head:
        if ref.commit:
            name = ObjectID(ref.commit.encode())
            return Head(name, name)
        with self._telling(ref):
            refs = self._client.get_refs(self._path.encode(), ref_prefix=[ref.name]).refs
        target = refs.get(Ref(ref.name))
        if target is None:
            raise _no_ref(self._address.url, ref)
        return Head(target, refs.get(Ref(ref.name + _PEELED)) or target)

    def fetch(self, ref: Wanted, head: Head) -> Checkout:
        store = self._store(ref, head, depth=1, leave_out=b"blob:limit=%d" % (FILE_BYTES + 1))
        in_time = self._allowance.remaining_s
        return _checkout(store, head, self._address.url, ref, lambda _: 0, in_time)

    def is_rewritten(self, head: Head, before: str) -> bool:
        try:
            store = self._store(Wanted(), head, depth=_HISTORY, leave_out=b"tree:0")
        except GitError:
            return False  # not known, and the commit itself is here
        with _reading(self._address.url):
            return _has_lost(store, head.commit, before)

    def _store(self, ref: Wanted, head: Head, *, depth: int, leave_out: bytes) -> MemoryObjectStore:
        pack = bytearray()

        def keep(data: bytes) -> int:
            pack.extend(data)
            if len(pack) > TRANSFER_BYTES:
                raise LimitExceeded(f"more than {TRANSFER_BYTES >> 20} MiB for one commit")
            return len(data)

        with self._telling(ref):
            self._client.fetch_pack(
                self._path.encode(),
                lambda _refs, depth=None: [head.target],  # noqa: ARG005 - dulwich's signature
                _NoHistory(),
                keep,
                depth=depth,
                ref_prefix=[ref.name],
                filter_spec=leave_out,
            )
        store = MemoryObjectStore()
        with _reading(self._address.url):
            unpack(bytes(pack), store, self._allowance.remaining_s)
        return store

    @contextmanager
    def _telling(self, ref: Wanted) -> Iterator[None]:
        """Turn what the libraries raise into what a user can act on."""
        try:
            yield
        except GitError:
            if self._allowance.is_over:
                raise self._allowance.timed_out() from None
            raise
        except Exception as error:
            if self._allowance.is_over:
                raise self._allowance.timed_out() from error
            raise self._translated(error, ref) from error

    def _translated(self, error: Exception, ref: Wanted) -> GitError:
        url = self._address.url
        text = str(error)
        if isinstance(error, HangupException):
            lines = getattr(error, "stderr_lines", None) or ()
            text = " ".join(line.decode(errors="replace") for line in lines) or text
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        text = text[:_REMOTE_TEXT_LIMIT]
        if isinstance(error, NotGitRepository) or any(
            s in text for s in ("not appear to be a git repository", "not found", "not exported")
        ):
            return RepositoryNotFound(f"{url} is no Git repository; check spec.url ({text})")
        if isinstance(error, HTTPUnauthorized):
            return AuthenticationFailed(f"{url} refuses the credentials; mend the Secret")
        if ref.commit and isinstance(error, HangupException):
            return RefNotFound(f"{url} has no {ref}, or does not give it out; check spec.ref")
        if isinstance(error, (GitProtocolError, HangupException, OSError, EOFError)):
            return FetchFailed(f"{url} could not be read: {text or type(error).__name__}")
        # Its text may quote what was sent, and that is a password.
        what = type(error).__name__
        return FetchFailed(f"{url} does not answer as a Git server does: {what}")


class _Local:
    def __init__(self, repository: Repo, url: str, allowance: Allowance) -> None:
        self._repository = repository
        self._url = url
        self._allowance = allowance

    def head(self, ref: Wanted) -> Head:
        if ref.commit:
            name = ObjectID(ref.commit.encode())
            return Head(name, name)
        with _reading(self._url):
            try:
                target = ObjectID(self._repository.refs[Ref(ref.name)])
                peeled = self._repository[target]
                while isinstance(peeled, Tag):
                    peeled = self._repository[peeled.object[1]]
            except (KeyError, ValueError) as error:
                raise _no_ref(self._url, ref) from error
        return Head(target, peeled.id)

    def fetch(self, ref: Wanted, head: Head) -> Checkout:
        in_time = self._allowance.remaining_s
        return _checkout(self._repository, head, self._url, ref, self._size_of, in_time)

    def is_rewritten(self, head: Head, before: str) -> bool:
        with _reading(self._url):
            return _has_lost(self._repository, head.commit, before)

    def _size_of(self, sha: ObjectID) -> int:
        """Return a blob's size without reading it, 0 if that cannot be told."""
        own = self._repository.object_store
        for store in (own, *own.alternates):
            if not isinstance(store, DiskObjectStore):
                continue
            loose = Path(hex_to_filename(str(store.path), sha))
            if loose.is_file():
                with loose.open("rb") as file:
                    head = zlib.decompressobj().decompress(file.read(128), 64)
                return int(head.partition(b"\0")[0].split()[1])
            for pack in store.packs:
                try:
                    offset = pack.index.object_offset(sha)
                except KeyError:
                    continue
                with Path(store.pack_dir, pack.data.filename).open("rb") as file:
                    file.seek(offset)
                    return entry_size(file.read(256), 0)
        return 0


@contextmanager
def _open_local(address: Address) -> Iterator[Repo]:
    try:
        repository = Repo(address.path)
    except (NotGitRepository, OSError) as error:
        raise RepositoryNotFound(f"{address.url} is no Git repository; check spec.url") from error
    with repository:
        yield repository


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turn what damaged objects make dulwich raise into what a user can act on."""
    try:
        yield
    except GitError:
        raise
    except Exception as error:
        raise FetchFailed(
            f"{what} cannot be read ({type(error).__name__}): objects of it are missing or "
            "damaged; it is tried again. `git fsck` over there tells which"
        ) from error


def _checkout(
    objects: Objects,
    head: Head,
    url: str,
    ref: Wanted,
    size_of: Callable[[ObjectID], int],
    in_time: Callable[[], object],
) -> Checkout:
    tag: Tag | None = None
    with _reading(url):
        try:
            found: ShaFile = objects[head.target]
            while isinstance(found, Tag):
                tag = tag or found
                found = objects[found.object[1]]
        except (KeyError, ValueError) as error:
            raise _no_ref(url, ref) from error
        if not isinstance(found, Commit):
            raise RefNotFound(f"{ref} in {url} is no commit; check spec.ref")
        if not isinstance(objects[found.tree], Tree):
            raise FetchFailed(f"commit {found.id.decode()} in {url} has no tree")
    return Checkout(found, tag, objects, size_of, in_time)


def _no_ref(url: str, ref: Wanted) -> RefNotFound:
    return RefNotFound(f"{url} has no {ref}; check spec.ref")


def _has_lost(objects: Objects, commit: ObjectID, before: str) -> bool:
    """Walk back from a commit; only a history that was seen whole can have lost one."""
    seen: set[ObjectID] = set()
    pending = [commit]
    while pending:
        name = pending.pop(0)
        if name.decode() == before:
            return False
        if name in seen:
            continue
        seen.add(name)
        try:
            found = objects[name]
        except KeyError:
            return False
        if not isinstance(found, Commit) or len(seen) > _HISTORY:
            return False
        pending += found.parents
    return True
