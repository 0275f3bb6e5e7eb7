# SPDX-License-Identifier: Apache-2.0
"""A sealed image exists once, on its node, and its Pod may have ended for it.

A bucket, a token or an API server that is away is no reason to drop it: it waits in the staging
directory, for as long as the disk can bear.
"""

from typing import Final

from backends.clock import Clock
from backends.kube.errors import ApiError
from backends.objects.interface import StoreUnavailable
from schemas.instants import parse_time
from schemas.snapshot import CaptureRecord

# Since it was sealed. It holds the node's staging disk, which other saves need; most outages are
# shorter.
STORE_LIMIT_S: Final = 3600.0
_FIRST_S: Final = 15.0
_LAST_S: Final = 120.0


class StoreDelayedError(Exception):
    """A sealed image could not be stored yet; it stays, to be looked at again in ``again_s``."""

    def __init__(self, text: str, *, again_s: float) -> None:
        super().__init__(text)
        self.again_s = again_s


def delay_s(
    record: CaptureRecord, error: Exception, clock: Clock, *, is_stopping: bool
) -> float | None:
    """Return in how many seconds to try again to store an image, ``None`` if that is no use.

    What fails in a process that ends may only fail because of that.
    """
    if is_stopping:
        return _FIRST_S
    if not isinstance(error, StoreUnavailable | ApiError):
        return None
    sealed_at = parse_time(record.sealed_at)
    waited_s = (clock.now() - sealed_at).total_seconds() if sealed_at else 0.0
    if waited_s >= STORE_LIMIT_S:
        return None
    return min(max(_FIRST_S, waited_s / 2), _LAST_S)
