"""The threads that make the calls: one of the crews that could."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from pgsignals._dispatch.backlog import TURN, Backlog
from pgsignals._dispatch.calls import (
    INSTANT,
    NOWHERE,
    Calls,
    Namespace,
    Route,
    Routes,
    Steps,
    Watch,
)
from pgsignals._dispatch.checks import describe, refuse_result
from pgsignals._dispatch.ordered import OrderedSignal, changes
from pgsignals._pure.lanes import Announcement, Lane, Outcome, Segment, Source
from pgsignals._pure.values import Notification
from pgsignals._runtime.fork import ForkGuard
from pgsignals._runtime.log import Log
from pgsignals._runtime.reentry import calls_out
from pgsignals._sources.reports import Gap
from pgsignals._wire.session import Session
from pgsignals._wire.sessions import Sessions
from pgsignals.database import Database
from pgsignals.errors import ConnectionStateError

logger = Log("pgsignals.reactor")

_current = threading.local()

#: Seconds after which a handler is called slow in a warning.
SLOW = 10.0


class Workers:
    """Runs what the backlog hands over.

    :param namespaces: where handlers are registered, in the order in which they are called.
    :param any_channel: receives every notification, after the channel's handlers.
    :param home: what the threads work for: see :func:`works_for`.
    """

    def __init__(
        self,
        name: str,
        count: int,
        backlog: Backlog,
        namespaces: Sequence[Namespace],
        any_channel: OrderedSignal,
        handler_failed: OrderedSignal,
        home: object = None,
    ) -> None:
        self.home = home
        self._fork_guard = ForkGuard()
        self._forked = False  # set in a forked child alone, by its only thread
        self._backlog = backlog
        self._routes = Routes(namespaces, any_channel)
        self._beside = Caller(handler_failed, self._fork_guard)  # the reader's thread, at the end
        self.threads = [
            Worker(self, Caller(handler_failed, self._fork_guard), f"{name}-worker-{number}")
            for number in range(1, count + 1)
        ]

    def start(self) -> None:
        """Start the threads."""
        for worker in self.threads:
            worker.start()

    def join(self, seconds: float) -> None:
        """Wait for the threads to end, *seconds* for all of them together."""
        by = time.monotonic() + seconds
        for worker in self.threads:
            worker.join(max(0.0, by - time.monotonic()))

    @property
    def has_forked(self) -> bool:
        """Whether this is the copy in a forked child."""
        return self._fork_guard.in_child

    def forget(self) -> None:
        """In a forked child: drop the sockets, sending nothing to the server."""
        for worker in self.threads:
            worker.caller.sessions.forget()

    @property
    def stuck(self) -> list[str]:
        """The handlers that are running right now."""
        handlers = (worker.caller.watch.handler for worker in self.threads)
        return [describe(handler) for handler in handlers if handler is not None]

    def warn_of_slow(self) -> None:
        """Log the handlers that have been running for long."""
        now = time.monotonic()
        for worker in self.threads:
            if (seconds := worker.caller.watch.slow_for(now, SLOW)) is not None:
                logger.warning(
                    "handler %s has been running for %.0f s and is blocking worker %s",
                    describe(worker.caller.watch.handler),
                    seconds,
                    worker.name,
                )

    def forget_stale_routes(self) -> None:
        """Let go of the handlers that were resolved before the latest change."""
        self._routes.forget_stale()

    # -- signals of the reactor; on a worker, and at the end also on the reader's thread -----------

    def emit(
        self, signal: OrderedSignal, sender: object, source: Source | None = None, **given: object
    ) -> None:
        """Send a signal of the reactor's own; a receiver that raises stops nothing else.

        :param source: see :meth:`Calls.emit`.
        """
        caller = self._caller
        caller.make(caller.calls.emit(signal, sender, source, given))

    def emit_gap(self, signal: OrderedSignal, source: Source, gap: Gap) -> None:
        """Log a gap and send it."""
        caller = self._caller
        caller.make(caller.calls.emit_gap(signal, source, gap))

    @property
    def _caller(self) -> Caller:
        worker = current_worker(self)
        return self._beside if worker is None else worker.caller

    # -- what a worker runs ------------------------------------------------------------------------

    def run(self, worker: Worker) -> None:
        """Run tasks until there will be none."""
        backlog = self._backlog
        task = backlog.take()
        while task is not None:
            try:
                if isinstance(task, Announcement):
                    task.run()
                    self._see_fork(INSTANT)
                else:
                    self._run_segment(worker.caller, *task)
            except BaseException:
                logger.critical("bug in pgsignals: a worker has failed, and goes on", exc_info=True)
            worker.caller.watch.clear()
            if self._forked:
                return self._leave_child()
            task = backlog.done(task) or backlog.take()

    @calls_out
    def _run_segment(self, caller: Caller, lane: Lane, segment: Segment) -> None:
        source, sessions, watch = segment.source, caller.sessions, caller.watch
        backlog, database, routes = self._backlog, source.database, self._routes.of(source)
        route, handler, channel = NOWHERE, None, None
        handled, pace = 0, 1
        taken: list[Notification] = []
        begun = settled = 0  # of these
        run = backlog.begin(lane, segment, pace)
        try:
            while run is not None:
                taken, begun, settled = lane.taken, 0, 0
                began = time.perf_counter()
                for notification in run:
                    begun += 1
                    if notification[0] is not channel or changes.count != route.made_at:
                        channel = notification[0]
                        route = routes.get(channel, NOWHERE)
                        if changes.count != route.made_at:
                            route = self._routes.resolve(source, channel)
                            routes = self._routes.of(source)
                        watch.handler = handler = route.only
                    if handler is not None:
                        watch.at = notification
                        try:
                            result = handler(database, notification=notification)
                            if result is not None:
                                refuse_result(result)
                        except BaseException as exc:
                            caller.failed(source, route, handler, notification, exc)
                        if sessions:
                            caller.end_transactions()
                    elif route.batch and lane.is_next_of(channel):
                        _settle(source, taken, settled, begun - 1)
                        batch = backlog.take_batch(lane, segment, notification, route.piece)
                        of_these = min(len(batch), len(taken) - begun + 1)
                        handled += len(batch) - of_these
                        settled = begun = begun - 1 + of_these
                        self._run_batch(caller, source, route, batch)
                        if self._forked:
                            break
                    elif route.batch:  # alone among others: neither a lock nor a pace is needed
                        caller.deliver(source, route, [notification])
                    elif route.calls:
                        caller.make(caller.calls.deliver(route, source, [notification]))
                seconds = time.perf_counter() - began
                if self._see_fork(seconds):
                    return
                _settle(source, taken, settled, begun)
                handled += begun
                settled = begun
                if handled >= TURN and backlog.has_other_work():
                    return
                pace = 2 * pace if seconds < INSTANT else 1
                run = backlog.begin(lane, segment, pace)
        except BaseException as exc:  # a bug of ours; what has not begun is taken again
            _settle(source, taken, settled, begun - 1)
            _settle(source, taken, max(settled, begun - 1), begun, exc)
            raise

    @calls_out
    def _run_batch(
        self, caller: Caller, source: Source, route: Route, batch: list[Notification]
    ) -> None:
        began = time.perf_counter()
        try:
            caller.deliver(source, route, batch)
        except BaseException as exc:
            source.settle(batch, exc)
            raise
        seconds = time.perf_counter() - began
        route.note_pace(len(batch), seconds)
        if not self._see_fork(seconds):
            source.settle(batch)

    def _see_fork(self, seconds: float) -> bool:
        """Whether what took *seconds* has forked and this is the child.  Ask before touching the
        backlog, whose lock a thread of the parent may have held.  To look up the process id is a
        system call, and no fork is done in an instant."""
        fork_guard = self._fork_guard
        if fork_guard.known_in_child or (seconds >= INSTANT and fork_guard.in_child):
            self._forked = True
        return self._forked

    def _leave_child(self) -> None:
        """End a child that a handler has forked and then returned in.  Its only thread is a copy of
        a worker, whose work, session and locks are the parent's; the child ends with it."""
        if self._fork_guard.known_in_child:  # else a lock of logging may never be released
            logger.warning(
                "a child process forked by a handler has returned from the handler, and ends; "
                "end it with os._exit(), or use multiprocessing"
            )


def _settle(
    source: Source, taken: list[Notification], start: int, stop: int, outcome: Outcome = None
) -> None:
    """Tell *source* what became of some of what was taken from it."""
    if start < stop:
        source.settle(taken if stop - start == len(taken) else taken[start:stop], outcome)


class Caller:
    """Makes calls one after another, with sessions of its own for the handlers."""

    def __init__(self, handler_failed: OrderedSignal, fork_guard: ForkGuard) -> None:
        self.watch = Watch()
        self.calls = Calls(handler_failed, fork_guard, self.watch)
        self.sessions = Sessions()
        self._fork_guard = fork_guard

    @calls_out
    def make(self, steps: Steps[object]) -> None:
        """Make the calls of *steps*, one after another."""
        watch, sessions = self.watch, self.sessions
        for handler, called, sender, given in steps:
            watch.handler, watch.at = handler, given
            try:
                result = called(sender, **given)  # the only line that would await
                if result is not None:
                    refuse_result(result)
            except BaseException as exc:
                watch.outcome = exc
            if sessions:
                self.end_transactions()

    @calls_out
    def deliver(self, source: Source, route: Route, notifications: list[Notification]) -> None:
        """Hand *notifications*, all of the route's channel, to each of its handlers."""
        if (handler := route.only_batch) is None or changes.count != route.made_at:
            self.make(self.calls.deliver(route, source, notifications))
            return
        self.watch.handler, self.watch.at = handler, notifications
        try:
            result = handler(source.database, notifications=notifications[:])
            if result is not None:
                refuse_result(result)
        except BaseException as exc:
            self.failed(source, route, handler, notifications, exc)
        if self.sessions:
            self.end_transactions()

    def failed(
        self,
        source: Source,
        route: Route,
        handler: Callable[..., Any],
        part: Notification | list[Notification],
        error: BaseException,
    ) -> None:
        """Report a failure of a route's only handler."""
        if self.sessions:  # before receivers use the same session
            self.end_transactions()
        self.make(self.calls.failed(source, route.calls[0], handler, part, error))
        self.watch.handler = handler  # which may be called again

    def end_transactions(self) -> None:
        """Roll back a transaction a handler left open: it would swallow the next handler's work."""
        if not self._fork_guard.in_child:
            self.sessions.end_transactions(self._warn_of_transaction)

    def _warn_of_transaction(self) -> None:
        logger.error(
            "handler %s left a transaction open, which is rolled back; "
            "use 'with db.transaction():'",
            describe(self.watch.handler),
        )


class Worker(threading.Thread):
    """One thread of :class:`Workers`."""

    def __init__(self, workers: Workers, caller: Caller, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.caller = caller
        self._workers = workers

    def run(self) -> None:
        _current.worker = self
        work_for(self._workers.home)
        try:
            self._workers.run(self)
        finally:
            if not self._workers.has_forked:
                self.caller.sessions.close()
            del self._workers

    def serves(self, workers: Workers) -> bool:
        """Whether this is one of *workers*."""
        return getattr(self, "_workers", None) is workers


def current_worker(workers: Workers) -> Worker | None:
    """The calling thread if it is one of *workers*, else None."""
    worker: Worker | None = getattr(_current, "worker", None)
    return worker if worker is not None and worker.serves(workers) else None


def work_for(home: object) -> None:
    """Make the calling thread one of those that *home* consists of."""
    _current.home = home


def works_for() -> Any:
    """What the calling thread works for: a reactor's life, or None."""
    return getattr(_current, "home", None)


def own_session(workers: Workers, database: Database) -> Session:
    """The calling worker's session with *database*: see :meth:`Sessions.session_for`.

    :raises ConnectionStateError: the calling thread is not a worker.
    """
    worker = current_worker(workers)
    if worker is None:
        raise ConnectionStateError(
            f"the session of {database.name} belongs to a running reactor; outside a handler, "
            "open a Database of your own"
        )
    return worker.caller.sessions.session_for(database._access)


def own_transaction(workers: Workers, database: Database) -> Session | None:
    """The session in whose open transaction a handler calls; None outside of one."""
    worker = current_worker(workers)
    return None if worker is None else worker.caller.sessions.open_transaction(database._access)
