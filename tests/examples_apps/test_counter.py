# SPDX-License-Identifier: Apache-2.0
"""The counter example counts, says who it is, and ends at once."""

import signal
import socket
import subprocess
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest


class Image(Protocol):
    """The fixture ``counter_image``."""

    root: Path


class Program(Protocol):
    """What the fixture ``start`` returns."""

    process: subprocess.Popen[bytes]
    log: Path

    def get(self, target: str) -> tuple[int, dict[str, Any]]:
        """Return status and content of one answer."""


@pytest.fixture
def counter(
    counter_image: Image,
    start: Callable[..., Program],
    port: int,
    eventually: Callable[[Callable[[], bool]], None],
) -> Program:
    """Return the running program."""
    program = str(counter_image.root / "app/counter.py")
    running = start(counter_image, program, f"--port={port}", port=port)

    def answers() -> bool:
        assert running.process.poll() is None, running.log.read_text()
        try:
            return bool(running.get("/")[0] == 200)
        except urllib.error.URLError:
            return False

    eventually(answers)
    return running


def test_it_counts_and_keeps_its_nonce(
    counter: Program, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    """The count grows while the nonce stays: both live in memory only."""
    first = counter.get("/")[1]
    eventually(lambda: counter.get("/")[1]["count"] >= first["count"] + 2)
    second = counter.get("/")[1]
    assert first["hostname"] == socket.gethostname()
    assert first["pid"] == counter.process.pid
    for name in ("nonce", "pid", "started_at"):
        assert second[name] == first[name]


def test_it_ends_at_once_on_sigterm(counter: Program) -> None:
    """A deleted Pod is gone without waiting for its grace period."""
    counter.process.send_signal(signal.SIGTERM)
    assert counter.process.wait(timeout=1) == 0
