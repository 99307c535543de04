"""What has been received and not yet handled: the bounded hand-off from reader to workers.

Notifications wait in lanes, and one worker at a time runs a lane, so that a lane keeps its order.
With one worker there is one lane, which keeps the order over everything; with several there is
one lane for each channel of each source.  An announcement (``lost``, ``connected``, ``gap``) is a
barrier: it is queued in every lane it covers, runs once when all of them have reached it, and
only then lets them go on.  This order is :class:`~pgsignals._pure.order.Order`'s; here are the lock
around it, the limit with its policies, and the hand-over.

A crew is what runs tasks.  Threads wait in :meth:`Backlog.take`.  An event loop, which must not,
asks :meth:`Backlog.take_nowait` until there is nothing, and is woken by :attr:`Backlog.on_ready`.
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
from operator import length_hint
from queue import Empty, SimpleQueue

from pgsignals._dispatch.handover import HandOver
from pgsignals._pure.burst import Burst
from pgsignals._pure.lanes import Announcement, Drops, Lane, Policy, Segment, Source, Task
from pgsignals._pure.order import Order, Ready
from pgsignals._pure.values import Notification

#: Notifications that a worker runs from one lane while other lanes are ready.
TURN = 256

#: The most notifications that a worker takes at once: only what it handles in an instant.
RUN = 64


class Backlog:
    """See the module.

    :param limit: how many notifications may wait, across all sources.
    :param policy: what happens when one more arrives.
    :param parallel: a lane for each channel of a source, instead of one for everything.
    """

    def __init__(self, limit: int, policy: Policy, *, parallel: bool) -> None:
        # Never replaced; the callbacks are set before anything is put.
        self.on_wait: Callable[[], None] = lambda: None
        """Called when the reader has to wait."""
        self._limit = limit
        self._blocks = policy == "block"
        self._run = 1 if policy == "coalesce" else RUN  # held notifications are no longer compared

        self.lock = threading.Lock()  # guards the following
        self.keys: set[Hashable] | None = set() if policy == "coalesce" else None
        self._hand_over = HandOver()
        self._order = Order(parallel=parallel, ready=self._hand_over.put, report=self._report)
        self._busy: set[Lane] = set()
        self._joining = False

        # Without it.  Not a Condition: to wake the reader it must be locked, which a finalizer that
        # interrupts our code cannot do.
        self.reader_waits = False
        self._released = False  # the reader, at the end; "block" still loses nothing
        self._wakes: SimpleQueue[None] = SimpleQueue()  # the reader: space, or the end of all work

    @property
    def waiting(self) -> int:
        """Notifications that have not begun."""
        waiting = self._order.queued
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

        :param since: everything committed before this had been delivered already.
        """
        with self.lock:
            if self.keys is not None:
                burst = self._coalesced(source, burst, self.keys)
            if not burst:
                return
            if not self._blocks:
                self._order.put(source, burst, since, received)
            else:
                queued = 0
                while queued < len(burst):
                    stop = queued + self._room()
                    self._order.put(source, burst.part(queued, stop), since, received)
                    queued = stop
            excess = self.waiting - self._limit
            if excess > 0 and not self._blocks:
                self._order.drop(min(excess, self._order.queued), self._forget_keys)
            self._order.prune()
        self._hand_over.wake()

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
                self._hand_over.wake()
                self.on_wait()
                self._wakes.get()
            finally:
                self.lock.acquire()
        self.reader_waits = False
        return sys.maxsize if self._released else self._limit - self.waiting

    def overflow(self, source: Source, drops: Drops) -> None:
        """Report, in its place, what *source* had to drop before it could put the rest."""
        with self.lock:
            self._order.overflow(source, drops)
        self._hand_over.wake()

    def _report(self, source: Source, epoch: int) -> None:
        """Have *source* report what it has lost; on a worker."""
        with self.lock:
            drops = self._order.take_drops(source, epoch)
        source.overflowed(drops)

    def _forget_keys(self, source: Source, notifications: Iterable[Notification]) -> None:
        if self.keys is not None:
            for channel, payload, _ in notifications:
                self.keys.discard((source, channel, payload))

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
            self._order.announce(source, run, channels)
        self._hand_over.wake()

    # -- the workers' side -----------------------------------------------------------------------

    def take(self) -> Task | None:
        """Wait for something to run.  It is the calling worker's alone until :meth:`done`.

        :returns: None when there will never be anything again.
        """
        while (first := self._hand_over.get()) is not None:
            with self.lock:
                if (task := self._begin(first)) is not None:
                    return task
                self._one_is_done()
            self._hand_over.wake()
        return None

    def take_nowait(self) -> Task | None:
        """As :meth:`take`, for a crew that must not wait.

        :returns: None when there is nothing now, or never again: see :attr:`exhausted`.  When that
            changes, :attr:`on_ready` is called.
        """
        with self.lock:
            while (first := self._hand_over.get_nowait()) is not None:
                if (task := self._begin(first)) is not None:
                    return task
                self._one_is_done()
            return None

    @property
    def on_ready(self) -> Callable[[], None]:
        """Called once when there is something for :meth:`take_nowait`, or :attr:`exhausted` has
        become true, after it has found nothing; on any thread, with no lock of ours held.

        It must not block.  What it raises is logged, and nothing else comes of it.  Set it before
        anything is put.
        """
        return self._hand_over.on_ready

    @on_ready.setter
    def on_ready(self, call: Callable[[], None]) -> None:
        self._hand_over.on_ready = call

    @property
    def exhausted(self) -> bool:
        """True once :meth:`end` has been called and everything has been run."""
        return self._hand_over.exhausted

    def _one_is_done(self) -> None:
        self._hand_over.one_is_done()
        if self._joining and not self._hand_over.undone:
            self._wakes.put(None)

    def _begin(self, first: Ready) -> Task | None:
        if isinstance(first, Announcement):
            return first if self._order.begin(first) else None
        first.queued = False
        if (segment := self._order.first_segment(first)) is None:
            self._order.advance(first)
            return None
        first.busy = True
        self._busy.add(first)
        return first, segment

    def has_other_work(self) -> bool:
        """Whether another lane is ready; to be asked by a worker that has had its turn."""
        return not self._hand_over.queue.empty()

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
                self._order.queued -= len(taken)
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
            self._order.queued -= len(run)
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
        """What :meth:`take` gave has been run, and its source has been told what became of it.

        :returns: what the same worker should go on with: the rest of its lane, unless others wait.
        """
        with self.lock:
            if isinstance(task, Announcement):
                self._order.finish(task)
            else:
                lane, segment = task
                lane.taken = []
                if held := list(lane.held):  # the worker itself has failed
                    self._order.put_back(lane, segment, held)
                following = self._order.first_segment(lane)
                if following is not None and self._hand_over.queue.empty():
                    return lane, following
                lane.busy = False
                self._busy.discard(lane)
                self._order.release(lane)
            self._one_is_done()
        self._hand_over.wake()
        return None

    # -- the end ---------------------------------------------------------------------------------

    def release_reader(self) -> None:
        """Never let the reader wait for space again, and have :meth:`join` ask for its deadline
        again.  Takes no lock."""
        self._released = True
        self._wakes.put(None)

    def end(self) -> None:
        """No more will be put; :meth:`take` gives what is left and then None."""
        with self.lock:
            self._hand_over.end()
        self._hand_over.wake()

    def join(self, deadline: Callable[[], float | None]) -> bool:
        """Wait until everything has been run.  Called by the reader's thread.

        :param deadline: gives a time of ``time.monotonic()``, or None for no limit; asked again
            after :meth:`release_reader`.
        :returns: False when the time ran out.
        """
        with self.lock:
            self._joining = True
        while True:
            with self.lock:
                if not self._hand_over.undone:
                    return True
            by = deadline()
            left = None if by is None else by - time.monotonic()
            if left is not None and left <= 0:
                return False
            with contextlib.suppress(Empty):
                self._wakes.get(timeout=None if left is None else min(left, threading.TIMEOUT_MAX))

    def forget_held(self) -> None:
        """In a forked child, whatever the other threads were doing: workers hold nothing."""
        for lane in tuple(self._busy):
            deque(lane.held, maxlen=0)

    def give_up(self) -> int:
        """Throw away what waits, and return how many notifications that was."""
        with self.lock:
            left = sum(len(list(lane.held)) for lane in self._busy)  # whose workers find none left
            left += self._order.clear()
            self._hand_over.clear()
            if self._joining and not self._hand_over.undone:
                self._wakes.put(None)
        self._hand_over.wake()
        return left
