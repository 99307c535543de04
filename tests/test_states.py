"""The states of a link and what is known of its past; no clock."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from pgsignals._pure.states import TRANSITIONS, Event, IllegalTransitionError, Proof, State, after
from pgsignals.errors import Error

LEGAL = {
    ("CONNECTING", "OPENED"): "SYNCING",
    ("CONNECTING", "REFUSED"): "WAITING",
    ("CONNECTING", "STOP"): "STOPPED",
    ("SYNCING", "SYNCED"): "LISTENING",
    ("SYNCING", "LOST"): "WAITING",
    ("SYNCING", "STOP"): "STOPPED",
    ("LISTENING", "LOST"): "WAITING",
    ("LISTENING", "STOP"): "STOPPED",
    ("WAITING", "DUE"): "CONNECTING",
    ("WAITING", "STOP"): "STOPPED",
    ("STOPPED", "STOP"): "STOPPED",
}

EVERY_PAIR = list(itertools.product(State, Event))


def moment(second: int) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=second)


# The table


@pytest.mark.parametrize(
    ("state", "event"), EVERY_PAIR, ids=[f"{s.name}-{e.name}" for s, e in EVERY_PAIR]
)
def test_every_event_leads_where_the_picture_says_or_is_refused(state: State, event: Event) -> None:
    wanted = LEGAL.get((state.name, event.name))
    if wanted is None:
        with pytest.raises(IllegalTransitionError, match=rf"{event.name}.*{state.name}"):
            after(state, event)
    else:
        assert after(state, event) is State[wanted]


def test_table_has_nothing_but_what_the_picture_shows() -> None:
    assert len(TRANSITIONS) == len(LEGAL)


def test_illegal_event_is_an_error_of_the_library() -> None:
    assert not issubclass(IllegalTransitionError, Error)


@pytest.mark.parametrize("state", State)
def test_stop_is_possible_in_every_state(state: State) -> None:
    assert after(state, Event.STOP) is State.STOPPED


@pytest.mark.parametrize("event", [event for event in Event if event is not Event.STOP])
def test_nothing_leads_out_of_stopped(event: Event) -> None:
    with pytest.raises(IllegalTransitionError):
        after(State.STOPPED, event)


def test_every_state_can_be_reached_from_the_first() -> None:
    reached = {State.CONNECTING}
    while fresh := {to for (state, _), to in TRANSITIONS.items() if state in reached} - reached:
        reached |= fresh

    assert reached == set(State)


# What is proven


def test_before_the_first_canary_the_proof_is_as_old_as_the_listen() -> None:
    proof = Proof(moment(0))

    proof.sent(moment(1))
    proof.answered()

    assert proof.since == moment(0)


def test_canary_after_an_answer_proves_the_moment_at_which_the_round_trip_left() -> None:
    proof = Proof(moment(0))

    proof.sent(moment(1))
    proof.answered()
    proof.canary()

    assert proof.since == moment(1)


def test_canary_before_the_answer_proves_nothing() -> None:
    proof = Proof(moment(0))

    proof.sent(moment(1))
    proof.canary()
    proof.answered()

    assert proof.since == moment(0)


def test_canary_without_a_round_trip_proves_nothing() -> None:
    proof = Proof(moment(0))

    proof.canary()

    assert proof.since == moment(0)


def test_canary_proves_the_last_round_trip_that_was_answered_not_the_last_that_left() -> None:
    proof = Proof(moment(0))

    proof.sent(moment(1))
    proof.answered()
    proof.sent(moment(2))
    proof.canary()

    assert proof.since == moment(1)


def test_proof_only_grows() -> None:
    proof = Proof(moment(0))

    seen = []
    for second in range(1, 6):
        proof.sent(moment(second))
        proof.answered()
        proof.canary()
        proof.canary()
        seen.append(proof.since)

    assert seen == [moment(second) for second in range(1, 6)]
