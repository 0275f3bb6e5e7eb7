# SPDX-License-Identifier: Apache-2.0
"""GitSources: a repository's policies, applied as they stand at one commit.

Server-side apply under one field manager corrects drift; the inventory of what was applied says
what may be pruned. A tree that cannot be read changes nothing: the last good revision stays.
"""

import logging
from dataclasses import dataclass
from typing import Any, Final

from backends.clock import Clock
from backends.git.source import GitError, GitTree, read_tree
from backends.kube.client import (
    GIT_SOURCES,
    POD_SNAPSHOT_MANUAL_TRIGGERS,
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    KubeClient,
    Resource,
)
from backends.kube.errors import ApiError, Conflict, NotFound
from reconciler.cluster_cache import ClusterCache
from reconciler.controller import Key
from reconciler.git_manifests import (
    DesiredObject,
    DesiredState,
    TreeRefusedError,
    desired_state,
)
from schemas.conditions import Condition, render_conditions
from schemas.git_source import GitSource, InventoryEntry
from schemas.instants import to_time
from schemas.metadata import Metadata
from schemas.names import (
    CONTROLLER_MANAGER,
    GIT_REVISION_ANNOTATION,
    GIT_SOURCE_ANNOTATION,
    GITSOURCE_MANAGER,
    OWN_API_VERSION,
    READY,
)

log = logging.getLogger(__name__)

_RETRY_S: Final = 10.0
_RESOURCES: Final = {
    r.kind: r
    for r in (POD_SNAPSHOT_STORAGE_CONFIGS, POD_SNAPSHOT_POLICIES, POD_SNAPSHOT_MANUAL_TRIGGERS)
}


class TakenError(Exception):
    """An object of that name belongs to somebody else."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    condition: Condition
    revision: str
    inventory: tuple[InventoryEntry, ...]
    again_s: float


@dataclass(slots=True)
class GitSourceController:
    """Reconciles GitSources."""

    client: KubeClient
    cache: ClusterCache
    clock: Clock

    def reconcile(self, key: Key) -> float | None:
        """Look at one repository when it is due, apply what it says, prune what left it."""
        source = self.cache.git_sources.store.get(*key)
        if source is None or source.metadata.is_deleting:
            return None
        outcome = self._sync(source)
        self._write(source, outcome)
        return outcome.again_s

    def _sync(self, source: GitSource) -> _Outcome:
        revision = source.applied_revision
        inventory = source.inventory
        try:
            tree = read_tree(
                source.url,
                branch=source.branch,
                tag=source.tag,
                commit=source.commit,
                path=source.path,
            )
            desired = desired_state(tree.files, namespace=source.metadata.namespace)
        except (GitError, TreeRefusedError) as error:
            reason = "FetchFailed" if isinstance(error, GitError) else "TreeRefused"
            kept = f"; revision {revision} stays applied" if revision else ""
            return self._not_ready(source, reason, f"{error}{kept}", inventory, revision)
        revision = f"{source.branch or source.tag or 'HEAD'}@sha1:{tree.commit}"
        applied: list[InventoryEntry] = []
        try:
            for wanted in desired.objects:
                self._refuse_to_take_over(source, wanted)
                self._apply(source, wanted, revision)
                applied.append(wanted.entry)
        except (ApiError, TakenError) as error:
            union = tuple(dict.fromkeys([*inventory, *applied]))
            message = f"{wanted.entry.kind} {wanted.entry.name} was refused: {error}"
            return self._not_ready(source, "ApplyFailed", message, union, source.applied_revision)
        left = [e for e in inventory if e not in applied]
        if source.prune:
            left = [e for e in left if not self._prune(source, e)]
        return _Outcome(
            self._ready(source, tree, desired), revision, (*applied, *left), source.interval_s
        )

    def _refuse_to_take_over(self, source: GitSource, wanted: DesiredObject) -> None:
        """A cluster-scoped object serves every tenant: only who brought it may change it."""
        if wanted.entry.namespace:
            return
        try:
            live = self.client.get(_RESOURCES[wanted.entry.kind], wanted.entry.name)
        except NotFound:
            return
        owner = Metadata.parse(live).annotations.get(GIT_SOURCE_ANNOTATION)
        if owner != str(source.metadata) and not _is_part_of(wanted.body["spec"], live["spec"]):
            raise TakenError(
                f"it exists with another content and was brought by {owner or 'somebody else'}; "
                "give yours another name"
            )

    def _apply(self, source: GitSource, wanted: DesiredObject, revision: str) -> None:
        body: dict[str, Any] = {**wanted.body}
        metadata = {**body["metadata"]}
        metadata["annotations"] = {
            **(metadata.get("annotations") or {}),
            GIT_REVISION_ANNOTATION: revision,
            GIT_SOURCE_ANNOTATION: str(source.metadata),
        }
        body["metadata"] = metadata
        self.client.apply(
            _RESOURCES[wanted.entry.kind], body, field_manager=GITSOURCE_MANAGER, force=True
        )

    def _prune(self, source: GitSource, entry: InventoryEntry) -> bool:
        resource: Resource | None = _RESOURCES.get(entry.kind)
        if resource is None:
            return True
        namespace = entry.namespace or None
        try:
            live = Metadata.parse(self.client.get(resource, entry.name, namespace=namespace))
            if live.annotations.get(GIT_SOURCE_ANNOTATION) != str(source.metadata):
                return True  # somebody else's by now
            self.client.delete(resource, entry.name, namespace=namespace, uid=live.uid)
            log.info("pruned %s %s", entry.kind, entry.name)
        except NotFound:
            return True
        except ApiError as error:
            log.warning("%s %s could not be pruned: %s", entry.kind, entry.name, error)
            return False
        return True

    def _ready(self, source: GitSource, tree: GitTree, desired: DesiredState) -> Condition:
        foreign = f"; left alone: {', '.join(desired.foreign)}" if desired.foreign else ""
        return Condition(
            READY,
            "True",
            "Applied",
            f"commit {tree.commit[:12]} applied, {len(desired.objects)} objects{foreign}",
            observed_generation=source.metadata.generation,
        )

    def _not_ready(
        self,
        source: GitSource,
        reason: str,
        message: str,
        inventory: tuple[InventoryEntry, ...],
        revision: str,
    ) -> _Outcome:
        condition = Condition(
            READY, "False", reason, message, observed_generation=source.metadata.generation
        )
        return _Outcome(condition, revision, inventory, min(source.interval_s, _RETRY_S))

    def _write(self, source: GitSource, outcome: _Outcome) -> None:
        before = source.conditions.get(READY)
        if (
            outcome.condition.says_the_same_as(before)
            and outcome.revision == source.applied_revision
            and outcome.inventory == source.inventory
            and source.observed_generation == source.metadata.generation
        ):
            return
        body = {
            "apiVersion": OWN_API_VERSION,
            "kind": "GitSource",
            "metadata": source.metadata.identity(),
            "status": {
                "conditions": render_conditions(
                    [outcome.condition],
                    previous=source.conditions,
                    now=to_time(self.clock.now()),
                ),
                "observedGeneration": source.metadata.generation,
                "lastAppliedRevision": outcome.revision,
                "inventory": [e.to_object() for e in outcome.inventory],
            },
        }
        try:
            self.client.apply(
                GIT_SOURCES,
                body,
                field_manager=CONTROLLER_MANAGER,
                subresource="status",
                force=True,
            )
        except (NotFound, Conflict):
            return


def _is_part_of(wanted: Any, live: Any) -> bool:  # noqa: ANN401 - JSON trees
    """Whether applying ``wanted`` would change nothing; the server has filled defaults in."""
    if isinstance(wanted, dict) and isinstance(live, dict):
        return all(key in live and _is_part_of(value, live[key]) for key, value in wanted.items())
    return bool(wanted == live)
