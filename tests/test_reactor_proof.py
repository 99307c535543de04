"""Where a gap begins: no later than what may have been missed, and not long before it."""

from __future__ import annotations

import threading
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from pgsignals import Database, Notification, Reactor
from pgsignals._pure.names import PROBE_CHANNEL
from pgsignals.embedded import Postgres
from tests.programs.fault_rig import Censor, Witness, now, session_of
from tests.support.admin import Admin
from tests.support.arrivals import Connect, take
from tests.support.waiting import PATIENCE, wait_until

#: Probes come often, and no deadline passes on a busy machine.
OFTEN: dict[str, Any] = {"probe_interval": 0.2, "probe_timeout": PATIENCE}
WITHOUT: dict[str, Any] = {"backoff": (0.01, 0.1), "probe_interval": None}


def await_probes(reactor: Reactor, count: int) -> None:
    """Return when so many round trips have been answered; all but the first were sent later."""

    answered: set[float | None] = {reactor.status().databases[0].probe_seconds}

    def complete() -> bool:
        answered.add(reactor.status().databases[0].probe_seconds)
        return len(answered) > count

    wait_until(complete, why=f"fewer than {count} probes were answered")


def test_gap_begins_after_what_probes_and_canaries_have_proven(
    dsn: str, connect: Connect, channel: str, admin: Admin
) -> None:
    canaries = connect()
    canaries.listen(PROBE_CHANNEL)
    with Reactor(dsn, channels=[channel], backoff=(0.01, 0.1), **OFTEN) as reactor:
        witness = Witness(reactor)
        started = now()
        await_probes(reactor, 2)
        canaries.drain()
        # The next one is sent when the reactor has this one: it has several after the answer.
        take(canaries, 4)
        admin.kill(session_of(reactor))
        told = witness.wait("gap").gap

    assert started <= told.since <= told.until


def test_gap_of_a_second_loss_begins_after_the_first_one(
    dsn: str, channel: str, admin: Admin
) -> None:
    with Reactor(dsn, channels=[channel], **WITHOUT) as reactor:
        witness = Witness(reactor)
        before = now()
        admin.kill(session_of(reactor))
        first = witness.wait("gap").gap
        between = now()
        admin.kill(session_of(reactor))
        second = witness.wait("gap", 2).gap

    assert first.since <= before <= second.since <= between


def test_gap_of_a_later_loss_does_not_begin_before_an_earlier_gap_was_told(
    dsn: str, connect: Connect, channel: str, admin: Admin
) -> None:
    """Proofs go on after a reconnect as they did before it."""
    canaries = connect()
    canaries.listen(PROBE_CHANNEL)
    with Reactor(dsn, channels=[channel], backoff=(0.01, 0.1), **OFTEN) as reactor:
        witness = Witness(reactor)
        admin.kill(session_of(reactor))
        witness.wait("gap")
        proven_after = now()
        await_probes(reactor, 2)
        canaries.drain()
        take(canaries, 4)
        admin.kill(session_of(reactor))
        second = witness.wait("gap", 2).gap

    assert proven_after <= second.since


class Stuck:
    """A handler that waits in its first call, and how many calls have come."""

    def __init__(self, reactor: Reactor, name: str) -> None:
        self.begun, self._gate = threading.Event(), threading.Event()
        self.arrived: list[str] = []
        reactor.on_channel(name)(self._handle)

    def _handle(self, _: Database, notification: Notification) -> None:
        self.begun.set()
        self._gate.wait(2 * PATIENCE)
        self.arrived.append(notification.payload)

    def go_on(self) -> None:
        self._gate.set()


def dropped(reactor: Reactor) -> int:
    return reactor.status().databases[0].dropped


def test_drop_is_dated_before_the_canary_that_came_with_it(
    postgres: Postgres, channel: str, admin: Admin
) -> None:
    """Answers overtake notifications here.  The canary that then comes in one piece with what
    was committed long ago proves what follows it, not what it came with."""
    with Censor(postgres.port) as censor:
        reactor = Reactor(postgres.dsn_for(port=censor.port), max_backlog=1, **OFTEN)
        witness, stuck = Witness(reactor), Stuck(reactor, channel)
        with reactor:
            admin.notify(channel, "first")
            assert stuck.begun.wait(PATIENCE)
            censor.hold()
            admin.notify(channel, "dropped", "kept")
            committed = now()
            await_probes(reactor, 2)
            wait_until(lambda: PROBE_CHANNEL.encode() in censor.held, why="no canary was held")
            censor.release()
            wait_until(lambda: dropped(reactor) == 1)
            stuck.go_on()
            gap = witness.wait("gap").gap
            witness.wait_for("kept")

    assert stuck.arrived == ["first", "kept"]
    assert (gap.reason, gap.dropped) == ("overflow", 1)
    assert gap.since <= committed <= gap.until


def test_drop_is_dated_after_what_has_been_proven(
    dsn: str, connect: Connect, channel: str, admin: Admin
) -> None:
    canaries = connect()
    canaries.listen(PROBE_CHANNEL)
    reactor = Reactor(dsn, max_backlog=1, **OFTEN)
    witness, stuck = Witness(reactor), Stuck(reactor, channel)
    with reactor:
        admin.notify(channel, "first")
        assert stuck.begun.wait(PATIENCE)
        started = now()
        await_probes(reactor, 2)
        canaries.drain()
        take(canaries, 4)
        admin.notify(channel, "dropped", "kept")
        wait_until(lambda: dropped(reactor) == 1)
        stuck.go_on()
        gap = witness.wait("gap").gap

    assert started <= gap.since


def test_drops_of_several_reads_are_dated_by_the_first(
    dsn: str, connect: Connect, channel: str, admin: Admin
) -> None:
    """Proofs go on while the handler stands still, and so does what is dropped."""
    canaries = connect()
    canaries.listen(PROBE_CHANNEL)
    reactor = Reactor(dsn, max_backlog=1, **OFTEN)
    witness, stuck = Witness(reactor), Stuck(reactor, channel)
    begun: list[datetime] = []
    acknowledged: list[datetime] = []

    def commit(payload: str) -> None:
        received = reactor.status().databases[0].received
        begun.append(now())
        admin.notify(channel, payload)
        acknowledged.append(now())
        wait_until(lambda: reactor.status().databases[0].received > received)

    with reactor:
        admin.notify(channel, "first")
        assert stuck.begun.wait(PATIENCE)
        commit("dropped first")
        await_probes(reactor, 2)
        canaries.drain()
        take(canaries, 4)
        commit("dropped second")
        commit("kept")
        wait_until(lambda: dropped(reactor) == 2)
        stuck.go_on()
        gap = witness.wait("gap").gap
        witness.wait_for("kept")

    assert gap.dropped == 2
    assert gap.since <= acknowledged[0]
    assert begun[1] <= gap.until


def test_registration_of_the_canaries_that_somebody_took_away_is_nobodys_gap(
    dsn: str, channel: str, admin: Admin
) -> None:
    """No notification of a user's was missed; the next canary has to arrive again."""
    canaries = sql.Identifier(PROBE_CHANNEL)
    with psycopg.connect(dsn, autocommit=True) as connection:
        database = Database.wrap(connection)
        with Reactor(database, channels=[channel], probe_interval=0.3, probe_timeout=10) as reactor:
            witness = Witness(reactor)

            def listens() -> bool:
                rows = connection.execute("SELECT pg_listening_channels()").fetchall()
                return (PROBE_CHANNEL,) in rows

            assert listens()
            connection.execute(sql.SQL("UNLISTEN {}").format(canaries))
            wait_until(listens, why="it was not put back")
            await_probes(reactor, 3)
            admin.notify(channel, "heard")
            witness.wait_for("heard")

            assert witness.kinds(database) in ([], ["connected"])
            assert reactor.status().databases[0].gaps == 0
