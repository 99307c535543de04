"""The machines whose deadlines and discoveries change the state of a link: one class each.

Each is a few numbers and what may happen to them.  What one means for another stands in
:class:`~pgsignals._pure.states.Condition`.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

from pgsignals._pure.backoff import Backoff
from pgsignals._pure.names import PROBE_CHANNEL

NEVER = float("inf")

#: Seconds for an attempt to connect where probing is off.
CONNECT_LIMIT = 15.0

#: Seconds for an attempt to connect, however rare the probes are.
LONGEST_CONNECT = 600.0

#: Seconds for the answer to a statement where probing is off.
ANSWER_LIMIT = 15.0

#: Seconds until a statement of ours tries again for a connection that other code is using.
OTHERS_REST = 0.1

#: Seconds until another look where threads hang, of which one may return unheard.
LOOK_AT_HANGING = 1.0

#: LISTENs of one statement: few round trips, and small enough for any socket's buffer.
LISTENS_AT_ONCE = 200


@dataclass(frozen=True)
class Timing:
    """How long a link waits for what, in seconds."""

    probe_interval: float | None
    """Between two probes; None for none."""

    probe_timeout: float
    """For the proof that a session is alive."""

    @property
    def answer(self) -> float:
        """For the answer to a statement."""
        return ANSWER_LIMIT if self.probe_interval is None else self.probe_timeout

    @property
    def connect(self) -> float:
        """For an attempt to connect: one that takes longer has failed, whatever the cause."""
        if self.probe_interval is None:
            return CONNECT_LIMIT
        return min(self.probe_interval + self.probe_timeout, LONGEST_CONNECT)


class Attempts:
    """When to connect.  An attempt runs on another thread, and its outcome may come too late: it
    counts only for the attempt that is current."""

    def __init__(self, backoff: Backoff, limit: float) -> None:
        self.backoff = backoff
        self.limit = limit
        self.current = 0
        self.due_at = NEVER
        self.late_at = NEVER
        self._put_off = 0.0  # until then threads hang

    def begin(self, now: float) -> int:
        """Begin one, and return its number."""
        self.current += 1
        self.due_at, self.late_at = NEVER, now + self.limit
        return self.current

    def end(self) -> None:
        """What is still on its way is no longer wanted."""
        self.current += 1
        self.late_at = NEVER

    def retry(self, now: float, rng: random.Random, *, slowly: bool) -> float:
        """Schedule the next one, and return in how many seconds it is.

        :param slowly: see :meth:`Backoff.next_delay`.
        """
        delay = self.backoff.next_delay(rng, slowly=slowly)
        self.due_at = now + delay
        return delay

    def put_off(self, now: float) -> None:
        """Threads hang: look again a while later."""
        self._put_off = now + LOOK_AT_HANGING

    def resume(self) -> None:
        """A thread that hung has returned."""
        self._put_off = 0.0

    @property
    def at(self) -> float:
        """When the next one is due."""
        return max(self.due_at, self._put_off)


class Exchange:
    """The one statement of ours that the server has, or is still to get."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._share = 1.0  # of the limit
        self.pending = False  # an answer is awaited, or the statement still has to be sent
        self.sent_at = 0.0  # the last one
        self.answer_by = NEVER  # NEVER before it has been sent
        self.send_at = NEVER  # when to try again to send it
        self.delivered = 0.0  # what had been committed by then has been delivered
        self.alive = False  # something has arrived since it was sent
        self.lag_at = NEVER  # when to find out whether the session lags; NEVER if it is known
        self._others_since: float | None = None

    def ask(self, share: float = 1.0) -> None:
        """Have a statement that must be sent.

        :param share: of the time that a server has for an answer.
        """
        self.pending, self._share = True, share
        self.answer_by = self.send_at = NEVER

    def sent(self, now: float) -> None:
        """It has been sent."""
        self.sent_at = now
        self.answer_by = now + self.limit
        self.lag_at = now + self.limit / 2
        self.send_at = NEVER
        self.alive = False

    def hand_over(self, now: float) -> None:
        """A thread is to send it when the connection is free."""
        self.sent_at, self.send_at = now, NEVER

    def answered(self) -> None:
        """It is answered."""
        self.delivered = self.sent_at
        self.pending, self._others_since = False, None
        self.answer_by = self.send_at = NEVER

    def reset(self) -> None:
        """No answer is awaited any more."""
        self.pending, self._others_since = False, None
        self.answer_by = self.send_at = NEVER

    @property
    def limit(self) -> float:
        """How long a server may be silent while an answer is awaited."""
        return self._limit * self._share

    @property
    def with_server(self) -> bool:
        """Whether the server has it, and has not answered."""
        return self.answer_by != NEVER

    def wait_for_others(self, now: float) -> float:
        """Other code uses the connection: try again later.

        :returns: for how long that has been so.
        """
        if self._others_since is None:
            self._others_since = self.sent_at
        self.send_at = now + OTHERS_REST
        return now - self._others_since

    def extend(self, now: float) -> None:
        """It has as long again."""
        self.answer_by = now + self.limit

    def extend_half(self, now: float) -> None:
        """It has half as long again, or what it has if that is more."""
        by = 0.0 if self.answer_by == NEVER else self.answer_by
        self.answer_by = max(by, now + self.limit / 2)


class Canaries(enum.Enum):
    """Where our canary is."""

    RESTING = "none is under way"
    ASKED = "a thread is to commit one"
    SENT = "committed"
    DOUBTED = "late"
    TRIED = "late, and a round trip decides"


class Canary:
    """The notification to ourselves that shows that notifications get through."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self.where = Canaries.RESTING
        self.shown = False  # one has arrived since the last LISTEN of a session not announced yet
        self.seen_at = 0.0  # the last one, anyone's
        self.share = 0.9  # of the interval, until the next one
        self.not_before = 0.0  # put off after a refused login
        self.asked_at = 0.0
        self.sent_at = 0.0
        self._put_off = 0.0  # until then threads hang

    def begin(self) -> None:
        """A new session."""
        self.seen_at = self.not_before = 0.0
        self.reset()

    def reset(self) -> None:
        """None is under way, and none has shown anything."""
        self.where, self.shown = Canaries.RESTING, False

    def ask(self, now: float) -> None:
        """A thread is asked to commit one."""
        self.where, self.asked_at = Canaries.ASKED, now

    def is_awaited(self, asked_at: float) -> bool:
        """Whether the one that was asked for then is still to be committed."""
        return self.where is Canaries.ASKED and self.asked_at == asked_at

    def committed(self, now: float) -> None:
        """It has been committed."""
        self.where, self.sent_at = Canaries.SENT, now

    def failed(self, now: float) -> None:
        """It could not be committed: not a loss; the next one is an interval away."""
        self.where, self.seen_at = Canaries.RESTING, now

    def lost(self) -> None:
        """The registration that it was to arrive on was lost: send another one soon."""
        self.where, self.seen_at = Canaries.RESTING, 0.0

    def doubt(self) -> None:
        """It is late."""
        self.where = Canaries.DOUBTED

    def tried(self) -> None:
        """The round trip that decides is under way."""
        self.where = Canaries.TRIED

    def arrived(self, now: float, share: float) -> None:
        """One has arrived, ours or another reactor's.

        :param share: of the interval until the next one: random, so that of many reactors only the
            first one to miss a canary sends the next.
        """
        self.where, self.seen_at, self.share = Canaries.RESTING, now, share

    def put_off(self, now: float) -> None:
        """Threads hang: look again a while later."""
        self._put_off = now + LOOK_AT_HANGING

    def resume(self) -> None:
        """A thread that hung has returned."""
        self._put_off = 0.0

    @property
    def under_way(self) -> bool:
        """Whether one was asked for, and has neither arrived nor failed."""
        return self.where is not Canaries.RESTING

    @property
    def travels(self) -> bool:
        """Whether one has been committed and has not arrived."""
        return self.where in (Canaries.SENT, Canaries.DOUBTED, Canaries.TRIED)

    @property
    def at(self) -> float:
        """When the next one is due, if none is under way and the link is listening."""
        if self._timing.probe_interval is None:
            return NEVER
        due = self.seen_at + self._timing.probe_interval * self.share
        return max(due, self.not_before, self._put_off)

    @property
    def unsent_at(self) -> float:
        """When one that is not committed counts as failed."""
        asked = self.where is Canaries.ASKED
        return self.asked_at + self._timing.connect if asked else NEVER

    @property
    def late_at(self) -> float:
        """When one that has not arrived is late: the link has been idle for half of the time, as a
        round trip at once would make a pooler deliver it."""
        sent = self.where is Canaries.SENT
        return self.sent_at + self._timing.probe_timeout / 2 if sent else NEVER


class Registrations:
    """What a session listens to, and what it should."""

    def __init__(self) -> None:
        self.wanted: frozenset[str] = frozenset()  # by handlers and by listen()
        self.kept: frozenset[str] = frozenset()  # what its owner listened to before us
        self.active: set[str] = set()  # acknowledged
        self.foreign: set[str] = set()  # what other code made our session listen to
        self.unspeakable: set[str] = set()  # what the client's encoding cannot hold

    def begin(self) -> None:
        """A new session, which listens to nothing."""
        self.active, self.foreign, self.unspeakable = set(), set(), set()

    def keep(self, channels: Iterable[str]) -> None:
        """The session has an owner, who listens to these."""
        self.kept = frozenset(channels)
        self.active = set(self.kept)

    @property
    def target(self) -> set[str]:
        """What the session should listen to."""
        return {*self.wanted, *self.kept, PROBE_CHANNEL} - self.unspeakable

    def next(self) -> tuple[list[str], list[str]]:
        """What the next statement must LISTEN and UNLISTEN; both empty if nothing is left to do."""
        target = self.target
        listen = sorted(target - self.active)[:LISTENS_AT_ONCE]
        return listen, sorted(self.active - target - self.unspeakable)[:LISTENS_AT_ONCE]

    def acknowledged(self, listen: Iterable[str], unlisten: Iterable[str] = ()) -> None:
        """The server has done so."""
        self.active.update(listen)
        self.active.difference_update(unlisten)

    def compare(self, heard: Collection[str]) -> set[str]:
        """The server says what the session listens to; returns what it has lost, which is no longer
        registered here either."""
        missing = self.active - set(heard)
        self.foreign = set(heard) - self.active
        self.active -= missing
        return missing

    @property
    def all(self) -> set[str]:
        """What the session should be listening to by now, our own and others'."""
        return self.active | self.foreign

    @property
    def ours(self) -> list[str]:
        """What must be given up when the session goes back to its owner."""
        return sorted((self.active | self.target) - self.kept)


class Proof:
    """Since when nothing can have been missed.

    The server sends what is pending before it answers, so whatever was committed before a round
    trip was sent has been delivered when its answer is read, as far as the session still listens:
    an answer counts when it says so.  It proves nothing behind a pooler that gave our registration
    to another client; the next canary does.
    """

    def __init__(self, established: datetime) -> None:
        self.since = established
        self._sent: datetime | None = None
        self._answered: datetime | None = None

    def sent(self, now: datetime) -> None:
        """A round trip leaves."""
        self._sent = now

    def answered(self) -> None:
        """It is answered, and the session listens to all that it should."""
        self._answered = self._sent

    def canary(self) -> None:
        """A canary has arrived."""
        if self._answered is not None:
            self.since = self._answered


class Past:
    """The sessions so far."""

    def __init__(self) -> None:
        self.sessions = 0  # announced
        self.missed_since: datetime | None = None  # None while nothing has been missed
        self.up_since = 0.0

    def synced(self, now: float) -> bool:
        """A session is announced; returns whether it is not the first."""
        self.sessions += 1
        self.up_since = now
        return self.sessions > 1

    def lost(self, proven: datetime) -> None:
        """An announced session is lost, until which everything is proven since *proven*."""
        self.missed_since = self.missed_since or proven

    def resumed(self, proven: datetime) -> datetime:
        """The beginning of the gap before the session that is announced now."""
        since, self.missed_since = self.missed_since or proven, None
        return since
