# SPDX-License-Identifier: Apache-2.0
"""What podsnap's programs on the local cluster take from whoever starts it."""

import pytest

from localcluster import programs
from localcluster.control_plane import ENVIRONMENT


def test_only_where_telemetry_goes_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller's other variables, secrets among them, stay with the caller."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    monkeypatch.setenv("SECRET", "x")
    added = {k: v for k, v in programs._environment().items() if k not in ENVIRONMENT}
    assert added["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4318"
    assert all(name.startswith("OTEL_") for name in added)
