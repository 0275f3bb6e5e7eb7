# SPDX-License-Identifier: Apache-2.0
"""Who mints which token: a real API server and its real tokens, doubles of STS, IAM and the bucket.

The controller and the agent have their own rights (``deploy/rbac.yaml``); the service account
tokens are signed by the API server, and the token service checks them by its published keys.
"""

import base64
import json
import re
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import requests
from cluster_world import World, eventually, resource_of
from kube_apiserver import ApiServer
from stepped_clock import SteppedClock

from backends.clock import SystemClock
from backends.kube.client import (
    POD_SNAPSHOT_STORAGE_CONFIGS,
    POD_SNAPSHOT_TOKEN_REQUESTS,
    POD_SNAPSHOTS,
    PODS,
    SERVICE_ACCOUNTS,
    KubeClient,
)
from backends.objects.access_token import AccessToken
from backends.objects.factory import BucketAccess, open_store
from backends.objects.gcs.credentials import TokenExchange
from backends.objects.interface import PermissionDenied, StoreError, StoreUnavailable
from backends.objects.workload_identity import WorkloadIdentity
from backends.token_sealing import OneTimeKey
from nodeexec.bucket_stores import BucketUse, NodeStores
from nodeexec.bucket_tokens import BucketTokens
from nodeexec.capture_status import CaptureStatus
from reconciler.manager import Manager, ManagerSettings
from reconciler.token_request_controller import (
    GOOGLE_ACCOUNT_ANNOTATION,
    REQUEST_LIFE_S,
    TokenRequestController,
)
from schemas.instants import to_micro_time
from schemas.names import (
    CONTROLLER_SERVICE_ACCOUNT,
    ORIGIN_NODE_ANNOTATION,
    ORIGIN_POD_UID_ANNOTATION,
    SERVICE_ACCOUNT_ANNOTATION,
    SYSTEM_NAMESPACE,
)
from schemas.snapshot import CaptureRecord, Snapshot
from schemas.storage_config import Location
from schemas.token_request import Role, TokenRequest
from statemachine.snapshot import State
from tests.gcs.iam import POD_PERMISSIONS, ROLES
from tests.gcs.server import CloudStorageDouble, running_cloud_storage

POOL = "projects/1/locations/global/workloadIdentityPools/pool"
PROVIDER = f"//iam.googleapis.com/{POOL}/providers/cluster"
OWN = (
    f"principal://iam.googleapis.com/{POOL}/subject/"
    f"system:serviceaccount:{SYSTEM_NAMESPACE}:{CONTROLLER_SERVICE_ACCOUNT}"
)
GOOGLE_ACCOUNT = "shop@project.iam.gserviceaccount.com"


@pytest.fixture(scope="module")
def google(
    api_server: ApiServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CloudStorageDouble]:
    """The token service, IAM and Cloud Storage; a pool knows the API server's keys."""
    with running_cloud_storage(tmp_path_factory.mktemp("google")) as double:
        double.tokens.keys = requests.get(
            f"{api_server.url}/openid/v1/jwks",
            headers={"Authorization": f"Bearer {api_server.tokens['admin']}"},
            verify=str(api_server.authority),
            timeout=5,
        ).json()
        double.tokens.issuer = "https://kubernetes.default.svc"
        yield double


@pytest.fixture(scope="module")
def own_credentials(
    google: CloudStorageDouble, admin: KubeClient, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The controller's Application Default Credentials: its own token, exchanged as any Pod's."""
    directory = tmp_path_factory.mktemp("own")
    (directory / "token").write_text(
        admin.service_account_token(
            SYSTEM_NAMESPACE, CONTROLLER_SERVICE_ACCOUNT, {"audiences": [PROVIDER]}
        ),
        encoding="utf-8",
    )
    config = {
        "type": "external_account",
        "audience": PROVIDER,
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"{google.url}/v1/token",
        "credential_source": {"file": str(directory / "token")},
    }
    path = directory / "credentials.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def manager(
    controller_client: KubeClient,
    google: CloudStorageDouble,
    own_credentials: Path,
) -> Iterator[Manager]:
    """A controller that the pool knows, with credentials of its own."""
    identity = WorkloadIdentity(provider=PROVIDER, sts_url=google.url, iam_url=google.url)
    settings = ManagerSettings(
        cluster_id="c1",
        buckets=BucketAccess(endpoint=google.url),
        identity="tests",
        workload_identity=identity,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(own_credentials))
        patch.setenv("GOOGLE_CLOUD_PROJECT", "project")  # else Google is asked for its name
        running = Manager(settings, controller_client, SystemClock())
        running.start()
        eventually(lambda: running.is_leader and running.is_ready(), "the manager leads")
        yield running
        running.stop()


@dataclass(slots=True)
class Shop:
    """A namespace with a bucket, a ServiceAccount ``shop``, and an agent of ``node-1``."""

    world: World
    agent: KubeClient
    google: CloudStorageDouble
    stores: NodeStores

    @property
    def principal(self) -> str:
        """How IAM calls the ServiceAccount."""
        subject = f"system:serviceaccount:{self.world.namespace}:shop"
        return f"principal://iam.googleapis.com/{POOL}/subject/{subject}"

    def storage(self, token_source: str = "podKSA") -> None:  # noqa: S107 - the name of a mode
        """Create the bucket and its storage config, and a policy."""
        self.google.objects.create_bucket(self.world.bucket.name)
        self.google.access.allow(OWN, *ADMIN_PERMISSIONS, bucket=self.world.bucket.name)
        gcs = {"bucket": self.world.bucket.name, "path": "team-a", "tokenSource": token_source}
        body = self.world.object(
            "PodSnapshotStorageConfig", self.world.store, {"snapshotStorageConfig": {"gcs": gcs}}
        )
        del body["metadata"]["namespace"]
        self.world.create(POD_SNAPSHOT_STORAGE_CONFIGS, body)
        self.world.policy()

    def claimed(self, pod: str = "web-0", **spec: Any) -> BucketUse:  # noqa: ANN401 - PodSpec fields
        """Make a Pod and a snapshot of it that node-1 has claimed, and what it stores it by."""
        uid = self.world.pod(pod, serviceAccountName="shop", **spec)["metadata"]["uid"]
        name = str(uuid.uuid4())
        body = self.world.object("PodSnapshot", name, {"policyName": "web"})
        body["metadata"]["annotations"] = {
            ORIGIN_NODE_ANNOTATION: "node-1",
            ORIGIN_POD_UID_ANNOTATION: uid,
        }
        made = Snapshot.parse(self.world.create(POD_SNAPSHOTS, body))
        clock = SystemClock()
        record = CaptureRecord(
            node="node-1",
            attempt=1,
            pod_name=pod,
            pod_uid=uid,
            claimed_at=to_micro_time(clock.now()),
            location=Location(self.world.bucket.name, f"team-a/{name}"),
        )
        assert record.location is not None
        status = CaptureStatus(self.agent, clock)
        snapshot = status.write(made, record, State.CHECKPOINTING, "it is being saved")
        return BucketUse(record.location, Role.CHECKPOINT, snapshot, pod, uid)

    def requests(self) -> list[dict[str, Any]]:
        """Return the token requests that there are."""
        return self.world.admin.list(POD_SNAPSHOT_TOKEN_REQUESTS, namespace=self.world.namespace)[0]

    def annotate(self, email: str) -> None:
        """Name a Google service account on the ServiceAccount."""
        self.world.admin.merge_patch(
            SERVICE_ACCOUNTS,
            "shop",
            {"metadata": {"annotations": {GOOGLE_ACCOUNT_ANNOTATION: email}}},
            namespace=self.world.namespace,
            field_manager="t",
        )

    def forget(self) -> None:
        """Have the agent start again: what it knows of tokens and failures is gone."""
        assert self.stores.tokens is not None
        self.stores.tokens = BucketTokens(self.agent, "node-1", SystemClock())

    def token(self, use: BucketUse) -> AccessToken:
        """Return a token as the agent gets it."""
        found = self.stores.token_for(use)
        assert found is not None
        return found


ADMIN_PERMISSIONS = ROLES["roles/storage.admin"]


@pytest.fixture
def shop(
    world: World, manager: Manager, agent_client: KubeClient, google: CloudStorageDouble
) -> Iterator[Shop]:
    """A namespace of the test's own."""
    assert manager.is_leader
    account = {"apiVersion": "v1", "kind": "ServiceAccount"}
    world.create(
        SERVICE_ACCOUNTS,
        {**account, "metadata": {"name": "shop", "namespace": world.namespace}},
    )
    tokens = BucketTokens(agent_client, "node-1", SystemClock())
    yield Shop(world, agent_client, google, NodeStores(BucketAccess(endpoint=google.url), tokens))
    google.heal()


def test_a_pods_own_identity_stores_its_save(shop: Shop) -> None:
    """The how-to's rights are enough; the request is gone, and the next use asks nobody."""
    shop.storage()
    use = shop.claimed()
    shop.google.access.allow(
        shop.principal, *POD_PERMISSIONS, bucket=shop.world.bucket.name, prefix="team-a/"
    )
    token = shop.token(use)
    assert shop.google.access.principal_of(token.value) == shop.principal
    assert shop.requests() == []
    store = shop.stores.open(use)
    name = f"{use.location.path}/manifest.json"
    store.put_bytes(name, b"{}", if_generation_match=0, metadata={})
    assert shop.google.objects.read(shop.world.bucket.name, name) == b"{}"
    assert shop.token(use) is token


def test_what_stands_in_the_answer_is_of_use_to_the_asker_alone(shop: Shop) -> None:
    """No token is in clear in the object, and the answer is never given twice."""
    shop.storage()
    key = OneTimeKey()
    asked = ask(shop, shop.claimed(), key)
    answered = answer(shop, asked)
    text = json.dumps(answered)
    found = TokenRequest.parse(answered)
    opened = json.loads(key.open(found.sealed, context=found.sealing_context))
    principal = shop.google.access.principal_of(opened["accessToken"])
    assert (principal, opened["accessToken"] in text) == (shop.principal, False)
    assert 3590 < opened["expiresIn"] <= 3600
    assert found.conditions["Ready"].reason == "Granted"


def ask(shop: Shop, use: BucketUse, key: OneTimeKey, node: str = "node-1") -> dict[str, Any]:
    """Create a request as an agent does, and leave it there."""
    spec = {
        "nodeName": node,
        "role": str(use.role),
        "snapshot": {"name": use.snapshot.metadata.name},
        "pod": {"name": use.pod_name, "uid": use.pod_uid},
        "publicKey": base64.b64encode(key.public).decode(),
    }
    body = shop.world.object("PodSnapshotTokenRequest", "left", spec)
    return shop.agent.create(POD_SNAPSHOT_TOKEN_REQUESTS, body, field_manager="t")


def answer(shop: Shop, asked: dict[str, Any]) -> dict[str, Any]:
    """Wait until a request is answered, and return it."""
    name = asked["metadata"]["name"]

    def found() -> dict[str, Any] | None:
        one = shop.world.get(POD_SNAPSHOT_TOKEN_REQUESTS, name) or {}
        return one if one.get("status") else None

    answered: dict[str, Any] = eventually(found, "the request is answered")
    return answered


def test_a_service_account_acts_as_the_google_account_that_it_names(shop: Shop) -> None:
    """As on GKE; without the binding the message has the command for it."""
    shop.storage()
    shop.annotate(GOOGLE_ACCOUNT)
    use = shop.claimed()
    with pytest.raises(PermissionDenied) as caught:
        shop.token(use)
    assert (
        f"gcloud iam service-accounts add-iam-policy-binding {GOOGLE_ACCOUNT} "
        f"--role=roles/iam.workloadIdentityUser --member='{shop.principal}'"
    ) in str(caught.value)
    assert shop.requests() == []
    shop.google.tokens.allow_impersonation(shop.principal, GOOGLE_ACCOUNT)
    shop.forget()
    token = shop.token(use)
    assert shop.google.access.principal_of(token.value) == f"serviceAccount:{GOOGLE_ACCOUNT}"


def test_what_a_tenant_writes_as_a_google_account_is_in_no_url_and_no_command(shop: Shop) -> None:
    """A person would run that command; an empty one is none."""
    shop.storage()
    use = shop.claimed()
    shop.annotate("x@y.iam.gserviceaccount.com; sh")
    named = f"of ServiceAccount {shop.world.namespace}/shop is no e-mail address"
    with pytest.raises(PermissionDenied, match=named) as caught:
        shop.token(use)
    assert "; sh" not in str(caught.value)
    shop.annotate("")
    shop.forget()
    assert shop.google.access.principal_of(shop.token(use).value) == shop.principal


def test_a_token_of_the_controllers_right_reaches_one_folder(shop: Shop) -> None:
    """The Pod's identity has no rights at all; the token ends at the snapshot's own folder."""
    shop.storage("federatedP4SA")
    use = shop.claimed()
    store = shop.stores.open(use)
    name = f"{use.location.path}/manifest.json"
    info = store.put_bytes(name, b"{}", if_generation_match=0, metadata={})
    assert store.describe()
    with pytest.raises(PermissionDenied, match=r"storage\.objects\.create"):
        store.put_bytes("team-a/x", b"", if_generation_match=0, metadata={})
    with pytest.raises(PermissionDenied, match=r"storage\.objects\.list"):
        next(iter(store.list(f"{use.location.path}/")))
    store.delete(name, if_generation_match=info.generation)


def test_a_token_for_a_bucket_without_a_folder_reaches_all_of_it(shop: Shop) -> None:
    """And no object is called ``/x``."""
    exchange = TokenExchange(WorkloadIdentity(sts_url=shop.google.url), SystemClock())
    shop.storage("federatedP4SA")
    token = exchange.downscoped(Location(shop.world.bucket.name), Role.CHECKPOINT)
    store = open_store(shop.world.bucket.name, shop.stores.access, tokens=lambda: token)
    assert store.put_bytes("x", b"", if_generation_match=0, metadata={})


def test_a_token_to_restore_by_cannot_write(shop: Shop) -> None:
    """Of the controller's right it has the reading part."""
    exchange = TokenExchange(WorkloadIdentity(sts_url=shop.google.url), SystemClock())
    shop.storage("federatedP4SA")
    location = Location(shop.world.bucket.name, "team-a/one")
    token = exchange.downscoped(location, Role.RESTORE)
    shop.google.objects.put(location.bucket, "team-a/one/part", b"bytes", {})
    store = open_store(location.bucket, shop.stores.access, tokens=lambda: token)
    found = store.stat("team-a/one/part")
    assert found is not None
    read = store.read_range("team-a/one/part", generation=found.generation, start=0, end=5)
    assert read == b"bytes"
    with pytest.raises(PermissionDenied):
        store.put_bytes("team-a/one/new", b"", if_generation_match=0, metadata={})
    with pytest.raises(PermissionDenied):
        store.stat("team-a/two/part")


def test_a_pod_that_has_gone_is_still_stored_as_whom_it_ran(shop: Shop) -> None:
    """The controller noted that while the Pod lived; nobody had to ask in time."""
    shop.storage()
    use = shop.claimed()
    name = use.snapshot.metadata.name

    def noted() -> str:
        found = shop.world.get(POD_SNAPSHOTS, name) or {}
        return str(found["metadata"]["annotations"].get(SERVICE_ACCOUNT_ANNOTATION, ""))

    seen = eventually(noted, "the Pod was seen")
    assert seen.startswith(f"shop/{use.pod_uid}/node-1/")
    with pytest.raises(PermissionDenied, match=r"PodMisnamed: .* is .*/web-0"):
        shop.token(replace(use, pod_name="gone"))
    shop.forget()
    shop.world.admin.delete(PODS, use.pod_name, namespace=shop.world.namespace)
    token = shop.token(use)
    assert shop.google.access.principal_of(token.value) == shop.principal


def test_a_node_that_asks_for_another_ones_pod_is_refused(shop: Shop) -> None:
    """The reason stands in what it raises; the request is gone all the same."""
    shop.storage()
    use = shop.claimed(nodeName="node-2")
    with pytest.raises(PermissionDenied, match="PodElsewhere: Pod web-0 is on node-2"):
        shop.token(use)
    assert shop.requests() == []


def test_a_folder_that_another_namespaces_snapshot_has_is_nobodys(
    shop: Shop, manager: Manager
) -> None:
    """Names are folders, and an agent may have made that snapshot to get at this one's bytes."""
    shop.storage()
    use = shop.claimed()
    other = replace(shop.world, namespace=f"{shop.world.namespace}-b")
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other.namespace}}
    other.create(resource_of(body), body)
    other.policy()
    named = other.object("PodSnapshot", use.snapshot.metadata.name, {"policyName": "web"})
    named["metadata"]["annotations"] = {
        ORIGIN_NODE_ANNOTATION: "node-1",
        ORIGIN_POD_UID_ANNOTATION: other.pod("web-0")["metadata"]["uid"],
    }
    made = Snapshot.parse(other.create(POD_SNAPSHOTS, named))
    assert use.snapshot.capture is not None
    CaptureStatus(shop.agent, SystemClock()).write(
        made, use.snapshot.capture, State.CHECKPOINTING, "it is being saved"
    )

    def is_seen() -> bool:
        found = manager.cache.snapshots.store.get(*made.metadata.key)
        return found is not None and found.capture is not None

    eventually(is_seen, "the other snapshot is seen")
    with pytest.raises(PermissionDenied, match=f"FolderShared: .* {other.namespace}/"):
        shop.token(use)


def test_an_agent_that_ends_while_it_asks_is_no_refusal(shop: Shop) -> None:
    """The next one asks again, so nothing that was saved is given up; the request is gone."""
    shop.storage()
    stopped = threading.Event()
    stopped.set()
    tokens = BucketTokens(shop.agent, "node-1", SystemClock(), stopped)
    with pytest.raises(StoreUnavailable, match="the agent ends"):
        tokens.source(shop.claimed())()
    assert shop.requests() == []


class DeletingClock(SystemClock):
    """Time in which somebody deletes all requests of a namespace."""

    def __init__(self, shop: Shop) -> None:
        """Of a shop's namespace."""
        self.shop = shop

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Let them be deleted, and no time pass."""
        for found in self.shop.requests():
            self.shop.world.admin.delete(
                POD_SNAPSHOT_TOKEN_REQUESTS,
                found["metadata"]["name"],
                namespace=self.shop.world.namespace,
            )
        return super().wait(event, timeout_s)


def test_a_request_that_somebody_deletes_is_no_refusal(shop: Shop) -> None:
    """It was not judged, so another one is made later."""
    shop.storage()
    tokens = BucketTokens(shop.agent, "node-1", DeletingClock(shop))
    with pytest.raises(StoreUnavailable, match="deleted by somebody else"):
        tokens.source(shop.claimed())()


def test_a_token_that_the_bucket_refuses_is_replaced_once(shop: Shop) -> None:
    """Clocks differ, or somebody revoked it; what was being done is done by the new one."""
    shop.storage()
    use = shop.claimed()
    shop.google.access.allow(shop.principal, *POD_PERMISSIONS, bucket=shop.world.bucket.name)
    store = shop.stores.open(use)
    store.put_bytes(f"{use.location.path}/a", b"", if_generation_match=0, metadata={})
    before = shop.token(use)
    shop.google.access.expire(shop.principal)
    store.put_bytes(f"{use.location.path}/b", b"", if_generation_match=0, metadata={})
    assert shop.token(use) != before
    assert shop.google.objects.read(shop.world.bucket.name, f"{use.location.path}/b") == b""


def test_a_token_service_that_is_away_is_asked_a_few_times_and_told_of(shop: Shop) -> None:
    """It is no refusal: who asked may ask again later."""
    shop.storage()
    use = shop.claimed()
    shop.google.fail("POST /v1/token", status=503, count=2)
    assert shop.token(use)
    other = shop.claimed("web-1")
    shop.google.fail("POST /v1/token", status=503, count=9)
    with pytest.raises(StoreUnavailable, match=r"TokenUnavailable: .* HTTP 503"):
        shop.token(other)
    shop.google.heal()
    shop.forget()
    assert shop.token(other)


def test_a_request_that_nobody_picks_up_is_removed_and_its_key_not_believed(
    shop: Shop, manager: Manager, controller_client: KubeClient
) -> None:
    """A bad key is refused by name; after five minutes a dead agent's request is gone."""
    shop.storage()
    key = OneTimeKey()
    key.public = b"short"  # type: ignore[misc] # what a broken agent would send
    answered = answer(shop, ask(shop, shop.claimed(), key))
    assert TokenRequest.parse(answered).conditions["Ready"].reason == "InvalidKey"
    clock = SteppedClock(SystemClock().now())
    late = TokenRequestController(
        controller_client, manager.cache, clock, WorkloadIdentity(), lambda: pytest.fail("no mint")
    )
    where = (shop.world.namespace, "left")
    eventually(lambda: manager.cache.token_requests.store.get(*where), "the request is seen")
    # However old it is by the clock of this machine.
    clock.step(REQUEST_LIFE_S)
    assert late.reconcile(where) == REQUEST_LIFE_S
    clock.step(REQUEST_LIFE_S)
    assert late.reconcile(where) is None
    assert shop.requests() == []


def test_a_bucket_is_looked_at_as_some_pod_that_it_is_for(
    shop: Shop, manager: Manager, controller_client: KubeClient
) -> None:
    """With none there is nobody to be; the token is kept from one look to the next."""
    identity = WorkloadIdentity(provider=PROVIDER, sts_url=shop.google.url)
    clock = SystemClock()
    exchange = TokenExchange(identity, clock)
    controller = TokenRequestController(
        controller_client, manager.cache, clock, identity, lambda: exchange
    )
    shop.storage()
    configs, pods = manager.cache.storage_configs.store, manager.cache.pods.store
    config = eventually(lambda: configs.get("", shop.world.store), "the config is seen")
    assert controller.pod_side_tokens(config) is None
    shop.world.pod(serviceAccountName="shop")
    eventually(lambda: pods.get(shop.world.namespace, "web-0"), "the Pod is seen")
    tokens = controller.pod_side_tokens(config)
    assert tokens is not None
    assert shop.google.access.principal_of(tokens().value) == shop.principal
    assert controller.pod_side_tokens(config) is tokens
    assert controller.pod_identity(config) == f"{shop.world.namespace}/shop"


def test_a_pool_that_does_not_know_the_cluster_says_where_to_look(shop: Shop) -> None:
    """And no part of a token stands in what it says."""
    exchange = TokenExchange(
        WorkloadIdentity(provider=PROVIDER, sts_url=shop.google.url), SystemClock()
    )
    token = shop.world.admin.service_account_token(
        shop.world.namespace, "shop", {"audiences": ["//iam.googleapis.com/else"]}
    )
    with pytest.raises(PermissionDenied, match="workload-identity-pools providers describe") as why:
        exchange.federated(token, namespace=shop.world.namespace, account="shop")
    assert not set(token.split(".")) & set(re.split(r"[\s.'\"]+", str(why.value)))


def test_a_controller_without_credentials_of_its_own_says_so(tmp_path: Path) -> None:
    """The file that is named is not there."""
    exchange = TokenExchange(WorkloadIdentity(), SystemClock())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing"))
        with pytest.raises(StoreError, match="no credentials of its own"):
            exchange.downscoped(Location("bucket-1", "a"), Role.RESTORE)
