# SPDX-License-Identifier: Apache-2.0
"""Instants as they stand in API objects.

Kubernetes' own ``metav1.Time`` has whole seconds, too coarse for the phases of a save; where the
field is ours, ``metav1.MicroTime``'s form is written. Both parse with one function.
"""

from datetime import UTC, datetime


def to_time(at: datetime) -> str:
    """Render as ``metav1.Time`` (whole seconds, UTC)."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def to_micro_time(at: datetime) -> str:
    """Render as ``metav1.MicroTime`` (UTC)."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> datetime | None:
    """Return the instant, or ``None`` for an empty or foreign text."""
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
