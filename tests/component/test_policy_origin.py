# SPDX-License-Identifier: Apache-2.0
"""Which commit brought a policy: what GitSource, Flux and Argo CD keep, on a real API server."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from cluster_world import World, eventually, resource_of

from backends.kube.client import GIT_SOURCES, POD_SNAPSHOT_POLICIES, KubeClient, Resource
from backends.kube.errors import ApiError, NotFound
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
    source = {"metadata": {"name": "apps", "namespace": world.namespace}, "status": status}
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
    put(world, KUSTOMIZATIONS, "apps", spec={"sourceRef": reference}, status=status)
    origin = PolicyOrigins(controller_client).of(flux(world))
    assert known(origin) == expected
    assert origin.source == f"Kustomization {world.namespace}/apps"


def test_a_source_of_a_kind_that_is_not_installed_leaves_the_revision(
    world: World, controller_client: KubeClient
) -> None:
    """One answer is missing, not all."""
    reference = {"kind": "OCIRepository", "name": "repo"}
    status = {"lastAppliedRevision": NEW, "conditions": [READY]}
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
    put(world, APPLICATIONS, "apps", status=status)
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
    ],
    ids=["kubectl", "Flux is gone", "Helm", "Argo CD is gone", "a strange source"],
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
    put(world, KUSTOMIZATIONS, "apps", status={"lastAppliedRevision": NEW})
    with pytest.raises(ApiError):
        agent_client.get(KUSTOMIZATIONS, "apps", namespace=world.namespace)
    assert known(PolicyOrigins(agent_client).of(flux(world))) == ("", "", "")


def test_a_form_that_nobody_knows_is_no_error(world: World, controller_client: KubeClient) -> None:
    """Another tool's next version must not keep Pods from being saved."""
    put(world, KUSTOMIZATIONS, "apps", status="ready", spec=[])
    assert known(PolicyOrigins(controller_client).of(flux(world))) == ("", "", "")
