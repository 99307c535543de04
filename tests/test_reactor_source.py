"""What a source of another kind would rely on: calls made inside the handler's own transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgsignals import Database, Notification, Reactor
from pgsignals._runtime.reentry import calls_out
from pgsignals._sources.listen import Link
from tests.support.waiting import wait_until


@pytest.fixture
def table(dsn: str, channel: str) -> Iterator[str]:
    """Who wrote what: a handler its effect, or the source that it is acknowledged."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE {channel} (who text, payload text)")
        yield channel
        connection.execute(f"DROP TABLE {channel}")


@pytest.fixture
def acknowledging(monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    """Links acknowledge in the handler's transaction, as durable channels will."""

    @calls_out
    def around(
        handler: Callable[..., object], db: Database, *, notification: Notification
    ) -> object:
        with db.transaction():
            result = handler(db, notification=notification)
            statement = f"INSERT INTO {table} VALUES ('source', %s)"
            db.execute(statement, (notification.payload,))
            if notification.payload == "fenced":
                raise RuntimeError("another process owns it now")
        return result

    monkeypatch.setattr(Link, "around", staticmethod(around))


@pytest.mark.usefixtures("acknowledging")
def test_effect_and_acknowledgement_are_one_transaction(dsn: str, channel: str, table: str) -> None:
    failed: list[str] = []
    with Reactor(dsn) as reactor:

        @reactor.on("handler_failed")
        def note(_: Database, *, notification: Any, handler: object, error: object) -> None:
            failed.append(notification.payload)

        @reactor.on_channel(channel)
        def handle(db: Database, *, notification: Notification) -> None:
            db.execute(f"INSERT INTO {table} VALUES ('handler', %s)", (notification.payload,))
            if notification.payload == "raises":
                raise ValueError

        for payload in ("first", "raises", "fenced", "last"):
            reactor.notify((channel, payload))
        wait_until(lambda: reactor.status().databases[0].dispatched == 4)
        status = reactor.status().databases[0]

    with psycopg.connect(dsn) as connection:
        rows = connection.execute(f"SELECT who, payload FROM {table} ORDER BY payload, who")
        written = rows.fetchall()

    assert written == [(who, text) for text in ("first", "last") for who in ("handler", "source")]
    assert failed == ["raises", "fenced"]
    assert status.failed == 2
