# SPDX-License-Identifier: Apache-2.0
"""The HTTP sessions of google-cloud-storage, with our tokens, over connections that all share.

Stores come and go with their snapshots. The trap: a session of requests has connections of its own
and no end of its own, so a process that opens a store for each snapshot would collect sockets. Here
connections belong to the process, and who asks stands in each request.
"""

import functools
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import requests
import requests.adapters

from backends.objects.gcs.identity import Identity

# As many servers as are spoken to, and as many threads as speak to one, before some are made anew.
_SERVERS: Final = 8
_AT_ONCE: Final = 64


class IdentitySession(requests.Session):
    """A session that asks as somebody, and once more with another token if one was refused."""

    def __init__(self, identity: Identity) -> None:
        super().__init__()
        self._identity = identity
        for scheme in ("https://", "http://"):
            self.mount(scheme, _connections())

    def request(  # type: ignore[override] # the library names all others
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        **rest: Any,  # noqa: ANN401 - what the library hands through
    ) -> requests.Response:
        """Send a request; its body is in memory, so it can be sent again."""
        who = self._identity.headers()
        answer = super().request(method, url, headers={**(headers or {}), **who}, **rest)
        if answer.status_code == HTTPStatus.UNAUTHORIZED and self._identity.refused(who):
            who = self._identity.headers()
            answer = super().request(method, url, headers={**(headers or {}), **who}, **rest)
        return answer

    def close(self) -> None:
        """Do nothing: the connections are not this session's."""


@functools.cache
def _connections() -> requests.adapters.HTTPAdapter:
    return requests.adapters.HTTPAdapter(pool_connections=_SERVERS, pool_maxsize=_AT_ONCE)
