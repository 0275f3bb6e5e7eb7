# SPDX-License-Identifier: Apache-2.0
"""``podsnap nodes`` and ``podsnap retention``: what goes with a roll or with time."""

from datetime import UTC, datetime

import click

from reconciler.commands.connection import Cluster, asks_all, asks_cluster
from reconciler.commands.output import OUTPUT, Block, Heading, Lines, Table, give
from reconciler.commands.snapshots import KIND


@click.command()
@click.option("--if-runsc", default="", help="Say what a roll to this version would make void.")
@OUTPUT
@asks_all
def nodes(cluster: Cluster, *, if_runsc: str, output: str) -> None:
    """List the kinds of nodes, and how many snapshots of the cluster each can run."""
    from reconciler.amounts import span
    from reconciler.commands.reading import Reader
    from reconciler.node_view import node_rows, void_after

    reader = Reader(cluster, None)
    published, snapshots = reader.nodes(), reader.snapshots()
    rows = node_rows(published.result(), snapshots.result(), datetime.now(UTC), if_runsc=if_runsc)
    void = void_after(rows)

    def blocks() -> list[Block]:
        header = ("NODES", "SEEN", "RUNSC", "PLATFORM", "ARCHITECTURE", "MACHINE", "CPU FEATURES")
        table = Table(
            (*header, "RUNS", *(("LOSES",) if if_runsc else ())),
            [
                (
                    ",".join(row.nodes),
                    span(row.seen_s),
                    row.runsc_version,
                    row.platform,
                    row.architecture,
                    row.machine_series or "-",
                    str(row.cpu_features),
                    str(len(row.runs)),
                    *((str(len(row.loses)),) if if_runsc else ()),
                )
                for row in rows
            ],
        )
        if not if_runsc:
            return [table]
        title = f"Snapshots that no node could run after a roll to {if_runsc}: {len(void)}"
        return [table, Heading(title), Lines(void)]

    if not rows:
        click.echo("No node has published what it is; see whether its agent runs.", err=True)
    give(
        output,
        {"nodes": rows, "void": void} if if_runsc else rows,
        names=[f"node/{name}" for row in rows for name in row.nodes],
        blocks=lambda: blocks() if rows else [],
    )


def _only_dry(context: click.Context, parameter: click.Parameter, value: bool) -> bool:  # noqa: FBT001 - click's order
    if not value:
        raise click.BadParameter(
            "podsnap retention deletes nothing, because that is the controller's; add --dry-run to "
            "see what it will delete",
            context,
            parameter,
        )
    return value


@click.command()
@click.option("-A", "--all-namespaces", is_flag=True, help="All that you may read.")
@click.option(
    "--dry-run",
    is_flag=True,
    expose_value=False,
    callback=_only_dry,
    help="Only tell; there is no other way, since the controller is who deletes.",
)
@OUTPUT
@asks_cluster
def retention(cluster: Cluster, *, all_namespaces: bool, output: str) -> None:
    """List the snapshots that retention deletes, when and why, the first one first."""
    from policies.retention import retention_rows
    from reconciler.amounts import size
    from reconciler.commands.keeping import Keeping
    from reconciler.commands.reading import Reader

    reader = Reader(cluster, None if all_namespaces else cluster.namespace)
    policies, snapshots, keeping = reader.policies(), reader.snapshots(), Keeping(reader)
    rows = retention_rows(
        policies.result(),
        snapshots.result(),
        keeping.pods(),
        datetime.now(UTC),
        keeping.templates(),
    )
    for text in sorted(set(cluster.unknown)):
        click.echo(f"Not known, so what is pinned may be listed: {text}", err=True)
    if not rows:
        click.echo("No policy lets a snapshot go.", err=True)
    give(
        output,
        rows,
        names=[f"{KIND}/{row.name}" for row in rows],
        blocks=lambda: (
            [
                Table(
                    ("NAMESPACE", "NAME", "POLICY", "GOES", "SIZE", "REASON"),
                    [
                        (
                            row.namespace,
                            row.name,
                            row.policy,
                            "now" if row.is_due else row.due_at,
                            size(row.size_bytes),
                            row.reason,
                        )
                        for row in rows
                    ],
                )
            ]
            if rows
            else []
        ),
    )
