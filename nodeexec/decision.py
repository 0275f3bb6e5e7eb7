# SPDX-License-Identifier: Apache-2.0
"""What the agent answers when a sandbox is created: all that the runtime needs to finish alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from policies.verdict import Reason
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.restore_times import RestoreTimes
from schemas.snapshot import Snapshot
from statemachine.restore import Outcome
from statemachine.trace import restore_traceparent

# After the gate, within the same two minutes; the sandbox only opens the image there.
_SANDBOX_DEADLINE_S: Final = 25.0
# The last container's start loads the memory, within two minutes of its own.
_DEADLINE_S: Final = 90.0
_RESTORE_FLOOR_S: Final = 60.0
_SLOWEST_BYTES_PER_S: Final = 20e6


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer for one sandbox, and what to tell about it once it is given.

    A Pod that starts cold has a cause, and a sentence about it. ``unfetched`` is the snapshot that
    was chosen and whose bytes could not be had.
    """

    pod: Pod | None = None
    policy: Policy | None = None
    internal: Mapping[str, str] = field(default_factory=dict)
    enable: bool = False
    snapshot: Snapshot | None = None
    image_dir: Path | None = None
    background: bool = False
    outcome: Outcome = Outcome.COLD
    cause: Reason | None = None
    reason: str = ""
    unfetched: Snapshot | None = None
    times: RestoreTimes | None = None

    def to_answer(self) -> dict[str, Any]:
        """Render for the runtime."""
        if self.policy is None:
            return {"governed": False}
        answer: dict[str, Any] = {
            "governed": True,
            "policy": self.policy.metadata.name,
            "internal": dict(self.internal),
            "enable": self.enable,
            "stop": self.policy.stops,
            "restore": None,
        }
        capture = self.snapshot.capture if self.snapshot else None
        if self.snapshot is not None and capture is not None and self.image_dir is not None:
            names = self.pod.running_names if self.pod else ()
            answer["restore"] = {
                "snapshot": self.snapshot.metadata.name,
                "snapshot_uid": self.snapshot.metadata.uid,
                "image_dir": str(self.image_dir),
                # Files alone may be restored into a Pod that has other containers.
                "image_ids": {n: i for n, i in capture.image_ids.items() if n in names},
                "rootfs_only": capture.rootfs_only,
                "background": self.background,
                "sandbox_deadline_s": _SANDBOX_DEADLINE_S,
                "deadline_s": min(
                    _RESTORE_FLOOR_S + capture.size_bytes / _SLOWEST_BYTES_PER_S, _DEADLINE_S
                ),
            }
            if self.pod is not None and self.times is not None:
                # For the trace: the runtime keeps them beside the bundle, and tells the program.
                answer["restore"]["times"] = self.times.until_answer()
                answer["restore"]["traceparent"] = restore_traceparent(
                    self.snapshot, self.pod.metadata.uid
                )
        return answer
