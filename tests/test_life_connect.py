"""What a user's ``connect=`` raises may hold a secret: it is named, and not quoted."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgsignals import ConnectError, Database, Notification, Reactor
from tests.support.admin import Admin
from tests.support.waiting import AT_ONCE, Background, wait_until

SECRET = "hvs.CANARY"
URL = f"https://vault/v1/creds?token={SECRET}"


def chained() -> Any:
    try:
        raise ValueError(URL)
    except ValueError as error:
        raise psycopg.OperationalError("the vault refused") from error


def raising(error: Exception) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


FAILURES: dict[str, Callable[[], Any]] = {
    "OSError": raising(OSError(f"GET {URL} failed")),
    "OSError with a number": raising(OSError(111, f"GET {URL} failed", URL)),
    "OSError with a number nobody knows": raising(OSError(99999, URL)),
    "TimeoutError": raising(TimeoutError(URL)),
    "gaierror": raising(socket.gaierror(-2, URL)),
    "OperationalError": raising(psycopg.OperationalError(f"no password from {URL}")),
    "OperationalError with a bare secret": raising(psycopg.OperationalError(f"not {SECRET}")),
    "ProgrammingError": raising(psycopg.ProgrammingError(f"not {SECRET}")),
    "InterfaceError": raising(psycopg.InterfaceError(f"not {SECRET}")),
    "ConnectError": raising(ConnectError(f"not {SECRET}")),
    "ValueError": raising(ValueError(SECRET)),
    "chained": chained,
    "psycopg: an @ in the password": lambda: psycopg.connect(
        f"postgresql://u:pa@{SECRET}@no-such-host.invalid/x"
    ),
    "psycopg: a port that is a password": lambda: psycopg.connect(
        f"postgresql://u:{SECRET}/x@127.0.0.1/db"
    ),
    "psycopg: a keyword": lambda: psycopg.connect(f"password=two {SECRET}"),
}

each_failure = pytest.mark.parametrize("fail", FAILURES.values(), ids=FAILURES.keys())


class Turns:
    """A ``connect=`` that works until it is told to fail."""

    def __init__(self, dsn: str, fail: Callable[[], Any]) -> None:
        self._dsn, self._fail = dsn, fail
        self.failing = False

    def __call__(self) -> Any:
        return self._fail() if self.failing else psycopg.connect(self._dsn, autocommit=True)


def spoken(error: BaseException | None) -> str:
    """What a traceback of *error* would show of it and of those chained to it."""
    texts = []
    while error is not None:
        texts.append(f"{type(error).__name__}: {error} {error.args}")
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


@each_failure
def test_attempt_to_reconnect(
    dsn: str, admin: Admin, caplog: pytest.LogCaptureFixture, fail: Callable[[], Any]
) -> None:
    caplog.set_level(logging.DEBUG, "pgsignals")
    connect = Turns(dsn, fail)
    with Reactor(Database(connect=connect), probe_interval=None, backoff=(0.01, 0.02)) as reactor:
        connect.failing = True
        admin.kill(reactor.status().databases[0].backend_id or 0)
        wait_until(lambda: caplog.text.count("connect") > 2)
        assert SECRET not in str(reactor.status())
    assert SECRET not in caplog.text


@each_failure
def test_control_connection(
    dsn: str, channel: str, caplog: pytest.LogCaptureFixture, fail: Callable[[], Any]
) -> None:
    """Of notify(), and of canaries."""
    caplog.set_level(logging.DEBUG, "pgsignals")
    connect = Turns(dsn, fail)
    settings: dict[str, Any] = {"probe_interval": 0.2, "probe_timeout": 5.0}
    with Reactor(Database(connect=connect), **settings) as reactor:
        connect.failing = True
        assert reactor._engine.life is not None
        reactor.databases[0]._access.losses += 1  # so that it needs another connection
        with pytest.raises(ConnectError) as caught:
            reactor.notify(channel)
        assert SECRET not in spoken(caught.value)
        wait_until(lambda: "no canary" in (reactor.status().databases[0].last_error or ""))
        assert SECRET not in str(reactor.status())
    assert SECRET not in caplog.text


@each_failure
def test_workers_session(
    dsn: str, channel: str, caplog: pytest.LogCaptureFixture, fail: Callable[[], Any]
) -> None:
    """A handler that fails is logged with its traceback, and what is chained to it."""
    caplog.set_level(logging.DEBUG, "pgsignals")
    connect = Turns(dsn, fail)
    failed: list[BaseException] = []
    with Reactor(Database(connect=connect), probe_interval=None) as reactor:

        @reactor.on_channel(channel)
        def use(db: Database, notification: Notification) -> None:
            connect.failing = True
            db.execute("SELECT 1")

        @reactor.handler_failed.connect
        def note(_: Database, *, error: BaseException, **__: object) -> None:
            failed.append(error)

        reactor.notify(channel)
        wait_until(lambda: failed)
    assert isinstance(failed[0], ConnectError)
    assert SECRET not in spoken(failed[0])
    assert SECRET not in caplog.text


def test_reason_that_is_the_systems_or_the_servers_is_told(dsn: str, admin: Admin) -> None:
    def refused() -> Any:
        return psycopg.connect(f"{dsn} password=wrong", autocommit=True)

    told = {}
    for name, fail in {
        "OSError": raising(OSError(111, "anything")),
        "gaierror": raising(socket.gaierror(socket.EAI_NONAME, "anything")),
        "server": refused,
    }.items():
        with pytest.raises(ConnectError) as caught:
            Reactor(Database(connect=fail)).start()
        told[name] = str(caught.value)
    name = "raising.<locals>.fail"  # of the database is that of its connect=
    assert told["OSError"] == f"{name}: connect failed: ConnectionRefusedError: Connection refused"
    assert told["gaierror"] == f"{name}: connect failed: gaierror: Name or service not known"
    assert "password authentication failed" in told["server"]


def exiting() -> Any:
    """As a program does that misses a setting."""
    sys.exit(f"no {SECRET}")


def test_connect_that_exits_fails_the_start_at_once() -> None:
    start = Background(Reactor(Database(connect=exiting)).start)

    with pytest.raises(ConnectError, match="connect= raised SystemExit"):
        start.result(AT_ONCE)


def test_connect_that_exits_is_a_canary_that_cannot_be_sent(dsn: str) -> None:
    first = [psycopg.connect(dsn, autocommit=True)]
    reactor = Reactor(Database(connect=lambda: first.pop() if first else exiting()))
    try:
        Background(reactor.start).result(AT_ONCE)
        error = reactor.status().databases[0].last_error

        assert error == "no canary could be sent: connect= raised SystemExit"
    finally:
        reactor.stop()
