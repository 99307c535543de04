"""A read-through cache that the database keeps right, with SQLAlchemy.

::

    python examples/cache/read_through.py postgresql://app@localhost/shop

Without an argument it uses DATABASE_URL, else libpq's own variables.  The program keeps prices in
a table that it drops at the end.  It reads them through the cache, changes them, and loses its
session on purpose.

:class:`ReadThrough` is the part to copy.  README.md says what it promises.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import psycopg
import sqlalchemy
from sqlalchemy import Engine, text

from pgsignals import Database, Gap, Notification, Reactor

V = TypeVar("V")

PATIENCE = 20.0


class ReadThrough(Generic[V]):
    """Remembers what *load* returned for a key until that key is notified on *channel*.

    It remembers while the link of the reactor holds, which must serve one database, and otherwise
    reads every time.  The payload of a notification is the key; an empty one means all keys.

    :meth:`get` may be called from any thread.  The receivers run on the reactor's worker.

    :param load: reads one key from the primary server, in a transaction that it begins itself:
        an older one would show the table as it was.  A result of None is a value like any other.
    :param limit: how many keys to remember; a new one replaces the one that was read first.
    """

    def __init__(
        self, reactor: Reactor, channel: str, load: Callable[[str], V], *, limit: int = 10_000
    ) -> None:
        self.loads = 0
        self._channel = channel
        self._load = load
        self._limit = limit
        self._lock = threading.Lock()  # never held while anything is read
        self._values: dict[str, V] = {}
        self._reading: set[_Read] = set()
        self._listening = False
        reactor.on_channel(channel)(self._notified)
        reactor.connected.connect(self._connected, weak=False)
        reactor.gap.connect(self._missed, weak=False)
        reactor.lost.connect(self._lost, weak=False)
        reactor.stopped.connect(self._lost, weak=False)

    def get(self, key: str) -> V:
        """The value of *key*, remembered or read."""
        with self._lock:
            if key in self._values:
                return self._values[key]
            self.loads += 1
            reading = _Read(key)
            self._reading.add(reading)
        try:
            value = self._load(key)
        except BaseException:
            with self._lock:
                self._reading.discard(reading)
            raise
        with self._lock:
            # If it is gone, its key was notified meanwhile, and what was read may be older.
            if reading in self._reading:
                self._reading.remove(reading)
                if self._listening:
                    self._remember(key, value)
        return value

    def _remember(self, key: str, value: V) -> None:
        self._values.pop(key, None)
        while len(self._values) >= self._limit:
            del self._values[next(iter(self._values))]
        self._values[key] = value

    def __len__(self) -> int:
        return len(self._values)

    # -- receivers -----------------------------------------------------------------------------

    def _notified(self, _: Database, *, notification: Notification) -> None:
        if not notification.payload:
            self._forget_all()
            return
        with self._lock:
            self._values.pop(notification.payload, None)
            self._reading = {one for one in self._reading if one.key != notification.payload}

    def _connected(self, _: Database, **__: object) -> None:
        self._forget_all(listening=True)

    def _missed(self, _: Database, *, gap: Gap) -> None:
        if gap.channels is None or self._channel in gap.channels:
            self._forget_all()

    def _lost(self, _: object, **__: object) -> None:
        self._forget_all(listening=False)

    def _forget_all(self, *, listening: bool | None = None) -> None:
        with self._lock:
            self._values.clear()
            self._reading.clear()
            if listening is not None:
                self._listening = listening


class _Read:
    """One call of ``load`` in progress."""

    def __init__(self, key: str) -> None:
        self.key = key


# -- the example -----------------------------------------------------------------------------------

TABLE = "pgsignals_example_cache"
SCHEMA = f"""
DROP TABLE IF EXISTS {TABLE};
CREATE TABLE {TABLE} (item pg_catalog.text PRIMARY KEY, cents int NOT NULL);

-- Every write announces its key, and an UPDATE of the key both keys.  A key that is too long for a
-- payload would fail the write, so it announces all keys.
CREATE OR REPLACE FUNCTION {TABLE}_tell() RETURNS trigger LANGUAGE plpgsql
SET search_path = '' AS $$
DECLARE
    item pg_catalog.text;
BEGIN
    FOREACH item IN ARRAY CASE TG_OP
        WHEN 'INSERT' THEN ARRAY[NEW.item]
        WHEN 'DELETE' THEN ARRAY[OLD.item]
        ELSE ARRAY[OLD.item, NEW.item]
    END LOOP
        IF pg_catalog.octet_length(item) > 7999 THEN
            item := '';
        END IF;
        PERFORM pg_catalog.pg_notify('{TABLE}', item);
    END LOOP;
    RETURN NULL;
END $$;
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE ON {TABLE}
    FOR EACH ROW EXECUTE FUNCTION {TABLE}_tell();

-- An empty payload means all keys.
CREATE OR REPLACE FUNCTION {TABLE}_tell_all() RETURNS trigger LANGUAGE plpgsql
SET search_path = '' AS $$
BEGIN
    PERFORM pg_catalog.pg_notify('{TABLE}', '');
    RETURN NULL;
END $$;
CREATE TRIGGER tell_all AFTER TRUNCATE ON {TABLE}
    FOR EACH STATEMENT EXECUTE FUNCTION {TABLE}_tell_all();
"""
CLEAN_UP = f"DROP TABLE {TABLE}; DROP FUNCTION {TABLE}_tell; DROP FUNCTION {TABLE}_tell_all"


def create_engine(dsn: str) -> Engine:
    """An engine for a connection string in any form that libpq accepts."""
    return sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(dsn), pool_pre_ping=True
    )


def prices(engine: Engine, reactor: Reactor) -> ReadThrough[int | None]:
    """A cache of the table; None for an item that is not in it."""

    def load(item: str) -> int | None:
        query = text(f"SELECT cents FROM {TABLE} WHERE item OPERATOR(pg_catalog.=) :item")
        with engine.connect() as connection:  # begins a transaction, and ends it
            cents: int | None = connection.execute(query, {"item": item}).scalar()
            return cents

    return ReadThrough(reactor, TABLE, load)


def run(dsn: str, engine: Engine) -> int:
    """What happens while the table is there."""

    def execute(statement: str, **parameters: Any) -> None:
        with engine.begin() as connection:
            connection.execute(text(statement), parameters)

    def read_until(cents: int | None) -> bool:
        """Read the price of a cup until it is *cents*."""
        deadline = time.monotonic() + PATIENCE
        while cache.get("cup") != cents:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        print(f"a cup costs {cents}, after {cache.loads} reads of the table")
        return True

    reactor = Reactor(dsn)
    cache = prices(engine, reactor)
    execute(f"INSERT INTO {TABLE} VALUES ('cup', 300)")
    with reactor:
        right = read_until(300)
        for _ in range(1000):
            cache.get("cup")
        print(f"read it 1,000 times more: {cache.loads} reads of the table")
        execute(f"UPDATE {TABLE} SET cents = 250")
        right &= read_until(250)

        print("ending the listening session, and changing the price")
        execute("SELECT pg_catalog.pg_terminate_backend(:pid)", pid=reactor.databases[0].backend_id)
        execute(f"UPDATE {TABLE} SET cents = 200")
        right &= read_until(200)
    print("the cache was right" if right else "the cache was wrong")
    return 0 if right else 1


def main(argv: list[str] | None = None) -> int:
    """Run the example; 0 if the cache was right at the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dsn", nargs="?", default=os.environ.get("DATABASE_URL", ""))
    dsn: str = parser.parse_args(argv).dsn

    engine = create_engine(dsn)
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(SCHEMA)
        try:
            return run(dsn, engine)
        finally:
            with engine.begin() as connection:
                connection.exec_driver_sql(CLEAN_UP)
    finally:
        engine.dispose()


if __name__ == "__main__":
    raise SystemExit(main())
