"""One open session: what arrives on it, statements that block and that do not, and its end."""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import psycopg
from psycopg import pq

from pgsignals._pure.burst import Burst
from pgsignals._pure.conninfo import place
from pgsignals._pure.statements import clear_search_path, notify
from pgsignals._pure.values import Notification
from pgsignals._wire import hooks
from pgsignals._wire.arrivals import Arrivals
from pgsignals._wire.borrowed import collect_silently, fetch_results, lock_of
from pgsignals._wire.descriptor import Descriptor
from pgsignals._wire.encodings import Texts, value_as_text
from pgsignals._wire.farewell import Farewell
from pgsignals._wire.notifies import take_notifies
from pgsignals._wire.results import Result, read_result
from pgsignals.errors import ClosedError, ConnectionLostError, ConnectionStateError

Connection: TypeAlias = psycopg.Connection[Any]

#: Reads of one :meth:`Session.read`.  libpq takes about 16 kB at a time, so a burst of an eighth
#: of a megabyte comes in one piece, and other connections still get their turn.
READS = 8

#: Notifications of one read during a flood: few enough to be handled while they are still in the
#: processor's cache, and before the garbage collector looks at them (at 700 new objects).
SHARE = 300

#: How long close() waits for a thread that runs a statement before it shuts the socket down, in
#: seconds.
_PATIENCE = 0.01

_BAD = pq.ConnStatus.BAD

# Connections of the parent that a forked child must never finish, warn about or reuse.
_orphans: list[Connection] = []


class Session:
    """One open connection and what arrives on it.

    One thread reads and submits statements.  Statements that block may run on other threads; each
    holds psycopg's lock on the connection, and so does each read.

    :param connection: must be in autocommit and outside a transaction.
    :param shared: whether other code may run statements on it.
    :raises ClosedError: it is closed.
    :raises ConnectionStateError: it is not in autocommit, or is in a transaction.
    """

    __slots__ = (
        *("__weakref__", "_descriptor", "_doomed", "_forgotten", "_hooks", "_lock", "_results"),
        *("_submitted", "_watchful", "answers", "arrivals", "attentive", "backend_id", "broken"),
        *("connection", "contended", "ended", "farewell", "heard", "more", "name", "pgconn"),
        *("shared", "texts", "unsent"),
    )

    def __init__(self, connection: Connection, *, shared: bool = True) -> None:
        if connection.closed:
            raise ClosedError("the connection is closed; open a new one")
        if hooks.are_installed(connection):
            raise ConnectionStateError(
                "the connection is in use by another Database of pgsignals, which would take its "
                "notifications; close that one first, or open another connection"
            )
        # Set once.
        self.connection = connection
        self.pgconn = connection.pgconn
        self.name = place(self.pgconn.host, self.pgconn.port, self.pgconn.db)
        self.check_idle()
        self._lock = lock_of(connection)
        self._descriptor = Descriptor(self.pgconn, self._lock)
        self.texts = Texts(connection)
        self.arrivals = Arrivals(self.texts)
        # Set once by any thread, and never taken back.
        self.ended = False
        self.shared = shared
        self._forgotten = False
        # Guarded by _lock.
        self.farewell = Farewell()
        self.more = False  # the last read has stopped before the end of what was there
        self.answers: deque[list[Result]] = deque()  # also emptied by the thread that submits
        self._submitted = False
        self._results: list[Result] = []
        # Any thread sets it; the thread with _lock clears it.
        self._doomed = False  # close() could not get the lock: the thread that holds it closes
        self._watchful = True  # the next read has more to do than to read
        # The thread that reads and submits.
        self.backend_id = connection.info.backend_pid
        self.contended = False  # the last read had to leave the connection to another thread
        self.attentive = False  # a caller waits for a sign of life, and each read notes it
        self.heard = False  # when the last read began, the socket had something
        self.unsent = False  # the socket did not take all of a statement
        self.broken: psycopg.Error | None = None  # why a statement could not be sent
        if shared:
            self._descriptor.keep_spare()
        self._hooks = hooks.Hooks(connection, self.arrivals.collect, self._notice)

    def check_idle(self) -> None:
        """Refuse a connection on which nothing would arrive.

        :raises ConnectionStateError: it is not in autocommit, or is in a transaction.
        """
        if not self.connection.autocommit:
            raise ConnectionStateError(
                f"{self.name}: the connection is not in autocommit, so LISTEN would only count "
                "after a commit and nothing would arrive; set autocommit = True"
            )
        if self.in_transaction:
            raise ConnectionStateError(
                f"{self.name}: the connection is in a transaction or busy, and a session in a "
                "transaction receives nothing; commit or roll back first"
            )

    @property
    def closed(self) -> bool:
        """Whether it has ended, or other code has closed the connection."""
        return self.ended or self.pgconn.status == _BAD

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open on it, failed or not."""
        return self.pgconn.transaction_status != pq.TransactionStatus.IDLE

    def share(self) -> None:
        """Expect other code to run statements on it from now on, such as SET client_encoding."""
        self.shared = self._watchful = True
        if self._lock.acquire(timeout=_PATIENCE):  # else one of ours runs, with a spare
            try:
                if not self.ended:
                    self._descriptor.keep_spare()
            finally:
                self._lock.release()

    # -- arrivals --------------------------------------------------------------------------------

    def _notice(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        """Remember why the server ends the session: psycopg reports it nowhere else."""
        if self.farewell.is_in(diagnostic):
            self._watchful = True

    def read(self, share: int = SHARE) -> list[Notification]:
        """What :meth:`read_into` finds, in a list."""
        fresh: list[Notification] = []
        self.read_into(fresh, share)
        return fresh

    def read_into(
        self, fresh: list[Notification] | Burst, share: int, reads: int | None = None
    ) -> None:
        """Add to *fresh* what came along with statements, then what the socket has, without
        waiting: a burst at once, a flood in shares; :attr:`more` says whether there may be more.

        :param share: notifications, while a flood goes on.
        :param reads: of the socket; None for :data:`READS`.

        Never raises for a session that ends: :attr:`ended` says so, and the rest is added.
        """
        lock = self._lock
        if not lock.acquire(False):
            self.contended = True  # a thread that runs a statement takes and reports what arrives
            self.arrivals.take_into(fresh)
            return
        self.contended = False
        try:
            if self.attentive and not self.ended:
                self.heard = self._descriptor.is_readable()
            if self.arrivals.queue:
                self.arrivals.take_into(fresh)
            if not self.ended:
                self._read(fresh, share, reads or READS)
        finally:
            lock.release()
            if self._doomed:
                self.close()

    def _read(self, fresh: list[Notification] | Burst, share: int, reads: int) -> None:
        if self._watchful and not self._is_open():
            return
        room = self._take_leftovers(fresh, share) if self.more else sys.maxsize
        while room > 0 and reads > 0:
            try:
                self.pgconn.consume_input()
            except psycopg.OperationalError as exc:
                if self._submitted:
                    with contextlib.suppress(psycopg.OperationalError):
                        self._take_results()  # the server's farewell is among them
                self._end(exc)
            taken, much = take_notifies(self.pgconn, self.texts, fresh, room)
            if self._watchful:
                if self.farewell.text:
                    self.leave()  # the server has said so; the end of the stream only follows
                if self.ended:
                    break
                # What followed an answer in the same packet is still in the buffer.
                much = (self._submitted and self._take_results()) or much
            if not much:
                break
            room -= taken
            reads -= 1
        else:
            self.more = True
        if self._watchful:
            if self.broken is not None and not self.ended:
                self._end(self.broken)
            if self.ended:
                take_notifies(self.pgconn, self.texts, fresh, sys.maxsize)
                self.more = False
            self._watchful = self._submitted or self.ended
            if self.shared:  # asked last, as share() may come from another thread
                self._watchful = True

    def _is_open(self) -> bool:
        try:
            self.texts.follow()
        except psycopg.OperationalError as exc:  # its owner has closed it
            self._end(exc)
        return not self.ended

    def _take_leftovers(self, fresh: list[Notification] | Burst, share: int) -> int:
        """Take what the last read has left in libpq, and return how many more may be read."""
        self.more = False
        # An answer must not overtake what came before it.
        room = sys.maxsize if self._submitted else share
        return room - take_notifies(self.pgconn, self.texts, fresh, room)[0]

    def _end(self, exc: psycopg.Error) -> None:
        self._watchful = True
        self.leave()
        self.farewell.add(exc)

    # -- statements of the owner's thread --------------------------------------------------------

    def query(self, sql: str, params: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
        """Run *sql* and return its rows, regardless of the connection's row and cursor factories.

        Blocks for a round trip.

        :raises ConnectionLostError: the session has ended.
        """
        lost = None
        spare = False
        if not self.shared:
            with self._lock:
                spare = not self.ended and self._descriptor.keep_spare()
        try:
            cursor = psycopg.Cursor(self.connection, row_factory=psycopg.rows.tuple_row)
            cursor.execute(self.texts.encode(sql), params, prepare=False)
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as exc:  # a DataError, too, may have ended it
            if not self.connection.closed:
                raise
            self._end(exc)
            while (notify := self.pgconn.notifies()) is not None:
                self.arrivals.collect(notify)
            lost = self.lost()
        finally:
            if spare and not self.shared:
                self._descriptor.drop_spare()
            if self._doomed:
                self.close()
        raise lost  # outside the block: a chained psycopg error would carry the password

    def notify(self, items: list[tuple[str, str]]) -> int:
        """Issue *items* in one statement and return their number; as :meth:`query`."""
        return int(self.query(*notify(items))[0][0]) if items else 0

    def query_text(self, sql: str) -> list[tuple[Any, ...]]:
        """As :meth:`query`, with text as ``str`` even in SQL_ASCII."""
        return [tuple(map(value_as_text, row)) for row in self.query(sql)]

    def clear_search_path(self) -> None:
        """Empty search_path, so that names mean the server's own objects only.  For a session on
        which only we run statements; has no effect behind a pooler.  Blocks for a round trip.

        :raises ConnectionLostError: the session has ended.
        """
        with contextlib.suppress(psycopg.Error):  # refused: our statements need none, anyway
            self.query(clear_search_path(self.backend_id))

    def lost(self) -> ConnectionLostError:
        """The error to raise for the end of this session."""
        text = f"the session with {self.name} has ended: {self.farewell.why}"
        return ConnectionLostError(text, sqlstate=self.farewell.sqlstate)

    # -- statements that do not block ------------------------------------------------------------

    def submit(self, sql: str) -> None:
        """Send *sql* without waiting for the answer, which :meth:`read` puts into
        :attr:`answers`.  One at a time."""
        self._watchful = True
        try:
            self.pgconn.send_query(self.texts.encode(sql))
            self._submitted = True
        except psycopg.OperationalError as exc:
            self.broken = exc  # read() takes what is left, perhaps the reason, and ends it
        else:
            self.flush()

    def ask(self, sql: str, patience: float, begins: Callable[[], None]) -> bool:
        """Put the answer to *sql* into :attr:`answers`, on a connection shared with other code,
        which cannot use it from question to answer.  Blocks.

        :param patience: seconds to wait for another's statement.
        :param begins: called before *sql* is sent.
        :returns: False, with nothing sent, while another's statement or transaction goes on.

        Never raises for a session that ends: :attr:`ended` says so.
        """
        if not self._lock.acquire(timeout=patience):
            return False
        try:
            pgconn, off = self.pgconn, pq.PipelineStatus.OFF
            if self.ended or (
                pgconn.status != _BAD and (self.in_transaction or pgconn.pipeline_status != off)
            ):
                return self.ended
            begins()
            self.pgconn.send_query(self.texts.encode(sql))
            results = fetch_results(self.connection)
            self.answers.append(
                [read_result(result, self.texts, self.farewell) for result in results]
            )
        except psycopg.Error as exc:
            self._end(exc)
        finally:
            self._lock.release()
            if self._doomed:
                self.close()
        return True

    def flush(self) -> None:
        """Send what the socket did not take at once; sets :attr:`unsent` if there is more."""
        try:
            self.unsent = self.pgconn.flush() == 1
        except psycopg.OperationalError as exc:
            self.broken = exc
            self._watchful = True

    def _take_results(self) -> bool:
        pgconn = self.pgconn
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                self._submitted = False
                self.answers.append(self._results)
                self._results = []
                return True
            self._results.append(read_result(result, self.texts, self.farewell))
        return False

    # -- the end ---------------------------------------------------------------------------------

    def fileno(self) -> int:
        """The socket's file number.

        :raises ClosedError: there is none left.
        """
        try:
            return self.pgconn.socket
        except psycopg.OperationalError:
            pass
        raise ClosedError(f"the session with {self.name} has ended and no longer has a socket")

    @property
    def in_use(self) -> bool:
        """Whether a thread runs a statement on it, or reads."""
        return self._lock.locked()

    def __del__(self) -> None:
        # May run anywhere, so it takes no lock.
        if hasattr(self, "_hooks") and not self.ended:
            with contextlib.suppress(Exception):
                self.release()  # its owner may have it still

    def shutdown(self) -> None:
        """Shut the socket down: every thread that waits on it wakes and finds the session ended."""
        self._descriptor.shutdown()

    def leave(self) -> None:
        """Mark it as ended."""
        self.ended = True
        self._descriptor.drop_spare()

    def close(self) -> None:
        """End the session, from any thread; a statement that runs on it fails.

        No thread may enter libpq while another one is inside.  If that one does not leave, such as
        a suspended generator of psycopg's, the socket is shut down, so that the session has ended
        for the server and for us; libpq's memory and file number are released by our own code when
        it leaves, or by the collector once nothing references the connection.
        """
        self._close(within=1.0)

    def abandon(self) -> None:
        """As :meth:`close`, without waiting for a thread that uses it, such as the calling one."""
        self._close(within=0.0)

    def _close(self, within: float) -> None:
        lock = self._lock
        held = lock.acquire(timeout=min(_PATIENCE, within))
        if not held:
            self._doomed = True
            self.shutdown()
            held = lock.acquire(timeout=within)
        self.leave()
        if not held:
            collect_silently(self.connection)
            return
        try:
            self._doomed = False
            self.connection.close()
            self.pgconn.finish()  # psycopg leaves a broken one to the garbage collector
        finally:
            lock.release()

    def release(self) -> None:
        """Return a connection to its owner as it was."""
        self.leave()
        self._hooks.remove()

    def forget(self) -> None:
        """In a forked child: drop the socket, sending nothing to the server."""
        if self._forgotten:
            return
        self.ended = self._forgotten = True
        _orphans.append(self.connection)
        collect_silently(self.connection)
        self._descriptor.close_inherited()
