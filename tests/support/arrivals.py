"""What arrives on a database, with deadlines."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeAlias

from pgsignals import Database, Notification
from tests.support.admin import Admin
from tests.support.waiting import PATIENCE

#: The fixture ``connect``: opens a database that is closed after the test.
Connect: TypeAlias = Callable[..., Database]

_numbers = itertools.count(1)


def take(database: Database, count: int) -> list[Notification]:
    """The next *count* notifications."""
    taken: list[Notification] = []
    for notification in database.wait(PATIENCE):
        assert notification is not None, f"{len(taken)} of {count} arrived in {PATIENCE} s"
        taken.append(notification)
        if len(taken) == count:
            return taken
    raise AssertionError(f"the session ended after {len(taken)} of {count}")


def everything(database: Database, admin: Admin) -> list[Notification]:
    """All that arrives of what was sent so far, which ends with a mark that we send."""
    mark = f"mark_{next(_numbers)}"
    database.listen(mark)
    admin.notify(mark)
    arrived: list[Notification] = []
    for notification in database.wait(PATIENCE):
        assert notification is not None, f"the mark did not arrive in {PATIENCE} s"
        if notification.channel == mark:
            database.unlisten(mark)
            return arrived
        arrived.append(notification)
    raise AssertionError("the session ended before the mark arrived")


def payloads(notifications: list[Notification]) -> list[str]:
    """Shorter to compare, and to read when a comparison fails."""
    return [notification.payload for notification in notifications]
