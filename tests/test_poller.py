"""The loop below managers and readers: what the selector alone would miss."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest

from pgsignals import Notification
from pgsignals._wire.poller import Poller
from tests.support.arrivals import payloads
from tests.support.waiting import AT_ONCE, LONG, Background


class Station:
    """Something with a session: a socket, and what has arrived, of which each drain gives one.

    :param halting: each second drain gives nothing at all.
    """

    contended = shared = False

    def __init__(self, *, halting: bool = False) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._halting = halting
        self.arrived: list[Notification] = []
        self.more = self.ended = self.closed = False
        self.drains = 0
        self.absent = False

    @property
    def session(self) -> Station | None:
        return None if self.absent else self

    def send(self, *payloads: str) -> None:
        self.arrived += [Notification("air", payload, 1) for payload in payloads]
        self._theirs.send(b"\0")

    def fileno(self) -> int:
        return self._ours.fileno()

    def drain(self) -> list[Notification]:
        with contextlib.suppress(BlockingIOError):
            self._ours.recv(100)
        self.drains += 1
        share = 0 if self._halting and self.drains % 2 == 0 else 1
        given, self.arrived = self.arrived[:share], self.arrived[share:]
        self.more = bool(self.arrived)
        return given

    def end(self) -> None:
        self.ended = self.closed = True

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


Make: TypeAlias = Callable[..., Station]
Stations: TypeAlias = Poller[Station, list[Notification]]


@pytest.fixture
def make() -> Iterator[Make]:
    with contextlib.ExitStack() as stack:

        def make(*, halting: bool = False) -> Station:
            station = Station(halting=halting)
            stack.callback(station.close)
            return station

        yield make


@pytest.fixture
def poller() -> Iterator[Stations]:
    poller: Stations = Poller("a test")
    yield poller
    poller.close()


def test_all_shares_are_collected_at_once(poller: Stations, make: Make) -> None:
    station = make()
    station.send("1", "2", "3")
    poller.watch(station)

    poller.collect_all(100)

    assert poller.take() == (station, [("air", number, 1) for number in "123"])
    assert not poller.pairs


def test_what_comes_faster_than_it_is_collected_is_left_for_the_next_time(
    poller: Stations, make: Make
) -> None:
    station = make()
    station.send(*map(str, range(100)))
    poller.watch(station)

    poller.collect_all(7)

    assert len(poller.take()[1]) == 7


@pytest.mark.parametrize("halting", [False, True])
def test_what_has_more_is_drained_again_though_its_socket_is_silent(
    poller: Stations, make: Make, halting: bool
) -> None:
    station = make(halting=halting)
    poller.watch(station)
    poller.collect(0)
    station.send("1", "2", "3")
    got: list[str] = []
    began = time.monotonic()
    while len(got) < 3:
        poller.collect(LONG)
        while poller.pairs:
            got += payloads(poller.take()[1])
    assert got == ["1", "2", "3"]
    assert time.monotonic() - began < LONG

    drains = station.drains
    poller.collect(0)
    assert station.drains == drains


def test_what_has_more_and_is_not_watched_any_more_is_left_alone(
    poller: Stations, make: Make
) -> None:
    station = make(halting=True)
    poller.watch(station)
    station.send("1", "2", "3")
    poller.collect(0)

    poller.unwatch(station)
    drains = station.drains
    poller.collect(0)
    assert (station.drains, payloads(station.arrived)) == (drains, ["2", "3"])
    assert poller.take() == (station, [("air", "1", 1)])

    poller.watch(station)
    got: list[str] = []
    while len(got) < 2:
        poller.collect(LONG)
        while poller.pairs:
            got += payloads(poller.take()[1])
    assert got == ["2", "3"]


def test_what_ends_is_said_once_its_arrivals_have_been_taken(poller: Stations, make: Make) -> None:
    station, empty = make(), make()
    poller.watch(station)
    poller.watch(empty)
    station.send("1")
    station.end()
    empty.end()

    poller.collect(0)

    assert list(poller.ended) == [empty]
    assert poller.take() == (station, [("air", "1", 1)])
    assert list(poller.ended) == [empty, station]


def test_no_session_counts_as_an_end(poller: Stations, make: Make) -> None:
    station = make()
    station.absent = True
    poller.watch(station)
    began = time.monotonic()

    poller.collect(LONG)

    assert list(poller.ended) == [station]
    assert time.monotonic() - began < LONG


@pytest.mark.parametrize("error", [OSError, ZeroDivisionError, LookupError])
def test_drain_that_raises_is_an_end(
    poller: Stations, make: Make, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    station, other = make(), make()

    def fail() -> list[Notification]:
        raise error("broken")

    monkeypatch.setattr(station, "drain", fail)
    poller.watch(station)
    poller.watch(other)
    poller.collect(0)
    assert list(poller.ended) == [station]

    other.send("1")
    poller.ended.clear()
    poller.collect(LONG)
    assert poller.take() == (other, [("air", "1", 1)])


def test_what_is_watched_again_has_another_socket(poller: Stations, make: Make) -> None:
    station, other = make(), make()
    poller.watch(station)
    poller.collect(0)
    station._ours, other._ours = other._ours, station._ours
    station._theirs, other._theirs = other._theirs, station._theirs

    poller.watch(station)
    poller.collect(0)
    station.send("1")
    poller.collect(LONG)

    assert poller.take() == (station, [("air", "1", 1)])


def test_connection_in_use_rests_and_is_looked_at_again(poller: Stations, make: Make) -> None:
    station = make()
    poller.watch(station)
    poller.collect(0)
    station.contended = True
    station.send("1", "2")
    poller.collect(LONG)
    poller.take()
    station._theirs.send(b"\0")  # readable all the time, and left to the thread that uses it
    station.contended, station.arrived = False, []
    station.send("3")
    got: list[str] = []
    while "3" not in got:
        poller.collect(LONG)
        while poller.pairs:
            got += payloads(poller.take()[1])


def test_wake_from_another_thread_ends_a_wait(poller: Stations, make: Make) -> None:
    station = make()
    poller.watch(station)
    waiting = Background(poller.collect, None)
    waiting.until_it_waits()

    poller.wake()

    waiting.result(AT_ONCE)


def test_what_is_touched_is_drained(poller: Stations, make: Make) -> None:
    station = make()
    poller.watch(station)
    waiting = Background(poller.collect, None)
    waiting.until_it_waits()
    station.arrived.append(Notification("air", "1", 1))

    poller.touched(station)

    waiting.result(AT_ONCE)
    poller.collect(0)
    assert poller.take() == (station, [("air", "1", 1)])


def test_touch_of_what_is_not_watched_is_ignored(poller: Stations, make: Make) -> None:
    station = make()
    poller.touched(station)
    poller.collect(0)

    assert station.drains == 0
    assert not poller.ended


def test_what_is_unwatched_before_its_first_turn_is_left_alone(
    poller: Stations, make: Make
) -> None:
    station = make()
    poller.watch(station)
    poller.unwatch(station)
    station.send("1")
    poller.collect(0)

    assert station.drains == 0
    assert not poller.pairs


def test_what_held_more_than_its_socket_shows_is_left_alone_once_it_is_unwatched(
    poller: Stations, make: Make
) -> None:
    station = make()
    poller.watch(station, silent=True)
    poller.collect(0)
    drains = station.drains
    poller.collect(0)
    assert station.drains == drains + 1

    poller.unwatch(station)
    poller.collect(0)
    assert station.drains == drains + 1


def test_socket_of_an_earlier_session_is_no_longer_looked_at(poller: Stations, make: Make) -> None:
    station, other = make(), make()
    poller.watch(station)
    poller.collect(0)
    station._ours, other._ours = other._ours, station._ours
    poller.watch(station)
    poller.collect(0)
    drains = station.drains

    station._theirs.send(b"\0")  # what is connected to it is now the other's
    poller.collect(0)

    assert station.drains == drains


def test_what_its_own_drain_touches_waits_for_the_next_turn(
    poller: Stations, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    station = make()
    poller.watch(station)
    poller.collect(0)
    drain, drains = station.drain, station.drains

    def touching() -> list[Notification]:
        if station.drains < drains + 10:
            poller.touched(station)
        return drain()

    monkeypatch.setattr(station, "drain", touching)
    poller.touched(station)
    poller.collect(0)

    assert station.drains == drains + 1
