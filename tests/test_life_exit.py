"""However a program ends while a reactor runs: soon, quietly, and with no session left behind."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import IO

import psycopg
import pytest

from pgsignals.embedded import Postgres
from pgsignals.testing import Proxy
from tests.support.admin import Admin
from tests.support.waiting import Background, wait_until

#: Seconds within which a program must have ended; those that hang never do.
BOUND = 20.0

PROGRAM = """
import os, signal, sys, threading
import pgsignals

# What runs the tests in the background may ignore it, and its children with it.
signal.signal(signal.SIGINT, signal.default_int_handler)
dsn, ending = sys.argv[1:]
reactor = pgsignals.Reactor(dsn, channels=["quiet"], name="pgsignals-exit")

@reactor.on_channel("hang")
def hang(db, notification):
    print("hangs", flush=True)
    threading.Event().wait()

@reactor.on_channel("traffic")
def count(db, notification):
    if notification.payload == "100":
        print("has traffic", flush=True)

def main():
    reactor.start()
    print("runs", flush=True)
    order = sys.stdin.readline()
    if ending == "sys.exit":
        sys.exit(3)
    if ending == "exception":
        raise RuntimeError("on purpose")
    if ending == "os._exit":
        os._exit(5)
    if ending == "exec":
        os.execv(sys.executable, [sys.executable, "-c", "import sys; sys.exit(6)"])
    if ending == "stop in time":
        sys.exit(7 if reactor.stop(0.1) is (order == "hang\\n") else 0)
    if ending.startswith("SIG"):
        threading.Event().wait()

main()
"""

#: How it ends, with the exit code, and the last line of what it says about that.
ENDINGS = {
    "return": (0, ""),
    "sys.exit": (3, ""),
    "exception": (1, "RuntimeError: on purpose"),
    "SIGINT": (-signal.SIGINT, "KeyboardInterrupt"),
    "SIGTERM": (-signal.SIGTERM, ""),
    "os._exit": (5, ""),
    "exec": (6, ""),
    "stop in time": (0, "handlers still running"),
}

each_ending = pytest.mark.parametrize("ending", ENDINGS)


class Program:
    """A Python program that talks to us over its pipes."""

    def __init__(self, source: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", source, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()

    def says(self, text: str) -> None:
        """Wait for a line."""
        line = Background(_pipe(self.process.stdout).readline).result(BOUND)
        if line != f"{text}\n":
            self.process.kill()
            raise AssertionError(f"{line!r} instead of {text!r}: {self.process.communicate()[1]}")

    def tell(self, text: str) -> None:
        """Send a line."""
        _pipe(self.process.stdin).write(f"{text}\n")

    def ends(self) -> tuple[int, str]:
        """The exit code, and what it wrote to stderr."""
        try:
            _, said = self.process.communicate(timeout=BOUND)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the program still runs {BOUND} s after its end") from None
        return self.process.returncode, said


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


@pytest.fixture
def app(channel: str) -> str:
    """What the sessions of the program are called."""
    return f"exit_{channel}"


def run_and_end(program: Program, ending: str, order: str = "go") -> tuple[int, str]:
    """Let the running program end, and return its exit code and its stderr."""
    program.tell(order)
    if ending.startswith("SIG"):
        program.process.send_signal(signal.Signals[ending])
    return program.ends()


def check(ending: str, code: int, said: str, *, stuck: bool = False) -> None:
    expected, last_line = ENDINGS[ending]
    assert code == expected, said
    if ending == "stop in time":
        # A warning of stop() itself, which names the handler; the end adds nothing.
        lines = said.splitlines()
        assert len(lines) == stuck, said
        assert all(last_line in line and "hang" in line for line in lines)
    elif last_line:
        assert said.splitlines()[-1] == last_line
        assert said.count("Traceback") == 1, said
        assert "/pgsignals/" not in said, "the traceback is not the user's alone"
    else:
        assert said == ""


def sessions_end(admin: Admin, app: str) -> None:
    wait_until(lambda: app not in admin.sessions().values(), why="a session was left behind")


@each_ending
def test_idle_reactor(postgres: Postgres, dsn: str, admin: Admin, app: str, ending: str) -> None:
    with Program(PROGRAM, postgres.dsn_for(application_name=app), ending) as program:
        program.says("runs")
        assert app in admin.sessions().values()
        code, said = run_and_end(program, ending)

    check(ending, code, said)
    sessions_end(admin, app)


@each_ending
def test_handler_that_never_returns(
    postgres: Postgres, dsn: str, admin: Admin, app: str, ending: str
) -> None:
    with Program(PROGRAM, postgres.dsn_for(application_name=app), ending) as program:
        program.says("runs")
        admin.notify("hang")
        program.says("hangs")
        admin.notify("hang", "waits behind it")
        code, said = run_and_end(program, ending, "hang")

    check(ending, code, said, stuck=True)
    sessions_end(admin, app)


@contextlib.contextmanager
def traffic(dsn: str) -> Iterator[None]:
    """Notifications without end."""
    going = [True]

    def run() -> None:
        with psycopg.connect(dsn, autocommit=True, application_name="tests") as connection:
            number = 0
            while going[0]:
                number += 1
                connection.execute("SELECT pg_notify('traffic', %s)", [str(number)])

    background = Background(run)
    try:
        yield
    finally:
        going[0] = False
        background.result()


@each_ending
def test_traffic(postgres: Postgres, dsn: str, admin: Admin, app: str, ending: str) -> None:
    with Program(PROGRAM, postgres.dsn_for(application_name=app), ending) as program:
        program.says("runs")
        with traffic(dsn):
            program.says("has traffic")
            code, said = run_and_end(program, ending)

    check(ending, code, said)
    sessions_end(admin, app)


@each_ending
def test_half_open_link(
    postgres: Postgres, dsn: str, admin: Admin, app: str, proxy: Proxy, ending: str
) -> None:
    proxied = postgres.dsn_for(port=proxy.port, application_name=app)
    with Program(PROGRAM, proxied, ending) as program:
        program.says("runs")
        proxy.freeze()
        code, said = run_and_end(program, ending)

    check(ending, code, said)
    proxy.thaw()
    sessions_end(admin, app)


RECONNECTS = """
import sys, pgsignals
pgsignals.Reactor(
    sys.argv[1], channels=["quiet"], backoff=(0.01, 0.05), probe_interval=None
).start()
print("runs", flush=True)
sys.stdin.readline()
"""


def test_attempt_to_reconnect_that_hangs(
    postgres: Postgres, dsn: str, admin: Admin, app: str, proxy: Proxy
) -> None:
    proxied = postgres.dsn_for(port=proxy.port, application_name=app)
    with Program(RECONNECTS, proxied) as program:
        program.says("runs")
        (session,) = [pid for pid, name in admin.sessions().items() if name == app]
        proxy.freeze("to_server")
        admin.kill(session)
        wait_until(lambda: proxy.held("to_server"), why="no attempt was made")
        program.tell("go")
        code, said = program.ends()

    assert code == 0
    assert "Traceback" not in said
    proxy.thaw()
    sessions_end(admin, app)


def test_server_that_is_gone(postgres: Postgres, proxy: Proxy) -> None:
    with Program(RECONNECTS, postgres.dsn_for(port=proxy.port)) as program:
        program.says("runs")
        proxy.refuse()
        proxy.cut()
        wait_until(lambda: proxy.links == 0)
        program.tell("go")
        code, said = program.ends()

    assert code == 0
    assert "Traceback" not in said


INTERRUPTED_STOP = """
import signal, sys, threading, time, pgsignals
signal.signal(signal.SIGINT, signal.default_int_handler)

@pgsignals.on_channel("hang")
def hang(db, notification):
    print("hangs", flush=True)
    threading.Event().wait()

def watch():
    while sys._current_frames()[threading.main_thread().ident].f_code.co_name != "wait":
        time.sleep(0.01)
    print("stops", flush=True)

with pgsignals.Reactor(sys.argv[1], name="pgsignals-exit") as reactor:
    reactor.notify("hang")
    sys.stdin.readline()
    threading.Thread(target=watch, daemon=True).start()
"""


def test_ctrl_c_in_a_stop_that_waits_for_a_handler(
    postgres: Postgres, dsn: str, admin: Admin, app: str
) -> None:
    with Program(INTERRUPTED_STOP, postgres.dsn_for(application_name=app)) as program:
        program.says("hangs")
        program.tell("go")
        program.says("stops")
        program.process.send_signal(signal.SIGINT)
        code, said = program.ends()

    assert code == -signal.SIGINT, said
    assert said.splitlines()[-1] == "KeyboardInterrupt"
    assert said.count("Traceback") == 1
    sessions_end(admin, app)


AT_EXIT = """
import atexit, sys, threading, pgsignals

heard = threading.Event()
reactor = pgsignals.Reactor(sys.argv[1])
reactor.on_channel("bye")(lambda db, notification: heard.set())

@atexit.register
def say_goodbye():
    reactor.notify("bye")
    print("heard" if heard.wait(15) else "not heard")

reactor.start()
"""


def test_atexit_function_of_the_program_may_still_use_the_reactor(
    postgres: Postgres, dsn: str, admin: Admin, app: str
) -> None:
    with Program(AT_EXIT, postgres.dsn_for(application_name=app)) as program:
        program.says("heard")
        code, said = program.ends()

    assert (code, said) == (0, "")
    sessions_end(admin, app)


FROM_HANDLER = """
import os, sys, pgsignals

@pgsignals.on_channel("end")
def end(db, notification):
    {ending}

with pgsignals.Reactor(sys.argv[1]) as reactor:
    reactor.notify("end")
    reactor.join(15)
"""


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ("os._exit(5)", 5),
        ("os.kill(os.getpid(), 15)", -15),
        ("os.kill(os.getpid(), 9)", -9),
        ("reactor.stop()", 0),
    ],
)
def test_handler_that_ends_the_program(
    postgres: Postgres, dsn: str, admin: Admin, app: str, ending: str, expected: int
) -> None:
    source = FROM_HANDLER.format(ending=ending)
    with Program(source, postgres.dsn_for(application_name=app)) as program:
        code, said = program.ends()

    assert (code, said) == (expected, "")
    sessions_end(admin, app)


MANY = """
import sys, pgsignals
for number in range(5):
    name = f"pgsignals-{number}"
    pgsignals.Reactor(sys.argv[1], sys.argv[1], channels=["quiet"], workers=3, name=name).start()
print("runs", flush=True)
sys.stdin.readline()
"""


def test_many_reactors(postgres: Postgres, dsn: str, admin: Admin, app: str) -> None:
    with Program(MANY, postgres.dsn_for(application_name=app)) as program:
        program.says("runs")
        program.tell("go")
        code, said = program.ends()

    assert (code, said) == (0, "")
    sessions_end(admin, app)
