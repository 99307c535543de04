"""Mishaps of the machine and of users' code that must cost no more than what they touch."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgsignals import (
    ClosedError,
    ConnectError,
    ConnectionLostError,
    ConnectionStateError,
    Database,
    Gap,
    Notification,
    Reactor,
)
from pgsignals._dispatch.backlog import Backlog
from pgsignals._engine import reader as _reader
from pgsignals._engine.announcing import Announcer
from pgsignals._engine.interest import Interest
from pgsignals._pure import statements as _statements
from pgsignals._pure.states import LISTENS_AT_ONCE
from pgsignals._sources.asking import Asker
from pgsignals._sources.listen import Link
from pgsignals._sources.registering import Registrar
from pgsignals.embedded import Postgres
from pgsignals.testing import kill_listener
from tests.support.admin import Admin
from tests.support.waiting import Background, wait_until


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

    with pytest.raises(ConnectError, match="not a closed one"):
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


# What raises on the reader


class Broken(logging.Filter):
    """A filter of the program with a bug."""

    def filter(self, record: logging.LogRecord) -> bool:
        raise ValueError("a bug of the program")


@pytest.fixture
def broken_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever the library logs makes a filter of the program raise."""
    monkeypatch.setattr(logging, "raiseExceptions", False)
    names = [name for name in logging.root.manager.loggerDict if name.startswith("pgsignals")]
    loggers = [logging.getLogger(name) for name in names]
    broken = Broken()
    for logger in loggers:
        logger.addFilter(broken)
    yield
    for logger in loggers:
        logger.removeFilter(broken)


@pytest.mark.usefixtures("broken_log")
def test_filter_of_the_log_that_raises_ends_nothing(dsn: str, channel: str, admin: Admin) -> None:
    heard: list[str] = []
    with Reactor(dsn, dsn, backoff=(0.01, 0.05)) as reactor:
        reactor.on_channel(channel)(lambda db, notification: heard.append(notification.payload))
        reactor.on_channel(channel)(lambda db, notification: 1 / 0)
        for database in reactor.databases:
            kill_listener(database)
        wait_until(lambda: [one.reconnects for one in reactor.status().databases] == [1, 1])
        admin.notify(channel, "1")
        wait_until(lambda: heard == ["1", "1"])

    assert not reactor.running


def test_name_that_one_client_encoding_cannot_hold_costs_no_other_channel_or_database(
    dsn: str, channel: str, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[tuple[bool, str]] = []
    with psycopg.connect(dsn, autocommit=True, client_encoding="latin1") as connection:
        wrapped = Database.wrap(connection)
        with Reactor(wrapped, dsn, channels=[channel], probe_interval=0.1) as reactor:
            reactor.any_channel.connect(
                lambda db, notification: heard.append((db is wrapped, notification.channel)),
                weak=False,
            )
            reactor.on_channel("\u2713")(lambda db, notification: None)
            admin.notify("\u2713")
            admin.notify(channel)
            wait_until(lambda: len(heard) == 3)
            reactor.listen(f"{channel}_more")
            first, second = reactor.status().databases

            assert sorted(heard) == sorted([(True, channel), (False, channel), (False, "\u2713")])
            assert first.channels == (channel, f"{channel}_more")
            assert second.channels == (channel, f"{channel}_more", "\u2713")
            assert "client_encoding" in (first.last_error or "")
            assert [first.reconnects, second.reconnects] == [0, 0]
    assert caplog.text.count("client_encoding cannot hold") == 1


def test_more_such_names_than_one_statement_takes_cost_no_other_channel(
    dsn: str, channel: str, admin: Admin
) -> None:
    """They come first, and even the channel of the canaries behind them."""
    heard: list[str] = []
    many = [f"a\u2713{number}" for number in range(LISTENS_AT_ONCE + 1)]
    with psycopg.connect(dsn, autocommit=True, client_encoding="latin1") as connection:
        reactor = Reactor(Database.wrap(connection), channels=[*many, channel])
        reactor.any_channel.connect(
            lambda db, notification: heard.append(notification.channel), weak=False
        )
        with reactor:
            admin.notify(channel)
            wait_until(lambda: heard == [channel])


def test_encoding_that_can_no_longer_hold_a_name_costs_the_owner_neither_reactor_nor_connection(
    dsn: str, channel: str
) -> None:
    def handle(db: Database, notification: Notification) -> None:
        """For a while."""

    with psycopg.connect(dsn, autocommit=True) as connection:
        with Reactor(Database.wrap(connection), channels=[channel]) as reactor:
            reactor.on_channel("\u2713", "\u2714")(handle)
            connection.execute("SET client_encoding TO LATIN1")
            reactor.channel("\u2713").disconnect(handle)
            reactor.listen(f"{channel}_more")

            assert reactor.status().databases[0].last_error is None
        connection.execute("SET client_encoding TO UTF8")
        left = connection.execute("SELECT pg_catalog.pg_listening_channels()").fetchall()
    assert set(left) == {("\u2713",), ("\u2714",)}


def test_bug_in_one_link_costs_its_session_alone_and_is_loud(
    dsn: str,
    channel: str,
    admin: Admin,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bugs: list[str] = []
    heard: list[Database] = []
    with Reactor(dsn, dsn, channels=[channel], backoff=(0.01, 0.05)) as reactor:
        reactor.any_channel.connect(lambda db, notification: heard.append(db), weak=False)
        hurt, other = reactor.databases
        owners: dict[str, type[Any]] = {
            "tick": Link,
            "_drain": Link,
            "ended": Link,
            "reconcile": Registrar,
            "answered": Asker,
        }
        for name, owner in owners.items():
            original = getattr(owner, name)

            def fail(part: Any, *args: Any, name: str = name, original: Any = original) -> Any:
                upkeep = part.upkeep if isinstance(part, Link) else part._upkeep
                if upkeep.access is hurt._access and name not in bugs:
                    bugs.append(name)
                    raise LookupError(f"a bug in {name}")
                return original(part, *args)

            before = reactor.status().databases[0].reconnects
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, fail)
                reactor.listen(f"of_{name}".lower())  # which makes most of them run
                if name == "ended":
                    admin.kill(hurt.backend_id)
                wait_until(lambda: name in bugs)  # noqa: B023
                wait_until(lambda: reactor.status().databases[0].reconnects > before)  # noqa: B023
        admin.notify(channel)
        wait_until(lambda: set(heard) == {hurt, other})

        assert reactor.status().databases[1].reconnects == 0
    loud = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert len(loud) == 5
    assert all("bug in pgsignals" in record.getMessage() for record in loud)
    assert all(record.exc_info for record in loud)


def once(
    monkeypatch: pytest.MonkeyPatch, owner: type[Any], name: str, *spared: object
) -> threading.Event:
    """Have the first call of a method raise that is given none of *spared*."""
    raised = threading.Event()
    original = getattr(owner, name)

    def fail(*args: Any, **given: Any) -> Any:
        if raised.is_set() or any(one is other for one in args for other in spared):
            return original(*args, **given)
        raised.set()
        raise LookupError(f"a bug in {name}")

    monkeypatch.setattr(owner, name, fail)
    return raised


#: A step of the reader, and whether a bug in it costs a session.
STEPS: dict[str, tuple[type[Any], str, bool]] = {
    "interest": (Interest, "wanted", True),
    "tick": (Link, "tick", True),
    "next tick": (Link, "next_tick", True),
    "read": (Link, "_drain", True),
    "deliver": (Backlog, "put", True),
    "ended": (Link, "ended", True),
    "idle": (Announcer, "idle", False),
    "check of the workers": (Announcer, "check_workers", False),
}


@pytest.mark.parametrize("step", [*STEPS, "command"])
def test_bug_in_a_step_of_the_reader_costs_no_other_link_and_is_loud_once(
    dsn: str,
    channel: str,
    admin: Admin,
    step: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    owner, name, costs_a_session = STEPS.get(step, (object, "", False))
    heard: list[tuple[Database, str]] = []
    idle: list[object] = []
    monkeypatch.setattr(_reader, "CHECK_WORKERS", 0.05)
    with Reactor(dsn, dsn, channels=[channel], timeout=0.05, backoff=(0.01, 0.05)) as reactor:
        reactor.any_channel.connect(
            lambda db, notification: heard.append((db, notification.payload)), weak=False
        )
        reactor.idle.connect(idle.append, weak=False)
        hurt, other = reactor.databases
        life = reactor._engine.life
        assert life is not None
        if step == "command":
            raised = threading.Event()

            def fail() -> None:
                raised.set()
                raise LookupError("a bug in a command")

            life.reader.command(fail)
        else:
            raised = once(monkeypatch, owner, name, other, life.link_of(other))
        if step == "ended":
            admin.kill(hurt.backend_id)
        elif step == "interest":
            reactor.listen(f"{channel}_more")
        admin.notify(channel, "early")
        wait_until(raised.is_set)
        reconnects = [1 if costs_a_session else 0, 0]
        wait_until(lambda: [one.reconnects for one in reactor.status().databases] == reconnects)
        wait_until(lambda: all(one.state == "listening" for one in reactor.status().databases))
        before = len(idle)
        admin.notify(channel, "late")
        wait_until(lambda: {(hurt, "late"), (other, "late")} <= set(heard))
        wait_until(lambda: len(idle) > before)

    (record,) = [one for one in caplog.records if one.levelno == logging.CRITICAL]
    assert "bug in pgsignals" in record.getMessage()
    assert record.exc_info
    assert record.exc_info[0] is LookupError


@pytest.mark.parametrize("where", ["give_back", "fetch_own", "stop"])
def test_bug_at_the_end_of_one_link_leaves_no_session_behind(
    dsn: str,
    channel: str,
    admin: Admin,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = len(admin.sessions())
    with psycopg.connect(dsn, autocommit=True) as connection:
        reactor = Reactor(Database.wrap(connection), dsn, channels=[channel])
        ended: list[BaseException | None] = []
        reactor.stopped.connect(lambda _, error: ended.append(error), weak=False)
        reactor.start()
        reactor.notify(channel, database=reactor.databases[1])  # to be fetched
        raised = once(monkeypatch, Link, where)
        assert reactor.stop()
        assert raised.is_set()
        wait_until(lambda: len(admin.sessions()) <= before + 1)  # its owner may have that one
        assert not reactor.running
    assert ended == [None]

    (record,) = [one for one in caplog.records if one.levelno == logging.CRITICAL]
    assert "bug in pgsignals" in record.getMessage()
    assert record.exc_info


@pytest.mark.parametrize("where", ["_turn", "_deliver", "finish"])
def test_end_of_the_reader_ends_the_reactor_loudly_and_lets_everybody_go(
    dsn: str,
    channel: str,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended: list[BaseException | None] = []
    reactor = Reactor(dsn, channels=[channel])
    reactor.stopped.connect(lambda _, error: ended.append(error), weak=False)
    reactor.start()

    def fail(*_: object) -> None:
        raise LookupError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(_reader.Reader, where, fail)
        if where in ("_turn", "_deliver"):
            # The end may come before the answer, or instead of it.
            with contextlib.suppress(ClosedError, ConnectionLostError):
                reactor.notify(channel)
        else:
            Background(reactor.stop).result()
        assert Background(reactor.join).result()
        assert Background(reactor.stop).result() in (True, False)

    assert not reactor.running
    assert len(ended) == 1
    assert "bug in pgsignals" in caplog.text
    with reactor:  # and again
        assert reactor.running


# What a server refuses for good


@pytest.fixture
def poor(postgres: Postgres, admin: Admin) -> Iterator[Callable[..., str]]:
    """Leads to a database of its own, as a role that may not call some functions there."""
    admin.execute("CREATE DATABASE hardened")
    admin.execute("CREATE ROLE poor LOGIN PASSWORD 'poor'")
    with psycopg.connect(postgres.dsn_for("hardened"), autocommit=True) as boss:

        def refuse(*functions: str) -> str:
            for function in functions:
                boss.execute(f"REVOKE EXECUTE ON FUNCTION pg_catalog.{function} FROM PUBLIC")
            return postgres.dsn_for("hardened", user="poor", password="poor")

        yield refuse
    admin.execute("DROP DATABASE hardened WITH (FORCE)")
    admin.execute("DROP ROLE poor")


@pytest.mark.parametrize(
    ("functions", "refused"),
    [
        (["pg_notification_queue_usage()"], "watching the queue"),
        (["pg_listening_channels()"], "seeing lost registrations"),
        (["sha256(bytea)"], "seeing lost registrations"),
        (["pg_is_in_recovery()"], "seeing a standby"),
        (["pg_backend_pid()"], "whether a pooler or a standby answers"),
        (
            [
                *("pg_notification_queue_usage()", "pg_listening_channels()", "sha256(bytea)"),
                *("pg_is_in_recovery()", "pg_backend_pid()", "pg_notify(text, text)"),
            ],
            "watching the queue",
        ),
    ],
)
def test_probing_goes_on_without_what_the_server_refuses(
    poor: Callable[..., str],
    channel: str,
    functions: list[str],
    refused: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dsn = poor(*functions)
    heard: list[str] = []
    with Reactor(dsn, channels=[channel], probe_interval=0.1, probe_timeout=5.0) as reactor:
        reactor.any_channel.connect(
            lambda db, notification: heard.append(notification.payload), weak=False
        )
        for _ in range(5):
            before = reactor.status().databases[0].probe_seconds
            wait_until(lambda: reactor.status().databases[0].probe_seconds != before)  # noqa: B023
        status = reactor.status().databases[0]
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(f"NOTIFY {channel}, 'heard'")
        wait_until(lambda: heard == ["heard"])

        assert (status.state, status.reconnects, status.gaps) == ("listening", 0, 0)
        assert refused in (status.last_error or "")
        assert "42501" in (status.last_error or "")
    assert caplog.text.count("continuing without what the server refuses") == 1


def test_what_one_session_was_refused_is_tried_again_on_the_next(
    poor: Callable[..., str], postgres: Postgres, admin: Admin, channel: str
) -> None:
    dsn = poor("pg_notification_queue_usage()")
    with Reactor(dsn, channels=[channel], probe_interval=0.1, probe_timeout=5.0) as reactor:
        refused = reactor.status().databases[0]
        assert "watching the queue" in str(refused.last_error)
        grant = "GRANT EXECUTE ON FUNCTION pg_catalog.pg_notification_queue_usage() TO PUBLIC"
        with psycopg.connect(postgres.dsn_for("hardened"), autocommit=True) as boss:
            boss.execute(grant)
        admin.execute("SELECT pg_catalog.pg_terminate_backend(%s)", refused.backend_id)

        wait_until(lambda: reactor.status().databases[0].queue_usage is not None)


def test_what_is_refused_while_it_runs_is_no_loss(
    poor: Callable[..., str], channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Reactor(poor(), channels=[channel], probe_interval=0.1, probe_timeout=5.0) as reactor:
        wait_until(lambda: reactor.status().databases[0].queue_usage is not None)
        poor("pg_notification_queue_usage()", "sha256(bytea)")
        wait_until(lambda: "continuing without" in caplog.text)
        for _ in range(3):
            before = reactor.status().databases[0].probe_seconds
            wait_until(lambda: reactor.status().databases[0].probe_seconds != before)  # noqa: B023

        assert reactor.status().databases[0].reconnects == 0


def test_setting_that_the_server_does_not_know_is_left_out(
    dsn: str, channel: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(_statements.GUARDS, "setting_of_the_future", "0")
    with psycopg.connect(dsn, autocommit=True) as connection:
        with Reactor(Database.wrap(connection), channels=[channel]):
            said = connection.execute("SHOW tcp_user_timeout").fetchone()

        assert said == ("30000",)
    assert "SET setting_of_the_future" in caplog.text
    assert "42704" in caplog.text
