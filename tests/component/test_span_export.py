# SPDX-License-Identifier: Apache-2.0
"""Spans over the wire: to a collector that takes them, to one that does not, and to none."""

import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from cluster_world import eventually
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from otlp_collector import Collector, running_collector
from prometheus_client import CollectorRegistry

from backends.clock import SystemClock
from backends.span_export import QUEUE_SPANS, SpanExport
from backends.telemetry import exports_spans, metrics_export, span_export
from schemas.span import Span, span_id, trace_id

TRACE = trace_id("main@sha1:ab", "uid-1")
ROOT = Span(
    trace_id=TRACE,
    span_id=span_id(TRACE, "commit"),
    parent_id="",
    name="commit ab",
    service="podsnap-controller",
    start_s=1_700_000_000.25,
    end_s=1_700_000_001.5,
    attributes={"vcs.ref.head.revision": "ab", "podsnap.save.bytes": 7},
)
CHILD = Span(
    trace_id=TRACE,
    span_id=span_id(TRACE, "save"),
    parent_id=ROOT.span_id,
    name="save",
    service="podsnap-agent",
    start_s=1_700_000_002.0,
    end_s=1_700_000_003.0,
    links=((TRACE, ROOT.span_id),),
    error="UploadFailed: the bucket is away",
)
IMPORTS = """
import os, sys, threading
from prometheus_client import CollectorRegistry
from backends.clock import SystemClock
from backends.telemetry import span_export
assert span_export("podsnap-agent", CollectorRegistry(), SystemClock()) is None
heavy = [m for m in sys.modules if m.startswith(("opentelemetry", "google.protobuf", "requests"))]
print(heavy, threading.active_count())
"""


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector, and an environment that names it."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with running_collector() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
        yield running


@pytest.fixture
def registry() -> CollectorRegistry:
    """The metrics of the process."""
    return CollectorRegistry()


def exporting(registry: CollectorRegistry, service: str = "podsnap-controller") -> SpanExport:
    """Return what a program of the environment exports with."""
    made = span_export(service, registry, SystemClock())
    assert made is not None
    return made


def dropped(registry: CollectorRegistry) -> float:
    """Return how many spans no collector took."""
    return registry.get_sample_value("podsnap_spans_dropped_total") or 0.0


def test_a_collector_gets_the_tree_as_it_was_told(
    collector: Collector, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own ids and instants, parents and links, errors, and the headers of the environment."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x")
    export = exporting(registry)
    assert export([ROOT, CHILD])
    eventually(lambda: len(collector.spans) == 2, "both spans came")
    export.stop()
    assert collector.headers[0]["authorization"] == "Bearer x"
    (first, root), (second, child) = sorted(collector.spans, key=lambda s: s[1].name)
    assert (first, second) == ("podsnap-controller", "podsnap-agent")
    assert (root.trace_id.hex(), root.span_id.hex()) == (TRACE, ROOT.span_id)
    assert (root.name, root.parent_span_id) == ("commit ab", b"")
    assert root.start_time_unix_nano == 1_700_000_000_250_000_000
    assert root.end_time_unix_nano == 1_700_000_001_500_000_000
    values = {a.key: a.value.string_value or a.value.int_value for a in root.attributes}
    assert values == dict(ROOT.attributes)
    assert root.status.code == Status.STATUS_CODE_UNSET
    assert child.parent_span_id == root.span_id
    assert [link.span_id for link in child.links] == [root.span_id]
    assert child.status.code == Status.STATUS_CODE_ERROR
    assert child.status.message == CHILD.error
    assert dropped(registry) == 0


def test_the_environment_names_this_process_and_not_the_others(
    collector: Collector, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller also tells what agents did."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    export = exporting(registry)
    export([ROOT, CHILD])
    export.stop()
    assert sorted(service for service, _ in collector.spans) == ["ours", "podsnap-agent"]


def test_what_is_queued_is_sent_when_the_program_ends(
    collector: Collector, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Pod's last words are not lost with the next batch."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    export = exporting(registry)
    export([ROOT])
    export.stop()
    assert len(collector.spans) == 1


def test_a_collector_that_refuses_is_counted_and_told_once(
    collector: Collector, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """Not once a try, and not in the SDK's words."""
    collector.code = 400
    export = exporting(registry)
    with caplog.at_level(logging.DEBUG):
        for number in (1.0, 2.0, 3.0):
            export([ROOT])
            eventually(lambda: dropped(registry) == number, "the span was dropped")  # noqa: B023
    export.stop()
    told = [r.message for r in caplog.records if r.levelno >= logging.INFO]
    assert len(told) == 1
    assert "1 spans were dropped" in told[0]


def test_a_dead_collector_costs_whoever_tells_nothing(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Worst is one that takes connections and never answers: the queue has an end, so has stop."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        export = exporting(registry)
        began_s = time.monotonic()
        taken = [export([ROOT, CHILD]) for _ in range(QUEUE_SPANS // 2 + 10)]
        told_s = time.monotonic() - began_s
        assert dropped(registry) == 20
        assert taken.count(False) == 10
        assert told_s / QUEUE_SPANS < 0.001
        began_s = time.monotonic()
        export.stop(limit_s=0.2)
        assert time.monotonic() - began_s < 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("environment", "exports"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
    ids=["none", "empty", "endpoint", "for traces", "disabled", "no traces"],
)
def test_the_standard_variables_say_whether_spans_are_sent(
    environment: dict[str, str], *, exports: bool
) -> None:
    """No flag of our own."""
    assert exports_spans(environment) is exports


def test_a_variable_that_the_sdk_refuses_is_told_and_stops_nothing(
    collector: Collector,
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A typo in a Deployment does not keep Pods from being restored."""
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100000")
    assert span_export("podsnap-agent", registry, SystemClock()) is None
    assert "no spans are sent" in caplog.text


@pytest.mark.parametrize("signal", ["traces", "metrics"])
def test_a_malformed_header_is_told_without_what_is_in_it(
    collector: Collector,
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    signal: str,
) -> None:
    """As curl writes it; most headers that are set here are credentials."""
    logging.getLogger("opentelemetry.util.re").disabled = False
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Authorization: Bearer hunter2")
    make = span_export if signal == "traces" else metrics_export
    made = make("podsnap-agent", registry, SystemClock())
    if isinstance(made, SpanExport):
        made.stop()
    assert "OTEL_EXPORTER_OTLP_HEADERS has a header that is not NAME=VALUE" in caplog.text
    assert "hunter2" not in caplog.text


def test_without_an_endpoint_nothing_is_imported_and_no_thread_runs() -> None:
    """As in a program's start."""
    environment = {"PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == "[] 1\n"
