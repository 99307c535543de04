"""``pgsignals top``: in a terminal of its own, and where there is none."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pgsignals.embedded import Postgres
from pgsignals.testing import Proxy
from tests.support.admin import Admin
from tests.support.commands import (
    NOWHERE,
    PGSIGNALS,
    ROOT,
    TAKING_THE_TERMINAL,
    Start,
    Terminal,
    commands,
    environment,
    go_on,
    one_line,
    stopped_by_the_terminal,
)
from tests.support.tools import tool
from tests.support.waiting import AT_ONCE, PATIENCE, hangs_fail, wait_until

QUICK = ["--interval", "0.1", "--probe-interval", "0.5", "--probe-timeout", "1"]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def start(dsn: str, tmp_path: Path) -> Iterator[Start]:
    with commands(dsn, tmp_path) as start:
        yield start


def top(*arguments: str, dsn: str, columns: int = 100, lines: int = 24, **env: str) -> Terminal:
    """It, in a terminal."""
    command = [*PGSIGNALS, "top", *QUICK, *arguments]
    return Terminal(command, environment(dsn, **env), columns, lines)


# -- on a screen ---------------------------------------------------------------------------------


def test_top_shows_channels_and_the_database(dsn: str, admin: Admin, channel: str) -> None:
    with top(channel, dsn=dsn) as terminal:
        terminal.shows("pgsignals top", channel, "listening", "q quit")
        admin.flood(channel, 3)
        admin.notify(channel, "the last one")
        terminal.shows("the last one", " 4 ")
        terminal.shows(" ms ", " %")  # the first probe has been answered
        assert "█" in terminal.raw
        terminal.press("q")

        assert terminal.status(AT_ONCE) == 0
        assert terminal.is_restored


def test_top_shows_payloads_cut_and_escaped(dsn: str, admin: Admin, channel: str) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J[bold red]\r\n"
    with top(channel, dsn=dsn) as terminal:
        terminal.shows("listening")
        admin.notify(channel, evil)
        terminal.shows(r"\x1b]0;owned\x07\x1b[2J[bold red]\r\n")
        admin.notify(channel, "x" * 5000)
        terminal.shows("xxxxx…")
        assert terminal.fits()
        terminal.press("q")

        assert terminal.status(AT_ONCE) == 0
    assert "\x1b]0;" not in terminal.raw
    assert "\x07" not in terminal.raw


def test_keys_pause_and_filter(dsn: str, admin: Admin) -> None:
    with top("orders", "stock", dsn=dsn) as terminal:
        terminal.shows("orders", "stock", "listening")
        terminal.press("p")
        terminal.shows("PAUSED")
        admin.notify("orders", "while paused")
        assert terminal.fits()
        assert "while paused" not in terminal.screen.text
        terminal.press(" ")
        terminal.shows("while paused")
        assert "PAUSED" not in terminal.screen.text

        terminal.press("/")
        terminal.shows("filter: _")
        terminal.press("STQ\x7f\r")  # no q that quits, and upper case is as good
        wait_until(lambda: "orders" not in terminal.screen.text)
        terminal.shows("stock", "filter: ST")
        terminal.press("\x1b[A")  # an arrow
        terminal.press("f")
        terminal.shows("filter: ST_")
        terminal.press("\x1b")
        terminal.shows("orders")
        terminal.press("q")

        assert terminal.status(AT_ONCE) == 0


def test_keys_sort(dsn: str, admin: Admin) -> None:
    with top("carts", "baskets", "apples", dsn=dsn) as terminal:
        terminal.shows("carts", "listening")
        admin.flood("apples", 3)
        admin.flood("baskets", 5)
        terminal.shows(" 3 ", " 5 ")

        def order() -> list[str]:
            text = terminal.screen.text
            return sorted(("carts", "baskets", "apples"), key=text.index)

        assert order() == ["carts", "baskets", "apples"]
        terminal.press("s")
        terminal.shows("by per second")
        terminal.press("s")
        terminal.shows("by total")
        wait_until(lambda: order() == ["baskets", "apples", "carts"])
        terminal.press("S")
        terminal.shows("by name")
        wait_until(lambda: order() == ["apples", "baskets", "carts"])
        terminal.press("s")
        wait_until(lambda: order() == ["carts", "baskets", "apples"])
        terminal.press("q")

        assert terminal.status(AT_ONCE) == 0


def test_keys_are_explained(dsn: str) -> None:
    with top("orders", dsn=dsn) as terminal:
        terminal.shows("? keys", "listening")
        terminal.press("?")
        terminal.shows("as given, per second, total, name", "p, space", "f, /")
        assert terminal.fits()
        terminal.press("?")
        wait_until(lambda: "p, space" not in terminal.screen.text)
        terminal.press("q")

        assert terminal.status(AT_ONCE) == 0


@pytest.mark.parametrize("columns", [60, 80])
def test_narrow_window_keeps_state_and_headings(
    dsn: str, admin: Admin, channel: str, columns: int
) -> None:
    with top(channel, dsn=dsn, columns=columns) as terminal:
        terminal.shows("listening")
        admin.flood(channel, 12_345)
        terminal.shows(
            "12,345", "DATABASE", "STATE", "DROPPED", "GAPS", "CHANNEL", "TOTAL", "PAYLOAD"
        )
        terminal.shows("q quit")
        assert terminal.fits()
        headings = [
            line for line in terminal.screen.text.splitlines() if "STATE" in line or "TOTAL" in line
        ]
        assert not any("…" in line for line in headings)
        terminal.press("q")

        assert terminal.status(AT_ONCE) == 0


def test_window_that_is_narrow_names_several_databases(
    dsn: str, postgres: Postgres, channel: str
) -> None:
    other = postgres.dsn_for("template1")
    with top(channel, "--dsn", dsn, "--dsn", other, dsn=NOWHERE, columns=60) as terminal:
        terminal.shows("listening", "STATE", "GAPS")
        assert terminal.screen.text.count("listening") >= 2
        assert terminal.fits()
        terminal.press("q")

        assert terminal.status(AT_ONCE) == 0


def test_resized_window_is_filled_and_not_more(dsn: str) -> None:
    names = [f"channel_{number:02}" for number in range(30)]
    with top(*names, dsn=dsn, columns=120, lines=50) as terminal:
        terminal.shows("channel_29", "q quit")
        assert terminal.fits()
        for columns, lines in ((60, 12), (20, 4), (1, 1), (90, 20)):
            terminal.resize(columns, lines)
            wait_until(terminal.fits, why=f"it never fitted into {columns} by {lines}")
        terminal.shows("channel_00", "more channels", "q quit")
        assert "channel_29" not in terminal.screen.text
        terminal.press("q")

        assert terminal.status(AT_ONCE) == 0
        assert terminal.is_restored


def test_new_size_is_drawn_at_once(dsn: str) -> None:
    with top("--interval", "3600", dsn=dsn) as terminal:
        terminal.shows("q quit")
        frames = terminal.raw.count("\x1b[H")
        terminal.resize(70, 10)
        wait_until(lambda: terminal.raw.count("\x1b[H") > frames)
        terminal.press("q")

        assert terminal.status(AT_ONCE) == 0


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_signal_restores_the_terminal(dsn: str, number: signal.Signals, status: int) -> None:
    with top("orders", dsn=dsn) as terminal:
        terminal.shows("listening")
        terminal.process.send_signal(number)

        assert terminal.status(AT_ONCE) == status
        wait_until(lambda: terminal.is_restored)
    assert "Traceback" not in terminal.raw


def test_terminal_that_goes_away_ends_it_without_a_complaint(dsn: str, tmp_path: Path) -> None:
    main, side = pty.openpty()
    with (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(
            [*TAKING_THE_TERMINAL, *PGSIGNALS, "top", *QUICK, "orders"],
            stdin=side,
            stdout=side,
            stderr=err,
            start_new_session=True,
            env=environment(dsn, TERM="xterm"),
        )
    try:
        os.close(side)
        shown = b""
        while b"q quit" not in shown:
            shown += os.read(main, 65536)
        os.close(main)  # as a broken connection of SSH does

        assert process.wait(AT_ONCE) in (0, 129)  # the end is seen first, or SIGHUP
        assert (tmp_path / "err").read_bytes() == b""
    finally:
        process.kill()
        process.wait()


def test_ctrl_c_of_the_terminal_ends_it(dsn: str) -> None:
    with top("orders", dsn=dsn) as terminal:
        terminal.shows("listening")
        terminal.press("\x03")

        assert terminal.status(AT_ONCE) == 130
        wait_until(lambda: terminal.is_restored)


def test_ctrl_z_gives_the_terminal_back_until_it_goes_on(dsn: str) -> None:
    with top("orders", dsn=dsn) as terminal:
        terminal.shows("listening")
        terminal.press("\x1a")
        wait_until(lambda: stopped_by_the_terminal(terminal.process.pid))
        wait_until(lambda: terminal.is_restored)
        go_on(terminal.process.pid)
        wait_until(lambda: not terminal.is_restored)
        terminal.shows("listening")
        terminal.press("q")

        assert terminal.status(AT_ONCE) == 0
        assert terminal.is_restored


def test_exception_restores_the_terminal(dsn: str) -> None:
    program = (
        "import sys; from pgsignals.cli import _screen, main; "
        "_screen.sparkline = None; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "top", "orders"]
    with Terminal(command, environment(dsn, PYTHONPATH=str(ROOT))) as terminal:
        assert terminal.status() == 1
        wait_until(lambda: terminal.is_restored)
        wait_until(lambda: "TypeError" in terminal.raw)
        left = terminal.raw.rfind("\x1b[?1049l")
        assert terminal.raw.find("Traceback") > left  # where it can be read


def test_top_shows_a_loss_and_a_gap(proxied: str, proxy: Proxy, channel: str) -> None:
    with top(channel, dsn=proxied) as terminal:
        terminal.shows("listening")
        proxy.refuse()
        proxy.cut()
        terminal.shows("lost", "lost (ended)")
        proxy.accept()
        terminal.shows("listening again", "gap (reconnect)")
        terminal.press("q")

        assert terminal.status(AT_ONCE) == 0


def test_several_databases_have_a_column(dsn: str, postgres: Postgres, channel: str) -> None:
    other = postgres.dsn_for("template1")
    with top(channel, "--dsn", dsn, "--dsn", other, dsn=NOWHERE, columns=140) as terminal:
        terminal.shows("CHANNEL", "/postgres", "/template1")
        assert terminal.screen.text.count("DATABASE") == 2
        terminal.press("q")

        assert terminal.status(AT_ONCE) == 0


def test_terminal_that_knows_no_utf_8_gets_none_of_ours(
    dsn: str, admin: Admin, channel: str
) -> None:
    with top(channel, dsn=dsn, PYTHONIOENCODING="ascii") as terminal:
        terminal.shows("listening")
        admin.flood(channel, 20)
        terminal.shows("@")
        terminal.press("q")

        assert terminal.status(AT_ONCE) == 0
    assert terminal.raw.isascii()


def test_colours_are_left_out_where_they_are_not_wanted(dsn: str) -> None:
    with top("orders", dsn=dsn, NO_COLOR="1") as terminal:
        terminal.shows("listening")
        terminal.press("q")
        assert terminal.status(AT_ONCE) == 0
    assert "\x1b[32m" not in terminal.raw


def test_terminal_that_cannot_be_drawn_on_gets_lines(dsn: str) -> None:
    with top("orders", "--timeout", "0.3", dsn=dsn, TERM="dumb") as terminal:
        assert terminal.status() == 0
        wait_until(lambda: "\ttotal 0" in terminal.raw)
    assert "\x1b" not in terminal.raw


def test_error_of_the_start_is_seen(dsn: str) -> None:
    with top("orders", dsn=NOWHERE) as terminal:
        assert terminal.status(AT_ONCE) == 1
        wait_until(lambda: "pgsignals: " in terminal.raw)
    assert "\x1b[?1049h" not in terminal.raw
    assert "hush" not in terminal.raw


def test_without_rich_it_says_how_to_install_it(dsn: str) -> None:
    program = (
        "import sys; sys.modules['rich'] = None; "
        "from pgsignals.cli import main; sys.exit(main(['top', 'orders']))"
    )
    with Terminal(
        [sys.executable, "-c", program], environment(dsn, PYTHONPATH=str(ROOT))
    ) as terminal:
        assert terminal.status() == 1
        wait_until(lambda: "pip install 'pgsignals-reactor[cli]'" in terminal.raw)


# -- elsewhere -----------------------------------------------------------------------------------


def test_redirected_it_prints_lines(start: Start, admin: Admin, channel: str) -> None:
    command = start("top", channel, *QUICK)
    wait_until(lambda: command.out.count("\n") > 1)
    admin.notify(channel, "\x1b[31mred")
    wait_until(lambda: command.out.count("total 1\t\\x1b[31mred\n") > 2)
    command.process.send_signal(signal.SIGTERM)

    assert command.status(AT_ONCE) == 143
    database, row = (line.split("\t") for line in command.out.splitlines()[:2])
    assert database[2] == "listening"
    assert row[2:] == [channel, "0.0/s", "total 0", ""]
    assert "\x1b" not in command.out
    assert command.err == ""


def test_redirected_it_prints_json(start: Start, admin: Admin, channel: str) -> None:
    command = start("top", channel, "--json", *QUICK)
    wait_until(lambda: command.out.count("\n") > 1)
    admin.notify(channel, "é")
    wait_until(lambda: "u00e9" in command.out)
    command.process.send_signal(signal.SIGINT)
    assert command.status(AT_ONCE) == 130

    pictures = [json.loads(line) for line in command.out.splitlines()]
    assert pictures[-1]["databases"][0]["state"] == "listening"
    [row] = pictures[-1]["channels"]
    assert (row["channel"], row["total"], row["payload"]) == (channel, 1, "é")
    assert sum(picture["channels"][0]["per_second"] > 0 for picture in pictures) == 1


def test_timeout_and_a_closed_pipe_end_it(start: Start, dsn: str) -> None:
    assert start("top", "--timeout", "0.3", *QUICK).status() == 0

    with subprocess.Popen(
        [*PGSIGNALS, "top", *QUICK], stdout=subprocess.PIPE, env=environment(dsn)
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(AT_ONCE) == 0


def test_no_server_is_one_line(start: Start) -> None:
    command = start("top", "orders", url=NOWHERE)

    assert command.status() == 1
    assert "hush" not in one_line(command.err)


# -- the picture of the documentation ------------------------------------------------------------


@hangs_fail
def test_picture_can_be_made_again(tmp_path: Path) -> None:
    tool("tmux")
    picture = tmp_path / "top.svg"
    done = subprocess.run(
        [sys.executable, "docs/record.py", "top", "--seconds", "2", "--output", str(picture)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
    )

    assert done.stdout + done.stderr == ""
    assert done.returncode == 0
    assert words_of(picture) & words_of(ROOT / "docs" / "top.svg") >= {"CHANNEL", "listening"}


def words_of(picture: Path) -> set[str]:
    """All words of a picture."""
    texts = [element.text or "" for element in ElementTree.parse(picture).iter(f"{SVG}text")]
    return set(" ".join(texts).replace("\xa0", " ").split())
