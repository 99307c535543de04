"""``Database``: listen, notify and wait on one connection."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Self, TypeVar

from pgsignals._pure.names import check_channels, check_unlisten, notify_items
from pgsignals._pure.publication import publication, publications
from pgsignals._pure.publishing import SCHEMA, check_schema, why_refused
from pgsignals._pure.publishing import publish as publish_sql
from pgsignals._pure.publishing import publish_many as publish_many_sql
from pgsignals._pure.statements import LISTENING, listen_sql
from pgsignals._pure.values import Notification
from pgsignals._runtime.fork import ForkGuard
from pgsignals._runtime.reentry import calls_out, reentered
from pgsignals._wire.access import Access, Cursor, Params, Transaction
from pgsignals._wire.custody import Custody, Host
from pgsignals._wire.opening import check_connection
from pgsignals._wire.session import Connection, Session
from pgsignals.errors import ConnectionStateError, SchemaError
from pgsignals.manager import NotificationManager, check_timeout

T = TypeVar("T")


class Database:
    """A connection to one PostgreSQL database, in autocommit.

    Made closed; :meth:`open`, ``with`` or a :class:`Reactor` opens it.  Before that, everything
    but :meth:`open` raises :exc:`ClosedError`.

    The first call that finds the session ended raises :exc:`ConnectionLostError`, later
    ones :exc:`ClosedError`.  In a forked child everything but :meth:`close` raises
    :exc:`ForkedError`.

    One thread at a time uses it; :meth:`close` may come from any thread.  While a reactor serves
    it, see "Whose session it is" in docs/quickstart.md.

    :param conninfo: a libpq connection string or URI; ``""`` for libpq's defaults.
    :param connect: instead of *conninfo*, a callable that returns a fresh
        ``psycopg.Connection`` in autocommit each time (rotating credentials).
    :param params: libpq's keywords, which win over *conninfo*, or psycopg's own.
    :raises TypeError: conninfo and *connect* together, or ``autocommit``, which is always on.
    """

    __slots__ = (
        *(
            "__dict__",
            "__weakref__",
            "_access",
            "_fork_guard",
            "_custody",
            "_listening",
            "_opening",
        ),
    )

    def __init__(
        self,
        conninfo: str = "",
        *,
        connect: Callable[[], Any] | None = None,
        **params: Any,
    ) -> None:
        if not isinstance(conninfo, str):
            raise TypeError(f"conninfo must be a str, not {type(conninfo).__name__}")
        if connect is not None and (conninfo or params):
            raise TypeError("give conninfo and keywords, or connect=, not both")
        if connect is not None and not callable(connect):
            raise TypeError(f"connect must be a callable, not {type(connect).__name__}")
        if "autocommit" in params:
            raise TypeError("autocommit cannot be set: a listener is always in autocommit")
        self._access = Access(conninfo, params, connect=connect)
        self._fork_guard = ForkGuard()
        self._opening = threading.Lock()
        self._custody = Custody(self._access, self._fork_guard)
        self._listening: set[str] = set()  # on the session that is the user's

    @classmethod
    def wrap(cls, connection: Any) -> Self:
        """Adopt an existing ``psycopg.Connection``, which still belongs to its owner.

        It cannot be reopened.  :meth:`close` ends the LISTENs of this database and leaves the
        connection open.

        :raises TypeError: not a ``psycopg.Connection``.
        :raises ClosedError: the connection is closed.
        :raises ConnectionStateError: it is not in autocommit, or in a transaction.
        """
        check_connection(connection, "wrap() needs")
        database = cls()
        session = Session(connection)
        database._access = Access(wrapped=connection)
        database._custody = Custody(database._access, database._fork_guard)
        database._adopt(session)
        return database

    def __repr__(self) -> str:
        state = "in the parent process" if self._fork_guard.in_child else "open"
        if state == "open" and self.closed:
            state = "closed"
        return f"<{type(self).__name__} {self.name} {state}>"

    @property
    def name(self) -> str:
        """Host, port and database name; never a secret."""
        return self._access.name

    @property
    def wrapped(self) -> bool:
        """True for what :meth:`wrap` made."""
        return self._access.wrapped

    # -- life ------------------------------------------------------------------------------------

    def open(self) -> Self:
        """Open a session, unless one is open, and return this database.  Blocks.

        A new session listens to nothing.

        :raises ConnectError: with the reason in one line.
        :raises EncodingError: the database's encoding has no conversion to UTF8.
        :raises ConnectionStateError: a wrapped connection cannot be reopened, or ``connect=``
            returned one that is not in autocommit or is in a transaction.
        """
        self._fork_guard.check(repr(self))
        self._custody.check_not_served("open()")
        if self._opening.locked():
            self._refuse_midway("open()")
        with self._opening:
            if self.closed:
                self._adopt(self._access.open())
        return self

    def _adopt(self, session: Session) -> None:
        self._listening = set()
        self._custody.renew(session)

    def close(self) -> None:
        """End the session; a second call does nothing.

        What was collected stays for :meth:`wait` and :meth:`drain`.  A wrapped connection is left
        open, without our LISTENs.  A forked child drops the socket, sending nothing to the server,
        and the parent's session goes on.
        """
        session = self._custody.session
        if self._fork_guard.in_child:
            self._custody.forget()
            return
        self._custody.check_not_served("close()")
        if session is None or session.ended:
            return
        midway = session.in_use and reentered()
        if self._access.wrapped:
            self._give_back(session, midway=midway)
        elif midway:
            session.abandon()
        else:
            session.close()
        self._custody.tell_watchers()

    def _give_back(self, session: Session, *, midway: bool) -> None:
        try:
            if self._listening and not midway:
                session.query(listen_sql(unlisten=filter(session.texts.can_say, self._listening)))
        except Exception:  # noqa: BLE001 - a transaction of its owner, or it is gone: no matter
            pass
        session.release()

    @calls_out
    def __enter__(self) -> Self:
        return self.open()

    @calls_out
    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """True before :meth:`open`, after :meth:`close`, and once a session that ended has been
        found to have ended."""
        return self._custody.closed

    @property
    def backend_id(self) -> int:
        """The server's process id of the session, remembered after its end.

        While a reactor serves the database, that of its listening session.
        """
        self._fork_guard.check("a Database")
        if self._custody.backend_id is None:
            raise self._custody.not_open()
        return self._custody.backend_id

    def fileno(self) -> int:
        """The socket's file number, for ``select`` and its like."""
        return self._custody.open_session("fileno()").fileno()

    # -- LISTEN and NOTIFY -----------------------------------------------------------------------

    def listen(self, *channels: str) -> None:
        """Listen to *channels*: one round trip, all of them or none.

        Inside a transaction it takes effect at the commit.  Names are taken exactly; without names
        it does nothing.

        :raises ChannelNameError: before anything is sent.
        :raises ConnectionLostError: the session has ended.
        """
        names = check_channels(channels)
        if (host := self._serving()) is not None:
            host.listen(names)
            return
        session = self._custody.open_session("listen()")
        if names:
            self._query(session, listen_sql(listen=names))
            self._listening.update(names)

    def unlisten(self, *channels: str) -> None:
        """Stop listening to *channels*; ``"*"`` means all.  Otherwise as :meth:`listen`.

        What was received before is still delivered.
        """
        names = check_unlisten(channels)
        if (host := self._serving()) is not None:
            host.unlisten(names)
            return
        session = self._custody.open_session("unlisten()")
        if names:
            self._query(session, listen_sql(unlisten=names))
            self._listening.difference_update(self._listening if "*" in names else names)

    def listening_channels(self) -> Iterator[str]:
        """An iterator over the channels that the server says this session listens to, at the
        time of the call.  Blocks for a round trip."""
        if (host := self._serving()) is not None:
            return iter(host.listening_channels())
        session = self._custody.open_session("listening_channels()")
        return iter([session.texts.channel(row[0]) for row in self._query(session, LISTENING)])

    def notify(
        self, /, *channels: str | tuple[str, str | None], **channel_and_payload: str | None
    ) -> int:
        """Notify *channels*, in order: positional items first, then keywords.

        One statement, so one transaction: all of it is sent, or nothing.  Inside a transaction
        the server sends at its commit.  The server folds equal pairs of one transaction into
        one (PostgreSQL manual, NOTIFY).

        :param channels: names, or pairs ``(channel, payload)``; a payload of None is ``""``.
        :returns: the number of notifications issued, 0 for no arguments.
        :raises ChannelNameError: before anything is sent.
        :raises PayloadError: over 7,999 bytes, or not valid as PostgreSQL text; before anything is
            sent.
        """
        items = notify_items(channels, channel_and_payload)
        if (host := self._serving()) is not None:
            return host.notify(items)
        session = self._custody.open_session("notify()")
        return self._statement(session, lambda session: session.notify(items))

    def publish(
        self,
        channel: str,
        payload: str = "",
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float | timedelta | None = None,
        dedup: str | None = None,
        ordered: bool = False,
        schema: str = SCHEMA,
    ) -> int | None:
        """Publish one event of a durable channel: see :func:`pgsignals.publish`.

        Inside a transaction it leaves with the commit.  Blocks for a round trip.

        :returns: the event's id; None when *dedup* was seen.
        :raises SchemaError: the schema is missing, or the role may not publish in it.
        """
        event = publication(
            channel, payload, key=key, headers=headers, delay=delay, dedup=dedup, ordered=ordered
        )
        sql = publish_sql(event, check_schema(schema))
        event_id: int | None = _value(self, *sql, schema, may_wait=ordered or dedup is not None)
        return event_id

    def publish_many(
        self,
        channel: str,
        items: Iterable[str | tuple[str, str | None]],
        *,
        schema: str = SCHEMA,
    ) -> int:
        """Publish many events of a durable channel: see :func:`pgsignals.publish_many`.

        One statement, so all of them or none; inside a transaction they leave with the commit.
        Blocks for a round trip.

        :returns: their number.
        :raises SchemaError: the schema is missing, or the role may not publish in it.
        """
        many = publications(channel, items)
        sql = publish_many_sql(*many, check_schema(schema))
        return int(_value(self, *sql, schema, may_wait=True))

    def _query(self, session: Session, sql: str) -> list[tuple[Any, ...]]:
        return self._statement(session, lambda session: session.query(sql))

    def _statement(self, session: Session, statement: Callable[[Session], T]) -> T:
        if session.in_use:
            self._refuse_midway("a statement")
        return self._custody.run(session, statement)

    # -- arrivals --------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> Iterator[Notification | None]:
        """Iterate over notifications as they arrive.

        Break out anywhere without losing notifications: the rest stays with this database, and the
        next ``wait()`` goes on with it.  The body may use the database.  The iterator stops,
        without an exception, when the session ends or is closed, after yielding what was left.

        :param timeout: seconds between idle events, which are None; None for no idle events; 0
            ends the iteration after what is there, without waiting.
        :raises TypeError: a timeout that is not a number.
        :raises ValueError: a negative timeout, or NaN.
        """
        check_timeout(timeout)
        self._fork_guard.check("a Database")
        self._custody.check_not_served("wait()")
        if self._custody.session is None:
            raise self._custody.not_open()
        return self._wait(NotificationManager(self, timeout=timeout))

    iternotifies = wait

    def _wait(self, manager: NotificationManager) -> Iterator[Notification | None]:
        custody, arrived = self._custody, self._custody.arrived
        for event in manager:
            if event is None:
                yield None
                continue
            # Whatever is not yielded must stay with the database, not with this generator.
            notifications = event[1]
            arrived.extendleft(reversed(notifications))
            custody.tell_watchers(but=manager._watcher_of(self))
            for _ in notifications:
                if self._fork_guard.known_in_child:
                    self._fork_guard.check("a Database")
                if not arrived:
                    break
                yield arrived.popleft()
            if arrived and (watcher := manager._watcher_of(self)) is not None:
                watcher.touched(custody)  # a statement in the body has collected more

    def drain(self) -> list[Notification]:
        """What has arrived, without waiting: what came along with statements, then what the
        socket has; a flood comes a share at a time.

        After the session's end it returns the rest, and :attr:`closed` is true from then on.
        """
        return self._custody.drain()

    # -- psycopg ---------------------------------------------------------------------------------

    @property
    def connection(self) -> Connection:
        """The ``psycopg.Connection``.  In a handler of a reactor, one of that worker's own."""
        if (host := self._serving()) is not None:
            return host.own_session().connection
        session = self._custody.open_session("connection")
        if session.in_use:
            self._refuse_midway("a statement")
        if not session.shared:
            session.share()
            self._custody.tell_watchers()
        return session.connection

    @calls_out
    def execute(self, query: str | bytes, params: Params | None = None) -> Cursor:
        """``connection.execute``; psycopg's errors pass through unchanged."""
        return self.connection.execute(query, params)

    def transaction(self) -> AbstractContextManager[Transaction]:
        """``connection.transaction()``: a block that commits, or rolls back on an exception."""
        return self.connection.transaction()

    # -- checks ----------------------------------------------------------------------------------

    def _serving(self) -> Host | None:
        self._fork_guard.check("a Database")
        return self._custody.host

    def _refuse_midway(self, what: str) -> None:
        """Refuse what would wait for the session's lock, which the calling thread may hold.

        :raises ConnectionStateError: :func:`reentered`.
        """
        if reentered():
            raise ConnectionStateError(
                f"{what} cannot run in a finalizer or an OS signal handler that has interrupted a "
                f"statement of {self.name}; give it a Database of its own"
            )


def _value(db: Database, sql: str, params: Sequence[object], schema: str, *, may_wait: bool) -> Any:
    """The one value of the one row of *sql*, which uses the *schema* of durable channels.

    :raises SchemaError: it is missing, or the role may not use it.
    """
    try:
        if (host := db._serving()) is not None:
            return host.value(sql, params, may_wait=may_wait)
        session = db._custody.open_session("publish()")
        return db._statement(session, lambda session: session.query(sql, params)[0][0])
    except Exception as exc:
        if (why := why_refused(getattr(exc, "sqlstate", None), schema, db.name)) is None:
            raise
    raise SchemaError(why)


def connect(conninfo: str = "", **params: Any) -> Database:
    """Open a connection and return its :class:`Database`.  Blocks.

    :param conninfo: a libpq connection string or URI; without one, libpq's ``PG*`` variables and
        defaults apply.
    :param params: libpq's keywords, which win over *conninfo*, or psycopg's own.
    :raises ConnectError: with the reason in one line and without secrets.
    """
    database = Database(conninfo, **params)
    del conninfo, params  # a traceback with locals shows this frame, too
    return database.open()
