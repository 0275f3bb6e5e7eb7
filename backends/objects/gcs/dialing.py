# SPDX-License-Identifier: Apache-2.0
"""How a server is reached, and whom it has to be vouched for by.

The trap: the socket library counts a time-out for each address of a name anew, so a host with many
dead ones takes minutes.
"""

import errno
import functools
import os
import socket
import ssl
import time
from pathlib import Path

from requests.utils import DEFAULT_CA_BUNDLE_PATH


def dial(address: tuple[str, int], timeout_s: float, _source: object = None) -> socket.socket:
    """Connect to one of the addresses of a host, within one time for all of them."""
    until_s = time.monotonic() + timeout_s
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    failure: OSError = TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    for number, (family, kind, protocol, _, each) in enumerate(found):
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            break
        dialed = socket.socket(family, kind, protocol)
        try:
            dialed.settimeout(left_s / (len(found) - number))
            dialed.connect(each)
        except OSError as error:
            dialed.close()
            failure = error
        else:
            return dialed
    raise failure


def authorities() -> str:
    """Return the file of trusted authorities, as the library's requests pick it."""
    named = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    return named or str(DEFAULT_CA_BUNDLE_PATH)


@functools.cache
def tls(authorities: str) -> ssl.SSLContext:
    """Load the authorities once: that takes 20 ms."""
    if Path(authorities).is_dir():
        return ssl.create_default_context(capath=authorities)
    return ssl.create_default_context(cafile=authorities)
