"""A link: one database that a reactor watches, over as many sessions as it takes.

Everything here runs on the reader's thread and never blocks: statements are sent and their
answers taken up when they come, against deadlines that the reader keeps.  What could block
(connecting, the control connection) is handed to other threads.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Literal, Protocol, TypeAlias

from pgsignals._dispatch.workers import Plan
from pgsignals._pure.backoff import Backoff
from pgsignals._pure.burst import Burst
from pgsignals._pure.lanes import Drops, Hold, Outcome, Policy
from pgsignals._pure.names import PROBE_CHANNEL
from pgsignals._pure.statements import (
    LISTENING,
    PARTS,
    QUEUE_HOLDERS,
    UNGUARD,
    WHO,
    describe_holder,
    digest_of,
    guard,
    listen_sql,
    round_trip,
)
from pgsignals._pure.states import Event, Proof, State, after
from pgsignals._pure.values import Notification
from pgsignals._runtime.log import Log
from pgsignals._sources.counters import Counters
from pgsignals._sources.reports import DatabaseStatus, Gap
from pgsignals._wire.opening import needs_care
from pgsignals._wire.results import Result
from pgsignals._wire.session import Session
from pgsignals._wire.sessions import Control
from pgsignals.database import Database
from pgsignals.errors import (
    ConnectError,
    ConnectionLostError,
    ConnectionStateError,
    Error,
    PoolerError,
    StandbyError,
    UnsupportedServerError,
)

logger = Log("pgsignals.reactor")

Reason: TypeAlias = Literal["ended", "silent", "deaf"]

#: LISTENs of one statement: few round trips, and small enough for any socket's buffer.
LISTENS_AT_ONCE = 200

#: Seconds for an attempt to connect where probing is off.
CONNECT_LIMIT = 15.0

#: Seconds for an attempt to connect, however rare the probes are.
LONGEST_CONNECT = 600.0

#: Threads of one kind that may hang for one database: two, as the first may be the only one that
#: hangs; and how often to look whether one of another reactor's life has returned, in seconds.
HANGING = 2
LOOK_AT_HANGING = 1.0

#: Threads of one kind that may be out for one database, whether they hang or not: lives that are
#: started and stopped again and again leave theirs behind.
MOST_OUT = 16

#: How soon to try again to send what a full socket did not take, in seconds.
UNSENT = 0.02

#: A round trip of the setup has this long where probing is off.
SETUP_LIMIT = 15.0

#: How long a statement of ours waits for another's on a shared connection, and how soon it tries
#: again after that, in seconds.
OTHERS_PATIENCE = 1.0
OTHERS_REST = 0.1

#: SQLSTATEs with which a server refuses for good: no permission (42501), no such function, type,
#: setting or syntax (42883, 42704, 42P01, 42601 ...), no such feature (0A000), a name that has no
#: text in the encoding that is asked for (22021, 22P05).
FOR_GOOD = ("42", "0A", "22021", "22P05")

#: What each part of a round trip is for.
DOES = dict(
    zip(PARTS, ("watching the queue", "seeing a standby", "seeing lost registrations"), strict=True)
)

#: What is read at once, see :data:`pgsignals._wire.session.READS`: more than by a manager, as each
#: hand-over to another thread costs as much as dozens of notifications.
READS = 32

#: Notifications of a flood that are read at once.
SHARE = 8192

#: Of the queue; the server itself warns from a half on.
QUEUE_ALARM = 0.25

#: The oldest server that knows all of what a reactor sets on its session.
OLDEST_SERVER = 140000


def now_utc() -> datetime:
    """This machine's clock, aware."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Settings:
    """What links keep to; times in seconds."""

    name: str
    backoff: tuple[float, float]
    probe_interval: float | None
    probe_timeout: float
    max_backlog: int
    overflow: Policy


class Events(Protocol):
    """Receives what happens to a link, on the reader's thread: upward, as handlers are above."""

    def connected(self, link: Link, resumed: bool) -> None: ...
    def lost(self, link: Link, reason: Reason, error: ConnectionLostError) -> None: ...
    def gap(self, link: Link, gap: Gap) -> None: ...
    def overflowed(self, link: Link, gap: Gap) -> None: ...


class Care(Protocol):
    """The reader, as its links see it: upward, as only the reader may touch the selector and knows
    what the reactor is doing.  Links write none of its attributes."""

    @property
    def events(self) -> Events: ...
    @property
    def rng(self) -> random.Random: ...
    @property
    def starting(self) -> bool:
        """Whether an error still makes the start fail."""

    @property
    def stopping(self) -> bool: ...
    def recheck(self) -> None:
        """Have :meth:`Link.tick` called in this turn, whatever :meth:`Link.next_tick` said."""

    def wake_by(self, deadline: float) -> None:
        """The same no later than *deadline*, as ``time.monotonic()``; from any thread."""

    def watch(self, link: Link) -> None:
        """Watch the session that *link* has adopted."""

    def read_soon(self, link: Link) -> None:
        """Drain *link* in the next turn, whatever its socket says; from any thread."""

    def command(self, run: Callable[[], None]) -> None:
        """Have *run* called on the reader's thread; from any thread."""

    def spawn(
        self, what: str, run: Callable[[], None], failed: Callable[[Exception], None]
    ) -> None:
        """Call *run*, which may block, on a thread of its own."""

    def wake_waiters(self) -> None:
        """:attr:`Link.settled` has changed."""


@dataclass(eq=False)
class _Question:
    """A statement of ours, sent or still to be sent."""

    sql: str
    then: Callable[[list[Result]], None]
    """Is given the answer."""
    refused: Callable[[Result], None] | None
    """Is given a permanent error; None to give the session up, as for any other error."""
    share: float
    """Of the time that a server has for an answer."""


class Link:
    """One database that a reader watches; the reader's thread runs its methods.

    It is what the reader's :class:`~pgsignals.NotificationManager` watches.
    """

    def __init__(self, database: Database, reader: Care, settings: Settings) -> None:
        self.database = database
        self.control = Control(database._access, self._control_used)
        self.state = State.CONNECTING
        self.session: Session | None = None
        self.kept: frozenset[str] = frozenset()  # what its owner listened to before us
        self.lent = False
        self._borrowed = False  # its owner gets a session back, be it another one
        self.error: Exception | None = None  # why it cannot go on
        self.plans: dict[str, Plan] = {}
        self.settled = 0  # the request up to which LISTENs are acknowledged
        self._wanted: Collection[str] = ()  # the channels that have been asked for last
        self._request = 0  # by this request
        self.retry_at = self.connect_by = 0.0
        self.counters = Counters()
        self.probe_seconds: float | None = None
        self.queue_usage: float | None = None
        self.last_error: str | None = None
        self.dropped_early: Drops | None = None  # before what was drained last
        self.notifies_later = False  # a handler has, in a transaction whose commit we do not see
        self._reader = reader
        self._settings = settings
        self._told_hanging: set[str] = set()
        self._backoff = Backoff(*settings.backoff)
        self._attempt = 0
        self._sessions = 0
        self._up_since = 0.0
        self._active: set[str] = set()
        self._foreign: set[str] = set()  # channels that other code made our session listen to
        self._proof = Proof(now_utc())
        self.proven_since = self._proof.since  # what was committed before has been delivered
        self._missed_since: datetime | None = None
        self._held = Hold(settings.max_backlog, settings.overflow)
        self._collected: deque[Notification] = deque()
        self._question: _Question | None = None  # its answer, or its turn, is awaited
        self._answer_by: float | None = None  # None before it has been sent
        self._asked = 0.0  # when, as time.monotonic()
        self._lives = False  # something has come since it was sent
        self._lag_at: float | None = None  # when to find out whether the session lags
        self._cannot_tell = False  # as no canary could be sent, which a server said at once
        self._again_at: float | None = None  # when to try to send it again
        self._in_others_hands: float | None = None  # since when it waits for others' statements
        self._told_of_others = False
        self._parts: frozenset[str] = frozenset(PARTS)  # what the server lets us probe
        self._refused: dict[str, str] = {}  # what it does not, and why
        self._told_refused: frozenset[str] = frozenset()
        self._unspeakable: set[str] = set()  # channels that the client's encoding cannot hold
        self._canary_shown = False  # it has come, while the next statement was under way
        self._canary_trouble: str | None = None  # the last one that was told
        self._fetched = 0.0  # what had been committed by then has been delivered
        self._behind_pooler = False
        self._reason: Reason = "ended"
        self._why: str | None = None
        self._probe_at: float | None = None
        self._canary_seen = 0.0
        self._canary_rests = 0.0  # no other one before that, as its login was refused
        self._canary_asked: float | None = None  # when, while one is on its way
        self._canary_by: float | None = None  # it has been committed and should arrive by then
        self._committed = 0.0  # when that was
        self._doubted = False  # it has not: the next round trip decides between deaf and silent

    # -- as a member of the manager --------------------------------------------------------------

    def fileno(self) -> int:
        return self.session.fileno() if self.session else -1

    @property
    def closed(self) -> bool:
        return self.session is None or self.session.closed

    @property
    def more(self) -> bool:
        return self.session is not None and self.session.more and not self.session.ended

    @property
    def handed_out(self) -> bool:
        return self.session is not None and self.session.shared

    @property
    def contended(self) -> bool:
        return self.session is not None and self.session.contended

    def add_watcher(self, watcher: object) -> None:
        """Nothing arrives but through the socket, which only the reader touches."""

    def remove_watcher(self, watcher: object) -> None:
        """See :meth:`add_watcher`."""

    def drain(self) -> Burst:
        """What the socket has for users."""
        try:
            return self._drain()
        except Exception as exc:  # noqa: BLE001 - a bug of ours costs this session alone
            self._misfortune(exc)
            return Burst()

    def _drain(self) -> Burst:
        session = self.session
        if session is None:
            return Burst()
        self.proven_since = self._proof.since  # before what this read may prove
        session.attentive = self._answer_by is not None
        # At the end, all that is there.
        burst = Burst()
        session.read_into(burst, sys.maxsize if self._reader.stopping else SHARE, READS)
        if self._answer_by is not None and (burst or session.heard):
            self._note_life(time.monotonic())
        session.heard = False
        if session.may_have_canary() and PROBE_CHANNEL in burst.channels:
            self._reader.recheck()
            burst = Burst(one for one in burst if one.channel != PROBE_CHANNEL)
            self._canary_arrived()
        while session.answers and not session.ended:
            self._reader.recheck()
            self._answered(session.answers.popleft())
        if self.state is State.SYNCING:
            self._reader.recheck()
            self._held.put(burst, self.proven_since, now_utc())
            return Burst()
        if self._held:
            received = self._held.received
            held, self.dropped_early = self._held.take(self.proven_since, now_utc())
            self.counters.received += received - len(held)  # the rest is counted when it is queued
            held += burst
            return held
        return burst

    def _collected_more(self) -> None:
        """The owner of a wrapped connection has run a statement on it, against our advice."""
        self._reader.read_soon(self)

    def _control_used(self) -> None:
        self._reader.wake_by(time.monotonic() + self._settings.probe_timeout)

    # -- as a source of the backlog --------------------------------------------------------------

    #: Plain handlers are called as they are: there is nothing to acknowledge.
    around = None

    def settle(self, notifications: Sequence[Notification], outcome: Outcome = None) -> None:
        if outcome is None:
            self.counters.note_dispatched(len(notifications))
        else:
            self.counters.note_failed()

    def dropped(self, count: int) -> None:
        self.counters.dropped += count

    def overflowed(self, drops: Drops) -> None:
        self.counters.note_gap()
        channels = frozenset(drops.channels)
        until = max(drops.since, drops.until)  # a clock may be set back
        gap = Gap(self.database, "overflow", drops.since, until, drops.count, channels)
        self._reader.events.overflowed(self, gap)

    # -- its life --------------------------------------------------------------------------------

    def happen(self, event: Event) -> None:
        """Change the state."""
        self.state = after(self.state, event)

    def guarded(self, run: Callable[[], None]) -> None:
        """Run a step of this link; an exception costs this link's session, and no other link's."""
        try:
            run()
        except Exception as exc:  # noqa: BLE001 - see above
            self._misfortune(exc)

    def _command(self, run: Callable[[], None]) -> None:
        self._reader.command(lambda: self.guarded(run))

    def _spawn(
        self, what: str, run: Callable[[], None], failed: Callable[[Exception], None]
    ) -> None:
        """Run what may hang for ever in a user's ``connect=`` on a thread besides the reader."""
        self._told_hanging.discard(what)
        errands, this = self.database._access.errands.setdefault(what, {}), object()
        errands[this] = time.monotonic()

        def errand() -> None:
            try:
                run()
            finally:
                errands.pop(this, None)
                self._reader.command(lambda: None)  # another one may wait for us

        def none(error: Exception) -> None:
            errands.pop(this, None)
            self.guarded(lambda: failed(error))

        self._reader.spawn(what, errand, none)

    def _hang(self, what: str) -> bool:
        """Whether so many threads of a kind hang that another one would only hang, too; says so
        once."""
        if not self._hanging(what, time.monotonic()):
            return False
        if what not in self._told_hanging:
            self._told_hanging.add(what)
            self.last_error = (
                f"{HANGING} threads hang in connect= or in libpq ({what}); "
                "no more are started until one of them returns"
            )
            logger.warning("%s: %s", self.database.name, self.last_error)
        return True

    def _hanging(self, what: str, now: float) -> bool:
        """Whether :data:`HANGING` of them have been out for longer than an attempt may take, or so
        many are out that the limit would not hold."""
        begun = list(self.database._access.errands.get(what, {}).values())
        late = sum(now - at >= self._connect_limit for at in begun)
        return late >= HANGING or len(begun) >= MOST_OUT

    def _misfortune(self, error: Exception) -> None:
        """A step of ours has raised: give the session up, and begin with another one."""
        self.last_error = f"bug in pgsignals: {type(error).__name__}"
        logger.critical("%s: %s", self.database.name, self.last_error, exc_info=error)
        if self._reader.starting or self.database.wrapped:
            self.error = self.error or error
        if self.session is not None and not self.session.ended:
            self.fail("ended", self.last_error)
            self.session.leave()
            self._reader.read_soon(self)  # ended() follows
        elif self.state is not State.STOPPED and self.error is None:
            self._begin_anew()

    def _begin_anew(self) -> None:
        """Where :meth:`ended` or an attempt has raised, and nothing else would follow."""
        session, self.session = self.session, None
        if session is not None:
            session.close()
        if self.state is State.LISTENING:
            self._missed_since = self._missed_since or self._proof.since
            self._reader.events.lost(self, "ended", ConnectionLostError(self.last_error or ""))
        self.state = State.WAITING
        self._attempt += 1
        self._expect_nothing()
        self._retry_later(self.last_error or "")

    def connect(self) -> None:
        """Begin an attempt, on a thread of its own."""
        if self._reader.starting and self._hang("connect"):
            self.refused(ConnectError(self.last_error or ""))
            return
        self._attempt += 1
        limit = self._connect_limit
        self.connect_by = time.monotonic() + limit
        attempt = self._attempt

        def run() -> None:
            error: Exception | None = None
            session = None
            try:
                session = self.database._access.open(limit)
            except Exception as exc:  # noqa: BLE001 - whatever a user's connect= raises
                error = exc
            self._command(lambda: self.opened(attempt, session, error))

        self._spawn("connect", run, lambda exc: self.opened(attempt, None, exc))

    @property
    def _connect_limit(self) -> float:
        """An attempt that takes longer has failed, whatever the cause."""
        interval = self._settings.probe_interval
        if interval is None:
            return CONNECT_LIMIT
        return min(interval + self._settings.probe_timeout, LONGEST_CONNECT)

    def opened(self, attempt: int, session: Session | None, error: Exception | None) -> None:
        """The outcome of an attempt."""
        if attempt != self._attempt or self.state is not State.CONNECTING:
            if session is not None:
                session.close()
        elif session is None:
            self.refused(error or ConnectError(f"{self.database.name}: no reason given"))
        else:
            self.adopt(session)

    def borrow(self, session: Session) -> None:
        """Begin with a session that belongs to its owner."""
        self.lent = self._borrowed = True
        self.adopt(session)

    def adopt(self, session: Session) -> None:
        """Make *session* the listening one."""
        self.happen(Event.OPENED)
        self.session = session
        session.deliver(self._collected, self._collected_more)
        self._active, self._foreign = set(), set()
        self._held = Hold(self._settings.max_backlog, self._settings.overflow)
        self._parts, self._refused = frozenset(PARTS), {}
        self._unspeakable = set()
        self._expect_nothing()
        self._canary_seen = self._canary_rests = 0.0
        self._reason, self._why = "ended", None
        self._behind_pooler = False
        self._reader.watch(self)
        self._submit(WHO, self._set_up, refused=self._set_up_blindly)

    def _expect_nothing(self) -> None:
        """No answer and no canary is on its way on this session."""
        self._question = self._answer_by = self._again_at = self._probe_at = None
        self._in_others_hands, self._told_of_others = None, False
        self._canary_shown = False
        self._canary_asked, self._canary_by, self._doubted = None, None, False

    def refused(self, error: Exception) -> None:
        """An attempt has failed."""
        self._attempt += 1  # what is still on its way is not wanted any more
        self.happen(Event.REFUSED)
        # What a user's connect= raises may hold a secret in its text: ours do not.
        ours = isinstance(error, Error)
        self.last_error = str(error) if ours else f"connect= raised {type(error).__name__}"
        if self._reader.starting or self.database.wrapped:
            if not ours:
                error.add_note(f"raised while pgsignals connected {self.database.name}")
            self.error = error
            return
        self._retry_later(self.last_error, slowly=needs_care(error))

    def _retry_later(self, why: str, *, slowly: bool = False) -> None:
        delay = self._backoff.next_delay(self._reader.rng, slowly=slowly)
        self.retry_at = time.monotonic() + delay
        logger.warning(
            "%s: %s; attempt %d in %.1f s",
            self.database.name,
            self._bare(why),
            self._backoff.failures,
            delay,
        )

    def _bare(self, text: str) -> str:
        """*text* without the name of this database, which precedes it in the log."""
        return text.removeprefix(f"{self.database.name}: ")

    def fail(self, reason: Reason, why: str) -> None:
        """Give the session up: its socket is shut down, and :meth:`ended` follows at once."""
        if self.session is not None and self._why is None:
            self._reason, self._why = reason, why
            self.session.shutdown()

    def ended(self) -> None:
        """The session has ended, and what it had received has been queued."""
        session = self.session
        if session is None:
            return
        self.session = None
        self.database._access.losses += 1
        session.close()
        error = session.lost()
        if self._why is not None:
            error = ConnectionLostError(
                f"the session with {self.database.name} is given up: {self._why}",
                sqlstate=session.sqlstate,
            )
        self.last_error = str(error)
        announced = self.state is State.LISTENING
        self.happen(Event.LOST)
        self._expect_nothing()
        if announced:
            self._missed_since = self._missed_since or self._proof.since
            self._backoff.ended_after(time.monotonic() - self._up_since)
            self._reader.events.lost(self, self._reason, error)
        self._acknowledged()
        if self._reader.starting or self.database.wrapped or self.error is not None:
            self.error = self.error or error
        elif not self._reader.stopping:
            self._retry_later(f"lost ({self._reason}): {self._why or session.why_lost}")

    # -- setting up: who answers, guards, LISTEN, canary -----------------------------------------

    def _submit(
        self,
        sql: str,
        then: Callable[[list[Result]], None],
        *,
        refused: Callable[[Result], None] | None = None,
        share: float = 1.0,
    ) -> None:
        self._question = _Question(sql, then, refused, share)
        self._send(self._question)

    def _send(self, question: _Question) -> None:
        session = self.session
        if session is None:
            return
        self._again_at = None
        self._asked = time.monotonic()
        if session.shared:
            self._ask_beside(session, question)
        else:
            self._await_answer(self._asked)
            session.submit(question.sql)
            self._check_sent(session)

    def _await_answer(self, now: float) -> None:
        self._asked = now
        self._answer_by = now + self._answer_limit
        self._lag_at = now + self._answer_limit / 2
        self._lives = self._cannot_tell = False

    @property
    def _answer_limit(self) -> float:
        """How long a server may be silent while an answer is awaited."""
        limit = self._settings.probe_timeout if self._settings.probe_interval else SETUP_LIMIT
        return limit * (self._question.share if self._question else 1.0)

    def _note_life(self, now: float) -> None:
        """Something has come while an answer is awaited, which may stand behind a flood.

        Or it never comes, as what we send does not get there.  A canary tells: one that is on its
        way for long shows that the session lags; one that arrives promptly, that it does not.
        """
        self._lives = True
        limit = self._answer_limit
        by = self._answer_by or 0.0
        if self._may_lag:
            self._answer_by = now + limit
        elif self._lag_at is not None:  # not known yet
            self._answer_by = max(by, now + limit / 2)

    @property
    def _may_lag(self) -> bool:
        """Whether an answer may be late because of what stands before it."""
        if self.state is not State.LISTENING or self._settings.probe_interval is None:
            return True
        return self._canary_travels or self._cannot_tell

    @property
    def _canary_travels(self) -> bool:
        """Whether one has been committed, and has not arrived."""
        return self._canary_by is not None or self._doubted

    def _ask_beside(self, session: Session, question: _Question) -> None:
        """Ask on a connection in others' hands, with a thread that waits until it is free."""

        def is_asked() -> bool:
            return self.session is session and self._question is question

        def sends(now: float) -> None:
            if is_asked():
                self._await_answer(now)

        def asked(sent: bool) -> None:
            if not is_asked():
                return
            if sent:
                self._in_others_hands, self._told_of_others = None, False
                self._reader.read_soon(self)
            else:
                self._wait_for_others(time.monotonic())

        def begins() -> None:
            self._command(partial(sends, time.monotonic()))

        def run() -> None:
            done = False
            try:
                done = session.ask(question.sql, OTHERS_PATIENCE, begins)
            except Exception as exc:  # noqa: BLE001 - of ours, and to be told on the reader
                error = exc
                self._command(lambda: self._misfortune(error))
            self._command(lambda: asked(done))

        self._spawn("statement", run, lambda _: asked(False))

    def _wait_for_others(self, now: float) -> None:
        """Other code runs a statement, or is in a transaction: nothing can be asked, and nothing
        arrives, until that has ended."""
        since = self._in_others_hands = self._in_others_hands or self._asked
        self._again_at = now + OTHERS_REST
        if now - since < self._connect_limit or self._told_of_others:
            return
        self._told_of_others = True
        self.last_error = (
            f"the connection has been in use for {now - since:.0f} s by a statement or a "
            "transaction of its owner, and nothing arrives meanwhile"
        )
        logger.warning("%s: %s", self.database.name, self.last_error)
        if self._reader.starting:
            self.error = ConnectionStateError(f"{self.database.name}: {self.last_error}")

    def _check_sent(self, session: Session) -> None:
        if session.broken:  # libpq has closed the socket, which will not become readable any more
            self._reader.read_soon(self)

    def _answered(self, results: list[Result]) -> None:
        question, self._question, self._answer_by = self._question, None, None
        self._fetched = self._asked
        if question is None:
            return
        refused = next((result for result in results if result.sqlstate), None)
        if refused is None:
            question.then(results)
        elif question.refused is not None and (refused.sqlstate or "").startswith(FOR_GOOD):
            question.refused(refused)
        else:
            self._refuse(refused)

    def _refuse(self, result: Result) -> None:
        """The server refuses a statement of ours."""
        text = f"{result.message} ({result.sqlstate})"
        if self._reader.starting:
            standby = result.sqlstate == "25006"
            error = self._standby() if standby else ConnectError(f"{self.database.name}: {text}")
            self.error = self.error or error
        self.fail("ended", text)

    def _do_without(self, what: str, result: Result) -> None:
        """The server refuses something that we can do without."""
        self._refused[what] = f"{result.message} ({result.sqlstate})"

    def _tell_refused(self) -> None:
        """Say once what the server refuses."""
        if self._refused:
            text = "; ".join(f"{what}: {why}" for what, why in self._refused.items())
            self.last_error = f"continuing without what the server refuses: {text}"
            if self._refused.keys() != self._told_refused:
                logger.warning("%s: %s", self.database.name, self.last_error)
        self._told_refused = frozenset(self._refused)

    def _standby(self) -> StandbyError:
        return StandbyError(
            f"{self.database.name} is a standby, where LISTEN is not possible; connect to the "
            "primary, or give a list of hosts and target_session_attrs=primary"
        )

    def _refuse_old(self, session: Session) -> None:
        version = session.connection.info.parameter_status("server_version")
        text = f"the server is PostgreSQL {version}, and 14 is the oldest that is supported"
        if self._reader.starting:
            self.error = self.error or UnsupportedServerError(f"{self.database.name}: {text}")
        self.fail("ended", text)

    def _set_up(self, results: list[Result]) -> None:
        pid, in_recovery = results[0].rows[0]
        if self.session is not None and int(pid) != self.session.backend_id:
            self._behind_pooler = True
            self.session.backend_id = int(pid)  # the pooler's number would mean nothing to users
        if in_recovery == "t":
            if self._reader.starting:
                self.error = self._standby()
            self.fail("ended", "the server is a standby")
        elif self.session is not None and 0 < self.session.pgconn.server_version < OLDEST_SERVER:
            self._refuse_old(self.session)
        else:
            self._note_owner()

    def _set_up_blindly(self, result: Result) -> None:
        self._do_without("asking whether a pooler or a standby answers", result)
        self._note_owner()

    def _note_owner(self) -> None:
        if self.lent:
            self._submit(LISTENING, self._note_kept, refused=self._note_nothing)
        else:
            self._guard()

    def _note_kept(self, results: list[Result]) -> None:
        self.kept = frozenset(self._heard(results))
        self._active = set(self.kept)
        self.lent = False
        self._guard()

    def _note_nothing(self, result: Result) -> None:
        self._do_without("asking what the session listens to", result)
        self.lent = False
        self._guard()

    def _guard(self) -> None:
        if self._behind_pooler:  # a SET would outlive us there, on another client's session
            self._try_probe()
            return
        # Under "block" we may not read for long, and lose nothing.
        patient = self._settings.overflow == "block"
        alone = not (self._borrowed or self.handed_out)
        settings = guard(patient=patient, alone=alone)

        def guard_one_by_one(_: Result) -> None:
            self._guard_by(deque(guard(patient=patient, alone=alone).split("; ")))

        self._submit(settings, lambda _: self._try_probe(), refused=guard_one_by_one)

    def _guard_by(self, settings: deque[str]) -> None:
        """Set what the server knows of *settings*, one statement each."""
        if not settings:
            self._try_probe()
            return
        setting = settings.popleft()

        def refused(result: Result) -> None:
            self._do_without(setting, result)
            self._guard_by(settings)

        self._submit(setting, lambda _: self._guard_by(settings), refused=refused)

    def _try_probe(self) -> None:
        """See what the server lets us probe, before anything is promised."""
        if self._settings.probe_interval is None:
            self._begin_listening()
        else:
            self._probe(lambda _: self._begin_listening())

    def _probe(self, then: Callable[[list[Result]], None], share: float = 1.0) -> None:
        """Make a round trip of the parts that the server lets us ask for."""

        def refused(_: Result) -> None:
            self._probe_by(deque(sorted(self._parts)), frozenset(), then)

        self._submit(round_trip(self._parts), then, refused=refused, share=share)

    def _probe_by(
        self,
        untried: deque[str],
        parts: frozenset[str],
        then: Callable[[list[Result]], None],
    ) -> None:
        """Find out which parts the server refuses, and go on without them."""
        if not untried:
            self._parts = parts
            self._tell_refused()
            self._submit(round_trip(parts), then)
            return
        part = untried.popleft()

        def refused(result: Result) -> None:
            self._do_without(DOES[part], result)
            self._probe_by(untried, parts, then)

        def taken(_: list[Result]) -> None:
            self._probe_by(untried, parts | {part}, then)

        self._submit(round_trip({part}), taken, refused=refused)

    def _begin_listening(self) -> None:
        # Before the LISTEN, not after: a commit between the two would be missed unreported.
        self._proof = Proof(now_utc())
        self._tell_refused()
        self.reconcile()

    def _target(self) -> set[str]:
        target = {*self._wanted, *self.kept, PROBE_CHANNEL}
        return target - self._unspeakable if self._unspeakable else target

    @property
    def channels(self) -> tuple[str, ...]:
        """The users' channels that are listened to."""
        active = self._active if self.state is State.LISTENING else ()
        return tuple(sorted(set(active) - {PROBE_CHANNEL}))

    def want(self, channels: Collection[str], request: int) -> None:
        """Listen to *channels*, and besides only to what the session's owner did; on the reader's
        thread.

        :param request: what :attr:`settled` becomes once the server has acknowledged them.
        """
        self._wanted, self._request = channels, request
        self.reconcile()

    def reconcile(self) -> None:
        """Listen to what is wanted, and to nothing else: one statement at a time."""
        if self.state not in (State.SYNCING, State.LISTENING) or self.closed:
            self._acknowledged()
            return
        if self._question is not None:
            return  # its answer comes back here
        target = self._target()
        listen = self._speakable(sorted(target - self._active)[:LISTENS_AT_ONCE])
        unlisten = sorted(self._active - target)[:LISTENS_AT_ONCE]
        if listen or unlisten:
            self._submit(listen_sql(listen, unlisten), lambda _: self._listened(listen, unlisten))
        elif self.state is State.SYNCING:
            self._listening_holds()
        else:
            self._acknowledged()

    def _speakable(self, channels: list[str]) -> list[str]:
        """Those of *channels* that the connection can name; its owner may have set its encoding."""
        session = self.session
        if session is None or session.can_say("".join(channels)):
            return channels
        lost = {channel for channel in channels if not session.can_say(channel)}
        self._unspeakable |= lost
        self.last_error = (
            f"channels that client_encoding cannot hold are not listened to: {sorted(lost)}; "
            "SET client_encoding TO 'UTF8' on the wrapped connection"
        )
        logger.warning("%s: %s", self.database.name, self.last_error)
        return [channel for channel in channels if channel not in lost]

    def _listened(self, listen: list[str], unlisten: list[str]) -> None:
        self._active.update(listen)
        self._active.difference_update(unlisten)
        self._canary_shown = False  # it has shown nothing of these
        self.reconcile()

    def _acknowledged(self) -> None:
        """Everything that has been requested so far is acknowledged, or cannot be now."""
        if self._question is None or self.closed:
            self.settled = self._request
            self._reader.wake_waiters()

    def _listening_holds(self) -> None:
        if self._canary_shown or (
            self._settings.probe_interval is None and not self._behind_pooler
        ):
            self._synced()
        elif self._canary_asked is None:
            self._send_canary()

    def _synced(self) -> None:
        self.happen(Event.SYNCED)
        now, session = time.monotonic(), self.session
        resumed = self._sessions > 0
        self._sessions += 1
        self._up_since = now
        if session is not None:
            self.database.renew(session)
            session.deliver(self._collected, self._collected_more)
        if self._behind_pooler:
            logger.warning(
                "%s: a pooler is in front of the server; it lets notifications through, so it "
                "pools sessions, each of which this listener keeps for itself",
                self.database.name,
            )
        logger.info("%s: listening, backend %s", self.database.name, self.database.backend_id)
        self._reader.events.connected(self, resumed)
        if resumed:
            self.counters.reconnects += 1
            self._tell_gap("reconnect", self._missed_since or self._proof.since, None)
            self._missed_since = None
        if (interval := self._settings.probe_interval) is not None:
            self._probe_at = now + interval * self._reader.rng.uniform(0.5, 1.0)
        if self._held:
            self._reader.read_soon(self)
        self._acknowledged()

    def _tell_gap(
        self,
        reason: Literal["reconnect", "unlistened"],
        since: datetime,
        channels: frozenset[str] | None,
    ) -> None:
        self.counters.note_gap()
        gap = Gap(self.database, reason, since, max(since, now_utc()), None, channels)
        self._reader.events.gap(self, gap)

    # -- probing ---------------------------------------------------------------------------------

    def tick(self, now: float, looked: float) -> None:
        """Do what is due.

        :param looked: when the sockets were last read; only what was due by then is late, as the
            reader itself may have been stopped for a while.
        """
        due = self.state is State.WAITING and self.error is None and now >= self.retry_at
        if due and not self._hang("connect"):
            self.happen(Event.DUE)
            self.connect()
        elif self.state is State.CONNECTING and now >= self.connect_by:
            name, limit = self.database.name, self._connect_limit
            self.refused(ConnectError(f"{name}: no connection within {limit:.0f} s"))
        if self.session is not None and self.session.unsent:
            self.session.flush()
            self._check_sent(self.session)
        self.send_again(now)
        if self._answer_by is not None and looked >= self._answer_by:
            self._answer_by = None
            self.fail("silent", "the server has not answered in time")
        if self._lag_due <= now:
            self._lag_at = None
            # It must be heard of before the deadline, also by a reader that waits for space.
            self._answer_by = max(self._answer_by or 0.0, now + self._answer_limit / 2)
            if now < self._canary_rests:
                self._cannot_tell = True
            elif self._canary_asked is None:
                self._send_canary()
        if self._canary_unsent_at <= looked:
            late = TimeoutError("it could not be sent in time")
            self._canary_sent(self.session, self._canary_asked or 0.0, late)
        if self._canary_by is not None and looked >= self._canary_by:
            self._canary_by, self._doubted = None, True
        if self._doubted and self._question is None:
            self._doubted = False
            self._probe(self._heard_nothing, 0.5)  # the canary had the other half
        if self._probe_at is not None and now >= self._probe_at and self._question is None:
            self._probe_at = None
            self._proof.sent(now_utc())
            self._probe(self._probed)
        due = self.state is State.LISTENING and self._canary_asked is None
        if due and now >= self._canary_at and not self._hang("canary"):
            self._send_canary()
        if self.control.silent_for(looked) >= self._settings.probe_timeout:
            self.control.shutdown()
        expires = self.control.expires()
        if expires is not None and now >= expires:
            self.control.close_unused(now)

    @property
    def _lag_due(self) -> float:
        """When to send a canary, as an answer does not come though something does."""
        late = self._lives and self._answer_by is not None and not self._may_lag
        return self._lag_at if late and self._lag_at is not None else float("inf")

    def send_again(self, now: float) -> None:
        """Try again to send what has to wait for a statement of others."""
        if self._question is not None and self._again_at is not None and now >= self._again_at:
            self._send(self._question)

    def next_tick(self, now: float) -> float:
        """When :meth:`tick` has something to do, as ``time.monotonic()``."""
        due = [now + 3600.0, self._canary_unsent_at, self._lag_due]
        if self.state is State.WAITING and self.error is None:
            due.append(self._no_sooner("connect", now, self.retry_at))
        if self.state is State.CONNECTING:
            due.append(self.connect_by)
        if self.session is not None and self.session.unsent:
            due.append(now + UNSENT)
        if self.state is State.LISTENING and self._canary_asked is None:
            due.append(self._no_sooner("canary", now, self._canary_at))
        if self._question is None:
            due += [] if self._probe_at is None else [self._probe_at]
        later = (self._answer_by, self._canary_by, self._again_at)
        due += [at for at in later if at is not None]
        if (expires := self.control.expires()) is not None:
            silent = self.control.silent_for(now)
            due.append(now + self._settings.probe_timeout - silent if silent else expires)
        return max(min(due), now + 0.001)

    def _no_sooner(self, what: str, now: float, at: float) -> float:
        """*at*, or a while later where threads hang, of which one may return unheard."""
        return max(at, now + LOOK_AT_HANGING) if self._hanging(what, now) else at

    def _probed(self, results: list[Result]) -> None:
        now = time.monotonic()
        usage, in_recovery, digest = results[0].rows[0]
        self.probe_seconds = now - self._asked
        self._probe_at = now + (self._settings.probe_interval or 0.0) - self.probe_seconds
        if usage:
            self._watch_queue(float(usage))
        if in_recovery == "t":
            self.fail("ended", "the server has become a standby")
        elif digest and digest != digest_of(self._active | self._foreign):
            self._submit(LISTENING, self._mend, refused=lambda _: self._mend([]))
        else:
            self._proof.answered()
            self.reconcile()

    def _watch_queue(self, usage: float) -> None:
        """Warn of a notification queue that fills: when it is full, every NOTIFY fails."""
        before, self.queue_usage = self.queue_usage or 0.0, usage
        if usage >= QUEUE_ALARM and usage > before:

            def run() -> None:
                try:
                    holders = [describe_holder(row) for row in self.control.query(QUEUE_HOLDERS)]
                except Exception as exc:  # noqa: BLE001 - as connect()
                    holders = [f"unknown: {type(exc).__name__}"]
                logger.warning(
                    "%s: the notification queue is %.0f %% full; when it is full, every NOTIFY "
                    "fails.  Sessions that may hold it: %s",
                    self.database.name,
                    100 * usage,
                    "; ".join(holders) or "none found",
                )

            if not self.database._access.errands.get("queue"):
                self._spawn("queue", run, lambda _: None)

    def _heard(self, results: list[Result]) -> set[str]:
        """The channels that the server names for the session."""
        session = self.session
        rows = results[0].rows if results else []
        return {session.channel(row[0]) for row in rows} if session else set()

    def _mend(self, results: list[Result]) -> None:
        """Other code has changed what our session listens to."""
        listening = self._heard(results)
        missing = self._active - listening
        self._foreign = listening - self._active
        if not missing:
            self._proof.answered()
            self.reconcile()
            return
        since = self._proof.since
        logger.warning(
            "%s: %d LISTEN registrations were removed on our session; making them again",
            self.database.name,
            len(missing),
        )
        self._active -= missing
        mend = sorted(missing & self._target())
        told = None if len(missing) > LISTENS_AT_ONCE else frozenset(missing - {PROBE_CHANNEL})

        def mended(_: list[Result]) -> None:
            self._active.update(mend)
            if PROBE_CHANNEL in mend:  # a canary under way was lost with them: send another
                self._canary_asked = self._canary_by = None
                self._canary_seen = 0.0
            if told is None or told:
                self._tell_gap("unlistened", since, told)
            self.reconcile()

        if mend:
            self._submit(listen_sql(mend), mended)
        else:
            mended([])

    # -- canaries --------------------------------------------------------------------------------

    @property
    def _canary_at(self) -> float:
        """When we have seen none for most of an interval."""
        if (interval := self._settings.probe_interval) is None:
            return float("inf")
        return max(self._canary_seen + interval * self._canary_share, self._canary_rests)

    _canary_share = 0.9

    @property
    def _canary_unsent_at(self) -> float:
        """When one that has been asked for, and not been committed, counts as failed."""
        if self._canary_asked is None or self._canary_by is not None or self._doubted:
            return float("inf")
        return self._canary_asked + self._connect_limit

    def _send_canary(self) -> None:
        self._canary_asked = asked = time.monotonic()
        session = self.session
        if self._hang("canary"):
            self._canary_sent(session, asked, TimeoutError("the threads before it hang"))
            return

        def run() -> None:
            error: Exception | None = None
            try:
                self.control.canary()
            except Exception as exc:  # noqa: BLE001 - as connect(): a user's connect= may be in it
                error = exc
            self._command(lambda: self._canary_sent(session, asked, error))

        self._spawn("canary", run, lambda exc: self._canary_sent(session, asked, exc))

    def _canary_sent(self, session: Session | None, asked: float, error: Exception | None) -> None:
        if session is not self.session or self._canary_asked != asked:
            return
        if error is None:
            self._canary_trouble = None
            self._committed = time.monotonic()
            # Idle for half of the time: a round trip at once would make a pooler deliver it.
            self._canary_by = self._committed + self._settings.probe_timeout / 2
            return
        self._canary_asked = None
        why = error if isinstance(error, (Error, TimeoutError)) else type(error).__name__
        self.last_error = f"no canary could be sent: {self._bare(str(why))}"
        said = self.last_error == self._canary_trouble
        level, self._canary_trouble = logging.DEBUG if said else logging.WARNING, self.last_error
        logger.log(level, "%s: %s", self.database.name, self.last_error)
        now = time.monotonic()
        refused = not isinstance(error, TimeoutError)
        self._cannot_tell = refused and now - asked < self._settings.probe_timeout / 2
        self._canary_seen = now  # not a loss; the next attempt is an interval away
        if needs_care(error):
            self._canary_rests = now + self._backoff.slow_delay(self._reader.rng)
        if self.state is not State.SYNCING:
            return
        if self._behind_pooler:  # which may well swallow notifications: say so, not "listening"
            if self._reader.starting:
                self.error = self.error or PoolerError(
                    f"{self.database.name}: a pooler is in front of the server, and whether it "
                    f"lets notifications through cannot be tested: {why}"
                )
            self.fail("deaf", f"behind a pooler, {self.last_error}")
            return
        self._canary_shown = True  # as far as it can be
        if self._question is None:
            self._synced()

    def _canary_arrived(self) -> None:
        self._canary_seen = time.monotonic()
        # Random, so that of many reactors only the first one to miss it sends the next.
        self._canary_share = self._reader.rng.uniform(0.8, 0.95)
        self._proof.canary()
        ours = self._canary_asked is not None
        if self._canary_travels and self._answer_by is not None:
            self._judge_lag(self._canary_seen)
        self._canary_asked, self._canary_by, self._doubted = None, None, False
        if ours and self.state is State.SYNCING:
            self._canary_shown = True
            if self._question is None:
                self._synced()

    def _judge_lag(self, now: float) -> None:
        """A canary has arrived before the answer that is awaited."""
        limit = self._answer_limit
        if now - self._committed > limit / 2:  # late, so the answer may well be, too: look again
            self._answer_by, self._lag_at = now + limit, now
        else:
            self._answer_by, self._lag_at = max(self._asked + limit, now + limit / 2), None

    def _heard_nothing(self, _: list[Result]) -> None:
        """A round trip that was sent long after the canary is answered."""
        if self._canary_asked is None:
            self.reconcile()
            return
        if self._behind_pooler and self._reader.starting:
            self.error = self.error or PoolerError(
                f"{self.database.name}: LISTEN succeeds, but nothing arrives: a pooler in "
                "transaction or statement mode is in front of the server; connect to the server "
                "itself, or to a pool in session mode"
            )
        self.fail("deaf", "it answers, but a canary did not arrive in time")

    # -- the end ---------------------------------------------------------------------------------

    def fetch_own(self) -> bool:
        """Make the server send what we have notified, which it does before it answers.

        :returns: whether that answer is awaited.
        """
        notified = float("inf") if self.notifies_later else self.control.notified
        if self.state is not State.LISTENING or self.closed or notified < self._fetched:
            return False
        if self._question is None:
            self._probe(lambda _: None)
        elif notified >= self._asked:  # what is awaited may be on its way already
            self._afterwards(self._fetch_again)
        return True

    def _fetch_again(self) -> None:
        self.fetch_own()

    def _afterwards(self, run: Callable[[], None]) -> None:
        """Go on with *run*, instead of the intended callback, when the statement is answered."""
        if self._question is not None:
            self._question.then = lambda _: run()
            self._question.refused = None

    def stop(self, *, give_back: bool = False, wait: bool = True) -> None:
        """Close the session, or return it to its owner.

        :param wait: for other threads to leave it.
        """
        self._attempt += 1
        self.happen(Event.STOP)
        session, self.session = self.session, None
        if session is None or give_back:
            return
        if wait:
            session.close()
        else:
            session.abandon()

    def give_back(self) -> None:
        """Take our LISTENs and settings off a session that is its owner's."""
        if self.lent:  # we do not know yet what its owner had set, and have changed nothing
            self._afterwards(lambda: None)
        elif self._question is None:
            ours = sorted((self._active | self._target()) - self.kept)
            sql = "; ".join(filter(None, (listen_sql(unlisten=ours), UNGUARD)))
            self._submit(sql, lambda _: None)
        else:  # after what is under way
            self._afterwards(self.give_back)

    @property
    def waits_for_answer(self) -> bool:
        """Whether a statement is under way, or waits for one of others."""
        return self._question is not None and not self.closed

    @property
    def is_answering(self) -> bool:
        """Whether the server has a statement of ours."""
        return self._answer_by is not None and not self.closed

    def status(self) -> DatabaseStatus:
        """What an operator sees; from any thread."""
        states: dict[State, Literal["connecting", "listening", "lost", "stopped"]] = {
            State.CONNECTING: "connecting",
            State.SYNCING: "connecting",
            State.LISTENING: "listening",
            State.WAITING: "lost",
            State.STOPPED: "stopped",
        }
        session, counters = self.session, self.counters
        return DatabaseStatus(
            name=self.database.name,
            state=states[self.state],
            backend_id=session.backend_id if session is not None else None,
            channels=self.channels,
            received=counters.received,
            dispatched=counters.dispatched,
            dropped=counters.dropped,
            failed=counters.failed,
            gaps=counters.gaps,
            reconnects=counters.reconnects,
            last_received=counters.last_received,
            probe_seconds=self.probe_seconds,
            queue_usage=self.queue_usage,
            last_error=self.last_error,
        )
