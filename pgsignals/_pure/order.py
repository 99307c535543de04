"""The order of what waits: which lane may go on, where barriers stand, what is dropped first.

A lane's first item decides.  A segment makes the lane ready.  An announcement holds it up: when all
lanes in which it is queued have reached it, it is ready itself, runs once, and lets them go on.
Lanes are made when something arrives for them and forgotten when nothing is left; one that is made
while an announcement waits begins with it.

An *epoch* of a source is the time between two of its announcements.  What has been dropped in one
is reported by an announcement of its own, which stands where the first of it would have been, and
in every lane that has lost something; so a :class:`Gap` comes after what announced its session and
before the first later notification.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Collection
from datetime import datetime
from functools import partial
from operator import itemgetter
from typing import TypeAlias

from pgsignals._pure.burst import Burst
from pgsignals._pure.lanes import Announcement, Arrival, Drops, Lane, Segment, Source
from pgsignals._pure.values import Notification

#: What a worker may run.
Ready: TypeAlias = Lane | Announcement


class Order:
    """See the module.  Guarded by the backlog's lock.

    :param parallel: a lane for each channel of a source, instead of one for everything.
    :param ready: called with what may run now, once; it stays where it is until then.
    :param report: called on a worker, without the lock, when drops are to be reported.
    """

    def __init__(
        self,
        *,
        parallel: bool,
        ready: Callable[[Ready], None],
        report: Callable[[Source, int], None],
    ) -> None:
        self._parallel = parallel
        self._ready = ready
        self._report = report
        self.queued = 0  # notifications in lanes that no worker has taken
        self._lanes: dict[tuple[Source | None, str | None], Lane] = {}
        self._arrivals: deque[Segment | Arrival] = deque()
        self._epochs: dict[Source | None, int] = {}  # announcements so far
        self._announced: dict[Source | None, list[Announcement]] = {}  # not run yet, in order
        # What a source has lost in an epoch, and what will report it.
        self._drops: dict[tuple[Source, int], tuple[Drops, Announcement]] = {}

    # -- arriving --------------------------------------------------------------------------------

    def put(self, source: Source, burst: Burst, since: datetime, received: datetime) -> None:
        """Queue *burst*, which is not empty; see :meth:`Backlog.put`."""
        self.queued += len(burst)
        epoch = self._epochs.get(source, 0)
        if not self._parallel:
            segment = Segment(source, None, burst, since, received, epoch)
            self._arrivals.append(segment)
            self._append(segment)
            return
        segments = [
            Segment(source, channel, part, since, received, epoch)
            for channel, part in burst.split().items()
        ]
        several = len(segments) > 1
        self._arrivals.append(Arrival(segments, burst.channels) if several else segments[0])
        for segment in segments:
            self._append(segment)

    def _append(self, segment: Segment) -> None:
        lane = self._lane(segment.source, segment.channel)
        lane.items.append(segment)
        self.advance(lane)

    def put_back(self, lane: Lane, segment: Segment, held: list[Notification]) -> None:
        """Queue *held*, which a worker had taken of *segment*, before what is left of it."""
        since, received = segment.since, segment.received
        again = Segment(
            segment.source, segment.channel, Burst(held), since, received, segment.epoch
        )
        lane.items.insert(lane.items.index(segment), again)
        self._arrivals.appendleft(again)
        self.queued += len(held)

    def prune(self) -> None:
        """Forget arrivals that have been taken; occasionally also those behind one that has not."""
        arrivals = self._arrivals
        while arrivals and not arrivals[0].waiting:
            arrivals.popleft()
        if len(arrivals) > 2 * self.queued + 64:
            self._arrivals = deque(arrival for arrival in arrivals if arrival.waiting)

    # -- dropping --------------------------------------------------------------------------------

    def drop(self, count: int, forget: Callable[[Source, list[Notification]], None]) -> None:
        """Drop the oldest *count* of what is queued; *forget* is called with them."""
        while count:
            if (oldest := self._arrivals[0].oldest()) is None:
                self._arrivals.popleft()
                continue
            segment, given_up = oldest[0], min(count, oldest[1])
            source, since, received = segment.source, segment.since, segment.received
            drops, announcement = self._drops_of(source, segment.epoch, since, received)
            dropped = segment.take(given_up)
            drops.add(map(itemgetter(0), dropped), given_up, since, received)
            forget(source, dropped)
            source.dropped(given_up)
            self.queued -= given_up
            count -= given_up
            self._stand(announcement, self._lane(source, segment.channel), segment)

    def overflow(self, source: Source, drops: Drops) -> None:
        """See :meth:`Backlog.overflow`."""
        epoch = self._epochs.get(source, 0)
        lost, announcement = self._drops_of(source, epoch, drops.since, drops.until)
        lost.add(drops.channels, drops.count, drops.since, drops.until)
        source.dropped(drops.count)
        for channel in drops.channels:
            self._stand(announcement, self._lane(source, channel), None)

    def _drops_of(
        self, source: Source, epoch: int, since: datetime, until: datetime
    ) -> tuple[Drops, Announcement]:
        """What *source* has lost in *epoch* that is not reported yet, and what will report it."""
        key = source, epoch
        if key not in self._drops:
            drops = Drops(since, until)
            report = partial(self._report, source, epoch)
            announcement = Announcement(source, report, drops.channels)
            self._drops[key] = drops, announcement
            self._announce(announcement)
        return self._drops[key]

    def take_drops(self, source: Source, epoch: int) -> Drops:
        """What is to be reported; what is dropped from now on will be reported later."""
        return self._drops.pop((source, epoch))[0]

    def _stand(self, announcement: Announcement, lane: Lane, before: Segment | None) -> None:
        """Put the report of drops into *lane*: before *before*, or at the end, unless it is
        there already."""
        if lane in announcement.lanes:
            return
        items = lane.items
        items.insert(len(items) if before is None else items.index(before), announcement)
        announcement.lanes.append(lane)
        self.advance(lane)

    # -- announcements ---------------------------------------------------------------------------

    def announce(
        self, source: Source | None, run: Callable[[], None], channels: Collection[str] | None
    ) -> None:
        """See :meth:`Backlog.announce`."""
        self._epochs[source] = self._epochs.get(source, 0) + 1
        announcement = Announcement(source, run, channels)
        lanes = self._covered(announcement)
        self._announce(announcement)  # to lanes that are made from now on
        for lane in lanes:
            lane.items.append(announcement)
            announcement.lanes.append(lane)
            self.advance(lane)

    def _announce(self, announcement: Announcement) -> None:
        """Remember it for lanes that are made from now on."""
        self._announced.setdefault(announcement.source, []).append(announcement)

    def _covered(self, announcement: Announcement) -> list[Lane]:
        # The source's own lane, of no channel, keeps its announcements in order.
        self._lane(announcement.source, None)
        if not self._parallel:
            return list(self._lanes.values())
        return [
            lane
            for lane in self._lanes.values()
            if lane.source is announcement.source and announcement.covers(lane)
        ]

    def begin(self, announcement: Announcement) -> bool:
        """Whether it may run; if not, as another lane has joined it, it will be ready again."""
        if announcement.arrived == len(announcement.lanes):
            return True
        announcement.queued = False
        return False

    def finish(self, announcement: Announcement) -> None:
        """It has run."""
        announced = self._announced.get(announcement.source, [])
        with contextlib.suppress(ValueError):  # dropped meanwhile
            announced.remove(announcement)
        if not announced:
            self._announced.pop(announcement.source, None)
        for lane in announcement.lanes:
            with contextlib.suppress(ValueError):
                lane.items.remove(announcement)  # the first, or next to it
            if lane.at is announcement:
                lane.at = None
            self.release(lane)

    # -- lanes -----------------------------------------------------------------------------------

    def _lane(self, source: Source | None, channel: str | None) -> Lane:
        key = (source, channel) if self._parallel else (None, None)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(*key)
            for announcement in self._announced.get(source, ()):
                if announcement.channels is None or channel in announcement.channels:
                    lane.items.append(announcement)
                    announcement.lanes.append(lane)
            self.advance(lane)
        return lane

    def first_segment(self, lane: Lane) -> Segment | None:
        """What is first in *lane*, if that is a segment."""
        items = lane.items
        while items and isinstance(first := items[0], Segment):
            if first.waiting:
                return first
            items.popleft()
        return None

    def advance(self, lane: Lane) -> None:
        """Let a lane that no worker runs go on to its first item."""
        if lane.busy or lane.queued or lane.at is not None:
            return
        items = lane.items
        while items:
            first = items[0]
            if isinstance(first, Announcement):
                lane.at = first
                first.arrived += 1
                if first.arrived == len(first.lanes) and not first.queued:
                    first.queued = True
                    self._ready(first)
                return
            if first.waiting:
                lane.queued = True
                self._ready(lane)
                return
            items.popleft()

    def release(self, lane: Lane) -> None:
        """Neither a worker nor an announcement holds it any more: it goes on, or is forgotten."""
        self.advance(lane)
        if self._parallel and not (lane.items or lane.busy or lane.queued):
            self._lanes.pop((lane.source, lane.channel), None)

    def clear(self) -> int:
        """Forget all of it, and return how many notifications were queued."""
        left, self.queued = self.queued, 0
        for arrival in self._arrivals:
            arrival.clear()
        for lane in self._lanes.values():
            lane.items.clear()
        self._lanes.clear()
        self._arrivals.clear()
        self._announced.clear()
        return left
