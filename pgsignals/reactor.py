"""``Reactor``: fires a signal for every notification, from background threads."""

from __future__ import annotations

import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable
from types import FrameType
from typing import Any, Self, get_args

from pgsignals._dispatch.handlers import refuse_coroutine_function, typed, typed_on
from pgsignals._dispatch.ordered import F, OrderedSignal
from pgsignals._engine.life import Life, Plan
from pgsignals._pure.lanes import Policy
from pgsignals._pure.names import ALL, check_handled, check_unlisten, notify_items
from pgsignals._runtime.fork import Birth
from pgsignals._runtime.log import Log
from pgsignals._runtime.reentry import calls_out, reentered
from pgsignals._sources.listen import Settings
from pgsignals._sources.reports import DatabaseStatus, Status
from pgsignals.database import Database
from pgsignals.errors import ClosedError, ConnectionStateError
from pgsignals.manager import as_seconds, check_timeout
from pgsignals.signals import Channels, ChannelSignal, default

logger = Log("pgsignals.reactor")

#: 2**17: more than the 100,000 of a large transaction, some 30 MB of short payloads.
MAX_BACKLOG = 131_072


class Reactor:
    """Watches one or many databases and calls handlers for what they notify.

    ``with Reactor(dsn) as reactor:`` runs it in the background; :meth:`run` runs it in the
    foreground.  Handlers are registered with :func:`pgsignals.on_channel` for every reactor, or
    with :meth:`on_channel` for this one.

    One thread reads and never runs a handler; *workers* threads run handlers and never read.
    All methods may be called from any thread, and from handlers.

    :param databases: connection strings or :class:`Database` objects.
    :param channels: names to LISTEN to from the start, handler or not.
    :param timeout: seconds between :attr:`idle` signals; None for none.
    :param workers: threads that run handlers.  One keeps the order across all channels, several
        keep the order within each channel.
    :param max_backlog: how many notifications may wait for handlers, over all databases.
    :param overflow: what happens to the next one when the backlog is full: ``"drop_oldest"``
        drops the oldest and reports a :class:`Gap`; ``"coalesce"`` skips a notification whose
        channel and payload equal those of a waiting one, and drops the oldest when there are too
        many different ones; ``"block"`` stops reading, which loses nothing but makes the server
        wait (see docs/guarantees.md).
    :param backoff: the first and the longest wait between attempts to reconnect, in seconds; a
        login that is refused waits the longest, and up to a tenth more.
    :param probe_interval: seconds between two proofs that a link is alive; None for none.
    :param probe_timeout: seconds the server has to answer.
    :param name: prefix of the thread names.
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
            raise TypeError('a Reactor needs at least one database; "" means libpq\'s defaults')
        if isinstance(channels, str):
            raise TypeError("channels must be an iterable of names, such as channels=['orders']")
        if overflow not in get_args(Policy):
            raise ValueError(f"overflow must be one of {get_args(Policy)}, not {overflow!r}")
        if not isinstance(name, str):
            raise TypeError(f"name must be a str, not {type(name).__name__}")
        self._databases = tuple(_database(database) for database in databases)
        if len(set(self._databases)) < len(self._databases):
            raise ValueError("a database was given twice")
        self._own = Channels(default)
        self._plan = Plan(
            databases=self._databases,
            channels=self._own,
            workers=_count("workers", workers),
            max_backlog=_count("max_backlog", max_backlog),
            overflow=overflow,
            idle=_seconds("timeout", timeout, none=True),
            links=Settings(
                name=name,
                backoff=_backoff(backoff),
                probe_interval=_seconds("probe_interval", probe_interval, none=True),
                probe_timeout=_seconds("probe_timeout", probe_timeout) or 0.0,
                max_backlog=max_backlog,
                overflow=overflow,
            ),
        )
        self._birth = Birth()
        self._arounds: tuple[Callable[..., object], ...] = ()
        listened = [check_handled(channel) for channel in channels]
        # Each changes in a single step of C, so no lock is needed; a finalizer that interrupts a
        # change could not take one.
        self._listened = {database: set(listened) for database in self._databases}
        self._lock = threading.Lock()  # guards which life is ours
        self._life: Life | None = None
        for namespace in (default, self._own):
            namespace.watch(self)

        signals = self._own.of_reactor
        self.connected: OrderedSignal = signals["connected"]
        """Once per session, when its LISTEN is known to hold: ``receiver(db, *, resumed)``."""
        self.lost: OrderedSignal = signals["lost"]
        """Once per session: ``receiver(db, *, reason, error)``; *reason* is "ended", "silent"
        (no answer in time) or "deaf" (it answers, but a canary did not arrive)."""
        self.gap: OrderedSignal = signals["gap"]
        """``receiver(db, *, gap)``, with a :class:`Gap`."""
        self.idle: OrderedSignal = signals["idle"]
        """Every *timeout* seconds when set: ``receiver(reactor)``."""
        self.handler_failed: OrderedSignal = signals["handler_failed"]
        """``receiver(db, *, notification, handler, error)``; *notification* is the list, for a
        batch handler, and None where a receiver of a signal of the reactor raised."""
        self.stopped: OrderedSignal = signals["stopped"]
        """Once per life: ``receiver(reactor, *, error)``; *error* is None after a clean stop."""
        self.any_channel: OrderedSignal = signals["any_channel"]
        """Every notification: ``receiver(db, *, notification)``."""

    def __repr__(self) -> str:
        names = ", ".join(database.name for database in self._databases)
        return f"<{type(self).__name__} {self._plan.links.name!r}: {names}>"

    # -- handlers --------------------------------------------------------------------------------

    def channel(self, name: str) -> ChannelSignal:
        """The blinker signal of channel *name* of this reactor alone."""
        self._check_fork()
        return self._own.channel(name)

    @typed
    def on_channel(
        self,
        *names: str,
        sender: Database | None = None,
        decode: Any = None,
        batch: bool = False,
        weak: bool = False,
    ) -> Callable[[F], F]:
        """As :func:`pgsignals.on_channel`, for this reactor alone."""
        self._check_fork()
        return self._own.on_channel(*names, sender=sender, decode=decode, batch=batch, weak=weak)

    @typed_on
    def on(self, *names: str) -> Callable[[F], F]:
        """As :func:`pgsignals.on`, for this reactor alone.  Its signals' own ``connect`` holds a
        receiver weakly."""
        self._check_fork()
        return self._own.on(*names)

    def wrap_handlers(self, around: Callable[..., object] | None) -> None:
        """Have every handler of this reactor called through *around*, for measuring and tracing.

        It is called as ``around(handler, database, **given)`` on the worker, must return
        ``handler(database, **given)``, and must let its exceptions through.  *given* is what the
        handler takes: ``notification`` or ``notifications``, ``value`` or ``values``.  Receivers of
        :attr:`any_channel` are handlers, too; those of the reactor's other signals are not.

        There may be several: the first one added is called first, and the handler it receives
        calls the next.  Calls that are already running are not affected.

        :param around: None removes all of them, which is the fastest.
        """
        self._check_fork()
        self._arounds = () if around is None else (*self._arounds, around)
        self._own.wrap(_nested(self._arounds))

    def unwrap_handlers(self, around: Callable[..., object]) -> None:
        """Remove *around*; does nothing when :meth:`wrap_handlers` has not added it."""
        self._check_fork()
        self._arounds = tuple(one for one in self._arounds if one is not around)
        self._own.wrap(_nested(self._arounds))

    def handlers_of(self, channel: str, database: Database) -> list[Callable[..., object]]:
        """What a notification of *database* on *channel* is handed to, in order; without the
        receivers of :attr:`any_channel`."""
        calls = [
            call
            for namespace in (default, self._own)
            for call in namespace.calls_for(channel, database)
        ]
        return [handler for call in calls if (handler := call.handler()) is not None]

    def handlers_changed(self, _: str) -> None:
        """See :class:`pgsignals.signals.Watcher`."""
        if (life := self._life) is not None and not self._birth.elsewhere:
            life.reader.request()

    def acknowledge_handlers(self) -> None:
        """See :class:`pgsignals.signals.Watcher`."""
        if (life := self._life) is not None and not self._birth.elsewhere and not _loop_runs():
            life.wait_settled(life.reader.links)

    @property
    def served(self) -> Collection[Database]:
        """See :class:`pgsignals.signals.Watcher`."""
        life = self._life
        return (
            ()
            if life is None or life.lifecycle.closed or self._birth.elsewhere
            else self._databases
        )

    def check_handler(self, handler: Callable[..., Any], sender: Database | None) -> None:
        """See :class:`pgsignals.signals.Watcher`."""
        if (served := self.served) and (sender is None or sender in served):
            refuse_coroutine_function(handler)

    def _handled(self) -> set[str]:
        """The channels and the signals of ours that have a handler or receiver."""
        return {name for name, _ in self._found_handlers()}

    def _found_handlers(self) -> list[tuple[str, list[tuple[Callable[..., Any], bool]]]]:
        senders = (*self._databases, self)
        return [
            found
            for namespace in (default, self._own)
            for found in namespace.handlers_for(senders).items()
        ]

    def _refuse_coroutine_functions(self) -> None:
        for _, found in self._found_handlers():
            for handler, registered in found:
                if registered:  # others fail when they are called
                    refuse_coroutine_function(handler)

    def _warn_of_silence(self) -> None:
        """Warn of what can never be called."""
        for namespace in (default, self._own):
            namespace.warn_of_foreign(self._databases)
        wanted = any(self.wanted(database) for database in self._databases)
        if not wanted and not self._handled() - {"any_channel"}:
            logger.warning(
                "%s has no channel to listen to, and no handler: nothing will arrive until "
                "on_channel(), channels= or listen() names one",
                repr(self),  # a log may keep what it is given
            )

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open every database and LISTEN; return when all of it is acknowledged.  Blocks.

        Does nothing on a running reactor.  When one database fails, everything is rolled back.

        :raises ConnectError: no connection can be made.
        :raises UnsupportedServerError: LISTEN/NOTIFY cannot work there; says what to change.
        :raises ConnectionStateError: another reactor serves a database, or a connection is not in
            autocommit, or is in a transaction; or no thread would run, under uWSGI.
        :raises TypeError: a handler is a coroutine function.
        """
        self._check_fork()
        _check_threads()
        if not self.served:
            self._refuse_coroutine_functions()
        if reentered():
            raise ConnectionStateError(
                "start() called from a finalizer, OS signal handler or logging handler that "
                "interrupted pgsignals; start the reactor from another thread"
            )
        while (life := self._begin()) is not None:
            if life.is_current:
                if life.reader.stopping:
                    raise ConnectionStateError("start(): this reactor is still stopping")
                return
            if life.has_begun():
                return
            if not life.join(None):
                raise ConnectionStateError(
                    "start(): this reactor is still stopping, and its stop waits for the caller"
                )
        self._warn_of_silence()

    def _begin(self) -> Life | None:
        """Begin a life and start it, or return the one that goes on."""
        fresh = None
        try:
            with self._lock:
                if (life := self._life) is not None and not life.lifecycle.closed:
                    return life
                fresh = self._life = Life(self, self._plan)
            fresh.start()
        except BaseException:
            if fresh is not None:  # KeyboardInterrupt between the two
                fresh.abandon()
            raise
        return None

    def stop(self, timeout: float | None = None) -> bool:
        """Stop reading, run the handlers of what has been received, and close the sessions.

        Notifications that :meth:`notify` has already issued count as received; the server has a
        second to send them.  Does nothing on a stopped reactor.  From a handler it returns at once
        and the stop goes on.  In a forked child it forgets the sockets.

        :param timeout: seconds for the handlers; None for no limit.
        :returns: False when the time ran out; a warning then counts the notifications left and
            names the handlers still running.
        """
        seconds = check_timeout(timeout)
        life = self._life
        if life is None:
            return True
        if self._birth.elsewhere:
            life.forget()
            return True
        return life.stop(None if seconds is None else time.monotonic() + as_seconds(seconds))

    @calls_out
    def run(self, stop_timeout: float | None = 10.0) -> None:
        """Run in the foreground until it is stopped.

        SIGINT or SIGTERM stops it within *stop_timeout* seconds, a second one at once, and the log
        says so; the program's own signal handlers are put back.  Outside the main thread, which
        alone may handle OS signals, they are left alone.

        :raises Error: the reactor ended by itself, for this reason.
        """
        check_timeout(stop_timeout)
        wishes: queue.SimpleQueue[int] = queue.SimpleQueue()  # an OS signal; 0: it has ended
        started = False

        def handle(number: int, _: FrameType | None) -> None:
            wishes.put(number)
            if not started:  # not here: this thread may hold any lock
                patience = stop_timeout if wishes.qsize() == 1 else 0  # it may run already
                threading.Thread(target=self.stop, args=(patience,), daemon=True).start()

        before = _handle_signals(handle)
        try:
            life = self._start_for(wishes)
            if life is None:
                return
            started = True
            life.when_over(lambda: wishes.put(0))
            seconds = stop_timeout
            while number := _next_wish(wishes):
                patience = "for ever" if seconds is None else f"{seconds:g} s"
                name = signal.Signals(number).name
                logger.info("%s: stopping; waiting %s for handlers", name, patience)
                life.ask_to_stop(
                    None if seconds is None else time.monotonic() + as_seconds(seconds)
                )
                seconds = 0.0
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if life.error is not None:
            raise life.error

    @calls_out
    def _start_for(self, wishes: queue.SimpleQueue[int]) -> Life | None:
        """Start, or None when that was stopped by a wish."""
        try:
            self.start()
        except ClosedError:
            if wishes.empty():
                raise
            logger.info("%s: stopped while it started", signal.Signals(wishes.get()).name)
            return None
        return self._life

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
        return self._life is not None and self._life.lifecycle.running

    @calls_out
    def __enter__(self) -> Self:
        self.start()
        return self

    @calls_out
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

        Handlers registered before the call receive it.  In a handler that has a
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
        them); acknowledged when it returns, except by a database that is not connected now.

        Before :meth:`start` it is remembered.

        :param database: None for all.
        """
        self._check_fork()
        names = [check_handled(channel) for channel in channels]
        self._change_listened(database, lambda listened: listened.update(names))

    def unlisten(self, *channels: str, database: Database | None = None) -> None:
        """Undo :meth:`listen` for *channels*; ``"*"`` undoes all of it.

        A channel that has handlers is still listened to.
        """
        self._check_fork()
        names = check_unlisten(channels)
        self._change_listened(
            database,
            lambda listened: (
                listened.clear() if ALL in names else listened.difference_update(names)
            ),
        )

    def _change_listened(
        self, database: Database | None, change: Callable[[set[str]], None]
    ) -> None:
        targets = self._databases if database is None else (self._check_ours(database),)
        for target in targets:
            change(self._listened[target])
        if (life := self._life) is not None:
            life.acknowledge(targets)

    def wanted(self, database: Database) -> set[str]:
        """The channels that *database* has to listen to."""
        handled = default.wanted_by(database) | self._own.wanted_by(database)
        return handled | self._listened[database].copy()

    def status(self) -> Status:
        """A snapshot of what an operator sees.  Does not block."""
        self._check_fork()
        life = self._life
        if life is None:
            databases = tuple(_never_started(database) for database in self._databases)
            return Status(running=False, backlog=0, workers=self._plan.workers, databases=databases)
        return Status(
            running=life.lifecycle.running,
            backlog=life.backlog.waiting,
            workers=self._plan.workers,
            databases=tuple(link.status() for link in life.reader.links),
        )

    # -- checks ----------------------------------------------------------------------------------

    def _check_fork(self) -> None:
        self._birth.check("a Reactor")

    def _check_ours(self, database: Database) -> Database:
        if database not in self._databases:
            raise ValueError(f"{database!r} is not one of this reactor's databases")
        return database

    def _running_life(self, what: str) -> Life:
        if (life := self._life) is None or life.lifecycle.closed:
            raise ClosedError(f"{what}: the reactor is not running; call start()")
        return life


def _loop_runs() -> bool:
    """Whether the calling thread runs an asyncio event loop, which must not be blocked."""
    events = sys.modules.get("asyncio.events")  # without it there is no loop
    get_loop = getattr(events, "get_running_loop", None)
    try:
        return get_loop is not None and bool(get_loop())
    except RuntimeError:  # none runs here
        return False


def _check_threads() -> None:
    """Refuse a uWSGI that runs no Python threads, at least between requests.

    :raises ConnectionStateError: saying which option is missing.
    """
    uwsgi = sys.modules.get("uwsgi")  # made by uWSGI itself
    options = getattr(uwsgi, "opt", None)
    if not isinstance(options, dict):
        return
    runs = getattr(uwsgi, "has_threads", None)
    if runs is None:  # an older one; "threads" turns them on, and so does an event loop
        names = {name.decode() if isinstance(name, bytes) else name for name in options}
        runs = names & {"enable-threads", "threads", "gevent", "asyncio"}
    if not runs:
        raise ConnectionStateError(
            "start(): uWSGI runs no Python threads, so nothing would ever arrive; "
            "start it with --enable-threads"
        )


class _Within:
    """A handler that is called by the next *around*, and has the handler's name."""

    def __init__(self, around: Callable[..., object], handler: Callable[..., object]) -> None:
        self.__module__ = getattr(handler, "__module__", "")
        self.__qualname__ = getattr(handler, "__qualname__", type(handler).__qualname__)
        self._around = around
        self._handler = handler

    def __call__(self, database: Database, **given: object) -> object:
        return self._around(self._handler, database, **given)


def _nested(arounds: tuple[Callable[..., object], ...]) -> Callable[..., object] | None:
    """All of them as one, the first around the others; None for none."""
    if len(arounds) < 2:
        return arounds[0] if arounds else None
    outer, inner = arounds[0], _nested(arounds[1:])

    def around(handler: Callable[..., object], database: Database, **given: object) -> object:
        return outer(handler if inner is None else _Within(inner, handler), database, **given)

    return around


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
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def _seconds(name: str, value: object, *, none: bool = False) -> float | None:
    if value is None:
        if none:
            return None
        raise TypeError(f"{name} must be a number of seconds, not None")
    seconds = as_seconds(check_timeout(value, name))
    if seconds == 0:
        raise ValueError(f"{name} must be more than 0 seconds")
    return seconds


def _backoff(value: object) -> tuple[float, float]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError("backoff must be a pair: the first and the longest wait, in seconds")
    first = _seconds("the first wait of backoff", value[0]) or 0.0
    longest = _seconds("the longest wait of backoff", value[1]) or 0.0
    if longest < first:
        raise ValueError(f"the longest wait of backoff must be at least {first}, not {longest}")
    return first, longest


def _handle_signals(handler: Callable[[int, FrameType | None], object]) -> dict[int, Any]:
    """Handle SIGINT and SIGTERM, and return what handled them before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}


@calls_out  # by waiting for OS signals
def _next_wish(wishes: queue.SimpleQueue[int]) -> int:
    # An OS signal that comes just before get() waits in C has its handler run only after the
    # wait; so no wait is long.
    while True:
        try:
            return wishes.get(timeout=1.0)
        except queue.Empty:
            pass


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
