# SPDX-License-Identifier: Apache-2.0
"""The double's own rules, where they are easily got wrong: a lenient double proves nothing."""

import base64
import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode, urlsplit

import google_crc32c
import pytest

from tests.gcs.iam import POD_PERMISSIONS
from tests.gcs.objects import crc32c_of_both
from tests.gcs.server import CloudStorageDouble

OBJECTS = "/storage/v1/b/snapshots/o"
UPLOAD = f"/upload{OBJECTS}"
QUANTUM_BYTES = 256 << 10


@pytest.fixture
def line(gcs: CloudStorageDouble) -> Iterator[http.client.HTTPConnection]:
    """One connection, opened anew when it broke."""
    connection = http.client.HTTPConnection(urlsplit(gcs.url).netloc, timeout=10)
    yield connection
    connection.close()


def ask(
    line: http.client.HTTPConnection,
    method: str,
    path: str,
    body: Any = None,  # noqa: ANN401 - JSON or bytes
    **headers: str,
) -> tuple[int, Any, http.client.HTTPMessage]:
    """Send a request; return status, body (parsed if it is JSON) and headers."""
    sent = json.dumps(body).encode() if isinstance(body, dict) else body
    line.request(method, path, sent, {k.replace("_", "-"): v for k, v in headers.items()})
    answer = line.getresponse()
    text = answer.read()
    is_json = "json" in answer.headers.get("Content-Type", "") and text
    return answer.status, json.loads(text) if is_json else text, answer.headers


@pytest.mark.parametrize(("first", "second"), [(0, 7), (1, 0), (3, 1 << 20), (1 << 12, 12345)])
def test_the_checksum_of_a_composed_object_is_that_of_all_its_bytes(
    first: int, second: int
) -> None:
    """It is computed from the parts' checksums and lengths alone."""
    one, two = bytes(range(1, 252)) * first, b"x" * second
    crcs = google_crc32c.value(one), google_crc32c.value(two)
    assert crc32c_of_both(*crcs, len(two)) == google_crc32c.value(one + two)


def test_preconditions_hold_on_compose_and_delete(
    gcs: CloudStorageDouble, line: http.client.HTTPConnection
) -> None:
    """Of the target, and of each source; what other emulators let pass."""
    part = gcs.objects.put("snapshots", "part", b"a")
    gcs.objects.put("snapshots", "there", b"b")

    def compose(target: str, generation: int, wanted: int) -> int:
        holds = {"ifGenerationMatch": str(generation)}
        source = {"name": "part", "objectPreconditions": holds}
        path = f"{OBJECTS}/{target}/compose?ifGenerationMatch={wanted}"
        return ask(line, "POST", path, {"sourceObjects": [source, {"name": "part"}]})[0]

    assert compose("there", part.generation, 0) == 412
    assert compose("new", part.generation + 1, 0) == 412
    assert compose("new", part.generation, 0) == 200
    made = gcs.objects.get("snapshots", "new", {})
    assert (made.components, gcs.objects.read("snapshots", "new")) == (2, b"aa")
    assert ask(line, "DELETE", f"{OBJECTS}/new?ifGenerationMatch={part.generation}")[0] == 412
    assert ask(line, "DELETE", f"{OBJECTS}/new?ifGenerationMatch={made.generation}")[0] == 204


def test_an_upload_that_broke_off_goes_on_from_whole_quanta(
    gcs: CloudStorageDouble, line: http.client.HTTPConnection
) -> None:
    """What came of the last 256 KiB is lost, as it may be at Google's."""
    data = bytes(range(256)) * 4096
    _, _, headers = ask(line, "POST", f"{UPLOAD}?uploadType=resumable&name=big", {})
    session = headers["Location"].removeprefix(gcs.url)
    gcs.fail("^PUT", "torn", at_byte=QUANTUM_BYTES * 2 + 5)
    with pytest.raises((http.client.HTTPException, OSError)):
        ask(line, "PUT", session, data, Content_Range=f"bytes 0-{len(data) - 1}/{len(data)}")
    line.close()

    status, _, headers = ask(line, "PUT", session, Content_Range=f"bytes */{len(data)}")
    assert (status, headers["Range"]) == (308, f"bytes=0-{QUANTUM_BYTES * 2 - 1}")
    rest = data[QUANTUM_BYTES * 2 :]
    where = f"bytes {QUANTUM_BYTES * 2}-{len(data) - 1}/{len(data)}"
    stated = base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()
    code, made, _ = ask(
        line, "PUT", session, rest, Content_Range=where, X_Goog_Hash=f"crc32c={stated}"
    )
    assert (code, made["size"], made["crc32c"]) == (200, str(len(data)), stated)
    assert gcs.objects.read("snapshots", "big") == data


@pytest.mark.parametrize("end", [b"", b"\r\n"], ids=["no line's end", "a line's end"])
@pytest.mark.parametrize("size", [0, 1, 70_000])
def test_a_multipart_upload_ends_where_its_data_end(
    gcs: CloudStorageDouble, line: http.client.HTTPConnection, size: int, end: bytes
) -> None:
    """And a byte that changed on the way is refused, by the checksum in the description."""
    data = b"\n-" * size
    crc = base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()
    described = json.dumps({"name": "some", "crc32c": crc}).encode()
    head = b"--b\r\nContent-Type: application/json\r\n\r\n" + described + b"\r\n--b\r\n\r\n"
    body = head + data + b"\r\n--b--" + end
    path, kind = f"{UPLOAD}?uploadType=multipart", "multipart/related; boundary=b"
    assert ask(line, "POST", path, body, Content_Type=kind)[0] == 200
    assert gcs.objects.read("snapshots", "some") == data
    if size > 1:
        gcs.fail("^POST", "flip", at_byte=size)
        assert ask(line, "POST", path, body, Content_Type=kind)[0] == 400


def test_who_may_not_list_is_not_told_what_is_missing(
    gcs: CloudStorageDouble, line: http.client.HTTPConnection
) -> None:
    """A Pod-side identity sees 403 for what is not there, and nothing beside its folder."""
    gcs.access.allow("pod", *POD_PERMISSIONS, bucket="snapshots", prefix="team/")
    gcs.access.allow("all", *POD_PERMISSIONS, "storage.objects.list", bucket="snapshots")
    gcs.objects.put("snapshots", "team/a", b"a")
    gcs.objects.put("snapshots", "other", b"a")

    def get(principal: str, name: str) -> tuple[int, str]:
        token = f"Bearer {gcs.access.token(principal)}"
        code, body, _ = ask(line, "GET", f"{OBJECTS}/{name}", Authorization=token)
        return code, body["error"]["message"].partition(" access ")[0] if code != 200 else ""

    assert get("pod", "team%2Fa") == (200, "")
    assert get("pod", "team%2Fb") == (403, "pod does not have storage.objects.list")
    assert get("pod", "other") == (403, "pod does not have storage.objects.get")
    assert get("all", "team%2Fb")[0] == 404
    gcs.access.expire("all")
    token = f"Bearer {gcs.access.token('all', valid_s=0)}"
    assert ask(line, "GET", f"{OBJECTS}/other", Authorization=token)[0] == 401


def test_a_downscoped_token_reaches_what_its_boundary_names(
    gcs: CloudStorageDouble, line: http.client.HTTPConnection
) -> None:
    """Never more than the boundary leaves, never more than the principal has."""
    gcs.access.allow("minter", *POD_PERMISSIONS, bucket="snapshots")
    for name in ("a/x", "ab/x"):
        gcs.objects.put("snapshots", name, b"1")
    start = "resource.name.startsWith('projects/_/buckets/snapshots/objects/a/')"
    rule = {
        "availableResource": "//storage.googleapis.com/projects/_/buckets/snapshots",
        "availablePermissions": ["inRole:roles/storage.objectViewer"],
        "availabilityCondition": {"expression": start},
    }
    asked = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "subject_token": gcs.access.token("minter"),
        "options": json.dumps({"accessBoundary": {"accessBoundaryRules": [rule]}}),
    }
    form = "application/x-www-form-urlencoded"
    code, found, _ = ask(line, "POST", "/v1/token", urlencode(asked), Content_Type=form)
    assert code == 200
    token = f"Bearer {found['access_token']}"
    assert ask(line, "GET", f"{OBJECTS}/a%2Fx", Authorization=token)[0] == 200
    assert ask(line, "GET", f"{OBJECTS}/ab%2Fx", Authorization=token)[0] == 403
    assert ask(line, "DELETE", f"{OBJECTS}/a%2Fx", Authorization=token)[0] == 403


def test_pages_cut_names_at_the_delimiter_and_miss_none(
    gcs: CloudStorageDouble, line: http.client.HTTPConnection
) -> None:
    """A folder counts as one, also where a page ends in it."""
    for name in ("a", "b/1", "b/2", "b0", "c/1", "d"):
        gcs.objects.put("snapshots", name, b"")
    seen, token = [], ""
    while True:
        query = f"maxResults=1&delimiter=/&pageToken={token}"
        page = ask(line, "GET", f"{OBJECTS}?{query}")[1]
        seen += [o["name"] for o in page.get("items", ())] + page.get("prefixes", [])
        if not (token := page.get("nextPageToken", "")):
            break
    assert seen == ["a", "b/", "b0", "c/", "d"]


def test_an_answer_breaks_off_where_the_bytes_end(
    gcs: CloudStorageDouble, line: http.client.HTTPConnection
) -> None:
    """A part that lost its end on the disk still has its old length in the metadata."""
    gcs.objects.put("snapshots", "part", b"x" * 1000)
    gcs.objects.truncate("snapshots", "part", 600)
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(line, "GET", f"{OBJECTS}/part?alt=media")
    assert len(caught.value.partial) == 600
