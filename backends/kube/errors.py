# SPDX-License-Identifier: Apache-2.0
"""The API server's refusals, by what a caller does about them.

ApiError
├── NotFound            404: it is gone
├── Conflict            409: somebody else was faster, or the UID is another one
│   └── AlreadyExists   409 with reason AlreadyExists
├── Forbidden           401, 403: RBAC or credentials
├── Gone                410: the resourceVersion is too old, list again
├── Invalid             400, 422: the object is wrong
├── TooManyRequests     429: later
└── ServerUnavailable   5xx, no connection, no answer in time
"""

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """A request was refused or not answered."""

    def __init__(
        self,
        message: str,
        *,
        code: int = 0,
        reason: str = "",
        details: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """Keep what the ``Status`` object said."""
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.details = details or {}
        self.retry_after_s = retry_after_s


class NotFound(ApiError):  # noqa: N818 - the API's own word, as are the next ones
    """There is no such object."""


class Conflict(ApiError):  # noqa: N818
    """The object is not as the request presumed."""


class AlreadyExists(Conflict):
    """An object of that name is there."""


class Forbidden(ApiError):  # noqa: N818
    """The identity may not do this."""


class Gone(ApiError):  # noqa: N818
    """The resourceVersion is too old to go on from."""


class Invalid(ApiError):  # noqa: N818
    """The object breaks its schema or an admission rule."""


class TooManyRequests(ApiError):  # noqa: N818
    """The server asks for patience."""


class ServerUnavailable(ApiError):  # noqa: N818
    """No answer, or one that says nothing about the request."""


_BY_CODE: Mapping[int, type[ApiError]] = {
    400: Invalid,
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: TooManyRequests,
}
_SERVER_ERROR = 500


def from_status(
    code: int, status: Mapping[str, Any], *, retry_after_s: float | None = None
) -> ApiError:
    """Build the exception for an answer; ``status`` may be empty if the body was none."""
    reason = str(status.get("reason") or "")
    kind = ServerUnavailable if code >= _SERVER_ERROR else _BY_CODE.get(code, ApiError)
    details = status.get("details") or {}
    if reason == "AlreadyExists":
        kind = AlreadyExists
    if any(cause.get("field") == "metadata.uid" for cause in details.get("causes") or ()):
        kind = Conflict  # an apply for an object that was deleted and made anew: 422, not 409
    if reason == "Expired":
        kind = Gone
    seconds = details.get("retryAfterSeconds")
    return kind(
        str(status.get("message") or f"HTTP {code}"),
        code=code,
        reason=reason,
        details=details,
        retry_after_s=float(seconds) if seconds else retry_after_s,
    )
