# SPDX-License-Identifier: Apache-2.0
"""What nobody owns on this node is removed: images, attempts, marks of Pods that are gone.

So are images that nobody uses when others fill the disk.

Only by comparison with the caches, and only what is older than a watch takes to catch up: a
directory is made before the object or the record that explains it.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backends.clock import Clock
from nodeexec.cluster_view import ClusterView
from nodeexec.node_cache import NodeCache
from nodeexec.settings import AgentSettings
from schemas.names import STORAGE_REPLICATED
from schemas.snapshot import Snapshot

_YOUNG_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Housekeeping:
    """Sweeps the node's directories."""

    settings: AgentSettings
    view: ClusterView
    cache: NodeCache
    clock: Clock
    is_parting: Callable[[str], bool]

    def sweep(self, sandboxes: set[str]) -> None:
        """Remove what no snapshot, sandbox or Pod of this node explains."""
        self._workload_dirs(sandboxes)
        self._marks(self.settings.cold_marks_dir)
        self._marks(self.settings.attempts_dir)
        self._staging()
        captures = (s.capture for s in self.view.snapshots.store.items())
        manifests = {c.manifest_digest for c in captures if c is not None}
        self.cache.evict_all_but(lambda manifest_digest: manifest_digest in manifests)
        self.cache.keep_free()

    def _workload_dirs(self, sandboxes: set[str]) -> None:
        root = self.settings.workload_dir
        for directory in root.iterdir() if root.is_dir() else ():
            if directory.name not in sandboxes and self._is_old(directory):
                shutil.rmtree(directory, ignore_errors=True)

    def _marks(self, root: Path) -> None:
        for mark in root.iterdir() if root.is_dir() else ():
            if self.view.pods.store.by_uid(mark.name) is None and self._is_old(mark):
                mark.unlink(missing_ok=True)

    def _staging(self) -> None:
        for directory in self.settings.staging_dir.iterdir():
            if directory == self.settings.workload_dir or not self._is_old(directory):
                continue
            uid = directory.name.rpartition("-")[0]
            if self.is_parting(uid):
                continue  # its PodSnapshot was made here, and the watch may lag
            owner = self.view.snapshots.store.by_uid(uid)
            if owner is None or self._is_done_with(owner):
                shutil.rmtree(directory, ignore_errors=True)

    def _is_done_with(self, snapshot: Snapshot) -> bool:
        stored = snapshot.conditions.get(STORAGE_REPLICATED)
        capture = snapshot.capture
        return (
            snapshot.metadata.is_deleting
            or (stored is not None and stored.is_true)
            or (capture is not None and capture.failure is not None)
            or (capture is not None and capture.node != self.settings.node_name)
        )

    def _is_old(self, path: Path) -> bool:
        try:
            return self.clock.now().timestamp() - path.stat().st_mtime > _YOUNG_S
        except FileNotFoundError:
            return False
