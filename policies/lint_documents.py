# SPDX-License-Identifier: Apache-2.0
"""All that can be said of a set of documents without a cluster.

First each by itself, then all together. Old spellings are told once and then read as what they
mean, so that one old word does not hide what is wrong beside it.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePath
from typing import Final

from policies.lint_rules import cross_file_findings
from policies.manifest_tree import read_tree
from schemas.crd_validation import OUR_GROUPS, findings, is_namespaced, our_kinds
from schemas.documents import Document
from schemas.findings import Finding, Severity
from schemas.old_spellings import modernised
from schemas.spelling import nearest

# podsnapshot.gke.com is a slip, podsnapshot.x-k8s.io another project.
_ALIKE: Final = 0.9


def document_findings(
    documents: Iterable[Document], *, namespace: str = "default"
) -> list[Finding]:
    """Return what is wrong, in no order; ``namespace`` is that of objects that name none."""
    found: list[Finding] = []
    sound: list[Document] = []
    for written in documents:
        if written.group not in OUR_GROUPS and written.kind not in our_kinds():
            sound.append(written)
            continue
        body, old = modernised(written)
        document = replace(written, tree=body)
        is_ours = document.group in OUR_GROUPS
        # The core group has no kind of our names, and whoever forgot the group meant ours.
        named = is_ours or not document.group
        wrong = findings(document) if named else _group_like_ours(document)
        found += [*old, *wrong]
        if is_ours and not wrong:
            sound.append(document)
    found += _duplicates(sound, namespace)
    tree, malformed = read_tree(sound, namespace=namespace)
    return [*found, *malformed, *cross_file_findings(tree)]


def _group_like_ours(document: Document) -> list[Finding]:
    """Other projects have kinds of our names, so a group must look like ours to be a mistake."""
    meant = nearest(document.group, OUR_GROUPS, cutoff=_ALIKE)
    if not meant:
        return []
    message = f"no cluster has {document.kind} of {document.api_version}"
    hint = f"did you mean the group {meant}?"
    return [document.finding(("apiVersion",), "wrong-group", message, hint)]


def _duplicates(documents: Iterable[Document], namespace: str) -> list[Finding]:
    """Tell of objects of ours that stand in the files twice.

    Only a warning are equal copies, and those of two folders, which may be for two clusters.
    """
    first: dict[tuple[str, str, str], Document] = {}
    found = []
    for document in documents:
        metadata = document.tree["metadata"] if document.group in OUR_GROUPS else {}
        if not metadata.get("name"):
            continue
        place = (metadata.get("namespace") or namespace) if is_namespaced(document) else ""
        key = (document.kind, place, metadata["name"])
        other = first.setdefault(key, document)
        if other is document:
            continue
        same = other.tree == document.tree
        together = PurePath(other.file).parent == PurePath(document.file).parent
        name = f"{place}/{metadata['name']}" if place else metadata["name"]
        message = f"{document.kind} {name} stands in {other.place()} already" + (
            "" if same else ", with other content"
        )
        severity = Severity.ERROR if together and not same else Severity.WARNING
        hint = "whichever is applied last wins; remove one" + (
            "" if together else ", or judge the folders of two clusters one by one"
        )
        found.append(document.finding((), "duplicate-object", message, hint, severity))
    return found
