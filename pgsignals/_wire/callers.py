"""Connections of the caller's own, of whatever library: one statement in their transaction.

No library is imported for this: an object of one exists only where it has been imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg

from pgsignals._pure.publishing import styled

TAKEN = (
    "a psycopg Connection or Cursor, a SQLAlchemy Connection or Session, or a Django connection or "
    "alias"
)


def value_of(connection: object, sql: str, params: Sequence[Any], otherwise: str) -> Any:
    """Execute *sql* in the transaction of *connection*, and return the one value of its one row.

    Blocks for a round trip; errors of the driver pass through unchanged.

    :param otherwise: the function that serves connections that are not taken, for the message.
    :raises TypeError: *connection* is not one of :data:`TAKEN`.
    """
    if (own := _of_psycopg(connection)) is not None:
        cursor = psycopg.Cursor(own, row_factory=psycopg.rows.scalar_row)
        with cursor:
            return cursor.execute(sql.encode(), params).fetchone()
    if _is_of_sqlalchemy(connection):
        text: Any = sys.modules["sqlalchemy"].text
        named, values = styled(sql, params, "named")
        return connection.execute(text(named), values).scalar_one()  # type: ignore[attr-defined]
    if (wrapper := _of_django(connection)) is not None:
        with wrapper.cursor() as cursor:
            cursor.execute(sql, params)
            return cursor.fetchone()[0]
    raise TypeError(
        f"the connection must be {TAKEN}, not {_name_of(connection)}; for others execute what "
        f"{otherwise}() returns"
    )


def copy_into(connection: object, sql: str, rows: Iterable[Sequence[object]]) -> int | None:
    """COPY *rows*, and return their number; None if the driver of *connection* cannot."""
    if (own := _of_psycopg(connection)) is None:
        return None
    cursor = psycopg.Cursor(own)
    with cursor:
        with cursor.copy(sql.encode()) as copy:
            for row in rows:
                copy.write_row(row)
        return cursor.rowcount


def _of_psycopg(connection: object) -> psycopg.Connection[Any] | None:
    if isinstance(connection, psycopg.Connection):
        return connection
    return connection.connection if isinstance(connection, psycopg.Cursor) else None


def _is_of_sqlalchemy(connection: object) -> bool:
    engine, orm = sys.modules.get("sqlalchemy.engine"), sys.modules.get("sqlalchemy.orm")
    kinds = [getattr(engine, "Connection", None)]
    kinds += [getattr(orm, name, None) for name in ("Session", "scoped_session")]
    return isinstance(connection, tuple(kind for kind in kinds if kind is not None))


def _of_django(connection: object) -> Any:
    """Django's connection, of an alias, too; None if it is not one of PostgreSQL."""
    db: Any = sys.modules.get("django.db")
    if db is None:
        return None
    if isinstance(connection, str):
        if connection not in set(db.connections):  # else Django would show it: perhaps a DSN
            return None
        connection = db.connections[connection]
    elif isinstance(connection, type(db.connection)):  # stands for the default one
        connection = db.connections[db.DEFAULT_DB_ALIAS]
    if getattr(connection, "vendor", None) != "postgresql":
        return None
    return connection


def _name_of(connection: object) -> str:
    kind = type(connection)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
