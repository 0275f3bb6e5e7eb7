# SPDX-License-Identifier: Apache-2.0
"""The metrics that Prometheus reads, sent to a collector as well: OTLP over HTTP, once a minute.

There is one set of metrics, Prometheus' registry. It is read at each interval and translated, names
unchanged, so that one dashboard fits both ways; the SDK's own instruments would have been a second
set to keep in step. Its exporter carries them and reads its own ``OTEL_*`` variables.

The trap is a collector that is away: the thread waits, nobody else, and it is said once when it
begins and once when it ends. What was not taken is not kept, because counters only grow.

Imported only where an endpoint is set, because the SDK and protobuf cost a start 0.2 s.
"""

import logging
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry
from prometheus_client import Metric as Family
from prometheus_client.samples import Sample

from backends.clock import Clock
from backends.otlp_resource import own_resource

log = logging.getLogger(__name__)

_NOISY: Final = "opentelemetry.exporter.otlp.proto.http.metric_exporter"
_SCOPE: Final = InstrumentationScope("podsnap")
_CUMULATIVE: Final = AggregationTemporality.CUMULATIVE
_DEFAULT_INTERVAL_MS: Final = "60000"

Labels = tuple[tuple[str, str], ...]


class MetricsExport:
    """Sends what a registry holds, every ``interval_s`` seconds and at the end."""

    def __init__(
        self,
        registry: CollectorRegistry,
        exporter: MetricExporter,
        clock: Clock,
        *,
        service: str,
        interval_s: float,
    ) -> None:
        """Nothing is sent before ``start``."""
        logging.getLogger(_NOISY).disabled = True
        self._registry = registry
        self._exporter = exporter
        self._clock = clock
        self._interval_s = interval_s
        self._begun_ns = self._now_ns()
        self._resource = own_resource(service)
        self._is_away = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    @classmethod
    def from_environment(
        cls,
        registry: CollectorRegistry,
        clock: Clock,
        *,
        service: str,
        environment: Mapping[str, str] = os.environ,
    ) -> "MetricsExport":
        """Export to where, and as often as, the standard ``OTEL_*`` variables say.

        Raises:
            ValueError: one of them has a value that the SDK does not know.
        """
        interval_ms = environment.get("OTEL_METRIC_EXPORT_INTERVAL") or _DEFAULT_INTERVAL_MS
        interval_s = float(interval_ms) / 1000
        if not (math.isfinite(interval_s) and interval_s > 0):
            raise ValueError(f"OTEL_METRIC_EXPORT_INTERVAL is {interval_ms}, no time in ms")
        # It prints a malformed header whole, and that is often a credential.
        logging.getLogger("opentelemetry.util.re").disabled = True
        return cls(registry, OTLPMetricExporter(), clock, service=service, interval_s=interval_s)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self, limit_s: float = 2.0) -> None:
        """Send the last state, as far as the time reaches."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(limit_s)

    def send(self) -> bool:
        """Send what the registry holds now; returns whether the collector took it."""
        scope = ScopeMetrics(_SCOPE, list(self._metrics()), "")
        data = MetricsData([ResourceMetrics(self._resource, [scope], "")])
        taken = self._exporter.export(data) is MetricExportResult.SUCCESS
        if taken == self._is_away:
            self._is_away = not taken
            if taken:
                log.info("the collector takes metrics again")
            else:
                log.warning(
                    "the collector does not take metrics; nothing waits for it, /metrics has them "
                    "too; see OTEL_EXPORTER_OTLP_ENDPOINT"
                )
        return taken

    def _run(self) -> None:
        while not self._clock.wait(self._stopped, self._interval_s):
            self.send()
        self.send()

    def _metrics(self) -> Iterator[Metric]:
        now_ns = self._now_ns()
        for family in self._registry.collect():
            match family.type:
                case "counter":
                    name = f"{family.name}_total"
                    points = self._numbers(family, name, now_ns)
                    counted = Sum(points, _CUMULATIVE, is_monotonic=True)
                    yield Metric(name, family.documentation, "", counted)
                case "gauge":
                    shown = Gauge(self._numbers(family, family.name, now_ns))
                    yield Metric(family.name, family.documentation, "", shown)
                case "histogram":
                    points_of = [self._distribution(*found, now_ns) for found in _series(family)]
                    spread = Histogram(points_of, _CUMULATIVE)
                    yield Metric(family.name, family.documentation, "", spread)

    def _numbers(self, family: Family, name: str, now_ns: int) -> list[NumberDataPoint]:
        return [
            NumberDataPoint(dict(s.labels), self._begun_ns, now_ns, s.value)
            for s in family.samples
            if s.name == name
        ]

    def _distribution(
        self, labels: Labels, samples: Iterable[Sample], now_ns: int
    ) -> HistogramDataPoint:
        samples = list(samples)
        buckets = sorted(
            (float(s.labels["le"]), int(s.value)) for s in samples if s.name.endswith("_bucket")
        )
        below = [0, *(count for _, count in buckets)]
        unknown: Any = None  # the extremes, which a registry does not keep and OTLP leaves open
        return HistogramDataPoint(
            attributes=dict(labels),
            start_time_unix_nano=self._begun_ns,
            time_unix_nano=now_ns,
            count=below[-1],
            sum=next(s.value for s in samples if s.name.endswith("_sum")),
            bucket_counts=[b - a for a, b in pairwise(below)],
            explicit_bounds=[bound for bound, _ in buckets if math.isfinite(bound)],
            min=unknown,
            max=unknown,
        )

    def _now_ns(self) -> int:
        return round(self._clock.now().timestamp() * 1e9)


def _series(family: Family) -> Iterator[tuple[Labels, list[Sample]]]:
    """Yield the samples of each histogram of a family."""
    found: dict[Labels, list[Sample]] = {}
    for sample in family.samples:
        labels = tuple((k, v) for k, v in sample.labels.items() if k != "le")
        found.setdefault(labels, []).append(sample)
    yield from found.items()
