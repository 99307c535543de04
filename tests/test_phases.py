"""The phases of a reactor's life; no server, no clock."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgsignals._pure.phases import TRANSITIONS, Event, Lifecycle, Phase, after
from pgsignals._pure.states import IllegalTransitionError
from tests.support.waiting import Background

LEGAL = {
    ("STARTING", "LISTENING"): "READY",
    ("STARTING", "STOP"): "ABANDONED",
    ("STARTING", "FAIL"): "ABANDONED",
    ("READY", "BEGIN"): "RUNNING",
    ("READY", "STOP"): "ABANDONED",
    ("READY", "FAIL"): "ABANDONED",
    ("RUNNING", "STOP"): "STOPPING",
    ("RUNNING", "FAIL"): "FAILING",
    ("STOPPING", "STOP"): "STOPPING",
    ("STOPPING", "FAIL"): "STOPPING",
    ("STOPPING", "CLOSE"): "CLOSED",
    ("STOPPING", "END"): "OVER",
    ("FAILING", "STOP"): "FAILING",
    ("FAILING", "FAIL"): "FAILING",
    ("FAILING", "CLOSE"): "CLOSED",
    ("FAILING", "END"): "OVER",
    ("ABANDONED", "LISTENING"): "ABANDONED",
    ("ABANDONED", "BEGIN"): "ABANDONED",
    ("ABANDONED", "STOP"): "ABANDONED",
    ("ABANDONED", "FAIL"): "ABANDONED",
    ("ABANDONED", "CLOSE"): "CLOSED",
    ("ABANDONED", "END"): "OVER",
    ("CLOSED", "BEGIN"): "CLOSED",
    ("CLOSED", "STOP"): "CLOSED",
    ("CLOSED", "END"): "OVER",
    ("OVER", "BEGIN"): "OVER",
    ("OVER", "STOP"): "OVER",
}

EVERY_PAIR = list(itertools.product(Phase, Event))

#: What leads to each phase.
WAYS: dict[Phase, list[Event]] = {
    Phase.STARTING: [],
    Phase.READY: [Event.LISTENING],
    Phase.RUNNING: [Event.LISTENING, Event.BEGIN],
    Phase.STOPPING: [Event.LISTENING, Event.BEGIN, Event.STOP],
    Phase.FAILING: [Event.LISTENING, Event.BEGIN, Event.FAIL],
    Phase.ABANDONED: [Event.STOP],
    Phase.CLOSED: [Event.STOP, Event.CLOSE],
    Phase.OVER: [Event.STOP, Event.CLOSE, Event.END],
}


def at(phase: Phase) -> Lifecycle:
    lifecycle = Lifecycle()
    for event in WAYS[phase]:
        lifecycle.happen(event)
    assert lifecycle.phase is phase
    return lifecycle


# The table


@pytest.mark.parametrize(
    ("phase", "event"), EVERY_PAIR, ids=[f"{p.name}-{e.name}" for p, e in EVERY_PAIR]
)
def test_every_event_leads_where_the_picture_says_or_is_refused(phase: Phase, event: Event) -> None:
    lifecycle, wanted = at(phase), LEGAL.get((phase.name, event.name))
    if wanted is None:
        with pytest.raises(IllegalTransitionError, match=rf"{event.name}.*{phase.name}"):
            lifecycle.happen(event)
        assert lifecycle.phase is phase
    else:
        assert after(phase, event) is lifecycle.happen(event) is lifecycle.phase is Phase[wanted]


def test_table_has_nothing_but_what_the_picture_shows() -> None:
    assert len(TRANSITIONS) == len(LEGAL)


def test_no_phase_comes_back() -> None:
    """So each is left once at most, which is what makes the first to leave it win."""
    later: dict[Phase, set[Phase]] = {phase: set() for phase in Phase}
    for _ in Phase:
        for (phase, _), to in TRANSITIONS.items():
            later[phase] |= ({to} | later[to]) if to is not phase else set()

    assert all(phase not in later[phase] for phase in Phase)


@pytest.mark.parametrize("phase", Phase)
def test_each_property_is_true_in_these_phases(phase: Phase) -> None:
    lifecycle, name = at(phase), phase.name

    assert lifecycle.starting is (name == "STARTING")
    assert lifecycle.stopping is (name not in ("STARTING", "READY", "RUNNING"))
    assert lifecycle.running is (name in ("RUNNING", "STOPPING", "FAILING"))
    assert lifecycle.closed is (name in ("CLOSED", "OVER"))


# Whatever happens


@given(st.lists(st.sampled_from(Event), max_size=12))
def test_any_sequence_of_events_keeps_what_callers_rely_on(events: list[Event]) -> None:
    lifecycle = Lifecycle()
    seen = [lifecycle.phase]
    for event in events:
        try:
            lifecycle.happen(event)
        except IllegalTransitionError:
            assert lifecycle.phase is seen[-1]
        if lifecycle.phase is not seen[-1]:
            seen.append(lifecycle.phase)
        if event is Event.STOP:
            assert lifecycle.stopping

    assert len(seen) == len(set(seen))
    for before, now in itertools.pairwise(seen):
        assert not (now in (Phase.STOPPING, Phase.FAILING) and before is not Phase.RUNNING)
        assert not (before is Phase.CLOSED and now is not Phase.OVER)
    assert not (Phase.ABANDONED in seen and Phase.RUNNING in seen)


# Several at once


class Interrupted(dict[Phase, Phase]):
    """Has *run* called just before the next phase is decided."""

    def __init__(self, followed_by: dict[Phase, Phase], run: Callable[[], object]) -> None:
        super().__init__(followed_by)
        self._run = [run]

    def setdefault(self, phase: Phase, following: Phase) -> Phase:
        while self._run:
            self._run.pop()()
        return super().setdefault(phase, following)


@pytest.mark.parametrize(
    ("phase", "event", "meanwhile", "outcome"),
    [
        (Phase.RUNNING, Event.FAIL, Event.STOP, Phase.STOPPING),
        (Phase.RUNNING, Event.STOP, Event.FAIL, Phase.FAILING),
        (Phase.READY, Event.BEGIN, Event.STOP, Phase.ABANDONED),
        (Phase.READY, Event.STOP, Event.BEGIN, Phase.STOPPING),
        (Phase.STARTING, Event.LISTENING, Event.STOP, Phase.ABANDONED),
        (Phase.STARTING, Event.STOP, Event.LISTENING, Phase.ABANDONED),
        (Phase.STOPPING, Event.CLOSE, Event.STOP, Phase.CLOSED),
    ],
)
def test_finalizer_in_the_middle_of_an_event_is_first(
    phase: Phase, event: Event, meanwhile: Event, outcome: Phase
) -> None:
    lifecycle = at(phase)
    lifecycle._followed_by = Interrupted(
        lifecycle._followed_by, lambda: lifecycle.happen(meanwhile)
    )

    assert lifecycle.happen(event) is outcome is lifecycle.phase


class ReadSlowly(dict[Phase, Phase]):
    """Has *run* called once, just after a look at what follows a phase."""

    def __init__(self, run: Callable[[], object]) -> None:
        super().__init__()
        self._run = [run]

    def get(self, phase: Phase, default: object = None) -> Phase | None:  # type: ignore[override]
        following = super().get(phase)
        while self._run:
            self._run.pop()()
        return following


def test_thread_that_has_looked_long_ago_takes_no_step_back() -> None:
    lifecycle = Lifecycle()

    def start() -> None:
        lifecycle.happen(Event.LISTENING)
        lifecycle.happen(Event.BEGIN)

    lifecycle._followed_by = ReadSlowly(start)

    assert [lifecycle.phase, lifecycle.phase] == [Phase.STARTING, Phase.RUNNING]


def test_threads_that_decide_at_once_agree() -> None:
    for _ in range(200):
        lifecycle = at(Phase.RUNNING)
        deciding = [Background(lifecycle.happen, event) for event in (Event.STOP, Event.FAIL) * 2]

        assert {one.result() for one in deciding} == {lifecycle.phase}
