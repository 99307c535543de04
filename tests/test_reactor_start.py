"""Why a start fails: which of several databases it is, and what to do."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest

from pgsignals import ConnectError, Database, Error, Reactor, UnsupportedServerError
from pgsignals.embedded import Postgres
from pgsignals.testing import Proxy
from tests.programs.fault_rig import become_standby
from tests.support.waiting import Background, wait_until
from tests.test_faults_pooler import Bouncer, bouncer  # noqa: F401 - a fixture


def refused(dsn: str, other: str | Database) -> Error:
    """How a start fails that has a good database before the other one."""
    reactor = Reactor(dsn, other, channels=["a"], probe_interval=1.0, probe_timeout=1.0)
    with pytest.raises(Error) as caught:
        reactor.start()
    return caught.value


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"port": "1"}, "127.0.0.1:1/postgres: "),
        ({"host": "nowhere.invalid"}, "nowhere.invalid:{port}/postgres: "),
        ({"host": "/nowhere"}, "/nowhere:{port}/postgres: "),
        ({"password": "hush"}, "127.0.0.1:{port}/postgres: "),
        ({"dbname": "nowhere"}, "127.0.0.1:{port}/nowhere: "),
        ({"service": "nowhere"}, "service=nowhere: "),
    ],
)
def test_database_that_cannot_be_reached_is_named(
    postgres: Postgres, change: dict[str, str], name: str
) -> None:
    error = refused(postgres.dsn, postgres.dsn_for(**change))

    assert isinstance(error, ConnectError)
    assert str(error).startswith(name.format(port=postgres.port))
    assert "hush" not in str(error)


def test_database_whose_connect_fails_is_named(postgres: Postgres) -> None:
    def from_the_vault() -> Any:
        return psycopg.connect(postgres.dsn_for(port="1"), autocommit=True)

    assert "from_the_vault: connect failed: " in str(
        refused(postgres.dsn, Database(connect=from_the_vault))
    )


def test_database_that_is_not_in_autocommit_is_named(postgres: Postgres) -> None:
    opened = []

    def connect() -> Any:
        opened.append(psycopg.connect(postgres.dsn_for("template1")))
        return opened[-1]

    error = refused(postgres.dsn, Database(connect=connect))
    opened[0].close()

    assert str(error).startswith(f"127.0.0.1:{postgres.port}/template1: ")


def test_database_whose_connect_raises_something_else_is_in_its_notes(postgres: Postgres) -> None:
    def from_the_vault() -> Any:
        raise LookupError("no such secret")

    with pytest.raises(LookupError) as caught:
        Reactor(postgres.dsn, Database(connect=from_the_vault)).start()

    assert any("from_the_vault" in note for note in caught.value.__notes__)


def test_standby_is_named(dsn: str) -> None:
    with Postgres(tcp=True) as server:
        server.stop()
        become_standby(server)
        server.start()

        assert str(refused(dsn, server.dsn)).startswith(f"127.0.0.1:{server.port}/postgres ")


def test_pooler_is_named(dsn: str, bouncer: Bouncer) -> None:  # noqa: F811
    error = refused(dsn, bouncer.dsn("transaction"))

    assert re.match(r"127\.0\.0\.1:\d+/\w+: LISTEN succeeds, but", str(error))


def test_server_that_is_too_old_is_refused_with_the_oldest_that_is_not(postgres: Postgres) -> None:
    direct = postgres.dsn_for(host=postgres.directory, sslmode="disable", gssencmode="disable")
    greeting = re.compile(rb"(server_version\x00)\d\d")
    with Proxy(direct) as proxy:
        proxy.freeze("to_client")
        starting = Background(Reactor(proxy.dsn, channels=["a"]).start)
        wait_until(lambda: proxy.held("to_client") > 200)
        proxy.rewrite("to_client", lambda held: greeting.sub(rb"\g<1>13", held))
        proxy.thaw()

        with pytest.raises(
            UnsupportedServerError,
            match=rf"^127\.0\.0\.1:{proxy.port}/postgres: .*PostgreSQL 13.* 14 is the oldest",
        ):
            starting.result()
