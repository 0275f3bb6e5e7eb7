# SPDX-License-Identifier: Apache-2.0
"""Every bound of the conversation with Cloud Storage, in one place; tests make them small."""

from dataclasses import dataclass
from typing import Final

# A stream holds one block that is on its way and one that was just read.
BLOCK_BYTES: Final = 1 << 20
# All uploads of a process together.
IN_FLIGHT_BYTES: Final = 256 << 20
# https://cloud.google.com/storage/quotas#objects
COMPOSE_AT_ONCE: Final = 32


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes and times.

    ``connect_s`` and ``silence_s`` are socket time-outs: for a connection, and for the next byte in
    either direction. A body that comes slower than ``least_bytes_s`` for longer than ``silence_s``
    is given up. A request is sent at most ``attempts`` times, and not again once the next wait
    would end later than ``retry_s`` after the first; ``retry_after_s`` is the longest wait that a
    server may ask for.
    """

    part_bytes: int = 32 << 20
    connect_s: float = 10.0
    silence_s: float = 30.0
    least_bytes_s: float = 32 << 10
    attempts: int = 8
    retry_s: float = 120.0
    first_wait_s: float = 0.5
    longest_wait_s: float = 16.0
    retry_after_s: float = 30.0


DEFAULT_LIMITS: Final = Limits()
