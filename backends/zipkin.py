# SPDX-License-Identifier: Apache-2.0
"""Traces read back from a backend, by Zipkin's query API (``/api/v2``).

Zipkin, and whatever else speaks its API, keeps names in lower case, attributes as texts and the
reason of a failure as a tag ``error``; and not every backend keeps links.
"""

from typing import Any, Final

import requests

from schemas.span import Span

_LIMIT_S: Final = 10.0


class TraceQueryError(Exception):
    """The backend did not answer, or not as Zipkin does."""


def read_trace(url: str, trace_id: str) -> list[Span]:
    """Return a trace's spans, none if the backend does not know it.

    Raises:
        TraceQueryError: the backend cannot be asked.
    """
    address = f"{url.rstrip('/')}/api/v2/trace/{trace_id}"
    try:
        answer = requests.get(address, timeout=_LIMIT_S)
        if answer.status_code == requests.codes.not_found:
            return []
        answer.raise_for_status()
        return [_span(raw) for raw in answer.json()]
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        raise TraceQueryError(f"{address}: {error}") from error


def _span(raw: dict[str, Any]) -> Span:
    start_s = raw["timestamp"] / 1e6
    tags = raw.get("tags") or {}
    return Span(
        trace_id=raw["traceId"],
        span_id=raw["id"],
        parent_id=raw.get("parentId", ""),
        name=raw.get("name", ""),
        service=(raw.get("localEndpoint") or {}).get("serviceName", ""),
        start_s=start_s,
        end_s=start_s + raw.get("duration", 0) / 1e6,
        attributes=tags,
        error=tags.get("error", ""),
    )
