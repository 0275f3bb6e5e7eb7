# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S106 - these passwords open nothing
"""Repositories read over https, ssh and from the disk, and what is read of hostile ones."""

import hashlib
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from dulwich.objects import Blob, Commit, ObjectID, ShaFile, Tree
from dulwich.repo import Repo
from git_servers import (
    QuietHandler,
    basic,
    commit,
    entry,
    entry_of,
    git,
    git_over_http,
    git_over_ssh,
    hostile_http,
    make_repository,
    pack_of,
    serving,
    small_commit,
    zeros,
)

from backends.git.address import Address, Credentials
from backends.git.errors import (
    AuthenticationFailed,
    CertificateRefused,
    EntryRefused,
    FetchFailed,
    GitError,
    HostKeyRefused,
    InvalidSource,
    LimitExceeded,
    PathNotFound,
    RefNotFound,
    RepositoryNotFound,
    TimedOut,
)
from backends.git.https import https_client
from backends.git.limits import Allowance
from backends.git.source import Wanted, open_repository
from backends.git.tree import GitTree
from localcluster.certificates import Authority

TEXT = "kind: A\n"


def read(
    url: str,
    wanted: Wanted | None = None,
    credentials: Credentials | None = None,
    path: str = "",
    timeout_s: float = 20.0,
) -> GitTree:
    """Take one look, and read everything."""
    wanted = wanted or Wanted()
    with open_repository(url, credentials or Credentials(), timeout_s=timeout_s) as repository:
        return repository.fetch(wanted, repository.head(wanted)).tree(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with one repository of two commits, a branch, two tags and a folder."""
    root = tmp_path / "root"
    root.mkdir()
    make_repository(root / "r", web=TEXT)
    commit(root / "r", deep__down="kind: B\n", web="kind: C\n")
    git(root / "r", "branch", "old", "HEAD~1")
    git(root / "r", "tag", "light", "HEAD~1")
    git(root / "r", "tag", "-a", "-m", "x", "v1", "HEAD~1")
    return root


WANTED = {
    "the default branch": (Wanted(), {"web.yaml": b"kind: C\n", "deep/down.yaml": b"kind: B\n"}),
    "a branch": (Wanted(branch="old"), {"web.yaml": b"kind: A\n"}),
    "a tag": (Wanted(tag="light"), {"web.yaml": b"kind: A\n"}),
    "an annotated tag": (Wanted(tag="v1"), {"web.yaml": b"kind: A\n"}),
}


@pytest.fixture(params=["file", "http", "ssh"])
def served(request: pytest.FixtureRequest, root: Path) -> Iterator[tuple[str, Credentials]]:
    """The repository's address, each way."""
    if request.param == "file":
        yield f"file://{root}/r", Credentials()
    elif request.param == "http":
        with git_over_http(root) as server:
            yield f"{server.url}/r", Credentials()
    else:
        with git_over_ssh(root) as server:
            secret = Credentials(identity=server.identity, known_hosts=server.known_hosts)
            yield f"{server.url}/r", secret


def test_every_kind_of_ref_is_read_each_way(served: tuple[str, Credentials], root: Path) -> None:
    """Branches, tags of both kinds, a commit, and what is not there."""
    url, credentials = served
    for wanted, files in WANTED.values():
        assert read(url, wanted, credentials).files == files
    first = git(root / "r", "rev-parse", "old")
    assert read(url, Wanted(commit=first), credentials).commit == first
    assert read(url, Wanted(), credentials, path="deep").files == {"deep/down.yaml": b"kind: B\n"}
    for missing in (Wanted(branch="none"), Wanted(tag="none"), Wanted(commit="1" * 40)):
        with pytest.raises(RefNotFound, match=r"check spec\.ref"):
            read(url, missing, credentials)
    with pytest.raises(PathNotFound, match=r"check spec\.path"):
        read(url, Wanted(), credentials, path="none")
    with pytest.raises(RepositoryNotFound, match=r"check spec\.url"):
        read(f"{url}-gone", Wanted(), credentials)


def test_asking_for_the_head_fetches_nothing(root: Path) -> None:
    """A look at an unchanged repository is one small question."""
    with git_over_http(root) as server, open_repository(f"{server.url}/r") as repository:
        head = repository.head(Wanted(branch="main"))
        assert head.commit.decode() == git(root / "r", "rev-parse", "main")
        asked = len(server.requests)
        assert asked <= 2
        repository.fetch(Wanted(branch="main"), head)
        assert len(server.requests) > asked


def test_a_rewritten_branch_is_told_from_one_that_went_on(
    served: tuple[str, Credentials], root: Path
) -> None:
    """Some commits further is no rewriting; an amended commit is."""
    url, credentials = served
    before = git(root / "r", "rev-parse", "main")
    for n in range(3):
        commit(root / "r", web=f"kind: D{n}\n")
    with open_repository(url, credentials) as repository:
        assert not repository.is_rewritten(repository.head(Wanted()), before)
    git(root / "r", "reset", "--soft", "old")
    commit(root / "r", web="kind: E\n")
    with open_repository(url, credentials) as repository:
        assert repository.is_rewritten(repository.head(Wanted()), before)


def test_https_needs_the_right_authority_and_password(root: Path, tmp_path: Path) -> None:
    """And says which of the two is wrong."""
    (tmp_path / "ca").mkdir()
    authority = Authority(tmp_path / "ca")
    with git_over_http(root, authorization=basic("me", "right"), authority=authority) as server:
        url, ca = f"{server.url}/r", authority.ca.read_text()
        good = Credentials(username="me", password="right", authority=ca)
        assert read(url, credentials=good).files
        with pytest.raises(CertificateRefused, match=r"as ca\.crt"):
            read(url, credentials=Credentials(username="me", password="right"))
        with pytest.raises(AuthenticationFailed, match="mend the Secret"):
            read(url, credentials=Credentials(username="me", password="wrong", authority=ca))
        with pytest.raises(CertificateRefused, match="PEM"):
            read(url, credentials=Credentials(authority="nothing"))


def test_a_bearer_token_is_sent(root: Path, tmp_path: Path) -> None:
    """Under the key that Flux has for it."""
    (tmp_path / "ca").mkdir()
    authority = Authority(tmp_path / "ca")
    with git_over_http(root, authorization="Bearer t0ken", authority=authority) as server:
        secret = {"bearerToken": b"t0ken\n", "ca.crt": authority.ca.read_bytes(), "other": b"\xff"}
        assert read(f"{server.url}/r", credentials=Credentials.parse(secret)).files


def test_a_password_that_is_no_latin_is_sent(root: Path) -> None:
    """As UTF-8, as git does."""
    with git_over_http(root, authorization=basic("me", "p€")) as server:
        opened = https_client(
            Address.parse(f"{server.url}/r"),
            Credentials(username="me", password="p€"),
            Allowance(9),
        )
        assert opened.get_refs(b"").refs


SECRETS = {
    "a line break in a token": ("bearerToken", "s3cret\r\nX: y"),
    "a token that is no ASCII": ("bearerToken", "s3cret€"),
    "a password with its line break": ("password", "s3cret\n"),
    "a line break in a name": ("username", "s3cret\nX"),
}


@pytest.mark.parametrize("what", SECRETS)
def test_what_no_header_can_carry_is_refused_without_quoting_it(what: str) -> None:
    """The libraries would quote it, into a condition that everybody reads."""
    key, value = SECRETS[what]
    with pytest.raises(AuthenticationFailed, match=f"{key} in the Secret has") as found:
        Credentials.parse({key: value.encode()})
    assert "s3cret" not in str(found.value)


def test_ssh_trusts_no_host_that_is_not_known(root: Path) -> None:
    """Nothing is learnt, and nothing is sent before."""
    with git_over_ssh(root) as server, git_over_ssh(root) as other:
        url = f"{server.url}/r"
        key = other.known_hosts.split(" ", 1)[1]
        wrong = f"{server.known_hosts.split(' ', maxsplit=1)[0]} {key}"
        with pytest.raises(HostKeyRefused, match="not the one in known_hosts"):
            read(url, credentials=Credentials(identity=server.identity, known_hosts=wrong))
        unknown = Credentials(identity=server.identity, known_hosts=other.known_hosts)
        with pytest.raises(HostKeyRefused, match="has no line for"):
            read(url, credentials=unknown)
        stranger = Credentials(identity=other.identity, known_hosts=server.known_hosts)
        with pytest.raises(AuthenticationFailed, match="does not let git in"):
            read(url, credentials=stranger)


def test_an_encrypted_identity_is_opened_by_its_passphrase(root: Path) -> None:
    """And named if it cannot be."""
    with git_over_ssh(root, passphrase="open") as server:
        known = {"identity": server.identity, "known_hosts": server.known_hosts}
        assert read(f"{server.url}/r", credentials=Credentials(**known, password="open")).files
        with pytest.raises(AuthenticationFailed, match="passphrase as password"):
            read(f"{server.url}/r", credentials=Credentials(**known))
        with pytest.raises(AuthenticationFailed, match="passphrase in password is wrong"):
            read(f"{server.url}/r", credentials=Credentials(**known, password="no"))


REFUSED_ADDRESSES = {
    "no scheme": ("policies", "is no address"),
    "another scheme": ("ext::sh -c true", "is no address"),
    "git's own": ("git://host/r", "is no address"),
    "a password in it": ("https://me:s3cret@host/r", "credentials in it"),
    "a token in it": ("https://token@host/r", "credentials in it"),
    "a password for ssh in it": ("ssh://git:s3cret@host/r", "credentials in it"),
    "a file on another host": ("file://host/r", "names a host"),
    "a wrong port": ("https://host:port/r", "is no address"),
}


@pytest.mark.parametrize("what", REFUSED_ADDRESSES)
def test_an_address_that_is_none_is_refused(what: str) -> None:
    """Before anything is connected to, and without repeating a password."""
    url, message = REFUSED_ADDRESSES[what]
    with pytest.raises(InvalidSource, match=message) as found:
        read(url)
    assert "s3cret" not in str(found.value)


def test_credentials_are_not_sent_in_the_clear() -> None:
    """Nor is ssh tried without knowing the host."""
    with pytest.raises(InvalidSource, match="write https://"):
        read("http://host/r", credentials=Credentials(username="me", password="x"))
    with pytest.raises(AuthenticationFailed, match="ssh-keyscan"):
        read("git@host:r", credentials=Credentials(identity="x"))


def test_a_redirect_is_told_and_not_followed(root: Path) -> None:
    """The controller goes where spec.url says, and nowhere else."""
    with git_over_http(root) as server, _redirecting(f"{server.url}/r") as url:
        with pytest.raises(FetchFailed, match="write it into") as found:
            read(url)
        assert f"{server.url}/r" in str(found.value)
        assert server.requests == []


def _redirecting(target: str) -> AbstractContextManager[str]:
    class Handler(QuietHandler):
        def do_GET(self) -> None:  # noqa: N802 - the library's name
            self.send_response(302)
            self.send_header("Location", f"{target}/info/refs?service=git-upload-pack")
            self.end_headers()

    return serving(Handler, None)


@contextmanager
def at_most(mib: int) -> Iterator[None]:
    """Assert that no more memory than that is taken at a time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mib << 20
    finally:
        tracemalloc.stop()


def test_a_file_of_two_gigabytes_is_not_unpacked() -> None:
    """It is two megabytes on the wire, so only what it says of itself gives it away."""
    made, tree, *_ = objects = small_commit(web=b"kind: A\n")
    pack = pack_of(entry_of(made), entry_of(tree), entry(3, 2 << 30, zeros(2048)))

    def sent() -> Iterator[bytes]:
        for start in range(0, len(pack), 60_000):
            yield pack[start : start + 60_000]

    began_s = time.monotonic()
    with (
        hostile_http(objects, sent) as server,
        at_most(32),
        pytest.raises(LimitExceeded, match="2048 MiB"),
    ):
        read(server.url)
    assert time.monotonic() - began_s < 10


def test_a_delta_that_grows_to_gigabytes_is_not_applied() -> None:
    """A delta of a hundred bytes can copy one block for ever."""
    made, tree, blob = objects = small_commit(web=bytes(1 << 16))
    delta = bytes([0x80, 0x80, 0x04]) + bytes([0x80, 0x80, 0x80, 0x80, 0x08]) + b"\x90\x10" * 40
    grown = entry(7, len(delta), zlib.compress(delta), bytes.fromhex(blob.id.decode()))
    pack = pack_of(entry_of(made), entry_of(tree), entry_of(blob), grown)
    with (
        hostile_http(objects, lambda: iter([pack])) as server,
        pytest.raises(LimitExceeded, match="2048 MiB"),
    ):
        read(server.url)


def test_a_pack_without_an_end_is_not_read_to_it() -> None:
    """The download is broken off where the bound is."""

    def sent() -> Iterator[bytes]:
        yield pack_of()[:12]
        while True:
            yield bytes(65_000)

    with (
        hostile_http(small_commit(web=b""), sent) as server,
        pytest.raises(LimitExceeded, match="more than 64 MiB"),
    ):
        read(server.url)


def test_a_server_that_drips_is_left_in_time() -> None:
    """A byte now and then would keep a socket's own timeout from ever running out."""
    never = threading.Event()

    def sent() -> Iterator[bytes]:
        while True:
            yield b"P"
            never.wait(0.05)

    began_s = time.monotonic()
    with (
        hostile_http(small_commit(web=b""), sent) as server,
        pytest.raises(TimedOut, match="was not read within"),
    ):
        read(server.url, timeout_s=0.5)
    assert time.monotonic() - began_s < 5


def test_a_pack_of_too_many_objects_is_not_walked() -> None:
    """Its head says how many there are."""
    pack = bytearray(pack_of())
    pack[8:12] = (1 << 31).to_bytes(4, "big")
    with (
        hostile_http(small_commit(web=b""), lambda: iter([bytes(pack)])) as server,
        pytest.raises(LimitExceeded, match="2147483648 objects"),
    ):
        read(server.url)


def test_a_look_at_the_disk_ends_in_time(root: Path) -> None:
    """Nothing hangs there, but a tree may be endless."""
    with pytest.raises(TimedOut, match=r"raise spec\.timeout"):
        read(f"file://{root}/r", timeout_s=0)


def broken(what: str) -> tuple[list[ShaFile], bytes]:
    """Return the objects and the pack of a commit that only a hostile server makes."""
    made, tree, blob = objects = small_commit(web=bytes(100))
    assert isinstance(made, Commit)
    assert isinstance(tree, Tree)
    if what == "a folder that is not there":
        tree.add(b"lost", 0o040000, blob.id[:-1] + (b"0" if blob.id[-1:] != b"0" else b"1"))
    raw = tree.as_raw_string()
    if what == "a tree that is none":
        raw = b"100644 no end"
        made.tree = ObjectID(
            hashlib.sha1(b"tree 13\0" + raw, usedforsecurity=False).hexdigest().encode()
        )
    else:
        made.tree = tree.id
    entries = [entry_of(made), entry(2, len(raw), zlib.compress(raw)), entry_of(blob)]
    if what == "a delta beyond its base":
        delta = bytes([100, 50]) + b"\x91\x90\x32"
        base = bytes.fromhex(blob.id.decode())
        entries.append(entry(7, len(delta), zlib.compress(delta), base))
    return objects, pack_of(*entries)


@pytest.mark.parametrize(
    "what", ["a folder that is not there", "a tree that is none", "a delta beyond its base"]
)
def test_objects_that_are_none_are_told(what: str) -> None:
    """Whatever the library raises, the source says that it could not be read."""
    objects, pack = broken(what)
    with hostile_http(objects, lambda: iter([pack])) as server, pytest.raises(FetchFailed):
        read(server.url)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_pack_is_told(damage: str) -> None:
    """Whatever it is damaged to, it is an error that says so."""
    objects = small_commit(web=b"kind: A\n")
    pack = pack_of(*map(entry_of, objects))
    wrong = {"cut": pack[:-30], "flipped": pack[:40] + b"\xff" + pack[41:], "empty": b"PACK"}
    with (
        hostile_http(objects, lambda: iter([wrong[damage]])) as server,
        pytest.raises(FetchFailed, match="damaged pack"),
    ):
        read(server.url)


def test_a_large_file_is_left_with_the_server_if_it_can(tmp_path: Path) -> None:
    """Beside the policies it does not matter; as YAML it is refused, before it is sent."""
    root = tmp_path / "with-filter"
    make_repository(root / "r", web=TEXT)
    (root / "r" / "model.bin").write_bytes(bytes(range(256)) * (3 << 12))
    git(root / "r", "add", ".")
    git(root / "r", "commit", "-qm", "model")
    with git_over_http(root) as server:
        assert read(f"{server.url}/r").files == {"web.yaml": b"kind: A\n"}
        commit(root / "r", large="x" * (1 << 20) + "y")
        with pytest.raises(LimitExceeded, match=r"large\.yaml:1:1"):
            read(f"{server.url}/r")


@pytest.mark.parametrize("packed", [False, True], ids=["loose", "packed"])
def test_a_large_file_on_the_disk_is_not_read(tmp_path: Path, packed: bool) -> None:  # noqa: FBT001
    """Its size stands before its bytes."""
    make_repository(tmp_path / "r", web=TEXT, large="0" * (64 << 20))
    if packed:
        git(tmp_path / "r", "repack", "-adq")
    size = r"large\.yaml:1:1: the file has 67108864 bytes"
    with at_most(32), pytest.raises(LimitExceeded, match=size):
        read(f"file://{tmp_path}/r")


def links(path: Path) -> None:
    """A link to its own folder."""
    (path / "loop").symlink_to(".")


def outside(path: Path) -> None:
    """A link to the outside, named as a policy."""
    (path / "policy.yaml").symlink_to("../../../../etc/passwd")


def submodule(path: Path) -> None:
    """Another repository within."""
    name = git(path, "rev-parse", "HEAD")
    git(path, "update-index", "--add", "--cacheinfo", f"160000,{name},lib")


def kustomization(path: Path) -> None:
    """A base to build from."""
    (path / "kustomization.yml").write_text("kind: Kustomization\n")


def deep(path: Path) -> None:
    """More folders than anybody makes."""
    folder = path.joinpath(*"abcdefghijklmnopqrstuvwxyzabcdefgh")
    folder.mkdir(parents=True)
    (folder / "x.yaml").write_text(TEXT)


ENTRIES = {
    "a link that loops": (links, EntryRefused, "loop:1:1: a symbolic link"),
    "a link to the outside": (outside, EntryRefused, "policy.yaml:1:1: a symbolic link"),
    "a submodule": (submodule, EntryRefused, "lib:1:1: a submodule"),
    "a kustomization": (kustomization, EntryRefused, "Let Flux or Argo CD apply this"),
    "too many folders": (deep, LimitExceeded, "more than 30 folders deep"),
}


@pytest.mark.parametrize("what", ENTRIES)
def test_what_is_not_followed_is_refused(tmp_path: Path, what: str) -> None:
    """Not passed over: what is not seen would be pruned."""
    make, error, message = ENTRIES[what]
    make_repository(tmp_path / "r", web=TEXT)
    make(tmp_path / "r")
    git(tmp_path / "r", "add", *(["."] if make is not submodule else ["web.yaml"]))
    git(tmp_path / "r", "commit", "-qm", "x")
    with pytest.raises(error, match=message):
        read(f"file://{tmp_path}/r")


@pytest.mark.parametrize("path", ["..", "a/../../b", "./x/./y"])
def test_a_path_with_dots_leads_nowhere(tmp_path: Path, path: str) -> None:
    """It is refused, not resolved."""
    make_repository(tmp_path / "r", web=TEXT)
    with pytest.raises(InvalidSource, match="has dots in it"):
        read(f"file://{tmp_path}/r", path=path)


def test_a_path_over_a_link_leads_nowhere(tmp_path: Path) -> None:
    """Not even within the repository."""
    make_repository(tmp_path / "r", real__web=TEXT)
    (tmp_path / "r" / "link").symlink_to("real")
    git(tmp_path / "r", "add", ".")
    git(tmp_path / "r", "commit", "-qm", "x")
    with pytest.raises(PathNotFound, match="link is a symbolic link"):
        read(f"file://{tmp_path}/r", path="link")


def test_a_tree_that_names_itself_a_million_times_is_left(tmp_path: Path) -> None:
    """Ten folders of ten folders each, all the same object: small to store, endless to walk."""
    make_repository(tmp_path / "r", web=TEXT)
    with Repo(str(tmp_path / "r")) as repository:
        blob = Blob.from_string(b"x")
        made: Blob | Tree = blob
        for _ in range(10):
            tree = Tree()
            for n in range(10):
                tree.add(b"%d" % n, 0o100644 if made is blob else 0o040000, made.id)
            repository.object_store.add_object(tree)
            made = tree
        repository.object_store.add_object(blob)
        top = git(tmp_path / "r", "commit-tree", made.id.decode(), "-m", "bomb")
    with pytest.raises(LimitExceeded, match="more than 200000 files and folders"):
        read(f"file://{tmp_path}/r", Wanted(commit=top))


def test_every_error_has_a_reason_that_a_condition_may_have() -> None:
    """And each says what it is for."""
    for error in GitError.__subclasses__():
        assert error.reason.isalpha()
        assert error.__doc__
