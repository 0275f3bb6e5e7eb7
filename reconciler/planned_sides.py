# SPDX-License-Identifier: Apache-2.0
"""The two sides of a plan, put together from a tree, perhaps an older one, and what stands.

What the tree says replaces what stands under the same name; what it does not mention stays. An
object that only the older tree has will be gone, because whoever applies trees removes it. What
stands and is selected by a policy that changes is on both sides, without a place. The trap is age:
a policy that is new is the youngest of all, so it takes no Pod from one that stands.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, TypeVar

from policies.distill import distill
from policies.obsolescence import SILENT_S, NodeClass, node_classes
from policies.planned_starts import Key, Side, Surroundings, Workload
from policies.workload_templates import MalformedTemplateError
from reconciler.planned_manifests import Manifests, workload
from schemas.metadata import Metadata
from schemas.names import GVISOR_HANDLERS, NODE_LEASE_PREFIX
from schemas.node_facts import NodeFacts
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.selectors import LabelSelector
from schemas.snapshot import Snapshot
from schemas.storage_config import StorageConfig

WORKLOAD_KINDS: Final = (
    "Pod",
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "ReplicaSet",
    "ReplicationController",
    "Job",
    "CronJob",
)
_YOUNGEST: Final = "9999-12-31T23:59:59Z"
# Pods of these come and go with what makes them; a static Pod is its Node's.
_MAKERS: Final = frozenset({*WORKLOAD_KINDS, "Node"})

K = TypeVar("K")
V = TypeVar("V")
Complete = Callable[[Sequence[Workload]], Sequence[Workload]]


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands in a cluster; ``runtime_classes`` is ``None`` if nobody says.

    ``unknown`` names what could not be read, or is not there to be read.
    """

    policies: Sequence[Policy] = ()
    storage: Mapping[str, StorageConfig] = field(default_factory=dict)
    snapshots: Sequence[Snapshot] = ()
    classes: Sequence[NodeClass] = ()
    runtime_classes: Mapping[str, bool] | None = None
    workloads: Mapping[Key, Workload] = field(default_factory=dict)
    pods: Sequence[Pod] = ()
    knows_workloads: bool = True
    unknown: tuple[str, ...] = ()


def standing(
    objects: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    unknown: Sequence[str] = (),
    knows_workloads: bool = True,
) -> Standing:
    """Read objects by kind, as the API server gives them; a kind that is left out is not known."""
    unknown = list(unknown)
    runtime_classes = None
    if "RuntimeClass" in objects:
        runtime_classes = {
            Metadata.parse(o).name: o.get("handler") in GVISOR_HANDLERS
            for o in objects["RuntimeClass"]
        }
    else:
        unknown.append("RuntimeClasses: every runtimeClassName is taken for gVisor")
    if not knows_workloads:
        unknown.append(
            "the workloads that stand there: a snapshot may be wanted by one that is not in the "
            "tree, and without --base those of the tree are compared with nothing"
        )
    classes = _living(map(NodeFacts.parse, filter(_is_of_node, objects.get("Lease", ()))))
    if not classes:
        unknown.append("what any node is: every node is taken to run every snapshot")
    return Standing(
        policies=[Policy.parse(o) for o in objects.get("PodSnapshotPolicy", ())],
        storage={
            config.metadata.name: config
            for config in map(StorageConfig.parse, objects.get("PodSnapshotStorageConfig", ()))
        },
        snapshots=[Snapshot.parse(o) for o in objects.get("PodSnapshot", ())],
        classes=classes,
        runtime_classes=runtime_classes,
        workloads=dict(_workloads(objects)),
        pods=[Pod.parse(o) for o in objects.get("Pod", ()) if not _is_made(o)],
        knows_workloads=knows_workloads,
        unknown=tuple(unknown),
    )


def _workloads(
    objects: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Iterable[tuple[Key, Workload]]:
    for kind in WORKLOAD_KINDS:
        for obj in objects.get(kind, ()):
            if _is_made(obj):
                continue
            try:
                found = workload(obj, "")
            except MalformedTemplateError:
                continue  # the API server took it, so it is nothing that matters here
            if found is not None:
                # Of a Pod that stands its UID and phase count too.
                yield found.key, replace(found, pod=Pod.parse(obj)) if kind == "Pod" else found


def _is_made(obj: Mapping[str, Any]) -> bool:
    owners = (obj.get("metadata") or {}).get("ownerReferences") or ()
    return any(o.get("controller") and o.get("kind") in _MAKERS for o in owners)


def _is_of_node(lease: Mapping[str, Any]) -> bool:
    return Metadata.parse(lease).name.startswith(NODE_LEASE_PREFIX)


def _living(nodes: Iterable[NodeFacts]) -> list[NodeClass]:
    """Return the kinds of nodes, without those that fell silent long before the others."""
    found = node_classes(nodes)
    newest_s = max((c.seen_at_s for c in found), default=0.0)
    return [c for c in found if newest_s - c.seen_at_s < SILENT_S]


def sides(
    tree: Manifests, base: Manifests | None, there: Standing, now: datetime, complete: Complete
) -> tuple[Side, Side, Surroundings]:
    """Return the side before, the side after, and what is the same on both.

    Without a base the side before is what stands. ``complete`` gives Pods what admission adds.
    """
    before_policies, after_policies = _layered(
        {p.metadata.key: p for p in there.policies},
        None if base is None else base.policies,
        tree.policies,
        _policy_known_as,
    )
    before_storage, after_storage = _layered(
        dict(there.storage), None if base is None else base.storage, tree.storage, _storage_known_as
    )
    older = (
        {k: w for k, w in there.workloads.items() if k in tree.workloads}
        if base is None
        else base.workloads
    )
    policies = [*before_policies.values(), *after_policies.values()]
    differing = [
        policy
        for old, new in _differing(before_policies, after_policies, before_storage, after_storage)
        for policy in (old, new)
        if policy is not None
    ]
    named = older.keys() | tree.workloads.keys()
    touched = {
        k: w for k, w in there.workloads.items() if k not in named and _is_selected(w, differing)
    }
    older, newer = {**older, **touched}, {**tree.workloads, **touched}
    mentioned = older.keys() | newer.keys()
    changed = {k: w for k, w in older.items() if not _is_same(w, newer.get(k))}
    completed, after = _completed([changed, newer], policies, complete)
    # What stands knows more of itself than the tree does: a Job may be finished.
    same = {k: replace(after[k], template=older[k].template) for k in older if k not in changed}
    before = {key: completed.get(key) or same[key] for key in older}
    after |= same
    classes = there.runtime_classes
    around = Surroundings(
        now=now,
        classes=there.classes,
        runtime_classes=None if classes is None else {**classes, **tree.runtime_classes},
        pods=[p for p in there.pods if ("Pod", *p.metadata.key) not in mentioned],
        templates=[
            w.template
            for key, w in there.workloads.items()
            if w.template is not None and key not in mentioned
        ],
        knows_workloads=there.knows_workloads if base is None else not base.errors,
    )
    return (
        Side(before, tuple(before_policies.values()), before_storage, tuple(there.snapshots)),
        Side(after, tuple(after_policies.values()), after_storage, tuple(there.snapshots)),
        around,
    )


def _layered(
    there: dict[K, V],
    base: Mapping[K, V] | None,
    tree: Mapping[K, V],
    known_as: Callable[[V, V | None], V],
) -> tuple[dict[K, V], dict[K, V]]:
    """Return what holds before and after, by key; ``known_as`` gives an object its identity."""

    def laid(layer: Mapping[K, V]) -> dict[K, V]:
        return {key: known_as(value, there.get(key)) for key, value in layer.items()}

    if base is None:
        return there, {**there, **laid(tree)}
    kept = {key: value for key, value in there.items() if key not in base}
    return {**there, **laid(base)}, {**kept, **laid(tree)}


def _differing(
    old: Mapping[tuple[str, str], Policy],
    new: Mapping[tuple[str, str], Policy],
    old_storage: Mapping[str, StorageConfig],
    new_storage: Mapping[str, StorageConfig],
) -> Iterator[tuple[Policy | None, Policy | None]]:
    """Yield policies that are other ones before and after, or that store elsewhere."""
    for key in dict.fromkeys((*old, *new)):
        was, will = old.get(key), new.get(key)
        stored = was and old_storage.get(was.storage_config_name)
        stores = will and new_storage.get(will.storage_config_name)
        if (was, stored) != (will, stores):
            yield was, will


def _is_selected(found: Workload, policies: Collection[Policy]) -> bool:
    """Whether new Pods of what stands may come, and one of the policies selects them."""
    if found.pod.is_over or (found.template is not None and not found.template.counts):
        return False
    metadata = found.pod.metadata
    return any(
        p.metadata.namespace == metadata.namespace and p.selector.matches(metadata.labels)
        for p in policies
    )


def _policy_known_as(policy: Policy, there: Policy | None) -> Policy:
    """Give a policy of a tree the identity of the one that it replaces, or that of a new one."""
    own = policy.metadata
    if there is None or there.metadata.is_deleting:
        return replace(policy, metadata=replace(own, uid="", creation_timestamp=_YOUNGEST))
    metadata = replace(
        own, uid=there.metadata.uid, creation_timestamp=there.metadata.creation_timestamp
    )
    return replace(policy, metadata=metadata, conditions=there.conditions)


def _storage_known_as(storage: StorageConfig, there: StorageConfig | None) -> StorageConfig:
    """Give a storage config of a tree what the controller found out about the same bucket."""
    is_same = there is not None and there.location == storage.location
    return replace(storage, conditions=there.conditions) if there and is_same else storage


def _is_same(older: Workload, newer: Workload | None) -> bool:
    """Whether two workloads' Pods are the same to policies, snapshots and admission."""
    if newer is None:
        return False
    old, new = older.pod, newer.pod
    return (
        (old.metadata.labels, old.metadata.annotations)
        == (new.metadata.labels, new.metadata.annotations)
        and old.spec.get("serviceAccountName") == new.spec.get("serviceAccountName")
        and distill(old) == distill(new)
        and list(_beside_identity(old)) == list(_beside_identity(new))
    )


def _beside_identity(pod: Pod) -> Iterator[tuple[Any, ...]]:
    """Yield what the distilled spec leaves out, and strict policies or matching look at."""
    for group in ("initContainers", "containers"):
        for container in pod.spec.get(group) or ():
            environment = (container.get("env") or [], container.get("envFrom") or [])
            yield (container["name"], *environment, container.get("restartPolicy"))


def _completed(
    layers: Sequence[Mapping[Key, Workload]], policies: Iterable[Policy], complete: Complete
) -> Iterator[dict[Key, Workload]]:
    """Yield workloads with Pods as admission leaves them, where a policy selects them."""
    selectors: dict[str, list[LabelSelector]] = {}
    for policy in policies:
        selectors.setdefault(policy.metadata.namespace, []).append(policy.selector)

    def is_asked(found: Workload) -> bool:
        metadata = found.pod.metadata
        is_admitted = found.kind == "Pod" and bool(metadata.uid)
        return not is_admitted and any(
            s.matches(metadata.labels) for s in selectors.get(metadata.namespace, ())
        )

    asked = [w for layer in layers for w in layer.values() if is_asked(w)]
    done = dict(zip(map(id, asked), complete(asked), strict=True))
    for layer in layers:
        yield {key: done.get(id(w), w) for key, w in layer.items()}
