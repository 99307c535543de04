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

#: What became of a call, or of all calls for a notification: None, they have been made; or what
#: one of them raised.
Outcome: TypeAlias = BaseException | None


class Source(Protocol):
    """Where notifications come from, and who is told what became of them."""

    @property
    def database(self) -> Any:
        """What handlers are given first."""

    @property
    def around(self) -> Callable[..., object] | None:
        """What calls this source's handlers in place of the worker; None to call them as they are,
        which is the fastest.

        It is called as ``around(handler, database, **given)`` on the worker, inside everything that
        :meth:`Reactor.wrap_handlers` has added, once for each call, and what it raises is the
        call's failure.  ``database.transaction()`` in it is the handler's own transaction: so it
        can begin one, call the handler, acknowledge what was *given*, and commit; or return without
        calling a handler whose turn has passed.  It is looked up when handlers are, so it must not
        change during a life.
        """

    def settle(self, notifications: Sequence[Notification], outcome: Outcome = None) -> None:
        """Take note of what became of *notifications*, in the order of their lane; on the worker,
        with no lock of ours held.

        With None: all calls for them have been made.  They come by the run, also if there was no
        handler, and never in a forked child.

        With an exception: a call that was given them has raised it, or its decode has refused them.
        This comes at once, before ``handler_failed`` and before the next call begins; they come
        again, with None, when their other calls have been made, unless it was the worker itself
        that failed.  Without notifications: a receiver of one of the reactor's signals has raised.

        What comes neither here nor by way of :meth:`dropped` has been given up by a stop.

        :param notifications: must not be changed.
        """

    def dropped(self, count: int) -> None:
        """The backlog is full, and has dropped *count* of the oldest; on the thread that puts, with
        the backlog's lock held: so only count them.  :meth:`overflowed` follows."""

    def overflowed(self, drops: Drops) -> None:
        """Report *drops*; on a worker, in their place in the order."""


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
        self.received = 0  # all that was put, since the last take()

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
        """What is kept, and what had to be dropped, if anything; both are gone then."""
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
        """The next ones, at most *most*."""
        if not self.begun:
            self._rest = iter(self._rest)
        taken = list(islice(self._rest, most))
        self.begun += len(taken)
        if self.begun == self._size:
            self.clear()  # what has been handled must not stay in memory
        return taken

    def take_run(self, channel: str, most: int) -> list[Notification]:
        """The next ones as long as they are of *channel*, at most *most*."""
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

    __slots__ = ("arrived", "channels", "epoch", "lanes", "queued", "run", "source")

    def __init__(
        self,
        source: Source | None,
        run: Callable[[], None],
        channels: Collection[str] | None,
        epoch: int,
    ) -> None:
        self.source = source
        self.run = run
        self.channels = channels
        self.epoch = epoch  # what the source has received before it has a lower one
        self.lanes: list[Lane] = []
        self.arrived = 0
        self.queued = False

    def covers(self, lane: Lane) -> bool:
        return self.channels is None or lane.channel is None or lane.channel in self.channels


class Lane:
    """Segments and announcements in order; one worker at a time."""

    __slots__ = ("at", "busy", "channel", "held", "items", "queued", "source", "taken")

    def __init__(self, source: Source | None, channel: str | None) -> None:
        self.source = source
        self.channel = channel
        self.items: deque[Segment | Announcement] = deque()
        self.taken: list[Notification] = []  # by its worker, at once
        self.held: Iterator[Notification] = iter(())  # those of them that have not begun
        self.busy = False
        self.queued = False
        self.at: Announcement | None = None  # the one it has reached and waits for

    def is_next_of(self, channel: str | None) -> bool:
        """Whether *channel* may go on with what follows the one that its worker has just begun;
        for that worker."""
        held = length_hint(self.held)
        return not held or self.taken[-held][0] == channel


Task: TypeAlias = tuple[Lane, Segment] | Announcement
