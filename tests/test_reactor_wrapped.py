"""Connections that others use, too: a wrapped one, and what a ``connect=`` has kept."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgsignals import ConnectError, ConnectionStateError, Database, Gap, Notification, Reactor
from tests.support.admin import Admin
from tests.support.arrivals import payloads, take
from tests.support.waiting import Background, is_readable, wait_until

QUICK: dict[str, Any] = {"probe_interval": 0.05, "probe_timeout": 5.0}


@pytest.fixture
def wrapped(dsn: str) -> Iterator[Any]:
    """A connection of psycopg's, in autocommit."""
    with psycopg.connect(dsn, autocommit=True, application_name="wrapped") as connection:
        yield connection


class Heard:
    """What a reactor says and hears."""

    def __init__(self, reactor: Reactor) -> None:
        self.payloads: list[str] = []
        self.lost: list[str] = []
        self.gaps: list[Gap] = []
        reactor.any_channel.connect(self._any, weak=False)
        reactor.lost.connect(self._lost, weak=False)
        reactor.gap.connect(self._gap, weak=False)

    def _any(self, _: Database, notification: Notification) -> None:
        self.payloads.append(notification.payload)

    def _lost(self, _: Database, reason: str, error: BaseException) -> None:
        self.lost.append(reason)

    def _gap(self, _: Database, gap: Gap) -> None:
        self.gaps.append(gap)


def probed(reactor: Reactor) -> None:
    """Return when one more round trip has been answered."""
    before = reactor.status().databases[0].probe_seconds
    wait_until(lambda: reactor.status().databases[0].probe_seconds != before)


@pytest.mark.parametrize("how", ["wrap", "connect="])
def test_statements_of_the_owner_give_their_own_rows(
    wrapped: Any, dsn: str, channel: str, admin: Admin, how: str
) -> None:
    made = [wrapped]

    def connect() -> Any:
        return made.pop() if made else psycopg.connect(dsn, autocommit=True)

    database = Database.wrap(wrapped) if how == "wrap" else Database(connect=connect)
    with Reactor(database, channels=[channel], **QUICK) as reactor:
        heard = Heard(reactor)
        for number in range(30):
            for _ in range(20):
                assert wrapped.execute("SELECT 42").fetchone() == (42,)
            with wrapped.transaction():
                assert wrapped.execute("SELECT 43").fetchone() == (43,)
            admin.notify(channel, str(number))
            probed(reactor)
        wait_until(lambda: len(heard.payloads) == 30)

        assert heard.payloads == [str(number) for number in range(30)]
        assert heard.lost == []
        assert heard.gaps == []


def test_long_statement_of_the_owner_is_no_loss(wrapped: Any, channel: str, admin: Admin) -> None:
    with Reactor(
        Database.wrap(wrapped), channels=[channel], probe_interval=0.05, probe_timeout=1.0
    ) as reactor:
        heard = Heard(reactor)
        wrapped.execute("SELECT pg_sleep(2.5)")
        admin.notify(channel, "after")
        wait_until(lambda: heard.payloads == ["after"])
        probed(reactor)

        assert heard.lost == []


def test_transaction_of_the_owner_is_no_loss_and_told_once(
    wrapped: Any, channel: str, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    with Reactor(
        Database.wrap(wrapped), channels=[channel], probe_interval=0.05, probe_timeout=1.0
    ) as reactor:
        heard = Heard(reactor)
        with wrapped.transaction():
            wait_until(lambda: "has been in use for" in caplog.text)
            before = len(caplog.records)
            admin.notify(channel, "during")
            with pytest.raises(psycopg.errors.DivisionByZero), wrapped.transaction():
                wrapped.execute("SELECT 1/0")
        wait_until(lambda: heard.payloads == ["during"])
        probed(reactor)

        told = [record for record in caplog.records[before:] if record.levelno >= logging.WARNING]
        assert not told
        assert heard.lost == []
        assert "in use" in (reactor.status().databases[0].last_error or "")


def test_connection_that_is_locked_for_long_does_not_hold_up_others(
    wrapped: Any, dsn: str, channel: str, admin: Admin
) -> None:
    """Its owner leaves a suspended generator of psycopg's, which holds the connection's lock,
    while its socket has something to read."""
    with Reactor(Database.wrap(wrapped), dsn, channels=[channel], **QUICK) as reactor:
        heard = Heard(reactor)
        with wrapped.lock:
            for number in range(50):
                admin.notify(channel, str(number))
            wait_until(lambda: len(heard.payloads) >= 50)  # those of the other database
            began, cpu = time.monotonic(), time.process_time()
            wait_until(lambda: time.monotonic() >= began + 0.5)
            assert time.process_time() - cpu < 0.4  # it does not spin
            received = [status.received for status in reactor.status().databases]
            assert received[1] == 50
        wait_until(lambda: len(heard.payloads) == 100)
        assert heard.lost == []


def test_handler_that_uses_the_wrapped_connection_does_not_lock_up_a_reactor_that_blocks(
    wrapped: Any, channel: str, admin: Admin
) -> None:
    done: list[Any] = []
    reactor = Reactor(Database.wrap(wrapped), overflow="block", max_backlog=2, **QUICK)

    @reactor.on_channel(channel)
    def use(db: Database, notification: Notification) -> None:
        done.append(wrapped.execute("SELECT 42").fetchone())

    with reactor:
        admin.flood(channel, 500)
        wait_until(lambda: len(done) == 500)

    assert set(done) == {(42,)}


def test_reactor_is_stopped_while_the_owner_is_in_a_transaction_and_leaves_it_alone(
    wrapped: Any, channel: str
) -> None:
    reactor = Reactor(Database.wrap(wrapped), channels=[channel], **QUICK)
    reactor.start()
    with wrapped.transaction():
        assert wrapped.execute("SELECT 1").fetchone() == (1,)
        assert Background(reactor.stop).result()
        assert wrapped.execute("SELECT 2").fetchone() == (2,)

    assert not wrapped.closed


def test_second_wrap_of_a_connection_is_refused(wrapped: Any, channel: str) -> None:
    first = Database.wrap(wrapped)
    with pytest.raises(ConnectionStateError, match="in use by another Database"):
        Database.wrap(wrapped)
    with (
        Reactor(first, channels=[channel]),
        pytest.raises(ConnectionStateError, match="in use by another Database"),
    ):
        Database.wrap(wrapped)
    first.close()

    with Database.wrap(wrapped) as second:
        second.listen(channel)
        assert list(second.listening_channels()) == [channel]


def test_connect_that_returns_the_same_connection_again_is_refused(wrapped: Any) -> None:
    first = Database(connect=lambda: wrapped).open()
    second = Database(connect=lambda: wrapped)

    with pytest.raises(ConnectError, match="already in use"):
        second.open()

    assert not wrapped.closed
    assert first.notify("a") == 1


def test_owner_of_a_wrapped_connection_has_its_handlers_back_when_it_is_dropped(
    wrapped: Any, channel: str, admin: Admin
) -> None:
    heard: list[str] = []
    wrapped.add_notify_handler(lambda notify: heard.append(notify.payload))
    wrapped.execute(f"LISTEN {channel}")
    database = Database.wrap(wrapped)
    admin.notify(channel, "ours")
    assert payloads(take(database, 1)) == ["ours"]
    handlers = len(wrapped._notice_handlers)
    del database
    gc.collect()
    admin.notify(channel, "theirs")
    wait_until(lambda: wrapped.execute("SELECT 1") and heard)

    assert heard == ["theirs"]
    assert len(wrapped._notice_handlers) == handlers - 1


def test_what_a_statement_of_the_owner_leaves_in_libpq_is_heard(
    wrapped: Any, channel: str, admin: Admin
) -> None:
    """What follows the answer in the same packet stays in libpq, where no selector sees it."""
    with Reactor(Database.wrap(wrapped), channels=[channel], probe_interval=None) as reactor:
        heard = Heard(reactor)
        with wrapped.lock:
            admin.notify(channel, "1")
            wait_until(lambda: is_readable(wrapped))
            wrapped.pgconn.consume_input()  # as a statement of the owner does at its end
        wait_until(lambda: heard.payloads == ["1"])


def test_what_comes_along_with_the_owners_statement_while_a_session_is_announced_is_heard(
    wrapped: Any, channel: str
) -> None:
    class Owner:
        """Uses the connection at that very moment."""

        touches = 0

        def touched(self, _: object) -> None:
            self.touches += 1
            if self.touches == 1:
                wrapped.execute(f"NOTIFY {channel}, 'along'")

    owner, database = Owner(), Database.wrap(wrapped)
    database._custody.add_watcher(owner)
    reactor = Reactor(database, channels=[channel], **QUICK)
    heard = Heard(reactor)
    with reactor:
        assert owner.touches == 1
        probed(reactor)

    assert heard.payloads == ["along"]


def test_what_comes_along_with_the_owners_statement_during_a_stop_is_the_owners(
    wrapped: Any, channel: str, admin: Admin
) -> None:
    gate, entered = threading.Event(), threading.Event()
    database = Database.wrap(wrapped)
    database.listen(f"{channel}_of_owner")
    reactor = Reactor(database, **QUICK)

    @reactor.on_channel(channel)
    def hold(db: Database, notification: Notification) -> None:
        entered.set()
        gate.wait()

    reactor.start()
    admin.notify(channel, "ours")
    wait_until(entered.is_set)
    stop = Background(reactor.stop)
    wait_until(lambda: reactor.status().databases[0].state == "stopped")
    wrapped.execute(f"NOTIFY {channel}_of_owner, 'theirs'")
    gate.set()
    assert stop.result()

    assert payloads(database.drain()) == ["theirs"]
    database.close()


def test_owner_is_not_kept_waiting_by_a_reader_that_stands_still(
    wrapped: Any, channel: str, admin: Admin
) -> None:
    """Between question and answer the owner waits for the server, never for handlers."""
    gate = threading.Event()
    reactor = Reactor(Database.wrap(wrapped), overflow="block", max_backlog=1, **QUICK)

    @reactor.on_channel(channel)
    def hold(db: Database, notification: Notification) -> None:
        gate.wait(20)

    with reactor:
        admin.flood(channel, 10)
        wait_until(lambda: reactor.status().backlog)
        for _ in range(20):
            row = Background(lambda: wrapped.execute("SELECT 42").fetchone()).result()
            assert row == (42,)
        gate.set()
