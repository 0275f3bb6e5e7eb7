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
from typing import Any, Self

from schemas.conditions import Condition, parse_conditions
from schemas.metadata import Metadata


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


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return b""
