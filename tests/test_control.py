"""The connection beside the listening one: when it is opened, kept, renewed and closed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgsignals import ClosedError, Database, Reactor
from pgsignals._wire import sessions as _control
from pgsignals._wire.access import Access
from pgsignals._wire.sessions import Control
from tests.support.admin import Admin
from tests.support.arrivals import Connect, payloads, take
from tests.support.waiting import AT_ONCE, PATIENCE, Background, wait_until


@pytest.fixture
def access(dsn: str) -> Access:
    return Access(dsn)


@pytest.fixture
def control(access: Access) -> Iterator[Control]:
    control = Control(access, lambda: None, 5.0)
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


def test_control_session_that_was_killed_while_it_was_not_in_use_is_opened_anew(
    control: Control, admin: Admin
) -> None:
    first = backend(control)
    admin.execute("SELECT pg_catalog.pg_terminate_backend(%s)", first)
    wait_until(lambda: first not in admin.sessions())

    assert backend(control) != first


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


def test_nothing_is_opened_for_what_is_still_to_be_sent_after_the_end(dsn: str) -> None:
    """A finalizer may have left thousands of notifications, each of which would connect."""
    opened: list[Any] = []

    def connect() -> Any:
        opened.append(psycopg.connect(dsn, autocommit=True))
        return opened[-1]

    control = Control(Access(connect=connect), lambda: None, 5.0)
    control.notify([("a", "in time")])
    for number in range(3):
        control.post([("a", str(number))])
    control.begin_close()
    control.close(time.monotonic() + PATIENCE)
    control.send_posted()

    with pytest.raises(ClosedError, match="has stopped"):
        control.notify([("a", "too late")])
    assert len(opened) == 1
