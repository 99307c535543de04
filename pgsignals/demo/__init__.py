"""The demo: a small shop that sells, and a process that hears of every sale.

A second process (:func:`sell`) writes to the tables; triggers notify what was written.  This
process keeps a cache of the stock (:class:`Shop`) that is right at every moment, because
:func:`watch` does three things:

- it applies each notification, unless the cache is newer;
- it reads the table once when it listens, and again after every gap;
- it does both on the reactor's worker, which keeps them in order.

Half way :func:`kill` ends the listening session; at the end :func:`verify` compares the cache with
the tables.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import random
import secrets
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pgsignals._pure.values import Notification
from pgsignals._sources.reports import Gap
from pgsignals.database import Database, connect
from pgsignals.embedded import Postgres
from pgsignals.errors import ConnectionLostError
from pgsignals.reactor import Reactor

ITEMS = ("teapot", "cup", "saucer", "spoon", "kettle", "tray", "biscuit")

#: There is one of these, and the seller does not have it.
RARE = "samovar"

#: Sales in a second, on average.
RATE = 150.0

#: What must come has come within this many seconds, or never will.
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

-- The row as JSON, on a channel that is called as the table is: schema.stock, schema.orders.
CREATE FUNCTION {schema}.tell() RETURNS pg_catalog.trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_catalog.pg_notify(
        TG_TABLE_SCHEMA::pg_catalog.text OPERATOR(pg_catalog.||) '.'::pg_catalog.text
            OPERATOR(pg_catalog.||) TG_TABLE_NAME::pg_catalog.text,
        pg_catalog.row_to_json(NEW)::pg_catalog.text
    );
    RETURN NULL;
END $$;
CREATE TRIGGER tell AFTER INSERT OR UPDATE ON {schema}.stock
    FOR EACH ROW EXECUTE FUNCTION {schema}.tell();
CREATE TRIGGER tell AFTER INSERT OR UPDATE ON {schema}.orders
    FOR EACH ROW EXECUTE FUNCTION {schema}.tell();

INSERT INTO {schema}.stock (item, quantity)
    SELECT t.item, 50 FROM pg_catalog.unnest({items}::pg_catalog.text[]) AS t(item);
INSERT INTO {schema}.stock (item, quantity) VALUES ('{rare}', 1);
"""

# One sale; when there is not enough left, 50 more are delivered.
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

# One transaction: a change that no later notification repeats, and the end of a session.
KILL = """
UPDATE {schema}.stock SET quantity = 0, version = version OPERATOR(pg_catalog.+) 1
    WHERE item OPERATOR(pg_catalog.=) '{rare}'::pg_catalog.text;
SELECT pg_catalog.pg_terminate_backend({victim})
"""


# -- what this process knows -----------------------------------------------------------------------


class Stock(NamedTuple):
    """How many there are of an item, after how many changes."""

    quantity: int
    version: int


@dataclass
class Shop:
    """What this process knows of the shop.

    Handlers write to it on the reactor's worker and others read it, hence the lock.
    """

    schema: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    stock: dict[str, Stock] = field(default_factory=dict)
    told: set[int] = field(default_factory=set)  # orders that notifications told us of
    read: set[int] = field(default_factory=set)  # orders that we had to read in the table
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
        """For how many seconds the seller has been running."""
        return time.monotonic() - self.opened

    @property
    def orders(self) -> set[int]:
        """All that we know of."""
        return self.told | self.read

    def tell(self, text: str) -> None:
        """Add to the news."""
        self.news.append((self.elapsed, text))


def watch(reactor: Reactor, shop: Shop) -> None:
    """Keep *shop* right.  This is the part to learn from."""

    @reactor.on_channel(f"{shop.schema}.stock", decode=json.loads)
    def stock_changed(_: Database, *, notification: Notification, value: dict[str, Any]) -> None:
        fresh = Stock(value["quantity"], value["version"])
        with shop.lock:
            shop.calls += 1
            known = shop.stock.get(value["item"])
            if known is None or known.version < fresh.version:
                shop.stock[value["item"]] = fresh

    @reactor.on_channel(f"{shop.schema}.orders", decode=json.loads)
    def order_placed(_: Database, *, notification: Notification, value: dict[str, Any]) -> None:
        latency = (datetime.now(UTC) - datetime.fromisoformat(value["placed"])).total_seconds()
        with shop.lock:
            shop.calls += 1
            shop.told.add(value["id"])
            shop.latencies.append(latency)
            shop.latest.appendleft(
                f"#{value['id']:<7,}{value['quantity']} x {value['item']:9}{1000 * latency:6.1f} ms"
            )

    @reactor.on_channel(f"{shop.schema}.closed")
    def shop_closed(_: Database, *, notification: Notification) -> None:
        shop.closed.set()

    def connected(db: Database, *, resumed: bool) -> None:
        shop.link = "listening"
        if not resumed:  # else a gap follows
            refill(db, shop)

    def lost(_: Database, *, reason: str, error: ConnectionLostError) -> None:
        shop.link = "lost"
        shop.tell(f"lost: our session is gone ({reason}, {error.sqlstate})")

    def missed(db: Database, *, gap: Gap) -> None:
        orders, items = refill(db, shop)
        shop.gaps += 1
        shop.tell(f"gap ({gap.reason}): caught up with {orders} orders and {items} items of stock")

    reactor.connected.connect(connected, weak=False)  # nothing else keeps these functions
    reactor.lost.connect(lost, weak=False)
    reactor.gap.connect(missed, weak=False)


def refill(db: Database, shop: Shop) -> tuple[int, int]:
    """Read the tables again; return how many orders and how many items had been missed.

    In a handler, *db* is a session of that worker's own.
    """
    stock, orders = read(db, shop.schema)
    with shop.lock:
        missed = orders - shop.orders
        stale = [item for item in stock if stock[item] != shop.stock.get(item)]
        shop.stock = stock
        shop.read |= missed
    return len(missed), len(stale)


def read(db: Database, schema: str) -> tuple[dict[str, Stock], set[int]]:
    """What is in the tables."""
    stock = db.execute(f"SELECT item, quantity, version FROM {schema}.stock")
    orders = db.execute(f"SELECT id FROM {schema}.orders")
    return {item: Stock(*rest) for item, *rest in stock}, {number for (number,) in orders}


# -- the other sides -------------------------------------------------------------------------------


@contextlib.contextmanager
def a_database(dsn: str | None) -> Iterator[tuple[str, str]]:
    """A connection string, and what it leads to: a server of our own when none was given."""
    if dsn is not None:
        with connect(dsn) as db:
            place = db.name
        yield dsn, place
        return
    for name in [name for name in os.environ if name.startswith("PG")]:
        if not name.startswith("PGSIGNALS_"):
            del os.environ[name]  # libpq reads them; they are meant for another server
    with Postgres() as server:
        version = ".".join(map(str, server.version))
        yield server.dsn, f"PostgreSQL {version}, a server of our own"


@contextlib.contextmanager
def a_shop(dsn: str, schema: str) -> Iterator[Shop]:
    """Tables and triggers in a schema of their own, which is dropped in the end."""
    with connect(dsn) as db:
        db.execute(SCHEMA.format(schema=schema, items=f"ARRAY{list(ITEMS)}", rare=RARE))
    try:
        yield Shop(schema)
    finally:
        with connect(dsn) as db:
            db.execute(f"DROP SCHEMA {schema} CASCADE")


@contextlib.contextmanager
def a_seller(dsn: str, schema: str, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A process that runs :func:`sell`, and is about to begin.

    Out of reach of the terminal: we end it, not Ctrl-C.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "pgsignals.demo", schema, str(seconds)],
        env=os.environ | {"DATABASE_URL": dsn},  # a command line can be seen by others
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()  # its first line, or its end
            yield process
        finally:
            process.kill()


def sell(dsn: str, schema: str, seconds: float) -> None:
    """What the second process does: sell, now more, now less, for so many seconds."""
    with connect(dsn) as db:
        print("open", flush=True)
        start = time.monotonic()
        while (now := time.monotonic() - start) < seconds:
            sale = {
                "item": random.choice(ITEMS),
                "quantity": random.randint(1, 5),
                "placed": datetime.now(UTC),
            }
            db.execute(SELL.format(schema=schema), sale)
            time.sleep(random.expovariate(RATE * (1 + 0.8 * math.sin(1.5 * now))))


def kill(db: Database, reactor: Reactor, shop: Shop) -> None:
    """End the listening session, and sell something that is never sold again.

    So there is no notification, now or later, that could put the cache right.
    """
    victim = reactor.databases[0].backend_id
    shop.tell(f"kill: pg_terminate_backend({victim}), and the last {RARE} is sold")
    db.execute(KILL.format(schema=shop.schema, rare=RARE, victim=victim))


# -- the end ---------------------------------------------------------------------------------------


def settle(reactor: Reactor, shop: Shop) -> None:
    """Wait for all that the seller has notified: what we notify now comes after it."""
    deadline = time.monotonic() + PATIENCE
    while not (shop.closed.is_set() and shop.gaps) and time.monotonic() < deadline:
        with contextlib.suppress(ConnectionError):  # lost again?  Then we try again.
            reactor.notify(f"{shop.schema}.closed")
        time.sleep(0.05)


def verify(db: Database, reactor: Reactor, shop: Shop) -> bool:
    """Compare what we know with what is in the tables, print it, and return whether all is well."""
    stock, orders = read(db, shop.schema)
    failed = reactor.status().databases[0].failed
    same = sum(shop.stock.get(item) == stock[item] for item in stock)
    late = len(shop.read - shop.told)
    checks = {
        f"stock: {same} of {len(stock)} items in the cache are as in the table": (
            shop.stock == stock
        ),
        f"orders: {len(orders)} in the table, {len(shop.told)} notified, {late} caught up": (
            shop.orders == orders
        ),
        f"link: killed once, {counted(shop.gaps, 'gap')} reported, {shop.link} again": (
            shop.gaps > 0 and shop.closed.is_set()
        ),
        f"handlers: {shop.calls} calls, {failed} failed": shop.calls > 0 and not failed,
    }
    print(wrapped(f"latency from the sale to the handler: {percentiles(shop.latencies)}"))
    print("verified:")
    for text, holds in checks.items():
        outcome = paint(GREEN, "  ok      ") if holds else paint(RED, "  FAILED  ")
        print(outcome, wrapped(text, 10), sep="")
    return all(checks.values())


# -- what is shown ---------------------------------------------------------------------------------

BOLD, DIM, RED, GREEN, CYAN, BANNER = "1", "2", "1;31", "32", "36", "30;43"


def paint(style: str, text: str) -> str:
    """*text* in colour, on a terminal whose user likes colours."""
    plain = os.environ.get("NO_COLOR") or not sys.stdout.isatty()
    return text if plain else f"\x1b[{style}m{text}\x1b[0m"


def wrapped(text: str, margin: int = 0) -> str:
    """*text* in lines of whole words that fit the terminal, each after *margin* columns."""
    if not sys.stdout.isatty():
        return text
    width, blank = max(shutil.get_terminal_size().columns - 1, margin + 20), " " * margin
    lines = textwrap.wrap(
        text, width, initial_indent=blank, subsequent_indent=blank, break_on_hyphens=False
    )
    return "\n".join(lines)[margin:]


def counted(number: int, noun: str) -> str:
    """Such as ``2 gaps``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def percentiles(seconds: list[float]) -> str:
    """How the given times are distributed."""
    if not seconds:
        return "none yet"
    ordered = sorted(seconds)
    p50, p95, p99 = (1000 * ordered[int(len(ordered) * part)] for part in (0.50, 0.95, 0.99))
    return f"p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms"


class Lines:
    """Plain lines: what happens, and once a second how it goes."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._news = self._calls = 0
        self._since = 0.0

    def update(self) -> None:
        """Print what is new."""
        shop, now = self._shop, self._shop.elapsed
        for moment, text in shop.news[self._news :]:
            self._news += 1
            print(f"{moment:5.1f} s  {wrapped(text, 9)}", flush=True)
        if int(now) > int(self._since):
            with shop.lock:
                orders, calls, latencies = len(shop.orders), shop.calls, shop.latencies[-1000:]
            rate = (calls - self._calls) / (now - self._since)
            self._since, self._calls = now, calls
            line = f"{orders} orders, {rate:.0f} notifications/s, latency {percentiles(latencies)}"
            print(f"{now:5.1f} s  {wrapped(line, 9)}", flush=True)


class Picture:
    """A picture that is drawn again and again in its place."""

    # Each frame leaves the cursor and the wrapping of lines as they were.
    BEGIN, END = "\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h"

    def __init__(self, shop: Shop, seconds: float) -> None:
        self._shop = shop
        self._seconds = seconds
        self._height = 0
        self._samples = deque([(shop.elapsed, 0)], maxlen=41)

    def update(self) -> None:
        """Draw it."""
        columns, rows = shutil.get_terminal_size()
        columns -= 1  # to erase the rest of a line that is full takes its last character away
        with self._shop.lock:
            if self._shop.elapsed >= self._samples[-1][0] + 0.2:
                self._samples.append((self._shop.elapsed, self._shop.calls))
            parts = [*self._head(columns), "", *self._tables(columns), "", *self._news(columns)]
        lines = "\n".join(parts).split("\n")[: rows - 1]
        up = f"\x1b[{self._height}A" if self._height else ""
        self._height = len(lines)
        frame = "".join(f"{line}\x1b[K\n" for line in lines)
        sys.stdout.write(f"{self.BEGIN}\r{up}{frame}\x1b[J{self.END}")
        sys.stdout.flush()

    def _head(self, columns: int) -> Iterator[str]:
        shop = self._shop
        now = min(shop.elapsed, self._seconds)
        length = min(40, columns - 18)
        bar = "━" * round(length * now / self._seconds)
        link = (
            paint(GREEN, "● listening")
            if shop.link == "listening"
            else paint(RED, f"○ {shop.link}")
        )
        rates = [
            (calls - before) / (moment - since)
            for (since, before), (moment, calls) in itertools.pairwise(self._samples)
        ] or [0.0]
        line = "".join(" ▁▂▃▄▅▆▇█"[round(8 * rate / (max(rates) or 1))] for rate in rates)
        rest = "─" * (length - len(bar))
        width = max(1, min(40, columns - 30))
        yield f"{paint(CYAN, bar)}{paint(DIM, rest)} {now:.1f} of {self._seconds:g} s"
        yield ""
        yield f"link     {link}, gaps: {shop.gaps}"
        yield f"orders   {len(shop.told)} notified, {len(shop.read - shop.told)} caught up"
        yield f"latency  {wrapped(percentiles(shop.latencies[-1000:]), 9)}"
        yield f"rate     {paint(CYAN, f'{line[-width:]:{width}}')}{rates[-1]:5.0f} notifications/s"

    def _tables(self, columns: int) -> Iterator[str]:
        beside = columns >= 54  # else there is room for one table
        width = min(24, columns - 46) if beside else max(4, min(24, columns - 16))
        orders = "LATEST ORDERS" if beside else ""
        yield paint(BOLD, f"{'THE CACHE OF THE STOCK':{width + 16}}{orders}".rstrip())
        for item, order in itertools.zip_longest((*ITEMS, RARE), self._shop.latest, fillvalue=""):
            quantity = self._shop.stock.get(item, Stock(0, 0)).quantity
            bar = "█" * round(quantity * (width - 4) / 55)
            yield f"{item:10}{quantity:4} {paint(CYAN, f'{bar:{width}}')} {order if beside else ''}"

    def _news(self, columns: int) -> Iterator[str]:
        width = min(79, columns)
        for moment, text in self._shop.news[-4:]:
            style = BANNER if self._shop.elapsed < moment + 3 else DIM
            for line in f"{moment:5.1f} s  {wrapped(text, 9)}".split("\n"):
                yield paint(style, f"{line:{width}}")


def view(shop: Shop, seconds: float) -> Lines | Picture:
    """A picture on a terminal that can show one, else lines."""
    able = os.environ.get("TERM", "dumb") != "dumb" and sys.stdout.encoding.lower() == "utf-8"
    return Picture(shop, seconds) if able and sys.stdout.isatty() else Lines(shop)


# -- all together ----------------------------------------------------------------------------------


def run(seconds: float = 10.0, dsn: str | None = None) -> int:
    """Run the demo, and return the exit status: 0 when everything was as it should be."""
    schema = "shop" if dsn is None else f"pgsignals_demo_{secrets.token_hex(4)}"
    print("pgsignals demo: starting", flush=True)
    with contextlib.ExitStack() as stack:
        dsn, place = stack.enter_context(a_database(dsn))
        shop = stack.enter_context(a_shop(dsn, schema))
        db = stack.enter_context(connect(dsn))  # the reactor's session is the reactor's alone
        print(wrapped(f"pgsignals demo: a shop in {place}, for {seconds:g} s"), flush=True)
        reactor = Reactor(dsn)
        watch(reactor, shop)
        stack.enter_context(reactor)
        seller = stack.enter_context(a_seller(dsn, schema, seconds))
        shop.opened = time.monotonic()
        show = view(shop, seconds)
        killed = False
        while seller.poll() is None or not killed:
            if not killed and (shop.elapsed >= seconds / 2 or seller.returncode is not None):
                kill(db, reactor, shop)
                killed = True
            with contextlib.suppress(subprocess.TimeoutExpired):
                seller.wait(0.1)
            show.update()
        settle(reactor, shop)
        show.update()
        consistent = verify(db, reactor, shop)
        if seller.returncode and seller.stderr is not None:
            print("the seller failed:", seller.stderr.read().strip().rpartition("\n")[2])
            return 1
    return 0 if consistent else 1


if __name__ == "__main__":
    sell(os.environ["DATABASE_URL"], sys.argv[1], float(sys.argv[2]))
