# SPDX-License-Identifier: Apache-2.0
"""A bucket of Cloud Storage that fails, stalls, lies, refuses and forgets: what our store does.

Against our double, which can be made to do all of it.
"""

import collections
import contextlib
import itertools
import os
import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cluster_world import eventually

from backends.objects.access_token import AccessToken
from backends.objects.factory import BucketAccess
from backends.objects.gcs import composed_upload
from backends.objects.gcs.identity import Identity, SourceCredentials
from backends.objects.gcs.limits import Limits
from backends.objects.gcs.store import GcsStore
from backends.objects.interface import (
    IntegrityError,
    ObjectInfo,
    PermissionDenied,
    PreconditionFailed,
    PutCancelledError,
    StoreError,
    StoreUnavailable,
)
from localcluster.certificates import Authority
from localcluster.certificates import Identity as Named
from tests.gcs.iam import POD_PERMISSIONS
from tests.gcs.server import CloudStorageDouble, running_cloud_storage

BUCKET = "bucket-1"
NAME = "folder/snapshot/pages.img"
MARKS = {"podsnap-cluster": "c", "podsnap-attempt": "1"}
PART_BYTES = 16 << 10
SIZE_BYTES = 5 * PART_BYTES - 3
LIMITS = Limits(
    part_bytes=PART_BYTES,
    attempts=5,
    first_wait_s=0.005,
    longest_wait_s=0.02,
    retry_after_s=0.4,
)
ONCE = replace(LIMITS, attempts=1)
IMPATIENT = replace(LIMITS, silence_s=0.3)
WHO = "serviceAccount:p@project.iam.gserviceaccount.com"


@pytest.fixture
def gcs(tmp_path: Path) -> Iterator[CloudStorageDouble]:
    """Cloud Storage with one bucket."""
    with running_cloud_storage(tmp_path, BUCKET) as double:
        yield double


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of five parts."""
    path = tmp_path / "pages.img"
    path.write_bytes(os.urandom(SIZE_BYTES))
    return path


@pytest.fixture
def _narrow_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose two at a time, so that five parts have three levels; look for few at once."""
    monkeypatch.setattr(composed_upload, "COMPOSE_AT_ONCE", 2)
    monkeypatch.setattr(composed_upload, "MOST_CONNECTIONS", 4)


def opened(
    gcs: CloudStorageDouble,
    *,
    limits: Limits = LIMITS,
    connections: int = 2,
    tokens: Callable[[], AccessToken] | None = None,
) -> GcsStore:
    """Open the bucket as a new process would."""
    access = BucketAccess(endpoint=gcs.url, connections=connections)
    return GcsStore(BUCKET, access, tokens=tokens, _limits=limits)


def put(store: GcsStore, file: Path, **rest: Callable[[], bool]) -> ObjectInfo:
    """Store the file."""
    return store.put_file(NAME, file, if_generation_match=0, metadata=MARKS, **rest)


def token_of(gcs: CloudStorageDouble, *permissions: str) -> Callable[[], AccessToken]:
    """Return a source of one token with these permissions."""
    gcs.access.allow(WHO, *permissions, bucket=BUCKET)
    token = AccessToken(gcs.access.token(WHO), time.time() + 3600)
    return lambda: token


def whole(gcs: CloudStorageDouble, file: Path) -> bool:
    """Tell whether the bucket has the file, and nothing else."""
    return (
        gcs.objects.names(BUCKET) == [NAME] and gcs.objects.read(BUCKET, NAME) == file.read_bytes()
    )


# -- what is asked again, and for how long

VERBS: dict[str, Callable[[GcsStore, ObjectInfo, Path], object]] = {
    "stat": lambda s, i, _: s.stat(i.name),
    "put_bytes": lambda s, _, __: s.put_bytes("n", b"1", if_generation_match=0, metadata={}),
    "put_file": lambda s, _, f: put(s, f),
    "read_range": lambda s, i, _: s.read_range(i.name, generation=i.generation, start=0, end=1),
    "list": lambda s, _, __: list(s.list("")),
    "delete": lambda s, i, _: s.delete(i.name, if_generation_match=i.generation),
    "describe": lambda s, _, __: s.describe(),
    "remove_folder": lambda s, _, __: s.remove_folder("none"),
}
FAULTS = {
    "429": {"status": 429},
    "503": {"status": 503},
    "reset": {"how": "reset"},
    "torn": {"how": "torn"},
    "lost": {"how": "lost"},
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("verb", VERBS)
def test_a_burst_of_failures_is_sat_out(
    gcs: CloudStorageDouble, file: Path, verb: str, fault: str
) -> None:
    """Three in a row, of any kind; lost answers too, after which our own work stands in the way."""
    store = opened(gcs)
    info = store.put_bytes("a", b"1", if_generation_match=0, metadata=MARKS)
    gcs.fail("", count=3, **FAULTS[fault])
    VERBS[verb](store, info, file)
    assert gcs.faults.hits == 3


def test_a_stall_ends(gcs: CloudStorageDouble, file: Path) -> None:
    """Before an answer, in the middle of a body that comes, and of one that goes."""
    store = opened(gcs, limits=IMPATIENT)
    gcs.fail("upload", "stall", at_byte=100)
    gcs.fail("GET", "stall")
    gcs.fail("compose", "stall")
    info = put(store, file)
    gcs.fail("alt=media", "stall", at_byte=100)
    data = store.read_range(NAME, generation=info.generation, start=0, end=info.size_bytes)
    assert data == file.read_bytes()
    assert gcs.faults.hits == 4


@pytest.mark.parametrize("verb", VERBS)
def test_an_outage_is_told_after_so_many_attempts(
    gcs: CloudStorageDouble, file: Path, verb: str
) -> None:
    """And as what may pass."""
    store = opened(gcs)
    info = store.put_bytes("a", b"1", if_generation_match=0, metadata=MARKS)
    gcs.fail("", status=503, count=10_000)
    with pytest.raises(StoreUnavailable, match="503"):
        VERBS[verb](store, info, file)
    assert gcs.faults.hits == LIMITS.attempts


@pytest.mark.parametrize(("asked", "least_s"), [("0.2", 0.2), ("3600", LIMITS.retry_after_s)])
def test_the_server_says_when_to_come_again(
    gcs: CloudStorageDouble, asked: str, least_s: float
) -> None:
    """Within a bound: an hour is not waited for."""
    gcs.fail("", status=429, retry_after=asked)
    began_s = time.monotonic()
    assert opened(gcs).stat("a") is None
    assert least_s <= time.monotonic() - began_s < least_s + 5


@pytest.mark.parametrize("status", [400, 403, 404, 412])
def test_what_will_not_change_is_asked_once(gcs: CloudStorageDouble, status: int) -> None:
    """A refusal is no failure."""
    gcs.fail("upload", status=status, count=100)
    with pytest.raises(StoreError) as refused:
        opened(gcs).put_bytes("a", b"1", if_generation_match=0, metadata={})
    assert not isinstance(refused.value, StoreUnavailable)
    assert gcs.faults.hits == 1


def test_another_writer_is_not_taken_for_us(gcs: CloudStorageDouble, file: Path) -> None:
    """Our answer is lost, and by the time we ask again somebody else's object is there."""
    store = opened(gcs)
    gcs.fail("upload", "torn", before=lambda: gcs.objects.put(BUCKET, "a", b"1", {"who": "else"}))
    with pytest.raises(PreconditionFailed):
        store.put_bytes("a", b"1", if_generation_match=0, metadata=MARKS)
    gcs.fail("compose", "torn", before=lambda: gcs.objects.put(BUCKET, NAME, b"theirs"))
    with pytest.raises(PreconditionFailed):
        put(store, file)
    assert gcs.objects.names(BUCKET) == ["a", NAME]
    assert gcs.objects.read(BUCKET, NAME) == b"theirs"


def test_our_own_object_does_not_refuse_us(gcs: CloudStorageDouble, file: Path) -> None:
    """Over a kept connection a lost answer is a lost answer too, not one to send again unseen."""
    os.truncate(file, PART_BYTES)
    store = opened(gcs)
    other = store.put_file("other", file, if_generation_match=0, metadata=MARKS)
    store.delete("other", if_generation_match=other.generation)
    gcs.fail("upload", "lost")
    put(store, file)
    assert gcs.faults.hits == 1
    assert whole(gcs, file)


def test_every_request_names_its_generation(gcs: CloudStorageDouble, file: Path) -> None:
    """Writes and deletes what they expect, reads of bytes what they want."""
    store = opened(gcs)
    info = put(store, file)
    small = store.put_bytes("a", b"1", if_generation_match=0, metadata={})
    store.read_range("a", generation=small.generation, start=0, end=1)
    store.delete(NAME, if_generation_match=info.generation)
    said = {"POST": "ifGenerationMatch", "DELETE": "ifGenerationMatch", "GET": "generation"}
    asked = [r for r in gcs.requests if r.method != "GET" or r.query.get("alt") == "media"]
    assert len(asked) > 10
    for request in asked:
        assert request.query.get(said[request.method]), request


# -- large files


def test_parts_travel_at_the_same_time(gcs: CloudStorageDouble, tmp_path: Path) -> None:
    """As many as are allowed: each thread has a connection of ours, and one of the library's."""
    path = tmp_path / "large"
    path.write_bytes(os.urandom(40 * PART_BYTES))
    gcs.limits.latency_s = 0.01
    info = put(opened(gcs, connections=4), path)
    assert (info.component_count, info.expected_components) == (40, 40)
    assert gcs.most_busy >= 3
    assert len(gcs.connections) <= 2 * 4


@pytest.mark.usefixtures("_narrow_tree")
@pytest.mark.parametrize("how", ["torn", "lost"])
def test_an_upload_goes_on_where_it_was_cut_off(
    gcs: CloudStorageDouble, file: Path, how: str
) -> None:
    """At each of its requests: the next process ends it, and nothing is left beside it."""
    os.truncate(file, 4 * PART_BYTES - 3)
    put(opened(gcs), file)
    steps = len(gcs.requests)
    assert steps > 15
    for step in range(steps):
        found = gcs.objects.get(BUCKET, NAME, {})
        gcs.objects.delete(BUCKET, NAME, {"ifGenerationMatch": str(found.generation)})
        gcs.fail("", how, skip=step, count=100_000)
        try:
            put(opened(gcs, limits=ONCE), file)
        except StoreUnavailable:
            gcs.heal()
            try:
                put(opened(gcs), file)
                assert whole(gcs, file), step
            except PreconditionFailed:  # all but its answer came through
                assert how == "lost"
        gcs.heal()
        opened(gcs).discard_put(NAME, metadata=MARKS, size_bytes=SIZE_BYTES)
        assert whole(gcs, file), step


def test_parts_that_are_there_are_not_sent_again(gcs: CloudStorageDouble, file: Path) -> None:
    """After an outage; but a part with other bytes is."""
    store = opened(gcs)
    gcs.fail("compose", status=503, count=100)
    with pytest.raises(StoreUnavailable):
        put(store, file)
    gcs.heal()
    (spoilt, *kept) = gcs.objects.names(BUCKET)
    assert len(kept) == 4
    gcs.objects.put(BUCKET, spoilt, b"other bytes", MARKS)
    before = gcs.payload_bytes[1]
    put(opened(gcs), file)
    assert gcs.payload_bytes[1] - before == PART_BYTES
    assert whole(gcs, file)


@pytest.mark.usefixtures("_narrow_tree")
@pytest.mark.parametrize("match", ["-1-00001/compose", "pages.img/compose"])
def test_an_upload_begins_again_if_its_parts_went_away(
    gcs: CloudStorageDouble, file: Path, match: str
) -> None:
    """Another process may have been done with them; once, at whatever level."""

    def take() -> None:
        name = gcs.objects.names(BUCKET)[-1]
        gcs.objects.delete(BUCKET, name, {})

    gcs.fail(match, before=take)
    put(opened(gcs), file)
    assert gcs.faults.hits == 1
    assert whole(gcs, file)


def test_a_part_that_comes_meanwhile_is_looked_at(gcs: CloudStorageDouble, file: Path) -> None:
    """Ours is kept, another's is replaced; neither ends the upload."""
    gcs.fail("compose", status=503, count=100)
    with pytest.raises(StoreUnavailable):
        put(opened(gcs), file)
    gcs.heal()
    (first, *_) = gcs.objects.names(BUCKET)
    same = gcs.objects.read(BUCKET, first)
    for data in (same, b"other"):
        opened(gcs).discard_put(NAME, metadata=MARKS, size_bytes=SIZE_BYTES)
        assert gcs.objects.names(BUCKET) == []
        gcs.fail(
            "upload",
            before=lambda data=data: gcs.objects.put(BUCKET, first, data, MARKS),
        )
        info = put(opened(gcs, connections=1), file)
        assert whole(gcs, file)
        opened(gcs).delete(NAME, if_generation_match=info.generation)


def test_parts_behind_a_gap_are_discarded_too(gcs: CloudStorageDouble, file: Path) -> None:
    """Another process may have removed the first ones while we wrote the last."""
    gcs.fail("compose", status=503, count=100)
    with pytest.raises(StoreUnavailable):
        put(opened(gcs), file)
    gcs.heal()
    for name in gcs.objects.names(BUCKET)[:-1]:
        gcs.objects.delete(BUCKET, name, {})
    opened(gcs, connections=1).discard_put(NAME, metadata=MARKS, size_bytes=SIZE_BYTES)
    assert gcs.objects.names(BUCKET) == []


def test_to_discard_nothing_takes_few_questions(gcs: CloudStorageDouble) -> None:
    """One for each part there may be; none of a file that goes in one piece."""
    opened(gcs).discard_put(NAME, metadata=MARKS, size_bytes=PART_BYTES)
    assert gcs.requests == []
    opened(gcs).discard_put(NAME, metadata=MARKS, size_bytes=5 * PART_BYTES)
    assert len(gcs.requests) == 5


@pytest.mark.usefixtures("_narrow_tree")
@pytest.mark.parametrize(
    ("match", "status"), [("upload", 403), ("compose", 403), ("compose", 400), ("upload", 412)]
)
def test_an_upload_that_is_refused_leaves_nothing(
    gcs: CloudStorageDouble, file: Path, match: str, status: int
) -> None:
    """Neither parts nor what was composed of them."""
    gcs.fail(match, status=status, skip=2, count=100)
    with pytest.raises(StoreError):
        put(opened(gcs), file)
    assert gcs.objects.names(BUCKET) == []


@pytest.mark.usefixtures("_narrow_tree")
def test_an_upload_can_be_taken_back_at_any_time(gcs: CloudStorageDouble, file: Path) -> None:
    """Each time it asks, until it asks no more."""
    for asked in itertools.count():
        left = iter(range(asked))
        try:
            put(opened(gcs), file, cancelled=lambda left=left: next(left, None) is None)
        except PutCancelledError:
            assert gcs.objects.names(BUCKET) == []
        else:
            break
    assert asked > 5
    assert whole(gcs, file)


def test_bytes_that_change_on_their_way_are_refused(gcs: CloudStorageDouble, file: Path) -> None:
    """Small or large, from a file or from memory: no wrong byte has the name."""
    store = opened(gcs)
    small = file.with_name("small")
    small.write_bytes(b"0123456789")
    for write in (
        lambda: put(store, file),
        lambda: store.put_file("small", small, if_generation_match=0, metadata={}),
        lambda: store.put_bytes("a", b"0123456789", if_generation_match=0, metadata={}),
    ):
        gcs.fail("upload", "flip", at_byte=5)
        with pytest.raises(IntegrityError):
            write()
        assert gcs.objects.names(BUCKET) == []
    assert gcs.faults.hits == 3


def test_a_file_that_shrinks_is_told(gcs: CloudStorageDouble, file: Path) -> None:
    """It is not stored as what is left of it."""
    gcs.fail("GET", before=lambda: os.truncate(file, 100), skip=1)
    with pytest.raises(StoreError, match="ended at byte"):
        put(opened(gcs), file)
    assert gcs.objects.names(BUCKET) == []


@pytest.mark.usefixtures("_narrow_tree")
def test_two_processes_may_make_the_same_object(gcs: CloudStorageDouble, file: Path) -> None:
    """It is there once, whole, whoever was first; their parts have the same names."""
    start = threading.Barrier(2)
    made: list[ObjectInfo] = []

    def write() -> None:
        start.wait(10)
        try:
            made.append(put(opened(gcs), file))
        except (PreconditionFailed, StoreUnavailable):
            return

    for _ in range(5):
        threads = [threading.Thread(target=write) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        if not made:  # each took a part away from the other; the next call ends it
            made.append(put(opened(gcs), file))
        assert len(made) == 1
        assert gcs.objects.read(BUCKET, NAME) == file.read_bytes()
        assert whole(gcs, file)
        opened(gcs).delete(NAME, if_generation_match=made.pop().generation)
        made.clear()


def test_an_outage_does_not_hold_a_write_that_is_taken_back(
    gcs: CloudStorageDouble, file: Path
) -> None:
    """What waits for the next attempt gives up, whatever it is."""
    slow = replace(LIMITS, attempts=300, retry_s=1000.0, retry_after_s=300.0)
    for match in ("upload", "compose"):
        gcs.fail(match, status=503, retry_after="300", count=10_000)
        before = gcs.faults.hits
        began_s = time.monotonic()
        with pytest.raises(PutCancelledError):
            put(
                opened(gcs, limits=slow),
                file,
                cancelled=lambda before=before: gcs.faults.hits > before,
            )
        assert time.monotonic() - began_s < 10
        assert gcs.objects.names(BUCKET) == []
        gcs.heal()


# -- streams


def test_a_stream_that_breaks_is_not_passed_off_as_its_end(gcs: CloudStorageDouble) -> None:
    """The reader is told, asks nothing again by itself, and the next one is well."""
    store = opened(gcs, limits=IMPATIENT)
    made = gcs.objects.put(BUCKET, "a", os.urandom(100_000))
    buffer = memoryview(bytearray(100_000))
    for how in ("torn", "reset", "stall"):
        gcs.fail("alt=media", how, at_byte=50_000)
        before = len(gcs.requests)
        with store.open_range("a", generation=made.generation, start=0, end=100_000) as stream:
            assert stream.readinto(buffer[:40_000]) == 40_000
            with pytest.raises(StoreUnavailable):
                collections.deque(iter(lambda: stream.readinto(buffer), 0))
        assert len(gcs.requests) == before + 1
    data = store.read_range("a", generation=made.generation, start=0, end=100_000)
    assert data == gcs.objects.read(BUCKET, "a")


def test_a_name_with_many_dead_addresses_takes_one_time_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not one for each of them."""
    with contextlib.ExitStack() as stack:
        deaf = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = deaf.getsockname()
        for _ in range(3):  # more than it lets wait
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "", address)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [entry] * 10)
        limits = replace(ONCE, connect_s=0.5)
        store = GcsStore(BUCKET, BucketAccess(endpoint="http://many.invalid:80"), _limits=limits)
        began_s = time.monotonic()
        with pytest.raises(StoreUnavailable, match="timed out"):
            store.read_range("a", generation=1, start=0, end=1)
        assert 0.4 < time.monotonic() - began_s < 2


@pytest.mark.parametrize("parts", [1, 5])
def test_a_dead_line_does_not_hold_a_write_that_is_taken_back(
    gcs: CloudStorageDouble, file: Path, parts: int
) -> None:
    """Nobody waits out a silence of 30 s for it."""
    os.truncate(file, parts * PART_BYTES)
    gcs.fail("upload", "stall", at_byte=100, count=100)
    began_s = time.monotonic()
    with pytest.raises(PutCancelledError):
        put(opened(gcs), file, cancelled=lambda: gcs.faults.hits > 0)
    assert time.monotonic() - began_s < 10


def test_a_trickle_ends(gcs: CloudStorageDouble) -> None:
    """Each byte comes in time, all of them never would."""
    hasty = replace(LIMITS, silence_s=0.3, least_bytes_s=10e6)
    made = gcs.objects.put(BUCKET, "a", bytes(1 << 20))
    gcs.limits.connection_bytes_s = 100_000
    buffer = memoryview(bytearray(1 << 20))
    began_s = time.monotonic()
    with (
        opened(gcs, limits=hasty).open_range(
            "a", generation=made.generation, start=0, end=1 << 20
        ) as stream,
        pytest.raises(StoreUnavailable, match="bytes came in"),
    ):
        stream.readinto(buffer)
    assert time.monotonic() - began_s < 5


def test_stores_that_come_and_go_share_connections(gcs: CloudStorageDouble, file: Path) -> None:
    """A process opens one for each snapshot."""
    os.truncate(file, PART_BYTES)
    stores = [opened(gcs) for _ in range(20)]
    for number, store in enumerate(stores):
        store.put_file(f"{number}", file, if_generation_match=0, metadata=MARKS)
        store.stat(f"{number}")
    assert len(gcs.connections) == 2


@pytest.mark.parametrize("text", ["", "<html>sign in</html>", "{}", "[]", '{"generation": "x"}'])
def test_a_success_without_a_resource_may_pass(file: Path, text: str) -> None:
    """Something in between answered."""

    class Portal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET  # noqa: N815 - the base class's

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's
            pass

    os.truncate(file, PART_BYTES)
    with ThreadingHTTPServer(("127.0.0.1", 0), Portal) as portal:
        thread = threading.Thread(target=portal.serve_forever, args=(0.05,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{portal.server_port}"
            store = GcsStore(BUCKET, BucketAccess(endpoint=url), _limits=ONCE)
            for ask in (
                lambda: store.stat("a"),
                lambda: store.put_bytes("a", b"1", if_generation_match=0, metadata={}),
                lambda: put(store, file),
            ):
                with pytest.raises(StoreUnavailable):
                    ask()
        finally:
            portal.shutdown()
            thread.join()


def test_a_server_is_trusted_by_its_certificate(
    gcs: CloudStorageDouble, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By both ways, of the authorities that requests would take; a wrong one is no outage."""
    authority = Authority(tmp_path / "pki")
    authority.ensure([Named(file="server", common_name="storage", hosts=("127.0.0.1",))])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate("server"), authority.key("server"))
    gcs._http.socket = context.wrap_socket(gcs._http.socket, server_side=True)
    tokens = token_of(gcs, *POD_PERMISSIONS)
    os.truncate(file, PART_BYTES)

    def store() -> GcsStore:
        access = BucketAccess(endpoint=gcs.url.replace("http:", "https:"))
        return GcsStore(BUCKET, access, tokens=tokens, _limits=LIMITS)

    for ask in (lambda: store().stat(NAME), lambda: put(store(), file)):
        with pytest.raises(StoreError, match="certificate is not trusted") as refused:
            ask()
        assert type(refused.value) is StoreError
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.ca))
    put(store(), file)
    assert store().stat(NAME) is not None
    assert whole(gcs, file)


def test_a_server_that_is_not_there_may_come(file: Path) -> None:
    """By both ways it is told as unavailable, not as an error of the socket."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    store = GcsStore(BUCKET, BucketAccess(endpoint=url), _limits=ONCE)
    for ask in (
        lambda: store.stat("a"),
        lambda: store.open_range("a", generation=1, start=0, end=1).__enter__(),
        lambda: put(store, file),
    ):
        with pytest.raises(StoreUnavailable, match="refused"):
            ask()


def test_connections_are_kept_and_replaced(gcs: CloudStorageDouble) -> None:
    """Ten reads take one; one that the server closed does no harm."""
    store = opened(gcs)
    made = gcs.objects.put(BUCKET, "a", b"0123456789")

    def read() -> bytes:
        return store.read_range("a", generation=made.generation, start=0, end=10)

    assert {read() for _ in range(10)} == {b"0123456789"}
    assert len(gcs.connections) == 1
    gcs.cut_connections()
    assert read() == b"0123456789"
    with store.open_range("a", generation=made.generation, start=0, end=10) as stream:
        stream.readinto(memoryview(bytearray(1)))  # what is left of it is not the next one's
    assert read() == b"0123456789"


# -- who asks


@pytest.mark.usefixtures("_narrow_tree")
def test_the_rights_of_a_pod_are_enough(gcs: CloudStorageDouble, file: Path) -> None:
    """No list: an upload goes on, ends, is discarded, and what is missing is known to be."""
    tokens = token_of(gcs, *POD_PERMISSIONS)
    gcs.fail("compose", status=503, count=100)
    with pytest.raises(StoreUnavailable):
        put(opened(gcs, tokens=tokens), file)
    opened(gcs, tokens=tokens).discard_put(NAME, metadata=MARKS, size_bytes=SIZE_BYTES)
    assert gcs.objects.names(BUCKET) == []
    with pytest.raises(StoreUnavailable):
        put(opened(gcs, tokens=tokens), file)
    gcs.heal()
    store = opened(gcs, tokens=tokens)
    info = put(store, file)
    assert whole(gcs, file)
    assert store.stat("none") is None
    assert store.read_range(NAME, generation=info.generation, start=0, end=3)
    store.delete(NAME, if_generation_match=info.generation)


NEEDED = {
    "stat": "storage.objects.get",
    "put_bytes": "storage.objects.create",
    "put_file": "storage.objects.create",
    "read_range": "storage.objects.get",
    "list": "storage.objects.list",
    "delete": "storage.objects.delete",
    "describe": "storage.buckets.get",
    "remove_folder": "storage.folders.delete",
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_missing_permission_is_named_with_its_command(
    gcs: CloudStorageDouble, tmp_path: Path, verb: str
) -> None:
    """Whose it is, on what, and no token."""
    (tmp_path / "small").write_bytes(b"1")
    made = gcs.objects.put(BUCKET, "a", b"1")
    info = ObjectInfo("a", made.generation, 1, "")
    tokens = token_of(gcs, "storage.objects.update")
    with pytest.raises(PermissionDenied) as denied:
        VERBS[verb](opened(gcs, tokens=tokens), info, tmp_path / "small")
    text = str(denied.value)
    assert f"{NEEDED[verb]} on gs://{BUCKET}" in text
    role = "bucketViewer" if verb == "describe" else "objectUser"
    assert re.search(
        rf"gcloud storage buckets add-iam-policy-binding gs://{BUCKET} --member={WHO} "
        rf"--role=roles/storage.{role}$",
        text,
    )
    assert tokens().value not in text


def test_a_token_that_is_refused_is_asked_for_anew(gcs: CloudStorageDouble) -> None:
    """The server's clock counts; by the library's way and by ours."""
    gcs.access.allow(WHO, *POD_PERMISSIONS, bucket=BUCKET)
    asked: list[AccessToken] = []

    class Source:
        def __call__(self) -> AccessToken:
            asked.append(AccessToken(gcs.access.token(WHO), time.time() + 3600))
            return asked[-1]

        def refused(self, token: AccessToken) -> None:
            assert token == asked[-1]

    store = opened(gcs, tokens=Source())
    info = store.put_bytes("a", b"1", if_generation_match=0, metadata={})
    assert len(asked) == 1
    gcs.access.expire(WHO)
    assert store.read_range("a", generation=info.generation, start=0, end=1) == b"1"
    assert len(asked) == 2
    gcs.access.expire(WHO)
    assert store.stat("a") is not None
    assert len(asked) == 3


def test_a_token_is_asked_for_by_one_of_many(gcs: CloudStorageDouble) -> None:
    """The source hears of the token that was refused, once, and of no other."""
    gcs.access.allow(WHO, *POD_PERMISSIONS, bucket=BUCKET)
    asked: list[AccessToken] = []
    told: list[AccessToken] = []

    class Source:
        def __call__(self) -> AccessToken:
            asked.append(AccessToken(gcs.access.token(WHO), time.time() + 3600))
            return asked[-1]

        def refused(self, token: AccessToken) -> None:
            told.append(token)

    store = opened(gcs, tokens=Source())
    info = store.put_bytes("a", b"1", if_generation_match=0, metadata={})
    gcs.access.expire(WHO)
    start = threading.Barrier(8)

    def ask(number: int) -> None:
        start.wait(10)
        if number % 2:
            store.stat("a")
        else:
            store.read_range("a", generation=info.generation, start=0, end=1)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(asked), told) == (2, asked[:1])


def test_who_waits_for_a_token_that_fails_fails_too() -> None:
    """One after the other they would take minutes; who comes later asks anew."""
    fetched: list[int] = []
    failed: list[StoreUnavailable] = []
    threads: list[threading.Thread] = []

    def source() -> AccessToken:
        fetched.append(1)
        eventually(lambda: all(_waits(thread) for thread in threads[1:]), "the others wait")
        raise StoreUnavailable("no controller")

    def ask() -> None:
        with pytest.raises(StoreUnavailable) as error:
            identity.headers()
        failed.append(error.value)

    def _waits(thread: threading.Thread) -> bool:
        frame = sys._current_frames().get(thread.ident or 0)
        return frame is not None and frame.f_code.co_name == "_turn"

    identity = Identity(SourceCredentials(source))
    threads += [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(failed), len(fetched)) == (4, 1)
    threads.clear()
    ask()
    assert len(fetched) == 2


def test_a_token_that_stays_refused_is_told(gcs: CloudStorageDouble) -> None:
    """A source that has no other one is not asked for ever."""
    tokens = token_of(gcs, *POD_PERMISSIONS)
    gcs.access.expire(WHO)
    store = opened(gcs, tokens=tokens)
    for ask in (
        lambda: store.stat("a"),
        lambda: store.read_range("a", generation=1, start=0, end=1),
    ):
        with pytest.raises(PermissionDenied, match="401") as denied:
            ask()
        assert tokens().value not in str(denied.value)


def test_a_token_is_replaced_before_it_ends(gcs: CloudStorageDouble) -> None:
    """One that ends within minutes is not used for a long upload."""
    gcs.access.allow(WHO, *POD_PERMISSIONS, bucket=BUCKET)
    asked: list[float] = []

    def source() -> AccessToken:
        asked.append(time.time() + (60 if not asked else 3600))
        return AccessToken(gcs.access.token(WHO), asked[-1])

    store = opened(gcs, tokens=source)
    for _ in range(3):
        store.stat("a")
    assert len(asked) == 2


def test_the_library_s_own_variable_names_an_emulator(
    gcs: CloudStorageDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With or without a scheme; nobody has to be somebody there."""
    for value in (gcs.url, gcs.url.removeprefix("http://")):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", value)
        assert GcsStore(BUCKET, BucketAccess()).stat("a") is None


def test_without_credentials_the_text_says_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any request."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    for endpoint in ("", "https://storage.europe-west3.rep.googleapis.com"):
        with pytest.raises(PermissionDenied, match="Application Default Credentials"):
            GcsStore(BUCKET, BucketAccess(endpoint=endpoint))
