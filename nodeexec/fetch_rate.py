# SPDX-License-Identifier: Apache-2.0
"""How fast this node fetches, as its last fetches showed."""

from dataclasses import dataclass
from typing import Final

from policies.loading import ASSUMED_BYTES_PER_S

# Of a small fetch most of the time is round trips.
_WORTH_BYTES: Final = 16 << 20
_WEIGHT: Final = 0.5


@dataclass(slots=True)
class FetchRate:
    """An average in which the last fetch counts as much as all before."""

    bytes_per_s: float = ASSUMED_BYTES_PER_S

    def note(self, size_bytes: int, took_s: float) -> None:
        """Learn from a fetch."""
        if size_bytes >= _WORTH_BYTES and took_s > 0:
            self.bytes_per_s += _WEIGHT * (size_bytes / took_s - self.bytes_per_s)
