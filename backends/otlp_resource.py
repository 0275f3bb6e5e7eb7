# SPDX-License-Identifier: Apache-2.0
"""Who a span or a metric is from, as OTLP has it.

The SDK reads ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES``; without a name there it makes
one up, and the program's own is better. Imported where the SDK is, which costs a start 0.2 s.
"""

from opentelemetry.sdk.resources import Resource


def named_resource(service: str) -> Resource:
    """Return this process's resource under a service's name, whatever the environment says."""
    return Resource.create({}).merge(Resource({"service.name": service}))


def own_resource(service: str) -> Resource:
    """Return this process's resource; ``service`` is its name unless the environment has one."""
    told = Resource.create({})
    is_unnamed = str(told.attributes.get("service.name", "")).startswith("unknown_service")
    return named_resource(service) if is_unnamed else told
