"""What a link is in, and everything that can change it.  Pure: no IO, no clock, no chance.

A link is a database under a reactor's care; it keeps its identity over many sessions.

    ┌────────────┐ opened ┌─────────┐ synced ┌───────────┐
    │ CONNECTING ├───────►│ SYNCING ├───────►│ LISTENING │
    └──▲───┬─────┘        └────┬────┘        └─────┬─────┘
       │   │ refused           │ lost              │ lost
   due │   ▼                   ▼                   │
    ┌──┴───────┐◄──────────────┴───────────────────┘
    │ WAITING  │                    any state: stop ──► STOPPED
    └──────────┘

SYNCING means that a session is open and the server has not yet acknowledged every LISTEN and
delivered the first canary; only from LISTENING on is anything promised.

The state alone does not say when a link is lost.  Seven machines do, each of them a class in
``machines.py``, and :class:`Condition` holds them together.  Whatever can change the state of a
link is in this package; the code that owns a socket reports what happened, and does what is due.

Attempts
    When to connect, until when an attempt may take, and how long to wait after a failure.

Exchange
    The one statement of ours that the server has.  It must answer by a deadline.  An answer comes
    behind whatever the server sends before it, so a flood makes it late without anything being
    wrong.  Therefore each sign of life puts the deadline off, as long as the flood can be the cause
    (:attr:`Condition.may_lag`).

Canary
    A notification on a channel of our own, committed on another connection.  It shows that
    notifications get through, which an answered statement does not: a pooler may answer, and a
    proxy may drop what no client asked for.  While the link is idle one is sent every
    ``probe_interval``; those of other reactors count, too.

        RESTING ──ask──► ASKED ──committed──► SENT ──late──► DOUBTED ──round trip──► TRIED
           ▲               │ failed             │ arrived       │ arrived              │ arrived
           └───────────────┴────────────────────┴───────────────┴──────────────────────┘

    One that is late decides nothing yet.  A round trip does: no answer means that the session is
    *silent*; an answer while the canary is still missing means that it is *deaf*.  Both halves
    together take no longer than ``probe_timeout``.

    It also decides the opposite case: something arrives, but the answer does not.  If half of the
    time has passed, a canary is sent.  If it comes promptly, the session does not lag, so what we
    send gets lost, and the deadline stands; if it is on its way for long, the session lags, and the
    deadline is put off.

Registrations
    The channels that the session listens to, as the server has acknowledged them, and those that it
    should listen to.  The difference is the next statement.

Proof
    Since when nothing can have been missed.  The beginning of every gap is read from it.

Past
    How many sessions there have been, and since when something has been missed.

What is due stands in one list, :class:`Due`, in the order in which it must be done: the end of an
attempt before a new one, the late answer before the next question.  :meth:`Condition.at` says when
each is due, and nothing else does: both "what is due now" and "when to look again" are read from
it, so that they cannot disagree.

There are two clocks.  What we do by ourselves is due by the time *now*.  What a server failed to do
is late only if it was due when the sockets were last read (*looked*): a program that was suspended
finds the answers waiting for it, and must not call them late before it has read them.

Times are seconds of a monotonic clock, :data:`NEVER` where nothing is due; the proof alone has the
time of the wall, as users see it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from pgsignals._pure.backoff import Backoff
from pgsignals._pure.states.machines import (
    LISTENS_AT_ONCE,
    NEVER,
    Attempts,
    Canaries,
    Canary,
    Exchange,
    Past,
    Proof,
    Registrations,
    Timing,
)
from pgsignals._pure.states.table import TRANSITIONS, Event, IllegalTransitionError, State, after

__all__ = [
    "LISTENS_AT_ONCE",
    "NEVER",
    "TRANSITIONS",
    "Attempts",
    "Canaries",
    "Canary",
    "Condition",
    "Due",
    "Event",
    "Exchange",
    "IllegalTransitionError",
    "Past",
    "Proof",
    "Registrations",
    "State",
    "Timing",
    "after",
]


class Due(enum.Enum):
    """What a link has to do by itself, in the order in which it is done."""

    CONNECT = "connect again"
    CONNECT_LATE = "give up an attempt"
    SEND = "try again to send a statement"
    ANSWER_LATE = "give up a silent session"
    LAG = "send a canary to find out whether the session lags"
    CANARY_UNSENT = "give up a canary that is not committed"
    CANARY_LATE = "doubt a session"
    TRY = "make the round trip that decides"
    PROBE = "make a round trip"
    CANARY = "send a canary"


#: What others failed to do, and we can only have noticed when we last looked.
OTHERS_DUTIES = frozenset({Due.ANSWER_LATE, Due.CANARY_UNSENT, Due.CANARY_LATE})


class Condition:
    """The state of a link, and what can change it."""

    def __init__(self, timing: Timing, backoff: Backoff, established: datetime) -> None:
        self.timing = timing
        self.state = State.CONNECTING
        self.attempts = Attempts(backoff, timing.connect)
        self.exchange = Exchange(timing.answer)
        self.canary = Canary(timing)
        self.registrations = Registrations()
        self.proof = Proof(established)
        self.past = Past()
        self.probe_at = NEVER  # the next round trip
        self._no_canary = False  # as the server said at once, so that none can show a lag

    def happen(self, event: Event) -> None:
        """Change the state.

        :raises IllegalTransitionError: *event* cannot happen now.
        """
        self.state = after(self.state, event)

    def begin_session(self) -> None:
        """A session has been opened."""
        self.happen(Event.OPENED)
        self.attempts.end()
        self.registrations.begin()
        self.expect_nothing()
        self.canary.begin()

    def expect_nothing(self) -> None:
        """No answer and no canary is on its way any more."""
        self.exchange.reset()
        self.canary.reset()
        self.probe_at = NEVER

    def resume(self) -> None:
        """A thread that hung has returned: what was put off may be done."""
        self.attempts.resume()
        self.canary.resume()

    # -- what is due -----------------------------------------------------------------------------

    def at(self, due: Due) -> float:
        """When *due* is to be done, as far as is known now."""
        return _AT[due](self)

    def due(self, now: float, looked: float) -> Iterator[Due]:
        """What is due, in order.  What one of them changes decides about those that follow.

        :param looked: when the sockets were last read.
        """
        for due in Due:
            if self.at(due) <= (looked if due in OTHERS_DUTIES else now):
                yield due

    def next(self) -> float:
        """When something will be due."""
        return min(self.at(due) for due in Due)

    # -- statements ------------------------------------------------------------------------------

    def sent(self, now: float) -> None:
        """Our statement has been sent."""
        self.exchange.sent(now)
        self._no_canary = False

    @property
    def may_lag(self) -> bool:
        """Whether an answer may be late because of what stands before it."""
        if self.state is not State.LISTENING or self.timing.probe_interval is None:
            return True
        return self.canary.travels or self._no_canary

    def note_life(self, now: float) -> None:
        """Something has arrived while an answer is awaited, which may stand behind a flood."""
        exchange = self.exchange
        exchange.alive = True
        if self.may_lag:
            exchange.extend(now)
        elif exchange.lag_at != NEVER:  # not known yet
            exchange.extend_half(now)

    def find_lag(self, now: float) -> bool:
        """Half of the time has passed; returns whether to send a canary to tell lag from loss.

        It must arrive before the deadline, also at a reader that waits for space.
        """
        self.exchange.lag_at = NEVER
        self.exchange.extend_half(now)
        if now < self.canary.not_before:
            self._no_canary = True
            return False
        return not self.canary.under_way

    # -- canaries --------------------------------------------------------------------------------

    def canary_arrived(self, now: float, share: float) -> bool:
        """A canary has arrived; returns whether it shows that a new session hears.

        :param share: see :meth:`Canary.arrived`.
        """
        self.proof.canary()
        ours = self.canary.under_way
        if self.canary.travels and self.exchange.with_server:
            self._judge_lag(now)
        self.canary.arrived(now, share)
        if ours and self.state is State.SYNCING:
            self.canary.shown = True
            return True
        return False

    def _judge_lag(self, now: float) -> None:
        """A canary has arrived before the answer that is awaited."""
        exchange, half = self.exchange, self.exchange.limit / 2
        if now - self.canary.sent_at > half:  # late, so the answer may well be, too: look again
            exchange.extend(now)
            exchange.lag_at = now
        else:
            exchange.answer_by = max(exchange.sent_at + exchange.limit, now + half)
            exchange.lag_at = NEVER

    def canary_failed(self, now: float, *, refused: bool) -> None:
        """It could not be committed.

        :param refused: the server, or something before it, said so, instead of being silent.
        """
        promptly = now - self.canary.asked_at < self.timing.probe_timeout / 2
        self._no_canary = refused and promptly
        self.canary.failed(now)

    def listened(self, listen: Iterable[str], unlisten: Iterable[str]) -> None:
        """The server has acknowledged a statement of ours, which no canary has shown yet."""
        self.registrations.acknowledged(listen, unlisten)
        self.canary.shown = False


def _lag_at(condition: Condition) -> float:
    exchange = condition.exchange
    late = exchange.alive and exchange.with_server and not condition.may_lag
    return exchange.lag_at if late else NEVER


def _try_at(condition: Condition) -> float:
    doubted = condition.canary.where is Canaries.DOUBTED
    return 0.0 if doubted and not condition.exchange.pending else NEVER


def _canary_at(condition: Condition) -> float:
    idle = condition.state is State.LISTENING and not condition.canary.under_way
    return condition.canary.at if idle else NEVER


_AT: dict[Due, Callable[[Condition], float]] = {
    Due.CONNECT: lambda one: one.attempts.at if one.state is State.WAITING else NEVER,
    Due.CONNECT_LATE: lambda one: one.attempts.late_at,
    Due.SEND: lambda one: one.exchange.send_at,
    Due.ANSWER_LATE: lambda one: one.exchange.answer_by,
    Due.LAG: _lag_at,
    Due.CANARY_UNSENT: lambda one: one.canary.unsent_at,
    Due.CANARY_LATE: lambda one: one.canary.late_at,
    Due.TRY: _try_at,
    Due.PROBE: lambda one: NEVER if one.exchange.pending else one.probe_at,
    Due.CANARY: _canary_at,
}
