# SPDX-License-Identifier: Apache-2.0
"""When the steps of one Pod's restore happened, as far as somebody recorded them.

The agent knows them until its answer, the runtime's files beside the bundle know the rest; of a Pod
that is only read through the API its conditions tell some, in whole seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class RestoreTimes:
    """Instants are seconds since the epoch, 0 if unknown. ``error`` says why the Pod started cold.

    Asked by the runtime, a snapshot decided on or at the gate waited for, its bytes fetched (before
    the question, if the Pod's arrival began it, or with another Pod's) or those on the node
    verified, runsc told to restore, the memory back, the Pod Ready.
    """

    namespace: str
    pod_name: str
    pod_uid: str
    node: str = ""
    asked_s: float = 0.0
    decided_s: float = 0.0
    gating_s: float = 0.0
    gated_s: float = 0.0
    fetching_s: float = 0.0
    fetched_s: float = 0.0
    verifying_s: float = 0.0
    verified_s: float = 0.0
    restoring_s: float = 0.0
    restored_s: float = 0.0
    ready_s: float = 0.0
    failed_s: float = 0.0
    error: str = ""

    def until_answer(self) -> dict[str, float]:
        """Render the instants that are known when the runtime is answered."""
        return {name: getattr(self, name) for name in _UNTIL_ANSWER if getattr(self, name)}

    def with_answer(self, raw: Mapping[str, Any]) -> Self:
        """Add what ``until_answer`` wrote; what is no instant is left out."""
        known = {k: float(v) for k, v in raw.items() if isinstance(v, (int, float))}
        return replace(
            self,
            asked_s=known.get("asked_s", 0.0),
            decided_s=known.get("decided_s", 0.0),
            gating_s=known.get("gating_s", 0.0),
            gated_s=known.get("gated_s", 0.0),
            fetching_s=known.get("fetching_s", 0.0),
            fetched_s=known.get("fetched_s", 0.0),
            verifying_s=known.get("verifying_s", 0.0),
            verified_s=known.get("verified_s", 0.0),
        )


_UNTIL_ANSWER = (
    "asked_s",
    "decided_s",
    "gating_s",
    "gated_s",
    "fetching_s",
    "fetched_s",
    "verifying_s",
    "verified_s",
)
