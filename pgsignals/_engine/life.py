"""One life of a reactor, from start to stop: its threads, its backlog, its links."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from pgsignals._dispatch.backlog import Backlog
from pgsignals._dispatch.ordered import OrderedSignal
from pgsignals._dispatch.workers import Workers, current_worker, own_session, work_for, works_for
from pgsignals._engine.reader import Reader
from pgsignals._pure.lanes import Policy
from pgsignals._pure.phases import Event, Lifecycle, Phase
from pgsignals._runtime.fork import Birth
from pgsignals._runtime.log import Log
from pgsignals._runtime.reentry import calls_out, reentered
from pgsignals._sources.listen import Link, Settings
from pgsignals._sources.reports import Gap
from pgsignals._sources.upkeep import Reason
from pgsignals._wire.session import Session
from pgsignals.database import Database
from pgsignals.errors import ClosedError, ConnectionLostError, ConnectionStateError
from pgsignals.signals import Channels

logger = Log("pgsignals.reactor")

#: How long a call waits for LISTENs that were asked for before it, in seconds.
ACKNOWLEDGED_WITHIN = 10.0

#: How long a stop waits, over all databases, for threads that use a connection to release it
#: once it has been shut down, and then for the workers to end, in seconds.
CLOSED_WITHIN = 1.0
WORKERS_WITHIN = 1.0

#: How long a reactor may drain when the program ends, in seconds.
AT_EXIT = 1.0

#: The longest wait of one step in C, in seconds.
SLICE = 1.0


@dataclass(frozen=True)
class Plan:
    """What a reactor was made with."""

    databases: tuple[Database, ...]
    channels: Channels
    workers: int
    max_backlog: int
    overflow: Policy
    idle: float | None
    links: Settings


class Owner(Protocol):
    """The reactor that lives."""

    connected: OrderedSignal
    lost: OrderedSignal
    gap: OrderedSignal
    idle: OrderedSignal
    handler_failed: OrderedSignal
    stopped: OrderedSignal
    any_channel: OrderedSignal

    def wanted(self, database: Database) -> set[str]: ...
    def listen(self, *channels: str, database: Database | None = None) -> None: ...
    def unlisten(self, *channels: str, database: Database | None = None) -> None: ...


class Life:
    """See the module.  A reactor begins another one with each start.

    A finalizer, an OS signal handler or a logging handler may call it in the middle of our own
    code: so a caller takes no lock, leaves a command for the reader and wakes it, and waits only
    if :func:`~pgsignals._runtime.reentry.reentered` allows it.
    """

    def __init__(self, reactor: Owner, plan: Plan) -> None:
        self.reactor = reactor
        self._channels = plan.channels
        self.backlog = Backlog(plan.max_backlog, plan.overflow, parallel=plan.workers > 1)
        name = plan.links.name
        self.workers = Workers(
            name,
            plan.workers,
            self.backlog,
            plan.channels,
            reactor.any_channel,
            reactor.handler_failed,
            home=self,
        )
        self.lifecycle = Lifecycle()
        self.reader = Reader(
            self, self.lifecycle, plan.databases, self.backlog, plan.links, plan.idle
        )
        self.error: BaseException | None = None
        self._drained = True
        self._deadlines: list[float] = []  # one per request to stop; the earliest counts
        self._birth = Birth()
        self._idle_waits = False
        self._borrowed: dict[Database, Session] = {}
        self._served: list[tuple[Database, _Service]] = []
        self._when_over: deque[Callable[[], None]] = deque()
        self._waits: dict[int, Life] = {}  # threads of ours, and the life whose end each waits for
        self._claim = threading.Lock()  # held by the one that carries the life on from here
        self._begun = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"{name}-reader", daemon=True)

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
            session = link.database.lend(service)
            if session is not None:
                self._borrowed[link.database] = session
        _living.add(self)
        self.workers.start()
        self._thread.start()
        error = self.reader.wait_started()
        if error is not None or self.lifecycle.happen(Event.BEGIN) is not Phase.RUNNING:
            raise error or self.error or ClosedError("the reactor was stopped while it started")

    def abandon(self) -> None:
        """Roll back a start, however far it got."""
        self.ask_to_stop(time.monotonic())
        if self._claim.acquire(blocking=False):  # the reader has not begun, and will not
            self.reader.close(time.monotonic())
            self._take_back()
            self.backlog.end()
            _living.discard(self)
            self._be_over()
        self._begun.set()
        self._done.wait()

    # -- stop ------------------------------------------------------------------------------------

    def ask_to_stop(self, deadline: float | None) -> None:
        """Begin to stop, or shorten the time that a stop has.  Takes no lock."""
        if deadline is not None:
            self._deadlines.append(deadline)
        self.reader.stop()
        self.backlog.hurry()

    def _deadline(self) -> float | None:
        return min(self._deadlines, default=None)

    def stop(self, deadline: float | None) -> bool:
        """See :meth:`Reactor.stop`."""
        self.ask_to_stop(deadline)
        self.join(None)
        return self._drained

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is one of ours, which cannot wait for its own end."""
        return works_for() is self

    def join(self, seconds: float | None) -> bool:
        """See :meth:`Reactor.join`.  Returns at once where waiting would never end: in a thread
        that this end waits for, perhaps by way of other reactors, and where :func:`reentered`."""
        if self._done.is_set():
            return True
        here: Life | None = works_for()
        if here is self or reentered():
            return self.lifecycle.closed
        within = None if seconds is None else min(seconds, threading.TIMEOUT_MAX)
        if here is None:
            return self._await_end(within)
        me = threading.get_ident()
        here._waits[me] = self  # before the look, so that of two threads at least one sees it
        try:
            return self.lifecycle.closed if self._waits_for(here) else self._await_end(within)
        finally:
            del here._waits[me]

    def _await_end(self, within: float | None) -> bool:
        # In slices: an OS signal that comes just before a wait in C has its handler run only
        # after the wait.
        by = None if within is None else time.monotonic() + within
        while not self._done.wait(SLICE if by is None else min(SLICE, by - time.monotonic())):
            if by is not None and time.monotonic() >= by:
                return False
        return True

    def _waits_for(self, other: Life) -> bool:
        """Whether our end waits for the end of *other*, because a thread of ours does."""
        seen: list[Life] = [self]
        for life in seen:
            for awaited in tuple(life._waits.values()):
                if awaited is other:
                    return True
                if awaited not in seen:
                    seen.append(awaited)
        return False

    def when_over(self, call: Callable[[], None]) -> None:
        """Have *call* called at the end, or now."""
        self._when_over.append(call)
        if self._done.is_set():
            self._call_when_over()

    def _call_when_over(self) -> None:
        with contextlib.suppress(IndexError):  # each is called once, by the reader or its asker
            while True:
                self._when_over.popleft()()

    def _be_over(self) -> None:
        self.lifecycle.happen(Event.END)
        self._done.set()
        self._call_when_over()

    def forget(self) -> None:
        """In a forked child: drop the sockets, sending nothing to the server."""
        self.workers.forget()
        self.reader.forget()

    # -- the reader's thread ---------------------------------------------------------------------

    def _live(self) -> None:
        if not self._claim.acquire(blocking=False):
            return  # its start has been given up
        work_for(self)
        try:
            self._step(lambda: self.reader.run(self._borrowed))
            if self.lifecycle.happen(Event.FAIL) is Phase.FAILING:
                self.error = self.error or self.reader.error
            self.reader.wake_waiters()
            self._end()
        finally:
            self._be_over()

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
        drained = self.backlog.join(self._deadline)
        if not drained:
            self._drained = False
            self._warn()
        self._step(lambda: self.reader.close(time.monotonic() + CLOSED_WITHIN))
        self._step(self._take_back)
        for link in self.reader.links:
            self.workers.warn_of_drops(link, finally_=True)
        self.lifecycle.happen(Event.CLOSE)
        _living.discard(self)
        if was_running:
            self._step(lambda: self._tell_stopped(drained))
        self.backlog.end()
        if drained:
            self.workers.join(WORKERS_WITHIN)

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
            self.workers.emit(self.reactor.stopped, self.reactor, error=self.error)

        if drained:
            self.backlog.announce(None, tell)
            self.backlog.join(lambda: None)
        else:  # no worker may be free for it
            tell()

    def _take_back(self) -> None:
        for database, service in self._served:
            database.take_back(service)

    # -- what the reader and its links report (Duties); on the reader's thread --------------------

    def wanted(self, link: Link) -> set[str]:
        self.workers.forget_plans(link)
        return self.reactor.wanted(link.database)

    def connected(self, link: Link, resumed: bool) -> None:
        signal, database = self.reactor.connected, link.database
        self.backlog.announce(
            link, lambda: self.workers.emit(signal, database, link, resumed=resumed)
        )

    def lost(self, link: Link, reason: Reason, error: ConnectionLostError) -> None:
        signal, database = self.reactor.lost, link.database
        self.backlog.announce(
            link, lambda: self.workers.emit(signal, database, link, reason=reason, error=error)
        )

    def gap(self, link: Link, gap: Gap) -> None:
        self.backlog.announce(link, lambda: self.overflowed(link, gap), gap.channels)

    def overflowed(self, link: Link, gap: Gap) -> None:
        self.workers.emit_gap(self.reactor.gap, link, gap)

    def idle(self) -> None:
        if self._idle_waits:
            return  # the workers are busy; a pile of idle events would be useless
        self._idle_waits = True

        def tell() -> None:
            self._idle_waits = False
            self.workers.emit(self.reactor.idle, self.reactor)

        self.backlog.announce(None, tell)

    def queued(self, link: Link) -> None:
        self.workers.warn_of_drops(link)

    def check_workers(self) -> None:
        self.workers.warn_of_slow()
        for link in self.reader.links:
            self.workers.forget_plans(link)
            self.workers.warn_of_drops(link)

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
        if reentered():
            return  # the reader takes care of it
        # Under "block" the reader may wait for the very handler that calls: then nothing can be
        # acknowledged before it returns.
        in_handler = current_worker(self.workers) is not None
        self.reader.wait_settled(
            links, self.reader.requests, ACKNOWLEDGED_WITHIN, in_handler=in_handler
        )

    def notify(self, database: Database, items: list[tuple[str, str]]) -> int:
        """See :meth:`Reactor.notify`."""
        link = self.link_of(database)
        if reentered():  # nothing may block here, and even a transaction may be off limits
            if items and link.control.post(items):
                self.reader.spawn("notify", link.control.send_posted, lambda _: None)
            return len(items)
        worker = current_worker(self.workers)
        if (
            worker is not None
            and (session := worker.sessions.open_transaction(database._access)) is not None
        ):
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

    @calls_out
    def listen(self, channels: tuple[str, ...]) -> None:
        self._life.reactor.listen(*channels, database=self._link.database)

    @calls_out
    def unlisten(self, channels: tuple[str, ...]) -> None:
        self._life.reactor.unlisten(*channels, database=self._link.database)

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
    lives = [life for life in _living if not life._birth.elsewhere]
    deadline = time.monotonic() + AT_EXIT
    for life in lives:
        life.ask_to_stop(deadline)
    for life in lives:
        life.join(max(0.0, deadline + AT_EXIT - time.monotonic()))


atexit.register(_stop_all)


def _take_from_child() -> None:
    """A handler may have forked: what its thread would run next is the parent's."""
    for life in tuple(_living):
        life.backlog.forget_held()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_take_from_child)
