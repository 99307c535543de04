"""A process that forks while a reactor runs: its stream goes on, and its children are told."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgsignals.embedded import Postgres
from tests.support.admin import Admin
from tests.support.waiting import PATIENCE, Background, wait_until

#: A parent with a reactor under load.  "FORK" makes children, and must leave an empty list of
#: what went wrong with them.
PARENT = """
import gc, json, logging, multiprocessing, os, signal, sys, threading, time, warnings
import pgsignals
from pgsignals import Database, ForkedError, Reactor

warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
dsn = sys.argv[1]
arrived, gaps, losses, wrong = [], [], [], []
reactor = Reactor(dsn, name="pgsignals-fork", workers=2)
reactor.gap.connect(lambda _, gap: gaps.append(str(gap)), weak=False)
reactor.lost.connect(lambda _, reason, error: losses.append(f"{reason} {error}"), weak=False)

@reactor.on_channel("serial")
def note(db, notification):
    arrived.append(int(notification.payload))

@reactor.on_channel("work")
def work(db, notification):
    db.execute("SELECT 1")  # so that there is a session of the worker's own
    work.done = True

def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.005)

def fork(child):
    "Fork, run *child* against a clock, and note what became of it."
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        child()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if status:
        wrong.append(os.waitstatus_to_exitcode(status))

reactor.start()
reactor.notify("work")
wait_for(lambda: getattr(work, "done", False))
listener = reactor.status().databases[0].backend_id
print("runs", flush=True)
wait_for(lambda: len(arrived) > 50)
FORK
print("forked", flush=True)
last = int(sys.stdin.readline())
wait_for(lambda: arrived and arrived[-1] >= last)
assert reactor.notify("work") == 1
same = reactor.status().databases[0].backend_id == listener
print(json.dumps([arrived, gaps, losses, wrong, same]), flush=True)
assert reactor.stop()
"""


class Load:
    """Sends serial numbers, some 500 a second, until it is closed."""

    def __init__(self, dsn: str, channel: str = "serial") -> None:
        self._stopping = False
        self._background = Background(self._run, dsn, channel)

    def _run(self, dsn: str, channel: str) -> int:
        number = 0
        with psycopg.connect(dsn, autocommit=True, application_name="tests") as connection:
            while not self._stopping:
                number += 1
                connection.execute("SELECT pg_notify(%s, %s)", [channel, str(number)])
                time.sleep(0.002)  # the rate
        return number

    def stop(self) -> int:
        """The last number."""
        self._stopping = True
        return self._background.result()


def parent(postgres: Postgres, admin: Admin, fork: str, name: str, *, expect: str = "") -> None:
    """Run a parent that executes *fork*, and compare what it has received.

    :param expect: what is logged.
    """
    logged = len(postgres.log)
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            PARENT.replace("FORK", fork),
            postgres.dsn_for(application_name=name),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n", process.communicate()[1]
        load = Load(postgres.dsn)
        try:
            answer = Background(process.stdout.readline).result(40)
        finally:
            last = load.stop()
        assert answer == "forked\n", process.communicate()[1]
        output, said = process.communicate(f"{last}\n", timeout=40)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 0, said
    assert all(expect in line for line in said.splitlines()) if expect else said == "", said
    arrived, gaps, losses, wrong, same = json.loads(output)
    assert wrong == [], "children that did not end well"
    assert (gaps, losses, same) == ([], [], True)
    assert arrived == list(range(1, last + 1))
    wait_until(lambda: name not in admin.sessions().values(), why="a session was left behind")
    complaints = [
        line
        for line in postgres.log[logged:].splitlines()
        if "ERROR" in line or "FATAL" in line or "unexpected EOF" in line or "SSL" in line
    ]
    assert complaints == []


EVERY_CALL = """
def child():
    database = reactor.databases[0]
    answers = {
        "start": lambda: reactor.start(),
        "enter": lambda: reactor.__enter__(),
        "run": lambda: reactor.run(),
        "join": lambda: reactor.join(1),
        "running": lambda: reactor.running,
        "status": lambda: reactor.status(),
        "notify": lambda: reactor.notify(serial="0"),
        "notify nothing": lambda: reactor.notify(),
        "listen": lambda: reactor.listen("x"),
        "unlisten": lambda: reactor.unlisten("x"),
        "channel": lambda: reactor.channel("x"),
        "on_channel": lambda: reactor.on_channel("x"),
        "Database.open": lambda: database.open(),
        "Database.listen": lambda: database.listen("x"),
        "Database.notify": lambda: database.notify(serial="0"),
        "Database.execute": lambda: database.execute("SELECT 1"),
        "Database.connection": lambda: database.connection,
        "Database.listening_channels": lambda: database.listening_channels(),
        "Database.wait": lambda: database.wait(),
        "Database.drain": lambda: database.drain(),
        "Database.backend_id": lambda: database.backend_id,
    }
    for number, (name, call) in enumerate(answers.items(), 1):
        try:
            call()
        except ForkedError as error:
            if "parent" in str(error):
                continue
        except BaseException:
            pass
        os._exit(number)
    repr(reactor), repr(database), reactor.databases
    os._exit(0)

fork(child)
"""

STOP = """
def child():
    assert reactor.stop() and reactor.stop(1)
    reactor.databases[0].close()
    %s

for _ in range(5):
    fork(child)
"""

OWN = """
def child():
    %s
    heard = []
    with Reactor(dsn, channels=["mine"], name="pgsignals-child") as own:
        own.on_channel("mine")(lambda db, notification: heard.append(notification.payload))
        assert own.notify(mine="1") == 1
        assert own.status().databases[0].backend_id != listener
        wait_for(lambda: heard == ["1"])
    sys.exit(0)

for _ in range(3):
    fork(child)
"""

MULTIPROCESSING = """
def child(queue):
    try:
        reactor.running
    except ForkedError:
        queue.put("ForkedError")
    with pgsignals.connect(dsn) as own:
        own.notify(other="from the child")
        queue.put("notified")

context = multiprocessing.get_context("fork")
queue = context.SimpleQueue()
for _ in range(3):
    process = context.Process(target=child, args=(queue,))
    process.start()
    if [queue.get(), queue.get()] != ["ForkedError", "notified"]:
        wrong.append("answers")
    process.join(20)
    if process.exitcode:
        wrong.append(process.exitcode)
with context.Pool(2) as pool:
    if pool.map(len, ["a", "bc"]) != [1, 2]:
        wrong.append("pool")
    pool.close()
    pool.join()
"""

#: As a C program that embeds Python forks, such as uWSGI.  PyDLL keeps the GIL.
WITHOUT_HOOKS = """
import ctypes

def fork_from_c():
    "While no thread demands the GIL: the child would wait for it to take it."
    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)
    try:
        time.sleep(0.01)
        return ctypes.PyDLL(None).fork()
    finally:
        sys.setswitchinterval(interval)

os.fork = fork_from_c
"""

#: The sockets of the listener, the control connection, a worker, a database of its own that was
#: open before, one whose psycopg connection was handed out, and one of `connect=`.
CLOSES = """
import psycopg, socket, stat

def files():
    "The sockets and selectors that are open, save those of this harness."
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            status = os.fstat(int(number))
            name = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if stat.S_ISSOCK(status.st_mode) or "eventpoll" in name:
            found.add((int(number), status.st_ino))
    return found

before = files()
fresh = Database(connect=lambda: psycopg.connect(dsn, autocommit=True))
given, opened = Database(dsn).open(), Database(dsn).open()
assert given.connection
other = Reactor(fresh, given, opened, Database(dsn), workers=3, name="pgsignals-other")
gate = threading.Barrier(3)

@other.on_channel("a", "b", "c")
def use(db, notification):
    db.execute("SELECT 1")
    gate.wait(20)
    done.append(1)

done = []
other.start()
other.notify("a", "b", "c", database=given)  # all four are the same, and hear it
wait_for(lambda: len(done) == 12)
assert len(files() - before) > 12

def child():
    assert other.stop()
    os._exit(len(files() - before))

fork(child)
other.stop()
given.close(); opened.close()
"""

CHILDREN = {
    "sys.exit": "for _ in range(5): fork(lambda: sys.exit(0))",
    "os._exit": "for _ in range(5): fork(lambda: os._exit(0))",
    "stop, then os._exit": STOP % "os._exit(0)",
    "stop, then sys.exit": STOP % "sys.exit(0)",
    "garbage collection": """
def child():
    global reactor, note, work
    databases = reactor.databases
    reactor.stop()
    del reactor, note, work, databases
    gc.collect()
    sys.exit(0)
fork(child)
""",
    "garbage collection without stop": """
def child():
    global reactor, note, work
    del reactor, note, work
    gc.collect()
    sys.exit(0)
fork(child)
""",
    "every call": EVERY_CALL,
    "a reactor of its own": OWN % "",
    "a reactor of its own after stop": OWN % "reactor.stop()",
    "grandchild": """
def child():
    fork(lambda: sys.exit(0))
    fork(lambda: (reactor.stop(), sys.exit(0)))
    os._exit(len(wrong))
fork(child)
""",
    "exec": """
import subprocess
for _ in range(3):
    if subprocess.run([sys.executable, "-c", ""], preexec_fn=lambda: None).returncode:
        wrong.append("exec")
""",
    "multiprocessing": MULTIPROCESSING,
    "every call, without Python's hooks": WITHOUT_HOOKS + EVERY_CALL,
    "stop, without Python's hooks": WITHOUT_HOOKS + STOP % "os._exit(0)",
    "stop closes every copy": CLOSES,
    "stop closes every copy, without Python's hooks": WITHOUT_HOOKS + CLOSES,
}


@pytest.mark.parametrize("fork", CHILDREN.values(), ids=CHILDREN.keys())
def test_stream_of_the_parent_goes_on(
    postgres: Postgres, dsn: str, admin: Admin, channel: str, fork: str
) -> None:
    parent(postgres, admin, fork, f"fork_{channel}")


HUNDREDS = """
stopping = False

def churn():
    "Takes the library's locks, and logging's, all the time."
    while not stopping:
        for name in ("a", "b", "c"):
            receiver = lambda *_, **__: None
            pgsignals.channel(name).connect(receiver)
            reactor.connected.connect(receiver)
            pgsignals.channel(name).disconnect(receiver)
            reactor.connected.disconnect(receiver)
            logging.getLogger("pgsignals").debug("churn")
            reactor.status()

threads = [threading.Thread(target=churn, daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()

def child():
    try:
        reactor.notify(serial="0")
    except ForkedError:
        pass
    pgsignals.on_channel("another")(lambda db, notification: None)
    if not reactor.stop():
        os._exit(3)
    logging.getLogger("pgsignals").debug("child")
    repr(reactor)
    os._exit(0)

for _ in range(200):
    fork(child)
stopping = True
for thread in threads:
    thread.join()
"""


SIGNALS = """
import blinker
mine = pgsignals.channel("signals")
stopping = False

def churn():
    "Changes the signals all the time."
    while not stopping:
        for signal_ in (mine, reactor.connected, pgsignals.channel("b")):
            receiver = lambda *_, **__: None
            signal_.connect(receiver)
            list(signal_.receivers_for(None))
            signal_.disconnect(receiver)

threads = [threading.Thread(target=churn, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()

def child():
    heard = []
    for signal_ in (mine, reactor.connected, pgsignals.channel("b")):
        receiver = lambda *_, **__: heard.append(1)
        signal_.connect(receiver)
        signal_.send(None)
        signal_.disconnect(receiver)
    pgsignals.channel("new").connect(print)
    pgsignals.on_channel("another")(lambda db, notification: None)
    os._exit(0 if len(heard) == 3 else 5)

for _ in range(40):
    fork(child)
stopping = True
for thread in threads:
    thread.join()
"""


#: As churn(), at rest: a thread that demands the GIL would hang a child of C's fork in CPython.
RESTS = """
def churn():
    while not stopping:
        time.sleep(0.05)

"""


@pytest.mark.parametrize("hooks", [True, False], ids=["hooks", "no hooks"])
def test_signals_work_in_a_child_whatever_the_parent_did_with_them(
    postgres: Postgres, dsn: str, admin: Admin, channel: str, hooks: bool
) -> None:
    program = SIGNALS
    if not hooks:
        begin = "threads = [threading.Thread(target=churn, daemon=True) for _ in range(%d)]"
        program = WITHOUT_HOOKS + program.replace(begin % 3, RESTS + begin % 1)
        program = program.replace("range(40)", "range(5)")
    parent(postgres, admin, program, f"fork_{channel}")


COMES_BACK = """
ran, first = [], os.getpid()
reading, writing = os.pipe()
pids = []

def note_run(what):
    os.write(writing, f"{os.getpid()} {what}\\n".encode())

@reactor.on_channel("comes back"%s)
def fork_and_come_back(db, %s):
    if os.getpid() == first and len(pids) < 3:
        db.execute("SELECT 1")
        pid = os.fork()
        if pid:
            pids.append(pid)
        else:
            signal.alarm(10)
            return
    note_run("first")

@reactor.any_channel.connect
def also(db, notification):
    if notification.channel == "comes back":
        note_run("also")

with pgsignals.connect(dsn) as own:
    with own.transaction():
        for number in range(200):
            own.notify(("comes back", str(number)))
wait_for(lambda: len(pids) == %s)
for pid in pids:
    deadline = time.monotonic() + 20
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            wrong.append("a child goes on")
            os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.01)
reactor.notify("work")
os.close(writing)
with open(reading) as pipe:
    others = [line for line in pipe if int(line.split()[0]) != first]
wrong.extend(others[:3])
"""


@pytest.mark.parametrize("batch", [False, True], ids=["one", "batch"])
def test_child_that_comes_back_from_the_handler_runs_nothing_more_and_ends(
    postgres: Postgres, dsn: str, admin: Admin, channel: str, batch: bool
) -> None:
    """It is a copy of a worker, with no other thread to wait for."""
    how = (", batch=True", "notifications", 1) if batch else ("", "notification", 3)
    program = COMES_BACK % how
    if batch:
        program = program.replace("@reactor.any_channel.connect\n", "")
    parent(postgres, admin, program, f"fork_{channel}", expect="has returned from the handler")


def test_two_hundred_forks_under_load(
    postgres: Postgres, dsn: str, admin: Admin, channel: str
) -> None:
    """A lock that some thread holds at that moment would hang the child: its clock ends it."""
    parent(postgres, admin, HUNDREDS, f"fork_{channel}")


def test_fork_in_a_handler(postgres: Postgres, dsn: str, admin: Admin, channel: str) -> None:
    """There the child's only thread is a copy of a worker."""
    in_handler = """
over = threading.Event()

@reactor.on_channel("fork")
def fork_here(db, notification):
    def child():
        try:
            db.execute("SELECT 1")
        except ForkedError:
            reactor.stop()
            os._exit(0)
        os._exit(4)
    for _ in range(5):
        fork(child)
    over.set()

reactor.notify("fork")
over.wait(20)
"""
    parent(postgres, admin, in_handler, f"fork_{channel}")


def test_module_level_handlers_serve_the_reactor_of_a_child(
    postgres: Postgres, dsn: str, admin: Admin, channel: str
) -> None:
    inherited = """
heard = []

@pgsignals.on_channel("inherited")
def hear(db, notification):
    heard.append(notification.payload)

def child():
    with Reactor(dsn, name="pgsignals-child") as own:
        own.notify(inherited="1")
        wait_for(lambda: heard == ["1"])
    os._exit(0)

fork(child)
"""
    parent(postgres, admin, inherited, f"fork_{channel}")


# A web server that loads the application and then forks

APPLICATION = '''
"""Loaded once, before the workers are forked: see --preload."""

import json, os, threading
import pgsignals

dsn = os.environ["APP_DSN"]
reactor = pgsignals.Reactor(dsn, name="pgsignals-app")
heard = threading.Event()
lock = threading.Lock()
own = None

@reactor.on_channel("serial")
def note(db, notification):
    with open(os.environ["APP_STREAM"], "a") as stream:
        stream.write(notification.payload + "\\n")

@reactor.gap.connect
def note_gap(db, gap):
    with open(os.environ["APP_STREAM"], "a") as stream:
        stream.write(f"{gap}\\n")

@pgsignals.on_channel("refresh")
def refresh(db, notification):
    heard.set()

reactor.start()
loaded_by = os.getpid()

def application(environ, start_response):
    global own
    try:
        inherited = str(reactor.running)
    except pgsignals.ForkedError:
        inherited = "ForkedError"
    with lock:
        if own is None:
            own = pgsignals.Reactor(dsn, name="pgsignals-worker")
            own.start()
    heard.clear()
    own.notify("refresh")
    answer = {
        "pid": os.getpid(),
        "forked": os.getpid() != loaded_by,
        "inherited": inherited,
        "backend": own.status().databases[0].backend_id,
        "heard": heard.wait(15),
    }
    start_response("200 OK", [("Content-Type", "application/json"), ("Connection", "close")])
    return [json.dumps(answer).encode()]
'''


@contextlib.contextmanager
def gunicorn(folder: Path, workers: int, **environment: str) -> Iterator[tuple[int, Path]]:
    """Serve the application; gives the pid of the master, and the socket."""
    (folder / "application.py").write_text(APPLICATION, "utf-8")
    address = folder / "http.sock"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                *[sys.executable, "-m", "gunicorn", "--preload", "--workers", str(workers)],
                *["--bind", f"unix:{address}", "--chdir", str(folder), "application:application"],
                *["--graceful-timeout", "5"],
            ],
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
        )
    try:
        yield process.pid, address
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def accepts(address: Path) -> bool:
    """Whether somebody listens; a socket is bound, and there, a moment before."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(address)) == 0


def get(address: Path) -> dict[str, Any]:
    """One request over a Unix socket."""

    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(PATIENCE)
            self.sock.connect(str(address))

    with contextlib.closing(Connection("localhost")) as connection:
        connection.request("GET", "/")
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer


def test_gunicorn_with_preload(
    postgres: Postgres, dsn: str, admin: Admin, channel: str, tmp_path: Path
) -> None:
    if importlib.util.find_spec("gunicorn") is None:
        pytest.skip("needs gunicorn")
    name, stream, count = f"gunicorn_{channel}", tmp_path / "stream", 4
    environment = {"APP_DSN": postgres.dsn_for(application_name=name), "APP_STREAM": str(stream)}
    stream.touch()
    with gunicorn(tmp_path, count, **environment) as (_, address):
        try:
            wait_until(lambda: accepts(address), why="gunicorn did not start")
            load = Load(dsn)
            answers: dict[int, dict[str, Any]] = {}
            wait_until(lambda: len(_note(answers, get(address))) == count)
            last = load.stop()
            wait_until(lambda: str(last) in stream.read_text("utf-8").splitlines())
        except BaseException as error:
            error.add_note((tmp_path / "log").read_text("utf-8"))
            raise

    assert stream.read_text("utf-8").splitlines() == [str(n) for n in range(1, last + 1)]
    for answer in answers.values():
        assert answer["forked"]
        assert answer["inherited"] == "ForkedError"
        assert answer["heard"]
    assert len({answer["backend"] for answer in answers.values()}) == count
    assert "Traceback" not in (tmp_path / "log").read_text("utf-8")
    wait_until(lambda: name not in admin.sessions().values(), why="a session was left behind")


def _note(answers: dict[int, dict[str, Any]], answer: dict[str, Any]) -> dict[int, dict[str, Any]]:
    answers[answer["pid"]] = answer
    return answers
