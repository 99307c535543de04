"""Sessions with a PostgreSQL server.  The only module that imports psycopg.

psycopg's ``Connection.notifies()`` is not used: it holds the connection's lock while suspended
(psycopg issue 1310), and its notify handlers decode strictly, so that one bad payload loses its
neighbours.  libpq's own calls, ``PQconsumeInput`` and ``PQnotifies``, do neither.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import selectors
import socket
import sys
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice, repeat
from typing import Any, NamedTuple, TypeAlias

import psycopg
from psycopg import generators, pq
from psycopg.conninfo import conninfo_to_dict

from pgsignals._pure import conninfo as _conninfo
from pgsignals._pure.burst import Burst, make, named
from pgsignals._pure.names import PROBE_CHANNEL
from pgsignals._pure.statements import clear_search_path, notify
from pgsignals._pure.values import Notification
from pgsignals._runtime.reentry import calls_out
from pgsignals.errors import (
    ClosedError,
    ConnectError,
    ConnectionLostError,
    ConnectionStateError,
    EncodingError,
    Error,
)

Connection: TypeAlias = psycopg.Connection[Any]
Cursor: TypeAlias = psycopg.Cursor[Any]
Transaction: TypeAlias = psycopg.Transaction
Query: TypeAlias = psycopg.abc.Query
Params: TypeAlias = psycopg.abc.Params

#: Reads of one :meth:`Session.read`.  libpq takes about 16 kB at a time, so a burst of an eighth
#: of a megabyte comes in one piece, and other connections still get their turn.
READS = 8

#: Notifications of one read during a flood: few enough to be handled while they are still in the
#: processor's cache, and before the garbage collector looks at them (at 700 new objects).
SHARE = 300

#: This many notifications are made one by one; columns pay off for what libpq holds beyond that.
FEW = 16

#: Notifications that are taken from libpq at once: few enough not to set off the garbage
#: collector, which runs after 700 new objects.
CHUNK = 200

#: A read of fewer bytes has found the socket's end.
SMALL = 4096

# epoll and kqueue would need a file of their own for one look.
_Poll: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)

#: libpq's default is to wait for ever, psycopg's 130 seconds.
CONNECT_TIMEOUT = 10

#: How long an end waits for a thread that runs a statement on the same session, in seconds.
_PATIENCE = 0.01

_PROBE = PROBE_CHANNEL.encode()

#: Bytes that are not text in the client's encoding still arrive, and can be sent back unchanged.
_BYTES_AS_TEXT = "surrogateescape"

_BAD = pq.ConnStatus.BAD

_PSYCOPG_KEYWORDS = {"prepare_threshold", "context", "row_factory", "cursor_factory"}

_REFUSED = re.compile(
    r"authentication failed|no pg_hba\.conf entry|no password supplied|pg_hba\.conf rejects|"
    r"(role|database|user) \S+ does not exist|not permitted to log in|"
    r"permission denied for database"
)

#: What libpq refuses before it opens anything: see :func:`_resolved`.
_REFUSED_AT_ONCE = {"sslmode": "none of them", "password": "none"}

# Words of a message that may be part of a connection string or URL.
_QUOTED_BACK = re.compile(r"""(?<=invalid port number: )\S+|[^\s'"]*(?:@|=|://)[^\s'"]*""")

_UNRESOLVED = {
    socket.EAI_AGAIN: "Temporary failure in name resolution",
    socket.EAI_FAIL: "Non-recoverable failure in name resolution",
    socket.EAI_NODATA: "No address associated with hostname",
    socket.EAI_NONAME: "Name or service not known",
}

# Connections of the parent that a forked child must never finish, warn about or reuse.
_orphans: list[Connection] = []


class Result(NamedTuple):
    """The answer to one statement of :meth:`Session.submit`."""

    sqlstate: str | None
    """None when it succeeded."""

    message: str
    """The server's words, ``""`` when it succeeded."""

    rows: list[tuple[str, ...]]
    """As text; NULL is ``""``."""


class _Names(dict[bytes, str]):
    """Channel names, each decoded once: all sessions of one encoding have the same ones."""

    def __init__(self, encoding: str) -> None:
        self.encoding = encoding
        self.latest_canary = object()  # replaced with every canary

    def __missing__(self, relname: bytes) -> str:
        if relname == _PROBE:  # never cached, so that looking for it costs nothing elsewhere
            self.latest_canary = object()
            return PROBE_CHANNEL
        if len(self) >= 1 << 16:
            self.clear()
        name = self[relname] = str(relname, self.encoding, _BYTES_AS_TEXT)
        return name


_names_in: dict[str, _Names] = {}


class _Collector:
    """What libpq and psycopg call for a session.

    Neither may hold it: a cycle would outlive ``close()``.
    """

    __slots__ = ("_session",)

    def __init__(self, session: Session) -> None:
        self._session = weakref.ref(session)

    def __call__(self, notify: pq.PGnotify) -> None:
        if (session := self._session()) is not None:
            session._collect(notify)

    def notice(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        if (session := self._session()) is not None:
            session._notice(diagnostic)


class Session:
    """One open connection and what arrives on it.

    :param connection: in autocommit, outside a transaction; else it is refused.
    :param shared: whether others may run statements on it.
    :raises ClosedError: it is closed.
    :raises ConnectionStateError: it is not in autocommit, or is in a transaction.
    """

    __slots__ = (
        *("__weakref__", "_arrived", "_canary_seen", "_client_encoding", "_doomed", "_forgotten"),
        *("_lock", "_names", "_notice_handler", "_on_arrival", "_previous_handler", "_results"),
        *("_socket", "_spares", "_submitted", "_watchful", "answers", "attentive", "backend_id"),
        *("broken", "connection", "contended", "ended", "farewell", "heard", "more", "name"),
        *("pgconn", "shared", "sqlstate", "unsent"),
    )

    def __init__(self, connection: Connection, *, shared: bool = True) -> None:
        if connection.closed:
            raise ClosedError("the connection is closed; open a new one")
        self.connection = connection
        self.pgconn = connection.pgconn
        if isinstance(self.pgconn.notify_handler, _Collector):
            raise ConnectionStateError(
                "the connection is in use by another Database of pgsignals, which would take its "
                "notifications; close that one first, or open another connection"
            )
        self.name = _place_of(self.pgconn)
        self.check_idle()
        self.backend_id = connection.info.backend_pid
        self.ended = False
        self.sqlstate: str | None = None
        self.farewell = ""
        self.unsent = False
        self.more = False  # the last read has stopped before the end of what was there
        self.contended = False  # the last read had to leave the connection to another thread
        self.broken: psycopg.Error | None = None  # what a statement met that could not be sent
        self.answers: deque[list[Result]] = deque()
        self._arrived: deque[Notification] = deque()
        self._on_arrival: weakref.WeakMethod[Callable[[], None]] | None = None
        self._lock = connection.lock
        self._forgotten = False
        self._doomed = False  # close() could not get the lock: the thread that holds it closes
        self._socket = _identity(self.pgconn.socket)
        self._spares: list[int] = []  # at most one; the thread that takes it out owns it
        self.shared = shared
        if shared:
            self._keep_spare()
        self._watchful = True  # the next read has more to do than to read
        self._names = _names_in.setdefault("utf-8", _Names("utf-8"))
        self._canary_seen = self._names.latest_canary
        self._client_encoding: bytes | None = None
        self._submitted = False
        self._results: list[Result] = []
        self.attentive = False  # a caller waits for a sign of life, and each read notes it
        self.heard = False  # when the last read began, the socket had something
        self._previous_handler = self.pgconn.notify_handler
        collector = _Collector(self)
        self.pgconn.notify_handler = collector
        self._notice_handler = collector.notice
        connection.add_notice_handler(self._notice_handler)

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
        """Others may run statements on it from now on, such as SET client_encoding."""
        self.shared = self._watchful = True
        if self._lock.acquire(timeout=_PATIENCE):  # else one of ours runs, with a spare
            try:
                self._keep_spare()
            finally:
                self._lock.release()

    def deliver(self, arrived: deque[Notification], on_arrival: Callable[[], None]) -> None:
        """Say who gets what arrives along with statements that run on the connection.

        :param on_arrival: a bound method, held weakly; called when *arrived* was empty, in the
            thread that ran the statement.
        """
        if self._on_arrival is None:  # what came before this call
            arrived.extend(self._arrived)
        self._arrived = arrived
        self._on_arrival = weakref.WeakMethod(on_arrival)

    # -- arrivals --------------------------------------------------------------------------------

    def _collect(self, notify: pq.PGnotify) -> None:
        """Keep a notification that came along with a statement's answer."""
        self._follow_encoding()
        relname, pid, extra = notify
        self._arrived.append(Notification(self._names[relname], self._text(extra), pid))
        if relname == _PROBE:  # again, as the hint must not be older than its canary
            self._names.latest_canary = object()
        # Asked last: what was queued before it may have been taken meanwhile, and ours left behind.
        first = len(self._arrived) == 1
        if first and self._on_arrival and (tell := self._on_arrival()) is not None:
            tell()

    def _notice(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        """Remember why the server ends the session: psycopg reports it nowhere else."""
        fatal = diagnostic.severity_nonlocalized in ("FATAL", "PANIC")
        if fatal or diagnostic.sqlstate == "57P02":  # a crash elsewhere comes as a warning
            self._watchful = True
            self.sqlstate = diagnostic.sqlstate
            self.farewell = diagnostic.message_primary or ""

    def _follow_encoding(self) -> None:
        name = self.pgconn.parameter_status(b"client_encoding")
        if name == self._client_encoding:
            return
        self._client_encoding = name
        try:
            encoding = self.connection.info.encoding
        except psycopg.NotSupportedError:
            encoding = "ascii"
        # SQL_ASCII promises nothing; UTF-8 is the best guess.
        encoding = "utf-8" if encoding == "ascii" else encoding
        self._names = _names_in.setdefault(encoding, _Names(encoding))

    def _text(self, raw: bytes) -> str:
        return str(raw, self._names.encoding, _BYTES_AS_TEXT)

    def _texts(self, raws: Iterable[bytes]) -> list[str]:
        if self._names.encoding == "utf-8":
            with contextlib.suppress(UnicodeDecodeError):
                return list(map(bytes.decode, raws))  # the fast path, nearly always taken
        return [self._text(raw) for raw in raws]

    def may_have_canary(self) -> bool:
        """Whether a notification on the probe channel has been read since the last call, by this
        session or by another one."""
        before, self._canary_seen = self._canary_seen, self._names.latest_canary
        return before is not self._canary_seen

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
            self._take_arrived(fresh)
            return
        self.contended = False
        try:
            if self.attentive and not self.ended:
                self.heard = self._is_readable()
            if self._arrived:
                self._take_arrived(fresh)
            if not self.ended:
                self._read(fresh, share, reads or READS)
        finally:
            lock.release()
            if self._doomed:
                self.close()

    def _is_readable(self) -> bool:
        """Whether a byte has come, or the end of the stream; with the lock held."""
        try:
            with _Poll() as poll:
                poll.register(self.pgconn.socket, selectors.EVENT_READ)
                return bool(poll.select(0))
        except (psycopg.OperationalError, OSError, ValueError):  # libpq has closed it
            return True

    def _take_arrived(self, fresh: list[Notification] | Burst) -> None:
        while self._arrived:
            fresh.append(self._arrived.popleft())

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
            taken, much = self._take_notifies(fresh, room)
            if self._watchful:
                if self.farewell:
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
                self._take_notifies(fresh, sys.maxsize)
                self.more = False
            self._watchful = self._submitted or self.ended
            if self.shared:  # asked last, as share() may come from another thread
                self._watchful = True

    def _is_open(self) -> bool:
        try:
            self._follow_encoding()
        except psycopg.OperationalError as exc:  # its owner has closed it
            self._end(exc)
        return not self.ended

    def _take_leftovers(self, fresh: list[Notification] | Burst, share: int) -> int:
        """Take what the last read has left in libpq, and return how many more may be read."""
        self.more = False
        # An answer must not overtake what came before it.
        room = sys.maxsize if self._submitted else share
        return room - self._take_notifies(fresh, room)[0]

    def _take_notifies(self, fresh: list[Notification] | Burst, most: int) -> tuple[int, bool]:
        """Move what libpq holds to *fresh*, at most this many, and return how many, and whether
        there may be more, here or in the socket."""
        notifies, names = self.pgconn.notifies, self._names
        taken = size = 0
        while taken < FEW and taken < most:
            if (notify := notifies()) is None:
                return taken, size >= SMALL
            relname, pid, extra = notify
            text = str(extra, names.encoding, _BYTES_AS_TEXT)
            fresh.append(make(Notification, (names[relname], text, pid)))
            size += len(extra)
            taken += 1
        while raw := list(islice(iter(notifies, None), min(most - taken, CHUNK))):
            # Column by column, so that the loops are C's.
            relnames, pids, extras = zip(*raw, strict=True)
            channels, payloads = map(names.__getitem__, relnames), self._texts(extras)
            if isinstance(fresh, Burst):
                same = pids.count(pids[0]) == len(pids)  # of one sender: one number for all
                fresh.extend(channels, payloads, repeat(pids[0], len(pids)) if same else pids)
            else:
                fresh += named(zip(channels, payloads, pids, strict=True))
            taken += len(pids)
        return taken, True

    def _end(self, exc: psycopg.Error) -> None:
        self._watchful = True
        self.leave()
        self.sqlstate = self.sqlstate or exc.sqlstate
        self.farewell = self.farewell or _one_line(exc)

    # -- statements of the owner's thread --------------------------------------------------------

    def query(self, sql: str, params: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
        """Run *sql* and return its rows, regardless of the connection's row and cursor factories.

        Blocks for a round trip.

        :raises ConnectionLostError: the session has ended.
        """
        lost = None
        spare = None
        if not self.shared:
            with self._lock:
                spare = self._keep_spare()
        try:
            cursor = psycopg.Cursor(self.connection, row_factory=psycopg.rows.tuple_row)
            cursor.execute(self._encode(sql), params, prepare=False)
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as exc:  # a DataError, too, may have ended it
            if not self.connection.closed:
                raise
            self._end(exc)
            while (notify := self.pgconn.notifies()) is not None:
                self._collect(notify)
            lost = self.lost()
        finally:
            if spare is not None and not self.shared:
                self._drop_spare()
            if self._doomed:
                self.close()
        raise lost  # outside the block: a chained psycopg error would carry the password

    def _encode(self, sql: str) -> bytes:
        self._follow_encoding()
        return sql.encode(self._names.encoding, _BYTES_AS_TEXT)

    def notify(self, items: list[tuple[str, str]]) -> int:
        """Issue *items* in one statement and return their number; as :meth:`query`."""
        return int(self.query(*notify(items))[0][0]) if items else 0

    def can_say(self, text: str) -> bool:
        """Whether the client's encoding can hold *text*; a wrapped connection has its owner's."""
        try:
            self._encode(text)
        except UnicodeEncodeError:
            return False
        return True

    def query_text(self, sql: str) -> list[tuple[Any, ...]]:
        """As :meth:`query`, with text as ``str`` even in SQL_ASCII."""
        return [
            tuple(self.text(value) if isinstance(value, bytes) else value for value in row)
            for row in self.query(sql)
        ]

    def text(self, value: str | bytes) -> str:
        """A value of :meth:`query` as text; psycopg leaves bytes in SQL_ASCII."""
        return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")

    @property
    def why_lost(self) -> str:
        """How this session ended: the server's words and its code, where it sent any."""
        code = f" ({self.sqlstate})" if self.sqlstate else ""
        return f"{self.farewell or 'the connection is gone'}{code}"

    def channel(self, told: str | bytes) -> str:
        """A name from :data:`.statements.LISTENING`, spelled as in notifications."""
        as_it_is = self.pgconn.parameter_status(b"server_encoding") == b"SQL_ASCII"
        encoding = self._names.encoding if as_it_is else "utf-8"
        return str(bytes.fromhex(self.text(told)), encoding, _BYTES_AS_TEXT)

    def clear_search_path(self) -> None:
        """Empty it: no names but the server's own mean anything then.  For a session on which
        only we run statements; no effect behind a pooler.  Blocks for a round trip.

        :raises ConnectionLostError: the session has ended.
        """
        with contextlib.suppress(psycopg.Error):  # refused: our statements need none, anyway
            self.query(clear_search_path(self.backend_id))

    def lost(self) -> ConnectionLostError:
        """The error that says how this session ended."""
        return ConnectionLostError(
            f"the session with {self.name} has ended: {self.why_lost}", sqlstate=self.sqlstate
        )

    # -- statements that do not block ------------------------------------------------------------

    def submit(self, sql: str) -> None:
        """Send *sql* without waiting for the answer, which :meth:`read` puts into
        :attr:`answers`.  One at a time."""
        self._watchful = True
        try:
            self.pgconn.send_query(self._encode(sql))
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
            if self.ended or (self.pgconn.status != _BAD and not self._is_free()):
                return self.ended
            begins()
            self.pgconn.send_query(self._encode(sql))
            results = self.connection.wait(generators.execute(self.pgconn))
            self.answers.append([self._result(result) for result in results])
        except psycopg.Error as exc:
            self._end(exc)
        finally:
            self._lock.release()
            if self._doomed:
                self.close()
        return True

    def _is_free(self) -> bool:
        pipeline = self.pgconn.pipeline_status != pq.PipelineStatus.OFF
        return not (self.in_transaction or pipeline)

    def flush(self) -> None:
        """Send what the socket did not take at once; :attr:`unsent` says if there is more."""
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
            self._results.append(self._result(result))
        return False

    def _result(self, result: pq.abc.PGresult) -> Result:
        if result.status in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
            rows = [
                tuple(
                    self._text(result.get_value(row, column) or b"")
                    for column in range(result.nfields)
                )
                for row in range(result.ntuples)
            ]
            return Result(None, "", rows)
        sqlstate = result.error_field(pq.DiagnosticField.SQLSTATE) or b"XX000"
        message = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"no reason given"
        severity = result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED)
        if severity in (b"FATAL", b"PANIC"):  # a farewell, where an answer was expected
            self.sqlstate, self.farewell = sqlstate.decode(), self._text(message)
        return Result(sqlstate.decode(), self._text(message), [])

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

    # libpq closes the socket whenever it finds it broken, and its number is soon reused.  So the
    # number is either asked of libpq under the lock, or is a spare, a duplicate that is ours.  A
    # spare is only kept while other code can hold the lock for long: a manager may have thousands
    # of sessions, and no process has that many file numbers to spare.

    def _keep_spare(self) -> int | None:
        """Have a duplicate of the socket from now on; called with the lock held."""
        if self._spares or self.ended:
            return None
        try:
            spare = os.dup(self.pgconn.socket)
        except (psycopg.OperationalError, OSError):  # it has ended, or no number is left
            return None
        self._spares.append(spare)
        return spare

    def _drop_spare(self) -> None:
        with contextlib.suppress(IndexError):
            self._close_copy(self._spares.pop())

    def _close_copy(self, number: int) -> None:
        # In a forked child, which may have closed all that it inherited, our number may have been
        # reused, too.
        with contextlib.suppress(OSError):
            if _identity(number) == self._socket:
                os.close(number)

    def __del__(self) -> None:
        # May run anywhere, so it takes no lock.
        if hasattr(self, "_notice_handler") and not self.ended:
            with contextlib.suppress(Exception):
                self.release()  # its owner may have it still
        if hasattr(self, "_spares"):
            self._drop_spare()

    def shutdown(self) -> None:
        """Make every thread that waits on the socket wake up and find the session ended."""
        if (number := self._own_number()) is not None:
            with contextlib.suppress(OSError), socket.socket(fileno=number) as duplicate:
                duplicate.shutdown(socket.SHUT_RDWR)

    def _own_number(self) -> int | None:
        """A number of the socket that is the caller's to close, or None."""
        for _ in range(100):  # a thread with the lock and no spare only reads or makes one
            if self._lock.acquire(blocking=False):
                try:
                    return os.dup(self.pgconn.socket)
                except (psycopg.OperationalError, OSError):
                    return None
                finally:
                    self._lock.release()
            with contextlib.suppress(IndexError):
                return self._spares.pop()
            time.sleep(0.001)
        return None

    def leave(self) -> None:
        """It has ended."""
        self.ended = True
        self._drop_spare()

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
            self.connection._pool = None  # as in forget()
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
        self.pgconn.notify_handler = self._previous_handler
        with contextlib.suppress(ValueError):  # its owner has taken it away
            self.connection.remove_notice_handler(self._notice_handler)

    def forget(self) -> None:
        """In a forked child: drop the socket, sending nothing to the server."""
        if self._forgotten:
            return
        self.ended = self._forgotten = True
        _orphans.append(self.connection)
        self.connection._pool = None  # psycopg warns of open connections, except those of a pool
        self._drop_spare()
        with contextlib.suppress(psycopg.OperationalError):
            self._close_copy(self.pgconn.socket)


def _identity(number: int) -> tuple[int, int]:
    """What distinguishes a socket from every other one, whatever their numbers."""
    status = os.fstat(number)
    return status.st_dev, status.st_ino


# -- opening -------------------------------------------------------------------------------------


def open_connection(
    conninfo: str, params: Mapping[str, Any], name: str, within: float | None = None
) -> Connection:
    """Connect in autocommit and speak UTF8.  Blocks.

    :param name: of the database; errors begin with it.
    :param within: seconds for all hosts together; None leaves each its ``connect_timeout``.

    :raises ConnectError: with the reason in one line and without secrets.
    :raises EncodingError: the database's encoding has no conversion to UTF8.
    """
    settings = _settings(conninfo, params)
    if within is not None:
        settings["connect_timeout"] = _share(settings, within)
    try:
        return _spoken(psycopg.connect(autocommit=True, **settings))
    except (psycopg.Error, OSError) as exc:
        reason = _without_secrets(_one_line(exc), settings)
    # The only server encoding without a conversion to UTF8 is named in every language.
    if "MULE_INTERNAL" in reason and "UTF8" in reason:
        raise _no_conversion(name, "MULE_INTERNAL")
    raise ConnectError(f"{name}: {reason}")


@calls_out
def call_connect(connect: Callable[[], object], name: str, *, logged: bool) -> Connection:
    """A fresh connection from the user's *connect*, made to speak UTF8.  Blocks.

    What *connect* raises may hold a secret in its text, such as a token in a URL.

    :param name: of the database, for errors.
    :param logged: whether the reason goes anywhere besides the caller of our API.
    :raises ConnectError: with a reason that is ours, libpq's or the system's.
    :raises TypeError: it returned something else.
    """
    try:
        connection = connect()
    except (psycopg.OperationalError, psycopg.ProgrammingError, OSError, Error) as exc:
        reason = _reason(exc, logged=logged)
    else:
        given = check_connection(connection, "connect returned")
        if isinstance(given.pgconn.notify_handler, _Collector):
            reason = "it returned a connection that is in use already, not a fresh one"
        elif given.closed:
            reason = "it returned a closed connection"
        else:
            return _spoken(given)
    raise ConnectError(f"{name}: connect failed: {reason}")


def _reason(exc: Exception, *, logged: bool) -> str:
    """Why a user's *connect* has failed, without secrets."""
    kind = type(exc).__name__
    if isinstance(exc, psycopg.ProgrammingError):
        return "the connection string cannot be read"  # which psycopg's message repeats
    if isinstance(exc, Error):
        return str(exc) if _raised_in(exc, "pgsignals") else kind
    if isinstance(exc, psycopg.OperationalError):
        words = not logged or _raised_in(exc, "psycopg")
        return _one_line(_QUOTED_BACK.sub("***", str(exc))) if words else kind
    number = exc.errno if isinstance(exc, OSError) else None
    known = _UNRESOLVED.get(number or 0) if isinstance(exc, socket.gaierror) else None
    if known is None and number is not None and number in errno.errorcode:
        known = os.strerror(number)
    return f"{kind}: {known}" if known else kind


def _raised_in(exc: BaseException, package: str) -> bool:
    """Whether *exc* was raised by *package*, not only with a type of it."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__") if trace is not None else ""
    return str(module).partition(".")[0] == package


def open_like(connection: Connection) -> Connection:
    """Another connection to where *connection* leads, as the same user.  Blocks."""
    info, name = connection.info, _place_of(connection.pgconn)
    params = {"password": info.password or None, "client_encoding": "UTF8"}
    return open_connection(info.dsn, params, name)


def check_connection(connection: object, what: str) -> Connection:
    """*connection*, if it is psycopg's."""
    if not isinstance(connection, psycopg.Connection):
        raise TypeError(f"{what} {type(connection).__name__}, not a psycopg.Connection")
    return connection


def describe(conninfo: str, params: Mapping[str, Any]) -> str:
    """Where *conninfo* leads: host, port and database name, without connecting."""
    try:
        settings = _parse(conninfo, params)
    except ConnectError:
        return "(unreadable conninfo)"
    found = _resolved(settings)
    if "port" not in found:  # an unknown service, which opening it will report
        return f"service={settings.get('service') or os.environ.get('PGSERVICE')}"
    host = found.get("host") or found.get("hostaddr") or found["default host"]
    return _place(host, found["port"], found.get("dbname") or found.get("user", ""))


def endpoint(conninfo: str) -> tuple[str, int]:
    """The one host, or directory of a Unix socket, and the port that *conninfo* leads to.

    :raises ConnectError: it cannot be read.
    :raises ValueError: it names no host, or several.
    """
    settings = _parse(conninfo, {})
    found = _resolved(settings)
    host, port = found.get("hostaddr") or found.get("host", ""), found.get("port", "")
    if not host or not port or "," in host + port:
        raise ValueError(f"the connection string must name one host, not {host or 'none'}")
    return host, int(port)


def redirected(conninfo: str, port: int) -> str:
    """*conninfo*, led to *port* on 127.0.0.1.  A host's name stays: TLS compares it."""
    settings = _parse(conninfo, {})
    host = _resolved(settings).get("host")
    settings |= {"hostaddr": "127.0.0.1", "port": port}
    if not host or host.startswith("/"):
        settings["host"] = "127.0.0.1"
    return psycopg.conninfo.make_conninfo("", **settings)


def _resolved(settings: Mapping[str, Any]) -> dict[str, str]:
    """What libpq makes of *settings*, with its service file, variables and defaults: it shows that
    for an attempt that it refuses before anything is opened.  Empty for an unknown service;
    "default host" is where it looks for a server if nothing names a host."""
    conninfo = psycopg.conninfo.make_conninfo("", **{**settings, **_REFUSED_AT_ONCE})
    pgconn = pq.PGconn.connect_start(conninfo.encode())
    found = {
        option.keyword.decode(): option.val.decode(errors="replace")
        for option in pgconn.info
        if option.val
    }
    if found:
        found["default host"] = pgconn.host.decode(errors="replace")
    pgconn.finish()
    return found


def _place_of(pgconn: pq.abc.PGconn) -> str:
    """Where an open connection leads.  psycopg would decode by an encoding that Python may lack."""
    host, port, dbname = (
        part.decode(errors="replace") for part in (pgconn.host, pgconn.port, pgconn.db)
    )
    return _place(host, port, dbname)


def _place(host: str, port: object, dbname: str) -> str:
    place = f"{host or 'localhost'}:{port}/{dbname}"
    return place if place.isprintable() else place.encode("unicode_escape").decode()


def _parse(conninfo: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of *conninfo* and *params*, without defaults.

    :raises ConnectError: it cannot be read; names the scheme or keyword, and no value.
    """
    libpq = {key: value for key, value in params.items() if key not in _PSYCOPG_KEYWORDS}
    text = _conninfo.tidy(conninfo)
    merged = readable = None
    try:
        readable = conninfo_to_dict(text)
        merged = conninfo_to_dict(text, **libpq)
        psycopg.conninfo.make_conninfo("", **merged).encode()
    except (psycopg.Error, UnicodeError, ValueError):
        merged = None  # libpq's message repeats what it could not read, which may be a password
    if merged is not None:
        reason = _conninfo.suspicion(text, merged)
        if reason is None:
            return dict(merged)
    else:
        known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
        reason = "the value of a keyword holds something that libpq does not accept"
        if readable is None:
            reason = _conninfo.fault(text, known)
        elif strange := sorted(libpq.keys() - known):
            reason = f"it has {_conninfo.unknown(strange[0], known, 'keyword')}"
    raise ConnectError(
        f"the connection string cannot be read: {reason}; it should look like "
        f"{_conninfo.EXAMPLES} (yours is not shown, as it may hold a password)"
    )


def _settings(conninfo: str, params: Mapping[str, Any]) -> dict[str, Any]:
    settings = _parse(conninfo, params)
    found = _resolved(settings)
    # psycopg looks neither for several hosts nor for a timeout in a service file.
    settings |= {key: found[key] for key in ("host", "hostaddr", "port") if found.get(key)}
    settings["connect_timeout"] = found.get("connect_timeout") or CONNECT_TIMEOUT
    asked = found.get("client_encoding")
    if asked and str(asked).replace("-", "").replace("_", "").lower() not in ("utf8", "unicode"):
        warnings.warn(
            f"client_encoding={asked!r} is overridden with UTF8: a payload that it cannot hold "
            "would end the session",
            UserWarning,
            stacklevel=_users_level(),
        )
    settings["client_encoding"] = "UTF8"
    settings.setdefault("fallback_application_name", "pgsignals")
    settings.update((key, params[key]) for key in params.keys() & _PSYCOPG_KEYWORDS)
    return settings


def _users_level() -> int:
    """For ``warnings.warn`` in the calling function: the first frame that is not ours."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "pgsignals":
        level, frame = level + 1, frame.f_back
    return level


def _spoken(connection: Connection) -> Connection:
    """Settle what is spoken on the wire: UTF8, or SQL_ASCII where the database is SQL_ASCII.

    A UTF8 client of an SQL_ASCII database loses its session to the first payload that is not
    UTF-8; an SQL_ASCII client is handed the bytes.
    """
    pgconn = connection.pgconn
    server = pgconn.parameter_status(b"server_encoding")
    wanted = b"SQL_ASCII" if server == b"SQL_ASCII" else b"UTF8"
    if server == b"MULE_INTERNAL":
        place = _place_of(pgconn)
        connection.close()
        raise _no_conversion(place, "MULE_INTERNAL")
    idle = pgconn.transaction_status == pq.TransactionStatus.IDLE
    if pgconn.parameter_status(b"client_encoding") != wanted and idle:
        pgconn.exec_(b"SET client_encoding TO " + wanted)
    return connection


def _share(settings: Mapping[str, Any], within: float) -> int:
    """Each host's share of the seconds *within*, or less when the user asks for less."""
    hosts = str(settings.get("hostaddr") or settings.get("host") or "").count(",") + 1
    share = max(2, int(within / hosts))  # libpq takes whole seconds, and less than 2 as 2
    try:
        wanted = int(float(settings.get("connect_timeout", share)))
    except ValueError:
        return share
    return min(share, wanted) if wanted > 0 else share


def _no_conversion(name: str, encoding: str) -> EncodingError:
    return EncodingError(
        f"{name}: the database's encoding {encoding} has no conversion to UTF8; "
        "use a database with encoding UTF8"
    )


def versions() -> tuple[str, str]:
    """The versions of psycopg and of the libpq that it uses."""
    major, minor = divmod(pq.version(), 10_000)
    return psycopg.__version__, f"{major}.{minor}"


def needs_care(error: Exception) -> bool:
    """Whether trying again soon would only fail again, and might lock an account.

    libpq gives no SQLSTATE for a refused connection; a server that answers in another language
    than English is tried again as after any other failure.
    """
    return isinstance(error, ConnectError) and _REFUSED.search(str(error)) is not None


def _one_line(told: object) -> str:
    return "; ".join(line.strip() for line in str(told).splitlines() if line.strip())


def _without_secrets(text: str, settings: Mapping[str, Any]) -> str:
    for key in ("password", "sslpassword"):
        if secret := settings.get(key):
            text = text.replace(str(secret), "***")
    return text
