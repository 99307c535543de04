"""What happens on the reader's thread, announced to receivers at its place in the order."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pgsignals._dispatch.backlog import Backlog
from pgsignals._dispatch.ordered import OrderedSignal
from pgsignals._dispatch.workers import Workers
from pgsignals._engine.interest import Interest
from pgsignals._sources.listen import Link
from pgsignals._sources.reports import Gap
from pgsignals._sources.upkeep import Reason
from pgsignals.errors import ConnectionLostError


class Announcer:
    """See the module.  The reader's thread calls it, unless said otherwise.

    :param reactor: the sender of the signals that no database sends.
    """

    def __init__(
        self,
        reactor: object,
        signals: Mapping[str, OrderedSignal],
        interest: Interest,
        backlog: Backlog,
        workers: Workers,
    ) -> None:
        # Never replaced.
        self._reactor = reactor
        self._signals = signals
        self._interest = interest
        self._backlog = backlog
        self._workers = workers

        # Set by the reader's thread, reset by a worker.
        self._idle_waits = False

    # -- of a link (Events) ----------------------------------------------------------------------

    def connected(self, link: Link, resumed: bool) -> None:
        """LISTEN is known to hold."""
        self._announce("connected", link, resumed=resumed)

    def lost(self, link: Link, reason: Reason, error: ConnectionLostError) -> None:
        """A session that had been announced is lost."""
        self._announce("lost", link, reason=reason, error=error)

    def _announce(self, name: str, link: Link, **given: object) -> None:
        signal, database = self._signals[name], link.database
        self._backlog.announce(link, lambda: self._workers.emit(signal, database, link, **given))

    def gap(self, link: Link, gap: Gap) -> None:
        """Notifications may have been missed before those that are received from now on."""
        self._backlog.announce(link, lambda: self.overflowed(link, gap), gap.channels)

    def overflowed(self, link: Link, gap: Gap) -> None:
        """The gap is next; on a worker."""
        self._workers.emit_gap(self._signals["gap"], link, gap)

    # -- of the reader ---------------------------------------------------------------------------

    def wanted(self, link: Link) -> set[str]:
        """The channels that *link* is to listen to now."""
        self._workers.forget_stale_routes()
        return self._interest.wanted(link.database)

    def queued(self, link: Link) -> None:
        """Notifications of *link* have been queued."""
        link.counters.log_drops(link.database.name)

    def idle(self) -> None:
        """An idle event is due."""
        if self._idle_waits:
            return  # the workers are busy; a pile of idle events would be useless
        self._idle_waits = True

        def emit() -> None:
            self._idle_waits = False
            self._workers.emit(self._signals["idle"], self._reactor)

        self._backlog.announce(None, emit)

    def check_workers(self, links: Collection[Link]) -> None:
        """Called periodically: warn of what is slow or dropped, and let go of handlers that have
        left."""
        self._workers.warn_of_slow()
        self._workers.forget_stale_routes()
        for link in links:
            link.counters.log_drops(link.database.name)

    # -- of the life -----------------------------------------------------------------------------

    def closed(self, links: Collection[Link]) -> None:
        """The sessions are closed: log what has been dropped and not been logged yet."""
        for link in links:
            link.counters.log_drops(link.database.name, finally_=True)

    def stopped(self, error: BaseException | None, *, drained: bool) -> None:
        """Nothing more follows; returns when the receivers have.

        :param drained: else no worker may be free for it.
        """

        def emit() -> None:
            self._workers.emit(self._signals["stopped"], self._reactor, error=error)

        if drained:
            self._backlog.announce(None, emit)
            self._backlog.join(lambda: None)
        else:
            emit()
