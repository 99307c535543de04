"""The server goes away and says so, or its network does: every loss is told and mended."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgsignals import ConnectError, Database, Reactor
from pgsignals.embedded import Postgres
from pgsignals.testing import Proxy
from tests.programs.fault_rig import (
    BUSY,
    PROMISED,
    QUICK,
    Censor,
    Pinger,
    Witness,
    deaf_ports,
    error_of,
    now,
    session_of,
    state_of,
)
from tests.support.admin import Admin
from tests.support.protocol import notification_response
from tests.support.waiting import AT_ONCE, Background, wait_until

RecordProperty = Callable[[str, object], None]

CHANNELS = ["a", "b", "Mixed Case", "d", "é"]

NEVER_PROBES: dict[str, Any] = {"probe_interval": None, "backoff": (0.01, 0.05)}


@pytest.fixture(scope="module")
def the_server() -> Iterator[Postgres]:
    with Postgres(tcp=True) as server:
        yield server


@pytest.fixture
def server(the_server: Postgres) -> Iterator[Postgres]:
    """A server to be hurt; it runs again after the test."""
    yield the_server
    the_server.start()


@pytest.fixture
def boss(server: Postgres) -> Iterator[Admin]:
    """A session on the server that is hurt, for tests that do not stop it."""
    boss = Admin(server.dsn)
    yield boss
    boss.close()


@pytest.fixture
def road(server: Postgres) -> Iterator[Proxy]:
    """Leads to the server that is hurt."""
    with Proxy(server.dsn) as road:
        yield road


def notify(dsn: str, channel: str, payload: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_notify(%s, %s)", (channel, payload))


# A1, A3, A4, A6-A10: each with another database that feels nothing

Fault = Callable[[Postgres, Proxy, int], None]


def _terminate(server: Postgres, _: Proxy, pid: int) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(%s)", (pid,))


def _kill_another(server: Postgres, _: Proxy, __: int) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as victim:
        server.kill_backend(victim.info.backend_pid, signal.SIGKILL)


FAULTS: dict[str, tuple[Fault, set[str | None]]] = {
    "terminate": (_terminate, {"57P01"}),
    "fast restart": (lambda server, *_: server.restart("fast"), {"57P01"}),
    "immediate restart": (lambda server, *_: server.restart("immediate"), {"57P02", None}),
    "kill restart": (lambda server, *_: server.restart("kill"), {"57P01", "57P02", None}),
    "kill -9 ours": (lambda server, _, pid: server.kill_backend(pid, signal.SIGKILL), {None}),
    "kill -9 another": (_kill_another, {"57P02", None}),
    "RST": (lambda _, road, __: road.reset(), {None}),
    "FIN": (lambda _, road, __: road.cut(), {None}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_loud_fault_is_told_and_mended_and_hurts_nobody_else(
    server: Postgres, road: Proxy, dsn: str, fault: str, record_property: RecordProperty
) -> None:
    do, sqlstates = FAULTS[fault]
    hurt, other = Database(server.dsn_for(port=road.port)), Database(dsn)
    reactor = Reactor(hurt, other, channels=CHANNELS, **QUICK)
    witness = Witness(reactor)
    with reactor, Pinger(dsn, "a", witness) as pinger:
        pid = session_of(reactor)
        wait_until(lambda: pinger.count > 3)
        begun = time.monotonic()

        do(server, road, pid)

        after, healed = now(), time.monotonic()
        lost = witness.wait("lost", database=hurt)
        gap = witness.wait("gap", database=hurt)
        for name in CHANNELS:
            notify(server.dsn, name, f"to {name}")
            witness.wait_for(f"to {name}")

    record_property("detected", lost.at - begun)
    record_property("recovered", gap.at - healed)
    record_property("slowest_of_other", pinger.slowest)
    assert witness.kinds(hurt) == ["connected", "lost", "connected", "gap"]
    assert [one.told["resumed"] for one in witness.all("connected", hurt)] == [False, True]
    assert lost.told["reason"] == "ended"
    assert lost.told["error"].sqlstate in sqlstates
    assert gap.gap.reason == "reconnect"
    assert gap.gap.since <= after  # a probe may still have passed before the fault
    assert gap.gap.until >= min(after, now())
    assert gap.gap.channels is None
    assert gap.gap.dropped is None
    assert witness.kinds(other) == ["connected"]
    assert pinger.slowest < PROMISED + BUSY
    assert gap.at - healed < PROMISED + BUSY


@pytest.mark.parametrize("fault", ["fast restart", "immediate restart", "kill -9 another"])
def test_deaf_link_is_not_told_as_connected_when_its_control_connection_ended_too(
    server: Postgres, road: Proxy, fault: str
) -> None:
    # The canary of the new session finds a control connection that has ended meanwhile.
    do, _ = FAULTS[fault]
    with Censor(server.port) as censor:
        reactor = Reactor(server.dsn_for(port=censor.port), channels=["a"], **QUICK)
        witness = Witness(reactor)
        with reactor:
            assert reactor.notify(a="before") == 1
            witness.wait_for("before")
            censor.withholds = True

            do(server, road, session_of(reactor))

            witness.wait("lost")
            withheld = censor.withheld
            wait_until(lambda: censor.withheld > withheld + 1)
            assert witness.kinds(reactor.databases[0]) == ["connected", "lost"]
            censor.withholds = False
            witness.wait("gap")


@pytest.mark.parametrize("probes", [{"probe_interval": 20.0, "probe_timeout": 20.0}, NEVER_PROBES])
def test_nothing_is_told_before_the_server_has_acknowledged_the_listen(
    server: Postgres, boss: Admin, probes: dict[str, Any]
) -> None:
    with Censor(server.port) as censor:
        reactor = Reactor(
            server.dsn_for(port=censor.port), channels=["a"], **{**probes, "backoff": (0.01, 0.05)}
        )
        witness = Witness(reactor)
        with reactor:
            censor.lets_listen.clear()
            boss.kill(session_of(reactor))
            witness.wait("lost")
            assert censor.listen_waits.wait(AT_ONCE)
            boss.notify("a", "missed")  # nobody listens yet
            missed_at = now()
            assert witness.kinds(reactor.databases[0]) == ["connected", "lost"]
            assert state_of(reactor) != "listening"
            censor.lets_listen.set()
            gap = witness.wait("gap").gap
            boss.notify("a", "heard")
            witness.wait_for("heard")

    assert witness.arrived() == ["heard"]
    assert gap.since <= missed_at <= gap.until


def test_every_committed_notification_that_a_termination_swallows_lies_in_a_gap(
    server: Postgres, boss: Admin, record_property: RecordProperty
) -> None:
    reactor = Reactor(server.dsn, channels=["a"], **NEVER_PROBES)
    witness = Witness(reactor)
    times = []
    with reactor:
        for number in range(1, 31):
            pid = session_of(reactor)
            begun = now()
            boss.execute("SELECT pg_notify('a', %s)", str(number))
            # At once, before it may have been sent:
            boss.execute("SELECT pg_terminate_backend(%s)", pid)
            times.append((begun, now()))
            witness.wait("gap", number)
        boss.notify("a", "the end")
        witness.wait_for("the end")

    arrived = witness.arrived("a")
    missing = [n for n in range(1, 31) if str(n) not in arrived]
    record_property("missing_of_30", len(missing))
    gaps = [one.gap for one in witness.all("gap")]
    assert len(gaps) == len(witness.all("lost")) == 30
    for number in missing:
        begun, done = times[number - 1]
        assert any(gap.since <= done and begun <= gap.until for gap in gaps)
    assert arrived.pop() == "the end"
    assert arrived == sorted(arrived, key=int)


def test_half_a_notification_is_never_handed_over(
    server: Postgres, road: Proxy, boss: Admin
) -> None:
    # 30 bytes of message are cut after each of them; with all of them it is delivered.
    whole = len(notification_response(boss.pid, "half", "of a payload"))
    reactor = Reactor(server.dsn_for(port=road.port), channels=["half"], **NEVER_PROBES)
    witness = Witness(reactor)
    with reactor:
        for count in range(1, whole + 1):
            road.cut_after(count, "to_client")
            boss.notify("half", "of a payload")
            witness.wait("gap", count)
            assert witness.arrived() == ["of a payload"] * (count == whole)
        boss.notify("half", "marker")
        witness.wait_for("marker")

    assert witness.arrived() == ["of a payload", "marker"]
    assert {one.told["reason"] for one in witness.all("lost")} == {"ended"}
    assert not witness.all("handler_failed")


# A5


def test_smart_shutdown_waits_for_the_reactor_which_lets_it_finish(server: Postgres) -> None:
    reactor = Reactor(server.dsn, channels=["a"], **QUICK)
    witness = Witness(reactor)
    with reactor:
        shutdown = Background(server.stop, "smart", timeout=AT_ONCE)
        wait_until(lambda: "received smart shutdown request" in server.log)
        probes = set[float | None]()

        def probed_again() -> bool:
            probes.add(reactor.status().databases[0].probe_seconds)
            return len(probes) > 3

        wait_until(probed_again)
        assert state_of(reactor) == "listening"
        assert shutdown.running
    shutdown.result()

    assert not server.running
    assert [one.kind for one in witness.happenings] == ["connected"]


# A8


class Starting:
    """A server that says of itself that it is starting up."""

    def __init__(self) -> None:
        self.asked = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _run(self) -> None:
        body = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with client:
                    client.recv(4096)
                    self.asked += 1
                    client.sendall(b"E" + struct.pack("!i", 4 + len(body)) + body)


def test_server_that_is_starting_up_is_tried_again_soon(server: Postgres, boss: Admin) -> None:
    starting = Starting()
    leads_to = {"port": server.port}

    def fresh() -> psycopg.Connection[Any]:
        return psycopg.connect(
            server.dsn_for(sslmode="disable", gssencmode="disable", port=leads_to["port"]),
            autocommit=True,
        )

    reactor = Reactor(Database(connect=fresh), channels=["a"], **QUICK)
    witness = Witness(reactor)
    try:
        with reactor:
            leads_to["port"] = starting.port
            boss.kill(session_of(reactor))
            wait_until(lambda: starting.asked >= 4)
            wait_until(lambda: "starting up" in error_of(reactor))
            assert witness.kinds(reactor.databases[0]) == ["connected", "lost"]
            leads_to["port"] = server.port

            witness.wait("gap")
            boss.notify("a", "back")
            witness.wait_for("back")
    finally:
        starting.close()


# A11-A14: who may come in


@pytest.fixture
def role(server: Postgres, boss: Admin) -> Iterator[str]:
    """A connection string of a role of its own."""
    boss.execute("CREATE ROLE app LOGIN PASSWORD 'old-secret'")
    yield server.dsn_for(user="app", password="old-secret", sslmode="disable")
    boss.execute("DROP ROLE app")


def seconds_between_refusals(server: Postgres, pattern: str, longest: float) -> list[float]:
    """Wait for three refusals in the server's log, and return the times between them."""
    begun = len(re.findall(pattern, server.log))
    seen: list[float] = []

    def three() -> bool:
        count = len(re.findall(pattern, server.log)) - begun
        seen.extend([time.monotonic()] * (count - len(seen)))
        return len(seen) >= 3

    wait_until(three, 6 * longest + AT_ONCE)
    return [later - earlier for earlier, later in itertools.pairwise(seen)]


LONGEST = 0.7
REFUSALS: dict[str, tuple[str, str, str]] = {
    "rotated password": (
        "ALTER ROLE app PASSWORD 'new-secret'",
        "ALTER ROLE app PASSWORD 'old-secret'",
        "authentication failed",
    ),
    "NOLOGIN": ("ALTER ROLE app NOLOGIN", "ALTER ROLE app LOGIN", "not permitted to log in"),
    "CONNECT revoked": (
        "REVOKE CONNECT ON DATABASE postgres FROM PUBLIC",
        "GRANT CONNECT ON DATABASE postgres TO PUBLIC",
        "permission denied for database",
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_login_that_is_refused_is_tried_slowly_and_never_in_a_storm(
    server: Postgres,
    boss: Admin,
    role: str,
    refusal: str,
    caplog: pytest.LogCaptureFixture,
    record_property: RecordProperty,
) -> None:
    shut, reopen, words = REFUSALS[refusal]
    reactor = Reactor(role, channels=["a"], probe_interval=None, backoff=(0.02, LONGEST))
    witness = Witness(reactor)
    with reactor:
        boss.execute(shut)
        boss.kill(session_of(reactor))

        between = seconds_between_refusals(server, words, LONGEST)

        wait_until(lambda: words in error_of(reactor))
        assert state_of(reactor) in ("lost", "connecting")
        assert "secret" not in caplog.text + error_of(reactor)
        boss.execute(reopen)
        witness.wait("gap")
        boss.notify("a", "back")
        witness.wait_for("back")
    record_property("seconds_between", min(between))
    assert min(between) > LONGEST * 0.8  # a poll of ours may see one of them late
    assert witness.kinds(reactor.databases[0]) == ["connected", "lost", "connected", "gap"]


@pytest.mark.parametrize("how", ["dropped", "renamed"])
def test_database_that_is_gone_is_waited_for_and_hurts_nobody_else(
    server: Postgres, boss: Admin, dsn: str, how: str
) -> None:
    boss.execute("CREATE DATABASE shop")
    shop, other = Database(server.dsn_for("shop")), Database(dsn)
    reactor = Reactor(shop, other, channels=["a"], probe_interval=None, backoff=(0.02, LONGEST))
    witness = Witness(reactor)
    try:
        with reactor, Pinger(dsn, "a", witness) as pinger:
            if how == "dropped":
                boss.execute("DROP DATABASE shop WITH (FORCE)")
            else:
                boss.execute("ALTER DATABASE shop ALLOW_CONNECTIONS false")
                boss.kill(session_of(reactor))
                boss.execute("ALTER DATABASE shop RENAME TO store")
            witness.wait("lost", database=shop)
            between = seconds_between_refusals(server, '"shop" does not exist', LONGEST)
            assert "does not exist" in error_of(reactor)

            if how == "dropped":
                boss.execute("CREATE DATABASE shop")
            else:
                boss.execute("ALTER DATABASE store RENAME TO shop")
                boss.execute("ALTER DATABASE shop ALLOW_CONNECTIONS true")
            witness.wait("gap", database=shop)
            notify(server.dsn_for("shop"), "a", "back")
            witness.wait_for("back")
        assert min(between) > LONGEST * 0.8
        assert witness.kinds(other) == ["connected"]
        assert pinger.slowest < BUSY
    finally:
        boss.execute("DROP DATABASE IF EXISTS shop WITH (FORCE)")


def test_too_many_connections_are_tried_again_with_backoff(boss: Admin, role: str) -> None:
    reactor = Reactor(role, channels=["a"], **QUICK)
    witness = Witness(reactor)
    with reactor:
        boss.execute("ALTER ROLE app CONNECTION LIMIT 0")
        boss.kill(session_of(reactor))
        wait_until(lambda: "too many connections" in error_of(reactor))
        assert witness.kinds(reactor.databases[0]) == ["connected", "lost"]

        boss.execute("ALTER ROLE app CONNECTION LIMIT 10")
        witness.wait("gap")
        boss.notify("a", "back")
        witness.wait_for("back")


def test_too_many_connections_at_the_start_are_an_error_of_start(boss: Admin, role: str) -> None:
    boss.execute("ALTER ROLE app CONNECTION LIMIT 0")

    with pytest.raises(ConnectError, match="too many connections"):
        Reactor(role, channels=["a"]).start()


def test_control_connection_that_finds_no_place_is_a_warning_and_no_loss(
    boss: Admin, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "pgsignals")  # the same warning comes once
    boss.execute("ALTER ROLE app CONNECTION LIMIT 1")
    reactor = Reactor(role, channels=["a"], **QUICK)
    witness = Witness(reactor)
    with reactor:
        wait_until(lambda: caplog.text.count("no canary could be sent") >= 3)
        boss.notify("a", "heard all the same")
        witness.wait_for("heard all the same")

        assert witness.kinds(reactor.databases[0]) == ["connected"]
        assert "too many connections" in error_of(reactor)


# A15


def test_session_outlives_an_idle_session_timeout_of_its_own_connection_string(
    server: Postgres, boss: Admin
) -> None:
    options = "-c idle_session_timeout=300"
    dsn = server.dsn_for(options=options)
    reactor = Reactor(dsn, channels=["a"], probe_interval=60.0)
    witness = Witness(reactor)
    with reactor:
        for _ in range(2):  # those that do not take care end meanwhile
            with psycopg.connect(dsn, autocommit=True) as careless:
                pid = careless.info.backend_pid
                wait_until(lambda pid=pid: pid not in boss.sessions())  # type: ignore[misc]
        assert reactor.notify(a="still here") == 1  # on a control connection that has ended
        witness.wait_for("still here")

        assert witness.kinds(reactor.databases[0]) == ["connected"]


# A20, A21


def deaf_list(ports: list[int]) -> str:
    hosts = ",".join(["127.0.0.1"] * len(ports))
    return f"host={hosts} port={','.join(map(str, ports))} user=postgres dbname=postgres"


def test_list_of_deaf_hosts_has_one_bound_in_total(record_property: RecordProperty) -> None:
    with deaf_ports(3) as ports:  # libpq alone would take 3 times 2 seconds, at least
        reactor = Reactor(deaf_list(ports), channels=["a"], **QUICK)
        begun = time.monotonic()

        with pytest.raises(ConnectError, match=r"within|timeout"):
            reactor.start()

        taken = time.monotonic() - begun
    record_property("refused_after", taken)
    assert taken < PROMISED + BUSY


def test_list_of_deaf_hosts_delays_neither_stop_nor_another_database(
    server: Postgres, boss: Admin, dsn: str, record_property: RecordProperty
) -> None:
    leads_to = {"dsn": server.dsn}
    hurt = Database(connect=lambda: psycopg.connect(leads_to["dsn"], autocommit=True))
    other = Database(dsn)
    with deaf_ports(3) as ports:
        reactor = Reactor(hurt, other, channels=["a"], **QUICK)
        witness = Witness(reactor)
        reactor.start()
        with Pinger(dsn, "a", witness) as pinger:
            leads_to["dsn"] = deaf_list(ports)
            boss.kill(session_of(reactor))
            wait_until(lambda: "no connection within" in error_of(reactor))
            wait_until(lambda: state_of(reactor) == "connecting")
        begun = time.monotonic()

        assert reactor.stop(AT_ONCE)

        taken = time.monotonic() - begun
    record_property("stopped_after", taken)
    record_property("slowest_of_other", pinger.slowest)
    assert taken < BUSY
    assert pinger.slowest < PROMISED + BUSY
    assert witness.kinds(other) == ["connected"]


def test_name_that_cannot_be_resolved_is_an_error_of_start_at_once(
    record_property: RecordProperty,
) -> None:
    reactor = Reactor("host=no-such-host.invalid user=app dbname=shop", channels=["a"])
    begun = time.monotonic()

    with pytest.raises(ConnectError, match=r"no-such-host\.invalid"):
        reactor.start()

    taken = time.monotonic() - begun
    record_property("refused_after", taken)
    assert taken < BUSY


def test_name_that_does_not_resolve_any_more_is_tried_again(server: Postgres, boss: Admin) -> None:
    leads_to = {"host": "127.0.0.1"}

    def fresh() -> psycopg.Connection[Any]:
        return psycopg.connect(server.dsn_for(**leads_to), autocommit=True)

    reactor = Reactor(Database(connect=fresh), channels=["a"], **QUICK)
    witness = Witness(reactor)
    with reactor:
        leads_to["host"] = "no-such-host.invalid"
        boss.kill(session_of(reactor))
        wait_until(lambda: "no-such-host.invalid" in error_of(reactor))
        leads_to["host"] = "127.0.0.1"

        witness.wait("gap")
        boss.notify("a", "back")
        witness.wait_for("back")


def test_resolver_that_hangs_delays_neither_stop_nor_another_database(
    server: Postgres, boss: Admin, dsn: str, record_property: RecordProperty
) -> None:
    # libpq resolves inside of C, where nobody can make it hang: a `connect=` does instead.
    hangs, gate = threading.Event(), threading.Event()

    def fresh() -> psycopg.Connection[Any]:
        if hangs.is_set():
            gate.wait(60)
            raise OSError("resolved to nothing")
        return psycopg.connect(server.dsn, autocommit=True)

    hurt, other = Database(connect=fresh), Database(dsn)
    reactor = Reactor(hurt, other, channels=["a"], **QUICK)
    witness = Witness(reactor)
    try:
        reactor.start()
        with Pinger(dsn, "a", witness) as pinger:
            hangs.set()
            boss.kill(session_of(reactor))
            wait_until(lambda: "no connection within" in error_of(reactor))
        begun = time.monotonic()

        assert reactor.stop(AT_ONCE)

        taken = time.monotonic() - begun
    finally:
        gate.set()
    record_property("stopped_after", taken)
    assert taken < BUSY
    assert pinger.slowest < PROMISED + BUSY
    assert witness.kinds(other) == ["connected"]


# Many at once


def test_many_databases_recover_from_one_restart_without_a_storm(
    server: Postgres, caplog: pytest.LogCaptureFixture, record_property: RecordProperty
) -> None:
    count = 15
    databases = [Database(server.dsn) for _ in range(count)]
    caplog.set_level(logging.WARNING, "pgsignals")
    reactor = Reactor(*databases, channels=["a"], **QUICK)
    witness = Witness(reactor)
    with reactor:
        server.restart("immediate")
        healed = time.monotonic()
        recovered = witness.wait("gap", count).at - healed
        notify(server.dsn, "a", "back")
        wait_until(lambda: witness.arrived().count("back") == count)

    record_property("recovered", recovered)
    for database in databases:
        assert witness.kinds(database) == ["connected", "lost", "connected", "gap"]
    assert not [r for r in caplog.records if r.exc_info], "no tracebacks for what is expected"
    assert recovered < PROMISED + BUSY
