"""One life of a reactor, from start to stop: its threads, its backlog, its links.

Theory of operation
-------------------

A reactor begins another life with each start; nothing of one is used again in the next.  How far
a life has come is its :class:`~pgsignals._pure.phases.Lifecycle`, and nothing else.

Two threads carry it.  The one that calls :meth:`Life.start` lends the databases, starts the others
and waits until the reader says LISTENING or FAIL; then it says BEGIN, and has no further part.  The
reader's runs :meth:`Life._live`: it reads until the lifecycle is stopping, for whatever reason, and
then ends everything, in an order in which each step needs what the next one takes away:

1. ``Reader.finish``: queue what the sockets have, so that it is handled, too; close the listening
   sessions.  Nothing arrives from here on.
2. ``Backlog.join``: the workers handle what is queued, until the deadline.  Handlers may still
   notify and use their sessions.
3. ``Reader.close`` and giving the databases back: no session is left.  CLOSE: another life may
   begin, even while the receivers of ``stopped`` run.
4. ``stopped``, the last that is announced; then the workers end.  END: those that join go on.

Each of these is a step of its own: one that raises has a bug of ours, which is logged and becomes
:attr:`Life.error`, and the steps after it still release what is theirs.

If the reader's thread cannot be started, the starting thread does the little that is to be done
(:meth:`Life.abandon`).  Which of the two it is, is decided once, by ``_claim``.

A finalizer, an OS signal handler or a logging handler may call a life in the middle of our own
code, whatever the thread holds.  So no call takes a lock before it has asked
:func:`~pgsignals._runtime.reentry.reentered` whether it may wait: what is asked of the reader is
appended to a queue or counted, and the reader woken through a socket pair.

How to wait for the end without waiting for oneself: see :mod:`pgsignals._engine.ending`.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from typing import Any

from pgsignals._dispatch.backlog import Backlog
from pgsignals._dispatch.workers import (
    Workers,
    current_worker,
    own_session,
    own_transaction,
    work_for,
)
from pgsignals._engine.announcing import Announcer
from pgsignals._engine.config import Config
from pgsignals._engine.ending import Ending
from pgsignals._engine.interest import Interest
from pgsignals._engine.reader import Reader
from pgsignals._pure.names import check_handled
from pgsignals._pure.phases import Event, Lifecycle, Phase
from pgsignals._runtime.fork import ForkGuard
from pgsignals._runtime.log import Log
from pgsignals._runtime.reentry import reentered
from pgsignals._sources.listen import Link
from pgsignals._wire.session import Session
from pgsignals.database import Database
from pgsignals.errors import ClosedError, ConnectionStateError
from pgsignals.signals import Channels, default

logger = Log("pgsignals.reactor")

#: How long a call waits for LISTENs that were asked for before it, in seconds.
ACKNOWLEDGED_WITHIN = 10.0

#: How long a stop waits, over all databases, for threads that use a connection to release it
#: once it has been shut down, and then for the workers to end, in seconds.
CLOSED_WITHIN = 1.0
WORKERS_WITHIN = 1.0

#: How long a reactor may drain when the program ends, in seconds.
AT_EXIT = 1.0


class Life:
    """See the module."""

    def __init__(
        self, reactor: object, config: Config, interest: Interest, channels: Channels
    ) -> None:
        """
        :param reactor: the sender of the signals that no database sends.
        :param interest: what the databases are to listen to.
        :param channels: the reactor's own handlers.
        """
        links, name, signals = config.links, config.name, channels.of_reactor
        # Never replaced; each knows its own threads.
        self.interest = interest
        self.lifecycle = Lifecycle()
        self.ending = Ending(self.lifecycle)
        self.backlog = Backlog(links.max_backlog, links.overflow, parallel=config.workers > 1)
        self.workers = Workers(
            name,
            config.workers,
            self.backlog,
            (default, channels),
            signals["any_channel"],
            signals["handler_failed"],
            home=self.ending,
        )
        self._announcer = Announcer(reactor, signals, interest, self.backlog, self.workers)
        self.reader = Reader(
            self._announcer, self.lifecycle, config.databases, self.backlog, links, config.idle
        )
        self._fork_guard = ForkGuard()
        self._thread = threading.Thread(target=self._live, name=f"{name}-reader", daemon=True)
        self._claim = threading.Lock()  # held by the thread that carries the life to its end

        # The starting thread, before the reader begins; then the thread that has the claim.
        self._borrowed: dict[Database, Session] = {}  # given back to their owners at the end
        self._served: list[tuple[Database, _Service]] = []

        # The thread that has the claim writes them, before the end is reached.
        self.error: BaseException | None = None  # what has ended it, or None
        self._drained = True

        # Any thread, each change one step of C.
        self._deadlines: list[float] = []  # one for each request to stop; the earliest counts
        self._begun = threading.Event()  # start() is over, well or not

    # -- start -----------------------------------------------------------------------------------

    def has_begun(self) -> bool:
        """Wait until another thread's start is over, and say whether it goes on."""
        self._begun.wait()
        return self.lifecycle.phase is Phase.RUNNING

    def start(self) -> None:
        """See :meth:`Reactor.start`."""
        try:
            self._start()
        except BaseException:  # KeyboardInterrupt, too: we must leave nothing behind
            self.abandon()
            raise
        finally:
            self._begun.set()

    def _start(self) -> None:
        for link in self.reader.links:
            service = _Service(self, link)
            self._served.append((link.database, service))
            session = link.database._custody.lend(service)
            if session is not None:
                self._borrowed[link.database] = session
        _living.add(self)
        self.workers.start()
        self._thread.start()
        self.reader.mailbox.wait_for(lambda: not self.lifecycle.starting)
        error = self.reader.error
        if error is not None or self.lifecycle.happen(Event.BEGIN) is not Phase.RUNNING:
            raise error or self.error or ClosedError("the reactor was stopped while it started")

    def abandon(self) -> None:
        """Roll back a start, however far it got.  Blocks."""
        self.ask_to_stop(time.monotonic())
        if self._claim.acquire(blocking=False):  # the reader has not begun, and will not
            self._step(lambda: self.reader.close(time.monotonic()))
            self._step(self._take_back)
            self.backlog.end()
            _living.discard(self)
            self.ending.reach()
        self._begun.set()
        self.ending.wait(None)

    # -- stop ------------------------------------------------------------------------------------

    def ask_to_stop(self, deadline: float | None) -> None:
        """Begin to stop, or shorten the time that a stop has.  Takes no lock."""
        if deadline is not None:
            self._deadlines.append(deadline)
        self.lifecycle.happen(Event.STOP)
        self.backlog.release_reader()
        self.reader.wake()

    def _deadline(self) -> float | None:
        return min(self._deadlines, default=None)

    def stop(self, deadline: float | None) -> bool:
        """See :meth:`Reactor.stop`."""
        self.ask_to_stop(deadline)
        self.ending.wait(None)
        return self._drained

    def forget(self) -> None:
        """In a forked child: drop the sockets, sending nothing to the server."""
        self.workers.forget()
        self.reader.forget()

    # -- the reader's thread ---------------------------------------------------------------------

    def _live(self) -> None:
        if not self._claim.acquire(blocking=False):
            return  # its start has been given up
        work_for(self.ending)
        try:
            self._step(lambda: self.reader.run(self._borrowed))
            if self.lifecycle.happen(Event.FAIL) is Phase.FAILING:
                self.error = self.error or self.reader.error
            self.reader.wake_waiters()
            self._end()
        finally:
            self.ending.reach()

    def _step(self, run: Callable[[], None]) -> None:
        """Run a part of this life; anything it raises is a bug of ours, and the rest is still
        released."""
        try:
            run()
        except BaseException as exc:
            logger.critical("bug in pgsignals: the reactor stops", exc_info=exc)
            self.error = self.error or exc

    def _end(self) -> None:
        was_running = self.lifecycle.running
        self._step(lambda: self.reader.finish(self._borrowed, self._deadline))
        self._step(self._drain)
        self._step(lambda: self.reader.close(time.monotonic() + CLOSED_WITHIN))
        self._step(self._take_back)
        self._step(lambda: self._announcer.closed(self.reader.links))
        self.lifecycle.happen(Event.CLOSE)
        _living.discard(self)
        if was_running:
            self._step(lambda: self._announcer.stopped(self.error, drained=self._drained))
        self.backlog.end()
        if self._drained:
            self.workers.join(WORKERS_WITHIN)

    def _drain(self) -> None:
        """Wait for the handlers of what has been received, until the deadline."""
        self._drained = self.backlog.join(self._deadline)
        if not self._drained:
            self._warn()

    def _warn(self) -> None:
        stuck = ", ".join(self.workers.stuck) or "none"
        left = self.backlog.give_up()
        logger.log(
            logging.INFO if _exiting else logging.WARNING,
            "stop: the time ran out with %d notifications left; handlers still running: %s",
            left,
            stuck,
        )

    def _take_back(self) -> None:
        for database, service in self._served:
            database._custody.take_back(service)

    # -- from any thread -------------------------------------------------------------------------

    def when_handled(self, database: Database, call: Callable[[], None]) -> None:
        """Have *call* called on a worker once what has been received from *database* so far has
        been handled."""
        self.backlog.announce(self.link_of(database), call)

    def link_of(self, database: Database) -> Link:
        """The link of one of our databases."""
        return next(link for link in self.reader.links if link.database is database)

    def acknowledge(self, databases: Collection[Database]) -> None:
        """Have what is wanted now listened to, and wait until it is."""
        self.reader.mailbox.request()
        self.wait_settled([link for link in self.reader.links if link.database in databases])

    def wait_settled(self, links: list[Link]) -> None:
        """Wait until *links* have acknowledged what has been requested, except those that are not
        connected."""
        if reentered():
            return  # the reader takes care of it
        request = self.reader.mailbox.requests
        in_handler = current_worker(self.workers) is not None

        def settled() -> bool:
            # Under "block" the reader may wait for the very handler that calls: then nothing can
            # be acknowledged before it returns.
            if self.lifecycle.stopping or (in_handler and self.backlog.reader_waits):
                return True
            return all(link.settled >= request for link in links)

        if not self.reader.mailbox.wait_for(settled, ACKNOWLEDGED_WITHIN):
            logger.warning(
                "a LISTEN was not acknowledged within %.0f s; continuing", ACKNOWLEDGED_WITHIN
            )

    def notify(self, database: Database, items: list[tuple[str, str]]) -> int:
        """See :meth:`Reactor.notify`."""
        link = self.link_of(database)
        if reentered():  # nothing may block here, and even a transaction may be off limits
            if items and link.control.post(items):
                self.reader.spawn("notify", link.control.send_posted, lambda _: None)
            return len(items)
        if (session := own_transaction(self.workers, database)) is not None:
            link.notifies_later = True
            return session.notify(items)
        self.wait_settled([link])
        return link.control.notify(items)


class _Service:
    """What a served database does through its reactor: see :class:`pgsignals.database.Host`."""

    def __init__(self, life: Life, link: Link) -> None:
        self._life = life
        self._link = link

    def notify(self, items: list[tuple[str, str]]) -> int:
        return self._life.notify(self._link.database, items)

    def value(self, sql: str, params: Sequence[object], *, may_wait: bool) -> Any:
        if reentered():
            raise ConnectionStateError(
                "publish() from a finalizer or an OS signal handler that interrupted pgsignals; "
                "publish from another thread"
            )
        if (session := own_transaction(self._life.workers, self._link.database)) is not None:
            return session.query(sql, params)[0][0]
        if not may_wait:
            return self._link.control.value(sql, params)
        # On the control connection canaries and other callers would wait as well: perhaps the one
        # whose transaction is waited for.
        session = self._link.database._access.open_beside(alone=True)
        try:
            return session.query(sql, params)[0][0]
        finally:
            session.close()

    def listen(self, channels: tuple[str, ...]) -> None:
        names = [check_handled(name) for name in channels]
        self._life.interest.listen([self._link.database], names)
        self._life.acknowledge([self._link.database])

    def unlisten(self, channels: tuple[str, ...]) -> None:
        self._life.interest.unlisten([self._link.database], channels)
        self._life.acknowledge([self._link.database])

    def listening_channels(self) -> list[str]:
        return list(self._link.channels)

    def own_session(self) -> Session:
        if reentered():
            raise ConnectionStateError(
                "a statement from a finalizer that interrupted another statement on the session of "
                f"{self._link.database.name}; give it a Database of its own"
            )
        return own_session(self._life.workers, self._link.database)


# -- the end of the program ----------------------------------------------------------------------

_living: weakref.WeakSet[Life] = weakref.WeakSet()
_exiting = False


def _stop_all() -> None:
    """A daemon thread dies wherever it is when the interpreter ends; this closes the sessions
    before that.  (A thread that is no daemon would keep the interpreter alive:
    it is joined before atexit runs.)"""
    global _exiting
    _exiting = True
    lives = [life for life in _living if not life._fork_guard.in_child]
    deadline = time.monotonic() + AT_EXIT
    for life in lives:
        life.ask_to_stop(deadline)
    for life in lives:
        life.ending.wait(max(0.0, deadline + AT_EXIT - time.monotonic()))


atexit.register(_stop_all)


def _take_from_child() -> None:
    """A handler may have forked: what its thread would run next is the parent's."""
    for life in tuple(_living):
        life.backlog.forget_held()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_take_from_child)
