# SPDX-License-Identifier: Apache-2.0
"""What deploy/argocd and deploy/flux say of our kinds in each state, judged by the real programs.

The objects are written as podsnap itself would: by its own judgements, from facts.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backends.kube.client import (
    GIT_SOURCES,
    POD_SNAPSHOT_MANUAL_TRIGGERS,
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    POD_SNAPSHOTS,
    Resource,
)
from localcluster.toolchain import REPOSITORY, Toolchain
from policies.policy_review import PolicyFacts, review
from reconciler.git_status import Failure, Status, applied, failed, working
from schemas.conditions import Condition
from schemas.git_source import GitSource
from schemas.names import API_VERSION, OWN_API_VERSION, READY
from schemas.policy import Policy
from schemas.snapshot import Snapshot
from schemas.storage_config import StorageConfig
from schemas.trigger import ManualTrigger
from statemachine import trigger as trigger_machine
from statemachine.snapshot import SnapshotFacts, State, ready_condition, step
from tests.cluster_scene import eventually
from tests.component.cluster_world import World
from tests.gitops.argo_cd import assess
from tests.gitops.flux import Flux
from tests.gitops.git_repository import GitServer

NOW = "2026-01-01T00:00:00Z"
PAGE = REPOSITORY / "docs/gitops.md"
RESOURCES = {
    r.kind: r
    for r in (
        POD_SNAPSHOT_POLICIES,
        POD_SNAPSHOT_STORAGE_CONFIGS,
        POD_SNAPSHOT_MANUAL_TRIGGERS,
        POD_SNAPSHOTS,
        GIT_SOURCES,
    )
}
SPECS: dict[str, dict[str, Any]] = {
    "PodSnapshotPolicy": {
        "selector": {"matchLabels": {"app": "web"}},
        "storageConfigName": "store",
        "triggerConfig": {"type": "manual"},
    },
    "PodSnapshotStorageConfig": {"snapshotStorageConfig": {"gcs": {"bucket": "b"}}},
    "PodSnapshotManualTrigger": {"targetPod": "web-0"},
    "PodSnapshot": {"policyName": "web"},
    "GitSource": {"url": "https://git.example.org/shop"},
}


@dataclass(frozen=True, slots=True)
class Row:
    """An object, and what Argo CD and Flux must make of it; also a row of docs/gitops.md."""

    obj: Mapping[str, Any]
    argo_cd: str
    flux: str


def an_object(kind: str, *conditions: Condition, **status: Any) -> dict[str, Any]:  # noqa: ANN401 - status fields
    """Return an object of ours in generation 1 with conditions."""
    body: dict[str, Any] = {
        "apiVersion": OWN_API_VERSION if kind == "GitSource" else API_VERSION,
        "kind": kind,
        "metadata": {"name": "web", "namespace": "shop", "uid": "u", "generation": 1},
        "spec": SPECS[kind],
    }
    told = [c.to_object(previous=None, now=NOW) for c in conditions]
    if told or status:
        body["status"] = {"observedGeneration": 1, "conditions": told, **status}
    return body


def a_policy(storage: StorageConfig | None, **annotations: str) -> dict[str, Any]:
    """Return a policy with what the controller says of it."""
    body = an_object("PodSnapshotPolicy")
    body["metadata"]["annotations"] = {f"podsnap.dev/{k}": v for k, v in annotations.items()}
    judged = review(PolicyFacts(policy=Policy.parse(body), storage=storage))
    judged_body = an_object("PodSnapshotPolicy", judged)
    judged_body["metadata"]["annotations"] = body["metadata"]["annotations"]
    return judged_body


def a_store() -> StorageConfig:
    """Return a storage config that can be used."""
    ready = Condition(READY, "True", "Ready", "gs://b is writable")
    return StorageConfig.parse(an_object("PodSnapshotStorageConfig", ready))


def a_trigger(refusal: str = "", *, snapshot: Snapshot | None = None) -> dict[str, Any]:
    """Return a trigger with the answer that it is given."""
    judged = trigger_machine.step(
        trigger_machine.TriggerFacts(
            trigger=ManualTrigger.parse(an_object("PodSnapshotManualTrigger")),
            snapshot=snapshot,
            was_created=False,
            refusal=refusal,
        )
    ).condition
    assert judged is not None
    return an_object("PodSnapshotManualTrigger", judged)


def a_snapshot(
    state: State, record: Mapping[str, Any] | None = None, *, policy_exists: bool = True
) -> dict[str, Any]:
    """Return a snapshot of which the state machine says that it is in a state."""
    parts = [
        Condition("Checkpoint", "True", "Succeeded"),
        Condition("StorageReplicated", "True", "Succeeded"),
    ]
    stored = {State.UPLOADING: 1, State.AVAILABLE: 2, State.OBSOLETE: 2}.get(state, 0)
    status = {"podsnap": dict(record or {})}
    facts = Snapshot.parse(an_object("PodSnapshot", *parts[:stored], **status))
    judged = step(SnapshotFacts(facts, policy_exists=policy_exists))
    assert judged.state is state
    return an_object("PodSnapshot", *parts[:stored], ready_condition(judged), **status)


def a_source(tell: Callable[[GitSource], Status]) -> dict[str, Any]:
    """Return a GitSource with what its controller says of it."""
    return an_object("GitSource", *tell(GitSource.parse(an_object("GitSource"))).conditions)


_CLAIMED = {"capture": {"node": "node-1", "podName": "web-0", "podUID": "u"}}
_FAILED = {"capture": {"node": "n", "failure": {"reason": "CheckpointFailed", "message": "m"}}}
_THREE = {"failures": {f"uid-{n}": "bad file descriptor" for n in range(3)}}
_SUSPENDED = a_source(lambda s: applied(s, ["m"]))
_SUSPENDED["spec"] = {**_SUSPENDED["spec"], "suspend": True}
_BEHIND = a_policy(a_store())
_BEHIND["status"]["observedGeneration"] = 0

ROWS: dict[str, Row] = {
    "any kind, not looked at yet": Row(an_object("PodSnapshotPolicy"), "Progressing", "InProgress"),
    "any kind, changed since": Row(_BEHIND, "Progressing", "InProgress"),
    "policy Ready": Row(a_policy(a_store()), "Healthy", "Current"),
    "policy without its storage": Row(a_policy(None), "Degraded", "InProgress"),
    "policy with a wrong annotation": Row(a_policy(a_store(), gate="maybe"), "Degraded", "Failed"),
    "storage Ready": Row(
        an_object("PodSnapshotStorageConfig", Condition(READY, "True", "Ready", "m")),
        "Healthy",
        "Current",
    ),
    "storage that cannot be written": Row(
        an_object("PodSnapshotStorageConfig", Condition(READY, "False", "BucketNotWritable", "m")),
        "Degraded",
        "Failed",
    ),
    "trigger Pending": Row(a_trigger(), "Progressing", "InProgress"),
    "trigger Complete": Row(
        a_trigger(snapshot=Snapshot.parse(a_snapshot(State.AVAILABLE))), "Healthy", "Current"
    ),
    "trigger Failed": Row(a_trigger("PodNotFound: m"), "Degraded", "Failed"),
    "snapshot Pending": Row(a_snapshot(State.PENDING), "Progressing", "InProgress"),
    "snapshot Checkpointing": Row(
        a_snapshot(State.CHECKPOINTING, _CLAIMED), "Progressing", "InProgress"
    ),
    "snapshot Uploading": Row(a_snapshot(State.UPLOADING, _CLAIMED), "Progressing", "InProgress"),
    "snapshot AllSnapshotsAvailable": Row(
        a_snapshot(State.AVAILABLE, _CLAIMED), "Healthy", "Current"
    ),
    "snapshot Obsolete": Row(
        a_snapshot(State.OBSOLETE, _CLAIMED, policy_exists=False), "Suspended", "Current"
    ),
    "snapshot Obsolete, quarantined after failed restores": Row(
        a_snapshot(State.OBSOLETE, {**_CLAIMED, **_THREE}), "Degraded", "Failed"
    ),
    "snapshot Obsolete, quarantined for damaged bytes": Row(
        a_snapshot(State.OBSOLETE, {**_CLAIMED, "damage": {"message": "pages.img: digest"}}),
        "Degraded",
        "Failed",
    ),
    "snapshot Failed": Row(a_snapshot(State.FAILED, _FAILED), "Degraded", "Failed"),
    "source Ready": Row(a_source(lambda s: applied(s, ["m"])), "Healthy", "Current"),
    "source Reconciling": Row(a_source(lambda s: working(s, "m")), "Progressing", "InProgress"),
    "source that tries again": Row(
        a_source(lambda s: failed(s, Failure("FetchFailed", "m"))), "Progressing", "InProgress"
    ),
    "source Stalled": Row(
        a_source(lambda s: failed(s, Failure("TreeRefused", "m", is_stalled=True))),
        "Degraded",
        "Failed",
    ),
    "source suspended": Row(_SUSPENDED, "Suspended", "Current"),
}


@pytest.mark.parametrize("state", ROWS)
def test_argo_cd_gives_each_state_its_health(
    gitops_tools: Toolchain, tmp_path: Path, state: str
) -> None:
    """By Argo CD's own command and the ConfigMap as it is installed."""
    assert assess(gitops_tools, ROWS[state].obj, tmp_path) == ROWS[state].argo_cd


@pytest.fixture(scope="module")
def flux_verdicts(flux: Flux, git_server: GitServer, bucket_root: Path) -> dict[str, str]:
    """Have all rows judged at once, each by a Kustomization that checks its health."""
    namespace = "health"
    client = flux.client
    client.apply(
        Resource("", "v1", "namespaces", "Namespace", namespaced=False),
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        field_manager="tests",
    )
    repository = git_server.repository("health")
    tree = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: nothing}\n"
    flux.publish("health", repository, repository.commit(nothing=tree))
    names = {state: f"row-{number}" for number, state in enumerate(ROWS)}
    world = World(client, namespace, bucket_root)
    for state, name in names.items():
        _put(world, name, ROWS[state].obj)
        checked = {k: ROWS[state].obj[k] for k in ("apiVersion", "kind")}
        flux.follow(
            name,
            sourceRef={"kind": "GitRepository", "name": "health"},
            targetNamespace=namespace,
            namePrefix=f"{name}-",
            wait=False,
            healthChecks=[{**checked, "name": name, **_place(ROWS[state].obj, namespace)}],
        )
    # Those that go on come last: when the others are decided, they were looked at too.
    goes_on = {state: row.flux == "InProgress" for state, row in ROWS.items()}
    last = sorted(names, key=lambda state: goes_on[state])
    return {s: _verdict(flux, names[s], may_go_on=goes_on[s]) for s in last}


def _place(obj: Mapping[str, Any], namespace: str) -> dict[str, str]:
    return {"namespace": namespace} if RESOURCES[obj["kind"]].namespaced else {}


def _put(world: World, name: str, obj: Mapping[str, Any]) -> None:
    resource = RESOURCES[obj["kind"]]
    body = {**obj, "metadata": {"name": name, **_place(obj, world.namespace)}}
    status = body.pop("status", None)
    world.create(resource, body)
    if status is None:
        return
    del body["spec"]
    world.admin.apply(
        resource, {**body, "status": status}, field_manager="tests", subresource="status"
    )


def _verdict(flux: Flux, name: str, *, may_go_on: bool) -> str:
    """Return kstatus's word; Flux gives a check that goes on up after 30 s, too long for a test."""

    def told() -> str:
        ready = flux.condition(name)
        if ready.get("status") == "True":
            return "Current"
        if ready.get("reason") == "HealthCheckFailed":
            found = re.search(r" status: '(\w+)'", ready["message"])
            return found[1] if found else ready["message"]
        running = flux.condition(name, "Reconciling").get("message", "")
        return "InProgress" if may_go_on and running.startswith("Running health") else ""

    return eventually(f"Flux's verdict on {name}, see {flux.log}", told)


@pytest.mark.parametrize("state", ROWS)
def test_flux_gives_each_state_its_health(flux_verdicts: dict[str, str], state: str) -> None:
    """By the real controller and the expressions as they are installed."""
    assert flux_verdicts[state] == ROWS[state].flux


def test_the_page_has_the_table() -> None:
    """What people read is what is tried here."""
    table = re.findall(r"^\| (.+?) \| (\w+) \| (\w+) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert table == [(state, row.argo_cd, row.flux) for state, row in ROWS.items()]
