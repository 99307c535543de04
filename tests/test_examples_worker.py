"""examples/worker: several processes, one of which is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from examples.worker.worker import SCHEMA, Worker
from pgsignals import Database
from tests.support.admin import Admin
from tests.support.waiting import LONG, PATIENCE, Background, wait_until

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "examples" / "worker" / "worker.py"

# Who did what; a job called "stuck" is stuck until somebody writes so.
TABLES = "CREATE TABLE effects (payload text, pid int); CREATE TABLE released ()"
SCRIPT = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from examples.worker.worker import Worker

def perform(db, payload):
    db.execute("INSERT INTO effects VALUES (%s, %s)", [payload, os.getpid()])
    if payload == "stuck":
        while not db.execute("SELECT FROM released").fetchall():
            time.sleep(0.01)

Worker(os.environ["DATABASE_URL"], perform, poll=float(sys.argv[1])).run()
"""

Start: TypeAlias = "Callable[[float], subprocess.Popen[bytes]]"


@pytest.fixture(autouse=True)
def tables(admin: Admin) -> Iterator[None]:
    admin.execute(SCHEMA.read_text())
    admin.execute(TABLES)
    yield
    admin.execute("DROP TABLE jobs, effects, released; DROP FUNCTION jobs_tell")


@pytest.fixture
def start(dsn: str) -> Iterator[Start]:
    """Starts a worker as a process, with this poll."""
    processes = []

    def start(poll: float) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(poll)],
            env={**os.environ, "DATABASE_URL": dsn},
            stdin=subprocess.DEVNULL,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait(PATIENCE)


def add(admin: Admin, payload: str) -> None:
    admin.execute("INSERT INTO jobs (payload) VALUES (%s)", payload)


def states(admin: Admin) -> dict[str, int]:
    return dict(admin.execute("SELECT state, count(*) FROM jobs GROUP BY state"))


def taken(admin: Admin) -> bool:
    """Whether every job that is ready is in somebody's hands."""
    return not admin.execute("SELECT id FROM jobs WHERE state = 'ready' FOR UPDATE SKIP LOCKED")


def test_each_job_is_done_once_by_one_of_several_processes(admin: Admin, start: Start) -> None:
    add(admin, "stuck")
    workers = [start(LONG) for _ in range(3)]
    wait_until(lambda: taken(admin))  # so that one of them cannot do everything

    for batch in range(10):
        admin.execute(
            "INSERT INTO jobs (payload) SELECT %s || '.' || i FROM generate_series(1, 30) AS i",
            str(batch),
        )
    wait_until(lambda: states(admin) == {"done": 300, "ready": 1})
    admin.execute("INSERT INTO released DEFAULT VALUES")
    wait_until(lambda: states(admin) == {"done": 301})

    effects = admin.execute("SELECT payload, pid FROM effects")
    assert len(effects) == len({payload for payload, _ in effects}) == 301
    assert 1 < len({pid for _, pid in effects}) <= len(workers)


def test_killed_worker_gives_its_job_back(admin: Admin, start: Start) -> None:
    victim = start(LONG)
    add(admin, "stuck")
    wait_until(lambda: taken(admin))
    heir = start(0.1)
    add(admin, "another")
    wait_until(lambda: states(admin) == {"done": 1, "ready": 1})  # the heir looks, and finds less

    victim.kill()
    victim.wait(PATIENCE)
    admin.execute("INSERT INTO released DEFAULT VALUES")
    wait_until(lambda: states(admin) == {"done": 2})

    effects = dict(admin.execute("SELECT payload, pid FROM effects"))
    assert effects == {"stuck": heir.pid, "another": heir.pid}


# -- in this process -------------------------------------------------------------------------------


class Running:
    """A worker in a thread, with a poll that no test waits for."""

    def __init__(self, dsn: str, poll: float = LONG) -> None:
        self.done: list[str] = []
        self.lost = False
        self.worker = Worker(dsn, self._perform, poll=poll)
        self._thread = Background(self.worker.run)

    def _perform(self, db: Database, payload: str) -> None:
        db.execute("INSERT INTO effects VALUES (%s, 0)", [payload])
        if payload == "bad":
            raise ValueError("on purpose")
        if payload == "unlucky" and not self.lost:
            self.lost = True
            db.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        self.done.append(payload)

    def stop(self) -> None:
        self.worker.stop()
        self._thread.result()


@pytest.fixture
def running(dsn: str) -> Iterator[Running]:
    running = Running(dsn)
    yield running
    running.stop()


def test_what_is_there_at_the_start_is_done(admin: Admin, dsn: str) -> None:
    add(admin, "early")
    running = Running(dsn)
    wait_until(lambda: running.done == ["early"])
    running.stop()


def test_failed_job_is_noted_and_tried_again_on_demand(
    admin: Admin, running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    add(admin, "bad")
    add(admin, "good")
    wait_until(lambda: states(admin) == {"failed": 1, "done": 1})
    assert admin.execute("SELECT error FROM jobs WHERE state = 'failed'") == [
        ("ValueError('on purpose')",)
    ]
    assert admin.execute("SELECT payload FROM effects") == [("good",)]

    admin.execute("UPDATE jobs SET payload = 'better', state = 'ready' WHERE state = 'failed'")
    wait_until(lambda: states(admin) == {"done": 2})


def test_gap_wakes_it(admin: Admin, running: Running) -> None:
    add(admin, "first")
    wait_until(lambda: running.done == ["first"])
    admin.execute("SET session_replication_role = replica")  # no trigger fires
    add(admin, "untold")
    admin.execute("RESET session_replication_role")

    (database,) = running.worker.reactor.databases
    admin.kill(database.backend_id)
    wait_until(lambda: running.done == ["first", "untold"])


def test_poll_finds_what_was_told_to_nobody(admin: Admin, dsn: str) -> None:
    running = Running(dsn, poll=0.05)
    add(admin, "first")
    wait_until(lambda: running.done == ["first"])
    admin.execute("SET session_replication_role = replica")
    add(admin, "untold")
    admin.execute("RESET session_replication_role")
    wait_until(lambda: running.done == ["first", "untold"])
    running.stop()


def test_lost_session_of_the_jobs_is_opened_again(
    admin: Admin, running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    add(admin, "first")
    wait_until(lambda: running.done == ["first"])
    for pid, name in admin.sessions().items():
        if name == "pgsignals":
            admin.kill(pid)
    add(admin, "second")
    wait_until(lambda: running.done[-1:] == ["second"])
    wait_until(lambda: states(admin) == {"done": 2})


def test_job_whose_session_is_lost_has_not_failed_and_is_done_again(
    admin: Admin, running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    add(admin, "unlucky")
    wait_until(lambda: states(admin) == {"done": 1})

    assert running.lost
    assert admin.execute("SELECT payload FROM effects") == [("unlucky",)]
    assert not [one for one in caplog.records if one.levelname == "ERROR"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_program_ends_after_a_signal(admin: Admin, dsn: str, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, str(PROGRAM)],
        env={**os.environ, "DATABASE_URL": dsn, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        add(admin, "0")
        wait_until(lambda: states(admin) == {"done": 1})
        process.send_signal(number)
        printed, complained = process.communicate(timeout=PATIENCE)

    assert process.returncode == 0, complained
    assert printed == "sleeping for 0 s\n"
