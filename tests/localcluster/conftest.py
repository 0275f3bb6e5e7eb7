# SPDX-License-Identifier: Apache-2.0
"""Real machines and clusters under names of their own, removed whatever a test does."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localcluster import network, preflight
from localcluster.cluster import LocalCluster
from localcluster.machine import Machine
from localcluster.network import ClusterNetwork

WAIT_S = 30.0


@pytest.fixture(scope="session")
def able_host() -> None:
    """Skip where machines cannot be made, with the reasons."""
    if found := preflight.problems(Path("/var/lib")):
        pytest.skip("; ".join(found))


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool], str], None]:
    """Return a wait for a condition, bounded."""

    def wait(holds: Callable[[], bool], what: str) -> None:
        never = threading.Event()
        deadline_s = time.monotonic() + WAIT_S
        while not holds():
            assert time.monotonic() < deadline_s, f"waited {WAIT_S:.0f} s in vain: {what}"
            never.wait(0.02)

    return wait


@pytest.fixture
def lone_machine(tmp_path: Path, able_host: None) -> Iterator[Machine]:
    """Yield a started machine with nothing in it."""
    net = ClusterNetwork.derived(f"lone-{os.getpid()}")
    state = tmp_path / "state"
    network.ensure_bridge(net, nodes=0)
    machine = Machine(
        name="lone",
        directory=state / "lone",
        state_dir=state,
        link=net.link("lone", net.control, nodes=0),
        binds={"/var/log": state / "lone" / "log"},
        logs=state / "logs",
    )
    try:
        machine.start()
        yield machine
    finally:
        machine.kill()
        network.remove_link(net.bridge)


@pytest.fixture
def cluster(tmp_path: Path, able_host: None) -> Iterator[LocalCluster]:
    """Yield a cluster that is not up yet, without podsnap's programs in it."""
    lines: list[str] = []
    made = LocalCluster(f"t-{os.getpid()}", root=tmp_path / "local", progress=lines.append)
    try:
        yield made
    finally:
        made.down()
