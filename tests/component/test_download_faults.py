# SPDX-License-Identifier: Apache-2.0
"""Whatever befalls a download from Cloud Storage: all right bytes, or none and the reason.

At our double, by a Pod's identity. Kills, full disks and directories as buckets are in
``test_node_cache_faults.py``, all ways in which a stream may break in ``test_part_download.py``.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from sealed_image import (
    BUCKET,
    LIMITS,
    LOCATION,
    POD,
    SealedImage,
    as_pod,
    sealed_image,
    tiny_file_system,
)

from nodeexec import part_download
from nodeexec.node_cache import FetchError, NodeCache
from nodeexec.part_download import DamagedError, download_part
from schemas.encoding import Encoding
from schemas.manifest import CHUNK_BYTES, MANIFEST_NAME
from tests.gcs.server import CloudStorageDouble, running_cloud_storage

CHUNKS = 20
PAGES = f"{LOCATION.path}/pages.img"
# The pages come in runs of eight chunks.
MEDIA = r"GET /storage/v1/b/[^/]+/o/[^/]+pages\.img.*alt=media"
QUICK = replace(LIMITS, part_bytes=4 << 20, silence_s=0.5)


@dataclass(slots=True)
class Stored:
    """An image in Cloud Storage, and a node without it."""

    double: CloudStorageDouble
    image: SealedImage
    digest: str
    cache_dir: Path

    def fetch(self) -> bool:
        """Bring it to the node; returns whether every byte is right."""
        store = as_pod(self.double, connections=3, limits=QUICK)
        return self.image.is_fetched_whole(store, self.digest, self.cache_dir)

    @property
    def fetched_bytes(self) -> int:
        """How many bytes of the pages left the bucket."""
        return sum(r.sent_bytes for r in self.double.seen("GET", name=r"pages\.img"))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our server needs no time to come back."""
    monkeypatch.setattr(part_download, "_pause_s", lambda _state: 0.0)


@pytest.fixture
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stored]:
    """An image of some MB, uploaded."""
    (tmp_path / "cloud").mkdir()
    image = sealed_image(
        tmp_path / "sealed",
        encoding=getattr(request, "param", Encoding.RAW),
        pages_bytes=CHUNKS * CHUNK_BYTES - 100,
    )
    with running_cloud_storage(tmp_path / "cloud", BUCKET) as double:
        uploaded = image.upload(as_pod(double, connections=4, limits=QUICK))
        yield Stored(double, image, uploaded.digest, tmp_path / "cache")


HEALED: dict[str, dict[str, object]] = {
    "an answer that breaks off": {"how": "torn", "at_byte": 3_000_000},
    "an answer that stalls": {"how": "stall", "at_byte": 3_000_000},
    "a connection that is reset before it answers": {"how": "reset"},
    "a server that is not there for a moment": {"status": 503, "retry_after": "0"},
    "too many requests": {"status": 429},
    "a byte that changes on its way": {"how": "flip", "at_byte": 2_500_000},
}


@pytest.mark.parametrize("stored", Encoding, ids=lambda e: e.name.lower(), indirect=True)
@pytest.mark.parametrize("what", HEALED)
def test_what_happens_to_a_stream_is_made_good(stored: Stored, what: str) -> None:
    """What was right does not come again."""
    stored.double.fail(MEDIA, **HEALED[what])  # type: ignore[arg-type] # a row of the table
    assert stored.fetch()
    assert stored.double.faults.hits == 1
    stored_bytes = stored.double.objects.get(BUCKET, _pages(stored), {}).size_bytes
    assert stored_bytes <= stored.fetched_bytes < stored_bytes + 9 * CHUNK_BYTES


def _pages(stored: Stored) -> str:
    return next(n for n in stored.double.objects.names(BUCKET) if "pages.img" in n)


Spoil = Callable[[Stored], object]
SPOILT: dict[str, tuple[Spoil, type[Exception], str]] = {
    "a byte is changed where it lies": (
        lambda s: s.double.objects.flip(BUCKET, _pages(s), 15_000_000),
        DamagedError,
        r"part pages\.img, chunk 14 \(from byte 14680064\) differs from the manifest",
    ),
    "its end is lost where it lies": (
        lambda s: s.double.objects.truncate(BUCKET, _pages(s), 15_000_000),
        FetchError,
        "could not be fetched",
    ),
    "a stranger overwrites it": (
        lambda s: s.double.objects.put(BUCKET, _pages(s), b"a stranger's", {}),
        DamagedError,
        r"part pages\.img is missing or was replaced",
    ),
    "it is deleted": (
        lambda s: s.double.objects.delete(BUCKET, _pages(s), {}),
        DamagedError,
        r"part pages\.img is missing or was replaced",
    ),
    "the right to read is taken away": (
        lambda s: s.double.access.revoke(POD, "storage.objects.get"),
        FetchError,
        r"storage\.objects\.get",
    ),
    "the token ends": (
        lambda s: s.double.access.expire(POD),
        FetchError,
        "401|credentials|token",
    ),
    "the bucket is deleted": (
        lambda s: s.double.objects.buckets.pop(BUCKET),
        FetchError,
        f"bucket {BUCKET}",
    ),
    "the bucket fails for good": (
        lambda s: s.double.fail(MEDIA, status=503, count=sys.maxsize),
        FetchError,
        "503",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_what_is_not_made_good_ends_the_download_with_the_reason(stored: Stored, what: str) -> None:
    """In the middle of the pages; the node has nothing of it, neither whole nor half."""
    spoil, error, told = SPOILT[what]
    stored.double.fail(MEDIA, skip=1, before=lambda: spoil(stored))
    with pytest.raises(error, match=told):
        stored.fetch()
    assert list(stored.cache_dir.iterdir()) == []


def test_a_manifest_that_a_stranger_overwrites_is_not_believed(stored: Stored) -> None:
    """However right it looks."""
    name = f"{LOCATION.path}/{MANIFEST_NAME}"
    stored.double.objects.put(BUCKET, name, stored.image.manifest.to_bytes(), {})
    with pytest.raises(DamagedError, match="is not the one recorded"):
        stored.fetch()
    assert list(stored.cache_dir.iterdir()) == []


def test_a_disk_without_room_is_known_before_a_byte_comes(stored: Stored, tmp_path: Path) -> None:
    """Not after minutes; a file with a hole would be told of only at its end."""
    pages = next(part for part in stored.image.manifest.parts if part.name == "pages.img")
    now = stored.double.objects.get(BUCKET, _pages(stored), {})
    with (
        tiny_file_system(tmp_path / "tiny", "5m"),
        pytest.raises(OSError, match="No space left on device"),
    ):
        download_part(
            as_pod(stored.double),
            LOCATION.path,
            replace(pages, generation=now.generation),
            tmp_path / "tiny/pages.img",
            connections=3,
            slots=threading.Semaphore(3),
            on_bytes=lambda _: None,
        )
    assert stored.fetched_bytes == 0


def test_a_download_after_one_that_failed_is_whole(stored: Stored) -> None:
    """Nothing of the first is taken for right."""
    stored.double.fail(MEDIA, skip=2, status=403)
    with pytest.raises(FetchError):
        stored.fetch()
    assert stored.fetch()
    assert NodeCache(stored.cache_dir).lookup(stored.image.snapshot(stored.digest)) is not None
