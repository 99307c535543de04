"""What bounds a life: circles of waits, stop(0), threads that hang, an interrupt at any line."""

from __future__ import annotations

import contextlib
import gc
import itertools
import linecache
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import psycopg
import pytest

from pgsignals import (
    ClosedError,
    ConnectError,
    ConnectionStateError,
    Database,
    Notification,
    Reactor,
)
from pgsignals._wire import sessions as _control
from pgsignals._wire.access import Access
from pgsignals.testing import Proxy
from tests.support.admin import Admin
from tests.support.waiting import Background, wait_until

# Circles


def ring(dsn: str, count: int) -> list[Reactor]:
    return [Reactor(dsn, name=f"pgsignals-{number}", workers=2) for number in range(count)]


WAITS: dict[str, Callable[[Reactor], object]] = {
    "stop": lambda reactor: reactor.stop(),
    "stop(60)": lambda reactor: reactor.stop(60),
    "join": lambda reactor: reactor.join(),
    "join(60)": lambda reactor: reactor.join(60),
}


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("what", WAITS)
def test_handlers_of_a_ring_of_reactors_that_wait_for_the_next_one(
    dsn: str, channel: str, admin: Admin, count: int, what: str
) -> None:
    """The wait that would close the circle returns at once, and everybody ends."""
    reactors = ring(dsn, count)
    together = threading.Barrier(count)
    returned = []

    def handler(following: Reactor, me: Reactor) -> Callable[..., None]:
        def wait(_: Database, notification: Notification) -> None:
            together.wait(20)
            if what.startswith("join"):
                Background(me.stop)  # so that there is an end to wait for
            returned.append(WAITS[what](following))

        return wait

    for number, reactor in enumerate(reactors):
        reactor.on_channel(channel)(handler(reactors[(number + 1) % count], reactor))
        reactor.start()
    admin.notify(channel)

    try:
        wait_until(lambda: len(returned) == count, why="they wait for one another")
        for reactor in reactors:
            Background(reactor.stop).result(20)
    finally:
        for reactor in reactors:
            Background(reactor.stop, 0).result(20)


def test_reactor_that_stops_another_whose_handler_joins_it(
    dsn: str, channel: str, admin: Admin
) -> None:
    one, other = ring(dsn, 2)
    joining = threading.Event()

    @one.on_channel(f"{channel}_stop")
    def stop(_: Database, notification: Notification) -> None:
        joining.wait(20)
        other.stop()

    @other.on_channel(f"{channel}_join")
    def join(_: Database, notification: Notification) -> None:
        joining.set()
        one.join()

    one.start()
    other.start()
    admin.notify(f"{channel}_join", "")
    admin.notify(f"{channel}_stop", "")
    assert joining.wait(20)
    assert Background(one.stop).result(20)
    assert Background(other.stop).result(20)


def test_start_of_a_reactor_whose_stop_waits_for_the_caller(
    dsn: str, channel: str, admin: Admin
) -> None:
    one, other = ring(dsn, 2)
    waiting, told = threading.Event(), []

    @one.on_channel(channel)
    def start(_: Database, notification: Notification) -> None:
        waiting.wait(20)
        life = other._engine.life
        assert life is not None
        wait_until(lambda: life.reader.stopping and life.ending._waits)
        try:
            other.start()
        except ConnectionStateError as error:
            told.append(str(error))

    @other.on_channel(channel)
    def stop(_: Database, notification: Notification) -> None:
        waiting.set()
        Background(other.stop)
        one.join()

    one.start()
    other.start()
    admin.notify(channel)
    wait_until(lambda: told, why="it waits for itself")
    for reactor in (one, other):
        Background(reactor.stop, 5).result(20)
    assert "waits for the caller" in told[0]


def test_stop_of_another_reactor_from_a_handler_waits_where_no_circle_is(
    dsn: str, channel: str, admin: Admin
) -> None:
    one, other = ring(dsn, 2)
    ended: list[bool] = []

    @one.on_channel(channel)
    def stop(_: Database, notification: Notification) -> None:
        other.stop()
        ended.append(other.join(0))

    with one, other:
        one.notify(channel)
        wait_until(lambda: ended)

    assert ended == [True]


# stop(0)


def test_stop_0_of_many_databases_takes_as_long_as_of_one(
    dsn: str, proxied: str, proxy: Proxy, channel: str, admin: Admin
) -> None:
    """Each handler hangs, and each control connection waits for a server that is silent."""
    databases = [Database(proxied) for _ in range(20)]
    reactor = Reactor(*databases, workers=20, probe_interval=60.0, probe_timeout=60.0)
    gate, stuck = threading.Event(), itertools.count(1)
    many = 0

    @reactor.on_channel(channel)
    def hang(_: Database, notification: Notification) -> None:
        nonlocal many
        many = next(stuck)
        gate.wait(60)

    reactor.start()
    admin.notify(channel)
    wait_until(lambda: many >= 1)
    proxy.freeze()
    notifying = [Background(reactor.notify, channel, database=database) for database in databases]
    assert reactor._engine.life is not None
    links = reactor._engine.life.reader.links
    wait_until(lambda: all(link.control._lock.locked() for link in links))
    begun = time.monotonic()

    Background(reactor.stop, 0).result(30)

    took = time.monotonic() - begun
    gate.set()
    proxy.reset()
    for one in notifying:
        with pytest.raises((ConnectionError, ClosedError)):
            one.result(30)
    assert took < 8.0  # a second each would be 20


def test_stop_0_of_many_databases_whose_connections_others_hold(dsn: str) -> None:
    """Such as a generator of psycopg's that holds the lock of the connection."""
    given: list[psycopg.Connection[Any]] = []

    def connect() -> psycopg.Connection[Any]:
        given.append(psycopg.connect(dsn, autocommit=True))
        return given[-1]

    databases = [Database(connect=connect) for _ in range(20)]
    reactor = Reactor(*databases, probe_interval=None)
    reactor.start()
    sessions = [database._custody.session for database in databases]
    with contextlib.ExitStack() as locks:
        for session in sessions:
            assert session is not None
            locks.enter_context(session.connection.lock)
        begun = time.monotonic()
        Background(reactor.stop, 0).result(30)
        took = time.monotonic() - begun
    for connection in given:
        connection.close()
    assert took < 8.0


# Threads beside the reader


class Hanging:
    """A ``connect=`` that hangs from a given call on."""

    def __init__(self, dsn: str, good: int | None = None) -> None:
        self._dsn, self._good = dsn, good
        self._calls = itertools.count()
        self.gate = threading.Event()

    def hang(self) -> None:
        self._good = 0

    def __call__(self) -> psycopg.Connection[Any]:
        if self._good is not None and next(self._calls) >= self._good:
            self.gate.wait(60)
        return psycopg.connect(self._dsn, autocommit=True)


def threads(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


@pytest.fixture
def hanging(dsn: str) -> Iterator[Hanging]:
    connect = Hanging(dsn)
    yield connect
    connect.gate.set()


def test_attempts_that_hang_are_two_and_the_next_one_waits_for_them(
    hanging: Hanging, channel: str, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "pgsignals")
    name = f"pgsignals-{channel}"
    reactor = Reactor(
        Database(connect=hanging),
        channels=[channel],
        name=name,
        probe_interval=0.1,
        probe_timeout=0.1,
        backoff=(0.01, 0.02),
    )
    reactor.start()
    hanging.hang()
    admin.kill(reactor.status().databases[0].backend_id or 0)
    wait_until(lambda: "2 threads hang" in (reactor.status().databases[0].last_error or ""))
    assert reactor._engine.life is not None
    reader = reactor._engine.life.reader
    for _ in range(300):  # many turns, in each of which an attempt is due
        turned = threading.Event()
        reader.command(turned.set)
        assert turned.wait(20)
        assert threads(f"{name}-connect") <= 2

    assert sum("2 threads hang" in record.message for record in caplog.records) == 1
    hanging._good = None
    hanging.gate.set()
    wait_until(lambda: reactor.status().databases[0].state == "listening")
    reactor.stop()
    wait_until(lambda: not threads(f"{name}-connect"))


def test_attempts_of_one_life_after_another_are_two(
    dsn: str, hanging: Hanging, channel: str
) -> None:
    """A supervisor that starts it again and again adds no threads."""
    hanging.hang()
    name = f"pgsignals-{channel}"
    reactor = Reactor(Database(connect=hanging), name=name, probe_interval=0.1, probe_timeout=0.1)
    for _ in range(6):
        with pytest.raises(ConnectError):
            reactor.start()
    assert threads(f"{name}-connect") == 2
    hanging.gate.set()
    wait_until(lambda: not threads(f"{name}-connect"))


def test_canaries_that_hang_are_two(
    hanging: Hanging, channel: str, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "pgsignals")
    name = f"pgsignals-{channel}"
    reactor = Reactor(Database(connect=hanging), name=name, probe_interval=0.1, probe_timeout=0.2)
    reactor.start()
    hanging.hang()
    assert reactor._engine.life is not None
    reactor.databases[0]._access.losses += 1  # so that it needs another connection
    wait_until(lambda: "(canary)" in (reactor.status().databases[0].last_error or ""))
    reader = reactor._engine.life.reader
    for _ in range(300):
        turned = threading.Event()
        reader.command(turned.set)
        assert turned.wait(20)
        assert threads(f"{name}-canary") <= 2
    assert sum("(canary)" in record.message for record in caplog.records) == 1
    assert reactor.status().databases[0].state == "listening"
    hanging.gate.set()
    assert Background(reactor.stop, 5).result(20)


def test_thread_that_cannot_be_had_is_not_told_as_connects_fault(
    dsn: str, channel: str, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.endswith("-connect"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with Reactor(dsn, backoff=(0.01, 0.02), probe_interval=None) as reactor:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            admin.kill(reactor.status().databases[0].backend_id or 0)
            wait_until(
                lambda: (
                    "no thread can be started" in (reactor.status().databases[0].last_error or "")
                )
            )
            assert "connect=" not in (reactor.status().databases[0].last_error or "")
        wait_until(lambda: reactor.status().databases[0].state == "listening")


# The control connection


def test_unused_control_connection_is_kept_for_its_time(
    dsn: str, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_control, "KEPT", 1000.0)
    used = []
    control = _control.Control(Access(dsn), lambda: used.append(1), 5.0)
    control.notify([(channel, "1")])
    session = control._beside.session
    expires = control.expires()
    assert expires is not None

    control.close_unused(expires - 0.1)
    assert control._beside.session is session
    assert session is not None
    assert not session.connection.closed
    control.close_unused(expires)
    gone: object = control._beside.session

    assert gone is None
    assert vars(session.connection)["_closed"]
    assert used == [1]


def test_control_connection_that_comes_after_the_close_is_closed(dsn: str, channel: str) -> None:
    opening, gate = threading.Event(), threading.Event()
    made: list[psycopg.Connection[Any]] = []

    def connect() -> psycopg.Connection[Any]:
        opening.set()
        gate.wait(20)
        made.append(psycopg.connect(dsn, autocommit=True))
        return made[-1]

    control = _control.Control(Access(connect=connect), lambda: None, 5.0)
    notifying = Background(control.notify, [(channel, "1")])
    assert opening.wait(20)
    control.begin_close()
    control.close(time.monotonic())
    gate.set()

    with pytest.raises(ClosedError):
        notifying.result()
    assert made[0].closed
    assert control._beside.session is None


def test_connect_that_notifies_through_the_reactor_that_waits_for_it(
    dsn: str, channel: str
) -> None:
    """It would wait for the lock that its own thread has."""
    told: list[str] = []

    def connect() -> psycopg.Connection[Any]:
        if reactor.running:
            try:
                reactor.notify(channel)
            except ConnectionStateError as error:
                told.append(str(error))
        return psycopg.connect(dsn, autocommit=True)

    reactor = Reactor(Database(connect=connect), probe_interval=None)
    with reactor:
        assert Background(reactor.notify, channel).result() == 1
    assert "connect=" in told[0]


# An interrupt at any line of start()


def test_keyboard_interrupt_at_any_line_of_start(dsn: str, channel: str, admin: Admin) -> None:
    """The reactor can be stopped and started afterwards, and nobody waits for ever."""
    reactor = Reactor(dsn, channels=[channel], probe_interval=None, name=f"pgsignals-{channel}")
    names = {
        "pgsignals.reactor": {"start", "_begin"},
        "pgsignals._engine.life": {"start", "_start", "__init__"},
    }
    lines = 0

    def starting(at: int) -> bool:
        """Start, and press Ctrl-C at that line; whether there was one."""
        left = at

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal left
            module = str(frame.f_globals.get("__name__"))
            if frame.f_code.co_name not in names.get(module, ()):
                return None
            line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
            # No signal is handled between the end of a with block and its lock's release.
            if event == "line" and not line.startswith("with "):
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            reactor.start()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return left <= 0

    while starting(lines := lines + 1 + lines // 25):
        Background(reactor.stop, 5).result(20)
        assert not reactor.running
    assert Background(reactor.stop, 5).result(20)
    Background(reactor.start).result(20)
    assert Background(reactor.stop, 5).result(20)

    assert lines > 40, "hardly a line was tried"
    gc.collect()  # what was made before the interrupt
    wait_until(lambda: not [t for t in threading.enumerate() if channel in t.name])


@pytest.mark.parametrize("name", ["-reader", "-worker-1", "-worker-2"])
@pytest.mark.parametrize("begun", [True, False])
def test_keyboard_interrupt_while_a_thread_of_it_starts(
    dsn: str, channel: str, monkeypatch: pytest.MonkeyPatch, name: str, begun: bool
) -> None:
    """The thread may run or not: who waits for it to begin cannot tell."""
    reactor = Reactor(dsn, workers=2, channels=[channel], name=f"pgsignals-{channel}")
    start = threading.Thread.start

    def interrupt(thread: threading.Thread) -> None:
        if not thread.name.endswith(name) or begun:
            start(thread)
        if thread.name.endswith(name):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Background(reactor.start).result(20)
    assert Background(reactor.stop, 5).result(20)
    with reactor:
        assert reactor.running
    wait_until(lambda: not [t for t in threading.enumerate() if channel in t.name])
