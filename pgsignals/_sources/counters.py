"""What a source counts, one owner for each number."""

from __future__ import annotations

import threading


class Counters:
    """The numbers of one source, from the start of a reactor on; any thread may read them."""

    def __init__(self) -> None:
        # The reader's thread: no other one writes them.
        self.received = 0
        self.dropped = 0
        self.reconnects = 0
        self.last_received: float | None = None  # as time.time()

        self._lock = threading.Lock()  # guards the following; held for one addition alone
        self.dispatched = 0
        self.failed = 0
        self.gaps = 0

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
