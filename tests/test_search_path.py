"""No name of a statement of ours is looked up in ``search_path``, which others may fill.

Whoever may create functions, operators, types or views in a schema of it, such as the owner of a
database, would otherwise have code of theirs run with our role's rights.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import queue
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pgsignals
from pgsignals import Database, Gap, Notification, Reactor, testing
from pgsignals._pure import statements as _statements
from pgsignals._sources import probing
from pgsignals.cli._checks import OLD_ROUND_TRIP_BEGINS
from pgsignals.embedded import Postgres
from tests.support.arrivals import Connect, payloads, take
from tests.support.commands import Start, commands
from tests.support.plants import FORMAT, MARK, plant
from tests.support.sql import functions_of, looked_up
from tests.support.waiting import LONG, PATIENCE, wait_until

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path.relative_to(ROOT)
    for folder in ("pgsignals", "benchmarks", "tests/support")
    for path in (ROOT / folder).rglob("*.py")
)

#: Commands without expressions, such as LISTEN, have no names that are looked up.
STATEMENT = re.compile(r"\s*(SELECT|WITH|INSERT|UPDATE|DELETE|CREATE|DROP|ALTER|TRUNCATE|DO)\s")

#: What is no statement of ours: how those of an older release begin, and what strangers plant.
OTHERS = (OLD_ROUND_TRIP_BEGINS,)
STRANGERS = ("tests.support.plants", "tests.support.sql")


# -- in the source -------------------------------------------------------------------------------


def statements_in(path: Path) -> Iterator[tuple[str, str]]:
    """Every text of a module that looks like SQL, with where it stands."""
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    known: dict[str, object] = {}
    with contextlib.suppress(ImportError):  # what has an extra that is not installed
        known = vars(importlib.import_module(name)) if not name.endswith("__main__") else {}
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    inside = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node
    }
    texts = [
        (f"{name}:{node.lineno}", text)
        for node in ast.walk(tree)
        if isinstance(node, ast.expr)
        and id(node) not in inside
        and (text := text_of(node, known)) is not None
    ]
    texts += [(f"{name}.{key}", value) for key, value in known.items() if isinstance(value, str)]
    for where, text in texts:
        if STATEMENT.match(text) and text not in OTHERS and name not in STRANGERS:
            yield where, text


def text_of(node: ast.AST, known: dict[str, object]) -> str | None:
    """The text of a literal, with what the module knows, or a word, in place of what is put in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)):
        value = node.value
        return value if isinstance(value, str) else value.decode("ascii", "replace")
    if not isinstance(node, ast.JoinedStr):
        return None
    text = ""
    for part in node.values:
        if isinstance(part, ast.Constant):
            text += str(part.value)
        elif isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name):
            put_in = known.get(part.value.id)
            text += put_in if isinstance(put_in, str) else "x"
        else:
            text += "x"
    return text


def without_fields(text: str) -> str:
    """A text that is yet to be formatted, with words in place of its fields."""
    return re.sub(r"\{\w*\}", "x", text)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_statement_names_nothing_that_is_looked_up(path: Path) -> None:
    faults = {where: looked_up(without_fields(text)) for where, text in statements_in(path)}

    assert not {where: found for where, found in faults.items() if found}


def test_statements_of_the_source_are_found() -> None:
    texts = [text for path in SOURCES for _, text in statements_in(path)]

    assert len(texts) > 30
    called = set().union(*(functions_of(without_fields(text)) for text in texts))
    assert called >= {"pg_notify", "pg_listening_channels", "sha256", "pg_terminate_backend"}


@pytest.mark.parametrize(
    ("sql", "fault"),
    [
        ("SELECT count(*) FROM pg_catalog.pg_class", "function count"),
        ("SELECT a::text FROM s.t", "type text"),
        ("SELECT a::text[] FROM s.t", "type text"),
        ("SELECT 1 = 1", "operator ="),
        ("SELECT a || b FROM s.t", "operator ||"),
        ("SELECT a OPERATOR(public.=) b", "operator ="),
        ("SELECT pg_catalog.f('x')", "untyped 'x'"),
        ("SELECT pg_catalog.f(%s)", "untyped %s"),
        ("SELECT pg_catalog.f(%(x)s)", "untyped %(x)s"),
        ("SELECT a IN (1, 2)", "syntax IN"),
        ("SELECT a LIKE b", "syntax LIKE"),
        ("SELECT a BETWEEN 1 AND 2", "syntax BETWEEN"),
        ("SELECT nullif(a, b)", "syntax NULLIF"),
        ("SELECT CASE a WHEN 1 THEN 2 END", "syntax CASE x WHEN"),
        ("SELECT a IS DISTINCT FROM b", "syntax IS DISTINCT FROM"),
        ("SELECT extract(epoch FROM a)", "syntax EXTRACT"),
        ("SELECT CAST(a AS pg_catalog.text)", "syntax CAST"),
        ("SELECT greatest(a, b)", "function greatest"),
        ("SELECT a FROM pg_stat_activity", "relation pg_stat_activity"),
        ("SELECT a FROM pg_catalog.pg_class, pg_stat_ssl", "relation pg_stat_ssl"),
        ("SELECT a FROM s.t JOIN u ON a", "relation u"),
        ("UPDATE stock SET a = 1", "relation stock"),
        ("UPDATE s.stock SET a = a + 1", "operator +"),
        ("UPDATE s.stock SET a = 1 WHERE b = 2", "operator ="),
        ("WITH x AS (SELECT f() FROM s.t) SELECT a FROM x", "function f"),
        ("CREATE TABLE s.t (a text)", "type text"),
        ("CREATE FUNCTION s.f() RETURNS trigger LANGUAGE sql AS $$ SELECT 1 $$", "type trigger"),
        ("DO $$ BEGIN PERFORM pg_catalog.a(1); PERFORM f(1); END $$", "function f"),
        ("SET a = 1; SELECT f()", "function f"),
    ],
)
def test_name_that_is_looked_up_is_found(sql: str, fault: str) -> None:
    assert fault in looked_up(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT pg_catalog.count(*) FROM pg_catalog.pg_class AS c",
        "SELECT a OPERATOR(pg_catalog.=) 'x'::pg_catalog.text FROM s.t",
        "UPDATE s.t SET a = 1, b = b OPERATOR(pg_catalog.+) 1 WHERE c IS NOT NULL",
        "WITH x AS (SELECT a FROM s.t) INSERT INTO s.u (a, b) VALUES (%s, 'x')",
        "SET search_path = ''; RESET idle_session_timeout",
        "SELECT coalesce(a, b), CASE WHEN a THEN 1 ELSE 2 END FROM s.t ORDER BY a LIMIT 3",
    ],
)
def test_name_that_is_not_looked_up_is_none(sql: str) -> None:
    assert looked_up(sql) == []


# -- on a server where everything has a namesake ---------------------------------------------------

PATHS = {"the default path": None, "public first": "public, pg_catalog"}

#: Of releases up to 0.1.0, and of every statement in the source.
FORMER = {"count", "format", "textsend", "sum", "substr", "unnest", "date_part"}


class Planted:
    """A database that a stranger has filled, and what the server logs of our sessions there."""

    def __init__(self, server: Postgres, dsn: str) -> None:
        self.dsn = dsn
        self._server = server
        self._begun = len(server.log)

    @property
    def entries(self) -> list[str]:
        """What has been logged of sessions that call themselves as ours do, after the number of
        each and ``@@``."""
        entries = re.split(r"^@@", self._server.log[self._begun :], flags=re.MULTILINE)
        return [entry.removeprefix("pgsignals@@") for entry in entries if entry[:9] == "pgsignals"]

    @property
    def statements(self) -> set[str]:
        found = (
            re.match(r"\d+@@LOG:\s+(?:statement|execute [^:]*): (.*)", entry, re.DOTALL)
            for entry in self.entries
        )
        return {match[1].replace("\n\t", "\n").strip() for match in found if match}


@pytest.fixture(scope="module")
def planted_server() -> Iterator[Postgres]:
    settings: dict[str, str | int] = {
        "log_statement": "all",
        "log_line_prefix": "@@%a@@%p@@",
        "max_locks_per_transaction": 500,
    }
    with Postgres(tcp=True, settings=settings) as server:
        yield server


@pytest.fixture(scope="module", params=PATHS, ids=lambda name: name.replace(" ", "_"))
def planted(request: pytest.FixtureRequest, planted_server: Postgres) -> Planted:
    name = f"planted_{list(PATHS).index(request.param)}"
    texts = [text for path in SOURCES for _, text in statements_in(path)]
    called = FORMER.union(*(functions_of(without_fields(text)) for text in texts))
    with psycopg.connect(planted_server.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        dsn = planted_server.dsn_for(name)
        plant(dsn, called)
        if (path := PATHS[request.param]) is not None:
            connection.execute(f"ALTER DATABASE {name} SET search_path = {path}".encode())
    return Planted(planted_server, dsn)


@pytest.fixture
def _no_stranger_runs(planted: Planted) -> Iterator[None]:
    """What the test does runs nothing of what was planted, and no statement fails."""
    before = len(planted.entries)
    yield
    entries = planted.entries[before:]
    assert entries
    assert [entry for entry in entries if MARK in entry or "@@ERROR: " in entry] == []
    statements = [text for text in planted.statements if STATEMENT.match(text)]
    assert {text: found for text in statements if (found := looked_up(text))} == {}


@pytest.fixture
def start(planted: Planted, tmp_path: Path) -> Iterator[Start]:
    with commands(planted.dsn, tmp_path) as start:
        yield start


def test_stranger_runs_where_a_name_is_looked_up(planted: Planted) -> None:
    """The plants grow."""
    with psycopg.connect(planted.dsn, autocommit=True, application_name="victim") as connection:
        notices: list[str] = []
        connection.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
        connection.execute("SET client_min_messages = log")
        connection.execute(
            "SELECT format('%s', pid, datname::text, datname, state, state_change, '') "
            "FROM pg_catalog.pg_stat_activity"
        )
        assert f"{MARK} function format({FORMAT})" in notices
        [[path]] = connection.execute("SHOW search_path").fetchall()
        connection.execute("SELECT 'a'::text || 'b', now() FROM pg_stat_ssl")
    for what in ("type text", "operator text || text", "function now()", "view pg_stat_ssl"):
        assert (f"{MARK} {what}" in notices) == (path == "public, pg_catalog")


runs_no_stranger = pytest.mark.usefixtures("_no_stranger_runs")


@contextlib.contextmanager
def holder_of_the_queue(dsn: str) -> Iterator[None]:
    """A session that keeps a hundred pages of the notification queue."""
    with psycopg.connect(dsn, autocommit=True, application_name="holder") as holder:
        holder.execute("LISTEN held")
        holder.execute("BEGIN")
        with psycopg.connect(dsn, autocommit=True, application_name="filler") as filler:
            large = "x" * 7000
            filler.execute("; ".join(f"NOTIFY held, '{n}{large}'" for n in range(100)).encode())
        yield


@runs_no_stranger
def test_database_runs_no_stranger(planted: Planted) -> None:
    channels = {"a", 'Ä "b"'}
    with pgsignals.connect(planted.dsn) as database:
        database.listen(*channels)
        assert set(database.listening_channels()) == channels
        assert database.notify(("a", "1"), a="2") == 2
        assert payloads(take(database, 2)) == ["1", "2"]
        with database.transaction():
            database.notify("a")
        database.unlisten("*")
        assert list(database.listening_channels()) == []


@runs_no_stranger
def test_reactor_runs_no_stranger(
    planted: Planted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Round trips, canaries, a registration that comes back, a loss, and a queue that is held."""
    monkeypatch.setattr(probing, "QUEUE_ALARM", 1e-9)
    received: list[str] = []
    gaps: list[str] = []

    def noted(_: Database, *, notification: Notification) -> None:
        received.append(notification.payload)

    def gap(_: Database, *, gap: Gap) -> None:
        gaps.append(gap.reason)

    with pgsignals.connect(planted.dsn) as lent, holder_of_the_queue(planted.dsn):
        theirs = lent.connection
        ours = Database(planted.dsn)
        reactor = Reactor(lent, ours, probe_interval=0.2, probe_timeout=PATIENCE)
        reactor.on_channel("a")(noted)
        reactor.gap.connect(gap)
        with reactor:
            ours.notify(("a", "1"))
            wait_until(lambda: received == ["1", "1"])
            theirs.execute("UNLISTEN *")
            wait_until(lambda: gaps == ["unlistened"])
            assert set(ours.listening_channels()) == {"a"}
            ours.listen("b")
            ours.unlisten("b")
            wait_until(lambda: "Sessions that may hold it: pid " in caplog.text)
            testing.kill_listener(ours)
            wait_until(lambda: gaps == ["unlistened", "reconnect"])
            probes = count_of_round_trips(planted)
            wait_until(lambda: count_of_round_trips(planted) >= probes + 2)
    statements = planted.statements
    assert statements >= {_statements.ROUND_TRIP, _statements.QUEUE_HOLDERS, _statements.CANARY}
    assert statements >= {_statements.LISTENING, _statements.IDENTIFY}


def count_of_round_trips(planted: Planted) -> int:
    return sum(_statements.ROUND_TRIP in entry for entry in planted.entries)


@runs_no_stranger
def test_kit_runs_no_stranger(planted: Planted) -> None:
    with pgsignals.connect(planted.dsn) as listener:
        with testing.capture("a", database=listener) as seen:
            listener.notify(("a", "1"))
            assert seen.one().payload == "1"
            seen.none()
        testing.kill_listener(listener)


@runs_no_stranger
@pytest.mark.parametrize(
    "arguments",
    [
        ("doctor",),
        ("top", "a", "--json", "--interval", "0.2", "--timeout", "1", "--probe-interval", "0.3"),
        ("bench", "--seconds", "0.5"),
        ("notify", "a", "1"),
        ("demo", "--seconds", "2", "--dsn"),
    ],
    ids=lambda arguments: str(arguments[0]),
)
def test_command_runs_no_stranger(planted: Planted, start: Start, arguments: tuple[str]) -> None:
    more = [planted.dsn] if arguments[-1] == "--dsn" else []
    with holder_of_the_queue(planted.dsn):
        command = start(*arguments, *more)
        assert command.status(LONG) == 0, command.out + command.err


@runs_no_stranger
def test_listening_command_runs_no_stranger(start: Start) -> None:
    listening = start("listen", "a", "--count", "1")
    listening.until("listening to a")
    assert start("notify", "a", "1").status() == 0

    assert listening.status() == 0
    assert listening.out == "a\t1\n"


# -- sessions that need no search_path -------------------------------------------------------------


def path_of(connection: psycopg.Connection[Any] | Database) -> str:
    [[path]] = connection.execute("SHOW search_path").fetchall()
    return str(path)


def test_sessions_of_a_reactor_have_none(planted: Planted) -> None:
    before = len(planted.entries)
    with Reactor(planted.dsn, channels=["a"]) as reactor:
        reactor.notify("a")
    by_session: dict[str, str] = {}
    for entry in planted.entries[before:]:
        pid, _, text = entry.partition("@@")
        by_session[pid] = by_session.get(pid, "") + text

    listening, control = sorted(by_session.values(), key=lambda text: "LISTEN" not in text)
    assert listening.index("SET search_path = ''") < listening.index("LISTEN")
    assert control.index("set_config('search_path'") < control.index("NOTIFY")


def test_search_path_is_emptied(connect: Connect) -> None:
    database = connect()
    database._custody.clear_search_path()

    assert path_of(database) == ""


def test_search_path_behind_a_pooler_is_left_alone(connect: Connect) -> None:
    """It shows another number than the server's."""
    database = connect()
    before = path_of(database)
    database.execute(_statements.clear_search_path(database.backend_id + 1))

    assert path_of(database) == before


def test_sessions_of_users_keep_theirs(dsn: str, channel: str, connect: Connect) -> None:
    lent, own = connect(), connect()
    paths: queue.SimpleQueue[str] = queue.SimpleQueue()
    for database in (lent, own):
        database.execute("SET search_path = theirs")
    own.listen(channel)
    own.notify(channel)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET search_path = theirs")
        wrapped, free = Database.wrap(connection), Database(dsn)
        reactor = Reactor(lent, wrapped, free, probe_interval=0.1)

        @reactor.on_channel(channel, sender=free)
        def in_handler(db: Database, *, notification: Notification) -> None:
            paths.put(path_of(db))

        with reactor:
            free.notify(channel)
            assert paths.get(timeout=PATIENCE) == '"$user", public'
            assert path_of(connection) == "theirs"

        assert path_of(connection) == "theirs"
        assert path_of(lent) == "theirs"
        assert path_of(own) == "theirs"


def test_session_that_is_given_back_after_a_loss_has_the_usual_one(
    channel: str, connect: Connect
) -> None:
    lent = connect()
    with Reactor(lent, channels=[channel], backoff=(0.01, 0.1)) as reactor:
        testing.kill_listener(lent)
        wait_until(lambda: reactor.status().databases[0].reconnects == 1)

    assert path_of(lent) == '"$user", public'
