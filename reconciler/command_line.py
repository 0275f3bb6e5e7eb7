# SPDX-License-Identifier: Apache-2.0
"""``podsnap``: the controller, and everything a person asks.

Imports are inside the commands, so that ``--help`` answers at once.
"""

import signal
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import click

from backends.objects.workload_identity import GOOGLE_IAM, GOOGLE_STS, WorkloadIdentity
from reconciler.commands.exit_codes import ExitCode, epilog

# Where a command is: imported when it is asked for, because each would slow the others down.
_ELSEWHERE: Final = {
    "convert": "reconciler.commands.convert",
    "explain": "reconciler.commands.explain",
    "get": "reconciler.commands.snapshots",
    "lint": "reconciler.commands.lint",
    "local": "localcluster.commands",
    "nodes": "reconciler.commands.upkeep",
    "plan": "reconciler.commands.plan",
    "retention": "reconciler.commands.upkeep",
    "store": "reconciler.commands.store",
    "story": "reconciler.commands.snapshots",
    "trace": "reconciler.commands.trace",
}


class _Program(click.Group):
    """The commands by name; Ctrl-C ends any of them without a word."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        found: click.Command = getattr(import_module(_ELSEWHERE[cmd_name]), cmd_name)
        return found

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - what the command returns
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(ExitCode.INTERRUPTED)


@click.group(
    cls=_Program, context_settings={"help_option_names": ["-h", "--help"]}, epilog=epilog()
)
@click.version_option(package_name="podsnap", prog_name="podsnap")
def main() -> None:
    """Pod snapshots for any Kubernetes cluster that runs gVisor."""


def _duration(context: click.Context, parameter: click.Parameter, value: str) -> float:
    from schemas.durations import parse_go_duration_s

    try:
        return parse_go_duration_s(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error


@main.command()
@click.option("--kubeconfig", type=click.Path(path_type=Path), help="Default: in-cluster.")
@click.option(
    "--bucket-root",
    type=click.Path(path_type=Path),
    help="Buckets are directories below this one (a local cluster).",
)
@click.option(
    "--bucket-endpoint",
    default="",
    help="Address of a server that speaks Cloud Storage's JSON API; default: Google's.",
)
@click.option(
    "--workload-identity-provider",
    default="",
    metavar="AUDIENCE",
    help="Workload identity provider that knows this cluster; without, no Pod has a token of its "
    "own (podKSA).",
)
@click.option(
    "--service-account-to-impersonate",
    default="",
    metavar="EMAIL",
    help="Google service account for Pods whose ServiceAccount has no annotation "
    "iam.gke.io/gcp-service-account; default: the Pods' own principals.",
)
@click.option("--sts-endpoint", default=GOOGLE_STS, show_default=True, help="For tests.")
@click.option("--iam-endpoint", default=GOOGLE_IAM, show_default=True, help="For tests.")
@click.option(
    "--cluster-id",
    default="",
    help="Mark on stored objects, the same as the agents' cluster_id, and no other cluster's; "
    "default: the UID of namespace kube-system.",
)
@click.option(
    "--region",
    default="",
    help="The cluster's region, which a bucket's location is compared with; default: as a Node "
    "with an agent is labelled (topology.kubernetes.io/region).",
)
@click.option(
    "--sweep-grace",
    default="24h",
    show_default=True,
    callback=_duration,
    help="How long bytes of this cluster may be in a bucket without a PodSnapshot before they are "
    "removed, such as 30m.",
)
@click.option("--metrics-address", default="127.0.0.1:8080", show_default=True)
def controller(
    kubeconfig: Path | None,
    bucket_root: Path | None,
    bucket_endpoint: str,
    workload_identity_provider: str,
    service_account_to_impersonate: str,
    sts_endpoint: str,
    iam_endpoint: str,
    cluster_id: str,
    region: str,
    sweep_grace: float,
    metrics_address: str,
) -> None:
    """Run the controller: policies, triggers, snapshots, storage, Git sources."""
    from backends.clock import SystemClock
    from backends.kube.client import KubeClient
    from backends.kube.transport import Transport
    from backends.objects.factory import BucketAccess
    from backends.telemetry import (
        HttpEndpoint,
        api_request_counter,
        configure_logging,
        metrics_export,
        span_export,
    )
    from reconciler.cluster_id import own_cluster_id
    from reconciler.gke_addon import refusal, traces_of_addon
    from reconciler.manager import Manager, ManagerSettings, default_identity

    try:
        workload_identity = WorkloadIdentity(
            provider=workload_identity_provider,
            sts_url=sts_endpoint,
            iam_url=iam_endpoint,
            impersonate=service_account_to_impersonate,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    configure_logging()
    agent_name = "podsnap-controller"
    transport = (
        Transport.from_kubeconfig(kubeconfig, user_agent=agent_name)
        if kubeconfig
        else Transport.in_cluster(user_agent=agent_name)
    )
    client, clock = KubeClient(transport), SystemClock()
    settings = ManagerSettings(
        cluster_id=cluster_id or own_cluster_id(client),
        buckets=BucketAccess(bucket_root, bucket_endpoint),
        identity=default_identity(),
        region=region,
        sweep_grace_s=sweep_grace,
        workload_identity=workload_identity,
    )
    refused = refusal(traces_of_addon(client, clock))
    if refused:
        raise click.ClickException(refused)
    manager = Manager(settings, client, clock)
    transport.on_answer = api_request_counter(manager.metrics.registry)
    spans = span_export(agent_name, manager.metrics.registry, clock)
    if spans is not None:
        manager.export_spans(spans)
    metrics = metrics_export(agent_name, manager.metrics.registry, clock)
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
    if metrics is not None:
        metrics.start()
    manager.start()
    stopped.wait()
    manager.stop()
    if spans is not None:
        spans.stop()
    if metrics is not None:
        metrics.stop()
    endpoint.stop()
    transport.close()


@main.command()
def crds() -> None:
    """Print the CRDs, for `kubectl apply --server-side -f -`."""
    from schemas.crd_validation import crd_texts

    click.echo("---\n".join(text for _, text in crd_texts()), nl=False)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete podsnap's commands, for its start-up file.

    For bash: source <(podsnap completion bash)
    """
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    if complete is not None:
        click.echo(complete(main, {}, "podsnap", "_PODSNAP_COMPLETE").source())


if __name__ == "__main__":
    main()
