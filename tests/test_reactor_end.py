"""What a stop still hears: all that had come, and what the reactor itself had notified."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgsignals import Database, Notification, Reactor
from pgsignals._engine import finishing as _finishing
from pgsignals._engine import life as _life
from pgsignals.testing import Proxy
from tests.support.admin import Admin, stopped
from tests.support.arrivals import Connect
from tests.support.waiting import AT_ONCE, LONG, PATIENCE, Background, wait_until


class Ways:
    """A ``connect=``: one connection over each of *dsns*, and all others over the last.

    The first one of a reactor is the one that listens.
    """

    def __init__(self, *dsns: str) -> None:
        self._dsns = list(dsns)

    def __call__(self) -> psycopg.Connection[Any]:
        dsn = self._dsns.pop(0) if len(self._dsns) > 1 else self._dsns[0]
        return psycopg.connect(dsn, autocommit=True)


class Heard:
    """What arrives on a channel of the first database; the first call waits for :meth:`go_on`."""

    def __init__(self, reactor: Reactor, name: str) -> None:
        self.payloads: list[str] = []
        self._gate = threading.Event()
        reactor.on_channel(name, sender=reactor.databases[0])(self._handle)

    def _handle(self, _: Database, notification: Notification) -> None:
        self.payloads.append(notification.payload)
        self._gate.wait(2 * PATIENCE)

    def go_on(self) -> None:
        self._gate.set()


def received(reactor: Reactor) -> int:
    return reactor.status().databases[0].received


def state_of(reactor: Reactor) -> str:
    return reactor.status().databases[0].state


def idle_since(admin: Admin, moment: Any) -> Callable[[int], bool]:
    """Whether a backend has begun and answered a statement since *moment*."""

    def idle(pid: int) -> bool:
        rows = admin.execute(
            "SELECT state = 'idle' AND query_start > %s FROM pg_stat_activity WHERE pid = %s",
            moment,
            pid,
        )
        return rows == [(True,)]

    return idle


def has_been_given_back(admin: Admin, backend: int) -> bool:
    """Whether the last statement of a backend has taken our LISTENs off it."""
    ((query,),) = admin.execute("SELECT query FROM pg_stat_activity WHERE pid = %s", backend)
    return str(query).startswith("UNLISTEN")


def test_stop_hears_what_lies_in_the_socket_of_a_reactor_that_waits_for_space(
    proxied: str, proxy: Proxy, channel: str, admin: Admin
) -> None:
    reactor = Reactor(proxied, overflow="block", max_backlog=2, probe_interval=None)
    heard = Heard(reactor, channel)
    reactor.start()
    admin.notify(channel, "1", "2", "3", "4")
    wait_until(lambda: received(reactor) == 4)  # one is handled, two wait, one finds no space
    passed = proxy.forwarded("to_client")
    admin.notify(channel, "5")
    wait_until(lambda: proxy.forwarded("to_client") > passed)
    stopping = Background(reactor.stop)
    wait_until(lambda: state_of(reactor) == "stopped")
    heard.go_on()

    assert stopping.result()
    assert heard.payloads == ["1", "2", "3", "4", "5"]


def test_stop_hears_what_was_notified_after_the_server_had_answered_the_probe_under_way(
    dsn: str,
    proxied: str,
    proxy: Proxy,
    connect: Connect,
    channel: str,
    admin: Admin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That answer is on its way, and fetches nothing; another one has to be asked for."""
    monkeypatch.setattr(_finishing, "LAST_ANSWERS", LONG)
    database, other = Database(connect=Ways(proxied, dsn)), connect()
    reactor = Reactor(database, other, probe_interval=0.2, probe_timeout=LONG)
    heard = Heard(reactor, channel)
    heard.go_on()
    reactor.start()
    backend = database.backend_id
    proxy.freeze("to_client")
    ((moment,),) = admin.execute("SELECT clock_timestamp()")
    answered = idle_since(admin, moment)
    wait_until(lambda: answered(backend), why="no probe was answered")
    with stopped(backend):
        reactor.notify((channel, "the last one"), database=database)
        asked = proxy.forwarded("to_server")
        stopping = Background(reactor.stop)
        # The stop gives the other session back; then the reader waits for the last answers.
        wait_until(lambda: has_been_given_back(admin, other.backend_id))
        proxy.thaw("to_client")
        wait_until(lambda: proxy.forwarded("to_server") > asked or state_of(reactor) == "stopped")

    assert stopping.result(LONG)
    assert heard.payloads == ["the last one"]


def test_stop_hears_what_was_notified_before_an_answer_came_that_was_asked_for_earlier(
    dsn: str,
    proxied: str,
    proxy: Proxy,
    channel: str,
    admin: Admin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An answer fetches what was committed before it was asked for, not before it came."""
    monkeypatch.setattr(_finishing, "LAST_ANSWERS", LONG)
    database = Database(connect=Ways(proxied, dsn))
    reactor = Reactor(database, probe_interval=0.2, probe_timeout=LONG)
    heard = Heard(reactor, channel)
    heard.go_on()
    reactor.start()
    backend = database.backend_id

    def probe_is_answered_behind_a_freeze() -> bool:
        proxy.freeze("to_client")
        ((moment,),) = admin.execute("SELECT clock_timestamp()")
        answered, until = idle_since(admin, moment), time.monotonic() + 1
        wait_until(lambda: answered(backend) or time.monotonic() > until)
        if answered(backend):
            return True
        proxy.thaw("to_client")  # one that was sent before it keeps the next one from being sent
        return False

    wait_until(probe_is_answered_behind_a_freeze, why="no probe was answered")
    with stopped(backend):
        reactor.notify((channel, "the last one"))
        before = reactor.status().databases[0].probe_seconds
        proxy.thaw("to_client")
        wait_until(lambda: reactor.status().databases[0].probe_seconds != before)
        stopping = Background(reactor.stop)
        ended = time.monotonic() + 1
        wait_until(lambda: state_of(reactor) == "stopped" or time.monotonic() > ended)

    assert stopping.result(LONG)
    assert heard.payloads == ["the last one"]


def test_stop_hears_what_was_committed_after_the_last_answer_however_long_notify_took(
    dsn: str,
    proxied: str,
    proxy: Proxy,
    channel: str,
    admin: Admin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_finishing, "LAST_ANSWERS", LONG)
    database = Database(connect=Ways(dsn, proxied))
    reactor = Reactor(database, probe_interval=0.2, probe_timeout=LONG)
    heard = Heard(reactor, channel)
    heard.go_on()
    reactor.start()
    backend = database.backend_id
    proxy.freeze("to_server")
    notifying = Background(reactor.notify, (channel, "the last one"))
    wait_until(lambda: proxy.held("to_server"))
    ((moment,),) = admin.execute("SELECT clock_timestamp()")
    answered = idle_since(admin, moment)
    wait_until(lambda: answered(backend), why="no probe was answered")
    before = reactor.status().databases[0].probe_seconds
    wait_until(lambda: reactor.status().databases[0].probe_seconds != before)
    with stopped(backend):
        proxy.thaw("to_server")
        assert notifying.result(LONG) == 1
        stopping = Background(reactor.stop)
        ended = time.monotonic() + 1
        wait_until(lambda: state_of(reactor) == "stopped" or time.monotonic() > ended)

    assert stopping.result(LONG)
    assert heard.payloads == ["the last one"]


def test_second_stop_does_not_give_a_first_one_more_time(dsn: str, channel: str) -> None:
    reactor = Reactor(dsn)
    heard = Heard(reactor, channel)
    reactor.start()
    reactor.notify((channel, "1"))
    wait_until(lambda: heard.payloads)
    try:
        first = Background(reactor.stop, 1.0)
        wait_until(lambda: state_of(reactor) == "stopped")
        second = Background(reactor.stop, 2 * LONG)

        assert first.result(AT_ONCE) is False
        assert second.result(AT_ONCE) is False
    finally:
        heard.go_on()


def test_listen_in_a_handler_does_not_wait_for_a_reader_that_waits_for_handlers(
    dsn: str, new_channel: Callable[[], str], admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_life, "ACKNOWLEDGED_WITHIN", 2 * LONG)
    name, more = new_channel(), new_channel()
    done = threading.Event()
    with Reactor(dsn, overflow="block", max_backlog=1, probe_interval=None) as reactor:

        @reactor.on_channel(name)
        def handle(_: Database, notification: Notification) -> None:
            if notification.payload == "1":
                wait_until(lambda: received(reactor) == 3)
                reactor.listen(more)
                done.set()

        admin.notify(name, "1", "2", "3")  # one is handled, one waits, one finds no space
        assert done.wait(AT_ONCE)
        wait_until(lambda: more in reactor.status().databases[0].channels)


def test_idle_events_do_not_pile_up_behind_a_handler(dsn: str, channel: str) -> None:
    told: list[str] = []
    begun, gate = threading.Event(), threading.Event()
    with Reactor(dsn, timeout=0.01) as reactor:
        reactor.idle.connect(lambda _: told.append("idle"), weak=False)

        @reactor.on_channel(channel)
        def handle(_: Database, notification: Notification) -> None:
            told.append(notification.payload)
            begun.set()
            gate.wait(2 * PATIENCE)

        reactor.notify((channel, "1"))
        assert begun.wait(PATIENCE)
        due = time.monotonic() + 1.0
        wait_until(lambda: time.monotonic() > due)
        reactor.notify((channel, "2"))
        wait_until(lambda: received(reactor) == 2)
        gate.set()
        wait_until(lambda: "2" in told)

    between = told[told.index("1") + 1 : told.index("2")]
    assert len(between) <= 1
