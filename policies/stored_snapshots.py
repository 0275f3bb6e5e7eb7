# SPDX-License-Identifier: Apache-2.0
"""A snapshot by what lies in a bucket, whether or not any cluster knows of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from policies.sweeping import Seen
from schemas.instants import to_micro_time
from schemas.manifest import MANIFEST_NAME


@dataclass(frozen=True, slots=True)
class StoredRow:
    """The objects of one snapshot. ``stored_at`` (``MicroTime``) is when the last one was written.

    It is complete if it has a manifest; without one it is no snapshot.
    """

    cluster_id: str
    namespace: str
    name: str
    uid: str
    folder: str
    size_bytes: int
    stored_at: str
    is_complete: bool


def stored_row(objects: Sequence[Seen]) -> StoredRow:
    """Sum up the objects of one folder that carry the same UID; there is at least one."""
    first = objects[0]
    last_s = max(o.created_s for o in objects)
    return StoredRow(
        cluster_id=first.cluster_id,
        namespace=first.namespace,
        name=first.snapshot_name,
        uid=first.snapshot_uid,
        folder=first.folder,
        size_bytes=sum(o.size_bytes for o in objects),
        stored_at=to_micro_time(datetime.fromtimestamp(last_s, UTC)),
        is_complete=any(o.name == f"{o.folder}/{MANIFEST_NAME}" for o in objects),
    )
