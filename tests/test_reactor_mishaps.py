"""Mishaps of the machine and of users' code that must cost no more than what they touch."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgsignals import ConnectError, ConnectionStateError, Database, Gap, Notification, Reactor
from pgsignals.testing import kill_listener
from tests.support.admin import Admin
from tests.support.waiting import wait_until


def test_transaction_that_a_handler_leaves_open_is_rolled_back_and_named(
    dsn: str, new_channel: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = new_channel(), new_channel(), new_channel()
    heard: list[str] = []
    with Reactor(dsn) as reactor:

        @reactor.on_channel(first)
        def forget(db: Database, notification: Notification) -> None:
            db.execute("BEGIN")

        @reactor.on_channel(second)
        def pass_on(db: Database, notification: Notification) -> None:
            db.notify(third)

        @reactor.on_channel(third)
        def hear(db: Database, notification: Notification) -> None:
            heard.append(notification.channel)

        reactor.notify(first, second)
        wait_until(lambda: heard == [third])

    assert "forget left a transaction open" in caplog.text


def test_worker_whose_session_was_killed_notifies_again(
    dsn: str, new_channel: Callable[[], str], admin: Admin
) -> None:
    first, second, third = new_channel(), new_channel(), new_channel()
    heard: list[str] = []
    with Reactor(dsn) as reactor:

        @reactor.on_channel(first)
        def be_killed(db: Database, notification: Notification) -> None:
            connection = db.connection
            admin.kill(connection.info.backend_pid)
            connection.execute("SELECT 1")

        @reactor.on_channel(second)
        def pass_on(db: Database, notification: Notification) -> None:
            db.notify(third)

        @reactor.on_channel(third)
        def hear(db: Database, notification: Notification) -> None:
            heard.append(notification.channel)

        reactor.notify(first, second)
        wait_until(lambda: heard == [third])

        assert reactor.status().databases[0].failed == 1


def test_coroutine_function_on_a_signal_of_the_reactor_is_an_error_in_the_log(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    gaps: list[Gap] = []
    reactor = Reactor(dsn)

    async def never(db: Database, gap: Gap) -> None: ...

    reactor.gap.connect(never)
    reactor.gap.connect(lambda db, gap: gaps.append(gap), weak=False)
    with reactor:
        kill_listener(reactor.databases[0])
        wait_until(lambda: gaps)

    assert "coroutine function cannot be a handler" in caplog.text


def test_coroutine_function_on_a_channel_fails_under_its_own_name(dsn: str, channel: str) -> None:
    failed: list[Any] = []
    reactor = Reactor(dsn)

    async def never(db: Database, notification: Notification) -> None: ...

    @reactor.handler_failed.connect
    def tell(db: Database, notification: Notification, handler: Any, error: Exception) -> None:
        failed.append(handler)

    reactor.channel(channel).connect(never)
    with reactor:
        reactor.notify(channel)
        wait_until(lambda: failed == [never])


def test_refused_connection_of_a_connect_callable_is_closed(dsn: str) -> None:
    made: list[psycopg.Connection[Any]] = []

    def connect() -> psycopg.Connection[Any]:
        made.append(psycopg.connect(dsn))
        return made[-1]

    with pytest.raises(ConnectionStateError, match="autocommit"):
        Database(connect=connect).open()
    with pytest.raises(ConnectionStateError, match="autocommit"):
        Reactor(Database(connect=connect)).start()

    assert [connection.closed for connection in made] == [True, True]


def test_closed_connection_of_a_connect_callable_is_a_connect_error(dsn: str) -> None:
    def connect() -> psycopg.Connection[Any]:
        connection = psycopg.connect(dsn, autocommit=True)
        connection.close()
        return connection

    with pytest.raises(ConnectError, match="closed connection"):
        Database(connect=connect).open()


def test_start_without_a_thread_to_be_had_leaves_nothing_behind(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reactor = Reactor(dsn)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.endswith("-reader"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            reactor.start()
    assert not reactor.running
    assert reactor.stop(10)

    with reactor:
        assert reactor.running


def test_canary_without_a_thread_to_be_had_is_a_warning_and_no_loss(
    dsn: str, channel: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "pgsignals")
    heard: list[str] = []
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.endswith("-canary"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with Reactor(dsn, probe_interval=0.2, probe_timeout=5.0) as reactor:
        reactor.on_channel(channel)(lambda db, notification: heard.append(notification.payload))
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            wait_until(lambda: "no canary could be sent" in caplog.text)
        reactor.notify((channel, "1"))
        wait_until(lambda: heard == ["1"])

        assert reactor.status().databases[0].reconnects == 0


def test_what_arrives_before_the_first_canary_fails_is_handled_at_once(
    dsn: str, channel: str, admin: Admin
) -> None:
    heard: list[str] = []
    calls = 0

    def connect() -> psycopg.Connection[Any]:
        nonlocal calls
        calls += 1
        if calls == 2:  # the control connection: the session listens, and waits for its canary
            admin.notify(channel, "1")
            raise psycopg.OperationalError("no connection left")
        return psycopg.connect(dsn, autocommit=True)

    reactor = Reactor(Database(connect=connect), probe_interval=60.0)
    reactor.on_channel(channel)(lambda db, notification: heard.append(notification.payload))
    with reactor:
        wait_until(lambda: heard == ["1"])


@pytest.mark.parametrize(("overflow", "patience"), [("drop_oldest", "30000"), ("block", "0")])
def test_server_waits_for_a_reader_only_where_it_may_block(
    dsn: str, overflow: Any, patience: str
) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        with Reactor(Database.wrap(connection), overflow=overflow):
            said = connection.execute("SHOW tcp_user_timeout").fetchone()
        after = connection.execute("SHOW tcp_user_timeout").fetchone()

    assert said == (patience,)
    assert after == ("0",)


def test_what_comes_along_with_a_statement_of_the_owner_of_a_wrapped_connection_is_handled(
    dsn: str, channel: str, admin: Admin
) -> None:
    heard: list[str] = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        reactor = Reactor(Database.wrap(connection))
        reactor.on_channel(channel)(lambda db, notification: heard.append(notification.payload))
        with reactor:
            for payload in ("1", "2", "3"):
                admin.notify(channel, payload)
                connection.execute("SELECT 1")
            wait_until(lambda: heard == ["1", "2", "3"])
