# SPDX-License-Identifier: Apache-2.0
"""What GKE's preview and some articles write, and how v1 spells it.

The severity is the API server's: what it would refuse is an error, and what it would take with a
warning, or silently mend, is a warning. A test sends each to a real one.

The trap: other projects have kinds of the same names (``PodSnapshot``), so a group counts as
misspelled only if it is one of the few that were seen to mean ours.
"""

from dataclasses import dataclass, replace
from typing import Any, Final, cast

from schemas.crd_validation import our_kinds, schema_errors, without_nulls
from schemas.documents import Document, Path
from schemas.findings import Finding, Severity
from schemas.names import API_VERSION, GROUP
from schemas.spelling import same_word

WRONG_GROUPS: Final = frozenset({"snapshot.gke.io", "podsnapshots.gke.io"})
_STORAGE_CONFIG: Final = "PodSnapshotStorageConfig"


@dataclass(frozen=True, slots=True)
class OldSpelling:
    """One place to mend; ``value`` is what v1 has there, ``None`` if it has no such field."""

    path: Path
    value: str | None
    rule: str
    severity: Severity
    message: str


def old_spellings(document: Document) -> list[OldSpelling]:
    """Return all old spellings of a document, in no order; none if it is not of our kinds."""
    if document.kind not in our_kinds() or document.group not in {GROUP, *WRONG_GROUPS}:
        return []
    return [*_api_version(document), *_namespace(document), *_values(document)]


def modernised(document: Document) -> tuple[dict[str, Any], list[Finding]]:
    """Return the object as v1 spells it, and what was changed; each names the v1 spelling.

    What is null is left out, where the API server would do so.

    ``dataclasses.replace(document, tree=…)`` makes a document of it that keeps its places.
    """
    body = document.to_object()
    found = old_spellings(document)
    for old in found:
        parent: Any = body
        for step in old.path[:-1]:
            parent = parent[step]
        if old.value is None:
            del parent[old.path[-1]]
        else:
            parent[old.path[-1]] = old.value
    is_file = not document.file.startswith("<")  # as <stdin>
    hint = f"run: podsnap convert {document.file}" if is_file else ""
    findings = [document.finding(o.path, o.rule, o.message, hint, o.severity) for o in found]
    body = without_nulls(replace(document, tree=body))
    return body, sorted(findings, key=lambda f: (f.line, f.column))


def _api_version(document: Document) -> list[OldSpelling]:
    written = document.api_version
    if written == f"{GROUP}/v1alpha1":
        severity, why = Severity.WARNING, f"{written} is GKE's preview, which will go"
        rule = "old-version"
    elif document.group in WRONG_GROUPS:
        severity, why = Severity.ERROR, f"{written} is no API group of any cluster"
        rule = "wrong-group"
    else:
        return []
    message = f"{why}; v1 is apiVersion: {API_VERSION}"
    return [OldSpelling(("apiVersion",), API_VERSION, rule, severity, message)]


def _namespace(document: Document) -> list[OldSpelling]:
    metadata = document.tree.get("metadata")
    if document.kind != _STORAGE_CONFIG or not isinstance(metadata, dict):
        return []
    if "namespace" not in metadata:
        return []
    message = f"metadata.namespace: a {_STORAGE_CONFIG} is cluster-scoped; v1 has no namespace here"
    return [
        OldSpelling(
            ("metadata", "namespace"), None, "namespaced-storage", Severity.WARNING, message
        )
    ]


def _values(document: Document) -> list[OldSpelling]:
    """Return the enum values that are wrong only in capitals and dashes."""
    tree = {**document.tree, "apiVersion": API_VERSION}
    found = []
    for error in schema_errors(replace(document, tree=tree)):
        if error.validator != "enum" or not isinstance(error.instance, str):
            continue
        value = same_word(error.instance, cast("list[str]", error.validator_value))
        path = tuple(error.absolute_path)
        if value and path[0] == "spec":
            name = path[-1]
            message = f"{'.'.join(map(str, path))}: {error.instance!r}; v1 is {name}: {value}"
            found.append(OldSpelling(path, value, "old-value", Severity.ERROR, message))
    return found
