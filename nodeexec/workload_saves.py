# SPDX-License-Identifier: Apache-2.0
"""Saves that a workload asks for by writing to ``/proc/gvisor/checkpoint``.

runsc writes the image by itself into a directory that was named when the sandbox was made, once per
sandbox. ``runsc wait --checkpoint`` is the only word on whether it went well, and it hears only of
saves that end while it waits; so one waits from the sandbox's start. A save that ended while the
agent was away cannot be trusted and is dropped.
"""

import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nodeexec.image import STATE_FILE
from nodeexec.runsc import Runsc, RunscError, finish
from nodeexec.sandboxes import PreparedSandbox

log = logging.getLogger(__name__)

COMPLETE: Final = "complete"
_APPEARS_LIMIT_S: Final = 120.0
_LOOK_S: Final = 0.05


class WorkloadSaves:
    """Waits, per sandbox, for the save that its workload may ask for."""

    def __init__(
        self,
        runsc: Runsc,
        *,
        on_saved: Callable[[PreparedSandbox], None],
        on_failed: Callable[[PreparedSandbox, str], None],
    ) -> None:
        """The callbacks run in the waiting thread."""
        self._runsc = runsc
        self._on_saved = on_saved
        self._on_failed = on_failed
        self._waiting: set[str] = set()
        self._guard = threading.Lock()
        self._stopped = threading.Event()

    def watch(self, sandbox: PreparedSandbox) -> None:
        """Wait for a sandbox's save in a thread of its own, unless one waits already."""
        if sandbox.workload_dir is None or is_complete(sandbox.workload_dir):
            return
        with self._guard:
            if sandbox.id in self._waiting:
                return
            self._waiting.add(sandbox.id)
        threading.Thread(
            target=self._wait, args=(sandbox,), name=f"workload-{sandbox.id[:8]}", daemon=True
        ).start()

    def stop(self) -> None:
        """Let waiting threads end; they are daemons and hold nothing."""
        self._stopped.set()

    def _wait(self, sandbox: PreparedSandbox) -> None:
        directory = sandbox.workload_dir
        try:
            if directory is None or not self._appears(sandbox):
                return
            if _has_bytes(directory):
                self._drop(
                    sandbox, directory, "it was written while the agent of this node was away"
                )
                return
            finish(self._runsc.wait_for_checkpoint(sandbox.id), limit_s=None)
            (directory / COMPLETE).touch(mode=0o600)
            self._on_saved(sandbox)
        except RunscError as error:
            if directory is not None and _has_bytes(directory):
                self._drop(sandbox, directory, str(error))
            else:
                log.debug("sandbox %s ended without a save: %s", sandbox.id, error)
        except FileNotFoundError:
            log.debug("sandbox %s is gone", sandbox.id)
        finally:
            with self._guard:
                self._waiting.discard(sandbox.id)

    def _appears(self, sandbox: PreparedSandbox) -> bool:
        state = self._runsc.root / f"{sandbox.id}_sandbox:{sandbox.id}.state"
        for _ in range(int(_APPEARS_LIMIT_S / _LOOK_S)):
            if state.exists():
                return True
            if self._stopped.wait(_LOOK_S):
                return False
        return False

    def _drop(self, sandbox: PreparedSandbox, directory: Path, why: str) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        self._on_failed(sandbox, why)


def is_complete(directory: Path) -> bool:
    """Whether the save into a directory was seen to end well."""
    return (directory / COMPLETE).exists()


def _has_bytes(directory: Path) -> bool:
    try:
        return (directory / STATE_FILE).stat().st_size > 0
    except FileNotFoundError:
        return False
