"""The phases of a reactor's life, from one start to the end of its threads.  Pure: no IO, no clock.

                 listening            begin
    ┌──────────┐───────────►┌───────┐────────►┌─────────┐
    │ STARTING │            │ READY │         │ RUNNING ├─────────────┐
    └────┬─────┘            └───┬───┘         └────┬────┘             │
         │ stop, fail           │ stop, fail       │ stop             │ fail
         ▼                      ▼                  ▼                  ▼
    ┌──────────────────────────────┐        ┌────────────┐      ┌───────────┐
    │          ABANDONED           │        │  STOPPING  │      │  FAILING  │
    └────┬────────────────────┬────┘        └─────┬──────┘      └─────┬─────┘
         │ end                │ close             │ close             │ close
         ▼                    ▼                   ▼                   ▼
    ┌──────────┐        end        ┌─────────────────────────────────────────┐
    │   OVER   │◄──────────────────┤                 CLOSED                  │
    └──────────┘                   └─────────────────────────────────────────┘

Each phase is left once at most, and none comes back: another start is another life.
"""

from __future__ import annotations

import enum

from pgsignals._pure.states import IllegalTransitionError


class Phase(enum.Enum):
    """How far a life has come."""

    STARTING = "the links connect; an error of one makes the start fail"
    READY = "each link listens, and start() is about to return"
    RUNNING = "start() has returned"
    STOPPING = "a stop was asked for; what has been received is still handled"
    FAILING = "no link can go on; what has been received is still handled"
    ABANDONED = "the start has failed or was stopped; it is never said to have run"
    CLOSED = "the sessions are closed, and another life may begin"
    OVER = "its threads have ended, or are left to themselves"


class Event(enum.Enum):
    """What happens to a life."""

    LISTENING = "each link listens"
    BEGIN = "start() returns"
    FAIL = "no link can go on, or the reader has failed"
    STOP = "a stop is asked for, or start() gives up"
    CLOSE = "the sessions are closed"
    END = "nothing is left to be done"


_GOES_ON = (Phase.STARTING, Phase.READY, Phase.RUNNING)
_ENDS = (Phase.STOPPING, Phase.FAILING, Phase.ABANDONED)

TRANSITIONS: dict[tuple[Phase, Event], Phase] = {
    (Phase.STARTING, Event.LISTENING): Phase.READY,
    (Phase.READY, Event.BEGIN): Phase.RUNNING,
    (Phase.STARTING, Event.STOP): Phase.ABANDONED,
    (Phase.READY, Event.STOP): Phase.ABANDONED,
    (Phase.RUNNING, Event.STOP): Phase.STOPPING,
    (Phase.STARTING, Event.FAIL): Phase.ABANDONED,
    (Phase.READY, Event.FAIL): Phase.ABANDONED,
    (Phase.RUNNING, Event.FAIL): Phase.FAILING,
    **{(phase, Event.CLOSE): Phase.CLOSED for phase in _ENDS},
    # Also where the closing itself has failed, or was never needed.
    **{(phase, Event.END): Phase.OVER for phase in (*_ENDS, Phase.CLOSED)},
    # What comes too late changes nothing: the threads decide at the same time.
    (Phase.ABANDONED, Event.LISTENING): Phase.ABANDONED,
    **{(phase, Event.BEGIN): phase for phase in (Phase.ABANDONED, Phase.CLOSED, Phase.OVER)},
    **{(phase, Event.FAIL): phase for phase in _ENDS},
    **{(phase, Event.STOP): phase for phase in Phase if phase not in _GOES_ON},
}


def after(phase: Phase, event: Event) -> Phase:
    """The phase that *event* leads to.

    :raises IllegalTransitionError: naming both.
    """
    try:
        return TRANSITIONS[phase, event]
    except KeyError:
        raise IllegalTransitionError(f"{event.name} cannot happen in {phase.name}") from None


class Lifecycle:
    """The phases that one life has been through; any thread may read and change it, without a lock.

    A finalizer may stop a reactor in the middle of any of our code, also of :meth:`happen`.
    """

    def __init__(self) -> None:
        self._phase = Phase.STARTING  # a short cut: it or a later one is the phase
        self._followed_by: dict[Phase, Phase] = {}

    @property
    def phase(self) -> Phase:
        """How far it has come."""
        phase = self._phase
        while (following := self._followed_by.get(phase)) is not None:
            phase = following
        self._phase = phase
        return phase

    def happen(self, event: Event) -> Phase:
        """Go on to the phase that *event* leads to, and return it.

        :raises IllegalTransitionError: as :func:`after`.
        """
        while True:
            phase = self.phase
            following = after(phase, event)
            # One step of C: of several threads, the first decides what follows.
            if following is phase or self._followed_by.setdefault(phase, following) is following:
                return following

    @property
    def starting(self) -> bool:
        """Whether an error of a link still makes the start fail."""
        return self.phase is Phase.STARTING

    @property
    def stopping(self) -> bool:
        """Whether it ends or has ended, for whatever reason."""
        return self.phase not in _GOES_ON

    @property
    def running(self) -> bool:
        """From the end of a start until the sessions are closed."""
        return self.phase in (Phase.RUNNING, Phase.STOPPING, Phase.FAILING)

    @property
    def closed(self) -> bool:
        """Whether another life may begin."""
        return self.phase in (Phase.CLOSED, Phase.OVER)
