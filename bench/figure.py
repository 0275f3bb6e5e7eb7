# SPDX-License-Identifier: Apache-2.0
"""One number of the benchmark: its samples, its target, and what exactly it covers.

The trap is a number that is compared with one of another day: the machine was busy then. So every
target is a ratio, or a bound that holds on two ordinary cores, and both sides of a ratio come from
the same run, interleaved.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self


def percentile(samples: Iterable[float], fraction: float) -> float:
    """Return the value below which ``fraction`` of the samples lie, interpolated between two.

    Raises:
        ValueError: there are no samples, or the fraction is not between 0 and 1.
    """
    ordered = sorted(samples)
    if not ordered:
        raise ValueError("no samples: nothing was measured, so there is no percentile of it")
    if not 0 <= fraction <= 1:
        raise ValueError(f"the fraction {fraction} is not between 0 and 1")
    place = fraction * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A bound on the median; on the 90th percentile too if ``p90_too``; and one for the 99th."""

    limit: float
    at_least: bool = False
    p90_too: bool = False
    p99_limit: float = float("inf")

    def is_met(self, p50: float, p90: float, p99: float) -> bool:
        """Tell whether the measured values keep the bounds."""
        judged = (p50, p90) if self.p90_too else (p50,)
        if self.at_least:
            return min(judged) >= self.limit
        return max(judged) <= self.limit and p99 <= self.p99_limit

    def __str__(self) -> str:
        text = f"{'>=' if self.at_least else '<='} {self.limit:g}"
        return text if self.p99_limit == float("inf") else f"{text}, P99 {self.p99_limit:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A measured number. ``covers`` says from where to where, and what is left out."""

    part: str
    name: str
    unit: str
    p50: float
    p90: float
    p99: float
    count: int
    covers: str
    target: Target | None = None
    samples: tuple[float, ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls,
        samples: Sequence[float],
        *,
        part: str,
        name: str,
        unit: str,
        covers: str,
        target: Target | None = None,
    ) -> Self:
        """Summarise samples of one kind.

        Raises:
            ValueError: there are none.
        """
        return cls(
            part=part,
            name=name,
            unit=unit,
            p50=percentile(samples, 0.5),
            p90=percentile(samples, 0.9),
            p99=percentile(samples, 0.99),
            count=len(samples),
            covers=covers,
            target=target,
            samples=tuple(samples),
        )

    @classmethod
    def ratio(
        cls,
        upper: Sequence[float],
        lower: Sequence[float],
        *,
        part: str,
        name: str,
        covers: str,
        target: Target | None = None,
    ) -> Self:
        """Compare two series: median with median, and each percentile with the same one.

        Raises:
            ValueError: one of them is empty, or ``lower`` is zero.
        """
        parts = {f: (percentile(upper, f), percentile(lower, f)) for f in (0.5, 0.9, 0.99)}
        if any(below == 0 for _, below in parts.values()):
            raise ValueError(f"{name}: the series to be compared with is zero")
        return cls(
            part=part,
            name=name,
            unit="x",
            p50=parts[0.5][0] / parts[0.5][1],
            p90=parts[0.9][0] / parts[0.9][1],
            p99=parts[0.99][0] / parts[0.99][1],
            count=min(len(upper), len(lower)),
            covers=covers,
            target=target,
        )

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; ``None`` if there is none."""
        return self.target.is_met(self.p50, self.p90, self.p99) if self.target else None

    def to_object(self) -> dict[str, Any]:
        """Render for the result file."""
        return {
            "part": self.part,
            "name": self.name,
            "unit": self.unit,
            "p50": round(self.p50, 4),
            "p90": round(self.p90, 4),
            "p99": round(self.p99, 4),
            "count": self.count,
            "target": str(self.target) if self.target else None,
            "met": self.is_met,
            "covers": self.covers,
            "samples": [round(s, 4) for s in self.samples],
        }
