# SPDX-License-Identifier: Apache-2.0
"""The example's helper module: what it renews, and when."""

import contextlib
import importlib.util
import os
import queue
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

MODULE = Path(__file__).parents[2] / "examples" / "uniqueness" / "renewal.py"


@pytest.fixture(scope="module")
def renewal() -> ModuleType:
    """The module, as a program would import it."""
    spec = importlib.util.spec_from_file_location("renewal", MODULE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Sandbox:
    """What gVisor shows a program. It is its own checkpoint file: no other file answers so late."""

    def __init__(self, spec_environ: Path) -> None:
        """Begin with a Pod's environment."""
        self.spec_environ = spec_environ
        self._opened = threading.Semaphore(0)
        self._answers: queue.Queue[str] = queue.Queue()
        self.specify(POD_UID="1", KEPT="a", GONE="b")

    def specify(self, **environ: str) -> None:
        """Give the Pod another environment."""
        text = "".join(f"{k}={v}\0" for k, v in environ.items())
        self.spec_environ.write_text(text, encoding="utf-8")

    def answer(self, word: str) -> None:
        """Answer whoever waits for the next save; all answers before are dealt with by then."""
        assert self._opened.acquire(timeout=10)
        self._answers.put(f"{word}\n")

    @contextlib.contextmanager
    def open(self, mode: str, buffering: int) -> Iterator["Sandbox"]:
        """Open the checkpoint file: from now on the next answer is awaited."""
        assert (mode, buffering) == ("rb", 0)
        self._opened.release()
        yield self

    def read(self, _: int) -> bytes:
        """Wait for the answer."""
        return self._answers.get().encode()


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    """A sandbox of a program's own."""
    return Sandbox(tmp_path / "spec_environ")


def test_a_restore_renews_environment_randomness_and_what_else_was_asked_for(
    renewal: ModuleType, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the callbacks, so that they see the new Pod's; one that fails stops no other."""
    monkeypatch.setattr(os, "environ", {"GONE": "b", "KEPT": "a", "OWN": "mine"})
    seen: list[tuple[str | None, ...]] = []
    logged: list[str] = []
    unit = renewal.Renewal(checkpoint=sandbox, spec_environ=sandbox.spec_environ, log=logged.append)
    unit.on_restore(lambda: 1 / 0)
    unit.on_restore(lambda: seen.append(tuple(map(os.environ.get, ("NEW", "GONE", "KEPT", "OWN")))))
    unit.start()
    state = random.getstate()

    sandbox.answer("resume")
    sandbox.specify(POD_UID="2", KEPT="a", NEW="c")
    sandbox.answer("restore")
    sandbox.answer("resume")

    assert seen == [("c", None, "a", "mine")]
    assert random.getstate() != state
    assert "ZeroDivisionError" in logged[0]
    assert unit.restores == 1


def test_settling_is_as_good_as_waiting_and_renews_once(
    renewal: ModuleType, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request may come before the thread that waits has run."""
    monkeypatch.setattr(os, "environ", {"POD_UID": "1"})
    unit = renewal.Renewal(checkpoint=sandbox, spec_environ=sandbox.spec_environ, log=print)
    unit.settle()
    assert unit.restores == 0

    sandbox.specify(POD_UID="2")
    unit.settle()
    unit.settle()
    assert (unit.restores, os.environ["POD_UID"]) == (1, "2")

    unit.start()
    sandbox.answer("restore")
    sandbox.answer("resume")
    assert unit.restores == 1


def test_outside_gvisor_nothing_happens_and_it_is_said(
    renewal: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program must be able to run anywhere."""
    monkeypatch.setattr(os, "environ", {"MODE": "as it was"})
    told = threading.Event()
    unit = renewal.Renewal(
        checkpoint=tmp_path / "a", spec_environ=tmp_path / "b", log=lambda _: told.set()
    )
    unit.start()
    assert told.wait(10)
    unit.settle()
    assert (unit.restores, os.environ) == (0, {"MODE": "as it was"})
