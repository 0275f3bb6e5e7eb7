# SPDX-License-Identifier: Apache-2.0
"""The kill table as data: at which steps which process is killed, and which cells do not exist.

A step is named by what holds at it, and is held until the victim is dead, by stopping whoever would
go on. A cell without a reason in ``unreachable`` is run.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Step:
    """One named instant of a phase; ``shown_by`` says how the test knows that it is there."""

    phase: str
    name: str
    shown_by: str

    @property
    def id(self) -> str:
        """The name under which results and tests know it."""
        return f"{self.phase}: {self.name}"


VICTIMS: Final = (
    "agent",
    "controller",
    "containerd",
    "kubelet",
    "kube-apiserver",
    "etcd",
    "sandbox",
    "runsc client",
)
# Where the supervised victims run.
MACHINES: Final = {
    "agent": "node1",
    "containerd": "node1",
    "kubelet": "node1",
    "controller": "control-plane",
    "kube-apiserver": "control-plane",
    "etcd": "control-plane",
}

TRIGGERED: Final = Step("save", "trigger created", "the trigger exists; the controller is held")
ADDRESSED: Final = Step(
    "save", "PodSnapshot created", "the PodSnapshot exists, unclaimed; the agent is held"
)
WRITING: Final = Step(
    "save", "runsc writes", "pages.img grows in the staging directory; the sandbox is held"
)
SEALING: Final = Step(
    "save", "sealing", "runsc has ended, no manifest in staging yet; the agent is held"
)
SEALED: Final = Step(
    "upload", "sealed, not told", "manifest in staging; the API server is held before the status"
)
SENDING: Final = Step(
    "upload", "part under way", "a part grows in the bucket's tmp folder; the agent is held"
)
STORED: Final = Step(
    "upload",
    "manifest written, not told",
    "manifest in the bucket; the API server is held before the status",
)
FETCHING: Final = Step(
    "fetch", "part under way", "a part grows in the node's cache; the agent is held"
)
FETCHED: Final = Step(
    "fetch", "image verified", "the image is in the cache; the kubelet is held before the sandbox"
)
CREATED: Final = Step(
    "restore", "sandbox created", "decision and sandbox are there; containerd is held before start"
)
ASSEMBLED: Final = Step(
    "restore",
    "container created",
    "the container waits in the restored sandbox; containerd is held before its start",
)
LOADING: Final = Step(
    "restore",
    "last container starts",
    "runsc start runs, which loads the memory; the sandbox is held",
)
UNREPORTED: Final = Step(
    "restore", "started, not reported", "every container has started; the agent is held"
)
DELETED: Final = Step(
    "delete", "deletion asked for", "deletionTimestamp is set; the controller is held"
)
EMPTYING: Final = Step(
    "delete", "bytes are being deleted", "state Deleting, bytes there; the bucket's lock is held"
)
EMPTIED: Final = Step(
    "delete", "finalizer at work", "bytes gone; the API server is held before the finalizer goes"
)

STEPS: Final = (
    *(TRIGGERED, ADDRESSED, WRITING, SEALING),
    *(SEALED, SENDING, STORED),
    *(FETCHING, FETCHED),
    *(CREATED, ASSEMBLED, LOADING, UNREPORTED),
    *(DELETED, EMPTYING, EMPTIED),
)

_RUNSC_STEPS: Final = (WRITING, LOADING)


def unreachable(step: Step, victim: str) -> str:
    """Return why there is no such cell, nothing if there is."""
    if victim == "runsc client" and step not in _RUNSC_STEPS:
        return "no runsc client runs at this step: the process is between two of its calls"
    if victim == "sandbox" and step.phase == "fetch":
        return "the new Pod has no sandbox yet: it is made after the image has been fetched"
    if victim == "sandbox" and step.phase == "delete":
        return "a deletion has no sandbox: no Pod takes part in it"
    if (step, victim) == (CREATED, "containerd"):
        return (
            "the same without podsnap: gVisor's shim never reports the end of a sandbox that was "
            "created and not started, so the next containerd waits for it until somebody kills "
            "that shim"
        )
    if (step.id, victim) == ("restore: container created", "sandbox"):
        return (
            "not sure to end: one time in three gVisor's shim of the container hangs when its "
            "sandbox dies between the container's create and start, and the Pod waits until "
            "containerd is restarted"
        )
    return ""


def cells() -> list[tuple[Step, str]]:
    """Return every cell that is run: step by step, so that no victim dies twice in a row."""
    return [(s, v) for s in STEPS for v in VICTIMS if not unreachable(s, v)]
