# SPDX-License-Identifier: Apache-2.0
"""An OCI image layout in one tar file, made from a directory of files.

The concept: a layer is the tar of a directory tree in which nothing depends on who built it or
when; the configuration and the manifest are canonical JSON. The same tree therefore always has the
same image ID, which is what the compatibility of a snapshot hangs on. Layers are not compressed:
the archive never leaves the machine, and the output of zlib differs between its versions.

The trap: a tree on disk carries the builder's umask, owner, times and directory order. All four are
replaced here; set-user-ID bits are dropped as well, since nothing in a sandbox needs them.
"""

import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

_LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"
_CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
_MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
_INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
_COPY_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Layer:
    """A file that is one uncompressed layer; its digest is therefore its diff ID as well."""

    path: Path
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Process:
    """What a container of the image runs when its Pod does not say otherwise."""

    entrypoint: Sequence[str]
    env: Mapping[str, str]
    cwd: str


def write_layer(root: Path, destination: Path) -> Layer:
    """Write the tree below ``root`` as a layer to ``destination``."""
    with destination.open("wb") as out:
        _write_tree(root, out)
        _sync(out)
    digest, size_bytes = _digest_of(destination)
    return Layer(destination, digest, size_bytes)


def write_archive(destination: Path, *, ref: str, layers: Sequence[Layer], process: Process) -> str:
    """Write the archive that ``ctr images import`` takes, and return the image ID.

    The image ID is the digest of the configuration (``sha256:...``), the value that CRI reports.
    """
    config = _json(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Entrypoint": list(process.entrypoint),
                "Env": [f"{name}={value}" for name, value in sorted(process.env.items())],
                "WorkingDir": process.cwd,
            },
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST_TYPE,
            "config": _descriptor(_CONFIG_TYPE, config),
            "layers": [
                {"mediaType": _LAYER_TYPE, "digest": layer.digest, "size": layer.size_bytes}
                for layer in layers
            ],
        }
    )
    named = {
        "io.containerd.image.name": ref,
        "org.opencontainers.image.ref.name": ref.rpartition(":")[2],
    }
    index = _json(
        {
            "schemaVersion": 2,
            "mediaType": _INDEX_TYPE,
            "manifests": [_descriptor(_MANIFEST_TYPE, manifest) | {"annotations": named}],
        }
    )
    with destination.open("wb") as out:
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
            _add_bytes(archive, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
            _add_bytes(archive, "index.json", index)
            for blob in (manifest, config):
                _add_bytes(archive, f"blobs/sha256/{_sha256(blob)}", blob)
            for layer in _distinct(layers):
                _add_layer(archive, layer)
        _sync(out)
    return f"sha256:{_sha256(config)}"


def _write_tree(root: Path, out: BinaryIO) -> None:
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for directory, names, files in os.walk(root):
            names.sort()
            # os.walk lists links to directories among the directories, but does not enter them.
            links = [name for name in names if (Path(directory) / name).is_symlink()]
            here = Path(directory)
            if here != root:
                tar.add(here, _arcname(root, here), recursive=False, filter=_anonymous)
            for name in sorted([*files, *links]):
                path = here / name
                tar.add(path, _arcname(root, path), recursive=False, filter=_anonymous)


def _arcname(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    if member.issym():
        member.mode = 0o777
    elif member.isdir():
        member.mode = 0o1777 if member.mode & stat.S_ISVTX else 0o755
    else:
        member.mode = 0o755 if member.mode & stat.S_IXUSR else 0o644
    return member


def _distinct(layers: Iterable[Layer]) -> Iterable[Layer]:
    return {layer.digest: layer for layer in layers}.values()


def _add_bytes(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _add_layer(archive: tarfile.TarFile, layer: Layer) -> None:
    member = tarfile.TarInfo(f"blobs/sha256/{layer.digest.removeprefix('sha256:')}")
    member.size = layer.size_bytes
    with layer.path.open("rb") as content:
        archive.addfile(member, content)


def _descriptor(media_type: str, content: bytes) -> dict[str, object]:
    return {
        "mediaType": media_type,
        "digest": f"sha256:{_sha256(content)}",
        "size": len(content),
    }


def _digest_of(path: Path) -> tuple[str, int]:
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("rb") as content:
        while chunk := content.read(_COPY_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return f"sha256:{digest.hexdigest()}", size_bytes


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _sync(out: BinaryIO) -> None:
    """Make the bytes durable before a rename makes them visible."""
    out.flush()
    os.fsync(out.fileno())
