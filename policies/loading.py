# SPDX-License-Identifier: Apache-2.0
"""Does a Pod wait for all of its memory, or run before all of it is on the node?

Waiting is simpler: nothing can go wrong afterwards. So small images are fetched first, and large
ones are loaded behind the running Pod. The trap is an image that would not come within the time
that the kubelet gives a sandbox: it is never a reason for a cold start.
"""

from enum import Enum
from typing import Final

# An estimate: below it a fetch takes about as long as a page server and a bucket's round trips.
BACKGROUND_FROM_BYTES: Final = 256 << 20
# Until a node has fetched anything: one connection to a bucket in the same region.
ASSUMED_BYTES_PER_S: Final = 100e6
# A disk of the slower kind, and its bytes have to be compared.
ASSUMED_REREAD_BYTES_PER_S: Final = 150e6
# How much of the time that is left a fetch may be estimated to take.
_SHARE: Final = 0.5


class Unsure(Enum):
    """What to do for a Pod of whose memory runsc gave no good answer."""

    FORGET = "it ends anyway"
    ASK_AGAIN = "it does well as far as is known"
    START_COLD = "its memory will not come"


def after_no_answer(*, is_ending: bool, lives: bool, has_failed: bool) -> Unsure:
    """Decide; ``lives`` is its sandbox, ``has_failed`` says the server of its memory."""
    if is_ending:
        return Unsure.FORGET
    return Unsure.ASK_AGAIN if lives and not has_failed else Unsure.START_COLD


def loads_in_background(
    option: bool | None,  # noqa: FBT001 - a policy's three-way option
    *,
    size_bytes: int,
    bytes_per_s: float,
    left_s: float,
) -> bool:
    """Decide for an image that is not on the node, or not verified yet.

    ``left_s`` is the time until the sandbox must start.
    """
    if size_bytes / bytes_per_s > _SHARE * left_s:
        return True
    return size_bytes >= BACKGROUND_FROM_BYTES if option is None else option
