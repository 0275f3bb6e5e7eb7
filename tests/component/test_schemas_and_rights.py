# SPDX-License-Identifier: Apache-2.0
"""GitSources, rights and server-side apply: our CRDs and our RBAC, enforced by a real API server.

The kinds of GKE's group are in tests/contract/test_api_surface.py.
"""

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
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_TOKEN_REQUESTS,
    POD_SNAPSHOTS,
    PODS,
    SERVICE_ACCOUNTS,
    KubeClient,
    Resource,
)
from backends.kube.errors import AlreadyExists, Conflict, Forbidden, Invalid, NotFound
from localcluster.toolchain import REPOSITORY, Toolchain
from schemas.crd_validation import findings
from schemas.documents import read_documents
from schemas.names import CAPTURE_MANAGER, CONTROLLER_MANAGER, OWN_API_VERSION

SECRETS = Resource("", "v1", "secrets", "Secret")
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
LIMIT_S = 30
DEPLOY = REPOSITORY / "deploy"

SOURCE: dict[str, Any] = {"url": "file:///srv/repository"}
ACCEPTED = {
    "minimal": SOURCE,
    "at a tag": {**SOURCE, "ref": {"tag": "v1"}},
    "over https": {"url": "https://example.org/r", "secretRef": {"name": "git"}},
    "over ssh": {"url": "ssh://git@example.org:2222/r"},
    "as scp has it": {"url": "git@example.org:team/r.git"},
    "signed": {**SOURCE, "verify": {"mode": "Tag", "secretRef": {"name": "keys"}}},
    "suspended": {**SOURCE, "suspend": True, "timeout": "10s"},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "over git's own protocol": ({"url": "git://example.org/r"}, "url"),
    "by a program": ({"url": "ext::sh -c true"}, "url"),
    "signed by nobody": ({**SOURCE, "verify": {}}, "secretRef"),
    "signed somehow": (
        {**SOURCE, "verify": {"mode": "Some", "secretRef": {"name": "keys"}}},
        "mode",
    ),
    "at branch and tag": (
        {**SOURCE, "ref": {"branch": "main", "tag": "v1"}},
        "only one of branch, tag",
    ),
    "at half a commit": ({**SOURCE, "ref": {"commit": "abc"}}, "commit"),
    "every day": ({**SOURCE, "interval": "1d"}, "interval"),
}
# What is judged by the server alone (CEL), not by the schema.
SERVER_ONLY = {"at branch and tag"}


def source(world: World, spec: dict[str, Any]) -> dict[str, Any]:
    """Return a GitSource."""
    return {**world.object("GitSource", "x", spec), "apiVersion": OWN_API_VERSION}


def lint(body: dict[str, Any]) -> list[str]:
    """Return what podsnap's own check says without a server."""
    (document,) = read_documents("f.yaml", json.dumps(body).encode())
    return [str(finding) for finding in findings(document)]


@pytest.mark.parametrize("what", ACCEPTED)
def test_the_api_accepts_a_git_source(world: World, what: str) -> None:
    """And so does the check that needs no server; what was left out is there then."""
    body = source(world, ACCEPTED[what])
    made = world.create(GIT_SOURCES, body)["spec"]
    assert (made["interval"], made["prune"]) == ("1m", True)
    assert lint(body) == []


@pytest.mark.parametrize("what", REFUSED)
def test_the_api_refuses_a_git_source(world: World, what: str) -> None:
    """And so does the check that needs no server, naming the same field."""
    spec, named = REFUSED[what]
    body = source(world, spec)
    with pytest.raises(Invalid, match=named):
        world.create(GIT_SOURCES, body)
    if what not in SERVER_ONLY:
        assert named in "\n".join(lint(body))


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


def test_an_agent_asks_for_tokens_and_makes_none(world: World, agent_client: KubeClient) -> None:
    """It sees no request but the one it knows by name, and cannot answer itself."""
    spec = {"nodeName": "node-1", "role": "restore", "snapshot": {"name": "s"}}
    body = world.object("PodSnapshotTokenRequest", "r", spec)
    agent_client.create(POD_SNAPSHOT_TOKEN_REQUESTS, body, field_manager="t")
    answer = {**world.object("PodSnapshotTokenRequest", "r", None), "status": {"sealedToken": "A"}}
    refused = (
        lambda: agent_client.service_account_token(world.namespace, "default", {"audiences": []}),
        lambda: agent_client.get(SERVICE_ACCOUNTS, "default", namespace=world.namespace),
        lambda: agent_client.list(POD_SNAPSHOT_TOKEN_REQUESTS, namespace=world.namespace),
        lambda: agent_client.apply(
            POD_SNAPSHOT_TOKEN_REQUESTS, answer, field_manager="t", subresource="status"
        ),
    )
    for act in refused:
        with pytest.raises(Forbidden):
            act()
    agent_client.delete(POD_SNAPSHOT_TOKEN_REQUESTS, "r", namespace=world.namespace)


def test_the_controller_answers_requests_and_makes_none(
    world: World, controller_client: KubeClient
) -> None:
    """Admission keeps the tokens that it may make to audiences outside of the cluster."""
    spec = {"nodeName": "node-1", "role": "restore", "snapshot": {"name": "s"}}
    body = world.object("PodSnapshotTokenRequest", "r", spec)
    with pytest.raises(Forbidden):
        controller_client.create(POD_SNAPSHOT_TOKEN_REQUESTS, body, field_manager="t")
    account = {"kind": "ServiceAccount", "metadata": {"name": "a", "namespace": world.namespace}}
    with pytest.raises(Forbidden):
        controller_client.create(
            SERVICE_ACCOUNTS, {"apiVersion": "v1", **account}, field_manager="t"
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
        world.admin.get(POD_SNAPSHOT_POLICIES, "none", namespace=world.namespace)
    with pytest.raises(Conflict):
        world.admin.delete(
            POD_SNAPSHOT_POLICIES,
            "web",
            namespace=world.namespace,
            uid="11111111-1111-1111-1111-111111111111",
        )
    stale = world.admin.get(POD_SNAPSHOT_POLICIES, "web", namespace=world.namespace)
    stale["metadata"]["resourceVersion"] = "1"
    with pytest.raises(Conflict):
        world.admin.replace(POD_SNAPSHOT_POLICIES, stale, field_manager="t")
