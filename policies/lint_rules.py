# SPDX-License-Identifier: Apache-2.0
"""What files say of each other: cross-file checks, each a small function of the whole tree.

An error is what the API server, or podsnap in the policy's ``Ready``, would refuse. What is
accepted and will not do what its author wants is a warning, what is worth knowing a note. Whether a
Pod can be saved is judged by the functions that judge it on a node; only Pods that a policy selects
are judged, because the others are none of podsnap's business.

The trap: the cluster may hold what the files do not, so nothing is an error for being absent.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, Final

from policies.capturing import restorable, storage_usable, unsupported
from policies.manifest_tree import ManifestTree, TemplateFile
from policies.policy_review import invitations
from schemas.documents import Document, Path
from schemas.findings import Finding, Severity
from schemas.names import GVISOR_HANDLERS, KEEP_LAST_ANNOTATION
from schemas.policy import Policy, TriggerType
from schemas.policy_options import Strictness
from schemas.quantities import parse_bytes
from schemas.sentences import some_of

_SPEC: Final = ("spec",)
# The name that everybody gives it; a RuntimeClass in the tree is asked first.
_USUAL_CLASS: Final = "gvisor"
_NAMES: Final = 3
_AMOUNTS: Final = frozenset({"requests", "limits"})
_ANNOTATION: Final = re.compile(r"annotation (\S+?):? ")


def cross_file_findings(tree: ManifestTree) -> list[Finding]:
    """Return what all checks find, in the order of file and place."""
    found = (finding for check in CHECKS for finding in check(tree))
    return sorted(found, key=lambda f: (f.file, f.line, f.column, f.rule, f.message))


def rejected_options(tree: ManifestTree) -> Iterator[Finding]:
    """An annotation of ours that cannot be read: the policy's ``Ready`` would be False."""
    for policy, document in _policies(tree):
        for text in policy.options.errors:
            named = _ANNOTATION.match(text)
            path = ("metadata", "annotations", named[1] if named else "")
            yield document.finding(path, "rejected-option", text, "mend or remove it")


def unsupported_policies(tree: ManifestTree) -> Iterator[Finding]:
    """A combination that podsnap does not act on: the policy's ``Ready`` would be False."""
    for policy, document in _policies(tree):
        text = unsupported(policy)
        if text:
            message, _, hint = text.partition("; ")
            yield document.finding(_SPEC, "unsupported-policy", message, hint)


def storage_of_policies(tree: ManifestTree) -> Iterator[Finding]:
    """A policy's storage config: absent (it may be in the cluster), or not to be used."""
    path = ("spec", "storageConfigName")
    for policy, document in _policies(tree):
        storages = tree.storage_configs.get(policy.storage_config_name, ())
        if not storages:
            message = f"no file has PodSnapshotStorageConfig {policy.storage_config_name}"
            hint = "add it, unless the cluster has it already"
            yield document.finding(path, "missing-storage", message, hint, Severity.WARNING)
            continue
        # Several of one name are for several clusters: each folder has its own.
        folder = PurePath(document.file).parent
        beside = [s for s in storages if PurePath(s.document.file).parent == folder]
        refusals = [storage_usable(policy, s.config).findings for s in beside or storages]
        for finding in refusals[0] if all(refusals) else ():
            message, _, hint = finding.message.partition("; ")
            yield document.finding(path, "unusable-storage", message, hint)


def overlapping_policies(tree: ManifestTree) -> Iterator[Finding]:
    """Policies that select the same Pods: only the oldest governs them."""
    overlaps: dict[tuple[int, ...], list[str]] = {}
    files = {id(p): p for p in tree.policies}
    for made, policies in tree.selected:
        if len(policies) > 1:
            overlaps.setdefault(tuple(map(id, policies)), []).append(str(made.template))
    for keys, templates in overlaps.items():
        first, *others = (files[key] for key in keys)
        for other in others:
            message = (
                f"policy {other.policy.metadata.name} selects what policy "
                f"{first.policy.metadata.name} ({first.document.place()}) selects too: "
                f"{some_of(templates, _NAMES)}"
            )
            hint = "the oldest governs and the other does nothing there; tell their Pods apart"
            path = ("spec", "selector")
            yield other.document.finding(
                path, "overlapping-policies", message, hint, Severity.WARNING
            )


def selectors(tree: ManifestTree) -> Iterator[Finding]:
    """A selector that selects nothing that the files have, or everything."""
    used = {id(policy) for _, policies in tree.selected for policy in policies}
    path = ("spec", "selector")
    for found in tree.policies:
        namespace = found.policy.metadata.namespace
        there = [t.template for t in tree.templates if t.template.namespace == namespace]
        if not found.policy.selector.requirements:
            message = f"its selector is empty, so it selects every Pod of namespace {namespace}"
            hint = "name labels, unless you mean all of them"
            yield found.document.finding(path, "empty-selector", message, hint, Severity.WARNING)
        elif there and id(found) not in used:
            keys = {r.key for r in found.policy.selector.requirements}
            near = {
                f"{k}={v}" for t in there for k, v in t.pod.metadata.labels.items() if k in keys
            }
            message = (
                f"its selector selects none of the {len(there)} Pod templates of namespace "
                f"{namespace}"
            )
            known = (
                f"labels there are {some_of(sorted(near), _NAMES)}" if near else "mend its labels"
            )
            hint = f"{known}; the labels of the Pod template count, not those of its workload"
            yield found.document.finding(path, "selects-nothing", message, hint, Severity.WARNING)


def group_labels(tree: ManifestTree) -> Iterator[Finding]:
    """A label that makes groups and that a Pod does not have: all such Pods are one group."""
    for made, found in tree.governed:
        for label in found.policy.grouping_labels:
            if label not in made.template.pod.metadata.labels:
                message = (
                    f"policy {found.policy.metadata.name} groups by label {label}, which the Pods "
                    f"of {made.template} do not have"
                )
                hint = "add it, or they share one group with all that lack it"
                yield made.finding(("metadata", "labels"), "missing-group-label", message, hint)


def retention(tree: ManifestTree) -> Iterator[Finding]:
    """A limit that would delete the only snapshot of a workload that rests."""
    path = ("spec", "retentionConfig", "lastAccessTimeout")
    for policy, document in _policies(tree):
        timeout = policy.last_access_timeout
        if timeout is None or policy.options.keeps_last:
            continue
        by_hand = policy.trigger_type is TriggerType.MANUAL
        message = f"the only snapshot is deleted too if no Pod was restored from it for {timeout}"
        after = "Pods start cold until somebody makes a trigger" if by_hand else "a Pod starts cold"
        hint = f"then {after}; annotation {KEEP_LAST_ANNOTATION}: 'true' keeps it"
        severity = Severity.WARNING if by_hand else Severity.NOTE
        yield document.finding(path, "deletes-only-snapshot", message, hint, severity)


def readiness_probes(tree: ManifestTree) -> Iterator[Finding]:
    """A save on readiness of a Pod that never says when it is ready."""
    for made, found in tree.governed:
        if found.policy.trigger_type is not TriggerType.READINESS_PROBE:
            continue
        if any(c.get("readinessProbe") for c in made.template.pod.running_containers):
            continue
        message = (
            f"policy {found.policy.metadata.name} saves Pods of {made.template} as they become "
            "Ready, and none of the containers has a readiness probe"
        )
        hint = "they count as Ready when they have just begun; add a readinessProbe"
        yield made.finding(("spec", "containers"), "no-readiness-probe", message, hint)


def runtime_classes(tree: ManifestTree) -> Iterator[Finding]:
    """A governed Pod that would not run in gVisor is never saved."""
    for made, found in tree.governed:
        name = made.template.pod.runtime_class
        handler = tree.runtime_classes.get(name)
        if handler in GVISOR_HANDLERS or (handler is None and name == _USUAL_CLASS):
            continue
        if not name:
            said = "it names no runtimeClassName"
        elif handler is None:
            said = f"no file has RuntimeClass {name}"
        else:
            said = f"RuntimeClass {name} has handler {handler}"
        message = (
            f"{made.template} is selected by policy {found.policy.metadata.name} and may not run "
            f"in gVisor: {said}"
        )
        path = ("spec", "runtimeClassName") if name else _SPEC
        hint = f"set runtimeClassName: {_USUAL_CLASS}"
        yield made.finding(path, "not-gvisor", message, hint)


def unrestorable_shapes(tree: ManifestTree) -> Iterator[Finding]:
    """hostNetwork, GPUs, some probes, hooks and volumes: refused before a save."""
    for made, found in tree.governed:
        if found.policy.rootfs_only:
            continue
        for finding in restorable(made.template.pod).findings:
            message, _, hint = finding.message.partition("; ")
            path = ("spec", "hostNetwork") if "hostNetwork" in message else _SPEC
            text = f"{made.template} is never saved: {message}"
            yield made.finding(path, "not-restorable", text, hint)


def claims(tree: ManifestTree) -> Iterator[Finding]:
    """A persistent volume goes on after the save, the memory in the image does not."""
    for made, found in tree.governed:
        policy = found.policy
        if policy.stops or policy.rootfs_only or policy.trigger_type is TriggerType.ON_DELETE:
            continue  # the Pod ends with its save, or has no memory in it
        for path, mount, source in _mounts(made):
            if source in {"persistentVolumeClaim", "ephemeral", ""} and not mount.get("readOnly"):
                message = (
                    f"{made.template} goes on writing to the persistent volume {mount['name']} "
                    "after its save, so a restored Pod finds other files than it remembers"
                )
                hint = "set postCheckpoint: stop, or mount it readOnly"
                yield made.finding(path, "claim-with-resume", message, hint)


def config_map_folders(tree: ManifestTree) -> Iterator[Finding]:
    """A ConfigMap as a whole folder: its files are replaced while the Pod runs."""
    for made, found in tree.governed:
        if found.policy.rootfs_only:
            continue
        strict = Strictness.CONFIG_MAPS in found.policy.options.strict
        for path, mount, source in _mounts(made):
            if source != "configMap" or mount.get("subPath") or mount.get("subPathExpr"):
                continue
            message = f"{made.template} mounts ConfigMap volume {mount['name']} as a whole folder"
            if strict:
                hint = "each change of it makes every snapshot miss, as strict-identity asks"
            else:
                hint = (
                    "a restored Pod finds it as it is then, and starts cold if a file of it was "
                    "open at the save; mount single files by subPath"
                )
            severity = Severity.WARNING if strict else Severity.NOTE
            yield made.finding(path, "configmap-folder", message, hint, severity)


def secrets_in_environment(tree: ManifestTree) -> Iterator[Finding]:
    """A Secret in an environment variable: memory keeps the value of the save."""
    for made, found in tree.governed:
        if found.policy.rootfs_only:
            continue
        for path, container in _containers(made):
            entries = [
                *((("env", i), e.get("valueFrom") or {}) for i, e in _items(container, "env")),
                *((("envFrom", i), e) for i, e in _items(container, "envFrom")),
            ]
            for place, entry in entries:
                secret = entry.get("secretKeyRef") or entry.get("secretRef")
                if not secret:
                    continue
                message = (
                    f"container {container['name']} of {made.template} takes Secret "
                    f"{secret.get('name', '')} into its environment; a restored process keeps the "
                    "value of the save when it has rotated"
                )
                hint = "mount the Secret as files, or read /proc/gvisor/spec_environ"
                yield made.finding((*path, *place), "secret-in-env", message, hint)


def open_invitations(tree: ManifestTree) -> Iterator[Finding]:
    """A policy under which one user's session may become every Pod's start."""
    for policy, document in _policies(tree):
        for text in invitations(policy):
            message, _, hint = text.partition("; ")
            yield document.finding(_SPEC, "shared-state", message, hint, Severity.NOTE)


def quantities(tree: ManifestTree) -> Iterator[Finding]:
    """A quantity that the API server would refuse; its schema says text and no more."""
    for made in tree.templates:
        for group in ("initContainers", "containers"):
            for index, container in _items(made.template.pod.spec, group):
                for part, wanted in (container.get("resources") or {}).items():
                    for name, amount in (wanted or {}).items() if part in _AMOUNTS else ():
                        try:
                            parse_bytes(str(amount))
                        except ValueError as error:
                            path = ("spec", group, index, "resources", part, name)
                            message, _, hint = f"{name}: {error}".partition("; ")
                            yield made.finding(
                                path, "wrong-quantity", message, hint, Severity.ERROR
                            )


CHECKS: Final[tuple[Callable[[ManifestTree], Iterator[Finding]], ...]] = (
    rejected_options,
    unsupported_policies,
    storage_of_policies,
    overlapping_policies,
    selectors,
    group_labels,
    retention,
    readiness_probes,
    runtime_classes,
    unrestorable_shapes,
    claims,
    config_map_folders,
    secrets_in_environment,
    open_invitations,
    quantities,
)


def _policies(tree: ManifestTree) -> Iterator[tuple[Policy, Document]]:
    return ((found.policy, found.document) for found in tree.policies)


def _containers(made: TemplateFile) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    for group in ("initContainers", "containers"):
        for index, container in _items(made.template.pod.spec, group):
            if group == "containers" or container.get("restartPolicy") == "Always":
                yield ("spec", group, index), container


def _mounts(made: TemplateFile) -> Iterator[tuple[Path, Mapping[str, Any], str]]:
    """Yield the mounts with the kind of their volume, empty for a StatefulSet's claim."""
    volumes = {v["name"]: v for v in made.template.pod.spec.get("volumes") or ()}
    for path, container in _containers(made):
        for index, mount in _items(container, "volumeMounts"):
            volume = volumes.get(mount["name"], {})
            source = next((key for key in volume if key != "name"), "")
            settings = volume.get(source)
            read_only = mount.get("readOnly") or (
                isinstance(settings, Mapping) and settings.get("readOnly")
            )
            yield (*path, "volumeMounts", index), {**mount, "readOnly": read_only}, source


def _items(tree: Mapping[str, Any], name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    return enumerate(tree.get(name) or ())
