"""``pgsignals run``: handlers as a service, its log, its metrics and its health."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pgsignals.cli import _metrics
from pgsignals.embedded import Postgres
from pgsignals.reactor import Reactor
from pgsignals.testing import Proxy
from tests.programs.fault_rig import free_port
from tests.support.admin import Admin, stopped
from tests.support.commands import NOWHERE, ROOT, Command, Start, commands, environment
from tests.support.waiting import AT_ONCE, wait_until

QUICK = ["--probe-interval", "0.5", "--probe-timeout", "1"]

HANDLERS = """
    import sys, time
    from pgsignals import on_channel

    @on_channel("{channel}")
    def handle(db, notification):
        if notification.payload == "fail":
            raise ValueError("no")
        if notification.payload.startswith("sleep"):
            time.sleep(float(notification.payload.removeprefix("sleep")))
        print("handled", notification.payload, flush=True)
"""


@pytest.fixture
def start(dsn: str, tmp_path: Path) -> Iterator[Start]:
    with commands(dsn, tmp_path) as start:
        yield start


@pytest.fixture
def folder(tmp_path: Path, channel: str) -> Path:
    """A directory with a module ``handlers``."""
    folder = tmp_path / "project"
    folder.mkdir()
    write(folder, "handlers", HANDLERS.replace("{channel}", channel))
    return folder


def write(folder: Path, module: str, text: str) -> None:
    (folder / f"{module}.py").write_text(dedent(text), "utf-8")


def ask(port: int, path: str) -> tuple[int, str]:
    """The status of an answer, and its text; 0 when nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=AT_ONCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except (urllib.error.URLError, ConnectionError):
        return 0, ""


def samples(port: int) -> dict[tuple[str, str], float]:
    """What is measured: by the name, and the state or the database's name without its host."""
    _, text = ask(port, "/metrics")
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sample.labels
            label = labels.get("pgsignals_state", labels.get("database", "").rpartition("/")[2])
            found[sample.name, label] = sample.value
    return found


def log_of(command: Command) -> list[dict[str, Any]]:
    """The lines of a log in JSON."""
    return [json.loads(line) for line in command.err.splitlines()]


# -- its life ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_service_handles_and_drains(
    start: Start, folder: Path, admin: Admin, channel: str, number: signal.Signals
) -> None:
    command = start("run", "handlers", cwd=folder)
    command.until("listening, backend")
    sent = ["first", "sleep1", "second", "third"]
    # Of one transaction, so they come in one piece: where the first is, the others are.
    admin.execute("SELECT pg_notify(%s, p) FROM unnest(%s::text[]) AS p", channel, sent)
    wait_until(lambda: command.out == "handled first\n")
    command.process.send_signal(number)

    assert command.status() == (129 if number == signal.SIGHUP else 0)
    assert command.out.splitlines() == [f"handled {payload}" for payload in sent]


def test_stop_that_runs_out_of_time_fails(
    start: Start, folder: Path, admin: Admin, channel: str
) -> None:
    command = start("run", "handlers", "--stop-timeout", "0.2", cwd=folder)
    command.until("listening, backend")
    admin.notify(channel, "begin", "sleep30", "never")
    wait_until(lambda: command.out == "handled begin\n")
    command.process.send_signal(signal.SIGTERM)

    assert command.status(AT_ONCE) == 1
    assert "the time ran out with" in command.err
    assert "never" not in command.out


def test_several_databases_and_workers(
    start: Start, folder: Path, admin: Admin, dsn: str, postgres: Postgres, channel: str
) -> None:
    other = postgres.dsn_for("template1")
    dsns = ["--dsn", dsn, "--dsn", other]
    command = start("run", "handlers", "--workers", "2", *dsns, cwd=folder, url=NOWHERE)
    command.until("listening, backend", count=2)
    there = Admin(other)
    there.notify(channel, "there")
    there.close()
    admin.notify(channel, "here")
    wait_until(lambda: set(command.out.splitlines()) == {"handled here", "handled there"})
    command.process.send_signal(signal.SIGTERM)

    assert command.status(AT_ONCE) == 0


def test_reactor_of_the_module_runs(start: Start, folder: Path, admin: Admin, channel: str) -> None:
    write(
        folder,
        "shop",
        f"""
        import os
        from pgsignals import Reactor

        class app:
            reactor = Reactor(os.environ["DATABASE_URL"])

        @app.reactor.on_channel("{channel}")
        def handle(db, notification):
            print(notification.payload, flush=True)
        """,
    )
    command = start("run", "shop:app.reactor", cwd=folder)
    command.until("listening, backend")
    admin.notify(channel, "heard")
    wait_until(lambda: command.out == "heard\n")
    command.process.send_signal(signal.SIGTERM)

    assert command.status(AT_ONCE) == 0


def test_reactor_that_cannot_go_on_fails(start: Start, folder: Path, admin: Admin) -> None:
    write(
        folder,
        "wrapped",
        """
        import os
        import psycopg
        from pgsignals import Database, Reactor

        connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
        reactor = Reactor(Database.wrap(connection), channels=["a"])
        print(connection.info.backend_pid, flush=True)
        """,
    )
    command = start("run", "wrapped:reactor", cwd=folder)
    command.until("listening, backend")
    admin.kill(int(command.out))

    assert command.status() == 1
    assert "CRITICAL" in command.err
    assert "57P01" in command.err


# -- what cannot be run --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nowhere", "no module nowhere"),
        ("handlers.py", "did you mean handlers?"),
        ("handlers:reactor", "handlers has no reactor"),
        ("handlers:handle", "handlers:handle is a function, not a Reactor"),
        ("empty", "empty registers no handlers"),
    ],
)
def test_wrong_target_is_one_line(start: Start, folder: Path, target: str, said: str) -> None:
    write(folder, "empty", "")
    command = start("run", target, cwd=folder, url=NOWHERE)

    assert command.status() == 1
    assert said in command.err
    assert command.err.count("\n") == 1


@pytest.mark.parametrize("text", ["1 / 0", "import nowhere", "import handlers.nowhere"])
def test_module_that_fails_shows_its_traceback(start: Start, folder: Path, text: str) -> None:
    write(folder, "broken", text)
    command = start("run", "broken", cwd=folder, url=NOWHERE)

    assert command.status() == 1
    assert "Traceback" in command.err
    assert 'broken.py", line 1' in command.err


def test_no_server_at_the_start_fails(start: Start, folder: Path) -> None:
    command = start("run", "handlers", "--log", "json", cwd=folder, url=NOWHERE)

    assert command.status() == 1
    [line] = log_of(command)
    assert line["level"] == "critical"
    assert "127.0.0.1" in line["message"]
    assert "hush" not in command.err


def test_dsn_for_a_reactor_of_the_module_is_misuse(start: Start, folder: Path, dsn: str) -> None:
    command = start("run", "handlers:reactor", "--dsn", dsn, cwd=folder)

    assert command.status() == 2
    assert "--dsn" in command.err


# -- the log -------------------------------------------------------------------------------------


def test_log_is_json_a_line_each(start: Start, folder: Path, admin: Admin, channel: str) -> None:
    command = start("run", "handlers", "--log", "json", cwd=folder)
    command.until("listening, backend")
    admin.notify(channel, "fail", "secret\n")
    wait_until(lambda: "handled secret" in command.out)
    command.process.send_signal(signal.SIGTERM)

    assert command.status(AT_ONCE) == 0
    lines = log_of(command)
    assert {"time", "level", "logger", "message"} == set(lines[0])
    [failure] = [line for line in lines if line["level"] == "error"]
    assert "ValueError: no" in failure["exception"]
    assert "secret" not in command.err


def test_log_level_leaves_lines_out(start: Start, folder: Path, admin: Admin, channel: str) -> None:
    command = start("run", "handlers", "--log-level", "error", cwd=folder)

    def handles() -> bool:
        admin.notify(channel, "on")
        return "handled on" in command.out

    wait_until(handles)
    command.process.send_signal(signal.SIGTERM)

    assert command.status(AT_ONCE) == 0
    assert command.err == ""


# -- metrics and health --------------------------------------------------------------------------


def test_metrics_are_those_of_the_status(
    start: Start, folder: Path, admin: Admin, channel: str
) -> None:
    port = free_port()
    command = start("run", "handlers", "--metrics", str(port), *QUICK, cwd=folder)
    command.until("listening, backend")
    admin.notify(channel, "one", "fail", "two")
    wait_until(lambda: "handled two" in command.out)
    wait_until(lambda: ("pgsignals_probe_seconds", "postgres") in samples(port))

    first = samples(port)
    assert first["pgsignals_running", ""] == 1
    assert first["pgsignals_backlog", ""] == 0
    assert first["pgsignals_received_total", "postgres"] == 3
    assert first["pgsignals_dispatched_total", "postgres"] == 3
    assert first["pgsignals_failed_total", "postgres"] == 1
    assert first["pgsignals_dropped_total", "postgres"] == 0
    assert first["pgsignals_gaps_total", "postgres"] == 0
    assert first["pgsignals_reconnects_total", "postgres"] == 0
    assert first["pgsignals_queue_usage_ratio", "postgres"] >= 0
    assert first["pgsignals_last_received_timestamp_seconds", "postgres"] > 1e9
    assert first["pgsignals_state", "listening"] == 1
    assert first["pgsignals_state", "lost"] == 0
    assert first["process_open_fds", ""] > 0
    assert samples(port)["pgsignals_received_total", "postgres"] == 3  # nothing counts twice
    assert ask(port, "/")[0] == 404
    command.process.send_signal(signal.SIGTERM)

    assert command.status(AT_ONCE) == 0
    assert "GET" not in command.err


def test_health_is_red_while_the_network_is_frozen(
    start: Start, folder: Path, proxied: str, proxy: Proxy, dsn: str
) -> None:
    port = free_port()
    dsns = ["--dsn", dsn, "--dsn", proxied]
    command = start("run", "handlers", "--metrics", str(port), *QUICK, *dsns, cwd=folder)
    command.until("listening, backend", count=2)
    wait_until(lambda: ask(port, "/healthz")[0] == 200)
    proxy.freeze()
    wait_until(lambda: ask(port, "/healthz")[0] == 503)

    told = json.loads(ask(port, "/healthz")[1])
    assert told["healthy"] is False
    assert told["running"] is True
    here, there = told["databases"]
    assert here["state"] == "listening"
    assert there["state"] in ("lost", "connecting")
    assert there["name"].endswith(f":{proxy.port}/postgres")
    assert there["last_error"]

    proxy.thaw()
    proxy.cut()
    wait_until(lambda: ask(port, "/healthz")[0] == 200)
    assert samples(port)["pgsignals_reconnects_total", "postgres"] >= 1
    command.process.send_signal(signal.SIGTERM)
    assert command.status(AT_ONCE) == 0


def test_health_is_red_while_the_backend_stands_still(start: Start, folder: Path) -> None:
    port = free_port()
    with Postgres(tcp=True) as server:
        command = start(
            "run", "handlers", "--metrics", str(port), *QUICK, cwd=folder, url=server.dsn
        )
        command.until("listening, backend")
        wait_until(lambda: ask(port, "/healthz")[0] == 200)
        backend = int(command.err.partition("listening, backend ")[2].split()[0])
        with stopped(backend):
            wait_until(lambda: ask(port, "/healthz")[0] == 503)
        wait_until(lambda: ask(port, "/healthz")[0] == 200)
        server.stop()
        wait_until(lambda: ask(port, "/healthz")[0] == 503)
        server.start()
        wait_until(lambda: ask(port, "/healthz")[0] == 200)
        command.process.send_signal(signal.SIGTERM)

        assert command.status(AT_ONCE) == 0


def test_slow_question_does_not_keep_it_from_ending(start: Start, folder: Path) -> None:
    port = free_port()
    command = start("run", "handlers", "--metrics", f"localhost:{port}", cwd=folder)
    command.until("listening, backend")
    with socket.create_connection(("localhost", port)) as slow:
        slow.send(b"GET /metr")
        assert ask(port, "/healthz")[0] == 200
        command.process.send_signal(signal.SIGTERM)

        assert command.status(AT_ONCE) == 0


def test_port_that_is_taken_is_one_line(start: Start, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = start("run", "handlers", "--metrics", str(port), cwd=folder)

        assert command.status() == 1
    assert f"--metrics 127.0.0.1:{port}" in command.err
    assert "in use" in command.err
    assert "Traceback" not in command.err


def test_metrics_without_prometheus_client_say_how_to_install_it(folder: Path, dsn: str) -> None:
    program = (
        "import sys; sys.modules['prometheus_client'] = None; from pgsignals.cli import main; "
        "sys.exit(main(['run', 'handlers', '--metrics', '0']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=environment(dsn, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 1
    assert "pip install 'pgsignals-reactor[cli]'" in done.stderr


def test_databases_of_one_name_are_told_apart() -> None:
    reactor = Reactor(NOWHERE, NOWHERE, NOWHERE, "host=other dbname=shop")

    assert _metrics.names(reactor.status().databases) == [
        *("127.0.0.1:1/shop", "127.0.0.1:1/shop #2", "127.0.0.1:1/shop #3", "other:5432/shop")
    ]
    healthy, told = _metrics.health(reactor)
    assert not healthy
    assert not told["running"]
