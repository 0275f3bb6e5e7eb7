# SPDX-License-Identifier: Apache-2.0
"""What a GitSource must not take, hide or hold up: others' objects, failures, others' turns."""

import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_world import World, eventually, resource_of
from git_repository import Repository
from git_servers import hostile_http, small_commit

from backends.clock import SystemClock
from backends.kube.client import (
    GIT_SOURCES,
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    KubeClient,
    Resource,
)
from backends.kube.errors import ApiError, Invalid
from reconciler.git_source_controller import GitSourceController
from reconciler.manager import Manager
from schemas.names import GIT_SOURCE_ANNOTATION as MARK

pytestmark = pytest.mark.usefixtures("manager")


def bucket(repository: Repository, spec: dict[str, Any]) -> str:
    """Return the storage config of the namespace as a file."""
    return yaml.safe_dump(
        {
            "apiVersion": "podsnapshot.gke.io/v1",
            "kind": "PodSnapshotStorageConfig",
            "metadata": {"name": repository.world.store},
            "spec": {"snapshotStorageConfig": spec},
        }
    )


def test_a_storage_config_of_somebody_else_is_never_taken(repository: Repository) -> None:
    """Neither by saying less nor by saying the same first; nor does it go with the source."""
    world = repository.world
    before = world.storage()
    ours = before["spec"]["snapshotStorageConfig"]["gcs"]
    repository.commit(s=bucket(repository, {}))
    repository.follow()
    repository.refused("was brought by somebody else")
    # The file leaves out what the server fills in.
    same = {"gcs": {k: v for k, v in ours.items() if k != "tokenSource"}}
    made = repository.commit(s=bucket(repository, same), web=repository.policy_text())
    repository.applied(made)
    assert [e["name"] for e in repository.status()["inventory"]] == ["web"]
    repository.commit(s=bucket(repository, {"gcs": {**ours, "bucket": "another"}}))
    repository.refused("was brought by somebody else")
    repository.delete()
    after = world.get(POD_SNAPSHOT_STORAGE_CONFIGS, world.store) or {}
    assert after["spec"] == before["spec"]
    assert MARK not in (after["metadata"].get("annotations") or {})


def test_a_label_added_to_a_selector_is_drift(repository: Repository) -> None:
    """It would narrow what is snapshotted, though all that Git says still stands there."""
    made = repository.commit(web=repository.policy_text())
    repository.follow()
    repository.applied(made)

    def labels(patch: dict[str, str] | None = None) -> Any:  # noqa: ANN401 - JSON
        if patch:
            repository.world.admin.merge_patch(
                POD_SNAPSHOT_POLICIES,
                "web",
                {"spec": {"selector": {"matchLabels": patch}}},
                namespace=repository.world.namespace,
                field_manager="user",
            )
        return (repository.policy() or {})["spec"]["selector"]["matchLabels"]

    labels({"tier": "front"})
    assert repository.told("DriftCorrected") == "set back to Git: PodSnapshotPolicy web"
    eventually(lambda: labels() == {"app": "web"}, "the label is gone")


DENIED = """
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {{name: keep-{namespace}}}
spec:
  matchConstraints:
    namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {namespace}}}}}
    resourceRules:
      - apiGroups: [podsnapshot.gke.io]
        apiVersions: ["*"]
        operations: [DELETE]
        resources: [podsnapshotpolicies]
  validations: [{{expression: "!oldObject.metadata.name.startsWith('kept')"}}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {{name: keep-{namespace}}}
spec: {{policyName: keep-{namespace}, validationActions: [Deny]}}
"""


def test_what_cannot_be_deleted_is_told_and_remembered(repository: Repository) -> None:
    """Ready says so, the event names only what went, and it is tried again."""
    admin, namespace = repository.world.admin, repository.world.namespace
    resources = {
        kind: Resource("admissionregistration.k8s.io", "v1", plural, kind, namespaced=False)
        for kind, plural in (
            ("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings"),
            ("ValidatingAdmissionPolicy", "validatingadmissionpolicies"),
        )
    }
    for document in yaml.safe_load_all(DENIED.format(namespace=namespace)):
        admin.create(resources[document["kind"]], document, field_manager="user")
    names = ("kept", "b", "c", "d")
    made = repository.commit(**{n: repository.policy_text(n) for n in names})
    repository.follow()
    repository.applied(made)

    def is_in_force() -> bool:
        probe = f"kept-{uuid.uuid4().hex}"
        repository.world.policy(probe)
        try:
            admin.delete(POD_SNAPSHOT_POLICIES, probe, namespace=namespace)
        except ApiError:
            return True
        return False

    eventually(is_in_force, "the rule is in force")
    last = repository.commit(kept=None, b=None)
    assert "PodSnapshotPolicy kept: " in repository.refused("could not be deleted")
    assert repository.ready()["reason"] == "PruneFailed"
    assert repository.told("Pruned") == "left the repository: PodSnapshotPolicy b"
    status = repository.status()
    assert {e["name"] for e in status["inventory"]} == {"kept", "c", "d"}
    assert status["lastAppliedRevision"].endswith(last)
    for resource in resources.values():
        admin.delete(resource, f"keep-{namespace}")
    repository.change(requestedAt="now")
    eventually(lambda: repository.ready()["status"] == "True", "it is gone at last")
    assert repository.policy("kept") is None


DURATIONS = {
    "looks without a pause": {"interval": "0s"},
    "a look in a thousand years": {"interval": "9999999h"},
    "more than a clock has": {"interval": "99999999999999999999h"},
    "no time at all": {"timeout": "10ms"},
    "a thread for an hour": {"timeout": "1h"},
}


@pytest.mark.parametrize("what", DURATIONS)
def test_a_duration_has_bounds(repository: Repository, what: str) -> None:
    """The API server refuses what would spin or never end."""
    with pytest.raises(Invalid, match=r"spec\.(interval|timeout)"):
        repository.follow(**DURATIONS[what])


class _StoppedClock(SystemClock):
    """A clock that fails as no clock should."""

    def now(self) -> datetime:
        if not self.failed:
            self.failed = True
            raise OverflowError("s3cret")
        return super().now()

    failed = False


def test_an_error_that_nobody_knows_is_told(
    repository: Repository,
    manager: Manager,
    controller_client: KubeClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By its kind and place, not by its text, which may hold a password."""
    made = repository.commit(web=repository.policy_text())
    repository.follow(interval="1h")
    repository.applied(made)
    controller = GitSourceController(
        controller_client, manager.cache, _StoppedClock(), manager._events
    )
    repository.commit(b=repository.policy_text("b"))
    assert controller.reconcile((repository.world.namespace, "repo"))
    assert "OverflowError" in repository.told("InternalError")
    assert "OverflowError at _reconcile" in caplog.text
    assert "s3cret" not in caplog.text


class _Overtaken(KubeClient):
    """A client that somebody else overtakes between reading a GitSource and writing it."""

    then: Callable[[], object]

    def get(self, resource: Resource, name: str, **where: Any) -> dict[str, Any]:  # noqa: ANN401 - as the client has them
        """Return the source, not suspended, and have it changed at once."""
        found = super().get(resource, name, **where)
        if resource is GIT_SOURCES:
            found["spec"]["suspend"] = False
            self.then()
        return found


@pytest.mark.parametrize("then", ["changed", "deleted"])
def test_nothing_is_applied_for_a_source_that_is_not_held(
    repository: Repository, manager: Manager, controller_client: KubeClient, then: str
) -> None:
    """Whoever changed or deleted it in between would be left with objects of nobody."""
    repository.commit(web=repository.policy_text())
    repository.follow(suspend=True)  # so that the manager leaves it alone
    eventually(lambda: repository.status().get("observedGeneration") == 1, "it was seen")
    client = _Overtaken(controller_client._transport)
    client.then = (
        repository.delete if then == "deleted" else lambda: repository.change(requestedAt="x")
    )
    controller = GitSourceController(client, manager.cache, SystemClock(), manager._events)
    again_s = controller.reconcile((repository.world.namespace, "repo"))
    assert again_s == (None if then == "deleted" else 0.1)
    assert repository.policy() is None


def test_slow_repositories_of_a_namespace_leave_others_their_turn(
    repository: Repository, tmp_path: Path
) -> None:
    """Four of them hold two of the four threads, until their time is over."""
    release = threading.Event()

    def sent() -> Iterator[bytes]:
        release.wait(60)
        yield b""

    made = repository.commit(web=repository.policy_text())
    namespace = f"t{uuid.uuid4().hex[:10]}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    repository.world.admin.create(resource_of(body), body, field_manager="tests")
    other = Repository(World(repository.world.admin, namespace, tmp_path), repository.path)
    with hostile_http(small_commit(web=b""), sent) as server:
        try:
            for n in range(4):
                repository.follow(f"slow-{n}", url=server.url)
            # Each look asks twice, for the head and before the pack.
            eventually(lambda: len(server.requests) >= 4, "two are looked at")
            other.follow()
            other.applied(made)
            assert len(server.requests) == 4
        finally:
            release.set()
