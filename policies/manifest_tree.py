# SPDX-License-Identifier: Apache-2.0
"""What a set of files says as a whole: policies, storage configs, RuntimeClasses and templates.

Only what is sound is in it, so that no judgement has to ask twice. The trap: who applies the files
may give them another namespace, and the cluster may hold more than they say.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from policies.selection import selecting_policies
from policies.workload_templates import MalformedTemplateError, WorkloadTemplate
from schemas.documents import Document, Path
from schemas.findings import Finding, Severity
from schemas.names import GROUP
from schemas.policy import Policy
from schemas.storage_config import StorageConfig

_CLASS_GROUP = "node.k8s.io"


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A policy and the document that says it."""

    policy: Policy
    document: Document


@dataclass(frozen=True, slots=True)
class StorageFile:
    """A storage config and the document that says it."""

    config: StorageConfig
    document: Document


@dataclass(frozen=True, slots=True)
class TemplateFile:
    """A workload's Pod template and the document that says it."""

    template: WorkloadTemplate
    document: Document

    def finding(
        self, path: Path, rule: str, message: str, hint: str, severity: Severity = Severity.WARNING
    ) -> Finding:
        """Say something of a field of the Pod; ``path`` begins at the Pod."""
        return self.document.finding((*self.template.path, *path), rule, message, hint, severity)


@dataclass(frozen=True)
class ManifestTree:
    """All of it, by name; ``runtime_classes`` maps to handlers."""

    policies: tuple[PolicyFile, ...] = ()
    storage_configs: Mapping[str, Sequence[StorageFile]] = field(default_factory=dict)
    templates: tuple[TemplateFile, ...] = ()
    runtime_classes: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def selected(self) -> list[tuple[TemplateFile, list[PolicyFile]]]:
        """Each template with the policies that select it, the first by name before others.

        Files do not say which policy is older, so which one governs is not known if there are more.
        """
        by_policy = {id(p.policy): p for p in self.policies}
        namespaces: dict[str, list[Policy]] = {}
        for found in self.policies:
            namespaces.setdefault(found.policy.metadata.namespace, []).append(found.policy)
        return [
            (
                made,
                [
                    by_policy[id(policy)]
                    for policy in selecting_policies(
                        made.template.pod, namespaces.get(made.template.namespace, ())
                    )
                ],
            )
            for made in self.templates
        ]

    @cached_property
    def governed(self) -> list[tuple[TemplateFile, PolicyFile]]:
        """Each governed template with its policy, as far as the files tell."""
        return [(made, policies[0]) for made, policies in self.selected if policies]


def read_tree(
    documents: Iterable[Document], *, namespace: str = "default"
) -> tuple[ManifestTree, list[Finding]]:
    """Gather sound documents; ``namespace`` is that of objects that name none.

    Returns what they say, and what of the templates could not be read.
    """
    policies: list[PolicyFile] = []
    storage: dict[str, list[StorageFile]] = {}
    templates: list[TemplateFile] = []
    classes: dict[str, str] = {}
    wrong: list[Finding] = []
    for document in documents:
        body = document.tree
        if document.group == GROUP and document.kind == "PodSnapshotPolicy":
            own = body["metadata"]
            placed = {**body, "metadata": {**own, "namespace": own.get("namespace") or namespace}}
            policies.append(PolicyFile(Policy.parse(placed), document))
        elif document.group == GROUP and document.kind == "PodSnapshotStorageConfig":
            config = StorageConfig.parse(body)
            storage.setdefault(config.metadata.name, []).append(StorageFile(config, document))
        elif document.group == _CLASS_GROUP and document.kind == "RuntimeClass":
            metadata = body.get("metadata")
            name = metadata.get("name") if isinstance(metadata, dict) else None
            classes[str(name)] = str(body.get("handler"))
        else:
            try:
                template = WorkloadTemplate.parse(body, namespace=namespace)
            except MalformedTemplateError as error:
                hint = "kubectl would refuse it; mend it, so that the rest can be judged"
                wrong.append(document.finding(error.path, "malformed-template", str(error), hint))
                continue
            if template:
                templates.append(TemplateFile(template, document))
    return ManifestTree(tuple(policies), storage, tuple(templates), classes), wrong
