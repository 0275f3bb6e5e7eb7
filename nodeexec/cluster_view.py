# SPDX-License-Identifier: Apache-2.0
"""What the agent sees of the cluster: the Pods of its own node, and all of podsnap's objects.

Answers come from caches filled by watches, so that a decision costs no API call. Only a Pod that
the cache does not have yet is looked up live, with a bound, because the sandbox of a Pod is
sometimes made before its watch event arrives.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from backends.kube.client import (
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    POD_SNAPSHOTS,
    PODS,
    KubeClient,
)
from backends.kube.errors import ApiError, NotFound
from backends.kube.reflector import Reflector, ReflectorSet
from policies.selection import governing_policy
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.snapshot import Snapshot
from schemas.storage_config import StorageConfig

LIVE_GET_LIMIT_S = 0.05

Changed = Callable[[Any, Any], None]


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who is called with (old, new) after a cache changed; ``None`` stands for absent."""

    pod: Changed
    snapshot: Changed


class ClusterView(ReflectorSet):
    """Caches of everything the agent decides by."""

    def __init__(self, client: KubeClient, node: str, listeners: Listeners) -> None:
        """Nothing is watched before ``start``."""
        self._client = client
        self.pods: Reflector[Pod] = Reflector(
            client,
            PODS,
            field_selector=f"spec.nodeName={node}",
            project=Pod.parse,
            on_change=listeners.pod,
        )
        self.snapshots: Reflector[Snapshot] = Reflector(
            client, POD_SNAPSHOTS, project=Snapshot.parse, on_change=listeners.snapshot
        )
        self.policies: Reflector[Policy] = Reflector(
            client, POD_SNAPSHOT_POLICIES, project=Policy.parse
        )
        self.storage_configs: Reflector[StorageConfig] = Reflector(
            client, POD_SNAPSHOT_STORAGE_CONFIGS, project=StorageConfig.parse
        )
        super().__init__(self.pods, self.snapshots, self.policies, self.storage_configs)

    def pod(self, namespace: str, name: str, uid: str) -> Pod | None:
        """Return the Pod with this UID; a missing one is asked for once, within 50 ms."""
        cached = self.pods.store.get(namespace, name)
        if cached is not None and cached.metadata.uid == uid:
            return cached
        try:
            raw = self._client.get(PODS, name, namespace=namespace, timeout_s=LIVE_GET_LIMIT_S)
        except ApiError:
            return None
        live = Pod.parse(raw)
        return live if live.metadata.uid == uid else None

    def pod_for_certain(self, namespace: str, name: str, uid: str) -> Pod | None:
        """Return the Pod with this UID; ``None`` only if the API server says that it is gone.

        Raises:
            ApiError: the API server did not answer.
        """
        cached = self.pods.store.get(namespace, name)
        if cached is not None and cached.metadata.uid == uid:
            return cached
        try:
            live = Pod.parse(self._client.get(PODS, name, namespace=namespace))
        except NotFound:
            return None
        return live if live.metadata.uid == uid else None

    def live_snapshot(self, known: Snapshot) -> Snapshot | None:
        """Return a snapshot as the API server has it now, ``None`` if it is gone.

        Raises:
            ApiError: the API server did not answer.
        """
        try:
            raw = self._client.get(
                POD_SNAPSHOTS, known.metadata.name, namespace=known.metadata.namespace
            )
        except NotFound:
            return None
        live = Snapshot.parse(raw)
        return live if live.metadata.uid == known.metadata.uid else None

    def policy_of(self, pod: Pod) -> Policy | None:
        """Return the policy that governs a Pod."""
        return governing_policy(pod, self.policies.store.items())

    def storage_of(self, policy: Policy) -> StorageConfig | None:
        """Return the storage config that a policy names, if it exists."""
        return self.storage_configs.store.get("", policy.storage_config_name)
