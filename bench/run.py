# SPDX-License-Identifier: Apache-2.0
"""``make bench``: the project's numbers, measured on a real cluster of their own.

    bench/run.py                   everything, about ten minutes
    bench/run.py wrapper decision  only these
    bench/run.py --keep idle       leave the cluster up

A part that breaks is told, the others still run, and the cluster goes away at the end. The trap is
a busy machine: its load is printed and stored with the result.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import cluster_up
import counter_pairs
import decision_latency
import idle_cost
import report
import semantic_search
import trigger_latency
import wrapper_cost
from figure import Figure
from room import EXAMPLES, BenchError

from backends.kube.errors import ApiError
from localcluster.cgroups import CgroupError
from localcluster.cluster import ClusterError, LocalCluster
from localcluster.images import ImageError, build_image, default_cache
from localcluster.machine import MachineError
from localcluster.network import NetworkError
from localcluster.pod_times import PodWaitError
from localcluster.preflight import PreflightError
from localcluster.toolchain import ToolchainError

RESULT = Path(__file__).resolve().parent.parent / "build" / "bench" / "result.json"
CLUSTER = "bench"
ERRORS = (
    ApiError,
    BenchError,
    CgroupError,
    ClusterError,
    ImageError,
    MachineError,
    NetworkError,
    OSError,
    PodWaitError,
    PreflightError,
    ToolchainError,
    ValueError,
    subprocess.SubprocessError,
)

Measure = Callable[[LocalCluster, Callable[[str], None]], list[Figure]]
# In this order: `up` makes the cluster anew, and `idle` looks at programs that have worked.
PARTS: dict[str, Measure] = {
    "up": cluster_up.measure,
    "restore": semantic_search.measure,
    "counter": counter_pairs.measure,
    "trigger": trigger_latency.measure,
    "decision": decision_latency.measure,
    "wrapper": wrapper_cost.measure,
    "idle": idle_cost.measure,
}
_IMAGES = {
    "restore": "semantic-search",
    "counter": "counter",
    "trigger": "counter",
    "decision": "counter",
    "wrapper": "counter",
}


def say(line: str) -> None:
    """Tell one thing."""
    click.echo(f"   {line}")


def load(cluster: LocalCluster, parts: Sequence[str]) -> None:
    """Give the node the images that the parts need."""
    for example in sorted({_IMAGES[part] for part in parts if part in _IMAGES}):
        image = build_image(EXAMPLES / example, cache=default_cache(), progress=say)
        cluster.load(image.archive)


def measure(cluster: LocalCluster, parts: Sequence[str]) -> bool:
    """Run the parts and print the table; tell whether all went well and every target is met."""
    figures: list[Figure] = []
    broken: dict[str, str] = {}
    load_before = os.getloadavg()[0]
    if "up" not in parts:
        cluster.up()
        load(cluster, parts)
    for part in parts:
        click.secho(f"\n== {part}", bold=True)
        began_s = time.monotonic()
        try:
            figures += PARTS[part](cluster, say)
            if part == "up":
                load(cluster, parts)
        except ERRORS as error:
            broken[part] = str(error)
            click.secho(f"   broken: {error}", fg="red", err=True)
        say(f"{time.monotonic() - began_s:.0f} s")
        report.write(RESULT, report.result(figures, broken, load_before=load_before))
    click.echo()
    for line in [*report.table(figures), "", *report.notes(figures)]:
        say(line)
    for part, why in broken.items():
        click.secho(f"   {part} is broken: {why}", fg="red", err=True)
    say("")
    say(f"load {load_before:.1f} before, {os.getloadavg()[0]:.1f} after, {os.cpu_count()} cores")
    say(f"kept in {RESULT}")
    return not broken and all(figure.is_met is not False for figure in figures)


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
@click.option("--keep", is_flag=True, help="Leave the cluster up.")
def main(parts: tuple[str, ...], *, keep: bool) -> None:
    """Measure PARTS, or everything; the exit code is 1 if a target is missed."""
    cluster = LocalCluster(CLUSTER, progress=say)
    chosen = [part for part in PARTS if part in parts or not parts]
    try:
        good = measure(cluster, chosen)
    finally:
        if not keep:
            cluster.down()
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
