"""TLS with ``sslmode=verify-full``: what is refused, and what goes through."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

import pgsignals
from pgsignals import ConnectError, Database, Notification, Reactor
from pgsignals.embedded import EmbeddedError, Postgres, find_binaries
from pgsignals.testing import Proxy
from tests.support.admin import Admin
from tests.support.arrivals import payloads, take
from tests.support.tools import tool
from tests.support.waiting import wait_until

PASSWORD = "CANARYtls9"

#: The days that a certificate is good for whose time is over as soon as it is made.  OpenSSL 3.5
#: refuses less.
EXPIRED = 0


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server with TLS, which these tests alone use."""
    tool("openssl")
    try:
        find_binaries(tls=True)
    except EmbeddedError as error:
        pytest.skip(str(error))
    with Postgres(tls=True) as server:
        yield server


@pytest.fixture(scope="module")
def tls_admin(server: Postgres) -> Iterator[Admin]:
    admin = Admin(server.dsn)
    yield admin
    admin.close()


@pytest.fixture
def certificate(server: Postgres, tmp_path: Path) -> Iterator[Callable[[str, int], None]]:
    """Gives the server another certificate of its authority for its key."""
    folder = server.directory
    current = folder / "server.crt"
    good = current.read_bytes()

    def use(certificate: bytes) -> None:
        current.write_bytes(certificate)  # in place: it stays the server's own file
        with psycopg.connect(server.dsn_for(host=server.directory, sslmode="disable")) as session:
            session.execute("SELECT pg_reload_conf()")
        # The main process reads it a moment later.
        wait_until(lambda: _shown(server, tmp_path) == certificate)

    def renew(names: str, days: int) -> None:
        request, new = tmp_path / "request.csr", tmp_path / "new.crt"
        _openssl(
            *["req", "-new", "-key", folder / "server.key", "-subj", "/CN=elsewhere.test"],
            *["-addext", f"subjectAltName={names}", "-out", request],
        )
        _openssl(
            *[
                "x509",
                "-req",
                "-in",
                request,
                "-CA",
                folder / "ca.crt",
                "-CAkey",
                folder / "ca.key",
            ],
            *["-copy_extensions", "copy", "-days", str(days), "-out", new],
        )
        use(new.read_bytes())

    yield renew
    use(good)


def _shown(server: Postgres, folder: Path) -> bytes:
    """The certificate that the server shows, as a file."""
    command = ["openssl", "s_client", "-starttls", "postgres", "-connect"]
    command += [f"127.0.0.1:{server.port}"]
    shown = subprocess.run(command, input=b"", capture_output=True, timeout=30, check=False).stdout
    begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----\n"
    return shown[shown.find(begin) : shown.find(end) + len(end)]


@pytest.fixture(scope="module")
def other_authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority that the server's is not."""
    folder = tmp_path_factory.mktemp("authority")
    _openssl(
        *["req", "-x509", "-nodes", "-days", "365", "-newkey", "rsa:2048", "-subj", "/CN=other"],
        *["-keyout", folder / "ca.key", "-out", folder / "ca.crt"],
    )
    return folder / "ca.crt"


def sessions(admin: Admin, name: str) -> list[tuple[str, bool]]:
    """Each session of that name: how it is protected."""
    return [
        (version, ssl)
        for version, ssl in admin.execute(
            "SELECT version, ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
            " WHERE application_name = %s",
            name,
        )
    ]


def refused(dsn: str, reason: str) -> None:
    """Neither a database nor a reactor gets through, and both say why, in one line."""
    for attempt in (lambda: pgsignals.connect(dsn), lambda: Reactor(dsn).start()):
        with pytest.raises(ConnectError, match=reason) as caught:
            attempt()
        assert len(str(caught.value).splitlines()) == 1
        assert PASSWORD not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None


# What is refused


def test_certificate_of_an_unknown_authority(server: Postgres, other_authority: Path) -> None:
    refused(
        server.dsn_for(sslrootcert=other_authority, password=PASSWORD), "certificate verify failed"
    )


def test_certificate_that_has_expired(
    server: Postgres, certificate: Callable[[str, int], None]
) -> None:
    certificate("DNS:localhost,IP:127.0.0.1", EXPIRED)

    refused(server.dsn_for(password=PASSWORD), "certificate (verify failed|has expired)")


def test_certificate_of_another_host(
    server: Postgres, certificate: Callable[[str, int], None]
) -> None:
    certificate("DNS:elsewhere.test", 30)

    refused(server.dsn_for(password=PASSWORD), "elsewhere.test.* does not match host")


def test_missing_certificate_of_the_authority(server: Postgres, tmp_path: Path) -> None:
    refused(server.dsn_for(sslrootcert=tmp_path / "none.crt"), "root certificate file")


def test_server_without_tls(dsn: str) -> None:
    refused(f"{dsn} sslmode=require", "server does not support SSL")


def test_wrong_password_over_tls(server: Postgres) -> None:
    refused(server.dsn_for(password=PASSWORD), "password authentication failed")


# What goes through


def test_every_session_of_a_reactor_is_protected(
    server: Postgres, tls_admin: Admin, channel: str
) -> None:
    name = f"tls_{channel}"
    used = []
    reactor = Reactor(server.dsn_for(application_name=name))

    @reactor.on_channel(channel)
    def use(db: Database, notification: Notification) -> None:
        db.execute("SELECT 1")
        used.append(notification.payload)

    with reactor:
        reactor.notify((channel, "1"))
        wait_until(lambda: used)
        open_now = sessions(tls_admin, name)

    assert len(open_now) == 3, "the listening one, the control connection, the worker's"
    for version, ssl in open_now:
        assert ssl
        assert version in ("TLSv1.2", "TLSv1.3")
    wait_until(lambda: not sessions(tls_admin, name))


def test_handful_is_received_by_a_database(server: Postgres, channel: str) -> None:
    with Database(server.dsn) as database:
        database.listen(channel)
        database.notify((channel, "1"), (channel, "2"))

        assert payloads(take(database, 2)) == ["1", "2"]


@pytest.mark.parametrize(("count", "size"), [(20_000, 10), (20_000, 1000), (3000, 7900)])
def test_flood_is_received_by_a_database(
    server: Postgres, tls_admin: Admin, channel: str, count: int, size: int
) -> None:
    """OpenSSL takes in more than libpq asks for: the socket may be silent with more to come."""
    with Database(server.dsn) as database:
        database.listen(channel)
        tls_admin.flood(channel, count, size)
        received = payloads(take(database, count))

    assert [int(payload.rstrip(".")) for payload in received] == list(range(1, count + 1))
    assert {len(payload) for payload in received} == {size}


@pytest.mark.parametrize(("count", "size"), [(20_000, 10), (20_000, 1000), (3000, 7900)])
def test_flood_is_received_by_a_reactor(
    server: Postgres, tls_admin: Admin, channel: str, count: int, size: int
) -> None:
    received: list[int] = []
    reactor = Reactor(server.dsn)

    @reactor.on_channel(channel)
    def note(_: Database, notification: Notification) -> None:
        received.append(int(notification.payload.rstrip(".")))

    with reactor:
        tls_admin.flood(channel, count, size)
        wait_until(lambda: len(received) >= count)

    assert received == list(range(1, count + 1))


def test_single_large_ones_arrive_without_the_next(
    server: Postgres, tls_admin: Admin, channel: str
) -> None:
    """Nothing may stay in a buffer until something else comes."""
    with Database(server.dsn) as database:
        database.listen(channel)
        for number in range(20):
            tls_admin.notify(channel, str(number) * 3900)
            assert payloads(take(database, 1)) == [str(number) * 3900]


# Losses


def test_reactor_reconnects_and_tells_the_gap(
    server: Postgres, tls_admin: Admin, channel: str
) -> None:
    with Proxy(server.dsn) as proxy:
        received: list[str] = []
        reactor = Reactor(server.dsn_for(port=proxy.port), backoff=(0.01, 0.05))
        reactor.gap.connect(lambda _, gap: received.append(gap.reason), weak=False)

        @reactor.on_channel(channel)
        def note(_: Database, notification: Notification) -> None:
            received.append(notification.payload)

        with reactor:
            faults: list[Callable[[], None]] = [
                lambda: tls_admin.kill(reactor.status().databases[0].backend_id or 0),
                proxy.reset,
                proxy.cut,
                lambda: proxy.cut_after(10, "to_client"),  # inside a record
            ]
            for fault in faults:
                received.clear()
                fault()
                if fault is faults[-1]:
                    tls_admin.notify(channel, "cut")
                wait_until(lambda: "reconnect" in received)
                tls_admin.notify(channel, "after it")
                wait_until(lambda: received[-1:] == ["after it"])
                assert received == ["reconnect", "after it"]


def test_certificate_that_expires_keeps_a_reactor_out_until_it_is_renewed(
    server: Postgres,
    tls_admin: Admin,
    channel: str,
    certificate: Callable[[str, int], None],
) -> None:
    reactor = Reactor(server.dsn, channels=[channel], backoff=(0.01, 0.05), probe_interval=None)
    with reactor:
        certificate("DNS:localhost", EXPIRED)
        tls_admin.kill(reactor.status().databases[0].backend_id or 0)

        def says_why() -> bool:
            (status,) = reactor.status().databases
            return "certificate" in (status.last_error or "")

        wait_until(says_why)
        assert len((reactor.status().databases[0].last_error or "").splitlines()) == 1
        certificate("DNS:localhost", 30)
        wait_until(lambda: reactor.status().databases[0].state == "listening")
        assert reactor.status().databases[0].reconnects == 1


FORK = """
import os, sys, time, pgsignals

arrived, told = [], []
reactor = pgsignals.Reactor(sys.argv[1], name="pgsignals-fork")
reactor.on_channel("serial")(lambda db, notification: arrived.append(notification.payload))
reactor.lost.connect(lambda db, reason, error: told.append(str(error)), weak=False)
with reactor:
    for number in range(4):
        child = os.fork()
        if child == 0:
            if number % 2:
                reactor.stop()
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        reactor.notify(serial=str(number))
    deadline = time.monotonic() + 20
    while len(arrived) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
print(arrived, told)
"""


def test_child_does_not_end_the_parents_sessions(server: Postgres) -> None:
    """A farewell of the child's would break the records of the parent's."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, server.dsn],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == "['0', '1', '2', '3'] []\n"
