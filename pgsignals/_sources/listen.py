"""A link: one database that a reactor watches, over as many sessions as it takes.

It is a source: it receives notifications and hands them to the reader, which queues them.
Everything here runs on the reader's thread, unless said otherwise, and never blocks: statements are
sent and their answers taken up when they come.  What could block (connecting, the control
connection) runs on other threads.

What a link is in, what is due and when stands in :mod:`pgsignals._pure.states`; this module reports
to it what happened, and does what is due.  :mod:`~pgsignals._sources.upkeep` opens and loses its
sessions, :mod:`~pgsignals._sources.setup` prepares them, :mod:`~pgsignals._sources.asking` sends
the statements, :mod:`~pgsignals._sources.probing` the round trips and canaries.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Literal, Protocol

from pgsignals._pure.backoff import Backoff
from pgsignals._pure.burst import Burst
from pgsignals._pure.lanes import Drops, Outcome, Policy
from pgsignals._pure.names import PROBE_CHANNEL
from pgsignals._pure.statements import (
    UNGUARD,
    listen_sql,
)
from pgsignals._pure.states import (
    NEVER,
    Condition,
    Due,
    Event,
    Proof,
    State,
    Timing,
)
from pgsignals._pure.values import Notification
from pgsignals._runtime.log import Log
from pgsignals._sources.asking import UNSENT, Asker
from pgsignals._sources.counters import Counters
from pgsignals._sources.intake import Intake, now_utc
from pgsignals._sources.probing import CanaryKeeper, QueueWatch, RoundTrips
from pgsignals._sources.registering import Registrar
from pgsignals._sources.reports import DatabaseStatus, Gap, shown
from pgsignals._sources.setup import Setup
from pgsignals._sources.upkeep import Host, Reason, Upkeep
from pgsignals._wire.results import Result
from pgsignals._wire.session import Session
from pgsignals._wire.sessions import Control
from pgsignals.database import Database
from pgsignals.errors import ConnectionLostError

logger = Log("pgsignals.reactor")

#: What is read at once, see :data:`pgsignals._wire.session.READS`: more than by a manager, as each
#: hand-over to another thread costs as much as dozens of notifications.
READS = 32

#: Notifications of a flood that are read at once.
SHARE = 8192


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


class LinkHost(Host, Protocol):
    """The reader, as its links see it: upward, as only the reader may touch the selector."""

    @property
    def events(self) -> Events: ...
    def recheck(self) -> None:
        """Have :meth:`Link.tick` called in this turn, whatever :meth:`Link.next_tick` said."""

    def wake_by(self, deadline: float) -> None:
        """The same no later than *deadline*, as ``time.monotonic()``; from any thread."""

    def watch(self, link: Link) -> None:
        """Watch the session that *link* has adopted."""

    def read_soon(self, link: Link) -> None:
        """Drain *link* in the next turn, whatever its socket says; from any thread."""

    def wake_waiters(self) -> None:
        """:attr:`Link.settled` has changed."""


class Link:
    """See the module."""

    def __init__(self, database: Database, reader: LinkHost, settings: Settings) -> None:
        self.database = database
        self._reader = reader
        self._settings = settings
        # -- the parts; all but the control connection are the reader's thread's
        timing = Timing(settings.probe_interval, settings.probe_timeout)
        self.condition = Condition(timing, Backoff(*settings.backoff), now_utc())
        self.upkeep = Upkeep(
            database._access,
            reader,
            self.condition,
            adopt=self._adopt,
            lost=self._lost,
            readable=self._collected_more,
        )
        self.control = Control(database._access, self._control_used, settings.probe_timeout)
        self._asker = Asker(self.upkeep, self._collected_more)
        self._round_trips = RoundTrips(self.upkeep, self._asker)
        self._canaries = CanaryKeeper(self.upkeep, self.control, self._hears)
        self._setup = Setup(
            self.upkeep,
            self._asker,
            self._round_trips,
            self._canaries,
            # Under "block" we may not read for long, and lose nothing.
            patient=settings.overflow == "block",
            done=self._begin_listening,
        )
        self._registrar = Registrar(
            self.upkeep,
            self._asker,
            holds=self._listening_holds,
            unlistened=partial(self._report_gap, "unlistened"),
            settled=reader.wake_waiters,
        )
        self._queue = QueueWatch(self.upkeep, self.control)
        self.counters = Counters()
        self.intake = Intake(
            settings.max_backlog, settings.overflow, self.counters, self.condition.proof.since
        )
        self.probe_seconds: float | None = None
        self.notifies_later = False  # a handler has, in a transaction whose commit we do not see

    # -- what others may know; from any thread ---------------------------------------------------

    @property
    def state(self) -> State:
        """Where it is."""
        return self.condition.state

    @property
    def session(self) -> Session | None:
        """The one that listens, or is to."""
        return self.upkeep.session

    @property
    def error(self) -> Exception | None:
        """Why it cannot go on."""
        return self.upkeep.error

    @property
    def channels(self) -> tuple[str, ...]:
        """The users' channels that are listened to."""
        listening = self.condition.state is State.LISTENING
        active = self.condition.registrations.active if listening else ()
        return tuple(sorted(set(active) - {PROBE_CHANNEL}))

    # -- as the poller sees it -------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self.upkeep.closed

    def drain(self) -> Burst:
        """What the socket has for users."""
        try:
            return self._drain()
        except Exception as exc:  # noqa: BLE001 - a bug of ours costs this session alone
            self.upkeep.misfortune(exc)
            return Burst()

    def _drain(self) -> Burst:
        session, condition = self.upkeep.session, self.condition
        if session is None:
            return Burst()
        self.intake.proven_since = condition.proof.since  # before what this read may prove
        session.attentive = condition.exchange.with_server
        # At the end, all that is there.
        burst = Burst()
        session.read_into(burst, sys.maxsize if self._reader.stopping else SHARE, READS)
        if condition.exchange.with_server and (burst or session.heard):
            condition.note_life(time.monotonic())
        session.heard = False
        if session.arrivals.may_have_canary() and PROBE_CHANNEL in burst.channels:
            self._reader.recheck()
            burst = Burst(one for one in burst if one.channel != PROBE_CHANNEL)
            self._canaries.arrived()
        while session.answers and not session.ended:
            self._reader.recheck()
            self._asker.answered(session.answers.popleft())
        if condition.state is State.SYNCING:
            self._reader.recheck()
            self.intake.hold(burst)
            return Burst()
        return self.intake.release(burst)

    def _collected_more(self) -> None:
        """There is something to find that the socket does not show; from any thread."""
        self._reader.read_soon(self)

    def _control_used(self) -> None:
        """From any thread."""
        self._reader.wake_by(time.monotonic() + self._settings.probe_timeout)

    # -- as a source of the backlog; on a worker -------------------------------------------------

    #: Plain handlers are called as they are: there is nothing to acknowledge.
    around = None

    def settle(self, notifications: Sequence[Notification], outcome: Outcome = None) -> None:
        """See :class:`pgsignals._pure.lanes.Source`."""
        if outcome is None:
            self.counters.note_dispatched(len(notifications))
        else:
            self.counters.note_failed()

    def dropped(self, count: int) -> None:
        """See :class:`pgsignals._pure.lanes.Source`; called by the reader."""
        self.counters.dropped += count

    def overflowed(self, drops: Drops) -> None:
        """See :class:`pgsignals._pure.lanes.Source`."""
        self.counters.note_gap()
        channels = frozenset(drops.channels)
        until = max(drops.since, drops.until)  # a clock may be set back
        gap = Gap(self.database, "overflow", drops.since, until, drops.count, channels)
        self._reader.events.overflowed(self, gap)

    # -- from one session to the next ------------------------------------------------------------

    def guarded(self, run: Callable[[], None]) -> None:
        """Run a step of this link; an exception costs this link's session, and no other link's."""
        self.upkeep.guarded(run)

    def connect(self) -> None:
        """Begin an attempt."""
        self.upkeep.connect()

    def borrow(self, session: Session) -> None:
        """Begin with a session that belongs to its owner."""
        self._setup.borrow(session)

    def _adopt(self, session: Session) -> None:
        session.arrivals.deliver(self.intake.collected, self._collected_more)
        self.intake.begin()
        self._asker.begin()
        self._reader.watch(self)
        self._setup.begin()

    def ended(self) -> None:
        """The session has ended, and what it had received has been queued."""
        self.upkeep.ended()

    def _lost(self, announced: bool, reason: Reason, error: ConnectionLostError) -> None:
        self._asker.begin()
        if announced:
            self._reader.events.lost(self, reason, error)
        self._registrar.settle()

    # -- from LISTEN on --------------------------------------------------------------------------

    def want(self, channels: Collection[str], request: int) -> None:
        """See :meth:`Registrar.want`."""
        self._registrar.want(channels, request)

    @property
    def settled(self) -> int:
        """The request up to which LISTENs are acknowledged; from any thread."""
        return self._registrar.settled

    def _begin_listening(self) -> None:
        # Before the LISTEN, not after: a commit between the two would be missed unreported.
        self.condition.proof = Proof(now_utc())
        self._round_trips.warn_of_refused()
        self._registrar.reconcile()

    def _listening_holds(self) -> None:
        canary = self.condition.canary
        probes = self._settings.probe_interval is not None
        if canary.shown or not (probes or self._canaries.behind_pooler):
            self._synced()
        elif not canary.under_way:
            self._canaries.send(time.monotonic())

    def _hears(self) -> None:
        """A canary has shown that the session hears."""
        if not self.condition.exchange.pending:
            self._synced()

    def _synced(self) -> None:
        condition, session = self.condition, self.upkeep.session
        condition.happen(Event.SYNCED)
        now = time.monotonic()
        resumed = condition.past.synced(now)
        if session is not None:
            self.database._custody.renew(session)
        if self._canaries.behind_pooler:
            logger.warning(
                "%s: a pooler is in front of the server; it lets notifications through, so it "
                "pools sessions, each of which this listener keeps for itself",
                self.database.name,
            )
        logger.info("%s: listening, backend %s", self.database.name, self.database.backend_id)
        self._reader.events.connected(self, resumed)
        if resumed:
            self.counters.reconnects += 1
            self._report_gap("reconnect", condition.past.resumed(condition.proof.since), None)
        if (interval := self._settings.probe_interval) is not None:
            condition.probe_at = now + interval * self._reader.rng.uniform(0.5, 1.0)
        if self.intake.holds:
            self._collected_more()
        self._registrar.settle()

    def _report_gap(
        self,
        reason: Literal["reconnect", "unlistened"],
        since: datetime,
        channels: frozenset[str] | None,
    ) -> None:
        self.counters.note_gap()
        gap = Gap(self.database, reason, since, max(since, now_utc()), None, channels)
        self._reader.events.gap(self, gap)

    # -- what is due -----------------------------------------------------------------------------

    def tick(self, now: float, looked: float) -> None:
        """Do what is due.

        :param looked: when the sockets were last read; only what was due by then is late, as the
            reader itself may have been stopped for a while.
        """
        self._asker.flush()
        for due in self.condition.due(now, looked):
            self._do(due, now)
        self.control.tick(now, looked)

    def _do(self, due: Due, now: float) -> None:
        condition = self.condition
        match due:
            case Due.CONNECT:
                self.upkeep.reconnect(now)
            case Due.CONNECT_LATE:
                self.upkeep.give_up_attempt()
            case Due.SEND:
                self._asker.send_again()
            case Due.ANSWER_LATE:
                condition.exchange.answer_by = NEVER
                self.upkeep.fail("silent", "the server has not answered in time")
            case Due.LAG:
                if condition.find_lag(now):
                    self._canaries.send(now)
            case Due.CANARY_UNSENT:
                self._canaries.give_up()
            case Due.CANARY_LATE:
                condition.canary.doubt()
            case Due.TRY:
                condition.canary.tried()
                self._round_trips.make(self._tried, 0.5)  # the canary had the other half
            case Due.PROBE:
                condition.probe_at = NEVER
                condition.proof.sent(now_utc())
                self._round_trips.make(self._probed)
            case Due.CANARY:
                self._canaries.send_idle(now)

    def next_tick(self, now: float) -> float:
        """When :meth:`tick` has something to do, as ``time.monotonic()``."""
        due = min(now + 3600.0, self.condition.next(), self.control.due(now))
        if self.upkeep.session is not None and self.upkeep.session.unsent:
            due = min(due, now + UNSENT)
        return max(due, now + 0.001)

    def send_again(self, now: float) -> None:
        """At the end, when :meth:`tick` is not called: send what waits for other code."""
        if self.condition.at(Due.SEND) <= now:
            self._asker.send_again()

    # -- what a probe finds ----------------------------------------------------------------------

    def _probed(self, results: list[Result]) -> None:
        condition, now = self.condition, time.monotonic()
        usage, in_recovery, digest = results[0].rows[0]
        self.probe_seconds = now - condition.exchange.sent_at
        condition.probe_at = now + (self._settings.probe_interval or 0.0) - self.probe_seconds
        if usage:
            self._queue.see(float(usage))
        if in_recovery == "t":
            self.upkeep.fail("ended", "the server has become a standby")
        else:
            self._registrar.check(digest)

    def _tried(self, _: list[Result]) -> None:
        if self.condition.canary.under_way:
            self._canaries.missed()
        else:
            self._registrar.reconcile()

    # -- the end ---------------------------------------------------------------------------------

    def fetch_own(self) -> bool:
        """Make the server send what we have notified, which it does before it answers.

        :returns: whether that answer is awaited.
        """
        exchange = self.condition.exchange
        notified = float("inf") if self.notifies_later else self.control.notified
        if self.state is not State.LISTENING or self.closed or notified < exchange.delivered:
            return False
        if not exchange.pending:
            self._round_trips.make(lambda _: None)
        elif notified >= exchange.sent_at:  # what is awaited may be on its way already
            self._asker.end_with(self.fetch_own)
        return True

    def give_back(self) -> None:
        """Take our LISTENs and settings off a session that is its owner's."""
        if self._setup.lent:  # we do not know yet what its owner had set, and have changed nothing
            self._asker.end_with(lambda: None)
        elif not self.condition.exchange.pending:
            sql = "; ".join(filter(None, (listen_sql(unlisten=self._registrar.give_up()), UNGUARD)))
            self._asker.submit(sql, lambda _: None)
        else:  # after what is under way
            self._asker.end_with(self.give_back)

    def stop(self, *, give_back: bool = False, wait: bool = True) -> None:
        """Close the session, or return it to its owner.

        :param wait: for other threads to leave it.
        """
        session = self.upkeep.stop()
        if session is None or give_back:
            return
        if wait:
            session.close()
        else:
            session.abandon()

    @property
    def waits_for_answer(self) -> bool:
        """Whether a statement is under way, or waits for one of others."""
        return self.condition.exchange.pending and not self.closed

    @property
    def is_answering(self) -> bool:
        """Whether the server has a statement of ours."""
        return self.condition.exchange.with_server and not self.closed

    def status(self) -> DatabaseStatus:
        """What an operator sees; from any thread."""
        session, counters = self.upkeep.session, self.counters
        return DatabaseStatus(
            name=self.database.name,
            state=shown(self.state),
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
            queue_usage=self._queue.usage,
            last_error=self.upkeep.last_error,
        )
