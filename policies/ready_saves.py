# SPDX-License-Identifier: Apache-2.0
"""Whether a Pod that became Ready is to be saved now (``triggerConfig.type: readinessProbe``).

A Ready Pod is serving, and nobody asked for its pause. So only one that became Ready a moment ago
is saved: the window is as long as a controller may be away, and short enough that a Pod which has
served for days is left alone when a snapshot is deleted or a policy comes. Every failed save costs
a pause too, so an identity is given up after a few.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from policies.matching import Candidate, judge
from policies.verdict import Finding, Reason, Verdict
from schemas.instants import parse_time
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.snapshot import Snapshot

READY_WINDOW_S: Final = 600.0
MAX_FAILED_GENERATIONS: Final = 3


def became_ready_lately(pod: Pod, policy: Policy, now: datetime) -> bool:
    """Whether a Pod is new under its policy and became Ready within the window."""
    since = parse_time(pod.ready_since)
    return (
        since is not None
        and (now - since).total_seconds() <= READY_WINDOW_S
        # In one second with its policy counts: both may come from one apply.
        and pod.metadata.creation_timestamp >= policy.metadata.creation_timestamp
    )


@dataclass(frozen=True, slots=True)
class ReadyInput:
    """A governed Pod that could be saved, the identity it shares, and all snapshots there are."""

    candidate: Candidate
    identity: str
    snapshots: Sequence[Snapshot]
    now: datetime


def due_when_ready(given: ReadyInput) -> Verdict:
    """Judge whether the Pod is to be saved now; the first finding is why not."""
    pod, policy = given.candidate.pod, given.candidate.policy
    if not became_ready_lately(pod, policy, given.now):
        return _not_due("it did not become Ready lately, or is older than its policy")
    if any(judge(given.candidate, s).usable for s in given.snapshots):
        return _not_due("a snapshot that it can be restored from exists")
    ours = generations(policy, given.identity, given.snapshots)
    if any(not s.is_spent and not s.metadata.is_deleting for s in ours):
        return _not_due("an equal Pod is being saved")
    if any(s.origin_pod_uid == pod.metadata.uid for s in ours):
        return _not_due("it was saved before, without success")
    message = given_up(ours)
    return Verdict((Finding(Reason.GAVE_UP, message),)) if message else Verdict()


def generations(policy: Policy, identity: str, snapshots: Iterable[Snapshot]) -> list[Snapshot]:
    """Return the snapshots of one identity."""
    return [
        s
        for s in snapshots
        if s.identity_label == identity and s.metadata.namespace == policy.metadata.namespace
    ]


def given_up(ours: Iterable[Snapshot]) -> str:
    """Say that an identity has failed too often, from its generations; empty if it has not."""
    spent = [s for s in ours if s.is_spent and not s.metadata.is_deleting]
    if len(spent) < MAX_FAILED_GENERATIONS:
        return ""
    last = max(spent, key=lambda s: (s.metadata.creation_timestamp, s.metadata.name))
    failure = last.capture.failure if last.capture else None
    why = f"{failure.reason}: {failure.message}" if failure else last.quarantine
    return (
        f"no more saves are tried for Pods like {last.origin_pod}, because {len(spent)} failed, "
        f"the last being PodSnapshot {last.metadata.name} ({why}); mend the cause and delete a "
        "failed PodSnapshot to let it try again"
    )


def _not_due(message: str) -> Verdict:
    return Verdict((Finding(Reason.NOT_DUE, message),))
