# SPDX-License-Identifier: Apache-2.0
"""The API's verbs over plain dicts.

Every write says who writes (the field manager) and, where it matters, what it expects (UID,
resourceVersion). There is no update of a whole object on purpose: a read-modify-write loses what
others wrote in between; apply and patches do not.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from backends.kube.transport import REQUEST_LIMIT_S, Json, Transport, Watch
from schemas.names import GROUP, OWN_GROUP, VERSION

_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind as the server's paths name it; the core group is an empty string."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """``group/version``, or the version alone for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, *, namespace: str | None = None, name: str = "", subresource: str = "") -> str:
        """Return the path of an object, or of the collection without a name.

        Raises:
            ValueError: an object of a namespaced kind was named without its namespace.
        """
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        elif self.namespaced and name:
            raise ValueError(f"{self.kind} {name} is namespaced; say in which namespace")
        parts.append(self.plural)
        if name:
            parts.append(quote(name, safe=":"))
        if subresource:
            parts.append(subresource)
        return "/".join(parts)


PODS: Final = Resource("", "v1", "pods", "Pod")
EVENTS: Final = Resource("", "v1", "events", "Event")
NODES: Final = Resource("", "v1", "nodes", "Node", namespaced=False)
NAMESPACES: Final = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
SERVICE_ACCOUNTS: Final = Resource("", "v1", "serviceaccounts", "ServiceAccount")
CONFIG_MAPS: Final = Resource("", "v1", "configmaps", "ConfigMap")
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", "Lease")
RUNTIME_CLASSES: Final = Resource(
    "node.k8s.io", "v1", "runtimeclasses", "RuntimeClass", namespaced=False
)
DEPLOYMENTS: Final = Resource("apps", "v1", "deployments", "Deployment")
REPLICA_SETS: Final = Resource("apps", "v1", "replicasets", "ReplicaSet")
CUSTOM_RESOURCE_DEFINITIONS: Final = Resource(
    "apiextensions.k8s.io",
    "v1",
    "customresourcedefinitions",
    "CustomResourceDefinition",
    namespaced=False,
)
POD_SNAPSHOTS: Final = Resource(GROUP, VERSION, "podsnapshots", "PodSnapshot")
POD_SNAPSHOT_POLICIES: Final = Resource(GROUP, VERSION, "podsnapshotpolicies", "PodSnapshotPolicy")
POD_SNAPSHOT_STORAGE_CONFIGS: Final = Resource(
    GROUP, VERSION, "podsnapshotstorageconfigs", "PodSnapshotStorageConfig", namespaced=False
)
POD_SNAPSHOT_MANUAL_TRIGGERS: Final = Resource(
    GROUP, VERSION, "podsnapshotmanualtriggers", "PodSnapshotManualTrigger"
)
POD_SNAPSHOT_TOKEN_REQUESTS: Final = Resource(
    GROUP, VERSION, "podsnapshottokenrequests", "PodSnapshotTokenRequest"
)
GIT_SOURCES: Final = Resource(OWN_GROUP, "v1alpha1", "gitsources", "GitSource")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects of a kind: everything by default."""

    namespace: str | None = None
    field_selector: str | None = None
    label_selector: str | None = None

    def params(self) -> dict[str, str | int | bool]:
        """Return the query."""
        query: dict[str, str | int | bool] = {}
        if self.field_selector:
            query["fieldSelector"] = self.field_selector
        if self.label_selector:
            query["labelSelector"] = self.label_selector
        return query


@dataclass(frozen=True, slots=True)
class ObjectList:
    """Objects, and the resourceVersion at which they were so."""

    items: tuple[Json, ...]
    resource_version: str


class KubeClient:
    """Verbs of one API server with one identity. Safe to share between threads.

    Every method raises ``ApiError`` or one of its types (``backends.kube.errors``).
    """

    def __init__(self, transport: Transport) -> None:
        """The transport is closed by who opened it."""
        self.transport = transport

    def get(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        timeout_s: float = REQUEST_LIMIT_S,
    ) -> Json:
        """Return one object."""
        path = resource.path(namespace=namespace, name=name)
        return self.transport.request("GET", path, timeout_s=timeout_s)

    def list(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        field_selector: str | None = None,
        label_selector: str | None = None,
    ) -> ObjectList:
        """Return all objects that the selectors choose, read page by page."""
        chosen = Selection(namespace, field_selector, label_selector)
        pages = tuple(self.pages(resource, chosen))
        items = tuple(item for page in pages for item in page.items)
        return ObjectList(items, pages[-1].resource_version)

    def pages(self, resource: Resource, selection: Selection) -> Iterator[ObjectList]:
        """Yield a list in pages of 500, so that a caller can drop what it does not keep.

        All pages carry the same resourceVersion. Raises ``Gone`` where it took too long.
        """
        path = resource.path(namespace=selection.namespace)
        params = {**selection.params(), "limit": _PAGE}
        while True:
            answer = self.transport.request("GET", path, params=params)
            metadata = answer.get("metadata") or {}
            yield ObjectList(tuple(answer.get("items") or ()), metadata.get("resourceVersion", ""))
            if not metadata.get("continue"):
                return
            params["continue"] = metadata["continue"]

    def watch(
        self,
        resource: Resource,
        selection: Selection,
        *,
        resource_version: str,
        timeout_s: int,
        read_timeout_s: float,
    ) -> Watch:
        """Open a watch with bookmarks; the server ends it after about ``timeout_s`` seconds."""
        params = {
            **selection.params(),
            "watch": True,
            "allowWatchBookmarks": True,
            "resourceVersion": resource_version,
            "timeoutSeconds": timeout_s,
        }
        path = resource.path(namespace=selection.namespace)
        return self.transport.stream(path, params, read_timeout_s=read_timeout_s)

    def create(
        self,
        resource: Resource,
        obj: Mapping[str, Any],
        *,
        field_manager: str,
        subresource: str = "",
    ) -> Json:
        """Create an object; ``AlreadyExists`` is the answer to a name that is taken."""
        metadata = obj.get("metadata") or {}
        name = metadata.get("name", "") if subresource else ""
        path = resource.path(
            namespace=metadata.get("namespace"), name=name, subresource=subresource
        )
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **obj}
        return self.transport.request(
            "POST", path, params={"fieldManager": field_manager}, body=body
        )

    def apply(
        self,
        resource: Resource,
        obj: Mapping[str, Any],
        *,
        field_manager: str,
        subresource: str = "",
        force: bool = False,
        timeout_s: float = REQUEST_LIMIT_S,
    ) -> Json:
        """Apply an object server-side: these are all the fields that the manager wants.

        With ``metadata.uid`` an object that was deleted, or deleted and made again, is not created:
        the answer is ``Conflict``, or ``NotFound`` for a subresource.
        """
        metadata = obj["metadata"]
        path = resource.path(
            namespace=metadata.get("namespace"), name=metadata["name"], subresource=subresource
        )
        return self.transport.request(
            "PATCH",
            path,
            params={"fieldManager": field_manager, "force": force},
            body={"apiVersion": resource.api_version, "kind": resource.kind, **obj},
            content_type="application/apply-patch+yaml",
            timeout_s=timeout_s,
        )

    def merge_patch(
        self,
        resource: Resource,
        name: str,
        patch: Mapping[str, Any],
        *,
        field_manager: str,
        namespace: str | None = None,
        subresource: str = "",
    ) -> Json:
        """Merge fields in; ``None`` removes one. A ``metadata.resourceVersion`` is a condition."""
        return self.transport.request(
            "PATCH",
            resource.path(namespace=namespace, name=name, subresource=subresource),
            params={"fieldManager": field_manager},
            body=patch,
            content_type="application/merge-patch+json",
        )

    def json_patch(
        self,
        resource: Resource,
        name: str,
        operations: Sequence[Mapping[str, Any]],
        *,
        field_manager: str,
        namespace: str | None = None,
        subresource: str = "",
    ) -> Json:
        """Carry out JSON patch operations; ``Invalid`` where a ``test`` of them fails."""
        return self.transport.request(
            "PATCH",
            resource.path(namespace=namespace, name=name, subresource=subresource),
            params={"fieldManager": field_manager},
            body=operations,
            content_type="application/json-patch+json",
        )

    def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        uid: str | None = None,
        resource_version: str | None = None,
        grace_period_s: int | None = None,
    ) -> Json:
        """Delete an object, only the one with this UID and resourceVersion where they are given.

        ``Conflict`` is the answer to another UID or version.
        """
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        options: Json = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid or resource_version:
            options["preconditions"] = {k: v for k, v in preconditions.items() if v}
        if grace_period_s is not None:
            options["gracePeriodSeconds"] = grace_period_s
        path = resource.path(namespace=namespace, name=name)
        return self.transport.request("DELETE", path, body=options)
