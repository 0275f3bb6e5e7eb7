# SPDX-License-Identifier: Apache-2.0
"""Spans on their way to a collector: OTLP over HTTP, batched on a thread of its own.

The SDK carries them and reads its own ``OTEL_*`` variables; the ids are ours, so its tracer is not
used. The trap is a collector that is away: whoever hands spans over never waits, what does not fit
into the queue or is not taken is dropped and counted, and said at most once a minute. The SDK's own
loggers, which tell of every try, are off.

Imported only where an endpoint is set, because the SDK and protobuf cost a start 0.2 s.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags
from prometheus_client import Counter

from backends.clock import Clock
from backends.otlp_resource import named_resource, own_resource
from schemas.span import Span

log = logging.getLogger(__name__)

QUEUE_SPANS: Final = 2048
_TELL_EVERY_S: Final = 60.0
_NOISY: Final = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.util.re",  # prints a malformed header whole, and that is often a credential
)
_SCOPE: Final = InstrumentationScope("podsnap")


class SpanExport:
    """Sends spans; ``own_service`` is this process's name in them, which ``OTEL_*`` may change."""

    def __init__(
        self, exporter: SpanExporter, dropped: Counter, clock: Clock, *, own_service: str
    ) -> None:
        """Start the thread that sends."""
        self._own_service = own_service
        self._resources: dict[str, Resource] = {}
        self._guard = threading.Lock()
        self._counting = _Counting(exporter, dropped, clock)
        self._processor = BatchSpanProcessor(self._counting, max_queue_size=QUEUE_SPANS)

    @classmethod
    def from_environment(cls, dropped: Counter, clock: Clock, *, own_service: str) -> "SpanExport":
        """Export to where the standard ``OTEL_EXPORTER_OTLP_*`` variables say.

        Raises:
            ValueError: one of them has a value that the SDK does not know.
        """
        for name in _NOISY:
            logging.getLogger(name).disabled = True
        return cls(OTLPSpanExporter(), dropped, clock, own_service=own_service)

    def __call__(self, spans: Sequence[Span]) -> bool:
        """Queue spans, all or none; never waits. Returns whether there was room."""
        readable = [self._readable(span) for span in spans]
        if not self._counting.admits(len(readable)):
            return False
        for span in readable:
            self._processor.on_end(span)
        return True

    def stop(self, limit_s: float = 2.0) -> None:
        """Send what is queued, as far as the time reaches."""
        sending = threading.Thread(target=self._processor.shutdown, name="spans", daemon=True)
        sending.start()
        sending.join(limit_s)

    def _readable(self, span: Span) -> ReadableSpan:
        parent = _context(span.trace_id, span.parent_id) if span.parent_id else None
        return ReadableSpan(
            name=span.name,
            context=_context(span.trace_id, span.span_id),
            parent=parent,
            resource=self._resource(span.service),
            attributes=dict(span.attributes),
            links=[Link(_context(*link)) for link in span.links],
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(),
            start_time=_ns(span.start_s),
            end_time=_ns(span.end_s),
            instrumentation_scope=_SCOPE,
        )

    def _resource(self, service: str) -> Resource:
        with self._guard:
            found = self._resources.get(service)
            if found is None:
                is_own = service == self._own_service
                found = own_resource(service) if is_own else named_resource(service)
                self._resources[service] = found
            return found


class _Counting(SpanExporter):
    """An exporter that counts what is under way and what was dropped."""

    def __init__(self, exporter: SpanExporter, dropped: Counter, clock: Clock) -> None:
        self._exporter = exporter
        self._dropped = dropped
        self._clock = clock
        self._under_way = 0
        self._untold = 0
        self._told_s = -_TELL_EVERY_S
        self._guard = threading.Lock()

    def admits(self, count: int) -> bool:
        with self._guard:
            if self._under_way + count <= QUEUE_SPANS:
                self._under_way += count
                return True
        self._drop(count)
        return False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            with self._guard:
                self._under_way -= len(spans)
            if result is not SpanExportResult.SUCCESS:
                self._drop(len(spans))
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def _drop(self, count: int) -> None:
        self._dropped.inc(count)
        now_s = self._clock.monotonic_s()
        with self._guard:
            self._untold += count
            if now_s - self._told_s < _TELL_EVERY_S:
                return
            untold, self._untold, self._told_s = self._untold, 0, now_s
        log.warning(
            "%d spans were dropped: the collector does not take them; nothing else waits for it, "
            "see OTEL_EXPORTER_OTLP_ENDPOINT",
            untold,
        )


def _ns(at_s: float) -> int:
    """Return an instant in nanoseconds; more than microseconds are not on record."""
    return round(at_s * 1e6) * 1000


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(
        trace_id=int(trace_id, 16),
        span_id=int(span_id, 16),
        is_remote=False,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )
