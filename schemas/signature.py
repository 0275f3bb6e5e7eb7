# SPDX-License-Identifier: Apache-2.0
"""``manifest.json.sig``: who vouches for a snapshot.

The digest in the PodSnapshot tells that a manifest is the recorded one; a signature tells that one
of the cluster's own agents wrote it, whoever may write to the bucket or the PodSnapshot's status.
"""

import base64
import json
from dataclasses import dataclass
from typing import Final, Self

_ALGORITHM: Final = "ed25519"


class SignatureError(ValueError):
    """The text is no signature that this version can use."""


@dataclass(frozen=True, slots=True)
class Signature:
    """An Ed25519 signature of the manifest's bytes; ``key_id`` tells of which key."""

    key_id: str
    value: bytes

    def to_bytes(self) -> bytes:
        """Render."""
        tree = {
            "algorithm": _ALGORITHM,
            "keyID": self.key_id,
            "signature": base64.b64encode(self.value).decode(),
        }
        return json.dumps(tree, sort_keys=True).encode() + b"\n"

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Read what ``to_bytes`` wrote.

        Raises:
            SignatureError: it is none.
        """
        try:
            tree = json.loads(text)
            if tree["algorithm"] != _ALGORITHM:
                raise SignatureError(f"a signature by {tree['algorithm']!r} is not known here")
            return cls(
                key_id=str(tree["keyID"]),
                value=base64.b64decode(tree["signature"], validate=True),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if isinstance(error, SignatureError):
                raise
            raise SignatureError("the signature cannot be read") from error
