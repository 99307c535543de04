"""What has arrived along with statements, until the next read takes it."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable

from psycopg import pq

from pgsignals._pure.burst import Burst
from pgsignals._pure.values import Notification
from pgsignals._wire.encodings import PROBE, Texts


class Arrivals:
    """Of one session.  The thread that runs a statement adds to it, with the connection's lock."""

    __slots__ = ("__weakref__", "_canary_seen", "_on_arrival", "_texts", "queue")

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._canary_seen = texts.names.latest_canary
        self._on_arrival: weakref.WeakMethod[Callable[[], None]] | None = None
        self.queue: deque[Notification] = deque()

    def deliver(self, queue: deque[Notification], on_arrival: Callable[[], None]) -> None:
        """Add to *queue* from now on.

        :param on_arrival: a bound method, held weakly; called when *queue* was empty, in the
            thread that ran the statement.
        """
        if self._on_arrival is None:  # what came before this call
            queue.extend(self.queue)
        self.queue = queue
        self._on_arrival = weakref.WeakMethod(on_arrival)

    def collect(self, notify: pq.PGnotify) -> None:
        """Add one that came along with a statement's answer."""
        texts, queue = self._texts, self.queue
        texts.follow()
        relname, pid, extra = notify
        queue.append(Notification(texts.names[relname], texts.text(extra), pid))
        if relname == PROBE:  # again, as the hint must not be older than its canary
            texts.names.latest_canary = object()
        # Asked last: what was queued before it may have been taken meanwhile, and ours left behind.
        first = len(queue) == 1
        if first and self._on_arrival and (call := self._on_arrival()) is not None:
            call()

    def take_into(self, fresh: list[Notification] | Burst) -> None:
        """Move all of it to *fresh*."""
        queue = self.queue
        while queue:
            fresh.append(queue.popleft())

    def may_have_canary(self) -> bool:
        """Whether a notification on the probe channel has been read since the last call, by this
        session or by another one."""
        before, self._canary_seen = self._canary_seen, self._texts.names.latest_canary
        return before is not self._canary_seen
