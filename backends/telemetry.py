# SPDX-License-Identifier: Apache-2.0
"""Logs, traces, metrics and health: the one place that configures them.

Everything else uses the OpenTelemetry API and a registry it is given. Nothing is exported unless an
exporter is handed in, so a cluster without a collector pays next to nothing.
"""

import json
import logging
import socketserver
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_REQUEST_LIMIT_S: Final = 5.0


def configure_tracing(service: str, exporter: SpanExporter | None = None) -> None:
    """Install the tracer provider; without an exporter spans are dropped unrecorded."""
    if exporter is None:
        return
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def configure_logging(level: int = logging.INFO) -> None:
    """Log to stderr, one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def api_request_counter(registry: CollectorRegistry) -> Callable[[str, int], None]:
    """Register client-go's metric of API requests; what is returned counts one answer."""
    counter = Counter(
        "rest_client_requests",
        "Answers of the API server, by method and code.",
        ["method", "code"],
        registry=registry,
    )
    return lambda method, code: counter.labels(method=method, code=code).inc()


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # The base class would look its own address up in DNS, for ten seconds where there is none.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


class HttpEndpoint:
    """Serves ``/healthz``, ``/readyz`` and ``/metrics``."""

    def __init__(
        self,
        address: str,
        *,
        registry: CollectorRegistry,
        health: Callable[[], bool],
        ready: Callable[[], bool],
    ) -> None:
        """``address`` is ``host:port``."""
        host, _, port = address.rpartition(":")

        class Handler(BaseHTTPRequestHandler):
            timeout = _REQUEST_LIMIT_S

            def do_GET(self) -> None:
                match self.path.partition("?")[0]:
                    case "/healthz":
                        self._answer(health())
                    case "/readyz":
                        self._answer(ready())
                    case "/metrics":
                        self._send(200, generate_latest(registry), CONTENT_TYPE_LATEST)
                    case _:
                        self._send(404, b"not found\n", "text/plain")

            def log_message(self, *_: object) -> None:
                """Probes every second are no news."""

            def _answer(self, good: bool) -> None:  # noqa: FBT001 - a verdict
                self._send(200 if good else 503, b"ok\n" if good else b"not ok\n", "text/plain")

            def _send(self, code: int, body: bytes, content_type: str) -> None:
                self.send_response(code)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = _Server((host, int(port)), Handler)

    def start(self) -> None:
        """Begin to serve."""
        threading.Thread(target=self._server.serve_forever, name="http", daemon=True).start()

    def stop(self) -> None:
        """Stop to serve."""
        self._server.shutdown()
        self._server.server_close()
