# SPDX-License-Identifier: Apache-2.0
"""An image that a node has sealed, and the ways into a bucket: a directory, or our double.

At the double it comes as a Pod's own identity, which may not list.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from api_objects import NODE, capture_of, pod, snapshot
from saved_image import write_image

from backends.objects.access_token import AccessToken
from backends.objects.factory import BucketAccess
from backends.objects.gcs.limits import Limits
from backends.objects.gcs.store import GcsStore
from backends.objects.interface import ObjectStore
from nodeexec.image import inspect, seal
from nodeexec.node_cache import NodeCache
from nodeexec.upload import Uploaded, upload
from policies.distill import distill
from schemas.encoding import Encoding
from schemas.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest
from schemas.snapshot import Snapshot
from schemas.storage_config import Location
from tests.gcs.iam import POD_PERMISSIONS
from tests.gcs.server import CloudStorageDouble

BUCKET = "bucket-1"
LOCATION = Location(BUCKET, "snapshots/one")
POD = "principal://shop/web"
PIECE_BYTES = 64 << 10
PIECES = 5
LIMITS = Limits(
    part_bytes=PIECE_BYTES, attempts=4, retry_s=2, first_wait_s=0.01, longest_wait_s=0.02
)
FILES = ["checkpoint.img", MANIFEST_NAME, SIGNATURE_NAME, "metadata", "pages.img", "pages_meta.img"]


def signature_of(manifest: bytes) -> bytes:
    """Sign; whether it is trusted is not the matter here."""
    return b"signed: " + manifest[:20]


@dataclass(frozen=True, slots=True)
class SealedImage:
    """What lies in a node's staging directory, its manifest written."""

    directory: Path
    manifest: Manifest

    def upload(
        self, store: ObjectStore, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Uploaded:
        """Upload it, as an agent does."""
        return upload(
            store,
            LOCATION,
            self.directory,
            self.manifest,
            cancelled=cancelled,
            sign=signature_of,
        )

    def snapshot(self, digest: str) -> Snapshot:
        """Return the PodSnapshot once it is uploaded."""
        record = replace(capture_of(pod()), location=LOCATION, manifest_digest=digest)
        return replace(snapshot("one"), capture=record)

    def is_fetched_whole(self, store: ObjectStore, digest: str, cache_dir: Path) -> bool:
        """Whether another node gets every byte of it."""
        found = NodeCache(cache_dir).fetch(self.snapshot(digest), lambda: store)
        files = [part.name for part in self.manifest.parts]
        return all(
            (found / file).read_bytes() == (self.directory / file).read_bytes() for file in files
        )


def sealed_image(
    directory: Path,
    *,
    encoding: Encoding = Encoding.RAW,
    pages_bytes: int = PIECES * PIECE_BYTES - 17,
) -> SealedImage:
    """Seal an image whose pages are of so many pieces."""
    write_image(directory, pages_bytes=pages_bytes)
    owner = snapshot("one").metadata
    manifest = Manifest(
        snapshot_uid=owner.uid,
        snapshot_name=owner.name,
        namespace=owner.namespace,
        cluster_id="c",
        attempt=1,
        parts=seal(directory, inspect(directory), encoding),
        identity=distill(pod()),
        compatibility=NODE,
    )
    (directory / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    return SealedImage(directory, manifest)


def as_pod(
    double: CloudStorageDouble, *, connections: int = 1, limits: Limits = LIMITS
) -> GcsStore:
    """Open the bucket as a Pod's identity, with a connection of its own: a new process."""
    if double.access.anonymous:
        double.access.allow(POD, *POD_PERMISSIONS, bucket=BUCKET, prefix="snapshots/")
        double.access.allow(POD, "storage.buckets.get", bucket=BUCKET)
    token = AccessToken(double.access.token(POD), time.time() + 3600)
    access = BucketAccess(endpoint=double.url, connections=connections)
    return GcsStore(BUCKET, access, tokens=lambda: token, _limits=limits)


def names(double: CloudStorageDouble) -> list[str]:
    """Return the names of all objects below the snapshot's folder, whoever asks."""
    return [n.removeprefix(f"{LOCATION.path}/") for n in double.objects.names(BUCKET)]


@dataclass(slots=True)
class Victim:
    """A process that will be killed."""

    pid: int = 0

    def kill(self) -> None:
        """Kill it, and see it dead."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def run(self, body: Callable[[], object]) -> int:
        """Run something in a process of its own; returns how that ended."""
        begin, wait = os.pipe()[::-1]
        self.pid = os.fork()
        if self.pid == 0:
            _run(wait, body)
        os.write(begin, b"!")  # whoever kills it knows by now whom
        os.close(begin)
        os.close(wait)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _run(wait: int, body: Callable[[], object]) -> NoReturn:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(60)  # a fork of many threads that hangs is a failure, not a wait
    try:
        os.read(wait, 1)
        body()
    except BaseException:  # noqa: BLE001 - the parent's pytest must not go on in here
        os._exit(1)
    os._exit(0)


@contextmanager
def tiny_file_system(directory: Path, size: str) -> Iterator[None]:
    """Mount a real one of so many bytes."""
    directory.mkdir(exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
    subprocess.run(["mount", *options, directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)
