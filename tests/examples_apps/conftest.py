# SPDX-License-Identifier: Apache-2.0
"""The examples' images, unpacked, with their own Python and C library.

Programs run with what is in the image and nothing else: a module that the image lacks, or a
function that its Python does not have yet, fails here and not in the cluster.
"""

import json
import os
import socket
import subprocess
import tarfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from localcluster.images import build_image, default_cache

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True, slots=True)
class Unpacked:
    """An image's files below ``root``."""

    root: Path

    def command(self, *arguments: str) -> list[str]:
        """Return the argument list that runs the image's Python on this machine."""
        libraries = [self.root / "lib/x86_64-linux-gnu", self.root / "usr/lib/x86_64-linux-gnu"]
        return [
            str(libraries[0] / "ld-linux-x86-64.so.2"),
            "--library-path",
            ":".join(map(str, libraries)),
            str(self.root / "usr/bin/python3.11"),
            *arguments,
        ]

    def environment(self) -> dict[str, str]:
        """Return an environment in which that Python finds its own modules only."""
        return {
            "PYTHONHOME": str(self.root / "usr"),
            "PYTHONPATH": str(self.root / "usr/local/lib/python3.11/dist-packages"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PATH": os.environ["PATH"],
        }


@dataclass(frozen=True, slots=True)
class Running:
    """A program that listens on ``port`` and writes its output to ``log``."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def get(self, target: str) -> tuple[int, dict[str, Any]]:
        """Return status and content of one answer."""
        address = f"http://127.0.0.1:{self.port}{target}"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


Start = Callable[..., Running]


def unpack(example: str, root: Path) -> Unpacked:
    """Build an example's image, or take it from the cache, and unpack its layers."""
    image = build_image(EXAMPLES / example, cache=default_cache(), progress=lambda _: None)
    with tarfile.open(image.archive) as archive:

        def read(name: str) -> dict[str, Any]:
            content = archive.extractfile(name)
            assert content is not None
            found: dict[str, Any] = json.load(content)
            return found

        def blob(descriptor: dict[str, str]) -> str:
            return f"blobs/sha256/{descriptor['digest'].removeprefix('sha256:')}"

        manifest = read(blob(read("index.json")["manifests"][0]))
        for layer in manifest["layers"]:
            with tarfile.open(fileobj=archive.extractfile(blob(layer))) as files:
                files.extractall(root, filter="tar")
    return Unpacked(root)


@pytest.fixture(scope="session")
def search_image(tmp_path_factory: pytest.TempPathFactory) -> Unpacked:
    """Return the semantic-search image."""
    return unpack("semantic-search", tmp_path_factory.mktemp("semantic-search"))


@pytest.fixture(scope="session")
def counter_image(tmp_path_factory: pytest.TempPathFactory) -> Unpacked:
    """Return the counter's image."""
    return unpack("counter", tmp_path_factory.mktemp("counter"))


@contextmanager
def _running(image: Unpacked, arguments: list[str], *, port: int, log: Path) -> Iterator[Running]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            image.command(*arguments), env=image.environment(), stdout=out, stderr=out
        )
    try:
        yield Running(process, port, log)
    finally:
        process.kill()
        process.wait(timeout=10)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a program of an image; it ends with the test."""
    with ExitStack() as stack:

        def run(image: Unpacked, *arguments: str, port: int) -> Running:
            return stack.enter_context(
                _running(image, list(arguments), port=port, log=tmp_path / "output.log")
            )

        yield run


@pytest.fixture
def port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Return a function that waits until a condition holds, 60 s at most."""

    def wait(holds: Callable[[], bool]) -> None:
        limit_s, pause = time.monotonic() + 60, threading.Event()
        while not holds():
            assert time.monotonic() < limit_s, "the condition did not come to hold within 60 s"
            pause.wait(0.05)

    return wait
