# SPDX-License-Identifier: Apache-2.0
"""What the API server accepts, shows and allows: our CRDs and our RBAC, enforced for real."""

import copy
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from cluster_world import World
from kube_apiserver import ApiServer
from yaml_scalars import SCALARS

from backends.kube.client import (
    GIT_SOURCES,
    POD_SNAPSHOT_MANUAL_TRIGGERS,
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    POD_SNAPSHOTS,
    PODS,
    KubeClient,
    Resource,
)
from backends.kube.errors import AlreadyExists, ApiError, Conflict, Forbidden, Invalid, NotFound
from localcluster.toolchain import REPOSITORY, Toolchain
from schemas.crd_validation import findings
from schemas.documents import read_documents
from schemas.names import CAPTURE_MANAGER, CONTROLLER_MANAGER, OWN_API_VERSION

TOKEN_REQUESTS = Resource(
    "podsnapshot.gke.io", "v1", "podsnapshottokenrequests", "PodSnapshotTokenRequest"
)
SECRETS = Resource("", "v1", "secrets", "Secret")
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
LIMIT_S = 30
DEPLOY = REPOSITORY / "deploy"

POLICY: dict[str, Any] = {
    "selector": {"matchLabels": {"app": "web"}},
    "storageConfigName": "s",
    "triggerConfig": {"type": "manual"},
}
GCS: dict[str, Any] = {"snapshotStorageConfig": {"gcs": {"bucket": "my-bucket"}}}
TOKEN: dict[str, Any] = {"nodeName": "n", "role": "checkpoint", "snapshot": {"name": "s"}}
SOURCE: dict[str, Any] = {"url": "file:///srv/repository"}


def changed(spec: dict[str, Any], **paths: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    """Return a copy with ``a__b=value`` set, or removed where the value is ``...``."""
    out = copy.deepcopy(spec)
    for path, value in paths.items():
        *parents, last = path.split("__")
        node = out
        for step in parents:
            node = node.setdefault(step, {})
        if value is ...:
            del node[last]
        else:
            node[last] = value
    return out


def retention(text: str) -> dict[str, Any]:
    """Return a policy with a retention."""
    return changed(POLICY, retentionConfig__lastAccessTimeout=text)


P, S, T, K, G = (
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    POD_SNAPSHOT_MANUAL_TRIGGERS,
    TOKEN_REQUESTS,
    GIT_SOURCES,
)
GROUP = "snapshotGroupingRules__groupByLabelValue"
REF = {"branch": "main", "tag": "v1"}

ACCEPTED: dict[str, tuple[Resource, dict[str, Any] | None]] = {
    "a minimal policy": (P, POLICY),
    **{
        f"trigger type {kind}": (P, changed(POLICY, triggerConfig__type=kind))
        for kind in ("manual", "workload", "readinessProbe", "onDelete")
    },
    "scope rootfs-only": (P, changed(POLICY, snapshotScope="rootfs-only")),
    "postCheckpoint stop": (P, changed(POLICY, triggerConfig__postCheckpoint="stop")),
    **{f"retention {t}": (P, retention(t)) for t in ("30d", "1 y", "2mo", "6h", "5min", "30d")},
    "grouping": (P, changed(POLICY, **{f"{GROUP}__labels": ["tenant"]})),
    "an empty selector": (P, changed(POLICY, selector={})),
    "a minimal storage config": (S, GCS),
    "a storage config without a back end": (S, {"snapshotStorageConfig": {}}),
    "a federated token source": (
        S,
        changed(GCS, snapshotStorageConfig__gcs__tokenSource="federatedP4SA"),
    ),
    "a trigger": (T, {"targetPod": "web-0"}),
    "a trigger without spec": (T, None),
    "a token request": (K, TOKEN),
    "a minimal source": (G, SOURCE),
    "a source at a tag": (G, changed(SOURCE, ref={"tag": "v1"})),
}
REFUSED: dict[str, tuple[Resource, dict[str, Any] | None, str]] = {
    "a policy without spec": (P, None, "spec"),
    "a policy without a selector": (P, changed(POLICY, selector=...), "selector"),
    "a policy without storage": (P, changed(POLICY, storageConfigName=...), "storageConfigName"),
    "a policy without a trigger": (P, changed(POLICY, triggerConfig=...), "triggerConfig"),
    "a trigger config without a type": (P, changed(POLICY, triggerConfig={}), "type"),
    "an upper-case trigger type": (
        P,
        changed(POLICY, triggerConfig__type="Workload"),
        "triggerConfig.type",
    ),
    "an unknown scope": (P, changed(POLICY, snapshotScope="all"), "snapshotScope"),
    "an unknown postCheckpoint": (
        P,
        changed(POLICY, triggerConfig__postCheckpoint="pause"),
        "postCheckpoint",
    ),
    "a retention without its field": (P, changed(POLICY, retentionConfig={}), "lastAccessTimeout"),
    **{
        f"retention {t!r}": (P, retention(t), "lastAccessTimeout")
        for t in ("30", "30s", "d", "-1d", "1.5d", "30d!", "")
    },
    "grouping without labels": (P, changed(POLICY, **{GROUP: {}}), "labels"),
    "grouping by no label": (P, changed(POLICY, **{f"{GROUP}__labels": []}), "labels"),
    "a negative group size": (
        P,
        changed(
            POLICY,
            **{
                f"{GROUP}__labels": ["a"],
                f"{GROUP}__groupRetentionPolicy__maxSnapshotCountPerGroup": -1,
            },
        ),
        "maxSnapshotCountPerGroup",
    ),
    "a storage config without spec": (S, None, "spec"),
    "a bucket with a scheme": (
        S,
        changed(GCS, snapshotStorageConfig__gcs__bucket="gs://b"),
        "bucket",
    ),
    "an upper-case bucket": (S, changed(GCS, snapshotStorageConfig__gcs__bucket="B"), "bucket"),
    "a back end without a bucket": (
        S,
        changed(GCS, snapshotStorageConfig__gcs={"path": "a"}),
        "bucket",
    ),
    "an unknown token source": (
        S,
        changed(GCS, snapshotStorageConfig__gcs__tokenSource="key"),
        "tokenSource",
    ),
    "a trigger for nothing": (T, {}, "targetPod"),
    "a trigger for a number": (T, {"targetPod": 5}, "targetPod"),
    "a token request for another role": (K, changed(TOKEN, role="admin"), "role"),
    "a token request without a snapshot": (K, changed(TOKEN, snapshot=...), "snapshot"),
    "a source over https": (G, {"url": "https://example.org/r"}, "url"),
    "a source at branch and tag": (G, changed(SOURCE, ref=REF), "only one of branch, tag"),
    "a source at half a commit": (G, changed(SOURCE, ref={"commit": "abc"}), "commit"),
    "a source every day": (G, changed(SOURCE, interval="1d"), "interval"),
    "a snapshot without a policy": (POD_SNAPSHOTS, {}, "policyName"),
}
# What is judged by the server alone (CEL), not by the schema.
SERVER_ONLY = {"a source at branch and tag"}


def body_of(world: World, resource: Resource, spec: dict[str, Any] | None) -> dict[str, Any]:
    """Return an object to create."""
    body = world.object(resource.kind, f"x-{world.namespace}", spec)
    if resource is GIT_SOURCES:
        body["apiVersion"] = OWN_API_VERSION
    if not resource.namespaced:
        del body["metadata"]["namespace"]
    return body


def lint(body: dict[str, Any]) -> list[str]:
    """Return what podsnap's own check says without a server."""
    (document,) = read_documents("f.yaml", json.dumps(body).encode())
    return findings(document)


@pytest.mark.parametrize("what", ACCEPTED)
def test_the_api_accepts_what_the_contract_allows(world: World, what: str) -> None:
    """And so does the check that needs no server."""
    resource, spec = ACCEPTED[what]
    body = body_of(world, resource, spec)
    world.create(resource, body)
    assert lint(body) == []


@pytest.mark.parametrize("what", REFUSED)
def test_the_api_refuses_what_the_contract_forbids(world: World, what: str) -> None:
    """And so does the check that needs no server, naming the same field."""
    resource, spec, named = REFUSED[what]
    body = body_of(world, resource, spec)
    with pytest.raises(Invalid, match=named):
        world.create(resource, body)
    if what not in SERVER_ONLY:
        assert named in "\n".join(lint(body))


def test_defaults_are_those_of_the_contract(world: World) -> None:
    """A policy and a storage config read back complete."""
    spec = changed(POLICY, **{f"{GROUP}__labels": ["a"], f"{GROUP}__groupRetentionPolicy": {}})
    made = world.create(P, body_of(world, P, spec))["spec"]
    assert made["triggerConfig"]["postCheckpoint"] == "resume"
    assert made["snapshotScope"] == "whole-pod"
    group = made["snapshotGroupingRules"]["groupByLabelValue"]["groupRetentionPolicy"]
    assert group == {"maxSnapshotCountPerGroup": 0}
    config = world.create(S, body_of(world, S, GCS))["spec"]
    assert config["snapshotStorageConfig"]["gcs"]["tokenSource"] == "podKSA"
    source = world.create(G, body_of(world, G, SOURCE))["spec"]
    assert (source["interval"], source["prune"]) == ("1m", True)


def test_a_status_is_checked_too(world: World) -> None:
    """A path without the scheme, and a trigger's answer as a string, are refused."""
    snapshot = world.object("PodSnapshot", "s", {"policyName": "web"})
    world.create(POD_SNAPSHOTS, snapshot)
    status = {"storageStatus": {"gcs": {"observedGCSPath": "bucket/x"}}}
    with pytest.raises(Invalid, match="observedGCSPath"):
        world.admin.apply(
            POD_SNAPSHOTS, {**snapshot, "status": status}, field_manager="t", subresource="status"
        )
    trigger = world.object("PodSnapshotManualTrigger", "t", {"targetPod": "web-0"})
    world.create(T, trigger)
    with pytest.raises(ApiError, match="snapshotCreated"):
        world.admin.apply(
            T,
            {**trigger, "status": {"snapshotCreated": "s"}},
            field_manager="t",
            subresource="status",
        )


# -- as kubectl shows it


def kubectl(api_server: ApiServer, toolchain: Toolchain, *arguments: str) -> str:
    """Run the real kubectl as a user with all rights."""
    done = subprocess.run(
        [
            str(toolchain.path("kubectl")),
            f"--kubeconfig={api_server.kubeconfig('admin')}",
            f"--cache-dir={api_server.directory}/cache",
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT_S,
    )
    return done.stdout


def test_kubectl_shows_the_columns_by_short_name(
    world: World, api_server: ApiServer, toolchain: Toolchain
) -> None:
    """``ps``, ``psp``, ``psmt``, ``pssc`` and ``pstr`` as section 3 has them."""
    snapshot = world.object("PodSnapshot", "s1", {"policyName": "web"})
    world.create(POD_SNAPSHOTS, snapshot)
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "AllSnapshotsAvailable",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    world.admin.apply(
        POD_SNAPSHOTS,
        {**snapshot, "status": {"conditions": [ready]}},
        field_manager="t",
        subresource="status",
    )
    world.create(P, body_of(world, P, POLICY))
    world.create(S, body_of(world, S, GCS))
    world.create(T, body_of(world, T, {"targetPod": "web-0"}))
    world.create(K, body_of(world, K, TOKEN))
    headers = {
        "ps": "NAME STATUS POLICY LABELS AGE",
        "psp": "NAME STORAGECONFIG SELECTOR AGE",
        "psmt": "NAME TARGET POD STATUS AGE",
        "pssc": "NAME AGE",
        "pstr": "NAME STATUS",
    }
    for short, header in headers.items():
        lines = kubectl(api_server, toolchain, "get", short, "-n", world.namespace).splitlines()
        assert " ".join(lines[0].split()) == header
    rows = kubectl(api_server, toolchain, "get", "ps", "-n", world.namespace)
    assert rows.splitlines()[1].split()[:3] == ["s1", "AllSnapshotsAvailable", "web"]


def test_snapshots_are_selected_by_policy_name(
    world: World, api_server: ApiServer, toolchain: Toolchain
) -> None:
    """``--field-selector spec.policyName=``, as clients do."""
    for name, policy in (("s1", "web"), ("s2", "db")):
        world.create(POD_SNAPSHOTS, world.object("PodSnapshot", name, {"policyName": policy}))
    selector = "--field-selector=spec.policyName=db"
    found = kubectl(
        api_server, toolchain, "get", "ps", "-n", world.namespace, selector, "-o", "name"
    )
    assert found.split() == ["podsnapshot.podsnapshot.gke.io/s2"]


def test_kubectl_reads_scalars_as_our_table_says(toolchain: Toolchain) -> None:
    """The table that our own reader is tested against is kubectl's, not a memory of it."""
    lines = [f"  k{n}: {written}" for n, written in enumerate(SCALARS)]
    text = "\n".join(
        ["apiVersion: x.example/v1", "kind: X", "metadata: {name: x}", "data:", *lines]
    )
    argv = ["patch", "--local", "-f", "-", "--type=merge", "--patch={}", "--output=json"]
    done = subprocess.run(
        [str(toolchain.path("kubectl")), *argv],
        input=text.encode(),
        capture_output=True,
        check=True,
        timeout=LIMIT_S,
    )
    data = json.loads(done.stdout)["data"]
    found = {written: data.get(f"k{n}") for n, written in enumerate(SCALARS)}
    assert found == SCALARS


# -- rights


def strings(tree: Any) -> Iterator[str]:  # noqa: ANN401 - any YAML
    """Yield every key and scalar."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield key
            yield from strings(value)
    elif isinstance(tree, list):
        for item in tree:
            yield from strings(item)
    else:
        yield str(tree)


def test_what_is_installed_has_no_wildcard() -> None:
    """Each right names its groups, resources and verbs, so a new kind or verb is not in it."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(DEPLOY.glob("*.yaml"))]
    found = [one for text in texts for one in strings(list(yaml.safe_load_all(text)))]
    assert "podsnap-agent" in found
    assert [text for text in found if "*" in text] == []


def test_an_agent_may_not_edit_or_remove_snapshots(world: World, agent_client: KubeClient) -> None:
    """Only the controller decides; the agent reports. Admission narrows that to its node."""
    body = world.object("PodSnapshot", "s", {"policyName": "web"})
    world.create(POD_SNAPSHOTS, body)
    with pytest.raises(Forbidden):
        agent_client.delete(POD_SNAPSHOTS, "s", namespace=world.namespace)
    with pytest.raises(Forbidden):
        agent_client.merge_patch(
            POD_SNAPSHOTS,
            "s",
            {"spec": {"policyName": "x"}},
            namespace=world.namespace,
            field_manager="agent",
        )
    agent_client.apply(
        POD_SNAPSHOTS,
        {**body, "status": {"podsnap": {"version": 1}}},
        field_manager=CAPTURE_MANAGER,
        subresource="status",
    )


def test_an_agent_may_write_a_pods_status_and_nothing_else_of_it(
    world: World, agent_client: KubeClient
) -> None:
    """Admission narrows that to the condition PodRestored, and its right to delete to its node."""
    world.pod()
    with pytest.raises(Forbidden):
        agent_client.merge_patch(
            PODS,
            "web-0",
            {"metadata": {"labels": {"a": "b"}}},
            namespace=world.namespace,
            field_manager="agent",
        )
    condition = {"type": "PodRestored", "status": "True", "reason": "Restored", "message": "m"}
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web-0", "namespace": world.namespace},
        "status": {"conditions": [condition]},
    }
    agent_client.apply(PODS, body, field_manager="podsnap-agent", subresource="status")
    types = {c["type"] for c in (world.get(PODS, "web-0") or {})["status"]["conditions"]}
    assert types == {"Ready", "PodRestored"}


@pytest.mark.parametrize("user", ["agent", "controller"])
def test_neither_identity_reads_what_does_not_concern_it(
    api_server: ApiServer, world: World, user: str
) -> None:
    """No secrets, no nodes, no config maps, and no Pods of its own."""
    client = api_server.client(user)
    for resource in (SECRETS, CONFIG_MAPS, NODES):
        with pytest.raises(Forbidden):
            client.list(resource)
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": world.namespace},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }
    with pytest.raises(Forbidden):
        client.create(PODS, body, field_manager="t")


def test_the_controller_may_not_touch_pods(world: World, controller_client: KubeClient) -> None:
    """It reads them, that is all."""
    world.pod()
    controller_client.get(PODS, "web-0", namespace=world.namespace)
    with pytest.raises(Forbidden):
        controller_client.delete(PODS, "web-0", namespace=world.namespace)
    with pytest.raises(Forbidden):
        controller_client.apply(
            PODS,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "web-0", "namespace": world.namespace},
                "status": {"phase": "Failed"},
            },
            field_manager=CONTROLLER_MANAGER,
            subresource="status",
        )


# -- the rules of server-side apply that the design stands on


def status_body(world: World, uid: str, reason: str) -> dict[str, Any]:
    """Return an apply of ``Checkpoint`` that names the object's UID."""
    condition = {
        "type": "Checkpoint",
        "status": "False",
        "reason": reason,
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    body = world.object("PodSnapshot", "s", None)
    body["metadata"]["uid"] = uid
    return {**body, "status": {"conditions": [condition]}}


def test_applying_the_status_of_a_deleted_object_does_not_bring_it_back(
    world: World, agent_client: KubeClient
) -> None:
    """The answer is NotFound, and Conflict once a new object has the name.

    The server compares no UID in the status of a custom kind, so the client must.
    """
    body = world.object("PodSnapshot", "s", {"policyName": "web"})
    uid = world.create(POD_SNAPSHOTS, body)["metadata"]["uid"]
    world.admin.delete(POD_SNAPSHOTS, "s", namespace=world.namespace)
    late = status_body(world, uid, "InProgress")
    with pytest.raises(NotFound):
        agent_client.apply(POD_SNAPSHOTS, late, field_manager=CAPTURE_MANAGER, subresource="status")
    assert world.get(POD_SNAPSHOTS, "s") is None
    world.create(POD_SNAPSHOTS, body)
    with pytest.raises(Conflict):
        agent_client.apply(POD_SNAPSHOTS, late, field_manager=CAPTURE_MANAGER, subresource="status")
    assert "status" not in (world.get(POD_SNAPSHOTS, "s") or {})


def test_applying_a_whole_deleted_object_by_uid_does_not_create_one(
    world: World, admin: KubeClient
) -> None:
    """Without a subresource an apply creates; a UID forbids it."""
    body = world.object("PodSnapshot", "s", {"policyName": "web"})
    body["metadata"]["uid"] = "11111111-1111-1111-1111-111111111111"
    with pytest.raises(Conflict):
        admin.apply(POD_SNAPSHOTS, body, field_manager="t")
    assert world.get(POD_SNAPSHOTS, "s") is None


def test_a_late_capture_is_refused_after_the_controller_took_over(
    world: World, agent_client: KubeClient, controller_client: KubeClient
) -> None:
    """The agent never forces, so it learns that it was given up."""
    body = world.object("PodSnapshot", "s", {"policyName": "web"})
    uid = world.create(POD_SNAPSHOTS, body)["metadata"]["uid"]

    def write(client: KubeClient, manager: str, reason: str, *, force: bool = False) -> None:
        client.apply(
            POD_SNAPSHOTS,
            status_body(world, uid, reason),
            field_manager=manager,
            subresource="status",
            force=force,
        )

    write(agent_client, CAPTURE_MANAGER, "InProgress")
    write(controller_client, CONTROLLER_MANAGER, "Failed", force=True)
    with pytest.raises(Conflict):
        write(agent_client, CAPTURE_MANAGER, "Succeeded")
    assert world.condition(POD_SNAPSHOTS, "s", "Checkpoint")["reason"] == "Failed"


def test_errors_are_told_apart(world: World) -> None:
    """What a caller does next depends on the class."""
    world.policy()
    with pytest.raises(AlreadyExists):
        world.policy()
    with pytest.raises(NotFound):
        world.admin.get(P, "none", namespace=world.namespace)
    with pytest.raises(Conflict):
        world.admin.delete(
            P, "web", namespace=world.namespace, uid="11111111-1111-1111-1111-111111111111"
        )
    stale = world.admin.get(P, "web", namespace=world.namespace)
    stale["metadata"]["resourceVersion"] = "1"
    with pytest.raises(Conflict):
        world.admin.replace(P, stale, field_manager="t")
