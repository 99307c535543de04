"""File numbers: none is used that is not ours at that instant, and none is kept without need."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgsignals import ClosedError, Database, Error, NotificationManager, Reactor
from pgsignals._wire.session import Session
from tests.support.admin import Admin
from tests.support.arrivals import Connect
from tests.support.waiting import AT_ONCE, Background, wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class Stranger:
    """A pair of sockets of somebody else, one of which has taken *number*."""

    def __init__(self, number: int) -> None:
        self._all: list[socket.socket] = []
        while not any(one.fileno() == number for one in self._all):
            assert len(self._all) < 200, "the number is still taken"
            self._all += socket.socketpair()
        self.number = number

    def works(self) -> bool:
        """Whether nobody has shut it down or closed it."""
        for one, other in zip(self._all[::2], self._all[1::2], strict=True):
            for end, far in ((one, other), (other, one)):
                try:
                    end.send(b"x")
                    if far.recv(1) != b"x":
                        return False
                except OSError:
                    return False
        return True

    def close(self) -> None:
        for one in self._all:
            with contextlib.suppress(OSError):
                one.close()


@contextlib.contextmanager
def stranger_with(number: int) -> Iterator[Stranger]:
    stranger = Stranger(number)
    try:
        yield stranger
    finally:
        stranger.close()


def own(dsn: str) -> Database:
    return Database(dsn).open()


def from_connect(dsn: str) -> Database:
    return Database(connect=lambda: psycopg.connect(dsn, autocommit=True)).open()


def wrapped(dsn: str) -> Database:
    return Database.wrap(psycopg.connect(dsn, autocommit=True))


def handed_out(dsn: str) -> Database:
    database = Database(dsn).open()
    assert database.connection
    return database


KINDS = {"own": own, "connect=": from_connect, "wrapped": wrapped, "handed out": handed_out}
each_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())


def let_libpq_close(database: Database, admin: Admin) -> int:
    """The number that the socket had, which libpq has closed and we have not noticed."""
    session = database._custody.session
    assert session is not None
    number = session.pgconn.socket
    admin.kill(session.backend_id)
    with contextlib.suppress(psycopg.Error):
        while True:
            session.connection.execute("SELECT 1")
    assert not session.ended
    return number


def shutdown(database: Database) -> None:
    assert database._custody.session is not None
    database._custody.session.shutdown()


def in_libpq(session: Session) -> bool:
    """Whether libpq still has memory for it."""
    pgconn: Any = session.pgconn
    return bool(pgconn.pgconn_ptr)


USES: dict[str, Callable[[Database], object]] = {
    "shutdown": shutdown,
    "close": lambda database: database.close(),
    "drain": lambda database: database.drain(),
    "wait": lambda database: list(database.wait(0)),
    "fileno": lambda database: database.fileno(),
    "dropped": lambda database: None,
}


@each_kind
@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_number_that_libpq_has_given_back_is_a_strangers(
    dsn: str, admin: Admin, make: Callable[[str], Database], use: Callable[[Database], object]
) -> None:
    database = make(dsn)
    number = let_libpq_close(database, admin)
    with stranger_with(number) as stranger:
        with contextlib.suppress(Error):
            use(database)
        assert stranger.works()
        database.close()
        del database
        gc.collect()
        assert stranger.works()


@each_kind
def test_child_closes_no_strangers_number(
    dsn: str, admin: Admin, make: Callable[[str], Database]
) -> None:
    database = make(dsn)
    number = let_libpq_close(database, admin)
    with stranger_with(number) as stranger:
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            database.close()
            os._exit(0 if stranger.works() else 3)
        assert os.waitpid(child, 0)[1] == 0
    database.close()


@each_kind
def test_child_that_has_closed_all_numbers_closes_none_of_its_new_ones(
    dsn: str, make: Callable[[str], Database]
) -> None:
    """As a daemon does: it closes what it has inherited, and opens files of its own."""
    database = make(dsn)
    number = database.fileno()
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        os.closerange(3, 1000)
        stranger = Stranger(number)
        database.close()
        del database
        gc.collect()
        os._exit(0 if stranger.works() else 3)
    assert os.waitpid(child, 0)[1] == 0
    assert database.execute("SELECT 1").fetchone() == (1,)
    connection = database.connection
    database.close()
    connection.close()


@each_kind
def test_reader_gives_up_a_session_that_libpq_has_closed(
    dsn: str, make: Callable[[str], Database]
) -> None:
    database = make(dsn)
    strangers: list[Stranger] = []
    with Reactor(database, probe_interval=None, backoff=(0.01, 0.02)) as reactor:
        assert reactor._engine.life is not None
        reader, link = reactor._engine.life.reader, reactor._engine.life.link_of(database)

        def fail() -> None:
            assert link.session is not None
            number = link.session.pgconn.socket
            link.session.pgconn.finish()  # libpq closes it whenever it finds it broken
            strangers.append(Stranger(number))
            link.upkeep.fail("silent", "on purpose")
            reader.read_soon(link)

        reader.command(fail)
        wait_until(lambda: database._access.losses == 1)
        assert strangers[0].works()
    strangers[0].close()
    database.close()


def test_closed_database_has_no_number(connect: Connect, admin: Admin) -> None:
    database = connect()
    let_libpq_close(database, admin)

    with pytest.raises(ClosedError):
        database.fileno()
    assert database._custody.session is not None
    with pytest.raises(ClosedError, match="no longer has a socket"):
        database._custody.session.fileno()


def numbers() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_database_costs_one_number(dsn: str) -> None:
    """A manager may have thousands of them."""
    gc.collect()
    before = numbers()
    databases = [Database(dsn).open() for _ in range(20)]
    manager = NotificationManager(*databases, timeout=0)
    for database in databases:
        database.listen("a")
        database.notify("a")
    assert any(manager)

    assert numbers() - before <= len(databases) + 3  # the manager's own
    for database in databases:
        database.close()
    manager.close()
    assert numbers() == before


@each_kind
def test_every_number_is_given_back(
    dsn: str, admin: Admin, make: Callable[[str], Database]
) -> None:
    gc.collect()
    before = numbers()
    for ending in ("close", "loss", "drop"):
        database = make(dsn)
        database.listen("a")
        connection = database._custody.session and database._custody.session.connection
        if ending == "loss":
            let_libpq_close(database, admin)
            list(database.wait(0))
        if ending != "drop":
            database.close()
        if connection and not connection.closed:
            connection.close()
        del database, connection
    gc.collect()

    assert numbers() == before


# A close that does not get the connection


@each_kind
def test_close_never_enters_libpq_while_another_thread_may_be_inside(
    dsn: str, admin: Admin, make: Callable[[str], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has the lock and does not let go, such as a suspended generator of psycopg's."""
    if make is wrapped:
        pytest.skip("its owner closes it")
    database = make(dsn)
    session = database._custody.session
    assert session is not None
    finished: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(type(session.connection), "close", lambda self: finished.append(self))
        with session.connection.lock:
            begun = time.monotonic()
            Background(database.close).result()
            took = time.monotonic() - begun
            assert finished == []
            assert in_libpq(session), "libpq's memory was given back under its user"
    backend = session.backend_id

    assert took < AT_ONCE
    assert database.closed
    if session.shared:  # it had a duplicate to shut down; else nobody could have had the lock
        wait_until(lambda: backend not in admin.sessions(), why="the session goes on")
    session.close()


def test_statement_that_a_close_interrupts_closes_when_it_comes_out(
    connect: Connect, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = connect()
    session, backend = database._custody.session, database.backend_id
    assert session is not None
    sleeping = Background(database.notify, "x")
    sleeping.result()
    gate, inside = threading.Event(), threading.Event()
    wait = psycopg.Connection.wait

    def hold(connection: Any, *args: Any, **kwargs: Any) -> Any:
        inside.set()
        gate.wait(20)
        return wait(connection, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(psycopg.Connection, "wait", hold)
        stuck = Background(database.notify, "x")
        wait_until(inside.is_set)
        Background(database.close).result()
        assert database.closed
        assert in_libpq(session)
        gate.set()
        with pytest.raises(Error):
            stuck.result()

    wait_until(lambda: not in_libpq(session), why="libpq's memory was kept")
    wait_until(lambda: backend not in admin.sessions())


def test_shutdown_reaches_a_statement_that_has_just_begun(dsn: str, admin: Admin) -> None:
    for _ in range(30):
        session = Session(psycopg.connect(dsn, autocommit=True), shared=False)
        waiting = Background(session.query, "SELECT pg_sleep(30)")
        wait_until(lambda: session.in_use)  # noqa: B023 - called at once
        session.shutdown()
        with pytest.raises(Error):
            waiting.result()
        admin.kill(session.backend_id)  # it would notice after its sleep
        session.close()


# The selector


def test_manager_does_not_spin_over_what_a_forked_child_keeps_open(
    connect: Connect, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """epoll goes on about a socket that we have closed while somebody else has it open."""
    databases = [connect() for _ in range(3)]
    manager = NotificationManager(*databases, timeout=0.5)
    assert next(manager) is None
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    try:
        admin.kill(databases[0].backend_id)
        wait_until(lambda: next(manager) is None and manager.garbage == {databases[0]})
        turns = 0
        collect = manager._poller.collect

        def count(seconds: float | None) -> None:
            nonlocal turns
            turns += 1
            collect(seconds)

        monkeypatch.setattr(manager._poller, "collect", count)
        assert next(manager) is None
        assert turns < 20
        databases[1].listen("a")
        databases[1].notify(("a", "1"))
        assert next(manager) == (databases[1], [("a", "1", databases[1].backend_id)])
        databases[2].close()
        assert next(manager) is None
        assert manager.connections == {databases[1]}
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(child, 0)
        manager.close()
