"""Finalizers and signal handlers: they run in any thread at any point, and may call us there.

The collector runs a finalizer in whatever thread allocates, also one that has a lock of ours.  So
some tests call, as a finalizer would, from inside of those places; others let the collector do it.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import random
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgsignals import (
    ConnectionStateError,
    Database,
    Error,
    Notification,
    NotificationManager,
    Reactor,
)
from pgsignals import (
    channel as module_channel,
)
from pgsignals._dispatch import backlog as _backlog
from pgsignals._dispatch import calls as _calls
from pgsignals._engine import mailbox as _mailbox
from pgsignals._pure import order as _order
from pgsignals._sources import listen as _link
from pgsignals._wire import session as _driver
from pgsignals._wire import sessions as _control
from tests.support.admin import Admin
from tests.support.arrivals import Connect
from tests.support.waiting import AT_ONCE, Background, wait_until

#: Where a call is made in the middle of our own code: a method, and whether it needs "block".
PLACES: dict[str, tuple[type[Any], str]] = {
    "the reader queues, with the backlog's lock": (_order.Order, "_append"),
    "a worker begins, with the backlog's lock": (_order.Order, "first_segment"),
    "a worker is done, with the backlog's lock": (_backlog.Backlog, "_one_is_done"),
    "the reader reads, with psycopg's lock": (_driver.Session, "_read"),
    "the reader looks at what is due": (_link.Link, "tick"),
    "the reader is about to wake others": (_mailbox.Mailbox, "wake_waiters"),
    "a worker looks up handlers": (_calls.Routes, "resolve"),
    "a notify, with the control connection's lock": (_control.Control, "_open_session"),
}

ACTIONS: dict[str, Callable[[Reactor, str], object]] = {
    "stop": lambda reactor, name: reactor.stop(),
    "stop(1)": lambda reactor, name: reactor.stop(1),
    "stop(0)": lambda reactor, name: reactor.stop(0),
    "join": lambda reactor, name: reactor.join(),
    "listen": lambda reactor, name: reactor.listen(f"{name}_more"),
    "unlisten": lambda reactor, name: reactor.unlisten("*"),
    "listen of the database": lambda reactor, name: reactor.databases[0].listen(f"{name}_more"),
    "notify": lambda reactor, name: reactor.notify((name, "from within")),
    "notify of the database": lambda reactor, name: reactor.databases[0].notify(
        (name, "from within")
    ),
    "on_channel": lambda reactor, name: reactor.on_channel(f"{name}_other")(lambda *_, **__: None),
    "channel().connect": lambda reactor, name: module_channel(f"{name}_m").connect(print),
    "status": lambda reactor, name: reactor.status(),
}


@contextlib.contextmanager
def interrupted(
    monkeypatch: pytest.MonkeyPatch, place: tuple[type[Any], str], action: Callable[[], object]
) -> Iterator[Callable[[], bool]]:
    """Have *action* called once at *place*; gives whether it has returned."""
    owner, name = place
    original = getattr(owner, name)
    turns = itertools.count()
    returned: list[object] = []

    def interposed(*args: Any, **kwargs: Any) -> Any:
        if next(turns) == 0:
            returned.append(action())
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interposed)
        yield lambda: bool(returned)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize("what", ACTIONS)
@pytest.mark.parametrize("overflow", ["drop_oldest", "block"])
def test_call_in_the_middle_of_our_code(
    dsn: str,
    channel: str,
    admin: Admin,
    monkeypatch: pytest.MonkeyPatch,
    place: tuple[type[Any], str],
    what: str,
    overflow: Any,
) -> None:
    """It returns, and nobody waits for ever, and nothing is lost."""
    reactor = Reactor(dsn, overflow=overflow, max_backlog=50, name=f"pgsignals-{channel}")
    heard: list[str] = []
    reactor.on_channel(channel)(lambda db, notification: heard.append(notification.payload))
    reactor.start()
    numbers = [str(number) for number in range(40)]
    try:
        begun = time.monotonic()
        with interrupted(monkeypatch, place, lambda: ACTIONS[what](reactor, channel)) as returned:
            Background(reactor.notify, *((channel, number) for number in numbers))
            Background(reactor.listen, f"{channel}_beside")  # the reader has somebody to wake
            wait_until(returned, AT_ONCE, why="the call never returned")
        took = time.monotonic() - begun
        if what.startswith("stop"):
            assert reactor.join(AT_ONCE), "the reactor never ended"
        else:
            assert took < 8.0, "it waited for itself"
            expected = [*numbers, "last"]
            expected += ["from within"] if what.startswith("notify") else []
            admin.notify(channel, "last")
            wait_until(lambda: sorted(heard) == sorted(expected))
            assert [one for one in heard if one in numbers] == numbers
            assert reactor.status().databases[0].reconnects == 0
    finally:
        stopping = Background(reactor.stop, 0)
        stopping.result()
        for name in (f"{channel}_m",):
            module_channel(name).disconnect(print)


def test_stop_in_the_middle_of_a_wait_for_space(dsn: str, channel: str, admin: Admin) -> None:
    """Under "block" the reader itself may run the finalizer, just before it waits."""
    reactor = Reactor(dsn, overflow="block", max_backlog=2, name=f"pgsignals-{channel}")
    gate = threading.Event()
    reactor.on_channel(channel)(lambda db, notification: gate.wait(20))
    returned: list[bool] = []
    reactor.start()
    assert reactor._engine.life is not None
    reactor._engine.life.backlog.on_wait = lambda: returned.append(reactor.stop())
    try:
        admin.notify(channel, *(str(number) for number in range(20)))
        wait_until(lambda: returned, AT_ONCE)
    finally:
        gate.set()
    assert reactor.join(AT_ONCE)


def test_start_in_the_middle_of_our_code_is_refused(
    dsn: str, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reactor, other = Reactor(dsn, channels=[channel]), Reactor(dsn)
    told: list[str] = []

    def start() -> None:
        try:
            other.start()
        except ConnectionStateError as error:
            told.append(str(error))

    with reactor, interrupted(monkeypatch, PLACES["the reader looks at what is due"], start):
        reactor.notify(channel)
        wait_until(lambda: told)

    assert "another thread" in told[0]


# A Database of one's own


def test_close_in_the_middle_of_its_own_read(
    connect: Connect, channel: str, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = connect()
    database.listen(channel)
    admin.notify(channel, "1")
    begun = time.monotonic()

    place = PLACES["the reader reads, with psycopg's lock"]
    with interrupted(monkeypatch, place, database.close) as returned:
        Background(lambda: list(database.wait(0))).result()

    assert returned()
    assert database.closed
    assert time.monotonic() - begun < AT_ONCE
    wait_until(lambda: database.backend_id not in admin.sessions())


STATEMENTS: dict[str, Callable[[Database], object]] = {
    "notify": lambda database: database.notify("x"),
    "execute": lambda database: database.execute("SELECT 1"),
    "listen": lambda database: database.listen("x"),
    "listening_channels": lambda database: database.listening_channels(),
}


@pytest.mark.parametrize("call", STATEMENTS.values(), ids=STATEMENTS.keys())
def test_statement_in_the_middle_of_another_one_is_refused(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, call: Callable[[Database], object]
) -> None:
    """psycopg's lock would wait for the very thread that has it."""
    database = connect()
    told: list[BaseException] = []

    def refused() -> None:
        try:
            call(database)
        except ConnectionStateError as error:
            told.append(error)

    def use() -> None:
        with interrupted(monkeypatch, (psycopg.Connection, "wait"), refused):
            database.execute("SELECT 1")

    Background(use).result()
    assert len(told) == 1


class Told:
    """What a manager has a database tell."""

    def touched(self, watched: object) -> None: ...


def test_watching_in_the_middle_of_watching(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    custody = connect()._custody
    first, second = Told(), Told()
    original = weakref.ref
    armed = [True]

    def ref(*args: Any) -> Any:
        if armed and args[0] is first:
            armed.clear()
            custody.add_watcher(second)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr("pgsignals._wire.custody.weakref.ref", ref)
        Background(custody.add_watcher, first).result()

    assert {watcher() for watcher in custody._watchers} == {first, second}


# The collector itself


@pytest.fixture
def eager() -> Iterator[None]:
    """The collector runs all the time, in whatever thread."""
    before = gc.get_threshold()
    gc.set_threshold(23, 3, 3)
    yield
    gc.set_threshold(*before)


class Trash:
    """In a cycle, so that only the collector finds it, in whatever thread."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._me = self
        self._act = act

    def __del__(self) -> None:
        self._act()


def finalized(act: Callable[[], object], how: int) -> None:
    """Have *act* called by the collector."""
    if how % 3 == 0:
        Trash(act)
    elif how % 3 == 1:
        weakref.finalize(Trash(lambda: None), act).atexit = False
    else:
        trash = Trash(lambda: None)
        _callbacks.append(weakref.ref(trash, lambda ref: act()))


_callbacks: list[object] = []


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("overflow", ["drop_oldest", "block"])
def test_finalizers_that_call_us_at_random(
    dsn: str, channel: str, admin: Admin, workers: int, overflow: Any
) -> None:
    """A flood arrives complete and in order, and so does what finalizers notify."""
    limit: dict[str, Any] = {"max_backlog": 64} if overflow == "block" else {}
    reactor = Reactor(dsn, workers=workers, overflow=overflow, **limit)
    chance = random.Random(7)
    heard: list[int] = []
    echoes: list[str] = []
    wrong: list[BaseException] = []
    sent = itertools.count(1)
    most = 0

    def notify() -> None:
        nonlocal most
        number = next(sent)
        if number <= 200:  # each takes a round trip
            reactor.notify((f"{channel}_echo", str(number)))
            most = max(most, number)

    def close() -> None:
        with contextlib.suppress(IndexError):
            spare.pop().close()

    spare = [Database(dsn).open() for _ in range(5)]
    acts: list[Callable[[], object]] = [
        notify,
        close,
        reactor.status,
        lambda: reactor.join(0),
        lambda: reactor.join(),
        lambda: reactor.listen(f"{channel}_{chance.randrange(5)}"),
        lambda: reactor.unlisten(f"{channel}_{chance.randrange(5)}"),
        lambda: module_channel(channel).connect(unused),
        lambda: module_channel(channel).disconnect(unused),
        lambda: reactor.channel(f"{channel}_own").connect(unused),
        lambda: reactor.channel(f"{channel}_own").disconnect(unused),
        lambda: NotificationManager(timeout=0).close(),
    ]

    def unused(*_: object, **__: object) -> None:
        """A receiver."""

    def guarded() -> None:
        if threading.current_thread() is threading.main_thread():
            return  # join() would wait there, rightly
        try:
            chance.choice(acts)()
        except BaseException as error:
            wrong.append(error)

    @reactor.on_channel(channel)
    def note(_: Database, notification: Notification) -> None:
        heard.append(int(notification.payload))
        if len(heard) % 7 == 0:
            finalized(guarded, len(heard))

    reactor.on_channel(f"{channel}_echo")(lambda db, notification: echoes.append(notification[1]))
    count = 4000
    with reactor:
        for start in range(0, count, 500):
            numbers = range(start, start + 500)
            admin.notify(channel, *(str(number) for number in numbers))
        wait_until(lambda: len(heard) == count, 60, why="something was lost, or all stand still")
        gc.collect()
        wait_until(lambda: len(echoes) == most, why="what was notified was lost")
        ended = reactor.status().databases[0].reconnects
        assert Background(reactor.stop).result(30)
    module_channel(channel).disconnect(unused)
    _callbacks.clear()
    for database in spare:
        database.close()

    assert wrong == []
    assert heard == list(range(count))
    assert sorted(map(int, echoes)) == list(range(1, most + 1))
    assert most > 20, "hardly a finalizer ran"
    assert ended == 0


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("seconds", [None, 0, 1])
def test_finalizers_that_stop_the_reactor(
    dsn: str, channel: str, admin: Admin, seconds: float | None
) -> None:
    for round_ in range(12):
        reactor = Reactor(dsn, channels=[channel], probe_interval=None)
        count = itertools.count()

        @reactor.on_channel(channel)
        def note(_: Database, notification: Notification) -> None:
            if next(count) == 10 * round_:  # noqa: B023 - called before the next round
                finalized(lambda: reactor.stop(seconds), round_)  # noqa: B023

        Background(reactor.start).result(30)
        admin.notify(channel, *(str(number) for number in range(200)))
        for number in range(60):
            if reactor.join(0.1):
                break
            admin.notify(channel, f"more {number}")
        Background(reactor.stop, 5).result(30)
        assert reactor.join(0)
    _callbacks.clear()


# OS signal handlers


def test_signal_handler_that_stops_whatever_the_main_thread_is_at(
    dsn: str, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main thread is in start(), listen(), notify(), status(), or in stop() itself."""
    reactors: list[Reactor] = []
    handled: list[float] = []

    def handle(*_: object) -> None:
        begun = time.monotonic()
        for reactor in reactors:
            reactor.stop(1)
        handled.append(time.monotonic() - begun)

    before = signal.signal(signal.SIGUSR1, handle)
    over = threading.Event()
    chance = random.Random(5)
    main = threading.main_thread().ident or 0

    def fire() -> None:
        while not over.wait(chance.uniform(0.001, 0.06)):
            signal.pthread_kill(main, signal.SIGUSR1)

    firing = Background(fire)
    try:
        for _ in range(40):
            reactor = Reactor(dsn, channels=[channel], probe_interval=None)
            reactors[:] = [reactor]
            with contextlib.suppress(Error):
                reactor.start()
                reactor.listen("a", "b")
                reactor.notify("a")
                reactor.status()
                reactor.unlisten("a")
            reactor.stop()
    finally:
        over.set()
        firing.result()
        signal.signal(signal.SIGUSR1, before)
    assert handled
    assert max(handled) < AT_ONCE


def test_stop_from_a_signal_handler_still_waits_where_it_may(dsn: str, channel: str) -> None:
    """A program that waits for something of its own is not in the middle of our code."""
    reactor = Reactor(dsn, channels=[channel])
    stopped: list[bool] = []
    woken = threading.Event()

    def handle(*_: object) -> None:
        reactor.stop()
        stopped.append(reactor.join(0))
        woken.set()

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with reactor:
            main = threading.main_thread().ident or 0
            threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGUSR1)).start()
            assert woken.wait(AT_ONCE)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert stopped == [True]


def test_logging_handler_may_use_the_reactor(
    dsn: str, channel: str, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    """Records of ours come from any thread, the reader's too, which it must not hold up."""

    class ToChannel(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if reactor.running:
                reactor.notify((channel, record.levelname))
                reactor.listen(f"{channel}_{record.levelname}")

    reactor = Reactor(dsn, backoff=(0.01, 0.02))
    heard: list[str] = []
    reactor.on_channel(channel)(lambda db, notification: heard.append(notification.payload))
    caplog.set_level(logging.WARNING, "pgsignals")
    handler = ToChannel(logging.WARNING)
    logging.getLogger("pgsignals").addHandler(handler)
    try:
        with reactor:
            admin.kill(reactor.status().databases[0].backend_id or 0)
            wait_until(lambda: reactor.status().databases[0].reconnects == 1)
            wait_until(lambda: f"{channel}_WARNING" in reactor.status().databases[0].channels)
    finally:
        logging.getLogger("pgsignals").removeHandler(handler)


def test_what_a_subclass_overrides_waits_as_before(dsn: str) -> None:
    class Own(Reactor):
        def start(self) -> None:
            super().start()

        def stop(self, timeout: float | None = None) -> bool:
            return super().stop(timeout)

    with Own(dsn) as reactor:
        assert reactor.running
    assert reactor.join(0)
