"""Between the open session and ``connected``: nothing is promised before everything holds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg

from pgsignals import Database, Reactor
from pgsignals.embedded import Postgres
from pgsignals.testing import Proxy
from tests.programs.fault_rig import Censor, Witness, state_of
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
    postgres: Postgres, new_channel: Callable[[], str]
) -> None:
    """A channel that is asked for while the first canary is on its way has to hold, too."""
    first, second = new_channel(), new_channel()
    elsewhere = postgres.dsn_for("template1")  # whose canaries do not count for the other
    with Censor(postgres.port) as censor, psycopg.connect(elsewhere, autocommit=True) as beside:
        reactor = Reactor(
            postgres.dsn_for(port=censor.port),
            elsewhere,
            channels=[first],
            probe_interval=60,
            probe_timeout=2 * LONG,
        )
        waiting, other = reactor.databases
        witness = Witness(reactor)
        censor.hold()
        starting = Background(reactor.start)
        wait_until(lambda: censor.held, why="no canary came")
        wait_until(lambda: state_of(reactor, 1) == "listening")
        censor.lets_listen.clear()
        listening = Background(reactor.listen, second)
        assert censor.listen_waits.wait(PATIENCE)
        censor.release()
        for mark in ("1", "2"):  # what the reader has read of the other one came later
            beside.execute("SELECT pg_notify(%s, %s)", (first, mark))
            witness.wait("any_channel", int(mark), other)
        early = state_of(reactor), witness.kinds(waiting), starting.running
        censor.lets_listen.set()
        starting.result(PATIENCE)
        listening.result(PATIENCE)
        listened = reactor.status().databases[0].channels
        reactor.stop()

    assert early == ("connecting", [], True)
    assert set(listened) == {first, second}


def test_canary_that_comes_before_the_answer_that_was_to_show_it_missing_is_in_time(
    postgres: Postgres, dsn: str, proxy: Proxy, channel: str
) -> None:
    """It comes late; the round trip that asks after it fetches it, and that is no deafness."""
    with Censor(proxy.port) as censor:
        late = Late(postgres.dsn_for(port=censor.port), dsn)
        late.may_connect.set()
        reactor = Reactor(
            Database(connect=late), channels=[channel], probe_interval=60, probe_timeout=6
        )
        witness = Witness(reactor)
        censor.hold()
        starting = Background(reactor.start)
        wait_until(lambda: censor.held, why="no canary came")
        proxy.freeze("to_server")
        wait_until(lambda: proxy.held("to_server"), why="nobody asked after it")
        censor.release()
        proxy.thaw("to_server")
        starting.result(PATIENCE)
        told = witness.kinds(reactor.databases[0])
        reactor.stop()

    assert told in ([], ["connected"])
    assert not witness.all("lost")
