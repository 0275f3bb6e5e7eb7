# SPDX-License-Identifier: Apache-2.0
"""Desired objects against the cluster: whose they are, applied, kept, deleted.

Whether an object drifted is told by the controller's caches: every change of a spec raises its
generation, so an object whose UID and generation are those of our last apply is as we left it, and
a look at an unchanged repository asks the API server nothing about it.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
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

# UID and generation of an object as we last saw it equal to what is wanted.
Known = dict[InventoryEntry, tuple[str, int]]


class OwnedByAnotherError(Exception):
    """Objects of that name belong to somebody else, and stay theirs."""


class ApplyError(Exception):
    """The API server did not take an object."""

    def __init__(self, entry: InventoryEntry, error: ApiError) -> None:
        super().__init__(f"{entry} was refused: {error}")
        self.error = error


@dataclass(frozen=True, slots=True)
class GitApplier:
    """Writes what a source wants, under one field manager."""

    client: KubeClient
    cache: ClusterCache

    def refuse_to_take_over(self, source: GitSource, desired: DesiredState) -> None:
        """Look before the first write whose the objects are.

        Raises:
            OwnedByAnotherError: some are not ours to write; all are named.
        """
        taken = [
            f"{wanted.entry} {owner}"
            for wanted in desired.objects
            if (owner := self._other_owner(source, wanted))
        ]
        if taken:
            raise OwnedByAnotherError(
                f"{'; '.join(taken)}. Nothing is applied: remove it from one of the two, or give "
                "yours another name"
            )

    def apply(self, source: GitSource, desired: DesiredState, revision: str, known: Known) -> None:
        """Apply all.

        Raises:
            ApplyError: the first that was refused.
        """
        for wanted in desired.objects:
            if not self._is_shared(source, wanted):
                self._apply_one(source, wanted, revision, known)

    def correct(
        self, source: GitSource, desired: DesiredState, revision: str, known: Known
    ) -> list[InventoryEntry]:
        """Undo what somebody changed since; returns what that was.

        Raises:
            ApplyError: the first that was refused.
            OwnedByAnotherError: one was taken over meanwhile.
        """
        drifted = []
        for wanted in desired.objects:
            seen = self._cached(wanted.entry)
            marks = _marks(source, wanted, revision)
            if (
                seen is not None
                and known.get(wanted.entry) == (seen.uid, seen.generation)
                and _has(seen, wanted, marks)
            ):
                continue
            try:
                live = self._get(wanted.entry)
            except ApiError as error:
                raise ApplyError(wanted.entry, error) from error
            if live is not None and _is_as_wanted(live, wanted, marks):
                metadata = Metadata.parse(live)
                known[wanted.entry] = (metadata.uid, metadata.generation)
                continue
            if owner := self._owner(source, Metadata.parse(live or {})):
                if not wanted.entry.namespace and _is_part_of(
                    wanted.body.get("spec"), (live or {}).get("spec")
                ):
                    continue  # shared
                raise OwnedByAnotherError(f"{wanted.entry} {owner}")
            self._apply_one(source, wanted, revision, known)
            drifted.append(wanted.entry)
        return drifted

    def prune(self, source: GitSource, entry: InventoryEntry) -> str:
        """Delete an object that is still ours; returns why it could not be, empty if it is gone."""
        resource = _RESOURCES.get(entry.kind)
        if resource is None:
            return ""
        namespace = entry.namespace or None
        try:
            live = Metadata.parse(self.client.get(resource, entry.name, namespace=namespace))
            if live.annotations.get(GIT_SOURCE_ANNOTATION) != str(source.metadata):
                return ""  # somebody else's by now
            self.client.delete(resource, entry.name, namespace=namespace, uid=live.uid)
            log.info("pruned %s of %s", entry, source.metadata)
        except NotFound:
            return ""
        except ApiError as error:
            log.warning("%s of %s could not be pruned: %s", entry, source.metadata, error)
            return str(error)
        return ""

    def _apply_one(
        self, source: GitSource, wanted: DesiredObject, revision: str, known: Known
    ) -> None:
        body: dict[str, Any] = {**wanted.body}
        marks = _marks(source, wanted, revision)
        body["metadata"] = {**body["metadata"], "annotations": marks}
        try:
            live = self.client.apply(
                _RESOURCES[wanted.entry.kind], body, field_manager=GITSOURCE_MANAGER, force=True
            )
        except ApiError as error:
            raise ApplyError(wanted.entry, error) from error
        metadata = Metadata.parse(live)
        known[wanted.entry] = (metadata.uid, metadata.generation)

    def _other_owner(self, source: GitSource, wanted: DesiredObject) -> str:
        """Return to whom an object belongs if not to this source."""
        found = self._cached(wanted.entry)
        if not wanted.entry.namespace:
            return self._other_content(source, wanted)
        return self._owner(source, found) if found is not None else ""

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

    def _other_content(self, source: GitSource, wanted: DesiredObject) -> str:
        """A cluster-scoped object serves every tenant: only who brought it may change it."""
        live = self._get(wanted.entry)
        if live is None:
            return ""
        owner = Metadata.parse(live).annotations.get(GIT_SOURCE_ANNOTATION)
        if owner == str(source.metadata) or _is_part_of(wanted.body["spec"], live["spec"]):
            return ""
        return (
            f"exists with another content and was brought by "
            f"{f'GitSource {owner}' if owner else 'somebody else'}"
        )

    def _is_shared(self, source: GitSource, wanted: DesiredObject) -> bool:
        """Whether another applies just this for the whole cluster; two would write it in turns."""
        if wanted.entry.namespace:
            return False
        live = self._get(wanted.entry)
        return live is not None and self._owner(source, Metadata.parse(live)) != ""

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


def _is_as_wanted(
    live: Mapping[str, Any], wanted: DesiredObject, annotations: Mapping[str, str]
) -> bool:
    return _has(Metadata.parse(live), wanted, annotations) and _is_part_of(
        wanted.body.get("spec"), live.get("spec")
    )


def _is_part_of(wanted: Any, live: Any) -> bool:  # noqa: ANN401 - JSON trees
    """Whether applying ``wanted`` would change nothing; the server has filled defaults in."""
    if isinstance(wanted, dict) and isinstance(live, dict):
        return all(key in live and _is_part_of(value, live[key]) for key, value in wanted.items())
    return bool(wanted == live)


def _key(owner: str) -> tuple[str, str]:
    namespace, _, name = owner.partition("/")
    return namespace, name
