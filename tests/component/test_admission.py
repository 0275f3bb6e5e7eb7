# SPDX-License-Identifier: Apache-2.0
"""Who writes what, enforced for real: ``deploy/`` as installed, real tokens, the real collectors.

A server of its own, because here nobody is above the rules; elsewhere the tests' administrator
makes PodSnapshots as it likes.
"""

import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_world import World, eventually, resource_of
from kube_apiserver import ApiServer, run_apiserver

from backends.kube.client import (
    LEASES,
    POD_SNAPSHOT_TOKEN_REQUESTS,
    POD_SNAPSHOTS,
    PODS,
    SERVICE_ACCOUNTS,
    KubeClient,
    Resource,
)
from backends.kube.errors import Forbidden, NotFound
from localcluster.programs import manifests
from localcluster.toolchain import Toolchain
from schemas.names import (
    ABANDON_BYTES_ANNOTATION,
    ACCESS_MANAGER,
    AGENT_MANAGER,
    AGENT_SERVICE_ACCOUNT,
    CAPTURE_MANAGER,
    CONTROLLER_MANAGER,
    CONTROLLER_SERVICE_ACCOUNT,
    DAMAGE_MANAGER,
    FINALIZER,
    NODE_LEASE_PREFIX,
    ORIGIN_NODE_ANNOTATION,
    QUARANTINE_ANNOTATION,
    QUARANTINE_LIFTED,
    SERVICE_ACCOUNT_ANNOTATION,
    STORED_UID_ANNOTATION,
    SYSTEM_NAMESPACE,
    TRIGGER_TYPE_ANNOTATION,
)

LIMIT_S = 30
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
POLICIES = Resource(
    "admissionregistration.k8s.io",
    "v1",
    "validatingadmissionpolicies",
    "ValidatingAdmissionPolicy",
    namespaced=False,
)
COLLECTORS = (
    "garbage-collector-controller",
    "namespace-controller",
    "validatingadmissionpolicy-status-controller",  # checks expressions against the kinds
)
UNAUTHORIZED = 401
ALSO_THERE = """
apiVersion: v1
kind: Namespace
metadata: {name: people}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: alice, namespace: people}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: snapshot-user}
rules:
  - apiGroups: [podsnapshot.gke.io]
    resources:
      - podsnapshots
      - podsnapshots/status
      - podsnapshottokenrequests
      - podsnapshottokenrequests/status
    verbs: [get, list, create, update, patch, delete]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: snapshot-user}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: snapshot-user}
subjects:
  - {kind: ServiceAccount, name: alice, namespace: people}
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: gvisor}
handler: runsc
---
apiVersion: v1
kind: Node
metadata: {name: node-1}
---
apiVersion: v1
kind: Node
metadata: {name: node-2}
"""
ALICE = "system:serviceaccount:people:alice"
CONTROLLER, AGENT_1, AGENT_2, ADRIFT = "controller", "agent of node-1", "agent of node-2", "adrift"
USER = "alice"
IDENTITIES = {
    USER: ("people", "alice", ""),
    CONTROLLER: (SYSTEM_NAMESPACE, CONTROLLER_SERVICE_ACCOUNT, ""),
    AGENT_1: (SYSTEM_NAMESPACE, AGENT_SERVICE_ACCOUNT, "node-1"),
    AGENT_2: (SYSTEM_NAMESPACE, AGENT_SERVICE_ACCOUNT, "node-2"),
    ADRIFT: (SYSTEM_NAMESPACE, AGENT_SERVICE_ACCOUNT, ""),
}


@dataclass(frozen=True, slots=True)
class Guarded:
    """The server under ``deploy/``, and everybody's client."""

    server: ApiServer
    tools: Toolchain
    clients: dict[str, KubeClient]

    def kubectl(self, *arguments: str, user: str = "admin", text: str = "") -> str:
        """Run the real kubectl as somebody."""
        done = subprocess.run(
            [
                str(self.tools.path("kubectl")),
                f"--kubeconfig={self.server.kubeconfig(user)}",
                f"--cache-dir={self.server.directory}/cache",
                *arguments,
            ],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
        assert not done.returncode, done.stderr
        return done.stdout

    def token(self, namespace: str, account: str, node: str) -> str:
        """Return a real token of a service account, bound to a node if one is given."""
        tokens = Resource("", "v1", f"serviceaccounts/{account}/token", "TokenRequest")
        bound = {"boundObjectRef": {"apiVersion": "v1", "kind": "Node", "name": node}}
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "metadata": {"namespace": namespace},
            "spec": bound if node else {},
        }
        made = self.clients["admin"].create(tokens, body, field_manager="tests")
        token: str = made["status"]["token"]
        return token


@contextmanager
def collectors(guarded: Guarded) -> Iterator[None]:
    """Run the cluster's controllers that have to do with our rules, each with its own account."""
    config = yaml.safe_load(guarded.server.kubeconfig("admin").read_text(encoding="utf-8"))
    config["users"][0]["user"]["as"] = "system:kube-controller-manager"
    path = guarded.server.directory / "controller-manager.kubeconfig"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    argv = [
        str(guarded.tools.path("kube-controller-manager")),
        f"--kubeconfig={path}",
        f"--controllers={','.join(COLLECTORS)}",
        "--use-service-account-credentials",
        f"--service-account-private-key-file={guarded.server.directory / 'sa.key'}",
        "--leader-elect=false",
        "--secure-port=0",
    ]
    with (
        (guarded.server.directory / "controller-manager.log").open("wb") as log,
        subprocess.Popen(argv, stdout=log, stderr=log) as process,
    ):
        try:
            yield
        finally:
            process.kill()


@pytest.fixture(scope="module")
def guarded(toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """The server with everything that is installed on a cluster, once it is in force."""
    if "kube-controller-manager" in toolchain.missing():
        pytest.skip("kube-controller-manager not built; run `make tools`")
    for server in run_apiserver(tmp_path_factory.mktemp("guarded")):
        made = Guarded(server, toolchain, {"admin": server.client()})
        files = [argument for path in manifests() for argument in ("-f", str(path))]
        made.kubectl("apply", "--server-side", *files)
        made.kubectl("apply", "--server-side", "-f", "-", text=ALSO_THERE)
        for who, (namespace, account, node) in IDENTITIES.items():
            server.tokens[who] = made.token(namespace, account, node)
            made.clients[who] = server.client(who)
        eventually(partial(is_in_force, made), "the policies are in force")
        with collectors(made):
            yield made


def is_in_force(guarded: Guarded) -> bool:
    """Tell whether each policy refuses what it exists for."""
    snapshot = {
        "apiVersion": "podsnapshot.gke.io/v1",
        "kind": "PodSnapshot",
        "metadata": {"name": "probe", "namespace": "people"},
        "spec": {"policyName": "web"},
    }
    request = {
        **snapshot,
        "kind": "PodSnapshotTokenRequest",
        "spec": {"nodeName": "node-1", "role": "restore", "snapshot": {"name": "x"}},
    }
    probes = [
        ("admin", POD_SNAPSHOTS, snapshot),
        ("admin", POD_SNAPSHOT_TOKEN_REQUESTS, request),
        (ADRIFT, LEASES, lease("probe")),
    ]
    for who, resource, body in probes:
        try:
            guarded.clients[who].create(resource, body, field_manager="tests")
        except Forbidden:
            continue
        except NotFound:
            return False  # the kind is not served yet
        namespace = body["metadata"]["namespace"]
        guarded.clients["admin"].delete(resource, "probe", namespace=namespace)
        return False
    return True


def lease(name: str) -> dict[str, Any]:
    """Return a lease of podsnap's namespace."""
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": SYSTEM_NAMESPACE},
        "spec": {"holderIdentity": "x"},
    }


# -- what there is, and what is done to it


@pytest.fixture
def place(guarded: Guarded, tmp_path: Path) -> World:
    """A namespace with two snapshots and three Pods.

    ``free`` is claimed by nobody and ``taken`` by node-1; ``pod-1`` and ``pod-2`` run on the nodes
    of their numbers, ``pod-0`` on none. The agent of node-1 has ``asked`` for a token.
    """
    admin = guarded.clients["admin"]
    namespace = f"t{uuid.uuid4().hex[:10]}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    admin.create(resource_of(body), body, field_manager="tests")
    world = World(admin, namespace, tmp_path / "bucket")
    for name in ("free", "taken"):
        guarded.clients[CONTROLLER].create(
            POD_SNAPSHOTS, snapshot(world, name), field_manager=CONTROLLER_MANAGER
        )
    write_status(guarded.clients[AGENT_1], world, "taken", progress("node-1", "InProgress"))
    asks("node-1", "asked")(guarded.clients[AGENT_1], world)
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "shop"}}
    account["metadata"] |= {"namespace": namespace}
    admin.create(SERVICE_ACCOUNTS, account, field_manager="tests")
    for number, node in enumerate(("", "node-1", "node-2")):
        world.pod(f"pod-{number}", **({"nodeName": node} if node else {"nodeName": None}))
    return world


def snapshot(world: World, name: str, **annotations: str) -> dict[str, Any]:
    """Return a PodSnapshot to be created."""
    body = world.object("PodSnapshot", name, {"policyName": "web"})
    body["metadata"] |= {"finalizers": [FINALIZER], "annotations": {"a": "1", **annotations}}
    return body


def condition(kind: str, reason: str, status: str = "False") -> dict[str, str]:
    """Return a condition."""
    at = "2026-01-01T00:00:00Z"
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": "",
        "lastTransitionTime": at,
    }


def progress(node: str, reason: str) -> dict[str, Any]:
    """Return the status that a saving node writes."""
    return {
        "conditions": [condition("Checkpoint", reason)],
        "podsnap": {"version": 1, "capture": {"node": node, "attempt": 1}},
    }


def write_status(
    client: KubeClient,
    world: World,
    name: str,
    status: dict[str, Any],
    *,
    manager: str = CAPTURE_MANAGER,
) -> None:
    """Apply a part of a snapshot's status."""
    body = {**world.object("PodSnapshot", name, None), "status": status}
    client.apply(POD_SNAPSHOTS, body, field_manager=manager, subresource="status", force=True)


Act = Callable[[KubeClient, World], object]


def creates(**annotations: str) -> Act:
    """Create a PodSnapshot with annotations; ``name`` is its name."""
    names = {
        "node": ORIGIN_NODE_ANNOTATION,
        "trigger": TRIGGER_TYPE_ANNOTATION,
        "account": SERVICE_ACCOUNT_ANNOTATION,
        "stored": STORED_UID_ANNOTATION,
    }
    name = annotations.pop("name", "11111111-1111-5111-8111-111111111111")
    given = {names[key]: value for key, value in annotations.items()}
    return lambda client, world: client.create(
        POD_SNAPSHOTS, snapshot(world, name, **given), field_manager="t"
    )


def edits(patch: dict[str, Any], name: str = "taken") -> Act:
    """Merge a patch into a snapshot."""
    return lambda client, world: client.merge_patch(
        POD_SNAPSHOTS, name, patch, namespace=world.namespace, field_manager="t"
    )


def annotates(**annotations: str | None) -> Act:
    """Set annotations: ``quarantine`` and ``abandon`` are those that users may set."""
    keys = {"quarantine": QUARANTINE_ANNOTATION, "abandon": ABANDON_BYTES_ANNOTATION}
    return edits({"metadata": {"annotations": {keys.get(k, k): v for k, v in annotations.items()}}})


def reports(name: str, manager: str = CAPTURE_MANAGER, **status: Any) -> Act:  # noqa: ANN401 - any JSON
    """Apply a status to a snapshot."""
    return lambda client, world: write_status(client, world, name, status, manager=manager)


def deletes(resource: Resource, name: str) -> Act:
    """Delete an object."""
    return lambda client, world: client.delete(resource, name, namespace=world.namespace)


def tells(name: str, *conditions: dict[str, str], **parts: Any) -> Act:  # noqa: ANN401 - any JSON
    """Apply conditions, and other parts, through the status of a Pod."""

    def act(client: KubeClient, world: World) -> None:
        metadata = {"name": name, "namespace": world.namespace, **parts.get("metadata", {})}
        status = {"conditions": list(conditions), **parts.get("status", {})}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status}
        client.apply(PODS, body, field_manager=AGENT_MANAGER, subresource="status", force=True)

    return act


def renews(name: str) -> Act:
    """Apply a lease."""
    return lambda client, _world: client.apply(LEASES, lease(name), field_manager="t", force=True)


def asks(node: str, name: str = "new") -> Act:
    """Create a request for a bucket's token."""

    def act(client: KubeClient, world: World) -> None:
        spec = {"nodeName": node, "role": "restore", "snapshot": {"name": "taken"}}
        body = world.object("PodSnapshotTokenRequest", name, spec)
        client.create(POD_SNAPSHOT_TOKEN_REQUESTS, body, field_manager="t")

    return act


def answers(client: KubeClient, world: World) -> None:
    """Apply the answer to the request that there is."""
    status = {"conditions": [condition("Ready", "Granted", "True")], "sealedToken": "AAAA"}
    body = {**world.object("PodSnapshotTokenRequest", "asked", None), "status": status}
    client.apply(POD_SNAPSHOT_TOKEN_REQUESTS, body, field_manager="t", subresource="status")


def mints(*audiences: str, kind: str = "", life_s: int = 600) -> Act:
    """Have a token of a ServiceAccount made, for whom nobody checks here."""

    def act(client: KubeClient, world: World) -> None:
        spec: dict[str, Any] = {"audiences": list(audiences), "expirationSeconds": life_s}
        if kind:
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": kind, "name": "pod-1"}
        assert client.service_account_token(world.namespace, "shop", spec)

    return act


def both(first: Act, second: Act) -> Act:
    """Do one thing, then the other."""

    def act(client: KubeClient, world: World) -> None:
        first(client, world)
        second(client, world)

    return act


PROVIDER = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/c"
ONLY_GOOGLE = (
    "podsnap's controller asks for tokens for a workload identity provider of Google Cloud alone, "
    "not for {}"
)
RESTORED = condition("PodRestored", "Restored", "True")
SEALED = progress("node-1", "Succeeded")
DAMAGE = {"podsnap": {"damage": {"message": "m"}}}
FAILURES = {"podsnap": {"failures": {"11111111-1111-1111-1111-111111111111": "m"}}}
RESTORING = {
    "podName": "pod-2",
    "node": "node-2",
    "phase": "Fetching",
    "startedAt": "2026-01-01T00:00:00.000000Z",
}
STAYS = "a PodSnapshot stays as podsnap made it, so " + ALICE + " cannot change its {}"
STAYS += "; what may be changed is: annotation podsnap.dev/quarantine"
STAYS += ", annotation podsnap.dev/abandon-bytes"
BY_CLAIM = "; the agent of node-2 may claim what nobody has, and report on its own"
THE_CONTROLLERS = (
    "status.podsnap.control, status.observedGeneration and all conditions but Checkpoint and "
    "StorageReplicated are the controller's"
)
NOT_MADE_BY_AGENT = (
    "the agent of node-2 makes PodSnapshots only with annotation podsnapshot.gke.io/origin-node: "
    "node-2 and annotation podsnap.dev/trigger-type: onDelete; all others are the controller's"
)
ONLY_RESTORED = (
    "the agent of node-2 writes the conditions PodRestored and podsnap.dev/PagesLocal of Pods of "
    "its own node, and nothing else; this Pod {}"
)
NO_NODE = (
    "this agent's token names no node, so nothing is known to be the agent's own; give it the "
    "token of a Pod, or one bound to its Node (kubectl create token podsnap-agent "
    "-n podsnap-system --bound-object-kind Node --bound-object-name NAME)"
)

ALLOWED: dict[str, tuple[str, Act]] = {
    "a user lifts a quarantine": (USER, annotates(quarantine=QUARANTINE_LIFTED)),
    "a user takes that back": (
        USER,
        both(annotates(quarantine=QUARANTINE_LIFTED), annotates(quarantine=None)),
    ),
    "a user writes what is there": (USER, annotates(a="1")),
    "a user abandons the bytes": (USER, annotates(abandon="true")),
    "a user deletes": (USER, deletes(POD_SNAPSHOTS, "taken")),
    "the controller creates": (CONTROLLER, creates()),
    "the controller lets go": (CONTROLLER, edits({"metadata": {"finalizers": []}})),
    "the controller judges": (
        CONTROLLER,
        reports("taken", conditions=[condition("Ready", "X")], podsnap={"control": {"x": "y"}}),
    ),
    "the controller takes a save away": (
        CONTROLLER,
        reports("taken", CONTROLLER_MANAGER, podsnap={"capture": {"node": "none"}}),
    ),
    "an agent claims what nobody has": (
        AGENT_2,
        reports("free", **progress("node-2", "InProgress")),
    ),
    "an agent goes on with its own": (AGENT_1, reports("taken", **SEALED)),
    "an agent tells of an access": (
        AGENT_2,
        reports(
            "taken",
            ACCESS_MANAGER,
            lastAccessTime="2026-01-01T00:00:00Z",
            podsnap={"restoredBy": {"node-2": 3}},
        ),
    ),
    "an agent tells how far a restore is": (
        AGENT_2,
        reports("taken", AGENT_MANAGER, podsnap={"restores": {"uid": RESTORING}}),
    ),
    "an agent tells of damage": (AGENT_2, reports("taken", DAMAGE_MANAGER, **DAMAGE)),
    "an agent tells of a failed restore": (
        AGENT_2,
        reports("taken", "podsnap-failures", **FAILURES),
    ),
    "an agent makes the snapshot of a parting Pod": (
        AGENT_2,
        creates(node="node-2", trigger="onDelete"),
    ),
    "an agent tells that its Pod was restored": (AGENT_2, tells("pod-2", RESTORED)),
    "an agent takes that back": (AGENT_2, both(tells("pod-2", RESTORED), tells("pod-2"))),
    "an agent deletes its Pod": (AGENT_2, deletes(PODS, "pod-2")),
    "an agent renews its lease": (AGENT_2, renews(f"{NODE_LEASE_PREFIX}node-2")),
    "an agent asks for a token": (AGENT_2, asks("node-2")),
    "an agent takes its request back": (AGENT_1, deletes(POD_SNAPSHOT_TOKEN_REQUESTS, "asked")),
    "the controller answers it": (CONTROLLER, answers),
    "the controller removes it": (CONTROLLER, deletes(POD_SNAPSHOT_TOKEN_REQUESTS, "asked")),
    "the controller mints for a provider": (CONTROLLER, mints(PROVIDER)),
    "the controller mints for GKE's pool": (CONTROLLER, mints("shop.svc.id.goog")),
}
REFUSED: dict[str, tuple[str, Act, str]] = {
    "a user creates": (
        USER,
        creates(),
        f"PodSnapshots are made by podsnap alone, so {ALICE} cannot create one; create a "
        "PodSnapshotManualTrigger to have a Pod saved",
    ),
    "a user poses as an agent's request": (
        USER,
        creates(node="node-2", trigger="onDelete"),
        f"PodSnapshots are made by podsnap alone, so {ALICE} cannot create one; create a "
        "PodSnapshotManualTrigger to have a Pod saved",
    ),
    "a user writes the status": (
        USER,
        reports("taken", **SEALED),
        "the status of a PodSnapshot says what podsnap has done and is written by podsnap alone, "
        f"so {ALICE} cannot change it; delete the PodSnapshot if it should go",
    ),
    "a user edits labels": (
        USER,
        edits({"metadata": {"labels": {"x": "y"}}}),
        STAYS.format("labels"),
    ),
    "a user removes the finalizer": (
        USER,
        edits({"metadata": {"finalizers": None}}),
        STAYS.format("finalizers"),
    ),
    "a user adds an owner": (
        USER,
        edits(
            {
                "metadata": {
                    "ownerReferences": [
                        {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "y"}
                    ]
                }
            }
        ),
        STAYS.format("ownerReferences"),
    ),
    "a user changes an annotation": (USER, annotates(a="2"), STAYS.format("annotation a")),
    "a user removes an annotation": (USER, annotates(a=None), STAYS.format("annotation a")),
    "a user adds an annotation beside the open one": (
        USER,
        annotates(quarantine=QUARANTINE_LIFTED, b="1"),
        STAYS.format("annotation b"),
    ),
    "a user edits two things": (
        USER,
        edits({"metadata": {"labels": {"x": "y"}, "annotations": {"a": "2"}}}),
        STAYS.format("labels, annotation a"),
    ),
    "an administrator creates": (
        "admin",
        creates(),
        "PodSnapshots are made by podsnap alone, so admin cannot create one; create a "
        "PodSnapshotManualTrigger to have a Pod saved",
    ),
    "an agent writes progress of another node's save": (
        AGENT_2,
        reports("taken", **SEALED),
        f"the save of this PodSnapshot is claimed by node-1{BY_CLAIM}",
    ),
    "an agent counts for another node": (
        AGENT_2,
        reports("taken", ACCESS_MANAGER, podsnap={"restoredBy": {"node-1": 3}}),
        f"the save of this PodSnapshot is claimed by node-1{BY_CLAIM}",
    ),
    "an agent takes another node's save": (
        AGENT_2,
        reports("taken", **progress("node-2", "InProgress")),
        f"the save of this PodSnapshot is claimed by node-1, and would be by node-2{BY_CLAIM}",
    ),
    "an agent frees another node's save": (
        AGENT_2,
        reports("taken", observedCheckpointRetryCount=1),
        f"the save of this PodSnapshot is claimed by node-1, and would be by none{BY_CLAIM}",
    ),
    "an agent claims in another node's name": (
        AGENT_2,
        reports("free", **progress("node-1", "InProgress")),
        f"the save of this PodSnapshot is claimed by no node, and would be by node-1{BY_CLAIM}",
    ),
    "an agent tells of damage and more": (
        AGENT_2,
        reports("taken", DAMAGE_MANAGER, **DAMAGE, conditions=[condition("Checkpoint", "Failed")]),
        f"the save of this PodSnapshot is claimed by node-1{BY_CLAIM}",
    ),
    "an agent says Ready": (
        AGENT_1,
        reports("taken", "t", conditions=[condition("Ready", "AllSnapshotsAvailable", "True")]),
        THE_CONTROLLERS,
    ),
    "an agent writes the controller's record": (
        AGENT_1,
        reports("taken", "t", podsnap={"control": {"quarantine": ""}}),
        THE_CONTROLLERS,
    ),
    "an agent makes a snapshot of another node's Pod": (
        AGENT_2,
        creates(node="node-1", trigger="onDelete"),
        NOT_MADE_BY_AGENT,
    ),
    "an agent makes a manual snapshot": (
        AGENT_2,
        creates(node="node-2", trigger="manual"),
        NOT_MADE_BY_AGENT,
    ),
    "an agent makes a snapshot of nothing": (AGENT_2, creates(), NOT_MADE_BY_AGENT),
    "an agent writes another condition": (
        AGENT_2,
        tells("pod-2", condition("Ready", "X")),
        ONLY_RESTORED.format("is on node-2"),
    ),
    "an agent writes a phase": (
        AGENT_2,
        tells("pod-2", RESTORED, status={"phase": "Failed"}),
        ONLY_RESTORED.format("is on node-2"),
    ),
    "an agent labels a Pod through its status": (
        AGENT_2,
        tells("pod-2", RESTORED, metadata={"labels": {"x": "y"}}),
        ONLY_RESTORED.format("is on node-2"),
    ),
    "an agent tells of another node's Pod": (
        AGENT_2,
        tells("pod-1", RESTORED),
        ONLY_RESTORED.format("is on node-1"),
    ),
    "an agent deletes another node's Pod": (
        AGENT_2,
        deletes(PODS, "pod-1"),
        "the agent of node-2 deletes only Pods of its own node; this Pod is on node-1",
    ),
    "an agent deletes a Pod without a node": (
        AGENT_2,
        deletes(PODS, "pod-0"),
        "the agent of node-2 deletes only Pods of its own node; this Pod has no node",
    ),
    "an agent renews another node's lease": (
        AGENT_2,
        renews(f"{NODE_LEASE_PREFIX}node-1"),
        "the agent of node-2 writes only the lease podsnap-node-node-2",
    ),
    "an agent takes the leader's lease": (
        AGENT_2,
        renews("podsnap-controller"),
        "the agent of node-2 writes only the lease podsnap-node-node-2",
    ),
    "an agent says as whom a save is stored": (
        AGENT_2,
        creates(node="node-2", trigger="onDelete", account="shop/uid/node-2"),
        "the annotations podsnap.dev/service-account and podsnap.dev/stored-uid are written by "
        "the controller alone",
    ),
    "an agent chooses a snapshot's name": (
        AGENT_2,
        creates(node="node-2", trigger="onDelete", name="team-b"),
        "an agent gives a PodSnapshot the name that follows from its Pod's UID, which is a UUID of "
        "version 5",
    ),
    "an agent says whose bytes a snapshot has": (
        AGENT_2,
        creates(node="node-2", trigger="onDelete", stored="uid-of-another"),
        "the annotations podsnap.dev/service-account and podsnap.dev/stored-uid are written by "
        "the controller alone",
    ),
    "an agent asks for another node": (
        AGENT_2,
        asks("node-1"),
        "the agent of node-2 asks for tokens, and takes that back, with spec.nodeName: node-2; "
        "this request is of node-1",
    ),
    "an agent takes another node's request back": (
        AGENT_2,
        deletes(POD_SNAPSHOT_TOKEN_REQUESTS, "asked"),
        "the agent of node-2 asks for tokens, and takes that back, with spec.nodeName: node-2; "
        "this request is of node-1",
    ),
    "an agent of no node asks": (ADRIFT, asks(""), NO_NODE),
    "a user asks for a token": (
        USER,
        asks("node-1"),
        "PodSnapshotTokenRequests are made by podsnap's agents and answered by its controller, so "
        f"{ALICE} cannot create one",
    ),
    "a user answers a request": (
        USER,
        answers,
        "PodSnapshotTokenRequests are made by podsnap's agents and answered by its controller, so "
        f"{ALICE} cannot change one",
    ),
    "the controller mints for the API server": (
        CONTROLLER,
        mints("https://kubernetes.default.svc"),
        ONLY_GOOGLE.format("https://kubernetes.default.svc"),
    ),
    "the controller mints for the API server unsaid": (
        CONTROLLER,
        mints(),
        ONLY_GOOGLE.format("https://kubernetes.default.svc"),
    ),
    "the controller mints for both": (
        CONTROLLER,
        mints(PROVIDER, "https://kubernetes.default.svc"),
        ONLY_GOOGLE.format(f"{PROVIDER}, https://kubernetes.default.svc"),
    ),
    "the controller mints for long": (
        CONTROLLER,
        mints(PROVIDER, life_s=7200),
        "podsnap's controller asks for tokens of an hour at most",
    ),
    "the controller mints a node's token": (
        CONTROLLER,
        mints(PROVIDER, kind="Node"),
        "podsnap's controller asks for tokens that end with a Pod, or with no object",
    ),
    "an agent of no node claims": (ADRIFT, reports("free", **progress("", "InProgress")), NO_NODE),
    "an agent of no node deletes a Pod of none": (ADRIFT, deletes(PODS, "pod-0"), NO_NODE),
    "an agent of no node tells of a Pod": (ADRIFT, tells("pod-1", RESTORED), NO_NODE),
}


def seen(world: World) -> list[dict[str, Any]]:
    """Return all that the rules are about, without the server's own bookkeeping."""
    found = world.snapshots() + world.admin.list(PODS, namespace=world.namespace)[0]
    found += world.admin.list(POD_SNAPSHOT_TOKEN_REQUESTS, namespace=world.namespace)[0]
    found += world.admin.list(LEASES, namespace=SYSTEM_NAMESPACE)[0]
    for obj in found:
        del obj["metadata"]["managedFields"], obj["metadata"]["resourceVersion"]
    return found


@pytest.mark.parametrize("what", ALLOWED)
def test_each_may_do_its_own_part(guarded: Guarded, place: World, what: str) -> None:
    """And it takes effect: something is not as before, unless nothing was to change."""
    who, act = ALLOWED[what]
    before = seen(place)
    act(guarded.clients[who], place)
    assert (seen(place) != before) == (what not in UNCHANGED)


UNCHANGED = {
    "a user takes that back",
    "a user writes what is there",
    "an agent takes that back",
    "the controller mints for a provider",
    "the controller mints for GKE's pool",
}


@pytest.mark.parametrize("what", REFUSED)
def test_nobody_may_do_anothers(guarded: Guarded, place: World, what: str) -> None:
    """The message says who may not what, and what to do instead; nothing has changed."""
    who, act, message = REFUSED[what]
    before = seen(place)
    with pytest.raises(Forbidden) as caught:
        act(guarded.clients[who], place)
    assert str(caught.value).partition(" denied request: ")[2] == message
    assert seen(place) == before


@pytest.mark.parametrize(
    "name",
    ["podsnap-snapshots", "podsnap-agents", "podsnap-token-requests", "podsnap-controller-tokens"],
)
def test_the_rules_speak_of_fields_that_exist(guarded: Guarded, name: str) -> None:
    """As the cluster's own type check says."""

    def checked() -> dict[str, Any]:
        status = guarded.clients["admin"].get(POLICIES, name).get("status") or {}
        return status if "observedGeneration" in status else {}

    status = eventually(checked, "the expressions are checked")
    assert status["typeChecking"] == {}


def release(guarded: Guarded, place: World, name: str) -> None:
    """Let go of a snapshot, as the controller does once its bytes are gone."""
    guarded.clients[CONTROLLER].merge_patch(
        POD_SNAPSHOTS,
        name,
        {"metadata": {"finalizers": None}},
        namespace=place.namespace,
        field_manager=CONTROLLER_MANAGER,
    )


def test_a_user_deletes_in_the_foreground_and_the_collector_finishes_it(
    guarded: Guarded, place: World
) -> None:
    """Its finalizer is set by the server at the deletion and removed by the garbage collector."""
    release(guarded, place, "taken")
    uid = (place.get(POD_SNAPSHOTS, "taken") or {})["metadata"]["uid"]
    owner = {
        "apiVersion": "podsnapshot.gke.io/v1",
        "kind": "PodSnapshot",
        "name": "taken",
        "uid": uid,
        "blockOwnerDeletion": True,
    }
    place.create(CONFIG_MAPS, config_map(place, ownerReferences=[owner]))
    flags = ("-n", place.namespace, "--cascade=foreground", "--wait=false")
    guarded.kubectl("delete", "ps", "taken", *flags, user=USER)
    eventually(lambda: place.get(CONFIG_MAPS, "c") is None, "the dependent is gone")
    eventually(lambda: place.get(POD_SNAPSHOTS, "taken") is None, "the snapshot is gone")


def test_the_collector_forgets_an_owner_that_left_its_snapshots_behind(
    guarded: Guarded, place: World
) -> None:
    """It edits ``ownerReferences``, which no user may."""
    made = place.create(CONFIG_MAPS, config_map(place))
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": made["metadata"]["uid"]}
    guarded.clients[CONTROLLER].merge_patch(
        POD_SNAPSHOTS,
        "free",
        {"metadata": {"ownerReferences": [owner]}},
        namespace=place.namespace,
        field_manager=CONTROLLER_MANAGER,
    )
    guarded.kubectl("delete", "cm", "c", "-n", place.namespace, "--cascade=orphan", "--wait=false")
    eventually(lambda: place.get(CONFIG_MAPS, "c") is None, "the owner is gone")
    assert "ownerReferences" not in (place.get(POD_SNAPSHOTS, "free") or {})["metadata"]


def test_a_namespace_takes_its_snapshots_along_once_the_controller_lets_go(
    guarded: Guarded, place: World
) -> None:
    """The namespace controller deletes them, and only podsnap's controller ends that."""
    place.admin.delete(NAMESPACES, place.namespace)

    def is_marked(name: str) -> bool:
        return "deletionTimestamp" in (place.get(POD_SNAPSHOTS, name) or {})["metadata"]

    for name in ("free", "taken"):
        eventually(partial(is_marked, name), f"{name} is being deleted")
        release(guarded, place, name)
        assert place.get(POD_SNAPSHOTS, name) is None


def test_a_controller_manager_without_accounts_of_its_own_is_known_too(
    guarded: Guarded, place: World
) -> None:
    """There the garbage collector writes under the manager's name."""
    patch = '{"metadata":{"finalizers":null}}'
    manager = ("--as=system:kube-controller-manager", "--as-group=system:masters")
    flags = ("-n", place.namespace, "--type=merge", f"--patch={patch}")
    guarded.kubectl("patch", "ps", "taken", *flags, *manager)
    assert "finalizers" not in (place.get(POD_SNAPSHOTS, "taken") or {})["metadata"]


def test_an_agents_token_ends_with_its_node(guarded: Guarded, place: World) -> None:
    """A node of the same name that joins later is another node."""
    name = f"n-{place.namespace}"
    body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
    place.admin.create(NODES, body, field_manager="tests")
    # The server believes a token that it has seen for ten seconds more, so there are two.
    for user in ("leaving", "left"):
        guarded.server.tokens[user] = guarded.token(SYSTEM_NAMESPACE, AGENT_SERVICE_ACCOUNT, name)
    guarded.server.client("leaving").list(POD_SNAPSHOTS, namespace=place.namespace)
    place.admin.delete(NODES, name)
    place.admin.create(NODES, body, field_manager="tests")
    left = guarded.server.client("left")

    def is_refused() -> bool:
        try:
            left.list(POD_SNAPSHOTS, namespace=place.namespace)
        except Forbidden as error:
            return error.code == UNAUTHORIZED
        return False

    eventually(is_refused, "the token is refused")


def config_map(world: World, **metadata: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    """Return an object to own, or to be owned."""
    named = {"name": "c", "namespace": world.namespace, **metadata}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": named}
