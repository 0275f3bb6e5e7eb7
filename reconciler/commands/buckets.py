# SPDX-License-Identifier: Apache-2.0
"""Buckets as a command reaches them: from where the operator is, with the operator's credentials.

What a command sees may differ from what the controller may do: the controller's own view stands in
the conditions of the PodSnapshotStorageConfig.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reconciler.commands.connection import Cluster
from reconciler.commands.exit_codes import CommandError, ExitCode

if TYPE_CHECKING:
    from backends.objects.factory import BucketAccess
    from backends.objects.interface import ObjectStore
    from schemas.snapshot import Snapshot
    from schemas.storage_config import Location, StorageConfig

CLUSTER_ID = click.option(
    "--cluster-id",
    default="",
    help="What the cluster's mark is expected to be; it is asked for, and another one is refused.",
)


def reaches_buckets(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the controller's options for buckets, and ``access`` made of them."""

    @click.option(
        "--bucket-endpoint",
        default="",
        help="Address of a server that speaks Cloud Storage's JSON API; default: Google's.",
    )
    @click.option(
        "--bucket-root",
        type=click.Path(path_type=Path),
        help="Buckets are directories below this one (a local cluster).",
    )
    @wraps(command)
    def run(
        *args: object, bucket_root: Path | None, bucket_endpoint: str, **kwargs: object
    ) -> None:
        from backends.objects.factory import BucketAccess
        from backends.objects.interface import StoreError

        try:
            command(*args, access=BucketAccess(bucket_root, bucket_endpoint), **kwargs)
        except StoreError as error:
            raise CommandError(ExitCode.ERROR, f"the bucket refused: {error}") from error

    return run


def cluster_mark(cluster: Cluster, expected: str) -> str:
    """Return the mark by which the cluster knows its bytes, as its controller published it.

    Raises:
        CommandError: no controller published one, or another one than was expected.
    """
    from reconciler.cluster_id import published_cluster_id

    found = published_cluster_id(cluster.client)
    if not found:
        raise CommandError(
            ExitCode.ERROR,
            "no controller of this cluster has published its id, so nothing in a bucket can be "
            "told to be its own; start the controller, or choose the right cluster with --context",
        )
    if expected not in {"", found}:
        raise CommandError(
            ExitCode.ERROR,
            f"this cluster has the id {found}, not {expected}, so its PodSnapshots say nothing "
            "about those bytes; choose the right cluster with --context",
        )
    return found


def opened(location: "Location", access: "BucketAccess") -> "ObjectStore":
    """Open a bucket by Application Default Credentials."""
    from backends.objects.factory import open_store

    return open_store(location.bucket, access)


def opened_of(config: "StorageConfig", access: "BucketAccess") -> "ObjectStore":
    """Open the bucket of a config that names one."""
    from schemas.storage_config import Location

    return opened(config.location or Location(""), access)


def prefix_of(config: "StorageConfig") -> str:
    """Return with what the names of a config's objects begin."""
    path = config.location.path if config.location else ""
    return f"{path}/" if path else ""


def storage_configs(cluster: Cluster, name: str | None) -> "list[StorageConfig]":
    """Return the storage config of a name, else all; those that name no bucket are left out.

    Raises:
        CommandError: there is none of that name, or it names no bucket.
    """
    from backends.kube.client import POD_SNAPSHOT_STORAGE_CONFIGS
    from schemas.storage_config import StorageConfig

    found = [StorageConfig.parse(obj) for obj in cluster.list(POD_SNAPSHOT_STORAGE_CONFIGS)]
    if name is None:
        return [c for c in found if c.location is not None and not c.path_error]
    for config in found:
        if config.metadata.name == name:
            if config.location is None or config.path_error:
                text = config.path_error or "it names no bucket"
                raise CommandError(ExitCode.ERROR, f"PodSnapshotStorageConfig {name}: {text}")
            return [config]
    raise CommandError(
        ExitCode.NOT_FOUND,
        f"there is no PodSnapshotStorageConfig {name}; those that exist: "
        f"{', '.join(c.metadata.name for c in found) or 'none'}",
    )


def all_snapshots(cluster: Cluster) -> "list[Snapshot]":
    """Return the PodSnapshots of all namespaces; one that another version wrote is left out, told.

    Raises:
        ApiError: not all may be read.
    """
    from backends.kube.client import POD_SNAPSHOTS
    from schemas.snapshot import Snapshot

    found = []
    for obj in cluster.list(POD_SNAPSHOTS):
        try:
            found.append(Snapshot.parse(obj))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            click.echo(f"PodSnapshot {obj['metadata']['name']} is left out: {error!r}", err=True)
    return found


@contextmanager
def told_apart(config: "StorageConfig", problems: list[str]) -> Iterator[None]:
    """Let one bucket that does not answer not hide the others; its problem is noted."""
    from backends.objects.interface import StoreError

    try:
        yield
    except StoreError as error:
        problems.append(f"{config.metadata.name}: {error}")
