"""A forked child: it must neither use nor end what belongs to its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from pgsignals import Database, NotificationManager
from tests.support.admin import Admin
from tests.support.arrivals import Connect, payloads, take
from tests.support.uses import USES, Use, each_of

ROOT = Path(__file__).parents[1]

# Python warns since 3.12 where other threads run, such as the one that limits a test's time.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def in_child(function: Callable[[], object]) -> str:
    """Run *function* in a forked child and return what it returned or raised, as text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        try:
            result = str(function())
        except BaseException as error:
            result = f"{type(error).__name__}: {error}"
        os.write(writing, result.encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        result = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with {status}"
    return result


def assert_alive(database: Database, backend: int, channel: str, admin: Admin) -> None:
    """*database* still has its session, and hears."""
    assert not database.closed
    assert database.execute("SELECT pg_backend_pid()").fetchone() == (backend,)
    admin.notify(channel, "still here")
    assert payloads(take(database, 1)) == ["still here"]


@each_of({**USES, "open": lambda database: database.open()})
def test_child_is_answered_with_forked_error(
    listener: Database, channel: str, admin: Admin, use: Use
) -> None:
    backend = listener.backend_id

    answer = in_child(lambda: use(listener))

    assert answer.startswith("ForkedError: ")
    assert "parent" in answer
    assert_alive(listener, backend, channel, admin)


def test_close_in_the_child_leaves_the_session_of_the_parent_alone(
    listener: Database, channel: str, admin: Admin
) -> None:
    backend = listener.backend_id

    def close() -> str:
        listener.close()
        listener.close()
        return "closed"

    assert in_child(close) == "closed"
    assert_alive(listener, backend, channel, admin)


def test_close_in_the_child_leaves_a_wrapped_connection_alone(
    dsn: str, channel: str, admin: Admin
) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        database = Database.wrap(connection)
        database.listen(channel)
        backend = database.backend_id

        assert in_child(database.close) == "None"
        assert_alive(database, backend, channel, admin)


def test_closed_database_answers_the_same_in_the_child(connect: Connect) -> None:
    database = connect()
    database.close()

    assert in_child(database.close) == "None"
    assert in_child(database.open).startswith("ForkedError: ")


def test_loop_that_goes_on_in_the_child_is_answered_with_forked_error(
    listener: Database, channel: str, admin: Admin
) -> None:
    backend = listener.backend_id
    admin.notify(channel, "1", "2")
    listener.execute("SELECT 1")
    waiting = listener.wait(0.1)
    assert next(waiting) == (channel, "1", admin.pid)

    assert in_child(lambda: [next(waiting), next(waiting)]).startswith("ForkedError: ")

    assert payloads(take(listener, 1)) == ["2"]
    assert_alive(listener, backend, channel, admin)


def test_manager_in_the_child_is_answered_with_forked_error_and_hears_on_in_the_parent(
    listener: Database, channel: str, admin: Admin
) -> None:
    manager = NotificationManager(listener, timeout=0.05)
    assert next(manager) is None
    admin.notify(channel, "1")

    answer = in_child(lambda: next(event for event in manager if event))

    manager.settimeout(5)
    assert next(manager) == (listener, [(channel, "1", admin.pid)])
    admin.notify(channel, "2")
    assert next(manager) == (listener, [(channel, "2", admin.pid)])
    assert answer.startswith("ForkedError: ")


def test_child_may_have_a_database_of_its_own(
    listener: Database, dsn: str, channel: str, admin: Admin
) -> None:
    backend = listener.backend_id

    def use_another() -> str:
        listener.close()
        with Database(dsn) as database:
            database.listen("x")
            database.notify(("x", "1"))
            return take(database, 1)[0].payload

    assert in_child(use_another) == "1"
    assert_alive(listener, backend, channel, admin)


@pytest.mark.parametrize(
    ("child", "options"),
    [
        ("pass", []),
        ("del database, waiting", []),
        ("database.close()", ["-W", "error"]),
        ("database.close(); waiting.close(); del database, waiting", ["-W", "error"]),
        ("database.close(); pgsignals.connect(sys.argv[1]).close()", ["-W", "error"]),
        ("database.close(); another = pgsignals.connect(sys.argv[1]); another.listen('y')", []),
    ],
)
def test_child_that_exits_leaves_the_session_of_the_parent_alone(
    dsn: str, child: str, options: list[str]
) -> None:
    """An interpreter that exits ends what it finds."""
    program = f"""
import os, sys, pgsignals
database = pgsignals.connect(sys.argv[1])
database.listen("x")
waiting = database.wait(0)
assert list(waiting) == []
waiting = database.wait(0.01)
assert next(waiting) is None
child = os.fork()
if child == 0:
    {child}
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert database.notify(("x", "alive")) == 1
print(next(n for n in waiting if n).payload)
waiting.close()
database.close()
"""
    command = [sys.executable, *options, "-c", program, dsn]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=40, check=False)

    assert run.stdout == "alive\n"
    assert run.stderr == ""
    assert run.returncode == 0
