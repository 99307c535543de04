"""How programs end: in the foreground by signals, and with a reactor left running."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pgsignals.testing import Proxy
from tests.support.admin import Admin
from tests.support.waiting import AT_ONCE, wait_until

ROOT = Path(__file__).parent.parent
PROGRAMS = Path(__file__).parent / "programs"


class Program:
    """A Python program of ours that runs, and says in JSON what it does."""

    def __init__(self, name: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", PROGRAMS / name, *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> Any:
        """The next thing that it says; None at its end."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def tell(self) -> None:
        """Let it go on."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> tuple[list[Any], str, int, float]:
        """What else it says, its last words on stderr, its exit code and how long that took."""
        began = time.monotonic()
        out, err = self._process.communicate(timeout=40)
        said = [json.loads(line) for line in out.splitlines()]
        return said, err, self._process.returncode, time.monotonic() - began

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def start(admin: Admin) -> Iterator[Callable[..., Program]]:
    """Starts programs, and leaves none behind; nor a session of theirs."""
    before = set(admin.sessions())
    programs: list[Program] = []

    def start(name: str, *arguments: str) -> Program:
        programs.append(Program(name, *arguments))
        return programs[-1]

    yield start
    for program in programs:
        with contextlib.suppress(ValueError):  # its pipes are closed: it has ended
            program.kill()
    wait_until(lambda: not set(admin.sessions()) - before)


# In the foreground


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_a_reactor_in_the_foreground(
    start: Callable[..., Program], dsn: str, channel: str, number: int
) -> None:
    program = start("reactor_in_foreground.py", dsn, channel, "quick")
    assert program.hear() == {"runs": True}
    program.signal(number)
    said, errors, code, seconds = program.end()

    assert said == [
        {"stopped": "None"},
        {"ended": True, "restored": True, "running": False},
    ]
    assert errors == ""
    assert code == 0
    assert seconds < AT_ONCE


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_stops_it_at_once(
    start: Callable[..., Program], dsn: str, channel: str, admin: Admin, first: int
) -> None:
    program = start("reactor_in_foreground.py", dsn, channel, "stuck")
    assert program.hear() == {"runs": True}
    admin.notify(channel, "1")
    assert program.hear() == {"begun": "1"}
    before = admin.sessions()
    program.signal(first)
    # The listening session is closed first, and the handler would have 100 seconds from then on.
    wait_until(lambda: len(admin.sessions()) < len(before))
    program.signal(signal.SIGTERM)
    said, errors, code, seconds = program.end()

    assert said[-1] == {"ended": True, "restored": True, "running": False}
    assert code == 0
    assert seconds < AT_ONCE
    assert "Traceback" not in errors


def test_reactor_that_stops_itself_ends_the_run(
    start: Callable[..., Program], dsn: str, channel: str, admin: Admin
) -> None:
    program = start("reactor_in_foreground.py", dsn, channel, "quick")
    assert program.hear() == {"runs": True}
    admin.notify(channel, "1")
    assert program.hear() == {"begun": "1"}
    program.signal(signal.SIGINT)

    assert program.end()[0][-1]["ended"]


# Left running


@pytest.mark.parametrize("ending", ["fall off the end", "exit", "exception", "os._exit"])
@pytest.mark.parametrize("doing", ["idle", "stuck", "busy"])
def test_interpreter_ends_promptly_and_quietly_with_a_reactor_running(
    start: Callable[..., Program], dsn: str, channel: str, doing: str, ending: str
) -> None:
    program = start("reactor_left_running.py", dsn, channel, doing, ending)
    assert program.hear()["backend"]
    assert program.hear() == {"ending": ending}
    said, errors, code, seconds = program.end()

    assert code == {"fall off the end": 0, "exit": 3, "exception": 1, "os._exit": 4}[ending]
    if ending == "exception":
        assert errors.splitlines()[-1] == "RuntimeError: on purpose"
        assert errors.count("Traceback") == 1
    else:
        assert errors == ""
    assert said == []
    assert seconds < AT_ONCE


@pytest.mark.parametrize("doing", ["in a query", "spinning", "half started"])
def test_interpreter_ends_promptly_and_quietly_whatever_a_handler_does(
    start: Callable[..., Program], dsn: str, channel: str, doing: str, admin: Admin
) -> None:
    program = start("reactor_left_running.py", dsn, channel, doing, "fall off the end")
    assert program.hear()["backend"]
    assert program.hear() == {"ending": "fall off the end"}
    said, errors, code, seconds = program.end()
    for (pid,) in admin.execute(
        "SELECT pid FROM pg_stat_activity WHERE query LIKE '%%pg_sleep(1000)' AND pid <> "
        "pg_backend_pid()"
    ):
        admin.kill(pid)  # the server notices the end of a client only after its query

    assert (said, errors, code) == ([], "", 0)
    assert seconds < AT_ONCE


@pytest.mark.parametrize("doing", ["reconnecting", "silent"])
def test_interpreter_ends_promptly_and_quietly_without_a_network(
    start: Callable[..., Program], proxied: str, proxy: Proxy, channel: str, doing: str
) -> None:
    program = start("reactor_left_running.py", proxied, channel, doing, "fall off the end")
    assert program.hear()["backend"]
    proxy.freeze()
    if doing == "reconnecting":
        proxy.cut()  # what connects from now on hears nothing
    else:
        program.tell()
    assert program.hear() == {"ending": "fall off the end"}
    _, errors, code, seconds = program.end()
    proxy.cut()

    assert code == 0
    assert "Traceback" not in errors
    assert "Exception" not in errors
    assert seconds < AT_ONCE
