"""Sessions beside those that are tested, and the end of those."""

from __future__ import annotations

from pgsignals.database import Database
from pgsignals.reactor import Reactor
from pgsignals.testing._waiting import TIMEOUT, deadline_in, seconds_until

TERMINATE = "SELECT pg_catalog.pg_terminate_backend(%s::pg_catalog.int4, %s::pg_catalog.int8)"


def beside(target: str | Database | Reactor) -> Database:
    """A database whose :meth:`~Database.open` makes a session where *target* leads.

    :raises TypeError: something else.
    :raises ValueError: a reactor with several databases.
    """
    if isinstance(target, Reactor):
        if len(target.databases) > 1:
            raise ValueError("this reactor has several databases: give one of reactor.databases")
        target = target.databases[0]
    if isinstance(target, str):
        return Database(target)
    if not isinstance(target, Database):
        raise TypeError(
            f"give a connection string, a Database or a Reactor, not {type(target).__name__}"
        )
    return Database(connect=target._access.connect_beside)


def kill_listener(
    listener: Database | Reactor, timeout: float = TIMEOUT, *, dsn: str | None = None
) -> None:
    """End the listening session of *listener* as an administrator does, with
    ``pg_terminate_backend``; of a reactor, those of all its databases.  Blocks until the server's
    processes have ended.  PostgreSQL 14 or newer.

    :param timeout: seconds.
    :param dsn: how to reach the server; None: as *listener* does, which is too late when that
        leads through a frozen :class:`Proxy`.
    :raises ClosedError: a database that was never opened.
    :raises AssertionError: there is no such session any more, or it did not end in time.
    """
    __tracebackhide__ = True
    for database in listener.databases if isinstance(listener, Reactor) else (listener,):
        pid = database.backend_id
        deadline = deadline_in(timeout)
        with beside(database if dsn is None else dsn) as session:
            milliseconds = max(1, int(seconds_until(deadline) * 1000))
            session._clear_search_path()
            cursor = session.execute(TERMINATE, (pid, milliseconds))
            if cursor.fetchone() != (True,):
                raise AssertionError(
                    f"session {pid} of {database.name} had ended before, "
                    f"or did not end within {timeout:g} s"
                )
