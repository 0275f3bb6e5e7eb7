# SPDX-License-Identifier: Apache-2.0
"""What a policy keeps: its limits, and the snapshots that Pods and templates ask for by name."""

from collections.abc import Sequence

from policies.obsolescence import Template, pins
from policies.retention import Doomed, schedule
from reconciler.cluster_cache import TEMPLATES
from reconciler.commands.reading import Reader
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.snapshot import Snapshot


class Keeping:
    """The Pods and templates of a namespace, by which a policy's next deletions are planned."""

    def __init__(self, reader: Reader) -> None:
        """Ask for all that may pin."""
        self._cluster = reader.cluster
        self._pods = reader.pods()
        self._templates = [reader.all_of(resource, Template.parse) for resource in TEMPLATES]

    def pods(self) -> list[Pod]:
        """Return the Pods of the namespace."""
        return self._cluster.if_allowed(self._pods, "Pods") or []

    def templates(self) -> list[Template]:
        """Return what its workloads make Pods from."""
        answers = (self._cluster.if_allowed(t, "workloads") or [] for t in self._templates)
        return [template for answer in answers for template in answer]

    def plan(self, policy: Policy, snapshots: Sequence[Snapshot]) -> list[Doomed]:
        """Return what retention deletes, the first one first."""
        return schedule(policy, snapshots, pins(policy, self.pods(), self.templates()))
