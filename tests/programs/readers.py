"""Ways to read a table of events, ours and those that lose or mix up events, and writers."""

from __future__ import annotations

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from pgsignals._durable.schema import Limits, install_sql

CHANNEL = "orders"
KEYS = [f"k{n}" for n in range(12)]


class Reader:
    """Polls on a thread of its own, until it has read the event that comes last."""

    def __init__(self, dsn: str, schema: str, size: int) -> None:
        self.read: list[tuple[int, str, int]] = []  # id, key, number within the key
        self._size = size
        self._schema = schema
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._ended = False
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def poll(self) -> list[tuple[int, str, str]]:
        """The next page: id, key and payload."""
        raise NotImplementedError

    def _run(self) -> None:
        while not self._ended:
            page = self.poll()
            self.read += [(number, key, int(payload)) for number, key, payload in page]
            if not page:
                time.sleep(0.002)

    def execute(self, sql: str, params: list[Any]) -> list[Any]:
        return self._connection.execute(sql.encode(), params).fetchall()

    def end(self, last: int, within: float) -> None:
        """Give it time to read the event *last*, and stop it."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline and last not in {number for number, _, _ in self.read}:
            time.sleep(0.01)
        self.close()

    def close(self) -> None:
        """Stop it."""
        self._ended = True
        if self._thread.ident is not None:
            self._thread.join()
        self._connection.close()

    def lost(self, committed: set[int]) -> set[int]:
        return committed - {number for number, _, _ in self.read}

    def twice(self) -> list[int]:
        counts = Counter(number for number, _, _ in self.read)
        return [number for number, count in counts.items() if count > 1]

    def never_committed(self, committed: set[int]) -> set[int]:
        return {number for number, _, _ in self.read} - committed

    def inversions(self) -> int:
        """How often an event came after a later one of its key."""
        latest: dict[str, int] = {}
        count = 0
        for _, key, number in self.read:
            count += number < latest.get(key, -1)
            latest[key] = max(number, latest.get(key, -1))
        return count


class Difference(Reader):
    """Ours: what is visible now and was not visible before.

    :param few: see ``fetch`` in ``schema.sql``.
    :param function: another function in its place.
    """

    def __init__(
        self, dsn: str, schema: str, size: int, few: int = 4000, function: str = "fetch"
    ) -> None:
        super().__init__(dsn, schema, size)
        self._few = few
        self._function = function
        ((self._s1,),) = self.execute("SELECT pg_catalog.pg_current_snapshot()::text", [])
        self._batch: list[Any] = [None, 0, None, None]  # s2, last_id, lo, hi

    def poll(self) -> list[tuple[int, str, str]]:
        sql = (
            f"SELECT batch::text, low, high, id, key, payload FROM {self._schema}.{self._function}"
            "(%s, -1, %s::pg_snapshot, %s::pg_snapshot, %s, %s, %s, %s::int4, %s::int4)"
        )
        given = [CHANNEL, self._s1, *self._batch, self._size, self._few]
        rows = self.execute(sql, given)
        page = [(row[3], row[4], row[5]) for row in rows if row[3] is not None]
        if len(page) < self._size:
            self._s1, self._batch = rows[0][0], [None, 0, None, None]
        else:
            self._batch = [rows[0][0], page[-1][0], rows[0][1], rows[0][2]]
        return page


class Naive(Reader):
    """Remembers the last id."""

    _last = 0

    def poll(self) -> list[tuple[int, str, str]]:
        sql = (
            f"SELECT id, key, payload FROM {self._schema}.event WHERE id > %s ORDER BY id LIMIT %s"
        )
        page = self.execute(sql, [self._last, self._size])
        self._last = page[-1][0] if page else self._last
        return page


class Xmin(Reader):
    """Reads up to the oldest transaction that runs, in the order of transactions."""

    _last: tuple[str, int] = ("0", 0)

    def poll(self) -> list[tuple[int, str, str]]:
        sql = (
            f"SELECT id, key, payload, txid::text AS x FROM {self._schema}.event AS e "
            "WHERE txid < pg_snapshot_xmin(pg_current_snapshot()) "
            "AND (txid, id) > (%s::xid8, %s::int8) ORDER BY e.txid, e.id LIMIT %s"
        )
        rows = self.execute(sql, [*self._last, self._size])
        self._last = (rows[-1][3], rows[-1][0]) if rows else self._last
        return [row[:3] for row in rows]


def install_mutants(connection: psycopg.Connection[Any], schema: str) -> None:
    """Functions as ``fetch``, each broken in one way."""
    text = install_sql(schema, Limits())
    found = re.search(r"CREATE FUNCTION \S+\.fetch\(.*?\$fetch\$;", text, re.DOTALL)
    assert found is not None
    for name, old, new in (
        ("without_xips", r"ended := ARRAY\(.*?\);", "ended := '{}';"),
        ("by_txid", r"ORDER BY q\.id LIMIT most", "ORDER BY q.txid, q.id LIMIT most"),
    ):
        mutant, count = re.subn(old, new, found[0], flags=re.DOTALL)
        assert count
        connection.execute(mutant.replace(".fetch(", f".{name}(", 1).encode())


class Writers:
    """Publish under row locks, so that the events of each key have an order; and now and then roll
    back, to a savepoint or altogether, or take their time."""

    def __init__(self, dsn: str, schema: str, seed: int) -> None:
        self.committed: set[int] = set()
        self._dsn = dsn
        self._schema = schema
        self._seed = seed
        self._lock = threading.Lock()
        self._errors: list[BaseException] = []

    def run(self, count: int, transactions: int) -> None:
        """Let *count* writers commit or roll back this many transactions each, side by side."""
        threads = [
            threading.Thread(target=self._guarded, args=(n, transactions)) for n in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def _guarded(self, number: int, transactions: int) -> None:
        try:
            self._write(random.Random(self._seed + number), number, transactions)
        except BaseException as exc:
            self._errors.append(exc)

    def _write(self, rng: random.Random, number: int, transactions: int) -> None:
        with psycopg.connect(self._dsn) as connection:
            for at in range(transactions):
                ids = self._publish(connection, rng)
                time.sleep(1.0 if number == 0 and at == transactions // 2 else rng.uniform(0, 0.02))
                if rng.random() < 0.1:
                    connection.rollback()
                else:
                    connection.commit()
                    with self._lock:
                        self.committed.update(ids)

    def _publish(self, connection: psycopg.Connection[Any], rng: random.Random) -> list[int]:
        if rng.random() < 0.3:  # a number of its own before the first event
            connection.execute("SELECT pg_catalog.pg_current_xact_id()")
        ids = []
        for key in sorted(rng.sample(KEYS, rng.randint(1, 3))):
            connection.execute("SAVEPOINT s")
            taken = self._take_turn(connection, key)
            if rng.random() < 0.05:
                connection.execute("ROLLBACK TO s")
            else:
                ids.append(taken)
        return ids

    def _take_turn(self, connection: psycopg.Connection[Any], key: str) -> int:
        sql = f"UPDATE {self._schema}.turns SET n = n + 1 WHERE key = %s RETURNING n"
        (n,) = connection.execute(sql.encode(), [key]).fetchone() or (0,)
        return publish(connection, self._schema, key, n)


def publish(connection: psycopg.Connection[Any], schema: str, key: str, n: int) -> int:
    """Publish number *n* of *key*."""
    sql = f"SELECT {schema}.publish(%s::text, %s::text, %s::text)"
    (number,) = connection.execute(sql.encode(), [CHANNEL, str(n), key]).fetchone() or (0,)
    return int(number)


@contextmanager
def storm(dsn: str, schema: str, readers: dict[str, Reader], seed: int) -> Iterator[Writers]:
    """Start *readers*; at the end let each read what was written in the block."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE {schema}.turns (key text PRIMARY KEY, n int)".encode())
        insert = f"INSERT INTO {schema}.turns SELECT k, 0 FROM unnest(%s::text[]) AS k"
        connection.execute(insert.encode(), [KEYS])
        for reader in readers.values():
            reader.start()
        writers = Writers(dsn, schema, seed)
        yield writers
        last = publish(connection, schema, "last", 0)
        writers.committed.add(last)
        for reader in readers.values():
            reader.end(last, 30.0)
