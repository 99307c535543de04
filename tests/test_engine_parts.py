"""The parts of the engine that need no server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from pgsignals import Database, Gap, Reactor
from pgsignals._dispatch.workers import work_for
from pgsignals._engine.ending import Ending
from pgsignals._engine.interest import Interest
from pgsignals._engine.life import Life
from pgsignals._engine.mailbox import Mailbox
from pgsignals._engine.reader import Reader
from pgsignals._pure.phases import Event, Lifecycle
from pgsignals.signals import Channels
from tests.support.waiting import AT_ONCE, LONG, PATIENCE, Background, wait_until

# The mailbox


def test_no_request_is_lost_between_threads() -> None:
    woken: list[None] = []
    mailbox = Mailbox(lambda: woken.append(None))

    def request() -> None:
        for _ in range(500):
            mailbox.request()

    for one in [Background(request) for _ in range(8)]:
        one.result()

    assert mailbox.requests == len(woken) == 4000


def test_commands_are_taken_in_the_order_in_which_they_were_posted() -> None:
    mailbox, ran = Mailbox(lambda: None), list[int]()
    assert not mailbox
    for number in range(3):
        mailbox.post(lambda number=number: ran.append(number))  # type: ignore[misc]
    assert mailbox
    while (command := mailbox.take()) is not None:
        command()

    assert ran == [0, 1, 2]
    assert not mailbox


def test_wait_ends_with_what_it_waits_for_or_with_its_time() -> None:
    mailbox, done = Mailbox(lambda: None), list[int]()
    waiting = Background(mailbox.wait_for, lambda: bool(done))
    assert not mailbox.wait_for(lambda: bool(done), 0.01)
    done.append(1)
    mailbox.wake_waiters()

    assert waiting.result()


# The end, and those that wait for it


def ending() -> Ending:
    lifecycle = Lifecycle()
    lifecycle.happen(Event.STOP)
    return Ending(lifecycle)


def working_for(one: Ending, run: Callable[[], object]) -> Background[object]:
    """*run* on a thread that works for the life of *one*."""

    def work() -> object:
        work_for(one)
        return run()

    return Background(work)


def test_end_lets_those_go_that_wait_and_calls_what_was_asked_for_once() -> None:
    one, called = ending(), list[str]()
    one.then(lambda: called.append("before"))
    waiting = [Background(one.wait, seconds) for seconds in (None, LONG)]
    assert not one.wait(0.01)
    assert called == []
    one.reach()
    one.then(lambda: called.append("after"))

    assert [waiter.result() for waiter in waiting] == [True, True]
    assert called == ["before", "after"]
    assert one.wait(None)


def test_everything_that_was_asked_for_is_called_in_order() -> None:
    one, called = ending(), list[str]()
    one.then(lambda: called.append("first"))
    one.then(lambda: called.append("second"))
    one.reach()

    assert called == ["first", "second"]


def test_wait_for_lives_that_wait_for_each_other_looks_at_each_of_them_once() -> None:
    one, two, three = ending(), ending(), ending()
    one._waits[-1], two._waits[-2] = two, one  # as for a moment, before one of them returns

    assert working_for(three, lambda: one.wait(0.0)).result(AT_ONCE) is False


def test_thread_does_not_wait_for_the_life_that_it_works_for() -> None:
    one = ending()

    assert not working_for(one, lambda: one.is_ours and one.wait(None)).result()
    assert working_for(one, lambda: one.is_ours).result()
    assert not one.is_ours


@pytest.mark.parametrize("size", [2, 3])
def test_of_a_circle_of_lives_that_wait_for_each_other_one_returns_at_once(size: int) -> None:
    ring = [ending() for _ in range(size)]
    waiting = [
        working_for(one, lambda awaited=awaited: awaited.wait(None))  # type: ignore[misc]
        for one, awaited in zip(ring, [*ring[1:], ring[0]], strict=True)
    ]

    wait_until(lambda: sum(not one.running for one in waiting) >= 1)
    returned = [one for one in waiting if not one.running]
    assert [one.result() for one in returned] == [False] * len(returned)
    for one in ring:
        one.reach()
    for waiter in waiting:
        waiter.result(PATIENCE)


def test_wait_for_another_life_that_waits_for_none_is_no_circle() -> None:
    one, other, third = ending(), ending(), ending()
    waiting = [
        working_for(one, lambda: other.wait(None)),
        working_for(third, lambda: other.wait(None)),
    ]
    wait_until(lambda: one._waits and third._waits)
    other.reach()

    assert [waiter.result() for waiter in waiting] == [True, True]
    assert not one._waits


def test_wait_is_not_longer_than_it_may_be() -> None:
    begun = time.monotonic()

    assert not ending().wait(0.05)
    assert time.monotonic() - begun >= 0.05
    assert not ending().wait(0)


# What is to be listened to


def test_interest_is_what_has_handlers_and_what_was_named() -> None:
    first, second = Database("dbname=one"), Database("dbname=two")
    everywhere = Channels()
    own = Channels(everywhere)
    interest = Interest((first, second), (everywhere, own), ["from the start"])

    def handler(db: Database, **given: object) -> None: ...

    everywhere.on_channel("all")(handler)
    own.on_channel("one", sender=first)(handler)
    interest.listen([second], ["named", "more"])
    interest.unlisten([second], ["more"])

    assert interest.wanted(first) == {"from the start", "all", "one"}
    assert interest.wanted(second) == {"from the start", "all", "named"}
    assert interest.handlers_of("one", first) == [handler]
    assert interest.handlers_of("one", second) == []
    interest.unlisten([first, second], ["*"])
    assert interest.wanted(second) == {"all"}
    assert not interest.is_idle(object())


def test_interest_is_idle_where_nothing_could_ever_arrive() -> None:
    database = Database("dbname=one")
    own = Channels()
    interest = Interest((database,), (own,), [])

    assert interest.is_idle(object())
    own.on("any_channel")(lambda db, notification: None)
    assert interest.is_idle(object())  # it hears what others have asked for
    own.on("gap")(lambda db, gap: None)
    assert not interest.is_idle(object())


def test_changes_of_many_threads_all_count() -> None:
    database = Database("dbname=one")
    interest = Interest((database,), (), [])
    begin = threading.Event()

    def listen(number: int) -> None:
        begin.wait(PATIENCE)
        for each in range(100):
            interest.listen([database], [f"{number} {each}"])

    listening = [Background(listen, number) for number in range(8)]
    begin.set()
    for one in listening:
        one.result()

    assert len(interest.wanted(database)) == 800


# The reader


def life_at_rest() -> Life:
    reactor = Reactor("host=localhost")
    engine = reactor._engine
    return Life(reactor, engine.config, engine.interest, engine.channels)


def reader_at_rest() -> Reader:
    """One whose turns the test makes itself."""
    return life_at_rest().reader


def test_request_that_comes_while_the_reader_does_what_is_due_is_taken_up_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = reader_at_rest()
    asked: list[object] = []

    def wanted(link: object) -> set[str]:
        asked.append(link)
        reader.wake()  # the turn need not wait for anything
        return set()

    monkeypatch.setattr(reader.events, "wanted", wanted)
    monkeypatch.setattr(reader.events, "check_workers", lambda _: reader.mailbox.request())
    reader._turn()
    assert asked == []

    reader._turn()
    assert asked == reader.links
    reader.close(0.0)


def test_sockets_count_as_read_when_the_turn_began_however_long_it_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the whole program stands still in it, the wait may end without a look."""
    reader = reader_at_rest()
    (link,) = reader.links
    waits: list[float] = []
    looks: list[float] = []
    monkeypatch.setattr(reader._poller, "collect", lambda _: waits.append(time.monotonic()))
    monkeypatch.setattr(link, "tick", lambda _, looked: looks.append(looked))
    reader._turn()
    reader.wake()
    reader._turn()

    assert looks[0] == 0.0
    assert looks[1] <= waits[0]
    reader.close(0.0)


@pytest.mark.parametrize("channels", [None, frozenset({"a"})])
def test_gap_waits_for_the_channels_that_it_is_of(
    channels: frozenset[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler of another channel, which is stuck, does not hold it back."""
    life = life_at_rest()
    (link,) = life.reader.links
    announced: list[tuple[object, ...]] = []
    monkeypatch.setattr(life.backlog, "announce", lambda *given: announced.append(given))
    now = datetime.now(UTC)
    gap = Gap(link.database, "unlistened", now, now, None, channels)

    life.reader.events.gap(link, gap)

    ((source, _, waits_for),) = announced
    assert (source, waits_for) == (link, channels)
    life.reader.close(0.0)
