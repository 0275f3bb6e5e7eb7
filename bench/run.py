# SPDX-License-Identifier: Apache-2.0
"""``make bench``: the project's numbers, measured on a real cluster of their own.

    bench/run.py                   everything, about twenty minutes
    bench/run.py wrapper decision  only these
    bench/run.py --keep idle       leave the cluster up
    bench/run.py -o json small     the result as JSON on stdout, what happens on stderr

A part that breaks is told, the others still run, and the cluster goes away at the end. The trap is
a busy machine: its load is printed and stored with the result.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import background
import bucket_transfers
import click
import cluster_up
import dead_collector
import decision_latency
import delete_latency
import git_sources
import herd
import idle_cost
import lint
import many_snapshots
import plan_time
import report
import save_pause
import semantic_search
import shared_fetch
import small_pods
import stored_forms
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
    "lint": lint.measure,
    "fetch": bucket_transfers.measure_fetch,
    "upload": bucket_transfers.measure_upload,
    "one-fetch": shared_fetch.measure,
    "forms": stored_forms.measure,
    "up": cluster_up.measure,
    "restore": semantic_search.measure,
    "background": background.measure,
    "small": small_pods.measure,
    "herd": herd.measure,
    "trigger": trigger_latency.measure,
    "decision": decision_latency.measure,
    "pause": save_pause.measure,
    "on-delete": delete_latency.measure,
    "wrapper": wrapper_cost.measure,
    "collector": dead_collector.measure,
    "many": many_snapshots.measure,
    "plan": plan_time.measure,
    "git": git_sources.measure,
    "idle": idle_cost.measure,
}
# They need none, or make it.
_WITHOUT_CLUSTER = frozenset({"fetch", "forms", "lint", "one-fetch", "plan", "up", "upload"})
# The other parts run Pods of the image `counter`, or none.
_IMAGES = {"restore": "semantic-search"}


def say(line: str) -> None:
    """Tell one thing that happens."""
    click.echo(f"   {line}", err=True)


def load(cluster: LocalCluster, parts: Sequence[str]) -> None:
    """Bring the cluster up, unless it is, and give its node the images that the parts need."""
    cluster.up()
    for example in sorted({_IMAGES.get(part, "counter") for part in parts}):
        image = build_image(EXAMPLES / example, cache=default_cache(), progress=say)
        cluster.load(image.archive)


class Run:
    """The figures of one run, and what broke."""

    def __init__(self, cluster: LocalCluster, parts: Sequence[str]) -> None:
        """Nothing is measured yet."""
        self.cluster = cluster
        self.parts = parts
        self.figures: list[Figure] = []
        self.broken: dict[str, str] = {}
        self.load_before = os.getloadavg()[0]

    @property
    def is_good(self) -> bool:
        """Whether everything was measured and every target is met."""
        return not self.broken and all(f.is_met is not False for f in self.figures)

    def measure(self) -> None:
        """Run the parts; what one found is kept before the next begins."""
        loaded = False
        for part in self.parts:
            if part not in _WITHOUT_CLUSTER and not loaded:
                loaded = self.attempt("cluster", lambda: load(self.cluster, self.parts))
                if not loaded:
                    return
            self.attempt(part, partial(self._one, part))

    def _one(self, part: str) -> None:
        self.figures += PARTS[part](self.cluster, say)

    def attempt(self, what: str, step: Callable[[], None]) -> bool:
        """Do a step and tell how long it took; tell whether it went well."""
        click.secho(f"\n== {what}", bold=True, err=True)
        began_s = time.monotonic()
        try:
            step()
        except ERRORS as error:
            self.broken[what] = str(error)
            click.secho(f"   broken: {error}", fg="red", err=True)
        say(f"{time.monotonic() - began_s:.0f} s")
        report.write(RESULT, self.result())
        return what not in self.broken

    def result(self) -> dict[str, Any]:
        """Return what is known by now."""
        return report.result(self.figures, self.broken, load_before=self.load_before)

    def show(self, output: str) -> None:
        """Print the table, or the result as it is kept."""
        if output == "json":
            click.echo(json.dumps(self.result(), indent=1))
            return
        click.echo()
        for line in [*report.table(self.figures), "", *report.notes(self.figures), ""]:
            click.echo(f"   {line}")
        for part, why in self.broken.items():
            click.secho(f"   {part} is broken: {why}", fg="red", err=True)
        load_after, cores = os.getloadavg()[0], os.cpu_count()
        say(f"load {self.load_before:.1f} before, {load_after:.1f} after, {cores} cores")
        say(f"kept in {RESULT}")


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
@click.option("--keep", is_flag=True, help="Leave the cluster up.")
@click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True
)
def main(parts: tuple[str, ...], *, keep: bool, output: str) -> None:
    """Measure PARTS, or everything; the exit code is 1 if a target is missed."""
    cluster = LocalCluster(CLUSTER, progress=say)
    run = Run(cluster, [part for part in PARTS if part in parts or not parts])
    try:
        run.measure()
        run.show(output)
    finally:
        if not keep:
            cluster.down()
    sys.exit(0 if run.is_good else 1)


if __name__ == "__main__":
    main()
