"""``Reactor``: fires a signal for every notification, from background threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, Self

from pgsignals._dispatch.handlers import typed, typed_on
from pgsignals._dispatch.ordered import F, OrderedSignal
from pgsignals._engine.config import configure
from pgsignals._engine.engine import Engine
from pgsignals._engine.foreground import run
from pgsignals._pure.lanes import Policy
from pgsignals._pure.names import check_handled, check_unlisten, notify_items
from pgsignals._pure.publishing import SCHEMA
from pgsignals._runtime.reentry import calls_out
from pgsignals._sources.reports import Status
from pgsignals.database import Database
from pgsignals.manager import as_seconds, check_timeout
from pgsignals.signals import ChannelSignal

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
        config = configure(
            databases,
            channels,
            timeout=timeout,
            workers=workers,
            max_backlog=max_backlog,
            overflow=overflow,
            backoff=backoff,
            probe_interval=probe_interval,
            probe_timeout=probe_timeout,
            name=name,
        )
        # Never replaced; each knows its own threads.
        self._engine = Engine(config)
        signals = self._engine.channels.of_reactor
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
        config = self._engine.config
        names = ", ".join(database.name for database in config.databases)
        return f"<{type(self).__name__} {config.name!r}: {names}>"

    # -- handlers --------------------------------------------------------------------------------

    def channel(self, name: str) -> ChannelSignal:
        """The blinker signal of channel *name* of this reactor alone."""
        self._check_fork()
        return self._engine.channels.channel(name)

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
        return self._engine.channels.on_channel(
            *names, sender=sender, decode=decode, batch=batch, weak=weak
        )

    @typed_on
    def on(self, *names: str) -> Callable[[F], F]:
        """As :func:`pgsignals.on`, for this reactor alone.  Its signals' own ``connect`` holds a
        receiver weakly."""
        self._check_fork()
        return self._engine.channels.on(*names)

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
        self._engine.wrap_handlers(around)

    def unwrap_handlers(self, around: Callable[..., object]) -> None:
        """Remove *around*; does nothing when :meth:`wrap_handlers` has not added it."""
        self._check_fork()
        self._engine.unwrap_handlers(around)

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
        self._engine.start(self)

    def stop(self, timeout: float | None = None) -> bool:
        """Stop reading, run the handlers of what has been received, and close the sessions.

        Blocks.  Notifications that :meth:`notify` has already issued count as received; the server
        has a second to send them.  Does nothing on a stopped reactor.  In a handler, and in a
        finalizer or an OS signal handler that interrupts pgsignals, it returns at once and the stop
        goes on.  In a forked child it drops the sockets and sends nothing.

        :param timeout: seconds for the handlers; None for no limit.
        :returns: False when the time ran out; a warning then counts the notifications left and
            names the handlers still running.
        """
        return self._engine.stop(_seconds(timeout))

    @calls_out
    def run(self, stop_timeout: float | None = 10.0) -> None:
        """Start, and run in the foreground until it is stopped.  Blocks.

        SIGINT or SIGTERM stops it within *stop_timeout* seconds, a second one at once, and the log
        says so; the program's own signal handlers are put back.  Outside the main thread, which
        alone may handle OS signals, they are left alone.

        :param stop_timeout: None for no limit.
        :raises Error: the reactor ended by itself, for this reason.
        """
        run(self._engine, self.start, self.stop, _seconds(stop_timeout))

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has ended.  Blocks, except in a handler, where it returns at once.

        :param timeout: seconds; None for no limit.
        :returns: False when the time ran out.
        """
        self._check_fork()
        return self._engine.join(_seconds(timeout))

    @property
    def running(self) -> bool:
        """True from the end of :meth:`start` until a stop has closed the sessions."""
        self._check_fork()
        return self._engine.running

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
        return self._engine.config.databases

    def notify(
        self,
        /,
        *channels: str | tuple[str, str | None],
        database: Database | None = None,
        **pairs: str | None,
    ) -> int:
        """As :meth:`Database.notify`, on a connection beside the listening one.  Blocks until the
        server has committed it.

        Handlers registered before the call receive it.  In a handler that has a transaction of its
        worker's session open, it belongs to that transaction.

        :param database: where to notify; needed when there are several.
        :returns: the number of notifications issued.
        :raises ValueError: *database* is needed, or not one of ours.
        :raises ClosedError: the reactor is not running.
        """
        items = notify_items(channels, pairs)
        return self._engine.notify(self._sender(database, "notify()"), items)

    def publish(
        self,
        channel: str,
        payload: str = "",
        *,
        database: Database | None = None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float | timedelta | None = None,
        dedup: str | None = None,
        ordered: bool = False,
        schema: str = SCHEMA,
    ) -> int | None:
        """As :meth:`Database.publish`, on a connection beside the listening one.

        In a handler that has a transaction of its worker's session open, it belongs to that
        transaction.

        :param database: where to publish; needed when there are several.
        :raises ValueError: *database* is needed, or not one of ours.
        :raises ClosedError: the reactor is not running.
        """
        return self._sender(database, "publish()").publish(
            channel,
            payload,
            key=key,
            headers=headers,
            delay=delay,
            dedup=dedup,
            ordered=ordered,
            schema=schema,
        )

    def publish_many(
        self,
        channel: str,
        items: Iterable[str | tuple[str, str | None]],
        *,
        database: Database | None = None,
        schema: str = SCHEMA,
    ) -> int:
        """As :meth:`Database.publish_many`; otherwise as :meth:`publish`."""
        return self._sender(database, "publish_many()").publish_many(channel, items, schema=schema)

    def _sender(self, database: Database | None, what: str) -> Database:
        """The one database of ours that *what* is for, while the reactor runs."""
        self._check_fork()
        if database is None and len(self.databases) > 1:
            raise ValueError(f"the reactor has several databases: pass database= to {what}")
        (target, *_) = self._targets(database)
        self._engine.current_life(what)
        return target

    def listen(self, *channels: str, database: Database | None = None) -> None:
        """LISTEN to *channels* whether they have handlers or not (:attr:`any_channel` hears
        them); acknowledged when it returns, except by a database that is not connected now.

        Blocks, for 10 seconds at most: then it logs a warning, and the reactor goes on trying.

        Before :meth:`start` it is remembered.

        :param database: None for all.
        :raises ChannelNameError: before anything is changed.
        :raises ValueError: *database* is not one of ours.
        """
        self._check_fork()
        names = [check_handled(channel) for channel in channels]
        self._engine.listen(self._targets(database), names)

    def unlisten(self, *channels: str, database: Database | None = None) -> None:
        """Undo :meth:`listen` for *channels*; ``"*"`` undoes all of it.  Blocks as it does.

        A channel that has handlers is still listened to.

        :param database: None for all.
        :raises ChannelNameError: before anything is changed.
        :raises ValueError: *database* is not one of ours.
        """
        self._check_fork()
        names = check_unlisten(channels)
        self._engine.unlisten(self._targets(database), names)

    def status(self) -> Status:
        """A snapshot of what an operator sees.  Does not block."""
        self._check_fork()
        return self._engine.status()

    # -- checks ----------------------------------------------------------------------------------

    def _check_fork(self) -> None:
        self._engine.fork_guard.check("a Reactor")

    def _targets(self, database: Database | None) -> tuple[Database, ...]:
        """*database*, or all for None."""
        if database is None:
            return self.databases
        if database not in self.databases:
            raise ValueError(f"{database!r} is not one of this reactor's databases")
        return (database,)


def _seconds(timeout: Any) -> float | None:
    return None if check_timeout(timeout) is None else as_seconds(timeout)
