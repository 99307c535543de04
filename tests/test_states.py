"""The states of a link, and the machines that change them: no server, no socket, no clock."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgsignals._pure.backoff import Backoff
from pgsignals._pure.names import PROBE_CHANNEL
from pgsignals._pure.states import (
    LISTENS_AT_ONCE,
    NEVER,
    TRANSITIONS,
    Attempts,
    Canaries,
    Canary,
    Condition,
    Due,
    Event,
    Exchange,
    IllegalTransitionError,
    Past,
    Proof,
    Registrations,
    State,
    Timing,
    after,
)
from pgsignals._pure.states.machines import ANSWER_LIMIT, CONNECT_LIMIT, LONGEST_CONNECT
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


# How long a link waits


@pytest.mark.parametrize(
    ("interval", "timeout", "answer", "connect"),
    [
        (10.0, 5.0, 5.0, 15.0),
        (0.1, 0.2, 0.2, 0.1 + 0.2),
        (86_400.0, 5.0, 5.0, LONGEST_CONNECT),
        (None, 5.0, ANSWER_LIMIT, CONNECT_LIMIT),
    ],
)
def test_limits_follow_from_the_probes(
    interval: float | None, timeout: float, answer: float, connect: float
) -> None:
    timing = Timing(interval, timeout)

    assert (timing.answer, timing.connect) == (answer, connect)


# Attempts


def attempts() -> Attempts:
    return Attempts(Backoff(1.0, 8.0), 15.0)


def test_attempt_is_late_after_its_limit_and_only_while_it_is_current() -> None:
    one = attempts()
    one.due_at = 99.0
    number = one.begin(100.0)

    assert (one.current, one.late_at, one.at) == (number, 115.0, NEVER)
    one.end()
    assert one.current != number
    assert one.late_at == NEVER


def test_next_attempt_is_due_after_the_wait_of_the_backoff() -> None:
    one, rng = attempts(), random.Random(1)
    delay = one.retry(100.0, rng, slowly=False)

    assert 0.1 <= delay <= 1.0
    assert one.at == 100.0 + delay
    assert one.retry(100.0, rng, slowly=True) >= 8.0


def test_attempt_that_would_hang_is_put_off_until_a_thread_returns() -> None:
    one = attempts()
    one.due_at = 100.0
    one.put_off(200.0)

    assert one.at == 201.0
    one.resume()
    assert one.at == 100.0


# Exchange


def test_nothing_is_awaited_before_a_statement_is_sent() -> None:
    one = Exchange(5.0)
    one.ask()

    assert one.pending
    assert not one.with_server
    assert one.answer_by == NEVER


def test_answer_is_late_after_the_limit_or_its_share() -> None:
    one = Exchange(5.0)
    one.ask()
    one.sent(100.0)
    assert (one.answer_by, one.lag_at, one.with_server) == (105.0, 102.5, True)
    one.answered()
    one.ask(share=0.5)
    one.sent(200.0)

    assert (one.answer_by, one.lag_at) == (202.5, 201.25)


def test_answer_shows_that_everything_before_its_question_was_delivered() -> None:
    one = Exchange(5.0)
    one.ask()
    one.sent(100.0)
    assert one.delivered == 0.0
    one.answered()

    assert one.delivered == 100.0
    assert not one.pending
    assert one.answer_by == NEVER


def test_sign_of_life_counts_for_the_statement_under_way_only() -> None:
    one = Exchange(5.0)
    one.ask()
    one.sent(100.0)
    one.alive = True
    one.answered()
    one.ask()
    one.sent(101.0)

    assert not one.alive


def test_statement_waits_for_others_from_the_first_try_on() -> None:
    one = Exchange(5.0)
    one.ask()
    one.hand_over(100.0)

    assert one.wait_for_others(101.0) == 1.0
    assert one.send_at == 101.1
    one.hand_over(101.1)
    assert one.send_at == NEVER
    assert one.wait_for_others(103.0) == 3.0
    one.answered()
    one.ask()
    one.hand_over(110.0)
    assert one.wait_for_others(111.0) == 1.0


def test_half_a_limit_more_never_takes_anything_away() -> None:
    one = Exchange(4.0)
    one.ask()
    one.sent(100.0)
    one.extend_half(101.0)
    assert one.answer_by == 104.0
    one.extend_half(103.0)
    assert one.answer_by == 105.0
    one.extend(103.0)
    assert one.answer_by == 107.0


# Canaries

TIMING = Timing(10.0, 5.0)


@pytest.mark.parametrize(
    ("steps", "where", "travels"),
    [
        ([], Canaries.RESTING, False),
        (["ask"], Canaries.ASKED, False),
        (["ask", "committed"], Canaries.SENT, True),
        (["ask", "committed", "doubt"], Canaries.DOUBTED, True),
        (["ask", "committed", "doubt", "tried"], Canaries.TRIED, True),
        (["ask", "committed", "doubt", "tried", "arrived"], Canaries.RESTING, False),
        (["ask", "committed", "arrived"], Canaries.RESTING, False),
        (["ask", "failed"], Canaries.RESTING, False),
        (["ask", "committed", "lost"], Canaries.RESTING, False),
        (["ask", "committed", "reset"], Canaries.RESTING, False),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_canary_goes_where_the_picture_says(
    steps: list[str], where: Canaries, travels: bool
) -> None:
    one = Canary(TIMING)
    for step in steps:
        arguments = {"arrived": (100.0, 0.9), "doubt": (), "tried": (), "lost": (), "reset": ()}
        getattr(one, step)(*arguments.get(step, (100.0,)))

    assert one.where is where
    assert one.travels is travels
    assert one.under_way is (where is not Canaries.RESTING)


def test_canary_is_due_when_none_was_seen_for_a_share_of_the_interval() -> None:
    one = Canary(TIMING)
    one.arrived(100.0, 0.8)
    assert one.at == 108.0
    one.not_before = 120.0
    assert one.at == 120.0
    one.put_off(130.0)
    assert one.at == 131.0
    one.resume()
    assert one.at == 120.0
    assert Canary(Timing(None, 5.0)).at == NEVER


def test_canary_that_is_not_committed_fails_within_the_time_of_an_attempt() -> None:
    one = Canary(TIMING)
    one.ask(100.0)
    assert (one.unsent_at, one.late_at) == (115.0, NEVER)
    assert one.is_awaited(100.0)
    assert not one.is_awaited(99.0)
    one.committed(101.0)

    assert one.unsent_at == NEVER
    assert not one.is_awaited(100.0)


def test_canary_that_is_committed_is_late_after_half_of_the_timeout() -> None:
    one = Canary(TIMING)
    one.ask(100.0)
    one.committed(101.0)
    assert one.late_at == 103.5
    one.doubt()
    assert one.late_at == NEVER


def test_canary_that_failed_is_followed_by_another_one_an_interval_later() -> None:
    one = Canary(TIMING)
    one.ask(100.0)
    one.failed(101.0)

    assert one.at == 101.0 + 9.0


def test_canary_that_was_lost_with_its_registration_is_sent_again_at_once() -> None:
    one = Canary(TIMING)
    one.ask(100.0)
    one.arrived(101.0, 0.9)
    one.ask(102.0)
    one.lost()

    assert one.at <= 102.0


def test_new_session_owes_nothing_to_the_one_before() -> None:
    one = Canary(TIMING)
    one.arrived(100.0, 0.9)
    one.not_before, one.shown = 500.0, True
    one.begin()

    assert (one.seen_at, one.not_before, one.shown) == (0.0, 0.0, False)


# Registrations


def test_difference_between_wanted_and_acknowledged_is_the_next_statement() -> None:
    one = Registrations()
    one.wanted = frozenset({"a", "b"})
    assert one.next() == (["a", "b", PROBE_CHANNEL], [])
    one.acknowledged(["a", "b", PROBE_CHANNEL])
    assert one.next() == ([], [])
    one.wanted = frozenset({"b", "c"})
    assert one.next() == (["c"], ["a"])
    one.acknowledged(["c"], ["a"])
    assert one.next() == ([], [])


def test_statement_is_no_longer_than_its_limit_each_way() -> None:
    one = Registrations()
    one.wanted = frozenset(f"c{n:04}" for n in range(500))
    listen, _ = one.next()
    assert len(listen) == LISTENS_AT_ONCE
    one.acknowledged(one.target)
    one.wanted = frozenset()
    _, unlisten = one.next()
    assert len(unlisten) == LISTENS_AT_ONCE


def test_channels_of_the_owner_are_kept_and_not_given_up_at_the_end() -> None:
    one = Registrations()
    one.keep(["theirs"])
    one.wanted = frozenset({"ours"})
    assert one.next() == (["ours", PROBE_CHANNEL], [])
    one.acknowledged(["ours", PROBE_CHANNEL])

    assert one.ours == ["ours", PROBE_CHANNEL]


def test_channel_that_cannot_be_spoken_is_not_asked_for() -> None:
    one = Registrations()
    one.wanted = frozenset({"a", "b"})
    one.unspeakable.add("b")

    assert one.next() == (["a", PROBE_CHANNEL], [])


def test_registration_that_can_no_longer_be_named_stays_and_is_known() -> None:
    one = Registrations()
    one.acknowledged(["a", PROBE_CHANNEL])
    assert one.next() == ([], ["a"])
    one.unspeakable.add("a")

    assert one.next() == ([], [])
    assert one.all == {"a", PROBE_CHANNEL}


def test_what_the_server_no_longer_names_is_missing_and_what_else_it_names_is_foreign() -> None:
    one = Registrations()
    one.acknowledged(["a", "b"])
    assert one.compare({"b", "x"}) == {"a"}
    assert (one.active, one.foreign, one.all) == ({"b"}, {"x"}, {"b", "x"})
    assert one.compare({"b"}) == set()
    assert one.foreign == set()


def test_new_session_listens_to_nothing() -> None:
    one = Registrations()
    one.acknowledged(["a"])
    one.foreign, one.unspeakable = {"x"}, {"y"}
    one.begin()

    assert (one.active, one.foreign, one.unspeakable) == (set(), set(), set())


@given(st.lists(st.frozensets(st.sampled_from("abcdef"))))
def test_registrations_arrive_at_what_was_wanted_last(wishes: list[frozenset[str]]) -> None:
    one = Registrations()
    for wanted in wishes:
        one.wanted = wanted
        one.acknowledged(*one.next())

    assert one.active - {PROBE_CHANNEL} == (wishes[-1] if wishes else set())


# Past


def test_first_session_is_no_resumption_and_later_ones_are() -> None:
    past = Past()

    assert [past.synced(100.0), past.synced(200.0)] == [False, True]
    assert past.up_since == 200.0


def test_gap_begins_where_the_first_of_several_losses_was_proven() -> None:
    past = Past()
    past.lost(moment(1))
    past.lost(moment(5))
    assert past.resumed(moment(9)) == moment(1)
    assert past.resumed(moment(9)) == moment(9)


# All of it: what is due


def fresh(interval: float | None = 10.0, timeout: float = 5.0) -> Condition:
    return Condition(Timing(interval, timeout), Backoff(1.0, 8.0), moment(0))


def syncing() -> Condition:
    condition = fresh()
    condition.attempts.begin(0.0)
    condition.begin_session()
    return condition


def listening() -> Condition:
    """Idle, its last canary seen at 100."""
    condition = syncing()
    condition.happen(Event.SYNCED)
    condition.canary.arrived(100.0, 0.9)
    condition.probe_at = 110.0
    return condition


def asked(condition: Condition, at: float = 100.0) -> Condition:
    condition.exchange.ask()
    condition.sent(at)
    return condition


def waiting() -> Condition:
    condition = fresh()
    condition.happen(Event.REFUSED)
    condition.attempts.due_at = 100.0
    return condition


def connecting() -> Condition:
    condition = fresh()
    condition.attempts.begin(100.0)
    return condition


def with_canary(*steps: str) -> Condition:
    condition = listening()
    for step in steps:
        getattr(condition.canary, step)(*(() if step in ("doubt", "tried") else (101.0,)))
    return condition


def in_others_hands() -> Condition:
    condition = listening()
    condition.exchange.ask()
    condition.exchange.hand_over(100.0)
    condition.exchange.wait_for_others(101.0)
    return condition


def alive(condition: Condition) -> Condition:
    condition.exchange.alive = True
    return condition


SITUATIONS: dict[str, tuple[Callable[[], Condition], dict[Due, float]]] = {
    "connecting": (connecting, {Due.CONNECT_LATE: 115.0}),
    "waiting": (waiting, {Due.CONNECT: 100.0}),
    "setting up": (lambda: asked(syncing()), {Due.ANSWER_LATE: 105.0}),
    "setting up, alive": (lambda: alive(asked(syncing())), {Due.ANSWER_LATE: 105.0}),
    "idle": (listening, {Due.PROBE: 110.0, Due.CANARY: 109.0}),
    "asked": (lambda: asked(listening()), {Due.ANSWER_LATE: 105.0, Due.CANARY: 109.0}),
    "asked, alive": (
        lambda: alive(asked(listening())),
        {Due.ANSWER_LATE: 105.0, Due.LAG: 102.5, Due.CANARY: 109.0},
    ),
    "in others' hands": (in_others_hands, {Due.SEND: 101.1, Due.CANARY: 109.0}),
    "canary asked for": (lambda: with_canary("ask"), {Due.CANARY_UNSENT: 116.0, Due.PROBE: 110.0}),
    "canary sent": (
        lambda: with_canary("ask", "committed"),
        {Due.CANARY_LATE: 103.5, Due.PROBE: 110.0},
    ),
    "canary late": (
        lambda: with_canary("ask", "committed", "doubt"),
        {Due.TRY: 0.0, Due.PROBE: 110.0},
    ),
    "canary late, asked": (
        lambda: asked(with_canary("ask", "committed", "doubt")),
        {Due.ANSWER_LATE: 105.0},
    ),
    "canary tried": (
        lambda: asked(with_canary("ask", "committed", "doubt", "tried")),
        {Due.ANSWER_LATE: 105.0},
    ),
    "canary sent, asked, alive": (
        lambda: alive(asked(with_canary("ask", "committed"))),
        {Due.ANSWER_LATE: 105.0, Due.CANARY_LATE: 103.5},
    ),
}
each_situation = pytest.mark.parametrize("name", SITUATIONS)


@each_situation
def test_what_is_due_in_each_situation_and_nothing_else(name: str) -> None:
    make, expected = SITUATIONS[name]
    condition = make()

    assert {due: condition.at(due) for due in Due if condition.at(due) != NEVER} == pytest.approx(
        expected
    )
    assert condition.next() == min(expected.values())


@each_situation
def test_nothing_is_due_a_moment_before_its_time(name: str) -> None:
    make, expected = SITUATIONS[name]
    condition = make()
    first = min(expected.values())

    assert list(condition.due(first - 0.001, first - 0.001)) == []
    assert list(condition.due(first, first))[:1] == [min(expected, key=lambda due: expected[due])]


@pytest.mark.parametrize("due", [Due.ANSWER_LATE, Due.CANARY_UNSENT, Due.CANARY_LATE])
def test_others_are_late_only_if_they_were_when_we_last_looked(due: Due) -> None:
    make = next(make for make, expected in SITUATIONS.values() if due in expected)
    condition = make()
    at = condition.at(due)

    assert due not in condition.due(at + 1000.0, at - 0.001)
    assert due in condition.due(at, at)


def test_stopped_link_does_nothing_any_more() -> None:
    condition = waiting()
    condition.attempts.end()
    condition.happen(Event.STOP)

    assert condition.next() == NEVER


def test_what_one_duty_changes_decides_about_those_that_follow() -> None:
    condition = with_canary("ask", "committed")
    done = []
    for due in condition.due(103.5, 103.5):
        done.append(due)
        if due is Due.CANARY_LATE:
            condition.canary.doubt()
        if due is Due.TRY:
            condition.canary.tried()
            asked(condition, 103.5)

    assert done == [Due.CANARY_LATE, Due.TRY]


# All of it: an answer that does not come


def test_life_puts_the_deadline_off_while_a_session_is_set_up() -> None:
    condition = asked(syncing())
    condition.note_life(104.0)

    assert condition.exchange.answer_by == 109.0


def test_life_puts_the_deadline_off_by_half_until_the_lag_is_known() -> None:
    condition = asked(listening())
    condition.note_life(104.0)
    assert condition.exchange.answer_by == 106.5
    condition.exchange.lag_at = NEVER
    condition.note_life(106.0)

    assert condition.exchange.answer_by == 106.5


@pytest.mark.parametrize(
    "steps",
    [
        ("ask", "committed"),
        ("ask", "committed", "doubt"),
        ("ask", "committed", "doubt", "tried"),
    ],
)
def test_life_puts_the_deadline_off_while_a_canary_is_on_its_way(steps: tuple[str, ...]) -> None:
    condition = asked(with_canary(*steps))
    condition.note_life(104.0)

    assert condition.exchange.answer_by == 109.0


def test_canary_is_sent_to_find_out_whether_the_session_lags() -> None:
    condition = alive(asked(listening()))
    assert condition.find_lag(102.5)
    assert condition.exchange.answer_by == 105.0
    assert condition.at(Due.LAG) == NEVER


def test_no_second_canary_is_sent_to_find_that_out() -> None:
    condition = alive(asked(with_canary("ask")))

    assert not condition.find_lag(104.0)
    assert condition.exchange.answer_by == 106.5


def test_where_no_canary_may_be_sent_the_session_may_lag() -> None:
    condition = alive(asked(listening()))
    condition.canary.not_before = 200.0

    assert not condition.find_lag(102.5)
    lags = [condition.may_lag]
    asked(condition, 103.0)
    lags.append(condition.may_lag)
    assert lags == [True, False]


def test_canary_that_comes_promptly_lets_the_deadline_stand() -> None:
    condition = asked(with_canary("ask", "committed"))
    condition.note_life(104.0)
    condition.canary_arrived(102.0, 0.9)

    assert condition.exchange.answer_by == 105.0
    assert condition.at(Due.LAG) == NEVER
    condition.note_life(104.9)
    assert condition.exchange.answer_by == 105.0


def test_canary_that_comes_late_shows_a_lag_which_is_looked_for_again() -> None:
    condition = asked(with_canary("ask", "committed"))
    condition.canary_arrived(103.6, 0.9)

    assert condition.exchange.answer_by == 108.6
    condition.note_life(104.0)
    assert condition.at(Due.LAG) == 103.6


@pytest.mark.parametrize(
    ("refused", "after_", "lags"), [(True, 1.0, True), (True, 3.0, False), (False, 1.0, False)]
)
def test_refused_canary_cannot_tell_a_lag_if_that_was_said_at_once(
    refused: bool, after_: float, lags: bool
) -> None:
    condition = asked(with_canary("ask"))
    condition.canary_failed(101.0 + after_, refused=refused)

    assert condition.may_lag is lags
    assert not condition.canary.under_way


# All of it: canaries and proofs


def test_canary_shows_that_a_new_session_hears_if_it_is_ours() -> None:
    condition = syncing()
    assert not condition.canary_arrived(1.0, 0.9)  # another reactor's
    condition.canary.ask(2.0)
    assert condition.canary_arrived(3.0, 0.9)
    shown = [condition.canary.shown]
    condition.listened(["a"], [])
    shown.append(condition.canary.shown)
    assert shown == [True, False]
    assert "a" in condition.registrations.active


def test_canary_of_an_announced_session_announces_nothing() -> None:
    assert not with_canary("ask", "committed").canary_arrived(102.0, 0.9)


def test_canary_proves_the_round_trip_before_it() -> None:
    condition = listening()
    condition.proof.sent(moment(7))
    condition.proof.answered()
    condition.canary_arrived(101.0, 0.9)

    assert condition.proof.since == moment(7)


def test_end_of_a_session_leaves_nothing_to_wait_for() -> None:
    condition = asked(with_canary("ask", "committed"))
    condition.happen(Event.LOST)
    condition.expect_nothing()

    assert condition.next() == NEVER
    assert not condition.exchange.pending


# A link and a server, without either: virtual time


class Simulation:
    """Does what a link does with its condition, against a server that answers after *latency*,
    until *silent*, and delivers canaries until *deaf*."""

    def __init__(
        self,
        *,
        interval: float = 10.0,
        timeout: float = 5.0,
        latency: float = 0.01,
        silent: float = NEVER,
        deaf: float = NEVER,
        flood: tuple[float, float] = (NEVER, NEVER),
    ) -> None:
        self.condition = condition = fresh(interval, timeout)
        self.latency, self.silent, self.deaf, self.flood = latency, silent, deaf, flood
        self.answer_at = self.commit_at = self.canary_at = NEVER
        self.failed: tuple[str, float] | None = None
        condition.attempts.begin(0.0)
        condition.begin_session()
        condition.happen(Event.SYNCED)
        condition.canary.arrived(0.0, 0.9)
        condition.probe_at = interval

    def run(self, until: float) -> tuple[str, float] | None:
        """How and when the session was given up, if it was."""
        now = 0.0
        while now < until:
            now = max(self.next(now), now + 0.001)
            self.read(now)
            for due in self.condition.due(now, now):
                self.do(due, now)
            if self.failed is not None:
                break
        return self.failed

    def next(self, now: float) -> float:
        """When something happens."""
        flood = now + 0.5 if now < self.flood[1] < NEVER or self.flood[0] == 0.0 else NEVER
        theirs = (self.commit_at, self.canary_at, self.answer_at, flood)
        return min(self.condition.next(), *(at for at in theirs if at > now), now + 10.0)

    def read(self, now: float) -> None:
        condition = self.condition
        if self.commit_at <= now:
            self.commit_at = NEVER
            condition.canary.committed(now)
            self.canary_at = self.behind(now + self.latency)
        if self.flood[0] <= now < self.flood[1] and condition.exchange.with_server:
            condition.note_life(now)
        if self.canary_at <= now < min(self.silent, self.deaf):
            self.canary_at = NEVER
            condition.canary_arrived(now, 0.9)
        if self.answer_at <= now < self.silent:
            self.answer_at = NEVER
            condition.exchange.answered()
            if condition.canary.where is Canaries.TRIED:
                self.failed = "deaf", now
            condition.probe_at = now + (condition.timing.probe_interval or NEVER)

    def behind(self, at: float) -> float:
        """Whatever the server sends during the flood comes at its end."""
        return self.flood[1] if self.flood[0] <= at < self.flood[1] else at

    def ask(self, now: float, share: float = 1.0) -> None:
        self.condition.exchange.ask(share)
        self.condition.sent(now)
        self.answer_at = self.behind(now + self.latency)

    def do(self, due: Due, now: float) -> None:
        condition = self.condition
        if due is Due.ANSWER_LATE:
            self.failed = "silent", now
        elif due is Due.CANARY or (due is Due.LAG and condition.find_lag(now)):
            condition.canary.ask(now)
            self.commit_at = now + 0.01
        elif due is Due.CANARY_LATE:
            condition.canary.doubt()
        elif due is Due.TRY:
            condition.canary.tried()
            self.ask(now, 0.5)
        elif due is Due.PROBE:
            condition.probe_at = NEVER
            self.ask(now)
        else:
            assert due is Due.LAG


@given(
    st.floats(1.0, 30.0),
    st.floats(1.0, 30.0),
    st.floats(0.0, 60.0),
)
def test_silent_server_is_found_out_within_the_promise(
    interval: float, timeout: float, silent: float
) -> None:
    failed = Simulation(interval=interval, timeout=timeout, silent=silent).run(200.0)

    assert failed is not None
    assert failed[0] == "silent"
    assert silent <= failed[1] <= silent + interval + timeout + 0.1


@given(st.floats(1.0, 30.0), st.floats(1.0, 30.0), st.floats(0.0, 60.0))
def test_deaf_session_is_found_out_within_the_promise(
    interval: float, timeout: float, deaf: float
) -> None:
    failed = Simulation(interval=interval, timeout=timeout, deaf=deaf).run(200.0)

    assert failed is not None
    assert failed[0] == "deaf"
    assert deaf <= failed[1] <= deaf + interval + timeout + 0.1


@given(st.floats(1.0, 30.0), st.floats(1.0, 30.0), st.floats(0.0, 0.4))
def test_server_that_answers_in_less_than_half_of_the_time_is_never_given_up(
    interval: float, timeout: float, part: float
) -> None:
    latency = part * timeout

    assert Simulation(interval=interval, timeout=timeout, latency=latency).run(150.0) is None


@given(st.floats(10.0, 30.0), st.floats(0.0, 100.0))
def test_flood_before_an_answer_is_never_taken_for_silence(begins: float, lasts: float) -> None:
    assert Simulation(flood=(begins, begins + lasts)).run(begins + lasts + 30.0) is None


@given(st.floats(11.0, 30.0))
def test_flood_does_not_hide_that_what_we_send_is_lost(silent: float) -> None:
    """Canaries arrive, from others' connections; answers do not, though something always comes."""
    simulation = Simulation(flood=(0.0, NEVER))
    simulation.behind = lambda at: at  # type: ignore[method-assign] # the flood is thin
    simulation.silent = NEVER
    read = simulation.read

    def lossy(now: float) -> None:
        if now >= silent:
            simulation.answer_at = NEVER
        read(now)

    simulation.read = lossy  # type: ignore[method-assign]
    failed = simulation.run(200.0)

    assert failed is not None
    assert failed[0] == "silent"
    assert failed[1] <= silent + 10.0 + 2 * 5.0
