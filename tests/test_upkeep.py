"""Keeping a session up, where that needs no server: outcomes that come too late."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pgsignals._pure.backoff import Backoff
from pgsignals._pure.states import Condition, State, Timing
from pgsignals._sources.upkeep import Upkeep
from pgsignals._wire.access import Access


class Desk:
    """What a reader does for its sources, in one thread: what is to run on another one waits."""

    starting = stopping = False

    def __init__(self) -> None:
        self.rng = random.Random(1)
        self.out: list[Callable[[], None]] = []

    def command(self, run: Callable[[], None]) -> None:
        run()

    def spawn(self, _: str, run: Callable[[], None], failed: Callable[[Exception], None]) -> None:
        self.out.append(run)


def refuse() -> Any:
    raise LookupError("nothing there")


def test_failure_of_an_attempt_that_was_given_up_does_not_count_for_the_next_one() -> None:
    desk = Desk()
    condition = Condition(Timing(None, 10.0), Backoff(0.1, 30.0), datetime.now(UTC))
    upkeep = Upkeep(
        Access(connect=refuse),
        desk,
        condition,
        adopt=lambda _: None,
        lost=lambda *_: None,
        readable=lambda: None,
    )
    upkeep.connect()
    upkeep.give_up_attempt()
    upkeep.reconnect(0.0)
    first, second = desk.out
    failures = condition.attempts.backoff.failures

    first()
    assert condition.state is State.CONNECTING
    assert condition.attempts.backoff.failures == failures

    second()
    assert condition.state.name == "WAITING"
    assert condition.attempts.backoff.failures == failures + 1
    assert upkeep.last_error == "connect= raised LookupError"
