"""The demo: a small shop, and a process that is notified of every sale.

A second process (:func:`sell`) writes to the tables, and triggers notify each change.  This process
keeps a cache of the stock (:class:`Shop`), which :func:`watch` keeps correct in three ways:

- it applies each notification, unless the cache is newer;
- it reads the table once when listening begins, and again after every gap;
- it does both on the reactor's worker, which keeps them in order.

Halfway through, :func:`kill` ends the listening session; at the end :func:`verify` compares the
cache with the tables.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from pgsignals._pure.values import Notification
from pgsignals._sources.reports import Gap
from pgsignals.database import Database, connect
from pgsignals.demo._shop import ITEMS, KILL, PATIENCE, RARE, RATE, SCHEMA, SELL, Shop, Stock
from pgsignals.demo._view import GREEN, RED, counted, paint, percentiles, view, wrapped
from pgsignals.embedded import Postgres
from pgsignals.errors import ConnectionLostError
from pgsignals.reactor import Reactor

__all__ = ["ITEMS", "Shop", "kill", "refill", "run", "sell", "settle", "verify", "watch"]

# -- what this process knows -----------------------------------------------------------------------


def watch(reactor: Reactor, shop: Shop) -> None:
    """Keep *shop* correct.  This is the part to learn from."""

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
            shop.notified.add(value["id"])
            shop.latencies.append(latency)
            shop.latest.appendleft(
                f"#{value['id']:<7,}{value['quantity']} x {value['item']:9}{1000 * latency:6.1f} ms"
            )

    @reactor.on_channel(f"{shop.schema}.closed")
    def shop_closed(_: Database, *, notification: Notification) -> None:
        shop.closed.set()

    def connected(db: Database, *, resumed: bool) -> None:
        shop.link = "listening"
        if not resumed:  # otherwise a gap follows
            refill(db, shop)

    def lost(_: Database, *, reason: str, error: ConnectionLostError) -> None:
        shop.link = "lost"
        shop.report(f"lost: our session is gone ({reason}, {error.sqlstate})")

    def missed(db: Database, *, gap: Gap) -> None:
        orders, items = refill(db, shop)
        shop.gaps += 1
        shop.report(f"gap ({gap.reason}): read {orders} orders and {items} items of stock again")

    reactor.connected.connect(connected, weak=False)  # nothing else keeps these functions
    reactor.lost.connect(lost, weak=False)
    reactor.gap.connect(missed, weak=False)


def refill(db: Database, shop: Shop) -> tuple[int, int]:
    """Reload the tables, and return how many orders and how many changed items were missed.

    In a handler, *db* uses a session of the worker.
    """
    stock, orders = read(db, shop.schema)
    with shop.lock:
        missed = orders - shop.orders
        stale = [item for item in stock if stock[item] != shop.stock.get(item)]
        shop.stock = stock
        shop.read |= missed
    return len(missed), len(stale)


def read(db: Database, schema: str) -> tuple[dict[str, Stock], set[int]]:
    """Read what is in the tables."""
    stock = db.execute(f"SELECT item, quantity, version FROM {schema}.stock")
    orders = db.execute(f"SELECT id FROM {schema}.orders")
    return {item: Stock(*rest) for item, *rest in stock}, {number for (number,) in orders}


# -- database and seller ---------------------------------------------------------------------------


@contextlib.contextmanager
def a_database(dsn: str | None) -> Iterator[tuple[str, str]]:
    """A connection string and a name for it; without *dsn*, those of a throwaway server."""
    if dsn is not None:
        with connect(dsn) as db:
            place = db.name
        yield dsn, place
        return
    for name in [name for name in os.environ if name.startswith("PG")]:
        if not name.startswith("PGSIGNALS_"):
            del os.environ[name]  # libpq would read them, but they are meant for another server
    with Postgres() as server:
        version = ".".join(map(str, server.version))
        yield server.dsn, f"PostgreSQL {version}, a throwaway server"


@contextlib.contextmanager
def a_shop(dsn: str, schema: str) -> Iterator[Shop]:
    """Tables and triggers in a new schema, which is dropped at the end."""
    with connect(dsn) as db:
        db.execute(SCHEMA.format(schema=schema, items=f"ARRAY{list(ITEMS)}", rare=RARE))
    try:
        yield Shop(schema)
    finally:
        with connect(dsn) as db:
            db.execute(f"DROP SCHEMA {schema} CASCADE")


@contextlib.contextmanager
def a_seller(dsn: str, schema: str, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A process that runs :func:`sell` and is about to begin.

    It is detached from the terminal, so that Ctrl-C does not reach it: it is ended here.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "pgsignals.demo", schema, str(seconds)],
        env=os.environ | {"DATABASE_URL": dsn},  # other users can see a command line
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
    """Sell at a varying rate for *seconds*; run by the second process."""
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
    """End the listening session, and make a sale that no later one repeats.

    No notification, now or later, can correct the cache: only reading the table again can.
    """
    victim = reactor.databases[0].backend_id
    shop.report(f"kill: pg_terminate_backend({victim}), and the last {RARE} is sold")
    db.execute(KILL.format(schema=shop.schema, rare=RARE, victim=victim))


# -- the end ---------------------------------------------------------------------------------------


def settle(reactor: Reactor, shop: Shop) -> None:
    """Wait for everything that the seller has notified: a notification sent now comes last."""
    deadline = time.monotonic() + PATIENCE
    while not (shop.closed.is_set() and shop.gaps) and time.monotonic() < deadline:
        with contextlib.suppress(ConnectionError):  # lost again: try again
            reactor.notify(f"{shop.schema}.closed")
        time.sleep(0.05)


def verify(db: Database, reactor: Reactor, shop: Shop) -> bool:
    """Compare the shop with the tables, print the result, and return whether every check passed."""
    stock, orders = read(db, shop.schema)
    failed = reactor.status().databases[0].failed
    same = sum(shop.stock.get(item) == stock[item] for item in stock)
    late = len(shop.read - shop.notified)
    checks = {
        f"stock: {same} of {len(stock)} items in the cache match the table": (shop.stock == stock),
        f"orders: {len(orders)} in the table, {len(shop.notified)} notified, {late} caught up": (
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


# -- all together ----------------------------------------------------------------------------------


def run(seconds: float = 10.0, dsn: str | None = None) -> int:
    """Run the demo, and return the exit status: 0 if every check passed."""
    schema = "shop" if dsn is None else f"pgsignals_demo_{secrets.token_hex(4)}"
    print("pgsignals demo: starting", flush=True)
    with contextlib.ExitStack() as stack:
        dsn, place = stack.enter_context(a_database(dsn))
        shop = stack.enter_context(a_shop(dsn, schema))
        db = stack.enter_context(connect(dsn))  # apart from the reactor's session
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
