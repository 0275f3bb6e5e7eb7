# SPDX-License-Identifier: Apache-2.0
"""What a Git tree wants: in v1's spelling, in order, in one namespace."""

import pytest
import yaml

from reconciler.git_manifests import TreeRefusedError, desired_state
from schemas.findings import Severity

V1 = "podsnapshot.gke.io/v1"
PREVIEW = "podsnapshot.gke.io/v1alpha1"


def storage(version: str = V1, bucket: str = "b", **metadata: object) -> str:
    """Return a storage config as a document."""
    return yaml.safe_dump(
        {
            "apiVersion": version,
            "kind": "PodSnapshotStorageConfig",
            "metadata": {"name": "store", **metadata},
            "spec": {"snapshotStorageConfig": {"gcs": {"bucket": bucket}}},
        }
    )


def policy(name: str, version: str = V1, kind: str = "workload", **metadata: object) -> str:
    """Return a policy as a document."""
    return yaml.safe_dump(
        {
            "apiVersion": version,
            "kind": "PodSnapshotPolicy",
            "metadata": {"name": name, **metadata},
            "spec": {
                "storageConfigName": "store",
                "selector": {"matchLabels": {"app": name}},
                "triggerConfig": {"type": kind},
            },
        }
    )


OLD = {
    "the preview's version": (policy("a", PREVIEW), "v1 is apiVersion: podsnapshot.gke.io/v1"),
    "an article's group": (policy("a", "snapshot.gke.io/v1"), "v1 is apiVersion"),
    "an article's trigger": (policy("a", kind="Workload"), "v1 is type: workload"),
    "a namespace on a storage config": (storage(namespace="x"), "v1 has no namespace here"),
}


@pytest.mark.parametrize("what", OLD)
def test_an_old_spelling_is_read_as_v1_and_told_with_its_place(what: str) -> None:
    """As a warning, whatever the API server would have made of it."""
    text, message = OLD[what]
    desired = desired_state({"dir/old.yaml": text.encode()}, namespace="shop")
    (warning,) = desired.warnings
    assert warning.severity is Severity.WARNING
    assert warning.file == "dir/old.yaml"
    assert warning.line >= 1
    assert message in str(warning)
    (wanted,) = desired.objects
    assert wanted.body["apiVersion"] == V1
    assert wanted.body["spec"].get("triggerConfig", {}).get("type", "workload") == "workload"
    is_storage = wanted.entry.kind == "PodSnapshotStorageConfig"
    assert wanted.body["metadata"].get("namespace", "") == ("" if is_storage else "shop")


def test_the_same_storage_config_of_two_namespaces_is_one() -> None:
    """The preview needed one in each; v1 needs one."""
    desired = desired_state(
        {
            "a.yaml": storage(PREVIEW, namespace="a").encode(),
            "b.yaml": storage(PREVIEW, namespace="b").encode(),
        },
        namespace="shop",
    )
    assert [str(d.entry) for d in desired.objects] == ["PodSnapshotStorageConfig store"]


REFUSED = {
    "two namespaces that mean two buckets": (
        storage(namespace="a") + "---\n" + storage(namespace="b", bucket="other"),
        "f.yaml:15:3: PodSnapshotStorageConfig store of namespace b has another content than "
        "that of namespace a in f.yaml:1:1",
    ),
    "one object twice": (policy("a") + "---\n" + policy("a"), "stands in f.yaml:1:1 already"),
    "another namespace": (policy("a", namespace="x"), "brings nothing into namespace x"),
    "a name that leads elsewhere": (policy("../x"), "is no name of an object"),
    "no name of its own": (
        f"apiVersion: {V1}\nkind: PodSnapshotManualTrigger\nmetadata: {{generateName: a-}}\n"
        "spec: {targetPod: web-0}\n",
        "f.yaml:3:12: metadata.name is missing, and generateName would make another object",
    ),
    "a source of sources": (
        "apiVersion: podsnap.dev/v1alpha1\nkind: GitSource\nmetadata: {name: x}\n"
        "spec: {url: 'file:///x'}\n",
        "f.yaml:2:1: a GitSource cannot be brought by Git",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_tree_with_one_wrong_object_is_refused(what: str) -> None:
    """As a whole, with file, line and column."""
    text, message = REFUSED[what]
    with pytest.raises(TreeRefusedError) as found:
        desired_state({"f.yaml": text.encode(), "g.yaml": policy("g").encode()}, namespace="shop")
    assert message in str(found.value)


def test_what_the_server_wrote_into_an_exported_file_is_left_out() -> None:
    """A UID or a resourceVersion of another cluster would refuse the apply."""
    exported = policy("a", uid="1", resourceVersion="2", labels={"team": "red"}, generation=3)
    (wanted,) = desired_state({"f.yaml": exported.encode()}, namespace="shop").objects
    assert wanted.body["metadata"] == {
        "name": "a",
        "namespace": "shop",
        "labels": {"team": "red"},
    }


def test_other_kinds_are_listed_and_left_alone() -> None:
    """Among them those of another project's group with one of our kinds' names."""
    files = {
        "a.yaml": b"apiVersion: apps/v1\nkind: Deployment\n",
        "b.yaml": b"apiVersion: other.example/v1\nkind: PodSnapshot\n",
        "c.yaml": policy("a").encode(),
        "d.yaml": storage().encode(),
    }
    desired = desired_state(files, namespace="shop")
    assert desired.foreign == ("Deployment", "PodSnapshot")
    kinds = [d.entry.kind for d in desired.objects]
    assert kinds == ["PodSnapshotStorageConfig", "PodSnapshotPolicy"]


def test_a_tree_has_so_many_objects_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them stand in one object's status."""
    monkeypatch.setattr("reconciler.git_manifests._OBJECTS", 2)
    files = {f"{n}.yaml": policy(n).encode() for n in "abcd"}
    with pytest.raises(TreeRefusedError, match=r"d\.yaml:1:1: more than 2 objects"):
        desired_state(files, namespace="shop")
    del files["d.yaml"], files["c.yaml"]
    assert len(desired_state(files, namespace="shop").objects) == 2


def test_reading_ends_in_time() -> None:
    """Before the next file."""

    def over() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        desired_state({"a.yaml": policy("a").encode()}, namespace="shop", in_time=over)
