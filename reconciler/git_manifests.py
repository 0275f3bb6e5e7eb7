# SPDX-License-Identifier: Apache-2.0
"""What a Git tree says, judged as a whole before anything of it is applied.

One wrong file stops all: half a commit applied is a state that nobody wrote. Kinds of other groups
are listed and left alone, because a repository may hold an application beside its policies.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.crd_validation import OUR_GROUPS, findings, is_namespaced
from schemas.documents import Document, DocumentError, read_documents
from schemas.git_source import InventoryEntry
from schemas.names import API_VERSION, GROUP

# What others refer to comes first.
_ORDER = (
    "PodSnapshotStorageConfig",
    "PodSnapshotPolicy",
    "PodSnapshotManualTrigger",
)


_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


class TreeRefusedError(Exception):
    """The tree is not applied; each line of the text begins with ``file:line:column``."""


@dataclass(frozen=True, slots=True)
class DesiredObject:
    """One object to apply."""

    entry: InventoryEntry
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DesiredState:
    """What a tree wants: objects in the order to apply them, and the kinds left alone."""

    objects: tuple[DesiredObject, ...]
    foreign: tuple[str, ...]


def desired_state(files: Mapping[str, bytes], *, namespace: str) -> DesiredState:
    """Read and judge a tree; objects without a namespace go into ``namespace``.

    Raises:
        TreeRefusedError: something in it is wrong; all findings are named.
    """
    problems: list[str] = []
    objects: dict[InventoryEntry, tuple[DesiredObject, str]] = {}
    foreign: set[str] = set()
    for file, text in sorted(files.items()):
        try:
            documents = list(read_documents(file, text))
        except DocumentError as error:
            problems.append(str(error))
            continue
        for document in documents:
            if document.group not in OUR_GROUPS:
                foreign.add(document.kind or "(no kind)")
                continue
            wrong = findings(document) or _not_from_git(document, namespace)
            if wrong:
                problems += wrong
                continue
            desired = _desired(document, namespace)
            if desired.entry in objects:
                problems.append(
                    f"{document.place()}: {desired.entry.kind} {desired.entry.name} stands in "
                    f"{objects[desired.entry][1]} already; remove one of the two"
                )
            objects[desired.entry] = (desired, document.place())
    if problems:
        raise TreeRefusedError("\n".join(problems))
    ordered = sorted(
        (desired for desired, _ in objects.values()),
        key=lambda d: (_ORDER.index(d.entry.kind), d.entry.namespace, d.entry.name),
    )
    return DesiredState(objects=tuple(ordered), foreign=tuple(sorted(foreign)))


def _not_from_git(document: Document, namespace: str) -> list[str]:
    if document.kind in _ORDER:
        metadata = document.tree.get("metadata") or {}
        name, wanted = str(metadata.get("name")), metadata.get("namespace")
        if not _NAME.fullmatch(name):
            return [
                f"{document.place(('metadata', 'name'))}: {name!r} is no name of an object; "
                "use a-z, 0-9, - and ."
            ]
        if is_namespaced(document) and wanted not in {None, namespace}:
            # The controller may write everywhere; whoever may create a GitSource may not.
            return [
                f"{document.place(('metadata', 'namespace'))}: a GitSource of namespace "
                f"{namespace} brings nothing into namespace {wanted}; create one there"
            ]
        return []
    return [
        f"{document.place(('kind',))}: a {document.kind} cannot be brought by Git, it is made by "
        "the system; remove it from the repository"
    ]


def _desired(document: Document, namespace: str) -> DesiredObject:
    body = document.to_object()
    body.pop("status", None)
    if document.group == GROUP:
        body["apiVersion"] = API_VERSION  # the preview's version has the same schema
    metadata = body["metadata"]
    if is_namespaced(document):
        metadata.setdefault("namespace", namespace)
    else:
        metadata.pop("namespace", None)
    entry = InventoryEntry(
        group=document.group,
        kind=document.kind,
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
    )
    return DesiredObject(entry=entry, body=body)
