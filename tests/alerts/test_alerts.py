# SPDX-License-Identifier: Apache-2.0
"""Alerts and dashboard: Prometheus itself reads them, and they ask for what is really served."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from backends.clock import SystemClock
from backends.telemetry import api_request_counter
from localcluster.toolchain import REPOSITORY, Toolchain
from nodeexec.metrics import AgentMetrics
from reconciler.cluster_cache import ClusterCache
from reconciler.controller import Controller
from reconciler.metrics import ClusterGauges, ControllerMetrics

RULES = REPOSITORY / "deploy" / "alerts" / "podsnap.yaml"
RULES_TEST = Path(__file__).parent / "rules_test.yaml"
DASHBOARD = REPOSITORY / "deploy" / "grafana" / "podsnap.json"
NAMES = re.compile(
    r"\b(?:podsnap|controller_runtime|workqueue|rest_client|leader_election)_[a-z_]+\b"
)
# Grafana's own, which it replaces before it asks.
VARIABLES = {"$__rate_interval": "5m", "$__range": "1h"}


@pytest.fixture(scope="module")
def promtool() -> Path:
    """Prometheus' own tool, built if it is not there."""
    toolchain = Toolchain()
    toolchain.build(lambda _: None, "telemetry")
    return toolchain.path("promtool")


@pytest.fixture(scope="module")
def expressions() -> list[str]:
    """What the panels ask, with Grafana's variables replaced."""
    found = [
        target["expr"]
        for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
        for target in panel.get("targets", ())
    ]
    for name, value in VARIABLES.items():
        found = [expression.replace(name, value) for expression in found]
    return found


def rules() -> list[dict[str, Any]]:
    """Return every alert."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def run(*argv: object, cwd: Path) -> None:
    """Run a command; what it says is the reason if it fails."""
    done = subprocess.run(
        list(map(str, argv)), cwd=cwd, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_rules(promtool: Path, tmp_path: Path) -> None:
    """Without any of its warnings."""
    run(promtool, "check", "rules", "--lint-fatal", RULES, cwd=tmp_path)


def test_each_alert_fires_when_it_should_and_not_before(promtool: Path, tmp_path: Path) -> None:
    """On series that are made for it."""
    for file in (RULES, RULES_TEST):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    run(promtool, "test", "rules", RULES_TEST.name, cwd=tmp_path)
    cases = [
        case
        for test in yaml.safe_load(RULES_TEST.read_text(encoding="utf-8"))["tests"]
        for case in test["alert_rule_test"]
    ]
    alerts = {rule["alert"] for rule in rules()}
    assert {c["alertname"] for c in cases if c["exp_alerts"]} == alerts
    assert {c["alertname"] for c in cases if not c["exp_alerts"]} == alerts


def test_prometheus_takes_what_the_panels_ask(
    promtool: Path, expressions: list[str], tmp_path: Path
) -> None:
    """Each expression as the rule of a file."""
    file = tmp_path / "panels.yaml"
    recorded = [{"record": f"panel:{n}", "expr": e} for n, e in enumerate(expressions)]
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    run(promtool, "check", "rules", file, cwd=tmp_path)
    assert [e for e in expressions if "$" in e] == []


def test_whatever_is_asked_for_is_served(expressions: list[str]) -> None:
    """By the controller or by the agent, under exactly this name, and with these label values."""
    clock, controller, agent = SystemClock(), ControllerMetrics(), AgentMetrics()
    Controller("snapshot", lambda _: None, clock, controller)
    controller.leading.labels(name="podsnap-controller")
    controller.registry.register(ClusterGauges(ClusterCache(cast("Any", None)), clock))
    api_request_counter(controller.registry)("GET", 200)
    series = [
        sample
        for registry in (controller.registry, agent.registry)
        for family in registry.collect()
        for sample in family.samples
    ]
    asked = [*expressions, *(rule["expr"] for rule in rules())]
    names = {name for expression in asked for name in NAMES.findall(expression)}
    assert names - {sample.name for sample in series} == set()
    assert len(names) > 20
    for expression in asked:
        for name, selector in re.findall(r"(\w+)\{([^}]*)\}", expression):
            known = [s.labels for s in series if s.name == name]
            for label, values in re.findall(r'(\w+)=~?"([^"]*)"', selector):
                for value in values.split("|"):
                    assert any(labels.get(label) == value for labels in known), (name, label, value)


def test_the_dashboard_is_whole() -> None:
    """Every panel has an id of its own, a place that no other has, and asks something."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["type"] == "row" or panel["targets"]
