"""Sessions beside the listening one, on which statements block: workers' and the control one.

They share one rule: opened on first use, by the thread that needs it, and renewed after the
listening session has ended, as they may have ended as well, unnoticed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pgsignals._pure.statements import CANARY
from pgsignals._runtime.log import Log
from pgsignals._wire.access import Access
from pgsignals._wire.session import Session
from pgsignals.errors import ClosedError, ConnectionLostError, ConnectionStateError

logger = Log("pgsignals.reactor")

T = TypeVar("T")

#: A control connection is closed after this many seconds without use.
KEPT = 30.0


class Beside:
    """One session beside the listening one.  One thread at a time uses it.

    :param alone: no other code is given its connection.
    """

    __slots__ = ("_access", "_alone", "_losses", "fresh", "session")

    def __init__(self, access: Access, *, alone: bool) -> None:
        self._access = access
        self._alone = alone
        self._losses = 0  # of the listening session, before ours was opened
        self.session: Session | None = None
        self.fresh = False  # nothing has been said on it yet

    def renewed(self) -> Session:
        """The session, opened if there is none that is certain to be alive.  Blocks.

        One in a transaction stays, so that the code that began it sees its end.

        :raises ConnectError: no connection can be made.
        """
        losses = self._access.losses  # before opening, so that a loss meanwhile counts
        if (session := self.session) is not None:
            session.read()  # it may have ended while it was not in use
            if not session.ended and (self._losses == losses or session.in_transaction):
                return session
            self.drop()
        session = self._access.open_beside(alone=self._alone)
        self.session, self._losses, self.fresh = session, losses, True
        return session

    def drop(self) -> None:
        """Close the session, if there is one."""
        session, self.session = self.session, None
        if session is not None:
            session.close()

    def forget(self) -> None:
        """In a forked child: drop the socket, sending nothing to the server."""
        if (session := self.session) is not None:
            session.forget()


class Sessions(dict[Access, Beside]):
    """A worker's own sessions, which its handlers use; empty until one does."""

    def session_for(self, access: Access) -> Session:
        """The session with one database, as :meth:`Beside.renewed`."""
        if access not in self:
            self[access] = Beside(access, alone=False)
        return self[access].renewed()

    def open_transaction(self, access: Access) -> Session | None:
        """The session with one database while it is in a transaction."""
        session = self[access].session if access in self else None
        return session if session is not None and session.in_transaction else None

    def end_transactions(self, warn: Callable[[], None]) -> None:
        """Roll back what a handler has left open: it would swallow the next handler's work.

        :param warn: called before each.
        """
        for access, beside in tuple(self.items()):
            session = beside.session
            if session is None or session.connection.closed:
                del self[access]
                beside.drop()
            elif session.in_transaction:
                warn()
                try:
                    session.connection.rollback()
                except Exception:  # noqa: BLE001 - whatever psycopg raises for a broken one
                    beside.drop()

    def close(self) -> None:
        """Close all of them."""
        for beside in self.values():
            beside.drop()

    def forget(self) -> None:
        """In a forked child: drop the sockets, sending nothing to the server."""
        for beside in self.values():
            beside.forget()


class Control:
    """The connection that notifies and sends canaries; threads that use it wait for one another.

    A thread that waits for a silent server cannot interrupt itself: the reader checks
    :meth:`silent_for` and calls :meth:`shutdown`.

    :param on_use: called when a thread begins to wait for an answer.
    :param patience: seconds a server may be silent.
    """

    def __init__(self, access: Access, on_use: Callable[[], None], patience: float) -> None:
        self._access = access
        self._patience = patience
        self._on_use = on_use
        self._lock = threading.Lock()
        self._holder: int | None = None  # the thread that has the lock
        self._posted: deque[list[tuple[str, str]]] = deque()
        self._sending = threading.Lock()
        self._beside = Beside(access, alone=True)
        self.notified = 0.0  # when the last notify() was done, as time.monotonic()
        self._used = 0.0
        self._asked: float | None = None
        self._closed = False

    def notify(self, items: list[tuple[str, str]]) -> int:
        """Issue *items*.  Blocks for a round trip, and to connect when there is no connection.

        :raises ConnectError: no connection can be made.
        :raises ConnectionLostError: it ended meanwhile; the items may or may not have been sent.
        """

        def issue(session: Session) -> int:
            issued = session.notify(items)
            self.notified = time.monotonic()
            return issued

        return self._run(issue) if items else 0

    def value(self, sql: str, params: Sequence[object]) -> Any:
        """The one value of the one row of *sql*; blocks and raises as :meth:`notify`."""
        return self._run(lambda session: session.query(sql, params)[0][0])

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of *sql*; blocks and raises as :meth:`notify`."""
        return self._run(lambda session: session.query_text(sql))

    def _run(self, statement: Callable[[Session], T]) -> T:
        if self._holder == threading.get_ident():
            raise ConnectionStateError(
                f"connect= of {self._access.name} notifies through the reactor that waits for "
                "its connection; notify on the new connection instead"
            )
        with self._lock:
            self._holder = threading.get_ident()
            try:
                return self._run_alone(statement)
            finally:
                self._holder = None

    def _run_alone(self, statement: Callable[[Session], T]) -> T:
        session = self._open_session()
        self._asked = time.monotonic()
        self._on_use()
        try:
            if self._beside.fresh and not session.shared:
                session.clear_search_path()
            self._beside.fresh = False
            return statement(session)
        except ConnectionLostError:
            self._beside.drop()
            raise
        finally:
            self._used, self._asked = time.monotonic(), None
            if self._closed:  # close() has not waited for us
                self._beside.drop()

    def post(self, items: list[tuple[str, str]]) -> bool:
        """Leave *items* to another thread, in order; takes no lock and does not block.

        :returns: whether such a thread is needed, to run :meth:`send_posted`.
        """
        self._posted.append(items)
        return not self._sending.locked()

    def send_posted(self) -> None:
        """Notify what was posted.  Blocks."""
        while self._posted and self._sending.acquire(blocking=False):
            try:
                while self._posted:
                    self.notify(self._posted.popleft())
            except BaseException as exc:  # noqa: BLE001 - a user's connect= may be in it
                kind = type(exc).__name__
                message = "%s: a notification from a finalizer or signal handler was not sent (%s)"
                logger.warning(message, self._access.name, kind)
            finally:
                self._sending.release()

    def canary(self) -> None:
        """Notify the probe channel; raises as :meth:`notify`."""
        self._run(lambda session: session.query(CANARY))

    def _open_session(self) -> Session:
        if not self._closed or self._beside.session is not None:
            session = self._beside.renewed()
            if not (self._closed and self._beside.fresh):
                return session
            self._beside.drop()
        raise ClosedError(f"the reactor that served {self._access.name} has stopped")

    # -- the reader's side -----------------------------------------------------------------------

    def tick(self, now: float, looked: float) -> None:
        """Do what is due.

        :param looked: when the reader last looked: what the server failed to do was late by then.
        """
        if self.silent_for(looked) >= self._patience:
            self.shutdown()
        if (expires := self.expires()) is not None and now >= expires:
            self.close_unused(now)

    def due(self, now: float) -> float:
        """When :meth:`tick` has something to do."""
        if silent := self.silent_for(now):
            return now + self._patience - silent
        expires = self.expires()
        return float("inf") if expires is None else expires

    def silent_for(self, now: float) -> float:
        """For how many seconds a statement has been waiting for its answer."""
        asked = self._asked
        return 0.0 if asked is None else now - asked

    def shutdown(self) -> None:
        """Make the thread that waits for an answer give up."""
        if (session := self._beside.session) is not None:
            session.shutdown()

    def expires(self) -> float | None:
        """When to close it if it stays unused, as ``time.monotonic()``; None if not connected."""
        return None if self._beside.session is None else self._used + KEPT

    def close_unused(self, now: float) -> None:
        """Close it when it has not been used for long."""
        if self._lock.acquire(blocking=False):
            try:
                if self._beside.session is not None and now >= self._used + KEPT:
                    self._beside.drop()
            finally:
                self._lock.release()

    def begin_close(self) -> None:
        """Let no further statement begin; one that waits for its answer fails."""
        self._closed = True
        if self._lock.locked():
            self.shutdown()

    def close(self, by: float) -> None:
        """Close it, after :meth:`begin_close`.

        :param by: how long to wait for a thread that uses it, as ``time.monotonic()``.  One that
            does not end by then, because it still connects, closes when it comes back.
        """
        if self._lock.acquire(timeout=max(0.0, by - time.monotonic())):
            try:
                self._beside.drop()
            finally:
                self._lock.release()

    def forget(self) -> None:
        """In a forked child: drop the socket, sending nothing to the server."""
        self._beside.forget()
