# SPDX-License-Identifier: Apache-2.0
"""What Cloud Storage's answers mean, and the arithmetic of its checksums."""

import base64
import json

import google.auth.exceptions
import google_crc32c
import pytest
import requests
from google.api_core.exceptions import from_http_status
from hypothesis import given
from hypothesis import strategies as st

from backends.objects.crc32c_combine import combined
from backends.objects.gcs.errors import Asked, Permission
from backends.objects.interface import (
    BucketMissing,
    IntegrityError,
    ObjectNotFound,
    PermissionDenied,
    PreconditionFailed,
    StoreError,
    StoreUnavailable,
)

READ = Asked("b", "a/pages.img", Permission.GET)
CREATE = Asked("b", "a/pages.img", Permission.CREATE)
LIST = Asked("b", "", Permission.LIST)
DESCRIBE = Asked("b", "", Permission.DESCRIBE)
HIDDEN = "ya29.a0AfH6SMBx-secret_secret"


def body(message: str, reason: str = "") -> str:
    """Return an error as the JSON API writes it."""
    return json.dumps({"error": {"code": 0, "message": message, "errors": [{"reason": reason}]}})


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_checksums_of_parts_make_the_checksum_of_the_whole(parts: list[bytes]) -> None:
    """Of none, of empty ones, of any."""

    def checksum(data: bytes) -> str:
        return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()

    assert combined((checksum(p), len(p)) for p in parts) == checksum(b"".join(parts))


ANSWERS = {
    "bucket": (READ, 404, body("The specified bucket does not exist."), BucketMissing),
    "bucket, bare": (READ, 404, "The specified bucket does not exist.", BucketMissing),
    "object named as a bucket": (
        READ,
        404,
        body("No such object: b/The specified bucket does not exist"),
        ObjectNotFound,
    ),
    "bucket not found, says a proxy": (LIST, 404, "bucket not found", StoreError),
    "page of a proxy": (READ, 404, "<html>Not Found", StoreError),
    "object": (READ, 404, body("No such object: b/a/pages.img"), ObjectNotFound),
    "object, bare": (READ, 404, "Not Found", ObjectNotFound),
    "list": (LIST, 404, body("Not Found"), BucketMissing),
    "list, bare": (LIST, 404, "Not Found", StoreError),
    "describe": (DESCRIBE, 404, body("Not Found"), BucketMissing),
    "upload": (CREATE, 404, body("The specified bucket does not exist."), BucketMissing),
    "upload, bare": (CREATE, 404, "Not Found", StoreError),
    "part of a compose": (CREATE, 404, body("No such object: b/part"), ObjectNotFound),
    "part, in other words": (
        CREATE,
        404,
        body("Object b/part (generation: 1) not found."),
        ObjectNotFound,
    ),
    "precondition": (CREATE, 412, body("At least one of ..."), PreconditionFailed),
    "checksum": (
        CREATE,
        400,
        body('Provided CRC32C "AAAAAA==" doesn\'t match calculated CRC32C "4waSgw==".'),
        IntegrityError,
    ),
    "nonsense": (CREATE, 400, body("Required"), StoreError),
    "rate": (CREATE, 429, body("slow down"), StoreUnavailable),
    "old rate": (CREATE, 403, body("Rate", "rateLimitExceeded"), StoreUnavailable),
    "time-out": (READ, 408, "", StoreUnavailable),
    "inside": (READ, 500, "<html>", StoreUnavailable),
    "gateway": (READ, 502, "", StoreUnavailable),
    "denied": (READ, 403, body("x does not have storage.objects.get access"), PermissionDenied),
    "absent to who may not list": (
        READ,
        403,
        body("x does not have storage.objects.list access to the bucket."),
        ObjectNotFound,
    ),
    "may not list": (LIST, 403, body("does not have storage.objects.list"), PermissionDenied),
    "token": (READ, 401, body("Invalid Credentials"), PermissionDenied),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_has_one_meaning(answer: str) -> None:
    """By its status first, by its words where the status is not enough."""
    asked, status, text, kind = ANSWERS[answer]
    assert type(asked.refused(status, text)) is kind
    assert type(asked.refused(status, text.encode())) is kind


PRINCIPALS = {
    "p@x.iam.gserviceaccount.com": "serviceAccount:p@x.iam.gserviceaccount.com",
    "someone@example.org": "user:someone@example.org",
    "principal://iam.googleapis.com/p/subject/ns/a/sa/b": (
        "principal://iam.googleapis.com/p/subject/ns/a/sa/b"
    ),
    "Anonymous caller": "MEMBER",
}


@pytest.mark.parametrize("principal", PRINCIPALS)
def test_the_command_grants_to_who_asked(principal: str) -> None:
    """If the server says who that is."""
    message = f"{principal} does not have storage.folders.create access to the folder."
    text = str(CREATE.refused(403, body(message)))
    assert text.startswith("storage.folders.create on gs://b/a/pages.img is missing")
    assert f"--member={PRINCIPALS[principal]} --role=roles/storage.objectUser" in text


def test_no_grant_is_advised_where_none_is_missing() -> None:
    """A perimeter or a bill says 403 too."""
    error = CREATE.refused(403, body("Request is prohibited by organization's policy."))
    assert type(error) is PermissionDenied
    assert "organization's policy" in str(error)
    assert "add-iam-policy-binding" not in str(error)


RETRY_AFTER = {
    "7": 7.0,
    "inf": None,
    "nan": None,
    "-1": 0.0,
    "0": 0.0,
    "": None,
    "soon": None,
    "Wed, 21 Oct 2015 07:28:00 GMT": 0.0,
}


@pytest.mark.parametrize("header", RETRY_AFTER)
def test_retry_after_is_seconds_or_a_date(header: str) -> None:
    """A date that is over means now."""
    error = READ.refused(503, "", retry_after=header)
    assert isinstance(error, StoreUnavailable)
    assert error.retry_after_s == RETRY_AFTER[header]


ERRORS = [
    requests.ConnectionError(f"http://h/upload?upload_id={HIDDEN} refused"),
    google.auth.exceptions.TransportError(f"Authorization: Bearer {HIDDEN}"),
    google.auth.exceptions.RefreshError("invalid_grant", f'{{"access_token": "{HIDDEN}"}}'),
    from_http_status(403, f"GET https://h?access_token={HIDDEN}: no"),
    from_http_status(503, f"Bearer {HIDDEN}"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_no_text_has_a_token(error: Exception) -> None:
    """Whatever a library puts into its own."""
    found = CREATE.failed(error)
    assert isinstance(found, StoreError)
    assert "gs://b/a/pages.img" in str(found)
    assert HIDDEN not in str(found)
    assert "secret" not in str(found)
