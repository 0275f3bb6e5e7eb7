# SPDX-License-Identifier: Apache-2.0
"""As whom requests are made: tokens that podsnap asks for, the environment's, or nobody's.

The traps: credentials of google-auth are not made for many threads, so whoever needs a header, the
library or our own connections, gets it here, under the one lock of these credentials; and a server
may refuse a token that our clock takes for good: ``refused`` asks for another.
"""

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, cast

import google.auth
import google.auth.exceptions
from google.auth.credentials import AnonymousCredentials, Credentials
from google.auth.transport.requests import Request

from backends.objects.access_token import AccessToken, TokenSource
from backends.objects.interface import PermissionDenied

GOOGLE_ENDPOINT: Final = "https://storage.googleapis.com"
_SCOPE: Final = "https://www.googleapis.com/auth/devstorage.read_write"
_EMULATOR: Final = "STORAGE_EMULATOR_HOST"
_TIMEOUT_S: Final = 10.0


class SourceCredentials(Credentials):
    """Credentials whose tokens come from a source of ours."""

    def __init__(self, source: TokenSource) -> None:
        super().__init__()
        self._source = source
        self._lent: AccessToken | None = None

    def refresh(self, request: Any) -> None:  # noqa: ANN401, ARG002 - google-auth's signature
        """Ask the source."""
        self._lent = self._source()
        self.token = self._lent.value
        self.expiry = datetime.fromtimestamp(self._lent.expires_s, UTC).replace(tzinfo=None)

    def drop(self) -> None:
        """Tell the source that the token it lent was refused."""
        # A source that keeps tokens has this method; a plain function is simply asked again.
        refused = cast(
            "Callable[[AccessToken], None] | None", getattr(self._source, "refused", None)
        )
        if refused is not None and self._lent is not None:
            refused(self._lent)


class Identity:
    """Makes the headers that say who asks. Safe for many threads; one for each credentials."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        # Its own time-out is two minutes.
        self._ask = functools.partial(Request(), timeout=_TIMEOUT_S)
        self._lock = threading.Lock()
        self._failure: Exception | None = None
        self._failed_at_s = 0.0

    def headers(self) -> Mapping[str, str]:
        """Return the headers of a request, with a token that is good for a while.

        Raises:
            GoogleAuthError: there is none.
            StoreError: the source of tokens says so.
        """
        headers: dict[str, str] = {}
        with self._turn():
            self._credentials.before_request(self._ask, "GET", GOOGLE_ENDPOINT, headers)
        return headers

    def refused(self, headers: Mapping[str, str]) -> bool:
        """Fetch another token for the one that a server refused; false if there is none."""
        if isinstance(self._credentials, AnonymousCredentials):
            return False
        mine = headers.get("authorization")
        with self._turn():
            if mine == f"Bearer {self._credentials.token}":
                if isinstance(self._credentials, SourceCredentials):
                    self._credentials.drop()
                self._credentials.refresh(self._ask)
            return mine != f"Bearer {self._credentials.token}"

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the lock; a fetch that failed while we waited for it has failed for us too."""
        came_at_s = time.monotonic()
        with self._lock:
            if self._failure is not None and self._failed_at_s >= came_at_s:
                raise self._failure.with_traceback(None)
            try:
                yield
            except Exception as error:
                self._failure, self._failed_at_s = error, time.monotonic()
                raise
            self._failure = None


def endpoint_of(endpoint: str) -> str:
    """Return where requests go: ``endpoint``, else what the library's own variable says."""
    return _with_scheme(endpoint) if endpoint else _emulator() or GOOGLE_ENDPOINT


def identity_for(endpoint: str, tokens: TokenSource | None) -> Identity:
    """Return whom to be at a server: who ``tokens`` is, nobody at an emulator, else the default.

    An emulator is what is spoken to in the clear, or named by the library's own variable.

    Raises:
        PermissionDenied: there are no Application Default Credentials.
    """
    if tokens is not None:
        return Identity(SourceCredentials(tokens))
    if endpoint.startswith("http://") or endpoint == _emulator():
        return Identity(AnonymousCredentials())
    try:
        return _default_identity()
    except google.auth.exceptions.GoogleAuthError as error:
        raise PermissionDenied(
            "there are no Application Default Credentials, so no bucket can be asked; on GKE bind "
            "the service account to an identity (Workload Identity Federation), elsewhere mount a "
            "credentials file and name it in GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth "
            f"application-default login ({type(error).__name__})"
        ) from None


def _emulator() -> str:
    found = os.environ.get(_EMULATOR, "")
    return found and _with_scheme(found)


def _with_scheme(address: str) -> str:
    return (address if "://" in address else f"http://{address}").rstrip("/")


@functools.cache
def _default_identity() -> Identity:
    """Look for credentials once: off Google Cloud that takes seconds."""
    credentials, _project = google.auth.default(scopes=[_SCOPE])
    return Identity(credentials)
