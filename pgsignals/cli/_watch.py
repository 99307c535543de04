"""What ``pgsignals top`` counts, between the reactor and the screen."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pgsignals._pure.values import Notification
from pgsignals._sources.reports import DatabaseStatus, Gap
from pgsignals.database import Database
from pgsignals.errors import ConnectionLostError
from pgsignals.reactor import Reactor

#: Intervals that a sparkline can show.
REMEMBERED = 60

#: Events to keep.
EVENTS = 50


@dataclass
class Row:
    """One channel of one database."""

    database: str
    channel: str
    total: int = 0
    payload: str | None = None
    """The last one; None before the first."""
    fresh: int = 0
    rates: deque[float] = field(default_factory=lambda: deque([0.0], maxlen=REMEMBERED))
    """Notifications per second in the last intervals, the latest last."""


@dataclass(frozen=True)
class Picture:
    """A snapshot of everything that can be shown."""

    at: datetime
    rows: tuple[Row, ...]
    databases: tuple[DatabaseStatus, ...]
    events: tuple[str, ...]


class Watch:
    """Counts what a reactor receives; called on its worker."""

    def __init__(self, reactor: Reactor, channels: Sequence[str]) -> None:
        self._reactor = reactor
        self._lock = threading.Lock()
        self._rows = {
            (database, channel): Row(database.name, channel)
            for channel in dict.fromkeys(channels)
            for database in reactor.databases
        }
        self._events: deque[str] = deque(maxlen=EVENTS)
        self._since = time.monotonic()
        reactor.any_channel.connect(self._notified)
        reactor.connected.connect(self._connected)
        reactor.lost.connect(self._lost)
        reactor.gap.connect(self._gap)

    def _notified(self, db: Database, *, notification: Notification) -> None:
        with self._lock:
            if (row := self._rows.get((db, notification.channel))) is not None:
                row.total += 1
                row.fresh += 1
                row.payload = notification.payload

    def _connected(self, db: Database, *, resumed: bool) -> None:
        self._note(f"listening {'again ' if resumed else ''}on {db.name}")

    def _lost(self, _: Database, *, reason: str, error: ConnectionLostError) -> None:
        self._note(f"lost ({reason}): {error}")

    def _gap(self, db: Database, *, gap: Gap) -> None:
        since, until = (f"{at.astimezone():%H:%M:%S}" for at in (gap.since, gap.until))
        self._note(f"gap ({gap.reason}) on {db.name}, {since} to {until}")

    def _note(self, text: str) -> None:
        self._events.append(f"{datetime.now().astimezone():%H:%M:%S}  {text}")

    def turn(self) -> None:
        """End an interval."""
        now = time.monotonic()
        with self._lock:
            took, self._since = max(now - self._since, 0.001), now
            for row in self._rows.values():
                row.rates.append(row.fresh / took)
                row.fresh = 0

    def picture(self) -> Picture:
        """Take a snapshot; later counts do not change it."""
        with self._lock:
            rows = tuple(
                dataclasses.replace(row, rates=row.rates.copy()) for row in self._rows.values()
            )
        at = datetime.now().astimezone()
        return Picture(at, rows, self._reactor.status().databases, tuple(self._events))
