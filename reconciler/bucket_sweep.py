# SPDX-License-Identifier: Apache-2.0
"""The sweep: buckets and cluster compared both ways, by the leader, page by page.

What nobody owns is removed by its generation, after a live look at its PodSnapshot. What a
PodSnapshot says to be stored and is not is marked as damaged, so that no Pod is restored from it;
the mark goes when the bytes are back. A bucket that does not answer proves nothing, so the first
error ends a pass. The trap: a cluster that was built anew knows no PodSnapshot and has its old id,
so that every snapshot looks like nobody's; then nothing is removed until somebody says so.
"""

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from backends.clock import Clock
from backends.kube.client import POD_SNAPSHOTS, KubeClient
from backends.kube.errors import ApiError, Conflict, NotFound
from backends.objects.bucket_probe import PROBE_PREFIX
from backends.objects.interface import (
    TEMPORARY_INFIX,
    ObjectInfo,
    ObjectNotFound,
    ObjectStore,
    PreconditionFailed,
    StoreError,
)
from nodeexec.manifest_reader import is_as_recorded
from nodeexec.upload import ATTEMPT_KEY, CLUSTER_KEY, NAMESPACE_KEY, SNAPSHOT_UID_KEY
from policies.sweeping import (
    DEFAULT_GRACE_S,
    Seen,
    Tombstones,
    is_ours,
    lost_cluster,
    manifests_expected,
    missing_text,
    unowned,
)
from reconciler.cluster_cache import ClusterCache
from reconciler.controller import Key
from schemas.names import API_VERSION, CONTROLLER_MANAGER, DAMAGE_MANAGER
from schemas.snapshot import Snapshot
from schemas.storage_config import Location, StorageConfig

log = logging.getLogger(__name__)

_INTERVAL_S: Final = 600.0
_SHORTEST_INTERVAL_S: Final = 1.0
# So many are looked at live and removed together.
_BATCH: Final = 100
# What parsing raises of an object that another version wrote: it may own what it names.
_UNREADABLE: Final = (KeyError, ValueError, TypeError, AttributeError)


@dataclass(slots=True)
class BucketSweep:
    """Compares the folder of each PodSnapshotStorageConfig with the cluster."""

    client: KubeClient
    cache: ClusterCache
    clock: Clock
    cluster_id: str
    open_store: Callable[[Location], ObjectStore]
    grace_s: float = DEFAULT_GRACE_S
    # By config and folder: two configs that share one are passed over at once.
    _tombstones: dict[tuple[Key, Location], Tombstones] = field(default_factory=dict)
    # Likewise: whose manifest one live look did not find.
    _absent: dict[tuple[Key, Location], set[str]] = field(default_factory=dict)
    _stopped: dict[Key, str] = field(default_factory=dict)

    def stopped(self, config: StorageConfig) -> str:
        """Return why the last pass over a config's folder removed nothing, empty if it did all."""
        return self._stopped.get(config.metadata.key, "")

    def reconcile(self, key: Key) -> float | None:
        """Make one pass over a folder."""
        config = self.cache.storage_configs.store.get(*key)
        if config is None or config.metadata.is_deleting:
            return None
        if config.location is None or config.path_error:
            return None  # a change of it queues the key again
        try:
            why = self._pass(self.open_store(config.location), key, config.location)
        except StoreError as error:
            # The storage config's own conditions tell it; here it would be told again and again.
            log.info("the sweep of %s was cut short: %s", config.location.url, error)
        else:
            if why:
                log.warning("the sweep of %s was stopped: %s", config.location.url, why)
            self._stopped[key] = why
        return min(_INTERVAL_S, self.grace_s + _SHORTEST_INTERVAL_S)

    def _pass(self, store: ObjectStore, key: Key, folder: Location) -> str:
        stones = self._tombstones.setdefault((key, folder), Tombstones(self.grace_s))
        stones.begin()
        snapshots = self.cache.snapshots.store.items()
        owners = {s.stored_uid: s for s in snapshots}
        absent = manifests_expected(snapshots, folder)
        due = self._unowned(store, folder, owners, absent, stones)
        if not snapshots:
            found = list(due)
            if why := lost_cluster(found, snapshots):
                stones.end()
                return why
            due = iter(found)
        for batch in batches(due):
            for seen, why in remove(store, self.client, batch):
                log.info("removed %s (%d bytes): %s", seen.name, seen.size_bytes, why)
                stones.forget(seen)
        stones.end()
        self._judge_absent(store, (key, folder), absent)
        return ""

    def _unowned(
        self,
        store: ObjectStore,
        folder: Location,
        owners: dict[str, Snapshot],
        absent: dict[str, Snapshot],
        stones: Tombstones,
    ) -> Iterator[Seen]:
        """Yield what is due; a manifest that is met is taken out of ``absent``."""
        epoch_s, now_s = self.clock.now().timestamp(), self.clock.monotonic_s()
        for info in store.list(f"{folder.path}/" if folder.path else ""):
            present = absent.pop(info.name, None)
            if present is not None and present.damage == missing_text(present):
                self._lift_if_back(store, present)
            seen = seen_in(info)
            if is_stray(seen, owners, self.cluster_id) and stones.is_due(
                seen, now_s=now_s, epoch_s=epoch_s
            ):
                yield seen

    def _judge_absent(
        self, store: ObjectStore, place: tuple[Key, Location], absent: dict[str, Snapshot]
    ) -> None:
        """Look live for the manifests that no listing had; the second look in vain is believed."""
        before = self._absent.get(place, set())
        still = {s.metadata.uid for name, s in absent.items() if store.stat(name) is None}
        self._absent[place] = still
        for snapshot in absent.values():
            if snapshot.metadata.uid in still & before and not snapshot.damage:
                self._mark_damaged(snapshot)

    def _mark_damaged(self, snapshot: Snapshot) -> None:
        text = missing_text(snapshot)
        body = {
            "apiVersion": API_VERSION,
            "kind": POD_SNAPSHOTS.kind,
            "metadata": snapshot.metadata.identity(),
            "status": {"podsnap": {"damage": {"message": text}}},
        }
        try:
            self.client.apply(
                POD_SNAPSHOTS, body, field_manager=DAMAGE_MANAGER, subresource="status", force=True
            )
        except (NotFound, Conflict):
            return  # deleted meanwhile
        log.warning("%s is not offered any more: %s", snapshot.metadata, text)

    def _lift_if_back(self, store: ObjectStore, snapshot: Snapshot) -> None:
        """Take the mark away if the manifest is the one that was recorded."""
        if not is_as_recorded(snapshot, store):
            return
        patch = {
            "metadata": {
                "uid": snapshot.metadata.uid,
                "resourceVersion": snapshot.metadata.resource_version,
            },
            "status": {"podsnap": {"damage": None}},
        }
        try:
            self.client.merge_patch(
                POD_SNAPSHOTS,
                snapshot.metadata.name,
                patch,
                namespace=snapshot.metadata.namespace,
                field_manager=CONTROLLER_MANAGER,
                subresource="status",
            )
        except (NotFound, Conflict):
            return  # deleted or changed; the next pass looks again
        log.info("the bytes of %s are back", snapshot.metadata)


def is_stray(seen: Seen, owners: Mapping[str, Snapshot], cluster_id: str) -> bool:
    """Whether an object is this cluster's and, as far as is known here, nobody's.

    ``owners`` are all PodSnapshots by the UID on their objects.
    """
    if _is_probe(seen):
        return seen.cluster_id == cluster_id
    return is_ours(seen, cluster_id) and bool(unowned(seen, owners.get(seen.snapshot_uid)))


def remove(
    store: ObjectStore, client: KubeClient, batch: Iterable[Seen], *, dry_run: bool = False
) -> Iterator[tuple[Seen, str]]:
    """Remove strays whose PodSnapshot, looked at live, is none; yields each with the reason.

    With ``dry_run`` nothing is removed. What is another generation by now stays, and is not told.

    Raises:
        StoreError: the bucket refused, or did not answer.
    """
    live: dict[tuple[str, str], Snapshot | None] = {}
    folders = set()
    for seen in batch:
        named = (seen.namespace, seen.snapshot_name)
        try:
            if named not in live and not _is_probe(seen):
                live[named] = _live(client, *named)
        except (ApiError, *_UNREADABLE) as error:
            log.warning("%s stays: its PodSnapshot cannot be read: %r", seen.name, error)
            continue
        owner = live.get(named)
        why = unowned(seen, owner if owner and owner.stored_uid == seen.snapshot_uid else None)
        if not why:
            continue
        if not dry_run:
            try:
                store.delete(seen.name, if_generation_match=seen.generation)
            except (ObjectNotFound, PreconditionFailed):
                continue  # somebody else removed or replaced it
            folders.add(seen.folder)
        yield seen, why
    for path in sorted(folders, reverse=True):
        with contextlib.suppress(StoreError):  # it may hold something else, or be nobody's
            store.remove_folder(path)


def _live(client: KubeClient, namespace: str, name: str) -> Snapshot | None:
    try:
        POD_SNAPSHOTS.path(namespace=namespace, name=name)
    except ValueError:
        return None  # a name that leads nowhere belongs to nothing
    try:
        found = client.get(POD_SNAPSHOTS, name, namespace=namespace)
    except NotFound as error:
        if not error.details.get("name"):
            raise  # the kind, not the object
        return None
    return Snapshot.parse(found)


def _is_probe(seen: Seen) -> bool:
    """Whether it is what a killed check of a bucket left."""
    return seen.name.rpartition("/")[2].startswith(PROBE_PREFIX) and not seen.snapshot_uid


def seen_in(info: ObjectInfo) -> Seen:
    """Return an object of a listing with the marks that podsnap reads."""
    return Seen(
        name=info.name,
        generation=info.generation,
        created_s=info.created_s,
        size_bytes=info.size_bytes,
        cluster_id=info.metadata.get(CLUSTER_KEY, ""),
        namespace=info.metadata.get(NAMESPACE_KEY, ""),
        snapshot_uid=info.metadata.get(SNAPSHOT_UID_KEY, ""),
        attempt=info.metadata.get(ATTEMPT_KEY, ""),
        is_temporary=TEMPORARY_INFIX in info.name.rpartition("/")[2],
    )


def batches(found: Iterator[Seen]) -> Iterator[list[Seen]]:
    """Cut what is due into pieces that are looked at live together."""
    while batch := list(itertools.islice(found, _BATCH)):
        yield batch
