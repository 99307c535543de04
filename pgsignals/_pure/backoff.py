"""When to try again.  Pure: time and chance are arguments."""

from __future__ import annotations

import random


class Backoff:
    """Capped exponential backoff with full jitter.

    :param first: upper bound of the first wait, in seconds.
    :param longest: upper bound of every wait except a slow one, in seconds.

    Full jitter (a wait drawn uniformly between almost nothing and the bound) spreads a herd of
    clients best; the bound is reset only when a link has stayed up for *longest* seconds, so a
    link that keeps dying young does not spin.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._failures = 0

    @property
    def failures(self) -> int:
        """Failed attempts and early losses since the last time it stayed up."""
        return self._failures

    def next_delay(self, rng: random.Random, *, slowly: bool = False) -> float:
        """Seconds to wait before the next attempt.

        :param slowly: as :meth:`slow_delay`.
        """
        bound = min(self._longest, self._first * 2.0 ** min(self._failures, 60))
        self._failures += 1
        if slowly:
            return self.slow_delay(rng)
        return rng.uniform(min(self._first, bound) / 10, bound)

    def slow_delay(self, rng: random.Random) -> float:
        """Seconds to wait when the failure will not go away by itself (a wrong password) and
        trying again may lock an account: the longest wait plus up to a tenth, so that clients
        refused together do not come back together."""
        return self._longest * rng.uniform(1.0, 1.1)

    def ended_after(self, seconds_up: float) -> None:
        """A link has ended after it stayed up for *seconds_up*."""
        if seconds_up >= self._longest:
            self._failures = 0
