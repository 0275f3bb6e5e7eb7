# SPDX-License-Identifier: Apache-2.0
"""YAML checked against our own CRDs, before an API server sees it.

The CRD files are the one truth about fields; nothing is declared twice. What the API server does
beyond the schema (CEL rules, defaults) is left to it. The one thing that no CRD says is the schema
of ``metadata``, which every kind shares.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import yaml

from schemas.documents import Document
from schemas.findings import Finding
from schemas.names import GROUP, OWN_GROUP
from schemas.schema_errors import explained
from schemas.spelling import nearest

if TYPE_CHECKING:
    import jsonschema

OUR_GROUPS = frozenset({GROUP, OWN_GROUP})

# What is created and not applied may leave its name to the API server.
_NAMED_BY_SERVER: Final = {"PodSnapshotManualTrigger": ("generateName",)}
_SERVER_ONLY = ("x-kubernetes-validations",)
_TEXT: Final = {"type": "string"}
_TEXTS: Final = {"type": "object", "additionalProperties": _TEXT}
_OBJECTS: Final = {"type": "array", "items": {"type": "object"}}
_LABEL: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")
_METADATA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "generateName": _TEXT,
        "namespace": _TEXT,
        "labels": _TEXTS,
        "annotations": _TEXTS,
        "finalizers": {"type": "array", "items": {"type": "string"}},
        # The API server's own; they stand in files that somebody exported.
        "creationTimestamp": _TEXT,
        "deletionGracePeriodSeconds": {"type": "integer"},
        "deletionTimestamp": _TEXT,
        "generation": {"type": "integer"},
        "managedFields": _OBJECTS,
        "ownerReferences": _OBJECTS,
        "resourceVersion": _TEXT,
        "selfLink": _TEXT,
        "uid": _TEXT,
    },
}


@dataclass(frozen=True, slots=True)
class _Kind:
    is_namespaced: bool
    validator: "jsonschema.Draft202012Validator"


def crd_texts() -> Iterator[tuple[str, str]]:
    """Yield file name and text of every CRD, in name order."""
    for file in sorted(resources.files("schemas").joinpath("crds").iterdir(), key=lambda f: f.name):
        yield file.name, file.read_text(encoding="utf-8")


@functools.cache
def _kinds() -> dict[tuple[str, str], _Kind]:
    import jsonschema

    found = {}
    for _, text in crd_texts():
        spec = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]
        for version in spec["versions"]:
            schema = _strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = _strict(_METADATA)
            found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = _Kind(
                spec["scope"] == "Namespaced", jsonschema.Draft202012Validator(schema)
            )
    return found


def our_kinds() -> frozenset[str]:
    """Return the names of the kinds that podsnap has."""
    return frozenset(kind for _, kind in _kinds())


def is_namespaced(document: Document) -> bool:
    """Whether the document's kind lives in a namespace. The kind must be one of ours."""
    return _kinds()[document.api_version, document.kind].is_namespaced


def schema_errors(document: Document) -> list["jsonschema.ValidationError"]:
    """Return what the CRD's schema refuses; nothing if the kind is none of ours."""
    kind = _kinds().get((document.api_version, document.kind))
    return list(kind.validator.iter_errors(without_nulls(document))) if kind else []


def without_nulls(document: Document) -> dict[str, Any]:
    """Return the object without the fields that are null, as the API server drops them.

    That is so for fields that the schema has; a null elsewhere stays, and is a mistake.
    """
    tree = document.to_object()
    if (document.api_version, document.kind) in _kinds():
        _drop_nulls(tree, _schema(document))
    return tree


def _drop_nulls(value: Any, schema: Mapping[str, Any]) -> None:  # noqa: ANN401 - any JSON value
    if isinstance(value, list):
        for item in value:
            _drop_nulls(item, schema.get("items") or {})
    elif isinstance(value, dict):
        for name, child in (schema.get("properties") or {}).items():
            if name in value and value[name] is None and not child.get("nullable"):
                del value[name]
            elif name in value:
                _drop_nulls(value[name], child)


def findings(document: Document) -> list[Finding]:
    """Return all that is wrong with a document of our groups, in the order of the file."""
    known = _kinds()
    if (document.api_version, document.kind) not in known:
        return [_unknown_kind(document)]
    found = explained(document, schema_errors(document), _schema(document))
    metadata = document.tree.get("metadata")
    names = {"name", *_NAMED_BY_SERVER.get(document.kind, ())}
    if not isinstance(metadata, dict) or not any(metadata.get(name) for name in names):
        message = "metadata.name is missing"
        found.append(document.finding(("metadata",), "missing-field", message, "give a name"))
    elif isinstance(name := metadata.get("name"), str) and name and not _NAME.fullmatch(name):
        message = f"metadata.name: {name!r} is no name of an object"
        hint = "write a-z, 0-9, - and ., beginning and ending with a letter or digit"
        found.append(document.finding(("metadata", "name"), "wrong-format", message, hint))
    return sorted(found, key=lambda f: (f.line, f.column, f.message))


def _schema(document: Document) -> Mapping[str, Any]:
    schema = _kinds()[document.api_version, document.kind].validator.schema
    return schema if isinstance(schema, Mapping) else {}


def _unknown_kind(document: Document) -> Finding:
    kinds = sorted(_kinds())  # v1 stands before v1alpha1
    spelled = nearest(document.kind, {kind for _, kind in kinds})
    if spelled:
        hint = f"did you mean {spelled} of {next(v for v, kind in kinds if kind == spelled)}?"
    else:
        hint = f"the kinds are {', '.join(sorted({kind for _, kind in kinds}))}"
    message = f"{document.api_version or 'no apiVersion'} has no kind {document.kind or '(none)'}"
    field = "apiVersion" if spelled == document.kind else "kind"
    return document.finding((field,), "unknown-kind", message, hint)


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Turn a structural schema into one that names unknown fields, as ``--validate=strict``."""
    out = {k: v for k, v in schema.items() if k not in _SERVER_ONLY and k != "format"}
    if "properties" in schema:
        out["properties"] = {k: _strict(v) for k, v in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            out["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        out["additionalProperties"] = _strict(schema["additionalProperties"])
    if "items" in schema:
        out["items"] = _strict(schema["items"])
    if schema.get("pattern", "").endswith("$"):
        out["pattern"] = schema["pattern"][:-1] + r"\Z"  # Python's $ accepts a newline behind it
    return out
