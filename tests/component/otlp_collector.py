# SPDX-License-Identifier: Apache-2.0
"""A collector that takes OTLP over HTTP and keeps what it got, or refuses everything."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(slots=True)
class Collector:
    """What came, as it stands on the wire: each span with its service."""

    url: str = ""
    code: int = 200
    headers: list[dict[str, str]] = field(default_factory=list)
    spans: list[tuple[str, Span]] = field(default_factory=list)
    metrics: list[tuple[str, dict[str, Metric]]] = field(default_factory=list)

    def take(self, body: bytes) -> None:
        """Keep the spans of one request."""
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            told = {a.key: a.value.string_value for a in of_resource.resource.attributes}
            for scope in of_resource.scope_spans:
                self.spans += [(told["service.name"], span) for span in scope.spans]

    def take_metrics(self, body: bytes) -> None:
        """Keep the metrics of one request, by name."""
        for of_resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            told = {a.key: a.value.string_value for a in of_resource.resource.attributes}
            found = {m.name: m for scope in of_resource.scope_metrics for m in scope.metrics}
            self.metrics.append((told["service.name"], found))


@contextmanager
def running_collector() -> Iterator[Collector]:
    """A collector on a port of its own."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.headers.append({k.lower(): v for k, v in self.headers.items()})
            if collector.code == 200 and self.path == "/v1/traces":
                collector.take(body)
            if collector.code == 200 and self.path == "/v1/metrics":
                collector.take_metrics(body)
            self.send_response(collector.code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """A test says what it finds."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
