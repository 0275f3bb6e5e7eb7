# SPDX-License-Identifier: Apache-2.0

import statistics

import pytest
from figure import Figure, Target, percentile
from hypothesis import given
from hypothesis import strategies as st

SAMPLES = st.lists(st.floats(min_value=-1e6, max_value=1e6), min_size=1, max_size=40)


@given(SAMPLES)
def test_half_of_the_samples_are_the_median(samples: list[float]) -> None:
    """The 50th percentile is what the standard library calls the median."""
    assert percentile(samples, 0.5) == pytest.approx(statistics.median(samples), abs=1e-6)


@given(SAMPLES, st.floats(min_value=0, max_value=1))
def test_a_percentile_lies_within_the_samples(samples: list[float], fraction: float) -> None:
    """No percentile is invented outside of what was measured."""
    found = percentile(samples, fraction)
    assert min(samples) - 1e-6 <= found <= max(samples) + 1e-6


def test_the_90th_percentile_of_eleven_values_is_the_tenth() -> None:
    """The place is counted between the first and the last sample, whatever their order."""
    assert percentile([11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1], 0.9) == 10


def test_no_samples_are_an_error_and_not_a_zero() -> None:
    """A measurement that measured nothing must not look like a good one."""
    with pytest.raises(ValueError, match="nothing was measured"):
        percentile([], 0.5)


def test_a_share_above_one_is_refused() -> None:
    """Ninety is not a fraction."""
    with pytest.raises(ValueError, match="not between 0 and 1"):
        percentile([1.0], 90)


def test_an_upper_bound_judges_the_median_alone() -> None:
    """A slow tail does not fail a target that speaks of the median."""
    assert Target(limit=15).is_met(15, 80, 90)
    assert not Target(limit=15).is_met(15.01, 16, 17)


def test_a_bound_on_both_fails_by_the_tail() -> None:
    """Where the target names the 90th percentile, it counts."""
    assert not Target(limit=1.5, p90_too=True).is_met(1.2, 1.6, 1.7)
    assert Target(limit=1.5, p90_too=True).is_met(1.2, 1.5, 1.7)


def test_a_bound_on_the_99th_percentile_is_one_of_its_own() -> None:
    """The median may not pass one bound, the rare slow one may not pass another."""
    target = Target(limit=20, p99_limit=100)
    assert target.is_met(20, 150, 100)
    assert not target.is_met(20, 20, 101)
    assert not target.is_met(21, 21, 21)
    assert str(target) == "<= 20, P99 100"


def test_a_lower_bound_is_met_from_above() -> None:
    """Twenty times faster or more."""
    assert Target(limit=20, at_least=True).is_met(80, 19, 18)
    assert not Target(limit=20, at_least=True).is_met(19, 80, 90)


def test_a_figure_summarises_its_samples_and_keeps_them() -> None:
    """The result file holds every sample, so that a doubtful number can be looked into."""
    figure = Figure.of([3.0, 1.0, 2.0], part="p", name="n", unit="s", covers="all")
    assert (figure.p50, figure.count, figure.is_met) == (2.0, 3, None)
    assert figure.to_object()["samples"] == [3.0, 1.0, 2.0]


def test_a_ratio_compares_like_with_like() -> None:
    """Median by median and tail by tail, never the tail of one with the median of the other."""
    figure = Figure.ratio(
        [1.0, 2.0, 9.0], [1.0, 4.0, 4.0], part="p", name="n", covers="", target=Target(limit=1)
    )
    assert figure.p50 == 0.5
    assert figure.p90 == pytest.approx(7.6 / 4.0)
    assert figure.is_met


def test_a_ratio_to_zero_is_an_error() -> None:
    """A series of zeros is a broken measurement, not an infinite gain."""
    with pytest.raises(ValueError, match="is zero"):
        Figure.ratio([1.0], [0.0], part="p", name="n", covers="")
