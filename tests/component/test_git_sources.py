# SPDX-License-Identifier: Apache-2.0
"""Policies that come from Git: applied, kept, pruned, and never half."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_world import World, eventually
from dulwich import porcelain
from dulwich.repo import Repo

from backends.kube.client import GIT_SOURCES, POD_SNAPSHOT_POLICIES, POD_SNAPSHOT_STORAGE_CONFIGS
from schemas.names import GIT_REVISION_ANNOTATION, OWN_API_VERSION

pytestmark = pytest.mark.usefixtures("manager")


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository and the GitSource that reads it."""

    world: World
    path: Path

    def commit(self, **files: str | None) -> str:
        """Write files (``None`` removes; ``__`` is a slash, the suffix is .yaml) and commit."""
        for name, text in files.items():
            file = self.path / f"{name.replace('__', '/')}.yaml"
            file.parent.mkdir(exist_ok=True)
            if text is None:
                porcelain.remove(str(self.path), [str(file)])
            else:
                file.write_text(text, encoding="utf-8")
                porcelain.add(str(self.path), [str(file)])
        who = b"t <t@example.org>"
        return porcelain.commit(
            str(self.path), message=b"change", author=who, committer=who
        ).decode()

    def follow(self, **spec: Any) -> None:  # noqa: ANN401 - fields of the source's spec
        """Create the GitSource."""
        body = self.world.object(
            "GitSource", "repo", {"url": f"file://{self.path}", "interval": "200ms", **spec}
        )
        body["apiVersion"] = OWN_API_VERSION
        self.world.create(GIT_SOURCES, body)

    def status(self) -> dict[str, Any]:
        """Return the source's status."""
        status: dict[str, Any] = (self.world.get(GIT_SOURCES, "repo") or {}).get("status") or {}
        return status

    def applied(self, commit: str) -> dict[str, Any]:
        """Wait until a commit is applied, and return the Ready condition."""
        eventually(
            lambda: self.status().get("lastAppliedRevision", "").endswith(commit),
            f"commit {commit} is applied: {self.status()}",
        )
        return self.ready()

    def ready(self) -> dict[str, Any]:
        """Return the Ready condition."""
        return self.world.condition(GIT_SOURCES, "repo", "Ready")

    def refused(self, text: str) -> str:
        """Wait until Ready is False with a text, and return the message."""
        eventually(
            lambda: self.ready().get("status") == "False" and text in self.ready()["message"],
            f"refused with {text!r}",
        )
        return str(self.ready()["message"])

    def policy_text(self, name: str = "web", **spec: Any) -> str:  # noqa: ANN401 - spec fields
        """Return a policy as a file."""
        base = {
            "selector": {"matchLabels": {"app": name}},
            "storageConfigName": self.world.store,
            "triggerConfig": {"type": "manual"},
        }
        body = self.world.object("PodSnapshotPolicy", name, {**base, **spec})
        del body["metadata"]["namespace"]
        return yaml.safe_dump(body)

    def policy(self, name: str = "web") -> dict[str, Any] | None:
        """Return a policy from the cluster."""
        return self.world.get(POD_SNAPSHOT_POLICIES, name)


@pytest.fixture
def repository(world: World, tmp_path: Path) -> Repository:
    """An empty repository."""
    path = tmp_path / "repository"
    Repo.init(str(path), mkdir=True, default_branch=b"main").close()
    return Repository(world, path)


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
        lambda r: r.policy_text("x", triggerConfig={"type": "Workload"}),
        "'Workload' is not one of",
    ),
    "an object that stands there twice": (lambda r: r.policy_text("web"), "stands in"),
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
    assert repository.ready()["reason"] == "FetchFailed"
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
