"""Deadlines are the server's: a reader that could not look for a while blames nobody."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgsignals import Database, Reactor
from pgsignals._engine import life as _life
from pgsignals.testing import Proxy
from tests.programs.fault_rig import QUICK, Witness, session_of
from tests.support.admin import Admin, stopped
from tests.support.waiting import AT_ONCE, LONG, PATIENCE, Background, wait_until

ROOT = Path(__file__).parents[1]
DEADLINE = 3.0


class Ways:
    """A ``connect=``: the first connection, which listens, over *first*, all others over *then*."""

    def __init__(self, first: str, then: str) -> None:
        self._dsns = [then, first]

    def __call__(self) -> psycopg.Connection[Any]:
        dsn = self._dsns.pop() if len(self._dsns) > 1 else self._dsns[0]
        return psycopg.connect(dsn, autocommit=True)


def test_answer_that_came_in_time_counts_however_late_the_reader_looks(
    dsn: str, proxied: str, proxy: Proxy, channel: str, admin: Admin
) -> None:
    """Under "block" the reader waits for a handler, over the deadline of another database."""
    flooded, probed = Database(dsn), Database(connect=Ways(proxied, dsn))
    begun, gate = threading.Event(), threading.Event()
    reactor = Reactor(
        flooded,
        probed,
        overflow="block",
        max_backlog=1,
        probe_interval=0.2,
        probe_timeout=DEADLINE,
    )
    witness = Witness(reactor)

    @reactor.on_channel(channel, sender=flooded)
    def handle(*_: object, **__: object) -> None:
        begun.set()
        gate.wait(2 * PATIENCE)

    with reactor:
        admin.notify(channel, "1")
        assert begun.wait(PATIENCE)
        proxy.freeze("to_server")
        wait_until(lambda: proxy.held("to_server"), why="no probe was sent")
        late = time.monotonic() + DEADLINE
        admin.notify(channel, "2", "3")  # one waits, the other finds no space
        wait_until(lambda: reactor.status().databases[0].received == 3)
        passed = proxy.forwarded("to_client")
        proxy.thaw("to_server")
        wait_until(lambda: proxy.forwarded("to_client") > passed, why="no answer came")
        wait_until(lambda: time.monotonic() > late)
        gate.set()
        reactor.listen(f"{channel} more", database=probed)
        admin.notify(f"{channel} more", "4")
        witness.wait_for("4")

        assert witness.kinds(probed) == witness.kinds(flooded) == ["connected"]


def test_listen_does_not_wait_for_a_database_that_is_lost_meanwhile(
    proxied: str, proxy: Proxy, new_channel: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_life, "ACKNOWLEDGED_WITHIN", 2 * LONG)
    with Reactor(proxied, probe_interval=None, backoff=(LONG, LONG)) as reactor:
        reactor.listen(new_channel())
        proxy.freeze("to_client")
        listening = Background(reactor.listen, new_channel())
        wait_until(lambda: proxy.held("to_client"))
        proxy.refuse()
        proxy.cut()
        listening.result(AT_ONCE)

        assert reactor.status().databases[0].state == "lost"


def test_answer_that_came_while_the_whole_program_stood_still_is_in_time(
    proxied: str, proxy: Proxy, admin: Admin
) -> None:
    """A suspended machine, a frozen container: a wait for sockets that is interrupted so returns
    without a look at them."""
    command = [sys.executable, "-m", "tests.programs.fault_stands_still", proxied]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as program:
        assert program.stdout is not None
        backend = int(program.stdout.readline())
        proxy.freeze("to_client")
        ((moment,),) = admin.execute("SELECT clock_timestamp()")
        wait_until(lambda: has_answered(admin, backend, moment), why="no probe was answered")
        late = time.monotonic() + 2.5
        with stopped(program.pid):
            proxy.thaw()
            wait_until(lambda: time.monotonic() > late)
        # What is committed before a session is given up, and after one is opened, arrives.
        told = ""
        while told not in ("still here", "lost: silent"):
            admin.notify("elsewhere", "still here")
            told = program.stdout.readline().strip()
        program.communicate()

    assert told == "still here"


def has_answered(admin: Admin, backend: int, moment: object) -> bool:
    """Whether a backend has begun and answered a statement since *moment*."""
    rows = admin.execute(
        "SELECT state = 'idle' AND query_start > %s FROM pg_stat_activity WHERE pid = %s",
        moment,
        backend,
    )
    return rows == [(True,)]


def test_second_silence_is_told_as_the_first_one_was(
    proxied: str, proxy: Proxy, admin: Admin
) -> None:
    with Reactor(proxied, **QUICK) as reactor:
        witness = Witness(reactor)
        for number in range(1, 3):
            proxy.freeze()
            lost = witness.wait("lost", number)
            assert lost.told["reason"] == "silent"
            proxy.thaw()
            witness.wait("gap", number)
        admin.kill(session_of(reactor))
        assert witness.wait("lost", 3).told["reason"] == "ended"
        witness.wait("gap", 3)
