"""When to try again; no clock."""

from __future__ import annotations

import random

import pytest

from pgsignals._pure.backoff import Backoff


class Extreme(random.Random):
    """Draws one end of the range, always."""

    def __init__(self, end: int) -> None:
        super().__init__(0)
        self._end = end

    def uniform(self, a: float, b: float) -> float:
        return (a, b)[self._end]


SHORTEST, LONGEST = Extreme(0), Extreme(1)


def test_bound_doubles_from_the_first_to_the_longest() -> None:
    backoff = Backoff(0.1, 1.0)

    assert [backoff.next_delay(LONGEST) for _ in range(6)] == pytest.approx(
        [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    )


def test_jitter_is_full_but_a_wait_is_never_zero() -> None:
    backoff = Backoff(0.1, 1.0)

    delays = [backoff.next_delay(SHORTEST) for _ in range(6)]

    assert all(0 < delay <= 0.1 for delay in delays)


@pytest.mark.parametrize("seed", range(20))
def test_every_wait_lies_between_nothing_and_the_bound(seed: int) -> None:
    rng = random.Random(seed)
    backoff = Backoff(0.1, 30.0)

    for attempt in range(50):
        assert 0 < backoff.next_delay(rng) <= min(30.0, 0.1 * 2**attempt)


def test_waits_of_a_herd_are_spread() -> None:
    herd = [Backoff(0.1, 30.0) for _ in range(100)]
    rng = random.Random(1)
    for _ in range(7):
        for backoff in herd:
            backoff.next_delay(rng)

    delays = sorted(backoff.next_delay(rng) for backoff in herd)

    assert delays[0] < 0.1 * delays[-1]
    assert delays[-1] - delays[0] > 6.4  # half of the bound at the eighth attempt


def test_failure_that_does_not_mend_itself_waits_long_from_the_start() -> None:
    assert Backoff(0.1, 30.0).next_delay(SHORTEST, slowly=True) >= 30.0
    assert Backoff(0.1, 30.0).next_delay(LONGEST, slowly=True) == pytest.approx(33.0)


def test_those_who_were_refused_together_do_not_come_back_together() -> None:
    rng = random.Random(1)

    delays = sorted(Backoff(0.1, 30.0).slow_delay(rng) for _ in range(100))

    assert delays[0] >= 30.0
    assert all(later - earlier > 0.1 for earlier, later in zip(delays, delays[20:], strict=False))


def test_failures_are_counted() -> None:
    backoff = Backoff(0.1, 30.0)
    assert backoff.failures == 0

    for _ in range(3):
        backoff.next_delay(LONGEST)

    assert backoff.failures == 3


def test_link_that_has_stayed_up_starts_anew() -> None:
    backoff = Backoff(0.1, 30.0)
    for _ in range(10):
        backoff.next_delay(LONGEST)

    backoff.ended_after(30.0)

    assert backoff.failures == 0
    assert backoff.next_delay(LONGEST) == pytest.approx(0.1)


def test_link_that_dies_young_does_not_start_anew() -> None:
    backoff = Backoff(0.1, 30.0)
    for _ in range(10):
        backoff.next_delay(LONGEST)

    backoff.ended_after(29.9)

    assert backoff.failures == 10
    assert backoff.next_delay(LONGEST) == 30.0


def test_endless_failures_overflow_nothing() -> None:
    backoff = Backoff(0.1, 30.0)

    for _ in range(5000):
        assert backoff.next_delay(LONGEST) <= 30.0


@pytest.mark.parametrize("longest", [0.05, 0.1])
def test_longest_wait_holds_from_the_first_attempt(longest: float) -> None:
    assert Backoff(0.1, longest).next_delay(LONGEST) == longest
    assert 0 < Backoff(0.1, longest).next_delay(SHORTEST) <= longest
