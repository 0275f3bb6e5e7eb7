# SPDX-License-Identifier: Apache-2.0
"""Workloads checked against the schemas of a Kubernetes version.

The schemas are those of the package kubernetes-validate (extra ``lint``, 108 MB). Only its files
are read: the package itself stops at the first error and reads its definitions anew for every
object, while one validator kept in memory tells all errors of an object in two milliseconds.
"""

import functools
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import orjson

from schemas.documents import Document
from schemas.findings import Finding
from schemas.schema_errors import explained

# What the local cluster runs.
DEFAULT_VERSION: Final = "1.36"
_GROUPS: Final = {"v1": "core", "apps/v1": "apps", "batch/v1": "batch"}
_KINDS: Final = {
    "CronJob": "batch/v1",
    "DaemonSet": "apps/v1",
    "Deployment": "apps/v1",
    "Job": "batch/v1",
    "Pod": "v1",
    "ReplicaSet": "apps/v1",
    "ReplicationController": "v1",
    "StatefulSet": "apps/v1",
}


class SchemasMissingError(Exception):
    """The package is not installed, or it does not have the version; the text says which."""


class KubernetesSchemas:
    """The schemas of one version, strict: a field that it does not have is an error."""

    def __init__(self, version: str = DEFAULT_VERSION) -> None:
        """``version`` is a minor version such as ``1.36``; a patch version is cut off.

        Raises:
            SchemasMissingError: there are no such schemas here.
        """
        minor = ".".join(version.removeprefix("v").split(".")[:2])
        folders = dict(_folders())
        if not folders:
            raise SchemasMissingError(
                f"Pod templates are not checked against Kubernetes {minor}: the package "
                "kubernetes-validate is not installed; pip install 'podsnap[lint]'"
            )
        if minor not in folders:
            raise SchemasMissingError(
                f"there are no schemas of Kubernetes {version}; there are {', '.join(folders)}"
            )
        self._file = folders[minor] / "_definitions.json"

    @functools.cached_property
    def _definitions(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(self._file.read_bytes())
        return found

    @functools.cache  # noqa: B019 - one object a run
    def _validator(self, definition: str) -> Any:  # noqa: ANN401 - imported when it is needed
        import jsonschema

        schema = {**self._definitions, "$ref": f"#/$defs/{definition}"}
        return jsonschema.Draft202012Validator(schema)

    def findings(self, document: Document) -> list[Finding]:
        """Return what the schema refuses of a workload; nothing for other kinds."""
        group, meant = _GROUPS.get(document.api_version), _KINDS.get(document.kind)
        if group is None or meant is None:
            return []
        if document.api_version != meant:
            message = f"no Kubernetes has {document.kind} of {document.api_version}"
            hint = f"write apiVersion: {meant}"
            return [document.finding(("apiVersion",), "unknown-kind", message, hint)]
        validator = self._validator(f"io.k8s.api.{group}.v1.{document.kind}")
        return explained(document, validator.iter_errors(document.tree))


def _folders() -> Iterator[tuple[str, Path]]:
    """Yield minor version and folder, oldest first."""
    package = find_spec("kubernetes_validate")
    for place in (package.submodule_search_locations if package else None) or ():
        found = Path(place, "kubernetes-json-schema").glob("v1.*.0-local-strict")
        minors = sorted((int(folder.name.split(".")[1]), folder) for folder in found)
        yield from ((f"1.{minor}", folder) for minor, folder in minors)
