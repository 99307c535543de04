"""The thread that owns every listening socket.

It reads, LISTENs and probes, never blocks on a socket, and never runs users' code: whatever could
block runs on other threads.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Protocol

from pgsignals._dispatch.backlog import Backlog
from pgsignals._pure.burst import Burst
from pgsignals._pure.phases import Event, Lifecycle
from pgsignals._pure.states import State
from pgsignals._runtime.log import Log
from pgsignals._runtime.shared import Shared
from pgsignals._sources.listen import Events, Link, Settings, now_utc
from pgsignals._wire.poller import Poller
from pgsignals._wire.session import Session
from pgsignals.database import Database
from pgsignals.errors import ConnectError

logger = Log("pgsignals.reactor")

#: How long a server may take at the end to send what we have notified, and to forget our LISTENs
#: on a session that is given back, in seconds.
LAST_ANSWERS = 1.0

#: How soon to retry, at the end, what waits for another's statement, in seconds.
LAST_TRIES = 0.1
#: How long the end waits, over all sessions, for other threads to leave them, in seconds.
LET_GO = 1.0

#: Seconds between two checks of the workers, such as for slow handlers.
CHECK_WORKERS = 5.0


class Duties(Events, Protocol):
    """What the reader reports and asks for besides its links' events: upward, as the handlers that
    all this depends on are above.  On the reader's thread."""

    def wanted(self, link: Link) -> set[str]:
        """The channels that *link* is to listen to now."""

    def queued(self, link: Link) -> None:
        """Notifications of *link* have been queued."""

    def idle(self) -> None:
        """An idle event is due."""

    def check_workers(self) -> None:
        """Called every :data:`CHECK_WORKERS` seconds."""


class Reader:
    """Runs the loop of a :class:`.poller.Poller` over its links.

    :param idle: seconds between idle events, None for none.
    """

    def __init__(
        self,
        events: Duties,
        lifecycle: Lifecycle,
        databases: Iterable[Database],
        backlog: Backlog,
        settings: Settings,
        idle: float | None,
    ) -> None:
        self.events = events
        self.rng = random.Random()
        self._lifecycle = lifecycle
        self.links = [Link(database, self, settings) for database in databases]
        self._backlog = backlog
        backlog.on_wait = self.wake_waiters
        self._settings = settings
        self._poller: Poller[Link, Burst] = Poller("a Reactor")
        self._commands: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._over = False
        self._requests: Shared[int] = Shared(0)  # any thread: how often wanted channels changed
        self._pushed = 0  # the latest request that the links have been given
        self._recheck = True  # something has happened since due work was last looked up
        self._read_at = 0.0  # when every socket was last read
        self._idle = idle
        self._idle_at = float("inf")
        self._check_workers_at = 0.0
        self._due = 0.0

    @property
    def starting(self) -> bool:
        """Whether an error of a link still makes the start fail."""
        return self._lifecycle.starting

    @property
    def stopping(self) -> bool:
        """Whether :meth:`run` returns or has returned."""
        return self._lifecycle.stopping

    # -- from any thread -------------------------------------------------------------------------

    def command(self, run: Callable[[], None]) -> None:
        """Have *run* called on the reader's thread.  Takes no lock."""
        self._commands.append(run)
        self._wake()
        if self._over:
            self._run_commands()

    def request(self) -> None:
        """The wanted channels have changed.  Takes no lock."""
        self._requests.replace(lambda count: count + 1)
        self._wake()

    @property
    def requests(self) -> int:
        """The latest request, to wait for."""
        return self._requests.value

    def wait_settled(
        self, links: Collection[Link], request: int, seconds: float, *, in_handler: bool
    ) -> None:
        """Wait until *links* have acknowledged *request*, except those that are not connected.

        :param in_handler: do not wait for a reader that waits for handlers.
        """

        def settled() -> bool:
            if self.stopping or (in_handler and self._backlog.reader_waits):
                return True
            return all(link.settled >= request for link in links)

        if not settled():
            with self._changed:
                in_time = self._changed.wait_for(settled, seconds)
            if not in_time:
                logger.warning("a LISTEN was not acknowledged within %.0f s; continuing", seconds)

    def wait_started(self) -> Exception | None:
        """Wait until every link listens, and return None, or the error that keeps one from it."""
        with self._changed:
            self._changed.wait_for(lambda: not self.starting)
        return self.error

    def spawn(
        self, what: str, run: Callable[[], None], failed: Callable[[Exception], None]
    ) -> None:
        """Run what may block on a thread of its own; *failed* is called if none can be started."""
        name = f"{self._settings.name}-{what}"
        try:
            threading.Thread(target=run, name=name, daemon=True).start()
        except RuntimeError as exc:
            error = ConnectError(f"no thread can be started ({exc}); raise the process limit")
            self.command(lambda: failed(error))

    def wake_waiters(self) -> None:
        """Wake the threads that wait for a link or for the start."""
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        """Make :meth:`run` return.  Takes no lock; the reader wakes those who wait for it."""
        self._lifecycle.happen(Event.STOP)
        self._backlog.release_reader()
        self._wake()

    def wake_by(self, deadline: float) -> None:
        """Look up what is due no later than *deadline*, as ``time.monotonic()``."""
        self._recheck = True
        if deadline < self._due:
            self._poller.wake()

    def _wake(self) -> None:
        self._recheck = True
        self._poller.wake()

    @property
    def error(self) -> Exception | None:
        """Why a link cannot go on."""
        return next((link.error for link in self.links if link.error is not None), None)

    # -- the reader's thread ---------------------------------------------------------------------

    def watch(self, link: Link) -> None:
        """Watch the session that *link* has adopted."""
        self._poller.watch(link)

    def read_soon(self, link: Link) -> None:
        """Drain *link* in the next turn, whatever its socket says."""
        self._poller.touched(link)

    def recheck(self) -> None:
        """Look up what is due before the next wait."""
        self._recheck = True

    def run(self, borrowed: dict[Database, Session]) -> None:
        """Keep the links up until :meth:`stop`, or until none of them can go on."""
        self._push_interest()
        for link in self.links:
            if (session := borrowed.get(link.database)) is not None:
                link.borrow(session)
            else:
                link.connect()
        if self._idle is not None:
            self._idle_at = time.monotonic() + self._idle
        while not self.stopping:
            self._turn()

    def _turn(self) -> None:
        now = time.monotonic()
        # Notifications alone change nothing that is due.
        if self._recheck or now >= self._due:
            self._recheck = False
            self._due = self._run_due(now)
        # Set meanwhile: something may be due sooner.
        self._poller.collect(0.0 if self._recheck else max(self._due - now, 0.0))
        # Not when it returned: where the whole program has stood still, it returns without a look.
        self._read_at = now
        self._deliver()

    def _run_due(self, now: float) -> float:
        """Do what is due, and say when more will be."""
        self._run_commands()
        if self._pushed != self.requests:
            self._push_interest()
        for link in self.links:
            link.guarded(partial(link.tick, now, self._read_at))
        if now >= self._idle_at:
            self.events.idle()
            self._idle_at = now + (self._idle or 0.0)
        if now >= self._check_workers_at:
            self.events.check_workers()
            self._check_workers_at = now + CHECK_WORKERS
        self._check_links()
        if self._commands or self.stopping:
            return now
        due = (link.next_tick(now) for link in self.links)
        return min(self._idle_at, self._check_workers_at, *due)

    def _push_interest(self) -> None:
        """Give each link the channels that it is to listen to."""
        self._pushed = self.requests  # before they are computed: what changes then is another one
        for link in self.links:
            link.guarded(partial(self._push_to, link))

    def _push_to(self, link: Link) -> None:
        link.want(self.events.wanted(link), self._pushed)

    def _run_commands(self) -> None:
        while self._commands:
            self._commands.popleft()()

    def _deliver(self) -> None:
        """Queue what has been collected, then take up what has ended."""
        while self._poller.has_pairs:
            link, burst = self._poller.take()
            if (drops := link.dropped_early) is not None:
                link.dropped_early = None
                self._backlog.overflow(link, drops)
            link.counters.received += len(burst)
            link.counters.last_received = time.time()
            self._backlog.put(link, burst, link.proven_since, now_utc())
            self.events.queued(link)
        while self._poller.ended:
            self._recheck = True
            link = self._poller.ended.popleft()
            link.guarded(link.ended)

    def _check_links(self) -> None:
        """See whether all have started, or whether one cannot go on."""
        failed = [link for link in self.links if link.error and link.state is not State.STOPPED]
        if self.starting:
            if failed:
                self._lifecycle.happen(Event.FAIL)
            elif all(link.state is State.LISTENING for link in self.links):
                self._lifecycle.happen(Event.LISTENING)
                self.wake_waiters()
            return
        for link in failed:
            link.stop()
        if failed and all(link.state is State.STOPPED for link in self.links):
            self._lifecycle.happen(Event.FAIL)

    def finish(self, give_back: Collection[Database], deadline: Callable[[], float | None]) -> None:
        """Queue what is there, and close every session except those to be given back.

        :param deadline: as in :meth:`Backlog.join`; giving back does not keep to it.
        """
        self._poller.collect(0)
        self._deliver()
        staying = [link for link in self.links if link.database in give_back and not link.closed]
        others = [link for link in self.links if link not in staying]
        for link in staying:
            link.give_back()  # an answer that fetches, too
        self._wait_for_answers([link for link in others if link.fetch_own()], staying, deadline)
        by = time.monotonic() + LET_GO
        for link in self.links:
            returns = link in staying and not link.is_answering
            link.stop(give_back=returns, wait=time.monotonic() < by)

    def _wait_for_answers(
        self,
        fetching: Collection[Link],
        staying: Collection[Link],
        deadline: Callable[[], float | None],
    ) -> None:
        """The last thing that is read: what we have notified, and that LISTENs are forgotten."""
        last = time.monotonic() + LAST_ANSWERS
        while True:
            now, by = time.monotonic(), deadline()
            by = last if by is None else min(by, last)
            unanswered = [link.database.name for link in fetching if link.waits_for_answer]
            if unanswered and now < by and not self._backlog.overfull:
                until = by
            elif now < last and any(link.waits_for_answer for link in staying):
                until = last
            else:
                break
            for link in self.links:
                link.guarded(partial(link.send_again, now))
            self._poller.collect(min(until - now, LAST_TRIES))
            self._run_commands()
            self._deliver()
        if unanswered and by == last:
            told = ", ".join(unanswered)
            logger.warning("stop: some of our own notifications may not have arrived from %s", told)

    def forget(self) -> None:
        """In a forked child: drop the sockets, sending nothing to the server."""
        for link in self.links:
            link.control.forget()
            if link.session is not None:
                link.session.forget()
            link.database._custody.forget()
        self._poller.close()

    def close(self, by: float) -> None:
        """Close what handlers could still use; a session that comes too late is closed, too.

        :param by: until when to wait, over all links, for threads that use a connection.
        """
        self._over = True
        for link in self.links:
            if link.state is not State.STOPPED:  # finish() has failed
                link.guarded(partial(link.stop, give_back=link.database.wrapped))
        self._run_commands()
        for link in self.links:
            link.control.begin_close()
        for link in self.links:
            link.control.close(by)
        self._poller.close()
