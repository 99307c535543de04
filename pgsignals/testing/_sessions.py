"""Sessions beside the one under test, and how to end that one."""

from __future__ import annotations

from pgsignals.database import Database
from pgsignals.reactor import Reactor
from pgsignals.testing._waiting import TIMEOUT, deadline_in, seconds_until

TERMINATE = "SELECT pg_catalog.pg_terminate_backend(%s::pg_catalog.int4, %s::pg_catalog.int8)"


def beside(target: str | Database | Reactor) -> Database:
    """Return a Database that opens sessions of its own where *target* leads.

    :raises TypeError: *target* has another type.
    :raises ValueError: *target* is a reactor with several databases.
    """
    if isinstance(target, Reactor):
        if len(target.databases) > 1:
            raise ValueError("the reactor has several databases; pass one of reactor.databases")
        target = target.databases[0]
    if isinstance(target, str):
        return Database(target)
    if not isinstance(target, Database):
        raise TypeError(f"database must be a str, Database or Reactor, not {type(target).__name__}")
    return Database(connect=target._access.connect_beside)


def kill_listener(
    listener: Database | Reactor, timeout: float = TIMEOUT, *, dsn: str | None = None
) -> None:
    """End the listening session of *listener* with ``pg_terminate_backend``, as an administrator
    would; for a reactor, those of all its databases.  Blocks until the server processes have
    ended.  Needs PostgreSQL 14 or newer.

    :param timeout: seconds.
    :param dsn: how to reach the server; None for the way of *listener*, which does not work
        through a frozen :class:`Proxy`.
    :raises ClosedError: the database was never opened.
    :raises AssertionError: the session had ended already, or did not end in time.
    """
    __tracebackhide__ = True
    for database in listener.databases if isinstance(listener, Reactor) else (listener,):
        pid = database.backend_id
        deadline = deadline_in(timeout)
        with beside(database if dsn is None else dsn) as session:
            milliseconds = max(1, int(seconds_until(deadline) * 1000))
            session._custody.clear_search_path()
            cursor = session.execute(TERMINATE, (pid, milliseconds))
            if cursor.fetchone() != (True,):
                raise AssertionError(
                    f"session {pid} of {database.name} had ended already, "
                    f"or did not end within {timeout:g} s"
                )
