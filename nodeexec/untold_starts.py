# SPDX-License-Identifier: Apache-2.0
"""Governed Pods that started without podsnap, because its agent was away: told once it is back.

Such a sandbox has no record beside its bundle, because only an answer of the agent makes one. An
agent that knew the cluster and answered leaves a note there, also where it answered that the Pod is
not governed. What has neither was made without it. The trap: a Pod that is older than its policy
was not governed when it started, and there is nothing to tell.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from nodeexec.cluster_view import ClusterView
from nodeexec.metrics import AgentMetrics
from nodeexec.pod_reports import PodReports
from nodeexec.sandboxes import DECISION_FILE
from nodeexec.settings import AgentSettings
from policies.verdict import Reason
from schemas.instants import parse_time
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.snapshot import Snapshot
from statemachine.restore import Outcome

ANSWERED_FILE: Final = "podsnap-answered"
_WHY: Final = (
    "the Pod's sandbox was made without podsnap: the agent of node {node} was away, had just "
    "started or answered too late; restart the Pod to have it restored, or saved"
)


def note_answer(bundle: Path) -> None:
    """Remember that an agent that knew the cluster answered for a sandbox."""
    try:
        (bundle / ANSWERED_FILE).touch(mode=0o600)
    except FileNotFoundError:
        return  # the Pod is already gone


@dataclass(slots=True)
class UntoldStarts:
    """Finds them among the Pods of this node."""

    settings: AgentSettings
    view: ClusterView
    reports: PodReports
    metrics: AgentMetrics
    fitting: Callable[[Pod, Policy], Snapshot | None]
    _looked_at: dict[str, frozenset[str]] = field(default_factory=dict)

    def tell(self) -> None:
        """Tell of every such Pod; the note beside the bundle says that it was done."""
        looked_at = {}
        for pod in self.view.pods.store.items():
            policy = self.view.policy_of(pod)
            if policy is None or not pod.container_ids:
                continue
            containers = frozenset(pod.container_ids.values())
            looked_at[pod.metadata.uid] = containers
            if self._looked_at.get(pod.metadata.uid) == containers:
                continue
            if pod.metadata.is_deleting or pod.is_over:
                continue
            bundle = self._unanswered_sandbox(containers)
            if bundle is not None and _is_newer(bundle, policy):
                note_answer(bundle)
                self._tell(pod, policy)
        self._looked_at = looked_at

    def _tell(self, pod: Pod, policy: Policy) -> None:
        lost = self.fitting(pod, policy) is not None
        outcome = Outcome.COLD_DESPITE_SNAPSHOT if lost else Outcome.COLD
        self.reports.forget_restore(pod)
        self.reports.outcome(pod, outcome, reason=_WHY.format(node=self.settings.node_name))
        self.metrics.started(outcome, Reason.AGENT_AWAY)

    def _unanswered_sandbox(self, containers: frozenset[str]) -> Path | None:
        """Return the bundle of the sandbox in which containers run, if nobody answered for it.

        Found by way of a container, because one exists only when its sandbox is complete.
        """
        for container in containers:
            config = self.settings.bundles_dir / container / "config.json"
            try:
                annotations = json.loads(config.read_bytes()).get("annotations") or {}
            except (OSError, ValueError):
                continue  # it has ended
            sandbox = Path(annotations.get("io.kubernetes.cri.sandbox-id", "")).name
            # Without the state file it is none of runsc's.
            state = self.settings.runsc_root / f"{sandbox}_sandbox:{sandbox}.state"
            bundle = self.settings.bundles_dir / sandbox
            known = (bundle / DECISION_FILE).exists() or (bundle / ANSWERED_FILE).exists()
            return bundle if sandbox and state.exists() and not known else None
        return None


def _is_newer(bundle: Path, policy: Policy) -> bool:
    """Whether a sandbox was made when the policy was already there; in one second, it was."""
    policy_made_at = parse_time(policy.metadata.creation_timestamp)
    try:
        # The runtime writes the spec when the sandbox is made, and never again.
        made_at = datetime.fromtimestamp((bundle / "config.json").stat().st_mtime, UTC)
    except FileNotFoundError:
        return False
    return policy_made_at is not None and made_at >= policy_made_at
