# SPDX-License-Identifier: Apache-2.0
"""A bearer token with an end. It never shows in a text: not in logs, errors or traces."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class AccessToken:
    """An OAuth 2 access token; ``expires_s`` in seconds since the epoch, by our clock."""

    value: str = field(repr=False)
    expires_s: float


# Returns a token that is good for a while yet; asks for a new one where it has to.
TokenSource = Callable[[], AccessToken]
