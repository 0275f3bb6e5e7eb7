# SPDX-License-Identifier: Apache-2.0
"""In which fields a Pod and a snapshot differ, as rows: path, the Pod's value, the saved one.

``matching`` decides and says it in sentences; these are the same comparisons for a table. The trap
is drift between the two, so a test changes every field and looks at both.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from policies.matching import Candidate
from policies.selection import group_labels
from schemas.snapshot import Compatibility, Snapshot, SpecIdentity


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that keeps a snapshot from fitting; ``None`` where a side does not have it."""

    path: str
    pod: str | None
    saved: str | None


def differences(candidate: Candidate, snapshot: Snapshot) -> Iterator[Difference]:
    """Compare a Pod on its node with a snapshot: group, scope, distilled spec, node."""
    capture, policy = snapshot.capture, candidate.policy
    want = group_labels(candidate.pod.metadata.labels, policy)
    have = group_labels(snapshot.metadata.labels, policy)
    for key in sorted(want.keys() | have.keys()):
        if want.get(key) != have.get(key):
            yield Difference(f"metadata.labels[{key}]", want.get(key), have.get(key))
    if capture is None:
        return
    if capture.rootfs_only != policy.rootfs_only:
        scope = "rootfs-only" if capture.rootfs_only else "whole-pod"
        yield Difference("policy.snapshotScope", policy.snapshot_scope, scope)
    elif not capture.rootfs_only:
        yield from spec_differences(candidate.identity, capture.identity)
        here, saved = set(candidate.pod.running_names), capture.image_ids.keys()
        for name in sorted(here ^ saved):
            there = capture.image_ids.get(name)
            yield Difference(f"images[{name}]", "made later" if name in here else None, there)
        yield from node_differences(candidate.node, capture.compatibility)


def spec_differences(pod: SpecIdentity, saved: SpecIdentity) -> Iterator[Difference]:
    """Compare two distilled specs, in path order; values are JSON."""
    for path in sorted(saved.fields.keys() | pod.fields.keys()):
        if saved.fields.get(path) != pod.fields.get(path):
            yield Difference(path, _shown(pod.fields.get(path)), _shown(saved.fields.get(path)))


def _shown(value: str | None) -> str | None:
    """Return a value without what stands for a secret."""
    return "(a digest)" if value is not None and value.startswith('"scrypt:') else value


def node_differences(node: Compatibility, saved: Compatibility) -> Iterator[Difference]:
    """Compare what must fit between two nodes; of CPU features only the lacking ones count."""
    here, there = node_fields(node), node_fields(saved)
    for key in sorted((here.keys() | there.keys()) - {"cpuFeatures"}):
        if here.get(key) != there.get(key):
            yield Difference(f"node.{key}", here.get(key), there.get(key))
    lacking = sorted(set(saved.cpu_features) - set(node.cpu_features))
    if lacking:
        yield Difference("node.cpuFeatures", None, ",".join(lacking))


def node_fields(node: Compatibility) -> dict[str, str]:
    """Return what a node published, field by field."""
    raw = node.to_object()
    flags = raw.pop("runtimeConfig")
    return {**raw, **{f"runtimeConfig.{flag}": value for flag, value in sorted(flags.items())}}
