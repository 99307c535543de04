"""The files that pages show, as files: each is written to an empty directory and run there.

A block whose first line is a comment with a file's name is that file, or with ``, continued`` the
next part of it.  A module must be importable in a process of its own; a test runs under pytest;
and what belongs to a server runs under that server, started with the command that the page shows.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import yaml

from pgsignals import connect
from tests.support.pages import DOCS, PAGES, blocks, files, name_of, write_files
from tests.support.waiting import AT_ONCE, PATIENCE, wait_until

DSN = "postgresql://app@localhost/shop"
HOWTO = DOCS / "howto"
#: They need a setting of Django's before they can be imported; a test below runs its command.
DJANGO = HOWTO / "django.md"

page_and_file = pytest.mark.parametrize(
    ("path", "name"),
    [
        pytest.param(path, name, id=f"{name_of(path)}-{name}")
        for path in PAGES
        for name in files(path)
        if name.endswith(".py") and path != DJANGO
    ],
)


@contextlib.contextmanager
def program(
    folder: Path, environment: dict[str, str], *command: str
) -> Iterator[tuple[subprocess.Popen[str], Lines]]:
    """A program that runs in *folder* until the block ends, and what it prints."""
    path = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment | {"PATH": path, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = Lines(process.stdout)
        try:
            yield process, lines
        except BaseException as error:
            error.add_note("".join(lines.seen))
            raise
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
            lines.join()


class Lines(threading.Thread):
    """Reads what a program prints."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__(name="test-lines", daemon=True)
        self.seen: list[str] = []
        self._stream = stream
        self.start()

    def run(self) -> None:
        for line in self._stream:
            self.seen.append(line)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first match of *pattern*, as soon as it has been printed."""

        def look() -> re.Match[str] | None:
            return next(filter(None, (re.search(pattern, line) for line in self.seen)), None)

        found = wait_until(look, why=f"{pattern} was not printed: {self.seen}")
        assert found is not None
        return found


def commands(path: Path, program: str) -> list[list[str]]:
    """The commands of a page that start *program*."""
    lines = "".join(block.text for block in blocks(path) if block.language == "sh").splitlines()
    return [words for words in map(shlex.split, lines) if words[0] == program]


def notify(environment: dict[str, str], **pairs: str) -> None:
    """Send from outside."""
    port, password = environment["PGPORT"], environment["PGPASSWORD"]
    with connect(DSN, port=port, password=password) as db:
        db.notify(**pairs)


def execute(environment: dict[str, str], sql: str) -> None:
    """What a reader does in psql."""
    port, password = environment["PGPORT"], environment["PGPASSWORD"]
    with connect(DSN, port=port, password=password) as db:
        db.execute(sql.encode())


def get(url: str) -> tuple[int, Any]:
    """The status and the JSON of an answer."""
    try:
        with urllib.request.urlopen(url, timeout=AT_ONCE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, None


def need(module: str) -> None:
    """Skip the test where *module* is missing."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs {module}")


@page_and_file
@pytest.mark.usefixtures("dsn")  # so that a session left behind is noticed
def test_file_runs_by_itself(
    path: Path, name: str, environment: dict[str, str], tmp_path: Path
) -> None:
    write_files(path, tmp_path)
    module = name.removesuffix(".py").replace("/", ".")
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", name]
    if not name.startswith("test_"):
        command = ["-c", f"import {module}"]
    result = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", *command],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""


# -- Flask -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("dsn")
@pytest.mark.parametrize("command", commands(HOWTO / "flask.md", "gunicorn"), ids=" ".join)
def test_flask_under_gunicorn(
    command: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    need("gunicorn")
    write_files(HOWTO / "flask.md", tmp_path)
    bind = ["--bind", "127.0.0.1:0"]

    with program(tmp_path, environment, *command, *bind) as (process, lines):
        url = lines.wait_for(r"Listening at: (http://\S+)")[1]
        wait_until(lambda: get(f"{url}/ready")[0] == 200)
        notify(environment, orders="42")
        wait_until(lambda: get(f"{url}/state") == (200, {"orders": 1, "gaps": 0}))
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert "Traceback" not in "".join(lines.seen)


@pytest.mark.usefixtures("dsn")
def test_flask_under_its_own_server(environment: dict[str, str], tmp_path: Path) -> None:
    write_files(HOWTO / "flask.md", tmp_path)
    (command,) = commands(HOWTO / "flask.md", "flask")

    with program(tmp_path, environment, *command, "--port", "0") as (process, lines):
        url = lines.wait_for(r"Running on (http://\S+)")[1]
        assert get(f"{url}/ready")[0] == 200
        notify(environment, orders="42")
        wait_until(lambda: get(f"{url}/state") == (200, {"orders": 1, "gaps": 0}))
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)
    assert "Traceback" not in "".join(lines.seen)


# -- FastAPI ---------------------------------------------------------------------------------------

#: The page's application, and a look into it.
LOOK = """
from main import app, mailboxes

@app.get("/mailboxes")
async def count() -> int:
    return len(mailboxes)
"""


@pytest.fixture
def under_uvicorn(
    environment: dict[str, str], tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[str], Lines, str]]:
    """The page's application as uvicorn serves it: its process, its log, and its address."""
    need("uvicorn")
    need("websockets")
    write_files(HOWTO / "fastapi.md", tmp_path)
    (tmp_path / "look.py").write_text(LOOK, "utf-8")
    ((name, application),) = commands(HOWTO / "fastapi.md", "uvicorn")
    assert (name, application) == ("uvicorn", "main:app")
    with program(tmp_path, environment, name, "look:app", "--port", "0") as (process, lines):
        url = lines.wait_for(r"running on http://(\S+)")[1]
        yield process, lines, url


@pytest.mark.usefixtures("dsn")
def test_fastapi_notices_at_once_that_a_browser_has_left(
    under_uvicorn: tuple[subprocess.Popen[str], Lines, str], environment: dict[str, str]
) -> None:
    from websockets.sync.client import connect as browse

    _, lines, address = under_uvicorn
    url = f"http://{address}/mailboxes"
    with browse(f"ws://{address}/live") as one, browse(f"ws://{address}/live") as other:
        wait_until(lambda: get(url) == (200, 2))
        notify(environment, orders="42 paid")
        assert one.recv(PATIENCE) == other.recv(PATIENCE) == "42 paid"
        one.send("a browser may speak")
        one.send(b"in any way")
        one.close()
        wait_until(lambda: get(url) == (200, 1))
        notify(environment, orders="43 paid")
        assert other.recv(PATIENCE) == "43 paid"
        assert other.socket is not None
        other.socket.close()  # as a browser that crashes
        wait_until(lambda: get(url) == (200, 0))
    assert "Traceback" not in "".join(lines.seen)


@pytest.mark.usefixtures("dsn")
def test_fastapi_ends_while_browsers_are_connected(
    under_uvicorn: tuple[subprocess.Popen[str], Lines, str],
) -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect as browse

    process, lines, address = under_uvicorn
    with browse(f"ws://{address}/live") as browser:
        wait_until(lambda: get(f"http://{address}/mailboxes") == (200, 1))
        process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed):
            browser.recv(PATIENCE)
        process.wait(AT_ONCE)  # without SIGINT, and long before a pod would be killed
    lines.wait_for("Application shutdown complete")
    assert "Traceback" not in "".join(lines.seen)


# -- Django ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("dsn")
def test_django_command_listens(environment: dict[str, str], tmp_path: Path) -> None:
    write_files(DJANGO, tmp_path)
    environment = environment | {"DJANGO_SETTINGS_MODULE": "settings"}
    path = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    environment["PYTHONPATH"] = path
    ((python, manage, command),) = commands(DJANGO, "python")
    assert (python, manage) == ("python", "manage.py")  # which a project has, and does this:
    (expected,) = (block.text for block in blocks(DJANGO) if block.language == "output")
    send = "import django; django.setup(); from shop.orders import save_order; save_order(42)"

    with program(tmp_path, environment, sys.executable, "-m", "django", command) as (_, lines):
        heard(lines, "order 0 ", environment, **{"shop.orders": "0"})
        result = subprocess.run(
            [sys.executable, "-c", send], cwd=tmp_path, env=environment, timeout=50, check=False
        )
        assert result.returncode == 0
        lines.wait_for("order 42")
    assert lines.seen[-1] == expected


def heard(lines: Lines, expected: str, environment: dict[str, str], **pairs: str) -> None:
    """Notify until a program that is starting says so."""

    def try_once() -> bool:
        notify(environment, **pairs)
        return any(expected in line for line in lines.seen)

    wait_until(try_once, why=f"{expected} was not printed: {lines.seen}")


# -- the others ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("dsn")
def test_worker_does_the_jobs(environment: dict[str, str], tmp_path: Path) -> None:
    page = HOWTO / "worker.md"
    write_files(page, tmp_path)
    (insert,) = (block.text for block in blocks(page) if block.language == "sql" and not block.file)
    (expected,) = (block.text for block in blocks(page) if block.language == "output")

    execute(environment, "DROP TABLE IF EXISTS emails; DROP FUNCTION IF EXISTS notify_email")
    execute(environment, (tmp_path / "schema.sql").read_text("utf-8"))
    with program(tmp_path, environment, sys.executable, "worker.py") as (_, lines):
        execute(environment, insert)
        lines.wait_for("grace")
    assert "".join(lines.seen[:2]) == expected


@pytest.mark.usefixtures("dsn")
def test_deployment_runs_the_handlers(environment: dict[str, str], tmp_path: Path) -> None:
    page = HOWTO / "kubernetes.md"
    write_files(page, tmp_path)
    deployment = yaml.safe_load((tmp_path / "deployment.yaml").read_text("utf-8"))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    arguments = ["127.0.0.1:0" if "9187" in word else word for word in container["args"]]

    with program(tmp_path, environment, *container["command"], *arguments) as (process, lines):
        lines.wait_for("look for orders that")
        notify(environment, orders="42")
        lines.wait_for("^ship 42$")
        execute(
            environment,
            "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity"
            " WHERE application_name = 'pgsignals' AND pid <> pg_catalog.pg_backend_pid()",
        )
        lines.wait_for("look for orders since")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


@pytest.mark.usefixtures("dsn")
def test_cache_never_shows_a_hole_and_makes_up_for_a_read_that_failed(
    environment: dict[str, str], tmp_path: Path
) -> None:
    write_files(HOWTO / "cache.md", tmp_path)
    execute(environment, "DROP TABLE IF EXISTS settings; DROP FUNCTION IF EXISTS notify_setting")
    execute(environment, (tmp_path / "schema.sql").read_text("utf-8"))
    (tmp_path / "try.py").write_text(HOLES, "utf-8")

    with program(tmp_path, environment, sys.executable, "try.py") as (process, lines):
        assert process.wait(50) == 0, lines.seen
    assert lines.seen[-1] == "right\n"


#: Readers never see a key missing; a table that is away for a while is read when it is back.
HOLES = """
import threading
import settings_cache
from pgsignals import connect
from pgsignals.testing import kill_listener, wait_until

over, holes, reads = threading.Event(), [], []

def read():
    while not over.is_set():
        try:
            reads[:] = [settings_cache.setting("theme")]
        except Exception as error:
            holes.append(error)

def gaps():
    return settings_cache.reactor.status().databases[0].gaps

with connect(settings_cache.DSN) as db:
    db.execute("INSERT INTO settings VALUES ('theme', '0')")
    with settings_cache.reactor as reactor:
        reader = threading.Thread(target=read)
        reader.start()
        for number in range(1, 6):
            kill_listener(reactor)
            db.execute("UPDATE settings SET value = %s", [str(number)])
            wait_until(lambda: gaps() == number and reads == [str(number)])
        db.execute("ALTER TABLE settings RENAME TO away")
        kill_listener(reactor)
        wait_until(lambda: gaps() == 6 and settings_cache.stale)
        assert reads == ["5"]
        # In one transaction with the table's return: nothing but another try shows the value.
        with db.transaction():
            db.execute("ALTER TABLE away DISABLE TRIGGER announce")
            db.execute("UPDATE away SET value = 'back'")
            db.execute("ALTER TABLE away ENABLE TRIGGER announce")
            db.execute("ALTER TABLE away RENAME TO settings")
        wait_until(lambda: reads == ["back"], timeout=20)
        over.set()
        reader.join()
assert not holes, holes
print("right")
"""


@pytest.mark.usefixtures("dsn")
def test_tutorial_starts_again_on_a_database_of_its_own(
    environment: dict[str, str], tmp_path: Path
) -> None:
    write_files(DOCS / "tutorial.md", tmp_path)
    source = (tmp_path / "live.py").read_text("utf-8")
    source = re.sub(r"^server.*\n", "", source, flags=re.MULTILINE)
    assert "DSN = server.dsn" in source
    (tmp_path / "live.py").write_text(source.replace("server.dsn", f'"{DSN}"'), "utf-8")
    once = "import live; live.reactor.stop(); print('stopped')"

    for _ in range(2):
        with program(tmp_path, environment, sys.executable, "-c", once) as (process, lines):
            assert process.wait(PATIENCE) == 0, lines.seen
        assert lines.seen == ["stopped\n"]


@pytest.mark.usefixtures("dsn")
def test_cell_of_a_notebook_can_be_run_again(environment: dict[str, str], tmp_path: Path) -> None:
    cell, *_ = (block.text for block in blocks(HOWTO / "notebook.md") if block.language == "python")
    (tmp_path / "cell.py").write_text(cell, "utf-8")
    (tmp_path / "kernel.py").write_text(KERNEL, "utf-8")

    with program(tmp_path, environment, sys.executable, "kernel.py") as (process, lines):
        assert process.wait(PATIENCE) == 0, lines.seen
    assert lines.seen == ["['42 paid']\n"]


#: Runs one cell three times, notifies once, and looks.
KERNEL = """
from pgsignals.testing import settle

names = {"__name__": "__main__"}
cell = compile(open("cell.py").read(), "cell.py", "exec")
for _ in range(3):
    exec(cell, names)
names["reactor"].notify(orders="42 paid")
settle(names["reactor"])
print(names["seen"])
"""
