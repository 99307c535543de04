"""What proofs rest on: the server sends a notification before it answers a later round trip.

"Committed" means acknowledged to whoever committed.  PostgreSQL makes a commit visible first, then
signals the listeners, and then acknowledges.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgsignals.embedded import EmbeddedError, Postgres
from tests.support.waiting import PATIENCE, Background

TRIES = 3000

#: None is the server of the suite.
SERVERS = [None, "embedded", "celerp"]


@pytest.fixture(scope="module", params=SERVERS)
def server_dsn(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param is None:
        yield request.getfixturevalue("dsn")
        return
    try:
        server = Postgres(bindir=request.param, tcp=True)
    except EmbeddedError as error:
        pytest.skip(str(error))
    with server:
        yield server.dsn


class Peer:
    """A connection of plain psycopg that listens, and what has come along with its statements."""

    def __init__(self, dsn: str, channel: str) -> None:
        self.connection: psycopg.Connection[Any] = psycopg.connect(dsn, autocommit=True)
        self.arrived: list[str] = []
        self.connection.add_notify_handler(lambda notify: self.arrived.append(notify.payload))
        self.connection.execute(f"LISTEN {channel}".encode())

    def round_trip(self) -> None:
        self.connection.execute("SELECT 1")


@pytest.fixture
def peers(server_dsn: str, channel: str) -> Iterator[tuple[Peer, Peer]]:
    first, second = Peer(server_dsn, channel), Peer(server_dsn, channel)
    yield first, second
    first.connection.close()
    second.connection.close()


def test_round_trip_after_the_acknowledgement_comes_after_the_notification(
    peers: tuple[Peer, Peer], channel: str
) -> None:
    missed = []
    for number in range(TRIES):
        sender, listener = peers if number % 2 else reversed(peers)
        sender.connection.execute("SELECT pg_notify(%s, %s)", (channel, str(number)))
        listener.round_trip()
        if listener.arrived[-1:] != [str(number)]:
            missed.append(number)

    assert missed == []


def test_row_that_is_seen_before_the_acknowledgement_is_heard_of_by_then(
    peers: tuple[Peer, Peer], server_dsn: str, channel: str
) -> None:
    """A round trip that leaves between the two may come back without the notification, rarely."""
    sender, listener = peers
    begin, acknowledged = threading.Semaphore(0), threading.Semaphore(0)

    def commit() -> None:
        for number in range(TRIES // 10):
            assert begin.acquire(timeout=PATIENCE)
            sender.connection.execute(
                "WITH told AS (SELECT pg_notify(%s, %s)) INSERT INTO seen SELECT %s FROM told",
                (channel, str(number), number),
            )
            acknowledged.release()

    missed = []
    with psycopg.connect(server_dsn, autocommit=True) as witness:
        witness.execute("CREATE TABLE seen (number int)")
        try:
            committing = Background(commit)
            for number in range(TRIES // 10):
                begin.release()
                patience = time.monotonic() + PATIENCE
                while witness.execute("SELECT max(number) FROM seen").fetchall() != [(number,)]:
                    assert time.monotonic() < patience, "the row was never seen"
                listener.round_trip()
                assert acknowledged.acquire(timeout=PATIENCE)
                listener.round_trip()
                if str(number) not in listener.arrived[-1:]:
                    missed.append(number)
            committing.result()
        finally:
            witness.execute("DROP TABLE seen")

    assert missed == []
