"""Random faults under load, against a model: what a handler did not get lies in a gap."""

from __future__ import annotations

import random
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest

from pgsignals import Database, Error, Notification, Reactor
from pgsignals.embedded import Postgres
from pgsignals.testing import Proxy
from tests.programs.fault_rig import (
    QUICK,
    Happening,
    Witness,
    Writer,
    check_honesty,
    session_of,
)
from tests.support.admin import exists
from tests.support.waiting import PATIENCE, wait_until

RecordProperty = Callable[[str, object], None]

CHANNELS = ["model a", "model b", "model c", "model d", "model e"]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres(tcp=True) as server:
        yield server


@pytest.fixture
def road(server: Postgres) -> Iterator[Proxy]:
    with Proxy(server.dsn) as road:
        yield road


class Faults:
    """Everything that can happen to a link, one at a time."""

    LOUD = ("terminate", "kill ours", "kill another", "fast", "immediate", "kill", "RST", "FIN")
    SILENT = ("freeze", "freeze to us", "freeze from us")

    def __init__(self, server: Postgres, road: Proxy, reactor: Reactor, witness: Witness) -> None:
        self._server = server
        self._road = road
        self._reactor = reactor
        self._witness = witness
        self.count = 0
        self.recoveries: list[float] = []
        self.silences: list[float] = []

    def happen(self, name: str) -> None:
        """Let the fault *name* happen, and return when the link is mended."""
        before = len(self._witness.all("gap"))
        lost_before = len(self._witness.all("lost"))
        if name in self.SILENT:
            direction = {"freeze to us": "to_client", "freeze from us": "to_server"}.get(name)
            begun = time.monotonic()
            self._road.freeze(direction)  # type: ignore[arg-type]
            try:
                lost = self._witness.wait("lost", lost_before + 1)
            finally:
                self._road.thaw(direction)  # type: ignore[arg-type]
            self.silences.append(lost.at - begun)
        else:
            self._loud(name, session_of(self._reactor))
        healed = time.monotonic()
        gap = self._witness.wait("gap", before + 1)
        self.recoveries.append(max(0.0, gap.at - healed))
        self.count += 1

    def _loud(self, name: str, pid: int) -> None:
        if name in ("terminate", "kill another"):
            with psycopg.connect(self._server.dsn, autocommit=True) as connection:
                if name == "terminate":
                    connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
                else:
                    self._server.kill_backend(connection.info.backend_pid, signal.SIGKILL)
        elif name == "kill ours":
            if pid > 1 and exists(pid):
                self._server.kill_backend(pid, signal.SIGKILL)
        elif name == "RST":
            self._road.reset()
        elif name == "FIN":
            self._road.cut()
        else:
            self._server.restart(name)  # type: ignore[arg-type]


def check_story(happenings: list[Happening]) -> None:
    """After a loss: connected, then the gap, and only then notifications."""
    state = "new"
    for one in happenings:
        allowed = {
            "connected": ("new", "lost"),
            "lost": ("connected", "listening"),
            "gap": ("connected",),
            "any_channel": ("listening",),
        }[one.kind]
        assert state in allowed, f"{one.kind} while {state}"
        first = one.kind == "connected" and not one.told["resumed"]
        state = "listening" if first or one.kind in ("gap", "any_channel") else one.kind


def run_model(
    server: Postgres, road: Proxy, dsn: str, names: list[str], record_property: RecordProperty
) -> None:
    hurt, quiet = Database(server.dsn_for(port=road.port)), Database(dsn)
    reactor = Reactor(hurt, channels=CHANNELS, **QUICK)
    bystander = Reactor(quiet, channels=CHANNELS, **QUICK, name="pgsignals-quiet")
    witness, quiet_witness = Witness(reactor), Witness(bystander)
    handled: list[str] = []
    reactor.on_channel(*CHANNELS)(lambda _, notification: handled.append(notification.payload))
    faults = Faults(server, road, reactor, witness)
    with bystander, reactor:
        with (
            Writer(server.dsn, CHANNELS) as writer,
            Writer(dsn, CHANNELS, pause=0.02) as quiet_writer,
        ):
            for name in names:
                heard = len(handled)
                wait_until(lambda heard=heard: len(handled) > heard + 20)  # type: ignore[misc]
                faults.happen(name)
            sent, quiet_sent = writer.finish(), quiet_writer.finish()
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            for channel in CHANNELS:
                connection.execute("SELECT pg_notify(%s, %s)", (channel, f"end of {channel}"))
        for channel in CHANNELS:
            wait_until(lambda channel=channel: f"end of {channel}" in handled)  # type: ignore[misc]
        bystander.notify((CHANNELS[0], "end"))
        quiet_witness.wait_for("end")

    gaps = [one.gap for one in witness.all("gap")]
    missing = check_honesty(sent, [one for one in handled if not one.startswith("end")], gaps)
    check_story(witness.happenings)
    assert len(gaps) == len(witness.all("lost")) == faults.count, "one gap for each loss"
    assert {gap.reason for gap in gaps} == {"reconnect"}
    quiet_arrived = [one for one in quiet_witness.arrived() if one != "end"]
    assert check_honesty(quiet_sent, quiet_arrived, []) == 0
    assert quiet_witness.kinds(quiet) == ["connected"], "a quiet link has no gap"
    record_property("sent", len(sent))
    record_property("missing", missing)
    record_property("recovered", statistics.median(faults.recoveries))
    record_property("recovered_at_most", max(faults.recoveries))
    if faults.silences:
        record_property("detected", statistics.median(faults.silences))


@pytest.mark.parametrize("seed", [random.randrange(10**6)], ids=["seed"])
def test_what_did_not_arrive_lies_in_a_gap(
    server: Postgres, road: Proxy, dsn: str, seed: int, record_property: RecordProperty
) -> None:
    names = [*Faults.LOUD, *Faults.SILENT]
    random.Random(seed).shuffle(names)
    record_property("faults", ", ".join(names))
    run_model(server, road, dsn, names, record_property)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [random.randrange(10**6) for _ in range(3)], ids="abc")
def test_what_did_not_arrive_lies_in_a_gap_over_many_faults(
    server: Postgres, road: Proxy, dsn: str, seed: int, record_property: RecordProperty
) -> None:
    names = random.Random(seed).choices([*Faults.LOUD * 3, *Faults.SILENT], k=60)
    run_model(server, road, dsn, names, record_property)


def test_threads_that_change_everything_during_faults_never_get_stuck(
    server: Postgres, road: Proxy, dsn: str, record_property: RecordProperty
) -> None:
    seed = random.randrange(10**6)
    record_property("seed", seed)
    reactor = Reactor(server.dsn_for(port=road.port), Database(dsn), **QUICK, workers=3)
    witness = Witness(reactor)
    enough = threading.Event()
    failures: list[str] = []
    slowest = [0.0]
    operations = [0]

    def handler(_: Database, notification: Notification) -> None:
        pass

    def live(number: int) -> None:
        chance = random.Random(seed + number)
        while not enough.is_set():
            name = f"fuzz {chance.randrange(6)}"
            database = chance.choice(reactor.databases)
            operation = chance.choice(["listen", "unlisten", "connect", "disconnect", "notify"])
            begun = time.monotonic()
            try:
                if operation in ("connect", "disconnect"):
                    getattr(reactor.channel(name), operation)(handler)
                elif operation == "notify":
                    reactor.notify((name, "x"), database=database)
                else:
                    getattr(reactor, operation)(name, database=database)
            except (Error, psycopg.Error):
                pass  # during a fault
            except BaseException as error:
                failures.append(f"{operation}: {error!r}")
            slowest[0] = max(slowest[0], time.monotonic() - begun)
            operations[0] += 1
            enough.wait(0.002)

    with reactor:
        hurt = reactor.databases[0]
        threads = [threading.Thread(target=live, args=(n,), daemon=True) for n in range(4)]
        for thread in threads:
            thread.start()
        try:
            for fault in range(1, 9):
                done = operations[0]
                wait_until(lambda done=done: operations[0] > done + 40)  # type: ignore[misc]
                if fault % 4 == 0:
                    server.restart("immediate")
                else:
                    road.reset()
                witness.wait("gap", fault, hurt)
        finally:
            enough.set()
            for thread in threads:
                thread.join(PATIENCE)
        assert not [thread for thread in threads if thread.is_alive()]
        reactor.listen("fuzz end")
        for database in reactor.databases:
            reactor.notify(("fuzz end", database.name), database=database)
            witness.wait_for(database.name)
    assert not failures
    record_property("slowest", slowest[0])
    record_property("operations", operations[0])
    assert slowest[0] < 10
    assert witness.kinds(reactor.databases[1]) == ["connected"]
