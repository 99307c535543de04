"""The command line, in processes of its own, with a real server."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgsignals import cli
from pgsignals.embedded import Postgres
from tests.support.admin import Admin
from tests.support.commands import (
    NOWHERE,
    PGSIGNALS,
    ROOT,
    Start,
    commands,
    environment,
    numbers,
    one_line,
)
from tests.support.waiting import AT_ONCE, LONG, PATIENCE, wait_until


@pytest.fixture
def start(dsn: str, tmp_path: Path) -> Iterator[Start]:
    """Starts commands, by default with the server of the run as DATABASE_URL."""
    with commands(dsn, tmp_path) as start:
        yield start


# -- the command line ----------------------------------------------------------------------------


def test_version_is_name_and_number(start: Start) -> None:
    command = start("--version", url=NOWHERE)

    assert command.status() == 0
    assert command.out == f"pgsignals {metadata.version('pgsignals-reactor')}\n"
    assert command.err == ""


@pytest.mark.parametrize(
    ("arguments", "example"),
    [
        (["--help"], "pgsignals listen orders stock"),
        (["demo", "--help"], "pgsignals demo --seconds 60"),
        (["listen", "--help"], "pgsignals listen orders --count 1 --timeout 60"),
        (["notify", "--help"], "date | pgsignals notify orders -"),
        (["doctor", "--help"], "pgsignals doctor --json | jq"),
        (["top", "--help"], "pgsignals top orders --json | jq"),
        (["run", "--help"], "pgsignals run shop.handlers --log json --metrics 9187"),
        (["bench", "--help"], "pgsignals bench --size 2000"),
        (["completion", "--help"], "bash, in ~/.bashrc"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_help_teaches_by_example(start: Start, arguments: list[str], example: str) -> None:
    command = start(*arguments, url=NOWHERE)

    assert command.status() == 0
    assert f"\n  {example}" in command.out
    assert "Exit status: 0" in command.out or "DATABASE_URL" in command.out
    assert command.err == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["shout"],
        ["listen"],
        ["listen", ""],
        ["listen", "*"],
        ["listen", "orders", "x" * 64],
        ["listen", "\udcff"],
        ["listen", "orders", "--count", "0"],
        ["listen", "orders", "--count", "some"],
        ["listen", "orders", "--timeout", "-1"],
        ["listen", "orders", "--timeout", "nan"],
        ["listen", "orders", "--tim", "1"],
        ["notify"],
        ["notify", "x" * 64],
        ["notify", "orders", "é" * 4000],
        ["notify", "orders", "\udcff"],
        ["notify", "orders", "1", "2\x1b[31m\n"],
        ["demo", "--seconds", "0"],
        ["demo", "--seconds", "inf"],
        ["doctor", "orders"],
        ["doctor", "--timeout", "0"],
        ["top", "*"],
        ["top", "--interval", "0"],
        ["run"],
        ["run", "x", "--workers", "0"],
        ["run", "x", "--log", "xml"],
        ["run", "x", "--metrics", "http"],
        ["run", "x", "--metrics", "65536"],
        ["run", "x", "--metrics", "localhost:"],
        ["bench", "--seconds", "61"],
        ["bench", "--size", "8000"],
        ["bench", "--size", "19"],
        ["completion", "tcsh"],
    ],
    ids=lambda arguments: ascii(" ".join(arguments))[1:30] or "nothing",
)
def test_misuse_is_one_line_and_status_2_before_anything_is_opened(
    start: Start, arguments: list[str]
) -> None:
    command = start(*arguments, url=NOWHERE)

    assert command.status() == 2
    assert one_line(command.err).removesuffix("\n").isprintable()
    assert command.out == ""


def test_no_command_prints_the_help(start: Start) -> None:
    command = start(url=NOWHERE)

    assert command.status() == 2
    assert command.out == ""
    assert "\n  pgsignals listen orders stock" in command.err


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["lisen", "orders"], "listen"),
        (["docter"], "doctor"),
        (["run", "x", "--log", "jsn"], "json"),
        (["completion", "zhs"], "zsh"),
    ],
)
def test_word_that_is_nearly_right_is_suggested(
    start: Start, arguments: list[str], meant: str
) -> None:
    command = start(*arguments, url=NOWHERE)

    assert command.status() == 2
    assert f"; did you mean {meant}?" in one_line(command.err)


def test_word_that_is_like_none_is_not_suggested(start: Start) -> None:
    command = start("shout", url=NOWHERE)

    assert command.status() == 2
    assert "did you mean" not in command.err


@pytest.mark.parametrize("arguments", [["listen", "orders"], ["notify", "orders"], ["bench"]])
def test_error_without_any_setting_says_so(start: Start, arguments: list[str]) -> None:
    command = start(*arguments, url=None, PGHOST="127.0.0.1", PGPORT="1")

    assert command.status() == 1
    assert "neither --dsn nor DATABASE_URL is set" in one_line(command.err)
    assert "libpq's own variables" in command.err


def test_error_with_a_setting_does_not_say_that_there_is_none(start: Start) -> None:
    for command in (start("notify", "orders", url=NOWHERE), start("notify", "x", "--dsn", NOWHERE)):
        assert command.status() == 1
        assert "DATABASE_URL" not in one_line(command.err)


@pytest.mark.parametrize(
    "arguments",
    [["listen", "orders"], ["notify", "orders"], ["demo", "--dsn", NOWHERE]],
    ids=lambda arguments: arguments[0],
)
def test_no_server_is_one_line_and_status_1(start: Start, arguments: list[str]) -> None:
    command = start(*arguments, url=NOWHERE)

    assert command.status() == 1
    assert "127.0.0.1" in one_line(command.err)
    assert "hush" not in command.err


def test_connection_string_that_cannot_be_read_is_not_repeated(start: Start) -> None:
    command = start("listen", "orders", "--dsn", "passwort=hush")

    assert command.status() == 1
    assert "hush" not in one_line(command.err)


def test_option_wins_over_the_environment(start: Start, dsn: str) -> None:
    assert start("notify", "orders", "--dsn", dsn, url=NOWHERE).status() == 0
    assert start("notify", "orders", "--dsn", NOWHERE).status() == 1


def test_database_url_wins_over_the_variables_of_libpq(start: Start) -> None:
    assert start("notify", "orders", PGPORT="1").status() == 0
    assert start("notify", "orders", url=NOWHERE, PGPORT="1").status() == 1


@pytest.mark.parametrize("url", [None, ""], ids=["not set", "empty"])
def test_without_option_and_database_url_libpq_decides(
    start: Start, dsn: str, url: str | None
) -> None:
    names = {"dbname": "PGDATABASE"}
    parts = conninfo_to_dict(dsn)
    libpq = {names.get(key, f"PG{key.upper()}"): str(value) for key, value in parts.items()}

    assert start("notify", "orders", url=url, **libpq).status() == 0
    assert start("notify", "orders", url=url, **libpq | {"PGPORT": "1"}).status() == 1


def test_what_one_command_needs_is_not_loaded_for_the_others() -> None:
    program = (
        "import sys; from pgsignals import cli; cli.parser(); "
        "print({'rich', 'prometheus_client', 'http'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout == "set()\n"


def documented() -> dict[str, str]:
    """The sections of docs/cli.md by the commands that they are about."""
    text = (ROOT / "docs" / "cli.md").read_text("utf-8")
    sections = re.split(r"^## (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(sections[1::2], sections[2::2], strict=True))


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Those of the commands."""
    for action in cli.parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("there are no commands")


@pytest.mark.parametrize("name", parsers())
def test_command_is_documented(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    parser = parsers()[name]
    section = documented()[name]
    usage = " ".join(parser.format_usage().split()).removeprefix("usage: ")

    assert f"**Synopsis:** `{usage}`" in section
    assert "**Exit status:** 0 " in section
    assert "```sh\npgsignals " in section
    for option in re.findall(r"\[(--[^]]*(?:\](?:PORT|(?=\])))?)\]", usage):
        assert f"| `{option}` |" in section


# -- listen --------------------------------------------------------------------------------------


def test_listen_prints_each_notification_at_once(
    start: Start, admin: Admin, new_channel: Callable[[], str]
) -> None:
    first, second = new_channel(), new_channel()
    command = start("listen", first, second)
    command.until(f"listening to {first}, {second} on 127.0.0.1")

    admin.notify(first, "42 paid")
    wait_until(lambda: command.out == f"{first}\t42 paid\n")
    admin.notify(second, "", "é 漢 😀 {\\n}")
    wait_until(lambda: command.out.endswith(f"\n{second}\t\n{second}\té 漢 😀 {{\\n}}\n"))

    assert command.process.poll() is None
    assert command.err.count("\n") == 1


def test_listen_prints_json(start: Start, admin: Admin, channel: str) -> None:
    payloads = ["", '{"id": 42}', "\x1b[31m\n\x9b\u202e\x7f é"]
    command = start("listen", channel, "--json", "--count", "3")
    command.until("listening")
    admin.notify(channel, *payloads)

    assert command.status() == 0
    assert command.out.isascii()
    assert command.out.replace("\n", "").isprintable()
    assert [json.loads(line) for line in command.out.splitlines()] == [
        {"channel": channel, "payload": payload, "pid": admin.pid} for payload in payloads
    ]


def test_listen_shows_control_characters_escaped(start: Start, admin: Admin, channel: str) -> None:
    shown = {
        "\x1b]0;owned\x07": r"\x1b]0;owned\x07",
        "two\nlines\r\tand a tab": r"two\nlines\r\tand a tab",
        "\x7f\x80\x9b31m": r"\x7f\x80\x9b31m",  # DEL and C1
        "\u202a\u202b\u202c\u202d\u202e": r"\u202a\u202b\u202c\u202d\u202e",  # bidi overrides
        "\u2066\u2067\u2068\u2069": r"\u2066\u2067\u2068\u2069",
        "\u200b\ufeff\u2028\U000e0041": r"\u200b\ufeff\u2028\U000e0041",  # invisible
        "plain, é 漢 😀 \\x1b": "plain, é 漢 😀 \\x1b",
    }
    command = start("listen", channel, "--count", str(len(shown)))
    command.until("listening")
    admin.notify(channel, *shown)

    assert command.status() == 0
    assert command.out.split("\n") == [*(f"{channel}\t{text}" for text in shown.values()), ""]


def test_listen_shows_channel_names_escaped(start: Start, admin: Admin, channel: str) -> None:
    name = f"{channel}\x1b[31m\u202e\n"
    command = start("listen", name, "--count", "1")
    command.until("listening")
    admin.notify(name)

    assert command.status() == 0
    assert command.out == f"{channel}\\x1b[31m\\u202e\\n\t\n"
    assert one_line(command.err).startswith(
        f"pgsignals: listening to {channel}\\x1b[31m\\u202e\\n on "
    )


def test_listen_shows_bytes_that_are_no_text_escaped(
    start: Start, admin: Admin, postgres: Postgres, channel: str
) -> None:
    name = f"ascii_{next(numbers)}"
    admin.execute(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    dsn = postgres.dsn_for(name)
    command = start("listen", channel, "--count", "1", "--dsn", dsn)
    command.until("listening")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"NOTIFY {channel}, E'caf\\xe9'".encode())

    assert command.status() == 0
    assert command.out == f"{channel}\tcaf\\udce9\n"
    admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_listen_escapes_what_the_output_cannot_encode(
    start: Start, admin: Admin, channel: str
) -> None:
    command = start("listen", channel, "--count", "1", PYTHONIOENCODING="ascii")
    command.until("listening")
    admin.notify(channel, "é")

    assert command.status() == 0
    assert command.out == f"{channel}\t\\xe9\n"


def test_listen_ends_after_count(start: Start, admin: Admin, channel: str) -> None:
    command = start("listen", channel, "--count", "2", "--timeout", str(LONG))
    command.until("listening")
    admin.flood(channel, 5)

    assert command.status(AT_ONCE) == 0
    assert command.out == f"{channel}\t1\n{channel}\t2\n"


def test_listen_ends_after_timeout(start: Start, admin: Admin, channel: str) -> None:
    command = start("listen", channel, "--timeout", "2")
    command.until("listening")
    admin.notify(channel, "in time")

    assert command.status() == 0
    assert command.out == f"{channel}\tin time\n"


def test_listen_that_does_not_reach_its_count_in_time_fails(start: Start, channel: str) -> None:
    command = start("listen", channel, "--timeout", "0", "--count", "1")

    assert command.status() == 1
    assert "listening" in one_line(command.err)


def test_listen_survives_a_restart_and_says_so_once(start: Start, channel: str) -> None:
    with Postgres() as server:
        command = start("listen", channel, "--json", url=server.dsn)
        command.until("listening to")
        server.restart()
        command.until("gap (reconnect)")
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute(f"NOTIFY {channel}, 'after'")
        wait_until(lambda: command.out.endswith("\n"))
        server.stop()
        command.until("lost", count=2)
        command.process.send_signal(signal.SIGINT)

        assert command.status(AT_ONCE) == 130
    assert [json.loads(line)["payload"] for line in command.out.splitlines()] == ["after"]
    says = [line.removeprefix("pgsignals: ").split(" ")[0] for line in command.err.splitlines()]
    assert says == ["listening", "lost", "listening", "gap", "lost"]
    assert "listening again to" in command.err
    assert "57P01" in command.err
    assert "may be missing" in command.err


# -- how listen ends -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_signal_ends_listen_quietly(
    start: Start, channel: str, number: signal.Signals, status: int
) -> None:
    command = start("listen", channel)
    command.until("listening")
    command.process.send_signal(number)
    while command.process.poll() is None:  # as timeout(1) does, and impatient people
        command.process.send_signal(number)
        time.sleep(0.005)

    assert command.status(AT_ONCE) == status
    assert command.out == ""
    assert "listening" in one_line(command.err)


@contextlib.contextmanager
def piped(channel: str, dsn: str) -> Iterator[subprocess.Popen[bytes]]:
    """Listens, and has said so, with its output in pipes."""
    with subprocess.Popen(
        [*PGSIGNALS, "listen", channel],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(dsn),
    ) as process:
        try:
            assert process.stderr is not None
            assert b"listening" in process.stderr.readline()
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("lines", [0, 1])
def test_closed_pipe_ends_listen_quietly_and_at_once(
    admin: Admin, dsn: str, channel: str, lines: int
) -> None:
    with piped(channel, dsn) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for number in range(lines):  # as `| head` does
            admin.notify(channel, str(number))
            assert process.stdout.readline() == f"{channel}\t{number}\n".encode()
        process.stdout.close()

        assert process.wait(AT_ONCE) == 0
        assert process.stderr.read() == b""


def test_signal_ends_listen_although_nobody_reads(admin: Admin, dsn: str, channel: str) -> None:
    with piped(channel, dsn) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        admin.flood(channel, 100, size=7000)  # more than a pipe holds
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)

        assert process.wait(AT_ONCE) == 130
        assert process.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_output_that_cannot_be_written_is_one_line_and_status_1(
    start: Start, admin: Admin, channel: str
) -> None:
    command = start("listen", channel, out=Path("/dev/full"))
    command.until("listening")
    admin.notify(channel)

    assert command.status(AT_ONCE) == 1
    assert command.err.count("\n") == 2
    assert "cannot write" in command.err


# -- notify --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "stdin", "payload"),
    [
        ([], b"", ""),
        (["42 paid"], b"ignored", "42 paid"),
        (["-5"], b"", "-5"),
        (["--", "--urgent"], b"", "--urgent"),
        (["-"], b"", ""),
        (["-"], b"caf\xc3\xa9", "café"),
        (["-"], b" one\n", " one"),
        (["-"], b"two\n\n", "two\n"),
        (["-"], b"\r\n", "\r"),
        (["-"], b"x" * 7999 + b"\n", "x" * 7999),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_notify_sends_its_payload(
    start: Start, dsn: str, channel: str, arguments: list[str], stdin: bytes, payload: str
) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"LISTEN {channel}")
        command = start("notify", channel, *arguments, stdin=stdin)

        assert command.status() == 0
        assert command.out == command.err == ""
        received = list(connection.notifies(timeout=PATIENCE, stop_after=1))
    assert [(notify.channel, notify.payload) for notify in received] == [(channel, payload)]


@pytest.mark.parametrize(
    "stdin", [b"x" * 8000, b"\xff", b"a\0b"], ids=["too long", "no UTF-8", "NUL"]
)
def test_payload_from_stdin_that_will_not_do_is_misuse(start: Start, stdin: bytes) -> None:
    command = start("notify", "orders", "-", stdin=stdin, url=NOWHERE)

    assert command.status() == 2
    assert "payload" in one_line(command.err)


def test_what_the_server_refuses_is_one_line_and_status_1(start: Start, dsn: str) -> None:
    command = start("notify", "orders", "--dsn", f"{dsn} options='-c statement_timeout=x'")

    assert command.status() == 1
    assert "statement_timeout" in one_line(command.err)
