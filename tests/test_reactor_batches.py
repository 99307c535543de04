"""Batch handlers keep what single ones keep: nothing swallowed, nothing left open."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sized
from typing import Any

import pytest
from psycopg.pq import TransactionStatus

from pgsignals import Database, Notification, Reactor
from tests.support.admin import Admin
from tests.support.waiting import PATIENCE, wait_until


def wait_for(calls: Sized, count: int) -> None:
    wait_until(lambda: len(calls) == count)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("batch", [False, True])
def test_coalesce_hands_over_again_what_equals_one_that_was_handled(
    dsn: str, channel: str, admin: Admin, workers: int, batch: bool
) -> None:
    handled: list[str] = []
    with Reactor(dsn, overflow="coalesce", workers=workers) as reactor:

        @reactor.on_channel(channel, batch=batch)
        def handler(_: Database, **given: Any) -> None:
            told = given["notifications"] if batch else [given["notification"]]
            handled.extend(one.payload for one in told)

        for count in range(1, 4):
            admin.notify(channel, "the same")
            wait_for(handled, count)

    assert handled == ["the same"] * 3


@pytest.mark.parametrize("others", [0, 1], ids=["alone", "beside another"])
@pytest.mark.parametrize("batch", [False, True], ids=["single", "batch"])
def test_transaction_that_a_handler_leaves_open_is_rolled_back_before_the_next_call(
    dsn: str, channel: str, batch: bool, others: int, caplog: pytest.LogCaptureFixture
) -> None:
    found: list[TransactionStatus] = []
    left: list[object] = []

    def handler(db: Database, **_: object) -> None:
        found.append(db.connection.info.transaction_status)
        left.extend(row[0] for row in db.execute("SELECT to_regclass('pg_temp.left_open')"))
        db.execute("BEGIN")
        db.execute("CREATE TEMPORARY TABLE left_open ()")

    with Reactor(dsn) as reactor:
        for _ in range(1 + others):
            reactor.on_channel(channel, batch=batch)(functools.partial(handler))
        for count in range(1, 4):
            reactor.notify(channel)
            wait_for(found, count * (1 + others))

    assert set(found) == {TransactionStatus.IDLE}
    assert set(left) == {None}
    assert "left a transaction open" in caplog.text


@pytest.mark.parametrize("batch", [False, True], ids=["single", "batch"])
def test_transaction_that_a_failing_handler_leaves_open_is_rolled_back(
    dsn: str, channel: str, batch: bool
) -> None:
    found: list[TransactionStatus] = []
    with Reactor(dsn) as reactor:

        @reactor.on_channel(channel, batch=batch)
        def handler(db: Database, **_: object) -> None:
            found.append(db.connection.info.transaction_status)
            db.execute("BEGIN")
            db.execute("SELECT nonsense")

        for count in range(1, 3):
            reactor.notify(channel)
            wait_for(found, count)

    assert set(found) == {TransactionStatus.IDLE}


def test_batch_is_of_one_database(dsn: str, channel: str, admin: Admin) -> None:
    """Also where one worker has those of two databases before it, all on one channel."""
    seen: list[tuple[Database, str]] = []
    begun, gate = threading.Event(), threading.Event()
    with Reactor(dsn, dsn, channels=[channel]) as reactor:
        first, second = reactor.databases

        @reactor.on_channel(channel, batch=True)
        def handler(db: Database, notifications: list[Notification]) -> None:
            begun.set()
            gate.wait(2 * PATIENCE)
            seen.extend((db, one.payload) for one in notifications)

        admin.notify(channel, "0")
        assert begun.wait(PATIENCE)
        admin.notify(channel, "1", "2", "3")
        wait_until(lambda: all(one.received == 4 for one in reactor.status().databases))
        gate.set()
        wait_until(lambda: len(seen) == 8)

    for database in (first, second):
        assert [payload for db, payload in seen if db is database] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("workers", [1, 2])
def test_coalesce_hands_over_again_what_equals_one_of_a_batch(
    dsn: str, channel: str, admin: Admin, workers: int
) -> None:
    batches: list[list[str]] = []
    begun, gate = threading.Event(), threading.Event()
    with Reactor(dsn, overflow="coalesce", workers=workers) as reactor:

        @reactor.on_channel(channel, batch=True)
        def handler(_: Database, notifications: list[Notification]) -> None:
            batches.append([one.payload for one in notifications])
            begun.set()
            gate.wait(2 * PATIENCE)

        admin.notify(channel, "first")
        assert begun.wait(PATIENCE)
        admin.notify(channel, "1", "2", "3")
        wait_until(lambda: reactor.status().databases[0].received == 4)
        gate.set()
        wait_until(lambda: sum(map(len, batches)) == 4)
        admin.notify(channel, "3", "2", "1")
        wait_until(lambda: sum(map(len, batches)) == 7)

    assert batches[1] == ["1", "2", "3"]
