# SPDX-License-Identifier: Apache-2.0
"""What of a bucket nobody owns, and what of a cluster has lost its bytes.

Only what carries this cluster's mark is judged. It is removed when it has been without an owner for
the grace period and is itself older than that: a cache may be behind, a save may just begin, a
cluster may just be restored from a backup. The trap: how long something was without an owner is
known to this process alone, so a new leader counts anew, and a young cluster removes nothing.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from schemas.manifest import MANIFEST_NAME
from schemas.names import STORAGE_REPLICATED
from schemas.snapshot import Snapshot
from schemas.storage_config import Location

DEFAULT_GRACE_S: Final = 86400.0


@dataclass(frozen=True, slots=True)
class Seen:
    """An object in a listing, with the marks that podsnap put on it; empty where there are none.

    ``created_s`` is by the bucket's clock, since the epoch; ``is_temporary`` whether an upload made
    it, to put an object together from.
    """

    name: str
    generation: int
    created_s: float = 0.0
    size_bytes: int = 0
    cluster_id: str = ""
    namespace: str = ""
    snapshot_uid: str = ""
    attempt: str = ""
    is_temporary: bool = False

    @property
    def folder(self) -> str:
        """The folder of its snapshot."""
        return self.name.rpartition("/")[0]

    @property
    def snapshot_name(self) -> str:
        """The name of its snapshot, wherever the folder lies."""
        return self.folder.rpartition("/")[2]


def is_ours(seen: Seen, cluster_id: str) -> bool:
    """Whether this cluster wrote an object for a PodSnapshot."""
    return bool(seen.snapshot_uid) and seen.cluster_id == cluster_id


def unowned(seen: Seen, owner: Snapshot | None) -> str:
    """Say why nobody needs an object of ours, empty if somebody may.

    ``owner`` is the PodSnapshot with its UID, if there is one.
    """
    if owner is None:
        return "no PodSnapshot owns it"
    capture = owner.capture
    if capture is not None and capture.failure is not None:
        return "the save of its PodSnapshot failed"
    if seen.is_temporary and not _uploads(owner, seen.attempt):
        return "it is a part of an upload that has ended"
    return ""


def _uploads(owner: Snapshot, attempt: str) -> bool:
    stored = owner.conditions.get(STORAGE_REPLICATED)
    ended = owner.metadata.is_deleting or (stored is not None and stored.is_true)
    return owner.capture is not None and str(owner.capture.attempt) == attempt and not ended


def lost_cluster(due: Iterable[Seen], snapshots: Collection[Snapshot]) -> str:
    """Say why nothing is removed: whole snapshots are due, and the cluster knows none at all.

    So it looks where a cluster was built anew under its old id. Empty if it does not look so.
    """
    whole = {s.folder for s in due if s.name.rpartition("/")[2] == MANIFEST_NAME}
    if snapshots or not whole:
        return ""
    return (
        f"{len(whole)} whole snapshots with this cluster's id have no PodSnapshot, and the cluster "
        "has no PodSnapshot at all"
    )


@dataclass(slots=True)
class Tombstones:
    """Since when each object without an owner is known to have none, by one folder's listings."""

    grace_s: float
    _since_s: dict[tuple[str, int], float] = field(default_factory=dict)
    _met: set[tuple[str, int]] = field(default_factory=set)

    def begin(self) -> None:
        """Begin with a listing."""
        self._met.clear()

    def is_due(self, seen: Seen, *, now_s: float, epoch_s: float) -> bool:
        """Note an object without an owner, and return whether its time is over.

        ``now_s`` is of a clock that never runs backwards, ``epoch_s`` the wall clock.
        """
        stone = (seen.name, seen.generation)
        self._met.add(stone)
        since_s = self._since_s.setdefault(stone, now_s)
        return now_s - since_s >= self.grace_s and epoch_s - seen.created_s >= self.grace_s

    def forget(self, seen: Seen) -> None:
        """Forget what was removed."""
        self._since_s.pop((seen.name, seen.generation), None)

    def end(self) -> None:
        """End a whole listing: what was not met in it is gone, or has an owner by now."""
        for stone in self._since_s.keys() - self._met:
            del self._since_s[stone]


def manifests_expected(snapshots: Iterable[Snapshot], folder: Location) -> dict[str, Snapshot]:
    """Return the stored snapshots below a folder, by the name of the object that makes them one."""
    prefix = f"{folder.path}/" if folder.path else ""
    found = {}
    for snapshot in snapshots:
        location = snapshot.capture.location if snapshot.capture else None
        if (
            location is not None
            and snapshot.is_stored
            and not snapshot.metadata.is_deleting
            and location.bucket == folder.bucket
            and location.path.startswith(prefix)
        ):
            found[f"{location.path}/{MANIFEST_NAME}"] = snapshot
    return found


def missing_text(snapshot: Snapshot) -> str:
    """Say of a snapshot that its bytes are gone, in the words of a node that found out."""
    location = snapshot.capture.location if snapshot.capture else None
    return f"{MANIFEST_NAME} is missing in {location.url if location else 'its bucket'}"
