# SPDX-License-Identifier: Apache-2.0
"""Storage configs: is the bucket fit for snapshots, and what would be better?

The bucket is asked about itself at every look; what podsnap may do in it is tried much less often,
because that makes and deletes an object. Saves and restores wait only for what makes them
impossible.
"""

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from backends.clock import Clock
from backends.kube.client import POD_SNAPSHOT_STORAGE_CONFIGS, KubeClient
from backends.kube.errors import Conflict, NotFound
from backends.objects.bucket_probe import (
    PROBE_PREFIX,
    probe_deletion,
    probe_list,
    probe_writes,
)
from backends.objects.interface import (
    BucketDescription,
    BucketMissing,
    ObjectStore,
    PermissionDenied,
    StoreError,
    StoreUnavailable,
)
from nodeexec.upload import CLUSTER_KEY
from policies.bucket_review import BucketFacts, Step, conditions_of, review_bucket
from reconciler.cluster_cache import ClusterCache
from reconciler.controller import Key
from schemas.conditions import Condition, render_conditions
from schemas.instants import to_time
from schemas.names import API_VERSION, AS_RECOMMENDED, CONTROLLER_MANAGER, READY
from schemas.storage_config import Location, StorageConfig

log = logging.getLogger(__name__)

CHECK_INTERVAL_S: Final = 30.0
PROBE_INTERVAL_S: Final = 300.0

OpenStore = Callable[[Location], ObjectStore]
# A store as a Pod's identity sees it, ``None`` where nobody here may act as one.
PodSideStore = Callable[[StorageConfig], ObjectStore | None]


@dataclass(frozen=True, slots=True)
class Rights:
    """What was tried: the error of each step, as a Pod's identity and as our own."""

    pod_side: dict[Step, str] | None
    own: dict[Step, str]

    @property
    def are_whole(self) -> bool:
        """Whether nothing went wrong."""
        return not any([*(self.pod_side or {}).values(), *self.own.values()])


@dataclass(slots=True)
class StorageController:
    """Reconciles PodSnapshotStorageConfigs."""

    client: KubeClient
    cache: ClusterCache
    clock: Clock
    cluster_id: str
    open_store: OpenStore
    pod_side_store: PodSideStore = lambda _config: None
    region: Callable[[], str] = str
    # The ServiceAccount as which the Pod's side was opened last, empty if as no tenant's.
    pod_identity: Callable[[StorageConfig], str] = lambda _config: ""
    # Why the sweep removes nothing there, empty if it does.
    sweep_stopped: Callable[[StorageConfig], str] = lambda _config: ""
    # By UID: when it was tried, for which generation, and what came of it.
    _tried: dict[str, tuple[float, int, Rights]] = field(default_factory=dict)
    # By UID: when its conditions were written last.
    _written_s: dict[str, float] = field(default_factory=dict)
    # A probe's name that somebody could know before could be taken.
    _suffix: str = field(default_factory=lambda: f"-{secrets.token_hex(4)}")

    def reconcile(self, key: Key) -> float | None:
        """Look at the bucket and say how it is."""
        config = self.cache.storage_configs.store.get(*key)
        if config is None or config.metadata.is_deleting:
            return None
        generation = config.metadata.generation
        if config.location is None:
            message = "no bucket is named; set spec.snapshotStorageConfig.gcs.bucket"
            self._write(config, (Condition(READY, "False", "NoBucket", message, "", generation),))
            return None
        if config.path_error:
            wrong = Condition(READY, "False", "InvalidPath", config.path_error, "", generation)
            self._write(config, (wrong,))
            return None
        facts = look(config.location, self.open_store, self._rights_of(config), self.region)
        if facts.missing:
            self._tried.pop(config.metadata.uid, None)
        facts = replace(
            facts,
            pod_identity=self.pod_identity(config),
            sweep_stopped=self.sweep_stopped(config),
        )
        findings = review_bucket(facts)
        self._write(config, conditions_of(facts, findings, generation))
        return CHECK_INTERVAL_S / 3 if any(f.blocks for f in findings) else CHECK_INTERVAL_S

    def _rights_of(self, config: StorageConfig) -> Callable[[ObjectStore], Rights]:
        def rights(own: ObjectStore) -> Rights:
            uid, generation = config.metadata.uid, config.metadata.generation
            now_s = self.clock.monotonic_s()
            at_s, tried_for, known = self._tried.get(uid, (0.0, -1, None))
            if known is not None and tried_for == generation:
                wait_s = PROBE_INTERVAL_S if known.are_whole else CHECK_INTERVAL_S
                if now_s - at_s < wait_s:
                    return known
            try:
                found = try_rights(
                    config,
                    own,
                    lambda: self.pod_side_store(config),
                    {CLUSTER_KEY: self.cluster_id},
                    suffix=self._suffix,
                )
            except StoreUnavailable as error:
                if known is None or tried_for != generation:
                    raise
                log.info("%s: rights could not be tried: %s", config.location, error)
                return known
            self._tried[uid] = (now_s, generation, found)
            return found

        return rights

    def _write(self, config: StorageConfig, conditions: tuple[Condition, ...]) -> None:
        """Apply both conditions at once: what an apply leaves out is removed."""
        before = config.conditions
        said = {c.type for c in conditions}
        uid, now_s = config.metadata.uid, self.clock.monotonic_s()
        is_whole = AS_RECOMMENDED in said or AS_RECOMMENDED not in before
        if is_whole and all(_judges_alike(c, before.get(c.type)) for c in conditions):
            # An error's text may differ every time, as by the id of a request.
            is_late = now_s - self._written_s.get(uid, float("-inf")) >= PROBE_INTERVAL_S
            if not is_late or all(c.says_the_same_as(before[c.type]) for c in conditions):
                return
        self._written_s[uid] = now_s
        body = {
            "apiVersion": API_VERSION,
            "kind": POD_SNAPSHOT_STORAGE_CONFIGS.kind,
            "metadata": config.metadata.identity(),
            "status": {
                "conditions": render_conditions(
                    conditions, previous=before, now=to_time(self.clock.now())
                ),
                "observedGeneration": config.metadata.generation,
            },
        }
        try:
            self.client.apply(
                POD_SNAPSHOT_STORAGE_CONFIGS,
                body,
                field_manager=CONTROLLER_MANAGER,
                subresource="status",
                force=True,
            )
        except (NotFound, Conflict):
            return  # deleted meanwhile


def _judges_alike(new: Condition, old: Condition | None) -> bool:
    return old is not None and (new.status, new.reason, new.observed_generation) == (
        old.status,
        old.reason,
        old.observed_generation,
    )


def look(
    location: Location,
    open_store: OpenStore,
    rights_in: Callable[[ObjectStore], Rights],
    region: Callable[[], str],
    *,
    who: str = "",
) -> BucketFacts:
    """Gather what is judged of a bucket; no error of the store leaves here.

    ``who`` is one person who tries all rights, instead of Pods and controller.
    """
    described, denied = BucketDescription(), ""
    try:
        store = open_store(location)
        try:
            described = store.describe()
        except PermissionDenied as error:
            denied = str(error)
        rights = rights_in(store)
    except BucketMissing as error:
        return BucketFacts(location, missing=str(error))
    except StoreUnavailable as error:
        return BucketFacts(location, unreachable=str(error))
    except StoreError as error:
        return BucketFacts(location, refused=str(error))
    return BucketFacts(
        location,
        may_not_describe=denied,
        bucket_location=described.location,
        hierarchical_namespace=described.hierarchical_namespace,
        uniform_access=described.uniform_access,
        soft_delete_s=described.soft_delete_s,
        region=region() if described.location else "",
        pod_side=rights.pod_side,
        own=rights.own,
        who=who,
    )


def try_rights(
    config: StorageConfig,
    own: ObjectStore,
    pod_side: Callable[[], ObjectStore | None],
    marks: dict[str, str],
    *,
    suffix: str = "",
) -> Rights:
    """Try what a Pod's identity and our own need; ``suffix`` keeps two that try apart.

    Raises:
        StoreUnavailable: the bucket, or who makes tokens for it, did not answer.
        BucketMissing: there is none.
    """
    location = config.location or Location("")
    name = location.below(f"{PROBE_PREFIX}{config.metadata.uid}{suffix}").path
    as_own = {
        Step.LIST: probe_list(own, f"{location.path}/" if location.path else ""),
        Step.DELETE: probe_deletion(own, f"{name}-none"),
    }
    as_pod: dict[Step, str] | None
    try:
        store = pod_side()
    except StoreUnavailable:
        raise
    except StoreError as error:
        as_pod = {Step.CREATE: str(error)}
    else:
        as_pod = None
        if store is not None:
            created, read, deleted = probe_writes(store, name, marks)
            as_pod = {Step.CREATE: created, Step.GET: read, Step.DELETE: deleted}
    return Rights(as_pod, as_own)
