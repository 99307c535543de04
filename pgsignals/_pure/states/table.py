"""The states of a link, and which of them follows which."""

from __future__ import annotations

import enum


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
