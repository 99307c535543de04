"""The hand-off from reader to workers: real threads, no server."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgsignals._dispatch import calls as _calls
from pgsignals._dispatch import workers as _workers
from pgsignals._dispatch.backlog import RUN, TURN, Backlog
from pgsignals._dispatch.ordered import OrderedSignal
from pgsignals._dispatch.workers import Workers
from pgsignals._pure.burst import Burst
from pgsignals._pure.lanes import Announcement, Drops, Outcome, Policy, Segment
from pgsignals._pure.order import Order
from pgsignals._pure.values import Notification
from pgsignals._sources.counters import Counters
from pgsignals.signals import Channels
from tests.support.waiting import PATIENCE, Background, wait_until

Kind: TypeAlias = Literal["begin", "end", "announced", "gap"]


class Entry(NamedTuple):
    """One line of the record: what happened, to whom."""

    kind: Kind
    source: Origin | None
    what: Any


class Origin:
    """Stands for a link, and for its database."""

    def __init__(self, record: list[Entry], name: str = "fake") -> None:
        self.name = name
        self.database: Any = self
        self.around: Callable[..., object] | None = None
        self.counters = Counters()
        self._record = record

    def settle(self, notifications: Sequence[Notification], outcome: Outcome = None) -> None:
        if outcome is None:
            self.counters.note_dispatched(len(notifications))
        else:
            self.counters.note_failed()

    def dropped(self, count: int) -> None:
        self.counters.dropped += count

    def overflowed(self, drops: Drops) -> None:
        self._record.append(Entry("gap", self, drops))


class Line:
    """A backlog with its workers, which start when the test says so, and a record."""

    def __init__(self, limit: int = 1000, policy: Policy = "drop_oldest", workers: int = 1) -> None:
        self.record: list[Entry] = []
        self.backlog = Backlog(limit, policy, parallel=workers > 1)
        self.source = Origin(self.record)
        self.channels = Channels()
        self.any_channel = OrderedSignal()
        self.any_channel.connect(self._handle, weak=False)
        self.workers = Workers(
            "test", workers, self.backlog, (self.channels,), self.any_channel, OrderedSignal()
        )
        self.during: Callable[[Notification], object] = lambda _: None
        self.puts = 0

    def _handle(self, source: Origin, notification: Notification) -> None:
        self.record.append(Entry("begin", source, notification))
        self.during(notification)
        self.record.append(Entry("end", source, notification))

    def put(self, *texts: str, source: Origin | None = None) -> None:
        """Queue what arrived at once: "a1" has the channel "a"."""
        self.puts += 1
        burst = Burst(Notification(text[0], text, 1) for text in texts)
        self.backlog.put(source or self.source, burst, moment(self.puts - 1), moment(self.puts))

    def batch(self, *channels: str) -> list[list[str]]:
        """What a handler with ``batch=True`` of *channels* is given, call by call."""
        batches: list[list[str]] = []

        def take(_: object, notifications: list[Notification]) -> None:
            batches.append([one.payload for one in notifications])

        for channel in channels:
            self.channels.on_channel(channel, batch=True)(take)
        return batches

    def announce(
        self,
        what: object,
        channels: Collection[str] | None = None,
        source: Origin | None = None,
    ) -> None:
        source = source or self.source
        self.backlog.announce(
            source, lambda: self.record.append(Entry("announced", source, what)), channels
        )

    def start(self) -> None:
        self.workers.start()

    def finish(self) -> None:
        """Wait until all of it has been run, and end the threads."""
        assert self.backlog.join(lambda: time.monotonic() + PATIENCE), "the backlog is stuck"
        self.backlog.end()
        for thread in self.workers.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def run(self) -> list[object]:
        """Run what is there, and return what happened in order."""
        self.start()
        self.finish()
        return self.told

    @property
    def told(self) -> list[object]:
        """Payloads as text; announcements; drops as ("gap", count, channels)."""
        return [_plain(entry) for entry in self.record if entry.kind != "end"]

    @property
    def drops(self) -> list[Drops]:
        return [entry.what for entry in self.record if entry.kind == "gap"]


def _plain(entry: Entry) -> object:
    if entry.kind == "begin":
        return entry.what.payload
    if entry.kind == "gap":
        return "gap", entry.what.count, "".join(sorted(entry.what.channels))
    return entry.what


def moment(number: int) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=number)


def texts(channel: str, numbers: Iterable[int]) -> list[str]:
    return [f"{channel}{number}" for number in numbers]


class Stop:
    """Holds the handler of one notification until it is told to go on."""

    def __init__(self, line: Line, *at: str) -> None:
        self.held: list[str] = []
        self._at = at
        self._gate = threading.Event()
        line.during = self._during

    def _during(self, notification: Notification) -> None:
        if notification.payload in self._at:
            self.held.append(notification.payload)
            self._gate.wait(PATIENCE)

    def reach(self) -> None:
        wait_until(lambda: len(self.held) == len(self._at))

    def go_on(self) -> None:
        self._gate.set()


@pytest.fixture
def greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers take as many at once as they may: 1, 2, 4, 8."""
    monkeypatch.setattr(_workers, "INSTANT", 1000.0)


# Order


def test_one_worker_keeps_the_order_over_all_channels() -> None:
    line = Line()
    line.put("a1", "b1", "a2")
    line.put("c1", "a3")

    assert line.run() == ["a1", "b1", "a2", "c1", "a3"]


def test_one_worker_keeps_the_order_over_all_sources() -> None:
    line = Line()
    other = Origin(line.record)
    line.put("a1")
    line.put("b1", source=other)
    line.put("a2")

    assert line.run() == ["a1", "b1", "a2"]


def test_several_workers_keep_the_order_of_each_channel() -> None:
    line = Line(workers=4, limit=10_000)
    for start in range(0, 1000, 10):
        line.put(*(f"{channel}{start + n}" for n in range(10) for channel in "abc"))

    told = [str(text) for text in line.run()]

    for channel in "abc":
        assert [text for text in told if text[0] == channel] == texts(channel, range(1000))


def test_channel_whose_handler_is_stuck_does_not_hold_another_worker() -> None:
    line = Line(workers=2)
    gate = threading.Event()
    line.during = lambda notification: notification.channel == "a" and gate.wait(PATIENCE)
    line.put("a1", "a2")
    line.start()
    line.put("b1", "b2")

    wait_until(lambda: "b2" in line.told)
    gate.set()
    line.finish()

    assert line.told.index("b2") < line.told.index("a2")


def test_one_channel_is_never_run_by_two_workers() -> None:
    line = Line(workers=4)
    inside = threading.Lock()
    overlaps: list[bool] = []

    def during(_: Notification) -> None:
        if not inside.acquire(blocking=False):
            overlaps.append(True)
            return
        time.sleep(0)
        inside.release()

    line.during = during
    line.start()
    for start in range(0, 600, 3):
        line.put(*texts("a", range(start, start + 3)))
    line.finish()

    assert not overlaps


def test_long_lane_lets_a_short_one_have_a_turn() -> None:
    line = Line(workers=2, limit=100_000)
    gate = threading.Event()
    line.during = lambda one: one.payload == "z0" and gate.wait(PATIENCE)
    line.put("z0")  # keeps one of the two workers
    line.start()
    wait_until(lambda: "z0" in line.told)
    line.put(*texts("a", range(5000)))
    line.put("b0")
    wait_until(lambda: "a4999" in line.told)
    gate.set()
    line.finish()

    assert line.told.index("b0") < line.told.index("a4999")


def test_lane_of_many_arrivals_lets_a_short_one_have_a_turn() -> None:
    line = Line(workers=2)
    gate = threading.Event()
    line.during = lambda one: one.payload == "z0" and gate.wait(PATIENCE)
    line.put("z0")  # keeps one of the two workers
    for text in texts("a", range(100)):
        line.put(text)
    line.put("b0")
    line.start()
    wait_until(lambda: "a99" in line.told)
    gate.set()
    line.finish()

    assert line.told.index("b0") < line.told.index("a1")


def test_worker_goes_on_with_its_lane_up_to_an_announcement() -> None:
    line = Line()
    line.put("a1")
    line.put("b1")
    line.announce("gap")
    line.put("a2")
    line.put("b2")

    assert line.run() == ["a1", "b1", "gap", "a2", "b2"]


def test_what_was_run_is_counted() -> None:
    line = Line()
    line.put("a1", "a2", "b1")
    line.run()

    assert line.source.counters.dispatched == 3
    assert line.backlog.waiting == 0


# drop_oldest


def test_nothing_is_dropped_up_to_the_limit() -> None:
    line = Line(limit=3)
    line.put("a1", "a2", "a3")

    assert line.run() == ["a1", "a2", "a3"]
    assert line.source.counters.dropped == 0


def test_oldest_are_dropped_and_told_exactly_before_the_first_later_one() -> None:
    line = Line(limit=3)
    line.put("a1", "a2")
    line.put("b3", "a4", "a5")

    assert line.run() == [("gap", 2, "a"), "b3", "a4", "a5"]
    assert line.source.counters.dropped == 2


def test_flood_that_arrives_at_once_drops_its_own_oldest() -> None:
    line = Line(limit=3)
    line.put(*texts("a", range(10)))

    assert line.run() == [("gap", 7, "a"), "a7", "a8", "a9"]


@pytest.mark.parametrize("workers", [1, 4])
def test_oldest_is_dropped_whatever_its_channel(workers: int) -> None:
    line = Line(limit=4, workers=workers)
    line.put("a0", "b1", "a2", "b3", "a4", "b5", "a6", "b7")

    told = line.run()

    assert {text for text in told if isinstance(text, str)} == {"a4", "b5", "a6", "b7"}
    assert [drops.count for drops in line.drops] == [4]


def test_what_a_failed_worker_gives_back_is_still_the_oldest() -> None:
    lanes: list[Any] = []
    order = Order(parallel=True, ready=lanes.append, report=lambda *_: None)
    source = Origin([])
    order.put(source, Burst([Notification("a", "a1", 1)]), moment(0), moment(1))
    segment = order.first_segment(lanes[0])
    assert segment is not None
    lanes[0].busy = True
    held = segment.take(1)
    order.queued -= 1
    order.put(source, Burst([Notification("b", "b1", 1)]), moment(1), moment(2))
    order.put_back(lanes[0], segment, held)
    dropped: list[Notification] = []

    order.drop(1, lambda _, some: dropped.extend(some))

    assert [one.payload for one in dropped] == ["a1"]
    assert order.queued == 1


def test_oldest_is_dropped_also_with_a_batching_channel() -> None:
    line = Line(limit=4)
    line.batch("a")
    line.put("a0", "b1", "a2", "b3", "a4", "b5", "a6", "b7")

    told = line.run()

    assert {text for text in told if isinstance(text, str)} == {"a4", "b5", "a6", "b7"}


@pytest.mark.parametrize("workers", [1, 4])
def test_oldest_is_dropped_whatever_its_source(workers: int) -> None:
    line = Line(limit=2, workers=workers)
    other = Origin(line.record)
    line.put("a1")
    line.put("b1", source=other)
    line.put("a2")
    line.put("b2", source=other)

    line.run()

    assert (line.source.counters.dropped, other.counters.dropped) == (1, 1)
    gaps = [entry for entry in line.record if entry.kind == "gap"]
    assert {entry.source for entry in gaps} == {line.source, other}
    assert all(entry.what.count == 1 for entry in gaps)


def test_drops_that_have_not_been_told_share_one_gap_with_the_exact_sum() -> None:
    line = Line(limit=2)
    for number in range(10):
        line.put(f"a{number}")
    line.put("b0", "b1")

    assert line.run() == [("gap", 10, "a"), "b0", "b1"]


def test_drops_after_a_gap_was_told_make_another_one() -> None:
    line = Line(limit=2)
    gate = threading.Event()
    line.during = lambda one: one.payload == "a2" and gate.wait(PATIENCE)
    line.put("a0", "a1", "a2")
    line.put("a3")
    line.start()
    wait_until(lambda: "a2" in line.told)
    line.put("a4", "a5")  # of which a3 goes
    gate.set()
    line.finish()

    assert line.told == [("gap", 2, "a"), "a2", ("gap", 1, "a"), "a4", "a5"]


def test_gap_spans_what_was_dropped() -> None:
    line = Line(limit=1)
    for number in range(5):  # the put with number n has arrived at n, and n - 1 was proven
        line.put(f"a{number}")
    line.run()

    (drops,) = line.drops
    assert (drops.since, drops.until) == (moment(0), moment(4))


def test_what_a_handler_has_begun_is_not_dropped() -> None:
    line = Line(limit=1)
    gate = threading.Event()
    line.during = lambda one: one.payload == "a0" and gate.wait(PATIENCE)
    line.put("a0")
    line.start()
    wait_until(lambda: "a0" in line.told)
    line.put("a1")
    gate.set()
    line.finish()

    assert line.told == ["a0", "a1"]
    assert line.source.counters.dropped == 0


def test_gap_holds_the_later_ones_of_its_channels_and_no_others() -> None:
    line = Line(limit=4, workers=2)
    gate = threading.Event()
    line.during = lambda one: one.payload == "a0" and gate.wait(PATIENCE)
    line.put("a0")
    line.start()
    wait_until(lambda: "a0" in line.told)
    line.put("a1", "a2", "a3", "a4")
    line.put("b0")  # a1 goes; its gap waits for the handler of a0
    wait_until(lambda: "b0" in line.told)
    assert line.told == ["a0", "b0"]
    gate.set()
    line.finish()

    assert line.told == ["a0", "b0", ("gap", 1, "a"), "a2", "a3", "a4"]


# coalesce


def test_coalesce_does_not_queue_what_equals_a_waiting_one() -> None:
    line = Line(policy="coalesce")
    line.put("a1", "b1", "a1")
    line.put("a2", "a1")

    assert line.run() == ["a1", "b1", "a2"]
    assert line.source.counters.dropped == 0


def test_coalesce_queues_again_what_a_handler_has_begun() -> None:
    line = Line(policy="coalesce")
    gate = threading.Event()
    line.during = lambda _: gate.wait(PATIENCE)
    line.put("a1")
    line.start()
    wait_until(lambda: "a1" in line.told)
    line.put("a1", "a1")
    gate.set()
    line.finish()

    assert line.told == ["a1", "a1"]


def test_coalesce_tells_two_sources_and_two_channels_apart() -> None:
    line = Line(policy="coalesce")
    other = Origin(line.record)
    line.put("a1")
    line.put("a1", source=other)
    line.backlog.put(line.source, Burst([Notification("b", "a1", 1)]), moment(2), moment(3))

    assert line.run() == ["a1", "a1", "a1"]


def test_coalesce_drops_the_oldest_of_too_many_different_ones() -> None:
    line = Line(limit=2, policy="coalesce")
    line.put("a1", "a2", "a1", "a3")
    line.put("a1")  # was dropped, so it does not wait any more

    assert line.run() == [("gap", 2, "a"), "a3", "a1"]
    assert line.source.counters.dropped == 2


# block


def test_block_waits_for_space_and_loses_nothing() -> None:
    line = Line(limit=10, policy="block")
    most = []
    line.during = lambda _: most.append(line.backlog.waiting)
    reader = Background(line.put, *texts("a", range(1000)))
    wait_until(lambda: line.backlog.reader_waits)
    line.start()
    reader.result()
    line.finish()

    assert line.told == texts("a", range(1000))
    assert max(most) <= 10
    assert line.source.counters.dropped == 0


def test_released_reader_does_not_wait_and_loses_nothing() -> None:
    line = Line(limit=10, policy="block")
    reader = Background(line.put, *texts("a", range(1000)))
    wait_until(lambda: line.backlog.reader_waits)

    line.backlog.release_reader()
    reader.result()
    line.put("b0")

    assert line.run() == [*texts("a", range(1000)), "b0"]


def test_reader_that_begins_to_wait_says_so_first_without_the_lock() -> None:
    """What waits for the reader has to look again, as the reader may be waiting for it."""
    line = Line(limit=1, policy="block")
    said: list[tuple[bool, bool]] = []
    backlog = line.backlog
    backlog.on_wait = lambda: said.append((backlog.reader_waits, backlog.lock.locked()))
    reader = Background(line.put, "a0", "a1")
    wait_until(lambda: bool(said))
    backlog.release_reader()
    reader.result()

    assert said == [(True, False)]
    assert line.run() == ["a0", "a1"]


def test_batch_makes_space_for_a_reader_that_waits() -> None:
    line = Line(limit=10, policy="block")
    batches: list[int] = []

    @line.channels.on_channel("a", batch=True)
    def take(_: object, notifications: list[Notification]) -> None:
        batches.append(len(notifications))

    line.start()
    for start in range(0, 1000, 50):
        line.put(*texts("a", range(start, start + 50)))
    line.finish()

    assert sum(batches) == 1000
    assert max(batches) <= 10


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("limit", [1, 2, 3, 8, 16, 100])
@pytest.mark.usefixtures("greedy")
def test_block_never_locks_up(limit: int, workers: int) -> None:
    line = Line(limit=limit, policy="block", workers=workers)
    line.start()
    expected = {channel: texts(channel, range(1500)) for channel in "abc"}

    def read() -> None:
        for rows in zip(*expected.values(), strict=True):
            line.put(*rows)

    Background(read).result(PATIENCE)
    line.finish()

    for channel, sent in expected.items():
        assert [text for text in map(str, line.told) if text[0] == channel] == sent


# What a worker takes at once


@pytest.mark.usefixtures("greedy")
def test_what_a_worker_has_taken_waits_and_is_not_dropped() -> None:
    line = Line(limit=1000)
    line.put(*texts("a", range(200)))
    stop = Stop(line, "a99")  # in the middle of those from 63 to 126
    line.start()
    stop.reach()
    assert line.backlog.waiting == 100

    line.put(*texts("a", range(200, 1200)))
    assert line.backlog.waiting == 1000
    stop.go_on()
    line.finish()

    dropped = 1200 - 100 - 1000
    assert line.told == [
        *texts("a", range(127)),
        ("gap", dropped, "a"),
        *texts("a", range(127 + dropped, 1200)),
    ]
    assert line.source.counters.dropped == dropped
    assert line.source.counters.dispatched == 1200 - dropped


@pytest.mark.parametrize("workers", [1, 3, 16])
@pytest.mark.parametrize("limit", [1, 7, 16, 100])
@pytest.mark.usefixtures("greedy")
def test_newest_are_kept_whatever_has_been_taken(limit: int, workers: int) -> None:
    line = Line(limit=limit, workers=workers)
    channels = "abcdefghijklmnop"[:workers]
    for number in range(limit // workers):
        line.put(*(f"{channel}{number}" for channel in channels))
    stop = Stop(line, *(f"{channel}{limit // workers - 1}" for channel in channels))
    if limit >= workers:
        line.start()
        stop.reach()
    new = texts("z", range(10 * limit))
    for number in range(10):
        line.put(*new[number * limit : (number + 1) * limit])
        assert line.backlog.waiting == limit
    stop.go_on()
    if limit < workers:
        line.start()
    line.finish()

    told = [one for one in map(str, line.told) if one[0] == "z"]
    assert told[-1:] == new[-1:]
    assert told == [*told[: len(told) - limit], *new[len(new) - limit :]]
    sent = limit // workers * workers + len(new)
    assert sum(drops.count for drops in line.drops) + line.source.counters.dispatched == sent


@pytest.mark.usefixtures("greedy")
def test_what_a_worker_has_taken_is_little_of_the_limit() -> None:
    line = Line(limit=80)
    line.put(*texts("a", range(80)))
    stop = Stop(line, "a15")  # the first of ten, after runs of 1, 2, 4 and 8
    line.start()
    stop.reach()

    line.put(*texts("b", range(80)))
    stop.go_on()
    line.finish()

    assert line.told == [
        *texts("a", range(25)),
        ("gap", 64, "ab"),
        *texts("b", range(9, 80)),
    ]


@pytest.mark.usefixtures("greedy")
def test_what_many_workers_have_taken_is_little_of_the_limit() -> None:
    channels = "abcdefghijklmnop"
    line = Line(limit=160, workers=16)
    line.put(*(f"{channel}{number}" for number in range(10) for channel in channels))
    stop = Stop(line, *(f"{channel}3" for channel in channels))
    hold, barrier = line.during, threading.Barrier(16)
    firsts = {f"{channel}0" for channel in channels}
    line.during = lambda one: barrier.wait(PATIENCE) if one.payload in firsts else hold(one)
    line.start()
    stop.reach()

    line.put(*texts("z", range(160)))
    stop.go_on()
    line.finish()

    assert [one for one in map(str, line.told) if one[0] == "z"] == texts("z", range(160))


@pytest.mark.usefixtures("greedy")
def test_coalesce_knows_everything_that_waits() -> None:
    line = Line(limit=1000, policy="coalesce")
    line.put(*texts("a", range(200)))
    stop = Stop(line, "a99")
    line.start()
    stop.reach()

    line.put(*texts("a", range(98, 200)))  # two have begun, and the others wait
    stop.go_on()
    line.finish()

    assert line.told == texts("a", [*range(200), 98, 99])


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.usefixtures("greedy")
def test_announcement_comes_after_what_has_been_taken(workers: int) -> None:
    line = Line(workers=workers)
    line.put(*texts("a", range(200)))
    stop = Stop(line, "a99")
    line.start()
    stop.reach()

    line.announce("lost")
    line.put("a200", "b1")
    stop.go_on()
    line.finish()

    assert line.told[:201] == [*texts("a", range(200)), "lost"]
    assert sorted(map(str, line.told[201:])) == ["a200", "b1"]


@pytest.mark.usefixtures("greedy")
def test_disconnected_handler_is_not_called_for_the_rest_of_what_was_taken() -> None:
    line = Line()
    calls: list[str] = []

    @line.channels.on_channel("a")
    def handle(_: object, notification: Notification) -> None:
        calls.append(notification.payload)
        if notification.payload == "a99":
            line.channels.channel("a").disconnect(handle)

    line.put(*texts("a", range(200)))

    assert line.run() == texts("a", range(200))
    assert calls == texts("a", range(100))


@pytest.mark.usefixtures("greedy")
def test_handler_that_fails_in_the_middle_costs_nothing_else() -> None:
    line = Line()

    def fail(notification: Notification) -> None:
        if notification.payload in ("a99", "a126", "a127"):
            raise ValueError

    line.during = fail
    line.put(*texts("a", range(200)))

    assert line.run() == texts("a", range(200))
    assert line.source.counters.failed == 3


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("greedy")
def test_worker_that_fails_itself_goes_on_with_what_it_had_taken(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter of the user's logging may raise."""
    line = Line(limit=1000, workers=workers)

    def fail(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr(_calls.Calls, "failed", fail)
    line.put(*texts("a", range(200)))

    def fail_at_99(notification: Notification) -> None:
        if notification.payload == "a99":
            line.put(*texts("a", range(200, 1150)))  # which drops the oldest after those taken
            raise ValueError

    line.during = fail_at_99

    dropped = 200 + 950 - 100 - 1000
    assert line.run() == [
        *texts("a", range(100)),
        ("gap", dropped, "a"),
        *texts("a", range(100, 127)),
        *texts("a", range(127 + dropped, 1150)),
    ]
    assert line.backlog.waiting == 0


@pytest.mark.usefixtures("greedy")
def test_turn_of_a_long_lane_ends_soon_also_when_much_is_taken() -> None:
    line = Line(workers=2)
    stop = Stop(line, "a0", "b0")
    line.put(*texts("a", range(900)))
    line.put("b0")
    line.start()
    stop.reach()  # both workers are held

    line.put("c0")
    stop.go_on()
    line.finish()

    assert line.told.index("c0") <= TURN + RUN + 2


# Announcements


@pytest.mark.parametrize("workers", [1, 4])
def test_announcement_comes_after_what_was_there_and_before_what_follows(workers: int) -> None:
    line = Line(workers=workers)
    line.put("a1", "b1")
    line.announce("lost")
    line.announce("connected")
    line.put("a2", "c1")

    told = line.run()

    assert sorted(map(str, told[:2])) == ["a1", "b1"]
    assert told[2:4] == ["lost", "connected"]
    assert sorted(map(str, told[4:])) == ["a2", "c1"]


@pytest.mark.parametrize("workers", [1, 4])
def test_announcement_without_notifications_runs(workers: int) -> None:
    line = Line(workers=workers)
    line.announce("connected")

    assert line.run() == ["connected"]


def test_announcement_waits_for_every_lane_and_runs_once() -> None:
    line = Line(workers=4)
    gate = threading.Event()
    line.during = lambda one: one.payload == "a1" and gate.wait(PATIENCE)
    line.put("a1", "b1", "c1")
    line.announce("lost")
    line.put("b2", "c2", "d2")
    line.start()
    wait_until(lambda: {"b1", "c1"} <= set(line.told))
    assert not {"lost", "b2", "c2", "d2"} & set(line.told)
    gate.set()
    line.finish()

    assert line.told[:3] != ["lost"]
    assert line.told[3] == "lost"
    assert sorted(map(str, line.told[4:])) == ["b2", "c2", "d2"]


def test_announcement_for_channels_lets_others_go_on() -> None:
    line = Line(workers=2)
    gate = threading.Event()
    line.during = lambda one: one.payload == "a1" and gate.wait(PATIENCE)
    line.put("a1")
    line.announce("gap of a", {"a"})
    line.put("b1", "a2")
    line.start()
    wait_until(lambda: "b1" in line.told)
    gate.set()
    line.finish()

    assert line.told == ["a1", "b1", "gap of a", "a2"]


def test_announcements_of_a_source_do_not_hold_another_source() -> None:
    line = Line(workers=2)
    other = Origin(line.record)
    gate = threading.Event()
    line.during = lambda one: one.payload == "a1" and gate.wait(PATIENCE)
    line.put("a1")
    line.announce("lost")
    line.put("b1", source=other)
    line.announce("other lost", source=other)
    line.start()
    wait_until(lambda: "other lost" in line.told)
    gate.set()
    line.finish()

    assert line.told == ["a1", "b1", "other lost", "lost"]


@pytest.mark.parametrize("workers", [1, 4])
def test_gap_of_what_waited_behind_an_announcement_comes_before_the_first_later_one(
    workers: int,
) -> None:
    line = Line(limit=2, workers=workers)
    line.announce("connected")
    line.put("a1", "a2")
    line.put("a3")

    told = line.run()

    assert sorted(map(str, told)) == sorted(map(str, ["connected", ("gap", 1, "a"), "a2", "a3"]))
    assert told[2:] == ["a2", "a3"]


def test_announcement_that_fails_does_not_end_the_worker() -> None:
    line = Line()

    def fail() -> None:
        raise RuntimeError("on purpose")

    line.backlog.announce(line.source, fail)
    line.put("a1")

    assert line.run() == ["a1"]


def test_logging_that_fails_does_not_end_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> bool:
        raise RuntimeError("on purpose")

    logger = logging.getLogger(_workers.__name__)
    line = Line()
    line.during = lambda one: one.payload == "a1" and fail()
    line.put("a1", "a2")
    line.put("b1")
    logger.addFilter(fail)
    try:
        assert line.run() == ["a1", "a2", "b1"]
    finally:
        logger.removeFilter(fail)


# A crew that must not wait


class Crew:
    """Runs what there is when it is asked to, in the calling thread."""

    def __init__(self, line: Line) -> None:
        self.backlog = line.backlog
        self.calls = 0
        self.backlog.on_ready = self._on_ready
        self._line = line

    def _on_ready(self) -> None:
        assert self.backlog.lock.acquire(blocking=False), "it is called with the lock held"
        self.backlog.lock.release()
        self.calls += 1

    def is_at_the_end(self) -> bool:
        return self.backlog.exhausted

    def run(self) -> None:
        """Run all there is."""
        task = self.backlog.take_nowait()
        while task is not None:
            if isinstance(task, Announcement):
                task.run()
            else:
                while (run := self.backlog.begin(*task, 8)) is not None:
                    for notification in run:
                        self._line._handle(self._line.source, notification)
            task = self.backlog.done(task) or self.backlog.take_nowait()


@pytest.mark.parametrize("workers", [1, 4])
def test_crew_that_found_nothing_is_woken_once_per_hand_over(workers: int) -> None:
    line = Line(workers=workers)
    crew = Crew(line)
    line.put("a1")
    assert crew.calls == 0  # it has not looked yet, so it will find that

    crew.run()
    assert line.told == ["a1"]
    assert crew.calls == 0

    line.put("a2", "b1")
    line.put("a3")
    line.announce("lost")
    assert crew.calls == 1

    crew.run()
    assert sorted(map(str, line.told)) == ["a1", "a2", "a3", "b1", "lost"]
    line.announce("connected")
    assert crew.calls == 2
    crew.run()
    assert line.told[-1] == "connected"


def test_crew_is_woken_by_drops_that_the_source_reports() -> None:
    line = Line()
    crew = Crew(line)
    crew.run()
    drops = Drops(moment(5), moment(6))
    drops.add(["a"], 7, moment(5), moment(6))
    line.backlog.overflow(line.source, drops)
    assert crew.calls == 1
    crew.run()

    assert line.told == [("gap", 7, "a")]


def test_crew_learns_of_the_end() -> None:
    line = Line()
    crew = Crew(line)
    line.put("a1")
    crew.run()
    assert not crew.is_at_the_end()

    line.backlog.end()
    assert crew.calls == 1
    assert crew.is_at_the_end()
    assert line.backlog.take_nowait() is None
    assert line.backlog.take_nowait() is None
    assert crew.calls == 1


def test_end_is_there_for_threads_after_a_crew_has_seen_it() -> None:
    line = Line()
    line.backlog.end()
    assert line.backlog.take_nowait() is None

    assert Background(line.backlog.take).result() is None


def test_crew_learns_of_the_end_when_another_finishes_the_last_task() -> None:
    line = Line(workers=2)
    crew = Crew(line)
    line.put("a1")
    task = line.backlog.take_nowait()
    assert task is not None
    crew.run()
    line.backlog.end()
    assert not crew.is_at_the_end()
    assert crew.calls == 0

    assert not isinstance(task, Announcement)
    assert list(line.backlog.begin(*task, 1) or ()) == [Notification("a", "a1", 1)]
    assert line.backlog.done(task) is None
    assert crew.is_at_the_end()
    assert crew.calls == 1


def test_crew_learns_of_what_is_given_up_at_the_end() -> None:
    line = Line()
    crew = Crew(line)
    crew.run()
    line.put("a1")
    line.backlog.end()
    assert line.backlog.give_up() == 1

    assert line.backlog.take_nowait() is None
    assert crew.is_at_the_end()


def test_crew_is_woken_before_the_reader_waits_for_it() -> None:
    line = Line(limit=2, policy="block")
    crew = Crew(line)
    crew.run()
    reader = Background(line.put, *texts("a", range(100)))
    while reader.running:
        wait_until(lambda: crew.calls or not reader.running)
        crew.calls = 0
        crew.run()
    crew.run()

    assert line.told == texts("a", range(100))


def test_crew_that_cannot_be_woken_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """As the loop of an event loop that has been closed."""
    line = Line()
    crew = Crew(line)
    crew.run()
    loop = asyncio.new_event_loop()
    loop.close()
    line.backlog.on_ready = lambda: loop.call_soon_threadsafe(crew.run)  # type: ignore[assignment]
    line.put("a1")
    line.announce("lost")
    line.put("a2")

    assert len(caplog.records) == 1  # not one per put
    assert caplog.records[0].exc_info is not None
    assert line.run() == ["a1", "lost", "a2"]  # by threads, as it is all there


@pytest.mark.parametrize("parallel", [False, True])
def test_event_loop_runs_what_threads_put(parallel: bool) -> None:
    line = Line(workers=2 if parallel else 1, limit=100_000)
    crew = Crew(line)

    async def run() -> None:
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        line.backlog.on_ready = lambda: loop.call_soon_threadsafe(woken.set)  # type: ignore[assignment]
        crew.run()
        putting = loop.run_in_executor(None, put)
        while not line.backlog.exhausted:
            await asyncio.wait_for(woken.wait(), PATIENCE)
            woken.clear()
            crew.run()
        await putting

    def put() -> None:
        for number in range(0, 500, 2):
            line.put(f"a{number}", f"b{number}", f"a{number + 1}")
            line.announce(number)
        line.backlog.end()

    asyncio.run(run())

    assert [one for one in line.told if str(one)[0] == "a"] == texts("a", range(500))
    announced = [one for one in line.told if isinstance(one, int)]
    assert announced == list(range(0, 500, 2))
    for number in announced:
        assert line.told.index(f"a{number + 1}") < line.told.index(number)


# What is kept


class Payload(str):
    """A text that can be referred to weakly."""


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("batched", [set(), {"a"}])
@pytest.mark.parametrize("policy", ["drop_oldest", "coalesce", "block"])
def test_what_has_been_handled_does_not_stay(
    policy: Policy, batched: set[str], workers: int
) -> None:
    line = Line(policy=policy, workers=workers)
    line.record = []
    line.any_channel.disconnect(line._handle)
    counts = []
    for channel in batched:
        count = line.channels.on_channel(channel, batch=True)
        count(lambda _, notifications: counts.append(len(notifications)))
    payloads = [Payload(number) for number in range(100)]
    refs = [weakref.ref(payload) for payload in payloads]
    burst = Burst(Notification("a", payload, 1) for payload in payloads)
    line.backlog.put(line.source, burst, moment(0), moment(1))
    del payloads, burst
    line.run()
    gc.collect()

    assert [ref() for ref in refs if ref() is not None] == []
    assert sum(counts) == (100 if batched else 0)


@pytest.mark.parametrize("channels", ["b", "bc"])
def test_what_has_been_handled_does_not_stay_behind_what_is_stuck(channels: str) -> None:
    line = Line(limit=5000, workers=2)
    stop = Stop(line, "a0")
    line.put("a0")
    line.start()
    stop.reach()
    line.put("a1")
    for number in range(1000):
        line.put(*(f"{channel}{number}" for channel in channels))
    wait_until(lambda: line.backlog.waiting == 1)
    line.put("b")  # the next one to arrive

    kept = [one for one in gc.get_objects() if isinstance(one, Segment)]
    assert sum(one.source is line.source for one in kept) < 200
    stop.go_on()
    line.finish()
    assert line.source.counters.dropped == 0


@pytest.mark.parametrize("work", [0, 3])
def test_end_before_giving_up_ends_all_the_same(work: int) -> None:
    line = Line(workers=2)
    line.put(*texts("a", range(work)))
    line.backlog.end()

    assert line.backlog.give_up() == work
    assert line.run() == []


def test_end_while_something_runs_ends_the_workers() -> None:
    line = Line()
    line.put("a1")
    stop = Stop(line, "a1")
    line.start()
    stop.reach()
    line.backlog.end()
    stop.go_on()
    for thread in line.workers.threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_reader_that_waits_goes_on_after_a_worker_has_failed_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = Line(limit=1, policy="block")

    def fail(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr(_calls.Calls, "failed", fail)
    line.during = fail
    line.start()
    for number in range(20):
        line.put(f"a{number}")
    line.finish()

    assert line.backlog.waiting == 0


@pytest.mark.parametrize("workers", [1, 4])
def test_drops_are_told_after_the_announcement_that_they_came_after(workers: int) -> None:
    """Of a new session's flood after ``connected`` and the gap of the reconnect."""
    line = Line(limit=2, workers=workers)
    line.put("a1")
    line.announce("connected")
    line.announce("reconnect gap")
    line.put(*texts("a", range(2, 7)))

    told = line.run()

    assert told == [
        *[("gap", 1, "a"), "connected", "reconnect gap"],
        *[("gap", 3, "a"), "a5", "a6"],
    ]
    assert line.source.counters.dropped == 4


@pytest.mark.parametrize("workers", [1, 4])
def test_new_channel_does_not_lock_up_drops_of_before_and_after_an_announcement(
    workers: int,
) -> None:
    line = Line(limit=3, workers=workers)
    stop = Stop(line, "z0")
    line.put("z0")
    line.start()
    stop.reach()
    line.put("a1", "b1")
    line.announce("connected")
    line.put("a2", "c1", "d1", "a3", "b2")  # which drops on both sides of it
    line.put("e1", "d2")
    stop.go_on()
    line.finish()

    told = line.told
    texts_told = [text for text in told if isinstance(text, str)]
    assert {"connected", "b2", "e1", "d2"} <= set(texts_told)
    before, after = told[: told.index("connected")], told[told.index("connected") :]
    assert [entry for entry in before if isinstance(entry, tuple)] == [("gap", 2, "ab")]
    assert sum(entry[1] for entry in after if isinstance(entry, tuple)) == 4


@pytest.mark.parametrize("workers", [1, 4])
def test_what_a_source_gave_up_itself_is_told_in_its_place(workers: int) -> None:
    line = Line(limit=3, workers=workers)
    line.put("a0")
    line.announce("connected")
    drops = Drops(moment(5), moment(6))
    drops.add(["a", "b"], 7, moment(5), moment(6))
    line.backlog.overflow(line.source, drops)
    line.put("a1", "b1", "c1")  # which drops a0

    told = line.run()

    assert told[:3] == [("gap", 1, "a"), "connected", ("gap", 7, "ab")] or workers > 1
    assert {("gap", 1, "a"), ("gap", 7, "ab"), "a1", "b1", "c1"} <= set(told)
    for text in ("a1", "b1"):
        assert told.index(text) > told.index(("gap", 7, "ab")) > told.index("connected")
    assert line.source.counters.dropped == 8


# Batches


@pytest.mark.parametrize("batched", ["a", "ab"])
def test_batch_handlers_keep_the_order_over_all_channels_with_one_worker(batched: str) -> None:
    line = Line()
    batches = line.batch(*batched)
    line.put("a1", "b2", "a3", "a4", "b5", "b6")
    line.put("b7", "a8")

    told = line.run()

    assert told == ["a1", "b2", "a3", "a4", "b5", "b6", "b7", "a8"]
    alone = [["a1"], ["b2"], ["a3", "a4"], ["b5", "b6", "b7"], ["a8"]]
    assert batches == [batch for batch in alone if batch[0][0] in batched]


@given(st.lists(st.text("ab", min_size=1, max_size=9), max_size=9), st.integers(1, 9))
def test_batches_are_runs_of_what_is_there(puts: list[str], piece: int) -> None:
    line = Line()
    order: list[str] = []
    line.any_channel.disconnect(line._handle)

    def take(_: object, notifications: list[Notification]) -> None:
        assert len({one.channel for one in notifications}) == 1
        order.extend(one.payload for one in notifications)

    line.channels.on_channel("a", "b", batch=True)(take)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_workers, "INSTANT", 1000.0)
        patch.setattr(_calls, "INSTANT", 1000.0)
        patch.setattr(_calls, "PIECE", piece)
        sent: list[str] = []
        for text in puts:
            burst = [f"{channel}{len(sent) + at}" for at, channel in enumerate(text)]
            sent += burst
            line.put(*burst)
        line.run()

    assert order == sent


def test_batch_is_what_is_there_of_its_channel() -> None:
    line = Line()
    batches = []

    @line.channels.on_channel("a", batch=True)
    def take(_: object, notifications: list[Notification]) -> None:
        batches.append([one.payload for one in notifications])

    line.put("a1", "a2")
    line.put("a3")
    line.announce("lost")
    line.put("a4")
    line.run()

    assert batches == [["a1", "a2", "a3"], ["a4"]]


@pytest.mark.parametrize("alone", [False, True])
def test_batch_handler_that_has_just_been_disconnected_is_not_called(
    alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line()
    if alone:
        line.any_channel.disconnect(line._handle)
    batches = []

    @line.channels.on_channel("a", batch=True)
    def take(_: object, notifications: list[Notification]) -> None:
        batches.append(notifications)

    take_batch = line.backlog.take_batch

    def disconnect_and_take(*arguments: Any) -> list[Notification]:
        line.channels.channel("a").disconnect(take)
        return take_batch(*arguments)

    monkeypatch.setattr(line.backlog, "take_batch", disconnect_and_take)
    line.put("a1")
    line.run()

    assert batches == []


def batches_of(seconds: float, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many each call is given, of 5,000 that are there, when each call takes so long."""
    line = Line(limit=100_000)
    batches: list[int] = []
    now = 0.0

    @line.channels.on_channel("a", batch=True)
    def take(_: object, notifications: list[Notification]) -> None:
        nonlocal now
        now += seconds
        batches.append(len(notifications))

    monkeypatch.setattr(_workers, "time", SimpleNamespace(perf_counter=lambda: now))
    line.put(*texts("a", range(5000)))
    line.announce("middle")
    line.put(*texts("a", range(5000)))
    line.run()
    assert sum(batches) == 10_000
    return batches


@pytest.mark.parametrize("seconds", [0.0011, 0.1, 10.0])
def test_handler_that_takes_its_time_is_given_all_that_is_there(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert batches_of(seconds, monkeypatch) == [5000, 5000]


def test_prompt_handler_is_given_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert batches_of(0.00001, monkeypatch) == [5000, *[400] * 12, 200]


def test_piece_grows_when_handling_it_is_no_instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a statement of half a millisecond, whatever the number."""
    assert batches_of(0.0005, monkeypatch) == [5000, 400, 1600, 3000]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("batched", [set(), {"a"}])
def test_nothing_is_left_of_what_is_coalesced(workers: int, batched: set[str]) -> None:
    line = Line(policy="coalesce", workers=workers)
    batches = line.batch(*batched)
    line.put("a1", "a1")
    line.put("a1")
    line.start()
    wait_until(lambda: line.told == ["a1"])
    line.put("a1")  # equals none that waits any more
    line.finish()

    assert line.told == ["a1", "a1"]
    assert batches == ([["a1"], ["a1"]] if batched else [])
    assert line.backlog.waiting == 0


# The end


def test_join_gives_up_at_the_deadline() -> None:
    line = Line()
    gate = threading.Event()
    line.during = lambda _: gate.wait(PATIENCE)
    line.put("a1")
    line.start()

    assert not line.backlog.join(lambda: time.monotonic() - 1)
    gate.set()
    line.finish()


def test_deadline_that_is_brought_forward_counts() -> None:
    line = Line()
    gate = threading.Event()
    line.during = lambda _: gate.wait(PATIENCE)
    line.put("a1")
    line.start()
    deadline: list[float | None] = [None]
    joining = Background(line.backlog.join, lambda: deadline[0])
    wait_until(lambda: line.told)

    deadline[0] = time.monotonic()
    line.backlog.release_reader()

    assert joining.result() is False
    gate.set()
    line.finish()


@pytest.mark.parametrize("workers", [1, 4])
def test_what_was_given_up_is_never_run(workers: int) -> None:
    line = Line(workers=workers)
    gate = threading.Event()
    line.during = lambda _: gate.wait(PATIENCE)
    line.put("a1", "a2")
    line.put("a3")
    line.announce("lost")
    line.start()
    wait_until(lambda: line.told)

    left = line.backlog.give_up()
    gate.set()
    line.finish()

    assert left == 2
    assert line.told == ["a1"]
    assert line.backlog.waiting == 0


@pytest.mark.usefixtures("greedy")
def test_rest_of_what_was_taken_is_given_up_too() -> None:
    line = Line()
    line.put(*texts("a", range(200)))
    stop = Stop(line, "a99")
    line.start()
    stop.reach()

    left = line.backlog.give_up()
    stop.go_on()
    line.finish()

    assert left == 100
    assert line.told == texts("a", range(100))
    assert line.backlog.waiting == 0


@pytest.mark.usefixtures("greedy")
def test_what_was_given_up_and_what_was_run_are_all_there_is(
    request: pytest.FixtureRequest,
) -> None:
    """Handlers run while it is given up."""
    request.addfinalizer(functools.partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-6)
    for _ in range(100):
        line = Line(workers=3, limit=10_000)
        for channel in "abc":
            line.put(*texts(channel, range(300)))
        line.start()
        wait_until(lambda line=line: len(line.record) > 100)  # type: ignore[misc] # a default

        left = line.backlog.give_up()
        line.finish()

        assert len(line.told) + left == 900


# All of it at once


class Sent(NamedTuple):
    """What the model knows of a notification: its place among all, and when it arrived."""

    place: int
    put: int
    channel: str


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("policy", ["drop_oldest", "coalesce", "block"])
@pytest.mark.parametrize("seed", range(6))
def test_random_traffic_keeps_every_promise(
    workers: int, policy: Policy, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(f"{seed} {policy} {workers}")
    monkeypatch.setattr(_workers, "INSTANT", rng.choice([0.0001, 1000.0]))
    line = Line(limit=rng.choice([1, 7, 60, 400]), policy=policy, workers=workers)
    sources = [line.source, Origin(line.record, "other")]
    sent: dict[Origin, dict[str, Sent]] = {source: {} for source in sources}
    announced: dict[str, tuple[Origin, int, Collection[str] | None]] = {}
    line.during = lambda one: time.sleep(0.0002 if hash(one.payload) % 40 == 0 else 0)
    place = 0
    line.start()
    for turn in range(400):
        source = rng.choice(sources)
        if rng.random() < 0.15:
            channels = rng.choice([None, {"a"}, {"b", "c"}])
            announced[f"announcement {turn}"] = source, place, channels
            line.announce(f"announcement {turn}", channels, source)
            continue
        fresh = []
        for _ in range(rng.choice([1, 1, 2, 5, 20])):
            channel = rng.choice("abcde")
            fresh.append(f"{channel}{place}")
            sent[source][fresh[-1]] = Sent(place, line.puts + 1, channel)
            place += 1
        line.put(*fresh, source=source)
        if rng.random() < 0.1:
            time.sleep(0.001)
    line.finish()

    for source in sources:
        _check_source(line, source, sent[source])
    for what, (source, at, covered) in announced.items():
        _check_barrier(line, what, source, at, covered, sent[source])
    if workers == 1:
        everything = {**sent[sources[0]], **sent[sources[1]]}
        begun = [everything[e.what.payload].place for e in line.record if e.kind == "begin"]
        assert begun == sorted(begun)
    assert line.backlog.waiting == 0


def _check_source(line: Line, source: Origin, sent: dict[str, Sent]) -> None:
    mine = [(at, entry) for at, entry in enumerate(line.record) if entry.source is source]
    begun = {entry.what.payload: at for at, entry in mine if entry.kind == "begin"}
    gaps = [(at, entry.what) for at, entry in mine if entry.kind == "gap"]
    missed = {text: one for text, one in sent.items() if text not in begun}

    assert len([entry for _, entry in mine if entry.kind == "begin"]) == len(begun), "run twice"
    assert sum(drops.count for _, drops in gaps) == len(missed) == source.counters.dropped
    assert source.counters.dispatched == len(begun)
    for channel in "abcde":
        order = [sent[text].place for text in begun if text[0] == channel]
        assert order == sorted(order)
    for one in missed.values():
        covering = [
            at
            for at, drops in gaps
            if one.channel in drops.channels and drops.since < moment(one.put) <= drops.until
        ]
        later = [
            at
            for text, at in begun.items()
            if text[0] == one.channel and sent[text].place > one.place
        ]
        assert covering, f"{one} was never told"
        assert not later or covering[0] < min(later), f"{one} was told after a later one"


def _check_barrier(
    line: Line,
    what: str,
    source: Origin,
    at: int,
    channels: Collection[str] | None,
    sent: dict[str, Sent],
) -> None:
    (position,) = [n for n, entry in enumerate(line.record) if entry.what == what]
    for n, entry in enumerate(line.record):
        if entry.source is not source or entry.kind not in ("begin", "end"):
            continue
        one = sent[entry.what.payload]
        if channels is None or one.channel in channels:
            assert (n < position) == (one.place < at), f"{entry} is on the wrong side of {what}"


# Clocks


def test_gap_begins_with_the_earliest_proof_of_what_was_dropped_also_when_a_clock_is_set_back() -> (
    None
):
    line = Line(limit=1)
    line.puts = 10
    line.put("a1", "a2")
    line.puts = 5
    line.put("a3")
    line.puts = 7
    line.put("a4")

    assert line.run() == [("gap", 3, "a"), "a4"]
    (drops,) = line.drops
    assert (drops.since, drops.until) == (moment(5), moment(11))
