# SPDX-License-Identifier: Apache-2.0
"""Token requests: an agent asks, the leader judges, mints and seals; each is answered once.

An answer is for good. So PodSnapshot and Pod are read from the API server itself, and what caches
say of policies and storage configs suffices to grant, not to refuse: then these are read as well.
The trap: a token in clear exists in this process's memory alone; it goes into no object, log or
error.
"""

import base64
import contextlib
import json
import logging
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from backends.clock import Clock
from backends.kube.client import (
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    POD_SNAPSHOT_TOKEN_REQUESTS,
    POD_SNAPSHOTS,
    PODS,
    SERVICE_ACCOUNTS,
    KubeClient,
)
from backends.kube.errors import ApiError, Conflict, NotFound, ServerUnavailable, TooManyRequests
from backends.objects.access_token import AccessToken, TokenSource
from backends.objects.interface import PermissionDenied, StoreError
from backends.objects.workload_identity import WorkloadIdentity
from backends.token_sealing import SealError, seal
from nodeexec.bucket_tokens import UseTokens
from policies.selection import governing_policy
from policies.token_grants import (
    SIGHTING_REFRESH_S,
    Grant,
    GrantFacts,
    Refusal,
    awaits_sighting,
    judge,
    new_sighting,
    service_account,
    sighting_of,
)
from reconciler.cluster_cache import ClusterCache
from reconciler.controller import Key
from schemas.conditions import Condition, render_conditions
from schemas.instants import to_time
from schemas.names import API_VERSION, CONTROLLER_MANAGER, READY, SERVICE_ACCOUNT_ANNOTATION
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.snapshot import Snapshot
from schemas.storage_config import Location, StorageConfig
from schemas.token_request import UNAVAILABLE, Role, TokenRequest

log = logging.getLogger(__name__)

# An agent that lives deletes its request within half a minute.
REQUEST_LIFE_S: Final = 300.0
_KUBERNETES_TOKEN_S: Final = 3600
# As on GKE: the Google service account that a ServiceAccount acts as.
GOOGLE_ACCOUNT_ANNOTATION: Final = "iam.gke.io/gcp-service-account"
FEDERATED_P4SA: Final = "federatedP4SA"
# A tenant writes it, and it goes into a URL and into a command that a person is told to run.
_GOOGLE_ACCOUNT: Final = re.compile(r"[a-z0-9][a-z0-9.-]*@[a-z0-9.-]+\.gserviceaccount\.com")
# Until a Pod is seen whose save is claimed; the cache is behind by less, as a rule.
_LOOK_AGAIN_S: Final = 2.0
_NODE_BUSY_S: Final = 0.1


class Mint(Protocol):
    """Who makes access tokens (``backends.objects.gcs.credentials``)."""

    def federated(
        self, kubernetes_token: str, *, namespace: str, account: str, impersonate: str = ""
    ) -> AccessToken:
        """Exchange a Kubernetes token."""
        ...

    def downscoped(self, location: Location, role: Role) -> AccessToken:
        """Return the controller's own right on one folder."""
        ...


@dataclass(slots=True)
class TokenRequestController:
    """Reconciles PodSnapshotTokenRequests; ``mint`` is made when it is first needed."""

    client: KubeClient
    cache: ClusterCache
    clock: Clock
    identity: WorkloadIdentity
    mint: Callable[[], Mint]
    _guard: threading.Lock = field(default_factory=threading.Lock)
    # By storage config: where and as whom its bucket is looked at.
    _checks: dict[str, tuple[tuple[object, ...], str, UseTokens]] = field(default_factory=dict)
    _first_seen_s: dict[Key, float] = field(default_factory=dict)
    _busy_nodes: set[str] = field(default_factory=set)

    def reconcile(self, key: Key) -> float | None:
        """Answer one request, or remove it where nobody picked the answer up.

        Its age counts from when it was seen here first: the API server's clock may be another.
        Requests of one node are answered one after the other, so that none takes all threads.
        """
        request = self.cache.token_requests.store.get(*key)
        if request is None or request.metadata.is_deleting:
            self._first_seen_s.pop(key, None)
            return None
        now_s = self.clock.monotonic_s()
        left_s = self._first_seen_s.setdefault(key, now_s) + REQUEST_LIFE_S - now_s
        if left_s <= 0:
            self._remove(request)
            return None
        if request.is_answered:
            return left_s
        with self._guard:
            if request.node_name in self._busy_nodes:
                return _NODE_BUSY_S
            self._busy_nodes.add(request.node_name)
        try:
            self._answer(request)
        finally:
            with self._guard:
                self._busy_nodes.discard(request.node_name)
        return left_s

    def look_at_save(self, key: Key) -> float | None:
        """Note on a PodSnapshot as whom its Pod runs, while that can be seen."""
        snapshot = self.cache.snapshots.store.get(*key)
        if snapshot is None or snapshot.capture is None or not awaits_sighting(snapshot):
            return None
        pod = self.cache.pods.store.by_uid(snapshot.capture.pod_uid)
        self._note_sighting(snapshot, pod, self.cache.policies.store.items())
        if sighting_of(snapshot) is None:
            return _LOOK_AGAIN_S
        return SIGHTING_REFRESH_S if pod is not None else None

    def pod_side_tokens(self, config: StorageConfig) -> TokenSource | None:
        """Return the tokens of some Pod that the bucket is for, to see whether they would do.

        ``None`` where there is none: no Pod that a policy with this config governs.
        """
        mints = config.token_source == FEDERATED_P4SA or self.identity.provider
        if config.location is None or not mints:
            return None  # without a provider agents are whoever their nodes are
        location, namespace, pod = config.location, "", None
        if config.token_source != FEDERATED_P4SA:
            pod = self._some_pod(config)
            if pod is None:
                return None
            namespace = pod.metadata.namespace
        account = service_account(pod) if pod else ""
        key, name = (location, config.token_source), f"{namespace}/{account}" if pod else ""
        with self._guard:
            known = self._checks.get(config.metadata.uid)
            if known is None or known[:2] != (key, name):
                grant = Grant(
                    location, Role.CHECKPOINT, config.token_source, account, bound_to=None
                )
                tokens = UseTokens(lambda: self._mint(namespace, grant), self.clock)
                known = self._checks[config.metadata.uid] = (key, name, tokens)
            return known[2]

    def pod_identity(self, config: StorageConfig) -> str:
        """Return the ServiceAccount that ``pod_side_tokens`` last gave tokens of.

        Empty where these were the controller's own, as every Pod's then are.
        """
        with self._guard:
            known = self._checks.get(config.metadata.uid)
        return known[1] if known else ""

    def _some_pod(self, config: StorageConfig) -> Pod | None:
        policies = [
            p
            for p in self.cache.policies.store.items()
            if p.storage_config_name == config.metadata.name and config.allows(p.metadata.namespace)
        ]
        return next(
            (
                pod
                for pod in self.cache.pods.store.items()
                if pod.node_name
                and not pod.is_over
                and (governing := governing_policy(pod, policies)) is not None
                and self.cache.policy_of(pod) == governing
            ),
            None,
        )

    def _answer(self, request: TokenRequest) -> None:
        facts = self._facts(request)
        found = judge(facts)
        if isinstance(found, Refusal):
            facts = self._with_live_rules(self._facts(request))
            found = judge(facts)
        try:
            if isinstance(found, Refusal):
                self._refuse(request, found)
                return
            if facts.snapshot is not None and request.role is Role.CHECKPOINT:
                self._note_sighting(facts.snapshot, facts.pod, facts.policies)
            token = self._mint(request.metadata.namespace, found)
            left_s = token.expires_s - self.clock.now().timestamp()
            # How long it lasts, not until when: the node's clock may be another.
            answer = json.dumps({"accessToken": token.value, "expiresIn": left_s}).encode()
            sealed = seal(answer, request.public_key, context=request.sealing_context)
        except PermissionDenied as error:
            self._refuse(request, Refusal("TokenRefused", str(error)))
        except StoreError as error:
            self._refuse(request, Refusal(UNAVAILABLE, str(error)))
        except SealError as error:
            self._refuse(request, Refusal("InvalidKey", str(error)))
        else:
            self._write(
                request,
                Condition(READY, "True", "Granted", f"for {found.location.url}"),
                sealedToken=base64.b64encode(sealed).decode(),
                expiresAt=to_time(datetime.fromtimestamp(token.expires_s, UTC)),
            )

    def _facts(self, request: TokenRequest) -> GrantFacts:
        namespace = request.metadata.namespace
        snapshot = self._live(POD_SNAPSHOTS, request.snapshot_name, namespace)
        pod = self._live(PODS, request.pod_name, namespace)
        return GrantFacts(
            request=request,
            snapshot=Snapshot.parse(snapshot) if snapshot else None,
            pod=Pod.parse(pod) if pod else None,
            policies=tuple(
                p for p in self.cache.policies.store.items() if p.metadata.namespace == namespace
            ),
            configs=tuple(self.cache.storage_configs.store.items()),
            now=self.clock.now(),
            misnamed=self._misnamed(request),
            namesakes=tuple(
                s
                for s in self.cache.snapshots.store.items()
                if s.metadata.name == request.snapshot_name and s.metadata.namespace != namespace
            ),
        )

    def _with_live_rules(self, facts: GrantFacts) -> GrantFacts:
        namespace = facts.request.metadata.namespace
        policies, _ = self.client.list(POD_SNAPSHOT_POLICIES, namespace=namespace)
        configs, _ = self.client.list(POD_SNAPSHOT_STORAGE_CONFIGS)
        return replace(
            facts,
            policies=tuple(map(Policy.parse, policies)),
            configs=tuple(map(StorageConfig.parse, configs)),
        )

    def _misnamed(self, request: TokenRequest) -> Pod | None:
        """Return the Pod with the request's UID, if that lives and is called otherwise."""
        known = self.cache.pods.store.by_uid(request.pod_uid)
        if known is None or known.metadata.key == (request.metadata.namespace, request.pod_name):
            return None
        live = self._live(PODS, known.metadata.name, known.metadata.namespace)
        pod = Pod.parse(live) if live else None
        return pod if pod is not None and pod.metadata.uid == request.pod_uid else None

    def _live(self, resource: Any, name: str, namespace: str) -> dict[str, Any] | None:  # noqa: ANN401
        try:
            return self.client.get(resource, name, namespace=namespace) if name else None
        except (NotFound, ValueError):  # a name may be anything
            return None

    def _mint(self, namespace: str, grant: Grant) -> AccessToken:
        if grant.token_source == FEDERATED_P4SA:
            return self.mint().downscoped(grant.location, grant.role)
        if not self.identity.provider:
            raise PermissionDenied(
                "this cluster is not known to Google Cloud, so no Pod can be told apart there; "
                "start the controller with --workload-identity-provider, or set tokenSource "
                f"{FEDERATED_P4SA} in the PodSnapshotStorageConfig"
            )
        account = grant.service_account
        spec: dict[str, Any] = {
            "audiences": [self.identity.token_audience],
            "expirationSeconds": _KUBERNETES_TOKEN_S,
        }
        if grant.bound_to is not None:
            pod = grant.bound_to.metadata
            spec["boundObjectRef"] = {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": pod.name,
                "uid": pod.uid,
            }
        try:
            known = self.client.get(SERVICE_ACCOUNTS, account, namespace=namespace)
            impersonate = self._google_account(known)
            token = self.client.service_account_token(namespace, account, spec)
        except NotFound as error:
            raise PermissionDenied(
                f"ServiceAccount {namespace}/{account} or its Pod is gone: {error}"
            ) from None
        except (ServerUnavailable, TooManyRequests):
            raise  # asked again with back-off; the agent still waits
        except ApiError as error:
            raise PermissionDenied(
                f"no token of ServiceAccount {namespace}/{account}: {error}"
            ) from None
        return self.mint().federated(
            token, namespace=namespace, account=account, impersonate=impersonate
        )

    def _google_account(self, known: Mapping[str, Any]) -> str:
        metadata = known["metadata"]
        email: str = (metadata.get("annotations") or {}).get(GOOGLE_ACCOUNT_ANNOTATION, "")
        if email and not _GOOGLE_ACCOUNT.fullmatch(email):
            raise PermissionDenied(
                f"the annotation {GOOGLE_ACCOUNT_ANNOTATION} of ServiceAccount "
                f"{metadata['namespace']}/{metadata['name']} is no e-mail address of a Google "
                "service account; write NAME@PROJECT.iam.gserviceaccount.com or remove it"
            )
        return email or self.identity.impersonate

    def _note_sighting(
        self, snapshot: Snapshot, pod: Pod | None, policies: Iterable[Policy]
    ) -> None:
        seen = new_sighting(snapshot, pod, policies, self.clock.now())
        if seen is None:
            return
        metadata = snapshot.metadata
        # Gone by now: then nothing of it is to be stored either.
        with contextlib.suppress(NotFound, Conflict):
            self.client.merge_patch(
                POD_SNAPSHOTS,
                metadata.name,
                {
                    "metadata": {
                        "annotations": {SERVICE_ACCOUNT_ANNOTATION: seen.to_annotation()},
                        "uid": metadata.uid,
                    }
                },
                namespace=metadata.namespace,
                field_manager=CONTROLLER_MANAGER,
            )

    def _refuse(self, request: TokenRequest, refusal: Refusal) -> None:
        log.warning(
            "node %s gets no token to %s PodSnapshot %s/%s: %s: %s",
            request.node_name,
            request.role,
            request.metadata.namespace,
            request.snapshot_name,
            refusal.reason,
            refusal.message,
        )
        self._write(request, Condition(READY, "False", refusal.reason, refusal.message))

    def _write(self, request: TokenRequest, condition: Condition, **status: str) -> None:
        now = to_time(self.clock.now())
        conditions = render_conditions([condition], previous={}, now=now)
        body = {
            "apiVersion": API_VERSION,
            "kind": "PodSnapshotTokenRequest",
            "metadata": request.metadata.identity(),
            "status": {**status, "conditions": conditions},
        }
        with contextlib.suppress(NotFound, Conflict):  # nobody waits, or it was answered
            self.client.apply(
                POD_SNAPSHOT_TOKEN_REQUESTS,
                body,
                field_manager=CONTROLLER_MANAGER,
                subresource="status",
                unless=lambda live: TokenRequest.parse(live).is_answered,
            )

    def _remove(self, request: TokenRequest) -> None:
        metadata = request.metadata
        with contextlib.suppress(NotFound, Conflict):
            self.client.delete(
                POD_SNAPSHOT_TOKEN_REQUESTS,
                metadata.name,
                namespace=metadata.namespace,
                uid=metadata.uid,
            )
