"""The states of a link, and what is known of its past.  Pure: no IO, no clock.

A link is a database under a reactor's care; it keeps its identity over many sessions.

    ┌────────────┐ opened ┌─────────┐ synced ┌───────────┐
    │ CONNECTING ├───────►│ SYNCING ├───────►│ LISTENING │
    └──▲───┬─────┘        └────┬────┘        └─────┬─────┘
       │   │ refused           │ lost              │ lost
   due │   ▼                   ▼                   │
    ┌──┴───────┐◄──────────────┴───────────────────┘
    │ WAITING  │                    any state: stop ──► STOPPED
    └──────────┘

SYNCING means that a session is open and the server has not yet acknowledged every LISTEN and
delivered the first canary; only from LISTENING on is anything promised.
"""

from __future__ import annotations

import enum
from datetime import datetime


class State(enum.Enum):
    """Where a link is."""

    CONNECTING = "connecting"
    SYNCING = "syncing"
    LISTENING = "listening"
    WAITING = "lost"
    STOPPED = "stopped"


class Event(enum.Enum):
    """What happens to a link."""

    OPENED = "opened"
    REFUSED = "refused"
    SYNCED = "synced"
    LOST = "lost"
    DUE = "due"
    STOP = "stop"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.CONNECTING, Event.OPENED): State.SYNCING,
    (State.CONNECTING, Event.REFUSED): State.WAITING,
    (State.SYNCING, Event.SYNCED): State.LISTENING,
    (State.SYNCING, Event.LOST): State.WAITING,
    (State.LISTENING, Event.LOST): State.WAITING,
    (State.WAITING, Event.DUE): State.CONNECTING,
    **{(state, Event.STOP): State.STOPPED for state in State},
}


class IllegalTransitionError(Exception):
    """An event that the state does not allow: a bug of ours, and therefore no public error."""


def after(state: State, event: Event) -> State:
    """The state that *event* leads to.

    :raises IllegalTransitionError: naming both.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransitionError(f"{event.name} cannot happen in {state.name}") from None


class Proof:
    """Since when nothing can have been missed.

    The server sends what is pending before it answers, so whatever was committed before a round
    trip was sent has been delivered when its answer is read, as far as the session still listens:
    an answer counts when it says so.  It proves nothing behind a pooler that gave our registration
    to another client; the next canary does.
    """

    def __init__(self, established: datetime) -> None:
        self.since = established
        self._sent: datetime | None = None
        self._answered: datetime | None = None

    def sent(self, now: datetime) -> None:
        """A round trip leaves."""
        self._sent = now

    def answered(self) -> None:
        """It is answered, and the session listens to all that it should."""
        self._answered = self._sent

    def canary(self) -> None:
        """A canary has arrived."""
        if self._answered is not None:
            self.since = self._answered
            self._answered = None
