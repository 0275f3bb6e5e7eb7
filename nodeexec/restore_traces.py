# SPDX-License-Identifier: Apache-2.0
"""The trace of each restore on this node, told once its Pod is Ready or starts cold after all.

The instants lie in files: the answer's in the sandbox's record, runsc's in the note of the attempt,
the last container's start in its mark. So an agent that was away meanwhile tells them all the same.
The note of the attempt goes when the Pod has done well for a while; until then a restarted agent
may tell the same spans again, which have the same ids.
"""

import json
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from backends.clock import Clock
from nodeexec.decision import Decision
from nodeexec.sandboxes import (
    DECISION_FILE,
    STARTED_DIR,
    ColdMark,
    PreparedSandbox,
    sandbox_of_pod,
)
from nodeexec.settings import AgentSettings
from schemas.instants import parse_time
from schemas.pod import Pod
from schemas.restore_times import RestoreTimes
from schemas.snapshot import Snapshot
from schemas.span import Span
from statemachine.trace import restore_spans

log = logging.getLogger(__name__)

P = ParamSpec("P")


def _never_raises(tell: Callable[P, None]) -> Callable[P, None]:
    """Log whatever goes wrong: what the caller does besides matters more than a trace."""

    @wraps(tell)
    def told(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            tell(*args, **kwargs)
        except Exception:
            log.warning("a restore has no trace", exc_info=True)

    return told


@dataclass(slots=True)
class RestoreTraces:
    """Tells of restores; ``send`` is ``None`` where no collector is named.

    ``snapshot_of`` finds a snapshot by namespace and name; ``count`` takes each restore's instants.
    """

    settings: AgentSettings
    snapshot_of: Callable[[str, str], Snapshot | None]
    clock: Clock
    send: Callable[[Sequence[Span]], bool] | None = None
    count: Callable[[RestoreTimes], None] = lambda _times: None
    # The sandboxes that were told of.
    _told: set[str] = field(default_factory=set)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    @_never_raises
    def became_ready(self, pod: Pod, ready_s: float) -> None:
        """Tell of the restore of a Pod that the watch showed Ready, if it was restored."""
        sandbox = sandbox_of_pod(self.settings.bundles_dir, pod.metadata.uid)
        if sandbox is not None and sandbox.restore_is_complete:
            self.restored(sandbox, pod, ready_s=ready_s)

    @_never_raises
    def restored(self, sandbox: PreparedSandbox, pod: Pod, *, ready_s: float = 0.0) -> None:
        """Tell of a restore whose Pod is Ready; without an instant the Pod's condition has one."""
        with self._guard:
            if sandbox.id in self._told:
                return
            self._told.add(sandbox.id)
        attempt = _read(self.settings.attempts_dir / sandbox.pod_uid)
        if not attempt:
            return  # it has done well for a while, and an earlier process told
        record = _read(sandbox.bundle / DECISION_FILE).get("restore") or {}
        restored_s = _last_change_s(sandbox.bundle / STARTED_DIR)
        ready = parse_time(pod.ready_since)
        self._tell(
            replace(
                _times(pod, record.get("times")),
                restoring_s=float(attempt.get("at", 0.0)),
                restored_s=restored_s,
                # The condition has whole seconds.
                ready_s=ready_s or max(ready.timestamp() if ready else 0.0, restored_s),
            ),
            pod.metadata.namespace,
            sandbox.restored_from,
            record.get("snapshot_uid", ""),
        )

    @_never_raises
    def fell_back(self, pod: Pod, mark: Path, cold: ColdMark) -> None:
        """Tell of a restore that failed. ``mark`` is the runtime's note, or was its attempt's."""
        now_s = self._now_s()
        attempt = _read(self.settings.attempts_dir / pod.metadata.uid)
        times = replace(
            _times(pod, _read(mark).get("times")),
            restoring_s=float(attempt.get("at", cold.at_s)),
            failed_s=cold.at_s if attempt else now_s,
            error=cold.reason,
        )
        self._tell(times, pod.metadata.namespace, cold.snapshot, cold.snapshot_uid)

    @_never_raises
    def unfetched(self, decision: Decision) -> None:
        """Tell of a restore that was decided on and whose bytes could not be had."""
        times, snapshot = decision.times, decision.unfetched
        if times is None or snapshot is None:
            return
        times = replace(
            times,
            fetching_s=max(times.decided_s, times.gated_s),
            failed_s=self._now_s(),
            error=decision.reason,
        )
        self.count(times)
        if self.send is not None:
            self.send(restore_spans(snapshot, times))

    def keep_only(self, sandboxes: set[str]) -> None:
        """Forget sandboxes that are gone."""
        with self._guard:
            self._told &= sandboxes

    def _tell(self, times: RestoreTimes, namespace: str, name: str, uid: str) -> None:
        self.count(times)
        snapshot = self.snapshot_of(namespace, name) if self.send is not None else None
        if self.send is None or snapshot is None or uid not in {"", snapshot.metadata.uid}:
            return  # without its snapshot there is no trace that it belongs to
        self.send(restore_spans(snapshot, times))

    def _now_s(self) -> float:
        return self.clock.now().timestamp()


def _times(pod: Pod, known: Any) -> RestoreTimes:  # noqa: ANN401 - what a file of the node holds
    times = RestoreTimes(
        namespace=pod.metadata.namespace,
        pod_name=pod.metadata.name,
        pod_uid=pod.metadata.uid,
        node=pod.node_name,
    )
    return times.with_answer(known) if isinstance(known, dict) else times


def _read(path: Path) -> dict[str, Any]:
    """Return what a file of the runtime says, nothing if it is gone or unreadable."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return raw if isinstance(raw, dict) else {}


def _last_change_s(directory: Path) -> float:
    try:
        return max((path.stat().st_mtime for path in directory.iterdir()), default=0.0)
    except OSError:
        return 0.0
