# SPDX-License-Identifier: Apache-2.0
"""``podsnap-node``: the agent of a node, and the doctor that looks at one."""

import json
import signal
import threading
from pathlib import Path

import click

_SETTINGS = click.option(
    "--settings",
    "settings_path",
    type=click.Path(path_type=Path),
    default=Path("/etc/podsnap/agent.toml"),
    show_default=True,
    help="The node's paths.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="podsnap", prog_name="podsnap-node")
def main() -> None:
    """What runs on a node: saves Pods, and decides which are restored."""


@main.command()
@_SETTINGS
def agent(settings_path: Path) -> None:
    """Run the agent until it is told to stop."""
    from backends.clock import SystemClock
    from backends.kube.client import KubeClient
    from backends.kube.transport import Transport
    from backends.telemetry import (
        HttpEndpoint,
        api_request_counter,
        configure_logging,
        metrics_export,
        span_export,
    )
    from nodeexec.agent import Agent
    from nodeexec.runsc import RunscError
    from nodeexec.settings import AgentSettings, SettingsError

    configure_logging()
    try:
        settings = AgentSettings.read(settings_path)
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    transport = Transport.from_kubeconfig(settings.kubeconfig, user_agent="podsnap-agent")
    clock = SystemClock()
    try:
        node = Agent(settings, KubeClient(transport), clock)
    except (RunscError, OSError) as error:
        raise click.ClickException(
            f"runsc at {settings.runsc} cannot be used ({error}); see `podsnap-node doctor`"
        ) from error
    transport.on_answer = api_request_counter(node.metrics.registry)
    spans = span_export("podsnap-agent", node.metrics.registry, clock)
    if spans is not None:
        node.export_spans(spans)
    metrics = metrics_export("podsnap-agent", node.metrics.registry, clock)
    endpoint = HttpEndpoint(
        settings.metrics_address,
        registry=node.metrics.registry,
        health=lambda: True,
        ready=node.is_ready,
    )
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    endpoint.start()
    if metrics is not None:
        metrics.start()
    node.start()
    stopped.wait()
    node.stop()
    if spans is not None:
        spans.stop()
    if metrics is not None:
        metrics.stop()
    endpoint.stop()
    transport.close()


@main.command()
@_SETTINGS
@click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True
)
def doctor(settings_path: Path, output: str) -> None:
    """Check a node and say what to change; exits 1 if saves or restores cannot work."""
    from nodeexec.doctor import examine
    from nodeexec.settings import AgentSettings, SettingsError

    try:
        settings = AgentSettings.read(settings_path)
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    findings = examine(settings)
    if output == "json":
        click.echo(json.dumps([f.to_object() for f in findings], indent=2))
    else:
        for finding in findings:
            click.echo(f"{'ok  ' if finding.ok else 'FAIL'} {finding.subject}: {finding.found}")
            if not finding.ok:
                click.echo(f"     → {finding.advice}")
    if not all(f.ok for f in findings):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
