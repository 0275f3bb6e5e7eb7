# SPDX-License-Identifier: Apache-2.0
"""``podsnap``: the controller, and everything a person asks.

Imports are inside the commands, so that ``--help`` answers at once.
"""

import json
import signal
from pathlib import Path
from typing import Any

import click


class _WithLocal(click.Group):
    """Adds ``local`` when it is asked for: its imports would slow every other command down."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "local"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "local":
            return super().get_command(ctx, cmd_name)
        from localcluster.commands import local

        return local


@click.group(cls=_WithLocal, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="podsnap", prog_name="podsnap")
def main() -> None:
    """Pod snapshots for any Kubernetes cluster that runs gVisor."""


@main.command()
@click.option("--kubeconfig", type=click.Path(path_type=Path), help="Default: in-cluster.")
@click.option(
    "--bucket-root",
    type=click.Path(path_type=Path),
    help="Buckets are directories below this one (a local cluster).",
)
@click.option("--cluster-id", default="local", show_default=True, help="Mark on stored objects.")
@click.option("--metrics-address", default="127.0.0.1:8080", show_default=True)
def controller(
    kubeconfig: Path | None, bucket_root: Path | None, cluster_id: str, metrics_address: str
) -> None:
    """Run the controller: policies, triggers, snapshots, storage, Git sources."""
    from backends.clock import SystemClock
    from backends.kube.client import KubeClient
    from backends.kube.transport import Transport
    from backends.telemetry import (
        HttpEndpoint,
        api_request_counter,
        configure_logging,
        configure_tracing,
    )
    from reconciler.gke_addon import refusal, traces_of_addon
    from reconciler.manager import Manager, ManagerSettings, default_identity

    configure_logging()
    configure_tracing("podsnap-controller")
    agent_name = "podsnap-controller"
    transport = (
        Transport.from_kubeconfig(kubeconfig, user_agent=agent_name)
        if kubeconfig
        else Transport.in_cluster(user_agent=agent_name)
    )
    settings = ManagerSettings(
        cluster_id=cluster_id, bucket_root=bucket_root, identity=default_identity()
    )
    client, clock = KubeClient(transport), SystemClock()
    refused = refusal(traces_of_addon(client, clock))
    if refused:
        raise click.ClickException(refused)
    manager = Manager(settings, client, clock)
    transport.on_answer = api_request_counter(manager.metrics.registry)
    endpoint = HttpEndpoint(
        metrics_address,
        registry=manager.metrics.registry,
        health=lambda: not manager.lost_leadership.is_set(),
        ready=manager.is_ready,
    )
    stopped = manager.lost_leadership
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    endpoint.start()
    manager.start()
    stopped.wait()
    manager.stop()
    endpoint.stop()
    transport.close()


_OUTPUT = click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True
)
_NAMESPACE = click.option("-n", "--namespace", default="default", show_default=True)
_KUBECONFIG = click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path),
    envvar="KUBECONFIG",
    help="Default: $KUBECONFIG, then ~/.kube/config.",
)


@main.command()
@_NAMESPACE
@click.option("-A", "--all-namespaces", is_flag=True)
@_KUBECONFIG
@_OUTPUT
def get(namespace: str, all_namespaces: bool, kubeconfig: Path | None, output: str) -> None:  # noqa: FBT001 - a click flag
    """List the snapshots, newest first."""
    from reconciler.presentation import snapshot_rows

    snapshots = _list_snapshots(kubeconfig, None if all_namespaces else namespace)
    rows = snapshot_rows(snapshots)
    if output == "json":
        click.echo(json.dumps(rows, indent=2))
        return
    _print_table(
        ["NAMESPACE", "NAME", "STATUS", "POLICY", "ORIGIN POD", "SIZE", "SAVED", "LAST RESTORE"],
        [[*row.values()] for row in rows],
        empty="No snapshots found.",
    )


@main.command()
@click.argument("snapshot")
@_NAMESPACE
@_KUBECONFIG
@_OUTPUT
def story(snapshot: str, namespace: str, kubeconfig: Path | None, output: str) -> None:
    """Tell the life of one SNAPSHOT: each state, when it came and how long it took."""
    from reconciler.presentation import story_rows

    matching = [
        s for s in _list_snapshots(kubeconfig, namespace) if s.metadata.name.startswith(snapshot)
    ]
    if len(matching) != 1:
        found = "no snapshot" if not matching else f"{len(matching)} snapshots"
        raise click.ClickException(
            f"{found} in namespace {namespace} with a name that begins with {snapshot!r}; "
            f"`podsnap get -n {namespace}` lists them"
        )
    rows = story_rows(matching[0])
    if output == "json":
        click.echo(json.dumps(rows, indent=2))
        return
    click.echo(f"PodSnapshot {matching[0].metadata}, saved from Pod {matching[0].origin_pod}")
    _print_table(["STATE", "AT", "AFTER", "WHAT"], [[*row.values()] for row in rows], empty="")


@main.command()
def crds() -> None:
    """Print the CRDs, for `kubectl apply --server-side -f -`."""
    from schemas.crd_validation import crd_texts

    click.echo("---\n".join(text for _, text in crd_texts()), nl=False)


def _list_snapshots(kubeconfig: Path | None, namespace: str | None) -> list[Any]:
    from backends.kube.client import POD_SNAPSHOTS, KubeClient
    from backends.kube.errors import ApiError
    from backends.kube.transport import Transport
    from schemas.snapshot import Snapshot

    path = kubeconfig or Path.home() / ".kube/config"
    if not path.exists():
        raise click.ClickException(
            f"{path} does not exist; set KUBECONFIG, for a local cluster with: "
            "export KUBECONFIG=$(podsnap local kubeconfig)"
        )
    transport = Transport.from_kubeconfig(path, user_agent="podsnap")
    try:
        items, _ = KubeClient(transport).list(POD_SNAPSHOTS, namespace=namespace)
    except ApiError as error:
        raise click.ClickException(f"the API server did not list PodSnapshots: {error}") from error
    finally:
        transport.close()
    return [Snapshot.parse(item) for item in items]


def _print_table(header: list[str], rows: list[list[str]], *, empty: str) -> None:
    if not rows:
        click.echo(empty)
        return
    widths = [max(len(str(c)) for c in column) for column in zip(header, *rows, strict=True)]
    for line in (header, *rows):
        text = "   ".join(str(c).ljust(w) for c, w in zip(line, widths, strict=True))
        click.echo(text.rstrip())


if __name__ == "__main__":
    main()
