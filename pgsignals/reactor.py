"""``Reactor``: fires a signal for every notification, from background threads."""

from __future__ import annotations

import atexit
import logging
import math
import queue
import signal
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable
from types import FrameType
from typing import Any, Self, get_args

from pgsignals._backlog import Backlog, Policy
from pgsignals._channels import ALL, check_channels, check_unlisten, notify_items
from pgsignals._driver import Session
from pgsignals._fork import Birth
from pgsignals._link import Link, Reason, Settings
from pgsignals._reader import Reader
from pgsignals._types import DatabaseStatus, Gap, Status
from pgsignals._workers import Workers, current_worker, emit, own_session
from pgsignals.database import Database, send
from pgsignals.errors import ClosedError, ConnectionLostError, ConnectionStateError
from pgsignals.manager import as_seconds, check_timeout
from pgsignals.signals import Channels, ChannelSignal, F, OrderedSignal, changes, default

logger = logging.getLogger(__name__)

#: 2**17: more than the 100,000 of a large transaction, some 30 MB of short payloads.
MAX_BACKLOG = 131_072

#: How long a call waits for LISTENs that were asked for before it, in seconds.
ACKNOWLEDGED_WITHIN = 10.0

#: What a program that ends leaves a reactor to drain in, in seconds.
AT_EXIT = 1.0


class Reactor:
    """Watches one or many databases and calls handlers for what they notify.

    ``with Reactor(dsn) as reactor:`` runs it in the background; :meth:`run` runs it in the
    foreground.  Handlers are registered with :func:`pgsignals.on_channel` for every reactor, or
    with :meth:`on_channel` for this one.

    One thread reads and never runs a handler; *workers* threads run handlers and never read.
    All methods may be called from any thread, and from handlers.

    :param databases: a connection string or a :class:`Database` each.
    :param channels: names to LISTEN to from the start, handler or not.
    :param timeout: seconds between :attr:`idle` signals; None for none.
    :param workers: threads that run handlers.  One keeps the order over all channels, several
        keep the order of each channel.
    :param max_backlog: how many notifications may wait for their handlers, over all databases.
    :param overflow: what then happens to one more: ``"drop_oldest"`` gives the oldest up and
        tells it as a :class:`Gap`; ``"coalesce"`` does not queue what equals a waiting one in
        channel and payload, and drops the oldest of too many different ones; ``"block"`` stops
        reading, which loses nothing but makes the server wait (see docs/guarantees.md).
    :param backoff: the first and the longest wait between attempts to reconnect, in seconds.
    :param probe_interval: seconds between two proofs that a link is alive; None for none.
    :param probe_timeout: seconds that the server has to answer.
    :param name: begins the names of the threads.
    :raises TypeError: no database, or arguments of a wrong type.
    :raises ValueError: numbers out of range, an unknown *overflow*, a database twice.
    """

    def __init__(
        self,
        *databases: str | Database,
        channels: Iterable[str] = (),
        timeout: float | None = None,
        workers: int = 1,
        max_backlog: int = MAX_BACKLOG,
        overflow: Policy = "drop_oldest",
        backoff: tuple[float, float] = (0.1, 30.0),
        probe_interval: float | None = 10.0,
        probe_timeout: float = 5.0,
        name: str = "pgsignals",
    ) -> None:
        if not databases:
            raise TypeError('a Reactor wants at least one database; "" means libpq\'s defaults')
        if isinstance(channels, str):
            raise TypeError("channels is an iterable of names: channels=['orders']")
        if overflow not in get_args(Policy):
            raise ValueError(f"overflow is one of {get_args(Policy)}, not {overflow!r}")
        if not isinstance(name, str):
            raise TypeError(f"name is a str, not {type(name).__name__}")
        self._databases = tuple(_database(database) for database in databases)
        if len(set(self._databases)) < len(self._databases):
            raise ValueError("a database was given twice")
        self._idle_seconds = _seconds("timeout", timeout, none=True)
        self._workers = _count("workers", workers)
        self._max_backlog = _count("max_backlog", max_backlog)
        self._overflow: Policy = overflow
        self._settings = Settings(
            name=name,
            backoff=_backoff(backoff),
            probe_interval=_seconds("probe_interval", probe_interval, none=True),
            probe_timeout=_seconds("probe_timeout", probe_timeout) or 0.0,
            max_backlog=self._max_backlog,
            blocks=overflow == "block",
        )
        self._birth = Birth()
        self._own = Channels()
        self._listened: dict[Database, frozenset[str]] = dict.fromkeys(
            self._databases, frozenset(check_channels(channels))
        )
        self._lock = threading.Lock()  # guards _listened and which life is ours
        self._life: _Life | None = None
        for namespace in (default, self._own):
            namespace.watch(self)

        self.connected = OrderedSignal("connected(db, *, resumed): a session listens.")
        """Once per session, when its LISTEN is known to hold: ``receiver(db, *, resumed)``."""
        self.lost = OrderedSignal("lost(db, *, reason, error): a session has ended.")
        """Once per session: ``receiver(db, *, reason, error)``; *reason* is "ended", "silent"
        (no answer in time) or "deaf" (it answers, but a canary did not arrive)."""
        self.gap = OrderedSignal("gap(db, *, gap): something may have been missed.")
        """``receiver(db, *, gap)``, with a :class:`Gap`."""
        self.idle = OrderedSignal("idle(reactor): every timeout seconds.")
        """Every *timeout* seconds when set: ``receiver(reactor)``."""
        self.handler_failed = OrderedSignal(
            "handler_failed(db, *, notification, handler, error): a handler raised."
        )
        """``receiver(db, *, notification, handler, error)``; *notification* is the list, for a
        batch handler."""
        self.stopped = OrderedSignal("stopped(reactor, *, error): it has ended.")
        """Once per life: ``receiver(reactor, *, error)``; *error* is None after a clean stop."""
        self.any_channel = OrderedSignal("any_channel(db, *, notification): each of them.")
        """Every notification: ``receiver(db, *, notification)``."""

    def __repr__(self) -> str:
        names = ", ".join(database.name for database in self._databases)
        return f"<{type(self).__name__} {self._settings.name!r}: {names}>"

    # -- handlers --------------------------------------------------------------------------------

    def channel(self, name: str) -> ChannelSignal:
        """The blinker signal of channel *name* of this reactor alone."""
        self._check_fork()
        return self._own.channel(name)

    def on_channel(
        self,
        *names: str,
        sender: Database | None = None,
        decode: Callable[[str], Any] | None = None,
        batch: bool = False,
        weak: bool = False,
    ) -> Callable[[F], F]:
        """As :func:`pgsignals.on_channel`, for this reactor alone."""
        self._check_fork()
        return self._own.on_channel(*names, sender=sender, decode=decode, batch=batch, weak=weak)

    def handlers_changed(self, _: str) -> None:
        """See :class:`pgsignals.signals.Watcher`."""
        if (life := self._life) is not None and not self._birth.elsewhere:
            life.reader.request()

    def acknowledge_handlers(self) -> None:
        """See :class:`pgsignals.signals.Watcher`."""
        if (life := self._life) is not None and not self._birth.elsewhere:
            life.wait_settled(life.reader.links)

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open every database and LISTEN; return when all of it is acknowledged.  Blocks.

        Does nothing on a running reactor.  When one database fails, everything is rolled back.

        :raises ConnectError: no connection can be made.
        :raises UnsupportedServerError: LISTEN/NOTIFY cannot work there; says what to change.
        :raises ConnectionStateError: another reactor serves a database, or a connection is not in
            autocommit, or is in a transaction.
        """
        self._check_fork()
        with self._lock:
            before, life = self._life, self._life
            if life is None or life.over:
                life = self._life = _Life(self)
        if life is not before:
            life.start()
        elif life.is_current:
            if life.reader.stopping:
                raise ConnectionStateError("start(): a stop of this reactor is under way")
        elif not life.has_begun():
            life.join(None)
            self.start()

    def stop(self, timeout: float | None = None) -> bool:
        """Stop reading, run the handlers of what has been received, and close the sessions.

        Does nothing on a stopped reactor.  From a handler it returns at once and the stop goes
        on.  In a forked child it forgets the sockets.

        :param timeout: seconds for the handlers; None for no limit.
        :returns: False when the time ran out: what was left is counted, and the handler that is
            stuck named, in a warning.
        """
        seconds = check_timeout(timeout)
        life = self._life
        if life is None:
            return True
        if self._birth.elsewhere:
            life.forget()
            return True
        return life.stop(None if seconds is None else time.monotonic() + as_seconds(seconds))

    def run(self, stop_timeout: float | None = 10.0) -> None:
        """Run in the foreground until it is stopped.

        SIGINT or SIGTERM stops it within *stop_timeout* seconds, a second one at once; the
        program's own signal handlers are put back.  Outside the main thread, which alone may
        handle OS signals, they are left alone.

        :raises Error: what ended the reactor, if it was not stopped.
        """
        check_timeout(stop_timeout)
        wishes: queue.SimpleQueue[bool] = queue.SimpleQueue()  # True: stop; False: has ended
        self.start()
        life = self._life
        if life is None:
            return
        before = _handle_signals(lambda *_: wishes.put(True))
        try:
            life.when_over(lambda: wishes.put(False))
            seconds = stop_timeout
            while wishes.get():
                life.ask_to_stop(
                    None if seconds is None else time.monotonic() + as_seconds(seconds)
                )
                seconds = 0.0
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if life.error is not None:
            raise life.error

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has ended; from a handler it does not wait.

        :param timeout: seconds; None for no limit.
        :returns: False when the time ran out.
        """
        self._check_fork()
        seconds = check_timeout(timeout)
        life = self._life
        return life is None or life.join(None if seconds is None else as_seconds(seconds))

    @property
    def running(self) -> bool:
        """True from the end of :meth:`start` until a stop has closed the sessions."""
        self._check_fork()
        return self._life is not None and self._life.running

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- LISTEN and NOTIFY -----------------------------------------------------------------------

    @property
    def databases(self) -> tuple[Database, ...]:
        """Its databases, in the order given."""
        return self._databases

    def notify(
        self,
        /,
        *channels: str | tuple[str, str | None],
        database: Database | None = None,
        **pairs: str | None,
    ) -> int:
        """As :meth:`Database.notify`, on a connection beside the listening one.

        Handlers that were registered before the call receive it.  In a handler that has a
        transaction of its worker's session open, it belongs to that transaction.

        :param database: where to notify; needed when there are several.
        :raises ValueError: *database* is needed, or not one of ours.
        :raises ClosedError: the reactor is not running.
        """
        self._check_fork()
        if database is None and len(self._databases) > 1:
            raise ValueError("this reactor has several databases: notify(..., database=...)")
        items = notify_items(channels, pairs)
        target = self._databases[0] if database is None else self._check_ours(database)
        return self._running_life("notify()").notify(target, items)

    def listen(self, *channels: str, database: Database | None = None) -> None:
        """LISTEN to *channels* whether they have handlers or not (:attr:`any_channel` hears
        them); acknowledged when it returns, save by a database that is not connected now.

        Before :meth:`start` it is remembered.

        :param database: None for all.
        """
        self._check_fork()
        names = frozenset(check_channels(channels))
        self._change_listened(database, lambda before: before | names)

    def unlisten(self, *channels: str, database: Database | None = None) -> None:
        """Take back what :meth:`listen` did; ``"*"`` takes all of it back.

        A channel that has handlers stays.
        """
        self._check_fork()
        names = frozenset(check_unlisten(channels))
        self._change_listened(
            database, lambda before: frozenset() if ALL in names else before - names
        )

    def _change_listened(
        self, database: Database | None, change: Callable[[frozenset[str]], frozenset[str]]
    ) -> None:
        targets = self._databases if database is None else (self._check_ours(database),)
        with self._lock:
            for target in targets:
                self._listened[target] = change(self._listened[target])
        if (life := self._life) is not None:
            life.acknowledge(targets)

    def wanted(self, database: Database) -> set[str]:
        """The channels that *database* has to listen to."""
        handled = default.wanted_by(database) | self._own.wanted_by(database)
        return handled | self._listened[database]

    def status(self) -> Status:
        """What an operator sees, at this moment.  Does not block."""
        self._check_fork()
        life = self._life
        if life is None:
            databases = tuple(_never_started(database) for database in self._databases)
            return Status(running=False, backlog=0, workers=self._workers, databases=databases)
        return Status(
            running=life.running,
            backlog=life.backlog.waiting,
            workers=self._workers,
            databases=tuple(link.status() for link in life.reader.links),
        )

    # -- checks ----------------------------------------------------------------------------------

    def _check_fork(self) -> None:
        self._birth.check("a Reactor")

    def _check_ours(self, database: Database) -> Database:
        if database not in self._databases:
            raise ValueError(f"{database!r} is not one of this reactor's databases")
        return database

    def _running_life(self, what: str) -> _Life:
        if (life := self._life) is None or life.over:
            raise ClosedError(f"{what}: the reactor is not running; call start()")
        return life


class _Life:
    """One life of a reactor, from start to stop: its threads, its backlog, its links."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.backlog = Backlog(
            reactor._max_backlog, reactor._overflow, parallel=reactor._workers > 1
        )
        name = reactor._settings.name
        self.workers = Workers(
            name,
            reactor._workers,
            self.backlog,
            reactor._own,
            reactor.any_channel,
            reactor.handler_failed,
        )
        self.reader = Reader(
            self,
            reactor.databases,
            self.backlog,
            reactor._settings,
            reactor._idle_seconds,
        )
        self.error: BaseException | None = None
        self.running = False
        self.over = False  # the sessions are closed; a new life may begin
        self._clean = True
        self._deadline: float | None = None
        self._asked_to_stop = False
        self._birth = Birth()
        self._idle_waits = False
        self._batched: dict[Link, tuple[int, Collection[str]]] = {}
        self._borrowed: dict[Database, Session] = {}
        self._served: list[Database] = []
        self._when_over: list[Callable[[], None]] = []
        self._over_lock = threading.Lock()
        self._begun = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"{name}-reader", daemon=True)

    # -- start -----------------------------------------------------------------------------------

    def has_begun(self) -> bool:
        """Wait until another thread's start is over, and say whether it goes on."""
        self._begun.wait()
        return self.running and not self.reader.stopping

    def start(self) -> None:
        """See :meth:`Reactor.start`."""
        try:
            self._start()
        finally:
            self._begun.set()

    def _start(self) -> None:
        try:
            for link in self.reader.links:
                session = link.database.lend(_Service(self, link))
                self._served.append(link.database)
                if session is not None:
                    self._borrowed[link.database] = session
        except BaseException:
            self._take_back()
            self.over = True
            self._done.set()
            raise
        _living.add(self)
        self.workers.start()
        self._thread.start()
        try:
            error = self.reader.wait_started()
        except BaseException:  # KeyboardInterrupt: nothing of ours may stay behind
            self.abandon()
            raise
        if error is None and not self.reader.starting and not self.reader.stopping:
            self.running = True
            return
        self.abandon()
        raise error or ClosedError("the reactor was stopped while it started")

    def abandon(self) -> None:
        """Roll back a start."""
        self._deadline = time.monotonic()
        self.reader.stop()
        self._done.wait()

    # -- stop ------------------------------------------------------------------------------------

    def ask_to_stop(self, deadline: float | None) -> None:
        """Begin to stop, or shorten the time that a stop has."""
        with self._over_lock:
            if not self._asked_to_stop:
                self._deadline = deadline
            elif deadline is not None:
                self._deadline = min(deadline, self._deadline or deadline)
            self._asked_to_stop = True
        self.reader.stop()
        self.backlog.hurry()

    def stop(self, deadline: float | None) -> bool:
        """See :meth:`Reactor.stop`."""
        self.ask_to_stop(deadline)
        if not self.is_current:
            self._done.wait()
        return self._clean

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is one of ours, which cannot wait for its own end."""
        return (
            threading.current_thread() is self._thread or current_worker(self.workers) is not None
        )

    def join(self, seconds: float | None) -> bool:
        """See :meth:`Reactor.join`."""
        if self.is_current:
            return self.over
        return self._done.wait(None if seconds is None else min(seconds, threading.TIMEOUT_MAX))

    def when_over(self, call: Callable[[], None]) -> None:
        """Have *call* called at the end, or now."""
        with self._over_lock:
            self._when_over.append(call)
            if not self._done.is_set():
                return
        call()

    def forget(self) -> None:
        """In a forked child: drop the sockets without a word to the server."""
        for link in self.reader.links:
            link.control.forget()
            if link.session is not None and not link.session.ended:
                link.session.forget()

    # -- the reader's thread ---------------------------------------------------------------------

    def _live(self) -> None:
        try:
            self.reader.run(self._borrowed)
        except BaseException as exc:
            logger.critical("pgsignals itself has failed; the reactor stops", exc_info=True)
            self.error = exc
        if self.running and not self._asked_to_stop:
            self.error = self.error or self.reader.error
        self.reader.stopping = True
        self.reader.settled()
        try:
            self._end()
        except BaseException:
            logger.critical("pgsignals itself has failed at its end", exc_info=True)
        finally:
            self.running, self.over = False, True
            with self._over_lock:
                self._done.set()
                calls = tuple(self._when_over)
            for call in calls:
                call()

    def _end(self) -> None:
        was_running = self.running
        self.reader.finish(self._borrowed)
        drained = self.backlog.join(lambda: self._deadline)
        if not drained:
            self._clean = False
            self._warn()
        self.reader.close()
        self._take_back()
        self.running, self.over = False, True
        _living.discard(self)
        if was_running:
            self._tell_stopped(drained)
        self.backlog.end()
        if drained:
            for worker in self.workers.threads:
                worker.join(1.0)

    def _warn(self) -> None:
        stuck = ", ".join(self.workers.stuck) or "none"
        left = self.backlog.give_up()
        logger.log(
            logging.INFO if _exiting else logging.WARNING,
            "stop: the time ran out with %d notifications left; handlers still running: %s",
            left,
            stuck,
        )

    def _tell_stopped(self, drained: bool) -> None:
        def tell() -> None:
            emit(self.reactor.stopped, self.reactor, error=self.error)

        if drained:
            self.backlog.announce(None, tell)
            self.backlog.join(lambda: None)
        else:  # no worker may be free for it
            tell()

    def _take_back(self) -> None:
        for database in self._served:
            database.take_back()

    # -- what links tell (Events); on the reader's thread ----------------------------------------

    def wanted(self, link: Link) -> set[str]:
        return self.reactor.wanted(link.database)

    def batched(self, link: Link) -> Collection[str]:
        count, names = self._batched.get(link, (-1, ()))
        if count != changes.count:
            count, database = changes.count, link.database
            names = default.batched_for(database) | self.reactor._own.batched_for(database)
            self._batched[link] = count, names
        return names

    def connected(self, link: Link, resumed: bool) -> None:
        self.backlog.announce(
            link, lambda: emit(self.reactor.connected, link.database, resumed=resumed)
        )

    def lost(self, link: Link, reason: Reason, error: ConnectionLostError) -> None:
        self.backlog.announce(
            link, lambda: emit(self.reactor.lost, link.database, reason=reason, error=error)
        )

    def gap(self, link: Link, gap: Gap) -> None:
        self.backlog.announce(link, lambda: self.overflowed(link, gap), gap.channels)

    def overflowed(self, link: Link, gap: Gap) -> None:
        emit(self.reactor.gap, link.database, gap=gap)

    def idle(self) -> None:
        if self._idle_waits:
            return  # the workers are busy; a heap of idle events helps nobody
        self._idle_waits = True

        def tell() -> None:
            self._idle_waits = False
            emit(self.reactor.idle, self.reactor)

        self.backlog.announce(None, tell)

    def look_at_handlers(self) -> None:
        self.workers.warn_of_slow()

    # -- from any thread -------------------------------------------------------------------------

    def link_of(self, database: Database) -> Link:
        """The link of one of our databases."""
        return next(link for link in self.reader.links if link.database is database)

    def acknowledge(self, databases: Collection[Database]) -> None:
        """Wait until what is wanted now is listened to."""
        self.reader.request()
        self.wait_settled([link for link in self.reader.links if link.database in databases])

    def wait_settled(self, links: list[Link]) -> None:
        """Wait until what has been requested is acknowledged by *links*."""
        # Under "block" the reader may wait for the very handler that calls: then nobody can
        # acknowledge anything before it returns.
        in_handler = current_worker(self.workers) is not None
        self.reader.wait_settled(
            links, self.reader.requests, ACKNOWLEDGED_WITHIN, in_handler=in_handler
        )

    def notify(self, database: Database, items: list[tuple[str, str]]) -> int:
        """See :meth:`Reactor.notify`."""
        worker = current_worker(self.workers)
        if worker is not None and (session := worker.open_transaction(database)) is not None:
            return send(session, items)
        link = self.link_of(database)
        self.wait_settled([link])
        return link.control.notify(items)


class _Service:
    """What a served database does through its reactor: see :class:`pgsignals.database.Host`."""

    def __init__(self, life: _Life, link: Link) -> None:
        self._life = life
        self._link = link

    def notify(self, items: list[tuple[str, str]]) -> int:
        return self._life.notify(self._link.database, items)

    def listen(self, channels: tuple[str, ...]) -> None:
        self._life.reactor.listen(*channels, database=self._link.database)

    def unlisten(self, channels: tuple[str, ...]) -> None:
        self._life.reactor.unlisten(*channels, database=self._link.database)

    def listening_channels(self) -> list[str]:
        return list(self._link.channels)

    def own_session(self) -> Session:
        return own_session(self._life.workers, self._link.database, self._link.losses)


# -- the end of the program ----------------------------------------------------------------------

_living: weakref.WeakSet[_Life] = weakref.WeakSet()
_exiting = False


def _stop_all() -> None:
    """A daemon thread that meets the end of the interpreter dies where it stands; this lets the
    sessions be closed before.  (A thread that is no daemon would keep the interpreter alive:
    it is joined before atexit runs.)"""
    global _exiting
    _exiting = True
    lives = [life for life in _living if not life._birth.elsewhere]
    deadline = time.monotonic() + AT_EXIT
    for life in lives:
        life.ask_to_stop(deadline)
    for life in lives:
        life.join(max(0.0, deadline + AT_EXIT - time.monotonic()))


atexit.register(_stop_all)


# -- arguments -----------------------------------------------------------------------------------


def _database(given: object) -> Database:
    if isinstance(given, str):
        return Database(given)
    if not isinstance(given, Database):
        raise TypeError(
            f"a Reactor takes connection strings and Databases, not {type(given).__name__}"
        )
    return given


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a whole number, not {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def _seconds(name: str, value: object, *, none: bool = False) -> float | None:
    if value is None and none:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a number of seconds, not {type(value).__name__}")
    if math.isnan(value) or value <= 0:
        raise ValueError(f"{name} must be above 0 seconds, not {value}")
    return float(value)


def _backoff(value: object) -> tuple[float, float]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError("backoff is a pair: the first and the longest wait, in seconds")
    first = _seconds("the first wait of backoff", value[0]) or 0.0
    longest = _seconds("the longest wait of backoff", value[1]) or 0.0
    if longest < first:
        raise ValueError(f"the longest wait of backoff is below the first: {first}, {longest}")
    return first, longest


def _handle_signals(handler: Callable[[int, FrameType | None], object]) -> dict[int, Any]:
    """Handle SIGINT and SIGTERM, and return what handled them before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}


def _never_started(database: Database) -> DatabaseStatus:
    return DatabaseStatus(
        name=database.name,
        state="stopped",
        backend_id=None,
        channels=(),
        received=0,
        dispatched=0,
        dropped=0,
        failed=0,
        gaps=0,
        reconnects=0,
        last_received=None,
        probe_seconds=None,
        queue_usage=None,
        last_error=None,
    )
