"""``Database``: opening, LISTEN and NOTIFY, and the end of a session."""

from __future__ import annotations

import enum
import socket
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pgsignals
from pgsignals import Database
from pgsignals.embedded import Postgres
from pgsignals.errors import (
    ChannelNameError,
    ClosedError,
    ConnectError,
    ConnectionLostError,
    ConnectionStateError,
    Error,
    PayloadError,
)
from pgsignals.testing import Proxy, kill_listener
from tests.support.admin import Admin
from tests.support.arrivals import Connect, everything, payloads, take
from tests.support.protocol import messages
from tests.support.uses import SESSION_USES, USES, Use, each_of
from tests.support.values import (
    BAD_ITEMS,
    BAD_NAMES,
    BAD_NAMES_EVERYWHERE,
    BAD_PAYLOADS,
    GOOD_NAMES,
    GOOD_PAYLOADS,
    NO_TEXT,
)
from tests.support.waiting import Background, hangs_fail, is_readable, wait_until

pytestmark = hangs_fail


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """*error* and all that is chained to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def roll_back() -> None:
    """End the transaction block that this is called in."""
    raise psycopg.Rollback


# Opening


@each_of(USES)
def test_database_that_was_not_opened_answers_with_closed_error(dsn: str, use: Use) -> None:
    database = Database(dsn)

    assert database.closed
    with pytest.raises(ClosedError, match="open"):
        use(database)


def test_making_a_database_connects_to_nothing() -> None:
    database = Database("host=127.0.0.1 port=1")

    assert database.closed
    database.close()
    assert database.closed


def test_open_returns_the_database(dsn: str) -> None:
    database = Database(dsn)

    assert database.open() is database
    assert not database.closed
    database.close()
    assert database.closed


def test_with_opens_and_closes(dsn: str) -> None:
    with Database(dsn) as database:
        assert not database.closed
        assert database.execute("SELECT 1").fetchone() == (1,)

    assert database.closed


def test_with_closes_after_an_exception(dsn: str) -> None:
    database = Database(dsn)

    with pytest.raises(ZeroDivisionError), database:
        _ = 1 / 0

    assert database.closed


def test_connect_returns_an_open_database(dsn: str) -> None:
    with pgsignals.connect(dsn) as database:
        assert type(database) is Database
        assert not database.closed


def test_opening_an_open_database_does_nothing(connect: Connect) -> None:
    database = connect()
    backend = database.backend_id
    database.listen("x")

    assert database.open() is database
    with database:
        assert database.backend_id == backend
        assert set(database.listening_channels()) == {"x"}


@pytest.mark.parametrize("ending", ["close", "loss"])
def test_opening_again_gives_a_new_session_that_listens_to_nothing(
    connect: Connect, channel: str, ending: str
) -> None:
    database = connect()
    database.listen(channel)
    first = database.backend_id
    if ending == "close":
        database.close()
    else:
        kill_listener(database)
        assert list(database.wait()) == []
    assert database.closed

    assert not database.open().closed
    assert database.backend_id != first
    assert list(database.listening_channels()) == []
    database.listen(channel)
    database.notify(channel)
    assert take(database, 1) == [(channel, "", database.backend_id)]


def test_session_is_in_autocommit_and_outside_a_transaction(connect: Connect) -> None:
    database = connect()
    database.execute("SELECT 1")

    assert database.connection.autocommit
    assert database.connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_keywords_win_over_the_conninfo(dsn: str, connect: Connect) -> None:
    database = connect(dsn, application_name="mine", dbname="template1")

    assert database.execute("SHOW application_name").fetchone() == ("mine",)
    assert database.connection.info.dbname == "template1"


def test_keywords_alone_will_do(postgres: Postgres, connect: Connect) -> None:
    database = connect(
        "",
        host="127.0.0.1",
        port=postgres.port,
        user="postgres",
        password=postgres.password,
        dbname="postgres",
    )

    assert database.execute("SELECT 1").fetchone() == (1,)


def test_uri_will_do(postgres: Postgres, connect: Connect) -> None:
    password, port = postgres.password, postgres.port
    database = connect(f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres")

    assert database.execute("SELECT 1").fetchone() == (1,)


def test_variables_of_libpq_count_when_nothing_is_given(
    postgres: Postgres, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPORT", str(postgres.port))
    monkeypatch.setenv("PGUSER", "postgres")
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    database = connect("")

    assert database.execute("SELECT current_database()").fetchone() == ("postgres",)
    assert database.name == f"127.0.0.1:{postgres.port}/postgres"


def test_session_is_called_pgsignals_unless_it_has_a_name(connect: Connect, dsn: str) -> None:
    assert connect().execute("SHOW application_name").fetchone() == ("pgsignals",)
    named = connect(f"{dsn} application_name=shop")
    assert named.execute("SHOW application_name").fetchone() == ("shop",)


def test_own_rows_and_cursors_do_not_disturb(connect: Connect, channel: str) -> None:
    class Cursor(psycopg.Cursor[Any]):
        pass

    database = connect(row_factory=psycopg.rows.dict_row, cursor_factory=Cursor)
    database.listen(channel)

    assert database.notify(channel, channel) == 2
    assert list(database.listening_channels()) == [channel]
    cursor = database.execute("SELECT 1 AS one")
    assert isinstance(cursor, Cursor)
    assert cursor.fetchone() == {"one": 1}


def test_autocommit_cannot_be_chosen(dsn: str) -> None:
    for value in (True, False):
        with pytest.raises(TypeError, match="autocommit"):
            Database(dsn, autocommit=value)


@pytest.mark.parametrize("conninfo", [None, 5, b"dbname=x", ["dbname=x"]])
def test_conninfo_that_is_no_text_is_a_type_error(conninfo: object) -> None:
    with pytest.raises(TypeError, match="conninfo"):
        Database(conninfo)  # type: ignore[arg-type] # the test's point


def test_name_tells_host_port_and_database(postgres: Postgres, dsn: str) -> None:
    name = f"127.0.0.1:{postgres.port}/postgres"
    database = Database(dsn)

    assert database.name == name
    with database:
        assert database.name == name
        assert name in repr(database)
        assert "open" in repr(database)
    assert database.name == name
    assert "closed" in repr(database)
    assert postgres.password not in repr(database)


def test_databases_are_compared_by_identity(connect: Connect) -> None:
    first, second = connect(), connect()

    assert len({first, second, first}) == 2


# Opening: what cannot be opened


def test_connection_that_is_refused_is_a_connect_error() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # and nobody listens
        port = reserved.getsockname()[1]
        with pytest.raises(ConnectError, match="refused") as caught:
            pgsignals.connect(host="127.0.0.1", port=port, user="app", password="s3cret")

    message = str(caught.value)
    assert str(port) in message
    assert "\n" not in message


def test_unknown_database_is_a_connect_error_that_names_it(postgres: Postgres) -> None:
    with pytest.raises(ConnectError, match="nowhere") as caught:
        pgsignals.connect(postgres.dsn_for("nowhere"))

    assert "\n" not in str(caught.value)


def test_wrong_password_is_a_connect_error_that_does_not_tell_it(postgres: Postgres) -> None:
    with pytest.raises(ConnectError, match="password authentication") as caught:
        pgsignals.connect(postgres.dsn_for(password="s3cret"))

    assert all("s3cret" not in str(error) for error in chain(caught.value))


@pytest.mark.parametrize(
    "conninfo",
    [
        "passwrd=s3cret",
        "host=db s3cret",
        "postgresql://app:s3cret@[::1/shop",
        "postgresql://app:s3cret@db:port/shop",
        "password='s3cret",
        "password=s3cret\0",
        "password=s3cret\ud800",
    ],
)
def test_unreadable_conninfo_is_a_connect_error_that_does_not_echo_it(conninfo: str) -> None:
    with pytest.raises(ConnectError) as caught:
        pgsignals.connect(conninfo)

    assert all("s3cret" not in f"{error!r}{error}" for error in chain(caught.value))


def test_unknown_keyword_is_a_connect_error_that_does_not_echo_its_value(dsn: str) -> None:
    with pytest.raises(ConnectError) as caught:
        pgsignals.connect(dsn, passwrd="s3cret")

    assert all("s3cret" not in f"{error!r}{error}" for error in chain(caught.value))


def test_server_that_does_not_answer_is_a_connect_error(proxy: Proxy, proxied: str) -> None:
    proxy.freeze()

    with pytest.raises(ConnectError, match="timeout"):
        pgsignals.connect(proxied, connect_timeout=2)


def test_server_that_hangs_up_is_a_connect_error(proxy: Proxy, proxied: str) -> None:
    proxy.cut_after(5, "to_client")

    with pytest.raises(ConnectError):
        pgsignals.connect(proxied)


def test_database_whose_opening_failed_can_be_opened_later(proxy: Proxy, proxied: str) -> None:
    database = Database(proxied)
    proxy.refuse()
    with pytest.raises(ConnectError):
        database.open()
    assert database.closed
    proxy.accept()

    with database.open():
        assert database.execute("SELECT 1").fetchone() == (1,)


# Opening: connect=


def test_connect_callable_gives_each_session(dsn: str) -> None:
    calls = []

    def fresh() -> psycopg.Connection[Any]:
        calls.append(threading.current_thread())
        return psycopg.connect(dsn, autocommit=True)

    database = Database(connect=fresh)
    assert calls == []

    for count in (1, 2):
        with database:
            assert len(calls) == count
            database.listen("x")
            assert database.notify("x") == 1
            assert take(database, 1) == [("x", "", database.backend_id)]


def test_session_of_a_connect_callable_is_closed_like_our_own(dsn: str) -> None:
    connection = psycopg.connect(dsn, autocommit=True)
    database = Database(connect=lambda: connection).open()

    database.close()

    assert connection.closed


def test_connect_callable_excludes_a_conninfo(dsn: str) -> None:
    with pytest.raises(TypeError, match="connect"):
        Database(dsn, connect=lambda: None)
    with pytest.raises(TypeError, match="connect"):
        Database(connect=lambda: None, dbname="x")


def test_connect_that_cannot_be_called_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="callable"):
        Database(connect="dbname=x")  # type: ignore[arg-type] # the test's point


@pytest.mark.parametrize("result", [None, "dbname=x", 5])
def test_connect_callable_that_returns_something_else_is_a_type_error(result: object) -> None:
    with pytest.raises(TypeError, match=type(result).__name__):
        Database(connect=lambda: result).open()


def test_operational_error_of_a_connect_callable_becomes_a_connect_error() -> None:
    def fail() -> None:
        raise psycopg.OperationalError("no ticket for the vault:\n  password=s3cret refused")

    with pytest.raises(ConnectError, match="no ticket") as caught:
        Database(connect=fail).open()

    assert "\n" not in str(caught.value)
    assert [*chain(caught.value)] == [caught.value]


def test_network_error_of_a_connect_callable_becomes_a_connect_error() -> None:
    def fail() -> None:
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.raises(ConnectError, match="not known"):
        Database(connect=fail).open()


def test_other_errors_of_a_connect_callable_pass() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Database(connect=fail).open()


def test_connect_callable_must_return_a_connection_in_autocommit(dsn: str) -> None:
    given: list[psycopg.Connection[Any]] = []

    def fresh() -> psycopg.Connection[Any]:
        given.append(psycopg.connect(dsn))
        return given[-1]

    with pytest.raises(ConnectionStateError, match="autocommit"):
        Database(connect=fresh).open()

    assert given[0].closed


def test_connect_callable_must_return_a_connection_outside_a_transaction(dsn: str) -> None:
    def fresh() -> psycopg.Connection[Any]:
        connection = psycopg.connect(dsn, autocommit=True)
        connection.execute("BEGIN")
        return connection

    with pytest.raises(ConnectionStateError, match="transaction"):
        Database(connect=fresh).open()


# Opening: wrap


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of somebody else."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


def test_wrapped_connection_does_all_that_an_own_one_does(
    connection: psycopg.Connection[Any], channel: str
) -> None:
    database = Database.wrap(connection)

    assert database.connection is connection
    assert database.open() is database
    assert database.backend_id == connection.info.backend_pid
    database.listen(channel)
    assert set(database.listening_channels()) == {channel}
    assert database.notify((channel, "1")) == 1
    assert take(database, 1) == [(channel, "1", database.backend_id)]


def test_closing_a_wrapped_database_leaves_the_connection_without_our_listens(
    connection: psycopg.Connection[Any],
) -> None:
    connection.execute("LISTEN theirs")
    database = Database.wrap(connection)
    database.listen("ours", "also")
    database.unlisten("also")

    database.close()
    database.close()

    assert database.closed
    assert not connection.closed
    assert connection.execute("SELECT pg_listening_channels()").fetchall() == [("theirs",)]


def test_owner_hears_notifications_again_after_the_close(
    connection: psycopg.Connection[Any], channel: str
) -> None:
    heard: list[str] = []
    connection.add_notify_handler(lambda notify: heard.append(notify.payload))
    database = Database.wrap(connection)
    database.close()

    connection.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel)))
    connection.execute("SELECT pg_notify(%s, 'theirs')", [channel])

    assert heard == ["theirs"]


@each_of(SESSION_USES)
def test_wrapped_database_that_was_closed_is_closed_though_the_connection_is_open(
    connection: psycopg.Connection[Any], use: Use
) -> None:
    database = Database.wrap(connection)
    database.close()

    with pytest.raises(ClosedError):
        use(database)


def test_wrapped_database_cannot_be_reopened(connection: psycopg.Connection[Any]) -> None:
    database = Database.wrap(connection)
    database.close()

    with pytest.raises(ConnectionStateError, match="reopen"):
        database.open()


def test_connection_can_be_wrapped_again(connection: psycopg.Connection[Any], channel: str) -> None:
    Database.wrap(connection).close()

    database = Database.wrap(connection)

    database.listen(channel)
    database.notify(channel)
    assert take(database, 1) == [(channel, "", database.backend_id)]


def test_wrapped_connection_that_its_owner_closes_is_closed(
    connection: psycopg.Connection[Any],
) -> None:
    database = Database.wrap(connection)

    connection.close()

    assert database.closed
    with pytest.raises(ClosedError):
        database.listen("x")


def test_wrapping_refuses_a_connection_that_is_not_in_autocommit(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        with pytest.raises(ConnectionStateError, match="autocommit"):
            Database.wrap(connection)

        assert not connection.closed


@pytest.mark.parametrize("failed", [False, True])
def test_wrapping_refuses_a_connection_in_a_transaction(
    connection: psycopg.Connection[Any], failed: bool
) -> None:
    connection.execute("BEGIN")
    if failed:
        with pytest.raises(psycopg.errors.UndefinedColumn):
            connection.execute("SELECT nonsense")

    with pytest.raises(ConnectionStateError, match="transaction"):
        Database.wrap(connection)

    assert not connection.closed


def test_wrapping_refuses_a_closed_connection(connection: psycopg.Connection[Any]) -> None:
    connection.close()

    with pytest.raises(ClosedError):
        Database.wrap(connection)


@pytest.mark.parametrize("thing", [None, "dbname=x", object()])
def test_wrapping_refuses_what_is_no_connection(thing: object) -> None:
    with pytest.raises(TypeError, match=type(thing).__name__):
        Database.wrap(thing)


# The end


@pytest.mark.spec("9.26")
@each_of(SESSION_USES)
def test_closed_database_answers_with_closed_error(connect: Connect, use: Use) -> None:
    database = connect()
    database.close()

    with pytest.raises(ClosedError, match="open"):
        use(database)


def test_closing_twice_does_nothing(connect: Connect, admin: Admin) -> None:
    database = connect()
    backend = database.backend_id

    database.close()
    database.close()

    assert database.closed
    wait_until(lambda: backend not in admin.sessions())


@pytest.mark.spec("11.6")
def test_backend_id_is_remembered_after_the_end(connect: Connect) -> None:
    for end in (Database.close, kill_listener):
        database = connect()
        backend = database.backend_id
        end(database)

        assert backend > 0
        assert database.backend_id == backend


@pytest.mark.parametrize(
    "use",
    [
        lambda database: database.listen("x"),
        lambda database: database.unlisten("x"),
        lambda database: database.unlisten("*"),
        lambda database: database.listening_channels(),
        lambda database: database.notify("x"),
    ],
    ids=["listen", "unlisten", "unlisten all", "listening_channels", "notify"],
)
def test_first_call_that_meets_a_dead_session_tells_why_it_was_lost(
    connect: Connect, use: Use
) -> None:
    database = connect()
    kill_listener(database)

    with pytest.raises(ConnectionLostError, match="terminating connection") as caught:
        use(database)

    assert caught.value.sqlstate == "57P01"
    assert "57P01" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [*chain(caught.value)] == [caught.value]
    assert database.closed
    for later in SESSION_USES.values():
        with pytest.raises(ClosedError):
            later(database)


@pytest.mark.parametrize("how", ["cut", "reset"])
def test_session_that_the_network_ended_is_lost_without_a_code(
    connect: Connect, proxy: Proxy, proxied: str, how: str
) -> None:
    database = connect(proxied)
    getattr(proxy, how)()

    with pytest.raises(ConnectionLostError) as caught:
        database.listen("x")

    assert caught.value.sqlstate is None
    assert "\n" not in str(caught.value)
    assert database.closed
    with pytest.raises(ClosedError):
        database.listen("x")


def test_loss_does_not_tell_the_password(postgres: Postgres, connect: Connect) -> None:
    database = connect()
    postgres_password = postgres.password
    with socket.socket(fileno=database.fileno()) as theirs:
        theirs.shutdown(socket.SHUT_RDWR)
        theirs.detach()

    with pytest.raises(ConnectionLostError) as caught:
        database.notify("x")

    assert all(postgres_password not in f"{error!r}" for error in chain(caught.value))


def test_first_execute_on_a_dead_session_passes_the_error_of_psycopg(connect: Connect) -> None:
    database = connect()
    kill_listener(database)

    with pytest.raises(psycopg.errors.AdminShutdown):
        database.execute("SELECT 1")

    assert database.closed
    with pytest.raises(ClosedError):
        database.execute("SELECT 1")


def test_drained_to_the_end_is_closed(connect: Connect, admin: Admin) -> None:
    database = connect()
    database.listen("x")
    admin.notify("x", "1", "2")
    database.execute("SELECT 1")  # the server sends what is pending before it answers
    kill_listener(database)
    arrived = []

    def drained_to_the_end() -> bool:
        arrived.extend(database.drain())
        return database.closed

    wait_until(drained_to_the_end)

    assert payloads(arrived) == ["1", "2"]
    assert database.drain() == []
    with pytest.raises(ClosedError):
        database.listen("x")


@pytest.mark.parametrize("use", ["execute", "listen"])
def test_statement_that_meets_the_end_loses_nothing_that_arrived_before(
    listener: Database, channel: str, admin: Admin, use: str
) -> None:
    admin.notify(channel, "1", "2")
    listener.execute("SELECT 1")
    admin.notify(channel, "3")
    wait_until(lambda: is_readable(listener))
    kill_listener(listener)
    with pytest.raises((psycopg.OperationalError, ConnectionLostError)):
        listener.execute("SELECT 1") if use == "execute" else listener.listen("x")
    with pytest.raises(ClosedError):
        listener.listen("x")

    assert payloads([n for n in listener.wait() if n]) == ["1", "2", "3"]


def test_close_ends_a_statement_of_another_thread(connect: Connect, admin: Admin) -> None:
    database = connect()
    backend = database.backend_id
    sleeping = Background(database.execute, "SELECT pg_sleep(50)")
    wait_until(
        lambda: admin.execute(
            "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'", backend
        )
    )

    Background(database.close).result()

    with pytest.raises(psycopg.Error):
        sleeping.result()
    assert database.closed
    admin.kill(backend)  # it would notice after its sleep


# LISTEN and UNLISTEN


@pytest.mark.spec("9.8", "9.12", "9.19", "9.21", "N10")
@pytest.mark.parametrize("name", GOOD_NAMES)
def test_good_name_means_the_same_in_listen_notify_and_unlisten(
    connect: Connect, name: str
) -> None:
    listener, sender = connect(), connect()
    listener.listen(name)
    assert list(listener.listening_channels()) == [name]

    assert sender.notify(name, (name, "1"), **{name: "2"}) == 3
    assert take(listener, 3) == [(name, payload, sender.backend_id) for payload in ("", "1", "2")]

    listener.unlisten(name)
    assert list(listener.listening_channels()) == []


@pytest.mark.spec("9.10", "9.12", "9.13", "9.21", "N10")
@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize(
    "use",
    [
        lambda database, name: database.listen(name),
        lambda database, name: database.listen("good", name),
        lambda database, name: database.notify(name),
        lambda database, name: database.notify("kept", (name, "payload")),
        lambda database, name: database.notify("kept", **{name: "payload"}),
    ],
    ids=["listen", "listen more", "notify", "notify pair", "notify keyword"],
)
def test_bad_name_is_refused_alike_and_nothing_happens(
    connect: Connect, admin: Admin, name: str, use: Callable[[Database, str], object]
) -> None:
    database = connect()
    database.listen("kept")

    with pytest.raises(ChannelNameError):
        use(database, name)

    assert list(database.listening_channels()) == ["kept"]
    assert everything(database, admin) == []


@pytest.mark.spec("9.10", "9.12", "9.13", "9.21", "N10")
@pytest.mark.parametrize("name", BAD_NAMES_EVERYWHERE)
def test_bad_name_is_refused_by_unlisten_and_nothing_happens(connect: Connect, name: str) -> None:
    database = connect()
    database.listen("kept")

    with pytest.raises(ChannelNameError):
        database.unlisten("kept", name)

    assert list(database.listening_channels()) == ["kept"]


@pytest.mark.spec("9.22")
@pytest.mark.parametrize("name", NO_TEXT)
def test_name_that_is_no_text_is_a_type_error_everywhere(
    connect: Connect,
    name: Any,
) -> None:
    database = connect()
    for use in (database.listen, database.unlisten, database.notify):
        with pytest.raises(TypeError):
            use(name)
    with pytest.raises(TypeError):
        database.notify((name, "payload"))

    assert list(database.listening_channels()) == []


@pytest.mark.spec("9.22")
def test_listen_takes_no_keywords(connect: Connect) -> None:
    with pytest.raises(TypeError):
        connect().listen("x", len=len)  # type: ignore[call-arg] # the test's point


@pytest.mark.spec("9.6")
def test_member_of_an_enumeration_of_text_is_a_name(connect: Connect) -> None:
    class Channel(str, enum.Enum):  # noqa: UP042 - str() of a StrEnum's member is its value
        ORDERS = "orders_of_an_enum"

    database = connect()

    database.listen(Channel.ORDERS)
    database.notify(Channel.ORDERS)

    assert list(database.listening_channels()) == ["orders_of_an_enum"]
    assert take(database, 1) == [("orders_of_an_enum", "", database.backend_id)]


@pytest.mark.spec("9.17", "U9")
def test_listen_and_unlisten_return_none_and_may_be_repeated(
    connect: Connect, admin: Admin, channel: str
) -> None:
    database = connect()

    for _ in range(2):
        assert database.listen(channel, channel) is None  # type: ignore[func-returns-value]
    admin.notify(channel, "once")
    assert payloads(everything(database, admin)) == ["once"]

    for _ in range(2):
        assert database.unlisten(channel) is None  # type: ignore[func-returns-value]
    admin.notify(channel, "never")
    assert everything(database, admin) == []


@pytest.mark.spec("9.17")
def test_listen_and_unlisten_without_names_do_nothing(connect: Connect) -> None:
    database = connect()
    database.listen("x")

    database.listen()
    database.unlisten()

    assert list(database.listening_channels()) == ["x"]


@pytest.mark.spec("9.17")
def test_unlisten_of_a_channel_that_nobody_listens_to_is_no_error(connect: Connect) -> None:
    connect().unlisten("never")


@pytest.mark.spec("9.20")
def test_unlisten_star_ends_all(connect: Connect) -> None:
    database = connect()
    database.listen("a", "b", "**")

    database.unlisten("*")
    assert list(database.listening_channels()) == []

    database.listen("a", "b")
    database.unlisten("a", "*")
    assert list(database.listening_channels()) == []


@pytest.mark.spec("9.19")
def test_name_cannot_smuggle_a_statement(connect: Connect) -> None:
    database = connect()
    for name in ("a; LISTEN injected", 'a"; LISTEN injected; --', "a'; LISTEN injected; --"):
        database.listen(name)
        database.notify(name)
        assert list(database.listening_channels()) == [name]
        database.unlisten(name)


@pytest.mark.spec("9.18", "U10")
def test_listen_is_all_or_none_when_the_server_refuses(connect: Connect, channel: str) -> None:
    database = connect()
    database.execute("BEGIN")
    with pytest.raises(psycopg.errors.UndefinedColumn):
        database.execute("SELECT nonsense")

    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        database.listen("a", "b")

    database.execute("ROLLBACK")
    assert list(database.listening_channels()) == []


@pytest.mark.spec("9.27")
def test_listen_is_one_round_trip(
    connect: Connect, proxy: Proxy, proxied: str, admin: Admin, new_channel: Callable[[], str]
) -> None:
    names = [new_channel() for _ in range(3)]
    database = connect(proxied)
    proxy.freeze("to_client")
    listening = Background(database.listen, *names)
    wait_until(lambda: proxy.held("to_client"))
    seen: list[bytes] = []

    def look(data: bytes) -> bytes:
        seen[:] = messages(data)
        return data

    def all_are_heard() -> bool:
        for name in names:
            admin.notify(name)
        proxy.rewrite("to_client", look)
        return all(any(name.encode() in message for message in seen) for name in names)

    wait_until(all_are_heard)  # though the client still has no answer
    assert listening.running
    proxy.thaw()
    listening.result()


@pytest.mark.spec("9.23", "N13")
def test_listen_and_unlisten_in_a_transaction_count_from_its_commit(connect: Connect) -> None:
    database = connect()
    database.listen("old")

    with database.transaction():
        database.listen("new")
        database.unlisten("old")
        assert list(database.listening_channels()) == ["old"]

    assert list(database.listening_channels()) == ["new"]


@pytest.mark.spec("9.23")
def test_listener_gets_what_is_committed_after_its_listen_is(
    connect: Connect, admin: Admin, channel: str
) -> None:
    database = connect()
    with database.transaction():
        database.listen(channel)
        admin.notify(channel, "before")
    admin.notify(channel, "after")

    assert payloads(everything(database, admin)) == ["after"]


@pytest.mark.spec("9.23", "N13")
def test_rollback_undoes_listen_and_unlisten(connect: Connect) -> None:
    database = connect()
    database.listen("old")

    with database.transaction():
        database.listen("new")
        database.unlisten("old")
        roll_back()

    assert list(database.listening_channels()) == ["old"]


@pytest.mark.spec("9.24")
def test_what_was_collected_survives_unlisten(
    listener: Database, channel: str, admin: Admin
) -> None:
    admin.notify(channel, "1", "2")
    listener.execute("SELECT 1")

    listener.unlisten(channel)
    admin.notify(channel, "3")

    assert payloads(everything(listener, admin)) == ["1", "2"]


# listening_channels


@pytest.mark.spec("9.25")
def test_listening_channels_is_an_iterator_over_a_snapshot(connect: Connect) -> None:
    database = connect()
    database.listen("a")

    channels = database.listening_channels()
    database.listen("b")

    assert iter(channels) is channels
    assert next(channels) == "a"
    assert list(channels) == []
    assert set(database.listening_channels()) == {"a", "b"}


@pytest.mark.spec("9.25")
def test_listening_channels_asks_the_server(connect: Connect) -> None:
    database = connect()
    database.listen("a", "b")
    database.execute('UNLISTEN a; LISTEN "C c"')

    assert set(database.listening_channels()) == {"b", "C c"}


# NOTIFY


@pytest.mark.spec("1.3", "9.10", "9.11", "N11")
@pytest.mark.parametrize("payload", GOOD_PAYLOADS)
def test_good_payload_arrives_unchanged(listener: Database, channel: str, payload: str) -> None:
    assert listener.notify((channel, payload)) == 1

    assert take(listener, 1) == [(channel, payload, listener.backend_id)]


@pytest.mark.spec("9.4", "9.10", "9.11", "N11", "N12")
@pytest.mark.parametrize("payload", BAD_PAYLOADS)
def test_bad_payload_is_refused_and_nothing_is_sent(
    listener: Database, channel: str, admin: Admin, payload: str
) -> None:
    with pytest.raises(PayloadError, match=channel):
        listener.notify(channel, (channel, payload))
    with pytest.raises(PayloadError, match=channel):
        listener.notify((channel, "good"), **{channel: payload})

    assert everything(listener, admin) == []


@pytest.mark.spec("1.6")
@given(
    name=st.text(min_size=1).filter(
        lambda s: s.isprintable() and s != "*" and len(s.encode()) < 64
    ),
    payload=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
)
def test_whatever_text_arrives_unchanged(shared: Database, name: str, payload: str) -> None:
    shared.listen(name)
    shared.notify((name, payload))
    arrived = take(shared, 1)
    shared.unlisten(name)

    assert arrived == [(name, payload, shared.backend_id)]


@pytest.fixture(scope="module")
def shared(dsn: str) -> Iterator[Database]:
    """One session for all examples of a property."""
    with Database(dsn) as database:
        yield database


@pytest.mark.spec("9.1", "9.5", "N14")
def test_notify_returns_the_number_issued(connect: Connect, channel: str) -> None:
    database = connect()

    assert database.notify() == 0
    assert database.notify(channel) == 1
    assert database.notify(channel, (channel, "1"), (channel, None), **{channel: "2"}) == 4
    assert database.notify(channel, channel, channel) == 3  # though the server folds them
    assert type(database.notify(channel)) is int


@pytest.mark.spec("9.2", "9.3", "U11")
def test_items_arrive_in_the_order_given_keywords_last(
    connect: Connect, new_channel: Callable[[], str]
) -> None:
    a, b, c = new_channel(), new_channel(), new_channel()
    database = connect()
    database.listen(c, b, a)

    database.notify(b, (a, "1"), (b, "2"), a, **{c: "3", a: "4", b: "5"})

    arrived = [(n.channel, n.payload) for n in take(database, 7)]
    assert arrived == [(b, ""), (a, "1"), (b, "2"), (a, ""), (c, "3"), (a, "4"), (b, "5")]


@pytest.mark.spec("9.4", "9.6", "N12")
@pytest.mark.parametrize("item", BAD_ITEMS)
def test_item_of_the_wrong_shape_is_a_type_error_and_nothing_is_sent(
    listener: Database,
    channel: str,
    admin: Admin,
    item: Any,
) -> None:
    with pytest.raises(TypeError) as caught:
        listener.notify(channel, item)

    assert not isinstance(caught.value, Error)
    assert everything(listener, admin) == []


@pytest.mark.spec("9.6")
def test_payload_of_none_and_a_named_pair(listener: Database, channel: str) -> None:
    Item = namedtuple("Item", "where what")

    listener.notify((channel, None), Item(channel, "1"), **{channel: None})

    assert payloads(take(listener, 2)) == ["", "1"]


def test_received_notification_is_forwarded_as_a_pair(
    listener: Database, channel: str, new_channel: Callable[[], str]
) -> None:
    listener.notify((channel, "1"))
    (received,) = take(listener, 1)
    assert (received.channel, received.payload) == (channel, "1")

    with pytest.raises(TypeError, match="forward"):
        listener.notify(received)  # type: ignore[arg-type] # the test's point
    assert listener.notify((received.channel, received.payload)) == 1

    assert payloads(take(listener, 1)) == ["1"]


@pytest.mark.spec("9.7")
def test_channels_may_be_called_like_parameters(connect: Connect) -> None:
    database = connect()
    names = ["self", "channels", "channel_and_payload", "we ird"]
    database.listen(*names)

    assert database.notify(**dict.fromkeys(names, "1")) == 4

    assert [n.channel for n in take(database, 4)] == names


@pytest.mark.spec("9.9", "N24")
def test_payload_cannot_run_sql_though_strings_are_nonstandard(
    listener: Database, channel: str, admin: Admin
) -> None:
    payload = "\\'); LISTEN injected; --"
    listener.execute("SET standard_conforming_strings TO off")

    assert listener.notify((channel, payload)) == 1

    assert payloads(everything(listener, admin)) == [payload]
    assert list(listener.listening_channels()) == [channel]


@pytest.mark.spec("9.14", "N13")
def test_server_folds_equal_pairs_of_one_transaction(
    listener: Database, channel: str, admin: Admin
) -> None:
    listener.notify((channel, "1"), channel, (channel, "1"), (channel, ""), **{channel: "2"})
    with listener.transaction():
        listener.notify((channel, "3"))
        listener.notify((channel, "4"))
        listener.notify((channel, "3"))

    assert payloads(everything(listener, admin)) == ["1", "", "2", "3", "4"]


@pytest.mark.spec("9.14", "10.1", "N2")
def test_equal_notifications_of_two_calls_both_arrive(
    listener: Database, channel: str, admin: Admin
) -> None:
    listener.notify((channel, "1"))
    listener.notify((channel, "1"))
    admin.notify(channel, "1", "1")

    assert payloads(everything(listener, admin)) == ["1"] * 4


@pytest.mark.spec("9.15", "N13")
def test_notify_in_a_transaction_is_sent_at_its_commit(
    listener: Database, connect: Connect, channel: str, admin: Admin
) -> None:
    sender = connect()
    with sender.transaction():
        assert sender.notify((channel, "1")) == 1
        assert everything(listener, admin) == []

    assert take(listener, 1) == [(channel, "1", sender.backend_id)]


@pytest.mark.spec("9.15", "N13")
def test_rollback_sends_nothing_and_neither_does_a_savepoint_that_is_rolled_back(
    listener: Database, connect: Connect, channel: str, admin: Admin
) -> None:
    sender = connect()
    with sender.transaction():
        sender.notify((channel, "rolled back"))
        roll_back()
    with sender.transaction():
        sender.notify((channel, "1"))
        with sender.transaction():
            sender.notify((channel, "savepoint"))
            roll_back()
        sender.notify((channel, "2"))

    assert payloads(everything(listener, admin)) == ["1", "2"]


@pytest.mark.spec("9.15")
def test_notify_in_a_failed_transaction_passes_the_error_of_psycopg(connect: Connect) -> None:
    database = connect()
    database.execute("BEGIN")
    with pytest.raises(psycopg.errors.UndefinedColumn):
        database.execute("SELECT nonsense")

    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        database.notify("x")

    assert not database.closed
    database.execute("ROLLBACK")
    assert database.notify("x") == 1


def test_error_of_a_statement_leaves_the_session_alive(connect: Connect) -> None:
    database = connect()
    database.execute("SET statement_timeout TO 1")
    with pytest.raises(psycopg.errors.QueryCanceled):
        database.execute("SELECT pg_sleep(50)")
    database.execute("RESET statement_timeout")

    assert not database.closed
    assert list(database.listening_channels()) == []


# psycopg


def test_execute_and_transaction_are_those_of_psycopg(connect: Connect) -> None:
    database = connect()
    database.execute("CREATE TEMPORARY TABLE t (x int)")
    with database.transaction():
        database.execute("INSERT INTO t VALUES (%s), (%s)", [1, 2])
    with database.transaction():
        database.execute("INSERT INTO t VALUES (3)")
        roll_back()

    assert database.execute("SELECT x FROM t ORDER BY x").fetchall() == [(1,), (2,)]
    assert database.execute(b"SELECT %(x)s", {"x": "y"}).fetchone() == ("y",)
    with pytest.raises(psycopg.errors.SyntaxError):
        database.execute("nonsense")


@pytest.mark.spec("10.2")
def test_nothing_is_lost_when_cursors_are_cleaned_up(
    listener: Database, channel: str, admin: Admin
) -> None:
    admin.notify(channel, "1", "2", "3")
    for _ in range(3):
        cursor = listener.execute("SELECT 1")
        del cursor
        list(listener.listening_channels())

    assert payloads(everything(listener, admin)) == ["1", "2", "3"]


# Once more


def test_close_leaves_what_the_owner_listens_to_after_everything_was_unlistened(
    dsn: str, channel: str
) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        database = Database.wrap(connection)
        database.listen(channel)
        database.unlisten("*")
        connection.execute(f"LISTEN {channel}".encode())
        database.close()

        rows = connection.execute("SELECT pg_listening_channels()").fetchall()
        assert rows == [(channel,)]


def test_loss_of_an_earlier_session_is_not_told_of_a_later_one(
    connect: Connect, admin: Admin
) -> None:
    database = connect()
    admin.kill(database.backend_id)
    with pytest.raises(ConnectionLostError):
        database.notify("x")
    with pytest.raises(ClosedError, match="57P01"):
        database.notify("x")
    database.open().close()

    with pytest.raises(ClosedError) as caught:
        database.notify("x")
    assert "57P01" not in str(caught.value)


# What is public


def public_names(cls: type[object]) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def test_public_names_are_those_that_are_documented(dsn: str) -> None:
    """What only we need stands in ``_access`` and ``_custody``."""
    life = {"open", "close", "closed", "wrap", "wrapped", "name", "backend_id", "fileno"}
    channels = {"listen", "unlisten", "listening_channels", "notify", "publish", "publish_many"}
    arrivals = {"wait", "iternotifies", "drain"}
    psycopg = {"execute", "transaction", "connection"}
    with Database(dsn) as database:
        assert set(vars(database)) == set()

    assert public_names(Database) == life | channels | arrivals | psycopg
