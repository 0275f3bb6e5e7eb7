# SPDX-License-Identifier: Apache-2.0
"""The agent's metrics. Label values come from closed sets, never from names of objects.

``docs/reference/metrics.md`` explains them.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from policies.verdict import Reason
from schemas.snapshot import CaptureRecord
from statemachine.restore import Outcome

_SECONDS = (0.001, 0.005, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class AgentMetrics:
    """Counters of saves, decisions and restores on this node."""

    def __init__(self) -> None:
        """Register everything, at zero."""
        self.registry = CollectorRegistry()
        self.decisions = Counter(
            "podsnap_decisions", "Sandboxes decided on.", ["outcome"], registry=self.registry
        )
        for outcome in Outcome:
            self.decisions.labels(outcome=outcome)
        self.starts = Counter(
            "podsnap_pod_starts",
            "Starts of governed Pods that were told on them, and why they were cold.",
            ["outcome", "reason"],
            registry=self.registry,
        )
        self.starts.labels(outcome=Outcome.RESTORED, reason="")
        self.starts.labels(outcome=Outcome.COLD, reason=Reason.NO_SNAPSHOT_YET)
        self.decision_seconds = Histogram(
            "podsnap_decision_seconds",
            "Time from question to answer, fetches included.",
            registry=self.registry,
            buckets=_SECONDS,
        )
        self.restores = Counter(
            "podsnap_restores", "Pods restored and reported.", registry=self.registry
        )
        self.saves = Counter("podsnap_saves", "Saves stored in a bucket.", registry=self.registry)
        self.failed_saves = Counter(
            "podsnap_failed_saves", "Saves that failed.", registry=self.registry
        )
        self.saving = Gauge("podsnap_saving", "Saves that run now.", registry=self.registry)
        self.checkpoint_seconds = Histogram(
            "podsnap_checkpoint_seconds",
            "Time that runsc wrote, which is how long the Pod paused.",
            registry=self.registry,
            buckets=_SECONDS,
        )
        self.seal_seconds = Histogram(
            "podsnap_seal_seconds",
            "Time for digests and fsync.",
            registry=self.registry,
            buckets=_SECONDS,
        )

    def started(self, outcome: Outcome, cause: Reason | None) -> None:
        """Count a start; only a restored Pod has no cause."""
        self.starts.labels(outcome=outcome, reason=cause or "").inc()

    def observe_save(self, record: CaptureRecord) -> None:
        """Count the phases of a sealed save."""
        self.checkpoint_seconds.observe(record.checkpoint_s)
        self.seal_seconds.observe(record.seal_s)
