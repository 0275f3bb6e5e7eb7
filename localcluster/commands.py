# SPDX-License-Identifier: Apache-2.0
"""``podsnap local``: the commands of the local cluster.

The trap is time: ``status`` and ``kubeconfig`` are typed often, so what ``up`` needs is imported
only when it runs.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from localcluster.cluster import LocalCluster

_NAME = click.option("--name", default="local", show_default=True, help="Name of the cluster.")


@click.group("local")
def local() -> None:
    """Run a real one-node Kubernetes cluster with gVisor and podsnap on this machine."""


def _cluster(name: str) -> "LocalCluster":
    from localcluster.cluster import LocalCluster

    return LocalCluster(name, progress=lambda line: click.echo(line, err=True))


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Turn what the user can act upon into one message without a stack trace."""
    from localcluster.cgroups import CgroupError
    from localcluster.cluster import ClusterError
    from localcluster.exclusion import BusyError
    from localcluster.images import ImageError
    from localcluster.machine import MachineError
    from localcluster.network import NetworkError
    from localcluster.object_server import ObjectServerError
    from localcluster.preflight import PreflightError
    from localcluster.toolchain import ToolchainError
    from localcluster.trace_backend import TraceBackendError

    try:
        yield
    except (
        BusyError,
        CgroupError,
        ClusterError,
        ImageError,
        MachineError,
        NetworkError,
        ObjectServerError,
        PreflightError,
        ToolchainError,
        TraceBackendError,
    ) as error:
        raise click.ClickException(str(error)) from error


@local.command()
@_NAME
@click.option("--network", "block", help="The cluster's addresses, 10.N.0.0/16.")
@click.option("--nodes", type=click.IntRange(1, 100), help="How many; 1 if not said.")
@click.option(
    "--bucket",
    type=click.Choice(["directory", "gcs"]),
    help="What buckets are: directories (if not said), or of a server that speaks Cloud Storage's "
    "protocol.",
)
@click.option("--programs/--no-programs", default=True, help="Run podsnap itself, or leave it out.")
def up(
    name: str,
    block: str | None,
    nodes: int | None,
    bucket: Literal["directory", "gcs"] | None,
    *,
    programs: bool,
) -> None:
    """Bring the cluster up; return when a Pod can start."""
    with _plain_errors():
        cluster = _cluster(name)
        cluster.up(nodes=nodes, with_programs=programs, block=block, bucket=bucket)
    click.echo(f"export KUBECONFIG={shlex.quote(str(cluster.kubeconfig))}")


@local.command()
@_NAME
def down(name: str) -> None:
    """Remove the cluster and everything it stored."""
    with _plain_errors():
        _cluster(name).down()


@local.command()
@_NAME
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table")
def status(name: str, output: str) -> None:
    """Show what runs. Exit code 1 when nothing does."""
    with _plain_errors():
        components = _cluster(name).status()
    rows = [
        {
            "component": c.name,
            "machine": c.machine,
            "state": c.state,
            "pid": c.pid,
            "restarts": c.restarts,
            "uptime_s": c.uptime_s,
            "rss_bytes": c.rss_bytes,
            "last_exit": c.last_exit,
        }
        for c in components
    ]
    if output == "json":
        click.echo(json.dumps({"name": name, "components": rows}, indent=1))
    elif rows:
        form = "{:<24} {:<14} {:<12} {:>7} {:>8} {:>9} {:>9}"
        heads = ("COMPONENT", "MACHINE", "STATE", "PID", "RESTARTS", "UPTIME", "RSS")
        click.echo(form.format(*heads))
        for c in components:
            memory = f"{c.rss_bytes >> 20} MiB"
            words = (c.name, c.machine, c.state, c.pid or "-", c.restarts, f"{c.uptime_s:.0f} s")
            click.echo(form.format(*words, memory))
    else:
        click.echo(f"cluster {name} does not run; start it with: podsnap local up --name {name}")
    if not rows:
        sys.exit(1)


@local.command()
@_NAME
def kubeconfig(name: str) -> None:
    """Print the path of the administrator's kubeconfig."""
    path = _existing(_cluster(name), _cluster(name).kubeconfig)
    click.echo(str(path))


def _existing(cluster: "LocalCluster", path: Path) -> Path:
    if not path.exists():
        raise click.ClickException(
            f"{path} does not exist: cluster {cluster.name} was not brought up; "
            f"podsnap local up --name {cluster.name}"
        )
    return path


@local.command()
@_NAME
@click.option("-n", "--lines", default=40, show_default=True, help="How many lines from the end.")
@click.argument("component", required=False)
def logs(name: str, lines: int, component: str | None) -> None:
    """Print the end of a component's log, or list the logs."""
    from localcluster.cluster import last_lines

    cluster = _cluster(name)
    if component is None:
        for path in sorted(cluster.logs.glob("*.log")):
            click.echo(f"{path.stem:<28} {path}")
        return
    click.echo(last_lines(_existing(cluster, cluster.logs / f"{component}.log"), lines))


@local.command()
@_NAME
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def load(name: str, archive: Path) -> None:
    """Import an image archive on every node."""
    with _plain_errors():
        _cluster(name).load(archive)


@local.command()
@_NAME
@click.argument("component")
def restart(name: str, component: str) -> None:
    """Stop a component and start it again as it was."""
    with _plain_errors():
        cluster = _cluster(name)
        for found in cluster.status():
            if found.name == component:
                running = cluster.component(found.machine, component)
                running.stop()
                running.start()
                return
    raise click.ClickException(f"no component {component!r} runs; see: podsnap local status")


@local.command()
@_NAME
@click.option("--port", default=9411, show_default=True, help="Of the page and the query API.")
def traces(name: str, port: int) -> None:
    """Show the cluster's traces in Zipkin, until Ctrl-C.

    podsnap's programs on the cluster are started again, so that they send their spans there.
    """
    from threading import Event

    from localcluster.trace_backend import trace_backend

    with _plain_errors():
        cluster = _cluster(name)
        _existing(cluster, cluster.kubeconfig)
        with trace_backend(
            cluster.state_dir / "traces",
            listen=str(cluster.network.gateway),
            port=port,
            progress=cluster.progress,
        ) as backend:
            os.environ.update(backend.environment)
            cluster.up()
            click.echo(f"export PODSNAP_TRACE_BACKEND={backend.url}")
            click.echo(f"{backend.url}/zipkin/ has the page; Ctrl-C ends it", err=True)
            Event().wait()


@local.command("exec", context_settings={"ignore_unknown_options": True})
@_NAME
@click.argument("machine")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(name: str, machine: str, command: tuple[str, ...]) -> None:
    """Run a command inside a machine: control-plane, node1."""
    with _plain_errors():
        argv = _cluster(name).machine(machine).enter(list(command))
    sys.exit(subprocess.run(argv, check=False).returncode)


if __name__ == "__main__":
    local()
