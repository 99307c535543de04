"""Many connections in one loop, one of which dies and is revived.

::

    python examples/several_databases.py postgresql://app@localhost/shop \\
        postgresql://app@localhost/warehouse

With one argument it opens two connections to that database; with none it uses DATABASE_URL, else
libpq's own variables.  The loop sends something to every database when it is idle, then ends one
of its connections, finds it in ``garbage``, reopens it and goes on, until each has received
something twice.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections import Counter
from collections.abc import Callable

from pgsignals import ConnectError, ConnectionLostError, Database, NotificationManager, connect

CHANNEL = "example.stock"
IDLE = 0.1
IDLES = 100


def revive(manager: NotificationManager) -> None:
    """Reopen what has ended, and watch it again."""
    for db in list(manager.garbage):
        try:
            db.open()
        except ConnectError as error:
            print(f"{db.name} is still down: {error}")
            continue
        db.listen(CHANNEL)
        manager.connections.add(db)  # which takes it out of garbage
        print(f"{db.name} is back; it has missed what was committed meanwhile")


def main(argv: list[str] | None = None) -> int:
    """Run the example; 0 if every connection has received something twice."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dsn", nargs="*", default=[os.environ.get("DATABASE_URL", "")])
    dsns: list[str] = parser.parse_args(argv).dsn
    if len(dsns) == 1:
        dsns *= 2

    databases = [connect(dsn) for dsn in dsns]
    try:
        for db in databases:
            db.listen(CHANNEL)
        return run(databases, end_first=lambda: end(dsns[0], databases[0]))
    finally:
        for db in databases:
            db.close()


def end(dsn: str, victim: Database) -> None:
    """End a session as an administrator would."""
    with connect(dsn) as other:
        other.execute("SELECT pg_catalog.pg_terminate_backend(%s)", [victim.backend_id])


def run(databases: list[Database], end_first: Callable[[], None]) -> int:
    """Send, receive, lose the first connection and go on."""
    manager = NotificationManager(*databases, timeout=IDLE)
    received: Counter[Database] = Counter()
    idles = 0
    for event in manager:
        if event is None:
            idles += 1
            if idles == IDLES:
                print("something is missing")
                break  # rather than wait forever
            revive(manager)
            for db in manager.connections:
                with contextlib.suppress(ConnectionLostError):  # the loop finds it in a moment
                    db.notify((CHANNEL, f"idle event {idles}"))
            continue

        db, notifications = event
        mine = [one.payload for one in notifications if one.pid == db.backend_id]
        received[db] += bool(mine)
        print(f"number {databases.index(db)}, {db.name}: {', '.join(mine) or 'of others'}")
        if all(received[each] >= 2 for each in databases):
            manager.connections.clear()  # ends the loop, after what has been collected
        elif db is databases[0] and received[db] == 1:
            print("ending its session")
            end_first()
    return 0 if idles < IDLES else 1


if __name__ == "__main__":
    raise SystemExit(main())
