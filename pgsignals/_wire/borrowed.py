"""What we use of psycopg beyond its documentation, all of it.

Any release may change it.  So pyproject.toml bounds the versions, and tests/test_borrowed.py names
what is needed here and fails when psycopg drops it.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

from psycopg import Connection, generators, pq


def lock_of(connection: Connection[Any]) -> Lock:
    """What every statement of psycopg's holds from beginning to end: no two threads may be inside
    libpq with one connection."""
    return connection.lock


def notify_handler(connection: Connection[Any]) -> Callable[[pq.PGnotify], None] | None:
    """What is called for each notification that comes along with an answer: psycopg's own dispatch
    to ``add_notify_handler()``, unless :func:`set_notify_handler` has replaced it."""
    return connection.pgconn.notify_handler


def set_notify_handler(
    connection: Connection[Any], handler: Callable[[pq.PGnotify], None] | None
) -> None:
    """Replace :func:`notify_handler`: psycopg's decodes strictly, so that one bad payload loses
    its neighbours."""
    connection.pgconn.notify_handler = handler


def fetch_results(connection: Connection[Any]) -> list[pq.abc.PGresult]:
    """The results of what ``pgconn.send_query()`` has sent; with the lock held.  Blocks, and is
    interrupted by Ctrl-C."""
    return connection.wait(generators.execute(connection.pgconn))


def collect_silently(connection: Connection[Any]) -> None:
    """Have the garbage collector take an open connection without a ``ResourceWarning``: psycopg
    warns of all but those of a pool."""
    connection._pool = None
