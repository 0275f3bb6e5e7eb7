# SPDX-License-Identifier: Apache-2.0
"""The verbs of the Kubernetes API, on plain dictionaries.

Every write says who writes (the field manager), and every write that depends on what was read says
so by UID or resourceVersion.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from backends.kube.errors import AlreadyExists, Conflict, ServerUnavailable
from backends.kube.transport import APPLY, DEFAULT_LIMIT_S, Stream, Transport

_PAGE: Final = "500"
_SAME_OBJECT_ATTEMPTS: Final = 8
# A healthy server sends a bookmark every minute.
_SILENCE_LIMIT_S: Final = 150.0


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind as the API serves it."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    def path(self, *, namespace: str | None = None, name: str = "", subresource: str = "") -> str:
        """Return the path of a collection, an object or a subresource.

        Whatever a name holds, it leads to no other path and no query.

        Raises:
            ValueError: a name is ``.`` or ``..``, which HTTP clients resolve.
        """
        if {namespace, name} & {".", ".."}:
            raise ValueError(f"{namespace!r} and {name!r} are no names")
        parts = ["/api" if not self.group else f"/apis/{self.group}", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        return "/".join([*parts, *filter(None, (quote(name, safe=""), subresource))])


_SNAPSHOT_GROUP = "podsnapshot.gke.io"
POD_SNAPSHOTS: Final = Resource(_SNAPSHOT_GROUP, "v1", "podsnapshots", "PodSnapshot")
POD_SNAPSHOT_POLICIES: Final = Resource(
    _SNAPSHOT_GROUP, "v1", "podsnapshotpolicies", "PodSnapshotPolicy"
)
POD_SNAPSHOT_MANUAL_TRIGGERS: Final = Resource(
    _SNAPSHOT_GROUP, "v1", "podsnapshotmanualtriggers", "PodSnapshotManualTrigger"
)
POD_SNAPSHOT_STORAGE_CONFIGS: Final = Resource(
    _SNAPSHOT_GROUP,
    "v1",
    "podsnapshotstorageconfigs",
    "PodSnapshotStorageConfig",
    namespaced=False,
)
POD_SNAPSHOT_TOKEN_REQUESTS: Final = Resource(
    _SNAPSHOT_GROUP, "v1", "podsnapshottokenrequests", "PodSnapshotTokenRequest"
)
GIT_SOURCES: Final = Resource("podsnap.dev", "v1alpha1", "gitsources", "GitSource")
PODS: Final = Resource("", "v1", "pods", "Pod")
SERVICE_ACCOUNTS: Final = Resource("", "v1", "serviceaccounts", "ServiceAccount")
EVENTS: Final = Resource("", "v1", "events", "Event")
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", "Lease")
RUNTIME_CLASSES: Final = Resource(
    "node.k8s.io", "v1", "runtimeclasses", "RuntimeClass", namespaced=False
)


class KubeClient:
    """Verbs over one transport."""

    def __init__(self, transport: Transport) -> None:
        """Use the transport's identity."""
        self._transport = transport

    def acting_as(self, user: str) -> "KubeClient":
        """Return the verbs as another user, whom this one has to be let impersonate."""
        return KubeClient(self._transport.acting_as(user))

    def get(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        timeout_s: float = DEFAULT_LIMIT_S,
    ) -> dict[str, Any]:
        """Return one object."""
        path = resource.path(namespace=namespace, name=name)
        return self._transport.request("GET", path, timeout_s=timeout_s)

    def list(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        field_selector: str | None = None,
        label_selector: str | None = None,
    ) -> tuple[list[dict[str, Any]], str]:
        """Return all objects, read page by page, and the resourceVersion of the list."""
        items: list[dict[str, Any]] = []
        params = _selectors(field_selector, label_selector) | {"limit": _PAGE}
        while True:
            page = self._transport.request("GET", resource.path(namespace=namespace), params=params)
            items += page.get("items") or ()
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return items, metadata.get("resourceVersion", "")
            params["continue"] = metadata["continue"]

    def watch(
        self,
        resource: Resource,
        *,
        resource_version: str,
        namespace: str | None = None,
        field_selector: str | None = None,
        label_selector: str | None = None,
        duration_s: int = 290,
    ) -> Stream:
        """Open a watch with bookmarks from a resourceVersion; the server ends it in time."""
        params = _selectors(field_selector, label_selector) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(duration_s),
        }
        return self._transport.stream(
            resource.path(namespace=namespace), params=params, read_timeout_s=_SILENCE_LIMIT_S
        )

    def create(
        self,
        resource: Resource,
        body: Mapping[str, Any],
        *,
        field_manager: str,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Create an object, or with ``dry_run`` only return it as admission would leave it.

        Raises:
            AlreadyExists: the name is taken.
        """
        namespace = body["metadata"].get("namespace")
        return self._transport.request(
            "POST",
            resource.path(namespace=namespace),
            params={"fieldManager": field_manager} | ({"dryRun": "All"} if dry_run else {}),
            body=body,
        )

    def create_once(
        self, resource: Resource, body: Mapping[str, Any], *, field_manager: str
    ) -> dict[str, Any] | None:
        """Create an object; ``None`` if its name is taken, which is as good for a derived name."""
        try:
            return self.create(resource, body, field_manager=field_manager)
        except AlreadyExists:
            return None

    def service_account_token(self, namespace: str, account: str, spec: Mapping[str, Any]) -> str:
        """Return a new token of a ServiceAccount, as ``spec`` (a TokenRequest's) describes it.

        Raises:
            NotFound: the account, or the object to which the token is bound, is gone.
        """
        path = SERVICE_ACCOUNTS.path(namespace=namespace, name=account, subresource="token")
        kind = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
        made = self._transport.request("POST", path, body={**kind, "spec": spec})
        token: str = made["status"]["token"]
        return token

    def replace(
        self,
        resource: Resource,
        body: Mapping[str, Any],
        *,
        field_manager: str,
        timeout_s: float = DEFAULT_LIMIT_S,
    ) -> dict[str, Any]:
        """Replace an object; its resourceVersion is the precondition.

        Raises:
            Conflict: it changed since it was read.
        """
        metadata = body["metadata"]
        return self._transport.request(
            "PUT",
            resource.path(namespace=metadata.get("namespace"), name=metadata["name"]),
            params={"fieldManager": field_manager},
            body=body,
            timeout_s=timeout_s,
        )

    def apply(
        self,
        resource: Resource,
        body: Mapping[str, Any],
        *,
        field_manager: str,
        subresource: str = "",
        force: bool = False,
        dry_run: bool = False,
        unless: Callable[[dict[str, Any]], bool] | None = None,
    ) -> dict[str, Any]:
        """Apply on the server side, or with ``dry_run`` only return what that would make.

        What an earlier apply of this manager set and this one leaves out is removed. The status of
        a custom kind is not written if ``unless`` holds for the object as it is by then.

        Raises:
            Conflict: another manager has a field (without ``force``), ``metadata.uid`` or
                ``resourceVersion`` is not the object's, or ``unless`` holds.
            NotFound: a subresource of an object that is gone.
        """
        metadata = body["metadata"]
        if not (subresource and resource.group and metadata.get("uid")) or metadata.get(
            "resourceVersion"
        ):
            return self._apply(
                resource,
                body,
                field_manager=field_manager,
                subresource=subresource,
                force=force,
                dry_run=dry_run,
            )
        # The status of a custom kind takes any UID; only resourceVersion is compared.
        last: ServerUnavailable | None = None
        for _ in range(_SAME_OBJECT_ATTEMPTS):
            live = self.get(resource, metadata["name"], namespace=metadata.get("namespace"))
            if live["metadata"]["uid"] != metadata["uid"]:
                raise Conflict(
                    f"{resource.kind} {metadata['name']} is another object by now: its UID is "
                    f"{live['metadata']['uid']}, not {metadata['uid']}"
                )
            if unless is not None and unless(live):
                raise Conflict(f"{resource.kind} {metadata['name']} was changed meanwhile")
            version = live["metadata"]["resourceVersion"]
            pinned = {**body, "metadata": {**metadata, "resourceVersion": version}}
            try:
                return self._apply(
                    resource,
                    pinned,
                    field_manager=field_manager,
                    subresource=subresource,
                    force=force,
                    dry_run=dry_run,
                )
            except Conflict as error:
                if error.details.get("causes"):
                    raise  # a field is somebody else's
            except ServerUnavailable as error:
                last = error  # perhaps written, perhaps not: the next look at the object tells
        raise ServerUnavailable(
            f"{resource.kind} {metadata['name']} changed {_SAME_OBJECT_ATTEMPTS} times between "
            "reading and writing it; try again later"
        ) from last

    def _apply(
        self,
        resource: Resource,
        body: Mapping[str, Any],
        *,
        field_manager: str,
        subresource: str,
        force: bool,
        dry_run: bool,
    ) -> dict[str, Any]:
        metadata = body["metadata"]
        params = {"fieldManager": field_manager} | ({"dryRun": "All"} if dry_run else {})
        if force:
            params["force"] = "true"
        return self._transport.request(
            "PATCH",
            resource.path(
                namespace=metadata.get("namespace"),
                name=metadata["name"],
                subresource=subresource,
            ),
            params=params,
            body=body,
            content_type=APPLY,
        )

    def merge_patch(
        self,
        resource: Resource,
        name: str,
        patch: Mapping[str, Any],
        *,
        namespace: str | None = None,
        field_manager: str,
        subresource: str = "",
    ) -> dict[str, Any]:
        """Merge a patch; a list in it replaces the list, and ``None`` removes a field.

        Raises:
            Conflict: the patch has a ``metadata.resourceVersion`` that is not the object's.
        """
        return self._transport.request(
            "PATCH",
            resource.path(namespace=namespace, name=name, subresource=subresource),
            params={"fieldManager": field_manager},
            body=patch,
            content_type="application/merge-patch+json",
        )

    def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        uid: str | None = None,
        resource_version: str | None = None,
    ) -> None:
        """Delete an object, if it still is the one that was meant.

        Raises:
            NotFound: it is gone.
            Conflict: the UID or the resourceVersion is another one.
        """
        preconditions = {
            k: v for k, v in (("uid", uid), ("resourceVersion", resource_version)) if v
        }
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions}
        self._transport.request("DELETE", resource.path(namespace=namespace, name=name), body=body)


def _selectors(field_selector: str | None, label_selector: str | None) -> dict[str, str]:
    pairs = (("fieldSelector", field_selector), ("labelSelector", label_selector))
    return {key: value for key, value in pairs if value}
