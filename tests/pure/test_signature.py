# SPDX-License-Identifier: Apache-2.0
"""Who vouches for a manifest: nothing but the cluster's own keys, and only for its very bytes."""

import base64
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from stepped_clock import SteppedClock

from backends.kube.client import KubeClient
from backends.kube.errors import ApiError, Forbidden, NotFound, ServerUnavailable
from nodeexec.signing import ManifestSigning, SigningError, SigningKeys, key_id
from schemas.manifest import MANIFEST_NAME, SIGNATURE_NAME, digest
from schemas.signature import Signature, SignatureError

MANIFEST = b'{"format": 2}\n'
OURS, OTHERS = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()


def private_pem(key: Any) -> bytes:  # noqa: ANN401 - of any kind
    """Return a private key as OpenSSL writes it."""
    return cast("bytes", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def public_pem(key: Any) -> bytes:  # noqa: ANN401 - of any kind
    """Return its public half."""
    form = PublicFormat.SubjectPublicKeyInfo
    return cast("bytes", key.public_key().public_bytes(Encoding.PEM, form))


def secret(files: dict[str, bytes]) -> dict[str, Any]:
    """Return a Secret as the API has it."""
    return {"data": {name: base64.b64encode(text).decode() for name, text in files.items()}}


SIGNS = SigningKeys.parse(secret({"signing.pem": private_pem(OURS)}))
ELSEWHERE = SigningKeys.parse(secret({"signing.pem": private_pem(OTHERS)}))


def signed(keys: SigningKeys, manifest: bytes = MANIFEST) -> bytes:
    """Return a signature's text."""
    text = keys.sign(manifest)
    assert text is not None
    return text


def test_a_signature_survives_being_written() -> None:
    """And says of which key it is, as openssl computes the name."""
    text = signed(SIGNS)
    found = Signature.parse(text)
    assert found.to_bytes() == text
    assert found.key_id == key_id(OURS.public_key())
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-outform", "DER"],
        input=public_pem(OURS),
        capture_output=True,
        check=True,
    ).stdout
    shown = subprocess.run(["sha256sum"], input=der, capture_output=True, check=True).stdout
    assert shown.decode().startswith(found.key_id)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"{}",
        b'{"algorithm": "rsa", "keyID": "k", "signature": ""}',
        b'{"algorithm": "ed25519", "keyID": "k", "signature": "!"}',
        b'{"algorithm": "ed25519", "keyID": "k", "signature": 5}',
        pytest.param(b"[" * 500_000, id="deep"),
    ],
)
def test_what_is_no_signature_is_told(text: bytes) -> None:
    """Never with another exception, and never trusted."""
    with pytest.raises(SignatureError):
        Signature.parse(text)
    assert "save the Pod anew" in SIGNS.refusal(MANIFEST, text)


BOTH = SigningKeys.parse(
    secret({"signing.pem": private_pem(OURS), "old.pub": public_pem(OTHERS), "note": b"x"})
)
VERIFIES = SigningKeys.parse(secret({"signing.pub": public_pem(OURS)}))
NONE = SigningKeys.parse({})
FORGED = Signature(key_id(OURS.public_key()), OTHERS.sign(MANIFEST)).to_bytes()
SHORT = Signature(key_id(OURS.public_key()), b"short").to_bytes()

REFUSALS: dict[str, tuple[SigningKeys, bytes, bytes | None, str]] = {
    "the cluster's own": (SIGNS, MANIFEST, signed(SIGNS), ""),
    "the cluster's own, by its public key alone": (VERIFIES, MANIFEST, signed(SIGNS), ""),
    "an older key's": (BOTH, MANIFEST, signed(ELSEWHERE), ""),
    "none": (SIGNS, MANIFEST, None, "is not signed"),
    "a stranger's": (SIGNS, MANIFEST, signed(ELSEWHERE), "which is not trusted here"),
    "one without any key here": (NONE, MANIFEST, signed(SIGNS), "which is not trusted here"),
    "of another manifest": (SIGNS, MANIFEST + b" ", signed(SIGNS), "is not what was signed"),
    "forged under a trusted name": (SIGNS, MANIFEST, FORGED, "is not what was signed"),
    "too short": (SIGNS, MANIFEST, SHORT, "is not what was signed"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_manifest_is_trusted_by_its_signature(what: str) -> None:
    """And a refusal says why."""
    keys, manifest, signature, expected = REFUSALS[what]
    refusal = keys.refusal(manifest, signature)
    assert expected in refusal
    assert bool(refusal) == bool(expected)


def test_a_cluster_without_a_private_key_does_not_sign() -> None:
    """It may trust what others signed."""
    assert VERIFIES.sign(MANIFEST) is None
    assert NONE.sign(MANIFEST) is None


@pytest.mark.parametrize(
    "files",
    [
        {"signing.pem": b"no key"},
        {"signing.pem": public_pem(OURS)},
        {"signing.pem": private_pem(generate_private_key(SECP256R1()))},
        {"old.pub": private_pem(OURS)},
        {"old.pub": public_pem(generate_private_key(SECP256R1()))},
    ],
    ids=["words", "the public half", "another kind", "the private half", "another public kind"],
)
def test_a_wrong_key_is_named(files: dict[str, bytes]) -> None:
    """Nothing is signed with half of what was meant."""
    (name,) = files
    with pytest.raises(SigningError, match=rf"{name} in Secret podsnap-system/podsnap-signing"):
        SigningKeys.parse(secret(files))


class _Api:
    """An API server with one Secret, or an error."""

    def __init__(self, answer: dict[str, Any] | ApiError) -> None:
        self.answer = answer
        self.asked = 0
        self.on_get: Callable[[], object] = lambda: None

    def get(self, *_: object, **__: object) -> dict[str, Any]:
        self.asked += 1
        self.on_get()
        if isinstance(self.answer, ApiError):
            raise self.answer
        return self.answer


def signing(api: _Api) -> tuple[ManifestSigning, SteppedClock]:
    """Return what an agent has."""
    clock = SteppedClock()
    return ManifestSigning(cast("KubeClient", api), clock), clock


def test_keys_are_read_again_after_a_minute() -> None:
    """A rotation needs no restart; an API server that is away does not take the keys away."""
    api = _Api(secret({"signing.pem": private_pem(OURS)}))
    here, clock = signing(api)
    assert here.sign(MANIFEST) == here.sign(MANIFEST) == signed(SIGNS)
    assert api.asked == 1
    api.answer = secret({"signing.pem": private_pem(OTHERS)})
    clock.step(61)
    assert here.sign(MANIFEST) == signed(ELSEWHERE)
    api.answer = ServerUnavailable("away")
    clock.step(61)
    assert here.sign(MANIFEST) == signed(ELSEWHERE)


def test_keys_that_are_gone_for_a_moment_are_kept() -> None:
    """A Secret that is deleted and created anew is a rotation; one that stays away is the end."""
    api = _Api(secret({"signing.pem": private_pem(OURS)}))
    here, clock = signing(api)
    here.sign(MANIFEST)
    for error in (Forbidden("no"), NotFound("no such Secret")):
        api.answer = error
        clock.step(61)
        assert here.sign(MANIFEST) == signed(SIGNS)
    api.answer = secret({"signing.pem": private_pem(OTHERS)})
    clock.step(6)
    assert here.sign(MANIFEST) == signed(ELSEWHERE)
    api.answer = NotFound("no such Secret")
    clock.step(61)
    assert here.sign(MANIFEST) == signed(ELSEWHERE)
    clock.step(31)
    assert here.sign(MANIFEST) is None


def test_without_the_secret_nothing_is_signed_or_trusted(tmp_path: Path) -> None:
    """Most clusters have none."""
    here, _ = signing(_Api(NotFound("no such Secret")))
    assert here.sign(MANIFEST) is None
    (tmp_path / MANIFEST_NAME).write_bytes(MANIFEST)
    (tmp_path / SIGNATURE_NAME).write_bytes(signed(SIGNS))
    assert "not trusted here" in here.refusal(tmp_path, digest(MANIFEST))


@pytest.mark.parametrize("error", [ServerUnavailable("it is away"), Forbidden("it is away")])
def test_no_answer_is_not_no_key(error: ApiError, tmp_path: Path) -> None:
    """A save waits for it; a restore that needs a signature does not happen."""
    api = _Api(error)
    here, clock = signing(api)
    with pytest.raises(type(error)):
        here.sign(MANIFEST)
    (tmp_path / MANIFEST_NAME).write_bytes(MANIFEST)
    assert "it is away" in here.refusal(tmp_path, digest(MANIFEST))
    assert api.asked == 1  # not again for everybody who wants to know
    api.answer = secret({"signing.pem": private_pem(OURS)})
    clock.step(6)
    assert here.sign(MANIFEST) == signed(SIGNS)


def test_nobody_who_knows_the_keys_waits_for_an_api_server_that_hangs() -> None:
    """One asks, the others use what is known."""
    api = _Api(secret({"signing.pem": private_pem(OURS)}))
    here, clock = signing(api)
    here.sign(MANIFEST)
    clock.step(61)
    meanwhile: list[bytes | None] = []
    api.on_get = lambda: meanwhile.append(_in_another_thread(lambda: here.sign(MANIFEST)))
    here.sign(MANIFEST)
    assert meanwhile == [signed(SIGNS)]
    assert api.asked == 2


def _in_another_thread(do: Callable[[], bytes | None]) -> bytes | None:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(do).result(timeout=10)


def test_an_image_on_the_node_is_trusted_by_the_files_beside_it(tmp_path: Path) -> None:
    """The manifest there must be the recorded one, too."""
    here, _ = signing(_Api(secret({"signing.pem": private_pem(OURS)})))
    assert "cannot be read" in here.refusal(tmp_path, digest(MANIFEST))
    (tmp_path / MANIFEST_NAME).write_bytes(MANIFEST)
    assert "is not signed" in here.refusal(tmp_path, digest(MANIFEST))
    (tmp_path / SIGNATURE_NAME).write_bytes(signed(SIGNS))
    assert here.refusal(tmp_path, digest(MANIFEST)) == ""
    assert "not the one recorded" in here.refusal(tmp_path, digest(MANIFEST + b" "))
