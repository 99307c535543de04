"""A link: one database under a reactor's care, over as many sessions as it takes.

Everything here runs on the reader's thread and never blocks: statements are sent and their
answers taken up when they come, against deadlines that the reader keeps.  What could block
(connecting, the control connection) is handed to threads beside it.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol, TypeAlias

from pgsignals._backlog import Drops
from pgsignals._backoff import Backoff
from pgsignals._burst import Burst
from pgsignals._channels import PROBE_CHANNEL, listen_sql
from pgsignals._control import Control
from pgsignals._driver import Result, Session, needs_care
from pgsignals._statements import (
    QUEUE_HOLDERS,
    ROUND_TRIP,
    UNGUARD,
    WHO,
    digest_of,
    guard,
)
from pgsignals._states import Event, Proof, State, after
from pgsignals._types import DatabaseStatus, Gap, Notification
from pgsignals._workers import Plan
from pgsignals.database import LISTENING, Database
from pgsignals.errors import (
    ConnectError,
    ConnectionLostError,
    Error,
    PoolerError,
    StandbyError,
)

logger = logging.getLogger(__name__)

Reason: TypeAlias = Literal["ended", "silent", "deaf"]

#: LISTENs of one statement: few round trips, and small enough for any socket's buffer.
LISTENS_AT_ONCE = 200

#: Seconds for an attempt to connect where probing is off.
CONNECT_LIMIT = 15.0

#: Seconds for an attempt to connect, however rare the probes are.
LONGEST_CONNECT = 600.0

#: Threads of one kind that may hang for one database: a second one, as the first may do so
#: alone; and how often to look whether one of another reactor's life has returned, in seconds.
HANGING = 2
LOOK_AT_HANGING = 1.0

#: How soon to try again to send what a full socket did not take, in seconds.
UNSENT = 0.02

#: A round trip of the setup has this long where probing is off.
SETUP_LIMIT = 15.0

#: What is read at once, see :data:`pgsignals._driver.READS`: more than by a manager, as each
#: hand-over to another thread costs as much as dozens of notifications.
READS = 32

#: Notifications of a flood that are read at once.
SHARE = 8192

#: Of the queue; the server itself warns from a half on.
QUEUE_ALARM = 0.25


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
    blocks: bool


class Events(Protocol):
    """Who is told of what happens to a link, and says what it is to listen to."""

    def wanted(self, link: Link) -> set[str]: ...
    def batched(self, link: Link) -> Collection[str]: ...
    def connected(self, link: Link, resumed: bool) -> None: ...
    def lost(self, link: Link, reason: Reason, error: ConnectionLostError) -> None: ...
    def gap(self, link: Link, gap: Gap) -> None: ...
    def overflowed(self, link: Link, gap: Gap) -> None: ...
    def idle(self) -> None: ...
    def look_at_handlers(self) -> None: ...


class Care(Protocol):
    """The reader, as its links see it."""

    events: Events
    rng: random.Random
    starting: bool
    stopping: bool
    requests_seen: int
    disturbed: bool

    def look_by(self, at: float) -> None: ...
    def watch(self, link: Link) -> None: ...
    def look_at(self, link: Link) -> None: ...
    def command(self, run: Callable[[], None]) -> None: ...
    def spawn(
        self, what: str, run: Callable[[], None], failed: Callable[[Exception], None]
    ) -> None: ...
    def settled(self) -> None: ...


class Link:
    """One database under a reader's care; the reader's thread runs its methods.

    It is what the reader's :class:`~pgsignals.NotificationManager` watches.
    """

    def __init__(self, database: Database, reader: Care, settings: Settings) -> None:
        self.database = database
        self.control = Control(database, self._control_used)
        self.state = State.CONNECTING
        self.session: Session | None = None
        self.kept: frozenset[str] = frozenset()  # what its owner listened to before us
        self.lent = False
        self.error: Exception | None = None  # why it cannot go on
        self.plans: dict[str, Plan] = {}
        self.settled = 0  # the request up to which LISTENs are acknowledged
        self.retry_at = self.connect_by = 0.0
        self.received = self.dispatched = self.dropped = self.failed = 0
        self.gaps = self.reconnects = self.losses = 0
        self.last_received: float | None = None
        self.probe_seconds: float | None = None
        self.queue_usage: float | None = None
        self.last_error: str | None = None
        self.notifies_later = False  # a handler has, in a transaction whose commit nobody sees
        self._reader = reader
        self._settings = settings
        self._told_hanging: set[str] = set()
        self._backoff = Backoff(*settings.backoff)
        self._attempt = 0
        self._sessions = 0
        self._up_since = 0.0
        self._active: set[str] = set()
        self._foreign: set[str] = set()  # channels that somebody else made our session listen to
        self._proof = Proof(now_utc())
        self.proven_since = self._proof.since  # what was committed before has been delivered
        self._missed_since: datetime | None = None
        self._held = Burst()
        self._collected: deque[Notification] = deque()
        self._then: Callable[[list[Result]], None] | None = None
        self._answer_by: float | None = None
        self._asked = 0.0  # when, as time.monotonic()
        self._fetched = 0.0  # what had been committed by then has been delivered
        self._behind_pooler = False
        self._reason: Reason = "ended"
        self._why: str | None = None
        self._probe_at: float | None = None
        self._canary_seen = 0.0
        self._canary_rests = 0.0  # no other one before that, as its login was refused
        self._canary_asked: float | None = None  # when, while one is on its way
        self._canary_by: float | None = None  # it has been committed and should arrive by then
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

    def add_watcher(self, watcher: object) -> None:
        """Nothing arrives but through the socket, which only the reader touches."""

    def remove_watcher(self, watcher: object) -> None:
        """See :meth:`add_watcher`."""

    def drain(self) -> Burst:
        """What the socket has for users."""
        session = self.session
        if session is None:
            return Burst()
        self.proven_since = self._proof.since  # before what this read may prove
        # At the end, all that is there.
        burst = Burst()
        session.read_into(burst, sys.maxsize if self._reader.stopping else SHARE, READS)
        if session.may_have_canary() and PROBE_CHANNEL in burst.channels:
            self._reader.disturbed = True
            burst = Burst(one for one in burst if one.channel != PROBE_CHANNEL)
            self._canary_arrived()
        while session.answers and not session.ended:
            self._reader.disturbed = True
            self._answered(session.answers.popleft())
        if self.state is State.SYNCING:
            self._reader.disturbed = True
            self._hold(burst)
            return Burst()
        if self._held:
            self._held += burst
            burst, self._held = self._held, Burst()
        return burst

    def _collected_more(self) -> None:
        """Whoever owns a wrapped connection has run a statement on it, against our advice."""
        self._reader.look_at(self)

    def _control_used(self) -> None:
        self._reader.look_by(time.monotonic() + self._settings.probe_timeout)

    def _hold(self, burst: Burst) -> None:
        """Keep what arrives before ``connected`` and ``gap`` have been told.  Too much of it
        ends the session, as a backlog could not tell of drops before ``connected`` either."""
        self._held += burst
        if len(self._held) > self._settings.max_backlog:
            self._held = Burst()
            self.fail("ended", "more arrived during LISTEN than max_backlog allows")

    # -- as a source of the backlog --------------------------------------------------------------

    def batched(self) -> Collection[str]:
        return self._reader.events.batched(self)

    def overflowed(self, drops: Drops) -> None:
        self.gaps += 1
        channels = frozenset(drops.channels)
        until = max(drops.since, drops.until)  # a clock may be set back
        gap = Gap(self.database, "overflow", drops.since, until, drops.count, channels)
        self._reader.events.overflowed(self, gap)

    # -- its life --------------------------------------------------------------------------------

    def happen(self, event: Event) -> None:
        """Change the state."""
        self.state = after(self.state, event)

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
                session = self.database.new_session(limit)
            except Exception as exc:  # noqa: BLE001 - whatever a user's connect= raises
                error = exc
            self._reader.command(lambda: self.opened(attempt, session, error))

        self._spawn("connect", run, lambda exc: self.opened(attempt, None, exc))

    def _spawn(
        self, what: str, run: Callable[[], None], failed: Callable[[Exception], None]
    ) -> None:
        """Run what may hang for ever in a user's ``connect=`` on a thread beside the reader."""
        self._told_hanging.discard(what)
        errands, this = self.database.errands.setdefault(what, set()), object()
        errands.add(this)

        def end() -> None:
            errands.discard(this)
            self._reader.command(lambda: None)  # another one may wait for us

        def errand() -> None:
            try:
                run()
            finally:
                end()

        def none(error: Exception) -> None:
            errands.discard(this)
            failed(error)

        self._reader.spawn(what, errand, none)

    def _hang(self, what: str) -> bool:
        """Whether so many threads of a kind hang that another one would only join them; says so
        once."""
        if len(self.database.errands.get(what, ())) < HANGING:
            return False
        if what not in self._told_hanging:
            self._told_hanging.add(what)
            self.last_error = (
                f"{HANGING} threads hang in connect= or in libpq ({what}); "
                "no other one is started until one of them returns"
            )
            logger.warning("%s: %s", self.database.name, self.last_error)
        return True

    @property
    def _connect_limit(self) -> float:
        """An attempt that takes longer has failed, whatever keeps it."""
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
            self.refused(error or ConnectError("no reason given"))
        else:
            self.adopt(session)

    def borrow(self, session: Session) -> None:
        """Begin with a session that is its owner's."""
        self.lent = True
        self.adopt(session)

    def adopt(self, session: Session) -> None:
        """Make *session* the listening one."""
        self.happen(Event.OPENED)
        self.session = session
        session.deliver(self._collected, self._collected_more)
        self._active, self._foreign, self._held = set(), set(), Burst()
        self._expect_nothing()
        self._canary_seen = self._canary_rests = 0.0
        self._reason, self._why = "ended", None
        self._behind_pooler = False
        self._reader.watch(self)
        self._submit(WHO, self._set_up)

    def _expect_nothing(self) -> None:
        """No answer and no canary is on its way on this session."""
        self._then = self._answer_by = self._probe_at = None
        self._canary_asked, self._canary_by, self._doubted = None, None, False

    def refused(self, error: Exception) -> None:
        """An attempt has failed."""
        self._attempt += 1  # what is still on its way is not wanted any more
        self.happen(Event.REFUSED)
        # What a user's connect= raises may hold a secret in its text: ours do not.
        ours = isinstance(error, Error)
        self.last_error = str(error) if ours else f"connect= raised {type(error).__name__}"
        if self._reader.starting or self.database.wrapped:
            self.error = error
            return
        self._retry_later(self.last_error, slowly=needs_care(error))

    def _retry_later(self, why: str, *, slowly: bool = False) -> None:
        delay = self._backoff.next_delay(self._reader.rng, slowly=slowly)
        self.retry_at = time.monotonic() + delay
        logger.warning(
            "%s: %s; attempt %d in %.1f s",
            self.database.name,
            why,
            self._backoff.failures,
            delay,
        )

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
        self.losses += 1
        self.control.doubt()
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
        self.settle()
        if self._reader.starting or self.database.wrapped or self.error is not None:
            self.error = self.error or error
        elif not self._reader.stopping:
            self._retry_later(f"lost ({self._reason}): {error}")

    # -- setting up: who answers, guards, LISTEN, canary -----------------------------------------

    def _submit(self, sql: str, then: Callable[[list[Result]], None], share: float = 1.0) -> None:
        if self.session is None:
            return
        self._then = then
        self._asked = time.monotonic()
        limit = self._settings.probe_timeout if self._settings.probe_interval else SETUP_LIMIT
        self._answer_by = self._asked + limit * share
        self.session.submit(sql)
        self._check_sent(self.session)

    def _check_sent(self, session: Session) -> None:
        if session.broken:  # libpq has closed the socket, which will not become readable any more
            self._reader.look_at(self)

    def _answered(self, results: list[Result]) -> None:
        then, self._then, self._answer_by = self._then, None, None
        self._fetched = self._asked
        refused = next((result for result in results if result.sqlstate), None)
        if refused is not None:
            self._refuse(refused)
        elif then is not None:
            then(results)

    def _refuse(self, result: Result) -> None:
        """The server refuses a statement of ours."""
        text = f"{result.message} ({result.sqlstate})"
        if result.sqlstate == "25006":
            self.error = self.error or self._standby()
        elif self._reader.starting:
            self.error = self.error or ConnectError(f"{self.database.name}: {text}")
        self.fail("ended", text)

    def _standby(self) -> StandbyError:
        return StandbyError(
            f"{self.database.name} is a standby, where LISTEN is not possible; connect to the "
            "primary, or give a list of hosts and target_session_attrs=read-write"
        )

    def _set_up(self, results: list[Result]) -> None:
        pid, in_recovery = results[0].rows[0]
        if self.session is not None and int(pid) != self.session.backend_id:
            self._behind_pooler = True
            self.session.backend_id = int(pid)  # the pooler's number would mean nothing to users
        if in_recovery == "t":
            if self._reader.starting:
                self.error = self._standby()
            self.fail("ended", "the server is a standby")
        elif self.lent:
            self._submit(LISTENING, self._note_kept)
        else:
            self._guard()

    def _note_kept(self, results: list[Result]) -> None:
        self.kept = frozenset(row[0] for row in results[0].rows)
        self._active = set(self.kept)
        self.lent = False
        self._guard()

    def _guard(self) -> None:
        if self._behind_pooler:  # a SET would outlive us there, on somebody else's session
            self._begin_listening()
        else:
            # Under "block" we may not read for long, and lose nothing.
            self._submit(guard(patient=self._settings.blocks), lambda _: self._begin_listening())

    def _begin_listening(self) -> None:
        # Before the LISTEN, not after: a commit between the two would be missed by nobody's fault.
        self._proof = Proof(now_utc())
        self.reconcile()

    def _target(self) -> set[str]:
        return {*self._reader.events.wanted(self), *self.kept, PROBE_CHANNEL}

    @property
    def channels(self) -> tuple[str, ...]:
        """The users' channels that are listened to."""
        active = self._active if self.state is State.LISTENING else ()
        return tuple(sorted(set(active) - {PROBE_CHANNEL}))

    def reconcile(self) -> None:
        """Listen to what is wanted, and to nothing else: one statement at a time."""
        if self.state not in (State.SYNCING, State.LISTENING) or self.closed:
            self.settle()
            return
        if self._then is not None:
            return  # its answer comes back here
        target = self._target()
        listen = sorted(target - self._active)[:LISTENS_AT_ONCE]
        unlisten = sorted(self._active - target)[:LISTENS_AT_ONCE]
        if listen or unlisten:
            self._submit(listen_sql(listen, unlisten), lambda _: self._listened(listen, unlisten))
        elif self.state is State.SYNCING:
            self._listening_holds()
        else:
            self.settle()

    def _listened(self, listen: list[str], unlisten: list[str]) -> None:
        self._active.update(listen)
        self._active.difference_update(unlisten)
        self.reconcile()

    def settle(self) -> None:
        """Everything that has been requested so far is acknowledged, or cannot be now."""
        if self._then is None or self.closed:
            self.settled = self._reader.requests_seen
            self._reader.settled()

    def _listening_holds(self) -> None:
        if self._settings.probe_interval is None and not self._behind_pooler:
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
                "%s: a pooler stands before the server; it lets notifications through, so it "
                "pools sessions, each of which this listener keeps for itself",
                self.database.name,
            )
        logger.info("%s: listening, backend %s", self.database.name, self.database.backend_id)
        self._reader.events.connected(self, resumed)
        if resumed:
            self.reconnects += 1
            self._tell_gap("reconnect", self._missed_since or self._proof.since, None)
            self._missed_since = None
        if (interval := self._settings.probe_interval) is not None:
            self._probe_at = now + interval * self._reader.rng.uniform(0.5, 1.0)
        if self._held:
            self._reader.look_at(self)
        self.settle()

    def _tell_gap(
        self,
        reason: Literal["reconnect", "unlistened"],
        since: datetime,
        channels: frozenset[str] | None,
    ) -> None:
        self.gaps += 1
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
            self.refused(ConnectError(f"no connection within {self._connect_limit:.0f} s"))
        if self.session is not None and self.session.unsent:
            self.session.flush()
            self._check_sent(self.session)
        if self._answer_by is not None and looked >= self._answer_by:
            self._answer_by = None
            self.fail("silent", "the server has not answered in time")
        if self._canary_unsent_at <= now:
            late = TimeoutError("it could not be sent in time")
            self._canary_sent(self.session, self._canary_asked or 0.0, late)
        if self._canary_by is not None and looked >= self._canary_by:
            self._canary_by, self._doubted = None, True
        if self._doubted and self._then is None:
            self._doubted = False
            self._submit(ROUND_TRIP, self._heard_nothing, 0.5)  # the canary had the other half
        if self._probe_at is not None and now >= self._probe_at and self._then is None:
            self._probe_at = None
            self._proof.sent(now_utc())
            self._submit(ROUND_TRIP, self._probed)
        due = self.state is State.LISTENING and self._canary_asked is None
        if due and now >= self._canary_at and not self._hang("canary"):
            self._send_canary()
        if self.control.silent_for(now) >= self._settings.probe_timeout:
            self.control.shutdown()
        expires = self.control.expires()
        if expires is not None and now >= expires:
            self.control.close_unused(now)

    def next_tick(self, now: float) -> float:
        """When :meth:`tick` has something to do, as ``time.monotonic()``."""
        due = [now + 3600.0, self._canary_unsent_at]
        if self.state is State.WAITING and self.error is None:
            due.append(self._no_sooner("connect", now, self.retry_at))
        if self.state is State.CONNECTING:
            due.append(self.connect_by)
        if self.session is not None and self.session.unsent:
            due.append(now + UNSENT)
        if self.state is State.LISTENING and self._canary_asked is None:
            due.append(self._no_sooner("canary", now, self._canary_at))
        if self._then is None:
            due += [] if self._probe_at is None else [self._probe_at]
        due += [at for at in (self._answer_by, self._canary_by) if at is not None]
        if (expires := self.control.expires()) is not None:
            silent = self.control.silent_for(now)
            due.append(now + self._settings.probe_timeout - silent if silent else expires)
        return max(min(due), now + 0.001)

    def _no_sooner(self, what: str, now: float, at: float) -> float:
        """*at*, or a while later where threads hang, of which one may return unheard."""
        hang = len(self.database.errands.get(what, ())) >= HANGING
        return max(at, now + LOOK_AT_HANGING) if hang else at

    def _probed(self, results: list[Result]) -> None:
        now = time.monotonic()
        usage, in_recovery, digest = results[0].rows[0]
        self.probe_seconds = now - self._asked
        self._watch_queue(float(usage))
        if in_recovery == "t":
            self.fail("ended", "the server has become a standby")
            return
        self._proof.answered()
        self._probe_at = now + (self._settings.probe_interval or 0.0) - self.probe_seconds
        if int(digest) == digest_of(self._active | self._foreign):
            self.reconcile()
        else:
            self._submit(LISTENING, self._mend)

    def _watch_queue(self, usage: float) -> None:
        """Warn of a notification queue that fills: when it is full, every NOTIFY fails."""
        before, self.queue_usage = self.queue_usage or 0.0, usage
        if usage >= QUEUE_ALARM and usage > before:

            def run() -> None:
                try:
                    holders = self.control.query(QUEUE_HOLDERS)
                except Exception as exc:  # noqa: BLE001 - as connect()
                    holders = [(f"unknown: {type(exc).__name__}",)]
                logger.warning(
                    "%s: the notification queue is %.0f %% full; when it is full, every NOTIFY "
                    "fails.  Sessions that may hold it: %s",
                    self.database.name,
                    100 * usage,
                    "; ".join(str(row[0]) for row in holders) or "none found",
                )

            if not self.database.errands.get("queue"):
                self._spawn("queue", run, lambda _: None)

    def _mend(self, results: list[Result]) -> None:
        """Somebody has changed what our session listens to."""
        listening = {row[0] for row in results[0].rows}
        missing = self._active - listening
        self._foreign = listening - self._active
        if not missing:
            self.reconcile()
            return
        since = self._proof.since
        logger.warning(
            "%s: somebody took %d registrations of ours away", self.database.name, len(missing)
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
            self._reader.command(lambda: self._canary_sent(session, asked, error))

        self._spawn("canary", run, lambda exc: self._canary_sent(session, asked, exc))

    def _canary_sent(self, session: Session | None, asked: float, error: Exception | None) -> None:
        if session is not self.session or self._canary_asked != asked:
            return
        if error is None:
            # An idle half of the time: a round trip at once would fetch it from under a pooler.
            self._canary_by = time.monotonic() + self._settings.probe_timeout / 2
            return
        self._canary_asked = None
        why = error if isinstance(error, (Error, TimeoutError)) else type(error).__name__
        self.last_error = f"no canary could be sent: {why}"
        logger.warning("%s: %s", self.database.name, self.last_error)
        now = time.monotonic()
        self._canary_seen = now  # not a loss; the next attempt is an interval away
        if needs_care(error):
            self._canary_rests = now + self._backoff.slow_delay(self._reader.rng)
        if self.state is not State.SYNCING:
            return
        if self._behind_pooler:  # which may well swallow notifications: say so, not "listening"
            if self._reader.starting:
                self.error = self.error or PoolerError(
                    f"{self.database.name}: a pooler stands before the server, and whether "
                    f"notifications come through it cannot be tried: {why}"
                )
            self.fail("deaf", f"behind a pooler, {self.last_error}")
        else:
            self._synced()

    def _canary_arrived(self) -> None:
        self._canary_seen = time.monotonic()
        # Random, so that of many reactors only the first one to miss it sends the next.
        self._canary_share = self._reader.rng.uniform(0.8, 0.95)
        self._proof.canary()
        ours = self._canary_asked is not None
        self._canary_asked, self._canary_by, self._doubted = None, None, False
        if ours and self.state is State.SYNCING and self._then is None:
            self._synced()

    def _heard_nothing(self, _: list[Result]) -> None:
        """A round trip that was sent long after the canary is answered."""
        if self._canary_asked is None:
            self.reconcile()
            return
        if self._behind_pooler and self._reader.starting:
            self.error = self.error or PoolerError(
                f"{self.database.name}: LISTEN succeeds, but nothing arrives: a pooler in "
                "transaction or statement mode stands before the server; connect to the server "
                "itself, or to a pool in session mode"
            )
        self.fail("deaf", "it answers, but a canary did not arrive in time")

    # -- the end ---------------------------------------------------------------------------------

    def fetch_own(self) -> bool:
        """Have the server send what we have notified, which it does before it answers.

        :returns: whether that answer is awaited.
        """
        notified = float("inf") if self.notifies_later else self.control.notified
        if self.state is not State.LISTENING or self.closed or notified < self._fetched:
            return False
        if self._then is None:
            self._submit(ROUND_TRIP, lambda _: None)
        elif notified >= self._asked:  # what is awaited may be on its way already

            def again(_: list[Result]) -> None:
                self.fetch_own()

            self._then = again
        return True

    def stop(self, *, give_back: bool = False, wait: bool = True) -> None:
        """Close the session, or leave it to its owner.

        :param wait: for others' threads to come out of it.
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
        if self.lent:  # we do not know yet what is its owner's, and have not touched it
            self._then = self._then and (lambda _: None)
        elif self._then is None:
            ours = sorted((self._active | self._target()) - self.kept)
            sql = "; ".join(filter(None, (listen_sql(unlisten=ours), UNGUARD)))
            self._submit(sql, lambda _: None)
        else:  # after what is under way
            self._then = lambda _: self.give_back()

    @property
    def waits_for_answer(self) -> bool:
        """Whether a statement is under way."""
        return self._then is not None and not self.closed

    def status(self) -> DatabaseStatus:
        """What an operator sees; from any thread."""
        states: dict[State, Literal["connecting", "listening", "lost", "stopped"]] = {
            State.CONNECTING: "connecting",
            State.SYNCING: "connecting",
            State.LISTENING: "listening",
            State.WAITING: "lost",
            State.STOPPED: "stopped",
        }
        session = self.session
        return DatabaseStatus(
            name=self.database.name,
            state=states[self.state],
            backend_id=session.backend_id if session is not None else None,
            channels=self.channels,
            received=self.received,
            dispatched=self.dispatched,
            dropped=self.dropped,
            failed=self.failed,
            gaps=self.gaps,
            reconnects=self.reconnects,
            last_received=self.last_received,
            probe_seconds=self.probe_seconds,
            queue_usage=self.queue_usage,
            last_error=self.last_error,
        )
