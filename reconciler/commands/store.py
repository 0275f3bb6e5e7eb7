# SPDX-License-Identifier: Apache-2.0
"""``podsnap store``: what is in the buckets, and whether they are fit for it.

``check`` and ``ls`` are here; what takes longer or changes something is in modules of its own.
"""

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING

import click

from reconciler.commands.buckets import (
    all_snapshots,
    opened,
    opened_of,
    prefix_of,
    reaches_buckets,
    storage_configs,
    told_apart,
)
from reconciler.commands.connection import Cluster, asks_all
from reconciler.commands.exit_codes import CommandError, ExitCode
from reconciler.commands.output import OUTPUT, Block, Heading, Lines, Table, give
from reconciler.commands.store_import import import_
from reconciler.commands.store_upkeep import gc, verify

if TYPE_CHECKING:
    from backends.objects.factory import BucketAccess
    from backends.objects.interface import ObjectStore
    from policies.bucket_review import BucketFacts
    from policies.stored_snapshots import StoredRow
    from schemas.storage_config import StorageConfig

_CONFIG = click.argument("config", required=False)


@click.group
def store() -> None:
    """Look into the buckets of snapshots, and mend what went apart.

    A bucket is named by its PodSnapshotStorageConfig. It is reached from this machine with your own
    credentials: those of gcloud auth application-default login, or a directory (--bucket-root).
    """


@store.command
@_CONFIG
@reaches_buckets
@OUTPUT
@asks_all
def check(cluster: Cluster, *, config: str | None, access: "BucketAccess", output: str) -> None:
    """Judge the bucket of CONFIG, or all, as the controller does, but as you.

    A small object is written, read and deleted below the folder of snapshots. Each finding says
    what follows from it and brings the command that mends it. Ends with 1 if a bucket cannot be
    used. What the controller and the Pods may do stands in the config's own conditions: kubectl
    describe podsnapshotstorageconfig CONFIG.
    """
    from policies.bucket_review import not_checked, review_bucket

    looked = [(c, _look(cluster, c, access)) for c in storage_configs(cluster, config)]
    reviewed = [(c, facts, review_bucket(facts)) for c, facts in looked]
    value = [
        {
            "name": c.metadata.name,
            "url": facts.location.url,
            "usable": not any(f.blocks for f in findings),
            "findings": [{"message": f.message, **_fields(f)} for f in findings],
            "notChecked": list(not_checked(facts)),
        }
        for c, facts, findings in reviewed
    ]

    def blocks() -> Iterator[Block]:
        for c, facts, findings in reviewed:
            yield Heading(f"{c.metadata.name}: {facts.location.url}")
            if findings:
                rows = [(f.reason, "no" if f.blocks else "yes", f.message) for f in findings]
                yield Table(("FOUND", "USABLE", "WHAT FOLLOWS, AND WHAT MENDS IT"), rows)
            else:
                yield Lines(["nothing to mend"])
            if unknown := not_checked(facts):
                yield Lines([f"not checked: {text}" for text in unknown])

    give(output, value, names=[f"{c.metadata.name}" for c, _ in looked], blocks=blocks)
    unusable = [c.metadata.name for c, _, findings in reviewed if any(f.blocks for f in findings)]
    if unusable:
        raise CommandError(ExitCode.ERROR, f"cannot be used by you: {', '.join(unusable)}")


def _fields(finding: object) -> dict[str, object]:
    from reconciler.commands.output import plain

    found: dict[str, object] = plain(finding)
    return found


def _look(cluster: Cluster, config: "StorageConfig", access: "BucketAccess") -> "BucketFacts":
    from backends.kube.client import LEASES
    from reconciler.cluster_region import ClusterRegion
    from reconciler.storage_controller import look, try_rights
    from schemas.names import NODE_LEASE_PREFIX, SYSTEM_NAMESPACE
    from schemas.storage_config import Location

    def nodes() -> list[str]:
        leases = cluster.soon(cluster.list, LEASES, namespace=SYSTEM_NAMESPACE)
        known = cluster.if_allowed(leases, "nodes") or ()
        # A Node that is gone leaves its Lease.
        known = sorted(known, key=lambda o: o["spec"].get("renewTime") or "", reverse=True)
        names = (o["metadata"]["name"] for o in known)
        prefix = NODE_LEASE_PREFIX
        return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]

    location = config.location or Location("")
    return look(
        location,
        lambda _: opened(location, access),
        lambda own: try_rights(config, own, lambda: own, {}, suffix=f"-{secrets.token_hex(4)}"),
        ClusterRegion(cluster.client, nodes).get,
        who="you",
    )


@store.command
@_CONFIG
@reaches_buckets
@OUTPUT
@asks_all
def ls(cluster: Cluster, *, config: str | None, access: "BucketAccess", output: str) -> None:
    """List the snapshots in the bucket of CONFIG, or in all, by what lies there.

    PODSNAPSHOT says whether this cluster has an object for it. Without one, "podsnap store import"
    makes one; with this cluster's mark and without one, the controller removes the bytes after a
    while (--sweep-grace). "parts only" is no snapshot: a save that goes on, or ended without one.
    """
    from reconciler.amounts import age, size

    owners = {s.stored_uid: s for s in all_snapshots(cluster)}
    problems: list[str] = []
    rows: list[tuple[str, StoredRow]] = []
    for c in storage_configs(cluster, config):
        with told_apart(c, problems):
            rows += [(c.metadata.name, row) for row in _stored(c, opened_of(c, access))]
    now = datetime.now(UTC)
    value = [
        {
            "storageConfig": name,
            "clusterID": row.cluster_id,
            "namespace": row.namespace,
            "name": row.name,
            "uid": row.uid,
            "sizeBytes": row.size_bytes,
            "storedAt": row.stored_at,
            "complete": row.is_complete,
            "podSnapshot": row.uid in owners,
        }
        for name, row in rows
    ]
    header = ("CONFIG", "CLUSTER", "NAMESPACE", "NAME", "SIZE", "AGE", "PODSNAPSHOT")
    cells = [
        (
            name,
            row.cluster_id,
            row.namespace,
            row.name,
            size(row.size_bytes) if row.is_complete else f"{size(row.size_bytes)}, parts only",
            age(row.stored_at, now),
            "yes" if row.uid in owners else "no",
        )
        for name, row in rows
    ]
    if not rows and not problems:
        click.echo("No snapshots found.", err=True)
    give(
        output,
        value,
        names=[row.name for _, row in rows],
        blocks=lambda: [Table(header, cells)] if cells else [],
    )
    if problems:
        raise CommandError(ExitCode.ERROR, "; ".join(problems))


def _stored(config: "StorageConfig", bucket: "ObjectStore") -> "Iterator[StoredRow]":
    """Yield what lies below a config's folder, a snapshot at a time, as the listing comes."""
    from policies.stored_snapshots import stored_row
    from reconciler.bucket_sweep import seen_in

    seen = map(seen_in, bucket.list(prefix_of(config)))
    ours = (s for s in seen if s.snapshot_uid)
    for _, objects in groupby(ours, key=lambda s: (s.folder, s.snapshot_uid)):
        yield stored_row(list(objects))


store.add_command(verify)
store.add_command(gc)
store.add_command(import_)
