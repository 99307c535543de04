"""The session of one database: who has it, what has arrived for it, and how it ended.

A ``Database`` is a facade on two objects, which the rest of the package uses as well:

- ``database._access`` (:class:`.access.Access`): how the database is reached;
- ``database._custody`` (:class:`Custody`): its session.

The session belongs to the user, who opens, reads and closes it through the facade, or to a host, a
running reactor: :meth:`Custody.lend`, :meth:`Custody.renew` for each further session of the
reactor's, :meth:`Custody.take_back`.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

from pgsignals._pure.values import Notification
from pgsignals._runtime.fork import ForkGuard
from pgsignals._wire.access import Access
from pgsignals._wire.session import SHARE, Session
from pgsignals.errors import ClosedError, ConnectionLostError, ConnectionStateError

T = TypeVar("T")


class Host(Protocol):
    """What serves a database in its place: a running reactor."""

    def notify(self, items: list[tuple[str, str]]) -> int: ...
    def value(self, sql: str, params: Sequence[object], *, may_wait: bool) -> Any:
        """The one value of the one row of *sql*, on a session beside the listening one; in the
        transaction that the calling handler has open, if it has one.

        :param may_wait: for another transaction, or for long.
        """

    def listen(self, channels: tuple[str, ...]) -> None: ...
    def unlisten(self, channels: tuple[str, ...]) -> None: ...
    def listening_channels(self) -> list[str]: ...
    def own_session(self) -> Session:
        """A session of the calling worker's own.

        :raises ConnectionStateError: called outside a handler.
        """


class Watcher(Protocol):
    """Is called when a session was opened, closed or lent, or has collected something besides
    its socket: the poller of a ``NotificationManager``."""

    def touched(self, watched: Any) -> None:
        """Called in any thread."""


Watchers: TypeAlias = tuple[weakref.ref[Watcher], ...]


class Custody:
    """See the module."""

    # Slots: a manager of thousands is faster, the fewer places it has to look at.
    __slots__ = (
        *("__weakref__", "_access", "_fork_guard", "_lock", "_lost", "_watchers"),
        *("arrived", "backend_id", "host", "session"),
    )

    def __init__(self, access: Access, fork_guard: ForkGuard) -> None:
        self._access = access
        self._fork_guard = fork_guard
        # Never held while anything blocks.  Reentrant, as a finalizer may iterate over a database
        # while this thread has it.
        self._lock = threading.RLock()
        self._watchers: Watchers = ()  # replaced, not changed; guarded by _lock
        self.host: Host | None = None  # guarded by _lock where it is set
        # The thread that uses the session: the user's, or the host's reader.
        self.session: Session | None = None
        self.backend_id: int | None = None
        self.arrived: deque[Notification] = deque()  # and not taken yet
        self._lost: ConnectionLostError | None = None

    def __repr__(self) -> str:
        return f"<the session of {self._access.name}>"

    @property
    def closed(self) -> bool:
        """Whether there is no session, or one that has been found to have ended."""
        session = self.session
        return session is None or session.closed

    # -- who has it ------------------------------------------------------------------------------

    def lend(self, host: Host) -> Session | None:
        """Hand the session to a reactor, or None when there is none.

        :raises ConnectionStateError: another reactor has it, or it is in a transaction.
        """
        self._fork_guard.check("a Database")
        with self._lock:
            self.check_not_served("start()")
            session = None if self.closed else self.session
            if session is not None:
                session.check_idle()
            elif self._access.wrapped:
                self._access.connect()  # raises, and says why
            self.host = host
            return session

    def renew(self, session: Session) -> None:
        """*session* is the database's from now on; a host goes on taking what arrives on it."""
        if self.host is None:
            session.arrivals.deliver(self.arrived, self.tell_watchers)
        self.session = session
        self._access.name = session.name
        self.backend_id = session.backend_id
        self._lost = None
        self.tell_watchers()

    def take_back(self, host: Host) -> None:
        """*host* is done with the session, if it had it; it is open, or has ended."""
        if self.host is not host:
            return
        self.host = None
        if self.session is not None:
            left = self.session.arrivals.queue  # since the host's last look, for its owner
            self.session.arrivals.deliver(self.arrived, self.tell_watchers)
            if left is not self.arrived:
                self.arrived.extend(left)
        self.tell_watchers()

    def forget(self) -> None:
        """In a forked child: drop the socket, sending nothing to the server."""
        if self.session is not None:
            self.session.forget()

    # -- arrivals --------------------------------------------------------------------------------

    def drain(self) -> list[Notification]:
        """See :meth:`Database.drain`."""
        self._fork_guard.check("a Database")
        session = self.session
        if session is None or self.host is not None:
            self.check_not_served("drain()")
            raise self.not_open()
        fresh: list[Notification] = []
        session.read_into(fresh, SHARE)
        if session.ended:
            self.note_end(session)
        return fresh

    def add_watcher(self, watcher: Watcher) -> None:
        """Have ``watcher.touched(self)`` called from now on; held weakly."""
        self._change_watchers(lambda alive: (*alive, weakref.ref(watcher)))

    def remove_watcher(self, watcher: Watcher) -> None:
        """Undo :meth:`add_watcher`."""
        self._change_watchers(lambda alive: tuple(ref for ref in alive if ref() is not watcher))

    def _change_watchers(self, change: Callable[[Watchers], Watchers]) -> None:
        with self._lock:
            while True:  # again if a finalizer has changed them meanwhile
                before = self._watchers
                after = change(tuple(ref for ref in before if ref() is not None))
                if self._watchers is before:
                    self._watchers = after
                    return

    def tell_watchers(self, but: object = None) -> None:
        """The session is another one, or there is something besides its socket."""
        for ref in self._watchers:
            if (watcher := ref()) is not None and watcher is not but:
                watcher.touched(self)

    # -- checks ----------------------------------------------------------------------------------

    def check_not_served(self, what: str) -> None:
        """Refuse *what* while a reactor has the session.

        :raises ConnectionStateError: it has.
        """
        if self.host is not None:
            raise ConnectionStateError(
                f"{what}: the session of {self._access.name} belongs to a running reactor; "
                "open a Database of your own"
            )

    def open_session(self, what: str) -> Session:
        """The user's session.

        :raises ConnectionStateError: a reactor has it.
        :raises ClosedError: there is none.
        """
        self._fork_guard.check("a Database")
        self.check_not_served(what)
        session = self.session
        if session is None:
            raise self.not_open()
        if session.ended:
            raise self._closed()
        if session.connection.closed:
            self.note_end(session)
            raise self._closed()
        return session

    def run(self, session: Session, statement: Callable[[Session], T]) -> T:
        """The result of *statement* on the user's *session*.  Blocks.

        :raises ConnectionLostError: it has ended.
        """
        try:
            return statement(session)
        except ConnectionLostError:
            self.note_end(session)
            self.tell_watchers()  # libpq has closed the socket: no selector will see it
            raise

    def clear_search_path(self) -> None:
        """See :meth:`Session.clear_search_path`; on the user's session, of which no other code has
        the connection."""
        self.run(self.open_session("clear_search_path()"), Session.clear_search_path)

    def note_end(self, session: Session) -> None:
        """*session* has ended: close it, and remember how it ended."""
        if not session.connection.closed and not self._access.wrapped:
            session.close()
        session.leave()
        self._lost = self._lost or session.lost()

    def not_open(self) -> ClosedError:
        """There has never been a session."""
        return ClosedError(f"{self._access.name} has not been opened; call open() or use 'with'")

    def _closed(self) -> ClosedError:
        why = f" ({self._lost})" if self._lost else ""
        return ClosedError(f"{self._access.name} is closed{why}; call open() for a new session")
