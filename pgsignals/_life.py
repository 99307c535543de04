"""One life of a reactor, from start to stop: its threads, its backlog, its links."""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from pgsignals._backlog import Backlog, Policy
from pgsignals._driver import Session
from pgsignals._fork import Birth
from pgsignals._link import Link, Reason, Settings
from pgsignals._reader import Reader
from pgsignals._types import Gap
from pgsignals._workers import Workers, current_worker, enter_reader, own_session
from pgsignals.database import Database, send
from pgsignals.errors import ClosedError, ConnectionLostError
from pgsignals.signals import Channels, OrderedSignal, changes, default

logger = logging.getLogger(__name__)

#: How long a call waits for LISTENs that were asked for before it, in seconds.
ACKNOWLEDGED_WITHIN = 10.0

#: What a program that ends leaves a reactor to drain in, in seconds.
AT_EXIT = 1.0


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
    """See the module.  A reactor begins another one with each start."""

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
        )
        self.reader = Reader(self, plan.databases, self.backlog, plan.links, plan.idle)
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
        try:
            self.workers.start()
            self._thread.start()
        except BaseException:  # no thread can be had, so nobody else would clean up
            self.backlog.end()
            self.reader.close()
            self._take_back()
            self.over = True
            self._done.set()
            raise
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
        enter_reader()
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
        self.reader.finish(self._borrowed, lambda: self._deadline)
        drained = self.backlog.join(lambda: self._deadline)
        if not drained:
            self._clean = False
            self._warn()
        self.reader.close()
        self._take_back()
        for link in self.reader.links:
            self.workers.warn_of_drops(link, finally_=True)
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
            self.workers.emit(self.reactor.stopped, self.reactor, error=self.error)

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
        self.workers.forget_plans(link)
        return self.reactor.wanted(link.database)

    def batched(self, link: Link) -> Collection[str]:
        count, names = self._batched.get(link, (-1, ()))
        if count != changes.count:
            count, database = changes.count, link.database
            names = default.batched_for(database) | self._channels.batched_for(database)
            self._batched[link] = count, names
        return names

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
            return  # the workers are busy; a heap of idle events helps nobody
        self._idle_waits = True

        def tell() -> None:
            self._idle_waits = False
            self.workers.emit(self.reactor.idle, self.reactor)

        self.backlog.announce(None, tell)

    def queued(self, link: Link) -> None:
        self.workers.warn_of_drops(link)

    def look_at_handlers(self) -> None:
        self.workers.warn_of_slow()
        for link in self.reader.links:
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
        # Under "block" the reader may wait for the very handler that calls: then nobody can
        # acknowledge anything before it returns.
        in_handler = current_worker(self.workers) is not None
        self.reader.wait_settled(
            links, self.reader.requests, ACKNOWLEDGED_WITHIN, in_handler=in_handler
        )

    def notify(self, database: Database, items: list[tuple[str, str]]) -> int:
        """See :meth:`Reactor.notify`."""
        worker = current_worker(self.workers)
        link = self.link_of(database)
        if worker is not None and (session := worker.open_transaction(database)) is not None:
            link.notifies_later = True
            return send(session, items)
        self.wait_settled([link])
        return link.control.notify(items)


class _Service:
    """What a served database does through its reactor: see :class:`pgsignals.database.Host`."""

    def __init__(self, life: Life, link: Link) -> None:
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

_living: weakref.WeakSet[Life] = weakref.WeakSet()
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
