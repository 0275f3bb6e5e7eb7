# SPDX-License-Identifier: Apache-2.0
"""How many Pods this node restored from each snapshot, and when it did last.

Both stand in the snapshot's status and are written together, at most once a minute for each
snapshot: a herd of Pods is one write. In between the agent remembers. The trap is the end: what was
not written by then is written when the agent stops, and lost if it is killed, so after a kill the
count may lack the restores of one minute. No other node writes this node's count.
"""

import threading
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from backends.clock import Clock
from nodeexec.pod_reports import PodReports
from schemas.instants import to_time
from schemas.names import ACCESS_MANAGER
from schemas.snapshot import Snapshot

_INTERVAL_S: Final = 60.0
_STOP_LIMIT_S: Final = 2.0


@dataclass(slots=True)
class _Served:
    snapshot: Snapshot
    count: int
    last_at: str = ""
    written: int = -1
    tried_s: float = -_INTERVAL_S


class RestoreCounts:
    """Counts the restores of this node, for each snapshot."""

    def __init__(self, reports: PodReports, *, node: str, clock: Clock) -> None:
        """Go on from what the snapshots' status says."""
        self._reports = reports
        self._node = node
        self._clock = clock
        self._served: dict[str, _Served] = {}
        self._guard = threading.Lock()
        self._writing = threading.Lock()

    def restored(self, snapshot: Snapshot) -> None:
        """Count a Pod that was restored, and write it if nothing was written for a minute."""
        with self._guard:
            before = snapshot.restored_by.get(self._node, 0)
            served = self._served.setdefault(
                snapshot.metadata.uid, _Served(snapshot, before, written=before)
            )
            served.count += 1
            served.last_at = to_time(self._clock.now())
        self.flush()

    def flush(self, *, at_once: bool = False) -> None:
        """Write the counts that are due, or all that changed."""
        now_s = self._clock.monotonic_s()
        with self._writing:
            for served in list(self._served.values()):
                if served.count == served.written:
                    continue
                is_due = at_once or now_s - served.tried_s >= _INTERVAL_S
                if is_due and not self._write(served, now_s):
                    return  # the others would wait for as long, and in vain

    def stop(self) -> None:
        """Write what changed; an API server that does not answer is not waited for."""
        last = threading.Thread(target=self.flush, kwargs={"at_once": True}, daemon=True)
        last.start()
        last.join(_STOP_LIMIT_S)

    def keep_only(self, snapshots: AbstractSet[str]) -> None:
        """Forget the snapshots that are gone; ``snapshots`` are the UIDs of those that are not."""
        with self._guard:
            self._served = {u: s for u, s in self._served.items() if u in snapshots}

    def _write(self, served: _Served, now_s: float) -> bool:
        served.tried_s = now_s
        with self._guard:
            count, last_at = served.count, served.last_at
        status = {"lastAccessTime": last_at, "podsnap": {"restoredBy": {self._node: count}}}
        is_written = self._reports.merge_status(served.snapshot, status, manager=ACCESS_MANAGER)
        if is_written:
            served.written = count
        return is_written
