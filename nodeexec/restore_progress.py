# SPDX-License-Identifier: Apache-2.0
"""How far running restores are, in the status of their PodSnapshots, for people who wait.

A restore that is over within a second is never shown, nor one of few bytes: a herd of small Pods
must not cost a write each. What changed of a snapshot on this node goes into one merge patch, at
most every two seconds.

The trap: an entry that stays would say for ever that a Pod is being restored. So it is removed when
the restore ends, however often that write has to be tried; an agent that starts removes those of
its own node; and readers leave out what is too old (``statemachine.restore.running_restores``).
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from backends.clock import Clock
from nodeexec.pod_reports import PodReports
from schemas.instants import to_micro_time
from schemas.pod import Pod
from schemas.snapshot import RestoreProgress, Snapshot
from statemachine.restore import running_restores

log = logging.getLogger(__name__)

# So many Pods are shown on one snapshot. Nodes that begin at the same moment may pass it by a few.
SHOWN_AT_MOST: Final = 20
_SHOWN_AFTER_S: Final = 1.0
_SMALL_BYTES: Final = 64 << 20
_WRITE_EVERY_S: Final = 2.0
_LOOK_S: Final = 0.5
# Nothing here takes so long: whoever was to tell of the end did not.
_LOST_AFTER_S: Final = 600.0


@dataclass(slots=True)
class _Restore:
    snapshot: Snapshot
    pod_name: str
    phase: Literal["Fetching", "Restoring", "Loading"]
    measure: Callable[[], int]
    began_s: float
    started_at: str
    shown: RestoreProgress | None = None
    is_over: bool = False

    @property
    def total_bytes(self) -> int:
        return self.snapshot.capture.size_bytes if self.snapshot.capture else 0

    def is_worth_showing(self, now_s: float) -> bool:
        """A fetch may be slow whatever its size; memory of few bytes is back at once."""
        is_small = self.phase == "Restoring" and self.total_bytes < _SMALL_BYTES
        return not is_small and now_s - self.began_s >= _SHOWN_AFTER_S

    def progress(self, node: str) -> RestoreProgress:
        return RestoreProgress(
            pod_name=self.pod_name,
            node=node,
            phase=self.phase,
            started_at=self.started_at,
            done_bytes=min(self.measure(), self.total_bytes),
            total_bytes=self.total_bytes,
        )


class RunningRestores:
    """The restores that run on this node. ``latest`` returns a snapshot, by UID, as it is now."""

    def __init__(
        self,
        reports: PodReports,
        *,
        node: str,
        latest: Callable[[str], Snapshot | None],
        clock: Clock,
    ) -> None:
        """Nothing is written before ``start``, or a ``step``."""
        self._reports = reports
        self._node = node
        self._latest = latest
        self._clock = clock
        self._restores: dict[str, _Restore] = {}
        self._fetched_bytes: dict[str, int] = {}
        self._written_s: dict[str, float] = {}
        self._guard = threading.Lock()
        self._some = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="restore-progress", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Stop to write; what is shown is removed by the next agent."""
        self._stopped.set()
        self._some.set()

    @contextlib.contextmanager
    def fetching(self, pod: Pod, snapshot: Snapshot) -> Iterator[None]:
        """A Pod waits for a snapshot's bytes for as long as the context lasts."""
        uid = snapshot.metadata.uid
        self._begin(pod, snapshot, "Fetching", lambda: self._fetched_bytes.get(uid, 0))
        try:
            yield
        finally:
            self.ended(pod.metadata.uid)

    def fetched(self, snapshot_uid: str, done_bytes: int, total_bytes: int) -> None:
        """So much of a snapshot came to this node, whoever waits for it."""
        if done_bytes < total_bytes:
            self._fetched_bytes[snapshot_uid] = done_bytes
        else:
            self._fetched_bytes.pop(snapshot_uid, None)

    def restoring(self, pod: Pod, snapshot: Snapshot, measure: Callable[[], int]) -> None:
        """A Pod's sandbox reads its memory from now on; ``measure`` returns the bytes it has."""
        self._begin(pod, snapshot, "Restoring", measure)

    def loading(self, pod: Pod, snapshot: Snapshot, measure: Callable[[], int]) -> None:
        """A Pod runs, and so many bytes of its memory are on the node as ``measure`` returns."""
        self._begin(pod, snapshot, "Loading", measure)

    def ended(self, pod_uid: str) -> None:
        """A Pod is restored, starts cold or is gone; known Pods and others."""
        with self._guard:
            restore = self._restores.get(pod_uid)
            if restore is not None:
                restore.is_over = True

    def remove_left_behind(self, snapshots: Iterable[Snapshot]) -> bool:
        """Remove what an earlier agent of this node left; returns whether it is gone."""
        is_gone = True
        for snapshot in snapshots:
            with self._guard:
                left = [
                    uid
                    for uid, progress in snapshot.restores.items()
                    if progress.node == self._node and uid not in self._restores
                ]
            if left:
                is_gone &= self._write(snapshot, dict.fromkeys(left))
        return is_gone

    def step(self) -> None:
        """Write what changed and is due."""
        now_s = self._clock.monotonic_s()
        by_snapshot: dict[str, dict[str, _Restore]] = {}
        with self._guard:
            for uid, restore in list(self._restores.items()):
                restore.is_over |= now_s - restore.began_s > _LOST_AFTER_S
                if restore.is_over and restore.shown is None:
                    del self._restores[uid]
                else:
                    by_snapshot.setdefault(restore.snapshot.metadata.uid, {})[uid] = restore
            self._written_s = {u: s for u, s in self._written_s.items() if u in by_snapshot}
            if not self._restores:
                self._fetched_bytes.clear()
                self._some.clear()
        for snapshot_uid, restores in by_snapshot.items():
            if now_s - self._written_s.get(snapshot_uid, -_WRITE_EVERY_S) >= _WRITE_EVERY_S:
                self._show(snapshot_uid, restores, now_s)

    def _begin(
        self,
        pod: Pod,
        snapshot: Snapshot,
        phase: Literal["Fetching", "Restoring", "Loading"],
        measure: Callable[[], int],
    ) -> None:
        uid = pod.metadata.uid
        with self._guard:
            before = self._restores.get(uid)
            restore = _Restore(
                snapshot=snapshot,
                pod_name=pod.metadata.name,
                phase=phase,
                measure=measure,
                began_s=self._clock.monotonic_s(),
                started_at=to_micro_time(self._clock.now()),
            )
            if before is not None:  # another phase of the same restore
                restore.began_s, restore.started_at = before.began_s, before.started_at
                restore.shown = before.shown
            self._restores[uid] = restore
            self._some.set()

    def _show(self, snapshot_uid: str, restores: Mapping[str, _Restore], now_s: float) -> None:
        listed = self._latest(snapshot_uid)
        fresh = running_restores(listed, self._clock.now()) if listed else {}
        room = SHOWN_AT_MOST - len(fresh.keys() | {u for u, r in restores.items() if r.shown})
        changes: dict[str, RestoreProgress | None] = {}
        for uid, restore in restores.items():
            if restore.is_over:
                changes[uid] = None
                continue
            if restore.shown is None:
                if room <= 0 or not restore.is_worth_showing(now_s):
                    continue
                room -= 1
            progress = restore.progress(self._node)
            if progress != restore.shown:
                changes[uid] = progress
        if not changes:
            return
        self._written_s[snapshot_uid] = now_s
        stale = (listed.restores.keys() if listed else set()) - fresh.keys() - restores.keys()
        snapshot = next(iter(restores.values())).snapshot
        if self._write(snapshot, changes | dict.fromkeys(stale)):
            with self._guard:
                for uid, written in changes.items():
                    restores[uid].shown = written
                    if uid in self._restores:  # it may have gone on to its next phase
                        self._restores[uid].shown = written

    def _write(self, snapshot: Snapshot, changes: Mapping[str, RestoreProgress | None]) -> bool:
        rendered = {uid: p.to_object() if p else None for uid, p in changes.items()}
        return self._reports.merge_status(snapshot, {"podsnap": {"restores": rendered}})

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._some.wait()
            try:
                self.step()
            except Exception:
                log.exception("the progress of restores could not be written")
            self._clock.wait(self._stopped, _LOOK_S)
