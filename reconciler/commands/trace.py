# SPDX-License-Identifier: Apache-2.0
"""``podsnap trace``: the one trace of a snapshot's life, drawn in the terminal.

A backend has everything that was ever told. Without one the same spans are computed from what the
objects still say, which is coarser: a Pod's conditions have whole seconds, and Pods that are gone
tell nothing.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import click

from reconciler.commands.connection import Cluster, asks_cluster
from reconciler.commands.exit_codes import CommandError, ExitCode
from reconciler.commands.output import clean, plain

if TYPE_CHECKING:
    from reconciler.waterfall import Line
    from schemas.pod import Pod
    from schemas.snapshot import Snapshot
    from schemas.span import Span

# On a line that goes into a file.
_PLAIN_WIDTH: Final = 100
_COLOURS: Final = {"podsnap-controller": "cyan", "podsnap-agent": "green"}
# What statemachine.restore.report writes on a Pod.
_NAMED: Final = re.compile(r"PodSnapshot [^/\s]+/(\S+)")


@click.command()
@click.argument("name")
@click.option(
    "--backend",
    metavar="URL",
    envvar="PODSNAP_TRACE_BACKEND",
    default="",
    help="A backend with Zipkin's API; default: $PODSNAP_TRACE_BACKEND, else what objects tell.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["waterfall", "json"]),
    default="waterfall",
    show_default=True,
    help="A drawing for people, spans for programs.",
)
@asks_cluster
def trace(cluster: Cluster, *, name: str, backend: str, output: str) -> None:
    """Draw the trace of a snapshot, from the commit of its policy to each restored Pod.

    NAME is a snapshot, the beginning of its name, or a Pod, whose restore alone is shown then.
    """
    snapshot, pod = _meant(cluster, name)
    spans = _told(backend, snapshot) if backend else _computed(cluster, snapshot)
    if pod is not None:
        spans = _only(pod, spans)
    if output == "json":
        click.echo(json.dumps(plain(spans), indent=2))
    else:
        _draw(snapshot, spans, backend)


def _meant(cluster: Cluster, name: str) -> "tuple[Snapshot, Pod | None]":
    """Return the snapshot of that name, or the Pod's, and the Pod.

    Raises:
        CommandError: there is none.
    """
    from backends.kube.client import POD_SNAPSHOTS, PODS
    from reconciler.commands.snapshots import snapshot_named
    from schemas.pod import Pod
    from schemas.snapshot import Snapshot

    namespace = cluster.namespace
    snapshot = cluster.soon(cluster.find, POD_SNAPSHOTS, name, namespace=namespace)
    found = cluster.soon(cluster.find, PODS, name, namespace=namespace)
    exact = snapshot.result()
    if exact is not None:
        return Snapshot.parse(exact), None
    raw = found.result()
    if raw is None:
        return snapshot_named(cluster, name), None
    pod = Pod.parse(raw)
    everyone = map(Snapshot.parse, cluster.list(POD_SNAPSHOTS, namespace=namespace))
    restored_from = _restored_from(pod)
    for each in everyone:
        saved = each.capture is not None and each.capture.pod_uid == pod.metadata.uid
        if each.metadata.name == restored_from or (saved and not restored_from):
            return each, pod
    raise CommandError(
        ExitCode.NOT_FOUND,
        f"Pod {pod.metadata} was neither restored nor saved, so no trace has it; "
        f"`podsnap explain pod {name} -n {namespace}` says why it started as it did",
    )


def _restored_from(pod: "Pod") -> str:
    from schemas.names import POD_RESTORED

    condition = pod.conditions.get(POD_RESTORED)
    found = _NAMED.search(condition.message) if condition is not None else None
    return found[1] if found else ""


def _told(backend: str, snapshot: "Snapshot") -> "list[Span]":
    from backends.zipkin import TraceQueryError, read_trace

    try:
        spans = read_trace(backend, snapshot.trace_id)
    except TraceQueryError as error:
        raise CommandError(
            ExitCode.UNREACHABLE,
            f"the trace backend cannot be asked: {error}; without --backend (and without "
            "PODSNAP_TRACE_BACKEND) the trace is drawn from what the objects tell",
        ) from error
    if not spans:
        raise CommandError(
            ExitCode.NOT_FOUND,
            f"{backend} has no trace {snapshot.trace_id}: nothing was sent to it "
            "(OTEL_EXPORTER_OTLP_ENDPOINT of controller and agent), or it has forgotten; without "
            "--backend the trace is drawn from what the objects tell",
        )
    return spans


def _computed(cluster: Cluster, snapshot: "Snapshot") -> "list[Span]":
    from backends.kube.client import PODS
    from schemas.pod import Pod
    from statemachine.trace import restore_spans, restore_times, save_spans

    spans = save_spans(snapshot)
    for pod in map(Pod.parse, cluster.list(PODS, namespace=snapshot.metadata.namespace)):
        times = restore_times(pod)
        if times is not None and _restored_from(pod) == snapshot.metadata.name:
            spans += restore_spans(snapshot, times)
    return spans


def _only(pod: "Pod", spans: "Iterable[Span]") -> "list[Span]":
    """Leave the restores of other Pods out, and the steps below them."""
    kept, dropped = [], set()
    for span in sorted(spans, key=lambda s: s.start_s):
        of = span.attributes.get("k8s.pod.uid", pod.metadata.uid)
        if span.name == "restore" and of != pod.metadata.uid:
            dropped.add(span.span_id)
        kept.append(span)
    return [s for s in kept if s.span_id not in dropped and s.parent_id not in dropped]


def _draw(snapshot: "Snapshot", spans: "list[Span]", backend: str) -> None:
    from reconciler.waterfall import waterfall

    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else _PLAIN_WIDTH
    source = f"{backend.rstrip('/')}/zipkin/traces/{snapshot.trace_id}" if backend else ""
    click.echo(f"PodSnapshot {snapshot.metadata}, trace {snapshot.trace_id}")
    if source:
        click.echo(source)
    for line in waterfall(spans, width=width, is_unicode=_is_unicode()):
        click.echo(_coloured(line))


def _coloured(line: "Line") -> str:
    colour = "red" if line.error else _COLOURS.get(line.service)
    bar = click.style(line.bar, fg=colour) if line.bar else ""
    error = f"  {clean(line.error)}" if line.error else ""
    return "  ".join(part for part in (clean(line.name), line.took, bar) if part) + error


def _is_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
