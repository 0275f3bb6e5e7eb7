# SPDX-License-Identifier: Apache-2.0
"""Whether anybody could still want a stored snapshot, and whether any node could run it.

Nobody wants it if the Pods and templates that its policy selects in its group have all had another
spec for a while, and none pins it. If there are none at all, nothing took its place: a workload
that was suspended comes back to it, so it stays. Everything here can turn round: a rollback, a pin
or a node of its kind brings a snapshot back.

The trap: a template is not a Pod. Admission adds containers, volumes, mounts and labels that no
template names, so a template is compared only in what it names; what a template dropped may then
keep a snapshot that no Pod will want, which costs room, while the opposite would cost restores.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Self

from policies.compatibility import incompatibilities
from policies.distill import distill
from policies.selection import group_key
from schemas.instants import parse_time, to_micro_time
from schemas.metadata import Metadata
from schemas.node_facts import NodeFacts
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.sentences import some_of
from schemas.snapshot import CaptureRecord, Compatibility, Snapshot, SpecIdentity

# A roll-out that is taken back, or Pods between two nodes, should change no state: a Deployment
# gives up after ten minutes, a person looks within the hour.
UNWANTED_GRACE: Final = timedelta(hours=1)
# Nodes of a kind may be away over night.
UNRUNNABLE_GRACE: Final = timedelta(hours=24)
# Without a sign of life for so long a node is none; agents give one every few seconds.
SILENT_S: Final = 3600.0
_SHOWN: Final = 3
# These stand for others that are watched themselves.
_WATCHED_OWNERS: Final = frozenset({"Deployment", "CronJob"})
_FINISHED: Final = frozenset({"Complete", "Failed"})
# What only a policy's strictness adds; a controller sees no contents.
_STRICT_SUFFIXES: Final = (".content", ".env")


@dataclass(frozen=True, slots=True)
class Template:
    """What a Deployment, StatefulSet, DaemonSet, ReplicaSet, Job or CronJob makes Pods from.

    ``claims`` names the volumes that a StatefulSet adds. ``counts`` is false where no new Pod will
    come of it: it is finished, goes, or only carries out another object's template.
    """

    metadata: Metadata
    labels: Mapping[str, str] = field(default_factory=dict)
    pin: str | None = None
    identity: SpecIdentity = field(default_factory=SpecIdentity)
    claims: frozenset[str] = frozenset()
    counts: bool = True

    @classmethod
    def parse(cls, obj: Mapping[str, Any]) -> Self:
        """Read the API object of any of those kinds."""
        metadata = Metadata.parse(obj)
        owners = (obj.get("metadata") or {}).get("ownerReferences") or ()
        ended = (obj.get("status") or {}).get("conditions") or ()
        if (
            metadata.is_deleting
            or any(o.get("controller") and o.get("kind") in _WATCHED_OWNERS for o in owners)
            or any(c["type"] in _FINISHED and c["status"] == "True" for c in ended)
        ):
            return cls(metadata, counts=False)
        spec = obj.get("spec") or {}
        job = (spec.get("jobTemplate") or {}).get("spec")
        pod = Pod.parse((job or spec).get("template") or {})
        claims = (Metadata.parse(c).name for c in spec.get("volumeClaimTemplates") or ())
        return cls(
            metadata, pod.metadata.labels, pod.pinned_snapshot, distill(pod), frozenset(claims)
        )


@dataclass(frozen=True, slots=True)
class Wish:
    """A spec that a live Pod has, or that a template gives; ``claims`` is ``None`` for a Pod."""

    identity: SpecIdentity
    group: tuple[tuple[str, str], ...] = ()
    claims: frozenset[str] | None = None

    def differs_in(self, saved: SpecIdentity) -> list[str]:
        """Return the paths in which a saved spec is another one, in order."""
        want = {k: v for k, v in self.identity.fields.items() if not k.endswith(_STRICT_SUFFIXES)}
        have = {k: v for k, v in saved.fields.items() if not k.endswith(_STRICT_SUFFIXES)}
        if self.claims is not None:
            have = _as_named_by(want, have, self.claims)
            want = {k: v for k, v in want.items() if not k.endswith(".position")}
        return sorted(k for k in want.keys() | have.keys() if want.get(k) != have.get(k))


@dataclass(frozen=True, slots=True)
class Demand:
    """All that the Pods and templates which a policy selects ask for, each once."""

    wishes: Mapping[tuple[object, ...], Wish] = field(default_factory=dict)
    pins: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class NodeClass:
    """Nodes that can run the same; ``seen_at_s`` is the newest sign of life (epoch)."""

    compatibility: Compatibility
    nodes: tuple[str, ...] = ()
    seen_at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Standing:
    """What is to be recorded, why the snapshot is superseded (or empty), and the next look."""

    unwanted_since: str = ""
    unrunnable_since: str = ""
    superseded: str = ""
    look_again_s: float | None = None


def pins(policy: Policy, pods: Iterable[Pod], templates: Iterable[Template] = ()) -> frozenset[str]:
    """Return the snapshots that Pods and templates which the policy selects ask for by name."""
    named = (
        *(p.pinned_snapshot for p in pods if _asks(policy, p)),
        *(t.pin for t in templates if _gives(policy, t)),
    )
    return frozenset(filter(None, named))


def demand(policy: Policy, pods: Sequence[Pod], templates: Sequence[Template]) -> Demand:
    """Gather what a policy's Pods and templates ask for, from all that the cluster has."""
    found = [
        *(Wish(distill(p), group_key(p.metadata.labels, policy)) for p in pods if _asks(policy, p)),
        *(
            Wish(t.identity, group_key(t.labels, policy), t.claims)
            for t in templates
            if _gives(policy, t)
        ),
    ]
    return Demand(
        {(w.identity.hash, w.group, w.claims): w for w in found}, pins(policy, pods, templates)
    )


def node_classes(nodes: Iterable[NodeFacts]) -> list[NodeClass]:
    """Group nodes by what they can run; those that published nothing are left out."""
    found: dict[str, list[NodeFacts]] = {}
    for node in nodes:
        if node.compatibility.runsc_version:
            key = json.dumps(node.compatibility.to_object(), sort_keys=True)
            found.setdefault(key, []).append(node)
    return [
        NodeClass(
            alike[0].compatibility,
            tuple(sorted(n.node for n in alike)),
            max(n.renewed_at_s for n in alike),
        )
        for _, alike in sorted(found.items())
    ]


def can_run(capture: CaptureRecord, node: Compatibility) -> bool:
    """Whether a node can run what was saved; files alone run anywhere."""
    return capture.rootfs_only or not incompatibilities(capture.compatibility, node)


def standing_of(
    snapshot: Snapshot,
    policy: Policy,
    wanted: Demand,
    classes: Sequence[NodeClass],
    now: datetime,
) -> Standing:
    """Judge a stored snapshot whose policy exists."""
    capture = snapshot.capture
    if capture is None or capture.rootfs_only:
        return Standing()  # files fit any spec and any node
    record = snapshot.control
    looks: list[float] = []
    reasons: list[str] = []

    unwanted_since = ""
    differs = _unwanted(snapshot, policy, wanted)
    if differs:
        unwanted_since = _since(record.unwanted_since, now)
        left_s = _left_s(unwanted_since, UNWANTED_GRACE, now)
        if left_s > 0:
            looks.append(left_s)
        else:
            reasons.append(
                f"no Pod or template that policy {policy.metadata.name} selects has had its spec "
                f"since {unwanted_since[:19]}Z: they differ in {some_of(differs, _SHOWN)}; "
                "it comes back with one that has it, or that names it in annotation ps-name"
            )

    unrunnable_since = ""
    if capture.compatibility.runsc_version:
        living = [c for c in classes if now.timestamp() - c.seen_at_s < SILENT_S]
        if any(can_run(capture, c.compatibility) for c in living):
            looks.append(SILENT_S)  # nodes that fall silent tell nobody
        else:
            unrunnable_since = _since(record.unrunnable_since, now)
            left_s = _left_s(unrunnable_since, UNRUNNABLE_GRACE, now)
            if left_s > 0:
                looks.append(left_s)
            else:
                reasons.append(_unrunnable(capture, classes))
                looks.append(SILENT_S)
    return Standing(unwanted_since, unrunnable_since, "; ".join(reasons), min(looks, default=None))


def _unwanted(snapshot: Snapshot, policy: Policy, wanted: Demand) -> list[str]:
    """Return in what the closest wish differs; empty if somebody might want the snapshot."""
    capture = snapshot.capture
    if capture is None or not capture.identity.fields or snapshot.metadata.name in wanted.pins:
        return []
    group = group_key(snapshot.metadata.labels, policy)
    if (capture.identity.hash, group, None) in wanted.wishes:
        return []  # a live Pod has exactly this spec; comparing fields is for the others
    rivals = [w.differs_in(capture.identity) for w in wanted.wishes.values() if w.group == group]
    return min(rivals, key=lambda paths: (len(paths), paths), default=[])


def _unrunnable(capture: CaptureRecord, classes: Sequence[NodeClass]) -> str:
    hours = UNRUNNABLE_GRACE.total_seconds() / 3600
    text = f"no node of the last {hours:.0f} hours can run it; it comes back with one that can"
    if not classes:
        return text
    found = [(incompatibilities(capture.compatibility, c.compatibility), c.nodes) for c in classes]
    differences, nodes = min(found, key=lambda one: (len(one[0]), one))
    if differences:
        return f"{text}; of the most similar node, {nodes[0]}: {some_of(differences, _SHOWN)}"
    return f"{text}; the last that could, {some_of(nodes, _SHOWN)}, gave no sign of life since"


def _as_named_by(
    template: Mapping[str, str], saved: Mapping[str, str], claims: frozenset[str]
) -> dict[str, str]:
    """Return the saved fields without what the template does not name."""
    owners = {path.partition("]")[0] for path in template if "[" in path}
    volumes = {o.removeprefix("spec.volumes[") for o in owners if o.startswith("spec.volumes[")}
    kept = {}
    for path, value in saved.items():
        if path.endswith(".position") or path not in template:
            continue
        if path.endswith(".volumeMounts"):
            mounts = [m for m in json.loads(value) if m["name"] in volumes | claims]
            if mounts:
                kept[path] = json.dumps(mounts, sort_keys=True, separators=(",", ":"))
        else:
            kept[path] = value
    return kept


def _asks(policy: Policy, pod: Pod) -> bool:
    return (
        pod.metadata.namespace == policy.metadata.namespace
        and not pod.is_over
        and not pod.is_static
        and policy.selector.matches(pod.metadata.labels)
    )


def _gives(policy: Policy, template: Template) -> bool:
    return (
        template.metadata.namespace == policy.metadata.namespace
        and template.counts
        and policy.selector.matches(template.labels)
    )


def _since(recorded: str, now: datetime) -> str:
    at = parse_time(recorded)
    return recorded if at is not None and at <= now else to_micro_time(now)


def _left_s(since: str, grace: timedelta, now: datetime) -> float:
    at = parse_time(since) or now
    return (at + grace - now).total_seconds()
