# SPDX-License-Identifier: Apache-2.0
"""``podsnap store``: what a person is told of a bucket, and what is mended with it."""

import base64
import json
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cluster_world import World, eventually
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from kube_apiserver import ApiServer
from snapshot_bytes import put_parts, stored

from backends.kube.client import (
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    POD_SNAPSHOTS,
    KubeClient,
    Resource,
)
from backends.objects.interface import PermissionDenied
from backends.objects.localdir import LocalDirStore
from nodeexec.image import digest_file
from nodeexec.manifest_reader import read_manifest
from nodeexec.signing import PRIVATE_KEY, SECRETS, SIGNING_SECRET
from nodeexec.upload import upload
from policies.imported_snapshots import imported_object
from reconciler.cluster_id import own_cluster_id
from reconciler.command_line import main
from reconciler.commands.exit_codes import ExitCode
from schemas.manifest import Manifest
from schemas.names import SYSTEM_NAMESPACE
from schemas.policy import Policy
from schemas.snapshot import Compatibility, Snapshot, SpecIdentity
from schemas.storage_config import Location

pytestmark = pytest.mark.usefixtures("manager")
IDENTITY = SpecIdentity("hash-1", {"spec.a": "1"})
# Three chunks, of which the last is not full.
PAGES = bytes(range(256)) * 10_000


@dataclass(slots=True)
class Stocked:
    """A namespace with a policy, a bucket, and a user who asks about it."""

    world: World
    kubeconfig: Path
    images: Path

    def ask(self, command: str, *words: str) -> Result:
        """Run a command in this process; its output is no terminal."""
        options = [f"--kubeconfig={self.kubeconfig}", f"--bucket-root={self.world.bucket.parent}"]
        return CliRunner().invoke(main, ["store", command, *words, *options])

    def told(self, command: str, *words: str) -> Any:  # noqa: ANN401 - any JSON
        """Return what programs are told."""
        done = self.ask(command, *words, "-o", "json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    def store(
        self, *, cluster: str = "c1", parts: tuple[str, ...] = ("checkpoint.img",)
    ) -> Manifest:
        """Leave in the bucket what a save leaves, and nothing in the cluster."""
        name = str(uuid.uuid4())
        directory = self.images / name
        directory.mkdir()
        for part in (*parts, "pages.img"):
            (directory / part).write_bytes(PAGES)
        manifest = Manifest(
            snapshot_uid=f"uid-{name}",
            snapshot_name=name,
            namespace=self.world.namespace,
            cluster_id=cluster,
            attempt=1,
            parts=tuple(digest_file(directory / part) for part in (*parts, "pages.img")),
            identity=IDENTITY,
            compatibility=Compatibility("release-1"),
            image_ids={"main": "sha256:1"},
            origin_node="node-that-is-gone",
            origin_pod="web-0",
        )
        location = Location(self.world.bucket.name, f"snapshots/{name}")
        bucket = LocalDirStore(self.world.bucket)
        upload(bucket, location, directory, manifest, cancelled=lambda: False)
        return manifest

    def take(self, *words: str) -> list[dict[str, Any]]:
        """Import, and return what was told of each snapshot."""
        found: list[dict[str, Any]] = self.told(
            "import", self.world.store, f"--namespace={self.world.namespace}", *words
        )
        return found

    def snapshot(self, name: str) -> Snapshot:
        """Return a PodSnapshot as it is now."""
        return Snapshot.parse(self.world.get(POD_SNAPSHOTS, name) or {})


@pytest.fixture
def stocked(world: World, api_server: ApiServer, tmp_path: Path) -> Stocked:
    """An empty bucket, a config that names it and a policy that uses it."""
    world.make_bucket()
    world.storage()
    world.policy()
    return Stocked(world, api_server.kubeconfig("admin"), tmp_path)


def age(path: Path) -> None:
    """Let all below a folder have been written two days ago, as its bucket says."""
    for file in path.rglob("*"):
        os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 2 * 86400))


def forget(world: World, name: str) -> None:
    """Let an object go without its bytes, as a cluster that is lost does."""
    world.admin.merge_patch(
        POD_SNAPSHOTS,
        name,
        {"metadata": {"finalizers": None}},
        namespace=world.namespace,
        field_manager="user",
    )
    world.admin.delete(POD_SNAPSHOTS, name, namespace=world.namespace)


def becomes_ready(stocked: Stocked, name: str) -> None:
    """Wait until restores are possible."""
    eventually(
        lambda: stocked.world.condition(POD_SNAPSHOTS, name, "Ready").get("status") == "True",
        f"{name} is ready",
    )


def test_a_good_bucket_has_nothing_to_mend_and_keeps_nothing(stocked: Stocked) -> None:
    """The probe is gone; the controller says the same on the storage config."""
    (found,) = stocked.told("check", stocked.world.store)
    assert (found["usable"], found["findings"]) == (True, [])
    assert stored(stocked.world) == []

    def condition(kind: str) -> Callable[[], dict[str, str]]:
        return lambda: stocked.world.condition(
            POD_SNAPSHOT_STORAGE_CONFIGS, stocked.world.store, kind
        )

    assert eventually(condition("Ready"), "Ready")["status"] == "True"
    assert eventually(condition("podsnap.dev/AsRecommended"), "advice")["status"] == "True"


def test_a_bucket_that_is_missing_ends_the_check_with_an_error(stocked: Stocked) -> None:
    """The finding names the reason and what to do."""
    bucket = stocked.world.bucket
    config = stocked.world.store
    eventually(  # the controller does not write into it any more
        lambda: stocked.world.condition(POD_SNAPSHOT_STORAGE_CONFIGS, config, "Ready"), "its look"
    )
    bucket.rename(bucket.with_name(f"{bucket.name}-away"))
    done = stocked.ask("check", config)
    assert done.exit_code == ExitCode.ERROR
    assert "BucketNotFound" in done.stdout
    assert "mkdir" in done.stdout


def test_the_listing_says_whose_each_snapshot_is_and_what_it_lacks(stocked: Stocked) -> None:
    """By what lies in the bucket: ours, another cluster's, and parts that are no snapshot."""
    ours, theirs = stocked.store(), stocked.store(cluster="c2")
    stocked.take()
    put_parts(stocked.world, "half", "uid-half", parts=("pages.img",))
    rows = {row["name"]: row for row in stocked.told("ls", stocked.world.store)}
    assert {n: (r["clusterID"], r["complete"], r["podSnapshot"]) for n, r in rows.items()} == {
        ours.snapshot_name: ("c1", True, True),
        theirs.snapshot_name: ("c2", True, False),
        "half": ("c1", False, False),
    }
    assert rows[ours.snapshot_name]["sizeBytes"] > 2 * len(PAGES)


def test_verify_reads_every_byte(stocked: Stocked) -> None:
    """One flipped byte in the last chunk of the last part is found, and named."""
    name = stocked.store().snapshot_name
    stocked.take()
    namespace = ("-n", stocked.world.namespace)
    (found,) = stocked.told("verify", name, *namespace)
    assert (found["problem"], found["sizeBytes"]) == ("", 2 * len(PAGES))
    with (stocked.world.bucket / "snapshots" / name / "pages.img").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x00")
    done = stocked.ask("verify", name, *namespace)
    assert done.exit_code == ExitCode.DAMAGED
    assert f"{namespace[1]}/{name}: damaged: " in done.stdout
    assert "part pages.img, chunk 2 (from byte 2097152) differs from the manifest" in done.stdout


def test_what_could_not_be_read_is_not_called_damaged(stocked: Stocked) -> None:
    """The bucket is away; the bytes may be right."""
    name = stocked.store().snapshot_name
    stocked.take()
    bucket = stocked.world.bucket
    bucket.rename(bucket.with_name(f"{bucket.name}-away"))
    done = stocked.ask("verify", name, "-n", stocked.world.namespace)
    assert done.exit_code == ExitCode.ERROR
    assert f"{name}: could not be read: " in done.stdout
    assert "damaged" not in done.output


@pytest.mark.parametrize("command", ["gc", "import"])
def test_bytes_are_judged_by_the_cluster_that_wrote_them_alone(
    stocked: Stocked, command: str
) -> None:
    """Whoever expects another cluster has the wrong context, and nothing happens."""
    stocked.store(cluster="c2")
    age(stocked.world.bucket)
    words = ["-A"] if command == "import" else []
    done = stocked.ask(command, stocked.world.store, "--cluster-id=c2", *words)
    assert done.exit_code == ExitCode.ERROR
    assert "this cluster has the id c1, not c2" in done.output
    assert len(stored(stocked.world)) == 3


def test_gc_tells_what_it_removed_before_the_bucket_refused(
    stocked: Stocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is gone, whatever became of the rest."""
    stocked.store()
    age(stocked.world.bucket)
    delete, done = LocalDirStore.delete, []

    def refuse_the_second(store: LocalDirStore, name: str, *, if_generation_match: int) -> None:
        if done:
            raise PermissionDenied("storage.objects.delete")
        delete(store, name, if_generation_match=if_generation_match)
        done.append(name)

    monkeypatch.setattr(LocalDirStore, "delete", refuse_the_second)
    told = stocked.ask("gc", stocked.world.store, "-o", "json")
    assert told.exit_code == ExitCode.ERROR
    assert [row["name"] for row in json.loads(told.stdout)] == done


def test_an_import_says_whose_snapshots_it_takes(stocked: Stocked) -> None:
    """One namespace, or all of them on purpose."""
    assert stocked.ask("import", stocked.world.store).exit_code == ExitCode.USAGE


def test_gc_removes_what_the_controller_would_and_tells_before(stocked: Stocked) -> None:
    """Only what is old, ours and nobody's; the rest is not even listed."""
    lost, theirs, kept = stocked.store(), stocked.store(cluster="c2"), stocked.store()
    age(stocked.world.bucket)
    young = stocked.store()
    stocked.take()
    forget(stocked.world, lost.snapshot_name)
    forget(stocked.world, young.snapshot_name)
    words = (stocked.world.store, "--cluster-id=c1")  # as the controller published it
    planned = stocked.told("gc", *words, "--dry-run")
    assert {Path(row["name"]).parent.name for row in planned} == {lost.snapshot_name}
    assert len(stored(stocked.world, lost.snapshot_name)) == 3
    assert stocked.told("gc", *words) == planned
    left = {Path(name).parent.name for name in stored(stocked.world)}
    assert left == {m.snapshot_name for m in (kept, theirs, young)}


def test_an_imported_snapshot_is_restored_from_and_deleted_as_any_other(stocked: Stocked) -> None:
    """Its UID is new, its bytes carry the old one; a node finds them all the same."""
    name = stocked.store().snapshot_name
    assert [r["result"] for r in stocked.take("--dry-run")] == ["would be imported"]
    assert stocked.world.snapshots() == []
    assert [(r["name"], r["result"], r["notes"]) for r in stocked.take()] == [
        (name, "imported", [])
    ]
    becomes_ready(stocked, name)
    snapshot = stocked.snapshot(name)
    assert snapshot.policy_name == "web"
    assert snapshot.capture is not None
    assert (snapshot.capture.identity, snapshot.capture.size_bytes) == (IDENTITY, 2 * len(PAGES))
    assert read_manifest(snapshot, LocalDirStore(stocked.world.bucket)).snapshot_name == name
    assert stocked.take() == []
    stocked.world.admin.delete(POD_SNAPSHOTS, name, namespace=stocked.world.namespace)
    eventually(lambda: stocked.world.get(POD_SNAPSHOTS, name) is None, "the object is gone")
    assert stored(stocked.world) == []


def test_what_another_cluster_wrote_is_imported_only_if_that_is_said(stocked: Stocked) -> None:
    """Two clusters on one bucket leave each other's snapshots alone."""
    name = stocked.store(cluster="c2").snapshot_name
    assert stocked.take() == []
    assert [r["result"] for r in stocked.take("--from-cluster=c2")] == ["imported"]
    becomes_ready(stocked, name)


def test_an_import_that_was_cut_short_waits_for_the_next_one(
    stocked: Stocked, controller_client: KubeClient
) -> None:
    """Its object is there without a record; nobody calls that a failed save."""
    manifest = stocked.store()
    policy = Policy.parse(stocked.world.get(POD_SNAPSHOT_POLICIES, "web") or {})
    body = imported_object(manifest, policy, stored_at="2026-01-01T00:00:00.000000Z")
    controller_client.create(POD_SNAPSHOTS, body, field_manager="podsnap-controller")
    name = manifest.snapshot_name
    message = eventually(
        lambda: stocked.world.condition(POD_SNAPSHOTS, name, "Ready"), "it was judged"
    )["message"]
    assert "run podsnap store import again" in message
    assert [r["result"] for r in stocked.take()] == ["imported"]
    becomes_ready(stocked, name)


def reword(world: World, name: str, **changes: object) -> None:
    """Let whoever may write to the bucket change what a manifest says of its snapshot."""
    path = world.bucket / "snapshots" / name / "manifest.json"
    tree = json.loads(path.read_text())
    tree["snapshot"] |= changes
    path.write_text(json.dumps(tree))


def test_a_manifest_that_somebody_made_up_stops_no_other(stocked: Stocked) -> None:
    """It is left, with its reason; the next one is imported."""
    bad, good = sorted(stocked.store().snapshot_name for _ in range(2))
    reword(stocked.world, bad, attempt="1")
    done = stocked.ask("import", stocked.world.store, "-A", "-o", "json")
    assert done.exit_code == ExitCode.ERROR
    rows = {row["name"]: (row["result"], row["notes"]) for row in json.loads(done.stdout)}
    assert rows[good] == ("imported", [])
    assert rows[bad][0] == "left"
    assert "is no number of an attempt" in rows[bad][1][0]


@pytest.fixture
def trusted(world: World) -> Iterator[None]:
    """The cluster has a key, which signed nothing that is there."""
    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    metadata = {"name": SIGNING_SECRET, "namespace": SYSTEM_NAMESPACE}
    data = {PRIVATE_KEY: base64.b64encode(pem).decode()}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}
    world.admin.create(SECRETS, secret, field_manager="user")
    yield
    world.admin.delete(SECRETS, SIGNING_SECRET, namespace=SYSTEM_NAMESPACE)


@pytest.mark.usefixtures("trusted")
def test_a_cluster_with_keys_imports_what_they_signed(stocked: Stocked) -> None:
    """The rest only if that is said."""
    stocked.store()
    done = stocked.ask("import", stocked.world.store, "-A", "-o", "json")
    (row,) = json.loads(done.stdout)
    assert (row["result"], row["signed"]) == ("left", "")
    assert "its manifest is not signed" in row["notes"][0]
    assert [(r["result"], r["signed"]) for r in stocked.take("--unsigned")] == [("imported", "no")]


def test_a_cluster_that_was_told_no_id_has_one_of_its_own(
    world: World, controller_client: KubeClient
) -> None:
    """The controller may read it: it is the UID of a namespace that every cluster has."""
    namespaces = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
    uid = world.admin.get(namespaces, "kube-system")["metadata"]["uid"]
    assert own_cluster_id(controller_client) == uid


LEFT: dict[str, tuple[Callable[[Stocked, Manifest], object], str]] = {
    "a part is gone": (
        lambda s, m: (s.world.bucket / "snapshots" / m.snapshot_name / "pages.img").unlink(),
        "part pages.img is missing or was replaced",
    ),
    "two policies": (lambda s, _: s.world.policy("other"), "choose one with --policy"),
    "its name is taken": (
        lambda s, m: s.world.create(
            POD_SNAPSHOTS, s.world.object("PodSnapshot", m.snapshot_name, {"policyName": "web"})
        ),
        "another PodSnapshot has its name",
    ),
    "the manifest is none": (
        lambda s, m: (s.world.bucket / "snapshots" / m.snapshot_name / "manifest.json").write_text(
            "{}"
        ),
        "the manifest cannot be read",
    ),
}


@pytest.mark.parametrize("what", LEFT)
def test_what_cannot_be_imported_is_left_with_the_reason(stocked: Stocked, what: str) -> None:
    """And the command ends with an error, so that a script notices."""
    spoil, why = LEFT[what]
    manifest = stocked.store()
    spoil(stocked, manifest)
    done = stocked.ask(
        "import", stocked.world.store, f"--namespace={stocked.world.namespace}", "-o", "json"
    )
    assert done.exit_code == ExitCode.ERROR
    (row,) = json.loads(done.stdout)
    assert row["result"] == "left"
    assert why in row["notes"][0]
