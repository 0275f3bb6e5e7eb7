# SPDX-License-Identifier: Apache-2.0
"""YAML checked against our own CRDs, before an API server sees it.

The CRD files are the one truth about fields; nothing is declared twice. What the API server does
beyond the schema (CEL rules, defaults) is left to it.
"""

import functools
from collections.abc import Iterator
from importlib import resources
from typing import Any

import jsonschema
import yaml

from schemas.documents import Document
from schemas.names import GROUP, OWN_GROUP

OUR_GROUPS = frozenset({GROUP, OWN_GROUP})

_SERVER_ONLY = ("x-kubernetes-validations",)


def crd_texts() -> Iterator[tuple[str, str]]:
    """Yield file name and text of every CRD, in name order."""
    for file in sorted(resources.files("schemas").joinpath("crds").iterdir(), key=lambda f: f.name):
        yield file.name, file.read_text(encoding="utf-8")


@functools.cache
def _validators() -> dict[tuple[str, str], tuple[bool, jsonschema.Draft202012Validator]]:
    found = {}
    for _, text in crd_texts():
        spec = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]
        for version in spec["versions"]:
            key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
            schema = _strict(version["schema"]["openAPIV3Schema"])
            namespaced = spec["scope"] == "Namespaced"
            found[key] = (namespaced, jsonschema.Draft202012Validator(schema))
    return found


def is_namespaced(document: Document) -> bool:
    """Whether the document's kind lives in a namespace. The kind must be one of ours."""
    return _validators()[document.api_version, document.kind][0]


def findings(document: Document) -> list[str]:
    """Return what is wrong with a document of our groups, each with ``file:line:column``."""
    known = _validators()
    entry = known.get((document.api_version, document.kind))
    if entry is None:
        kinds = ", ".join(sorted(f"{kind} ({version})" for version, kind in known))
        return [
            f"{document.place(('kind',))}: {document.api_version} has no kind "
            f"{document.kind or '(none)'}; the kinds are {kinds}"
        ]
    problems = [
        f"{document.place(tuple(error.absolute_path))}: {_path(error)}{_message(error)}"
        for error in sorted(entry[1].iter_errors(document.to_object()), key=lambda e: list(e.path))
    ]
    metadata = document.tree.get("metadata") or {}
    if not metadata.get("name"):
        problems.append(f"{document.place(('metadata',))}: metadata.name is missing; give a name")
    return problems


def _message(error: jsonschema.ValidationError) -> str:
    if error.validator == "additionalProperties":
        return f"{error.message}; remove it or mend its spelling"
    if error.validator == "enum":
        return f"{error.message}; use one of these"
    return str(error.message)


def _path(error: jsonschema.ValidationError) -> str:
    path = ".".join(map(str, error.absolute_path))
    return f"{path}: " if path else ""


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
    return out
