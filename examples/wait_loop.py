"""A loop of your own over one connection, with idle events.

::

    python examples/wait_loop.py postgresql://app@localhost/shop

Without an argument it uses DATABASE_URL, else libpq's own variables.  Whenever the loop has been
idle for a while, it sends an order to itself; it answers an order with a receipt, on the same
connection, inside the loop; the third receipt ends it.
"""

from __future__ import annotations

import argparse
import os

from pgsignals import Notification, connect

ORDERS = ("teapot", "cup", "saucer")


def main(argv: list[str] | None = None) -> int:
    """Run the example; 0 if every order got its receipt, in order."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dsn", nargs="?", default=os.environ.get("DATABASE_URL", ""))
    dsn: str = parser.parse_args(argv).dsn

    to_send = list(ORDERS)
    receipts: list[str] = []
    with connect(dsn) as db:
        db.listen("example.orders", "example.receipts")
        for notification in db.wait(timeout=0.1):
            if notification is None:
                if to_send:
                    db.notify(("example.orders", to_send.pop(0)))
                continue
            if notification.pid != db.backend_id:
                continue  # another process runs this example as well
            print(describe(notification))
            if notification.channel == "example.orders":
                db.notify(("example.receipts", notification.payload))
            else:
                receipts.append(notification.payload)
                if len(receipts) == len(ORDERS):
                    break  # what has not been yielded would stay with the database
    print(f"receipts: {', '.join(receipts)}")
    return 0 if receipts == list(ORDERS) else 1


def describe(notification: Notification) -> str:
    """A line for a notification."""
    return f"{notification.channel}: {notification.payload}"


if __name__ == "__main__":
    raise SystemExit(main())
