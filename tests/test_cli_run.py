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
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from pgsignals.cli import _metrics
from pgsignals.cli.run import may_recover
from pgsignals.embedded import Postgres
from pgsignals.errors import ConnectError
from pgsignals.reactor import Reactor
from pgsignals.testing import Proxy
from tests.programs.fault_rig import become_standby, free_port
from tests.support.admin import Admin, stopped
from tests.support.commands import NOWHERE, ROOT, Command, Start, commands, environment, one_line
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
    sent = ["begin", "sleep30", "never"]  # of one transaction: where the first is, the others are
    admin.execute("SELECT pg_notify(%s, p) FROM unnest(%s::text[]) AS p", channel, sent)
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
        ("handlers:handle", "handlers:handle must be a Reactor, not function"),
        ("empty", "empty registers no handlers"),
    ],
)
def test_wrong_target_is_one_line(start: Start, folder: Path, target: str, said: str) -> None:
    write(folder, "empty", "")
    command = start("run", target, cwd=folder, url=NOWHERE)

    assert command.status() == 1
    assert said in command.err
    assert command.err.count("\n") == 1


@pytest.mark.parametrize(
    "text", ["1 / 0", "import nowhere", "import handlers.nowhere", "def (", "import broken_too"]
)
def test_module_that_fails_shows_its_traceback(start: Start, folder: Path, text: str) -> None:
    write(folder, "broken", text)
    write(folder, "broken_too", "1 / 0")
    command = start("run", "broken", cwd=folder, url=NOWHERE)

    assert command.status() == 1
    assert 'broken.py", line 1' in command.err
    assert "importlib" not in command.err
    assert 'run.py"' not in command.err
    if "def" not in text:
        assert "Traceback" in command.err


@pytest.mark.parametrize("target", ["handlers:", ":reactor", ":", ""])
def test_target_without_a_name_is_misuse(start: Start, folder: Path, target: str) -> None:
    command = start("run", target, cwd=folder, url=NOWHERE)

    assert command.status() == 2
    assert "must be MODULE or MODULE:REACTOR" in one_line(command.err)


REACTORS = """
    from pgsignals import Reactor
    nothing = Reactor("host=127.0.0.1 port=1")
    deaf = Reactor("host=127.0.0.1 port=1", channels=["orders"])
    later = Reactor("host=127.0.0.1 port=1")

    @later.connected.connect
    def register(db, resumed): ...

    all_of_it = Reactor("host=127.0.0.1 port=1", channels=["orders"])

    @all_of_it.any_channel.connect
    def note(db, notification): ...
"""


def test_reactor_without_handlers_and_channels_is_refused(start: Start, folder: Path) -> None:
    write(folder, "reactors", REACTORS)
    command = start("run", "reactors:nothing", cwd=folder)

    assert command.status() == 1
    assert "registers no handlers, so it would never receive anything" in command.err
    assert command.err.count("\n") == 1


@pytest.mark.parametrize("name", ["deaf", "later"])
def test_reactor_that_may_register_handlers_later_is_warned_of(
    start: Start, folder: Path, name: str
) -> None:
    write(folder, "reactors", REACTORS)
    command = start("run", f"reactors:{name}", cwd=folder)

    assert command.status() == 1
    assert f"WARNING pgsignals.run: reactors:{name} registers no handlers" in command.err
    assert "Connection refused" in command.err


def test_reactor_with_receivers_of_any_channel_has_handlers(start: Start, folder: Path) -> None:
    write(folder, "reactors", REACTORS)
    command = start("run", "reactors:all_of_it", cwd=folder)

    assert command.status() == 1
    assert "channel orders: reactors.note\n" in command.err


def test_no_server_at_the_start_fails(start: Start, folder: Path) -> None:
    command = start("run", "handlers", "--log", "json", cwd=folder, url=NOWHERE)

    assert command.status() == 1
    *before, line = log_of(command)
    assert {one["logger"] for one in before} == {"pgsignals.run"}
    assert line["level"] == "critical"
    assert "127.0.0.1" in line["message"]
    assert "hush" not in command.err


@pytest.mark.parametrize(
    "option",
    [("--dsn", NOWHERE), ("--workers", "1"), ("--probe-interval", "10"), ("--probe-timeout", "5")],
    ids=lambda option: option[0],
)
def test_option_for_a_reactor_of_the_module_is_misuse(
    start: Start, folder: Path, option: tuple[str, str]
) -> None:
    command = start("run", "handlers:reactor", *option, cwd=folder)

    assert command.status() == 2
    assert option[0] in one_line(command.err)


def test_error_without_any_setting_says_so(start: Start, folder: Path) -> None:
    port = str(free_port())
    command = start("run", "handlers", cwd=folder, url=None, PGHOST="127.0.0.1", PGPORT=port)

    assert command.status() == 1
    assert "Connection refused" in command.err
    assert "neither --dsn nor DATABASE_URL is set" in command.err


# -- a database that is not there yet ------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False], ids=["--wait MODULE", "MODULE --wait"])
def test_wait_goes_on_until_the_server_is_there(start: Start, folder: Path, before: bool) -> None:
    with Postgres(tcp=True) as server:
        server.stop()
        arguments = ["--wait", "handlers"] if before else ["handlers", "--wait"]
        command = start("run", *arguments, cwd=folder, url=server.dsn)
        command.until("waiting, attempt 2")
        assert "Connection refused" in command.err
        server.start()
        command.until("listening, backend")
        command.process.send_signal(signal.SIGTERM)

        assert command.status(AT_ONCE) == 0
    assert server.password not in command.err


def test_wait_goes_on_until_the_database_is_created(
    start: Start, folder: Path, admin: Admin, postgres: Postgres
) -> None:
    command = start("run", "handlers", "--wait", "60", cwd=folder, url=postgres.dsn_for("created"))
    command.until("waiting, attempt")
    assert 'database "created" does not exist' in command.err
    admin.execute("CREATE DATABASE created")
    command.until("listening, backend")
    command.process.send_signal(signal.SIGTERM)

    assert command.status(AT_ONCE) == 0
    admin.execute("DROP DATABASE created WITH (FORCE)")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_wait_ends_on_a_signal(start: Start, folder: Path, number: signal.Signals) -> None:
    command = start("run", "handlers", "--wait", cwd=folder, url=NOWHERE)
    command.until("waiting, attempt 1")
    command.process.send_signal(number)

    assert command.status(AT_ONCE) == 0
    assert number.name in command.err


def test_wait_runs_out(start: Start, folder: Path) -> None:
    command = start("run", "handlers", "--wait", "0.5", cwd=folder, url=NOWHERE)

    assert command.status(AT_ONCE) == 1
    assert "waiting, attempt 1" in command.err
    assert "CRITICAL pgsignals.run: 127.0.0.1:1/shop: " in command.err


def test_wait_is_not_for_what_waiting_does_not_help(
    start: Start, folder: Path, postgres: Postgres
) -> None:
    urls = [
        postgres.dsn_for(password="hush"),
        postgres.dsn_for(user="nobody"),
        "mysql://db/shop",
        "service=nowhere",
    ]
    waiting = [start("run", "handlers", "--wait", cwd=folder, url=url) for url in urls]

    assert [command.status() for command in waiting] == [1] * len(urls)
    assert not any("waiting" in command.err for command in waiting)


def test_wait_is_not_for_a_standby(start: Start, folder: Path) -> None:
    with Postgres(tcp=True) as server:
        server.stop()
        become_standby(server)
        server.start()
        command = start("run", "handlers", "--wait", cwd=folder, url=server.dsn)

        assert command.status() == 1
    assert "is a standby" in command.err


@pytest.mark.parametrize(
    ("text", "comes"),
    [
        ("connection failed: Connection refused", True),
        ("failed to resolve host 'db': [Errno -2] Name or service not known", True),
        ("FATAL: the database system is starting up", True),
        ("FATAL: das Datenbanksystem startet", True),
        ("server closed the connection unexpectedly", True),
        ('FATAL: database "shop" does not exist', True),
        ("timeout expired", True),
        ("server is in hot standby mode", True),
        ("FATAL: sorry, too many clients already", True),
        ("SSL SYSCALL error: Connection reset by peer", True),
        ('FATAL: password authentication failed for user "app"', False),
        ('FATAL: role "app" does not exist', False),
        ('FATAL: no pg_hba.conf entry for host "::1"', False),
        ('database "shop" does not exist; no password supplied', False),
        ("server does not support SSL, but SSL was required", False),
        ("SSL error: certificate verify failed", False),
        ('definition of service "shop" not found', False),
        ('invalid sslmode value: "never"', False),
    ],
)
def test_what_may_recover_is_waited_for(text: str, comes: bool) -> None:
    assert may_recover(ConnectError(f"127.0.0.1:1/shop: {text}")) is comes


# -- the log -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_log_tells_what_is_served_which_signal_came_and_how_it_ended(
    start: Start,
    folder: Path,
    admin: Admin,
    postgres: Postgres,
    channel: str,
    number: signal.Signals,
) -> None:
    command = start("run", "handlers", "--workers", "2", cwd=folder)
    command.until("listening, backend")
    admin.notify(channel, "one", "fail", "two")
    wait_until(lambda: "handled two" in command.out)
    command.process.send_signal(number)
    command.status(AT_ONCE)

    lines = command.err.splitlines()
    of_run = [line.split(": ", 1)[1] for line in lines if "pgsignals.run: " in line]
    place = f"127.0.0.1:{postgres.port}/postgres"
    assert of_run[:2] == [
        f"serving {place} with 2 workers",
        f"channel {channel}: handlers.handle",
    ]
    assert of_run[-1] == "stopped: 3 notifications handled, 1 failures, 0 dropped"
    assert f"{number.name}: stopping" in command.err


def test_log_tells_of_each_database_what_is_served_there(
    start: Start, folder: Path, postgres: Postgres
) -> None:
    other = postgres.dsn_for("template1")
    write(
        folder,
        "two",
        f"""
        from pgsignals import Database, Reactor
        here, there = Database("{postgres.dsn}"), Database("{other}")
        reactor = Reactor(here, there)

        class Shop:
            @staticmethod
            @reactor.on_channel("both", "one\\x1b[2J", sender=here)
            def sell(db, notification): ...

        @reactor.on_channel("both")
        def count(db, notification): ...
        """,
    )
    command = start("run", "two:reactor", cwd=folder, url=NOWHERE)
    command.until("listening, backend", count=2)
    command.process.send_signal(signal.SIGTERM)

    assert command.status(AT_ONCE) == 0
    here, there = (f"127.0.0.1:{postgres.port}/{name}" for name in ("postgres", "template1"))
    for line in (
        f"serving {here}, {there} with 1 worker\n",
        f"channel both of {here}: two.Shop.sell, two.count\n",
        f"channel both of {there}: two.count\n",
        f"channel one\\x1b[2J of {here}: two.Shop.sell\n",
    ):
        assert f"INFO pgsignals.run: {line}" in command.err


def test_stop_that_was_not_clean_is_a_warning(
    start: Start, folder: Path, admin: Admin, channel: str
) -> None:
    command = start("run", "handlers", "--stop-timeout", "0.2", cwd=folder)
    command.until("listening, backend")
    sent = ["begin", "sleep30", "never"]  # of one transaction: where the first is, the others are
    admin.execute("SELECT pg_notify(%s, p) FROM unnest(%s::text[]) AS p", channel, sent)
    wait_until(lambda: command.out == "handled begin\n")
    command.process.send_signal(signal.SIGTERM)

    assert command.status(AT_ONCE) == 1
    assert "WARNING pgsignals.run: stopped before everything was handled: " in command.err


def test_loss_is_told_once(start: Start, folder: Path, admin: Admin) -> None:
    command = start("run", "handlers", cwd=folder)
    command.until("listening, backend")
    admin.kill(int(command.err.partition("listening, backend ")[2].split()[0]))
    command.until("listening, backend", count=2)
    command.process.send_signal(signal.SIGTERM)

    assert command.status(AT_ONCE) == 0
    [loss] = [line for line in command.err.splitlines() if "lost (" in line]
    assert "WARNING pgsignals.reactor: 127.0.0.1:" in loss
    assert loss.count("127.0.0.1") == 1
    assert "lost (ended): terminating connection" in loss


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


def labelled(port: int) -> dict[tuple[str, str, str], float]:
    """What is measured of handlers: by the name, the channel and the handler."""
    _, text = ask(port, "/metrics")
    return {
        (sample.name, sample.labels["channel"], sample.labels["handler"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "handler" in sample.labels and sample.labels.get("le", "+Inf") == "+Inf"
    }


def test_metrics_tell_channels_and_handlers_apart(
    start: Start, folder: Path, admin: Admin, channel: str
) -> None:
    write(
        folder,
        "many",
        f"""
        import json
        from pgsignals import Reactor
        from pgsignals.database import Database
        import os
        reactor = Reactor(os.environ["DATABASE_URL"], channels=["{channel}_unhandled"])
        reactor.wrap_handlers(lambda handler, db, **given: handler(db, **given))

        @reactor.on_channel("{channel}")
        def fails(db, notification):
            raise ValueError("no")

        @reactor.on_channel("{channel}", decode=json.loads)
        def decodes(db, notification, value): ...

        @reactor.on_channel("{channel}_batch", batch=True)
        def batch(db, notifications): print("batch", flush=True)

        class Any:
            def __call__(self, db, notification):
                print("any", notification.payload, flush=True)

        any = Any()
        reactor.any_channel.connect(any)
        """,
    )
    port = free_port()
    command = start("run", "many:reactor", "--metrics", str(port), cwd=folder)
    command.until("listening, backend")
    admin.notify(channel, "1", "no json")
    admin.execute("SELECT pg_notify(%s, i::text) FROM generate_series(1, 3) i", f"{channel}_batch")
    admin.notify(f"{channel}_unhandled", "last")
    wait_until(lambda: samples(port)["pgsignals_dispatched_total", "postgres"] == 6)
    assert "any last" in command.out
    told = labelled(port)

    def of(name: str, suffix: str, handler: str) -> float | None:
        on = channel + suffix
        return told.get((f"pgsignals_{name}", on, f"many.{handler}"))

    assert of("handler_failures_total", "", "fails") == 2
    assert of("handled_total", "", "fails") is None
    assert of("handler_seconds_count", "", "fails") == 2
    assert of("handler_failures_total", "", "decodes") == 1
    assert of("handled_total", "", "decodes") == 1
    assert of("handled_total", "_batch", "batch") == 3
    assert of("handled_total", "", "Any") == 2
    assert told["pgsignals_handled_total", "", "many.Any"] == 1  # a channel without a handler
    assert told["pgsignals_handler_seconds_bucket", channel, "many.decodes"] == 1
    assert not any("unhandled" in channel for _, channel, _ in told)
    command.process.send_signal(signal.SIGTERM)

    assert command.status(AT_ONCE) == 0


def test_metrics_of_handlers_have_a_bound(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_metrics, "MOST_LABELS", 3)
    registry = CollectorRegistry()
    reactor = Reactor(dsn)
    with _metrics.HandlerMetrics(reactor, registry), reactor:
        handled = []
        for number in range(10):
            reactor.on_channel(f"bounded_{number}")(lambda db, notification: handled.append(1))
            reactor.notify((f"bounded_{number}", ""))
        wait_until(lambda: len(handled) == 10)
    samples = [
        sample
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "pgsignals_handled_total"
    ]

    assert sum(sample.value for sample in samples) == 10
    assert {sample.labels["channel"] for sample in samples} == {
        *("bounded_0", "bounded_1", "bounded_2", "")
    }


def test_databases_of_one_name_are_told_apart() -> None:
    reactor = Reactor(NOWHERE, NOWHERE, NOWHERE, "host=other dbname=shop")

    assert _metrics.names(reactor.status().databases) == [
        *("127.0.0.1:1/shop", "127.0.0.1:1/shop #2", "127.0.0.1:1/shop #3", "other:5432/shop")
    ]
    healthy, told = _metrics.health(reactor)
    assert not healthy
    assert not told["running"]
