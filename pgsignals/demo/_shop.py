"""The shop of the demo: its tables and triggers, and what this process knows about it."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

ITEMS = ("teapot", "cup", "saucer", "spoon", "kettle", "tray", "biscuit")

#: There is only one of these, and the seller never picks it.
RARE = "samovar"

#: Average sales per second.
RATE = 150.0

#: Seconds to wait for the last notifications.
PATIENCE = 20.0

SCHEMA = """
CREATE SCHEMA {schema};

CREATE TABLE {schema}.stock (
    item pg_catalog.text PRIMARY KEY,
    quantity pg_catalog.int4 NOT NULL,
    version pg_catalog.int8 NOT NULL DEFAULT 1  -- counts the changes of the row
);
CREATE TABLE {schema}.orders (
    id pg_catalog.int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    item pg_catalog.text NOT NULL REFERENCES {schema}.stock,
    quantity pg_catalog.int4 NOT NULL,
    placed pg_catalog.timestamptz NOT NULL
);

-- Notifies the row as JSON, on a channel named after the table: schema.stock, schema.orders.
CREATE FUNCTION {schema}.notify_row() RETURNS pg_catalog.trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_catalog.pg_notify(
        TG_TABLE_SCHEMA::pg_catalog.text OPERATOR(pg_catalog.||) '.'::pg_catalog.text
            OPERATOR(pg_catalog.||) TG_TABLE_NAME::pg_catalog.text,
        pg_catalog.row_to_json(NEW)::pg_catalog.text
    );
    RETURN NULL;
END $$;
CREATE TRIGGER notify_row AFTER INSERT OR UPDATE ON {schema}.stock
    FOR EACH ROW EXECUTE FUNCTION {schema}.notify_row();
CREATE TRIGGER notify_row AFTER INSERT OR UPDATE ON {schema}.orders
    FOR EACH ROW EXECUTE FUNCTION {schema}.notify_row();

INSERT INTO {schema}.stock (item, quantity)
    SELECT t.item, 50 FROM pg_catalog.unnest({items}::pg_catalog.text[]) AS t(item);
INSERT INTO {schema}.stock (item, quantity) VALUES ('{rare}', 1);
"""

# One sale; if there is not enough left, 50 more are delivered.
SELL = """
WITH sold AS (
    UPDATE {schema}.stock SET
        version = version OPERATOR(pg_catalog.+) 1,
        quantity = quantity OPERATOR(pg_catalog.-) %(quantity)s::pg_catalog.int4
            OPERATOR(pg_catalog.+)
            CASE WHEN quantity OPERATOR(pg_catalog.<) %(quantity)s::pg_catalog.int4
            THEN 50 ELSE 0 END
    WHERE item OPERATOR(pg_catalog.=) %(item)s::pg_catalog.text
    RETURNING item
)
INSERT INTO {schema}.orders (item, quantity, placed)
SELECT item, %(quantity)s::pg_catalog.int4, %(placed)s::pg_catalog.timestamptz FROM sold
"""

# One transaction: a change that no later notification repeats, and the end of the session.
KILL = """
UPDATE {schema}.stock SET quantity = 0, version = version OPERATOR(pg_catalog.+) 1
    WHERE item OPERATOR(pg_catalog.=) '{rare}'::pg_catalog.text;
SELECT pg_catalog.pg_terminate_backend({victim})
"""


class Stock(NamedTuple):
    """The quantity of an item, and how often it has changed."""

    quantity: int
    version: int


@dataclass
class Shop:
    """What this process knows about the shop.

    Handlers write to it on the reactor's worker and other threads read it, hence the lock.
    """

    schema: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    stock: dict[str, Stock] = field(default_factory=dict)
    notified: set[int] = field(default_factory=set)  # orders that were notified
    read: set[int] = field(default_factory=set)  # orders that were read from the table
    latest: deque[str] = field(default_factory=lambda: deque(maxlen=8))
    latencies: list[float] = field(default_factory=list)  # in seconds, from sale to handler
    news: list[tuple[float, str]] = field(default_factory=list)
    link: str = "connecting"
    calls: int = 0
    gaps: int = 0
    closed: threading.Event = field(default_factory=threading.Event)
    opened: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds since the seller began."""
        return time.monotonic() - self.opened

    @property
    def orders(self) -> set[int]:
        """All known orders."""
        return self.notified | self.read

    def report(self, text: str) -> None:
        """Add to the news."""
        self.news.append((self.elapsed, text))
