# SPDX-License-Identifier: Apache-2.0
"""How long a save would pause a Pod, and what earlier saves teach about it."""

import pytest

from nodeexec.pause_estimate import PauseEstimate

GB = 10**9


@pytest.fixture
def estimate() -> PauseEstimate:
    """A node that has saved nothing yet."""
    return PauseEstimate()


def test_the_first_estimate_is_cautious(estimate: PauseEstimate) -> None:
    """A gigabyte takes seconds on any disk, so an unknown node must not promise less."""
    assert estimate.seconds(GB) == pytest.approx(5.1)


def test_even_nothing_takes_a_moment(estimate: PauseEstimate) -> None:
    """A budget of a millisecond can never be kept."""
    assert estimate.seconds(0) == pytest.approx(0.1)


def test_the_estimate_grows_with_the_memory(estimate: PauseEstimate) -> None:
    """Twice the memory is twice the writing."""
    once, twice = estimate.seconds(GB), estimate.seconds(2 * GB)
    assert twice - once == pytest.approx(once - estimate.seconds(0))


@pytest.mark.parametrize("took_s", [1.0, 20.0], ids=["fast", "slow"])
def test_saves_teach_the_rate_of_the_node(estimate: PauseEstimate, took_s: float) -> None:
    """Each brings the estimate nearer to what was seen, and many bring it there."""
    distances = [abs(estimate.seconds(GB) - took_s)]
    for _ in range(30):
        estimate.learn(GB, took_s)
        distances.append(abs(estimate.seconds(GB) - took_s))

    assert distances == sorted(distances, reverse=True)
    assert estimate.seconds(GB) == pytest.approx(took_s, rel=0.01)


def test_one_odd_save_does_not_turn_the_estimate_over(estimate: PauseEstimate) -> None:
    """A disk that was busy once is not a slow disk."""
    before_s = estimate.seconds(GB)

    estimate.learn(GB, 100 * before_s)

    assert estimate.seconds(GB) < 2 * before_s


def test_a_small_save_teaches_nothing(estimate: PauseEstimate) -> None:
    """It is mostly overhead, and would make large ones look slow."""
    before_s = estimate.seconds(GB)

    estimate.learn(10 << 20, 5.0)

    assert estimate.seconds(GB) == before_s


def test_a_save_quicker_than_its_overhead_gives_an_estimate_all_the_same(
    estimate: PauseEstimate,
) -> None:
    """A clock that stood still must not divide by nothing."""
    estimate.learn(GB, 0.0)

    assert 0 < estimate.seconds(GB) < 5
