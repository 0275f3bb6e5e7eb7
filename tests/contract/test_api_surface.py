# SPDX-License-Identifier: Apache-2.0
"""What clients of GKE's group find on a real API server: names, fields, defaults, columns, rights.

No Pod runs here; where one is needed, the test is its kubelet and its node's agent.
"""

import copy
import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_world import World, eventually
from kube_apiserver import ApiServer

from backends.kube.client import (
    POD_SNAPSHOT_MANUAL_TRIGGERS,
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    POD_SNAPSHOTS,
    KubeClient,
    Resource,
)
from backends.kube.errors import ApiError, Invalid
from localcluster.toolchain import REPOSITORY, Toolchain
from schemas.crd_validation import findings
from schemas.documents import read_documents
from schemas.names import CAPTURE_MANAGER, CONTROLLER_MANAGER
from schemas.snapshot import CaptureRecord
from schemas.storage_config import Location

TOKEN_REQUESTS = Resource(
    "podsnapshot.gke.io", "v1", "podsnapshottokenrequests", "PodSnapshotTokenRequest"
)
P, S, T, K, X = (
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    POD_SNAPSHOT_MANUAL_TRIGGERS,
    TOKEN_REQUESTS,
    POD_SNAPSHOTS,
)
LIMIT_S = 30
PREVIEW = REPOSITORY / "examples" / "gke-how-to" / "preview"
TROUBLESHOOTING = REPOSITORY / "docs" / "troubleshooting.md"


class Kubectl:
    """The real kubectl against the real server."""

    def __init__(self, program: Path, server: ApiServer) -> None:
        """Use the administrator's identity."""
        self._argv = [
            str(program),
            f"--kubeconfig={server.kubeconfig('admin')}",
            f"--cache-dir={server.directory}/cache",
        ]

    def run(self, *arguments: str, text: str = "") -> "subprocess.CompletedProcess[str]":
        """Run it, whatever becomes of it."""
        return subprocess.run(
            [*self._argv, *arguments],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )

    def __call__(self, *arguments: str, text: str = "") -> str:
        """Run it and return what it printed."""
        done = self.run(*arguments, text=text)
        assert not done.returncode, done.stderr
        return done.stdout


@pytest.fixture
def kubectl(toolchain: Toolchain, api_server: ApiServer) -> Kubectl:
    """Kubectl as an administrator."""
    return Kubectl(toolchain.path("kubectl"), api_server)


# -- discovery


DOCUMENTED = {
    "PodSnapshotStorageConfig": ("podsnapshotstorageconfigs", "pssc", False),
    "PodSnapshotPolicy": ("podsnapshotpolicies", "psp", True),
    "PodSnapshotManualTrigger": ("podsnapshotmanualtriggers", "psmt", True),
    "PodSnapshot": ("podsnapshots", "ps", True),
}
TOKEN_REQUEST = {"PodSnapshotTokenRequest": ("podsnapshottokenrequests", "pstr", True)}
SERVED = {"v1": DOCUMENTED | TOKEN_REQUEST, "v1alpha1": DOCUMENTED}


@pytest.mark.contract(1, 2)
@pytest.mark.parametrize("version", SERVED)
def test_discovery_lists_the_kinds_with_their_names_scope_and_status(
    kubectl: Kubectl, version: str
) -> None:
    """In the version of today, and in that of GKE's preview."""
    found = json.loads(kubectl("get", "--raw", f"/apis/podsnapshot.gke.io/{version}"))["resources"]
    kinds = {r["kind"]: r for r in found if "/" not in r["name"]}
    assert {
        kind: (r["name"], *r["shortNames"], r["namespaced"]) for kind, r in kinds.items()
    } == SERVED[version]
    with_status = {r["name"].removesuffix("/status") for r in found if "/" in r["name"]}
    assert with_status == {r["name"] for r in kinds.values()}


# -- fields


POLICY: dict[str, Any] = {
    "selector": {"matchLabels": {"app": "web"}},
    "storageConfigName": "s",
    "triggerConfig": {"type": "manual"},
}
GCS: dict[str, Any] = {"snapshotStorageConfig": {"gcs": {"bucket": "my-bucket"}}}
TOKEN: dict[str, Any] = {"nodeName": "n", "role": "checkpoint", "snapshot": {"name": "s"}}


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


GROUP = "snapshotGroupingRules__groupByLabelValue"
COUNT = f"{GROUP}__groupRetentionPolicy__maxSnapshotCountPerGroup"
TRIGGER_TYPES = ("manual", "workload", "readinessProbe", "onDelete")

ACCEPTED: dict[str, tuple[Resource, dict[str, Any] | None]] = {
    "a minimal policy": (P, POLICY),
    "scope rootfs-only": (P, changed(POLICY, snapshotScope="rootfs-only")),
    "postCheckpoint stop": (P, changed(POLICY, triggerConfig__postCheckpoint="stop")),
    **{f"retention {t}": (P, retention(t)) for t in ("30d", "1 y", "2mo", "6h", "5min")},
    "grouping": (P, changed(POLICY, **{f"{GROUP}__labels": ["tenant"]})),
    "a group size": (P, changed(POLICY, **{f"{GROUP}__labels": ["tenant"], COUNT: 3})),
    "an empty selector": (P, changed(POLICY, selector={})),
    "a minimal storage config": (S, GCS),
    "a storage config without a back end": (S, {"snapshotStorageConfig": {}}),
    "a folder": (S, changed(GCS, snapshotStorageConfig__gcs__path="a/b/c")),
    "a federated token source": (
        S,
        changed(GCS, snapshotStorageConfig__gcs__tokenSource="federatedP4SA"),
    ),
    "a trigger": (T, {"targetPod": "web-0"}),
    "a trigger without spec": (T, None),
    "a token request": (K, TOKEN),
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
        changed(POLICY, **{f"{GROUP}__labels": ["a"], COUNT: -1}),
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
    "a snapshot without a policy": (X, {}, "policyName"),
}


def body_of(world: World, resource: Resource, spec: dict[str, Any] | None) -> dict[str, Any]:
    """Return an object to create."""
    body = world.object(resource.kind, f"x-{world.namespace}", spec)
    if not resource.namespaced:
        del body["metadata"]["namespace"]
    return body


def lint(body: dict[str, Any]) -> list[str]:
    """Return what podsnap's own check says without a server."""
    (document,) = read_documents("f.yaml", json.dumps(body).encode())
    return [str(finding) for finding in findings(document)]


@pytest.mark.contract(3)
@pytest.mark.parametrize("what", ACCEPTED)
def test_the_api_accepts_what_the_contract_allows(world: World, what: str) -> None:
    """And so does the check that needs no server."""
    resource, spec = ACCEPTED[what]
    body = body_of(world, resource, spec)
    world.create(resource, body)
    assert lint(body) == []


@pytest.mark.contract(3)
@pytest.mark.parametrize("what", REFUSED)
def test_the_api_refuses_what_the_contract_forbids(world: World, what: str) -> None:
    """And so does the check that needs no server, naming the same field."""
    resource, spec, named = REFUSED[what]
    body = body_of(world, resource, spec)
    with pytest.raises(Invalid, match=named):
        world.create(resource, body)
    assert named in "\n".join(lint(body))


@pytest.mark.contract(3)
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


AVAILABLE = {
    "type": "Ready",
    "status": "True",
    "reason": "AllSnapshotsAvailable",
    "message": "",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}


def with_status(world: World, body: dict[str, Any], **status: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    """Write a status, and return the object as it is then."""
    resource = X if body["kind"] == "PodSnapshot" else T
    return world.admin.apply(
        resource, {**body, "status": status}, field_manager="t", subresource="status"
    )


@pytest.mark.contract(3)
def test_a_path_in_a_status_needs_its_scheme(world: World) -> None:
    """What clients read there is a whole address."""
    snapshot = world.object("PodSnapshot", "s", {"policyName": "web"})
    world.create(X, snapshot)
    with pytest.raises(Invalid, match="observedGCSPath"):
        with_status(world, snapshot, storageStatus={"gcs": {"observedGCSPath": "bucket/x"}})
    with_status(world, snapshot, storageStatus={"gcs": {"observedGCSPath": "gs://bucket/x"}})


@pytest.mark.contract(3)
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"message": None}, "message"),
        ({"reason": "two words"}, "reason"),
        ({"status": "true"}, "status"),
        ({"type": "a type"}, "type"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_condition_is_one_of_kubernetes(
    world: World, wrong: dict[str, str | None], named: str
) -> None:
    """Clients read them with the types of the Kubernetes API."""
    snapshot = world.object("PodSnapshot", "s", {"policyName": "web"})
    world.create(X, snapshot)
    condition = {k: v for k, v in {**AVAILABLE, **wrong}.items() if v is not None}
    with pytest.raises(Invalid, match=rf"conditions\[0\]\.{named}"):
        with_status(world, snapshot, conditions=[condition])
    with_status(world, snapshot, conditions=[AVAILABLE])


@pytest.mark.contract(5)
def test_a_triggers_answer_is_an_object_with_a_name(world: World) -> None:
    """A string is refused, and a name that was left out reads as empty."""
    trigger = world.object("PodSnapshotManualTrigger", "t", {"targetPod": "web-0"})
    world.create(T, trigger)
    with pytest.raises(ApiError, match="snapshotCreated"):
        with_status(world, trigger, snapshotCreated="s")
    assert with_status(world, trigger, snapshotCreated={})["status"] == {
        "snapshotCreated": {"name": ""}
    }


@pytest.mark.parametrize(
    ("resource", "spec", "other", "message"),
    [
        (X, {"policyName": "web"}, {"policyName": "db"}, "policy of a snapshot cannot be changed"),
        (T, {"targetPod": "a"}, {"targetPod": "b"}, "create another trigger"),
    ],
    ids=["a snapshot's policy", "a trigger's Pod"],
)
def test_what_a_save_is_about_is_never_changed(
    world: World, resource: Resource, spec: dict[str, Any], other: dict[str, Any], message: str
) -> None:
    """The server says so, and what to do."""
    world.create(resource, world.object(resource.kind, "x", spec))
    with pytest.raises(Invalid, match=message):
        world.admin.merge_patch(
            resource, "x", {"spec": other}, namespace=world.namespace, field_manager="t"
        )


# -- GKE's preview


@pytest.mark.parametrize(
    "way", [(), ("--server-side", "--force-conflicts")], ids=["apply", "server-side"]
)
def test_manifests_of_the_preview_apply_as_they_are(kubectl: Kubectl, way: tuple[str, ...]) -> None:
    """And again; the namespace on the storage config, which belongs to none, is no obstacle."""
    for _ in range(2):
        done = kubectl.run("apply", *way, "-f", str(PREVIEW))
        assert not done.returncode, done.stderr
    assert "podsnapshot.gke.io/v1alpha1 PodSnapshotPolicy is deprecated" in done.stderr
    text = "---\n".join(f.read_text(encoding="utf-8") for f in sorted(PREVIEW.glob("*.yaml")))
    ours = [d for d in yaml.safe_load_all(text) if d["apiVersion"].startswith("podsnapshot")]
    assert {d["apiVersion"] for d in ours} == {"podsnapshot.gke.io/v1alpha1"}
    assert all("namespace" in d["metadata"] for d in ours)
    for document in ours:
        plural, _, _ = DOCUMENTED[document["kind"]]
        name, namespace = document["metadata"]["name"], document["metadata"]["namespace"]
        for version in ("v1", "v1alpha1"):
            kind = f"{plural}.{version}.podsnapshot.gke.io"
            live = json.loads(kubectl("get", kind, name, "-n", namespace, "-o", "json"))
            assert live["apiVersion"] == f"podsnapshot.gke.io/{version}"
            assert is_part_of(document["spec"], live["spec"])


def is_part_of(wanted: Any, live: Any) -> bool:  # noqa: ANN401 - JSON trees
    """Whether all that was wanted is there; defaults may have come to it."""
    if isinstance(wanted, dict):
        return all(key in live and is_part_of(value, live[key]) for key, value in wanted.items())
    return bool(wanted == live)


# -- as kubectl shows it


@pytest.mark.contract(6)
def test_kubectl_shows_the_columns_by_short_name(world: World, kubectl: Kubectl) -> None:
    """``ps``, ``psp``, ``psmt``, ``pssc`` and ``pstr``, as GKE prints them."""
    snapshot = world.object("PodSnapshot", "s1", {"policyName": "web"})
    world.create(X, snapshot)
    with_status(world, snapshot, conditions=[AVAILABLE])
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
        lines = kubectl("get", short, "-n", world.namespace).splitlines()
        assert " ".join(lines[0].split()) == header
    rows = kubectl("get", "ps", "-n", world.namespace)
    assert rows.splitlines()[1].split()[:3] == ["s1", "AllSnapshotsAvailable", "web"]


@pytest.mark.contract(6)
@pytest.mark.parametrize("version", SERVED)
def test_snapshots_are_selected_by_policy_name(
    world: World, kubectl: Kubectl, version: str
) -> None:
    """``--field-selector spec.policyName=``, as clients do."""
    for name, policy in (("s1", "web"), ("s2", "db")):
        world.create(X, world.object("PodSnapshot", name, {"policyName": policy}))
    kind = f"podsnapshots.{version}.podsnapshot.gke.io"
    selector = "--field-selector=spec.policyName=db"
    found = kubectl("get", kind, "-n", world.namespace, selector, "-o", "name")
    assert found.split() == ["podsnapshot.podsnapshot.gke.io/s2"]


# -- wrong spellings that are about


def spelt(api_version: str, trigger: str) -> str:
    """Return a policy as somebody wrote it."""
    body = {"apiVersion": api_version, "kind": "PodSnapshotPolicy", "metadata": {"name": "web"}}
    return json.dumps({**body, "spec": changed(POLICY, triggerConfig__type=trigger)})


WRONG = {
    "a resource without its group": (("get", "podsnapshots.gke.io"), ""),
    "another group": (("apply", "-f", "-"), spelt("snapshot.gke.io/v1", "workload")),
    "a capital letter": (("apply", "-f", "-"), spelt("podsnapshot.gke.io/v1", "Workload")),
}


@pytest.mark.contract(1, 3)
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_spelling_gives_the_error_that_troubleshooting_quotes(
    kubectl: Kubectl, what: str
) -> None:
    """Word for word, as kubectl prints it."""
    arguments, text = WRONG[what]
    done = kubectl.run(*arguments, text=text)
    assert done.returncode
    assert done.stderr.strip() in TROUBLESHOOTING.read_text(encoding="utf-8")
    assert done.stderr.startswith(("error: ", "The PodSnapshotPolicy"))


# -- rights


USER = "--as=system:serviceaccount:people:alice"
ALICE = """
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: snapshots}
rules:
  - apiGroups: [podsnapshot.gke.io]
    resources: [podsnapshots, podsnapshots/status]
    verbs: [get, list, watch, create, update, patch, delete]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: snapshots}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: snapshots}
subjects:
  - {kind: ServiceAccount, name: alice, namespace: people}
"""


@pytest.fixture
def guarded(world: World, kubectl: Kubectl) -> Iterator[World]:
    """The admission rules of ``deploy/`` in the test's namespace alone, and a user with rights."""
    text = (REPOSITORY / "deploy" / "admission.yaml").read_text(encoding="utf-8")
    rules = [d for d in yaml.safe_load_all(text) if d["metadata"]["name"] == "podsnap-snapshots"]
    here = {"matchLabels": {"kubernetes.io/metadata.name": world.namespace}}
    for rule in rules:
        rule["metadata"]["name"] = world.namespace
        if rule["kind"] == "ValidatingAdmissionPolicyBinding":
            rule["spec"]["policyName"] = world.namespace
            rule["spec"]["matchResources"] = {"namespaceSelector": here}
    text = "---\n".join(map(yaml.safe_dump, rules))
    kubectl("apply", "-f", "-", text=text)
    kubectl("apply", "-n", world.namespace, "-f", "-", text=ALICE)
    yield world
    kubectl("delete", "-f", "-", text=text)


def makes(world: World, version: str = "v1") -> tuple[tuple[str, ...], str]:
    """Create a snapshot."""
    body = world.object("PodSnapshot", "mine", {"policyName": "web"})
    return ("create", "-f", "-"), json.dumps(
        {**body, "apiVersion": f"podsnapshot.gke.io/{version}"}
    )


def changes(patch: str, *flags: str, version: str = "v1") -> tuple[tuple[str, ...], str]:
    """Change the snapshot that is there."""
    kind = f"podsnapshots.{version}.podsnapshot.gke.io"
    return ("patch", kind, "s", "--type=merge", f"--patch={patch}", *flags), ""


@pytest.mark.contract(30)
def test_a_user_may_delete_a_snapshot_and_neither_make_nor_change_one(
    guarded: World, kubectl: Kubectl, controller_client: KubeClient
) -> None:
    """Although all of it is among the user's rights, and in whichever version it is tried."""
    body = guarded.object("PodSnapshot", "s", {"policyName": "web"})
    controller_client.create(X, body, field_manager=CONTROLLER_MANAGER)
    here = ("-n", guarded.namespace, USER)

    def refusal(attempt: tuple[tuple[str, ...], str], *flags: str) -> str:
        done = kubectl.run(*attempt[0], *here, *flags, text=attempt[1])
        return done.stderr if done.returncode else ""

    eventually(
        lambda: "made by podsnap alone" in refusal(makes(guarded), "--dry-run=server"),
        "the rules are in force",
    )
    label = '{"metadata": {"labels": {"a": "b"}}}'
    for version in SERVED:
        assert "made by podsnap alone" in refusal(makes(guarded, version))
        assert "cannot change its labels" in refusal(changes(label, version=version))
    status = '{"status": {"conditions": []}}'
    assert "written by podsnap alone" in refusal(changes(status, "--subresource=status"))
    assert [s["metadata"]["name"] for s in guarded.snapshots()] == ["s"]
    assert "labels" not in guarded.snapshots()[0]["metadata"]

    kubectl("delete", "ps", "s", *here)

    assert guarded.snapshots() == []


# -- under the running controller; it looks at all that stands above, so these come last


@pytest.mark.contract(4)
@pytest.mark.parametrize("trigger", TRIGGER_TYPES)
@pytest.mark.usefixtures("manager")
def test_a_policy_may_have_any_of_the_four_trigger_types(world: World, trigger: str) -> None:
    """And is Ready with each."""
    world.make_bucket()
    world.storage()
    world.policy(triggerConfig={"type": trigger})
    eventually(lambda: world.condition(P, "web", "Ready").get("status") == "True", "it is Ready")


def reports(world: World, agent: KubeClient, snapshot: dict[str, Any], *done: str) -> None:
    """Say as the Pod's node which of ``Checkpoint`` and ``StorageReplicated`` are done."""
    name = snapshot["metadata"]["name"]
    record = CaptureRecord(
        node="node-1",
        attempt=1,
        pod_name="web-0",
        claimed_at="2026-01-01T10:00:00.000000Z",
        checkpointed_at="2026-01-01T10:00:01.000000Z",
        sealed_at="2026-01-01T10:00:02.000000Z",
        uploaded_at="2026-01-01T10:00:03.000000Z" if len(done) > 1 else "",
        size_bytes=15,
        location=Location(world.bucket.name, f"snapshots/{name}"),
    )
    conditions = [
        {**AVAILABLE, "type": kind, "reason": "Succeeded"}
        if kind in done
        else {**AVAILABLE, "type": kind, "status": "False", "reason": "Pending"}
        for kind in ("Checkpoint", "StorageReplicated")
    ]
    body = world.object("PodSnapshot", name, None)
    body["metadata"]["uid"] = snapshot["metadata"]["uid"]
    body["status"] = {
        "conditions": conditions,
        "podsnap": {"version": 1, "capture": record.to_object()},
    }
    agent.apply(X, body, field_manager=CAPTURE_MANAGER, subresource="status")


@pytest.mark.contract(8, 32)
@pytest.mark.usefixtures("manager")
def test_a_complete_trigger_has_named_its_snapshot_which_may_still_be_on_its_way(
    world: World, agent_client: KubeClient, kubectl: Kubectl
) -> None:
    """As a watch from the trigger's creation sees it; ``kubectl wait`` returns for both."""
    world.make_bucket()
    world.storage()
    world.policy()
    world.pod()
    eventually(lambda: world.condition(P, "web", "Ready").get("status") == "True", "it is Ready")
    trigger = world.trigger("now")
    seen = world.admin.watch(
        T,
        namespace=world.namespace,
        field_selector="metadata.name=now",
        resource_version=trigger["metadata"]["resourceVersion"],
        duration_s=LIMIT_S,
    )
    waits = partial(kubectl, "wait", "-n", world.namespace, f"--timeout={LIMIT_S}s")
    with ThreadPoolExecutor(2) as threads:
        for_trigger = threads.submit(waits, "--for=condition=Triggered", "psmt/now")
        (snapshot,) = eventually(world.snapshots, "a PodSnapshot")
        name = snapshot["metadata"]["name"]
        for_snapshot = threads.submit(waits, "--for=condition=Ready", f"podsnapshot/{name}")
        reports(world, agent_client, snapshot, "Checkpoint")

        assert "condition met" in for_trigger.result()

        assert world.condition(X, name, "Ready").get("status") != "True"
        assert not for_snapshot.done()
        reports(world, agent_client, snapshot, "Checkpoint", "StorageReplicated")
        assert "condition met" in for_snapshot.result()
    for event in seen:
        status = event["object"].get("status") or {}
        (triggered,) = status.get("conditions") or [{}]
        if triggered.get("status") == "True":
            break
    seen.stop()
    assert triggered["reason"] == "Complete"
    assert status["snapshotCreated"] == {"name": name}
    assert world.condition(X, name, "Ready")["reason"] == "AllSnapshotsAvailable"
