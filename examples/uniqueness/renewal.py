# SPDX-License-Identifier: Apache-2.0
"""Notices that this process was restored into a new Pod, and renews what must not be shared.

The concept: a thread waits on ``/proc/gvisor/checkpoint``. Each save of the Pod, whoever asked for
it, answers ``resume`` in the Pod that was saved and ``restore`` in every Pod that is made from it.
There the environment is read anew, the random generators of the process are seeded anew, and then
come your own callbacks: identifiers, keys, connections, leases, caches of the time.

The trap: all threads wake up at the same moment, so for some milliseconds the others still use
what was saved. Before anything that must never be used twice, call ``settle``: it looks by itself,
if the environment holds the Pod's UID (``valueFrom: {fieldRef: {fieldPath: metadata.uid}}``). The
other trap: a process renews only itself; each of several worker processes needs its own.
"""

import os
import random
import ssl
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path

CHECKPOINT = Path("/proc/gvisor/checkpoint")
SPEC_ENVIRON = Path("/proc/gvisor/spec_environ")

RESTORE = "restore"
ANSWER_BYTES = 64
SEED_BYTES = 48


class Renewal:
    """Renews this process after each restore."""

    def __init__(
        self,
        *,
        checkpoint: Path = CHECKPOINT,
        spec_environ: Path = SPEC_ENVIRON,
        log: Callable[[str], None] = print,
    ) -> None:
        """Remember the Pod's environment; nothing happens before ``start``."""
        self.restores = 0
        self._checkpoint = checkpoint
        self._spec_environ = spec_environ
        self._log = log
        self._specified = specified(spec_environ)
        self._callbacks: list[Callable[[], None]] = []
        self._guard = threading.RLock()
        self._is_ahead = False

    def on_restore(self, callback: Callable[[], None]) -> None:
        """Call this in every Pod that was restored, in the order of registration."""
        self._callbacks.append(callback)

    def start(self) -> None:
        """Wait for restores in a thread of its own. Outside gVisor there are none."""
        threading.Thread(target=self._wait_for_ever, name="renewal", daemon=True).start()

    def settle(self) -> None:
        """Renew first, if this process was restored a moment ago and the thread has yet to see it.

        Costs one read of a small file.
        """
        with self._guard:
            now = specified(self._spec_environ)
            if now and now != self._specified:
                self._renew()
                self._is_ahead = True

    def _renew(self) -> None:
        """Renew everything; a callback that fails is logged and keeps no other from it."""
        now = specified(self._spec_environ)
        self._specified = renew_environment(os.environ, self._specified, now)
        reseed()
        self.restores += 1
        for callback in self._callbacks:
            try:
                callback()
            except Exception as error:  # noqa: BLE001 - somebody else's code
                self._log(f"{callback} could not renew what it is for: {error!r}")
        self._log(f"restored into another Pod, renewed ({self.restores})")

    def _wait_for_ever(self) -> None:
        while True:
            try:
                answer = next_answer(self._checkpoint)
            except OSError as error:
                self._log(f"this process cannot learn of restores: {error}")
                return
            if answer != RESTORE:
                continue
            with self._guard:
                if not self._is_ahead:
                    self._renew()
                self._is_ahead = False


def next_answer(checkpoint: Path) -> str:
    """Wait until the Pod is saved or restored: ``resume``, ``restore`` or ``error``.

    Raises:
        OSError: there is no such file, so this is no gVisor, or it ended without an answer.
    """
    # Unbuffered, and a descriptor for each answer: it repeats the same one for ever.
    with checkpoint.open("rb", buffering=0) as file:
        answer = (file.read(ANSWER_BYTES) or b"").decode().strip()
    if not answer:
        raise OSError(f"{checkpoint} ended without an answer")
    return answer


def specified(spec_environ: Path) -> dict[str, str]:
    """Return the environment that the Pod's specification asks for, empty outside gVisor."""
    try:
        content = spec_environ.read_bytes()
    except OSError:
        return {}
    pairs = (os.fsdecode(entry).partition("=") for entry in content.split(b"\0") if entry)
    return {name: value for name, _, value in pairs}


def renew_environment(
    environ: MutableMapping[str, str], before: Mapping[str, str], now: Mapping[str, str]
) -> dict[str, str]:
    """Bring an environment from one specification to another; returns the latter.

    What the program has set by itself is left alone, and so is everything where nothing is told.
    """
    if not now:
        return dict(before)
    for name in before.keys() - now.keys():
        environ.pop(name, None)
    for name, value in now.items():
        if before.get(name) != value:
            environ[name] = value
    return dict(now)


def reseed() -> None:
    """Seed the process-wide generators from the kernel, which is never the same in two Pods.

    ``secrets``, ``os.urandom`` and ``uuid.uuid4`` ask the kernel each time and need nothing.
    """
    random.seed(os.urandom(SEED_BYTES))
    # TLS draws from OpenSSL's own generator, whose state was saved with the memory.
    ssl.RAND_add(os.urandom(SEED_BYTES), SEED_BYTES)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(int.from_bytes(os.urandom(4), "little"))
