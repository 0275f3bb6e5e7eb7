# SPDX-License-Identifier: Apache-2.0
"""``podsnap get`` and ``podsnap story``: which snapshots there are, and the life of one.

A watch has no end of its own: it goes on until Ctrl-C. When the server ends a stream, or forgot the
place in it, the list is read again, so that nothing is missed.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from reconciler.commands.connection import Cluster, asks_cluster
from reconciler.commands.exit_codes import CommandError, ExitCode
from reconciler.commands.output import OUTPUT, Heading, Table, clean, drawn, give, plain

if TYPE_CHECKING:
    from reconciler.presentation import SnapshotRow
    from schemas.policy import Policy
    from schemas.snapshot import Snapshot

KIND: Final = "podsnapshot.podsnapshot.gke.io"
# A server that ends every stream at once is not to be asked as fast as it can answer.
_PAUSE_S: Final = 1.0


@click.command()
@click.option("-A", "--all-namespaces", is_flag=True, help="All that you may read.")
@click.option("-l", "--selector", default="", help="Labels, as kubectl takes them.")
@click.option("-w", "--watch", is_flag=True, help="Go on with every change, until Ctrl-C.")
@OUTPUT
@asks_cluster
def get(cluster: Cluster, *, all_namespaces: bool, selector: str, watch: bool, output: str) -> None:
    """List the snapshots, newest first."""
    from reconciler.presentation import newest_first

    namespace = None if all_namespaces else cluster.namespace
    listing = Listing(cluster, namespace, selector)
    if watch:
        _watch(listing, output)
        return
    rows = newest_first(listing.read())
    if not rows:
        where = "in any namespace" if all_namespaces else f"in namespace {cluster.namespace}"
        click.echo(f"No snapshots found {where}.", err=True)
    give(
        output,
        rows,
        names=[f"{KIND}/{row.name}" for row in rows],
        blocks=lambda: [listing.table(rows)] if rows else [],
    )


class Listing:
    """The snapshots that were asked for, as rows."""

    def __init__(self, cluster: Cluster, namespace: str | None, selector: str) -> None:
        """``namespace`` is ``None`` for all."""
        self._cluster = cluster
        self._namespace = namespace
        self._selector = selector or None
        self._policies: Mapping[tuple[str, str], Policy] = {}
        self._version = ""

    def read(self) -> "list[SnapshotRow]":
        """Read all of them."""
        from backends.kube.client import POD_SNAPSHOT_POLICIES, POD_SNAPSHOTS
        from schemas.policy import Policy

        policies = self._cluster.soon(
            self._cluster.list, POD_SNAPSHOT_POLICIES, namespace=self._namespace
        )
        objects, self._version = self._cluster.client.list(
            POD_SNAPSHOTS, namespace=self._namespace, label_selector=self._selector
        )
        found = map(Policy.parse, self._cluster.if_allowed(policies, "groups of snapshots") or ())
        self._policies = {policy.metadata.key: policy for policy in found}
        return [self._row(obj) for obj in objects]

    def changes(self) -> "Iterator[tuple[str, SnapshotRow]]":
        """Yield the type of each change and the row, until the server ends the stream."""
        from backends.kube.client import POD_SNAPSHOTS
        from backends.kube.errors import Gone, ServerUnavailable

        try:
            stream = self._cluster.client.watch(
                POD_SNAPSHOTS,
                resource_version=self._version,
                namespace=self._namespace,
                label_selector=self._selector,
            )
            for event in stream:
                if event["type"] in {"ADDED", "MODIFIED", "DELETED"}:
                    yield event["type"], self._row(event["object"])
                elif event["type"] == "ERROR":
                    return
        except (Gone, ServerUnavailable):
            return  # the list tells whether the server is there

    def table(self, rows: "list[SnapshotRow]") -> Table:
        """Return rows for people."""
        from reconciler.presentation import HEADER, cells

        now = datetime.now(UTC)
        if self._namespace is not None:
            return Table(HEADER, [cells(row, now) for row in rows])
        return Table(("NAMESPACE", *HEADER), [[row.namespace, *cells(row, now)] for row in rows])

    def _row(self, obj: Mapping[str, Any]) -> "SnapshotRow":
        from reconciler.presentation import snapshot_row
        from schemas.snapshot import Snapshot

        return snapshot_row(Snapshot.parse(obj), self._policies, datetime.now(UTC))


def _watch(listing: Listing, output: str) -> NoReturn:
    if output == "table" and sys.stdout.isatty():
        _watch_drawn(listing)
    widths: list[int] = []
    seen: dict[tuple[str, str], SnapshotRow] = {}
    while True:
        fresh = {(row.namespace, row.name): row for row in listing.read()}
        if output == "table" and not widths:
            widths += _widths(listing.table(list(fresh.values())))
        for key, row in fresh.items():
            if seen.get(key) != row:
                _tell("MODIFIED" if key in seen else "ADDED", row, listing, output, widths)
        for key in seen.keys() - fresh.keys():
            _tell("DELETED", seen[key], listing, output, widths)
        seen = fresh
        for change, row in listing.changes():
            _tell(change, row, listing, output, widths)
            if change == "DELETED":
                seen.pop((row.namespace, row.name), None)
            else:
                seen[row.namespace, row.name] = row
        time.sleep(_PAUSE_S)


def _tell(
    change: str, row: "SnapshotRow", listing: Listing, output: str, widths: list[int]
) -> None:
    """Print one change: a line of the table, or a document of its own."""
    if output == "table":
        table = listing.table([row])
        cells = list(table.rows[0])
        if change == "DELETED":
            cells[table.header.index("STATUS")] = "Deleted"
        click.echo(_line(cells, widths))
    elif output == "name":
        click.echo(f"{KIND}/{row.name}")
    else:
        document = {"change": change, "snapshot": plain(row)}
        if output == "yaml":
            import yaml

            text = yaml.safe_dump(document, sort_keys=False, explicit_start=True)
            click.echo(text, nl=False)
        else:
            click.echo(json.dumps(document))


def _widths(table: Table) -> list[int]:
    """Print the header above rows that are to come, and return the widths of the columns."""
    columns = zip(table.header, *table.rows, strict=True)
    widths = [max(map(len, column)) for column in columns]
    click.echo(_line(table.header, widths))
    return widths


def _line(cells: Any, widths: list[int]) -> str:  # noqa: ANN401 - a sequence of texts
    """Align with the lines before; a wider cell widens its column from now on."""
    for column, cell in enumerate(cells[:-1]):
        widths[column] = max(widths[column], len(cell))
    pairs = zip(cells, widths, strict=True)
    return "   ".join(clean(cell).ljust(width) for cell, width in pairs).rstrip()


def _watch_drawn(listing: Listing) -> NoReturn:
    from rich.live import Live

    from reconciler.presentation import newest_first

    with Live(auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            rows = {(row.namespace, row.name): row for row in listing.read()}
            live.update(drawn(listing.table(newest_first(rows.values()))), refresh=True)
            for change, row in listing.changes():
                rows[row.namespace, row.name] = row
                if change == "DELETED":
                    del rows[row.namespace, row.name]
                live.update(drawn(listing.table(newest_first(rows.values()))), refresh=True)
            time.sleep(_PAUSE_S)


@click.command()
@click.argument("snapshot")
@OUTPUT
@asks_cluster
def story(cluster: Cluster, *, snapshot: str, output: str) -> None:
    """Tell the life of one SNAPSHOT: each state, when it came and how long it took.

    The beginning of its name is enough.
    """
    from policies.snapshot_explanation import saved_from
    from reconciler.presentation import story_rows

    found = snapshot_named(cluster, snapshot)
    rows = story_rows(found)
    give(
        output,
        rows,
        names=[f"{KIND}/{found.metadata.name}"],
        blocks=lambda: [
            Heading(f"PodSnapshot {found.metadata}, saved from Pod {saved_from(found)}"),
            Table(("STATE", "AT", "AFTER", "WHAT"), [list(row.values()) for row in rows]),
        ],
    )


def snapshot_named(cluster: Cluster, name: str) -> "Snapshot":
    """Return the snapshot with this name, or the only one whose name begins so.

    Raises:
        CommandError: there is none, or several.
    """
    from backends.kube.client import POD_SNAPSHOTS
    from schemas.snapshot import Snapshot

    exact = cluster.find(POD_SNAPSHOTS, name, namespace=cluster.namespace)
    if exact is not None:
        return Snapshot.parse(exact)
    everyone = cluster.list(POD_SNAPSHOTS, namespace=cluster.namespace)
    matching = [obj for obj in everyone if obj["metadata"]["name"].startswith(name)]
    if len(matching) == 1:
        return Snapshot.parse(matching[0])
    found = f"{len(matching)} snapshots" if matching else "no snapshot"
    raise CommandError(
        ExitCode.NOT_FOUND,
        f"{found} in namespace {cluster.namespace} with a name that begins with {name!r}; "
        f"`podsnap get -n {cluster.namespace}` lists them",
    )
