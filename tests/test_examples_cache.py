"""examples/cache: nothing older than what is known to have been notified is served."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from examples.cache import read_through
from examples.cache.read_through import CLEAN_UP, SCHEMA, TABLE, ReadThrough
from pgsignals import Database, Notification, Reactor
from pgsignals.testing import Proxy
from tests.support.admin import Admin
from tests.support.waiting import LONG, Background, wait_until

KEYS = ("cup", "tray", "spoon")


@dataclass
class Rows:
    """Stands for a table of versions: what ``load`` reads, and where it can be held."""

    versions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KEYS, 1))
    hold: threading.Event | None = None
    held: threading.Event = field(default_factory=threading.Event)

    def load(self, key: str) -> int:
        version = self.versions[key]
        if self.hold is not None:
            self.held.set()
            assert self.hold.wait(LONG)
        return version


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def table(admin: Admin) -> Iterator[None]:
    admin.execute(SCHEMA)
    yield
    admin.execute(CLEAN_UP)


def handled(reactor: Reactor, count: int) -> None:
    """Return when the handlers of *count* notifications have returned."""
    wait_until(lambda: reactor.status().databases[0].dispatched >= count)


def test_value_is_read_once_until_it_is_notified(dsn: str, channel: str, rows: Rows) -> None:
    reactor = Reactor(dsn)
    cache = ReadThrough(reactor, channel, rows.load)
    with reactor:
        wait_until(lambda: cache.get("cup") and len(cache) == 1)
        before = cache.loads
        assert [cache.get("cup") for _ in range(3)] == [1, 1, 1]
        assert cache.loads == before

        rows.versions["cup"] = 2
        cache.get("tray")
        reactor.notify((channel, "cup"))
        handled(reactor, 1)
        assert cache.get("cup") == 2
        assert cache.loads == before + 2, "the other key was forgotten, too"


def test_empty_payload_forgets_all(dsn: str, channel: str, rows: Rows) -> None:
    reactor = Reactor(dsn)
    cache = ReadThrough(reactor, channel, rows.load)
    with reactor:
        wait_until(lambda: [cache.get(key) for key in KEYS] and len(cache) == len(KEYS))
        reactor.notify(channel)
        handled(reactor, 1)
        assert len(cache) == 0


@pytest.mark.parametrize("payload", ["cup", ""], ids=["its key", "all keys"])
def test_read_that_a_notification_overtakes_is_not_remembered(
    dsn: str, channel: str, rows: Rows, payload: str
) -> None:
    reactor = Reactor(dsn)
    cache = ReadThrough(reactor, channel, rows.load)
    with reactor:
        wait_until(lambda: cache.get("tray") and len(cache) == 1)
        rows.hold = threading.Event()
        reading = Background(cache.get, "cup")
        assert rows.held.wait(LONG)

        rows.versions["cup"] = 2
        reactor.notify((channel, payload))
        handled(reactor, 1)
        rows.hold.set()
        assert reading.result() == 1  # it began before
        assert cache.get("cup") == 2


def test_read_that_another_key_overtakes_is_remembered(dsn: str, channel: str, rows: Rows) -> None:
    reactor = Reactor(dsn)
    cache = ReadThrough(reactor, channel, rows.load)
    with reactor:
        wait_until(lambda: cache.get("spoon") and len(cache) == 1)
        rows.hold = threading.Event()
        reading = Background(cache.get, "cup")
        assert rows.held.wait(LONG)
        reactor.notify((channel, "tray"))
        handled(reactor, 1)
        rows.hold.set()
        reading.result()
        assert len(cache) == 2


def test_read_that_a_loss_overtakes_is_not_remembered(
    dsn: str, channel: str, rows: Rows, admin: Admin
) -> None:
    reactor = Reactor(dsn)
    cache = ReadThrough(reactor, channel, rows.load)
    with reactor:
        wait_until(lambda: cache.get("tray") and len(cache) == 1)
        rows.hold = threading.Event()
        reading = Background(cache.get, "cup")
        assert rows.held.wait(LONG)

        rows.versions["cup"] = 2
        admin.kill(reactor.databases[0].backend_id)
        wait_until(lambda: reactor.status().databases[0].gaps)
        wait_until(lambda: len(cache) == 0)
        rows.hold.set()
        assert reading.result() == 1
        assert cache.get("cup") == 2


def test_nothing_is_remembered_while_nobody_listens(
    proxied: str, proxy: Proxy, channel: str, rows: Rows
) -> None:
    reactor = Reactor(proxied, backoff=(0.05, 0.05))
    cache = ReadThrough(reactor, channel, rows.load)
    assert [cache.get("cup"), cache.get("cup"), cache.loads, len(cache)] == [1, 1, 2, 0]
    with reactor:
        wait_until(lambda: cache.get("cup") and len(cache) == 1)

        proxy.refuse()
        proxy.cut()
        wait_until(lambda: len(cache) == 0)
        before = cache.loads
        rows.versions["cup"] = 2
        assert [cache.get("cup"), cache.get("cup"), cache.loads, len(cache)] == [
            2,
            2,
            before + 2,
            0,
        ]

        proxy.accept()
        wait_until(lambda: cache.get("cup") and len(cache) == 1)
    assert len(cache) == 0
    assert cache.get("cup") == 2
    assert len(cache) == 0


def test_load_that_fails_leaves_nothing_behind(dsn: str, channel: str, rows: Rows) -> None:
    reactor = Reactor(dsn)
    cache = ReadThrough(reactor, channel, rows.load)
    with reactor:
        with pytest.raises(KeyError):
            cache.get("unknown")
        rows.versions["unknown"] = 7
        wait_until(lambda: cache.get("unknown") == 7 and len(cache) == 1)


def test_it_remembers_no_more_than_its_limit(dsn: str, channel: str) -> None:
    reactor = Reactor(dsn)
    cache = ReadThrough(reactor, channel, str.upper, limit=2)
    with reactor:
        wait_until(lambda: cache.get("a") and len(cache) == 1)
        assert [cache.get(key) for key in "abc"] == ["A", "B", "C"]
        assert len(cache) == 2
        before = cache.loads
        cache.get("c")
        assert cache.loads == before


def test_concurrent_writers_and_a_killed_backend(dsn: str, admin: Admin, table: None) -> None:
    """Prices only rise.  No reader gets one below what had been notified before it asked."""
    engine = read_through.create_engine(dsn)
    reactor = Reactor(dsn, backoff=(0.01, 0.05))
    cache = read_through.prices(engine, reactor)
    notified = dict.fromkeys(KEYS, 0)
    over = threading.Event()

    # The same trigger order holds in each transaction: first the key, then what it became.
    admin.execute(
        f"CREATE FUNCTION {TABLE}_prove() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" PERFORM pg_notify('{TABLE}.proof', NEW.item || ' ' || NEW.cents); RETURN NULL; END $$;"
        f" CREATE TRIGGER under_proof AFTER UPDATE ON {TABLE}"
        f" FOR EACH ROW EXECUTE FUNCTION {TABLE}_prove();"
    )

    @reactor.on_channel(f"{TABLE}.proof")
    def prove(_: Database, notification: Notification) -> None:
        item, cents = notification.payload.split()
        notified[item] = max(notified[item], int(cents))

    def write(seed: int) -> int:
        choice = random.Random(seed).choice
        writes = 0
        connection = Admin(dsn)
        while not over.is_set():
            connection.execute(
                f"UPDATE {TABLE} SET cents = cents + 1 WHERE item = %s", choice(KEYS)
            )
            writes += 1
        connection.close()
        return writes

    def read(seed: int) -> int:
        choice = random.Random(seed).choice
        reads = 0
        while not over.is_set():
            item = choice(KEYS)
            least = notified[item]
            assert (cache.get(item) or 0) >= least, f"{item} was older than {least}"
            reads += 1
        return reads

    for item in KEYS:
        admin.execute(f"INSERT INTO {TABLE} VALUES (%s, 1)", item)
    try:
        with reactor:
            writers = [Background(write, seed) for seed in range(3)]
            readers = [Background(read, seed) for seed in range(3)]
            for losses in range(3):
                wait_until(lambda: reactor.status().databases[0].state == "listening")
                more = reactor.status().databases[0].dispatched + 300
                handled(reactor, more)
                admin.kill(reactor.databases[0].backend_id)
                wait_until(lambda: reactor.status().databases[0].gaps > losses)  # noqa: B023
            handled(reactor, reactor.status().databases[0].dispatched + 300)
            over.set()
            assert all([one.result() > 0 for one in writers + readers])

            # And in the end it is right, whatever was missed.
            current = dict(admin.execute(f"SELECT item, cents FROM {TABLE}"))
            wait_until(lambda: {item: cache.get(item) for item in KEYS} == current)
    finally:
        over.set()
        engine.dispose()
        admin.execute(f"DROP FUNCTION {TABLE}_prove CASCADE")


def test_change_while_deaf_is_served(dsn: str, admin: Admin, table: None) -> None:
    engine = read_through.create_engine(dsn)
    reactor = Reactor(dsn)
    cache = read_through.prices(engine, reactor)
    admin.execute(f"INSERT INTO {TABLE} VALUES ('samovar', 1)")
    with reactor:
        wait_until(lambda: cache.get("samovar") == 1 and len(cache) == 1)
        # One transaction: the change is not notified to the session that it ends.
        admin.execute(
            f"BEGIN; UPDATE {TABLE} SET cents = 0;"
            f" SELECT pg_terminate_backend({reactor.databases[0].backend_id}); COMMIT"
        )
        wait_until(lambda: cache.get("samovar") == 0)
    engine.dispose()


def test_truncate_forgets_all(dsn: str, admin: Admin, table: None) -> None:
    engine = read_through.create_engine(dsn)
    reactor = Reactor(dsn)
    cache = read_through.prices(engine, reactor)
    admin.execute(f"INSERT INTO {TABLE} VALUES ('cup', 1)")
    with reactor:
        wait_until(lambda: cache.get("cup") == 1 and len(cache) == 1)
        admin.execute(f"TRUNCATE {TABLE}")
        wait_until(lambda: cache.get("cup") is None)
    engine.dispose()
