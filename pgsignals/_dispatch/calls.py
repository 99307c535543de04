"""Whom to call for a notification, and what came of it: no thread, no lock, no clock.

Everything that calls users' code is a generator: it yields an :data:`Attempt`, a call that is to be
made, and goes on once what came of it is in :attr:`Watch.outcome`.  Who drives the generator makes
the calls: a worker in :meth:`pgsignals._dispatch.workers.Caller.make`, and an event loop would in
the same few lines with an ``await`` in them.  So only the innermost call exists twice, and all else
once: who is called and in which order, who was disconnected meanwhile, decoding, and the report of
a failure to the log, to the source and to ``handler_failed``.

A worker makes the most frequent call, that of a channel's only handler, without all this: see
:attr:`Route.only`.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Sequence
from datetime import UTC
from typing import Any, Protocol, TypeAlias, TypeVar

from pgsignals._dispatch.checks import describe
from pgsignals._dispatch.ordered import (
    Call,
    OrderedSignal,
    ReactorSignal,
    calls_for,
    changes,
    id_of,
    state_of,
)
from pgsignals._pure.lanes import Outcome, Source
from pgsignals._pure.values import Notification
from pgsignals._runtime.fork import ForkGuard
from pgsignals._runtime.log import Log
from pgsignals._runtime.reentry import calls_out
from pgsignals._sources.reports import Gap

logger = Log("pgsignals.reactor")

T = TypeVar("T")

Around: TypeAlias = Callable[..., object]

#: Channels of a gap that the log names.
MOST_NAMED = 10

#: Notifications of a batch for a handler that is prompt.
PIECE = 400

#: Seconds within which a handler of a batch is prompt, and within which any call is an instant.
PROMPT = 0.001
INSTANT = 0.0001


#: One call that is to be made: by which handler's name it is known, what is called, what with, and
#: with which keywords.  A plain tuple, as there is one for nearly every call.
Attempt: TypeAlias = tuple[Callable[..., Any], Callable[..., Any], object, dict[str, Any]]

Steps: TypeAlias = Generator[Attempt, None, T]


class Watch:
    """The call that is being made, and what came of it."""

    __slots__ = ("_seen", "_seen_at", "_warned", "at", "handler", "outcome")

    def __init__(self) -> None:
        # The thread that makes the calls:
        self.handler: Callable[..., Any] | None = None
        self.at: object = None  # something that is another one with each call
        self.outcome: Outcome = None

        # The reader's thread:
        self._seen: object = None
        self._seen_at = 0.0
        self._warned = False

    def clear(self) -> None:
        """No call is being made, and what was handled must not stay in memory."""
        self.handler = self.at = self.outcome = None

    def error(self) -> BaseException:
        """What the call has raised; it is forgotten here."""
        outcome, self.outcome = self.outcome, None
        assert outcome is not None
        return outcome

    def slow_for(self, now: float, limit: float) -> float | None:
        """For how long the same call has been made, if that is at least *limit* seconds and has
        not been said before.  Looked at from time to time, so that a call costs nothing more."""
        if self.handler is None or self.at is not self._seen:
            self._seen, self._seen_at, self._warned = self.at, now, False
        elif now - self._seen_at >= limit and not self._warned:
            self._warned = True
            return now - self._seen_at
        return None


# -- whom to call --------------------------------------------------------------------------------


class Namespace(Protocol):
    """Where handlers are registered: the module level, or a reactor."""

    @property
    def arounds(self) -> tuple[Around, ...]:
        """What calls handlers in place of the worker, the first one around the others."""

    def calls_for(self, name: str, sender: Any) -> list[Call]:
        """The handlers of channel *name* for *sender*, in order."""


class Route:
    """The handlers of one channel of one source, valid until :data:`changes` counts a change."""

    __slots__ = ("batch", "calls", "made_at", "only", "only_batch", "piece")

    def __init__(self, calls: list[Call], made_at: int) -> None:
        self.calls = calls
        self.made_at = made_at
        self.batch = any(call.batch for call in calls)
        only = calls[0].strong if len(calls) == 1 and calls[0].decode is None else None
        #: The only handler, where it is called as it is.
        self.only = None if self.batch else only
        self.only_batch = only if self.batch else None
        self.piece = sys.maxsize  # the most notifications of a batch

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


NOWHERE = Route([], made_at=-1)


class _Era:
    """The routes that have been resolved between two changes."""

    __slots__ = ("began_at", "routes")

    def __init__(self, began_at: int) -> None:
        self.began_at = began_at
        self.routes: defaultdict[Source, dict[str, Route]] = defaultdict(dict)


class Routes:
    """The routes of a reactor, resolved when they are first needed.

    All workers share them.  A route that another thread resolves at the same time is resolved
    twice, and one of the two stays; nothing is taken out of a dict that others use: a new era
    begins instead.

    :param any_channel: receives every notification, after the channel's handlers.
    """

    def __init__(self, namespaces: Sequence[Namespace], any_channel: OrderedSignal) -> None:
        self._namespaces = namespaces
        self._any_channel = any_channel
        self._era = _Era(changes.count)

    def of(self, source: Source) -> dict[str, Route]:
        """What is known of *source*, by channel; a route counts if it was made at the latest
        change."""
        return self._era.routes[source]

    def forget_stale(self) -> None:
        """Let go of the handlers that were resolved before the latest change."""
        if self._era.began_at != (count := changes.count):
            self._era = _Era(count)

    def resolve(self, source: Source, channel: str) -> Route:
        """The route of *channel*, also found by :meth:`of` from then on."""
        self.forget_stale()
        made_at, database = changes.count, source.database
        calls = [call for one in self._namespaces for call in one.calls_for(channel, database)]
        if (around := source.around) is not None:
            for call in calls:
                call.wrap(around)
        calls += calls_for(self._any_channel, database)
        for around in reversed([around for one in self._namespaces for around in one.arounds]):
            for call in calls:
                call.wrap(around)
        route = self._era.routes[source][channel] = Route(calls, made_at)
        return route


# -- what came of it -----------------------------------------------------------------------------


class Calls:
    """The calls that one thread makes for a reactor, or that one task would.

    :param fork_guard: of the process whose calls these are; a forked child makes none of the rest.
    """

    def __init__(self, handler_failed: OrderedSignal, fork_guard: ForkGuard, watch: Watch) -> None:
        self._handler_failed = handler_failed
        self._fork_guard = fork_guard
        self._watch = watch

    @calls_out
    def deliver(
        self, route: Route, source: Source, notifications: list[Notification]
    ) -> Steps[None]:
        """Hand *notifications*, all of the route's channel, to each of its handlers."""
        database, fork_guard, watch = source.database, self._fork_guard, self._watch
        for call in route.calls:
            decode = call.decode
            parts: list[Any] = [notifications] if call.batch else notifications
            for part in parts:
                if fork_guard.known_in_child:
                    return
                # As blinker does: one that was disconnected meanwhile is not called any more.
                if changes.count != route.made_at and not call.still_calls(database):
                    break
                if (handler := call.strong) is not None:
                    called = handler
                elif (handler := call.handler()) is not None:
                    called = call.wrapped(handler)
                else:
                    break
                given: dict[str, Any]
                if call.batch:
                    watch.handler, watch.at = handler, part
                    given = yield from self._batch(source, call, handler, part)
                    if not given["notifications"]:
                        continue
                elif decode is None:
                    given = {"notification": part}
                else:
                    watch.handler, watch.at = handler, part
                    try:
                        given = {"notification": part, "value": decode(part.payload)}
                    except BaseException as exc:
                        yield from self.failed(source, call, handler, part, exc, decoding=True)
                        continue
                yield handler, called, database, given
                if watch.outcome is not None:
                    yield from self.failed(source, call, handler, part, watch.error())

    @calls_out
    def _batch(
        self,
        source: Source,
        call: Call,
        handler: Callable[..., Any],
        notifications: list[Notification],
    ) -> Steps[dict[str, Any]]:
        """What the handler of a batch is given: what its decode accepts."""
        if (decode := call.decode) is None:
            return {"notifications": notifications[:]}
        accepted, values = [], []
        for notification in notifications:
            try:
                values.append(decode(notification.payload))
            except BaseException as exc:
                yield from self.failed(source, call, handler, [notification], exc, decoding=True)
            else:
                accepted.append(notification)
        return {"notifications": accepted, "values": values}

    def failed(
        self,
        source: Source,
        call: Call,
        handler: Callable[..., Any],
        part: Notification | list[Notification],
        error: BaseException,
        *,
        decoding: bool = False,
    ) -> Steps[None]:
        """Log and report a failure; *part* is the list, for a batch handler."""
        notifications = part if isinstance(part, list) else [part]
        channel, name, where = notifications[0].channel, describe(handler), source.database.name
        if decoding:  # without the error's text: a decoder's often repeats the payload
            kind = type(error).__name__
            message = "the decode of %s refused a payload on channel %r of %s (%s)"
            logger.error(message, name, channel, where, kind)
        else:
            message = "handler %s failed on channel %r of %s"
            logger.error(message, name, channel, where, exc_info=error)
        shown = part[:] if isinstance(part, list) else part  # a receiver may change a list
        of_reactor = isinstance(call.signal, ReactorSignal)
        yield from self._report(
            source, notifications, None if of_reactor else shown, handler, error
        )

    def _report(
        self,
        source: Source,
        notifications: Sequence[Notification],
        shown: Notification | list[Notification] | None,
        handler: Callable[..., Any],
        error: BaseException,
    ) -> Steps[None]:
        source.settle(notifications, error)
        given = {"notification": shown, "handler": handler, "error": error}
        yield from self.emit(self._handler_failed, source.database, None, given)

    def emit(
        self, signal: OrderedSignal, sender: object, source: Source | None, given: dict[str, Any]
    ) -> Steps[int]:
        """Send a signal of the reactor's own, and return how many receivers were called.

        :param source: what a failure is reported to, and to ``handler_failed``; None for a signal
            whose failures are only logged.
        """
        called = 0
        for call in calls_for(signal, sender):
            receiver = call.handler() if call.still_calls(sender) else None
            if receiver is None:
                continue
            called += 1
            yield receiver, receiver, sender, given
            if self._watch.outcome is not None:
                error = self._watch.error()
                message = "receiver %s of a reactor's signal failed"
                logger.error(message, describe(receiver), exc_info=error)
                if source is not None:
                    yield from self._report(source, (), None, receiver, error)
        return called

    def emit_gap(self, signal: OrderedSignal, source: Source, gap: Gap) -> Steps[None]:
        """Log a gap and send it."""
        database = source.database
        count = "an unknown number" if gap.dropped is None else str(gap.dropped)
        logger.warning(
            "%s: gap (%s) from %s to %s: %s missed on %s",
            database.name,
            gap.reason,
            gap.since.astimezone(UTC).isoformat(),
            gap.until.astimezone(UTC).isoformat(),
            count,
            named(gap.channels),
        )
        called = yield from self.emit(signal, database, source, {"gap": gap})
        if not called and state_of(signal).has_forgotten(id_of(database)):
            logger.warning(
                "%s: no receiver is left for the gap: they were connected weakly and have been "
                "collected; use @reactor.on('gap'), or connect(..., weak=False)",
                database.name,
            )


def named(channels: Collection[str] | None) -> str:
    """The channels of a gap, for a log."""
    if channels is None:
        return "all channels"
    names = sorted(channels)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(map(repr, names[:MOST_NAMED])) + more
