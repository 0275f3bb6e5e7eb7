# SPDX-License-Identifier: Apache-2.0
"""How the next Pod of a workload would start, on each kind of node, before it exists.

Every verdict is ``explanation``'s, which is the agent's. The trap: two things decide that no
manifest holds. A tag may name another image by the time a container is made from it, and only a
node sees the contents of mounted Secrets and ConfigMaps; where a restore hangs on one of them, that
is told as unknown, and the rest as if it were the same.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import TypeVar

from policies.advice import how_to_save
from policies.difference import Difference
from policies.distill import content_volumes, distill
from policies.explanation import PodExplanation, PodFacts, explain_pod
from policies.obsolescence import NodeClass, Template
from policies.selection import group_key, selecting_policies
from schemas.names import READY
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.snapshot import Snapshot
from schemas.storage_config import StorageConfig

Key = tuple[str, str, str]
K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Workload:
    """Something that makes Pods, or a Pod itself.

    ``pod`` is the one it would make next, under the workload's own name; ``template`` is what
    obsolescence compares, ``None`` for a Pod. ``place`` is ``file:line:column``, ``notes`` say what
    the Pod stands for and how far it is known.
    """

    kind: str
    pod: Pod
    template: Template | None = None
    place: str = ""
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        """Kind, namespace and name."""
        return (self.kind, *self.pod.metadata.key)

    def __str__(self) -> str:
        return f"{self.kind} {self.pod.metadata}"


@dataclass(frozen=True, slots=True)
class Side:
    """One of two states that are compared: what makes Pods, and what governs them."""

    workloads: Mapping[Key, Workload] = field(default_factory=dict)
    policies: Sequence[Policy] = ()
    storage: Mapping[str, StorageConfig] = field(default_factory=dict)
    snapshots: Sequence[Snapshot] = ()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What stands in the cluster beside the tree, and does not change with it.

    ``pods`` and ``templates`` are those that neither side has. ``runtime_classes`` says which mean
    gVisor, ``None`` if that is not known; ``knows_workloads`` is whether the side before is whole.
    """

    now: datetime
    classes: Sequence[NodeClass] = ()
    runtime_classes: Mapping[str, bool] | None = None
    pods: Sequence[Pod] = ()
    templates: Sequence[Template] = ()
    knows_workloads: bool = True


class Outcome(StrEnum):
    """How a workload's next Pod starts, over all kinds of nodes."""

    UNGOVERNED = "Ungoverned"
    RESTORED = "Restored"
    BY_NODE = "DependsOnNode"
    COLD = "Cold"


@dataclass(frozen=True, slots=True)
class Start:
    """How a Pod starts on nodes that can run the same; ``nodes`` is empty if none is known.

    Of a cold start ``cause`` and ``why`` are what its Event will say, ``nearest`` is the snapshot
    that they are about, and ``differences`` every field of it. ``environment`` and ``unknown`` are
    about a restore: variables that differ (their names), and what only the node will know.
    """

    nodes: tuple[str, ...] = ()
    restored_from: str = ""
    cause: str = ""
    why: str = ""
    nearest: str = ""
    awaited: str = ""
    differences: tuple[Difference, ...] = ()
    environment: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outlook:
    """What becomes of a workload's next Pod.

    ``selected_by`` names policies that select it too and do not govern it, ``next_save`` is what
    makes the policy's next save happen.
    """

    governed_by: str
    selected_by: tuple[str, ...]
    outcome: Outcome
    starts: tuple[Start, ...]
    cannot_be_saved: str
    next_save: str

    @property
    def snapshots(self) -> tuple[str, ...]:
        """What it is restored from, kind of node by kind of node."""
        return tuple(start.restored_from for start in self.starts)


class Forecast:
    """Tells the outlook of every workload of one side; what they share is gathered once."""

    def __init__(
        self,
        side: Side,
        classes: Sequence[NodeClass],
        runtime_classes: Mapping[str, bool] | None,
    ) -> None:
        """``runtime_classes`` says which mean gVisor; without it every one that is named does."""
        self._side = side
        self._classes = classes
        self._runtime_classes = runtime_classes
        self._policies = _grouped(side.policies, lambda p: p.metadata.namespace)
        stored = _grouped(side.snapshots, lambda s: (s.metadata.namespace, s.policy_name))
        self._shelves = {
            p.metadata.key: _Shelf(p, stored.get(p.metadata.key, ())) for p in side.policies
        }
        self._named = {s.metadata.key: s for s in side.snapshots}

    def of(self, workload: Workload) -> Outlook:
        """Return what becomes of a workload's next Pod."""
        pod = workload.pod
        selecting = selecting_policies(pod, self._policies.get(pod.metadata.namespace, ()))
        policy = selecting[0] if selecting else None
        facts = PodFacts(
            pod=pod,
            policies=selecting,
            storage=self._side.storage.get(policy.storage_config_name) if policy else None,
            snapshots=self._candidates(pod, policy) if policy else (),
            is_gvisor=self._is_gvisor(pod),
        )
        told = [
            (c.nodes, explain_pod(replace(facts, node=c.compatibility))) for c in self._classes
        ] or [((), explain_pod(facts))]
        starts = tuple(_merged(self._start(nodes, one, pod, policy) for nodes, one in told))
        governed_by = told[0][1].governed_by
        return Outlook(
            governed_by=governed_by,
            selected_by=tuple(p.metadata.name for p in selecting[1:]) if governed_by else (),
            outcome=_outcome(starts) if governed_by else Outcome.UNGOVERNED,
            starts=starts,
            cannot_be_saved=told[0][1].cannot_be_saved,
            next_save=how_to_save(policy, "POD") if policy and governed_by else "",
        )

    def _is_gvisor(self, pod: Pod) -> bool | None:
        classes = self._runtime_classes
        if classes is None:
            return None if pod.runtime_class else False
        return classes.get(pod.runtime_class, False)

    def _candidates(self, pod: Pod, policy: Policy) -> list[Snapshot]:
        found = self._shelves[policy.metadata.key].worth_judging(pod)
        named = self._named.get((pod.metadata.namespace, pod.pinned_snapshot or ""))
        return found if named is None or named in found else [*found, named]

    def _start(
        self, nodes: tuple[str, ...], told: PodExplanation, pod: Pod, policy: Policy | None
    ) -> Start:
        if told.chosen and policy is not None:
            chosen = next(c for c in told.candidates if c.name == told.chosen)
            snapshot = self._named[pod.metadata.namespace, told.chosen]
            return Start(
                nodes,
                restored_from=told.chosen,
                environment=chosen.environment,
                unknown=tuple(_unknown(pod, policy, snapshot)),
            )
        about = (c for c in told.candidates if f"/{c.name}" in told.why_not)
        nearest = max(about, key=lambda c: len(c.name), default=None)
        return Start(
            nodes,
            cause=told.cause,
            why=told.why_not,
            nearest=nearest.name if nearest else "",
            awaited=told.awaited,
            differences=nearest.differences if nearest else (),
        )


class _Shelf:
    """A policy's snapshots, so that of hundreds only those are judged that could be chosen or told.

    What has another spec never fits; of those only the newest may be what a reason is about.
    """

    def __init__(self, policy: Policy, snapshots: Iterable[Snapshot]) -> None:
        self._policy = policy
        self._all = list(snapshots)
        self._by_hash = _grouped(self._all, lambda s: s.capture.identity.hash if s.capture else "")
        self._has_files = any(s.capture and s.capture.rootfs_only for s in self._all)
        newest = sorted(self._all, key=lambda s: s.age_key, reverse=True)
        ready = [s for s in newest if (c := s.conditions.get(READY)) and c.is_true]
        self._ready_by_group = _grouped(ready, self._group)
        self._newest = [*ready[:1], *[s for s in newest if s.quarantine][:1]]

    def worth_judging(self, pod: Pod) -> list[Snapshot]:
        """Return what gives the same choice, for the same reason, as all of them."""
        policy = self._policy
        if self._has_files or content_volumes(pod, policy):
            return self._all
        group = group_key(pod.metadata.labels, policy)
        found = [
            *self._by_hash.get(distill(pod, policy).hash, ()),
            *self._ready_by_group.get(group, ())[:1],
            *self._newest,
        ]
        names = {s.metadata.name for s in found}
        return [s for s in self._all if s.metadata.name in names]

    def _group(self, snapshot: Snapshot) -> tuple[tuple[str, str], ...]:
        return group_key(snapshot.metadata.labels, self._policy)


def _unknown(pod: Pod, policy: Policy, snapshot: Snapshot) -> Iterator[str]:
    """Yield what decides at the last moment: images by tag, contents of volumes."""
    capture = snapshot.capture
    if capture is None:
        return
    saved = capture.identity.fields.values()
    for container in pod.running_containers:
        name, image = container["name"], str(container.get("image") or "")
        is_same_digest = "@sha256:" in image and json.dumps(image) in saved
        if name in capture.image_ids and not is_same_digest:
            yield f"tag: container {name}: {image}"
    if not capture.rootfs_only:
        yield from (f"content: volume {name}" for name in sorted(content_volumes(pod, policy)))


def _merged(starts: Iterable[Start]) -> Iterator[Start]:
    """Yield each different start once, with the nodes of all alike."""
    found: dict[Start, list[str]] = {}
    for start in starts:
        found.setdefault(replace(start, nodes=()), []).extend(start.nodes)
    yield from (replace(start, nodes=tuple(nodes)) for start, nodes in found.items())


def _outcome(starts: Sequence[Start]) -> Outcome:
    restored = [bool(start.restored_from) for start in starts]
    if all(restored):
        return Outcome.RESTORED
    return Outcome.BY_NODE if any(restored) else Outcome.COLD


def _grouped(values: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    found: dict[K, list[T]] = {}
    for value in values:
        found.setdefault(key(value), []).append(value)
    return found
