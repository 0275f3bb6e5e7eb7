# SPDX-License-Identifier: Apache-2.0
"""Signs manifests with the cluster's key, and tells whether one is trusted here.

The keys are in one Secret: ``signing.pem`` signs, and its public half is trusted together with
every ``*.pub``, so that what another cluster or an older key signed is good until its file is taken
away. Without the Secret nothing is signed.

The trap: no answer from the API server, or a right that is missing, is not "no key". A save waits
for it, and a restore that needs a signature does not happen. Nor are known keys thrown away because
the Secret is gone for a moment: who rotates them by deleting and creating does not stop to sign.
"""

import base64
import binascii
import hashlib
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from backends.clock import Clock
from backends.kube.client import KubeClient, Resource
from backends.kube.errors import ApiError, NotFound
from schemas.manifest import MANIFEST_NAME, SIGNATURE_NAME, digest
from schemas.names import SYSTEM_NAMESPACE
from schemas.signature import Signature, SignatureError

log = logging.getLogger(__name__)

SECRETS: Final = Resource("", "v1", "secrets", "Secret")
SIGNING_SECRET: Final = "podsnap-signing"  # noqa: S105 - its name, not what it holds
PRIVATE_KEY: Final = "signing.pem"
PUBLIC_SUFFIX: Final = ".pub"
_FRESH_S: Final = 60.0
# How long an answer that is none is remembered, and how long a Secret must be gone.
_FAILED_S: Final = 5.0
_GONE_S: Final = 30.0
_WHERE: Final = f"Secret {SYSTEM_NAMESPACE}/{SIGNING_SECRET}"


class SigningError(Exception):
    """The cluster's keys are none; the text says which and what to do."""


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """The keys of a cluster: at most one that signs, and by their IDs those that are trusted."""

    private: Ed25519PrivateKey | None = None
    trusted: Mapping[str, Ed25519PublicKey] = field(default_factory=dict)

    @classmethod
    def parse(cls, secret: Mapping[str, Any]) -> Self:
        """Read a Secret as the API has it.

        Raises:
            SigningError: one of its files holds no Ed25519 key.
        """
        private = None
        public = []
        for name, text in sorted((secret.get("data") or {}).items()):
            try:
                pem = base64.b64decode(text, validate=True)
                if name == PRIVATE_KEY:
                    private = _private(pem)
                    public.append(private.public_key())
                elif name.endswith(PUBLIC_SUFFIX):
                    public.append(_public(pem))
            except (ValueError, TypeError, UnsupportedAlgorithm, binascii.Error) as error:
                raise SigningError(
                    f"{name} in {_WHERE} holds no Ed25519 key in PEM; make one as "
                    "docs/integrity.md says"
                ) from error
        return cls(private, {key_id(key): key for key in public})

    def sign(self, manifest: bytes) -> bytes | None:
        """Return the text of ``manifest.json.sig``, ``None`` if this cluster does not sign."""
        if self.private is None:
            return None
        signed = Signature(key_id(self.private.public_key()), self.private.sign(manifest))
        return signed.to_bytes()

    def refusal(self, manifest: bytes, signature: bytes | None) -> str:
        """Return why a manifest is not trusted, nothing if it is."""
        if signature is None:
            return "its manifest is not signed; save the Pod anew in a cluster that signs"
        try:
            found = Signature.parse(signature)
        except SignatureError as error:
            return f"{error}; save the Pod anew"
        key = self.trusted.get(found.key_id)
        if key is None:
            return (
                f"its manifest is signed with key {found.key_id}, which is not trusted here; put "
                f"the public key into {_WHERE} if it should be"
            )
        try:
            key.verify(found.value, manifest)
        except InvalidSignature:
            return "its manifest is not what was signed; find out who wrote to the bucket"
        return ""


class ManifestSigning:
    """The cluster's keys, as the API server has them. Safe for many threads."""

    def __init__(self, client: KubeClient, clock: Clock) -> None:
        """Use the agent's own identity; nothing is asked yet."""
        self._client = client
        self._clock = clock
        self._reading = threading.Lock()
        self._keys: SigningKeys | None = None
        self._error: ApiError | SigningError | None = None
        self._next_s = 0.0
        self._gone_since_s: float | None = None

    def sign(self, manifest: bytes) -> bytes | None:
        """Return the text of ``manifest.json.sig``, ``None`` if this cluster does not sign.

        Raises:
            ApiError: the API server does not say whether it does; try again.
            SigningError: the cluster's key is none.
        """
        return self.keys().sign(manifest)

    def refusal(self, image: Path, manifest_digest: str) -> str:
        """Return why an image on this node is not trusted, nothing if it is."""
        try:
            manifest = (image / MANIFEST_NAME).read_bytes()
            file = image / SIGNATURE_NAME
            signature = file.read_bytes() if file.exists() else None
        except OSError as error:
            return f"its manifest cannot be read on this node ({error.strerror})"
        if digest(manifest) != manifest_digest:
            return "its manifest on this node is not the one recorded"
        try:
            return self.keys().refusal(manifest, signature)
        except (ApiError, SigningError) as error:
            return f"it cannot be told whether its manifest is trusted: {error}"

    def keys(self) -> SigningKeys:
        """Return the keys, at most a minute old as long as the API server answers.

        Who finds them old asks; the others use those that are known, and wait only if none are.

        Raises:
            ApiError: they were never read, and the API server does not tell them.
            SigningError: one of them is none.
        """
        if self._is_due() and self._reading.acquire(blocking=self._keys is None):
            try:
                if self._is_due():
                    self._read()
            finally:
                self._reading.release()
        error, keys = self._error, self._keys
        if error is not None:
            raise error.with_traceback(None)
        assert keys is not None  # noqa: S101 - else there is an error
        return keys

    def _is_due(self) -> bool:
        return self._clock.monotonic_s() >= self._next_s

    def _read(self) -> None:
        """Ask, and note what came of it."""
        pause_s = _FAILED_S
        try:
            self._keys, self._error = self._asked(), None
            pause_s = _FAILED_S if self._gone_since_s is not None else _FRESH_S
        except SigningError as error:
            self._error = error
        except ApiError as error:
            if self._keys is None:
                self._error = error
            log.warning("%s cannot be read: %s", _WHERE, error)
        self._next_s = self._clock.monotonic_s() + pause_s

    def _asked(self) -> SigningKeys:
        try:
            secret = self._client.get(SECRETS, SIGNING_SECRET, namespace=SYSTEM_NAMESPACE)
        except NotFound:
            return self._without_secret()
        self._gone_since_s = None
        return SigningKeys.parse(secret)

    def _without_secret(self) -> SigningKeys:
        """Return no keys; or those that are known, until the Secret is gone for a while."""
        now_s = self._clock.monotonic_s()
        if self._gone_since_s is None:
            self._gone_since_s = now_s
        if self._keys is not None and self._keys.trusted:
            if now_s - self._gone_since_s < _GONE_S:
                return self._keys
            log.warning("%s is gone: nothing is signed or trusted any more", _WHERE)
        self._gone_since_s = None
        return SigningKeys()


def key_id(key: Ed25519PublicKey) -> str:
    """Return the name of a key: the beginning of the SHA-256 of its DER form, as OpenSSL has it."""
    form = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(form).hexdigest()[:16]


def _private(pem: bytes) -> Ed25519PrivateKey:
    key = load_pem_private_key(pem, None)
    if not isinstance(key, Ed25519PrivateKey):
        raise TypeError("another kind of key")
    return key


def _public(pem: bytes) -> Ed25519PublicKey:
    key = load_pem_public_key(pem)
    if not isinstance(key, Ed25519PublicKey):
        raise TypeError("another kind of key")
    return key
