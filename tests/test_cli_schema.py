"""``pgsignals schema`` and ``pgsignals publish``."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from pgsignals import Database, Reactor, SchemaError, publish
from pgsignals._durable import schema as durable
from pgsignals._durable.schema import Limits
from tests.support.admin import Admin
from tests.support.commands import PGSIGNALS, Command, Start, commands
from tests.support.tools import tool
from tests.support.waiting import Background, wait_until

Run = Callable[..., Command]


@pytest.fixture
def start(dsn: str, tmp_path: Path) -> Iterator[Start]:
    with commands(dsn, tmp_path) as start:
        yield start


@pytest.fixture
def run(start: Start) -> Run:
    """Runs a command to its end, and checks its status."""

    def run(*arguments: str, status: int = 0, stdin: bytes = b"") -> Command:
        command = start(*arguments, stdin=stdin)
        assert command.status() == status, command.err
        return command

    return run


@pytest.fixture
def schema(new_channel: Callable[[], str], admin: Admin) -> Iterator[str]:
    """The name of a schema that is not there yet, and is not there any more afterwards."""
    name = f"durable_{new_channel()}"
    yield name
    admin.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")


@pytest.fixture
def role(admin: Admin, new_channel: Callable[[], str]) -> Iterator[str]:
    name = f"role_{new_channel()}"
    admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    yield name
    admin.execute(f"DROP OWNED BY {name}")
    admin.execute(f"DROP ROLE {name}")


def limit_of(dsn: str, schema: str) -> list[float]:
    with psycopg.connect(dsn) as connection:
        sql = f"SELECT extract(epoch FROM keep), extract(epoch FROM max_age) FROM {schema}.meta"
        return [float(value) for value in connection.execute(sql.encode()).fetchone() or ()]


# From nothing to an event


def test_walk_from_nothing_to_an_event_and_back(run: Run, schema: str, admin: Admin) -> None:
    missing = run("schema", "check", "--schema", schema, status=1)
    assert f"pgsignals schema init --schema {schema}" in missing.err
    assert "installed, version 1" in run("schema", "init", "--schema", schema).err
    assert "already installed" in run("schema", "init", "--schema", schema).err
    assert ": ok, version 1" in run("schema", "check", "--schema", schema).err
    assert "already up to date" in run("schema", "upgrade", "--schema", schema).err
    assert "already this cluster's" in run("schema", "adopt", "--schema", schema).err

    published = run("publish", "orders", "one", "--key", "k", "--schema", schema)
    run("publish", "orders", "-", "--schema", schema, stdin=b"two\n")
    run("publish", "orders", "--schema", schema)
    rows = admin.execute(f"SELECT id, channel, key, payload FROM {schema}.event ORDER BY id")
    first = int(published.out)
    assert rows == [
        (first, "orders", "k", "one"),
        (first + 1, "orders", None, "two"),
        (first + 2, "orders", None, ""),
    ]

    run("schema", "drop", "--schema", schema)
    assert "has no schema" in run("schema", "drop", "--schema", schema, status=1).err


def test_printed_sql_installs_the_same(run: Run, schema: str, dsn: str, admin: Admin) -> None:
    psql = tool("psql")
    printed = run("schema", "init", "--schema", schema, "--keep", "2d", "--print")
    assert run("schema", "check", "--schema", schema, status=1)
    subprocess.run([psql, "-qX1v", "ON_ERROR_STOP=1", dsn], input=printed.out.encode(), check=True)

    run("schema", "check", "--schema", schema)
    assert limit_of(dsn, schema)[0] == 2 * 86_400


def test_limits_that_are_given_are_changed_and_the_others_stay(
    run: Run, schema: str, dsn: str
) -> None:
    run("schema", "init", "--schema", schema, "--keep", "30m", "--max-payload", "10")
    assert limit_of(dsn, schema) == [1800, 7 * 86_400]
    run("schema", "init", "--schema", schema, "--max-age", "1.5h")
    assert limit_of(dsn, schema) == [1800, 5400]
    assert (
        "payload_is_small_enough"
        in run(*("publish", "orders", "x" * 11, "--schema", schema), status=1).err
    )
    run("schema", "init", "--schema", schema, "--max-payload", "20")
    run("publish", "orders", "x" * 11, "--schema", schema)
    assert limit_of(dsn, schema) == [1800, 5400]


@pytest.mark.parametrize("wrong", ["5", "0s", "-1d", "1w", "s", "1 d"])
def test_time_without_a_unit_is_not_understood(run: Run, wrong: str) -> None:
    assert "such as 2s, 30m, 12h or 7d" in run("schema", "init", f"--keep={wrong}", status=2).err


@pytest.mark.parametrize("wrong", ["writer=a", "publisher", "publisher=", "=a"])
def test_grant_names_what_and_to_whom(run: Run, wrong: str) -> None:
    assert (
        "publisher=ROLE or consumer=ROLE"
        in run(*("schema", "init", "--grants", wrong), status=2).err
    )


def test_schema_is_a_plain_name(run: Run) -> None:
    assert (
        "letters, digits and underscores"
        in run(*("schema", "check", "--schema", "a-b"), status=2).err
    )


@pytest.mark.parametrize("arguments", [["schema"], ["schema", "nothing"]])
def test_action_is_needed(run: Run, arguments: list[str]) -> None:
    run(*arguments, status=2)


def test_bad_event_is_not_sent(run: Run) -> None:
    assert "1025 bytes" in run("publish", "orders", "--key", "k" * 1025, status=2).err
    assert (
        "over the limit"
        in run(*("publish", "orders", "-"), stdin=b"x" * (1 << 20) + b"y", status=2).err
    )


def test_publishing_into_a_missing_schema_says_what_to_do(run: Run) -> None:
    wrong = run("publish", "orders", "--schema", "nowhere", status=1)

    assert "pgsignals schema init --schema nowhere" in wrong.err
    assert len(wrong.err.splitlines()) == 1


# Roles


def as_role(dsn: str, role: str) -> str:
    return psycopg.conninfo.make_conninfo(dsn, user=role, password="x")


def test_publisher_publishes_and_can_do_nothing_else(
    run: Run, schema: str, role: str, dsn: str
) -> None:
    run("schema", "init", "--schema", schema)
    theirs = as_role(dsn, role)
    refused = run("publish", "orders", "--schema", schema, "--dsn", theirs, status=1)
    assert f"--schema {schema} --grants publisher=ROLE" in refused.err
    run("schema", "init", "--schema", schema, "--grants", f"publisher={role}")

    run("publish", "orders", "--schema", schema, "--dsn", theirs)
    with Database(theirs) as db:
        more = {"headers": {"a": "b"}, "key": "k", "schema": schema}
        assert db.publish("orders", "x", dedup="d", **more) is not None  # type: ignore[arg-type]
        assert db.publish("orders", "x", dedup="d", **more) is None  # type: ignore[arg-type]
        assert db.publish("orders", "x", delay=60, ordered=True, **more)  # type: ignore[arg-type]
        assert db.publish_many("orders", ["a", "b"], schema=schema) == 2
        for forbidden in (
            f"SELECT payload FROM {schema}.event",
            f"DELETE FROM {schema}.event",
            f"INSERT INTO {schema}.event (txid, channel) VALUES ('3', 'c')",
            f"INSERT INTO {schema}.event (id, channel) OVERRIDING SYSTEM VALUE VALUES (1, 'c')",
            f"SELECT 1 FROM {schema}.meta",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                db.execute(forbidden)


def test_consumer_may_check(run: Run, schema: str, role: str, dsn: str) -> None:
    run("schema", "init", "--schema", schema)
    theirs = as_role(dsn, role)
    refused = run("schema", "check", "--schema", schema, "--dsn", theirs, status=1)
    assert "may not read the schema" in refused.err
    assert "GRANT USAGE ON SCHEMA" in refused.err
    run("schema", "init", "--schema", schema, "--grants", f"consumer={role}")
    run("schema", "check", "--schema", schema, "--dsn", theirs)


# Versions and clusters


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("version = 0", "pgsignals schema upgrade"),
        ("version = 2", "install a newer pgsignals"),
        ("system_id = system_id + 1", "pgsignals schema adopt"),
    ],
)
def test_schema_of_another_version_or_cluster_is_refused(
    run: Run, schema: str, admin: Admin, change: str, text: str
) -> None:
    run("schema", "init", "--schema", schema)
    admin.execute(f"UPDATE {schema}.meta SET {change}")

    assert text in run("schema", "check", "--schema", schema, status=1).err
    assert text in run("schema", "init", "--schema", schema, status=1).err
    if "adopt" in text:
        assert "adopted" in run("schema", "adopt", "--schema", schema).err
        run("schema", "check", "--schema", schema)


def test_two_that_install_at_once_both_succeed(dsn: str, schema: str) -> None:
    def install() -> bool:
        with Database(dsn) as db:
            return durable.init(db, schema, Limits())

    several = [Background(install) for _ in range(4)]

    assert sorted(one.result() for one in several) == [False, False, False, True]


def test_install_that_fails_leaves_nothing(dsn: str, schema: str, admin: Admin) -> None:
    with Database(dsn) as db, pytest.raises(psycopg.errors.UndefinedObject):
        durable.init(db, schema, Limits(), publisher="nobody_of_that_name")

    assert admin.execute(f"SELECT 1 FROM pg_namespace WHERE nspname = '{schema}'") == []


# On a reactor


def test_reactor_publishes_beside_and_in_the_transaction_of_a_handler(
    dsn: str, schema: str, channel: str, admin: Admin
) -> None:
    with Database(dsn) as db:
        durable.init(db, schema, Limits())
        assert db.publish_many("orders", ["a", ("b", "k")], schema=schema) == 2
    done: list[BaseException | None] = []
    with Reactor(dsn) as reactor:

        @reactor.on_channel(channel)
        def handle(db: Database, *, notification: object) -> None:
            try:
                with db.transaction():
                    reactor.publish("orders", "gone", schema=schema)
                    raise LookupError
            except LookupError:
                pass
            with db.transaction():
                db.publish("orders", "handled", schema=schema)
            done.append(None)

        assert reactor.publish("orders", "beside", schema=schema) is not None
        assert reactor.publish_many("orders", ["c"], schema=schema) == 1
        assert reactor.databases[0].publish("orders", "served", schema=schema) is not None
        admin.notify(channel)
        wait_until(lambda: done)
        with pytest.raises(SchemaError, match="pgsignals schema init --schema nowhere"):
            reactor.publish("orders", schema="nowhere")
        assert reactor.status().databases[0].failed == 0

    rows = admin.execute(f"SELECT payload FROM {schema}.event ORDER BY id")
    assert [payload for (payload,) in rows] == ["a", "b", "beside", "c", "served", "handled"]


def test_publisher_that_waits_for_another_transaction_is_not_cut_off_and_holds_up_no_other(
    dsn: str, schema: str, channel: str
) -> None:
    """Not by the deadline for silent servers; and canaries, notifications and other publishers,
    such as the one that it waits for, do not wait for it."""
    with Database(dsn) as db:
        durable.init(db, schema, Limits())
    heard: list[object] = []
    with Reactor(dsn, probe_interval=0.2, probe_timeout=0.3) as reactor:
        reactor.on_channel(channel)(lambda db, notification: heard.append(notification))
        with psycopg.connect(dsn) as first:
            publish(first, "orders", "first", dedup="d", schema=schema)
            later = Background(
                lambda: reactor.publish("orders", "second", dedup="d", schema=schema)
            )
            waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            with psycopg.connect(dsn, autocommit=True) as watch:
                wait_until(lambda: watch.execute(waits).fetchone())
            received = time.monotonic() + 1.0
            while time.monotonic() < received:  # longer than the server may be silent
                reactor.notify(channel)
            assert Background(reactor.publish, "orders", "meanwhile", schema=schema).result()
            assert Background(reactor.publish, "orders", dedup="e", schema=schema).result()
            assert Background(reactor.publish_many, "orders", ["many"], schema=schema).result()
            first.rollback()
        assert later.result() is not None
        assert reactor.status().databases[0].reconnects == 0
    assert heard


def test_command_names_its_actions() -> None:
    shown = subprocess.run([*PGSIGNALS, "schema", "--help"], capture_output=True, check=True)

    assert all(name in shown.stdout.decode() for name in ("init", "check", "adopt", "drop"))
