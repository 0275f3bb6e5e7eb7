# SPDX-License-Identifier: Apache-2.0
"""Who signed a commit or a tag, judged by the keys of a Secret and nothing else.

OpenPGP is verified in memory by Sequoia, so there is no keyring whose owner trusts more than the
Secret says. SSH signatures go to ``ssh-keygen``, which is the only complete reader of allowed
signers (namespaces, validity, authorities); it gets an argument list and a private directory.
"""

import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, Self

import pysequoia
from dulwich.objects import Commit, ObjectID, Tag
from dulwich.signature import BadSignature, PySequoiaSignatureVendor

from backends.git.errors import AuthenticationFailed, SignatureRefused
from backends.git.source import Checkout, Wanted

Mode = Literal["HEAD", "Tag", "TagAndHEAD"]

ALLOWED_SIGNERS: Final = "allowed_signers"
_SSH_BEGIN: Final = b"-----BEGIN SSH SIGNATURE-----"
_LIMIT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class TrustedSigners:
    """Whose signatures count: the OpenPGP keys and the SSH allowed signers of a Secret."""

    certificates: tuple[Any, ...]
    allowed_signers: bytes

    @classmethod
    def parse(cls, secret: Mapping[str, bytes]) -> Self:
        """Read the data of a Secret: ``allowed_signers`` for SSH, all other keys OpenPGP.

        Raises:
            AuthenticationFailed: a value is no key.
        """
        certificates: list[Any] = []
        for key, data in secret.items():
            if key == ALLOWED_SIGNERS:
                continue
            try:
                certificates += pysequoia.Cert.split_bytes(data)
            except Exception as error:
                raise AuthenticationFailed(
                    f"{key} in the Secret of spec.verify is no OpenPGP public key; SSH signers go "
                    f"under {ALLOWED_SIGNERS}"
                ) from error
        signers = secret.get(ALLOWED_SIGNERS, b"")
        if not certificates and not signers.strip():
            raise AuthenticationFailed(
                "the Secret of spec.verify names no signer, so nothing can be applied; put "
                f"OpenPGP public keys into it, or SSH signers under {ALLOWED_SIGNERS}"
            )
        return cls(tuple(certificates), signers)


def verify(checkout: Checkout, ref: Wanted, mode: Mode, trusted: TrustedSigners) -> str:
    """Return who signed.

    Raises:
        SignatureRefused: what ``mode`` asks for is not signed by a trusted signer.
    """
    signers = []
    if mode in {"Tag", "TagAndHEAD"}:
        signers.append(_verify_tag(checkout, ref, trusted))
    if mode in {"HEAD", "TagAndHEAD"}:
        commit = checkout.commit
        payload = commit.raw_without_sig()
        if Commit.from_string(payload).tree != commit.tree:
            raise SignatureRefused(f"commit {_short(commit.id)} does not sign its own tree")
        signers.append(_verify(f"commit {_short(commit.id)}", payload, commit.gpgsig, trusted))
    return ", ".join(dict.fromkeys(signers))


def _verify_tag(checkout: Checkout, ref: Wanted, trusted: TrustedSigners) -> str:
    tag = checkout.tag
    if tag is None:
        raise SignatureRefused(
            f"{ref} has no tag object that could be signed; spec.verify.mode asks for one. Name "
            "an annotated tag in spec.ref, or verify HEAD"
        )
    payload = tag.raw_without_sig()
    signed = Tag.from_string(payload)
    # The name and what it points to are part of what is signed; another ref must not show it.
    if signed.name != (ref.tag or "").encode() or signed.object[1] != checkout.commit.id:
        raise SignatureRefused(
            f"{ref} shows the signed tag {signed.name.decode(errors='replace')!r}, which is "
            "another one; nothing of it is applied"
        )
    return _verify(f"tag {ref.tag}", payload, tag.signature, trusted)


def _verify(what: str, payload: bytes, signature: bytes | None, trusted: TrustedSigners) -> str:
    if not signature:
        raise SignatureRefused(
            f"{what} is not signed, and spec.verify asks for it; sign it (`git commit -S`) and "
            "push again"
        )
    if signature.lstrip().startswith(_SSH_BEGIN):
        return _verify_ssh(what, payload, signature, trusted)
    return _verify_openpgp(what, payload, signature, trusted)


def _verify_openpgp(what: str, payload: bytes, signature: bytes, trusted: TrustedSigners) -> str:
    ended = {c.fingerprint: _ended(c) for c in trusted.certificates}
    usable = [c for c in trusted.certificates if not ended[c.fingerprint]]
    try:
        PySequoiaSignatureVendor(certs=usable).verify(payload, signature)
    except BadSignature as error:
        said = " ".join(str(error).split())[:200]
        told = [f"; key {key} {why} and does not count" for key, why in ended.items() if why]
        raise SignatureRefused(
            f"the OpenPGP signature of {what} does not hold by the keys of the Secret: "
            f"{said}{''.join(told)}"
        ) from error
    return "OpenPGP"


def _ended(certificate: Any) -> str:  # noqa: ANN401 - a Sequoia certificate
    """Return why a key counts no more; the library takes it all the same."""
    if certificate.is_revoked:
        return "is revoked"
    ends = certificate.expiration
    if ends is not None and ends <= datetime.now(UTC):
        return f"expired on {ends:%Y-%m-%d}"
    return ""


def _verify_ssh(what: str, payload: bytes, signature: bytes, trusted: TrustedSigners) -> str:
    with tempfile.TemporaryDirectory(prefix="podsnap-signature-") as directory:
        signers, sig = Path(directory, "signers"), Path(directory, "signature")
        signers.write_bytes(trusted.allowed_signers)
        sig.write_bytes(signature)
        found = _ssh_keygen(["find-principals", "-f", str(signers), "-s", str(sig)], b"")
        for principal in found.splitlines():
            argv = ["verify", "-n", "git", "-I", principal, "-f", str(signers), "-s", str(sig)]
            if _ssh_keygen(argv, payload):
                return principal
    raise SignatureRefused(
        f"the SSH signature of {what} is by nobody in {ALLOWED_SIGNERS}, or not of this content; "
        "nothing of it is applied"
    )


def _ssh_keygen(arguments: list[str], payload: bytes) -> str:
    """Return what it prints, empty if it refuses."""
    try:
        done = subprocess.run(
            ["ssh-keygen", "-Y", *arguments],
            input=payload,
            capture_output=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise SignatureRefused(
            "SSH signatures need the program ssh-keygen (openssh-client) beside the controller, "
            "and it is not there"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SignatureRefused("ssh-keygen did not end; nothing is applied") from error
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def _short(name: ObjectID) -> str:
    return name.decode()[:12]
