"""PgBouncer before the server: what cannot work is refused, and what the usual checks would say."""

from __future__ import annotations

import logging
import os
import pwd
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgsignals import Database, PoolerError, Reactor
from pgsignals.embedded import Postgres
from tests.programs.fault_rig import PROBES, QUICK, Witness, free_port, now, session_of
from tests.support.admin import Admin
from tests.support.tools import tool
from tests.support.waiting import AT_ONCE, wait_until

RecordProperty = Callable[[str, object], None]


class Bouncer:
    """A PgBouncer before *server*, with a database for each of its modes."""

    def __init__(self, program: str, server: Postgres, directory: Path) -> None:
        self.port = free_port()
        self._log = directory / "log"
        modes = "\n".join(
            f"{mode} = host=127.0.0.1 port={server.port} dbname=postgres user=postgres "
            f"password={server.password} pool_mode={mode}"
            for mode in ("transaction", "statement", "session")
        )
        ini = directory / "pgbouncer.ini"
        ini.write_text(
            f"[databases]\n{modes}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\nunix_socket_dir =\nauth_type = any\n"
            "ignore_startup_parameters = extra_float_digits\n"
            "server_idle_timeout = 1\n"  # the pool keeps no session for long
        )
        account = None
        if os.geteuid() == 0:
            account = pwd.getpwnam("nobody").pw_uid
            os.chown(directory, account, -1)
            os.chown(ini, account, -1)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [program, str(ini)], stdout=log, stderr=log, cwd=directory, user=account
            )
        wait_until(self._answers, why="PgBouncer did not start")

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.log
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def dsn(self, mode: str) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname={mode} sslmode=disable"

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)


@pytest.fixture(scope="module")
def bouncer(postgres: Postgres) -> Iterator[Bouncer]:
    program = tool("pgbouncer")
    with tempfile.TemporaryDirectory() as directory:
        bouncer = Bouncer(program, postgres, Path(directory))
        yield bouncer
        bouncer.close()


# Transaction and statement


@pytest.mark.parametrize(
    ("mode", "probes"),
    [
        ("transaction", PROBES),
        ("statement", PROBES),
        ("transaction", {}),
        ("statement", {"probe_interval": None}),
    ],
    ids=["transaction", "statement", "defaults", "without probes"],
)
def test_pool_that_takes_our_registration_away_is_refused(
    bouncer: Bouncer, mode: str, probes: dict[str, Any], record_property: RecordProperty
) -> None:
    reactor = Reactor(bouncer.dsn(mode), channels=["orders"], **probes)
    witness = Witness(reactor)
    begun = time.monotonic()

    with pytest.raises(PoolerError, match="pool in session mode"):
        reactor.start()

    taken = time.monotonic() - begun
    record_property("refused_after", taken)
    assert taken < AT_ONCE
    assert not witness.happenings
    assert not reactor.running


def test_pool_is_refused_while_its_server_connections_are_busy_with_others(
    bouncer: Bouncer,
) -> None:
    enough = threading.Event()

    def work() -> None:
        with psycopg.connect(
            bouncer.dsn("transaction"), autocommit=True, prepare_threshold=None
        ) as connection:
            while not enough.is_set():
                connection.execute("SELECT pg_sleep(0.001)")

    workers = [threading.Thread(target=work, daemon=True) for _ in range(3)]
    for worker in workers:
        worker.start()
    try:
        reactor = Reactor(bouncer.dsn("transaction"), channels=["orders"], **QUICK)
        witness = Witness(reactor)
        with pytest.raises((PoolerError, ConnectionError)):
            reactor.start()
        assert not witness.happenings
    finally:
        enough.set()
        for worker in workers:
            worker.join(10)


def test_usual_checks_would_have_been_fooled(
    bouncer: Bouncer, dsn: str, admin: Admin, channel: str
) -> None:
    with psycopg.connect(
        bouncer.dsn("transaction"), autocommit=True, prepare_threshold=None
    ) as fooled:
        got: list[str] = []
        fooled.add_notify_handler(lambda n: got.append(n.payload))
        fooled.execute(f"LISTEN {channel}".encode())

        channels = fooled.execute("SELECT pg_listening_channels()").fetchall()
        fooled.execute("SELECT pg_notify(%s, 'from myself')", (channel,))

        assert (channel,) in channels  # the first check says: all is well
        assert got == ["from myself"]  # and the second

        thrown_away = bouncer.log.count("when not linked")
        admin.notify(channel, "from somebody else")  # while it is idle

        wait_until(lambda: bouncer.log.count("when not linked") > thrown_away)
        fooled.execute("SELECT 1")
        assert got == ["from myself"]


# Session


def test_pool_of_sessions_works_and_is_warned_of(
    bouncer: Bouncer,
    dsn: str,
    admin: Admin,
    channel: str,
    caplog: pytest.LogCaptureFixture,
    record_property: RecordProperty,
) -> None:
    caplog.set_level(logging.WARNING, "pgsignals")
    reactor = Reactor(bouncer.dsn("session"), channels=[channel], **QUICK)
    witness = Witness(reactor)
    with reactor:
        assert "a pooler is in front of the server" in caplog.text
        begun = time.monotonic()
        admin.notify(channel, "through the pool")
        witness.wait_for("through the pool")
        record_property("delivered_after", time.monotonic() - begun)
        assert session_of(reactor) in admin.sessions()  # the server's number, not the pooler's
        probes = set[float | None]()

        def probed_again() -> bool:
            probes.add(reactor.status().databases[0].probe_seconds)
            return len(probes) > 3

        wait_until(probed_again)
        assert witness.kinds(reactor.databases[0]) == ["connected"]

    # Nobody inherits what we listened to, nor the guards of our session.
    with psycopg.connect(bouncer.dsn("session"), autocommit=True) as next_one:
        assert next_one.execute("SELECT pg_listening_channels()").fetchall() == []
        [setting] = next_one.execute("SHOW tcp_user_timeout").fetchall()
        assert setting in [("0",), (0,)]


def test_pooler_that_ends_is_a_loss_and_its_return_a_gap(
    bouncer: Bouncer, admin: Admin, channel: str
) -> None:
    reactor = Reactor(bouncer.dsn("session"), channels=[channel], **QUICK)
    witness = Witness(reactor)
    with reactor:
        admin.kill(session_of(reactor))
        lost = witness.wait("lost")
        witness.wait("gap")
        admin.notify(channel, "back")
        witness.wait_for("back")

    assert lost.told["reason"] == "ended"
    assert witness.kinds(reactor.databases[0]) == ["connected", "lost", "connected", "gap"]


# What somebody does to our session


@pytest.mark.parametrize("sql", ["UNLISTEN *", "DISCARD ALL", 'UNLISTEN "pgsignals.probe"'])
def test_registrations_that_somebody_takes_away_come_back_with_a_gap(
    dsn: str, admin: Admin, channel: str, sql: str, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[psycopg.Connection[Any]] = []

    def fresh() -> psycopg.Connection[Any]:
        opened.append(psycopg.connect(dsn, autocommit=True))
        return opened[-1]

    reactor = Reactor(Database(connect=fresh), channels=[channel, "other"], **QUICK)
    witness = Witness(reactor)
    with reactor:
        ours = next(one for one in opened if one.info.backend_pid == session_of(reactor))
        last_probe = reactor.status().databases[0].probe_seconds
        wait_until(lambda: reactor.status().databases[0].probe_seconds != last_probe)
        before = now()
        ours.execute(sql.encode())  # right after a probe, so that nothing of ours is under way
        users = "probe" not in sql
        if users:
            admin.notify(channel, "swallowed")
            after = now()
            gap = witness.wait("gap").gap
            assert gap.reason == "unlistened"
            assert gap.channels == frozenset({channel, "other"})
            assert gap.since <= before
            assert after <= gap.until
        else:
            wait_until(lambda: "1 LISTEN registrations were removed" in caplog.text)
        admin.notify(channel, "after")
        witness.wait_for("after")

    assert witness.arrived(channel) == ["after"]
    told = witness.kinds(reactor.databases[0])
    assert told == (["connected", "gap"] if users else ["connected"])
