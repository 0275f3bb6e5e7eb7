# SPDX-License-Identifier: Apache-2.0
"""``podsnap store import``: PodSnapshots from what lies in a bucket.

Users do not make PodSnapshots, whoever they are; so the objects are made as podsnap's controller,
whom the operator has to be let impersonate. The traps: an object is there before its record, so an
import that was cut short is gone on with by the next one; and the sweep may be about to remove the
very bytes, so they are looked at once more when the object stands.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import click

from reconciler.commands.buckets import (
    CLUSTER_ID,
    all_snapshots,
    cluster_mark,
    opened_of,
    prefix_of,
    reaches_buckets,
    storage_configs,
)
from reconciler.commands.connection import Cluster, asks_all
from reconciler.commands.exit_codes import CommandError, ExitCode
from reconciler.commands.output import OUTPUT, Table, give

if TYPE_CHECKING:
    from backends.objects.factory import BucketAccess
    from backends.objects.interface import ObjectStore
    from nodeexec.manifest_reader import StoredManifest
    from nodeexec.signing import SigningKeys
    from policies.stored_snapshots import StoredRow
    from schemas.manifest import Manifest
    from schemas.policy import Policy
    from schemas.snapshot import Snapshot
    from schemas.storage_config import StorageConfig


@dataclass(frozen=True, slots=True)
class Imported:
    """One snapshot of the bucket: what became of it, and what there is to know about it.

    ``signed`` is whether a trusted key signed it; empty if that was not looked at.
    """

    namespace: str
    name: str
    policy: str
    result: str
    signed: str = ""
    notes: tuple[str, ...] = ()


@click.command("import")
@click.argument("config")
@click.option("-n", "--namespace", "only", default="", help="Only those of one namespace.")
@click.option("-A", "--all-namespaces", "everywhere", is_flag=True, help="Those of all.")
@click.option("--policy", default="", help="Under which policy they go; default: the only one.")
@CLUSTER_ID
@click.option(
    "--from-cluster",
    default="",
    metavar="ID",
    help="Take over what the cluster with this mark wrote; it must not run any more.",
)
@click.option(
    "--unsigned",
    is_flag=True,
    help="Also take what no trusted key signed, where the cluster has keys.",
)
@click.option("--dry-run", is_flag=True, help="Only tell what would be imported.")
@reaches_buckets
@OUTPUT
@asks_all
def import_(
    cluster: Cluster,
    *,
    config: str,
    only: str,
    everywhere: bool,
    policy: str,
    cluster_id: str,
    from_cluster: str,
    unsigned: bool,
    dry_run: bool,
    access: "BucketAccess",
    output: str,
) -> None:
    """Make PodSnapshots of what lies in the bucket of CONFIG and has none.

    For a cluster that lost its objects, or a new one that takes the place of another. Create the
    namespaces, the storage config and the policies first; a snapshot goes to the namespace where it
    was saved. A manifest says what fits and where it was saved, but not the policy, the group or
    when it was last used; what follows is told for each.

    Whoever can write to the bucket decides what is imported: look with --dry-run first. Where the
    cluster has keys, only what they signed is taken. What is taken over is this cluster's: deleting
    the PodSnapshot here deletes the bytes.

    You need the right to impersonate the ServiceAccount podsnap-controller of namespace
    podsnap-system, because only podsnap makes PodSnapshots.
    """
    if bool(only) == everywhere:
        raise click.UsageError("name one namespace with -n, or say --all-namespaces")
    mark = cluster_mark(cluster, cluster_id)
    (found,) = storage_configs(cluster, config)
    bucket = opened_of(found, access)
    run = _Import(cluster, found, bucket, policy, unsigned=unsigned, dry_run=dry_run)
    results = [run.take(row) for row in run.without_object(from_cluster or mark, only)]
    if not results:
        click.echo(
            f"Nothing to import: every snapshot with the mark {from_cluster or mark!r} has "
            "its PodSnapshot. podsnap store ls shows all marks.",
            err=True,
        )
    rows = [
        (r.namespace, r.name, r.policy, r.signed, r.result, ". ".join(r.notes)) for r in results
    ]
    give(
        output,
        results,
        names=[r.name for r in results],
        blocks=lambda: (
            [Table(("NAMESPACE", "NAME", "POLICY", "SIGNED", "RESULT", "NOTES"), rows)]
            if rows
            else []
        ),
    )
    for text in run.retention_notes(results):
        click.echo(text, err=True)
    left = [r.name for r in results if r.result == "left"]
    if left:
        raise CommandError(ExitCode.ERROR, f"not imported: {', '.join(left)}")


# What a manifest that somebody made up leads to, where nobody thought of it.
_MALFORMED: Final = (KeyError, ValueError, TypeError, AttributeError)


class _Left(Exception):  # noqa: N818 - an answer, not an error
    """A snapshot stays where it is; the text says why."""


class _Import:
    """Makes the PodSnapshots of one storage config."""

    def __init__(
        self,
        cluster: Cluster,
        config: "StorageConfig",
        bucket: "ObjectStore",
        policy: str,
        *,
        unsigned: bool,
        dry_run: bool,
    ) -> None:
        """Read what the cluster has."""
        from backends.clock import SystemClock
        from backends.kube.client import POD_SNAPSHOT_POLICIES
        from nodeexec.capture_status import CaptureStatus
        from schemas.names import CONTROLLER_SERVICE_ACCOUNT, SYSTEM_NAMESPACE
        from schemas.policy import Policy

        self._config = config
        self._bucket = bucket
        self._wanted = policy
        self._unsigned = unsigned
        self._keys, self._unknown = _keys(cluster)
        self._dry_run = dry_run
        self._present = all_snapshots(cluster)
        self._policies = [Policy.parse(o) for o in cluster.list(POD_SNAPSHOT_POLICIES)]
        controller = f"system:serviceaccount:{SYSTEM_NAMESPACE}:{CONTROLLER_SERVICE_ACCOUNT}"
        self._client = cluster.client.acting_as(controller)
        self._status = CaptureStatus(self._client, SystemClock())

    def without_object(self, mark: str, namespace: str) -> "Iterator[StoredRow]":
        """Yield the snapshots with a cluster's mark that have no PodSnapshot, or half of one."""
        from policies.stored_snapshots import stored_row
        from reconciler.bucket_sweep import seen_in

        whole = {s.stored_uid for s in self._present if s.capture is not None}
        seen = map(seen_in, self._bucket.list(prefix_of(self._config)))
        ours = (s for s in seen if s.snapshot_uid and s.cluster_id == mark)
        for _, objects in groupby(ours, key=lambda s: (s.folder, s.snapshot_uid)):
            row = stored_row(list(objects))
            wanted = namespace in {"", row.namespace}
            if wanted and row.is_complete and row.uid not in whole:
                yield row

    def take(self, row: "StoredRow") -> Imported:
        """Import one, or say why not."""
        from backends.kube.errors import ApiError
        from backends.objects.interface import StoreError
        from nodeexec.part_download import DamagedError
        from policies.imported_snapshots import unsaid
        from schemas.manifest import digest as digest_of

        policy = signed = ""
        try:
            stored = self._manifest(row)
            manifest, digest = stored.manifest, digest_of(stored.text)
            signed = self._signed(stored)
            chosen = self._policy(manifest)
            policy = chosen.metadata.name
            self._require_parts(manifest, row)
            notes = unsaid(manifest, chosen)
            if not self._dry_run:
                self._make(manifest, digest, chosen, row)
        except (_Left, ApiError, StoreError, DamagedError, *_MALFORMED) as because:
            return Imported(row.namespace, row.name, policy, "left", signed, (str(because),))
        result = "would be imported" if self._dry_run else "imported"
        return Imported(row.namespace, row.name, policy, result, signed, notes)

    def _signed(self, stored: "StoredManifest") -> str:
        """Return whether a trusted key signed a manifest, empty if that cannot be told."""
        if self._unknown:
            if not self._unsigned:
                raise _Left(f"{self._unknown}; take it all the same with --unsigned")
            return ""
        if not self._keys.trusted:
            return ""
        refusal = self._keys.refusal(stored.text, stored.signature)
        if refusal and not self._unsigned:
            raise _Left(f"{refusal}, or take it all the same with --unsigned")
        return "no" if refusal else "yes"

    def retention_notes(self, results: list[Imported]) -> list[str]:
        """Say where retention would delete some of it again."""
        from policies.imported_snapshots import would_not_stay

        told = []
        for policy in self._policies:
            key = (policy.metadata.namespace, policy.metadata.name)
            new = sum((r.namespace, r.policy) == key and r.result != "left" for r in results)
            old = sum((s.metadata.namespace, s.policy_name) == key for s in self._present)
            told.append(would_not_stay(policy, old, new) if new else "")
        return [text for text in told if text]

    def _manifest(self, row: "StoredRow") -> "StoredManifest":
        """Read a manifest and compare it with where it lies: a forged one leads nowhere else."""
        from nodeexec.manifest_reader import read_unpinned
        from policies.imported_snapshots import malformed
        from schemas.manifest import MANIFEST_NAME, ManifestError

        name = f"{row.folder}/{MANIFEST_NAME}"
        try:
            stored = read_unpinned(row.folder, self._bucket)
        except ManifestError as error:
            raise _Left(str(error)) from error
        manifest = stored.manifest
        if wrong := malformed(manifest):
            raise _Left(f"{name} is not podsnap's: {wrong}")
        inside = (manifest.cluster_id, manifest.namespace, manifest.snapshot_uid)
        if inside != (row.cluster_id, row.namespace, row.uid):
            raise _Left(f"{name} has other marks than what is written in it")
        location = self._config.location
        below = location.below(manifest.snapshot_name).path if location else ""
        if row.folder != below:
            raise _Left(
                f"it lies in {row.folder}, and PodSnapshotStorageConfig "
                f"{self._config.metadata.name} expects it in {below}; import it with a config of "
                "that path"
            )
        if refusal := self._config.refusal(manifest.namespace):
            raise _Left(f"{refusal}; add it to the annotation podsnap.dev/namespaces")
        return stored

    def _policy(self, manifest: "Manifest") -> "Policy":
        from policies.imported_snapshots import governing

        found = governing(manifest, self._policies, self._wanted)
        if isinstance(found, str):
            raise _Left(found)
        return found

    def _require_parts(self, manifest: "Manifest", row: "StoredRow") -> None:
        for part in manifest.parts:
            info = self._bucket.stat(f"{row.folder}/{part.object_name}", generation=part.generation)
            if info is None or info.size_bytes != part.stored_bytes:
                raise _Left(f"part {part.name} is missing or was replaced")

    def _make(self, manifest: "Manifest", digest: str, policy: "Policy", row: "StoredRow") -> None:
        """Create the object and write its record; both may be there from an import before."""
        from backends.kube.errors import Conflict, NotFound
        from policies.imported_snapshots import imported_object, imported_record
        from schemas.storage_config import Location
        from statemachine.snapshot import State

        snapshot = self._object(imported_object(manifest, policy, stored_at=row.stored_at))
        if snapshot.stored_uid != manifest.snapshot_uid:
            raise _Left("another PodSnapshot has its name")
        place = self._config.location or Location("")
        record = imported_record(
            manifest, place.below(manifest.snapshot_name), digest, stored_at=row.stored_at
        )
        try:
            self._status.write(snapshot, record, State.AVAILABLE, "imported from the bucket")
        except (Conflict, NotFound) as error:
            raise _Left(f"its record could not be written: {error}; import again") from error
        self._require_parts(manifest, row)

    def _object(self, body: dict[str, Any]) -> "Snapshot":
        from backends.kube.client import POD_SNAPSHOTS
        from backends.kube.errors import AlreadyExists, NotFound
        from schemas.names import CONTROLLER_MANAGER
        from schemas.snapshot import Snapshot

        metadata = body["metadata"]
        try:
            made = self._client.create(POD_SNAPSHOTS, body, field_manager=CONTROLLER_MANAGER)
        except AlreadyExists:
            made = self._client.get(
                POD_SNAPSHOTS, metadata["name"], namespace=metadata["namespace"]
            )
        except NotFound as error:
            raise _Left(f"namespace {metadata['namespace']} does not exist; create it") from error
        return Snapshot.parse(made)


def _keys(cluster: Cluster) -> "tuple[SigningKeys, str]":
    """Return the keys that the cluster trusts, or why they are not known."""
    from backends.kube.errors import Forbidden
    from nodeexec.signing import SECRETS, SIGNING_SECRET, SigningError, SigningKeys
    from schemas.names import SYSTEM_NAMESPACE

    try:
        secret = cluster.find(SECRETS, SIGNING_SECRET, namespace=SYSTEM_NAMESPACE)
        return SigningKeys.parse(secret or {}), ""
    except (Forbidden, SigningError) as error:
        return SigningKeys(), f"it cannot be told whether it is signed: {error}"
