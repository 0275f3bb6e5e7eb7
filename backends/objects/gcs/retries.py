# SPDX-License-Identifier: Apache-2.0
"""When a request is sent again: the one place, the library's own retries are off.

Every write and delete says which generation it expects, so sending it twice does no harm; what the
second answer means (our own write may be what stands in the way) is for the sender to find out.
"""

import time
from collections.abc import Callable
from typing import Final, TypeVar

import tenacity

from backends.objects.gcs.limits import Limits
from backends.objects.interface import StoreUnavailable, never

_Answer = TypeVar("_Answer")
_ASK_EVERY_S: Final = 0.5


def attempt_repeatedly(
    limits: Limits, send: Callable[[bool], _Answer], stopped: Callable[[], bool] = never
) -> _Answer:
    """Call ``send`` until it answers; its argument is whether it was called before.

    ``stopped`` ends the attempts and the waits between them, not the one under way.

    Raises:
        StoreUnavailable: it never answered within the bounds.
    """
    backing_off = tenacity.wait_random_exponential(
        multiplier=limits.first_wait_s, max=limits.longest_wait_s
    )

    def wait_s(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked_s = (error.retry_after_s or 0.0) if isinstance(error, StoreUnavailable) else 0.0
        return max(backing_off(state), min(asked_s, limits.retry_after_s))

    failure: BaseException | None = None

    def remember(state: tenacity.RetryCallState) -> None:
        nonlocal failure
        failure = state.outcome.exception() if state.outcome else None

    def rest(wait_s: float) -> None:
        until_s = time.monotonic() + wait_s
        while (left_s := until_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _ASK_EVERY_S))
            if stopped() and failure is not None:
                raise failure

    for attempt in tenacity.Retrying(
        retry=tenacity.retry_if_exception(
            lambda error: isinstance(error, StoreUnavailable) and not stopped()
        ),
        stop=tenacity.stop_after_attempt(limits.attempts)
        | tenacity.stop_before_delay(limits.retry_s),
        wait=wait_s,
        sleep=rest,
        before_sleep=remember,
        reraise=True,
    ):
        with attempt:
            return send(attempt.retry_state.attempt_number > 1)
    raise AssertionError  # the loop returns or raises
