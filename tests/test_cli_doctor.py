"""``pgsignals doctor``: that it tells the truth of whatever stands there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgsignals import Database, Reactor
from pgsignals._pure.statements import ROUND_TRIP, round_trip
from pgsignals.cli import _checks
from pgsignals.cli._checks import examine
from pgsignals.cli._findings import Finding
from pgsignals.embedded import EmbeddedError, Postgres, find_binaries
from pgsignals.testing import Proxy
from tests.programs.fault_rig import become_standby
from tests.support.admin import Admin
from tests.support.commands import (
    NOWHERE,
    PGSIGNALS,
    ROOT,
    Command,
    Start,
    Terminal,
    commands,
    environment,
)
from tests.support.tools import tool
from tests.support.waiting import wait_until
from tests.test_faults_pooler import Bouncer, bouncer  # noqa: F401 - a fixture

#: A check that has nothing to complain of, on a direct connection within one machine.
CHECKS = [
    *("connection", "server", "TLS", "encoding", "role", "pooler", "delivery", "clock"),
    *("queue", "sessions", "timeouts", "keepalives"),
]


@pytest.fixture
def start(dsn: str, tmp_path: Path) -> Iterator[Start]:
    with commands(dsn, tmp_path) as start:
        yield start


def report(command: Command) -> dict[str, dict[str, Any]]:
    """Its checks by their names."""
    checks = json.loads(command.out)["checks"]
    assert len({check["check"] for check in checks}) == len(checks)
    return {check["check"]: check for check in checks}


def outcomes(checks: dict[str, dict[str, Any]], outcome: str) -> set[str]:
    return {name for name, check in checks.items() if check["outcome"] == outcome}


def examined(dsn: str, timeout: float = 5.0) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(Database(dsn), timeout)}


# -- a server as it should be --------------------------------------------------------------------


def test_direct_server_is_healthy(start: Start, postgres: Postgres) -> None:
    command = start("doctor")

    assert command.status() == 0
    assert command.err == ""
    name, *lines = command.out.splitlines()
    assert name == f"127.0.0.1:{postgres.port}/postgres"
    assert [line.split()[1] for line in lines if not line.startswith(" " * 9)] == CHECKS
    assert {line.split()[0] for line in lines} == {"ok"}
    assert "20 of 20 notifications arrived" in command.out


def test_report_is_json_without_secrets(start: Start, postgres: Postgres) -> None:
    command = start("doctor", "--json")

    assert command.status() == 0
    told = json.loads(command.out)
    checks = report(command)
    assert told["healthy"] is True
    assert list(checks) == CHECKS
    assert checks["pooler"]["facts"] == {"mode": None}
    assert checks["role"]["facts"] == {"role": "primary"}
    assert 0 < checks["delivery"]["facts"]["median_seconds"] < 5
    assert abs(checks["clock"]["facts"]["offset_seconds"]) < 1
    assert checks["keepalives"]["facts"]["client"]["keepalives"] == 1
    assert postgres.password not in command.out


def test_nothing_is_left_behind(start: Start, admin: Admin) -> None:
    before = admin.sessions()

    assert start("doctor").status() == 0

    wait_until(lambda: admin.sessions() == before)


def test_unix_socket_needs_neither_tls_nor_keepalives(postgres: Postgres) -> None:
    checks = examined(postgres.dsn_for(host=postgres.directory))

    assert checks["TLS"].detail == "none, over a Unix socket"
    assert checks["keepalives"].outcome == "ok"


def test_terminal_gets_wrapped_lines_in_colours(dsn: str) -> None:
    with Terminal([*PGSIGNALS, "doctor"], environment(dsn), columns=60) as terminal:
        assert terminal.status() == 0
        wait_until(lambda: "keepalives" in terminal.raw)
        plain = re.sub(r"\x1b\[[\d;]*m", "", terminal.raw)
        assert max(map(len, plain.splitlines())) <= 60
        assert "\x1b[32m" in terminal.raw
    with Terminal([*PGSIGNALS, "doctor"], environment(dsn, NO_COLOR="1")) as terminal:
        assert terminal.status() == 0
        assert "\x1b" not in terminal.raw


# -- nothing that answers ------------------------------------------------------------------------


def test_no_server_is_told_with_what_to_do(start: Start) -> None:
    command = start("doctor", url=NOWHERE)

    assert command.status() == 1
    assert "FAILED   connection" in command.out
    assert "listen_addresses" in command.out
    assert "hush" not in command.out + command.err


@pytest.mark.parametrize(
    ("change", "reason", "advice"),
    [
        ({"password": "hush"}, "password authentication failed", "PGPASSFILE"),
        ({"dbname": "nowhere"}, "does not exist", "check the name"),
        ({"host": "nowhere.invalid"}, "nowhere.invalid", "cannot resolve the host name"),
        ({"host": "/nowhere"}, "No such file", "host="),
        ({"target_session_attrs": "standby"}, "not in hot standby", "none of the hosts"),
    ],
    ids=["password", "database", "host", "socket", "role"],
)
def test_refusal_is_told_with_what_to_do(
    start: Start, postgres: Postgres, change: dict[str, str], reason: str, advice: str
) -> None:
    command = start("doctor", "--json", "--dsn", postgres.dsn_for(**change))

    assert command.status() == 1
    [check] = report(command).values()
    assert check["outcome"] == "failed"
    assert reason in check["detail"]
    assert advice in (check["advice"] or "")
    assert "hush" not in command.out


def test_unreadable_connection_string_is_not_repeated(start: Start) -> None:
    command = start("doctor", "--json", "--dsn", "passwort=hush")

    assert command.status() == 1
    assert "cannot be read" in command.out
    assert "'passwort'" in command.out
    assert "hush" not in command.out + command.err


def test_error_without_any_setting_says_so(start: Start) -> None:
    command = start("doctor", url=None, PGHOST="127.0.0.1", PGPORT="1")

    assert command.status() == 1
    assert "neither --dsn nor DATABASE_URL is set" in command.out


def test_read_write_is_not_advised_to_a_role_that_is_read_only(
    postgres: Postgres, admin: Admin
) -> None:
    admin.execute("CREATE ROLE reader LOGIN PASSWORD 'hush'")
    admin.execute("ALTER ROLE reader SET default_transaction_read_only = on")
    who = {"user": "reader", "password": "hush"}
    refused = examined(postgres.dsn_for(**who, target_session_attrs="read-write"))["connection"]
    checks = examined(postgres.dsn_for(**who, target_session_attrs="primary"))
    admin.execute("DROP ROLE reader")

    assert refused.outcome == "failed"
    assert "target_session_attrs=primary" in (refused.advice or "")
    assert checks["delivery"].outcome == "ok"


def test_server_that_is_too_old_fails_with_the_oldest_that_is_not(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_checks, "OLDEST_SERVER", 990000)
    check = examined(dsn)["server"]

    assert check.outcome == "failed"
    assert check.advice == "PostgreSQL 99 is the oldest that is supported"


def test_server_that_never_answers_is_given_up(start: Start, proxied: str, proxy: Proxy) -> None:
    proxy.freeze()
    command = start("doctor", "--timeout", "2", "--dsn", proxied)

    assert command.status() == 1
    assert "timeout expired" in command.out
    assert "firewall" in command.out


@pytest.mark.parametrize("after", ["connection", "encoding", "role", "pooler"])
def test_server_that_falls_silent_is_given_up(proxied: str, proxy: Proxy, after: str) -> None:
    findings = []
    for finding in examine(Database(proxied), 1.0):
        findings.append(finding)
        if finding.check == after:
            proxy.freeze()
    failed = [finding.check for finding in findings if finding.outcome == "failed"]

    assert failed
    assert set(failed) <= {"connection", "delivery"}
    proxy.thaw()


# -- poolers and standbys ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_pooler_that_loses_notifications_fails_by_its_mode(
    start: Start,
    bouncer: Bouncer,  # noqa: F811
    mode: str,
) -> None:
    command = start("doctor", "--json", "--timeout", "2", "--dsn", bouncer.dsn(mode))

    assert command.status() == 1
    checks = report(command)
    assert outcomes(checks, "failed") == {"pooler"}
    assert outcomes(checks, "skipped") == {"delivery"}
    assert checks["pooler"]["facts"] == {"mode": mode}
    assert f"in {mode} mode" in checks["pooler"]["detail"]
    assert "pool in session mode" in checks["pooler"]["advice"]


def test_example_of_the_documentation_is_what_it_says(
    start: Start,
    bouncer: Bouncer,  # noqa: F811
) -> None:
    command = start("doctor", "--timeout", "2", "--dsn", bouncer.dsn("transaction"))
    assert command.status() == 1
    text = (ROOT / "docs" / "cli.md").read_text("utf-8")
    _, *example = text.partition("127.0.0.1:6432/shop\n")[2].partition("```")[0].splitlines()
    _, _, *said = command.out.splitlines()

    def pattern(line: str) -> str:
        """It, with any number for a number, and any session."""
        anything = re.sub(
            r"seems? to listen.*", "seems? to listen.*", re.escape(line).replace("\\ ", " ")
        )
        return re.sub(r"\d+(\\\.\d+)*", r"[\\d.]+( \\(.*?\\))?", anything).replace("ahead of", ".*")

    assert len(said) == len(example)
    for line, documented in zip(said, example, strict=True):
        assert re.fullmatch(pattern(documented), line), documented


def test_pooler_in_session_mode_is_a_warning(start: Start, bouncer: Bouncer) -> None:  # noqa: F811
    command = start("doctor", "--json", "--dsn", bouncer.dsn("session"))

    assert command.status() == 0
    checks = report(command)
    assert outcomes(checks, "warning") == {"pooler"}
    assert checks["pooler"]["facts"] == {"mode": "session"}
    assert checks["delivery"]["outcome"] == "ok"


def test_standby_fails_with_what_to_do(start: Start) -> None:
    with Postgres(tcp=True) as server:
        server.stop()
        become_standby(server)
        server.start()
        command = start("doctor", "--json", "--dsn", server.dsn)

        assert command.status() == 1
    checks = report(command)
    assert outcomes(checks, "failed") == {"role"}
    assert checks["role"]["facts"] == {"role": "standby"}
    assert "is a standby" in checks["role"]["detail"]
    assert "target_session_attrs=primary" in checks["role"]["advice"]


# -- a channel -----------------------------------------------------------------------------------

SCHEMA = """
    CREATE SCHEMA doctor;
    CREATE TABLE doctor.sales (id int);
    CREATE TABLE doctor."Stock" (id int) PARTITION BY RANGE (id);
    CREATE TABLE doctor.stock_1 PARTITION OF doctor."Stock" FOR VALUES FROM (0) TO (10);
    CREATE FUNCTION doctor.tell() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            -- NOTIFY commented; PERFORM pg_notify('commented', '');
            PERFORM pg_notify('orders', NEW.id::text);
            RETURN NULL;
        END $$;
    CREATE FUNCTION doctor.tell_argument() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_catalog.pg_notify(TG_ARGV[0], ''); RETURN NULL; END $$;
    CREATE FUNCTION doctor.unquoted() RETURNS void LANGUAGE plpgsql AS $$
        BEGIN NOTIFY Unquoted, 'x'; NOTIFY "Quoted"; END $$;
    CREATE FUNCTION doctor.standard() RETURNS void LANGUAGE sql
        BEGIN ATOMIC SELECT pg_notify('standard', ''); END;
    CREATE FUNCTION doctor.shouts() RETURNS void LANGUAGE sql AS $$
        SELECT pg_notify('ORDERS', ''), pg_notify('"orders"', '') $$;
    CREATE FUNCTION doctor.silent() RETURNS void LANGUAGE sql AS $$ SELECT 'orders' $$;
    CREATE TRIGGER sold AFTER INSERT ON doctor.sales FOR EACH ROW EXECUTE FUNCTION doctor.tell();
    CREATE TRIGGER "Moved" AFTER INSERT ON doctor."Stock"
        FOR EACH ROW EXECUTE FUNCTION doctor.tell_argument('stock');
    CREATE RULE cleared AS ON DELETE TO doctor.sales DO ALSO NOTIFY cleared;
"""


@pytest.fixture
def shop(admin: Admin) -> Iterator[Admin]:
    """Triggers, functions and rules that notify."""
    admin.execute(SCHEMA)
    yield admin
    admin.execute("DROP SCHEMA doctor CASCADE")


def of_channel(dsn: str, channel: str) -> dict[str, Finding]:
    """What is found about it."""
    found = {one.check: one for one in examine(Database(dsn), 5.0, [channel])}
    return {name: one for name, one in found.items() if name not in CHECKS}


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    ("channel", "notifier"),
    [
        ("orders", "trigger sold on doctor.sales, which calls doctor.tell()"),
        ("stock", 'trigger "Moved" on doctor."Stock", which calls doctor.tell_argument()'),
        ("unquoted", "function doctor.unquoted(), which no trigger calls"),
        ("Quoted", "function doctor.unquoted(), which no trigger calls"),
        ("standard", "function doctor.standard(), which no trigger calls"),
        ("cleared", "rule cleared on doctor.sales"),
    ],
)
def test_what_notifies_a_channel_is_found(dsn: str, channel: str, notifier: str) -> None:
    check = of_channel(dsn, channel)["notifiers"]

    assert check.outcome == "ok"
    assert check.detail.startswith(f"{channel}: {notifier}")
    assert check.detail.count(notifier) == 1  # partitions have copies
    assert len(check.facts["notifiers"]) == 1


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("channel", ["nowhere", "commented"])
def test_channel_that_nothing_notifies_is_noted(dsn: str, channel: str) -> None:
    checks = of_channel(dsn, channel)

    assert checks["notifiers"].outcome == "note"
    assert "no function, trigger or rule names it" in checks["notifiers"].detail
    assert "may be notified by trigger" in checks["notifiers"].detail  # whose function computes
    assert checks["notifiers"].facts["notifiers"] == []
    assert "names" not in checks


@pytest.mark.parametrize(
    ("change", "why", "remedy"),
    [
        ("DISABLE TRIGGER sold", "disabled", "ALTER TABLE doctor.sales ENABLE TRIGGER sold"),
        ("ENABLE REPLICA TRIGGER sold", "for replicas only", "ENABLE TRIGGER sold"),
    ],
)
def test_trigger_that_does_not_fire_is_told(
    dsn: str, shop: Admin, change: str, why: str, remedy: str
) -> None:
    shop.execute(f"ALTER TABLE doctor.sales {change}")
    check = of_channel(dsn, "orders")["notifiers"]

    assert check.outcome == "warning"
    assert f"({why})" in check.detail
    assert remedy in (check.advice or "")


@pytest.mark.usefixtures("shop")
def test_names_that_are_nearly_the_same_are_told(dsn: str) -> None:
    check = of_channel(dsn, "orders")["names"]
    other_way = of_channel(dsn, "Orders")["names"]
    with psycopg.connect(dsn, autocommit=True) as ear:
        ear.execute('LISTEN "Stock"')
        listened = of_channel(dsn, "stock")["names"]

        assert f"'Stock' (pid {ear.info.backend_pid} listens to it)" in listened.detail

    assert check.outcome == "warning"
    assert set(check.facts["similar"]) == {"ORDERS", '"orders"'}
    assert "keep case, blanks and quotes" in (check.advice or "")
    assert set(other_way.facts["similar"]) == {"ORDERS", "orders", '"orders"'}


def test_name_that_is_cut_is_told(dsn: str, admin: Admin) -> None:
    long = "x" * 70
    admin.execute(
        f"CREATE FUNCTION cut() RETURNS text LANGUAGE sql AS $$"
        f"SELECT pg_notify('{long}', '')::text $$"
    )
    check = of_channel(dsn, "x" * 63)["names"]
    admin.execute("DROP FUNCTION cut()")

    assert set(check.facts["similar"]) == {long}
    assert "63 bytes" in (check.advice or "")


def test_listeners_of_a_channel_are_told(dsn: str, channel: str) -> None:
    nobody = of_channel(dsn, channel)["listeners"]
    with psycopg.connect(dsn, application_name="ear", autocommit=True) as ear:
        ear.execute(f'LISTEN "other"; LISTEN "{channel}"')
        heard = of_channel(dsn, channel)["listeners"]
        ear.execute(f'LISTEN "{channel}"; UNLISTEN *')
        gone = of_channel(dsn, channel)["listeners"]
        pid = ear.info.backend_pid

    assert nobody.facts["sessions"] == gone.facts["sessions"] == []
    assert heard.outcome == "ok"
    assert f"pid {pid} (ear)" in heard.detail
    assert heard.facts["sessions"] == [{"pid": pid, "application_name": "ear"}]


def test_reactors_may_be_among_the_listeners(dsn: str, channel: str) -> None:
    with Reactor(dsn, channels=[channel], probe_interval=0.1) as reactor:
        wait_until(lambda: reactor.status().databases[0].probe_seconds)
        check = of_channel(dsn, channel)["listeners"]

    assert check.outcome == "ok"
    assert check.facts["reactors"] >= 1
    assert "reactors, whose channels the server does not show: " in check.detail


@pytest.mark.usefixtures("shop")
def test_channels_are_in_the_report_and_nothing_is_notified_on_them(start: Start, dsn: str) -> None:
    with Database(dsn) as listener:
        listener.listen("orders", "stock")
        command = start("doctor", "--json", "--channel", "orders", "--channel", "stock")
        assert command.status() == 0
        listener.notify(stock="mark")
        assert [one.payload for one in listener.drain()] == ["mark"]
    checks = json.loads(command.out)["checks"][len(CHECKS) :]

    assert [(one["check"], one["facts"]["channel"]) for one in checks] == [
        *((name, "orders") for name in ("channel", "listeners", "notifiers", "names")),
        *((name, "stock") for name in ("channel", "listeners", "notifiers")),
    ]
    assert "not notified, as its listeners would act on it" in checks[0]["detail"]
    assert checks[2]["facts"]["notifiers"] == [
        {"trigger": "sold", "on": "doctor.sales", "function": "doctor.tell()", "asleep": None}
    ]
    assert start("doctor", "--channel", "x" * 64).status() == 2


# -- what may end or hinder a listener -----------------------------------------------------------


def test_idle_session_timeout_is_noted(start: Start, dsn: str) -> None:
    options = "options='-c idle_session_timeout=60000 -c statement_timeout=5s'"
    command = start("doctor", "--json", "--dsn", f"{dsn} {options}")

    assert command.status() == 0
    check = report(command)["timeouts"]
    assert check["outcome"] == "note"
    assert check["facts"]["idle_session_timeout"] == 60
    assert "idle_session_timeout 60 s, statement_timeout 5 s" in check["detail"]


def test_keepalives_of_the_connection_string_are_those_of_the_socket(dsn: str) -> None:
    given = "keepalives_idle=30 keepalives_interval=7 keepalives_count=3 tcp_user_timeout=20000"
    check = examined(f"{dsn} {given}")["keepalives"]

    assert check.outcome == "ok"
    assert check.facts["client"] == {
        "keepalives": 1,
        "keepalives_idle": 30,
        "keepalives_interval": 7,
        "keepalives_count": 3,
        "tcp_user_timeout": 20000,
    }


def test_holder_of_the_queue_is_named(dsn: str, admin: Admin, channel: str) -> None:
    with psycopg.connect(dsn, application_name="holder", autocommit=True) as holder:
        holder.execute(f"LISTEN {channel}")
        holder.execute("BEGIN")
        holder.execute("SELECT 1")
        admin.flood(channel, 500, size=100)
        wait_until(lambda: admin.execute("SELECT pg_notification_queue_usage() > 0") == [(True,)])
        check = examined(dsn)["queue"]
        holder.execute("COMMIT")

        assert check.outcome == "ok"
        assert check.facts["usage"] > 0
        assert "holder" in check.facts["holders"][0]
        assert f"pid {holder.info.backend_pid}" in check.detail


@pytest.mark.parametrize(("usage", "outcome"), [(0.3, "warning"), (0.6, "failed")])
def test_full_queue_is_told(
    dsn: str, monkeypatch: pytest.MonkeyPatch, usage: float, outcome: str
) -> None:
    monkeypatch.setattr(_checks, "QUEUE", f"SELECT {usage}::float8")  # it has 8 GB
    check = examined(dsn)["queue"]

    assert check.outcome == outcome
    assert "pg_terminate_backend" in (check.advice or "")


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_clock_that_differs_is_told(
    dsn: str, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    monkeypatch.setattr(_checks, "CLOCK", f"{_checks.CLOCK} + {seconds}")
    check = examined(dsn)["clock"]

    assert check.outcome == "warning"
    assert check.facts["offset_seconds"] == pytest.approx(seconds, abs=1)
    assert ("ahead of" if seconds > 0 else "behind") in check.detail


def test_listeners_are_counted_by_what_they_did_last(dsn: str, channel: str) -> None:
    before = examined(dsn)["sessions"].facts["listeners"]
    with psycopg.connect(dsn, application_name="ear", autocommit=True) as ear:
        ear.execute(f"LISTEN {channel}")
        check = examined(dsn)["sessions"]

    assert check.facts["listeners"] == before + 1
    assert "ear" in check.detail


@pytest.mark.parametrize(
    "statement",
    [
        ROUND_TRIP,
        round_trip([]),
        "SELECT pg_notification_queue_usage(), pg_is_in_recovery(), NULL",  # of 0.1.0
    ],
)
def test_reactor_is_known_by_its_round_trip(dsn: str, statement: str) -> None:
    before = examined(dsn)["sessions"].facts["listeners"]
    with psycopg.connect(dsn, application_name="reactor", autocommit=True) as connection:
        connection.execute(statement.encode())
        check = examined(dsn)["sessions"]

    assert check.facts["listeners"] == before + 1
    assert "reactor" in check.detail


@pytest.fixture
def modest(postgres: Postgres, admin: Admin) -> Iterator[str]:
    """Leads to the server as a role that may open one connection, and see only its own."""
    admin.execute("CREATE ROLE modest LOGIN CONNECTION LIMIT 1 PASSWORD 'hush'")
    yield postgres.dsn_for(user="modest", password="hush")
    admin.execute("DROP ROLE modest")


def test_role_that_has_one_connection_is_told_so(start: Start, modest: str) -> None:
    command = start("doctor", "--json", "--dsn", modest)

    assert command.status() == 1
    checks = report(command)
    assert outcomes(checks, "failed") == {"delivery"}
    assert "too many connections for role" in checks["delivery"]["detail"]
    assert checks["sessions"]["outcome"] == "note"
    assert "this role cannot see what" in checks["sessions"]["detail"]
    assert "hush" not in command.out


def test_database_without_an_encoding_is_noted(postgres: Postgres, admin: Admin) -> None:
    admin.execute("CREATE DATABASE bytes ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    checks = examined(postgres.dsn_for("bytes"))
    admin.execute("DROP DATABASE bytes WITH (FORCE)")

    assert checks["encoding"].outcome == "note"
    assert checks["delivery"].outcome == "ok"
    assert checks["sessions"].outcome == "ok"
    assert checks["sessions"].facts["max_connections"] == 300
    assert checks["keepalives"].facts["server"]["tcp_keepalives_count"] > 0
    assert checks["timeouts"].facts["idle_session_timeout"] == 0


def test_encryption_is_told_with_what_it_proves() -> None:
    tool("openssl")
    try:
        find_binaries(tls=True)
    except EmbeddedError as error:
        pytest.skip(str(error))
    with Postgres(tls=True) as server:
        verified = examined(server.dsn)["TLS"]
        encrypted = examined(server.dsn_for(sslmode="require", sslrootcert=""))["TLS"]
        plain = examined(server.dsn_for(sslmode="disable"))["TLS"]

    assert (verified.outcome, verified.facts["sslmode"]) == ("ok", "verify-full")
    assert verified.facts["protocol"].startswith("TLSv1.")
    assert encrypted.outcome == "note"
    assert "verify-full" in (encrypted.advice or "")
    assert plain.facts == {"encrypted": False}


def test_it_needs_no_extra(dsn: str) -> None:
    program = (
        "import sys; sys.modules['rich'] = sys.modules['prometheus_client'] = None; "
        "from pgsignals.cli import main; sys.exit(main(['doctor']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(dsn),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 0
    assert done.stderr == ""
