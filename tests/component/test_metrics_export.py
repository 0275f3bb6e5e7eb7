# SPDX-License-Identifier: Apache-2.0
"""The metrics of /metrics over the wire: the same names, the same numbers, and no noise."""

import logging
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from cluster_world import eventually
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from otlp_collector import Collector, running_collector
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from backends.clock import SystemClock
from backends.metrics_export import MetricsExport
from backends.telemetry import metrics_export


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector, and an environment that names it."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with running_collector() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
        yield running


@pytest.fixture
def registry() -> CollectorRegistry:
    """One metric of each kind."""
    made = CollectorRegistry()
    starts = Counter("podsnap_pod_starts", "Starts.", ["outcome"], registry=made)
    starts.labels(outcome="Restored").inc(3)
    starts.labels(outcome="Cold")
    Gauge("podsnap_saving", "Saves.", registry=made).set(2)
    phases = Histogram(
        "podsnap_save_phase_seconds", "Phases.", ["phase"], registry=made, buckets=(0.1, 1, 10)
    )
    for took_s in (0.05, 0.5, 0.6, 50):
        phases.labels(phase="freeze").observe(took_s)
    phases.labels(phase="seal")
    return made


def exporting(registry: CollectorRegistry) -> MetricsExport:
    """Return what a program of the environment exports with."""
    made = metrics_export("podsnap-agent", registry, SystemClock())
    assert made is not None
    return made


def labelled(points: Any) -> dict[str, Any]:  # noqa: ANN401 - data points of any kind
    """Return data points by the value of their one label."""
    return {p.attributes[0].value.string_value: p for p in points}


def test_a_collector_gets_what_prometheus_would_read(
    collector: Collector, registry: CollectorRegistry
) -> None:
    """Counters only grow, and a histogram's buckets are each their own count."""
    assert exporting(registry).send()
    (service, found) = collector.metrics[0]
    assert service == "podsnap-agent"
    assert found.keys() == {
        "podsnap_pod_starts_total",
        "podsnap_saving",
        "podsnap_save_phase_seconds",
    }
    starts = found["podsnap_pod_starts_total"].sum
    assert starts.is_monotonic
    assert starts.aggregation_temporality == AggregationTemporality.Value(
        "AGGREGATION_TEMPORALITY_CUMULATIVE"
    )
    values = {k: p.as_double for k, p in labelled(starts.data_points).items()}
    assert values == {"Restored": 3, "Cold": 0}
    assert found["podsnap_saving"].gauge.data_points[0].as_double == 2
    phases = labelled(found["podsnap_save_phase_seconds"].histogram.data_points)
    freeze = phases["freeze"]
    assert list(freeze.explicit_bounds) == [0.1, 1, 10]
    assert list(freeze.bucket_counts) == [1, 2, 0, 1]
    assert (freeze.count, round(freeze.sum, 3)) == (4, 51.15)
    assert not freeze.HasField("max")
    assert list(phases["seal"].bucket_counts) == [0, 0, 0, 0]
    assert 0 < freeze.start_time_unix_nano <= freeze.time_unix_nano


def test_metrics_go_out_again_and_again_and_once_more_at_the_end(
    collector: Collector, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As often as the environment says."""
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "20")
    export = exporting(registry)
    export.start()
    eventually(lambda: len(collector.metrics) > 2, "some came")
    Counter("podsnap_last_words", "x", registry=registry).inc()
    export.stop()
    assert "podsnap_last_words_total" in collector.metrics[-1][1]


def test_a_collector_that_is_away_is_told_once_and_once_when_it_is_back(
    collector: Collector, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """Not once a minute, and not in the SDK's words."""
    export = exporting(registry)
    with caplog.at_level(logging.DEBUG, logger="backends"), caplog.at_level(logging.INFO):
        for code in (404, 404, 200, 200):
            collector.code = code
            assert export.send() is (code == 200)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_nobody_there_is_no_error(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused connection is an answer like any other."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"http://127.0.0.1:{port}")
    assert not exporting(registry).send()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "TRUE"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_METRICS_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_METRIC_EXPORT_INTERVAL": "often"},
    ],
    ids=["none", "only for traces", "disabled", "no metrics", "no interval"],
)
def test_without_a_collector_for_metrics_nothing_is_sent(
    registry: CollectorRegistry, environment: Mapping[str, str]
) -> None:
    """Also where a variable is wrong, which is told and stops nothing."""
    assert metrics_export("podsnap-agent", registry, SystemClock(), environment) is None
