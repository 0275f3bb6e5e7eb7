# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N818 - the names are the API's own reasons, as users and logs know them
"""What the API server refused, as types.

The trap: the HTTP code alone does not tell. 409 is both "exists already" and "changed meanwhile",
and 410 comes as an HTTP answer or inside a watch; the ``reason`` of the Status decides.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import orjson

_MESSAGE_LIMIT: Final = 500


@dataclass(frozen=True, slots=True)
class StatusDetails:
    """The answer in numbers and words; ``code`` is 0 when there was no answer at all."""

    code: int
    reason: str
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)
    retry_after_s: float | None = None


class KubeConfigError(Exception):
    """The way to the API server is not described well enough to try it."""


class ApiError(Exception):
    """The API server refused, or could not be reached."""

    def __init__(self, status: StatusDetails) -> None:
        super().__init__(f"{status.code} {status.reason}: {status.message}")
        self.status = status

    @property
    def code(self) -> int:
        """The HTTP code; 0 without an answer."""
        return self.status.code

    @property
    def reason(self) -> str:
        """The machine-readable reason, such as ``NotFound``."""
        return self.status.reason

    @property
    def message(self) -> str:
        """The server's sentence."""
        return self.status.message

    @property
    def details(self) -> Mapping[str, Any]:
        """The Status' ``details``: kind, name, causes."""
        return self.status.details

    @property
    def retry_after_s(self) -> float | None:
        """Seconds that the server asked to wait, if it did."""
        return self.status.retry_after_s


class NotFound(ApiError):
    """The object, or the kind, does not exist."""


class AlreadyExists(ApiError):
    """An object of this name exists."""


class Conflict(ApiError):
    """A resourceVersion, a UID or a field's owner is not the one expected."""

    @property
    def is_field_conflict(self) -> bool:
        """Whether another field manager owns a field that was applied."""
        causes = self.details.get("causes") or ()
        return any(cause.get("reason") == "FieldManagerConflict" for cause in causes)


class Unauthorized(ApiError):
    """The credentials are missing, wrong or over."""


class Forbidden(ApiError):
    """The identity is known and may not do this."""


class Gone(ApiError):
    """The resourceVersion is too old; list again."""


class Invalid(ApiError):
    """The object breaks its schema or a rule."""


class TooManyRequests(ApiError):
    """The server asks for patience."""


class ServerUnavailable(ApiError):
    """The server failed, or there was no connection to it."""


_BY_REASON: Final[Mapping[str, type[ApiError]]] = {
    "NotFound": NotFound,
    "AlreadyExists": AlreadyExists,
    "Conflict": Conflict,
    "Unauthorized": Unauthorized,
    "Forbidden": Forbidden,
    "Gone": Gone,
    "Expired": Gone,
    "Invalid": Invalid,
    "BadRequest": Invalid,
    "TooManyRequests": TooManyRequests,
}

_BY_CODE: Final[Mapping[int, type[ApiError]]] = {
    HTTPStatus.BAD_REQUEST: Invalid,
    HTTPStatus.UNAUTHORIZED: Unauthorized,
    HTTPStatus.FORBIDDEN: Forbidden,
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.CONFLICT: Conflict,
    HTTPStatus.GONE: Gone,
    HTTPStatus.UNPROCESSABLE_ENTITY: Invalid,
    HTTPStatus.TOO_MANY_REQUESTS: TooManyRequests,
}


def from_status(status: Mapping[str, Any], *, code: int = 0, retry_after: str = "") -> ApiError:
    """Return the exception for a Status object; ``code`` and ``retry_after`` are the HTTP ones."""
    details = status.get("details") or {}
    code = int(status.get("code") or code)
    reason = status.get("reason") or ""
    kind = _BY_REASON.get(reason) or _BY_CODE.get(code)
    if kind is None:
        kind = ServerUnavailable if code >= HTTPStatus.INTERNAL_SERVER_ERROR else ApiError
    seconds = _seconds(retry_after)
    if seconds is None and details.get("retryAfterSeconds"):
        seconds = float(details["retryAfterSeconds"])
    return kind(
        StatusDetails(
            code=code,
            reason=reason or _phrase(code),
            message=status.get("message") or "the server gave no message",
            details=details,
            retry_after_s=seconds,
        )
    )


def from_answer(code: int, headers: Mapping[str, str], content: bytes) -> ApiError:
    """Return the exception for an HTTP answer; a body that is no Status becomes the message."""
    retry_after = headers.get("Retry-After", "")
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict) or body.get("kind") != "Status":
        text = content[:_MESSAGE_LIMIT].decode(errors="replace").strip()
        body = {"message": text}
    return from_status(body, code=code, retry_after=retry_after)


def unreachable(server: str, error: Exception) -> ServerUnavailable:
    """Return the exception for a connection that failed."""
    return ServerUnavailable(
        StatusDetails(code=0, reason="Unreachable", message=f"no answer from {server}: {error}")
    )


def _seconds(retry_after: str) -> float | None:
    # The other form, an HTTP date, is never sent by kube-apiserver.
    return float(retry_after) if retry_after.isdecimal() else None


def _phrase(code: int) -> str:
    try:
        return HTTPStatus(code).phrase.replace(" ", "")
    except ValueError:
        return "Unknown"
