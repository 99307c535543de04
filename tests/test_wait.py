"""``Database.wait()``: one connection, one notification at a time."""

from __future__ import annotations

import gc
import itertools
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgsignals import Database, Notification, NotificationManager
from pgsignals.errors import ClosedError
from pgsignals.testing import Proxy, kill_listener
from tests.support.admin import Admin, stopped
from tests.support.arrivals import Connect, everything, payloads, take
from tests.support.protocol import messages
from tests.support.uses import Use
from tests.support.values import BAD_NUMBERS, GOOD_TIMEOUTS, NO_NUMBERS
from tests.support.waiting import AT_ONCE, LONG, Background, hangs_fail, is_readable, wait_until

pytestmark = hangs_fail


def polled(database: Database) -> list[Notification | None]:
    """The first non-empty result of polls that run no statement."""
    return wait_until(lambda: list(database.wait(0)), why="no poll saw anything")


# What it yields


@pytest.mark.spec("1.1", "1.2", "1.3", "1.4", "8.1", "12.1")
def test_notification_is_a_triple_of_channel_payload_and_sender(
    listener: Database, channel: str, admin: Admin
) -> None:
    admin.notify(channel, "42 paid", "")
    first, second = take(listener, 2)

    assert isinstance(first, tuple)
    assert first == (channel, "42 paid", admin.pid)
    assert (first.channel, first.payload, first.pid) == first
    assert second == (channel, "", admin.pid)
    assert [type(item) for item in second] == [str, str, int]


@pytest.mark.spec("1.4", "1.5")
def test_connection_hears_itself(listener: Database, channel: str) -> None:
    listener.notify(channel)

    assert take(listener, 1) == [(channel, "", listener.backend_id)]


@pytest.mark.spec("3.4", "8.1")
def test_order_of_arrival_is_kept_between_senders(
    listener: Database, connect: Connect, channel: str, admin: Admin
) -> None:
    other = connect()
    for number in range(0, 30, 3):
        admin.notify(channel, str(number))
        other.notify((channel, str(number + 1)))
        listener.notify((channel, str(number + 2)))

    assert payloads(take(listener, 30)) == [str(number) for number in range(30)]


def test_iternotifies_is_another_name_for_wait() -> None:
    assert Database.iternotifies is Database.wait


@pytest.mark.spec("8.9", "N20")
def test_in_a_transaction_nothing_arrives_before_its_end(
    listener: Database, channel: str, admin: Admin
) -> None:
    for end in ("COMMIT", "ROLLBACK"):
        listener.execute("BEGIN")
        admin.notify(channel, end)
        waiting = listener.wait(0.1)
        assert [next(waiting), next(waiting)] == [None, None]
        listener.execute(end)

        assert next(n for n in waiting if n) == (channel, end, admin.pid)


@pytest.mark.spec("4.10", "N20")
def test_failed_transaction_is_no_lost_session(
    listener: Database, channel: str, admin: Admin
) -> None:
    listener.execute("BEGIN")
    with pytest.raises(psycopg.errors.UndefinedColumn):
        listener.execute("SELECT nonsense")
    admin.notify(channel, "1")
    waiting = listener.wait(0.1)
    assert next(waiting) is None
    assert not listener.closed
    listener.execute("ROLLBACK")

    assert next(n for n in waiting if n) == (channel, "1", admin.pid)


# Timeouts


@pytest.mark.spec("8.3", "2.5", "2.6")
@pytest.mark.parametrize("timeout", BAD_NUMBERS)
def test_impossible_timeout_is_a_value_error_at_the_call(
    listener: Database, timeout: float
) -> None:
    with pytest.raises(ValueError, match="timeout"):
        listener.wait(timeout)


@pytest.mark.spec("8.3", "2.6", "2.7")
@pytest.mark.parametrize("timeout", NO_NUMBERS)
def test_timeout_that_is_no_number_is_a_type_error_at_the_call(
    listener: Database,
    timeout: Any,
) -> None:
    with pytest.raises(TypeError, match="timeout"):
        listener.wait(timeout)


@pytest.mark.spec("2.6")
@pytest.mark.parametrize("timeout", GOOD_TIMEOUTS)
def test_every_good_timeout_can_be_waited_for(
    listener: Database, channel: str, timeout: float | None
) -> None:
    listener.notify(channel)

    assert next(n for n in listener.wait(timeout) if n) == (channel, "", listener.backend_id)


@pytest.mark.spec("4.2", "8.1", "12.2")
@pytest.mark.parametrize("timeout", [0.05, 0.2])
def test_idle_comes_when_its_time_has_passed(listener: Database, timeout: float) -> None:
    waiting = listener.wait(timeout)

    for _ in range(3):
        began = time.monotonic()
        assert next(waiting) is None
        assert time.monotonic() - began >= timeout * 0.99


@pytest.mark.spec("4.1", "8.1")
def test_without_a_timeout_there_is_no_idle(listener: Database, channel: str, admin: Admin) -> None:
    waiting = listener.wait()
    first = Background(next, waiting)
    first.until_it_waits()
    admin.notify(channel, "1")

    assert first.result() == (channel, "1", admin.pid)


@pytest.mark.spec("3.7")
def test_session_that_listens_to_nothing_is_idle(connect: Connect, admin: Admin) -> None:
    admin.notify("x")
    waiting = connect().wait(0.05)

    assert [next(waiting) for _ in range(3)] == [None] * 3


@pytest.mark.spec("5.1", "5.2", "N1", "12.3", "12.14")
def test_zero_timeout_reads_the_wire(listener: Database, channel: str, admin: Admin) -> None:
    assert list(listener.wait(0)) == []

    admin.notify(channel, "1")
    assert polled(listener) == [(channel, "1", admin.pid)]

    assert list(listener.wait(0)) == []


@pytest.mark.spec("5.1")
def test_zero_timeout_gives_what_came_along_with_statements(
    listener: Database, channel: str, admin: Admin
) -> None:
    admin.notify(channel, "1", "2")
    listener.execute("SELECT 1")

    assert payloads([n for n in listener.wait(0) if n]) == ["1", "2"]


@pytest.mark.spec("3.4", "5.1")
def test_zero_timeout_gives_a_flood_in_order(
    listener: Database, channel: str, admin: Admin
) -> None:
    count = 2000
    admin.flood(channel, count, 7000)  # 14 MB
    got: list[int] = []

    def complete() -> bool:
        got.extend(int(n.payload.rstrip(".")) for n in listener.wait(0) if n)
        return len(got) == count

    wait_until(complete)

    assert got == list(range(1, count + 1))


@pytest.mark.spec("5.3", "N6")
def test_zero_timeout_sees_the_end(listener: Database) -> None:
    kill_listener(listener)

    def closed() -> bool:
        assert list(listener.wait(0)) == []
        return listener.closed

    wait_until(closed)


@pytest.mark.spec("12.5", "4.3", "N3")
def test_idle_is_due_under_traffic_that_never_pauses(listener: Database, channel: str) -> None:
    idles = 0
    began = time.monotonic()
    listener.notify(channel)
    for notification in listener.wait(0.1):
        assert time.monotonic() - began < AT_ONCE, f"only {idles} idle events"
        if notification is None:
            idles += 1
            if idles == 3:
                break
        else:
            listener.notify(channel)

    assert time.monotonic() - began >= 0.29


# Leaving the loop


@pytest.mark.spec("8.4", "12.6", "N4")
@pytest.mark.parametrize("timeout", [None, 0, 5])
def test_break_loses_nothing(
    listener: Database, channel: str, admin: Admin, timeout: float | None
) -> None:
    admin.notify(channel, "1", "2", "3", "4", "5")
    listener.execute("SELECT 1")

    for notification in listener.wait(timeout):
        assert notification == (channel, "1", admin.pid)
        break

    assert payloads(everything(listener, admin)) == ["2", "3", "4", "5"]


@pytest.mark.spec("8.4", "N4")
def test_break_at_every_notification_loses_nothing_that_is_on_the_wire(
    listener: Database, channel: str, admin: Admin
) -> None:
    admin.flood(channel, 50)
    got: list[str] = []
    while len(got) < 50:
        for notification in listener.wait(LONG):
            assert notification is not None
            got.append(notification.payload)
            break

    assert got == [str(number) for number in range(1, 51)]
    assert everything(listener, admin) == []


@pytest.mark.spec("8.4", "N4")
@pytest.mark.parametrize("timeout", [None, 0, LONG])
def test_break_in_a_flood_loses_nothing(
    listener: Database, channel: str, admin: Admin, timeout: float | None
) -> None:
    count = 1000
    admin.flood(channel, count, 7000)  # 7 MB
    wait_until(lambda: is_readable(listener))
    got: list[int] = []
    while len(got) < count:
        before = len(got)
        for notification in listener.wait(timeout):
            assert notification is not None
            got.append(int(notification.payload.rstrip(".")))
            if len(got) == before + 100:
                break
        assert got == list(range(1, len(got) + 1))


@pytest.mark.spec("8.4", "12.7", "N17")
def test_iterator_that_is_kept_goes_on_with_the_rest(
    listener: Database, channel: str, admin: Admin
) -> None:
    admin.notify(channel, "1", "2", "3")
    waiting = listener.wait(LONG)
    for _ in waiting:
        break

    rest = [next(waiting), next(waiting)]

    assert payloads([n for n in rest if n]) == ["2", "3"]


@pytest.mark.spec("10.5")
def test_exception_in_the_body_loses_nothing(
    listener: Database, channel: str, admin: Admin
) -> None:
    admin.notify(channel, "1", "2", "3")
    listener.execute("SELECT 1")

    def fail() -> None:
        for _ in listener.wait():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert payloads(everything(listener, admin)) == ["2", "3"]


@pytest.mark.spec("8.4")
def test_rest_goes_to_whoever_comes_next(listener: Database, channel: str, admin: Admin) -> None:
    admin.notify(channel, "1", "2", "3", "4")
    listener.execute("SELECT 1")

    for _ in listener.wait():
        break
    assert payloads(take(listener, 1)) == ["2"]
    assert list(NotificationManager(listener, timeout=0)) == [
        (listener, [(channel, "3", admin.pid), (channel, "4", admin.pid)])
    ]
    assert listener.drain() == []


def test_rest_is_there_for_drain(listener: Database, channel: str, admin: Admin) -> None:
    admin.notify(channel, "1", "2", "3")
    listener.execute("SELECT 1")

    for _ in listener.wait():
        break

    assert payloads(listener.drain()) == ["2", "3"]


# The body uses the database


@pytest.mark.spec("8.7", "11.3", "N15")
def test_body_may_notify_and_query(listener: Database, channel: str) -> None:
    got: list[str] = []
    listener.notify((channel, "1"))
    for notification in listener.wait(LONG):
        assert notification is not None
        got.append(notification.payload)
        if len(got) == 5:
            break
        assert listener.execute("SELECT 1").fetchone() == (1,)
        listener.notify((channel, str(len(got) + 1)))
        with listener.transaction():
            listener.execute("SELECT 1")

    assert got == ["1", "2", "3", "4", "5"]


@pytest.mark.spec("8.7", "N15")
@pytest.mark.parametrize(
    "ask",
    [
        lambda database: database.execute("SELECT 1"),
        lambda database: database.listening_channels(),
        lambda database: database.notify("x"),
    ],
    ids=["execute", "listening_channels", "notify"],
)
def test_what_arrives_with_a_query_in_the_body_comes_after_the_rest(
    listener: Database, channel: str, admin: Admin, ask: Use
) -> None:
    admin.flood(channel, 3)
    wait_until(lambda: is_readable(listener))
    ask(listener)
    got: list[str] = []
    for notification in listener.wait(AT_ONCE):
        assert notification is not None, f"only {got} arrived"
        got.append(notification.payload)
        if notification.payload == "1":
            admin.notify(channel, "4")
            wait_until(lambda: is_readable(listener))
            ask(listener)  # brings it along
            assert not is_readable(listener)
        if notification.payload == "4":
            break

    assert got == ["1", "2", "3", "4"]


@pytest.mark.spec("8.7")
def test_body_may_listen_and_unlisten(
    listener: Database, channel: str, new_channel: Callable[[], str], admin: Admin
) -> None:
    other = new_channel()
    got: list[str] = []
    admin.notify(channel)
    for notification in listener.wait(LONG):
        assert notification is not None
        got.append(notification.channel)
        if notification.channel == channel:
            listener.listen(other)
            listener.unlisten(channel)
            admin.notify(channel)
            admin.notify(other)
        else:
            break

    assert got == [channel, other]
    assert list(listener.listening_channels()) == [other]


@pytest.mark.spec("8.7")
def test_body_may_drain(listener: Database, channel: str, admin: Admin) -> None:
    admin.notify(channel, "1", "2", "3")
    listener.execute("SELECT 1")
    waiting = listener.wait(0.1)

    assert payloads([n for n in [next(waiting)] if n]) == ["1"]
    assert payloads(listener.drain()) == ["2", "3"]
    assert next(waiting) is None


def test_wait_inside_of_wait_shares_what_there_is(
    listener: Database, channel: str, admin: Admin
) -> None:
    admin.notify(channel, *"123456")
    listener.execute("SELECT 1")
    got: list[str] = []
    for outer in listener.wait(0):
        assert outer is not None
        got.append(outer.payload)
        for inner in listener.wait(0):
            assert inner is not None
            got.append(inner.payload)
            break

    assert got == list("123456")


@pytest.mark.spec("10.3", "N9")
def test_notification_in_the_packet_of_an_answer_is_not_stuck(
    connect: Connect, proxy: Proxy, proxied: str, admin: Admin, channel: str
) -> None:
    database = connect(proxied)
    database.listen(channel)
    proxy.freeze("to_client")
    query = Background(lambda: database.execute("SELECT 1").fetchone())
    wait_until(lambda: proxy.held("to_client"))
    answer = proxy.held("to_client")
    admin.notify(channel, "1")
    wait_until(lambda: proxy.held("to_client") > answer)
    kinds: list[bytes] = []

    def look(data: bytes) -> bytes:
        kinds[:] = [message[:1] for message in messages(data)]
        return data

    proxy.rewrite("to_client", look)
    proxy.thaw()
    assert query.result() == (1,)
    assert kinds[-2:] == [b"Z", b"A"]  # the end of the answer, then the notification

    assert next(database.wait(AT_ONCE)) == (channel, "1", admin.pid)


@pytest.mark.spec("10.3", "11.2")
def test_notification_in_the_midst_of_an_answer_is_kept(listener: Database, channel: str) -> None:
    listener.execute(f"NOTIFY {channel}; SELECT 1")

    assert next(listener.wait(AT_ONCE)) == (channel, "", listener.backend_id)


def test_body_that_opens_the_database_again_goes_on_with_the_new_session(
    listener: Database, channel: str, admin: Admin
) -> None:
    admin.notify(channel, "1", "2")
    listener.execute("SELECT 1")
    got: list[str] = []
    for notification in listener.wait(AT_ONCE):
        assert notification is not None, f"only {got} arrived"
        got.append(notification.payload)
        if notification.payload == "1":
            listener.close()
            listener.open().listen(channel)
            admin.notify(channel, "3")
        if notification.payload == "3":
            break

    assert got == ["1", "2", "3"]


# The end


@pytest.mark.spec("8.5", "12.4", "6.8")
@pytest.mark.parametrize("timeout", [None, LONG])
def test_killed_session_ends_the_loop_without_an_exception(
    listener: Database, timeout: float | None
) -> None:
    waiting = Background(list, listener.wait(timeout))
    waiting.until_it_waits()

    kill_listener(listener)

    assert waiting.result() == []
    assert listener.closed


@pytest.mark.spec("6.11", "12.8", "N5")
@pytest.mark.parametrize("timeout", [None, LONG])
def test_what_arrived_before_a_kill_is_yielded(
    listener: Database, channel: str, admin: Admin, timeout: float | None
) -> None:
    admin.notify(channel, "1")
    wait_until(lambda: is_readable(listener))
    kill_listener(listener)

    assert list(listener.wait(timeout)) == [(channel, "1", admin.pid)]
    assert listener.closed


@pytest.mark.spec("8.5")
@pytest.mark.parametrize("how", ["cut", "reset"])
def test_session_that_the_network_ends_ends_the_loop(
    connect: Connect, proxy: Proxy, proxied: str, how: str
) -> None:
    database = connect(proxied)
    waiting = Background(list, database.wait())
    waiting.until_it_waits()

    getattr(proxy, how)()

    assert waiting.result() == []
    assert database.closed


def test_connection_that_breaks_within_a_message_yields_what_came_before(
    connect: Connect, proxy: Proxy, proxied: str, admin: Admin, channel: str
) -> None:
    database = connect(proxied)
    database.listen(channel)
    before = proxy.forwarded("to_client")
    admin.notify(channel, "1")
    assert payloads(take(database, 1)) == ["1"]
    size = proxy.forwarded("to_client") - before
    proxy.cut_after(size + size // 2, "to_client")
    admin.notify(channel, "2", "3")

    assert list(database.wait()) == [(channel, "2", admin.pid)]
    assert database.closed


@pytest.mark.spec("8.5", "8.6", "12.8")
def test_close_in_the_body_yields_the_rest_and_ends(
    listener: Database, channel: str, admin: Admin
) -> None:
    admin.notify(channel, "1", "2", "3")
    listener.execute("SELECT 1")
    got: list[str] = []
    for notification in listener.wait(LONG):
        assert notification is not None
        got.append(notification.payload)
        listener.close()

    assert got == ["1", "2", "3"]
    assert listener.closed


@pytest.mark.spec("6.13", "N7")
@pytest.mark.parametrize("timeout", [None, 0, LONG])
def test_close_in_the_body_ends_the_loop_at_once(
    listener: Database, channel: str, timeout: float | None
) -> None:
    listener.notify(channel)
    began = time.monotonic()
    for notification in listener.wait(timeout):
        assert notification is not None
        listener.close()

    assert time.monotonic() - began < AT_ONCE


@pytest.mark.spec("6.15")
@pytest.mark.parametrize("timeout", [None, LONG])
def test_close_by_another_thread_ends_the_loop_at_once(
    listener: Database, timeout: float | None
) -> None:
    waiting = Background(list, listener.wait(timeout))
    waiting.until_it_waits()

    listener.close()

    assert waiting.result(AT_ONCE) == []


@pytest.mark.spec("8.8")
@pytest.mark.parametrize("timeout", [None, 0, LONG])
def test_wait_on_a_closed_database_is_over_at_once(
    listener: Database, timeout: float | None
) -> None:
    listener.close()
    began = time.monotonic()

    assert list(listener.wait(timeout)) == []
    assert time.monotonic() - began < AT_ONCE


@pytest.mark.spec("8.8", "12.8")
@pytest.mark.parametrize("timeout", [None, 0, LONG])
def test_wait_on_a_closed_database_gives_what_was_left(
    listener: Database, channel: str, admin: Admin, timeout: float | None
) -> None:
    admin.notify(channel, "1", "2")
    listener.execute("SELECT 1")
    listener.close()

    assert payloads([n for n in listener.wait(timeout) if n]) == ["1", "2"]
    assert list(listener.wait(timeout)) == []


def test_wait_on_a_wrapped_database_that_was_closed_gives_what_was_left(
    dsn: str, channel: str, admin: Admin
) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        database = Database.wrap(connection)
        database.listen(channel)
        admin.notify(channel, "1", "2")
        database.execute("SELECT 1")
        database.close()

        assert payloads([n for n in database.wait() if n]) == ["1", "2"]
        assert list(database.wait()) == []


def test_wait_before_open_is_a_closed_error_at_the_call(dsn: str) -> None:
    with pytest.raises(ClosedError):
        Database(dsn).wait()


# Others


@pytest.mark.spec("4.9", "N18")
def test_stalled_server_does_not_delay_idles(listener: Database) -> None:
    with stopped(listener.backend_id):
        waiting = Background(list, itertools.islice(listener.wait(0.1), 3))

        assert waiting.result() == [None, None, None]


def test_two_loops_one_after_the_other_share_nothing_but_the_database(
    listener: Database, channel: str, admin: Admin
) -> None:
    first, second = listener.wait(LONG), listener.wait(LONG)
    admin.notify(channel, "1")
    assert next(first) == (channel, "1", admin.pid)
    admin.notify(channel, "2")
    assert next(second) == (channel, "2", admin.pid)
    admin.notify(channel, "3")
    assert next(first) == (channel, "3", admin.pid)


def test_drain_gives_a_flood_in_shares(listener: Database, channel: str, admin: Admin) -> None:
    """A reader with other things to do must not be kept by one connection."""
    count, size = 2000, 7000
    admin.flood(channel, count, size)  # 14 MB
    shares: list[int] = []
    got: list[str] = []

    def complete() -> bool:
        share = listener.drain()
        shares.append(len(share))
        got.extend(payloads(share))
        return len(got) == count

    wait_until(complete)

    assert max(shares) * size < 3 << 20
    assert [int(payload.rstrip(".")) for payload in got] == list(range(1, count + 1))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no list of open files")
def test_iterator_that_is_dropped_gives_its_file_numbers_back_at_once(
    listener: Database, channel: str
) -> None:
    """Not only when Python collects garbage, which a polling loop may outrun."""

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    gc.disable()
    try:
        for _ in range(5):
            assert list(listener.wait(0)) == []
            assert next(listener.wait(0.001)) is None
            listener.notify(channel)
            for _ in listener.wait():
                break
            listener.wait()
            NotificationManager(listener)

        assert open_files() == before
    finally:
        gc.enable()


def test_iterator_that_is_dropped_leaves_nothing_in_the_database(listener: Database) -> None:
    def kept() -> int:
        gc.collect()
        return sum(isinstance(thing, weakref.ref) for thing in gc.get_objects())

    assert list(listener.wait(0)) == []
    before = kept()

    for _ in range(500):
        assert list(listener.wait(0)) == []

    assert kept() - before < 100
