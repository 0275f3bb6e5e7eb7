# SPDX-License-Identifier: Apache-2.0
"""What Cloud Storage's refusals mean, and what to do about them.

The traps: a caller who may not list is told 403, not 404, about an object that is not there; any
proxy says 404, but a bucket is only missing in Google's own words; and texts of libraries carry
URLs, so only what the server itself says is passed on, without tokens.
"""

import math
import re
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final

import google.auth.exceptions
import orjson
import requests
from google.api_core.exceptions import GoogleAPICallError
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

from backends.objects.interface import (
    BucketMissing,
    IntegrityError,
    ObjectNotFound,
    PermissionDenied,
    PreconditionFailed,
    StoreError,
    StoreUnavailable,
)


class Permission(StrEnum):
    """What an operation needs, by IAM's names."""

    GET = "storage.objects.get"
    CREATE = "storage.objects.create"
    DELETE = "storage.objects.delete"
    LIST = "storage.objects.list"
    DELETE_FOLDER = "storage.folders.delete"
    DESCRIBE = "storage.buckets.get"


_BUCKET_VIEWER: Final = "roles/storage.bucketViewer"
_OBJECT_USER: Final = "roles/storage.objectUser"
_PERMISSION: Final = re.compile(r"storage\.[A-Za-z]+\.[A-Za-z]+")
_PRINCIPAL: Final = re.compile(r"^(\S+) does not have ")
_NO_BUCKET: Final = re.compile(r"The specified bucket does not exist")  # nothing before it
_NO_OBJECT: Final = re.compile(r"No such object|Object ")
_BAD_CHECKSUM: Final = re.compile(r"crc32c|md5|checksum|hash", re.IGNORECASE)
_SECRETS: Final = re.compile(r"Bearer\s+\S+|\b(ya29\.|eyJ)[\w.~+/=-]+|upload_id=[^\s&]+")
_RATE_REASONS: Final = frozenset({"rateLimitExceeded", "userRateLimitExceeded"})
_LONGEST_TEXT: Final = 400
_OVERWHELMED: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})

# What may come out of google-cloud-storage and below it.
LIBRARY_ERRORS: Final = (
    GoogleAPICallError,
    InvalidResponse,
    DataCorruption,
    google.auth.exceptions.GoogleAuthError,
    requests.RequestException,
    OSError,
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request was about. ``name`` is empty if it was about the bucket itself."""

    bucket: str
    name: str
    permission: Permission

    def __str__(self) -> str:
        return f"gs://{self.bucket}/{self.name}" if self.name else f"gs://{self.bucket}"

    def refused(
        self, status: int, body: bytes | str, *, retry_after: str | None = None
    ) -> StoreError:
        """Turn an answer that is no success into what to raise."""
        message, reason, in_json = _said(body)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _OVERWHELMED:
            return StoreUnavailable(
                f"{self}: Cloud Storage answered {status}{_colon(message)}",
                retry_after_s=_seconds(retry_after),
            )
        if status == HTTPStatus.FORBIDDEN and reason in _RATE_REASONS:
            return StoreUnavailable(f"{self}: {message}", retry_after_s=_seconds(retry_after))
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return self._denied(status, message)
        if status == HTTPStatus.NOT_FOUND:
            return self._missing(message, in_json=in_json)
        if status in {HTTPStatus.PRECONDITION_FAILED, HTTPStatus.NOT_MODIFIED}:
            return PreconditionFailed(f"{self} has another generation by now")
        if status == HTTPStatus.BAD_REQUEST and _BAD_CHECKSUM.search(message):
            return IntegrityError(f"{self}: the bytes that arrived are not those sent: {message}")
        return StoreError(f"{self}: Cloud Storage answered {status}{_colon(message)}")

    def failed(self, error: Exception) -> StoreError:
        """Turn what the library raised into what to raise."""
        if isinstance(error, StoreError):
            return error
        if isinstance(error, InvalidResponse):
            answer = error.response
            return self.refused(
                answer.status_code, answer.content, retry_after=answer.headers.get("Retry-After")
            )
        if isinstance(error, GoogleAPICallError):
            response: Any = error.response
            return self.refused(
                int(error.code or 0),
                response.content if response is not None else str(error.message),
                retry_after=response.headers.get("Retry-After") if response is not None else None,
            )
        if isinstance(error, DataCorruption):
            return IntegrityError(f"{self}: the bytes that arrived are not those sent")
        if isinstance(error, google.auth.exceptions.GoogleAuthError):
            return self._no_token(error)
        if isinstance(error, (requests.RequestException, OSError)):
            return self.broken(error)
        return StoreError(f"{self}: {type(error).__name__}: {_clean(str(error))}")

    def broken(self, error: Exception) -> StoreError:
        """Say that the connection failed; the error's own text may hold an URL with a secret."""
        why = ""
        for cause in _causes(error):
            if isinstance(cause, ssl.SSLCertVerificationError):
                return StoreError(
                    f"{self}: the server's certificate is not trusted: {cause.verify_message}; if "
                    "it is of an authority of your own, name its file in REQUESTS_CA_BUNDLE"
                )
            if isinstance(cause, TimeoutError):  # those of sockets have no other text
                why = why or "it timed out"
            elif isinstance(cause, OSError) and cause.strerror:
                why = why or cause.strerror
        why = why or type(error).__name__
        return StoreUnavailable(f"{self}: the connection to Cloud Storage failed: {why}")

    def no_resource(self) -> StoreUnavailable:
        """Say that a success came without what it is a success of."""
        return StoreUnavailable(
            f"{self}: the answer was a success without a resource; something between here and "
            "Cloud Storage answers in its place"
        )

    def _missing(self, message: str, *, in_json: bool) -> StoreError:
        of_bucket = in_json and self.permission in {Permission.LIST, Permission.DESCRIBE}
        if of_bucket or _NO_BUCKET.match(message):
            return BucketMissing(
                f"bucket {self.bucket} does not exist; create it (gcloud storage buckets "
                f"create gs://{self.bucket} --location=REGION --uniform-bucket-level-access "
                "--enable-hierarchical-namespace) or correct the storage config's name"
            )
        # Of an upload no object can be missing; of a compose one can, and Google names it.
        creating = self.permission == Permission.CREATE and not _NO_OBJECT.match(message)
        if not self.name or creating or message.startswith("<"):
            return StoreError(
                f"{self}: the answer was 404{_colon(message)}, and not in Cloud Storage's words; "
                "look at the endpoint and at proxies before it"
            )
        return ObjectNotFound(f"{self} is not there{_colon(message)}")

    def _denied(self, status: int, message: str) -> StoreError:
        named = _PERMISSION.search(message)
        permission = named[0] if named else str(self.permission)
        if status == HTTPStatus.UNAUTHORIZED:
            return PermissionDenied(
                f"{permission} on {self}: Cloud Storage did not accept the token "
                f"(401{_colon(message)}), so it is expired, revoked or of another project, or the "
                "clocks differ; look at the identity of the storage config's tokenSource"
            )
        if self.name and permission == Permission.LIST != self.permission:
            return ObjectNotFound(f"{self} is not there (nor may its bucket be listed)")
        if not named:  # a policy of the organization, a perimeter, a bill: no grant helps
            return PermissionDenied(
                f"{permission} on {self} is refused (403){_colon(message)}; the answer names no "
                "permission, so look at the project's billing, organization policies and perimeters"
            )
        principal = _PRINCIPAL.match(message)
        member = _member(principal[1]) if principal else "MEMBER"
        role = _BUCKET_VIEWER if permission.startswith("storage.buckets.") else _OBJECT_USER
        return PermissionDenied(
            f"{permission} on {self} is missing{_colon(message)}; grant it: gcloud storage buckets "
            f"add-iam-policy-binding gs://{self.bucket} --member={member} --role={role}"
        )

    def _no_token(self, error: google.auth.exceptions.GoogleAuthError) -> StoreError:
        if error.retryable or isinstance(error, google.auth.exceptions.TransportError):
            return StoreUnavailable(f"{self}: no token could be fetched: {_clean(str(error))}")
        return PermissionDenied(
            f"{self.permission} on {self}: there is no token to ask with: {_clean(str(error))}"
        )


def _said(body: bytes | str) -> tuple[str, str, bool]:
    """Return the message and the reason of an answer, and whether it is one of the JSON API."""
    try:
        error = orjson.loads(body)["error"]
        reasons = [entry.get("reason", "") for entry in error.get("errors") or [{}]]
        return _clean(str(error.get("message", ""))), str(reasons[0]), True
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        text = body.decode(errors="replace") if isinstance(body, bytes) else body
        return _clean(text), "", False


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from; urllib3 keeps that among the arguments."""
    waiting, seen = [error], set[int]()
    while waiting:
        cause = waiting.pop(0)
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        further = (cause.__cause__, cause.__context__, *cause.args)
        waiting += [each for each in further if isinstance(each, BaseException)]


def _clean(text: str) -> str:
    return " ".join(_SECRETS.sub("…", text).split())[:_LONGEST_TEXT].rstrip(". ")


def _colon(message: str) -> str:
    return f": {message}" if message else ""


def _seconds(retry_after: str | None) -> float | None:
    if not retry_after:
        return None
    try:
        asked_s = float(retry_after)
    except ValueError:
        try:
            asked_s = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(asked_s, 0.0) if math.isfinite(asked_s) else None


def _member(principal: str) -> str:
    if principal.startswith(("principal:", "principalSet:")):
        return principal
    if principal.endswith("gserviceaccount.com"):
        return f"serviceAccount:{principal}"
    return f"user:{principal}" if "@" in principal else "MEMBER"
