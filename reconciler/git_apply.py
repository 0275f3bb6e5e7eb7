# SPDX-License-Identifier: Apache-2.0
"""Desired objects against the cluster: whose they are, applied, kept, deleted.

Whether an object drifted is told by the controller's caches: every change of a spec raises its
generation, so an object whose UID and generation are those of our last apply is as we left it, and
a look at an unchanged repository asks the API server nothing about it.

A cluster-scoped object serves every tenant. One that another brought is never written: if it says
just the same it is shared, else the commit is refused.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from backends.kube.client import (
    POD_SNAPSHOT_MANUAL_TRIGGERS,
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    KubeClient,
)
from backends.kube.errors import ApiError, NotFound
from reconciler.cluster_cache import ClusterCache
from reconciler.git_manifests import DesiredObject, DesiredState
from reconciler.policy_origin import ARGO_TRACKING_ANNOTATION, FLUX_NAME_LABEL
from schemas.git_source import GitSource, InventoryEntry
from schemas.metadata import Metadata
from schemas.names import GIT_REVISION_ANNOTATION, GIT_SOURCE_ANNOTATION, GITSOURCE_MANAGER

log = logging.getLogger(__name__)

_RESOURCES: Final = {
    r.kind: r
    for r in (POD_SNAPSHOT_STORAGE_CONFIGS, POD_SNAPSHOT_POLICIES, POD_SNAPSHOT_MANUAL_TRIGGERS)
}

# UID and generation of an object as we last left it.
Known = dict[InventoryEntry, tuple[str, int]]


class OwnedByAnotherError(Exception):
    """Objects of that name belong to somebody else, and stay theirs."""


class ApplyError(Exception):
    """The API server did not take an object."""

    def __init__(self, entry: InventoryEntry, error: ApiError) -> None:
        super().__init__(f"{entry} was refused: {error}")
        self.error = error


@dataclass(slots=True)
class Pruned:
    """What became of what left; who is in neither was gone, or is somebody else's by now."""

    deleted: list[InventoryEntry] = field(default_factory=list)
    failed: dict[InventoryEntry, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GitApplier:
    """Writes what a source wants, under one field manager."""

    client: KubeClient
    cache: ClusterCache

    def shared(self, source: GitSource, desired: DesiredState) -> frozenset[InventoryEntry]:
        """Look before the first write whose the objects are; returns what stays another's.

        Raises:
            OwnedByAnotherError: some are not ours to write; all are named.
            ApiError: the API server does not answer.
        """
        shared, taken = set(), []
        for wanted in desired.objects:
            if wanted.entry.namespace:
                found = self._cached(wanted.entry)
                owner = self._owner(source, found) if found is not None else ""
            else:
                live = self._get(wanted.entry)
                if live is None or _is_ours(source, Metadata.parse(live)):
                    continue
                if self._says_the_same(wanted, live):
                    shared.add(wanted.entry)
                    continue
                brought = Metadata.parse(live).annotations.get(GIT_SOURCE_ANNOTATION)
                by = f"GitSource {brought}" if brought else "somebody else"
                owner = f"exists with another content and was brought by {by}"
            if owner:
                taken.append(f"{wanted.entry} {owner}")
        if taken:
            raise OwnedByAnotherError(
                f"{'; '.join(taken)}. Nothing is applied: remove it from one of the two, or give "
                "yours another name"
            )
        return frozenset(shared)

    def rehearse(
        self,
        source: GitSource,
        desired: DesiredState,
        revision: str,
        shared: Collection[InventoryEntry],
    ) -> None:
        """Have the API server judge all before the first is written.

        Raises:
            ApplyError: the first that it would refuse.
        """
        for wanted in desired.objects:
            if wanted.entry not in shared:
                self._write(source, wanted, revision, dry_run=True)

    def apply(
        self,
        source: GitSource,
        desired: DesiredState,
        revision: str,
        known: Known,
        shared: Collection[InventoryEntry],
    ) -> None:
        """Apply all but what is shared.

        Raises:
            ApplyError: the first that was refused.
        """
        for wanted in desired.objects:
            if wanted.entry not in shared:
                self._apply_one(source, wanted, revision, known)

    def correct(
        self,
        source: GitSource,
        desired: DesiredState,
        revision: str,
        known: Known,
    ) -> tuple[list[InventoryEntry], frozenset[InventoryEntry]]:
        """Undo what somebody changed since; returns what that was, and what is shared.

        Raises:
            ApplyError: the first that was refused.
            OwnedByAnotherError: one was taken over meanwhile.
            ApiError: the API server does not answer.
        """
        drifted: list[InventoryEntry] = []
        shared: set[InventoryEntry] = set()
        for wanted in desired.objects:
            entry = wanted.entry
            seen = self._cached(entry)
            is_known = seen is not None and known.get(entry) == (seen.uid, seen.generation)
            marks = _marks(source, wanted, revision)
            if is_known and seen is not None and not _is_ours(source, seen):
                if not entry.namespace:
                    shared.add(entry)
                    continue
            elif is_known and seen is not None and _has(seen, wanted, marks):
                continue
            live = self._get(entry)
            if live is not None:
                alone = DesiredState((wanted,), ())
                if not entry.namespace and self.shared(source, alone):
                    _remember(known, entry, live)
                    shared.add(entry)
                    continue
                if owner := self._owner(source, Metadata.parse(live)):
                    raise OwnedByAnotherError(f"{entry} {owner}")
            made = self._apply_one(source, wanted, revision, known)
            if live is None or _content(live) != _content(made):
                drifted.append(entry)
        return drifted, frozenset(shared)

    def prune(self, source: GitSource, entries: Iterable[InventoryEntry]) -> Pruned:
        """Delete those objects that still are ours."""
        done = Pruned()
        for entry in entries:
            resource = _RESOURCES.get(entry.kind)
            if resource is None:
                continue
            namespace = entry.namespace or None
            try:
                live = Metadata.parse(self.client.get(resource, entry.name, namespace=namespace))
                if not _is_ours(source, live):
                    continue
                self.client.delete(resource, entry.name, namespace=namespace, uid=live.uid)
            except NotFound:
                continue
            except ApiError as error:
                log.warning("%s of %s could not be pruned: %s", entry, source.metadata, error)
                done.failed[entry] = str(error)
                continue
            log.info("pruned %s of %s", entry, source.metadata)
            done.deleted.append(entry)
        return done

    def _apply_one(
        self, source: GitSource, wanted: DesiredObject, revision: str, known: Known
    ) -> dict[str, Any]:
        made = self._write(source, wanted, revision)
        _remember(known, wanted.entry, made)
        return made

    def _write(
        self, source: GitSource, wanted: DesiredObject, revision: str, *, dry_run: bool = False
    ) -> dict[str, Any]:
        body: dict[str, Any] = {**wanted.body}
        marks = _marks(source, wanted, revision)
        body["metadata"] = {**body["metadata"], "annotations": marks}
        try:
            return self.client.apply(
                _RESOURCES[wanted.entry.kind],
                body,
                field_manager=GITSOURCE_MANAGER,
                force=True,
                dry_run=dry_run,
            )
        except ApiError as error:
            raise ApplyError(wanted.entry, error) from error

    def _says_the_same(self, wanted: DesiredObject, live: Mapping[str, Any]) -> bool:
        """Whether two specs are equal once the server has filled in its defaults."""
        if wanted.body.get("spec") == live.get("spec"):
            return True
        body = {**wanted.body, "metadata": {"generateName": f"{wanted.entry.name[:200]}-"}}
        made = self.client.create(
            _RESOURCES[wanted.entry.kind], body, field_manager=GITSOURCE_MANAGER, dry_run=True
        )
        return bool(made.get("spec") == live.get("spec"))

    def _owner(self, source: GitSource, found: Metadata) -> str:
        """Return who else applies an object, empty if nobody does."""
        owner = found.annotations.get(GIT_SOURCE_ANNOTATION, "")
        if owner == str(source.metadata):
            return ""
        if owner and self.cache.git_sources.store.get(*_key(owner)) is not None:
            return f"belongs to GitSource {owner}, which was first"
        if FLUX_NAME_LABEL in found.labels:
            return f"is applied by Flux's Kustomization {found.labels[FLUX_NAME_LABEL]}"
        if ARGO_TRACKING_ANNOTATION in found.annotations:
            application = found.annotations[ARGO_TRACKING_ANNOTATION].partition(":")[0]
            return f"is applied by Argo CD's Application {application}"
        return ""

    def _get(self, entry: InventoryEntry) -> dict[str, Any] | None:
        try:
            return self.client.get(
                _RESOURCES[entry.kind], entry.name, namespace=entry.namespace or None
            )
        except NotFound:
            return None

    def _cached(self, entry: InventoryEntry) -> Metadata | None:
        stores = {
            "PodSnapshotStorageConfig": self.cache.storage_configs.store,
            "PodSnapshotPolicy": self.cache.policies.store,
            "PodSnapshotManualTrigger": self.cache.triggers.store,
        }
        found = stores[entry.kind].get(entry.namespace, entry.name)  # type: ignore[attr-defined] # each has metadata
        return found.metadata if found else None


def _marks(source: GitSource, wanted: DesiredObject, revision: str) -> dict[str, str]:
    return {
        **(wanted.body["metadata"].get("annotations") or {}),
        GIT_REVISION_ANNOTATION: revision,
        GIT_SOURCE_ANNOTATION: str(source.metadata),
    }


def _has(seen: Metadata, wanted: DesiredObject, annotations: Mapping[str, str]) -> bool:
    labels = wanted.body["metadata"].get("labels") or {}
    return labels.items() <= seen.labels.items() and annotations.items() <= seen.annotations.items()


def _content(live: Mapping[str, Any]) -> tuple[Any, ...]:
    """What an apply may change; a status in between does not count."""
    metadata = Metadata.parse(live)
    return metadata.uid, live.get("spec"), dict(metadata.labels), dict(metadata.annotations)


def _is_ours(source: GitSource, found: Metadata) -> bool:
    return found.annotations.get(GIT_SOURCE_ANNOTATION) == str(source.metadata)


def _remember(known: Known, entry: InventoryEntry, live: Mapping[str, Any]) -> None:
    metadata = Metadata.parse(live)
    known[entry] = (metadata.uid, metadata.generation)


def _key(owner: str) -> tuple[str, str]:
    namespace, _, name = owner.partition("/")
    return namespace, name
