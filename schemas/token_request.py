# SPDX-License-Identifier: Apache-2.0
"""PodSnapshotTokenRequest: an agent asks the controller for the right to use a bucket, once.

The contract names the kind and three fields; how the token is delivered is ours. The request
carries a public key of which nobody but the asking process has the other half, and the answer is
sealed to it (HPKE, RFC 9180), so that who may read the object has nothing of it. The trap: a key
that is used twice would let an old answer pass for a new one; each request has its own.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Self

from schemas.conditions import Condition, parse_conditions
from schemas.metadata import Metadata
from schemas.names import READY

# The reason of an answer that may be another one next time.
UNAVAILABLE: Final = "TokenUnavailable"


class Role(StrEnum):
    """What a bucket is used for."""

    CHECKPOINT = "checkpoint"
    RESTORE = "restore"


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A request and, once it was granted, its answer. ``public_key`` and ``sealed`` are bytes."""

    metadata: Metadata
    node_name: str
    role: Role
    snapshot_name: str
    pod_name: str = ""
    pod_uid: str = ""
    public_key: bytes = b""
    sealed: bytes = b""
    expires_at: str = ""
    conditions: Mapping[str, Condition] = field(default_factory=dict)

    @property
    def sealing_context(self) -> str:
        """What binds a sealed answer to this request and no other."""
        return f"podsnap.dev/token-request/{self.metadata.uid}"

    @property
    def is_answered(self) -> bool:
        """Whether it was granted or refused; it is never answered again."""
        return READY in self.conditions

    @classmethod
    def parse(cls, obj: Mapping[str, Any]) -> Self:
        """Read the API object; a key that is no base64 counts as none."""
        spec, status = obj["spec"], obj.get("status") or {}
        pod = spec.get("pod") or {}
        return cls(
            metadata=Metadata.parse(obj),
            node_name=spec["nodeName"],
            role=Role(spec["role"]),
            snapshot_name=spec["snapshot"]["name"],
            pod_name=pod.get("name", ""),
            pod_uid=pod.get("uid", ""),
            public_key=_bytes(spec.get("publicKey", "")),
            sealed=_bytes(status.get("sealedToken", "")),
            expires_at=status.get("expiresAt", ""),
            conditions=parse_conditions(status),
        )


@dataclass(frozen=True, slots=True)
class Sighting:
    """That the controller saw the Pod of a save alive: as whom it ran, and where.

    It stands on the PodSnapshot, so that the save of a Pod that is gone by now is still stored by
    the identity that the Pod had. ``seen_at`` is when it was last seen, a ``metav1.Time``.
    """

    service_account: str
    pod_uid: str
    node: str
    seen_at: str

    def to_annotation(self) -> str:
        """Render for ``podsnap.dev/service-account``; the parts are names, so hold no slash."""
        return f"{self.service_account}/{self.pod_uid}/{self.node}/{self.seen_at}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read what ``to_annotation`` wrote."""
        parts = text.split("/")
        return cls(*parts) if len(parts) == len(cls.__slots__) and all(parts) else None


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return b""
