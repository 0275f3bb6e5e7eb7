# SPDX-License-Identifier: Apache-2.0
"""``podsnap store verify`` and ``podsnap store gc``: are the bytes right, and are they needed?"""

import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from reconciler.commands.buckets import (
    CLUSTER_ID,
    all_snapshots,
    cluster_mark,
    opened,
    opened_of,
    prefix_of,
    reaches_buckets,
    storage_configs,
    told_apart,
)
from reconciler.commands.connection import Cluster, asks_all, asks_cluster
from reconciler.commands.exit_codes import CommandError, ExitCode
from reconciler.commands.output import OUTPUT, Lines, Table, give, show

if TYPE_CHECKING:
    from backends.objects.factory import BucketAccess
    from backends.objects.interface import ObjectStore
    from policies.sweeping import Seen
    from schemas.snapshot import Snapshot
    from schemas.storage_config import StorageConfig

_RUN_CHUNKS = 32


@dataclass(frozen=True, slots=True)
class Verified:
    """One snapshot whose bytes were read; ``problem`` is empty if all of them are right.

    ``is_read`` is whether the bucket gave them; what it did not give may be right.
    """

    namespace: str
    name: str
    size_bytes: int
    problem: str
    is_read: bool = True


@click.command
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="All snapshots of all namespaces.")
@reaches_buckets
@OUTPUT
@asks_cluster
def verify(
    cluster: Cluster, *, name: str | None, everything: bool, access: "BucketAccess", output: str
) -> None:
    """Read every byte of snapshot NAME, or of all, and compare it with the manifest.

    Nothing is kept on this machine. The manifest itself is compared with the digest in the
    PodSnapshot. Ends with 7 if bytes are not those that were saved; such a snapshot restores
    nothing, and a node that tries says so on it. Ends with 1 if some could not be read: those may
    be right.
    """
    snapshots = _chosen(cluster, name, everything=everything)
    results = []
    for snapshot in snapshots:
        results.append(_verified(snapshot, access))
        if output == "table":  # each takes long
            show([Lines([_line(results[-1])])])
    if not results:
        click.echo("No stored snapshots found.", err=True)
    give(output, results, names=[r.name for r in results], blocks=list)
    unread = [r.name for r in results if not r.is_read]
    wrong = [r.name for r in results if r.problem and r.is_read]
    texts = [
        f"{what}: {', '.join(names)}"
        for what, names in (("not as they were saved", wrong), ("could not be read", unread))
        if names
    ]
    if texts:
        raise CommandError(ExitCode.DAMAGED if wrong else ExitCode.ERROR, "; ".join(texts))


def _line(found: Verified) -> str:
    from reconciler.amounts import size

    if not found.problem:
        verdict = f"right, {size(found.size_bytes)}"
    else:
        verdict = f"{'damaged' if found.is_read else 'could not be read'}: {found.problem}"
    return f"{found.namespace}/{found.name}: {verdict}"


def _chosen(cluster: Cluster, name: str | None, *, everything: bool) -> "list[Snapshot]":
    from backends.kube.client import POD_SNAPSHOTS
    from schemas.snapshot import Snapshot

    if bool(name) == everything:
        raise click.UsageError("name one snapshot, or say --all")
    if name is None:
        return [s for s in all_snapshots(cluster) if s.is_stored]
    found = cluster.find(POD_SNAPSHOTS, name, namespace=cluster.namespace)
    if found is None:
        raise CommandError(
            ExitCode.NOT_FOUND, f"there is no PodSnapshot {name} in namespace {cluster.namespace}"
        )
    return [Snapshot.parse(found)]


def _verified(snapshot: "Snapshot", access: "BucketAccess") -> Verified:
    from backends.objects.interface import StoreError
    from nodeexec.part_download import DamagedError
    from schemas.manifest import NewerFormatError

    problem, size_bytes, is_read = "", 0, True
    try:
        size_bytes = _read_all(snapshot, access)
    except DamagedError as error:
        problem = str(error)
    except (StoreError, NewerFormatError) as error:
        problem, is_read = str(error), False
    metadata = snapshot.metadata
    return Verified(metadata.namespace, metadata.name, size_bytes, problem, is_read)


def _read_all(snapshot: "Snapshot", access: "BucketAccess") -> int:
    """Read all parts of a snapshot; returns the bytes of its objects."""
    from nodeexec.manifest_reader import read_manifest
    from nodeexec.part_download import DamagedError, PartReader

    location = snapshot.capture.location if snapshot.capture else None
    if location is None:
        raise DamagedError("it was not saved (yet)")
    bucket = opened(location, access)
    manifest = read_manifest(snapshot, bucket)
    slots = threading.Semaphore(access.connections)
    readers = [PartReader(bucket, location.path, part, slots=slots) for part in manifest.parts]
    runs = [
        (reader, first, min(first + _RUN_CHUNKS, reader.part.chunk_count))
        for reader in readers
        for first in range(0, reader.part.chunk_count, _RUN_CHUNKS)
    ]
    stopped = threading.Event()

    def read(run: tuple[PartReader, int, int]) -> int:
        reader, first, end = run
        reader.read_run(first, end, lambda _index, _chunk: None, stopped=stopped)
        return sum(map(reader.stored_length_bytes, range(first, end)))

    bar = click.progressbar(
        length=manifest.stored_bytes,
        label=snapshot.metadata.name,
        file=sys.stderr,
        hidden=not sys.stderr.isatty(),
    )
    with ThreadPoolExecutor(access.connections) as pool, bar:
        try:
            for reader in readers:
                reader.look()
            for read_bytes in pool.map(read, runs):
                bar.update(read_bytes)
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return manifest.stored_bytes


@click.command
@click.argument("config", required=False)
@CLUSTER_ID
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
@click.option(
    "--grace",
    default="24h",
    show_default=True,
    help="Remove only what the bucket says is older, such as 30m.",
)
@reaches_buckets
@OUTPUT
@asks_all
def gc(
    cluster: Cluster,
    *,
    config: str | None,
    cluster_id: str,
    dry_run: bool,
    grace: str,
    access: "BucketAccess",
    output: str,
) -> None:
    """Remove what this cluster wrote and nobody owns, from the bucket of CONFIG, or of all.

    The judgement is the controller's, which removes the same by itself (--sweep-grace). It also
    waits until it has itself seen for that long that nobody owns a thing, which a command cannot:
    after a disaster, look with --dry-run, and "podsnap store import" what should be kept. What
    another cluster wrote, and what carries no mark of podsnap, is never touched.
    """
    from reconciler.amounts import size
    from reconciler.bucket_sweep import batches, remove
    from schemas.durations import parse_go_duration_s

    try:
        grace_s = parse_go_duration_s(grace)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--grace") from error
    mark = cluster_mark(cluster, cluster_id)
    problems: list[str] = []
    gone: list[tuple[str, Seen, str]] = []
    owners = {s.stored_uid: s for s in all_snapshots(cluster)}
    for c in storage_configs(cluster, config):
        with told_apart(c, problems):
            bucket = opened_of(c, access)
            strays = _strays(c, bucket, owners, mark, grace_s)
            for batch in batches(strays):
                for seen, why in remove(bucket, cluster.client, batch, dry_run=dry_run):
                    gone.append((c.metadata.name, seen, why))
    value = [
        {"storageConfig": name, "name": s.name, "sizeBytes": s.size_bytes, "reason": why}
        for name, s, why in gone
    ]
    rows = [(name, s.name, size(s.size_bytes), why) for name, s, why in gone]
    if not gone and not problems:
        click.echo("Everything that this cluster wrote has an owner, or is young.", err=True)
    header = ("CONFIG", "WOULD BE REMOVED" if dry_run else "REMOVED", "SIZE", "WHY")
    give(
        output,
        value,
        names=[s.name for _, s, _ in gone],
        blocks=lambda: [Table(header, rows)] if rows else [],
    )
    if problems:
        raise CommandError(ExitCode.ERROR, "; ".join(problems))


def _strays(
    config: "StorageConfig",
    bucket: "ObjectStore",
    owners: "Mapping[str, Snapshot]",
    cluster_id: str,
    grace_s: float,
) -> "Iterator[Seen]":
    from reconciler.bucket_sweep import is_stray, seen_in

    young_s = datetime.now(UTC).timestamp() - grace_s
    for seen in map(seen_in, bucket.list(prefix_of(config))):
        if seen.created_s <= young_s and is_stray(seen, owners, cluster_id):
            yield seen
