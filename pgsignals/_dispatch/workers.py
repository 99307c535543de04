"""The threads that run handlers; a failing handler does not affect the others."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Collection
from datetime import UTC
from typing import Any, Protocol

from pgsignals._dispatch.backlog import TURN, Backlog
from pgsignals._dispatch.handlers import describe, refuse_result
from pgsignals._dispatch.ordered import (
    Call,
    OrderedSignal,
    ReactorSignal,
    calls_for,
    changes,
    id_of,
    state_of,
)
from pgsignals._pure.lanes import Announcement, Lane, Segment, Source
from pgsignals._pure.values import Notification
from pgsignals._runtime.fork import ForkGuard
from pgsignals._runtime.log import Log
from pgsignals._runtime.reentry import calls_out
from pgsignals._sources.counters import Counters
from pgsignals._sources.reports import Gap
from pgsignals._wire.session import Session
from pgsignals._wire.sessions import Sessions
from pgsignals.database import Database
from pgsignals.errors import ConnectionStateError
from pgsignals.signals import Channels, default

logger = Log("pgsignals.reactor")

_current = threading.local()

#: Seconds after which a handler is called slow in a warning.
SLOW = 10.0

#: A worker takes more at once while its previous take was handled within this many seconds.
INSTANT = 0.0001

#: Seconds between two lines of the log about what a database's full backlog has dropped.
DROPS_LOGGED_EVERY = 10.0

#: Channels of a gap that the log names.
MOST_NAMED = 10

#: Notifications of a batch for a handler that is prompt, and in how many seconds it then is.
PIECE = 400
PROMPT = 0.001


class Origin(Source, Protocol):
    """A link, as the workers see it."""

    counters: Counters
    plans: dict[str, Plan]


class Plan:
    """The handlers of notifications on one channel, valid until :data:`~pgsignals.signals.changes`
    counts a change."""

    __slots__ = ("batch", "calls", "made_at", "only", "only_batch", "piece")

    def __init__(self, calls: list[Call], made_at: int) -> None:
        self.calls = calls
        self.made_at = made_at
        self.batch = any(call.batch for call in calls)
        only = calls[0].strong if len(calls) == 1 and calls[0].decode is None else None
        self.only = None if self.batch else only
        self.only_batch = only if self.batch else None
        self.piece = sys.maxsize

    def note_pace(self, count: int, seconds: float) -> None:
        """A batch of this many has been handled.

        A slow handler gets everything that is waiting, in fewer calls; one that handles a small
        batch in an instant gets small batches, which stay in the processor's cache and do not
        set off the garbage collector.
        """
        if seconds < PROMPT and seconds * PIECE < INSTANT * count:
            self.piece = PIECE
        else:  # or it was only interrupted: not all at once
            self.piece = min(4 * self.piece, sys.maxsize)


_NOBODY = Plan([], made_at=-1)


class Workers:
    """Runs what the backlog gives.

    :param channels: the reactor's own; those of the module level are called first.
    :param any_channel: receives every notification, after the channel's handlers.
    :param home: what the threads work for: see :func:`works_for`.
    """

    def __init__(
        self,
        name: str,
        count: int,
        backlog: Backlog,
        channels: Channels,
        any_channel: OrderedSignal,
        handler_failed: OrderedSignal,
        home: object = None,
    ) -> None:
        self.home = home
        self._fork_guard = ForkGuard()
        self._forked = False
        self._backlog = backlog
        self._namespaces = (default, channels)
        self._any_channel = any_channel
        self._handler_failed = handler_failed
        self._planned: dict[Origin, int] = {}  # at which change a link's plans were made
        self._drops_logged: dict[Origin, tuple[int, float]] = {}  # so many, and when
        self.threads = [Worker(self, f"{name}-worker-{n}") for n in range(1, count + 1)]

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
            worker.sessions.forget()

    @property
    def stuck(self) -> list[str]:
        """The handlers that run right now."""
        handlers = (worker.handler for worker in self.threads)
        return [describe(handler) for handler in handlers if handler is not None]

    def warn_of_slow(self) -> None:
        """Name the handlers that have been running for long."""
        now = time.monotonic()
        for worker in self.threads:
            worker.warn_if_slow(now)

    def warn_of_drops(self, link: Origin, *, finally_: bool = False) -> None:
        """Log what has been dropped: at once, and then periodically; called by the reader.

        :param finally_: at once in any case.
        """
        logged, at = self._drops_logged.get(link, (0, float("-inf")))
        if (dropped := link.counters.dropped) == logged:
            return
        if (now := time.monotonic()) - at < DROPS_LOGGED_EVERY and not finally_:
            return
        self._drops_logged[link] = dropped, now
        logger.warning(
            "%s: the backlog is full: %d notifications dropped, %d in all",
            link.database.name,
            dropped - logged,
            dropped,
        )

    def forget_plans(self, link: Origin) -> None:
        """Let go of the handlers that were resolved before the latest change."""
        if self._planned.get(link) != (count := changes.count):
            self._planned[link] = count
            link.plans.clear()

    # -- what a worker runs ----------------------------------------------------------------------

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
                    self._run_segment(worker, *task)
            except BaseException:
                logger.critical("bug in pgsignals: a worker has failed, and goes on", exc_info=True)
            worker.handler = worker.at = None  # what has been handled must not stay in memory
            if self._forked:
                return self._leave_child()
            task = backlog.done(task) or backlog.take()

    @calls_out
    def _run_segment(self, worker: Worker, lane: Lane, segment: Segment) -> None:
        link: Any = segment.source
        backlog, database, sessions = self._backlog, link.database, worker.sessions
        plans = link.plans
        plan, handler = _NOBODY, None
        handled, pace, channel = 0, 1, None
        taken: list[Notification] = []
        begun = settled = 0  # of these
        run = backlog.begin(lane, segment, pace)
        try:
            while run is not None:
                taken, begun, settled = lane.taken, 0, 0
                began = time.perf_counter()
                for notification in run:
                    begun += 1
                    if notification[0] is not channel or changes.count != plan.made_at:
                        channel = notification[0]
                        plan = plans.get(channel)
                        if plan is None or changes.count != plan.made_at:
                            plan = self._plan(link, channel)
                        worker.handler = handler = plan.only
                    if handler is not None:
                        worker.at = notification
                        try:
                            result = handler(database, notification=notification)
                            if result is not None:
                                refuse_result(result)
                        except BaseException as exc:
                            self._fail(worker, link, plan.calls[0], notification, handler, exc)
                        if sessions:
                            worker.end_transactions()
                    elif plan.batch:
                        if lane.is_next_of(channel):
                            if begun - 1 > settled:
                                link.settle(taken[settled : begun - 1])
                            batch = backlog.take_batch(lane, segment, notification, plan.piece)
                            of_run = min(len(batch), len(taken) - begun + 1)
                            handled += len(batch) - of_run
                            settled = begun = begun - 1 + of_run
                            self._run_batch(worker, link, plan, batch)
                        else:  # alone among others: neither a lock nor a pace is needed
                            self._call_batch_handlers(worker, link, plan, [notification])
                        if self._forked:
                            break
                    elif plan.calls:
                        self._call_each(worker, link, plan, [notification])
                seconds = time.perf_counter() - began
                if self._see_fork(seconds):
                    return
                if begun > settled:
                    link.settle(taken[settled:begun] if settled or begun < len(taken) else taken)
                handled += begun
                settled = begun
                if handled >= TURN and backlog.has_other_work():
                    return
                pace = 2 * pace if seconds < INSTANT else 1
                run = backlog.begin(lane, segment, pace)
        except BaseException as exc:
            if begun > settled:
                link.settle(taken[settled : begun - 1])
                link.settle(taken[begun - 1 : begun], exc)
            raise

    @calls_out
    def _run_batch(
        self, worker: Worker, link: Origin, plan: Plan, notifications: list[Notification]
    ) -> None:
        began = time.perf_counter()
        try:
            self._call_batch_handlers(worker, link, plan, notifications)
        except BaseException as exc:
            link.settle(notifications, exc)
            raise
        seconds = time.perf_counter() - began
        plan.note_pace(len(notifications), seconds)
        if not self._see_fork(seconds):
            link.settle(notifications)

    @calls_out
    def _call_batch_handlers(
        self, worker: Worker, link: Origin, plan: Plan, notifications: list[Notification]
    ) -> None:
        if (handler := plan.only_batch) is not None and changes.count == plan.made_at:
            worker.handler, worker.at = handler, notifications
            try:
                result = handler(link.database, notifications=notifications[:])
                if result is not None:
                    refuse_result(result)
            except BaseException as exc:
                self._fail(worker, link, plan.calls[0], notifications, handler, exc)
            if worker.sessions:
                worker.end_transactions()
        else:
            self._call_each(worker, link, plan, notifications)

    def _see_fork(self, seconds: float) -> bool:
        """Whether what took so long has forked, and this is the child; to be asked before the
        backlog is, whose lock the parent's threads may have had.  The process id is a system call,
        and no fork is done in an instant."""
        fork_guard = self._fork_guard
        if fork_guard.known_in_child or (seconds >= INSTANT and fork_guard.in_child):
            self._forked = True
        return self._forked

    def _leave_child(self) -> None:
        """The thread of a child that a handler has forked, and that has come back from it: a copy
        of a worker, whose work, session and locks are the parent's.  It is the child's only
        thread, so the child ends with it."""
        if self._fork_guard.known_in_child:  # else a lock of logging may be held for ever
            logger.warning(
                "a child process forked by a handler has returned from the handler, and ends; "
                "end it with os._exit(), or use multiprocessing"
            )

    def _plan(self, link: Origin, channel: str) -> Plan:
        plan = link.plans.get(channel)
        if plan is None or changes.count != plan.made_at:
            self.forget_plans(link)
            made_at = changes.count
            calls = [
                call
                for namespace in self._namespaces
                for call in namespace.calls_for(channel, link.database)
            ]
            calls += calls_for(self._any_channel, link.database)
            if (around := self._namespaces[-1].around) is not None:
                for call in calls:
                    call.wrap(around)
            plan = link.plans[channel] = Plan(calls, made_at)
        return plan

    def _call_each(
        self, worker: Worker, link: Origin, plan: Plan, notifications: list[Notification]
    ) -> None:
        seen = plan.made_at
        for call in plan.calls:
            parts: list[Any] = [notifications] if call.batch else notifications
            for part in parts:
                if self._fork_guard.known_in_child:
                    return
                # As blinker does: one that was disconnected meanwhile is not called any more.
                if changes.count != seen and not call.still_calls(link.database):
                    break
                if (handler := call.handler()) is None:
                    break
                worker.handler, worker.at = handler, part
                if call.batch:
                    self._call_batch(worker, link, call, handler, part)
                else:
                    self._call(worker, link, call, handler, part)
                if worker.sessions:
                    worker.end_transactions()

    @calls_out
    def _call(
        self,
        worker: Worker,
        link: Origin,
        call: Call,
        handler: Callable[..., Any],
        notification: Notification,
    ) -> None:
        extra = {}
        if call.decode is not None:
            try:
                extra["value"] = call.decode(notification.payload)
            except BaseException as exc:
                self._fail(worker, link, call, notification, handler, exc, decoding=True)
                return
        called = call.wrapped(handler)
        try:
            refuse_result(called(link.database, notification=notification, **extra))
        except BaseException as exc:
            self._fail(worker, link, call, notification, handler, exc)

    @calls_out
    def _call_batch(
        self,
        worker: Worker,
        link: Origin,
        call: Call,
        handler: Callable[..., Any],
        notifications: list[Notification],
    ) -> None:
        given: dict[str, Any] = {"notifications": list(notifications)}
        if call.decode is not None:
            given = {"notifications": [], "values": []}
            for notification in notifications:
                try:
                    value = call.decode(notification.payload)
                except BaseException as exc:
                    self._fail(worker, link, call, [notification], handler, exc, decoding=True)
                else:
                    given["notifications"].append(notification)
                    given["values"].append(value)
            if not given["notifications"]:
                return
        called = call.wrapped(handler)
        try:
            refuse_result(called(link.database, **given))
        except BaseException as exc:
            self._fail(worker, link, call, notifications, handler, exc)

    # -- failures --------------------------------------------------------------------------------

    def _fail(
        self,
        worker: Worker,
        link: Origin,
        call: Call,
        told: Notification | list[Notification],
        handler: Callable[..., Any],
        error: BaseException,
        *,
        decoding: bool = False,
    ) -> None:
        """Log, count and report a failure; *told* is the list, for a batch handler."""
        settled = told if isinstance(told, list) else [told]
        channel, name, where = settled[0].channel, describe(handler), link.database.name
        if decoding:  # without the error's text: a decoder's often repeats the payload
            kind = type(error).__name__
            message = "the decode of %s refused a payload on channel %r of %s (%s)"
            logger.error(message, name, channel, where, kind)
        else:
            message = "handler %s failed on channel %r of %s"
            logger.error(message, name, channel, where, exc_info=error)
        if worker.sessions:  # before receivers use the same session
            worker.end_transactions()
        if isinstance(call.signal, ReactorSignal):
            shown = None
        else:  # other handlers get the same list, whatever a receiver does to it
            shown = told[:] if isinstance(told, list) else told
        self._tell_failed(link, settled, shown, handler, error)

    def _tell_failed(
        self,
        link: Origin,
        settled: list[Notification],
        shown: Notification | list[Notification] | None,
        handler: Callable[..., Any],
        error: BaseException,
    ) -> None:
        link.settle(settled, error)
        self.emit(
            self._handler_failed, link.database, notification=shown, handler=handler, error=error
        )

    # -- signals of the reactor ------------------------------------------------------------------

    def emit(
        self, signal: OrderedSignal, sender: object, link: Origin | None = None, **given: object
    ) -> None:
        """Send a signal of the reactor's own; a receiver that raises stops nothing else.

        :param link: where failures are counted and reported to ``handler_failed``; None for a
            signal whose failures are only logged.
        """
        self._emit(signal, sender, link, given)

    @calls_out
    def _emit(
        self, signal: OrderedSignal, sender: object, link: Origin | None, given: dict[str, Any]
    ) -> int:
        """See :meth:`emit`.  Returns how many receivers were called."""
        worker = current_worker(self)
        called = 0
        for call in calls_for(signal, sender):
            receiver = call.handler() if call.still_calls(sender) else None
            if receiver is None:
                continue
            called += 1
            before = None
            if worker is not None:
                before = worker.handler, worker.at
                worker.handler, worker.at = receiver, call
            try:
                refuse_result(receiver(sender, **given))
            except BaseException as exc:
                logger.exception("receiver %s of a reactor's signal failed", describe(receiver))
                if worker is not None and worker.sessions:  # as in _fail
                    worker.end_transactions()
                if link is not None:
                    self._tell_failed(link, [], None, receiver, exc)
            if worker is not None and worker.sessions:
                worker.end_transactions()
            if worker is not None and before is not None:
                worker.handler, worker.at = before
        return called

    def emit_gap(self, signal: OrderedSignal, link: Origin, gap: Gap) -> None:
        """Log a gap and send it."""
        count = "an unknown number" if gap.dropped is None else str(gap.dropped)
        logger.warning(
            "%s: gap (%s) from %s to %s: %s missed on %s",
            link.database.name,
            gap.reason,
            gap.since.astimezone(UTC).isoformat(),
            gap.until.astimezone(UTC).isoformat(),
            count,
            _named(gap.channels),
        )
        called = self._emit(signal, link.database, link, {"gap": gap})
        if not called and state_of(signal).has_forgotten(id_of(link.database)):
            logger.warning(
                "%s: no receiver is left for the gap: they were connected weakly and have been "
                "collected; use @reactor.on('gap'), or connect(..., weak=False)",
                link.database.name,
            )


def _named(channels: Collection[str] | None) -> str:
    """The channels of a gap, for a log."""
    if channels is None:
        return "all channels"
    names = sorted(channels)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(map(repr, names[:MOST_NAMED])) + more


class Worker(threading.Thread):
    """One thread of :class:`Workers`, with sessions of its own for its handlers."""

    def __init__(self, workers: Workers, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.handler: Callable[..., Any] | None = None  # that runs, and what it was given
        self.at: object = None
        self._seen: object = None
        self._seen_at = 0.0
        self._warned = False
        self._workers = workers
        self.sessions = Sessions()

    def run(self) -> None:
        _current.worker = self
        work_for(self._workers.home)
        try:
            self._workers.run(self)
        finally:
            if not self._workers.has_forked:
                self.sessions.close()
            del self._workers

    def warn_if_slow(self, now: float) -> None:
        """Name a handler that has been running the same call for long, once.

        Called by the reader periodically, so that a call only costs recording which handler runs.
        """
        handler, at = self.handler, self.at
        if handler is None or at is not self._seen:
            self._seen, self._seen_at, self._warned = at, now, False
        elif now - self._seen_at >= SLOW and not self._warned:
            self._warned = True
            logger.warning(
                "handler %s has been running for %.0f s, and holds up later notifications on %s",
                describe(handler),
                now - self._seen_at,
                self.name,
            )

    def serves(self, workers: Workers) -> bool:
        """Whether this is one of *workers*."""
        return getattr(self, "_workers", None) is workers

    def end_transactions(self) -> None:
        """Roll back a transaction a handler left open: it would swallow the next handler's work."""
        if not self._workers.has_forked:
            self.sessions.end_transactions(self._warn_of_transaction)

    def _warn_of_transaction(self) -> None:
        logger.error(
            "handler %s left a transaction open, which is rolled back; "
            "use 'with db.transaction():'",
            describe(self.handler),
        )


def current_worker(workers: Workers) -> Worker | None:
    """The calling thread, if it is one of *workers*."""
    worker: Worker | None = getattr(_current, "worker", None)
    return worker if worker is not None and worker.serves(workers) else None


def work_for(home: object) -> None:
    """The calling thread is one of those that *home* consists of, from now on."""
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
    return worker.sessions.session_for(database._access)
