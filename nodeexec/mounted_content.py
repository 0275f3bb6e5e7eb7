# SPDX-License-Identifier: Apache-2.0
"""What is mounted into a Pod from Secrets and ConfigMaps, as a node can see it.

The kubelet has written the volumes before it asks for a sandbox, and the agent reads them there: no
right on Secrets is needed, and no content leaves this module, only digests.

The trap: the kubelet keeps the files current, memory keeps what the program once read. After a key
was rotated the files say "new" and the memory of every running Pod still has the old one. So what
was mounted when the sandbox was made is noted beside its bundle, and a Pod whose files are others
by now is not saved.
"""

import hashlib
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from policies.distill import content_volumes, distill
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.snapshot import SpecIdentity

CONTENT_FILE: Final = "podsnap-content"

# A Secret is at most 1 MiB; a projected volume has several.
_LIMIT_BYTES: Final = 16 << 20
_READ_BYTES: Final = 1 << 20
# The kubelet's atomic writer: names link into ..data, which links to the folder in use.
_DATA: Final = "..data"
_PLUGINS: Final = ("secret", "configMap", "projected")


class ContentError(Exception):
    """What is mounted cannot be known, or is not what the program has read; says what to do."""


@dataclass(frozen=True, slots=True)
class MountedContent:
    """Identities of this node's Pods, with the contents that their policies count."""

    kubelet_root: Path
    bundles: Path

    def identity(self, pod: Pod, policy: Policy) -> SpecIdentity:
        """Return a Pod's identity, with what is mounted now.

        Raises:
            ContentError: a volume that counts cannot be read.
        """
        contents = {
            name: self._digest(pod, name, foreign)
            for name, foreign in content_volumes(pod, policy).items()
        }
        return distill(pod, policy, contents)

    def note(self, sandbox: str, pod: Pod, policy: Policy) -> None:
        """Note what is mounted while a sandbox is being made; nothing is noted of what fails."""
        if not content_volumes(pod, policy):
            return
        try:
            identity = self.identity(pod, policy)
            path = self.bundles / sandbox / CONTENT_FILE
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(identity.hash)
        except (ContentError, OSError):
            return  # a save finds no note, and says so

    def identity_since_start(self, sandbox: str, pod: Pod, policy: Policy) -> SpecIdentity:
        """Return a Pod's identity for a save.

        Raises:
            ContentError: a volume cannot be read, or changed since the sandbox was made.
        """
        identity = self.identity(pod, policy)
        if not content_volumes(pod, policy):
            return identity
        try:
            noted = (self.bundles / sandbox / CONTENT_FILE).read_text(encoding="utf-8")
        except OSError:
            noted = ""
        if noted == identity.hash:
            return identity
        found = "have changed since it was started" if noted else "were not noted at its start"
        raise ContentError(
            f"the contents of Secrets or ConfigMaps in Pod {pod.metadata.name} {found}, and its "
            "memory may hold others than a new Pod would read; restart the Pod"
        )

    def _digest(self, pod: Pod, volume: str, foreign: Collection[str]) -> str:
        kinds = next(v for v in pod.spec["volumes"] if v["name"] == volume)
        kind = next(k for k in _PLUGINS if k in kinds)
        plugin = f"kubernetes.io~{kind.lower()}"
        path = self.kubelet_root / "pods" / pod.metadata.uid / "volumes" / plugin / volume
        digest = hashlib.sha256()
        try:
            for name, content in sorted(_files(path, foreign).items()):
                digest.update(f"{name}\n{len(content)}\n".encode())
                digest.update(content)
        except OSError as error:
            why = error.strerror or str(error)
            raise ContentError(
                f"the content of volume {volume} cannot be read on the node ({why}), and the "
                "policy's podsnap.dev/strict-identity counts it"
            ) from error
        return digest.hexdigest()


def _files(volume: Path, foreign: Collection[str]) -> Mapping[str, bytes]:
    """Return relative path and content of every file that the atomic writer published.

    Raises:
        OSError: the folder is not of that form, is too large, or cannot be read.
    """
    folder = str((volume / _DATA).readlink())
    if "/" in folder or not folder.startswith(".."):
        raise OSError(f"{_DATA} links to {folder}")
    root = os.open(volume / folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        left_bytes, found = _LIMIT_BYTES, {}
        for path, directory in _paths(root):
            if str(path) not in foreign:
                found[str(path)] = _content(path.name, directory, left_bytes)
                left_bytes -= len(found[str(path)])
        return found
    finally:
        os.close(root)


def _paths(root: int) -> Iterator[tuple[Path, int]]:
    """Yield each file's path below a folder, with the descriptor of the folder it is in."""

    def fail(error: OSError) -> None:
        raise error

    for folder, _, names, directory in os.fwalk(".", onerror=fail, dir_fd=root):
        yield from ((Path(folder, name), directory) for name in names)


def _content(name: str, directory: int, limit_bytes: int) -> bytes:
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    with open(file, "rb", buffering=0) as opened:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_size > limit_bytes:
            raise OSError(f"{name} is no file of at most {_LIMIT_BYTES >> 20} MiB in all")
        content = b""
        while chunk := opened.read(_READ_BYTES):
            content += chunk
            if len(content) > limit_bytes:
                raise OSError(f"{name} grows while it is read")
        return content
