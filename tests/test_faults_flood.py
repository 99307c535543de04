"""A flood on one channel holds up nobody but its own handler."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pgsignals import Database, Notification, Reactor
from tests.support.admin import Admin
from tests.support.waiting import wait_until

FLOOD = 100_000


def test_flood_whose_handler_stands_still_holds_up_no_other_channel_and_no_other_database(
    dsn: str, new_channel: Callable[[], str], admin: Admin
) -> None:
    flooded, other = new_channel(), new_channel()
    here, there = Database(dsn), Database(dsn)
    gate = threading.Event()
    seen: list[int] = []
    heard: list[tuple[Database, str]] = []
    with Reactor(here, there, workers=3) as reactor:

        @reactor.on_channel(flooded, sender=here)
        def stand_still(db: Database, notification: Notification) -> None:
            gate.wait(30)
            seen.append(int(notification.payload))

        @reactor.on_channel(other)
        def hear(db: Database, notification: Notification) -> None:
            heard.append((db, notification.payload))

        try:
            admin.flood(flooded, FLOOD)
            wait_until(lambda: reactor.status().databases[0].received == FLOOD)
            for payload in ("1", "2", "3"):
                admin.notify(other, payload)
            wait_until(lambda: len(heard) == 6)  # all behind the flood, and none of it waits
            assert seen == []
        finally:
            gate.set()
        wait_until(lambda: len(seen) == FLOOD)
        status = reactor.status()

    for db in (here, there):
        assert [payload for sender, payload in heard if sender is db] == ["1", "2", "3"]
    assert seen == list(range(1, FLOOD + 1))
    assert [database.dropped for database in status.databases] == [0, 0]
