# SPDX-License-Identifier: Apache-2.0
"""Tokens that are kept: renewed in time, asked for once, and not believed against the bucket."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from stepped_clock import SteppedClock

from backends.objects.access_token import AccessToken
from backends.objects.interface import StoreError
from nodeexec.bucket_tokens import UseTokens


@dataclass(slots=True)
class Issuer:
    """Gives tokens of a life, numbered, or none while it is ``away``; both take a while."""

    clock: SteppedClock
    life_s: float = 3600.0
    takes_s: float = 40.0
    away: bool = False
    given: list[AccessToken] = field(default_factory=list)

    def __call__(self) -> AccessToken:
        """Give one."""
        self.clock.step(self.takes_s)
        if self.away:
            raise StoreError("the controller is away")
        ends_s = self.clock.now().timestamp() + self.life_s
        self.given.append(AccessToken(f"t{len(self.given)}", ends_s))
        return self.given[-1]


@pytest.fixture
def clock() -> SteppedClock:
    """A clock that stands still."""
    return SteppedClock()


@pytest.fixture
def issuer(clock: SteppedClock) -> Issuer:
    """Who gives tokens."""
    return Issuer(clock)


@pytest.fixture
def tokens(issuer: Issuer, clock: SteppedClock) -> UseTokens:
    """The tokens of a use."""
    return UseTokens(issuer, clock)


@pytest.mark.parametrize(
    ("life_s", "renewed_after_s"),
    [
        pytest.param(3600.0, 2880.0, id="an hour: a fifth before"),
        pytest.param(1000.0, 700.0, id="less: five minutes before"),
        pytest.param(400.0, 200.0, id="little: at half"),
    ],
)
def test_a_token_is_renewed_before_it_ends(
    tokens: UseTokens, issuer: Issuer, clock: SteppedClock, life_s: float, renewed_after_s: float
) -> None:
    """And not sooner, however often it is used."""
    issuer.life_s = life_s
    first = tokens()
    clock.step(renewed_after_s - 1)
    assert tokens() is first
    clock.step(1)
    assert tokens() is not first
    assert len(issuer.given) == 2


def test_many_who_ask_at_once_ask_once(issuer: Issuer, clock: SteppedClock) -> None:
    """The others wait for the one answer."""
    asked, may_answer = threading.Event(), threading.Event()

    def slowly() -> AccessToken:
        asked.set()
        assert may_answer.wait(5)
        return issuer()

    tokens = UseTokens(slowly, clock)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(tokens) for _ in range(8)]
        assert asked.wait(5)
        may_answer.set()
        assert {a.result() for a in answers} == {issuer.given[0]}
    assert len(issuer.given) == 1


def test_a_failure_is_everybodys_for_some_seconds(
    tokens: UseTokens, issuer: Issuer, clock: SteppedClock
) -> None:
    """Else each of an upload's threads would wait as long again, one after the other."""
    issuer.away = True
    for _ in range(2):
        with pytest.raises(StoreError, match="away"):
            tokens()
    assert clock.monotonic_s() == issuer.takes_s
    clock.step(3)
    issuer.away = False
    assert tokens() is issuer.given[0]


def test_while_one_renews_the_others_go_on(issuer: Issuer, clock: SteppedClock) -> None:
    """The old token is good for minutes yet."""
    asked, may_answer = threading.Event(), threading.Event()

    def slowly() -> AccessToken:
        if issuer.given:
            asked.set()
            assert may_answer.wait(5)
        return issuer()

    tokens = UseTokens(slowly, clock)
    first = tokens()
    clock.step(2880)
    with ThreadPoolExecutor(2) as pool:
        renewed = pool.submit(tokens)
        assert asked.wait(5)
        other = pool.submit(tokens)
        try:
            assert other.result(5) is first
        finally:
            may_answer.set()
        assert renewed.result() is issuer.given[1]
    assert tokens() is issuer.given[1]


def test_a_token_that_the_bucket_refuses_is_replaced_though_it_looks_good(
    tokens: UseTokens, issuer: Issuer
) -> None:
    """Of many threads that were refused with it, the first has it replaced."""
    first = tokens()
    tokens.refused(first)
    second = tokens()
    tokens.refused(first)
    assert tokens() is second
    assert len(issuer.given) == 2


def test_while_no_token_is_to_be_had_the_old_one_is_used_to_its_end(
    tokens: UseTokens, issuer: Issuer, clock: SteppedClock
) -> None:
    """An upload of an hour outlives a controller that is away for a while."""
    first = tokens()
    clock.step(2880)
    issuer.away = True
    assert tokens() is first
    clock.step(700)
    with pytest.raises(StoreError, match="away"):
        tokens()
    issuer.away = False
    clock.step(3)
    assert tokens() is not first


def test_a_renewal_that_failed_is_not_tried_at_every_use(
    tokens: UseTokens, issuer: Issuer, clock: SteppedClock
) -> None:
    """Each try may take as long as an answer is waited for."""
    first = tokens()
    clock.step(2880)
    issuer.away = True
    tokens()
    issuer.away = False
    clock.step(29)
    assert tokens() is first
    clock.step(1)
    assert tokens() is not first


def test_what_is_kept_shows_in_no_text(tokens: UseTokens) -> None:
    """It may stand in a log or in the report of a failed test."""
    tokens()
    assert "t0" not in repr(tokens)
