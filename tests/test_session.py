"""Sessions: what a reactor does with them that a Database does not."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import termios
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgsignals import Database, Notification, Reactor
from pgsignals._pure.names import PROBE_CHANNEL
from pgsignals._wire import session as _driver
from pgsignals._wire.encodings import Names
from pgsignals._wire.notifies import FEW
from pgsignals._wire.opening import CONNECT_TIMEOUT, describe
from pgsignals._wire.results import Result
from pgsignals._wire.session import READS, SHARE, Session
from pgsignals.embedded import Postgres
from pgsignals.errors import ConnectError, ConnectionLostError
from pgsignals.testing import Proxy
from tests.support.admin import Admin
from tests.support.arrivals import payloads
from tests.support.waiting import Background, is_readable, wait_until


@pytest.fixture(params=[True, False], ids=["shared", "unshared"])
def shared(request: pytest.FixtureRequest) -> bool:
    """Whether others may run statements on a session; an unshared one looks for less."""
    return bool(request.param)


#: For tests in which others do.
shared_only = pytest.mark.parametrize("shared", [True], indirect=True, ids=["shared"])


@pytest.fixture
def session(dsn: str, shared: bool) -> Iterator[Session]:
    session = Session(psycopg.connect(dsn, autocommit=True), shared=shared)
    session.read()  # the first one looks for everything
    yield session
    session.close()


def answer(session: Session, arrived: list[Notification] | None = None) -> list[Result]:
    """The answer to what was submitted; *arrived* takes the notifications that come along."""

    def answered() -> bool:
        fresh = session.read()
        if arrived is not None:
            arrived.extend(fresh)
        return bool(session.answers)

    wait_until(answered)
    return session.answers.popleft()


def listen(session: Session, channel: str) -> None:
    session.query(f'LISTEN "{channel}"')


def unread(session: Session) -> int:
    """Bytes in the socket."""
    size = array.array("i", [0])
    fcntl.ioctl(session.fileno(), termios.FIONREAD, size)
    return size[0]


#: Many reads, and less than a socket holds.
MANY = 2000


@pytest.fixture
def flooded(
    session: Session, channel: str, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> Session:
    """The session, with a burst of one libpq read, so that *MANY* notifications in its socket are
    a flood, of which it has taken the first."""
    listen(session, channel)
    admin.flood(channel, MANY)
    numbers = sum(len(str(number)) for number in range(1, MANY + 1))
    size = MANY * (1 + 4 + 4 + len(channel) + 1 + 1) + numbers  # NotificationResponse
    wait_until(lambda: unread(session) == size, why="the flood is not what was reckoned")
    monkeypatch.setattr(_driver, "READS", 1)
    return session


def everything(session: Session, share: int, over: Callable[[], bool]) -> list[str]:
    """What is read until *over*; reads only when there is more or the socket says so."""
    arrived: list[Notification] = []

    def complete() -> bool:
        if session.more or is_readable(session):
            arrived.extend(session.read(share))
        return over() and not session.more

    wait_until(complete)
    return payloads(arrived)


NUMBERS = [str(number) for number in range(1, MANY + 1)]


# Statements that do not block


def test_submitted_statement_is_answered_when_it_is_read(session: Session) -> None:
    session.submit("SELECT 1, 'é', NULL")

    assert answer(session) == [Result(None, "", [("1", "é", "")])]
    assert session.read() == []


def test_statements_of_one_submission_are_answered_together(session: Session) -> None:
    session.submit("SELECT 1 WHERE false; SELECT i FROM generate_series(1, 3) AS i; LISTEN x")

    assert answer(session) == [
        Result(None, "", []),
        Result(None, "", [("1",), ("2",), ("3",)]),
        Result(None, "", []),
    ]


def test_error_of_a_submitted_statement_is_an_answer(session: Session) -> None:
    session.submit("SELECT nonsense")
    (result,) = answer(session)
    assert result.sqlstate == "42703"
    assert "nonsense" in result.message
    assert not session.ended

    session.submit("SELECT 1")
    assert answer(session) == [Result(None, "", [("1",)])]


def test_what_was_committed_before_a_submission_arrives_with_its_answer(
    session: Session, channel: str, admin: Admin
) -> None:
    listen(session, channel)
    for number in range(100):
        admin.notify(channel, str(number))
        arrived: list[Notification] = []
        session.submit("SELECT 1")
        answer(session, arrived)

        assert payloads(arrived) == [str(number)]


def test_notification_in_the_packet_of_an_answer_is_not_stuck(
    proxied: str, proxy: Proxy, channel: str, admin: Admin, shared: bool
) -> None:
    session = Session(psycopg.connect(proxied, autocommit=True), shared=shared)
    listen(session, channel)
    session.read()
    proxy.freeze("to_client")
    session.submit("SELECT 1")
    wait_until(lambda: proxy.held("to_client"))
    before = proxy.held("to_client")
    admin.notify(channel, "1")
    wait_until(lambda: proxy.held("to_client") > before)
    proxy.thaw()
    wait_until(lambda: is_readable(session))

    arrived = session.read()

    assert len(session.answers) == 1
    assert payloads(arrived) == ["1"]
    session.close()


def test_answer_does_not_overtake_a_flood_that_was_committed_before(flooded: Session) -> None:
    arrived = flooded.read(1)
    assert flooded.more
    before = unread(flooded)
    flooded.submit("SELECT 1")
    wait_until(lambda: unread(flooded) > before)
    while not flooded.answers:
        arrived += flooded.read(1)

    assert payloads(arrived) == NUMBERS


def test_long_answer_comes_whole(session: Session) -> None:
    session.submit("SELECT repeat('x', 5000) FROM generate_series(1, 400)")  # 2 MB

    (result,) = answer(session)

    assert result.rows == [("x" * 5000,)] * 400


# Reading


def test_read_takes_a_share_of_a_flood(session: Session, channel: str, admin: Admin) -> None:
    size = 7000
    listen(session, channel)
    admin.flood(channel, 2000, size)  # 14 MB
    shares: list[int] = []

    def complete() -> bool:
        shares.append(len(session.read()))
        return sum(shares) == 2000

    wait_until(complete)

    assert max(shares) * size <= READS * 48 * 1024


@pytest.mark.parametrize("share", [1, FEW - 1, FEW, SHARE, MANY])
def test_flood_in_shares_leaves_nothing_behind(flooded: Session, share: int) -> None:
    """What libpq holds is announced by nobody: the socket is silent."""
    first = payloads(flooded.read(share))
    sizes = []

    def rest() -> Iterator[str]:
        while flooded.more or is_readable(flooded):
            fresh = flooded.read(share)
            sizes.append(len(fresh))
            yield from payloads(fresh)

    assert first + list(rest()) == NUMBERS
    assert max(sizes) <= share
    assert flooded.read() == []


def test_statement_collects_what_a_share_has_left(flooded: Session) -> None:
    first = payloads(flooded.read(1) + flooded.read(1))
    assert flooded.more
    flooded.query("SELECT 1")
    arrived: deque[Notification] = deque()
    flooded.arrivals.deliver(arrived, flooded.shutdown)  # any bound method

    assert arrived
    assert first + payloads(flooded.read()) == NUMBERS
    assert flooded.read() == []
    assert not flooded.more


@pytest.mark.parametrize("share", [1, SHARE])
def test_end_of_a_session_does_not_overtake_a_flood(
    flooded: Session, share: int, admin: Admin
) -> None:
    first = payloads(flooded.read(share))
    assert flooded.more
    admin.kill(flooded.backend_id)

    assert first + everything(flooded, share, lambda: flooded.ended) == NUMBERS
    assert flooded.farewell.sqlstate == "57P01"


def test_statement_that_cannot_be_sent_does_not_overtake_a_flood(flooded: Session) -> None:
    first = payloads(flooded.read(1))
    assert flooded.more
    with socket.socket(fileno=os.dup(flooded.fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_WR)
    flooded.submit("SELECT 1")

    assert first + everything(flooded, 1, lambda: flooded.ended) == NUMBERS


def test_read_gives_the_rest_of_a_session_that_ended_and_then_nothing(
    session: Session, channel: str, admin: Admin
) -> None:
    listen(session, channel)
    admin.notify(channel, "1")
    wait_until(lambda: is_readable(session))
    admin.kill(session.backend_id)
    arrived: list[Notification] = []

    def ended() -> bool:
        arrived.extend(session.read())
        return session.ended

    wait_until(ended)

    assert payloads(arrived) == ["1"]
    assert session.read() == []
    assert session.farewell.sqlstate == "57P01"
    assert "terminating connection" in session.farewell.text
    assert isinstance(session.lost(), ConnectionLostError)
    assert session.lost().sqlstate == "57P01"


@shared_only
def test_connection_that_its_owner_has_closed_is_a_session_that_ended(session: Session) -> None:
    session.connection.close()

    assert session.read() == []
    assert session.ended
    assert isinstance(session.lost(), ConnectionLostError)


@pytest.mark.parametrize("severity", ["FATAL", "PANIC", "WARNING"])
def test_farewell_of_the_server_ends_a_session_whose_socket_stays_open(
    proxied: str, proxy: Proxy, shared: bool, severity: str
) -> None:
    """Such as behind a proxy that does not pass the end on."""
    session = Session(psycopg.connect(proxied, autocommit=True), shared=shared)
    session.read()
    fields = {"S": severity, "V": severity, "C": "57P02", "M": "another server process crashed"}
    farewell = b"".join(f"{code}{text}\0".encode() for code, text in fields.items()) + b"\0"
    proxy.freeze("to_client")
    notice = b"N" + struct.pack("!i", 4 + len(farewell)) + farewell
    proxy.rewrite("to_client", lambda held: held + notice)
    proxy.thaw("to_client")
    wait_until(lambda: is_readable(session))

    assert session.read() == []
    assert session.ended
    assert session.lost().sqlstate == "57P02"
    assert "another server process crashed" in str(session.lost())
    session.close()


def test_submitting_to_a_session_that_ended_raises_nothing(session: Session, admin: Admin) -> None:
    admin.kill(session.backend_id)

    def ended() -> bool:
        session.submit("SELECT 1")
        session.read()
        return session.ended

    wait_until(ended)

    assert session.farewell.sqlstate == "57P01"


@shared_only
def test_read_does_not_wait_for_a_thread_that_runs_a_statement(
    session: Session, channel: str, admin: Admin
) -> None:
    """What arrives meanwhile is collected by that thread, which tells."""
    listen(session, channel)
    told: list[bool] = []

    class Ear:
        def hear(self) -> None:
            told.append(True)

    arrived: deque[Notification] = deque()
    ear = Ear()
    session.arrivals.deliver(arrived, ear.hear)
    sleeping = Background(session.query, "SELECT pg_sleep(1)")
    wait_until(
        lambda: admin.execute(
            "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'",
            session.backend_id,
        )
    )
    admin.notify(channel, "1", "2")

    fresh: list[Notification] = []
    while sleeping.running:
        fresh += session.read()
    sleeping.result()

    assert told or not arrived
    assert payloads([*fresh, *session.read()]) == ["1", "2"]


@shared_only
def test_read_gives_what_one_statement_has_collected_while_another_one_runs(
    session: Session, channel: str, admin: Admin
) -> None:
    listen(session, channel)
    admin.notify(channel, "1")
    session.query("SELECT 1")

    with session.connection.lock:  # as psycopg holds it for the thread of a statement
        arrived = session.read()

    assert session.contended
    assert payloads(arrived) == ["1"]
    session.read()
    assert not session.contended


def test_what_was_collected_before_somebody_asked_is_delivered(
    session: Session, channel: str, admin: Admin
) -> None:
    listen(session, channel)
    admin.notify(channel, "1")
    session.query("SELECT 1")
    arrived: deque[Notification] = deque()

    session.arrivals.deliver(arrived, session.shutdown)  # any bound method

    assert payloads([*arrived]) == ["1"]


# The end


def test_shutdown_wakes_a_thread_that_waits_for_an_answer(session: Session, admin: Admin) -> None:
    sleeping = Background(session.query, "SELECT pg_sleep(50)")
    wait_until(lambda: session.connection.lock.locked())

    session.shutdown()

    with pytest.raises(ConnectionLostError):
        sleeping.result()
    admin.kill(session.backend_id)  # it would notice after its sleep


def test_close_gives_the_file_number_back(dsn: str) -> None:
    """The check after every test sees it if this one does; nothing waits for a collection."""
    for _ in range(5):
        Session(psycopg.connect(dsn, autocommit=True)).close()


def test_release_leaves_no_trace(dsn: str) -> None:
    heard: list[str] = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.add_notify_handler(lambda notify: heard.append(notify.payload))
        session = Session(connection)
        session.query("LISTEN x")
        session.release()

        connection.execute("NOTIFY x, '1'")

        assert heard == ["1"]
        assert connection._notice_handlers == []


# Names of channels


def test_names_are_decoded_once_and_their_number_has_a_bound() -> None:
    names = Names("utf-8")
    assert names[b"a"] is names[b"a"] == "a"
    most = 0
    for number in range(200_000):
        assert names[b"%d" % number] == str(number)
        most = max(most, len(names))

    assert most == 65_536
    assert names[b"a"] == "a"


# Where a conninfo leads


@pytest.mark.parametrize(
    ("conninfo", "params", "place"),
    [
        ("host=db port=5433 dbname=shop", {}, "db:5433/shop"),
        ("postgresql://app:secret@db:5433/shop?sslmode=require", {}, "db:5433/shop"),
        ("host=db dbname=shop", {"host": "other"}, "other:5432/shop"),
        ("host=db user=app", {}, "db:5432/app"),
        ("", {"host": "db", "dbname": "shop", "row_factory": None}, "db:5432/shop"),
        ("host=/run/postgresql dbname=shop", {}, "/run/postgresql:5432/shop"),
        ("host=a,b port=5432,5433 dbname=shop", {}, "a,b:5432,5433/shop"),
        ("hostaddr=192.0.2.7 dbname=shop", {}, "192.0.2.7:5432/shop"),
        ("postgresql+psycopg://app:secret@db/shop", {}, "db:5432/shop"),
        ("postgresql+psycopg2://db/shop", {}, "db:5432/shop"),
        ("postgresql+asyncpg://db/shop?sslmode=require", {}, "db:5432/shop"),
        ("postgres+psycopg://db/shop", {}, "db:5432/shop"),
        ("postgis://db/shop", {}, "db:5432/shop"),
        ("psql://db/shop", {}, "db:5432/shop"),
        ("PostgreSQL://db/shop", {}, "db:5432/shop"),
        ("postgresql://db/shop\n", {}, "db:5432/shop"),
        ("\r\n postgresql://db/shop \t\r\n", {}, "db:5432/shop"),
        (" host=db dbname=shop\r\n", {}, "db:5432/shop"),
        ("host=db dbname='sh\nop'", {}, "db:5432/sh\\nop"),
    ],
)
def test_place_is_told_without_connecting(
    conninfo: str, params: dict[str, Any], place: str
) -> None:
    assert describe(conninfo, params) == place


def test_place_of_an_unreadable_conninfo_is_not_told() -> None:
    assert "secret" not in describe("passwrd=secret", {})


# Canaries


class Interrupted(deque[Notification]):
    """Another thread runs just before something is appended."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self._meanwhile = meanwhile

    def append(self, notification: Notification) -> None:
        self._meanwhile()
        super().append(notification)


def test_canary_that_came_with_a_statement_is_looked_for_however_the_reader_interferes(
    session: Session, admin: Admin
) -> None:
    """Its hint may be taken between its name and itself; then nobody would find it."""
    listen(session, PROBE_CHANNEL)
    admin.notify(PROBE_CHANNEL)
    session.arrivals.deliver(Interrupted(session.arrivals.may_have_canary), session.shutdown)

    session.query("SELECT 1")

    assert session.arrivals.may_have_canary()
    assert [one.channel for one in session.read()] == [PROBE_CHANNEL]


@pytest.mark.parametrize("dbname", ["postgres", "sh\nop"])
def test_place_is_the_same_before_and_after_opening(
    postgres: Postgres, admin: Admin, dbname: str
) -> None:
    if dbname != "postgres":
        admin.execute(f'CREATE DATABASE "{dbname}"')
    for change in ({}, {"host": postgres.directory}, {"host": "", "hostaddr": "127.0.0.1"}):
        database = Database(postgres.dsn_for(dbname, **change))
        before = database.name
        with database:
            assert database.name == before
            assert "\n" not in before
    if dbname != "postgres":
        admin.execute(f'DROP DATABASE "{dbname}" WITH (FORCE)')


def test_sqlalchemys_url_opens(postgres: Postgres) -> None:
    url = f"postgresql+psycopg://postgres:{postgres.password}@127.0.0.1:{postgres.port}/postgres\n"
    with Database(url) as database:
        assert database.name == f"127.0.0.1:{postgres.port}/postgres"


# What cannot be read

EXAMPLE = "postgresql://app@db.example.com:5432/shop"


@pytest.mark.parametrize(
    ("conninfo", "named"),
    [
        ("mysql://app:hush@db/shop", "mysql://"),
        ("mongodb+srv://app:hush@db/shop", "mongodb+srv://"),
        ("jdbc:postgresql://db/shop?user=app&password=hush", "jdbc:postgresql://"),
        ("127.0.0.1:28901/shop", "put postgresql:// before it"),
        ("app:hush@db/shop", "put postgresql:// before it"),
        ("app:hush@db/shop?sslmode=require", "put postgresql:// before it"),
        ("shop", "put postgresql:// before it"),
        ("'postgresql://app:hush@db/shop'", "quotation mark"),
        ("passwrd=hush", "'passwrd', which libpq does not accept; did you mean password?"),
        ("host=db passwrd=hush", "'passwrd'"),
        ("password=hush sslmod=require", "'sslmod'"),
        ("Host=db;Database=shop;Password=hush", "'Host'"),
        ("schema=hush", "'schema'"),
        ("password=two hush", "password='two words'"),
        ("password=two hush=1", "password='two words'"),
        ("password='hush", "not closed"),
        ("port=hush", "port is not a number"),
        ("postgresql://app@db/shop?pgbouncer=true&connection_limit=1", "'pgbouncer'"),
        ("postgresql://app:hush@db/shop?passwrd=hush", "'passwrd'"),
        ("postgresql://app:hu@sh@db/shop", "%40 for @"),
        ("postgresql://app:hush@@db/shop", "%40 for @"),
        ("postgresql://app:hu/sh@db/shop", "%2F for /"),
        ("postgresql://app:12/hush?x=y@db/shop", "%2F for /"),
        ("postgresql://app:hu%sh@db/shop", "%25 for %"),
        ("postgresql://app:hush:5432/shop", "port is not a number"),
        ("postgresql://app:hush@[::1/shop", "brackets"),
        ("host=@name", "abstract sockets"),
        ("postgresql:///shop?host=@name", "abstract sockets"),
        ("host=app:hush@db", "%40 for @"),
    ],
)
def test_unreadable_conninfo_is_told_with_what_is_wrong_and_an_example(
    conninfo: str, named: str
) -> None:
    for open_it in (lambda: Database(conninfo).open(), lambda: Reactor(conninfo).start()):
        with pytest.raises(ConnectError) as caught:
            open_it()

        said = str(caught.value)
        assert named in said
        assert EXAMPLE in said
        assert "hush" not in said.lower().replace("%40 for @", "")
        assert "\n" not in said


def test_unknown_keyword_is_named() -> None:
    with pytest.raises(ConnectError, match=r"'passwrd'.* did you mean password") as caught:
        Database("", passwrd="hush").open()

    assert "hush" not in str(caught.value)


# Services


@pytest.fixture
def services(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Writes a service file, with ``{port}`` and ``{password}`` replaced."""
    file = tmp_path / "services.conf"
    monkeypatch.setenv("PGSERVICEFILE", str(file))

    def write(text: str) -> None:
        known = {"{port}": str(postgres.port), "{password}": postgres.password}
        for name, value in known.items():
            text = text.replace(name, value)
        file.write_text(text, "utf-8")

    return write


SHOP = """
[shop]
host=127.0.0.1
port={port}
dbname=postgres
user=postgres
password={password}

[warehouse]
host=127.0.0.1
port=1
dbname=warehouse
"""


def test_service_has_a_name_before_it_is_opened(
    services: Callable[[str], None], postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    services(SHOP)
    shop = Database("service=shop")
    name = f"127.0.0.1:{postgres.port}/postgres"
    assert shop.name == name
    with shop:
        assert shop.name == name
    assert describe("service=warehouse", {}) == "127.0.0.1:1/warehouse"
    assert describe("service=warehouse dbname=other", {"port": 2}) == "127.0.0.1:2/other"
    assert describe("postgresql:///?service=warehouse", {}) == "127.0.0.1:1/warehouse"
    monkeypatch.setenv("PGSERVICE", "warehouse")
    assert describe("", {}) == "127.0.0.1:1/warehouse"


def test_service_that_refuses_is_named(services: Callable[[str], None]) -> None:
    services(SHOP)
    with pytest.raises(ConnectError, match=r"^127\.0\.0\.1:1/warehouse: ") as caught:
        Reactor("service=shop", "service=warehouse").start()

    assert "refused" in str(caught.value)


def test_proxy_leads_to_a_service(services: Callable[[str], None], postgres: Postgres) -> None:
    services(SHOP)
    with Proxy("service=shop") as proxy, Database(proxy.dsn) as database:
        assert database.name == f"127.0.0.1:{proxy.port}/postgres"


def test_files_of_services_are_found_where_libpq_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pg_service.conf").write_text("[shop]\nhost=etc\ndbname=shop\n", "utf-8")
    monkeypatch.setenv("PGSYSCONFDIR", str(tmp_path))

    assert describe("service=shop", {}) == "etc:5432/shop"


def test_unknown_service_is_told_as_libpq_does(services: Callable[[str], None]) -> None:
    services(SHOP)
    assert Database("service=nope").name == "service=nope"
    with pytest.raises(ConnectError, match=r'^service=nope: .*service "nope" not found'):
        Database("service=nope").open()


def test_timeout_of_a_service_counts(
    services: Callable[[str], None], proxy: Proxy, dsn: str
) -> None:
    services(f"[frozen]\nhost=127.0.0.1\nport={proxy.port}\nconnect_timeout=2\n")
    proxy.freeze()
    begun = time.monotonic()
    with pytest.raises(ConnectError, match="timeout"):
        Database("service=frozen").open()

    assert time.monotonic() - begun < CONNECT_TIMEOUT - 1
    proxy.thaw()


def test_second_host_of_a_service_has_a_time_of_its_own(
    services: Callable[[str], None], proxy: Proxy, postgres: Postgres
) -> None:
    services(
        f"[two]\nhost=127.0.0.1,127.0.0.1\nport={proxy.port},{postgres.port}\nuser=postgres\n"
        f"dbname=postgres\npassword={postgres.password}\nconnect_timeout=2\n"
    )
    proxy.freeze()
    with Database("service=two") as database:
        assert database.name == f"127.0.0.1:{postgres.port}/postgres"
    proxy.thaw()
