# SPDX-License-Identifier: Apache-2.0
"""How long a save would pause a Pod, from what earlier saves of this node took.

A sandbox stands still while runsc writes its memory, so the pause grows with the memory. The trap:
a small save is mostly overhead and says nothing about a large one, so only large ones teach.
"""

import threading
from typing import Final

_OVERHEAD_S: Final = 0.1
# Below what a node with a plain disk was seen to do; the first save is estimated with it.
_FIRST_BYTES_PER_S: Final = 200e6
_TELLING_BYTES: Final = 64 << 20
_WEIGHT: Final = 0.3


class PauseEstimate:
    """The estimate of one node. Safe for many threads."""

    def __init__(self) -> None:
        """Begin with a cautious rate."""
        self._bytes_per_s = _FIRST_BYTES_PER_S
        self._guard = threading.Lock()

    def seconds(self, memory_bytes: int) -> float:
        """Return how long a sandbox of this size will stand still."""
        with self._guard:
            return _OVERHEAD_S + memory_bytes / self._bytes_per_s

    def learn(self, memory_bytes: int, pause_s: float) -> None:
        """Take a finished save into account."""
        if memory_bytes < _TELLING_BYTES:
            return
        seen = memory_bytes / max(pause_s - _OVERHEAD_S, 0.001)
        with self._guard:
            self._bytes_per_s += _WEIGHT * (seen - self._bytes_per_s)
