"""uWSGI: a server that forks from C, and that may run no thread of Python."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.admin import Admin
from tests.support.pages import DOCS, blocks
from tests.support.waiting import PATIENCE, wait_until

PROGRAM = shutil.which(
    "uwsgi", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
)

needs_uwsgi = pytest.mark.skipif(PROGRAM is None, reason="uWSGI is not installed")


def free_port() -> int:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port: int = listener.getsockname()[1]
        return port


def get(port: int) -> str:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as client:
        client.request("GET", "/")
        return client.getresponse().read().decode()


@contextlib.contextmanager
def served(folder: Path, *options: str) -> Iterator[int]:
    """Serve what is in *folder*, and give the port."""
    port = free_port()
    settings = (folder / "uwsgi.ini").read_text("utf-8")
    (folder / "uwsgi.ini").write_text(settings.replace(":8000", f":{port}"), "utf-8")
    root = str(Path(__file__).parents[1])
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [str(PROGRAM), "--ini", "uwsgi.ini", *options],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:

        def answers() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            with contextlib.suppress(OSError, http.client.HTTPException):
                return bool(get(port))
            return False

        wait_until(answers, why="it does not answer")
        yield port
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def page(folder: Path, dsn: str) -> None:
    """The files of the page, led to our server."""
    for block in blocks(DOCS / "howto" / "uwsgi.md"):
        name = block.text.partition("\n")[0].lstrip("#; ")
        if name in ("wsgi.py", "uwsgi.ini"):
            text = block.text.replace('"postgresql://app@localhost/shop"', repr(dsn))
            (folder / name).write_text(text, "utf-8")


@needs_uwsgi
@pytest.mark.parametrize("options", [(), ("--lazy-apps",)], ids=["postfork", "lazy-apps"])
def test_files_of_the_page_serve(
    dsn: str, admin: Admin, tmp_path: Path, options: tuple[str, ...]
) -> None:
    page(tmp_path, dsn)
    ours = len(admin.sessions())
    if options:  # then nothing is left to call after the fork
        with (tmp_path / "wsgi.py").open("a") as module:
            module.write("start()\n")
    with served(tmp_path, *options) as port:
        # Two of each worker, which must have started before uWSGI's signals interrupt it.
        wait_until(lambda: len(admin.sessions()) - ours >= 4)
        admin.notify("orders")
        wait_until(lambda: get(port) == "1", why=(tmp_path / "log").read_text())
    wait_until(lambda: len(admin.sessions()) <= ours, why="a session was left behind")


@needs_uwsgi
def test_reactor_of_the_master_is_told_apart_in_the_workers(
    dsn: str, admin: Admin, tmp_path: Path
) -> None:
    """uWSGI runs no hook of Python's when it forks."""
    page(tmp_path, dsn)
    (tmp_path / "wsgi.py").write_text(
        f"""
import pgsignals
reactor = pgsignals.Reactor({dsn!r}, channels=["orders"])
reactor.start()

def application(environ, start_response):
    start_response("200 OK", [])
    told = []
    for ask in (lambda: reactor.running, lambda: reactor.notify("orders"), reactor.start):
        try:
            told.append(str(ask()))
        except pgsignals.ForkedError:
            told.append("ForkedError")
    pgsignals.on_channel("later")(lambda db, notification: None)
    told.append(str(reactor.stop()))
    return [" ".join(told).encode()]
""",
        "utf-8",
    )
    with served(tmp_path) as port:
        assert get(port) == "ForkedError ForkedError ForkedError True"


UNDER = """
import sys, types
sys.modules["uwsgi"] = uwsgi = types.ModuleType("uwsgi")
uwsgi.opt = {options}
{more}
import pgsignals
try:
    pgsignals.Reactor(sys.argv[1], channels=["quiet"]).start()
except pgsignals.ConnectionStateError as error:
    print(error)
else:
    print("started")
"""


@pytest.mark.parametrize(
    ("options", "more", "starts"),
    [
        ({"http-socket": b":8000"}, "", False),
        ({b"http-socket": b":8000"}, "", False),
        ({}, "", False),
        ({"enable-threads": True}, "", True),
        ({b"enable-threads": True}, "", True),
        ({"threads": b"2"}, "", True),
        ({b"threads": b"2"}, "", True),
        ({}, "uwsgi.has_threads = 1", True),
        ({}, "uwsgi.has_threads = 0", False),
        ({}, "del uwsgi.opt", True),
    ],
)
def test_start_says_that_no_thread_would_run(
    dsn: str, options: dict[object, object], more: str, starts: bool
) -> None:
    program = UNDER.format(options=options, more=more)
    run = subprocess.run(
        [sys.executable, "-c", program, dsn], capture_output=True, text=True, check=False
    )
    assert run.stderr == ""
    assert ("started" in run.stdout) == starts
    assert ("--enable-threads" in run.stdout) != starts
