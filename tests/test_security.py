"""No secret and no payload where they do not belong, and no text that harms."""

from __future__ import annotations

import ast
import dataclasses
import json
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pgsignals
from pgsignals import (
    ChannelNameError,
    ConnectError,
    ConnectionLostError,
    Database,
    Gap,
    Notification,
    NotificationManager,
    PayloadError,
    Reactor,
)
from pgsignals.embedded import Postgres
from pgsignals.testing import Proxy
from tests.support.admin import Admin
from tests.support.arrivals import take
from tests.support.waiting import PATIENCE, wait_until

PACKAGE = Path(pgsignals.__file__).parent

#: The password, which must be found nowhere.
CANARY = "CANARYk5Qz7"

#: The payload, which must be found nowhere but where it is wanted.
PAYLOAD = "PAYLOADx8Wv2"


# -- looking ---------------------------------------------------------------------------------------


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """*error* and all that hangs on it, suppressed or not."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__cause__, one.__context__]


def locals_of_ours(error: BaseException) -> Iterator[tuple[str, str]]:
    """What a reporter of errors shows of the frames of this library: (where, repr)."""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
            for name, value in frame.f_locals.items():
                where = f"{Path(frame.f_code.co_filename).name}:{line} {frame.f_code.co_name}"
                yield f"{where}: {name}", repr(value)


def texts_of(error: BaseException) -> Iterator[tuple[str, str]]:
    """Every text that can be got from an error without reaching for a connection."""
    for one in chain(error):
        kind = type(one).__name__
        yield f"str of {kind}", str(one)
        yield f"repr of {kind}", repr(one)
        yield f"args of {kind}", repr(one.args)
        yield f"attributes of {kind}", repr(vars(one))
        yield f"notes of {kind}", repr(getattr(one, "__notes__", None))
        pgconn = getattr(one, "pgconn", None)
        yield f"connection of {kind}", repr(getattr(pgconn, "password", None))
        if isinstance(one, pgsignals.Error):
            yield f"pickle of {kind}", repr(pickle.dumps(one))
    yield "traceback", "".join(traceback.format_exception(error))


def holders(texts: Iterator[tuple[str, str]], secret: str) -> list[str]:
    """Where the secret was found."""
    return [where for where, text in texts if secret in text]


def texts_of_reactor(reactor: Reactor) -> Iterator[tuple[str, str]]:
    status = reactor.status()
    yield "repr of the reactor", repr(reactor)
    yield "repr of the status", repr(status)
    yield "the status as JSON", json.dumps(dataclasses.asdict(status))
    for database in reactor.databases:
        yield "repr of a database", repr(database)
        yield "name of a database", database.name


def logged(caplog: pytest.LogCaptureFixture) -> Iterator[tuple[str, str]]:
    """All records with their tracebacks and arguments."""
    formatter = logging.Formatter()
    for record in caplog.get_records("call"):
        yield f"log, {record.name}", formatter.format(record)
        yield f"arguments of a record, {record.name}", repr(record.args)


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


@pytest.fixture(scope="module")
def role(admin: Admin) -> Iterator[str]:
    """A role with the canary for its password."""
    admin.execute(f"CREATE ROLE canary LOGIN PASSWORD '{CANARY}'")
    yield "canary"
    admin.execute("DROP ROLE canary")


@pytest.fixture
def secret_dsn(postgres: Postgres, role: str) -> str:
    """Leads to the server with the canary for its password."""
    return postgres.dsn_for(user=role, password=CANARY)


# -- connection strings ----------------------------------------------------------------------------

UNREADABLE = {
    "no equals sign": CANARY,
    "password alone": f"host=127.0.0.1 {CANARY}",
    "open quote": f"password='{CANARY}",
    "open quote at the end": f"password={CANARY} dbname='x",
    "open bracket": f"postgresql://u:{CANARY}@[::1/db",
    "percent": f"postgresql://u:{CANARY}%ZZ@127.0.0.1/db",
    "percent before": f"postgresql://u:%ZZ{CANARY}@127.0.0.1/db",
    "percent and NUL": f"postgresql://u:{CANARY}%00@127.0.0.1/db",
    "unknown keyword": f"password={CANARY} nonsense=1",
    "unknown parameter": f"postgresql://u:{CANARY}@127.0.0.1/db?nonsense=1",
    "parameter without value": f"postgresql://u:{CANARY}@127.0.0.1/db?{CANARY}",
    "two question marks": f"postgresql://u@127.0.0.1/db?password={CANARY}?x=1",
    "key that is the password": f"{CANARY}=x",
    "question mark in the password": f"postgresql://u:{CANARY}?x@127.0.0.1/db",
    "space in a URI": f"postgresql://u:{CANARY} x@127.0.0.1 /db",
    "NUL": f"password={CANARY}\0x",
    "surrogate": f"password={CANARY}\ud800",
}

REFUSED = {
    "port is no number": f"password={CANARY} host=127.0.0.1 port=x",
    "port out of range": f"password={CANARY} host=127.0.0.1 port=99999999",
    "port, closed": f"postgresql://u:{CANARY}@127.0.0.1:1/db",
    "more ports than hosts": f"password={CANARY} host=a,b port=1,2,3",
    "sslmode": f"password={CANARY} host=127.0.0.1 port=1 sslmode=never",
    "gssencmode": f"password={CANARY} host=127.0.0.1 port=1 gssencmode=maybe",
    "channel_binding": f"password={CANARY} host=127.0.0.1 port=1 channel_binding=maybe",
    "target_session_attrs": f"password={CANARY} host=127.0.0.1 port=1 target_session_attrs=x",
    "connect_timeout": f"password={CANARY} host=127.0.0.1 port=1 connect_timeout=x",
    "hostaddr": f"password={CANARY} hostaddr=not-an-address",
    "host": f"postgresql://u:{CANARY}@host.invalid/db",
    "directory": f"password={CANARY} host=/nonexistent",
    "slash in the password": f"postgresql://u:{CANARY}/x@127.0.0.1/db",
    "slash and digits in the password": f"postgresql://u:12/{CANARY}@127.0.0.1/db",
    "at sign in the password": f"postgresql://u:x@{CANARY}@127.0.0.1/db",
    "hash in the password": f"postgresql://u:{CANARY}#x@127.0.0.1/db",
    "sslcert": f"host=127.0.0.1 port=1 sslkey=/x sslcert=/x sslpassword={CANARY}",
}

each_dsn = pytest.mark.parametrize(
    "conninfo", [pytest.param(text, id=name) for name, text in {**UNREADABLE, **REFUSED}.items()]
)


@each_dsn
def test_bad_connection_string_is_not_echoed(
    conninfo: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(conninfo)
    with pytest.raises(ConnectError) as caught:
        database.open()

    assert "\n" not in str(caught.value)
    assert holders(texts_of(caught.value), CANARY) == []
    assert holders(iter([("repr", repr(database)), ("name", database.name)]), CANARY) == []
    assert holders(logged(caplog), CANARY) == []


@each_dsn
def test_bad_connection_string_of_a_reactor_is_not_echoed(
    conninfo: str, caplog: pytest.LogCaptureFixture
) -> None:
    reactor = Reactor(conninfo)
    with pytest.raises(ConnectError) as caught:
        reactor.start()

    assert holders(texts_of(caught.value), CANARY) == []
    assert holders(texts_of_reactor(reactor), CANARY) == []
    assert holders(logged(caplog), CANARY) == []


def test_bad_keywords_are_not_echoed(caplog: pytest.LogCaptureFixture) -> None:
    for params in ({"password": CANARY, "nonsense": 1}, {"password": CANARY, "port": "x"}):
        with pytest.raises(ConnectError) as caught:
            pgsignals.connect(host="127.0.0.1", **params)
        assert holders(texts_of(caught.value), CANARY) == []
    assert holders(logged(caplog), CANARY) == []


# -- what a reporter of errors shows ---------------------------------------------------------------


@pytest.mark.parametrize(
    "open_it",
    [
        pytest.param(lambda dsn: pgsignals.connect(dsn), id="connect"),
        pytest.param(
            lambda dsn: pgsignals.connect(host="127.0.0.1", port=1, password=CANARY),
            id="connect with keywords",
        ),
        pytest.param(lambda dsn: Database(dsn).open(), id="open"),
        pytest.param(lambda dsn: Reactor(dsn).start(), id="start"),
    ],
)
@pytest.mark.parametrize(
    "conninfo", [UNREADABLE["percent"], REFUSED["port, closed"]], ids=["unreadable", "refused"]
)
def test_frames_of_ours_hold_no_password(conninfo: str, open_it: Callable[[str], object]) -> None:
    """Reporters of errors send the variables of every frame over the network."""
    with pytest.raises(ConnectError) as caught:
        open_it(conninfo)

    found = [
        where
        for one in chain(caught.value)
        for where, text in locals_of_ours(one)
        if CANARY in text
    ]
    assert found == []


def test_frames_of_ours_hold_no_password_when_a_session_is_lost(
    secret_dsn: str, channel: str, admin: Admin
) -> None:
    database = Database(secret_dsn).open()
    admin.kill(database.backend_id)
    with pytest.raises(ConnectionLostError) as caught:
        database.notify((channel, "x"))
    database.close()

    assert holders(texts_of(caught.value), CANARY) == []
    found = [
        where
        for one in chain(caught.value)
        for where, text in locals_of_ours(one)
        if CANARY in text
    ]
    assert found == []


# -- a wrong password, a lost session --------------------------------------------------------------


def test_wrong_password(postgres: Postgres, role: str, caplog: pytest.LogCaptureFixture) -> None:
    dsn = postgres.dsn_for(user=role, password=f"{CANARY}wrong")
    with pytest.raises(ConnectError, match="authentication failed") as caught:
        pgsignals.connect(dsn)
    reactor = Reactor(dsn)
    with pytest.raises(ConnectError, match="authentication failed") as caught_by_reactor:
        reactor.start()

    assert holders(texts_of(caught.value), CANARY) == []
    assert holders(texts_of(caught_by_reactor.value), CANARY) == []
    assert holders(texts_of_reactor(reactor), CANARY) == []
    assert holders(logged(caplog), CANARY) == []


def psycopg_refuses_the_string() -> Any:
    return psycopg.connect(f"host=127.0.0.1 {CANARY}", autocommit=True)


def psycopg_refuses_the_port() -> Any:
    return psycopg.connect(f"postgresql://u:{CANARY}/x@127.0.0.1/db", autocommit=True)


def server_refuses() -> Any:
    return psycopg.connect(f"host=127.0.0.1 port=1 password={CANARY}", autocommit=True)


@pytest.mark.parametrize(
    "fail", [psycopg_refuses_the_string, psycopg_refuses_the_port, server_refuses]
)
def test_connect_that_fails_when_it_reconnects(
    secret_dsn: str,
    proxy: Proxy,
    admin: Admin,
    caplog: pytest.LogCaptureFixture,
    fail: Callable[[], Any],
) -> None:
    """What the user's function raised is neither logged nor shown with its secrets."""
    good = [True]

    def connect() -> Any:
        return psycopg.connect(secret_dsn, autocommit=True) if good else fail()

    reactor = Reactor(Database(connect=connect), backoff=(0.01, 0.02), probe_interval=None)
    with reactor:
        good.clear()
        admin.kill(reactor.status().databases[0].backend_id or 0)
        wait_until(lambda: sum("attempt" in text for _, text in logged(caplog)) >= 2)
        assert holders(texts_of_reactor(reactor), CANARY) == []
    assert holders(logged(caplog), CANARY) == []


def test_life_of_a_reactor(
    secret_dsn: str, channel: str, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    """Listening, a loss, a gap, a handler that fails, a payload that cannot be decoded."""
    reactor = Reactor(secret_dsn, backoff=(0.01, 0.02), name="pgsignals-canary")
    texts: list[tuple[str, str]] = []
    failed: list[object] = []

    @reactor.gap.connect
    def note_gap(_: Database, gap: Gap) -> None:
        texts.append(("gap", repr(gap)))

    @reactor.lost.connect
    def note_lost(_: Database, reason: str, error: ConnectionLostError) -> None:
        texts.extend(texts_of(error))
        texts.extend(item for one in chain(error) for item in locals_of_ours(one))

    @reactor.handler_failed.connect
    def note_failed(_: Database, notification: object, **__: object) -> None:
        texts.append(("what failed", repr(notification)))
        failed.append(notification)

    @reactor.on_channel(channel)
    def fail(db: Database, notification: Notification) -> None:
        db.execute("SELECT 1")
        raise ValueError("on purpose")

    @reactor.on_channel(channel, decode=json.loads)
    def decode(_: Database, **__: object) -> None:
        raise AssertionError("it cannot be decoded")

    @reactor.on_channel(channel, decode=json.loads, batch=True)
    def decode_batch(_: Database, **__: object) -> None:
        raise AssertionError("it cannot be decoded")

    with reactor:
        reactor.notify((channel, PAYLOAD))
        wait_until(lambda: len(failed) == 3)
        admin.kill(reactor.status().databases[0].backend_id or 0)
        wait_until(lambda: any(where == "gap" for where, _ in texts))
        texts += texts_of_reactor(reactor)
        seen = admin.execute("SELECT * FROM pg_stat_activity")
        texts.append(("pg_stat_activity", repr(seen)))
        manager = NotificationManager()
        texts += [("repr of a manager", repr(manager)), ("a database", repr(reactor.databases))]
    texts += texts_of_reactor(reactor)
    texts += logged(caplog)

    assert holders(iter(texts), CANARY) == []
    assert holders(iter(texts), PAYLOAD) == []


def test_activity_of_a_database_shows_no_payload(
    secret_dsn: str, channel: str, admin: Admin
) -> None:
    with Database(secret_dsn) as database:
        database.listen(channel)
        database.notify((channel, PAYLOAD), **{channel: f"{PAYLOAD}2"})
        (shown,) = admin.execute(
            "SELECT a::text FROM pg_stat_activity a WHERE pid = %s", database.backend_id
        )
        assert len(take(database, 2)) == 2

    assert "pg_notify" in shown[0]
    assert PAYLOAD not in shown[0]
    assert CANARY not in shown[0]


# -- payloads in messages --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [PAYLOAD * 700, f"{PAYLOAD}\0", f"{PAYLOAD}\ud800", f"é{PAYLOAD}" * 700],
    ids=["too long", "NUL", "surrogate", "too many bytes"],
)
def test_refused_payload_is_not_repeated(
    dsn: str, channel: str, payload: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Database(dsn) as database, pytest.raises(PayloadError) as caught:
        database.notify((channel, payload))

    assert holders(texts_of(caught.value), PAYLOAD) == []
    assert holders(logged(caplog), PAYLOAD) == []


def test_items_of_a_wrong_type_are_not_repeated(dsn: str, channel: str) -> None:
    items: list[Any] = [(channel, PAYLOAD, 1), (None, PAYLOAD), [channel, PAYLOAD], (PAYLOAD,)]
    with Database(dsn) as database:
        for item in items:
            with pytest.raises(TypeError) as caught:
                database.notify(item)
            assert holders(texts_of(caught.value), PAYLOAD) == []


def test_notification_does_not_show_its_payload() -> None:
    notification = Notification("x", PAYLOAD, 1)

    for text in (repr(notification), str(notification), f"{notification}", f"{[notification]}"):
        assert PAYLOAD not in text


@pytest.mark.parametrize("name", ["a\nFAKE LOG LINE", "a\x1b[2J", "a\r", "a\u2028b"])
def test_channel_name_cannot_forge_a_line_of_the_log(
    dsn: str, admin: Admin, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    reactor = Reactor(dsn)
    failed = []
    reactor.handler_failed.connect(lambda *_, **__: failed.append(True), weak=False)

    @reactor.on_channel(name)
    def fail(*_: object, **__: object) -> None:
        raise ValueError("on purpose")

    with reactor:
        admin.notify(name, "x")
        wait_until(lambda: failed)
    messages = [record.getMessage() for record in caplog.get_records("call")]
    assert any("ValueError" in text or "fail" in text for text in messages)
    assert [text for text in messages if name in text] == []


def test_refused_channel_name_cannot_forge_a_line() -> None:
    for name in ("x\n" * 40, "\x1b[2J" + "x" * 70):
        with pytest.raises(ChannelNameError) as caught:
            Reactor("", channels=[name])
        assert "\n" not in str(caught.value)
        assert "\x1b" not in str(caught.value)


# -- exceptions that travel ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        one
        for one in vars(pgsignals).values()
        if isinstance(one, type) and issubclass(one, pgsignals.Error)
    ],
)
def test_error_can_be_pickled(kind: type[pgsignals.Error]) -> None:
    error = kind("the reason")
    if isinstance(error, ConnectionLostError):
        error = ConnectionLostError("the reason", sqlstate="57P01")
    again = pickle.loads(pickle.dumps(error))

    assert type(again) is kind
    assert str(again) == "the reason"
    assert vars(again) == vars(error)


# -- any text, there and back ----------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=80)
names = text.map(lambda one: one.encode()[:63].decode(errors="ignore")).filter(
    lambda one: one not in ("", "*", "pgsignals.probe")
)
hostile = st.sampled_from(
    [
        "'; DROP TABLE x; --",
        "\\'",
        '"',
        "$1",
        "$$",
        "%s",
        "{}",
        "{0.__class__}",
        "\x1b[31m",
        "\\x00",
    ]
)
payload_texts = st.one_of(text, hostile, st.text("é漢😀x", max_size=1999))
pairs = st.lists(st.tuples(names | hostile, payload_texts), min_size=1, max_size=8, unique=True)


def test_any_text_makes_the_round_trip_of_a_database(dsn: str) -> None:
    with Database(dsn) as database:

        @settings(deadline=None, max_examples=150)
        @given(pairs)
        def round_trip(items: list[tuple[str, str]]) -> None:
            channels = {name for name, _ in items}
            database.listen(*channels)
            assert set(database.listening_channels()) == channels
            assert database.notify(*items) == len(items)
            assert [(n.channel, n.payload) for n in take(database, len(items))] == items
            database.unlisten("*")

        round_trip()


def test_any_text_makes_the_round_trip_of_a_reactor(dsn: str) -> None:
    arrived: list[tuple[str, str]] = []
    with Reactor(dsn) as reactor:
        backend = reactor.status().databases[0].backend_id

        @reactor.any_channel.connect
        def note(_: Database, notification: Notification) -> None:
            arrived.append((notification.channel, notification.payload))

        @settings(deadline=None, max_examples=60)
        @given(pairs)
        def round_trip(items: list[tuple[str, str]]) -> None:
            reactor.listen(*(name for name, _ in items))
            reactor.notify(*items)
            wait_until(lambda: len(arrived) >= len(items), PATIENCE)
            reactor.unlisten("*")
            assert arrived == items
            arrived.clear()

        round_trip()
        assert reactor.status().databases[0].backend_id == backend


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=40))
def test_any_text_is_a_connection_string_that_does_no_harm(conninfo: str) -> None:
    database = Database(f"{conninfo} {CANARY}")
    assert isinstance(repr(database), str)
    assert database.closed


# -- what the source never does --------------------------------------------------------------------

FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "yaml", "code", "runpy"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
ASKED_FOR = {("listen.py", "isinstance(self._command, str)")}  # with --shell


def test_source_neither_unpickles_nor_evaluates() -> None:
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            imported: list[str] = []
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                imported = [node.module or ""]
            bad = {name.split(".")[0] for name in imported} & FORBIDDEN_MODULES
            if isinstance(node, ast.Call):
                function = node.func
                name = getattr(function, "id", getattr(function, "attr", ""))
                # re.compile, and the like of a method, is another thing than the built-in.
                if name in FORBIDDEN_CALLS and not (
                    name == "compile" and isinstance(function, ast.Attribute)
                ):
                    bad.add(name)
                bad |= {
                    "shell=True"
                    for keyword in node.keywords
                    if keyword.arg == "shell"
                    and getattr(keyword.value, "value", True)
                    and (path.name, ast.unparse(keyword.value)) not in ASKED_FOR
                }
            found += [f"{path.name}:{getattr(node, 'lineno', '?')} {name}" for name in bad]
    assert found == []
