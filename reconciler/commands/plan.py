# SPDX-License-Identifier: Apache-2.0
"""``podsnap plan``: what applying a tree would change, told before anything is applied.

Reads the tree, perhaps the same tree at another revision, and what stands: in a cluster, or in a
file that kubectl wrote. The trap is a wrong command line: click ends with 2 then, which here means
that something changes, so this command ends with 1.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import click

from reconciler.commands.connection import Cluster, connected
from reconciler.commands.exit_codes import CommandError, ExitCode, PlanExit, epilog
from reconciler.commands.output import show

if TYPE_CHECKING:
    from reconciler.commands.admission import DryRun, OwnRules
    from reconciler.plan_presentation import Told
    from reconciler.planned_manifests import Manifests
    from reconciler.planned_sides import Standing

_SHOWN: Final = 20
_AT_ONCE: Final = 4  # namespaces
_ENDINGS: Final = (".yaml", ".yml", ".json", "Kustomization")


class _WrongCommandLine(click.UsageError):
    exit_code = int(PlanExit.ERROR)


class _Plan(click.Command):
    """Ends with 1 where other commands end with 2."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:  # noqa: ANN401 - as click's
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            raise _WrongCommandLine(error.format_message(), error.ctx) from error


@click.command(cls=_Plan, epilog=epilog(PlanExit))
@click.argument("path", type=click.Path(exists=True, allow_dash=True, path_type=Path))
@click.option("--base", metavar="REV", default="", help="Compare with PATH at a Git revision.")
@click.option(
    "--offline",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Ask no cluster, but what `kubectl get ... -A -o json` printed (docs/plan.md).",
)
@click.option("-n", "--namespace", default="", help="Of objects that name none.")
@click.option("--context", default="", help="A context of the kubeconfig.")
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path),
    help="Default: $KUBECONFIG, then ~/.kube/config.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "markdown", "json"]),
    default="table",
    show_default=True,
    help="A table for people, Markdown for a pull request, JSON for programs.",
)
@click.pass_context
def plan(
    ctx: click.Context,
    *,
    path: Path,
    base: str,
    offline: Path | None,
    namespace: str,
    context: str,
    kubeconfig: Path | None,
    output: str,
) -> None:
    """Say what applying the manifests below PATH (- for standard input) would change.

    For each workload: the policy that governs it, the snapshot that its next Pod is restored from,
    or the field because of which it starts cold; then the snapshots that become obsolete, and what
    retention deletes. Without --base the tree is compared with what stands in the cluster.

    Ends with 0 if nothing changes and with 2 if something does. What other commands end with 2
    for, a wrong command line, is 1 here.
    """
    if offline is None:
        with connected(kubeconfig, context, namespace) as cluster:
            told = _online(cluster, path, base)
    elif context or kubeconfig:
        text = "--offline asks no cluster; leave out --context and --kubeconfig"
        raise _WrongCommandLine(text, ctx)
    else:
        told = _offline(offline, path, base, namespace or "default")
    _give(output, told)
    ctx.exit(PlanExit.CHANGES if told.plan.has_changes else PlanExit.NO_CHANGES)


def _online(cluster: Cluster, path: Path, base: str) -> "Told":
    from reconciler.commands.admission import DryRun

    tree, older, compared_with = _trees(path, base, cluster.namespace)
    namespaces = tree.namespaces() | (older.namespaces() if older else set())
    there = _read_cluster(cluster, sorted(namespaces))
    return _told(
        path,
        tree,
        older,
        there,
        compared_with or "what stands in the cluster",
        DryRun(cluster.client),
    )


def _offline(file: Path, path: Path, base: str, namespace: str) -> "Told":
    from reconciler.commands.admission import OwnRules

    tree, older, compared_with = _trees(path, base, namespace)
    there = _read_file(file, tree.namespaces() | (older.namespaces() if older else set()))
    compared_with = compared_with or f"what stood in the cluster when {file} was written"
    return _told(path, tree, older, there, compared_with, OwnRules("no API server is asked"))


def _trees(path: Path, base: str, namespace: str) -> "tuple[Manifests, Manifests | None, str]":
    """Read the tree and the one to compare with, if any, and say which that is."""
    tree = _read(path, namespace)
    whole = not any(finding.rule == "not-rendered" for finding in tree.errors)
    _refuse(
        [str(f).replace("podsnap lint -", "podsnap plan -") for f in tree.errors],
        f"see podsnap lint {path}" if whole else "render it, and plan the result",
    )
    if not base:
        return tree, None, ""
    if path == Path("-"):
        text = "standard input is at no revision; leave out --base, or write the manifests to files"
        raise CommandError(ExitCode.ERROR, text)
    from backends.git.errors import GitError
    from backends.git.revision import read_revision

    try:
        revision = read_revision(path, base, _ENDINGS)
    except GitError as error:
        raise CommandError(ExitCode.ERROR, str(error)) from error
    # From a copy, so that both are read by the same rules.
    with TemporaryDirectory(prefix="podsnap-plan-") as copy:
        for name, content in revision.files.items():
            file = Path(copy, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        older = _read(Path(copy), namespace)
    name = base if revision.commit.startswith(base) else f"{base} ({revision.commit[:12]})"
    # What is wrong there may be what the tree mends.
    notes = [
        replace(
            finding,
            file=f"at {name}: {finding.file.removeprefix(f'{copy}/')}",
            message="not compared: " + finding.message.replace(f"{copy}/", ""),
        )
        for finding in older.errors
    ]
    workloads = {key: replace(found, place="") for key, found in older.workloads.items()}
    older = replace(older, workloads=workloads, notes=notes)
    return tree, older, f"revision {name}"


def _read(path: Path, namespace: str) -> "Manifests":
    from reconciler.manifest_files import manifest_files
    from reconciler.planned_manifests import read_manifests

    try:
        return read_manifests(manifest_files([str(path)]), namespace)
    except OSError as error:
        raise CommandError(ExitCode.ERROR, f"a manifest cannot be read: {error}") from error


def _refuse(errors: Sequence[str], mend: str) -> None:
    """End with what is wrong, if anything is.

    Raises:
        CommandError: something is.
    """
    if not errors:
        return
    more = [f"and {len(errors) - _SHOWN} more"] if len(errors) > _SHOWN else []
    text = "\n".join(("nothing is planned, because not all can be read:", *errors[:_SHOWN], *more))
    raise CommandError(ExitCode.ERROR, f"{text}\n{mend}")


def _told(
    path: Path,
    tree: "Manifests",
    older: "Manifests | None",
    there: "Standing",
    compared_with: str,
    admission: "DryRun | OwnRules",
) -> "Told":
    from policies.planning import plan as make_plan
    from reconciler.plan_presentation import Told
    from reconciler.planned_sides import sides

    before, after, around = sides(tree, older, there, datetime.now(UTC), admission.complete)
    _refuse(admission.errors, "mend the templates")
    made = make_plan(before, after, around)
    notes = [*tree.notes, *(older.notes if older else ())]
    unknown = {*there.unknown, *(f"{note.file}: {note.message}" for note in notes)}
    if before.storage != after.storage:
        unknown.add("workloads of other namespaces whose policies use the changed storage configs")
    return Told(str(path), compared_with, admission.told(), sorted(unknown), made)


def _read_cluster(cluster: Cluster, namespaces: Sequence[str]) -> "Standing":
    """Read what stands in the namespaces of the tree; what may not be read is left out."""
    from backends.kube.client import (
        LEASES,
        POD_SNAPSHOT_POLICIES,
        POD_SNAPSHOT_STORAGE_CONFIGS,
        POD_SNAPSHOTS,
        PODS,
        RUNTIME_CLASSES,
        Resource,
    )
    from reconciler.cluster_cache import TEMPLATES
    from reconciler.planned_sides import standing
    from schemas.names import SYSTEM_NAMESPACE

    controllers = Resource("", "v1", "replicationcontrollers", "ReplicationController")
    makers = (PODS, *TEMPLATES, controllers)
    ours = (POD_SNAPSHOT_POLICIES, POD_SNAPSHOTS)
    found: dict[str, list[Mapping[str, Any]]] = {}
    denied = set()

    def read(resources: Sequence[Resource], namespaces: Sequence[str | None]) -> None:
        asked = [
            (resource, cluster.soon(cluster.list, resource, namespace=namespace))
            for resource in resources
            for namespace in namespaces
        ]
        for resource, answer in asked:
            what = resource.plural
            objects = answer.result() if resource in ours else cluster.if_allowed(answer, what)
            if objects is None:
                denied.add(resource.kind)
                continue
            group_version = "/".join(filter(None, (resource.group, resource.version)))
            known = {"apiVersion": group_version, "kind": resource.kind}
            found.setdefault(resource.kind, []).extend({**o, **known} for o in objects)

    read((POD_SNAPSHOT_STORAGE_CONFIGS, RUNTIME_CLASSES), [None])
    read([LEASES], [SYSTEM_NAMESPACE])
    for first in range(0, len(namespaces), _AT_ONCE):
        read((*ours, *makers), namespaces[first : first + _AT_ONCE])
    knows_workloads = not denied & {resource.kind for resource in makers}
    return standing(found, unknown=cluster.unknown, knows_workloads=knows_workloads)


def _read_file(file: Path, namespaces: Collection[str]) -> "Standing":
    """Read what kubectl printed of the namespaces, and of what has none.

    Raises:
        CommandError: it is no list of objects.
    """
    import orjson

    from reconciler.planned_sides import WORKLOAD_KINDS, standing

    try:
        items = orjson.loads(file.read_bytes())["items"]
        found: dict[str, list[Mapping[str, Any]]] = {}
        makers = set()
        for item in items:
            kept = found.setdefault(item["kind"], [])
            metadata = item["metadata"]
            if item["kind"] == "Lease" or metadata.get("namespace", "") in {"", *namespaces}:
                kept.append(item)
                owners = metadata.get("ownerReferences") or ()
                makers |= {o["kind"] for o in owners if o.get("controller")}
        unknown = [
            f"{kind}s, though {file} has what they made"
            for kind in sorted(makers.intersection(WORKLOAD_KINDS) - found.keys())
        ]
        knows_workloads = not unknown and any(kind in found for kind in WORKLOAD_KINDS)
        if not {"PodSnapshot", "PodSnapshotPolicy"} & found.keys():
            unknown.append(f"{file} has neither snapshots nor policies")
        return standing(found, unknown=unknown, knows_workloads=knows_workloads)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(
            ExitCode.ERROR,
            f"{file} is no list of objects as kubectl prints it: {error}; write it with "
            "kubectl get KINDS -A -o json, see docs/plan.md",
        ) from error


def _give(output: str, told: "Told") -> None:
    from reconciler.plan_presentation import blocks, markdown

    if output == "table":
        show(blocks(told))
    elif output == "markdown":
        click.echo("\n".join(markdown(told)))
    else:
        import json

        from reconciler.commands.output import plain
        from reconciler.plan_presentation import document

        click.echo(json.dumps(plain(document(told)), indent=2))
