# SPDX-License-Identifier: Apache-2.0
"""``manifest.json``: what makes the parts in a bucket one snapshot.

It is written last. No manifest, no snapshot; and a part whose length, digest or generation is not
the one written here does not belong to it. Digests are per chunk, so that damage can be told to the
chunk and a later reader can verify what it streams.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from schemas.snapshot import Compatibility, SpecIdentity

FORMAT: Final = 1
CHUNK_BYTES: Final = 32 << 20
MANIFEST_NAME: Final = "manifest.json"


class ManifestError(ValueError):
    """The text is no manifest that this version can use."""


@dataclass(frozen=True, slots=True)
class Part:
    """One file: length, CRC32C (base64, big-endian, as Cloud Storage has it), BLAKE3 per chunk."""

    name: str
    length_bytes: int
    crc32c: str
    blake3: tuple[str, ...]
    generation: int = 0

    def to_object(self) -> dict[str, Any]:
        """Render."""
        return {
            "name": self.name,
            "length": self.length_bytes,
            "crc32c": self.crc32c,
            "blake3": list(self.blake3),
            "generation": self.generation,
        }

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """Read what ``to_object`` wrote."""
        return cls(
            name=raw["name"],
            length_bytes=raw["length"],
            crc32c=raw["crc32c"],
            blake3=tuple(raw["blake3"]),
            generation=raw.get("generation", 0),
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole snapshot. ``image_ids`` maps each container to its CRI image ID."""

    snapshot_uid: str
    snapshot_name: str
    namespace: str
    cluster_id: str
    attempt: int
    parts: tuple[Part, ...]
    identity: SpecIdentity
    compatibility: Compatibility
    image_ids: Mapping[str, str] = field(default_factory=dict)
    origin_node: str = ""
    origin_pod: str = ""
    git_revision: str = ""
    trace_id: str = ""

    @property
    def size_bytes(self) -> int:
        """Sum of the parts."""
        return sum(p.length_bytes for p in self.parts)

    def to_bytes(self) -> bytes:
        """Render; equal manifests give equal bytes."""
        tree = {
            "format": FORMAT,
            "chunkBytes": CHUNK_BYTES,
            "snapshot": {
                "uid": self.snapshot_uid,
                "name": self.snapshot_name,
                "namespace": self.namespace,
                "cluster": self.cluster_id,
                "attempt": self.attempt,
            },
            "parts": [p.to_object() for p in self.parts],
            "identity": self.identity.to_object(),
            "compatibility": self.compatibility.to_object(),
            "imageIDs": dict(self.image_ids),
            "origin": {"node": self.origin_node, "pod": self.origin_pod},
            "gitRevision": self.git_revision,
            "traceID": self.trace_id,
        }
        return json.dumps(tree, sort_keys=True, indent=1).encode() + b"\n"

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Read a manifest.

        Raises:
            ManifestError: no JSON, another format, or a field is missing.
        """
        try:
            tree = json.loads(text)
            if tree["format"] != FORMAT or tree["chunkBytes"] != CHUNK_BYTES:
                raise ManifestError(
                    f"the manifest has format {tree['format']}, this version reads {FORMAT}; "
                    "save the Pod anew"
                )
            snapshot = tree["snapshot"]
            return cls(
                snapshot_uid=snapshot["uid"],
                snapshot_name=snapshot["name"],
                namespace=snapshot["namespace"],
                cluster_id=snapshot["cluster"],
                attempt=snapshot["attempt"],
                parts=tuple(map(Part.parse, tree["parts"])),
                identity=SpecIdentity.parse(tree["identity"]),
                compatibility=Compatibility.parse(tree["compatibility"]),
                image_ids=tree["imageIDs"],
                origin_node=tree["origin"]["node"],
                origin_pod=tree["origin"]["pod"],
                git_revision=tree.get("gitRevision", ""),
                trace_id=tree.get("traceID", ""),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, ManifestError):
                raise
            raise ManifestError(f"the manifest cannot be read ({error!r})") from error


def digest(manifest: bytes) -> str:
    """Return the digest by which the PodSnapshot pins its manifest."""
    return "sha256:" + hashlib.sha256(manifest).hexdigest()
