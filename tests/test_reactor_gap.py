"""What a reactor says when it may have missed something: in order, in time, exactly."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import psycopg
import pytest

from pgsignals import ConnectionLostError, Database, Gap, Notification, Reactor
from pgsignals._pure.burst import Burst
from pgsignals._pure.lanes import Hold
from pgsignals._sources import registering
from pgsignals.embedded import Postgres
from pgsignals.testing import Proxy
from tests.support.admin import Admin
from tests.support.waiting import PATIENCE, Background, wait_until

QUICK: dict[str, Any] = {"backoff": (0.01, 0.1), "probe_interval": None}


def now() -> datetime:
    return datetime.now(UTC)


class Gate(threading.Event):
    """Holds handlers until it is set, but not for ever if the test fails before."""

    def __init__(self) -> None:
        super().__init__()
        self._until = time.monotonic() + PATIENCE

    def hold(self, *_: object, **__: object) -> None:
        self.wait(max(0.0, self._until - time.monotonic()))


class Told(NamedTuple):
    """One thing that a reactor has said."""

    what: str
    sender: Database
    value: Any


class Record:
    """Everything that a reactor says, in order.

    That of a running one begins after its first ``connected``, which may just be on its way.
    """

    def __init__(self, reactor: Reactor) -> None:
        self.told: list[Told] = []
        self._late = reactor.running
        self.during: Callable[[Notification], object] = lambda _: None
        reactor.connected.connect(self._connected, weak=False)
        reactor.lost.connect(self._lost, weak=False)
        reactor.gap.connect(self._gap, weak=False)
        reactor.any_channel.connect(self._any, weak=False)

    def _connected(self, sender: Database, resumed: bool) -> None:
        if resumed or not self._late:
            self.told.append(Told("connected", sender, resumed))

    def _lost(self, sender: Database, reason: str, error: ConnectionLostError) -> None:
        self.told.append(Told("lost", sender, (reason, error)))

    def _gap(self, sender: Database, gap: Gap) -> None:
        self.told.append(Told("gap", sender, gap))

    def _any(self, sender: Database, notification: Notification) -> None:
        self.during(notification)
        self.told.append(Told("notification", sender, notification.payload))

    def of(self, what: str) -> list[Any]:
        return [told.value for told in self.told if told.what == what]

    @property
    def gaps(self) -> list[Gap]:
        return self.of("gap")

    @property
    def arrived(self) -> list[str]:
        return self.of("notification")

    @property
    def kinds(self) -> list[str]:
        return [told.what for told in self.told]

    def await_more(self, count: int) -> None:
        seen = len(self.arrived)
        wait_until(lambda: len(self.arrived) >= seen + count)

    def await_gaps(self, count: int) -> list[Gap]:
        wait_until(lambda: len(self.gaps) >= count, why=f"fewer than {count} gaps were told")
        return self.gaps


def wait_for_another_backend(reactor: Reactor, old: int | None) -> None:
    wait_until(lambda: reactor.status().databases[0].backend_id != old)


def listening_backend(reactor: Reactor) -> int:
    """The backend of the listening session, once there is one."""
    wait_until(lambda: reactor.status().databases[0].state == "listening")
    return reactor.databases[0].backend_id


# A new session


@pytest.mark.parametrize("workers", [1, 4])
def test_lost_session_is_told_as_lost_connected_and_gap_before_what_follows(
    dsn: str, channel: str, admin: Admin, workers: int
) -> None:
    with Reactor(dsn, channels=[channel], workers=workers, **QUICK) as reactor:
        record = Record(reactor)
        admin.notify(channel, "before")
        wait_until(lambda: record.arrived)
        killed_at = now()
        admin.kill(listening_backend(reactor))
        record.await_gaps(1)
        admin.notify(channel, "after")
        wait_until(lambda: len(record.arrived) == 2)

        assert record.kinds == ["notification", "lost", "connected", "gap", "notification"]
        reason, error = record.of("lost")[0]
        assert reason == "ended"
        assert isinstance(error, ConnectionLostError)
        assert error.sqlstate == "57P01"
        assert record.of("connected") == [True]
        gap = record.gaps[0]
        assert (gap.database, gap.reason) == (reactor.databases[0], "reconnect")
        assert gap.dropped is None
        assert gap.channels is None
        assert gap.since <= killed_at <= gap.until <= now()
        assert gap.since.utcoffset() == gap.until.utcoffset() == timedelta(0)
        status = reactor.status().databases[0]
        assert (status.gaps, status.reconnects) == (1, 1)


def test_first_session_is_connected_without_a_gap(dsn: str, channel: str) -> None:
    reactor = Reactor(dsn, channels=[channel])
    record = Record(reactor)
    with reactor:
        reactor.notify((channel, "1"))
        wait_until(lambda: record.arrived)

    assert record.kinds == ["connected", "notification"]
    assert record.of("connected") == [False]


def test_second_life_begins_anew(dsn: str, channel: str) -> None:
    reactor = Reactor(dsn, channels=[channel])
    record = Record(reactor)
    for _ in range(2):
        with reactor:
            reactor.notify((channel, "1"))
            wait_until(lambda: record.arrived)
            record.told.remove(next(told for told in record.told if told.what == "notification"))

    assert record.of("connected") == [False, False]
    assert record.gaps == []


def test_stop_is_no_loss(dsn: str) -> None:
    reactor = Reactor(dsn)
    record = Record(reactor)
    with reactor:
        pass

    assert record.kinds == ["connected"]


def test_notification_of_the_outage_lies_in_the_gap(
    proxied: str, proxy: Proxy, channel: str, admin: Admin
) -> None:
    with Reactor(proxied, channels=[channel], **QUICK) as reactor:
        record = Record(reactor)
        proxy.refuse()
        proxy.cut()
        wait_until(lambda: record.of("lost"))
        before = now()
        admin.notify(channel, "missed")
        after = now()
        proxy.accept()
        (gap,) = record.await_gaps(1)
        admin.notify(channel, "later")
        wait_until(lambda: record.arrived)

        assert record.arrived == ["later"]
        assert gap.since <= before
        assert after <= gap.until


class Sender:
    """Notifies 0, 1, 2 and so on, and remembers when each was committed."""

    def __init__(self, dsn: str, channel: str) -> None:
        self.sent: list[tuple[datetime, datetime]] = []
        self._dsn, self._channel = dsn, channel
        self._ending = threading.Event()
        self._thread = Background(self._run)

    def _run(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True, application_name="tests") as connection:
            while not self._ending.is_set():
                before = now()
                connection.execute("SELECT pg_notify(%s, %s)", (self._channel, str(len(self.sent))))
                self.sent.append((before, now()))

    def end(self) -> None:
        self._ending.set()
        self._thread.result()


@pytest.mark.parametrize("workers", [1, 4])
def test_everything_that_was_missed_lies_in_a_gap_told_before_the_first_later_one(
    dsn: str, channel: str, admin: Admin, workers: int
) -> None:
    reactor = Reactor(
        dsn, channels=[channel], workers=workers, backoff=(0.01, 0.1), probe_interval=0.2
    )
    with reactor:
        record = Record(reactor)
        sender = Sender(dsn, channel)
        for number in range(1, 11):
            record.await_more(20)
            admin.kill(listening_backend(reactor))
            record.await_gaps(number)
        sender.end()
        admin.notify(channel, "end")
        wait_until(lambda: "end" in record.arrived)

    assert record.arrived.count("end") == 1
    numbers = [int(text) for text in record.arrived if text != "end"]
    assert numbers == sorted(set(numbers))
    assert [k for k in record.kinds if k != "notification"] == ["lost", "connected", "gap"] * 10
    missed = set(range(len(sender.sent))) - set(numbers)
    place = {told.value: at for at, told in enumerate(record.told) if told.what == "notification"}
    gaps = [(at, told.value) for at, told in enumerate(record.told) if told.what == "gap"]
    for number in missed:
        committed = sender.sent[number]
        covering = [
            at for at, gap in gaps if gap.since <= committed[1] and committed[0] <= gap.until
        ]
        later = next(n for n in [*numbers, None] if n is None or n > number)
        assert covering, f"{number} was missed, and no gap says so"
        assert later is None or covering[0] < place[str(later)]


def test_gap_waits_for_the_new_listen(proxied: str, proxy: Proxy, channel: str) -> None:
    """While the server's answers are held back, the gap is not told."""
    with Reactor(proxied, channels=[channel], **QUICK) as reactor:
        record = Record(reactor)
        proxy.freeze("to_client")
        proxy.cut()
        wait_until(lambda: record.of("lost"))
        wait_until(lambda: proxy.held("to_client"))
        assert record.kinds == ["lost"]
        proxy.thaw()
        record.await_gaps(1)

    assert record.kinds == ["lost", "connected", "gap"]


def test_what_was_received_before_the_loss_is_handled_before_lost(
    dsn: str, channel: str, admin: Admin
) -> None:
    with Reactor(dsn, channels=[channel], **QUICK) as reactor:
        record = Record(reactor)
        gate = Gate()
        record.during = gate.hold
        admin.flood(channel, 1000)
        wait_until(lambda: reactor.status().databases[0].received == 1000)
        admin.kill(listening_backend(reactor))
        wait_until(lambda: reactor.status().databases[0].reconnects == 1)
        admin.notify(channel, "after")
        gate.set()
        wait_until(lambda: "after" in record.arrived)

    assert record.arrived == [*(str(n) for n in range(1, 1001)), "after"]
    assert [k for k in record.kinds if k != "notification"] == ["lost", "connected", "gap"]
    assert record.kinds[1000:] == ["lost", "connected", "gap", "notification"]


def test_session_killed_again_and_again_while_it_listens_to_many_channels(
    dsn: str, channel: str, admin: Admin
) -> None:
    names = [f"of_many_{number}" for number in range(5000)]
    with Reactor(dsn, channels=[channel], **QUICK) as reactor:
        record = Record(reactor)
        listening = Background(reactor.listen, *names)
        for _ in range(5):
            backend = reactor.status().databases[0].backend_id
            if backend is not None:
                admin.execute("SELECT pg_terminate_backend(%s)", backend)
            wait_for_another_backend(reactor, backend)
        listening.result(PATIENCE)
        wait_until(lambda: len(reactor.status().databases[0].channels) == 5001)
        admin.notify(channel, "1")
        admin.notify(names[-1], "2")
        wait_until(lambda: record.arrived == ["1", "2"])

        assert len(record.of("lost")) == len(record.gaps) == len(record.of("connected"))


def test_every_session_that_was_told_as_connected_is_told_as_lost(
    dsn: str, channel: str, admin: Admin
) -> None:
    with Reactor(dsn, channels=[channel], **QUICK) as reactor:
        record = Record(reactor)
        for number in range(1, 6):
            admin.kill(listening_backend(reactor))
            record.await_gaps(number)

    assert record.kinds == ["lost", "connected", "gap"] * 5
    ends = [gap.until for gap in record.gaps]
    assert ends == sorted(ends)


def test_connection_that_is_reset_is_told(proxied: str, proxy: Proxy, channel: str) -> None:
    with Reactor(proxied, channels=[channel], **QUICK) as reactor:
        record = Record(reactor)
        proxy.reset()
        record.await_gaps(1)

    assert record.of("lost")[0][0] == "ended"


def test_one_lost_database_says_nothing_of_the_other(dsn: str, channel: str, admin: Admin) -> None:
    with Reactor(dsn, dsn, channels=[channel], **QUICK) as reactor:
        record = Record(reactor)
        _, second = reactor.databases
        admin.kill(second.backend_id)
        record.await_gaps(1)

    assert {told.sender for told in record.told} == {second}
    assert record.gaps[0].database is second
    assert [one.gaps for one in reactor.status().databases] == [0, 1]


# A server that restarts


@pytest.fixture(scope="module")
def own_server() -> Iterator[Postgres]:
    """To be stopped and killed."""
    with Postgres(tcp=True) as server:
        yield server


@pytest.mark.parametrize("mode", ["fast", "immediate", "kill"])
def test_restarted_server_is_found_again(
    own_server: Postgres,
    channel: str,
    mode: Any,
) -> None:
    own_server.start()
    with Reactor(own_server.dsn, channels=[channel], backoff=(0.01, 0.2)) as reactor:
        record = Record(reactor)
        reactor.notify((channel, "before"))
        wait_until(lambda: record.arrived)
        own_server.restart(mode)
        (gap,) = record.await_gaps(1)
        reactor.notify((channel, "after"))
        wait_until(lambda: "after" in record.arrived)

        assert record.kinds == ["notification", "lost", "connected", "gap", "notification"]
        assert gap.reason == "reconnect"


def test_crash_of_another_backend_is_survived(own_server: Postgres, channel: str) -> None:
    own_server.start()
    with (
        psycopg.connect(own_server.dsn) as victim,
        Reactor(own_server.dsn, channels=[channel], backoff=(0.01, 0.2)) as reactor,
    ):
        record = Record(reactor)
        own_server.kill_backend(victim.info.backend_pid, signal.SIGKILL)
        record.await_gaps(1)
        wait_until(lambda: reactor.status().databases[0].state == "listening")
        reactor.notify((channel, "after"))
        wait_until(lambda: record.arrived == ["after"])


# A backlog that is full


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("count", [200, 20_000])
def test_overflow_is_told_exactly(
    dsn: str, channel: str, admin: Admin, workers: int, count: int
) -> None:
    with Reactor(
        dsn, channels=[channel], max_backlog=100, workers=workers, probe_interval=None
    ) as reactor:
        record = Record(reactor)
        gate = Gate()
        record.during = gate.hold
        before = now()
        admin.notify(channel, "0")
        wait_until(lambda: reactor.status().backlog == 0 < reactor.status().databases[0].received)
        admin.flood(channel, count)
        wait_until(lambda: reactor.status().databases[0].dropped == count - 100)
        assert reactor.status().backlog == 100
        gate.set()
        wait_until(lambda: len(record.arrived) == 101)
        (gap,) = record.await_gaps(1)

        assert record.arrived == ["0", *(str(n) for n in range(count - 99, count + 1))]
        assert record.kinds == ["notification", "gap", *["notification"] * 100]
        assert (gap.reason, gap.dropped) == ("overflow", count - 100)
        assert gap.channels == frozenset([channel])
        assert gap.since <= gap.until
        assert before <= gap.until <= now()
        status = reactor.status().databases[0]
        assert (status.dropped, status.gaps, status.dispatched) == (count - 100, 1, 101)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("overflow", ["drop_oldest", "coalesce"])
def test_under_a_flood_what_is_delivered_and_what_is_dropped_makes_the_whole(
    dsn: str,
    new_channel: Callable[[], str],
    admin: Admin,
    workers: int,
    overflow: Any,
) -> None:
    names = [new_channel() for _ in range(3)]
    with Reactor(
        dsn, channels=names, max_backlog=300, workers=workers, overflow=overflow
    ) as reactor:
        record = Record(reactor)
        record.during = lambda _: time.sleep(0.00001)
        for _ in range(4):
            for name in names:
                admin.flood(name, 3000)
        wait_until(lambda: reactor.status().databases[0].received == 36_000, 40)
        wait_until(
            lambda: reactor.status().backlog == 0 and reactor.status().databases[0].dispatched
        )
        reactor.notify((names[0], "end"))
        wait_until(lambda: "end" in record.arrived)

    status = reactor.status().databases[0]
    told = sum(gap.dropped or 0 for gap in record.gaps)
    assert told == status.dropped
    assert len(record.arrived) == status.dispatched
    if overflow == "drop_oldest":
        assert len(record.arrived) + told == 36_001
    else:
        assert len(record.arrived) + told <= 36_001
    assert all(gap.reason == "overflow" and gap.dropped for gap in record.gaps)


def test_gap_of_an_overflow_spans_the_commits_of_what_was_dropped(
    dsn: str, channel: str, admin: Admin
) -> None:
    with Reactor(dsn, channels=[channel], max_backlog=10, probe_interval=0.2) as reactor:
        record = Record(reactor)
        gate = Gate()
        record.during = gate.hold
        committed = []
        for number in range(60):
            before = now()
            admin.notify(channel, str(number))
            committed.append((before, now()))
        wait_until(lambda: reactor.status().databases[0].received == 60)
        gate.set()
        admin.notify(channel, "end")
        wait_until(lambda: "end" in record.arrived)
        gaps = record.gaps

    missed = sorted(set(range(60)) - {int(text) for text in record.arrived if text != "end"})
    assert sum(gap.dropped or 0 for gap in gaps) == len(missed) > 0
    for number in missed:
        before, after = committed[number]
        assert any(gap.since <= after and before <= gap.until for gap in gaps)


def test_coalesce_loses_nothing_that_differs(dsn: str, channel: str, admin: Admin) -> None:
    with Reactor(
        dsn, channels=[channel], max_backlog=10, overflow="coalesce", probe_interval=None
    ) as reactor:
        record = Record(reactor)
        gate = Gate()
        record.during = gate.hold
        admin.notify(channel, "0")
        wait_until(lambda: reactor.status().backlog == 0 < reactor.status().databases[0].received)
        for _ in range(50):
            admin.notify(channel, "a", "b", "c")
        wait_until(lambda: reactor.status().databases[0].received == 151)
        wait_until(lambda: reactor.status().backlog == 3)
        gate.set()
        wait_until(lambda: len(record.arrived) == 4)

    assert record.arrived == ["0", "a", "b", "c"]
    assert record.gaps == []


def test_block_loses_nothing(dsn: str, channel: str, admin: Admin) -> None:
    with Reactor(dsn, channels=[channel], max_backlog=10, overflow="block") as reactor:
        record = Record(reactor)
        most: list[int] = []
        record.during = lambda _: most.append(reactor.status().backlog)
        admin.flood(channel, 5000)
        wait_until(lambda: len(record.arrived) == 5000)

    assert record.arrived == [str(n) for n in range(1, 5001)]
    assert max(most) <= 10
    assert record.gaps == []


def test_overflow_and_reconnect_are_told_apart(dsn: str, channel: str, admin: Admin) -> None:
    with Reactor(dsn, channels=[channel], max_backlog=10, **QUICK) as reactor:
        record = Record(reactor)
        gate = Gate()
        record.during = gate.hold
        admin.notify(channel, "0")
        wait_until(lambda: reactor.status().backlog == 0 < reactor.status().databases[0].received)
        admin.flood(channel, 30)
        wait_until(lambda: reactor.status().databases[0].dropped == 20)
        admin.kill(listening_backend(reactor))
        wait_until(lambda: reactor.status().databases[0].reconnects == 1)
        gate.set()
        record.await_gaps(2)
        admin.notify(channel, "end")
        wait_until(lambda: "end" in record.arrived)

    assert [(gap.reason, gap.dropped) for gap in record.gaps] == [
        ("overflow", 20),
        ("reconnect", None),
    ]
    assert record.kinds == [
        "notification",
        "gap",
        *["notification"] * 10,
        *["lost", "connected", "gap"],
        "notification",
    ]


# Somebody takes our registrations away


@pytest.mark.parametrize("workers", [1, 3])
def test_registrations_that_somebody_took_away_are_told_and_mended(
    dsn: str, channel: str, admin: Admin, workers: int
) -> None:
    with psycopg.connect(dsn, autocommit=True, application_name="tests") as connection:
        database = Database.wrap(connection)
        with Reactor(
            database, channels=[channel, "another"], probe_interval=2.0, workers=workers
        ) as reactor:
            record = Record(reactor)
            wait_until(lambda: reactor.status().databases[0].probe_seconds is not None)
            before = now()
            connection.execute("UNLISTEN *")  # a round trip has just been: the session is free
            admin.notify(channel, "missed")
            after = now()
            (gap,) = record.await_gaps(1)
            admin.notify(channel, "heard")
            wait_until(lambda: record.arrived)

            assert (gap.reason, gap.dropped) == ("unlistened", None)
            assert gap.channels == frozenset([channel, "another"])
            assert gap.since <= before
            assert after <= gap.until
            assert record.arrived == ["heard"]
            assert record.kinds == ["gap", "notification"]
            assert reactor.status().databases[0].channels == tuple(sorted([channel, "another"]))


def test_gap_of_more_lost_registrations_than_one_statement_names_is_of_all_channels(
    dsn: str, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registering, "LISTENS_AT_ONCE", 2)  # which are three with the canaries'
    with psycopg.connect(dsn, autocommit=True, application_name="tests") as connection:
        database = Database.wrap(connection)
        with Reactor(database, channels=[channel, "another"], probe_interval=0.1) as reactor:
            record = Record(reactor)
            connection.execute("UNLISTEN *")
            (gap,) = record.await_gaps(1)

    assert (gap.reason, gap.channels) == ("unlistened", None)


def test_gap_of_lost_registrations_begins_before_them_whatever_canaries_come_in_between(
    dsn: str, channel: str, admin: Admin
) -> None:
    """A round trip that shows the loss is no proof, also where a canary follows before the server
    is asked what is left."""
    stop = threading.Event()

    def send_canaries() -> None:
        with psycopg.connect(dsn, autocommit=True, application_name="tests") as other:
            while not stop.is_set():
                other.execute('NOTIFY "pgsignals.probe"')

    sending = Background(send_canaries)
    try:
        with psycopg.connect(dsn, autocommit=True, application_name="tests") as connection:
            database = Database.wrap(connection)
            with Reactor(database, channels=[channel], probe_interval=0.1) as reactor:
                record = Record(reactor)
                for number in range(1, 16):
                    connection.execute(f"UNLISTEN {channel}")
                    admin.notify(channel, str(number))
                    missed = now()
                    gap = record.await_gaps(number)[-1]
                    assert str(number) in record.arrived or gap.since <= missed <= gap.until
    finally:
        stop.set()
        sending.result()


# Notifications that arrive before all is told


@pytest.mark.parametrize("overflow", ["drop_oldest", "block", "coalesce"])
def test_flood_before_a_session_is_announced_is_told_after_it_and_does_not_end_it(
    dsn: str, channel: str, admin: Admin, overflow: Any
) -> None:
    calls = 0

    def connect() -> psycopg.Connection[Any]:
        nonlocal calls
        calls += 1
        if calls % 2 == 0:  # the control connection: the session listens, and waits for its canary
            admin.flood(channel, 50)
            admin.notify(channel, *["equal"] * 20)
        return psycopg.connect(dsn, autocommit=True)

    reactor = Reactor(
        Database(connect=connect),
        channels=[channel],
        max_backlog=20,
        overflow=overflow,
        backoff=(0.01, 0.1),
        probe_interval=60.0,
    )
    record = Record(reactor)
    with reactor:
        wait_until(lambda: "equal" in record.arrived)
        admin.kill(listening_backend(reactor))
        wait_until(lambda: record.arrived.count("equal") >= (2 if overflow == "coalesce" else 40))
        status = reactor.status().databases[0]

    assert (status.reconnects, calls) == (1, 4)
    told = [kind[0] for kind in record.kinds]
    first, second = {
        "drop_oldest": ("cg" + "n" * 20, "lcgg" + "n" * 20),
        "block": ("c" + "n" * 70, "lcg" + "n" * 70),
        "coalesce": ("cg" + "n" * 20, "lcgg" + "n" * 20),
    }[overflow]
    assert "".join(told) == first + second
    dropped = {"drop_oldest": 50, "block": 0, "coalesce": 31}[overflow]
    gaps = [gap for gap in record.gaps if gap.reason == "overflow"]
    assert [gap.dropped for gap in gaps] == ([dropped, dropped] if dropped else [])
    assert status.dropped == 2 * dropped
    assert status.received == 140
    assert all(gap.channels == frozenset([channel]) for gap in gaps)


def test_what_is_held_follows_the_policy() -> None:
    begun, later = now(), now()

    def hold(policy: Any, *payloads: str) -> tuple[list[str], int]:
        held = Hold(4, policy)
        for payload in payloads:
            held.put(Burst([Notification("a", payload, 1)]), begun, later)
        assert held.received == len(payloads)
        burst, drops = held.take(begun, later)
        assert not held
        assert held.take(begun, later)[1] is None
        return burst.payloads, drops.count if drops else 0

    numbers = [str(number) for number in range(9)]
    assert hold("drop_oldest", *numbers) == (numbers[-4:], 5)
    assert hold("drop_oldest", *numbers[:5]) == (numbers[1:5], 1)
    assert hold("drop_oldest", *numbers[:4]) == (numbers[:4], 0)
    assert hold("block", *numbers) == (numbers, 0)
    assert hold("coalesce", *(["x"] * 9), "y", "x") == (["x", "y"], 0)
    assert hold("coalesce", *numbers, "8", "0") == (["6", "7", "8", "0"], 6)


def test_notifications_that_come_with_the_listen_are_held_until_the_gap_is_told(
    proxied: str, proxy: Proxy, channel: str, admin: Admin
) -> None:
    names = [channel, *(f"of_many_{number}" for number in range(1000))]
    with Reactor(proxied, channels=names, **QUICK) as reactor:
        record = Record(reactor)
        stop = threading.Event()

        def send() -> int:
            count = 0
            while not stop.is_set():
                admin.notify(channel, str(count))
                count += 1
            return count

        sending = Background(send)
        for number in range(1, 6):
            record.await_more(1)
            proxy.cut()
            record.await_gaps(number)
        stop.set()
        sending.result()

    kinds = "".join(kind[0] for kind in record.kinds)
    assert kinds.replace("n", "") == "lcg" * 5
    assert all(part in ("", "lcg") for part in kinds.split("n"))
    numbers = [int(text) for text in record.arrived]
    assert numbers == sorted(set(numbers))


def test_handler_that_is_stuck_holds_back_no_gap_of_another_database(
    dsn: str, new_channel: Callable[[], str], admin: Admin
) -> None:
    name = new_channel()
    with Reactor(dsn, dsn, workers=3, channels=[name], **QUICK) as reactor:
        first, second = reactor.databases
        record = Record(reactor)
        gate = Gate()
        reactor.on_channel(name, sender=first)(gate.hold)
        try:
            admin.notify(name, "1")
            wait_until(lambda: record.told)
            admin.kill(second.backend_id)
            record.await_gaps(1)
            assert record.gaps[0].database is second
        finally:
            gate.set()
