# SPDX-License-Identifier: Apache-2.0
"""Policies that Argo CD's own application controller applies, with podsnap's controller at work."""

import pytest

from backends.kube.client import POD_SNAPSHOT_POLICIES, POD_SNAPSHOTS, PODS, KubeClient
from schemas.names import ARGO_INSTANCE_LABEL
from tests.cluster_scene import eventually
from tests.component.cluster_world import World
from tests.gitops.argo_cd import ArgoCD, standing
from tests.gitops.git_repository import GitServer
from tests.gitops.tree import LOOKS, Tree, assert_podsnap_owns_status_only, quoted

pytestmark = pytest.mark.usefixtures("manager")


@pytest.fixture
def tree(world: World, git_server: GitServer) -> Tree:
    """A repository for a namespace of the test's own."""
    world.make_bucket()
    return Tree(world, git_server.repository(world.namespace))


def sync(argo_cd: ArgoCD, tree: Tree) -> str:
    """Follow the tree's repository; returns the Application's name."""
    name = tree.world.namespace
    # By default a pruned object waits for the garbage collector, and only a whole cluster has one.
    argo_cd.follow(name, tree.repository, name, "PrunePropagationPolicy=background")
    return name


def test_a_commit_is_applied_is_healthy_and_stays_without_drift(
    argo_cd: ArgoCD, tree: Tree, agent_client: KubeClient
) -> None:
    """However often Argo CD compares, all is synced; and a snapshot is none of its business."""
    world = tree.world
    first = tree.repository.commit(storage=tree.storage(), policy=tree.policy())
    name = sync(argo_cd, tree)
    argo_cd.synced(name, first)
    world.pod(nodeName=name)
    second = tree.repository.commit(trigger=tree.trigger())
    argo_cd.refresh(name)
    snapshot = tree.saved_snapshot(agent_client)
    argo_cd.synced(name, second)
    before = tree.versions()

    for _ in range(LOOKS):
        found = argo_cd.refresh(name)
        assert standing(found) == ("Synced", "Healthy", second)

    assert tree.versions() == before
    assert_podsnap_owns_status_only(tree.applied_objects())
    assert sorted(r["kind"] for r in found["status"]["resources"]) == [
        "PodSnapshotManualTrigger",
        "PodSnapshotPolicy",
        "PodSnapshotStorageConfig",
    ]
    kept = world.get(POD_SNAPSHOTS, snapshot["metadata"]["name"])
    assert kept is not None
    marks = {**kept["metadata"]["labels"], **kept["metadata"]["annotations"]}
    assert not [k for k in marks if "argocd" in k or k == "app.kubernetes.io/instance"]


def test_a_snapshot_that_bears_the_tracking_label_is_neither_drift_nor_pruned(
    argo_cd: ArgoCD, tree: Tree, agent_client: KubeClient
) -> None:
    """A policy may group by the very label that Argo CD is told to track by."""
    world = tree.world
    rules = {"groupByLabelValue": {"labels": [ARGO_INSTANCE_LABEL]}}
    first = tree.repository.commit(
        storage=tree.storage(), policy=tree.policy(snapshotGroupingRules=rules)
    )
    name = sync(argo_cd, tree)
    argo_cd.synced(name, first)
    world.pod(nodeName=name, labels={"app": "web", ARGO_INSTANCE_LABEL: name})
    world.trigger("by-hand")
    snapshot = tree.saved_snapshot(agent_client)
    assert snapshot["metadata"]["labels"][ARGO_INSTANCE_LABEL] == name
    world.admin.delete(PODS, "web-0", namespace=world.namespace)  # it bears the label as well

    def is_tracked() -> bool:
        argo_cd.refresh(name)
        metadata = (world.get(POD_SNAPSHOT_POLICIES, "web") or {})["metadata"]
        return (metadata.get("labels") or {}).get(ARGO_INSTANCE_LABEL) == name

    with argo_cd.tracking_by_label():
        eventually("the policy bears the label", is_tracked)
        argo_cd.synced(name, first)
        for _ in range(3):
            found = argo_cd.refresh(name)
            assert standing(found) == ("Synced", "Healthy", first), found["status"]["resources"]

    assert world.get(POD_SNAPSHOTS, snapshot["metadata"]["name"])


def test_what_leaves_git_goes_and_its_snapshots_stay(
    argo_cd: ArgoCD, tree: Tree, agent_client: KubeClient
) -> None:
    """Argo CD prunes what it applied; what podsnap made of it is kept, and obsolete."""
    world = tree.world
    first = tree.repository.commit(
        storage=tree.storage(),
        policy=tree.policy(),
        other=tree.policy("other", selector={"matchLabels": {"app": "other"}}),
    )
    name = sync(argo_cd, tree)
    argo_cd.synced(name, first)
    world.pod(nodeName=name)
    world.trigger("by-hand")
    snapshot = tree.saved_snapshot(agent_client)["metadata"]["name"]

    second = tree.repository.commit(policy=None)
    argo_cd.refresh(name)
    argo_cd.synced(name, second)

    eventually("the policy is pruned", lambda: world.get(POD_SNAPSHOT_POLICIES, "web") is None)
    assert world.get(POD_SNAPSHOT_POLICIES, "other")

    def is_obsolete() -> bool:
        return world.condition(POD_SNAPSHOTS, snapshot, "Ready").get("reason") == "Obsolete"

    eventually("the snapshot is kept", is_obsolete)


def test_a_policy_without_its_storage_config_is_shown_unhealthy(
    argo_cd: ArgoCD, tree: Tree
) -> None:
    """The Application is degraded and says why; with the storage config it is healthy."""
    tree.repository.commit(policy=tree.policy())
    name = sync(argo_cd, tree)

    def is_degraded() -> bool:
        return standing(argo_cd.get(name))[:2] == ("Synced", "Degraded")

    eventually("the Application is degraded", is_degraded)

    health = argo_cd.health_of(name, "PodSnapshotPolicy")
    assert health["status"] == "Degraded"
    mended = tree.repository.commit(storage=tree.storage())
    argo_cd.refresh(name)
    argo_cd.synced(name, mended)


@pytest.mark.parametrize("wrong", ["snapshot.gke.io/v1", "Workload"])
def test_an_old_spelling_is_refused_in_the_words_that_troubleshooting_quotes(
    argo_cd: ArgoCD, tree: Tree, wrong: str
) -> None:
    """Whoever searches for what Argo CD says finds the page."""
    tree.repository.commit(storage=tree.storage(), policy=tree.old_spelling(wrong))
    name = sync(argo_cd, tree)

    told: list[str] = eventually("the sync has failed", lambda: argo_cd.failures(name))

    words = tuple(quoted("Argo CD", wrong, name))
    assert any(t.startswith(words) for t in told), told
    assert tree.world.get(POD_SNAPSHOT_POLICIES, "web") is None
