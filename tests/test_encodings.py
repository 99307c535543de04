"""What is spoken on the wire, and what arrives when it is no UTF-8."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

import pgsignals
from pgsignals import Database, NotificationManager, Reactor
from pgsignals._pure.statements import ROUND_TRIP, digest_of
from pgsignals.embedded import Postgres
from pgsignals.errors import ConnectionLostError, EncodingError, PayloadError
from tests.support.admin import Admin
from tests.support.arrivals import Connect, everything, payloads, take
from tests.support.waiting import hangs_fail, wait_until

pytestmark = hangs_fail


@pytest.fixture(scope="module")
def dsn_of(postgres: Postgres, admin: Admin) -> Callable[[str], str]:
    """Leads to a database with an encoding, which is made when it is first asked for."""
    made: set[str] = set()

    def dsn_of(encoding: str) -> str:
        name = f"in_{encoding.lower()}"
        if encoding not in made:
            try:
                admin.execute(
                    f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
                )
            except psycopg.Error:
                pytest.skip(f"this server has no {encoding}")
            made.add(encoding)
        return postgres.dsn_for(name)

    return dsn_of


@contextlib.contextmanager
def raw(dsn: str) -> Iterator[Callable[[bytes], None]]:
    """Runs statements as they are, byte for byte."""
    with psycopg.connect(dsn, autocommit=True) as connection:

        def run(sql: bytes) -> None:
            result = connection.pgconn.exec_(sql)
            assert result.status == psycopg.pq.ExecStatus.COMMAND_OK, result.error_message

        yield run


def spoken(database: Database) -> str:
    encoding = database.connection.info.parameter_status("client_encoding")
    assert encoding is not None
    return encoding


# What we open with


def test_session_speaks_utf8(connect: Connect) -> None:
    assert spoken(connect()) == "UTF8"


@pytest.mark.parametrize("spelling", ["utf8", "UTF-8", "utf_8", "Unicode"])
def test_utf8_may_be_asked_for(dsn: str, connect: Connect, spelling: str) -> None:
    assert spoken(connect(f"{dsn} client_encoding={spelling}")) == "UTF8"
    assert spoken(connect(dsn, client_encoding=spelling)) == "UTF8"


@pytest.mark.parametrize("asked", ["latin1", "SQL_ASCII", "auto"])
def test_another_encoding_is_overridden_with_a_warning(dsn: str, asked: str) -> None:
    for arguments in ({"conninfo": f"{dsn} client_encoding={asked}"}, {"client_encoding": asked}):
        with pytest.warns(UserWarning, match=asked) as caught:
            database = pgsignals.connect(**{"conninfo": dsn, **arguments})

        with database:
            assert spoken(database) == "UTF8"
        assert [warning.filename for warning in caught] == [__file__]


def test_another_encoding_in_the_environment_is_overridden_with_a_warning(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "latin1")
    with pytest.warns(UserWarning, match="latin1"):
        database = pgsignals.connect(dsn)

    with database:
        assert spoken(database) == "UTF8"


def test_connection_of_a_connect_callable_is_made_to_speak_utf8(dsn: str, channel: str) -> None:
    def fresh() -> psycopg.Connection[Any]:
        return psycopg.connect(dsn, autocommit=True, client_encoding="latin1")

    with Database(connect=fresh) as database:
        assert spoken(database) == "UTF8"
        database.listen(channel)
        database.notify((channel, "漢"))
        assert payloads(take(database, 1)) == ["漢"]


# Other server encodings


@pytest.mark.parametrize("encoding", ["LATIN1", "EUC_JP", "WIN1251"])
def test_database_with_another_encoding_speaks_utf8_with_us(
    dsn_of: Callable[[str], str], connect: Connect, encoding: str
) -> None:
    text = {"LATIN1": "é", "EUC_JP": "漢", "WIN1251": "ж"}[encoding]
    database = connect(dsn_of(encoding))
    assert spoken(database) == "UTF8"

    database.listen(text)
    database.notify((text, text))

    assert list(database.listening_channels()) == [text]
    assert take(database, 1) == [(text, text, database.backend_id)]


@pytest.mark.spec("9.4", "N12")
def test_payload_that_the_server_cannot_hold_passes_its_error_and_nothing_is_sent(
    dsn_of: Callable[[str], str], connect: Connect, channel: str
) -> None:
    database = connect(dsn_of("LATIN1"))
    database.listen(channel)

    with pytest.raises(psycopg.errors.UntranslatableCharacter):
        database.notify((channel, "good"), (channel, "漢"))

    assert not database.closed
    database.notify((channel, "é"))
    assert payloads(take(database, 1)) == ["é"]


@pytest.mark.spec("9.18")
def test_listen_is_all_or_none_when_the_server_cannot_hold_a_name(
    dsn_of: Callable[[str], str], connect: Connect
) -> None:
    database = connect(dsn_of("LATIN1"))

    with pytest.raises(psycopg.errors.UntranslatableCharacter):
        database.listen("good", "漢")

    assert list(database.listening_channels()) == []


def test_server_encoding_without_a_conversion_to_utf8_is_an_encoding_error(
    dsn_of: Callable[[str], str],
) -> None:
    with pytest.raises(EncodingError, match=r"MULE_INTERNAL.*UTF8"):
        pgsignals.connect(dsn_of("MULE_INTERNAL"))


def test_connect_callable_to_an_encoding_without_a_conversion_is_an_encoding_error(
    dsn_of: Callable[[str], str],
) -> None:
    with psycopg.connect(dsn_of("MULE_INTERNAL"), autocommit=True) as connection:
        with pytest.raises(EncodingError, match="MULE_INTERNAL"):
            Database(connect=lambda: connection).open()

        assert connection.closed


# SQL_ASCII


def test_sql_ascii_database_is_spoken_to_in_its_own_way(
    dsn_of: Callable[[str], str], connect: Connect
) -> None:
    database = connect(dsn_of("SQL_ASCII"))
    assert spoken(database) == "SQL_ASCII"

    for text in ("plain", "é", "漢", "😀"):
        database.listen(text)
        assert list(database.listening_channels()) == [text]
        assert database.notify((text, text), text) == 2
        assert take(database, 2) == [(text, p, database.backend_id) for p in (text, "")]
        database.unlisten(text)
        assert list(database.listening_channels()) == []


def test_bytes_that_are_no_utf8_arrive_as_surrogates_and_can_be_told(
    dsn_of: Callable[[str], str], connect: Connect
) -> None:
    dsn = dsn_of("SQL_ASCII")
    database = connect(dsn)
    database.execute(b'LISTEN "caf\xe9"')
    with raw(dsn) as run:
        run(b"NOTIFY \"caf\xe9\", '\xff\xfe\x80 \xc3\xa9'")
    (notification,) = take(database, 1)

    assert notification.channel.encode(errors="surrogateescape") == b"caf\xe9"
    assert notification.payload.encode(errors="surrogateescape") == b"\xff\xfe\x80 \xc3\xa9"
    assert notification.payload.endswith(" é")
    assert list(database.listening_channels()) == [notification.channel]


@pytest.mark.parametrize("collected", ["from the socket", "with a statement"])
def test_payload_that_is_no_utf8_does_not_cost_its_neighbours(
    dsn_of: Callable[[str], str], connect: Connect, channel: str, collected: str
) -> None:
    dsn = dsn_of("SQL_ASCII")
    database = connect(dsn)
    database.listen(channel)
    with raw(dsn) as run:
        for payload in (b"1", b"\xff", b"3"):
            run(b"NOTIFY " + channel.encode() + b", '" + payload + b"'")
    if collected == "with a statement":
        database.execute("SELECT 1")

    assert payloads(take(database, 3)) == ["1", "\udcff", "3"]


@pytest.mark.parametrize(
    ("encoding", "client", "names"),
    [
        ("UTF8", "UTF8", ["plain", "é", "漢"]),
        ("UTF8", "LATIN1", ["plain", "é"]),
        ("LATIN1", "UTF8", ["é"]),
        ("EUC_JP", "UTF8", ["漢", "plain"]),
        ("SQL_ASCII", "SQL_ASCII", ["plain", "é", "漢"]),
        ("UTF8", "UTF8", []),
    ],
)
def test_digest_of_the_server_is_ours(
    dsn_of: Callable[[str], str], connect: Connect, encoding: str, client: str, names: list[str]
) -> None:
    database = connect(dsn_of(encoding))
    database.execute(f"SET client_encoding TO {client}")
    database.listen(*names)

    assert digest_told(database) == digest_of(names)
    assert sorted(database.listening_channels()) == sorted(names)


def test_digest_counts_bytes_that_are_no_utf8(
    dsn_of: Callable[[str], str], connect: Connect
) -> None:
    database = connect(dsn_of("SQL_ASCII"))
    database.execute(b'LISTEN "caf\xe9"')

    assert digest_told(database) == digest_of(["caf\udce9"])


def digest_told(database: Database) -> str:
    [[_, _, digest]] = database.execute(ROUND_TRIP).fetchall()
    return digest.decode() if isinstance(digest, bytes) else digest


def test_surrogates_cannot_be_sent_on(dsn_of: Callable[[str], str], connect: Connect) -> None:
    database = connect(dsn_of("SQL_ASCII"))

    with pytest.raises(PayloadError, match="surrogate"):
        database.notify(("x", "\udcff"))


# A client encoding that is changed later


@pytest.mark.spec("1.6")
def test_change_of_the_client_encoding_is_followed(
    connect: Connect, admin: Admin, channel: str
) -> None:
    database = connect()
    for encoding in ("UTF8", "LATIN1", "WIN1252", "UTF8"):
        database.execute(f"SET client_encoding TO {encoding}")
        database.listen(f"{channel} é")
        assert list(database.listening_channels()) == [f"{channel} é"]
        admin.notify(f"{channel} é", "ü", "plain")
        database.notify((f"{channel} é", "ß"))

        arrived = everything(database, admin)

        assert [n.channel for n in arrived] == [f"{channel} é"] * 3
        assert payloads(arrived) == ["ü", "plain", "ß"]
        assert database.notify((channel, "ü")) == 1
        database.unlisten(f"{channel} é")
        assert list(database.listening_channels()) == []


def test_change_of_the_client_encoding_is_followed_between_two_reads(
    listener: Database, admin: Admin, channel: str
) -> None:
    admin.notify(channel, "é")
    assert payloads(take(listener, 1)) == ["é"]
    listener.execute("SET client_encoding TO LATIN1")
    admin.notify(channel, "é")

    assert payloads(take(listener, 1)) == ["é"]


def test_change_of_the_client_encoding_is_followed_on_a_new_session(
    listener: Database, admin: Admin, channel: str
) -> None:
    """Also where the connection before it was in the user's hands."""
    listener.execute("SELECT 1")
    listener.close()
    listener.open().listen(channel)
    admin.notify(channel, "é")
    assert payloads(take(listener, 1)) == ["é"]
    listener.execute("SET client_encoding TO LATIN1")
    admin.notify(channel, "é")

    assert payloads(take(listener, 1)) == ["é"]


def test_sessions_of_different_encodings_do_not_share_names(dsn: str, admin: Admin) -> None:
    """The bytes of one's name are another name for the other."""
    with pgsignals.connect(dsn) as utf8, pgsignals.connect(dsn) as latin1:
        latin1.execute("SET client_encoding TO LATIN1")
        for database in (utf8, latin1):
            database.listen("é", "Ã©")
        admin.notify("Ã©", "1")
        admin.notify("é", "2")

        for database in (utf8, latin1):
            arrived = take(database, 2)
            assert [one.channel for one in arrived] == ["Ã©", "é"]


def test_wrapped_connection_keeps_its_encoding_and_is_understood(
    dsn: str, admin: Admin, channel: str
) -> None:
    with psycopg.connect(dsn, autocommit=True, client_encoding="latin1") as connection:
        database = Database.wrap(connection)
        database.listen(f"{channel} é")
        admin.notify(f"{channel} é", "ü")

        assert take(database, 1) == [(f"{channel} é", "ü", admin.pid)]
        assert spoken(database) == "LATIN1"


def test_channel_that_the_client_encoding_cannot_hold_is_told(listener: Database) -> None:
    listener.listen("漢")
    before = set(listener.listening_channels())
    listener.execute("SET client_encoding TO LATIN1")

    assert set(listener.listening_channels()) == before


@pytest.mark.parametrize(
    ("encoding", "client", "name"),
    [("UTF8", "LATIN1", "漢"), ("SQL_ASCII", "SQL_ASCII", "caf\udce9")],
)
def test_reactor_keeps_a_channel_that_it_could_not_name(
    dsn_of: Callable[[str], str], encoding: str, client: str, name: str
) -> None:
    """Its owner has made a wrapped connection listen to it."""
    raw_name = name.encode(errors="surrogateescape")
    with psycopg.connect(dsn_of(encoding), autocommit=True) as connection:
        if encoding == "SQL_ASCII":
            connection.execute("SET client_encoding TO SQL_ASCII")
        connection.execute(b'LISTEN "' + raw_name + b'"')
        connection.execute(f"SET client_encoding TO {client}")
        database = Database.wrap(connection)
        told: list[object] = []
        reactor = Reactor(database, channels=["mine"], probe_interval=0.1, probe_timeout=5.0)
        for signal in (reactor.gap, reactor.lost, reactor.stopped):
            signal.connect(lambda *_, **what: told.append(what), weak=False)
        with reactor:
            for _ in range(3):
                wait_for_a_round_trip(reactor)
            assert reactor.running
            assert told == []
        assert list(database.listening_channels()) == [name]


def wait_for_a_round_trip(reactor: Reactor) -> None:
    def took() -> float | None:
        return reactor.status().databases[0].probe_seconds

    before = took()
    wait_until(lambda: took() != before)


@pytest.mark.spec("1.7", "N22")
def test_payload_that_a_latin1_listener_cannot_be_told_is_the_end_of_its_session_alone(
    listener: Database, connect: Connect, admin: Admin, channel: str
) -> None:
    other = connect()
    other.listen(channel)
    listener.execute("SET client_encoding TO LATIN1")
    admin.notify(channel, "é", "漢")
    manager = NotificationManager(listener, other)
    got: dict[Database, list[str]] = {listener: [], other: []}

    def complete() -> bool:
        manager.settimeout(0)
        for event in manager:
            assert event is not None
            got[event[0]] += payloads(event[1])
        return manager.garbage == {listener} and len(got[other]) == 2

    wait_until(complete)

    assert got == {listener: ["é"], other: ["é", "漢"]}
    assert manager.connections == {other}
    assert listener.closed


@pytest.mark.spec("1.7", "N22", "8.5")
def test_payload_that_a_latin1_listener_cannot_be_told_ends_its_loop(
    listener: Database, admin: Admin, channel: str
) -> None:
    listener.execute("SET client_encoding TO LATIN1")
    admin.notify(channel, "é", "漢")

    assert payloads([n for n in listener.wait() if n]) == ["é"]
    assert listener.closed


@pytest.mark.spec("1.7", "N22")
def test_statement_tells_why_a_latin1_session_was_lost(
    listener: Database, admin: Admin, channel: str
) -> None:
    listener.execute("SET client_encoding TO LATIN1")
    admin.notify(channel, "漢")
    wait_until(lambda: listener.backend_id not in admin.sessions())

    with pytest.raises(ConnectionLostError) as caught:
        listener.listen("x")

    assert caught.value.sqlstate == "22P05"
