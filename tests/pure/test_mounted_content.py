# SPDX-License-Identifier: Apache-2.0
"""What a node finds mounted from Secrets and ConfigMaps, laid out as the kubelet does it."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from api_objects import pod, policy

from nodeexec.mounted_content import ContentError, MountedContent
from schemas.names import STRICT_IDENTITY_ANNOTATION
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.policy_options import PolicyOptions

STRICT: Policy = replace(
    policy(), options=PolicyOptions.parse({STRICT_IDENTITY_ANNOTATION: "secrets,configmaps"})
)
SOURCES = [{"secret": {"name": "key"}}, {"serviceAccountToken": {"path": "token"}}]
VOLUMES = [
    {"name": "key", "secret": {"secretName": "key"}},
    {"name": "settings", "configMap": {"name": "settings"}},
    {"name": "both", "projected": {"sources": SOURCES}},
    {"name": "scratch", "emptyDir": {}},
]
ASKED = pod(volumes=VOLUMES)
SANDBOX = "sandbox-1"


class Node:
    """A node's folders, with volumes as its kubelet writes them."""

    def __init__(self, root: Path) -> None:
        """Mount every volume of the Pod."""
        self.root = root
        (root / "bundles" / SANDBOX).mkdir(parents=True)
        self.content = MountedContent(root / "kubelet", root / "bundles")
        self.write("secret", "key", {"password": b"one", "deep/er": b"two"})
        self.write("configmap", "settings", {"mode": b"fast"})
        self.write("projected", "both", {"password": b"one", "token": b"first"})

    def volume(self, plugin: str, name: str) -> Path:
        """Return a volume's folder."""
        volumes = self.root / "kubelet" / "pods" / ASKED.metadata.uid / "volumes"
        return volumes / f"kubernetes.io~{plugin}" / name

    def write(self, plugin: str, name: str, files: dict[str, bytes]) -> None:
        """Publish files at once: a new folder, then the link ``..data``."""
        volume = self.volume(plugin, name)
        volume.mkdir(parents=True, exist_ok=True)
        folder = volume / f"..{len(list(volume.iterdir()))}"
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
            top = path.split("/")[0]
            if not (volume / top).is_symlink():
                (volume / top).symlink_to(f"..data/{top}")
        (volume / "..tmp").symlink_to(folder.name)
        (volume / "..tmp").replace(volume / "..data")

    def hash(self, of: Pod = ASKED) -> str:
        """Return the hash of the Pod's identity."""
        return self.content.identity(of, STRICT).hash


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node with the Pod's volumes."""
    return Node(tmp_path)


COUNTED: dict[str, tuple[Callable[[Node], None], bool]] = {
    "another key": (
        lambda n: n.write("secret", "key", {"password": b"1", "deep/er": b"two"}),
        True,
    ),
    "one file more": (
        lambda n: n.write("configmap", "settings", {"mode": b"fast", "x": b""}),
        True,
    ),
    "another name": (lambda n: n.write("configmap", "settings", {"mood": b"fast"}), True),
    "a file cut in two": (
        lambda n: n.write("secret", "key", {"password": b"onetwo", "deep/er": b""}),
        True,
    ),
    "a projected key": (
        lambda n: n.write("projected", "both", {"password": b"2", "token": b"first"}),
        True,
    ),
    "a new token": (
        lambda n: n.write("projected", "both", {"password": b"one", "token": b"second"}),
        False,
    ),
    "the same, written again": (
        lambda n: n.write("configmap", "settings", {"mode": b"fast"}),
        False,
    ),
}


@pytest.mark.parametrize("what", COUNTED)
def test_an_identity_follows_what_is_mounted(node: Node, what: str) -> None:
    """A rotated key makes a new one; a token that is renewed every hour does not."""
    change, counts = COUNTED[what]
    before = node.hash()
    change(node)
    assert (node.hash() != before) is counts


def test_a_policy_that_does_not_ask_reads_nothing(node: Node) -> None:
    """Most Pods; their volumes may be anything."""
    bare = replace(ASKED, metadata=replace(ASKED.metadata, uid="unknown"))
    assert node.content.identity(bare, policy()) == node.content.identity(ASKED, policy())


def _link_out(node: Node) -> None:
    (node.root / "elsewhere").mkdir()
    data = node.volume("secret", "key") / "..data"
    data.unlink()
    data.symlink_to(node.root / "elsewhere")


def _link_file(node: Node) -> None:
    node.write("secret", "key", {"password": b"one"})
    file = node.volume("secret", "key") / "..data" / "password"
    file.unlink()
    file.symlink_to("/etc/hostname")


def _fill(node: Node) -> None:
    node.write("secret", "key", {"password": b""})
    os.truncate(node.volume("secret", "key") / "..data" / "password", 17 << 20)


def _pipe(node: Node) -> None:
    node.write("secret", "key", {"password": b""})
    os.mkfifo(node.volume("secret", "key") / "..data" / "fifo")


UNREADABLE: dict[str, Callable[[Node], None]] = {
    "it is not mounted": lambda n: (n.volume("secret", "key") / "..data").unlink(),
    "it links elsewhere": _link_out,
    "a file of it links elsewhere": _link_file,
    "it is too large": _fill,
    "it is no file": _pipe,
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_content_that_cannot_be_read_is_no_identity(node: Node, what: str) -> None:
    """Nothing is guessed, and nothing but what the kubelet published is read."""
    UNREADABLE[what](node)
    with pytest.raises(ContentError, match="content of volume key cannot be read on the node"):
        node.hash()


def test_a_pod_is_saved_with_what_it_was_started_with(node: Node) -> None:
    """After a rotation the files say new, and memory may still hold the old key."""
    node.content.note(SANDBOX, ASKED, STRICT)
    first = node.content.identity_since_start(SANDBOX, ASKED, STRICT)
    assert first.hash == node.hash()

    node.write("secret", "key", {"password": b"rotated", "deep/er": b"two"})
    with pytest.raises(ContentError, match=r"have changed since it was started.*restart the Pod"):
        node.content.identity_since_start(SANDBOX, ASKED, STRICT)

    node.content.note(SANDBOX, ASKED, STRICT)  # as its next sandbox does
    assert node.content.identity_since_start(SANDBOX, ASKED, STRICT).hash == node.hash()


def test_a_sandbox_that_is_older_than_the_strictness_is_not_saved(node: Node) -> None:
    """Nobody knows what its program read."""
    with pytest.raises(ContentError, match="were not noted at its start"):
        node.content.identity_since_start(SANDBOX, ASKED, STRICT)
    assert node.content.identity_since_start(SANDBOX, ASKED, policy())
