# SPDX-License-Identifier: Apache-2.0
"""Logs, traces, metrics and health: the one place that configures them.

Everything else uses a registry and a function that takes spans. Without an endpoint in the
environment there is no such function, nothing of the SDK is imported and no thread runs.
"""

import json
import logging
import os
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final, Literal

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from backends.clock import Clock

if TYPE_CHECKING:
    from backends.metrics_export import MetricsExport
    from backends.span_export import SpanExport

log = logging.getLogger(__name__)

_REQUEST_LIMIT_S: Final = 5.0


def span_export(
    service: str,
    registry: CollectorRegistry,
    clock: Clock,
    environment: Mapping[str, str] = os.environ,
) -> "SpanExport | None":
    """Return what sends spans to the collector that ``OTEL_*`` names, ``None`` if it names none."""
    dropped = Counter("podsnap_spans_dropped", "Spans that no collector took.", registry=registry)
    if not exports_spans(environment):
        return None
    from backends.span_export import SpanExport

    _tell_malformed_headers(environment, "TRACES")
    try:
        return SpanExport.from_environment(dropped, clock, own_service=service)
    except ValueError as error:
        log.warning("no spans are sent, because of a variable OTEL_*: %s", error)
        return None


def exports_spans(environment: Mapping[str, str]) -> bool:
    """Tell whether the environment names a collector for spans and does not turn them off."""
    return _exports(environment, "TRACES")


def metrics_export(
    service: str,
    registry: CollectorRegistry,
    clock: Clock,
    environment: Mapping[str, str] = os.environ,
) -> "MetricsExport | None":
    """Return what sends metrics to the collector that ``OTEL_*`` names, ``None`` if none is."""
    if not _exports(environment, "METRICS"):
        return None
    from backends.metrics_export import MetricsExport

    _tell_malformed_headers(environment, "METRICS")
    try:
        return MetricsExport.from_environment(
            registry, clock, service=service, environment=environment
        )
    except ValueError as error:
        log.warning("no metrics are sent, because of a variable OTEL_*: %s", error)
        return None


def _exports(environment: Mapping[str, str], signal: Literal["TRACES", "METRICS"]) -> bool:
    def told(name: str) -> str:
        return environment.get(f"OTEL_{name}", "").strip()

    is_off = told("SDK_DISABLED").lower() == "true" or told(f"{signal}_EXPORTER") == "none"
    endpoint = told(f"EXPORTER_OTLP_{signal}_ENDPOINT") or told("EXPORTER_OTLP_ENDPOINT")
    return bool(endpoint) and not is_off


def _tell_malformed_headers(
    environment: Mapping[str, str], signal: Literal["TRACES", "METRICS"]
) -> None:
    """Say which variable has a header that is not sent, without what is in it."""
    own, shared = f"OTEL_EXPORTER_OTLP_{signal}_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"
    name = own if environment.get(own) else shared
    headers = environment.get(name, "").split(",")
    if any(header.strip() and "=" not in header for header in headers):
        log.warning(
            "%s has a header that is not NAME=VALUE; it is not sent. Write a space in a value as "
            "%%20, a comma as %%2C",
            name,
        )


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
