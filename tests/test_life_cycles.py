"""A thousand lives leave no more behind than one."""

from __future__ import annotations

import gc
import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from pgsignals import ClosedError, ConnectError, Database, NotificationManager, Reactor
from pgsignals.embedded import Postgres
from tests.support.admin import Admin
from tests.support.arrivals import Connect, payloads, take
from tests.support.waiting import Background, wait_until

#: What an allocator may keep, in bytes.  A reactor's life that stayed whole would keep more.
NOISE = 3 << 20

few_or_many = pytest.mark.parametrize(
    "cycles", [40, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)


def rss() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def ours() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("pgsignals")}


def settle(fds_before: int) -> None:
    """Wait for what ends a moment later, such as a worker that was told to."""

    def settled() -> bool:
        gc.collect()
        return not ours() and fds() <= fds_before

    wait_until(settled, why="threads or file numbers were left")


def grows(cycle: Callable[[int], None], cycles: int) -> None:
    """Run *cycle* again and again, and compare the second half with the first."""
    warm = max(5, cycles // 10)
    for number in range(warm):
        cycle(number)
    gc.collect()
    fds_before, objects = fds(), len(gc.get_objects())
    levels = []
    for number in range(warm, warm + cycles):
        cycle(number)
        levels.append(rss())
    settle(fds_before)
    half = cycles // 2
    grown = min(levels[half:]) - min(levels[:half])
    assert grown < NOISE, f"RSS grew by {grown / 1e6:.1f} MB in {half} cycles"
    more = len(gc.get_objects()) - objects
    assert more < 20 * cycles, f"{more} more objects after {cycles} cycles"


@few_or_many
def test_start_and_stop_of_one_reactor(dsn: str, channel: str, admin: Admin, cycles: int) -> None:
    reactor = Reactor(dsn)
    arrived: list[str] = []

    @reactor.on_channel(channel)
    def note(_: Database, notification: object) -> None:
        arrived.append(str(notification))

    def cycle(number: int) -> None:
        with reactor:
            reactor.notify((channel, str(number)))
            wait_until(lambda: arrived)
        arrived.clear()

    grows(cycle, cycles)


@few_or_many
def test_reactors_that_are_dropped(dsn: str, channel: str, admin: Admin, cycles: int) -> None:
    def cycle(_: int) -> None:
        reactor = Reactor(dsn, dsn, workers=2, probe_interval=None, channels=[channel])
        reactor.on_channel(channel)(lambda *_, **__: None)
        reactor.start()
        reactor.stop()

    grows(cycle, cycles)


@few_or_many
def test_reactors_that_cannot_start(dsn: str, proxied: str, cycles: int) -> None:
    nowhere = f"{proxied} port=1"

    def cycle(_: int) -> None:
        with pytest.raises(ConnectionError):
            Reactor(dsn, nowhere).start()

    grows(cycle, cycles)


@few_or_many
def test_sessions_that_are_lost(dsn: str, channel: str, admin: Admin, cycles: int) -> None:
    """Of every kind: the listening one, the control connection, a worker's own."""
    reactor = Reactor(dsn, backoff=(0.001, 0.002), probe_interval=20.0)
    reconnected = threading.Semaphore(0)
    backends: list[int] = []

    @reactor.connected.connect
    def note(_: Database, resumed: bool) -> None:
        reconnected.release()

    @reactor.on_channel(channel)
    def use(db: Database, notification: object) -> None:
        backends.append(db.connection.info.backend_pid)

    def cycle(_: int) -> None:
        reactor.notify(channel)
        wait_until(lambda: backends)
        listening = reactor.status().databases[0].backend_id
        assert listening is not None
        admin.kill(listening)
        admin.kill(backends.pop())
        assert reconnected.acquire(timeout=20)

    with reactor:
        assert reconnected.acquire(timeout=20)
        warm = 5
        for number in range(warm):
            cycle(number)
        reactor.notify(channel)
        wait_until(lambda: backends.pop() if backends else None)
        gc.collect()
        before, threads = fds(), ours()
        for number in range(cycles):
            cycle(number)
        reactor.notify(channel)
        wait_until(lambda: backends.pop() if backends else None)

        def settled() -> bool:
            gc.collect()
            return fds() <= before and ours() <= threads

        wait_until(settled, why="more file numbers or threads than before the losses")


@few_or_many
def test_open_and_close_of_a_database(dsn: str, channel: str, admin: Admin, cycles: int) -> None:
    database = Database(dsn)

    def cycle(_: int) -> None:
        with database:
            database.listen(channel)
            database.notify((channel, "1"))
            assert payloads(take(database, 1)) == ["1"]

    grows(cycle, cycles)


@few_or_many
def test_sessions_of_a_database_that_are_lost(dsn: str, admin: Admin, cycles: int) -> None:
    database = Database(dsn)

    def cycle(_: int) -> None:
        database.open()
        admin.kill(database.backend_id)
        assert list(database.wait()) == []

    grows(cycle, cycles)


@few_or_many
def test_managers(connect: Connect, cycles: int) -> None:
    database = connect()

    def cycle(_: int) -> None:
        manager = NotificationManager(database, timeout=0)
        assert list(manager) == []

    grows(cycle, cycles)


@few_or_many
def test_databases_that_are_lent(dsn: str, channel: str, admin: Admin, cycles: int) -> None:
    """An open one is given back open; a wrapped one stays its owner's."""
    with psycopg.connect(dsn, autocommit=True) as connection, Database(dsn) as opened:
        wrapped = Database.wrap(connection)

        def cycle(_: int) -> None:
            with Reactor(opened, wrapped, channels=[channel], probe_interval=None) as reactor:
                reactor.notify(channel, database=opened)
            assert list(opened.listening_channels()) == []
            assert list(wrapped.listening_channels()) == []

        grows(cycle, cycles)
        assert opened.backend_id != wrapped.backend_id


def test_stopped_reactor_that_is_kept_holds_no_file(dsn: str, channel: str) -> None:
    before = fds()
    reactor = Reactor(dsn)
    reactor.start()
    reactor.notify(channel)
    reactor.stop()

    wait_until(lambda: not ours())
    assert fds() == before
    assert not reactor.status().running


def test_start_that_fails_says_so_at_once(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with whatever happens to wake the reader next."""
    monkeypatch.setattr("pgsignals._engine.reader.CHECK_WORKERS", 3600.0)
    reactor = Reactor(postgres.dsn_for(password="wrong"), probe_interval=None)
    starting = Background(reactor.start)
    try:
        with pytest.raises(ConnectError):
            starting.result()
    finally:
        reactor.stop(0)


# Calls out of order

CALLS: dict[str, Callable[[Reactor], object]] = {
    "start": lambda reactor: reactor.start(),
    "stop": lambda reactor: reactor.stop(),
    "stop(0)": lambda reactor: reactor.stop(0),
    "join(0)": lambda reactor: reactor.join(0),
    "listen": lambda reactor: reactor.listen("later"),
    "unlisten": lambda reactor: reactor.unlisten("later"),
    "status": lambda reactor: reactor.status(),
}


@pytest.mark.parametrize("calls", list(itertools.permutations(["start", "stop", "listen"])))
def test_calls_in_any_order(dsn: str, admin: Admin, calls: tuple[str, ...]) -> None:
    reactor = Reactor(dsn, probe_interval=None)
    running = listening = False
    for name in calls:
        for _ in range(2):  # the second time does nothing
            CALLS[name](reactor)
            running = running if name == "listen" else name == "start"
            listening = listening or name == "listen"
            status = reactor.status()
            assert reactor.running is status.running is running
            channels = ("later",) if running and listening else ()
            assert status.databases[0].channels == channels
    reactor.stop()


@pytest.mark.parametrize("call", sorted(set(CALLS) - {"start"}))
def test_call_before_the_first_start_opens_nothing(dsn: str, admin: Admin, call: str) -> None:
    before = admin.sessions()
    reactor = Reactor(dsn)
    CALLS[call](reactor)

    assert not reactor.running
    assert admin.sessions() == before


def test_notify_needs_a_running_reactor(dsn: str, channel: str) -> None:
    reactor = Reactor(dsn, probe_interval=None)
    with pytest.raises(ClosedError):
        reactor.notify(channel)
    with reactor:
        assert reactor.notify(channel) == 1
    with pytest.raises(ClosedError):
        reactor.notify(channel)
