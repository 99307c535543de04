"""Standbys: refused with what to do, and a primary that becomes one, or another, is followed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgsignals import ConnectError, Database, Reactor, StandbyError
from pgsignals._sources import probing, setup
from pgsignals.embedded import Postgres
from tests.programs.fault_rig import (
    BUSY,
    PROMISED,
    QUICK,
    Witness,
    become_standby,
    error_of,
    now,
    run_as_server,
    session_of,
    state_of,
)
from tests.support.waiting import AT_ONCE, wait_until

RecordProperty = Callable[[str, object], None]


def execute(dsn: str, sql: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


def promote(dsn: str) -> None:
    assert execute(dsn, "SELECT pg_promote()") == [(True,)]


def list_of(*servers: Postgres, password: str) -> str:
    """A connection string that leads to whichever of *servers* is a primary."""
    return (
        f"host={','.join(['127.0.0.1'] * len(servers))} "
        f"port={','.join(str(server.port) for server in servers)} user=postgres "
        f"dbname=postgres password={password} target_session_attrs=primary"
    )


@pytest.fixture
def server() -> Iterator[Postgres]:
    with Postgres(tcp=True) as server:
        yield server


@pytest.fixture(scope="module")
def standby() -> Iterator[Postgres]:
    """A standby of nobody."""
    with Postgres(tcp=True) as server:
        server.stop()
        become_standby(server)
        server.start()
        yield server


@pytest.mark.parametrize("probe_interval", [None, 1.0])
def test_standby_is_refused_with_what_to_do(
    standby: Postgres, probe_interval: float | None, record_property: RecordProperty
) -> None:
    reactor = Reactor(standby.dsn, channels=["a"], probe_interval=probe_interval)
    witness = Witness(reactor)
    begun = time.monotonic()

    with pytest.raises(StandbyError, match="target_session_attrs=primary"):
        reactor.start()

    taken = time.monotonic() - begun
    record_property("refused_after", taken)
    assert taken < AT_ONCE
    assert not witness.happenings


def test_standby_that_is_the_only_host_of_a_list_is_an_error_of_start(standby: Postgres) -> None:
    with pytest.raises(ConnectError, match="hot standby"):
        Reactor(list_of(standby, password=standby.password)).start()


def test_list_of_hosts_leads_past_a_standby(standby: Postgres, server: Postgres) -> None:
    # The password is in the standby's files: the primary takes it over.
    execute(server.dsn, f"ALTER ROLE postgres PASSWORD '{standby.password}'")
    reactor = Reactor(list_of(standby, server, password=standby.password), channels=["a"], **QUICK)
    witness = Witness(reactor)
    with reactor:
        execute(server.dsn_for(password=standby.password), "NOTIFY a, 'heard'")
        witness.wait_for("heard")

    assert witness.kinds(reactor.databases[0]) == ["connected"]


def test_primary_that_comes_back_as_a_standby_is_never_reported_as_connected(
    server: Postgres, record_property: RecordProperty
) -> None:
    reactor = Reactor(server.dsn, channels=["a"], **QUICK)
    witness = Witness(reactor)
    database = reactor.databases[0]
    with reactor:
        begun = now()
        server.stop()
        become_standby(server)
        server.start()
        attempts = server.log.count("ready to accept read-only connections")
        assert attempts == 1
        wait_until(lambda: "standby" in error_of(reactor))
        assert state_of(reactor) != "listening"
        assert witness.kinds(database) == ["connected", "lost"]

        promote(server.dsn)
        promoted = time.monotonic()
        gap = witness.wait("gap")
        execute(server.dsn, "NOTIFY a, 'back'")
        witness.wait_for("back")

    record_property("recovered", gap.at - promoted)
    assert witness.kinds(database) == ["connected", "lost", "connected", "gap"]
    assert gap.gap.since <= begun
    assert gap.gap.until >= begun
    assert gap.at - promoted < PROMISED + BUSY


def test_reactor_follows_a_failover(server: Postgres, record_property: RecordProperty) -> None:
    program = server.bindir / "pg_basebackup"
    if not program.is_file():
        pytest.skip(f"no pg_basebackup in {server.bindir}")
    second = Postgres(tcp=True)
    try:
        source = f"host={server.directory} port={server.port} user=postgres"
        arguments = ["-D", str(second.data_directory), "-d", source, "-R", "-c", "fast"]
        run_as_server(second, str(program), *arguments)
        second.start()
        standby_dsn = second.dsn_for(password=server.password)
        assert execute(standby_dsn, "SELECT pg_is_in_recovery()") == [(True,)]
        # The standby first: the list is walked from its beginning.
        reactor = Reactor(
            list_of(second, server, password=server.password), channels=["a"], **QUICK
        )
        witness = Witness(reactor)
        with reactor:
            execute(server.dsn, "NOTIFY a, 'from the primary'")
            witness.wait_for("from the primary")
            begun, stopped = now(), time.monotonic()
            server.stop("immediate")
            lost = witness.wait("lost")
            wait_until(lambda: "in hot standby" in error_of(reactor))  # the standby is no way out

            promote(standby_dsn)
            promoted = time.monotonic()
            gap = witness.wait("gap")
            execute(standby_dsn, "NOTIFY a, 'from the new primary'")
            witness.wait_for("from the new primary")

            # The old one comes back as a standby of nobody: no way back.
            become_standby(server)
            server.start()
            execute(standby_dsn, f"SELECT pg_terminate_backend({session_of(reactor)})")
            witness.wait("gap", 2)
            execute(standby_dsn, "NOTIFY a, 'from it still'")
            witness.wait_for("from it still")
    finally:
        second.close()

    record_property("detected", lost.at - stopped)
    record_property("recovered", gap.at - promoted)
    assert witness.kinds(reactor.databases[0]) == [
        "connected",
        *("lost", "connected", "gap") * 2,
    ]
    assert gap.gap.since <= begun <= gap.gap.until
    assert gap.at - promoted < PROMISED + BUSY


def test_proxy_that_leads_to_a_standby_for_a_while_is_not_given_up(
    standby: Postgres, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may say that it is a primary, and refuse to LISTEN (25006) where it sends us."""
    blind = "SELECT pg_catalog.pg_backend_pid(), false"
    monkeypatch.setattr(setup, "IDENTIFY", blind)
    monkeypatch.setattr(probing, "PARTS", ())
    leads_to = [server]

    def connect() -> psycopg.Connection[Any]:
        return psycopg.connect(leads_to[0].dsn, autocommit=True)

    reactor = Reactor(Database(connect=connect), channels=["a"], backoff=(0.01, 0.05))
    witness = Witness(reactor)
    with reactor:
        leads_to[0] = standby
        execute(server.dsn, f"SELECT pg_terminate_backend({session_of(reactor)})")
        wait_until(lambda: "25006" in error_of(reactor))
        leads_to[0] = server
        witness.wait("gap")
        execute(server.dsn, "NOTIFY a, 'back'")
        witness.wait_for("back")

    assert witness.kinds(reactor.databases[0]) == ["connected", "lost", "connected", "gap"]
