"""What a source has received, on its way to the backlog: nothing is handed over before the session
is announced."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime

from pgsignals._pure.burst import Burst
from pgsignals._pure.lanes import Drops, Hold, Policy
from pgsignals._pure.values import Notification
from pgsignals._sources.counters import Counters


def now_utc() -> datetime:
    """This machine's clock, aware."""
    return datetime.now(UTC)


class Intake:
    """For the reader's thread, but for :attr:`collected`.

    :param limit: how many notifications are held, under *policy*.
    :param established: what was committed before has been delivered.
    """

    def __init__(
        self, limit: int, policy: Policy, counters: Counters, established: datetime
    ) -> None:
        self._limit = limit
        self._policy = policy
        self._counters = counters
        self._held = Hold(limit, policy)
        #: What was committed before the last read had been delivered before it.
        self.proven_since = established
        #: Notifications dropped before those that were read last, to be reported.
        self.dropped: Drops | None = None
        #: What came along with statements of other code; that code's thread appends.
        self.collected: deque[Notification] = deque()

    def begin(self) -> None:
        """A new session."""
        self._held = Hold(self._limit, self._policy)

    def hold(self, burst: Burst) -> None:
        """Keep *burst* until the session is announced."""
        self._held.put(burst, self.proven_since, now_utc())

    @property
    def holds(self) -> bool:
        """Whether something is kept."""
        return bool(self._held)

    def release(self, burst: Burst) -> Burst:
        """What was kept, followed by *burst*."""
        if not self._held:
            return burst
        received = self._held.received
        held, self.dropped = self._held.take(self.proven_since, now_utc())
        self._counters.received += received - len(held)  # the rest is counted when it is queued
        held += burst
        return held
