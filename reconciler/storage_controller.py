# SPDX-License-Identifier: Apache-2.0
"""Storage configs: is the bucket writable, and does it hold bytes that nobody owns?

The sweep compares the bucket with the cluster. An object is removed only if it carries this
cluster's mark, its snapshot is unknown to a live GET as well as to the cache, and it was unknown at
the sweep before too: a cache may be behind, and a save may just begin.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from backends.clock import Clock
from backends.kube.client import POD_SNAPSHOT_STORAGE_CONFIGS, POD_SNAPSHOTS, KubeClient
from backends.kube.errors import ApiError, NotFound
from backends.objects.interface import (
    ObjectInfo,
    ObjectNotFound,
    ObjectStore,
    PreconditionFailed,
    StoreError,
)
from nodeexec.upload import CLUSTER_KEY, NAMESPACE_KEY, SNAPSHOT_UID_KEY
from reconciler.cluster_cache import ClusterCache
from reconciler.controller import Key
from reconciler.policy_controller import write_ready
from schemas.conditions import Condition
from schemas.names import READY
from schemas.storage_config import Location, StorageConfig

log = logging.getLogger(__name__)

CHECK_INTERVAL_S: Final = 30.0
_TOMBSTONE_S: Final = 20.0


@dataclass(slots=True)
class StorageController:
    """Reconciles PodSnapshotStorageConfigs."""

    client: KubeClient
    cache: ClusterCache
    clock: Clock
    cluster_id: str
    open_store: Callable[[Location], ObjectStore]
    _tombstones: dict[tuple[str, str, int], float] = field(default_factory=dict)

    def reconcile(self, key: Key) -> float | None:
        """Check the bucket, say so, and sweep it."""
        config = self.cache.storage_configs.store.get(*key)
        if config is None or config.metadata.is_deleting:
            return None
        generation = config.metadata.generation
        if config.location is None:
            message = "no bucket is named; set spec.snapshotStorageConfig.gcs.bucket"
            self._write(config, Condition(READY, "False", "NoBucket", message, "", generation))
            return None
        if config.path_error:
            self._write(
                config, Condition(READY, "False", "InvalidPath", config.path_error, "", generation)
            )
            return None
        try:
            store = self.open_store(config.location)
            store.describe()
        except StoreError as error:
            message = f"bucket {config.location.bucket} cannot be written: {error}"
            self._write(
                config, Condition(READY, "False", "BucketNotWritable", message, "", generation)
            )
            return CHECK_INTERVAL_S / 3
        message = f"{config.location.url} is writable"
        self._write(config, Condition(READY, "True", "Ready", message, "", generation))
        self._sweep(store, config.location)
        return CHECK_INTERVAL_S if not self._tombstones else _TOMBSTONE_S + 1

    def _sweep(self, store: ObjectStore, location: Location) -> None:
        known = {s.metadata.uid for s in self.cache.snapshots.store.items()}
        now_s = self.clock.monotonic_s()
        found: set[tuple[str, str, int]] = set()
        prefix = f"{location.path}/" if location.path else ""
        for info in list(store.list(prefix)):
            uid = info.metadata.get(SNAPSHOT_UID_KEY, "")
            if info.metadata.get(CLUSTER_KEY) != self.cluster_id or not uid or uid in known:
                continue
            tombstone = (location.bucket, info.name, info.generation)
            found.add(tombstone)
            since_s = self._tombstones.setdefault(tombstone, now_s)
            if now_s - since_s >= _TOMBSTONE_S and self._is_unknown_live(info, uid, location):
                self._remove(store, info)
                found.discard(tombstone)
                del self._tombstones[tombstone]
        for gone in [
            t
            for t in self._tombstones
            if t[0] == location.bucket and t[1].startswith(prefix) and t not in found
        ]:
            del self._tombstones[gone]

    def _is_unknown_live(self, info: ObjectInfo, uid: str, location: Location) -> bool:
        # <path>/<snapshot name>/<part>
        name = info.name.removeprefix(f"{location.path}/").split("/")[0]
        namespace = info.metadata.get(NAMESPACE_KEY, "")
        try:
            live = self.client.get(POD_SNAPSHOTS, name, namespace=namespace)
        except NotFound:
            return True
        except ApiError:
            return False
        return bool(live["metadata"]["uid"] != uid)

    def _remove(self, store: ObjectStore, info: ObjectInfo) -> None:
        try:
            store.delete(info.name, if_generation_match=info.generation)
            log.info("removed %s, which no PodSnapshot owns", info.name)
        except (ObjectNotFound, PreconditionFailed):
            return

    def _write(self, config: StorageConfig, condition: Condition) -> None:
        write_ready(
            self.client,
            POD_SNAPSHOT_STORAGE_CONFIGS,
            config.metadata,
            condition,
            previous=config.conditions,
            clock=self.clock,
        )
