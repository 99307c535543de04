"""The life of a reactor: what it is given, how it starts, how it ends."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import psycopg
import pytest

from pgsignals import (
    ClosedError,
    ConnectError,
    ConnectionStateError,
    Database,
    Error,
    Notification,
    Reactor,
    channel,
    on_channel,
)
from pgsignals._engine import finishing as _finishing
from pgsignals._engine import reader as _reader
from pgsignals.testing import Proxy, kill_listener
from tests.support.admin import Admin, stopped
from tests.support.arrivals import Connect
from tests.support.values import BAD_NAMES, NO_TEXT
from tests.support.waiting import AT_ONCE, LONG, PATIENCE, Background, wait_until


def collect(reactor: Reactor, name: str) -> list[str]:
    """The payloads that arrive on channel *name*, as they come."""
    arrived: list[str] = []

    @reactor.on_channel(name)
    def collect(_: Database, notification: Notification) -> None:
        arrived.append(notification.payload)

    return arrived


@contextlib.contextmanager
def stuck(reactor: Reactor, name: str, count: int = 1) -> Iterator[threading.Event]:
    """*count* notifications have been received, and a handler hangs in the first one."""
    begun, gate = threading.Event(), threading.Event()

    @reactor.on_channel(name)
    def hang(*_: object, **__: object) -> None:
        begun.set()
        gate.wait(2 * PATIENCE)

    try:
        reactor.notify(*((name, str(number)) for number in range(count)))
        assert begun.wait(PATIENCE)
        wait_until(lambda: sum(one.received for one in reactor.status().databases) >= count)
        yield gate
    finally:
        gate.set()


def workers_end(name: str) -> None:
    """Wait until a reactor's threads are gone."""
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith(name)])


# Arguments


def test_reactor_without_databases_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="database"):
        Reactor()


@pytest.mark.parametrize("database", [None, 5, b"", ["dbname=x"]])
def test_database_of_a_wrong_type_is_a_type_error(database: Any) -> None:
    with pytest.raises(TypeError, match="Database"):
        Reactor(database)


def test_database_given_twice_is_a_value_error(dsn: str) -> None:
    database = Database(dsn)

    with pytest.raises(ValueError, match="twice"):
        Reactor(database, database)


def test_two_databases_may_have_the_same_address(dsn: str) -> None:
    assert len(Reactor(dsn, dsn).databases) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"channels": "orders"},
        {"channels": [5]},
        {"timeout": "1"},
        {"timeout": True},
        {"workers": 1.0},
        {"workers": True},
        {"workers": "2"},
        {"max_backlog": 1.5},
        {"max_backlog": None},
        {"backoff": 1.0},
        {"backoff": (1.0,)},
        {"backoff": ("1", "2")},
        {"probe_interval": "10"},
        {"probe_timeout": None},
        {"name": None},
    ],
    ids=repr,
)
def test_argument_of_a_wrong_type_is_a_type_error(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Reactor("", **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"timeout": -1},
        {"timeout": 0},
        {"timeout": math.nan},
        {"workers": 0},
        {"workers": -1},
        {"max_backlog": 0},
        {"overflow": "drop_newest"},
        {"backoff": (0, 1)},
        {"backoff": (2.0, 1.0)},
        {"backoff": (math.nan, 1.0)},
        {"probe_interval": 0},
        {"probe_timeout": -5.0},
    ],
    ids=repr,
)
def test_argument_out_of_range_is_a_value_error(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Reactor("", **arguments)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_impossible_channel_is_refused_before_anything_is_opened(name: str) -> None:
    with pytest.raises(ValueError, match="channel"):
        Reactor("", channels=[name])


@pytest.mark.parametrize("name", NO_TEXT)
def test_channel_of_a_wrong_type_is_a_type_error(name: Any) -> None:
    with pytest.raises(TypeError):
        Reactor("", channels=[name])


def test_databases_are_given_back_in_order(dsn: str) -> None:
    first, second = Database(dsn), Database(dsn)

    assert Reactor(first, second).databases == (first, second)


def test_making_a_reactor_opens_nothing(dsn: str, admin: Admin) -> None:
    before = admin.sessions()
    Reactor(dsn)

    assert admin.sessions() == before


def test_repr_tells_where_it_leads_and_no_secret(dsn: str) -> None:
    password = psycopg.conninfo.conninfo_to_dict(dsn)["password"]
    text = repr(Reactor(dsn, name="shop"))

    assert "shop" in text
    assert Database(dsn).name in text
    assert str(password) not in text


# Start


def test_start_returns_when_listen_is_acknowledged(dsn: str, channel: str, admin: Admin) -> None:
    reactor = Reactor(dsn)
    arrived = collect(reactor, channel)
    reactor.start()
    admin.notify(channel, "1")

    wait_until(lambda: arrived == ["1"])
    assert reactor.running
    reactor.stop()
    assert not reactor.running


def test_with_starts_and_stops(dsn: str) -> None:
    with Reactor(dsn) as reactor:
        assert not reactor.join(0)
        assert reactor.status().running
    assert reactor.join(0)
    assert not reactor.running


def test_second_start_does_nothing(dsn: str) -> None:
    with Reactor(dsn) as reactor:
        session = reactor.status().databases[0].backend_id
        reactor.start()

        assert reactor.status().databases[0].backend_id == session


def test_second_start_does_not_return_before_the_first(proxied: str, proxy: Proxy) -> None:
    reactor = Reactor(proxied)
    proxy.freeze()
    first = Background(reactor.start)
    wait_until(lambda: proxy.links)

    def start_and_look() -> bool:
        reactor.start()
        return reactor.running

    second = Background(start_and_look)
    proxy.thaw()
    first.result()

    assert second.result()
    reactor.stop()


def test_stopped_reactor_can_be_started_again(dsn: str, channel: str, admin: Admin) -> None:
    reactor = Reactor(dsn)
    arrived = collect(reactor, channel)
    for number in range(3):
        reactor.start()
        admin.notify(channel, str(number))
        wait_until(arrived.copy)
        assert reactor.stop()
        assert arrived == [str(number)]
        arrived.clear()


def test_fifty_lives_leave_no_more_behind_than_one(dsn: str) -> None:
    reactor = Reactor(dsn)
    counts = []
    for _ in range(50):
        with reactor:
            pass
        gc.collect()
        counts.append(len(os.listdir("/proc/self/fd")) + threading.active_count())

    wait_until(lambda: min(counts[25:]) <= min(counts[:25]))


def test_threads_are_called_after_the_reactor(dsn: str) -> None:
    with Reactor(dsn, name="pgsignals-shop", workers=2, probe_interval=None):
        names = {t.name for t in threading.enumerate() if t.name.startswith("pgsignals-shop")}

    assert names >= {
        "pgsignals-shop-reader",
        "pgsignals-shop-worker-1",
        "pgsignals-shop-worker-2",
    }


def test_refused_connection_is_a_connect_error(proxied: str, proxy: Proxy) -> None:
    proxy.refuse()
    reactor = Reactor(proxied)

    with pytest.raises(ConnectError):
        reactor.start()
    assert not reactor.running
    assert reactor.stop()


def test_refused_connection_is_told_at_once(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reader, "CHECK_WORKERS", LONG)  # nothing wakes the reader before
    reactor = Reactor(f"{dsn} password=wrong")
    began = time.monotonic()
    with pytest.raises(ConnectError, match="password"):
        reactor.start()

    assert time.monotonic() - began < AT_ONCE


def test_start_that_failed_can_be_tried_again(proxied: str, proxy: Proxy) -> None:
    proxy.refuse()
    reactor = Reactor(proxied)
    with pytest.raises(ConnectError):
        reactor.start()
    proxy.accept()
    with reactor:
        assert reactor.running


def test_one_database_that_fails_rolls_everything_back(
    dsn: str, proxied: str, proxy: Proxy, admin: Admin
) -> None:
    proxy.refuse()
    before = admin.sessions()
    reactor = Reactor(dsn, proxied)

    with pytest.raises(ConnectError):
        reactor.start()
    wait_until(lambda: admin.sessions() == before)
    assert not reactor.running


def test_open_database_is_left_open_by_a_start_that_failed(
    connect: Connect, proxied: str, proxy: Proxy, channel: str
) -> None:
    proxy.refuse()
    database = connect()
    database.listen(channel)
    with pytest.raises(ConnectError):
        Reactor(database, proxied, channels=["other"]).start()

    assert set(database.listening_channels()) == {channel}


def test_database_in_a_transaction_is_refused_and_nothing_is_kept(connect: Connect) -> None:
    free, busy = connect(), connect()
    busy.execute("BEGIN")
    reactor = Reactor(free, busy)

    with pytest.raises(ConnectionStateError, match="transaction"):
        reactor.start()
    assert list(free.listening_channels()) == []
    busy.execute("ROLLBACK")
    with reactor:
        assert reactor.running


def test_database_of_another_reactor_is_refused(dsn: str) -> None:
    database = Database(dsn)
    with Reactor(database):
        for _ in range(2):  # the first attempt has not taken it away from its reactor
            with pytest.raises(ConnectionStateError, match="reactor"):
                Reactor(database).start()
        assert database.backend_id


def test_error_of_connect_passes_through_start() -> None:
    def fail() -> Any:
        raise LookupError("no credentials")

    with pytest.raises(LookupError, match="no credentials"):
        Reactor(Database(connect=fail)).start()


def test_failed_start_is_no_life_that_stops(proxied: str, proxy: Proxy) -> None:
    proxy.refuse()
    reactor = Reactor(proxied)
    ended: list[object] = []
    reactor.stopped.connect(lambda _, error: ended.append(error), weak=False)
    with pytest.raises(ConnectError):
        reactor.start()

    assert ended == []


# Stop


def test_stop_before_start_does_nothing(dsn: str) -> None:
    assert Reactor(dsn).stop()
    assert Reactor(dsn).join(0)


def test_second_stop_does_nothing(dsn: str) -> None:
    reactor = Reactor(dsn)
    ended: list[object] = []
    reactor.stopped.connect(lambda _, error: ended.append(error), weak=False)
    with reactor:
        assert reactor.stop()
        assert reactor.stop(0)

    assert ended == [None]


def test_stop_drains_what_has_been_received(dsn: str, channel: str) -> None:
    reactor = Reactor(dsn)
    arrived = collect(reactor, channel)
    reactor.start()
    with stuck(reactor, channel, 1000) as gate:
        stopping = Background(reactor.stop)
        wait_until(lambda: reactor.status().databases[0].state == "stopped")
        gate.set()
        assert stopping.result()

    assert arrived == [str(number) for number in range(1000)]


def state_of(reactor: Reactor) -> str:
    return reactor.status().databases[0].state


def of_slow_server(
    admin: Admin,
    reactor: Reactor,
    name: str,
    timeout: float | None,
    block: Callable[[Database], AbstractContextManager[object]] = contextlib.nullcontext,
) -> list[str]:
    """The payloads that arrive where a reactor notifies, in a *block*, and stops at once, while
    the server process of its listening session stands still."""
    arrived = collect(reactor, name)

    @reactor.on_channel(f"{name} stop")
    def stop(database: Database, notification: Notification) -> None:
        assert database.backend_id is not None
        with stopped(database.backend_id):
            with block(database):
                reactor.notify((name, notification.payload))
            reactor.stop(timeout)
            waited = time.monotonic() + 0.2
            wait_until(lambda: state_of(reactor) == "stopped" or time.monotonic() > waited)

    reactor.start()
    admin.notify(f"{name} stop", "the last one")
    assert reactor.join(AT_ONCE)
    return arrived


def test_stop_hears_what_the_reactor_has_notified(dsn: str, channel: str, admin: Admin) -> None:
    assert of_slow_server(admin, Reactor(dsn), channel, None) == ["the last one"]


def test_stop_hears_what_the_reactor_has_notified_on_an_open_database(
    dsn: str, channel: str, admin: Admin
) -> None:
    with Database(dsn) as db:
        assert of_slow_server(admin, Reactor(db), channel, None) == ["the last one"]
        assert not list(db.listening_channels())


def test_stop_hears_what_a_handlers_transaction_has_notified(
    dsn: str, channel: str, admin: Admin
) -> None:
    arrived = of_slow_server(admin, Reactor(dsn), channel, None, lambda db: db.transaction())

    assert arrived == ["the last one"]


def test_stop_does_not_wait_long_for_what_the_reactor_has_notified(
    dsn: str, channel: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_finishing, "LAST_ANSWERS", 0.1)
    reactor = Reactor(dsn)
    arrived = collect(reactor, channel)
    reactor.start()
    (database,) = reactor.databases
    with stopped(database.backend_id):
        reactor.notify((channel, "never heard"))
        assert reactor.stop()

    assert arrived == []
    assert f"may not have arrived from {database.name}" in caplog.text


def test_stop_in_a_flood_does_not_wait_for_what_the_reactor_has_notified(
    dsn: str, channel: str, admin: Admin
) -> None:
    count = 100_000
    reactor = Reactor(dsn, max_backlog=500, overflow="block")
    gate = threading.Event()
    reactor.channel(channel).connect(lambda *_, **__: gate.wait(2 * PATIENCE), weak=False)
    reactor.start()
    admin.flood(channel, count)
    wait_until(lambda: reactor.status().backlog >= 499)
    reactor.notify("the last one")
    stopping = Background(reactor.stop)
    wait_until(lambda: state_of(reactor) == "stopped")
    waiting = reactor.status().backlog
    gate.set()

    assert stopping.result(2 * PATIENCE)
    assert waiting < count / 2


def test_stop_without_time_does_not_ask_what_has_been_notified(
    dsn: str, channel: str, admin: Admin
) -> None:
    assert of_slow_server(admin, Reactor(dsn), channel, 0) == []


def test_stop_whose_time_runs_out_counts_and_names(
    dsn: str, channel: str, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    before = admin.sessions()
    reactor = Reactor(dsn, name=f"pgsignals-{channel}", channels=["first"])
    reactor.start()
    with caplog.at_level(logging.WARNING, "pgsignals"), stuck(reactor, channel, 10):
        assert reactor.stop(0.05) is False
        assert not reactor.running
        wait_until(lambda: admin.sessions() == before)
    workers_end(f"pgsignals-{channel}")

    (text,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "9 " in text
    assert "hang" in text


def test_what_a_stop_gave_up_is_never_run(dsn: str, channel: str) -> None:
    reactor = Reactor(dsn, name=f"pgsignals-{channel}")
    arrived = collect(reactor, channel)
    reactor.start()
    with stuck(reactor, channel, 10):
        assert not reactor.stop(0.05)
        assert reactor.status().backlog == 0
    workers_end(f"pgsignals-{channel}")

    assert arrived == ["0"]
    assert reactor.status().backlog == 0


def test_stopped_reactor_starts_again_beside_a_stuck_handler(dsn: str, channel: str) -> None:
    reactor = Reactor(dsn, name=f"pgsignals-{channel}")
    with stuck_then_stopped(reactor, channel):
        arrived = collect(reactor, "other")
        with reactor:
            reactor.notify(other="1")
            wait_until(lambda: arrived == ["1"])
    workers_end(f"pgsignals-{channel}")


@contextlib.contextmanager
def stuck_then_stopped(reactor: Reactor, name: str) -> Iterator[None]:
    reactor.start()
    with stuck(reactor, name):
        assert not reactor.stop(0.05)
        yield


def test_stopped_is_told_also_when_a_handler_is_stuck(dsn: str, channel: str) -> None:
    reactor = Reactor(dsn, name=f"pgsignals-{channel}")
    ended: list[object] = []
    reactor.stopped.connect(lambda _, error: ended.append(error), weak=False)
    with stuck_then_stopped(reactor, channel):
        assert ended == [None]
    workers_end(f"pgsignals-{channel}")


def test_receiver_of_stopped_may_stop_and_join_also_when_a_handler_is_stuck(
    dsn: str, channel: str
) -> None:
    reactor = Reactor(dsn, name=f"pgsignals-{channel}")
    told = []

    @reactor.stopped.connect
    def stop_again(_: Reactor, error: BaseException | None) -> None:
        told.append(error)
        reactor.stop()

    reactor.start()
    with stuck(reactor, channel):
        stopping = Background(reactor.stop, 0.05)
        assert stopping.result() is False
    workers_end(f"pgsignals-{channel}")

    assert told == [None]


def test_stop_from_many_threads_ends_once(dsn: str) -> None:
    reactor = Reactor(dsn)
    ended: list[object] = []
    reactor.stopped.connect(lambda _, error: ended.append(error), weak=False)
    reactor.start()
    stops = [Background(reactor.stop) for _ in range(8)]

    assert all(stop.result() for stop in stops)
    assert ended == [None]


@pytest.mark.parametrize("seconds", [None, 60.0])
def test_later_stop_may_be_more_impatient(dsn: str, channel: str, seconds: float | None) -> None:
    reactor = Reactor(dsn, name=f"pgsignals-{channel}")
    reactor.start()
    with stuck(reactor, channel):
        patient = Background(reactor.stop, seconds)
        wait_until(lambda: reactor.status().databases[0].state == "stopped")
        assert patient.running
        assert reactor.stop(0) is False
        assert patient.result() is False
    workers_end(f"pgsignals-{channel}")


def test_stop_comes_to_a_reader_that_waits_for_space(dsn: str, channel: str, admin: Admin) -> None:
    reactor = Reactor(dsn, max_backlog=5, overflow="block")
    arrived = collect(reactor, channel)
    gate, until = threading.Event(), time.monotonic() + PATIENCE
    reactor.channel(channel).connect(
        lambda *_, **__: gate.wait(until - time.monotonic()), weak=False
    )
    reactor.start()
    admin.flood(channel, 100)
    wait_until(lambda: reactor.status().backlog >= 4)
    stopping = Background(reactor.stop)
    wait_until(lambda: reactor.status().databases[0].state == "stopped")
    gate.set()

    assert stopping.result()
    assert arrived == [str(number) for number in range(1, 101)]


def test_reactor_that_was_stopped_tells_an_error_of_nobody(dsn: str) -> None:
    reactor = Reactor(dsn)
    seen: list[tuple[object, object]] = []
    reactor.stopped.connect(lambda *args, **kwargs: seen.append((args, kwargs)), weak=False)
    with reactor:
        pass

    assert seen == [((reactor,), {"error": None})]


# Start and stop at once


def test_stop_ends_a_start_that_hangs(proxied: str, proxy: Proxy) -> None:
    proxy.freeze()
    reactor = Reactor(proxied)
    starting = Background(reactor.start)
    wait_until(lambda: proxy.links)

    assert Background(reactor.stop).result()
    with pytest.raises(ClosedError):
        starting.result()
    assert not reactor.running
    proxy.thaw()
    wait_until(lambda: not proxy.links, why="the session that came too late was left open")


def test_stop_ends_an_attempt_to_reconnect_that_hangs(dsn: str, proxied: str, proxy: Proxy) -> None:
    reactor = Reactor(proxied, backoff=(0.01, 0.05), probe_interval=None)
    reactor.start()
    proxy.freeze()
    kill_listener(reactor, dsn=dsn)
    proxy.cut()
    wait_until(lambda: proxy.links, why="no attempt was made")

    assert Background(reactor.stop).result()
    assert reactor.status().databases[0].state == "stopped"
    proxy.thaw()
    wait_until(lambda: not proxy.links, why="the session that came too late was left open")


def test_stop_does_not_wait_for_the_next_attempt(proxied: str, proxy: Proxy) -> None:
    reactor = Reactor(proxied, backoff=(40.0, 50.0), probe_interval=None)
    reactor.start()
    proxy.refuse()
    proxy.cut()
    wait_until(lambda: reactor.status().databases[0].state == "lost")

    assert Background(reactor.stop).result(AT_ONCE)


def test_start_in_the_midst_of_a_stop_starts_or_says_that_it_does_not(
    dsn: str, channel: str
) -> None:
    reactor = Reactor(dsn)
    reactor.start()
    with stuck(reactor, channel) as gate:
        stopping = Background(reactor.stop)
        wait_until(lambda: reactor.status().databases[0].state == "stopped")
        starting = Background(reactor.start)
        gate.set()
        assert stopping.result()
        with contextlib.suppress(Error):
            starting.result()
            assert reactor.running, "start() returned, and nothing runs"
    reactor.stop()


def test_start_from_a_receiver_of_stopped_begins_another_life(dsn: str, channel: str) -> None:
    reactor = Reactor(dsn)
    arrived = collect(reactor, channel)
    told: list[object] = []

    @reactor.stopped.connect
    def once_more(_: Reactor, error: BaseException | None) -> None:
        told.append(error)
        if len(told) == 1:
            reactor.start()

    reactor.start()
    reactor.stop()
    wait_until(lambda: reactor.running)
    reactor.notify((channel, "1"))
    wait_until(lambda: arrived == ["1"])
    reactor.stop()

    assert told == [None, None]
    assert not reactor.running


@pytest.mark.parametrize("attempt", range(5))
def test_stop_from_a_receiver_of_connected_leaves_a_stopped_reactor(dsn: str, attempt: int) -> None:
    reactor = Reactor(dsn, probe_interval=None)
    reactor.connected.connect(lambda *_, **__: reactor.stop(), weak=False)

    with contextlib.suppress(ClosedError):
        reactor.start()
    assert reactor.join(PATIENCE)
    assert not reactor.running


def test_start_and_stop_from_many_threads_come_to_an_end(dsn: str) -> None:
    reactor = Reactor(dsn, probe_interval=None)

    def churn() -> None:
        for _ in range(8):
            with contextlib.suppress(ClosedError):
                reactor.start()
            reactor.stop()

    threads = [Background(churn) for _ in range(4)]
    for thread in threads:
        thread.result(40)
    reactor.stop()

    assert not reactor.running


def test_handler_connected_while_it_stops_changes_nothing(dsn: str, channel: str) -> None:
    reactor = Reactor(dsn)
    reactor.start()
    with stuck(reactor, channel) as gate:
        stopping = Background(reactor.stop)
        wait_until(lambda: reactor.status().databases[0].state == "stopped")

        def other(db: Database, notification: Notification) -> None: ...

        connecting = Background(reactor.on_channel("another"), other)
        assert connecting.result() is other
        listening = Background(reactor.listen, "one more")
        listening.result()
        gate.set()

        assert stopping.result()


# Foreground


def test_run_in_a_thread_runs_until_it_is_stopped(dsn: str) -> None:
    reactor = Reactor(dsn)
    running = Background(reactor.run)
    wait_until(lambda: reactor.running)
    reactor.stop()

    assert running.result() is None


def test_run_raises_what_keeps_it_from_starting(proxied: str, proxy: Proxy) -> None:
    proxy.refuse()

    with pytest.raises(ConnectError):
        Reactor(proxied).run()


def test_run_ends_with_a_stop_from_a_handler(dsn: str, channel: str, admin: Admin) -> None:
    reactor = Reactor(dsn)
    reactor.on_channel(channel)(lambda *_, **__: reactor.stop())
    running = Background(reactor.run)
    wait_until(lambda: reactor.running)
    admin.notify(channel)

    assert running.result() is None
    assert not reactor.running


@pytest.mark.parametrize("timeout", [-1, math.nan])
def test_impossible_timeout_is_a_value_error(dsn: str, timeout: float) -> None:
    reactor = Reactor(dsn)
    for call in (reactor.run, reactor.stop, reactor.join):
        with pytest.raises(ValueError, match="timeout"):
            call(timeout)


@pytest.mark.parametrize("timeout", ["1", True])
def test_timeout_that_is_no_number_is_a_type_error(dsn: str, timeout: Any) -> None:
    reactor = Reactor(dsn)
    for call in (reactor.run, reactor.stop, reactor.join):
        with pytest.raises(TypeError):
            call(timeout)


# Idle


def test_idle_comes_every_interval(dsn: str) -> None:
    reactor = Reactor(dsn, timeout=0.02, probe_interval=None)
    seen: list[object] = []
    reactor.idle.connect(lambda sender: seen.append(sender), weak=False)
    began = time.monotonic()
    with reactor:
        wait_until(lambda: len(seen) >= 5)

    assert time.monotonic() - began >= 5 * 0.02
    assert set(seen) == {reactor}


def test_without_a_timeout_nothing_is_idle(dsn: str, channel: str) -> None:
    reactor = Reactor(dsn)
    seen: list[object] = []
    reactor.idle.connect(lambda sender: seen.append(sender), weak=False)
    arrived = collect(reactor, channel)
    with reactor:
        reactor.notify(channel)
        wait_until(lambda: arrived)

    assert seen == []


# Two reactors, and the module's handlers


def test_every_reactor_serves_the_handlers_of_the_module(dsn: str, channel: str) -> None:
    seen: list[Database] = []

    @on_channel(channel)
    def handler(sender: Database, notification: Notification) -> None:
        seen.append(sender)

    try:
        with Reactor(dsn) as first, Reactor(dsn) as second:
            first.notify(channel)
            wait_until(lambda: len(seen) == 2)
            assert set(seen) == {*first.databases, *second.databases}
    finally:
        channel_signal(channel).disconnect(handler)


channel_signal = channel


def test_reactor_that_is_forgotten_is_not_kept_by_the_module(dsn: str) -> None:
    reactor = Reactor(dsn, probe_interval=None)
    with reactor:
        pass
    forgotten = weakref.ref(reactor)
    del reactor

    wait_until(lambda: gc.collect() is not None and forgotten() is None)
