"""The end of a life, and the threads that wait for it, of which none may wait for itself."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable

from pgsignals._dispatch.workers import works_for
from pgsignals._pure.phases import Event, Lifecycle
from pgsignals._runtime.reentry import reentered

#: The longest wait of one step in C, in seconds.
SLICE = 1.0


class Ending:
    """What the threads of one life work for, and what other threads wait for.

    A wait could wait for itself: in a handler, whose return the end needs, or by way of other
    reactors whose handlers wait for this end.  A thread of ours that waits says so first, then
    looks whether that closes a circle; so of two threads that close it together at least one sees
    it.  That one returns at once, and the end goes on behind it.
    """

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        # Any thread, each change one step of C.
        self._over = threading.Event()
        self._calls: deque[Callable[[], None]] = deque()
        self._waits: dict[int, Ending] = {}  # threads of ours, and the end that each waits for

    @property
    def is_ours(self) -> bool:
        """Whether the calling thread works for this life, and cannot wait for its end."""
        return works_for() is self

    def reach(self) -> None:
        """The life is over; called once."""
        try:
            self._lifecycle.happen(Event.END)
        finally:  # a bug of ours must leave no thread waiting
            self._over.set()
            self._call()

    def then(self, call: Callable[[], None]) -> None:
        """Have *call* called at the end, or now."""
        self._calls.append(call)
        if self._over.is_set():
            self._call()

    def _call(self) -> None:
        with contextlib.suppress(IndexError):  # each is called once, by the reader or its asker
            while True:
                self._calls.popleft()()

    def wait(self, seconds: float | None) -> bool:
        """Wait for the end, and return whether it has come.  Returns at once where waiting would
        never end, and where :func:`reentered`: then whether the sessions are closed."""
        if self._over.is_set():
            return True
        here: Ending | None = works_for()
        if here is self or reentered():
            return self._lifecycle.closed
        if here is None:
            return self._wait(seconds)
        me = threading.get_ident()
        here._waits[me] = self
        try:
            return self._lifecycle.closed if self._needs(here) else self._wait(seconds)
        finally:
            del here._waits[me]

    def _wait(self, seconds: float | None) -> bool:
        # In slices: an OS signal that comes just before a wait in C has its handler run only
        # after the wait.
        by = None if seconds is None else time.monotonic() + seconds
        while not self._over.wait(SLICE if by is None else min(SLICE, by - time.monotonic())):
            if by is not None and time.monotonic() >= by:
                return False
        return True

    def _needs(self, other: Ending) -> bool:
        """Whether *other* has to come first, because a thread of ours waits for it."""
        seen: list[Ending] = [self]
        for ending in seen:
            for awaited in tuple(ending._waits.values()):
                if awaited is other:
                    return True
                if awaited not in seen:
                    seen.append(awaited)
        return False
