# SPDX-License-Identifier: Apache-2.0
"""Whose signature holds for a commit or a tag, made by git and ssh-keygen themselves."""

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pysequoia
import pytest
from cluster_world import eventually
from dulwich.objects import Commit
from dulwich.refs import Ref
from dulwich.repo import Repo
from git_servers import git, make_repository

from backends.git.errors import AuthenticationFailed, SignatureRefused
from backends.git.signatures import Mode, TrustedSigners, verify
from backends.git.source import Wanted, open_repository


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """An SSH key."""
    path = tmp_path / "signer"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def signers(key: Path, options: str = 'namespaces="git"') -> TrustedSigners:
    """Return a Secret that names the key's owner."""
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    return TrustedSigners.parse(
        {"allowed_signers": f"me@example.org {options} {public}\n".encode()}
    )


@pytest.fixture
def repository(tmp_path: Path, key: Path) -> Path:
    """A repository whose second commit and whose tag ``signed`` are signed."""
    path = tmp_path / "r"
    make_repository(path, web="kind: A\n")
    for name, value in (("gpg.format", "ssh"), ("user.signingkey", str(key))):
        git(path, "config", name, value)
    git(path, "tag", "unsigned-commit")
    git(path, "tag", "-s", "-m", "x", "tag-of-unsigned-commit")
    git(path, "commit", "-q", "-S", "--allow-empty", "-m", "signed")
    git(path, "tag", "-s", "-m", "x", "signed")
    git(path, "tag", "-a", "-m", "x", "annotated")
    git(path, "tag", "light")
    # Somebody who may write refs, but has no key, shows an old tag under another name.
    git(path, "update-ref", "refs/tags/replayed", "refs/tags/tag-of-unsigned-commit")
    return path


def judged(path: Path, tag: str, mode: Mode, trusted: TrustedSigners) -> str:
    """Return who signed, or the error's text."""
    wanted = Wanted(tag=tag)
    with open_repository(f"file://{path}") as found:
        try:
            return verify(found.fetch(wanted, found.head(wanted)), wanted, mode, trusted)
        except SignatureRefused as error:
            return str(error)


JUDGED: dict[str, tuple[str, Mode, str]] = {
    "a signed commit": ("light", "HEAD", "me@example.org"),
    "an unsigned commit": ("unsigned-commit", "HEAD", "commit "),
    "a signed tag": ("signed", "Tag", "me@example.org"),
    "a signed tag of an unsigned commit": ("tag-of-unsigned-commit", "Tag", "me@example.org"),
    "a signed tag of an unsigned commit, where both count": (
        "tag-of-unsigned-commit",
        "TagAndHEAD",
        "is not signed, and spec.verify asks for it",
    ),
    "a signed tag of a signed commit": ("signed", "TagAndHEAD", "me@example.org"),
    "an unsigned tag": ("annotated", "Tag", "tag annotated is not signed"),
    "a tag without an object": ("light", "Tag", "has no tag object that could be signed"),
    "a signed tag under another name": ("replayed", "Tag", "which is another one"),
}


@pytest.mark.parametrize("what", JUDGED)
def test_what_is_signed_is_judged_by_mode(repository: Path, key: Path, what: str) -> None:
    """And a tag counts under its own name alone."""
    tag, mode, expected = JUDGED[what]
    assert expected in judged(repository, tag, mode, signers(key))


@pytest.mark.parametrize(
    "options", ['namespaces="file"', 'valid-before="20200101"'], ids=["for files", "until 2020"]
)
def test_a_signer_counts_for_git_and_while_valid(repository: Path, key: Path, options: str) -> None:
    """As ssh-keygen reads the file."""
    assert "by nobody in allowed_signers" in judged(
        repository, "light", "HEAD", signers(key, options)
    )


def test_a_signature_counts_by_the_keys_of_the_secret_alone(repository: Path, key: Path) -> None:
    """Another kind of key, or somebody else's, opens nothing."""
    certificate = pysequoia.Tsk.generate("me <me@example.org>").extract_certificate()
    trusted = TrustedSigners.parse({"me.asc": bytes(certificate)})
    assert "by nobody" in judged(repository, "light", "HEAD", trusted)
    git(repository, "config", "gpg.format", "openpgp")
    assert judged(repository, "light", "HEAD", signers(key)) == "me@example.org"


@pytest.mark.parametrize("ended", ["expired on", "is revoked"])
def test_an_openpgp_key_that_ended_counts_no_more(tmp_path: Path, ended: str) -> None:
    """And the message names it."""
    secret = pysequoia.Tsk.generate("me <me@example.org>")
    good = secret.extract_certificate()
    repository = tmp_path / "r"
    make_repository(repository, web="kind: A\n")
    with Repo(str(repository)) as repo:
        made = repo[repo.refs[Ref(b"HEAD")]]
        assert isinstance(made, Commit)
        made.gpgsig = pysequoia.sign(
            secret.signer(), made.as_raw_string(), mode=pysequoia.SignatureMode.DETACHED
        )
        repo.object_store.add_object(made)
        repo.refs[Ref(b"refs/tags/signed")] = made.id
    if ended == "expired on":
        soon = datetime.now(UTC) + timedelta(seconds=1)
        over = good.set_expiration(soon, secret.certifier())
    else:
        over = pysequoia.Cert.from_bytes(bytes(good) + bytes(good.revoke(secret.certifier())))
    trusted = TrustedSigners.parse({"me.asc": bytes(good)})
    assert judged(repository, "signed", "HEAD", trusted) == "OpenPGP"
    gone = TrustedSigners.parse({"me.asc": bytes(over)})
    expected = f"key {good.fingerprint} {ended} "
    # Signed while it was valid, which the library takes for ever.
    eventually(lambda: expected in judged(repository, "signed", "HEAD", gone), "it is refused")


@pytest.mark.parametrize(
    "secret", [{}, {"allowed_signers": b" \n"}, {"me.asc": b"no key"}], ids=str
)
def test_a_secret_without_signers_is_told(secret: dict[str, bytes]) -> None:
    """It would otherwise refuse every commit without saying why."""
    with pytest.raises(AuthenticationFailed, match=r"spec\.verify"):
        TrustedSigners.parse(secret)
