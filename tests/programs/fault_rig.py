"""What the tests of faults have in common: a witness of all that a reactor tells, a writer that
knows when it committed, and what links promise."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

import psycopg

from pgsignals import Database, Gap, Notification, Reactor
from pgsignals.embedded import Postgres
from tests.support.waiting import PATIENCE, wait_until

#: Short probes, for tests that wait for them.
INTERVAL, TIMEOUT = 0.5, 1.0
PROBES: dict[str, Any] = {"probe_interval": INTERVAL, "probe_timeout": TIMEOUT}
QUICK: dict[str, Any] = {**PROBES, "backoff": (0.05, 0.4)}

#: What silence is reported within, and what a busy machine may add to it.
PROMISED = INTERVAL + TIMEOUT + 0.5
BUSY = 3.0


@dataclass(frozen=True)
class Happening:
    """One thing that a reactor has told."""

    kind: str
    database: Database
    told: dict[str, Any]
    at: float = field(default_factory=time.monotonic)

    @property
    def gap(self) -> Gap:
        gap = self.told["gap"]
        assert isinstance(gap, Gap)
        return gap


class Witness:
    """All that *reactor* tells, in the order in which it tells it."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.happenings: list[Happening] = []
        for kind in ("connected", "lost", "gap", "handler_failed", "any_channel"):
            getattr(reactor, kind).connect(self._writer(kind), weak=False)

    def _writer(self, kind: str) -> Callable[..., None]:
        def write(database: Database, **told: Any) -> None:
            self.happenings.append(Happening(kind, database, told))

        return write

    def all(self, kind: str, database: Database | None = None) -> list[Happening]:
        """What was told under the name *kind*."""
        return [
            one
            for one in self.happenings
            if one.kind == kind and (database is None or one.database is database)
        ]

    def wait(
        self,
        kind: str,
        count: int = 1,
        database: Database | None = None,
        timeout: float = PATIENCE,
    ) -> Happening:
        """The one with the number *count*, when it has been told."""
        wait_until(
            lambda: len(self.all(kind, database)) >= count,
            timeout,
            why=f"{kind} was told {len(self.all(kind, database))} times, not {count}",
        )
        return self.all(kind, database)[count - 1]

    def arrived(self, name: str | None = None) -> list[str]:
        """The payloads that have arrived, on channel *name* or on all."""
        notifications: list[Notification] = [
            one.told["notification"] for one in self.all("any_channel")
        ]
        return [n.payload for n in notifications if name is None or n.channel == name]

    def kinds(self, database: Database) -> list[str]:
        """What was told of *database*, by name; notifications are left out."""
        return [
            one.kind
            for one in self.happenings
            if one.database is database and one.kind != "any_channel"
        ]

    def wait_for(self, payload: str, timeout: float = PATIENCE) -> None:
        """Return when *payload* has arrived."""
        wait_until(lambda: payload in self.arrived(), timeout, why=f"{payload!r} did not arrive")


def now() -> datetime:
    """This machine's clock, as gaps tell it."""
    return datetime.now(UTC)


def session_of(reactor: Reactor, number: int = 0) -> int:
    """The backend of a listening session."""
    pid = wait_until(lambda: reactor.status().databases[number].backend_id)
    assert pid is not None
    assert pid > 1
    return pid


def state_of(reactor: Reactor, number: int = 0) -> str:
    """What an operator is told of a database."""
    return reactor.status().databases[number].state


def error_of(reactor: Reactor, number: int = 0) -> str:
    """The last error that an operator is told of."""
    return reactor.status().databases[number].last_error or ""


class Pinger:
    """Sends what has to arrive at once on a link that no fault concerns."""

    def __init__(self, dsn: str, channel: str, witness: Witness) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._channel = channel
        self._witness = witness
        self._enough = threading.Event()
        self.slowest = 0.0
        self.count = 0
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="test-pinger", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join(PATIENCE)
        self._connection.close()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._enough.wait(0.05):
                self.count += 1
                payload = f"ping {self.count}"
                begun = time.monotonic()
                self._connection.execute("SELECT pg_notify(%s, %s)", (self._channel, payload))
                self._witness.wait_for(payload)
                self.slowest = max(self.slowest, time.monotonic() - begun)
        except BaseException as error:
            self.error = error


@dataclass(frozen=True)
class Sent:
    """One notification, and between which times it was committed, if it was."""

    serial: int
    channel: str
    begun: datetime
    acknowledged: datetime | None  # None: nobody knows whether it was committed


class Writer:
    """Notifies serial numbers all the time, over whatever happens to its server."""

    def __init__(self, dsn: str, channels: list[str], pause: float = 0.002) -> None:
        self._dsn = dsn
        self._channels = channels
        self._pause = pause
        self._enough = threading.Event()
        self.sent: list[Sent] = []
        self._thread = threading.Thread(target=self._run, name="test-writer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self) -> list[Sent]:
        """All that was sent."""
        self._enough.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the writer is stuck"
        return self.sent

    def _run(self) -> None:
        while not self._enough.is_set():
            with (
                contextlib.suppress(psycopg.OperationalError),
                psycopg.connect(self._dsn, autocommit=True, connect_timeout=5) as connection,
            ):
                self._write(connection)
            self._enough.wait(0.02)

    def _write(self, connection: psycopg.Connection[Any]) -> None:
        while not self._enough.wait(self._pause):
            serial = len(self.sent) + 1
            channel = self._channels[serial % len(self._channels)]
            begun, acknowledged = now(), None
            try:
                connection.execute("SELECT pg_notify(%s, %s)", (channel, str(serial)))
                acknowledged = now()
            finally:
                self.sent.append(Sent(serial, channel, begun, acknowledged))


def check_honesty(sent: list[Sent], arrived: list[str], gaps: list[Gap]) -> int:
    """What did not arrive is told by a gap; nothing arrives twice or in another order.

    Returns how many did not arrive.
    """
    serials = [int(payload) for payload in arrived]
    assert serials == sorted(set(serials)), "twice, or out of order"
    assert set(serials) <= {one.serial for one in sent}, "nobody has sent it"
    known = set(serials)
    missing = [one for one in sent if one.acknowledged and one.serial not in known]
    untold = [
        one
        for one in missing
        if not any(one.begun <= gap.until and _ack(one) >= gap.since for gap in gaps)
    ]
    spans = "; ".join(f"{gap.since:%M:%S.%f}-{gap.until:%M:%S.%f}" for gap in gaps)
    assert not untold, f"{len(untold)} are missing outside of every gap: {untold[:3]}; {spans}"
    return len(missing)


def _ack(one: Sent) -> datetime:
    assert one.acknowledged is not None
    return one.acknowledged


class Censor:
    """A TCP proxy that understands what a server says.

    :ivar withholds: whether notifications are swallowed, while all else passes.
    :ivar held: those that wait in us since :meth:`hold`, while all else passes.
    :ivar hangs_after: how many messages of each connection pass, before silence.
    :ivar lets_listen: clear it, and a LISTEN waits in us until it is set.
    :ivar listen_waits: set while one waits.
    """

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self.withheld = 0
        self.withholds = False
        self.held = b""
        self._holds = False
        self._holds_for: socket.socket | None = None
        self._sending = threading.Lock()
        self.hangs_after: int | None = None
        self.lets_listen, self.listen_waits = threading.Event(), threading.Event()
        self.lets_listen.set()
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._take)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.lets_listen.set()
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in tuple(self._threads):
            thread.join(10)
        for end in (self._listener, *self._ends):
            end.close()

    def hold(self) -> None:
        """Let answers overtake notifications, as a pooler may that has a session for each."""
        with self._sending:
            self._holds = True

    def release(self) -> None:
        """Hand over what has waited since :meth:`hold`, in one piece."""
        with self._sending:
            self._holds = False
            if self._holds_for is not None:
                self._holds_for.sendall(self.held)
            self.held = b""

    def _start(self, run: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, name="test-censor", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._ends.append(client)
                try:
                    server = socket.create_connection(("127.0.0.1", self._server_port))
                except OSError:
                    self._end(client)
                    continue
                self._ends.append(server)
                self._start(self._forward, client, server)
                self._start(self._read_messages, server, client)

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if b"LISTEN" in data and not self.lets_listen.is_set():
                    self.listen_waits.set()
                    self.lets_listen.wait(2 * PATIENCE)
                    self.listen_waits.clear()
                target.sendall(data)
        self._end(target)

    def _read_messages(self, server: socket.socket, client: socket.socket) -> None:
        data, passed = b"", 0
        plain = False  # the answer to the question for encryption is a single letter
        with contextlib.suppress(OSError):
            while more := server.recv(65536):
                data += more
                if not plain and data[:1] in (b"N", b"S") and len(data) == 1:
                    client.sendall(data)
                    data = b""
                    continue
                plain = True
                with self._sending:
                    through = b""
                    while len(data) >= 5 and len(data) > (size := int.from_bytes(data[1:5])):
                        message, data = data[: size + 1], data[size + 1 :]
                        if message[:1] == b"A" and self.withholds:
                            self.withheld += 1
                        elif message[:1] == b"A" and self._holds:
                            self.held += message
                            self._holds_for = client
                        else:
                            passed += 1
                            if self.hangs_after is None or passed <= self.hangs_after:
                                through += message
                    client.sendall(through)
        self._end(client)

    @staticmethod
    def _end(target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def deaf_ports(count: int) -> Iterator[list[int]]:
    """Ports that take connections and never say a word."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        yield [listener.getsockname()[1] for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()


def free_port() -> int:
    """A port below the system's ephemeral ones: those may be taken meanwhile."""
    while True:
        port = random.randrange(15_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def run_as_server(server: Postgres, *command: str) -> None:
    """Run a program as the account to which a server's files belong, and wait for its end."""
    owner = server.directory.stat().st_uid
    process = subprocess.run(
        command,
        cwd=server.directory,
        user=None if owner == os.geteuid() else owner,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr.decode(errors="replace")


def become_standby(server: Postgres) -> None:
    """Make a stopped server one that starts as a standby."""
    signal = server.data_directory / "standby.signal"
    signal.touch(mode=0o600)
    owner = server.directory.stat()
    os.chown(signal, owner.st_uid, owner.st_gid)
