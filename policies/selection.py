# SPDX-License-Identifier: Apache-2.0
"""Which policy governs a Pod.

No public statement says what happens when several policies select one Pod; here the oldest governs
(then the name decides), so that adding a policy never takes a Pod away from a working one.
"""

from collections.abc import Iterable, Mapping

from schemas.pod import Pod
from schemas.policy import Policy


def selecting_policies(pod: Pod, policies: Iterable[Policy]) -> list[Policy]:
    """Return the policies that select the Pod, the governing one first; none for a static Pod."""
    if pod.is_static:
        return []
    return sorted(
        (
            p
            for p in policies
            if p.metadata.namespace == pod.metadata.namespace
            and not p.metadata.is_deleting
            and p.selector.matches(pod.metadata.labels)
        ),
        key=lambda p: (p.metadata.creation_timestamp, p.metadata.name),
    )


def governing_policy(pod: Pod, policies: Iterable[Policy]) -> Policy | None:
    """Return the policy that governs the Pod, or ``None``. Static Pods are never governed."""
    return next(iter(selecting_policies(pod, policies)), None)


def group_labels(labels: Mapping[str, str], policy: Policy) -> dict[str, str]:
    """Return the exact label set that is the group of a Pod or a snapshot (contract, 6.4)."""
    return {key: labels[key] for key in policy.grouping_labels if key in labels}


def group_key(labels: Mapping[str, str], policy: Policy) -> tuple[tuple[str, str], ...]:
    """Return that label set in an order of its own, to compare and to count by."""
    return tuple(sorted(group_labels(labels, policy).items()))
