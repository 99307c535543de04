"""What an operator sees."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from typing import Any

import psycopg
import pytest

from pgsignals import Database, DatabaseStatus, Notification, Reactor, Status
from pgsignals.testing import Proxy
from tests.support.admin import Admin
from tests.support.waiting import PATIENCE, Background, wait_until


def database_status(reactor: Reactor) -> DatabaseStatus:
    return reactor.status().databases[0]


def password_of(dsn: str) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(dsn)["password"])


def everything_public(reactor: Reactor) -> str:
    """All the texts in which a reactor could tell a secret."""
    return " ".join(
        [json.dumps(dataclasses.asdict(reactor.status())), repr(reactor), repr(reactor.databases)]
    )


def test_status_before_the_start_has_everything_at_zero(dsn: str) -> None:
    status = Reactor(dsn, workers=3).status()

    assert (status.running, status.backlog, status.workers) == (False, 0, 3)
    (one,) = status.databases
    assert one.state == "stopped"
    assert one.name == Database(dsn).name
    assert one.backend_id is None
    assert one.channels == ()
    numbers = (one.received, one.dispatched, one.dropped, one.failed, one.gaps, one.reconnects)
    assert numbers == (0,) * 6
    assert (one.last_received, one.probe_seconds, one.queue_usage) == (None, None, None)
    assert one.last_error is None


@pytest.mark.parametrize("moment", ["before", "while", "after"])
def test_status_is_ready_for_json(dsn: str, moment: str) -> None:
    reactor = Reactor(dsn, dsn, channels=["b", "a"], probe_interval=0.1)
    if moment != "before":
        reactor.start()
        wait_until(lambda: database_status(reactor).probe_seconds is not None)
    if moment == "after":
        reactor.stop()
    given = dataclasses.asdict(reactor.status())
    read = json.loads(json.dumps(given, allow_nan=False))
    reactor.stop()

    assert set(read) == {"running", "backlog", "workers", "databases"}
    assert len(read["databases"]) == 2
    assert set(read["databases"][0]) == {
        "name",
        "state",
        "backend_id",
        "channels",
        "received",
        "dispatched",
        "dropped",
        "failed",
        "gaps",
        "reconnects",
        "last_received",
        "probe_seconds",
        "queue_usage",
        "last_error",
    } | set(read["databases"][0])  # more may be told


def test_status_cannot_be_changed(dsn: str) -> None:
    status = Reactor(dsn).status()
    of_reactor: Any = status
    of_database: Any = status.databases[0]

    with pytest.raises(dataclasses.FrozenInstanceError):
        of_reactor.running = True
    with pytest.raises(dataclasses.FrozenInstanceError):
        of_database.received = 5


def test_running_reactor_tells_its_sessions(dsn: str) -> None:
    with Reactor(dsn, channels=["stock", "orders", "a"]) as reactor:
        one = database_status(reactor)

        assert reactor.status().running
        assert one.state == "listening"
        assert one.backend_id == reactor.databases[0].backend_id
        assert one.channels == ("a", "orders", "stock")


def test_databases_are_told_in_the_order_given(dsn: str, proxied: str) -> None:
    with Reactor(proxied, dsn, probe_interval=None) as reactor:
        names = [one.name for one in reactor.status().databases]

    assert names == [Database(proxied).name, Database(dsn).name]


def test_every_call_is_counted(dsn: str, channel: str, admin: Admin) -> None:
    with Reactor(dsn, channels=[channel]) as reactor:

        @reactor.on_channel(channel)
        def fail(_: Database, notification: Notification) -> None:
            if notification.payload == "3":
                raise RuntimeError("on purpose")

        reactor.on_channel(channel, decode=float)(lambda *_, **__: None)
        before = time.time()
        admin.notify(channel, "1", "2", "3", "x")
        wait_until(lambda: database_status(reactor).dispatched == 4)
        one = database_status(reactor)

        assert (one.received, one.dispatched, one.failed, one.dropped) == (4, 4, 2, 0)
        assert one.last_received is not None
        assert before - 1 <= one.last_received <= time.time()


def test_canaries_are_not_counted(dsn: str, channel: str, admin: Admin) -> None:
    with Reactor(dsn, channels=[channel], probe_interval=0.05) as reactor:
        assert database_status(reactor).received == 0
        wait_until(lambda: database_status(reactor).probe_seconds is not None)
        admin.notify("pgsignals.probe", "", "")
        admin.notify(channel)
        wait_until(lambda: database_status(reactor).dispatched)
        one = database_status(reactor)

        assert (one.received, one.dispatched) == (1, 1)
        assert one.channels == (channel,)


def test_round_trips_are_measured(dsn: str) -> None:
    with Reactor(dsn, probe_interval=0.1) as reactor:
        wait_until(lambda: database_status(reactor).probe_seconds is not None)
        one = database_status(reactor)

        assert one.probe_seconds is not None
        assert 0 < one.probe_seconds < PATIENCE
        assert one.queue_usage is not None
        assert 0 <= one.queue_usage <= 1


def test_backlog_is_what_handlers_have_not_begun(dsn: str, channel: str, admin: Admin) -> None:
    gate, until = threading.Event(), time.monotonic() + PATIENCE
    with Reactor(dsn) as reactor:
        reactor.on_channel(channel)(lambda *_, **__: gate.wait(until - time.monotonic()))
        reactor.listen()
        admin.flood(channel, 100)
        wait_until(lambda: database_status(reactor).received == 100)
        wait_until(lambda: reactor.status().backlog == 99)
        assert database_status(reactor).dispatched == 0
        gate.set()
        wait_until(lambda: database_status(reactor).dispatched == 100)

        assert reactor.status().backlog == 0


def test_lost_database_says_so_and_keeps_its_last_error(
    proxied: str, proxy: Proxy, channel: str
) -> None:
    with Reactor(proxied, channels=[channel], backoff=(0.01, 0.05), probe_interval=None) as reactor:
        first = database_status(reactor).backend_id
        proxy.refuse()
        proxy.cut()
        wait_until(lambda: database_status(reactor).state == "lost")
        one = database_status(reactor)
        assert one.backend_id is None
        assert one.channels == ()
        assert one.last_error
        assert reactor.status().running
        proxy.accept()
        wait_until(lambda: database_status(reactor).state == "listening")
        one = database_status(reactor)

        assert one.last_error
        assert "\n" not in one.last_error
        assert one.backend_id not in (None, first)
        assert (one.reconnects, one.gaps) == (1, 1)
        assert one.channels == (channel,)


def test_start_that_hangs_is_connecting(proxied: str, proxy: Proxy) -> None:
    proxy.freeze()
    reactor = Reactor(proxied)
    starting = Background(reactor.start)
    wait_until(lambda: database_status(reactor).state == "connecting")
    assert not reactor.status().running
    proxy.thaw()
    starting.result()
    assert database_status(reactor).state == "listening"
    reactor.stop()

    assert database_status(reactor).state == "stopped"


def test_counters_stay_after_the_end_and_begin_anew_with_another_life(
    dsn: str, channel: str
) -> None:
    reactor = Reactor(dsn, channels=[channel])
    with reactor:
        reactor.notify(channel)
        wait_until(lambda: database_status(reactor).dispatched == 1)
    assert database_status(reactor).received == 1
    assert database_status(reactor).state == "stopped"
    assert database_status(reactor).backend_id is None
    with reactor:
        assert database_status(reactor).received == 0


def test_secret_is_never_told(dsn: str, proxied: str, proxy: Proxy, admin: Admin) -> None:
    reactor = Reactor(dsn, proxied, backoff=(0.01, 0.05))
    secret = password_of(dsn)
    assert secret not in everything_public(reactor)
    with reactor:
        proxy.refuse()
        proxy.cut()
        wait_until(lambda: reactor.status().databases[1].state == "lost")
        admin.kill(reactor.databases[0].backend_id)
        wait_until(lambda: reactor.status().databases[0].reconnects)
        assert secret not in everything_public(reactor)
    assert secret not in everything_public(reactor)


def test_refused_password_is_not_told(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    reactor = Reactor(f"{dsn} password=wrong-secret")
    with pytest.raises(ConnectionError) as caught:
        reactor.start()

    assert "wrong-secret" not in str(caught.value)
    assert "wrong-secret" not in everything_public(reactor)
    assert "wrong-secret" not in caplog.text


def test_status_may_be_asked_for_from_anywhere_at_any_time(dsn: str, channel: str) -> None:
    seen: list[Status] = []
    reactor = Reactor(dsn, timeout=0.01)
    for signal in (reactor.connected, reactor.idle, reactor.stopped):
        signal.connect(lambda *_, **__: seen.append(reactor.status()), weak=False)
    reactor.on_channel(channel)(lambda *_, **__: seen.append(reactor.status()))
    stop = threading.Event()

    def ask() -> int:
        count = 0
        while not stop.is_set():
            assert len(reactor.status().databases) == 1
            count += 1
        return count

    asking = Background(ask)
    for _ in range(3):
        with reactor:
            reactor.notify(channel)
            wait_until(lambda: database_status(reactor).dispatched)
    stop.set()

    assert asking.result() > 0
    assert len(seen) >= 9
