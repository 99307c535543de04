"""The thread that owns every listening socket.

It reads, LISTENs and probes, never blocks on a socket, and never runs users' code: whatever could
block runs on other threads.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection, Iterable
from functools import partial

from pgsignals._dispatch.backlog import Backlog
from pgsignals._engine.announcing import Announcer
from pgsignals._engine.finishing import wait_for_answers
from pgsignals._engine.mailbox import Mailbox
from pgsignals._pure.burst import Burst
from pgsignals._pure.phases import Event, Lifecycle
from pgsignals._pure.states import State
from pgsignals._runtime.log import Log
from pgsignals._sources.intake import now_utc
from pgsignals._sources.listen import Link, Settings
from pgsignals._wire.poller import Poller
from pgsignals._wire.session import Session
from pgsignals.database import Database
from pgsignals.errors import ConnectError

logger = Log("pgsignals.reactor")

#: How long the end waits, over all sessions, for other threads to leave them, in seconds.
LET_GO = 1.0

#: How soon to look again at a link that could not say when it is due, in seconds.
AFTER_A_BUG = 1.0

#: Seconds between two checks of the workers, such as for slow handlers.
CHECK_WORKERS = 5.0


class Reader:
    """Runs the loop of a :class:`.poller.Poller` over its links.

    :param idle: seconds between idle events, None for none.
    """

    def __init__(
        self,
        events: Announcer,
        lifecycle: Lifecycle,
        databases: Iterable[Database],
        backlog: Backlog,
        settings: Settings,
        idle: float | None,
    ) -> None:
        # Never replaced.
        self.events = events
        self.rng = random.Random()
        self._lifecycle = lifecycle
        self._settings = settings
        self._backlog = backlog
        backlog.on_wait = self.wake_waiters
        self.mailbox = Mailbox(self.wake)
        self._poller: Poller[Link, Burst] = Poller("a Reactor")
        self.links = [Link(database, self, settings) for database in databases]

        # Any thread sets it, the reader's resets it: something may be due sooner than it thought.
        self._recheck = True

        # Written by the reader's thread, read by any.
        self._due = 0.0  # when something is due next
        self._over = False  # commands are run by those that post them

        # The reader's thread.
        self._pushed = 0  # the latest request that the links have been given
        self._read_at = 0.0  # when every socket was last read
        self._idle = idle
        self._idle_at = float("inf")
        self._check_workers_at = 0.0

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
        self.mailbox.post(run)
        if self._over:
            self._run_commands()

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
        self.mailbox.wake_waiters()

    def wake_by(self, deadline: float) -> None:
        """Look up what is due no later than *deadline*, as ``time.monotonic()``."""
        self._recheck = True
        if deadline < self._due:
            self._poller.wake()

    def wake(self) -> None:
        """Look up what is due, now.  Takes no lock."""
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
        """Keep the links up until the lifecycle is stopping, or until none of them can go on."""
        self._push_interest()
        for link in self.links:
            session = borrowed.get(link.database)
            link.guarded(link.connect if session is None else partial(link.borrow, session))
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
        if self._pushed != self.mailbox.requests:
            self._push_interest()
        for link in self.links:
            link.guarded(partial(link.tick, now, self._read_at))
        if now >= self._idle_at:
            self._idle_at = now + (self._idle or 0.0)
            self._guarded("an idle event", self.events.idle)
        if now >= self._check_workers_at:
            self._check_workers_at = now + CHECK_WORKERS
            self._guarded("a check of the workers", partial(self.events.check_workers, self.links))
        self._check_links()
        if self.mailbox or self.stopping:
            return now
        due = (self._next_tick(link, now) for link in self.links)
        return min(self._idle_at, self._check_workers_at, *due)

    def _next_tick(self, link: Link, now: float) -> float:
        try:
            return link.next_tick(now)
        except Exception as exc:  # noqa: BLE001 - as link.guarded()
            link.upkeep.misfortune(exc)
            return now + AFTER_A_BUG

    def _guarded(self, what: str, run: Callable[[], None]) -> None:
        """Run a step that is no link's; a bug of ours in it costs this step alone."""
        try:
            run()
        except Exception:
            logger.critical(
                "bug in pgsignals: %s has failed; the reader goes on", what, exc_info=True
            )

    def _push_interest(self) -> None:
        """Give each link the channels that it is to listen to."""
        request = self._pushed = self.mailbox.requests  # before: what changes then is another one

        def push(link: Link) -> None:
            link.want(self.events.wanted(link), request)

        for link in self.links:
            link.guarded(partial(push, link))

    def _run_commands(self) -> None:
        while (command := self.mailbox.take()) is not None:
            self._guarded("a command", command)

    def _deliver(self) -> None:
        """Queue what has been collected, then take up what has ended."""
        while self._poller.pairs:
            link, burst = self._poller.take()
            try:
                self._queue(link, burst)
            except Exception as exc:  # noqa: BLE001 - as link.guarded(), without a call more
                link.upkeep.misfortune(exc)
        while self._poller.ended:
            self._recheck = True
            link = self._poller.ended.popleft()
            link.guarded(link.ended)

    def _queue(self, link: Link, burst: Burst) -> None:
        if (drops := link.intake.dropped) is not None:
            link.intake.dropped = None
            self._backlog.overflow(link, drops)
        link.counters.received += len(burst)
        link.counters.last_received = time.time()
        self._backlog.put(link, burst, link.intake.proven_since, now_utc())
        self.events.queued(link)

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
            link.guarded(link.stop)
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
        wait_for_answers(staying, others, deadline, lambda: self._backlog.overfull, self._read)
        by = time.monotonic() + LET_GO
        for link in self.links:
            returns = link in staying and not link.is_answering
            stop = partial(link.stop, give_back=returns, wait=time.monotonic() < by)
            link.guarded(stop)

    def _read(self, seconds: float) -> None:
        self._poller.collect(seconds)
        self._run_commands()
        self._deliver()

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
            self._guarded("closing a connection", link.control.begin_close)
        for link in self.links:
            self._guarded("closing a connection", partial(link.control.close, by))
        self._poller.close()
