# SPDX-License-Identifier: Apache-2.0
"""Which commit brought a policy: asked of the tool that applied it, when a snapshot is made.

A GitSource, Flux and Argo CD each leave their mark on what they apply, and keep the revision and
its instants on an object of their own. That object is read live and within a bound; nothing is
watched and nothing is written. The trap: these kinds may not exist, and podsnap may not be allowed
to read them. Then the policy's own annotations have to do, and no save waits for it.

The other trap: whoever may write the policy writes its marks too, and could point at any object. So
a mark is only a hint where to look, and what is found there counts only if it lists the policy.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from backends.kube.client import GIT_SOURCES, POD_SNAPSHOT_POLICIES, KubeClient, Resource
from backends.kube.errors import ApiError
from schemas.names import ARGO_INSTANCE_LABEL, GIT_SOURCE_ANNOTATION
from schemas.policy import Policy
from schemas.policy_origin import PolicyOrigin

log = logging.getLogger(__name__)

FLUX_NAME_LABEL: Final = "kustomize.toolkit.fluxcd.io/name"
FLUX_NAMESPACE_LABEL: Final = "kustomize.toolkit.fluxcd.io/namespace"
ARGO_TRACKING_ANNOTATION: Final = "argocd.argoproj.io/tracking-id"
# Where an Application lives if the tracking id does not say.
ARGO_NAMESPACE: Final = "argocd"

KUSTOMIZATIONS: Final = Resource(
    "kustomize.toolkit.fluxcd.io", "v1", "kustomizations", "Kustomization"
)
APPLICATIONS: Final = Resource("argoproj.io", "v1alpha1", "applications", "Application")
_FLUX_SOURCES: Final = {
    kind: Resource("source.toolkit.fluxcd.io", "v1", plural, kind)
    for kind, plural in (
        ("GitRepository", "gitrepositories"),
        ("OCIRepository", "ocirepositories"),
        ("Bucket", "buckets"),
        ("ExternalArtifact", "externalartifacts"),
    )
}
# Of each read. One object is small and comes at once; a name that could make a list or a watch of
# the request, which never ends, is not asked for.
_LIMIT_S: Final = 1.0
_LABEL: Final = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_NAMESPACE: Final = re.compile(_LABEL)
_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")

_Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PolicyOrigins:
    """Asks; ``client`` is the controller's."""

    client: KubeClient

    def of(self, policy: Policy) -> PolicyOrigin:
        """Return where a policy came from, as far as it can be known now. Never raises."""
        told = policy.origin
        metadata = policy.metadata
        try:
            if source := metadata.annotations.get(GIT_SOURCE_ANNOTATION):
                return self._git_source(policy, source)
            if name := metadata.labels.get(FLUX_NAME_LABEL):
                return self._flux(policy, metadata.labels.get(FLUX_NAMESPACE_LABEL, ""), name)
            tracked = metadata.annotations.get(ARGO_TRACKING_ANNOTATION, "").partition(":")[0]
            tracked = tracked or metadata.labels.get(ARGO_INSTANCE_LABEL, "")
            if tracked:
                return self._argo(policy, tracked)
        except ApiError as error:
            log.info("where policy %s came from is not known: %s", metadata, error)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            log.warning("what brought policy %s is of an unknown form: %r", metadata, error)
        return told

    def _git_source(self, policy: Policy, source: str) -> PolicyOrigin:
        told = policy.origin
        namespace, _, name = source.partition("/")
        if namespace != policy.metadata.namespace:
            return told  # a source applies to its own namespace only
        status = self._get(GIT_SOURCES, namespace, name).get("status") or {}
        if not _lists(status.get("inventory"), policy):
            return told
        if status.get("lastAttemptedRevision") == told.revision:
            told = replace(told, seen_at=status.get("lastAttemptedSeenTime") or "")
        if status.get("lastAppliedRevision") != told.revision:
            return told  # it is at work, or at another commit by now
        return replace(
            told,
            seen_at=status.get("revisionSeenTime") or "",
            applied_at=status.get("revisionAppliedTime") or "",
        )

    def _flux(self, policy: Policy, namespace: str, name: str) -> PolicyOrigin:
        told, metadata = policy.origin, policy.metadata
        kustomization = self._get(KUSTOMIZATIONS, namespace, name)
        status = kustomization.get("status") or {}
        kind = POD_SNAPSHOT_POLICIES
        own_id = f"{metadata.namespace}_{metadata.name}_{kind.group}_{kind.kind}"
        entries = (status.get("inventory") or {}).get("entries") or ()
        if own_id not in {entry.get("id") for entry in entries}:
            return told
        applied = status.get("lastAppliedRevision") or status.get("lastAttemptedRevision") or ""
        ready = _condition(status, "Ready")
        if ready.get("status") == "Unknown":  # what it is applying may have brought the policy
            applied = status.get("lastAttemptedRevision") or applied
        history = _of_revision(status.get("history"), applied)
        return replace(
            told,
            # Of an artifact that is no commit, such as an OCI image.
            revision=status.get("lastAppliedOriginRevision") or applied,
            source=f"Kustomization {namespace}/{name}",
            seen_at=self._flux_artifact(kustomization, namespace, applied),
            applied_at=history.get("firstReconciled")
            or (ready.get("lastTransitionTime", "") if ready.get("status") == "True" else ""),
        )

    def _flux_artifact(self, kustomization: _Object, namespace: str, revision: str) -> str:
        """Return when Flux had fetched a revision, empty if that cannot be known."""
        reference = (kustomization.get("spec") or {}).get("sourceRef") or {}
        resource = _FLUX_SOURCES.get(reference.get("kind", ""))
        if resource is None:
            return ""
        try:
            found = self._get(resource, reference.get("namespace") or namespace, reference["name"])
        except (ApiError, ValueError) as error:
            log.info("when Flux saw %s is not known: %s", revision, error)
            return ""
        artifact = (found.get("status") or {}).get("artifact") or {}
        if artifact.get("revision") != revision:
            return ""  # it has fetched another one by now
        return artifact.get("lastUpdateTime") or ""

    def _argo(self, policy: Policy, tracked: str) -> PolicyOrigin:
        told = policy.origin
        # An Application outside of Argo CD's own namespace is tracked as NAMESPACE_NAME.
        namespace, _, name = tracked.rpartition("_")
        namespace = namespace or ARGO_NAMESPACE
        status = self._get(APPLICATIONS, namespace, name).get("status") or {}
        resources = status.get("resources") or ()
        # What only claims to belong to it is listed as well, to be pruned.
        if not _lists([r for r in resources if not r.get("requiresPruning")], policy):
            return told
        operation = status.get("operationState") or {}
        sync = status.get("sync") or {}
        synced = (operation.get("syncResult") or {}).get("revision") or ""
        revision = (sync.get("revision") or "") if sync.get("status") == "Synced" else ""
        revision = revision or synced or sync.get("revision") or ""
        seen, applied = "", ""
        if revision == synced:
            seen, applied = operation.get("startedAt") or "", operation.get("finishedAt") or ""
        elif revision:  # a commit that changed nothing has no operation
            history: list[_Object] = status.get("history") or []
            past = next((h for h in history if h.get("revision") == revision), {})
            applied = past.get("deployedAt") or status.get("reconciledAt") or ""
            seen = past.get("deployStartedAt") or applied
        return replace(
            told,
            revision=revision,
            source=f"Application {namespace}/{name}",
            seen_at=seen,
            applied_at=applied,
        )

    def _get(self, resource: Resource, namespace: str, name: str) -> _Object:
        """Read one object.

        Raises:
            ValueError: its name is none, or the answer is no JSON.
            ApiError: as ``KubeClient.get``.
        """
        if not (_NAMESPACE.fullmatch(namespace) and _NAME.fullmatch(name)):
            raise ValueError(f"{namespace!r} and {name!r} name no {resource.kind}")
        return self.client.get(resource, name, namespace=namespace, timeout_s=_LIMIT_S)


def _lists(entries: Any, policy: Policy) -> bool:  # noqa: ANN401 - another tool's field
    """Tell whether an inventory has a policy in it."""
    kind, metadata = POD_SNAPSHOT_POLICIES, policy.metadata
    own = (kind.group, kind.kind, metadata.namespace, metadata.name)
    keys = ("group", "kind", "namespace", "name")
    return own in {tuple(entry.get(key, "") for key in keys) for entry in entries or ()}


def _condition(status: _Object, condition_type: str) -> _Object:
    conditions: Iterator[_Object] = iter(status.get("conditions") or ())
    return next((c for c in conditions if c.get("type") == condition_type), {})


def _of_revision(history: Any, revision: str) -> _Object:  # noqa: ANN401 - another tool's field
    """Return the oldest entry of a Kustomization's history that is of a revision."""
    entries: list[_Object] = [
        entry
        for entry in history or ()
        if (entry.get("metadata") or {}).get("revision") == revision
    ]
    return entries[-1] if entries else {}
