"""What has been received and not yet handled: the bounded hand-off from reader to workers.

Notifications wait in lanes, and one worker at a time runs a lane, so that a lane keeps its order.
With one worker there is one lane, which keeps the order over everything; with several there is
one lane for each channel of each source.  An announcement (``lost``, ``connected``, ``gap``) is a
barrier: it is queued in every lane it covers, runs once when all of them have reached it, and
only then lets them go on.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from datetime import datetime
from itertools import chain, islice, takewhile
from operator import itemgetter, length_hint
from queue import Empty, SimpleQueue

from pgsignals._pure.burst import Burst
from pgsignals._pure.lanes import (
    Announcement,
    Arrival,
    Drops,
    Lane,
    Policy,
    Segment,
    Source,
    Task,
)
from pgsignals._pure.values import Notification

#: Notifications that a worker runs from one lane while other lanes are ready.
TURN = 256

#: The most notifications that a worker takes at once: only what it handles in an instant.
RUN = 64


class Backlog:
    """See the module.

    :param limit: how many notifications may wait, over all sources.
    :param policy: what happens to one more.
    :param parallel: lanes for channels, instead of one for everything.
    """

    def __init__(self, limit: int, policy: Policy, *, parallel: bool) -> None:
        self.lock = threading.Lock()
        self._queued = 0  # in lanes
        self.keys: set[Hashable] | None = set() if policy == "coalesce" else None
        self.reader_waits = False
        self.on_wait: Callable[[], None] = lambda: None  # called when the reader has to wait
        self._limit = limit
        self._blocks = policy == "block"
        self._released = False  # the reader, at the end; "block" still loses nothing
        self._parallel = parallel
        self._run = 1 if policy == "coalesce" else RUN  # held notifications are no longer compared
        self._busy: set[Lane] = set()
        self._lanes: dict[tuple[Source | None, str | None], Lane] = {}
        # What workers wait for; a Condition would take twice the time to wake one.
        self._ready: SimpleQueue[Lane | Announcement | None] = SimpleQueue()
        self._undone = 0  # what is ready or runs
        self._arrivals: deque[Segment | Arrival] = deque()
        self._epochs: dict[Source | None, int] = {}  # announcements so far
        self._announced: dict[Source | None, list[Announcement]] = {}  # not run yet, in order
        # What a source has lost between two of its announcements, and what will report it.
        self._drops: dict[tuple[Source, int], tuple[Drops, Announcement]] = {}
        # What the reader waits for, space or the end of all work.  Not a Condition: to wake one, it
        # must be locked, which a finalizer that interrupts our code cannot do.
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._joining = False
        self._ending = False

    @property
    def waiting(self) -> int:
        """Notifications that have not begun."""
        waiting = self._queued
        for lane in tuple(self._busy):
            waiting += length_hint(lane.held)
        return waiting

    @property
    def overfull(self) -> bool:
        """Whether "block", which no longer blocks at the end, has let in all there is room for."""
        return self._blocks and self._released and self.waiting >= self._limit

    # -- the reader's side -----------------------------------------------------------------------

    def put(self, source: Source, burst: Burst, since: datetime, received: datetime) -> None:
        """Queue what *source* received at *received*.

        Blocks only under the policy "block", until there is space or
        :meth:`release_reader` is called.

        :param since: everything that was committed before this had been delivered before.
        """
        with self.lock:
            if self.keys is not None:
                burst = self._coalesced(source, burst, self.keys)
            if not burst:
                return
            if not self._blocks:
                self._queue(source, burst, since, received)
            else:
                queued = 0
                while queued < len(burst):
                    stop = queued + self._room()
                    self._queue(source, burst.part(queued, stop), since, received)
                    queued = stop
            excess = self.waiting - self._limit
            if excess > 0 and not self._blocks:
                self._drop(min(excess, self._queued))
            self._prune()

    def _coalesced(self, source: Source, burst: Burst, keys: set[Hashable]) -> Burst:
        fresh = []
        for notification in burst:
            key = (source, notification.channel, notification.payload)
            if key not in keys:
                keys.add(key)
                fresh.append(notification)
        return Burst(fresh)

    def _room(self) -> int:
        """How many may be queued now under the policy "block"; waits until there is space, and
        releases the lock meanwhile."""
        while not self._released and self.waiting >= self._limit:
            self.reader_waits = True
            self.lock.release()
            try:
                self.on_wait()
                self._wakes.get()
            finally:
                self.lock.acquire()
        self.reader_waits = False
        return sys.maxsize if self._released else self._limit - self.waiting

    def _queue(self, source: Source, burst: Burst, since: datetime, received: datetime) -> None:
        self._queued += len(burst)
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
        self._advance(lane)

    def overflow(self, source: Source, drops: Drops) -> None:
        """Report, in its place, what *source* had to drop before it could put the rest."""
        with self.lock:
            epoch = self._epochs.get(source, 0)
            told, announcement = self._drops_of(source, epoch, drops.since, drops.until)
            told.add(drops.channels, drops.count, drops.since, drops.until)
            source.dropped(drops.count)
            for channel in drops.channels:
                self._stand(announcement, self._lane(source, channel), None)

    def _drop(self, count: int) -> None:
        while count:
            if (oldest := self._arrivals[0].oldest()) is None:
                self._arrivals.popleft()
                continue
            segment, given_up = oldest[0], min(count, oldest[1])
            source, since, received = segment.source, segment.since, segment.received
            drops, announcement = self._drops_of(source, segment.epoch, since, received)
            dropped = segment.take(given_up)
            drops.add(map(itemgetter(0), dropped), given_up, since, received)
            self._forget_keys(source, dropped)
            source.dropped(given_up)
            self._queued -= given_up
            count -= given_up
            self._stand(announcement, self._lane(source, segment.channel), segment)

    def _drops_of(
        self, source: Source, epoch: int, since: datetime, until: datetime
    ) -> tuple[Drops, Announcement]:
        """What *source* has lost in *epoch* that is not reported yet, and what will report it."""
        key = source, epoch
        if key not in self._drops:

            def tell() -> None:
                with self.lock:
                    drops, _ = self._drops.pop(key)
                source.overflowed(drops)

            drops = Drops(since, until)
            announcement = Announcement(source, tell, drops.channels, epoch)
            self._drops[key] = drops, announcement
            self._announce(announcement)
        return self._drops[key]

    def _forget_keys(self, source: Source, notifications: Iterable[Notification]) -> None:
        if self.keys is not None:
            for channel, payload, _ in notifications:
                self.keys.discard((source, channel, payload))

    def _prune(self) -> None:
        """Forget arrivals that have been taken; occasionally also those behind one that has not."""
        arrivals = self._arrivals
        while arrivals and not arrivals[0].waiting:
            arrivals.popleft()
        if len(arrivals) > 2 * self._queued + 64:
            self._arrivals = deque(arrival for arrival in arrivals if arrival.waiting)

    # -- announcements ---------------------------------------------------------------------------

    def announce(
        self,
        source: Source | None,
        run: Callable[[], None],
        channels: Collection[str] | None = None,
    ) -> None:
        """Have *run* called after what *source* has received so far and before what follows.

        :param channels: those that wait for it; None for all of the source.
        """
        with self.lock:
            epoch = self._epochs[source] = self._epochs.get(source, 0) + 1
            announcement = Announcement(source, run, channels, epoch)
            lanes = self._covered(announcement)
            self._announce(announcement)  # to lanes that are made from now on
            for lane in lanes:
                lane.items.append(announcement)
                announcement.lanes.append(lane)
                self._advance(lane)

    def _announce(self, announcement: Announcement) -> None:
        """Remember it for lanes that are made from now on; drops are placed by epoch."""
        announced = self._announced.setdefault(announcement.source, [])
        place = sum(one.epoch <= announcement.epoch for one in announced)
        announced.insert(place, announcement)

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

    def _stand(self, announcement: Announcement, lane: Lane, before: Segment | None) -> None:
        """Put the report of drops into *lane*: before *before*, or at the end, unless it is
        there already."""
        if lane in announcement.lanes:
            return
        items = lane.items
        items.insert(len(items) if before is None else items.index(before), announcement)
        announcement.lanes.append(lane)
        self._advance(lane)

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
            self._advance(lane)
        return lane

    def _advance(self, lane: Lane) -> None:
        """Let a lane that no worker runs go on to its first item."""
        if lane.busy or lane.queued or lane.at is not None:
            return
        items = lane.items
        while items:
            first = items[0]
            if isinstance(first, Announcement):
                lane.at = first
                first.arrived += 1
                self._queue_if_complete(first)
                return
            if first.waiting:
                lane.queued = True
                self._make_ready(lane)
                return
            items.popleft()

    def _queue_if_complete(self, announcement: Announcement) -> None:
        if announcement.arrived == len(announcement.lanes) and not announcement.queued:
            announcement.queued = True
            self._make_ready(announcement)

    def _make_ready(self, what: Lane | Announcement) -> None:
        self._undone += 1
        self._ready.put(what)

    def _one_is_done(self) -> None:
        self._undone -= 1
        if not self._undone:
            if self._joining:
                self._wakes.put(None)
            if self._ending:
                self._ready.put(None)

    # -- the workers' side -----------------------------------------------------------------------

    def take(self) -> Task | None:
        """Something to run, for the calling worker alone, until :meth:`done`.

        Blocks while there is nothing.

        :returns: None when there will never be anything again.
        """
        while (first := self._ready.get()) is not None:
            with self.lock:
                if (task := self._begin(first)) is not None:
                    return task
                self._one_is_done()
        self._ready.put(None)  # for the next worker
        return None

    def _begin(self, first: Lane | Announcement) -> Task | None:
        if isinstance(first, Announcement):
            if first.arrived == len(first.lanes):
                return first
            first.queued = False  # another lane has joined it since
            return None
        first.queued = False
        if (segment := self._first_segment(first)) is None:
            self._advance(first)
            return None
        first.busy = True
        self._busy.add(first)
        return first, segment

    def _first_segment(self, lane: Lane) -> Segment | None:
        items = lane.items
        while items and isinstance(first := items[0], Segment):
            if first.waiting:
                return first
            items.popleft()
        return None

    def has_other_work(self) -> bool:
        """Whether another lane is ready; to be asked by a worker that has had its turn."""
        return not self._ready.empty()

    def take_batch(
        self, lane: Lane, segment: Segment, first: Notification, most: int
    ) -> list[Notification]:
        """Take *first*, which :meth:`begin` has given, and what directly follows it on its channel,
        at most this many in all."""
        channel = first[0]
        with self.lock:
            held = length_hint(lane.held)
            following = lane.taken[-held:][: most - 1] if held else ()
            batch = [first, *takewhile(lambda one: one[0] == channel, following)]
            deque(islice(lane.held, len(batch) - 1), maxlen=0)
            if len(batch) <= held:
                return batch
            for item in lane.items:
                if not isinstance(item, Segment) or item.source is not segment.source:
                    break
                taken = item.take_run(channel, most - len(batch))
                self._forget_keys(item.source, taken)
                self._queued -= len(taken)
                batch += taken
                if item.waiting:
                    break
            self._make_space()
            return batch

    def begin(self, lane: Lane, segment: Segment, most: int) -> Iterator[Notification] | None:
        """The next notifications of *segment*, at most this many, for the worker that runs it.

        All but the first are the lane's ``held`` until the worker reaches them.  What is held
        can no longer be dropped, and announcements come after it; so take only what is handled
        in an instant.

        :returns: None when something else is first in the lane.
        """
        with self.lock:
            if not segment.waiting or lane.items[0] is not segment:
                lane.taken = []
                self._make_space()  # for what has been held
                return None
            share = self._limit // (8 * len(self._busy))  # little of what could be dropped
            run = segment.take(max(1, min(most, self._run, share)))
            self._queued -= len(run)
            self._forget_keys(segment.source, run)
            lane.taken = run
            held = lane.held = iter(run)
            first = next(held)
            self._make_space()
            return chain((first,), held)

    def _make_space(self) -> None:
        """Let a reader that waits go on; called with the lock held.

        Only when half is free: handing over one at a time would cost a thread switch each.
        """
        if self.reader_waits and self.waiting <= self._limit // 2:
            self.reader_waits = False
            self._wakes.put(None)

    def done(self, task: Task) -> Task | None:
        """What :meth:`take` gave has been run, and its source knows what became of it.

        :returns: what the same worker should go on with: the rest of its lane, unless others wait.
        """
        with self.lock:
            if isinstance(task, Announcement):
                self._finish(task)
            else:
                lane, segment = task
                lane.taken = []
                if held := list(lane.held):  # the worker itself has failed
                    self._put_back(lane, segment, held)
                following = self._first_segment(lane)
                if following is not None and self._ready.empty():
                    return lane, following
                lane.busy = False
                self._busy.discard(lane)
                self._advance(lane)
                self._retire(lane)
            self._one_is_done()
            return None

    def _put_back(self, lane: Lane, segment: Segment, held: list[Notification]) -> None:
        since, received = segment.since, segment.received
        again = Segment(
            segment.source, segment.channel, Burst(held), since, received, segment.epoch
        )
        lane.items.insert(lane.items.index(segment), again)
        self._arrivals.appendleft(again)
        self._queued += len(held)

    def _finish(self, announcement: Announcement) -> None:
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
            self._advance(lane)
            self._retire(lane)

    def _retire(self, lane: Lane) -> None:
        if self._parallel and not (lane.items or lane.busy or lane.queued):
            self._lanes.pop((lane.source, lane.channel), None)

    # -- the end ---------------------------------------------------------------------------------

    def release_reader(self) -> None:
        """Never let the reader wait for space again.  Takes no lock."""
        self._released = True
        self._wakes.put(None)

    def end(self) -> None:
        """No more will be put; :meth:`take` gives what is left and then None."""
        with self.lock:
            self._ending = True
            if not self._undone:
                self._ready.put(None)

    def join(self, deadline: Callable[[], float | None]) -> bool:
        """Wait until everything has been run.  For the reader's thread.

        :param deadline: gives a time of ``time.monotonic()``, or None for no limit; asked again
            after :meth:`hurry`.
        :returns: False when the time ran out.
        """
        with self.lock:
            self._joining = True
        while True:
            with self.lock:
                if not self._undone:
                    return True
            by = deadline()
            left = None if by is None else by - time.monotonic()
            if left is not None and left <= 0:
                return False
            with contextlib.suppress(Empty):
                self._wakes.get(timeout=None if left is None else min(left, threading.TIMEOUT_MAX))

    def hurry(self) -> None:
        """The deadline of :meth:`join` has changed.  Takes no lock."""
        self._wakes.put(None)

    def forget_held(self) -> None:
        """In a forked child, whatever the other threads were doing: workers hold nothing."""
        for lane in tuple(self._busy):
            deque(lane.held, maxlen=0)

    def give_up(self) -> int:
        """Throw away what waits, and return how many notifications that were."""
        with self.lock:
            left, self._queued = self._queued, 0
            for lane in self._busy:
                left += len(list(lane.held))  # its worker finds none left
            for arrival in self._arrivals:
                arrival.clear()
            for lane in self._lanes.values():
                lane.items.clear()
            with contextlib.suppress(Empty):
                while self._ready.get_nowait() is not None:
                    self._one_is_done()
            self._lanes.clear()
            self._arrivals.clear()
            self._announced.clear()
            if self._ending and not self._undone:
                self._ready.put(None)
            return left
