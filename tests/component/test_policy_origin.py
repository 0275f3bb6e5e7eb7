# SPDX-License-Identifier: Apache-2.0
"""Which commit brought a policy: what GitSource, Flux and Argo CD keep, on a real API server."""

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from cluster_world import World, eventually, resource_of
from snapshot_bytes import make_snapshot

from backends.kube.client import (
    GIT_SOURCES,
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOTS,
    KubeClient,
    Resource,
)
from backends.kube.errors import ApiError, NotFound
from reconciler.manager import Manager
from reconciler.policy_origin import (
    APPLICATIONS,
    ARGO_TRACKING_ANNOTATION,
    FLUX_NAME_LABEL,
    FLUX_NAMESPACE_LABEL,
    KUSTOMIZATIONS,
    PolicyOrigins,
)
from schemas.names import (
    ARGO_INSTANCE_LABEL,
    GIT_REVISION_ANNOTATION,
    GIT_SOURCE_ANNOTATION,
    GITSOURCE_MANAGER,
)
from schemas.policy import Policy
from schemas.policy_origin import PolicyOrigin
from schemas.snapshot import Snapshot

NEW = "main@sha1:2222222222222222222222222222222222222222"
OLD = "main@sha1:1111111111111111111111111111111111111111"
COMMIT, EARLIER = NEW.rpartition(":")[2], OLD.rpartition(":")[2]
SEEN, APPLIED, LATER = (f"2026-01-01T10:00:0{n}Z" for n in (1, 2, 3))
REPOSITORIES = Resource("source.toolkit.fluxcd.io", "v1", "gitrepositories", "GitRepository")


@pytest.fixture(scope="module", autouse=True)
def foreign_kinds(admin: KubeClient) -> None:
    """The kinds of Flux and Argo CD, without their schemas; OCIRepository is not installed."""
    for kind in (KUSTOMIZATIONS, REPOSITORIES, APPLICATIONS):
        tree = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        version = {"name": kind.version, "served": True, "storage": True}
        body = {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{kind.plural}.{kind.group}"},
            "spec": {
                "group": kind.group,
                "scope": "Namespaced",
                "names": {"plural": kind.plural, "kind": kind.kind},
                "versions": [{**version, "schema": {"openAPIV3Schema": tree}}],
            },
        }
        admin.apply(resource_of(body), body, field_manager="tests", force=True)
        eventually(served(admin, kind), f"{kind.kind} is served")


def served(admin: KubeClient, kind: Resource) -> Callable[[], bool]:
    """Return what tells whether a kind is served."""

    def is_served() -> bool:
        try:
            admin.list(kind)
        except NotFound:
            return False
        return True

    return is_served


def put(world: World, kind: Resource, name: str, **fields: Any) -> None:  # noqa: ANN401 - any field
    """Create an object of another tool, with its status."""
    body = {
        "apiVersion": f"{kind.group}/{kind.version}",
        "kind": kind.kind,
        "metadata": {"name": name, "namespace": world.namespace},
        **fields,
    }
    world.admin.create(kind, body, field_manager="tests")


def brought(world: World, **metadata: Mapping[str, str]) -> Policy:
    """Return a policy that carries a tool's marks."""
    world.policy()
    patch = {"metadata": metadata}
    raw = world.admin.merge_patch(
        POD_SNAPSHOT_POLICIES, "web", patch, namespace=world.namespace, field_manager="tests"
    )
    return Policy.parse(raw)


def listed(world: World) -> dict[str, str]:
    """Return the policy as an inventory has it."""
    kind = POD_SNAPSHOT_POLICIES
    return {
        "group": kind.group,
        "kind": kind.kind,
        "namespace": world.namespace,
        "name": "web",
    }


def flux_inventory(world: World) -> dict[str, Any]:
    """Return the inventory of a Kustomization that applied the policy."""
    entry = f"{world.namespace}_web_podsnapshot.gke.io_PodSnapshotPolicy"
    return {"inventory": {"entries": [{"id": entry, "v": "v1"}]}}


def flux(world: World) -> Policy:
    """Return a policy that a Kustomization ``apps`` applied."""
    labels = {FLUX_NAME_LABEL: "apps", FLUX_NAMESPACE_LABEL: world.namespace}
    return brought(world, labels=labels)


def known(origin: PolicyOrigin) -> tuple[str, str, str]:
    """Return what a lookup adds."""
    return (origin.revision, origin.seen_at, origin.applied_at)


GIT_STATUSES = {
    "applied": (
        {
            "lastAppliedRevision": NEW,
            "revisionSeenTime": SEEN,
            "revisionAppliedTime": APPLIED,
        },
        (NEW, SEEN, APPLIED),
    ),
    "at work": (
        {
            "lastAppliedRevision": OLD,
            "lastAttemptedRevision": NEW,
            "lastAttemptedSeenTime": SEEN,
            "revisionSeenTime": LATER,
            "revisionAppliedTime": LATER,
        },
        (NEW, SEEN, ""),
    ),
    "at another commit": (
        {"lastAppliedRevision": OLD, "revisionSeenTime": SEEN, "revisionAppliedTime": APPLIED},
        (NEW, "", ""),
    ),
}


@pytest.mark.parametrize(("status", "expected"), GIT_STATUSES.values(), ids=list(GIT_STATUSES))
def test_a_git_source_tells_when_it_saw_and_applied_the_revision(
    world: World,
    controller_client: KubeClient,
    status: dict[str, str],
    expected: tuple[str, str, str],
) -> None:
    """The policy's own annotation has the revision; instants of another one are not its."""
    spec = {"url": "https://git.example/policies.git", "ref": {"branch": "main"}, "suspend": True}
    put(world, GIT_SOURCES, "apps", spec=spec)
    source = {"metadata": {"name": "apps", "namespace": world.namespace}}
    source["status"] = {**status, "inventory": [listed(world)]}
    world.admin.apply(
        GIT_SOURCES,
        {"apiVersion": "podsnap.dev/v1alpha1", "kind": "GitSource", **source},
        field_manager=GITSOURCE_MANAGER,
        subresource="status",
        force=True,
    )
    named = f"{world.namespace}/apps"
    policy = brought(
        world, annotations={GIT_SOURCE_ANNOTATION: named, GIT_REVISION_ANNOTATION: NEW}
    )
    origin = PolicyOrigins(controller_client).of(policy)
    assert known(origin) == expected
    assert origin.source == f"GitSource {named}"
    assert origin.created_at == policy.metadata.creation_timestamp


READY = {"type": "Ready", "status": "True", "lastTransitionTime": LATER}
WORKING = {"type": "Ready", "status": "Unknown", "lastTransitionTime": LATER}
HISTORY = [
    {"firstReconciled": APPLIED, "metadata": {"revision": NEW}},
    {"firstReconciled": SEEN, "metadata": {"revision": OLD}},
]
FLUX_STATUSES = {
    "history": (
        {"lastAppliedRevision": NEW, "conditions": [READY], "history": HISTORY},
        (NEW, SEEN, APPLIED),
    ),
    "an older Flux": ({"lastAppliedRevision": NEW, "conditions": [READY]}, (NEW, SEEN, LATER)),
    "at work": (
        {"lastAppliedRevision": OLD, "lastAttemptedRevision": NEW, "conditions": [WORKING]},
        (NEW, SEEN, ""),
    ),
    "the source is ahead": (
        {"lastAppliedRevision": OLD, "conditions": [READY], "history": HISTORY},
        (OLD, "", SEEN),
    ),
    "an OCI image": (
        {
            "lastAppliedRevision": "latest@sha256:33",
            "lastAppliedOriginRevision": NEW,
            "conditions": [READY],
        },
        (NEW, "", LATER),
    ),
    "nothing yet": ({}, ("", "", "")),
}


@pytest.mark.parametrize(("status", "expected"), FLUX_STATUSES.values(), ids=list(FLUX_STATUSES))
def test_a_kustomization_tells_its_revision_and_its_source_when_that_was_fetched(
    world: World,
    controller_client: KubeClient,
    status: dict[str, Any],
    expected: tuple[str, str, str],
) -> None:
    """Found by the labels that Flux puts on what it applies."""
    artifact = {"revision": NEW, "lastUpdateTime": SEEN}
    put(world, REPOSITORIES, "repo", status={"artifact": artifact})
    reference = {"kind": "GitRepository", "name": "repo"}
    status = {**status, **flux_inventory(world)}
    put(world, KUSTOMIZATIONS, "apps", spec={"sourceRef": reference}, status=status)
    origin = PolicyOrigins(controller_client).of(flux(world))
    assert known(origin) == expected
    assert origin.source == f"Kustomization {world.namespace}/apps"


def test_a_source_of_a_kind_that_is_not_installed_leaves_the_revision(
    world: World, controller_client: KubeClient
) -> None:
    """One answer is missing, not all."""
    reference = {"kind": "OCIRepository", "name": "repo"}
    status = {"lastAppliedRevision": NEW, "conditions": [READY], **flux_inventory(world)}
    put(world, KUSTOMIZATIONS, "apps", spec={"sourceRef": reference}, status=status)
    assert known(PolicyOrigins(controller_client).of(flux(world))) == (NEW, "", LATER)


SYNCED = {"status": "Synced", "revision": COMMIT}
OPERATION = {"startedAt": SEEN, "finishedAt": APPLIED, "syncResult": {"revision": COMMIT}}
ARGO_STATUSES = {
    "synced": ({"sync": SYNCED, "operationState": OPERATION}, (COMMIT, SEEN, APPLIED)),
    "syncing": (
        {
            "sync": {"status": "OutOfSync", "revision": COMMIT},
            "operationState": {"startedAt": SEEN, "syncResult": {"revision": COMMIT}},
        },
        (COMMIT, SEEN, ""),
    ),
    "a commit that changed nothing": (
        {
            "sync": SYNCED,
            "operationState": {**OPERATION, "syncResult": {"revision": EARLIER}},
            "reconciledAt": LATER,
        },
        (COMMIT, LATER, LATER),
    ),
    "a newer commit is not applied": (
        {
            "sync": {"status": "OutOfSync", "revision": COMMIT},
            "operationState": {**OPERATION, "syncResult": {"revision": EARLIER}},
        },
        (EARLIER, SEEN, APPLIED),
    ),
    "from its history": (
        {
            "sync": SYNCED,
            "history": [{"revision": COMMIT, "deployStartedAt": SEEN, "deployedAt": APPLIED}],
        },
        (COMMIT, SEEN, APPLIED),
    ),
}


@pytest.mark.parametrize(("status", "expected"), ARGO_STATUSES.values(), ids=list(ARGO_STATUSES))
def test_an_application_tells_the_commit_that_it_synced(
    world: World,
    controller_client: KubeClient,
    status: dict[str, Any],
    expected: tuple[str, str, str],
) -> None:
    """Found by the tracking id, which names the namespace if it is not Argo CD's own."""
    put(world, APPLICATIONS, "apps", status={**status, "resources": [listed(world)]})
    tracking = f"{world.namespace}_apps:podsnapshot.gke.io/PodSnapshotPolicy:shop/web"
    policy = brought(world, annotations={ARGO_TRACKING_ANNOTATION: tracking})
    origin = PolicyOrigins(controller_client).of(policy)
    assert known(origin) == expected
    assert origin.source == f"Application {world.namespace}/apps"


@pytest.mark.parametrize(
    ("labels", "annotations"),
    [
        ({}, {}),
        ({FLUX_NAME_LABEL: "gone", FLUX_NAMESPACE_LABEL: "flux-system"}, {}),
        ({ARGO_INSTANCE_LABEL: "a-helm-release"}, {}),
        ({}, {ARGO_TRACKING_ANNOTATION: "gone:podsnapshot.gke.io/PodSnapshotPolicy:a/b"}),
        ({}, {GIT_SOURCE_ANNOTATION: "no-namespace"}),
        ({}, {GIT_SOURCE_ANNOTATION: "kube-system/apps"}),
    ],
    ids=["kubectl", "Flux is gone", "Helm", "Argo CD is gone", "a strange source", "not its own"],
)
def test_a_policy_that_no_tool_owns_up_to_has_no_commit(
    world: World,
    controller_client: KubeClient,
    labels: dict[str, str],
    annotations: dict[str, str],
) -> None:
    """No error: the trace begins at the policy."""
    policy = brought(world, labels=labels, annotations=annotations)
    assert known(PolicyOrigins(controller_client).of(policy)) == ("", "", "")


def test_without_rights_on_flux_the_policy_has_no_commit(
    world: World, agent_client: KubeClient
) -> None:
    """An installation may leave the optional role out; agents never have it."""
    status = {"lastAppliedRevision": NEW, **flux_inventory(world)}
    put(world, KUSTOMIZATIONS, "apps", status=status)
    with pytest.raises(ApiError):
        agent_client.get(KUSTOMIZATIONS, "apps", namespace=world.namespace)
    assert known(PolicyOrigins(agent_client).of(flux(world))) == ("", "", "")


def test_a_form_that_nobody_knows_is_no_error(world: World, controller_client: KubeClient) -> None:
    """Another tool's next version must not keep Pods from being saved."""
    put(world, KUSTOMIZATIONS, "apps", status="ready", spec=[])
    assert known(PolicyOrigins(controller_client).of(flux(world))) == ("", "", "")


@pytest.mark.parametrize(
    "mark",
    [
        {GIT_SOURCE_ANNOTATION: "{namespace}/../../../../../../api/v1/pods?watch=true"},
        {GIT_SOURCE_ANNOTATION: "{namespace}/.."},
        {ARGO_TRACKING_ANNOTATION: "../../x_..:group/Kind:a/b"},
    ],
    ids=["a watch", "a collection", "another kind"],
)
def test_a_mark_that_is_no_name_is_not_asked_for(
    world: World,
    controller_client: KubeClient,
    monkeypatch: pytest.MonkeyPatch,
    mark: dict[str, str],
) -> None:
    """Whoever may write a policy writes its marks; the controller's rights are not theirs."""
    marks = {key: value.format(namespace=world.namespace) for key, value in mark.items()}
    policy = brought(world, annotations=marks)
    monkeypatch.setattr(controller_client, "get", lambda *_, **__: pytest.fail("it was asked"))
    assert known(PolicyOrigins(controller_client).of(policy)) == ("", "", "")


def test_an_answer_that_is_no_json_is_no_error(
    world: World, controller_client: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy in between may have a page of its own."""
    monkeypatch.setattr(controller_client, "get", lambda *_, **__: json.loads("<html>"))
    assert known(PolicyOrigins(controller_client).of(flux(world))) == ("", "", "")


def test_an_object_that_does_not_list_the_policy_is_not_believed(
    world: World, controller_client: KubeClient
) -> None:
    """Its labels and annotations may be anybody's; a pruned one only claims to be of Argo CD."""
    put(world, KUSTOMIZATIONS, "apps", status={"lastAppliedRevision": NEW, "conditions": [READY]})
    other = {**listed(world), "name": "other"}
    claims = {**listed(world), "requiresPruning": True}
    status = {"sync": SYNCED, "operationState": OPERATION, "resources": [other, claims]}
    put(world, APPLICATIONS, "apps", status=status)
    policy = flux(world)
    assert known(PolicyOrigins(controller_client).of(policy)) == ("", "", "")
    marks = {ARGO_TRACKING_ANNOTATION: f"{world.namespace}_apps:x"}
    metadata = replace(policy.metadata, labels={}, annotations=marks)
    argo = replace(policy, metadata=metadata)
    assert known(PolicyOrigins(controller_client).of(argo)) == ("", "", "")


def test_a_path_holds_no_other_path_and_no_query() -> None:
    """Whatever a name is."""
    path = KUSTOMIZATIONS.path(namespace="a/b", name="../x?watch=true")
    assert path.endswith("/namespaces/a%2Fb/kustomizations/..%2Fx%3Fwatch%3Dtrue")
    for name in (".", ".."):
        with pytest.raises(ValueError, match="no names"):
            KUSTOMIZATIONS.path(namespace="a", name=name)


@pytest.mark.parametrize(
    ("applied_at", "revision"),
    [(APPLIED, NEW), ("2199-01-01T10:00:00Z", "")],
    ids=["before the snapshot", "after it"],
)
def test_a_late_look_leaves_out_a_commit_that_came_after_the_snapshot(
    world: World, agent_client: KubeClient, manager: Manager, applied_at: str, revision: str
) -> None:
    """A node makes snapshots without a look; by the end of the save it may be another commit."""
    ready = {**READY, "lastTransitionTime": applied_at}
    status = {"lastAppliedRevision": NEW, "conditions": [ready], **flux_inventory(world)}
    put(world, KUSTOMIZATIONS, "apps", spec={}, status=status)
    world.make_bucket()
    flux(world)

    def seen() -> bool:
        policy = manager.cache.policies.store.get(world.namespace, "web")
        return policy is not None and FLUX_NAME_LABEL in policy.metadata.labels

    eventually(seen, "the controller sees the labels")
    name = str(uuid.uuid4())
    make_snapshot(world, agent_client, name)

    def traced() -> Snapshot | None:
        found = Snapshot.parse(world.get(POD_SNAPSHOTS, name) or {})
        return found if found.traceparent else None

    assert eventually(traced, "it is traced").origin.revision == revision
