"""Whose session it is: the reactor's, a worker's, or its owner's again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgsignals import (
    ClosedError,
    ConnectionLostError,
    ConnectionStateError,
    Database,
    Notification,
    Reactor,
)
from pgsignals._engine import reader as _reader
from pgsignals._wire import sessions as _control
from pgsignals.testing import Proxy
from tests.support.admin import Admin
from tests.support.arrivals import Connect, everything, payloads
from tests.support.waiting import PATIENCE, Background, wait_until


class InHandler:
    """Runs functions in a handler of a reactor."""

    def __init__(self, reactor: Reactor, channel: str) -> None:
        self._reactor, self._channel = reactor, channel
        self._todo: list[Callable[[Database], object]] = []
        self._results: list[tuple[object, BaseException | None]] = []
        reactor.on_channel(channel)(self._handle)

    def _handle(self, sender: Database, notification: Notification) -> None:
        try:
            self._results.append((self._todo.pop()(sender), None))
        except BaseException as error:
            self._results.append((None, error))

    def __call__(self, function: Callable[[Database], object], database: Any = None) -> Any:
        self._todo.append(function)
        self._reactor.notify(self._channel, database=database)
        wait_until(lambda: self._results)
        result, error = self._results.pop()
        if error is not None:
            raise error
        return result


@pytest.fixture
def wrapped(dsn: str) -> Iterator[Any]:
    """A connection of psycopg's, in autocommit."""
    with psycopg.connect(dsn, autocommit=True, application_name="wrapped") as connection:
        yield connection


def row(database: Database, sql: str) -> Any:
    (values,) = database.execute(sql).fetchall()
    return values[0]


# In a handler


def test_statement_in_a_handler_runs_on_the_workers_own_session(dsn: str, channel: str) -> None:
    with Reactor(dsn) as reactor:
        run = InHandler(reactor, channel)
        listening = reactor.status().databases[0].backend_id
        first = run(lambda db: row(db, "SELECT pg_backend_pid()"))
        second = run(lambda db: db.connection.info.backend_pid)

        assert first == second != listening
        assert reactor.databases[0].backend_id == listening


def test_handler_that_is_called_through_several_others_may_use_its_session(
    dsn: str, channel: str
) -> None:
    """What is between them is ours, and no call from the middle of our own code."""
    rows: list[object] = []
    with Reactor(dsn) as reactor:
        for _ in range(3):
            reactor.wrap_handlers(lambda call, db, **given: call(db, **given))

        @reactor.on_channel(channel)
        def select(db: Database, notification: Notification) -> None:
            rows.append(db.execute("SELECT 1").fetchone())

        reactor.notify(channel)
        wait_until(lambda: rows)

        assert reactor.status().databases[0].failed == 0
    assert rows == [(1,)]


def test_each_worker_has_a_session_of_its_own(dsn: str, new_channel: Callable[[], str]) -> None:
    names = [new_channel(), new_channel()]
    pids: list[int] = []
    meeting = threading.Barrier(2)
    with Reactor(dsn, workers=2) as reactor:

        @reactor.on_channel(*names)
        def handler(sender: Database, notification: Notification) -> None:
            meeting.wait(PATIENCE)
            pids.append(row(sender, "SELECT pg_backend_pid()"))

        reactor.notify(*names)
        wait_until(lambda: len(pids) == 2)

    assert len(set(pids)) == 2


def test_session_of_a_worker_is_opened_on_first_use_and_closed_at_the_end(
    dsn: str, channel: str, admin: Admin
) -> None:
    before = set(admin.sessions())
    with Reactor(dsn, probe_interval=None) as reactor:
        run = InHandler(reactor, channel)
        run(lambda db: None)
        quiet = len(set(admin.sessions()) - before)
        run(lambda db: row(db, "SELECT 1"))
        assert len(set(admin.sessions()) - before) == quiet + 1
    wait_until(lambda: not set(admin.sessions()) - before)


def test_session_of_a_worker_that_was_killed_is_opened_anew(
    dsn: str, channel: str, admin: Admin
) -> None:
    with Reactor(dsn) as reactor:
        run = InHandler(reactor, channel)
        first = run(lambda db: row(db, "SELECT pg_backend_pid()"))
        admin.kill(first)
        with contextlib.suppress(psycopg.OperationalError):  # the first one may meet the end
            run(lambda db: row(db, "SELECT 1"))

        assert run(lambda db: row(db, "SELECT pg_backend_pid()")) != first


@pytest.mark.parametrize("through_reactor", [False, True])
def test_notify_in_a_transaction_of_the_handler_belongs_to_it(
    dsn: str, channel: str, connect: Connect, admin: Admin, through_reactor: bool
) -> None:
    other = connect()
    other.listen("reply")

    with Reactor(dsn) as reactor:
        run = InHandler(reactor, channel)

        def commit(db: Database) -> int:
            notify = reactor.notify if through_reactor else db.notify
            with db.transaction():
                count = notify(reply="committed")
                assert everything(other, admin) == []
            return count

        def roll_back(db: Database) -> None:
            notify = reactor.notify if through_reactor else db.notify
            with db.transaction() as transaction:
                notify(reply="rolled back")
                raise psycopg.Rollback(transaction)

        assert run(commit) == 1
        run(roll_back)

        assert payloads(everything(other, admin)) == ["committed"]


def test_notify_outside_a_transaction_counts_at_once(
    dsn: str, channel: str, connect: Connect
) -> None:
    other = connect()
    other.listen("reply")

    def notify(db: Database) -> object:
        db.execute("SELECT 1")
        db.notify(reply="now")
        return next(other.wait(PATIENCE))

    with Reactor(dsn) as reactor:
        assert InHandler(reactor, channel)(notify)[1] == "now"


def test_error_of_a_statement_passes_unchanged(dsn: str, channel: str) -> None:
    with Reactor(dsn) as reactor:
        run = InHandler(reactor, channel)
        with pytest.raises(psycopg.errors.UndefinedTable):
            run(lambda db: db.execute("SELECT * FROM nowhere"))

        assert run(lambda db: row(db, "SELECT 1")) == 1


def test_listen_in_a_handler_goes_through_the_reactor(dsn: str, channel: str) -> None:
    def listen(db: Database) -> set[str]:
        db.listen("more", "even more")
        db.unlisten("even more")
        return set(db.listening_channels())

    with Reactor(dsn) as reactor:
        assert InHandler(reactor, channel)(listen) == {channel, "more"}
        assert set(reactor.status().databases[0].channels) == {channel, "more"}


@pytest.mark.parametrize(
    "use",
    [
        lambda db: db.wait(),
        lambda db: db.drain(),
        lambda db: db.fileno(),
        lambda db: db.open(),
        lambda db: db.close(),
    ],
    ids=["wait", "drain", "fileno", "open", "close"],
)
@pytest.mark.parametrize("in_handler", [False, True])
def test_listening_session_is_nobody_elses(
    dsn: str, channel: str, use: Callable[[Database], object], in_handler: bool
) -> None:
    with Reactor(dsn) as reactor:
        run = InHandler(reactor, channel)
        with pytest.raises(ConnectionStateError, match="Database of your own"):
            run(use) if in_handler else use(reactor.databases[0])

        assert reactor.running
        assert run(lambda db: 5) == 5


@pytest.mark.parametrize(
    "use",
    [lambda db: db.execute("SELECT 1"), lambda db: db.transaction(), lambda db: db.connection],
    ids=["execute", "transaction", "connection"],
)
def test_statement_from_another_thread_is_refused_with_what_to_do(
    dsn: str, use: Callable[[Database], object]
) -> None:
    with (
        Reactor(dsn) as reactor,
        pytest.raises(ConnectionStateError, match="Database of your own"),
    ):
        use(reactor.databases[0])


def test_worker_of_one_reactor_is_a_stranger_to_another(dsn: str, channel: str) -> None:
    with (
        Reactor(dsn) as reactor,
        Reactor(dsn) as other,
        pytest.raises(ConnectionStateError, match="Database of your own"),
    ):
        InHandler(reactor, channel)(lambda _: other.databases[0].execute("SELECT 1"))


def test_any_thread_may_listen_and_notify_through_the_database(dsn: str, channel: str) -> None:
    heard: list[str] = []
    with Reactor(dsn) as reactor:
        database = reactor.databases[0]
        reactor.any_channel.connect(
            lambda _, notification: heard.append(notification.payload), weak=False
        )
        Background(database.listen, channel).result()
        assert set(database.listening_channels()) == {channel}
        assert Background(database.notify, (channel, "1")).result() == 1
        wait_until(lambda: heard)
        database.unlisten(channel)

        assert list(database.listening_channels()) == []
        assert not database.closed


# The connection that notifies


def test_silent_server_ends_notify_also_when_nothing_else_is_due(
    proxied: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_reader, "CHECK_WORKERS", 3600.0)
    monkeypatch.setattr(_control, "KEPT", 3600.0)
    with Reactor(proxied, probe_interval=3600.0, probe_timeout=1.0) as reactor:
        reactor.notify(elsewhere="1")
        reactor.listen("more")  # the start is over, and the reader has seen what is due
        proxy.freeze("to_server")
        notifying = Background(reactor.notify, elsewhere="2")
        with pytest.raises(ConnectionLostError):
            notifying.result()
        assert reactor.status().databases[0].state == "listening"
        proxy.thaw("to_server")


# Given back


def test_database_that_was_closed_is_given_back_closed(dsn: str) -> None:
    database = Database(dsn)
    with Reactor(database) as reactor:
        backend = database.backend_id
        assert reactor.running
    assert database.closed
    assert database.backend_id == backend
    with pytest.raises(ClosedError):
        database.execute("SELECT 1")
    with database.open():
        assert row(database, "SELECT 1") == 1


def test_open_database_is_given_back_open_with_its_own_listens(
    connect: Connect, new_channel: Callable[[], str], admin: Admin
) -> None:
    mine, theirs, handled = new_channel(), new_channel(), new_channel()
    database = connect()
    database.listen(mine)
    backend = database.backend_id
    with Reactor(database, channels=[theirs]) as reactor:
        reactor.on_channel(handled)(lambda *_, **__: None)
        assert database.backend_id == backend
        wait_until(lambda: set(reactor.status().databases[0].channels) == {mine, theirs, handled})
    assert not database.closed
    assert database.backend_id == backend
    assert set(database.listening_channels()) == {mine}
    admin.notify(theirs, "1")
    admin.notify(mine, "2")

    assert payloads(everything(database, admin)) == ["2"]


def test_settings_of_a_lent_session_are_put_back(connect: Connect) -> None:
    database = connect()
    names = ("tcp_keepalives_idle", "tcp_user_timeout", "idle_session_timeout")
    before = [row(database, f"SHOW {name}") for name in names]
    with Reactor(database):
        pass

    assert [row(database, f"SHOW {name}") for name in names] == before


def test_what_had_arrived_before_the_start_stays_with_the_database(
    listener: Database, channel: str, admin: Admin
) -> None:
    admin.notify(channel, "1")
    listener.execute("SELECT 1")  # along with which it arrives
    with Reactor(listener):
        pass
    admin.notify(channel, "2")

    assert payloads(everything(listener, admin)) == ["1", "2"]


def test_lent_database_that_was_lost_is_given_back_open(
    connect: Connect, channel: str, admin: Admin
) -> None:
    database = connect()
    database.listen(channel)
    with Reactor(database, backoff=(0.01, 0.05)) as reactor:
        first = database.backend_id
        admin.kill(first)
        wait_until(lambda: reactor.status().databases[0].reconnects == 1)
        assert set(reactor.status().databases[0].channels) == {channel}

    assert not database.closed
    assert database.backend_id != first
    assert set(database.listening_channels()) == {channel}


def test_lent_database_serves_many_lives(connect: Connect, channel: str) -> None:
    database = connect()
    database.listen(channel)
    for _ in range(5):
        with Reactor(database, channels=["other"], probe_interval=None):
            pass
        assert set(database.listening_channels()) == {channel}


def test_lent_database_keeps_its_listens_when_a_start_is_stopped(
    proxied: str, proxy: Proxy, connect: Connect, channel: str
) -> None:
    database = connect(proxied)
    database.listen(channel)
    reactor = Reactor(database, channels=[channel, "other"])
    sent = proxy.forwarded("to_server")
    proxy.freeze("to_client")
    starting = Background(reactor.start)
    wait_until(lambda: proxy.forwarded("to_server") > sent)
    stopping = Background(reactor.stop)
    assert proxy.held("to_client") >= 0
    proxy.thaw()
    stopping.result()
    with contextlib.suppress(ClosedError):
        starting.result()

    assert set(database.listening_channels()) == {channel}


def test_wait_goes_on_after_the_reactor(listener: Database, channel: str, admin: Admin) -> None:
    with Reactor(listener):
        pass
    waiting = Background(lambda: next(listener.wait(PATIENCE)))
    admin.notify(channel, "1")
    arrived = waiting.result()

    assert arrived is not None
    assert arrived.payload == "1"


# Wrapped


def test_wrapped_connection_is_given_back_as_it_was(
    wrapped: Any,
    channel: str,
    new_channel: Callable[[], str],
) -> None:
    own = new_channel()
    wrapped.execute(f"LISTEN {own}")
    database = Database.wrap(wrapped)
    with Reactor(database, channels=[channel]) as reactor:
        assert set(reactor.status().databases[0].channels) == {channel, own}
    listening = wrapped.execute("SELECT pg_listening_channels()").fetchall()

    assert listening == [(own,)]


def test_wrapped_one_that_is_lost_stops_a_reactor_which_has_no_other(
    wrapped: Any,
    admin: Admin,
) -> None:
    reactor = Reactor(Database.wrap(wrapped))
    ended: list[BaseException | None] = []
    lost: list[BaseException] = []
    reactor.stopped.connect(lambda _, error: ended.append(error), weak=False)
    reactor.lost.connect(lambda _, reason, error: lost.append(error), weak=False)
    reactor.start()
    admin.kill(wrapped.info.backend_pid)

    assert reactor.join(PATIENCE)
    assert not reactor.running
    (error,) = ended
    assert isinstance(error, (ConnectionLostError, ConnectionStateError))
    assert len(lost) == 1
    assert reactor.stop()
    with pytest.raises((ConnectionStateError, ClosedError)):
        reactor.start()


def test_run_raises_what_ended_it(
    wrapped: Any,
    admin: Admin,
) -> None:
    reactor = Reactor(Database.wrap(wrapped))
    running = Background(reactor.run)
    wait_until(lambda: reactor.running)
    admin.kill(wrapped.info.backend_pid)

    with pytest.raises((ConnectionLostError, ConnectionStateError)):
        running.result()


def test_wrapped_one_that_is_lost_does_not_end_the_others(
    wrapped: Any,
    dsn: str,
    channel: str,
    admin: Admin,
) -> None:
    heard: list[str] = []
    with Reactor(Database.wrap(wrapped), dsn, channels=[channel]) as reactor:
        reactor.any_channel.connect(
            lambda _, notification: heard.append(notification.payload),
            sender=reactor.databases[1],
            weak=False,
        )
        admin.kill(wrapped.info.backend_pid)
        wait_until(lambda: reactor.status().databases[0].state == "stopped")
        reactor.notify((channel, "1"), database=reactor.databases[1])
        wait_until(lambda: heard)

        assert reactor.running


def test_statement_in_a_handler_of_a_wrapped_one_has_a_session_of_its_own(
    wrapped: Any,
    channel: str,
) -> None:
    with Reactor(Database.wrap(wrapped)) as reactor:
        run = InHandler(reactor, channel)

        assert run(lambda db: row(db, "SELECT pg_backend_pid()")) != wrapped.info.backend_pid


# connect=


def test_connect_is_called_for_every_session(dsn: str, channel: str, admin: Admin) -> None:
    made: list[int] = []

    def connect() -> Any:
        connection = psycopg.connect(dsn, autocommit=True, application_name="rotating")
        made.append(connection.info.backend_pid)
        return connection

    with Reactor(Database(connect=connect), backoff=(0.01, 0.05)) as reactor:
        first = reactor.databases[0].backend_id
        admin.kill(first)
        wait_until(lambda: reactor.status().databases[0].reconnects == 1)
        run = InHandler(reactor, channel)
        mine = run(lambda db: row(db, "SELECT pg_backend_pid()"))

        assert {first, reactor.databases[0].backend_id, mine} <= set(made)


class Kept:
    """A ``connect=`` whose caller keeps the connections."""

    def __init__(self, dsn: str) -> None:
        self.connections: list[Any] = []
        self._dsn = dsn

    def __call__(self) -> Any:
        self.connections.append(psycopg.connect(self._dsn, autocommit=True))
        return self.connections[-1]


@pytest.fixture
def kept(dsn: str) -> Kept:
    return Kept(dsn)


@contextlib.contextmanager
def hearing(kept: Kept, channel: str) -> Iterator[list[str]]:
    """What a reactor without probes hears on such a connection."""
    heard: list[str] = []
    with Reactor(Database(connect=kept), channels=[channel], probe_interval=None) as reactor:
        reactor.any_channel.connect(
            lambda _, notification: heard.append(notification.payload), weak=False
        )
        yield heard


def test_statements_of_whoever_has_kept_the_connection_cost_no_notification(
    kept: Kept, channel: str, admin: Admin
) -> None:
    with hearing(kept, channel) as heard:
        (listening,) = kept.connections
        for number in range(100):
            admin.notify(channel, str(number))
            listening.execute("SELECT 1")
        wait_until(lambda: len(heard) == 100)

    assert heard == [str(number) for number in range(100)]


def test_encoding_that_whoever_has_kept_the_connection_sets_is_followed(
    kept: Kept, channel: str, admin: Admin
) -> None:
    with hearing(kept, channel) as heard:
        (listening,) = kept.connections
        admin.notify(channel, "é")
        wait_until(lambda: len(heard) == 1)
        listening.execute("SET client_encoding TO LATIN1")
        admin.notify(channel, "é")
        wait_until(lambda: len(heard) == 2)

    assert heard == ["é", "é"]


def test_kept_connection_that_is_closed_is_a_loss_also_without_probes(
    kept: Kept, channel: str
) -> None:
    with Reactor(Database(connect=kept), channels=[channel], probe_interval=None) as reactor:
        kept.connections[0].close()
        wait_until(lambda: reactor.status().databases[0].reconnects == 1)


def test_connect_that_fails_for_a_while_is_tried_again(dsn: str, admin: Admin) -> None:
    failures = [OSError("no route"), LookupError("no credentials"), RuntimeError("no")]
    calls: list[object] = []

    def connect() -> Any:
        calls.append(True)
        if len(calls) > 2 and failures:  # the first ones are those of the start
            raise failures.pop()
        return psycopg.connect(dsn, autocommit=True)

    with Reactor(Database(connect=connect), backoff=(0.01, 0.05)) as reactor:
        admin.kill(reactor.databases[0].backend_id)
        wait_until(lambda: reactor.status().databases[0].reconnects == 1)

    assert not failures


def test_session_of_a_worker_is_renewed_after_a_loss(dsn: str, channel: str, admin: Admin) -> None:
    """What ended the listening session may have ended it, too, and without a word."""
    with Reactor(dsn, backoff=(0.01, 0.05)) as reactor:
        run = InHandler(reactor, channel)
        first = run(lambda db: row(db, "SELECT pg_backend_pid()"))
        admin.kill(reactor.databases[0].backend_id)
        wait_until(lambda: reactor.status().databases[0].reconnects == 1)
        second = run(lambda db: row(db, "SELECT pg_backend_pid()"))

        assert second != first
        assert run(lambda db: row(db, "SELECT pg_backend_pid()")) == second


def test_session_of_a_worker_is_not_renewed_in_the_midst_of_a_transaction(
    dsn: str, channel: str, admin: Admin
) -> None:
    def lose_within(db: Database) -> bool:
        with db.transaction():
            first = row(db, "SELECT pg_backend_pid()")
            admin.kill(reactor.databases[0].backend_id)
            wait_until(lambda: reactor.status().databases[0].reconnects == 1)
            return bool(row(db, "SELECT pg_backend_pid()") == first)

    with Reactor(dsn, backoff=(0.01, 0.05)) as reactor:
        assert InHandler(reactor, channel)(lose_within)
