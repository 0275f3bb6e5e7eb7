# SPDX-License-Identifier: Apache-2.0
"""The agent's metrics. Label values come from closed sets, never from names of objects.

The phases have the names of the trace's spans and are read from the same records, so that a slow
histogram and a slow trace speak of the same thing. A phase whose instants nobody recorded is not
counted, least of all as zero. ``docs/reference/metrics.md`` explains them.
"""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from backends.queue_metrics import QueueMetrics
from policies.verdict import COLD_START_REASONS, Reason
from schemas.instants import parse_time
from schemas.restore_times import RestoreTimes
from schemas.snapshot import CaptureRecord
from statemachine.restore import Outcome

SAVE_PHASES: Final = ("freeze", "dump", "seal", "upload")
RESTORE_PHASES: Final = ("decision", "gate", "fetch", "verify", "runsc_restore", "pod_ready")

_SECONDS: Final = (0.001, 0.005, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class AgentMetrics:
    """Counters of saves, decisions and restores on this node."""

    def __init__(self) -> None:
        """Register everything, at zero."""
        self.registry = CollectorRegistry()
        self.queues = QueueMetrics(self.registry)
        self.decisions = Counter(
            "podsnap_decisions",
            "Sandboxes that were asked about, of ungoverned Pods too.",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in Outcome:
            self.decisions.labels(outcome=outcome)
        self.starts = Counter(
            "podsnap_pod_starts",
            "Starts of governed Pods, each when it is told on the Pod, and why they were cold.",
            ["outcome", "reason"],
            registry=self.registry,
        )
        self.starts.labels(outcome=Outcome.RESTORED, reason="")
        for reason in sorted(COLD_START_REASONS):
            for outcome in self._outcomes(reason):
                self.starts.labels(outcome=outcome, reason=reason)
        self.decision_seconds = self._seconds(
            "podsnap_decision_seconds", "Time from question to answer, fetches included."
        )
        self.restores = self._count("podsnap_restores", "Restores that were complete.")
        self.restore_phases = self._seconds(
            "podsnap_restore_phase_seconds", "Time of each phase of a restore.", RESTORE_PHASES
        )
        self.saves = self._count("podsnap_saves", "Saves in the bucket.")
        self.failed_saves = self._count("podsnap_failed_saves", "Saves that failed.")
        self.saving = Gauge("podsnap_saving", "Saves that run now.", registry=self.registry)
        self.save_phases = self._seconds(
            "podsnap_save_phase_seconds",
            "Time of each phase of a save; the Pod stands still for `freeze`, which has `dump` "
            "in it.",
            SAVE_PHASES,
        )
        self.uploaded_bytes = self._count(
            "podsnap_uploaded_bytes", "Bytes of saves that are in the bucket."
        )
        self.fetched_bytes = self._count(
            "podsnap_fetched_bytes", "Bytes of images that came from a bucket."
        )
        self.cache_hits = self._count(
            "podsnap_cache_hits", "Restores whose image was on the node already."
        )
        self.cache_misses = self._count(
            "podsnap_cache_misses", "Restores whose image had to come from a bucket."
        )
        self.evicted_bytes = self._count(
            "podsnap_cache_evicted_bytes", "Bytes of images that made room for others."
        )
        self.cache_bytes = Gauge(
            "podsnap_cache_bytes",
            "Space that images take on the node's disk, those on their way included.",
            registry=self.registry,
        )
        self.cache_limit_bytes = Gauge(
            "podsnap_cache_limit_bytes", "Space that images may take.", registry=self.registry
        )

    def started(self, outcome: Outcome, cause: Reason | None) -> None:
        """Count a start; only a restored Pod has no cause."""
        self.starts.labels(outcome=outcome, reason=cause or "").inc()

    def sealed(self, record: CaptureRecord) -> None:
        """Count the phases of a save until its image is whole on this node."""
        self._save_phase("freeze", record.frozen_at, record.dumped_at)
        self._save_phase("dump", record.dumping_at, record.dumped_at)
        self._save_phase("seal", record.checkpointed_at, record.sealed_at)

    def uploaded(self, record: CaptureRecord) -> None:
        """Count a save that is in the bucket."""
        self.saves.inc()
        self.uploaded_bytes.inc(record.size_bytes)
        self._save_phase("upload", record.uploading_at, record.uploaded_at)

    def restored(self, times: RestoreTimes) -> None:
        """Count the phases of a restore, as far as they are known, but its fetch.

        Several Pods may have waited for one: see ``fetched``.
        """
        for phase, began_s, ended_s in (
            ("decision", times.asked_s, times.decided_s),
            ("gate", times.gating_s, times.gated_s),
            ("verify", times.verifying_s, times.verified_s),
            ("runsc_restore", times.restoring_s, times.restored_s),
            ("pod_ready", times.restored_s, times.ready_s),
        ):
            if began_s and ended_s:
                self.restore_phases.labels(phase=phase).observe(max(ended_s - began_s, 0.0))

    def fetched(self, size_bytes: int, took_s: float) -> None:
        """Count an image that came from a bucket."""
        self.fetched_bytes.inc(size_bytes)
        self.restore_phases.labels(phase="fetch").observe(took_s)

    def looked_up(self, was_here: bool) -> None:  # noqa: FBT001 - the callback's only fact
        """Count a restore whose image was looked for on the node."""
        (self.cache_hits if was_here else self.cache_misses).inc()

    def _save_phase(self, phase: str, began_at: str, ended_at: str) -> None:
        began, ended = parse_time(began_at), parse_time(ended_at)
        if began is not None and ended is not None:
            took_s = max((ended - began).total_seconds(), 0.0)
            self.save_phases.labels(phase=phase).observe(took_s)

    def _count(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self.registry)

    def _seconds(self, name: str, text: str, phases: tuple[str, ...] = ()) -> Histogram:
        labels = ["phase"] if phases else []
        found = Histogram(name, text, labels, registry=self.registry, buckets=_SECONDS)
        for phase in phases:
            found.labels(phase=phase)
        return found

    @staticmethod
    def _outcomes(reason: Reason) -> tuple[Outcome, ...]:
        if reason is Reason.RESTORE_FAILED:
            return (Outcome.FELL_BACK,)
        return (Outcome.COLD, Outcome.COLD_DESPITE_SNAPSHOT)
