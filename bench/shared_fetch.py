# SPDX-License-Identifier: Apache-2.0
"""Ten Pods that want one snapshot on one node at once: what moves, and what the node's memory pays.

The agent's own code for images runs in a process of its own (the node's cache, its download), asked
by ten threads as ten sandboxes ask it, and once more when the image is there. The agent around it
has about 70 MiB of its own, Python included, of which most is in this process too.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from bucket_server import BUCKET, LOOPBACK, BucketServer, bucket_server
from bucket_transfers import CONNECTIONS, Way, in_memory, transfer, write_random
from figure import Figure, Target
from transfer import Order, open_bucket

from localcluster.cluster import LocalCluster
from nodeexec.image import digest_file
from nodeexec.upload import upload
from schemas.manifest import Manifest
from schemas.snapshot import CaptureRecord, Compatibility, SpecIdentity
from schemas.storage_config import Location

SIZE_BYTES: Final = 1 << 30
ROUNDS: Final = 3
RESTORES: Final = 10
_FOLDER: Final = Location(BUCKET, "snapshots/one")
_NODE: Final = Compatibility("release-1", "sha256:aa", "systrap", "x86_64", "n2")


def measure(_: LocalCluster, say: Callable[[str], None]) -> list[Figure]:
    """Store one snapshot, and let ten want it."""
    moved, peaks_mib, seconds = [], [], []
    with in_memory() as scratch, bucket_server(scratch, LOOPBACK) as server:
        order = _stored(scratch, server)
        for number in range(ROUNDS):
            before_bytes = server.sent_bytes
            taken = transfer(Way("ten restores", "ten restores"), order)
            moved.append((server.sent_bytes - before_bytes) / SIZE_BYTES)
            peaks_mib.append(taken.peak_mib)
            seconds.append(taken.seconds)
            say(f"{number + 1}/{ROUNDS}  {moved[-1]:.3f} images, {peaks_mib[-1]:.0f} MiB")
    covers = f"{RESTORES} threads want one snapshot of 1 GiB that is not there, and then again"
    return [
        Figure.of(
            moved,
            part="one-fetch",
            name="images moved",
            unit="x",
            target=Target(limit=1.01),
            covers=f"bytes that the server sent, by the image's size: {covers}",
        ),
        Figure.of(
            peaks_mib,
            part="one-fetch",
            name="memory",
            unit="MiB",
            target=Target(limit=350),
            covers=f"largest resident set of the process: {covers}",
        ),
        Figure.of(seconds, part="one-fetch", name="until all have it", unit="s", covers=covers),
    ]


def _stored(scratch: Path, server: BucketServer) -> Order:
    """Upload an image; returns the order to fetch it into a cache."""
    source = scratch / "source"
    source.mkdir()
    write_random(source / "pages.img", SIZE_BYTES)
    (source / "metadata").write_bytes(b"{}")
    order = Order(server.endpoint, BUCKET, "", str(scratch / "cache"), CONNECTIONS)
    manifest = Manifest(
        snapshot_uid="uid-one",
        snapshot_name="one",
        namespace="bench",
        cluster_id="bench",
        attempt=1,
        parts=tuple(digest_file(path, sync=False) for path in source.iterdir()),
        identity=SpecIdentity("hash", {}),
        compatibility=_NODE,
    )
    uploaded = upload(open_bucket(order), _FOLDER, source, manifest, cancelled=lambda: False)
    (source / "pages.img").unlink()
    record = CaptureRecord(node="node", location=_FOLDER, manifest_digest=uploaded.digest)
    snapshot = {
        "metadata": {"name": "one", "namespace": "bench", "uid": "uid-one"},
        "spec": {"policyName": "policy"},
        "status": {"podsnap": {"capture": record.to_object()}},
    }
    return Order(
        order.endpoint, order.bucket, order.name, order.path, CONNECTIONS, snapshot=snapshot
    )
