"""What waits between the reader and the workers, and its order: segments, lanes, barriers.

Values and their order alone: who may touch them when is up to
:class:`~pgsignals._dispatch.backlog.Backlog`, whose lock guards all of them but :class:`Hold`.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from operator import length_hint
from typing import Any, Literal, Protocol, TypeAlias

from pgsignals._pure.burst import Burst, Part
from pgsignals._pure.values import Notification

Policy: TypeAlias = Literal["drop_oldest", "coalesce", "block"]

#: What became of a call, or of all calls for a notification: None if they were made, else the
#: exception that one of them raised.
Outcome: TypeAlias = BaseException | None


class Source(Protocol):
    """Where notifications come from; it learns what became of them."""

    @property
    def database(self) -> Any:
        """What its handlers are given as their first argument."""

    @property
    def around(self) -> Callable[..., object] | None:
        """Called in place of each of its handlers; None to call them directly, the fastest way.

        It is called as ``around(handler, database, **given)`` on the worker, inside everything that
        :meth:`Reactor.wrap_handlers` has added.  It calls ``handler(database, **given)`` and
        returns what that returns; what it raises is the failure of the call.  The transaction that
        ``database.transaction()`` opens is the one the handler's own statements belong to: so it
        can open one, call the handler, acknowledge what was *given*, and commit.  It can also
        return without calling a handler whose turn has passed.

        Mark it with :func:`~pgsignals._runtime.reentry.calls_out`.  Routes keep it, so it must not
        change while a reactor runs.
        """

    def settle(self, notifications: Sequence[Notification], outcome: Outcome = None) -> None:
        """Learn what became of *notifications*, in the order of their lane.  Called on the worker,
        with none of our locks held.

        With None, all calls for them have returned or have been reported as failures.  They come
        a run at a time, whether there was a handler or not, and never in a forked child.

        With an exception, a call that was given them raised it, or its decode refused them.  This
        comes at once: before ``handler_failed`` is sent, and before the next call.  The same ones
        come again, with None, when their other calls have returned, unless the worker itself has
        failed.  No notifications: a receiver of one of the reactor's signals raised.

        What is neither settled nor :meth:`dropped` has been given up by a stop that ran out of
        time.

        :param notifications: not to be modified.
        """

    def dropped(self, count: int) -> None:
        """Count *count* of the oldest, dropped as the backlog is full.  Called by the thread that
        puts, with the backlog's lock held, so it must not do more.  :meth:`overflowed` follows."""

    def overflowed(self, drops: Drops) -> None:
        """Report *drops*.  Called on a worker, at their place in the order."""


@dataclass(eq=False)
class Drops:
    """Notifications of one source that were dropped and not reported yet."""

    since: datetime
    until: datetime
    count: int = 0
    channels: set[str] = field(default_factory=set)

    def add(self, channels: Iterable[str], count: int, since: datetime, until: datetime) -> None:
        """Drop this many more, received at *until*."""
        self.channels.update(channels)
        self.count += count
        self.since = min(self.since, since)
        self.until = max(self.until, until)


class Hold:
    """What a source receives before its session may be announced, under the backlog's policy.

    ``"block"`` keeps all of it: the reader, which would have to wait for space, must go on reading
    to learn that the session can be announced.

    :param limit: how many notifications are kept.
    """

    def __init__(self, limit: int, policy: Policy) -> None:
        self._limit = sys.maxsize if policy == "block" else limit
        self._keys: set[tuple[str, str]] | None = set() if policy == "coalesce" else None
        self._burst = Burst()
        self._drops: Drops | None = None
        self.received = 0  # everything put since the last take()

    def __len__(self) -> int:
        return len(self._burst)

    def put(self, burst: Burst, since: datetime, received: datetime) -> None:
        """Keep *burst*; see :meth:`Backlog.put`."""
        self.received += len(burst)
        if self._keys is None:
            self._burst += burst
        else:
            for notification in burst:
                if (key := notification[:2]) not in self._keys:
                    self._keys.add(key)
                    self._burst.append(notification)
        if len(self._burst) > self._limit + self._limit // 4:  # only now and then, as this copies
            self._drop_oldest(since, received)

    def _drop_oldest(self, since: datetime, received: datetime) -> None:
        excess = len(self._burst) - self._limit
        dropped, self._burst = self._burst.part(0, excess), self._burst.part(excess, sys.maxsize)
        if self._keys is not None:
            self._keys.difference_update(zip(dropped.channels, dropped.payloads, strict=True))
        self._drops = self._drops or Drops(since, received)
        self._drops.add(dropped.channels, excess, since, received)

    def take(self, since: datetime, received: datetime) -> tuple[Burst, Drops | None]:
        """Return what is kept and what had to be dropped, if anything, and forget both."""
        if len(self._burst) > self._limit:
            self._drop_oldest(since, received)
        burst, drops = self._burst, self._drops
        self._burst, self._drops, self.received = Burst(), None, 0
        if self._keys is not None:
            self._keys.clear()
        return burst, drops


class Segment:
    """Notifications of one source that arrived at once and wait in one lane."""

    __slots__ = (
        *("_channels", "_rest", "_size", "begun", "channel", "epoch", "received", "since"),
        "source",
    )

    def __init__(
        self,
        source: Source,
        channel: str | None,
        burst: Burst | Part,
        since: datetime,
        received: datetime,
        epoch: int = 0,
    ) -> None:
        self.source = source
        self.channel = channel
        self._size = len(burst)
        self._rest: Iterable[Notification] = burst
        self._channels = burst.channels if channel is None and isinstance(burst, Burst) else None
        self.begun = 0  # those before it have been taken or dropped
        self.since = since
        self.received = received
        self.epoch = epoch  # how many announcements the source had made before

    @property
    def waiting(self) -> int:
        """How many have not begun."""
        return self._size - self.begun

    def take(self, most: int) -> list[Notification]:
        """Take the next ones, at most *most*."""
        if not self.begun:
            self._rest = iter(self._rest)
        taken = list(islice(self._rest, most))
        self.begun += len(taken)
        if self.begun == self._size:
            self.clear()  # what has been handled must not stay in memory
        return taken

    def take_run(self, channel: str, most: int) -> list[Notification]:
        """Take the next ones while they are of *channel*, at most *most*."""
        channels = self._channels
        if channels is None:  # a lane of one channel
            return self.take(most) if channel == self.channel else []
        stop, end = self.begun, min(self._size, self.begun + most)
        step = 16  # a long run is counted in C; a short one must not cost the whole segment
        while step <= end - stop and channels[stop : stop + step].count(channel) == step:
            stop, step = stop + step, 2 * step
        while stop < end and channels[stop] == channel:
            stop += 1
        return self.take(stop - self.begun)

    def oldest(self) -> tuple[Segment, int] | None:
        """As :meth:`Arrival.oldest`, where this is all that arrived."""
        return (self, self.waiting) if self.waiting else None

    def clear(self) -> None:
        """Drop those that have not begun."""
        self.begun = self._size
        self._rest, self._channels = (), None


class Arrival:
    """What was put at once in several segments, and the order over them."""

    __slots__ = ("_at", "_channels", "_passed", "_segments")

    def __init__(self, segments: Iterable[Segment], channels: list[str]) -> None:
        self._segments = {segment.channel: segment for segment in segments}
        self._channels = channels
        self._at = 0
        self._passed = dict.fromkeys(self._segments, 0)  # how many are no longer in the order

    def oldest(self) -> tuple[Segment, int] | None:
        """The segment with the oldest waiting notification, and for how many that holds."""
        while self._at < len(self._channels):
            channel = self._channels[self._at]
            segment = self._segments[channel]
            if segment.begun <= self._passed[channel] and segment.waiting:
                return segment, 1
            self._at += 1  # it has been taken
            self._passed[channel] += 1
        return None

    @property
    def waiting(self) -> int:
        """How many have not begun."""
        return sum(segment.waiting for segment in self._segments.values())

    def clear(self) -> None:
        """Drop it."""
        for segment in self._segments.values():
            segment.clear()


class Announcement:
    """A barrier; *run* is called on a worker when every lane it is queued in has reached it."""

    __slots__ = ("arrived", "channels", "lanes", "queued", "run", "source")

    def __init__(
        self,
        source: Source | None,
        run: Callable[[], None],
        channels: Collection[str] | None,
    ) -> None:
        self.source = source
        self.run = run
        self.channels = channels
        self.lanes: list[Lane] = []
        self.arrived = 0
        self.queued = False

    def covers(self, lane: Lane) -> bool:
        return self.channels is None or lane.channel is None or lane.channel in self.channels


class Lane:
    """Segments and announcements in order, for one worker at a time."""

    __slots__ = ("at", "busy", "channel", "held", "items", "queued", "source", "taken")

    def __init__(self, source: Source | None, channel: str | None) -> None:
        self.source = source
        self.channel = channel

        # Guarded by the backlog's lock.
        self.items: deque[Segment | Announcement] = deque()
        self.busy = False  # a worker runs it
        self.queued = False  # it is ready, and no worker has it yet
        self.at: Announcement | None = None  # the one it has reached and waits for

        # Set with the lock by the worker that runs it; that worker advances held without.
        self.taken: list[Notification] = []  # at once
        self.held: Iterator[Notification] = iter(())  # those of them that it has not begun

    def is_next_of(self, channel: str | None) -> bool:
        """Whether what follows the notification that its worker has just begun may be of *channel*,
        too; asked by that worker."""
        held = length_hint(self.held)
        return not held or self.taken[-held][0] == channel


Task: TypeAlias = tuple[Lane, Segment] | Announcement
