# SPDX-License-Identifier: Apache-2.0
"""Policies that Flux's own kustomize-controller applies, with podsnap's controller at work."""

from pathlib import Path

import pytest

from backends.kube.client import POD_SNAPSHOT_POLICIES, POD_SNAPSHOTS, KubeClient
from reconciler.manager import Manager
from tests.cluster_scene import eventually
from tests.component.cluster_world import World
from tests.gitops.flux import Flux, make_namespace
from tests.gitops.git_repository import GitServer
from tests.gitops.tree import LOOKS, Tree, assert_podsnap_owns_status_only, quoted

pytestmark = pytest.mark.usefixtures("manager")


@pytest.fixture
def tree(world: World, git_server: GitServer) -> Tree:
    """A repository for a namespace of the test's own."""
    world.make_bucket()
    return Tree(world, git_server.repository(world.namespace))


@pytest.fixture(scope="module", autouse=True)
def without_storage(manager: Manager, flux: Flux, git_server: GitServer, bucket_root: Path) -> Tree:
    """Have Flux apply a policy without its storage config: it waits for 30 s at the least."""
    name = "without-storage"
    make_namespace(flux.client, name)
    tree = Tree(World(flux.client, name, bucket_root / name), git_server.repository(name))
    sync(flux, tree, tree.repository.commit(policy=tree.policy()), timeout="30s")
    return tree


def sync(flux: Flux, tree: Tree, commit: str, **spec: object) -> str:
    """Publish a commit and follow it; returns the revision."""
    name = tree.world.namespace
    revision = flux.publish(name, tree.repository, commit)
    flux.follow(name, targetNamespace=name, **spec)
    return revision


def test_a_commit_is_applied_is_healthy_and_stays_without_drift(
    flux: Flux, tree: Tree, agent_client: KubeClient
) -> None:
    """However often Flux looks, it writes nothing; and a snapshot is none of its business."""
    world, name = tree.world, tree.world.namespace
    first = tree.repository.commit(storage=tree.storage(), policy=tree.policy())
    flux.applied(name, sync(flux, tree, first))
    world.pod(nodeName=name)
    second = tree.repository.commit(trigger=tree.trigger())
    revision = flux.publish(name, tree.repository, second)
    snapshot = tree.saved_snapshot(agent_client)
    flux.applied(name, revision)
    before = tree.versions()

    for _ in range(LOOKS):
        found = flux.request(name)
        assert found["status"]["lastAppliedRevision"] == revision
        assert flux.condition(name)["status"] == "True"

    assert tree.versions() == before
    assert_podsnap_owns_status_only(tree.applied_objects())
    ids = sorted(e["id"] for e in found["status"]["inventory"]["entries"])
    assert ids == [
        f"_{world.store}_podsnapshot.gke.io_PodSnapshotStorageConfig",
        f"{name}_now_podsnapshot.gke.io_PodSnapshotManualTrigger",
        f"{name}_web_podsnapshot.gke.io_PodSnapshotPolicy",
    ]
    kept = world.get(POD_SNAPSHOTS, snapshot["metadata"]["name"])
    assert kept is not None
    assert not [k for k in kept["metadata"]["labels"] if "fluxcd" in k]


def test_what_leaves_git_goes_and_its_snapshots_stay(
    flux: Flux, tree: Tree, agent_client: KubeClient
) -> None:
    """Flux prunes what it applied; what podsnap made of it is kept, and obsolete."""
    world, name = tree.world, tree.world.namespace
    first = tree.repository.commit(
        storage=tree.storage(),
        policy=tree.policy(),
        other=tree.policy("other", selector={"matchLabels": {"app": "other"}}),
    )
    flux.applied(name, sync(flux, tree, first))
    world.pod(nodeName=name)
    world.trigger("by-hand")
    snapshot = tree.saved_snapshot(agent_client)["metadata"]["name"]

    second = tree.repository.commit(policy=None)
    flux.applied(name, flux.publish(name, tree.repository, second))

    eventually("the policy is pruned", lambda: world.get(POD_SNAPSHOT_POLICIES, "web") is None)
    assert world.get(POD_SNAPSHOT_POLICIES, "other")

    def is_obsolete() -> bool:
        return world.condition(POD_SNAPSHOTS, snapshot, "Ready").get("reason") == "Obsolete"

    eventually("the snapshot is kept", is_obsolete)


@pytest.mark.parametrize("wrong", ["snapshot.gke.io/v1", "Workload"])
def test_an_old_spelling_is_refused_in_the_words_that_troubleshooting_quotes(
    flux: Flux, tree: Tree, wrong: str
) -> None:
    """Whoever searches for what Flux says finds the page."""
    name = tree.world.namespace
    old = tree.repository.commit(storage=tree.storage(), policy=tree.old_spelling(wrong))
    sync(flux, tree, old)

    message = flux.refused(name, "dry-run failed")

    assert message.startswith(tuple(quoted("Flux", wrong, name))), message
    assert tree.world.get(POD_SNAPSHOT_POLICIES, "web") is None


def test_a_storage_config_without_its_bucket_is_shown_at_once(
    flux: Flux, world: World, git_server: GitServer
) -> None:
    """The Kustomization is not Ready and names it."""
    name = world.namespace
    tree = Tree(world, git_server.repository(name))
    sync(flux, tree, tree.repository.commit(storage=tree.storage(), policy=tree.policy()))

    message = flux.refused(name, "PodSnapshotStorageConfig")

    assert flux.condition(name)["reason"] == "HealthCheckFailed"
    assert f"PodSnapshotStorageConfig/{world.store} status: 'Failed'" in message


def test_a_policy_without_its_storage_config_is_shown_when_the_timeout_is_over(
    flux: Flux, without_storage: Tree
) -> None:
    """The Kustomization names it; with the storage config it becomes Ready."""
    world = without_storage.world
    name = world.namespace

    message = flux.refused(name, "PodSnapshotPolicy")

    assert flux.condition(name)["reason"] == "HealthCheckFailed"
    assert f"timeout waiting for: [PodSnapshotPolicy/{name}/web status: 'InProgress']" in message
    world.make_bucket()
    mended = without_storage.repository.commit(storage=without_storage.storage())
    flux.applied(name, flux.publish(name, without_storage.repository, mended))
