"""Bytes that are hard to swallow, on their way to handlers: none of them costs its neighbours."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgsignals import Database, PayloadError, Reactor
from pgsignals.embedded import Postgres
from tests.programs.fault_rig import PROBES, QUICK, Sent, Witness, check_honesty, now
from tests.support.admin import Admin
from tests.support.waiting import wait_until

RecordProperty = Callable[[str, object], None]


@pytest.fixture(scope="module")
def dsn_of(postgres: Postgres, admin: Admin) -> Iterator[Callable[[str], str]]:
    """Leads to a database with an encoding, which is made when it is first asked for."""
    made: set[str] = set()

    def dsn_of(encoding: str) -> str:
        name = f"faults_{encoding.lower()}"
        if encoding not in made:
            admin.execute(
                f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
            )
            made.add(encoding)
        return postgres.dsn_for(name)

    yield dsn_of
    for encoding in made:
        admin.execute(f"DROP DATABASE faults_{encoding.lower()} WITH (FORCE)")


class Raw:
    """Notifies bytes as they are."""

    def __init__(self, dsn: str, encoding: str = "SQL_ASCII") -> None:
        self._connection = psycopg.connect(dsn, autocommit=True, client_encoding=encoding)

    def notify(self, channel: str, *payloads: bytes) -> None:
        """In one transaction."""
        sql = b";".join(b"NOTIFY " + channel.encode() + b", '" + one + b"'" for one in payloads)
        result = self._connection.pgconn.exec_(sql)
        assert result.status == psycopg.pq.ExecStatus.COMMAND_OK, result.error_message

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def raw(dsn: str, encoding: str = "SQL_ASCII") -> Iterator[Raw]:
    with contextlib.closing(Raw(dsn, encoding)) as raw:
        yield raw


@contextlib.contextmanager
def watched(dsn: str, channel: str, **options: Any) -> Iterator[tuple[Reactor, Witness]]:
    reactor = Reactor(dsn, channels=[channel], **{**QUICK, **options})
    witness = Witness(reactor)
    with reactor:
        yield reactor, witness


def test_latin1_database_is_understood_in_both_directions(
    dsn: str, dsn_of: Callable[[str], str], channel: str
) -> None:
    with watched(dsn_of("LATIN1"), channel) as (reactor, witness):
        with raw(dsn_of("LATIN1"), "LATIN1") as writer:
            writer.notify(channel, b"before", b"\xe9", b"after")
        witness.wait_for("after")
        reactor.notify((channel, "ü"))
        witness.wait_for("ü")

    assert witness.arrived() == ["before", "é", "after", "ü"]
    assert witness.kinds(reactor.databases[0]) == ["connected"]


@pytest.mark.parametrize("payload", [b"\xff", b"\xc3", b"caf\xe9", b"\xed\xa0\x80", b"\x80" * 7999])
def test_bytes_that_are_no_utf8_do_not_cost_their_neighbours(
    dsn: str, dsn_of: Callable[[str], str], channel: str, payload: bytes
) -> None:
    with watched(dsn_of("SQL_ASCII"), channel) as (reactor, witness):
        with raw(dsn_of("SQL_ASCII")) as writer:
            writer.notify(channel, b"before", payload, b"after")
        witness.wait_for("after")

    before, odd, after = witness.arrived()
    assert (before, after) == ("before", "after")
    assert odd.encode("utf-8", "surrogateescape") == payload
    assert witness.kinds(reactor.databases[0]) == ["connected"]


def test_channel_that_is_no_utf8_does_not_cost_its_neighbours(
    dsn: str, dsn_of: Callable[[str], str], channel: str
) -> None:
    # Nobody can LISTEN to such a name through us; what is notified there passes by.
    with watched(dsn_of("SQL_ASCII"), channel) as (reactor, witness):
        with psycopg.connect(
            dsn_of("SQL_ASCII"), autocommit=True, client_encoding="SQL_ASCII"
        ) as connection:
            connection.pgconn.exec_(b'NOTIFY "\xff\xfe"')
            connection.pgconn.exec_(b"NOTIFY " + channel.encode() + b", 'after'")
        witness.wait_for("after")

    assert witness.kinds(reactor.databases[0]) == ["connected"]


def test_client_encoding_of_the_connection_string_is_overridden(
    dsn: str, admin: Admin, channel: str
) -> None:
    reactor = Reactor(f"{dsn} client_encoding=LATIN1", channels=[channel], **QUICK)
    witness = Witness(reactor)
    with pytest.warns(UserWarning, match="LATIN1"):
        reactor.start()
    try:
        admin.notify(channel, "before", "✓", "after")
        witness.wait_for("after")
    finally:
        reactor.stop()

    assert witness.arrived() == ["before", "✓", "after"]
    assert witness.kinds(reactor.databases[0]) == ["connected"]


@pytest.mark.parametrize("payload", ["\udc80", "a\ud800b", "a\0b", "x" * 8000, "é" * 4000])
def test_payload_that_cannot_be_sent_is_refused_before_the_wire(
    dsn: str, channel: str, payload: str
) -> None:
    with watched(dsn, channel) as (reactor, witness):
        with pytest.raises(PayloadError):
            reactor.notify((channel, payload))
        with pytest.raises(PayloadError):
            reactor.notify((channel, "a good one"), (channel, payload))
        reactor.notify((channel, "after"))
        witness.wait_for("after")

    assert witness.arrived() == ["after"]
    assert witness.kinds(reactor.databases[0]) == ["connected"]


def test_payload_that_a_handler_cannot_decode_costs_nobody_anything(
    dsn: str, admin: Admin, channel: str
) -> None:
    numbers: list[int] = []
    with watched(dsn, channel) as (reactor, witness):

        @reactor.on_channel(channel, decode=int)
        def add(_: Database, *, value: int, **__: object) -> None:
            numbers.append(value)

        admin.notify(channel, "1", "none", "3")
        wait_until(lambda: numbers == [1, 3])

    [failed] = witness.all("handler_failed")
    assert failed.told["notification"].payload == "none"


# Poison: what the server itself cannot convert for us ends the session, each time


def test_poison_is_told_as_a_gap_and_its_neighbours_in_time_go_on(
    dsn: str, dsn_of: Callable[[str], str], channel: str
) -> None:
    poison = b"\x81"  # WIN1252 has no such character
    with (
        watched(dsn_of("WIN1252"), channel) as (reactor, witness),
        raw(dsn_of("WIN1252"), "WIN1252") as writer,
    ):
        writer.notify(channel, b"before")
        witness.wait_for("before")
        begun = now()
        writer.notify(channel, poison)
        done = now()
        lost = witness.wait("lost")
        gap = witness.wait("gap").gap
        writer.notify(channel, b"\xe9")
        witness.wait_for("é")

    assert lost.told["error"].sqlstate == "22P05"
    assert gap.since <= done
    assert begun <= gap.until
    assert witness.arrived() == ["before", "é"]
    # The server does not send it again.
    assert witness.kinds(reactor.databases[0]) == ["connected", "lost", "connected", "gap"]


def test_poison_that_goes_on_and_on_is_no_hot_loop(
    dsn: str,
    dsn_of: Callable[[str], str],
    channel: str,
    caplog: pytest.LogCaptureFixture,
    record_property: RecordProperty,
) -> None:
    caplog.set_level(logging.WARNING, "pgsignals")
    enough = threading.Event()
    sent: list[Sent] = []
    deaths = 7

    def poison() -> None:
        with raw(dsn_of("WIN1252"), "WIN1252") as writer:
            while not enough.wait(0.005):
                begun, serial = now(), len(sent) + 1
                writer.notify(channel, b"\x81" if serial % 2 else str(serial).encode())
                sent.append(Sent(serial, channel, begun, now()))

    poisoner = threading.Thread(target=poison, daemon=True)
    with watched(dsn_of("WIN1252"), channel, **PROBES, backoff=(0.1, 1.0)) as (reactor, witness):
        begun = time.monotonic()
        poisoner.start()
        try:
            # Also those count that die before their LISTEN is known to hold.
            wait_until(lambda: f"attempt {deaths} in" in caplog.text)
            taken = time.monotonic() - begun
        finally:
            enough.set()
            poisoner.join(10)
        witness.wait("gap", len(witness.all("lost")))
        reactor.notify((channel, "100000"))
        witness.wait_for("100000")
        gaps = [one.gap for one in witness.all("gap")]

    record_property("seconds_for_7_deaths", taken)
    attempts = [int(number) for number in re.findall(r"attempt (\d+) in", caplog.text)]
    assert attempts == list(range(1, len(attempts) + 1)), "the backoff was reset"
    assert {one.told["error"].sqlstate for one in witness.all("lost")} == {"22P05"}
    final = Sent(100000, channel, now(), now())
    check_honesty([*sent, final], witness.arrived(), gaps)
