"""Publishing events: in every transaction, from every library; only what was committed is there."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import asyncpg
import psycopg
import psycopg.conninfo
import pytest
import sqlalchemy
from sqlalchemy.orm import Session

from pgsignals import Database, publish, publish_many, publish_statement
from pgsignals._durable.schema import Limits, init, install_sql
from pgsignals.embedded import Postgres
from tests.support.sql import looked_up
from tests.support.tools import tool
from tests.support.waiting import Background, wait_until

Rows = list[tuple[Any, ...]]


class Shop:
    """A schema of the test's own, and what is in it."""

    def __init__(self, dsn: str, schema: str) -> None:
        self.dsn = dsn
        self.schema = schema

    def rows(self, columns: str = "payload", table: str = "event") -> Rows:
        with psycopg.connect(self.dsn) as connection:
            sql = f"SELECT {columns} FROM {self.schema}.{table} AS t ORDER BY t.id"
            return connection.execute(sql.encode()).fetchall()

    @property
    def payloads(self) -> list[str]:
        return [payload for (payload,) in self.rows()]


@pytest.fixture
def shop(dsn: str, new_channel: Callable[[], str]) -> Iterator[Shop]:
    schema = f"shop_{new_channel()}"
    with Database(dsn) as db:
        init(db, schema, Limits())
    yield Shop(dsn, schema)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA {schema} CASCADE".encode())


# In the caller's transaction


def test_event_is_there_with_the_commit_and_not_before(shop: Shop) -> None:
    with psycopg.connect(shop.dsn) as connection:
        event_id = publish(connection, "orders", "42", key="k", schema=shop.schema)
        assert shop.payloads == []
        connection.commit()

    assert shop.rows("id, channel, key, headers, payload") == [
        (event_id, "orders", "k", None, "42")
    ]


def test_rolled_back_and_savepoints_leave_exactly_what_was_committed(shop: Shop) -> None:
    with psycopg.connect(shop.dsn) as connection:
        publish(connection, "orders", "kept", schema=shop.schema)
        connection.execute("SAVEPOINT a")
        publish(connection, "orders", "gone", schema=shop.schema)
        connection.execute("ROLLBACK TO a")
        with connection.transaction():
            publish(connection.cursor(), "orders", "kept, too", schema=shop.schema)
        connection.commit()
        publish(connection, "orders", "gone", schema=shop.schema)
        connection.rollback()

    assert shop.payloads == ["kept", "kept, too"]


def test_all_rows_of_a_transaction_have_its_top_level_number(shop: Shop) -> None:
    with psycopg.connect(shop.dsn) as connection:
        publish(connection, "orders", schema=shop.schema)
        with connection.transaction():
            publish(connection, "orders", schema=shop.schema)
        (top,) = connection.execute("SELECT pg_catalog.pg_current_xact_id()::text").fetchone() or ()
        connection.commit()

    assert {txid for (txid,) in shop.rows("txid::text")} == {top}


def test_prepared_transaction_publishes_when_it_is_committed(
    new_channel: Callable[[], str],
) -> None:
    settings = {"max_prepared_transactions": 5}
    with Postgres(tcp=True, settings=settings) as server, Database(server.dsn) as db:
        init(db, "shop", Limits())
        with psycopg.connect(server.dsn) as connection:
            transaction = connection.xid(1, "a", "b")
            connection.tpc_begin(transaction)
            publish(connection, "orders", "42", schema="shop")
            connection.tpc_prepare()
            assert Shop(server.dsn, "shop").payloads == []
            connection.tpc_commit()

        assert Shop(server.dsn, "shop").payloads == ["42"]


# From every library


def url(dsn: str, driver: str) -> sqlalchemy.URL:
    given: dict[str, Any] = psycopg.conninfo.conninfo_to_dict(dsn)
    return sqlalchemy.URL.create(
        f"postgresql+{driver}",
        given["user"],
        given["password"],
        given["host"],
        int(given["port"]),
        given["dbname"],
    )


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_sqlalchemy_publishes_in_its_transaction(shop: Shop, driver: str) -> None:
    engine = sqlalchemy.create_engine(url(shop.dsn, driver))
    more: dict[str, Any] = {"key": "k:1", "headers": {"a": "%s :p1"}, "schema": shop.schema}
    with engine.begin() as connection:
        first = publish(connection, "orders", "one", **more)
        assert publish_many(connection, "orders", ["m", ("n", "k")], schema=shop.schema) == 2
    with Session(engine) as session:
        publish(session, "orders", "two", schema=shop.schema)
        session.commit()
        publish(session, "orders", "gone", schema=shop.schema)
        session.rollback()
    engine.dispose()

    assert shop.payloads == ["one", "m", "n", "two"]
    assert shop.rows("id, key, headers")[0] == (first, "k:1", {"a": "%s :p1"})


def test_django_publishes_in_its_transaction(shop: Shop) -> None:
    given = psycopg.conninfo.conninfo_to_dict(shop.dsn)
    program = f"""
from django.conf import settings
settings.configure(DATABASES={{"default": dict(
    ENGINE="django.db.backends.postgresql", NAME={given["dbname"]!r}, USER={given["user"]!r},
    HOST={given["host"]!r}, PORT={given["port"]!r}, PASSWORD={given["password"]!r})}})
import django
django.setup()
from django.db import connection, connections, transaction
from pgsignals import publish, publish_many
more = dict(schema={shop.schema!r})
with transaction.atomic():
    publish(connection, "orders", "one", headers={{"a": "%s"}}, **more)
    publish("default", "orders", "two", **more)
    publish(connections["default"], "orders", "three", **more)
    assert publish_many(connection, "orders", ["four"], **more) == 1
try:
    with transaction.atomic():
        publish(connection, "orders", "gone", **more)
        raise LookupError
except LookupError:
    pass
connection.close()
try:
    publish("postgresql://app:hush@127.0.0.1/shop", "orders", **more)
except TypeError as refused:
    assert "hush" not in str(refused)
else:
    raise AssertionError("a connection string is no alias")
"""
    subprocess.run([sys.executable, "-c", program], check=True)

    assert shop.payloads == ["one", "two", "three", "four"]


def test_statement_is_for_drivers_that_are_awaited(shop: Shop) -> None:
    async def main() -> None:
        given = psycopg.conninfo.conninfo_to_dict(shop.dsn)
        other = await asyncpg.connect(
            user=given["user"],
            password=given["password"],
            host=given["host"],
            port=given["port"],
            database=given["dbname"],
        )
        more: dict[str, Any] = {"key": "k", "headers": {"a": "b"}, "schema": shop.schema}
        sql, params = publish_statement(
            "orders", "asyncpg", dedup="d", **more, paramstyle="numeric_dollar"
        )
        assert await other.fetchval(sql, *params) > 0
        assert await other.fetchval(sql, *params) is None
        await other.close()
        async with await psycopg.AsyncConnection.connect(shop.dsn) as connection:
            sql, params = publish_statement("orders", "psycopg", **more)
            await connection.execute(sql.encode(), params)
            with pytest.raises(TypeError, match=r"AsyncConnection.*publish_statement"):
                publish(connection, "orders")

    asyncio.run(main())

    assert shop.payloads == ["asyncpg", "psycopg"]


def test_psql_and_triggers_publish(shop: Shop) -> None:
    psql = tool("psql")
    script = f"""
CREATE TABLE {shop.schema}.orders (id int PRIMARY KEY);
CREATE FUNCTION {shop.schema}.tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM {shop.schema}.publish('orders', new.id::text, key => new.id::text);
    RETURN NULL;
END $$;
CREATE TRIGGER tell AFTER INSERT ON {shop.schema}.orders
    FOR EACH ROW EXECUTE FUNCTION {shop.schema}.tell();
INSERT INTO {shop.schema}.orders VALUES (1), (2);
SELECT {shop.schema}.publish('orders', '3', '3', '{{"a": "b"}}');
SELECT {shop.schema}.publish_many('orders', ARRAY['4', '5'], ARRAY['k', NULL]);
"""
    subprocess.run([psql, "-qXv", "ON_ERROR_STOP=1", shop.dsn], input=script.encode(), check=True)

    assert shop.rows("payload, key") == [
        *(("1", "1"), ("2", "2"), ("3", "3")),
        *(("4", "k"), ("5", None)),
    ]


@pytest.mark.parametrize("connection", [3, None, object(), "nope", psycopg])
def test_other_connections_are_refused_by_name(connection: Any) -> None:
    with pytest.raises(TypeError, match=r"psycopg Connection.*SQLAlchemy.*Django") as refused:
        publish(connection, "orders")

    assert "publish_statement()" in str(refused.value)


# Arguments


def test_events_of_one_key_are_in_one_slot(shop: Shop) -> None:
    with psycopg.connect(shop.dsn) as connection:
        for n in range(200):
            publish(connection, "orders", key=f"k{n % 5}", schema=shop.schema)
            publish(connection, "orders", schema=shop.schema)

    slots: dict[str | None, set[int]] = {}
    for key, slot in shop.rows("key, slot"):
        slots.setdefault(key, set()).add(slot)
    assert len(slots.pop(None)) > 40
    assert all(len(found) == 1 for found in slots.values())


def test_delayed_event_waits_beside_the_others_with_its_id(shop: Shop) -> None:
    more: dict[str, Any] = {"schema": shop.schema}
    with psycopg.connect(shop.dsn) as connection:
        later = publish(connection, "orders", "later", key="k", delay=timedelta(hours=1), **more)
        now = publish(connection, "orders", "now", delay=0, **more)

    assert shop.rows("id, payload") == [(now, "now")]
    columns = "id, key, payload, due_at > pg_catalog.now() + '59 min'::interval"
    assert shop.rows(columns, "delayed") == [(later, "k", "later", True)]
    assert later != now


def test_dedup_is_published_once_per_channel(shop: Shop) -> None:
    more: dict[str, Any] = {"dedup": "d", "schema": shop.schema}
    with psycopg.connect(shop.dsn) as connection:
        assert publish(connection, "orders", "1", **more) is not None
        assert publish(connection, "orders", "2", **more) is None
        assert publish(connection, "other", "3", **more) is not None
        assert publish(connection, "orders", "4", delay=60, **more | {"dedup": "e"}) is not None
        assert publish(connection, "orders", "5", **more | {"dedup": "e"}) is None

    assert shop.payloads == ["1", "3"]


@pytest.mark.parametrize("commits", [True, False])
def test_second_of_two_open_transactions_waits_for_the_first(shop: Shop, commits: bool) -> None:
    more: dict[str, Any] = {"dedup": "d", "schema": shop.schema}
    with psycopg.connect(shop.dsn) as first, psycopg.connect(shop.dsn) as second:
        publish(first, "orders", "first", **more)
        later = Background(lambda: publish(second, "orders", "second", **more))
        with psycopg.connect(shop.dsn, autocommit=True) as watch:
            sql = "SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s"
            pid = second.info.backend_pid
            wait_until(lambda: watch.execute(sql, [pid]).fetchone() == ("Lock",))
        if commits:
            first.commit()
        else:
            first.rollback()
        assert (later.result() is None) is commits

    assert shop.payloads == (["first"] if commits else ["second"])


def test_ordered_takes_the_turn_of_its_key(shop: Shop) -> None:
    """Of two that publish one key, the second gets its id only when the first has ended."""
    more: dict[str, Any] = {"ordered": True, "schema": shop.schema}
    with psycopg.connect(shop.dsn) as first, psycopg.connect(shop.dsn) as second:
        publish(first, "orders", "1", key="k", **more)
        publish(second, "orders", "other key", key="l", **more)
        later = Background(lambda: publish(second, "orders", "3", key="k", **more))
        publish(first, "orders", "2", key="k", **more)
        first.commit()
        later.result()

    assert [payload for payload in shop.payloads if payload != "other key"] == ["1", "2", "3"]


@pytest.mark.parametrize("count", [0, 1, 99, 100, 5000])
def test_many_keep_their_order(shop: Shop, count: int) -> None:
    items: list[str | tuple[str, str | None]] = [(str(n), f"k{n % 7}") for n in range(count)]
    items[::2] = [str(n) for n in range(0, count, 2)]
    with psycopg.connect(shop.dsn) as connection:
        assert publish_many(connection, "orders", iter(items), schema=shop.schema) == count

    assert shop.payloads == [str(n) for n in range(count)]
    keys = [key for (key,) in shop.rows("key")]
    assert keys == [None if n % 2 == 0 else f"k{n % 7}" for n in range(count)]


def test_many_with_a_bad_one_send_nothing(shop: Shop) -> None:
    with psycopg.connect(shop.dsn) as connection:
        with pytest.raises(TypeError):
            publish_many(connection, "orders", ["a", 1], schema=shop.schema)  # type: ignore[list-item]
        connection.commit()

    assert shop.payloads == []


def test_awkward_text_survives(shop: Shop) -> None:
    awkward = "tab\t newline\n backslash\\ \\N \\. quote' \u20ac \U0001f418 %s $1 :p1"
    with psycopg.connect(shop.dsn) as connection:
        publish(connection, "o'r\"d%s", awkward, key=awkward, schema=shop.schema)
        publish_many(connection, "o'r\"d%s", [(awkward, awkward)] * 100, schema=shop.schema)

    assert set(shop.rows("channel, key, payload")) == {("o'r\"d%s", awkward, awkward)}


def test_missing_schema_is_the_drivers_own_error(dsn: str) -> None:
    with psycopg.connect(dsn) as connection, pytest.raises(psycopg.errors.InvalidSchemaName):
        publish(connection, "orders", schema="nowhere")


# What the server refuses, whoever publishes

BAD = {
    "an empty channel": "publish('')",
    "a long channel": "publish(pg_catalog.repeat('c', 64))",
    "no channel": "publish(NULL)",
    "no payload": "publish('c', NULL)",
    "a long payload": "publish('c', pg_catalog.repeat('x', 1048577))",
    "a long key": "publish('c', key => pg_catalog.repeat('k', 1025))",
    "a long key, delayed": "publish('c', key => pg_catalog.repeat('k', 1025), delay => '1s')",
    "headers that are a list": "publish('c', headers => '[]')",
    "headers with a number": "publish('c', headers => '{\"a\": 1}')",
    "a negative delay": "publish('c', delay => '-1s')",
    "ordered without a key": "publish('c', ordered => true)",
    "more keys than payloads": "publish_many('c', ARRAY['a'], ARRAY['k', 'l'])",
    "a payload that is NULL": "publish_many('c', ARRAY['a', NULL])",
}


@pytest.mark.parametrize("call", BAD.values(), ids=BAD)
def test_server_refuses(shop: Shop, call: str) -> None:
    with psycopg.connect(shop.dsn) as connection:
        with pytest.raises((psycopg.errors.DataError, psycopg.errors.IntegrityError)) as refused:
            connection.execute(f"SELECT {shop.schema}.{call}".encode())
        assert "xxx" not in str(refused.value)
        assert "kkk" not in str(refused.value)

    assert shop.payloads == []


def test_sequence_is_not_cached(shop: Shop) -> None:
    """Two sessions that take turns would get their ids out of turn."""
    with psycopg.connect(shop.dsn) as connection:
        sql = "SELECT seqcache FROM pg_sequence WHERE seqrelid = %s::regclass"
        assert connection.execute(sql, [f"{shop.schema}.event_id"]).fetchone() == (1,)


def test_other_transactions_do_not_delay_a_publisher(shop: Shop) -> None:
    """The first event of a channel, in a transaction that stays open, is no turn to wait for."""
    with psycopg.connect(shop.dsn) as first, psycopg.connect(shop.dsn) as second:
        publish(first, "new", "1", key="k", schema=shop.schema)
        assert Background(publish, second, "new", "2", key="k", schema=shop.schema).result(30)
        second.commit()

        assert shop.payloads == ["2"]


def test_threads_publish_side_by_side(shop: Shop) -> None:
    def run(n: int) -> None:
        with psycopg.connect(shop.dsn, autocommit=True) as connection:
            for i in range(50):
                publish(connection, "orders", f"{n}/{i}", schema=shop.schema)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    ids = [number for (number,) in shop.rows("id")]
    assert len(set(ids)) == 400


def test_schema_names_nothing_that_is_looked_up() -> None:
    """See test_search_path.py, whose reader of SQL knows neither tables nor PL/pgSQL."""
    text = install_sql("x", Limits())
    variables = r"INTO (new_id|found_few|hi|lo)\b"
    statements = (
        r"RAISE EXCEPTION [^;]*;|GET DIAGNOSTICS [^;]*;|RETURN NULL;|#variable_conflict \w+"
    )
    text = re.sub(rf"{statements}|{variables}|:=|SEQUENCE NAME", "", text)
    text = re.sub(r"(UNIQUE|TABLE) \(", "CHECK (", text).replace("LATERAL (", "(")

    assert looked_up(text) == []
