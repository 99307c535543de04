"""Handlers and a reactor in the background: a cache that stays right.

::

    python examples/background_handlers.py postgresql://app@localhost/shop

Without an argument it uses DATABASE_URL, else libpq's own variables.  The program keeps prices in
a table that it drops at the end, and a copy of them in a dictionary.  It changes a price, loses its
session on purpose, changes another price meanwhile, and compares.
"""

from __future__ import annotations

import argparse
import os
import threading

from pgsignals import Database, Gap, Notification, Reactor, connect

TABLE = "pgsignals_example_prices"
ONE = f"SELECT cents FROM {TABLE} WHERE item OPERATOR(pg_catalog.=) %s"
PATIENCE = 20.0


class Prices:
    """A copy of the table, and the receivers that keep it right.  All of them run on the worker."""

    def __init__(self) -> None:
        self.cents: dict[str, int] = {}
        self.stale = False  # the last read has failed
        self._changed = threading.Condition()

    def fill(self, db: Database, *, resumed: bool) -> None:
        """Read all of it: the session listens, and nothing has been handled yet."""
        if not resumed:  # otherwise a gap follows
            self._read_all(db, "filled")

    def refill(self, db: Database, *, gap: Gap) -> None:
        """Read it again: we may have missed notifications of some changes."""
        self._read_all(db, f"gap ({gap.reason}), filled again")

    def refresh(self, db: Database, *, notification: Notification) -> None:
        """Read one price: the payload is the item's name."""
        if self.stale:
            self._read_all(db, "read again")
            return
        item = notification.payload
        self.stale = True
        row = db.execute(ONE, [item]).fetchone()
        others = {name: cents for name, cents in self.cents.items() if name != item}
        self._replace(others if row is None else others | {item: row[0]}, f"notified of {item}")

    def retry(self, reactor: Reactor) -> None:
        """Read all of it if the last read has failed.  Until then the copy stays as it was."""
        if self.stale:
            self._read_all(reactor.databases[0], "read again")

    def _read_all(self, db: Database, why: str) -> None:
        self.stale = True
        rows = db.execute(f"SELECT item, cents FROM {TABLE}").fetchall()
        self._replace(dict(rows), why)

    def _replace(self, cents: dict[str, int], why: str) -> None:
        print(f"{why}: {dict(sorted(cents.items()))}")
        self.stale = False
        with self._changed:
            self.cents = cents  # in one step: a reader sees the old copy or the new one
            self._changed.notify_all()

    def become(self, cents: dict[str, int]) -> bool:
        """Wait until the copy is as it should be; false if that takes too long."""
        with self._changed:
            return self._changed.wait_for(lambda: self.cents == cents, PATIENCE)


def set_price(db: Database, item: str, cents: int) -> None:
    """Change the table and announce it, both or neither."""
    with db.transaction():
        db.execute(
            f"INSERT INTO {TABLE} VALUES (%s, %s) ON CONFLICT (item) DO UPDATE SET cents = %s",
            [item, cents, cents],
        )
        db.notify(prices=item)


def watch(reactor: Reactor, prices: Prices) -> None:
    """Connect the receivers.  Methods need ``weak=False``, as nothing else holds them."""
    reactor.on_channel("prices")(prices.refresh)
    reactor.connected.connect(prices.fill, weak=False)
    reactor.gap.connect(prices.refill, weak=False)
    reactor.idle.connect(prices.retry, weak=False)


def main(argv: list[str] | None = None) -> int:
    """Run the example; 0 if the copy was right at the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dsn", nargs="?", default=os.environ.get("DATABASE_URL", ""))
    dsn: str = parser.parse_args(argv).dsn

    with connect(dsn) as db:
        db.execute(f"DROP TABLE IF EXISTS {TABLE}")
        db.execute(f"CREATE TABLE {TABLE} (item pg_catalog.text PRIMARY KEY, cents int NOT NULL)")
        try:
            return run(dsn, db)
        finally:
            db.execute(f"DROP TABLE {TABLE}")


def run(dsn: str, db: Database) -> int:
    """What happens while the table is there; *db* is the session that changes it."""
    prices = Prices()
    reactor = Reactor(dsn, timeout=2.0)  # seconds between two signals `idle`
    watch(reactor, prices)
    set_price(db, "cup", 300)
    with reactor:  # returns when the server has acknowledged the LISTEN
        right = prices.become({"cup": 300})
        set_price(db, "teapot", 1500)
        right &= prices.become({"cup": 300, "teapot": 1500})

        print("ending the listening session, and changing the price of a cup")
        db.execute("SELECT pg_catalog.pg_terminate_backend(%s)", [reactor.databases[0].backend_id])
        set_price(db, "cup", 250)
        right &= prices.become({"cup": 250, "teapot": 1500})

    (status,) = reactor.status().databases
    print(f"received {status.received}, gaps {status.gaps}, reconnects {status.reconnects}")
    print("the copy was right" if right else "the copy was wrong")
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main())
