# SPDX-License-Identifier: Apache-2.0
"""Policies that come from Git: applied, kept, pruned, and never half."""

from collections.abc import Callable

import pytest
import yaml
from cluster_world import eventually
from git_repository import Repository

from backends.kube.client import POD_SNAPSHOT_POLICIES, POD_SNAPSHOT_STORAGE_CONFIGS
from schemas.names import GIT_REVISION_ANNOTATION

pytestmark = pytest.mark.usefixtures("manager")


def test_a_commit_is_applied_with_its_revision(repository: Repository) -> None:
    """In order, with the source's namespace, and other kinds are left alone and listed."""
    foreign = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: app}\n"
    config = {
        "apiVersion": "podsnapshot.gke.io/v1",
        "kind": "PodSnapshotStorageConfig",
        "metadata": {"name": repository.world.store, "namespace": "ignored"},
        "spec": {"snapshotStorageConfig": {"gcs": {"bucket": "bucket-from-git"}}},
    }
    commit = repository.commit(
        a__policy=repository.policy_text(), z=yaml.safe_dump(config), app=foreign
    )
    repository.follow()
    ready = repository.applied(commit)
    assert (ready["status"], ready["reason"]) == ("True", "Applied")
    assert "2 objects; left alone: Deployment" in ready["message"]
    policy = repository.policy()
    assert policy is not None
    assert policy["metadata"]["annotations"][GIT_REVISION_ANNOTATION] == f"HEAD@sha1:{commit}"
    assert repository.world.get(POD_SNAPSHOT_STORAGE_CONFIGS, repository.world.store)
    kinds = [e["kind"] for e in repository.status()["inventory"]]
    assert kinds == ["PodSnapshotStorageConfig", "PodSnapshotPolicy"]


def test_a_manifest_of_the_preview_is_applied(repository: Repository) -> None:
    """As kubectl applies it."""
    preview = repository.policy_text().replace(
        "podsnapshot.gke.io/v1", "podsnapshot.gke.io/v1alpha1"
    )

    commit = repository.commit(policy=preview)
    repository.follow()
    repository.applied(commit)
    assert repository.policy() is not None


def test_a_branch_and_a_folder_are_followed(repository: Repository) -> None:
    """What lies elsewhere does not count."""
    commit = repository.commit(
        policies__web=repository.policy_text(), elsewhere=repository.policy_text("other")
    )
    repository.follow(ref={"branch": "main"}, path="./policies/")
    repository.applied(commit)
    assert repository.status()["lastAppliedRevision"] == f"main@sha1:{commit}"
    assert repository.policy("other") is None


def test_drift_is_corrected(repository: Repository) -> None:
    """Git wins over a hand that edits, and brings back what was deleted."""
    commit = repository.commit(web=repository.policy_text())
    repository.follow()
    repository.applied(commit)
    admin, namespace = repository.world.admin, repository.world.namespace
    admin.merge_patch(
        POD_SNAPSHOT_POLICIES,
        "web",
        {"spec": {"storageConfigName": "by-hand"}},
        namespace=namespace,
        field_manager="user",
    )

    def storage() -> str:
        return str((repository.policy() or {"spec": {}})["spec"].get("storageConfigName", ""))

    eventually(lambda: storage() == repository.world.store, "the edit is undone")
    admin.delete(POD_SNAPSHOT_POLICIES, "web", namespace=namespace)
    eventually(lambda: storage() == repository.world.store, "the policy is back")


def test_what_leaves_the_repository_is_pruned(repository: Repository) -> None:
    """And only that: what somebody made by hand stays."""
    first = repository.commit(a=repository.policy_text("a"), b=repository.policy_text("b"))
    repository.follow()
    repository.applied(first)
    repository.world.policy("by-hand")
    second = repository.commit(b=None)
    repository.applied(second)
    eventually(lambda: repository.policy("b") is None, "b is pruned")
    assert repository.policy("a")
    assert repository.policy("by-hand")
    assert [e["name"] for e in repository.status()["inventory"]] == ["a"]


def test_without_prune_it_stays_and_is_remembered(repository: Repository) -> None:
    """So that switching pruning on later still finds it."""
    first = repository.commit(a=repository.policy_text("a"), b=repository.policy_text("b"))
    repository.follow(prune=False)
    repository.applied(first)
    repository.applied(repository.commit(b=None))
    assert repository.policy("b")
    assert {e["name"] for e in repository.status()["inventory"]} == {"a", "b"}


def storage(repository: Repository, namespace: str, bucket: str) -> str:
    """Return a storage config as the preview had it."""
    body = {
        "apiVersion": "podsnapshot.gke.io/v1alpha1",
        "kind": "PodSnapshotStorageConfig",
        "metadata": {"name": repository.world.store, "namespace": namespace},
        "spec": {"snapshotStorageConfig": {"gcs": {"bucket": bucket}}},
    }
    return yaml.safe_dump(body)


BAD: dict[str, tuple[Callable[[Repository], str], str]] = {
    "a syntax error": (lambda _: "kind: [\n", "bad.yaml:2:1: syntax error"),
    "a duplicate key": (
        lambda _: "kind: A\nmetadata:\n  name: x\n  name: y\n",
        "bad.yaml:4:3: duplicate key",
    ),
    "an unknown kind of ours": (
        lambda _: "apiVersion: podsnapshot.gke.io/v1\nkind: PodSnapshotPolice\n",
        "bad.yaml:2:1: podsnapshot.gke.io/v1 has no kind PodSnapshotPolice",
    ),
    "an unknown field": (lambda r: r.policy_text("x", retain="30d"), "'retain' was unexpected"),
    "an unknown trigger type": (
        lambda r: r.policy_text("x", triggerConfig={"type": "sometimes"}),
        "'sometimes' is not one of",
    ),
    "an object that stands there twice": (lambda r: r.policy_text("web"), "stands in"),
    "a binary file": (lambda _: "a\0b", "bad.yaml:1:2: the file is no YAML"),
    "a pointer to large file storage": (
        lambda _: "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "bad.yaml:1:1: the file is a Git LFS pointer",
    ),
    "a bomb of aliases": (
        lambda _: (
            "a0: &a0 [x]\n"
            + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
        ),
        "bad.yaml:",
    ),
    "folders in folders of YAML": (lambda _: "a: " + "[" * 500, "bad.yaml:1:"),
    "a storage config of two namespaces": (
        lambda r: storage(r, "one", "bucket-1") + "---\n" + storage(r, "two", "bucket-2"),
        "of namespace two has another content than that of namespace one",
    ),
    "a kind that the system makes": (
        lambda _: (
            "apiVersion: podsnapshot.gke.io/v1\nkind: PodSnapshot\nmetadata: {name: x}\n"
            "spec: {policyName: web}\n"
        ),
        "bad.yaml:2:1: a PodSnapshot cannot be brought by Git",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_wrong_file_stops_the_whole_commit(repository: Repository, what: str) -> None:
    """The last good revision stays, and the message names file, line and column."""
    make, expected = BAD[what]
    good = repository.commit(web=repository.policy_text())
    repository.follow()
    repository.applied(good)
    repository.commit(bad=make(repository), new=repository.policy_text("new"))
    message = repository.refused(expected)
    assert "stays applied" in message
    first = message.splitlines()[0]
    assert first.split(":")[0].endswith(".yaml")
    assert first.split(":")[1].isdigit()
    assert first.split(":")[2].isdigit()
    assert repository.status()["lastAppliedRevision"].endswith(good)
    assert repository.policy("new") is None
    assert repository.policy("web")
    mended = repository.commit(bad=None)
    assert repository.applied(mended)["status"] == "True"


def test_a_repository_that_is_not_there_is_told(repository: Repository) -> None:
    """And a branch that is not in it."""
    repository.commit(web=repository.policy_text())
    repository.follow(ref={"branch": "none"})
    message = repository.refused("has no branch none; check spec.ref")
    assert repository.ready()["reason"] == "RefNotFound"
    assert str(repository.path) in message


def test_a_source_brings_nothing_into_another_namespace(repository: Repository) -> None:
    """The controller may write everywhere; whoever may create a GitSource may not."""
    body = yaml.safe_load(repository.policy_text())
    body["metadata"]["namespace"] = "default"
    repository.commit(web=yaml.safe_dump(body))
    repository.follow()

    message = repository.refused("brings nothing into namespace default")

    assert message.startswith("web.yaml:")
    assert repository.policy("web") is None


def test_a_source_takes_over_no_storage_config_of_somebody_else(repository: Repository) -> None:
    """It serves every tenant: another bucket under its name would get their memory."""
    repository.world.storage()
    config = {
        "apiVersion": "podsnapshot.gke.io/v1",
        "kind": "PodSnapshotStorageConfig",
        "metadata": {"name": repository.world.store},
        "spec": {"snapshotStorageConfig": {"gcs": {"bucket": "mine-now"}}},
    }
    repository.commit(store=yaml.safe_dump(config))
    repository.follow()

    repository.refused("was brought by somebody else")

    live = repository.world.get(POD_SNAPSHOT_STORAGE_CONFIGS, repository.world.store)
    assert live is not None
    assert live["spec"]["snapshotStorageConfig"]["gcs"]["bucket"] != "mine-now"
