"""The threads that run handlers, each failure kept to itself."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Collection
from datetime import UTC
from typing import Any, Protocol

from pgsignals import _driver
from pgsignals._backlog import TURN, Announcement, Backlog, Drops, Lane, Segment
from pgsignals._handlers import describe, refuse_result
from pgsignals._types import Gap, Notification
from pgsignals.database import Database
from pgsignals.errors import ConnectionStateError
from pgsignals.signals import Call, Channels, OrderedSignal, ReactorSignal, changes, default

logger = logging.getLogger(__name__)

_current = threading.local()

#: Seconds after which a handler is called slow in a warning.
SLOW = 10.0

#: A worker takes more at once while what it took before has been handled in so many seconds.
INSTANT = 0.0001

#: Seconds between two lines of the log about what a database's full backlog has dropped.
DROPS_LOGGED_EVERY = 10.0

#: Channels of a gap that the log names.
MOST_NAMED = 10

#: Notifications of a batch for a handler that is prompt, and in how many seconds it then is.
PIECE = 400
PROMPT = 0.001


class Origin(Protocol):
    """A link, as the workers see it."""

    database: Database
    plans: dict[str, Plan]
    dropped: int
    dispatched: int
    failed: int

    def batched(self) -> Collection[str]: ...
    def overflowed(self, drops: Drops) -> None: ...


class Plan:
    """Whom a notification of one channel goes to, while :data:`~pgsignals.signals.changes` has
    not counted on."""

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
        """A batch of so many has been handled.

        A handler that takes its time gets all that is there, and is called the less; one that
        would handle a piece of it in an instant gets such pieces, which stay in the processor's
        cache and do not set off the garbage collector.
        """
        if seconds < PROMPT and seconds * PIECE < INSTANT * count:
            self.piece = PIECE
        else:  # or it was only interrupted: not all at once
            self.piece = min(4 * self.piece, sys.maxsize)


_NOBODY = Plan([], made_at=-1)


class Workers:
    """Runs what the backlog gives.

    :param channels: the reactor's own; the module level's come before them.
    :param any_channel: receives every notification, after the channel's handlers.
    """

    def __init__(
        self,
        name: str,
        count: int,
        backlog: Backlog,
        channels: Channels,
        any_channel: OrderedSignal,
        handler_failed: OrderedSignal,
    ) -> None:
        self._backlog = backlog
        self._namespaces = (default, channels)
        self._any_channel = any_channel
        self._handler_failed = handler_failed
        self._failed_lock = threading.Lock()
        self._planned: dict[Origin, int] = {}  # at which change a link's plans were made
        self._drops_logged: dict[Origin, tuple[int, float]] = {}  # so many, and when
        self.threads = [Worker(self, f"{name}-worker-{n}") for n in range(1, count + 1)]

    def start(self) -> None:
        """Start the threads."""
        for worker in self.threads:
            worker.start()

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
        """Log what has been dropped: at once, and then now and then; for the reader.

        :param finally_: at once in any case.
        """
        logged, at = self._drops_logged.get(link, (0, float("-inf")))
        if (dropped := link.dropped) == logged:
            return
        if (now := time.monotonic()) - at < DROPS_LOGGED_EVERY and not finally_:
            return
        self._drops_logged[link] = dropped, now
        _log(
            logging.WARNING,
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
            handled = 0
            try:
                if isinstance(task, Announcement):
                    task.run()
                else:
                    handled = self._run_segment(worker, *task)
            except BaseException:
                _log(logging.CRITICAL, "pgsignals itself has failed on a worker", exc_info=True)
            worker.handler = None
            task = backlog.done(task, handled) or backlog.take()

    def _run_segment(self, worker: Worker, lane: Lane, segment: Segment) -> int:
        link: Any = segment.source
        if segment.channel is not None:
            plan = self._plan(link, segment.channel)
            if plan.batch:
                return self._run_batch(worker, lane, segment, plan)
        backlog, database, sessions = self._backlog, link.database, worker.sessions
        plans = link.plans
        plan, handler = _NOBODY, None
        handled, pace, channel = 0, 1, None
        while (run := backlog.begin(lane, segment, pace)) is not None:
            began = time.perf_counter()
            for notification in run:
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
                elif plan.calls:
                    self._call_each(worker, link, plan, [notification])
                handled += 1
            if handled >= TURN and backlog.has_other_work():
                break
            pace = 2 * pace if time.perf_counter() - began < INSTANT else 1
        return handled

    def _run_batch(self, worker: Worker, lane: Lane, segment: Segment, plan: Plan) -> int:
        link: Any = segment.source
        notifications = self._backlog.take_batch(lane, segment, plan.piece)
        count = len(notifications)
        if notifications:
            began = time.perf_counter()
            if (handler := plan.only_batch) is not None and changes.count == plan.made_at:
                worker.handler, worker.at = handler, notifications
                try:
                    refuse_result(handler(link.database, notifications=notifications[:]))
                except BaseException as exc:
                    self._fail(worker, link, plan.calls[0], notifications, handler, exc)
                if worker.sessions:
                    worker.end_transactions()
            else:
                self._call_each(worker, link, plan, notifications)
            plan.note_pace(count, time.perf_counter() - began)
        return count

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
            calls += self._any_channel.calls_for(link.database)
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
        """Log a failure, count it and tell it; *told* is the list, for a batch handler."""
        if isinstance(told, list):
            told = told[:]  # other handlers get the same ones, whatever a receiver does to it
        channel = (told[0] if isinstance(told, list) else told).channel
        name, where = describe(handler), link.database.name
        if decoding:  # without the error's text: a decoder's often repeats the payload
            kind = type(error).__name__
            message = "the decode of %s refused a payload on channel %r of %s (%s)"
            _log(logging.ERROR, message, name, channel, where, kind)
        else:
            message = "handler %s failed on channel %r of %s"
            _log(logging.ERROR, message, name, channel, where, exc_info=error)
        if worker.sessions:  # before receivers use the same session
            worker.end_transactions()
        of_reactor = isinstance(call.signal, ReactorSignal)
        self._tell_failed(link, None if of_reactor else told, handler, error)

    def _tell_failed(
        self,
        link: Origin,
        told: Notification | list[Notification] | None,
        handler: Callable[..., Any],
        error: BaseException,
    ) -> None:
        with self._failed_lock:
            link.failed += 1
        self.emit(
            self._handler_failed, link.database, notification=told, handler=handler, error=error
        )

    # -- signals of the reactor ------------------------------------------------------------------

    def emit(
        self, signal: OrderedSignal, sender: object, link: Origin | None = None, **given: object
    ) -> None:
        """Send a signal of the reactor's own; what a receiver raises ends nothing.

        :param link: where failures are counted, and told to ``handler_failed``; None for a signal
            whose failures are logged alone.
        """
        self._emit(signal, sender, link, given)

    def _emit(
        self, signal: OrderedSignal, sender: object, link: Origin | None, given: dict[str, Any]
    ) -> int:
        """See :meth:`emit`.  Returns how many receivers were called."""
        worker = current_worker(self)
        called = 0
        for call in signal.calls_for(sender):
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
                message = "receiver %s of a reactor's signal failed"
                _log(logging.ERROR, message, describe(receiver), exc_info=exc)
                if worker is not None and worker.sessions:  # as in _fail
                    worker.end_transactions()
                if link is not None:
                    self._tell_failed(link, None, receiver, exc)
            if worker is not None and worker.sessions:
                worker.end_transactions()
            if worker is not None and before is not None:
                worker.handler, worker.at = before
        return called

    def emit_gap(self, signal: OrderedSignal, link: Origin, gap: Gap) -> None:
        """Log a gap and send it."""
        count = "an unknown number" if gap.dropped is None else str(gap.dropped)
        _log(
            logging.WARNING,
            "%s: gap (%s) from %s to %s: %s missed on %s",
            link.database.name,
            gap.reason,
            gap.since.astimezone(UTC).isoformat(),
            gap.until.astimezone(UTC).isoformat(),
            count,
            _named(gap.channels),
        )
        called = self._emit(signal, link.database, link, {"gap": gap})
        if not called and signal.has_forgotten(link.database):
            _log(
                logging.WARNING,
                "%s: the gap is told to nobody: its receivers were connected weakly and have been "
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


def _log(level: int, message: str, *args: object, **given: Any) -> None:
    with contextlib.suppress(BaseException):  # a filter of the user's may raise
        logger.log(level, message, *args, **given)


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
        self.sessions: dict[Database, tuple[_driver.Session, int]] = {}

    def run(self) -> None:
        _current.worker = self
        try:
            self._workers.run(self)
        finally:
            for session, _ in self.sessions.values():
                session.close()
            del self._workers

    def warn_if_slow(self, now: float) -> None:
        """Name a handler that has been running the same call for long, once.

        Called by the reader now and then, so that a call costs nothing more than saying who runs.
        """
        handler, at = self.handler, self.at
        if handler is None or at is not self._seen:
            self._seen, self._seen_at, self._warned = at, now, False
        elif now - self._seen_at >= SLOW and not self._warned:
            self._warned = True
            _log(
                logging.WARNING,
                "handler %s has been running for %.0f s, and holds up what comes after on %s",
                describe(handler),
                now - self._seen_at,
                self.name,
            )

    def serves(self, workers: Workers) -> bool:
        """Whether this is one of *workers*."""
        return getattr(self, "_workers", None) is workers

    def session_for(self, database: Database, losses: int) -> _driver.Session:
        """This worker's own session with *database*, opened on first use.  Blocks.

        :param losses: of the listening session.  After another one this worker's session is
            renewed: it may have ended, too, and perhaps without a word.
        """
        session, before = self.sessions.get(database, (None, 0))
        if session is not None:
            session.read()
            if not session.ended and (before == losses or session.in_transaction):
                return session
            session.close()
        session = database.sibling_session()
        self.sessions[database] = session, losses
        return session

    def end_transactions(self) -> None:
        """Roll back what a handler has left open: it would swallow the next one's work."""
        for database, (session, _) in tuple(self.sessions.items()):
            if session.connection.closed:
                del self.sessions[database]
                session.close()
            elif session.in_transaction:
                _log(
                    logging.ERROR,
                    "handler %s left a transaction open, which is rolled back; "
                    "use 'with db.transaction():'",
                    describe(self.handler),
                )
                try:
                    session.connection.rollback()
                except Exception:
                    session.close()

    def open_transaction(self, database: Database) -> _driver.Session | None:
        """This worker's session with *database* while it is in a transaction."""
        session, _ = self.sessions.get(database, (None, 0))
        return session if session is not None and session.in_transaction else None


def current_worker(workers: Workers) -> Worker | None:
    """The calling thread, if it is one of *workers*."""
    worker: Worker | None = getattr(_current, "worker", None)
    return worker if worker is not None and worker.serves(workers) else None


def enter_reader() -> None:
    """The calling thread is a reader."""
    _current.reads = True


def may_wait() -> bool:
    """Whether the calling thread may wait for a reader.

    Not one that is a reader, or a worker which runs no handler: a finalizer is running then, in
    the middle of anything.  Nor one whose event loop runs.
    """
    worker: Worker | None = getattr(_current, "worker", None)
    if getattr(_current, "reads", False) or (worker is not None and worker.handler is None):
        return False
    events = sys.modules.get("asyncio.events")  # nobody has a loop who has not imported it
    get_loop = getattr(events, "get_running_loop", None)
    try:
        return get_loop is None or not get_loop()
    except RuntimeError:  # none runs here
        return True


def own_session(workers: Workers, database: Database, losses: int) -> _driver.Session:
    """The calling worker's session with *database*: see :meth:`Worker.session_for`.

    :raises ConnectionStateError: the calling thread is no worker.
    """
    worker = current_worker(workers)
    if worker is None:
        raise ConnectionStateError(
            f"the session of {database.name} belongs to a running reactor; outside a handler, "
            "open a Database of your own"
        )
    return worker.session_for(database, losses)
