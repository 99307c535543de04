"""What ``pgsignals listen`` does beside printing the notifications of one database."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgsignals import Database, Notification
from pgsignals.cli.listen import Runner
from pgsignals.embedded import Postgres
from pgsignals.testing import Proxy
from tests.support.admin import Admin, exists
from tests.support.commands import (
    NOWHERE,
    PGSIGNALS,
    Start,
    Terminal,
    commands,
    environment,
    one_line,
)
from tests.support.waiting import AT_ONCE, Background, wait_until


@pytest.fixture
def start(dsn: str, tmp_path: Path) -> Iterator[Start]:
    with commands(dsn, tmp_path) as start:
        yield start


# -- what is printed -----------------------------------------------------------------------------


def test_several_databases_are_told_apart(
    start: Start, admin: Admin, dsn: str, postgres: Postgres, channel: str
) -> None:
    other = postgres.dsn_for("template1")
    command = start("listen", channel, "--dsn", dsn, "--dsn", other, url=NOWHERE)
    as_json = start("listen", channel, "--json", "--dsn", dsn, "--dsn", other, url=NOWHERE)
    command.until("listening to", count=2)
    as_json.until("listening to", count=2)
    place = f"127.0.0.1:{postgres.port}"
    admin.notify(channel, "here")
    line = f"{place}/postgres\t{channel}\there\n"
    wait_until(lambda: command.out == line)
    with psycopg.connect(other, autocommit=True) as there:
        there.execute(f"NOTIFY {channel}, 'there'")
    wait_until(lambda: command.out == f"{line}{place}/template1\t{channel}\tthere\n")
    wait_until(lambda: as_json.out.count("\n") == 2)
    assert [json.loads(line)["database"] for line in as_json.out.splitlines()] == [
        *(f"{place}/postgres", f"{place}/template1")
    ]


@pytest.mark.parametrize("form", ["lines", "json"])
def test_timestamps_are_this_machines_time(
    start: Start, admin: Admin, channel: str, form: str
) -> None:
    options = ["--json"] if form == "json" else []
    command = start("listen", channel, "--timestamps", "--count", "1", *options)
    command.until("listening")
    before = datetime.now().astimezone() - timedelta(milliseconds=1)
    admin.notify(channel, "x")
    assert command.status() == 0
    after = datetime.now().astimezone()

    time, *rest = command.out.split("\t")
    if form == "json":
        time = json.loads(command.out)["time"]
    else:
        assert rest == [channel, "x\n"]
    assert before <= datetime.fromisoformat(time) <= after


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
    ids=str,
)
def test_colours_are_for_terminals_that_want_them(
    dsn: str, admin: Admin, channel: str, variables: dict[str, str], coloured: bool
) -> None:
    command = [*PGSIGNALS, "listen", channel, "--count", "1"]
    with Terminal(command, environment(dsn, **variables)) as terminal:
        wait_until(lambda: "listening" in terminal.raw)
        admin.notify(channel, "x\x1b[31m")
        assert terminal.status() == 0
        wait_until(lambda: "\tx\\x1b[31m" in terminal.raw)
        assert ("\x1b" in terminal.raw) is coloured


# -- --exec --------------------------------------------------------------------------------------


def test_exec_runs_a_command_for_each_in_order(
    start: Start, admin: Admin, postgres: Postgres, channel: str
) -> None:
    program = 'echo "$PGSIGNALS_CHANNEL $PGSIGNALS_DATABASE $PGSIGNALS_PID $(cat)"'
    command = start("listen", channel, "--count", "3", "--exec", f"sh -c '{program}'")
    command.until("listening")
    payloads = ["one", "$(touch owned); `id` é", "'three' \"four\""]
    admin.notify(channel, *payloads)

    assert command.status() == 0
    place = f"127.0.0.1:{postgres.port}/postgres"
    assert command.out.splitlines() == [
        f"{channel} {place} {admin.pid} {payload}" for payload in payloads
    ]


def test_exec_gives_the_payload_byte_by_byte(
    start: Start, admin: Admin, channel: str, tmp_path: Path
) -> None:
    target = tmp_path / "payload"
    payload = "\x1b[31m\r\né漢" + "x" * 7000 + "\n"
    command = start("listen", channel, "--count", "1", "--exec", f"tee {target}")
    command.until("listening")
    admin.notify(channel, payload)

    assert command.status() == 0
    assert target.read_bytes() == payload.encode()


def test_exec_needs_no_reader_of_the_payload(start: Start, admin: Admin, channel: str) -> None:
    command = start("listen", channel, "--count", "20", "--exec", "true")
    command.until("listening")
    admin.flood(channel, 20, size=7000)

    assert command.status() == 0
    assert command.err.count("\n") == 1


def test_without_shell_nothing_is_expanded(start: Start, admin: Admin, channel: str) -> None:
    command = start("listen", channel, "--count", "1", "--exec", "echo $HOME; false | 'a b'")
    command.until("listening")
    admin.notify(channel)

    assert command.status() == 0
    assert command.out == "$HOME; false | a b\n"


def test_with_shell_the_command_is_a_shells(start: Start, admin: Admin, channel: str) -> None:
    program = 'read line; echo "<$line>" | tr a-z A-Z'
    command = start("listen", channel, "--count", "1", "--shell", "--exec", program)
    command.until("listening")
    admin.notify(channel, "$(id) x")

    assert command.status() == 0
    assert command.out == "<$(ID) X>\n"


def test_failed_command_is_told_and_the_others_run(
    start: Start, admin: Admin, channel: str
) -> None:
    program = "read line; echo $line; [ $line != bad ] || exit 3; [ $line != worse ] || kill $$"
    command = start("listen", channel, "--count", "4", "--shell", "--exec", program)
    command.until("listening")
    admin.notify(channel, "good\n", "bad\n", "worse\n", "last\n")

    assert command.status() == 1
    assert command.out.split() == ["good", "bad", "worse", "last"]
    assert command.err.count("the --exec command ended with") == 2
    assert "status 3" in command.err
    assert "OS signal 15" in command.err


@pytest.mark.parametrize(
    "arguments",
    [["--exec", "no-such-program-here x"], ["--exec", ""], ["--exec", "'open"], ["--shell"]],
    ids=str,
)
def test_command_that_cannot_run_is_misuse(start: Start, arguments: list[str]) -> None:
    command = start("listen", "orders", *arguments, url=NOWHERE)

    assert command.status() == 2
    one_line(command.err)


def test_signal_ends_the_command_that_runs(
    start: Start, admin: Admin, channel: str, new_channel: Callable[[], str]
) -> None:
    command = start("listen", channel, "--shell", "--exec", "echo $$; exec sleep 60")
    command.until("listening")
    admin.notify(channel)
    wait_until(lambda: command.out.endswith("\n"))
    pid = int(command.out)
    command.process.send_signal(signal.SIGTERM)

    assert command.status(AT_ONCE) == 143
    wait_until(lambda: not exists(pid))


def test_signal_ends_the_command_that_runs_before_all_databases_listen(
    start: Start, admin: Admin, dsn: str, proxied: str, proxy: Proxy, channel: str
) -> None:
    proxy.freeze()
    command = start(
        *("listen", channel, "--dsn", dsn, "--dsn", proxied),
        *("--shell", "--exec", "echo $$; exec sleep 60"),
    )
    command.until("listening")
    admin.notify(channel)
    wait_until(lambda: command.out.endswith("\n"))
    pid = int(command.out)
    command.process.send_signal(signal.SIGTERM)

    assert command.status() == 143
    wait_until(lambda: not exists(pid))


def test_end_ends_the_command_that_is_just_being_started(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner(["sleep", "60"])

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            runner.end()  # the signal comes before the worker knows of the process

    monkeypatch.setattr(subprocess, "Popen", Popen)

    Background(runner.handle, Database(dsn), Notification("a", "1", 1)).result()


def test_end_of_the_time_ends_the_command_that_runs(
    start: Start, admin: Admin, channel: str
) -> None:
    program = "echo $$; exec sleep 60"
    command = start("listen", channel, "--timeout", "2", "--shell", "--exec", program)
    command.until("listening")
    admin.notify(channel)

    command.status(AT_ONCE)
    assert command.out.endswith("\n")
    pid = int(command.out)
    wait_until(lambda: not exists(pid))
