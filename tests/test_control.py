"""Sessions beside the listening one: when they are opened, kept, renewed and closed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgsignals import ClosedError, ConnectError, Database, Reactor
from pgsignals._wire import sessions as _control
from pgsignals._wire.access import Access
from pgsignals._wire.sessions import Control, Sessions
from tests.support.admin import Admin
from tests.support.arrivals import Connect, payloads, take
from tests.support.waiting import AT_ONCE, PATIENCE, Background, is_readable, wait_until


@pytest.fixture
def access(dsn: str) -> Access:
    return Access(dsn)


@pytest.fixture
def control(access: Access) -> Iterator[Control]:
    control = Control(access, lambda: None)
    yield control
    control.close(time.monotonic() + PATIENCE)


def backend(control: Control) -> int:
    ((pid,),) = control.query("SELECT pg_catalog.pg_backend_pid()")
    return int(pid)


def test_control_session_that_has_just_been_used_is_not_closed_for_want_of_use(
    control: Control,
) -> None:
    """The reader may have found it unused a moment before somebody used it."""
    first = backend(control)
    found_unused_at = time.monotonic()
    assert backend(control) == first

    control.close_unused(found_unused_at)

    assert backend(control) == first


def test_control_session_is_closed_for_want_of_use(control: Control, admin: Admin) -> None:
    first = backend(control)

    control.close_unused(time.monotonic() + _control.KEPT + 1)

    wait_until(lambda: first not in admin.sessions())
    assert backend(control) != first


def test_reactor_closes_a_control_session_that_nobody_uses(
    dsn: str, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_control, "KEPT", 0.2)
    before = set(admin.sessions())
    with Reactor(dsn, probe_interval=None) as reactor:
        alone = len(set(admin.sessions()) - before)
        reactor.notify("x")
        wait_until(lambda: len(set(admin.sessions()) - before) == alone)
        assert reactor.notify("x") == 1


def test_control_session_is_opened_anew_after_a_loss(control: Control, access: Access) -> None:
    first = backend(control)
    access.losses += 1
    second = backend(control)

    assert second != first
    assert backend(control) == second


class Slow:
    """A ``connect=`` whose calls after the first wait for :attr:`go_on`."""

    def __init__(self, dsn: str) -> None:
        self.waits, self.go_on = threading.Event(), threading.Event()
        self._dsn = dsn
        self._calls = 0
        self.connections: list[psycopg.Connection[Any]] = []

    def __call__(self) -> psycopg.Connection[Any]:
        self._calls += 1
        if self._calls > 1:
            self.waits.set()
            self.go_on.wait(2 * PATIENCE)
        self.connections.append(psycopg.connect(self._dsn, autocommit=True))
        return self.connections[-1]


def test_control_session_that_opens_after_the_end_is_closed_and_notifies_nobody(
    dsn: str, connect: Connect, channel: str, admin: Admin
) -> None:
    witness = connect()
    witness.listen(channel)
    slow = Slow(dsn)
    reactor = Reactor(Database(connect=slow), probe_interval=None)
    reactor.start()
    notifying = Background(reactor.notify, channel)
    assert slow.waits.wait(PATIENCE)
    assert reactor.stop()
    slow.go_on.set()

    with pytest.raises(ClosedError):
        notifying.result(AT_ONCE)
    assert all(connection.closed for connection in slow.connections)
    admin.notify(channel, "mark")
    assert payloads(take(witness, 1)) == ["mark"]


# The rule that all sessions beside the listening one follow, and the workers' own


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    sessions = Sessions()
    yield sessions
    sessions.close()


def test_workers_session_is_opened_once_and_renewed_after_each_loss(
    access: Access, sessions: Sessions
) -> None:
    first = sessions.session_for(access)
    assert sessions.session_for(access) is first

    access.losses += 1
    second = sessions.session_for(access)

    assert second is not first
    assert first.connection.closed
    assert sessions.session_for(access) is second


def test_workers_session_that_has_ended_is_renewed(
    access: Access, sessions: Sessions, admin: Admin
) -> None:
    first = sessions.session_for(access)
    admin.kill(first.backend_id)
    wait_until(lambda: is_readable(first))

    assert sessions.session_for(access) is not first


def test_workers_session_in_a_transaction_is_kept_after_a_loss(
    access: Access, sessions: Sessions
) -> None:
    session = sessions.session_for(access)
    assert sessions.open_transaction(access) is None
    session.connection.execute("BEGIN")
    access.losses += 1

    assert sessions.session_for(access) is session
    assert sessions.open_transaction(access) is session
    session.connection.execute("COMMIT")
    assert sessions.session_for(access) is not session


def test_loss_while_a_session_is_opened_renews_it(dsn: str, sessions: Sessions) -> None:
    def connect() -> psycopg.Connection[Any]:
        shop.losses += 1 if not shop.losses else 0  # the first one comes too late
        return psycopg.connect(dsn, autocommit=True)

    shop = Access(connect=connect)
    first = sessions.session_for(shop)

    assert sessions.session_for(shop) is not first


@pytest.mark.parametrize("left", ["open", "closed", "broken"])
def test_transaction_that_a_handler_leaves_is_rolled_back(
    access: Access, sessions: Sessions, admin: Admin, left: str
) -> None:
    session = sessions.session_for(access)
    session.connection.execute("BEGIN")
    if left == "closed":
        session.connection.close()
    elif left == "broken":
        admin.kill(session.backend_id)
        wait_until(lambda: is_readable(session))
    warnings: list[str] = []

    sessions.end_transactions(lambda: warnings.append("left"))

    assert warnings == ([] if left == "closed" else ["left"])
    assert sessions.open_transaction(access) is None
    again = sessions.session_for(access)
    assert (again is session) == (left == "open")
    assert not again.in_transaction


def test_sessions_that_cannot_be_opened_are_tried_again(dsn: str, sessions: Sessions) -> None:
    attempts: list[int] = []

    def connect() -> psycopg.Connection[Any]:
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("not yet")
        return psycopg.connect(dsn, autocommit=True)

    access = Access(connect=connect)
    with pytest.raises(ConnectError):
        sessions.session_for(access)
    sessions.end_transactions(lambda: pytest.fail("there is none"))

    assert not sessions.session_for(access).ended
