# SPDX-License-Identifier: Apache-2.0
"""How a program asks gVisor for a snapshot of its own Pod, and learns on which side it woke up.

The concept: one file, opened once; writing ``1`` asks, and reading from the same descriptor waits
and answers ``resume`` (this is the Pod that was saved), ``restore`` (this is a new Pod, with the
memory of the saved one) or ``error``. The trap: everything in memory is now in every replica, the
state of random number generators and the environment included; what has to be unique must be
drawn anew.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

CHECKPOINT = Path("/proc/gvisor/checkpoint")
SPEC_ENVIRON = Path("/proc/gvisor/spec_environ")

RESUME = "resume"
RESTORE = "restore"
ERROR = "error"
DISABLED = "disabled"

ANSWER_BYTES = 64


def ask(checkpoint: Path, log: Callable[[str], None]) -> str:
    """Ask for a snapshot and wait for the answer, which may take as long as saving takes.

    Where snapshots are not enabled, or no such file exists, that is logged and the answer is
    ``disabled``: a program must be able to run without.
    """
    try:
        # Unbuffered: the write has to happen now, and the answer belongs to this very descriptor.
        with checkpoint.open("rb+", buffering=0) as file:
            file.write(b"1")
            return (file.read(ANSWER_BYTES) or b"").decode().strip() or ERROR
    except OSError as error:
        log(f"snapshots are not enabled for this Pod: {error}")
        return DISABLED


def specified(spec_environ: Path) -> dict[str, str]:
    """Return the environment that the Pod's specification asks for, empty outside gVisor.

    After a restore this is the new Pod's; ``os.environ`` is memory and therefore the old one's.
    """
    try:
        content = spec_environ.read_bytes()
    except OSError:
        return {}
    pairs = (os.fsdecode(entry).partition("=") for entry in content.split(b"\0") if entry)
    return {name: value for name, _, value in pairs}


def changed_names(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names that differ; only names, since values may be secrets and logs are read."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
