# SPDX-License-Identifier: Apache-2.0
"""``manifest.json``: what makes the parts in a bucket one snapshot.

It is written last. No manifest, no snapshot; and a part whose length, digest or generation is not
the one written here does not belong to it. Digests are per chunk: whoever streams a part, or reads
a page in the middle of it, verifies a chunk before one byte of it is used.

A part may be stored in chunks of another form (compressed, without those that are all zero); its
digests are always of the bytes that runsc wrote and will read.
"""

import base64
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from schemas.encoding import Encoding
from schemas.snapshot import Compatibility, SpecIdentity

FORMAT: Final = 2
# What one page fault may cost, against what a manifest of a large image weighs: 1 MiB each.
CHUNK_BYTES: Final = 1 << 20
DIGEST_BYTES: Final = 32
# What zstd makes of a chunk that does not shrink at all.
ENCODED_LIMIT_BYTES: Final = CHUNK_BYTES + (CHUNK_BYTES >> 8)
MANIFEST_NAME: Final = "manifest.json"
# Beside the manifest and written before it, if the cluster signs (schemas.signature).
SIGNATURE_NAME: Final = f"{MANIFEST_NAME}.sig"


# What runsc writes, a container's tar file, and ours: nothing else becomes a file on a node.
_PART_NAME: Final = re.compile(r"[a-z0-9_]{1,63}\.img|[a-z0-9][a-z0-9.-]{0,62}\.tar|metadata")


class ManifestError(ValueError):
    """The text is no manifest that this version can use."""


class NewerFormatError(ManifestError):
    """A later version of podsnap wrote it: nothing is wrong with the snapshot."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The object that holds an encoded part: where each chunk lies in it, one after the other."""

    encoding: Encoding
    crc32c: str
    chunk_lengths_bytes: tuple[int, ...]

    @property
    def length_bytes(self) -> int:
        """Size of the object."""
        return sum(self.chunk_lengths_bytes)

    def to_object(self) -> dict[str, Any]:
        """Render."""
        return {
            "encoding": self.encoding.name.lower(),
            "crc32c": self.crc32c,
            "chunkLengths": list(self.chunk_lengths_bytes),
        }

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """Read what ``to_object`` wrote.

        Raises:
            ValueError: a chunk has no length that an encoded one may have.
        """
        lengths = tuple(raw["chunkLengths"])
        if not all(_is_count(n) and n <= ENCODED_LIMIT_BYTES for n in lengths):
            raise ValueError("an encoded chunk has a length that none can have")
        return cls(
            encoding=Encoding[raw["encoding"].upper()],
            crc32c=raw["crc32c"],
            chunk_lengths_bytes=lengths,
        )


@dataclass(frozen=True, slots=True)
class Part:
    """One file of the image.

    ``crc32c`` is base64, big-endian, as Cloud Storage has it; ``digests`` the BLAKE3 digests of all
    chunks, one after the other. ``stored`` is ``None`` if the object is the file, byte by byte.
    """

    name: str
    length_bytes: int
    crc32c: str
    digests: bytes
    generation: int = 0
    stored: Stored | None = None

    @property
    def object_name(self) -> str:
        """The name of its object below the snapshot's folder."""
        return self.name + (self.stored.encoding if self.stored else Encoding.RAW)

    @property
    def stored_bytes(self) -> int:
        """The size of its object."""
        return self.stored.length_bytes if self.stored else self.length_bytes

    @property
    def stored_crc32c(self) -> str:
        """The checksum of its object."""
        return self.stored.crc32c if self.stored else self.crc32c

    @property
    def chunk_count(self) -> int:
        """How many chunks it has; an empty file has one, of no bytes."""
        return len(self.digests) // DIGEST_BYTES

    def digest_of(self, index: int) -> bytes:
        """Return the BLAKE3 digest of a chunk."""
        return self.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]

    def chunk_range(self, index: int) -> tuple[int, int]:
        """Return where a chunk begins and ends in the file."""
        start = index * CHUNK_BYTES
        return start, min(start + CHUNK_BYTES, self.length_bytes)

    def stored_offsets(self) -> Sequence[int]:
        """Return where each chunk begins in the object, and where the last one ends."""
        if self.stored is None:
            starts = range(0, self.chunk_count * CHUNK_BYTES, CHUNK_BYTES)
            return [*starts, self.length_bytes]
        return list(itertools.accumulate(self.stored.chunk_lengths_bytes, initial=0))

    def to_object(self) -> dict[str, Any]:
        """Render."""
        rendered: dict[str, Any] = {
            "name": self.name,
            "length": self.length_bytes,
            "crc32c": self.crc32c,
            "blake3": base64.b64encode(self.digests).decode(),
            "generation": self.generation,
        }
        if self.stored is not None:
            rendered["stored"] = self.stored.to_object()
        return rendered

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """Read what ``to_object`` wrote.

        Raises:
            ValueError: it names no file of an image, or its digests are not of so many bytes.
        """
        stored = raw.get("stored")
        if not _PART_NAME.fullmatch(raw["name"]):
            raise ValueError(f"{raw['name']!r} is no name of a part")
        if not (_is_count(raw["length"]) and _is_count(raw.get("generation", 0))):
            raise ValueError(f"part {raw['name']} has a length or a generation that is none")
        part = cls(
            name=raw["name"],
            length_bytes=raw["length"],
            crc32c=raw["crc32c"],
            digests=base64.b64decode(raw["blake3"], validate=True),
            generation=raw.get("generation", 0),
            stored=Stored.parse(stored) if stored else None,
        )
        chunks = max(-(-part.length_bytes // CHUNK_BYTES), 1)
        lengths = part.stored.chunk_lengths_bytes if part.stored else ()
        if len(part.digests) != chunks * DIGEST_BYTES or (part.stored and len(lengths) != chunks):
            raise ValueError(f"part {part.name} of {part.length_bytes} bytes has {chunks} chunks")
        return part


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
    policy_name: str = ""
    group_labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Sum of the files."""
        return sum(p.length_bytes for p in self.parts)

    @property
    def stored_bytes(self) -> int:
        """Sum of the objects, which is what a fetch moves."""
        return sum(p.stored_bytes for p in self.parts)

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
                "policy": self.policy_name,
                "groupLabels": dict(self.group_labels),
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
            NewerFormatError: a later version of podsnap wrote it.
            ManifestError: no JSON, another format, or a field is missing.
        """
        try:
            tree = json.loads(text)
            if _is_count(tree["format"]) and tree["format"] > FORMAT:
                raise NewerFormatError(
                    f"the manifest has format {tree['format']}, this version reads {FORMAT}; it is "
                    "of a later version of podsnap: update this one"
                )
            if tree["format"] != FORMAT or tree["chunkBytes"] != CHUNK_BYTES:
                raise ManifestError(
                    f"the manifest has format {tree['format']}, this version reads {FORMAT}; "
                    "save the Pod anew"
                )
            snapshot = tree["snapshot"]
            parts = tuple(map(Part.parse, tree["parts"]))
            if not parts or len({part.name for part in parts}) < len(parts):
                raise ManifestError("the manifest has no parts, or two of one name")
            return cls(
                snapshot_uid=snapshot["uid"],
                snapshot_name=snapshot["name"],
                namespace=snapshot["namespace"],
                cluster_id=snapshot["cluster"],
                attempt=snapshot["attempt"],
                parts=parts,
                identity=SpecIdentity.parse(tree["identity"]),
                compatibility=Compatibility.parse(tree["compatibility"]),
                image_ids=tree["imageIDs"],
                origin_node=tree["origin"]["node"],
                origin_pod=tree["origin"]["pod"],
                git_revision=tree.get("gitRevision", ""),
                trace_id=tree.get("traceID", ""),
                policy_name=str(snapshot.get("policy", "")),
                group_labels={str(k): str(v) for k, v in snapshot.get("groupLabels", {}).items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, ManifestError):
                raise
            raise ManifestError(f"the manifest cannot be read ({error!r})") from error


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def digest(manifest: bytes) -> str:
    """Return the digest by which the PodSnapshot pins its manifest."""
    return "sha256:" + hashlib.sha256(manifest).hexdigest()
