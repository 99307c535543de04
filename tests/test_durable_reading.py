"""Reading events as the difference of two snapshots: nothing is lost, nothing comes twice, and each
key keeps its order; and the ways of reading that look simpler fail in the same run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import psycopg
import pytest

from pgsignals import Database
from pgsignals._durable.schema import Limits, init
from pgsignals.embedded import Postgres
from tests.programs.readers import (
    Difference,
    Naive,
    Reader,
    Xmin,
    install_mutants,
    publish,
    storm,
)


@pytest.fixture
def schema(dsn: str, new_channel: Callable[[], str]) -> Iterator[str]:
    name = f"reading_{new_channel()}"
    with Database(dsn) as db:
        init(db, name, Limits())
    yield name
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA {name} CASCADE".encode())


def test_difference_loses_nothing_where_simpler_readers_do(dsn: str, schema: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        install_mutants(connection, schema)
    readers: dict[str, Reader] = {
        "pages of 1": Difference(dsn, schema, 1),
        "pages of 7": Difference(dsn, schema, 7),
        "pages of 500": Difference(dsn, schema, 500),
        "a walk over ids": Difference(dsn, schema, 7, few=3),
        "naive": Naive(dsn, schema, 100),
        "xmin": Xmin(dsn, schema, 100),
        "without xips": Difference(dsn, schema, 100, function="without_xips"),
        "by txid": Difference(dsn, schema, 500, function="by_txid"),
    }
    with storm(dsn, schema, readers, seed=1) as writers:
        writers.run(12, transactions=120)

    committed = writers.committed
    assert len(committed) > 1500
    for name in ("pages of 1", "pages of 7", "pages of 500", "a walk over ids"):
        reader = readers[name]
        found = reader.lost(committed), reader.twice(), reader.never_committed(committed)
        assert found == (set(), [], set()), name
        assert reader.inversions() == 0, name
    # The same run shows what the harness can see.
    assert readers["naive"].lost(committed)
    assert readers["without xips"].lost(committed)
    assert not readers["xmin"].lost(committed)
    assert readers["xmin"].inversions() > 0
    assert readers["by txid"].inversions() > 0


def test_cached_sequence_would_break_the_order(dsn: str, schema: str) -> None:
    """Why the sequence of ids is not cached."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"ALTER SEQUENCE {schema}.event_id CACHE 50".encode())
    reader = Difference(dsn, schema, 500)
    with storm(dsn, schema, {"cached": reader}, seed=2) as writers:
        writers.run(8, transactions=60)

    assert reader.lost(writers.committed) == set()
    assert reader.inversions() > 0


def test_open_transaction_delays_no_event_but_its_own(dsn: str, schema: str) -> None:
    reader, bounded = Difference(dsn, schema, 10), Xmin(dsn, schema, 10)
    with psycopg.connect(dsn) as holder, psycopg.connect(dsn, autocommit=True) as other:
        sql = f"SELECT {schema}.publish('orders', %s::text, 'k')".encode()
        holder.execute(sql, ["1"])
        other.execute(sql, ["2"])
        assert [payload for _, _, payload in reader.poll()] == ["2"]
        assert bounded.poll() == []
        holder.commit()
        assert [payload for _, _, payload in reader.poll()] == ["1"]
        assert [payload for _, _, payload in bounded.poll()] == ["1", "2"]
    reader.close()
    bounded.close()


def test_fetch_refuses_a_transaction_that_has_written(dsn: str, schema: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("SELECT pg_catalog.pg_current_xact_id()")
        sql = f"SELECT 1 FROM {schema}.fetch('c', -1, '3:3:', NULL, 0, NULL, NULL, 10)"
        with pytest.raises(
            psycopg.errors.ObjectNotInPrerequisiteState, match="transaction that has written"
        ):
            connection.execute(sql.encode())


def test_fetch_refuses_a_position_from_the_future(dsn: str, schema: str) -> None:
    with psycopg.connect(dsn) as connection:
        future = "1000000000:1000000000:"
        sql = f"SELECT 1 FROM {schema}.fetch('c', -1, %s::pg_snapshot, NULL, 0, NULL, NULL, 10)"
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="from the future"):
            connection.execute(sql.encode(), [future])


def test_slots_divide_the_events(dsn: str, schema: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        (s1,) = connection.execute("SELECT pg_current_snapshot()::text").fetchone() or ("",)
        publish = f"SELECT {schema}.publish_many('c', ARRAY(SELECT generate_series(1, 300)::text))"
        connection.execute(publish.encode())
        sql = (
            f"SELECT payload FROM {schema}.fetch('c', %s::int8, %s::pg_snapshot, NULL, 0, NULL, "
            "NULL, 1000)"
        )
        parts = [
            {payload for (payload,) in connection.execute(sql.encode(), [mask, s1]).fetchall()}
            for mask in (0xFFFFFFFF, -1 << 32)
        ]

    assert all(parts)
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {str(n) for n in range(1, 301)}


def test_position_that_was_only_in_memory_loses_events_over_a_crash() -> None:
    """A server that crashes gives the numbers of transactions out again whose commit it had not yet
    written: so positions are read again after every reconnect, from a row that was written."""
    settings = {"synchronous_commit": "off", "wal_writer_delay": "10s", "fsync": "on"}
    with Postgres(tcp=True, settings=settings) as server:
        with Database(server.dsn) as db:
            init(db, "shop", Limits())
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CHECKPOINT")
            connection.execute("SET synchronous_commit = on")
            publish(connection, "shop", "k", 1)
            kept = Difference(server.dsn, "shop", 10)  # as a row that was written would have it
            connection.execute("SET synchronous_commit = off")
            for n in range(2, 40):
                publish(connection, "shop", "k", n)
            cached = Difference(server.dsn, "shop", 10)
        server.stop("immediate")
        server.start()
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("SET synchronous_commit = on")
            (survived,) = connection.execute("SELECT count(*) FROM shop.event").fetchone() or (0,)
            number = publish(connection, "shop", "k", 100)
        read = []
        for reader in (kept, cached):
            again = Difference(server.dsn, "shop", 100)
            again._s1 = reader._s1
            with contextlib.suppress(psycopg.errors.ObjectNotInPrerequisiteState):
                read.append({one for one, _, _ in again.poll()})
            for one in (reader, again):
                one.close()

    assert survived < 39, "the server had written all of it"
    assert number in read[0]
    assert len(read) == 1 or number not in read[1]
