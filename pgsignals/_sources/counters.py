"""What a source counts, one owner for each number."""

from __future__ import annotations

import threading
import time

from pgsignals._runtime.log import Log

logger = Log("pgsignals.reactor")

#: Seconds between two lines of the log about what a full backlog has dropped.
DROPS_LOGGED_EVERY = 10.0


class Counters:
    """The numbers of one source, from the start of a reactor on; any thread may read them."""

    def __init__(self) -> None:
        # The reader's thread: no other one writes them.
        self.received = 0
        self.dropped = 0
        self.reconnects = 0
        self.last_received: float | None = None  # as time.time()
        self._drops_logged = 0  # what the last line said, and when
        self._drops_logged_at = float("-inf")

        self._lock = threading.Lock()  # guards the following; held for one addition alone
        self.dispatched = 0
        self.failed = 0
        self.gaps = 0

    def log_drops(self, name: str, *, finally_: bool = False) -> None:
        """Log what has been dropped: at once, and then periodically; on the reader's thread.

        :param finally_: at once in any case.
        """
        if (dropped := self.dropped) == self._drops_logged:
            return
        now = time.monotonic()
        if now - self._drops_logged_at < DROPS_LOGGED_EVERY and not finally_:
            return
        more, self._drops_logged, self._drops_logged_at = dropped - self._drops_logged, dropped, now
        logger.warning(
            "%s: the backlog is full: %d notifications dropped, %d in all", name, more, dropped
        )

    def note_dispatched(self, count: int) -> None:
        """All calls for *count* notifications have been made."""
        with self._lock:
            self.dispatched += count

    def note_failed(self) -> None:
        """A call has raised, or its decode has refused a payload."""
        with self._lock:
            self.failed += 1

    def note_gap(self) -> None:
        """A gap is reported."""
        with self._lock:
            self.gaps += 1
