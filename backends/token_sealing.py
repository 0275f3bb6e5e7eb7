# SPDX-License-Identifier: Apache-2.0
"""A few secret bytes for one reader, sealed so that they may stand in an API object.

HPKE (RFC 9180): whoever has the public key seals, and only who has the other half opens. The traps:
it says nothing about who sealed, so who may write the object has to be settled elsewhere (RBAC);
and without a context an answer could be moved from one request to another, so both sides name the
request.
"""

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


class SealError(Exception):
    """The key is none, or the bytes were not sealed to it in this context."""


class OneTimeKey:
    """A key pair for one answer; it never leaves the process."""

    def __init__(self) -> None:
        """Draw a fresh pair."""
        self._private: X25519PrivateKey | None = X25519PrivateKey.generate()
        self.public: Final = self._private.public_key().public_bytes_raw()

    def open(self, sealed: bytes, *, context: str) -> bytes:
        """Return what was sealed to this key; whatever comes out, the key is spent.

        Raises:
            SealError: the bytes were not sealed to it, or for something else, or the key is spent.
        """
        private, self._private = self._private, None
        if private is None:
            raise SealError("the key was used before; ask with a fresh one")
        try:
            return _SUITE.decrypt(sealed, private, info=context.encode())
        except (InvalidTag, ValueError) as error:
            raise SealError("the bytes were not sealed to this key for this request") from error


def seal(data: bytes, public_key: bytes, *, context: str) -> bytes:
    """Seal bytes to an X25519 key.

    Raises:
        SealError: the key is none.
    """
    try:
        key = X25519PublicKey.from_public_bytes(public_key)
        return _SUITE.encrypt(data, key, info=context.encode())
    except ValueError as error:
        raise SealError("spec.publicKey is no X25519 key (32 bytes, base64)") from error
