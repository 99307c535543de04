"""What users learn about a database and a reactor: gaps and status."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from pgsignals._pure.states import State
from pgsignals.database import Database


@dataclass(frozen=True, slots=True)
class Gap:
    """An honest "you may have missed something".

    It comes after the new LISTEN is known to hold and before the first later notification:
    a program that reads its state again on every gap keeps a cache right.
    """

    database: Database
    """Where it happened."""

    reason: Literal["reconnect", "overflow", "unlistened"]
    """A new session; a full backlog; or LISTEN registrations removed on the session."""

    since: datetime
    """Everything missed was committed at or after this (UTC, this machine's clock)."""

    until: datetime
    """Everything missed was committed at or before this (UTC, this machine's clock)."""

    dropped: int | None
    """How many notifications were missed, exactly, or None where that cannot be known."""

    channels: frozenset[str] | None
    """The channels concerned, or None for all."""


StateName: TypeAlias = Literal["connecting", "listening", "lost", "stopped"]

_SHOWN: dict[State, StateName] = {
    State.CONNECTING: "connecting",
    State.SYNCING: "connecting",
    State.LISTENING: "listening",
    State.WAITING: "lost",
    State.STOPPED: "stopped",
}


def shown(state: State) -> StateName:
    """What an operator is shown for the state of a link."""
    return _SHOWN[state]


@dataclass(frozen=True, slots=True)
class DatabaseStatus:
    """What an operator sees of one database of a reactor."""

    name: str
    """Host, port and database name; never a secret."""

    state: StateName
    """``lost`` while it waits to try again."""

    backend_id: int | None = None
    """The server process of the listening session, None without one."""

    channels: tuple[str, ...] = ()
    """The channels that are listened to, without our own, sorted."""

    received: int = 0
    """Notifications received, canaries not counted."""

    dispatched: int = 0
    """Notifications whose handlers have all returned."""

    dropped: int = 0
    """Notifications dropped because the backlog was full."""

    failed: int = 0
    """Calls of handlers that raised, and payloads that a ``decode`` refused."""

    gaps: int = 0
    """Gaps reported."""

    reconnects: int = 0
    """Sessions opened after the first one."""

    last_received: float | None = None
    """When the last notification was received, as ``time.time()``; None before the first."""

    probe_seconds: float | None = None
    """How long the last round trip took; None before the first."""

    queue_usage: float | None = None
    """``pg_notification_queue_usage()`` at the last round trip, 0.0 to 1.0."""

    last_error: str | None = None
    """The last error in one line; it stays after recovery."""


@dataclass(frozen=True, slots=True)
class Status:
    """What an operator sees of a reactor: ready for ``dataclasses.asdict`` and JSON."""

    running: bool
    """Between ``start()`` and the end of ``stop()``."""

    backlog: int
    """Notifications received whose handlers have not begun yet."""

    workers: int
    """Threads that run handlers."""

    databases: tuple[DatabaseStatus, ...]
    """One for each database, in the order given."""
