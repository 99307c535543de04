"""``NotificationManager``: many connections, one iterator."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import psycopg
import pytest

from pgsignals import Database, Notification, NotificationManager
from pgsignals._wire import session as _driver
from pgsignals._wire.custody import Custody
from pgsignals._wire.waker import Waker
from pgsignals.errors import ConnectionLostError
from pgsignals.testing import Proxy, kill_listener
from tests.support.admin import Admin, stopped
from tests.support.arrivals import Connect, everything, payloads
from tests.support.values import BAD_NUMBERS, GOOD_TIMEOUTS, NO_NUMBERS
from tests.support.waiting import (
    AT_ONCE,
    LONG,
    Background,
    hangs_fail,
    is_readable,
    wait_until,
    waits_for_sockets,
)

pytestmark = hangs_fail

Pair: TypeAlias = tuple[Any, list[Notification]]

END = "the end"  # what next() gives in these tests when the iteration is over

each_blocking_timeout = pytest.mark.parametrize("timeout", [None, LONG])
each_timeout = pytest.mark.parametrize("timeout", [None, 0, LONG])


class Station:
    """What a manager can watch besides a Database: a socket, and a list of what arrived."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self.arrived: list[Notification] = []
        self.closed = False
        self.error: Exception | None = None

    def send(self, *payloads: str) -> None:
        self.arrived += [Notification("air", payload, 1) for payload in payloads]
        self._theirs.send(b"\0")

    def fileno(self) -> int:
        return self._ours.fileno()

    def drain(self) -> list[Notification]:
        with contextlib.suppress(BlockingIOError):
            self._ours.recv(100)
        if self.error is not None:
            raise self.error
        arrived, self.arrived = self.arrived, []
        return arrived

    def close(self) -> None:
        self.closed = True
        self.error = None  # its traceback holds the manager
        self._ours.close()
        self._theirs.close()


@pytest.fixture
def station() -> Iterator[Station]:
    station = Station()
    yield station
    station.close()


@pytest.fixture
def other(connect: Connect, channel: str) -> Database:
    """A second database that listens to the same channel."""
    database = connect()
    database.listen(channel)
    return database


#: Notifications that are a flood for a session with small bursts.
FLOOD = 5000


@pytest.fixture
def small_bursts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after the first 16 kB is read in shares."""
    monkeypatch.setattr(_driver, "READS", 1)


def pair(event: Pair | None) -> Pair:
    """*event*, which must not be idle."""
    assert event is not None, "idle"
    return event


def next_or_end(manager: NotificationManager) -> object:
    return next(manager, END)


def waiting(manager: NotificationManager) -> Background[object]:
    """The next event, for which a thread of its own waits already."""
    background = Background(next_or_end, manager)
    background.until_it_waits()
    return background


def polled(manager: NotificationManager) -> list[Pair | None]:
    """The first non-empty poll."""
    return wait_until(lambda: list(manager), why="no poll saw anything")


def all_readable(*databases: Database) -> bool:
    return all(is_readable(database) for database in databases)


# Construction


@pytest.mark.spec("2.1", "2.2")
@pytest.mark.parametrize("member", [None, 5, 1.5, "dbname=x", b"x", len, [], Database], ids=repr)
def test_what_cannot_be_watched_is_a_type_error(listener: Database, member: object) -> None:
    with pytest.raises(TypeError, match="watch"):
        NotificationManager(member)
    with pytest.raises(TypeError, match="watch"):
        NotificationManager(listener, member)


@pytest.mark.parametrize("member", [None, 5, len], ids=repr)
def test_what_cannot_be_watched_cannot_be_added(listener: Database, member: object) -> None:
    manager = NotificationManager(listener)

    with pytest.raises(TypeError, match="watch"):
        manager.connections.add(member)
    with pytest.raises(TypeError, match="watch"):
        manager.connections.update([member])
    with pytest.raises(TypeError, match="watch"):
        manager.connections |= {member}
    assert manager.connections == {listener}


@pytest.mark.spec("2.2")
def test_connection_of_psycopg_must_be_wrapped_first(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        with pytest.raises(TypeError, match="Connection"):
            NotificationManager(connection)

        assert NotificationManager(Database.wrap(connection)).connections


@pytest.mark.spec("2.2")
def test_member_that_cannot_be_in_a_set_is_a_type_error() -> None:
    class Unhashable(Station):
        __hash__ = None  # type: ignore[assignment] # the test's point

    station = Unhashable()
    with pytest.raises(TypeError, match="hash"):
        NotificationManager(station)
    station.close()


@pytest.mark.spec("2.3")
def test_same_connection_twice_is_held_once(listener: Database, channel: str, admin: Admin) -> None:
    manager = NotificationManager(listener, listener, timeout=0)
    assert len(manager.connections) == 1

    admin.notify(channel, "1")
    assert polled(manager) == [(listener, [(channel, "1", admin.pid)])]


@pytest.mark.spec("2.4")
@pytest.mark.parametrize("timeout", GOOD_TIMEOUTS)
def test_timeout_comes_back_as_the_very_object(timeout: float | None) -> None:
    assert NotificationManager(timeout=timeout).gettimeout() is timeout

    manager = NotificationManager()
    assert manager.gettimeout() is None
    assert manager.settimeout(timeout) is None  # type: ignore[func-returns-value]
    assert manager.gettimeout() is timeout


@pytest.mark.spec("2.5", "2.6")
@pytest.mark.parametrize("timeout", BAD_NUMBERS)
def test_impossible_timeout_is_a_value_error_and_the_old_one_stays(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        NotificationManager(timeout=timeout)

    manager = NotificationManager(timeout=2.5)
    with pytest.raises(ValueError, match="timeout"):
        manager.settimeout(timeout)
    assert manager.gettimeout() == 2.5


@pytest.mark.spec("2.6", "2.7")
@pytest.mark.parametrize("timeout", NO_NUMBERS)
def test_timeout_that_is_no_number_is_a_type_error_and_the_old_one_stays(timeout: Any) -> None:
    with pytest.raises(TypeError, match="timeout"):
        NotificationManager(timeout=timeout)

    manager = NotificationManager(timeout=2.5)
    with pytest.raises(TypeError, match="timeout"):
        manager.settimeout(timeout)
    assert manager.gettimeout() == 2.5


@pytest.mark.spec("2.6")
@pytest.mark.parametrize("timeout", GOOD_TIMEOUTS)
def test_every_good_timeout_can_be_waited_for(
    listener: Database, channel: str, timeout: float | None
) -> None:
    manager = NotificationManager(listener, timeout=timeout)
    listener.notify(channel)

    event = next(event for event in manager if event)
    assert event == (listener, [(channel, "", listener.backend_id)])


# Iteration


@pytest.mark.spec("3.1")
def test_manager_is_its_own_iterator(listener: Database) -> None:
    manager = NotificationManager(listener)

    assert iter(manager) is manager


@pytest.mark.spec("3.2", "3.3", "12.9")
def test_event_is_a_pair_of_the_database_and_a_list_of_all_that_was_collected(
    listener: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(listener)
    admin.notify(channel, "1", "2")
    listener.execute("SELECT 1")
    admin.notify(channel, "3")
    wait_until(lambda: is_readable(listener))

    event = pair(next(manager))

    assert type(event) is tuple
    database, notifications = event
    assert database is listener
    assert type(notifications) is list
    assert notifications == [(channel, payload, admin.pid) for payload in "123"]


@pytest.mark.spec("3.3")
def test_list_of_an_event_is_the_users_own(listener: Database, channel: str, admin: Admin) -> None:
    manager = NotificationManager(listener)
    admin.notify(channel, "1")
    _, notifications = pair(next(manager))
    notifications.clear()
    notifications.append(Notification("made", "up", 1))

    admin.notify(channel, "2")
    assert pair(next(manager)) == (listener, [(channel, "2", admin.pid)])


@pytest.mark.spec("3.3", "N21")
def test_great_many_of_one_transaction_arrive_complete_and_in_order(
    listener: Database, channel: str, admin: Admin
) -> None:
    count = 20_000
    admin.flood(channel, count)
    got: list[str] = []
    for event in NotificationManager(listener, timeout=LONG):
        database, notifications = pair(event)
        assert database is listener
        assert notifications
        got += payloads(notifications)
        if len(got) >= count:
            break

    assert got == [str(number) for number in range(1, count + 1)]


@pytest.mark.spec("3.4")
def test_order_of_one_connection_is_kept_across_pairs(
    listener: Database, channel: str, admin: Admin
) -> None:
    got: list[str] = []
    admin.notify(channel, "1")
    for event in NotificationManager(listener, timeout=LONG):
        _, notifications = pair(event)
        got += payloads(notifications)
        if len(got) == 50:
            break
        if len(got) % 2:
            listener.notify((channel, str(len(got) + 1)))
        else:
            admin.notify(channel, str(len(got) + 1))

    assert got == [str(number) for number in range(1, 51)]


@each_blocking_timeout
@pytest.mark.usefixtures("small_bursts")
def test_flood_in_shares_needs_no_more_traffic(
    listener: Database, channel: str, admin: Admin, timeout: float | None
) -> None:
    manager = NotificationManager(listener, timeout=timeout)
    admin.flood(channel, FLOOD)
    got: list[str] = []

    while len(got) < FLOOD:
        got += payloads(pair(next(manager))[1])

    assert got == [str(number) for number in range(1, FLOOD + 1)]


@pytest.mark.usefixtures("small_bursts")
def test_flood_may_change_hands_between_managers_loops_and_statements(
    listener: Database, channel: str, admin: Admin
) -> None:
    first, second = NotificationManager(listener), NotificationManager(listener)
    admin.flood(channel, FLOOD)
    got: list[str] = []

    while len(got) < FLOOD:
        got += payloads(pair(next(first))[1])
        listener.execute("SELECT 1")
        if len(got) < FLOOD:
            got += payloads(pair(next(second))[1])
        if len(got) < FLOOD:
            got += payloads([one for one in [next(listener.wait())] if one])
        listener.unlisten("elsewhere")

    assert got == [str(number) for number in range(1, FLOOD + 1)]


@pytest.mark.spec("3.4")
def test_flood_on_one_connection_does_not_starve_the_others(
    connect: Connect, admin: Admin, new_channel: Callable[[], str]
) -> None:
    flooded, *quiet = (connect() for _ in range(4))
    flood, drop = new_channel(), new_channel()
    flooded.listen(flood)
    for database in quiet:
        database.listen(drop)
    admin.flood(flood, 3000, 7000)  # 21 MB
    admin.notify(drop)
    wait_until(lambda: all_readable(flooded, *quiet))
    manager = NotificationManager(flooded, *quiet)

    assert {pair(next(manager))[0] for _ in range(4)} == {flooded, *quiet}


@pytest.mark.spec("3.4")
def test_twenty_connections_are_all_served(connect: Connect, channel: str, admin: Admin) -> None:
    databases = [connect() for _ in range(20)]
    for database in databases:
        database.listen(channel)
    manager = NotificationManager(*databases, timeout=LONG)
    for payload in "123":
        admin.notify(channel, payload)
        got = [pair(next(manager)) for _ in databases]

        assert {database for database, _ in got} == set(databases)
        assert all(payloads(notifications) == [payload] for _, notifications in got)


@pytest.mark.spec("3.5", "N17")
def test_manager_goes_on_after_it_has_stopped(
    listener: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(timeout=0)
    assert next_or_end(manager) is END
    assert next_or_end(manager) is END

    manager.connections.add(listener)
    assert next_or_end(manager) is END
    admin.notify(channel, "1")
    assert polled(manager) == [(listener, [(channel, "1", admin.pid)])]

    manager.connections.clear()
    manager.settimeout(None)
    assert next_or_end(manager) is END
    manager.connections.add(listener)
    admin.notify(channel, "2")
    assert next(manager) == (listener, [(channel, "2", admin.pid)])


@pytest.mark.spec("3.6")
@each_timeout
def test_without_connections_the_loop_is_over_at_once(timeout: float | None) -> None:
    manager = NotificationManager(timeout=timeout)
    began = time.monotonic()

    assert list(manager) == []
    assert list(manager) == []
    assert time.monotonic() - began < AT_ONCE


@pytest.mark.spec("3.7", "12.16")
def test_connection_that_listens_to_nothing_is_idle(connect: Connect, admin: Admin) -> None:
    manager = NotificationManager(connect(), timeout=0.05)
    admin.notify("x")

    assert list(itertools.islice(manager, 3)) == [None] * 3


@pytest.mark.spec("3.8")
def test_two_managers_of_one_connection_get_each_notification_once(
    listener: Database, channel: str, admin: Admin
) -> None:
    first = NotificationManager(listener, timeout=0)
    second = NotificationManager(listener, timeout=0)
    for number in range(20):
        admin.notify(channel, str(number))
    got: list[str] = []

    def complete() -> bool:
        for event in [*first, *second]:
            got.extend(payloads(pair(event)[1]))
        return len(got) >= 20

    wait_until(complete)

    assert got == [str(number) for number in range(20)]
    assert everything(listener, admin) == []


@pytest.mark.spec("3.9", "N17")
def test_keyboard_interrupt_passes_and_the_manager_goes_on(
    listener: Database, other: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(listener, other)
    main = threading.main_thread()

    def interrupt() -> None:
        wait_until(lambda: waits_for_sockets(main))
        signal.pthread_kill(main.ident or 0, signal.SIGINT)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupting = Background(interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(manager)
        interrupting.result()
    finally:
        signal.signal(signal.SIGINT, previous)

    assert manager.connections == {listener, other}
    assert manager.garbage == set()
    admin.notify(channel, "1")
    assert {pair(next(manager))[0] for _ in range(2)} == {listener, other}


@pytest.mark.spec("8.4", "12.7")
def test_leaving_the_loop_keeps_the_rest_in_the_manager(
    listener: Database, other: Database, channel: str, admin: Admin
) -> None:
    admin.notify(channel, "1")
    wait_until(lambda: all_readable(listener, other))
    manager = NotificationManager(listener, other)
    seen = []
    for event in manager:
        seen.append(pair(event))
        break

    manager.settimeout(0)
    seen += [pair(event) for event in manager]

    assert sorted(payloads(notifications) for _, notifications in seen) == [["1"], ["1"]]
    assert {database for database, _ in seen} == {listener, other}


@pytest.mark.spec("8.7", "N15")
def test_what_a_statement_of_the_body_brings_along_needs_no_more_traffic(
    listener: Database, other: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(listener, other, timeout=LONG)
    admin.notify(channel, "1")
    got: dict[Database, list[str]] = {listener: [], other: []}
    for _ in range(2):
        database, notifications = pair(next(manager))
        got[database] += payloads(notifications)
    admin.notify(channel, "2")
    wait_until(lambda: all_readable(listener, other))
    listener.listening_channels()
    other.execute("SELECT 1")
    assert not is_readable(listener)
    assert not is_readable(other)

    for _ in range(2):
        database, notifications = pair(next(manager))
        got[database] += payloads(notifications)
    assert got == {listener: ["1", "2"], other: ["1", "2"]}


# Idle events


@pytest.mark.spec("4.1", "12.15")
def test_without_a_timeout_there_is_no_idle_event(
    listener: Database, channel: str, admin: Admin
) -> None:
    background = waiting(NotificationManager(listener))

    admin.notify(channel, "1")

    assert background.result() == (listener, [(channel, "1", admin.pid)])


@pytest.mark.spec("4.2")
@pytest.mark.parametrize("timeout", [0.05, 0.2])
def test_idle_event_comes_when_its_time_has_passed(listener: Database, timeout: float) -> None:
    manager = NotificationManager(listener, timeout=timeout)

    for _ in range(3):
        began = time.monotonic()
        assert next(manager) is None
        assert time.monotonic() - began >= timeout * 0.99


@pytest.mark.spec("4.3", "12.5", "N3")
def test_idle_event_is_due_under_traffic_that_never_pauses(
    listener: Database, channel: str
) -> None:
    manager = NotificationManager(listener, timeout=0.1)
    idles = events = 0
    began = time.monotonic()
    listener.notify(channel)
    for event in manager:
        assert time.monotonic() - began < AT_ONCE, f"{events} events, only {idles} idle"
        if event is None:
            idles += 1
            if idles == 3:
                break
        else:
            events += 1
            listener.notify(channel)

    assert events >= idles
    assert time.monotonic() - began >= 0.29


@pytest.mark.spec("4.3")
def test_idle_event_is_due_while_another_connection_is_busy(
    listener: Database, connect: Connect, channel: str
) -> None:
    manager = NotificationManager(listener, connect(), timeout=0.1)
    began = time.monotonic()
    listener.notify(channel)
    while next(manager) is not None:
        assert time.monotonic() - began < AT_ONCE
        listener.notify(channel)


@pytest.mark.spec("4.4")
def test_what_is_on_the_wire_comes_before_an_idle_event_that_is_overdue(
    listener: Database, channel: str, admin: Admin
) -> None:
    timeout = 0.1
    manager = NotificationManager(listener, timeout=timeout)
    admin.notify(channel, "1")
    assert pair(next(manager))
    admin.notify(channel, "2")
    wait_until(lambda: is_readable(listener))
    time.sleep(1.5 * timeout)  # a handler that is slower than the timeout

    assert next(manager) == (listener, [(channel, "2", admin.pid)])
    assert next(manager) is None


@pytest.mark.spec("4.3", "12.15")
def test_idle_event_is_never_before_what_was_collected(
    listener: Database, other: Database, channel: str, admin: Admin
) -> None:
    timeout = 0.1
    admin.notify(channel, "1")
    wait_until(lambda: all_readable(listener, other))
    manager = NotificationManager(listener, other, timeout=timeout)
    assert pair(next(manager))
    time.sleep(1.5 * timeout)  # a handler that is slower than the timeout

    assert pair(next(manager))
    assert next(manager) is None


@pytest.mark.spec("4.5")
def test_time_spent_in_an_idle_body_does_not_count(listener: Database) -> None:
    timeout = 0.1
    manager = NotificationManager(listener, timeout=timeout)
    assert next(manager) is None
    time.sleep(5 * timeout)  # a handler that is slower than the timeout

    for _ in range(3):
        began = time.monotonic()
        assert next(manager) is None
        assert time.monotonic() - began >= timeout * 0.99


@pytest.mark.spec("4.5")
def test_interval_begins_with_the_first_next(listener: Database) -> None:
    timeout = 0.1
    manager = NotificationManager(listener, timeout=timeout)
    time.sleep(2 * timeout)  # whatever the user does before

    began = time.monotonic()
    assert next(manager) is None
    assert time.monotonic() - began >= timeout * 0.99


@pytest.mark.spec("4.7", "12.6", "12.15")
def test_idle_event_is_a_safe_place_to_leave(
    listener: Database, channel: str, admin: Admin
) -> None:
    got: list[str] = []
    for number in "123":
        for event in NotificationManager(listener, timeout=0.05):
            if event is None:
                admin.notify(channel, number)
                break
            got += payloads(event[1])

    assert [*got, *payloads(everything(listener, admin))] == ["1", "2", "3"]


@pytest.mark.spec("4.8")
def test_clock_on_the_wall_may_jump(listener: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = NotificationManager(listener, timeout=0.1)
    for hours in (-1, 1):
        now = time.time()
        monkeypatch.setattr(time, "time", itertools.count(now, hours * 3600).__next__)
        began = time.monotonic()

        assert Background(next_or_end, manager).result() is None
        assert time.monotonic() - began >= 0.099


@pytest.mark.spec("4.6")
def test_tiny_timeout_hides_nothing(listener: Database, channel: str, admin: Admin) -> None:
    manager = NotificationManager(listener, timeout=0.0001)
    got: list[str] = []
    idles = 0
    for event in manager:
        if event is None:
            idles += 1
            if idles % 10 == 0:
                admin.notify(channel, str(idles))
        else:
            got += payloads(event[1])
            if len(got) >= 20:
                break

    assert got[:20] == [str(number) for number in range(10, 210, 10)]


@pytest.mark.spec("2.8", "N23")
def test_timeout_that_is_set_in_the_body_holds_from_the_next_wait(
    listener: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(listener, timeout=LONG)
    admin.notify(channel, "1")
    assert pair(next(manager))

    manager.settimeout(0.05)
    assert next(manager) is None

    manager.settimeout(None)
    background = waiting(manager)
    admin.notify(channel, "2")
    assert background.result() == (listener, [(channel, "2", admin.pid)])


@pytest.mark.spec("2.8")
@each_blocking_timeout
def test_timeout_that_another_thread_sets_holds_at_once(
    listener: Database, timeout: float | None
) -> None:
    manager = NotificationManager(listener, timeout=timeout)
    background = waiting(manager)

    manager.settimeout(0.05)

    assert background.result() is None


@pytest.mark.spec("2.8", "5.4")
def test_zero_timeout_that_another_thread_sets_ends_the_loop_at_once(listener: Database) -> None:
    manager = NotificationManager(listener)
    background = waiting(manager)

    manager.settimeout(0)

    assert background.result() is END


@pytest.mark.spec("4.9", "N18")
def test_stalled_server_process_delays_nobody(
    listener: Database, other: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(listener, other, timeout=0.1)
    with stopped(listener.backend_id):
        assert Background(list, itertools.islice(manager, 2)).result() == [None, None]
        admin.notify(channel, "1")
        manager.settimeout(LONG)
        event = Background(next_or_end, manager).result()
        assert event == (other, [(channel, "1", admin.pid)])

    assert next(manager) == (listener, [(channel, "1", admin.pid)])


@pytest.mark.spec("4.10", "N20")
@pytest.mark.parametrize("failed", [False, True])
def test_connection_in_a_transaction_is_idle_and_no_garbage(
    listener: Database, channel: str, admin: Admin, failed: bool
) -> None:
    manager = NotificationManager(listener, timeout=0.05)
    listener.execute("BEGIN")
    if failed:
        with pytest.raises(psycopg.errors.UndefinedColumn):
            listener.execute("SELECT nonsense")
    admin.notify(channel, "1")

    assert list(itertools.islice(manager, 3)) == [None] * 3
    assert manager.garbage == set()
    listener.execute("ROLLBACK")
    assert next(event for event in manager if event) == (listener, [(channel, "1", admin.pid)])


# Zero timeout


@pytest.mark.spec("5.1", "5.2", "12.3", "12.14", "N1")
def test_poll_reads_the_wire_of_every_connection(
    listener: Database, other: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(listener, other, timeout=0)
    assert list(manager) == []

    admin.notify(channel, "1")
    wait_until(lambda: all_readable(listener, other))

    events = [pair(event) for event in manager]
    assert len(events) == 2
    assert {database for database, _ in events} == {listener, other}
    assert all(rest == [(channel, "1", admin.pid)] for _, rest in events)
    assert list(manager) == []
    assert manager.connections == {listener, other}


@pytest.mark.spec("5.1")
def test_poll_gives_what_came_along_with_statements(
    listener: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(listener, timeout=0)
    for _ in range(2):
        admin.notify(channel, "1", "2")
        listener.execute("SELECT 1")

        assert list(manager) == [(listener, [(channel, p, admin.pid) for p in "12"])]


@pytest.mark.spec("5.1")
def test_poll_gives_a_flood_whole(listener: Database, channel: str, admin: Admin) -> None:
    count = 2000
    manager = NotificationManager(listener, timeout=0)
    admin.flood(channel, count, 7000)  # 14 MB
    got: list[int] = []

    def complete() -> bool:
        for event in manager:
            got.extend(int(text.rstrip(".")) for text in payloads(pair(event)[1]))
        return len(got) == count

    wait_until(complete)

    assert got == list(range(1, count + 1))


@pytest.mark.spec("5.1")
def test_poll_that_is_left_is_gone_on_with(
    listener: Database, other: Database, channel: str, admin: Admin
) -> None:
    admin.notify(channel, "1")
    wait_until(lambda: all_readable(listener, other))
    manager = NotificationManager(listener, other, timeout=0)
    seen = [pair(next(manager))]

    seen += [pair(event) for event in manager]

    assert {database for database, _ in seen} == {listener, other}
    assert list(manager) == []


@pytest.mark.spec("5.1", "12.14")
def test_manager_that_is_dropped_after_a_poll_takes_nothing_along(
    listener: Database, channel: str, admin: Admin
) -> None:
    assert list(NotificationManager(listener, timeout=0)) == []
    admin.notify(channel, "1")
    wait_until(lambda: is_readable(listener))
    assert list(NotificationManager(listener, timeout=0)) == [
        (listener, [(channel, "1", admin.pid)])
    ]
    admin.notify(channel, "2")

    assert payloads(everything(listener, admin)) == ["2"]


@pytest.mark.spec("5.3", "N6")
def test_poll_moves_a_killed_connection_to_garbage_and_stops(
    listener: Database, other: Database
) -> None:
    manager = NotificationManager(listener, other, timeout=0)
    assert list(manager) == []
    kill_listener(listener)

    def noticed() -> bool:
        assert list(manager) == []
        return manager.garbage == {listener}

    wait_until(noticed)

    assert manager.connections == {other}
    assert listener.closed


@pytest.mark.spec("5.3", "6.11", "N5", "N6")
def test_poll_gives_what_arrived_before_a_kill(
    listener: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(listener, timeout=0)
    assert list(manager) == []
    admin.notify(channel, "1")
    wait_until(lambda: is_readable(listener))
    kill_listener(listener)

    assert list(manager) == [(listener, [(channel, "1", admin.pid)])]
    wait_until(lambda: list(manager) == [] and manager.garbage == {listener})
    assert manager.connections == set()


@pytest.mark.spec("5.4", "N23")
def test_zero_timeout_that_is_set_in_the_body_ends_the_loop_after_what_is_held(
    listener: Database, other: Database, channel: str, admin: Admin
) -> None:
    admin.notify(channel, "1")
    wait_until(lambda: all_readable(listener, other))
    manager = NotificationManager(listener, other)
    seen = []
    for event in manager:
        seen.append(pair(event)[0])
        manager.settimeout(0)

    assert set(seen) == {listener, other}
    assert len(seen) == 2


# connections


@pytest.mark.spec("6.1", "12.11")
def test_connections_are_a_real_set_of_which_every_change_counts_at_once(
    listener: Database, other: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(listener, timeout=0)
    connections = manager.connections
    assert isinstance(connections, set)
    assert isinstance(manager.garbage, set)

    def watched() -> set[Database]:
        """Those that a poll looks at."""
        admin.notify(channel)
        wait_until(lambda: all_readable(listener, other))
        seen = {pair(event)[0] for event in manager}
        for database in {listener, other} - seen:
            assert len(database.drain()) == 1
        return seen

    changes: list[tuple[Callable[[], object], set[Database]]] = [
        (lambda: connections.add(other), {listener, other}),
        (lambda: connections.discard(listener), {other}),
        (lambda: connections.discard(listener), {other}),
        (lambda: connections.update([listener], {other}), {listener, other}),
        (lambda: connections.remove(other), {listener}),
        (lambda: connections.symmetric_difference_update([listener, other]), {other}),
        (lambda: connections.pop(), set()),
        (lambda: connections.__ior__({listener, other}), {listener, other}),
        (lambda: connections.__iand__({other}), {other}),
        (lambda: connections.__ixor__({listener, other}), {listener}),
        (lambda: connections.__isub__({listener}), set()),
        (lambda: connections.update((listener, other)), {listener, other}),
        (lambda: connections.difference_update([other]), {listener}),
        (lambda: connections.intersection_update([other]), set()),
        (lambda: connections.add(listener), {listener}),
        (lambda: connections.clear(), set()),
        (lambda: setattr(manager, "connections", [listener]), {listener}),
    ]
    assert watched() == {listener}
    for number, (change, expected) in enumerate(changes):
        change()

        assert manager.connections == expected, number
        assert len(manager.connections) == len(expected)
        assert (listener in manager.connections) == (listener in expected)
        assert watched() == expected, number


@pytest.mark.spec("6.1")
def test_operators_work_on_connections(listener: Database, other: Database) -> None:
    manager = NotificationManager(listener)

    manager.connections |= {other}
    assert manager.connections == {listener, other}
    manager.connections -= {listener}
    assert manager.connections == {other}

    for copy in (manager.connections.copy(), manager.connections | {listener}):
        copy.add(listener)
        assert copy == {listener, other}
    assert manager.connections == {other}


@pytest.mark.spec("6.1")
def test_pop_and_remove_of_what_is_not_there_are_key_errors(listener: Database) -> None:
    manager = NotificationManager()

    with pytest.raises(KeyError):
        manager.connections.pop()
    with pytest.raises(KeyError):
        manager.connections.remove(listener)


@pytest.mark.spec("6.2", "12.11", "N16")
@pytest.mark.parametrize("at", ["event", "idle"])
def test_connection_that_the_body_adds_counts_with_all_that_it_holds(
    listener: Database, other: Database, channel: str, admin: Admin, at: str
) -> None:
    admin.notify(channel, "1")
    wait_until(lambda: is_readable(other))
    other.execute("SELECT 1")  # so that the socket has nothing more to tell
    assert not is_readable(other)
    if at == "idle":
        wait_until(listener.drain)
    manager = NotificationManager(listener, timeout=0.05 if at == "idle" else LONG)
    assert (next(manager) is None) == (at == "idle")

    manager.settimeout(LONG)
    manager.connections.add(other)

    assert next(manager) == (other, [(channel, "1", admin.pid)])


@pytest.mark.spec("6.3", "N16")
@each_blocking_timeout
def test_connection_that_another_thread_adds_counts_at_once(
    listener: Database, connect: Connect, new_channel: Callable[[], str], timeout: float | None
) -> None:
    late, channel = connect(), new_channel()
    late.listen(channel)
    manager = NotificationManager(listener, timeout=timeout)
    background = waiting(manager)
    late.notify((channel, "1"))

    manager.connections.add(late)

    assert background.result() == (late, [(channel, "1", late.backend_id)])


@pytest.mark.spec("6.3", "N16")
def test_connections_that_another_thread_replaces_count_at_once(
    listener: Database, other: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(listener)
    background = waiting(manager)

    manager.connections = {other}
    wait_until(lambda: not is_being_watched(listener))
    admin.notify(channel, "1")

    assert background.result() == (other, [(channel, "1", admin.pid)])


def is_being_watched(database: Database) -> bool:
    return any(watcher() is not None for watcher in database._custody._watchers)


@pytest.mark.spec("6.4", "12.11", "N16")
def test_what_was_collected_for_a_connection_that_is_removed_is_yielded(
    listener: Database, other: Database, channel: str, admin: Admin
) -> None:
    admin.notify(channel, "1")
    wait_until(lambda: all_readable(listener, other))
    manager = NotificationManager(listener, other)
    first, _ = pair(next(manager))
    manager.connections.discard(other if first is listener else listener)

    second, notifications = pair(next(manager))

    assert {first, second} == {listener, other}
    assert notifications == [(channel, "1", admin.pid)]


@pytest.mark.spec("6.4", "N16")
def test_connection_that_was_removed_is_watched_no_more(
    listener: Database, other: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(listener, other, timeout=0.05)
    assert next(manager) is None
    manager.connections.discard(listener)
    admin.notify(channel, "1")
    wait_until(lambda: all_readable(listener, other))

    assert pair(next(event for event in manager if event))[0] is other
    assert next(manager) is None
    assert payloads(listener.drain()) == ["1"]


@pytest.mark.spec("6.5", "12.13", "N16")
@each_blocking_timeout
def test_clearing_in_the_body_ends_the_loop_after_what_is_held(
    listener: Database, other: Database, channel: str, admin: Admin, timeout: float | None
) -> None:
    admin.notify(channel, "1")
    wait_until(lambda: all_readable(listener, other))
    manager = NotificationManager(listener, other, timeout=timeout)
    seen = []
    began = time.monotonic()
    for event in manager:
        seen.append(pair(event)[0])
        manager.connections.clear()

    assert set(seen) == {listener, other}
    assert time.monotonic() - began < AT_ONCE


@pytest.mark.spec("6.6", "N16")
@each_blocking_timeout
@pytest.mark.parametrize("how", ["clear", "discard"])
def test_loop_ends_at_once_when_another_thread_takes_the_last_connection(
    listener: Database, timeout: float | None, how: str
) -> None:
    manager = NotificationManager(listener, timeout=timeout)
    background = waiting(manager)

    if how == "clear":
        manager.connections.clear()
    else:
        manager.connections.discard(listener)

    assert background.result() is END
    assert manager.garbage == set()


@pytest.mark.spec("6.17", "N16")
def test_another_thread_may_change_connections_all_the_time(
    listener: Database, connect: Connect, channel: str
) -> None:
    crowd = [connect() for _ in range(10)]
    manager = NotificationManager(listener, timeout=0.001)
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            for database in crowd:
                manager.connections.add(database)
            for database in crowd:
                manager.connections.discard(database)

    changing = Background(change)
    got = 0
    for event in itertools.islice(manager, 300):
        if event is None:
            listener.notify(channel)
        else:
            got += event[0] is listener
    done.set()
    changing.result()

    assert got > 0
    assert manager.garbage == set()


# garbage, and the end


@pytest.mark.spec("6.7", "6.8", "12.12", "N6")
def test_killed_connection_goes_to_garbage_and_the_others_go_on(
    listener: Database, other: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(listener, other)
    background = waiting(manager)

    kill_listener(listener)
    wait_until(lambda: manager.garbage == {listener})
    assert manager.connections == {other}
    admin.notify(channel, "1")

    assert background.result() == (other, [(channel, "1", admin.pid)])
    assert listener.closed


@pytest.mark.spec("6.8", "6.13", "12.10", "N6")
@each_blocking_timeout
def test_loop_ends_at_once_when_the_last_connection_is_killed(
    listener: Database, timeout: float | None
) -> None:
    manager = NotificationManager(listener, timeout=timeout)
    background = waiting(manager)

    kill_listener(listener)

    assert background.result() is END  # no pair, no idle event
    assert manager.garbage == {listener}
    assert manager.connections == set()


@pytest.mark.spec("6.11", "12.8", "N5")
@each_blocking_timeout
def test_what_arrived_before_a_kill_is_yielded_before_the_end(
    listener: Database, channel: str, admin: Admin, timeout: float | None
) -> None:
    manager = NotificationManager(listener, timeout=timeout)
    admin.notify(channel, "0")
    listener.execute("SELECT 1")
    admin.flood(channel, 3)
    wait_until(lambda: is_readable(listener))
    kill_listener(listener)
    got: list[str] = []
    for event in manager:
        got += payloads(pair(event)[1])

    assert got == ["0", "1", "2", "3"]
    assert manager.garbage == {listener}


@pytest.mark.spec("6.9", "12.12")
def test_garbage_is_emptied_by_the_user_alone_and_a_new_connection_goes_on(
    listener: Database, other: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(listener, timeout=LONG)
    kill_listener(listener)
    assert list(manager) == []

    manager.connections.add(other)
    for number in "12":
        admin.notify(channel, number)
        assert next(manager) == (other, [(channel, number, admin.pid)])
        assert manager.garbage == {listener}

    manager.garbage.clear()
    admin.notify(channel, "3")
    assert next(manager) == (other, [(channel, "3", admin.pid)])
    assert manager.garbage == set()


@pytest.mark.spec("6.10", "N19")
def test_adding_takes_a_reopened_connection_out_of_garbage(
    listener: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(listener, timeout=LONG)
    kill_listener(listener)
    assert list(manager) == []
    assert manager.garbage == {listener}

    listener.open().listen(channel)
    manager.connections.add(listener)
    admin.notify(channel, "1")

    assert next(manager) == (listener, [(channel, "1", admin.pid)])
    assert manager.garbage == set()
    assert manager.connections == {listener}


@pytest.mark.spec("6.10", "N19")
def test_connection_that_is_added_again_before_its_last_pair_is_taken_is_watched(
    station: Station, listener: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(station, listener, timeout=0)
    assert list(manager) == []
    manager.settimeout(LONG)
    admin.notify(channel, "1")
    kill_listener(listener)
    station.send("first")

    assert next(manager) == (station, [("air", "first", 1)])
    listener.open().listen(channel)
    manager.connections.add(listener)
    assert next(manager) == (listener, [(channel, "1", admin.pid)])
    admin.notify(channel, "2")
    assert next(manager) == (listener, [(channel, "2", admin.pid)])
    assert manager.garbage == set()


@pytest.mark.spec("6.10", "N19")
@each_timeout
def test_adding_a_dead_connection_puts_it_back_into_garbage(
    listener: Database, timeout: float | None
) -> None:
    manager = NotificationManager(listener)
    kill_listener(listener)
    for _ in range(3):
        assert list(manager) == []
        assert manager.garbage == {listener}
        assert manager.connections == set()
        manager.settimeout(timeout)
        manager.connections.add(listener)


@pytest.mark.spec("6.10", "N19")
def test_connection_in_both_sets_is_watched(listener: Database, channel: str, admin: Admin) -> None:
    manager = NotificationManager(listener, timeout=LONG)
    manager.garbage.add(listener)
    admin.notify(channel, "1")
    assert next(manager) == (listener, [(channel, "1", admin.pid)])

    manager.garbage.add(listener)
    admin.notify(channel, "2")
    assert next(manager) == (listener, [(channel, "2", admin.pid)])


@pytest.mark.spec("6.12", "12.8")
def test_close_in_the_body_yields_what_was_collected_and_ends(
    listener: Database, other: Database, channel: str, admin: Admin
) -> None:
    admin.notify(channel, "1")
    wait_until(lambda: all_readable(listener, other))
    manager = NotificationManager(listener, other)
    seen = []
    for event in manager:
        seen.append(pair(event)[0])
        listener.close()
        other.close()

    assert set(seen) == {listener, other}
    assert manager.garbage == {listener, other}


@pytest.mark.spec("6.12")
@each_timeout
def test_what_a_statement_collected_before_a_close_is_yielded(
    listener: Database, channel: str, admin: Admin, timeout: float | None
) -> None:
    manager = NotificationManager(listener, timeout=timeout)
    admin.notify(channel, "1")
    listener.execute("SELECT 1")
    listener.close()

    assert list(manager) == [(listener, [(channel, "1", admin.pid)])]
    assert manager.garbage == {listener}


@pytest.mark.spec("6.13", "N7")
@each_timeout
@pytest.mark.parametrize("at", ["event", "before"])
def test_loop_ends_at_once_after_the_users_close(
    listener: Database, channel: str, timeout: float | None, at: str
) -> None:
    manager = NotificationManager(listener, timeout=timeout)
    began = time.monotonic()
    if at == "event":
        listener.notify(channel)
        assert pair(next(manager))
    listener.close()

    assert list(manager) == []
    if timeout == 0:
        assert list(manager) == []  # a poll gives what was there when it began
    assert time.monotonic() - began < AT_ONCE
    assert manager.garbage == {listener}


@pytest.mark.spec("6.13", "N7")
def test_loop_ends_at_once_after_a_close_in_an_idle_body(listener: Database) -> None:
    manager = NotificationManager(listener, timeout=0.05)
    assert next(manager) is None
    manager.settimeout(LONG)
    listener.close()

    began = time.monotonic()
    assert next_or_end(manager) is END
    assert time.monotonic() - began < AT_ONCE


@pytest.mark.spec("6.14")
@each_timeout
@pytest.mark.parametrize("state", ["closed", "never opened"])
def test_connection_that_is_not_open_is_garbage_at_once(
    dsn: str, timeout: float | None, state: str
) -> None:
    database = Database(dsn)
    if state == "closed":
        database.open().close()
    manager = NotificationManager(database, timeout=timeout)
    began = time.monotonic()

    assert list(manager) == []
    assert time.monotonic() - began < AT_ONCE
    assert manager.garbage == {database}
    assert manager.connections == set()


@pytest.mark.spec("6.14", "6.7")
def test_connection_that_is_not_open_leaves_the_others_alone(
    dsn: str, listener: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(Database(dsn), listener)
    admin.notify(channel, "1")

    assert next(manager) == (listener, [(channel, "1", admin.pid)])
    assert len(manager.garbage) == 1


@pytest.mark.spec("6.15")
@each_blocking_timeout
def test_close_by_another_thread_ends_the_loop_at_once(
    listener: Database, timeout: float | None
) -> None:
    manager = NotificationManager(listener, timeout=timeout)
    background = waiting(manager)

    listener.close()

    assert background.result() is END
    assert manager.garbage == {listener}


@pytest.mark.spec("6.15")
def test_close_by_another_thread_leaves_the_others_alone(
    listener: Database, other: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(listener, other)
    background = waiting(manager)

    listener.close()
    wait_until(lambda: manager.garbage == {listener})
    admin.notify(channel, "1")

    assert background.result() == (other, [(channel, "1", admin.pid)])


@pytest.fixture(params=["wrap", "connect=", ".connection"])
def lent(
    request: pytest.FixtureRequest, dsn: str
) -> Iterator[tuple[Database, psycopg.Connection[Any]]]:
    """A database whose connection is in somebody else's hands, too."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        if request.param == ".connection":
            with Database(dsn) as database:
                yield database, database.connection
        else:
            wraps = request.param == "wrap"
            database = Database.wrap(connection) if wraps else Database(connect=lambda: connection)
            yield database.open(), connection


def test_end_that_a_statement_of_somebody_else_has_met_is_seen(
    lent: tuple[Database, psycopg.Connection[Any]], admin: Admin
) -> None:
    database, connection = lent
    manager = NotificationManager(database, timeout=0)
    assert list(manager) == []

    admin.kill(database.backend_id)
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")

    assert list(manager) == []
    assert manager.garbage == {database}


@each_blocking_timeout
def test_end_that_somebody_else_meets_during_the_wait_is_seen(
    lent: tuple[Database, psycopg.Connection[Any]], timeout: float | None
) -> None:
    database, connection = lent
    manager = NotificationManager(database, timeout=timeout)
    background = waiting(manager)

    connection.close()  # a selector forgets a file that is closed

    assert background.result() is END
    assert manager.garbage == {database}


def test_database_that_the_body_opens_again_stays_watched(
    listener: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(listener, timeout=LONG)
    admin.notify(channel, "1")
    assert pair(next(manager))

    listener.close()
    listener.open().listen(channel)
    admin.notify(channel, "2")

    assert next(manager) == (listener, [(channel, "2", admin.pid)])
    assert manager.garbage == set()


def test_number_of_a_closed_socket_may_be_used_again(
    listener: Database, connect: Connect, channel: str, admin: Admin
) -> None:
    """A session opened after one was closed often gets its file number."""
    manager = NotificationManager(listener, timeout=LONG)
    admin.notify(channel, "first")
    assert pair(next(manager))
    for number in range(10):
        before = listener.fileno()
        listener.close()
        fresh = connect()
        fresh.listen(channel)
        assert fresh.fileno() == before
        manager.connections.add(fresh)
        admin.notify(channel, str(number))

        assert next(manager) == (fresh, [(channel, str(number), admin.pid)])
        assert manager.connections == {fresh}
        assert listener in manager.garbage
        listener = fresh


@pytest.mark.parametrize("how", ["cut", "reset"])
def test_connections_that_the_network_ends_go_to_garbage(
    connect: Connect, proxy: Proxy, proxied: str, how: str
) -> None:
    databases = {connect(proxied) for _ in range(3)}
    manager = NotificationManager(*databases)
    background = waiting(manager)

    getattr(proxy, how)()

    assert background.result() is END
    assert manager.garbage == databases


def test_silent_network_is_no_end(
    connect: Connect, proxy: Proxy, proxied: str, channel: str, admin: Admin
) -> None:
    database = connect(proxied)
    database.listen(channel)
    manager = NotificationManager(database, timeout=0.05)
    proxy.freeze()
    admin.notify(channel, "1")
    wait_until(lambda: proxy.held("to_client"))

    assert list(itertools.islice(manager, 3)) == [None] * 3
    proxy.thaw()
    assert next(event for event in manager if event) == (database, [(channel, "1", admin.pid)])


@pytest.mark.spec("10.4", "N8")
def test_file_numbers_may_be_large(connect: Connect, channel: str, admin: Admin) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip("this account may not open so many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    filler = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while filler[-1] <= 1024:
            filler.append(os.dup(filler[0]))
        database = connect()
        assert database.fileno() > 1024
        database.listen(channel)
        manager = NotificationManager(database, timeout=LONG)
        admin.notify(channel, "1")
        assert next(manager) == (database, [(channel, "1", admin.pid)])
        admin.notify(channel, "2")
        assert next(database.wait(LONG)) == (channel, "2", admin.pid)
        database.close()
    finally:
        for number in filler:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# interrupt


def test_interrupt_gives_one_idle_event_at_once(
    listener: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(listener)
    background = waiting(manager)
    manager.interrupt()
    assert background.result() is None

    background = waiting(manager)
    admin.notify(channel, "1")
    assert background.result() == (listener, [(channel, "1", admin.pid)])


def test_interrupt_is_kept_while_nobody_iterates(
    listener: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(listener)
    manager.interrupt()
    manager.interrupt()  # several may become one

    assert next(manager) is None
    admin.notify(channel, "1")
    assert next(event for event in manager if event) == (listener, [(channel, "1", admin.pid)])


def test_interrupt_comes_after_what_was_collected(
    listener: Database, other: Database, channel: str, admin: Admin
) -> None:
    admin.notify(channel, "1")
    wait_until(lambda: all_readable(listener, other))
    manager = NotificationManager(listener, other)
    manager.interrupt()

    assert {pair(next(manager))[0] for _ in range(2)} == {listener, other}
    assert next(manager) is None


def test_interrupt_in_the_body_gives_an_idle_event_next(listener: Database, channel: str) -> None:
    manager = NotificationManager(listener)
    listener.notify(channel)
    assert pair(next(manager))

    manager.interrupt()

    assert next(manager) is None


def test_signal_handler_may_interrupt(listener: Database) -> None:
    manager = NotificationManager(listener)
    main = threading.main_thread()

    def send() -> None:
        wait_until(lambda: waits_for_sockets(main))
        signal.pthread_kill(main.ident or 0, signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, lambda *_: manager.interrupt())
    try:
        for _ in range(3):
            sending = Background(send)
            assert next(manager) is None
            sending.result()
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_interrupt_is_no_idle_event_of_a_poll(listener: Database) -> None:
    manager = NotificationManager(listener, timeout=0)
    manager.interrupt()

    assert list(manager) == []
    manager.settimeout(None)
    assert next(manager) is None


# Members of other kinds


def test_anything_of_the_right_shape_is_watched(
    station: Station, listener: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(station, listener, timeout=LONG)
    background = waiting(manager)
    station.send("1", "2")
    assert background.result() == (station, [("air", "1", 1), ("air", "2", 1)])

    admin.notify(channel, "3")
    assert next(manager) == (listener, [(channel, "3", admin.pid)])


def test_member_that_holds_something_is_served_though_its_socket_is_silent(
    station: Station,
) -> None:
    manager = NotificationManager(station, timeout=LONG)
    for number in "12":
        station.arrived.append(Notification("air", number, 1))
        assert next(manager) == (station, [("air", number, 1)])


def test_member_may_call_something_else_more() -> None:
    class Member(Station):
        def more(self) -> None:
            raise AssertionError("nobody asked for it")

    member = Member()
    background = waiting(NotificationManager(member))
    member.send("1")
    assert background.result() == (member, [("air", "1", 1)])
    member.close()


@pytest.mark.spec("6.11", "12.8")
@each_timeout
def test_member_that_is_closed_after_a_drain_goes_to_garbage_after_its_rest(
    station: Station, timeout: float | None
) -> None:
    manager = NotificationManager(station, timeout=timeout)
    station.send("1")
    station.closed = True

    assert list(manager) == [(station, [("air", "1", 1)])]
    assert manager.garbage == {station}
    assert manager.connections == set()


@pytest.mark.spec("6.7")
@pytest.mark.parametrize(
    "error", [OSError, ZeroDivisionError, ConnectionLostError, psycopg.OperationalError]
)
def test_member_whose_drain_raises_goes_to_garbage_and_the_others_go_on(
    station: Station,
    listener: Database,
    channel: str,
    admin: Admin,
    error: type[Exception],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    manager = NotificationManager(station, listener)
    background = waiting(manager)
    station.error = error("broken")
    station.send()
    wait_until(lambda: manager.garbage == {station})
    admin.notify(channel, "1")

    assert background.result() == (listener, [(channel, "1", admin.pid)])
    unexpected = error is not ConnectionLostError
    assert bool(caplog.records) == unexpected
    assert all(record.exc_info for record in caplog.records)


def test_member_without_a_file_number_goes_to_garbage(station: Station) -> None:
    manager = NotificationManager(station)
    station.close()
    station.closed = False  # though it does not know

    assert list(manager) == []
    assert manager.garbage == {station}


def test_manager_of_many_that_end_at_once_yields_every_rest() -> None:
    stations = [Station() for _ in range(10)]
    manager = NotificationManager(*stations)
    for number, station in enumerate(stations):
        station.send(str(number))
        station.closed = True

    got = {station: payloads(rest) for station, rest in map(pair, manager)}

    assert got == {station: [str(number)] for number, station in enumerate(stations)}
    assert manager.garbage == set(stations)
    for station in stations:
        station.close()


# The waker


def test_waker_is_readable_from_the_wake_to_the_clear() -> None:
    waker = Waker()
    assert not is_readable(waker)

    waker.wake()
    assert is_readable(waker)
    assert is_readable(waker)

    waker.clear()
    assert not is_readable(waker)
    waker.close()


def test_waker_takes_any_number_of_wakes_without_blocking() -> None:
    waker = Waker()
    for _ in range(100_000):
        waker.wake()

    waker.clear()

    assert not is_readable(waker)
    waker.wake()
    assert is_readable(waker)
    waker.close()


def test_waker_that_is_closed_ignores_wakes() -> None:
    waker = Waker()
    waker.close()

    waker.wake()
    waker.clear()
    waker.close()


def test_subclass_says_itself_that_it_has_ended(dsn: str, channel: str, admin: Admin) -> None:
    class Closing(Database):
        @property
        def closed(self) -> bool:
            return True

    with Closing(dsn) as database:
        manager = NotificationManager(database)
        assert list(manager) == []
        assert manager.garbage == {database}


def test_after_a_flood_nobody_is_asked_again_and_again(
    listener: Database, admin: Admin, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_driver, "READS", 1)
    drains = 0
    drain = Custody.drain

    def counting(custody: Custody) -> list[Notification]:
        nonlocal drains
        drains += 1
        return drain(custody)

    admin.flood(channel, 20_000)
    manager = NotificationManager(listener)
    got = 0
    while got < 20_000:
        event = next(manager)
        assert event is not None
        got += len(event[1])
    monkeypatch.setattr(Custody, "drain", counting)
    manager.settimeout(0.2)

    assert next(manager) is None
    assert drains < 10
    admin.notify(channel, "last")
    assert next(manager) is not None
    assert drains > 0, "they are not counted"


# What is public


def test_public_names_are_those_that_are_documented() -> None:
    manager = NotificationManager()
    names = {name for name in (*dir(NotificationManager), *vars(manager)) if name[0] != "_"}

    assert names == {"close", "connections", "garbage", "gettimeout", "interrupt", "settimeout"}
