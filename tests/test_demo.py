"""The demo, as its users run it, and that it would notice if something were wrong."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgsignals import demo
from pgsignals.database import Database
from pgsignals.embedded import Postgres
from pgsignals.reactor import Reactor
from tests.support.admin import Admin
from tests.support.waiting import LONG, PATIENCE, wait_until

DEMO = [sys.executable, "-m", "pgsignals", "demo"]

#: Nobody listens there.
NOWHERE = "postgresql://app@127.0.0.1:1/shop"

#: How colours begin and end.
COLOUR = re.compile(r"\x1b\[[\d;]*m")


def environment(**more: str) -> dict[str, str]:
    """Ours, with a DATABASE_URL that the demo must not touch."""
    drop = ("NO_COLOR", "LINES", "COLUMNS")
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    return kept | {"DATABASE_URL": NOWHERE, "TERM": "xterm"} | more


def finished(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A demo that has run to its end."""
    return subprocess.run(
        [*DEMO, *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )


@contextlib.contextmanager
def running(dsn: str) -> Iterator[subprocess.Popen[str]]:
    """A demo that would run for long, its output in pipes."""
    with subprocess.Popen(
        [*DEMO, "--seconds", "60", "--dsn", dsn],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def schemas(admin: Admin) -> list[str]:
    """What demos have left behind."""
    rows = admin.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'pgsignals%%'")
    return [name for (name,) in rows]


# -- plain lines ---------------------------------------------------------------------------------


def test_demo_runs_on_a_server_of_its_own_and_verifies_what_it_shows() -> None:
    done = finished("--seconds", "3", PGHOSTADDR="127.0.0.1", PGTARGETSESSIONATTRS="standby")

    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert_in_order(
        done.stdout,
        r"pgsignals demo: a shop in PostgreSQL \d+\.\d+, a throwaway server, for 3 s",
        r"kill: pg_terminate_backend\(\d+\)",
        r"lost: our session is gone \(ended, 57P01\)",
        r"gap \(reconnect\): read \d+ orders and [1-9]\d* items of stock again",
        r"verified:",
        r"ok      stock: 8 of 8 items in the cache match the table",
        r"ok      orders: [1-9]\d* in the table, [1-9]\d* notified",
        r"ok      link: killed once, [1-9] gaps? reported, listening again",
        r"ok      handlers: [1-9]\d* calls, 0 failed",
    )
    # Whether that comes before or after the kill depends on the machine.
    progress = r" s  [1-9]\d* orders, \d+ notifications/s, latency p50 \d+\.\d ms"
    assert re.search(progress, done.stdout)


def assert_in_order(text: str, *patterns: str) -> None:
    position = 0
    for pattern in patterns:
        match = re.compile(pattern).search(text, position)
        assert match, f"{pattern!r} is missing, or too early, in:\n{text}"
        position = match.end()


def test_demo_uses_a_given_database_and_cleans_up(admin: Admin, dsn: str) -> None:
    before = schemas(admin)
    done = finished("--seconds", "1", "--dsn", dsn)

    assert done.stderr == ""
    assert done.returncode == 0
    assert "a shop in 127.0.0.1:" in done.stdout
    assert schemas(admin) == before


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_signal_ends_the_demo_quietly_with_nothing_left(
    admin: Admin, dsn: str, number: signal.Signals, status: int
) -> None:
    before = schemas(admin), admin.sessions()
    with running(dsn) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while " orders, " not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)

        assert process.wait(PATIENCE) == status
        assert process.stderr.read() == ""
    wait_until(lambda: (schemas(admin), admin.sessions()) == before, why="something is left")


def test_demo_into_a_pipe_that_is_closed_ends_quietly(admin: Admin, dsn: str) -> None:
    before = schemas(admin)
    with running(dsn) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()

        assert process.wait(PATIENCE) == 128 + signal.SIGPIPE
        assert process.stderr.read() == ""
    assert schemas(admin) == before


def test_without_a_server_to_start_it_is_one_line_and_status_1(tmp_path: Path) -> None:
    done = finished(PGSIGNALS_PG_BINDIR=f"{tmp_path}/none")

    assert done.returncode == 1
    assert re.fullmatch(r"pgsignals: no PostgreSQL server .* pip install .*\n", done.stderr)


def test_role_that_may_create_nothing_is_one_line_and_status_1(
    admin: Admin, postgres: Postgres
) -> None:
    admin.execute("CREATE ROLE demo_guest LOGIN PASSWORD 'guest'")
    done = finished("--dsn", postgres.dsn_for(user="demo_guest", password="guest"))
    admin.execute("DROP ROLE demo_guest")

    assert done.returncode == 1
    assert re.fullmatch(r"pgsignals: permission denied for database .*\n", done.stderr)


# -- it would notice -----------------------------------------------------------------------------


def test_cache_that_is_not_refilled_after_a_gap_fails_the_verification(
    dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refill, fills = demo.refill, [0]

    def refill_once(db: Database, shop: demo.Shop) -> tuple[int, int]:
        fills[0] += 1
        return refill(db, shop) if fills[0] == 1 else (0, 0)

    monkeypatch.setattr(demo, "refill", refill_once)

    assert demo.run(1, dsn) == 1
    printed = capsys.readouterr().out
    assert "FAILED  stock: " in printed
    assert "ok      link: killed once, " in printed


def test_seller_that_fails_fails_the_demo(
    dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextlib.contextmanager
    def a_seller(*_: object) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-c", "raise SystemExit('no\\nlicence')"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            yield process

    monkeypatch.setattr(demo, "a_seller", a_seller)

    assert demo.run(1, dsn) == 1
    printed = capsys.readouterr().out
    assert "the seller failed: licence" in printed
    assert "FAILED  handlers: 0 calls" in printed


# -- on a slow machine ---------------------------------------------------------------------------


def test_session_is_killed_after_half_of_the_sales_however_late_the_seller_comes(
    dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    late = "import sys, time\ntime.sleep(3 * ('pgsignals.demo' in sys.orig_argv))\n"
    (tmp_path / "sitecustomize.py").write_text(late, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    kill, told = demo.kill, [0]

    def watched(db: Database, reactor: Reactor, shop: demo.Shop) -> None:
        told.append(len(shop.notified))
        kill(db, reactor, shop)

    monkeypatch.setattr(demo, "kill", watched)

    assert demo.run(4, dsn) == 0
    assert told[-1] > 0


# -- on a terminal -------------------------------------------------------------------------------


class Terminal:
    """A terminal of the given size in which the demo runs."""

    def __init__(
        self, dsn: str, lines: int, columns: int, *, seconds: int = 2, **variables: str
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        os.set_blocking(self._ours, False)
        self.process = subprocess.Popen(
            [*DEMO, "--seconds", str(seconds), "--dsn", dsn],
            env=environment(PYTHONUTF8="1", **variables),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self._screen = bytearray()

    @property
    def screen(self) -> str:
        """All that has been written to it."""
        with contextlib.suppress(BlockingIOError, OSError):  # EIO: everybody has left
            while data := os.read(self._ours, 65536):
                self._screen += data
        return self._screen.decode(errors="replace").replace("\r\n", "\n")

    def status(self) -> int:
        """Wait for the demo's end, and read on, or it could not write."""
        wait_until(lambda: self.screen and self.process.poll() is not None, LONG)
        return self.process.wait()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


def frames(screen: str) -> list[str]:
    """The pictures, each without the commands that frame it."""
    return re.findall(r"\x1b\[\?25l\x1b\[\?7l\r(?:\x1b\[\d+A)?(.*?)\x1b\[J", screen, re.DOTALL)


@pytest.mark.parametrize(
    ("lines", "columns"),
    [(24, 80), (12, 80), (26, 60), (28, 40)],
    ids=["24x80", "12x80", "26x60", "28x40"],
)
def test_terminal_shows_a_picture_in_its_place(dsn: str, lines: int, columns: int) -> None:
    with contextlib.closing(Terminal(dsn, lines, columns)) as terminal:
        assert terminal.status() == 0
        screen = terminal.screen

    pictures = [COLOUR.sub("", frame).replace("\x1b[K", "") for frame in frames(screen)]
    rows = [row for picture in pictures for row in picture.splitlines()]
    assert len(pictures) > 1
    assert max(picture.count("\n") for picture in pictures) <= lines - 1
    assert max(len(row) for row in rows) < columns  # \x1b[K erases the last column
    assert not [row for row in rows if "\x1b" in row]
    assert re.search(r"\d+ notifications/s", pictures[-1])
    assert COLOUR.search(screen)
    if lines > 12:
        last = " ".join(pictures[-1].split())
        assert_in_order(last, "listening", "samovar 0", "kill:", "lost:", r"gap \(reconn")
        assert_in_order(last, r"pg_terminate_backend\(\d+\), and the last samovar is sold")
        assert_in_order(last, r"\d+ orders and \d+ items of stock")
    end = COLOUR.sub("", screen).rpartition("verified:\n")[2]
    assert max(map(len, end.splitlines())) <= columns
    assert "ok stock: 8 of 8 items in the cache match the table ok" in " ".join(end.split())
    assert_put_back(screen)


def test_terminal_without_colours_when_its_user_wants_none(dsn: str) -> None:
    with contextlib.closing(Terminal(dsn, 24, 80, NO_COLOR="1")) as terminal:
        assert terminal.status() == 0
        screen = terminal.screen

    assert len(frames(screen)) > 1
    assert not COLOUR.search(screen)


def test_ctrl_c_puts_the_terminal_back(dsn: str) -> None:
    with contextlib.closing(Terminal(dsn, 24, 80, seconds=60)) as terminal:
        wait_until(lambda: len(frames(terminal.screen)) > 3)
        terminal.process.send_signal(signal.SIGINT)

        assert terminal.status() == 130
        assert "Traceback" not in terminal.screen
        assert_put_back(terminal.screen)


def assert_put_back(screen: str) -> None:
    """The cursor is shown, lines are wrapped, and no colour is left on."""
    for on, off in (("\x1b[?25h", "\x1b[?25l"), ("\x1b[?7h", "\x1b[?7l")):
        assert screen.count(on) == screen.count(off) > 0
        assert screen.rindex(on) > screen.rindex(off)
    assert [match.group() for match in COLOUR.finditer(screen)][-1] == "\x1b[0m"


def test_dumb_terminal_gets_plain_lines(dsn: str) -> None:
    with contextlib.closing(Terminal(dsn, 24, 80, TERM="dumb", NO_COLOR="1")) as terminal:
        assert terminal.status() == 0
        screen = terminal.screen

    assert "\x1b" not in screen
    assert " notifications/s, latency p50" in screen
