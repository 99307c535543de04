"""The parts of a source by themselves, without the thread that runs them."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from pgsignals import Reactor
from pgsignals._engine.life import Life
from pgsignals._pure.backoff import Backoff
from pgsignals._pure.names import PROBE_CHANNEL
from pgsignals._pure.states import Condition, Event, Timing
from pgsignals._sources.asking import Asker
from pgsignals._sources.counters import Counters
from pgsignals._sources.errands import Errands
from pgsignals._sources.registering import Registrar
from pgsignals._sources.upkeep import Upkeep
from pgsignals._wire.access import Access
from pgsignals._wire.session import Session
from tests.support.waiting import wait_until


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


def upkeep_on(desk: Desk) -> Upkeep:
    return Upkeep(
        Access(connect=refuse),
        desk,
        Condition(Timing(None, 10.0), Backoff(0.1, 30.0), datetime.now(UTC)),
        adopt=lambda _: None,
        lost=lambda *_: None,
        readable=lambda: None,
    )


def test_failure_of_an_attempt_that_was_given_up_does_not_count_for_the_next_one() -> None:
    desk = Desk()
    upkeep = upkeep_on(desk)
    condition, backoff = upkeep.condition, upkeep.condition.attempts.backoff
    upkeep.connect()
    upkeep.give_up_attempt()
    upkeep.reconnect(0.0)
    first, second = desk.out

    first()
    assert (condition.state.name, backoff.failures) == ("CONNECTING", 1)

    second()
    assert (condition.state.name, backoff.failures) == ("WAITING", 2)
    assert upkeep.last_error == "connect= raised LookupError"


def test_thread_that_returns_says_so_however_it_ends() -> None:
    """An attempt that has been put off, as threads hung, is made at once then."""
    runs: list[Callable[[], None]] = []
    returned: list[bool] = []
    errands = Errands(
        {},
        lambda _, run, __: runs.append(run),
        1.0,
        lambda _: None,
        lambda: returned.append(errands.is_out("connect")),
    )
    errands.run("connect", refuse, lambda _: None)
    assert errands.is_out("connect")

    with pytest.raises(LookupError):
        runs[0]()
    assert returned == [False]


def test_what_is_wanted_of_a_source_without_a_session_is_settled_at_once() -> None:
    """It is listened to with the next session, for which no call has to wait."""
    upkeep = upkeep_on(Desk())
    settled: list[int] = []
    registrar = Registrar(
        upkeep,
        Asker(upkeep, lambda: None),
        holds=lambda: None,
        unlistened=lambda *_: None,
        settled=lambda: settled.append(registrar.settled),
    )

    registrar.want({"a"}, 7)

    assert settled == [7]


def test_canary_under_way_is_lost_with_its_registration_and_a_gap_is_not_of_its_channel() -> None:
    """Else it would be late, and the session taken for deaf."""
    upkeep = upkeep_on(Desk())
    condition, asker = upkeep.condition, Asker(upkeep, lambda: None)
    missed: list[frozenset[str] | None] = []
    registrar = Registrar(
        upkeep,
        asker,
        holds=lambda: None,
        unlistened=lambda _, channels: missed.append(channels),
        settled=lambda: None,
    )
    condition.begin_session()
    condition.happen(Event.SYNCED)
    condition.registrations.wanted = frozenset({"a"})
    condition.registrations.acknowledged(["a", PROBE_CHANNEL])
    condition.canary.ask(0.0)
    condition.canary.committed(1.0)
    assert condition.canary.under_way

    registrar.check("the digest of something else")
    asker.answered([])  # nothing is left
    asker.answered([])  # to the LISTEN

    assert missed == [frozenset({"a"})]
    assert not condition.canary.under_way


def test_whatever_the_server_sends_while_it_owes_an_answer_is_a_sign_of_life(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is no notification, such as a part of the answer."""
    reactor = Reactor(dsn)
    engine = reactor._engine
    reader = Life(reactor, engine.config, engine.interest, engine.channels).reader
    (link,) = reader.links
    lived: list[float] = []
    monkeypatch.setattr(link.condition, "note_life", lived.append)
    link.borrow(Session(psycopg.connect(dsn, autocommit=True), shared=False))

    wait_until(lambda: not link.drain() and bool(lived))

    link.stop()
    reader.close(0.0)


def test_drops_are_logged_at_once_then_periodically_and_all_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counters = Counters()
    for dropped, finally_ in ((5, False), (7, False), (9, True), (9, True)):
        counters.dropped = dropped
        counters.log_drops("here", finally_=finally_)

    full = "here: the backlog is full:"
    assert caplog.messages == [
        f"{full} 5 notifications dropped, 5 in all",
        f"{full} 4 notifications dropped, 9 in all",
    ]
