# SPDX-License-Identifier: Apache-2.0
"""The two spellings of a duration in our API, in seconds.

``1m30s`` is Go's, used by GitSource as Flux uses it. ``30d`` is the contract's for retention, with
units y, mo, d, h, min; a month is 30 days and a year 365, since the contract does not say.
"""

import re

_GO_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_GO_TERM = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_RETENTION = re.compile(r"(\d+)\s*(y|mo|d|h|min)")
_RETENTION_UNITS_S = {"y": 365 * 86400, "mo": 30 * 86400, "d": 86400, "h": 3600, "min": 60}


def parse_go_duration_s(text: str) -> float:
    """Return seconds for a Go duration such as ``1m30s``.

    Raises:
        ValueError: the text is no such duration.
    """
    terms = _GO_TERM.findall(text)
    if not terms or "".join(n + u for n, u in terms) != text:
        raise ValueError(f"{text!r} is not a duration; write it like 30s, 5m or 1h30m")
    return sum(float(n) * _GO_UNITS_S[u] for n, u in terms)


def parse_retention_s(text: str) -> int:
    """Return seconds for a retention such as ``30d`` or ``6 h``.

    Raises:
        ValueError: the text is no such duration.
    """
    found = _RETENTION.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not a retention; write a number and y, mo, d, h or min")
    return int(found[1]) * _RETENTION_UNITS_S[found[2]]
