"""Between the open session and ``connected``: nothing is promised before everything holds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg

from pgsignals import Database, Reactor
from pgsignals.embedded import Postgres
from tests.programs.fault_rig import Censor, Witness, state_of
from tests.support.admin import Admin
from tests.support.waiting import LONG, PATIENCE, Background, wait_until


class Late:
    """A ``connect=`` whose first connection, which listens, leads to *first*; all others to
    *then*, and not before :attr:`may_connect` is set."""

    def __init__(self, first: str, then: str) -> None:
        self.may_connect, self.waits = threading.Event(), threading.Event()
        self._first: list[str] = [first]
        self._then = then

    def __call__(self) -> psycopg.Connection[Any]:
        if self._first:
            return psycopg.connect(self._first.pop(), autocommit=True)
        self.waits.set()
        self.may_connect.wait(2 * PATIENCE)
        return psycopg.connect(self._then, autocommit=True)


def test_canary_that_arrives_during_a_listen_does_not_end_the_setup(
    postgres: Postgres, dsn: str, new_channel: Callable[[], str], admin: Admin
) -> None:
    """A channel that is asked for while the first canary is on its way has to hold, too."""
    first, second = new_channel(), new_channel()
    with Censor(postgres.port) as censor:
        late = Late(postgres.dsn_for(port=censor.port), dsn)
        waiting, other = Database(connect=late), Database(dsn)
        reactor = Reactor(waiting, other, channels=[first], probe_interval=60, probe_timeout=LONG)
        witness = Witness(reactor)
        starting = Background(reactor.start)
        assert late.waits.wait(PATIENCE)  # the first canary
        censor.lets_listen.clear()
        listening = Background(reactor.listen, second)
        assert censor.listen_waits.wait(PATIENCE)
        passed = censor.notifications
        late.may_connect.set()
        wait_until(lambda: censor.notifications > passed, why="no canary came")
        for mark in ("1", "2"):  # what the reader has read of the other one came later
            admin.notify(first, mark)
            witness.wait("any_channel", int(mark), other)
        early = state_of(reactor), witness.kinds(waiting), starting.running
        censor.lets_listen.set()
        starting.result(PATIENCE)
        listening.result(PATIENCE)
        listened = reactor.status().databases[0].channels
        reactor.stop()

    assert early == ("connecting", [], True)
    assert set(listened) == {first, second}
