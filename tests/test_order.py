"""The order of what waits, without a thread or a lock."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from pgsignals._pure.burst import Burst
from pgsignals._pure.lanes import Announcement, Drops, Lane, Outcome
from pgsignals._pure.order import Order, Ready
from pgsignals._pure.values import Notification

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Spring:
    """A source that counts."""

    database: Any = None
    around = None

    def __init__(self) -> None:
        self.lost = 0

    def settle(self, notifications: Sequence[Notification], outcome: Outcome = None) -> None: ...

    def dropped(self, count: int) -> None:
        self.lost += count

    def overflowed(self, drops: Drops) -> None: ...


class Bench:
    """An order whose ready things run one after another when asked to."""

    def __init__(self, *, parallel: bool = True) -> None:
        self.ready: list[Ready] = []
        self.ran: list[str] = []
        self.source = Spring()
        self.order = Order(parallel=parallel, ready=self.ready.append, report=self._report)

    def _report(self, source: object, epoch: int) -> None:
        drops = self.order.take_drops(self.source, epoch)
        self.ran.append(f"gap of {drops.count} on {''.join(sorted(drops.channels))}")

    def put(self, text: str) -> None:
        burst = Burst(Notification(one[0], one, 1) for one in text.split())
        self.order.put(self.source, burst, NOW, NOW)

    def announce(self, name: str, channels: set[str] | None = None) -> None:
        self.order.announce(self.source, lambda: self.ran.append(name), channels)

    def drop(self, count: int) -> None:
        self.order.drop(count, lambda *_: None)

    def step(self) -> None:
        """Run what has been ready for the longest: an announcement, or all of a segment."""
        first = self.ready.pop(0)
        if isinstance(first, Announcement):
            if self.order.begin(first):
                first.run()
                self.order.finish(first)
            return
        first.queued = False
        if (segment := self.order.first_segment(first)) is not None:
            first.busy = True
            taken = segment.take(segment.waiting)
            self.order.queued -= len(taken)
            self.ran += [one.payload for one in taken]
            first.busy = False
        self.order.release(first)

    def run(self) -> list[str]:
        while self.ready:
            self.step()
        return self.ran

    @property
    def ready_lanes(self) -> set[str | None]:
        return {one.channel for one in self.ready if isinstance(one, Lane)}


@pytest.mark.parametrize("parallel", [False, True])
def test_nothing_is_left_at_the_end(parallel: bool) -> None:
    bench = Bench(parallel=parallel)
    bench.put("a1 b1 a2")
    bench.announce("lost")
    bench.put("c1")
    bench.drop(1)
    bench.run()
    bench.order.prune()

    assert bench.order.queued == 0
    assert not bench.order._announced
    assert not bench.order._arrivals
    assert not bench.order._drops
    assert len(bench.order._lanes) == (0 if parallel else 1)


def test_lane_is_ready_once_however_much_arrives() -> None:
    bench = Bench()
    bench.put("a1")
    bench.put("a2 b1")

    assert [one.channel for one in bench.ready if isinstance(one, Lane)] == ["a", "b"]


def test_announcement_is_ready_when_all_its_lanes_have_reached_it() -> None:
    bench = Bench()
    bench.put("a1 b1")
    bench.announce("lost")
    bench.step()
    assert not any(isinstance(one, Announcement) for one in bench.ready)

    bench.step()
    assert [type(one) for one in bench.ready] == [Announcement]


def test_lane_that_is_made_while_an_announcement_waits_begins_with_it() -> None:
    bench = Bench()
    bench.put("a1")
    bench.announce("lost")
    bench.put("b1")
    assert bench.ready_lanes == {"a"}

    assert bench.run() == ["a1", "lost", "b1"]


def test_announcement_of_other_channels_holds_up_nothing() -> None:
    bench = Bench()
    bench.put("a1 b1")
    bench.announce("gap", {"a"})
    bench.put("b2 c1 a2")
    bench.step()
    bench.step()

    assert bench.ran == ["a1", "b1"]
    assert bench.ready_lanes == {"b", "c"}  # and not a, which waits for the gap
    assert sorted(bench.run()[2:]) == ["a2", "b2", "c1", "gap"]
    assert bench.ran.index("gap") < bench.ran.index("a2")


def test_announcement_that_a_lane_joins_while_it_is_ready_waits_for_that_lane() -> None:
    bench = Bench()
    bench.order.overflow(bench.source, drops_of("a"))
    (announcement,) = bench.ready
    assert isinstance(announcement, Announcement)
    bench.put("b1")
    bench.drop(1)  # of the same epoch: the same report, in another lane

    assert not bench.order.begin(announcement)
    assert {lane.channel for lane in announcement.lanes} == {"a", "b"}
    assert bench.run() == ["gap of 2 on ab"]


def test_oldest_are_dropped_whatever_their_lane() -> None:
    bench = Bench()
    bench.put("a1 b1 a2 b2")
    bench.put("c1")
    bench.drop(3)

    assert bench.source.lost == 3
    assert bench.order.queued == 2
    assert sorted(bench.run()) == sorted(["gap of 3 on ab", "b2", "c1"])
    assert bench.ran.index("gap of 3 on ab") < bench.ran.index("b2")


def test_drops_of_two_epochs_are_two_reports_each_on_its_side() -> None:
    bench = Bench(parallel=False)
    bench.put("a1 a2")
    bench.announce("connected")
    bench.put("a3 a4")
    bench.drop(3)

    assert bench.run() == ["gap of 2 on a", "connected", "gap of 1 on a", "a4"]


def test_what_is_put_back_comes_before_the_rest() -> None:
    bench = Bench()
    bench.put("a1 a2 a3")
    (lane,) = bench.ready
    assert isinstance(lane, Lane)
    segment = bench.order.first_segment(lane)
    assert segment is not None
    taken = segment.take(2)
    bench.order.queued -= 2
    bench.order.put_back(lane, segment, taken[1:])

    assert bench.order.queued == 2
    assert bench.run() == ["a2", "a3"]


def test_clear_forgets_all() -> None:
    bench = Bench()
    bench.put("a1 b1")
    bench.announce("lost")
    bench.put("a2")

    assert bench.order.clear() == 3
    assert bench.run() == []
    bench.put("a3")
    assert bench.run() == ["a3"]


def drops_of(channel: str) -> Drops:
    drops = Drops(NOW, NOW)
    drops.add([channel], 1, NOW, NOW)
    return drops
