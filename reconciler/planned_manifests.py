# SPDX-License-Identifier: Apache-2.0
"""What files say that matters to a plan: workloads, policies, storage configs, RuntimeClasses.

Everything else in a tree is passed over. Old spellings count as what they mean. The trap: a plan of
half a tree would be wrong in the other half, so whatever cannot be read is an error of the whole.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from policies.expected_pod import claim_names, controlled_pod
from policies.obsolescence import Template
from policies.planned_starts import Key, Workload
from policies.workload_templates import MalformedTemplateError, WorkloadTemplate
from reconciler.manifest_files import ManifestFile
from schemas.crd_validation import findings
from schemas.documents import Document, read_all
from schemas.findings import Finding, Severity
from schemas.names import GROUP, GVISOR_HANDLERS
from schemas.old_spellings import modernised
from schemas.policy import Policy
from schemas.storage_config import StorageConfig


@dataclass(frozen=True, slots=True)
class Manifests:
    """What a tree holds; ``errors`` says what of it could not be read, ``notes`` what was not."""

    workloads: dict[Key, Workload] = field(default_factory=dict)
    policies: dict[tuple[str, str], Policy] = field(default_factory=dict)
    storage: dict[str, StorageConfig] = field(default_factory=dict)
    runtime_classes: dict[str, bool] = field(default_factory=dict)
    errors: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)

    def namespaces(self) -> set[str]:
        """Return the namespaces that the tree has something in."""
        return {key[1] for key in self.workloads} | {key[0] for key in self.policies}


def read_manifests(files: Iterable[ManifestFile | Finding], namespace: str) -> Manifests:
    """Read files; ``namespace`` is that of objects which name none."""
    made = Manifests()
    seen: dict[Key, Document] = {}
    for document in _documents(files, made):
        try:
            key = _take(document, namespace, made)
        except MalformedTemplateError as error:
            made.errors.append(document.finding(error.path, "malformed-template", str(error)))
            continue
        if key is None:
            continue
        other = seen.setdefault(key, document)
        if other.tree != document.tree:  # the same twice changes nothing
            kind, *names = key
            text = f"{kind} {'/'.join(filter(None, names))} is another one in {other.place()}"
            made.errors.append(document.finding((), "duplicate", text, "remove one of the two"))
    return made


def _documents(files: Iterable[ManifestFile | Finding], made: Manifests) -> Iterable[Document]:
    for file in files:
        if isinstance(file, Finding):
            is_error = file.severity is Severity.ERROR or file.rule == "not-rendered"
            (made.errors if is_error else made.notes).append(file)
            continue
        for found in read_all(file.name, file.text):
            if isinstance(found, Document):
                yield found
            elif found.finding.rule != "no-object":  # a chart's values, a list of patches
                made.errors.append(found.finding)


def _take(document: Document, namespace: str, made: Manifests) -> Key | None:
    """Add a document to what it is; returns its kind, namespace and name if it is of any use."""
    # Only ours have old spellings, and copying a large tree for nothing takes time.
    if document.kind.startswith("PodSnapshot"):
        document = replace(document, tree=modernised(document)[0])
    obj = document.tree
    if document.group == GROUP and document.kind in {
        "PodSnapshotPolicy",
        "PodSnapshotStorageConfig",
    }:
        wrong = findings(document)
        made.errors.extend(wrong)
        return None if wrong else _take_ours(document.kind, obj, namespace, made)
    if document.kind == "RuntimeClass":
        metadata = obj.get("metadata")
        name = metadata.get("name") if isinstance(metadata, Mapping) else None
        made.runtime_classes[str(name)] = str(obj.get("handler")) in GVISOR_HANDLERS
        return None
    found = workload(obj, namespace, document.place())
    if found is None:
        return None
    if not obj["metadata"].get("name"):
        found = _numbered(found, made)
    made.workloads[found.key] = found
    return found.key


def _numbered(found: Workload, made: Manifests) -> Workload:
    """Tell objects apart that share a generateName, as the API server will."""
    prefix, number = found.pod.metadata.name, 1
    while found.key in made.workloads:
        number += 1
        metadata = replace(found.pod.metadata, name=f"{prefix}{number}")
        found = replace(found, pod=replace(found.pod, metadata=metadata))
    return found


def _take_ours(kind: str, obj: dict[str, Any], namespace: str, made: Manifests) -> Key:
    if kind == "PodSnapshotStorageConfig":
        config = StorageConfig.parse(obj)
        made.storage[config.metadata.name] = config
        return (kind, "", config.metadata.name)
    policy = Policy.parse(_in_namespace(obj, namespace))
    made.policies[policy.metadata.key] = policy
    return (kind, *policy.metadata.key)


def workload(obj: Mapping[str, Any], namespace: str, place: str = "") -> Workload | None:
    """Read something that makes Pods, ``None`` if it is of another kind.

    Raises:
        MalformedTemplateError: it holds no Pod that could be judged.
    """
    found = WorkloadTemplate.parse(obj, namespace=namespace)
    if found is None:
        return None
    notes = []
    _check_sources(found)
    try:
        pod = controlled_pod(found, obj)
        template = Template.parse(_in_namespace(obj, namespace))
        if found.kind == "StatefulSet" and claim_names(obj):
            notes.append("judged by its first Pod: its claims make each Pod another identity")
    except (AttributeError, KeyError, TypeError) as error:
        text = f"has a field of a type that the API does not know: {error}"
        raise MalformedTemplateError(("spec",), text) from error
    if "batch.kubernetes.io/job-completion-index" in pod.metadata.labels:
        notes.append("judged by the Pod of index 0: each index is another identity")
    return Workload(found.kind, pod, None if found.kind == "Pod" else template, place, tuple(notes))


def _check_sources(found: WorkloadTemplate) -> None:
    for group in ("initContainers", "containers"):
        for index, container in enumerate(found.pod.spec.get(group) or ()):
            for number, source in enumerate(container.get("envFrom") or ()):
                if {"configMapRef", "secretRef"} <= source.keys():
                    path = (*found.path, "spec", group, index, "envFrom", number)
                    text = "names a ConfigMap and a Secret; make two entries of it"
                    raise MalformedTemplateError(path, text)


def _in_namespace(obj: Mapping[str, Any], namespace: str) -> dict[str, Any]:
    metadata = obj.get("metadata") or {}
    return {**obj, "metadata": {**metadata, "namespace": metadata.get("namespace") or namespace}}
